//! `ConnectedUser`: an extractor for pages that need the signed-in user's connection.

use std::fmt;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts, OriginalUri};
use axum::response::{IntoResponse, Redirect, Response};
use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
#[cfg(feature = "middleware")]
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Extension, RequestBuilder};

use super::Login;
use super::failure::{escape, page};
use super::return_path::ReturnPath;
use super::routes::{FORM, guarded};
use crate::error::{Error, ErrorKind};
use crate::manager::UserHandle;

/// The longest wait of a page for the user's token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The user who is signed in to the app and connected to Hurdlr: an extractor for handlers.
///
/// The app's own session says who is signed in, by the function that
/// [`LoginConfig::new`](super::LoginConfig::new) takes. A visitor who is not signed in gets that
/// function's own answer, such as a redirect to the sign-in page. A user who has to log in at
/// Hurdlr, for the first time or again, is sent to connect, and comes back to the same page. So the
/// handler runs for connected users only. [The module](super) has a whole app.
///
/// The extractor's state is a [`Login`]. An app with a state of its own hands it out from there:
///
/// ```
/// use axum::Router;
/// use axum::extract::FromRef;
/// use axum::routing::get;
/// use hurdlr_oauth2::web::{ConnectedUser, Login, UserRejection};
///
/// #[derive(Clone)]
/// struct AppState {
///     hurdlr: Login,
///     // and what the app has besides
/// }
///
/// impl FromRef<AppState> for Login {
///     fn from_ref(state: &AppState) -> Login {
///         state.hurdlr.clone()
///     }
/// }
///
/// /// A page that has something to show to those who are not connected, too.
/// async fn home(user: Result<ConnectedUser, UserRejection>) -> Result<String, UserRejection> {
///     match user {
///         Ok(user) => Ok(format!("connected as {}", user.handle().id().as_str())),
///         Err(UserRejection::NotConnected { connect, .. }) => Ok(format!("connect at {connect}")),
///         Err(other) => Err(other), // the answer that the extractor would have given
///     }
/// }
///
/// fn app(state: AppState) -> Router {
///     let login = state.hurdlr.routes();
///     Router::new().route("/", get(home)).merge(login).with_state(state)
/// }
/// ```
///
/// # When the browser is sent to connect
///
/// A `GET` comes back to its own page, if path and query have at most 256 bytes. Every other
/// request comes back to [`LoginConfig::return_to`](super::LoginConfig::return_to), since its body
/// is gone. A script that fetches (`Sec-Fetch-Mode` is not `navigate`) cannot follow a login, and
/// gets 403. A browser that came to the page from elsewhere is first asked whether to connect, as
/// [the module](super) says.
///
/// The extractor waits 10 seconds for a token, and then answers 504. Of several
/// [managers](super::LoginConfig::other_manager) it is the first that counts.
///
/// # Cancel safety
///
/// Cancel safe: a browser that goes away cancels no refresh.
#[derive(Clone)]
pub struct ConnectedUser {
    handle: UserHandle,
    #[cfg(feature = "middleware")]
    page: Page,
}

/// The page that a request asks for.
#[derive(Clone)]
struct Page {
    login: Login,
    /// The destination of a login that the page needs.
    path: ReturnPath,
    /// Whether a person is about to see the answer.
    is_navigation: bool,
}

impl ConnectedUser {
    /// The user's handle. Their token was alive a moment ago.
    #[must_use]
    pub fn handle(&self) -> &UserHandle {
        &self.handle
    }

    /// A `GET` of the API for this user: the path and query as the reference has them, such as
    /// `/rest/v4/expenses` (feature `middleware`).
    #[cfg(feature = "middleware")]
    #[must_use = "a request is made when it is sent"]
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// A call of the API for this user, like [`get`](Self::get) (feature `middleware`).
    #[cfg(feature = "middleware")]
    #[must_use = "a request is made when it is sent"]
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // Joined as text, so that every path stays below the base URL.
        let url = format!("{}{}", self.page.login.0.base_url, path.trim_start_matches('/'));
        self.page.login.0.api.request(method, url).with_extension(self.handle.clone())
    }

    /// A client whose calls are made for this user, for code that takes one (feature `middleware`).
    /// It shares its connections with the clients of all others, so it costs next to nothing.
    #[cfg(feature = "middleware")]
    #[must_use]
    pub fn api(&self) -> ClientWithMiddleware {
        let shared = ClientBuilder::from_client(self.page.login.0.api.clone());
        shared.with_init(Extension(self.handle.clone())).build()
    }

    /// The answer of a handler whose call of the API failed (feature `middleware`): by an error of
    /// `reqwest_middleware`, or of `reqwest`, such as that of
    /// [`error_for_status`](reqwest::Response::error_for_status). A login that turned out to be
    /// over sends the browser to connect, as the extractor does; all else is a page that says so.
    #[cfg(feature = "middleware")]
    #[must_use = "a handler returns it"]
    pub fn rejection(&self, error: impl Into<reqwest_middleware::Error>) -> UserRejection {
        self.page.rejection(call_error(error.into()))
    }
}

impl fmt::Debug for ConnectedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectedUser").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl<S> FromRequestParts<S> for ConnectedUser
where
    Login: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = UserRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, UserRejection> {
        let login = Login::from_ref(state);
        let id = (login.0.users)(parts.clone()).await.map_err(UserRejection::SignedOut)?;
        let handle = login.0.managers[0].user(&id);
        let page = Page::new(parts, login);
        match handle.token_timeout(TOKEN_TIMEOUT).await {
            Ok(_) => Ok(Self {
                handle,
                #[cfg(feature = "middleware")]
                page,
            }),
            Err(error) => Err(page.rejection(error)),
        }
    }
}

impl Page {
    fn new(parts: &Parts, login: Login) -> Self {
        let site = &login.0;
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        // The body of any other request is gone after a login.
        let is_repeatable = parts.method == Method::GET || parts.method == Method::HEAD;
        let path = uri.path_and_query().filter(|_| is_repeatable);
        let path = path.and_then(|path| ReturnPath::parse(path.as_str())?.below(&site.prefix));
        let path = path.unwrap_or_else(|| site.return_to.clone());
        let mode = parts.headers.get("sec-fetch-mode");
        Self { path, is_navigation: mode.is_none_or(|mode| mode == "navigate"), login }
    }

    fn rejection(&self, error: Error) -> UserRejection {
        if error.needs_login() {
            let connect = self.login.0.connect_link(&self.path);
            UserRejection::NotConnected { connect, is_navigation: self.is_navigation, error }
        } else {
            UserRejection::Failed { error, page: self.path.as_str().to_owned() }
        }
    }
}

/// The cause of a call that failed: this crate's own error, or one made of `reqwest`'s.
#[cfg(feature = "middleware")]
fn call_error(error: reqwest_middleware::Error) -> Error {
    if let Some(own) = Error::of(&error) {
        return own.clone();
    }
    let (kind, text) = if error.is_builder() {
        (ErrorKind::Config, "the call of the API cannot be made")
    } else if error.is_timeout() {
        (ErrorKind::TimedOut, "the API did not answer in time")
    } else if error.is_decode() {
        (ErrorKind::InvalidResponse, "the answer of the API cannot be read")
    } else if let Some(status) = error.status() {
        // By `error_for_status`.
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                (ErrorKind::RateLimited, "the API was asked too often")
            }
            status if status.is_server_error() => (ErrorKind::Unavailable, "the API failed"),
            _ => (ErrorKind::Rejected, "the API refused the call"),
        }
    } else {
        (ErrorKind::Unavailable, "the API did not answer")
    };
    // A query may hold personal data.
    Error::new(kind, text).caused_by(error.without_url())
}

/// Why there is no [`ConnectedUser`]. As a response it sends the browser where the reason can be
/// removed.
#[derive(Debug)]
#[non_exhaustive]
pub enum UserRejection {
    /// Nobody is signed in to the app: the app's own answer.
    SignedOut(Response),
    /// The user has to log in at Hurdlr. As a response a redirect to `connect` (303), or 403 where
    /// a script fetches the page.
    #[non_exhaustive]
    NotConnected {
        /// The link of a login that comes back to this page, as the browser sees it.
        connect: String,
        /// Whether a person is about to see the answer.
        is_navigation: bool,
        /// The reason: [`ErrorKind::LoginRequired`] or [`ErrorKind::RotationLost`].
        error: Error,
    },
    /// The user's connection cannot be used now. As a response a page that says so: 503 or 504
    /// where a later try can succeed, 502 for an answer that is wrong, 500 for settings of this
    /// site.
    #[non_exhaustive]
    Failed {
        /// The reason.
        error: Error,
        /// This page, for a link to try again.
        page: String,
    },
}

impl IntoResponse for UserRejection {
    fn into_response(self) -> Response {
        let response = match self {
            Self::SignedOut(response) => return response,
            Self::NotConnected { connect, is_navigation: true, .. } => {
                Redirect::to(&connect).into_response()
            }
            Self::NotConnected { .. } => {
                (StatusCode::FORBIDDEN, "the user is not connected to Hurdlr\n").into_response()
            }
            Self::Failed { error, page } => failed(&error, &page),
        };
        guarded(response, FORM)
    }
}

fn failed(error: &Error, path: &str) -> Response {
    let status = match error.kind() {
        ErrorKind::Config | ErrorKind::Unsupported => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Rejected | ErrorKind::InvalidResponse => StatusCode::BAD_GATEWAY,
        ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let (title, message) = match status {
        StatusCode::INTERNAL_SERVER_ERROR => (
            "Hurdlr cannot be asked",
            "This site is not set up for it. Please tell those who run it.",
        ),
        StatusCode::BAD_GATEWAY => (
            "Hurdlr gave no usable answer",
            "Your connection is kept. If this stays, please tell those who run this site.",
        ),
        _ => (
            "Hurdlr cannot be reached",
            "Your connection is kept. Please try again in a few minutes.",
        ),
    };
    let again = format!("<a class=\"act\" href=\"{}\">Try again</a>", escape(path));
    let mut response = page(status, title, message, &again);
    if let Some(pause) = error.retry_after() {
        // Rounded up, since nobody is to come too early.
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn page_says_who_can_help() {
        for (error, status, words) in [
            (Error::config("no secret"), 500, "not set up"),
            (Error::new(ErrorKind::InvalidResponse, "no token"), 502, "no usable answer"),
            (Error::store("no database"), 503, "in a few minutes"),
            (Error::new(ErrorKind::TimedOut, "no answer"), 504, "in a few minutes"),
        ] {
            let response = failed(&error, "/books");
            assert_eq!(response.status().as_u16(), status);
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            assert!(String::from_utf8_lossy(&body).contains(words), "{error}");
        }
    }

    #[test]
    fn pause_is_rounded_up() {
        for (millis, seconds) in [(1_000, "1"), (1_001, "2"), (89_999, "90")] {
            let error = Error::new(ErrorKind::Unavailable, "it said no");
            let error = error.with_retry_after(Some(Duration::from_millis(millis)));
            assert_eq!(failed(&error, "/books").headers()[RETRY_AFTER], seconds);
        }
    }
}

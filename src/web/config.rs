//! The settings of the login routes, and their validation.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "middleware")]
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
#[cfg(feature = "middleware")]
use reqwest_middleware::ClientWithMiddleware;
use url::Url;

use super::cookie_key::CookieKey;
use super::failure::LoginFailure;
use super::login_cookie::LoginCookies;
use super::return_path::{self, ReturnPath};
use crate::error::Error;
use crate::manager::TokenManager;
use crate::wire::endpoint::secret_bearing_url;
use crate::wire::user::UserId;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type UserResolver = dyn Fn(Parts) -> BoxFuture<Result<UserId, Response>> + Send + Sync;
type OnFailure = dyn Fn(LoginFailure) -> BoxFuture<Response> + Send + Sync;
type AuthorizeParams = dyn Fn(&UserId) -> Vec<(String, String)> + Send + Sync;

pub(super) const CONNECT_PATH: &str = "/hurdlr/connect";

/// The timeouts of API calls by the routes' own client: those of token requests by default.
#[cfg(feature = "middleware")]
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
#[cfg(feature = "middleware")]
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of [`login_routes`](super::login_routes), which validates them.
#[derive(Clone)]
#[must_use]
pub struct LoginConfig {
    keys: Vec<CookieKey>,
    users: Arc<UserResolver>,
    on_failure: Arc<OnFailure>,
    authorize_params: Arc<AuthorizeParams>,
    other_managers: Vec<TokenManager>,
    return_to: Option<String>,
    connect_path: String,
    callback_path: Option<String>,
    disconnect_path: String,
    #[cfg(feature = "middleware")]
    api: Option<ClientWithMiddleware>,
}

impl LoginConfig {
    /// Starts with the key for the cookies, a [`CookieKey`] or its bytes; and with the one
    /// question: who is the user of this request?
    ///
    /// `users` looks at the parts of the request, as an extractor does. Where nobody is signed in,
    /// its own answer is what the browser gets, such as a redirect to the app's sign-in page. In an
    /// app that has an extractor:
    ///
    /// ```
    /// # use axum::extract::FromRequestParts;
    /// # use axum::response::Redirect;
    /// # use http::request::Parts;
    /// # use hurdlr_oauth2::UserId;
    /// # use hurdlr_oauth2::web::{CookieKey, LoginConfig};
    /// # #[derive(Clone)]
    /// # struct AppState;
    /// # struct SignedIn(UserId);
    /// # impl FromRequestParts<AppState> for SignedIn {
    /// #     type Rejection = Redirect;
    /// #     async fn from_request_parts(_: &mut Parts, _: &AppState) -> Result<Self, Redirect> {
    /// #         Err(Redirect::to("/sign-in"))
    /// #     }
    /// # }
    /// # fn config(cookie_key: CookieKey, state: AppState) -> LoginConfig {
    /// LoginConfig::new(cookie_key, move |mut parts| {
    ///     let state = state.clone();
    ///     async move {
    ///         SignedIn::from_request_parts(&mut parts, &state).await.map(|SignedIn(user)| user)
    ///     }
    /// })
    /// # }
    /// ```
    pub fn new<F, R>(
        key: impl Into<CookieKey>,
        users: impl Fn(Parts) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<UserId, R>> + Send + 'static,
        R: IntoResponse,
    {
        Self {
            keys: vec![key.into()],
            users: Arc::new(move |parts| {
                let user = users(parts);
                Box::pin(async { user.await.map_err(IntoResponse::into_response) })
            }),
            on_failure: Arc::new(|failure| Box::pin(async { failure.into_response() })),
            authorize_params: Arc::new(|_| Vec::new()),
            other_managers: Vec::new(),
            return_to: None,
            connect_path: CONNECT_PATH.into(),
            callback_path: None,
            disconnect_path: "/hurdlr/disconnect".into(),
            #[cfg(feature = "middleware")]
            api: None,
        }
    }

    /// A former key, by which cookies are still read and none are made. To change keys, add the new
    /// one here on all replicas, then make it the first, and 10 minutes later drop the old one.
    pub fn other_key(mut self, key: impl Into<CookieKey>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Another manager with the same redirect URI, such as that of the former API version while
    /// users move to a new one. New logins begin with the manager of
    /// [`login_routes`](super::login_routes). Each is completed by the manager it began with, and a
    /// disconnect is one at all of them.
    ///
    /// ```
    /// # use hurdlr_oauth2::web::{LoginConfig, login_routes};
    /// # use hurdlr_oauth2::{Error, TokenManager};
    /// # use axum::Router;
    /// # type Managers = (TokenManager, TokenManager);
    /// # fn routes((v4, v6): Managers, config: LoginConfig) -> Result<Router, Error> {
    /// login_routes(v6, config.other_manager(v4))
    /// # }
    /// ```
    pub fn other_manager(mut self, manager: TokenManager) -> Self {
        self.other_managers.push(manager);
        self
    }

    /// More parameters for the authorize URL of a user's login, such as `prompt` or `login_hint`;
    /// none by default. See [`begin_login_with`](crate::Hurdlr::begin_login_with).
    ///
    /// ```
    /// # use hurdlr_oauth2::UserId;
    /// # use hurdlr_oauth2::web::LoginConfig;
    /// # fn with_hint(config: LoginConfig) -> LoginConfig {
    /// config.authorize_params(|user: &UserId| [("login_hint", user.as_str().to_owned())])
    /// # }
    /// ```
    pub fn authorize_params<K: Into<String>, V: Into<String>, P: IntoIterator<Item = (K, V)>>(
        mut self,
        params: impl Fn(&UserId) -> P + Send + Sync + 'static,
    ) -> Self {
        self.authorize_params = Arc::new(move |user| {
            params(user).into_iter().map(|(name, value)| (name.into(), value.into())).collect()
        });
        self
    }

    /// The destination of a user whose request named no usable `return_to`; the app's root by
    /// default. Where that page needs a [`ConnectedUser`](super::ConnectedUser), a disconnect that
    /// names no `return_to` leads on to the next login: have its form name a page that does not.
    ///
    /// This one and those of requests are a path of the app, with a query if need be, of at most
    /// 256 bytes, and in the form that a browser would make of it. Where the app is below a
    /// [prefix](Self::callback_path), a path without the prefix gets it.
    pub fn return_to(mut self, path: impl Into<String>) -> Self {
        self.return_to = Some(path.into());
        self
    }

    /// The path at which a login begins, as the app sees it; `/hurdlr/connect` by default.
    pub fn connect_path(mut self, path: impl Into<String>) -> Self {
        self.connect_path = path.into();
        self
    }

    /// The path of the callback, as the app sees it; by default that of the
    /// [redirect URI](crate::HurdlrBuilder::redirect_uri).
    ///
    /// Set it where a proxy or [`nest`](axum::Router::nest) takes a prefix off the app's paths.
    /// Where the redirect URI's path ends with this one, what stands before it is the prefix of the
    /// app, and every link and redirect of the routes gets it:
    ///
    /// ```
    /// # use hurdlr_oauth2::web::{LoginConfig, login_routes};
    /// # use hurdlr_oauth2::{Error, TokenManager};
    /// # use axum::Router;
    /// # fn app(manager: TokenManager, config: LoginConfig) -> Result<Router, Error> {
    /// // With the redirect URI https://app.example.com/books/hurdlr/callback:
    /// let login = login_routes(manager, config.callback_path("/hurdlr/callback"))?;
    /// # let app =
    /// Router::new().nest("/books", login)
    /// # ;
    /// # Ok(app)
    /// # }
    /// ```
    pub fn callback_path(mut self, path: impl Into<String>) -> Self {
        self.callback_path = Some(path.into());
        self
    }

    /// The path at which a user is disconnected, as the app sees it; `/hurdlr/disconnect` by
    /// default.
    pub fn disconnect_path(mut self, path: impl Into<String>) -> Self {
        self.disconnect_path = path.into();
        self
    }

    /// The client of a [`ConnectedUser`](super::ConnectedUser)'s calls (feature `middleware`): the
    /// one that the app shares among all its users, made by
    /// [`TokenManager::middleware`]. By default a client of the routes' own, which waits 5 seconds
    /// for a connection and 30 for an answer.
    #[cfg(feature = "middleware")]
    pub fn api(mut self, client: ClientWithMiddleware) -> Self {
        self.api = Some(client);
        self
    }

    /// Shows that a login failed, or that it first has to be
    /// [confirmed](super::FailureReason::Unconfirmed). By default that is a small page, which is
    /// available here as well, since a [`LoginFailure`] is a response:
    ///
    /// ```
    /// # use axum::response::{IntoResponse, Redirect, Response};
    /// # use hurdlr_oauth2::web::{FailureReason, LoginConfig, LoginFailure};
    /// # fn show(config: LoginConfig) -> LoginConfig {
    /// config.on_failure(async |failure: LoginFailure| match failure.reason() {
    ///     FailureReason::OtherUser => Redirect::to("/switch-user").into_response(),
    ///     _ => failure.into_response(),
    /// })
    /// # }
    /// ```
    ///
    /// A page of the app's own says it in words for a person: the text of a reason is for logs. It
    /// may have any status. The headers `Cache-Control: no-store` and `Referrer-Policy` are added
    /// to it in any case.
    pub fn on_failure<F, R>(
        mut self,
        show: impl Fn(LoginFailure) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = R> + Send + 'static,
        R: IntoResponse,
    {
        self.on_failure = Arc::new(move |failure| {
            let shown = show(failure);
            Box::pin(async { shown.await.into_response() })
        });
        self
    }
}

impl fmt::Debug for LoginConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginConfig")
            .field("keys", &self.keys.len())
            .field("return_to", &self.return_to)
            .field("connect_path", &self.connect_path)
            .field("callback_path", &self.callback_path)
            .field("disconnect_path", &self.disconnect_path)
            .finish_non_exhaustive()
    }
}

/// The validated settings, with the managers they are for.
pub(super) struct LoginRoutes {
    /// The first begins logins; each completes its own.
    pub(super) managers: Vec<TokenManager>,
    pub(super) cookies: LoginCookies,
    pub(super) users: Arc<UserResolver>,
    pub(super) on_failure: Arc<OnFailure>,
    pub(super) authorize_params: Arc<AuthorizeParams>,
    pub(super) return_to: ReturnPath,
    /// The part that the browser sees before the app's paths: empty, or such as `/books`.
    pub(super) prefix: String,
    pub(super) connect_path: String,
    pub(super) callback_path: String,
    pub(super) disconnect_path: String,
    /// The app's own, by its redirect URI: a proxy in front may have changed that of a request.
    pub(super) origin: String,
    /// Shared by all users. Each call has its user as an extension.
    #[cfg(feature = "middleware")]
    pub(super) api: ClientWithMiddleware,
    /// The part of the API's URLs that stands before the path; ends in `/`.
    #[cfg(feature = "middleware")]
    pub(super) base_url: Box<str>,
}

impl LoginRoutes {
    pub(super) fn new(manager: TokenManager, config: LoginConfig) -> Result<Self, Error> {
        let managers: Vec<_> = std::iter::once(manager).chain(config.other_managers).collect();
        let hurdlr = managers[0].hurdlr();
        hurdlr.begin_login()?; // fails where a setting is missing
        let redirect_uri = hurdlr.redirect_uri().unwrap_or_default();
        let mut others = managers.iter().map(|manager| manager.hurdlr().redirect_uri());
        if let Some(other) = others.find(|other| *other != Some(redirect_uri)) {
            return Err(Error::config(format!(
                "the redirect_uri of other_manager is {:?}, and that of the first manager is \
                 {redirect_uri:?}: the routes have one callback",
                other.unwrap_or_default()
            )));
        }
        let redirect = secret_bearing_url("redirect_uri", redirect_uri)?;
        let (callback_path, prefix) = callback_path(&redirect, config.callback_path)?;
        let paths = [
            ("connect_path", &config.connect_path),
            ("callback_path", &callback_path),
            ("disconnect_path", &config.disconnect_path),
        ];
        for (setting, path) in paths {
            check_route(setting, path)?;
            if let Some((other, _)) =
                paths.iter().find(|(other, same)| *other != setting && *same == path)
            {
                return Err(Error::config(format!("{setting} and {other} are both {path:?}")));
            }
        }
        let return_to = config.return_to.as_deref().unwrap_or("/");
        let return_to = ReturnPath::parse(return_to).and_then(|path| path.below(&prefix));
        let return_to = return_to.ok_or_else(|| {
            Error::config(format!(
                "return_to is {:?}: it must be a path of the app, of at most {} bytes",
                config.return_to.unwrap_or_default(),
                return_path::MAX_BYTES
            ))
        })?;
        let keys = config.keys.iter().map(CookieKey::validated).collect::<Result<_, _>>()?;
        #[cfg(feature = "middleware")]
        let api = if let Some(api) = config.api {
            api
        } else {
            let bounded = |client: reqwest::ClientBuilder| {
                client.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT)
            };
            managers[0].middleware().client(bounded)?.build()
        };
        let cookies = LoginCookies::new(keys, redirect_uri, redirect.scheme() == "https");
        Ok(Self {
            cookies,
            users: config.users,
            on_failure: config.on_failure,
            authorize_params: config.authorize_params,
            return_to,
            prefix,
            connect_path: config.connect_path,
            callback_path,
            disconnect_path: config.disconnect_path,
            origin: redirect.origin().ascii_serialization(),
            #[cfg(feature = "middleware")]
            api,
            #[cfg(feature = "middleware")]
            base_url: hurdlr.realm().environment().into(),
            managers,
        })
    }
}

/// The callback's path as the app sees it, and the prefix that the browser sees before it.
fn callback_path(redirect: &Url, setting: Option<String>) -> Result<(String, String), Error> {
    let seen = redirect.path();
    let Some(path) = setting else {
        if seen == "/" {
            return Err(Error::config(
                "the path of redirect_uri is `/`, which is the app's own page: register a path \
                 such as /hurdlr/callback, or set callback_path",
            ));
        }
        check_route("the path of redirect_uri", seen)?;
        return Ok((seen.to_owned(), String::new()));
    };
    let prefix = seen.strip_suffix(&path).unwrap_or_default().to_owned();
    let is_prefix = |path: ReturnPath| path.path() == prefix && !prefix.ends_with('/');
    if !prefix.is_empty() && !ReturnPath::parse(&prefix).is_some_and(is_prefix) {
        return Err(Error::config(format!(
            "the path of redirect_uri is {prefix:?} before callback_path: that is no app's prefix"
        )));
    }
    Ok((path, prefix))
}

/// Accepts a path that axum takes as it is: the letters of RFC 3986 section 3.3, and none of axum's
/// own placeholders, present or former.
fn check_route(setting: &str, path: &str) -> Result<(), Error> {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&byte);
    let is_route = path.starts_with('/')
        && path.bytes().all(is_plain)
        && !path.split('/').any(|segment| segment.starts_with([':', '*']));
    if is_route {
        Ok(())
    } else {
        Err(Error::config(format!(
            "{setting} is {path:?}: it must be a plain path, such as /hurdlr/callback"
        )))
    }
}

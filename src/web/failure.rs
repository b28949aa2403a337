//! `LoginFailure`: a login that was not completed, and the page that says so.

use std::fmt;

use axum::response::{Html, IntoResponse, Response};
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};
use url::form_urlencoded;

#[cfg(feature = "testing")]
use super::config::CONNECT_PATH;
use super::return_path::ReturnPath;
use crate::error::{CallbackProblem, Error, ErrorKind};
use crate::wire::user::UserId;

/// Styles only: the pages work without script, and nobody frames them.
pub(super) const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// Why a login was not begun or completed, or a user not disconnected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FailureReason {
    /// A login that no page of the app asked for: the link was on another site, or in a mail, or
    /// was typed. The page of the [`LoginFailure`] asks the person, and its button begins the
    /// login. A page of the app's own in its place must not be framed by others, and no
    /// `form-action` of its `Content-Security-Policy` may stop at the app: browsers apply it to the
    /// redirect that follows, too.
    Unconfirmed,
    /// This browser has no login that the callback belongs to: it was begun in another, or is over,
    /// or was completed before, or the callback is forged. Or it was begun under another host than
    /// that of the redirect URI, such as `localhost` instead of `127.0.0.1`, or without `www.`:
    /// cookies are a host's own.
    NotBegunHere,
    /// Another user of the app began this login.
    OtherUser,
    /// The login's state was redeemed before, here or by another replica: the callback was loaded
    /// twice.
    AlreadyUsed,
    /// The callback is longer than any that a provider sends.
    TooLong,
    /// A disconnect that no page of the app asked for.
    CrossSite,
    /// All else: what is wrong with the callback ([`callback_problem`](Error::callback_problem)),
    /// such as the person's refusal; what became of the exchange; what the store said.
    Failed(Error),
}

impl FailureReason {
    pub(super) fn for_log(&self) -> String {
        match self {
            Self::Failed(error) => error.for_log().to_string(),
            other => other.to_string(),
        }
    }

    /// Whether those who run the site have to change something.
    pub(super) fn is_site_fault(&self) -> bool {
        let Self::Failed(error) = self else { return false };
        match error.kind() {
            ErrorKind::Config | ErrorKind::Unsupported => true,
            ErrorKind::InvalidCallback
            | ErrorKind::InvalidResponse
            | ErrorKind::Rejected
            | ErrorKind::Unavailable => {
                // RFC 6749 section 5.2 has 401 for the client's credentials, whatever the code
                // says, and whether or not there is one.
                error.status().is_some_and(|status| status == 401 || status == 403)
                    || error.code().is_some_and(|code| SITE_FAULTS.contains(&code))
            }
            _ => false,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Unconfirmed => StatusCode::OK,
            Self::OtherUser | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::TooLong => StatusCode::URI_TOO_LONG,
            Self::Failed(error) => match error.kind() {
                ErrorKind::InvalidCallback => StatusCode::BAD_REQUEST,
                ErrorKind::Config => StatusCode::INTERNAL_SERVER_ERROR,
                ErrorKind::Rejected | ErrorKind::InvalidResponse => StatusCode::BAD_GATEWAY,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::NotBegunHere | Self::AlreadyUsed => StatusCode::BAD_REQUEST,
        }
    }
}

/// Codes of RFC 6749 sections 4.1.2.1 and 5.2 by which the provider refuses the client, and not the
/// person.
const SITE_FAULTS: [&str; 6] = [
    "invalid_client",
    "invalid_request",
    "invalid_scope",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_response_type",
];

impl From<Error> for FailureReason {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unconfirmed => f.write_str("no page of the app asked for this login"),
            Self::NotBegunHere => {
                f.write_str("this browser has begun no such login under the redirect URI's host")
            }
            Self::OtherUser => f.write_str("another user began this login"),
            Self::AlreadyUsed => f.write_str("this login was used before"),
            Self::TooLong => f.write_str("the callback is too long"),
            Self::CrossSite => f.write_str("the request is not from a page of the app"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// A login that was not completed, as the app is told of it. As a response it is a small page that
/// says so.
#[derive(Debug)]
pub struct LoginFailure {
    reason: FailureReason,
    user: Option<UserId>,
    is_connected: bool,
    return_to: ReturnPath,
    try_again: String,
}

impl LoginFailure {
    pub(super) fn new(
        reason: FailureReason,
        user: Option<UserId>,
        is_connected: bool,
        return_to: ReturnPath,
        try_again: String,
    ) -> Self {
        Self { reason, user, is_connected, return_to, try_again }
    }

    /// A failure for tests of [`on_failure`](super::LoginConfig::on_failure), of an app with
    /// default paths.
    ///
    /// ```
    /// use axum::response::IntoResponse;
    /// use hurdlr_oauth2::web::{FailureReason, LoginFailure};
    /// use hurdlr_oauth2::{CallbackProblem, UserId};
    ///
    /// let late = FailureReason::Failed(CallbackProblem::Expired.into());
    /// let failure = LoginFailure::for_tests(late, Some(UserId::new("ann")?), false);
    /// assert_eq!(failure.try_again(), "/hurdlr/connect?return_to=%2F");
    /// assert_eq!(failure.into_response().status(), 400);
    /// # Ok::<(), hurdlr_oauth2::Error>(())
    /// ```
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn for_tests(reason: FailureReason, user: Option<UserId>, is_connected: bool) -> Self {
        let return_to = ReturnPath::trusted("/");
        let try_again = connect_link(CONNECT_PATH, &return_to);
        Self::new(reason, user, is_connected, return_to, try_again)
    }

    /// The reason of the failure.
    #[must_use]
    pub fn reason(&self) -> &FailureReason {
        &self.reason
    }

    /// The user of the request; `None` where nobody was asked who that is.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// Whether the user has a living token all the same, by an earlier login or by this one: a
    /// callback that is loaded again fails, and the person is where they wanted to be.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// The destination of the login: a path of the app, as the browser sees it.
    #[must_use]
    pub fn return_to(&self) -> &str {
        self.return_to.as_str()
    }

    /// The link of a new login with that destination: a path of the app, as the browser sees it.
    /// For a link or a form on a page of the app.
    #[must_use]
    pub fn try_again(&self) -> &str {
        &self.try_again
    }

    /// Whether nothing is left to do: the person is connected, and the callback belongs to no
    /// pending login.
    fn is_done(&self) -> bool {
        use FailureReason::{AlreadyUsed, NotBegunHere};
        self.is_connected && matches!(self.reason, AlreadyUsed | NotBegunHere)
    }

    /// A heading and a sentence for the person.
    fn title_and_message(&self) -> (&'static str, &'static str) {
        use FailureReason::{
            AlreadyUsed, CrossSite, Failed, NotBegunHere, OtherUser, TooLong, Unconfirmed,
        };
        const STALE: (&str, &str) = (
            "This login is no longer valid",
            "It took more than 10 minutes, was begun in another browser, or was completed before.",
        );
        const FOREIGN: (&str, &str) =
            ("This login is no longer valid", "This site has changed since it began.");
        const CONNECTED: &str = "You are connected to Hurdlr";
        const NOT_CONNECTED: &str = "Hurdlr was not connected";
        match &self.reason {
            Unconfirmed => (
                "Connect Hurdlr?",
                "You came here from outside of this site. Continue only if you want to connect \
                 your account here to your account at Hurdlr.",
            ),
            AlreadyUsed if self.is_done() => (CONNECTED, "This login was used before."),
            // The callback may be forged as well as loaded again.
            NotBegunHere if self.is_done() => {
                (CONNECTED, "This page belongs to no login under way. Nothing was changed.")
            }
            NotBegunHere | TooLong => STALE,
            AlreadyUsed => (
                "This login was used before",
                "If you have just allowed access, you may be connected in a moment.",
            ),
            OtherUser => (
                "This login is someone else’s",
                "It was begun under another account of this site. Nothing was changed.",
            ),
            CrossSite => {
                ("Nothing was changed", "The request did not come from a page of this site.")
            }
            reason if reason.is_site_fault() => {
                (NOT_CONNECTED, "This site is not set up for it. Please tell those who run it.")
            }
            Failed(error) => match (error.kind(), error.callback_problem(), error.code()) {
                (_, Some(CallbackProblem::Refused), Some("access_denied")) => {
                    (NOT_CONNECTED, "You did not allow access.")
                }
                (
                    _,
                    Some(CallbackProblem::Refused),
                    Some("server_error" | "temporarily_unavailable"),
                ) => (NOT_CONNECTED, UNAVAILABLE),
                (_, Some(CallbackProblem::Refused), _) | (ErrorKind::Rejected, ..) => {
                    (NOT_CONNECTED, "Hurdlr refused the login.")
                }
                (_, Some(CallbackProblem::OtherSettings), _) => FOREIGN,
                (ErrorKind::InvalidCallback, ..) => STALE,
                _ => (NOT_CONNECTED, UNAVAILABLE),
            },
        }
    }

    /// The links of the page, or its button.
    fn actions(&self) -> String {
        let (back, again) = (escape(self.return_to()), escape(self.try_again()));
        if matches!(self.reason, FailureReason::Unconfirmed) {
            // A post, since browsers that say nothing else of its source send its `Origin`.
            format!(
                "<form method=\"post\" action=\"{again}\">\
                 <button class=\"act\">Connect Hurdlr</button></form>\n\
                 <a href=\"{back}\">Back to the site</a>"
            )
        } else if self.is_done() || matches!(self.reason, FailureReason::CrossSite) {
            format!("<a class=\"act\" href=\"{back}\">Continue</a>")
        } else {
            format!(
                "<a class=\"act\" href=\"{again}\">Try again</a>\n\
                 <a href=\"{back}\">Back to the site</a>"
            )
        }
    }
}

const UNAVAILABLE: &str = "Something on the way did not answer. Please try again in a few minutes.";

impl IntoResponse for LoginFailure {
    fn into_response(self) -> Response {
        let status = if self.is_done() { StatusCode::OK } else { self.reason.status() };
        let (title, message) = self.title_and_message();
        let detail = match &self.reason {
            FailureReason::Failed(error) if !self.reason.is_site_fault() => {
                provider_error_html(error)
            }
            _ => String::new(),
        };
        page(status, title, message, &(detail + &self.actions()))
    }
}

const PAGE: &str = include_str!("failure.html");

/// A page with a heading and a sentence. `rest` is HTML, such as links.
pub(super) fn page(status: StatusCode, title: &str, message: &str, rest: &str) -> Response {
    let head = format!("<title>{title}</title>");
    let main = format!("<h1>{title}</h1>\n<p>{message}</p>\n{rest}");
    // Split rather than replace, so inserted text cannot contain placeholders.
    let (start, tail) = PAGE.split_once("{head}").unwrap_or((PAGE, ""));
    let (body, foot) = tail.split_once("{main}").unwrap_or((tail, ""));
    let policy = HeaderValue::from_static(PAGE_POLICY);
    let page = Html([start, &head, body, &main, foot].concat());
    (status, [(CONTENT_SECURITY_POLICY, policy)], page).into_response()
}

/// The link of a login with that destination. `connect` is the path of a new login, as the browser
/// sees it.
pub(super) fn connect_link(connect: &str, return_to: &ReturnPath) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("return_to", return_to.as_str())
        .finish();
    format!("{connect}?{query}")
}

/// The provider's own words, except that the person refused, which they know.
fn provider_error_html(error: &Error) -> String {
    match (error.code(), error.description()) {
        (Some("access_denied"), None) | (None, _) => String::new(),
        (Some(code), None) => {
            format!("<p>Hurdlr’s answer: <q>{}</q></p>\n", escape(code))
        }
        (Some(code), Some(description)) => {
            format!("<p>Hurdlr’s answer: <q>{}</q> ({})</p>\n", escape(description), escape(code))
        }
    }
}

/// For HTML text and for quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use FailureReason::{
        AlreadyUsed, CrossSite, Failed, NotBegunHere, OtherUser, TooLong, Unconfirmed,
    };

    use super::*;

    #[tokio::test]
    async fn every_reason_has_its_page() {
        let failed = |kind| Failed(Error::new(kind, "it failed"));
        for (status, reason, is_connected, heading, action) in [
            (200, Unconfirmed, false, "Connect Hurdlr?", "Connect Hurdlr</button>"),
            (200, AlreadyUsed, true, "You are connected", "Continue"),
            (400, AlreadyUsed, false, "This login was used before", "Try again"),
            (200, NotBegunHere, true, "You are connected", "Continue"),
            (400, NotBegunHere, false, "no longer valid", "Try again"),
            (414, TooLong, true, "no longer valid", "Try again"),
            (403, OtherUser, true, "someone else", "Try again"),
            (403, CrossSite, false, "Nothing was changed", "Continue"),
            (400, failed(ErrorKind::InvalidCallback), false, "no longer valid", "Try again"),
            (502, failed(ErrorKind::Rejected), false, "Hurdlr refused the login", "Try again"),
            (500, failed(ErrorKind::Config), false, "This site is not set up", "Try again"),
            (503, failed(ErrorKind::Store), false, "Something on the way", "Try again"),
        ] {
            let case = format!("{reason:?}, connected: {is_connected}");
            let response = LoginFailure::for_tests(reason, None, is_connected).into_response();
            assert_eq!(response.status().as_u16(), status, "{case}");
            let body = axum::body::to_bytes(response.into_body(), 100_000).await.unwrap();
            let page = String::from_utf8(body.into()).unwrap();
            let main = page.split_once("<main>").unwrap().1;
            assert!(main.contains(heading) && main.contains(action), "{case}: {main}");
            assert_eq!(main.contains("You are connected"), heading.starts_with("You"), "{case}");
        }
    }
}

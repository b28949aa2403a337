//! A login that was not completed, and what the person is shown.

use std::fmt;

use axum::response::{Html, IntoResponse, Response};
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};
use url::form_urlencoded;

use super::return_target::ReturnTarget;
use crate::error::{CallbackProblem, Error, ErrorKind};
use crate::user::UserId;

/// Styles only: our pages work without script, and nobody frames them.
pub(super) const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// Why a login was not completed, or a user not disconnected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FailureReason {
    /// This browser has no login that the callback belongs to: it was begun in another, or is over,
    /// or was completed before, or the callback is forged.
    NotBegunHere,
    /// Another user of the app began this login.
    OtherUser,
    /// The login was begun with other settings: another API version, environment, client id, issuer
    /// or redirect URI.
    OtherSettings,
    /// The login's state was redeemed before, here or by another replica: the callback was loaded
    /// twice.
    AlreadyUsed,
    /// The callback is longer than any that a provider sends.
    TooLong,
    /// A disconnect that no page of the app asked for.
    CrossSite,
    /// All else: what is wrong with the callback
    /// ([`callback_problem`](Error::callback_problem)), such as the person's refusal; what became of
    /// the exchange; what the store said.
    Failed(Error),
}

impl FailureReason {
    pub(super) fn for_log(&self) -> String {
        match self {
            Self::Failed(error) => error.for_log().to_string(),
            other => other.to_string(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::OtherUser | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::TooLong => StatusCode::URI_TOO_LONG,
            Self::Failed(error) => match error.kind() {
                ErrorKind::InvalidCallback => StatusCode::BAD_REQUEST,
                ErrorKind::Config => StatusCode::INTERNAL_SERVER_ERROR,
                ErrorKind::Rejected | ErrorKind::InvalidResponse => StatusCode::BAD_GATEWAY,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<Error> for FailureReason {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBegunHere => f.write_str("this browser has begun no such login"),
            Self::OtherUser => f.write_str("another user began this login"),
            Self::OtherSettings => f.write_str("this login was begun with other settings"),
            Self::AlreadyUsed => f.write_str("this login was used before"),
            Self::TooLong => f.write_str("the callback is too long"),
            Self::CrossSite => f.write_str("the request is not from a page of the app"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// What an app is told of a login that was not completed. As a response it is a small page that
/// says so.
#[derive(Debug)]
pub struct LoginFailure {
    reason: FailureReason,
    user: Option<UserId>,
    is_connected: bool,
    return_to: ReturnTarget,
    try_again: String,
}

impl LoginFailure {
    pub(super) fn new(
        reason: FailureReason,
        user: Option<UserId>,
        is_connected: bool,
        return_to: ReturnTarget,
        connect_path: &str,
    ) -> Self {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("return_to", return_to.as_str())
            .finish();
        let try_again = format!("{connect_path}?{query}");
        Self { reason, user, is_connected, return_to, try_again }
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &FailureReason {
        &self.reason
    }

    /// Whose request it was; none where that was not asked.
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

    /// Where the login would have led: a path of the app.
    #[must_use]
    pub fn return_to(&self) -> &str {
        self.return_to.as_str()
    }

    /// Where a new login begins that leads there: a path of the app.
    #[must_use]
    pub fn try_again(&self) -> &str {
        &self.try_again
    }

    /// Whether nothing is left to do, since a callback that was completed before is all there is.
    fn is_done(&self) -> bool {
        use FailureReason::{AlreadyUsed, NotBegunHere};
        self.is_connected && matches!(self.reason, AlreadyUsed | NotBegunHere)
    }

    /// What happened, in a few words and a sentence for the person.
    fn told(&self) -> (&'static str, &'static str) {
        use FailureReason::{
            AlreadyUsed, CrossSite, Failed, NotBegunHere, OtherSettings, OtherUser, TooLong,
        };
        const STALE: (&str, &str) = (
            "This login is no longer valid",
            "It took more than 10 minutes, was begun in another browser, or was completed before.",
        );
        match &self.reason {
            NotBegunHere | AlreadyUsed if self.is_done() => {
                ("You are connected to Hurdlr", "This login was completed before.")
            }
            NotBegunHere | OtherSettings | TooLong => STALE,
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
            Failed(error) => match (error.kind(), error.callback_problem()) {
                (_, Some(CallbackProblem::Refused)) if error.code() == Some("access_denied") => {
                    ("Hurdlr was not connected", "You did not allow access.")
                }
                (_, Some(CallbackProblem::Refused)) | (ErrorKind::Rejected, _) => {
                    ("Hurdlr was not connected", "Hurdlr refused the login.")
                }
                (ErrorKind::InvalidCallback, _) => STALE,
                (ErrorKind::Config, _) => (
                    "Hurdlr was not connected",
                    "This site is not set up for it. Please tell those who run it.",
                ),
                _ => (
                    "Hurdlr was not connected",
                    "Something on the way did not answer. Please try again in a few minutes.",
                ),
            },
        }
    }
}

impl IntoResponse for LoginFailure {
    fn into_response(self) -> Response {
        let status = if self.is_done() { StatusCode::OK } else { self.reason.status() };
        let (title, what) = self.told();
        let said = match &self.reason {
            FailureReason::Failed(error) => provider_words(error),
            _ => String::new(),
        };
        let back = escape(self.return_to());
        let links = if self.is_done() || matches!(self.reason, FailureReason::CrossSite) {
            format!("<a class=\"act\" href=\"{back}\">Continue</a>")
        } else {
            let again = escape(self.try_again());
            format!(
                "<a class=\"act\" href=\"{again}\">Try again</a>\n\
                 <a href=\"{back}\">Back to the site</a>"
            )
        };
        let main = format!("<h1>{title}</h1>\n<p>{what}</p>\n{said}{links}");
        // What is put in is not looked through for a place to put more.
        let (head, rest) = PAGE.split_once("{title}").unwrap_or((PAGE, ""));
        let (body, foot) = rest.split_once("{main}").unwrap_or((rest, ""));
        let policy = HeaderValue::from_static(PAGE_POLICY);
        let page = Html([head, title, body, &main, foot].concat());
        (status, [(CONTENT_SECURITY_POLICY, policy)], page).into_response()
    }
}

const PAGE: &str = include_str!("failure.html");

/// What the provider said, beside that the person refused, which they know.
fn provider_words(error: &Error) -> String {
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
fn escape(text: &str) -> String {
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

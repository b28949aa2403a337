//! The one error type.

mod callback;
pub use callback::CallbackProblem;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use secrecy::SecretString;

/// The kind of an [`Error`]: what a caller can do about it.
///
/// # In an HTTP handler
///
/// A handler that calls the API for its user can answer like this. [`Error::of`] finds this
/// crate's error in that of a call; where there is none, the API could not be reached, which is a
/// 503 too.
///
/// ```
/// use hurdlr_oauth2::http::StatusCode;
/// use hurdlr_oauth2::{Error, ErrorKind};
///
/// fn status(error: &Error) -> StatusCode {
///     match error.kind() {
///         // A page sends the browser to connect. An API of yours answers 403 with a code that its
///         // callers know: 401 would say that your own session is over.
///         ErrorKind::LoginRequired | ErrorKind::RotationLost => StatusCode::FORBIDDEN,
///         // With a `Retry-After` of `error.retry_after()`. Not 429: it is not the caller who asks
///         // too often.
///         ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::Store => {
///             StatusCode::SERVICE_UNAVAILABLE
///         }
///         ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
///         // Nothing that the caller does helps: an operator has to look.
///         ErrorKind::Rejected | ErrorKind::InvalidResponse => StatusCode::BAD_GATEWAY,
///         ErrorKind::InvalidCallback => StatusCode::BAD_REQUEST,
///         // `Config`, `Unsupported`, and kinds that may be added: a mistake of the app.
///         _ => StatusCode::INTERNAL_SERVER_ERROR,
///     }
/// }
/// # use hurdlr_oauth2::CallbackProblem;
/// # assert_eq!(status(&CallbackProblem::Expired.into()), StatusCode::BAD_REQUEST);
/// # assert_eq!(status(&Error::store("down")), StatusCode::SERVICE_UNAVAILABLE);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The person's login is over: the refresh token is dead, or there never was one. Send them
    /// through the login again; nothing else helps.
    LoginRequired,
    /// As [`LoginRequired`](Self::LoginRequired), and an answer that went missing is the likely
    /// cause: the provider had replaced the refresh token and the new one never arrived.
    RotationLost,
    /// The provider asked for a pause (429). See [`Error::retry_after`].
    RateLimited,
    /// The provider could not be reached, did not answer in time, or answered with a server error.
    /// Try again later.
    Unavailable,
    /// The time the caller was ready to wait has passed. The work itself goes on.
    TimedOut,
    /// The provider understood the request and refused it. See [`Error::code`]: credentials or
    /// arguments have to change before another try.
    Rejected,
    /// The provider, or something on the way to it, sent what is not a token answer.
    /// A refresh token that could be read all the same is in [`Error::rescued_refresh_token`].
    InvalidResponse,
    /// The callback of a login must not be accepted. See [`Error::callback_problem`].
    InvalidCallback,
    /// The API version in use does not have this operation.
    Unsupported,
    /// A setting or an argument cannot be used. The message names it and says what would be right.
    Config,
    /// The token store failed.
    Store,
}

impl ErrorKind {
    /// The kind in snake case, such as `login_required`: for the labels of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LoginRequired => "login_required",
            Self::RotationLost => "rotation_lost",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::InvalidResponse => "invalid_response",
            Self::InvalidCallback => "invalid_callback",
            Self::Unsupported => "unsupported",
            Self::Config => "config",
            Self::Store => "store",
        }
    }
}

/// Why something failed: one type for all of the crate, as small as a pointer.
///
/// Act on [`kind`](Self::kind). The message and the [source](StdError::source) chain are for
/// people; neither ever holds a secret, a response body or a URL's query. Cloning is cheap, since
/// many callers may be waiting for the same refresh.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    status: Option<StatusCode>,
    attempts: u32,
    unanswered: bool,
    /// The refresh token may be dead, and the client's credentials may be wrong.
    doubtful: bool,
    /// The same call must not be made again.
    is_final: bool,
    retry_after: Option<Duration>,
    code: Option<Box<str>>,
    description: Option<Box<str>>,
    callback: Option<CallbackProblem>,
    rescued: Option<SecretString>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            status: None,
            attempts: 0,
            unanswered: false,
            doubtful: false,
            is_final: false,
            retry_after: None,
            code: None,
            description: None,
            callback: None,
            rescued: None,
            source: None,
        }))
    }

    pub(crate) fn config(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// A failure of a token store, for implementations of
    /// [`TokenStore`](crate::store::TokenStore). Neither text nor source may hold a secret.
    pub fn store(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Store, message)
    }

    /// Adds the cause of a failure, for implementations of
    /// [`TokenStore`](crate::store::TokenStore).
    #[must_use]
    pub fn caused_by(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.with(|inner| inner.source = Some(Box::new(source)))
    }

    /// Says that the same call will fail again, for implementations of
    /// [`TokenStore`](crate::store::TokenStore): a row is damaged, and the store is not down.
    /// Where a manager asked for many rows at once, it then looks which of them it is.
    ///
    /// ```
    /// use hurdlr_oauth2::Error;
    ///
    /// assert!(Error::store("the store does not answer").is_temporary());
    /// assert!(!Error::store("a row has no revision").not_temporary().is_temporary());
    /// ```
    #[must_use]
    pub fn not_temporary(self) -> Self {
        self.with(|inner| inner.is_final = true)
    }

    pub(crate) fn callback(problem: CallbackProblem) -> Self {
        Self::new(ErrorKind::InvalidCallback, problem.as_str())
            .with(|inner| inner.callback = Some(problem))
    }

    pub(crate) fn with_kind(self, kind: ErrorKind) -> Self {
        self.with(|inner| inner.kind = kind)
    }

    /// The same failure under another kind: for one that is shared already.
    pub(crate) fn with_kind_cloned(&self, kind: ErrorKind) -> Self {
        let inner = &*self.0;
        Self(Arc::new(Inner {
            kind,
            message: inner.message.clone(),
            code: inner.code.clone(),
            description: inner.description.clone(),
            rescued: None,
            source: None,
            ..*inner
        }))
    }

    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        self.with(|inner| inner.status = Some(status))
    }

    pub(crate) fn with_attempts(self, attempts: u32, unanswered: bool) -> Self {
        self.with(|inner| {
            inner.attempts = attempts;
            inner.unanswered = unanswered;
        })
    }

    pub(crate) fn with_retry_after(self, pause: Option<Duration>) -> Self {
        self.with(|inner| inner.retry_after = pause)
    }

    pub(crate) fn with_answer(self, code: &str, description: Option<&str>) -> Self {
        self.with(|inner| {
            inner.code = Some(code.into());
            inner.description = description.map(Into::into);
        })
    }

    /// Marks a refusal that may be about the refresh token or about the client.
    pub(crate) fn doubtful(self) -> Self {
        self.with(|inner| inner.doubtful = true)
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.0.doubtful
    }

    pub(crate) fn with_rescued(self, refresh_token: SecretString) -> Self {
        self.with(|inner| inner.rescued = Some(refresh_token))
    }

    /// Completes an error that has just been made; one that is shared already is left as it is.
    fn with(mut self, complete: impl FnOnce(&mut Inner)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            complete(inner);
        }
        self
    }

    pub(crate) fn for_log(&self) -> ForLog<'_> {
        ForLog(self)
    }

    /// Finds this crate's error in another one: in the error itself, or in its
    /// [source](StdError::source) chain.
    ///
    /// It takes the error of a call by `TokenMiddleware`, whose source chain leaves this one out,
    /// and that of a call by `TokenLayer`, as `Error::of(&*boxed)`. `None` says that the call
    /// failed on its way, and not for lack of a token.
    ///
    /// ```
    /// use hurdlr_oauth2::{Error, ErrorKind};
    ///
    /// let boxed: Box<dyn std::error::Error + Send + Sync> = Error::store("down").into();
    /// assert_eq!(Error::of(&*boxed).map(Error::kind), Some(ErrorKind::Store));
    /// ```
    #[must_use]
    pub fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
            // Its source is the cause of what it holds, and not what it holds.
            #[cfg(feature = "middleware")]
            if let Some(reqwest_middleware::Error::Middleware(held)) = error.downcast_ref() {
                next = Some(held.as_ref());
            }
        }
        None
    }

    /// The kind of failure, and so what to do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the person has to log in again, however that came about.
    #[must_use]
    pub fn needs_login(&self) -> bool {
        matches!(self.0.kind, ErrorKind::LoginRequired | ErrorKind::RotationLost)
    }

    /// Whether the same call can succeed later with nothing changed. Never so for a login whose
    /// code may be spent: it has to be begun again.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        use ErrorKind::{RateLimited, Store, TimedOut, Unavailable};
        !self.0.is_final && matches!(self.0.kind, RateLimited | Unavailable | TimedOut | Store)
    }

    /// The HTTP status of the last answer, where one came.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.0.status
    }

    /// How often the request was sent. Zero where nothing was.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// The pause the provider asked for (`Retry-After`).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The provider's error code: `invalid_grant` and its kin (RFC 6749 section 5.2), or a `type`
    /// of its own such as `EXPIRED_TOKEN`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The provider's description, bounded in length, without control characters. It is somebody
    /// else's text: escape it before it becomes part of a page.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// The fault of a login's callback.
    #[must_use]
    pub fn callback_problem(&self) -> Option<CallbackProblem> {
        self.0.callback
    }

    /// The refresh token of an answer that was defective beside it.
    ///
    /// The old refresh token may be dead already, so keep this one before anything else.
    #[must_use]
    pub fn rescued_refresh_token(&self) -> Option<&SecretString> {
        self.0.rescued.as_ref()
    }

    /// Whether a request may have taken effect although its answer never came: a refresh token
    /// that was sent may have been replaced.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.0.unanswered
    }
}

/// The codes that the provider's reference and the RFCs name. Any other is the provider's own text.
const KNOWN_CODES: [&str; 24] = [
    // RFC 6749 sections 4.1.2.1 and 5.2.
    "access_denied",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_response_type",
    // RFC 6750 section 3.1, RFC 7009 section 2.2.1 and RFC 8628 section 3.5.
    "insufficient_scope",
    "invalid_token",
    "slow_down",
    "unsupported_token_type",
    // Those of the reference.
    "BAD_REQUEST",
    "DUPLICATE",
    "EXPIRED_TOKEN",
    "INVALID_FORMAT",
    "INVALID_TOKEN",
    "INVALID_VALUE",
    "JSON_ERROR",
    "NOT_MODIFIABLE",
    "REQUIRED",
    "UNKNOWN_ERROR",
];

/// A failure without the provider's words, which can name a user.
pub(crate) struct ForLog<'a>(&'a Error);

impl fmt::Display for ForLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0.0;
        f.write_str(&inner.message)?;
        if let Some(code) = inner.code.as_deref().filter(|code| KNOWN_CODES.contains(code)) {
            write!(f, ": {code}")?;
        }
        if let Some(status) = inner.status {
            write!(f, ", status {}", status.as_u16())?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.write_str(&inner.message)?;
        if let Some(code) = &inner.code {
            write!(f, ": {code}")?;
        }
        if let Some(description) = &inner.description {
            write!(f, " ({description})")?;
        }
        if let Some(status) = inner.status {
            write!(f, ", status {}", status.as_u16())?;
        }
        if let Some(pause) = inner.retry_after {
            write!(f, ", retry after {} s", pause.as_secs())?;
        }
        if inner.attempts > 1 {
            write!(f, ", after {} attempts", inner.attempts)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut out = f.debug_struct("Error");
        out.field("kind", &inner.kind).field("message", &inner.message);
        if let Some(status) = inner.status {
            out.field("status", &status.as_u16());
        }
        out.field("attempts", &inner.attempts).field("unanswered", &inner.unanswered);
        if let Some(pause) = inner.retry_after {
            out.field("retry_after", &pause);
        }
        if let Some(code) = &inner.code {
            out.field("code", code);
        }
        if let Some(description) = &inner.description {
            out.field("description", description);
        }
        if let Some(rescued) = &inner.rescued {
            out.field("rescued_refresh_token", rescued);
        }
        if let Some(source) = &inner.source {
            out.field("source", source);
        }
        out.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_as_small_as_a_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }

    #[test]
    fn repeated_attempts_are_told() {
        for (attempts, is_told) in [(0, false), (1, false), (2, true), (3, true)] {
            let error = Error::new(ErrorKind::Unavailable, "down").with_attempts(attempts, false);
            let told = format!(", after {attempts} attempts");
            assert_eq!(error.to_string().contains(&told), is_told, "{error}");
        }
    }

    #[test]
    fn log_has_known_codes_only() {
        for (code, is_known) in [("invalid_grant", true), ("ann@example.com is unknown", false)] {
            let error = Error::new(ErrorKind::Rejected, "refused").with_answer(code, Some("words"));
            let logged = error.for_log().to_string();
            assert_eq!((logged.contains(code), logged.contains("words")), (is_known, false));
        }
    }

    #[test]
    fn a_rescued_refresh_token_is_not_shown() {
        let error = Error::new(ErrorKind::InvalidResponse, "defective")
            .with_rescued(SecretString::from("hidden-marker"));
        assert!(!format!("{error:?} {error}").contains("hidden-marker"));
    }
}

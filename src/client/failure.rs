//! Failed requests: what an answer, or its absence, means for another attempt and for the caller.

use http::StatusCode;
use oauth2::basic::BasicErrorResponseType;
use secrecy::SecretString;

use crate::client::retry::{Attempts, FailureClass, RequestType};
use crate::client::transport::{Answer, Defect, HttpError};
use crate::clock::{SharedClock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::wire::error_response::BasicErrorResponse;

/// The circumstances of an answer: its request, and when it was sent and answered.
pub(crate) struct Receipt<'a> {
    pub(super) request: RequestType,
    /// Whether the request had an `Authorization: Bearer` header.
    pub(super) carried_bearer: bool,
    /// Values that no error text may repeat.
    pub(super) secrets: &'a [&'a str],
    pub(super) sent_at: Timestamp,
    pub(super) now: Timestamp,
    pub(super) clock: &'a SharedClock,
}

/// Why an attempt gave no token, and what that means for another one.
pub(crate) struct Failure {
    pub(super) class: FailureClass,
    pub(super) error: Error,
}

impl Failure {
    fn new(class: FailureClass, error: Error) -> Self {
        Self { class, error }
    }

    pub(super) fn out_of_time() -> Self {
        let message = "the time for this request was over before it was sent";
        Self::new(FailureClass::NotSent, Error::new(ErrorKind::Unavailable, message))
    }

    /// Whether the Bearer header was refused as a second proof of who the client is (RFC 6749
    /// section 5.2), and not for the access token in it.
    pub(super) fn is_second_proof(&self) -> bool {
        self.class == FailureClass::RetryWithoutBearer
            && self.error.status() == Some(StatusCode::BAD_REQUEST)
            && self.error.code() == Some("invalid_request")
    }

    pub(super) fn into_error(self, attempts: &Attempts<'_>) -> Error {
        let unanswered = attempts.unanswered();
        let error = self.error.with_attempts(attempts.sent(), unanswered);
        match attempts.request_type() {
            // Dead, and an answer went missing just before: that answer held the living one.
            RequestType::RefreshToken if unanswered && error.kind() == ErrorKind::LoginRequired => {
                error.with_kind(ErrorKind::RotationLost)
            }
            // The code may be spent, and must not come twice (RFC 6749 section 4.1.2).
            RequestType::AuthorizationCode if unanswered => error.not_temporary(),
            _ => error,
        }
    }
}

pub(super) fn unsent(error: HttpError) -> Failure {
    let (class, message) = match &error {
        HttpError::NotSent(_) => (FailureClass::NotSent, "the provider cannot be reached"),
        #[cfg(feature = "testing")]
        HttpError::Other(source) if never_left(&**source) => {
            (FailureClass::NotSent, "the provider cannot be reached")
        }
        _ => (FailureClass::Unanswered, "the provider did not answer"),
    };
    Failure::new(class, Error::new(ErrorKind::Unavailable, message).caused_by(error))
}

/// Whether a client that is not ours says that nothing left.
#[cfg(feature = "testing")]
fn never_left(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let refused = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused);
        refused || matches!(error.downcast_ref(), Some(HttpError::NotSent(_)))
    })
}

/// A failure that holds a refresh token all the same.
pub(super) fn rescued(
    refresh_token: SecretString,
    defect: Defect,
    refusal: Option<&BasicErrorResponse>,
    answer: Answer,
    receipt: &Receipt<'_>,
) -> Failure {
    let message = "the provider's answer is defective beside a refresh token";
    let mut error = Error::new(ErrorKind::InvalidResponse, message)
        .with_status(answer.status)
        .with_retry_after(answer.retry_after(receipt.now.wall()))
        .with_rescued(refresh_token);
    if let Some(refusal) = refusal {
        let description = refusal.error_description().map(String::as_str);
        error = error.with_answer(refusal.code(), description);
    }
    let class = if receipt.request.is_repeatable() {
        FailureClass::Unanswered
    } else {
        FailureClass::Final
    };
    let error = match answer.cut {
        Some(cut) => error.caused_by(cut),
        None => defect.explain(error),
    };
    Failure::new(class, error)
}

/// A failure the provider explained.
pub(super) fn refused(
    refusal: &BasicErrorResponse,
    answer: &Answer,
    receipt: &Receipt<'_>,
) -> Failure {
    let code = refusal.code();
    let describe = |error: Error| {
        error
            .with_status(answer.status)
            .with_retry_after(answer.retry_after(receipt.now.wall()))
            .with_answer(code, refusal.error_description().map(String::as_str))
    };
    if let Some(failure) = by_status(answer, true, receipt) {
        return Failure::new(failure.class, describe(failure.error));
    }
    let names_a_token = names_a_token(code);
    let is_unauthorized = answer.status == StatusCode::UNAUTHORIZED;
    let is_doubtful = names_a_token && is_unauthorized && !receipt.carried_bearer;
    let is_dead = if names_a_token {
        !is_unauthorized && !receipt.carried_bearer
    } else {
        refusal.needs_login()
    };
    let (class, error) = if receipt.request != RequestType::RefreshToken {
        (FailureClass::Final, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    } else if is_dead {
        (FailureClass::Final, Error::new(ErrorKind::LoginRequired, "the refresh token is dead"))
    } else if is_doubtful {
        // The provider has no code for wrong client credentials, and gateways answer so while their
        // token service is down.
        let message = "the provider refused the refresh token, or the client: a 401 can mean both";
        (FailureClass::Final, Error::new(ErrorKind::Unavailable, message).doubtful())
    } else if receipt.carried_bearer
        && (names_a_token || is_unauthorized || has_two_proofs(answer.status, refusal))
    {
        let message = "the provider refused a refresh that carried a Bearer header";
        (FailureClass::RetryWithoutBearer, Error::new(ErrorKind::Rejected, message))
    } else {
        (FailureClass::Final, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    };
    Failure::new(class, describe(error))
}

/// Whether the refusal may be about two ways of proving oneself at once, as a Bearer header beside
/// the client's secret in the body can be taken for (RFC 6749 section 5.2).
fn has_two_proofs(status: StatusCode, refusal: &BasicErrorResponse) -> bool {
    status == StatusCode::BAD_REQUEST
        && matches!(refusal.error(), BasicErrorResponseType::InvalidRequest)
}

/// A failure without an explanation that can be read: from something on the way, more often than
/// not. It never means that a refresh token is dead.
pub(super) fn unexplained(answer: Answer, receipt: &Receipt<'_>) -> Failure {
    let failure = by_status(&answer, false, receipt).unwrap_or_else(|| {
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED && receipt.carried_bearer {
            let message = "a refresh that carried a Bearer header was refused";
            Failure::new(
                FailureClass::RetryWithoutBearer,
                Error::new(ErrorKind::InvalidResponse, message),
            )
        } else if status.is_redirection() {
            let message = "the answer is a redirect, which is never followed";
            Failure::new(FailureClass::Final, Error::new(ErrorKind::InvalidResponse, message))
        } else {
            let message = "the request failed without an error that can be read";
            Failure::new(FailureClass::Final, Error::new(ErrorKind::InvalidResponse, message))
        }
    });
    let pause = answer.retry_after(receipt.now.wall());
    let error = failure.error.with_status(answer.status).with_retry_after(pause);
    Failure::new(failure.class, with_cut(error, answer.cut))
}

/// The failure that a status stands for, whatever the body says. A 429 or 503 is the provider's own
/// only where it explains itself or names a pause: a bare one may come from a proxy whose request
/// was acted on.
pub(super) fn by_status(
    answer: &Answer,
    is_explained: bool,
    receipt: &Receipt<'_>,
) -> Option<Failure> {
    let is_own = is_explained || answer.retry_after(receipt.now.wall()).is_some();
    let turned_away = if is_own { FailureClass::Throttled } else { FailureClass::Unanswered };
    let (class, kind, message) = match answer.status {
        StatusCode::TOO_MANY_REQUESTS => {
            (turned_away, ErrorKind::RateLimited, "the provider asks for a pause")
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            (turned_away, ErrorKind::Unavailable, "the provider is unavailable")
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY if !is_explained => (
            FailureClass::Unanswered,
            ErrorKind::Unavailable,
            "the provider did not wait for the request",
        ),
        status if status.is_server_error() => {
            (FailureClass::Unanswered, ErrorKind::Unavailable, "the provider failed")
        }
        _ => return None,
    };
    Some(Failure::new(class, Error::new(kind, message)))
}

/// A success that cannot be read: its answer is lost, and the request may have taken effect.
pub(super) fn unreadable_success(answer: Answer, defect: Defect) -> Failure {
    let message = "the provider's answer cannot be read";
    let error = Error::new(ErrorKind::InvalidResponse, message).with_status(answer.status);
    let error = match answer.cut {
        Some(cut) => error.caused_by(cut),
        None => defect.explain(error),
    };
    Failure::new(FailureClass::Unanswered, error)
}

fn with_cut(error: Error, cut: Option<HttpError>) -> Error {
    match cut {
        Some(cut) => error.caused_by(cut),
        None => error,
    }
}

/// Whether a code says that a token is dead: the provider's own, or that of RFC 6750, which servers
/// send for a refresh token too. They count in any letter case, as those of RFC 6749 do.
pub(super) fn names_a_token(code: &str) -> bool {
    ["EXPIRED_TOKEN", "INVALID_TOKEN"].iter().any(|name| name.eq_ignore_ascii_case(code))
}

//! One request to the provider: its fields, its way out, and the judgement of its answer.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use oauth2::basic::BasicErrorResponseType;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::clock::Timestamp;
use crate::endpoint::Scope;
use crate::error::{BasicErrorResponse, Error, ErrorKind};
use crate::retry::{Attempts, Cause, RequestType};
use crate::token::{BasicTokenResponse, Token, rescue_refresh_token};
use crate::transport::{Answer, Defect, Form, HttpClient, HttpError, Verdict};
use crate::user::UserId;

/// What is asked for, and what it is asked with.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    AuthorizationCode {
        code: &'a SecretString,
        verifier: &'a SecretString,
        redirect_uri: &'a str,
        scope: Option<Scope>,
    },
    /// Of the partner itself, where there is no user.
    ClientCredentials {
        user: Option<&'a UserId>,
        scope: Option<Scope>,
    },
    /// Without a scope: it stays what was granted (RFC 6749 section 6).
    RefreshToken {
        refresh_token: &'a SecretString,
        token: &'a Token,
        carries_bearer: bool,
    },
    Revocation {
        token: &'a SecretString,
        hint: &'static str,
    },
}

impl<'a> Request<'a> {
    pub(super) fn request_type(&self) -> RequestType {
        match self {
            Self::AuthorizationCode { .. } => RequestType::AuthorizationCode,
            Self::ClientCredentials { .. } => RequestType::ClientCredentials,
            Self::RefreshToken { .. } => RequestType::RefreshToken,
            Self::Revocation { .. } => RequestType::Revocation,
        }
    }

    /// For logs; of a grant, its `grant_type`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AuthorizationCode { .. } => "authorization_code",
            Self::ClientCredentials { .. } => "client_credentials",
            Self::RefreshToken { .. } => "refresh_token",
            Self::Revocation { .. } => "revocation",
        }
    }

    pub(super) fn user(&self) -> Option<&'a UserId> {
        match self {
            Self::ClientCredentials { user, .. } => *user,
            _ => None,
        }
    }

    pub(super) fn bearer(&self) -> Option<&'a Token> {
        match self {
            Self::RefreshToken { token, carries_bearer: true, .. } => Some(*token),
            _ => None,
        }
    }

    /// Whether a lost answer loses nothing. Client credentials need no refresh token (RFC 6749
    /// section 4.4.3): one in a broken answer is no reason not to ask again.
    fn is_repeatable(&self) -> bool {
        matches!(self, Self::ClientCredentials { .. })
    }

    /// Whether this is the refresh token that was sent.
    fn sent(&self, token: &SecretString) -> bool {
        match self {
            Self::RefreshToken { refresh_token, .. } => {
                refresh_token.expose_secret() == token.expose_secret()
            }
            _ => false,
        }
    }

    /// Leaves the Bearer header out from now on, if that is what was refused.
    pub(super) fn doubt_bearer(&mut self, cause: Cause) {
        if let (Cause::BearerDoubted, Self::RefreshToken { carries_bearer, .. }) = (cause, self) {
            *carries_bearer = false;
        }
    }

    /// What of its fields no error text may repeat: secrets, and who the user is.
    pub(super) fn secrets(&self) -> Vec<&'a str> {
        match self {
            Self::AuthorizationCode { code, verifier, .. } => {
                vec![code.expose_secret(), verifier.expose_secret()]
            }
            Self::ClientCredentials { user, .. } => user.iter().map(|user| user.as_str()).collect(),
            // The access token whether or not it goes along: an earlier attempt may have sent it.
            Self::RefreshToken { refresh_token, token, .. } => {
                vec![refresh_token.expose_secret(), token.access_token().expose_secret()]
            }
            Self::Revocation { token, .. } => vec![token.expose_secret()],
        }
    }

    /// Exactly the documented fields, but for those by which the client proves who it is.
    pub(super) fn fields(&self) -> Vec<(&'static str, &'a str)> {
        let mut fields = Vec::with_capacity(8);
        if !matches!(self, Self::Revocation { .. }) {
            fields.push(("grant_type", self.name()));
        }
        let scope = match self {
            Self::AuthorizationCode { code, verifier, redirect_uri, scope } => {
                fields.extend([
                    ("code", code.expose_secret()),
                    ("redirect_uri", *redirect_uri),
                    ("code_verifier", verifier.expose_secret()),
                ]);
                *scope
            }
            Self::ClientCredentials { user, scope } => {
                fields.extend(user.map(|user| ("userId", user.as_str())));
                *scope
            }
            Self::RefreshToken { refresh_token, .. } => {
                fields.push(("refresh_token", refresh_token.expose_secret()));
                None
            }
            Self::Revocation { token, hint } => {
                fields.extend([("token", token.expose_secret()), ("token_type_hint", *hint)]);
                None
            }
        };
        fields.extend(scope.map(|scope| ("scope", scope.as_str())));
        fields
    }
}

/// The way out.
pub(super) enum Transport {
    Http(HttpClient),
    /// Reaches an embedded provider without a socket.
    #[cfg(feature = "testing")]
    Given(super::builder::GivenClient),
}

impl Transport {
    /// Boxed, so that what is built around it stays small: a refresh is a task of its own.
    pub(super) fn send<'a>(
        &'a self,
        url: &'a Url,
        form: Form,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, HttpError>> + Send + 'a>> {
        match self {
            Self::Http(client) => Box::pin(client.post(url, form, limit)),
            #[cfg(feature = "testing")]
            Self::Given(client) => Box::pin(client.post(url, form, limit)),
        }
    }
}

/// Why an attempt gave no token, and what that means for another one.
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) error: Error,
}

impl Failure {
    fn new(cause: Cause, error: Error) -> Self {
        Self { cause, error }
    }

    pub(super) fn out_of_time() -> Self {
        let message = "the time for this request was over before it was sent";
        Self::new(Cause::NotSent, Error::new(ErrorKind::Unavailable, message))
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

/// Judges what came back. Any 2xx with a token is a token, and a failure is one whatever its
/// status.
pub(super) fn judge_grant(
    sent: Result<Answer, HttpError>,
    request: &Request<'_>,
    secrets: &[&str],
    now: Timestamp,
) -> Result<(BasicTokenResponse, Option<SystemTime>), Failure> {
    let answer = sent.map_err(unsent)?;
    let (refusal, defect) = match answer.verdict(secrets) {
        Verdict::Token(token) => {
            tracing::debug!("token received");
            return Ok((token, answer.date()));
        }
        Verdict::Failure { refusal, defect } => (refusal, defect),
    };
    // One that only repeats what was sent is no news.
    let rescued = rescue_refresh_token(&answer.body).filter(|token| !request.sent(token));
    if let Some(refresh_token) =
        rescued.filter(|_| answer.status.is_success() || !request.is_repeatable())
    {
        return Err(rescue(refresh_token, defect, refusal.as_ref(), answer, request));
    }
    Err(match refusal {
        Some(refusal) => refused(&refusal, &answer, request, now),
        None if answer.status.is_success() => unreadable_success(answer, defect),
        None => unexplained(answer, request, now),
    })
}

/// Judges the answer to a revocation: where it is none of a failure, its body says nothing (RFC 7009
/// section 2.2).
pub(super) fn judge_revocation(
    sent: Result<Answer, HttpError>,
    request: &Request<'_>,
    secrets: &[&str],
    now: Timestamp,
) -> Result<(), Failure> {
    let answer = sent.map_err(unsent)?;
    match answer.refusal(secrets) {
        // What is dead already is as good as revoked. To a client that is not known, a 401 may say
        // the same, and mean its credentials.
        Some(refusal)
            if names_a_dead_token(refusal.error().as_ref())
                && answer.status != StatusCode::UNAUTHORIZED
                && by_status(&answer, true, now).is_none() =>
        {
            Ok(())
        }
        Some(refusal) => Err(refused(&refusal, &answer, request, now)),
        None if answer.status.is_success() => Ok(()),
        None => Err(unexplained(answer, request, now)),
    }
}

/// Whether a code says that the token to be revoked is none, or none any more. RFC 7009 has no such
/// code; providers send those of RFC 6749 and RFC 6750 all the same.
fn names_a_dead_token(code: &str) -> bool {
    names_a_token(code) || matches!(code, "invalid_grant" | "invalid_token")
}

/// Whether the provider's own code says that a token is dead.
fn names_a_token(code: &str) -> bool {
    matches!(code, "EXPIRED_TOKEN" | "INVALID_TOKEN")
}

/// A failure that holds a refresh token all the same.
fn rescue(
    refresh_token: SecretString,
    defect: Defect,
    refusal: Option<&BasicErrorResponse>,
    answer: Answer,
    request: &Request<'_>,
) -> Failure {
    let message = "the provider's answer is defective beside a refresh token";
    let mut error = Error::new(ErrorKind::InvalidResponse, message)
        .with_status(answer.status)
        .with_rescued(refresh_token);
    if let Some(refusal) = refusal {
        let description = refusal.error_description().map(String::as_str);
        error = error.with_answer(refusal.error().as_ref(), description);
    }
    let cause = if request.is_repeatable() { Cause::Unanswered } else { Cause::Settled };
    let error = match answer.cut {
        Some(cut) => error.caused_by(cut),
        None => defect.explain(error),
    };
    Failure::new(cause, error)
}

fn unsent(error: HttpError) -> Failure {
    let (cause, message) = match &error {
        HttpError::NotSent(_) => (Cause::NotSent, "the provider cannot be reached"),
        HttpError::ForeignOrigin => (Cause::Settled, "the request was not sent"),
        #[cfg(feature = "testing")]
        HttpError::Other(source) if never_left(&**source) => {
            (Cause::NotSent, "the provider cannot be reached")
        }
        _ => (Cause::Unanswered, "the provider did not answer"),
    };
    Failure::new(cause, Error::new(ErrorKind::Unavailable, message).caused_by(error))
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

/// A failure the provider explained.
fn refused(
    refusal: &BasicErrorResponse,
    answer: &Answer,
    request: &Request<'_>,
    now: Timestamp,
) -> Failure {
    let code = refusal.error().as_ref();
    let describe = |error: Error| {
        error
            .with_status(answer.status)
            .with_retry_after(answer.retry_after(now.wall()))
            .with_answer(code, refusal.error_description().map(String::as_str))
    };
    if let Some(failure) = by_status(answer, true, now) {
        return Failure::new(failure.cause, describe(failure.error));
    }
    let names_a_token = names_a_token(code);
    let is_unauthorized = answer.status == StatusCode::UNAUTHORIZED;
    let is_doubtful = names_a_token && is_unauthorized && request.bearer().is_none();
    let is_dead = matches!(refusal.error(), BasicErrorResponseType::InvalidGrant)
        || (names_a_token && !is_unauthorized && request.bearer().is_none());
    let (cause, error) = if request.request_type() != RequestType::RefreshToken {
        (Cause::Settled, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    } else if is_dead {
        (Cause::Settled, Error::new(ErrorKind::LoginRequired, "the refresh token is dead"))
    } else if is_doubtful {
        // The provider has no code for wrong client credentials, and gateways answer so while their
        // token service is down.
        let message = "the provider refused the refresh token, or the client: a 401 can mean both";
        (Cause::Settled, Error::new(ErrorKind::Unavailable, message).doubtful())
    } else if request.bearer().is_some()
        && (names_a_token || is_unauthorized || has_two_proofs(answer.status, refusal))
    {
        let message = "the provider refused a refresh that carried a Bearer header";
        (Cause::BearerDoubted, Error::new(ErrorKind::Rejected, message))
    } else {
        (Cause::Settled, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    };
    Failure::new(cause, describe(error))
}

/// Whether the refusal may be about two ways of proving oneself at once, as a Bearer header beside
/// the client's secret in the body can be taken for (RFC 6749 section 5.2).
fn has_two_proofs(status: StatusCode, refusal: &BasicErrorResponse) -> bool {
    status == StatusCode::BAD_REQUEST
        && matches!(refusal.error(), BasicErrorResponseType::InvalidRequest)
}

/// A failure without an explanation that can be read: from something on the way, more often than
/// not. It never means that a refresh token is dead.
fn unexplained(answer: Answer, request: &Request<'_>, now: Timestamp) -> Failure {
    let failure = by_status(&answer, false, now).unwrap_or_else(|| {
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED && request.bearer().is_some() {
            let message = "a refresh that carried a Bearer header was refused";
            Failure::new(Cause::BearerDoubted, Error::new(ErrorKind::InvalidResponse, message))
        } else if status.is_redirection() {
            let message = "the answer is a redirect, which is never followed";
            Failure::new(Cause::Settled, Error::new(ErrorKind::InvalidResponse, message))
        } else {
            let message = "the request failed without an error that can be read";
            Failure::new(Cause::Settled, Error::new(ErrorKind::InvalidResponse, message))
        }
    });
    let pause = answer.retry_after(now.wall());
    let error = failure.error.with_status(answer.status).with_retry_after(pause);
    Failure::new(failure.cause, with_cut(error, answer.cut))
}

/// The failure that a status stands for, whatever the body says. A 429 or 503 is the provider's own
/// only where it explains itself or names a pause: a bare one may come from a proxy whose request
/// was acted on.
fn by_status(answer: &Answer, is_explained: bool, now: Timestamp) -> Option<Failure> {
    let is_own = is_explained || answer.retry_after(now.wall()).is_some();
    let turned_away = if is_own { Cause::Throttled } else { Cause::Unanswered };
    let (cause, kind, message) = match answer.status {
        StatusCode::TOO_MANY_REQUESTS => {
            (turned_away, ErrorKind::RateLimited, "the provider asks for a pause")
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            (turned_away, ErrorKind::Unavailable, "the provider is unavailable")
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY if !is_explained => {
            (Cause::Unanswered, ErrorKind::Unavailable, "the provider did not wait for the request")
        }
        status if status.is_server_error() => {
            (Cause::Unanswered, ErrorKind::Unavailable, "the provider failed")
        }
        _ => return None,
    };
    Some(Failure::new(cause, Error::new(kind, message)))
}

/// A success that cannot be read: its answer is lost, and the request may have taken effect.
fn unreadable_success(answer: Answer, defect: Defect) -> Failure {
    let message = "the provider's answer cannot be read";
    let error = Error::new(ErrorKind::InvalidResponse, message).with_status(answer.status);
    let error = match answer.cut {
        Some(cut) => error.caused_by(cut),
        None => defect.explain(error),
    };
    Failure::new(Cause::Unanswered, error)
}

fn with_cut(error: Error, cut: Option<HttpError>) -> Error {
    match cut {
        Some(cut) => error.caused_by(cut),
        None => error,
    }
}

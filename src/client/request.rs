//! One token request: its form, its way out, and the judgement of its answer.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use oauth2::basic::BasicErrorResponseType;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::{Url, form_urlencoded};
use zeroize::{Zeroize, Zeroizing};

use crate::clock::Moment;
use crate::endpoint::{ClientAuthentication, Contract};
use crate::error::{BasicErrorResponse, Error, ErrorKind};
use crate::object::Object;
use crate::retry::{Attempts, Cause, GrantType};
use crate::token::{
    BasicTokenResponse, JsonError, Token, TokenDefect, TokenObject, rescue_refresh_token,
};
use crate::transport::{Answer, Form, HttpClient, HttpError};
use crate::user::UserId;

/// What is asked for, and what it is asked with.
#[derive(Clone, Copy)]
pub(super) enum Grant<'a> {
    AuthorizationCode { code: &'a SecretString, verifier: &'a SecretString, redirect_uri: &'a str },
    ClientCredentials { user: &'a UserId },
    RefreshToken { refresh_token: &'a SecretString, bearer: Option<&'a Token> },
}

impl<'a> Grant<'a> {
    pub(super) fn grant_type(&self) -> GrantType {
        match self {
            Self::AuthorizationCode { .. } => GrantType::AuthorizationCode,
            Self::ClientCredentials { .. } => GrantType::ClientCredentials,
            Self::RefreshToken { .. } => GrantType::RefreshToken,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AuthorizationCode { .. } => "authorization_code",
            Self::ClientCredentials { .. } => "client_credentials",
            Self::RefreshToken { .. } => "refresh_token",
        }
    }

    pub(super) fn user(&self) -> Option<&'a UserId> {
        match self {
            Self::ClientCredentials { user } => Some(user),
            _ => None,
        }
    }

    pub(super) fn bearer(&self) -> Option<&'a Token> {
        match self {
            Self::RefreshToken { bearer, .. } => *bearer,
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
        if let (Cause::BearerDoubted, Self::RefreshToken { bearer, .. }) = (cause, self) {
            *bearer = None;
        }
    }

    /// What no error text may repeat: the secrets of the request, and who the user is.
    pub(super) fn secrets(&self, client_secret: &'a SecretString) -> Vec<&'a str> {
        let mut secrets = vec![client_secret.expose_secret()];
        match self {
            Self::AuthorizationCode { code, verifier, .. } => {
                secrets.extend([code.expose_secret(), verifier.expose_secret()]);
            }
            Self::ClientCredentials { user } => secrets.push(user.as_str()),
            Self::RefreshToken { refresh_token, bearer } => {
                secrets.push(refresh_token.expose_secret());
                secrets.extend(bearer.map(|token| token.access_token().expose_secret()));
            }
        }
        secrets
    }

    /// The request's body: exactly the documented fields.
    pub(super) fn form(
        &self,
        client_id: &str,
        client_secret: &SecretString,
        contract: &Contract,
    ) -> Zeroizing<Vec<u8>> {
        let mut fields = vec![("grant_type", self.name())];
        match self {
            Self::AuthorizationCode { code, verifier, redirect_uri } => fields.extend([
                ("code", code.expose_secret()),
                ("redirect_uri", *redirect_uri),
                ("code_verifier", verifier.expose_secret()),
            ]),
            Self::ClientCredentials { user } => fields.push(("userId", user.as_str())),
            Self::RefreshToken { refresh_token, .. } => {
                fields.push(("refresh_token", refresh_token.expose_secret()));
            }
        }
        match contract.client_authentication {
            ClientAuthentication::RequestBody => fields.extend([
                ("client_id", client_id),
                ("client_secret", client_secret.expose_secret()),
            ]),
        }
        // Room for the longest encoding: a growing buffer would leave copies of secrets behind.
        let room = fields.iter().map(|(name, value)| name.len() + 2 + 3 * value.len()).sum();
        form_urlencoded::Serializer::new(String::with_capacity(room))
            .extend_pairs(fields)
            .finish()
            .into_bytes()
            .into()
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
    pub(super) async fn send(
        &self,
        token_url: &Url,
        form: Form,
        limit: Duration,
    ) -> Result<Answer, HttpError> {
        match self {
            Self::Http(client) => client.post(token_url, form, limit).await,
            #[cfg(feature = "testing")]
            Self::Given(client) => client.post(token_url, form, limit).await,
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
        match attempts.grant_type() {
            // Dead, and an answer went missing just before: that answer held the living one.
            GrantType::RefreshToken if unanswered && error.kind() == ErrorKind::LoginRequired => {
                error.with_kind(ErrorKind::RotationLost)
            }
            // The code may be spent, and must not come twice (RFC 6749 section 4.1.2).
            GrantType::AuthorizationCode if unanswered => error.not_temporary(),
            _ => error,
        }
    }
}

/// Judges what came back. Any 2xx with a token is a token, and a failure is one whatever its
/// status.
pub(super) fn judge(
    sent: Result<Answer, HttpError>,
    grant: &Grant<'_>,
    secrets: &[&str],
    now: Moment,
) -> Result<(BasicTokenResponse, Option<SystemTime>), Failure> {
    let answer = sent.map_err(unsent)?;
    let defect = match read_token(&answer.body) {
        Ok(token) if answer.is_taken() => return Ok((token, answer.date())),
        Ok(_) => Defect::NotTaken,
        Err(defect) => defect,
    };
    let refusal = read_error(&answer.body, secrets);
    // One that only repeats what was sent is no news.
    let rescued = rescue_refresh_token(&answer.body).filter(|token| !grant.sent(token));
    if let Some(refresh_token) =
        rescued.filter(|_| answer.status.is_success() || !grant.is_repeatable())
    {
        return Err(rescue(refresh_token, defect, refusal.as_ref(), answer, grant));
    }
    Err(match refusal {
        Some(refusal) => refused(&refusal, &answer, grant, now),
        None if answer.status.is_success() => unreadable_success(answer, defect),
        None => unexplained(answer, grant, now),
    })
}

/// A failure that holds a refresh token all the same.
fn rescue(
    refresh_token: SecretString,
    defect: Defect,
    refusal: Option<&BasicErrorResponse>,
    answer: Answer,
    grant: &Grant<'_>,
) -> Failure {
    let message = "the provider's answer is defective beside a refresh token";
    let mut error = Error::new(ErrorKind::InvalidResponse, message)
        .with_status(answer.status)
        .with_rescued(refresh_token);
    if let Some(refusal) = refusal {
        let description = refusal.error_description().map(String::as_str);
        error = error.with_answer(refusal.error().as_ref(), description);
    }
    let cause = if grant.is_repeatable() { Cause::Unanswered } else { Cause::Settled };
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

/// Why a body is no token.
enum Defect {
    Json(JsonError),
    Token(TokenDefect),
    /// It would be one, were the answer not a failure, or longer than any.
    NotTaken,
}

impl Defect {
    fn explain(self, error: Error) -> Error {
        match self {
            Self::Json(source) => error.caused_by(source),
            Self::Token(source) => error.caused_by(source),
            Self::NotTaken => error,
        }
    }
}

fn read_token(body: &[u8]) -> Result<BasicTokenResponse, Defect> {
    let Object(object): Object<TokenObject> =
        serde_json::from_slice(body).map_err(|error| Defect::Json(error.into()))?;
    object.try_into().map_err(Defect::Token)
}

/// Reads an error answer. Should it quote a secret of the request, that is blotted out.
fn read_error(body: &[u8], secrets: &[&str]) -> Option<BasicErrorResponse> {
    let mut answer = serde_json::from_slice(body).ok()?;
    // In the texts and not in the bytes, since JSON can escape every character; before they are
    // cut to length, since half a secret is not found any more.
    visit_texts(&mut answer, &mut |text| blot_out(text, secrets));
    let refusal = BasicErrorResponse::deserialize(&answer).ok();
    // It may be no error at all, and hold tokens.
    visit_texts(&mut answer, &mut Zeroize::zeroize);
    refusal
}

fn visit_texts(json: &mut Value, visit: &mut impl FnMut(&mut String)) {
    match json {
        Value::String(text) => visit(text),
        Value::Array(values) => values.iter_mut().for_each(|value| visit_texts(value, visit)),
        Value::Object(fields) => fields.values_mut().for_each(|value| visit_texts(value, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Replaces each of `secrets`, in clear and as the form encodes it.
fn blot_out(text: &mut String, secrets: &[&str]) {
    // Anything shorter is no secret, and would tear words apart.
    const SHORTEST: usize = 4;
    let mut hidden: Vec<_> = secrets
        .iter()
        .filter(|secret| secret.len() >= SHORTEST)
        .flat_map(|secret| {
            let encoded = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            [Zeroizing::new((*secret).to_owned()), Zeroizing::new(encoded)]
        })
        .collect();
    // One may be part of another, and would leave the rest of it standing.
    hidden.sort_by_key(|secret| Reverse(secret.len()));
    for secret in hidden {
        if text.contains(secret.as_str()) {
            let blotted = text.replace(secret.as_str(), "***");
            std::mem::replace(text, blotted).zeroize();
        }
    }
}

/// A failure the provider explained.
fn refused(
    refusal: &BasicErrorResponse,
    answer: &Answer,
    grant: &Grant<'_>,
    now: Moment,
) -> Failure {
    let code = refusal.error().as_ref();
    let describe = |error: Error| {
        error
            .with_status(answer.status)
            .with_answer(code, refusal.error_description().map(String::as_str))
    };
    if let Some(failure) = by_status(answer, now) {
        return Failure::new(failure.cause, describe(failure.error));
    }
    let names_a_token = matches!(code, "EXPIRED_TOKEN" | "INVALID_TOKEN");
    let is_dead = matches!(refusal.error(), BasicErrorResponseType::InvalidGrant)
        || (names_a_token && grant.bearer().is_none());
    let (cause, error) = if grant.grant_type() != GrantType::RefreshToken {
        (Cause::Settled, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    } else if is_dead {
        (Cause::Settled, Error::new(ErrorKind::LoginRequired, "the refresh token is dead"))
    } else if grant.bearer().is_some()
        && (names_a_token || answer.status == StatusCode::UNAUTHORIZED)
    {
        let message = "the provider refused a refresh that carried a Bearer header";
        (Cause::BearerDoubted, Error::new(ErrorKind::Rejected, message))
    } else {
        (Cause::Settled, Error::new(ErrorKind::Rejected, "the provider refused the request"))
    };
    Failure::new(cause, describe(error))
}

/// A failure without an explanation that can be read: from something on the way, more often than
/// not. It never means that a refresh token is dead.
fn unexplained(answer: Answer, grant: &Grant<'_>, now: Moment) -> Failure {
    let failure = by_status(&answer, now).unwrap_or_else(|| {
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED && grant.bearer().is_some() {
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
    let error = failure.error.with_status(answer.status);
    Failure::new(failure.cause, with_cut(error, answer.cut))
}

/// What the status decides by itself.
fn by_status(answer: &Answer, now: Moment) -> Option<Failure> {
    let pause = answer.retry_after(now.wall());
    let (cause, kind, message) = match answer.status {
        StatusCode::TOO_MANY_REQUESTS => {
            (Cause::Throttled(pause), ErrorKind::RateLimited, "the provider asks for a pause")
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            (Cause::Throttled(pause), ErrorKind::Unavailable, "the provider is unavailable")
        }
        status if status.is_server_error() => {
            (Cause::Unanswered, ErrorKind::Unavailable, "the provider failed")
        }
        _ => return None,
    };
    Some(Failure::new(cause, Error::new(kind, message).with_retry_after(pause)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_quoted_in_an_error_is_blotted_out_wherever_it_stands() {
        let blotted = |text: &str, secrets: &[&str]| {
            let mut text = text.to_owned();
            blot_out(&mut text, secrets);
            text
        };
        assert_eq!(
            blotted("marker, marker and markermarker; mark", &["marker"]),
            "***, *** and ******; mark"
        );
        assert_eq!(blotted("a+b/c a%2Bb%2Fc", &["a+b/c"]), "*** ***");
        assert_eq!(blotted("marker-marked", &["mark", "marker-marked"]), "***");
        assert_eq!(blotted("as it was", &["", "it", "was it"]), "as it was");
    }
}

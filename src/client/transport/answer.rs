//! Answers of the token and revocation endpoints, and what they say.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, StatusCode};
#[cfg(feature = "testing")]
use oauth2::HttpResponse;
use serde::Deserialize;
use url::form_urlencoded;
use zeroize::{Zeroize, Zeroizing};

use super::content_coding::unpack;
use super::deadline::ResponseDeadline;
use super::error::HttpError;
use super::read_buffer::ReadBuffers;
use super::wiped_json::{WipedJson, wipe};
use crate::error::Error;
use crate::wire::error_response::BasicErrorResponse;
use crate::wire::object::{Object, first_object};
use crate::wire::token_response::{BasicTokenResponse, JsonError, TokenDefect, TokenObject};

/// The longest answer that is read, in bytes.
const LONGEST_BODY: usize = 64 * 1024;

/// The longest pause that is believed. One that a broken proxy asks for must not lock anybody out.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

/// An answer of a token or revocation endpoint: its body, and the few headers that matter.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The object in it as clean JSON, where there is one.
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// Why the body ended before its time. The part that had come by then is in `body`.
    pub(crate) cut: Option<HttpError>,
}

/// The meaning of an answer to a request for a token.
pub(crate) enum Verdict {
    Token(BasicTokenResponse),
    /// A failure, explained or not, and why there is no token.
    Failure {
        refusal: Option<BasicErrorResponse>,
        defect: Defect,
    },
}

impl Answer {
    fn new(
        status: StatusCode,
        mut headers: HeaderMap,
        mut body: Zeroizing<Vec<u8>>,
        cut: Option<HttpError>,
    ) -> Self {
        let unpacked = unpack(&headers, &mut body, LONGEST_BODY);
        headers.remove(CONTENT_ENCODING);
        // Nearly every answer is a token in clean JSON. serde would unpack escapes into memory
        // that is not wiped.
        if body.contains(&b'\\') || read_token(&body).is_err() {
            let object = first_object(&body);
            if let Some(mut object) = object.filter(|it| it.as_bytes() != body.trim_ascii()) {
                body = std::mem::take(&mut *object).into_bytes().into();
            }
        }
        Self { status, headers, body, cut: cut.or(unpacked) }
    }

    pub(super) async fn read(
        mut response: reqwest::Response,
        deadline: &mut ResponseDeadline,
    ) -> Self {
        let status = response.status();
        let headers = copy_headers(response.headers());
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
        // Room for all of it at once: a growing buffer would leave copies of the tokens behind.
        let capacity = expected.filter(|length| *length <= LONGEST_BODY).unwrap_or(LONGEST_BODY);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        // Both may hold parts of the block that the body is in.
        response.headers_mut().clear();
        response.extensions_mut().clear();
        let mut buffers = ReadBuffers::default();
        let cut = loop {
            match deadline.wait(response.chunk()).await {
                Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST_BODY => {
                    let room = LONGEST_BODY - body.len();
                    body.extend_from_slice(&chunk[..room]);
                    buffers.push(chunk);
                    break Some(HttpError::TooLong);
                }
                Ok(Some(chunk)) => {
                    body.extend_from_slice(&chunk);
                    buffers.push(chunk);
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        // It may be the last to hold its connection, and with it a part of the block.
        drop(response);
        buffers.wipe().await;
        Self::new(status, headers, body, cut)
    }

    /// An answer of a client that is not ours.
    #[cfg(feature = "testing")]
    pub(crate) fn from_response(response: HttpResponse) -> Self {
        let (parts, body) = response.into_parts();
        let mut body = Zeroizing::new(body);
        let cut = (body.len() > LONGEST_BODY).then_some(HttpError::TooLong);
        body.truncate(LONGEST_BODY);
        Self::new(parts.status, copy_headers(&parts.headers), body, cut)
    }

    /// Reads a token, or else an error. A token counts unless it is that of a failure, or of an
    /// answer that does not end; one behind which the connection broke is good. Texts of an error
    /// hide `secrets`.
    pub(crate) fn verdict(&self, secrets: &[&str]) -> Verdict {
        let is_acceptable =
            self.status.is_success() && !matches!(self.cut, Some(HttpError::TooLong));
        let defect = match read_token(&self.body) {
            Ok(token) if is_acceptable => return Verdict::Token(token),
            Ok(_) => Defect::Unacceptable,
            Err(defect) => defect,
        };
        Verdict::Failure { refusal: self.refusal(secrets), defect }
    }

    /// The error that it explains itself by.
    pub(crate) fn refusal(&self, secrets: &[&str]) -> Option<BasicErrorResponse> {
        read_error(&self.body, secrets)
    }

    /// When the provider sent the answer, by its own clock.
    pub(crate) fn date(&self) -> Option<SystemTime> {
        date(&self.headers)
    }

    /// The pause that was asked for.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        retry_after(&self.headers, now)
    }
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// The pause that an answer asks for, in seconds or as a date (RFC 9110 section 10.2.3); a day at
/// most. Part of a second counts as a whole one, so that no pause is cut short. A date counts from
/// the answer's own `Date`, since both are of one clock, else from `now`.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = text.starts_with(|c: char| c.is_ascii_digit());
    if let Some(seconds) = text.parse::<f64>().ok().filter(|_| is_number) {
        // More digits than a number holds is a long pause too.
        let seconds = seconds.ceil().min(LONGEST_PAUSE.as_secs_f64());
        return Some(Duration::from_secs_f64(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let pause = until.duration_since(date(headers).unwrap_or(now)).unwrap_or_default();
    Some(pause.min(LONGEST_PAUSE))
}

/// Copies the headers that are needed: a clone of one would keep the whole block alive that it was
/// read in, and with it the tokens that came behind.
fn copy_headers(headers: &HeaderMap) -> HeaderMap {
    const KEPT: [HeaderName; 4] = [CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER];
    KEPT.into_iter()
        .filter_map(|name| {
            let value = headers.get(&name)?;
            Some((name, http::HeaderValue::from_bytes(value.as_bytes()).ok()?))
        })
        .collect()
}

/// Why a body is no token.
pub(crate) enum Defect {
    Json(JsonError),
    Token(TokenDefect),
    /// It would be one, were the answer not a failure, or longer than any.
    Unacceptable,
}

impl Defect {
    pub(crate) fn explain(self, error: Error) -> Error {
        match self {
            Self::Json(source) => error.caused_by(source),
            Self::Token(source) => error.caused_by(source),
            Self::Unacceptable => error,
        }
    }
}

fn read_token(body: &[u8]) -> Result<BasicTokenResponse, Defect> {
    let Object(object): Object<TokenObject> =
        serde_json::from_slice(body).map_err(|error| Defect::Json(error.into()))?;
    object.try_into().map_err(Defect::Token)
}

/// Reads an error answer. Should it quote a secret of the request, that is replaced.
fn read_error(body: &[u8], secrets: &[&str]) -> Option<BasicErrorResponse> {
    let answer: WipedJson = serde_json::from_slice(body).ok()?;
    // In the texts and not in the bytes, since JSON can escape every character; before they are
    // cut to length, since half a secret is not found any more.
    let mut answer = answer.into_value(&|text| redact(text, secrets));
    let refusal = BasicErrorResponse::deserialize(&answer).ok();
    // It may be no error at all, and hold tokens.
    wipe(&mut answer);
    refusal
}

/// Replaces each of `secrets`, in clear and as the form encodes it.
fn redact(text: &mut String, secrets: &[&str]) {
    // Shorter values are not secrets, and replacing them would garble ordinary words.
    const SHORTEST: usize = 4;
    const HIDDEN: &str = "***";
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
        // Room for all of it: a growing text would leave copies of the next secret behind.
        let mut redacted = String::with_capacity(text.len());
        let mut parts = text.split(secret.as_str());
        redacted.push_str(parts.next().unwrap_or_default());
        parts.for_each(|part| redacted.extend([HIDDEN, part]));
        std::mem::replace(text, redacted).zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn answer(headers: &[(HeaderName, &'static str)]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value)))
            .collect();
        Answer::new(StatusCode::OK, headers, Zeroizing::default(), None)
    }

    #[test]
    fn retry_after_is_seconds_or_date() {
        let date = (DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        for (value, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(86_400)),
            ("18446744073709551615", Some(86_400)),
            ("86401", Some(86_400)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-5", None),
            ("1.5", Some(2)),
            ("120.0", Some(120)),
            ("1.2e2", Some(120)),
            ("1e999", Some(86_400)),
            ("nan", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ] {
            let answer = answer(&[date.clone(), (RETRY_AFTER, value)]);
            assert_eq!(
                answer.retry_after(SystemTime::now()).map(|pause| pause.as_secs()),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn retry_date_alone_counts_from_now() {
        let answer = answer(&[(RETRY_AFTER, "Thu, 01 Jan 1970 00:01:40 GMT")]);
        let now = UNIX_EPOCH + Duration::from_secs(70);
        assert_eq!(answer.retry_after(now), Some(Duration::from_secs(30)));
    }

    #[test]
    fn quoted_secret_is_redacted() {
        let redacted = |text: &str, secrets: &[&str]| {
            let mut text = text.to_owned();
            redact(&mut text, secrets);
            text
        };
        assert_eq!(
            redacted("marker, marker and markermarker; mark", &["marker"]),
            "***, *** and ******; mark"
        );
        assert_eq!(redacted("a+b/c a%2Bb%2Fc", &["a+b/c"]), "*** ***");
        assert_eq!(redacted("marker-marked", &["mark", "marker-marked"]), "***");
        assert_eq!(redacted("as it was", &["", "it", "was it"]), "as it was");
    }
}

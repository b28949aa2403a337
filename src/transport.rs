//! The transport: one origin, bounded, and nothing followed.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Method, Response, StatusCode};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use url::Url;
use zeroize::Zeroizing;

use crate::endpoint;
use crate::error::{BasicErrorResponse, Error};
use crate::token::BasicTokenResponse;

/// The longest answer that is read, in bytes.
pub(crate) const LONGEST_BODY: usize = 64 * 1024;

/// The longest pause that is believed. One that a broken proxy asks for must not lock anybody out.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

/// How long one request may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the connection and its TLS handshake.
    pub(crate) connect: Duration,
    /// For all of it, to the last byte of the answer.
    pub(crate) request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), request: Duration::from_secs(30) }
    }
}

/// An HTTP client for one token endpoint, on `reqwest`, for apps that use
/// [`BasicClient`](crate::basic::BasicClient) with [`oauth2`]'s `request_async`.
///
/// It sends to the origin it was made for and nowhere else, follows no redirect, retries nothing,
/// waits 5 s for a connection and 30 s for the whole answer, reads at most 64 KiB, and wipes the
/// request's body. `oauth2` judges by status and content type, and the provider's answers are what
/// they are whatever those say: so every 2xx reaches it as 200 and without a content type, and a
/// refusal that came with a 2xx as 400.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: reqwest::Client,
    origin: url::Origin,
    timeout: Duration,
}

/// Why no answer could be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No connection came about (DNS, TCP or TLS): nothing was sent.
    #[error("connecting failed, nothing was sent")]
    NotSent(#[source] reqwest::Error),
    /// The time for the request ran out after something may have been sent.
    #[error("no answer in time")]
    TimedOut(#[source] reqwest::Error),
    /// The connection broke before the answer was complete.
    #[error("the connection broke before the answer was complete")]
    Broken(#[source] reqwest::Error),
    /// The answer is longer than 64 KiB.
    #[error("the answer is longer than 64 KiB")]
    TooLong,
    /// The request is for another origin than the client's: it was not sent.
    #[error("the request is for another origin than this client's, it was not sent")]
    ForeignOrigin,
    /// A client other than ours failed.
    #[error("the HTTP client failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HttpClient {
    /// A client for `endpoint`, which must be `https`, or `http` on a loopback host. Proxies are
    /// taken from the environment, as `reqwest` does it, save for a loopback host.
    pub fn new(endpoint: &Url) -> Result<Self, Error> {
        Self::with(reqwest::Client::builder(), endpoint, Timeouts::default())
    }

    /// Puts what the crate promises on top of the caller's own settings.
    pub(crate) fn with(
        builder: reqwest::ClientBuilder,
        endpoint: &Url,
        timeouts: Timeouts,
    ) -> Result<Self, Error> {
        if !endpoint::is_protected(endpoint) {
            return Err(Error::config(
                "the endpoint must use https (plain http is for loopback hosts alone)",
            ));
        }
        if endpoint.scheme() == "https" && !cfg!(any(feature = "rustls", feature = "native-tls")) {
            return Err(Error::config("https needs the feature `rustls` or `native-tls`"));
        }
        let mut builder = builder
            .connect_timeout(timeouts.connect)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            // Whatever features of reqwest the app has on: what is compressed would leave a copy.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connection_verbose(false)
            // Shorter than servers keep idle connections, so that few requests meet one that is
            // being closed: those would count as unanswered.
            .pool_idle_timeout(Duration::from_secs(5));
        if endpoint::is_loopback(endpoint) {
            builder = builder.no_proxy();
        } else {
            builder = builder.https_only(true);
        }
        let client = builder.build().map_err(|source| {
            Error::config("the HTTP client cannot be built").caused_by(source.without_url())
        })?;
        Ok(Self { client, origin: endpoint.origin(), timeout: timeouts.request })
    }

    /// Posts `form` to `url`, of this client's origin, and waits at most `limit` for all of the
    /// answer.
    pub(crate) async fn post(
        &self,
        url: &Url,
        form: Form,
        limit: Duration,
    ) -> Result<Answer, HttpError> {
        self.send(Method::POST, url.clone(), form.headers, form.body, limit).await
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Zeroizing<Vec<u8>>,
        limit: Duration,
    ) -> Result<Answer, HttpError> {
        let response = self
            .client
            .request(method, url)
            .headers(headers)
            .body(Bytes::from_owner(body))
            .timeout(limit)
            .send()
            .await
            .map_err(failed)?;
        Ok(Answer::read(response).await)
    }
}

fn failed(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    if error.is_connect() {
        HttpError::NotSent(error)
    } else if error.is_timeout() {
        HttpError::TimedOut(error)
    } else {
        HttpError::Broken(error)
    }
}

impl<'c> AsyncHttpClient<'c> for HttpClient {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            if let Some(value) = parts.headers.get_mut(AUTHORIZATION) {
                value.set_sensitive(true);
            }
            let url = parts.uri.to_string().parse::<Url>().ok();
            let url = url.filter(|url| url.origin() == self.origin);
            let url = url.ok_or(HttpError::ForeignOrigin)?;
            let mut answer = self
                .send(parts.method, url, parts.headers, Zeroizing::new(body), self.timeout)
                .await?;
            if let Some(error) = answer.cut.take() {
                return Err(error);
            }
            let status = match answer.status {
                status if !status.is_success() => status,
                _ if is_refusal(&answer.body) => StatusCode::BAD_REQUEST,
                _ => StatusCode::OK,
            };
            let mut response = Response::new(std::mem::take(&mut *answer.body));
            *response.status_mut() = status;
            *response.headers_mut() = answer.headers;
            if status == StatusCode::OK {
                response.headers_mut().remove(CONTENT_TYPE);
            }
            Ok(response)
        })
    }
}

/// Whether a body is an error answer, and no token.
fn is_refusal(body: &[u8]) -> bool {
    serde_json::from_slice::<BasicTokenResponse>(body).is_err()
        && serde_json::from_slice::<BasicErrorResponse>(body).is_ok()
}

/// A form on its way to the token endpoint.
pub(crate) struct Form {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// What came back: all that judging needs, and no more of it kept.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// What ended the body before its time. What had come by then is in `body`.
    pub(crate) cut: Option<HttpError>,
}

impl Answer {
    async fn read(mut response: reqwest::Response) -> Self {
        let status = response.status();
        let headers = kept(response.headers());
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
        // Room for all of it at once: a growing buffer would leave copies of the tokens behind.
        let capacity = expected.filter(|length| *length <= LONGEST_BODY).unwrap_or(LONGEST_BODY);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        let cut = loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST_BODY => {
                    let room = LONGEST_BODY - body.len();
                    body.extend_from_slice(&chunk[..room]);
                    break Some(HttpError::TooLong);
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) => break Some(failed(error)),
            }
        };
        Self { status, headers, body, cut }
    }

    /// An answer of a client that is not ours.
    #[cfg(feature = "testing")]
    pub(crate) fn from_response(response: HttpResponse) -> Self {
        let (parts, body) = response.into_parts();
        let mut body = Zeroizing::new(body);
        let cut = (body.len() > LONGEST_BODY).then_some(HttpError::TooLong);
        body.truncate(LONGEST_BODY);
        Self { status: parts.status, headers: kept(&parts.headers), body, cut }
    }

    /// Whether a token in it is the answer: not that of a failure, and not one that does not end.
    /// One that broke off behind a whole token is good.
    pub(crate) fn is_taken(&self) -> bool {
        self.status.is_success() && !matches!(self.cut, Some(HttpError::TooLong))
    }

    /// When the provider sent the answer, by its own clock.
    pub(crate) fn date(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.headers.get(DATE)?.to_str().ok()?).ok()
    }

    /// The pause that was asked for, in seconds or as a date (RFC 9110 section 10.2.3); a day at the
    /// most. A date counts from the answer's own `Date`, since both are of one clock, else from
    /// `now`.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // More digits than a number holds is a long pause too.
            let seconds = text.parse().unwrap_or(u64::MAX);
            return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
        }
        let until = httpdate::parse_http_date(text).ok()?;
        let pause = until.duration_since(self.date().unwrap_or(now)).unwrap_or_default();
        Some(pause.min(LONGEST_PAUSE))
    }
}

/// Copies the headers that are needed: a clone of one would keep the whole block alive that it was
/// read in, and with it the tokens that came behind.
fn kept(headers: &HeaderMap) -> HeaderMap {
    const KEPT: [HeaderName; 3] = [CONTENT_TYPE, DATE, RETRY_AFTER];
    KEPT.into_iter()
        .filter_map(|name| {
            let value = headers.get(&name)?;
            Some((name, http::HeaderValue::from_bytes(value.as_bytes()).ok()?))
        })
        .collect()
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
        Answer { status: StatusCode::OK, headers, body: Zeroizing::default(), cut: None }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
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
            ("1.5", None),
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
    fn a_date_without_the_answers_own_counts_from_now() {
        let answer = answer(&[(RETRY_AFTER, "Thu, 01 Jan 1970 00:01:40 GMT")]);
        let now = UNIX_EPOCH + Duration::from_secs(70);
        assert_eq!(answer.retry_after(now), Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_client_is_not_made_for_an_endpoint_that_could_be_overheard() {
        for (url, fine) in [
            (
                "https://api.example.com/token",
                cfg!(any(feature = "rustls", feature = "native-tls")),
            ),
            ("http://127.0.0.1:1/token", true),
            ("http://api.example.com/token", false),
        ] {
            assert_eq!(HttpClient::new(&url.parse().unwrap()).is_ok(), fine, "{url}");
        }
    }
}

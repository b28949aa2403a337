//! The transport: one origin, bounded, and nothing followed.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use tokio::time::{Instant, Sleep};
use url::Url;
use zeroize::Zeroizing;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::endpoint;
use crate::error::{BasicErrorResponse, Error};
use crate::token::BasicTokenResponse;

/// The longest answer that is read, in bytes.
pub(crate) const LONGEST_BODY: usize = 64 * 1024;

/// The longest pause that is believed. One that a broken proxy asks for must not lock anybody out.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

/// How long an answer is looked for once the time for it is over. A process that was stopped, or a
/// machine that was suspended, wakes to find both: its time over, and an answer that came
/// meanwhile. It may hold the only refresh token that lives.
const LAST_LOOK: Duration = Duration::from_millis(500);

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
    /// The form did not leave: no connection came about (DNS, TCP or TLS), or not in time.
    #[error("nothing was sent")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The time for the request ran out after the form had left.
    #[error("no answer in time")]
    TimedOut(#[source] Box<dyn std::error::Error + Send + Sync>),
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
    pub(crate) fn post(
        &self,
        url: &Url,
        form: Form,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, HttpError>> + Send + use<> {
        self.send(Method::POST, url.clone(), form.headers, form.body, limit)
    }

    /// The request is made at once, so that nothing of it has a place in the future.
    fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Zeroizing<Vec<u8>>,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, HttpError>> + Send + use<> {
        let form = Departure::new(body, limit);
        let mut patience = Patience::new(limit, &form);
        let sending = self
            .client
            .request(method, url)
            .headers(headers)
            .body(reqwest::Body::wrap(form))
            // The app's own would throw away what the last look may find.
            .timeout(Duration::MAX)
            .send();
        async move {
            let response = patience.wait(sending).await?;
            Ok(Answer::read(response, &mut patience).await)
        }
    }
}

/// A form that leaves when the connection asks for it, unless its time is over by then: whoever was
/// stopped while it connected must not send on waking what another process has sent since.
struct Departure {
    form: Option<Bytes>,
    begun: Timestamp,
    limit: Duration,
    /// Whether the connection has it.
    left: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the time was over")]
struct OutOfTime;

impl Departure {
    fn new(form: Zeroizing<Vec<u8>>, limit: Duration) -> Self {
        // One that is empty is never asked for.
        let form = Some(Bytes::from_owner(form)).filter(|form| !form.is_empty());
        let left = Arc::new(AtomicBool::new(form.is_none()));
        Self { form, begun: SystemClock.now(), limit, left }
    }
}

impl http_body::Body for Departure {
    type Data = Bytes;
    type Error = OutOfTime;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OutOfTime>>> {
        Poll::Ready(self.form.take().map(|form| {
            if SystemClock.now().since(self.begun) >= self.limit {
                return Err(OutOfTime);
            }
            self.left.store(true, Ordering::Relaxed);
            Ok(Frame::data(form))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.form.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.form.as_ref().map_or(0, |form| form.len() as u64))
    }
}

/// How long an answer is waited for, in all its steps.
struct Patience {
    over: Pin<Box<Sleep>>,
    is_last_look: bool,
    left: Arc<AtomicBool>,
}

impl Patience {
    fn new(limit: Duration, form: &Departure) -> Self {
        let over = Box::pin(tokio::time::sleep(limit));
        Self { over, is_last_look: false, left: Arc::clone(&form.left) }
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    async fn wait<T>(
        &mut self,
        step: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, HttpError> {
        let mut step = pin!(step);
        loop {
            tokio::select! {
                biased;
                done = &mut step => return done.map_err(|error| self.failed(error)),
                () = &mut self.over => {}
            }
            if !self.has_left() {
                return Err(HttpError::NotSent(OutOfTime.into()));
            }
            if self.is_last_look {
                return Err(HttpError::TimedOut(OutOfTime.into()));
            }
            self.is_last_look = true;
            self.over.as_mut().reset(Instant::now() + LAST_LOOK);
        }
    }

    fn failed(&self, error: reqwest::Error) -> HttpError {
        let error = error.without_url();
        if !self.has_left() {
            HttpError::NotSent(error.into())
        } else if error.is_timeout() {
            HttpError::TimedOut(error.into())
        } else {
            HttpError::Broken(error)
        }
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
    async fn read(mut response: reqwest::Response, patience: &mut Patience) -> Self {
        let status = response.status();
        let headers = kept(response.headers());
        let expected = response.content_length().and_then(|length| usize::try_from(length).ok());
        // Room for all of it at once: a growing buffer would leave copies of the tokens behind.
        let capacity = expected.filter(|length| *length <= LONGEST_BODY).unwrap_or(LONGEST_BODY);
        let mut body = Zeroizing::new(Vec::with_capacity(capacity));
        let cut = loop {
            match patience.wait(response.chunk()).await {
                Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST_BODY => {
                    let room = LONGEST_BODY - body.len();
                    body.extend_from_slice(&chunk[..room]);
                    break Some(HttpError::TooLong);
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) => break Some(error),
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
/// the most. A date counts from the answer's own `Date`, since both are of one clock, else from
/// `now`.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds is a long pause too.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let pause = until.duration_since(date(headers).unwrap_or(now)).unwrap_or_default();
    Some(pause.min(LONGEST_PAUSE))
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

    use http_body::Body;

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

    #[test]
    fn a_form_leaves_once_and_not_after_its_time() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for (limit, leaves) in [(Duration::from_secs(3_600), true), (Duration::ZERO, false)] {
            let mut form = Departure::new(b"grant_type=refresh_token".to_vec().into(), limit);
            let left = Arc::clone(&form.left);
            let Poll::Ready(Some(asked)) = Pin::new(&mut form).poll_frame(&mut context) else {
                panic!("there is a form");
            };
            assert_eq!((asked.is_ok(), left.load(Ordering::Relaxed)), (leaves, leaves));
            assert!(matches!(Pin::new(&mut form).poll_frame(&mut context), Poll::Ready(None)));
        }
    }
}

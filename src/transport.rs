//! The transport: one origin, bounded, and nothing followed.

mod answer;
#[cfg(any(feature = "middleware", feature = "tower"))]
pub(crate) use answer::retry_after;
pub(crate) use answer::{Answer, Defect, Verdict};
mod content_coding;
#[cfg(feature = "testing")]
mod custom;

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use tokio::time::{Instant, Sleep};
use url::Url;
use zeroize::Zeroizing;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::endpoint;
use crate::error::Error;

/// The longest answer that is read, in bytes.
pub(crate) const LONGEST_BODY: usize = 64 * 1024;

/// The default user agent of token requests.
pub(crate) const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A timeout that never comes, in place of the app's own: the bound is that of the whole answer.
/// Longer ones make `reqwest` panic.
const NO_TIMEOUT: Duration = Duration::from_hours(24 * 365);

/// Grace for a response once its time is over. A process that was stopped, or a machine that was
/// suspended, wakes with its time over and the response in its buffers, which may hold the only
/// refresh token that lives.
const LATE_RESPONSE_GRACE: Duration = Duration::from_millis(500);

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
#[derive(Clone)]
pub struct HttpClient {
    sender: Sender,
    origin: url::Origin,
    timeout: Duration,
}

/// Without the client's own `Debug`, which shows the URLs of proxies with their passwords.
impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("origin", &self.origin.ascii_serialization())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A builder for an app to configure. Where both TLS features are in the tree, `reqwest` would take
/// the system's library.
pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder();
    #[cfg(feature = "rustls")]
    let builder = builder.tls_backend_rustls();
    builder
}

/// Puts on top of an app's settings what every client needs that carries a secret. `plain` clients
/// send some by plain `http` to a loopback host: directly, and to no other machine.
pub(crate) fn protected(builder: reqwest::ClientBuilder, plain: bool) -> reqwest::ClientBuilder {
    let builder = builder.connection_verbose(false);
    #[cfg(any(feature = "rustls", feature = "native-tls"))]
    let builder =
        builder.tls_danger_accept_invalid_certs(false).tls_danger_accept_invalid_hostnames(false);
    #[cfg(feature = "rustls")]
    let builder = builder.tls_sslkeylogfile(false);
    if !plain {
        return builder;
    }
    // The port is the URL's.
    let here = [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()];
    builder.no_proxy().resolve_to_addrs("localhost", &here)
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
    /// The answer is compressed in a way that cannot be read: its `Content-Encoding`.
    #[error("the answer is compressed, and cannot be read (Content-Encoding: {0:?})")]
    Compressed(String),
    /// The request is for another origin than the client's: it was not sent.
    #[error("the request is for another origin than this client's, it was not sent")]
    ForeignOrigin,
    /// The request is not one for a token endpoint, or a client other than ours failed.
    #[error("the request was not sent, or the HTTP client failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HttpClient {
    /// A client for `endpoint`, which must be `https`, or `http` on a loopback host. Proxies are
    /// taken from the environment, as `reqwest` does it, save for a loopback host.
    pub fn new(endpoint: &Url) -> Result<Self, Error> {
        Self::with(client_builder().user_agent(USER_AGENT), endpoint, Timeouts::default())
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
        let mut builder = protected(builder, endpoint.scheme() == "http")
            .https_only(endpoint.scheme() == "https")
            .read_timeout(NO_TIMEOUT)
            .connect_timeout(timeouts.connect)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            // Whatever features of reqwest the app has on: what is compressed would leave a copy.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            // Shorter than servers keep idle connections, so that few requests meet one that is
            // being closed: those would count as unanswered.
            .pool_idle_timeout(Duration::from_secs(5));
        if endpoint::is_loopback(endpoint) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| {
            Error::config("the HTTP client cannot be built").caused_by(source.without_url())
        })?;
        let sender = Sender::Reqwest(client);
        Ok(Self { sender, origin: endpoint.origin(), timeout: timeouts.request })
    }

    /// A client that sends by `client`, of any origin. The promises are that one's to keep.
    #[cfg(feature = "testing")]
    pub(crate) fn custom<C>(client: C) -> Self
    where
        C: for<'c> AsyncHttpClient<'c, Error: Send + Sync, Future: Send>,
        C: Send + Sync + 'static,
    {
        let origin = url::Origin::new_opaque();
        let timeout = Timeouts::default().request;
        Self { sender: Sender::Custom(Arc::new(client)), origin, timeout }
    }

    /// Posts `form` to `url`, of this client's origin, and waits at most `limit` for all of the
    /// answer.
    ///
    /// Boxed, so that what is built around it stays small: a refresh is a task of its own. The
    /// request is made at once, so that nothing of it has a place in the future.
    pub(crate) fn post(
        &self,
        url: Url,
        form: Form,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, HttpError>> + Send + '_>> {
        match &self.sender {
            Sender::Reqwest(client) => {
                let Form { mut headers, body } = form;
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                let form = DeadlineBody::new(body, limit);
                let mut deadline = ResponseDeadline::new(limit, &form);
                let sending = client
                    .post(url)
                    .headers(headers)
                    .body(reqwest::Body::wrap(form))
                    // A timeout of the app's would throw away a response within the grace.
                    .timeout(Duration::MAX)
                    .send();
                Box::pin(async move {
                    let response = deadline.wait(sending).await?;
                    Ok(Answer::read(response, &mut deadline).await)
                })
            }
            #[cfg(feature = "testing")]
            Sender::Custom(client) => Box::pin(custom::post(&**client, url, form, limit)),
        }
    }
}

/// How requests are sent.
#[derive(Clone)]
enum Sender {
    Reqwest(reqwest::Client),
    /// Reaches an embedded provider without a socket.
    #[cfg(feature = "testing")]
    Custom(Arc<dyn custom::CustomHttpClient>),
}

/// A form that is handed to the connection when it asks for it, unless its time is over by then: a
/// process that was stopped while it connected must not send, on waking, a refresh token that another
/// process has sent since.
struct DeadlineBody {
    form: Option<Bytes>,
    begun: Timestamp,
    limit: Duration,
    /// Whether the connection has taken it.
    sent: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the time was over")]
struct OutOfTime;

impl DeadlineBody {
    fn new(form: Zeroizing<Vec<u8>>, limit: Duration) -> Self {
        // One that is empty is never asked for.
        let form = Some(Bytes::from_owner(form)).filter(|form| !form.is_empty());
        let sent = Arc::new(AtomicBool::new(form.is_none()));
        Self { form, begun: SystemClock.now(), limit, sent }
    }
}

impl http_body::Body for DeadlineBody {
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
            self.sent.store(true, Ordering::Relaxed);
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

/// The deadline shared by all steps of receiving a response.
struct ResponseDeadline {
    over: Pin<Box<Sleep>>,
    in_grace: bool,
    sent: Arc<AtomicBool>,
}

impl ResponseDeadline {
    fn new(limit: Duration, form: &DeadlineBody) -> Self {
        let over = Box::pin(tokio::time::sleep(limit));
        Self { over, in_grace: false, sent: Arc::clone(&form.sent) }
    }

    fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
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
            if !self.was_sent() {
                return Err(HttpError::NotSent(OutOfTime.into()));
            }
            if self.in_grace {
                return Err(HttpError::TimedOut(OutOfTime.into()));
            }
            self.in_grace = true;
            self.over.as_mut().reset(Instant::now() + LATE_RESPONSE_GRACE);
        }
    }

    fn failed(&self, error: reqwest::Error) -> HttpError {
        let error = error.without_url();
        if !self.was_sent() {
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
            // RFC 6749 section 3.2.
            if parts.method != Method::POST {
                return Err(HttpError::Other("the token endpoint takes POST only".into()));
            }
            let form = Form { headers: parts.headers, body: Zeroizing::new(body) };
            let mut answer = self.post(url, form, self.timeout).await?;
            let status = match answer.verdict(&[]) {
                Verdict::Token(_) => StatusCode::OK,
                Verdict::Failure { refusal: Some(_), .. } if answer.status.is_success() => {
                    StatusCode::BAD_REQUEST
                }
                Verdict::Failure { refusal: Some(_), .. } => answer.status,
                Verdict::Failure { .. } => match answer.cut.take() {
                    Some(error) => return Err(error),
                    None if answer.status.is_success() => StatusCode::OK,
                    None => answer.status,
                },
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

/// A form on its way to the token endpoint.
pub(crate) struct Form {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use http_body::Body;

    use super::*;

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
            let mut form = DeadlineBody::new(b"grant_type=refresh_token".to_vec().into(), limit);
            let sent = Arc::clone(&form.sent);
            let Poll::Ready(Some(asked)) = Pin::new(&mut form).poll_frame(&mut context) else {
                panic!("there is a form");
            };
            assert_eq!((asked.is_ok(), sent.load(Ordering::Relaxed)), (leaves, leaves));
            assert!(matches!(Pin::new(&mut form).poll_frame(&mut context), Poll::Ready(None)));
        }
    }
}

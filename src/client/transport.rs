//! The transport: one origin, bounded, and nothing followed.

mod answer;
#[cfg(any(feature = "middleware", feature = "tower"))]
pub(crate) use answer::retry_after;
pub(crate) use answer::{Answer, Defect, Verdict};
mod content_coding;
#[cfg(feature = "testing")]
mod custom;
mod deadline;
use deadline::ResponseDeadline;
mod error;
pub use error::HttpError;
mod form;
use form::DeadlineBody;
pub(crate) use form::Form;
mod read_buffer;
mod wiped_json;

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
#[cfg(feature = "testing")]
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use url::Url;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::wire::endpoint::{self, Origin};

/// The default user agent of token requests.
pub(crate) const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A timeout that never comes, in place of the app's own: the bound is that of the whole answer.
/// Longer ones make `reqwest` panic.
const NO_TIMEOUT: Duration = Duration::from_hours(24 * 365);

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

impl Timeouts {
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (name, timeout) in
            [("connect_timeout", self.connect), ("request_timeout", self.request)]
        {
            if timeout.is_zero() {
                return Err(Error::config(format!("{name} is 0: nothing could be sent")));
            }
        }
        Ok(())
    }
}

/// An HTTP client for one token endpoint, on reqwest 0.13, for apps that use
/// [`BasicClient`](crate::basic::BasicClient) with [`oauth2`]'s `request_async`.
///
/// It is not needed: the reqwest 0.12 clients of `oauth2`, async and blocking, fit unchanged. What
/// it adds are bounds, and answers that `oauth2` alone does not read.
///
/// It sends to the origin it was made for and nowhere else, follows no redirect, retries nothing,
/// waits 5 s for a connection and 30 s for the whole answer, reads at most 64 KiB, and wipes the
/// request's body. `oauth2` judges by status and content type, and the provider's answers are what
/// they are whatever those say: so every 2xx reaches it as 200 and without a content type, and a
/// refusal that came with a 2xx as 400.
#[derive(Clone)]
pub struct HttpClient {
    sender: Sender,
    /// A URL of the origin that it sends to.
    home: Option<Url>,
    timeout: Duration,
}

/// Without the client's own `Debug`, which shows the URLs of proxies with their passwords.
impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("origin", &self.home.as_ref().map(|home| home.origin().ascii_serialization()))
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

impl HttpClient {
    /// A client for `endpoint`, with the settings that [`builder`](Self::builder) begins with.
    ///
    /// # Errors
    ///
    /// Those of [`HttpClientBuilder::build`].
    pub fn new(endpoint: &Url) -> Result<Self, Error> {
        Self::builder(endpoint).build()
    }

    /// Begins a client for `endpoint`, which must be `https`, or `http` on a loopback host. Proxies
    /// are taken from the environment, as `reqwest` does it, save for a loopback host.
    ///
    /// ```
    /// use hurdlr_oauth2::reqwest::Proxy;
    /// use hurdlr_oauth2::{ApiVersion, Environment, HttpClient};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = ApiVersion::V4.token_url(&Environment::Sandbox)?;
    /// let proxy = Proxy::https("http://proxy.example.com:3128")?;
    /// let client = HttpClient::builder(&endpoint)
    ///     .reqwest(|builder| builder.proxy(proxy).user_agent("my-app/7"))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(endpoint: &Url) -> HttpClientBuilder {
        HttpClientBuilder {
            endpoint: endpoint.clone(),
            timeouts: Timeouts::default(),
            reqwest: client_builder().user_agent(USER_AGENT),
        }
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
            // The app may have these features of reqwest on, and a decompressed body would leave a
            // copy.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            // A malformed header line must not lose a token that may be the only one.
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
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
        Ok(Self { sender, home: Some(endpoint.clone()), timeout: timeouts.request })
    }

    /// A client that sends by `client`, of any origin. The promises are that one's to keep.
    #[cfg(feature = "testing")]
    pub(crate) fn custom<C>(client: C) -> Self
    where
        C: for<'c> AsyncHttpClient<'c, Error: Send + Sync, Future: Send>,
        C: Send + Sync + 'static,
    {
        let timeout = Timeouts::default().request;
        Self { sender: Sender::Custom(Arc::new(client)), home: None, timeout }
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

/// Settings of an [`HttpClient`]; [`build`](Self::build) validates them.
#[must_use = "a builder does nothing until it is built"]
pub struct HttpClientBuilder {
    endpoint: Url,
    timeouts: Timeouts,
    reqwest: reqwest::ClientBuilder,
}

impl HttpClientBuilder {
    /// How long to wait for a connection, TLS included; 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// How long to wait for one whole answer; 30 s by default.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Configures the reqwest 0.13 client below, such as with roots, proxies and a user agent of
    /// your own. The settings that the promises of [`HttpClient`] need come on top of yours: the
    /// table of [`HurdlrBuilder::reqwest`](crate::HurdlrBuilder::reqwest) lists them.
    pub fn reqwest(
        mut self,
        configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        self.reqwest = configure(self.reqwest);
        self
    }

    /// Validates the settings and makes the client.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) where secrets would not be protected on
    /// their way to the endpoint, where a timeout is 0, or where `reqwest` refuses its settings.
    pub fn build(self) -> Result<HttpClient, Error> {
        self.timeouts.check()?;
        HttpClient::with(self.reqwest, &self.endpoint, self.timeouts)
    }
}

impl fmt::Debug for HttpClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClientBuilder")
            .field("origin", &self.endpoint.origin().ascii_serialization())
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
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
            let home = self.home.as_ref().and_then(Origin::of_url);
            let url = url.filter(|url| home.is_some() && Origin::of_url(url) == home);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_that_could_be_overheard_is_refused() {
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

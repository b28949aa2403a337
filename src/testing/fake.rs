//! `FakeHurdlr`: the public handle to the fake provider.

use std::{
    fmt, io,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::Router;
use http::{HeaderMap, Method, StatusCode, header::LOCATION};
use oauth2::HttpRequest;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use url::{Url, form_urlencoded};

#[cfg(feature = "rustls")]
use super::tls::Identity;
use super::{
    answer::ErrorStyle,
    authorize,
    clock::Clock,
    fake_api::FakeApi,
    fault::Fault,
    in_memory::InMemoryHttpClient,
    journal::{Counts, RecordedRequest},
    ledger::{Ledger, Rotation},
    listener::Server,
    lock::lock,
    provider::{Provider, Settings},
    resources::Resources,
    router::router,
    traffic::Traffic,
    version::Version,
};

/// A whole OAuth provider for tests that speaks like Hurdlr's reference.
///
/// It serves, on loopback or in memory:
///
/// - `POST /rest/v4/auth/token` and `/rest/v5/auth/token`: the grants `authorization_code`,
///   `refresh_token` and `client_credentials`, answered byte for byte as the reference prints it
///   (no `token_type`), and validated strictly;
/// - `POST /v6/auth/token`: the same grants as v6 has them, for a client that proves itself by HTTP
///   Basic and by nothing else: `scope` is `read` or `write`, `userId` may be left out, a code must
///   come with its `redirect_uri`, tokens live an hour, and only a code brings a refresh token;
/// - `POST /v6/auth/revoke`: RFC 7009. A refresh token dies with all tokens of its login; one that
///   is not known is a success;
/// - `/oauth/authorize`: a page at which a person logs in and consents;
/// - the [`api`](Self::api) behind its tokens: `/rest/v4/me` says who the token speaks for and
///   `/rest/v4/expenses` has three expenses of theirs, under `/rest/v5` and `/v6` as well; and what
///   a test adds.
///
/// It keeps the versions apart, since the reference does not say that one takes what another has
/// issued: a token is good at its own version only, be it as Bearer, to refresh or to revoke.
/// Logins have one page for all versions, so a code is good at any of them; one that was asked for
/// with a scope is good at v6 only, which has scopes.
///
/// Clones are handles to the same provider. Its server and all its connections end when the last
/// handle is dropped; an [`InMemoryHttpClient`] works on.
///
/// ```
/// use hurdlr_oauth2::testing::{FakeHurdlr, Rotation};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let fake = FakeHurdlr::builder().rotation(Rotation::KillFamily).start().await?;
/// println!("a provider listens at {}", fake.base_url());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FakeHurdlr {
    provider: Arc<Provider>,
    router: Router,
    /// Held for its `Drop`. `None` in memory.
    _server: Option<Arc<Server>>,
}

impl FakeHurdlr {
    /// A provider whose settings are still open.
    pub fn builder() -> FakeHurdlrBuilder {
        FakeHurdlrBuilder::default()
    }

    /// Starts a provider with default settings on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// Those of binding a socket.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing is left.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// A provider with default settings and without a socket, for
    /// [`http_client`](Self::http_client).
    #[must_use]
    pub fn in_memory() -> Self {
        Self::builder().in_memory()
    }

    /// Where it is: `http://127.0.0.1:41234/`, or `https://localhost:41234/` with a certificate. In
    /// memory `http://127.0.0.1:1/`, where nothing listens.
    #[must_use]
    pub fn base_url(&self) -> Url {
        self.provider.base_url.clone()
    }

    /// The authorization endpoint.
    #[must_use]
    pub fn authorize_url(&self) -> Url {
        self.at(authorize::PATH)
    }

    /// The authorization endpoint for a test in a browser: `user` is logged in, and has consented
    /// before, so that the provider sends the browser back at once, without a click. For
    /// [`authorize_url`](crate::HurdlrBuilder::authorize_url).
    ///
    /// ```
    /// use hurdlr_oauth2::testing::FakeHurdlr;
    ///
    /// let fake = FakeHurdlr::in_memory();
    /// let url = fake.consented_url("ann");
    /// assert!(url.as_str().ends_with("/oauth/authorize?consented_user=ann"));
    /// ```
    #[must_use]
    pub fn consented_url(&self, user: &str) -> Url {
        let mut url = self.authorize_url();
        url.query_pairs_mut().append_pair(authorize::CONSENTED_USER, user);
        url
    }

    /// The protected resource, under v4; v5 and v6 have the same. It says who the access token
    /// speaks for, and answers 401 to a dead one. [`api`](Self::api) has more.
    #[must_use]
    pub fn resource_url(&self) -> Url {
        self.at(Version::V4.resource_path())
    }

    /// The API that the access tokens are for: its data, its faults, and the calls it received.
    #[must_use]
    pub fn api(&self) -> FakeApi<'_> {
        FakeApi(&self.provider)
    }

    /// The id of the one client it knows.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.provider.client_id
    }

    /// That client's secret.
    #[must_use]
    pub fn client_secret(&self) -> SecretString {
        self.provider.client_secret.clone()
    }

    /// The way to this provider without a socket. It works for a provider with a socket too, so
    /// that both ways can be used on the same state.
    #[must_use]
    pub fn http_client(&self) -> InMemoryHttpClient {
        InMemoryHttpClient::new(self.router.clone())
    }

    /// Turns the provider's clock forward. Nobody else's clock moves.
    pub fn advance_clock(&self, by: Duration) {
        self.provider.clock.advance(by);
    }

    /// The time by the provider's clock: that of its `Date` header, of `created_at` and of every
    /// expiry. It starts with the wall clock and then follows tokio's.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.provider.now()
    }

    /// Changes the rotation policy from the next request on.
    pub fn set_rotation(&self, rotation: Rotation) {
        lock(&self.provider.settings).rotation = rotation;
    }

    /// Changes how refusals are worded from the next request on.
    pub fn set_error_style(&self, style: ErrorStyle) {
        lock(&self.provider.settings).error_style = style;
    }

    /// Changes how long access tokens issued from now on live. `expires_in` says whole seconds.
    pub fn set_token_life(&self, life: Duration) {
        lock(&self.provider.settings).token_life = Some(life);
    }

    /// Changes how long refresh tokens issued from now on live; `None`, the default: without end.
    pub fn set_refresh_token_life(&self, life: Option<Duration>) {
        lock(&self.provider.settings).refresh_life = life;
    }

    /// Lets a test change every token object before it is sent: remove `refresh_token`, set
    /// `expires_in` to 0, give `created_at` in milliseconds. What the provider remembers does not
    /// change.
    ///
    /// A reshaped answer is compact JSON, its keys in alphabetical order.
    pub fn reshape(&self, reshape: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static) {
        lock(&self.provider.settings).reshape = Some(Arc::new(reshape));
    }

    /// Back to token objects as the reference prints them.
    pub fn clear_reshape(&self) {
        lock(&self.provider.settings).reshape = None;
    }

    /// Queues a fault: each token request takes one, and each request for a revocation, in order of
    /// arrival.
    pub fn fault_next(&self, fault: Fault) {
        self.provider.tokens.faults.push(fault);
    }

    /// Asks `plan` for the fault of each token request that finds the queue empty. It may call
    /// this handle; a clone of it within the plan keeps the provider alive until
    /// [`clear_faults`](Self::clear_faults).
    pub fn fault_plan(
        &self,
        plan: impl Fn(&RecordedRequest) -> Option<Fault> + Send + Sync + 'static,
    ) {
        self.provider.tokens.faults.set_plan(Arc::new(plan));
    }

    /// Forgets queue and plan. Requests that already took a fault keep it.
    pub fn clear_faults(&self) {
        self.provider.tokens.faults.clear();
    }

    /// Acts as the person who logs in as `user` and allows what `authorize_url` asks for. Returns
    /// the redirect back, with `code` and `state`; or with `error`, if the provider refuses the
    /// request by redirect.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where a person would see an error page instead.
    ///
    /// # Cancel safety
    ///
    /// The person may have decided, and a code be granted that nobody uses.
    pub async fn consent(&self, authorize_url: &Url, user: &str) -> io::Result<Url> {
        self.decide(authorize_url, &[("decision", "allow"), ("user", user)]).await
    }

    /// Acts as the person who refuses. Returns the redirect back, with `error=access_denied` and
    /// `state`.
    ///
    /// # Errors
    ///
    /// Those of [`consent`](Self::consent).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the refusal can be repeated.
    pub async fn deny(&self, authorize_url: &Url) -> io::Result<Url> {
        self.decide(authorize_url, &[("decision", "deny")]).await
    }

    /// The token requests, and those for a revocation, since the start or
    /// [`clear_requests`](Self::clear_requests), in order of arrival. Empty where
    /// [recording](FakeHurdlrBuilder::record) is off.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.provider.tokens.journal.requests()
    }

    /// Forgets the requests and sets all counts to zero. A request in flight is not counted when
    /// it ends.
    pub fn clear_requests(&self) {
        self.provider.tokens.journal.clear();
    }

    /// How many requests there were.
    #[must_use]
    pub fn count(&self) -> Counts {
        self.provider.tokens.journal.counts()
    }

    /// Waits until so many token requests have arrived, answered or not, since the start or
    /// [`clear_requests`](Self::clear_requests).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn arrived(&self, requests: u64) {
        self.provider.tokens.journal.arrived(requests).await;
    }

    /// Revokes every code and token of the user, as an administrator would.
    pub fn revoke_everything(&self, user: &str) {
        lock(&self.provider.ledger).revoke_user(user);
    }

    /// How many access tokens of the user are alive, of the newest 256 issued.
    #[must_use]
    pub fn tokens_alive(&self, user: &str) -> usize {
        lock(&self.provider.ledger).access_tokens_alive(user, self.now())
    }

    /// Whether the API of its version would take this access token.
    #[must_use]
    pub fn is_alive(&self, access_token: &str) -> bool {
        lock(&self.provider.ledger).bearer(access_token, None, self.now()).is_ok()
    }

    /// Whether this refresh token is a current one. One that a grace window still answers for is
    /// not.
    #[must_use]
    pub fn refresh_is_alive(&self, refresh_token: &str) -> bool {
        lock(&self.provider.ledger).refresh_is_alive(refresh_token, self.now())
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.base_url();
        url.set_path(path);
        url
    }

    /// Goes the person's way: first the page, then its form.
    async fn decide(&self, authorize_url: &Url, decision: &[(&str, &str)]) -> io::Result<Url> {
        if authorize_url.path() != authorize::PATH {
            return Err(invalid("this is not a URL of the authorization endpoint"));
        }
        let query = authorize_url.query().unwrap_or_default();
        let page = self.browse(Method::GET, query, Vec::new()).await?;
        if page.0 == StatusCode::SEE_OTHER {
            return location(&page.1);
        }
        let form =
            form_urlencoded::Serializer::new(query.to_owned()).extend_pairs(decision).finish();
        let (_, headers) = self.browse(Method::POST, "", form.into_bytes()).await?;
        location(&headers)
    }

    async fn browse(
        &self,
        method: Method,
        query: &str,
        form: Vec<u8>,
    ) -> io::Result<(StatusCode, HeaderMap)> {
        let mut url = self.authorize_url();
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        let mut request = HttpRequest::new(form);
        *request.method_mut() = method;
        *request.uri_mut() = url.as_str().parse().map_err(io::Error::other)?;
        let response = self.http_client().send(request).await.map_err(io::Error::other)?;
        if response.status() == StatusCode::BAD_REQUEST {
            return Err(invalid(
                "the provider shows an error page: unknown client or redirect URI",
            ));
        }
        let (parts, _) = response.into_parts();
        Ok((parts.status, parts.headers))
    }
}

fn location(headers: &HeaderMap) -> io::Result<Url> {
    headers
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .and_then(|location| Url::parse(location).ok())
        .ok_or_else(|| invalid("the provider did not redirect"))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl fmt::Debug for FakeHurdlr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeHurdlr")
            .field("base_url", &self.provider.base_url.as_str())
            .field("client_id", &self.provider.client_id)
            .finish_non_exhaustive()
    }
}

/// The settings of a [`FakeHurdlr`].
#[derive(Clone, Debug)]
#[must_use]
pub struct FakeHurdlrBuilder {
    port: u16,
    rotation: Rotation,
    error_style: ErrorStyle,
    token_life: Option<Duration>,
    refresh_life: Option<Duration>,
    client_id: String,
    client_secret: SecretString,
    redirect_uri: Option<String>,
    issuer: Option<String>,
    ignore_pkce: bool,
    record: bool,
    check_bearer: bool,
    #[cfg(feature = "rustls")]
    identity: Option<Identity>,
}

impl Default for FakeHurdlrBuilder {
    fn default() -> Self {
        Self {
            port: 0,
            rotation: Rotation::default(),
            error_style: ErrorStyle::default(),
            token_life: None,
            refresh_life: None,
            client_id: "fake-client".to_owned(),
            client_secret: "fake-secret".into(),
            redirect_uri: None,
            issuer: None,
            ignore_pkce: false,
            record: true,
            check_bearer: false,
            #[cfg(feature = "rustls")]
            identity: None,
        }
    }
}

impl FakeHurdlrBuilder {
    /// The port on 127.0.0.1. 0, the default: a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The policy for the old refresh token at a refresh.
    pub fn rotation(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// How refusals are worded.
    pub fn error_style(mut self, style: ErrorStyle) -> Self {
        self.error_style = style;
        self
    }

    /// How long access tokens live; unless set as in the reference's examples: 90 days, under v6 an
    /// hour.
    pub fn token_life(mut self, life: Duration) -> Self {
        self.token_life = Some(life);
        self
    }

    /// How long refresh tokens live; without end unless set.
    pub fn refresh_token_life(mut self, life: Duration) -> Self {
        self.refresh_life = Some(life);
        self
    }

    /// The one client it knows; `fake-client` with `fake-secret` unless set.
    pub fn client(mut self, id: impl Into<String>, secret: SecretString) -> Self {
        self.client_id = id.into();
        self.client_secret = secret;
        self
    }

    /// The registered redirect URI, which every login must then name letter by letter (RFC 9700
    /// section 2.1). Unless set, any absolute one will do, and the token request must repeat it if
    /// it names one.
    pub fn redirect_uri(mut self, uri: impl Into<String>) -> Self {
        self.redirect_uri = Some(uri.into());
        self
    }

    /// The issuer that every callback names as `iss` (RFC 9207); none unless set.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// Whether v4 and v5 ignore the PKCE verifier of a code, whose reference does not list it; no
    /// unless set. v6 checks it in any case.
    pub fn ignore_pkce(mut self, ignore: bool) -> Self {
        self.ignore_pkce = ignore;
        self
    }

    /// Whether token requests are kept for [`requests`](FakeHurdlr::requests), and calls to the API
    /// for [`FakeApi::requests`]; yes unless set.
    /// A benchmark of a million requests wants the counts only.
    pub fn record(mut self, record: bool) -> Self {
        self.record = record;
        self
    }

    /// Whether a refresh whose `Authorization: Bearer` names a dead or expired access token is
    /// refused with 401 and `EXPIRED_TOKEN`; no unless set. The reference lists that header as
    /// required, and does not say whether it is looked at.
    pub fn check_bearer(mut self, check: bool) -> Self {
        self.check_bearer = check;
        self
    }

    /// Serves https with this certificate, in PEM, and its private key. The certificate has to name
    /// `localhost`, which is the host of [`base_url`](FakeHurdlr::base_url) then; clients have to
    /// trust it. With the feature `rustls`.
    ///
    /// The certificate is yours to make, so that this feature brings no crate for it. Here by
    /// `rcgen`:
    ///
    /// ```
    /// # #[cfg(feature = "rustls")] {
    /// use hurdlr_oauth2::testing::FakeHurdlr;
    /// use hurdlr_oauth2::{Hurdlr, UserId, reqwest};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    /// let root = reqwest::Certificate::from_der(issued.cert.der())?;
    /// let key = issued.signing_key.serialize_pem();
    /// let fake = FakeHurdlr::builder().tls(issued.cert.pem(), key.into()).start().await?;
    /// assert_eq!(fake.base_url().scheme(), "https");
    ///
    /// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    ///     .environment(fake.base_url())
    ///     .reqwest(move |client| client.tls_certs_only([root]))
    ///     .build()?;
    /// hurdlr.client_credentials(&UserId::new("ann")?).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    pub fn tls(mut self, certificate_pem: impl Into<String>, key_pem: SecretString) -> Self {
        self.identity = Some(Identity { certificate_pem: certificate_pem.into(), key_pem });
        self
    }

    /// The provider without a socket. Port and certificate are of no account.
    #[must_use]
    pub fn in_memory(self) -> FakeHurdlr {
        // tcpmux, which nobody runs: should the URL be used with a socket, it is refused.
        let (provider, router) = self.provider(local_url("http://127.0.0.1", 1));
        FakeHurdlr { provider, router, _server: None }
    }

    /// Starts the provider on 127.0.0.1. It needs tokio's runtime, and serves as long as that
    /// lives and a handle is held.
    ///
    /// # Errors
    ///
    /// Those of the socket, such as `AddrInUse`, and `InvalidInput` for a certificate or a key that
    /// cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, nothing is left.
    pub async fn start(self) -> io::Result<FakeHurdlr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await?;
        let port = listener.local_addr()?.port();
        #[cfg(feature = "rustls")]
        if let Some(identity) = &self.identity {
            let acceptor = identity.acceptor()?;
            let (provider, router) = self.provider(local_url("https://localhost", port));
            let server = Server::spawn_tls(listener, router.clone(), acceptor);
            return Ok(FakeHurdlr { provider, router, _server: Some(Arc::new(server)) });
        }
        let (provider, router) = self.provider(local_url("http://127.0.0.1", port));
        let server = Server::spawn(listener, router.clone());
        Ok(FakeHurdlr { provider, router, _server: Some(Arc::new(server)) })
    }

    fn provider(self, base_url: Url) -> (Arc<Provider>, Router) {
        let provider = Arc::new(Provider {
            base_url,
            client_id: self.client_id,
            client_secret: self.client_secret,
            redirect_uri: self.redirect_uri,
            issuer: self.issuer,
            ignores_pkce: self.ignore_pkce,
            checks_bearer: self.check_bearer,
            clock: Clock::start(),
            settings: Mutex::new(Settings {
                rotation: self.rotation,
                error_style: self.error_style,
                token_life: self.token_life,
                refresh_life: self.refresh_life,
                reshape: None,
            }),
            ledger: Mutex::new(Ledger::default()),
            resources: Resources::default(),
            tokens: Traffic::new(self.record),
            api: Traffic::new(self.record),
        });
        let router = router(&provider);
        (provider, router)
    }
}

#[expect(clippy::expect_used, reason = "a port is all that varies, and every port makes a URL")]
fn local_url(host: &str, port: u16) -> Url {
    format!("{host}:{port}/").parse().expect("URLs of this machine parse")
}

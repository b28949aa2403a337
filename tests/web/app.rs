//! An app with the login routes, the browsers that come to it, and all that is said meanwhile.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::{Redirect, Response};
use cookie::{Cookie, CookieJar, Key};
use http::request::Parts;
use http::{HeaderMap, Request};
use hurdlr_oauth2::secrecy::{SecretSlice, SecretString};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, FaultyStore, ManualClock};
use hurdlr_oauth2::web::{FailureReason, LoginConfig, LoginFailure, login_routes};
use hurdlr_oauth2::{Hurdlr, HurdlrBuilder, TokenManager, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;
use tracing_subscriber::filter::LevelFilter;

pub(crate) const KEY: u8 = 1;
pub(crate) const OTHER_KEY: u8 = 2;
/// The headers by which a browser says that a page of the app sent it.
pub(crate) const OWN_PAGE: [(&str, &str); 2] =
    [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")];
pub(crate) const REDIRECT_URI: &str = "https://app.example.com/hurdlr/callback";

/// Everything that replicas of one app share.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) fake: FakeHurdlr,
    pub(crate) clock: ManualClock,
    pub(crate) store: FaultyStore<MemoryStore>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Log::of_everything();
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        Self { fake: FakeHurdlr::in_memory(), clock, store }
    }

    pub(crate) fn builder(&self) -> HurdlrBuilder {
        self.builder_of(self.fake.client_id()).redirect_uri(REDIRECT_URI)
    }

    pub(crate) fn builder_of(&self, client_id: &str) -> HurdlrBuilder {
        self.builder_by(client_id, self.fake.client_secret())
    }

    pub(crate) fn builder_by(&self, client_id: &str, secret: SecretString) -> HurdlrBuilder {
        Hurdlr::builder(client_id, secret)
            .environment(self.fake.base_url())
            .authorize_url(self.fake.authorize_url())
            .http_client(self.fake.http_client())
            .clock(self.clock.clone())
    }

    pub(crate) fn manager(&self, hurdlr: HurdlrBuilder) -> TokenManager {
        TokenManager::builder(hurdlr.build().unwrap(), self.store.clone()).build().unwrap()
    }
}

pub(crate) fn key(of: u8) -> SecretSlice<u8> {
    vec![of; 64].into()
}

/// An app whose users are named by a header.
pub(crate) async fn signed_in(parts: Parts) -> Result<UserId, Redirect> {
    let user = parts.headers.get("x-user").and_then(|user| user.to_str().ok());
    user.and_then(|user| user.parse().ok()).ok_or(Redirect::to("/sign-in"))
}

pub(crate) fn config(
    of: u8,
    hear: impl Fn(&LoginFailure) + Clone + Send + Sync + 'static,
) -> LoginConfig {
    LoginConfig::new(key(of), signed_in).return_to("/home").on_failure(move |failure| {
        hear(&failure);
        async move { failure }
    })
}

fn name(reason: &FailureReason) -> String {
    match reason {
        FailureReason::Failed(error) => match error.callback_problem() {
            Some(problem) => format!("{problem:?}"),
            None => format!("{:?}", error.kind()),
        },
        other => format!("{other:?}"),
    }
}

/// The user of a failure, and whether they were connected.
type Whose = (Option<String>, bool);

/// One replica.
pub(crate) struct App {
    pub(crate) site: Site,
    pub(crate) manager: TokenManager,
    router: Router,
    failures: Arc<Mutex<Vec<String>>>,
    whose: Arc<Mutex<Vec<Whose>>>,
    said: Mutex<String>,
    carried: Mutex<Vec<String>>,
}

impl App {
    pub(crate) fn new() -> Self {
        Self::with(Site::builder, |config| config)
    }

    pub(crate) fn with(
        hurdlr: impl FnOnce(&Site) -> HurdlrBuilder,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        Self::on(Site::new(), hurdlr, change)
    }

    pub(crate) fn on(
        site: Site,
        hurdlr: impl FnOnce(&Site) -> HurdlrBuilder,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        let hurdlr = hurdlr(&site);
        Self::made(site, hurdlr, KEY, change)
    }

    pub(crate) fn keyed(
        site: Site,
        of: u8,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        let hurdlr = site.builder();
        Self::made(site, hurdlr, of, change)
    }

    fn made(
        site: Site,
        hurdlr: HurdlrBuilder,
        of: u8,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        let manager = site.manager(hurdlr);
        Self::serving(site, manager, of, change)
    }

    /// With a manager of the test's own.
    pub(crate) fn of(
        site: Site,
        manager: TokenManager,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        Self::serving(site, manager, KEY, change)
    }

    fn serving(
        site: Site,
        manager: TokenManager,
        of: u8,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
    ) -> Self {
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let whose = Arc::<Mutex<Vec<_>>>::default();
        let (heard, heard_of) = (Arc::clone(&failures), Arc::clone(&whose));
        let config = config(of, move |failure| {
            heard.lock().unwrap().push(name(failure.reason()));
            let user = failure.user().map(|user| user.as_str().to_owned());
            heard_of.lock().unwrap().push((user, failure.is_connected()));
        });
        let router = login_routes(manager.clone(), change(config)).unwrap();
        let (said, carried) = (Mutex::default(), Mutex::default());
        Self { site, manager, router, failures, whose, said, carried }
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    pub(crate) fn whose_failures(&self) -> Vec<Whose> {
        self.whose.lock().unwrap().clone()
    }

    pub(crate) fn clear_failures(&self) {
        self.failures.lock().unwrap().clear();
    }

    pub(crate) async fn is_connected(&self, user: &str) -> bool {
        self.manager.user(&UserId::new(user).unwrap()).token().await.is_ok()
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        Answer::read(self.router.clone().oneshot(request).await.unwrap()).await
    }

    /// The person allows what the app asks for; the path and query they come back to.
    pub(crate) async fn consent(&self, began: &Answer, user: &str) -> String {
        let url = began.location().parse().unwrap();
        let back = self.site.fake.consent(&url, user).await.unwrap();
        let secrets = back.query_pairs().map(|(_, value)| value.into_owned());
        self.carried.lock().unwrap().extend(secrets);
        path_of(&back)
    }

    /// Asserts that no code, state or verifier is in an answer or in the log. The redirect to the
    /// provider has to carry the state, and is left out.
    pub(crate) fn assert_nothing_leaked(&self) {
        let mut secrets = self.carried.lock().unwrap().clone();
        let sent = self.site.fake.requests();
        secrets.extend(sent.iter().filter_map(|request| request.field("code_verifier")));
        assert!(secrets.len() >= 2);
        let (log, said) = (Log::of_everything().text(), self.said.lock().unwrap());
        assert!(log.contains("hurdlr_oauth2") && !said.is_empty());
        for secret in secrets {
            let piece = &secret[..secret.len().min(16)];
            assert!(!said.contains(piece), "an answer has {piece}: {said}");
            assert!(!log.contains(piece), "the log has {piece}");
        }
    }
}

pub(crate) fn path_of(url: &url::Url) -> String {
    url[url::Position::BeforePath..].to_owned()
}

/// A browser: who is signed in, and its cookies.
#[derive(Clone)]
pub(crate) struct Browser {
    pub(crate) user: String,
    pub(crate) cookies: BTreeMap<String, String>,
}

impl Browser {
    pub(crate) fn of(user: &str) -> Self {
        Self { user: user.into(), cookies: BTreeMap::new() }
    }

    /// Follows a link on a page of the app.
    pub(crate) async fn get(&mut self, app: &App, path: &str) -> Answer {
        self.send(app, "GET", path, &OWN_PAGE).await
    }

    pub(crate) async fn disconnect(&mut self, app: &App, headers: &[(&str, &str)]) -> Answer {
        self.send(app, "POST", "/hurdlr/disconnect", headers).await
    }

    /// Begins a login that the person allows: the path and query they come back to.
    pub(crate) async fn begin(&mut self, app: &App, user: &str) -> String {
        let began = self.get(app, "/hurdlr/connect").await;
        app.consent(&began, user).await
    }

    pub(crate) fn only_cookie(&self) -> (String, String) {
        assert_eq!(self.cookies.len(), 1);
        let (name, value) = self.cookies.iter().next().unwrap();
        (name.clone(), value.clone())
    }

    /// Follows a link with a `Cookie` header of the test's own, and keeps no cookies.
    pub(crate) async fn raw(&self, app: &App, path: &str, cookies: &[u8]) -> Answer {
        let mut request = Request::get(path).header("x-user", &self.user).header("cookie", cookies);
        for (name, value) in OWN_PAGE {
            request = request.header(name, value);
        }
        app.answer(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn send(
        &mut self,
        app: &App,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !self.user.is_empty() {
            request = request.header("x-user", &self.user);
        }
        for (name, value) in &self.cookies {
            request = request.header("cookie", format!("{name}={value}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = app.answer(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("cache-control"), "no-store", "{method} {path}");
        // Of these URLs only the callback's holds a code, and a browser sends `Origin: null` with
        // the form of a page under `no-referrer`.
        let is_callback = path.contains("/callback") || path.contains("code=");
        let policy = if is_callback { "no-referrer" } else { "same-origin" };
        assert_eq!(answer.header("referrer-policy"), policy, "{method} {path}");
        for cookie in answer.set_cookies() {
            let (pair, attributes) = cookie.split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.into(), value.into());
            }
        }
        let to_provider = answer.headers.get("location").is_some_and(|location| {
            location.to_str().unwrap().starts_with(app.site.fake.base_url().as_str())
        });
        if !to_provider {
            let mut said = app.said.lock().unwrap();
            writeln!(said, "{:?}\n{}", answer.headers, answer.body).unwrap();
        }
        answer
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// The answer of some router to Ann.
pub(crate) async fn answer(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("x-user", "ann");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    Answer::read(router.clone().oneshot(request).await.unwrap()).await
}

impl Answer {
    async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.into()).unwrap();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn location(&self) -> &str {
        self.header("location")
    }

    pub(crate) fn set_cookies(&self) -> Vec<String> {
        let all = self.headers.get_all("set-cookie").iter();
        all.map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

/// The plaintext of a cookie, if this key made it.
pub(crate) fn cookie_of(name: &str, value: &str, of: u8) -> Option<String> {
    let sent = Cookie::new(name.to_owned(), value.to_owned());
    let opened = CookieJar::new().private(&Key::from(&[of; 64])).decrypt(sent);
    opened.map(|cookie| cookie.value().to_owned())
}

/// The status of a real server for a callback with a query of so many bytes.
pub(crate) async fn raw_status(app: &App, bytes: usize) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, app.router.clone()).into_future());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head =
        format!("GET /hurdlr/callback?state={} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(bytes));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    server.abort();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

/// Everything that is logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The log of this process, from its first use on.
    pub(crate) fn of_everything() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(LevelFilter::TRACE)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
            log
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

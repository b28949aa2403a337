//! Both edges keep the same promises, on one table of cases and against real servers.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

#[path = "../support/site.rs"]
mod site;
#[path = "../support/mod.rs"]
mod support;

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hurdlr_oauth2::manager::{TokenEvent, UserHandle};
use hurdlr_oauth2::reqwest_middleware::{self, ClientBuilder, ClientWithMiddleware, Next};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate, ManualClock};
use hurdlr_oauth2::{
    ApiVersion, CallPolicy, Clock, Error, ErrorKind, Partner, PartnerUser, Timestamp, Token,
    TokenLayer, TokenManager, TokenMiddleware, UserId, reqwest,
};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use reqwest::ResponseBuilderExt;
use site::{HOUR, SECOND, Site, access};
use support::{RawServer, Reply, everything_said};
use tokio::sync::{Barrier, Notify};
use tower::limit::ConcurrencyLimit;
use tower::timeout::Timeout;
use tower::timeout::error::Elapsed;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};
use tower_http::follow_redirect::FollowRedirectLayer;

type BoxError = Box<dyn StdError + Send + Sync>;
type Call<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

const SHORT: Duration = Duration::from_secs(30);
const HEADERS: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

/// A clock on which short waits are over at once. It remembers them.
#[derive(Clone, Debug)]
struct Hasty {
    clock: ManualClock,
    waits: Arc<Mutex<Vec<Duration>>>,
}

impl Clock for Hasty {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        if duration > SHORT {
            return self.clock.sleep(duration);
        }
        self.waits.lock().unwrap().push(duration);
        self.clock.advance(duration);
        Box::pin(tokio::task::yield_now())
    }
}

/// A user with a token that is two minutes old, and what is needed to look at it.
struct Stage {
    site: Site,
    clock: Hasty,
    manager: TokenManager,
    user: UserHandle,
    old: String,
}

impl Stage {
    async fn new() -> Self {
        let site = Site::new();
        let clock = Hasty { clock: site.clock.clone(), waits: Arc::default() };
        let manager = TokenManager::builder(site.hurdlr_by(clock.clone()), site.store.clone());
        let (manager, ann) = (manager.build().unwrap(), UserId::new("ann").unwrap());
        manager.adopt(&ann, site.login(&ann).await).await.unwrap();
        site.advance(120 * SECOND);
        site.fake.clear_requests();
        let user = manager.user(&ann);
        let old = access(&user.token().await.unwrap());
        Self { site, clock, manager, user, old }
    }

    /// How long was waited for what is no refresh.
    fn waits(&self) -> Vec<Duration> {
        self.clock.waits.lock().unwrap().clone()
    }
}

/// A body that can be sent again, or cannot, and counts how often it is read.
#[derive(Debug, Default)]
struct TestBody {
    content: Full<Bytes>,
    is_single: bool,
    reads: Arc<AtomicUsize>,
}

impl TestBody {
    fn of(content: Content) -> Self {
        match content {
            Content::None => Self::default(),
            Content::Whole => Self { content: Full::from("content"), ..Self::default() },
            Content::Single => {
                Self { content: Full::from("content"), is_single: true, ..Self::default() }
            }
        }
    }

    fn copy(&self) -> Option<Self> {
        let copy =
            || Self { content: self.content.clone(), is_single: false, reads: Arc::default() };
        (!self.is_single).then(copy)
    }
}

impl Body for TestBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.content).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

#[derive(Clone, Copy, Debug)]
enum Content {
    None,
    Whole,
    Single,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Middleware,
    Layer,
}

const KINDS: [Kind; 2] = [Kind::Middleware, Kind::Layer];

/// What the tests call the API by.
#[derive(Clone)]
enum Edge {
    Middleware(ClientWithMiddleware),
    Layer(BoxCloneSyncService<Request<TestBody>, Response<String>, BoxError>),
}

impl Kind {
    fn of_user(self, user: &UserHandle, policy: CallPolicy) -> Edge {
        match self {
            Self::Middleware => by_middleware(user.middleware(), policy),
            Self::Layer => by_layer(user.layer(), policy),
        }
    }

    fn of_manager(self, manager: &TokenManager, policy: CallPolicy) -> Edge {
        match self {
            Self::Middleware => by_middleware(manager.middleware(), policy),
            Self::Layer => by_layer(manager.layer(), policy),
        }
    }

    fn of_partner(self, partner: &Partner, policy: CallPolicy) -> Edge {
        match self {
            Self::Middleware => by_middleware(partner.middleware(), policy),
            Self::Layer => by_layer(partner.layer(), policy),
        }
    }

    fn of_partner_user(self, user: &PartnerUser, policy: CallPolicy) -> Edge {
        match self {
            Self::Middleware => by_middleware(user.middleware(), policy),
            Self::Layer => by_layer(user.layer(), policy),
        }
    }
}

fn partner_at(api: &RawServer) -> Partner {
    Partner::new("app", &"secret-marker".into(), &api.base_url().into()).unwrap()
}

fn by_middleware(middleware: TokenMiddleware, policy: CallPolicy) -> Edge {
    let middleware = middleware.policy(policy).unwrap();
    Edge::Middleware(middleware.client(|builder| builder).unwrap().build())
}

/// As a client would be built: redirects are followed around the layer.
fn by_layer(layer: TokenLayer, policy: CallPolicy) -> Edge {
    let layer = layer.policy(policy).unwrap().copy_body(TestBody::copy);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = FollowRedirectLayer::new().layer(layer.layer(client));
    Edge::Layer(BoxCloneSyncService::new(service.and_then(async |answer: Response<_>| {
        let (parts, body) = answer.into_parts();
        let bytes = BodyExt::collect(body).await?.to_bytes();
        Ok(Response::from_parts(parts, String::from_utf8(bytes.to_vec())?))
    })))
}

impl Edge {
    /// Fails with what of this crate kept the call from being sent.
    async fn send(self, mut request: Request<TestBody>) -> Result<Response<String>, Error> {
        match self {
            Self::Middleware(client) => {
                let (parts, body) = request.into_parts();
                let url = parts.uri.to_string();
                let mut call = client.request(parts.method, url).headers(parts.headers);
                if let Some(user) = parts.extensions.get::<UserHandle>() {
                    call = call.with_extension(user.clone());
                }
                if let Some(id) = parts.extensions.get::<UserId>() {
                    call = call.with_extension(id.clone());
                }
                if body.is_single {
                    call = call.body(reqwest::Body::wrap(body));
                } else if !body.is_end_stream() {
                    call = call.body("content");
                }
                match call.send().await {
                    Ok(answer) => {
                        let mut response = Response::new(String::new());
                        *response.status_mut() = answer.status();
                        *response.headers_mut() = answer.headers().clone();
                        *response.body_mut() = answer.text().await.unwrap();
                        Ok(response)
                    }
                    Err(reqwest_middleware::Error::Middleware(error)) => {
                        Err(error.downcast_ref::<Error>().unwrap().clone())
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            Self::Layer(service) => {
                *request.version_mut() = http::Version::HTTP_11;
                let answer = service.oneshot(request).await;
                answer.map_err(|error| error.downcast_ref::<Error>().unwrap().clone())
            }
        }
    }

    async fn call(&self, method: Method, url: &str, content: Content) -> u16 {
        let request = Request::builder().method(method).uri(url);
        let request = request.body(TestBody::of(content)).unwrap();
        self.clone().send(request).await.unwrap().status().as_u16()
    }

    async fn get(&self, url: &str) -> u16 {
        self.call(Method::GET, url, Content::None).await
    }
}

/// The tokens of the requests that a server got, in order.
fn bearers(server: &RawServer) -> Vec<String> {
    server.requests().iter().map(|request| header(request, "authorization: ")).collect()
}

fn header(request: &str, name: &str) -> String {
    let line = request.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
    line.map(|line| line[name.len()..].to_owned()).unwrap_or_default()
}

fn answer(status: u16) -> Reply {
    Reply::answer(status, HEADERS, "answer")
}

fn limited(retry_after: &str) -> Reply {
    Reply::answer(429, &format!("{HEADERS}Retry-After: {retry_after}\r\n"), "later")
}

/// By which token an attempt is authorised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Old,
    New,
}
use Which::{New, Old};

/// A wait whose length backoff decides.
const BACKOFF: u64 = u64::MAX;

/// What it is about; the method, with its body and what is configured; the answers of the API, the
/// last of them for ever; and what becomes of that: the status, the attempts, and the waits in
/// seconds.
type Case =
    (&'static str, &'static str, &'static [&'static str], u16, &'static [Which], &'static [u64]);

const TABLE: &[Case] = &[
    ("success", "GET", &["200"], 200, &[Old], &[]),
    ("a refused token is replaced", "GET", &["401", "200"], 200, &[Old, New], &[]),
    ("a body goes out again", "POST whole", &["401", "200"], 200, &[Old, New], &[]),
    ("unless it cannot", "POST single", &["401", "200"], 401, &[Old], &[]),
    ("refused again", "GET", &["401"], 401, &[Old, New], &[]),
    ("another refusal", "GET", &["403"], 403, &[Old], &[]),
    ("a failure", "GET", &["503"], 503, &[Old], &[]),
    ("a pause in seconds", "GET", &["429 7", "200"], 200, &[Old, Old], &[7]),
    (
        "a pause as a date",
        "PUT whole",
        &["429 Sun, 06 Nov 1994 08:49:44 GMT", "200"],
        200,
        &[Old, Old],
        &[7],
    ),
    ("a pause of no length", "GET", &["429", "200"], 200, &[Old, Old], &[BACKOFF]),
    ("no end of pauses", "GET", &["429 7"], 429, &[Old, Old, Old, Old], &[7, 7, 7]),
    ("a pause that is too long", "GET", &["429 61", "200"], 429, &[Old], &[]),
    ("no pause for a POST", "POST whole", &["429 7", "200"], 429, &[Old], &[]),
    ("unless configured", "POST whole always", &["429 7", "200"], 200, &[Old, Old], &[7]),
    ("and if it can be sent", "POST single always", &["429 7", "200"], 429, &[Old], &[]),
    ("refused, then paused", "GET", &["401", "429 7", "200"], 200, &[Old, New, New], &[7]),
];

fn scripted(reply: &str) -> Reply {
    match reply.split_once(' ') {
        Some(("429", retry_after)) => limited(retry_after),
        _ => answer(reply.parse().unwrap()),
    }
}

#[tokio::test]
async fn both_edges_pass_one_table_of_cases() {
    for kind in KINDS {
        for (name, call, replies, status, attempts, pauses) in TABLE {
            let name = format!("{kind:?}: {name}");
            let stage = Stage::new().await;
            let api =
                RawServer::replying(replies.iter().map(|it| scripted(it)).collect::<Vec<_>>());
            let api = api.await;
            let policy = CallPolicy::default().origin(api.base_url());
            let policy = policy.repeat_every_method(call.ends_with("always"));
            let edge = kind.of_user(&stage.user, policy);
            let content = match call {
                call if call.contains("whole") => Content::Whole,
                call if call.contains("single") => Content::Single,
                _ => Content::None,
            };
            let method = call.split(' ').next().unwrap().parse().unwrap();

            let mut changes = stage.user.subscribe();
            assert_eq!(edge.call(method, &api.base_url(), content).await, *status, "{name}");
            let refreshes = u64::from(replies.contains(&"401"));
            if refreshes > 0 {
                // In the background, where nobody waits for it.
                assert_eq!(changes.next().await, TokenEvent::NewToken, "{name}");
            }
            assert_eq!(stage.site.refreshes(), refreshes, "{name}");

            let old = format!("Bearer {}", stage.old);
            let sent = bearers(&api);
            let which: Vec<_> =
                sent.iter().map(|sent| if *sent == old { Old } else { New }).collect();
            assert_eq!(which, *attempts, "{name}");
            assert!(sent.iter().all(|sent| sent.starts_with("Bearer ")), "{name}");
            let whole = api.requests().iter().all(|request| request.ends_with(content.text()));
            assert!(whole, "{name}");

            let waits = stage.waits();
            assert_eq!(waits.len(), pauses.len(), "{name}: {waits:?}");
            for (wait, pause) in waits.iter().zip(*pauses) {
                match *pause {
                    BACKOFF => assert!(*wait < SECOND, "{name}: {wait:?}"),
                    seconds => assert_eq!(wait.as_secs(), seconds, "{name}"),
                }
            }
        }
    }
}

impl Content {
    fn text(self) -> &'static str {
        match self {
            Self::None => "\r\n\r\n",
            Self::Whole | Self::Single => "content",
        }
    }
}

/// A login of the embedded provider behind real sockets, who takes its token for expired soon.
async fn by_sockets() -> (FakeHurdlr, ManualClock, TokenManager, UserHandle) {
    let (fake, clock) =
        (FakeHurdlr::builder().token_life(HOUR).start().await.unwrap(), ManualClock::new());
    let hurdlr = support::of(&fake).clock(clock.clone()).build().unwrap();
    let manager = TokenManager::builder(hurdlr, MemoryStore::with_clock(clock.clone()));
    let (manager, ann) = (manager.build().unwrap(), UserId::new("ann").unwrap());
    let hurdlr = manager.hurdlr();
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.consent(&url, "ann").await.unwrap();
    let token: Token = hurdlr.complete_login(pending, &callback).await.unwrap();
    manager.adopt(&ann, token).await.unwrap();
    fake.clear_requests();
    // The provider believes that the token is over, and we do not.
    fake.advance_clock(HOUR);
    clock.advance(120 * SECOND);
    let user = manager.user(&ann);
    (fake, clock, manager, user)
}

/// An API that has so many calls wait for each other before it refuses them all, by the token of
/// the first; the others it answers.
async fn refusing_all_at_once(calls: usize, old: &str) -> String {
    let (barrier, refused) = (Arc::new(Barrier::new(calls)), format!("Bearer {old}"));
    let api = axum::Router::new().fallback(move |headers: http::HeaderMap| {
        let (barrier, refused) = (Arc::clone(&barrier), refused.clone());
        async move {
            if headers[AUTHORIZATION] != refused {
                return http::StatusCode::OK;
            }
            barrier.wait().await;
            http::StatusCode::UNAUTHORIZED
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, api).await });
    url
}

#[tokio::test]
async fn a_token_refused_once_is_refreshed_once_by_1000_concurrent_calls_that_all_got_401() {
    const CALLS: usize = 1_000;
    for kind in KINDS {
        let stage = Stage::new().await;
        let url = refusing_all_at_once(CALLS, &stage.old).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(&url));
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let (edge, url) = (edge.clone(), url.clone());
                tokio::spawn(async move { edge.get(&url).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), 200, "{kind:?}");
        }
        assert_eq!(stage.site.refreshes(), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_cancels_no_refresh() {
    for kind in KINDS {
        let (fake, _, _manager, user) = by_sockets().await;
        let edge = kind.of_user(&user, CallPolicy::default());
        let (gate, mut changes) = (Gate::closed(), user.subscribe());
        fake.fault_next(Fault::Hold(gate.clone()));
        let (dropped, url) = (edge.clone(), fake.resource_url().to_string());
        let call = tokio::spawn({
            let url = url.clone();
            async move { dropped.get(&url).await }
        });
        fake.arrived(1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        gate.open();
        assert_eq!(changes.next().await, TokenEvent::NewToken, "{kind:?}");
        assert_eq!(edge.get(&url).await, 200, "{kind:?}");
        assert_eq!(fake.count().grant("refresh_token"), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn an_api_that_refuses_every_token_makes_no_loop_of_refreshes() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let mut failures = 0;
        for _ in 0..50 {
            let request = Request::get(api.base_url()).body(TestBody::default()).unwrap();
            match edge.clone().send(request).await {
                Ok(answer) => assert_eq!(answer.status(), 401),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable);
                    failures += 1;
                }
            }
        }
        assert!(stage.site.refreshes() <= 3, "{kind:?}: {}", stage.site.refreshes());
        assert_eq!(failures, 0, "{kind:?}: the calls that work need the token");
    }
}

#[tokio::test]
async fn no_token_reaches_another_host_by_a_redirect_of_any_status() {
    for kind in KINDS {
        for status in [301, 302, 303, 307, 308] {
            for method in [Method::GET, Method::POST, Method::PUT] {
                let stage = Stage::new().await;
                // The second hop within the other origin is where clients forget what they knew.
                let location = "Location: /further\r\n";
                let other =
                    RawServer::replying([Reply::answer(status, location, ""), answer(200)]).await;
                let port = other.port();
                for there in
                    [format!("http://127.0.0.1:{port}/"), format!("http://localhost:{port}/")]
                {
                    let location = format!("Location: {there}\r\n");
                    let api = RawServer::replying([Reply::answer(status, &location, "")]).await;
                    let policy = CallPolicy::default().origin(api.base_url());
                    let edge = kind.of_user(&stage.user, policy);
                    edge.call(method.clone(), &api.base_url(), Content::Whole).await;
                    assert_eq!(bearers(&api), [format!("Bearer {}", stage.old)]);
                }
                let leaked = bearers(&other).into_iter().any(|header| !header.is_empty());
                assert!(!leaked, "{kind:?} {method} {status}");
            }
        }
    }
}

#[tokio::test]
async fn a_token_stays_on_its_scheme_host_and_port() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let origin = format!("http://localhost:{}", api.port());
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(origin));
        // The same server by another name, and no token for it: its 401 means nothing.
        assert_eq!(edge.get(&api.base_url()).await, 401);
        assert_eq!(bearers(&api), [""], "{kind:?}");
        assert_eq!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn a_redirect_within_the_origin_is_followed_with_the_token() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api =
            RawServer::replying([Reply::answer(302, "Location: /there\r\n", ""), answer(200)]);
        let api = api.await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        assert_eq!(edge.get(&api.base_url()).await, 200);
        let bearer = format!("Bearer {}", stage.old);
        assert_eq!(bearers(&api), [bearer.clone(), bearer], "{kind:?}");
    }
}

#[tokio::test]
async fn a_401_whose_final_url_is_another_origin_means_nothing() {
    struct Elsewhere(String);

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Elsewhere {
        async fn handle(
            &self,
            mut request: reqwest::Request,
            extensions: &mut http::Extensions,
            next: Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            *request.url_mut() = self.0.parse().unwrap();
            request.headers_mut().remove(AUTHORIZATION);
            next.run(request, extensions).await
        }
    }

    let other = RawServer::replying([answer(401)]).await;
    for kind in KINDS {
        let stage = Stage::new().await;
        let location = format!("Location: {}\r\n", other.base_url());
        let api = RawServer::replying([Reply::answer(302, &location, "")]).await;
        let policy = CallPolicy::default().origin(api.base_url());
        let edge = match kind {
            Kind::Layer => kind.of_user(&stage.user, policy),
            Kind::Middleware => {
                let Edge::Middleware(client) = kind.of_user(&stage.user, policy) else {
                    unreachable!("that is what it makes")
                };
                let client = ClientBuilder::from_client(client);
                Edge::Middleware(client.with(Elsewhere(other.base_url())).build())
            }
        };
        assert_eq!(edge.get(&api.base_url()).await, 401, "{kind:?}");
        assert_eq!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn an_authorization_that_the_caller_set_is_left_alone() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(401)]).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(api.base_url()).header(AUTHORIZATION, "Bearer own");
        let answer = edge.send(request.body(TestBody::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 401);
        assert_eq!(bearers(&api), ["Bearer own"], "{kind:?}");
        assert_eq!(stage.site.refreshes(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn one_client_serves_many_users_and_none_without_a_name() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let bob = stage.manager.enterprise_user(&UserId::new("bob").unwrap());
        let api = RawServer::replying([answer(200)]).await;
        let edge = kind.of_manager(&stage.manager, CallPolicy::default().origin(api.base_url()));
        for user in [&stage.user, &bob] {
            let request = Request::get(api.base_url()).extension(user.clone());
            edge.clone().send(request.body(TestBody::default()).unwrap()).await.unwrap();
        }
        let tokens = [stage.old.clone(), access(&bob.token().await.unwrap())];
        assert_eq!(bearers(&api), tokens.map(|token| format!("Bearer {token}")), "{kind:?}");

        let request = Request::get(api.base_url()).body(TestBody::default()).unwrap();
        let error = edge.send(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(bearers(&api).len(), 2, "{kind:?}");
    }
}

/// No client takes a user of another manager: it would send that one's token to its own host.
#[tokio::test]
async fn another_managers_user_is_refused_unsent() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let (stage, other) = (Stage::new().await, Site::of(ApiVersion::V6));
        let foreign = other.manager();
        let (api, elsewhere) =
            (RawServer::replying([answer(200)]).await, RawServer::replying([answer(200)]).await);
        let policy = || CallPolicy::default().origin(api.base_url());
        let edges = [
            kind.of_manager(&stage.manager, policy()),
            kind.of_user(&stage.user, policy()),
            kind.of_partner(&partner_at(&api), policy()),
        ];
        for edge in edges {
            for user in [foreign.enterprise_user(&bob), foreign.partner(), foreign.user(&bob)] {
                for url in [api.base_url(), elsewhere.base_url()] {
                    for headers in [vec![], vec![(AUTHORIZATION, "Bearer own")]] {
                        let mut request = Request::get(&url).extension(user.clone());
                        for (name, value) in headers {
                            request = request.header(name, value);
                        }
                        let request = request.extension(bob.clone()).body(TestBody::default());
                        let error = edge.clone().send(request.unwrap()).await.unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::Config, "{kind:?}");
                    }
                }
            }
        }
        assert!(api.requests().is_empty() && elsewhere.requests().is_empty(), "{kind:?}");
        assert_eq!(other.fake.count().total(), 0, "{kind:?}");

        // A clone of the manager is the same one.
        let user = stage.manager.clone().user(stage.user.id());
        for edge in [
            kind.of_manager(&stage.manager, policy()),
            kind.of_user(&stage.user, policy()),
            kind.of_manager(&stage.manager.clone(), policy()),
        ] {
            let request = Request::get(api.base_url()).extension(user.clone());
            let answer = edge.send(request.body(TestBody::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "{kind:?}");
        }
    }
}

/// A client of one user sends no call that names somebody else.
#[tokio::test]
async fn one_users_client_refuses_anybody_else() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(200)]).await;
        let policy = || CallPolicy::default().origin(api.base_url());
        let ann = kind.of_user(&stage.user, policy());
        let others = [stage.manager.user(&bob), stage.manager.enterprise_user(stage.user.id())];
        for other in others {
            let request = Request::get(api.base_url()).extension(other);
            let error = ann.clone().send(request.body(TestBody::default()).unwrap()).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        }
        let partner = partner_at(&api);
        let ann = kind.of_partner_user(&partner.user(stage.user.id()).unwrap(), policy());
        let request = || Request::get(api.base_url());
        let all_rights = request().extension(stage.user.clone());
        for request in [request().extension(bob.clone()), all_rights] {
            let error = ann.clone().send(request.body(TestBody::default()).unwrap()).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        }
        assert!(api.requests().is_empty(), "{kind:?}");
        let request = request().extension(stage.user.id().clone());
        assert_eq!(
            ann.send(request.body(TestBody::default()).unwrap()).await.unwrap().status(),
            200
        );
    }
}

/// An app that mixes up a partner's client with a user's would read somebody else's books.
#[tokio::test]
async fn id_of_another_user_is_refused() {
    let bob = UserId::new("bob").unwrap();
    for kind in KINDS {
        let stage = Stage::new().await;
        let api = RawServer::replying([answer(200)]).await;
        let policy = || CallPolicy::default().origin(api.base_url());
        let request = |id: &UserId| Request::get(api.base_url()).extension(id.clone());
        for edge in [kind.of_user(&stage.user, policy()), kind.of_manager(&stage.manager, policy())]
        {
            let call = |id| request(id).extension(stage.user.clone()).body(TestBody::default());
            let error = edge.clone().send(call(&bob).unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{kind:?}");
            assert!(edge.send(call(stage.user.id()).unwrap()).await.is_ok(), "{kind:?}");
        }
        let ann = kind.of_user(&stage.user, policy());
        let error = ann.send(request(&bob).body(TestBody::default()).unwrap()).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{kind:?}");
        assert_eq!(api.requests().len(), 2, "{kind:?}");
    }
}

#[tokio::test]
async fn a_call_without_a_token_is_not_sent_and_says_why() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let nobody = stage.manager.user(&UserId::new("nobody").unwrap());
        let api = RawServer::replying([answer(200)]).await;
        let edge = kind.of_user(&nobody, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(api.base_url()).body(TestBody::default()).unwrap();
        let error = edge.send(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{kind:?}");
        assert!(api.requests().is_empty(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_body_reaches_the_wire_unread_and_its_token_marked() {
    /// Looks at what passes, and answers for the API.
    fn look(reads: &AtomicUsize, headers: &http::HeaderMap) {
        assert_eq!(reads.load(Ordering::SeqCst), 0, "the body was read before it was sent");
        assert!(headers[AUTHORIZATION].is_sensitive());
    }

    struct Looking(Arc<AtomicUsize>);

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Looking {
        async fn handle(
            &self,
            request: reqwest::Request,
            _: &mut http::Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            look(&self.0, request.headers());
            Ok(Response::new("looked").into())
        }
    }

    let stage = Stage::new().await;
    let here = stage.site.fake.base_url().to_string();
    let body = TestBody::of(Content::Single);
    let reads = Arc::clone(&body.reads);
    let client = stage.user.middleware().client(|builder| builder).unwrap();
    let client = client.with(Looking(Arc::clone(&reads))).build();
    let answer = client.post(&here).body(reqwest::Body::wrap(body)).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "looked");

    let body = TestBody::of(Content::Single);
    let reads = Arc::clone(&body.reads);
    let looking = tower::service_fn(move |request: Request<TestBody>| {
        look(&reads, request.headers());
        std::future::ready(Ok::<_, BoxError>(Response::new("looked")))
    });
    let service = stage.user.layer().copy_body(TestBody::copy).layer(looking);
    let answer = service.oneshot(Request::post(here).body(body).unwrap()).await.unwrap();
    assert_eq!(*answer.body(), "looked");
}

/// A call to a loopback host goes there, however the app configures its client.
#[tokio::test]
async fn plain_http_call_uses_no_proxy() {
    let stage = Stage::new().await;
    let proxy = RawServer::replying([Reply::answer(200, "", "proxied")]).await;
    let server = RawServer::replying([Reply::answer(200, "", "direct")]).await;
    let policy = CallPolicy::default().origin(server.base_url());
    let proxy_url = proxy.base_url();
    let api = stage.user.middleware().policy(policy).unwrap();
    let api = api
        .client(|builder| {
            builder
                .proxy(reqwest::Proxy::all(proxy_url).unwrap())
                .resolve("localhost", ([192, 0, 2, 1], 0).into())
        })
        .unwrap()
        .build();
    let answer = api.get(server.base_url()).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "direct");
    assert!(server.requests()[0].contains(&stage.old));
    assert!(proxy.requests().is_empty());
}

/// No setting of the app sends a token to a host that cannot show a certificate.
#[cfg(feature = "rustls")]
#[tokio::test]
async fn call_verifies_certificates_by_rustls() {
    let stage = Stage::new().await;
    let (url, certificate) = support::tls::serve("served").await;
    let root = reqwest::Certificate::from_der(&certificate).unwrap();
    let send = async |configure: &dyn Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
        let policy = CallPolicy::default().origin(&url);
        let api = stage.user.middleware().policy(policy).unwrap();
        api.client(configure).unwrap().build().get(&url).send().await
    };
    let error = send(&|builder| builder.tls_danger_accept_invalid_certs(true)).await.unwrap_err();
    assert!(support::tls::is_of_rustls(&error), "{error:?}");
    let answer = send(&|builder| builder.tls_certs_only([root.clone()])).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "served");
}

#[test]
fn debug_of_a_policy_shows_no_password() {
    let url = "https://user:marker@api.example.com/x?key=marker";
    let shown = format!("{:?}", CallPolicy::default().origin(url));
    assert!(shown.contains("api.example.com") && !shown.contains("marker"), "{shown}");
}

/// Fails whoever calls it without having asked this very instance whether it is ready.
struct Strict {
    is_ready: bool,
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { is_ready: false, statuses: Arc::clone(&self.statuses) }
    }
}

impl Service<Request<TestBody>> for Strict {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<()>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<TestBody>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called before it was ready");
        let mut response = Response::new(());
        *response.status_mut() = self.statuses.lock().unwrap().remove(0).try_into().unwrap();
        std::future::ready(Ok(response))
    }
}

#[tokio::test]
async fn the_layer_calls_a_service_only_after_that_one_said_it_is_ready() {
    let stage = Stage::new().await;
    let cold = stage.manager.enterprise_user(&UserId::new("cold").unwrap());
    for user in [&stage.user, &cold] {
        let statuses = Arc::new(Mutex::new(vec![401, 429, 200, 200, 404]));
        let strict = Strict { is_ready: false, statuses: Arc::clone(&statuses) };
        let mut service = user.layer().copy_body(TestBody::copy).layer(strict);
        for (uri, expected) in [
            (stage.site.fake.base_url().as_str(), 200),
            (stage.site.fake.base_url().as_str(), 200),
            ("http://elsewhere.example/", 404),
        ] {
            let request = Request::get(uri).body(TestBody::default()).unwrap();
            let answer = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(answer.status(), expected);
        }
        assert!(statuses.lock().unwrap().is_empty());
    }
}

/// An API that redirects a change of its entries, once made, to a page that answers the first call
/// with `refusal`. Remembers the method and path of each request.
async fn redirecting(
    status: u16,
    to: &'static str,
    refusal: u16,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let (seen, refused) = (Arc::clone(&requests), AtomicUsize::new(0));
    let answer = move |method: &Method, path: &str| {
        seen.lock().unwrap().push(format!("{method} {path}"));
        let response = Response::builder();
        if path == "/entries" && !method.is_safe() {
            response.status(status).header("location", to)
        } else if refused.fetch_add(1, Ordering::SeqCst) == 0 {
            response.status(refusal).header("retry-after", "1")
        } else {
            response
        }
    };
    let answer = Arc::new(answer);
    let api = axum::Router::new().fallback(move |method: Method, uri: http::Uri| {
        let response = answer(&method, uri.path()).body(axum::body::Body::empty()).unwrap();
        std::future::ready(response)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, api).await });
    (url, requests)
}

/// A request that was answered by a redirect may have been acted on: it is not made again, whatever
/// the page behind the redirect says.
#[tokio::test]
async fn redirected_change_is_made_once() {
    for kind in KINDS {
        for (status, to) in [
            (301, "/done"),
            (302, "/done"),
            (302, "/entries"),
            (303, "/done"),
            (303, "/entries"),
            (307, "/done"),
            (308, "/done"),
        ] {
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                if to == "/entries" && status == 302 && method != Method::POST {
                    continue; // clients go on by the same method, for ever
                }
                for refusal in [401, 429] {
                    let name = format!("{kind:?} {method} {status} {to} {refusal}");
                    let stage = Stage::new().await;
                    let (url, requests) = redirecting(status, to, refusal).await;
                    let policy = CallPolicy::default().origin(&url).repeat_every_method(true);
                    let edge = kind.of_user(&stage.user, policy);
                    let entries = format!("{url}/entries");
                    let mut changes = stage.user.subscribe();
                    let got = edge.call(method.clone(), &entries, Content::None).await;
                    if refusal == 401 {
                        // In the background, where nobody waits for it.
                        assert_eq!(changes.next().await, TokenEvent::NewToken, "{name}");
                    }

                    let requests = requests.lock().unwrap().clone();
                    let made = requests.iter().filter(|it| **it == format!("{method} /entries"));
                    assert_eq!(made.count(), 1, "{name}: {requests:?}");
                    // Each hop is a call of the layer's, which repeats the one that was refused.
                    let expected = match kind {
                        Kind::Middleware => (refusal, 2),
                        Kind::Layer => (200, 3),
                    };
                    assert_eq!((got, requests.len()), expected, "{name}: {requests:?}");
                    assert_eq!(stage.site.refreshes(), u64::from(refusal == 401), "{name}");
                }
            }
        }
    }
}

/// To read again changes nothing, so a refused call heals behind a redirect, too.
#[tokio::test]
async fn redirected_read_is_repeated() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let redirect = || Reply::answer(302, "Location: /there\r\n", "");
        let replies = match kind {
            Kind::Middleware => vec![redirect(), answer(401), redirect(), answer(200)],
            Kind::Layer => vec![redirect(), answer(401), answer(200)],
        };
        let api = RawServer::replying(replies).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        assert_eq!(edge.get(&api.base_url()).await, 200, "{kind:?}");
        assert_ne!(access(&stage.user.token().await.unwrap()), stage.old, "{kind:?}");
    }
}

/// A URL with user info has credentials of its own, also where a redirect leads to it.
#[tokio::test]
async fn redirect_to_user_info_gets_no_token() {
    for kind in KINDS {
        let stage = Stage::new().await;
        let there = Arc::new(Mutex::new(None));
        let location = Arc::clone(&there);
        // The second answer has no redirect, nor has any later one.
        let api = RawServer::answering(move || match location.lock().unwrap().take() {
            Some(port) => {
                let location = format!("Location: http://user:pw@127.0.0.1:{port}/there\r\n");
                Reply::answer(302, &location, "")
            }
            None => answer(200),
        });
        let api = api.await;
        *there.lock().unwrap() = Some(api.port());
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(format!("{}/here", api.base_url())).body(TestBody::default());
        let _ = edge.send(request.unwrap()).await;
        for request in api.requests() {
            let is_first = request.starts_with("GET /here ");
            let has_token = request.contains(&stage.old);
            assert_eq!(has_token, is_first, "{kind:?}: {request}");
        }
    }
}

/// Where no newer token is to be had, the 401 alone would not say what to do.
#[tokio::test]
async fn refusal_without_newer_token_says_why() {
    for kind in KINDS {
        let stage = Stage::new().await;
        stage.site.fake.revoke_everything("ann");
        let api = RawServer::replying([answer(401)]).await;
        let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
        let request = Request::get(api.base_url()).body(TestBody::default()).unwrap();
        let error = edge.send(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{kind:?}");
        assert_eq!(api.requests().len(), 1, "{kind:?}");
    }
}

/// The timeout of a request bounds the whole call: the wait for a token, pauses, all attempts.
#[tokio::test]
async fn request_timeout_bounds_whole_call() {
    /// Notes how long each attempt may take.
    #[derive(Clone, Default)]
    struct Timeouts(Arc<Mutex<Vec<Option<Duration>>>>);

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Timeouts {
        async fn handle(
            &self,
            request: reqwest::Request,
            extensions: &mut http::Extensions,
            next: Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            self.0.lock().unwrap().push(request.timeout().copied());
            next.run(request, extensions).await
        }
    }

    let stage = Stage::new().await;
    let api = RawServer::replying([limited("7"), answer(200), limited("7"), answer(200)]).await;
    let timeouts = Timeouts::default();
    let policy = CallPolicy::default().origin(api.base_url());
    let client = stage.manager.middleware().policy(policy).unwrap();
    let client = client.client(|builder| builder).unwrap().with(timeouts.clone()).build();
    let call = |user: &UserHandle, timeout: Option<u64>| {
        let call = client.get(api.base_url()).with_extension(user.clone());
        match timeout {
            Some(seconds) => call.timeout(Duration::from_secs(seconds)),
            None => call,
        }
    };

    // The clock of the test goes on by itself, too.
    let about = |index: usize, seconds: u64| {
        let timeout: Option<Duration> = timeouts.0.lock().unwrap()[index];
        let under = timeout.is_some_and(|timeout| timeout <= Duration::from_secs(seconds));
        assert!(under && timeout > Some(Duration::from_secs(seconds - 5)), "{timeout:?}");
    };
    assert_eq!(call(&stage.user, Some(20)).send().await.unwrap().status(), 200);
    about(0, 20);
    about(1, 13);
    // A pause that does not fit is not begun.
    assert_eq!(call(&stage.user, Some(6)).send().await.unwrap().status(), 429);
    assert_eq!(stage.waits(), [Duration::from_secs(7)]);
    about(2, 6);
    assert_eq!(call(&stage.user, None).send().await.unwrap().status(), 200);
    assert_eq!(timeouts.0.lock().unwrap()[3..], [None]);

    let gate = Gate::closed();
    stage.site.fake.fault_next(Fault::Hold(gate.clone()));
    let cold = stage.manager.enterprise_user(&UserId::new("cold").unwrap());
    let error = soon(call(&cold, Some(20)).send()).await.unwrap_err();
    let reqwest_middleware::Error::Middleware(error) = error else { panic!("{error:?}") };
    assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::TimedOut);
    assert_eq!(api.requests().len(), 4);
    // The refresh goes on.
    gate.open();
    cold.token().await.unwrap();
    assert_eq!(stage.site.fake.count().grant("client_credentials"), 1);
}

/// A timeout above the layer bounds the whole call, and cancels no refresh.
#[tokio::test(start_paused = true)]
async fn timeout_above_layer_bounds_call() {
    let stage = Stage::new().await;
    let gate = Gate::closed();
    stage.site.fake.fault_next(Fault::Hold(gate.clone()));
    let cold = stage.manager.enterprise_user(&UserId::new("cold").unwrap());
    let busy = tower::service_fn(|_: Request<TestBody>| {
        let response = Response::builder().status(429).header("retry-after", "40");
        std::future::ready(Ok::<_, BoxError>(response.body(()).unwrap()))
    });
    let service = stage.manager.layer().copy_body(TestBody::copy).layer(busy);
    for user in [&cold, &stage.user] {
        let request = Request::get(stage.site.fake.base_url().as_str()).extension(user.clone());
        let bounded = Timeout::new(service.clone(), 5 * SECOND);
        let error = bounded.oneshot(request.body(TestBody::default()).unwrap()).await.unwrap_err();
        assert!(error.is::<Elapsed>(), "{error:?}");
    }
    gate.open();
    cold.token().await.unwrap();
    assert_eq!(stage.site.fake.count().grant("client_credentials"), 1);
}

/// A call is sent again as it was, with all values of a header that has several.
#[tokio::test]
async fn repeated_call_keeps_all_header_values() {
    let without_token = |request: &str| {
        let lines = request.lines().filter(|line| !line.starts_with("authorization: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    for kind in KINDS {
        for refusal in [answer(401), limited("0")] {
            let stage = Stage::new().await;
            let api = RawServer::replying([refusal, answer(200)]).await;
            let edge = kind.of_user(&stage.user, CallPolicy::default().origin(api.base_url()));
            let request = Request::put(format!("{}/x?y=z", api.base_url()))
                .header("accept", "application/json")
                .header("x-app", "one")
                .header("accept", "text/csv")
                .body(TestBody::of(Content::Whole));
            assert_eq!(edge.send(request.unwrap()).await.unwrap().status(), 200);
            let [first, second] = &api.requests()[..] else { panic!("{kind:?}: not sent twice") };
            assert_eq!(without_token(first), without_token(second), "{kind:?}");
            let accepts = second.lines().filter(|line| line.starts_with("accept: "));
            assert_eq!(accepts.count(), 2, "{kind:?}");
        }
    }
}

/// A service that answers with these statuses, the last of them for ever.
fn scripted_service(
    statuses: impl Into<Vec<u16>>,
) -> impl Service<
    Request<TestBody>,
    Response = Response<()>,
    Error = BoxError,
    Future = impl Future<Output = Result<Response<()>, BoxError>> + Send,
> + Clone
+ Send
+ 'static {
    let statuses = Arc::new(Mutex::new(statuses.into()));
    tower::service_fn(move |_| {
        let mut statuses = statuses.lock().unwrap();
        let status = if statuses.len() > 1 { statuses.remove(0) } else { statuses[0] };
        let mut response = Response::new(());
        *response.status_mut() = status.try_into().unwrap();
        std::future::ready(Ok(response))
    })
}

/// No test waits for it, unless it fails.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SHORT, future).await.unwrap()
}

/// A call that waits for its token leaves the slots of a service below to the others.
#[tokio::test]
async fn waiting_user_holds_no_slot() {
    for first in [200, 401] {
        let stage = Stage::new().await;
        // The first user has no token yet, or has one that is refused.
        let waiting = match first {
            200 => stage.manager.enterprise_user(&UserId::new("cold").unwrap()),
            _ => stage.user.clone(),
        };
        let bob = stage.manager.enterprise_user(&UserId::new("bob").unwrap());
        bob.token().await.unwrap();
        stage.site.fake.clear_requests();
        let gate = Gate::closed();
        stage.site.fake.fault_next(Fault::Hold(gate.clone()));

        let limited = ConcurrencyLimit::new(scripted_service([first, 200]), 1);
        let service = stage.manager.layer().copy_body(TestBody::copy).layer(limited);
        let call = |user: &UserHandle| {
            let request = Request::get(stage.site.fake.base_url().as_str()).extension(user.clone());
            service.clone().oneshot(request.body(TestBody::default()).unwrap())
        };
        let held_up = tokio::spawn(call(&waiting));
        stage.site.fake.arrived(1).await;
        assert_eq!(soon(call(&bob)).await.unwrap().status(), 200, "{first}");
        gate.open();
        assert_eq!(soon(held_up).await.unwrap().unwrap().status(), 200, "{first}");
    }
}

/// A call that waits out a 429 does so without a slot, too.
#[tokio::test]
async fn pausing_call_holds_no_slot() {
    let stage = Stage::new().await;
    let paused = Arc::new(Notify::new());
    let told = Arc::clone(&paused);
    let api = tower::service_fn(move |request: Request<TestBody>| {
        let mut response = Response::new(());
        if request.uri().path() == "/busy" {
            told.notify_one();
            *response.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert("retry-after", 40.into());
        }
        std::future::ready(Ok::<_, BoxError>(response))
    });
    let service = stage.user.layer().copy_body(TestBody::copy).layer(ConcurrencyLimit::new(api, 1));
    let call = |path| {
        let url = stage.site.fake.base_url().join(path).unwrap();
        let request = Request::get(url.as_str()).body(TestBody::default());
        service.clone().oneshot(request.unwrap())
    };
    let busy = tokio::spawn(call("busy"));
    paused.notified().await;
    assert_eq!(soon(call("free")).await.unwrap().status(), 200);
    assert!(!busy.is_finished());
    busy.abort();
}

/// A service that is kept, and asked whether it is ready while a call of it is under way, keeps
/// nothing back from that call.
#[tokio::test]
async fn kept_service_does_not_deadlock() {
    for statuses in [[401, 200], [429, 200], [200, 200]] {
        let stage = Stage::new().await;
        let limited = ConcurrencyLimit::new(scripted_service(statuses), 1);
        let mut service = stage.user.layer().copy_body(TestBody::copy).layer(limited);
        for url in [stage.site.fake.base_url().as_str(), "http://elsewhere.example/"] {
            let request = Request::get(url).body(TestBody::default()).unwrap();
            let call = tokio::spawn(soon(service.ready()).await.unwrap().call(request));
            soon(service.ready()).await.unwrap();
            assert_eq!(soon(call).await.unwrap().unwrap().status(), 200, "{statuses:?} {url}");
        }
    }
}

/// How many bodies of answers live.
#[derive(Clone, Debug, Default)]
struct LivingBodies(Arc<AtomicUsize>);

impl LivingBodies {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// An answer whose body is counted for as long as it lives.
    fn answer(&self, status: u16) -> Response<CountedBody> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let mut response =
            Response::new(CountedBody { content: Full::from("x"), all: self.clone() });
        *response.status_mut() = status.try_into().unwrap();
        response
    }
}

#[derive(Debug)]
struct CountedBody {
    content: Full<Bytes>,
    all: LivingBodies,
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        self.all.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.content).poll_frame(context)
    }
}

/// A refused answer holds a connection, so it is dropped before the wait for another token, and
/// before the repetition.
#[tokio::test]
async fn refused_answer_is_dropped_before_repetition() {
    /// Answers for the API: refuses the first call.
    #[derive(Clone, Debug)]
    struct Refusing {
        bodies: LivingBodies,
        calls: Arc<AtomicUsize>,
        refusal: u16,
    }

    impl Refusing {
        fn answer(&self) -> Response<CountedBody> {
            assert_eq!(self.bodies.count(), 0, "the last answer lives");
            let is_first = self.calls.fetch_add(1, Ordering::SeqCst) == 0;
            self.bodies.answer(if is_first { self.refusal } else { 200 })
        }
    }

    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Refusing {
        async fn handle(
            &self,
            request: reqwest::Request,
            _: &mut http::Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            let (parts, body) = self.answer().into_parts();
            let response = http::response::Builder::new().status(parts.status);
            let response = response.url(request.url().clone());
            Ok(response.body(reqwest::Body::wrap(body)).unwrap().into())
        }
    }

    for kind in KINDS {
        for refusal in [401, 429] {
            let stage = Stage::new().await;
            let bodies = LivingBodies::default();
            let api = Refusing { bodies: bodies.clone(), calls: Arc::default(), refusal };
            let gate = Gate::closed();
            stage.site.fake.fault_next(Fault::Hold(gate.clone()));
            let url = stage.site.fake.base_url().to_string();
            let answered = match kind {
                Kind::Middleware => {
                    let client = stage.user.middleware().client(|builder| builder).unwrap();
                    let client = client.with(api).build();
                    tokio::spawn(async move { client.get(url).send().await.unwrap().status() })
                }
                Kind::Layer => {
                    let service = tower::service_fn(move |_: Request<TestBody>| {
                        std::future::ready(Ok::<_, BoxError>(api.answer()))
                    });
                    let service = stage.user.layer().copy_body(TestBody::copy).layer(service);
                    let request = Request::get(url).body(TestBody::default()).unwrap();
                    let call: Call<CountedBody> = Box::pin(service.oneshot(request));
                    tokio::spawn(async move { call.await.unwrap().status() })
                }
            };
            if refusal == 401 {
                stage.site.fake.arrived(1).await;
                assert_eq!(bodies.count(), 0, "{kind:?}: it lives while the token is refreshed");
            }
            gate.open();
            assert_eq!(soon(answered).await.unwrap(), 200, "{kind:?} {refusal}");
            assert_eq!(bodies.count(), 0, "{kind:?} {refusal}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_was_told_nothing_of_bodies_repeats_empty_ones_only() {
    let stage = Stage::new().await;
    for (content, expected) in [("", 200), ("content", 401)] {
        let statuses = Arc::new(Mutex::new(vec![401, 200]));
        let answered = Arc::clone(&statuses);
        let service = tower::service_fn(move |_: Request<Full<Bytes>>| {
            let mut response = Response::new(());
            *response.status_mut() = answered.lock().unwrap().remove(0).try_into().unwrap();
            std::future::ready(Ok::<_, BoxError>(response))
        });
        stage.site.advance(120 * SECOND); // a young token is not refreshed at once
        let request = Request::post(stage.site.fake.base_url().as_str());
        let request = request.body(Full::from(content)).unwrap();
        let answer = stage.user.layer().layer(service).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), expected);
    }
}

#[tokio::test]
async fn partner_level_calls_send_basic_and_the_user_and_neither_elsewhere() {
    let secret = "secret-marker".into();
    let ann = UserId::new("ann").unwrap();
    for kind in KINDS {
        for each_call in [false, true] {
            let other = RawServer::replying([answer(200)]).await;
            let location = format!("Location: {}\r\n", other.base_url());
            let replies = [answer(401), limited("0"), Reply::answer(307, &location, "")];
            let api = RawServer::replying(replies).await;
            let clock = Hasty { clock: ManualClock::new(), waits: Arc::default() };
            let partner =
                Partner::new("app", &secret, &api.base_url().into()).unwrap().clock(clock);
            let user = partner.user(&ann).unwrap();
            let policy = CallPolicy::default();
            let edge = if each_call {
                kind.of_partner(&partner, policy)
            } else {
                kind.of_partner_user(&user, policy)
            };
            let request = || {
                let request = Request::get(api.base_url()).extension(ann.clone());
                request.body(TestBody::default()).unwrap()
            };
            // There is nothing to refresh.
            assert_eq!(edge.clone().send(request()).await.unwrap().status(), 401);
            assert_eq!(api.requests().len(), 1);
            let _ = edge.send(request()).await;

            let requests = api.requests();
            assert_eq!(requests.len(), 3);
            for request in requests {
                assert_eq!(header(&request, "authorization: "), "Basic YXBwOnNlY3JldC1tYXJrZXI=");
                assert_eq!(header(&request, "userid: "), "ann");
            }
            for request in other.requests() {
                assert!(!request.contains("YXBwOnNlY3JldC1tYXJrZXI") && !request.contains("ann"));
            }
        }
    }
}

#[tokio::test]
async fn credentials_and_ids_that_basic_cannot_carry_are_refused_and_not_shown() {
    let here = "http://localhost:1".into();
    for (id, secret) in
        [("", "s"), ("a:b", "s"), ("a\n", "s"), ("a", ""), ("a", "secret-marker\r\n")]
    {
        let error = Partner::new(id, &secret.into(), &here).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!everything_said(&error).contains("secret-marker"));
    }
    let partner = Partner::new("app", &"secret-marker".into(), &here).unwrap();
    for id in [" ann", "ann ", "ännchen"] {
        assert_eq!(partner.user(&UserId::new(id).unwrap()).unwrap_err().kind(), ErrorKind::Config);
    }
}

#[tokio::test]
async fn nothing_of_the_edges_shows_a_secret() {
    let stage = Stage::new().await;
    let partner =
        Partner::new("app", &"secret-marker".into(), &"http://localhost:1".into()).unwrap();
    let user = partner.user(&UserId::new("ann").unwrap()).unwrap();
    let policy = CallPolicy::default().origin("https://api.example.com/?key=secret-marker");
    let service = stage.user.layer().policy(policy).unwrap().layer(());
    let shown = format!(
        "{:?} {:?} {:?} {partner:?} {user:?} {:?} {:?}",
        stage.user.middleware(),
        stage.manager.layer(),
        service,
        user.layer(),
        partner.middleware(),
    );
    for secret in [stage.old.as_str(), "secret-marker", "c2VjcmV0", "ann"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

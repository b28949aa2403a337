//! Both edges keep the same promises, on one table of cases and against real servers.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

mod cases;
mod origins;
mod partner;
mod reasons;
mod refusals;
mod requests;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/mod.rs"]
mod support;
mod users;
mod waiting;

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hurdlr_oauth2::manager::UserHandle;
use hurdlr_oauth2::reqwest_middleware::ClientWithMiddleware;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::{
    CallPolicy, Clock, Error, Partner, PartnerUser, Timestamp, Token, TokenLayer, TokenManager,
    TokenMiddleware, UserId, reqwest,
};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt};
use tower_http::follow_redirect::FollowRedirectLayer;

use site::{HOUR, SECOND, Site, access};
use support::{RawServer, Reply};

type BoxError = Box<dyn StdError + Send + Sync>;
type Call<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

const SHORT: Duration = Duration::from_secs(30);
const HEADERS: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

/// A manual clock on which short waits are over at once.
#[derive(Clone, Debug)]
struct Hasty(ManualClock);

impl Clock for Hasty {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let wait = self.0.sleep(duration);
        if duration > SHORT {
            return wait;
        }
        self.0.advance(duration);
        Box::pin(tokio::task::yield_now())
    }
}

/// A user with a token that is two minutes old, and what is needed to look at it.
struct Stage {
    site: Site,
    manager: TokenManager,
    user: UserHandle,
    old: String,
}

impl Stage {
    async fn new() -> Self {
        let site = Site::new();
        let hurdlr = site.hurdlr_by(Hasty(site.clock.clone()));
        let manager = TokenManager::builder(hurdlr, site.store.clone());
        let (manager, ann) = (manager.build().unwrap(), UserId::new("ann").unwrap());
        manager.adopt(&ann, site.login(&ann).await).await.unwrap();
        site.advance(120 * SECOND);
        site.fake.clear_requests();
        let user = manager.user(&ann);
        let old = access(&user.token().await.unwrap());
        Self { site, manager, user, old }
    }

    /// How long was waited for what is no refresh.
    fn waits(&self) -> Vec<Duration> {
        self.site.clock.waits().into_iter().filter(|wait| *wait <= SHORT).collect()
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

/// A client for calls of the API.
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

/// A client as apps build it: redirects are followed around the layer.
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
                    Err(error) => Err(Error::of(&error).unwrap().clone()),
                }
            }
            Self::Layer(service) => {
                *request.version_mut() = http::Version::HTTP_11;
                let answer = service.oneshot(request).await;
                answer.map_err(|error| Error::of(&*error).unwrap().clone())
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

/// No test waits for it, unless it fails.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SHORT, future).await.unwrap()
}

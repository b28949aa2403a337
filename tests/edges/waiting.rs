//! Time limits, pauses, and the slots of a service.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hurdlr_oauth2::manager::UserHandle;
use hurdlr_oauth2::reqwest_middleware::{self, Next};
use hurdlr_oauth2::testing::{Fault, Gate};
use hurdlr_oauth2::{CallPolicy, Error, ErrorKind, UserId, reqwest};
use tokio::sync::Notify;
use tower::limit::ConcurrencyLimit;
use tower::timeout::Timeout;
use tower::timeout::error::Elapsed;
use tower::{Layer, Service, ServiceExt};

use super::{BoxError, Content, Stage, TestBody, answer, limited, soon};
use crate::site::SECOND;
use crate::support::RawServer;

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
async fn layer_calls_only_a_ready_service() {
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
    assert_eq!(Error::of(&error).map(Error::kind), Some(ErrorKind::TimedOut));
    assert_eq!(api.requests().len(), 4);
    // The refresh goes on.
    gate.open();
    cold.token().await.unwrap();
    assert_eq!(stage.site.fake.count().grant("client_credentials"), 1);
}

/// A refused call that cannot be repeated waits for the new token in its own time only. After that
/// the refusal says more than the end of the time.
#[tokio::test]
async fn late_token_leaves_call_its_refusal() {
    let stage = Stage::new().await;
    let gate = Gate::closed();
    stage.site.fake.fault_next(Fault::Hold(gate.clone()));
    let api = RawServer::replying([answer(401)]).await;
    let policy = CallPolicy::default().origin(api.base_url());
    let client = stage.user.middleware().policy(policy).unwrap();
    let client = client.client(|builder| builder).unwrap().build();
    let body = reqwest::Body::wrap(TestBody::of(Content::Single));
    let call = client.post(api.base_url()).body(body).timeout(20 * SECOND);
    assert_eq!(soon(call.send()).await.unwrap().status(), 401);
    gate.open();
    stage.user.token().await.unwrap();
    assert_eq!(stage.site.refreshes(), 1);
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

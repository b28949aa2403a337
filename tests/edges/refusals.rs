//! A token that the API refuses: one refresh, no loop, and the reason told.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::reqwest::ResponseBuilderExt;
use hurdlr_oauth2::reqwest_middleware::{self, Next};
use hurdlr_oauth2::testing::{Fault, Gate};
use hurdlr_oauth2::{CallPolicy, ErrorKind, UserId, reqwest};
use tokio::sync::Barrier;
use tower::{Layer, ServiceExt};

use super::{BoxError, Call, KINDS, Kind, Stage, TestBody, answer, by_sockets, soon};
use crate::support::RawServer;

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
async fn thousand_401_of_one_token_refresh_once() {
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
async fn dropped_call_cancels_no_refresh() {
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
async fn api_refusing_every_token_makes_no_loop() {
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
async fn call_without_token_is_unsent_and_explained() {
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

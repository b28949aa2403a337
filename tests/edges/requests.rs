//! Requests reach the wire as the caller made them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body_util::Full;
use hurdlr_oauth2::reqwest_middleware::{self, Next};
use hurdlr_oauth2::{CallPolicy, reqwest};
use tower::{Layer, ServiceExt};

use super::{BoxError, Content, KINDS, Stage, TestBody, answer, limited};
use crate::site::SECOND;
use crate::support::RawServer;

#[tokio::test]
async fn body_goes_unread_and_token_marked() {
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

#[tokio::test]
async fn layer_repeats_empty_bodies_only_unless_told() {
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

//! The API of `FakeHurdlr`: expenses from the start, and a router of the test's own.

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::{HeaderMap, StatusCode, Uri};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Outcome, RecordedRequest};
use hurdlr_oauth2::{ApiVersion, Hurdlr, Scope, UserId};
use oauth2::AsyncHttpClient;
use serde_json::{Value, json};

async fn token(fake: &FakeHurdlr, version: ApiVersion, user: &str) -> String {
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .api_version(version)
        .http_client(fake.http_client());
    let hurdlr =
        if version == ApiVersion::V6 { hurdlr.scope(Scope::Read) } else { hurdlr }.build().unwrap();
    let token = hurdlr.client_credentials(&UserId::new(user).unwrap()).await.unwrap();
    token.access_token().expose_secret().to_owned()
}

async fn call(
    fake: &FakeHurdlr,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> (StatusCode, Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(fake.base_url().join(path).unwrap().as_str())
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(body.as_bytes().to_vec())
        .unwrap();
    let answer = fake.http_client().call(request).await.unwrap();
    (answer.status(), serde_json::from_slice(answer.body()).unwrap_or_default())
}

/// Each user has expenses of their own, under every version, and nobody has them without a token.
#[tokio::test]
async fn expenses_are_there_from_the_start() {
    let fake = FakeHurdlr::in_memory();
    for (version, path) in [
        (ApiVersion::V4, "/rest/v4/expenses"),
        (ApiVersion::V5, "/rest/v5/expenses"),
        (ApiVersion::V6, "/v6/expenses"),
    ] {
        let mut seen = Vec::new();
        for user in ["ann", "bob"] {
            let token = token(&fake, version, user).await;
            let (status, expenses) = call(&fake, "GET", path, &token, "").await;
            assert_eq!((status.as_u16(), expenses[0]["owner"].as_str()), (200, Some(user)));
            assert!(expenses[0]["amount"].as_f64().unwrap() > 0.0);
            seen.push(expenses[0]["amount"].clone());
        }
        assert_ne!(seen[0], seen[1]);
        assert_eq!(call(&fake, "GET", path, "nobody's", "").await.0, 401);
    }
}

async fn list(Extension(call): Extension<RecordedRequest>, uri: Uri) -> String {
    json!({ "owner": call.user(), "query": uri.query() }).to_string()
}

async fn add(
    Extension(call): Extension<RecordedRequest>,
    Path(year): Path<u32>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let kind = headers["content-type"].to_str().unwrap();
    let added = json!({ "owner": call.user(), "year": year, "kind": kind, "body": body });
    (StatusCode::CREATED, added.to_string())
}

fn router() -> Router {
    Router::new().route("/rest/v4/trips", get(list)).route("/rest/v4/trips/{year}", post(add))
}

/// The router sees the whole call and its user, and answers with any status.
#[tokio::test]
async fn router_serves_calls_by_user() {
    let fake = FakeHurdlr::in_memory();
    fake.api().router(router());
    for user in ["ann", "bob"] {
        let token = token(&fake, ApiVersion::V4, user).await;
        let listed = call(&fake, "GET", "/rest/v4/trips?page=2", &token, "").await;
        let expected = json!({ "owner": user, "query": "page=2" });
        assert_eq!(listed, (StatusCode::OK, expected));
        let added = call(&fake, "POST", "/rest/v4/trips/2026", &token, "{}").await;
        let kind = "application/json";
        let expected = json!({ "owner": user, "year": 2026, "kind": kind, "body": "{}" });
        assert_eq!(added, (StatusCode::CREATED, expected));
        assert_eq!(call(&fake, "GET", "/rest/v4/nothing", &token, "").await.0, 404);
        // A path that has data is served from there.
        assert_eq!(call(&fake, "GET", "/rest/v4/me", &token, "").await.1["user"], user);
    }
    let last = fake.api().requests().pop().unwrap();
    assert_eq!(
        (last.user(), last.status(), last.outcome()),
        (Some("bob"), Some(StatusCode::OK), Some(Outcome::Served),)
    );
}

/// A call without a living token, of too small a scope or with a fault does not reach the router.
#[tokio::test]
async fn router_is_behind_the_tokens() {
    let fake = FakeHurdlr::in_memory();
    let reached = Router::new().fallback(async || StatusCode::IM_A_TEAPOT);
    fake.api().router(reached);
    assert_eq!(call(&fake, "GET", "/rest/v4/trips", "nobody's", "").await.0, 401);
    let [v4, v6] =
        [token(&fake, ApiVersion::V4, "ann").await, token(&fake, ApiVersion::V6, "ann").await];
    assert_eq!(call(&fake, "GET", "/rest/v4/trips", &v4, "").await.0, 418);
    assert_eq!(call(&fake, "GET", "/rest/v4/trips", &v6, "").await.0, 401);
    assert_eq!(call(&fake, "GET", "/v6/trips", &v6, "").await.0, 418);
    assert_eq!(call(&fake, "POST", "/v6/trips", &v6, "").await.0, 403);
    fake.api().fault_next(Fault::Forbidden);
    assert_eq!(call(&fake, "GET", "/rest/v4/trips", &v4, "").await.0, 403);
}

//! The API behind the provider's tokens.

use http::{StatusCode, header};
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, Fault, Gate, Outcome};
use hurdlr_oauth2::{Environment, Partner, UserId};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{V5, call, get, grant, refusal, resource, seconds, send_to, socket_client};

#[tokio::test]
async fn resource_tells_dead_from_expired_token() {
    let fake = FakeHurdlr::builder().token_life(seconds(60)).in_memory();
    let token = grant(&fake, "ann").await.get("access_token");
    assert_eq!(resource(&fake, &token).await.json()["user"], "ann");
    let unknown = resource(&fake, "nonsense").await;
    assert_eq!(unknown.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    assert!(unknown.header(header::WWW_AUTHENTICATE).starts_with("Bearer"));
    fake.advance_clock(seconds(60));
    let expired = resource(&fake, &token).await;
    assert_eq!(expired.refusal(), refusal(401, "EXPIRED_TOKEN", "access_token"));
    assert!(!fake.is_alive(&token));
    let counts = fake.api().count();
    assert_eq!((counts.outcome(Outcome::Served), counts.outcome(Outcome::BearerRefused)), (1, 2));
}

/// RFC 6750 section 3.1.
#[tokio::test]
async fn resource_without_credentials_names_no_error() {
    let fake = FakeHurdlr::in_memory();
    for authorization in [None, Some("Basic YTpi"), Some("")] {
        let mut request =
            http::Request::get(fake.resource_url().as_str()).body(Vec::new()).unwrap();
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let answer = call(&fake, request).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(answer.header(header::WWW_AUTHENTICATE), "Bearer realm=\"hurdlr\"");
        assert!(answer.body.is_empty(), "{authorization:?}");
    }
    assert_eq!(fake.api().count().outcome(Outcome::BearerRefused), 3);
}

#[tokio::test]
async fn resource_takes_bodies_and_serves_v5() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "client_credentials"), ("userId", "ann")];
    let token = send_to(&fake, V5, &fields).await.unwrap().get("access_token");
    let request = http::Request::post(fake.base_url().join("rest/v5/me").unwrap().as_str())
        .header(header::AUTHORIZATION, format!("bearer {token}"))
        .body(vec![b'x'; 40])
        .unwrap();
    let answer = call(&fake, request).await.unwrap().json();
    assert_eq!(
        (answer["method"].as_str(), answer["body_bytes"].as_u64()),
        (Some("POST"), Some(40))
    );
}

#[tokio::test]
async fn api_serves_the_tests_own_data() {
    let fake = FakeHurdlr::in_memory();
    let [ann, bob] = [grant(&fake, "ann").await, grant(&fake, "bob").await];
    let expenses = fake.api().resource("rest/v4/expenses", |call| json!([{ "of": call.user() }]));
    assert_eq!(expenses, fake.base_url().join("rest/v4/expenses").unwrap());
    let mut queried = expenses.clone();
    queried.set_query(Some("page=2"));
    for (user, answer) in [("ann", &ann), ("bob", &bob)] {
        let served = get(&fake, &queried, &answer.get("access_token")).await;
        assert_eq!((served.status.as_u16(), served.json()), (200, json!([{ "of": user }])));
    }
    let refused = get(&fake, &expenses, &ann.get("refresh_token")).await;
    assert_eq!(refused.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    let elsewhere = fake.base_url().join("rest/v4/expenses/7").unwrap();
    assert_eq!(get(&fake, &elsewhere, &ann.get("access_token")).await.status, 404);
    // The newest data of a path are served, under any method.
    fake.api().resource("/rest/v4/expenses", |call| json!(call.method().as_str()));
    let mut request = http::Request::delete(expenses.as_str()).body(Vec::new()).unwrap();
    let token = format!("Bearer {}", ann.get("access_token"));
    request.headers_mut().insert(header::AUTHORIZATION, token.parse().unwrap());
    assert_eq!(call(&fake, request).await.unwrap().json(), json!("DELETE"));
}

#[tokio::test]
async fn api_calls_are_recorded_and_counted() {
    for record in [true, false] {
        let fake = FakeHurdlr::builder().token_life(seconds(60)).record(record).in_memory();
        let token = grant(&fake, "ann").await.get("access_token");
        let mut url = fake.resource_url();
        url.set_query(Some("a=b"));
        get(&fake, &url, &token).await;
        get(&fake, &fake.resource_url(), "nonsense").await;
        get(&fake, &fake.authorize_url().join("/nothing").unwrap(), &token).await;
        fake.advance_clock(seconds(60));
        get(&fake, &url, &token).await;

        let calls = fake.api().requests();
        let seen: Vec<_> = calls
            .iter()
            .map(|call| (call.path(), call.query(), call.user(), call.outcome(), call.status()))
            .collect();
        let status = |status| Some(StatusCode::from_u16(status).unwrap());
        let (me, ann) = ("/rest/v4/me", Some("ann"));
        let all = [
            (me, Some("a=b"), ann, Some(Outcome::Served), status(200)),
            (me, None, None, Some(Outcome::BearerRefused), status(401)),
            ("/nothing", None, ann, Some(Outcome::InvalidRequest), status(404)),
            (me, Some("a=b"), ann, Some(Outcome::BearerRefused), status(401)),
        ];
        assert_eq!(seen, if record { &all[..] } else { &[] });
        assert!(calls.iter().all(|call| call.method() == "GET" && call.grant().is_none()));
        assert!(!format!("{calls:?} {:?}", fake.api()).contains(&token));
        let counts = fake.api().count();
        assert_eq!((counts.total(), counts.user("ann")), (4, 3));
        assert_eq!(counts.outcome(Outcome::BearerRefused), 2);

        assert_eq!(fake.count().total(), 1, "calls are no token requests");
        fake.clear_requests();
        assert_eq!(fake.api().count().total(), 4);
        fake.api().clear_requests();
        assert_eq!((fake.api().count().total(), fake.api().requests().len()), (0, 0));
    }
}

/// Partner-level calls, as v5 alone has them.
#[tokio::test]
async fn v5_api_takes_client_by_basic() {
    let fake = FakeHurdlr::builder().client("a b", "s+e:c/r&t%".into()).start().await.unwrap();
    let (secret, base) = (fake.client_secret(), Environment::from(fake.base_url()));
    let send = async |partner: &Partner, path: &str| {
        let ann = partner.user(&UserId::new("ann").unwrap()).unwrap();
        let client = ann.middleware().client(|builder| builder).unwrap().build();
        client.get(fake.base_url().join(path).unwrap()).send().await.unwrap()
    };
    let partner = Partner::new(fake.client_id(), &secret, &base).unwrap();
    let served = send(&partner, "rest/v5/me").await;
    assert_eq!(served.status(), 200);
    let body: Value = serde_json::from_str(&served.text().await.unwrap()).unwrap();
    assert_eq!(body["user"], "ann");
    for (status, path) in [(401, "rest/v4/me"), (401, "v6/me"), (404, "rest/v5/nothing")] {
        assert_eq!(send(&partner, path).await.status(), status, "{path}");
    }
    let wrong = Partner::new(fake.client_id(), &"wrong".into(), &base).unwrap();
    assert_eq!(send(&wrong, "rest/v5/me").await.status(), 401);

    let calls = fake.api().requests();
    assert!(calls.iter().all(|call| call.user() == Some("ann")));
    assert_eq!(calls[4].outcome(), Some(Outcome::InvalidClient));
    let unnamed = reqwest::Client::new()
        .get(fake.base_url().join("rest/v5/me").unwrap())
        .basic_auth(fake.client_id(), Some(secret.expose_secret()));
    assert_eq!(unnamed.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn api_faults_are_queued_or_planned() {
    let fake = FakeHurdlr::in_memory();
    let [ann, bob] = [grant(&fake, "ann").await, grant(&fake, "bob").await];
    let api = fake.api();
    for fault in [Fault::Unauthorized, Fault::Forbidden, Fault::rate_limited_for(seconds(7))] {
        api.fault_next(fault);
    }
    api.fault_plan(|call| (call.user() == Some("bob")).then(|| Fault::status(503)));
    let me = fake.resource_url();
    let token = ann.get("access_token");

    let unauthorized = get(&fake, &me, &token).await;
    assert_eq!(unauthorized.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    assert!(unauthorized.header(header::WWW_AUTHENTICATE).contains("invalid_token"));
    let forbidden = get(&fake, &me, &token).await;
    assert_eq!(forbidden.status, 403);
    assert!(forbidden.header(header::WWW_AUTHENTICATE).contains("insufficient_scope"));
    let limited = get(&fake, &me, &token).await;
    assert_eq!((limited.status.as_u16(), limited.header(header::RETRY_AFTER)), (429, "7"));
    assert_eq!(get(&fake, &me, &token).await.status, 200, "the queue is empty");
    for _ in 0..2 {
        assert_eq!(get(&fake, &me, &bob.get("access_token")).await.status, 503);
    }
    assert_eq!(api.count().outcome(Outcome::Faulted), 5);
    api.clear_faults();
    assert_eq!(get(&fake, &me, &bob.get("access_token")).await.status, 200);
}

#[tokio::test]
async fn api_and_token_faults_are_apart() {
    let fake = FakeHurdlr::in_memory();
    fake.api().fault_next(Fault::Forbidden);
    fake.fault_next(Fault::Unauthorized);
    let refused = grant(&fake, "ann").await;
    assert_eq!(refused.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    let token = grant(&fake, "ann").await.get("access_token");
    assert_eq!(resource(&fake, &token).await.status, 403);
    assert_eq!(resource(&fake, &token).await.status, 200);
    fake.set_error_style(ErrorStyle::Rfc6749);
    fake.api().fault_next(Fault::Forbidden);
    assert_eq!(resource(&fake, &token).await.json()["error"], "insufficient_scope");
}

/// The faults of the connection, too.
#[tokio::test]
async fn api_call_can_act_unanswered() {
    let fake = FakeHurdlr::start().await.unwrap();
    let token = grant(&fake, "ann").await.get("access_token");
    let gate = Gate::closed();
    fake.api().fault_next(Fault::DropAfter);
    fake.api().fault_next(Fault::Hold(gate.clone()));
    let send = || socket_client().post(fake.resource_url()).bearer_auth(&token).send();
    send().await.unwrap_err();
    let call = &fake.api().requests()[0];
    assert_eq!((call.outcome(), call.status()), (Some(Outcome::Served), None));
    let held = tokio::spawn(send());
    fake.api().arrived(2).await;
    assert_eq!(fake.api().requests()[1].outcome(), None);
    gate.open();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

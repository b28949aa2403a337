//! Token answers and refusals, and the requests that are none.

use std::time::{Duration, SystemTime};

use http::header;
use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::testing::{
    ErrorStyle, FakeHurdlr, ManualClock, Outcome, Rotation, TokenBuilder,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{
    V4, V5, call, form, grant, post, refresh, refusal, seconds, send_by_socket, socket_client,
    whole,
};

#[tokio::test]
async fn token_answers_match_the_references_bytes() {
    let fixture = include_str!("../fixtures/v4_token.json");
    let example: Value = serde_json::from_str(fixture).unwrap();
    let fake = FakeHurdlr::in_memory();
    for path in [V4, V5] {
        let secret = fake.client_secret();
        let fields = [
            ("client_id", fake.client_id()),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "client_credentials"),
            ("userId", "ann"),
        ];
        let answer = call(&fake, form(&fake, path, &fields)).await.unwrap();
        assert_eq!(answer.status, 200);
        let token = answer.json();
        let expected = fixture
            .replace(example["access_token"].as_str().unwrap(), &answer.get("access_token"))
            .replace(example["refresh_token"].as_str().unwrap(), &answer.get("refresh_token"))
            .replace(&example["created_at"].to_string(), &token["created_at"].to_string());
        assert_eq!(answer.text(), expected);
        for name in ["access_token", "refresh_token"] {
            let value = answer.get(name);
            let (left, right) = value.split_once('.').unwrap();
            assert_eq!((left.len(), right.len()), (64, 32));
            assert!(value.bytes().all(|b| b == b'.' || b.is_ascii_hexdigit()));
        }
    }
}

#[tokio::test]
async fn refusals_match_the_reference_envelope() {
    let fake = FakeHurdlr::in_memory();
    let answer = post(&fake, &[("grant_type", "client_credentials")]).await;
    let expected = r#"{
    "result": "FAILURE",
    "data": null,
    "error": [
        {
            "type": "REQUIRED",
            "message": "userId is required",
            "param": "userId"
        }
    ]
}
"#;
    assert_eq!(answer.text(), expected);
}

#[tokio::test]
async fn no_answer_may_be_cached() {
    let fake = FakeHurdlr::in_memory();
    for answer in [grant(&fake, "ann").await, grant(&fake, "").await] {
        assert_eq!(answer.header(header::CACHE_CONTROL), "no-store");
        assert_eq!(answer.header(header::CONTENT_TYPE), "application/json;charset=UTF-8");
    }
}

#[tokio::test]
async fn date_follows_the_providers_manual_clock() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = socket_client();
    let before = SystemTime::now();
    fake.advance_clock(Duration::from_hours(24 * 365));
    let socket = whole(send_by_socket(&client, &fake, "ann").await.unwrap()).await.unwrap();
    for answer in [socket, grant(&fake, "ann").await] {
        assert_eq!(answer.headers.get_all(header::DATE).iter().count(), 1);
        let date = httpdate::parse_http_date(answer.header(header::DATE)).unwrap();
        let ahead = date.duration_since(before).unwrap();
        // A second less: the header has no fractions.
        assert!(ahead + seconds(1) >= Duration::from_hours(24 * 365));
        let created_at = answer.json()["created_at"].as_u64().unwrap();
        let date = date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(date.abs_diff(created_at) <= 1);
    }
}

#[tokio::test]
async fn clock_at_its_end_prints_a_date() {
    let fake = FakeHurdlr::in_memory();
    fake.advance_clock(Duration::MAX);
    fake.advance_clock(Duration::MAX);
    assert_eq!(grant(&fake, "ann").await.status, 200);
}

#[tokio::test]
async fn reshaping_changes_answers_until_cleared() {
    let fake = FakeHurdlr::in_memory();
    fake.reshape(|token| {
        token.remove("refresh_token");
        token.insert("expires_in".into(), json!(0));
    });
    let token = grant(&fake, "ann").await.json();
    assert_eq!(token["expires_in"], 0);
    assert!(token.get("refresh_token").is_none());
    assert!(fake.is_alive(token["access_token"].as_str().unwrap()));
    fake.clear_reshape();
    assert_eq!(grant(&fake, "ann").await.json()["expires_in"], 7_776_000);
}

#[tokio::test]
async fn missing_or_empty_field_is_named() {
    let fake = FakeHurdlr::in_memory();
    let secret = fake.client_secret();
    let (id, secret) = (fake.client_id(), secret.expose_secret());
    let client = [("client_id", id), ("client_secret", secret)];
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("client_secret", secret), ("grant_type", "refresh_token")], "client_id"),
        (&[("client_id", id), ("grant_type", "refresh_token")], "client_secret"),
        (&client, "grant_type"),
        (&[client[0], client[1], ("grant_type", "client_credentials")], "userId"),
        (&[client[0], client[1], ("grant_type", "refresh_token")], "refresh_token"),
        (&[client[0], client[1], ("grant_type", "authorization_code")], "code"),
    ];
    for (fields, missing) in cases {
        let empty = [fields, &[(missing, "")]].concat();
        for fields in [fields, &empty] {
            let answer = call(&fake, form(&fake, V4, fields)).await.unwrap();
            assert_eq!(answer.refusal(), refusal(400, "REQUIRED", missing));
        }
    }
    assert_eq!(fake.count().outcome(Outcome::InvalidRequest), 12);

    fake.set_error_style(ErrorStyle::Rfc6749);
    let answer = grant(&fake, "").await;
    assert_eq!((answer.status.as_u16(), answer.get("error").as_str()), (400, "invalid_request"));
}

#[tokio::test]
async fn wrong_client_or_secret_gets_401() {
    let fake = FakeHurdlr::in_memory();
    let secret = fake.client_secret();
    let cases = [
        ([("client_id", "else"), ("client_secret", secret.expose_secret())], "client_id"),
        ([("client_id", fake.client_id()), ("client_secret", "wrong")], "client_secret"),
    ];
    for (client, param) in cases {
        let fields =
            [&client[..], &[("grant_type", "client_credentials"), ("userId", "a")]].concat();
        let answer = call(&fake, form(&fake, V4, &fields)).await.unwrap();
        assert_eq!(answer.refusal(), refusal(401, "INVALID_VALUE", param));
        fake.set_error_style(ErrorStyle::Rfc6749);
        let answer = call(&fake, form(&fake, V4, &fields)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.get("error").as_str()), (401, "invalid_client"));
        assert!(answer.json()["error_description"].is_string());
        fake.set_error_style(ErrorStyle::Envelope);
    }
    assert_eq!(fake.count().outcome(Outcome::InvalidClient), 4);
    assert_eq!(fake.tokens_alive("a"), 0);
}

#[tokio::test]
async fn an_unknown_grant_type_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "password"), ("userId", "ann")];
    assert_eq!(post(&fake, &fields).await.refusal(), refusal(400, "INVALID_VALUE", "grant_type"));
    fake.set_error_style(ErrorStyle::Rfc6749);
    assert_eq!(post(&fake, &fields).await.get("error"), "unsupported_grant_type");
    assert_eq!(fake.count().outcome(Outcome::UnsupportedGrantType), 2);
}

#[tokio::test]
async fn a_repeated_field_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "client_credentials"), ("userId", "ann"), ("userId", "bob")];
    assert_eq!(post(&fake, &fields).await.refusal(), refusal(400, "BAD_REQUEST", "userId"));
}

#[tokio::test]
async fn only_posted_forms_are_token_requests() {
    let fake = FakeHurdlr::in_memory();
    let good = || {
        let secret = fake.client_secret();
        let fields = [
            ("client_id", fake.client_id()),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "client_credentials"),
            ("userId", "ann"),
        ];
        form(&fake, V4, &fields)
    };
    let mut charset = good();
    let media_type = "Application/X-WWW-Form-URLEncoded; charset=UTF-8".parse().unwrap();
    charset.headers_mut().insert(header::CONTENT_TYPE, media_type);
    assert_eq!(call(&fake, charset).await.unwrap().status, 200);

    let mut wrong = good();
    *wrong.method_mut() = http::Method::PUT;
    let answer = call(&fake, wrong).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header(header::ALLOW)), (405, "POST"));

    let mut wrong = good();
    wrong.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    assert_eq!(call(&fake, wrong).await.unwrap().refusal(), refusal(400, "BAD_REQUEST", ""));

    let mut wrong = good();
    *wrong.uri_mut() = format!("{}{V4}?userId=ann", fake.base_url()).parse().unwrap();
    assert_eq!(call(&fake, wrong).await.unwrap().refusal(), refusal(400, "BAD_REQUEST", ""));

    let mut wrong = good();
    wrong.body_mut().extend_from_slice(&vec![b'x'; 20_000]);
    assert_eq!(call(&fake, wrong).await.unwrap().status, 413);

    let elsewhere = form(&fake, "rest/v3/auth/token", &[]);
    assert_eq!(call(&fake, elsewhere).await.unwrap().status, 404);
}

#[tokio::test]
async fn settings_can_be_changed_while_it_runs() {
    let fake = FakeHurdlr::in_memory();
    fake.set_rotation(Rotation::None);
    fake.set_token_life(seconds(60));
    let first = grant(&fake, "ann").await;
    assert_eq!(first.json()["expires_in"], 60);
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(first.get("refresh_token"), second.get("refresh_token"));
    fake.set_rotation(Rotation::RotateAndKill);
    let third = refresh(&fake, &first.get("refresh_token")).await;
    assert_ne!(third.get("refresh_token"), first.get("refresh_token"));
}

#[test]
fn token_is_built_without_a_provider() {
    let clock = ManualClock::new();
    let builder = || TokenBuilder::new().clock(clock.clone()).life(seconds(60));
    let token = builder().access_token("a").refresh_token("r").scope("read").build().unwrap();
    assert_eq!(token.access_token().expose_secret(), "a");
    assert_eq!(token.refresh_token().unwrap().expose_secret(), "r");
    assert_eq!(token.scopes().collect::<Vec<_>>(), ["read"]);
    assert_eq!(token.expires_in(), Some(seconds(60)));
    assert!(!token.is_expired());
    clock.advance(seconds(60));
    assert!(token.is_expired());

    assert!(builder().age(seconds(60)).build().unwrap().is_expired());
    assert!(builder().age(seconds(9_999)).build().unwrap().is_expired());
    for unusable in [builder().access_token(""), builder().age(Duration::MAX)] {
        assert_eq!(unusable.build().unwrap_err().kind(), ErrorKind::Config);
    }
}

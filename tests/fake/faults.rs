//! Faults: what the provider does, and what of it arrives.

use std::error::Error as _;
use std::io;
use std::time::{Duration, SystemTime};

use http::{StatusCode, header};
use hurdlr_oauth2::testing::{BodyEncoding, ErrorStyle, FakeHurdlr, Fault, Outcome};
use hurdlr_oauth2::{Hurdlr, RetryPolicy, UserId};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{
    V4, Ways, call, form, grant, refresh, refusal, seconds, send, send_by_socket, socket_client,
};

#[tokio::test]
async fn wrong_credentials_can_have_a_token_code() {
    let fake = FakeHurdlr::builder().error_style(ErrorStyle::NoClientCode).in_memory();
    let wrong = [("client_id", fake.client_id()), ("client_secret", "wrong")];
    let answer = call(
        &fake,
        form(
            &fake,
            V4,
            &[&wrong[..], &[("grant_type", "client_credentials"), ("userId", "ann")]].concat(),
        ),
    )
    .await;
    assert_eq!(answer.unwrap().refusal(), refusal(401, "INVALID_TOKEN", ""));
    assert_eq!(fake.count().outcome(Outcome::InvalidClient), 1);
    let dead = refresh(&fake, "dead").await;
    assert_eq!(dead.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
}

#[tokio::test]
async fn unavailable_after_acting_is_bare() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::unavailable_after()).await {
        assert_eq!(answer.status, 503);
        assert!(!answer.headers.contains_key(header::RETRY_AFTER));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Issued), 2);
}

#[tokio::test]
async fn body_can_come_in_another_encoding() {
    let ways = Ways::open().await;
    for (encoding, start) in [
        (BodyEncoding::ByteOrderMark, &b"\xef\xbb\xbf{"[..]),
        (BodyEncoding::Utf16, b"\xff\xfe{\0"),
        (BodyEncoding::Latin1, b"{"),
        (BodyEncoding::Gzip, b"\x1f\x8b\x08"),
        (BodyEncoding::Deflate, b"\x78"),
    ] {
        for answer in ways.both(&Fault::Encoded(encoding)).await {
            assert!(answer.body.starts_with(start), "{encoding:?}");
            let coding = match encoding {
                BodyEncoding::Gzip => Some("gzip"),
                BodyEncoding::Deflate => Some("deflate"),
                _ => None,
            };
            let named = answer.headers.get(header::CONTENT_ENCODING);
            assert_eq!(named.map(|it| it.to_str().unwrap()), coding);
            if encoding == BodyEncoding::Latin1 {
                assert!(std::str::from_utf8(&answer.body).is_err());
            }
        }
        // And the crate's own clients read it.
        {
            let fake = &ways.fake;
            let builder = Hurdlr::builder(fake.client_id(), fake.client_secret())
                .environment(fake.base_url());
            let hurdlr = builder.retry(RetryPolicy::never()).build().unwrap();
            fake.fault_next(Fault::Encoded(encoding));
            let id = UserId::new("ann").unwrap();
            let token = hurdlr.client_credentials(&id).await.unwrap();
            assert!(fake.is_alive(token.access_token().expose_secret()), "{encoding:?}");
            fake.fault_next(Fault::Encoded(encoding));
            fake.set_error_style(ErrorStyle::Rfc6749);
            let dead = r#"{"access_token":"a","refresh_token":"dead"}"#;
            let error = hurdlr.refresh(&hurdlr.import(dead).unwrap()).await.unwrap_err();
            assert_eq!(error.code(), Some("invalid_grant"), "{encoding:?}");
        }
    }
}

#[tokio::test]
async fn dropped_connection_tells_whether_provider_acted() {
    let ways = Ways::open().await;
    for (fault, acted) in
        [(Fault::Refuse, false), (Fault::DropBefore, false), (Fault::DropAfter, true)]
    {
        let (fake, refused) = (&ways.fake, matches!(fault, Fault::Refuse));
        fake.clear_requests();
        fake.revoke_everything("ann");

        fake.fault_next(fault.clone());
        let error = send_by_socket(&ways.client, fake, "ann").await.unwrap_err();
        assert!(error.is_request() && !error.is_connect() && !error.is_timeout());

        fake.fault_next(fault);
        let error = send(fake, &[("grant_type", "client_credentials"), ("userId", "ann")]).await;
        let error = error.err().expect("no answer");
        let kind = error.source().unwrap().downcast_ref::<io::Error>().unwrap().kind();
        let expected =
            if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::ConnectionReset };
        assert_eq!((kind, error.kind()), (expected, expected));

        let outcome = if acted { Outcome::Issued } else { Outcome::Faulted };
        assert_eq!(fake.count().outcome(outcome), 2);
        assert_eq!(fake.tokens_alive("ann"), if acted { 2 } else { 0 });
        assert!(fake.requests().iter().all(|request| request.status().is_none()));
    }
    // The connection died, not the server.
    assert_eq!(send_by_socket(&ways.client, &ways.fake, "ann").await.unwrap().status(), 200);
}

#[tokio::test]
async fn rate_limit_names_time_without_acting() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::rate_limited_for(seconds(7))).await {
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header(header::RETRY_AFTER), "7");
        assert_eq!(answer.json()["result"], "FAILURE");
    }
    let until = SystemTime::UNIX_EPOCH + seconds(784_111_777);
    for answer in ways.both(&Fault::rate_limited_until(until)).await {
        assert_eq!(answer.header(header::RETRY_AFTER), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
    for answer in ways.both(&Fault::rate_limited()).await {
        assert!(!answer.headers.contains_key(header::RETRY_AFTER));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Faulted), 6);
    assert_eq!(ways.fake.tokens_alive("ann"), 0);
}

#[tokio::test]
async fn own_answers_are_given_without_acting() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::unavailable_for(seconds(3))).await {
        assert_eq!((answer.status.as_u16(), answer.header(header::RETRY_AFTER)), (503, "3"));
    }
    for answer in ways.both(&Fault::status(500)).await {
        assert_eq!(answer.status, 500);
        assert_eq!(answer.header(header::CONTENT_TYPE), "text/plain");
    }
    for answer in ways.both(&Fault::html(502)).await {
        assert_eq!(answer.status, 502);
        assert!(answer.header(header::CONTENT_TYPE).starts_with("text/html"));
        assert!(answer.text().starts_with("<html>"));
    }
    for answer in ways.both(&Fault::redirect(307, "https://evil.example/")).await {
        assert_eq!(answer.status, 307);
        assert_eq!(answer.header(header::LOCATION), "https://evil.example/");
    }
    for answer in ways.both(&Fault::answer(201, r#"{"a":1}"#)).await {
        assert_eq!((answer.status.as_u16(), answer.text()), (201, r#"{"a":1}"#));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Faulted), 10);
    assert_eq!(ways.fake.tokens_alive("ann"), 0);
}

#[tokio::test]
async fn own_answer_can_come_after_acting() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::answer_after(500, "")).await {
        assert_eq!((answer.status.as_u16(), answer.body.len()), (500, 0));
    }
    assert_eq!(ways.fake.tokens_alive("ann"), 2);
    assert!(
        ways.fake
            .requests()
            .iter()
            .all(|it| it.status() == Some(StatusCode::INTERNAL_SERVER_ERROR))
    );
}

#[tokio::test]
async fn truncated_answer_promises_more_than_sent() {
    let ways = Ways::open().await;
    ways.fake.fault_next(Fault::Truncated);
    let mut answer = send_by_socket(&ways.client, &ways.fake, "ann").await.unwrap();
    assert_eq!(answer.status(), 200);
    let promised = answer.content_length().unwrap();
    let first = answer.chunk().await.unwrap().expect("half of it came");
    assert!((first.len() as u64) < promised);
    assert!(first.starts_with(b"{\n  \"access_token\""));
    assert!(answer.chunk().await.is_err());

    ways.fake.fault_next(Fault::Truncated);
    let error = send(&ways.fake, &[("grant_type", "client_credentials"), ("userId", "ann")]).await;
    assert_eq!(error.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(ways.fake.tokens_alive("ann"), 2);
}

#[tokio::test]
async fn oversized_answer_is_right_but_long() {
    for answer in Ways::open().await.both(&Fault::Oversized).await {
        assert_eq!(answer.body.len(), 1024 * 1024);
        assert!(answer.json()["access_token"].is_string());
    }
}

#[tokio::test]
async fn wrong_content_type_has_right_body() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::ContentType("text/html".into())).await {
        assert_eq!(answer.header(header::CONTENT_TYPE), "text/html");
        assert!(answer.json()["access_token"].is_string());
    }
    for answer in ways.both(&Fault::ContentType(String::new())).await {
        assert!(!answer.headers.contains_key(header::CONTENT_TYPE));
    }
}

#[tokio::test]
async fn a_dripping_answer_arrives_by_socket_too() {
    let fake = FakeHurdlr::start().await.unwrap();
    fake.fault_next(Fault::Dripping { bytes: 50, every: Duration::from_millis(1) });
    let mut answer = send_by_socket(&socket_client(), &fake, "ann").await.unwrap();
    let promised = answer.content_length().unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert_eq!(got.len() as u64, promised);
    assert!(serde_json::from_slice::<Value>(&got).is_ok());
}

#[tokio::test]
async fn fault_beyond_http_says_so() {
    let fake = FakeHurdlr::in_memory();
    for fault in [Fault::status(99), Fault::redirect(302, "a\nb")] {
        fake.fault_next(fault);
        let answer = grant(&fake, "ann").await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().starts_with("FakeHurdlr cannot do this"));
    }
}

#[tokio::test]
async fn queued_faults_precede_the_plan() {
    let fake = FakeHurdlr::in_memory();
    fake.fault_plan({
        let fake = fake.clone();
        move |request| {
            assert!(fake.count().total() < 100, "a plan may ask the provider");
            (request.user() == Some("bob")).then(|| Fault::status(504))
        }
    });
    fake.fault_next(Fault::status(501));
    fake.fault_next(Fault::status(502));
    let mut statuses = Vec::new();
    for user in ["bob", "ann", "bob", "ann"] {
        statuses.push(grant(&fake, user).await.status.as_u16());
    }
    assert_eq!(statuses, [501, 502, 504, 200]);
    fake.fault_next(Fault::status(503));
    fake.clear_faults();
    assert_eq!(grant(&fake, "bob").await.status, 200);
}

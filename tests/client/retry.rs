//! What is sent again, when and how often: every row of the table, for every grant.

use std::error::Error as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{
    ErrorStyle, FakeHurdlr, Fault, ManualClock, Outcome, RecordedRequest, Rotation,
};
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{Error, ErrorKind, HttpError, Hurdlr, PendingLogin, RetryPolicy, Token};
use tokio::time::Instant;

use crate::support;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Grant {
    ClientCredentials,
    RefreshToken,
    AuthorizationCode,
}
use Grant::{AuthorizationCode, ClientCredentials, RefreshToken};

const GRANTS: [Grant; 3] = [ClientCredentials, RefreshToken, AuthorizationCode];

/// A grant with all it needs, up to the request itself.
enum Prepared {
    ClientCredentials,
    RefreshToken(Token),
    AuthorizationCode(PendingLogin, Url),
}

impl Grant {
    /// Leaves no request and no fault behind.
    async fn prepare(self, fake: &FakeHurdlr, hurdlr: &Hurdlr) -> Prepared {
        fake.clear_faults();
        let prepared = match self {
            ClientCredentials => Prepared::ClientCredentials,
            RefreshToken => Prepared::RefreshToken(logged_in(fake, hurdlr).await),
            AuthorizationCode => {
                let (url, pending) = hurdlr.begin_login().unwrap();
                Prepared::AuthorizationCode(pending, fake.consent(&url, "ann").await.unwrap())
            }
        };
        fake.clear_requests();
        fake.fault_plan(bounded(None));
        prepared
    }
}

/// The same for each request, as long as they come to an end: a client that repeats for ever is to
/// fail its test, not to hang it.
fn bounded(fault: Option<Fault>) -> impl Fn(&RecordedRequest) -> Option<Fault> {
    let left = AtomicU32::new(100);
    move |_| {
        assert!(left.fetch_sub(1, Ordering::Relaxed) > 0, "requests without end");
        fault.clone()
    }
}

impl Prepared {
    async fn send(self, hurdlr: &Hurdlr) -> Result<Token, Error> {
        match self {
            Self::ClientCredentials => hurdlr.client_credentials(&support::ann()).await,
            Self::RefreshToken(token) => hurdlr.refresh(&token).await,
            Self::AuthorizationCode(pending, callback) => {
                hurdlr.complete_login(pending, &callback).await
            }
        }
    }
}

async fn logged_in(fake: &FakeHurdlr, hurdlr: &Hurdlr) -> Token {
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.consent(&url, "ann").await.unwrap();
    hurdlr.complete_login(pending, &callback).await.unwrap()
}

/// Sends a grant to a provider that fails in the same way each time. Gives the error and how many
/// requests arrived, after the error's own count was compared with that.
async fn failing(grant: Grant, fault: Fault) -> (Error, u64) {
    let fake = FakeHurdlr::in_memory();
    let (builder, clock) = support::in_memory(&fake);
    let hurdlr = builder
        .request_timeout(2 * SECOND)
        .retry(RetryPolicy::default().total_timeout(600 * SECOND))
        .build()
        .unwrap();
    let prepared = grant.prepare(&fake, &hurdlr).await;
    fake.fault_plan(bounded(Some(fault)));
    let error = prepared.send(&hurdlr).await.unwrap_err();
    let sent = fake.count().total();
    assert_eq!(u64::from(error.attempts()), sent, "{grant:?}: {error:?}");
    assert!(clock.waits().len() < 4);
    (error, sent)
}

/// Compares a row of the table: how often each grant is sent in all, of four times allowed.
async fn assert_row(
    fault: Fault,
    sent: [u64; 3],
    kind: ErrorKind,
    status: Option<u16>,
    unanswered: bool,
) {
    for (grant, expected) in GRANTS.into_iter().zip(sent) {
        let (error, sent) = failing(grant, fault.clone()).await;
        let row = format!("{grant:?} {fault:?} {error:?}");
        assert_eq!(sent, expected, "{row}");
        assert_eq!(error.kind(), kind, "{row}");
        assert_eq!(error.status().map(|it| it.as_u16()), status, "{row}");
        assert_eq!(error.is_unanswered(), unanswered, "{row}");
    }
}

fn page(status: u16, body: &str) -> Fault {
    Fault::Status { status, content_type: "text/html".into(), body: body.into(), retry_after: None }
}

#[tokio::test(start_paused = true)]
async fn unsent_request_is_repeated_for_any_grant() {
    assert_row(Fault::Refuse, [4, 4, 4], ErrorKind::Unavailable, None, false).await;
}

#[tokio::test]
async fn closed_port_means_request_was_unsent() {
    let (_held, port) = support::closed_port();
    let hurdlr = support::impatient(&format!("http://127.0.0.1:{port}")).build().unwrap();
    let error = hurdlr.client_credentials(&support::ann()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!((error.attempts(), error.is_unanswered()), (4, false));
    let source = error.source().unwrap().downcast_ref::<HttpError>();
    assert!(matches!(source, Some(HttpError::NotSent(_))), "{source:?}");

    let token = hurdlr.import(r#"{"access_token":"a","refresh_token":"r"}"#).unwrap();
    let error = hurdlr.refresh(&token).await.unwrap_err();
    assert_eq!((error.attempts(), error.is_unanswered()), (4, false));
}

/// A body that can be read, or a time to come back, is the provider's own.
#[tokio::test(start_paused = true)]
async fn explained_pause_is_repeated_for_every_grant() {
    let slow_down = r#"{"error":"slow_down"}"#;
    for (fault, kind, status) in [
        (Fault::rate_limited(), ErrorKind::RateLimited, 429),
        (Fault::rate_limited_for(3 * SECOND), ErrorKind::RateLimited, 429),
        (Fault::answer(503, slow_down), ErrorKind::Unavailable, 503),
        (Fault::unavailable_for(3 * SECOND), ErrorKind::Unavailable, 503),
    ] {
        assert_row(fault, [4, 4, 4], kind, Some(status), false).await;
    }
}

/// A proxy says so of requests that the provider has acted on.
#[tokio::test(start_paused = true)]
async fn bare_pause_does_not_prove_inaction() {
    for (fault, kind, status) in [
        (Fault::html(429), ErrorKind::RateLimited, 429),
        (Fault::status(429), ErrorKind::RateLimited, 429),
        (Fault::status(503), ErrorKind::Unavailable, 503),
        (page(503, ""), ErrorKind::Unavailable, 503),
        (Fault::answer(503, r#"{"message":"no error here"}"#), ErrorKind::Unavailable, 503),
        (Fault::status(408), ErrorKind::Unavailable, 408),
        (Fault::status(425), ErrorKind::Unavailable, 425),
    ] {
        assert_row(fault, [4, 2, 1], kind, Some(status), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn death_behind_bare_503_is_rotation_lost() {
    for status in [503, 429, 408] {
        let fake = FakeHurdlr::builder().error_style(ErrorStyle::Rfc6749).in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.build().unwrap();
        let prepared = RefreshToken.prepare(&fake, &hurdlr).await;
        fake.fault_next(Fault::AnswerAfter {
            status,
            content_type: "text/plain".into(),
            body: b"upstream connect error".to_vec(),
        });
        let error = prepared.send(&hurdlr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RotationLost, "{status}");
    }
}

/// No pause that is named is cut short, whatever the status beside it.
#[tokio::test(start_paused = true)]
async fn pause_beside_any_status_is_kept() {
    for status in [500, 502, 504, 408] {
        for grant in [ClientCredentials, RefreshToken] {
            let fake = FakeHurdlr::in_memory();
            let (builder, clock) = support::in_memory(&fake);
            let hurdlr = builder.build().unwrap();
            let prepared = grant.prepare(&fake, &hurdlr).await;
            fake.fault_next(Fault::Status {
                status,
                content_type: "text/plain".into(),
                body: String::new(),
                retry_after: Some("7".into()),
            });
            prepared.send(&hurdlr).await.unwrap();
            assert_eq!(clock.waits(), [7 * SECOND], "{status} {grant:?}");
        }
    }
    let fault = Fault::Status {
        status: 403,
        content_type: "text/plain".into(),
        body: String::new(),
        retry_after: Some("7".into()),
    };
    let (error, sent) = failing(RefreshToken, fault).await;
    assert_eq!((error.retry_after(), sent), (Some(7 * SECOND), 1));
}

#[tokio::test(start_paused = true)]
async fn server_error_leaves_the_outcome_open() {
    for status in [500, 501, 502, 504, 529, 599] {
        let kind = ErrorKind::Unavailable;
        assert_row(Fault::status(status), [4, 2, 1], kind, Some(status), true).await;
    }
    let envelope = r#"{"result":"FAILURE","data":null,"error":[{"type":"UNKNOWN_ERROR"}]}"#;
    for fault in [
        Fault::html(500),
        page(500, ""),
        Fault::answer(500, envelope),
        Fault::answer(500, r#"{"error":"invalid_grant"}"#),
    ] {
        assert_row(fault, [4, 2, 1], ErrorKind::Unavailable, Some(500), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn missing_answer_leaves_the_outcome_open() {
    for fault in [
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Truncated,
        Fault::Delay(3 * SECOND),
        Fault::DelayAfter(3 * SECOND),
        Fault::dripping(SECOND),
    ] {
        assert_row(fault, [4, 2, 1], ErrorKind::Unavailable, None, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_success_leaves_the_outcome_open() {
    for fault in [
        Fault::answer_after(200, "{"),
        Fault::answer_after(200, "{}"),
        Fault::answer_after(200, r#"{"access_token":""}"#),
        Fault::html(200),
        page(200, ""),
    ] {
        let kind = ErrorKind::InvalidResponse;
        assert_row(fault, [4, 2, 1], kind, Some(200), true).await;
    }
    let kind = ErrorKind::InvalidResponse;
    assert_row(page(204, ""), [4, 2, 1], kind, Some(204), true).await;
}

#[tokio::test(start_paused = true)]
async fn client_credentials_ignore_a_rescued_refresh_token() {
    let defective = r#"{"refresh_token":"kept","access_token":"#;
    for (grant, expected) in [(ClientCredentials, 4), (RefreshToken, 1), (AuthorizationCode, 1)] {
        let (error, sent) = failing(grant, Fault::answer_after(200, defective)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidResponse);
        assert_eq!(sent, expected, "{grant:?}");
        let rescued = error.rescued_refresh_token().unwrap();
        assert_eq!(rescued.expose_secret(), "kept");
    }
}

#[tokio::test(start_paused = true)]
async fn readable_refusal_is_final() {
    let envelope = r#"{"result":"FAILURE","data":null,"error":[{"type":"BAD_REQUEST"}]}"#;
    for (status, body) in [
        (400, envelope),
        (403, envelope),
        (404, envelope),
        (422, r#"{"error":"invalid_request"}"#),
        (403, r#"{"error":"invalid_request"}"#),
        (400, r#"{"error":"unauthorized_client"}"#),
        (200, envelope),
    ] {
        let fault = Fault::answer(status, body);
        let kind = ErrorKind::Rejected;
        assert_row(fault, [1, 1, 1], kind, Some(status), false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_refusal_neither_repeats_nor_kills() {
    for fault in [
        Fault::html(400),
        page(400, ""),
        Fault::answer(400, r#"{"message":"no error here"}"#),
        Fault::answer(400, "{"),
    ] {
        let kind = ErrorKind::InvalidResponse;
        assert_row(fault, [1, 1, 1], kind, Some(400), false).await;
    }
    for status in [403, 404, 418, 301, 302, 303, 307, 308, 304] {
        let kind = ErrorKind::InvalidResponse;
        assert_row(Fault::html(status), [1, 1, 1], kind, Some(status), false).await;
    }
}

/// Which requests carried an `Authorization` header.
fn bearers(fake: &FakeHurdlr) -> Vec<bool> {
    fake.requests().iter().map(|request| request.headers().contains_key("authorization")).collect()
}

#[tokio::test(start_paused = true)]
async fn refused_bearer_is_left_out_once() {
    let envelope = |code| {
        format!(r#"{{"result":"FAILURE","data":null,"error":[{{"type":"{code}","message":"m"}}]}}"#)
    };
    for fault in [
        Fault::html(401),
        Fault::answer(401, r#"{"error":"invalid_client"}"#),
        Fault::answer(401, envelope("EXPIRED_TOKEN")),
        Fault::answer(400, envelope("EXPIRED_TOKEN")),
        Fault::answer(403, envelope("INVALID_TOKEN")),
        Fault::answer(400, r#"{"error":"invalid_token"}"#),
        Fault::answer(200, envelope("INVALID_TOKEN")),
        Fault::answer(401, r#"{"error":"invalid_request"}"#),
    ] {
        let fake = FakeHurdlr::in_memory();
        for policy in [RetryPolicy::default(), RetryPolicy::never()] {
            let (builder, clock) = support::in_memory(&fake);
            let hurdlr = builder.retry(policy).build().unwrap();
            let prepared = RefreshToken.prepare(&fake, &hurdlr).await;
            fake.fault_next(fault.clone());
            let token = prepared.send(&hurdlr).await.unwrap();
            assert!(fake.is_alive(token.access_token().expose_secret()));
            assert_eq!(bearers(&fake), [true, false], "{fault:?}");
            assert!(clock.waits().is_empty(), "at once");
            // It was about that token, so the next one goes along again.
            hurdlr.refresh(&token).await.unwrap();
            assert_eq!(bearers(&fake), [true, false, true], "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_refusal_without_bearer_is_final() {
    for (fault, kind) in [
        (Fault::html(401), ErrorKind::InvalidResponse),
        (Fault::answer(401, r#"{"error":"invalid_client"}"#), ErrorKind::Rejected),
        // A 401 with a token code can also mean the client or a gateway.
        (Fault::answer(401, r#"{"result":"F","error":"EXPIRED_TOKEN"}"#), ErrorKind::Unavailable),
        (Fault::answer(400, r#"{"result":"F","error":"INVALID_TOKEN"}"#), ErrorKind::LoginRequired),
        // The code of RFC 6750, which servers send for a refresh token, too.
        (Fault::answer(401, r#"{"error":"invalid_token"}"#), ErrorKind::Unavailable),
        (Fault::answer(400, r#"{"error":"invalid_token"}"#), ErrorKind::LoginRequired),
        (Fault::answer(403, r#"{"error":"Expired_Token"}"#), ErrorKind::LoginRequired),
    ] {
        let (error, sent) = failing(RefreshToken, fault).await;
        assert_eq!((error.kind(), sent), (kind, 2), "{error:?}");
        assert!(!error.is_unanswered());
    }
}

#[tokio::test(start_paused = true)]
async fn no_other_grant_repeats_token_refusals() {
    for grant in [ClientCredentials, AuthorizationCode] {
        for (status, body) in [
            (401, r#"{"result":"F","error":"EXPIRED_TOKEN"}"#),
            (400, r#"{"result":"F","error":"INVALID_TOKEN"}"#),
            (400, r#"{"error":"invalid_grant"}"#),
        ] {
            let (error, sent) = failing(grant, Fault::answer(status, body)).await;
            assert_eq!((error.kind(), sent), (ErrorKind::Rejected, 1), "{error:?}");
            assert!(!error.needs_login());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn expired_access_token_hinders_no_refresh() {
    let fake = FakeHurdlr::builder().check_bearer(true).in_memory();
    let (builder, clock) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    let token = logged_in(&fake, &hurdlr).await;
    fake.clear_requests();
    fake.advance_clock(91 * 86_400 * SECOND);
    clock.advance(91 * 86_400 * SECOND);
    assert!(token.is_expired());
    let newer = hurdlr.refresh(&token).await.unwrap();
    assert!(!newer.is_expired());
    assert_eq!(bearers(&fake), [true, false]);
    assert_eq!(fake.count().outcome(Outcome::BearerRefused), 1);
}

#[tokio::test(start_paused = true)]
async fn each_wait_stays_within_its_doubled_bound() {
    let policy = RetryPolicy::default();
    let short = Duration::from_millis(400);
    for (policy, bounds) in [
        (policy.clone(), [250, 500, 1_000]),
        (policy.clone().initial_backoff(short), [400, 800, 1_600]),
        (policy.clone().max_backoff(short), [250, 400, 400]),
        (policy.initial_backoff(short).max_backoff(short), [400, 400, 400]),
    ] {
        let fake = FakeHurdlr::in_memory();
        let (builder, clock) = support::in_memory(&fake);
        let hurdlr = builder.retry(policy).build().unwrap();
        fake.fault_plan(|_| Some(Fault::DropBefore));
        hurdlr.client_credentials(&support::ann()).await.unwrap_err();
        let waits = clock.waits();
        assert_eq!(waits.len(), bounds.len());
        for (wait, bound) in waits.into_iter().zip(bounds.map(Duration::from_millis)) {
            assert!((bound / 2..=bound).contains(&wait), "{wait:?} {bound:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_named_in_seconds_is_kept() {
    for fault in [Fault::rate_limited_for(7 * SECOND), Fault::unavailable_for(7 * SECOND)] {
        for grant in GRANTS {
            let fake = FakeHurdlr::in_memory();
            let (builder, clock) = support::in_memory(&fake);
            let hurdlr = builder.build().unwrap();
            let prepared = grant.prepare(&fake, &hurdlr).await;
            fake.fault_next(fault.clone());
            prepared.send(&hurdlr).await.unwrap();
            assert_eq!(clock.waits(), [7 * SECOND]);
            assert_eq!(fake.count().total(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pause_as_date_follows_providers_clock() {
    let fake = FakeHurdlr::in_memory();
    for wrong_by in [0, 365 * 86_400] {
        let clock = ManualClock::at(fake.now() - wrong_by * SECOND);
        let hurdlr = support::of(&fake)
            .clock(clock.clone())
            .http_client(fake.http_client())
            .build()
            .unwrap();
        fake.fault_next(Fault::rate_limited_until(fake.now() + 7 * SECOND));
        hurdlr.client_credentials(&support::ann()).await.unwrap();
        assert_eq!(clock.waits(), [7 * SECOND]);
    }
}

#[tokio::test(start_paused = true)]
async fn past_date_asks_for_backoff_only() {
    let fake = FakeHurdlr::in_memory();
    let (builder, clock) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    fake.fault_next(Fault::rate_limited_until(fake.now() - 7 * SECOND));
    hurdlr.client_credentials(&support::ann()).await.unwrap();
    assert_eq!(clock.waits().len(), 1);
    assert!(clock.waits()[0] <= SECOND / 4);
    assert_eq!(fake.count().total(), 2);
}

#[tokio::test(start_paused = true)]
async fn pause_beyond_time_left_ends_call() {
    for grant in GRANTS {
        let (error, sent) = failing(grant, Fault::rate_limited_for(3_600 * SECOND)).await;
        assert_eq!((error.kind(), sent), (ErrorKind::RateLimited, 1));
        assert_eq!(error.retry_after(), Some(3_600 * SECOND));
        assert!(error.is_temporary() && !error.needs_login());

        let (error, sent) = failing(grant, Fault::unavailable_for(3_600 * SECOND)).await;
        assert_eq!((error.kind(), sent), (ErrorKind::Unavailable, 1));
        assert_eq!(error.retry_after(), Some(3_600 * SECOND));
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_pause_is_an_ordinary_backoff() {
    let fake = FakeHurdlr::in_memory();
    let (builder, clock) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    for text in ["soon", "-1", "1,5", ""] {
        fake.fault_next(Fault::RateLimited { retry_after: Some(text.into()) });
        hurdlr.client_credentials(&support::ann()).await.unwrap();
    }
    assert_eq!(clock.waits().len(), 4);
    assert!(clock.waits().iter().all(|wait| *wait <= SECOND / 4));
}

#[tokio::test(start_paused = true)]
async fn no_call_outlasts_its_total_time() {
    for (fault, attempts) in [
        (Fault::Refuse, 1_000_000),
        (Fault::Delay(3_600 * SECOND), 1_000_000),
        (Fault::rate_limited_for(7 * SECOND), 1_000_000),
    ] {
        for grant in GRANTS {
            let fake = FakeHurdlr::in_memory();
            let (builder, _) = support::in_memory(&fake);
            let policy = RetryPolicy::default().max_attempts(attempts).total_timeout(10 * SECOND);
            let hurdlr = builder.retry(policy).build().unwrap();
            let prepared = grant.prepare(&fake, &hurdlr).await;
            let plan = fault.clone();
            fake.fault_plan(move |_| Some(plan.clone()));
            let started = Instant::now();
            let error = prepared.send(&hurdlr).await.unwrap_err();
            // tokio's timers end at the next millisecond.
            let bound = 10 * SECOND + Duration::from_millis(5);
            assert!(started.elapsed() <= bound, "{:?}", started.elapsed());
            let spent = error.is_unanswered() && matches!(grant, AuthorizationCode);
            assert_eq!(error.is_temporary(), !spent, "{error:?}");
            assert_eq!(u64::from(error.attempts()), fake.count().total());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_attempt_is_one_request() {
    for grant in GRANTS {
        for fault in [Fault::Refuse, Fault::rate_limited(), Fault::DropAfter] {
            let fake = FakeHurdlr::in_memory();
            let (builder, clock) = support::in_memory(&fake);
            let hurdlr = builder.retry(RetryPolicy::never()).build().unwrap();
            let prepared = grant.prepare(&fake, &hurdlr).await;
            fake.fault_next(fault);
            let error = prepared.send(&hurdlr).await.unwrap_err();
            assert_eq!((error.attempts(), fake.count().total()), (1, 1));
            assert!(clock.waits().is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn passing_failure_ends_in_a_token() {
    for (grant, fault) in [
        (ClientCredentials, Fault::Refuse),
        (ClientCredentials, Fault::rate_limited()),
        (ClientCredentials, Fault::DropAfter),
        (ClientCredentials, Fault::html(502)),
        (RefreshToken, Fault::Refuse),
        (RefreshToken, Fault::rate_limited()),
        (RefreshToken, Fault::DropBefore),
        (RefreshToken, Fault::html(502)),
        (AuthorizationCode, Fault::Refuse),
        (AuthorizationCode, Fault::rate_limited()),
    ] {
        let fake = FakeHurdlr::in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.build().unwrap();
        let prepared = grant.prepare(&fake, &hurdlr).await;
        fake.fault_next(fault);
        let token = prepared.send(&hurdlr).await.unwrap();
        assert!(fake.is_alive(token.access_token().expose_secret()));
        assert_eq!(fake.count().total(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn code_perhaps_redeemed_is_never_resent() {
    // A second use would revoke the tokens of the first (RFC 6749 section 4.1.2).
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    let prepared = AuthorizationCode.prepare(&fake, &hurdlr).await;
    fake.fault_next(Fault::DropAfter);
    let error = prepared.send(&hurdlr).await.unwrap_err();
    assert!(error.is_unanswered() && !error.is_temporary());
    assert_eq!(fake.count().total(), 1);
    assert_eq!(fake.tokens_alive("ann"), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_answer_that_is_repeated_heals() {
    for rotation in [Rotation::None, Rotation::Grace(30 * SECOND)] {
        let fake = FakeHurdlr::builder().rotation(rotation).in_memory();
        let (builder, clock) = support::in_memory(&fake);
        let hurdlr = builder.build().unwrap();
        let prepared = RefreshToken.prepare(&fake, &hurdlr).await;
        fake.fault_next(Fault::DropAfter);
        let token = prepared.send(&hurdlr).await.unwrap();
        let refresh_token = token.refresh_token().unwrap().expose_secret();
        assert!(fake.refresh_is_alive(refresh_token));
        assert_eq!(fake.count().total(), 2);
        assert!(clock.waits().is_empty(), "at once: the window is short");
    }
}

#[tokio::test(start_paused = true)]
async fn death_behind_lost_answer_is_rotation_lost() {
    for (style, bearer, sends) in [
        (ErrorStyle::Rfc6749, true, 2),
        (ErrorStyle::Rfc6749, false, 2),
        // With the header the envelope may speak of the access token: one more is needed.
        (ErrorStyle::Envelope, true, 3),
        (ErrorStyle::Envelope, false, 2),
    ] {
        for fault in [Fault::DropAfter, Fault::answer_after(200, "{}")] {
            let fake = FakeHurdlr::builder().error_style(style).in_memory();
            let (builder, _) = support::in_memory(&fake);
            let hurdlr = builder.bearer_on_refresh(bearer).build().unwrap();
            let prepared = RefreshToken.prepare(&fake, &hurdlr).await;
            fake.fault_next(fault);
            let error = prepared.send(&hurdlr).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RotationLost);
            assert!(error.needs_login() && error.is_unanswered() && !error.is_temporary());
            assert_eq!(error.attempts(), sends);
            assert_eq!(fake.count().total(), u64::from(sends));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn death_by_itself_is_login_required() {
    for (style, bearer, sends) in [
        (ErrorStyle::Rfc6749, true, 1),
        (ErrorStyle::Rfc6749, false, 1),
        (ErrorStyle::Envelope, true, 2),
        (ErrorStyle::Envelope, false, 1),
    ] {
        let fake = FakeHurdlr::builder().error_style(style).in_memory();
        let (builder, _) = support::in_memory(&fake);
        let hurdlr = builder.bearer_on_refresh(bearer).build().unwrap();
        let prepared = RefreshToken.prepare(&fake, &hurdlr).await;
        fake.revoke_everything("ann");
        // What was not sent, or turned away unread, cannot have rotated anything.
        fake.fault_next(Fault::Refuse);
        fake.fault_next(Fault::rate_limited());
        let error = prepared.send(&hurdlr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert!(error.needs_login() && !error.is_unanswered() && !error.is_temporary());
        assert_eq!(error.attempts(), sends + 2);
    }
}

#[tokio::test]
async fn token_without_refresh_token_sends_nothing() {
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    let token = hurdlr.import(r#"{"access_token":"a"}"#).unwrap();
    let error = hurdlr.refresh(&token).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::LoginRequired, 0));
    assert_eq!(fake.count().total(), 0);
}

#[tokio::test]
async fn refresh_keeps_old_token_without_new() {
    let fake = FakeHurdlr::builder().rotation(Rotation::None).in_memory();
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    let old = logged_in(&fake, &hurdlr).await;
    for absent in [None, Some(""), Some("null")] {
        fake.reshape(move |answer| {
            answer.remove("refresh_token");
            match absent {
                Some("null") => drop(answer.insert("refresh_token".into(), ().into())),
                Some(text) => drop(answer.insert("refresh_token".into(), text.into())),
                None => {}
            }
        });
        let newer = hurdlr.refresh(&old).await.unwrap();
        assert_eq!(
            newer.refresh_token().unwrap().expose_secret(),
            old.refresh_token().unwrap().expose_secret()
        );
    }
}

/// Two ways of proving oneself at once are an `invalid_request` (RFC 6749 section 5.2).
#[tokio::test(start_paused = true)]
async fn provider_that_wants_no_bearer_is_remembered() {
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.retry(RetryPolicy::never()).build().unwrap();
    let token = logged_in(&fake, &hurdlr).await;
    fake.clear_requests();
    fake.fault_plan(|request| {
        let has_bearer = request.headers().contains_key("authorization");
        has_bearer.then(|| Fault::answer(400, r#"{"error":"invalid_request"}"#))
    });
    let token = hurdlr.refresh(&token).await.unwrap();
    assert_eq!(bearers(&fake), [true, false]);
    let clone = hurdlr.clone();
    let token = clone.refresh(&token).await.unwrap();
    assert_eq!(bearers(&fake), [true, false, false]);

    // A request that is wrong for another reason is so without the header too.
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.build().unwrap();
    fake.clear_requests();
    fake.fault_plan(|_| Some(Fault::answer(400, r#"{"error":"invalid_request"}"#)));
    let error = hurdlr.refresh(&token).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Rejected, 2));
    fake.clear_faults();
    hurdlr.refresh(&token).await.unwrap();
    assert_eq!(bearers(&fake), [true, false, true]);
}

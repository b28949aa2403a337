//! How long a token lives follows from the provider's own dates, and from no other clock's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock, Rotation};
use hurdlr_oauth2::{Hurdlr, Token};

use crate::support::{self, RawServer, Reply};

const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
/// What the reference's example lives: 7,776,000 seconds.
const LIFE: Duration = Duration::from_secs(90 * 86_400);

fn client_at(fake: &FakeHurdlr, wall: SystemTime) -> (Hurdlr, ManualClock) {
    let clock = ManualClock::at(wall);
    let hurdlr =
        support::of(fake).clock(clock.clone()).http_client(fake.http_client()).build().unwrap();
    (hurdlr, clock)
}

async fn granted(hurdlr: &Hurdlr) -> Token {
    hurdlr.client_credentials(&support::ann()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn fresh_token_is_fresh_by_any_clock() {
    let fake = FakeHurdlr::in_memory();
    let (now, year) = (fake.now(), 365 * DAY);
    for wall in [now, now - DAY, now + DAY, now - year, now + year, UNIX_EPOCH] {
        let (hurdlr, _) = client_at(&fake, wall);
        let token = granted(&hurdlr).await;
        assert_eq!(token.age(), Duration::ZERO);
        assert_eq!(token.remaining(), Some(LIFE));
        assert!(!token.is_expired());
    }
}

#[tokio::test(start_paused = true)]
async fn token_ends_by_its_issued_span() {
    let fake = FakeHurdlr::in_memory();
    let (hurdlr, clock) = client_at(&fake, fake.now() - DAY);
    let token = granted(&hurdlr).await;
    clock.advance(Duration::from_secs(7_775_999));
    assert_eq!(token.remaining(), Some(SECOND));
    assert!(!token.is_expired());
    clock.advance(SECOND);
    assert!(token.is_expired());
    assert_eq!(token.remaining(), Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn token_handed_out_again_keeps_its_age() {
    let fake = FakeHurdlr::builder().rotation(Rotation::Grace(30 * DAY)).in_memory();
    for wrong_by in [Duration::ZERO, DAY, 365 * DAY] {
        let (hurdlr, _) = client_at(&fake, fake.now() - wrong_by);
        let login = granted(&hurdlr).await;
        let first = hurdlr.refresh(&login).await.unwrap();
        fake.advance_clock(10 * DAY);
        let again = hurdlr.refresh(&login).await.unwrap();
        assert_eq!(first.access_token().expose_secret(), again.access_token().expose_secret());
        assert_eq!(again.age(), 10 * DAY);
        assert_eq!(again.remaining(), Some(80 * DAY));
    }
}

#[tokio::test(start_paused = true)]
async fn impossible_created_at_means_brand_new() {
    let fake = FakeHurdlr::in_memory();
    let (hurdlr, _) = client_at(&fake, fake.now());
    let now = fake.now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let life = LIFE.as_secs();
    for (created_at, age) in [
        (serde_json::json!(now), 0),
        (serde_json::json!(now - 5), 5),
        (serde_json::json!((now - 5).to_string()), 5),
        (serde_json::json!(now - life + 1), life - 1),
        (serde_json::json!(now - life), 0), // dead when it was handed out
        (serde_json::json!(0), 0),
        (serde_json::json!(now + 1), 0), // not created yet
        (serde_json::json!(now + 86_400), 0),
        (serde_json::json!((now - 5) * 1_000), 0), // milliseconds
        (serde_json::json!(-5), 0),
        (serde_json::json!(i64::MAX), 0),
        (serde_json::json!(u64::MAX), 0),
        (serde_json::json!(1.5e300), 0),
        (serde_json::json!("yesterday"), 0),
        (serde_json::json!(null), 0),
        (serde_json::json!([now - 5]), 0),
    ] {
        let sent = created_at.clone();
        fake.reshape(move |answer| drop(answer.insert("created_at".into(), sent.clone())));
        let token = granted(&hurdlr).await;
        assert_eq!(token.age(), Duration::from_secs(age), "{created_at}");
        assert!(!token.is_expired(), "{created_at}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_life_never_counts_as_over() {
    let fake = FakeHurdlr::in_memory();
    let (hurdlr, clock) = client_at(&fake, fake.now());
    for expires_in in [
        serde_json::json!(null),
        serde_json::json!(-1),
        serde_json::json!(i64::MAX),
        serde_json::json!("soon"),
        serde_json::json!(1e99),
    ] {
        let sent = expires_in.clone();
        fake.reshape(move |answer| drop(answer.insert("expires_in".into(), sent.clone())));
        let token = granted(&hurdlr).await;
        clock.advance(3_650 * DAY);
        assert_eq!((token.expires_in(), token.remaining()), (None, None));
        assert!(!token.is_expired(), "{expires_in}");
    }
}

#[tokio::test(start_paused = true)]
async fn span_of_zero_is_over_at_once() {
    let fake = FakeHurdlr::in_memory();
    let (hurdlr, _) = client_at(&fake, fake.now());
    fake.reshape(|answer| drop(answer.insert("expires_in".into(), 0.into())));
    assert!(granted(&hurdlr).await.is_expired());
}

#[tokio::test(start_paused = true)]
async fn created_at_beyond_dates_is_not_told() {
    let fake = FakeHurdlr::in_memory();
    let (hurdlr, _) = client_at(&fake, fake.now());
    for created_at in [serde_json::json!(1_599_065_168_000_i64), serde_json::json!(-5)] {
        fake.reshape(move |answer| drop(answer.insert("created_at".into(), created_at.clone())));
        assert_eq!(granted(&hurdlr).await.created_at(), None);
    }
    fake.reshape(|answer| drop(answer.insert("created_at".into(), "1599065168".into())));
    let told = UNIX_EPOCH + Duration::from_secs(1_599_065_168);
    assert_eq!(granted(&hurdlr).await.created_at(), Some(told));
}

#[tokio::test]
async fn unreadable_date_means_brand_new() {
    let old = r#"{"access_token":"a","expires_in":7776000,"created_at":1599065168}"#;
    let rows = [
        ("", 0),
        ("Date: yesterday\r\n", 0),
        ("Date: \r\n", 0),
        ("Date: 1599065178\r\n", 0),
        ("Date: Wed, 02 Sep 2020 16:46:18 GMT\r\n", 10),
        // The other two forms of RFC 9110 section 5.6.7.
        ("Date: Wednesday, 02-Sep-20 16:46:18 GMT\r\n", 10),
        ("Date: Wed Sep  2 16:46:18 2020\r\n", 10),
    ];
    let replies = rows.map(|(date, _)| Reply::answer(200, date, old));
    let server = RawServer::replying(replies).await;
    let hurdlr = support::impatient(&server.base_url())
        // Paused, so to speak: it is read within the same second.
        .clock(StoppedClock)
        .build()
        .unwrap();
    for (date, age) in rows {
        assert_eq!(granted(&hurdlr).await.age(), Duration::from_secs(age), "{date}");
    }
}

/// Sockets need tokio's clock to run; tokens do not.
#[derive(Debug)]
struct StoppedClock;

impl hurdlr_oauth2::Clock for StoppedClock {
    fn now(&self) -> hurdlr_oauth2::Timestamp {
        hurdlr_oauth2::Timestamp::new(Duration::ZERO, UNIX_EPOCH)
    }

    fn sleep(&self, _: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test(start_paused = true)]
async fn imported_tokens_age_follows_local_clock() {
    let created = UNIX_EPOCH + Duration::from_secs(1_599_065_168);
    for (now, age) in [
        (created, Duration::ZERO),
        (created + 10 * DAY, 10 * DAY),
        (created - DAY, Duration::ZERO),
        (created + 91 * DAY, 90 * DAY),
    ] {
        let (hurdlr, clock) = client_at(&FakeHurdlr::in_memory(), now);
        let token = hurdlr.import(include_str!("../fixtures/v4_token.json")).unwrap();
        assert_eq!(token.age(), age);
        clock.advance(DAY);
        assert_eq!(token.age(), age + DAY);
    }
}

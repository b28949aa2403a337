//! Refresh tokens, rotation, and the end of a family.

use http::header;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, ManualClock, Outcome, Rotation};
use hurdlr_oauth2::{Hurdlr, Token, TokenManager, UserId};
use secrecy::ExposeSecret;

use super::{V4, call, code, form, grant, redeem, refresh, refusal, resource, seconds};

#[tokio::test]
async fn unknown_and_expired_refresh_tokens_differ() {
    let fake = FakeHurdlr::builder().refresh_token_life(seconds(100)).in_memory();
    let token = grant(&fake, "ann").await.get("refresh_token");
    let unknown = refresh(&fake, &token.to_uppercase()).await;
    assert_eq!(unknown.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    fake.advance_clock(seconds(100));
    assert!(!fake.refresh_is_alive(&token));
    let expired = refresh(&fake, &token).await;
    assert_eq!(expired.refusal(), refusal(400, "EXPIRED_TOKEN", "refresh_token"));
    fake.set_error_style(ErrorStyle::Rfc6749);
    let expired = refresh(&fake, &token).await;
    assert_eq!((expired.status.as_u16(), expired.get("error").as_str()), (400, "invalid_grant"));
}

#[tokio::test]
async fn refreshs_bearer_is_checked_on_request_only() {
    for (checked, status) in [(false, 200), (true, 401)] {
        let fake = FakeHurdlr::builder().check_bearer(checked).token_life(seconds(10)).in_memory();
        let token = grant(&fake, "ann").await;
        let secret = fake.client_secret();
        let refresh_token = token.get("refresh_token");
        let request = |bearer: &str| {
            let fields = [
                ("client_id", fake.client_id()),
                ("client_secret", secret.expose_secret()),
                ("grant_type", "refresh_token"),
                ("refresh_token", &refresh_token),
            ];
            let mut request = form(&fake, V4, &fields);
            let bearer = format!("Bearer {bearer}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
            request
        };
        fake.advance_clock(seconds(11));
        let answer = call(&fake, request(&token.get("access_token"))).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
        if checked {
            assert_eq!(answer.refusal(), refusal(401, "EXPIRED_TOKEN", "access_token"));
            assert_eq!(fake.count().outcome(Outcome::BearerRefused), 1);
            let live = grant(&fake, "ann").await.get("access_token");
            assert_eq!(call(&fake, request(&live)).await.unwrap().status, 200);
        }
    }
}

#[tokio::test]
async fn without_rotation_the_refresh_token_stays() {
    let fake = FakeHurdlr::builder().rotation(Rotation::None).in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(first.get("refresh_token"), second.get("refresh_token"));
    assert_ne!(first.get("access_token"), second.get("access_token"));
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 200);
    assert_eq!(fake.tokens_alive("ann"), 3);
}

#[tokio::test]
async fn rotation_kills_only_old_refresh_token() {
    let fake = FakeHurdlr::in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    let again = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(again.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert!(fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&second.get("access_token")));
    assert!(fake.refresh_is_alive(&second.get("refresh_token")));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn grace_window_repeats_answer_then_closes() {
    let fake = FakeHurdlr::builder().rotation(Rotation::Grace(seconds(30))).in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    fake.advance_clock(seconds(29));
    let repeated = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(second.text(), repeated.text());
    assert_eq!(fake.tokens_alive("ann"), 2);
    fake.advance_clock(seconds(1));
    let late = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(late.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn reused_refresh_token_kills_its_family_only() {
    let fake = FakeHurdlr::builder().rotation(Rotation::KillFamily).in_memory();
    let first = grant(&fake, "ann").await;
    let other = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(fake.tokens_alive("ann"), 3);
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 400);
    for dead in [&first, &second] {
        let answer = resource(&fake, &dead.get("access_token")).await;
        assert_eq!(answer.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
        assert!(!fake.refresh_is_alive(&dead.get("refresh_token")));
    }
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 400);
    assert!(fake.is_alive(&other.get("access_token")));
    assert!(fake.refresh_is_alive(&other.get("refresh_token")));
}

/// Most servers end the old access token at once.
#[tokio::test]
async fn rotation_can_end_the_old_access_token() {
    let fake = FakeHurdlr::builder().rotation(Rotation::KillAccess).in_memory();
    let first = grant(&fake, "ann").await;
    let other = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert!(!fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&second.get("access_token")));
    assert!(fake.is_alive(&other.get("access_token")));
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 400);
    assert!(fake.is_alive(&second.get("access_token")));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

/// The docs of `Rotation::KillAccess` tell this to those who send tokens by hand.
#[tokio::test]
async fn call_by_hand_outlives_killed_token() {
    let hour = seconds(3_600);
    let fake = FakeHurdlr::builder().rotation(Rotation::KillAccess).token_life(hour).in_memory();
    let clock = ManualClock::new();
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .http_client(fake.http_client())
        .clock(clock.clone())
        .build()
        .unwrap();
    let store = MemoryStore::with_clock(clock.clone());
    let manager = TokenManager::builder(hurdlr, store).build().unwrap();
    let id = UserId::new("ann").unwrap();
    let login = grant(&fake, "ann").await;
    manager.adopt(&id, manager.hurdlr().import(&login.body).unwrap()).await.unwrap();
    let ann = manager.user(&id);
    let mut events = ann.subscribe();
    fake.advance_clock(hour * 11 / 12);
    clock.advance(hour * 11 / 12);

    let due = ann.token().await.unwrap().into_shared();
    events.next().await;
    let call = async |token: &Token| resource(&fake, token.access_token().expose_secret()).await;
    assert_eq!(call(&due).await.status, 401);
    ann.report_unauthorized(&due);
    let newer = ann.token().await.unwrap().into_shared();
    assert_eq!(call(&newer).await.status, 200);
    assert_eq!(fake.count().grant("refresh_token"), 1);
}

#[tokio::test]
async fn an_administrator_revokes_all_of_one_user() {
    let fake = FakeHurdlr::in_memory();
    let (ann, bob) = (grant(&fake, "ann").await, grant(&fake, "bob").await);
    let pending = code(&fake, "ann", &[]).await;
    fake.revoke_everything("ann");
    assert_eq!((fake.tokens_alive("ann"), fake.tokens_alive("bob")), (0, 1));
    let answer = refresh(&fake, &ann.get("refresh_token")).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert_eq!(redeem(&fake, &pending, &[]).await.status, 400);
    assert_eq!(refresh(&fake, &bob.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn memory_per_user_keeps_newest_tokens_only() {
    let fake = FakeHurdlr::builder().record(false).in_memory();
    let first = grant(&fake, "ann").await;
    let mut token = grant(&fake, "ann").await;
    for _ in 0..300 {
        token = refresh(&fake, &token.get("refresh_token")).await;
    }
    assert_eq!(fake.tokens_alive("ann"), 256);
    assert!(!fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&token.get("access_token")));
}

//! The promises of the token manager, on tokio's paused clock and the in-memory way to the
//! embedded provider.

use std::error::Error as _;
use std::time::Duration;

use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::store::{RowKind, TokenStore};
use hurdlr_oauth2::testing::{Fault, Gate, Outcome, Rotation, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, ErrorKind, UserId};

use crate::faults::site::Attacked;
use crate::site::{HOUR, SECOND, Site, access, refresh};
use crate::{logged_in, polled_once};

#[tokio::test(start_paused = true)]
async fn callers_dropped_anywhere_lose_no_token() {
    for step in 0..60 {
        let site = Site::new();
        let (manager, id) = logged_in(&site, "ann").await;
        let before = site.stored_refresh_token(&id).await.unwrap();
        site.advance(HOUR);
        // Each call of the store and the provider takes a while, so that every step of 5 ms of the
        // refresh is a different await point.
        site.store.delay(Duration::from_millis(20));
        site.fake.fault_plan(move |_| {
            Some(if step % 2 == 0 {
                Fault::Delay(Duration::from_millis(50))
            } else {
                Fault::DelayAfter(Duration::from_millis(50))
            })
        });
        let user = manager.user(&id);
        let caller = tokio::spawn({
            let user = user.clone();
            async move { user.token().await.map(|token| access(&token)) }
        });
        tokio::time::sleep(Duration::from_millis(5) * step).await;
        caller.abort();
        drop((user, manager));
        let _ = caller.await;
        // Work that runs on by itself has a second for it.
        tokio::time::sleep(SECOND).await;
        site.store.delay(Duration::ZERO);
        let stored = site.stored_refresh_token(&id).await.unwrap();
        if step > 0 {
            assert_ne!(stored, before, "step {step}");
        }
        assert!(site.fake.refresh_is_alive(&stored), "step {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn failing_refreshes_keep_living_token_served() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    let old = access(&user.token().await.unwrap());
    site.advance(HOUR * 55 / 60);
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    for _ in 0..20 {
        assert_eq!(access(&user.token().await.unwrap()), old);
        tokio::time::sleep(10 * SECOND).await;
    }
    assert!(site.refreshes() > 1);
    // To its very end, past the margin.
    site.advance(Duration::from_secs(60 * 5 - 200 - 10));
    assert_eq!(access(&user.token().await.unwrap()), old);
    site.advance(10 * SECOND);
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn backoff_answers_callers_without_the_provider() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::rate_limited_for(Duration::from_secs(90))));
    let user = manager.user(&id);
    let error = user.token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    let sent = site.fake.count().total();
    for _ in 0..1_000 {
        let error = polled_once(user.token()).expect("told at once").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
    }
    tokio::time::sleep(Duration::from_secs(88)).await;
    assert!(user.token().await.is_err());
    assert_eq!(site.fake.count().total(), sent, "asked within the pause");
    site.fake.clear_faults();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(user.token().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn dead_refresh_token_spares_enterprise_users() {
    let site = Site::new();
    let (manager, ann) = logged_in(&site, "ann").await;
    let bob = UserId::new("bob").unwrap();
    manager.enterprise_user(&bob).token().await.unwrap();
    site.fake.revoke_everything("ann");
    site.fake.revoke_everything("bob");
    site.advance(HOUR);
    let user = manager.user(&ann);
    let mut changes = user.subscribe();
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(changes.next().await, TokenEvent::LoginRequired);
    assert!(manager.enterprise_user(&bob).token().await.is_ok());
    // Asked once, whoever asks again: here, later, and in another process.
    let sent = site.refreshes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    let elsewhere = site.manager();
    assert_eq!(elsewhere.user(&ann).token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(site.refreshes(), sent);
    // Until the person logs in again: elsewhere first, here a moment later.
    elsewhere.adopt(&ann, site.login(&UserId::new("ann").unwrap()).await).await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    assert!(user.token().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn dead_login_serves_its_token_to_end() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.advance(HOUR * 55 / 60);
    site.fake.fault_plan(|_| Some(Fault::answer(400, r#"{"error":"invalid_grant"}"#)));
    let mut changes = user.subscribe();
    assert!(user.token().await.is_ok());
    assert_eq!(changes.next().await, TokenEvent::LoginRequired);
    assert!(user.token().await.is_ok());
    site.advance(HOUR);
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
}

#[tokio::test(start_paused = true)]
async fn lost_answer_heals_if_repeated() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::Grace(Duration::from_secs(60)));
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DropAfter);
    let token = access(&manager.user(&id).token().await.unwrap());
    assert!(site.fake.is_alive(&token));
    assert_eq!(site.refreshes(), 2, "once, and once at once");
}

#[tokio::test(start_paused = true)]
async fn a_lost_rotation_is_told_as_such() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DropAfter);
    let error = manager.user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RotationLost);
    // By other processes too.
    let error = site.manager().user(&id).token().await.unwrap_err();
    assert!(error.needs_login());
}

#[tokio::test(start_paused = true)]
async fn two_502_in_row_cost_no_login() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    let mut changes = user.subscribe();
    site.advance(HOUR);
    site.fake.fault_next(Fault::status(502));
    site.fake.fault_next(Fault::status(502));
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(site.refreshes(), 2);
    tokio::time::sleep(2 * SECOND).await;
    assert!(user.token().await.is_ok());
    assert_eq!(changes.next().await, TokenEvent::NewToken);
}

#[tokio::test(start_paused = true)]
async fn token_rescued_from_defect_is_used_next() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let old = access(&manager.user(&id).token().await.unwrap());
    site.advance(HOUR * 55 / 60);
    site.fake.reshape(|answer| {
        answer.insert("token_type".into(), "mac".into());
    });
    let user = manager.user(&id);
    let mut changes = user.subscribe();
    assert_eq!(access(&user.token().await.unwrap()), old);
    changes.next().await;
    let rescued = site.stored_refresh_token(&id).await.unwrap();
    assert!(site.fake.refresh_is_alive(&rescued));
    site.fake.clear_reshape();
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(access(&user.token().await.unwrap()), old);
    changes.next().await;
    assert!(site.fake.is_alive(&access(&user.token().await.unwrap())));
}

/// It is not that the old access token, which is kept beside it, has no life left.
#[tokio::test(start_paused = true)]
async fn rescue_tells_what_was_wrong() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.advance(2 * HOUR);
    site.fake.reshape(|answer| {
        answer.insert("token_type".into(), "mac".into());
    });
    let error = user.token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidResponse);
    assert!(error.to_string().contains("defective"), "{error}");
    assert!(error.source().unwrap().to_string().contains("mac"), "{error:?}");
    let rescued = site.stored_refresh_token(&id).await.unwrap();
    assert!(site.fake.refresh_is_alive(&rescued));
    site.fake.clear_reshape();
    tokio::time::sleep(2 * SECOND).await;
    assert!(site.fake.is_alive(&access(&user.token().await.unwrap())));
}

/// A proxy's 503 hides that the provider has rotated.
#[tokio::test(start_paused = true)]
async fn death_after_bare_503_is_rotation_lost() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.advance(2 * HOUR);
    let lost = || Fault::AnswerAfter { status: 503, content_type: String::new(), body: Vec::new() };
    site.fake.fault_next(lost());
    site.fake.fault_next(Fault::status(503));
    assert!(user.token().await.unwrap_err().is_unanswered());
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::RotationLost);
}

#[tokio::test(start_paused = true)]
async fn omitted_refresh_token_is_kept() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::None);
    let (manager, id) = logged_in(&site, "ann").await;
    let before = site.stored_refresh_token(&id).await;
    site.fake.reshape(|answer| {
        answer.remove("refresh_token");
    });
    for _ in 0..3 {
        site.advance(HOUR);
        assert!(manager.user(&id).token().await.is_ok());
        assert_eq!(site.stored_refresh_token(&id).await, before);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_forgotten_during_a_refresh_is_resurrected() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let user = manager.user(&id);
    let caller = tokio::spawn({
        let user = user.clone();
        async move { user.token().await.map(|token| access(&token)) }
    });
    site.fake.arrived(1).await;
    user.forget().await.unwrap();
    gate.open();
    assert_eq!(caller.await.unwrap().unwrap_err().kind(), ErrorKind::LoginRequired);
    assert!(user.try_token().is_none());
    assert_eq!(site.stored_refresh_token(&id).await, None);
}

#[tokio::test(start_paused = true)]
async fn login_during_refresh_wins_everywhere() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let caller = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| refresh(&token)) })
    };
    site.fake.arrived(1).await;
    let newer = site.login(&UserId::new("ann").unwrap()).await;
    let expected = refresh(&newer);
    manager.adopt(&id, newer).await.unwrap();
    gate.open();
    assert_eq!(caller.await.unwrap().unwrap(), expected);
    assert_eq!(refresh(&manager.user(&id).token().await.unwrap()), expected);
    assert_eq!(site.stored_refresh_token(&id).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn only_current_tokens_401_refreshes() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    let old = user.token().await.unwrap().into_shared();
    site.advance(Duration::from_secs(120));
    for _ in 0..1_000 {
        user.report_unauthorized(&old);
    }
    assert!(user.try_token().is_none(), "a refused token is not served");
    let newer = user.token().await.unwrap().into_shared();
    assert_ne!(access(&newer), access(&old));
    assert_eq!(site.refreshes(), 1);
    user.report_unauthorized(&old);
    assert_eq!(access(&user.token().await.unwrap()), access(&newer));
    assert_eq!(site.refreshes(), 1);
}

#[tokio::test(start_paused = true)]
async fn api_refusing_every_token_makes_no_loop() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    for _ in 0..3_600 {
        if let Ok(token) = user.token().await {
            user.report_unauthorized(&token);
        }
        tokio::time::sleep(SECOND).await;
    }
    // One per step, and the steps double up to five minutes.
    assert!(site.refreshes() <= 25, "{}", site.refreshes());
    assert!(site.refreshes() >= 5, "{}", site.refreshes());
}

#[tokio::test(start_paused = true)]
async fn token_without_refresh_token_is_no_login() {
    let site = Site::new();
    let token = site.hurdlr().import(r#"{"access_token":"a"}"#).unwrap();
    let error = site.manager().adopt(&UserId::new("ann").unwrap(), token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// The traces that a row of the request table leaves.
#[derive(Debug, PartialEq)]
enum Left {
    /// Nobody tries again before a pause is over.
    Pause,
    /// Likewise, and the refresh token may be in flight.
    InFlight,
    /// The refresh token is marked as refused.
    Mark,
}

#[tokio::test(start_paused = true)]
async fn manager_lives_every_row_of_table() {
    use ErrorKind::{InvalidResponse, LoginRequired, RateLimited, Rejected, Unavailable};
    use RowKind::{Enterprise, Login};
    let refused = |status, code: &str| Fault::answer(status, format!(r#"{{"error":"{code}"}}"#));
    // Two attempts are allowed by the retry policy of these tests.
    let rows = [
        (Enterprise, Fault::Refuse, Unavailable, 2, Left::Pause),
        (Enterprise, Fault::rate_limited(), RateLimited, 2, Left::Pause),
        (Enterprise, Fault::status(503), Unavailable, 2, Left::Pause),
        (Enterprise, Fault::status(500), Unavailable, 2, Left::Pause),
        (Enterprise, Fault::DropBefore, Unavailable, 2, Left::Pause),
        (Enterprise, Fault::html(200), InvalidResponse, 2, Left::Pause),
        (Enterprise, refused(400, "invalid_request"), Rejected, 1, Left::Pause),
        (Enterprise, Fault::html(403), InvalidResponse, 1, Left::Pause),
        (Login, Fault::Refuse, Unavailable, 2, Left::Pause),
        (Login, Fault::rate_limited(), RateLimited, 2, Left::Pause),
        (Login, Fault::answer(503, r#"{"error":"busy"}"#), Unavailable, 2, Left::Pause),
        (Login, Fault::status(503), Unavailable, 2, Left::InFlight),
        (Login, Fault::status(429), RateLimited, 2, Left::InFlight),
        (Login, Fault::status(500), Unavailable, 2, Left::InFlight),
        (Login, Fault::DropBefore, Unavailable, 2, Left::InFlight),
        (Login, Fault::html(200), InvalidResponse, 2, Left::InFlight),
        (Login, refused(401, "invalid_client"), Rejected, 2, Left::Pause),
        // Once more without Bearer.
        (Login, refused(400, "invalid_request"), Rejected, 2, Left::Pause),
        (Login, Fault::html(403), InvalidResponse, 1, Left::Pause),
        (Login, refused(400, "invalid_grant"), LoginRequired, 1, Left::Mark),
    ];
    for (kind, fault, expected, requests, left) in rows {
        let site = Site::new();
        let (manager, id) = logged_in(&site, "ann").await;
        let user = match kind {
            Login => manager.user(&id),
            _ => manager.enterprise_user(&id),
        };
        user.token().await.unwrap();
        site.advance(HOUR);
        site.fake.clear_requests();
        let row = format!("{kind:?} {fault:?}");
        site.fake.fault_plan(move |_| Some(fault.clone()));
        assert_eq!(user.token().await.unwrap_err().kind(), expected, "{row}");
        assert_eq!(site.fake.count().total(), requests, "{row}");
        let key = site.key(kind, &id);
        let stored = site.store.read(&[key]).await.unwrap().remove(0).unwrap().unwrap();
        assert_eq!(stored.leased_for, None, "{row}");
        let found = match (stored.refused, stored.in_flight, stored.not_before) {
            (true, false, None) => Left::Mark,
            (false, true, Some(_)) => Left::InFlight,
            (false, false, Some(_)) => Left::Pause,
            other => panic!("{row} leaves {other:?}"),
        };
        assert_eq!(found, left, "{row}");
        // The next backoff step heals it, save where only a login can.
        site.fake.clear_faults();
        tokio::time::sleep(2 * SECOND).await;
        assert_eq!(user.token().await.is_ok(), left != Left::Mark, "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_counted() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    assert_eq!(manager.users_in_memory(), 1);
    for user in [manager.user(&id), manager.enterprise_user(&id)] {
        user.token().await.unwrap();
        for refreshes in 0..3 {
            assert_eq!(user.refreshes(), Some(refreshes));
            site.advance(2 * HOUR);
            user.token().await.unwrap();
        }
    }
    assert_eq!(manager.user(&UserId::new("bob").unwrap()).refreshes(), None);
    assert_eq!(manager.users_in_memory(), 3);
}

/// A pause that a broken answer asks for beside a new refresh token binds all processes.
#[tokio::test(start_paused = true)]
async fn rescued_token_keeps_the_asked_pause() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let elsewhere = site.manager();
    site.advance(2 * HOUR);
    site.fake.fault_next(Fault::Status {
        status: 200,
        content_type: "application/json".into(),
        body: r#"{"access_token":"a","refresh_token":"rescued","token_type":"mac"}"#.into(),
        retry_after: Some("600".into()),
    });
    manager.user(&id).token().await.unwrap_err();
    assert_eq!(site.stored_refresh_token(&id).await.as_deref(), Some("rescued"));
    let sent = site.refreshes();
    for _ in 0..59 {
        elsewhere.user(&id).token_timeout(SECOND).await.unwrap_err();
        tokio::time::sleep(9 * SECOND).await;
    }
    assert_eq!(site.refreshes(), sent);
}

/// A pause that the store's failures began is over once the store takes the token again.
#[tokio::test(start_paused = true)]
async fn late_save_ends_the_stores_pause() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.advance(2 * HOUR);
    site.fail(StoreCall::Save, StoreFault::Before);
    user.token().await.unwrap();
    site.advance(2 * HOUR);
    let is_save = |call| matches!(call, StoreCall::Save | StoreCall::Claim);
    site.store.plan(move |call| is_save(call).then_some(StoreFault::Before));
    for _ in 0..1_000 {
        user.token_timeout(SECOND).await.unwrap_err();
        tokio::time::sleep(SECOND).await;
    }
    site.fail(StoreCall::Claim, StoreFault::Before);
    let count = |of| site.store.calls().into_iter().filter(|call| *call == of).count();
    let saves = count(StoreCall::Save);
    while count(StoreCall::Save) == saves {
        user.token_timeout(SECOND).await.unwrap_err();
        tokio::time::sleep(SECOND).await;
    }
    let claims = count(StoreCall::Claim);
    user.token_timeout(SECOND).await.unwrap_err();
    assert_eq!(count(StoreCall::Claim), claims + 1);
}

/// Its answer was lost, and the row shows it: the tokens that it replaced are still to be revoked.
#[tokio::test(start_paused = true)]
async fn save_found_done_forgets_no_token() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let user = manager.enterprise_user(&UserId::new("ann").unwrap());
    let first = user.token().await.unwrap().into_shared();
    user.report_unauthorized(&first);
    site.fail(StoreCall::Save, StoreFault::After);
    let second = user.token().await.unwrap().into_shared();
    assert_ne!(access(&first), access(&second));
    site.store.recover();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(site.fake.tokens_alive("ann"), 2);
    user.disconnect().await.unwrap();
    assert_eq!(site.fake.tokens_alive("ann"), 0);
}

/// The provider has revoked it itself once its life is over: only those that live are revoked.
#[tokio::test(start_paused = true)]
async fn dead_tokens_are_not_revoked() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let user = manager.enterprise_user(&UserId::new("ann").unwrap());
    for _ in 0..2 {
        let token = user.token().await.unwrap().into_shared();
        site.advance(600 * SECOND);
        user.report_unauthorized(&token);
    }
    user.token().await.unwrap();
    assert_eq!(site.fake.tokens_alive("ann"), 3);
    site.advance(2_500 * SECOND);
    assert_eq!(site.fake.tokens_alive("ann"), 2);
    user.disconnect().await.unwrap();
    assert_eq!(site.fake.count().outcome(Outcome::Revoked), 2);
}

/// A new login that the store did not take is saved before somebody else logs in.
#[tokio::test(start_paused = true)]
async fn unanswered_login_is_repeated_at_once() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let before = site.row(RowKind::Login, &id).await.unwrap().version;
    let token = site.login(&id).await;
    let mut once = true;
    site.store.plan(move |call| {
        (call == StoreCall::Read && std::mem::take(&mut once)).then_some(StoreFault::Before)
    });
    manager.adopt(&id, token).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let after = site.row(RowKind::Login, &id).await.unwrap().version;
    assert_ne!(after.incarnation, before.incarnation);
}

/// A row of a later day that cannot be read: the refresh token from before it was consumed.
#[tokio::test(start_paused = true)]
async fn token_older_than_damage_stays_unsent() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(2 * HOUR);
    let elsewhere = site.manager();
    elsewhere.user(&id).token().await.unwrap();
    site.damage(&id).await;
    let sent = site.refreshes();
    let error = manager.user(&id).token().await.unwrap_err();
    assert_eq!((error.kind(), site.refreshes()), (ErrorKind::Store, sent));
}

/// Nobody waits for the pause of a user who is no more.
#[tokio::test(start_paused = true)]
async fn removed_user_leaves_no_pause() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.advance(2 * HOUR);
    site.fake.fault_plan(|_| Some(Fault::status(503)));
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
    user.forget().await.unwrap();
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
}

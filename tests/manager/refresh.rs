//! The promises of the token manager, on tokio's paused clock and the in-memory way to the
//! embedded provider.

use std::error::Error as _;
use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent, UnfinishedWork};
use hurdlr_oauth2::store::{Claim, MemoryStore, Release, RowKind, TokenStore};
use hurdlr_oauth2::testing::{
    FakeHurdlr, Fault, Gate, ManualClock, Rotation, StoreCall, StoreFault,
};
use hurdlr_oauth2::{ErrorKind, Hurdlr, TokenManager, UserId};

use crate::site::{HOUR, SECOND, Site, access, refresh};

/// A manager, and a user of it who has just logged in.
async fn logged_in(site: &Site, user: &str) -> (TokenManager, UserId) {
    let id = UserId::new(user).unwrap();
    (site.logged_in(&id).await, id)
}

async fn all_of<T: Send + 'static>(
    callers: usize,
    call: impl Fn() -> tokio::task::JoinHandle<T>,
) -> Vec<T> {
    let calls: Vec<_> = (0..callers).map(|_| call()).collect();
    let mut outcomes = Vec::with_capacity(callers);
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_callers_of_a_cold_user_send_one_request() {
    let site = Site::new();
    let manager = site.manager();
    let id = UserId::new("ann").unwrap();
    site.fake.fault_next(Fault::Delay(SECOND));
    let tokens = all_of(10_000, || {
        let user = manager.enterprise_user(&id);
        tokio::spawn(async move { access(&user.token().await.unwrap()) })
    })
    .await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(site.fake.count().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_due_user_send_one_refresh_and_none_of_them_waits() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    let old = access(&user.token().await.unwrap());
    site.advance(HOUR * 55 / 60);
    site.fake.fault_next(Fault::Delay(SECOND));
    for _ in 0..10_000 {
        // Ready at once: the future is never pending.
        let ready = polled_once(user.token()).expect("a due token is served at once");
        assert_eq!(access(&ready.unwrap()), old);
    }
    let mut changes = user.subscribe();
    assert_eq!(changes.next().await, TokenEvent::NewToken);
    assert_ne!(access(&user.token().await.unwrap()), old);
    assert_eq!(site.refreshes(), 1);
}

/// Polls once.
fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let waker = std::task::Waker::noop();
    match future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_callers_of_an_expired_user_send_one_refresh() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::Delay(SECOND));
    let tokens = all_of(10_000, || {
        let user = manager.user(&id);
        tokio::spawn(async move { access(&user.token().await.unwrap()) })
    })
    .await;
    assert!(tokens.iter().all(|token| *token == tokens[0] && site.fake.is_alive(token)));
    assert_eq!(site.refreshes(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_one_user_delays_no_read_of_another() {
    let site = Site::new();
    let (manager, ann) = logged_in(&site, "ann").await;
    let bob = UserId::new("bob").unwrap();
    site.advance(HOUR);
    manager.adopt(&bob, site.login(&UserId::new("bob").unwrap()).await).await.unwrap();
    site.fake.clear_requests();
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    let waiting = {
        let user = manager.user(&ann);
        tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
    };
    site.fake.arrived(1).await;
    assert!(polled_once(manager.user(&bob).token()).expect("no wait").is_ok());
    gate.open();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whatever_is_dropped_at_whatever_point_the_rotated_token_is_in_the_store() {
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
        // What runs on by itself has a second for it.
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
async fn a_living_token_is_served_however_often_its_refresh_fails() {
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
async fn during_the_backoff_callers_are_told_at_once_and_the_provider_is_left_alone() {
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
async fn a_pause_holds_for_every_process() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::rate_limited_for(Duration::from_secs(90))));
    assert!(manager.user(&id).token().await.is_err());
    let sent = site.fake.count().total();
    let error = site.manager().user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(site.fake.count().total(), sent);
}

#[tokio::test(start_paused = true)]
async fn a_user_nobody_knows_is_told_to_log_in_and_nothing_is_sent() {
    let site = Site::new();
    let manager = site.manager();
    let error = manager.user(&UserId::new("ann").unwrap()).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(site.fake.count().total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_refresh_token_asks_for_a_login_and_an_enterprise_user_is_granted_anew() {
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
async fn the_old_access_token_of_a_dead_login_is_served_to_its_end() {
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
async fn processes_that_share_a_store_refresh_once_at_a_family_killing_server() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let (first, id) = logged_in(&site, "ann").await;
    let fleet: Vec<_> = std::iter::once(first).chain((1..16).map(|_| site.manager())).collect();
    for round in 1..=5 {
        site.advance(HOUR);
        site.fake.fault_next(Fault::Delay(Duration::from_millis(300)));
        let callers: Vec<_> = fleet
            .iter()
            .map(|manager| {
                let user = manager.user(&id);
                tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
            })
            .collect();
        for caller in callers {
            let token = caller.await.unwrap().unwrap();
            assert!(site.fake.is_alive(&token));
        }
        assert_eq!(site.refreshes(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn processes_with_one_cold_enterprise_user_send_one_grant() {
    let site = Site::new();
    let id = UserId::new("ann").unwrap();
    site.fake.fault_next(Fault::Delay(Duration::from_millis(300)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let user = site.manager().enterprise_user(&id);
            tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(site.fake.count().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_heals_where_the_provider_repeats_it() {
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
async fn two_502_in_a_row_log_nobody_out() {
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
async fn an_answer_lost_by_a_holder_that_fell_silent_is_told_by_the_one_that_takes_over() {
    let site = Site::new();
    let (_gone, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    // Another process claims, sends, and is never heard of again.
    let key = site.key(RowKind::Login, &id);
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    let claim =
        Claim { holder: 7, lease: Duration::from_secs(20), known: Some(row.version), create: None };
    assert!(site.store.claim(&key, claim).await.unwrap().granted);
    let sent = site.login_answer_is_lost(&id).await;
    assert!(sent);
    let error = site.manager().user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RotationLost);
}

impl Site {
    /// Sends the stored refresh token as a process would whose answer never arrives.
    async fn login_answer_is_lost(&self, id: &UserId) -> bool {
        let refresh_token = self.stored_refresh_token(id).await.unwrap();
        let json = format!(r#"{{"access_token":"x","refresh_token":"{refresh_token}"}}"#);
        let hurdlr = self.hurdlr();
        let token = hurdlr.import(json).unwrap();
        hurdlr.refresh(&token).await.is_ok()
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_holder_that_wakes_saves_the_only_living_token_and_clears_the_mark() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let gate = Gate::closed();
    // Paused after the provider rotated.
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let paused = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
    };
    site.fake.arrived(1).await;
    let key = site.key(RowKind::Login, &id);
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    // A peer took over and was refused.
    let release = Release { refused: true, ..Release::default() };
    site.store.release(&key, row.version, 0, release).await.unwrap();
    gate.open();
    let token = paused.await.unwrap().unwrap();
    assert!(site.fake.is_alive(&token));
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    assert!(!row.refused);
    let stored = site.stored_refresh_token(&id).await.unwrap();
    assert!(site.fake.refresh_is_alive(&stored));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_beside_a_defect_is_rescued_and_used_next() {
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
async fn a_refresh_token_that_the_answer_omits_is_kept() {
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
async fn a_login_during_a_refresh_wins_here_and_in_the_store() {
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
async fn a_login_elsewhere_during_a_refresh_is_neither_overwritten_nor_missed() {
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
    site.manager().adopt(&id, newer).await.unwrap();
    gate.open();
    assert_eq!(caller.await.unwrap().unwrap(), expected);
    assert_eq!(site.stored_refresh_token(&id).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn sixteen_replicas_that_import_the_same_table_replace_nothing() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let kept = site.stored_refresh_token(&id).await;
    let old = site.login(&UserId::new("ann").unwrap()).await;
    assert!(!manager.import_if_absent(&id, old).await.unwrap());
    assert_eq!(site.stored_refresh_token(&id).await, kept);
    let bob = UserId::new("bob").unwrap();
    let mut imported = 0;
    for _ in 0..16 {
        let token = site.login(&UserId::new("bob").unwrap()).await;
        imported += u32::from(site.manager().import_if_absent(&bob, token).await.unwrap());
    }
    assert_eq!(imported, 1);
}

#[tokio::test(start_paused = true)]
async fn a_401_about_the_current_token_refreshes_once_and_one_about_an_older_token_does_not() {
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
async fn an_api_that_refuses_every_token_makes_no_loop_of_refreshes() {
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
async fn an_evicted_user_comes_back_without_a_request() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .cache_capacity(32)
        .build()
        .unwrap();
    let ids: Vec<_> = (0..500).map(|n| UserId::new(format!("user-{n}")).unwrap()).collect();
    for id in &ids {
        manager.enterprise_user(id).token().await.unwrap();
    }
    assert!(manager.users_in_memory() <= 32);
    let sent = site.fake.count().total();
    assert_eq!(sent, 500);
    for id in &ids {
        manager.enterprise_user(id).token().await.unwrap();
    }
    assert_eq!(site.fake.count().total(), sent);
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_refresh_is_under_way_is_not_evicted() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .cache_capacity(32)
        .build()
        .unwrap();
    let id = UserId::new("ann").unwrap();
    manager.adopt(&id, site.login(&UserId::new("ann").unwrap()).await).await.unwrap();
    site.fake.clear_requests();
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let caller = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
    };
    site.fake.arrived(1).await;
    caller.abort();
    for n in 0..5_000 {
        let _ = manager.enterprise_user(&UserId::new(format!("user-{n}")).unwrap());
    }
    gate.open();
    assert!(manager.user(&id).token().await.is_ok());
    assert_eq!(site.refreshes(), 1);
}

#[tokio::test]
async fn a_million_users_take_no_more_room_than_the_capacity() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .cache_capacity(10_000)
        .build()
        .unwrap();
    for n in 0..1_000_000 {
        let _ = manager.user(&UserId::new(format!("user-{n}")).unwrap());
    }
    assert!(manager.users_in_memory() <= 10_000, "{}", manager.users_in_memory());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_to_read_is_an_error_only_without_a_living_token() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let user = manager.user(&id);
    site.store.go_down();
    site.advance(HOUR * 55 / 60);
    assert!(user.token().await.is_ok());
    site.advance(HOUR);
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Store);
    let cold = manager.enterprise_user(&UserId::new("bob").unwrap());
    assert_eq!(cold.token().await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(site.fake.count().total(), 0, "nothing is sent that could not be saved");
}

#[tokio::test(start_paused = true)]
async fn a_token_the_store_does_not_take_is_served_and_saved_later() {
    for fault in [StoreFault::Before, StoreFault::After] {
        let site = Site::new();
        let (manager, id) = logged_in(&site, "ann").await;
        site.advance(HOUR);
        site.store.plan(move |call| (call == StoreCall::Save).then_some(fault));
        let token = refresh(&manager.user(&id).token().await.unwrap());
        assert!(site.fake.refresh_is_alive(&token));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(refresh(&manager.user(&id).token().await.unwrap()), token);
        site.store.recover();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(site.stored_refresh_token(&id).await, Some(token));
        assert!(manager.shutdown().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_not_saved_yet_is_not_displaced_by_the_one_it_replaced() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.store.plan(|call| (call == StoreCall::Save).then_some(StoreFault::Before));
    let unsaved = refresh(&manager.user(&id).token().await.unwrap());
    // It falls due before it could be saved; then the store works again.
    site.advance(HOUR);
    site.store.recover();
    let next = refresh(&manager.user(&id).token().await.unwrap());
    assert_ne!(next, unsaved);
    assert!(site.fake.refresh_is_alive(&next));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(site.stored_refresh_token(&id).await, Some(next));
}

#[tokio::test(start_paused = true)]
async fn a_login_the_store_does_not_take_is_served_and_saved_later() {
    for fault in [StoreFault::Before, StoreFault::After] {
        let site = Site::new();
        let manager = site.manager();
        let id = UserId::new("ann").unwrap();
        let token = site.login(&UserId::new("ann").unwrap()).await;
        let expected = refresh(&token);
        site.store.plan(move |call| (call == StoreCall::Save).then_some(fault));
        manager.adopt(&id, token).await.unwrap();
        assert_eq!(refresh(&manager.user(&id).token().await.unwrap()), expected);
        site.store.recover();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(site.stored_refresh_token(&id).await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_refreshes_finish_and_starts_none() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DelayAfter(5 * SECOND));
    let caller = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| refresh(&token)) })
    };
    site.fake.arrived(1).await;
    let cold = manager.enterprise_user(&UserId::new("bob").unwrap());
    let (lost, meanwhile) = tokio::join!(biased; manager.shutdown(), cold.token());
    assert!(lost.is_empty());
    assert_eq!(meanwhile.unwrap_err().kind(), ErrorKind::Unavailable);
    let token = caller.await.unwrap().unwrap();
    assert_eq!(site.stored_refresh_token(&id).await, Some(token));
    assert_eq!(cold.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(site.fake.count().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_says_whose_token_could_not_be_saved() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.store.plan(|call| (call == StoreCall::Save).then_some(StoreFault::Before));
    manager.user(&id).token().await.unwrap();
    let unfinished = manager.shutdown().await;
    assert_eq!(unfinished.len(), 1);
    assert_eq!((&unfinished[0].user, unfinished[0].work), (&id, UnfinishedWork::Save));
}

#[tokio::test(start_paused = true)]
async fn shutdown_saves_what_the_store_takes_again_in_time() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let failures = std::sync::atomic::AtomicU32::new(0);
    site.store.plan(move |call| {
        let failed = failures
            .fetch_add(u32::from(call == StoreCall::Save), std::sync::atomic::Ordering::Relaxed);
        (call == StoreCall::Save && failed < 5).then_some(StoreFault::Before)
    });
    let token = refresh(&manager.user(&id).token().await.unwrap());
    assert!(manager.shutdown().await.is_empty());
    assert_eq!(site.stored_refresh_token(&id).await, Some(token));
}

#[tokio::test(start_paused = true)]
async fn strange_lives_and_dates_make_no_tight_loop_and_no_dead_token_is_served() {
    type Shape = fn(&mut serde_json::Map<String, serde_json::Value>);
    let shapes: [(&str, Shape); 7] = [
        ("no span", |answer| {
            answer.remove("expires_in");
        }),
        ("span of 0", |answer| {
            answer.insert("expires_in".into(), 0.into());
        }),
        ("span of 1", |answer| {
            answer.insert("expires_in".into(), 1.into());
        }),
        ("years old", |answer| {
            answer.insert("created_at".into(), 1.into());
        }),
        ("years ahead", |answer| {
            answer.insert("created_at".into(), 4_000_000_000_u64.into());
        }),
        ("milliseconds", |answer| {
            answer.insert("created_at".into(), 1_700_000_000_000_u64.into());
        }),
        ("negative span", |answer| {
            answer.insert("expires_in".into(), (-5).into());
        }),
    ];
    for (name, shape) in shapes {
        let site = Site::new();
        site.fake.reshape(shape);
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        let mut served = 0;
        let start = tokio::time::Instant::now();
        for _ in 0..1_000 {
            if let Ok(token) = user.token().await {
                assert!(!token.is_expired(), "{name}");
                served += 1;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seconds = start.elapsed().as_secs();
        let most = if name == "span of 1" { seconds + 1 } else { 12 };
        let sent = site.fake.count().total();
        assert!((1..=most).contains(&sent), "{name}: {sent} requests in {seconds} s");
        assert_eq!(served > 0, name != "span of 0", "{name}: served {served} times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_and_a_suspended_machine_cost_one_refresh_at_the_most() {
    let day = HOUR * 24;
    for (name, turn) in [
        (
            "forward",
            (|clock: &ManualClock, by| clock.advance_wall(by)) as fn(&ManualClock, Duration),
        ),
        ("back", |clock, by| clock.set_wall_back(by)),
    ] {
        let site = Site::new();
        let (manager, id) = logged_in(&site, "ann").await;
        let user = manager.user(&id);
        turn(&site.clock, day);
        for _ in 0..50 {
            assert!(user.token().await.is_ok(), "{name}");
            tokio::time::sleep(SECOND).await;
        }
        assert!(site.refreshes() <= 1, "{name}: {}", site.refreshes());
        // And it still falls due by the other clock.
        site.advance(HOUR);
        assert!(site.fake.is_alive(&access(&user.token().await.unwrap())), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_cannot_wait_ends_the_wait_and_not_the_refresh() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DelayAfter(5 * SECOND));
    let user = manager.user(&id);
    let error = user.token_timeout(SECOND).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    tokio::time::sleep(5 * SECOND).await;
    assert!(user.try_token().is_some());
    assert_eq!(site.refreshes(), 1);
}

#[tokio::test(start_paused = true)]
async fn warming_brings_every_user_and_a_second_run_sends_nothing() {
    let site = Site::new();
    let manager = site.manager();
    let ids = || (0..300).map(|n| UserId::new(format!("user-{n}")).unwrap());
    site.fake.fault_plan(|request| {
        (request.user() == Some("user-7"))
            .then(|| Fault::answer(400, r#"{"error":"invalid_request"}"#))
    });
    let mut warm = manager.warm(ids().collect::<Vec<_>>());
    let mut outcomes = 0;
    while let Some(warmed) = warm.next().await {
        assert_eq!(warmed.outcome.is_ok(), warmed.user.as_str() != "user-7");
        outcomes += 1;
    }
    assert_eq!(outcomes, 300);
    let sent = site.fake.count().total();
    let mut again = manager.warm(ids().collect::<Vec<_>>());
    let mut ready = 0;
    while let Some(warmed) = again.next().await {
        ready += u32::from(warmed.outcome.is_ok());
    }
    assert_eq!(ready, 299);
    assert_eq!(site.fake.count().total(), sent, "the failed one is left alone for a while");
}

#[tokio::test(start_paused = true)]
async fn keep_alive_renews_those_whom_nobody_reads_and_one_process_walks() {
    let site = Site::new();
    let (manager, _) = logged_in(&site, "ann").await;
    for n in 0..200 {
        let id = UserId::new(format!("user-{n}")).unwrap();
        manager.adopt(&id, site.login(&id).await).await.unwrap();
    }
    drop(manager);
    site.fake.clear_requests();
    let (one, two) = (site.manager(), site.manager());
    let walks = [one.keep_alive(Duration::from_secs(60)), two.keep_alive(Duration::from_secs(60))];
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(site.refreshes(), 0, "nobody is due yet");
    site.advance(HOUR * 52 / 60);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(site.refreshes(), 201);
    for walk in walks {
        walk.stop().await;
    }
    site.advance(HOUR * 52 / 60);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(site.refreshes(), 201, "stopped");
}

#[tokio::test(start_paused = true)]
async fn those_whose_callers_wait_go_before_those_renewed_in_the_background() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let due: Vec<_> = (0..20).map(|n| UserId::new(format!("due-{n}")).unwrap()).collect();
    for id in &due {
        manager.enterprise_user(id).token().await.unwrap();
    }
    site.advance(HOUR * 55 / 60);
    site.fake.clear_requests();
    site.fake.fault_plan(|_| Some(Fault::Delay(SECOND)));
    for id in &due {
        manager.enterprise_user(id).token().await.unwrap();
    }
    let urgent = UserId::new("urgent").unwrap();
    manager.enterprise_user(&urgent).token().await.unwrap();
    let order: Vec<_> = site.fake.requests().iter().map(|r| r.user().unwrap().to_owned()).collect();
    assert!(order.iter().position(|user| user == "urgent").unwrap() <= 1, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_in_the_background_goes_first_once_somebody_waits_for_it() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let users = ["ann", "bob", "eve"].map(|id| manager.enterprise_user(&UserId::new(id).unwrap()));
    for user in &users {
        user.token().await.unwrap();
    }
    site.advance(HOUR * 55 / 60);
    site.fake.clear_requests();
    site.fake.fault_plan(|_| Some(Fault::Delay(SECOND)));
    for user in &users {
        user.token().await.unwrap(); // due: each is renewed in the background
    }
    tokio::task::yield_now().await;
    site.advance(HOUR);
    users[2].token().await.unwrap();
    let order: Vec<_> = site.fake.requests().iter().map(|r| r.user().unwrap().to_owned()).collect();
    assert!(order.iter().position(|user| user == "eve").unwrap() <= 1, "{order:?}");
}

#[test]
fn without_a_runtime_building_says_so() {
    let hurdlr = Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
    let builder = TokenManager::builder(hurdlr.build().unwrap(), MemoryStore::new());
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("runtime"));
}

#[tokio::test]
async fn contradictions_are_named_when_building() {
    let site = Site::new();
    let builder = || TokenManager::builder(site.hurdlr(), site.store.clone());
    let policy = RefreshPolicy::default;
    let (second, never) = (Duration::from_secs(1), Duration::ZERO);
    for (policy, names) in [
        (policy().refresh_timeout(90 * second), ["refresh_timeout", "lease"]),
        (policy().lease(second), ["refresh_timeout", "lease"]),
        (policy().refresh_fraction(0.9), ["refresh_fraction", "refresh_jitter"]),
        (policy().refresh_fraction(f64::NAN), ["refresh_fraction", "between"]),
        (policy().refresh_jitter(-0.1), ["refresh_fraction", "refresh_jitter"]),
        (policy().max_backoff(second / 2), ["initial_backoff", "max_backoff"]),
        (policy().initial_backoff(never), ["initial_backoff", "pause"]),
        (policy().default_lifetime(never), ["default_lifetime", "dead"]),
        (policy().refresh_timeout(never), ["refresh_timeout", "sent"]),
    ] {
        let message = builder().refresh_policy(policy).build().unwrap_err().to_string();
        assert!(names.iter().all(|name| message.contains(name)), "{message}");
    }
    for (builder, name) in [
        (builder().revalidate_after(never), "revalidate_after"),
        (builder().shutdown_within(never), "shutdown_within"),
    ] {
        assert!(builder.build().unwrap_err().to_string().contains(name), "{name}");
    }
    assert!(
        builder().cache_capacity(0).build().unwrap_err().to_string().contains("cache_capacity")
    );
    let message = builder().max_concurrent_refreshes(0).build().unwrap_err().to_string();
    assert!(message.contains("max_concurrent_refreshes"));
}

#[tokio::test(start_paused = true)]
async fn expiry_buffer_ends_a_token_early() {
    let site = Site::new();
    let minute = Duration::from_mins(1);
    for (buffer, ends_early) in [(5 * minute, 5 * minute), (HOUR, HOUR / 10)] {
        let policy = RefreshPolicy::default().expiry_buffer(buffer);
        let builder = TokenManager::builder(site.hurdlr(), MemoryStore::new());
        let manager = builder.refresh_policy(policy).build().unwrap();
        let user = manager.enterprise_user(&UserId::new("ann").unwrap());
        let first = access(&user.token().await.unwrap());
        site.clock.advance(HOUR.saturating_sub(ends_early + SECOND));
        assert!(user.try_token().is_some(), "{buffer:?}");
        site.clock.advance(2 * SECOND);
        assert!(user.try_token().is_none(), "{buffer:?}");
        assert_ne!(access(&user.token().await.unwrap()), first);
    }
}

#[tokio::test(start_paused = true)]
async fn default_lifetime_ends_what_names_none() {
    let site = Site::new();
    site.fake.reshape(|token| drop(token.remove("expires_in")));
    let policy = RefreshPolicy::default().default_lifetime(HOUR / 4);
    let builder = TokenManager::builder(site.hurdlr(), MemoryStore::new());
    let manager = builder.refresh_policy(policy).build().unwrap();
    let user = manager.enterprise_user(&UserId::new("ann").unwrap());
    user.token().await.unwrap();
    let due_in = user.due_in().unwrap();
    assert!((HOUR / 6..=HOUR * 5 / 24).contains(&due_in), "{due_in:?}");
    site.clock.advance((HOUR / 4).saturating_sub(31 * SECOND));
    assert!(user.try_token().is_some());
    site.clock.advance(2 * SECOND);
    assert!(user.try_token().is_none());
}

/// Within a second, reads compare that second alone: a token must not become due in it unseen.
#[tokio::test(start_paused = true)]
async fn due_token_is_noticed_within_the_second() {
    for tenth in 0..10 {
        let site = Site::new();
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        site.clock.advance(Duration::from_millis(100 * tenth));
        user.token().await.unwrap();
        site.clock.advance(user.due_in().unwrap().saturating_sub(Duration::from_millis(300)));
        // The first of them has the token compared with the store.
        for _ in 0..200 {
            user.token().await.unwrap();
            tokio::task::yield_now().await;
        }
        site.clock.advance(Duration::from_millis(600));
        user.token().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(site.fake.requests().len(), 2, "tenth {tenth}");
    }
}

#[tokio::test(start_paused = true)]
async fn clock_put_back_serves_no_expired_token() {
    for seconds_more in 1..=2 {
        let site = Site::new();
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        for _ in 0..2 {
            user.token().await.unwrap();
        }
        site.clock.advance(2 * HOUR);
        site.clock.set_wall_back(2 * HOUR + seconds_more * SECOND);
        user.token().await.unwrap();
        assert_eq!(site.fake.requests().len(), 2, "{seconds_more}");
    }
}

/// Users who were granted together are due spread over the jitter: a sixth of an hour.
#[tokio::test(start_paused = true)]
async fn users_are_due_at_different_times() {
    let site = Site::new();
    let manager = site.manager();
    let mut due = Vec::new();
    for n in 0..1_000 {
        let user = manager.enterprise_user(&UserId::new(format!("user-{n}")).unwrap());
        user.token().await.unwrap();
        due.push(user.due_in().unwrap().as_secs());
    }
    for tenth in 0..10 {
        let from = 2_400 + 60 * tenth;
        let here = due.iter().filter(|due| (from..from + 60).contains(*due)).count();
        assert!((60..140).contains(&here), "{here} of 1000 in tenth {tenth}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_refresh_token_is_not_taken_for_a_login() {
    let site = Site::new();
    let token = site.hurdlr().import(r#"{"access_token":"a"}"#).unwrap();
    let error = site.manager().adopt(&UserId::new("ann").unwrap(), token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_crosses_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let token = manager.user(&id).token().await.unwrap();
    shared(&token);
    shared(&token.into_shared());
    assert_eq!(size_of::<hurdlr_oauth2::manager::TokenFuture<'_>>(), 24);
}

/// What a row of the request table leaves behind.
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
async fn every_row_of_the_request_table_as_the_manager_lives_it() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_on_many_threads_share_one_request_over_a_socket() {
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .build()
        .unwrap();
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build().unwrap();
    let id = UserId::new("ann").unwrap();
    let tokens = all_of(500, || {
        let user = manager.enterprise_user(&id);
        tokio::spawn(async move { access(&user.token().await.unwrap()) })
    })
    .await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(fake.count().total(), 1);
}

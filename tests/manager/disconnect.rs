//! The end of a user's stay: no token of theirs lives on, whatever goes on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::manager::{Disconnected, TokenEvent};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{RowKind, TokenStore};
use hurdlr_oauth2::testing::{Fault, Gate, Outcome, Rotation, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, ErrorKind, TokenManager, UserId};

use crate::site::{HOUR, SECOND, Site, access, refresh};

async fn connected() -> (Site, TokenManager, UserId) {
    let site = Site::of(ApiVersion::V6);
    let ann = UserId::new("ann").unwrap();
    let manager = site.logged_in(&ann).await;
    (site, manager, ann)
}

/// How many rows hold a token, those included that wait to be revoked.
async fn rows(site: &Site) -> usize {
    let realm = Arc::new(site.hurdlr().realm());
    site.store.scan(&realm, None, 100).await.unwrap().len()
}

async fn assert_gone(site: &Site, ann: &UserId) {
    assert_eq!(site.fake.tokens_alive("ann"), 0);
    assert!(site.row(RowKind::Login, ann).await.is_none());
    assert_eq!(rows(site).await, 0);
}

fn is_revocation(request: &hurdlr_oauth2::testing::RecordedRequest) -> bool {
    request.path() == "/v6/auth/revoke"
}

/// The provider answers to everything but revocations.
fn refuse_revocations(site: &Site) {
    site.fake.fault_plan(|request| is_revocation(request).then(|| Fault::status(500)));
}

#[tokio::test(start_paused = true)]
async fn disconnected_user_has_no_token_anywhere() {
    let (site, manager, ann) = connected().await;
    let user = manager.user(&ann);
    let mut changes = user.subscribe();
    let token = user.token().await.unwrap().into_shared();
    let outcome = user.disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
    assert_eq!(changes.next().await, TokenEvent::Forgotten);
    assert!(!site.fake.refresh_is_alive(&refresh(&token)));
    assert_gone(&site, &ann).await;
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(site.fake.count().outcome(Outcome::Revoked), 1);

    assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked), "nobody is there");
    assert_eq!(site.fake.count().total(), 1);
    manager.adopt(&ann, site.login(&ann).await).await.unwrap();
    assert!(site.fake.is_alive(&access(&user.token().await.unwrap())));
}

#[tokio::test(start_paused = true)]
async fn provider_outage_keeps_no_token_in_service() {
    let (site, manager, ann) = connected().await;
    let other = site.manager();
    let elsewhere = other.user(&ann);
    elsewhere.token().await.unwrap();
    site.fake.fault_plan(|_| Some(Fault::DropBefore));
    let user = manager.user(&ann);
    let outcome = user.disconnect().await.unwrap();
    let Disconnected::Pending(why) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.kind(), ErrorKind::Unavailable);
    assert!(user.try_token().is_none());
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);

    let mut changes = elsewhere.subscribe();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _ = elsewhere.token().await;
    assert_eq!(changes.next().await, TokenEvent::Forgotten);
    assert!(elsewhere.try_token().is_none());
    assert_eq!(elsewhere.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert_eq!(site.fake.tokens_alive("ann"), 1, "the provider has not heard of it");
}

#[tokio::test(start_paused = true)]
async fn failed_revocation_is_repeated_in_background() {
    let (site, manager, ann) = connected().await;
    refuse_revocations(&site);
    let outcome = manager.user(&ann).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Pending(_)), "{outcome:?}");
    assert_eq!(rows(&site).await, 1, "written down");
    let again = manager.user(&ann).disconnect().await.unwrap();
    assert!(matches!(again, Disconnected::Pending(_)), "still: {again:?}");
    // A new login meanwhile has nothing to do with it.
    manager.adopt(&ann, site.login(&ann).await).await.unwrap();
    let token = manager.user(&ann).token().await.unwrap().into_shared();
    site.fake.clear_faults();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rows(&site).await, 1, "the new login's");
    assert_eq!(site.fake.tokens_alive("ann"), 1);
    assert!(site.fake.is_alive(&access(&token)) && site.fake.refresh_is_alive(&refresh(&token)));
    assert!(manager.shutdown().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn unrevoked_token_is_named_at_the_end() {
    let (site, manager, ann) = connected().await;
    refuse_revocations(&site);
    manager.user(&ann).disconnect().await.unwrap();
    let unfinished = manager.shutdown().await;
    assert_eq!((unfinished.len(), &unfinished[0].user), (1, &ann));
    assert_eq!(unfinished[0].work, hurdlr_oauth2::manager::UnfinishedWork::Revocation);
    assert_eq!(site.fake.tokens_alive("ann"), 1);

    site.fake.clear_faults();
    site.fake.clear_requests();
    let other = site.manager();
    let walk = other.keep_alive(Duration::from_secs(60));
    tokio::time::timeout(HOUR, site.fake.arrived(1)).await.expect("the walk revokes it");
    tokio::time::sleep(SECOND).await;
    walk.stop().await;
    assert_gone(&site, &ann).await;
    assert_eq!(site.fake.count().outcome(Outcome::Revoked), 1);
}

#[tokio::test(start_paused = true)]
async fn walk_that_cannot_revoke_tries_again() {
    let (site, manager, ann) = connected().await;
    refuse_revocations(&site);
    manager.user(&ann).disconnect().await.unwrap();
    manager.shutdown().await;
    site.fake.clear_requests();
    let other = site.manager();
    let walk = other.keep_alive(Duration::from_secs(60));
    tokio::time::sleep(HOUR / 4).await;
    let tries = site.fake.count().total();
    assert!((2..20).contains(&tries), "{tries} in a quarter of an hour");
    site.fake.clear_faults();
    // The pause is as long again as the record has been pending.
    tokio::time::sleep(HOUR / 2).await;
    walk.stop().await;
    assert_gone(&site, &ann).await;
}

#[tokio::test(start_paused = true)]
async fn disconnect_during_refresh_leaves_no_token() {
    for acts_first in [false, true] {
        for elsewhere in [false, true] {
            let (site, manager, ann) = connected().await;
            let other = if elsewhere { site.manager() } else { manager.clone() };
            site.advance(HOUR);
            let gate = Gate::closed();
            let hold = if acts_first { Fault::HoldAfter } else { Fault::Hold };
            site.fake.fault_next(hold(gate.clone()));
            let refreshing = tokio::spawn({
                let user = other.user(&ann);
                async move { user.token().await.map(|token| access(&token)) }
            });
            site.fake.arrived(1).await;
            let leaving = tokio::spawn({
                let user = manager.user(&ann);
                async move { user.disconnect().await }
            });
            site.fake.arrived(2).await; // revoked is what was kept
            assert!(manager.user(&ann).try_token().is_none());
            gate.open();
            let outcome = leaving.await.unwrap().unwrap();
            assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
            let case = format!("acts first: {acts_first}, elsewhere: {elsewhere}");
            assert_eq!(site.fake.tokens_alive("ann"), 0, "{case}");
            assert!(refreshing.await.unwrap().is_err(), "{case}");
            assert_gone(&site, &ann).await;
        }
    }
}

/// The token of a refresh that was under way may be revoked by nobody yet, or the store may not say
/// whether it has it.
#[tokio::test(start_paused = true)]
async fn unfinished_token_of_refresh_is_told() {
    for store_fails in [false, true] {
        let (site, manager, ann) = connected().await;
        site.advance(HOUR);
        let gate = Gate::closed();
        site.fake.fault_next(Fault::HoldAfter(gate.clone()));
        let user = manager.user(&ann);
        let refreshing = tokio::spawn(async move { user.token().await.map(|_| ()) });
        site.fake.arrived(1).await;
        let user = manager.user(&ann);
        let leaving = tokio::spawn(async move { user.disconnect().await });
        site.fake.arrived(2).await; // what was kept is revoked
        if store_fails {
            site.fail(StoreCall::Save, StoreFault::Before);
        } else {
            refuse_revocations(&site);
        }
        gate.open();
        let outcome = leaving.await.unwrap().unwrap();
        let Disconnected::Pending(why) = outcome else { panic!("{outcome:?}") };
        assert_eq!(why.kind() == ErrorKind::Store, store_fails, "{why}");
        let _ = refreshing.await.unwrap();
        site.store.recover();
        site.fake.clear_faults();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_gone(&site, &ann).await;
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_at_any_point_leaves_no_token() {
    for step in 0..40 {
        for elsewhere in [false, true] {
            let (site, manager, ann) = connected().await;
            let other = if elsewhere { site.manager() } else { manager.clone() };
            site.advance(HOUR);
            // Each call of the store and the provider takes a while, so that every step of 5 ms is
            // a different await point.
            site.store.delay(Duration::from_millis(20));
            site.fake.fault_plan(move |_| {
                let span = Duration::from_millis(50);
                Some(if step % 2 == 0 { Fault::Delay(span) } else { Fault::DelayAfter(span) })
            });
            let refreshing = tokio::spawn({
                let user = other.user(&ann);
                async move { user.token().await.map(|token| access(&token)) }
            });
            tokio::time::sleep(Duration::from_millis(5) * step).await;
            let outcome = manager.user(&ann).disconnect().await.unwrap();
            assert!(matches!(outcome, Disconnected::Revoked), "step {step}: {outcome:?}");
            assert_eq!(site.fake.tokens_alive("ann"), 0, "step {step}, elsewhere: {elsewhere}");
            let _ = refreshing.await.unwrap();
            site.store.delay(Duration::ZERO);
            assert_gone(&site, &ann).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_ends_without_its_caller() {
    for step in 0..30 {
        let (site, manager, ann) = connected().await;
        site.store.delay(Duration::from_millis(20));
        let user = manager.user(&ann);
        let leaving = tokio::spawn(async move { user.disconnect().await });
        tokio::time::sleep(Duration::from_millis(5) * step).await;
        leaving.abort();
        let _ = leaving.await;
        tokio::time::sleep(SECOND).await;
        site.store.delay(Duration::ZERO);
        if step > 0 {
            assert_gone(&site, &ann).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_untaken_token_is_revoked() {
    // Forgotten, or logged in anew, while a refresh is in flight.
    for comes_back in [false, true] {
        let (site, manager, ann) = connected().await;
        site.advance(HOUR);
        let gate = Gate::closed();
        site.fake.fault_next(Fault::HoldAfter(gate.clone()));
        let user = manager.user(&ann);
        let refreshing = tokio::spawn(async move { user.token().await.map(|_| ()) });
        site.fake.arrived(1).await;
        if comes_back {
            manager.adopt(&ann, site.login(&ann).await).await.unwrap();
        } else {
            manager.user(&ann).forget().await.unwrap();
        }
        gate.open();
        let _ = refreshing.await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(site.fake.tokens_alive("ann"), usize::from(comes_back));
        assert_eq!(rows(&site).await, usize::from(comes_back));
        assert_eq!(manager.user(&ann).token().await.is_ok(), comes_back);
    }
}

#[tokio::test(start_paused = true)]
async fn newly_arrived_refresh_token_is_not_revoked() {
    let (site, manager, ann) = connected().await;
    site.fake.set_rotation(Rotation::None);
    let same = manager.user(&ann).token().await.unwrap().to_secret();
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let user = manager.user(&ann);
    let refreshing = tokio::spawn(async move { user.token().await.map(|_| ()) });
    site.fake.arrived(1).await;
    let imported = site.hurdlr().import(same.expose_secret()).unwrap();
    manager.adopt(&ann, imported).await.unwrap();
    gate.open();
    let _ = refreshing.await.unwrap();
    assert_eq!(site.fake.count().outcome(Outcome::Revoked), 0);
    assert!(manager.user(&ann).token().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn unsaved_token_is_revoked_too() {
    for login in [false, true] {
        let (site, manager, ann) = connected().await;
        if login {
            site.fail(StoreCall::Save, StoreFault::Before);
            manager.adopt(&ann, site.login(&ann).await).await.unwrap();
        } else {
            site.advance(HOUR);
            site.fail(StoreCall::Save, StoreFault::Before);
            manager.user(&ann).token().await.unwrap();
        }
        site.store.recover();
        let outcome = manager.user(&ann).disconnect().await.unwrap();
        assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_gone(&site, &ann).await;
        assert!(manager.shutdown().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn call_after_store_failure_disconnects() {
    for call in [StoreCall::Read, StoreCall::Claim, StoreCall::Forget] {
        for fault in [StoreFault::Before, StoreFault::After] {
            let (site, manager, ann) = connected().await;
            site.fail(call, fault);
            let error = manager.user(&ann).disconnect().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Store, "{call:?} {fault:?}");
            site.store.recover();
            // What the first call began may not be over yet.
            manager.user(&ann).disconnect().await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            let outcome = manager.user(&ann).disconnect().await.unwrap();
            assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
            assert_eq!(site.fake.tokens_alive("ann"), 0, "{call:?} {fault:?}");
            assert!(site.row(RowKind::Login, &ann).await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn store_outage_keeps_no_token_alive() {
    for saved in [false, true] {
        let (site, manager, ann) = connected().await;
        if saved {
            site.store.go_down();
        } else {
            manager.user(&ann).disconnect().await.unwrap();
            site.store.go_down();
            manager.adopt(&ann, site.login(&ann).await).await.unwrap();
        }
        let error = manager.user(&ann).disconnect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(manager.user(&ann).try_token().is_none());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(site.fake.tokens_alive("ann"), 0, "saved: {saved}");
        site.store.recover();
        manager.user(&ann).disconnect().await.unwrap();
        assert_gone(&site, &ann).await;
        assert!(manager.shutdown().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn unrecorded_revocation_is_still_made() {
    let (site, manager, ann) = connected().await;
    site.fail(StoreCall::Save, StoreFault::Before);
    let outcome = manager.user(&ann).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
    assert_gone(&site, &ann).await;
}

#[tokio::test(start_paused = true)]
async fn disconnect_without_revocation_tells_tokens_end() {
    for version in [ApiVersion::V4, ApiVersion::V5] {
        let site = Site::of(version);
        let ann = UserId::new("ann").unwrap();
        let manager = site.logged_in(&ann).await;
        // In a process that has not seen them yet as in one that has.
        let outcome = site.manager().user(&ann).disconnect().await.unwrap();
        let Disconnected::Unrevoked { until: Some(until) } = outcome else { panic!("{outcome:?}") };
        let left = until.duration_since(site.fake.now()).unwrap();
        assert!(left <= HOUR && left + 5 * SECOND > HOUR, "{left:?}");
        assert!(site.row(RowKind::Login, &ann).await.is_none());
        assert_eq!(site.fake.count().total(), 0, "nothing to be sent");
        assert_eq!(site.fake.tokens_alive("ann"), 1);

        manager.user(&ann).forget().await.unwrap();
        let outcome = manager.user(&ann).disconnect().await.unwrap();
        assert!(matches!(outcome, Disconnected::Unrevoked { until: None }), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn enterprise_users_disconnect_by_access_token() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    for (user, name) in
        [(manager.enterprise_user(&UserId::new("bob").unwrap()), "bob"), (manager.partner(), "")]
    {
        user.token().await.unwrap();
        assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked));
        assert_eq!((site.fake.tokens_alive(name), rows(&site).await), (0, 0));
        user.token().await.unwrap();
        assert_eq!(site.fake.tokens_alive(name), 1, "granted anew by the next read");
        user.disconnect().await.unwrap();
    }
}

/// An access token that was replaced early lives on to its own end, and is revoked until then.
#[tokio::test(start_paused = true)]
async fn replaced_token_is_revoked_while_alive() {
    for (later, revoked) in [(HOUR / 4, 2), (HOUR / 2 + SECOND, 1)] {
        let site = Site::of(ApiVersion::V6);
        let manager = site.manager();
        let user = manager.enterprise_user(&UserId::new("bob").unwrap());
        let first = user.token().await.unwrap().into_shared();
        site.advance(HOUR / 2);
        user.report_unauthorized(&first);
        user.token().await.unwrap();
        site.advance(later);
        assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked));
        let sent = site.fake.requests().into_iter().filter(is_revocation).count();
        assert_eq!((sent, site.fake.tokens_alive("bob")), (revoked, 0), "{later:?}");
    }
}

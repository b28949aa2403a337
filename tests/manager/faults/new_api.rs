//! Calls that did not exist before: the state of a user, a check of the store, and what a shutdown
//! names.

use std::time::Duration;

use hurdlr_oauth2::manager::{Unfinished, UnfinishedWork, UserHandle, UserStatus};
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, ErrorKind, TokenManager};
use tokio::time::{Instant, sleep};

use crate::faults::site::*;

async fn status(user: &UserHandle) -> UserStatus {
    user.status().await.unwrap()
}

/// The status follows a login from its beginning to its end.
#[tokio::test(start_paused = true)]
async fn status_follows_the_login() {
    let site = Site::new();
    let manager = site.manager();
    let user = manager.user(&ann());
    assert_eq!(status(&user).await, UserStatus::Unknown);
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    assert_eq!(status(&user).await, UserStatus::Connected);
    site.advance(HOUR * 55 / 60);
    assert_eq!(status(&user).await, UserStatus::Due);
    site.advance(HOUR);
    assert_eq!(status(&user).await, UserStatus::Due, "it can be refreshed still");
    site.fake.revoke_everything("ann");
    user.token().await.unwrap_err();
    assert_eq!(status(&user).await, UserStatus::LoginRequired);
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    assert_eq!(status(&user).await, UserStatus::Connected);
    user.forget().await.unwrap();
    assert_eq!(status(&user).await, UserStatus::Unknown);
}

/// The status is known in a process that has not seen the user, by one read of the store.
#[tokio::test(start_paused = true)]
async fn status_is_read_once() {
    let site = Site::new();
    site.logged_in(&ann()).await;
    let cold = |site: &Site| site.manager().user(&ann());
    let before = site.store.calls().len();
    assert_eq!(status(&cold(&site)).await, UserStatus::Connected);
    assert_eq!(site.store.calls()[before..], [StoreCall::Read]);
    site.advance(HOUR * 55 / 60);
    assert_eq!(status(&cold(&site)).await, UserStatus::Due);
    assert_eq!(site.store.calls()[before..], [StoreCall::Read; 2]);
    site.fake.revoke_everything("ann");
    site.advance(HOUR);
    cold(&site).token().await.unwrap_err();
    let before = site.store.calls().len();
    assert_eq!(status(&cold(&site)).await, UserStatus::LoginRequired);
    assert_eq!(site.store.calls()[before..], [StoreCall::Read]);
    let nobody = site.manager().enterprise_user(&id("nobody"));
    assert_eq!(status(&nobody).await, UserStatus::Unknown);
}

/// The status of a user in memory asks nobody.
#[tokio::test(start_paused = true)]
async fn status_in_memory_asks_nobody() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let before = site.store.calls().len();
    site.store.go_down();
    for _ in 0..100 {
        assert_eq!(status(&user).await, UserStatus::Connected);
    }
    assert_eq!(site.store.calls().len(), before);
}

/// The status begins no refresh and writes no line of the log.
#[tokio::test(start_paused = true)]
async fn status_begins_nothing() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let (log, _guard) = Log::begin();
    let claims = site.calls(StoreCall::Claim);
    site.advance(HOUR * 55 / 60);
    for user in [ann(), id("nobody")] {
        for process in [&manager, &site.manager()] {
            for _ in 0..10 {
                process.user(&user).status().await.unwrap();
                sleep(SECOND).await;
            }
        }
    }
    assert_eq!(site.fake.count().total(), 0);
    assert_eq!(site.calls(StoreCall::Claim), claims);
    assert_eq!(log.lines(), Vec::<String>::new());
}

/// The status is neither a refresh nor an adoption in the metrics.
#[cfg(feature = "metrics")]
#[test]
fn status_is_not_counted() {
    use crate::faults::metered::{ADOPTIONS, Metrics, REFRESHES, assert_count, recorded};

    recorded(|snapshotter| async move {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR * 55 / 60);
        for process in [&manager, &site.manager()] {
            for user in [ann(), id("nobody")] {
                process.user(&user).status().await.unwrap();
                settled().await;
            }
        }
        let metrics = Metrics::look(&snapshotter);
        assert_count(metrics.sum(REFRESHES, &[]), 0);
        assert_count(metrics.sum(ADOPTIONS, &[]), 0);
    });
}

/// The status of a user whose rotation was lost is that they have to log in.
#[tokio::test(start_paused = true)]
async fn status_knows_lost_rotations() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DropAfter);
    manager.user(&ann()).token().await.unwrap_err();
    for process in [&manager, &site.manager()] {
        assert_eq!(status(&process.user(&ann())).await, UserStatus::LoginRequired);
    }
}

/// The status is a failure where neither memory nor the store can tell.
#[tokio::test(start_paused = true)]
async fn status_fails_with_the_store() {
    let site = Site::new();
    site.logged_in(&ann()).await;
    let user = site.manager().user(&ann());
    site.store.go_down();
    assert_eq!(user.status().await.unwrap_err().kind(), ErrorKind::Store);
    site.store.recover();
    assert_eq!(status(&user).await, UserStatus::Connected);
}

/// A check says whether the store answers, and asks nobody else.
#[tokio::test(start_paused = true)]
async fn check_asks_the_store() {
    let site = Site::new();
    let manager = site.manager();
    manager.check().await.unwrap();
    site.store.go_down();
    assert_eq!(manager.check().await.unwrap_err().kind(), ErrorKind::Store);
    site.store.recover();
    manager.check().await.unwrap();
    assert!(!site.store.calls().is_empty());
    assert_eq!(site.rows().await, 0);
    assert_eq!(site.fake.count().total(), 0);
}

fn manager_within(site: &Site, span: Duration) -> TokenManager {
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    builder.shutdown_within(span).build().unwrap()
}

/// Shuts down, which takes no longer than it may.
async fn shut_down(manager: &TokenManager, within: Duration) -> Vec<Unfinished> {
    let began = Instant::now();
    let unfinished = manager.shutdown().await;
    assert!(began.elapsed() <= within + SECOND, "{:?}", began.elapsed());
    unfinished
}

#[track_caller]
fn assert_unfinished(unfinished: &[Unfinished], expected: UnfinishedWork) {
    let [Unfinished { user, work, .. }] = unfinished else { panic!("{unfinished:?}") };
    assert_eq!((user, work), (&ann(), &expected));
}

/// A refresh whose answer does not come in time is named by the shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_names_unfinished_refresh() {
    for within in [5 * SECOND, 12 * SECOND] {
        let site = Site::new();
        let manager = manager_within(&site, within);
        manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
        site.advance(HOUR);
        site.fake.clear_requests();
        site.fake.fault_plan(|_| Some(Fault::DelayAfter(HOUR)));
        let caller = spawn_read(manager.user(&ann()));
        site.fake.arrived(1).await;
        assert_unfinished(&shut_down(&manager, within).await, UnfinishedWork::Refresh);
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

/// A token that the store does not take in time is named by the shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_names_unsaved_token() {
    for is_login in [true, false] {
        let site = Site::new();
        let manager = manager_within(&site, 5 * SECOND);
        if is_login {
            site.fail(StoreCall::Save, StoreFault::Before);
        }
        manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
        if !is_login {
            site.fail(StoreCall::Save, StoreFault::Before);
            site.advance(HOUR);
            soon(&manager.user(&ann())).await.unwrap();
        }
        assert_unfinished(&shut_down(&manager, 5 * SECOND).await, UnfinishedWork::Save);
    }
}

/// A token that the provider does not revoke in time is named by the shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_names_unrevoked_token() {
    let site = Site::of(ApiVersion::V6);
    let manager = manager_within(&site, 5 * SECOND);
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    manager.user(&ann()).disconnect().await.unwrap();
    assert_unfinished(&shut_down(&manager, 5 * SECOND).await, UnfinishedWork::Revocation);
}

/// A shutdown that is in time for everything names nobody.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_its_work() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::DelayAfter(15 * SECOND)));
    let caller = spawn_read(manager.user(&ann()));
    site.fake.arrived(1).await;
    let unfinished = shut_down(&manager, 16 * SECOND).await;
    assert!(unfinished.is_empty(), "{unfinished:?}");
    let token = caller.await.unwrap().unwrap();
    assert!(site.fake.is_alive(&token));
    let stored = site.stored_refresh_token(&ann()).await.unwrap();
    assert!(site.fake.refresh_is_alive(&stored));
}

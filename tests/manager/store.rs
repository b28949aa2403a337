//! A store that fails, and the end of the manager.

use std::time::Duration;

use hurdlr_oauth2::manager::UnfinishedWork;
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault};
use hurdlr_oauth2::{ErrorKind, UserId};

use crate::logged_in;
use crate::site::{HOUR, SECOND, Site, refresh};

#[tokio::test(start_paused = true)]
async fn failed_read_is_error_without_living_token() {
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
async fn untaken_token_is_served_and_saved_later() {
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
async fn unsaved_token_is_not_displaced_by_older() {
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
async fn untaken_login_is_served_and_saved_later() {
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
async fn shutdown_names_whose_token_is_unsaved() {
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
async fn shutdown_saves_once_store_takes_again() {
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

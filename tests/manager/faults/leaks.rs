//! Tokens that must not live on, or be served again.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::manager::{Disconnected, UserHandle};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{MemoryStore, RowKind, TokenStore};
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, Token, TokenManager};
use tokio::time::sleep;

use crate::faults::site::*;

/// A disconnected enterprise user who counts as revoked has no living token.
#[tokio::test(start_paused = true)]
async fn revoked_user_has_no_token() {
    let site = Site::of(ApiVersion::V6);
    let user = site.manager().enterprise_user(&ann());
    let first = soon(&user).await.unwrap();
    site.advance(HOUR * 55 / 60);
    soon(&user).await.unwrap();
    settled().await;
    assert_ne!(soon(&user).await.unwrap(), first);
    let outcome = user.disconnect().await.unwrap();
    let alive = site.fake.tokens_alive("ann");
    assert!(alive == 0 || !matches!(outcome, Disconnected::Revoked), "{alive} tokens live");
}

/// A removal comes to its end though its caller goes away.
#[tokio::test(start_paused = true)]
async fn abandoned_removal_is_finished() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.store.delay(SECOND);
    let user = manager.user(&ann());
    let caller = tokio::spawn(async move { user.forget().await });
    settled().await;
    caller.abort();
    sleep(10 * SECOND).await;
    site.store.delay(Duration::ZERO);
    assert!(site.row(RowKind::Login, &ann()).await.is_none());
}

/// A shutdown waits for a removal that is under way.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_removal() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.store.delay(SECOND);
    let user = manager.user(&ann());
    let _caller = tokio::spawn(async move { user.forget().await });
    settled().await;
    site.store.delay(Duration::ZERO);
    assert!(manager.shutdown().await.is_empty());
    assert!(site.row(RowKind::Login, &ann()).await.is_none());
}

/// A user whose token was refused while the provider cannot be reached.
async fn refused(site: &Site, manager: &TokenManager) -> String {
    let user = manager.user(&ann());
    let token = user.token().await.unwrap().into_shared();
    site.fake.fault_plan(|_| Some(Fault::Refuse));
    user.report_unauthorized(&token);
    settled().await;
    access(&token)
}

/// Reads for ten minutes, during which the refused token must not be served.
async fn assert_not_served(user: &UserHandle, refused: &str) {
    for _ in 0..60 {
        let served = soon(user).await.ok();
        assert_ne!(served.as_deref(), Some(refused));
        sleep(10 * SECOND).await;
    }
}

/// A refused token is not served again after its user was evicted.
#[tokio::test(start_paused = true)]
async fn eviction_revives_no_refused_token() {
    let site = Site::new();
    site.logged_in(&ann()).await;
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = manager.cache_capacity(1).build().unwrap();
    let refused = refused(&site, &manager).await;
    for other in ids("other", 100) {
        let _ = soon(&manager.enterprise_user(&other)).await;
    }
    assert_not_served(&manager.user(&ann()), &refused).await;
}

/// A refused token is not served again after a removal that failed.
#[tokio::test(start_paused = true)]
async fn failed_removal_revives_no_token() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let refused = refused(&site, &manager).await;
    site.fail(StoreCall::Forget, StoreFault::Before);
    manager.user(&ann()).forget().await.unwrap_err();
    site.store.recover();
    assert_not_served(&manager.user(&ann()), &refused).await;
}

/// The same token once more, like an app has it that imports it twice.
fn copy_of(site: &Site, token: &Token) -> Token {
    site.hurdlr().import(token.to_secret().expose_secret()).unwrap()
}

/// Adopts a token that is refused before the store has answered.
async fn assert_adoption_serves_no_refused(was_known: bool) {
    let site = Site::new();
    let manager = site.manager();
    let token = site.login(&ann()).await;
    if was_known {
        manager.adopt(&ann(), copy_of(&site, &token)).await.unwrap();
    }
    site.fake.fault_plan(|_| Some(Fault::Refuse));
    site.store.delay(SECOND);
    let adopting = tokio::spawn({
        let (manager, token) = (manager.clone(), copy_of(&site, &token));
        async move { manager.adopt(&ann(), token).await }
    });
    settled().await;
    site.store.delay(Duration::ZERO);
    let user = manager.user(&ann());
    user.report_unauthorized(&token);
    let _ = adopting.await.unwrap();
    assert_not_served(&user, &access(&token)).await;
}

/// A refused token is not served again because it is adopted once more.
#[tokio::test(start_paused = true)]
async fn adoption_revives_no_refused_token() {
    assert_adoption_serves_no_refused(true).await;
}

/// A token that is refused while it comes in is not served.
#[tokio::test(start_paused = true)]
async fn adoption_serves_no_refused_token() {
    assert_adoption_serves_no_refused(false).await;
}

/// A refusal counts for a user who is not in memory.
#[tokio::test(start_paused = true)]
async fn refusal_counts_without_memory() {
    let site = Site::new();
    let earlier = site.logged_in(&ann()).await;
    let token = earlier.user(&ann()).token().await.unwrap().into_shared();
    let user = site.manager().user(&ann());
    user.report_unauthorized(&token);
    let served = soon(&user).await.unwrap();
    assert_ne!(served, access(&token));
    assert!(site.fake.is_alive(&served));
    assert_eq!(site.refreshes(), 1);
}

/// Users whose token was refused leave memory once it is replaced.
#[tokio::test(start_paused = true)]
async fn replaced_users_leave_memory() {
    let site = Site::new();
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = builder.cache_capacity(1).build().unwrap();
    for user in ids("user", 1_000) {
        let user = manager.enterprise_user(&user);
        let token = user.token().await.unwrap().into_shared();
        user.report_unauthorized(&token);
        assert_ne!(access(&user.token().await.unwrap()), access(&token));
    }
    settled().await;
    let users = manager.users_in_memory();
    assert!(users <= 300, "{users}");
}

/// A manager that is shut down leaves nothing behind, not even who had to stay in memory.
#[tokio::test(start_paused = true)]
async fn shut_down_manager_is_freed() {
    let site = Site::new();
    let store = Arc::new(site.store.clone());
    let kept = Arc::downgrade(&store);
    let manager = TokenManager::builder(site.hurdlr(), store).build().unwrap();
    let user = manager.enterprise_user(&ann());
    let token = user.token().await.unwrap().into_shared();
    site.fake.fault_plan(|_| Some(Fault::status(503)));
    user.report_unauthorized(&token);
    let _ = soon(&user).await;
    manager.shutdown().await;
    drop((user, token, manager));
    settled().await;
    assert_eq!(kept.strong_count(), 0);
}

/// The same after an incident in which the tokens of many were refused at a time.
#[tokio::test(start_paused = true)]
async fn replaced_users_leave_memory_after_an_incident() {
    let site = Site::new();
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = builder.cache_capacity(1).build().unwrap();
    let mut tokens = Vec::new();
    for user in ids("user", 1_000) {
        tokens.push(manager.enterprise_user(&user).token().await.unwrap().into_shared());
    }
    site.fake.fault_plan(|_| Some(Fault::status(503)));
    for (user, token) in ids("user", 1_000).iter().zip(&tokens) {
        let user = manager.enterprise_user(user);
        let _ = soon(&user).await;
        user.report_unauthorized(token);
    }
    settled().await;
    site.fake.clear_faults();
    sleep(HOUR).await;
    for user in ids("user", 1_000).into_iter().chain(ids("later", 1_000)) {
        let user = manager.enterprise_user(&user);
        let token = user.token().await.unwrap().into_shared();
        user.report_unauthorized(&token);
        let _ = user.token().await;
    }
    settled().await;
    let users = manager.users_in_memory();
    assert!(users <= 300, "{users}");
}

/// The same with so many users that those who need not stay in memory are looked for.
#[tokio::test(start_paused = true)]
async fn eviction_revives_none_of_many() {
    let site = Site::new();
    let users = ids("user", 100);
    drop(site.all_logged_in(&users).await);
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = builder.cache_capacity(1).build().unwrap();
    let mut refused = Vec::new();
    for id in &users {
        let user = manager.user(id);
        let token = user.token().await.unwrap().into_shared();
        site.fake.fault_plan(|_| Some(Fault::Refuse));
        user.report_unauthorized(&token);
        settled().await;
        refused.push(access(&token));
    }
    for (id, refused) in users.iter().zip(&refused) {
        let served = soon(&manager.user(id)).await.ok();
        assert_ne!(served.as_ref(), Some(refused));
    }
}

/// A disconnect that another process's removal overtakes leaves no token alive.
#[tokio::test(start_paused = true)]
async fn overtaken_disconnect_leaves_no_token() {
    let store = MemoryStore::new();
    let mut site = Site::on(store.clone());
    site.version = ApiVersion::V6;
    drop(site.logged_in(&ann()).await);
    let (key, mut came) = (site.key(RowKind::Login, &ann()), false);
    site.store.plan(move |call| {
        if call == StoreCall::Forget && !came {
            came = true;
            assert!(polled_once(store.forget(&key, None)).unwrap().unwrap());
        }
        None
    });
    let outcome = site.manager().user(&ann()).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
    assert_eq!(site.fake.tokens_alive("ann"), 0);
}

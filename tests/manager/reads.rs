//! Reads: one request for all who wait, and no wait where none is needed.

use hurdlr_oauth2::manager::TokenEvent;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, Gate};
use hurdlr_oauth2::{ErrorKind, Hurdlr, TokenManager, UserId};

use crate::site::{HOUR, SECOND, Site, access};
use crate::{logged_in, polled_once};

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
async fn many_callers_of_cold_user_request_once() {
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
async fn callers_of_due_user_do_not_wait() {
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

#[tokio::test(start_paused = true)]
async fn many_callers_of_expired_user_refresh_once() {
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
async fn one_users_refresh_delays_no_other() {
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
async fn unknown_user_must_log_in_unsent() {
    let site = Site::new();
    let manager = site.manager();
    let error = manager.user(&UserId::new("ann").unwrap()).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    assert_eq!(site.fake.count().total(), 0);
}

#[tokio::test(start_paused = true)]
async fn evicted_user_returns_without_a_request() {
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
async fn user_under_refresh_is_not_evicted() {
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
async fn million_users_stay_within_the_capacity() {
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
async fn hurried_caller_ends_wait_not_refresh() {
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
async fn what_is_lent_crosses_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let token = manager.user(&id).token().await.unwrap();
    shared(&token);
    shared(&token.into_shared());
    assert_eq!(size_of::<hurdlr_oauth2::manager::TokenFuture<'_>>(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_on_many_threads_share_a_request() {
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

//! What another process does to a user is known here within a bound.

use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent, UserHandle};
use hurdlr_oauth2::store::{RowKind, StoredToken, TokenStore, Version};
use hurdlr_oauth2::testing::{Fault, StoreCall, seed_row};
use hurdlr_oauth2::{ErrorKind, TokenManager, UserId};

use crate::site::{HOUR, SECOND, Site, access, refresh};

/// The default bound.
const BOUND: Duration = Duration::from_secs(60);

fn ann() -> UserId {
    UserId::new("ann").unwrap()
}

/// Time passes in which the user is read now and then, as one who is read is.
async fn read_for(site: &Site, user: &UserHandle, span: Duration) {
    for _ in 0..10 {
        site.advance(span / 10);
        let _ = user.token().await;
        settled().await;
    }
}

/// A token as a store is handed it.
async fn stored_token(site: &Site) -> StoredToken {
    let bob = UserId::new("bob").unwrap();
    site.logged_in(&bob).await;
    site.row(RowKind::Login, &bob).await.unwrap().token.unwrap()
}

/// Lets everything run that can.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn looks(site: &Site) -> usize {
    site.store.calls().iter().filter(|call| **call == StoreCall::Read).count()
}

#[tokio::test(start_paused = true)]
async fn login_elsewhere_is_known_within_bound() {
    let site = Site::new();
    let (here, elsewhere) = (site.logged_in(&ann()).await, site.manager());
    let user = here.user(&ann());
    let mut changes = user.subscribe();
    let login = site.login(&ann()).await;
    let expected = refresh(&login);
    elsewhere.adopt(&ann(), login).await.unwrap();
    read_for(&site, &user, BOUND).await;
    assert_eq!(refresh(&user.token().await.unwrap()), expected);
    assert_eq!(changes.next().await, TokenEvent::NewToken);
}

/// A clock that was ahead at the last look is put right: the next look is none the later.
#[tokio::test(start_paused = true)]
async fn clock_set_back_delays_no_look() {
    let site = Site::new();
    let (here, elsewhere) = (site.logged_in(&ann()).await, site.manager());
    let user = here.user(&ann());
    let ahead = 10 * BOUND;
    site.clock.advance_wall(ahead);
    user.token().await.unwrap();
    settled().await;
    site.clock.set_wall_back(ahead);
    elsewhere.user(&ann()).forget().await.unwrap();
    read_for(&site, &user, BOUND).await;
    assert!(user.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn removal_elsewhere_is_known_within_bound() {
    let site = Site::new();
    let (here, elsewhere) = (site.logged_in(&ann()).await, site.manager());
    let user = here.user(&ann());
    let mut changes = user.subscribe();
    elsewhere.user(&ann()).forget().await.unwrap();
    // Read now and then, and never served what is known to be gone.
    site.advance(BOUND / 2);
    user.token().await.unwrap();
    assert_eq!(changes.next().await, TokenEvent::Forgotten);
    assert!(user.try_token().is_none());
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
    assert!(site.row(RowKind::Login, &ann()).await.is_none(), "and nobody brought them back");
}

#[tokio::test(start_paused = true)]
async fn refresh_elsewhere_is_known_within_bound() {
    let site = Site::new();
    let (here, elsewhere) = (site.logged_in(&ann()).await, site.manager());
    let (user, theirs) = (here.user(&ann()), elsewhere.user(&ann()));
    // Elsewhere it is refused by the API and renewed; here it still seems well.
    site.advance(2 * BOUND);
    theirs.token().await.unwrap();
    let refused = theirs.token().await.unwrap().into_shared();
    theirs.report_unauthorized(&refused);
    let renewed = access(&theirs.token().await.unwrap());
    read_for(&site, &user, BOUND).await;
    assert_eq!(access(&user.token().await.unwrap()), renewed);
    assert_eq!(site.refreshes(), 1);
}

#[tokio::test(start_paused = true)]
async fn grant_elsewhere_is_known_after_failure_here() {
    let site = Site::new();
    let policy = RefreshPolicy::default().initial_backoff(HOUR).max_backoff(HOUR);
    let here = TokenManager::builder(site.hurdlr(), site.store.clone());
    let here = here.refresh_policy(policy).build().unwrap();
    let user = here.enterprise_user(&ann());
    site.fake.fault_plan(|_| Some(Fault::Refuse));
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
    site.fake.clear_faults();
    // Another process is past the pause that this one has for itself.
    let stored = stored_token(&site).await;
    let key = site.key(RowKind::Enterprise, &ann());
    seed_row(&site.store, &key, Version { incarnation: 7, revision: 1 }, stored).await;
    read_for(&site, &user, BOUND).await;
    assert!(user.token().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn users_read_share_one_query() {
    let site = Site::new();
    let manager = site.manager();
    let users: Vec<_> = (0..500)
        .map(|n| manager.enterprise_user(&UserId::new(format!("user-{n}")).unwrap()))
        .collect();
    for user in &users {
        user.token().await.unwrap();
    }
    let before = looks(&site);
    for _ in 0..10 {
        site.advance(BOUND / 10);
        for user in &users {
            user.token().await.unwrap();
        }
        settled().await;
    }
    assert_eq!(looks(&site) - before, 2, "one at each half of the bound");
}

#[tokio::test(start_paused = true)]
async fn unread_user_is_not_looked_up() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    manager.user(&ann()).token().await.unwrap();
    let before = looks(&site);
    for _ in 0..10 {
        site.advance(BOUND);
        settled().await;
    }
    assert_eq!(looks(&site), before);
}

#[tokio::test(start_paused = true)]
async fn failing_store_is_asked_now_and_then() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let token = access(&user.token().await.unwrap());
    site.store.go_down();
    let before = looks(&site);
    site.advance(BOUND);
    for _ in 0..1_000 {
        assert_eq!(access(&user.token().await.unwrap()), token);
        settled().await;
    }
    assert_eq!(looks(&site) - before, 1);
    // It is back, and what happened meanwhile is known within the bound again.
    site.store.recover();
    site.manager().user(&ann()).forget().await.unwrap();
    tokio::time::sleep(BOUND / 2).await;
    let _ = user.token().await;
    settled().await;
    assert!(user.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn panicking_store_ends_one_look_only() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    user.token().await.unwrap();
    site.store
        .plan(|call| if call == StoreCall::Read { panic!("a bug of the store") } else { None });
    site.advance(BOUND);
    user.token().await.unwrap();
    settled().await;
    site.store.recover();
    site.manager().user(&ann()).forget().await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    let _ = user.token().await;
    settled().await;
    assert!(user.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn look_undoes_no_login_or_removal() {
    for login_anew in [true, false] {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        let user = manager.user(&ann());
        let before = access(&user.token().await.unwrap());
        // The store has looked, and its answer is on its way.
        site.store.delay(SECOND);
        site.advance(BOUND);
        user.token().await.unwrap();
        settled().await;
        tokio::time::sleep(3 * SECOND / 2).await;
        site.store.delay(Duration::ZERO);
        if login_anew {
            let login = site.login(&ann()).await;
            let expected = access(&login);
            manager.adopt(&ann(), login).await.unwrap();
            tokio::time::sleep(2 * SECOND).await;
            assert_ne!(expected, before);
            assert_eq!(access(&user.token().await.unwrap()), expected);
        } else {
            user.forget().await.unwrap();
            tokio::time::sleep(2 * SECOND).await;
            assert!(user.try_token().is_none());
            assert!(site.row(RowKind::Login, &ann()).await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn restored_store_gets_newer_token_again() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let row = site.row(RowKind::Login, &ann()).await.unwrap();
    let (incarnation, backup) = (row.version.incarnation, row.token.unwrap());
    site.advance(HOUR);
    let newer = refresh(&user.token().await.unwrap());
    // From a backup: the row as it was.
    let key = site.key(RowKind::Login, &ann());
    site.store.forget(&key, None).await.unwrap();
    let backup = StoredToken { age: HOUR, ..backup };
    seed_row(&site.store, &key, Version { incarnation, revision: 1 }, backup).await;
    assert_ne!(site.stored_refresh_token(&ann()).await.as_ref(), Some(&newer));
    read_for(&site, &user, BOUND).await;
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(newer));
}

#[tokio::test(start_paused = true)]
async fn unreadable_row_neither_blocks_nor_changes() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let token = access(&user.token().await.unwrap());
    let key = site.key(RowKind::Login, &ann());
    let garbage = StoredToken {
        payload: hurdlr_oauth2::secrecy::SecretBox::new(Box::new(b"garbage".to_vec())),
        age: Duration::ZERO,
        due_in: HOUR,
    };
    seed_row(&site.store, &key, Version { incarnation: 7, revision: 1 }, garbage).await;
    read_for(&site, &user, BOUND).await;
    assert_eq!(access(&user.token().await.unwrap()), token);
    assert_eq!(site.row(RowKind::Login, &ann()).await.unwrap().version.incarnation, 7);
}

#[tokio::test(start_paused = true)]
async fn bound_of_zero_is_refused_by_name() {
    let site = Site::new();
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let error = builder.revalidate_after(Duration::ZERO).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("revalidate_after"));
}

#[tokio::test(start_paused = true)]
async fn look_undoes_no_removal_of_unserved_user() {
    let site = Site::new();
    let policy = RefreshPolicy::default().initial_backoff(HOUR).max_backoff(HOUR);
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = manager.refresh_policy(policy).build().unwrap();
    let user = manager.enterprise_user(&ann());
    let stored = stored_token(&site).await;
    site.fake.fault_plan(|_| Some(Fault::Refuse));
    assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let key = site.key(RowKind::Enterprise, &ann());
    seed_row(&site.store, &key, Version { incarnation: 7, revision: 1 }, stored).await;
    site.store.delay(SECOND);
    site.advance(BOUND);
    assert!(user.token().await.is_err());
    tokio::time::sleep(3 * SECOND / 2).await;
    site.store.delay(Duration::ZERO);
    user.forget().await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(user.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn slow_look_brings_no_earlier_token() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    user.token().await.unwrap();
    site.store.delay(10 * SECOND);
    site.advance(BOUND);
    user.token().await.unwrap();
    settled().await;
    site.store.delay(Duration::ZERO);
    tokio::time::sleep(5 * SECOND).await;
    site.advance(HOUR);
    user.token().await.unwrap();
    tokio::time::sleep(10 * SECOND).await; // here it looks
    site.advance(HOUR);
    let newest = access(&user.token().await.unwrap());
    site.store.go_down(); // no other look sets it right
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(access(&user.try_token().unwrap()), newest);
    assert_eq!(site.refreshes(), 2);
}

/// However often a user is read, one look is under way at a time, whether or not there is a token.
#[tokio::test(start_paused = true)]
async fn many_reads_cost_one_look() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let reads = || site.store.calls().into_iter().filter(|call| *call == StoreCall::Read).count();
    for id in [ann(), UserId::new("bob").unwrap()] {
        let user = manager.user(&id);
        let _ = user.token_timeout(SECOND).await;
        site.store.delay(SECOND / 2);
        let before = reads();
        site.advance(BOUND);
        for _ in 0..20 {
            let _ = user.token_timeout(SECOND / 100).await;
            tokio::time::sleep(SECOND / 10).await;
        }
        site.store.delay(Duration::ZERO);
        settled().await;
        assert!(reads() - before <= 2, "{} looks", reads() - before);
    }
}

//! Users who must be served, and quickly.

use std::time::Duration;

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent};
use hurdlr_oauth2::store::RowKind;
use hurdlr_oauth2::testing::{Fault, Gate, ManualClock, StoreCall};
use hurdlr_oauth2::{ApiVersion, ErrorKind, TokenManager};
use tokio::time::{Instant, sleep};

use crate::faults::site::*;

fn manager_of(site: &Site, at_once: usize) -> TokenManager {
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    builder.max_concurrent_refreshes(at_once).build().unwrap()
}

/// Users whose leases other processes hold delay nobody else.
#[tokio::test(start_paused = true)]
async fn leases_delay_nobody_else() {
    let site = Site::new();
    let leased = ids("leased", 4);
    let elsewhere = site.all_logged_in(&leased).await;
    let here = manager_of(&site, 4);
    site.advance(HOUR);
    let gate = Gate::closed();
    let held = gate.clone();
    site.fake.fault_plan(move |request| {
        let is_leased = request.user().is_some_and(|user| user.starts_with("leased"));
        is_leased.then(|| Fault::Hold(held.clone()))
    });
    let theirs: Vec<_> = leased.iter().map(|user| spawn_read(elsewhere.user(user))).collect();
    site.fake.arrived(4).await;
    let ours: Vec<_> = leased.iter().map(|user| spawn_read(here.user(user))).collect();
    settled().await;
    assert!(soon(&here.enterprise_user(&id("bob"))).await.is_ok());
    gate.open();
    for caller in theirs.into_iter().chain(ours) {
        assert!(site.fake.is_alive(&caller.await.unwrap().unwrap()));
    }
}

/// A `Retry-After` of one user delays nobody else.
#[tokio::test(start_paused = true)]
async fn rate_limits_delay_nobody_else() {
    let site = Site::new();
    site.logged_in(&ann()).await;
    let manager = manager_of(&site, 1);
    site.advance(HOUR);
    site.fake.fault_next(Fault::rate_limited_for(40 * SECOND));
    let waiting = spawn_read(manager.user(&ann()));
    site.fake.arrived(1).await;
    settled().await;
    assert!(soon(&manager.enterprise_user(&id("bob"))).await.is_ok());
    drop(waiting);
}

/// The walk renews users from the store as quickly as those in memory.
#[tokio::test(start_paused = true)]
async fn walk_renews_cold_users_quickly() {
    let site = Site::new();
    site.all_logged_in(&ids("user", 640)).await;
    let cold = site.manager();
    site.advance(HOUR * 55 / 60);
    let walk = cold.keep_alive(MINUTE);
    sleep(2 * SECOND).await;
    assert_eq!(site.refreshes(), 640);
    walk.stop().await;
}

/// Users whom the provider answers slowly hold up no others on the walk.
#[tokio::test(start_paused = true)]
async fn slow_users_hold_up_nobody() {
    let site = Site::new();
    let users: Vec<_> = ids("user", 630).into_iter().chain(ids("slow", 10)).collect();
    let manager = site.all_logged_in(&users).await;
    site.advance(HOUR * 55 / 60);
    site.fake.fault_plan(|request| {
        let is_slow = request.user().is_some_and(|user| user.starts_with("slow"));
        is_slow.then_some(Fault::Delay(25 * SECOND))
    });
    let walk = manager.keep_alive(MINUTE);
    sleep(5 * SECOND).await;
    assert_eq!(site.refreshes(), 640, "all of them are sent");
    sleep(25 * SECOND).await;
    walk.stop().await;
}

/// A process whose lease was taken over serves the token of the process that took it.
#[tokio::test(start_paused = true)]
async fn overtaken_process_requires_no_login() {
    let site = Site::new();
    // Its clock stands still, like that of a machine that is suspended.
    let clock = ManualClock::new();
    let slow = TokenManager::builder(site.hurdlr_by(clock.clone()), site.store.clone());
    let slow = slow.build().unwrap();
    slow.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    let user = slow.user(&ann());
    let events = events(&user);
    clock.advance(HOUR);
    site.advance(HOUR);
    site.fake.clear_requests();
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    let waiting = spawn_read(user);
    site.fake.arrived(1).await;
    site.advance(90 * SECOND);
    let newer = soon(&site.manager().user(&ann())).await.unwrap();
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap(), newer);
    settled().await;
    let events = events.lock().unwrap().clone();
    assert!(events.iter().all(|event| *event == TokenEvent::NewToken), "{events:?}");
}

/// A `Retry-After` that follows an unanswered request binds all processes.
#[tokio::test(start_paused = true)]
async fn retry_after_binds_all_processes() {
    let site = Site::new();
    let here = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DropBefore);
    site.fake.fault_next(Fault::rate_limited_for(300 * SECOND));
    here.user(&ann()).token().await.unwrap_err();
    assert_eq!(site.refreshes(), 2);
    let began = Instant::now();
    let elsewhere = site.manager();
    while began.elapsed() < 290 * SECOND {
        let _ = soon(&elsewhere.user(&ann())).await;
        let _ = soon(&here.user(&ann())).await;
        sleep(5 * SECOND).await;
        assert_eq!(site.refreshes(), 2, "after {:?}", began.elapsed());
    }
    while began.elapsed() < 700 * SECOND {
        let _ = soon(&elsewhere.user(&ann())).await;
        sleep(5 * SECOND).await;
    }
    assert!(soon(&elsewhere.user(&ann())).await.is_ok());
}

/// Walks for six hours over a store that panics once in such a call.
async fn assert_walk_survives(call: StoreCall) {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.panic_once(call);
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(6 * HOUR).await;
    assert!(site.refreshes() >= 5, "{} refreshes", site.refreshes());
    walk.stop().await;
}

/// The walk goes on after the store has panicked when it was asked for the walk's lease.
#[tokio::test(start_paused = true)]
async fn walk_survives_panicking_claim() {
    assert_walk_survives(StoreCall::Claim).await;
}

/// The walk goes on after the store has panicked when it was asked who is due.
#[tokio::test(start_paused = true)]
async fn walk_survives_panicking_search() {
    assert_walk_survives(StoreCall::Due).await;
}

/// The walk goes on after the store has panicked when the walk's lease was released.
#[tokio::test(start_paused = true)]
async fn walk_survives_panicking_release() {
    assert_walk_survives(StoreCall::Release).await;
}

/// The walk takes any interval.
#[tokio::test(start_paused = true)]
async fn walk_takes_longest_interval() {
    let before = panics();
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR * 55 / 60);
    let walk = manager.keep_alive(Duration::MAX);
    sleep(10 * SECOND).await;
    assert_eq!(site.refreshes(), 1);
    walk.stop().await;
    assert_eq!(panics(), before);
}

/// A replica that lacks the key for its users' rows asks the store no more often than others.
#[cfg(feature = "sealed")]
#[tokio::test(start_paused = true)]
async fn keyless_replica_asks_no_oftener() {
    use hurdlr_oauth2::secrecy::SecretSlice;
    use hurdlr_oauth2::store::{KeyRing, MemoryStore, Sealed, SealingKey};
    use hurdlr_oauth2::testing::FaultyStore;

    let key = |byte| SealingKey::from_bytes(&SecretSlice::from(vec![byte; 32])).unwrap();
    let site = Site::new();
    let rows = MemoryStore::with_clock(site.clock.clone());
    let counted = FaultyStore::new(rows.clone());
    let keyless = Sealed::new(counted.clone(), KeyRing::new(key(1)));
    let keyless = TokenManager::builder(site.hurdlr(), keyless).build().unwrap();
    let keys = KeyRing::new(key(2)).with_opening_key(key(1));
    let newer = TokenManager::builder(site.hurdlr(), Sealed::new(rows, keys)).build().unwrap();
    let users = ids("user", 100);
    let handles: Vec<_> = users.iter().map(|user| keyless.user(user)).collect();
    for user in &users {
        keyless.adopt(user, site.login(user).await).await.unwrap();
    }
    for user in &users {
        newer.adopt(user, site.login(user).await).await.unwrap();
    }
    let before = counted.calls().len();
    for _ in 0..20 {
        site.advance(30 * SECOND);
        for user in &handles {
            assert!(soon(user).await.is_ok(), "a living token is served");
        }
        settled().await;
    }
    let calls = counted.calls().len() - before;
    assert!(calls <= 60, "{calls} calls for 20 looks at 100 users");
}

/// An API endpoint that always answers 401 takes down no call to another one.
#[tokio::test(start_paused = true)]
async fn broken_endpoint_takes_nobody_down() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let mut failures = 0;
    for second in 0..2 * 3_600 {
        if second % 5 == 0
            && let Ok(token) = user.token_timeout(SECOND / 10).await
        {
            let refused = token.into_shared();
            user.report_unauthorized(&refused);
        }
        failures += usize::from(soon(&user).await.is_err());
        sleep(SECOND).await;
    }
    assert_eq!(failures, 0, "of 7200 calls to a healthy endpoint");
    // Pauses that double from a minute, and one refresh of the hourly token.
    assert!((2..=12).contains(&site.refreshes()), "{} refreshes", site.refreshes());
}

/// A refusal shortly after each hourly refresh never leaves the user without a token.
#[tokio::test(start_paused = true)]
async fn hourly_refusals_are_forgotten() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    for hour in 0..9 {
        soon(&user).await.unwrap();
        sleep(5 * SECOND).await;
        let refused = user.token().await.unwrap().into_shared();
        user.report_unauthorized(&refused);
        let next = soon(&user).await;
        let next = next.unwrap_or_else(|error| panic!("hour {hour}: {error}"));
        assert_ne!(next, access(&refused), "hour {hour}");
        sleep(HOUR).await;
    }
}

/// A refusal that a peer's newer token explains is healed at once, however often it happens.
#[tokio::test(start_paused = true)]
async fn peers_tokens_heal_refusals() {
    let site = Site::new();
    site.fake.set_token_life(100 * SECOND);
    let here = site.logged_in(&ann()).await;
    let early = RefreshPolicy::default().refresh_fraction(0.1).refresh_jitter(0.0);
    let elsewhere = TokenManager::builder(site.hurdlr(), site.store.clone());
    let elsewhere = elsewhere.refresh_policy(early).build().unwrap();
    let (user, theirs) = (here.user(&ann()), elsewhere.user(&ann()));
    soon(&theirs).await.unwrap();
    for round in 1..=8 {
        let old = user.token().await.unwrap().into_shared();
        sleep(15 * SECOND).await;
        // Due over there.
        let _ = soon(&theirs).await;
        settled().await;
        let newer = soon(&theirs).await.unwrap();
        assert_ne!(newer, access(&old), "round {round}");
        user.report_unauthorized(&old);
        let healed = soon(&user).await;
        let healed = healed.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(healed, newer, "round {round}");
        assert_eq!(site.refreshes(), round, "only the peer refreshes");
    }
}

/// A provider that answers with the same living token is asked at growing pauses.
#[tokio::test(start_paused = true)]
async fn repeated_token_is_left_alone() {
    let site = Site::new();
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    let first = std::sync::OnceLock::new();
    site.fake.reshape(move |answer| {
        let first = first.get_or_init(|| answer.clone());
        answer.clone_from(first);
    });
    let token = soon(&user).await.unwrap();
    site.fake.clear_requests();
    for _ in 0..59 * 60 {
        assert_eq!(soon(&user).await.unwrap(), token);
        sleep(SECOND).await;
    }
    let requests = site.fake.count().total();
    assert!((1..=30).contains(&requests), "{requests} requests");
}

/// A token that is dated early is renewed at growing pauses.
#[tokio::test(start_paused = true)]
async fn early_dated_token_is_kept() {
    let site = Site::new();
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    site.fake.reshape(|answer| {
        let created = answer["created_at"].as_u64().unwrap();
        answer["created_at"] = (created - 3_000).into();
    });
    for _ in 0..300 {
        soon(&user).await.unwrap();
        sleep(SECOND).await;
    }
    let requests = site.fake.count().total();
    assert!(requests <= 15, "{requests} requests in 300 s");
}

/// Begins a call that takes a while at the store, polls it once, and logs ann in meanwhile.
async fn assert_login_passes<F: Future>(site: &Site, manager: &TokenManager, call: F) {
    let login = site.login(&ann()).await;
    let expected = access(&login);
    site.store.delay(SECOND);
    let mut stuck = Box::pin(call);
    assert!(polled_once(stuck.as_mut()).is_none());
    settled().await;
    site.store.delay(Duration::ZERO);
    let adopted = tokio::time::timeout(MINUTE, manager.adopt(&ann(), login)).await;
    adopted.expect("nobody blocks it").unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(soon(&manager.user(&ann())).await.unwrap(), expected);
    drop(stuck);
}

/// An import that nobody polls any more blocks no login.
#[tokio::test(start_paused = true)]
async fn unpolled_import_blocks_no_login() {
    let site = Site::new();
    let manager = site.manager();
    let earlier = site.login(&ann()).await;
    let ann = ann();
    let import = manager.import_if_absent(&ann, earlier);
    assert_login_passes(&site, &manager, import).await;
}

/// A removal that nobody polls any more blocks no login.
#[tokio::test(start_paused = true)]
async fn unpolled_removal_blocks_no_login() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    assert_login_passes(&site, &manager, user.forget()).await;
}

/// Disconnects a user whose row cannot be read, in a process that has not seen them.
async fn assert_disconnects_unreadable(version: ApiVersion) {
    let site = Site::of(version);
    site.logged_in(&ann()).await;
    site.damage(&ann()).await;
    let user = site.manager().user(&ann());
    user.disconnect().await.unwrap();
    assert!(site.row(RowKind::Login, &ann()).await.is_none());
    assert_eq!(soon(&user).await.unwrap_err().kind(), ErrorKind::LoginRequired);
}

/// A user whose row cannot be read can be disconnected where tokens cannot be revoked.
#[tokio::test(start_paused = true)]
async fn unreadable_user_can_be_erased() {
    assert_disconnects_unreadable(ApiVersion::V4).await;
}

/// A user whose row cannot be read can be disconnected where tokens can be revoked.
#[tokio::test(start_paused = true)]
async fn unreadable_user_can_be_revoked() {
    assert_disconnects_unreadable(ApiVersion::V6).await;
}

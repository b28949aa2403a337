//! Logins that must not be lost.

use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::store::{MemoryStore, Release, RowKind, Save, TokenStore, Version};
use hurdlr_oauth2::testing::{
    Fault, FaultyStore, Outcome, RecordedRequest, Rotation, StoreCall, StoreFault,
};
use hurdlr_oauth2::{ApiVersion, ErrorKind, Hurdlr, RetryPolicy, TokenManager};
use tokio::time::{Instant, sleep};

use crate::faults::site::*;

/// As many users as are refreshed at once by default.
const AT_ONCE: usize = 64;

/// The refreshes that ann's hourly token needs at least in a day.
const DAILY: u64 = 20;

fn is_refresh(request: &RecordedRequest) -> bool {
    request.grant() == Some("refresh_token")
}

/// A login is kept alive beside any number of users whom the provider has removed.
#[tokio::test(start_paused = true)]
async fn removed_users_starve_nobody() {
    let site = Site::new();
    let manager = site.manager();
    for gone in ids("gone", AT_ONCE) {
        manager.enterprise_user(&gone).token().await.unwrap();
    }
    site.fake.fault_plan(|request| {
        let is_gone = request.user().is_some_and(|user| user.starts_with("gone"));
        is_gone.then(|| Fault::answer(400, r#"{"error":"invalid_request"}"#))
    });
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    assert!(site.refreshes() >= DAILY, "{} refreshes of ann's", site.refreshes());
    assert!(site.fake.is_alive(&soon(&manager.user(&ann())).await.unwrap()));
}

/// A login is kept alive beside any number of revocations that the provider refuses.
#[tokio::test(start_paused = true)]
async fn refused_revocations_starve_nobody() {
    let site = Site::of(ApiVersion::V6);
    let left = ids("left", AT_ONCE);
    let earlier = site.all_logged_in(&left).await;
    site.fake.fault_plan(|request| {
        let is_revocation = request.path().ends_with("/revoke");
        is_revocation.then(|| Fault::answer(400, r#"{"error":"unsupported_token_type"}"#))
    });
    for user in &left {
        let _ = earlier.user(user).disconnect().await;
    }
    earlier.shutdown().await;
    let manager = site.logged_in(&ann()).await;
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    assert!(site.refreshes() >= DAILY, "{} refreshes of ann's", site.refreshes());
}

/// A login is kept alive beside any number of users whom only an earlier policy calls due.
#[tokio::test(start_paused = true)]
async fn earlier_policies_starve_nobody() {
    let site = Site::new();
    site.fake.set_token_life(90 * DAY);
    let hasty = RefreshPolicy::default().refresh_fraction(0.01).refresh_jitter(0.0);
    let earlier = TokenManager::builder(site.hurdlr(), site.store.clone());
    let earlier = earlier.refresh_policy(hasty).build().unwrap();
    for user in ids("calm", AT_ONCE) {
        earlier.enterprise_user(&user).token().await.unwrap();
    }
    earlier.shutdown().await;
    sleep(DAY).await;
    site.fake.set_token_life(HOUR);
    let manager = site.logged_in(&ann()).await;
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    assert!(site.refreshes() >= DAILY, "{} refreshes of ann's", site.refreshes());
}

/// A login is kept alive beside any number of users whose rows cannot be read.
#[tokio::test(start_paused = true)]
async fn unreadable_users_starve_nobody() {
    let site = Site::new();
    for lost in ids("lost", 1_100) {
        site.damage(&lost).await;
    }
    sleep(2 * HOUR).await;
    let manager = site.logged_in(&ann()).await;
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    assert!(site.refreshes() >= DAILY, "{} refreshes of ann's", site.refreshes());
}

/// A token service that answers 401 for ten minutes logs nobody out.
#[tokio::test(start_paused = true)]
async fn outages_log_nobody_out() {
    let site = Site::new();
    let users = ids("user", 20);
    let manager = site.all_logged_in(&users).await;
    site.advance(HOUR);
    site.fake.fault_plan(|request| is_refresh(request).then(doubtful_refusal));
    for _ in 0..20 {
        for user in &users {
            let error = soon(&manager.user(user)).await.unwrap_err();
            assert!(!error.needs_login(), "{error}");
        }
        sleep(30 * SECOND).await;
    }
    site.fake.clear_faults();
    for _ in 0..30 {
        for user in &users {
            let _ = soon(&manager.user(user)).await;
        }
        sleep(MINUTE).await;
    }
    let elsewhere = site.manager();
    for user in &users {
        for process in [&manager, &elsewhere] {
            assert!(site.fake.is_alive(&soon(&process.user(user)).await.unwrap()));
        }
    }
}

/// A process with a wrong client secret logs nobody out.
#[tokio::test(start_paused = true)]
async fn wrong_secret_logs_nobody_out() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_plan(|request| {
        let is_wrong = request.field("client_secret").is_some_and(|secret| secret == "wrong");
        is_wrong.then(doubtful_refusal)
    });
    let hurdlr = Hurdlr::builder(site.fake.client_id(), "wrong".into())
        .environment(site.fake.base_url())
        .http_client(site.fake.http_client())
        .retry(RetryPolicy::default().max_attempts(2))
        .clock(site.clock.clone())
        .build()
        .unwrap();
    let wrong = TokenManager::builder(hurdlr, site.store.clone()).build().unwrap();
    for _ in 0..20 {
        let error = soon(&wrong.user(&ann())).await.unwrap_err();
        assert!(!error.needs_login(), "{error}");
        sleep(30 * SECOND).await;
    }
    wrong.shutdown().await;
    for _ in 0..30 {
        let _ = soon(&manager.user(&ann())).await;
        sleep(MINUTE).await;
    }
    assert!(site.fake.is_alive(&soon(&manager.user(&ann())).await.unwrap()));
}

/// A login that is refused by 401s for long is told as over, is asked for at growing pauses, and
/// lives on once the provider takes its refresh token.
#[tokio::test(start_paused = true)]
async fn lasting_401s_ask_for_login() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    site.advance(HOUR);
    site.fake.fault_plan(|request| is_refresh(request).then(doubtful_refusal));
    let began = Instant::now();
    while began.elapsed() < 14 * MINUTE {
        let error = soon(&user).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        sleep(MINUTE).await;
    }
    while began.elapsed() < HOUR {
        let _ = soon(&user).await;
        sleep(MINUTE).await;
    }
    assert_eq!(soon(&user).await.unwrap_err().kind(), ErrorKind::LoginRequired);
    let sent = site.refreshes();
    while began.elapsed() < DAY {
        let error = soon(&user).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{error}");
        sleep(MINUTE).await;
    }
    // Each try is at most two requests: one with Bearer, and one without.
    let later = site.refreshes() - sent;
    assert!((2..=30).contains(&later), "{later} requests in 23 hours");
    site.fake.clear_faults();
    while began.elapsed() < DAY + 7 * HOUR {
        let _ = soon(&user).await;
        sleep(MINUTE).await;
    }
    assert!(site.fake.is_alive(&soon(&user).await.unwrap()));
}

/// A store that is restored from a backup costs no login, not even in a process that was idle.
#[tokio::test(start_paused = true)]
async fn restored_store_costs_no_login() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let (busy, idle) = (site.logged_in(&ann()).await, site.manager());
    let backup = site.row(RowKind::Login, &ann()).await.unwrap();
    site.advance(HOUR);
    soon(&busy.user(&ann())).await.unwrap();
    soon(&idle.user(&ann())).await.unwrap();
    site.advance(HOUR);
    let newest = soon(&busy.user(&ann())).await.unwrap();
    site.restore(&ann(), backup, 2 * HOUR).await;
    // The busy process looks at the store, and finds the earlier row there.
    site.advance(MINUTE);
    assert_eq!(soon(&busy.user(&ann())).await.unwrap(), newest);
    settled().await;
    site.advance(HOUR);
    assert!(site.fake.is_alive(&soon(&idle.user(&ann())).await.unwrap()));
    assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "a spent token was sent");
    site.advance(MINUTE);
    for process in [&busy, &idle] {
        let token = process.user(&ann()).token().await.unwrap().into_shared();
        assert!(site.fake.refresh_is_alive(&refresh(&token)));
    }
}

/// Putting a token back into a store that was restored cuts no pause short that the provider asked
/// for.
#[tokio::test(start_paused = true)]
async fn restored_store_cuts_no_pause_short() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let backup = site.row(RowKind::Login, &ann()).await.unwrap();
    site.advance(HOUR);
    soon(&user).await.unwrap();
    site.advance(HOUR * 51 / 60);
    site.fake.fault_plan(|_| Some(Fault::rate_limited_for(8 * MINUTE)));
    let newest = soon(&user).await.unwrap();
    settled().await;
    let sent = site.refreshes();
    site.restore(&ann(), backup, 2 * HOUR).await;
    for _ in 0..7 {
        site.advance(MINUTE);
        assert_eq!(soon(&user).await.unwrap(), newest);
        settled().await;
    }
    assert_eq!(
        site.stored_refresh_token(&ann()).await,
        Some(refresh(&user.token().await.unwrap()))
    );
    assert_eq!(site.refreshes(), sent, "asked within the pause");
}

/// Putting a token back keeps the pause that another process was asked for at the older row.
#[tokio::test(start_paused = true)]
async fn write_back_keeps_a_peers_pause() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let backup = site.row(RowKind::Login, &ann()).await.unwrap();
    site.advance(HOUR);
    let newest = soon(&user).await.unwrap();
    let version = site.row(RowKind::Login, &ann()).await.unwrap().version;
    site.restore(&ann(), backup, HOUR).await;
    let older = site.row(RowKind::Login, &ann()).await.unwrap().version;
    let pause = Release { not_before: HOUR, ..Release::default() };
    site.store.release(&site.key(RowKind::Login, &ann()), older, 0, pause).await.unwrap();
    site.advance(MINUTE);
    assert_eq!(soon(&user).await.unwrap(), newest);
    settled().await;
    let row = site.row(RowKind::Login, &ann()).await.unwrap();
    assert_eq!(row.version, version, "it was put back");
    assert!(row.not_before > Some(HOUR / 2), "{:?}", row.not_before);
}

/// After an outage the store may be one that lacks the last minutes. Whoever has them writes them
/// back before a process that knows no better sends a refresh token that is spent.
#[tokio::test(start_paused = true)]
async fn failover_to_older_store_costs_no_login() {
    for readers in 0..2 {
        let site = Site::new();
        site.fake.set_rotation(Rotation::KillFamily);
        let (holder, other) = (site.logged_in(&ann()).await, site.manager());
        let backup = site.row(RowKind::Login, &ann()).await.unwrap();
        soon(&other.user(&ann())).await.unwrap();
        site.advance(HOUR);
        let newest = soon(&holder.user(&ann())).await.unwrap();
        site.store.go_down();
        for second in 0..60 {
            sleep(SECOND).await;
            assert_eq!(soon(&holder.user(&ann())).await.unwrap(), newest);
            // Others than ann, whom a failure would keep from being asked for at once afterwards.
            soon(&other.user(&id(&format!("user-{second}")))).await.unwrap_err();
        }
        site.store.recover();
        site.restore(&ann(), backup, HOUR + MINUTE).await;
        let processes = [&holder, &other];
        for _ in 0..MINUTE.as_secs() {
            // Either may be the first that is read again.
            let _ = soon(&processes[readers].user(&ann())).await;
            sleep(SECOND).await;
        }
        assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "a spent token was sent");
        assert_eq!(soon(&other.user(&ann())).await.unwrap(), newest);
    }
}

/// After an outage that outlasts the lease, the token that could not be saved meanwhile is saved
/// before another process sends the refresh token that it replaced.
#[tokio::test(start_paused = true)]
async fn outage_beyond_the_lease_costs_no_login() {
    for outage in [70, 300, 1_000] {
        let site = Site::new();
        site.fake.set_rotation(Rotation::KillFamily);
        let holder = site.logged_in(&ann()).await;
        let other = site.manager();
        soon(&other.user(&ann())).await.unwrap();
        site.advance(HOUR);
        site.go_down_at_next_save();
        let newest = soon(&holder.user(&ann())).await.unwrap();
        for second in 0..outage {
            sleep(SECOND).await;
            let _ = soon(&other.user(&id(&format!("user-{second}")))).await;
        }
        site.store.recover();
        for _ in 0..100 {
            sleep(SECOND / 10).await;
            let _ = soon(&other.user(&ann())).await;
        }
        assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "outage of {outage} s");
        sleep(6 * MINUTE).await;
        assert_eq!(soon(&other.user(&ann())).await.unwrap(), newest);
    }
}

/// A store that goes away while users are compared with it is compared again when it is back.
#[tokio::test(start_paused = true)]
async fn repeated_store_outage_costs_no_login() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let (holder, other) = (site.logged_in(&ann()).await, site.manager());
    let backup = site.row(RowKind::Login, &ann()).await.unwrap();
    soon(&other.user(&ann())).await.unwrap();
    site.advance(HOUR);
    let newest = soon(&holder.user(&ann())).await.unwrap();
    let bystander = |second: u64| id(&format!("user-{second}"));
    // The store answers two calls after a minute, one look of each process, and no more.
    let mut answers = 0;
    for second in 0..80 {
        match second {
            0 => site.store.go_down(),
            60 => site.store.plan(move |_| {
                answers += 1;
                (answers > 2).then_some(StoreFault::Before)
            }),
            _ => {}
        }
        sleep(SECOND).await;
        assert_eq!(soon(&holder.user(&ann())).await.unwrap(), newest);
        let _ = soon(&other.user(&bystander(second))).await;
    }
    site.store.recover();
    site.restore(&ann(), backup, HOUR + MINUTE).await;
    for _ in 0..MINUTE.as_secs() {
        let _ = soon(&other.user(&ann())).await;
        sleep(SECOND).await;
    }
    assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "a spent token was sent");
    assert_eq!(soon(&other.user(&ann())).await.unwrap(), newest);
}

/// A comparison that fails is repeated at the store's next answer, before anything is sent.
#[tokio::test(start_paused = true)]
async fn failed_comparison_costs_no_login() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let ways = [(); 2].map(|()| FaultyStore::new(site.store.clone()));
    let [holder, other] = [0, 1]
        .map(|n: usize| TokenManager::builder(site.hurdlr(), ways[n].clone()).build().unwrap());
    holder.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    let backup = site.row(RowKind::Login, &ann()).await.unwrap();
    soon(&other.user(&ann())).await.unwrap();
    site.advance(HOUR);
    let newest = soon(&holder.user(&ann())).await.unwrap();
    soon(&other.enterprise_user(&id("bob"))).await.unwrap(); // somebody to compare
    ways[0].go_down();
    ways[1].go_down();
    for second in 0..60 {
        sleep(SECOND).await;
        assert_eq!(soon(&holder.user(&ann())).await.unwrap(), newest);
        let _ = soon(&other.user(&id(&format!("user-{second}")))).await;
    }
    site.restore(&ann(), backup, HOUR + MINUTE).await;
    // The holder sees the store a second later than the other, which cannot compare at first.
    ways[1].plan(|call| (call == StoreCall::Read).then_some(StoreFault::Before));
    for round in 0..10 * MINUTE.as_secs() {
        match round {
            5 => ways[1].recover(),
            10 => ways[0].recover(),
            _ => {}
        }
        let _ = soon(&other.user(&ann())).await;
        sleep(SECOND / 10).await;
    }
    assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "a spent token was sent");
    assert_eq!(soon(&other.user(&ann())).await.unwrap(), newest);
}

/// A comparison that keeps failing, where all else succeeds, holds refreshes up for seconds.
#[tokio::test(start_paused = true)]
async fn comparison_that_keeps_failing_ends() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    soon(&manager.user(&ann())).await.unwrap(); // somebody to compare
    site.store.go_down();
    for second in 0..10 {
        soon(&manager.enterprise_user(&id(&format!("other-{second}")))).await.unwrap_err();
        sleep(SECOND).await;
    }
    site.store.plan(|call| (call == StoreCall::Read).then_some(StoreFault::Before));
    let mut last = None;
    for _ in 0..30 {
        last = soon(&manager.enterprise_user(&id("bob"))).await.ok();
        sleep(SECOND).await;
    }
    assert!(last.is_some());
}

/// A store that is back and slow holds refreshes up for seconds, however many users are compared.
#[tokio::test(start_paused = true)]
async fn slow_comparison_holds_up_nobody() {
    let site = Site::new();
    let users = ids("user", 300);
    let manager = site.all_logged_in(&users).await;
    site.store.go_down();
    for second in 0..10 {
        soon(&manager.enterprise_user(&id(&format!("other-{second}")))).await.unwrap_err();
        sleep(SECOND).await;
    }
    site.store.recover();
    site.store.delay(2 * SECOND);
    sleep(2 * SECOND).await;
    manager.enterprise_user(&ann()).token_timeout(MINUTE).await.unwrap();
}

/// One slow call beside others that are answered is no outage, and holds nobody up.
#[tokio::test(start_paused = true)]
async fn slow_row_delays_nobody_else() {
    let site = Site::new();
    let manager = site.manager();
    let first = manager.enterprise_user(&ann());
    site.store.delay(10 * SECOND);
    let slow = spawn_read(first);
    settled().await;
    site.store.delay(Duration::ZERO);
    for user in ids("user", 30) {
        soon(&manager.enterprise_user(&user)).await.unwrap();
        sleep(SECOND).await;
    }
    slow.await.unwrap().unwrap();
}

/// A shutdown ends the wait for the comparison: nothing would begin after it.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_wait_after_outage() {
    let site = Site::new();
    let manager = site.manager();
    site.store.go_down();
    soon(&manager.enterprise_user(&ann())).await.unwrap_err();
    sleep(10 * SECOND).await;
    site.store.recover();
    sleep(SECOND).await;
    let caller = spawn_read(manager.enterprise_user(&id("bob")));
    settled().await;
    assert!(!caller.is_finished(), "users are compared with the store first");
    let began = Instant::now();
    assert!(manager.shutdown().await.is_empty());
    assert_eq!(caller.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(began.elapsed() < SECOND / 2, "by the paused clock: {:?}", began.elapsed());
}

/// A caller outlives the manager, also where the store answers again after that.
#[tokio::test(start_paused = true)]
async fn dropped_manager_holds_up_no_caller() {
    let site = Site::new();
    let manager = site.manager();
    site.store.delay(5 * SECOND);
    let caller = spawn_read(manager.enterprise_user(&ann()));
    settled().await;
    drop(manager);
    site.store.delay(Duration::ZERO);
    caller.await.unwrap().unwrap();
}

/// A shutdown starts no refresh that waits in the queue, and tells its callers to come again.
#[tokio::test(start_paused = true)]
async fn shutdown_starts_nothing_queued() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = manager.max_concurrent_refreshes(4).build().unwrap();
    site.fake.fault_plan(|_| Some(Fault::Delay(5 * SECOND)));
    let users = ids("user", 100).into_iter();
    let callers: Vec<_> = users.map(|user| spawn_read(manager.enterprise_user(&user))).collect();
    site.fake.arrived(4).await;
    settled().await;
    let began = Instant::now();
    manager.shutdown().await;
    assert!(began.elapsed() <= 10 * SECOND, "{:?}", began.elapsed());
    let mut served = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(_) => served += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    assert_eq!(served, 4);
    assert_eq!(site.fake.count().total(), 4);
}

/// A shutdown ends before a platform kills the process, and names what is unfinished.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_in_its_time() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::DelayAfter(60 * SECOND)));
    let _caller = spawn_read(manager.user(&ann()));
    site.fake.arrived(1).await;
    let began = Instant::now();
    let unfinished = manager.shutdown().await;
    assert!(began.elapsed() <= Duration::from_secs(21), "{:?}", began.elapsed());
    assert!(!unfinished.is_empty());
}

/// A store that panics while it saves a refreshed token loses no login.
#[tokio::test(start_paused = true)]
async fn panicking_save_loses_no_token() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.panic_once(StoreCall::Save);
    let user = manager.user(&ann());
    let token = access(&user.token().await.unwrap());
    assert!(site.fake.is_alive(&token));
    sleep(10 * MINUTE).await;
    assert_eq!(soon(&user).await.unwrap(), token);
    let stored = site.stored_refresh_token(&ann()).await.unwrap();
    assert!(site.fake.refresh_is_alive(&stored), "saved at last");
    assert_eq!(site.refreshes(), 1);
}

/// A store that panics while it takes a new login loses no login.
#[tokio::test(start_paused = true)]
async fn panicking_put_loses_no_login() {
    let site = Site::new();
    let manager = site.manager();
    let login = site.login(&ann()).await;
    let (token, stored) = (access(&login), refresh(&login));
    site.panic_once(StoreCall::Save);
    let _ = manager.adopt(&ann(), login).await;
    sleep(10 * MINUTE).await;
    assert_eq!(soon(&manager.user(&ann())).await.unwrap(), token);
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(stored));
}

/// A removal that the store carries out late leaves the login alone that came meanwhile.
#[tokio::test(start_paused = true)]
async fn late_removal_spares_newer_login() {
    for disconnects in [false, true] {
        let store = MemoryStore::new();
        let site = Site::on(store.clone());
        let manager = site.logged_in(&ann()).await;
        let (key, mut came) = (site.key(RowKind::Login, &ann()), false);
        let newer = Version { incarnation: 77, revision: 1 };
        site.store.plan(move |call| match call {
            StoreCall::Forget if !came => {
                came = true;
                let read = polled_once(store.read(std::slice::from_ref(&key)));
                let row = read.unwrap().unwrap().remove(0).unwrap().unwrap();
                let saved = polled_once(store.save(
                    &key,
                    Save { over: row.version, version: newer, token: row.token.unwrap() },
                ));
                assert!(saved.unwrap().unwrap());
                None
            }
            // The removal cannot go on: it ends at this one call.
            _ => came.then_some(StoreFault::Before),
        });
        let user = manager.user(&ann());
        if disconnects {
            user.disconnect().await.unwrap_err();
        } else {
            user.forget().await.unwrap_err();
        }
        site.store.recover();
        assert_eq!(site.row(RowKind::Login, &ann()).await.unwrap().version, newer);
    }
}

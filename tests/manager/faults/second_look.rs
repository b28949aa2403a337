//! What a second attack on the manager found: more than one process, many users who fail, and ends
//! of attempts that the store was not told.

use std::sync::OnceLock;
use std::time::Duration;

use hurdlr_oauth2::TokenManager;
use hurdlr_oauth2::manager::{Disconnected, UserHandle};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{Claim, MemoryStore, RowKind, TokenStore};
use hurdlr_oauth2::testing::{Fault, FaultyStore, Gate, Outcome, Rotation, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, ErrorKind};
use tokio::time::{Instant, sleep};

use crate::faults::site::*;

/// Lets the provider answer with the same token each time.
fn repeat_first_token(site: &Site) {
    let first = OnceLock::new();
    site.fake.reshape(move |answer| {
        let first = first.get_or_init(|| answer.clone());
        answer.clone_from(first);
    });
}

/// Reports eight or more tokens, so that as many of them live on.
async fn superseded(user: &UserHandle, count: usize) {
    for _ in 0..count {
        let token = user.token().await.unwrap().into_shared();
        user.report_unauthorized(&token);
        let _ = soon(user).await;
        sleep(HOUR).await;
    }
}

/// A user who is disconnected during their refresh is not granted a token by the walk.
#[tokio::test(start_paused = true)]
async fn walk_grants_nobody_who_disconnected() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    soon(&user).await.unwrap();
    site.advance(HOUR * 55 / 60);
    let before = site.fake.count().total();
    site.fake.fault_next(Fault::Delay(2 * SECOND));
    let walk = manager.keep_alive(10 * MINUTE);
    while site.fake.count().total() == before {
        sleep(SECOND / 100).await;
    }
    assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked));
    sleep(20 * SECOND).await;
    walk.stop().await;
    assert_eq!(site.fake.tokens_alive("ann"), 0);
    assert!(site.row(RowKind::Enterprise, &ann()).await.is_none());
}

/// A user whom another process removes between the look at who is due and the visit stays removed.
#[tokio::test(start_paused = true)]
async fn visit_grants_nobody_who_was_removed() {
    let site = Site::of(ApiVersion::V6);
    let memory = MemoryStore::with_clock(site.clock.clone());
    let store = FaultyStore::new(memory.clone());
    let first = TokenManager::builder(site.hurdlr(), memory.clone()).build().unwrap();
    soon(&first.enterprise_user(&ann())).await.unwrap();
    site.advance(HOUR * 55 / 60);
    let walker = TokenManager::builder(site.hurdlr(), store.clone()).build().unwrap();
    let key = site.key(RowKind::Enterprise, &ann());
    let (mut due, mut done, there) = (false, false, memory.clone());
    store.plan(move |call| {
        due |= call == StoreCall::Due;
        if due && !done && call == StoreCall::Claim {
            done = true;
            polled_once(there.forget(&key, None)).unwrap().unwrap();
        }
        None
    });
    let walk = walker.keep_alive(10 * MINUTE);
    sleep(MINUTE).await;
    walk.stop().await;
    let key = site.key(RowKind::Enterprise, &ann());
    assert!(memory.read(&[key]).await.unwrap().remove(0).unwrap().is_none());
}

/// A token that a save could not bring into the store is saved soon after the store is back, and so
/// before the lease ends and another process sends the refresh token that it replaced.
#[tokio::test(start_paused = true)]
async fn failed_save_is_repeated_within_the_lease() {
    for outage in [20, 35, 50] {
        for _ in 0..20 {
            let site = Site::new();
            site.fake.set_rotation(Rotation::KillFamily);
            let holder = site.logged_in(&ann()).await;
            let other = site.manager();
            soon(&other.user(&ann())).await.unwrap();
            site.advance(HOUR);
            site.go_down_at_next_save();
            soon(&holder.user(&ann())).await.unwrap();
            sleep(outage * SECOND).await;
            site.store.recover();
            for _ in 0..100 {
                sleep(SECOND).await;
                let _ = soon(&other.user(&ann())).await;
            }
            assert_eq!(site.fake.count().outcome(Outcome::InvalidGrant), 0, "outage of {outage} s");
        }
    }
}

/// Two processes whose provider returns a token that is due on arrival leave it alone for growing
/// spans, as one does.
#[tokio::test(start_paused = true)]
async fn repeated_token_is_left_alone_by_all() {
    let site = Site::new();
    let managers = [site.manager(), site.manager()];
    let users = managers.each_ref().map(|manager| manager.enterprise_user(&ann()));
    repeat_first_token(&site);
    soon(&users[0]).await.unwrap();
    let first = site.fake.count().total();
    for _ in 0..59 * 60 {
        for user in &users {
            let _ = soon(user).await;
        }
        sleep(SECOND).await;
    }
    let requests = site.fake.count().total() - first;
    assert!(requests <= 60, "{requests} requests in an hour");
}

/// Each of these spans is twice as long as the one before, up to its random half.
#[tokio::test(start_paused = true)]
async fn repeated_token_lengthens_each_pause() {
    let site = Site::new();
    let user = site.manager().enterprise_user(&ann());
    repeat_first_token(&site);
    soon(&user).await.unwrap();
    site.advance(HOUR * 52 / 60);
    for n in 0..6 {
        soon(&user).await.unwrap();
        settled().await;
        let row = site.row(RowKind::Enterprise, &ann()).await.unwrap();
        let (pause, longest) = (row.not_before.unwrap(), SECOND * 2_u32.pow(n));
        assert!(pause <= longest && pause > longest * 49 / 100, "{pause:?} of {longest:?}");
        let claims = site.calls(StoreCall::Claim);
        soon(&user).await.unwrap();
        settled().await;
        assert_eq!(site.calls(StoreCall::Claim), claims, "it was just refreshed");
        sleep(longest).await;
    }
}

/// An endpoint that always answers 401 costs a fleet few refreshes, and no call to another
/// endpoint.
#[tokio::test(start_paused = true)]
async fn broken_endpoint_costs_a_fleet_little() {
    for processes in [1, 2, 4] {
        let site = Site::new();
        let mut managers = vec![site.logged_in(&ann()).await];
        managers.resize_with(processes, || site.manager());
        let users: Vec<_> = managers.iter().map(|manager| manager.user(&ann())).collect();
        for second in 0..2 * 3_600 {
            for user in &users {
                if second % 5 == 0 {
                    let refused = user.token().await.unwrap().into_shared();
                    user.report_unauthorized(&refused);
                }
                soon(user).await.unwrap();
            }
            sleep(SECOND).await;
        }
        let refreshes = site.refreshes();
        assert!(refreshes <= 12 * processes as u64, "{processes} processes: {refreshes}");
    }
}

/// However many users the provider refuses doubtfully, the others are kept alive.
#[tokio::test(start_paused = true)]
async fn doubtful_users_slow_no_walk() {
    let site = Site::new();
    let manager = site.all_logged_in(&ids("gone", 1_000)).await;
    site.fake.fault_plan(|request| {
        let is_gone = request.user().is_some_and(|user| user.starts_with("gone"));
        is_gone.then(doubtful_refusal)
    });
    sleep(SECOND).await;
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    let revision = site.row(RowKind::Login, &ann()).await.unwrap().version.revision;
    assert!(revision >= 25, "{revision} tokens in a day");
}

/// The pause that the provider asks for binds revocations too, in the walk and at a shutdown.
#[tokio::test(start_paused = true)]
async fn revocation_keeps_the_pause_asked_for() {
    for with_walk in [true, false] {
        let site = Site::of(ApiVersion::V6);
        let manager = site.logged_in(&ann()).await;
        site.fake.fault_plan(|request| {
            request.path().ends_with("/revoke").then(|| Fault::rate_limited_for(HOUR))
        });
        manager.user(&ann()).disconnect().await.unwrap();
        let first = site.fake.count().total();
        if with_walk {
            let walk = manager.keep_alive(MINUTE);
            sleep(30 * MINUTE).await;
            walk.stop().await;
        } else {
            sleep(MINUTE).await;
            assert_eq!(manager.shutdown().await.len(), 1);
        }
        assert_eq!(site.fake.count().total(), first, "with walk: {with_walk}");
    }
}

/// A process that only waits for another one's refresh has nothing to finish at its shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_nobody_elses_refresh() {
    let site = Site::new();
    let holder = site.logged_in(&ann()).await;
    let waiting = site.manager();
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::Hold(Gate::closed())));
    let _sent = spawn_read(holder.user(&ann()));
    sleep(SECOND).await;
    let caller = spawn_read(waiting.user(&ann()));
    sleep(SECOND).await;
    let began = Instant::now();
    assert_eq!(waiting.shutdown().await, Vec::new());
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!(caller.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Of two processes that granted a token under the same version, both tokens are revoked.
#[tokio::test(start_paused = true)]
async fn disconnect_revokes_the_token_that_lost() {
    for retry_first in [false, true] {
        let site = Site::of(ApiVersion::V6);
        let memory = MemoryStore::with_clock(site.clock.clone());
        let store = FaultyStore::new(memory.clone());
        let loser = TokenManager::builder(site.hurdlr(), store.clone()).build().unwrap();
        let winner = TokenManager::builder(site.hurdlr(), memory.clone()).build().unwrap();
        store.plan(|call| (call == StoreCall::Save).then_some(StoreFault::Before));
        let lost = soon(&loser.enterprise_user(&ann())).await.unwrap();
        sleep(61 * SECOND).await;
        let won = winner.enterprise_user(&ann()).token().await.map(|token| access(&token));
        assert_ne!(lost, won.unwrap());
        store.recover();
        if retry_first {
            sleep(10 * MINUTE).await;
        }
        let user = loser.enterprise_user(&ann());
        assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked));
        sleep(10 * SECOND).await;
        assert_eq!(site.fake.tokens_alive("ann"), 0, "retry first: {retry_first}");
    }
}

/// However many earlier tokens a user has, `Revoked` says that none of them lives.
#[tokio::test(start_paused = true)]
async fn disconnect_revokes_any_number_of_tokens() {
    let site = Site::of(ApiVersion::V6);
    site.fake.set_token_life(7 * DAY);
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    superseded(&user, 20).await;
    assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Revoked));
    assert_eq!(site.fake.tokens_alive("ann"), 0);
}

/// A token that is dated early by a constant is renewed at growing pauses.
#[tokio::test(start_paused = true)]
async fn early_dated_token_is_left_alone() {
    for early in (2_380..3_600).step_by(20) {
        let site = Site::new();
        let user = site.manager().enterprise_user(&ann());
        site.fake.reshape(move |answer| {
            let created = answer["created_at"].as_u64().unwrap();
            answer["created_at"] = (created - early).into();
        });
        for _ in 0..300 {
            let _ = soon(&user).await;
            sleep(SECOND).await;
        }
        let requests = site.fake.count().total();
        assert!(requests <= 25, "{early} s early: {requests} requests in 300 s");
    }
}

/// The interval of one process's walk does not bind the others.
#[tokio::test(start_paused = true)]
async fn interval_of_a_walk_is_its_own() {
    let site = Site::new();
    let first = site.logged_in(&ann()).await;
    let walk = first.keep_alive(Duration::MAX);
    sleep(SECOND).await;
    walk.stop().await;
    first.shutdown().await;
    let walk = site.manager().keep_alive(MINUTE);
    sleep(DAY).await;
    walk.stop().await;
    assert!(site.refreshes() >= 20, "{}", site.refreshes());
}

/// A token that the provider hands out again after a refusal is served: it stands by it.
#[tokio::test(start_paused = true)]
async fn token_handed_out_again_is_served() {
    let site = Site::new();
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    repeat_first_token(&site);
    let token = user.token().await.unwrap().into_shared();
    user.report_unauthorized(&token);
    for _ in 0..30 * 60 {
        soon(&user).await.unwrap();
        sleep(SECOND).await;
    }
    let requests = site.fake.count().total();
    assert!(requests <= 10, "{requests} requests");
}

/// An import that is made again brings no earlier token back into memory.
#[tokio::test(start_paused = true)]
async fn repeated_import_serves_the_newest_token() {
    let site = Site::new();
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = builder.cache_capacity(1).build().unwrap();
    let json = site.login(&ann()).await.to_secret();
    let import = || {
        let token = site.hurdlr().import(json.expose_secret()).unwrap();
        async { manager.import_if_absent(&ann(), token).await.unwrap() }
    };
    assert!(import().await);
    let old = soon(&manager.user(&ann())).await.unwrap();
    site.advance(HOUR * 55 / 60);
    soon(&manager.user(&ann())).await.unwrap();
    settled().await;
    let newer = soon(&manager.user(&ann())).await.unwrap();
    assert_ne!(old, newer);
    for other in ids("other", 200) {
        drop(manager.user(&other));
    }
    settled().await;
    assert!(import().await);
    let served = manager.user(&ann()).try_token().map(|token| access(&token));
    assert_eq!(served, Some(newer));
}

/// A disconnect is not held up by a revocation endpoint that hangs, however many tokens there are.
#[tokio::test(start_paused = true)]
async fn disconnect_tries_one_hanging_revocation() {
    let site = Site::of(ApiVersion::V6);
    site.fake.set_token_life(7 * DAY);
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    superseded(&user, 7).await;
    site.fake.fault_plan(|request| {
        request.path().ends_with("/revoke").then(|| Fault::Hold(Gate::closed()))
    });
    let began = Instant::now();
    assert!(matches!(user.disconnect().await.unwrap(), Disconnected::Pending(_)));
    assert!(began.elapsed() <= MINUTE, "{:?}", began.elapsed());
}

/// A disconnect does not wait for a refresh that has not begun.
#[tokio::test(start_paused = true)]
async fn disconnect_waits_for_no_queued_refresh() {
    let site = Site::of(ApiVersion::V6);
    let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = builder.max_concurrent_refreshes(1).build().unwrap();
    let user = manager.enterprise_user(&ann());
    soon(&user).await.unwrap();
    site.advance(HOUR * 55 / 60);
    site.fake.fault_plan(|request| {
        let is_slow = request.user().is_some_and(|user| user.starts_with("slow"));
        is_slow.then(|| Fault::Hold(Gate::closed()))
    });
    let slow = ids("slow", 30).into_iter().map(|user| spawn_read(manager.enterprise_user(&user)));
    let _slow: Vec<_> = slow.collect();
    sleep(4 * SECOND).await;
    soon(&user).await.unwrap();
    let began = Instant::now();
    user.disconnect().await.unwrap();
    assert!(began.elapsed() <= SECOND, "{:?}", began.elapsed());
}

/// A removal does not end the pause that the provider asked for.
#[tokio::test(start_paused = true)]
async fn removal_keeps_the_pause_asked_for() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    site.fake.fault_plan(|_| Some(Fault::rate_limited_for(HOUR)));
    let _ = soon(&user).await;
    let first = site.fake.count().total();
    for _ in 0..10 {
        user.forget().await.unwrap();
        let _ = soon(&user).await;
        sleep(SECOND).await;
    }
    assert_eq!(site.fake.count().total(), first);
}

/// Other processes learn of the pause that the provider asked for, however long the store took no
/// release.
#[tokio::test(start_paused = true)]
async fn failed_release_is_repeated() {
    for outage in [Duration::ZERO, 20 * SECOND] {
        let site = Site::new();
        let managers = [site.logged_in(&ann()).await, site.manager()];
        site.advance(HOUR);
        site.fake.fault_plan(|_| Some(Fault::rate_limited_for(HOUR)));
        site.fail(StoreCall::Release, StoreFault::Before);
        let _ = soon(&managers[0].user(&ann())).await;
        sleep(outage).await;
        site.store.recover();
        let first = site.fake.count().total();
        for _ in 0..300 {
            for manager in &managers {
                let _ = soon(&manager.user(&ann())).await;
            }
            sleep(SECOND).await;
        }
        assert_eq!(site.fake.count().total(), first, "{outage:?}");
        let row = site.row(RowKind::Login, &ann()).await.unwrap();
        assert!(row.not_before.is_some_and(|left| left > HOUR / 2), "{:?}", row.not_before);
    }
}

/// A release or save that is tried again and again ends with the shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_what_is_repeated() {
    for repeated in [StoreCall::Release, StoreCall::Save] {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        site.advance(HOUR);
        if repeated == StoreCall::Release {
            site.fake.fault_plan(|_| Some(Fault::rate_limited_for(HOUR)));
        }
        site.fail(repeated, StoreFault::Before);
        let _ = soon(&manager.user(&ann())).await;
        let began = Instant::now();
        manager.shutdown().await;
        assert!(began.elapsed() <= 20 * SECOND, "{repeated:?}: {:?}", began.elapsed());
        let calls = site.calls(repeated);
        sleep(HOUR).await;
        assert!(site.calls(repeated) <= calls + 1, "{repeated:?} goes on");
    }
}

/// A revocation that fails is left to the record of it at a shutdown, or given up.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_repeated_revocations() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.logged_in(&ann()).await;
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    manager.user(&ann()).disconnect().await.unwrap();
    manager.shutdown().await;
    let sent = site.fake.count().total();
    sleep(HOUR).await;
    assert!(site.fake.count().total() <= sent + 1);
}

/// Each failure of the provider doubles the pause before the next attempt.
#[tokio::test(start_paused = true)]
async fn failures_double_the_pause() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::status(503)));
    for n in 0..6 {
        let _ = soon(&manager.user(&ann())).await;
        settled().await;
        let row = site.row(RowKind::Login, &ann()).await.unwrap();
        let (pause, longest) = (row.not_before.unwrap(), SECOND * 2_u32.pow(n));
        assert!(pause <= longest && pause > longest * 45 / 100, "{pause:?} of {longest:?}");
        sleep(longest).await;
    }
}

/// At the end of the lease another process would send the token that was replaced: until then the
/// store is tried often.
#[tokio::test(start_paused = true)]
async fn unsaved_token_is_tried_often() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.go_down_at_next_save();
    soon(&manager.user(&ann())).await.unwrap();
    sleep(600 * SECOND).await;
    let saves = site.calls(StoreCall::Save);
    sleep(60 * SECOND).await;
    let saves = site.calls(StoreCall::Save) - saves;
    assert!((16..=35).contains(&saves), "{saves} in a lease");
}

/// A refusal whose mark the store did not take at once is no lost rotation.
#[tokio::test(start_paused = true)]
async fn failed_release_loses_no_rotation() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.revoke_everything("ann");
    let mut once = true;
    site.store.plan(move |call| {
        (call == StoreCall::Release && std::mem::take(&mut once)).then_some(StoreFault::Before)
    });
    let mut last = None;
    for _ in 0..10 {
        last = soon(&manager.user(&ann())).await.err().map(|error| error.kind());
        sleep(SECOND).await;
    }
    assert_eq!(last, Some(ErrorKind::LoginRequired));
}

/// One of many processes that import a user at the same moment succeeds.
#[tokio::test(start_paused = true)]
async fn simultaneous_imports_replace_nothing() {
    let site = Site::new();
    let json = site.login(&ann()).await.to_secret();
    // All of them look for the row before one of them makes it.
    site.store.delay(SECOND / 10);
    let mut imports = tokio::task::JoinSet::new();
    for n in 0..5 {
        let manager = site.manager();
        let token = site.hurdlr().import(json.expose_secret()).unwrap();
        imports.spawn(async move {
            sleep(SECOND / 20 * n).await;
            manager.import_if_absent(&ann(), token).await.unwrap()
        });
    }
    let imported = imports.join_all().await;
    assert_eq!(imported.into_iter().filter(|imported| *imported).count(), 1);
}

/// A caller waits their own time for another process, however long the refresh waited before.
#[tokio::test(start_paused = true)]
async fn late_caller_waits_full_time() {
    // The refresh notices that its time is over before the caller comes, or after.
    for before in [Duration::ZERO, 2 * SECOND] {
        let site = Site::new();
        let user = site.logged_in(&ann()).await.user(&ann());
        let key = site.key(RowKind::Login, &ann());
        let claim = async |holder, lease| {
            let known = site.row(RowKind::Login, &ann()).await.map(|row| row.version);
            let claim = Claim { holder, lease, known, create: None };
            assert!(site.store.claim(&key, claim).await.unwrap().granted);
        };
        site.advance(HOUR * 55 / 60);
        claim(7, HOUR).await;
        soon(&user).await.unwrap(); // begins a refresh, which waits for the other process
        sleep(SECOND / 10).await;
        site.advance(HOUR); // the machine was suspended
        claim(8, 5 * SECOND).await;
        sleep(before).await;
        user.token().await.unwrap();
    }
}

/// A pause that the provider asked for outlives the user, their handles and their place in memory.
#[tokio::test(start_paused = true)]
async fn pause_outlives_removed_user() {
    for removed_elsewhere in [false, true] {
        let site = Site::of(ApiVersion::V6);
        let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
        let manager = manager.cache_capacity(1).build().unwrap();
        soon(&manager.enterprise_user(&ann())).await.unwrap();
        site.advance(HOUR * 55 / 60);
        site.fake.fault_plan(|_| Some(Fault::rate_limited_for(HOUR)));
        let _ = soon(&manager.enterprise_user(&ann())).await;
        sleep(SECOND).await;
        let first = site.fake.count().total();
        if removed_elsewhere {
            site.store.forget(&site.key(RowKind::Enterprise, &ann()), None).await.unwrap();
            sleep(MINUTE).await;
            let _ = soon(&manager.enterprise_user(&ann())).await; // has the row looked up
            sleep(SECOND).await;
        } else {
            manager.enterprise_user(&ann()).forget().await.unwrap();
        }
        site.fake.clear_faults();
        for other in ids("other", 300) {
            soon(&manager.enterprise_user(&other)).await.unwrap();
        }
        let others = site.fake.count().total();
        assert!(others > first + 200);
        let _ = soon(&manager.enterprise_user(&ann())).await;
        assert_eq!(site.fake.count().total(), others, "removed elsewhere: {removed_elsewhere}");
    }
}

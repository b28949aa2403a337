//! Attacks on the token manager: the moments at which a weaker one loses a token, brings back a
//! user who was forgotten, or asks the provider more often than it should.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::store::RowKind;
use hurdlr_oauth2::testing::{Fault, Gate, ManualClock, StoreCall, StoreFault, seed_row};
use hurdlr_oauth2::{Clock, ErrorKind, Timestamp, TokenManager, UserId};

use crate::site::{HOUR, SECOND, Site, access, refresh};

fn ann() -> UserId {
    UserId::new("ann").unwrap()
}

#[tokio::test(start_paused = true)]
async fn forgotten_user_with_unsaved_login_stays_away() {
    let site = Site::new();
    let manager = site.manager();
    site.fail(StoreCall::Save, StoreFault::Before);
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    manager.user(&ann()).forget().await.unwrap();
    site.store.recover();
    tokio::time::sleep(600 * SECOND).await;
    assert!(site.row(RowKind::Login, &ann()).await.is_none());
    let error = manager.user(&ann()).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
}

#[tokio::test(start_paused = true)]
async fn unsaved_login_does_not_replace_the_next() {
    let site = Site::new();
    let manager = site.manager();
    site.fail(StoreCall::Save, StoreFault::Before);
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    site.store.recover();
    let next = site.login(&ann()).await;
    let expected = refresh(&next);
    manager.adopt(&ann(), next).await.unwrap();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn unsaved_login_is_refreshed_not_forgotten() {
    for knew_her_before in [false, true] {
        let site = Site::new();
        let manager = site.manager();
        if knew_her_before {
            let earlier = site.login(&ann()).await;
            manager.adopt(&ann(), earlier).await.unwrap();
        }
        let token = site.login(&ann()).await;
        let login = refresh(&token);
        site.fail(StoreCall::Save, StoreFault::Before);
        manager.adopt(&ann(), token).await.unwrap();
        site.fake.clear_requests();
        // Its access token ends before the store takes it.
        site.advance(HOUR);
        site.store.recover();
        let token = manager.user(&ann()).token().await.unwrap().into_shared();
        let sent = site.fake.requests().remove(0);
        assert_eq!(sent.field("refresh_token"), Some(login));
        tokio::time::sleep(600 * SECOND).await;
        let stored = site.stored_refresh_token(&ann()).await;
        assert_eq!(stored, Some(refresh(&token)));
    }
}

#[tokio::test(start_paused = true)]
async fn login_saved_unnoticed_is_not_put_again() {
    for is_forgotten in [true, false] {
        let site = Site::new();
        let manager = site.manager();
        site.fail(StoreCall::Save, StoreFault::After);
        let login = site.login(&ann()).await;
        manager.adopt(&ann(), login).await.unwrap();
        tokio::time::sleep(SECOND / 10).await;
        site.store.recover();
        let elsewhere = site.manager();
        let expected = if is_forgotten {
            elsewhere.user(&ann()).forget().await.unwrap();
            None
        } else {
            let login = site.login(&ann()).await;
            let expected = refresh(&login);
            elsewhere.adopt(&ann(), login).await.unwrap();
            Some(expected)
        };
        tokio::time::sleep(600 * SECOND).await;
        assert_eq!(site.stored_refresh_token(&ann()).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn unsaved_login_yields_to_one_elsewhere() {
    let site = Site::new();
    let manager = site.manager();
    site.fail(StoreCall::Save, StoreFault::Before);
    let earlier = site.login(&ann()).await;
    manager.adopt(&ann(), earlier).await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    site.store.recover();
    let later = site.login(&ann()).await;
    let expected = refresh(&later);
    site.manager().adopt(&ann(), later).await.unwrap();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(expected.clone()));
    assert_eq!(refresh(&manager.user(&ann()).token().await.unwrap()), expected);
}

#[tokio::test(start_paused = true)]
async fn import_does_not_replace_unsaved_login() {
    let site = Site::new();
    let manager = site.manager();
    let login = site.login(&ann()).await;
    let expected = refresh(&login);
    site.fail(StoreCall::Save, StoreFault::Before);
    manager.adopt(&ann(), login).await.unwrap();
    site.store.recover();
    let older = site.login(&ann()).await;
    assert!(!manager.import_if_absent(&ann(), older).await.unwrap());
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn waiting_refresh_spends_no_later_login() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    let bob = UserId::new("bob").unwrap();
    let first = manager.enterprise_user(&bob);
    let first = tokio::spawn(async move { first.token().await.map(|token| access(&token)) });
    site.fake.arrived(2).await;
    let user = manager.user(&ann());
    let waiting = tokio::spawn(async move { user.token().await.map(|token| refresh(&token)) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let login = site.login(&ann()).await;
    let expected = refresh(&login);
    manager.adopt(&ann(), login).await.unwrap();
    gate.open();
    first.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), expected);
    tokio::time::sleep(SECOND).await;
    assert_eq!(site.fake.count().grant("refresh_token"), 0);
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn background_refresh_revives_no_forgotten_user() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let user = manager.enterprise_user(&ann());
    user.token().await.unwrap();
    site.advance(HOUR * 55 / 60);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    let bob = UserId::new("bob").unwrap();
    let first = manager.enterprise_user(&bob);
    let first = tokio::spawn(async move { first.token().await.map(|token| access(&token)) });
    site.fake.arrived(2).await;
    user.token().await.unwrap(); // due: its refresh waits for a turn
    user.forget().await.unwrap();
    gate.open();
    first.await.unwrap().unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert!(site.row(RowKind::Enterprise, &ann()).await.is_none());
    assert_eq!(site.fake.count().user("ann"), 1);
}

#[tokio::test(start_paused = true)]
async fn enterprise_user_forgotten_elsewhere_is_granted_anew() {
    let site = Site::new();
    let (here, elsewhere) = (site.manager(), site.manager());
    let user = here.enterprise_user(&ann());
    user.token().await.unwrap();
    elsewhere.enterprise_user(&ann()).forget().await.unwrap();
    // There they come back, and the provider refuses: the row is left without a token.
    site.fake.fault_next(Fault::html(403));
    let refused = elsewhere.enterprise_user(&ann()).token().await;
    assert!(refused.is_err());
    site.advance(HOUR);
    let token = user.token_timeout(SECOND).await.unwrap();
    assert!(site.fake.is_alive(&access(&token)));
}

#[tokio::test(start_paused = true)]
async fn import_during_vain_look_is_served() {
    let site = Site::new();
    let manager = site.manager();
    let token = site.login(&ann()).await;
    // The access token is over; the refresh token lives.
    site.advance(HOUR);
    site.store.delay(Duration::from_millis(20));
    let user = manager.user(&ann());
    let caller = tokio::spawn(async move { user.token().await.map(|token| access(&token)) });
    tokio::time::sleep(Duration::from_millis(21)).await; // read, and not told yet
    site.store.delay(Duration::ZERO);
    assert!(manager.import_if_absent(&ann(), token).await.unwrap());
    assert!(site.fake.is_alive(&caller.await.unwrap().unwrap()));
}

/// Panics in the walk, and so ends it, where it runs in circles.
fn end_circles(site: &Site, decide: impl Fn(StoreCall) -> Option<StoreFault> + Send + 'static) {
    let walks = AtomicU32::new(0);
    site.store.plan(move |call| {
        if call == StoreCall::Due {
            let walked = walks.fetch_add(1, Ordering::Relaxed);
            assert!(walked < 1_000, "the walk runs in circles");
        }
        decide(call)
    });
}

fn walks(site: &Site) -> usize {
    let calls = site.store.calls();
    calls.iter().filter(|call| **call == StoreCall::Due).count()
}

#[tokio::test(start_paused = true)]
async fn walk_does_not_circle_a_left_user() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let _keeps_her_in_memory = manager.user(&ann());
    end_circles(&site, |_| None);
    // Unanswered requests leave no pause in the store, and the lease ends before the backoff.
    site.advance(HOUR * 55 / 60);
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    let walk = manager.keep_alive(SECOND * 10);
    tokio::time::sleep(SECOND * 900).await;
    walk.stop().await;
    assert!(walks(&site) < 300, "{} walks in 900 s", walks(&site));
}

#[tokio::test(start_paused = true)]
async fn walk_does_not_circle_user_due_elsewhere() {
    let site = Site::new();
    // An earlier release of the app, which renewed earlier, stored when the token is due.
    let early = TokenManager::builder(site.hurdlr(), site.store.clone())
        .refresh_policy(RefreshPolicy::default().refresh_fraction(0.1).refresh_jitter(0.0))
        .build()
        .unwrap();
    early.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    end_circles(&site, |_| None);
    site.advance(HOUR / 2);
    let walk = site.manager().keep_alive(SECOND * 10);
    tokio::time::sleep(SECOND * 100).await;
    walk.stop().await;
    assert!(walks(&site) < 30, "{} walks in 100 s", walks(&site));
}

#[tokio::test(start_paused = true)]
async fn walk_does_not_circle_an_unsaved_token() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    end_circles(&site, |call| (call == StoreCall::Save).then_some(StoreFault::Before));
    site.advance(HOUR * 55 / 60);
    let walk = manager.keep_alive(SECOND * 10);
    tokio::time::sleep(SECOND * 300).await;
    walk.stop().await;
    assert!(walks(&site) < 100, "{} walks in 300 s", walks(&site));
}

#[tokio::test(start_paused = true)]
async fn refused_token_does_not_return_by_store() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    site.advance(HOUR);
    site.fail(StoreCall::Save, StoreFault::Before);
    let unsaved = user.token().await.unwrap().into_shared();
    site.advance(SECOND * 120);
    site.store.recover();
    let gate = Gate::closed();
    site.fake.fault_next(Fault::Hold(gate.clone()));
    user.report_unauthorized(&unsaved);
    // What the store lacked is written back before its refresh token is sent.
    site.fake.arrived(2).await;
    assert!(user.try_token().is_none());
    gate.open();
    assert_ne!(access(&user.token().await.unwrap()), access(&unsaved));
}

#[tokio::test(start_paused = true)]
async fn stores_lost_answer_locks_nobody_out() {
    for (call, fault) in
        [(StoreCall::Claim, StoreFault::After), (StoreCall::Release, StoreFault::Before)]
    {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        let user = manager.user(&ann());
        site.advance(HOUR);
        site.fail(call, fault);
        site.fake.fault_plan(|_| Some(Fault::html(403)));
        assert!(user.token().await.is_err());
        site.store.recover();
        site.fake.clear_faults();
        tokio::time::sleep(2 * SECOND).await;
        let token = user.token_timeout(SECOND).await.unwrap();
        assert!(site.fake.is_alive(&access(&token)));
    }
}

#[tokio::test(start_paused = true)]
async fn user_with_unsaved_token_is_not_evicted() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .cache_capacity(32)
        .build()
        .unwrap();
    let token = site.login(&ann()).await;
    manager.adopt(&ann(), token).await.unwrap();
    site.advance(HOUR);
    site.fail(StoreCall::Save, StoreFault::Before);
    let unsaved = refresh(&manager.user(&ann()).token().await.unwrap());
    for n in 0..5_000 {
        let id = UserId::new(format!("user-{n}")).unwrap();
        // More than once, since those who came once only give way first.
        for _ in 0..3 {
            drop(manager.user(&id));
        }
    }
    let token = manager.user(&ann()).try_token().unwrap();
    assert_eq!(refresh(&token), unsaved);
}

#[tokio::test(start_paused = true)]
async fn unanswered_refresh_pauses_other_processes() {
    let site = Site::new();
    let policy = RefreshPolicy::default().initial_backoff(20 * SECOND);
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = manager.refresh_policy(policy).build().unwrap();
    manager.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::DropBefore));
    assert!(manager.user(&ann()).token().await.is_err());
    let sent = site.fake.count().total();
    let other = site.manager().user(&ann());
    site.fake.clear_faults();
    let start = tokio::time::Instant::now();
    while start.elapsed() < 10 * SECOND {
        let error = other.token_timeout(SECOND).await.unwrap_err();
        assert!(!error.needs_login());
        assert_eq!(site.fake.count().total(), sent);
        tokio::time::sleep(SECOND).await;
    }
    tokio::time::sleep(20 * SECOND).await;
    assert!(other.token().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn unsaved_token_yields_to_newer_in_store() {
    for is_forgotten in [true, false] {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        let user = manager.user(&ann());
        site.advance(HOUR);
        site.fail(StoreCall::Save, StoreFault::Before);
        user.token().await.unwrap();
        site.store.recover();
        let elsewhere = site.manager();
        let expected = if is_forgotten {
            elsewhere.user(&ann()).forget().await.unwrap();
            None
        } else {
            let login = site.login(&ann()).await;
            let expected = refresh(&login);
            elsewhere.adopt(&ann(), login).await.unwrap();
            Some(expected)
        };
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(user.try_token().map(|token| refresh(&token)), expected);
        assert_eq!(site.stored_refresh_token(&ann()).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn new_token_outlives_a_restored_store() {
    for reads_fail in [false, true] {
        let site = Site::new();
        let manager = site.logged_in(&ann()).await;
        let first = site.row(RowKind::Login, &ann()).await.unwrap();
        let user = manager.user(&ann());
        site.advance(HOUR);
        user.token().await.unwrap();
        site.advance(HOUR);
        let gate = Gate::closed();
        site.fake.fault_next(Fault::HoldAfter(gate.clone()));
        let waiting = tokio::spawn(async move { user.token().await.map(|token| refresh(&token)) });
        site.fake.arrived(2).await;
        // To the backup of an earlier day: the same stay of the user, an earlier token.
        let key = site.key(RowKind::Login, &ann());
        seed_row(&site.store, &key, first.version, first.token.unwrap()).await;
        if reads_fail {
            site.fail(StoreCall::Read, StoreFault::Before);
        }
        gate.open();
        let newest = waiting.await.unwrap().unwrap();
        assert!(site.fake.refresh_is_alive(&newest));
        site.store.recover();
        tokio::time::sleep(600 * SECOND).await;
        let stored = site.stored_refresh_token(&ann()).await;
        assert_eq!(stored, Some(newest), "reads fail: {reads_fail}");
    }
}

#[tokio::test(start_paused = true)]
async fn store_makes_no_token_younger() {
    let site = Site::new();
    let _first = site.logged_in(&ann()).await;
    let mut last = None;
    for _ in 0..3 {
        // Each process that takes it over does so most of a second after a whole one.
        tokio::time::sleep(Duration::from_millis(999)).await;
        let manager = site.manager();
        let user = manager.user(&ann());
        user.token().await.unwrap();
        last = Some((manager, user));
    }
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    let (_manager, user) = last.unwrap();
    site.advance(HOUR.checked_sub(Duration::from_millis(2_990)).unwrap());
    let dead = user.token().await;
    assert!(dead.is_err(), "{:?} are left", dead.map(|token| token.remaining()));
}

#[tokio::test(start_paused = true)]
async fn suspension_during_answer_serves_no_dead_token() {
    let site = Site::new();
    let manager = site.manager();
    let user = manager.enterprise_user(&ann());
    site.fake.fault_next(Fault::dripping(Duration::from_millis(20)));
    let caller = tokio::spawn(async move { user.token().await.map(|token| access(&token)) });
    tokio::time::sleep(SECOND).await;
    site.advance(HOUR);
    // Dead on arrival, so it is granted again, or nothing is served.
    if let Ok(token) = caller.await.unwrap() {
        assert!(site.fake.is_alive(&token));
    }
}

#[tokio::test(start_paused = true)]
async fn suspension_during_look_serves_no_dead_token() {
    let site = Site::new();
    let _other = site.logged_in(&ann()).await;
    let manager = site.manager();
    let user = manager.user(&ann());
    site.store.delay(SECOND);
    let caller = tokio::spawn(async move { user.token().await.map(|token| access(&token)) });
    tokio::time::sleep(SECOND * 3 / 2).await; // read, and on its way
    site.advance(HOUR);
    // The time for this attempt is over too, so an error is right.
    if let Ok(token) = caller.await.unwrap() {
        assert!(site.fake.is_alive(&token));
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_login_is_saved_at_true_age() {
    let site = Site::new();
    let manager = site.manager();
    site.store.delay(SECOND);
    let first = site.login(&ann()).await;
    let second = site.login(&ann()).await;
    let (one, two) = (manager.clone(), manager.clone());
    let one = tokio::spawn(async move { one.adopt(&ann(), first).await });
    tokio::time::sleep(SECOND / 10).await;
    let two = tokio::spawn(async move { two.adopt(&ann(), second).await });
    tokio::time::sleep(SECOND / 10).await;
    site.advance(HOUR);
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    let row = site.row(RowKind::Login, &ann()).await.unwrap();
    assert!(row.token.unwrap().age > HOUR);
}

#[tokio::test(start_paused = true)]
async fn hurried_caller_gets_a_token_near_end() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let old = access(&user.token().await.unwrap());
    site.advance(SECOND * 3_580);
    site.fake.fault_next(Fault::Delay(10 * SECOND));
    assert_eq!(access(&user.token_timeout(SECOND).await.unwrap()), old);
}

/// A clock that can hold a thread back where it looks at it.
#[derive(Debug)]
struct HoldingClock(ManualClock);

thread_local! {
    /// How often this thread may look before it is held back, and until when.
    static HELD_BACK: RefCell<Option<(u32, mpsc::Receiver<()>)>> = const { RefCell::new(None) };
}

impl Clock for HoldingClock {
    fn now(&self) -> Timestamp {
        let now = self.0.now();
        HELD_BACK.with_borrow_mut(|held_back| match held_back {
            Some((0, go_on)) => {
                let _ = go_on.recv();
                *held_back = None;
            }
            Some((looks, _)) => *looks -= 1,
            None => {}
        });
        now
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.sleep(duration)
    }
}

#[test]
fn caller_held_back_looks_before_refreshing() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // At each of the moments between finding the token expired and starting a refresh.
    for looks in 0..4 {
        let (go_on, wait) = mpsc::channel();
        let (site, user) = runtime.block_on(async {
            let site = Site::new();
            let hurdlr = site.hurdlr_by(HoldingClock(site.clock.clone()));
            let manager = TokenManager::builder(hurdlr, site.store.clone()).build().unwrap();
            let token = site.login(&ann()).await;
            manager.adopt(&ann(), token).await.unwrap();
            (site, manager.user(&ann()))
        });
        site.advance(HOUR);
        let (late, handle) = (user.clone(), runtime.handle().clone());
        let late = std::thread::spawn(move || {
            HELD_BACK.set(Some((looks, wait)));
            let token = handle.block_on(async { late.token().await.map(|token| access(&token)) });
            HELD_BACK.set(None);
            token
        });
        std::thread::yield_now();
        runtime.block_on(user.token()).unwrap();
        drop(go_on);
        let token = late.join().unwrap().unwrap();
        assert!(site.fake.is_alive(&token));
        assert_eq!(site.fake.count().grant("refresh_token"), 1, "{looks}");
    }
}

#[test]
fn no_refresh_starts_behind_a_shutdown() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        for round in 0..600 {
            let site = Site::new();
            let manager = site.manager();
            let callers: Vec<_> = (0..4)
                .map(|n| {
                    let user = manager.enterprise_user(&UserId::new(format!("user-{n}")).unwrap());
                    tokio::spawn(async move { user.token().await.is_ok() })
                })
                .collect();
            for _ in 0..round % 50 {
                std::hint::spin_loop();
            }
            assert!(manager.shutdown().await.is_empty());
            let sent = site.fake.count().total();
            for caller in callers {
                caller.await.unwrap();
            }
            assert_eq!(site.fake.count().total(), sent, "round {round}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn panicking_refresh_ends_alone() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let mut claims = 0;
    site.store.plan(move |call| {
        claims += u32::from(call == StoreCall::Claim);
        assert!(call != StoreCall::Claim || claims != 2, "a bug of the store");
        None
    });
    let [ann, bob, eve] =
        ["ann", "bob", "eve"].map(|id| manager.enterprise_user(&UserId::new(id).unwrap()));
    let (first, second, third) = tokio::join!(ann.token(), bob.token(), eve.token());
    assert!(first.is_ok() && third.is_ok());
    let error = second.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.to_string().contains("panicked"), "{error}");
    tokio::time::sleep(2 * SECOND).await;
    bob.token().await.unwrap();
    assert!(manager.shutdown().await.is_empty());
}

#[test]
fn ended_runtime_leaves_nobody_in_queue() {
    let theirs = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let site = Site::new();
    site.fake.fault_next(Fault::HoldAfter(Gate::closed()));
    let manager = theirs.block_on(async {
        let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
        builder.max_concurrent_refreshes(1).build().unwrap()
    });
    let users = ["ann", "bob", "eve"].map(|id| manager.enterprise_user(&UserId::new(id).unwrap()));
    let waiting = users
        .clone()
        .map(|user| ours.spawn(async move { user.token().await.map(|token| access(&token)) }));
    ours.block_on(async {
        site.fake.arrived(1).await;
        theirs.shutdown_background();
        for caller in waiting {
            assert_eq!(caller.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        }
        for user in users {
            assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
        }
    });
}

//! Lives, dates, and clocks that jump.

use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{TokenManager, UserId};

use crate::logged_in;
use crate::site::{HOUR, SECOND, Site, access};

#[tokio::test(start_paused = true)]
async fn strange_lives_make_no_tight_loop() {
    type Shape = fn(&mut serde_json::Map<String, serde_json::Value>);
    let shapes: [(&str, Shape); 7] = [
        ("no span", |answer| {
            answer.remove("expires_in");
        }),
        ("span of 0", |answer| {
            answer.insert("expires_in".into(), 0.into());
        }),
        ("span of 1", |answer| {
            answer.insert("expires_in".into(), 1.into());
        }),
        ("years old", |answer| {
            answer.insert("created_at".into(), 1.into());
        }),
        ("years ahead", |answer| {
            answer.insert("created_at".into(), 4_000_000_000_u64.into());
        }),
        ("milliseconds", |answer| {
            answer.insert("created_at".into(), 1_700_000_000_000_u64.into());
        }),
        ("negative span", |answer| {
            answer.insert("expires_in".into(), (-5).into());
        }),
    ];
    for (name, shape) in shapes {
        let site = Site::new();
        site.fake.reshape(shape);
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        let mut served = 0;
        let start = tokio::time::Instant::now();
        for _ in 0..1_000 {
            if let Ok(token) = user.token().await {
                assert!(!token.is_expired(), "{name}");
                served += 1;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seconds = start.elapsed().as_secs();
        let most = if name == "span of 1" { seconds + 1 } else { 12 };
        let sent = site.fake.count().total();
        assert!((1..=most).contains(&sent), "{name}: {sent} requests in {seconds} s");
        assert_eq!(served > 0, name != "span of 0", "{name}: served {served} times");
    }
}

#[tokio::test(start_paused = true)]
async fn clock_jump_costs_one_refresh_at_most() {
    let day = HOUR * 24;
    for (name, turn) in [
        (
            "forward",
            (|clock: &ManualClock, by| clock.advance_wall(by)) as fn(&ManualClock, Duration),
        ),
        ("back", |clock, by| clock.set_wall_back(by)),
    ] {
        let site = Site::new();
        let (manager, id) = logged_in(&site, "ann").await;
        let user = manager.user(&id);
        turn(&site.clock, day);
        for _ in 0..50 {
            assert!(user.token().await.is_ok(), "{name}");
            tokio::time::sleep(SECOND).await;
        }
        assert!(site.refreshes() <= 1, "{name}: {}", site.refreshes());
        // And it still falls due by the other clock.
        site.advance(HOUR);
        assert!(site.fake.is_alive(&access(&user.token().await.unwrap())), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn expiry_buffer_ends_a_token_early() {
    let site = Site::new();
    let minute = Duration::from_mins(1);
    for (buffer, ends_early) in [(5 * minute, 5 * minute), (HOUR, HOUR / 10)] {
        let policy = RefreshPolicy::default().expiry_buffer(buffer);
        let builder = TokenManager::builder(site.hurdlr(), MemoryStore::new());
        let manager = builder.refresh_policy(policy).build().unwrap();
        let user = manager.enterprise_user(&UserId::new("ann").unwrap());
        let first = access(&user.token().await.unwrap());
        site.clock.advance(HOUR.saturating_sub(ends_early + SECOND));
        assert!(user.try_token().is_some(), "{buffer:?}");
        site.clock.advance(2 * SECOND);
        assert!(user.try_token().is_none(), "{buffer:?}");
        assert_ne!(access(&user.token().await.unwrap()), first);
    }
}

#[tokio::test(start_paused = true)]
async fn default_lifetime_ends_what_names_none() {
    let site = Site::new();
    site.fake.reshape(|token| drop(token.remove("expires_in")));
    let policy = RefreshPolicy::default().default_lifetime(HOUR / 4);
    let builder = TokenManager::builder(site.hurdlr(), MemoryStore::new());
    let manager = builder.refresh_policy(policy).build().unwrap();
    let user = manager.enterprise_user(&UserId::new("ann").unwrap());
    user.token().await.unwrap();
    let due_in = user.due_in().unwrap();
    assert!((HOUR * 5 / 36..=HOUR * 5 / 24).contains(&due_in), "{due_in:?}");
    site.clock.advance((HOUR / 4).saturating_sub(31 * SECOND));
    assert!(user.try_token().is_some());
    site.clock.advance(2 * SECOND);
    assert!(user.try_token().is_none());
}

/// Within a second, reads compare that second alone: a token must not become due in it unseen.
#[tokio::test(start_paused = true)]
async fn due_token_is_noticed_within_the_second() {
    for tenth in 0..10 {
        let site = Site::new();
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        site.clock.advance(Duration::from_millis(100 * tenth));
        user.token().await.unwrap();
        site.clock.advance(user.due_in().unwrap().saturating_sub(Duration::from_millis(300)));
        // The first of them has the token compared with the store.
        for _ in 0..200 {
            user.token().await.unwrap();
            tokio::task::yield_now().await;
        }
        site.clock.advance(Duration::from_millis(600));
        user.token().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(site.fake.requests().len(), 2, "tenth {tenth}");
    }
}

#[tokio::test(start_paused = true)]
async fn clock_put_back_serves_no_expired_token() {
    for seconds_more in 1..=2 {
        let site = Site::new();
        let user = site.manager().enterprise_user(&UserId::new("ann").unwrap());
        for _ in 0..2 {
            user.token().await.unwrap();
        }
        site.clock.advance(2 * HOUR);
        site.clock.set_wall_back(2 * HOUR + seconds_more * SECOND);
        user.token().await.unwrap();
        assert_eq!(site.fake.requests().len(), 2, "{seconds_more}");
    }
}

/// Users who were granted together are due spread over the jitter, so that from the second wave on
/// the provider never has twice the mean to do. Of a million, `benches/scale` tells it exactly.
#[tokio::test(start_paused = true)]
async fn users_are_due_at_different_times() {
    const USERS: usize = 1_000;
    let site = Site::new();
    let manager = site.manager();
    let mut due = Vec::new();
    for n in 0..USERS {
        let user = manager.enterprise_user(&UserId::new(format!("user-{n}")).unwrap());
        user.token().await.unwrap();
        due.push(usize::try_from(user.due_in().unwrap().as_secs()).unwrap());
    }
    for tenth in 0..10 {
        let from = 2_000 + 100 * tenth;
        let here = due.iter().filter(|due| (from..from + 100).contains(*due)).count();
        assert!((60..140).contains(&here), "{here} of {USERS} in tenth {tenth}");
    }

    // Eight lifetimes, counted in eighteenths: the first wave is over after fifteen of them.
    let mut refreshes = [0; 8 * 18];
    for due in due {
        (due..8 * 3_600).step_by(due).for_each(|at| refreshes[at / 200] += 1);
    }
    let later = &refreshes[18..];
    let mean = later.iter().sum::<usize>() / later.len();
    let peak = later.iter().max().unwrap();
    assert!(10 * peak <= 18 * mean, "{peak} at once, {mean} in the mean");
}

//! Users whom nobody waits for: warming, and keeping alive.

use std::collections::HashSet;
use std::time::Duration;

use hurdlr_oauth2::testing::{Fault, Outcome};
use hurdlr_oauth2::{TokenManager, UserId};

use crate::logged_in;
use crate::site::{HOUR, SECOND, Site};

#[tokio::test(start_paused = true)]
async fn warming_brings_all_users_once() {
    let site = Site::new();
    let manager = site.manager();
    let ids = || (0..300).map(|n| UserId::new(format!("user-{n}")).unwrap());
    site.fake.fault_plan(|request| {
        (request.user() == Some("user-7"))
            .then(|| Fault::answer(400, r#"{"error":"invalid_request"}"#))
    });
    let mut warm = manager.warm(ids().collect::<Vec<_>>());
    let mut outcomes = 0;
    while let Some(warmed) = warm.next().await {
        assert_eq!(warmed.outcome.is_ok(), warmed.user.as_str() != "user-7");
        outcomes += 1;
    }
    assert_eq!(outcomes, 300);
    let sent = site.fake.count().total();
    let mut again = manager.warm(ids().collect::<Vec<_>>());
    let mut ready = 0;
    while let Some(warmed) = again.next().await {
        ready += u32::from(warmed.outcome.is_ok());
    }
    assert_eq!(ready, 299);
    assert_eq!(site.fake.count().total(), sent, "the failed one is left alone for a while");
}

#[tokio::test(start_paused = true)]
async fn keep_alive_renews_unread_in_one_process() {
    let site = Site::new();
    let (manager, _) = logged_in(&site, "ann").await;
    for n in 0..200 {
        let id = UserId::new(format!("user-{n}")).unwrap();
        manager.adopt(&id, site.login(&id).await).await.unwrap();
    }
    drop(manager);
    site.fake.clear_requests();
    let (one, two) = (site.manager(), site.manager());
    let walks = [one.keep_alive(Duration::from_secs(60)), two.keep_alive(Duration::from_secs(60))];
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(site.refreshes(), 0, "nobody is due yet");
    site.advance(HOUR * 52 / 60);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(site.refreshes(), 201);
    for walk in walks {
        walk.stop().await;
    }
    site.advance(HOUR * 52 / 60);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(site.refreshes(), 201, "stopped");
}

#[tokio::test(start_paused = true)]
async fn waiting_callers_precede_background_refreshes() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let due: Vec<_> = (0..20).map(|n| UserId::new(format!("due-{n}")).unwrap()).collect();
    for id in &due {
        manager.enterprise_user(id).token().await.unwrap();
    }
    site.advance(HOUR * 55 / 60);
    site.fake.clear_requests();
    site.fake.fault_plan(|_| Some(Fault::Delay(SECOND)));
    for id in &due {
        manager.enterprise_user(id).token().await.unwrap();
    }
    let urgent = UserId::new("urgent").unwrap();
    manager.enterprise_user(&urgent).token().await.unwrap();
    let order: Vec<_> = site.fake.requests().iter().map(|r| r.user().unwrap().to_owned()).collect();
    assert!(order.iter().position(|user| user == "urgent").unwrap() <= 1, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn awaited_background_refresh_goes_first() {
    let site = Site::new();
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone())
        .max_concurrent_refreshes(1)
        .build()
        .unwrap();
    let users = ["ann", "bob", "eve"].map(|id| manager.enterprise_user(&UserId::new(id).unwrap()));
    for user in &users {
        user.token().await.unwrap();
    }
    site.advance(HOUR * 55 / 60);
    site.fake.clear_requests();
    site.fake.fault_plan(|_| Some(Fault::Delay(SECOND)));
    for user in &users {
        user.token().await.unwrap(); // due: each is renewed in the background
    }
    tokio::task::yield_now().await;
    site.advance(HOUR);
    users[2].token().await.unwrap();
    let order: Vec<_> = site.fake.requests().iter().map(|r| r.user().unwrap().to_owned()).collect();
    assert!(order.iter().position(|user| user == "eve").unwrap() <= 1, "{order:?}");
}

/// While the provider is down, the walk asks for one user after each pause, and the pauses grow.
#[tokio::test(start_paused = true)]
async fn walk_asks_little_of_silent_provider() {
    let site = Site::new();
    let manager = || {
        let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
        builder.max_concurrent_refreshes(4).build().unwrap()
    };
    let before = manager();
    for n in 0..60 {
        let id = UserId::new(format!("user-{n}")).unwrap();
        before.enterprise_user(&id).token().await.unwrap();
    }
    site.advance(HOUR * 52 / 60);
    site.fake.clear_requests();
    site.fake.fault_plan(|_| Some(Fault::status(503)));
    let after = manager();
    let walk = after.keep_alive(60 * SECOND);
    tokio::time::sleep(60 * SECOND).await;
    let asked: HashSet<_> =
        site.fake.requests().iter().map(|request| request.user().map(str::to_owned)).collect();
    // Those who were asked for at first, and then one after each of a handful of pauses.
    assert!((8..=24).contains(&asked.len()), "{} users", asked.len());
    site.fake.clear_faults();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(site.fake.count().outcome(Outcome::Issued), 60);
    walk.stop().await;
}

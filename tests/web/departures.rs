//! Browsers that go away, and apps that shut down.

use std::time::Duration;

use hurdlr_oauth2::manager::UnfinishedWork;
use hurdlr_oauth2::testing::{Fault, Gate, StoreCall};
use hurdlr_oauth2::{ApiVersion, ErrorKind, UserId};

use super::MINUTE;
use crate::app::{self, App, Browser};

#[tokio::test]
async fn departed_browser_takes_no_token_along() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let user = app.manager.user(&UserId::new("ann").unwrap());
    let mut changes = user.subscribe();
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    gate.open();
    // Nothing waits so long; it is the failure of the test.
    tokio::time::timeout(MINUTE / 2, changes.next()).await.expect("the exchange goes on");
    assert!(app.is_connected("ann").await);
    assert_eq!(app.site.fake.count().total(), 1);
}

#[tokio::test]
async fn browser_departed_during_save_takes_nothing() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let user = app.manager.user(&UserId::new("ann").unwrap());
    let mut changes = user.subscribe();
    app.site.store.delay(Duration::from_millis(100));
    let saving = async {
        while !app.site.store.calls().contains(&StoreCall::Save) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the store takes longer"),
        () = saving => {}
    }
    tokio::time::timeout(MINUTE / 2, changes.next()).await.expect("the token is saved");
    assert!(app.is_connected("ann").await);
}

/// The provider may take long to revoke a token; until then the browser waits.
#[tokio::test]
async fn abandoned_disconnect_reaches_every_manager() {
    let site = app::Site::new();
    let manager = |version| site.manager(site.builder().api_version(version));
    let (v4, v6) = (manager(ApiVersion::V4), manager(ApiVersion::V6));
    let before = App::of(site.clone(), v4.clone(), |config| config);
    let both = App::of(site.clone(), v6.clone(), |config| config.other_manager(v4.clone()));
    let mut browser = Browser::of("ann");
    for app in [&before, &both] {
        let callback = browser.begin(app, "ann").await;
        assert_eq!(browser.get(app, &callback).await.location(), "/home");
    }
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let requests = site.fake.count().total();
    tokio::select! {
        _ = browser.disconnect(&both, &[("sec-fetch-site", "same-origin")]) => {
            panic!("the revocation is held")
        }
        () = site.fake.arrived(requests + 1) => {}
    }
    assert_eq!(v4.shutdown().await, []);
    let error = manager(ApiVersion::V4).user(&UserId::new("ann").unwrap()).token().await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::LoginRequired);
    gate.open();
}

#[tokio::test]
async fn shutdown_waits_for_abandoned_callback() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    let shutdown = app.manager.shutdown();
    let opens = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (unfinished, ()) = tokio::join!(shutdown, opens);
    assert_eq!(unfinished, []);
    assert!(app.is_connected("ann").await);
    assert_eq!(app.site.store.calls().last(), Some(&StoreCall::Save));
}

#[tokio::test(start_paused = true)]
async fn shutdown_names_unfinished_login() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    let gate = Gate::closed();
    app.site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    tokio::select! {
        _ = ann.get(&app, &callback) => panic!("the exchange is held"),
        () = app.site.fake.arrived(1) => {}
    }
    let unfinished = app.manager.shutdown().await;
    let works: Vec<_> = unfinished.iter().map(|it| (it.user.as_str(), it.work)).collect();
    assert_eq!(works, [("ann", UnfinishedWork::Login)]);
    gate.open();
    assert_eq!(app.manager.shutdown().await, []);
}

#[tokio::test]
async fn callback_after_shutdown_spends_no_code() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    assert_eq!(app.manager.shutdown().await, []);
    let answer = ann.get(&app, &callback).await;
    assert_eq!((answer.status, app.site.fake.count().total()), (503, 0));
    // Another replica completes it.
    let other = App::on(app.site.clone(), app::Site::builder, |config| config);
    assert_eq!(ann.get(&other, &callback).await.location(), "/home");
}

//! What callers, events, logs and metrics say.

use hurdlr_oauth2::manager::{Disconnected, TokenEvent};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{Fault, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, ErrorKind, TokenManager};
use tokio::time::{Instant, sleep};

use crate::faults::site::*;

/// A manager of ann's, whose new refresh token has just been lost on the way.
async fn rotation_lost(site: &Site) -> TokenManager {
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fake.fault_next(Fault::DropAfter);
    assert_lost(&manager).await;
    manager
}

async fn assert_lost(manager: &TokenManager) {
    let error = manager.user(&ann()).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RotationLost, "{error}");
}

/// A lost rotation is told as such to later callers in every process until a login.
#[tokio::test(start_paused = true)]
async fn rotation_lost_reaches_everybody() {
    let site = Site::new();
    let (here, elsewhere) = (rotation_lost(&site).await, site.manager());
    for _ in 0..10 {
        sleep(10 * SECOND).await;
        assert_lost(&here).await;
        assert_lost(&elsewhere).await;
    }
    assert_lost(&site.manager()).await;
    here.adopt(&ann(), site.login(&ann()).await).await.unwrap();
    for process in [&here, &elsewhere] {
        sleep(MINUTE).await;
        let _ = soon(&process.user(&ann())).await;
        sleep(MINUTE).await;
        assert!(soon(&process.user(&ann())).await.is_ok());
    }
}

/// A lost rotation is told as such though the store fails afterwards.
#[tokio::test(start_paused = true)]
async fn rotation_lost_outlasts_store_failures() {
    let site = Site::new();
    let manager = rotation_lost(&site).await;
    site.store.go_down();
    for _ in 0..10 {
        sleep(10 * SECOND).await;
        assert_lost(&manager).await;
    }
}

/// A login that is needed is told once, and not claimed again and again.
#[tokio::test(start_paused = true)]
async fn needed_login_is_told_once() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    let user = manager.user(&ann());
    let events = events(&user);
    site.fake.revoke_everything("ann");
    site.advance(HOUR);
    let (log, _guard) = Log::begin();
    let before = site.calls(StoreCall::Claim);
    for _ in 0..300 {
        assert_eq!(user.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
        sleep(SECOND).await;
    }
    assert_eq!(*events.lock().unwrap(), [TokenEvent::LoginRequired]);
    let lines = log.lines();
    assert!(lines.len() <= 3, "{} lines, such as {:?}", lines.len(), lines.last());
    let claims = site.calls(StoreCall::Claim) - before;
    assert!(claims <= 10, "{claims} claims in 300 s");
    assert_eq!(site.fake.count().user("ann"), site.refreshes());
    assert!(site.refreshes() <= 2, "{} requests", site.refreshes());
}

/// A user who never logged in is no failed refresh in the log.
#[tokio::test(start_paused = true)]
async fn unknown_user_is_not_logged() {
    let site = Site::new();
    let manager = site.manager();
    let (log, _guard) = Log::begin();
    for user in ids("nobody", 10) {
        for _ in 0..3 {
            let error = manager.user(&user).token().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LoginRequired);
            sleep(10 * SECOND).await;
        }
    }
    assert_eq!(log.lines(), Vec::<String>::new());
}

/// Disconnects a user whose token the provider does not know, and says so.
async fn assert_revoked_by(code: &str) {
    let site = Site::of(ApiVersion::V6);
    let manager = site.logged_in(&ann()).await;
    let answer = format!(r#"{{"error":"{code}"}}"#);
    site.fake.fault_plan(move |_| Some(Fault::answer(400, answer.clone())));
    let outcome = manager.user(&ann()).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
    assert_eq!(site.fake.count().total(), 1);
    assert_eq!(site.rows().await, 0);
}

/// A token that the provider calls invalid is as good as revoked.
#[tokio::test(start_paused = true)]
async fn invalid_token_counts_as_revoked() {
    assert_revoked_by("invalid_token").await;
}

/// A grant that the provider calls invalid is as good as revoked.
#[tokio::test(start_paused = true)]
async fn invalid_grant_counts_as_revoked() {
    assert_revoked_by("invalid_grant").await;
}

/// An access token whose life is over is not sent for revocation.
#[tokio::test(start_paused = true)]
async fn expired_token_needs_no_revocation() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let (early, late) = (manager.enterprise_user(&ann()), manager.enterprise_user(&id("bob")));
    soon(&early).await.unwrap();
    soon(&late).await.unwrap();
    site.fake.fault_plan(|_| Some(Fault::status(500)));
    let outcome = early.disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Pending(_)), "{outcome:?}");
    sleep(HOUR + 10 * MINUTE).await;
    site.fake.clear_requests();
    let outcome = late.disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Revoked), "{outcome:?}");
    let walk = manager.keep_alive(10 * MINUTE);
    sleep(2 * HOUR).await;
    walk.stop().await;
    assert_eq!(site.fake.count().total(), 0);
    assert_eq!(site.rows().await, 0);
    assert!(manager.shutdown().await.is_empty());
}

/// Disconnects a user whose revocation is always answered so, and waits until it is given up.
async fn assert_revocation_ends(status: u16, body: &'static str) {
    let site = Site::of(ApiVersion::V6);
    let manager = site.logged_in(&ann()).await;
    site.fake.fault_plan(move |_| Some(Fault::answer(status, body)));
    let (log, _guard) = Log::begin();
    let outcome = manager.user(&ann()).disconnect().await.unwrap();
    assert!(matches!(outcome, Disconnected::Pending(_)), "{outcome:?}");
    let walk = manager.keep_alive(HOUR);
    sleep(6 * DAY).await;
    let lines = log.lines().len();
    sleep(4 * DAY).await;
    let requests = site.fake.count().total();
    assert!((3..=60).contains(&requests), "{requests} requests in ten days");
    assert_eq!(site.rows().await, 0);
    assert!(log.lines().len() > lines, "nobody is told that it was given up");
    site.fake.clear_requests();
    sleep(10 * DAY).await;
    assert_eq!(site.fake.count().total(), 0, "asked again");
    walk.stop().await;
    assert!(log.lines().len() < 200, "{} lines", log.lines().len());
}

/// A revocation at an endpoint that is not there is given up after a week.
#[tokio::test(start_paused = true)]
async fn missing_revocation_endpoint_is_abandoned() {
    assert_revocation_ends(404, "Not found").await;
}

/// A revocation that the provider does not authorize is given up after a week.
#[tokio::test(start_paused = true)]
async fn unauthorized_revocation_is_abandoned() {
    assert_revocation_ends(401, INVALID_TOKEN).await;
}

/// A revocation that the provider does not support is given up after a week.
#[tokio::test(start_paused = true)]
async fn unsupported_revocation_is_abandoned() {
    assert_revocation_ends(400, r#"{"error":"unsupported_token_type"}"#).await;
}

/// A shutdown does not wait for a revocation that is refused for good.
#[tokio::test(start_paused = true)]
async fn refused_revocation_delays_no_shutdown() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.logged_in(&ann()).await;
    site.fake.fault_plan(|_| Some(Fault::answer(404, "Not found")));
    let _ = manager.user(&ann()).disconnect().await.unwrap();
    sleep(HOUR).await;
    let began = Instant::now();
    let unfinished = manager.shutdown().await;
    assert!(began.elapsed() <= 21 * SECOND, "{:?}", began.elapsed());
    assert_eq!(unfinished.len(), 1);
}

/// An import that seemed to fail says the truth when it is made again.
#[tokio::test(start_paused = true)]
async fn repeated_import_says_the_truth() {
    let site = Site::new();
    let manager = site.manager();
    let token = site.login(&ann()).await;
    let json = token.to_secret();
    let copy = || site.hurdlr().import(json.expose_secret()).unwrap();
    site.fail(StoreCall::Save, StoreFault::After);
    let failed = manager.import_if_absent(&ann(), copy()).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Store);
    site.store.recover();
    assert!(manager.import_if_absent(&ann(), copy()).await.unwrap(), "it is the one imported");
    assert_eq!(soon(&manager.user(&ann())).await.unwrap(), access(&token));
    let other = site.login(&ann()).await;
    assert!(!manager.import_if_absent(&ann(), other).await.unwrap());
    sleep(5 * SECOND).await;
    assert_eq!(site.stored_refresh_token(&ann()).await, Some(refresh(&token)));
}

/// An import succeeds where another process removed the user, although a refreshed token of theirs
/// is still to be saved here.
#[tokio::test(start_paused = true)]
async fn import_follows_removal_elsewhere() {
    let site = Site::new();
    let manager = site.logged_in(&ann()).await;
    site.advance(HOUR);
    site.fail(StoreCall::Save, StoreFault::Before);
    manager.user(&ann()).token().await.unwrap();
    site.manager().user(&ann()).forget().await.unwrap();
    site.store.recover();
    let imported = site.login(&ann()).await;
    let expected = access(&imported);
    assert!(manager.import_if_absent(&ann(), imported).await.unwrap());
    assert_eq!(soon(&manager.user(&ann())).await.unwrap(), expected);
}

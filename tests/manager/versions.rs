//! What the token manager makes of what only some versions of the API have.

use hurdlr_oauth2::store::RowKind;
use hurdlr_oauth2::{ApiVersion, ErrorKind, UserId};

use crate::site::{HOUR, SECOND, Site, access};

#[tokio::test(start_paused = true)]
async fn due_v6_client_token_is_granted_anew() {
    let site = Site::of(ApiVersion::V6);
    let manager = site.manager();
    let ann = manager.enterprise_user(&UserId::new("ann").unwrap());
    for (handle, granted) in [(ann, 1), (manager.partner(), 1)] {
        site.fake.clear_requests();
        let mut changes = handle.subscribe();
        let first = access(&handle.token().await.unwrap());
        changes.next().await;
        site.advance(HOUR * 55 / 60);
        assert_eq!(access(&handle.token().await.unwrap()), first, "due, and served");
        changes.next().await;
        let second = access(&handle.token().await.unwrap());
        assert!(second != first && site.fake.is_alive(&second));
        site.advance(HOUR);
        assert_ne!(access(&handle.token().await.unwrap()), second, "expired");
        assert_eq!(site.fake.count().grant("client_credentials"), granted + 2);
        assert_eq!(site.refreshes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn partners_token_is_granted_once_for_all() {
    let site = Site::of(ApiVersion::V6);
    let (one, other) = (site.manager(), site.manager());
    let token = access(&one.partner().token().await.unwrap());
    assert_eq!(access(&other.partner().token().await.unwrap()), token);
    assert_eq!(site.fake.tokens_alive(""), 1);
    // It is no user's, whatever a user is called.
    let namesake = one.partner().id().clone();
    let theirs = access(&one.enterprise_user(&namesake).token().await.unwrap());
    assert_ne!(theirs, token);
    assert!(site.row(RowKind::Partner, &namesake).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn partners_token_depends_on_version() {
    for version in [ApiVersion::V4, ApiVersion::V5] {
        let site = Site::of(version);
        let error = site.manager().partner().token().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(site.fake.count().total(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn one_id_on_two_versions_is_two() {
    let old = Site::of(ApiVersion::V5);
    let new = Site {
        version: ApiVersion::V6,
        fake: old.fake.clone(),
        clock: old.clock.clone(),
        store: old.store.clone(),
    };
    let ann = UserId::new("ann").unwrap();
    let before = old.logged_in(&ann).await;
    let after = new.manager();
    let error = after.user(&ann).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoginRequired, "not logged in to the new version");

    after.adopt(&ann, new.login(&ann).await).await.unwrap();
    let [one, other] = [before.user(&ann), after.user(&ann)];
    let tokens =
        [one.token().await.unwrap().into_shared(), other.token().await.unwrap().into_shared()];
    assert_ne!(access(&tokens[0]), access(&tokens[1]));
    before.user(&ann).forget().await.unwrap();
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(access(&after.user(&ann).token().await.unwrap()), access(&tokens[1]));
    assert_eq!(one.token().await.unwrap_err().kind(), ErrorKind::LoginRequired);
}

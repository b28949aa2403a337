//! A client and its futures go wherever the app's runtime takes them.

use std::sync::Arc;

use hurdlr_oauth2::testing::FakeHurdlr;
use hurdlr_oauth2::{
    Callback, Error, HttpClient, Hurdlr, HurdlrBuilder, PendingLogin, Token, UserId,
};

use crate::support;

fn sent<T: Send>(value: T) -> T {
    value
}

fn is_shared<T: Send + Sync + 'static>() {}

fn is_cloned<T: Clone>() {}

#[test]
fn apps_handles_are_shared_between_threads() {
    is_shared::<Hurdlr>();
    is_cloned::<Hurdlr>();
    is_shared::<Token>();
    is_shared::<PendingLogin>();
    is_shared::<Callback>();
    is_shared::<UserId>();
    is_shared::<Error>();
    is_shared::<HttpClient>();
    sent(None::<HurdlrBuilder>);
}

#[tokio::test]
async fn every_call_can_be_spawned_elsewhere() {
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).build().unwrap();
    let user = support::ann();
    let token = sent(hurdlr.client_credentials(&user)).await.unwrap();
    sent(hurdlr.refresh(&token)).await.unwrap();
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.consent(&url, "ann").await.unwrap();
    sent(hurdlr.complete_login(pending, &callback)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_on_many_threads_share_one_client() {
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).build().unwrap();
    let calls: Vec<_> = (0..32)
        .map(|number| {
            let hurdlr = hurdlr.clone();
            tokio::spawn(async move {
                let user = UserId::new(format!("user-{number}")).unwrap();
                let token = Arc::new(hurdlr.client_credentials(&user).await.unwrap());
                hurdlr.refresh(&token).await.unwrap();
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(fake.count().total(), 64);
    assert!((0..32).all(|number| fake.count().user(&format!("user-{number}")) == 2));
}

//! Processes that share a store.

use std::time::Duration;

use hurdlr_oauth2::store::{Claim, Release, RowKind, TokenStore};
use hurdlr_oauth2::testing::{Fault, Gate, Rotation};
use hurdlr_oauth2::{ErrorKind, UserId};

use crate::logged_in;
use crate::site::{HOUR, Site, access, refresh};

impl Site {
    /// Sends the stored refresh token as a process would whose answer never arrives.
    async fn login_answer_is_lost(&self, id: &UserId) -> bool {
        let refresh_token = self.stored_refresh_token(id).await.unwrap();
        let json = format!(r#"{{"access_token":"x","refresh_token":"{refresh_token}"}}"#);
        let hurdlr = self.hurdlr();
        let token = hurdlr.import(json).unwrap();
        hurdlr.refresh(&token).await.is_ok()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_for_every_process() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    site.fake.fault_plan(|_| Some(Fault::rate_limited_for(Duration::from_secs(90))));
    assert!(manager.user(&id).token().await.is_err());
    let sent = site.fake.count().total();
    let error = site.manager().user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(site.fake.count().total(), sent);
}

#[tokio::test(start_paused = true)]
async fn processes_refresh_once_despite_family_kills() {
    let site = Site::new();
    site.fake.set_rotation(Rotation::KillFamily);
    let (first, id) = logged_in(&site, "ann").await;
    let fleet: Vec<_> = std::iter::once(first).chain((1..16).map(|_| site.manager())).collect();
    for round in 1..=5 {
        site.advance(HOUR);
        site.fake.fault_next(Fault::Delay(Duration::from_millis(300)));
        let callers: Vec<_> = fleet
            .iter()
            .map(|manager| {
                let user = manager.user(&id);
                tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
            })
            .collect();
        for caller in callers {
            let token = caller.await.unwrap().unwrap();
            assert!(site.fake.is_alive(&token));
        }
        assert_eq!(site.refreshes(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn processes_send_one_grant_for_cold_user() {
    let site = Site::new();
    let id = UserId::new("ann").unwrap();
    site.fake.fault_next(Fault::Delay(Duration::from_millis(300)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let user = site.manager().enterprise_user(&id);
            tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(site.fake.count().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn silent_holders_lost_answer_is_told() {
    let site = Site::new();
    let (_gone, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    // Another process claims, sends, and is never heard of again.
    let key = site.key(RowKind::Login, &id);
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    let claim =
        Claim { holder: 7, lease: Duration::from_secs(20), known: Some(row.version), create: None };
    assert!(site.store.claim(&key, claim).await.unwrap().granted);
    let sent = site.login_answer_is_lost(&id).await;
    assert!(sent);
    let error = site.manager().user(&id).token().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RotationLost);
}

#[tokio::test(start_paused = true)]
async fn woken_holder_saves_the_living_token() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let gate = Gate::closed();
    // Paused after the provider rotated.
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let paused = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| access(&token)) })
    };
    site.fake.arrived(1).await;
    let key = site.key(RowKind::Login, &id);
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    // A peer took over and was refused.
    let release = Release { refused: true, ..Release::default() };
    site.store.release(&key, row.version, 0, release).await.unwrap();
    gate.open();
    let token = paused.await.unwrap().unwrap();
    assert!(site.fake.is_alive(&token));
    let row =
        site.store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    assert!(!row.refused);
    let stored = site.stored_refresh_token(&id).await.unwrap();
    assert!(site.fake.refresh_is_alive(&stored));
}

#[tokio::test(start_paused = true)]
async fn login_elsewhere_during_refresh_is_kept() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let caller = {
        let user = manager.user(&id);
        tokio::spawn(async move { user.token().await.map(|token| refresh(&token)) })
    };
    site.fake.arrived(1).await;
    let newer = site.login(&UserId::new("ann").unwrap()).await;
    let expected = refresh(&newer);
    site.manager().adopt(&id, newer).await.unwrap();
    gate.open();
    assert_eq!(caller.await.unwrap().unwrap(), expected);
    assert_eq!(site.stored_refresh_token(&id).await, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn replicas_importing_one_table_replace_nothing() {
    let site = Site::new();
    let (manager, id) = logged_in(&site, "ann").await;
    let kept = site.stored_refresh_token(&id).await;
    let old = site.login(&UserId::new("ann").unwrap()).await;
    assert!(!manager.import_if_absent(&id, old).await.unwrap());
    assert_eq!(site.stored_refresh_token(&id).await, kept);
    let bob = UserId::new("bob").unwrap();
    let mut imported = 0;
    for _ in 0..16 {
        let token = site.login(&UserId::new("bob").unwrap()).await;
        imported += u32::from(site.manager().import_if_absent(&bob, token).await.unwrap());
    }
    assert_eq!(imported, 1);
}

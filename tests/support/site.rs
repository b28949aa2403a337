//! Where a token manager is tested: a provider, a store, and clocks that are turned together.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{MemoryStore, Realm, Row, RowKind, StoreKey, TokenStore};
use hurdlr_oauth2::testing::{FakeHurdlr, FaultyStore, ManualClock, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, Clock, Hurdlr, RetryPolicy, Token, TokenManager, UserId};

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A provider with one-hour tokens, and a store for as many managers as a test wants.
pub(crate) struct Site<S = MemoryStore> {
    pub(crate) version: ApiVersion,
    pub(crate) fake: FakeHurdlr,
    pub(crate) clock: ManualClock,
    pub(crate) store: FaultyStore<S>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::of(ApiVersion::V4)
    }

    pub(crate) fn of(version: ApiVersion) -> Self {
        let clock = ManualClock::new();
        Self::with(version, MemoryStore::with_clock(clock.clone()), clock)
    }
}

impl<S: TokenStore + Clone> Site<S> {
    /// With a store that has a clock of its own.
    pub(crate) fn on(store: S) -> Self {
        Self::with(ApiVersion::V4, store, ManualClock::new())
    }

    fn with(version: ApiVersion, store: S, clock: ManualClock) -> Self {
        let fake = FakeHurdlr::builder().token_life(HOUR).in_memory();
        Self { version, fake, clock, store: FaultyStore::new(store) }
    }

    pub(crate) fn hurdlr(&self) -> Hurdlr {
        self.hurdlr_by(self.clock.clone())
    }

    pub(crate) fn hurdlr_by(&self, clock: impl Clock) -> Hurdlr {
        Hurdlr::builder(self.fake.client_id(), self.fake.client_secret())
            .environment(self.fake.base_url())
            .api_version(self.version)
            .authorize_url(self.fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .http_client(self.fake.http_client())
            .retry(RetryPolicy::default().max_attempts(2))
            .clock(clock)
            .build()
            .unwrap()
    }

    pub(crate) fn manager(&self) -> TokenManager {
        TokenManager::builder(self.hurdlr(), self.store.clone()).build().unwrap()
    }

    /// A token of a person who has just logged in.
    pub(crate) async fn login(&self, user: &UserId) -> Token {
        let hurdlr = self.hurdlr();
        let (url, pending) = hurdlr.begin_login().unwrap();
        let callback = self.fake.consent(&url, user.as_str()).await.unwrap();
        hurdlr.complete_login(pending, &callback).await.unwrap()
    }

    /// A manager that this person has just logged in to.
    pub(crate) async fn logged_in(&self, user: &UserId) -> TokenManager {
        let manager = self.manager();
        let token = self.login(user).await;
        manager.adopt(user, token).await.unwrap();
        self.fake.clear_requests();
        manager
    }

    /// Time passes, for the app, its store and the provider.
    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.fake.advance_clock(by);
    }

    pub(crate) fn fail(&self, call: StoreCall, fault: StoreFault) {
        self.store.plan(move |it| (it == call).then_some(fault));
    }

    pub(crate) fn key(&self, kind: RowKind, user: &UserId) -> StoreKey {
        let hurdlr = self.hurdlr();
        let realm =
            Realm::new(hurdlr.api_version(), self.fake.base_url().as_str(), hurdlr.client_id());
        StoreKey::new(Arc::new(realm), kind, user.clone())
    }

    pub(crate) async fn row(&self, kind: RowKind, user: &UserId) -> Option<Row> {
        let key = self.key(kind, user);
        self.store.read(&[key]).await.unwrap().remove(0).unwrap()
    }

    /// The refresh token that the store holds.
    pub(crate) async fn stored_refresh_token(&self, user: &UserId) -> Option<String> {
        let payload = self.row(RowKind::Login, user).await?.token?.payload;
        let object: serde_json::Value = serde_json::from_slice(payload.expose_secret()).unwrap();
        Some(object["refresh_token"].as_str().unwrap().to_owned())
    }

    pub(crate) fn refreshes(&self) -> u64 {
        self.fake.count().grant("refresh_token")
    }
}

pub(crate) fn access(token: &Token) -> String {
    token.access_token().expose_secret().to_owned()
}

pub(crate) fn refresh(token: &Token) -> String {
    token.refresh_token().unwrap().expose_secret().to_owned()
}

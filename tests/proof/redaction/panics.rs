//! Panics around secrets, and what is made of them.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, MemoryStore, ReadRow, Realm, Release, Rewrite, Row, Save,
    StoreFuture, StoreKey, TokenStore, Version,
};
use hurdlr_oauth2::testing::{
    ErrorStyle, Fault, FaultyStore, ManualClock, StoreCall, StoreFault, store_contract,
};
use hurdlr_oauth2::{ApiVersion, Error, TokenManager, UserId};

use super::Sweep;
use super::provider::{LIFE, Provider, user};

/// The words of a store that panics with a secret of its own accord: those are the app's.
const OWN_WORDS: &str = "a store's own words: ";

/// Has the sweep hear the message of each panic from now on.
pub(super) fn record(sweep: &Sweep) {
    let (sweep, before) = (sweep.clone(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        let said = info.payload_as_str().unwrap_or_default();
        if !said.starts_with(OWN_WORDS) {
            before(info);
            sweep.text("panic", info.to_string());
        }
    }));
}

/// Panics with what it is handed: as `Debug` shows it, or, if it is `blunt`, with the token itself.
#[derive(Debug)]
struct Panicking {
    store: MemoryStore,
    call: StoreCall,
    blunt: bool,
}

impl Panicking {
    fn on(&self, call: StoreCall, shown: &dyn fmt::Debug) {
        assert!(call != self.call || self.blunt, "{call:?} of {shown:?} {shown:#?}");
        assert!(call != self.call, "{OWN_WORDS}{} {shown:?}", super::CLIENT_SECRET);
    }
}

impl TokenStore for Panicking {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.on(StoreCall::Read, &keys);
        self.store.read(keys)
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        self.on(StoreCall::Claim, &(key, claim));
        self.store.claim(key, claim)
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        if self.call == StoreCall::Save && self.blunt {
            let payload = String::from_utf8_lossy(save.token.payload.expose_secret()).into_owned();
            panic!("{OWN_WORDS}{payload}");
        }
        self.on(StoreCall::Save, &(key, &save));
        self.store.save(key, save)
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        self.on(StoreCall::Release, &(key, version, release));
        self.store.release(key, version, holder, release)
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, only: Option<Version>) -> StoreFuture<'a, bool> {
        self.on(StoreCall::Forget, &(key, only));
        self.store.forget(key, only)
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.on(StoreCall::Redeem, &keep);
        self.store.redeem(state, keep)
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        self.on(StoreCall::Due, &(realm, after));
        self.store.due(realm, after, limit)
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        self.on(StoreCall::Scan, &(realm, after));
        self.store.scan(realm, after, limit)
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.on(StoreCall::Rewrite, &rewrites);
        self.store.rewrite(rewrites)
    }
}

pub(super) async fn panic_everywhere(sweep: &Sweep) {
    let provider = Provider::start(sweep, ErrorStyle::Rfc6749).await;
    for call in [
        StoreCall::Read,
        StoreCall::Claim,
        StoreCall::Save,
        StoreCall::Release,
        StoreCall::Forget,
        StoreCall::Redeem,
    ] {
        for blunt in [false, true] {
            let clock = ManualClock::at(provider.fake.now());
            let hurdlr = provider.builder(ApiVersion::V6).clock(clock.clone()).build().unwrap();
            let store = Panicking { store: MemoryStore::with_clock(clock.clone()), call, blunt };
            let manager = TokenManager::builder(hurdlr, store)
                .shutdown_within(Duration::from_millis(1))
                .build()
                .unwrap();
            let (pending, callback) = provider.begin(manager.hurdlr()).await;
            let place = format!("a store that panics in {call:?}");
            sweep.result(&*place, &manager.complete_login(&user(), pending, callback).await);
            clock.advance(LIFE);
            provider.fake.advance_clock(LIFE);
            provider.fake.fault_next(Fault::DropBefore);
            let handle = manager.user(&user());
            sweep.result(&*place, &handle.token().await.map(|_| ()));
            sweep.result(&*place, &handle.forget().await);
            sweep.text(place, format!("{:?}", manager.shutdown().await));
        }
    }
    provider.fake.clear_faults();
    // The provider's handlers, with all of a request and an answer at hand.
    let hurdlr = provider.builder(ApiVersion::V4).build().unwrap();
    let made_up = UserId::new("made-up").unwrap();
    let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new()).build().unwrap();
    let token = hurdlr.client_credentials(&made_up).await.unwrap();
    manager.adopt(&made_up, token).await.unwrap();
    provider.fake.fault_plan(|request| panic!("a plan of {request:?} {request:#?}"));
    sweep.failed("a plan that panics", hurdlr.client_credentials(&made_up).await);
    provider.fake.clear_faults();
    provider.fake.api().fault_plan(|request| panic!("a plan of {request:?}"));
    let middleware = manager.user(&made_up).middleware();
    let client = middleware.client(|client| provider.trusted(client)).unwrap().build();
    let answer = client.get(provider.fake.resource_url()).send().await;
    sweep.failed("a call of a plan that panics", answer);

    // A store that breaks its contract.
    for call in [StoreCall::Claim, StoreCall::Save] {
        let store = FaultyStore::new(MemoryStore::new());
        store.plan(move |it| (it == call).then_some(StoreFault::Before));
        let proof = AssertUnwindSafe(store_contract::prove(store)).catch_unwind();
        assert!(proof.await.is_err(), "{call:?}");
    }
    let broken = AssertUnwindSafe(async { provider.log_in(&hurdlr).await.unwrap_err() });
    assert!(broken.catch_unwind().await.is_err(), "a token that was to be an error");
}

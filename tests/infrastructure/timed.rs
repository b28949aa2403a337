//! A store that notes how long its calls take.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hurdlr_oauth2::Error;
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Rewrite, Row, Save, StoreFuture,
    StoreKey, TokenStore, Version,
};

/// Hands calls on to a store. Clones share their notes.
#[derive(Clone, Debug)]
pub(crate) struct Timed<S> {
    store: S,
    calls: Arc<Mutex<Calls>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) longest: Option<(&'static str, Duration)>,
    pub(crate) failures: Vec<Error>,
}

impl<S: Sync> Timed<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, calls: Arc::default() }
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls.lock().unwrap().clone()
    }

    fn note<'a, T: 'a>(
        &'a self,
        call: &'static str,
        future: StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = future.await;
            let took = begun.elapsed();
            let mut calls = self.calls.lock().unwrap();
            if calls.longest.is_none_or(|(_, longest)| took > longest) {
                calls.longest = Some((call, took));
            }
            calls.failures.extend(outcome.as_ref().err().cloned());
            outcome
        })
    }
}

macro_rules! hand_on {
    ($($call:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl<S: TokenStore> TokenStore for Timed<S> {
            $(
                #[allow(clippy::elidable_lifetime_names, reason = "most calls borrow")]
                fn $call<'a>(&'a self, $($arg: $type),*) -> StoreFuture<'a, $answer> {
                    self.note(stringify!($call), self.store.$call($($arg),*))
                }
            )*
        }
    };
}

hand_on! {
    read(keys: &'a [StoreKey]) -> Vec<ReadRow>;
    claim(key: &'a StoreKey, claim: Claim) -> Claimed;
    save(key: &'a StoreKey, save: Save) -> bool;
    release(key: &'a StoreKey, version: Version, holder: u64, release: Release) -> ();
    forget(key: &'a StoreKey, version: Option<Version>) -> bool;
    redeem(state: &'a [u8; 32], keep: Duration) -> bool;
    due(realm: &'a Arc<Realm>, after: Option<&'a DueCursor>, limit: usize) -> Vec<DueRow>;
    scan(realm: &'a Arc<Realm>, after: Option<&'a StoreKey>, limit: usize)
        -> Vec<(StoreKey, Result<Row, Error>)>;
    rewrite(rewrites: Vec<Rewrite>) -> Vec<bool>;
}

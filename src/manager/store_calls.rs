//! The manager's calls to its store: a panic of the store becomes an error, the time of a call is
//! measured, and a row's age includes the time that its answer took.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::availability::Availability;
use crate::clock::{SharedClock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::metrics;
use crate::store::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Row, Save, StoreFuture, StoreKey,
    TokenStore, Version,
};

#[derive(Debug)]
pub(super) struct StoreCalls {
    store: Arc<dyn TokenStore>,
    clock: SharedClock,
    pub(super) availability: Availability,
}

impl StoreCalls {
    pub(super) fn new(store: Arc<dyn TokenStore>, clock: SharedClock) -> Self {
        Self { store, availability: Availability::new(clock.clone()), clock }
    }

    /// Reads many rows, one result per key.
    pub(super) async fn read_all(&self, keys: &[StoreKey]) -> Result<Vec<ReadRow>, Error> {
        let asked = self.clock.now();
        let rows = self.guarded("read", || self.store.read(keys)).await?;
        let aged = |row: ReadRow| row.map(|row| self.aged(row, asked));
        Ok(rows.into_iter().map(aged).collect())
    }

    pub(super) async fn read(&self, key: &StoreKey) -> ReadRow {
        self.read_row(key).await?
    }

    /// Reads a row. An error of the row itself is told apart from one of the call.
    pub(super) async fn read_row(&self, key: &StoreKey) -> Result<ReadRow, Error> {
        let rows = self.read_all(std::slice::from_ref(key)).await?;
        Ok(rows.into_iter().next().unwrap_or(Ok(None)))
    }

    pub(super) async fn claim(&self, key: &StoreKey, claim: Claim) -> Result<Claimed, Error> {
        let asked = self.clock.now();
        let claimed = self.guarded("claim", || self.store.claim(key, claim)).await?;
        Ok(Claimed { row: self.aged(claimed.row, asked), ..claimed })
    }

    pub(super) async fn save(&self, key: &StoreKey, save: Save) -> Result<bool, Error> {
        self.guarded("save", || self.store.save(key, save)).await
    }

    pub(super) async fn release(
        &self,
        key: &StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> Result<(), Error> {
        let release = || self.store.release(key, version, holder, release);
        self.guarded("release", release).await
    }

    pub(super) async fn forget(
        &self,
        key: &StoreKey,
        version: Option<Version>,
    ) -> Result<bool, Error> {
        self.guarded("forget", || self.store.forget(key, version)).await
    }

    pub(super) async fn redeem(&self, state: &[u8; 32], keep: Duration) -> Result<bool, Error> {
        self.guarded("redeem", || self.store.redeem(state, keep)).await
    }

    pub(super) async fn due(
        &self,
        realm: &Arc<Realm>,
        after: Option<&DueCursor>,
        limit: usize,
    ) -> Result<Vec<DueRow>, Error> {
        self.guarded("due", || self.store.due(realm, after, limit)).await
    }

    /// Makes a call. The store is the app's own code, and a panic in it must not take along a token
    /// that has just come.
    async fn guarded<'a, T>(
        &'a self,
        call: &'static str,
        make: impl FnOnce() -> StoreFuture<'a, T>,
    ) -> Result<T, Error> {
        let asked = self.clock.now();
        let outcome = AssertUnwindSafe(async { make().await }).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|_| Err(Error::store("the store panicked")));
        // An error that is there to stay is an answer too.
        let is_answer = outcome.as_ref().err().is_none_or(|error| !error.is_temporary());
        self.availability.note(asked, is_answer);
        metrics::store_call(call, outcome.is_ok(), self.clock.now().since(asked));
        outcome
    }

    /// Adds the time since the store was asked: the machine may have been suspended while the
    /// answer was on its way.
    fn aged(&self, row: Option<Row>, asked: Timestamp) -> Option<Row> {
        let mut row = row?;
        if let Some(token) = &mut row.token {
            token.age += self.clock.now().since(asked);
        }
        Some(row)
    }
}

/// Whether an error of a row says that it cannot be read, now or later.
pub(super) fn is_unreadable(error: &Error) -> bool {
    error.kind() == ErrorKind::Store && !error.is_temporary()
}

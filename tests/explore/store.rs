//! A process's way to the shared store: every call passes its gates, and the laws see its effect.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::Error;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox};
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, MemoryStore, ReadRow, Realm, Release, Rewrite, Row, Save,
    StoreFuture, StoreKey, StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;

use crate::provider::Pair;
use crate::world::{Broken, Call, World};

#[derive(Clone)]
pub(crate) struct GatedStore {
    pub(crate) process: usize,
    pub(crate) world: World,
    pub(crate) store: MemoryStore,
}

impl fmt::Debug for GatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store of process {}", self.process)
    }
}

/// The pair of tokens that a row holds.
pub(crate) fn pair(row: Option<&Row>) -> Option<Pair> {
    Pair::find(row?.token.as_ref()?.payload.expose_secret())
}

/// Reads the row past all gates.
pub(crate) async fn row(store: &MemoryStore, key: &StoreKey) -> Option<Row> {
    store.read(std::slice::from_ref(key)).await.ok()?.into_iter().next()?.ok()?
}

/// A row as it was, to be put back later.
pub(crate) struct Backup {
    incarnation: u64,
    payload: Vec<u8>,
    age: Duration,
    due_in: Duration,
}

/// Copies the row, which must be of the first revision.
pub(crate) async fn back_up(store: &MemoryStore, key: &StoreKey) -> Option<Backup> {
    let row = row(store, key).await?;
    let token = row.token.filter(|_| row.version.revision == 1)?;
    let payload = token.payload.expose_secret().clone();
    let incarnation = row.version.incarnation;
    Some(Backup { incarnation, payload, age: token.age, due_in: token.due_in })
}

/// Puts the row back to what it was `passed` ago.
pub(crate) async fn restore(
    store: &MemoryStore,
    key: &StoreKey,
    backup: &Backup,
    passed: Duration,
) {
    let token = StoredToken {
        payload: SecretBox::new(Box::new(backup.payload.clone())),
        age: backup.age + passed,
        due_in: backup.due_in.saturating_sub(passed),
    };
    let _ = store.forget(key, None).await;
    seed_row(store, key, Version { incarnation: backup.incarnation, revision: 1 }, token).await;
}

impl GatedStore {
    /// Makes one call. `key` is the row that the call may change.
    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        key: Option<&'a StoreKey>,
        effect: StoreFuture<'a, T>,
        seen: impl FnOnce(&T) + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let effect = async {
                let outcome = effect.await?;
                seen(&outcome);
                if let Some(key) = key {
                    let stored = pair(row(&self.store, key).await.as_ref());
                    self.world.lock().changed(self.process, call, stored);
                }
                Ok((outcome, self.world.lock().store_holds_living()))
            };
            let broken = |broken| {
                Err(Error::store(match broken {
                    Broken::Before => "the store failed before the call",
                    _ => "the store's answer was lost",
                }))
            };
            let answered = self.world.gated(self.process, call, effect, broken).await;
            let saw_living = answered.as_ref().is_ok_and(|(_, living)| *living);
            self.world.lock().laws.store_answered(self.process, saw_living);
            answered.map(|(outcome, _)| outcome)
        })
    }
}

impl TokenStore for GatedStore {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.call(Call::Read, None, self.store.read(keys), |_| ())
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        let asked = self.world.lock().now;
        self.call(Call::Claim, None, self.store.claim(key, claim), move |claimed| {
            if claimed.granted {
                let held = pair(claimed.row.as_ref());
                self.world.lock().granted(self.process, held, asked + claim.lease);
            }
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        self.call(Call::Save, Some(key), self.store.save(key, save), |_| ())
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        let released = self.store.release(key, version, holder, release);
        self.call(Call::Release, None, released, |()| ())
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        self.call(Call::Forget, Some(key), self.store.forget(key, version), |_| ())
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.store.redeem(state, keep)
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        self.call(Call::Due, None, self.store.due(realm, after, limit), |_| ())
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        self.store.scan(realm, after, limit)
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.store.rewrite(rewrites)
    }
}

//! A store that fails when a test wants it to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::store::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Rewrite, Row, Save, StoreFuture,
    StoreKey, TokenStore, Version,
};

/// Wraps a [`TokenStore`] and makes its calls slow or has them fail, before or after they took
/// effect. Clones share their faults.
///
/// ```
/// use hurdlr_oauth2::store::MemoryStore;
/// use hurdlr_oauth2::testing::{FakeHurdlr, FaultyStore};
/// use hurdlr_oauth2::{ErrorKind, Hurdlr, TokenManager, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .build()?;
/// let store = FaultyStore::new(MemoryStore::new());
/// let manager = TokenManager::builder(hurdlr, store.clone()).build()?;
///
/// let ann = manager.enterprise_user(&UserId::new("ann")?);
/// store.go_down();
/// assert_eq!(ann.token().await.unwrap_err().kind(), ErrorKind::Store);
/// assert_eq!(fake.count().total(), 0); // nothing was sent that could not have been saved
/// store.recover();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FaultyStore<S> {
    store: Arc<S>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Default)]
struct Plan {
    delay: Duration,
    decide: Option<Box<dyn FnMut(StoreCall) -> Option<StoreFault> + Send>>,
    calls: Vec<StoreCall>,
}

/// A call to a [`TokenStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the method of its name")]
pub enum StoreCall {
    Read,
    Claim,
    Save,
    Release,
    Forget,
    Redeem,
    Due,
    Scan,
    Rewrite,
}

/// When a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFault {
    /// Nothing happened.
    Before,
    /// It took effect, and the caller is told that it failed.
    After,
}

impl<S> FaultyStore<S> {
    /// Wraps `store`; no call fails yet.
    pub fn new(store: S) -> Self {
        Self { store: Arc::new(store), plan: Arc::default() }
    }

    /// Makes each call take this long, by tokio's clock, before it takes effect and again after.
    pub fn delay(&self, delay: Duration) {
        self.with(|plan| plan.delay = delay);
    }

    /// Asks `decide` about every call from now on.
    pub fn plan(&self, decide: impl FnMut(StoreCall) -> Option<StoreFault> + Send + 'static) {
        self.with(|plan| plan.decide = Some(Box::new(decide)));
    }

    /// From now on every call fails, as when the database is down.
    pub fn go_down(&self) {
        self.plan(|_| Some(StoreFault::Before));
    }

    /// From now on no call fails.
    pub fn recover(&self) {
        self.with(|plan| plan.decide = None);
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<StoreCall> {
        self.with(|plan| plan.calls.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Plan) -> T) -> T {
        act(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn faulty<'a, T: Send + 'a>(
        &'a self,
        call: StoreCall,
        act: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let (delay, fault) = self.with(|plan| {
            plan.calls.push(call);
            (plan.delay, plan.decide.as_mut().and_then(|decide| decide(call)))
        });
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if fault == Some(StoreFault::Before) {
                return Err(Error::store(format!("{call:?} failed before it took effect")));
            }
            let outcome = act().await?;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            match fault {
                Some(_) => Err(Error::store(format!("{call:?} failed after it took effect"))),
                None => Ok(outcome),
            }
        })
    }
}

impl<S: TokenStore> TokenStore for FaultyStore<S> {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.faulty(StoreCall::Read, move || self.store.read(keys))
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        self.faulty(StoreCall::Claim, move || self.store.claim(key, claim))
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        self.faulty(StoreCall::Save, move || self.store.save(key, save))
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        self.faulty(StoreCall::Release, move || self.store.release(key, version, holder, release))
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        self.faulty(StoreCall::Forget, move || self.store.forget(key, version))
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.faulty(StoreCall::Redeem, move || self.store.redeem(state, keep))
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        self.faulty(StoreCall::Due, move || self.store.due(realm, after, limit))
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        self.faulty(StoreCall::Scan, move || self.store.scan(realm, after, limit))
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.faulty(StoreCall::Rewrite, move || self.store.rewrite(rewrites))
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("store", &self.store).finish_non_exhaustive()
    }
}

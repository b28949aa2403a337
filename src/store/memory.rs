//! The store of one process: the same promises as the others, kept for as long as it lives.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::OccupiedEntry;
use quick_cache::DefaultHashBuilder;
use secrecy::{ExposeSecret, SecretBox};

use super::{
    Claim, Claimed, Put, Realm, Release, Row, RowKind, StoreFuture, StoreKey, StoredToken,
    TokenStore, Version,
};
use crate::clock::{Clock, SharedClock, SystemClock, Timestamp};
use crate::user::UserId;

/// Keeps tokens in this process's memory, for one process and for development. What it holds ends
/// with the process: people must log in again after a restart.
///
/// Clone it to share it between several managers of one process. Memory is not bounded: it grows
/// with the number of users, as a database would.
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

struct Shared {
    clock: SharedClock,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    rows: Rows,
    redeemed: HashMap<[u8; 32], (Timestamp, Duration), DefaultHashBuilder>,
    /// How many states are looked through for those that are over.
    redeemed_at_sweep: usize,
}

/// The rows by their keys, each with its hash: a table that grows would look at all the ids again.
#[derive(Default)]
struct Rows {
    table: HashTable<(u64, StoreKey, Stored)>,
    hasher: DefaultHashBuilder,
}

/// A row by the store's clock.
struct Stored {
    version: Version,
    token: Option<Stamped>,
    bar: Option<Bar>,
    refused: bool,
    in_flight: bool,
}

/// A token as it was when it came.
struct Stamped {
    token: StoredToken,
    at: Timestamp,
}

/// What keeps others from claiming a row, for as long as it lasts.
struct Bar {
    since: Timestamp,
    lasts: Duration,
    /// Of the lease that it is; none where it is the pause after one.
    lease_id: Option<u64>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store that goes by the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock)
    }

    /// An empty store that goes by `clock`: that of the `Hurdlr` it serves, if that is turned.
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        Self(Arc::new(Shared { clock: SharedClock::new(clock), kept: Mutex::default() }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing in here panics half-way through a change.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one atomic step.
    fn step<'a, T: Send + 'a>(
        &'a self,
        step: impl FnOnce(&mut Kept, Timestamp) -> T + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let now = self.0.clock.now();
            Ok(step(&mut self.kept(), now))
        })
    }
}

impl Rows {
    fn get(&self, key: &StoreKey) -> Option<&Stored> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |row| row.1 == *key).map(|row| &row.2)
    }

    fn get_mut(&mut self, key: &StoreKey) -> Option<&mut Stored> {
        let hash = self.hasher.hash_one(key);
        self.table.find_mut(hash, |row| row.1 == *key).map(|row| &mut row.2)
    }

    fn get_or_insert_with(&mut self, key: &StoreKey, make: impl FnOnce() -> Stored) -> &mut Stored {
        let hash = self.hasher.hash_one(key);
        let entry = self.table.entry(hash, |row| row.1 == *key, |row| row.0);
        &mut entry.or_insert_with(|| (hash, key.clone(), make())).into_mut().2
    }

    fn remove(&mut self, key: &StoreKey) -> bool {
        let hash = self.hasher.hash_one(key);
        let found = self.table.find_entry(hash, |row| row.1 == *key);
        found.map(OccupiedEntry::remove).is_ok()
    }

    fn iter(&self) -> impl Iterator<Item = (&StoreKey, &Stored)> {
        self.table.iter().map(|(_, key, stored)| (key, stored))
    }
}

/// What is left of `span` since `start`; none when it has passed.
fn left(start: Timestamp, span: Duration, now: Timestamp) -> Option<Duration> {
    span.checked_sub(now.since(start)).filter(|left| !left.is_zero())
}

impl Bar {
    fn left(&self, now: Timestamp) -> Option<Duration> {
        left(self.since, self.lasts, now)
    }
}

impl Stored {
    fn new(version: Version) -> Self {
        Self { version, token: None, bar: None, refused: false, in_flight: false }
    }

    fn with_token(version: Version, token: StoredToken, now: Timestamp) -> Self {
        Self { token: Some(Stamped { token, at: now }), ..Self::new(version) }
    }

    /// The lease that was taken last, and not released.
    fn lease(&self) -> Option<&Bar> {
        self.bar.as_ref().filter(|bar| bar.lease_id.is_some())
    }

    fn pause(&self) -> Option<&Bar> {
        self.bar.as_ref().filter(|bar| bar.lease_id.is_none())
    }

    fn is_free(&self, now: Timestamp) -> bool {
        self.bar.as_ref().and_then(|bar| bar.left(now)).is_none()
    }

    fn row(&self, now: Timestamp) -> Row {
        Row {
            version: self.version,
            token: self.token.as_ref().map(|token| token.hand_out(now)),
            leased_for: self.lease().and_then(|lease| lease.left(now)),
            not_before: self.pause().and_then(|pause| pause.left(now)),
            refused: self.refused,
            in_flight: self.in_flight,
        }
    }

    fn claim(&mut self, claim: &Claim, now: Timestamp) -> bool {
        let expected = match claim.expected {
            Some(version) => version == self.version,
            None => self.token.is_none(),
        };
        let lease_id = Some(claim.lease_id);
        let ours = self.lease().is_some_and(|lease| lease.lease_id == lease_id);
        if !expected || self.refused || !(ours || self.is_free(now)) {
            return false;
        }
        self.in_flight |= self.lease().is_some() && !ours;
        self.bar = Some(Bar { since: now, lasts: claim.lease, lease_id });
        true
    }

    fn is_due(&self, now: Timestamp) -> Option<Duration> {
        let Stamped { token, at } = self.token.as_ref()?;
        let over = now.since(*at).checked_sub(token.due_in)?;
        (self.is_free(now) && !self.refused).then_some(over)
    }
}

impl Stamped {
    fn hand_out(&self, now: Timestamp) -> StoredToken {
        let passed = now.since(self.at);
        StoredToken {
            payload: SecretBox::new(Box::new(self.token.payload.expose_secret().clone())),
            age: self.token.age + passed,
            due_in: self.token.due_in.saturating_sub(passed),
        }
    }
}

/// Where a user of a realm is met in a walk.
fn place(key: &StoreKey) -> (RowKind, &UserId) {
    (key.kind(), key.subject())
}

impl TokenStore for MemoryStore {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Row>>> {
        self.step(move |kept, now| {
            keys.iter().map(|key| kept.rows.get(key).map(|stored| stored.row(now))).collect()
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        self.step(move |kept, now| {
            let stored = match claim.expected {
                Some(_) => kept.rows.get_mut(key),
                None => Some(kept.rows.get_or_insert_with(key, || {
                    Stored::new(Version { incarnation: claim.incarnation, revision: 0 })
                })),
            };
            match stored {
                Some(stored) => {
                    Claimed { granted: stored.claim(&claim, now), row: Some(stored.row(now)) }
                }
                None => Claimed { granted: false, row: None },
            }
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a StoreKey,
        consumed: Version,
        token: StoredToken,
    ) -> StoreFuture<'a, bool> {
        self.step(move |kept, now| match kept.rows.get_mut(key) {
            Some(stored) if stored.version == consumed => {
                *stored = Stored::with_token(consumed.next(), token, now);
                true
            }
            _ => false,
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a StoreKey,
        incarnation: u64,
        token: StoredToken,
        put: Put,
    ) -> StoreFuture<'a, bool> {
        self.step(move |kept, now| {
            let version = Version { incarnation, revision: 1 };
            let stored = kept.rows.get_or_insert_with(key, || Stored::new(version));
            if stored.token.is_some() {
                if stored.version.incarnation == incarnation {
                    return true;
                }
                if put == Put::IfAbsent {
                    return false;
                }
            }
            *stored = Stored::with_token(version, token, now);
            true
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        lease_id: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        self.step(move |kept, now| {
            let Some(stored) = kept.rows.get_mut(key).filter(|row| row.version == version) else {
                return;
            };
            stored.refused |= release.refused;
            if stored.lease().is_some_and(|lease| lease.lease_id == Some(lease_id)) {
                stored.bar = Some(Bar { since: now, lasts: release.not_before, lease_id: None });
            }
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey) -> StoreFuture<'a, bool> {
        self.step(move |kept, _| kept.rows.remove(key))
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.step(move |kept, now| {
            let is_remembered =
                |(since, keep): &(Timestamp, Duration)| left(*since, *keep, now).is_some();
            // As rarely as they double, so that a login does not cost more where there are many.
            if kept.redeemed.len() >= kept.redeemed_at_sweep {
                kept.redeemed.retain(|_, redeemed| is_remembered(redeemed));
                kept.redeemed_at_sweep = 2 * kept.redeemed.len() + 64;
            }
            let first = !kept.redeemed.get(state).is_some_and(is_remembered);
            if first {
                kept.redeemed.insert(*state, (now, keep));
            }
            first
        })
    }

    fn due<'a>(&'a self, realm: &'a Arc<Realm>, limit: usize) -> StoreFuture<'a, Vec<StoreKey>> {
        self.step(move |kept, now| {
            let mut due: Vec<_> = kept
                .rows
                .iter()
                .filter(|(key, _)| key.realm() == realm && key.kind() != RowKind::KeepAliveLock)
                .filter_map(|(key, stored)| Some((stored.is_due(now)?, key)))
                .collect();
            due.sort_unstable_by_key(|(over, _)| std::cmp::Reverse(*over));
            due.into_iter().take(limit).map(|(_, key)| key.clone()).collect()
        })
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Row)>> {
        self.step(move |kept, now| {
            let mut rest: Vec<_> = kept
                .rows
                .iter()
                .filter(|(key, stored)| key.realm() == realm && stored.token.is_some())
                .filter(|(key, _)| after.is_none_or(|after| place(key) > place(after)))
                .collect();
            let order =
                |one: &(&StoreKey, _), other: &(&StoreKey, _)| place(one.0).cmp(&place(other.0));
            if limit < rest.len() {
                rest.select_nth_unstable_by(limit, order);
                rest.truncate(limit);
            }
            rest.sort_unstable_by(order);
            rest.into_iter().map(|(key, stored)| (key.clone(), stored.row(now))).collect()
        })
    }

    fn rewrite<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        old: &'a SecretBox<Vec<u8>>,
        new: SecretBox<Vec<u8>>,
    ) -> StoreFuture<'a, bool> {
        self.step(move |kept, _| {
            let held = kept.rows.get_mut(key).filter(|stored| stored.version == version);
            match held.and_then(|stored| stored.token.as_mut()) {
                Some(Stamped { token, .. })
                    if token.payload.expose_secret() == old.expose_secret() =>
                {
                    token.payload = new;
                    true
                }
                _ => false,
            }
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("rows", &self.kept().rows.table.len()).finish()
    }
}

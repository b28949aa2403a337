//! The store of one process, and the shortest reading of the contract: one method per promise.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretBox};

use super::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Rewrite, Row, RowKind, Save,
    StoreFuture, StoreKey, StoredToken, TokenStore, Version,
};
use crate::clock::{Clock, SharedClock, SystemClock, Timestamp, millis};
use crate::error::Error;
use crate::wire::user::UserId;

/// Keeps tokens in this process's memory, for one process and for development. It ends with the
/// process: people must log in again after a restart.
///
/// Clone it to share it between several managers of one process. Memory is not bounded: it grows
/// with the number of users, as a database would.
#[derive(Clone)]
pub struct MemoryStore(Arc<Mutex<Tables>>);

/// All that the store holds. Times are milliseconds by [`Tables::now`].
struct Tables {
    clock: SharedClock,
    /// The store's own time, which never runs backwards, and when it was read last.
    now: u64,
    read_at: Timestamp,
    rows: BTreeMap<StoreKey, Stored>,
    /// The rows of each realm that hold a token and are not refused, by due time.
    due: HashMap<Arc<Realm>, BTreeSet<DueCursor>>,
    /// The digests of redeemed logins, each until when it is remembered.
    redeemed: HashMap<[u8; 32], u64>,
    /// How many digests there may be before the next sweep.
    redeemed_at_sweep: usize,
}

struct Stored {
    version: Version,
    /// The token as it came, and when.
    token: Option<StoredToken>,
    stamped_at: u64,
    /// The last lease that was not released, and until when it lives.
    lease: Option<(u64, u64)>,
    not_before: u64,
    refused: bool,
    in_flight: bool,
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

    /// An empty store that goes by `clock`: that of the `Hurdlr` it serves, if tests advance it.
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        let clock = SharedClock::new(clock);
        let tables = Tables {
            now: 0,
            read_at: clock.now(),
            clock,
            rows: BTreeMap::new(),
            due: HashMap::new(),
            redeemed: HashMap::new(),
            redeemed_at_sweep: 0,
        };
        Self(Arc::new(Mutex::new(tables)))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // No step panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one atomic step.
    fn step<'a, T: Send + 'a>(
        &'a self,
        step: impl FnOnce(&mut Tables) -> T + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let mut tables = self.tables();
            let read_at = tables.clock.now();
            // Both clocks of a timestamp are counted, so neither one that stands still nor one that
            // was set back makes a token younger.
            tables.now = tables.now.saturating_add(read_at.millis_since(tables.read_at));
            tables.read_at = read_at;
            Ok(step(&mut tables))
        })
    }
}

impl Tables {
    /// Changes the row of `key`, if there is one and it stays, and keeps the index of due rows.
    fn change<T>(
        &mut self,
        key: &StoreKey,
        change: impl FnOnce(&mut Stored, u64) -> T,
    ) -> Option<T> {
        let stored = self.rows.get_mut(key)?;
        let before = stored.due_at();
        let outcome = change(stored, self.now);
        let after = stored.due_at();
        if before != after {
            self.reindex(key, before, after);
        }
        Some(outcome)
    }

    fn reindex(&mut self, key: &StoreKey, before: Option<u64>, after: Option<u64>) {
        let due = self.due.entry(Arc::clone(&key.realm)).or_default();
        let cursor = |due_at| DueCursor { due_at, kind: key.kind, subject: key.subject.clone() };
        if let Some(before) = before.map(cursor) {
            due.remove(&before);
        }
        due.extend(after.map(cursor));
    }
}

/// The span from `now` to `until`; `None` when it has passed.
fn left(until: u64, now: u64) -> Option<Duration> {
    until.checked_sub(now).filter(|left| *left > 0).map(Duration::from_millis)
}

impl Stored {
    fn without_token(version: Version) -> Self {
        Self {
            version,
            token: None,
            stamped_at: 0,
            lease: None,
            not_before: 0,
            refused: false,
            in_flight: false,
        }
    }

    fn row(&self, now: u64) -> Row {
        let passed = Duration::from_millis(now - self.stamped_at);
        let token = |token: &StoredToken| StoredToken {
            payload: SecretBox::new(Box::new(token.payload.expose_secret().clone())),
            age: token.age + passed,
            due_in: token.due_in.saturating_sub(passed),
        };
        Row {
            version: self.version,
            token: self.token.as_ref().map(token),
            leased_for: self.lease.and_then(|(_, until)| left(until, now)),
            not_before: left(self.not_before, now),
            refused: self.refused,
            in_flight: self.in_flight,
        }
    }

    fn claim(&mut self, claim: &Claim, now: u64) -> bool {
        let is_known = claim.known.map_or(self.token.is_none(), |known| known == self.version);
        let granted = is_known && !self.refused && self.is_free(Some(claim.holder), now);
        if granted {
            self.in_flight |= self.lease.is_some();
            self.lease = Some((claim.holder, now.saturating_add(millis(claim.lease))));
        }
        granted
    }

    fn release(&mut self, holder: u64, release: Release, now: u64) {
        let Release { not_before, refused, in_flight } = release;
        self.in_flight |= in_flight;
        self.not_before = self.not_before.max(now.saturating_add(millis(not_before)));
        if self.lease.is_some_and(|lease| lease.0 == holder) {
            self.lease = None;
            self.refused |= refused;
        }
    }

    /// The time at which the row is due; `None` where it never is.
    fn due_at(&self) -> Option<u64> {
        let token = self.token.as_ref().filter(|_| !self.refused)?;
        Some(self.stamped_at.saturating_add(millis(token.due_in)))
    }

    /// Whether a lease may be granted to `holder` by now.
    fn is_free(&self, holder: Option<u64>, now: u64) -> bool {
        let ends = |(by, until)| Some(by) == holder || until <= now;
        self.not_before <= now && self.lease.is_none_or(ends)
    }
}

impl TokenStore for MemoryStore {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.step(move |tables| {
            let row = |key| Ok(tables.rows.get(key).map(|stored| stored.row(tables.now)));
            keys.iter().map(row).collect()
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        self.step(move |tables| {
            let mut claim = claim;
            if let Some(incarnation) = claim.create
                && !tables.rows.contains_key(key)
            {
                claim.known = None;
                let version = Version { incarnation, revision: 0 };
                tables.rows.insert(key.clone(), Stored::without_token(version));
            }
            let claimed = tables.change(key, |stored, now| Claimed {
                granted: stored.claim(&claim, now),
                row: Some(stored.row(now)),
            });
            claimed.unwrap_or(Claimed { granted: false, row: None })
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        self.step(move |tables| {
            let saved = tables.change(key, |stored, now| {
                let is_unchanged = stored.version == save.over;
                if is_unchanged {
                    let cleared = Stored::without_token(save.version);
                    *stored = Stored { token: Some(save.token), stamped_at: now, ..cleared };
                }
                is_unchanged
            });
            saved.unwrap_or(false)
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        self.step(move |tables| {
            tables.change(key, |stored, now| {
                if stored.version == version {
                    stored.release(holder, release, now);
                }
            });
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        self.step(move |tables| {
            let there = tables.rows.get(key).map(|stored| stored.version);
            let removes = there.is_some_and(|there| version.is_none_or(|meant| meant == there));
            if removes && let Some(stored) = tables.rows.remove(key) {
                tables.reindex(key, stored.due_at(), None);
            }
            removes
        })
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.step(move |tables| {
            let now = tables.now;
            // Swept as rarely as they double, so that a login costs no more where there are many.
            if tables.redeemed.len() >= tables.redeemed_at_sweep {
                tables.redeemed.retain(|_, until| *until > now);
                tables.redeemed_at_sweep = 2 * tables.redeemed.len() + 64;
            }
            let first = tables.redeemed.get(state).is_none_or(|until| *until <= now);
            if first {
                tables.redeemed.insert(*state, now.saturating_add(millis(keep)));
            }
            first
        })
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        self.step(move |tables| {
            let Some(due) = tables.due.get(realm) else {
                return Vec::new();
            };
            let row = |cursor: &DueCursor| {
                let key = StoreKey::new(Arc::clone(realm), cursor.kind, cursor.subject.clone());
                let is_free =
                    tables.rows.get(&key).is_some_and(|row| row.is_free(None, tables.now));
                is_free.then(|| DueRow { cursor: cursor.clone(), key: Ok(key) })
            };
            due.range((after.map_or(Unbounded, Excluded), Unbounded))
                .take_while(|cursor| cursor.due_at <= tables.now)
                .filter_map(row)
                .take(limit)
                .collect()
        })
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        self.step(move |tables| {
            let start = match after {
                Some(after) => Excluded(after.clone()),
                None => {
                    Included(StoreKey::new(realm.clone(), RowKind::Login, UserId::internal("")))
                }
            };
            let rows = tables.rows.range((start, Unbounded));
            rows.take_while(|(key, _)| key.realm() == realm)
                .filter(|(_, stored)| stored.token.is_some())
                .take(limit)
                .map(|(key, stored)| (key.clone(), Ok(stored.row(tables.now))))
                .collect()
        })
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.step(move |tables| {
            let rewrite = |Rewrite { key, version, old, new }: Rewrite| {
                let stored = tables.rows.get_mut(&key).filter(|stored| stored.version == version);
                match stored.and_then(|stored| stored.token.as_mut()) {
                    Some(token) if token.payload.expose_secret() == old.expose_secret() => {
                        token.payload = new;
                        true
                    }
                    _ => false,
                }
            };
            rewrites.into_iter().map(rewrite).collect()
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("rows", &self.tables().rows.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    /// All of them by one moment of the system's clock.
    #[derive(Debug)]
    struct StoppedClock(Timestamp);

    impl Clock for StoppedClock {
        fn now(&self) -> Timestamp {
            self.0
        }

        fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(std::future::pending())
        }
    }

    /// Logins come for as long as the process runs.
    #[tokio::test]
    async fn only_live_logins_are_remembered() {
        let store = MemoryStore::with_clock(StoppedClock(SystemClock.now()));
        let state = |number: u32| {
            let mut state = [0; 32];
            state[..4].copy_from_slice(&number.to_be_bytes());
            state
        };
        for number in 0..1_000 {
            let keep = Duration::from_secs(u64::from(number < 10));
            assert!(store.redeem(&state(number), keep).await.unwrap());
        }
        for number in 0..10 {
            assert!(!store.redeem(&state(number), Duration::ZERO).await.unwrap());
        }
        let remembered = store.tables().redeemed.len();
        assert!(remembered < 100, "{remembered}");
    }

    #[test]
    fn debug_tells_the_number_of_rows() {
        assert_eq!(format!("{:?}", MemoryStore::new()), "MemoryStore { rows: 0 }");
    }
}

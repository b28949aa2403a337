//! The store of one process: the same promises as the others, kept for as long as it lives.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::DefaultHashBuilder;
use secrecy::{ExposeSecret, SecretBox};

use super::{
    Claim, Claimed, Put, Realm, Release, Row, StoreFuture, StoreKey, StoredToken, TokenStore,
    UserKind, Version,
};
use crate::clock::{Clock, Moment, SharedClock, SystemClock};
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
    rows: HashMap<StoreKey, Stored, DefaultHashBuilder>,
    redeemed: HashMap<[u8; 32], (Moment, Duration), DefaultHashBuilder>,
    /// How many states are looked through for those that are over.
    redeemed_at_sweep: usize,
}

/// A row by the store's clock.
struct Stored {
    version: Version,
    token: Option<Stamped>,
    lease: Option<Lease>,
    not_before: Option<(Moment, Duration)>,
    refused: bool,
    in_flight: bool,
}

struct Stamped {
    payload: SecretBox<Vec<u8>>,
    age: Duration,
    due_in: Duration,
    at: Moment,
}

struct Lease {
    id: u64,
    taken: Moment,
    lasts: Duration,
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
        step: impl FnOnce(&mut Kept, Moment) -> T + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let now = self.0.clock.now();
            Ok(step(&mut self.kept(), now))
        })
    }
}

/// What is left of `span` since `start`; none when it has passed.
fn left(start: Moment, span: Duration, now: Moment) -> Option<Duration> {
    span.checked_sub(now.since(start)).filter(|left| !left.is_zero())
}

impl Stored {
    fn new(version: Version) -> Self {
        Self {
            version,
            token: None,
            lease: None,
            not_before: None,
            refused: false,
            in_flight: false,
        }
    }

    fn with_token(version: Version, token: Stamped) -> Self {
        Self { token: Some(token), ..Self::new(version) }
    }

    fn leased_for(&self, now: Moment) -> Option<Duration> {
        self.lease.as_ref().and_then(|lease| left(lease.taken, lease.lasts, now))
    }

    fn not_before(&self, now: Moment) -> Option<Duration> {
        self.not_before.and_then(|(from, span)| left(from, span, now))
    }

    fn row(&self, now: Moment) -> Row {
        Row {
            version: self.version,
            token: self.token.as_ref().map(|token| token.hand_out(now)),
            leased_for: self.leased_for(now),
            not_before: self.not_before(now),
            refused: self.refused,
            in_flight: self.in_flight,
        }
    }

    fn claim(&mut self, claim: &Claim, now: Moment) -> bool {
        let expected = match claim.expected {
            Some(version) => version == self.version,
            None => self.token.is_none(),
        };
        let ours = self.lease.as_ref().is_some_and(|lease| lease.id == claim.lease_id);
        let free = ours || self.leased_for(now).is_none();
        if !expected || !free || self.refused || self.not_before(now).is_some() {
            return false;
        }
        self.in_flight |= self.lease.is_some() && !ours;
        self.lease = Some(Lease { id: claim.lease_id, taken: now, lasts: claim.lease });
        true
    }

    fn is_due(&self, now: Moment) -> Option<Duration> {
        let token = self.token.as_ref()?;
        let over = now.since(token.at).checked_sub(token.due_in)?;
        let free = self.leased_for(now).is_none() && self.not_before(now).is_none();
        (free && !self.refused).then_some(over)
    }
}

impl Stamped {
    fn new(token: StoredToken, now: Moment) -> Self {
        Self { payload: token.payload, age: token.age, due_in: token.due_in, at: now }
    }

    fn hand_out(&self, now: Moment) -> StoredToken {
        let passed = now.since(self.at);
        StoredToken {
            payload: SecretBox::new(Box::new(self.payload.expose_secret().clone())),
            age: self.age + passed,
            due_in: self.due_in.saturating_sub(passed),
        }
    }
}

/// Where a user of a realm is met in a walk.
fn place(key: &StoreKey) -> (UserKind, &UserId) {
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
                None => Some(kept.rows.entry(key.clone()).or_insert_with(|| {
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
                let token = Stamped::new(token, now);
                *stored = Stored::with_token(consumed.next(), token);
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
            let held = kept.rows.get(key).filter(|stored| stored.token.is_some());
            if let Some(stored) = held {
                if stored.version.incarnation == incarnation {
                    return true;
                }
                if put == Put::IfAbsent {
                    return false;
                }
            }
            let version = Version { incarnation, revision: 1 };
            let token = Stamped::new(token, now);
            kept.rows.insert(key.clone(), Stored::with_token(version, token));
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
            if stored.lease.as_ref().is_some_and(|lease| lease.id == lease_id) {
                stored.lease = None;
                stored.not_before = Some((now, release.not_before));
            }
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey) -> StoreFuture<'a, bool> {
        self.step(move |kept, _| kept.rows.remove(key).is_some())
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.step(move |kept, now| {
            let is_remembered =
                |(since, keep): &(Moment, Duration)| left(*since, *keep, now).is_some();
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
                .filter(|(key, _)| key.realm() == realm && key.kind() != UserKind::Walk)
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
                Some(token) if token.payload.expose_secret() == old.expose_secret() => {
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
        f.debug_struct("MemoryStore").field("rows", &self.kept().rows.len()).finish()
    }
}

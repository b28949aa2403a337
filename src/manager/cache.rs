//! The users in memory: bounded, and nobody is evicted whom somebody holds.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(feature = "metrics")]
use std::time::Duration;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, UnitWeighter};

use super::Inner;
use super::entry::Entry;
use super::meters;
#[cfg(feature = "metrics")]
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::RowKind;
use crate::user::UserId;

/// Users by kind and id.
pub(super) struct Users {
    map: Cache<Key, Arc<Entry>, UnitWeighter, DefaultHashBuilder, Pinning>,
    /// Held while a user is added, so that there are never two entries for one user.
    adding: Mutex<()>,
}

/// An entry as its own key, which saves the id from being kept twice.
#[derive(Clone)]
struct Key(Arc<Entry>);

/// What a user is looked up by.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sought<'a>(RowKind, &'a UserId);

impl Key {
    #[inline]
    fn sought(&self) -> Sought<'_> {
        Sought(self.0.kind(), self.0.subject())
    }
}

impl Hash for Sought<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0 as u8).hash(state);
        self.1.hash(state);
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sought().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.sought().equivalent(other)
    }
}

impl Eq for Key {}

impl Equivalent<Key> for Sought<'_> {
    #[inline]
    fn equivalent(&self, key: &Key) -> bool {
        *self == key.sought()
    }
}

/// The cache's own two references to an entry: as key and as value.
const OWN_REFERENCES: usize = 2;

/// Keeps every entry that somebody holds: a handle, a refresh under way, a token that is not saved
/// yet.
#[derive(Clone, Default)]
struct Pinning(DefaultLifecycle<Key, Arc<Entry>>);

impl Lifecycle<Key, Arc<Entry>> for Pinning {
    type RequestState =
        <DefaultLifecycle<Key, Arc<Entry>> as Lifecycle<Key, Arc<Entry>>>::RequestState;

    fn is_pinned(&self, _: &Key, entry: &Arc<Entry>) -> bool {
        Arc::strong_count(entry) > OWN_REFERENCES
    }

    fn on_evict(&self, state: &mut Self::RequestState, key: Key, entry: Arc<Entry>) {
        self.0.on_evict(state, key, entry);
    }
}

impl Users {
    pub(super) fn new(capacity: usize) -> Result<Self, Error> {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(u64::try_from(capacity).unwrap_or(u64::MAX))
            .build()
            .map_err(|source| Error::config("cache capacity").caused_by(source))?;
        let map = Cache::with_options(
            options,
            UnitWeighter,
            DefaultHashBuilder::default(),
            Pinning::default(),
        );
        Ok(Self { map, adding: Mutex::default() })
    }

    /// The user's entry, made where there is none.
    #[inline]
    pub(super) fn entry(&self, inner: &Arc<Inner>, kind: RowKind, subject: &UserId) -> Arc<Entry> {
        let found = self.map.get(&Sought(kind, subject));
        meters::looked_up(found.is_some());
        found.unwrap_or_else(|| self.add(inner, kind, subject))
    }

    #[cold]
    fn add(&self, inner: &Arc<Inner>, kind: RowKind, subject: &UserId) -> Arc<Entry> {
        let sought = Sought(kind, subject);
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.map.get(&sought) {
            return entry;
        }
        let entry = Arc::new(Entry::new(inner, kind, subject));
        self.map.insert(Key(Arc::clone(&entry)), Arc::clone(&entry));
        entry
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// How many users' tokens live, and not for longer than this.
    #[cfg(feature = "metrics")]
    pub(super) fn ending_within(&self, span: Duration, now: Timestamp) -> usize {
        self.map.iter().filter(|(_, entry)| entry.current.load().ends_within(span, now)).count()
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("len", &self.len()).finish_non_exhaustive()
    }
}

//! The users in memory.
//!
//! Two structures hold them. A bounded cache keeps the users who were asked for last. A table of
//! weak references finds every user that is in memory at all, because somebody holds a handle, a
//! task works on the user or the entry is pinned. So the cache may drop whom it likes, held users
//! cost it nothing, and there is never a second entry for one user.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashTable;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, UnitWeighter};

use super::entry::{Context, UserEntry};
use crate::error::Error;
use crate::metrics;
use crate::store::RowKind;
use crate::user::UserId;

/// A power of two. Each shard of the table has a lock of its own.
const SHARDS: usize = 64;

pub(super) struct Users {
    recent: Cache<
        Key,
        Arc<UserEntry>,
        UnitWeighter,
        DefaultHashBuilder,
        DefaultLifecycle<Key, Arc<UserEntry>>,
    >,
    shards: Box<[Mutex<HashTable<Weak<UserEntry>>>]>,
    hasher: DefaultHashBuilder,
    context: Arc<Context>,
}

/// An entry as its own key, which saves keeping the id twice.
#[derive(Clone)]
struct Key(Arc<UserEntry>);

/// The kind and id by which a user is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sought<'a>(RowKind, &'a UserId);

impl Sought<'_> {
    #[inline]
    fn is(self, entry: &UserEntry) -> bool {
        self.0 == entry.kind() && self.1 == entry.subject()
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
        Sought(self.0.kind(), self.0.subject()).hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || Sought(self.0.kind(), self.0.subject()).is(&other.0)
    }
}

impl Eq for Key {}

impl Equivalent<Key> for Sought<'_> {
    #[inline]
    fn equivalent(&self, key: &Key) -> bool {
        self.is(&key.0)
    }
}

impl Users {
    pub(super) fn new(capacity: usize, context: Arc<Context>) -> Result<Self, Error> {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(u64::try_from(capacity).unwrap_or(u64::MAX))
            .build()
            .map_err(|source| Error::config("cache capacity").caused_by(source))?;
        let hasher = DefaultHashBuilder::default();
        let recent =
            Cache::with_options(options, UnitWeighter, hasher.clone(), DefaultLifecycle::default());
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Ok(Self { recent, shards, hasher, context })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The user's entry, made where there is none.
    #[inline]
    pub(super) fn entry(&self, kind: RowKind, subject: &UserId) -> Arc<UserEntry> {
        let found = self.recent.get(&Sought(kind, subject));
        metrics::looked_up(found.is_some());
        found.unwrap_or_else(|| self.find_or_make(kind, subject))
    }

    #[cold]
    fn find_or_make(&self, kind: RowKind, subject: &UserId) -> Arc<UserEntry> {
        let sought = Sought(kind, subject);
        let hash = self.hasher.hash_one(sought);
        let entry = {
            let mut shard = self.shard(hash);
            let found = shard
                .find(hash, |weak| weak.upgrade().is_some_and(|entry| sought.is(&entry)))
                .and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let entry = Arc::new(UserEntry::new(&self.context, kind, subject));
                self.insert(&mut shard, hash, Arc::downgrade(&entry));
                entry
            })
        };
        // Not under the lock of the shard, since the entries that are evicted are dropped here.
        self.recent.insert(Key(Arc::clone(&entry)), Arc::clone(&entry));
        entry
    }

    /// Adds an entry to its shard. Where the shard is full, the references to entries that are gone
    /// are removed first. It grows where that leaves it more than half full.
    fn insert(&self, shard: &mut HashTable<Weak<UserEntry>>, hash: u64, entry: Weak<UserEntry>) {
        let hash_of = |weak: &Weak<UserEntry>| {
            let entry = weak.upgrade();
            entry.map_or(0, |entry| self.hasher.hash_one(Sought(entry.kind(), entry.subject())))
        };
        if shard.len() == shard.capacity() {
            let full = shard.len();
            shard.retain(|weak| weak.strong_count() > 0);
            if shard.len() > full / 2 {
                shard.reserve(full.max(16), hash_of);
            }
        }
        shard.insert_unique(hash, entry, hash_of);
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashTable<Weak<UserEntry>>> {
        // The upper bits, since the table goes by the lower ones and the uppermost seven.
        let shard = usize::try_from(hash >> 40).unwrap_or(0) % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All users in memory, a shard at a time, so that a task can yield in between.
    pub(super) fn shards(&self) -> impl Iterator<Item = Vec<Arc<UserEntry>>> {
        self.shards.iter().map(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.iter().filter_map(Weak::upgrade).collect()
        })
    }
}

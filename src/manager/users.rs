//! The users in memory.
//!
//! Two structures hold them. A bounded cache keeps the users who were asked for last. A table of
//! weak references finds every user that is in memory at all, because somebody holds a handle, a
//! task works on the user or the entry is pinned. So the cache may drop whom it likes, held users
//! cost it nothing, and there is never a second entry for one user.
//!
//! Both go by the hash of a user's kind and id. Of two users with the same hash, the cache keeps
//! the one who was asked for last.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashTable;
use quick_cache::DefaultHashBuilder;
use quick_cache::sync::Cache;

use super::entry::{Context, UserEntry};
use crate::metrics;
use crate::store::RowKind;
use crate::wire::user::UserId;

/// A power of two. Each shard of the table has a lock of its own.
const SHARDS: usize = 64;

type Shard = HashTable<Weak<UserEntry>>;

pub(super) struct Users {
    recent: Cache<u64, Arc<UserEntry>>,
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    pub(super) context: Arc<Context>,
}

impl Users {
    pub(super) fn new(capacity: usize, context: Arc<Context>) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        let hasher = DefaultHashBuilder::default();
        Self { recent: Cache::new(capacity), shards, hasher, context }
    }

    #[inline]
    fn hash(&self, kind: RowKind, subject: &UserId) -> u64 {
        self.hasher.hash_one((kind as u8, subject))
    }

    /// The user's entry, made where there is none.
    #[inline]
    pub(super) fn entry(&self, kind: RowKind, subject: &UserId) -> Arc<UserEntry> {
        let hash = self.hash(kind, subject);
        let found = self.recent.get(&hash).filter(|entry| entry.is(kind, subject));
        metrics::looked_up(found.is_some());
        found.unwrap_or_else(|| self.find_or_make(hash, kind, subject))
    }

    #[cold]
    fn find_or_make(&self, hash: u64, kind: RowKind, subject: &UserId) -> Arc<UserEntry> {
        let entry = {
            let mut shard = self.shard(hash);
            let is_sought =
                |weak: &Weak<UserEntry>| weak.upgrade().is_some_and(|it| it.is(kind, subject));
            let found = shard.find(hash, is_sought).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let entry = Arc::new(UserEntry::new(&self.context, kind, subject));
                self.insert(&mut shard, hash, Arc::downgrade(&entry));
                entry
            })
        };
        // Not under the lock of the shard, since the entries that are evicted are dropped here.
        self.recent.insert(hash, Arc::clone(&entry));
        entry
    }

    /// Adds an entry to its shard. Where the shard is full, the references to entries that are gone
    /// are removed first. It grows where that leaves it more than half full.
    fn insert(&self, shard: &mut Shard, hash: u64, entry: Weak<UserEntry>) {
        let hash_of = |weak: &Weak<UserEntry>| {
            weak.upgrade().map_or(0, |entry| self.hash(entry.kind(), entry.subject()))
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

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
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

//! Many users in memory: the memory they take, finding one of them, and holding more of them than
//! the cache has room for.

use std::fs;
use std::future::ready;
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::manager::UserHandle;
use hurdlr_oauth2::{TokenManager, UserId};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, UnitWeighter};

use crate::harness::Outcome;
use crate::nowhere::Nowhere;
use crate::{
    Size, capacity, count, hurdlr_of_nobody, manager_of, median, median_ratio, quartile, user,
};

/// The memory of a million users, and reads of users by id.
pub(crate) async fn bytes_and_reads_by_id(size: Size) -> Outcome {
    let before = resident_bytes();
    let manager = manager_of(hurdlr_of_nobody()?, Nowhere, size.users, Duration::ZERO).await?;
    let after = resident_bytes();
    if !(0..size.users).all(|n| manager.user(&user(n)).due_in().is_some()) {
        return Err("a user in memory was not found".into());
    }
    if let Some((before, after)) = before.zip(after) {
        size.figure("manager.bytes_per_user", (after - before) / count(size.users), "bytes");
    }

    let bare = Arc::new(bare_map(size.users)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        // The place of a user in a map makes a difference, so it is another one every time.
        let hot = user(size.users * round / size.rounds);
        // Each loop is a task: the place of a loop's state makes a difference, too.
        let read = tokio::spawn(read_by_id(manager.clone(), hot.clone(), size.reads));
        ours.push(size.per_read(read.await??));
        let looked_up = tokio::spawn(look_up(Arc::clone(&bare), hot, size.reads));
        theirs.push(size.per_read(looked_up.await?));
    }
    size.figure("manager.read_by_id_vs_map", median_ratio(&ours, &theirs), "x");
    size.figure("manager.read_by_id_ns", quartile(ours, 1), "ns");
    size.figure("manager.read_by_id_ns_map", quartile(theirs, 1), "ns");
    Ok(())
}

async fn read_by_id(
    manager: TokenManager,
    id: UserId,
    reads: u32,
) -> Result<Duration, hurdlr_oauth2::Error> {
    let start = Instant::now();
    for _ in 0..reads {
        let token = manager.user(black_box(&id)).token().await?;
        black_box(token.access_token());
    }
    Ok(start.elapsed())
}

/// Shares and awaits like the manager, so that the loop around it costs the same.
async fn look_up(map: Arc<BareMap>, id: UserId, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        black_box(ready(map.get(&Sought(0, black_box(&id)))).await);
    }
    start.elapsed()
}

/// New handles that are all held, beyond the cache's capacity and within it.
pub(crate) fn handles_beyond_capacity(size: Size) -> Outcome {
    let mut sides = [Vec::new(), Vec::new()];
    for _ in 0..size.long_rounds {
        let manager = TokenManager::builder(hurdlr_of_nobody()?, Nowhere)
            .cache_capacity(size.capacity)
            .build()?;
        let mut held = Vec::with_capacity(3 * size.capacity);
        let mut add_handles = |thousands: Range<usize>| {
            let ids: Vec<UserId> = thousands.map(user).collect();
            let start = Instant::now();
            held.extend(ids.iter().map(|id| manager.user(id)));
            start.elapsed().as_secs_f64() * 1e9 / count(size.capacity)
        };
        let within = add_handles(0..size.capacity);
        add_handles(size.capacity..2 * size.capacity);
        let beyond = add_handles(2 * size.capacity..3 * size.capacity);
        let held: Vec<UserHandle> = held;
        if manager.users_in_memory() != held.len() {
            return Err("a user who is held is not in memory".into());
        }
        sides[0].push(beyond);
        sides[1].push(within);
    }
    let [beyond, within] = sides;
    let ratio = median_ratio(&beyond, &within);
    size.figure("manager.handles_beyond_capacity_ratio", ratio, "x");
    size.figure("manager.handles_beyond_capacity_ns", median(beyond), "ns");
    size.figure("manager.handles_within_capacity_ns", median(within), "ns");
    Ok(())
}

/// The memory that this process holds, where the system tells.
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// A map like the manager's, with nothing in it but ids.
type BareMap =
    Cache<Key, Arc<Bare>, UnitWeighter, DefaultHashBuilder, DefaultLifecycle<Key, Arc<Bare>>>;

#[derive(Hash, PartialEq, Eq)]
struct Bare {
    kind: u8,
    subject: UserId,
}

#[derive(Clone, Hash, PartialEq, Eq)]
struct Key(Arc<Bare>);

struct Sought<'a>(u8, &'a UserId);

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0.kind && *self.1 == key.0.subject
    }
}

fn bare_map(users: usize) -> Outcome<BareMap> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(capacity(users))
        .weight_capacity(u64::try_from(capacity(users))?)
        .build()
        .map_err(|error| error.to_string())?;
    let map = BareMap::with_options(
        options,
        UnitWeighter,
        DefaultHashBuilder::default(),
        DefaultLifecycle::default(),
    );
    for n in 0..users {
        let bare = Arc::new(Bare { kind: 0, subject: user(n) });
        map.insert(Key(Arc::clone(&bare)), bare);
    }
    Ok(map)
}

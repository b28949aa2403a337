//! What the manager costs: to read a token, to keep a million users, to bring new ones in.
//!
//! ```text
//! cargo bench --bench manager
//! ```
//!
//! The two sides of a ratio alternate in one run, so that whatever else the machine does befalls
//! both. All of it goes by the production clock.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

mod harness;
use harness::{Job, Outcome, Provider, figure};

use std::fmt::{self, Write};
use std::fs;
use std::future::{Future, ready};
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hurdlr_oauth2::manager::UserHandle;
use hurdlr_oauth2::secrecy::SecretBox;
use hurdlr_oauth2::store::{
    Claim, Claimed, MemoryStore, Put, Realm, Release, Row, StoreFuture, StoreKey, StoredToken,
    TokenStore, Version,
};
use hurdlr_oauth2::{Clock, Hurdlr, SystemClock, Timestamp, TokenManager, UserId};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, UnitWeighter};

fn main() -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let job = Job::asked_for();
    if job == Job::Serve {
        return runtime.block_on(harness::serve());
    }
    let size = if job == Job::Measure { MEASURE } else { TRY };
    runtime.block_on(async {
        let mut readers = read_handle(size).await?;
        many_users(size).await?;
        readers.add(read_handle(size).await?);
        cold_users(size).await?;
        readers.add(read_handle(size).await?);
        readers.figures(size);
        Ok(())
    })
}

/// How much is done.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    reads: u32,
    users: usize,
    providers: usize,
    cold_rounds: usize,
    cold_users: usize,
}

const MEASURE: Size = Size {
    rounds: 8_001,
    reads: 5_000,
    users: 1_000_000,
    providers: 3,
    cold_rounds: 31,
    cold_users: 10_000,
};

const TRY: Size =
    Size { rounds: 1, reads: 10, users: 100, providers: 1, cold_rounds: 1, cold_users: 100 };

impl Size {
    /// One round says whether it works, and nothing else.
    fn figure(self, name: &str, value: f64, unit: &str) {
        if self.rounds > 1 {
            figure(name, value, unit);
        }
    }

    fn per_read(self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e9 / f64::from(self.reads)
    }
}

fn quartile(mut values: Vec<f64>, nth: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() * nth / 4]
}

fn median(values: Vec<f64>) -> f64 {
    quartile(values, 2)
}

/// A manager of `users` who logged in, in a store that keeps nothing.
async fn manager_of(users: usize) -> Outcome<TokenManager> {
    let hurdlr = Hurdlr::builder("client-id", "client-secret".into()).build()?;
    let manager = TokenManager::builder(hurdlr, Nowhere).cache_capacity(capacity(users)).build()?;
    // One text for all: what each would leave behind in the heap would be counted as the manager's.
    let mut json = String::with_capacity(512);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for n in 0..users {
        write_token(&mut json, n, now)?;
        let token = manager.hurdlr().import(&json)?;
        if !manager.import_if_absent(&user(n), token).await? {
            return Err("a user was there already".into());
        }
    }
    if manager.users_in_memory() != users {
        return Err("not all users are in memory".into());
    }
    Ok(manager)
}

/// A twentieth above what has to fit in, since each part of the map is bounded by itself.
fn capacity(users: usize) -> usize {
    users + users / 20 + 100
}

/// An id as long as a UUID.
fn user(n: usize) -> UserId {
    let id = format!("{n:08x}-0000-4000-8000-{n:012x}");
    // It is short and printable.
    UserId::new(id.as_str()).unwrap_or_else(|_| unreachable!())
}

/// Writes a token object with secrets as long as those of the provider's example.
fn write_token(json: &mut String, n: usize, created_at: u64) -> fmt::Result {
    json.clear();
    write!(
        json,
        r#"{{"access_token": "{n:064x}.{n:032x}", "refresh_token": "{n:064x}.{n:032x}",
            "expires_in": 7776000, "created_at": {created_at}, "scope": "token"}}"#
    )
}

async fn read(handle: &UserHandle, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        // An error would be a token short, which `read_handle` has ruled out.
        if let Ok(token) = handle.token().await {
            black_box(token.access_token());
        }
    }
    start.elapsed()
}

/// The least that a read can be: one load, and one look at the clock.
fn read_bare(swap: &ArcSwap<Timestamp>, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        let received = swap.load();
        black_box(SystemClock.now().since(**received));
    }
    start.elapsed()
}

/// Reading by a handle that is kept: on one thread, and on two at the same time.
async fn read_handle(size: Size) -> Outcome<Readers> {
    let manager = manager_of(1).await?;
    let handle = Arc::new(manager.user(&user(0)));
    handle.token().await?;

    let start = Arc::new(Start { barrier: Barrier::new(2), arrived: AtomicUsize::new(0) });
    let reader = |first: bool| {
        let (handle, start) = (Arc::clone(&handle), Arc::clone(&start));
        let bare = ArcSwap::from_pointee(SystemClock.now());
        let rounds = async move {
            let mut times = Times::default();
            for round in 1..=size.rounds.div_ceil(SITTINGS) {
                if round.is_multiple_of(AT_A_STRETCH) {
                    thread::sleep(Duration::from_secs(1));
                }
                start.barrier.wait();
                if first {
                    times.alone.push(size.per_read(read(&handle, size.reads).await));
                    times.bare.push(size.per_read(read_bare(&bare, size.reads)));
                }
                start.both();
                times.beside.push(size.per_read(read(&handle, size.reads).await));
                start.both();
                times.bare_beside.push(size.per_read(read_bare(&bare, size.reads)));
            }
            times
        };
        // A runtime each, so that they are never two tasks of one thread.
        thread::spawn(move || on_a_runtime(rounds))
    };
    let (one, other) = (reader(true), reader(false));
    let (one, other) = tokio::task::spawn_blocking(|| (one.join(), other.join())).await?;
    let one = one.map_err(|_| "a reader panicked")??;
    let other = other.map_err(|_| "a reader panicked")??;
    Ok(Readers { one, other })
}

/// What both readers measured.
struct Readers {
    one: Times,
    other: Times,
}

impl Readers {
    fn add(&mut self, later: Self) {
        self.one.add(later.one);
        self.other.add(later.other);
    }

    fn figures(self, size: Size) {
        let Self { one, other } = self;
        let beside = |one: Vec<f64>, other: Vec<f64>| {
            let rounds = one.into_iter().zip(other);
            quartile(rounds.map(|(one, other)| f64::midpoint(one, other)).collect(), 1)
        };
        let (alone, bare) = (quartile(one.alone, 1), quartile(one.bare, 1));
        let scaling = beside(one.beside, other.beside) / alone;
        // Two threads that have nothing in common: what the machine itself does to them.
        let bare_scaling = beside(one.bare_beside, other.bare_beside) / bare;
        size.figure("manager.read_handle_ns", alone, "ns");
        size.figure("manager.read_handle_ns_bare", bare, "ns");
        size.figure("manager.read_handle_scaling", scaling, "x");
        size.figure("manager.read_handle_scaling_bare", bare_scaling, "x");
    }
}

/// How often the reads are measured, with all the rest in between: a machine can have two threads
/// share one core for seconds, and the quartile is to be one of many such spans.
const SITTINGS: usize = 3;

/// How many rounds of reads go without a pause, for the same reason.
const AT_A_STRETCH: usize = 400;

/// Where two readers wait for each other.
struct Start {
    barrier: Barrier,
    arrived: AtomicUsize,
}

impl Start {
    fn both(&self) {
        self.barrier.wait();
        // To be woken takes one of them longer than the other.
        let arrived = self.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        while self.arrived.load(Ordering::Acquire) < arrived.next_multiple_of(2) {
            thread::yield_now();
        }
    }
}

/// What one of two readers measured, round by round.
#[derive(Default)]
struct Times {
    alone: Vec<f64>,
    bare: Vec<f64>,
    beside: Vec<f64>,
    bare_beside: Vec<f64>,
}

impl Times {
    fn add(&mut self, later: Self) {
        self.alone.extend(later.alone);
        self.bare.extend(later.bare);
        self.beside.extend(later.beside);
        self.bare_beside.extend(later.bare_beside);
    }
}

/// Runs `work` in a task of a runtime with one thread: this one.
fn on_a_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(async { tokio::spawn(work).await })?)
}

/// What a million users take, and what it takes to find one of them.
async fn many_users(size: Size) -> Outcome {
    let before = resident_bytes();
    let manager = manager_of(size.users).await?;
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        size.figure("manager.bytes_per_user", (after - before) / count(size.users), "bytes");
    }

    let bare = Arc::new(bare_map(size.users)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        // Where a user lies in a map makes a difference, so it is another one every time.
        let hot = user(size.users * round / size.rounds);
        // A task each: where the state of a loop lies makes a difference, too.
        let read = tokio::spawn(read_by_id(manager.clone(), hot.clone(), size.reads));
        ours.push(size.per_read(read.await??));
        let looked_up = tokio::spawn(look_up(Arc::clone(&bare), hot, size.reads));
        theirs.push(size.per_read(looked_up.await?));
    }
    let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs);
    size.figure("manager.read_by_id_vs_map", median(ratios.collect()), "x");
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

/// Shared and awaited as the manager is, so that the loop around it costs the same.
async fn look_up(map: Arc<BareMap>, id: UserId, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        black_box(ready(map.get(&Sought(0, black_box(&id)))).await);
    }
    start.elapsed()
}

/// The memory that this process holds, where the system tells.
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn count(users: usize) -> f64 {
    u32::try_from(users).map_or(f64::INFINITY, f64::from)
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

/// Users whom the manager has never seen, over the same grants by the client alone.
async fn cold_users(size: Size) -> Outcome {
    let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.providers {
        // The tables of one that has granted a million tokens are slow, and stop it when they grow.
        let provider = Provider::start()?;
        let hurdlr = provider.hurdlr()?;
        for round in 0..=size.cold_rounds {
            let (our_time, their_time) = cold_round(&hurdlr, size.cold_users, round).await?;
            // The first round is warming up.
            if round > 0 {
                ratios.push(our_time / their_time);
                ours.push(our_time);
                theirs.push(their_time);
            }
        }
    }
    size.figure("manager.cold_users_vs_bare", median(ratios), "x");
    let each = |times| median(times) * 1e6 / count(size.cold_users);
    size.figure("manager.cold_users_us", each(ours), "us");
    size.figure("manager.cold_users_us_bare", each(theirs), "us");
    Ok(())
}

/// How long it takes to have all users granted: by a manager, and by the client alone, in seconds.
async fn cold_round(hurdlr: &Hurdlr, users: usize, round: usize) -> Outcome<(f64, f64)> {
    let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new())
        .max_concurrent_refreshes(AT_ONCE)
        .build()?;
    let ours = {
        let manager = manager.clone();
        move |user| {
            let handle = manager.enterprise_user(&user);
            async move { handle.token().await.map(|token| drop(black_box(token))) }
        }
    };
    let theirs = {
        let hurdlr = hurdlr.clone();
        move |user| {
            let hurdlr = hurdlr.clone();
            async move { hurdlr.client_credentials(&user).await.map(|token| drop(black_box(token))) }
        }
    };
    let (mut our_time, mut their_time) = (Duration::ZERO, Duration::ZERO);
    for turn in 0..TURNS {
        let users = turn * users / TURNS..(turn + 1) * users / TURNS;
        if (round + turn).is_multiple_of(2) {
            our_time += grant_all(users.clone(), ours.clone()).await?;
            their_time += grant_all(users, theirs.clone()).await?;
        } else {
            their_time += grant_all(users.clone(), theirs.clone()).await?;
            our_time += grant_all(users, ours.clone()).await?;
        }
    }
    if manager.users_in_memory() != users {
        return Err("not all users are in memory".into());
    }
    Ok((our_time.as_secs_f64(), their_time.as_secs_f64()))
}

/// How many grants are under way at once.
const AT_ONCE: usize = 64;

/// How often the two sides of a round take turns: the machine changes its pace within one. Who goes
/// first changes with the rounds too, since the provider's tables grow at the same places each time.
const TURNS: usize = 10;

async fn grant_all<F>(
    users: Range<usize>,
    grant: impl Fn(UserId) -> F + Clone + Send + Sync + 'static,
) -> Outcome<Duration>
where
    F: Future<Output = Result<(), hurdlr_oauth2::Error>> + Send,
{
    let next = Arc::new(AtomicUsize::new(users.start));
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, grant) = (Arc::clone(&next), grant.clone());
        workers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= users.end {
                    return Outcome::Ok(());
                }
                grant(user(n)).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(start.elapsed())
}

/// A store that takes everything and keeps nothing: the tokens of a real fleet lie in a database,
/// and what is counted here is the manager's memory.
#[derive(Debug)]
struct Nowhere;

impl TokenStore for Nowhere {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<Option<Row>>> {
        Box::pin(async { Ok(keys.iter().map(|_| None).collect()) })
    }

    fn claim<'a>(&'a self, _: &'a StoreKey, _: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async { Ok(Claimed { granted: false, row: None }) })
    }

    fn save<'a>(&'a self, _: &'a StoreKey, _: Version, _: StoredToken) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn put<'a>(&'a self, _: &'a StoreKey, _: u64, _: StoredToken, _: Put) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn release<'a>(
        &'a self,
        _: &'a StoreKey,
        _: Version,
        _: u64,
        _: Release,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn forget<'a>(&'a self, _: &'a StoreKey) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn redeem<'a>(&'a self, _: &'a [u8; 32], _: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn due<'a>(&'a self, _: &'a Arc<Realm>, _: usize) -> StoreFuture<'a, Vec<StoreKey>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn scan<'a>(
        &'a self,
        _: &'a Arc<Realm>,
        _: Option<&'a StoreKey>,
        _: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Row)>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn rewrite<'a>(
        &'a self,
        _: &'a StoreKey,
        _: Version,
        _: &'a SecretBox<Vec<u8>>,
        _: SecretBox<Vec<u8>>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }
}

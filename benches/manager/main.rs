//! Costs of the manager: reading a token, keeping a million users, renewing and adding users.
//!
//! ```text
//! cargo bench --bench manager
//! ```
//!
//! The two sides of a ratio alternate in one run, so that other work on the machine affects both.
//! All times are real, by the production clock, except in `manager.walk_beside_slow_users`.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

#[path = "../harness/mod.rs"]
mod harness;
use harness::{Job, Outcome, figure};

mod cold_users;
mod many_users;
mod memory_store;
mod nowhere;
mod read_handle;
mod walk;

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::store::TokenStore;
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};

fn main() -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let job = Job::asked_for();
    if job == Job::Serve {
        return runtime.block_on(harness::serve());
    }
    let size = if job == Job::Measure { MEASURE } else { TRY };
    walk::beside_slow_users(size)?;
    runtime.block_on(async {
        let mut reads = read_handle::measure(size).await?;
        many_users::bytes_and_reads_by_id(size).await?;
        many_users::handles_beyond_capacity(size)?;
        reads.add(read_handle::measure(size).await?);
        cold_users::beside_bare(size).await?;
        walk::cold_beside_warm(size).await?;
        memory_store::due_users(size).await?;
        memory_store::realms(size).await?;
        reads.add(read_handle::measure(size).await?);
        reads.figures(size);
        Ok(())
    })
}

/// The amount of work.
#[derive(Clone, Copy)]
struct Size {
    /// Rounds of reads, and the reads of each.
    rounds: usize,
    reads: u32,
    /// Rounds of the comparisons that take longer.
    long_rounds: usize,
    /// Users in memory, or in a store.
    users: usize,
    /// The cache capacity in the comparison of handles within it and beyond.
    capacity: usize,
    /// Provider processes for cold users, and the users of each round.
    providers: usize,
    cold_users: usize,
    /// Users whom a walk renews.
    due_users: usize,
}

const MEASURE: Size = Size {
    rounds: 8_001,
    reads: 5_000,
    long_rounds: 15,
    users: 1_000_000,
    capacity: 100_000,
    providers: 3,
    cold_users: 10_000,
    due_users: 6_400,
};

const TRY: Size = Size {
    rounds: 1,
    reads: 10,
    long_rounds: 1,
    users: 100,
    capacity: 100,
    providers: 1,
    cold_users: 100,
    due_users: 128,
};

impl Size {
    /// Prints a figure, unless this run only tries whether the bench works.
    fn figure(self, name: &str, value: f64, unit: &str) {
        if self.rounds > 1 {
            figure(name, value, unit);
        }
    }

    /// Nanoseconds per read.
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

/// The median of the ratios of two sides, round by round.
fn median_ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
}

fn count(users: usize) -> f64 {
    u32::try_from(users).map_or(f64::INFINITY, f64::from)
}

/// The life of a token in the provider's example.
const LIFETIME: Duration = Duration::from_hours(90 * 24);

/// A client of nobody, for managers that send nothing.
fn hurdlr_of_nobody() -> Outcome<Hurdlr> {
    Ok(Hurdlr::builder("client-id", "client-secret".into()).build()?)
}

/// A manager of `users` who logged in so long ago, over `store`.
async fn manager_of(
    hurdlr: Hurdlr,
    store: impl TokenStore,
    users: usize,
    age: Duration,
) -> Outcome<TokenManager> {
    let manager = TokenManager::builder(hurdlr, store)
        .cache_capacity(capacity(users))
        // A store that keeps nothing has nothing to compare with.
        .revalidate_after(Duration::from_hours(24))
        .build()?;
    // One buffer for all: what each would leave behind in the heap would count as the manager's.
    let mut json = String::with_capacity(512);
    for n in 0..users {
        write_token(&mut json, n, age)?;
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

/// A cache capacity at which `users` fit. Each part of the cache is bounded by itself, so it is a
/// twentieth larger.
fn capacity(users: usize) -> usize {
    users + users / 20 + 5_000
}

/// An id as long as a UUID.
fn user(n: usize) -> UserId {
    let id = format!("{n:08x}-0000-4000-8000-{n:012x}");
    // It is short and printable.
    UserId::new(id.as_str()).unwrap_or_else(|_| unreachable!())
}

/// Writes a token object with secrets as long as those of the provider's example.
fn write_token(json: &mut String, n: usize, age: Duration) -> fmt::Result {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (created_at, life) = (now.saturating_sub(age).as_secs(), LIFETIME.as_secs());
    json.clear();
    write!(
        json,
        r#"{{"access_token": "{n:064x}.{n:032x}", "refresh_token": "{n:064x}.{n:032x}",
            "expires_in": {life}, "created_at": {created_at}, "scope": "token"}}"#
    )
}

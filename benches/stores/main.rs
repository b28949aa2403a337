//! The cost of durable stores: a refresh through the manager beside the bare statements and
//! request, a restart with many users, a seal and a walk that seals anew, the memory of a cached
//! user, round trips, and claims that are not granted.
//!
//! ```text
//! cargo bench --bench stores
//! ```
//!
//! The stores are a PostgreSQL server of the bench's own and a SQLite file, both in a temporary
//! folder; the provider is a process of its own and answers at once. The two sides of a ratio
//! alternate in one run, so that whatever else the machine does befalls both. Only the managers
//! whose users are refreshed have a clock of their own, which moves on until the tokens are due.

// Its output is what it is for.
#![allow(clippy::print_stdout)]

#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[path = "../harness/mod.rs"]
mod harness;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[path = "../../tests/support/postgres.rs"]
mod postgres;

#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod bare;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod claims;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod memory;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod network;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod refresh;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod reseal;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod seal;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod statements;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod warm_start;

#[cfg(all(feature = "postgres", feature = "sqlite"))]
fn main() -> harness::Outcome {
    use harness::Job;

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if runtime.block_on(memory::if_asked_for())? {
        return Ok(());
    }
    let measures = match Job::asked_for() {
        Job::Serve => return runtime.block_on(harness::serve()),
        job => job == Job::Measure,
    };
    let size = if measures { MEASURE } else { TRY };
    let server = postgres::Server::start();
    runtime.block_on(async {
        memory::of_a_user(&server, size).await?;
        seal::time(size).await?;
        seal::overhead(&server, size).await?;
        claims::ungranted_wal(&server, size).await?;
        warm_start::time(&server, size).await?;
        reseal::beside_single_rows(size).await?;
        refresh::beside_bare(&server, size).await
    })
}

/// Has itself built with what it needs. A feature that a bench needs can be one of this crate as
/// its own dev-dependency, but then all tests and examples would have it, and would wait for SQLite
/// to be compiled.
#[cfg(not(all(feature = "postgres", feature = "sqlite")))]
fn main() -> std::process::ExitCode {
    use std::process::{Command, ExitCode};

    if !std::env::args().any(|argument| argument == "--bench") {
        println!("the bench of stores needs the features postgres and sqlite");
        return ExitCode::FAILURE;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["bench", "--bench", "stores", "--features", "postgres,sqlite"])
        .status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How much is done.
#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[derive(Clone, Copy)]
struct Size {
    /// Pairs of rounds of refreshes.
    rounds: usize,
    /// Refreshed in each, on each side.
    users: usize,
    /// Rounds of refreshes over a slow network.
    far_rounds: usize,
    /// Read for the first time, for the memory they take.
    cold_reads: usize,
    /// Sealed anew by a walk.
    resealed: usize,
    walks: usize,
    starts: usize,
    /// In the store at a start.
    stored: usize,
    /// Read after a start.
    served: usize,
    seals: usize,
    saves: usize,
    /// Claims of each kind that are not granted.
    claims: usize,
}

#[cfg(all(feature = "postgres", feature = "sqlite"))]
const MEASURE: Size = Size {
    rounds: 24,
    users: 512,
    far_rounds: 5,
    cold_reads: 50_000,
    resealed: 10_000,
    walks: 5,
    starts: 11,
    stored: 100_000,
    served: 1_000,
    seals: 400,
    saves: 400,
    claims: 1_000,
};

#[cfg(all(feature = "postgres", feature = "sqlite"))]
const TRY: Size = Size {
    rounds: 1,
    users: 64,
    far_rounds: 1,
    cold_reads: 100,
    resealed: 300,
    walks: 1,
    starts: 1,
    stored: 200,
    served: 100,
    seals: 1,
    saves: 1,
    claims: 1,
};

#[cfg(all(feature = "postgres", feature = "sqlite"))]
impl Size {
    /// One round says whether it works, and nothing else.
    fn figure(self, name: &str, value: f64, unit: &str) {
        if self.rounds > 1 {
            harness::figure(name, value, unit);
        }
    }
}

#[cfg(all(feature = "postgres", feature = "sqlite"))]
fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::INFINITY, f64::from)
}

#[cfg(all(feature = "postgres", feature = "sqlite"))]
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

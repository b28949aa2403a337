//! Many users: what a refresh costs one PostgreSQL with a million of them, and how evenly the
//! refreshes of ten million come.
//!
//! ```text
//! cargo bench --bench scale --features postgres                      # both
//! cargo bench --bench scale --features postgres -- load --users 1000000 --minutes 10
//! cargo bench --bench scale --features postgres -- schedule --users 10000000
//! ```
//!
//! `load` is one server, a provider that answers after 50 ms, and processes that read and walk:
//! each is a process of its own, so that its time on a CPU can be told. `schedule` asks the policy
//! when each user is due. `provider` compares the provider here with `FakeHurdlr`. The options and
//! their defaults are those of [`Options`].

// Its output is what it is for.
#![allow(clippy::print_stdout)]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../manager/nowhere.rs"]
mod nowhere;
#[allow(clippy::duplicate_mod, reason = "each bench has its own")]
#[path = "../../tests/support/postgres.rs"]
mod postgres;

mod load;
mod provider;
mod rows;
mod sample;
mod schedule;
mod server;
mod usage;
mod worker;

use std::env;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Job, Outcome};

fn main() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(provider::ROLE) => return provider::serve(&Options::parse(&arguments)?),
        Some(worker::ROLE) => return worker::run(&Options::parse(&arguments)?),
        _ => {}
    }
    let job = Job::asked_for();
    if job == Job::Serve {
        return runtime()?.block_on(harness::serve());
    }
    let mut options = Options::parse(&arguments)?;
    IS_MEASURED.store(job == Job::Measure, Ordering::Relaxed);
    if job == Job::Try {
        options = Options { users: Some(2_000), minutes: 0.02, lifetimes: 3, ..options };
    }
    let is_asked_for = |name: &str| {
        let names = ["load", "provider", "schedule"];
        let mut asked_for = arguments.iter().filter(|argument| names.contains(&argument.as_str()));
        asked_for.clone().next().is_none() || asked_for.any(|argument| argument == name)
    };
    println!("seed: {}", options.seed);
    if is_asked_for("schedule") {
        sample::refreshes_as_scheduled(&options)?;
        schedule::measure(&options)?;
    }
    if is_asked_for("provider") {
        provider::beside_fake(&options)?;
    }
    if is_asked_for("load") {
        load::measure(&options)?;
    }
    Ok(())
}

/// What the bench was asked for.
#[derive(Clone, Debug)]
struct Options {
    /// `--users`: in the store, or in the schedule.
    users: Option<usize>,
    /// `--minutes`: how long each phase is measured.
    minutes: f64,
    /// `--processes`: how many read and walk.
    processes: usize,
    /// `--delay`: how many milliseconds the provider takes.
    delay: Duration,
    /// `--lifetime`: how many seconds a token lives.
    lifetime: Duration,
    /// `--refreshes`: a process's `max_concurrent_refreshes`.
    refreshes: usize,
    /// `--reads`: how many reads a second each process makes.
    reads: usize,
    /// `--fillfactor`: of the table.
    fillfactor: u32,
    /// `--partitions`: of the table, by a hash of the user.
    partitions: u32,
    /// `--set NAME=VALUE`, repeated: settings of the server.
    settings: Vec<String>,
    /// `--lifetimes`: how long the schedule goes on.
    lifetimes: usize,
    /// `--fraction`, `--jitter`: another policy's `refresh_fraction` and `refresh_jitter`.
    spread: Option<(f64, f64)>,
    /// `--series`: the file that the schedule's rates are written to.
    series: Option<String>,
    /// `--perf`: the file that a profile of the processes is written to.
    perf: Option<String>,
    /// `--url`: of the provider, for a process that was started by this one.
    url: String,
    /// `--database`: of the server, likewise.
    database: String,
    /// `--number`: of the process, likewise.
    number: usize,
    /// `--seed`
    seed: u64,
}

impl Options {
    fn parse(arguments: &[String]) -> Outcome<Self> {
        let value = |name: &str| {
            let place = arguments.iter().position(|argument| argument == name)?;
            arguments.get(place + 1).map(String::as_str)
        };
        let spread = match (value("--fraction"), value("--jitter")) {
            (None, None) => None,
            (Some(fraction), Some(jitter)) => Some((fraction.parse()?, jitter.parse()?)),
            _ => return Err("--fraction and --jitter go together".into()),
        };
        let pairs = arguments.iter().zip(arguments.iter().skip(1));
        let settings = pairs.filter(|(name, _)| *name == "--set").map(|(_, value)| value.clone());
        Ok(Self {
            users: value("--users").map(str::parse).transpose()?,
            minutes: number(value("--minutes"), 10.0)?,
            processes: number(value("--processes"), 3)?,
            delay: Duration::from_millis(number(value("--delay"), 50)?),
            lifetime: Duration::from_secs(number(value("--lifetime"), 3_600)?),
            refreshes: number(value("--refreshes"), 64)?,
            reads: number(value("--reads"), 2_000)?,
            fillfactor: number(value("--fillfactor"), 100)?,
            partitions: number(value("--partitions"), 1)?,
            settings: settings.collect(),
            lifetimes: number(value("--lifetimes"), 8)?,
            spread,
            series: value("--series").map(str::to_owned),
            perf: value("--perf").map(str::to_owned),
            url: value("--url").unwrap_or_default().to_owned(),
            database: value("--database").unwrap_or_default().to_owned(),
            number: number(value("--number"), 0)?,
            seed: number(value("--seed"), fastrand::u64(..))?,
        })
    }

    fn span(&self) -> Duration {
        Duration::from_secs_f64(60.0 * self.minutes)
    }
}

/// Whether figures are printed: a trial says whether it works, and nothing else.
static IS_MEASURED: AtomicBool = AtomicBool::new(false);

fn figure(name: &str, value: f64, unit: &str) {
    if IS_MEASURED.load(Ordering::Relaxed) {
        harness::figure(name, value, unit);
    }
}

fn number<T: FromStr>(value: Option<&str>, default: T) -> Outcome<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    Ok(value.map(str::parse).transpose()?.unwrap_or(default))
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Nobody has 2^53 users.
#[allow(clippy::cast_precision_loss, reason = "counts of users and bytes")]
fn count(n: impl TryInto<u64>) -> f64 {
    n.try_into().map_or(f64::NAN, |n| n as f64)
}

//! Tokens for 10,000 enterprise users, with a progress bar, from a provider that fails now and
//! then:
//!
//! ```text
//! cargo run --example enterprise --features testing
//! ```
//!
//! Another number of users can be given: `… --features testing -- 100`.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Every so many requests the provider says that it is busy, and names a second to come back.
const BUSY_EVERY: u64 = 100;
/// Every so many requests the connection breaks, after the provider granted a token.
const BROKEN_EVERY: u64 = 150;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let users = match std::env::args().nth(1) {
        Some(users) => users.parse()?,
        None => 10_000,
    };
    let users: Vec<UserId> = (1..=users)
        .map(|number: u64| UserId::new(format!("customer-{number}")))
        .collect::<Result<_, _>>()?;
    println!(
        "\
{} enterprise users, and each gets a token. FakeHurdlr, the provider inside this
program, answers every {BUSY_EVERY}th request with \"503, come back in 1 s\", and breaks the
connection of every {BROKEN_EVERY}th off after it has granted a token.
",
        HumanCount(count(&users))
    );

    let fake = FakeHurdlr::builder().record(false).start().await?;
    let arrived = AtomicU64::new(0);
    fake.fault_plan(move |_| {
        let number = arrived.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(BUSY_EVERY) {
            Some(Fault::unavailable_for(Duration::from_secs(1)))
        } else if number.is_multiple_of(BROKEN_EVERY) {
            Some(Fault::DropAfter)
        } else {
            None
        }
    });
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .build()?;

    // What the first manager leaves in the store, the second finds there. With a store that
    // outlives the process, it could be another process, or the same one after a crash.
    let store = MemoryStore::new();
    let first = warm("first run", &fake, &hurdlr, &store, &users).await?;
    let again = warm("run again", &fake, &hurdlr, &store, &users).await?;

    println!("\n              users   requests   retries   failures     time   requests/s");
    first.show();
    again.show();
    println!(
        "
The second run is a new manager on the same store. Whoever has a living token
there costs no request, so a run that was broken off is simply begun again."
    );
    Ok(())
}

/// Gets a token for each user that has none, and reports what that took.
async fn warm(
    name: &'static str,
    fake: &FakeHurdlr,
    hurdlr: &Hurdlr,
    store: &MemoryStore,
    users: &[UserId],
) -> Result<Run, Box<dyn Error>> {
    fake.clear_requests();
    let manager = TokenManager::builder(hurdlr.clone(), store.clone()).build()?;
    let progress = Progress::new(name, count(users))?;
    let started = Instant::now();

    let mut failures = 0;
    let mut warm = manager.warm(users.to_vec());
    while let Some(warmed) = warm.next().await {
        progress.one_more();
        if let Err(error) = warmed.outcome {
            failures += 1;
            progress.say(&format!("{}: {error}", warmed.user.as_str()));
        }
    }

    let time = started.elapsed();
    progress.finish();
    // Nothing may be left unsaved when a process ends.
    for unfinished in manager.shutdown().await {
        eprintln!("{}: {:?} is unfinished", unfinished.user.as_str(), unfinished.work);
    }
    Ok(Run { name, users: count(users), requests: fake.count().total(), failures, time })
}

struct Run {
    name: &'static str,
    users: u64,
    requests: u64,
    failures: u64,
    time: Duration,
}

impl Run {
    fn show(&self) {
        let milliseconds = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        let by_second = self.requests.saturating_mul(1_000) / milliseconds.max(1);
        // Whatever was sent beyond one request for each user.
        let retries = self.requests.saturating_sub(self.users);
        println!(
            "{:9} {:>9}  {:>9} {:>9}  {:>9} {:>6.1} s {:>12}",
            self.name,
            HumanCount(self.users).to_string(),
            HumanCount(self.requests).to_string(),
            HumanCount(retries).to_string(),
            HumanCount(self.failures).to_string(),
            self.time.as_secs_f64(),
            HumanCount(by_second).to_string(),
        );
    }
}

/// A bar on a terminal; elsewhere, as in a build's log, a line for each tenth.
struct Progress {
    name: &'static str,
    bar: ProgressBar,
}

impl Progress {
    fn new(name: &'static str, users: u64) -> Result<Self, Box<dyn Error>> {
        let style = "{prefix} {wide_bar} {human_pos} of {human_len}, {eta} left";
        let bar = ProgressBar::new(users)
            .with_style(ProgressStyle::with_template(style)?)
            .with_prefix(name);
        Ok(Self { name, bar })
    }

    fn one_more(&self) {
        self.bar.inc(1);
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default().max(1));
        if self.bar.is_hidden() && done * 10 / all > (done - 1) * 10 / all {
            eprintln!("{}: {} of {}", self.name, HumanCount(done), HumanCount(all));
        }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn finish(&self) {
        self.bar.finish();
    }
}

fn count(users: &[UserId]) -> u64 {
    users.len() as u64
}

//! A fleet on its worst day: thousands of users, processes that are killed and stopped and whose
//! clocks jump, a provider that fails, and a judge who reads all that was written down:
//!
//! ```text
//! cargo run --release --example chaos --features postgres,sqlite,testing -- --minutes 1
//! cargo run --release --example chaos --features postgres,sqlite,testing -- --seed 7 --store sqlite
//! ```
//!
//! The plan of all that is done follows from the seed alone, and is printed first. When the plan is
//! over, everybody who can be served has to be served by every process. The command fails where an
//! invariant was broken, and names the user, the time and the command that repeats it.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(dead_code, reason = "the judge is tested, and the fleet is not run"))]

mod clock;
mod fleet;
mod judge;
mod plan;
#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod provider;
mod record;
mod report;
mod store;
mod worker;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use fleet::Fleet;
use plan::Plan;
use postgres::Server;
use record::{SECOND, now};
use report::Totals;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "\
usage: chaos [--seed N] [--minutes M] [--store sqlite|postgres|both|URL] [--plan]

  --seed N      the seed of the plan; a fresh one unless given
  --minutes M   how long the plan lasts, shared by all stores; 1 unless given
  --store S     what the processes share: a SQLite file in a temporary folder, a PostgreSQL
                server started from the installed binaries, first one and then the other, which
                is the default, or a database of your own by its URL
  --plan        print the plan, and do nothing

Ends with 0 if all invariants held, with 1 if not.";

const COMMAND: &str = "cargo run --release --example chaos --features postgres,sqlite,testing --";

/// The argument by which the example, started again, is one of the processes.
const WORK: &str = "be-a-process-of-the-fleet";

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all invariants held.
async fn run(arguments: Vec<String>) -> Outcome<bool> {
    if arguments.first().is_some_and(|first| first == WORK) {
        return worker::work().await.map(|()| true);
    }
    let Some(settings) = Settings::parse(&arguments)? else {
        println!("{USAGE}");
        return Ok(true);
    };
    let begun = now();
    let mut totals = Totals::default();
    for half in settings.halves() {
        let command = half.command();
        let plan = Plan::new(half.seed, half.seconds * SECOND);
        println!("\nThe plan on {}, repeated by\n  {command}\n{plan}", half.store.words());
        if settings.plans_only {
            continue;
        }
        let evidence = half.store.run(plan).await?;
        let (broken, losses) = judge::judge(&evidence);
        totals.add(&evidence, broken, losses, &command);
    }
    if !settings.plans_only {
        totals.show(settings.seed, now() - begun);
    }
    Ok(totals.is_whole())
}

/// The run on one store: all of the run, or one of its halves.
#[derive(Debug, PartialEq)]
struct Half {
    seed: u64,
    seconds: u64,
    store: Store,
}

impl Half {
    /// The command that repeats this half alone.
    fn command(&self) -> String {
        let Self { seed, seconds, store } = self;
        let minutes = Duration::from_secs(*seconds).as_secs_f64() / 60.0;
        let store = store.argument();
        format!("{COMMAND} --seed {seed} --minutes {minutes} --store {store}")
    }
}

struct Settings {
    seed: u64,
    seconds: u64,
    store: Stores,
    plans_only: bool,
}

impl Settings {
    /// `None` where help is asked for.
    fn parse(arguments: &[String]) -> Outcome<Option<Self>> {
        let seed = fastrand::u64(..1_000_000_000);
        let mut settings = Self { seed, seconds: 60, store: Stores::Both, plans_only: false };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value\n\n{USAGE}"));
            match name.as_str() {
                "-h" | "--help" => return Ok(None),
                "--plan" => settings.plans_only = true,
                "--seed" => settings.seed = value()?.parse()?,
                "--minutes" => settings.seconds = whole_seconds(value()?)?,
                "--store" => settings.store = Stores::parse(value()?)?,
                other => return Err(format!("{other} is no option\n\n{USAGE}").into()),
            }
        }
        Ok(Some(settings))
    }

    /// The halves have seeds of their own, so that a run tries two plans.
    fn halves(&self) -> Vec<Half> {
        let stores = match &self.store {
            Stores::One(store) => vec![store.clone()],
            Stores::Both => vec![Store::Sqlite, Store::Postgres],
        };
        let seconds = (self.seconds / stores.len() as u64).max(1);
        let half = |(seed, store)| Half { seed, seconds, store };
        (self.seed..).zip(stores).map(half).collect()
    }
}

fn whole_seconds(minutes: &str) -> Outcome<u64> {
    let minutes: f64 = minutes.parse()?;
    if !(minutes > 0.0 && minutes <= 24.0 * 60.0) {
        return Err("--minutes takes a number of minutes, at most those of a day".into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within a day")]
    let seconds = (minutes * 60.0).round() as u64;
    Ok(seconds.max(1))
}

enum Stores {
    Both,
    One(Store),
}

impl Stores {
    fn parse(text: &str) -> Outcome<Self> {
        Ok(match text {
            "both" => Self::Both,
            "sqlite" => Self::One(Store::Sqlite),
            "postgres" => Self::One(Store::Postgres),
            url if url.starts_with("sqlite:") || url.starts_with("postgres") => {
                Self::One(Store::Url(url.to_owned()))
            }
            other => return Err(format!("{other} is no store\n\n{USAGE}").into()),
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Store {
    Sqlite,
    Postgres,
    Url(String),
}

impl Store {
    fn words(&self) -> &'static str {
        match self {
            Self::Sqlite => "one SQLite file",
            Self::Postgres => "one PostgreSQL server",
            Self::Url(_) => "a database of yours",
        }
    }

    fn argument(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Url(_) => "URL", // it may hold a password
        }
    }

    async fn run(self, plan: Plan) -> Outcome<judge::Evidence> {
        match self {
            Self::Url(url) => Fleet::run(plan, &url).await,
            Self::Sqlite => {
                let folder = tempfile::tempdir()?;
                let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
                Fleet::run(plan, &url).await
            }
            Self::Postgres => {
                let server = tokio::task::spawn_blocking(Server::start).await?;
                Fleet::run(plan, &server.url()).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Settings {
        let arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        Settings::parse(&arguments).expect("arguments").expect("no help")
    }

    /// The command that is printed beside a plan repeats that plan, however odd the times.
    #[test]
    fn command_repeats_its_half() {
        for minutes in ["1", "0.83", "7.77"] {
            let halves = parse(&format!("--seed 7 --minutes {minutes}")).halves();
            assert_eq!(halves.len(), 2);
            for half in halves {
                let command = half.command();
                let arguments = command.split_once(" -- ").expect("arguments").1;
                assert_eq!(parse(arguments).halves(), [half]);
            }
        }
    }
}

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
//! invariant was broken, and names the user, the time and the seed.

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
    println!("seed {}", settings.seed);
    let stores = settings.store.names();
    let lasts = settings.seconds * SECOND / u64::try_from(stores.len())?;
    let begun = now();
    let mut totals = Totals::default();
    for (seed, store) in (settings.seed..).zip(stores) {
        let plan = Plan::new(seed, lasts);
        println!("\nThe plan on {}:\n{plan}", store.words());
        if settings.plans_only {
            continue;
        }
        let evidence = store.run(plan).await?;
        let (broken, losses) = judge::judge(&evidence);
        totals.add(&evidence, broken, losses);
    }
    if !settings.plans_only {
        totals.show(settings.seed, now() - begun);
    }
    Ok(totals.is_whole())
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
}

fn whole_seconds(minutes: &str) -> Outcome<u64> {
    let minutes: f64 = minutes.parse()?;
    if !(minutes > 0.0 && minutes <= 24.0 * 60.0) {
        return Err("--minutes takes a number of minutes, at most those of a day".into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within a day")]
    let seconds = (minutes * 60.0) as u64;
    Ok(seconds.max(1))
}

enum Stores {
    Sqlite,
    Postgres,
    Both,
    Url(String),
}

impl Stores {
    fn parse(text: &str) -> Outcome<Self> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            "postgres" => Ok(Self::Postgres),
            "both" => Ok(Self::Both),
            url if url.starts_with("sqlite:") || url.starts_with("postgres") => {
                Ok(Self::Url(url.to_owned()))
            }
            other => Err(format!("{other} is no store\n\n{USAGE}").into()),
        }
    }

    fn names(self) -> Vec<Store> {
        match self {
            Self::Sqlite => vec![Store::Sqlite],
            Self::Postgres => vec![Store::Postgres],
            Self::Both => vec![Store::Sqlite, Store::Postgres],
            Self::Url(url) => vec![Store::Url(url)],
        }
    }
}

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

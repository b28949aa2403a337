//! Several processes, one store, and a provider that takes the second use of a refresh token for
//! theft:
//!
//! ```text
//! cargo run --example fleet --features postgres,sqlite,testing
//! cargo run --example fleet --features postgres,sqlite,testing -- sqlite
//! ```
//!
//! First nobody disturbs them: each token has to be refreshed once when it falls due, by one of
//! them. Then they are killed in the middle of refreshes.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod fleet;
#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod report;
mod stores;
mod worker;

use std::error::Error;
use std::process::ExitCode;

use fleet::Fleet;
use postgres::Server;
use tempfile::TempDir;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "\
usage: fleet [STORE]

STORE is what the processes share:
  postgres://user@host/database   PostgreSQL; a schema hurdlr_fleet_example is made there
  sqlite:///path/to/tokens.db     a SQLite file, made where it is missing
  sqlite                          a SQLite file in a temporary folder
Without it, a PostgreSQL server is started from the installed binaries in a temporary folder.

Ends with 0 if all promises were kept, with 1 if not.";

/// The argument by which the example, started again, is one of the processes.
const WORK: &str = "be-a-process-of-the-fleet";

const UNDISTURBED_ROUNDS: u64 = 4;
const KILLS: usize = 6;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all promises were kept.
async fn run(argument: Option<&str>) -> Outcome<bool> {
    let place = match argument {
        Some(WORK) => return worker::work().await.map(|()| true),
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return Ok(true);
        }
        None => Place::server().await?,
        Some("sqlite") => Place::file()?,
        Some(url) if url.starts_with("sqlite:") => Place::given("one SQLite file", url),
        Some(url) if url.starts_with("postgres") => Place::given("one PostgreSQL", url),
        Some(other) => return Err(format!("{other} is not a store\n\n{USAGE}").into()),
    };
    let fleet = Fleet::new(&place.url).await?;
    println!(
        "\
{} processes read the tokens of {} people from {}. A token lives for 6 s.
Whoever refreshes it gets a new refresh token; should the old one be used again, the
provider, FakeHurdlr, ends the person's login.",
        fleet::PROCESSES,
        fleet::PEOPLE,
        place.name
    );
    let undisturbed = fleet.undisturbed(UNDISTURBED_ROUNDS).await?;
    let disturbed = fleet.disturbed(KILLS).await?;
    fleet.forget_all().await?;
    println!(
        "\n{}",
        if undisturbed && disturbed { "All promises were kept." } else { "A PROMISE WAS BROKEN." }
    );
    Ok(undisturbed && disturbed)
}

/// Where the tokens are, for as long as this lives.
struct Place {
    name: &'static str,
    url: String,
    _server: Option<Server>,
    _folder: Option<TempDir>,
}

impl Place {
    fn given(name: &'static str, url: &str) -> Self {
        Self { name, url: url.to_owned(), _server: None, _folder: None }
    }

    async fn server() -> Outcome<Self> {
        let server = tokio::task::spawn_blocking(Server::start).await?;
        let url = server.url();
        Ok(Self { _server: Some(server), ..Self::given("one PostgreSQL", &url) })
    }

    fn file() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
        Ok(Self { _folder: Some(folder), ..Self::given("one SQLite file", &url) })
    }
}

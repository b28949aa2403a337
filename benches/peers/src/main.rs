//! This crate side by side with what an app would otherwise keep its tokens with: the same work, in
//! one process, in alternating rounds, against one endpoint that answers all alike.
//!
//! ```text
//! benches/peers/run              builds it, measures everything, prints a table
//! benches/peers/run reads crowd  only these kinds of work
//! ```
//!
//! Each line `figure: peers.WORK.PEER = VALUE UNIT` is one figure. The exit status says whether all
//! goals are met. `docs/peers.md` says what is measured and how.

mod endpoint;
mod peer;
mod peers;
mod report;
mod site;
mod work;

#[path = "../../manager/nowhere.rs"]
mod nowhere;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use endpoint::Endpoint;
use report::Report;
use work::{
    beside_refresh, crowd, dropped, failing, instructions, many_users, reads, rotation, secrets,
};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The amount of work.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Rounds of what takes long, and of reads.
    rounds: usize,
    read_rounds: usize,
    instruction_rounds: usize,
    /// Reads in one round.
    reads: u32,
    /// Refreshes in one round of reads beside them.
    refreshes: usize,
    crowds: [usize; 2],
    users: usize,
}

const MEASURE: Size = Size {
    rounds: 21,
    read_rounds: 101,
    instruction_rounds: 3,
    reads: 20_000,
    refreshes: 5,
    crowds: [100, 10_000],
    users: 1_000_000,
};

/// Only to see whether it works.
const TRY: Size = Size {
    rounds: 2,
    read_rounds: 3,
    instruction_rounds: 1,
    reads: 2_000,
    refreshes: 2,
    crowds: [10, 100],
    users: 1_000,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [endpoint::COMMAND] => endpoint::serve(),
        [instructions::COMMAND, name, reads] => match reads.parse() {
            Ok(reads) => instructions::only_read(name, reads),
            Err(error) => Err(Box::from(error)),
        },
        [secrets::COMMAND, name] => secrets::log(name),
        [rotation::COMMAND, name] => rotation::share_logins(name),
        ["--try", ref works @ ..] => measure(works, TRY),
        ref works => measure(works, MEASURE),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All kinds of work, or those that are named.
fn measure(works: &[&str], size: Size) -> Outcome {
    let seed = match env::var("PEERS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => fastrand::u64(..),
    };
    println!("seed: {seed} (PEERS_SEED={seed} repeats it)");
    fastrand::seed(seed);
    let is_asked_for = |work: &str| works.is_empty() || works.contains(&work);

    let folder = tempfile::tempdir()?;
    let endpoint = Endpoint::start(folder.path())?;
    let mut report = Report::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut known = 0;
        macro_rules! work {
            ($($name:ident),*) => {$(
                if is_asked_for(stringify!($name)) {
                    known += 1;
                    $name::measure(&endpoint, size, &mut report).await?;
                }
            )*};
        }
        // Memory first, while this process has little of it.
        work!(many_users, reads, beside_refresh, crowd, dropped, failing);
        work!(instructions, secrets, rotation);
        if known < works.len() {
            return Err(Failure::from("no such kind of work"));
        }
        Ok(())
    })?;
    let missed = report.missed();
    if missed.is_empty() { Ok(()) } else { Err(missed.join("\npeers: ").into()) }
}

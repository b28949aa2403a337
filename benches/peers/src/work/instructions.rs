//! Instructions per cached read, counted by valgrind's callgrind.

use std::env;
use std::process::Command;

use arc_swap::ArcSwap;
use tokio::task::coop::unconstrained;

use crate::endpoint::{Endpoint, HOUR};
use crate::peer::Peer;
use crate::peers::floor;
use crate::report::{Report, Rounds};
use crate::site::{self, Site};
use crate::work::reads;
use crate::{Failure, Outcome, Size, each_peer};

/// The command by which this program, started again, only reads.
pub(crate) const COMMAND: &str = "read";

/// The two runs of a peer differ in this many reads; all else that they do falls out.
const READS: u32 = 10_000;

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let mut counts = Rounds::default();
    let names: Vec<&'static str> =
        each_peer!(P => P::NAME).into_iter().chain([floor::NAME]).collect();
    for _ in 0..size.instruction_rounds {
        for name in names.iter().copied() {
            let site = endpoint.account(HOUR).await?.site;
            let mut totals = [0.0; 2];
            for (total, reads) in totals.iter_mut().zip([1_000, 1_000 + READS]) {
                let site = site.to_json()?;
                let counted = tokio::task::spawn_blocking(move || instructions(name, reads, &site));
                *total = counted.await??;
            }
            counts.add(name, (totals[1] - totals[0]) / f64::from(READS));
        }
    }
    for name in names {
        report.figure("instructions_per_read", name, counts.median(name), "instructions");
    }
    Ok(())
}

/// The instructions of a whole run that reads so often.
fn instructions(name: &str, reads: u32, site: &str) -> Outcome<f64> {
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([COMMAND, name, &reads.to_string()])
        .env(site::VARIABLE, site)
        .output()
        .map_err(|error| format!("valgrind: {error}; apt-get install valgrind brings it"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(format!("{name} under valgrind: {}\n{said}", done.status).into());
    }
    let count = said.lines().find_map(|line| line.split_once("Collected :"));
    Ok(count.ok_or("valgrind counted nothing")?.1.trim().parse()?)
}

/// Reads a peer's token so often.
pub(crate) fn only_read(name: &str, reads: u32) -> Outcome {
    if name == floor::NAME {
        floor::load(&ArcSwap::from_pointee("token".to_owned()), reads);
        return Ok(());
    }
    let site = Site::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let found = each_peer!(P => {
            if P::NAME == name {
                let peer = P::open(&site).await?;
                peer.token().await.map_err(Into::<Failure>::into)?;
                unconstrained(reads::read(&peer, reads)).await?;
            }
            P::NAME == name
        });
        found.contains(&true).then_some(()).ok_or_else(|| format!("no peer {name}").into())
    })
}

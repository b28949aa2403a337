//! Refresh tokens that rotate, in the hands of two callers, and of two processes.

use std::env;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::endpoint::{Account, Endpoint, HOUR, Script};
use crate::peer::{Peer, Work};
use crate::report::{OURS, Report, number, share};
use crate::site::Site;
use crate::{Failure, Outcome, Size, each_peer};

/// The command by which this program, started again, is one of two processes.
pub(crate) const COMMAND: &str = "share";

/// How long the callers read: several lives of a token.
const SPAN: Duration = Duration::from_secs(7);

/// The pause between two reads of a caller.
const PACE: Duration = Duration::from_millis(5);

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let mut ours = [[0, 0]; 2];
    each_peer!(P => {
        for (n, (kind, work)) in [
            ("two_callers", Work::RotationByCallers),
            ("two_processes", Work::RotationByProcesses),
        ]
        .into_iter()
        .enumerate()
        {
            let figure = format!("burned_by_{kind}");
            if let Some(why) = P::lacks(work) {
                report.reason(&figure, P::NAME, why);
                continue;
            }
            let accounts = accounts::<P>(endpoint, size.rounds).await?;
            match work {
                Work::RotationByCallers => by_callers::<P>(&accounts).await?,
                Work::RotationByProcesses => by_processes::<P>(&accounts).await?,
            }
            let (mut burned, mut requests) = (Vec::new(), 0);
            for account in &accounts {
                let ledger = account.ledger().await?;
                burned.push(ledger.burned);
                requests += ledger.requests;
            }
            let lost = burned.iter().filter(|burned| **burned > 0).count();
            if P::NAME == OURS {
                ours[n] = [burned.iter().sum(), requests];
            }
            report.figure(&figure, P::NAME, number(burned.iter().sum()), "refresh tokens");
            let lost = share(lost, burned.len());
            report.figure(&format!("lost_by_{kind}"), P::NAME, lost, "% of logins");
            report.figure(&format!("requests_by_{kind}"), P::NAME, number(requests), "requests");
        }
    });
    for (kind, [burned, requests]) in ["two_callers", "two_processes"].into_iter().zip(ours) {
        report.goal(&format!("i_burned_by_{kind}"), number(burned), 0.0);
        // A peer that never refreshes burns nothing.
        let refreshes = format!("i_refreshes_by_{kind}");
        report.goal_at_least(&refreshes, number(requests), number(3 * size.rounds));
    }
    Ok(())
}

async fn accounts<P: Peer>(endpoint: &Endpoint, logins: usize) -> Outcome<Vec<Account>> {
    let script = Script { delay: 50, life: P::MARGIN + 2, rotates: true, ..HOUR };
    let mut accounts = Vec::new();
    for _ in 0..logins {
        accounts.push(endpoint.account(script).await?);
    }
    Ok(accounts)
}

async fn by_callers<P: Peer>(accounts: &[Account]) -> Outcome {
    let mut callers = JoinSet::new();
    for account in accounts {
        let peer = P::open(&account.site).await?;
        callers.spawn(caller(peer.clone()));
        callers.spawn(caller(peer));
    }
    callers.join_all().await;
    Ok(())
}

/// Reads as long as it lasts. A login that is lost is no reason to stop.
async fn caller<P: Peer>(peer: P) {
    let end = Instant::now() + SPAN;
    while Instant::now() < end {
        let _ = tokio::time::timeout_at(end.into(), peer.token()).await;
        tokio::time::sleep(PACE).await;
    }
}

async fn by_processes<P: Peer>(accounts: &[Account]) -> Outcome {
    let sites: Vec<&Site> = accounts.iter().map(|account| &account.site).collect();
    // The storage is there before they begin.
    for site in &sites {
        P::open_shared(site).await?;
    }
    let sites = serde_json::to_string(&sites)?;
    let mut processes = Vec::new();
    for _ in 0..2 {
        let mut process = Command::new(env::current_exe()?)
            .args([COMMAND, P::NAME])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = process.stdin.take().ok_or("no stdin")?;
        stdin.write_all(format!("{sites}\n").as_bytes()).await?;
        let mut stdout = BufReader::new(process.stdout.take().ok_or("no stdout")?).lines();
        stdout.next_line().await?.ok_or("a process ended too early")?;
        processes.push((process, stdin, stdout));
    }
    for (_, stdin, _) in &mut processes {
        stdin.write_all(b"go\n").await?;
    }
    for (mut process, ..) in processes {
        let status = process.wait().await?;
        if !status.success() {
            return Err(format!("a process of {}: {status}", P::NAME).into());
        }
    }
    Ok(())
}

/// Is one of two processes that share their storage: opens the logins, waits for the word, reads.
pub(crate) fn share_logins(name: &str) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let sites = lines.next_line().await?.ok_or("no sites")?;
        let sites: Vec<Site> = serde_json::from_str(&sites)?;
        let found = each_peer!(P => {
            if P::NAME == name {
                let mut callers = JoinSet::new();
                let mut peers = Vec::new();
                for site in &sites {
                    peers.push(P::open_shared(site).await?);
                }
                println!("ready");
                lines.next_line().await?.ok_or("no word")?;
                for peer in peers {
                    callers.spawn(caller(peer));
                }
                callers.join_all().await;
            }
            P::NAME == name
        });
        found.contains(&true).then_some(()).ok_or_else(|| Failure::from(format!("no peer {name}")))
    })
}

//! Secrets that a peer writes to a log at TRACE, and shows in its `Debug`.

use std::env;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::task::JoinSet;
use tracing_subscriber::filter::LevelFilter;

use crate::endpoint::{Account, Endpoint, HOUR, Script};
use crate::peer::Peer;
use crate::report::{OURS, Report, Rounds, number};
use crate::site::{self, Site};
use crate::{Outcome, Size, each_peer};

/// The command by which this program, started again, logs all that a peer says.
pub(crate) const COMMAND: &str = "log";

/// The line between the log and the `Debug`.
const DEBUG: &str = "=== Debug ===";

/// How long a peer is read, while its tokens come to their end and refreshes fail in the end.
const SPAN: Duration = Duration::from_secs(9);

const PACE: Duration = Duration::from_millis(50);

pub(crate) async fn measure(endpoint: &Endpoint, _: Size, report: &mut Report) -> Outcome {
    let mut logs = JoinSet::new();
    each_peer!(P => {
        let script = Script { life: P::MARGIN + 2, ..HOUR };
        logs.spawn(listen(P::NAME, endpoint.account(script).await?));
    });
    let [mut in_log, mut in_debug, mut lines] = [(); 3].map(|()| Rounds::default());
    while let Some(heard) = logs.join_next().await {
        let heard = heard??;
        in_log.add(heard.name, number(heard.in_log));
        in_debug.add(heard.name, number(heard.in_debug));
        lines.add(heard.name, number(heard.lines));
    }
    for name in each_peer!(P => P::NAME) {
        report.figure("secrets_in_log", name, in_log.median(name), "secrets");
        report.figure("lines_in_log", name, lines.median(name), "lines");
        report.figure("secrets_in_debug", name, in_debug.median(name), "secrets");
    }
    report.goal("h_secrets_in_log", in_log.max(OURS), 0.0);
    report.goal("h_secrets_in_debug", in_debug.max(OURS), 0.0);
    Ok(())
}

struct Heard {
    name: &'static str,
    in_log: usize,
    in_debug: usize,
    lines: usize,
}

async fn listen(name: &'static str, account: Account) -> Outcome<Heard> {
    let mut peer = Command::new(env::current_exe()?);
    let peer = peer.args([COMMAND, name]).env(site::VARIABLE, account.site.to_json()?).output();
    let outage = async {
        account.arrived(2).await?;
        account.set(Script { fails: true, ..HOUR }).await
    };
    let (done, outage) = tokio::join!(peer, outage);
    outage?;
    let done = done?;
    if !done.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    let said = String::from_utf8_lossy(&done.stdout);
    let (log, debug) = said.split_once(DEBUG).ok_or("it said nothing")?;
    let ledger = account.ledger().await?;
    let Site { client_secret, refresh_token, access_token, private_key, .. } = &account.site;
    // A line of the key, since a log may have it with other line ends.
    let key = private_key.lines().nth(1).unwrap_or_default().to_owned();
    let mut secrets = vec![client_secret.clone(), refresh_token.clone(), access_token.clone(), key];
    secrets.extend(ledger.access_tokens);
    secrets.extend(ledger.refresh_tokens);
    let found = |text: &str| secrets.iter().filter(|secret| text.contains(secret.as_str())).count();
    Ok(Heard { name, in_log: found(log), in_debug: found(debug), lines: log.lines().count() })
}

/// Reads a peer's token and logs all that is said, to standard output.
pub(crate) fn log(name: &str) -> Outcome {
    let site = Site::from_env()?;
    tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let found = each_peer!(P => {
            if P::NAME == name {
                log_peer::<P>(&site).await?;
            }
            P::NAME == name
        });
        found.contains(&true).then_some(()).ok_or_else(|| format!("no peer {name}").into())
    })
}

async fn log_peer<P: Peer>(site: &Site) -> Outcome {
    let peer = P::open(site).await?;
    let end = Instant::now() + SPAN;
    let mut last = None;
    while Instant::now() < end {
        if let Ok(Ok(token)) = tokio::time::timeout_at(end.into(), peer.token()).await {
            last = Some(token);
        }
        tokio::time::sleep(PACE).await;
    }
    println!("{DEBUG}\n{}", peer.debug(last.as_ref()).unwrap_or_default());
    io::stdout().flush()?;
    Ok(())
}

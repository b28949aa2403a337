//! Many callers at once on a user who has no token in memory, and on one whose token is over.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::endpoint::{Account, Endpoint, HOUR, Script};
use crate::peer::Peer;
use crate::peers::floor;
use crate::report::{OURS, Report, Rounds, highest, number};
use crate::{Outcome, Size, each_peer};

/// Milliseconds that a request takes.
const REQUEST: u64 = 100;

/// How long callers are waited for. Those that nobody has served by then are not.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the peer before has for what it left behind, such as thousands of connections to close.
const CALM: Duration = Duration::from_millis(200);

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let mut most_requests = 0.0_f64;
    let mut ratios = Vec::new();
    let post = endpoint.account(Script { delay: REQUEST, ..HOUR }).await?;
    let post = floor::Post::new(&post.site)?;
    post.send().await?;
    for callers in size.crowds {
        for expired in [false, true] {
            let [mut last, mut requests, mut served] = [(); 3].map(|()| Rounds::default());
            for _ in 0..size.rounds {
                last.add(floor::NAME, post.send().await?.as_secs_f64() * 1e3);
                let all = each_peer!(P => (P::NAME, round::<P>(endpoint, callers, expired).await?));
                for (name, crowd) in all {
                    last.add(name, crowd.last.as_secs_f64() * 1e3);
                    requests.add(name, number(crowd.requests));
                    served.add(name, number(crowd.served));
                }
            }
            let work = format!("{}_{callers}", if expired { "expired" } else { "cold" });
            last.figures(report, &format!("{work}_last_caller"), "ms");
            for name in each_peer!(P => P::NAME) {
                report.figure(&format!("{work}_requests"), name, requests.median(name), "requests");
                report.figure(&format!("{work}_served"), name, served.median(name), "callers");
            }
            most_requests = most_requests.max(requests.max(OURS));
            ratios.push(last.ratio(OURS, floor::NAME));
        }
    }
    report.goal("c_requests", most_requests, 1.0);
    report.goal("c_last_caller_vs_request", highest(ratios), 1.1);
    Ok(())
}

struct Crowd {
    /// From the first call to the last answer.
    last: Duration,
    served: usize,
    requests: usize,
}

async fn round<P: Peer>(endpoint: &Endpoint, callers: usize, expired: bool) -> Outcome<Crowd> {
    let account = endpoint.account(HOUR).await?;
    let peer = if expired { Some(P::expired(&account).await?) } else { None };
    let before = account.ledger().await?.requests;
    account.set(Script { delay: REQUEST, ..HOUR }).await?;
    tokio::time::sleep(CALM).await;
    let crowd = match peer {
        Some(peer) => crowd(peer, callers, Instant::now()).await,
        None => {
            let peer = P::open(&account.site).await?;
            crowd(peer, callers, Instant::now()).await
        }
    };
    Ok(Crowd { requests: requests_since(&account, before).await?, ..crowd })
}

async fn requests_since(account: &Account, before: usize) -> Outcome<usize> {
    Ok(account.ledger().await?.requests - before)
}

async fn crowd<P: Peer>(peer: P, callers: usize, start: Instant) -> Crowd {
    let mut waiting = JoinSet::new();
    for _ in 0..callers {
        let peer = peer.clone();
        waiting.spawn(async move { (peer.token().await.is_ok(), start.elapsed()) });
    }
    let (mut served, mut last) = (0, Duration::ZERO);
    let all = async {
        while let Some(answered) = waiting.join_next().await {
            let Ok((is_served, at)) = answered else { continue };
            served += usize::from(is_served);
            last = last.max(at);
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        last = PATIENCE;
    }
    waiting.shutdown().await;
    Crowd { last, served, requests: 0 }
}

//! Refreshes that fail while the old token lives.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::endpoint::{Endpoint, HOUR, Script};
use crate::peer::{Peer, Token};
use crate::report::{OURS, Report, Rounds, number, share};
use crate::{Outcome, Size, each_peer};

/// How long the endpoint fails after the first request that it failed.
const OUTAGE: Duration = Duration::from_secs(10);

/// The pause between two reads of one caller. There are two callers.
const PACE: Duration = Duration::from_millis(20);

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let mut outages = JoinSet::new();
    // At the same time: it is no time that is measured.
    for _ in 0..size.rounds {
        each_peer!(P => {
            let endpoint = endpoint.clone();
            outages.spawn(async move {
                Ok::<_, crate::Failure>((P::NAME, outage::<P>(&endpoint).await?))
            })
        });
    }
    let [mut old, mut errors, mut waiting, mut requests, mut early] =
        [(); 5].map(|()| Rounds::default());
    while let Some(outage) = outages.join_next().await {
        let (name, outage) = outage??;
        let Outage { served, failed, unanswered, arrivals } = outage;
        let all = served + failed + unanswered;
        old.add(name, share(served, all));
        errors.add(name, share(failed, all));
        waiting.add(name, share(unanswered, all));
        requests.add(name, number(arrivals.len()));
        early.add(name, number(before_their_step(&arrivals)));
    }
    for name in each_peer!(P => P::NAME) {
        report.figure("failing_old_token", name, old.median(name), "% of reads");
        report.figure("failing_errors", name, errors.median(name), "% of reads");
        report.figure("failing_waiting", name, waiting.median(name), "% of reads");
        report.figure("failing_requests", name, requests.median(name), "requests");
    }
    report.goal_at_least("e_old_token", old.sum(OURS) / number(size.rounds), 100.0);
    report.goal("e_errors", errors.max(OURS) + waiting.max(OURS), 0.0);
    report.goal("e_requests_before_their_backoff_step", early.max(OURS), 0.0);
    Ok(())
}

struct Outage {
    served: usize,
    failed: usize,
    /// Reads that had no answer when the outage was over.
    unanswered: usize,
    /// Milliseconds of each request that was failed.
    arrivals: Vec<u64>,
}

async fn outage<P: Peer>(endpoint: &Endpoint) -> Outcome<Outage> {
    let account = endpoint.account(HOUR).await?;
    let peer = P::due(&account).await?;
    let before = account.ledger().await?;
    account.set(Script { fails: true, ..HOUR }).await?;
    // Some refresh by themselves, others when somebody reads.
    let first = account.arrived(before.requests + 1);
    let reads = async {
        loop {
            let _ = peer.token().await;
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        arrived = first => arrived?,
        () = reads => {}
    }
    let end = Instant::now() + OUTAGE;
    let (one, other) = tokio::join!(caller(&peer, end), caller(&peer, end));
    let arrivals = account.ledger().await?.arrivals.split_off(before.requests);
    let [served, failed, unanswered] = [0, 1, 2].map(|n| one[n] + other[n]);
    Ok(Outage { served, failed, unanswered, arrivals })
}

/// How many reads got a token, an error, and no answer.
async fn caller<P: Peer>(peer: &P, end: Instant) -> [usize; 3] {
    let mut reads = [0; 3];
    while Instant::now() < end {
        match tokio::time::timeout_at(end.into(), peer.token()).await {
            Ok(Ok(token)) => reads[usize::from(token.secret().is_empty())] += 1,
            Ok(Err(_)) => reads[1] += 1,
            Err(_) => reads[2] += 1,
        }
        tokio::time::sleep(PACE).await;
    }
    reads
}

/// Requests that came before their pause was over. As `docs/settings.md` says: an attempt is four
/// requests with pauses from 250 ms that double, attempts have pauses from 1 s that double, and
/// each pause is at least half of that.
fn before_their_step(arrivals: &[u64]) -> usize {
    let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
    let is_early = |(n, gap): &(usize, u64)| {
        let (attempt, request) = ((n + 1) / 4, (n + 1) % 4);
        let pause = if request == 0 { 1_000 << (attempt - 1) } else { 250 << (request - 1) };
        gap + 1 < pause / 2 // a whole millisecond is lost by rounding
    };
    gaps.enumerate().filter(is_early).count()
}

//! The caller that triggers a refresh goes away while the request is on its way.

use std::time::Duration;

use crate::endpoint::{Endpoint, HOUR, Script};
use crate::peer::{Peer, Token};
use crate::report::{OURS, Report, Rounds, number};
use crate::{Outcome, Size, each_peer};

/// Milliseconds that a request takes.
const REQUEST: u64 = 50;

/// How long the next caller waits.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let [mut requests, mut kept, mut lost] = [(); 3].map(|()| Rounds::default());
    for _ in 0..size.rounds {
        for (name, dropped) in each_peer!(P => (P::NAME, round::<P>(endpoint).await?)) {
            requests.add(name, number(dropped.requests));
            kept.add(name, if dropped.is_kept { 100.0 } else { 0.0 });
            lost.add(name, if dropped.is_lost { 100.0 } else { 0.0 });
        }
    }
    let all = number(size.rounds);
    for name in each_peer!(P => P::NAME) {
        report.figure("dropped_requests", name, requests.median(name), "requests");
        report.figure("dropped_token_kept", name, kept.sum(name) / all, "% of rounds");
        report.figure("dropped_login_lost", name, lost.sum(name) / all, "% of rounds");
    }
    report.goal("d_requests", requests.max(OURS), 1.0);
    report.goal_at_least("d_token_kept", kept.sum(OURS) / all, 100.0);
    Ok(())
}

struct Dropped {
    requests: usize,
    /// The next caller got the token that the first one had asked for.
    is_kept: bool,
    /// The next caller got none, since the refresh token was used up.
    is_lost: bool,
}

async fn round<P: Peer>(endpoint: &Endpoint) -> Outcome<Dropped> {
    let script = Script { delay: REQUEST, rotates: true, ..HOUR };
    let account = endpoint.account(script).await?;
    let peer = P::open(&account.site).await?;
    let caller = tokio::spawn({
        let peer = peer.clone();
        async move { peer.token().await.is_ok() }
    });
    account.arrived(1).await?;
    caller.abort();
    if !caller.await.is_err_and(|error| error.is_cancelled()) {
        return Err("a caller was answered before it went away".into());
    }
    let next = tokio::time::timeout(PATIENCE, peer.token()).await.map_err(|_| "no answer")?;
    let ledger = account.ledger().await?;
    let is_kept = next.as_ref().is_ok_and(|token| {
        ledger.access_tokens.first().is_some_and(|first| first == token.secret())
    });
    Ok(Dropped { requests: ledger.requests, is_kept, is_lost: next.is_err() })
}

//! Cached reads of one user while another user is refreshed.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::coop::unconstrained;

use crate::endpoint::{Endpoint, HOUR, Script};
use crate::peer::{Peer, Token};
use crate::report::{OURS, Report, Rounds, number};
use crate::{Outcome, Size, each_peer};

/// Milliseconds that a refresh takes.
const REQUEST: u64 = 20;

/// The pause before the next refresh. Without one, locks that prefer writers let no reader in.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let (mut late, mut longest) = (Rounds::default(), Rounds::default());
    for _ in 0..size.rounds {
        for (name, reads) in each_peer!(P => (P::NAME, round::<P>(endpoint, size).await?)) {
            let mut reads = reads;
            reads.sort_unstable();
            let last = reads.last().copied().unwrap_or_default();
            late.add(name, f64::from(reads[reads.len() * 9_999 / 10_000]) / 1e3);
            longest.add(name, f64::from(last) / 1e3);
        }
    }
    late.figures(report, "read_beside_refresh_p9999", "us");
    longest.figures(report, "read_beside_refresh_longest", "us");
    report.figure("request", "beside_refresh", number(REQUEST as usize), "ms");
    report.goal("b_read_beside_refresh_us", late.median(OURS), 1.0);
    Ok(())
}

/// Nanoseconds of each read that began while another user's refresh was in flight.
async fn round<P: Peer>(endpoint: &Endpoint, size: Size) -> Outcome<Vec<u32>> {
    let account = endpoint.account(HOUR).await?;
    let peer = P::open(&account.site).await?;
    peer.token().await.map_err(Into::into)?;
    account.set(Script { delay: REQUEST, ..HOUR }).await?;

    let other = Arc::new(Other::default());
    let reader = {
        let (peer, other) = (peer.clone(), Arc::clone(&other));
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(unconstrained(read(&peer, &other)))
        })
    };
    let stop = Stop(&other);
    let mut refreshes = 0;
    // On a busy machine the reader may not get its turn while a refresh is in flight.
    while refreshes < size.refreshes || !other.is_read_beside.load(Ordering::Acquire) {
        tokio::time::sleep(PAUSE).await;
        let account = endpoint.account(Script { delay: REQUEST, ..HOUR }).await?;
        let user = peer.another(&account.site).await?;
        other.in_flight.store(true, Ordering::Release);
        let refreshed = user.token().await;
        other.in_flight.store(false, Ordering::Release);
        refreshed.map_err(Into::into)?;
        refreshes += 1;
        if refreshes > 100 * size.refreshes {
            return Err(format!("{}: no read beside a refresh", P::NAME).into());
        }
    }
    drop(stop);
    reader.await?
}

/// Stops the reader, also where an error ends the round.
struct Stop<'a>(&'a Other);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// The state that the reader shares with the refreshes of the other user.
#[derive(Default)]
struct Other {
    in_flight: AtomicBool,
    is_read_beside: AtomicBool,
    is_over: AtomicBool,
}

async fn read<P: Peer>(peer: &P, other: &Other) -> Outcome<Vec<u32>> {
    let mut reads = Vec::with_capacity(4_000_000);
    while !other.is_over.load(Ordering::Acquire) {
        if !other.in_flight.load(Ordering::Acquire) || reads.len() == reads.capacity() {
            spin_loop();
            continue;
        }
        let start = Instant::now();
        let token = peer.token().await.map_err(Into::into)?;
        black_box(token.secret());
        reads.push(start.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
        other.is_read_beside.store(true, Ordering::Release);
    }
    Ok(reads)
}

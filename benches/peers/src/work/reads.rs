//! Cached reads of one user, on one thread and on two at the same time.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::task::coop::unconstrained;

use crate::endpoint::{Endpoint, HOUR};
use crate::peer::{Peer, Token};
use crate::peers::floor;
use crate::report::{OURS, Report, Rounds};
use crate::{Outcome, Size, each_peer};

/// Reads so many tokens in a loop, after a meeting with the other threads, and tells the time.
type Read = Arc<dyn Fn(u32, &Start) -> Outcome<Duration> + Send + Sync>;

pub(crate) async fn measure(endpoint: &Endpoint, size: Size, report: &mut Report) -> Outcome {
    let mut readers = each_peer!(P => (P::NAME, reader::<P>(endpoint).await?));
    let token = Arc::new(ArcSwap::from_pointee("token".to_owned()));
    let load: Read = Arc::new(move |reads, start| {
        start.together();
        Ok(floor::load(&token, reads))
    });
    readers.push((floor::NAME, load));

    let mut rounds = [Rounds::default(), Rounds::default()];
    for round in 0..size.read_rounds {
        for (rounds, threads) in rounds.iter_mut().zip([1, 2]) {
            for n in 0..readers.len() {
                // Another one is first in each round.
                let (name, read) = &readers[(n + round) % readers.len()];
                let read = Arc::clone(read);
                let time =
                    tokio::task::spawn_blocking(move || together(&read, threads, size.reads));
                rounds.add(name, time.await??);
            }
        }
    }
    let [one, two] = rounds;
    one.figures(report, "read_one_thread", "ns");
    two.figures(report, "read_two_threads", "ns");
    report.goal("a_one_thread", one.ratio(OURS, one.fastest_peer()), 0.2);
    report.goal("a_two_threads", two.ratio(OURS, two.fastest_peer()), 0.12);
    report.goal("a_vs_arc_swap", one.ratio(OURS, floor::NAME), 1.3);
    Ok(())
}

async fn reader<P: Peer>(endpoint: &Endpoint) -> Outcome<Read> {
    let peer = P::open(&endpoint.account(HOUR).await?.site).await?;
    peer.token().await.map_err(Into::into)?;
    Ok(Arc::new(move |reads, start| {
        let peer = peer.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A task that never yields, in favour of those whose locks count what a task takes.
        let work = unconstrained(async move {
            read(&peer, reads / 20).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(peer)
        });
        let peer = runtime.block_on(async { tokio::spawn(work).await })??;
        let work = unconstrained(async move { read(&peer, reads).await });
        start.together();
        runtime.block_on(async { tokio::spawn(work).await })?
    }))
}

/// Reads a token again and again.
pub(crate) async fn read<P: Peer>(peer: &P, reads: u32) -> Outcome<Duration> {
    let start = Instant::now();
    for _ in 0..reads {
        match peer.token().await {
            Ok(token) => {
                black_box(token.secret());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(start.elapsed())
}

/// Nanoseconds per read on each of so many threads, the mean of them.
fn together(read: &Read, threads: u32, reads: u32) -> Outcome<f64> {
    let start = Start::new(threads);
    let times = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| read(reads, &start))).collect();
        all.into_iter()
            .map(|thread| thread.join().map_err(|_| "a reader panicked")?)
            .collect::<Outcome<Vec<Duration>>>()
    })?;
    let all: Duration = times.iter().sum();
    Ok(all.as_secs_f64() * 1e9 / f64::from(reads) / f64::from(threads))
}

/// A meeting point of threads.
struct Start {
    barrier: Barrier,
    arrived: AtomicUsize,
    threads: usize,
}

impl Start {
    fn new(threads: u32) -> Self {
        let threads = threads as usize;
        Self { barrier: Barrier::new(threads), arrived: AtomicUsize::new(0), threads }
    }

    fn together(&self) {
        self.barrier.wait();
        // Waking up takes one of them longer than the other.
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < self.threads {
            thread::yield_now();
        }
    }
}

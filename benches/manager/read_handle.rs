//! Reads by a handle that is kept: on one thread, and on two at the same time.

use std::future::Future;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hurdlr_oauth2::manager::UserHandle;

use crate::harness::Outcome;
use crate::nowhere::Nowhere;
use crate::{Size, hurdlr_of_nobody, manager_of, median_ratio, quartile, user};

/// The number of times the reads are measured, with all other figures in between: a machine can
/// have two threads share one core for seconds, and the quartile is to be one of many such spans.
const SITTINGS: usize = 3;

/// The number of rounds without a pause, for the same reason.
const AT_A_STRETCH: usize = 400;

/// Measures one of the sittings.
pub(crate) async fn measure(size: Size) -> Outcome<Reads> {
    let manager = manager_of(hurdlr_of_nobody()?, Nowhere, 1, Duration::ZERO).await?;
    let handle = Arc::new(manager.user(&user(0)));
    handle.token().await?;

    let start = Arc::new(Start { barrier: Barrier::new(2), arrived: AtomicUsize::new(0) });
    let reader = |is_first: bool| {
        let (handle, start) = (Arc::clone(&handle), Arc::clone(&start));
        let floor = ArcSwap::from_pointee(coarse_millis());
        let rounds = async move {
            let mut reads = Reads::default();
            for round in 1..=size.rounds.div_ceil(SITTINGS) {
                if round.is_multiple_of(AT_A_STRETCH) {
                    thread::sleep(Duration::from_secs(1));
                }
                start.barrier.wait();
                if is_first && round % 2 == 0 {
                    reads.alone.push(size.per_read(read(&handle, size.reads).await));
                    reads.floor.push(size.per_read(read_floor(&floor, size.reads)));
                } else if is_first {
                    reads.floor.push(size.per_read(read_floor(&floor, size.reads)));
                    reads.alone.push(size.per_read(read(&handle, size.reads).await));
                }
                start.both();
                reads.beside.push(size.per_read(read(&handle, size.reads).await));
            }
            reads
        };
        // Each has a runtime of its own, so that they are never two tasks of one thread.
        thread::spawn(move || on_a_runtime(rounds))
    };
    let (one, other) = (reader(true), reader(false));
    let (one, other) = tokio::task::spawn_blocking(|| (one.join(), other.join())).await?;
    let mut reads = one.map_err(|_| "a reader panicked")??;
    let other = other.map_err(|_| "a reader panicked")??;
    for (one, other) in reads.beside.iter_mut().zip(other.beside) {
        *one = f64::midpoint(*one, other);
    }
    Ok(reads)
}

async fn read(handle: &UserHandle, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        // An error would be a missing token, which `measure` has ruled out.
        if let Ok(token) = handle.token().await {
            black_box(token.access_token());
        }
    }
    start.elapsed()
}

/// The least work of a read: one load, and one look at the clocks.
fn read_floor(swap: &ArcSwap<[i64; 2]>, reads: u32) -> Duration {
    let start = Instant::now();
    for _ in 0..reads {
        let received = swap.load();
        let ([monotonic, wall], now) = (**received, coarse_millis());
        black_box((now[0] - monotonic).max(now[1] - wall));
    }
    start.elapsed()
}

/// The coarse monotonic and wall clocks.
#[cfg(target_os = "linux")]
fn coarse_millis() -> [i64; 2] {
    use rustix::time::{ClockId, clock_gettime};
    [ClockId::MonotonicCoarse, ClockId::RealtimeCoarse].map(|clock| {
        let time = clock_gettime(clock);
        time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
    })
}

/// The same where there are no coarse clocks.
#[cfg(not(target_os = "linux"))]
fn coarse_millis() -> [i64; 2] {
    use hurdlr_oauth2::{Clock, SystemClock};
    let wall = SystemClock.now().wall().duration_since(std::time::UNIX_EPOCH);
    [0, wall.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))]
}

/// Nanoseconds per read, round by round.
#[derive(Default)]
pub(crate) struct Reads {
    alone: Vec<f64>,
    floor: Vec<f64>,
    /// Beside another thread that reads, the mean of both.
    beside: Vec<f64>,
}

impl Reads {
    pub(crate) fn add(&mut self, later: Self) {
        self.alone.extend(later.alone);
        self.floor.extend(later.floor);
        self.beside.extend(later.beside);
    }

    pub(crate) fn figures(self, size: Size) {
        let Self { alone, floor, beside } = self;
        size.figure("manager.read_handle_vs_floor", median_ratio(&alone, &floor), "x");
        let (alone, floor, beside) = (quartile(alone, 1), quartile(floor, 1), quartile(beside, 1));
        size.figure("manager.read_handle_ns", alone, "ns");
        size.figure("manager.read_handle_ns_floor", floor, "ns");
        size.figure("manager.read_handle_scaling", beside / alone, "x");
    }
}

/// A meeting point of two readers.
struct Start {
    barrier: Barrier,
    arrived: AtomicUsize,
}

impl Start {
    fn both(&self) {
        self.barrier.wait();
        // Waking up takes one of them longer than the other.
        let arrived = self.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        while self.arrived.load(Ordering::Acquire) < arrived.next_multiple_of(2) {
            thread::yield_now();
        }
    }
}

/// Runs `work` in a task of a runtime with one thread: this one.
fn on_a_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(async { tokio::spawn(work).await })?)
}

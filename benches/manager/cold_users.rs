//! First tokens of users whom the manager has never seen.

use std::future::Future;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};

use crate::harness::{Outcome, Provider};
use crate::{Size, count, median, user};

/// The grants by the manager, over the same grants by the client alone.
pub(crate) async fn beside_bare(size: Size) -> Outcome {
    let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.providers {
        // A provider that has granted a million tokens is slow, and stops when its tables grow.
        let provider = Provider::start()?;
        let hurdlr = provider.hurdlr()?;
        for round in 0..=size.long_rounds {
            let (our_time, their_time) = cold_round(&hurdlr, size.cold_users, round).await?;
            // The first round is a warm-up.
            if round > 0 {
                ratios.push(our_time / their_time);
                ours.push(our_time);
                theirs.push(their_time);
            }
        }
    }
    size.figure("manager.cold_users_vs_bare", median(ratios), "x");
    let each = |times| median(times) * 1e6 / count(size.cold_users);
    size.figure("manager.cold_users_us", each(ours), "us");
    size.figure("manager.cold_users_us_bare", each(theirs), "us");
    Ok(())
}

/// The seconds until all users are granted: by a manager, and by the client alone.
async fn cold_round(hurdlr: &Hurdlr, users: usize, round: usize) -> Outcome<(f64, f64)> {
    let manager = TokenManager::builder(hurdlr.clone(), MemoryStore::new())
        .max_concurrent_refreshes(AT_ONCE)
        .build()?;
    let ours = {
        let manager = manager.clone();
        move |user| {
            let handle = manager.enterprise_user(&user);
            async move { handle.token().await.map(|token| drop(black_box(token))) }
        }
    };
    let theirs = {
        let hurdlr = hurdlr.clone();
        move |user| {
            let hurdlr = hurdlr.clone();
            async move { hurdlr.client_credentials(&user).await.map(|token| drop(black_box(token))) }
        }
    };
    let (mut our_time, mut their_time) = (Duration::ZERO, Duration::ZERO);
    for turn in 0..TURNS {
        let users = turn * users / TURNS..(turn + 1) * users / TURNS;
        if (round + turn).is_multiple_of(2) {
            our_time += grant_all(users.clone(), ours.clone()).await?;
            their_time += grant_all(users, theirs.clone()).await?;
        } else {
            their_time += grant_all(users.clone(), theirs.clone()).await?;
            our_time += grant_all(users, ours.clone()).await?;
        }
    }
    if manager.users_in_memory() != users {
        return Err("not all users are in memory".into());
    }
    Ok((our_time.as_secs_f64(), their_time.as_secs_f64()))
}

/// The number of grants at once.
const AT_ONCE: usize = 64;

/// The number of turns that the two sides take in a round: the machine changes its pace within one.
/// The side that goes first changes with the rounds too, since the provider's tables grow at the
/// same places each time.
const TURNS: usize = 10;

async fn grant_all<F>(
    users: Range<usize>,
    grant: impl Fn(UserId) -> F + Clone + Send + Sync + 'static,
) -> Outcome<Duration>
where
    F: Future<Output = Result<(), hurdlr_oauth2::Error>> + Send,
{
    let next = Arc::new(AtomicUsize::new(users.start));
    let start = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, grant) = (Arc::clone(&next), grant.clone());
        workers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= users.end {
                    return Outcome::Ok(());
                }
                grant(user(n)).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(start.elapsed())
}

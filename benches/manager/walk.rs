//! The walk over due users: those who are not in memory, and those beside slow ones.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Hurdlr, HurdlrBuilder, TokenManager};
use tokio::sync::Notify;

use crate::harness::Outcome;
use crate::{Size, capacity, count, manager_of, median, median_ratio, write_token};

/// The age of a token that is due, and lives, by the default policy.
const DUE: Duration = Duration::from_hours(80 * 24);

/// The time between two walks; only the first one is measured.
const INTERVAL: Duration = Duration::from_hours(1);

/// The users per second that a walk renews from the store, over those in memory.
pub(crate) async fn cold_beside_warm(size: Size) -> Outcome {
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for round in 0..=size.long_rounds {
        let cold_first = [walk_at_once(size, true).await?, walk_at_once(size, false).await?];
        let warm_first = [walk_at_once(size, false).await?, walk_at_once(size, true).await?];
        // The first round is a warm-up.
        if round > 0 {
            cold.push(f64::midpoint(cold_first[0], warm_first[1]));
            warm.push(f64::midpoint(cold_first[1], warm_first[0]));
        }
    }
    let ratio = median_ratio(&cold, &warm);
    size.figure("manager.walk_cold_vs_warm", ratio, "x");
    size.figure("manager.walk_cold_users_per_second", median(cold), "users/s");
    size.figure("manager.walk_warm_users_per_second", median(warm), "users/s");
    Ok(())
}

/// The users per second of one walk, at a provider that answers at once.
async fn walk_at_once(size: Size, is_cold: bool) -> Outcome<f64> {
    let provider = Answering::new(size.due_users, |_| Duration::ZERO);
    let store = MemoryStore::new();
    let hurdlr = hurdlr(&provider).build()?;
    let mut manager = manager_of(hurdlr.clone(), store.clone(), size.due_users, DUE).await?;
    if is_cold {
        manager = TokenManager::builder(hurdlr, store)
            .cache_capacity(capacity(size.due_users))
            .build()?;
    }
    let start = Instant::now();
    let walk = manager.keep_alive(INTERVAL);
    provider.0.all_answered.notified().await;
    let taken = start.elapsed();
    walk.stop().await;
    Ok(count(size.due_users) / taken.as_secs_f64())
}

/// One in so many users is slow.
const SLOW: usize = 64;

/// The time until all users but the slow ones are renewed, over the time of a walk without any.
pub(crate) fn beside_slow_users(size: Size) -> Outcome {
    let beside = walk_in_virtual_time(size, true)?.as_secs_f64();
    let without = walk_in_virtual_time(size, false)?.as_secs_f64();
    size.figure("manager.walk_beside_slow_users", beside / without, "x");
    size.figure("manager.walk_beside_slow_users_seconds", beside, "virtual s");
    size.figure("manager.walk_without_slow_users_seconds", without, "virtual s");
    Ok(())
}

fn walk_in_virtual_time(size: Size, has_slow: bool) -> Outcome<Duration> {
    let users = size.due_users;
    let slow = if has_slow { users / SLOW } else { 0 };
    let provider = Answering::new(users - slow, move |n| match n % SLOW {
        0 if has_slow => Duration::from_secs(25),
        _ => Duration::from_millis(50 + u64::try_from(n % 51).unwrap_or(0)),
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(async {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let hurdlr = hurdlr(&provider).clock(clock).build()?;
        let manager = manager_of(hurdlr, store, users, DUE).await?;
        let start = tokio::time::Instant::now();
        let walk = manager.keep_alive(INTERVAL);
        provider.0.all_answered.notified().await;
        let taken = start.elapsed();
        walk.stop().await;
        let unfinished = manager.shutdown().await;
        if unfinished.len() > slow {
            return Err("a user who is not slow was not renewed".into());
        }
        Ok(taken)
    })
}

fn hurdlr(provider: &Answering) -> HurdlrBuilder {
    Hurdlr::builder("client-id", "client-secret".into()).http_client(provider.clone())
}

/// A provider that renews every token after a delay of its own.
#[derive(Clone)]
struct Answering(Arc<Answers>);

struct Answers {
    delay: Box<dyn Fn(usize) -> Duration + Send + Sync>,
    left: AtomicUsize,
    /// Notified when as many users were answered as were expected.
    all_answered: Notify,
}

impl Answering {
    fn new(expected: usize, delay: impl Fn(usize) -> Duration + Send + Sync + 'static) -> Self {
        let (left, all_answered) = (AtomicUsize::new(expected), Notify::new());
        Self(Arc::new(Answers { delay: Box::new(delay), left, all_answered }))
    }
}

impl<'c> AsyncHttpClient<'c> for Answering {
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let user = user_of(request.body()).unwrap_or(usize::MAX);
            let delay = (self.0.delay)(user);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut json = String::with_capacity(512);
            // Writing to a string cannot fail.
            let _ = write_token(&mut json, user, Duration::ZERO);
            if self.0.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.0.all_answered.notify_one();
            }
            Ok(HttpResponse::new(json.into_bytes()))
        })
    }
}

/// The user whose refresh token a request holds: its first 64 characters are the number.
fn user_of(form: &[u8]) -> Option<usize> {
    let (_, token) = std::str::from_utf8(form).ok()?.split_once("&refresh_token=")?;
    usize::from_str_radix(token.get(..64)?, 16).ok()
}

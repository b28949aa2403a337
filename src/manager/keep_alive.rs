//! A walk over the due users whom nobody reads.
//!
//! The walk goes through the store's due rows in their order and visits each once, whatever becomes
//! of those before it. As many visits run at once as refreshes may, slow ones included; whenever
//! one ends, the next begins. Where the provider is down, the walk slows to one visit at a time,
//! with growing pauses, until a visit succeeds.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::entry::Context;
use super::revocation;
use super::single_flight::{Priority, join_or_start};
use super::users::Users;
use crate::error::{Error, ErrorKind};
use crate::store::{Claim, DueCursor, DueRow, Release, RowKind, StoreKey, Version};

/// The walk that [`TokenManager::keep_alive`](super::TokenManager::keep_alive) starts. It ends when
/// this is stopped or dropped; refreshes in flight finish all the same.
#[derive(Debug)]
pub struct KeepAlive(AbortOnDropHandle<()>);

/// How long a walk keeps other processes from theirs, at most.
const MAX_LOCKED: Duration = Duration::from_hours(1);

/// The outcome of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    /// Renewed here, or revoked.
    Done,
    /// Left alone: fresh by this process's policy, paused, refused, unreadable, or being refreshed
    /// elsewhere.
    Skipped,
    /// The provider did not answer, or with a server error.
    ProviderDown,
}

impl KeepAlive {
    pub(super) fn start(users: Arc<Users>, context: Arc<Context>, interval: Duration) -> Self {
        let interval = interval.max(context.policy.backoff.initial);
        let runtime = context.runtime.clone();
        let walker = runtime.spawn(async move {
            let walks = async {
                loop {
                    match walk(&users, &context, interval).await {
                        Ok(renewed) => tracing::debug!(renewed, "walked over the due users"),
                        Err(error) => {
                            tracing::warn!(%error, "the walk over due users failed; it starts again after the interval");
                        }
                    }
                    // Not all replicas at the same moment.
                    let jitter = Duration::from_millis(context.rng.next_u64() % 1_000);
                    context.clock.sleep(interval.saturating_add(jitter)).await;
                }
            };
            context.until_closing(walks).await;
        });
        Self(AbortOnDropHandle::new(walker))
    }

    /// Stops the walk and waits until it has stopped.
    ///
    /// # Cancel safety
    ///
    /// The walk stops even if this future is dropped.
    pub async fn stop(self) {
        self.0.abort();
        let _ = self.0.await; // an error says that it was stopped
    }
}

/// Walks once, unless another process does or has just done. Returns how many users it renewed.
async fn walk(
    users: &Arc<Users>,
    context: &Arc<Context>,
    interval: Duration,
) -> Result<usize, Error> {
    let lock = Lock { context, key: context.keep_alive_lock(), holder: context.random_id() };
    let Some(version) = lock.extend().await? else {
        return Ok(0);
    };
    let limit = context.permits.max;
    let (mut renewed, mut unreadable) = (0, 0);
    let mut breaker = Breaker { limit, failures: 0, pauses: 0 };
    let mut visits = JoinSet::new();
    let mut page = Vec::new().into_iter();
    let mut cursor: Option<DueCursor> = None;
    let mut is_last_page = false;
    loop {
        if page.len() == 0 && !is_last_page {
            if lock.extend().await?.is_none() {
                return Ok(renewed); // it took so long that another process walks now
            }
            let rows = context.store.due(&context.realm, cursor.as_ref(), limit).await?;
            is_last_page = rows.len() < limit;
            page = rows.into_iter();
        }
        // Visits whose requests hang must not keep the others from their permits.
        while visits.len() < breaker.visits_at_once(context.permits.max_with_slow()) {
            let Some(DueRow { cursor: place, key }) = page.next() else {
                break;
            };
            cursor = Some(place);
            match key {
                Ok(key) => {
                    let visit = visit(Arc::clone(users), Arc::clone(context), key);
                    visits.spawn_on(visit, &context.runtime);
                }
                Err(_) => unreadable += 1,
            }
        }
        match visits.join_next().await {
            Some(visit) => {
                // A visit that panicked is that user's trouble alone.
                let visit = visit.unwrap_or(Visit::Skipped);
                renewed += usize::from(visit == Visit::Done);
                breaker.record(visit);
            }
            None if breaker.is_open() => context.clock.sleep(breaker.pause(context)).await,
            None if page.len() == 0 && is_last_page => break,
            None => {}
        }
    }
    if unreadable > 0 {
        tracing::warn!(unreadable, "skipped due users whose ids cannot be decrypted");
    }
    // Other processes go by intervals of their own.
    let release = Release { not_before: interval.min(MAX_LOCKED), ..Release::default() };
    context.store.release(&lock.key, version, lock.holder, release).await?;
    Ok(renewed)
}

/// The row by which processes agree who walks.
struct Lock<'a> {
    context: &'a Context,
    key: StoreKey,
    holder: u64,
}

impl Lock<'_> {
    /// Takes the lock, or holds it for another lease. `None` where another process has it.
    async fn extend(&self) -> Result<Option<Version>, Error> {
        let claim = Claim { holder: self.holder, ..self.context.claim(None, true) };
        let claimed = self.context.store.claim(&self.key, claim).await?;
        Ok(claimed.row.filter(|_| claimed.granted).map(|row| row.version))
    }
}

/// A circuit breaker: slows the walk while the provider is down.
struct Breaker {
    /// How many refreshes run at once.
    limit: usize,
    /// How many visits in a row found the provider down, since the last pause.
    failures: usize,
    /// How many pauses there were since a visit succeeded.
    pauses: u32,
}

impl Breaker {
    /// Whether no visit may begin before the next pause: as many in a row as run at once have found
    /// the provider down, or the first one after a pause still does.
    fn is_open(&self) -> bool {
        self.failures >= if self.pauses > 0 { 1 } else { self.limit }
    }

    fn visits_at_once(&self, limit: usize) -> usize {
        match (self.is_open(), self.pauses) {
            (true, _) => 0,
            (false, 0) => limit,
            (false, _) => 1,
        }
    }

    fn record(&mut self, visit: Visit) {
        match visit {
            Visit::Done => (self.failures, self.pauses) = (0, 0),
            Visit::Skipped => {}
            Visit::ProviderDown => self.failures += 1,
        }
    }

    /// Closes the breaker for one visit. Returns how long to pause before it.
    fn pause(&mut self, context: &Context) -> Duration {
        self.failures = 0;
        self.pauses += 1;
        context.delay(context.policy.backoff, self.pauses)
    }
}

/// Visits a due row.
async fn visit(users: Arc<Users>, context: Arc<Context>, key: StoreKey) -> Visit {
    if key.kind() == RowKind::PendingRevocation {
        let finish = revocation::finish(Arc::clone(&context), key);
        return match context.spawn(finish).await {
            Ok(Ok(true)) => Visit::Done,
            Ok(Ok(false)) | Err(_) => Visit::Skipped,
            Ok(Err(error)) => {
                tracing::warn!(error = %error.for_log(), "could not revoke a token; trying again later");
                Visit::Skipped
            }
        };
    }
    let entry = users.entry(key.kind(), key.subject());
    let is_fresh = || entry.current.load().is_fresh(context.clock.now());
    if is_fresh() {
        return Visit::Skipped;
    }
    let refreshed = match join_or_start(&entry, Priority::Background) {
        Ok(flight) => flight.wait().await,
        Err(_) => return Visit::Skipped,
    };
    match refreshed {
        Ok(()) if is_fresh() => Visit::Done,
        // A doubtful refusal may be this user's trouble alone.
        Err(error)
            if error.kind() == ErrorKind::Unavailable
                && error.attempts() > 0
                && !error.is_doubtful() =>
        {
            Visit::ProviderDown
        }
        _ => Visit::Skipped,
    }
}

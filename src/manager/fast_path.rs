//! The fast path of a read, and the only clever code of the manager.
//!
//! A read is one wait-free load and one coarse clock: no lock, no allocation, no copy of a secret.
//! `cargo bench --bench manager` prints `manager.read_handle_vs_floor`, which compares it with an
//! `arc_swap` load and the coarse clocks written by hand.
//!
//! - A token that was found fresh, and was compared with the store lately, is *armed* for the
//!   current second of the wall clock. Until that second is over, a read compares two integers. A
//!   wall clock that was set back, or a machine that was suspended, shows another second, and the
//!   slow path decides. Only a clock that is put back to the very second of the last read lets that
//!   second's token pass once more.
//! - The clock is read before the guard is loaded, which avoids a spill and lets the path inline.
//! - [`TokenFuture`] polls inline: returning the two-word guard through a call causes a
//!   store-forwarding stall that dominates the read. Its slow path is boxed, so that a ready read
//!   allocates nothing.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::Guard;
#[cfg(any(feature = "middleware", feature = "tower"))]
use http::HeaderValue;

use super::cached_token::CachedToken;
use super::entry::UserEntry;
use super::read;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::token::Token;

/// Arms the fast path for the current second, unless the token becomes due or is to be compared
/// with the store within it.
fn arm(cached: &CachedToken, now: Timestamp, revalidate_after: Duration) {
    let no_look_for = revalidate_after.saturating_sub(cached.since_look(now));
    if cached.due_in(now).min(no_look_for) > Duration::from_secs(1) {
        // Relaxed: the second publishes nothing but itself, and a refused token has its own flag.
        cached.fast_path_second.store(now.unix_seconds(), Ordering::Relaxed);
    }
}

/// Whether the token was found fresh in this second, and was not refused since.
#[inline]
fn is_armed(cached: &CachedToken, second: i64) -> bool {
    cached.fast_path_second.load(Ordering::Relaxed) == second && !cached.is_rejected()
}

#[allow(clippy::inline_always, reason = "see the module's documentation")]
#[inline(always)]
fn armed_token(entry: &UserEntry) -> Option<TokenGuard> {
    let second = entry.context.clock.coarse_unix_seconds();
    let cached = entry.current.load();
    is_armed(&cached, second).then_some(TokenGuard(cached))
}

type SlowRead<'a> = Pin<Box<dyn Future<Output = Result<TokenGuard, Error>> + Send + 'a>>;

/// The future of [`UserHandle::token`](super::UserHandle::token). It takes no memory of its own
/// while a token is ready.
#[must_use = "futures do nothing unless awaited"]
pub struct TokenFuture<'a> {
    entry: &'a Arc<UserEntry>,
    slow: Option<SlowRead<'a>>,
}

impl<'a> TokenFuture<'a> {
    #[inline]
    pub(super) fn new(entry: &'a Arc<UserEntry>) -> Self {
        Self { entry, slow: None }
    }

    #[cold]
    fn poll_slow(&mut self, context: &mut Context<'_>) -> Poll<Result<TokenGuard, Error>> {
        let entry = self.entry;
        if let Some(slow) = &mut self.slow {
            return slow.as_mut().poll(context);
        }
        if let Some((cached, now)) = read::ready(entry) {
            arm(&cached, now, entry.context.revalidate_after);
            return Poll::Ready(Ok(TokenGuard(cached)));
        }
        let refreshed = async move { read::refreshed(entry).await.map(TokenGuard) };
        self.slow.insert(Box::pin(refreshed)).as_mut().poll(context)
    }
}

impl Future for TokenFuture<'_> {
    type Output = Result<TokenGuard, Error>;

    #[allow(clippy::inline_always, reason = "see the module's documentation")]
    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.slow.is_none()
            && let Some(token) = armed_token(self.entry)
        {
            return Poll::Ready(Ok(token));
        }
        self.poll_slow(context)
    }
}

impl fmt::Debug for TokenFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFuture").field("entry", self.entry).finish_non_exhaustive()
    }
}

/// A token as it is read: borrowed without a copy, for as long as one request takes.
///
/// Build the header and drop it. Many guards held on one thread slow reads down, and each keeps a
/// replaced token in memory. [`into_shared`](Self::into_shared) gives one that may be kept.
pub struct TokenGuard(pub(super) Guard<Arc<CachedToken>>);

impl TokenGuard {
    /// Shares the token, for callers that keep it.
    #[must_use]
    pub fn into_shared(self) -> SharedToken {
        SharedToken(Guard::into_inner(self.0))
    }
}

impl Deref for TokenGuard {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.0.token
    }
}

impl fmt::Debug for TokenGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A token that may be kept. Cloning shares it; no secret is copied.
#[derive(Clone)]
pub struct SharedToken(Arc<CachedToken>);

#[cfg(any(feature = "middleware", feature = "tower"))]
impl SharedToken {
    pub(crate) fn authorization(&self) -> HeaderValue {
        self.0.authorization()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.has_same_access_token(&other.0)
    }
}

impl Deref for SharedToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.0.token
    }
}

impl fmt::Debug for SharedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

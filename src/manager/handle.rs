//! One user: the token read, refused, forgotten, watched.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::Guard;
#[cfg(any(feature = "middleware", feature = "tower"))]
use http::HeaderValue;
use secrecy::ExposeSecret;
use tokio::sync::watch;

use super::entry::{Entry, Held};
use super::meters::Gauged;
use super::{Disconnected, TokenEvent, abandoned};
#[cfg(any(feature = "middleware", feature = "tower"))]
use crate::client::Hurdlr;
use crate::error::{Error, ErrorKind};
use crate::token::Token;
use crate::user::UserId;

/// One user of a [`TokenManager`](super::TokenManager). Cheap to clone and to keep.
///
/// A user somebody holds a handle of stays in memory.
#[derive(Clone)]
pub struct UserHandle {
    entry: Arc<Entry>,
}

impl UserHandle {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self { entry }
    }

    /// The user's id.
    #[must_use]
    pub fn id(&self) -> &UserId {
        self.entry.subject()
    }

    /// The client that the user's tokens are obtained by.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn hurdlr(&self) -> &Hurdlr {
        &self.entry.inner.hurdlr
    }

    /// A living token: at once where there is one, else as soon as the refresh under way has
    /// brought it.
    ///
    /// Dropping the future cancels nothing. What it gives is lent: use it and let it go. The wait
    /// can last as long as a refresh may, and its turn before that;
    /// [`token_timeout`](Self::token_timeout) bounds it.
    ///
    /// [`ErrorKind::LoginRequired`] and [`ErrorKind::RotationLost`] where the person has to log in;
    /// [`ErrorKind::RateLimited`], [`ErrorKind::Unavailable`] and [`ErrorKind::Store`] where it can
    /// be tried again later; [`ErrorKind::Rejected`] and [`ErrorKind::InvalidResponse`] where
    /// something has to be mended. During the pause after a failure callers are told at once.
    #[inline]
    pub fn token(&self) -> TokenFuture<'_> {
        TokenFuture { handle: self, waiting: None }
    }

    /// As [`token`](Self::token), for a caller who can wait `patience` at the most: then it is
    /// [`ErrorKind::TimedOut`], and the refresh goes on.
    pub async fn token_timeout(&self, patience: Duration) -> Result<TokenGuard, Error> {
        tokio::select! {
            biased;
            token = self.token() => token,
            // Near its end a token is waited for, and is still better than none.
            () = self.entry.inner.clock.sleep(patience) => self.alive().ok_or_else(|| {
                Error::new(ErrorKind::TimedOut, "no token within the time the caller had")
            }),
        }
    }

    /// The token if it can be had at once. No refresh is begun, neither for a user without one nor
    /// for a token that is due.
    #[must_use]
    pub fn try_token(&self) -> Option<TokenGuard> {
        let inner = &self.entry.inner;
        let held = self.entry.current.load();
        let now = inner.clock.now();
        inner.look_after(&self.entry, self.entry.unseen_for(now));
        held.is_served(now).then_some(TokenGuard(held))
    }

    /// In how long the token in memory is due for renewal: zero where it is, none where there is no
    /// token. For a page or a log that tells; nothing is begun by it.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let held = self.entry.current.load();
        held.version.map(|_| held.due_in(self.entry.inner.clock.now()))
    }

    /// How often the token in memory was renewed since the user came in; none where there is no
    /// token.
    #[must_use]
    pub fn refreshes(&self) -> Option<u64> {
        let version = self.entry.current.load().version;
        version.map(|version| version.revision.saturating_sub(1))
    }

    /// Reports that the API answered 401 to this token.
    ///
    /// If it is still the user's token, it is not served any more, even if its refresh fails. One
    /// that was created more than 60 s ago is refreshed at once; a younger one after a pause that
    /// grows, since an API that refuses every token must not have them all refreshed again and
    /// again.
    pub fn report_unauthorized(&self, token: &Token) {
        const YOUNG: Duration = Duration::from_secs(60);
        let held = self.entry.current.load();
        let same =
            held.token.access_token().expose_secret() == token.access_token().expose_secret();
        if held.version.is_none() || !same {
            return;
        }
        let now = self.entry.inner.clock.now();
        let young = token.age() < YOUNG;
        self.entry.with(|troubles| {
            if !held.reject() {
                return; // said before
            }
            troubles.refusals = if young { troubles.refusals.saturating_add(1) } else { 0 };
            if young {
                let random = self.entry.inner.random.next_u64();
                let pause = self.entry.inner.policy.backoff(troubles.refusals, random);
                troubles.backoff.since = Some((now, pause));
                // Once may be a replica of the provider's that has not heard of the token yet.
                troubles.backoff.error = (troubles.refusals > 1).then(|| {
                    Error::new(ErrorKind::Unavailable, "the API refuses this user's new tokens")
                });
            }
        });
        tracing::info!(user = ?self.entry.subject(), young, "the API refused a token");
        // Where it is not time yet, the next reader starts it.
        let _ = self.entry.inner.join(&self.entry, false);
    }

    /// Removes the user here and from the store. A refresh under way does not bring them back.
    ///
    /// The provider is not told, and the tokens live there to their end, save one that a refresh
    /// under way brings: that is revoked, where the version can. Use
    /// [`disconnect`](Self::disconnect) to have all of them revoked. Other processes learn of it within
    /// [`revalidate_after`](super::TokenManagerBuilder::revalidate_after).
    pub async fn forget(&self) -> Result<(), Error> {
        self.entry.leave();
        let _turn = self.entry.turn().await;
        let forgotten = self.entry.inner.store.forget(&self.entry.key()).await;
        // Again: a read may have brought the row back into memory before it was removed.
        self.entry.leave();
        forgotten.map(|_| ())
    }

    /// Ends the user's stay: removes them here and from the store, and has the provider revoke their
    /// tokens.
    ///
    /// They are served no more from the moment of the call here, and in other processes within
    /// [`revalidate_after`](super::TokenManagerBuilder::revalidate_after), whether or not the provider
    /// answers. A refresh under way is waited for, and what it brings is revoked too; one in another
    /// process for as long as its lease lasts. Dropping the future cancels nothing. An enterprise
    /// user, or the partner, is granted anew by the next read.
    ///
    /// `Ok` says that they are gone from here and from the store, and [`Disconnected`] what became
    /// of their tokens. What is still to be revoked is written down in the store: should this
    /// process end before it is, another one's
    /// [`keep_alive`](super::TokenManager::keep_alive) does it. An error of kind
    /// [`Store`](ErrorKind::Store) says that the user may be there still, though the token that was
    /// served here is being revoked: call it again.
    ///
    /// ```
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager, UserId};
    /// use hurdlr_oauth2::manager::Disconnected;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    /// #     .environment(fake.base_url())
    /// #     .api_version(ApiVersion::V6)
    /// #     .build()?;
    /// # let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    /// # let user = manager.enterprise_user(&UserId::new("ann")?);
    /// # user.token().await?;
    /// match user.disconnect().await? {
    ///     Disconnected::Revoked => println!("nothing of theirs lives any more"),
    ///     Disconnected::Pending(why) => println!("asked again in the background: {why}"),
    ///     Disconnected::Unrevoked { until } => println!("API v4 and v5: lives until {until:?}"),
    ///     _ => {}
    /// }
    /// # assert_eq!(fake.tokens_alive("ann"), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn disconnect(&self) -> Result<Disconnected, Error> {
        let newest = self.entry.leave();
        let inner = &self.entry.inner;
        // In a task of its own: a caller who goes away must not leave it half done.
        let ended = Arc::clone(inner).disconnect(Arc::clone(&self.entry), newest);
        inner.spawn(ended).await.map_err(|source| abandoned().caused_by(source))?
    }

    /// Watches what changes about the user from now on.
    ///
    /// ```
    /// # use hurdlr_oauth2::manager::TokenEvent;
    /// # use hurdlr_oauth2::store::MemoryStore;
    /// # use hurdlr_oauth2::testing::FakeHurdlr;
    /// # use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fake = FakeHurdlr::start().await?;
    /// # let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
    /// #     .environment(fake.base_url())
    /// #     .build()?;
    /// # let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
    /// let user = manager.enterprise_user(&UserId::new("ann")?);
    /// let mut changes = user.subscribe();
    /// user.token().await?;
    /// assert_eq!(changes.next().await, TokenEvent::NewToken);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> TokenEvents {
        let receiver = self.entry.with(|troubles| {
            troubles
                .changes
                .get_or_insert_with(|| watch::Sender::new((0, TokenEvent::NewToken)))
                .subscribe()
        });
        TokenEvents { receiver, _pinned: Arc::clone(&self.entry) }
    }

    /// Nearly every read there is. The clock comes first: that way nothing has to be put aside for
    /// it, and all of this fits into the caller.
    #[allow(clippy::inline_always, reason = "see `poll`")]
    #[inline(always)]
    fn fresh(&self) -> Option<TokenGuard> {
        let second = self.entry.inner.clock.glance()?;
        let held = self.entry.current.load();
        held.is_fresh_at_a_glance(second).then_some(TokenGuard(held))
    }

    fn ready(&self) -> Option<TokenGuard> {
        let inner = &self.entry.inner;
        let held = self.entry.current.load();
        let now = inner.clock.now();
        inner.look_after(&self.entry, self.entry.unseen_for(now));
        if held.is_fresh(now) {
            held.allow_glances(now, inner.look_after);
            return Some(TokenGuard(held));
        }
        if !held.is_served(now) {
            return None;
        }
        // Due: served all the same, while it is renewed in the background.
        let _ = inner.join(&self.entry, false);
        Some(TokenGuard(held))
    }

    /// What is left to hand out when nothing better can be had.
    fn alive(&self) -> Option<TokenGuard> {
        let held = self.entry.current.load();
        held.is_alive(self.entry.inner.clock.now()).then_some(TokenGuard(held))
    }

    async fn refreshed(&self) -> Result<TokenGuard, Error> {
        // A refresh may end without a token for us when the user comes in anew or is forgotten
        // meanwhile; more than a few of those in a row is nothing to wait for.
        const ROUNDS: u32 = 5;
        let _waiting = Gauged::waiting_caller();
        let mut outcome = Ok(());
        for _ in 0..ROUNDS {
            outcome = match self.entry.inner.join(&self.entry, true) {
                Ok(landing) => landing.wait().await,
                Err(error) => Err(error),
            };
            match self.alive() {
                Some(token) => return Ok(token),
                None if outcome.is_err() => break,
                None => {}
            }
        }
        let message = "the user's token changes faster than it can be read";
        Err(outcome.err().unwrap_or_else(|| Error::new(ErrorKind::Unavailable, message)))
    }
}

impl fmt::Debug for UserHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserHandle")
            .field("kind", &self.entry.kind())
            .field("user", self.entry.subject())
            .finish_non_exhaustive()
    }
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<TokenGuard, Error>> + Send + 'a>>;

/// The future of [`UserHandle::token`]. It takes no memory of its own while a token is ready.
#[must_use = "futures do nothing unless awaited"]
pub struct TokenFuture<'a> {
    handle: &'a UserHandle,
    waiting: Option<Waiting<'a>>,
}

impl TokenFuture<'_> {
    #[cold]
    fn poll_slowly(&mut self, context: &mut Context<'_>) -> Poll<Result<TokenGuard, Error>> {
        let handle = self.handle;
        if let Some(waiting) = &mut self.waiting {
            return waiting.as_mut().poll(context);
        }
        if let Some(token) = handle.ready() {
            return Poll::Ready(Ok(token));
        }
        let waiting = self.waiting.insert(Box::pin(handle.refreshed()));
        waiting.as_mut().poll(context)
    }
}

impl Future for TokenFuture<'_> {
    type Output = Result<TokenGuard, Error>;

    #[allow(
        clippy::inline_always,
        reason = "a token lent through a call is written in halves and read as a whole, which stalls \
                  a CPU for longer than all the rest takes"
    )]
    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.waiting.is_none()
            && let Some(token) = self.handle.fresh()
        {
            return Poll::Ready(Ok(token));
        }
        self.poll_slowly(context)
    }
}

impl fmt::Debug for TokenFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFuture").field("handle", self.handle).finish_non_exhaustive()
    }
}

/// A token as it is read: lent without a copy, for as long as one request takes.
///
/// Do not hoard these: many held on one thread make reading slower, and each keeps a token in
/// memory after it was replaced. [`into_shared`](Self::into_shared) gives what can be held on to.
pub struct TokenGuard(Guard<Arc<Held>>);

impl TokenGuard {
    /// Shares the token, for those who keep it.
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

/// A token that is held on to. Cloning shares it; no secret is copied.
#[derive(Clone)]
pub struct SharedToken(Arc<Held>);

#[cfg(any(feature = "middleware", feature = "tower"))]
impl SharedToken {
    pub(crate) fn authorization(&self) -> HeaderValue {
        self.0.authorization()
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

/// What changes about a user, from the moment of [`UserHandle::subscribe`].
#[derive(Debug)]
pub struct TokenEvents {
    receiver: watch::Receiver<(u64, TokenEvent)>,
    _pinned: Arc<Entry>,
}

impl TokenEvents {
    /// Waits for the next change. If several came since the last call, the newest is returned.
    pub async fn next(&mut self) -> TokenEvent {
        if self.receiver.changed().await.is_err() {
            // Only the end of the entry could close it, and that is held here.
            std::future::pending::<()>().await;
        }
        self.receiver.borrow_and_update().1
    }
}

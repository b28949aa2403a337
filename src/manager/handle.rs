//! One user: the token read, reported, removed, watched.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::cached_token::AccessTokenDigest;
use super::entry::{Refusals, TokenEvent, UserEntry};
use super::fast_path::{TokenFuture, TokenGuard};
use super::flight::cut_off;
use super::read;
use super::removal::{self, Disconnected};
use super::single_flight::{Priority, join_or_start};
use crate::backoff::Backoff;
#[cfg(any(feature = "middleware", feature = "tower"))]
use crate::client::Hurdlr;
use crate::error::{Error, ErrorKind};
use crate::token::Token;
use crate::wire::user::UserId;

/// Pauses between two refusals by the API that are believed, if they follow each other.
const REFUSALS: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_hours(1));

/// One user of a [`TokenManager`](super::TokenManager). Cheap to clone and to keep.
///
/// Holding a handle keeps the user in memory.
#[derive(Clone, Debug)]
pub struct UserHandle {
    pub(super) entry: Arc<UserEntry>,
}

/// Where a user stands, as [`UserHandle::status`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UserStatus {
    /// There is a living token.
    Connected,
    /// There is a living token, and it is time to refresh it.
    Due,
    /// The person has to log in again, or nobody can get this user a token.
    LoginRequired,
    /// There is no token. A user who logged in never did so here or was removed; an enterprise user
    /// has not been granted one yet.
    Unknown,
}

impl UserHandle {
    #[inline]
    pub(super) fn new(entry: Arc<UserEntry>) -> Self {
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
        &self.entry.context.hurdlr
    }

    /// Whether both are handles of one user of one manager, who has one entry in memory.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entry, &other.entry)
    }

    /// A living token: at once where there is one, else as soon as the refresh in flight has
    /// brought it.
    ///
    /// The guard is short-lived: build the header and drop it. The wait lasts as long as a refresh
    /// may, and its turn before that; [`token_timeout`](Self::token_timeout) bounds it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LoginRequired`] and [`ErrorKind::RotationLost`] where the person has to log in;
    /// [`ErrorKind::RateLimited`], [`ErrorKind::Unavailable`] and [`ErrorKind::Store`] where a
    /// later call can succeed; [`ErrorKind::Rejected`] and [`ErrorKind::InvalidResponse`] where
    /// something has to be fixed first. During the pause after a failure, callers are told at once.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the refresh goes on.
    #[inline]
    pub fn token(&self) -> TokenFuture<'_> {
        TokenFuture::new(&self.entry)
    }

    /// Like [`token`](Self::token), but waits at most `timeout`. The refresh continues after that.
    ///
    /// # Errors
    ///
    /// Those of [`token`](Self::token), and [`ErrorKind::TimedOut`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the refresh goes on.
    pub async fn token_timeout(&self, timeout: Duration) -> Result<TokenGuard, Error> {
        tokio::select! {
            biased;
            token = self.token() => token,
            // A token near its end is waited for, and still better than none.
            () = self.entry.context.clock.sleep(timeout) => {
                read::alive(&self.entry).map(TokenGuard).ok_or_else(|| {
                    Error::new(ErrorKind::TimedOut, "no token within the caller's timeout")
                })
            }
        }
    }

    /// The token if it can be served at once. Never starts a refresh, neither for a user without a
    /// token nor for a token that is due.
    #[must_use]
    pub fn try_token(&self) -> Option<TokenGuard> {
        read::served(&self.entry).map(|(cached, _)| TokenGuard(cached))
    }

    /// Where the user stands. Nothing is refreshed, logged or counted; the store is read once where
    /// memory knows nothing of the user.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// use hurdlr_oauth2::manager::UserStatus;
    ///
    /// # fn main() -> Outcome { example(async |_fake, manager| {
    /// let user = manager.enterprise_user(&UserId::new("ann")?);
    /// assert_eq!(user.status().await?, UserStatus::Unknown);
    /// user.token().await?;
    /// assert_eq!(user.status().await?, UserStatus::Connected);
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Store`] where memory knows nothing and the store failed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn status(&self) -> Result<UserStatus, Error> {
        let (entry, now) = (&self.entry, self.entry.context.clock.now());
        let current = entry.current.load_full();
        let (token, is_over) = if current.version.is_some() {
            (Some(current), entry.with(|state| state.is_login_over()))
        } else {
            let row = entry.context.store.read(&entry.key()).await?;
            let is_refused = row.as_ref().is_some_and(|row| row.refused);
            (row.map(|row| entry.decode(&row)).transpose()?.flatten(), is_refused)
        };
        Ok(match token {
            None => UserStatus::Unknown,
            Some(token) if token.is_fresh(now) => UserStatus::Connected,
            Some(token) if is_over && !token.is_alive(now) => UserStatus::LoginRequired,
            Some(_) => UserStatus::Due,
        })
    }

    /// Time until the cached token is due for refresh: zero if it is due, `None` if there is none.
    /// Never starts a refresh.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let cached = self.entry.current.load();
        cached.version.map(|_| cached.due_in(self.entry.context.clock.now()))
    }

    /// How often the cached token was refreshed since the login, the import or the first grant;
    /// `None` if there is none.
    #[must_use]
    pub fn refreshes(&self) -> Option<u64> {
        let version = self.entry.current.load().version;
        version.map(|version| version.revision.saturating_sub(1))
    }

    /// Reports that the API answered 401 to this token.
    ///
    /// Expect that at each refresh: a provider may end the old token at once, under a call that is
    /// on its way. Then get the token anew, and call again.
    ///
    /// The report is believed once: the token is served no more, by whatever way it comes back, and
    /// it is replaced. Where its replacement is refused too, that one is served on for a minute and
    /// then replaced, with pauses that double to an hour: an endpoint that refuses every token must
    /// not take down the calls that work. A refusal that a peer's newer token explains does not
    /// count. A provider that hands out the same token when it is asked for another stands by it:
    /// it is served again. A report of any other token than the user's current one is ignored, and
    /// so is one for a user without a token in memory once the store turns out to hold another.
    pub fn report_unauthorized(&self, token: &Token) {
        let entry = &self.entry;
        let current = entry.current.load();
        let is_current = current.version.is_none()
            || AccessTokenDigest::of(&current.token) == AccessTokenDigest::of(token);
        let now = entry.context.clock.now();
        let is_believed = is_current
            && entry.with(|state| {
                if state.is_refused(token) {
                    return false; // reported before
                }
                let pause = state.refusals.map(|refusals| REFUSALS.bound(refusals.count));
                let passed = state.refusals.map(|refusals| now.since(refusals.at));
                if passed < pause {
                    return false;
                }
                // A refusal after a long peace is the first of its kind.
                let is_first = passed >= pause.map(|pause| 2 * pause);
                let count = state.refusals.filter(|_| !is_first).map_or(0, |last| last.count);
                state.refusals = Some(Refusals { count: count.saturating_add(1), at: now });
                entry.refuse(state, token);
                true
            });
        if !is_believed {
            tracing::debug!(user = ?entry.subject(), "the API refused a token; it is served on");
            return;
        }
        tracing::info!(user = ?entry.subject(), "the API refused a token; it is replaced");
        entry.context.pins.pin_if_needed(entry);
        if current.version.is_some() {
            // An error means that it is paused: then the next reader starts it.
            let _ = join_or_start(entry, Priority::Background);
        }
    }

    /// Removes the user here and from the store. A refresh in flight does not bring them back.
    ///
    /// The provider is not told, and the tokens live there to their end, save one that a refresh in
    /// flight brings: that is revoked, where the version can. Use [`disconnect`](Self::disconnect)
    /// to have all of them revoked. Other processes learn of it within
    /// [`revalidate_after`](super::TokenManagerBuilder::revalidate_after).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Store`] where the store failed: the user may be there still.
    /// [`ErrorKind::Unavailable`] where the manager's runtime is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once it was polled, the removal goes on.
    pub async fn forget(&self) -> Result<(), Error> {
        self.entry.evict();
        let forgotten = self.entry.context.spawn(removal::forget(Arc::clone(&self.entry)));
        forgotten.await.map_err(|source| cut_off().caused_by(source))?
    }

    /// Disconnects the user: removes them here and from the store, and has the provider revoke
    /// their tokens.
    ///
    /// The tokens are served no more from the moment of the call here, and in other processes
    /// within [`revalidate_after`](super::TokenManagerBuilder::revalidate_after), whether or not
    /// the provider answers. A refresh in flight is waited for, and its token is revoked too; one
    /// in another process for as long as its lease lasts. An enterprise user, or the partner, is
    /// granted anew by the next read.
    ///
    /// `Ok` says that the user is gone from here and from the store, and [`Disconnected`] what
    /// became of their tokens. Any process's [`keep_alive`](super::TokenManager::keep_alive)
    /// finishes what this one leaves pending.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// use hurdlr_oauth2::manager::Disconnected;
    ///
    /// # fn main() -> Outcome { example(async |fake, manager| {
    /// # let user = manager.enterprise_user(&UserId::new("ann")?);
    /// # user.token().await?;
    /// match user.disconnect().await? {
    ///     Disconnected::Revoked => println!("none of their tokens lives any more"),
    ///     Disconnected::Pending(why) => println!("asked again in the background: {why}"),
    ///     Disconnected::Unrevoked { until } => println!("API v4 and v5: lives until {until:?}"),
    ///     _ => {}
    /// }
    /// # assert_eq!(fake.tokens_alive("ann"), 0);
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Store`] where the store failed: the user may be there still, though the tokens
    /// that are known here are being revoked. Call it again.
    /// [`ErrorKind::Unavailable`] where the manager's runtime is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once it was polled, all of it goes on.
    pub async fn disconnect(&self) -> Result<Disconnected, Error> {
        let newest = self.entry.evict();
        let disconnect = removal::disconnect(Arc::clone(&self.entry), newest);
        let disconnected = self.entry.context.spawn(disconnect).await;
        disconnected.map_err(|source| cut_off().caused_by(source))?
    }

    /// Watches the user's events from now on.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prelude.rs"));
    /// use hurdlr_oauth2::manager::TokenEvent;
    ///
    /// # fn main() -> Outcome { example(async |_fake, manager| {
    /// let user = manager.enterprise_user(&UserId::new("ann")?);
    /// let mut events = user.subscribe();
    /// user.token().await?;
    /// assert_eq!(events.next().await, TokenEvent::NewToken);
    /// # Ok(()) }) }
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> TokenEvents {
        TokenEvents { receiver: self.entry.subscribe(), _entry: Arc::clone(&self.entry) }
    }
}

/// The events of one user, from the moment of [`UserHandle::subscribe`].
#[derive(Debug)]
pub struct TokenEvents {
    receiver: watch::Receiver<TokenEvent>,
    /// Keeps the user, and so the sender, in memory.
    _entry: Arc<UserEntry>,
}

impl TokenEvents {
    /// Waits for the next event. If several came since the last call, the newest is returned.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event that was not returned is returned by the next call.
    pub async fn next(&mut self) -> TokenEvent {
        if self.receiver.changed().await.is_err() {
            // Only the end of the entry could close it, and that is held here.
            std::future::pending::<()>().await;
        }
        *self.receiver.borrow_and_update()
    }
}

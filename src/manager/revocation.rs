//! The end of a user's stay: tokens that nobody keeps any more, until the provider has revoked them.
//!
//! Such a token waits in a row of its own, under a name drawn at random, so that it is not forgotten
//! with the process that dropped it: whoever walks the due users meets it, and finishes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::entry::{Entry, Held};
use super::{Inner, Landing};
use crate::error::Error;
use crate::store::{Claim, Put, Release, Row, RowKind, StoreKey, StoredToken, Version};
use crate::token::Token;
use crate::user::UserId;

/// What became of the tokens of a user who was
/// [disconnected](super::UserHandle::disconnect).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Disconnected {
    /// The provider has revoked them, or there were none.
    Revoked,
    /// The provider has not revoked them yet, for this reason. It is asked again and again in the
    /// background, and [`shutdown`](super::TokenManager::shutdown) names the user if it still has
    /// not by then.
    Pending(Error),
    /// The API version has no revocation: they are erased here, and live on at the provider.
    Unrevoked {
        /// Until when the access token lives, by the local clock; none where none did. One that a
        /// refresh under way brings, and that is dropped, may live for longer.
        until: Option<SystemTime>,
    },
}

/// A token on its way to be revoked.
struct Dropped {
    /// The row in which it waits.
    key: StoreKey,
    held: Arc<Held>,
}

/// A refresh that may bring a token after the user has left.
enum UnderWay {
    /// In this process.
    Here(Landing),
    /// In another, for so long at the most.
    Elsewhere(Duration),
}

impl UnderWay {
    /// Where the row has a lease, it lives for so long.
    fn of(entry: &Entry, leased_for: Option<Duration>) -> Option<Self> {
        let here = entry.refresh_that_sends().map(Self::Here);
        here.or(leased_for.map(Self::Elsewhere))
    }
}

impl Inner {
    /// Removes a user who has left memory, and has their tokens revoked: `newest` is what was served.
    pub(super) async fn disconnect(
        self: Arc<Self>,
        entry: Arc<Entry>,
        newest: Arc<Held>,
    ) -> Result<Disconnected, Error> {
        if !self.hurdlr.can_revoke() {
            return self.erase(&entry, &newest).await;
        }
        let turn = entry.turn().await;
        let (kept, under_way) = match self.mark(&entry).await {
            Ok(marked) => marked,
            Err(error) => {
                // The user may be there still, and is not meant to be: what was served is to end. It
                // may also be a login that nobody has any more, now that it has left memory.
                if newest.has_token() {
                    let dropped = self.put_aside(&entry, &newest).await;
                    self.keep_revoking(&entry, dropped, error.clone());
                }
                return Err(error);
            }
        };
        // A token that was not saved yet, or a login that the store never saw.
        let unsaved = match &kept {
            _ if !newest.has_token() => None,
            Some(kept) if kept.held.is_no_older_than(&newest) => None,
            _ => Some(self.put_aside(&entry, &newest).await),
        };
        let erased = self.store.forget(&entry.key()).await;
        // Again: a read may have brought the row back into memory before it was removed.
        entry.leave();
        drop(turn);

        for dropped in kept.into_iter().chain(unsaved) {
            self.revoke(&entry, dropped).await;
        }
        // What it brings nobody takes, and so it is revoked by whoever runs it.
        match under_way {
            Some(UnderWay::Here(landing)) => {
                // An error is its end too.
                let _ = landing.wait().await;
            }
            Some(UnderWay::Elsewhere(lease)) => self.sleep_unless_closing(lease).await,
            None => {}
        }
        erased?;
        let (unrevoked, why) = entry.with(|troubles| troubles.unrevoked.clone());
        Ok(why.filter(|_| unrevoked > 0).map_or(Disconnected::Revoked, Disconnected::Pending))
    }

    /// All that can be done where tokens cannot be revoked.
    async fn erase(&self, entry: &Entry, newest: &Held) -> Result<Disconnected, Error> {
        let _turn = entry.turn().await;
        let row = self.read(&entry.key()).await?;
        let kept = self.held_by(entry, row)?;
        self.store.forget(&entry.key()).await?;
        entry.leave();
        let now = self.clock.now();
        let left = kept.map_or(Duration::ZERO, |(kept, _)| kept.alive_for(now));
        let left = left.max(newest.alive_for(now));
        let until = (!left.is_zero()).then(|| now.wall() + left);
        Ok(Disconnected::Unrevoked { until })
    }

    /// Takes the user's token out of its row and puts it aside, at just the revision at which it was
    /// found: from then on nobody serves it who looks at the store, and what a refresh under way
    /// brings is not saved any more.
    async fn mark(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
    ) -> Result<(Option<Dropped>, Option<UnderWay>), Error> {
        // Each round lost is a refresh by somebody else.
        const ROUNDS: u32 = 5;
        let (lease, _) = self.policy.lease_and_deadline();
        for _ in 0..ROUNDS {
            let row = self.read(&entry.key()).await?;
            let leased_for = row.as_ref().and_then(|row| row.leased_for);
            let Some((held, version)) = self.held_by(entry, row)? else {
                // A first grant may be under way all the same.
                return Ok((None, UnderWay::of(entry, leased_for)));
            };
            // So that nobody begins to refresh it now; or to learn that somebody has.
            let claim = Claim {
                lease_id: self.random_id(),
                lease,
                expected: Some(version),
                incarnation: self.random_id(),
            };
            let claimed = self.store.claim(&entry.key(), claim).await?;
            let leased_for = claimed.row.and_then(|row| row.leased_for);
            let under_way = UnderWay::of(entry, leased_for.filter(|_| !claimed.granted));
            let dropped = self.put_aside(entry, &held).await;
            let mark = StoredToken {
                payload: Token::gone(&self.clock).payload(),
                age: Duration::ZERO,
                due_in: Duration::MAX,
            };
            match self.store.save(&entry.key(), version, mark).await {
                Ok(true) => return Ok((Some(dropped), under_way)),
                Ok(false) => self.clear_away(&dropped.key).await,
                Err(error) => {
                    // It may be marked, and is to be revoked in any case.
                    self.keep_revoking(entry, dropped, error.clone());
                    return Err(error);
                }
            }
        }
        Err(Error::store("the user's row changes faster than it can be marked"))
    }

    /// The token of a row, if there is one.
    fn held_by(
        &self,
        entry: &Entry,
        row: Option<Row>,
    ) -> Result<Option<(Arc<Held>, Version)>, Error> {
        let Some((version, stored)) = row.and_then(|row| Some((row.version, row.token?))) else {
            return Ok(None);
        };
        let token = Token::from_payload(&stored.payload, stored.age, &self.clock)?;
        Ok((!token.is_gone()).then(|| (self.hold(entry, token, version), version)))
    }

    /// Has a token revoked that the store will not have: the user was forgotten, or came in anew. Not
    /// so where `theirs` is its successor, or the same.
    pub(super) async fn drop_token(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        ours: &Arc<Held>,
        theirs: Option<&Held>,
    ) {
        let goes_on = theirs.is_some_and(|theirs| theirs.carries_on(ours));
        if goes_on || !self.hurdlr.can_revoke() {
            return;
        }
        let dropped = self.put_aside(entry, ours).await;
        self.revoke(entry, dropped).await;
    }

    /// Writes down that a token is to be revoked. Where the store fails this process alone knows.
    async fn put_aside(&self, entry: &Entry, held: &Arc<Held>) -> Dropped {
        let name = UserId::internal(format!("{:016x}", self.random_id()));
        let key = self.key(RowKind::PendingRevocation, &name);
        // This process comes first.
        let (due_in, _) = self.policy.lease_and_deadline();
        let stored = StoredToken { due_in, ..self.stored(held) };
        if let Err(error) = self.store.put(&key, self.random_id(), stored, Put::Replace).await {
            tracing::warn!(user = ?entry.subject(), %error, "a revocation is not written down");
        }
        Dropped { key, held: Arc::clone(held) }
    }

    async fn clear_away(&self, key: &StoreKey) {
        if let Err(error) = self.store.forget(key).await {
            // Whoever walks asks for it once more, which does no harm.
            tracing::warn!(%error, "a revocation stays written down");
        }
    }

    /// Has a token revoked; where that fails, again and again in the background.
    async fn revoke(self: &Arc<Self>, entry: &Arc<Entry>, dropped: Dropped) {
        if let Err(error) = self.try_to_revoke(&dropped).await {
            tracing::warn!(user = ?entry.subject(), error = %error.for_log(), "a token is not revoked yet");
            self.keep_revoking(entry, dropped, error);
        }
    }

    async fn try_to_revoke(&self, dropped: &Dropped) -> Result<(), Error> {
        let (_, deadline) = self.policy.lease_and_deadline();
        self.hurdlr.revoke_within(&dropped.held.token, deadline).await?;
        tracing::debug!("a token is revoked");
        self.clear_away(&dropped.key).await;
        Ok(())
    }

    fn keep_revoking(self: &Arc<Self>, entry: &Arc<Entry>, dropped: Dropped, error: Error) {
        entry.with(|troubles| {
            troubles.unrevoked.0 += 1;
            troubles.unrevoked.1 = Some(error.clone());
        });
        let (inner, entry) = (Arc::clone(self), Arc::clone(entry));
        self.spawn(async move {
            let mut failures = 0;
            let mut last = error;
            loop {
                failures += 1;
                let pause = inner.policy.backoff(failures, inner.random.next_u64());
                inner.sleep_unless_closing(last.retry_after().unwrap_or_default().max(pause)).await;
                match inner.try_to_revoke(&dropped).await {
                    Ok(()) => break,
                    Err(_) if inner.is_past_closing() => {
                        let what = "a token could not be revoked before the end";
                        inner.gave_up_on(entry.subject(), what);
                        return;
                    }
                    Err(error) => last = error,
                }
            }
            entry.with(|troubles| troubles.unrevoked.0 -= 1);
        });
    }

    /// Revokes a token that waits for it in the store, unless somebody else is at it.
    pub(super) async fn finish_revocation(&self, key: &StoreKey) -> Result<bool, Error> {
        let Some(Row { version, token: Some(stored), .. }) = self.read(key).await? else {
            return Ok(false);
        };
        let token = Token::from_payload(&stored.payload, stored.age, &self.clock)?;
        let (lease, deadline) = self.policy.lease_and_deadline();
        let lease_id = self.random_id();
        let claim = Claim { lease_id, lease, expected: Some(version), incarnation: lease_id };
        if !self.store.claim(key, claim).await?.granted {
            return Ok(false);
        }
        match self.hurdlr.revoke_within(&token, deadline).await {
            Ok(()) => self.store.forget(key).await,
            Err(error) => {
                let not_before = error.retry_after().unwrap_or(self.policy.longest_pause());
                let release = Release { not_before, refused: false };
                self.store.release(key, version, lease_id, release).await?;
                Err(error)
            }
        }
    }
}

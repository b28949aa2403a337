//! A token in memory: its version, its three phases, and what is known of it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

#[cfg(any(feature = "middleware", feature = "tower"))]
use http::HeaderValue;
#[cfg(any(feature = "middleware", feature = "tower"))]
use once_cell::race::OnceBox;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::policy::Phases;
use crate::clock::Timestamp;
use crate::store::{RowKind, StoredToken, Version};
use crate::token::{Notes, SupersededToken, Token};

/// How many superseded access tokens are remembered for a user.
const MAX_SUPERSEDED: usize = 8;

#[derive(Debug)]
pub(super) struct CachedToken {
    pub(super) token: Token,
    /// `None` for the placeholder that stands for no token.
    pub(super) version: Option<Version>,
    phases: Phases,
    /// See `fast_path`.
    pub(super) fast_path_second: AtomicI64,
    /// Whether the API refused it, and was believed. Never unset.
    rejected: AtomicBool,
    /// Milliseconds between receipt and the last look at what the store has.
    looked_at: AtomicU64,
    /// Earlier access tokens of an enterprise user that live on at the provider.
    #[allow(clippy::box_collection, reason = "one word for nearly all users, who have none")]
    superseded: Option<Box<Vec<SupersededToken>>>,
    #[cfg(any(feature = "middleware", feature = "tower"))]
    authorization: OnceBox<HeaderValue>,
}

/// A digest of an access token, for telling whether two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AccessTokenDigest([u8; 32]);

impl AccessTokenDigest {
    pub(super) fn of(token: &Token) -> Self {
        Self(Sha256::digest(token.access_token().expose_secret()).into())
    }
}

impl CachedToken {
    pub(super) fn new(token: Token, version: Option<Version>, phases: Phases) -> Self {
        Self {
            token,
            version,
            phases,
            fast_path_second: AtomicI64::new(i64::MIN),
            rejected: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            superseded: None,
            #[cfg(any(feature = "middleware", feature = "tower"))]
            authorization: OnceBox::new(),
        }
    }

    /// Remembers earlier access tokens, with what a payload's notes say of them.
    pub(super) fn with_superseded(mut self, superseded: Vec<SupersededToken>) -> Self {
        self.superseded = (!superseded.is_empty()).then(|| Box::new(superseded));
        self
    }

    /// Takes the oldest of the earlier access tokens out that are too many to be remembered.
    pub(super) fn take_oldest_superseded(&mut self) -> Vec<Token> {
        let Some(superseded) = &mut self.superseded else {
            return Vec::new();
        };
        let surplus = superseded.len().saturating_sub(MAX_SUPERSEDED);
        let oldest = superseded.drain(..surplus);
        oldest.map(|oldest| self.token.superseded_token(&oldest)).collect()
    }

    /// The access tokens that live on when `successor` replaces this one.
    pub(super) fn superseded_by(&self, successor: &Token, now: Timestamp) -> Vec<SupersededToken> {
        let successor_age = successor.age_at(now);
        let ends_in = |left: Duration| whole_seconds(successor_age + left);
        let own_age = self.token.age_at(now);
        let earlier = self.superseded().iter().filter_map(|earlier| {
            let left = Duration::from_secs(earlier.ends_at_age.into()).checked_sub(own_age)?;
            Some(SupersededToken { ends_at_age: ends_in(left), ..earlier.clone() })
        });
        let left = self.alive_for(now);
        let own = (self.version.is_some() && !left.is_zero()).then(|| SupersededToken {
            access_token: self.token.access_token().clone(),
            ends_at_age: ends_in(left),
        });
        earlier.chain(own).collect()
    }

    /// The earlier access tokens that may live on at the provider.
    pub(super) fn superseded(&self) -> &[SupersededToken] {
        self.superseded.as_ref().map_or(&[], |superseded| superseded.as_slice())
    }

    /// The tokens to be revoked when nobody is to have this one any more: it, and the earlier
    /// access tokens.
    pub(super) fn revocable(&self) -> impl Iterator<Item = Token> {
        let earlier = self.superseded().iter().map(|earlier| self.token.superseded_token(earlier));
        std::iter::once(self.token.revocable()).chain(earlier)
    }

    /// The token as a store takes it.
    pub(super) fn to_stored(&self, now: Timestamp) -> StoredToken {
        let notes = Notes { superseded: self.superseded().to_vec(), pending_since: None };
        StoredToken {
            payload: self.token.payload(&notes),
            age: self.token.age_at(now),
            due_in: self.due_in(now),
        }
    }

    /// The header that calls share for as long as they are made with this token.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    pub(super) fn authorization(&self) -> HeaderValue {
        self.authorization.get_or_init(|| Box::new(self.token.authorization_header())).clone()
    }

    pub(super) fn is_newer_than(&self, version: Version) -> bool {
        self.version.is_some_and(|ours| ours.is_newer_than(version))
    }

    /// Whether this token ends when `stored` is revoked: a login's with its successors, another one
    /// only where `stored` knows of it.
    pub(super) fn ends_with(&self, stored: &Self, kind: RowKind) -> bool {
        if kind == RowKind::Login {
            return self.version == stored.version
                || self.version.is_some_and(|version| stored.is_newer_than(version))
                || self.token.shares_secrets_with(&stored.token);
        }
        let ours = self.token.access_token().expose_secret();
        let mut earlier = stored.superseded().iter();
        self.has_same_access_token(stored)
            || earlier.any(|earlier| earlier.access_token.expose_secret() == ours)
    }

    pub(super) fn has_same_access_token(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.token.access_token(), other.token.access_token());
        ours.expose_secret() == theirs.expose_secret()
    }

    #[inline]
    fn held_for(&self, now: Timestamp) -> u64 {
        now.millis_since(self.token.arrival().0)
    }

    /// Served, and nothing to be done.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.phases.due && !self.is_rejected()
    }

    /// Served, whether or not it is due.
    pub(super) fn is_served(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.phases.expired && !self.is_rejected()
    }

    /// Good for a caller who could get nothing better.
    pub(super) fn is_alive(&self, now: Timestamp) -> bool {
        self.held_for(now) < self.phases.over && !self.is_rejected()
    }

    /// The rest of its life.
    pub(super) fn alive_for(&self, now: Timestamp) -> Duration {
        Duration::from_millis(self.phases.over.saturating_sub(self.held_for(now)))
    }

    /// Whether it lives and has used up nine tenths of its life.
    #[cfg(feature = "metrics")]
    pub(super) fn is_expiring(&self, now: Timestamp) -> bool {
        let left = self.phases.over.saturating_sub(self.held_for(now));
        let lifetime = self.phases.over + crate::clock::millis(self.token.arrival().1);
        left > 0 && left < lifetime / 10
    }

    pub(super) fn due_in(&self, now: Timestamp) -> Duration {
        Duration::from_millis(self.phases.due.saturating_sub(self.held_for(now)))
    }

    /// Whether it was due when it came, or within `span`, or had only a tenth of its time to be
    /// fresh.
    pub(super) fn is_due_on_arrival(&self, span: Duration) -> bool {
        Duration::from_millis(self.phases.due) < span || self.phases.due < self.phases.over / 10
    }

    /// Time since the store was last looked at. A look in the future was made before the wall clock
    /// was set back: nobody knows how long ago, and it is repeated rather than waited for.
    pub(super) fn since_look(&self, now: Timestamp) -> Duration {
        // Relaxed, here and below: a number that publishes nothing else.
        let looked_at = self.looked_at.load(Ordering::Relaxed);
        self.held_for(now).checked_sub(looked_at).map_or(Duration::MAX, Duration::from_millis)
    }

    /// Notes when the store was looked at; `None` if that failed.
    pub(super) fn looked(&self, asked: Option<Timestamp>) {
        let at = asked.map_or(0, |asked| self.held_for(asked));
        self.looked_at.store(at, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_rejected(&self) -> bool {
        // Relaxed: a reader who has not seen the flag yet is a reader who came before it.
        self.rejected.load(Ordering::Relaxed)
    }

    /// Serves it no more.
    pub(super) fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }
}

pub(super) fn whole_seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

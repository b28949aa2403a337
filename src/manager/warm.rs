//! Tokens for many enterprise users at once.

use std::fmt;

use futures_util::stream::{self, BoxStream, StreamExt};

use super::TokenManager;
use crate::error::Error;
use crate::wire::user::UserId;

/// The outcomes of [`TokenManager::warm`].
pub struct Warm(BoxStream<'static, Warmed>);

/// One user's outcome.
#[derive(Debug)]
#[non_exhaustive]
pub struct Warmed {
    /// The user.
    pub user: UserId,
    /// Whether a living token is there now.
    pub outcome: Result<(), Error>,
}

impl Warm {
    pub(super) fn new(
        manager: TokenManager,
        users: impl Iterator<Item = UserId> + Send + 'static,
    ) -> Self {
        let at_once = manager.context.permits.max;
        let warmed = stream::iter(users).map(move |user| {
            let handle = manager.enterprise_user(&user);
            async move { Warmed { user, outcome: handle.token().await.map(drop) } }
        });
        Self(warmed.buffer_unordered(at_once).boxed())
    }

    /// The next outcome, in the order they come; `None` when all users are through.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an outcome that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Warmed> {
        self.0.next().await
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm").finish_non_exhaustive()
    }
}

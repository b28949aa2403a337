//! Tokens for many enterprise users at once.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::task::JoinSet;

use super::TokenManager;
use crate::error::Error;
use crate::user::UserId;

/// The outcomes of [`TokenManager::warm`]: a [`Stream`], with counts for a progress bar.
pub struct Warm {
    manager: TokenManager,
    users: Box<dyn Iterator<Item = UserId> + Send>,
    running: JoinSet<Warmed>,
    ready: usize,
    failed: usize,
}

/// One user's outcome.
#[derive(Debug)]
pub struct Warmed {
    /// The user.
    pub user: UserId,
    /// Whether a living token is there now.
    pub outcome: Result<(), Error>,
}

impl Warm {
    pub(super) fn new(
        manager: TokenManager,
        users: Box<dyn Iterator<Item = UserId> + Send>,
    ) -> Self {
        Self { manager, users, running: JoinSet::new(), ready: 0, failed: 0 }
    }

    /// The next outcome, in the order they come; `None` when all users are through.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an outcome that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Warmed> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// How many users have a living token now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// How many could not get one.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed
    }

    fn start_more(&mut self) {
        let context = Arc::clone(&self.manager.context);
        while self.running.len() < context.permits.max() {
            let Some(user) = self.users.next() else {
                return;
            };
            let handle = self.manager.enterprise_user(&user);
            let warm = async move {
                let outcome = handle.token().await.map(|_| ());
                Warmed { user, outcome }
            };
            self.running.spawn_on(warm, &context.runtime);
        }
    }
}

impl Stream for Warm {
    type Item = Warmed;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Warmed>> {
        loop {
            self.start_more();
            return match self.running.poll_join_next(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(None),
                // The runtime is going down; so is the task that polls this.
                Poll::Ready(Some(Err(_))) => continue,
                Poll::Ready(Some(Ok(warmed))) => {
                    match &warmed.outcome {
                        Ok(()) => self.ready += 1,
                        Err(_) => self.failed += 1,
                    }
                    Poll::Ready(Some(warmed))
                }
            };
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.users.size_hint();
        let running = self.running.len();
        (least.saturating_add(running), most.and_then(|most| most.checked_add(running)))
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm")
            .field("ready", &self.ready)
            .field("failed", &self.failed)
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

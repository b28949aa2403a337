//! A refresh in flight, as all see it who have to do with it.

use std::sync::Arc;

use tokio::sync::SetOnce;
use tracing::Span;

use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};

/// A refresh in flight, for its task and for all who wait for its outcome.
#[derive(Clone, Debug)]
pub(super) struct Flight(Arc<Events>);

#[derive(Debug)]
struct Events {
    span: Span,
    outcome: SetOnce<Result<(), Error>>,
    /// Set by the first caller who waits.
    caller_came: SetOnce<Timestamp>,
    /// Set when the user has been removed or has logged in: nobody needs the outcome any more.
    abandoned: SetOnce<()>,
}

// An error of `SetOnce::set` says that it was set before.
impl Flight {
    /// `span` is the one that the refresh runs in.
    pub(super) fn new(span: Span) -> Self {
        let (outcome, caller_came, abandoned) = (SetOnce::new(), SetOnce::new(), SetOnce::new());
        Self(Arc::new(Events { span, outcome, caller_came, abandoned }))
    }

    pub(super) fn span(&self) -> Span {
        self.0.span.clone()
    }

    pub(super) fn complete(&self, outcome: Result<(), Error>) {
        let _ = self.0.outcome.set(outcome);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.outcome.initialized()
    }

    pub(super) async fn wait(&self) -> Result<(), Error> {
        self.0.outcome.wait().await.clone()
    }

    /// Says that a caller waits for the refresh since `now`, and links the refresh to their span.
    pub(super) fn promote(&self, now: Timestamp) {
        let _ = self.0.caller_came.set(now);
        self.0.span.follows_from(Span::current());
    }

    /// Waits until a caller waits for the refresh.
    pub(super) async fn promoted(&self) {
        self.0.caller_came.wait().await;
    }

    /// Since when a caller waits for the refresh.
    pub(super) fn caller_came(&self) -> Option<Timestamp> {
        self.0.caller_came.get().copied()
    }

    /// Says that the refresh need not begin any more.
    pub(super) fn abandon(&self) {
        let _ = self.0.abandoned.set(());
    }

    /// Waits until the refresh need not begin any more.
    pub(super) async fn abandoned(&self) {
        self.0.abandoned.wait().await;
    }
}

/// The error of work that ended before its end.
pub(super) fn cut_off() -> Error {
    let message = if std::thread::panicking() {
        "the refresh panicked"
    } else {
        "the runtime of the token manager was shut down"
    };
    Error::new(ErrorKind::Unavailable, message)
}

//! The end of a refresh, for all who wait for it.

use std::sync::Arc;

use tokio::sync::SetOnce;

use crate::error::{Error, ErrorKind};

/// The outcome of a refresh, for all who wait for it.
#[derive(Clone, Debug)]
pub(super) struct Completion(Arc<Outcome>);

#[derive(Debug, Default)]
struct Outcome {
    result: SetOnce<Result<(), Error>>,
    /// Set by the first caller who waits.
    caller_came: SetOnce<()>,
    /// Set when the user has been removed or has logged in: nobody needs the outcome any more.
    abandoned: SetOnce<()>,
}

/// Completes the refresh. Dropped without an outcome, it reports that the refresh was cut off.
pub(super) struct Completer(Completion);

impl Completion {
    pub(super) fn channel() -> (Completer, Self) {
        let completion = Self(Arc::default());
        (Completer(completion.clone()), completion)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.result.initialized()
    }

    /// Says that a caller waits for the refresh.
    pub(super) fn promote(&self) {
        // An error means that another caller came first.
        let _ = self.0.caller_came.set(());
    }

    /// Says that the refresh need not begin any more.
    pub(super) fn abandon(&self) {
        let _ = self.0.abandoned.set(());
    }

    pub(super) async fn wait(&self) -> Result<(), Error> {
        self.0.result.wait().await.clone()
    }
}

impl Completer {
    /// Waits until a caller waits for the refresh.
    pub(super) async fn promoted(&self) {
        self.0.0.caller_came.wait().await;
    }

    /// Whether a caller waits for the refresh.
    pub(super) fn has_caller(&self) -> bool {
        self.0.0.caller_came.initialized()
    }

    /// Waits until the refresh need not begin any more.
    pub(super) async fn abandoned(&self) {
        self.0.0.abandoned.wait().await;
    }

    pub(super) fn completes(&self, completion: &Completion) -> bool {
        Arc::ptr_eq(&self.0.0, &completion.0)
    }

    pub(super) fn complete(&self, outcome: Result<(), Error>) {
        // An error means that it is complete already.
        let _ = self.0.0.result.set(outcome);
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if !self.0.is_complete() {
            self.complete(Err(cut_off()));
        }
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

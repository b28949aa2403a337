//! Deadlines of responses.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::error::HttpError;
use super::form::{DeadlineBody, OutOfTime};

/// Grace for a response once its time is over. A process that was stopped, or a machine that was
/// suspended, wakes with its time over and the response in its buffers, which may hold the only
/// refresh token that lives.
const LATE_RESPONSE_GRACE: Duration = Duration::from_millis(500);

/// The deadline shared by all steps of receiving a response.
pub(super) struct ResponseDeadline {
    over: Pin<Box<Sleep>>,
    in_grace: bool,
    taken: Arc<AtomicBool>,
}

impl ResponseDeadline {
    pub(super) fn new(limit: Duration, form: &DeadlineBody) -> Self {
        let over = Box::pin(tokio::time::sleep(limit));
        Self { over, in_grace: false, taken: Arc::clone(&form.taken) }
    }

    /// Whether the connection has taken the form. If not, it never will.
    fn was_sent(&self) -> bool {
        self.taken.swap(true, Ordering::Relaxed)
    }

    pub(super) async fn wait<T>(
        &mut self,
        step: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, HttpError> {
        let mut step = pin!(step);
        loop {
            tokio::select! {
                biased;
                done = &mut step => return done.map_err(|error| self.failed(error)),
                () = &mut self.over => {}
            }
            if !self.was_sent() {
                return Err(HttpError::NotSent(OutOfTime.into()));
            }
            if self.in_grace {
                return Err(HttpError::TimedOut(OutOfTime.into()));
            }
            self.in_grace = true;
            self.over.as_mut().reset(Instant::now() + LATE_RESPONSE_GRACE);
        }
    }

    fn failed(&self, error: reqwest::Error) -> HttpError {
        let error = error.without_url();
        if !self.was_sent() {
            HttpError::NotSent(error.into())
        } else if error.is_timeout() {
            HttpError::TimedOut(error.into())
        } else {
            HttpError::Broken(error)
        }
    }
}

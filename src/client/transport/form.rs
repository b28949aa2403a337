//! Forms on their way to the provider.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use zeroize::Zeroizing;

use crate::clock::{Clock, SystemClock, Timestamp};

/// A form on its way to the token endpoint.
pub(crate) struct Form {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A form that is handed to the connection when it asks for it, unless its time is over by then: a
/// process that was stopped while it connected must not send, on waking, a refresh token that
/// another process has sent since.
pub(super) struct DeadlineBody {
    form: Option<Bytes>,
    begun: Timestamp,
    limit: Duration,
    /// Set by whoever is first: the connection that takes it, or the caller who gives up. Relaxed
    /// wherever it is swapped, since all swaps of one flag are in one order.
    pub(super) taken: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the time was over")]
pub(super) struct OutOfTime;

impl DeadlineBody {
    pub(super) fn new(form: Zeroizing<Vec<u8>>, limit: Duration) -> Self {
        // One that is empty is never asked for.
        let form = Some(Bytes::from_owner(form)).filter(|form| !form.is_empty());
        let taken = Arc::new(AtomicBool::new(form.is_none()));
        Self { form, begun: SystemClock.now(), limit, taken }
    }
}

impl http_body::Body for DeadlineBody {
    type Data = Bytes;
    type Error = OutOfTime;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OutOfTime>>> {
        Poll::Ready(self.form.take().map(|form| {
            let is_over = SystemClock.now().since(self.begun) >= self.limit;
            if is_over || self.taken.swap(true, Ordering::Relaxed) {
                return Err(OutOfTime);
            }
            Ok(Frame::data(form))
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.form.as_ref().map_or(0, |form| form.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body;

    use super::*;

    #[test]
    fn form_leaves_once_within_its_time() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for (limit, leaves) in [(Duration::from_secs(3_600), true), (Duration::ZERO, false)] {
            let mut form = DeadlineBody::new(b"grant_type=refresh_token".to_vec().into(), limit);
            let taken = Arc::clone(&form.taken);
            let Poll::Ready(Some(asked)) = Pin::new(&mut form).poll_frame(&mut context) else {
                panic!("there is a form");
            };
            assert_eq!((asked.is_ok(), taken.load(Ordering::Relaxed)), (leaves, leaves));
            assert!(matches!(Pin::new(&mut form).poll_frame(&mut context), Poll::Ready(None)));
        }
    }

    #[test]
    fn form_never_leaves_after_giving_up() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let hour = Duration::from_secs(3_600);
        let mut form = DeadlineBody::new(b"grant_type=refresh_token".to_vec().into(), hour);
        assert!(!form.taken.swap(true, Ordering::Relaxed), "nobody had taken it");
        let asked = Pin::new(&mut form).poll_frame(&mut context);
        assert!(matches!(asked, Poll::Ready(Some(Err(OutOfTime)))));
    }
}

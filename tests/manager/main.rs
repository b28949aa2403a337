//! The token manager: what it promises, and what was tried to make it break a promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

mod attacks;
mod background;
mod clocks;
mod disconnect;
mod faults;
#[path = "../support/logged.rs"]
mod logged;
mod logs;
mod looks;
#[cfg(feature = "metrics")]
mod metrics;
mod processes;
mod reads;
mod refresh;
mod settings;
#[path = "../support/site.rs"]
mod site;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod threads;
#[path = "../support/trace.rs"]
mod trace;
mod versions;

use hurdlr_oauth2::{TokenManager, UserId};

use site::Site;

/// A manager, and a user of it who has just logged in.
async fn logged_in(site: &Site, user: &str) -> (TokenManager, UserId) {
    let id = UserId::new(user).unwrap();
    (site.logged_in(&id).await, id)
}

/// Polls once.
fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let waker = std::task::Waker::noop();
    match future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

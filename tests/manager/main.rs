//! The token manager: what it promises, and what was tried to make it break a promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

mod attacks;
mod disconnect;
mod faults;
mod looks;
#[cfg(feature = "metrics")]
mod metrics;
mod refresh;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/mod.rs"]
mod support;
mod threads;
mod versions;

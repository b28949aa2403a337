//! The stores: what all of them promise, and what those promise that outlive a process.
//!
//! Most of it needs both databases; without the features of both, sealed memory is what is left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

#[cfg(all(feature = "postgres", feature = "sqlite"))]
#[path = "../support/alone.rs"]
mod alone;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod contract;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod durable;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod faults;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod manager;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod operate;
#[path = "../support/postgres.rs"]
mod postgres;
mod sealed;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wire.rs"]
mod wire;

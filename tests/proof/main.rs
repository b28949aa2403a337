//! What the crate does not leak and what it survives, swept and counted.
//!
//! Each module prints its figures; `--nocapture` shows them.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

mod faults;
#[path = "../support/postgres.rs"]
mod postgres;

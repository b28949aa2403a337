//! What the crate does not leak and what it survives, swept and counted.
//!
//! Each module prints its figures; `--nocapture` shows them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]
#![allow(clippy::print_stdout, reason = "figures are printed")]

#[path = "../support/alone.rs"]
mod alone;
mod corpus;
mod faults;
#[path = "../support/logged.rs"]
mod logged;
#[path = "../support/postgres.rs"]
mod postgres;
mod redaction;
#[path = "../support/mod.rs"]
mod support;

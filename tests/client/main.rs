//! The client: grants, logins, and what it makes of answers; without a token manager.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

mod drop_in;
mod drop_in_app;
mod fixtures;
mod grants;
mod hostile_answers;
#[path = "../support/logged.rs"]
mod logged;
mod login;
mod redaction;
mod retry;
#[path = "../support/mod.rs"]
mod support;
mod token_life;
mod transport;
mod versions;

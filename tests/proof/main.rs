//! Proofs under attack: the promises to which no single module's tests can be put.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

mod corpus;

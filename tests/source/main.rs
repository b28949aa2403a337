//! The text of this repository: what its files say of each other.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

mod layers;
mod operations;

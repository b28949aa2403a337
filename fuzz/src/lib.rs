//! The fuzz targets. Each hands bytes of somebody else's to one entrance of the crate, by its
//! public API, and checks what is promised there.
//!
//! The programs in `fuzz_targets` run them with new bytes, and `tests/proof` with those in
//! `corpus`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a broken promise is a panic, for which the fuzzer looks"
)]

pub mod callback_query;
pub mod error_response;
pub mod import;
pub mod pending_login_cookie;
mod provider;
pub mod retry_after;
pub mod return_path;
pub mod sealed_record;
pub mod token_response;
mod web_app;

/// A target takes any bytes, and panics where they break a promise.
pub type Target = fn(&[u8]);

/// All targets by their names, which are those of the programs and of the folders in `corpus`.
pub const TARGETS: [(&str, Target); 8] = [
    ("callback_query", callback_query::check),
    ("error_response", error_response::check),
    ("import", import::check),
    ("pending_login_cookie", pending_login_cookie::check),
    ("retry_after", retry_after::check),
    ("return_path", return_path::check),
    ("sealed_record", sealed_record::check),
    ("token_response", token_response::check),
];

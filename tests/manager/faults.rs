//! Promises of the token manager that an attack on it found broken.
//!
//! All of them run on tokio's paused clock against the in-memory provider. They look at the manager
//! from outside: requests that the provider counted, tokens that were served, kinds of errors,
//! events, calls of the store, and lines of the log.

mod availability;
mod leaks;
mod lost_logins;
#[cfg(feature = "metrics")]
mod metered;
mod new_api;
mod reporting;
mod second_look;
pub(crate) mod site;

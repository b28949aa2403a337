//! OAuth 2.0 for the Hurdlr (Tight) accounting API: tokens obtained, refreshed once, never lost,
//! never shown.
//!
//! ```
//! use hurdlr_oauth2::testing::FakeHurdlr;
//! use hurdlr_oauth2::{Hurdlr, UserId};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fake = FakeHurdlr::start().await?; // the provider, embedded: no account needed
//! let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
//!     .environment(fake.base_url())
//!     .build()?;
//!
//! let token = hurdlr.client_credentials(&UserId::new("customer-4711")?).await?;
//! println!("{token:?}"); // shows when it ends, and no secret
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! Each is usable without the one above.
//!
//! * **Wire**: [`basic`] has drop-in types for apps that already use the `oauth2` crate;
//!   [`HttpClient`] is a transport for them.
//! * **Client**: [`Hurdlr`], one call per grant, with secrets in [`secrecy`] types, bounded retries
//!   and a login in two calls.
//! * **Manager**: [`TokenManager`] keeps many users' tokens alive: refreshed once and before their
//!   end, saved in a [`store`] before they are used. Its futures may be dropped at any time.
//! * **Web** (feature `axum`): `web::login_routes`, the login of a web app's users as one router.
//! * **Edges**: with the feature `middleware` calls by `reqwest` carry a user's token, with `tower`
//!   those of hyper and tower stacks: `TokenMiddleware` and `TokenLayer`.
//! * **Testing** (feature `testing`): `testing::FakeHurdlr`, the provider in your process, and
//!   `ManualClock` and `FaultyStore` for the app's own tests.
//!
//! # Semver
//!
//! Types of [`oauth2`], [`reqwest`], [`secrecy`], [`url`] and [`http`] are part of this
//! crate's API and re-exported here, and so are those of `sqlx`, `axum` and `reqwest-middleware` with
//! the features that use them. A new major version of one of them makes one of ours.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::missing_panics_doc))]

#[cfg(target_family = "wasm")]
compile_error!(
    "hurdlr-oauth2 holds a client secret and needs a server's tokio and reqwest: it does not \
     build for wasm"
);

mod backoff;
pub mod basic;

mod client;
pub use client::{Hurdlr, HurdlrBuilder};
mod clock;
pub use clock::{Clock, SystemClock, Timestamp};
#[cfg(any(feature = "middleware", feature = "tower"))]
mod edge;
#[cfg(any(feature = "middleware", feature = "tower"))]
pub use edge::CallPolicy;
mod endpoint;
pub use endpoint::{ApiVersion, Environment, Scope};
mod error;
pub use error::{CallbackProblem, Error, ErrorKind};
#[cfg(feature = "tower")]
pub mod layer;
#[cfg(feature = "tower")]
pub use layer::TokenLayer;
mod login;
pub use login::{Callback, PendingLogin};
pub mod manager;
pub use manager::TokenManager;
mod metrics;
#[cfg(feature = "middleware")]
mod middleware;
#[cfg(feature = "middleware")]
pub use middleware::TokenMiddleware;
mod object;
#[cfg(any(feature = "middleware", feature = "tower"))]
mod partner;
#[cfg(any(feature = "middleware", feature = "tower"))]
pub use partner::{Partner, PartnerUser};
mod realm;
mod retry;
pub use retry::RetryPolicy;
mod rng;
pub mod store;
mod token;
pub use token::Token;
mod transport;
pub use transport::{HttpClient, HttpError};
mod user;
pub use user::{ClientCredentialsUser, UserId};

#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "axum")]
pub mod web;

#[cfg(feature = "axum")]
pub use axum;
#[cfg(feature = "middleware")]
pub use reqwest_middleware;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sqlx;
pub use {http, oauth2, reqwest, secrecy, url};

#[cfg(all(
    doctest,
    feature = "axum",
    feature = "middleware",
    feature = "sealed",
    feature = "tower"
))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/web-login-elsewhere.md")]
struct WebLoginElsewhere;

#[cfg(doctest)]
#[doc = include_str!("../docs/migration.md")]
struct Migration;

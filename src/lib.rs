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
//! * **Wire**: [`basic`] has drop-in types for apps that already use the `oauth2` crate. Without
//!   default features this layer is all there is.
//! * **Client** (feature `client`, on by default): [`Hurdlr`], one call per grant, with secrets in
//!   [`secrecy`] types, bounded retries and a login in two calls; and [`HttpClient`], a transport
//!   for the types of [`basic`].
//! * **Manager** (feature `manager`, on by default): [`TokenManager`] keeps many users' tokens
//!   alive: refreshed once and before their end, saved in a [`store`] before they are used. Its
//!   futures may be dropped at any time.
//! * **Web** (feature `axum`): `web::Login`, the login of a web app's users as one router, and
//!   `web::ConnectedUser`, an extractor for pages that need it.
//! * **Edges**: with the feature `middleware` calls by `reqwest` carry a user's token, with `tower`
//!   those of hyper and tower stacks: `TokenMiddleware` and `TokenLayer`.
//! * **Testing** (feature `testing`): `testing::FakeHurdlr`, the provider in your process, and
//!   `ManualClock` and `FaultyStore` for the app's own tests.
//!
//! The [`guide`] has a page on each question that comes up later: failures, settings, stores, many
//! processes, calls, attacks on a login, tests, migration, design.
//!
//! # Features
//!
#![doc = include_str!("../docs/features.md")]
//!
//! # Semver
//!
//! Types and traits of other crates are part of this crate's API. A new major version of one of
//! them makes one of ours. All are re-exported here, with the feature that uses them, so that an
//! app need not look for the version that fits.
//!
//! | crate | version | feature | where |
//! |---|---|---|---|
//! | `axum` | 0.8 | `axum`, `testing` | routers, and the responses of the login's hooks |
//! | `http` | 1 | | headers, statuses and requests, of `Token`, `Error`, the edges and `testing` |
//! | `http-body` | 1 | `tower` | the bodies of `TokenLayer` |
//! | `oauth2` | 5 | | [`basic`], [`HttpClient`] and [`ClientCredentialsUser`] |
//! | `reqwest` | 0.13 | `client` | [`HurdlrBuilder::reqwest`], [`HttpError`], `TokenMiddleware` |
//! | `reqwest-middleware` | 0.5 | `middleware` | clients of `TokenMiddleware` and `ConnectedUser` |
//! | `secrecy` | 0.10 | | every secret that goes in or out |
//! | `serde` | 1 | | `Serialize` and `Deserialize` for the answers of [`basic`] |
//! | `serde_json` | 1 | `testing` | the data of `FakeHurdlr` |
//! | `sqlx` | 0.9 | `postgres`, `sqlite` | `store::SqlStore` on a pool of the app's own |
//! | `tower-layer` | 0.3 | `tower` | `Layer` for `TokenLayer` |
//! | `tower-service` | 0.3 | `tower` | `Service` for what it makes |
//! | `url` | 2 | | authorize URLs, callbacks, endpoints |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::missing_panics_doc))]
// A layer has what the layers above need; the lints see all of it where those are built.
#![cfg_attr(not(feature = "manager"), allow(dead_code, unreachable_pub))]

#[cfg(target_family = "wasm")]
compile_error!(
    "hurdlr-oauth2 holds a client secret and needs a server's tokio and reqwest: it does not \
     build for wasm"
);

// In the order of the layers, from the top down: each imports those below only.
#[cfg(feature = "axum")]
pub mod web;

#[cfg(any(feature = "middleware", feature = "tower"))]
mod calls;
#[cfg(feature = "middleware")]
pub use calls::TokenMiddleware;
#[cfg(any(feature = "middleware", feature = "tower"))]
pub use calls::{CallPolicy, Partner, PartnerUser};
#[cfg(feature = "tower")]
pub use calls::{TokenLayer, layer};

#[cfg(feature = "manager")]
pub mod manager;
#[cfg(feature = "manager")]
pub use manager::TokenManager;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
pub use client::{
    Callback, HttpClient, HttpClientBuilder, HttpError, Hurdlr, HurdlrBuilder, PendingLogin,
    RetryPolicy,
};

#[cfg(feature = "manager")]
mod metrics;

#[cfg(feature = "manager")]
pub mod store;

#[cfg(feature = "client")]
mod token;
#[cfg(feature = "client")]
pub use token::{Token, TokenParts};

mod wire;
pub use wire::{ApiVersion, ClientCredentialsUser, Environment, Scope, UserId, basic};

#[cfg(feature = "client")]
mod backoff;
#[cfg(feature = "client")]
mod clock;
#[cfg(feature = "client")]
pub use clock::{Clock, SystemClock, Timestamp};
mod error;
pub use error::{CallbackProblem, Error, ErrorKind};
#[cfg(feature = "client")]
mod key_material;
#[cfg(feature = "client")]
mod rng;

#[cfg(feature = "testing")]
pub mod testing;

#[cfg(any(feature = "axum", feature = "testing"))]
pub use axum;
#[cfg(feature = "client")]
pub use reqwest;
#[cfg(feature = "middleware")]
pub use reqwest_middleware;
#[cfg(feature = "testing")]
pub use serde_json;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sqlx;
pub use {http, oauth2, secrecy, serde, url};
#[cfg(feature = "tower")]
pub use {http_body, tower_layer, tower_service};

// The examples of its pages need all features.
#[cfg(any(
    all(doc, not(doctest)),
    all(doctest, feature = "axum", feature = "middleware", feature = "testing"),
))]
pub mod guide;

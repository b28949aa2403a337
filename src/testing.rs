//! [`FakeHurdlr`], a whole provider for tests, on loopback or in memory; clocks and stores for
//! tests.
//!
//! It knows the wire format only, and none of this crate's client code, so that the two cannot
//! share a mistake. It is not for production: its tokens come from a fast generator that can be
//! guessed, and it keeps what it was sent in the clear.
//!
//! ```
//! use hurdlr_oauth2::testing::{FakeHurdlr, Outcome};
//! use oauth2::AsyncHttpClient;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fake = FakeHurdlr::in_memory();
//! let request = http::Request::post(fake.base_url().join("rest/v4/auth/token")?.as_str())
//!     .header("content-type", "application/x-www-form-urlencoded")
//!     .body(b"grant_type=client_credentials&client_id=fake-client\
//!             &client_secret=fake-secret&userId=ann".to_vec())?;
//! let answer = fake.http_client().call(request).await?;
//! assert_eq!(answer.status(), 200);
//! assert_eq!(fake.count().outcome(Outcome::Issued), 1);
//! # Ok(())
//! # }
//! ```

mod answer;
mod authorize;
mod body_encoding;
mod clock;
mod delivery;
mod fake;
mod fake_api;
mod fault;
mod faulty_store;
pub use faulty_store::{FaultyStore, StoreCall, StoreFault};
mod in_memory;
mod journal;
mod ledger;
mod listener;
mod lock;
mod manual_clock;
mod provider;
mod resource;
mod resources;
mod router;
mod seed_row;
#[cfg(feature = "rustls")]
mod tls;
pub use seed_row::seed_row;
pub mod store_contract;
mod token_endpoint;
mod traffic;
pub use manual_clock::ManualClock;
mod version;

pub use answer::ErrorStyle;
pub use body_encoding::BodyEncoding;
pub use fake::{FakeHurdlr, FakeHurdlrBuilder};
pub use fake_api::FakeApi;
pub use fault::{Fault, Gate};
pub use in_memory::{InMemoryError, InMemoryHttpClient};
pub use journal::{Counts, Outcome, RecordedRequest};
pub use ledger::Rotation;

pub use crate::rng::Rng;
pub use crate::token::TokenBuilder;

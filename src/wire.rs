//! The provider's wire format, as types of `oauth2`.

pub mod basic;
pub(crate) mod endpoint;
pub use endpoint::{ApiVersion, Environment, Scope};
pub(crate) mod error_response;
#[cfg(feature = "client")]
pub(crate) mod log_id_key;
pub(crate) mod object;
pub(crate) mod realm;
pub(crate) mod token_response;
pub(crate) mod user;
pub use user::{ClientCredentialsUser, UserId};

//! Calls to the API: who authorizes them, and by which client they are made.

pub(crate) mod authorizer;
#[cfg(feature = "tower")]
pub mod layer;
#[cfg(feature = "tower")]
pub use layer::TokenLayer;
#[cfg(feature = "middleware")]
mod middleware;
#[cfg(feature = "middleware")]
pub use middleware::TokenMiddleware;
mod partner;
pub use partner::{Partner, PartnerUser};
mod policy;
pub use policy::CallPolicy;

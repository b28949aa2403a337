//! OAuth 2.0 for the Hurdlr (Tight) accounting API.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "testing")]
pub mod testing;

//! What tests need: an embedded provider.

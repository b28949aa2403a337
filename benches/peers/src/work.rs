//! The kinds of work that the peers do, one file each.

pub(crate) mod beside_refresh;
pub(crate) mod crowd;
pub(crate) mod dropped;
pub(crate) mod failing;
pub(crate) mod instructions;
pub(crate) mod many_users;
pub(crate) mod reads;
pub(crate) mod rotation;
pub(crate) mod secrets;

//! The key of the names that users have in logs.

use std::sync::OnceLock;

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::Error;
use crate::key_material;

/// The app's key for log ids, if it gave one.
static LOG_ID_KEY: OnceLock<LogIdKey> = OnceLock::new();

/// A key for log ids.
struct LogIdKey(SecretSlice<u8>);

impl LogIdKey {
    /// The least length, in bytes.
    const MIN_BYTES: usize = 32;

    fn from_base64(text: &SecretString) -> Result<Self, Error> {
        let key = key_material::from_base64("log_id_key", text)?;
        if key.len() < Self::MIN_BYTES {
            return Err(Error::config(format!(
                "log_id_key has {} bytes: it needs at least {} random ones",
                key.len(),
                Self::MIN_BYTES
            )));
        }
        Ok(Self(SecretSlice::from(key.to_vec())))
    }

    /// 32 bits of a keyed hash. A plain prefix is as good as an HMAC (RFC 2104) here: too little is
    /// left of the hash to go on from.
    fn hash(&self, id: &str) -> u64 {
        let hash = Sha256::new_with_prefix(self.0.expose_secret()).chain_update(id).finalize();
        hash.first_chunk().map_or(0, |first| u32::from_be_bytes(*first).into())
    }
}

/// Has all log ids of this process made by this key. Fails for text that is no key, and for another
/// key than the one in use.
pub(crate) fn set(key: &SecretString) -> Result<(), Error> {
    let Err(other) = LOG_ID_KEY.set(LogIdKey::from_base64(key)?) else {
        return Ok(());
    };
    let other = other.0.expose_secret();
    if LOG_ID_KEY.get().is_some_and(|in_use| in_use.0.expose_secret().ct_eq(other).into()) {
        return Ok(());
    }
    Err(Error::config("log_id_key is not the one in use: a process has one key for all its logs"))
}

/// The hash of a user's id by the app's key, if it gave one.
pub(super) fn hash(id: &str) -> Option<u64> {
    LOG_ID_KEY.get().map(|key| key.hash(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_has_32_bytes_or_more() {
        use base64::Engine;
        for (length, fits) in [(31, false), (32, true), (33, true)] {
            let text = base64::prelude::BASE64_STANDARD.encode(vec![7; length]);
            assert_eq!(LogIdKey::from_base64(&text.into()).is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn log_ids_depend_on_key_and_user() {
        let key = |text: &str| LogIdKey::from_base64(&text.repeat(6).as_str().into()).unwrap();
        let (one, other) = (key("marker00"), key("marker01"));
        let ids = [one.hash("ann"), one.hash("bob"), other.hash("ann")];
        assert_eq!(ids[0], key("marker00").hash("ann"));
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
        assert!(ids.iter().all(|id| u32::try_from(*id).is_ok()));
    }
}

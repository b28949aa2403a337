//! Keys of the login's cookies.

use std::fmt;

use cookie::Key;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::error::Error;
use crate::key_material;

/// A key that the cookies of pending logins are encrypted with: at least 64 random bytes, such as
/// `openssl rand -base64 64` makes, and the same in all replicas.
///
/// It is wiped when it is dropped, and never shown. [`login_routes`](super::login_routes) refuses
/// one that is too short.
///
/// ```
/// use hurdlr_oauth2::web::CookieKey;
///
/// # let variable = || std::io::Result::Ok("QUFB".repeat(22));
/// let key = CookieKey::from_base64(&variable()?.into())?; // from where secrets are kept
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CookieKey(SecretSlice<u8>);

impl CookieKey {
    /// Takes a key in base64 of either alphabet, with or without padding; white space is skipped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for text that is not base64.
    pub fn from_base64(key: &SecretString) -> Result<Self, Error> {
        let bytes = key_material::from_base64("the cookie key", key)?;
        Ok(Self(SecretSlice::from(bytes.to_vec())))
    }

    pub(super) fn validated(&self) -> Result<Key, Error> {
        let bytes = self.0.expose_secret();
        Key::try_from(bytes).map_err(|_| {
            let length = bytes.len();
            Error::config(format!(
                "a cookie key has {length} bytes: it needs 64 random ones, such as `openssl rand \
                 -base64 64` makes"
            ))
        })
    }
}

impl From<SecretSlice<u8>> for CookieKey {
    fn from(key: SecretSlice<u8>) -> Self {
        Self(key)
    }
}

impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_key_comes_in_base64() {
        let wrapped = format!("{}\n{}==\n", "AQEB".repeat(16), "AQEB".repeat(5) + "AQ");
        let key = CookieKey::from_base64(&wrapped.into()).unwrap();
        assert_eq!(key.0.expose_secret(), [1; 64]);
        assert!(key.validated().is_ok());
        let short = CookieKey::from_base64(&"AQEB".repeat(21).into()).unwrap();
        let error = short.validated().unwrap_err().to_string();
        assert!(error.contains("has 63 bytes"), "{error}");
        assert!(CookieKey::from_base64(&"marker!".into()).is_err());
        assert_eq!(format!("{key:?}"), "CookieKey { .. }");
    }
}

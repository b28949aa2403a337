//! The keys: what they are made of, what they are called, and which of them does what.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretBox, SecretSlice, SecretString};
use sha2_0_11::Sha256;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::key_material;
use crate::wire::user::UserId;

/// The bytes of a key of any use.
const KEY_BYTES: usize = 32;

/// Shared by all clones, and wiped with the last of them.
#[derive(Clone, Debug)]
struct Secret(Arc<SecretBox<[u8; KEY_BYTES]>>);

impl Secret {
    fn from_bytes(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        let Ok(bytes) = <&[u8; KEY_BYTES]>::try_from(bytes) else {
            let length = bytes.len();
            return Err(Error::config(format!("{what} has {length} bytes: it needs {KEY_BYTES}")));
        };
        let copy = |key: &mut [u8; KEY_BYTES]| key.copy_from_slice(bytes);
        Ok(Self(Arc::new(SecretBox::init_with_mut(copy))))
    }

    fn from_base64(what: &str, text: &SecretString) -> Result<Self, Error> {
        Self::from_bytes(what, &key_material::from_base64(what, text)?)
    }

    /// HMAC-SHA256 (RFC 2104) of `text`, for a purpose that no other text is hashed for.
    fn digest(&self, purpose: &'static str, text: &str) -> [u8; 32] {
        // A key that is shorter than a block of the hash is filled up with zeros.
        let mut block = Zeroizing::new([0; 64]);
        block[..KEY_BYTES].copy_from_slice(self.0.expose_secret());
        Hmac::<Sha256>::new((&*block).into())
            .chain_update(purpose)
            .chain_update([0])
            .chain_update(text)
            .finalize()
            .into_bytes()
            .into()
    }
}

/// A key that tokens are sealed with: 32 random bytes, such as `openssl rand -base64 32` makes.
///
/// It is wiped when its last clone is dropped, and never shown: `Debug` shows its [`id`](Self::id).
#[derive(Clone, Debug)]
pub struct SealingKey {
    id: KeyId,
    secret: Secret,
}

impl SealingKey {
    /// Takes a key of 32 bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for another length.
    pub fn from_bytes(key: &SecretSlice<u8>) -> Result<Self, Error> {
        Secret::from_bytes("the sealing key", key.expose_secret()).map(Self::new)
    }

    /// Takes a key of 32 bytes in base64 of either alphabet, with or without padding.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for any other text.
    pub fn from_base64(key: &SecretString) -> Result<Self, Error> {
        Secret::from_base64("the sealing key", key).map(Self::new)
    }

    fn new(secret: Secret) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&secret.digest("hurdlr-oauth2 key id", "")[..8]);
        Self { id: KeyId(id), secret }
    }

    /// The key's name in sealed values and in errors.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// For one use: it wipes its copy of the key.
    pub(super) fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.secret.0.expose_secret().into())
    }
}

/// The name of a [`SealingKey`]: eight bytes of a keyed digest, in hexadecimal.
///
/// It is derived from the key, so there is nothing to be kept beside a key, no two keys can be
/// given one name by mistake, and a key that is at hand can be told to be the one that is missing.
/// It says nothing of the key itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys of a [`Sealed`](super::Sealed) store: the first seals, and every one opens.
///
/// Clones share their keys.
#[derive(Clone, Debug)]
pub struct KeyRing {
    pub(super) first: SealingKey,
    others: Vec<SealingKey>,
}

impl KeyRing {
    /// A ring of the key that seals, and opens what it sealed.
    #[must_use]
    pub fn new(first: SealingKey) -> Self {
        Self { first, others: Vec::new() }
    }

    /// Adds a key that only opens: an earlier one, or the next.
    #[must_use]
    pub fn with_opening_key(mut self, key: SealingKey) -> Self {
        self.others.push(key);
        self
    }

    pub(super) fn get(&self, id: KeyId) -> Option<&SealingKey> {
        std::iter::once(&self.first).chain(&self.others).find(|key| key.id == id)
    }
}

/// A key that user ids are hashed with: 32 random bytes that **never change**, since the hash is
/// what a row is found by. Not one of the sealing keys, which do.
///
/// It is wiped when its last clone is dropped, and never shown.
#[derive(Clone, Debug)]
pub struct UserHashKey(Secret);

impl UserHashKey {
    /// Takes a key of 32 bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for another length.
    pub fn from_bytes(key: &SecretSlice<u8>) -> Result<Self, Error> {
        Secret::from_bytes("the user hash key", key.expose_secret()).map(Self)
    }

    /// Takes a key of 32 bytes in base64 of either alphabet, with or without padding.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for any other text.
    pub fn from_base64(key: &SecretString) -> Result<Self, Error> {
        Secret::from_base64("the user hash key", key).map(Self)
    }

    /// The text that stands in the place of a user id.
    pub(super) fn hash(&self, user: &str) -> UserId {
        let hash = self.0.digest("hurdlr-oauth2 user id", user);
        UserId::internal(BASE64_URL_SAFE_NO_PAD.encode(hash))
    }
}

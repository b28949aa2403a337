//! A sealed value: what stands in it, in which order, and what is wrong with one that cannot be
//! opened.
//!
//! All numbers are big-endian.
//!
//! | bytes | | |
//! |---|---|---|
//! | 1 | format version, 1 | in clear |
//! | 8 | key id | in clear |
//! | 24 | nonce | in clear |
//! | 4 + n, five times | length and text of API version, environment, client id, kind, user | in clear |
//! | 8, twice | incarnation, revision | in clear |
//! | 4 | length of what follows | in clear |
//! | n | the payload, a user id that is not in clear, the length of that in 2 bytes | encrypted |
//! | 16 | tag | |
//!
//! All that is in clear is the associated data. It says what the row says, so nobody learns
//! anything from it; but a value that lies in another place than it was sealed for can tell which.

use std::fmt;

use chacha20poly1305::aead::Generate;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, Tag, XNonce};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};

use super::key_ring::{KeyId, KeyRing};
use crate::error::Error;
use crate::store::{StoreKey, Version};
use crate::user::UserId;

const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Why a value in the store cannot be opened: the [source](std::error::Error::source) of an error
/// of kind [`Store`](crate::ErrorKind::Store).
///
/// ```
/// use std::error::Error as _;
///
/// use hurdlr_oauth2::Error;
/// use hurdlr_oauth2::store::OpenError;
///
/// fn alert(error: &Error) {
///     match error.source().and_then(|source| source.downcast_ref::<OpenError>()) {
///         Some(OpenError::UnknownKey(id)) => println!("a process lacks the key {id}"),
///         Some(problem) => println!("somebody was at the table: {problem}"),
///         None => {}
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It was sealed by a key that is not in the ring.
    #[error("it was sealed with the key {0}, which is not in the key ring")]
    UnknownKey(KeyId),
    /// It is whole, and was sealed for another place: moved there, or the row was changed around
    /// it.
    #[error("it was sealed for another {0}")]
    Moved(Bound),
    /// It was changed since it was sealed.
    #[error("it was changed since it was sealed")]
    Changed,
    /// A part of it is missing, or something was added.
    #[error("it is not as long as it says it is")]
    Cut,
    /// It was never sealed.
    #[error("it was not sealed")]
    NotSealed,
    /// It is in a format of another release of this crate.
    #[error("it is in the format {0}, which this release does not know")]
    UnknownFormat(u8),
    /// It was sealed by somebody with another [`UserHashKey`](super::UserHashKey).
    #[error("the user in it is not the one whose hash its row has: user ids were hashed otherwise")]
    OtherUserHash,
}

/// The parts of its place that a sealed value is bound to. If several differ, the first is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// The API version.
    ApiVersion,
    /// The environment.
    Environment,
    /// The client.
    ClientId,
    /// The kind of user.
    Kind,
    /// The user, or the hash of one.
    User,
    /// The user's stay.
    Incarnation,
    /// The revision.
    Revision {
        /// The one it was sealed for.
        sealed: u64,
        /// The one of the row it is in.
        row: u64,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiVersion => "API version",
            Self::Environment => "environment",
            Self::ClientId => "client",
            Self::Kind => "kind of user",
            Self::User => "user",
            Self::Incarnation => "stay of the user",
            Self::Revision { sealed, row } => {
                return write!(f, "revision: {sealed}, and the row's is {row}");
            }
        })
    }
}

impl From<OpenError> for Error {
    fn from(problem: OpenError) -> Self {
        Self::store(format!("a sealed token cannot be opened: {problem}"))
            .caused_by(problem)
            .not_temporary()
    }
}

/// The content of a sealed value.
pub(super) struct Opened {
    pub(super) payload: SecretBox<Vec<u8>>,
    /// The user, where the row has only a hash.
    pub(super) user: Option<UserId>,
    pub(super) key_id: KeyId,
}

/// Seals a payload for the row at `key` and `version`, and `user` with it.
pub(super) fn seal(
    keys: &KeyRing,
    key: &StoreKey,
    version: Version,
    payload: &SecretBox<Vec<u8>>,
    user: Option<&UserId>,
) -> Result<SecretBox<Vec<u8>>, Error> {
    let sealing = keys.first();
    let nonce = XNonce::try_generate().map_err(|source| {
        Error::store("the operating system has no random bytes for a nonce").caused_by(source)
    })?;
    let (payload, user) = (payload.expose_secret(), user.map_or("", UserId::as_str));
    let texts = key.texts();
    let sealed_bytes = payload.len() + user.len() + 2 + TAG_BYTES;
    let clear_bytes =
        1 + 8 + NONCE_BYTES + texts.map(|text| 4 + text.len()).iter().sum::<usize>() + 20;

    // Room for all of it: a growing buffer would leave plaintext behind.
    let mut sealed = SecretBox::new(Box::new(Vec::with_capacity(clear_bytes + sealed_bytes)));
    let bytes: &mut Vec<u8> = sealed.expose_secret_mut();
    bytes.push(FORMAT);
    bytes.extend_from_slice(&sealing.id().0);
    bytes.extend_from_slice(&nonce);
    for text in texts {
        bytes.extend_from_slice(&length(text.len())?);
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(&version.incarnation.to_be_bytes());
    bytes.extend_from_slice(&version.revision.to_be_bytes());
    bytes.extend_from_slice(&length(sealed_bytes)?);

    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(user.as_bytes());
    // No id is longer than 256 bytes.
    bytes.extend_from_slice(&u16::try_from(user.len()).unwrap_or(0).to_be_bytes());
    let (clear, secret) = bytes.split_at_mut(clear_bytes);
    let tag = sealing
        .cipher()
        .encrypt_inout_detached(&nonce, clear, secret.into())
        .map_err(|_| Error::store("the token is too long to be sealed"))?;
    bytes.extend_from_slice(&tag);
    Ok(sealed)
}

/// Opens what lies in the row at `key` and `version`.
pub(super) fn open(
    keys: &KeyRing,
    key: &StoreKey,
    version: Version,
    sealed: &SecretBox<Vec<u8>>,
) -> Result<Opened, OpenError> {
    let sealed = sealed.expose_secret();
    let (clear, secret) = Clear::read(sealed)?;
    let opening = keys.get(clear.key_id).ok_or(OpenError::UnknownKey(clear.key_id))?;
    let (secret, tag) = secret.split_last_chunk::<TAG_BYTES>().ok_or(OpenError::Cut)?;

    let mut payload = SecretBox::new(Box::new(Vec::with_capacity(secret.len())));
    let bytes: &mut Vec<u8> = payload.expose_secret_mut();
    bytes.resize(secret.len(), 0);
    let buffer = InOutBuf::new(secret, bytes).map_err(|_| OpenError::Changed)?;
    opening
        .cipher()
        .decrypt_inout_detached(&clear.nonce.into(), clear.bytes, buffer, &Tag::from(*tag))
        .map_err(|_| OpenError::Changed)?;
    // Now what it says of itself is true.
    clear.judge(key, version)?;

    let (rest, length) = bytes.split_last_chunk::<2>().ok_or(OpenError::Changed)?;
    let start =
        rest.len().checked_sub(u16::from_be_bytes(*length).into()).ok_or(OpenError::Changed)?;
    let user = match std::str::from_utf8(&rest[start..]) {
        Ok("") => None,
        Ok(user) => Some(UserId::new(user).map_err(|_| OpenError::Changed)?),
        Err(_) => return Err(OpenError::Changed),
    };
    bytes.truncate(start);
    Ok(Opened { payload, user, key_id: clear.key_id })
}

/// The header, which stands before the ciphertext.
struct Clear<'a> {
    bytes: &'a [u8],
    key_id: KeyId,
    nonce: [u8; NONCE_BYTES],
    texts: [&'a [u8]; 5],
    version: Version,
}

impl<'a> Clear<'a> {
    /// Takes a sealed value apart, into this and the ciphertext. None of it is known to be true.
    fn read(sealed: &'a [u8]) -> Result<(Self, &'a [u8]), OpenError> {
        let (format, rest) = sealed.split_first().ok_or(OpenError::NotSealed)?;
        match *format {
            FORMAT => {}
            // A token in plaintext is a JSON object.
            b'{' => return Err(OpenError::NotSealed),
            other => return Err(OpenError::UnknownFormat(other)),
        }
        let mut rest = Rest(rest);
        let key_id = KeyId(*rest.chunk()?);
        let nonce = *rest.chunk()?;
        let mut texts = [&[][..]; 5];
        for text in &mut texts {
            *text = rest.text()?;
        }
        let incarnation = u64::from_be_bytes(*rest.chunk()?);
        let revision = u64::from_be_bytes(*rest.chunk()?);
        let left = rest.length()?;
        if left != rest.0.len() {
            return Err(OpenError::Cut);
        }
        let bytes = &sealed[..sealed.len() - left];
        let version = Version { incarnation, revision };
        Ok((Self { bytes, key_id, nonce, texts, version }, rest.0))
    }

    /// Whether this is the row it was sealed for.
    fn judge(&self, key: &StoreKey, version: Version) -> Result<(), OpenError> {
        const TEXTS: [Bound; 5] =
            [Bound::ApiVersion, Bound::Environment, Bound::ClientId, Bound::Kind, Bound::User];
        for ((bound, sealed), row) in TEXTS.into_iter().zip(self.texts).zip(key.texts()) {
            if sealed != row.as_bytes() {
                return Err(OpenError::Moved(bound));
            }
        }
        if self.version.incarnation != version.incarnation {
            return Err(OpenError::Moved(Bound::Incarnation));
        }
        let (sealed, row) = (self.version.revision, version.revision);
        if sealed != row {
            return Err(OpenError::Moved(Bound::Revision { sealed, row }));
        }
        Ok(())
    }
}

/// The bytes that are left to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], OpenError> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(OpenError::Cut)?;
        self.0 = rest;
        Ok(chunk)
    }

    fn length(&mut self) -> Result<usize, OpenError> {
        usize::try_from(u32::from_be_bytes(*self.chunk()?)).map_err(|_| OpenError::Cut)
    }

    fn text(&mut self) -> Result<&'a [u8], OpenError> {
        let length = self.length()?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(OpenError::Cut)?;
        self.0 = rest;
        Ok(text)
    }
}

fn length(bytes: usize) -> Result<[u8; 4], Error> {
    u32::try_from(bytes)
        .map(u32::to_be_bytes)
        .map_err(|_| Error::store("the token or its key is too long to be sealed"))
}

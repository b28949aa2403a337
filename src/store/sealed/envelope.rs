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
//! | 4, twice | lengths of the place (the JSON) and of what is encrypted, with its tag | in clear |
//! | n | JSON: API version, environment, client id, kind, user; incarnation; revision | in clear |
//! | n | the payload, a user id that is not in clear, the length of that in 2 bytes | encrypted |
//! | 16 | tag | |
//!
//! All that is in clear is the associated data. It says what the row says, so nobody learns
//! anything from it; but a value that lies in another place than it was sealed for can tell which.

use bytes::Buf;
use chacha20poly1305::aead::Generate;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, Tag, XNonce};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};

use super::{KeyId, Sealed};
use crate::error::Error;
use crate::store::{StoreKey, Version};
use crate::wire::user::UserId;

const FORMAT: u8 = 1;
const TAG_BYTES: usize = 16;

/// The bytes before the place.
const HEAD_BYTES: usize = 1 + 8 + 24 + 4 + 4;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Bound {
    /// The API version.
    #[error("API version")]
    ApiVersion,
    /// The environment.
    #[error("environment")]
    Environment,
    /// The client.
    #[error("client")]
    ClientId,
    /// The kind of user.
    #[error("kind of user")]
    Kind,
    /// The user, or the hash of one.
    #[error("user")]
    User,
    /// The user's stay.
    #[error("stay of the user")]
    Incarnation,
    /// The revision.
    #[error("revision: {sealed}, and the row's is {row}")]
    Revision {
        /// The one it was sealed for.
        sealed: u64,
        /// The one of the row it is in.
        row: u64,
    },
}

impl From<OpenError> for Error {
    fn from(problem: OpenError) -> Self {
        Self::store(format!("a sealed token cannot be opened: {problem}"))
            .caused_by(problem)
            .not_temporary()
    }
}

impl<S> Sealed<S> {
    /// Seals a payload for the row at `key`, as the table has it, and `version`. `user` is who has
    /// the row, by their own id.
    pub(super) fn seal(
        &self,
        key: &StoreKey,
        version: Version,
        payload: &SecretBox<Vec<u8>>,
        user: &UserId,
    ) -> Result<SecretBox<Vec<u8>>, Error> {
        let sealing = &self.keys.first;
        let nonce = XNonce::try_generate().map_err(|source| {
            Error::store("the operating system has no random bytes for a nonce").caused_by(source)
        })?;
        let payload = payload.expose_secret();
        let user = if self.user_hash.is_some() { user.as_str() } else { "" };
        let place = place(key, version);
        let clear_bytes = HEAD_BYTES + place.len();
        let sealed_bytes = payload.len() + user.len() + 2 + TAG_BYTES;

        // Room for all of it: a growing buffer would leave plaintext behind.
        let mut sealed = SecretBox::new(Box::new(Vec::with_capacity(clear_bytes + sealed_bytes)));
        let bytes: &mut Vec<u8> = sealed.expose_secret_mut();
        bytes.push(FORMAT);
        bytes.extend_from_slice(&sealing.id().0);
        bytes.extend_from_slice(&nonce);
        for length in [place.len(), sealed_bytes] {
            let length = u32::try_from(length)
                .map_err(|_| Error::store("the token or its key is too long to be sealed"))?;
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        bytes.extend_from_slice(&place);

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

    /// Opens what lies in the row at `key`, as the table has it, and `version`. Says whose it is by
    /// their own id, and which key sealed it.
    pub(super) fn open(
        &self,
        key: &StoreKey,
        version: Version,
        sealed: &SecretBox<Vec<u8>>,
    ) -> Result<(SecretBox<Vec<u8>>, UserId, KeyId), OpenError> {
        let sealed = sealed.expose_secret();
        match sealed.first() {
            Some(&FORMAT) => {}
            // A token in plaintext is a JSON object.
            None | Some(b'{') => return Err(OpenError::NotSealed),
            Some(other) => return Err(OpenError::UnknownFormat(*other)),
        }
        let mut head = sealed.get(1..HEAD_BYTES).ok_or(OpenError::Cut)?;
        let (mut key_id, mut nonce) = (KeyId([0; 8]), XNonce::default());
        head.copy_to_slice(&mut key_id.0);
        head.copy_to_slice(&mut nonce);
        let (place_bytes, sealed_bytes) = (head.get_u32() as usize, head.get_u32() as usize);
        let (clear, secret) = sealed
            .split_at_checked(HEAD_BYTES.saturating_add(place_bytes))
            .filter(|(_, secret)| secret.len() == sealed_bytes)
            .ok_or(OpenError::Cut)?;
        let opening = self.keys.get(key_id).ok_or(OpenError::UnknownKey(key_id))?;
        let (secret, tag) = secret.split_last_chunk::<TAG_BYTES>().ok_or(OpenError::Cut)?;

        let mut payload = SecretBox::new(Box::new(Vec::with_capacity(secret.len())));
        let bytes: &mut Vec<u8> = payload.expose_secret_mut();
        bytes.resize(secret.len(), 0);
        let buffer = InOutBuf::new(secret, bytes).map_err(|_| OpenError::Changed)?;
        opening
            .cipher()
            .decrypt_inout_detached(&nonce, clear, buffer, &Tag::from(*tag))
            .map_err(|_| OpenError::Changed)?;
        // From here on what is in clear is authenticated.
        let sealed_for = &clear[HEAD_BYTES..];
        if sealed_for != place(key, version) {
            return Err(moved(sealed_for, key, version));
        }

        let (rest, length) = bytes.split_last_chunk::<2>().ok_or(OpenError::Changed)?;
        let start = rest.len().checked_sub(u16::from_be_bytes(*length).into());
        let start = start.ok_or(OpenError::Changed)?;
        let user = str::from_utf8(&rest[start..]).map_err(|_| OpenError::Changed)?;
        let user = match &self.user_hash {
            None if user.is_empty() => key.subject.clone(),
            Some(hash) if hash.hash(user) == key.subject => UserId::internal(user),
            // One who goes by a hash as if it were an id would ask the provider for that user.
            _ => return Err(OpenError::OtherUserHash),
        };
        bytes.truncate(start);
        Ok((payload, user, key_id))
    }
}

impl KeyId {
    /// The key by which a payload is sealed, as the table has it; `None` where it is not sealed, or
    /// in a format of another release. Nothing is opened, so no key is needed.
    #[must_use]
    pub fn of_payload(payload: &SecretBox<Vec<u8>>) -> Option<Self> {
        let rest = payload.expose_secret().strip_prefix(&[FORMAT])?;
        rest.first_chunk().copied().map(Self)
    }
}

/// The place of a row.
fn place(key: &StoreKey, version: Version) -> Vec<u8> {
    // Texts and numbers can always be written.
    serde_json::to_vec(&(key.texts(), version.incarnation, version.revision)).unwrap_or_default()
}

/// Names the first part in which the place that a value was sealed for is not its row's.
fn moved(sealed_for: &[u8], key: &StoreKey, version: Version) -> OpenError {
    const TEXTS: [Bound; 5] =
        [Bound::ApiVersion, Bound::Environment, Bound::ClientId, Bound::Kind, Bound::User];
    let Ok((texts, incarnation, revision)) =
        serde_json::from_slice::<([String; 5], u64, u64)>(sealed_for)
    else {
        return OpenError::Changed;
    };
    let texts = TEXTS.into_iter().zip(texts.iter().zip(key.texts()));
    OpenError::Moved(match texts.into_iter().find(|(_, (sealed, row))| sealed != row) {
        Some((bound, _)) => bound,
        None if incarnation != version.incarnation => Bound::Incarnation,
        None => Bound::Revision { sealed: revision, row: version.revision },
    })
}

//! The provider's users.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::LazyLock;

use oauth2::{ClientCredentialsTokenRequest, ErrorResponse, TokenResponse};

#[cfg(feature = "client")]
use super::log_id_key;
use crate::error::Error;

/// The id of one of your users, as the provider's `userId`.
///
/// Not empty, at most 256 bytes, without control characters and without white space around it. An
/// integer is an id by `From`, and a UUID by its text.
///
/// It is personal data: `Debug` shows the [`log_id`](Self::log_id), a short hash of it, and there
/// is no `Display`.
///
/// ```
/// use hurdlr_oauth2::UserId;
///
/// let user = UserId::new("customer-4711")?;
/// assert_eq!(user.as_str(), "customer-4711");
/// assert!(!format!("{user:?}").contains("4711"));
///
/// assert_eq!(UserId::from(4711).as_str(), "4711");
/// let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8"; // such as by `uuid.to_string()`
/// assert_eq!(UserId::new(uuid)?.as_str(), uuid);
/// # Ok::<(), hurdlr_oauth2::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Box<str>);

impl UserId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Takes an id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) says what keeps the text from being an id.
    pub fn new(id: impl Into<Box<str>>) -> Result<Self, Error> {
        let id = id.into();
        if id.is_empty() {
            Err(Error::config("user id is empty"))
        } else if id.len() > Self::MAX_BYTES {
            Err(Error::config(format!(
                "user id has {} bytes: at most {} are allowed",
                id.len(),
                Self::MAX_BYTES
            )))
        } else if id.chars().any(char::is_control) {
            Err(Error::config("user id holds a control character"))
        } else if id.trim() != &*id {
            Err(Error::config("user id has white space around it: leave it out"))
        } else {
            Ok(Self(id))
        }
    }

    /// The name of something that is no user, and stands where a user's id does.
    pub(crate) fn internal(name: impl Into<Box<str>>) -> Self {
        Self(name.into())
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this user in logs, spans and `Debug`, such as `user#9a3f51c2`: a keyed hash.
    /// Compute it for a user who asks for help, to find the lines that are about them.
    ///
    /// By default the key is random, so that the names change with each process. With
    /// [`HurdlrBuilder::log_id_key`](crate::HurdlrBuilder::log_id_key) they are the same in all
    /// processes that have this key.
    #[must_use]
    pub fn log_id(&self) -> String {
        static RANDOM: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let hash = || RANDOM.hash_one(&self.0) >> 32;
        #[cfg(feature = "client")]
        let hash = || log_id_key::hash(&self.0).unwrap_or_else(hash);
        format!("user#{:08x}", hash())
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log_id())
    }
}

/// The digits of an integer.
macro_rules! from_integer {
    ($($integer:ty)*) => {$(
        impl From<$integer> for UserId {
            fn from(id: $integer) -> Self {
                Self(id.to_string().into())
            }
        }
    )*};
}

from_integer!(i32 i64 u32 u64);

impl FromStr for UserId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        Self::new(id)
    }
}

/// Adds the provider's `userId` to a client credentials request of `oauth2`.
///
/// ```
/// use hurdlr_oauth2::basic::BasicClient;
/// use hurdlr_oauth2::oauth2::{AuthType, ClientId, ClientSecret, TokenUrl};
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{ClientCredentialsUser, UserId, secrecy::ExposeSecret};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::in_memory();
/// let client = BasicClient::new(ClientId::new(fake.client_id().to_owned()))
///     .set_client_secret(ClientSecret::new(fake.client_secret().expose_secret().to_owned()))
///     .set_token_uri(TokenUrl::from_url(fake.base_url().join("rest/v4/auth/token")?))
///     .set_auth_type(AuthType::RequestBody);
///
/// let user = UserId::new("customer-4711")?;
/// let answer = client
///     .exchange_client_credentials()
///     .user_id(&user)
///     .request_async(&fake.http_client())
///     .await?;
/// assert!(answer.created_at().is_some());
/// # Ok(())
/// # }
/// ```
pub trait ClientCredentialsUser<'a> {
    /// Asks for a token of this user; the provider demands one.
    #[must_use]
    fn user_id(self, user: &'a UserId) -> Self;
}

impl<'a, TE, TR> ClientCredentialsUser<'a> for ClientCredentialsTokenRequest<'a, TE, TR>
where
    TE: ErrorResponse + 'static,
    TR: TokenResponse,
{
    fn user_id(self, user: &'a UserId) -> Self {
        self.add_extra_param("userId", user.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_the_provider_confuses_are_refused() {
        let long = "x".repeat(257);
        for bad in ["", "a\0", "a\nb", "\u{7f}", "\u{85}", " ", "a ", "\u{a0}a", long.as_str()] {
            assert!(UserId::new(bad).is_err(), "{bad:?}");
        }
        let longest = "é".repeat(128);
        for good in ["a", "a b", "名前", longest.as_str()] {
            assert_eq!(UserId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn integers_are_ids() {
        assert_eq!(UserId::from(u64::MAX).as_str(), "18446744073709551615");
        assert_eq!(UserId::from(i64::MIN).as_str(), "-9223372036854775808");
        assert_eq!(UserId::from(7), UserId::new("7").unwrap());
    }

    #[test]
    fn debug_tells_users_apart_without_naming_them() {
        let [ann, bob] = ["ann", "bob"].map(|id| format!("{:?}", UserId::new(id).unwrap()));
        assert_ne!(ann, bob);
        assert!(!ann.contains("ann") && ann.len() == "user#01234567".len());
        assert_eq!(ann, format!("{:?}", UserId::new("ann").unwrap()));
    }
}

//! The provider's users.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::LazyLock;

use oauth2::{ClientCredentialsTokenRequest, ErrorResponse, TokenResponse};

use crate::error::Error;

/// The id of one of your users, as the provider's `userId`.
///
/// Not empty, at most 256 bytes, without control characters. It is personal data: `Debug` shows a
/// short hash of it, which is the same for one user all through a process and different in the
/// next, and there is no `Display`.
///
/// ```
/// use hurdlr_oauth2::UserId;
///
/// let user = UserId::new("customer-4711")?;
/// assert_eq!(user.as_str(), "customer-4711");
/// assert!(!format!("{user:?}").contains("4711"));
/// # Ok::<(), hurdlr_oauth2::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Box<str>);

impl UserId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Takes an id. What cannot be one is an [`ErrorKind::Config`](crate::ErrorKind::Config).
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
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        static KEYED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        write!(f, "user#{:08x}", KEYED.hash_one(&self.0) >> 32)
    }
}

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
        for bad in ["", "a\0", "a\nb", "\u{7f}", "\u{85}", long.as_str()] {
            assert!(UserId::new(bad).is_err(), "{bad:?}");
        }
        let longest = "é".repeat(128);
        for good in ["a", " ", "名前", longest.as_str()] {
            assert_eq!(UserId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn debug_tells_users_apart_without_naming_them() {
        let [ann, bob] = ["ann", "bob"].map(|id| format!("{:?}", UserId::new(id).unwrap()));
        assert_ne!(ann, bob);
        assert!(!ann.contains("ann") && ann.len() == "user#01234567".len());
        assert_eq!(ann, format!("{:?}", UserId::new("ann").unwrap()));
    }
}

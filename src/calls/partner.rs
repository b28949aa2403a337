//! Partner-level calls of API v5: Basic, and the user's id beside it.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use zeroize::Zeroizing;

use crate::clock::{Clock, SharedClock, SystemClock};
use crate::error::Error;
use crate::token::sensitive;
use crate::wire::endpoint::{ApiVersion, Environment, check_text};
use crate::wire::user::UserId;

const USER_ID: HeaderName = HeaderName::from_static("userid");

/// Partner-level calls of API v5: authorized by your app's own credentials, as `Authorization:
/// Basic` (RFC 7617), and made for the user whom the header `userId` names.
///
/// It is a type of its own, so that nobody calls with all of the app's rights where a user's token
/// was meant. There is no token and nothing to refresh: a 401 is handed to the caller. All else is
/// as with tokens, the [`CallPolicy`](crate::CallPolicy) included.
///
/// ```
/// use hurdlr_oauth2::secrecy::SecretString;
/// use hurdlr_oauth2::{Environment, Partner, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = SecretString::from("client-secret");
/// let partner = Partner::new("client-id", &secret, &Environment::Sandbox)?;
/// let api = partner.middleware().client(|builder| builder)?.build(); // once, for all users
/// let call = api.get("https://sandbox.hurdlr.com/rest/v5/expenses");
/// let call = call.with_extension(UserId::new("customer-4711")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Partner {
    authorization: HeaderValue,
    pub(crate) home: Arc<Url>,
    pub(crate) clock: SharedClock,
}

impl Partner {
    /// Takes the app's credentials, and where its calls go to: those to the environment's origin
    /// are authorized.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for an id that Basic cannot carry or an
    /// environment that cannot be used.
    pub fn new(
        client_id: &str,
        client_secret: &SecretString,
        environment: &Environment,
    ) -> Result<Self, Error> {
        if client_id.is_empty() || client_id.contains(|c: char| c == ':' || c.is_control()) {
            return Err(Error::config("client_id is empty, or holds what Basic cannot carry"));
        }
        let secret = client_secret.expose_secret();
        check_text("client_id", client_id)?;
        check_text("client_secret", secret)?;
        if secret.is_empty() || secret.contains(char::is_control) {
            return Err(Error::config("client_secret is empty, or holds what Basic cannot carry"));
        }
        let mut pair = Zeroizing::new(Vec::with_capacity(client_id.len() + 1 + secret.len()));
        pair.extend_from_slice(client_id.as_bytes());
        pair.push(b':');
        pair.extend_from_slice(secret.as_bytes());
        // Room for all of it: a growing buffer would leave copies behind.
        let length = base64::encoded_len(pair.len(), true).unwrap_or_default();
        let mut header = Zeroizing::new(vec![0; BASIC.len() + length]);
        header[..BASIC.len()].copy_from_slice(BASIC);
        BASE64_STANDARD
            .encode_slice(&*pair, &mut header[BASIC.len()..])
            .map_err(|source| Error::config("the credentials are too long").caused_by(source))?;
        Ok(Self {
            authorization: sensitive(header),
            home: Arc::new(ApiVersion::V5.token_url(environment)?),
            clock: SharedClock::new(SystemClock),
        })
    }

    /// The clock that pauses after a 429 go by; the system's by default.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = SharedClock::new(clock);
        self
    }

    /// Calls for this user.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for an id that would not reach the provider
    /// as it is: a header carries printable ASCII.
    pub fn user(&self, id: &UserId) -> Result<PartnerUser, Error> {
        let text = id.as_str();
        let arrives = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let header = HeaderValue::from_str(text).ok().filter(|_| arrives);
        let mut user_id = header.ok_or_else(|| {
            Error::config("user id cannot be sent in a header: it has to be printable ASCII")
        })?;
        user_id.set_sensitive(true);
        Ok(PartnerUser { partner: self.clone(), user_id })
    }
}

const BASIC: &[u8] = b"Basic ";

impl fmt::Debug for Partner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partner").field("home", &self.home.as_str()).finish_non_exhaustive()
    }
}

/// A user as partner-level calls name them: [`Partner::user`]. Cheap to clone.
#[derive(Clone)]
pub struct PartnerUser {
    pub(crate) partner: Partner,
    user_id: HeaderValue,
}

impl PartnerUser {
    pub(crate) fn is(&self, id: &UserId) -> bool {
        self.user_id == *id.as_str()
    }

    pub(crate) fn authorize(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.partner.authorization.clone());
        headers.insert(USER_ID, self.user_id.clone());
    }
}

impl fmt::Debug for PartnerUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartnerUser").field("partner", &self.partner).finish_non_exhaustive()
    }
}

//! Drop-in types for apps that already use `oauth2`: the names of [`oauth2::basic`], made for
//! this provider.
//!
//! An app changes `use oauth2::basic::…` to `use hurdlr_oauth2::basic::…` and adds one line, since
//! API v4 and v5 want the client's credentials in the body and `oauth2` puts them into a Basic
//! header by default: [`set_auth_type(AuthType::RequestBody)`](oauth2::Client::set_auth_type). API
//! v6 wants that default, so there the line is left out. All else stays as it is:
//!
//! * **HTTP clients.** The reqwest 0.12 clients of `oauth2`, async and blocking, fit unchanged, and
//!   so does every other [`AsyncHttpClient`](oauth2::AsyncHttpClient) or
//!   [`SyncHttpClient`](oauth2::SyncHttpClient). Build them without redirects, as `oauth2` says.
//! * **Stored answers.** [`BasicTokenResponse`] reads the JSON that `oauth2` wrote, and writes the
//!   same, tokens included.
//! * **Errors.** A dead refresh token is
//!   [`InvalidGrant`](BasicErrorResponseType::InvalidGrant) and wrong credentials are
//!   [`InvalidClient`](BasicErrorResponseType::InvalidClient) in both of the provider's languages;
//!   see [`BasicErrorResponse`].
//!
//! [`client`] gives a [`BasicClient`] with the URL and the auth type of an API version. On v4 and
//! v5 client credentials are granted for a user, whom
//! [`ClientCredentialsUser`](crate::ClientCredentialsUser) names.
//!
//! # Dependencies
//!
//! This module is all that is left with `default-features = false`, and adds at most ten crates to
//! an app that uses `oauth2` with its own reqwest client:
//!
//! ```toml
//! hurdlr-oauth2 = { version = "0.1", default-features = false }
//! ```
//!
//! The types of `oauth2` wipe no memory and some serialize in clear; [`Hurdlr`](crate::Hurdlr)
//! (feature `client`) is the way that does not have them hold the secrets.

pub use oauth2::basic::{
    BasicErrorResponseType, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};

pub use crate::wire::error_response::BasicErrorResponse;
pub use crate::wire::token_response::{BasicExtraTokenFields, BasicTokenResponse};

use oauth2::{ClientId, ClientSecret, EndpointNotSet, EndpointSet, TokenUrl};

use crate::error::Error;
use crate::wire::endpoint::{ApiVersion, Environment, check_text};

/// A [`BasicClient`] with the credentials, the token URL and the auth type of an API version, so
/// that none of them can be forgotten.
///
/// The provider documents no authorize URL; a login needs
/// [`set_auth_uri`](oauth2::Client::set_auth_uri) and
/// [`set_redirect_uri`](oauth2::Client::set_redirect_uri) beside it, and the revocation of v6
/// [`set_revocation_url`](oauth2::Client::set_revocation_url) with
/// [`ApiVersion::revocation_url`].
///
/// # Errors
///
/// [`ErrorKind::Config`](crate::ErrorKind::Config) names the argument that cannot be used.
///
/// ```
/// use hurdlr_oauth2::basic::{self, BasicClient};
/// use hurdlr_oauth2::{ApiVersion, Environment};
/// use oauth2::{AuthType, AuthUrl, ClientId, ClientSecret, RedirectUrl};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (id, secret) = (ClientId::new("id".into()), ClientSecret::new("secret".into()));
/// let client = basic::client(ApiVersion::V4, Environment::Sandbox, id, secret)?
///     .set_auth_uri(AuthUrl::new("https://connect.example.com/authorize".into())?)
///     .set_redirect_uri(RedirectUrl::new("https://app.example.com/callback".into())?);
/// assert_eq!(client.token_uri().as_str(), "https://sandbox.hurdlr.com/rest/v4/auth/token");
/// assert!(matches!(client.auth_type(), AuthType::RequestBody));
/// # Ok(())
/// # }
/// ```
pub fn client(
    version: ApiVersion,
    environment: impl Into<Environment>,
    client_id: ClientId,
    client_secret: ClientSecret,
) -> Result<ConfiguredClient, Error> {
    for (name, value) in [("client_id", &**client_id), ("client_secret", client_secret.secret())] {
        if value.is_empty() {
            return Err(Error::config(format!("{name} is empty")));
        }
        check_text(name, value)?;
    }
    let token_url = TokenUrl::from_url(version.token_url(&environment.into())?);
    Ok(BasicClient::new(client_id)
        .set_client_secret(client_secret)
        .set_token_uri(token_url)
        .set_auth_type(version.auth_type()))
}

/// The client of [`client`], with a token URL and nothing else.
type ConfiguredClient =
    BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// [`oauth2::Client`] with this provider's token and error answers.
///
/// ```
/// use hurdlr_oauth2::basic::BasicClient; // was: oauth2::basic::BasicClient
/// use oauth2::{AuthType, AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, RedirectUrl, TokenUrl};
///
/// # fn main() -> Result<(), oauth2::url::ParseError> {
/// let client = BasicClient::new(ClientId::new("id".into()))
///     .set_auth_uri(AuthUrl::new("https://connect.example.com/authorize".into())?)
///     .set_token_uri(TokenUrl::new("https://sandbox.hurdlr.com/rest/v4/auth/token".into())?)
///     .set_redirect_uri(RedirectUrl::new("https://app.example.com/callback".into())?)
///     .set_auth_type(AuthType::RequestBody);
///
/// let (challenge, _verifier) = PkceCodeChallenge::new_random_sha256();
/// let (url, _state) =
///     client.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge).url();
/// assert!(url.as_str().starts_with("https://connect.example.com/authorize?response_type=code"));
/// # Ok(())
/// # }
/// ```
pub type BasicClient<
    HasAuthUrl = EndpointNotSet,
    HasDeviceAuthUrl = EndpointNotSet,
    HasIntrospectionUrl = EndpointNotSet,
    HasRevocationUrl = EndpointNotSet,
    HasTokenUrl = EndpointNotSet,
> = oauth2::Client<
    BasicErrorResponse,
    BasicTokenResponse,
    BasicTokenIntrospectionResponse,
    oauth2::StandardRevocableToken,
    BasicRevocationErrorResponse,
    HasAuthUrl,
    HasDeviceAuthUrl,
    HasIntrospectionUrl,
    HasRevocationUrl,
    HasTokenUrl,
>;

/// The error of `oauth2` when a token request fails.
///
/// Its `Parse` variant holds the raw body and shows it in `Debug`, which is `oauth2`'s doing:
/// do not log it.
pub type BasicRequestTokenError<RE> = oauth2::RequestTokenError<RE, BasicErrorResponse>;

#[cfg(test)]
mod tests {
    use oauth2::AuthType;

    use super::*;

    fn client_of(
        version: ApiVersion,
        environment: &str,
        id: &str,
        secret: &str,
    ) -> Result<ConfiguredClient, Error> {
        client(version, environment, ClientId::new(id.into()), ClientSecret::new(secret.into()))
    }

    #[test]
    fn client_has_url_and_auth_type() {
        for (version, path, in_body) in [
            (ApiVersion::V4, "/rest/v4/auth/token", true),
            (ApiVersion::V5, "/rest/v5/auth/token", true),
            (ApiVersion::V6, "/v6/auth/token", false),
        ] {
            let client = client_of(version, "https://a.example", "id", "marker").unwrap();
            assert_eq!(client.token_uri().url().path(), path);
            assert_eq!(matches!(client.auth_type(), AuthType::RequestBody), in_body, "{version}");
            assert_eq!(client.client_id().as_str(), "id");
        }
    }

    #[test]
    fn unusable_argument_of_client_is_named() {
        for (environment, id, secret, named) in [
            ("https://a.example", "", "marker", "client_id"),
            ("https://a.example", "id", "", "client_secret"),
            ("https://a.example", "id", "marker\n", "client_secret"),
            ("http://a.example", "id", "marker", "environment"),
        ] {
            let error = client_of(ApiVersion::V4, environment, id, secret).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(named) && !shown.contains("marker"), "{shown}");
        }
    }
}

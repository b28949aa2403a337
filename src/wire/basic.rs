//! Drop-in types for apps that already use `oauth2`: the names of [`oauth2::basic`], made for
//! this provider.
//!
//! Where an app says `use oauth2::basic::BasicClient`, it says
//! `use hurdlr_oauth2::basic::BasicClient` instead and keeps the rest of its code. One thing
//! has to be added, since API v4 and v5 want the client's credentials in the body and `oauth2`
//! puts them into a Basic header by default:
//! [`set_auth_type(AuthType::RequestBody)`](oauth2::Client::set_auth_type). API v6 wants that
//! default, so there it is left out.
//!
//! The types of `oauth2` wipe no memory and some serialize in clear; [`Hurdlr`](crate::Hurdlr) is
//! the way that does not have them hold the secrets.

pub use oauth2::basic::{
    BasicErrorResponseType, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};

pub use crate::wire::error_response::BasicErrorResponse;
pub use crate::wire::token_response::{BasicTokenResponse, ExposedTokenResponse};

use oauth2::EndpointNotSet;

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

/// What `oauth2` answers when a token request fails.
///
/// Its `Parse` variant holds the raw body and shows it in `Debug`, which is `oauth2`'s doing:
/// do not log it.
pub type BasicRequestTokenError<RE> = oauth2::RequestTokenError<RE, BasicErrorResponse>;

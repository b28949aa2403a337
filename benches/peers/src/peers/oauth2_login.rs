//! A login with plain `oauth2`, for the peers that bring no token request of their own.

use std::time::{Duration, Instant};

use oauth2::basic::BasicClient;
use oauth2::{
    AccessToken, AuthType, ClientId, ClientSecret, EndpointNotSet, EndpointSet, RefreshToken,
    TokenResponse, TokenUrl,
};

use crate::Outcome;
use crate::peer::Token;
use crate::site::Site;

type Client =
    BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

#[derive(Clone, Debug)]
pub(crate) struct Oauth2Login {
    client: Client,
    http: oauth2::reqwest::Client,
}

impl Oauth2Login {
    pub(crate) fn new(site: &Site) -> Outcome<Self> {
        let client = BasicClient::new(ClientId::new(site.client_id.clone()))
            .set_client_secret(ClientSecret::new(site.client_secret.clone()))
            .set_auth_type(AuthType::RequestBody)
            .set_token_uri(TokenUrl::new(site.token_url())?);
        // Its documentation asks for this, against forged requests by redirects.
        let http = oauth2::reqwest::ClientBuilder::new()
            .redirect(oauth2::reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, http })
    }

    pub(crate) async fn refresh(&self, token: &RefreshToken) -> Outcome<Refreshed> {
        let sent = Instant::now();
        let answer = self.client.exchange_refresh_token(token).request_async(&self.http).await?;
        Ok(Refreshed {
            access_token: answer.access_token().clone(),
            refresh_token: answer.refresh_token().cloned(),
            over: sent + answer.expires_in().unwrap_or(Duration::from_secs(3_600)),
        })
    }
}

pub(crate) struct Refreshed {
    pub(crate) access_token: AccessToken,
    /// The one that takes the place of the one that was presented.
    pub(crate) refresh_token: Option<RefreshToken>,
    pub(crate) over: Instant,
}

impl Token for AccessToken {
    fn secret(&self) -> &str {
        self.secret()
    }
}

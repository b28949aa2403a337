//! An app on `oauth2` that keeps the tokens of its users in a file.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use hurdlr_oauth2::basic::{
    BasicClient, BasicErrorResponseType, BasicRequestTokenError, BasicTokenResponse,
};
use oauth2::url::Url;
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet, EndpointSet,
    HttpClientError, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken,
    RequestTokenError, TokenResponse, TokenUrl, reqwest,
};
use serde::{Deserialize, Serialize};

pub(crate) struct Settings {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) authorize_url: Url,
    pub(crate) token_url: Url,
    pub(crate) redirect_url: String,
    pub(crate) file: PathBuf,
}

/// A user of the app, as the file has them.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct User {
    pub(crate) logins: u32,
    pub(crate) token: BasicTokenResponse,
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// The user has to log in.
    LoginRequired,
    /// The client id or secret is wrong: somebody has to be woken.
    WrongCredentials,
    Other(String),
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        Self::Other(text)
    }
}

pub(crate) struct App {
    client: BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>,
    http: reqwest::Client,
    file: PathBuf,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        let client = BasicClient::new(ClientId::new(settings.client_id))
            .set_client_secret(ClientSecret::new(settings.client_secret))
            .set_auth_uri(AuthUrl::from_url(settings.authorize_url))
            .set_auth_type(oauth2::AuthType::RequestBody)
            .set_token_uri(TokenUrl::from_url(settings.token_url))
            .set_redirect_uri(RedirectUrl::new(settings.redirect_url)?);
        // A redirect would carry the secrets on to another host.
        let http =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, http, file: settings.file })
    }

    /// The page to send a user to, and what to keep for their return.
    pub(crate) fn begin_login(&self) -> (Url, CsrfToken, PkceCodeVerifier) {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) =
            self.client.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge).url();
        (url, state, verifier)
    }

    /// Keeps the token of a user who has come back with a code.
    pub(crate) async fn complete_login(
        &self,
        name: &str,
        code: String,
        verifier: PkceCodeVerifier,
    ) -> Result<(), Failure> {
        let code = self.client.exchange_code(AuthorizationCode::new(code));
        let token =
            code.set_pkce_verifier(verifier).request_async(&self.http).await.map_err(failure)?;
        let mut users = self.users()?;
        let logins = users.get(name).map_or(0, |user| user.logins) + 1;
        users.insert(name.to_owned(), User { logins, token });
        self.keep(&users)
    }

    /// Renews the token of a user.
    pub(crate) async fn refresh(&self, name: &str) -> Result<BasicTokenResponse, Failure> {
        let mut users = self.users()?;
        let user = users.get_mut(name).ok_or(Failure::LoginRequired)?;
        let old: RefreshToken =
            user.token.refresh_token().cloned().ok_or(Failure::LoginRequired)?;
        let mut token = self
            .client
            .exchange_refresh_token(&old)
            .request_async(&self.http)
            .await
            .map_err(failure)?;
        if token.refresh_token().is_none() {
            token.set_refresh_token(Some(old));
        }
        user.token = token.clone();
        self.keep(&users)?;
        Ok(token)
    }

    pub(crate) fn users(&self) -> Result<BTreeMap<String, User>, Failure> {
        if !self.file.exists() {
            return Ok(BTreeMap::new());
        }
        Ok(serde_json::from_slice(&fs::read(&self.file)?)?)
    }

    fn keep(&self, users: &BTreeMap<String, User>) -> Result<(), Failure> {
        Ok(fs::write(&self.file, serde_json::to_vec_pretty(users)?)?)
    }
}

fn failure(error: BasicRequestTokenError<HttpClientError<reqwest::Error>>) -> Failure {
    match &error {
        RequestTokenError::ServerResponse(answer) => match answer.error() {
            BasicErrorResponseType::InvalidGrant => Failure::LoginRequired,
            BasicErrorResponseType::InvalidClient => Failure::WrongCredentials,
            other => Failure::Other(other.to_string()),
        },
        _ => error.into(),
    }
}

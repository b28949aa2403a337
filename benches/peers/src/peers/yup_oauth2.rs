//! `yup-oauth2`: the login of an installed application, whose tokens are persisted to a file.

use std::sync::{Arc, LazyLock};

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use yup_oauth2::authenticator::Authenticator;
use yup_oauth2::storage::TokenInfo;
use yup_oauth2::{
    AccessToken, ApplicationSecret, CustomHyperClientBuilder, Error, InstalledFlowAuthenticator,
    InstalledFlowReturnMethod,
};

use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{self, Peer, Work};
use crate::site::Site;

const SCOPES: &[&str] = &["token"];

/// One for all, so that connections are used again.
static HTTP: LazyLock<Client<HttpConnector, String>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).build_http());

#[derive(Clone)]
pub(crate) struct YupOauth2(Arc<Authenticator<HttpConnector>>);

impl Peer for YupOauth2 {
    const NAME: &'static str = "yup_oauth2";
    const MARGIN: u64 = 60;
    const USERS: usize = 10_000;

    type Token = AccessToken;
    type Error = Error;
    type Users = UserMap<Self>;

    /// Finds the login in the file where an earlier run has left it.
    async fn open(site: &Site) -> Outcome<Self> {
        let file = site.folder.join(format!("{}.json", site.account));
        if !file.exists() {
            let token = TokenInfo {
                access_token: None,
                refresh_token: Some(site.refresh_token.clone()),
                expires_at: Some(time::OffsetDateTime::UNIX_EPOCH),
                id_token: None,
            };
            let tokens = serde_json::json!([{ "scopes": SCOPES, "token": token }]);
            std::fs::write(&file, tokens.to_string())?;
        }
        let secret = ApplicationSecret {
            client_id: site.client_id.clone(),
            client_secret: site.client_secret.clone(),
            token_uri: site.token_url(),
            ..ApplicationSecret::default()
        };
        let http = CustomHyperClientBuilder::from(HTTP.clone());
        let method = InstalledFlowReturnMethod::Interactive;
        let builder = InstalledFlowAuthenticator::with_client(secret, method, http)
            .flow_delegate(Box::new(NoPerson))
            .persist_tokens_to_disk(file);
        Ok(Self(Arc::new(builder.build().await?)))
    }

    async fn token(&self) -> Result<AccessToken, Error> {
        self.0.token(SCOPES).await
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        super::open_one_by_one(site, users).await
    }

    fn debug(&self, token: Option<&AccessToken>) -> Option<String> {
        Some(format!("{token:?}")) // `Authenticator` has none
    }

    fn lacks(_: Work) -> Option<&'static str> {
        None
    }
}

/// Nobody logs in again during a run.
struct NoPerson;

impl yup_oauth2::authenticator_delegate::InstalledFlowDelegate for NoPerson {
    fn present_user_url<'a>(
        &'a self,
        _: &'a str,
        _: bool,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>> {
        Box::pin(async { Err("the login is over".into()) })
    }
}

impl peer::Token for AccessToken {
    fn secret(&self) -> &str {
        self.token().unwrap_or_default()
    }
}

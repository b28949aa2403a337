//! `azure_identity`: a client secret, whose tokens are kept by scope.

use std::sync::{Arc, LazyLock};

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, TokenCredential};
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, Request, Transport, Url};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};

use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{Peer, Token, Work};
use crate::site::Site;

/// One for all, so that connections are used again.
static HTTP: LazyLock<Arc<dyn HttpClient>> =
    LazyLock::new(|| azure_core::http::new_http_client(None));

#[derive(Clone)]
pub(crate) struct AzureIdentity {
    credential: Arc<ClientSecretCredential>,
    scope: Arc<str>,
}

impl Peer for AzureIdentity {
    const NAME: &'static str = "azure_identity";
    const MARGIN: u64 = 300;
    const USERS: usize = 10_000;

    type Token = AccessToken;
    type Error = azure_core::Error;
    type Users = UserMap<Self>;

    async fn open(site: &Site) -> Outcome<Self> {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = "https://login.example".into();
        let transport = Loopback { origin: Url::parse(&site.origin)?, http: Arc::clone(&HTTP) };
        let client_options = ClientOptions {
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            transport: Some(Transport::new(Arc::new(transport))),
            ..ClientOptions::default()
        };
        let credential = ClientSecretCredential::new(
            &site.account,
            site.client_id.clone(),
            site.client_secret.clone().into(),
            Some(ClientSecretCredentialOptions { client_options }),
        )?;
        Ok(Self { credential, scope: "token".into() })
    }

    async fn token(&self) -> Result<AccessToken, azure_core::Error> {
        self.credential.get_token(&[&*self.scope], None).await
    }

    async fn another(&self, _: &Site) -> Outcome<Self> {
        let scope = format!("{:016x}", fastrand::u64(..));
        Ok(Self { credential: Arc::clone(&self.credential), scope: scope.into() })
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        super::open_one_by_one(site, users).await
    }

    fn debug(&self, token: Option<&AccessToken>) -> Option<String> {
        Some(format!("{:?} {token:?}", self.credential))
    }

    fn lacks(work: Work) -> Option<&'static str> {
        match work {
            Work::RotationByCallers | Work::RotationByProcesses => {
                Some("it has no refresh-token grant")
            }
        }
    }
}

/// Its own transport, with requests turned to the endpoint: an authority has to be https.
#[derive(Debug)]
struct Loopback {
    origin: Url,
    http: Arc<dyn HttpClient>,
}

#[async_trait::async_trait]
impl HttpClient for Loopback {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let mut request = request.clone();
        let mut url = self.origin.clone();
        url.set_path(request.url().path());
        *request.url_mut() = url;
        self.http.execute_request(&request).await
    }
}

impl Token for AccessToken {
    fn secret(&self) -> &str {
        self.token.secret()
    }
}

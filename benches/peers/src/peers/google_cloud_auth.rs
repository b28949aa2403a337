//! `google-cloud-auth`: user credentials, which a task refreshes four minutes before their end.

use google_cloud_auth::credentials::user_account::Builder;
use google_cloud_auth::credentials::{AccessToken, AccessTokenCredentials};
use google_cloud_auth::errors::CredentialsError;

use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{Peer, Token, Work};
use crate::site::Site;

#[derive(Clone)]
pub(crate) struct GoogleCloudAuth(AccessTokenCredentials);

impl Peer for GoogleCloudAuth {
    const NAME: &'static str = "google_cloud_auth";
    const MARGIN: u64 = 240;
    const USERS: usize = 1_000;

    type Token = AccessToken;
    type Error = CredentialsError;
    type Users = UserMap<Self>;

    async fn open(site: &Site) -> Outcome<Self> {
        let authorized_user = serde_json::json!({
            "type": "authorized_user",
            "client_id": site.client_id,
            "client_secret": site.client_secret,
            "refresh_token": site.refresh_token,
        });
        let builder = Builder::new(authorized_user).with_token_uri(site.token_url());
        Ok(Self(builder.build_access_token_credentials()?))
    }

    fn token(&self) -> impl Future<Output = Result<AccessToken, CredentialsError>> + Send {
        self.0.access_token()
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        super::open_one_by_one(site, users).await
    }

    fn debug(&self, token: Option<&AccessToken>) -> Option<String> {
        Some(format!("{:?} {token:?}", self.0))
    }

    fn lacks(work: Work) -> Option<&'static str> {
        (work == Work::RotationByProcesses).then_some("no storage: it never keeps a refresh token")
    }
}

impl Token for AccessToken {
    fn secret(&self) -> &str {
        &self.token
    }
}

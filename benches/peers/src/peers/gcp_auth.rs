//! `gcp_auth`: a service account, whose tokens are kept by scope.

use std::sync::Arc;

use gcp_auth::{CustomServiceAccount, Error, TokenProvider};

use super::user_map::UserMap;
use crate::Outcome;
use crate::peer::{self, Peer, Work};
use crate::site::Site;

#[derive(Clone)]
pub(crate) struct GcpAuth {
    account: Arc<CustomServiceAccount>,
    scope: Arc<str>,
}

impl Peer for GcpAuth {
    const NAME: &'static str = "gcp_auth";
    const MARGIN: u64 = 20;
    const USERS: usize = 1_000;

    type Token = Arc<gcp_auth::Token>;
    type Error = Error;
    type Users = UserMap<Self>;

    async fn open(site: &Site) -> Outcome<Self> {
        // Its logins have no token URL of their own, so this is a service account.
        let key = serde_json::json!({
            "type": "service_account",
            "project_id": "project",
            "client_email": "service@project.example",
            "private_key": site.private_key,
            "token_uri": site.token_url(),
        });
        let account = Arc::new(CustomServiceAccount::from_json(&key.to_string())?);
        Ok(Self { account, scope: "token".into() })
    }

    async fn token(&self) -> Result<Arc<gcp_auth::Token>, Error> {
        self.account.token(&[&*self.scope]).await
    }

    async fn another(&self, _: &Site) -> Outcome<Self> {
        let scope = format!("{:016x}", fastrand::u64(..));
        Ok(Self { account: Arc::clone(&self.account), scope: scope.into() })
    }

    async fn many(site: &Site, users: usize) -> Outcome<Self::Users> {
        super::open_one_by_one(site, users).await
    }

    fn debug(&self, token: Option<&Self::Token>) -> Option<String> {
        Some(format!("{:?} {token:?}", self.account))
    }

    fn lacks(work: Work) -> Option<&'static str> {
        match work {
            Work::RotationByCallers | Work::RotationByProcesses => {
                Some("its logins ask no other endpoint than Google's")
            }
        }
    }
}

impl peer::Token for Arc<gcp_auth::Token> {
    fn secret(&self) -> &str {
        self.as_str()
    }
}

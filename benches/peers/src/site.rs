//! The account of a peer, as a value, so that it can be handed to another process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// The variable that has a site as JSON, for a process that is one peer of this one.
pub(crate) const VARIABLE: &str = "PEERS_SITE";

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Site {
    /// Scheme, host and port of the endpoint.
    pub(crate) origin: String,
    /// The first segment of the account's URLs.
    pub(crate) account: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) refresh_token: String,
    /// The access token that came with it, which is over.
    pub(crate) access_token: String,
    /// The key of a service account, as PEM.
    pub(crate) private_key: String,
    /// A folder for a peer that stores tokens in files.
    pub(crate) folder: PathBuf,
}

impl Site {
    /// The site that the process which started this one has put into its environment.
    pub(crate) fn from_env() -> Outcome<Self> {
        Ok(serde_json::from_str(&std::env::var(VARIABLE)?)?)
    }

    pub(crate) fn to_json(&self) -> Outcome<String> {
        Ok(serde_json::to_string(self)?)
    }

    pub(crate) fn token_url(&self) -> String {
        format!("{}/{}/token", self.origin, self.account)
    }
}

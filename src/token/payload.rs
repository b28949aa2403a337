//! A token as a store keeps it: the provider's own JSON, and the manager's notes beside it.

use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All that is written, borrowed.
#[derive(Serialize)]
pub(super) struct Payload<'a> {
    pub(super) access_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refresh_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_in: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) superseded: &'a [SupersededToken],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pending_since: Option<u32>,
}

/// The manager's notes about a stored token.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Notes {
    /// Earlier access tokens of the user that live on at the provider. Disconnecting revokes them.
    #[serde(default)]
    pub(crate) superseded: Vec<SupersededToken>,
    /// The age in seconds that the token had when its revocation was first due.
    #[serde(default)]
    pub(crate) pending_since: Option<u32>,
}

/// An access token that another one has replaced before its own end.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SupersededToken {
    #[serde(deserialize_with = "secret")]
    pub(crate) access_token: SecretString,
    /// The age in seconds of the token beside it at which this one's life is over.
    pub(crate) ends_at_age: u32,
}

impl Notes {
    /// The notes in a payload; none where it cannot be read.
    pub(crate) fn of_payload(payload: &SecretBox<Vec<u8>>) -> Self {
        serde_json::from_slice(payload.expose_secret()).unwrap_or_default()
    }
}

impl Serialize for SupersededToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("SupersededToken", 2)?;
        out.serialize_field("access_token", self.access_token.expose_secret())?;
        out.serialize_field("ends_at_age", &self.ends_at_age)?;
        out.end()
    }
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

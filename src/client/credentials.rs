//! How the client proves who it is, wherever the provider wants to know (RFC 6749 section 2.3.1).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::client::transport::Form;
use crate::token::{Token, sensitive};
use crate::wire::endpoint::ClientAuthentication;

const BASIC: &[u8] = b"Basic ";

/// The app's credentials, and how its API version wants to see them.
pub(super) struct Credentials {
    pub(super) client_id: String,
    pub(super) client_secret: SecretString,
    pub(super) authentication: ClientAuthentication,
}

impl Credentials {
    /// A form of these fields with the client's proof of itself. `bearer` is for the versions that
    /// leave the header to it.
    pub(super) fn form<'a>(
        &'a self,
        mut fields: Vec<(&'static str, &'a str)>,
        bearer: Option<&Token>,
    ) -> Form {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        let authorization = match self.authentication {
            ClientAuthentication::RequestBody => {
                fields.extend([
                    ("client_id", &*self.client_id),
                    ("client_secret", self.client_secret.expose_secret()),
                ]);
                bearer.map(Token::authorization_header)
            }
            ClientAuthentication::Basic => Some(self.basic()),
        };
        headers.extend(authorization.map(|value| (header::AUTHORIZATION, value)));
        // Room for the longest encoding: a growing buffer would leave copies of secrets behind.
        let room = fields.iter().map(|(name, value)| name.len() + 2 + 3 * value.len()).sum();
        let body = form_urlencoded::Serializer::new(String::with_capacity(room))
            .extend_pairs(fields)
            .finish()
            .into_bytes()
            .into();
        Form { headers, body }
    }

    /// `Basic` with id and secret, each form-urlencoded before both become base64: marked
    /// sensitive, in memory that is wiped.
    fn basic(&self) -> HeaderValue {
        let encoded = || {
            let (id, secret) = (&self.client_id, self.client_secret.expose_secret());
            let [id, secret] =
                [id, secret].map(|it| form_urlencoded::byte_serialize(it.as_bytes()));
            id.chain([":"]).chain(secret)
        };
        // Room for all of it: a growing buffer would leave copies of secrets behind.
        let room = encoded().map(str::len).sum();
        let mut pair = Zeroizing::new(String::with_capacity(room));
        pair.extend(encoded());
        let mut text = Zeroizing::new(vec![0; BASIC.len() + pair.len().div_ceil(3) * 4]);
        let (scheme, encoded) = text.split_at_mut(BASIC.len());
        scheme.copy_from_slice(BASIC);
        // There is just the room that it takes.
        let _ = BASE64_STANDARD.encode_slice(pair.as_bytes(), encoded);
        sensitive(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that grows leaves its old content in memory that is not wiped, and one that grew is
    /// longer than the longest encoding.
    #[test]
    fn form_has_room_for_every_escape() {
        let escaped = "%".repeat(100);
        for authentication in [ClientAuthentication::RequestBody, ClientAuthentication::Basic] {
            let credentials = Credentials {
                client_id: escaped.clone(),
                client_secret: escaped.as_str().into(),
                authentication,
            };
            let fields = vec![("refresh_token", &*escaped), ("grant_type", &*escaped)];
            let body = credentials.form(fields, None).body;
            // There is no `&` before the first field.
            assert_eq!(body.capacity(), body.len() + 1);
        }
    }
}

//! The parts of a token that an app keeps in columns of its own.

use std::time::SystemTime;

use secrecy::SecretString;

/// The parts of a token that an app keeps in columns of its own, for
/// [`Token::from_parts`](crate::Token::from_parts). `Debug` redacts both tokens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenParts {
    /// The access token.
    pub access_token: SecretString,
    /// The refresh token.
    pub refresh_token: Option<SecretString>,
    /// The time at which the access token was issued.
    pub created_at: Option<SystemTime>,
    /// The time at which the access token ends; where an app keeps `expires_in`, that is
    /// `created_at + expires_in`.
    pub expires_at: Option<SystemTime>,
    /// The scopes, separated by spaces.
    pub scope: Option<String>,
}

impl TokenParts {
    /// An access token, and none of the other parts.
    #[must_use]
    pub fn new(access_token: SecretString) -> Self {
        Self { access_token, refresh_token: None, created_at: None, expires_at: None, scope: None }
    }
}

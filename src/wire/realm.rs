//! The part of all keys that the users of one client share.

use std::fmt;

use crate::wire::endpoint::ApiVersion;

/// API version, environment and client id: the part of a key that all users of one client share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm {
    version: ApiVersion,
    environment: Box<str>,
    client_id: Box<str>,
}

impl Realm {
    /// The realm of `client_id` at `environment`, a base URL.
    pub fn new(
        version: ApiVersion,
        environment: impl Into<Box<str>>,
        client_id: impl Into<Box<str>>,
    ) -> Self {
        Self { version, environment: environment.into(), client_id: client_id.into() }
    }

    /// API version, environment and client id, as a table has them.
    #[cfg(any(feature = "postgres", feature = "sealed", feature = "sqlite"))]
    pub(crate) fn texts(&self) -> [&str; 3] {
        [self.version.contract().name, &self.environment, &self.client_id]
    }

    /// The API version.
    #[must_use]
    pub fn api_version(&self) -> ApiVersion {
        self.version
    }

    /// The base URL of the provider's installation.
    #[must_use]
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The client id.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} at {}", self.client_id, self.version, self.environment)
    }
}

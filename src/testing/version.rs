//! The versions of the provider's API that the fake speaks.

/// One version of the API. All that differs between versions is asked of this type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    V4,
    V5,
}

impl Version {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V5];

    pub(super) fn token_path(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/auth/token",
            Self::V5 => "/rest/v5/auth/token",
        }
    }

    pub(super) fn resource_path(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/me",
            Self::V5 => "/rest/v5/me",
        }
    }

    /// Whether `client_credentials` must name a user.
    pub(super) fn requires_user_id(self) -> bool {
        match self {
            Self::V4 | Self::V5 => true,
        }
    }
}

//! The versions of the provider's API that the fake speaks.

use std::time::Duration;

/// One version of the API. All that differs between versions is asked of this type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    V4,
    V5,
    V6,
}

impl Version {
    pub(super) const ALL: [Self; 3] = [Self::V4, Self::V5, Self::V6];

    /// The version whose API has this path.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| path.starts_with(version.root()))
    }

    fn root(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/",
            Self::V5 => "/rest/v5/",
            Self::V6 => "/v6/",
        }
    }

    pub(super) fn token_path(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/auth/token",
            Self::V5 => "/rest/v5/auth/token",
            Self::V6 => "/v6/auth/token",
        }
    }

    /// RFC 7009.
    pub(super) fn revocation_path(self) -> Option<&'static str> {
        match self {
            Self::V4 | Self::V5 => None,
            Self::V6 => Some("/v6/auth/revoke"),
        }
    }

    pub(super) fn resource_path(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/me",
            Self::V5 => "/rest/v5/me",
            Self::V6 => "/v6/me",
        }
    }

    pub(super) fn expenses_path(self) -> &'static str {
        match self {
            Self::V4 => "/rest/v4/expenses",
            Self::V5 => "/rest/v5/expenses",
            Self::V6 => "/v6/expenses",
        }
    }

    /// Whether the client proves itself by HTTP Basic and by nothing else, or in the form's body
    /// (RFC 6749 section 2.3.1).
    pub(super) fn takes_basic(self) -> bool {
        match self {
            Self::V4 | Self::V5 => false,
            Self::V6 => true,
        }
    }

    /// Whether the API takes the client by HTTP Basic (RFC 7617), for the user whom the header
    /// `userId` names.
    pub(super) fn has_partner_calls(self) -> bool {
        match self {
            Self::V4 | Self::V6 => false,
            Self::V5 => true,
        }
    }

    /// Whether `client_credentials` must name a user.
    pub(super) fn requires_user_id(self) -> bool {
        match self {
            Self::V4 | Self::V5 => true,
            Self::V6 => false,
        }
    }

    /// Whether a code must come with the redirect URI that it was asked for with.
    pub(super) fn requires_redirect_uri(self) -> bool {
        match self {
            Self::V4 | Self::V5 => false,
            Self::V6 => true,
        }
    }

    /// Whether the reference lists `code_verifier`. A server ignores what it does not know (RFC
    /// 6749 section 3.2).
    pub(super) fn documents_pkce(self) -> bool {
        match self {
            Self::V4 | Self::V5 => false,
            Self::V6 => true,
        }
    }

    /// Whether `client_credentials` bring a refresh token too.
    pub(super) fn refreshes_client_credentials(self) -> bool {
        match self {
            Self::V4 | Self::V5 => true,
            Self::V6 => false,
        }
    }

    /// Whether a token answer names its `token_type`, and not when it was created.
    pub(super) fn names_token_type(self) -> bool {
        match self {
            Self::V4 | Self::V5 => false,
            Self::V6 => true,
        }
    }

    /// Whether a request may name a scope; where not, what it names is not looked at.
    pub(super) fn has_scopes(self) -> bool {
        match self {
            Self::V4 | Self::V5 => false,
            Self::V6 => true,
        }
    }

    /// The scope that is granted where none is asked for.
    pub(super) fn default_scope(self) -> Scope {
        match self {
            Self::V4 | Self::V5 => Scope::Token,
            Self::V6 => Scope::Write,
        }
    }

    /// The `expires_in` of the reference's example.
    pub(super) fn token_life(self) -> Duration {
        match self {
            Self::V4 | Self::V5 => Duration::from_hours(90 * 24),
            Self::V6 => Duration::from_hours(1),
        }
    }
}

/// The scope of a token. Later ones permit more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd)]
pub(super) enum Scope {
    /// All that the versions without scopes know.
    Token,
    Read,
    Write,
}

impl Scope {
    /// Parses a scope that a request can ask for.
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Write].into_iter().find(|scope| scope.as_str() == text)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

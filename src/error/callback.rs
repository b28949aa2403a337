//! `CallbackProblem`: reasons to refuse the callback of a login.

use super::Error;

/// The reason why the callback of a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallbackProblem {
    /// The pending login cannot be read.
    Unreadable,
    /// The login began with other settings: another API version, environment, client id, issuer or
    /// redirect URI.
    OtherSettings,
    /// The login began more than 10 minutes ago, or in the future.
    Expired,
    /// There is no `state`.
    StateMissing,
    /// There are several `state` parameters.
    StateDoubled,
    /// The `state` is not of this login: the callback may be forged.
    StateMismatch,
    /// An issuer other than the one configured answered (RFC 9207), or more than one.
    IssuerMismatch,
    /// The person or the provider refused. See [`Error::code`](crate::Error::code): `access_denied`
    /// where the person said no.
    Refused,
    /// There is no `code`, or an empty one.
    CodeMissing,
    /// There are several `code` parameters.
    CodeDoubled,
}

impl CallbackProblem {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "what was kept of this login cannot be read",
            Self::OtherSettings => "this login was begun with other settings",
            Self::Expired => "this login began more than 10 minutes ago",
            Self::StateMissing => "the callback has no state",
            Self::StateDoubled => "the callback has more than one state",
            Self::StateMismatch => "the callback's state is not of this login",
            Self::IssuerMismatch => "the callback is of another issuer",
            Self::Refused => "the login was refused",
            Self::CodeMissing => "the callback has no code",
            Self::CodeDoubled => "the callback has more than one code",
        }
    }
}

impl From<CallbackProblem> for Error {
    fn from(problem: CallbackProblem) -> Self {
        Self::callback(problem)
    }
}

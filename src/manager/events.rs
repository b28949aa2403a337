//! Events of a user: a new token, a login that is over, a removal.

/// An event of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenEvent {
    /// There is another token: refreshed, from a login, or found in the store.
    NewToken,
    /// The person has to log in again. Sent once, however often the token is read.
    LoginRequired,
    /// The person has to log in again, since an answer with their new refresh token was lost.
    RotationLost,
    /// The user was removed.
    Forgotten,
}

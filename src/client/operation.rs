//! The operations of the provider: the fields that each sends, and how it reads the answer.

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::failure::{self, Failure, Receipt};
use crate::client::login::AuthorizationCode;
use crate::client::retry::RequestType;
use crate::client::transport::{Answer, Defect, Verdict};
use crate::token::Token;
use crate::wire::endpoint::Scope;
use crate::wire::token_response::rescue_refresh_token;
use crate::wire::user::UserId;

/// One request to the token or the revocation endpoint.
pub(crate) trait Operation: Send + Sync {
    type Output: Send;

    const TYPE: RequestType;

    fn url(&self) -> &Url;

    /// Exactly the documented fields, but for those by which the client proves who it is.
    fn fields(&self) -> Vec<(&'static str, &str)>;

    /// Values that no error text may repeat: secrets, and who the user is.
    fn secrets(&self) -> Vec<&str>;

    /// The user it is made for, where it names one.
    fn user(&self) -> Option<&UserId> {
        None
    }

    /// The token that goes along as an `Authorization: Bearer` header.
    fn bearer(&self) -> Option<&Token> {
        None
    }

    /// Leaves that header out from now on.
    fn drop_bearer(&mut self) {}

    /// Reads an answer.
    fn read(&self, answer: Answer, receipt: &Receipt<'_>) -> Result<Self::Output, Failure>;
}

/// Exchanges the code of a login for a token (RFC 6749 section 4.1.3, RFC 7636 section 4.5).
pub(super) struct CodeExchange<'a> {
    pub(super) url: &'a Url,
    pub(super) verified: AuthorizationCode,
    pub(super) redirect_uri: &'a str,
    pub(super) scope: Option<Scope>,
}

impl Operation for CodeExchange<'_> {
    type Output = Token;

    const TYPE: RequestType = RequestType::AuthorizationCode;

    fn url(&self) -> &Url {
        self.url
    }

    fn fields(&self) -> Vec<(&'static str, &str)> {
        let AuthorizationCode { code, verifier } = &self.verified;
        let mut fields = vec![
            ("grant_type", Self::TYPE.name()),
            ("code", code.expose_secret()),
            ("redirect_uri", self.redirect_uri),
            ("code_verifier", verifier.expose_secret()),
        ];
        fields.extend(self.scope.map(|scope| ("scope", scope.as_str())));
        fields
    }

    fn secrets(&self) -> Vec<&str> {
        vec![self.verified.code.expose_secret(), self.verified.verifier.expose_secret()]
    }

    fn read(&self, answer: Answer, receipt: &Receipt<'_>) -> Result<Token, Failure> {
        read_token(self, answer, receipt)
    }
}

/// Grants a token for a user, or the partner's own (RFC 6749 section 4.4, with the provider's
/// `userId`).
pub(crate) struct ClientCredentials<'a> {
    pub(super) url: &'a Url,
    /// `None` for the partner itself.
    pub(super) user: Option<&'a UserId>,
    pub(super) scope: Option<Scope>,
}

impl Operation for ClientCredentials<'_> {
    type Output = Token;

    const TYPE: RequestType = RequestType::ClientCredentials;

    fn url(&self) -> &Url {
        self.url
    }

    fn fields(&self) -> Vec<(&'static str, &str)> {
        let mut fields = Vec::with_capacity(5);
        fields.push(("grant_type", Self::TYPE.name()));
        fields.extend(self.user.map(|user| ("userId", user.as_str())));
        fields.extend(self.scope.map(|scope| ("scope", scope.as_str())));
        fields
    }

    fn secrets(&self) -> Vec<&str> {
        self.user.iter().map(|user| user.as_str()).collect()
    }

    fn user(&self) -> Option<&UserId> {
        self.user
    }

    fn read(&self, answer: Answer, receipt: &Receipt<'_>) -> Result<Token, Failure> {
        read_token(self, answer, receipt)
    }
}

/// Refreshes a token (RFC 6749 section 6), without a scope: it stays what was granted.
pub(crate) struct Refresh<'a> {
    pub(super) url: &'a Url,
    pub(super) token: &'a Token,
    pub(super) refresh_token: &'a SecretString,
    pub(super) carries_bearer: bool,
}

impl Operation for Refresh<'_> {
    type Output = Token;

    const TYPE: RequestType = RequestType::RefreshToken;

    fn url(&self) -> &Url {
        self.url
    }

    fn fields(&self) -> Vec<(&'static str, &str)> {
        let refresh_token = self.refresh_token.expose_secret();
        vec![("grant_type", Self::TYPE.name()), ("refresh_token", refresh_token)]
    }

    /// With the access token even without the header: an earlier attempt may have sent it.
    fn secrets(&self) -> Vec<&str> {
        vec![self.refresh_token.expose_secret(), self.token.access_token().expose_secret()]
    }

    fn bearer(&self) -> Option<&Token> {
        self.carries_bearer.then_some(self.token)
    }

    fn drop_bearer(&mut self) {
        self.carries_bearer = false;
    }

    fn read(&self, answer: Answer, receipt: &Receipt<'_>) -> Result<Token, Failure> {
        let token = read_token(self, answer, receipt)?;
        Ok(token.or_refresh_token(self.refresh_token))
    }
}

/// Revokes a token (RFC 7009).
pub(crate) struct Revocation<'a> {
    pub(super) url: &'a Url,
    pub(super) token: &'a SecretString,
    pub(super) hint: &'static str,
}

impl Operation for Revocation<'_> {
    type Output = ();

    const TYPE: RequestType = RequestType::Revocation;

    fn url(&self) -> &Url {
        self.url
    }

    fn fields(&self) -> Vec<(&'static str, &str)> {
        vec![("token", self.token.expose_secret()), ("token_type_hint", self.hint)]
    }

    fn secrets(&self) -> Vec<&str> {
        vec![self.token.expose_secret()]
    }

    /// Where it is none of a failure, the body says nothing (RFC 7009 section 2.2).
    fn read(&self, answer: Answer, receipt: &Receipt<'_>) -> Result<(), Failure> {
        match answer.refusal(receipt.secrets) {
            // A dead token is as good as revoked. In a 401 the same code may mean the credentials
            // of a client that is not known.
            Some(refusal)
                if names_a_dead_token(refusal.code())
                    && answer.status != StatusCode::UNAUTHORIZED
                    && failure::by_status(&answer, true, receipt).is_none() =>
            {
                Ok(())
            }
            Some(refusal) => Err(failure::refused(&refusal, &answer, receipt)),
            None if answer.status.is_success() => Ok(()),
            None => Err(failure::unexplained(answer, receipt)),
        }
    }
}

/// Whether a code says that the token to be revoked is none, or none any more. RFC 7009 has no such
/// code; providers send those of RFC 6749 and RFC 6750 all the same.
fn names_a_dead_token(code: &str) -> bool {
    failure::names_a_token(code) || code == "invalid_grant"
}

/// Reads the answer to a grant. Any 2xx with a token is a token, and a failure is one whatever its
/// status.
fn read_token<O: Operation>(
    operation: &O,
    answer: Answer,
    receipt: &Receipt<'_>,
) -> Result<Token, Failure> {
    let (refusal, defect) = match answer.verdict(receipt.secrets) {
        Verdict::Token(token) => {
            tracing::debug!("token received");
            return Ok(Token::received(token, answer.date(), receipt.sent_at, receipt.clock));
        }
        Verdict::Failure { refusal, defect } => (refusal, defect),
    };
    // One that only repeats what was sent is no news. In a failure, the field may hold a message
    // about the one that was sent, unless all of a token is there.
    let is_whole = matches!(defect, Defect::Unacceptable);
    let rescued = rescue_refresh_token(&answer.body)
        .filter(|token| !operation.secrets().contains(&token.expose_secret()))
        .filter(|_| answer.status.is_success() || (is_whole && !O::TYPE.is_repeatable()));
    Err(match (rescued, refusal) {
        (Some(refresh_token), refusal) => {
            failure::rescued(refresh_token, defect, refusal.as_ref(), answer, receipt)
        }
        (None, Some(refusal)) => failure::refused(&refusal, &answer, receipt),
        (None, None) if answer.status.is_success() => failure::unreadable_success(answer, defect),
        (None, None) => failure::unexplained(answer, receipt),
    })
}

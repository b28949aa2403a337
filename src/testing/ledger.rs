//! The memory of the provider: codes, access tokens, refresh tokens and their users.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oauth2::{PkceCodeChallenge, PkceCodeVerifier};

use super::version::{Scope, Version};

/// How long a code can be redeemed. RFC 6749 section 4.1.2 recommends ten minutes at most.
const CODE_LIFE: Duration = Duration::from_mins(10);

/// How many access tokens, and how many refresh tokens, are remembered for each user. The oldest
/// is forgotten first, as at providers that limit live tokens by user; a forgotten one is dead.
const REMEMBERED_PER_USER: usize = 256;

/// Codes are swept once there are so many, so that logins nobody completes do not pile up.
const CODES_BEFORE_SWEEP: usize = 1_024;

/// The policy for the refresh token that a refresh was sent with.
///
/// Access tokens live to their end under every policy but [`KillAccess`](Self::KillAccess) and
/// [`KillFamily`](Self::KillFamily). A change of policy applies to the next request, tokens issued
/// before included.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Rotation {
    /// The refresh token stays; each refresh answers with the same one.
    None,
    /// Each refresh answers with a new refresh token, and the old one is dead at once.
    #[default]
    RotateAndKill,
    /// Like `RotateAndKill`, but for so long the old one still gets the very answer that replaced
    /// it, the same tokens and the same `created_at`. After that it is dead.
    Grace(Duration),
    /// Like `RotateAndKill`, and the access tokens of the same login are dead at once too.
    ///
    /// Most servers do so. A call that is on its way with the old one is answered 401, so a caller
    /// that sends tokens by hand must expect a 401 at each refresh: get the token anew and call
    /// again, as `TokenMiddleware` and `TokenLayer` do. With a manager,
    /// [`report_unauthorized`](crate::manager::UserHandle::report_unauthorized) first; it starts no
    /// second refresh.
    KillAccess,
    /// Like `RotateAndKill`, and the use of an old one is taken for theft: every token that goes
    /// back to the same login dies, access tokens too (RFC 9700 section 4.14.2).
    KillFamily,
}

/// The status of a token that is not honoured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TokenStatus {
    /// Never issued, replaced or revoked.
    Dead,
    /// Its time is over.
    Expired,
}

/// Why a code is not redeemed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CodeRefusal {
    /// Never issued, used before, or too old.
    Dead,
    /// The redirect URI is not the one of the authorization request.
    RedirectUri,
    /// There is none, and this version requires it.
    RedirectUriMissing,
    /// A challenge was sent, but no verifier came.
    VerifierMissing,
    /// The verifier does not fit the challenge, or there was no challenge.
    Verifier,
}

/// A token's value, kept as a number: a third of the memory of its 97 characters.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct TokenValue([u128; 3]);

impl TokenValue {
    fn random() -> Self {
        Self(std::array::from_fn(|_| fastrand::u128(..)))
    }

    /// `None` for whatever cannot be one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (left, right) = text.split_once('.')?;
        if left.len() != 64 || !left.is_ascii() {
            return None;
        }
        let (high, low) = left.split_at(32);
        Some(Self([number(high)?, number(low)?, number(right)?]))
    }
}

/// Written as the reference's examples are: 64 hexadecimal digits, a dot, 32 more.
impl fmt::Display for TokenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [high, low, right] = self.0;
        write!(f, "{high:032x}{low:032x}.{right:032x}")
    }
}

impl fmt::Debug for TokenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Exactly the 32 lower case digits we print: `from_str_radix` would take a sign and upper case.
fn number(digits: &str) -> Option<u128> {
    let ours = digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ours { u128::from_str_radix(digits, 16).ok() } else { None }
}

/// Why a refresh is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RefreshRefusal {
    Token(TokenStatus),
    /// More is asked for than was granted (RFC 6749 section 6).
    Scope,
}

impl From<TokenStatus> for RefreshRefusal {
    fn from(status: TokenStatus) -> Self {
        Self::Token(status)
    }
}

/// The content of a token answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issued {
    pub(super) access: TokenValue,
    pub(super) refresh: Option<TokenValue>,
    pub(super) scope: Scope,
    /// Seconds.
    pub(super) expires_in: u64,
    /// Unix seconds.
    pub(super) created_at: u64,
}

/// By which rules tokens are issued just now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) version: Version,
    /// The scope that the token request asks for.
    pub(super) scope: Option<Scope>,
    pub(super) now: SystemTime,
    pub(super) token_life: Duration,
    pub(super) refresh_life: Option<Duration>,
    pub(super) rotation: Rotation,
    pub(super) checks_pkce: bool,
}

impl Terms {
    fn granted(&self, asked: Option<Scope>) -> Scope {
        asked.filter(|_| self.version.has_scopes()).unwrap_or(self.version.default_scope())
    }
}

/// The consent of a person.
#[derive(Clone, Debug)]
pub(super) struct Consent {
    pub(super) user: String,
    /// The text that was sent: the token request must repeat it character by character.
    pub(super) redirect_uri: String,
    pub(super) code_challenge: Option<String>,
    pub(super) scope: Option<Scope>,
}

struct Code {
    consent: Consent,
    issued: SystemTime,
    /// The tokens that were issued for it.
    redeemed: Option<Family>,
}

/// All tokens that go back to one grant: a login, or one request with client credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Family(u64);

struct Access {
    user: Arc<str>,
    family: Family,
    version: Version,
    scope: Scope,
    /// `None`: later than any clock shows.
    expires: Option<SystemTime>,
    revoked: bool,
}

struct Refresh {
    user: Arc<str>,
    family: Family,
    version: Version,
    scope: Scope,
    expires: Option<SystemTime>,
    state: RefreshState,
}

#[derive(Clone, Copy)]
enum RefreshState {
    Live,
    Replaced { at: SystemTime, by: Issued },
    Revoked,
}

/// One user's tokens, oldest first.
#[derive(Default)]
struct UserTokens {
    access: VecDeque<TokenValue>,
    refresh: VecDeque<TokenValue>,
}

#[derive(Default)]
pub(super) struct Ledger {
    codes: HashMap<String, Code>,
    access: HashMap<TokenValue, Access>,
    refresh: HashMap<TokenValue, Refresh>,
    users: HashMap<Arc<str>, UserTokens>,
    families: u64,
}

impl Ledger {
    pub(super) fn issue_code(&mut self, consent: Consent, now: SystemTime) -> String {
        if self.codes.len() >= CODES_BEFORE_SWEEP {
            // Used ones are kept as long as the others: until then a second use is noticed.
            self.codes.retain(|_, code| !over(code.issued, CODE_LIFE, now));
        }
        let code = format!("{:032x}", fastrand::u128(..));
        self.codes.insert(code.clone(), Code { consent, issued: now, redeemed: None });
        code
    }

    /// Section 4.1.3 of RFC 6749 and 4.6 of RFC 7636. A request that does not fit leaves the code
    /// as it was.
    pub(super) fn redeem_code(
        &mut self,
        code: &str,
        redirect_uri: Option<&str>,
        verifier: Option<&str>,
        terms: &Terms,
    ) -> Result<Issued, CodeRefusal> {
        let known = self.codes.get(code).ok_or(CodeRefusal::Dead)?;
        if let Some(family) = known.redeemed {
            // RFC 6749 section 4.1.2: a second use revokes what the first one was given.
            let user: Arc<str> = known.consent.user.as_str().into();
            self.revoke(&user, |it| it == family);
            return Err(CodeRefusal::Dead);
        }
        if over(known.issued, CODE_LIFE, terms.now) {
            return Err(CodeRefusal::Dead);
        }
        // Without scopes, more would be granted than the person consented to.
        if known.consent.scope.is_some() && !terms.version.has_scopes() {
            return Err(CodeRefusal::Dead);
        }
        match redirect_uri {
            Some(uri) if uri != known.consent.redirect_uri => return Err(CodeRefusal::RedirectUri),
            None if terms.version.requires_redirect_uri() => {
                return Err(CodeRefusal::RedirectUriMissing);
            }
            _ => {}
        }
        match (known.consent.code_challenge.as_deref(), verifier) {
            _ if !terms.checks_pkce => {}
            (None, None) => {}
            (Some(_), None) => return Err(CodeRefusal::VerifierMissing),
            (Some(challenge), Some(verifier)) if fits(verifier, challenge) => {}
            // A verifier without a challenge is how a stripped challenge shows (RFC 9700
            // section 4.8.2).
            (_, Some(_)) => return Err(CodeRefusal::Verifier),
        }
        let user: Arc<str> = known.consent.user.as_str().into();
        // The scope is the one that the person consented to, whatever is asked for afterwards.
        let scope = terms.granted(known.consent.scope.or(terms.scope));
        let family = self.new_family();
        if let Some(code) = self.codes.get_mut(code) {
            code.redeemed = Some(family);
        }
        Ok(self.issue_pair(&user, family, scope, terms))
    }

    /// Tokens for a user whom the client vouches for.
    pub(super) fn grant(&mut self, user: &str, terms: &Terms) -> Issued {
        let (user, family, scope) = (user.into(), self.new_family(), terms.granted(terms.scope));
        if terms.version.refreshes_client_credentials() {
            self.issue_pair(&user, family, scope, terms)
        } else {
            self.issue_access(&user, family, scope, None, terms)
        }
    }

    pub(super) fn refresh(&mut self, token: &str, terms: &Terms) -> Result<Issued, RefreshRefusal> {
        let value = TokenValue::parse(token).ok_or(TokenStatus::Dead)?;
        let known = self.refresh.get(&value).filter(|it| it.version == terms.version);
        let known = known.ok_or(TokenStatus::Dead)?;
        let (user, family, scope) = (Arc::clone(&known.user), known.family, known.scope);
        if terms.scope.is_some_and(|asked| asked > scope) {
            return Err(RefreshRefusal::Scope);
        }
        // Less is granted to the access token alone: the login stays what it was.
        let granted = terms.scope.unwrap_or(scope);
        match (known.state, terms.rotation) {
            (RefreshState::Replaced { at, by }, Rotation::Grace(window))
                if !over(at, window, terms.now) =>
            {
                Ok(by)
            }
            (RefreshState::Replaced { .. }, Rotation::KillFamily) => {
                self.revoke(&user, |it| it == family);
                Err(TokenStatus::Dead.into())
            }
            (RefreshState::Replaced { .. } | RefreshState::Revoked, _) => {
                Err(TokenStatus::Dead.into())
            }
            (RefreshState::Live, _) if past(known.expires, terms.now) => {
                Err(TokenStatus::Expired.into())
            }
            (RefreshState::Live, Rotation::None) => {
                Ok(self.issue_access(&user, family, granted, Some(value), terms))
            }
            (RefreshState::Live, rotation) => {
                if rotation == Rotation::KillAccess {
                    self.revoke_access(&user, |it| it == family);
                }
                let refresh = self.issue_refresh(&user, family, scope, terms);
                let by = self.issue_access(&user, family, granted, Some(refresh), terms);
                if let Some(old) = self.refresh.get_mut(&value) {
                    old.state = RefreshState::Replaced { at: terms.now, by };
                }
                Ok(by)
            }
        }
    }

    /// The scope of a living access token, at this version or at any.
    pub(super) fn bearer(
        &self,
        token: &str,
        version: Option<Version>,
        now: SystemTime,
    ) -> Result<Scope, TokenStatus> {
        let value = TokenValue::parse(token).ok_or(TokenStatus::Dead)?;
        let known = self.access.get(&value).ok_or(TokenStatus::Dead)?;
        if known.revoked || version.is_some_and(|version| version != known.version) {
            Err(TokenStatus::Dead)
        } else if past(known.expires, now) {
            Err(TokenStatus::Expired)
        } else {
            Ok(known.scope)
        }
    }

    pub(super) fn refresh_is_alive(&self, token: &str, now: SystemTime) -> bool {
        TokenValue::parse(token)
            .and_then(|value| self.refresh.get(&value))
            .is_some_and(|it| matches!(it.state, RefreshState::Live) && !past(it.expires, now))
    }

    pub(super) fn access_tokens_alive(&self, user: &str, now: SystemTime) -> usize {
        let Some(tokens) = self.users.get(user) else {
            return 0;
        };
        tokens
            .access
            .iter()
            .filter_map(|value| self.access.get(value))
            .filter(|it| !it.revoked && !past(it.expires, now))
            .count()
    }

    /// RFC 7009 section 2.1: a refresh token dies with all that goes back to the same grant, an
    /// access token by itself. What this version does not know, or was replaced, is left as it is.
    pub(super) fn revoke_token(&mut self, token: &str, version: Version) {
        let Some(value) = TokenValue::parse(token) else {
            return;
        };
        if let Some(access) = self.access.get_mut(&value).filter(|it| it.version == version) {
            access.revoked = true;
        } else if let Some(known) = self.refresh.get(&value).filter(|it| it.version == version)
            && matches!(known.state, RefreshState::Live)
        {
            let (user, family) = (Arc::clone(&known.user), known.family);
            self.revoke(&user, |it| it == family);
        }
    }

    pub(super) fn revoke_user(&mut self, user: &str) {
        self.revoke(user, |_| true);
        // A code in flight would bring the user back.
        self.codes.retain(|_, code| code.consent.user != user);
    }

    /// The user of a code, dead or alive.
    pub(super) fn user_of_code(&self, code: &str) -> Option<&str> {
        self.codes.get(code).map(|it| it.consent.user.as_str())
    }

    /// The user of a refresh token or an access token, dead or alive.
    pub(super) fn user_of_token(&self, token: &str) -> Option<&str> {
        let value = TokenValue::parse(token)?;
        let refresh = self.refresh.get(&value).map(|it| &*it.user);
        refresh.or_else(|| self.access.get(&value).map(|it| &*it.user))
    }

    fn new_family(&mut self) -> Family {
        self.families += 1;
        Family(self.families)
    }

    fn issue_pair(
        &mut self,
        user: &Arc<str>,
        family: Family,
        scope: Scope,
        terms: &Terms,
    ) -> Issued {
        let refresh = self.issue_refresh(user, family, scope, terms);
        self.issue_access(user, family, scope, Some(refresh), terms)
    }

    fn issue_refresh(
        &mut self,
        user: &Arc<str>,
        family: Family,
        scope: Scope,
        terms: &Terms,
    ) -> TokenValue {
        let refresh = TokenValue::random();
        let expires = terms.refresh_life.and_then(|life| terms.now.checked_add(life));
        let (user_id, version, state) = (Arc::clone(user), terms.version, RefreshState::Live);
        let entry = Refresh { user: user_id, family, version, scope, expires, state };
        self.refresh.insert(refresh, entry);
        let tokens = self.users.entry(Arc::clone(user)).or_default();
        if let Some(oldest) = remember(&mut tokens.refresh, refresh) {
            self.refresh.remove(&oldest);
        }
        refresh
    }

    fn issue_access(
        &mut self,
        user: &Arc<str>,
        family: Family,
        scope: Scope,
        refresh: Option<TokenValue>,
        terms: &Terms,
    ) -> Issued {
        let access = TokenValue::random();
        let expires = terms.now.checked_add(terms.token_life);
        let (user_id, version) = (Arc::clone(user), terms.version);
        let entry = Access { user: user_id, family, version, scope, expires, revoked: false };
        self.access.insert(access, entry);
        let tokens = self.users.entry(Arc::clone(user)).or_default();
        if let Some(oldest) = remember(&mut tokens.access, access) {
            self.access.remove(&oldest);
        }
        Issued {
            access,
            refresh,
            scope,
            expires_in: terms.token_life.as_secs(),
            created_at: terms.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        }
    }

    fn revoke_access(&mut self, user: &str, which: impl Fn(Family) -> bool) {
        let Some(tokens) = self.users.get(user) else {
            return;
        };
        for value in &tokens.access {
            if let Some(token) = self.access.get_mut(value).filter(|it| which(it.family)) {
                token.revoked = true;
            }
        }
    }

    fn revoke(&mut self, user: &str, which: impl Fn(Family) -> bool) {
        self.revoke_access(user, &which);
        let Some(tokens) = self.users.get(user) else {
            return;
        };
        for value in &tokens.refresh {
            if let Some(token) = self.refresh.get_mut(value).filter(|it| which(it.family)) {
                token.state = RefreshState::Revoked;
            }
        }
    }
}

/// Adds the newest, and hands out the oldest where there are too many.
fn remember(tokens: &mut VecDeque<TokenValue>, newest: TokenValue) -> Option<TokenValue> {
    tokens.push_back(newest);
    if tokens.len() > REMEMBERED_PER_USER { tokens.pop_front() } else { None }
}

/// RFC 7636 section 4.6, S256. A verifier of a length that section 4.1 forbids fits nothing.
fn fits(verifier: &str, challenge: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
        return false;
    }
    let verifier = PkceCodeVerifier::new(verifier.to_owned());
    PkceCodeChallenge::from_code_verifier_sha256(&verifier).as_str() == challenge
}

/// Whether a span has passed since then.
fn over(since: SystemTime, span: Duration, now: SystemTime) -> bool {
    past(since.checked_add(span), now)
}

/// Whether an end, if there is one, has come.
fn past(end: Option<SystemTime>, now: SystemTime) -> bool {
    end.is_some_and(|end| now >= end)
}

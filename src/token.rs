//! Tokens, and how long they live.

mod parts;
pub use parts::TokenParts;
mod payload;
use payload::Payload;
pub(crate) use payload::{Notes, SupersededToken};

use std::fmt;
use std::num::NonZeroI64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox, SecretString};
use zeroize::Zeroizing;

#[cfg(feature = "testing")]
use crate::clock::Clock;
use crate::clock::{SharedClock, SystemClock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::wire::object::{Object, first_object};
use crate::wire::token_response::{
    AccountAnswer, BasicExtraTokenFields, BasicTokenResponse, JsonError, TokenDefect, TokenObject,
    believable_span, check_access_token, is_refresh_token,
};

/// An access token, the refresh token that came with it, and their life.
///
/// It counts its age from the moment it was received, by the clock of the
/// [`Hurdlr`](crate::Hurdlr) that received it; the provider's dates only tell how old it was then.
/// So no difference between two machines' clocks makes a fresh token look expired.
///
/// It has no `Display` and no `Serialize`, `Debug` redacts, and it is not `Clone`: share it in an
/// [`Arc`](std::sync::Arc). Its secrets are wiped from memory on drop.
///
/// ```
/// use hurdlr_oauth2::testing::FakeHurdlr;
/// use hurdlr_oauth2::{Hurdlr, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fake = FakeHurdlr::start().await?;
/// let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
///     .environment(fake.base_url())
///     .build()?;
/// let token = hurdlr.client_credentials(&UserId::new("customer-4711")?).await?;
///
/// assert!(!token.is_expired());
/// assert!(token.remaining().is_some_and(|left| left.as_secs() > 7_000_000));
/// assert!(token.authorization_header().is_sensitive());
/// # Ok(())
/// # }
/// ```
pub struct Token {
    access_token: SecretString,
    refresh_token: Option<SecretString>,
    created_at: Option<NonZeroI64>,
    /// In seconds, as is what follows: a manager may hold a million of these.
    expires_in: Option<u32>,
    age_when_received: u32,
    received: Timestamp,
    /// True for almost all tokens, so that another scope costs only the tokens that have one.
    has_documented_scope: bool,
    other_scope: Option<Box<Box<str>>>,
    clock: SharedClock,
}

/// The scope in the reference's examples.
const DOCUMENTED_SCOPE: &str = "token";

impl Token {
    /// Takes over the answer to a request, and its `Date`. Its life is counted from the moment the
    /// request was sent: the machine may have been suspended while the answer was on its way.
    pub(crate) fn received(
        answer: BasicTokenResponse,
        date: Option<SystemTime>,
        sent_at: Timestamp,
        clock: &SharedClock,
    ) -> Self {
        let sent = date
            .and_then(|date| date.duration_since(UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_secs()).ok());
        Self { received: sent_at, ..Self::with_age_at(answer, sent, clock) }
    }

    /// Takes over an answer that came at some time, elsewhere: there is only the local clock to
    /// compare its `created_at` with.
    ///
    /// Unlike an answer that has just come it may well be dead, and if it is older than its span
    /// and can be refreshed, it is taken for that: a clock that is wrong costs one refresh then.
    /// One that cannot be refreshed has the benefit of the doubt.
    pub(crate) fn imported(answer: BasicTokenResponse, clock: &SharedClock) -> Self {
        let now = clock.now().unix_seconds();
        let mut token = Self::with_age_at(answer, Some(now), clock);
        if let (Some(created_at), Some(span)) = (token.created_at, token.expires_in)
            && token.refresh_token.is_some()
            && now.saturating_sub(created_at.get()) >= i64::from(span)
        {
            token.age_when_received = span;
        }
        token
    }

    /// Makes a token of the parts that an app kept in columns of its own, to hand it over to a
    /// [`Hurdlr`](crate::Hurdlr) or a manager. Times are compared with the system's clock.
    ///
    /// Without [`created_at`](TokenParts::created_at) the token counts as new, with the life that
    /// is left of it. Without [`expires_at`](TokenParts::expires_at) its life is unknown. A token
    /// that an app kept as JSON is read by [`Hurdlr::import`](crate::Hurdlr::import).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] names the part that cannot be used: a token that is empty or that has
    /// a character no token can have, or an end before the creation.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// use hurdlr_oauth2::{Token, TokenParts};
    ///
    /// let mut parts = TokenParts::new("access".into());
    /// parts.refresh_token = Some("refresh".into());
    /// parts.expires_at = Some(SystemTime::now() + Duration::from_secs(600));
    ///
    /// let token = Token::from_parts(parts)?;
    /// assert!(token.remaining().is_some_and(|left| left.as_secs() > 590));
    /// # Ok::<(), hurdlr_oauth2::Error>(())
    /// ```
    pub fn from_parts(parts: TokenParts) -> Result<Self, Error> {
        let clock = SharedClock::new(SystemClock);
        Self::from_parts_at(parts, clock.now(), clock)
    }

    fn from_parts_at(
        parts: TokenParts,
        received: Timestamp,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        check_access_token(parts.access_token.expose_secret()).map_err(|defect| {
            Error::config("access_token is not one that can be sent").caused_by(defect)
        })?;
        if parts.refresh_token.as_ref().is_some_and(|it| !is_refresh_token(it.expose_secret())) {
            return Err(Error::config(
                "refresh_token is empty or has a control character: leave it out if there is none",
            ));
        }
        let now = received.wall();
        let left = parts.expires_at.map(|end| end.duration_since(now).unwrap_or_default());
        let (life, age) = match (parts.created_at, parts.expires_at) {
            (Some(created_at), Some(end)) => {
                let life = end.duration_since(created_at).map_err(|source| {
                    Error::config("expires_at is before created_at").caused_by(source)
                })?;
                (Some(life), life.saturating_sub(left.unwrap_or_default()))
            }
            (Some(created_at), None) => (None, now.duration_since(created_at).unwrap_or_default()),
            (None, _) => (left, Duration::ZERO),
        };
        let created_at = BasicExtraTokenFields { created_at: parts.created_at };
        let mut token = Self {
            access_token: parts.access_token,
            refresh_token: parts.refresh_token,
            created_at: created_at.unix_seconds().and_then(NonZeroI64::new),
            expires_in: life.and_then(|life| believable_span(life.as_secs())),
            // Rounded up, like the age of a token that is read from a store.
            age_when_received: u32::try_from(age.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX),
            received,
            has_documented_scope: false,
            other_scope: None,
            clock,
        };
        token.set_scope(parts.scope);
        Ok(token)
    }

    fn with_age_at(answer: BasicTokenResponse, now: Option<i64>, clock: &SharedClock) -> Self {
        let parts = answer.into_parts();
        let mut token = Self {
            age_when_received: age(parts.created_at, parts.expires_in, now),
            access_token: parts.access_token,
            refresh_token: parts.refresh_token,
            created_at: parts.created_at.and_then(NonZeroI64::new),
            expires_in: parts.expires_in,
            received: clock.now(),
            has_documented_scope: false,
            other_scope: None,
            clock: clock.clone(),
        };
        token.set_scope(parts.scope);
        token
    }

    fn set_scope(&mut self, scope: Option<String>) {
        self.has_documented_scope = scope.as_deref() == Some(DOCUMENTED_SCOPE);
        let other = scope.filter(|_| !self.has_documented_scope);
        self.other_scope = other.map(|text| Box::new(text.into()));
    }

    /// The access token.
    #[must_use]
    pub fn access_token(&self) -> &SecretString {
        &self.access_token
    }

    /// The refresh token, where the provider gave one.
    #[must_use]
    pub fn refresh_token(&self) -> Option<&SecretString> {
        self.refresh_token.as_ref()
    }

    /// When the token was created, by the provider's clock. Where it says so: API v4 and v5.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        let seconds = self.created_at?.get().unsigned_abs();
        Some(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// The span the token was issued for (`expires_in`), where the provider named a sane one.
    #[must_use]
    pub fn expires_in(&self) -> Option<Duration> {
        self.expires_in.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// The scopes that were granted, where the provider listed them.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope().unwrap_or_default().split_ascii_whitespace()
    }

    /// All scopes as one text.
    fn scope(&self) -> Option<&str> {
        let documented = self.has_documented_scope.then_some(DOCUMENTED_SCOPE);
        self.other_scope.as_ref().map(|text| &***text).or(documented)
    }

    /// How old the token is: its age when it was received, and the time since.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age_at(self.clock.now())
    }

    pub(crate) fn age_at(&self, now: Timestamp) -> Duration {
        Duration::from_secs(self.age_when_received.into()) + now.since(self.received)
    }

    /// The rest of the token's lifetime; zero when it is over, `None` when it is unknown.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.expires_in().map(|span| span.saturating_sub(self.age()))
    }

    /// Whether the token's life is over. A token whose life nobody knows counts as alive.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// `Bearer <access token>`, marked sensitive, in memory that is wiped when the last copy of
    /// the header is gone.
    #[must_use]
    pub fn authorization_header(&self) -> HeaderValue {
        let secret = self.access_token.expose_secret();
        let mut text = Zeroizing::new(Vec::with_capacity(BEARER.len() + secret.len()));
        text.extend_from_slice(BEARER);
        text.extend_from_slice(secret.as_bytes());
        sensitive(text)
    }

    /// The token as one JSON object in the provider's form, to be written where secrets are kept,
    /// and read back by [`Hurdlr::import`](crate::Hurdlr::import).
    ///
    /// A token whose creation the provider did not date is dated by the local clock, so that its
    /// age is known when it is read.
    #[must_use]
    pub fn to_secret(&self) -> SecretString {
        let created_at = self.created_at.map_or_else(
            || {
                let age = i64::try_from(self.age().as_secs()).unwrap_or(i64::MAX);
                self.clock.now().unix_seconds().saturating_sub(age)
            },
            NonZeroI64::get,
        );
        let written = self.written(Some(created_at), &Notes::default());
        // JSON is UTF-8.
        std::str::from_utf8(written.expose_secret()).unwrap_or_default().into()
    }

    /// When it was received, and how old it was then.
    #[inline]
    pub(crate) fn arrival(&self) -> (Timestamp, Duration) {
        (self.received, Duration::from_secs(self.age_when_received.into()))
    }

    /// The token as a store keeps it: the provider's own form, and the notes beside it.
    pub(crate) fn payload(&self, notes: &Notes) -> SecretBox<Vec<u8>> {
        self.written(self.created_at.map(NonZeroI64::get), notes)
    }

    fn written(&self, created_at: Option<i64>, notes: &Notes) -> SecretBox<Vec<u8>> {
        let refresh_token = self.refresh_token.as_ref().map(ExposeSecret::expose_secret);
        let access_token = self.access_token.expose_secret();
        let scope = self.scope();
        // Room for all of it, escapes aside: a growing buffer would leave copies behind. Names and
        // numbers take less than 128 bytes, and less than 64 for each earlier token.
        let texts = [Some(access_token), refresh_token, scope].into_iter().flatten().map(str::len);
        let superseded = notes.superseded.iter();
        let superseded = superseded.flat_map(|it| [64, it.access_token.expose_secret().len()]);
        let room = texts.chain(superseded).chain([128]).sum();
        let mut payload = SecretBox::new(Box::new(Vec::with_capacity(room)));
        let written = Payload {
            access_token,
            refresh_token,
            expires_in: self.expires_in,
            created_at,
            scope,
            superseded: &notes.superseded,
            pending_since: notes.pending_since,
        };
        // Strings and numbers always serialize, and a vector takes them all.
        let _ = serde_json::to_writer(payload.expose_secret_mut(), &written);
        payload
    }

    /// Reads [`payload`](Self::payload) back, at the age the store tells.
    pub(crate) fn from_payload(
        payload: &SecretBox<Vec<u8>>,
        age: Duration,
        clock: &SharedClock,
    ) -> Result<Self, Error> {
        let unreadable = || Error::store("what the store holds is not a token").not_temporary();
        let object: TokenObject = serde_json::from_slice(payload.expose_secret())
            .map_err(|error| unreadable().caused_by(JsonError::from(error)))?;
        let answer: BasicTokenResponse =
            object.try_into().map_err(|defect: TokenDefect| unreadable().caused_by(defect))?;
        let mut token = Self::with_age_at(answer, None, clock);
        // Rounded up: a token must not grow younger on its way through a store.
        let age = age.as_millis().div_ceil(1_000);
        token.age_when_received = u32::try_from(age).unwrap_or(u32::MAX);
        Ok(token)
    }

    /// The same access token with another refresh token: one that was rescued.
    pub(crate) fn with_refresh_token(&self, refresh_token: &SecretString) -> Self {
        Self {
            access_token: self.access_token.clone(),
            refresh_token: Some(refresh_token.clone()),
            ..self.without_secrets()
        }
    }

    /// Drops the refresh token, which a user of client credentials does not need (RFC 6749 section
    /// 4.4.3).
    pub(crate) fn without_refresh_token(mut self) -> Self {
        self.refresh_token = None;
        self
    }

    /// A place holder that is never handed out.
    pub(crate) fn placeholder(clock: &SharedClock) -> Self {
        Self {
            access_token: SecretString::default(),
            refresh_token: None,
            created_at: None,
            expires_in: Some(0),
            age_when_received: 0,
            received: clock.now(),
            has_documented_scope: false,
            other_scope: None,
            clock: clock.clone(),
        }
    }

    /// A copy to be revoked: of a token with a refresh token that one, else the access token.
    pub(crate) fn revocable(&self) -> Self {
        let access_token = self.access_token.clone();
        Self { access_token, refresh_token: self.refresh_token.clone(), ..self.without_secrets() }
    }

    /// An access token that this one has superseded, with the rest of its life.
    pub(crate) fn superseded_token(&self, superseded: &SupersededToken) -> Self {
        Self {
            access_token: superseded.access_token.clone(),
            expires_in: Some(superseded.ends_at_age),
            created_at: None,
            ..self.without_secrets()
        }
    }

    fn without_secrets(&self) -> Self {
        Self {
            access_token: SecretString::default(),
            refresh_token: None,
            created_at: self.created_at,
            expires_in: self.expires_in,
            age_when_received: self.age_when_received,
            received: self.received,
            has_documented_scope: self.has_documented_scope,
            other_scope: self.other_scope.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Whether the two share a secret, so that revoking one revokes the other.
    pub(crate) fn shares_secrets_with(&self, other: &Self) -> bool {
        let same = |ours: &SecretString, theirs: &SecretString| {
            ours.expose_secret() == theirs.expose_secret()
        };
        let refresh_tokens = self.refresh_token.as_ref().zip(other.refresh_token.as_ref());
        refresh_tokens.is_some_and(|(ours, theirs)| same(ours, theirs))
            || same(&self.access_token, &other.access_token)
    }

    /// Keeps `refresh_token` where the answer brought none (RFC 6749 section 6).
    pub(crate) fn or_refresh_token(mut self, refresh_token: &SecretString) -> Self {
        self.refresh_token.get_or_insert_with(|| refresh_token.clone());
        self
    }
}

const BEARER: &[u8] = b"Bearer ";

/// A header value for a secret, in wiped memory and hidden from logs.
pub(crate) fn sensitive(text: Zeroizing<Vec<u8>>) -> HeaderValue {
    // Only printable ASCII becomes an access token, or is base64, so the empty value is never
    // taken.
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
        .unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// How old a token is at `now`, both dates in seconds. What cannot be true counts as brand-new:
/// a date in the future, or one so early that the provider would have handed out a dead token.
fn age(created_at: Option<i64>, expires_in: Option<u32>, now: Option<i64>) -> u32 {
    let (Some(created_at), Some(span), Some(now)) = (created_at, expires_in, now) else {
        return 0;
    };
    u32::try_from(now.saturating_sub(created_at)).ok().filter(|age| *age < span).unwrap_or(0)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("access_token", &self.access_token)
            .field("refresh_token", &self.refresh_token)
            .field("created_at", &self.created_at())
            .field("remaining", &self.remaining())
            .field("scope", &self.scope())
            .finish_non_exhaustive()
    }
}

/// A [`Token`] for tests of an app, without a provider and without JSON by hand: unless set, it is
/// new, lives for 90 days by the system's clock, and has no refresh token.
///
/// ```
/// use std::time::Duration;
///
/// use hurdlr_oauth2::testing::{ManualClock, TokenBuilder};
///
/// let clock = ManualClock::new();
/// let token = TokenBuilder::new()
///     .refresh_token("refresh")
///     .life(Duration::from_secs(3_600))
///     .age(Duration::from_secs(3_000))
///     .clock(clock.clone())
///     .build()?;
/// assert!(!token.is_expired());
/// clock.advance(Duration::from_secs(600));
/// assert!(token.is_expired());
/// # Ok::<(), hurdlr_oauth2::Error>(())
/// ```
#[cfg(feature = "testing")]
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct TokenBuilder {
    parts: TokenParts,
    life: Duration,
    age: Duration,
    clock: SharedClock,
}

#[cfg(feature = "testing")]
impl Default for TokenBuilder {
    fn default() -> Self {
        Self {
            parts: TokenParts::new("access-token".into()),
            life: Duration::from_secs(90 * 86_400),
            age: Duration::ZERO,
            clock: SharedClock::new(SystemClock),
        }
    }
}

#[cfg(feature = "testing")]
impl TokenBuilder {
    /// Begins a token.
    pub fn new() -> Self {
        Self::default()
    }

    /// The access token; `access-token` unless set.
    pub fn access_token(mut self, token: impl Into<SecretString>) -> Self {
        self.parts.access_token = token.into();
        self
    }

    /// The refresh token.
    pub fn refresh_token(mut self, token: impl Into<SecretString>) -> Self {
        self.parts.refresh_token = Some(token.into());
        self
    }

    /// The span from the token's creation to its end, in whole seconds.
    pub fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// The age of the token now. At the age of its life, and above, it is expired.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }

    /// The scopes, separated by spaces.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.parts.scope = Some(scope.into());
        self
    }

    /// The clock that the token counts its age by: that of the `Hurdlr` or the manager under test.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = SharedClock::new(clock);
        self
    }

    /// Makes the token.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] names what cannot be used: see [`Token::from_parts`], and a date out
    /// of the system's range.
    pub fn build(mut self) -> Result<Token, Error> {
        let now = self.clock.now();
        let created_at = now.wall().checked_sub(self.age);
        let expires_at = created_at.and_then(|created_at| created_at.checked_add(self.life));
        if expires_at.is_none() {
            return Err(Error::config("age or life is out of the range of dates"));
        }
        (self.parts.created_at, self.parts.expires_at) = (created_at, expires_at);
        Token::from_parts_at(self.parts, now, self.clock)
    }
}

/// Reads a token object that was handed out elsewhere, alone or as the `oAuth` of an account
/// answer.
pub(crate) fn read_imported(json: &[u8]) -> Result<BasicTokenResponse, Error> {
    let object = first_object(json)
        .ok_or_else(|| Error::new(ErrorKind::InvalidResponse, "this is not a token object"))?;
    let object = match serde_json::from_str::<Object<AccountAnswer>>(&object) {
        Ok(Object(account)) => account.token,
        Err(_) => serde_json::from_str(&object).map_err(|error| {
            Error::new(ErrorKind::InvalidResponse, "this is not a token object")
                .caused_by(JsonError::from(error))
        })?,
    };
    object.try_into().map_err(|defect: TokenDefect| {
        Error::new(ErrorKind::InvalidResponse, "this is no usable token").caused_by(defect)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn imported_token_is_dead_after_its_life() {
        let hurdlr =
            crate::Hurdlr::builder("id", "s".into()).environment("http://localhost:1").build();
        let hurdlr = hurdlr.unwrap();
        let now = hurdlr.clock().now().unix_seconds();
        for (created_at, refresh_token, dead) in [
            (now - 100, r#","refresh_token":"r""#, true),
            (now - 100, "", false),
            (now - 50, r#","refresh_token":"r""#, false),
            (now + 500, r#","refresh_token":"r""#, false),
        ] {
            let json = format!(
                r#"{{"access_token":"a","expires_in":100,"created_at":{created_at}{refresh_token}}}"#
            );
            let token = hurdlr.import(json).unwrap();
            assert_eq!(token.remaining() <= Some(Duration::from_secs(0)), dead, "{created_at}");
        }
    }

    #[test]
    fn imported_object_may_stand_behind_a_mark() {
        let builder = crate::Hurdlr::builder("id", "s".into()).environment("http://localhost:1");
        let hurdlr = builder.build().unwrap();
        let token =
            hurdlr.import("\u{feff}{\"access_token\":\"a\",\"expires_in\":9.5,}\n").unwrap();
        assert_eq!(token.expires_in(), Some(Duration::from_secs(9)));
    }

    #[test]
    fn token_written_as_secret_is_imported_again() {
        let builder = crate::Hurdlr::builder("id", "s".into()).environment("http://localhost:1");
        let hurdlr = builder.build().unwrap();
        let token = hurdlr
            .import(r#"{"access_token":"a","refresh_token":"r","expires_in":100,"scope":"x y"}"#)
            .unwrap();
        let back = hurdlr.import(token.to_secret().expose_secret()).unwrap();
        assert_eq!(back.access_token().expose_secret(), "a");
        assert_eq!(back.refresh_token().unwrap().expose_secret(), "r");
        assert_eq!(back.scopes().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(back.expires_in(), token.expires_in());
        assert!(back.created_at().is_some());
    }

    /// A buffer that grows doubles, and leaves its old content in memory that is not wiped.
    #[test]
    fn payload_has_room_for_every_text() {
        let text = "x".repeat(1_000);
        for (superseded, pending_since) in [(0, Some(u32::MAX)), (9, None)] {
            let mut parts = TokenParts::new(text.as_str().into());
            parts.refresh_token = Some(text.as_str().into());
            parts.scope = Some(text.clone());
            let mut token = Token::from_parts(parts).unwrap();
            token.expires_in = Some(u32::MAX);
            token.created_at = NonZeroI64::new(253_402_300_799); // the end of the year 9999
            let earlier =
                SupersededToken { access_token: text.as_str().into(), ends_at_age: u32::MAX };
            let notes = Notes { superseded: vec![earlier; superseded], pending_since };
            let payload = token.payload(&notes);
            let payload = payload.expose_secret();
            assert!(payload.capacity() - payload.len() < 500, "{superseded}");
        }
    }

    fn parts(created_at: Option<u64>, expires_at: Option<u64>) -> TokenParts {
        let time = |seconds| SystemClock.now().wall() + Duration::from_secs(seconds) - TEN_DAYS;
        let mut parts = TokenParts::new("a".into());
        (parts.created_at, parts.expires_at) = (created_at.map(time), expires_at.map(time));
        parts
    }

    const TEN_DAYS: Duration = Duration::from_secs(864_000);

    /// Times are in seconds, and now is 864,000.
    #[test]
    fn parts_tell_life_and_age() {
        for (created_at, expires_at, life, age) in [
            (Some(863_900), Some(864_100), Some(200), 100),
            (Some(863_900), Some(863_950), Some(50), 50), // over
            (Some(863_900), Some(863_900), Some(0), 0),
            (Some(864_100), Some(864_300), Some(200), 0), // a clock that goes fast
            (None, Some(864_100), Some(100), 0),
            (None, Some(863_900), Some(0), 0),
            (Some(863_900), None, None, 100),
            (None, None, None, 0),
        ] {
            let token = Token::from_parts(parts(created_at, expires_at)).unwrap();
            let seconds = |span: Duration| span.as_secs_f64().round();
            let case = format!("{created_at:?} to {expires_at:?}: {token:?}");
            assert_eq!(token.expires_in().map(seconds), life.map(f64::from), "{case}");
            assert!((token.age().as_secs_f64() - f64::from(age)).abs() < 1.1, "{case}");
            assert_eq!(token.is_expired(), expires_at.is_some_and(|end| end <= 864_000), "{case}");
            assert_eq!(token.created_at().is_some(), created_at.is_some(), "{case}");
        }
    }

    #[test]
    fn unusable_part_is_named() {
        let refusal = |spoil: fn(&mut TokenParts)| {
            let mut parts = parts(Some(1), Some(2));
            spoil(&mut parts);
            let error = Token::from_parts(parts).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            format!("{error} {error:?}")
        };
        for shown in [
            refusal(|parts| parts.access_token = "".into()),
            refusal(|parts| parts.access_token = "mark er".into()),
        ] {
            assert!(shown.contains("access_token") && !shown.contains("mark"), "{shown}");
        }
        for shown in [
            refusal(|parts| parts.refresh_token = Some("".into())),
            refusal(|parts| parts.refresh_token = Some("marker\n".into())),
        ] {
            assert!(shown.contains("refresh_token") && !shown.contains("mark"), "{shown}");
        }
        let shown = refusal(|parts| parts.created_at = parts.expires_at.map(|end| end + TEN_DAYS));
        assert!(shown.contains("expires_at is before created_at"), "{shown}");
    }

    #[test]
    fn parts_come_back_out_of_a_token() {
        let mut parts = parts(None, None);
        parts.refresh_token = Some("marker".into());
        for scope in ["token", "read write"] {
            parts.scope = Some(scope.into());
            assert!(!format!("{parts:?}").contains("marker"));
            let token = Token::from_parts(parts.clone()).unwrap();
            assert_eq!(token.access_token().expose_secret(), "a");
            assert_eq!(token.refresh_token().unwrap().expose_secret(), "marker");
            assert_eq!(token.scope(), Some(scope));
        }
    }

    #[test]
    fn age_on_arrival_is_providers_if_plausible() {
        let span = Some(90 * 86_400);
        for (created_at, now, expected) in [
            (Some(100 * DAY), Some(100 * DAY), 0),
            (Some(100 * DAY), Some(110 * DAY), 10 * DAY),
            (Some(100 * DAY), Some(190 * DAY - 1), 90 * DAY - 1),
            (Some(100 * DAY), Some(190 * DAY), 0), // older than its span
            (Some(100 * DAY), Some(99 * DAY), 0),  // in the future
            (Some(100 * DAY), None, 0),            // no Date to compare with
            (None, Some(100 * DAY), 0),
        ] {
            assert_eq!(i64::from(age(created_at, span, now)), expected, "{created_at:?} {now:?}");
        }
        assert_eq!(age(Some(1), None, Some(5)), 0);
    }
}

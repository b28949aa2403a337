//! The token answer as the provider sends it.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oauth2::basic::BasicTokenType;
use oauth2::{AccessToken, EmptyExtraTokenFields, RefreshToken, Scope, TokenResponse};
use secrecy::SecretString;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::wire::object::{Object, whole};

/// The longest span that is believed, in seconds: what the reference's int32 can say.
const LONGEST_SPAN: u32 = i32::MAX.unsigned_abs();

/// The first second that is no date any more: year 10000. Milliseconds lie far beyond.
const LAST_DATE: i64 = 253_402_300_800;

/// The provider's token answer, in the place of `oauth2`'s type of the same name.
/// **`Serialize` writes both tokens in clear, like `oauth2` does**, so that an app's file or column
/// of stored answers goes on working. A log, cache or queue that serializes an answer therefore
/// holds its secrets. `Debug` redacts both tokens: log that.
///
/// It reads what the provider really sends, what `oauth2` wrote, and what it wrote itself.
/// `token_type` may be missing and is Bearer then (any letter case is Bearer too, any other type is
/// an error); `expires_in` and `created_at` may be numbers in any spelling (`300`, `"300"`,
/// `299.87`, `3e2`), rounded down, and read as none where they are negative or absurd; `scope` may
/// be a list; a token may be a whole number. `refresh_token`, `scope`, `created_at` and
/// `expires_in` are optional, and other fields are ignored. An empty `access_token`, or one that no
/// header can carry, is an error.
///
/// The tokens are wiped from memory on drop.
///
/// ```
/// use hurdlr_oauth2::basic::BasicTokenResponse; // was: oauth2::basic::BasicTokenResponse
/// use oauth2::{RefreshToken, TokenResponse};
///
/// let stored = r#"{"access_token":"a","token_type":"bearer","expires_in":3600}"#; // by `oauth2`
/// let mut answer: BasicTokenResponse = serde_json::from_str(stored)?;
/// answer.set_refresh_token(Some(RefreshToken::new("r".into())));
///
/// let stored = serde_json::to_string(&answer)?;
/// let answer: BasicTokenResponse = serde_json::from_str(&stored)?;
/// assert_eq!(answer.access_token().secret(), "a");
/// assert!(format!("{answer:?}").contains("redacted"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "Object<TokenObject>")]
pub struct BasicTokenResponse {
    access_token: AccessToken,
    token_type: BasicTokenType,
    /// In seconds.
    expires_in: Option<u32>,
    refresh_token: Option<RefreshToken>,
    scopes: Option<Vec<Scope>>,
    extra_fields: BasicExtraTokenFields,
}

/// The field that the provider adds to a token answer, in the place of
/// [`oauth2::EmptyExtraTokenFields`], which becomes one without a date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BasicExtraTokenFields {
    /// When the token was created, by the provider's clock: on API v4 and v5. It is written in
    /// whole seconds, and left out before 1970 and after the year 9999.
    pub created_at: Option<SystemTime>,
}

impl From<EmptyExtraTokenFields> for BasicExtraTokenFields {
    fn from(_: EmptyExtraTokenFields) -> Self {
        Self::default()
    }
}

impl BasicExtraTokenFields {
    fn from_unix_seconds(seconds: Option<i64>) -> Self {
        let seconds = seconds.filter(|seconds| (0..LAST_DATE).contains(seconds));
        let created_at =
            seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()));
        Self { created_at }
    }

    pub(crate) fn unix_seconds(self) -> Option<i64> {
        let since = self.created_at?.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(since.as_secs()).ok().filter(|seconds| *seconds < LAST_DATE)
    }
}

/// The constructor and setters of [`oauth2::StandardTokenResponse`].
impl BasicTokenResponse {
    /// An answer without a refresh token, a span and scopes.
    pub fn new(
        access_token: AccessToken,
        token_type: BasicTokenType,
        extra_fields: impl Into<BasicExtraTokenFields>,
    ) -> Self {
        Self {
            access_token,
            token_type,
            expires_in: None,
            refresh_token: None,
            scopes: None,
            extra_fields: extra_fields.into(),
        }
    }

    /// Sets the access token.
    pub fn set_access_token(&mut self, access_token: AccessToken) {
        self.take_access_token().zeroize();
        self.access_token = access_token;
    }

    /// Sets the token type. An answer is read back as Bearer only (RFC 6749 section 7.1).
    pub fn set_token_type(&mut self, token_type: BasicTokenType) {
        self.token_type = token_type;
    }

    /// Sets the span from the creation of the access token to its end, in whole seconds. One of
    /// more than 68 years (an int32 of seconds) is left out, as it is when an answer is read.
    pub fn set_expires_in(&mut self, expires_in: Option<&Duration>) {
        self.expires_in = expires_in.and_then(|span| believable_span(span.as_secs()));
    }

    /// Sets the refresh token: of an answer to a refresh that brought none, that is the old one
    /// (RFC 6749 section 6).
    pub fn set_refresh_token(&mut self, refresh_token: Option<RefreshToken>) {
        self.take_refresh_token().zeroize();
        self.refresh_token = refresh_token;
    }

    /// Sets the scopes.
    pub fn set_scopes(&mut self, scopes: Option<Vec<Scope>>) {
        self.scopes = scopes;
    }

    /// The field that the provider adds.
    #[must_use]
    pub fn extra_fields(&self) -> &BasicExtraTokenFields {
        &self.extra_fields
    }

    /// Sets the field that the provider adds.
    pub fn set_extra_fields(&mut self, extra_fields: impl Into<BasicExtraTokenFields>) {
        self.extra_fields = extra_fields.into();
    }
}

impl BasicTokenResponse {
    /// When the token was created, by the provider's clock.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        self.extra_fields.created_at
    }

    /// Moves the secrets out: no copy stays here.
    pub(crate) fn into_parts(mut self) -> Parts {
        Parts {
            access_token: SecretString::from(self.take_access_token()),
            refresh_token: self.take_refresh_token().map(SecretString::from),
            expires_in: self.expires_in,
            created_at: self.extra_fields.unix_seconds(),
            scope: self.scopes.take().map(|scopes| joined(&scopes)),
        }
    }

    fn take_access_token(&mut self) -> String {
        std::mem::replace(&mut self.access_token, AccessToken::new(String::new())).into_secret()
    }

    fn take_refresh_token(&mut self) -> Option<String> {
        self.refresh_token.take().map(RefreshToken::into_secret)
    }
}

/// A span in seconds, unless it is longer than the reference's int32 can say.
pub(crate) fn believable_span(seconds: u64) -> Option<u32> {
    u32::try_from(seconds).ok().filter(|seconds| *seconds <= LONGEST_SPAN)
}

/// The parts of an answer, secrets in types of their own.
pub(crate) struct Parts {
    pub(crate) access_token: SecretString,
    pub(crate) refresh_token: Option<SecretString>,
    /// In seconds.
    pub(crate) expires_in: Option<u32>,
    pub(crate) created_at: Option<i64>,
    pub(crate) scope: Option<String>,
}

fn joined(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
}

impl TokenResponse for BasicTokenResponse {
    type TokenType = BasicTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &BasicTokenType {
        &self.token_type
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in.map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        self.scopes.as_ref()
    }
}

impl Drop for BasicTokenResponse {
    fn drop(&mut self) {
        self.take_access_token().zeroize();
        self.take_refresh_token().zeroize();
    }
}

/// A map and not a struct, since `oauth2` writes a map, also in formats that tell them apart.
impl Serialize for BasicTokenResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        out.serialize_entry("access_token", self.access_token.secret())?;
        out.serialize_entry("token_type", &self.token_type)?;
        if let Some(expires_in) = self.expires_in {
            out.serialize_entry("expires_in", &expires_in)?;
        }
        if let Some(refresh_token) = &self.refresh_token {
            out.serialize_entry("refresh_token", refresh_token.secret())?;
        }
        if let Some(scopes) = &self.scopes {
            out.serialize_entry("scope", &joined(scopes))?;
        }
        if let Some(created_at) = self.extra_fields.unix_seconds() {
            out.serialize_entry("created_at", &created_at)?;
        }
        out.end()
    }
}

impl fmt::Debug for BasicTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicTokenResponse")
            .field("access_token", &"[redacted]")
            .field("token_type", &self.token_type)
            .field("expires_in", &self.expires_in())
            .field("refresh_token", &self.refresh_token.as_ref().map(|_| "[redacted]"))
            .field("scopes", &self.scopes)
            .field("extra_fields", &self.extra_fields)
            .finish()
    }
}

/// The fields of a token object, in whatever spelling they came; whether they make a token is
/// decided by [`BasicTokenResponse::try_from`]. Of a field that comes more than once the last value
/// counts that says something.
#[derive(Default)]
pub(crate) struct TokenObject {
    access_token: Option<Zeroizing<String>>,
    refresh_token: Option<Zeroizing<String>>,
    token_type: Option<String>,
    expires_in: Option<i64>,
    created_at: Option<i64>,
    scope: Option<String>,
}

impl<'de> Deserialize<'de> for TokenObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TokenFields)
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    AccessToken,
    RefreshToken,
    TokenType,
    ExpiresIn,
    CreatedAt,
    Scope,
    #[serde(other)]
    Other,
}

struct TokenFields;

impl<'de> Visitor<'de> for TokenFields {
    type Value = TokenObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenObject, A::Error> {
        let mut object = TokenObject::default();
        while let Some(field) = map.next_key()? {
            let mut next = || map.next_value::<Scalar>();
            match field {
                Field::AccessToken => replace(&mut object.access_token, next()?.secret()),
                Field::RefreshToken => {
                    replace(
                        &mut object.refresh_token,
                        next()?.secret().filter(|it| is_refresh_token(it)),
                    );
                }
                Field::TokenType => replace(&mut object.token_type, next()?.text()),
                Field::ExpiresIn => replace(&mut object.expires_in, next()?.integer()),
                Field::CreatedAt => replace(&mut object.created_at, next()?.integer()),
                Field::Scope => replace(&mut object.scope, next()?.text()),
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(object)
    }
}

/// Keeps the old value where the new one says nothing.
fn replace<T>(old: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *old = new;
    }
}

/// The longest name of a token type that an error quotes.
const LONGEST_TYPE: usize = 16;

/// Why a token object is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenDefect {
    #[error("the answer has no access_token")]
    Missing,
    #[error("the answer's access_token is empty")]
    Empty,
    #[error("the answer's access_token has a character that no header may carry")]
    UnfitForHeader,
    #[error("the answer's token_type is {0:?}: only Bearer can be used")]
    NotBearer(String),
}

/// A token type for an error. Text that is no short name, as RFC 6749 section 8.1 has names, may be
/// a secret in the wrong place.
fn type_name(text: &str) -> String {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.len() <= LONGEST_TYPE && text.bytes().all(is_name) {
        text.to_owned()
    } else {
        "[redacted]".to_owned()
    }
}

/// Refuses an access token that no header can carry.
pub(crate) fn check_access_token(token: &str) -> Result<(), TokenDefect> {
    if token.is_empty() {
        return Err(TokenDefect::Empty);
    }
    // RFC 6750 section 2.1 wants fewer characters still; these are what a header can carry
    // without its end or the token's being in doubt.
    if token.bytes().fold(true, |fits, byte| fits & byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(TokenDefect::UnfitForHeader)
    }
}

impl TryFrom<Object<TokenObject>> for BasicTokenResponse {
    type Error = TokenDefect;

    fn try_from(Object(object): Object<TokenObject>) -> Result<Self, TokenDefect> {
        object.try_into()
    }
}

impl TryFrom<TokenObject> for BasicTokenResponse {
    type Error = TokenDefect;

    fn try_from(object: TokenObject) -> Result<Self, TokenDefect> {
        let mut access_token = object.access_token.ok_or(TokenDefect::Missing)?;
        check_access_token(&access_token)?;
        if let Some(other) = object.token_type.filter(|name| !name.eq_ignore_ascii_case("bearer")) {
            return Err(TokenDefect::NotBearer(type_name(&other)));
        }
        Ok(Self {
            access_token: AccessToken::new(std::mem::take(&mut *access_token)),
            token_type: BasicTokenType::Bearer,
            refresh_token: object
                .refresh_token
                .map(|mut token| RefreshToken::new(std::mem::take(&mut *token))),
            expires_in: object
                .expires_in
                .and_then(|seconds| believable_span(u64::try_from(seconds).ok()?)),
            extra_fields: BasicExtraTokenFields::from_unix_seconds(object.created_at),
            scopes: object
                .scope
                .map(|text| text.split_ascii_whitespace().map(|s| Scope::new(s.into())).collect()),
        })
    }
}

/// A value in any spelling: numbers and texts stand for each other, and what can be neither is not
/// worth failing for.
enum Scalar {
    Integer(i64),
    /// A number beyond those.
    Large(u64),
    Float(f64),
    Text(Zeroizing<String>),
    /// The texts of a list, in one.
    List(Zeroizing<String>),
    Other,
}

impl Scalar {
    /// A whole number, rounded down: of `300.5`, `"300"`, `"3e2"`.
    fn integer(self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(integer),
            Self::Float(number) => whole(number),
            Self::Text(text) => {
                let text = text.trim();
                text.parse().ok().or_else(|| whole(text.parse().ok()?))
            }
            Self::Large(_) | Self::List(_) | Self::Other => None,
        }
    }

    /// A text that is not blank, or those of a list.
    fn text(self) -> Option<String> {
        let text = match self {
            Self::Text(mut text) if text.trim().len() == text.len() => std::mem::take(&mut *text),
            Self::Text(text) => text.trim().to_owned(),
            Self::List(mut texts) => std::mem::take(&mut *texts),
            _ => return None,
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// A token as it has to be sent back. One that was sent as a number is its digits; a line's end
    /// behind a text is none of the token.
    fn secret(self) -> Option<Zeroizing<String>> {
        match self {
            Self::Integer(integer) => Some(Zeroizing::new(integer.to_string())),
            Self::Text(text) => {
                let trimmed = text.trim_matches(char::is_control);
                let is_clean = trimmed.len() == text.len();
                Some(if is_clean { text } else { Zeroizing::new(trimmed.to_owned()) })
            }
            Self::Large(integer) => Some(Zeroizing::new(integer.to_string())),
            Self::Float(_) | Self::List(_) | Self::Other => None,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue { is_in_list: false })
    }
}

/// Reads any value as a [`Scalar`]. Lists within lists are skipped, however deep they are.
struct AnyValue {
    is_in_list: bool,
}

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Scalar;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(integer).map_or(Scalar::Large(integer), Scalar::Integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
        Ok(Scalar::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_none<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Scalar, A::Error> {
        if self.is_in_list {
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Scalar::Other);
        }
        let mut texts: Vec<String> = Vec::new();
        while let Some(element) = sequence.next_element_seed(Self { is_in_list: true })? {
            texts.extend(element.text());
        }
        Ok(Scalar::List(Zeroizing::new(texts.join(" "))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

/// Finds the refresh token of an answer that is defective in any other way, even one that breaks
/// off later: the provider may have replaced the old one, so this may be the only one that lives.
pub(crate) fn rescue_refresh_token(body: &[u8]) -> Option<SecretString> {
    let mut found = None;
    // The outcome does not matter: the answer is known to be defective.
    let _ = Rescue(&mut found).deserialize(&mut serde_json::Deserializer::from_slice(body));
    found.map(|mut token| std::mem::take(&mut *token).into())
}

/// Whether a refresh token may be one. RFC 6749 appendix A.17 has no control characters in it;
/// where there are some, it is not what the provider meant.
pub(crate) fn is_refresh_token(token: &str) -> bool {
    let has_control = if token.is_ascii() {
        // Without an early end, so that many bytes are compared at once.
        token.bytes().fold(false, |found, byte| found | byte.is_ascii_control())
    } else {
        token.chars().any(char::is_control)
    };
    !has_control && !token.is_empty()
}

struct Rescue<'a>(&'a mut Option<Zeroizing<String>>);

impl<'de> Visitor<'de> for Rescue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                "refresh_token" => {
                    replace(
                        self.0,
                        map.next_value::<Scalar>()?.secret().filter(|it| is_refresh_token(it)),
                    );
                }
                // Where the provider's other answers keep a token object.
                "oAuth" | "data" => map.next_value_seed(Rescue(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Rescue<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The position and category of a JSON error, without its text, which can quote a value.
#[derive(Debug, thiserror::Error)]
#[error("{category} error in the JSON at line {line}, column {column}")]
pub(crate) struct JsonError {
    category: &'static str,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        use serde_json::error::Category;
        let category = match error.classify() {
            Category::Io => "reading",
            Category::Syntax => "syntax",
            Category::Data => "type",
            Category::Eof => "unexpected end",
        };
        Self { category, line: error.line(), column: error.column() }
    }
}

/// An answer to the registration of a user, which holds a token object (reference, `auth/account`).
#[derive(Deserialize)]
pub(crate) struct AccountAnswer {
    #[serde(rename = "oAuth")]
    pub(crate) token: Object<TokenObject>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &str = include_str!("../../tests/fixtures/v4_token.json");

    fn read(body: &str) -> BasicTokenResponse {
        serde_json::from_str(body).expect(body)
    }

    fn refusal(body: &str) -> String {
        serde_json::from_str::<BasicTokenResponse>(body).expect_err(body).to_string()
    }

    #[test]
    fn documented_answer_without_token_type_is_bearer() {
        let answer = read(V4);
        assert!(answer.access_token().secret().starts_with("00f6b2b6"));
        assert!(answer.refresh_token().unwrap().secret().starts_with("7369c0ee"));
        assert_eq!(answer.token_type(), &BasicTokenType::Bearer);
        assert_eq!(answer.expires_in(), Some(Duration::from_secs(7_776_000)));
        assert_eq!(answer.created_at(), Some(UNIX_EPOCH + Duration::from_secs(1_599_065_168)));
        assert_eq!(answer.scopes().unwrap(), &[Scope::new("token".into())]);
    }

    #[test]
    fn only_bearer_is_read_in_any_case() {
        for name in ["Bearer", "bearer", "BEARER", "bEaReR"] {
            read(&format!(r#"{{"access_token":"t","token_type":"{name}"}}"#));
        }
        for value in ["null", r#""""#, r#"" Bearer ""#, "7", "{}", "[]"] {
            read(&format!(r#"{{"access_token":"t","token_type":{value}}}"#));
        }
        assert!(refusal(r#"{"access_token":"t","token_type":"mac"}"#).contains(r#""mac""#));
    }

    #[test]
    fn numbers_may_be_strings_but_not_absurd() {
        for (value, expected) in [
            ("3600", Some(3_600)),
            (r#""3600""#, Some(3_600)),
            ("0", Some(0)),
            ("-1", None),
            (r#""-1""#, None),
            ("2147483648", None),
            ("18446744073709551615", None),
            ("3600.0", Some(3_600)),
            ("3599.87", Some(3_599)),
            ("3.6e3", Some(3_600)),
            ("36E+2", Some(3_600)),
            (r#""3600.0""#, Some(3_600)),
            (r#"" 3599.87 ""#, Some(3_599)),
            (r#""3.6e3""#, Some(3_600)),
            ("0.9", Some(0)),
            ("-0.9", None),
            ("1e300", None),
            (r#""1e999""#, None),
            (r#""inf""#, None),
            (r#""NaN""#, None),
            (r#""soon""#, None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            (r#"{"seconds":1}"#, None),
        ] {
            let answer = read(&format!(r#"{{"access_token":"t","expires_in":{value}}}"#));
            assert_eq!(answer.expires_in().map(|d| d.as_secs()), expected, "{value}");
        }
        for (value, expected) in [
            ("1599065168", Some(1_599_065_168)),
            (r#""1599065168""#, Some(1_599_065_168)),
            ("1599065168.9", Some(1_599_065_168)),
            ("1.599065168e9", Some(1_599_065_168)),
            (r#""1599065168.0""#, Some(1_599_065_168)),
            ("1599065168000", None),
            ("-5", None),
        ] {
            let answer = read(&format!(r#"{{"access_token":"t","created_at":{value}}}"#));
            let expected = expected.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(answer.created_at(), expected, "{value}");
        }
    }

    #[test]
    fn tokens_and_scopes_have_other_spellings() {
        let answer = read(
            r#"{"access_token":18446744073709551615,"refresh_token":42,"scope":["a",7,["b"],"c d"]}"#,
        );
        assert_eq!(answer.access_token().secret(), "18446744073709551615");
        assert_eq!(answer.refresh_token().unwrap().secret(), "42");
        let scopes: Vec<_> = answer.scopes().unwrap().iter().map(|it| it.as_str()).collect();
        assert_eq!(scopes, ["a", "c", "d"]);
        for value in ["false", "[]", "{}", "null", r#""""#, "1.5"] {
            let answer = read(&format!(r#"{{"access_token":"t","refresh_token":{value}}}"#));
            assert!(answer.refresh_token().is_none(), "{value}");
        }
        let nested = format!("{}1{}", "[".repeat(9_999), "]".repeat(9_999));
        read(&format!(r#"{{"access_token":"t","scope":{nested},"refresh_token":{nested}}}"#));
    }

    #[test]
    fn last_of_repeated_fields_counts() {
        let answer = read(
            r#"{"access_token":"a","refresh_token":"r","access_token":"b","refresh_token":null}"#,
        );
        assert_eq!(answer.access_token().secret(), "b");
        assert_eq!(answer.refresh_token().unwrap().secret(), "r");
    }

    #[test]
    fn token_unfit_for_headers_is_not_quoted() {
        for token in ["", "mark er", "mark\\ner", "mark\\u0000er", "märker", "mark\\u007fer"] {
            let refusal = refusal(&format!(r#"{{"access_token":"{token}"}}"#));
            assert!(refusal.contains("access_token"), "{refusal}");
            assert!(!refusal.contains("mark") && !refusal.contains("mär"), "{refusal}");
        }
        assert!(refusal(r#"{"refresh_token":"r"}"#).contains("no access_token"));
        for array in [r#"["t"]"#, r#"["t","r",null]"#, r#"["t","r",null,1,1,"token"]"#] {
            assert!(refusal(array).contains("object"));
        }
    }

    /// The answer of `oauth2` itself, with the provider's field in the place for such.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct CreatedAt {
        #[serde(skip_serializing_if = "Option::is_none")]
        created_at: Option<u32>,
    }

    impl oauth2::ExtraTokenFields for CreatedAt {}

    type StandardResponse = oauth2::StandardTokenResponse<CreatedAt, BasicTokenType>;

    fn fields<T: TokenResponse<TokenType = BasicTokenType>>(
        answer: &T,
    ) -> (String, String, Option<Duration>, Option<String>, Option<Vec<Scope>>) {
        (
            answer.access_token().secret().clone(),
            answer.token_type().as_ref().to_owned(),
            answer.expires_in(),
            answer.refresh_token().map(|token| token.secret().clone()),
            answer.scopes().cloned(),
        )
    }

    #[test]
    fn answer_is_written_like_oauth2_writes() {
        let answer = read(V4);
        let written = serde_json::to_string(&answer).unwrap();
        let standard: StandardResponse = serde_json::from_str(&written).unwrap();
        assert_eq!(written, serde_json::to_string(&standard).unwrap());
        assert!(written.starts_with(r#"{"access_token":"00f6b2b6"#), "{written}");
        assert!(
            written.contains(r#""token_type":"bearer","expires_in":7776000,"refresh_token":"7"#)
        );
        assert!(written.ends_with(r#","scope":"token","created_at":1599065168}"#), "{written}");
        assert_eq!(fields(&read(&written)), fields(&answer));
        assert_eq!(read(&written).created_at(), answer.created_at());
    }

    /// An app keeps an answer as a field of its own struct, or flattened into it.
    #[test]
    fn answer_within_a_struct_is_kept() {
        #[derive(Serialize, Deserialize)]
        struct Row {
            user: String,
            answer: BasicTokenResponse,
            #[serde(flatten)]
            flat: BasicTokenResponse,
        }
        let row = Row { user: "ann".into(), answer: read(V4), flat: read(V4) };
        let written = serde_json::to_string(&row).unwrap();
        let Row { user, answer, flat } = serde_json::from_str(&written).unwrap();
        assert_eq!(user, "ann");
        for kept in [answer, flat] {
            assert_eq!(fields(&kept), fields(&read(V4)));
            assert_eq!(kept.created_at(), read(V4).created_at());
        }
    }

    #[test]
    fn setters_are_those_of_oauth2() {
        let mut answer = BasicTokenResponse::new(
            AccessToken::new("a".into()),
            BasicTokenType::Bearer,
            EmptyExtraTokenFields {},
        );
        assert_eq!(serde_json::to_string(&answer).unwrap(), SHORTEST);
        answer.set_access_token(AccessToken::new("b".into()));
        answer.set_token_type(BasicTokenType::Extension("BEARER".into()));
        answer.set_expires_in(Some(&Duration::from_millis(3_600_999)));
        answer.set_refresh_token(Some(RefreshToken::new("r".into())));
        answer.set_scopes(Some(vec![Scope::new("x".into()), Scope::new("y".into())]));
        let created_at = Some(UNIX_EPOCH + Duration::from_millis(7_900));
        answer.set_extra_fields(BasicExtraTokenFields { created_at });
        assert_eq!(answer.extra_fields().created_at, created_at);
        let written = serde_json::to_string(&answer).unwrap();
        assert_eq!(
            written,
            r#"{"access_token":"b","token_type":"BEARER","expires_in":3600,"refresh_token":"r","#
                .to_owned()
                + r#""scope":"x y","created_at":7}"#
        );
        assert_eq!(read(&written).token_type(), &BasicTokenType::Bearer);

        answer.set_expires_in(Some(&Duration::MAX));
        answer.set_refresh_token(None);
        answer.set_scopes(None);
        for unsaid in [Some(UNIX_EPOCH - Duration::from_secs(1)), None] {
            answer.set_extra_fields(BasicExtraTokenFields { created_at: unsaid });
            let written = serde_json::to_string(&answer).unwrap();
            assert_eq!(written, r#"{"access_token":"b","token_type":"BEARER"}"#);
        }
    }

    const SHORTEST: &str = r#"{"access_token":"a","token_type":"bearer"}"#;

    #[test]
    fn debug_shows_no_token() {
        let shown = format!("{:?}", read(V4));
        assert!(!shown.contains("00f6b2b6") && !shown.contains("7369c0ee"), "{shown}");
    }

    #[test]
    fn refresh_token_is_rescued_from_any_defect() {
        use secrecy::ExposeSecret;
        for body in [
            r#"{"access_token":"a","refresh_token":"saved","token_type":"mac"}"#,
            r#"{"access_token":7,"refresh_token":"saved"}"#,
            r#"{"refresh_token":"saved"}"#,
            r#"{"refresh_token":"saved","expires_in":1e999}"#,
            r#"{"refresh_token":"saved","access_tok"#,
            r#"{"refresh_token":"saved"}trailing"#,
            r#"{"refresh_token":"saved","refresh_token":null}"#,
            r#"{"result":"SUCCESS","oAuth":{"refresh_token":"saved"},"data":null}"#,
            r#"{"data":{"refresh_token":"saved"},"oAuth":[1]}"#,
        ] {
            let rescued = rescue_refresh_token(body.as_bytes());
            assert_eq!(rescued.expect(body).expose_secret(), "saved");
        }
        for body in ["", "[]", r#"{"refresh_token":""}"#, r#"{"refresh_token":"sav"#, "{}"] {
            assert!(rescue_refresh_token(body.as_bytes()).is_none(), "{body}");
        }
    }

    proptest! {
        /// The JSON of `oauth2` is read, and written again byte for byte.
        #[test]
        fn answers_of_oauth2_are_read(
            access_token in "[!-~]{1,40}",
            refresh_token in proptest::option::of(r#"[ -~é"\\]{1,40}"#),
            expires_in in proptest::option::of(0..=LONGEST_SPAN),
            scopes in proptest::option::of(proptest::collection::vec("[!-~]{1,9}", 1..4)),
            created_at in proptest::option::of(any::<u32>()),
        ) {
            let mut standard = StandardResponse::new(
                AccessToken::new(access_token),
                BasicTokenType::Bearer,
                CreatedAt { created_at },
            );
            standard.set_refresh_token(refresh_token.map(RefreshToken::new));
            let expires_in = expires_in.map(|seconds| Duration::from_secs(seconds.into()));
            standard.set_expires_in(expires_in.as_ref());
            standard.set_scopes(scopes.map(|it| it.into_iter().map(Scope::new).collect()));

            let stored = serde_json::to_string(&standard).unwrap();
            let answer = read(&stored);
            prop_assert_eq!(fields(&answer), fields(&standard));
            prop_assert_eq!(serde_json::to_string(&answer).unwrap(), stored);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<BasicTokenResponse>(&body);
            let _ = serde_json::from_slice::<crate::wire::basic::BasicErrorResponse>(&body);
            let _ = rescue_refresh_token(&body);
            let _ = crate::wire::object::first_object(&body);
        }

        #[test]
        fn clean_json_is_repaired_to_itself(text in r#"[{"\\,:\[\]}u0-9a-f +.éx\x00-\x20-]{0,60}"#) {
            let body = format!(r#"{{"a":{}}}"#, serde_json::json!(text));
            let clean = crate::wire::object::first_object(body.as_bytes());
            prop_assert_eq!(clean.as_deref(), Some(&body));
        }

        #[test]
        fn no_field_values_make_a_reader_panic(
            value in r#"(null|-?[0-9]{1,25}(\.[0-9]{1,3})?|"[^"\\]{0,20}"|\[\]|\{\}|true)"#,
            name in "(access_token|refresh_token|token_type|expires_in|created_at|scope|error|result)",
        ) {
            let body = format!(r#"{{"access_token":"t","{name}":{value},"refresh_token":"r"}}"#);
            let _ = serde_json::from_str::<BasicTokenResponse>(&body);
            let _ = serde_json::from_str::<crate::wire::basic::BasicErrorResponse>(&body);
            let _ = rescue_refresh_token(body.as_bytes());
        }
    }
}

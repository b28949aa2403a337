//! The token answer as the provider sends it.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oauth2::basic::BasicTokenType;
use oauth2::{AccessToken, RefreshToken, Scope, TokenResponse};
use secrecy::SecretString;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::readable_text;
use crate::object::Object;

/// The longest span that is believed, in seconds: what the reference's int32 can say.
const LONGEST_SPAN: u32 = i32::MAX.unsigned_abs();

/// The first second that is no date any more: year 10000. Milliseconds lie far beyond.
const LAST_DATE: i64 = 253_402_300_800;

/// The provider's token answer, for use in [`BasicClient`](crate::basic::BasicClient).
///
/// Reads what the provider really sends: `token_type` may be missing and is Bearer then (any letter
/// case is Bearer too, any other type an error); `expires_in` and `created_at` may be integers or
/// integers in strings, and read as none where they are negative or absurd; `refresh_token`,
/// `scope`, `created_at` and `expires_in` are optional; what else is there is ignored. An empty
/// `access_token`, or one that no header can carry, is an error.
///
/// `Debug` redacts. **`Serialize` writes `token_type`, `expires_in`, `created_at` and `scope`, and
/// neither token**, so that a structured log cannot leak one; what it wrote is therefore not
/// read back as a token answer. An app that stores its answers as JSON writes
/// [`exposed()`](Self::exposed) instead. The tokens are wiped from memory on drop.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Object<TokenObject>")]
pub struct BasicTokenResponse {
    access_token: AccessToken,
    refresh_token: Option<RefreshToken>,
    expires_in: Option<u32>,
    created_at: Option<i64>,
    scopes: Option<Vec<Scope>>,
}

impl BasicTokenResponse {
    /// When the token was created, by the provider's clock.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created_at.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()))
    }

    /// The answer with its tokens in clear, to be written where secrets are kept.
    ///
    /// What it serializes to is the provider's own form and is read back by `Deserialize`.
    #[must_use]
    pub fn exposed(&self) -> ExposedTokenResponse<'_> {
        ExposedTokenResponse(self)
    }

    /// Moves the secrets out: no copy stays here.
    pub(super) fn into_parts(mut self) -> Parts {
        Parts {
            access_token: SecretString::from(self.take_access_token()),
            refresh_token: self.take_refresh_token().map(SecretString::from),
            expires_in: self.expires_in,
            created_at: self.created_at,
            scope: self.scopes.take().map(|scopes| joined(&scopes)),
        }
    }

    fn take_access_token(&mut self) -> String {
        std::mem::replace(&mut self.access_token, AccessToken::new(String::new())).into_secret()
    }

    fn take_refresh_token(&mut self) -> Option<String> {
        self.refresh_token.take().map(RefreshToken::into_secret)
    }

    fn serialize_with<S: Serializer>(
        &self,
        serializer: S,
        tokens: bool,
    ) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("BasicTokenResponse", 6)?;
        if tokens {
            out.serialize_field("access_token", self.access_token.secret())?;
            if let Some(refresh_token) = &self.refresh_token {
                out.serialize_field("refresh_token", refresh_token.secret())?;
            }
        }
        out.serialize_field("token_type", "Bearer")?;
        if let Some(expires_in) = self.expires_in {
            out.serialize_field("expires_in", &expires_in)?;
        }
        if let Some(created_at) = self.created_at {
            out.serialize_field("created_at", &created_at)?;
        }
        if let Some(scopes) = &self.scopes {
            out.serialize_field("scope", &joined(scopes))?;
        }
        out.end()
    }
}

/// The parts of an answer, secrets in types of their own.
pub(super) struct Parts {
    pub(super) access_token: SecretString,
    pub(super) refresh_token: Option<SecretString>,
    /// In seconds.
    pub(super) expires_in: Option<u32>,
    pub(super) created_at: Option<i64>,
    pub(super) scope: Option<String>,
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
        &BasicTokenType::Bearer
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

impl Serialize for BasicTokenResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_with(serializer, false)
    }
}

impl fmt::Debug for BasicTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicTokenResponse")
            .field("access_token", &"[redacted]")
            .field("refresh_token", &self.refresh_token.as_ref().map(|_| "[redacted]"))
            .field("expires_in", &self.expires_in())
            .field("created_at", &self.created_at)
            .field("scopes", &self.scopes)
            .finish()
    }
}

/// A [`BasicTokenResponse`] that serializes with its tokens in clear.
///
/// `Debug` redacts all the same.
#[derive(Debug)]
pub struct ExposedTokenResponse<'a>(&'a BasicTokenResponse);

impl Serialize for ExposedTokenResponse<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_with(serializer, true)
    }
}

/// A token object whose fields have the right JSON types; whether it is a token is still to be
/// judged, by [`BasicTokenResponse::try_from`].
#[derive(Deserialize)]
pub(crate) struct TokenObject {
    #[serde(default, deserialize_with = "optional_secret")]
    access_token: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "optional_secret")]
    refresh_token: Option<Zeroizing<String>>,
    token_type: Option<String>,
    #[serde(default, deserialize_with = "tolerant_integer")]
    expires_in: Option<i64>,
    #[serde(default, deserialize_with = "tolerant_integer")]
    created_at: Option<i64>,
    #[serde(default, deserialize_with = "tolerant_text")]
    scope: Option<String>,
}

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
        if access_token.is_empty() {
            return Err(TokenDefect::Empty);
        }
        // RFC 6750 section 2.1 wants fewer characters still; these are what a header can carry
        // without its end or the token's being in doubt.
        if !access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenDefect::UnfitForHeader);
        }
        if let Some(other) = object.token_type.filter(|name| !name.eq_ignore_ascii_case("bearer")) {
            return Err(TokenDefect::NotBearer(readable_text(&other, 32)));
        }
        Ok(Self {
            access_token: AccessToken::new(std::mem::take(&mut *access_token)),
            refresh_token: object
                .refresh_token
                .filter(|token| !token.is_empty())
                .map(|mut token| RefreshToken::new(std::mem::take(&mut *token))),
            expires_in: object
                .expires_in
                .and_then(|seconds| u32::try_from(seconds).ok())
                .filter(|seconds| *seconds <= LONGEST_SPAN),
            created_at: object.created_at.filter(|seconds| (0..LAST_DATE).contains(seconds)),
            scopes: object
                .scope
                .map(|text| text.split_ascii_whitespace().map(|s| Scope::new(s.into())).collect()),
        })
    }
}

fn optional_secret<'de, D>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

fn tolerant_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_any(Tolerant).map(Value::integer)
}

fn tolerant_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    deserializer.deserialize_any(Tolerant).map(Value::text)
}

/// A value whose type is not worth failing for.
enum Value {
    Integer(i64),
    Text(String),
    Other,
}

impl Value {
    fn integer(self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(integer),
            Self::Text(text) => text.parse().ok(),
            Self::Other => None,
        }
    }

    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Other => None,
        }
    }
}

struct Tolerant;

impl<'de> Visitor<'de> for Tolerant {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Value, E> {
        Ok(Value::Integer(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Value, E> {
        Ok(i64::try_from(integer).map_or(Value::Other, Value::Integer))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

/// Finds the refresh token of an answer that is defective in any other way, even one that breaks
/// off later: the provider may have replaced the old one, so this may be the only one that lives.
pub(crate) fn rescue_refresh_token(body: &[u8]) -> Option<SecretString> {
    let mut found = None;
    // The outcome does not matter: the answer is known to be defective.
    let _ = Rescue(&mut found).deserialize(&mut serde_json::Deserializer::from_slice(body));
    found.filter(|token| !token.is_empty()).map(|mut token| std::mem::take(&mut *token).into())
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
                    let token = map.next_value::<Option<String>>()?.map(Zeroizing::new);
                    if let Some(token) = token.filter(|token| !token.is_empty()) {
                        *self.0 = Some(token);
                    }
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
    fn the_documented_answer_without_token_type_is_a_bearer_token() {
        let answer = read(V4);
        assert!(answer.access_token().secret().starts_with("00f6b2b6"));
        assert!(answer.refresh_token().unwrap().secret().starts_with("7369c0ee"));
        assert_eq!(answer.token_type(), &BasicTokenType::Bearer);
        assert_eq!(answer.expires_in(), Some(Duration::from_secs(7_776_000)));
        assert_eq!(answer.created_at(), Some(UNIX_EPOCH + Duration::from_secs(1_599_065_168)));
        assert_eq!(answer.scopes().unwrap(), &[Scope::new("token".into())]);
    }

    #[test]
    fn bearer_is_read_in_any_letter_case_and_nothing_else_is() {
        for name in ["Bearer", "bearer", "BEARER", "bEaReR"] {
            read(&format!(r#"{{"access_token":"t","token_type":"{name}"}}"#));
        }
        read(r#"{"access_token":"t","token_type":null}"#);
        assert!(refusal(r#"{"access_token":"t","token_type":"mac"}"#).contains(r#""mac""#));
        assert!(refusal(r#"{"access_token":"t","token_type":""}"#).contains(r#""""#));
    }

    #[test]
    fn numbers_may_be_strings_and_absurd_ones_are_none() {
        for (value, expected) in [
            ("3600", Some(3_600)),
            (r#""3600""#, Some(3_600)),
            ("0", Some(0)),
            ("-1", None),
            (r#""-1""#, None),
            ("2147483648", None),
            ("18446744073709551615", None),
            ("3600.5", None),
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
            ("1599065168000", None),
            ("-5", None),
        ] {
            let answer = read(&format!(r#"{{"access_token":"t","created_at":{value}}}"#));
            assert_eq!(answer.created_at, expected, "{value}");
        }
    }

    #[test]
    fn a_token_that_no_header_may_carry_is_refused_without_being_quoted() {
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

    #[test]
    fn serialize_writes_no_token_and_exposed_writes_all_of_it() {
        let answer = read(V4);
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"token_type":"Bearer","expires_in":7776000,"created_at":1599065168,"scope":"token"}"#
        );
        let back = read(&serde_json::to_string(&answer.exposed()).unwrap());
        assert_eq!(back.access_token().secret(), answer.access_token().secret());
        assert_eq!(
            back.refresh_token().unwrap().secret(),
            answer.refresh_token().unwrap().secret()
        );
        assert_eq!(back.created_at(), answer.created_at());
    }

    #[test]
    fn debug_shows_no_token() {
        let answer = read(V4);
        let shown = format!("{answer:?} {:?}", answer.exposed());
        assert!(!shown.contains("00f6b2b6") && !shown.contains("7369c0ee"), "{shown}");
    }

    #[test]
    fn a_refresh_token_is_rescued_from_any_defect_around_it() {
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
        #[test]
        fn no_bytes_make_a_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<BasicTokenResponse>(&body);
            let _ = serde_json::from_slice::<crate::basic::BasicErrorResponse>(&body);
            let _ = rescue_refresh_token(&body);
        }

        #[test]
        fn no_field_values_make_a_reader_panic(
            value in r#"(null|-?[0-9]{1,25}(\.[0-9]{1,3})?|"[^"\\]{0,20}"|\[\]|\{\}|true)"#,
            name in "(access_token|refresh_token|token_type|expires_in|created_at|scope|error|result)",
        ) {
            let body = format!(r#"{{"access_token":"t","{name}":{value},"refresh_token":"r"}}"#);
            let _ = serde_json::from_str::<BasicTokenResponse>(&body);
            let _ = serde_json::from_str::<crate::basic::BasicErrorResponse>(&body);
            let _ = rescue_refresh_token(body.as_bytes());
        }
    }
}

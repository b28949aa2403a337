//! The provider's error answers: RFC 6749 section 5.2, and the envelope of its own error page.

use std::fmt;

use oauth2::basic::BasicErrorResponseType;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::wire::object::Object;

/// The longest text of a provider's that is kept, in bytes.
const LONGEST_TEXT: usize = 512;

/// The longest code that is kept, in bytes.
const LONGEST_CODE: usize = 64;

/// The code of a failure that names none.
const UNKNOWN: &str = "UNKNOWN_ERROR";

/// The provider's refusal of a token request, in the place of `oauth2`'s type of the same name.
///
/// It reads the object of RFC 6749 section 5.2 and the provider's own envelope,
/// `{"result":"FAILURE","error":…}`, whose `error` may be an array, an object or a string. Of
/// several errors the first gives the code; the description holds all their messages. Texts are cut
/// at 512 bytes and rid of control characters.
///
/// An app matches on [`error`](Self::error) as it did with `oauth2`; the provider's own
/// [`code`](Self::code) stands beside it.
///
/// | the provider's code | `error` |
/// |---|---|
/// | one of RFC 6749 section 5.2, in any letter case | the same |
/// | `EXPIRED_TOKEN`, `INVALID_TOKEN` | `InvalidGrant` |
/// | any about `client_id`, `client_secret` or the `Authorization` header | `InvalidClient` |
/// | any other, `UNKNOWN_ERROR` where there is none | `Extension` with that code |
///
/// `oauth2` drops the status of an answer, so `INVALID_TOKEN` counts as a dead token even in a 401,
/// which the provider may also send for wrong client credentials. Keep a refused refresh token
/// until its user has logged in again; [`Hurdlr`](crate::Hurdlr) sees the status and tells the two
/// apart.
///
/// ```
/// use hurdlr_oauth2::basic::{BasicErrorResponse, BasicErrorResponseType};
///
/// let body = r#"{"result":"FAILURE","error":[{"type":"EXPIRED_TOKEN"}]}"#;
/// let refusal: BasicErrorResponse = serde_json::from_str(body)?;
/// assert_eq!(refusal.error(), &BasicErrorResponseType::InvalidGrant);
/// assert_eq!(refusal.code(), "EXPIRED_TOKEN");
/// assert!(refusal.needs_login());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Object<Body>")]
pub struct BasicErrorResponse {
    error: BasicErrorResponseType,
    /// The provider's code, where `error` says it otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_uri: Option<String>,
}

impl BasicErrorResponse {
    /// A refusal with the fields of RFC 6749 section 5.2, for tests of an app for example.
    #[must_use]
    pub fn new(
        error: BasicErrorResponseType,
        error_description: Option<String>,
        error_uri: Option<String>,
    ) -> Self {
        Self { error, provider_code: None, error_description, error_uri }
    }

    /// The error code, in the terms of RFC 6749 where it has one.
    #[must_use]
    pub fn error(&self) -> &BasicErrorResponseType {
        &self.error
    }

    /// The code as the provider wrote it, such as `EXPIRED_TOKEN`. Those of RFC 6749 are in lower
    /// case.
    #[must_use]
    pub fn code(&self) -> &str {
        self.provider_code.as_deref().unwrap_or(self.error.as_ref())
    }

    /// Whether the person has to log in again: the refresh token is dead, or the code of their
    /// login, which is `InvalidGrant` both.
    #[must_use]
    pub fn needs_login(&self) -> bool {
        self.error == BasicErrorResponseType::InvalidGrant
    }

    /// The provider's explanation in words, with the name of the parameter it is about.
    #[must_use]
    pub fn error_description(&self) -> Option<&String> {
        self.error_description.as_ref()
    }

    /// A page about the error (RFC 6749 section 5.2).
    #[must_use]
    pub fn error_uri(&self) -> Option<&String> {
        self.error_uri.as_ref()
    }
}

impl fmt::Display for BasicErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.error.as_ref())?;
        if let Some(code) = &self.provider_code {
            write!(f, " ({code})")?;
        }
        if let Some(description) = &self.error_description {
            write!(f, ": {description}")?;
        }
        if let Some(uri) = &self.error_uri {
            write!(f, " (see {uri})")?;
        }
        Ok(())
    }
}

impl oauth2::ErrorResponse for BasicErrorResponse {}

/// Either shape, as it comes.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    result: Lenient,
    error: Option<ErrorField>,
    /// Written by [`BasicErrorResponse`] itself.
    #[serde(default)]
    provider_code: Lenient,
    #[serde(default)]
    error_description: Lenient,
    #[serde(default)]
    error_uri: Lenient,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorField {
    Text(String),
    One(Object<Detail>),
    Many(Vec<Item>),
    Strange(IgnoredAny),
}

/// An element of the envelope's array: one that is odd must not hide the others.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Detail(Object<Detail>),
    Message(String),
    Strange(IgnoredAny),
}

impl Item {
    fn detail(self) -> Option<Detail> {
        match self {
            Self::Detail(Object(detail)) => Some(detail),
            Self::Message(text) => {
                Some(Detail { message: Lenient::Text(text), ..Detail::default() })
            }
            Self::Strange(_) => None,
        }
    }
}

#[derive(Default, Deserialize)]
struct Detail {
    #[serde(default)]
    r#type: Lenient,
    #[serde(default)]
    message: Lenient,
    #[serde(default)]
    param: Lenient,
}

/// A text that may be absent, null or of another type without spoiling the rest.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Lenient {
    Text(String),
    #[default]
    Absent,
    Strange(IgnoredAny),
}

impl Lenient {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => readable(&text, LONGEST_TEXT),
            _ => None,
        }
    }
}

impl TryFrom<Object<Body>> for BasicErrorResponse {
    type Error = &'static str;

    fn try_from(Object(body): Object<Body>) -> Result<Self, Self::Error> {
        let result = body.result.text();
        // `SUCCESS`, or `SUCCESS_TEMP_PASSWORD`: whatever else is missing, that is no refusal.
        let is_success = |result: &str| {
            result.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("SUCCESS"))
        };
        if result.as_deref().map(str::trim).is_some_and(is_success) {
            return Err("`result` says success: not an error answer");
        }
        let enveloped = result.is_some();
        let described = body.error_description.text();
        let Summary { code, param, said } = match body.error {
            Some(ErrorField::Text(text)) if !enveloped || is_code(&text) => Summary::of_code(text),
            Some(ErrorField::Text(text)) => Summary { said: Some(text), ..Summary::default() },
            Some(ErrorField::One(Object(detail))) => Summary::of_details([detail]),
            Some(ErrorField::Many(items)) => {
                Summary::of_details(items.into_iter().filter_map(Item::detail))
            }
            Some(ErrorField::Strange(_)) => Summary::default(),
            None if enveloped => Summary::default(),
            None => return Err("neither `error` nor `result`: not an error answer"),
        };
        let code = readable(code.trim_matches(is_blank), LONGEST_CODE);
        let code = code.unwrap_or_else(|| UNKNOWN.to_owned());
        let error = error_type(&code, param.as_deref());
        let own_code = body.provider_code.text().unwrap_or(code);
        Ok(Self {
            provider_code: Some(readable_text(&own_code, LONGEST_CODE))
                .filter(|code| !code.eq_ignore_ascii_case(error.as_ref())),
            error,
            error_description: described.or(said).and_then(|text| readable(&text, LONGEST_TEXT)),
            error_uri: body.error_uri.text(),
        })
    }
}

/// The code of the first error that has one, with the parameter that it is about, and the messages
/// of all.
#[derive(Default)]
struct Summary {
    code: String,
    param: Option<String>,
    said: Option<String>,
}

impl Summary {
    fn of_code(code: String) -> Self {
        Self { code, ..Self::default() }
    }

    fn of_details(details: impl IntoIterator<Item = Detail>) -> Self {
        let mut first = None;
        let mut said = Vec::new();
        for Detail { r#type, message, param } in details {
            let (message, param) = (message.text(), param.text());
            match (message, &param) {
                (Some(message), Some(param)) => said.push(format!("{message} [{param}]")),
                (Some(message), None) => said.push(message),
                (None, Some(param)) => said.push(format!("[{param}]")),
                (None, None) => {}
            }
            first = first.or_else(|| Some((r#type.text()?, param)));
        }
        let (code, param) = first.unwrap_or_default();
        Self { code, param, said: (!said.is_empty()).then(|| said.join("; ")) }
    }
}

/// Tells a code from a sentence, where the envelope holds a bare string.
fn is_code(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A code in the terms of RFC 6749 section 5.2, where it has one; `param` is the parameter that the
/// provider's envelope names beside it.
fn error_type(code: &str, param: Option<&str>) -> BasicErrorResponseType {
    use BasicErrorResponseType as Type;
    match (&*code.to_ascii_lowercase(), param) {
        ("invalid_client", _)
        | (_, Some("client_id" | "client_secret" | "Authorization" | "authorization")) => {
            Type::InvalidClient
        }
        ("invalid_grant" | "expired_token" | "invalid_token", _) => Type::InvalidGrant,
        ("invalid_request", _) => Type::InvalidRequest,
        ("invalid_scope", _) => Type::InvalidScope,
        ("unauthorized_client", _) => Type::UnauthorizedClient,
        ("unsupported_grant_type", _) => Type::UnsupportedGrantType,
        _ => Type::Extension(code.to_owned()),
    }
}

/// A text made fit for a log, unless there is nothing to be read in it.
fn readable(text: &str, longest: usize) -> Option<String> {
    (!text.chars().all(is_blank)).then(|| readable_text(text, longest))
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// Somebody else's text made fit for a log: at most `longest` bytes, no control characters.
pub(crate) fn readable_text(text: &str, longest: usize) -> String {
    let mut readable = String::with_capacity(text.len().min(longest + 4));
    for c in text.chars() {
        if readable.len() + c.len_utf8() > longest {
            readable.push('…');
            break;
        }
        readable.push(if c.is_control() { ' ' } else { c });
    }
    readable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> BasicErrorResponse {
        serde_json::from_str(body).expect(body)
    }

    #[test]
    fn the_object_of_rfc_6749_is_read() {
        let read = read(r#"{"error":"invalid_grant","error_description":"gone","error_uri":"u"}"#);
        assert_eq!(read.error(), &BasicErrorResponseType::InvalidGrant);
        assert_eq!(read.to_string(), "invalid_grant: gone (see u)");
    }

    #[test]
    fn the_providers_own_envelope_is_read() {
        let read = read(include_str!("../../tests/fixtures/error_envelope.json"));
        assert_eq!(read.error().as_ref(), "REQUIRED");
        assert_eq!(
            read.error_description().unwrap(),
            "Amount is required [amount]; The bank account provided is not valid [bankAccountId]"
        );
    }

    #[test]
    fn envelope_holds_object_string_or_nothing() {
        for (body, code, description) in [
            (r#"{"result":"FAILURE","error":{"type":"EXPIRED_TOKEN"}}"#, "EXPIRED_TOKEN", None),
            (r#"{"result":"FAILURE","error":"INVALID_TOKEN"}"#, "INVALID_TOKEN", None),
            (r#"{"result":"FAILURE","error":"It broke."}"#, UNKNOWN, Some("It broke.")),
            (r#"{"result":"FAILURE","error":{}}"#, UNKNOWN, None),
            (r#"{"result":"FAILURE","error":[]}"#, UNKNOWN, None),
            (r#"{"result":"FAILURE","error":null}"#, UNKNOWN, None),
            (r#"{"result":"FAILURE","error":7}"#, UNKNOWN, None),
            (r#"{"result":"FAILURE","data":null}"#, UNKNOWN, None),
            (r#"{"error":{}}"#, UNKNOWN, None),
            (r#"{"error":[{"type":7,"message":null}]}"#, UNKNOWN, None),
            (r#"{"error":[{"type":"EXPIRED_TOKEN"},null]}"#, "EXPIRED_TOKEN", None),
            (r#"{"error":" Invalid_Grant\n"}"#, "invalid_grant", None),
            (r#"{"result":"FAILURE","error":" INVALID_TOKEN "}"#, "INVALID_TOKEN", None),
            (r#"{"result":false,"error":"INVALID_TOKEN"}"#, "INVALID_TOKEN", None),
            (r#"{"error":400}"#, UNKNOWN, None),
            (r#"{"error":[7,"Broken.",{"type":"DUPLICATE"}]}"#, "DUPLICATE", Some("Broken.")),
        ] {
            let read = read(body);
            assert_eq!(read.code(), code, "{body}");
            assert_eq!(read.error_description().map(String::as_str), description, "{body}");
        }
    }

    #[test]
    fn only_errors_are_read_as_errors() {
        for body in [
            r#"{"result":"SUCCESS","data":null}"#,
            r#"{"result":" Success ","error":"none"}"#,
            r#"{"result":"SUCCESS_TEMP_PASSWORD","oAuth":{},"error":"none"}"#,
            r#"[null,"invalid_grant"]"#,
            "{}",
            "[]",
            "null",
            r#"{"access_token":"t"}"#,
            "<html>",
        ] {
            assert!(serde_json::from_str::<BasicErrorResponse>(body).is_err(), "{body}");
        }
    }

    #[test]
    fn texts_are_bounded_and_forge_no_lines() {
        let long = format!(r#"{{"error":"a\nb","error_description":"{}"}}"#, "é".repeat(9_999));
        let read = read(&long);
        assert_eq!(read.error().as_ref(), "a b");
        assert!(read.error_description().unwrap().len() <= LONGEST_TEXT + '…'.len_utf8());
    }

    #[test]
    fn text_is_cut_between_two_letters() {
        let kept = |text: &str| {
            let body = serde_json::json!({ "error": "a", "error_description": text });
            read(&body.to_string()).error_description().unwrap().clone()
        };
        for (text, whole) in [
            ("a".repeat(512), true),
            ("a".repeat(513), false),
            ("é".repeat(256), true),
            ("é".repeat(257), false),
            ("a".to_owned() + &"é".repeat(255), true),
            ("a".to_owned() + &"é".repeat(256), false),
        ] {
            let kept = kept(&text);
            assert_eq!(kept == text, whole, "{text}");
            let beginning = kept.trim_end_matches('…');
            assert!(text.starts_with(beginning) && beginning.len() > 510, "{kept}");
            assert_eq!(beginning.len() == kept.len(), whole, "{kept}");
        }
    }

    /// A text of which nothing can be read is no text, and what stands around a code is none of it.
    #[test]
    fn text_of_control_characters_is_none() {
        for (body, code, description) in [
            (r#"{"error":"a","error_description":"\u0001 \u0085"}"#, "a", None),
            (r#"{"result":"FAILURE","error":"\u0001\n"}"#, UNKNOWN, None),
            (r#"{"error":[{"type":"\u0001","message":"\u0000"}]}"#, UNKNOWN, None),
            (r#"{"error":"\u0001"}"#, UNKNOWN, None),
            (r#"{"error":"\u0000 a\u0001"}"#, "a", None),
            (r#"{"error":"a","error_description":"b\u0001"}"#, "a", Some("b ")),
        ] {
            let read_once = read(body);
            assert_eq!(read_once.code(), code, "{body}");
            assert_eq!(read_once.error_description().map(String::as_str), description, "{body}");
            assert_eq!(read(&serde_json::to_string(&read_once).unwrap()), read_once, "{body}");
        }
    }

    #[test]
    fn codes_of_rfc_6749_keep_their_terms() {
        use BasicErrorResponseType as Type;
        for error in [
            Type::InvalidRequest,
            Type::InvalidClient,
            Type::InvalidGrant,
            Type::UnauthorizedClient,
            Type::UnsupportedGrantType,
            Type::InvalidScope,
        ] {
            let code = error.as_ref();
            for spelling in [code.to_owned(), code.to_ascii_uppercase()] {
                let read = read(&format!(r#"{{"error":"{spelling}"}}"#));
                assert_eq!((read.error(), read.code()), (&error, code));
            }
        }
    }

    #[test]
    fn codes_are_told_in_rfc_terms() {
        use BasicErrorResponseType as Type;
        let envelope = |code: &str, param: &str| {
            let detail = format!(r#"{{"type":"{code}","message":"m","param":{param}}}"#);
            format!(
                r#"{{"result":"FAILURE","data":null,"error":[{detail},{{"type":"REQUIRED"}}]}}"#
            )
        };
        for (body, error, code) in [
            (envelope("EXPIRED_TOKEN", r#""refresh_token""#), Type::InvalidGrant, "EXPIRED_TOKEN"),
            (envelope("INVALID_TOKEN", "null"), Type::InvalidGrant, "INVALID_TOKEN"),
            (r#"{"error":"invalid_token"}"#.into(), Type::InvalidGrant, "invalid_token"),
            (r#"{"error":"Invalid_Grant"}"#.into(), Type::InvalidGrant, "invalid_grant"),
            (r#"{"error":"INVALID_CLIENT"}"#.into(), Type::InvalidClient, "invalid_client"),
            (envelope("INVALID_VALUE", r#""client_id""#), Type::InvalidClient, "INVALID_VALUE"),
            (envelope("INVALID_TOKEN", r#""client_secret""#), Type::InvalidClient, "INVALID_TOKEN"),
            (envelope("REQUIRED", r#""Authorization""#), Type::InvalidClient, "REQUIRED"),
            (
                envelope("INVALID_VALUE", r#""userId""#),
                Type::Extension("INVALID_VALUE".into()),
                "INVALID_VALUE",
            ),
        ] {
            let read_once = read(&body);
            assert_eq!((read_once.error(), read_once.code()), (&error, code), "{body}");
            assert_eq!(read_once.needs_login(), error == Type::InvalidGrant, "{body}");
            assert_eq!(read(&serde_json::to_string(&read_once).unwrap()), read_once, "{body}");
        }
        let shown = read(&envelope("EXPIRED_TOKEN", r#""refresh_token""#)).to_string();
        assert_eq!(shown, "invalid_grant (EXPIRED_TOKEN): m [refresh_token]");
    }

    #[test]
    fn refusals_of_oauth2_are_read() {
        let (description, uri) = (Some("gone".to_owned()), Some("https://a.example".to_owned()));
        for (description, uri) in [(None, None), (description, uri)] {
            let error = BasicErrorResponseType::InvalidGrant;
            let standard = oauth2::basic::BasicErrorResponse::new(
                error.clone(),
                description.clone(),
                uri.clone(),
            );
            let written = serde_json::to_string(&standard).unwrap();
            let ours = BasicErrorResponse::new(error, description, uri);
            assert_eq!(read(&written), ours);
            assert_eq!(serde_json::to_string(&ours).unwrap(), written);
            assert_eq!(ours.to_string(), standard.to_string());
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let read_once = read(include_str!("../../tests/fixtures/error_envelope.json"));
        let written = serde_json::to_string(&read_once).unwrap();
        assert_eq!(read(&written), read_once);
    }
}

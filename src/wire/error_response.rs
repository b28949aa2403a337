//! The provider's error answers: RFC 6749 section 5.2, and the envelope of its own error page.

use std::fmt;

use oauth2::basic::BasicErrorResponseType;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::wire::object::Object;

/// The longest text of a provider's that is kept, in bytes.
const LONGEST_TEXT: usize = 512;

/// The code of a failure that names none.
const UNKNOWN: &str = "UNKNOWN_ERROR";

/// The provider's refusal of a token request, for use in
/// [`BasicClient`](crate::basic::BasicClient).
///
/// Reads the object of RFC 6749 section 5.2 and the provider's own envelope,
/// `{"result":"FAILURE","error":…}`, whose `error` may be an array, an object or a string. A `type`
/// of the envelope such as `EXPIRED_TOKEN` is the [`error`](Self::error), as an
/// [`Extension`](BasicErrorResponseType::Extension). Of several errors the first gives the code;
/// the description holds all their messages. Texts are cut at 512 bytes and rid of control
/// characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Object<Body>")]
pub struct BasicErrorResponse {
    error: BasicErrorResponseType,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_uri: Option<String>,
}

impl BasicErrorResponse {
    /// The error code.
    #[must_use]
    pub fn error(&self) -> &BasicErrorResponseType {
        &self.error
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
            Self::Text(text) if !text.trim().is_empty() => Some(readable_text(&text, LONGEST_TEXT)),
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
        let (code, said) = match body.error {
            Some(ErrorField::Text(text)) if !enveloped || is_code(&text) => (text, None),
            Some(ErrorField::Text(text)) => (UNKNOWN.into(), Some(text)),
            Some(ErrorField::One(Object(detail))) => summary([detail]),
            Some(ErrorField::Many(items)) => summary(items.into_iter().filter_map(Item::detail)),
            Some(ErrorField::Strange(_)) => (UNKNOWN.into(), None),
            None if enveloped => (UNKNOWN.into(), None),
            None => return Err("neither `error` nor `result`: not an error answer"),
        };
        let code = match code.trim() {
            "" => UNKNOWN,
            code => code,
        };
        Ok(Self {
            error: error_type(&readable_text(code, 64)),
            error_description: described.or(said).map(|text| readable_text(&text, LONGEST_TEXT)),
            error_uri: body.error_uri.text(),
        })
    }
}

/// The code of the first error, and what all of them say.
fn summary(details: impl IntoIterator<Item = Detail>) -> (String, Option<String>) {
    let mut code = None;
    let mut said = Vec::new();
    for Detail { r#type, message, param } in details {
        let r#type = r#type.text();
        match (message.text(), param.text()) {
            (Some(message), Some(param)) => said.push(format!("{message} [{param}]")),
            (Some(message), None) => said.push(message),
            (None, Some(param)) => said.push(format!("[{param}]")),
            (None, None) => {}
        }
        code = code.or(r#type);
    }
    (code.unwrap_or_default(), (!said.is_empty()).then(|| said.join("; ")))
}

/// Tells a code from a sentence, where the envelope holds a bare string.
fn is_code(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The codes of RFC 6749 section 5.2 count in any letter case.
fn error_type(code: &str) -> BasicErrorResponseType {
    use BasicErrorResponseType as Type;
    match &*code.to_ascii_lowercase() {
        "invalid_client" => Type::InvalidClient,
        "invalid_grant" => Type::InvalidGrant,
        "invalid_request" => Type::InvalidRequest,
        "invalid_scope" => Type::InvalidScope,
        "unauthorized_client" => Type::UnauthorizedClient,
        "unsupported_grant_type" => Type::UnsupportedGrantType,
        _ => Type::Extension(code.to_owned()),
    }
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
            assert_eq!(read.error().as_ref(), code, "{body}");
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
    fn what_is_written_is_read_back() {
        let read_once = read(include_str!("../../tests/fixtures/error_envelope.json"));
        let written = serde_json::to_string(&read_once).unwrap();
        assert_eq!(read(&written), read_once);
    }
}

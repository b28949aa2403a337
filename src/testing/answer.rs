//! Answers of the provider: token objects and refusals, as bytes.

use axum::{body::Bytes, response::Response};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, LOCATION, PRAGMA, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    journal::Outcome,
    ledger::{Issued, TokenStatus},
    version::Version,
};

/// How the provider words a refusal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorStyle {
    /// Hurdlr's own envelope: `{"result":"FAILURE","data":null,"error":[…]}`, as the provider's
    /// error page shows it.
    #[default]
    Envelope,
    /// The error object of RFC 6749 section 5.2.
    Rfc6749,
    /// Like `Envelope`, but wrong credentials of the client are an `INVALID_TOKEN` with status 401:
    /// the provider's error page has no code for them.
    NoClientCode,
}

/// An answer whose body is held whole, so that a fault can still be applied to it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Never cached: RFC 6749 section 5.1 asks for both headers where a token may be inside.
    pub(super) fn new(
        status: StatusCode,
        content_type: HeaderValue,
        body: impl Into<Bytes>,
    ) -> Self {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        Self { status, headers, body: body.into() }
    }

    pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, HeaderValue::from_static("application/json;charset=UTF-8"), body)
    }

    pub(super) fn html(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, HeaderValue::from_static("text/html; charset=utf-8"), body)
    }

    pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, HeaderValue::from_static("text/plain; charset=utf-8"), body)
    }

    pub(super) fn redirect(status: StatusCode, location: HeaderValue) -> Self {
        Self::text(status, "").with(LOCATION, location)
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The token object, byte for byte as the reference prints it: this order and indentation.
    pub(super) fn token(version: Version, issued: &Issued) -> Self {
        // Two spaces, as the reference prints this one, and a line's end.
        let mut body = Vec::with_capacity(512);
        // Strings and numbers written to memory cannot fail.
        let _ = serde_json::to_writer_pretty(&mut body, &TokenObject::of(version, issued));
        body.push(b'\n');
        Self::json(StatusCode::OK, body)
    }

    /// The token object after a test had its way with it.
    pub(super) fn reshaped_token(
        version: Version,
        issued: &Issued,
        reshape: &(dyn Fn(&mut Map<String, Value>) + Send + Sync),
    ) -> Self {
        let mut object = serde_json::to_value(TokenObject::of(version, issued)).unwrap_or_default();
        if let Value::Object(object) = &mut object {
            reshape(object);
        }
        Self::json(StatusCode::OK, object.to_string())
    }

    /// 401 to a request without credentials, which names no error (RFC 6750 section 3.1).
    pub(super) fn challenge() -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"hurdlr\"");
        let mut answer = Self::text(StatusCode::UNAUTHORIZED, "").with(WWW_AUTHENTICATE, challenge);
        answer.headers.remove(CONTENT_TYPE);
        answer
    }

    /// RFC 7009 section 2.2: the status says it all.
    pub(super) fn revoked() -> Self {
        Self::text(StatusCode::OK, "")
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(self.body.into());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Why the provider does not do what it was asked, in both of its languages.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// The `type` of the envelope.
    kind: &'static str,
    /// The `error` of RFC 6749 section 5.2, or of RFC 6750 section 3.1 for a Bearer token.
    error: &'static str,
    param: Option<String>,
    message: String,
    outcome: Outcome,
    /// The `WWW-Authenticate` of a 401 to a request that may try by that header.
    challenge: Option<&'static str>,
}

impl Refusal {
    /// A request that cannot be understood, whoever sent it.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "BAD_REQUEST",
            error: "invalid_request",
            param: None,
            message: message.into(),
            outcome: Outcome::InvalidRequest,
            challenge: None,
        }
    }

    pub(super) fn wrong_method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            ..Self::bad_request("The token endpoint takes POST only")
        }
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            ..Self::bad_request(format!("The body is longer than {limit} bytes"))
        }
    }

    pub(super) fn rate_limited() -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, ..Self::bad_request("Too many requests") }
    }

    /// RFC 6750 section 3.1.
    pub(super) fn forbidden() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            error: "insufficient_scope",
            outcome: Outcome::BearerRefused,
            challenge: Some("Bearer error=\"insufficient_scope\""),
            ..Self::bad_request("The access token does not permit this")
        }
    }

    pub(super) fn unknown_path() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "UNKNOWN_ERROR",
            ..Self::bad_request("There is nothing at this path")
        }
    }

    pub(super) fn required(param: &str) -> Self {
        Self {
            kind: "REQUIRED",
            param: Some(param.to_owned()),
            ..Self::bad_request(format!("{param} is required"))
        }
    }

    /// RFC 6749 section 3.2: parameters must not be included more than once.
    pub(super) fn repeated(param: &str) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::bad_request(format!("{param} is given more than once"))
        }
    }

    pub(super) fn wrong_client(param: &str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            error: "invalid_client",
            outcome: Outcome::InvalidClient,
            ..Self::invalid_value(param, "The client is not known, or its secret is wrong")
        }
    }

    /// RFC 6749 section 5.2: who may prove themselves by a header is challenged to.
    pub(super) fn wrong_basic() -> Self {
        Self { challenge: Some("Basic realm=\"hurdlr\""), ..Self::wrong_client("Authorization") }
    }

    pub(super) fn wrong_scope(message: &str) -> Self {
        Self { error: "invalid_scope", ..Self::invalid_value("scope", message) }
    }

    pub(super) fn unknown_grant() -> Self {
        Self {
            error: "unsupported_grant_type",
            outcome: Outcome::UnsupportedGrantType,
            ..Self::invalid_value("grant_type", "The grant type is not known")
        }
    }

    /// A code that is not good, or not for this request.
    pub(super) fn wrong_grant(param: &str, message: &str) -> Self {
        Self {
            error: "invalid_grant",
            outcome: Outcome::InvalidGrant,
            ..Self::invalid_value(param, message)
        }
    }

    pub(super) fn dead_refresh_token(status: TokenStatus) -> Self {
        Self {
            kind: status.kind(),
            error: "invalid_grant",
            param: Some("refresh_token".to_owned()),
            outcome: Outcome::InvalidGrant,
            ..Self::bad_request(match status {
                TokenStatus::Dead => "The refresh token is not valid",
                TokenStatus::Expired => "The refresh token has expired",
            })
        }
    }

    /// RFC 6750 section 3.1.
    pub(super) fn dead_access_token(status: TokenStatus) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            kind: status.kind(),
            error: "invalid_token",
            param: Some("access_token".to_owned()),
            outcome: Outcome::BearerRefused,
            // RFC 6750 section 3.
            challenge: Some("Bearer error=\"invalid_token\""),
            ..Self::bad_request(match status {
                TokenStatus::Dead => "The access token is not valid",
                TokenStatus::Expired => "The access token has expired",
            })
        }
    }

    /// The refusal of a refresh for its Bearer header: the same for every dead token.
    pub(super) fn stale_bearer() -> Self {
        Self::dead_access_token(TokenStatus::Expired)
    }

    fn invalid_value(param: &str, message: &str) -> Self {
        Self { kind: "INVALID_VALUE", param: Some(param.to_owned()), ..Self::bad_request(message) }
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    pub(super) fn into_answer(mut self, style: ErrorStyle) -> Answer {
        if style == ErrorStyle::NoClientCode && self.outcome == Outcome::InvalidClient {
            self.kind = TokenStatus::Dead.kind();
            self.param = None;
        }
        let body = match style {
            ErrorStyle::Envelope | ErrorStyle::NoClientCode => self.envelope(),
            ErrorStyle::Rfc6749 => self.error_object(),
        };
        let answer = Answer::json(self.status, body);
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => answer.with(ALLOW, HeaderValue::from_static("POST")),
            _ => match self.challenge {
                Some(challenge) => {
                    answer.with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
                }
                None => answer,
            },
        }
    }

    fn envelope(&self) -> Vec<u8> {
        let envelope = Envelope {
            result: "FAILURE",
            data: None,
            error: [EnvelopeError {
                kind: self.kind,
                message: &self.message,
                param: self.param.as_deref(),
            }],
        };
        // Four spaces, as the reference prints this one.
        let mut body = Vec::with_capacity(256);
        let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut body, format);
        // Strings written to memory cannot fail; were they to, the body would be cut short.
        let _ = envelope.serialize(&mut serializer);
        body.push(b'\n');
        body
    }

    fn error_object(&self) -> Vec<u8> {
        let object = serde_json::json!({
            "error": self.error,
            "error_description": self.message,
        });
        object.to_string().into_bytes()
    }
}

impl TokenStatus {
    fn kind(self) -> &'static str {
        match self {
            Self::Dead => "INVALID_TOKEN",
            Self::Expired => "EXPIRED_TOKEN",
        }
    }
}

/// The provider's error page, field by field in its order.
#[derive(Serialize)]
struct Envelope<'a> {
    result: &'static str,
    data: Option<()>,
    error: [EnvelopeError<'a>; 1],
}

#[derive(Serialize)]
struct EnvelopeError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    param: Option<&'a str>,
}

/// A token answer, field by field in the order of the reference.
#[derive(Serialize)]
#[serde(untagged)]
enum TokenObject {
    Dated {
        access_token: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        refresh_token: Option<String>,
        expires_in: u64,
        created_at: u64,
        scope: &'static str,
    },
    Typed {
        access_token: String,
        token_type: &'static str,
        expires_in: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        refresh_token: Option<String>,
        scope: &'static str,
    },
}

impl TokenObject {
    fn of(version: Version, issued: &Issued) -> Self {
        let access_token = issued.access.to_string();
        let refresh_token = issued.refresh.map(|token| token.to_string());
        let (expires_in, scope) = (issued.expires_in, issued.scope.as_str());
        if version.names_token_type() {
            let token_type = "Bearer";
            Self::Typed { access_token, token_type, expires_in, refresh_token, scope }
        } else {
            let created_at = issued.created_at;
            Self::Dated { access_token, refresh_token, expires_in, created_at, scope }
        }
    }
}

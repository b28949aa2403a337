//! The status and body of an error answer: three digits, the end of a line, and the body. Without
//! those it is the body of a 400.
//!
//! - Nothing panics; texts are bounded, and end no line of a log.
//! - What is read is written and read back unchanged, and what `oauth2` reads is read alike.
//! - No error repeats a secret of its request, even if the answer does.
//! - `LoginRequired` means a refresh that was refused for its refresh token, and nothing else.

use hurdlr_oauth2::basic::{BasicErrorResponse, BasicErrorResponseType};
use hurdlr_oauth2::http::{HeaderMap, StatusCode};
use hurdlr_oauth2::oauth2::basic::BasicErrorResponse as Oauth2Response;
use hurdlr_oauth2::serde_json::{self, Map, Value};
use hurdlr_oauth2::{Error, ErrorKind};

use super::provider::{
    Client, Grant, LONGEST_CODE, LONGEST_TEXT, assert_sound, everything_said, is_readable,
};

const OWN_CODE: &[u8] = b"provider_code";

pub fn check(data: &[u8]) {
    let (status, body) = status_and_body(data);
    let read = serde_json::from_slice::<BasicErrorResponse>(body);
    match &read {
        Ok(refusal) => {
            assert_readable(refusal);
            let written = serde_json::to_string(refusal).unwrap();
            let again: BasicErrorResponse = serde_json::from_str(&written).expect(&written);
            assert_eq!(&again, refusal, "{written}");
        }
        Err(error) => drop(everything_said(error)),
    }
    let fields = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    };
    if let Some(fields) = &fields {
        assert_like_oauth2(body, fields, read.as_ref().ok());
    }
    // A field of the crate's own, by which a code and what it means can differ.
    let has_own_code = body.windows(OWN_CODE.len()).any(|it| it == OWN_CODE);
    Client::with(|client| {
        client.provider.answer(status, HeaderMap::new(), body);
        for grant in Grant::ALL {
            match client.send(grant) {
                Ok(_) => assert!(status.is_success(), "{grant:?}: a {status} brought a token"),
                Err(error) => {
                    assert_sound(&error, grant, status);
                    if !has_own_code {
                        assert_login_required(&error, grant, status, fields.as_ref());
                    }
                }
            }
        }
    });
}

fn status_and_body(data: &[u8]) -> (StatusCode, &[u8]) {
    if let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\n', body @ ..] = data {
        let status = [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(**digit - b'0'));
        return (StatusCode::from_u16(status).unwrap(), body);
    }
    (StatusCode::BAD_REQUEST, data)
}

fn assert_readable(refusal: &BasicErrorResponse) {
    assert!(is_readable(refusal.code(), LONGEST_CODE) && !refusal.code().is_empty());
    for text in [refusal.error_description(), refusal.error_uri()].into_iter().flatten() {
        assert!(is_readable(text, LONGEST_TEXT), "{text:?}");
    }
    assert!(!refusal.to_string().chars().any(char::is_control));
}

fn assert_like_oauth2(body: &[u8], fields: &Map<String, Value>, ours: Option<&BasicErrorResponse>) {
    let Ok(theirs) = serde_json::from_slice::<Oauth2Response>(body) else { return };
    // Those make it an answer that `oauth2` does not know.
    if fields.contains_key("result") || fields.contains_key("provider_code") {
        return;
    }
    let ours = ours.expect("oauth2 reads it");
    if !matches!(theirs.error(), BasicErrorResponseType::Extension(_)) {
        assert_eq!(ours.error(), theirs.error());
    }
    for (ours, theirs) in [
        (ours.error_description(), theirs.error_description()),
        (ours.error_uri(), theirs.error_uri()),
    ] {
        match theirs {
            Some(text) if !text.trim().is_empty() && is_readable(text, 512) => {
                assert_eq!(ours, Some(text));
            }
            Some(_) => {}
            None => assert_eq!(ours, None),
        }
    }
}

fn assert_login_required(
    error: &Error,
    grant: Grant,
    status: StatusCode,
    fields: Option<&Map<String, Value>>,
) {
    let is_throttled = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    if error.needs_login() {
        let code = error.code().unwrap_or_default().to_ascii_lowercase();
        assert_eq!((grant, error.kind()), (Grant::Refresh, ErrorKind::LoginRequired));
        assert!(!is_throttled, "{status} {code}");
        let is_unauthorized = status == StatusCode::UNAUTHORIZED;
        let is_of_provider = ["expired_token", "invalid_token"].contains(&&*code);
        assert!(code == "invalid_grant" || (is_of_provider && !is_unauthorized), "{status} {code}");
    }
    // The answer of RFC 6749 section 5.2 must not be taken for a failure that passes. With an
    // access token it is another one.
    let is_dead = fields.is_some_and(|fields| {
        !["result", "access_token"].iter().any(|name| fields.contains_key(*name))
            && fields.get("error") == Some(&"invalid_grant".into())
    });
    if is_dead && grant == Grant::Refresh && status.is_client_error() && !is_throttled {
        assert_eq!(error.kind(), ErrorKind::LoginRequired, "{status} {error:?}");
    }
}

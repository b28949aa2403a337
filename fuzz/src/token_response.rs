//! The body of a token answer.
//!
//! - Nothing panics, and no text shows a token.
//! - What is read can be sent in a header, and is written and read back unchanged.
//! - What `oauth2` reads as a Bearer token is read alike, and so is plain JSON.
//! - A body that is read by itself is read from a provider, by every grant.
//! - A refresh token that can be read is never lost, and no failure brings a token.

use hurdlr_oauth2::basic::{BasicTokenResponse, BasicTokenType};
use hurdlr_oauth2::http::{HeaderMap, StatusCode};
use hurdlr_oauth2::oauth2::basic::BasicTokenResponse as Oauth2Response;
use hurdlr_oauth2::oauth2::{Scope, TokenResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::serde_json::{self, Map, Value};
use hurdlr_oauth2::{Error, Token};

use super::provider::{Client, Grant, OLD_ACCESS, OLD_REFRESH, assert_sound, everything_said};

/// The longest `expires_in`.
const LONGEST_SPAN: u64 = 0x7fff_ffff;

pub fn check(body: &[u8]) {
    let secrets = secrets(body);
    let read = serde_json::from_slice::<BasicTokenResponse>(body);
    match &read {
        Ok(answer) => {
            assert_hidden(&secrets, &format!("{answer:?} {answer:#?}"));
            assert_usable(answer);
            assert_kept(answer);
        }
        Err(error) => assert_hidden(&secrets, &everything_said(error)),
    }
    let read = read.ok();
    assert_like_oauth2(body, read.as_ref());
    assert_like_json(body, read.as_ref());
    Client::with(|client| {
        client.provider.answer(StatusCode::OK, HeaderMap::new(), body);
        for grant in Grant::ALL {
            let result = client.send(grant);
            assert_hidden(&secrets, &said(&result));
            match (&result, &read) {
                (Ok(token), Some(answer)) => {
                    let access_token = answer.access_token().secret();
                    assert_eq!(token.access_token().expose_secret(), access_token);
                    assert_eq!(token.expires_in(), answer.expires_in());
                    assert!(token.age() <= token.expires_in().unwrap_or_default());
                }
                (Err(error), Some(_)) => panic!("{grant:?} lost a token: {error:?}"),
                (Ok(token), None) => {
                    assert!(is_usable_access_token(token.access_token().expose_secret()));
                }
                (Err(error), None) => assert_sound(error, grant, StatusCode::OK),
            }
            assert_refresh_token_kept(body, grant, &result);
        }
        client.provider.answer(StatusCode::BAD_REQUEST, HeaderMap::new(), body);
        let error = client.send(Grant::Refresh).expect_err("a failure brought a token");
        assert_hidden(&secrets, &everything_said(&error));
        assert_sound(&error, Grant::Refresh, StatusCode::BAD_REQUEST);
    });
}

/// The tokens of a body that stand nowhere else in it, and can be told from words of our own.
pub(crate) fn secrets(body: &[u8]) -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if is_token_field(name) => found.push(text.clone()),
                        _ => collect(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_slice(body) {
        collect(&value, &mut found);
    }
    let times = |text: &str| body.windows(text.len()).filter(|it| *it == text.as_bytes()).count();
    let is_word =
        |text: &str| text.bytes().all(|it| it.is_ascii_alphabetic() || b"_ ".contains(&it));
    found.retain(|text| text.len() >= 8 && !is_word(text) && times(text) == 1);
    found
}

fn is_token_field(name: &str) -> bool {
    matches!(name, "access_token" | "refresh_token")
}

pub(crate) fn assert_hidden(secrets: &[String], said: &str) {
    for secret in secrets {
        assert!(!said.contains(secret.as_str()), "{secret:?} is shown: {said}");
    }
}

fn said(result: &Result<Token, Error>) -> String {
    match result {
        Ok(token) => format!("{token:?} {:?}", token.authorization_header()),
        Err(error) => everything_said(error),
    }
}

/// Whether a header can carry the access token.
pub(crate) fn is_usable_access_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn assert_usable(answer: &BasicTokenResponse) {
    assert!(is_usable_access_token(answer.access_token().secret()));
    assert_eq!(answer.token_type(), &BasicTokenType::Bearer);
    assert!(answer.expires_in().is_none_or(|span| span.as_secs() <= LONGEST_SPAN));
    if let Some(token) = answer.refresh_token() {
        assert!(is_refresh_token(token.secret()));
    }
}

pub(crate) fn is_refresh_token(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

fn assert_kept(answer: &BasicTokenResponse) {
    let written = serde_json::to_string(answer).unwrap();
    let read: BasicTokenResponse = serde_json::from_str(&written).expect(&written);
    assert_eq!(read.access_token().secret(), answer.access_token().secret());
    let refresh_token = |it: &BasicTokenResponse| it.refresh_token().map(|it| it.secret().clone());
    assert_eq!(refresh_token(&read), refresh_token(answer));
    assert_eq!(read.expires_in(), answer.expires_in());
    assert_eq!(read.created_at(), answer.created_at());
    assert_eq!(read.scopes(), answer.scopes());
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
}

fn assert_like_oauth2(body: &[u8], ours: Option<&BasicTokenResponse>) {
    let Ok(theirs) = serde_json::from_slice::<Oauth2Response>(body) else { return };
    // A line's end behind a token is none of it.
    let access_token = theirs.access_token().secret().trim_matches(char::is_control);
    let is_bearer = theirs.token_type() == &BasicTokenType::Bearer;
    if !is_bearer || !is_usable_access_token(access_token) {
        return;
    }
    let ours = ours.expect("oauth2 reads it");
    assert_eq!(ours.access_token().secret(), access_token);
    let refresh_token = theirs.refresh_token().map(|it| it.secret().trim_matches(char::is_control));
    let refresh_token = refresh_token.filter(|text| is_refresh_token(text));
    assert_eq!(ours.refresh_token().map(|it| it.secret().as_str()), refresh_token);
    let expires_in = theirs.expires_in().filter(|span| span.as_secs() <= LONGEST_SPAN);
    assert_eq!(ours.expires_in(), expires_in);
    let words = |scopes: Option<&Vec<Scope>>| -> Vec<String> {
        let scopes = scopes.into_iter().flatten();
        scopes.flat_map(|it| it.split_whitespace()).map(str::to_owned).collect()
    };
    assert_eq!(words(ours.scopes()), words(theirs.scopes()));
}

fn assert_like_json(body: &[u8], ours: Option<&BasicTokenResponse>) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return };
    if let Some(access_token) = plain_access_token(&fields) {
        let ours = ours.expect("it is plain JSON");
        assert_eq!(ours.access_token().secret(), access_token);
        if let Some(refresh_token) = plain_refresh_token(&fields) {
            assert_eq!(ours.refresh_token().map(|it| it.secret().as_str()), Some(refresh_token));
        }
    }
}

/// The access token of an object that is a Bearer token beyond doubt.
pub(crate) fn plain_access_token(fields: &Map<String, Value>) -> Option<&str> {
    let is_bearer = |name: &Value| Some(name.as_str()?.eq_ignore_ascii_case("bearer"));
    if fields.get("token_type").is_some_and(|name| is_bearer(name) != Some(true)) {
        return None;
    }
    fields.get("access_token")?.as_str().filter(|text| is_usable_access_token(text))
}

pub(crate) fn plain_refresh_token(fields: &Map<String, Value>) -> Option<&str> {
    fields.get("refresh_token")?.as_str().filter(|text| is_refresh_token(text))
}

/// A refresh token in the answer may be the only one that lives.
fn assert_refresh_token_kept(body: &[u8], grant: Grant, result: &Result<Token, Error>) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return };
    let is_nested = fields.contains_key("oAuth") || fields.contains_key("data");
    let Some(sent) = plain_refresh_token(&fields) else { return };
    // One that was sent is no news.
    if is_nested || [OLD_ACCESS, OLD_REFRESH].contains(&sent) {
        return;
    }
    let kept = match result {
        Ok(token) => token.refresh_token(),
        Err(error) => error.rescued_refresh_token(),
    };
    assert_eq!(kept.map(ExposeSecret::expose_secret), Some(sent), "{grant:?}");
}

//! A token that an app kept: as JSON, and as lines that are its access token, its refresh token,
//! when it was created and ends, in seconds since 1970, and its scope.
//!
//! - What is imported is exported again unchanged, also by way of a manager's store.
//! - Plain JSON of a token is imported, and so is what `basic` reads.
//! - What cannot be imported is an error that names the field, and shows no token.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hurdlr_oauth2::basic::BasicTokenResponse;
use hurdlr_oauth2::http::{HeaderMap, StatusCode};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::serde_json::{self, Map, Value};
use hurdlr_oauth2::store::{MemoryStore, RowKind, StoreKey, TokenStore};
use hurdlr_oauth2::{ErrorKind, Token, TokenManager, TokenParts};

use super::provider::{Client, TOKEN, block_on, everything_said, user};
use super::token_response::{
    assert_hidden, is_refresh_token, is_usable_access_token, plain_access_token,
    plain_refresh_token, secrets,
};

/// Stands before each token of a line, to be looked for in errors.
const MARK: &str = "mark-";

pub fn check(data: &[u8]) {
    Client::with(|client| {
        import_json(client, data);
        import_parts(client, &String::from_utf8_lossy(data));
    });
}

fn import_json(client: &Client, json: &[u8]) {
    let secrets = secrets(json);
    let imported = client.hurdlr.import(json);
    let plain = match serde_json::from_slice(json) {
        Ok(Value::Object(fields)) if !fields.contains_key("oAuth") => Some(fields),
        _ => None,
    };
    match &imported {
        Ok(token) => {
            assert_hidden(&secrets, &format!("{token:?} {token:#?}"));
            assert_exported(client, token);
            assert_stored(client, client.hurdlr.import(json).unwrap());
        }
        Err(error) => {
            let said = everything_said(error);
            assert_eq!(error.kind(), ErrorKind::InvalidResponse, "{said}");
            assert_hidden(&secrets, &said);
            let is_named = said.contains("access_token") || said.contains("token_type");
            assert!(plain.is_none() || is_named, "{said}");
        }
    }
    if let Some(fields) = &plain {
        assert_like_json(fields, imported.as_ref().ok());
    }
    let may_be_nested = json.windows(5).any(|it| it == b"oAuth") || json.contains(&b'\\');
    if !may_be_nested && let Ok(answer) = serde_json::from_slice::<BasicTokenResponse>(json) {
        let token = imported.as_ref().expect("`basic` reads it");
        let other = client.hurdlr.import_response(answer);
        assert_eq!(secret(token), secret(&other));
    }
}

fn assert_like_json(fields: &Map<String, Value>, imported: Option<&Token>) {
    if let Some(access_token) = plain_access_token(fields) {
        let token = imported.expect("it is plain JSON");
        assert_eq!(token.access_token().expose_secret(), access_token);
        if let Some(expected) = plain_refresh_token(fields) {
            assert_eq!(refresh_token(token), Some(expected));
        }
    }
}

fn refresh_token(token: &Token) -> Option<&str> {
    token.refresh_token().map(ExposeSecret::expose_secret)
}

fn secret(token: &Token) -> String {
    token.to_secret().expose_secret().to_owned()
}

/// Checks that two tokens are the same to all who use them.
fn assert_same(one: &Token, other: &Token) {
    assert_eq!(one.access_token().expose_secret(), other.access_token().expose_secret());
    assert_eq!(refresh_token(one), refresh_token(other));
    assert_eq!(one.expires_in(), other.expires_in());
    assert!(one.scopes().eq(other.scopes()));
    if let Some(created_at) = one.created_at() {
        assert_eq!(Some(created_at), other.created_at());
    }
}

fn assert_exported(client: &Client, token: &Token) {
    let exported = client.hurdlr.import(secret(token)).expect("an exported token");
    assert_same(token, &exported);
    let again = client.hurdlr.import(secret(&exported)).expect("an exported token");
    assert_eq!(secret(&exported), secret(&again));
}

/// Checks that a manager's store has the token that was imported.
fn assert_stored(client: &Client, token: Token) {
    let expected = client.hurdlr.import(secret(&token)).unwrap();
    client.provider.answer(StatusCode::OK, HeaderMap::new(), TOKEN);
    let store = MemoryStore::with_clock(client.clock.clone());
    let manager = TokenManager::builder(client.hurdlr.clone(), store.clone()).build().unwrap();
    let can_refresh = token.refresh_token().is_some();
    match block_on(manager.import_if_absent(&user(), token)) {
        Ok(is_new) => {
            assert!(is_new && can_refresh);
            let realm = Arc::new(client.hurdlr.realm());
            let key = StoreKey::new(realm, RowKind::Login, user());
            let row = block_on(store.read(&[key])).unwrap().remove(0).unwrap().unwrap();
            let payload = row.token.unwrap().payload;
            let stored = client.hurdlr.import(payload.expose_secret()).expect("a stored token");
            assert_same(&stored, &expected);
        }
        Err(error) => {
            assert!(!can_refresh && error.kind() == ErrorKind::Config, "{error:?}");
            assert!(error.to_string().contains("refresh token"), "{error}");
        }
    }
    assert!(block_on(manager.shutdown()).is_empty());
}

fn import_parts(client: &Client, text: &str) {
    let mut lines = text.split('\n');
    let marked = |text: &str| {
        if text.is_empty() { String::new() } else { [MARK, text].concat() }
    };
    let mut parts = TokenParts::new(marked(lines.next().unwrap_or_default()).into());
    parts.refresh_token = lines.next().map(|text| marked(text).into());
    parts.created_at = lines.next().and_then(time);
    parts.expires_at = lines.next().and_then(time);
    parts.scope = lines.next().map(str::to_owned);
    assert!(
        !format!("{parts:?}").contains(MARK)
            || parts.scope.as_ref().is_some_and(|it| it.contains(MARK))
    );

    let refresh_token = parts.refresh_token.as_ref().map(ExposeSecret::expose_secret);
    let wrong = if !is_usable_access_token(parts.access_token.expose_secret()) {
        Some("access_token")
    } else if refresh_token.is_some_and(|it| !is_refresh_token(it)) {
        Some("refresh_token")
    } else if parts.created_at.zip(parts.expires_at).is_some_and(|(from, to)| to < from) {
        Some("expires_at")
    } else {
        None
    };
    match (Token::from_parts(parts.clone()), wrong) {
        (Ok(token), None) => {
            let access_token = token.access_token().expose_secret();
            assert_eq!(access_token, parts.access_token.expose_secret());
            assert_eq!(self::refresh_token(&token), refresh_token);
            let scope = parts.scope.as_deref().unwrap_or_default();
            assert!(token.scopes().eq(scope.split_ascii_whitespace()));
            assert_exported(client, &token);
        }
        (Err(error), Some(wrong)) => {
            let said = everything_said(&error);
            assert_eq!(error.kind(), ErrorKind::Config, "{said}");
            assert!(error.to_string().contains(wrong) && !said.contains(MARK), "{said}");
        }
        (Ok(_), Some(wrong)) => panic!("{wrong} was taken"),
        (Err(error), None) => panic!("{error:?}"),
    }
}

fn time(text: &str) -> Option<SystemTime> {
    let seconds: i64 = text.parse().ok()?;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

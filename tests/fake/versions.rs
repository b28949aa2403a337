//! The versions of the API, v6 above all.

use std::time::Duration;

use base64::Engine as _;
use http::header;
use hurdlr_oauth2::testing::{FakeHurdlr, Outcome};
use oauth2::PkceCodeChallenge;
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{Answer, CALLBACK, V4, V5, call, code, form, get, post, post_basic, refusal};

const V6: &str = "v6/auth/token";

async fn revoke(fake: &FakeHurdlr, token: &str) -> Answer {
    post_basic(fake, "v6/auth/revoke", &[("token", token)]).await
}

/// The tokens of a person who logged in under v6.
async fn logged_in_v6(fake: &FakeHurdlr, user: &str, asked: &[(&str, &str)]) -> Answer {
    let code = code(fake, user, asked).await;
    let fields =
        [("grant_type", "authorization_code"), ("code", &*code), ("redirect_uri", CALLBACK)];
    post_basic(fake, V6, &fields).await
}

#[tokio::test]
async fn v6_answers_match_the_references_bytes() {
    let fixture = include_str!("../fixtures/v6_token.json");
    let example: Value = serde_json::from_str(fixture).unwrap();
    let fake = FakeHurdlr::in_memory();
    let answer = logged_in_v6(&fake, "ann", &[]).await;
    let expected = fixture
        .replace(example["access_token"].as_str().unwrap(), &answer.get("access_token"))
        .replace(example["refresh_token"].as_str().unwrap(), &answer.get("refresh_token"))
        .replace(example["scope"].as_str().unwrap(), "write");
    assert_eq!(answer.text().trim_end(), expected.trim_end());
}

#[tokio::test]
async fn v6_takes_a_client_by_basic_only() {
    let fake = FakeHurdlr::builder().client("a:b c", "s+e/c=r&e%t".into()).in_memory();
    let client = [("grant_type", "client_credentials")];
    assert_eq!(post_basic(&fake, V6, &client).await.status, 200);

    let secret = fake.client_secret();
    let in_body =
        [("client_id", fake.client_id()), ("client_secret", secret.expose_secret()), client[0]];
    let refused = call(&fake, form(&fake, V6, &client)).await.unwrap();
    assert_eq!(refused.refusal(), refusal(401, "INVALID_VALUE", "Authorization"));
    assert!(refused.header(header::WWW_AUTHENTICATE).starts_with("Basic"));
    let refused = call(&fake, form(&fake, V6, &in_body)).await.unwrap();
    assert_eq!(refused.status, 400);
    let refused = post_basic(&fake, V6, &in_body).await;
    assert_eq!(refused.status, 400, "two proofs in one request");
    let named_twice =
        post_basic(&fake, V6, &in_body[..1].iter().chain(&client).copied().collect::<Vec<_>>())
            .await;
    assert_eq!(named_twice.refusal(), refusal(400, "BAD_REQUEST", ""), "two names in one request");

    // Not encoded before base64, or of another client.
    for plain in ["a:b c:s+e/c=r&e%t", "else:wrong", "nothing", ""] {
        let mut request = form(&fake, V6, &client);
        let basic = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(plain));
        request.headers_mut().insert(header::AUTHORIZATION, basic.parse().unwrap());
        assert_eq!(call(&fake, request).await.unwrap().status, 401, "{plain}");
    }
}

#[tokio::test]
async fn v6_code_alone_brings_a_refresh_token() {
    let fake = FakeHurdlr::in_memory();
    let partner = post_basic(&fake, V6, &[("grant_type", "client_credentials")]).await;
    let fields = [("grant_type", "client_credentials"), ("userId", "ann")];
    let ann = post_basic(&fake, V6, &fields).await;
    for answer in [&partner, &ann] {
        assert_eq!(answer.json()["refresh_token"], Value::Null);
        assert_eq!(answer.json()["expires_in"], 3_600);
    }
    assert_eq!((fake.tokens_alive(""), fake.tokens_alive("ann")), (1, 1));
    let login = logged_in_v6(&fake, "bob", &[]).await.get("refresh_token");
    let fields = [("grant_type", "refresh_token"), ("refresh_token", &*login)];
    let newer = post_basic(&fake, V6, &fields).await;
    assert_ne!(newer.get("refresh_token"), login);
    fake.advance_clock(Duration::from_hours(1));
    assert!(!fake.is_alive(&newer.get("access_token")));
}

#[tokio::test]
async fn v6_scope_never_grows_beyond_consent() {
    let fake = FakeHurdlr::in_memory();
    let client = ("grant_type", "client_credentials");
    assert_eq!(post_basic(&fake, V6, &[client]).await.get("scope"), "write");
    assert_eq!(post_basic(&fake, V6, &[client, ("scope", "read")]).await.get("scope"), "read");
    let unknown = post_basic(&fake, V6, &[client, ("scope", "admin")]).await;
    assert_eq!(unknown.refusal(), refusal(400, "INVALID_VALUE", "scope"));

    let answer = logged_in_v6(&fake, "ann", &[("scope", "read")]).await;
    assert_eq!(answer.get("scope"), "read");
    let token = answer.get("refresh_token");
    let refresh = [("grant_type", "refresh_token"), ("refresh_token", &*token)];
    let more = post_basic(&fake, V6, &[&refresh[..], &[("scope", "write")]].concat()).await;
    assert_eq!(more.refusal(), refusal(400, "INVALID_VALUE", "scope"));
    assert_eq!(post_basic(&fake, V6, &refresh).await.get("scope"), "read");

    // The versions without scopes do not look at what they do not know.
    let v4 = [("grant_type", "client_credentials"), ("userId", "ann"), ("scope", "admin")];
    assert_eq!(post(&fake, &v4).await.get("scope"), "token");
}

/// RFC 6749 section 6: a refresh may ask for less, which is no less for the next one.
#[tokio::test]
async fn v6_refresh_can_narrow_the_scope() {
    let fake = FakeHurdlr::in_memory();
    let token = logged_in_v6(&fake, "ann", &[]).await.get("refresh_token");
    let fields = [("grant_type", "refresh_token"), ("refresh_token", &*token), ("scope", "read")];
    let narrow = post_basic(&fake, V6, &fields).await;
    assert_eq!(narrow.get("scope"), "read");
    let token = narrow.get("refresh_token");
    let fields = [("grant_type", "refresh_token"), ("refresh_token", &*token)];
    assert_eq!(post_basic(&fake, V6, &fields).await.get("scope"), "write");
}

/// RFC 6750 section 3.1.
#[tokio::test]
async fn v6_read_token_changes_nothing() {
    let fake = FakeHurdlr::in_memory();
    let url = fake.base_url().join("v6/me").unwrap();
    for (scope, status) in [("read", 403), ("write", 200)] {
        let fields = [("grant_type", "client_credentials"), ("scope", scope)];
        let token = post_basic(&fake, V6, &fields).await.get("access_token");
        assert_eq!(get(&fake, &url, &token).await.status, 200);
        let request = http::Request::post(url.as_str())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Vec::new())
            .unwrap();
        assert_eq!(call(&fake, request).await.unwrap().status, status, "{scope}");
    }
}

/// All that one version issues, at the endpoints of the others.
#[tokio::test]
async fn versions_take_nothing_of_each_other() {
    let fake = FakeHurdlr::builder().check_bearer(true).in_memory();
    let mut issued = Vec::new();
    for path in [V4, V5, V6] {
        let code = code(&fake, "ann", &[]).await;
        let answer = at(&fake, path, &[("code", &*code), ("redirect_uri", CALLBACK)], "").await;
        assert_eq!(answer.status, 200, "{path}");
        issued.push((path, answer.get("access_token"), answer.get("refresh_token")));
    }
    for (issuer, access_token, refresh_token) in &issued {
        for (path, other_token, _) in &issued {
            let (is_own, which) = (issuer == path, format!("{issuer} at {path}"));
            let me = fake.base_url().join(&path.replace("auth/token", "me")).unwrap();
            let status = if is_own { 200 } else { 401 };
            assert_eq!(get(&fake, &me, access_token).await.status, status, "{which}");
            if !is_own {
                let refused = at(&fake, path, &[("refresh_token", refresh_token)], "").await;
                let kind = refusal(400, "INVALID_TOKEN", "refresh_token");
                assert_eq!(refused.refusal(), kind, "{which}");
                if *issuer != V6 {
                    // The Bearer that goes with a refresh, too.
                    let fields = [("refresh_token", &**refresh_token)];
                    let refused = at(&fake, issuer, &fields, other_token).await;
                    let kind = refusal(401, "EXPIRED_TOKEN", "access_token");
                    assert_eq!(refused.refusal(), kind, "{which}");
                }
            }
        }
        // A success, as for any unknown token; and nothing of another version is revoked by it.
        assert_eq!(revoke(&fake, refresh_token).await.status, 200);
        assert_eq!(fake.is_alive(access_token), *issuer != V6);
        assert_eq!(fake.refresh_is_alive(refresh_token), *issuer != V6);
    }
}

/// A grant by what `fields` are about, as the version wants it.
async fn at(fake: &FakeHurdlr, path: &str, fields: &[(&str, &str)], bearer: &str) -> Answer {
    let (name, _) = fields[0];
    let grant = if name == "code" { "authorization_code" } else { name };
    let fields = [&[("grant_type", grant)], fields].concat();
    if path == V6 {
        return post_basic(fake, path, &fields).await;
    }
    let secret = fake.client_secret();
    let client = [("client_id", fake.client_id()), ("client_secret", secret.expose_secret())];
    let mut request = form(fake, path, &[&client[..], &fields].concat());
    if !bearer.is_empty() {
        let value = format!("Bearer {bearer}").parse().unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    call(fake, request).await.unwrap()
}

/// Without scopes, a version would grant more than was consented to.
#[tokio::test]
async fn code_with_scope_is_v6_only() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[("scope", "read")]).await;
    let fields = [("code", &*code), ("redirect_uri", CALLBACK)];
    for path in [V4, V5] {
        let refused = at(&fake, path, &fields, "").await;
        assert_eq!(refused.refusal(), refusal(400, "INVALID_VALUE", "code"));
    }
    assert_eq!(at(&fake, V6, &fields, "").await.get("scope"), "read");
}

#[tokio::test]
async fn v4_and_v5_take_no_basic() {
    let fake = FakeHurdlr::in_memory();
    for path in [V4, V5] {
        let fields = [("grant_type", "client_credentials"), ("userId", "ann")];
        let refused = post_basic(&fake, path, &fields).await;
        assert_eq!(refused.refusal(), refusal(400, "REQUIRED", "client_id"));
    }
}

#[tokio::test]
async fn v6_wants_redirect_uri_and_verifier() {
    let fake = FakeHurdlr::in_memory();
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let asked = [("code_challenge", challenge.as_str()), ("code_challenge_method", "S256")];
    let code = code(&fake, "ann", &asked).await;
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", &*code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", verifier.secret()),
    ];
    let without_uri = post_basic(&fake, V6, &fields[..2]).await;
    assert_eq!(without_uri.refusal(), refusal(400, "REQUIRED", "redirect_uri"));
    let without_verifier = post_basic(&fake, V6, &fields[..3]).await;
    assert_eq!(without_verifier.refusal(), refusal(400, "REQUIRED", "code_verifier"));
    assert_eq!(post_basic(&fake, V6, &fields).await.status, 200);
}

#[tokio::test]
async fn revoked_refresh_token_ends_its_login() {
    let fake = FakeHurdlr::in_memory();
    let (ann, bob) = (logged_in_v6(&fake, "ann", &[]).await, logged_in_v6(&fake, "bob", &[]).await);
    let again = logged_in_v6(&fake, "ann", &[]).await;
    let token = ann.get("refresh_token");
    for token in [&*token, "unknown", &*token] {
        let answer = revoke(&fake, token).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, ""));
    }
    assert!(!fake.is_alive(&ann.get("access_token")) && !fake.refresh_is_alive(&token));
    for other in [&bob, &again] {
        assert!(fake.is_alive(&other.get("access_token")));
        assert!(fake.refresh_is_alive(&other.get("refresh_token")));
    }
    // An access token by itself.
    revoke(&fake, &bob.get("access_token")).await;
    assert!(!fake.is_alive(&bob.get("access_token")));
    assert!(fake.refresh_is_alive(&bob.get("refresh_token")));

    let missing = post_basic(&fake, "v6/auth/revoke", &[("token_type_hint", "x")]).await;
    assert_eq!(missing.refusal(), refusal(400, "REQUIRED", "token"));
    let stranger = form(&fake, "v6/auth/revoke", &[("token", &*again.get("refresh_token"))]);
    assert_eq!(call(&fake, stranger).await.unwrap().status, 401);
    assert!(fake.refresh_is_alive(&again.get("refresh_token")));
    assert_eq!(fake.count().outcome(Outcome::Revoked), 4);
    for path in ["rest/v4/auth/revoke", "rest/v5/auth/revoke"] {
        assert_eq!(post_basic(&fake, path, &[("token", "t")]).await.status, 404);
    }
}

#[tokio::test]
async fn a_replaced_refresh_token_revokes_nothing() {
    let fake = FakeHurdlr::in_memory();
    let old = logged_in_v6(&fake, "ann", &[]).await.get("refresh_token");
    let fields = [("grant_type", "refresh_token"), ("refresh_token", &*old)];
    let newer = post_basic(&fake, V6, &fields).await;
    revoke(&fake, &old).await;
    assert!(fake.is_alive(&newer.get("access_token")));
    assert!(fake.refresh_is_alive(&newer.get("refresh_token")));
}

//! What only some versions of the API have: scopes, tokens of the partner itself, revocation; and
//! the header that v6 wants.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::http::HeaderValue;
use hurdlr_oauth2::http::header::AUTHORIZATION;
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, InMemoryError, InMemoryHttpClient, Outcome};
use hurdlr_oauth2::{ApiVersion, ErrorKind, Hurdlr, RetryPolicy, Scope, Token};

use crate::support;

fn client(fake: &FakeHurdlr) -> Hurdlr {
    let (builder, _) = support::in_memory(fake);
    builder.api_version(ApiVersion::V6).build().unwrap()
}

async fn logged_in(fake: &FakeHurdlr, hurdlr: &Hurdlr) -> Token {
    let (url, pending) = hurdlr.begin_login().unwrap();
    let callback = fake.consent(&url, "ann").await.unwrap();
    hurdlr.complete_login(pending, &callback).await.unwrap()
}

fn access_is_alive(fake: &FakeHurdlr, token: &Token) -> bool {
    fake.is_alive(token.access_token().expose_secret())
}

fn refresh_is_alive(fake: &FakeHurdlr, token: &Token) -> bool {
    fake.refresh_is_alive(token.refresh_token().unwrap().expose_secret())
}

#[tokio::test(start_paused = true)]
async fn v6_life_from_login_to_revocation() {
    let fake = FakeHurdlr::in_memory();
    let hurdlr = client(&fake);
    let token = logged_in(&fake, &hurdlr).await;
    assert_eq!(token.expires_in(), Some(Duration::from_secs(3_600)));
    assert_eq!(token.scopes().collect::<Vec<_>>(), ["write"]);
    let newer = hurdlr.refresh(&token).await.unwrap();
    assert!(access_is_alive(&fake, &newer) && refresh_is_alive(&fake, &newer));

    hurdlr.revoke(&newer).await.unwrap();
    assert!(!access_is_alive(&fake, &newer) && !refresh_is_alive(&fake, &newer));
    assert!(!access_is_alive(&fake, &token), "of the same login");
    let dead = hurdlr.refresh(&newer).await.unwrap_err();
    assert_eq!(dead.kind(), ErrorKind::LoginRequired);
    hurdlr.revoke(&newer).await.expect("what is dead is as good as revoked");
    assert_eq!(fake.count().outcome(Outcome::Revoked), 2);
}

/// A store tells the users of two clients apart by this.
#[test]
fn realm_names_version_environment_and_client() {
    let fake = FakeHurdlr::in_memory();
    for version in [ApiVersion::V4, ApiVersion::V5, ApiVersion::V6] {
        let (builder, _) = support::in_memory(&fake);
        let realm = builder.api_version(version).build().unwrap().realm();
        assert_eq!(realm.api_version(), version);
        assert_eq!(realm.environment(), fake.base_url().as_str());
        assert_eq!(realm.client_id(), fake.client_id());
    }
}

/// Moving to another version means a login there: the provider does not say that one takes the
/// other's tokens.
#[tokio::test]
async fn client_of_other_version_gets_nothing() {
    let fake = FakeHurdlr::in_memory();
    let new = client(&fake);
    for version in [ApiVersion::V4, ApiVersion::V5] {
        let old = support::in_memory(&fake).0.api_version(version).build().unwrap();
        let token = logged_in(&fake, &old).await;
        let dead = new.refresh(&token).await.unwrap_err();
        assert_eq!(dead.kind(), ErrorKind::LoginRequired);
        new.revoke(&token).await.expect("an unknown token is as good as revoked");
        assert!(access_is_alive(&fake, &token));
        assert!(fake.is_alive(old.refresh(&token).await.unwrap().access_token().expose_secret()));
        let token = logged_in(&fake, &new).await;
        assert_eq!(old.refresh(&token).await.unwrap_err().kind(), ErrorKind::LoginRequired);
    }
}

#[tokio::test]
async fn partners_own_token_has_no_user() {
    let fake = FakeHurdlr::in_memory();
    let hurdlr = client(&fake);
    let token = hurdlr.partner_token().await.unwrap();
    assert_eq!(fake.requests()[0].field_names(), ["grant_type"]);
    assert!(token.refresh_token().is_none());
    assert_eq!(fake.tokens_alive(""), 1);
    hurdlr.revoke(&token).await.unwrap();
    assert_eq!(fake.tokens_alive(""), 0);
}

#[tokio::test]
async fn scope_is_granted_and_outlives_a_refresh() {
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let hurdlr = builder.api_version(ApiVersion::V6).scope(Scope::Read).build().unwrap();
    let token = logged_in(&fake, &hurdlr).await;
    let newer = hurdlr.refresh(&token).await.unwrap();
    let granted = hurdlr.client_credentials(&support::ann()).await.unwrap();
    for token in [token, newer, granted] {
        assert_eq!(token.scopes().collect::<Vec<_>>(), ["read"]);
    }
}

#[tokio::test(start_paused = true)]
async fn revocation_is_repeated_while_in_doubt() {
    for fault in [
        Fault::Refuse,
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::status(500),
        Fault::status(503),
        Fault::html(502),
        Fault::rate_limited_for(Duration::from_secs(2)),
    ] {
        let fake = FakeHurdlr::in_memory();
        let hurdlr = client(&fake);
        let token = logged_in(&fake, &hurdlr).await;
        fake.clear_requests();
        fake.fault_next(fault.clone());
        fake.fault_next(fault.clone());
        hurdlr.revoke(&token).await.unwrap();
        assert_eq!(fake.count().total(), 3, "{fault:?}");
        assert!(!refresh_is_alive(&fake, &token));
    }
}

#[tokio::test(start_paused = true)]
async fn refused_revocation_is_final_and_failed() {
    for (fault, kind) in [
        (Fault::answer(401, r#"{"error":"invalid_client"}"#), ErrorKind::Rejected),
        (
            Fault::answer(401, r#"{"result":"FAILURE","error":"INVALID_TOKEN"}"#),
            ErrorKind::Rejected,
        ),
        (Fault::answer(400, r#"{"error":"unsupported_token_type"}"#), ErrorKind::Rejected),
        (Fault::answer(200, r#"{"result":"FAILURE","error":"BAD_REQUEST"}"#), ErrorKind::Rejected),
        (Fault::html(404), ErrorKind::InvalidResponse),
        (Fault::redirect(307, "http://127.0.0.1:1/"), ErrorKind::InvalidResponse),
    ] {
        let fake = FakeHurdlr::in_memory();
        let hurdlr = client(&fake);
        let token = logged_in(&fake, &hurdlr).await;
        fake.clear_requests();
        fake.fault_next(fault.clone());
        let error = hurdlr.revoke(&token).await.unwrap_err();
        assert_eq!((error.kind(), fake.count().total()), (kind, 1), "{fault:?}");
        assert!(!error.needs_login());
    }
}

#[tokio::test]
async fn dead_token_counts_as_revoked() {
    let fake = FakeHurdlr::in_memory();
    let hurdlr = client(&fake);
    let token = logged_in(&fake, &hurdlr).await;
    for code in ["EXPIRED_TOKEN", "INVALID_TOKEN"] {
        let body = format!(r#"{{"result":"FAILURE","error":[{{"type":"{code}"}}]}}"#);
        fake.fault_next(Fault::answer(400, body));
        hurdlr.revoke(&token).await.unwrap();
    }
    fake.fault_next(Fault::answer(200, r#"{"result":"SUCCESS"}"#));
    hurdlr.revoke(&token).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_revocation_attempt_is_one_request() {
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let never = RetryPolicy::never();
    let hurdlr = builder.api_version(ApiVersion::V6).retry(never).build().unwrap();
    let token = hurdlr.partner_token().await.unwrap();
    fake.fault_next(Fault::status(500));
    let error = hurdlr.revoke(&token).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unavailable, 1));
    assert!(error.is_unanswered());
}

/// The `Authorization` headers that were sent.
type Seen = Arc<Mutex<Vec<HeaderValue>>>;

/// Hands requests on, after a look at them.
struct Looking {
    next: InMemoryHttpClient,
    seen: Seen,
}

impl<'c> AsyncHttpClient<'c> for Looking {
    type Error = InMemoryError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, InMemoryError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.seen.lock().unwrap().push(request.headers()[AUTHORIZATION].clone());
        self.next.call(request)
    }
}

#[tokio::test]
async fn clients_own_header_is_never_quoted() {
    let fake = FakeHurdlr::in_memory();
    let seen = Seen::default();
    let looking = Looking { next: fake.http_client(), seen: Arc::clone(&seen) };
    let hurdlr = support::of(&fake)
        .api_version(ApiVersion::V6)
        .retry(RetryPolicy::never())
        .http_client(looking)
        .build()
        .unwrap();
    hurdlr.partner_token().await.unwrap();
    let header = seen.lock().unwrap()[0].clone();
    assert!(header.is_sensitive());
    let header = header.to_str().unwrap();
    let basic = header.strip_prefix("Basic ").unwrap();

    let body = format!(r#"{{"error":"invalid_client","error_description":"got {header}"}}"#);
    fake.fault_next(Fault::answer(401, body));
    let error = hurdlr.partner_token().await.unwrap_err();
    assert_eq!(error.description(), Some("got Basic ***"));
    assert!(!support::everything_said(&error).contains(basic));
}

//! Secrets in the words of others are blotted out, and logs name users by hashes.
//!
//! That nothing shows a secret is the sweep of `tests/proof`.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hurdlr_oauth2::basic::BasicTokenResponse;
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, InMemoryError, InMemoryHttpClient};
use hurdlr_oauth2::{ApiVersion, Callback, Environment, HttpClient, Hurdlr, RetryPolicy, UserId};

use crate::logged::Log;
use crate::support::{self, RawServer, Reply};

/// Secrets of every letter, as a provider may quote them.
const OLD: &str =
    r#"{"access_token":"acc/ess+marker==","refresh_token":"ref/resh+\"marker==\u00e4"}"#;

#[tokio::test]
async fn secret_quoted_by_provider_is_blotted_out() {
    Log::of_thread();
    let quotes = [
        // As it is, with JSON's escapes where they must be.
        r#"the token ref/resh+\"marker==ä, acc/ess+marker== or the/secret+marker"#,
        // With the escapes that some servers add.
        r#"the token ref\/resh+\"marker==\u00e4, acc\/ess\u002bmarker== or the\/secret\u002bmarker"#,
        // As the form was sent.
        "refresh_token=ref%2Fresh%2B%22marker%3D%3D%C3%A4&client_secret=the%2Fsecret%2Bmarker",
    ];
    let mut replies = Vec::new();
    for quote in quotes {
        for body in [
            format!(r#"{{"error":"invalid_request","error_description":"{quote}"}}"#),
            format!(r#"{{"error":"{quote}"}}"#),
            format!(r#"{{"result":"FAILURE","error":"{quote}"}}"#),
            format!(r#"{{"result":"FAILURE","error":{{"type":"{quote}"}}}}"#),
            format!(r#"{{"error":[{{"type":"T","message":"{quote}"}},{{"param":"{quote}"}}]}}"#),
            // The secret lies across the end of what is kept.
            format!(
                r#"{{"error":"invalid_request","error_description":"{}{quote}"}}"#,
                "x".repeat(490)
            ),
        ] {
            replies.extend([200, 400, 429, 500].map(|status| Reply::answer(status, "", &body)));
        }
    }
    let server = RawServer::replying(replies.clone()).await;
    let hurdlr = Hurdlr::builder("app", "the/secret+marker".into())
        .environment(server.base_url().as_str())
        .retry(RetryPolicy::never())
        .build()
        .unwrap();
    let token = hurdlr.import(OLD).unwrap();
    for reply in replies {
        let error = hurdlr.refresh(&token).await.unwrap_err();
        let said = support::everything_said(&error);
        for piece in ["marker", "resh+", "resh%2B", "ess+m", "ref/", "acc/", "the/s"] {
            assert!(!said.contains(piece), "{reply:?}: {said}");
        }
        assert!(said.contains("***"), "{reply:?}: {said}");
    }
    assert!(!Log::of_thread().text().contains("marker"));
}

/// A provider may quote any field of the form that it refuses.
#[tokio::test(start_paused = true)]
async fn quoted_form_is_blotted_out() {
    let fake = FakeHurdlr::in_memory();
    let (builder, _) = support::in_memory(&fake);
    let retry = RetryPolicy::never();
    let hurdlr = builder.api_version(ApiVersion::V6).retry(retry).build().unwrap();
    let login = || async {
        let (url, pending) = hurdlr.begin_login().unwrap();
        (pending, fake.consent(&url, "ann").await.unwrap())
    };
    let (pending, callback) = login().await;
    let token = hurdlr.complete_login(pending, &callback).await.unwrap();
    let (pending, callback) = login().await;

    let quoted = Arc::new(Mutex::new(Vec::new()));
    let fields = ["code", "code_verifier", "refresh_token", "token", "userId"];
    let values = Arc::clone(&quoted);
    fake.fault_plan(move |request| {
        let sent: Vec<_> = fields.iter().filter_map(|name| request.field(name)).collect();
        let said = format!("refused: {}", sent.join(", "));
        values.lock().unwrap().extend(sent);
        let body = serde_json::json!({ "error": "invalid_request", "error_description": said });
        Some(Fault::answer(400, body.to_string()))
    });
    let bob = UserId::new("bob-marker").unwrap();
    let errors = [
        hurdlr.complete_login(pending, &callback).await.unwrap_err(),
        hurdlr.refresh(&token).await.unwrap_err(),
        hurdlr.client_credentials(&bob).await.unwrap_err(),
        hurdlr.revoke(&token).await.unwrap_err(),
    ];
    let quoted = quoted.lock().unwrap();
    assert_eq!(quoted.len(), fields.len(), "{quoted:?}");
    for error in errors {
        let said = support::everything_said(&error);
        assert!(said.contains("refused: ***"), "{said}");
        assert!(quoted.iter().all(|secret| !said.contains(secret)), "{said}");
    }
}

/// A log line with a value in it says which one it is.
#[test]
fn debug_shows_all_but_secrets() {
    let url = "http://user:marker@localhost:1/base?key=marker";
    let builder = || support::impatient("http://localhost:1/base");
    let hurdlr = builder().build().unwrap();
    let token = r#"{"access_token":"marker","refresh_token":"marker","scope":"write"}"#;
    let answer: BasicTokenResponse = serde_json::from_str(token).unwrap();
    for (shown, expected) in [
        (format!("{:?}", builder()), &["HurdlrBuilder", "\"app\"", "V4"][..]),
        (format!("{hurdlr:?}"), &["Hurdlr", "\"app\"", "V4", "http://localhost:1/base/"]),
        (format!("{:?}", hurdlr.realm()), &["app of v4 at http://localhost:1/base"]),
        (
            format!("{:?}", HttpClient::builder(&url.parse().unwrap())),
            &["HttpClientBuilder", "http://localhost:1"],
        ),
        (
            format!("{:?}", HttpClient::new(&url.parse().unwrap()).unwrap()),
            &["HttpClient", "http://localhost:1"],
        ),
        (format!("{:?}", Environment::Sandbox), &["Sandbox"]),
        (format!("{:?}", Environment::from(url)), &["BaseUrl(\"http://localhost:1/base\")"]),
        (format!("{:?}", Environment::from("user:marker")), &["BaseUrl([not a URL])"]),
        (format!("{:?}", hurdlr.begin_login().unwrap().1), &["PendingLogin", "began"]),
        (
            format!("{:?}", Callback::from_query("code=marker&state=marker")),
            &[r#"["code", "state"]"#],
        ),
        (format!("{:?}", hurdlr.import(token).unwrap()), &["Token", "\"write\""]),
        (format!("{answer:?}"), &["BasicTokenResponse", "Bearer", "\"write\""]),
    ] {
        assert!(expected.iter().all(|piece| shown.contains(piece)), "{shown}");
        assert!(!shown.contains("marker"), "{shown}");
    }
}

#[tokio::test]
async fn log_tells_users_apart_by_no_name() {
    Log::of_thread();
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).build().unwrap();
    let user = UserId::new("zoe.of.accounting@example.com").unwrap();
    hurdlr.client_credentials(&user).await.unwrap();
    // The provider names the user in its own words, in both of its styles.
    for error in [
        r#"{"error":"invalid_request","error_description":"zoe.of.accounting@example.com is gone"}"#,
        r#"{"result":"FAILURE","error":[{"type":"INVALID_VALUE","message":"no user zoe.of.accounting@example.com"}]}"#,
    ] {
        fake.fault_next(Fault::answer(400, error));
        let error = hurdlr.client_credentials(&user).await.unwrap_err();
        assert!(!support::everything_said(&error).contains("zoe.of"), "{error:?}");
    }
    let log = Log::of_thread().text();
    assert!(log.contains(&format!("user={user:?}")));
    assert!(!log.contains("zoe.of"));
}

#[tokio::test]
async fn a_log_names_grant_attempt_and_status() {
    Log::of_thread();
    let fake = FakeHurdlr::start().await.unwrap();
    let hurdlr = support::of(&fake).build().unwrap();
    hurdlr.client_credentials(&support::ann()).await.unwrap();
    let log = Log::of_thread().text();
    for text in ["token_request", "client_credentials", "attempt=1", "status=200", "token received"]
    {
        assert!(log.contains(text), "{text}");
    }
    assert!(log.contains("hyper_util::") || log.contains("reqwest::"));
}

/// Hands requests on, after a look at them.
struct Looking {
    next: InMemoryHttpClient,
    sensitive: Arc<Mutex<Vec<bool>>>,
}

impl<'c> AsyncHttpClient<'c> for Looking {
    type Error = InMemoryError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, InMemoryError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let bearer = request.headers().get("authorization");
        let marked = bearer.map(hurdlr_oauth2::http::HeaderValue::is_sensitive);
        self.sensitive.lock().unwrap().extend(marked);
        self.next.call(request)
    }
}

#[tokio::test]
async fn sent_authorization_header_is_marked_sensitive() {
    let fake = FakeHurdlr::in_memory();
    let sensitive = Arc::<Mutex<Vec<bool>>>::default();
    let hurdlr = support::of(&fake)
        .http_client(Looking { next: fake.http_client(), sensitive: Arc::clone(&sensitive) })
        .build()
        .unwrap();
    let token = hurdlr.client_credentials(&support::ann()).await.unwrap();
    hurdlr.refresh(&token).await.unwrap();
    assert_eq!(*sensitive.lock().unwrap(), [true]);
    assert!(token.authorization_header().is_sensitive());
}

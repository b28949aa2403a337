//! No secret is shown: not in logs, not in errors or their causes, not in `Debug`.
//!
//! Each test has a log at the finest level, of `tracing` and of `log` alike. The secrets are those
//! that really went over the wire.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hurdlr_oauth2::basic::BasicTokenResponse;
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{
    ErrorStyle, FakeHurdlr, Fault, InMemoryError, InMemoryHttpClient, RecordedRequest,
};
use hurdlr_oauth2::{Callback, Error, Hurdlr, HurdlrBuilder, RetryPolicy, Token, UserId};

use crate::logged::Log;
use crate::support::{self, RawServer, Reply};

/// A provider with a distinctive client secret, and all secrets that pass through it.
struct Watched {
    fake: FakeHurdlr,
    issued: Arc<Mutex<Vec<String>>>,
    /// Codes and states, which the person's browser carries.
    carried: Vec<String>,
    said: String,
}

const CLIENT_SECRET: &str = "client+secret/of=marker";
const USER: &str = "ann.marker@example.com";

impl Watched {
    async fn start(style: ErrorStyle) -> Self {
        Log::of_thread();
        let fake = FakeHurdlr::builder()
            .client("watched-client", CLIENT_SECRET.into())
            .error_style(style)
            .start()
            .await
            .unwrap();
        let issued = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&issued);
        // It changes nothing; it is where every issued token passes.
        fake.reshape(move |answer| {
            for name in ["access_token", "refresh_token"] {
                let token = answer[name].as_str().unwrap();
                seen.lock().unwrap().push(token.to_owned());
            }
        });
        Self { fake, issued, carried: Vec::new(), said: String::new() }
    }

    fn builder(&self) -> HurdlrBuilder {
        support::of(&self.fake)
            .retry(RetryPolicy::default().initial_backoff(Duration::ZERO))
            .request_timeout(Duration::from_secs(2))
    }

    fn hears(&mut self, what: &dyn std::fmt::Debug) {
        let _ = write!(self.said, "{what:?}\n{what:#?}\n");
    }

    fn hears_result(&mut self, result: &Result<Token, Error>) {
        match result {
            Ok(token) => self.hears(token),
            Err(error) => self.said.push_str(&support::everything_said(error)),
        }
    }

    async fn log_in(&mut self, hurdlr: &Hurdlr) -> Result<Token, Error> {
        let (url, pending) = hurdlr.begin_login().unwrap();
        let callback_url = self.fake.consent(&url, USER).await.unwrap();
        let callback = Callback::from(&callback_url);
        self.hears(&pending);
        self.hears(&callback);
        for (name, value) in callback_url.query_pairs() {
            assert!(["code", "state"].contains(&&*name));
            self.carried.push(value.into_owned());
        }
        self.carried.push(pending.to_secret().expose_secret().into());
        let result = hurdlr.complete_login(pending, callback).await;
        self.hears_result(&result);
        result
    }

    /// All three grants.
    async fn use_all_grants(&mut self, hurdlr: &Hurdlr, fault: Option<&Fault>) {
        let user = UserId::new(USER).unwrap();
        self.fake.clear_faults();
        let token = self.log_in(hurdlr).await.unwrap();
        if let Some(fault) = fault.cloned() {
            self.fake.fault_plan(move |_| Some(fault.clone()));
        }
        let result = hurdlr.refresh(&token).await;
        self.hears_result(&result);
        let result = hurdlr.client_credentials(&user).await;
        self.hears_result(&result);
        let _ = self.log_in(hurdlr).await;
    }

    /// Every secret that was issued, carried or sent, and each of its longer pieces.
    fn secrets(&self) -> BTreeSet<String> {
        let mut secrets = vec![CLIENT_SECRET.to_owned(), "client%2Bsecret".to_owned()];
        secrets.extend(self.issued.lock().unwrap().iter().cloned());
        secrets.extend(self.carried.iter().cloned());
        for request in self.fake.requests() {
            secrets.extend(sent_secrets(&request));
        }
        let pieces = |secret: String| {
            let longest = secret.len().min(16);
            [secret[..longest].to_owned(), secret[secret.len() - longest..].to_owned()]
        };
        secrets.into_iter().flat_map(pieces).collect()
    }

    fn assert_nothing_shown(&self) {
        self.assert_nothing_said();
        let log = Log::of_thread().text();
        assert!(!log.contains("marker"), "the log has a marker");
        for secret in self.secrets() {
            assert!(!log.contains(&secret), "the log has {secret}");
        }
    }

    fn assert_nothing_said(&self) {
        let secrets = self.secrets();
        assert!(secrets.len() > 10);
        assert!(!self.said.contains("marker"), "{}", self.said);
        for secret in secrets {
            assert!(!self.said.contains(&secret), "{}", self.said);
        }
    }
}

fn sent_secrets(request: &RecordedRequest) -> Vec<String> {
    ["client_secret", "code", "code_verifier", "refresh_token"]
        .into_iter()
        .filter_map(|name| request.field(name))
        .chain(
            request
                .headers()
                .get("authorization")
                .map(|value| value.to_str().unwrap().replace("Bearer ", "")),
        )
        .collect()
}

#[tokio::test]
async fn a_success_shows_no_secret() {
    let mut watched = Watched::start(ErrorStyle::Envelope).await;
    watched.hears(&watched.builder());
    let hurdlr = watched.builder().build().unwrap();
    watched.hears(&hurdlr);
    watched.use_all_grants(&hurdlr, None).await;
    watched.assert_nothing_shown();
}

#[tokio::test]
async fn no_failure_shows_a_secret() {
    let mut watched = Watched::start(ErrorStyle::Rfc6749).await;
    let hurdlr = watched.builder().retry(RetryPolicy::never()).build().unwrap();
    let elsewhere = "http://127.0.0.1:1/?marker";
    let error = |body: &str| Fault::answer(400, body);
    for fault in [
        Fault::Refuse,
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Truncated,
        Fault::DelayAfter(Duration::from_secs(60)),
        Fault::Html { status: 502 },
        Fault::answer_after(200, r#"{"access_token":["marker"]}"#),
        Fault::answer_after(200, r#"{"access_token":"mar marker"}"#),
        Fault::answer_after(200, r#"{"refresh_token":"marker","token_type":"mac"}"#),
        Fault::answer_after(200, r#"{"refresh_token":"marker","access_token":"marke"#),
        Fault::answer(500, "marker"),
        Fault::answer(200, "<p>marker</p>"),
        Fault::redirect(307, elsewhere),
        Fault::rate_limited(),
        Fault::rate_limited_for(Duration::from_secs(3_600)),
        error(r#"{"error":"invalid_grant"}"#),
        error(r#"{"error":"EXPIRED_TOKEN","result":"FAILURE"}"#),
        error(r#"{"error":"invalid_client","access_token":"marker"}"#),
    ] {
        watched.said.clear();
        watched.use_all_grants(&hurdlr, Some(&fault)).await;
        assert!(watched.said.contains("Error {"), "{fault:?}");
        watched.assert_nothing_said();
    }
    watched.assert_nothing_shown();
}

#[tokio::test]
async fn a_refused_secret_is_not_shown() {
    for style in [ErrorStyle::Envelope, ErrorStyle::Rfc6749] {
        let mut watched = Watched::start(style).await;
        let hurdlr = watched.builder().build().unwrap();
        let token = watched.log_in(&hurdlr).await.unwrap();
        watched.fake.revoke_everything(USER);
        let result = hurdlr.refresh(&token).await;
        assert!(result.as_ref().unwrap_err().needs_login());
        watched.hears_result(&result);

        let wrong = Hurdlr::builder("watched-client", "wrong-marker-secret".into())
            .environment(watched.fake.base_url())
            .build()
            .unwrap();
        let result = wrong.client_credentials(&support::ann()).await;
        watched.hears_result(&result);
        watched.assert_nothing_shown();
    }
}

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

#[tokio::test]
async fn log_tells_users_apart_by_no_name() {
    let watched = Watched::start(ErrorStyle::Envelope).await;
    let hurdlr = watched.builder().build().unwrap();
    let user = UserId::new("zoe.of.accounting@example.com").unwrap();
    hurdlr.client_credentials(&user).await.unwrap();
    // The provider names the user in its own words, in both of its styles.
    for error in [
        r#"{"error":"invalid_request","error_description":"zoe.of.accounting@example.com is gone"}"#,
        r#"{"result":"FAILURE","error":[{"type":"INVALID_VALUE","message":"no user zoe.of.accounting@example.com"}]}"#,
    ] {
        watched.fake.fault_next(Fault::answer(400, error));
        let error = hurdlr.client_credentials(&user).await.unwrap_err();
        assert!(!support::everything_said(&error).contains("zoe.of"), "{error:?}");
    }
    let log = Log::of_thread().text();
    assert!(log.contains(&format!("user={user:?}")));
    assert!(!log.contains("zoe.of"));
}

#[tokio::test]
async fn a_log_names_grant_attempt_and_status() {
    // That the other tests of this file look at a log which has something in it.
    let watched = Watched::start(ErrorStyle::Envelope).await;
    let hurdlr = watched.builder().build().unwrap();
    hurdlr.client_credentials(&support::ann()).await.unwrap();
    let log = Log::of_thread().text();
    for text in ["token_request", "client_credentials", "attempt=1", "status=200", "token received"]
    {
        assert!(log.contains(text), "{text}");
    }
    assert!(log.contains("hyper_util::") || log.contains("reqwest::"));
}

#[tokio::test]
async fn answers_and_ids_show_no_secret() {
    let answer: BasicTokenResponse =
        serde_json::from_str(include_str!("../fixtures/v4_token.json")).unwrap();
    let shown = format!("{answer:?} {answer:#?} {:?}", Some(&answer));
    assert!(!shown.contains("00f6b2b6") && !shown.contains("7369c0ee"), "{shown}");
    let shown = format!("{:?}", UserId::new(USER).unwrap());
    assert!(shown.starts_with("user#") && !shown.contains("marker"));
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

/// `reqwest` would write every byte to the log.
#[cfg(feature = "middleware")]
#[tokio::test]
async fn verbose_client_logs_no_token() {
    use hurdlr_oauth2::TokenManager;
    use hurdlr_oauth2::store::MemoryStore;

    let watched = Watched::start(ErrorStyle::Envelope).await;
    let hurdlr =
        watched.builder().reqwest(|builder| builder.connection_verbose(true)).build().unwrap();
    let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build().unwrap();
    let user = manager.enterprise_user(&UserId::new(USER).unwrap());
    let api = user.middleware().client(|builder| builder.connection_verbose(true)).unwrap();
    let answer = api.build().get(watched.fake.resource_url()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let token = user.token().await.unwrap();
    let log = Log::of_thread().text();
    assert!(!log.contains(token.access_token().expose_secret()));
    assert!(!log.contains("client%2Bsecret"));
}

//! Whatever bytes come back, a call ends in a token or in an error, and never in a panic.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hurdlr_oauth2::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::{Error, ErrorKind, Hurdlr, RetryPolicy, Token};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::support::{self, RawServer, Reply};

/// Answers every request alike.
struct Always(HttpResponse);

impl<'c> AsyncHttpClient<'c> for Always {
    type Error = Infallible;
    type Future = Ready<Result<HttpResponse, Infallible>>;

    fn call(&'c self, _: HttpRequest) -> Self::Future {
        ready(Ok(self.0.clone()))
    }
}

fn response(status: u16, headers: HeaderMap, body: Vec<u8>) -> HttpResponse {
    let mut response = HttpResponse::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = headers;
    response
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Sends all three grants, and judges what each came to.
fn assert_sound(response: &HttpResponse) {
    runtime().block_on(async {
        let hurdlr = Hurdlr::builder("app", "app-secret".into())
            .environment("https://api.example.com")
            .authorize_url("https://connect.example.com/authorize")
            .redirect_uri(support::REDIRECT_URI)
            .clock(ManualClock::at(SystemTime::now()))
            .http_client(Always(response.clone()))
            .build()
            .unwrap();
        let result = hurdlr.client_credentials(&support::ann()).await;
        assert_one_of_both(&result, response);
        let old = r#"{"access_token":"old-access","refresh_token":"old-refresh"}"#;
        let result = hurdlr.refresh(&hurdlr.import(old).unwrap()).await;
        assert_one_of_both(&result, response);
        let (_, pending) = hurdlr.begin_login().unwrap();
        let state = pending.state().expose_secret().to_owned();
        let callback = vec![("code", "c"), ("state", state.as_str())];
        let result = hurdlr.complete_login(pending, callback).await;
        assert_one_of_both(&result, response);
    });
}

fn assert_one_of_both(result: &Result<Token, Error>, response: &HttpResponse) {
    match result {
        Ok(token) => {
            assert!(response.status().is_success());
            let access_token = token.access_token().expose_secret();
            assert!(!access_token.is_empty());
            assert!(access_token.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(token.age() <= token.expires_in().unwrap_or_default());
            let _ = (format!("{token:?}"), token.authorization_header());
            assert!(token.scopes().count() <= response.body().len());
        }
        Err(error) => {
            assert_eq!(error.status(), Some(response.status()));
            assert!((1..=4).contains(&error.attempts()));
            let kind = error.kind();
            assert!(!matches!(kind, ErrorKind::Config | ErrorKind::InvalidCallback), "{error:?}");
            assert!(error.description().is_none_or(|text| text.len() <= 515));
            assert!(error.code().is_none_or(|text| text.len() <= 67));
            let said = support::everything_said(error);
            assert!(said.len() < 20_000, "{said}");
            // One line, so that nobody forges another one in a log.
            assert!(!error.to_string().chars().any(char::is_control), "{said}");
        }
    }
}

fn status() -> impl Strategy<Value = u16> {
    prop_oneof![Just(200), Just(201), Just(400), Just(401), Just(429), Just(503), 200..600_u16]
}

/// Fields that a token or an error is made of, with values right and wrong.
fn fields() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("access_token"),
        Just("refresh_token"),
        Just("token_type"),
        Just("expires_in"),
        Just("created_at"),
        Just("scope"),
        Just("error"),
        Just("error_description"),
        Just("result"),
        Just("oAuth"),
    ];
    let value = prop_oneof![
        r#""[ -!#-\[\]-~]{0,40}""#,
        Just(r#""Bearer""#.to_owned()),
        Just(r#""invalid_grant""#.to_owned()),
        Just(r#"[{"type":"EXPIRED_TOKEN","message":"a\nb"}]"#.to_owned()),
        "-?[0-9]{1,22}",
        "-?[0-9]{1,3}e[0-9]{1,3}",
        Just("null".to_owned()),
        Just("[[[{}]]]".to_owned()),
        Just(r#""\ud800""#.to_owned()),
    ];
    proptest::collection::vec((name, value), 0..7).prop_map(|fields| {
        let fields: Vec<_> =
            fields.into_iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        format!("{{{}}}", fields.join(","))
    })
}

/// `Date`, `Retry-After` and their kin, with values right and wrong.
fn headers() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        Just("date"),
        Just("retry-after"),
        Just("content-type"),
        Just("content-length"),
        Just("location"),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[0-9]{1,25}".prop_map(String::into_bytes),
        "-?[0-9]{1,3}(\\.[0-9])?".prop_map(String::into_bytes),
        "(Mon|Sun|Thu), [0-9]{2} (Jan|Feb|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
            .prop_map(String::into_bytes),
    ];
    proptest::collection::vec((name, value), 0..6).prop_map(|headers| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(HeaderName::from_static(name), value);
            }
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_give_token_or_error(
        status in status(),
        body in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        assert_sound(&response(status, HeaderMap::new(), body));
    }

    #[test]
    fn arbitrary_fields_give_token_or_error(status in status(), body in fields()) {
        assert_sound(&response(status, HeaderMap::new(), body.into_bytes()));
    }

    #[test]
    fn damaged_token_gives_token_or_error(
        at in 0..308_usize,
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut body = include_bytes!("../fixtures/v4_token.json").to_vec();
        let at = at.min(body.len() - 1);
        body[at] = byte;
        if cut {
            body.truncate(at);
        }
        assert_sound(&response(200, HeaderMap::new(), body));
    }

    #[test]
    fn arbitrary_dates_give_token_or_error(
        status in status(),
        headers in headers(),
        body in fields(),
    ) {
        assert_sound(&response(status, headers.clone(), body.into_bytes()));
        let token = include_bytes!("../fixtures/v4_token.json");
        assert_sound(&response(200, headers, token.to_vec()));
    }
}

/// Real sockets are slow: fewer cases, and one server and one client for all of them.
#[test]
fn arbitrary_socket_bytes_give_token_or_error() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let next = Arc::new(Mutex::new(Vec::new()));
    let replies: Arc<Mutex<Vec<u8>>> = Arc::clone(&next);
    let server = runtime
        .block_on(RawServer::answering(move || Reply::Bytes(replies.lock().unwrap().clone())));
    let hurdlr =
        support::impatient(&server.base_url()).retry(RetryPolicy::never()).build().unwrap();
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200)).prop_map(
            |(chunked, rest)| {
                let coding = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
                let mut bytes = format!("HTTP/1.1 200 OK\r\n{coding}").into_bytes();
                bytes.extend(rest);
                bytes
            }
        ),
    ];
    proptest!(ProptestConfig::with_cases(200), |(bytes in bytes)| {
        *next.lock().unwrap() = bytes;
        let error = runtime.block_on(hurdlr.client_credentials(&support::ann()));
        let error = error.expect_err("random bytes are no token");
        prop_assert_eq!(error.attempts(), 1);
    });
}

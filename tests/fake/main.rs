//! What `FakeHurdlr` promises to the tests that stand on it.

// The functions that tests share panic as tests do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    error::Error as _,
    io,
    time::{Duration, SystemTime},
};

use base64::Engine as _;
use http::{HeaderMap, StatusCode, header};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{
    BodyEncoding, ErrorStyle, FakeHurdlr, Fault, Gate, InMemoryError, ManualClock, Outcome,
    Rotation,
};
use hurdlr_oauth2::{
    Environment, ErrorKind, Hurdlr, Partner, RetryPolicy, Token, TokenManager, UserId,
};
use oauth2::{AsyncHttpClient, HttpRequest, PkceCodeChallenge, PkceCodeVerifier};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use url::Url;

const V4: &str = "rest/v4/auth/token";
const V5: &str = "rest/v5/auth/token";
const CALLBACK: &str = "https://app.example/callback?from=hurdlr";

/// A status, its headers and its body, whichever way it came.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn get(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned()
    }

    fn header(&self, name: header::HeaderName) -> &str {
        self.headers[name].to_str().unwrap()
    }

    /// The envelope's `type` and `param`.
    fn refusal(&self) -> (StatusCode, String, Option<String>) {
        let body = self.json();
        assert_eq!(body["result"], "FAILURE");
        assert_eq!(body["data"], Value::Null);
        let error = &body["error"][0];
        assert!(error["message"].is_string());
        (
            self.status,
            error["type"].as_str().unwrap().to_owned(),
            error["param"].as_str().map(str::to_owned),
        )
    }
}

fn refusal(status: u16, kind: &str, param: &str) -> (StatusCode, String, Option<String>) {
    let param = Some(param.to_owned()).filter(|param| !param.is_empty());
    (StatusCode::from_u16(status).unwrap(), kind.to_owned(), param)
}

fn encode(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn form(fake: &FakeHurdlr, path: &str, fields: &[(&str, &str)]) -> HttpRequest {
    http::Request::post(fake.base_url().join(path).unwrap().as_str())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(encode(fields).into_bytes())
        .unwrap()
}

async fn call(fake: &FakeHurdlr, request: HttpRequest) -> Result<Answer, InMemoryError> {
    let (parts, body) = fake.http_client().call(request).await?.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// In memory, with the client's own credentials.
async fn send(fake: &FakeHurdlr, fields: &[(&str, &str)]) -> Result<Answer, InMemoryError> {
    send_to(fake, V4, fields).await
}

async fn send_to(
    fake: &FakeHurdlr,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<Answer, InMemoryError> {
    let secret = fake.client_secret();
    let mut all = vec![("client_id", fake.client_id()), ("client_secret", secret.expose_secret())];
    all.extend_from_slice(fields);
    call(fake, form(fake, path, &all)).await
}

async fn post(fake: &FakeHurdlr, fields: &[(&str, &str)]) -> Answer {
    send(fake, fields).await.expect("an answer")
}

async fn grant(fake: &FakeHurdlr, user: &str) -> Answer {
    post(fake, &[("grant_type", "client_credentials"), ("userId", user)]).await
}

async fn refresh(fake: &FakeHurdlr, token: &str) -> Answer {
    post(fake, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
}

async fn redeem(fake: &FakeHurdlr, code: &str, more: &[(&str, &str)]) -> Answer {
    post(fake, &[&[("grant_type", "authorization_code"), ("code", code)], more].concat()).await
}

async fn resource(fake: &FakeHurdlr, token: &str) -> Answer {
    let request = http::Request::get(fake.resource_url().as_str())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Vec::new())
        .unwrap();
    call(fake, request).await.unwrap()
}

fn login(fake: &FakeHurdlr, more: &[(&str, &str)]) -> Url {
    let mut url = fake.authorize_url();
    url.query_pairs_mut()
        .extend_pairs([
            ("response_type", "code"),
            ("client_id", fake.client_id()),
            ("redirect_uri", CALLBACK),
            ("state", "a state & more"),
        ])
        .extend_pairs(more);
    url
}

fn query(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

async fn code(fake: &FakeHurdlr, user: &str, more: &[(&str, &str)]) -> String {
    let back = fake.consent(&login(fake, more), user).await.unwrap();
    query(&back, "code").expect("a code")
}

/// A client that does nothing of its own: no redirects, no proxy of this machine.
fn socket_client() -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

async fn send_by_socket(
    client: &reqwest::Client,
    fake: &FakeHurdlr,
    user: &str,
) -> Result<reqwest::Response, reqwest::Error> {
    let secret = fake.client_secret();
    let fields = encode(&[
        ("client_id", fake.client_id()),
        ("client_secret", secret.expose_secret()),
        ("grant_type", "client_credentials"),
        ("userId", user),
    ]);
    client
        .post(fake.base_url().join(V4).unwrap())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(fields)
        .send()
        .await
}

async fn whole(response: reqwest::Response) -> Result<Answer, reqwest::Error> {
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

// What a token answer looks like.

#[tokio::test]
async fn token_answers_are_the_reference_examples_byte_for_byte_but_for_the_values() {
    let fixture = include_str!("../fixtures/v4_token.json");
    let example: Value = serde_json::from_str(fixture).unwrap();
    let fake = FakeHurdlr::in_memory();
    for path in [V4, V5] {
        let secret = fake.client_secret();
        let fields = [
            ("client_id", fake.client_id()),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "client_credentials"),
            ("userId", "ann"),
        ];
        let answer = call(&fake, form(&fake, path, &fields)).await.unwrap();
        assert_eq!(answer.status, 200);
        let token = answer.json();
        let expected = fixture
            .replace(example["access_token"].as_str().unwrap(), &answer.get("access_token"))
            .replace(example["refresh_token"].as_str().unwrap(), &answer.get("refresh_token"))
            .replace(&example["created_at"].to_string(), &token["created_at"].to_string());
        assert_eq!(answer.text(), expected);
        for name in ["access_token", "refresh_token"] {
            let value = answer.get(name);
            let (left, right) = value.split_once('.').unwrap();
            assert_eq!((left.len(), right.len()), (64, 32));
            assert!(value.bytes().all(|b| b == b'.' || b.is_ascii_hexdigit()));
        }
    }
}

#[tokio::test]
async fn refusals_are_laid_out_as_the_reference_prints_the_envelope() {
    let fake = FakeHurdlr::in_memory();
    let answer = post(&fake, &[("grant_type", "client_credentials")]).await;
    let expected = r#"{
    "result": "FAILURE",
    "data": null,
    "error": [
        {
            "type": "REQUIRED",
            "message": "userId is required",
            "param": "userId"
        }
    ]
}
"#;
    assert_eq!(answer.text(), expected);
}

#[tokio::test]
async fn no_answer_may_be_cached() {
    let fake = FakeHurdlr::in_memory();
    for answer in [grant(&fake, "ann").await, grant(&fake, "").await] {
        assert_eq!(answer.header(header::CACHE_CONTROL), "no-store");
        assert_eq!(answer.header(header::CONTENT_TYPE), "application/json;charset=UTF-8");
    }
}

#[tokio::test]
async fn the_date_is_the_providers_own_and_follows_its_manual_clock() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = socket_client();
    let before = SystemTime::now();
    fake.advance_clock(Duration::from_hours(24 * 365));
    let socket = whole(send_by_socket(&client, &fake, "ann").await.unwrap()).await.unwrap();
    for answer in [socket, grant(&fake, "ann").await] {
        assert_eq!(answer.headers.get_all(header::DATE).iter().count(), 1);
        let date = httpdate::parse_http_date(answer.header(header::DATE)).unwrap();
        let ahead = date.duration_since(before).unwrap();
        // A second less: the header has no fractions.
        assert!(ahead + seconds(1) >= Duration::from_hours(24 * 365));
        let created_at = answer.json()["created_at"].as_u64().unwrap();
        let date = date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(date.abs_diff(created_at) <= 1);
    }
}

#[tokio::test]
async fn the_clock_can_be_turned_to_its_end_and_still_prints_a_date() {
    let fake = FakeHurdlr::in_memory();
    fake.advance_clock(Duration::MAX);
    fake.advance_clock(Duration::MAX);
    assert_eq!(grant(&fake, "ann").await.status, 200);
}

#[tokio::test]
async fn reshaping_changes_what_is_sent_until_it_is_cleared() {
    let fake = FakeHurdlr::in_memory();
    fake.reshape(|token| {
        token.remove("refresh_token");
        token.insert("expires_in".into(), json!(0));
    });
    let token = grant(&fake, "ann").await.json();
    assert_eq!(token["expires_in"], 0);
    assert!(token.get("refresh_token").is_none());
    assert!(fake.is_alive(token["access_token"].as_str().unwrap()));
    fake.clear_reshape();
    assert_eq!(grant(&fake, "ann").await.json()["expires_in"], 7_776_000);
}

// What is validated.

#[tokio::test]
async fn every_missing_or_empty_field_is_required_by_name() {
    let fake = FakeHurdlr::in_memory();
    let secret = fake.client_secret();
    let (id, secret) = (fake.client_id(), secret.expose_secret());
    let client = [("client_id", id), ("client_secret", secret)];
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("client_secret", secret), ("grant_type", "refresh_token")], "client_id"),
        (&[("client_id", id), ("grant_type", "refresh_token")], "client_secret"),
        (&client, "grant_type"),
        (&[client[0], client[1], ("grant_type", "client_credentials")], "userId"),
        (&[client[0], client[1], ("grant_type", "refresh_token")], "refresh_token"),
        (&[client[0], client[1], ("grant_type", "authorization_code")], "code"),
    ];
    for (fields, missing) in cases {
        let empty = [fields, &[(missing, "")]].concat();
        for fields in [fields, &empty] {
            let answer = call(&fake, form(&fake, V4, fields)).await.unwrap();
            assert_eq!(answer.refusal(), refusal(400, "REQUIRED", missing));
        }
    }
    assert_eq!(fake.count().outcome(Outcome::InvalidRequest), 12);

    fake.set_error_style(ErrorStyle::Rfc6749);
    let answer = grant(&fake, "").await;
    assert_eq!((answer.status.as_u16(), answer.get("error").as_str()), (400, "invalid_request"));
}

#[tokio::test]
async fn a_wrong_client_or_secret_is_refused_with_401() {
    let fake = FakeHurdlr::in_memory();
    let secret = fake.client_secret();
    let cases = [
        ([("client_id", "else"), ("client_secret", secret.expose_secret())], "client_id"),
        ([("client_id", fake.client_id()), ("client_secret", "wrong")], "client_secret"),
    ];
    for (client, param) in cases {
        let fields =
            [&client[..], &[("grant_type", "client_credentials"), ("userId", "a")]].concat();
        let answer = call(&fake, form(&fake, V4, &fields)).await.unwrap();
        assert_eq!(answer.refusal(), refusal(401, "INVALID_VALUE", param));
        fake.set_error_style(ErrorStyle::Rfc6749);
        let answer = call(&fake, form(&fake, V4, &fields)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.get("error").as_str()), (401, "invalid_client"));
        assert!(answer.json()["error_description"].is_string());
        fake.set_error_style(ErrorStyle::Envelope);
    }
    assert_eq!(fake.count().outcome(Outcome::InvalidClient), 4);
    assert_eq!(fake.tokens_alive("a"), 0);
}

#[tokio::test]
async fn an_unknown_grant_type_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "password"), ("userId", "ann")];
    assert_eq!(post(&fake, &fields).await.refusal(), refusal(400, "INVALID_VALUE", "grant_type"));
    fake.set_error_style(ErrorStyle::Rfc6749);
    assert_eq!(post(&fake, &fields).await.get("error"), "unsupported_grant_type");
    assert_eq!(fake.count().outcome(Outcome::UnsupportedGrantType), 2);
}

#[tokio::test]
async fn a_repeated_field_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "client_credentials"), ("userId", "ann"), ("userId", "bob")];
    assert_eq!(post(&fake, &fields).await.refusal(), refusal(400, "BAD_REQUEST", "userId"));
}

#[tokio::test]
async fn only_a_form_by_post_without_a_query_is_a_token_request() {
    let fake = FakeHurdlr::in_memory();
    let good = || {
        let secret = fake.client_secret();
        let fields = [
            ("client_id", fake.client_id()),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "client_credentials"),
            ("userId", "ann"),
        ];
        form(&fake, V4, &fields)
    };
    let mut charset = good();
    let media_type = "Application/X-WWW-Form-URLEncoded; charset=UTF-8".parse().unwrap();
    charset.headers_mut().insert(header::CONTENT_TYPE, media_type);
    assert_eq!(call(&fake, charset).await.unwrap().status, 200);

    let mut wrong = good();
    *wrong.method_mut() = http::Method::PUT;
    let answer = call(&fake, wrong).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header(header::ALLOW)), (405, "POST"));

    let mut wrong = good();
    wrong.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    assert_eq!(call(&fake, wrong).await.unwrap().refusal(), refusal(400, "BAD_REQUEST", ""));

    let mut wrong = good();
    *wrong.uri_mut() = format!("{}{V4}?userId=ann", fake.base_url()).parse().unwrap();
    assert_eq!(call(&fake, wrong).await.unwrap().refusal(), refusal(400, "BAD_REQUEST", ""));

    let mut wrong = good();
    wrong.body_mut().extend_from_slice(&vec![b'x'; 20_000]);
    assert_eq!(call(&fake, wrong).await.unwrap().status, 413);

    let elsewhere = form(&fake, "rest/v3/auth/token", &[]);
    assert_eq!(call(&fake, elsewhere).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_code_becomes_tokens_of_the_user_who_consented() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("redirect_uri", CALLBACK)]).await;
    assert_eq!(answer.status, 200);
    let served = resource(&fake, &answer.get("access_token")).await;
    assert_eq!(served.json()["user"], "ann");
    assert_eq!(fake.requests()[0].user(), Some("ann"));
}

#[tokio::test]
async fn a_code_used_twice_is_refused_and_kills_what_the_first_use_got() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let first = redeem(&fake, &code, &[]).await;
    let renewed = refresh(&fake, &first.get("refresh_token")).await;
    let other = grant(&fake, "ann").await;
    assert_eq!(fake.tokens_alive("ann"), 3);

    let second = redeem(&fake, &code, &[]).await;
    assert_eq!(second.refusal(), refusal(400, "INVALID_VALUE", "code"));
    for dead in [&first, &renewed] {
        assert!(!fake.is_alive(&dead.get("access_token")));
        assert!(!fake.refresh_is_alive(&dead.get("refresh_token")));
    }
    assert!(fake.is_alive(&other.get("access_token")), "another grant is another family");

    fake.set_error_style(ErrorStyle::Rfc6749);
    assert_eq!(redeem(&fake, &code, &[]).await.get("error"), "invalid_grant");
    assert_eq!(fake.count().outcome(Outcome::InvalidGrant), 2);
}

#[tokio::test]
async fn a_code_lives_ten_minutes_by_the_providers_clock() {
    let fake = FakeHurdlr::in_memory();
    let (young, old) = (code(&fake, "ann", &[]).await, code(&fake, "ann", &[]).await);
    fake.advance_clock(seconds(590));
    assert_eq!(redeem(&fake, &young, &[]).await.status, 200);
    fake.advance_clock(seconds(11));
    assert_eq!(redeem(&fake, &old, &[]).await.refusal(), refusal(400, "INVALID_VALUE", "code"));
}

#[tokio::test]
async fn a_code_is_refused_with_another_redirect_uri_and_stays_good() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("redirect_uri", "https://app.example/callback")]).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "redirect_uri"));
    assert_eq!(redeem(&fake, &code, &[("redirect_uri", CALLBACK)]).await.status, 200);
}

#[tokio::test]
async fn a_code_with_a_challenge_takes_the_verifier_that_fits_and_no_other() {
    let fake = FakeHurdlr::in_memory();
    // The example of RFC 7636 appendix B.
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let pkce = [("code_challenge", challenge), ("code_challenge_method", "S256")];
    let code = code(&fake, "ann", &pkce).await;

    let missing = redeem(&fake, &code, &[]).await;
    assert_eq!(missing.refusal(), refusal(400, "REQUIRED", "code_verifier"));
    let other = "x".repeat(43);
    for wrong in [other.as_str(), "short", challenge] {
        let answer = redeem(&fake, &code, &[("code_verifier", wrong)]).await;
        assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "code_verifier"));
    }
    assert_eq!(redeem(&fake, &code, &[("code_verifier", verifier)]).await.status, 200);
}

#[tokio::test]
async fn a_verifier_without_a_challenge_is_refused() {
    let fake = FakeHurdlr::in_memory();
    let code = code(&fake, "ann", &[]).await;
    let answer = redeem(&fake, &code, &[("code_verifier", &"x".repeat(43))]).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_VALUE", "code_verifier"));
}

#[tokio::test]
async fn pkce_agrees_with_the_oauth2_crate() {
    let fake = FakeHurdlr::in_memory();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([7; 96]);
    let verifier = PkceCodeVerifier::new(bytes);
    let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier);
    let pkce = [
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", challenge.method().as_str()),
    ];
    let code = code(&fake, "ann", &pkce).await;
    assert_eq!(redeem(&fake, &code, &[("code_verifier", verifier.secret())]).await.status, 200);
}

#[tokio::test]
async fn an_unknown_or_expired_refresh_token_is_told_apart() {
    let fake = FakeHurdlr::builder().refresh_token_life(seconds(100)).in_memory();
    let token = grant(&fake, "ann").await.get("refresh_token");
    let unknown = refresh(&fake, &token.to_uppercase()).await;
    assert_eq!(unknown.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    fake.advance_clock(seconds(100));
    assert!(!fake.refresh_is_alive(&token));
    let expired = refresh(&fake, &token).await;
    assert_eq!(expired.refusal(), refusal(400, "EXPIRED_TOKEN", "refresh_token"));
    fake.set_error_style(ErrorStyle::Rfc6749);
    let expired = refresh(&fake, &token).await;
    assert_eq!((expired.status.as_u16(), expired.get("error").as_str()), (400, "invalid_grant"));
}

#[tokio::test]
async fn a_bearer_header_on_a_refresh_is_looked_at_only_when_asked_to() {
    for (checked, status) in [(false, 200), (true, 401)] {
        let fake = FakeHurdlr::builder().check_bearer(checked).token_life(seconds(10)).in_memory();
        let token = grant(&fake, "ann").await;
        let secret = fake.client_secret();
        let refresh_token = token.get("refresh_token");
        let request = |bearer: &str| {
            let fields = [
                ("client_id", fake.client_id()),
                ("client_secret", secret.expose_secret()),
                ("grant_type", "refresh_token"),
                ("refresh_token", &refresh_token),
            ];
            let mut request = form(&fake, V4, &fields);
            let bearer = format!("Bearer {bearer}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
            request
        };
        fake.advance_clock(seconds(11));
        let answer = call(&fake, request(&token.get("access_token"))).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
        if checked {
            assert_eq!(answer.refusal(), refusal(401, "EXPIRED_TOKEN", "access_token"));
            assert_eq!(fake.count().outcome(Outcome::BearerRefused), 1);
            let live = grant(&fake, "ann").await.get("access_token");
            assert_eq!(call(&fake, request(&live)).await.unwrap().status, 200);
        }
    }
}

// What a refresh does to the old refresh token.

#[tokio::test]
async fn without_rotation_the_refresh_token_stays() {
    let fake = FakeHurdlr::builder().rotation(Rotation::None).in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(first.get("refresh_token"), second.get("refresh_token"));
    assert_ne!(first.get("access_token"), second.get("access_token"));
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 200);
    assert_eq!(fake.tokens_alive("ann"), 3);
}

#[tokio::test]
async fn rotation_kills_the_old_refresh_token_at_once_and_nothing_else() {
    let fake = FakeHurdlr::in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    let again = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(again.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert!(fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&second.get("access_token")));
    assert!(fake.refresh_is_alive(&second.get("refresh_token")));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn a_grace_window_repeats_the_very_same_answer_and_then_closes() {
    let fake = FakeHurdlr::builder().rotation(Rotation::Grace(seconds(30))).in_memory();
    let first = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    fake.advance_clock(seconds(29));
    let repeated = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(second.text(), repeated.text());
    assert_eq!(fake.tokens_alive("ann"), 2);
    fake.advance_clock(seconds(1));
    let late = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(late.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn a_reused_refresh_token_kills_its_whole_family_and_no_other() {
    let fake = FakeHurdlr::builder().rotation(Rotation::KillFamily).in_memory();
    let first = grant(&fake, "ann").await;
    let other = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(fake.tokens_alive("ann"), 3);
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 400);
    for dead in [&first, &second] {
        let answer = resource(&fake, &dead.get("access_token")).await;
        assert_eq!(answer.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
        assert!(!fake.refresh_is_alive(&dead.get("refresh_token")));
    }
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 400);
    assert!(fake.is_alive(&other.get("access_token")));
    assert!(fake.refresh_is_alive(&other.get("refresh_token")));
}

/// Most servers end the old access token at once.
#[tokio::test]
async fn rotation_can_end_the_old_access_token() {
    let fake = FakeHurdlr::builder().rotation(Rotation::KillAccess).in_memory();
    let first = grant(&fake, "ann").await;
    let other = grant(&fake, "ann").await;
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert!(!fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&second.get("access_token")));
    assert!(fake.is_alive(&other.get("access_token")));
    assert_eq!(refresh(&fake, &first.get("refresh_token")).await.status, 400);
    assert!(fake.is_alive(&second.get("access_token")));
    assert_eq!(refresh(&fake, &second.get("refresh_token")).await.status, 200);
}

/// The docs of `Rotation::KillAccess` tell this to those who send tokens by hand.
#[tokio::test]
async fn call_by_hand_outlives_killed_token() {
    let hour = seconds(3_600);
    let fake = FakeHurdlr::builder().rotation(Rotation::KillAccess).token_life(hour).in_memory();
    let clock = ManualClock::new();
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .http_client(fake.http_client())
        .clock(clock.clone())
        .build()
        .unwrap();
    let store = MemoryStore::with_clock(clock.clone());
    let manager = TokenManager::builder(hurdlr, store).build().unwrap();
    let id = UserId::new("ann").unwrap();
    let login = grant(&fake, "ann").await;
    manager.adopt(&id, manager.hurdlr().import(&login.body).unwrap()).await.unwrap();
    let ann = manager.user(&id);
    let mut events = ann.subscribe();
    fake.advance_clock(hour * 11 / 12);
    clock.advance(hour * 11 / 12);

    let due = ann.token().await.unwrap().into_shared();
    events.next().await;
    let call = async |token: &Token| resource(&fake, token.access_token().expose_secret()).await;
    assert_eq!(call(&due).await.status, 401);
    ann.report_unauthorized(&due);
    let newer = ann.token().await.unwrap().into_shared();
    assert_eq!(call(&newer).await.status, 200);
    assert_eq!(fake.count().grant("refresh_token"), 1);
}

#[tokio::test]
async fn wrong_credentials_can_have_a_token_code() {
    let fake = FakeHurdlr::builder().error_style(ErrorStyle::NoClientCode).in_memory();
    let wrong = [("client_id", fake.client_id()), ("client_secret", "wrong")];
    let answer = call(
        &fake,
        form(
            &fake,
            V4,
            &[&wrong[..], &[("grant_type", "client_credentials"), ("userId", "ann")]].concat(),
        ),
    )
    .await;
    assert_eq!(answer.unwrap().refusal(), refusal(401, "INVALID_TOKEN", ""));
    assert_eq!(fake.count().outcome(Outcome::InvalidClient), 1);
    let dead = refresh(&fake, "dead").await;
    assert_eq!(dead.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
}

#[tokio::test]
async fn unavailable_after_acting_is_bare() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::unavailable_after()).await {
        assert_eq!(answer.status, 503);
        assert!(!answer.headers.contains_key(header::RETRY_AFTER));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Issued), 2);
}

#[tokio::test]
async fn body_can_come_in_another_encoding() {
    let ways = Ways::open().await;
    for (encoding, start) in [
        (BodyEncoding::ByteOrderMark, &b"\xef\xbb\xbf{"[..]),
        (BodyEncoding::Utf16, b"\xff\xfe{\0"),
        (BodyEncoding::Latin1, b"{"),
        (BodyEncoding::Gzip, b"\x1f\x8b\x08"),
        (BodyEncoding::Deflate, b"\x78"),
    ] {
        for answer in ways.both(&Fault::Encoded(encoding)).await {
            assert!(answer.body.starts_with(start), "{encoding:?}");
            let coding = match encoding {
                BodyEncoding::Gzip => Some("gzip"),
                BodyEncoding::Deflate => Some("deflate"),
                _ => None,
            };
            let named = answer.headers.get(header::CONTENT_ENCODING);
            assert_eq!(named.map(|it| it.to_str().unwrap()), coding);
            if encoding == BodyEncoding::Latin1 {
                assert!(std::str::from_utf8(&answer.body).is_err());
            }
        }
        // And the crate's own clients read it.
        {
            let fake = &ways.fake;
            let builder = Hurdlr::builder(fake.client_id(), fake.client_secret())
                .environment(fake.base_url());
            let hurdlr = builder.retry(RetryPolicy::never()).build().unwrap();
            fake.fault_next(Fault::Encoded(encoding));
            let id = UserId::new("ann").unwrap();
            let token = hurdlr.client_credentials(&id).await.unwrap();
            assert!(fake.is_alive(token.access_token().expose_secret()), "{encoding:?}");
            fake.fault_next(Fault::Encoded(encoding));
            fake.set_error_style(ErrorStyle::Rfc6749);
            let dead = r#"{"access_token":"a","refresh_token":"dead"}"#;
            let error = hurdlr.refresh(&hurdlr.import(dead).unwrap()).await.unwrap_err();
            assert_eq!(error.code(), Some("invalid_grant"), "{encoding:?}");
        }
    }
}

#[tokio::test]
async fn token_is_made_without_a_provider() {
    let json = r#"{"access_token":"a","refresh_token":"r","expires_in":60,"scope":"read"}"#;
    let clock = ManualClock::new();
    let token = Token::from_json(json, clock.clone()).unwrap();
    assert_eq!(token.access_token().expose_secret(), "a");
    assert!(!token.is_expired());
    clock.advance(seconds(60));
    assert!(token.is_expired());
    let error = Token::from_json("{}", clock).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidResponse);
}

#[tokio::test]
async fn settings_can_be_changed_while_it_runs() {
    let fake = FakeHurdlr::in_memory();
    fake.set_rotation(Rotation::None);
    fake.set_token_life(seconds(60));
    let first = grant(&fake, "ann").await;
    assert_eq!(first.json()["expires_in"], 60);
    let second = refresh(&fake, &first.get("refresh_token")).await;
    assert_eq!(first.get("refresh_token"), second.get("refresh_token"));
    fake.set_rotation(Rotation::RotateAndKill);
    let third = refresh(&fake, &first.get("refresh_token")).await;
    assert_ne!(third.get("refresh_token"), first.get("refresh_token"));
}

#[tokio::test]
async fn an_administrator_revokes_all_of_one_user() {
    let fake = FakeHurdlr::in_memory();
    let (ann, bob) = (grant(&fake, "ann").await, grant(&fake, "bob").await);
    let pending = code(&fake, "ann", &[]).await;
    fake.revoke_everything("ann");
    assert_eq!((fake.tokens_alive("ann"), fake.tokens_alive("bob")), (0, 1));
    let answer = refresh(&fake, &ann.get("refresh_token")).await;
    assert_eq!(answer.refusal(), refusal(400, "INVALID_TOKEN", "refresh_token"));
    assert_eq!(redeem(&fake, &pending, &[]).await.status, 400);
    assert_eq!(refresh(&fake, &bob.get("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn memory_for_one_user_is_bounded_and_the_newest_tokens_stay() {
    let fake = FakeHurdlr::builder().record(false).in_memory();
    let first = grant(&fake, "ann").await;
    let mut token = grant(&fake, "ann").await;
    for _ in 0..300 {
        token = refresh(&fake, &token.get("refresh_token")).await;
    }
    assert_eq!(fake.tokens_alive("ann"), 256);
    assert!(!fake.is_alive(&first.get("access_token")));
    assert!(fake.is_alive(&token.get("access_token")));
}

// API v6: Basic, scopes, one hour, revocation.

const V6: &str = "v6/auth/token";

/// By the header that v6 takes, and with nothing of the client in the body.
async fn post_basic(fake: &FakeHurdlr, path: &str, fields: &[(&str, &str)]) -> Answer {
    let secret = fake.client_secret();
    let [id, secret] = [fake.client_id(), secret.expose_secret()]
        .map(|text| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>());
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("{id}:{secret}"));
    let mut request = form(fake, path, fields);
    let value = format!("Basic {basic}").parse().unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    call(fake, request).await.unwrap()
}

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
async fn v6_answers_are_the_reference_example_byte_for_byte_but_for_the_values() {
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
async fn v6_takes_a_client_by_basic_and_by_nothing_else() {
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
async fn a_v6_token_lives_an_hour_and_only_a_code_brings_a_refresh_token() {
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
async fn a_v6_scope_is_the_one_that_was_consented_to_and_never_grows() {
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
async fn v6_wants_the_redirect_uri_of_a_code_and_the_verifier_of_a_challenge() {
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
async fn a_revoked_refresh_token_takes_its_login_along_and_an_unknown_one_is_a_success() {
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

// The protected resource.

#[tokio::test]
async fn the_resource_tells_a_dead_token_from_an_expired_one() {
    let fake = FakeHurdlr::builder().token_life(seconds(60)).in_memory();
    let token = grant(&fake, "ann").await.get("access_token");
    assert_eq!(resource(&fake, &token).await.json()["user"], "ann");
    let unknown = resource(&fake, "nonsense").await;
    assert_eq!(unknown.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    assert!(unknown.header(header::WWW_AUTHENTICATE).starts_with("Bearer"));
    fake.advance_clock(seconds(60));
    let expired = resource(&fake, &token).await;
    assert_eq!(expired.refusal(), refusal(401, "EXPIRED_TOKEN", "access_token"));
    assert!(!fake.is_alive(&token));
    let counts = fake.api().count();
    assert_eq!((counts.outcome(Outcome::Served), counts.outcome(Outcome::BearerRefused)), (1, 2));
}

/// RFC 6750 section 3.1.
#[tokio::test]
async fn resource_without_credentials_names_no_error() {
    let fake = FakeHurdlr::in_memory();
    for authorization in [None, Some("Basic YTpi"), Some("")] {
        let mut request =
            http::Request::get(fake.resource_url().as_str()).body(Vec::new()).unwrap();
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let answer = call(&fake, request).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(answer.header(header::WWW_AUTHENTICATE), "Bearer realm=\"hurdlr\"");
        assert!(answer.body.is_empty(), "{authorization:?}");
    }
    assert_eq!(fake.api().count().outcome(Outcome::BearerRefused), 3);
}

#[tokio::test]
async fn the_resource_takes_a_body_too_and_is_served_under_v5() {
    let fake = FakeHurdlr::in_memory();
    let fields = [("grant_type", "client_credentials"), ("userId", "ann")];
    let token = send_to(&fake, V5, &fields).await.unwrap().get("access_token");
    let request = http::Request::post(fake.base_url().join("rest/v5/me").unwrap().as_str())
        .header(header::AUTHORIZATION, format!("bearer {token}"))
        .body(vec![b'x'; 40])
        .unwrap();
    let answer = call(&fake, request).await.unwrap().json();
    assert_eq!(
        (answer["method"].as_str(), answer["body_bytes"].as_u64()),
        (Some("POST"), Some(40))
    );
}

async fn get(fake: &FakeHurdlr, url: &Url, token: &str) -> Answer {
    let request = http::Request::get(url.as_str())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Vec::new())
        .unwrap();
    call(fake, request).await.unwrap()
}

#[tokio::test]
async fn api_serves_the_tests_own_data() {
    let fake = FakeHurdlr::in_memory();
    let [ann, bob] = [grant(&fake, "ann").await, grant(&fake, "bob").await];
    let expenses = fake.api().resource("rest/v4/expenses", |call| json!([{ "of": call.user() }]));
    assert_eq!(expenses, fake.base_url().join("rest/v4/expenses").unwrap());
    let mut queried = expenses.clone();
    queried.set_query(Some("page=2"));
    for (user, answer) in [("ann", &ann), ("bob", &bob)] {
        let served = get(&fake, &queried, &answer.get("access_token")).await;
        assert_eq!((served.status.as_u16(), served.json()), (200, json!([{ "of": user }])));
    }
    let refused = get(&fake, &expenses, &ann.get("refresh_token")).await;
    assert_eq!(refused.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    let elsewhere = fake.base_url().join("rest/v4/expenses/7").unwrap();
    assert_eq!(get(&fake, &elsewhere, &ann.get("access_token")).await.status, 404);
    // The newest data of a path are served, under any method.
    fake.api().resource("/rest/v4/expenses", |call| json!(call.method().as_str()));
    let mut request = http::Request::delete(expenses.as_str()).body(Vec::new()).unwrap();
    let token = format!("Bearer {}", ann.get("access_token"));
    request.headers_mut().insert(header::AUTHORIZATION, token.parse().unwrap());
    assert_eq!(call(&fake, request).await.unwrap().json(), json!("DELETE"));
}

#[tokio::test]
async fn api_calls_are_recorded_and_counted() {
    for record in [true, false] {
        let fake = FakeHurdlr::builder().token_life(seconds(60)).record(record).in_memory();
        let token = grant(&fake, "ann").await.get("access_token");
        let mut url = fake.resource_url();
        url.set_query(Some("a=b"));
        get(&fake, &url, &token).await;
        get(&fake, &fake.resource_url(), "nonsense").await;
        get(&fake, &fake.authorize_url().join("/nothing").unwrap(), &token).await;
        fake.advance_clock(seconds(60));
        get(&fake, &url, &token).await;

        let calls = fake.api().requests();
        let seen: Vec<_> = calls
            .iter()
            .map(|call| (call.path(), call.query(), call.user(), call.outcome(), call.status()))
            .collect();
        let status = |status| Some(StatusCode::from_u16(status).unwrap());
        let (me, ann) = ("/rest/v4/me", Some("ann"));
        let all = [
            (me, Some("a=b"), ann, Some(Outcome::Served), status(200)),
            (me, None, None, Some(Outcome::BearerRefused), status(401)),
            ("/nothing", None, ann, Some(Outcome::InvalidRequest), status(404)),
            (me, Some("a=b"), ann, Some(Outcome::BearerRefused), status(401)),
        ];
        assert_eq!(seen, if record { &all[..] } else { &[] });
        assert!(calls.iter().all(|call| call.method() == "GET" && call.grant().is_none()));
        assert!(!format!("{calls:?} {:?}", fake.api()).contains(&token));
        let counts = fake.api().count();
        assert_eq!((counts.total(), counts.user("ann")), (4, 3));
        assert_eq!(counts.outcome(Outcome::BearerRefused), 2);

        assert_eq!(fake.count().total(), 1, "calls are no token requests");
        fake.clear_requests();
        assert_eq!(fake.api().count().total(), 4);
        fake.api().clear_requests();
        assert_eq!((fake.api().count().total(), fake.api().requests().len()), (0, 0));
    }
}

/// Partner-level calls, as v5 alone has them.
#[tokio::test]
async fn v5_api_takes_client_by_basic() {
    let fake = FakeHurdlr::builder().client("a b", "s+e:c/r&t%".into()).start().await.unwrap();
    let (secret, base) = (fake.client_secret(), Environment::from(fake.base_url()));
    let send = async |partner: &Partner, path: &str| {
        let ann = partner.user(&UserId::new("ann").unwrap()).unwrap();
        let client = ann.middleware().client(|builder| builder).unwrap().build();
        client.get(fake.base_url().join(path).unwrap()).send().await.unwrap()
    };
    let partner = Partner::new(fake.client_id(), &secret, &base).unwrap();
    let served = send(&partner, "rest/v5/me").await;
    assert_eq!(served.status(), 200);
    let body: Value = serde_json::from_str(&served.text().await.unwrap()).unwrap();
    assert_eq!(body["user"], "ann");
    for (status, path) in [(401, "rest/v4/me"), (401, "v6/me"), (404, "rest/v5/nothing")] {
        assert_eq!(send(&partner, path).await.status(), status, "{path}");
    }
    let wrong = Partner::new(fake.client_id(), &"wrong".into(), &base).unwrap();
    assert_eq!(send(&wrong, "rest/v5/me").await.status(), 401);

    let calls = fake.api().requests();
    assert!(calls.iter().all(|call| call.user() == Some("ann")));
    assert_eq!(calls[4].outcome(), Some(Outcome::InvalidClient));
    let unnamed = reqwest::Client::new()
        .get(fake.base_url().join("rest/v5/me").unwrap())
        .basic_auth(fake.client_id(), Some(secret.expose_secret()));
    assert_eq!(unnamed.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn api_faults_are_queued_or_planned() {
    let fake = FakeHurdlr::in_memory();
    let [ann, bob] = [grant(&fake, "ann").await, grant(&fake, "bob").await];
    let api = fake.api();
    for fault in [Fault::Unauthorized, Fault::Forbidden, Fault::rate_limited_for(seconds(7))] {
        api.fault_next(fault);
    }
    api.fault_plan(|call| (call.user() == Some("bob")).then(|| Fault::status(503)));
    let me = fake.resource_url();
    let token = ann.get("access_token");

    let unauthorized = get(&fake, &me, &token).await;
    assert_eq!(unauthorized.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    assert!(unauthorized.header(header::WWW_AUTHENTICATE).contains("invalid_token"));
    let forbidden = get(&fake, &me, &token).await;
    assert_eq!(forbidden.status, 403);
    assert!(forbidden.header(header::WWW_AUTHENTICATE).contains("insufficient_scope"));
    let limited = get(&fake, &me, &token).await;
    assert_eq!((limited.status.as_u16(), limited.header(header::RETRY_AFTER)), (429, "7"));
    assert_eq!(get(&fake, &me, &token).await.status, 200, "the queue is empty");
    for _ in 0..2 {
        assert_eq!(get(&fake, &me, &bob.get("access_token")).await.status, 503);
    }
    assert_eq!(api.count().outcome(Outcome::Faulted), 5);
    api.clear_faults();
    assert_eq!(get(&fake, &me, &bob.get("access_token")).await.status, 200);
}

#[tokio::test]
async fn api_and_token_faults_are_apart() {
    let fake = FakeHurdlr::in_memory();
    fake.api().fault_next(Fault::Forbidden);
    fake.fault_next(Fault::Unauthorized);
    let refused = grant(&fake, "ann").await;
    assert_eq!(refused.refusal(), refusal(401, "INVALID_TOKEN", "access_token"));
    let token = grant(&fake, "ann").await.get("access_token");
    assert_eq!(resource(&fake, &token).await.status, 403);
    assert_eq!(resource(&fake, &token).await.status, 200);
    fake.set_error_style(ErrorStyle::Rfc6749);
    fake.api().fault_next(Fault::Forbidden);
    assert_eq!(resource(&fake, &token).await.json()["error"], "insufficient_scope");
}

/// The faults of the connection, too.
#[tokio::test]
async fn api_call_can_act_unanswered() {
    let fake = FakeHurdlr::start().await.unwrap();
    let token = grant(&fake, "ann").await.get("access_token");
    let gate = Gate::closed();
    fake.api().fault_next(Fault::DropAfter);
    fake.api().fault_next(Fault::Hold(gate.clone()));
    let send = || socket_client().post(fake.resource_url()).bearer_auth(&token).send();
    send().await.unwrap_err();
    let call = &fake.api().requests()[0];
    assert_eq!((call.outcome(), call.status()), (Some(Outcome::Served), None));
    let held = tokio::spawn(send());
    fake.api().arrived(2).await;
    assert_eq!(fake.api().requests()[1].outcome(), None);
    gate.open();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

// The authorization endpoint.

async fn page(fake: &FakeHurdlr, url: &Url) -> Answer {
    let request = http::Request::get(url.as_str()).body(Vec::new()).unwrap();
    call(fake, request).await.unwrap()
}

#[tokio::test]
async fn consent_and_denial_come_back_with_the_state_and_the_callbacks_own_query() {
    let fake = FakeHurdlr::in_memory();
    let allowed = fake.consent(&login(&fake, &[]), "ann").await.unwrap();
    let denied = fake.deny(&login(&fake, &[])).await.unwrap();
    for back in [&allowed, &denied] {
        assert!(back.as_str().starts_with(CALLBACK));
        assert_eq!(query(back, "state").as_deref(), Some("a state & more"));
    }
    assert_eq!(query(&denied, "error").as_deref(), Some("access_denied"));
    assert_eq!((query(&allowed, "error"), query(&denied, "code")), (None, None));
}

#[tokio::test]
async fn nobody_is_redirected_to_an_address_in_doubt() {
    let fake = FakeHurdlr::in_memory();
    let mut stranger = fake.authorize_url();
    stranger
        .set_query(Some("response_type=code&client_id=else&redirect_uri=https://evil.example/"));
    let mut fragment = fake.authorize_url();
    fragment.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", fake.client_id()),
        ("redirect_uri", "https://app.example/#part"),
    ]);
    let twice = login(&fake, &[("redirect_uri", "https://evil.example/")]);
    let strict = FakeHurdlr::builder().redirect_uri("https://app.example/else").in_memory();
    let cases =
        [(&fake, stranger), (&fake, fragment), (&fake, twice), (&strict, login(&strict, &[]))];
    for (fake, url) in cases {
        let answer = page(fake, &url).await;
        assert_eq!(answer.status, 400);
        assert!(!answer.headers.contains_key(header::LOCATION));
        assert!(answer.header(header::CONTENT_TYPE).starts_with("text/html"));
        let refused = fake.consent(&url, "ann").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
    let registered = FakeHurdlr::builder().redirect_uri(CALLBACK).in_memory();
    assert!(registered.consent(&login(&registered, &[]), "ann").await.is_ok());
}

#[tokio::test]
async fn other_mistakes_of_an_authorization_request_are_told_to_the_client() {
    let fake = FakeHurdlr::in_memory();
    let mut implicit = fake.authorize_url();
    implicit.query_pairs_mut().extend_pairs([
        ("response_type", "token"),
        ("client_id", fake.client_id()),
        ("redirect_uri", CALLBACK),
        ("state", "a state & more"),
    ]);
    let plain = "p".repeat(43);
    let cases = [
        (implicit, "unsupported_response_type"),
        (login(&fake, &[("code_challenge", &plain)]), "invalid_request"),
        (
            login(&fake, &[("code_challenge", &plain), ("code_challenge_method", "plain")]),
            "invalid_request",
        ),
        (
            login(&fake, &[("code_challenge", "short"), ("code_challenge_method", "S256")]),
            "invalid_request",
        ),
        (login(&fake, &[("state", "another")]), "invalid_request"),
    ];
    for (url, error) in cases {
        let back = fake.consent(&url, "ann").await.unwrap();
        assert_eq!(query(&back, "error").as_deref(), Some(error));
        assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
        assert_eq!(query(&back, "code"), None);
    }
}

#[tokio::test]
async fn the_page_works_without_script_and_says_what_it_is_to_a_screen_reader() {
    let fake = FakeHurdlr::in_memory();
    let answer = page(&fake, &login(&fake, &[])).await;
    assert_eq!(answer.status, 200);
    let html = answer.text();
    for part in [
        "<html lang=\"en\">",
        "name=\"viewport\"",
        "color-scheme: light dark",
        "<label for=\"user\">",
        "id=\"user\" name=\"user\" type=\"text\"",
        "<form method=\"post\" action=\"/oauth/authorize\">",
        "name=\"decision\" value=\"allow\">Allow</button>",
        "name=\"decision\" value=\"deny\">Deny</button>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script"));
    assert!(answer.header(header::CONTENT_SECURITY_POLICY).starts_with("default-src 'none'"));
}

#[tokio::test]
async fn nothing_that_the_page_repeats_becomes_html() {
    let fake = FakeHurdlr::builder().client("<i>&'\"", "s".into()).in_memory();
    let mut url = fake.authorize_url();
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", fake.client_id()),
        ("redirect_uri", "https://app.example/?<b>=\"'"),
        ("state", "\"><script>alert('1')</script>&amp;"),
    ]);
    let answer = page(&fake, &url).await;
    assert_eq!(answer.status, 200);
    let html = answer.text();
    assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("<i>"));
    assert!(
        html.contains(
            "value=\"&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;\""
        )
    );
    let back = fake.consent(&url, "ann").await.unwrap();
    assert_eq!(query(&back, "state").unwrap(), "\"><script>alert('1')</script>&amp;");
}

#[tokio::test]
async fn the_pages_form_alone_is_enough_to_log_in_by_a_browser() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = socket_client();
    let url = login(&fake, &[]);
    let html = client.get(url).send().await.unwrap().text().await.unwrap();
    // The hidden fields as a browser would submit them; their values need no unescaping here but
    // for the ampersand.
    let mut fields: Vec<(String, String)> = html
        .lines()
        .filter_map(|line| line.strip_prefix("<input type=\"hidden\" name=\""))
        .filter_map(|rest| rest.strip_suffix("\">")?.split_once("\" value=\""))
        .map(|(name, value)| (name.to_owned(), value.replace("&amp;", "&")))
        .collect();
    fields.push(("user".into(), String::new()));
    fields.push(("decision".into(), "allow".into()));
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let answer = client.post(fake.base_url().join("oauth/authorize").unwrap()).body(body);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let back: Url = answer.headers()[header::LOCATION].to_str().unwrap().parse().unwrap();
    assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
    let answer = redeem(&fake, &query(&back, "code").unwrap(), &[]).await;
    let user = resource(&fake, &answer.get("access_token")).await.json()["user"].clone();
    assert_eq!(user, "demo");
}

// What can go wrong on the way, by socket and in memory.

/// Both ways to one provider, so that a fault can be held to be the same on both.
struct Ways {
    fake: FakeHurdlr,
    client: reqwest::Client,
}

impl Ways {
    async fn open() -> Self {
        Self { fake: FakeHurdlr::start().await.unwrap(), client: socket_client() }
    }

    async fn both(&self, fault: &Fault) -> [Answer; 2] {
        self.fake.fault_next(fault.clone());
        let memory = grant(&self.fake, "ann").await;
        self.fake.fault_next(fault.clone());
        let socket = send_by_socket(&self.client, &self.fake, "ann").await.unwrap();
        [memory, whole(socket).await.unwrap()]
    }
}

#[tokio::test]
async fn a_dropped_connection_has_no_answer_and_says_whether_the_provider_acted() {
    let ways = Ways::open().await;
    for (fault, acted) in
        [(Fault::Refuse, false), (Fault::DropBefore, false), (Fault::DropAfter, true)]
    {
        let (fake, refused) = (&ways.fake, matches!(fault, Fault::Refuse));
        fake.clear_requests();
        fake.revoke_everything("ann");

        fake.fault_next(fault.clone());
        let error = send_by_socket(&ways.client, fake, "ann").await.unwrap_err();
        assert!(error.is_request() && !error.is_connect() && !error.is_timeout());

        fake.fault_next(fault);
        let error = send(fake, &[("grant_type", "client_credentials"), ("userId", "ann")]).await;
        let error = error.err().expect("no answer");
        let kind = error.source().unwrap().downcast_ref::<io::Error>().unwrap().kind();
        let expected =
            if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::ConnectionReset };
        assert_eq!((kind, error.kind()), (expected, expected));

        let outcome = if acted { Outcome::Issued } else { Outcome::Faulted };
        assert_eq!(fake.count().outcome(outcome), 2);
        assert_eq!(fake.tokens_alive("ann"), if acted { 2 } else { 0 });
        assert!(fake.requests().iter().all(|request| request.status().is_none()));
    }
    // The connection died, not the server.
    assert_eq!(send_by_socket(&ways.client, &ways.fake, "ann").await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_rate_limit_names_its_time_and_does_not_act() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::rate_limited_for(seconds(7))).await {
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header(header::RETRY_AFTER), "7");
        assert_eq!(answer.json()["result"], "FAILURE");
    }
    let until = SystemTime::UNIX_EPOCH + seconds(784_111_777);
    for answer in ways.both(&Fault::rate_limited_until(until)).await {
        assert_eq!(answer.header(header::RETRY_AFTER), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
    for answer in ways.both(&Fault::rate_limited()).await {
        assert!(!answer.headers.contains_key(header::RETRY_AFTER));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Faulted), 6);
    assert_eq!(ways.fake.tokens_alive("ann"), 0);
}

#[tokio::test]
async fn statuses_pages_redirects_and_answers_of_the_tests_own_do_not_act() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::unavailable_for(seconds(3))).await {
        assert_eq!((answer.status.as_u16(), answer.header(header::RETRY_AFTER)), (503, "3"));
    }
    for answer in ways.both(&Fault::status(500)).await {
        assert_eq!(answer.status, 500);
        assert_eq!(answer.header(header::CONTENT_TYPE), "text/plain");
    }
    for answer in ways.both(&Fault::html(502)).await {
        assert_eq!(answer.status, 502);
        assert!(answer.header(header::CONTENT_TYPE).starts_with("text/html"));
        assert!(answer.text().starts_with("<html>"));
    }
    for answer in ways.both(&Fault::redirect(307, "https://evil.example/")).await {
        assert_eq!(answer.status, 307);
        assert_eq!(answer.header(header::LOCATION), "https://evil.example/");
    }
    for answer in ways.both(&Fault::answer(201, r#"{"a":1}"#)).await {
        assert_eq!((answer.status.as_u16(), answer.text()), (201, r#"{"a":1}"#));
    }
    assert_eq!(ways.fake.count().outcome(Outcome::Faulted), 10);
    assert_eq!(ways.fake.tokens_alive("ann"), 0);
}

#[tokio::test]
async fn an_answer_of_the_tests_own_can_come_after_acting() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::answer_after(500, "")).await {
        assert_eq!((answer.status.as_u16(), answer.body.len()), (500, 0));
    }
    assert_eq!(ways.fake.tokens_alive("ann"), 2);
    assert!(
        ways.fake
            .requests()
            .iter()
            .all(|it| it.status() == Some(StatusCode::INTERNAL_SERVER_ERROR))
    );
}

#[tokio::test]
async fn a_truncated_answer_promises_more_than_it_sends() {
    let ways = Ways::open().await;
    ways.fake.fault_next(Fault::Truncated);
    let mut answer = send_by_socket(&ways.client, &ways.fake, "ann").await.unwrap();
    assert_eq!(answer.status(), 200);
    let promised = answer.content_length().unwrap();
    let first = answer.chunk().await.unwrap().expect("half of it came");
    assert!((first.len() as u64) < promised);
    assert!(first.starts_with(b"{\n  \"access_token\""));
    assert!(answer.chunk().await.is_err());

    ways.fake.fault_next(Fault::Truncated);
    let error = send(&ways.fake, &[("grant_type", "client_credentials"), ("userId", "ann")]).await;
    assert_eq!(error.err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(ways.fake.tokens_alive("ann"), 2);
}

#[tokio::test]
async fn an_oversized_answer_is_a_right_one_that_is_a_mebibyte_long() {
    for answer in Ways::open().await.both(&Fault::Oversized).await {
        assert_eq!(answer.body.len(), 1024 * 1024);
        assert!(answer.json()["access_token"].is_string());
    }
}

#[tokio::test]
async fn a_wrong_content_type_comes_with_the_right_body() {
    let ways = Ways::open().await;
    for answer in ways.both(&Fault::ContentType("text/html".into())).await {
        assert_eq!(answer.header(header::CONTENT_TYPE), "text/html");
        assert!(answer.json()["access_token"].is_string());
    }
    for answer in ways.both(&Fault::ContentType(String::new())).await {
        assert!(!answer.headers.contains_key(header::CONTENT_TYPE));
    }
}

#[tokio::test]
async fn a_dripping_answer_arrives_by_socket_too() {
    let fake = FakeHurdlr::start().await.unwrap();
    fake.fault_next(Fault::Dripping { bytes: 50, every: Duration::from_millis(1) });
    let mut answer = send_by_socket(&socket_client(), &fake, "ann").await.unwrap();
    let promised = answer.content_length().unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert_eq!(got.len() as u64, promised);
    assert!(serde_json::from_slice::<Value>(&got).is_ok());
}

#[tokio::test]
async fn a_fault_that_http_cannot_write_says_so() {
    let fake = FakeHurdlr::in_memory();
    for fault in [Fault::status(99), Fault::redirect(302, "a\nb")] {
        fake.fault_next(fault);
        let answer = grant(&fake, "ann").await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().starts_with("FakeHurdlr cannot do this"));
    }
}

// Time is tokio's.

#[tokio::test(start_paused = true)]
async fn a_paused_clock_stands_still_in_memory_and_drives_the_providers() {
    let fake = FakeHurdlr::builder().token_life(seconds(60)).in_memory();
    let start = tokio::time::Instant::now();
    let (token, now) = (grant(&fake, "ann").await.get("access_token"), fake.now());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(fake.now(), now);
    tokio::time::advance(seconds(59)).await;
    assert!(fake.is_alive(&token));
    assert_eq!(fake.now(), now + seconds(59));
    tokio::time::advance(seconds(1)).await;
    assert!(!fake.is_alive(&token));
}

#[tokio::test(start_paused = true)]
async fn delays_pass_by_the_paused_clock_before_or_after_acting() {
    let fake = FakeHurdlr::in_memory();
    let start = tokio::time::Instant::now();
    fake.fault_next(Fault::Delay(seconds(40)));
    let late = grant(&fake, "ann").await.json()["created_at"].as_u64().unwrap();
    assert_eq!(start.elapsed(), seconds(40));
    fake.fault_next(Fault::DelayAfter(seconds(40)));
    let early = grant(&fake, "ann").await.json()["created_at"].as_u64().unwrap();
    assert_eq!(start.elapsed(), seconds(80));
    assert_eq!(late, early, "one waited before it acted, the other after");
}

#[tokio::test(start_paused = true)]
async fn a_dripping_answer_takes_its_time_in_memory() {
    let fake = FakeHurdlr::in_memory();
    let start = tokio::time::Instant::now();
    fake.fault_next(Fault::dripping(seconds(1)));
    let answer = grant(&fake, "ann").await;
    assert_eq!(start.elapsed(), seconds(answer.body.len() as u64));
    assert!(answer.json()["access_token"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_cancels_a_delay_but_not_what_was_done_already() {
    let fake = FakeHurdlr::in_memory();
    for (fault, alive) in [(Fault::Delay(seconds(9)), 0), (Fault::DelayAfter(seconds(9)), 1)] {
        fake.clear_requests();
        fake.fault_next(fault);
        assert!(tokio::time::timeout(seconds(1), grant(&fake, "ann")).await.is_err());
        tokio::time::advance(seconds(20)).await;
        assert_eq!(fake.tokens_alive("ann"), alive);
        let outcome = (alive == 1).then_some(Outcome::Issued);
        assert_eq!(fake.requests()[0].outcome(), outcome);
    }
}

#[tokio::test]
async fn a_gate_holds_requests_until_the_test_opens_it() {
    let fake = FakeHurdlr::start().await.unwrap();
    let before = Gate::closed();
    let after = Gate::closed();
    fake.fault_next(Fault::Hold(before.clone()));
    let task = tokio::spawn({
        let (fake, client) = (fake.clone(), socket_client());
        async move { send_by_socket(&client, &fake, "ann").await.unwrap().status() }
    });
    fake.arrived(1).await;
    assert_eq!((fake.requests()[0].outcome(), fake.tokens_alive("ann")), (None, 0));
    before.open();
    assert_eq!(task.await.unwrap(), 200);

    fake.fault_next(Fault::HoldAfter(after.clone()));
    let (answer, ()) = tokio::join!(grant(&fake, "ann"), async {
        fake.arrived(2).await;
        assert_eq!(fake.tokens_alive("ann"), 2);
        after.open();
    });
    assert_eq!(answer.status, 200);
}

// Faults in order, records and counts.

#[tokio::test]
async fn queued_faults_come_first_then_the_plan_and_nothing_after_clearing() {
    let fake = FakeHurdlr::in_memory();
    fake.fault_plan({
        let fake = fake.clone();
        move |request| {
            assert!(fake.count().total() < 100, "a plan may ask the provider");
            (request.user() == Some("bob")).then(|| Fault::status(504))
        }
    });
    fake.fault_next(Fault::status(501));
    fake.fault_next(Fault::status(502));
    let mut statuses = Vec::new();
    for user in ["bob", "ann", "bob", "ann"] {
        statuses.push(grant(&fake, user).await.status.as_u16());
    }
    assert_eq!(statuses, [501, 502, 504, 200]);
    fake.fault_next(Fault::status(503));
    fake.clear_faults();
    assert_eq!(grant(&fake, "bob").await.status, 200);
}

#[tokio::test]
async fn requests_are_recorded_in_order_with_all_that_was_sent() {
    let fake = FakeHurdlr::in_memory();
    let token = grant(&fake, "ann b").await;
    refresh(&fake, &token.get("refresh_token")).await;
    grant(&fake, "").await;
    let requests = fake.requests();
    let first = &requests[0];
    assert_eq!((first.method().as_str(), first.path()), ("POST", "/rest/v4/auth/token"));
    assert_eq!(first.headers()[header::CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert!(first.body().ends_with(b"grant_type=client_credentials&userId=ann+b"));
    assert_eq!(first.field("userId").as_deref(), Some("ann b"));
    assert_eq!(first.field("nothing"), None);
    assert_eq!(first.field_names(), ["client_id", "client_secret", "grant_type", "userId"]);
    assert_eq!(first.grant(), Some("client_credentials"));
    assert_eq!(first.status(), Some(StatusCode::OK));
    assert_eq!(requests[1].field("refresh_token"), Some(token.get("refresh_token")));
    assert_eq!(requests[1].user(), Some("ann b"), "a refresh token's owner is known");
    assert_eq!(requests[2].outcome(), Some(Outcome::InvalidRequest));
    assert_eq!(requests[2].user(), None);
}

#[tokio::test]
async fn requests_are_counted_by_grant_user_and_outcome() {
    for record in [true, false] {
        let fake = FakeHurdlr::builder().record(record).in_memory();
        let token = grant(&fake, "ann").await.get("refresh_token");
        refresh(&fake, &token).await;
        refresh(&fake, &token).await;
        grant(&fake, "bob").await;
        let counts = fake.count();
        assert_eq!(counts.total(), 4);
        assert_eq!((counts.grant("client_credentials"), counts.grant("refresh_token")), (2, 2));
        assert_eq!((counts.user("ann"), counts.user("bob"), counts.user("eve")), (3, 1, 0));
        assert_eq!(counts.outcome(Outcome::Issued), 3);
        assert_eq!(counts.outcome(Outcome::InvalidGrant), 1);
        assert_eq!(fake.requests().len(), if record { 4 } else { 0 });
        fake.clear_requests();
        assert_eq!((fake.count().total(), fake.requests().len()), (0, 0));
        grant(&fake, "bob").await;
        assert_eq!(fake.count().outcome(Outcome::Issued), 1);
    }
}

#[tokio::test]
async fn a_request_cleared_away_in_flight_is_not_counted_when_it_ends() {
    let fake = FakeHurdlr::in_memory();
    let gate = Gate::closed();
    fake.fault_next(Fault::Hold(gate.clone()));
    tokio::join!(grant(&fake, "ann"), async {
        fake.arrived(1).await;
        fake.clear_requests();
        grant(&fake, "bob").await;
        gate.open();
    });
    assert_eq!(fake.requests().len(), 1);
    assert_eq!(fake.requests()[0].user(), Some("bob"));
    assert_eq!(fake.count().outcome(Outcome::Issued), 1);
}

#[tokio::test]
async fn debug_shows_no_secret() {
    let fake = FakeHurdlr::builder().client("id", "top-secret-value".into()).in_memory();
    let token = grant(&fake, "ann").await;
    let mut request = form(&fake, V4, &[("refresh_token", &token.get("refresh_token"))]);
    request.headers_mut().insert(header::AUTHORIZATION, "Bearer hidden-value".parse().unwrap());
    call(&fake, request).await.unwrap();
    let shown = format!(
        "{fake:?} {fake:#?} {:?} {:?} {:?} {:?}",
        fake.requests(),
        fake.http_client(),
        FakeHurdlr::builder().client("id", "top-secret-value".into()),
        fake.count(),
    );
    for secret in [
        "top-secret-value",
        "hidden-value",
        &token.get("refresh_token"),
        &token.get("access_token"),
    ] {
        assert!(!shown.contains(secret));
    }
    assert!(shown.contains("client_credentials"), "what is no secret is shown");
}

// TLS.

#[cfg(feature = "rustls")]
mod tls {
    use super::*;

    /// A certificate of `localhost`, its key, and the root for a client.
    fn identity() -> (String, String, reqwest::Certificate) {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = reqwest::Certificate::from_der(issued.cert.der()).unwrap();
        (issued.cert.pem(), issued.signing_key.serialize_pem(), root)
    }

    async fn started() -> (FakeHurdlr, reqwest::Certificate) {
        let (certificate, key, root) = identity();
        let fake = FakeHurdlr::builder().tls(certificate, key.into()).start().await.unwrap();
        (fake, root)
    }

    fn client(fake: &FakeHurdlr, root: &reqwest::Certificate) -> Hurdlr {
        let root = root.clone();
        Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri(CALLBACK)
            .retry(RetryPolicy::never())
            .reqwest(move |client| client.tls_certs_only([root.clone()]))
            .build()
            .unwrap()
    }

    #[tokio::test]
    async fn login_and_call_go_over_https() {
        let (fake, root) = started().await;
        let port = fake.base_url().port().unwrap();
        assert_eq!(fake.base_url().as_str(), format!("https://localhost:{port}/"));
        let hurdlr = client(&fake, &root);
        let (url, pending) = hurdlr.begin_login().unwrap();
        assert_eq!(url.scheme(), "https");
        let callback = fake.consent(&url, "ann").await.unwrap();
        let token = hurdlr.complete_login(pending, &callback).await.unwrap();
        let token = hurdlr.refresh(&token).await.unwrap();
        let api = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
        let call = api.get(fake.resource_url()).bearer_auth(token.access_token().expose_secret());
        let answer: Value =
            serde_json::from_str(&call.send().await.unwrap().text().await.unwrap()).unwrap();
        assert_eq!(answer["user"], "ann");
    }

    #[tokio::test]
    async fn unknown_root_gets_nothing() {
        let (fake, _) = started().await;
        let (_, _, other_root) = identity();
        let error = client(&fake, &other_root)
            .client_credentials(&UserId::new("ann").unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(!error.is_unanswered(), "nothing was sent");
        assert_eq!(fake.count().total(), 0);
    }

    /// The connection breaks below TLS, and a client that stands still holds nobody up.
    #[tokio::test]
    async fn connection_faults_work_under_tls() {
        let (fake, root) = started().await;
        let address = ("127.0.0.1", fake.base_url().port().unwrap());
        let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
        let (hurdlr, ann) = (client(&fake, &root), UserId::new("ann").unwrap());
        for (fault, outcome) in
            [(Fault::DropBefore, Outcome::Faulted), (Fault::DropAfter, Outcome::Issued)]
        {
            fake.clear_requests();
            fake.fault_next(fault);
            let error = hurdlr.client_credentials(&ann).await.unwrap_err();
            assert!(error.is_unanswered());
            assert_eq!(fake.count().outcome(outcome), 1);
        }
        hurdlr.client_credentials(&ann).await.unwrap();
    }

    #[tokio::test]
    async fn unusable_certificate_is_an_error() {
        let ((certificate, key, _), (_, other_key, _)) = (identity(), identity());
        for (certificate, key) in [
            (&*certificate, "no key"),
            ("no certificate", &*key),
            ("", &*key),
            (&*certificate, &*certificate),
            (&*certificate, &*other_key),
        ] {
            let builder = FakeHurdlr::builder().tls(certificate, key.into());
            assert!(!format!("{builder:?}").contains("PRIVATE KEY"));
            let error = builder.start().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }
}

// The server's life.

#[tokio::test]
async fn a_given_port_is_taken_and_a_taken_one_is_an_error() {
    let fake = FakeHurdlr::start().await.unwrap();
    let port = fake.base_url().port().unwrap();
    assert_eq!(fake.base_url().as_str(), format!("http://127.0.0.1:{port}/"));
    let error = FakeHurdlr::builder().port(port).start().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn the_server_and_its_connections_end_with_the_last_handle() {
    let fake = FakeHurdlr::start().await.unwrap();
    let last = fake.clone();
    let address = fake.base_url().socket_addrs(|| None).unwrap()[0];
    drop(fake);
    // An idle connection that has been served once.
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        idle.write_all(b"GET /rest/v4/me HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
        drop(last);
        let mut rest = Vec::new();
        // Whether as an end or as a reset: it is over.
        let _ = idle.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_in_flight_ends_with_the_last_handle_too() {
    let fake = FakeHurdlr::start().await.unwrap();
    let gate = Gate::closed();
    fake.fault_next(Fault::Hold(gate.clone()));
    let request = socket_client().post(fake.base_url().join(V4).unwrap()).send();
    let task = tokio::spawn(request);
    fake.arrived(1).await;
    drop(fake);
    // The gate stays closed: only the end of the connection can end this.
    assert!(task.await.unwrap().is_err());
    drop(gate);
}

/// RFC 9700 section 2.1.
#[tokio::test]
async fn redirect_uri_is_compared_letter_by_letter() {
    let fake = FakeHurdlr::builder().redirect_uri("https://app.example").in_memory();
    for (sent, is_registered) in [
        ("https://app.example", true),
        ("https://app.example/", false),
        ("https://APP.example", false),
        ("https://app.example:443", false),
        ("https://app.example?", false),
    ] {
        let mut url = fake.authorize_url();
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", fake.client_id()),
            ("redirect_uri", sent),
        ]);
        assert_eq!(fake.consent(&url, "ann").await.is_ok(), is_registered, "{sent}");
    }
}

/// RFC 9207.
#[tokio::test]
async fn issuer_is_in_every_callback() {
    let issuer = "https://issuer.example";
    let fake = FakeHurdlr::builder().issuer(issuer).in_memory();
    let allowed = fake.consent(&login(&fake, &[]), "ann").await.unwrap();
    let denied = fake.deny(&login(&fake, &[])).await.unwrap();
    for back in [allowed, denied] {
        assert_eq!(query(&back, "iss").as_deref(), Some(issuer), "{back}");
    }
}

#[tokio::test]
async fn consented_url_needs_no_click() {
    let fake = FakeHurdlr::in_memory();
    let asked = login(&fake, &[]);
    let mut url = fake.consented_url("ann & bob");
    url.query_pairs_mut().extend_pairs(asked.query_pairs());
    let answer = page(&fake, &url).await;
    assert_eq!(answer.status, 303);
    let back: Url = answer.header(header::LOCATION).parse().unwrap();
    assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
    let answer = redeem(&fake, &query(&back, "code").unwrap(), &[]).await;
    assert_eq!(resource(&fake, &answer.get("access_token")).await.json()["user"], "ann & bob");
}

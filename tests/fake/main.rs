//! The promises of `FakeHurdlr` to the tests that stand on it.

// The functions that tests share panic as tests do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod answers;
mod authorize;
mod codes;
mod faults;
mod records;
mod refresh;
mod resource;
mod router;
mod server;
mod time;
#[cfg(feature = "rustls")]
mod tls;
mod versions;

use std::time::Duration;

use base64::Engine as _;
use http::{HeaderMap, StatusCode, header};
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, InMemoryError};
use oauth2::{AsyncHttpClient, HttpRequest};
use secrecy::ExposeSecret;
use serde_json::Value;
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

async fn get(fake: &FakeHurdlr, url: &Url, token: &str) -> Answer {
    let request = http::Request::get(url.as_str())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Vec::new())
        .unwrap();
    call(fake, request).await.unwrap()
}

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

//! Shows what goes out and what comes back.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use hurdlr_oauth2::{HttpClient, HttpError};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::{Url, form_urlencoded};

use crate::Outcome;

/// Sends by the crate's own transport, and tells what went out and what came back.
///
/// Each secret is given a name when it is first seen, and is shown by that name from then on.
#[derive(Clone)]
pub(crate) struct Narrator {
    http: HttpClient,
    secrets: Arc<Mutex<Vec<(String, SecretString)>>>,
}

/// The fields that are shown as they are. Whatever else there is counts as secret.
const PLAIN_FIELDS: [&str; 19] = [
    "Authorization", // its token was named before
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "created_at",
    "data",
    "error",
    "error_description",
    "expires_in",
    "grant_type",
    "message",
    "param",
    "redirect_uri",
    "response_type",
    "result",
    "scope",
    "token_type",
    "type",
    "userId",
];

impl Narrator {
    pub(crate) fn new(endpoint: &Url) -> Outcome<Self> {
        Ok(Self { http: HttpClient::new(endpoint)?, secrets: Arc::default() })
    }

    /// What is shown of a field's value.
    pub(crate) fn shown(&self, field: &str, value: &str) -> String {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = secrets.iter().any(|(_, secret)| secret.expose_secret() == value);
        if !PLAIN_FIELDS.contains(&field) && !is_known && !value.is_empty() {
            let kind = field.replace('_', " ");
            let others = secrets.iter().filter(|(name, _)| name[1..].starts_with(&kind));
            // Of tokens there are several, and which is which matters.
            let name = match others.count() {
                0 if !kind.ends_with("token") => format!("<{kind}>"),
                others => format!("<{kind} {}>", others + 1),
            };
            secrets.push((name, value.into()));
        }
        secrets.iter().fold(value.to_owned(), |text, (name, secret)| {
            text.replace(secret.expose_secret(), name)
        })
    }

    fn show_field(&self, name: &str, value: &str) {
        println!("          {name:<21}  {}", self.shown(name, value));
    }

    /// An address that a browser goes to.
    pub(crate) fn show_page(&self, label: &str, url: &Url) {
        let mut page = url.clone();
        page.set_query(None);
        println!("\n  {label}  {page}");
        for (name, value) in url.query_pairs() {
            self.show_field(&name, &value);
        }
    }

    fn show_request(&self, request: &HttpRequest) {
        println!("\n  sent  {} {}", request.method(), request.uri());
        let bearer = request.headers().get(http::header::AUTHORIZATION);
        if let Some(bearer) = bearer.and_then(|value| value.to_str().ok()) {
            self.show_field("Authorization", bearer);
        }
        for (name, value) in form_urlencoded::parse(request.body()) {
            self.show_field(&name, &value);
        }
    }

    fn show_answer(&self, answer: &HttpResponse) {
        println!("\n  back  {}", answer.status());
        match serde_json::from_slice(answer.body()) {
            Ok(json) => self.show_json("", &json),
            Err(_) => println!("          {} bytes that are not JSON", answer.body().len()),
        }
    }

    fn show_json(&self, name: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.show_json(name, value);
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.show_json(name, item);
                }
            }
            Value::String(text) => self.show_field(name, text),
            other => self.show_field(name, &other.to_string()),
        }
    }
}

impl<'c> AsyncHttpClient<'c> for Narrator {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            self.show_request(&request);
            let answer = self.http.call(request).await;
            match &answer {
                Ok(answer) => self.show_answer(answer),
                Err(error) => println!("\n  back  nothing: {error}"),
            }
            answer
        })
    }
}

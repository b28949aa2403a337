//! The token endpoint (RFC 6749 section 3.2) and the revocation endpoint (RFC 7009 section 2), as
//! strict as the reference allows.

use std::borrow::Cow;

use axum::{body, extract::Request, response::Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use secrecy::ExposeSecret;

use super::{
    answer::{Answer, Refusal},
    journal::{Outcome, RecordedRequest},
    ledger::{CodeRefusal, Issued, RefreshRefusal, Terms},
    lock::lock,
    provider::Provider,
    version::{Scope, Version},
};

/// Bytes. The longest honest request is a tenth of it.
const BODY_LIMIT: usize = 16 * 1024;

const FORM: &str = "application/x-www-form-urlencoded";

/// An endpoint to which a client sends its secret.
#[derive(Clone, Copy, Debug)]
pub(super) enum Endpoint {
    Token(Version),
    Revocation(Version),
}

impl Endpoint {
    fn version(self) -> Version {
        match self {
            Self::Token(version) | Self::Revocation(version) => version,
        }
    }
}

/// Takes one request from its arrival to the delivery of its answer.
pub(super) async fn answer(provider: &Provider, endpoint: Endpoint, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (body, too_large) = match body::to_bytes(body, BODY_LIMIT).await {
        Ok(body) => (body, false),
        // Too long, or the client went away in the middle; who is gone reads no answer.
        Err(_) => (body::Bytes::new(), true),
    };
    let request = RecordedRequest::new(parts, body);
    let user = user(provider, &request);
    let act = async |request: RecordedRequest| {
        let done = if too_large {
            Err(Refusal::too_large(BODY_LIMIT))
        } else {
            judge(provider, endpoint, &request)
        };
        match done {
            Ok(Done::Issued(issued)) => {
                (Outcome::Issued, token(provider, endpoint.version(), &issued))
            }
            Ok(Done::Revoked) => (Outcome::Revoked, Answer::revoked()),
            Err(refusal) => (refusal.outcome(), provider.refuse(refusal)),
        }
    };
    provider.tokens.answer(provider.error_style(), request.about(user), act).await
}

fn token(provider: &Provider, version: Version, issued: &Issued) -> Answer {
    let reshape = lock(&provider.settings).reshape.clone();
    match reshape {
        Some(reshape) => Answer::reshaped_token(version, issued, &*reshape),
        None => Answer::token(version, issued),
    }
}

/// The user of a request, as far as the provider can tell before it looks at the rest.
fn user(provider: &Provider, request: &RecordedRequest) -> Option<String> {
    let ledger = lock(&provider.ledger);
    let user = match request.grant() {
        Some("authorization_code") => ledger.user_of_code(&request.value("code")?)?.to_owned(),
        Some("refresh_token") => ledger.user_of_token(&request.value("refresh_token")?)?.to_owned(),
        Some(_) => request.field("userId").filter(|user| !user.is_empty())?,
        None => ledger.user_of_token(&request.value("token")?)?.to_owned(),
    };
    Some(user)
}

/// The outcome of a request that was not refused.
enum Done {
    Issued(Issued),
    Revoked,
}

fn judge(
    provider: &Provider,
    endpoint: Endpoint,
    request: &RecordedRequest,
) -> Result<Done, Refusal> {
    check_shape(request)?;
    check_client(provider, endpoint.version(), request)?;
    match endpoint {
        Endpoint::Token(version) => issue(provider, version, request).map(Done::Issued),
        Endpoint::Revocation(version) => {
            let token = required(request, "token")?;
            lock(&provider.ledger).revoke_token(&token, version);
            Ok(Done::Revoked)
        }
    }
}

fn issue(
    provider: &Provider,
    version: Version,
    request: &RecordedRequest,
) -> Result<Issued, Refusal> {
    let grant_type = required(request, "grant_type")?;
    let terms = provider.terms(version, scope(version, request)?);
    match &*grant_type {
        "authorization_code" => redeem(provider, &terms, request),
        "refresh_token" => refresh(provider, &terms, request),
        "client_credentials" => {
            // Where no user need be named, the tokens are the client's own: those of user "".
            let user = match required(request, "userId") {
                Err(_) if !version.requires_user_id() => Cow::Borrowed(""),
                named => named?,
            };
            Ok(lock(&provider.ledger).grant(&user, &terms))
        }
        _ => Err(Refusal::unknown_grant()),
    }
}

/// The scope that the request asks for, where the version has scopes.
fn scope(version: Version, request: &RecordedRequest) -> Result<Option<Scope>, Refusal> {
    let asked = request.value("scope").filter(|asked| version.has_scopes() && !asked.is_empty());
    asked
        .map(|asked| {
            Scope::parse(&asked).ok_or_else(|| Refusal::wrong_scope("The scope is read or write"))
        })
        .transpose()
}

/// Whether it is a token request at all: RFC 6749 section 3.2 and appendix B.
fn check_shape(request: &RecordedRequest) -> Result<(), Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::wrong_method());
    }
    if !is_form(request.headers()) {
        return Err(Refusal::bad_request(format!("The body must be {FORM}")));
    }
    if request.query().is_some() {
        return Err(Refusal::bad_request("Parameters belong into the body, never into the URL"));
    }
    let mut seen = Vec::with_capacity(8);
    for (name, _) in request.form() {
        if seen.contains(&name) {
            return Err(Refusal::repeated(&name));
        }
        seen.push(name);
    }
    Ok(())
}

fn is_form(headers: &HeaderMap) -> bool {
    let media_type = |value: &str| value.split(';').next().unwrap_or_default().trim().to_owned();
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| media_type(value).eq_ignore_ascii_case(FORM))
}

fn check_client(
    provider: &Provider,
    version: Version,
    request: &RecordedRequest,
) -> Result<(), Refusal> {
    let secret = provider.client_secret.expose_secret();
    if version.takes_basic() {
        // RFC 6749 section 2.3: one way of proving oneself in a request.
        if request.value("client_secret").is_some() {
            return Err(Refusal::bad_request("The client's secret belongs into the header"));
        }
        if request.value("client_id").is_some() && basic(request.headers()).is_some() {
            return Err(Refusal::bad_request("The header names the client, and so does the body"));
        }
        let (id, password) = basic(request.headers()).ok_or_else(Refusal::wrong_basic)?;
        if id != provider.client_id || password != secret {
            return Err(Refusal::wrong_basic());
        }
        return Ok(());
    }
    let client_id = required(request, "client_id")?;
    let client_secret = required(request, "client_secret")?;
    if client_id != provider.client_id {
        return Err(Refusal::wrong_client("client_id"));
    }
    if client_secret != secret {
        return Err(Refusal::wrong_client("client_secret"));
    }
    Ok(())
}

/// The id and the secret of an `Authorization: Basic` header, each form-urlencoded within it (RFC
/// 6749 section 2.3.1).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let (id, password) = plain_basic(headers)?;
    Some((form_decoded(&id), form_decoded(&password)))
}

/// The two halves of an `Authorization: Basic` header (RFC 7617).
pub(super) fn plain_basic(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, password) = decoded.split_once(':')?;
    Some((id.to_owned(), password.to_owned()))
}

/// A single value, decoded as a form's are (RFC 6749 appendix B).
fn form_decoded(value: &str) -> String {
    // Behind a name of its own, since a form is made of pairs.
    let pair = format!("v={}", value.replace('&', "%26"));
    let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn redeem(
    provider: &Provider,
    terms: &Terms,
    request: &RecordedRequest,
) -> Result<Issued, Refusal> {
    let code = required(request, "code")?;
    let redirect_uri = request.value("redirect_uri");
    let verifier = request.value("code_verifier");
    lock(&provider.ledger)
        .redeem_code(&code, redirect_uri.as_deref(), verifier.as_deref(), terms)
        .map_err(|refusal| match refusal {
            CodeRefusal::Dead => Refusal::wrong_grant("code", "The code is not valid"),
            CodeRefusal::RedirectUri => Refusal::wrong_grant(
                "redirect_uri",
                "The redirect URI is not the one the code was asked for with",
            ),
            CodeRefusal::RedirectUriMissing => Refusal::required("redirect_uri"),
            CodeRefusal::VerifierMissing => Refusal::required("code_verifier"),
            CodeRefusal::Verifier => {
                Refusal::wrong_grant("code_verifier", "The verifier does not fit the challenge")
            }
        })
}

fn refresh(
    provider: &Provider,
    terms: &Terms,
    request: &RecordedRequest,
) -> Result<Issued, Refusal> {
    let token = required(request, "refresh_token")?;
    let mut ledger = lock(&provider.ledger);
    if provider.checks_bearer
        && let Some(bearer) = bearer(request.headers())
        && ledger.bearer(bearer, Some(terms.version), terms.now).is_err()
    {
        return Err(Refusal::stale_bearer());
    }
    ledger.refresh(&token, terms).map_err(|refusal| match refusal {
        RefreshRefusal::Token(status) => Refusal::dead_refresh_token(status),
        RefreshRefusal::Scope => Refusal::wrong_scope("The scope is more than was granted"),
    })
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim_start())
}

/// An empty parameter is a missing one: RFC 6749 section 3.2.
fn required<'a>(request: &'a RecordedRequest, name: &str) -> Result<Cow<'a, str>, Refusal> {
    request.value(name).filter(|value| !value.is_empty()).ok_or_else(|| Refusal::required(name))
}

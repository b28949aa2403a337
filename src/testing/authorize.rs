//! The authorization endpoint (RFC 6749 section 3.1): where a person logs in and consents.

use std::{borrow::Cow, fmt::Write, sync::Arc};

use axum::{
    body,
    extract::{Request, State},
    response::Response,
};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
};
use url::{Url, form_urlencoded};

use super::{answer::Answer, ledger::Consent, lock::lock, provider::Provider, version::Scope};

pub(super) const PATH: &str = "/oauth/authorize";

/// The query parameter of a person who has consented already.
pub(super) const CONSENTED_USER: &str = "consented_user";

/// The user of a form that names nobody.
pub(super) const DEFAULT_USER: &str = "demo";

/// Bytes.
const FORM_LIMIT: usize = 16 * 1024;

/// Styles only: the page works without script. `form-action` is left out, because browsers apply
/// it to the redirect back as well, and that goes wherever the client lives.
const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// The parameters that the form carries from the page to the decision.
const CARRIED: [&str; 7] = [
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
];

/// Shows the page, or redirects at once where the URL names a user who has consented already.
pub(super) async fn page(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let parameters = Parameters::parse(query.as_bytes());
    let answer = match judge(&provider, &parameters) {
        Ok(request) => match parameters.first(CONSENTED_USER) {
            Some(user) => redirect(&allow(&provider, &parameters, &request, user)),
            None => consent_page(&provider, &parameters, &request),
        },
        Err(refusal) => refusal.into_answer(),
    };
    answer.into_response()
}

/// Takes the decision. The request is judged again: the form came from outside.
pub(super) async fn decide(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let Ok(form) = body::to_bytes(request.into_body(), FORM_LIMIT).await else {
        return error_page("The form is too large.").into_response();
    };
    let parameters = Parameters::parse(&form);
    let request = match judge(&provider, &parameters) {
        Ok(request) => request,
        Err(refusal) => return refusal.into_answer().into_response(),
    };
    let back = match parameters.first("decision") {
        Some("allow") => {
            let user = parameters.first("user").map(str::trim).filter(|user| !user.is_empty());
            allow(&provider, &parameters, &request, user.unwrap_or(DEFAULT_USER))
        }
        Some("deny") => request.back(&[("error", "access_denied")]),
        _ => return error_page("The form says neither allow nor deny.").into_response(),
    };
    redirect(&back).into_response()
}

/// The redirect back with a code for the user.
fn allow(
    provider: &Provider,
    parameters: &Parameters<'_>,
    request: &AuthorizationRequest,
    user: &str,
) -> Url {
    let consent = Consent {
        user: user.to_owned(),
        redirect_uri: request.redirect_uri.clone(),
        code_challenge: request.code_challenge.clone(),
        // An unknown one is ignored, as RFC 6749 section 3.3 allows.
        scope: parameters.first("scope").and_then(Scope::parse),
    };
    let code = lock(&provider.ledger).issue_code(consent, provider.now());
    request.back(&[("code", &code)])
}

/// The parameters of an authorization request, decoded.
struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    fn parse(encoded: &'a [u8]) -> Self {
        Self(form_urlencoded::parse(encoded).collect())
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// An empty parameter is a missing one: RFC 6749 section 3.1.
    fn first(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    fn repeated(&self, name: &str) -> bool {
        self.all(name).nth(1).is_some()
    }
}

/// A request that may be put before the person.
struct AuthorizationRequest {
    /// The text that was sent.
    redirect_uri: String,
    /// The same, parsed.
    target: Url,
    state: Option<String>,
    code_challenge: Option<String>,
    /// The provider's (RFC 9207).
    issuer: Option<String>,
}

impl AuthorizationRequest {
    /// The redirect URI with an answer added. A query it already has is kept (RFC 6749
    /// section 3.1.2).
    fn back(&self, answer: &[(&str, &str)]) -> Url {
        let mut back = self.target.clone();
        back.query_pairs_mut()
            .extend_pairs(answer)
            .extend_pairs(self.state.as_ref().map(|state| ("state", state)))
            .extend_pairs(self.issuer.as_ref().map(|issuer| ("iss", issuer)));
        back
    }
}

enum Refusal {
    /// The place to redirect to is itself in doubt, so the person is told and nobody else
    /// (RFC 6749 section 4.1.2.1).
    Person(&'static str),
    /// The client is told.
    Client(Url),
}

impl Refusal {
    fn into_answer(self) -> Answer {
        match self {
            Self::Person(message) => error_page(message),
            Self::Client(back) => redirect(&back),
        }
    }
}

fn judge(
    provider: &Provider,
    parameters: &Parameters<'_>,
) -> Result<AuthorizationRequest, Refusal> {
    if parameters.repeated("client_id") || parameters.repeated("redirect_uri") {
        return Err(Refusal::Person("The link names its client, or where to return, twice."));
    }
    if parameters.first("client_id") != Some(&provider.client_id) {
        return Err(Refusal::Person("The application that sent you here is not known."));
    }
    let (redirect_uri, target) = redirect_target(provider, parameters)?;
    let request = AuthorizationRequest {
        redirect_uri,
        target,
        state: parameters.first("state").map(str::to_owned),
        code_challenge: parameters.first("code_challenge").map(str::to_owned),
        issuer: provider.issuer.clone(),
    };
    let refuse = |error: &str, description: &str| {
        let back = request.back(&[("error", error), ("error_description", description)]);
        Err(Refusal::Client(back))
    };
    if let Some(name) = CARRIED.iter().find(|name| parameters.repeated(name)) {
        return refuse("invalid_request", &format!("{name} is given more than once"));
    }
    match parameters.first("response_type") {
        Some("code") => {}
        None => return refuse("invalid_request", "response_type is required"),
        Some(_) => return refuse("unsupported_response_type", "response_type must be code"),
    }
    match (parameters.first("code_challenge"), parameters.first("code_challenge_method")) {
        (None, None) => {}
        (Some(challenge), Some("S256")) if is_sha256(challenge) => {}
        (Some(_), Some("S256")) => {
            return refuse("invalid_request", "code_challenge is no SHA-256");
        }
        (None, Some(_)) => return refuse("invalid_request", "code_challenge is required"),
        // RFC 7636 section 4.3: left out, the method is plain, which is not offered here.
        (Some(_), _) => return refuse("invalid_request", "code_challenge_method must be S256"),
    }
    Ok(request)
}

fn redirect_target(
    provider: &Provider,
    parameters: &Parameters<'_>,
) -> Result<(String, Url), Refusal> {
    let sent = parameters.first("redirect_uri");
    let sent = match (sent, &provider.redirect_uri) {
        // RFC 9700 section 2.1: compared letter by letter.
        (Some(sent), Some(registered)) if sent != registered => {
            return Err(Refusal::Person("The place to return to is not a registered one."));
        }
        (Some(sent), _) => sent,
        (None, Some(registered)) => registered,
        (None, None) => return Err(Refusal::Person("The link does not say where to return to.")),
    };
    match Url::parse(sent) {
        // RFC 6749 section 3.1.2: absolute, and without a fragment.
        Ok(url) if url.fragment().is_none() && !url.cannot_be_a_base() => {
            Ok((sent.to_owned(), url))
        }
        _ => Err(Refusal::Person("The place to return to is not a usable address.")),
    }
}

/// Whether it is 32 bytes in unpadded base64url.
fn is_sha256(challenge: &str) -> bool {
    challenge.len() == 43
        && challenge.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// 303, so that the browser follows with a GET and "back" never posts again.
fn redirect(back: &Url) -> Answer {
    match HeaderValue::from_str(back.as_str()) {
        Ok(location) => guarded(Answer::redirect(StatusCode::SEE_OTHER, location)),
        Err(_) => error_page("The place to return to is not a usable address."),
    }
}

fn consent_page(
    provider: &Provider,
    parameters: &Parameters<'_>,
    request: &AuthorizationRequest,
) -> Answer {
    let mut main = String::with_capacity(2_048);
    let client = escape(&provider.client_id);
    let place = escape(request.target.host_str().unwrap_or(request.target.scheme()));
    // Writing to a `String` cannot fail.
    let _ = write!(
        main,
        "<h1>{client} asks for access</h1>\n\
         <p>It wants to read and change your accounting data. Whatever you choose, you go back \
         to <strong>{place}</strong>.</p>\n\
         <form method=\"post\" action=\"{PATH}\">\n"
    );
    for name in CARRIED {
        for value in parameters.all(name) {
            let value = escape(value);
            let _ = writeln!(main, "<input type=\"hidden\" name=\"{name}\" value=\"{value}\">");
        }
    }
    let _ = write!(
        main,
        "<label for=\"user\">Log in as</label>\n\
         <input id=\"user\" name=\"user\" type=\"text\" value=\"{DEFAULT_USER}\" \
         autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\">\n\
         <button type=\"submit\" name=\"decision\" value=\"allow\">Allow</button>\n\
         <button type=\"submit\" name=\"decision\" value=\"deny\">Deny</button>\n\
         </form>"
    );
    html(StatusCode::OK, "Log in and consent", &main)
}

fn error_page(message: &str) -> Answer {
    let message = escape(message);
    let main = format!("<h1>This cannot go on</h1>\n<p role=\"alert\">{message}</p>");
    html(StatusCode::BAD_REQUEST, "Error", &main)
}

fn html(status: StatusCode, title: &str, main: &str) -> Answer {
    let (head, rest) = PAGE.split_once("{title}").unwrap_or((PAGE, ""));
    let (head_end, foot) = rest.split_once("{main}").unwrap_or((rest, ""));
    guarded(Answer::html(status, [head, title, head_end, main, foot].concat()))
}

/// Adds the headers that every page and redirect of a login should carry: no frame, no script, no
/// leak of the state through a `Referer`.
fn guarded(answer: Answer) -> Answer {
    answer
        .with(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY))
        .with(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
        .with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

const PAGE: &str = include_str!("authorize.html");

/// For HTML text and for quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

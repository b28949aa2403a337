//! The site: who is signed in, what they see, and what their buttons do.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Form, FromRef, FromRequestParts, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use axum_extra::extract::PrivateCookieJar;
use axum_extra::extract::cookie::{Cookie, Key, SameSite};
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretSlice};
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::web::{LoginConfig, login_routes};
use hurdlr_oauth2::{Clock, TokenManager, UserId};
use reqwest::header::AUTHORIZATION;
use serde::Deserialize;
use url::Url;

use crate::pages::{self, Connection};

/// The users who may sign in here. A real site asks for more than a click.
pub(crate) const USERS: [&str; 2] = ["Ann", "Bob"];

const SESSION: &str = "session";

/// The provider that is asked for consent, and its clock.
pub(crate) enum Provider {
    /// In this process: its clock can be turned, together with the site's own.
    Embedded { fake: FakeHurdlr, clock: ManualClock },
    /// Hurdlr itself, and a URL of its API to call.
    Real { resource_url: Option<Url> },
}

impl Provider {
    fn resource_url(&self) -> Option<Url> {
        match self {
            Self::Embedded { fake, .. } => Some(fake.resource_url()),
            Self::Real { resource_url } => resource_url.clone(),
        }
    }

    fn now(&self) -> SystemTime {
        match self {
            Self::Embedded { clock, .. } => clock.now().wall(),
            Self::Real { .. } => SystemTime::now(),
        }
    }
}

/// State shared by all requests.
#[derive(Clone)]
pub(crate) struct Site(Arc<Inner>);

struct Inner {
    manager: TokenManager,
    provider: Provider,
    session_key: Key,
    api: reqwest::Client,
    /// When each user connected, as far as that was seen since the start.
    since: Mutex<HashMap<UserId, SystemTime>>,
    /// The outcome of a button, for the page that is shown next.
    notices: Mutex<HashMap<UserId, String>>,
}

/// The user of a request. Who is not signed in is sent to the page where they can.
pub(crate) struct SignedIn(UserId);

impl FromRequestParts<Site> for SignedIn {
    type Rejection = Redirect;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Self, Redirect> {
        let session = PrivateCookieJar::from_headers(&parts.headers, site.0.session_key.clone());
        let user = session.get(SESSION).and_then(|cookie| cookie.value().parse().ok());
        user.map(Self).ok_or(Redirect::to("/sign-in"))
    }
}

impl FromRef<Site> for Key {
    fn from_ref(site: &Site) -> Self {
        site.0.session_key.clone()
    }
}

impl Site {
    /// The session key has at least 64 bytes.
    pub(crate) fn new(
        manager: TokenManager,
        provider: Provider,
        session_key: &SecretSlice<u8>,
    ) -> Result<Self, Box<dyn Error>> {
        Ok(Self(Arc::new(Inner {
            manager,
            provider,
            session_key: Key::try_from(session_key.expose_secret())?,
            api: reqwest::Client::new(),
            since: Mutex::default(),
            notices: Mutex::default(),
        })))
    }

    /// The site's pages, and the routes of the login among them.
    pub(crate) fn router(self, cookie_key: SecretSlice<u8>) -> Result<Router, Box<dyn Error>> {
        let site = self.clone();
        let login = LoginConfig::new(cookie_key, move |mut parts| {
            let site = site.clone();
            async move {
                SignedIn::from_request_parts(&mut parts, &site).await.map(|SignedIn(user)| user)
            }
        });
        let router = Router::new()
            .route("/", get(status))
            .route("/sign-in", get(async || Html(pages::sign_in())).post(sign_in))
            .route("/sign-out", post(sign_out))
            .route("/call", post(call))
            .route("/turn", post(turn))
            .layer(middleware::map_response(guarded))
            .layer(middleware::from_fn(own_forms))
            .merge(login_routes(self.0.manager.clone(), login)?);
        Ok(router.with_state(self))
    }

    fn notice(&self, user: UserId, notice: String) -> Redirect {
        let mut notices = self.0.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.insert(user, notice);
        Redirect::to("/")
    }

    async fn connection(&self, user: &UserId) -> Connection {
        let (handle, now) = (self.0.manager.user(user), self.0.provider.now());
        // A page is not worth more of a wait than this.
        let token = handle.token_timeout(Duration::from_secs(10)).await;
        let mut since = self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        match token {
            Ok(token) => {
                let refreshes = handle.refreshes().unwrap_or_default();
                if refreshes == 0 {
                    since.insert(user.clone(), now - token.age());
                }
                Connection::Connected {
                    now,
                    since: since.get(user).copied(),
                    ends_in: token.remaining(),
                    due_in: handle.due_in().unwrap_or_default(),
                    refreshes,
                    can_call: self.0.provider.resource_url().is_some(),
                    can_turn: matches!(self.0.provider, Provider::Embedded { .. }),
                }
            }
            Err(error) if error.needs_login() => {
                since.remove(user);
                Connection::None
            }
            Err(error) => Connection::Unknown { is_temporary: error.is_temporary() },
        }
    }
}

/// Pages about a person stay out of caches and frames, and run no script.
async fn guarded(response: Response) -> Response {
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "same-origin"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ];
    (headers, response).into_response()
}

/// Forms are the site's own: another site's must not sign a visitor in as somebody else, whose
/// connection they would then make.
async fn own_forms(request: Request, next: Next) -> Response {
    let sent_by = request.headers().get("sec-fetch-site");
    if request.method() == Method::POST && sent_by.is_none_or(|site| site != "same-origin") {
        return StatusCode::FORBIDDEN.into_response();
    }
    next.run(request).await
}

#[derive(Deserialize)]
struct SignIn {
    user: String,
}

async fn sign_in(session: PrivateCookieJar, Form(form): Form<SignIn>) -> Response {
    if !USERS.contains(&form.user.as_str()) {
        return Redirect::to("/sign-in").into_response();
    }
    let cookie =
        Cookie::build((SESSION, form.user)).path("/").http_only(true).same_site(SameSite::Strict);
    (session.add(cookie), Redirect::to("/")).into_response()
}

async fn sign_out(session: PrivateCookieJar) -> impl IntoResponse {
    (session.remove(Cookie::build(SESSION).path("/")), Redirect::to("/sign-in"))
}

async fn status(State(site): State<Site>, SignedIn(user): SignedIn) -> Html<String> {
    let connection = site.connection(&user).await;
    let mut notices = site.0.notices.lock().unwrap_or_else(PoisonError::into_inner);
    Html(pages::status(user.as_str(), notices.remove(&user).as_deref(), &connection))
}

/// Calls the protected resource with the kept token.
async fn call(State(site): State<Site>, SignedIn(user): SignedIn) -> Redirect {
    let Some(url) = site.0.provider.resource_url() else { return Redirect::to("/") };
    let token = match site.0.manager.user(&user).token_timeout(Duration::from_secs(10)).await {
        Ok(token) => token.into_shared(),
        Err(error) => return site.notice(user, format!("There is no token: {error}.")),
    };
    let request = site.0.api.get(url).header(AUTHORIZATION, token.authorization_header());
    let notice = match request.send().await {
        Ok(answer) if answer.status() == 401 => {
            site.0.manager.user(&user).report_unauthorized(&token);
            "Hurdlr refused the token. It is being replaced.".into()
        }
        Ok(answer) => format!("Hurdlr answered with status {}.", answer.status().as_u16()),
        Err(_) => "Hurdlr could not be reached.".into(),
    };
    site.notice(user, notice)
}

/// Has the time pass that the token lives, for the embedded provider and for the site.
async fn turn(State(site): State<Site>, SignedIn(user): SignedIn) -> Redirect {
    let Provider::Embedded { fake, clock } = &site.0.provider else { return Redirect::to("/") };
    let ends_in = site.0.manager.user(&user).try_token().and_then(|token| token.remaining());
    let Some(ends_in) = ends_in else { return Redirect::to("/") };
    let by = ends_in + Duration::from_secs(60);
    clock.advance(by);
    fake.advance_clock(by);
    site.notice(user, format!("{} went by, and the token expired.", pages::span(by)))
}

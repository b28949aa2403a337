//! The site: who is signed in, what they see, and what their buttons do.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Form, FromRef, FromRequestParts, RawQuery, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use axum_extra::extract::PrivateCookieJar;
use axum_extra::extract::cookie::{Cookie, Key, SameSite};
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretSlice};
use hurdlr_oauth2::serde_json;
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::web::{ConnectedUser, Login, LoginConfig, UserRejection};
use hurdlr_oauth2::{Clock, ErrorKind, TokenManager, UserId};
use serde::Deserialize;

use crate::pages::{self, Developer, Expenses};

/// The users who may sign in here. A real site asks for more than a click.
pub(crate) const USERS: [&str; 2] = ["Ann", "Bob"];

const SESSION: &str = "session";

/// The most characters that are shown of an answer of another shape than expected.
const MAX_SHOWN: usize = 2_000;

/// The provider that is asked for consent, and its clock.
pub(crate) enum Provider {
    /// In this process: its clock can be turned, together with the site's own.
    Embedded { fake: FakeHurdlr, clock: ManualClock },
    /// Hurdlr itself.
    Real,
}

impl Provider {
    fn now(&self) -> SystemTime {
        match self {
            Self::Embedded { clock, .. } => clock.now().wall(),
            Self::Real => SystemTime::now(),
        }
    }
}

/// State shared by all requests.
#[derive(Clone)]
pub(crate) struct Site(Arc<Inner>);

struct Inner {
    login: Login,
    provider: Provider,
    session_key: Key,
    seen: Mutex<HashMap<UserId, Seen>>,
}

/// The events of a user since the site was started.
#[derive(Default)]
struct Seen {
    connected_at: Option<SystemTime>,
    /// The token's refreshes when its page was last shown.
    refreshes: u64,
    /// The outcome of a button, for the page that is shown next.
    notice: Option<String>,
}

/// The user of a request. A visitor who is not signed in is sent to the page where they can.
struct SignedIn(UserId);

impl FromRequestParts<Site> for SignedIn {
    type Rejection = Redirect;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Self, Redirect> {
        signed_in(&parts.headers, &site.0.session_key).map(Self)
    }
}

fn signed_in(headers: &HeaderMap, session_key: &Key) -> Result<UserId, Redirect> {
    let session = PrivateCookieJar::from_headers(headers, session_key.clone());
    let user = session.get(SESSION).and_then(|cookie| cookie.value().parse().ok());
    user.ok_or(Redirect::to("/sign-in"))
}

impl FromRef<Site> for Key {
    fn from_ref(site: &Site) -> Self {
        site.0.session_key.clone()
    }
}

/// The state of `ConnectedUser`.
impl FromRef<Site> for Login {
    fn from_ref(site: &Site) -> Self {
        site.0.login.clone()
    }
}

impl Site {
    /// The keys have at least 64 bytes: that of the site's own session, and that of pending logins.
    pub(crate) fn new(
        manager: TokenManager,
        provider: Provider,
        session_key: &SecretSlice<u8>,
        login_key: SecretSlice<u8>,
    ) -> Result<Self, Box<dyn Error>> {
        let session_key = Key::try_from(session_key.expose_secret())?;
        let key = session_key.clone();
        let config = LoginConfig::new(login_key, move |parts: Parts| {
            let user = signed_in(&parts.headers, &key);
            async move { user }
        });
        let login = Login::new(manager, config)?;
        let seen = Mutex::default();
        Ok(Self(Arc::new(Inner { login, provider, session_key, seen })))
    }

    /// The site's pages, and the routes of the login among them.
    pub(crate) fn router(self) -> Router {
        let login = self.0.login.routes();
        Router::new()
            .route("/", get(home))
            .route("/sign-in", get(async || Html(pages::sign_in())).post(sign_in))
            .route("/sign-out", post(sign_out))
            .route("/disconnect", get(ask_to_disconnect))
            .route("/turn", post(turn))
            .fallback(not_found)
            .method_not_allowed_fallback(not_found)
            .layer(middleware::map_response(guarded))
            .layer(middleware::from_fn(own_forms))
            .merge(login)
            .with_state(self)
    }

    fn seen<T>(&self, user: &UserId, look: impl FnOnce(&mut Seen) -> T) -> T {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        look(seen.entry(user.clone()).or_default())
    }

    /// The facts of the developer's box, and what is to be told of the time since the last page.
    fn developer(&self, user: &ConnectedUser) -> (Developer, Option<String>) {
        let (handle, now) = (user.handle(), self.0.provider.now());
        let token = handle.try_token();
        let refreshes = handle.refreshes().unwrap_or_default();
        let (connected_at, notice) = self.seen(handle.id(), |seen| {
            if refreshes == 0 {
                seen.connected_at = token.as_ref().map(|token| now - token.age());
            }
            let mut notice = seen.notice.take().unwrap_or_default();
            if refreshes > std::mem::replace(&mut seen.refreshes, refreshes) {
                notice += " The token was refreshed, and nobody had to log in again.";
            }
            (seen.connected_at, Some(notice).filter(|notice| !notice.is_empty()))
        });
        let developer = Developer {
            now,
            connected_at,
            ends_in: token.and_then(|token| token.remaining()),
            due_in: handle.due_in().unwrap_or_default(),
            refreshes,
            can_turn: matches!(self.0.provider, Provider::Embedded { .. }),
        };
        (developer, notice)
    }
}

/// The user's expenses, or why there are none.
async fn home(
    State(site): State<Site>,
    SignedIn(id): SignedIn,
    RawQuery(query): RawQuery,
    user: Result<ConnectedUser, UserRejection>,
) -> Response {
    let connected = async {
        let user = user?;
        let expenses = expenses(&user).await?;
        Ok((user, expenses))
    };
    match connected.await {
        Ok((user, expenses)) => {
            let (developer, notice) = site.developer(&user);
            Html(pages::home(id.as_str(), notice.as_deref(), &expenses, &developer)).into_response()
        }
        Err(UserRejection::NotConnected { connect, .. }) => {
            site.seen(&id, |seen| *seen = Seen::default());
            let is_parting = query.is_some_and(|query| query == pages::DISCONNECTED);
            Html(pages::not_connected(id.as_str(), is_parting, &connect)).into_response()
        }
        Err(UserRejection::Failed { error, .. }) => {
            let is_our_fault = matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported);
            let page = pages::unreachable(id.as_str(), is_our_fault);
            (StatusCode::SERVICE_UNAVAILABLE, Html(page)).into_response()
        }
        Err(other) => other.into_response(),
    }
}

/// Calls the API as the user.
async fn expenses(user: &ConnectedUser) -> Result<Expenses, UserRejection> {
    let answer = user.get("/rest/v4/expenses").send().await.map_err(|e| user.rejection(e))?;
    let status = answer.status();
    if !status.is_success() {
        return Ok(Expenses::Refused { status: status.as_u16() });
    }
    let text = answer.text().await.map_err(|e| user.rejection(e))?;
    Ok(match serde_json::from_str(&text) {
        Ok(list) => Expenses::List(list),
        Err(_) => Expenses::Other(text.chars().take(MAX_SHOWN).collect()),
    })
}

async fn ask_to_disconnect(SignedIn(user): SignedIn) -> Html<String> {
    Html(pages::ask_to_disconnect(user.as_str()))
}

async fn not_found(State(site): State<Site>, headers: HeaderMap) -> (StatusCode, Html<String>) {
    let user = signed_in(&headers, &site.0.session_key).ok();
    (StatusCode::NOT_FOUND, Html(pages::not_found(user.as_ref().map(UserId::as_str))))
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
        return (StatusCode::FORBIDDEN, Html(pages::foreign_form())).into_response();
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

/// Has the time pass that the token lives, for the embedded provider and for the site.
async fn turn(State(site): State<Site>, user: ConnectedUser) -> Redirect {
    let Provider::Embedded { fake, clock } = &site.0.provider else { return Redirect::to("/") };
    let ends_in = user.handle().try_token().and_then(|token| token.remaining());
    let Some(ends_in) = ends_in else { return Redirect::to("/") };
    let by = ends_in + Duration::from_secs(60);
    clock.advance(by);
    fake.advance_clock(by);
    let notice = format!("{} went by, and the token expired.", pages::span(by));
    site.seen(user.handle().id(), |seen| seen.notice = Some(notice));
    Redirect::to("/")
}

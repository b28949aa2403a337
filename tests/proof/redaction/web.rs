//! The login routes and the pages behind them: what they answer and log when a login fails.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::FromRef;
use axum::response::Redirect;
use axum::routing::get;
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode};
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{ErrorStyle, Fault, FaultyStore, ManualClock, StoreCall, StoreFault};
use hurdlr_oauth2::web::{ConnectedUser, CookieKey, Login, LoginConfig, UserRejection};
use hurdlr_oauth2::{ApiVersion, TokenManager, UserId};
use serde_json::json;
use tower::ServiceExt;

use super::provider::{LIFE, Provider, quote};
use super::{COOKIE_KEY, OTHER_USER, Sweep, USER};

const OWN_PAGE: &[(&str, &str)] =
    &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")];

struct App<'a> {
    sweep: &'a Sweep,
    provider: Provider,
    clock: ManualClock,
    store: FaultyStore<MemoryStore>,
    router: Router,
    cookies: BTreeMap<String, String>,
}

#[derive(Clone)]
struct AppState(Login, Sweep);

impl FromRef<AppState> for Login {
    fn from_ref(state: &AppState) -> Self {
        state.0.clone()
    }
}

impl FromRef<AppState> for Sweep {
    fn from_ref(state: &AppState) -> Self {
        state.1.clone()
    }
}

async fn signed_in(parts: Parts) -> Result<UserId, Redirect> {
    let user = parts.headers.get("x-user").and_then(|user| user.to_str().ok());
    user.and_then(|user| user.parse().ok()).ok_or(Redirect::to("/sign-in"))
}

/// A page that calls the API; what its extractor is or says is heard by the sweep.
async fn page(
    axum::extract::State(sweep): axum::extract::State<Sweep>,
    user: Result<ConnectedUser, UserRejection>,
) -> Result<String, UserRejection> {
    let user = user.inspect_err(|rejection| sweep.shown(rejection))?;
    sweep.shown(&user);
    let answer = user.get("/rest/v4/me").send().await;
    answer.map(|answer| answer.status().to_string()).map_err(|error| user.rejection(error))
}

impl<'a> App<'a> {
    async fn new(sweep: &'a Sweep, style: ErrorStyle) -> Self {
        let provider = Provider::start(sweep, style).await;
        let clock = ManualClock::at(provider.fake.now());
        let hurdlr = provider.builder(ApiVersion::V4).clock(clock.clone()).build().unwrap();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let manager = TokenManager::builder(hurdlr, store.clone()).build().unwrap();
        let key = CookieKey::from(SecretSlice::from(COOKIE_KEY.to_vec()));
        let api = manager.middleware().client(|client| provider.trusted(client)).unwrap();
        let config = LoginConfig::new(key, signed_in).return_to("/home").api(api.build());
        let login = Login::new(manager, config).unwrap();
        let router = Router::new()
            .route("/page", get(page))
            .merge(login.routes())
            .with_state(AppState(login, sweep.clone()));
        Self { sweep, provider, clock, store, router, cookies: BTreeMap::new() }
    }

    /// Has the router answer a browser. A redirect to the provider carries the state, and is for
    /// nobody else.
    async fn send(
        &mut self,
        [method, user, path]: [&str; 3],
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap) {
        let mut request = Request::builder().method(method).uri(path).header("x-user", user);
        for (name, value) in &self.cookies {
            request = request.header("cookie", format!("{name}={value}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        for cookie in parts.headers.get_all("set-cookie") {
            let (pair, attributes) = cookie.to_str().unwrap().split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.into(), value.into());
            }
        }
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let mut shown = parts.headers.clone();
        let location = parts.headers.get("location").map_or("", |it| it.to_str().unwrap());
        if location.starts_with(self.provider.fake.base_url().as_str()) {
            shown.remove("location");
        }
        let place = format!("a page of {}", path.split('?').next().unwrap());
        self.sweep.text(place, format!("{shown:?}\n{}", String::from_utf8_lossy(&body)));
        (parts.status, parts.headers)
    }

    /// Begins a login that the person allows: where they come back to.
    async fn begin(&mut self) -> String {
        let (status, headers) = self.send(["GET", USER, "/hurdlr/connect"], OWN_PAGE).await;
        assert_eq!(status, 303);
        let url = headers["location"].to_str().unwrap().parse().unwrap();
        let back = self.provider.fake.consent(&url, USER).await.unwrap();
        for (name, value) in back.query_pairs() {
            self.sweep.secret(&name, &*value);
        }
        back[url::Position::BeforePath..].to_owned()
    }

    async fn come_back(&mut self, callback: &str) -> StatusCode {
        self.send(["GET", USER, callback], OWN_PAGE).await.0
    }
}

pub(super) async fn fail_all(sweep: &Sweep) {
    for style in [ErrorStyle::Envelope, ErrorStyle::Rfc6749] {
        let mut app = App::new(sweep, style).await;
        of_the_browser(&mut app).await;
        of_the_provider(&mut app).await;
        of_the_store(&mut app).await;
        of_pages(&mut app).await;
    }
}

/// Callbacks that are forged, doubled, late or another's.
async fn of_the_browser(app: &mut App<'_>) {
    let cross_site = &[("sec-fetch-site", "cross-site")];
    app.send(["GET", USER, "/hurdlr/connect"], cross_site).await;
    app.send(["GET", "", "/hurdlr/connect"], OWN_PAGE).await;
    assert_eq!(app.send(["POST", USER, "/hurdlr/disconnect"], cross_site).await.0, 403);
    let callback = app.begin().await;
    app.send(["GET", OTHER_USER, &callback], OWN_PAGE).await;
    let state = callback.split_once("state=").unwrap().1.split('&').next().unwrap().to_owned();
    for change in [
        format!("{callback}&state={state}"),
        format!("{callback}&code=another+code+of=marker"),
        callback.replace(&state, "another+state+of=marker"),
        callback.replace("code=", "error=access_denied&error_description="),
        format!("{callback}&iss={state}"),
        format!("{callback}&{}", "x".repeat(10_000)),
        callback.split('?').next().unwrap().to_owned(),
    ] {
        app.begin().await;
        assert!(!app.come_back(&change).await.is_redirection(), "{change}");
    }
    let callback = app.begin().await;
    app.clock.advance(LIFE);
    app.provider.fake.advance_clock(LIFE);
    app.come_back(&callback).await;
    let callback = app.begin().await;
    for cookie in app.cookies.values_mut() {
        cookie.replace_range(20..24, "AAAA");
    }
    app.come_back(&callback).await;
    app.cookies.clear();
    app.come_back(&callback).await;
}

/// What becomes of the exchange.
async fn of_the_provider(app: &mut App<'_>) {
    type MakeFault = fn(&str) -> Fault;
    let faults: [MakeFault; 8] = [
        |_| Fault::DropAfter,
        |_| Fault::Unauthorized,
        |_| Fault::rate_limited(),
        |_| Fault::html(502),
        |said| Fault::answer(500, said),
        |said| {
            Fault::answer(
                400,
                json!({"error": "invalid_grant", "error_description": said}).to_string(),
            )
        },
        |said| Fault::answer(401, json!({"error": said, "error_uri": said}).to_string()),
        |said| Fault::answer_after(200, json!({"access_token": [said]}).to_string()),
    ];
    for make in faults {
        let callback = app.begin().await;
        let sweep = app.sweep.clone();
        app.provider.fake.fault_plan(move |request| Some(make(&quote(&sweep, request))));
        assert!(!app.come_back(&callback).await.is_redirection());
        app.provider.fake.clear_faults();
    }
}

async fn of_the_store(app: &mut App<'_>) {
    for failing in [StoreCall::Redeem, StoreCall::Read, StoreCall::Claim, StoreCall::Save] {
        for fault in [StoreFault::Before, StoreFault::After] {
            app.store.plan(move |call| (call == failing).then_some(fault));
            let callback = app.begin().await;
            app.come_back(&callback).await;
            app.store.recover();
        }
    }
    let callback = app.begin().await;
    assert_eq!(app.come_back(&callback).await, 303);
    app.store.plan(|call| (call == StoreCall::Forget).then_some(StoreFault::Before));
    let own = &[("sec-fetch-site", "same-origin")];
    assert_eq!(app.send(["POST", USER, "/hurdlr/disconnect"], own).await.0, 503);
    app.store.recover();
    app.come_back(&callback).await;
}

/// Pages of the app that need a connection.
async fn of_pages(app: &mut App<'_>) {
    let callback = app.begin().await;
    assert_eq!(app.come_back(&callback).await, 303);
    assert_eq!(app.send(["GET", USER, "/page"], OWN_PAGE).await.0, 200);
    app.send(["GET", "", "/page"], OWN_PAGE).await;
    app.send(["GET", OTHER_USER, "/page"], OWN_PAGE).await;
    for fault in [Fault::Unauthorized, Fault::rate_limited_for(LIFE), Fault::DropAfter] {
        app.provider.fake.api().fault_next(fault);
        app.send(["GET", USER, "/page"], OWN_PAGE).await;
    }
    app.clock.advance(LIFE);
    app.provider.fake.advance_clock(LIFE);
    app.provider.fake.fault_next(Fault::DropBefore);
    app.send(["GET", USER, "/page"], OWN_PAGE).await;
    app.clock.advance(LIFE);
    app.provider.fake.revoke_everything(USER);
    app.send(["GET", USER, "/page"], OWN_PAGE).await;
}

//! `ConnectedUser`: who reaches a page that needs a connection, and where all others are sent.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::FromRef;
use axum::response::Redirect;
use axum::routing::{any, get};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::{FakeHurdlr, Fault, FaultyStore, Gate, ManualClock, StoreFault};
use hurdlr_oauth2::web::{ConnectedUser, Login, LoginConfig, UserRejection};
use hurdlr_oauth2::{ErrorKind, Hurdlr, RetryPolicy, TokenManager, UserId};
use serde_json::{Value, json};
use tower::ServiceExt;

const HOUR: Duration = Duration::from_secs(3_600);

/// An app with a session layer of its own, in the order that the docs name.
struct App {
    fake: FakeHurdlr,
    clock: ManualClock,
    store: FaultyStore<MemoryStore>,
    manager: TokenManager,
    router: Router,
}

/// What a session layer leaves behind for extractors.
#[derive(Clone)]
struct Session(Option<String>);

#[derive(Clone)]
struct AppState {
    hurdlr: Login,
}

impl FromRef<AppState> for Login {
    fn from_ref(state: &AppState) -> Self {
        state.hurdlr.clone()
    }
}

async fn expenses(user: ConnectedUser) -> Result<String, UserRejection> {
    let answer = user.get("/rest/v4/expenses").send().await.map_err(|e| user.rejection(e))?;
    let answer = answer.error_for_status().map_err(|e| user.rejection(e))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|e| user.rejection(e))?;
    Ok(format!("{} {status} {text}", user.handle().id().as_str()))
}

async fn post(user: ConnectedUser) -> String {
    let posted = user.request(Method::POST, "rest/v4/me").body("12345").send().await.unwrap();
    posted.text().await.unwrap()
}

async fn reason(user: Result<ConnectedUser, UserRejection>) -> String {
    match user {
        Ok(_) => "connected".into(),
        Err(UserRejection::SignedOut(answer)) => format!("signed out: {}", answer.status()),
        Err(UserRejection::NotConnected { connect, error, .. }) => {
            format!("{:?} at {connect}", error.kind())
        }
        Err(UserRejection::Failed { error, .. }) => format!("{:?}", error.kind()),
        Err(other) => format!("{other:?}"),
    }
}

async fn signed_in(parts: Parts) -> Result<UserId, Redirect> {
    let Session(user) = parts.extensions.get().cloned().unwrap();
    user.and_then(|user| user.parse().ok()).ok_or(Redirect::to("/sign-in"))
}

impl App {
    async fn new() -> Self {
        Self::with("https://app.example.com/hurdlr/callback", |config| config, |router| router)
            .await
    }

    async fn with(
        redirect_uri: &str,
        change: impl FnOnce(LoginConfig) -> LoginConfig,
        place: impl FnOnce(Router) -> Router,
    ) -> Self {
        let clock = ManualClock::new();
        let fake = FakeHurdlr::builder().token_life(HOUR).start().await.unwrap();
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri(redirect_uri)
            .retry(RetryPolicy::default().max_attempts(1))
            .clock(clock.clone())
            .build()
            .unwrap();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let manager = TokenManager::builder(hurdlr, store.clone()).build().unwrap();
        let config = LoginConfig::new(crate::app::key(1), signed_in).return_to("/home");
        let login = Login::new(manager.clone(), change(config)).unwrap();
        let me = fake.resource_url();
        let router = Router::new()
            .route("/expenses", any(expenses))
            .route("/post", get(post))
            .route(
                "/api",
                get(async |user: ConnectedUser| {
                    user.api().get(me).send().await.unwrap().text().await.unwrap()
                }),
            )
            .route("/reason", get(reason))
            .merge(login.routes())
            .layer(axum::middleware::map_request(async |mut request: Request<Body>| {
                let user = request.headers().get("x-user").map(|it| it.to_str().unwrap().into());
                request.extensions_mut().insert(Session(user));
                request
            }))
            .with_state(AppState { hurdlr: login });
        Self { fake, clock, store, manager, router: place(router) }
    }

    async fn connects(&self, user: &str) {
        let (url, pending) = self.manager.hurdlr().begin_login().unwrap();
        let callback = self.fake.consent(&url, user).await.unwrap();
        let user = UserId::new(user).unwrap();
        assert!(self.manager.complete_login(&user, pending, &callback).await.unwrap());
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.fake.advance_clock(by);
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[("x-user", "ann")]).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.into()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The redirect to connect, if this is one.
    fn connect(&self) -> &str {
        assert_eq!((self.status.as_u16(), self.header("cache-control")), (303, "no-store"));
        self.header("location")
    }
}

/// A handler gets the user's handle, and calls with their token by one shared client.
#[tokio::test]
async fn connected_users_call_as_themselves() {
    let app = App::new().await;
    for user in ["ann", "bob"] {
        app.connects(user).await;
        let answer = app.send("GET", "/expenses", &[("x-user", user)]).await;
        assert!(answer.body.starts_with(&format!("{user} 200 OK [")), "{}", answer.body);
        assert!(answer.body.contains(&format!("\"owner\":\"{user}\"")), "{}", answer.body);
    }
    for (path, method, bytes) in [("/post", "POST", 5), ("/api", "GET", 0)] {
        let made: Value = serde_json::from_str(&app.get(path).await.body).unwrap();
        assert_eq!(made, json!({ "user": "ann", "method": method, "body_bytes": bytes }));
    }
    let status = app.get("/reason").await.body;
    assert_eq!(status, "connected");
}

/// The app's own answer reaches a browser without a session.
#[tokio::test]
async fn signed_out_visitor_gets_apps_answer() {
    let app = App::new().await;
    app.connects("ann").await;
    let answer = app.send("GET", "/expenses", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/sign-in"));
    assert_eq!(app.send("GET", "/reason", &[]).await.body, "signed out: 303 See Other");
}

/// A page comes back to itself, and a request that cannot be repeated to the default.
#[tokio::test]
async fn unconnected_user_is_sent_to_connect() {
    let app = App::new().await;
    let back = app.get("/expenses?year=2026&page=2").await;
    let expected = "/hurdlr/connect?return_to=%2Fexpenses%3Fyear%3D2026%26page%3D2";
    assert_eq!(back.connect(), expected);
    let head = app.send("HEAD", "/expenses", &[("x-user", "ann")]).await;
    assert_eq!(head.connect(), "/hurdlr/connect?return_to=%2Fexpenses");
    let posted = app.send("POST", "/expenses", &[("x-user", "ann")]).await;
    assert_eq!(posted.connect(), "/hurdlr/connect?return_to=%2Fhome");
    let long = app.get(&format!("/expenses?q={}", "x".repeat(300))).await;
    assert_eq!(long.connect(), "/hurdlr/connect?return_to=%2Fhome");
    let reason = app.get("/reason").await.body;
    assert_eq!(reason, "LoginRequired at /hurdlr/connect?return_to=%2Freason");
    assert_eq!(app.fake.count().total() + app.fake.api().count().total(), 0);
}

/// A script cannot follow a login: it is told so.
#[tokio::test]
async fn fetching_script_gets_403() {
    let app = App::new().await;
    let fetched = app.send("GET", "/expenses", &[("x-user", "ann"), ("sec-fetch-mode", "cors")]);
    let fetched = fetched.await;
    assert_eq!((fetched.status.as_u16(), fetched.header("location")), (403, ""));
    let opened = app.send("GET", "/expenses", &[("x-user", "ann"), ("sec-fetch-mode", "navigate")]);
    assert_eq!(opened.await.status, 303);
}

/// The destination has the prefix that a browser sees, whether a proxy or `nest` takes it off.
#[tokio::test]
async fn prefix_is_part_of_the_destination() {
    let redirect_uri = "https://app.example.com/books/hurdlr/callback";
    let below = |config: LoginConfig| config.callback_path("/hurdlr/callback");
    let proxied = App::with(redirect_uri, below, |router| router).await;
    let expected = "/books/hurdlr/connect?return_to=%2Fbooks%2Fexpenses";
    assert_eq!(proxied.get("/expenses").await.connect(), expected);
    let nest = |router| Router::new().nest("/books", router);
    let nested = App::with(redirect_uri, below, nest).await;
    assert_eq!(nested.get("/books/expenses").await.connect(), expected);
}

/// A login that is over sends to connect, whether the extractor or a call finds out.
#[tokio::test]
async fn login_found_over_is_begun_anew() {
    let app = App::new().await;
    app.connects("ann").await;
    app.fake.revoke_everything("ann");
    // The token lives by the app's clock: the call is refused, and the refresh as well.
    let called = app.get("/expenses").await;
    assert_eq!(called.connect(), "/hurdlr/connect?return_to=%2Fexpenses", "{}", called.body);
    app.advance(2 * HOUR);
    let extracted = app.get("/expenses").await;
    assert_eq!(extracted.connect(), "/hurdlr/connect?return_to=%2Fexpenses");
}

/// A failure that passes is a page that says so, and sends nobody through a login.
#[tokio::test]
async fn passing_failures_begin_no_login() {
    let app = App::new().await;
    app.connects("ann").await;
    app.advance(2 * HOUR);
    app.fake.fault_plan(|_| Some(Fault::unavailable_for(Duration::from_secs(90))));
    let busy = app.get("/expenses").await;
    assert_eq!((busy.status.as_u16(), busy.header("location")), (503, ""));
    assert_eq!(busy.header("retry-after"), "90");
    assert!(busy.body.contains("Your connection is kept."), "{}", busy.body);
    assert!(busy.body.contains("href=\"/expenses\""), "{}", busy.body);
    assert!(busy.header("content-security-policy").contains("default-src 'none'"));
    assert_eq!(app.get("/reason").await.body, format!("{:?}", ErrorKind::Unavailable));
}

/// A store that fails says nothing about the login of a user whom memory does not know.
#[tokio::test]
async fn failing_store_begins_no_login() {
    let app = App::new().await;
    app.store.plan(|_| Some(StoreFault::Before));
    let failed = app.get("/expenses").await;
    assert_eq!((failed.status.as_u16(), failed.header("location")), (503, ""));
}

/// An API that breaks a call off is not a lost login either.
#[tokio::test]
async fn broken_call_is_a_page() {
    let app = App::new().await;
    app.connects("ann").await;
    for (fault, status) in [(Fault::DropBefore, 503), (Fault::Truncated, 502)] {
        app.fake.api().fault_plan(move |_| Some(fault.clone()));
        let broken = app.get("/expenses").await;
        assert_eq!(broken.status.as_u16(), status, "{}", broken.body);
        assert!(!broken.body.contains("127.0.0.1"), "{}", broken.body);
    }
}

/// An answer that refuses the call is no page to be tried again in a few minutes.
#[tokio::test]
async fn refused_call_is_told_apart() {
    let app = App::new().await;
    app.connects("ann").await;
    for (answered, status, words) in [
        (404, 502, "Hurdlr gave no usable answer"),
        (503, 503, "Hurdlr cannot be reached"),
        (422, 502, "Hurdlr gave no usable answer"),
        (429, 503, "Hurdlr cannot be reached"),
    ] {
        app.fake.api().fault_plan(move |_| Some(Fault::answer(answered, "{}")));
        let refused = app.get("/expenses").await;
        assert_eq!(refused.status.as_u16(), status, "{answered}: {}", refused.body);
        assert!(refused.body.contains(words), "{answered}: {}", refused.body);
    }
}

/// A provider that takes its time keeps nobody waiting for longer than a page is worth.
#[tokio::test]
async fn slow_refresh_is_a_page() {
    let app = App::new().await;
    app.connects("ann").await;
    app.advance(2 * HOUR);
    let gate = Gate::closed();
    app.fake.fault_next(Fault::Hold(gate.clone()));
    let (slow, ()) = tokio::join!(app.get("/expenses"), async {
        app.fake.arrived(2).await; // the login's exchange was the first
        app.clock.advance(Duration::from_secs(11));
    });
    assert_eq!((slow.status.as_u16(), slow.header("location")), (504, ""));
    gate.open();
}

/// The app's own client makes the calls.
#[tokio::test]
async fn apps_client_makes_the_calls() {
    let app = App::new().await;
    app.connects("ann").await;
    let named = app.manager.middleware().client(|client| client.user_agent("books/1")).unwrap();
    let config = LoginConfig::new(crate::app::key(1), signed_in).api(named.build());
    let login = Login::new(app.manager.clone(), config).unwrap();
    let router = Router::new().route("/expenses", get(expenses)).with_state(login);
    let mut request = Request::get("/expenses").body(Body::empty()).unwrap();
    request.extensions_mut().insert(Session(Some("ann".into())));
    assert_eq!(router.oneshot(request).await.unwrap().status(), 200);
    assert_eq!(app.fake.api().requests()[0].headers()["user-agent"], "books/1");
}

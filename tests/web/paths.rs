//! Routes below a prefix, in a nest, and in an app with a state.

use axum::Router;
use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::web::{LoginConfig, login_routes};

use crate::app::{self, App, Browser, KEY, Log, OWN_PAGE};

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    type Change = fn(LoginConfig) -> LoginConfig;
    let changes: [(Change, &str); 8] = [
        (|config| config.other_key(SecretSlice::from(vec![0; 63])), "64"),
        (|config| config.return_to("https://evil.example"), "return_to"),
        (|config| config.return_to(""), "return_to"),
        (|config| config.connect_path("hurdlr"), "connect_path"),
        (|config| config.connect_path("/{hurdlr}"), "connect_path"),
        (|config| config.callback_path("/a?b"), "callback_path"),
        (|config| config.disconnect_path(""), "disconnect_path"),
        (|config| config.disconnect_path("/hurdlr/connect"), "path"),
    ];
    let site = app::Site::new();
    for (change, named) in changes {
        let manager = site.manager(site.builder());
        let config = change(app::config(KEY, |_| ()));
        let error = login_routes::<()>(manager, config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(named), "{error}");
    }
    let without = hurdlr_oauth2::Hurdlr::builder("id", "secret".into());
    let routes = login_routes::<()>(site.manager(without), app::config(KEY, |_| ()));
    assert!(routes.unwrap_err().to_string().contains("authorize_url"));
}

fn below_books(config: LoginConfig) -> LoginConfig {
    config.connect_path("/in").callback_path("/back").disconnect_path("/out")
}

#[tokio::test]
async fn links_stay_below_proxys_prefix() {
    let builder = |site: &app::Site| site.builder().redirect_uri("https://example.com/books/back");
    let app = App::with(builder, |config| below_books(config).return_to("/x"));
    for (asked, end) in [
        ("", "/books/x"),
        ("?return_to=/books/y%3Fz", "/books/y?z"),
        ("?return_to=/y%23z", "/books/y#z"),
        ("?return_to=/books", "/books"),
        ("?return_to=/bookshop", "/books/bookshop"),
        ("?return_to=/books/in", "/books/x"),
        ("?return_to=/in%3Freturn_to=/", "/books/x"),
        ("?return_to=/books/back", "/books/x"),
        ("?return_to=//evil.example", "/books/x"),
    ] {
        let mut ann = Browser::of("ann");
        let began = ann.get(&app, &format!("/in{asked}")).await;
        let callback = app.consent(&began, "ann").await;
        let callback = callback.strip_prefix("/books").unwrap();
        assert_eq!(ann.get(&app, callback).await.location(), end, "{asked}");
    }
    let mut ann = Browser::of("ann");
    let gone = ann.send(&app, "POST", "/out", &[("origin", "https://example.com")]).await;
    assert_eq!(gone.location(), "/books/x");
    let asked = ann.send(&app, "GET", "/in", &[("sec-fetch-site", "cross-site")]).await;
    assert!(asked.body.contains("action=\"/books/in?return_to=%2Fbooks%2Fx\""), "{}", asked.body);
    let failed = ann.get(&app, "/back?code=c&state=s").await;
    assert!(failed.body.contains("href=\"/books/in?return_to=%2Fbooks%2Fx\""), "{}", failed.body);
    assert!(failed.body.contains("href=\"/books/x\""), "{}", failed.body);
    // By default the app's root is returned to, and not that of the host.
    let LoginPage { routes, .. } = LoginPage::of("https://example.com/books/back", below_books);
    let answer = routes.unwrap();
    let answer = app::answer(&answer, "GET", "/in", &[("sec-fetch-site", "none")]).await;
    assert!(answer.body.contains("return_to=%2Fbooks%2F\""), "{}", answer.body);
}

/// The routes of an app that says nothing else about its login.
struct LoginPage {
    routes: Result<Router, hurdlr_oauth2::Error>,
    site: app::Site,
}

impl LoginPage {
    fn of(redirect_uri: &str, change: impl FnOnce(LoginConfig) -> LoginConfig) -> Self {
        let site = app::Site::new();
        let manager = site.manager(site.builder().redirect_uri(redirect_uri));
        let config = change(LoginConfig::new(app::key(KEY), app::signed_in));
        Self { routes: login_routes(manager, config), site }
    }
}

#[tokio::test]
async fn nested_routes_work_or_name_nest() {
    let nested = LoginPage::of("https://example.com/books/back", below_books);
    let router = Router::new().nest("/books", nested.routes.unwrap());
    let began = app::answer(&router, "GET", "/books/in", &OWN_PAGE).await;
    let url = began.location().parse().unwrap();
    let back = nested.site.fake.consent(&url, "ann").await.unwrap();
    let cookie = began.set_cookies().remove(0);
    let headers = [("cookie", cookie.split_once(';').unwrap().0)];
    let done = app::answer(&router, "GET", &app::path_of(&back), &headers).await;
    assert_eq!((done.status, done.location()), (303, "/books/"));

    for redirect_uri in ["https://example.com/books/back", "https://example.com/back"] {
        let misplaced = LoginPage::of(redirect_uri, |config| config.connect_path("/in"));
        let router = Router::new().nest("/books", misplaced.routes.unwrap());
        let answer = app::answer(&router, "GET", "/books/in", &OWN_PAGE).await;
        assert_eq!((answer.status, answer.set_cookies().len()), (500, 0), "{redirect_uri}");
        assert!(answer.body.contains("not set up"), "{}", answer.body);
    }
    assert!(Log::of_everything().text().contains("the login routes are nested at /books,"));
}

#[tokio::test]
async fn odd_redirect_uri_works_or_is_named() {
    for path in [
        "/hurdlr;v=1/callback",
        "/a=b/callback",
        "/a@b/@c",
        "/a:b/callback",
        "/a!$&'()*+,=~b",
        "/hurdlr/callback/",
        "/a%20b/%C3%A9",
        "/a%7Bb%7D",
        "//a",
        "/hurdlr/callback?tenant=1&b=c?d",
        "/ä/{b}",
    ] {
        let page = LoginPage::of(&format!("https://app.example.com{path}"), |config| config);
        // Merged, as apps do it: axum judges the paths once more.
        let router = Router::new()
            .route("/", axum::routing::get(async || "home"))
            .merge(page.routes.unwrap());
        let began = app::answer(&router, "GET", "/hurdlr/connect", &OWN_PAGE).await;
        let url = began.location().parse().unwrap();
        let back = page.site.fake.consent(&url, "ann").await.unwrap();
        let cookie = began.set_cookies().remove(0);
        let headers = [("cookie", cookie.split_once(';').unwrap().0)];
        let done = app::answer(&router, "GET", &app::path_of(&back), &headers).await;
        assert_eq!((done.status, done.location()), (303, "/"), "{path}");
    }
    for path in ["", "/", "/:a/callback", "/a/*b", "/?a=b", "/hurdlr/connect"] {
        let page = LoginPage::of(&format!("https://app.example.com{path}"), |config| config);
        let error = page.routes.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let named = error.to_string();
        assert!(named.contains("redirect_uri") || named.contains("callback_path"), "{named}");
    }
    let odd = LoginPage::of("https://example.com/a//back", below_books).routes.unwrap_err();
    assert!(odd.to_string().contains("redirect_uri"), "{odd}");
}

#[tokio::test]
async fn routes_fit_into_apps_with_state() {
    #[derive(Clone)]
    struct AppState;
    let site = app::Site::new();
    let manager = site.manager(site.builder());
    let routes = login_routes(manager, app::config(KEY, |_| ())).unwrap();
    let _: Router = Router::<AppState>::new().merge(routes).with_state(AppState);
}

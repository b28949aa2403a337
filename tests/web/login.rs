//! A login, from the link to the kept token.

use hurdlr_oauth2::testing::Fault;
use hurdlr_oauth2::web::login_routes;
use hurdlr_oauth2::{ApiVersion, UserId};

use super::{MINUTE, parameter, to_strings};
use crate::app::{self, App, Browser, KEY};

#[tokio::test]
async fn a_user_connects_is_kept_and_disconnects() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let began = ann.get(&app, "/hurdlr/connect?return_to=/accounting%3Fyear=2026").await;
    assert_eq!(began.status, 303);
    assert!(began.location().starts_with(app.site.fake.authorize_url().as_str()));
    let cookie = began.set_cookies().remove(0);
    let attributes: Vec<_> = cookie.split("; ").skip(1).collect();
    assert!(cookie.starts_with("__Host-hurdlr_login_"), "{cookie}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=600"] {
        assert!(attributes.contains(&attribute), "{attribute} is not in {cookie}");
    }
    assert!(!cookie.contains("Domain"));

    let callback = app.consent(&began, "ann").await;
    let done = ann.get(&app, &callback).await;
    assert_eq!((done.status, done.location()), (303, "/accounting?year=2026"));
    assert!(done.set_cookies()[0].contains("Max-Age=0"));
    assert!(ann.cookies.is_empty());
    assert!(app.is_connected("ann").await && !app.is_connected("bob").await);
    assert_eq!(app.site.fake.count().grant("authorization_code"), 1);
    assert_eq!(app.failures(), [""; 0]);

    let gone = ann.disconnect(&app, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!((gone.status, gone.location()), (303, "/home"));
    assert!(!app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn app_answers_where_nobody_is_signed_in() {
    let app = App::new();
    let mut nobody = Browser::of("");
    for path in ["/hurdlr/connect", "/hurdlr/callback?code=c&state=s"] {
        let answer = nobody.get(&app, path).await;
        assert_eq!((answer.status, answer.location()), (303, "/sign-in"), "{path}");
    }
    let answer = nobody.disconnect(&app, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(answer.location(), "/sign-in");
    assert_eq!((app.site.fake.count().total(), app.failures().len()), (0, 0));
}

#[tokio::test]
async fn same_site_strict_session_takes_one_bounce() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    for site in ["cross-site", "same-site"] {
        let mut without_session = Browser { user: String::new(), ..ann.clone() };
        let bounced =
            without_session.send(&app, "GET", &callback, &[("sec-fetch-site", site)]).await;
        assert_eq!((bounced.status, bounced.set_cookies().len()), (200, 0));
        assert!(bounced.body.contains(r#"http-equiv="refresh" content="0">"#));
        // Once: now the browser says that the page is our own.
        let still_nobody =
            without_session.send(&app, "GET", &callback, &[("sec-fetch-site", "same-origin")]);
        assert_eq!(still_nobody.await.location(), "/sign-in");
    }
    assert_eq!(app.site.fake.count().total(), 0);
    let done = ann.send(&app, "GET", &callback, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(done.location(), "/home");
    assert!(app.is_connected("ann").await);
    app.assert_nothing_leaked();
}

#[tokio::test]
async fn two_tabs_do_not_disturb_each_other() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let one = ann.begin(&app, "ann").await;
    let two = ann.begin(&app, "ann").await;
    assert_eq!(ann.cookies.len(), 2);
    assert_eq!(ann.get(&app, &one).await.location(), "/home");
    assert_eq!(ann.get(&app, &two).await.location(), "/home");
    assert_eq!(app.site.fake.count().grant("authorization_code"), 2);
}

#[tokio::test]
async fn person_who_says_no_can_try_again() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let began = ann.get(&app, "/hurdlr/connect?return_to=/a%3Fb").await;
    let denied = app.site.fake.deny(&began.location().parse().unwrap()).await.unwrap();
    let answer = ann.get(&app, &app::path_of(&denied)).await;
    assert!(answer.body.contains("You did not allow access."), "{}", answer.body);
    assert!(answer.body.contains("href=\"/hurdlr/connect?return_to=%2Fa%3Fb\""), "{}", answer.body);
    assert_eq!((app.failures(), app.site.fake.count().total()), (to_strings(&["Refused"]), 0));
    assert!(ann.cookies.is_empty());
}

#[tokio::test]
async fn login_left_for_too_long_is_over() {
    for (minutes, reason) in [(9, None), (11, Some("Expired"))] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.clock.advance(minutes * MINUTE);
        ann.get(&app, &callback).await;
        assert_eq!(app.failures().first().map(String::as_str), reason);
        assert_eq!(app.site.fake.count().total(), u64::from(reason.is_none()));
    }
}

#[tokio::test]
async fn failed_exchange_is_told_and_keeps_nothing() {
    for (fault, status, reason) in [
        (Fault::status(500), 503, "Unavailable"),
        (Fault::DropAfter, 503, "Unavailable"),
        (Fault::html(502), 503, "Unavailable"),
        (Fault::answer_after(200, "{}"), 502, "InvalidResponse"),
        (Fault::answer(400, r#"{"error":"invalid_client"}"#), 502, "Rejected"),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.fake.fault_next(fault);
        let answer = ann.get(&app, &callback).await;
        assert_eq!((answer.status, app.failures()), (status, to_strings(&[reason])));
        assert_eq!(app.site.fake.count().total(), 1);
        assert!(!app.is_connected("ann").await);
        app.assert_nothing_leaked();
    }
}

#[tokio::test]
async fn other_methods_do_nothing() {
    let app = App::new();
    let mut ann = Browser::of("ann");
    let callback = ann.begin(&app, "ann").await;
    for (method, path) in [
        ("HEAD", callback.as_str()),
        ("POST", &callback),
        ("HEAD", "/hurdlr/connect"),
        ("PUT", "/hurdlr/connect"),
        ("GET", "/hurdlr/disconnect"),
    ] {
        let answer = ann.send(&app, method, path, &[("sec-fetch-site", "same-origin")]).await;
        assert_eq!((answer.status, answer.set_cookies().len()), (405, 0), "{method} {path}");
    }
    assert_eq!(app.site.fake.count().total(), 0);
    assert_eq!(ann.get(&app, &callback).await.location(), "/home");
}

#[tokio::test]
async fn login_returns_to_the_apps_paths_only() {
    let longest = format!("/{}", "a".repeat(255));
    let too_long = format!("/{}", "a".repeat(256));
    let app = App::new();
    for target in [
        "/",
        "/accounting",
        "/accounting/",
        "/a/b?c=d&e=%2Ff",
        "/a?next=https://b.example",
        "/a#b",
        "/a?b=//c",
        "/%C3%A9",
        "/a.b~c-d_e!$&'()*+,;=:@",
        "/a?b=%0A",
        longest.as_str(),
    ] {
        assert_eq!(returned(&app, target).await, target);
    }
    for target in [
        "",
        "accounting",
        "?a",
        "#a",
        ".",
        "..",
        "./a",
        "../a",
        "~",
        "@evil.example",
        ":80/",
        ".evil.example",
        "https://evil.example",
        "https:/evil.example",
        "https:evil.example",
        "HTTPS://evil.example",
        "http://app.example.com/",
        "https://app.example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "///evil.example",
        "////evil.example",
        "//evil.example/..",
        "/\\evil.example",
        "\\/evil.example",
        "\\\\evil.example",
        "\\evil.example",
        "/a\\b",
        "/a//evil.example",
        "/.//evil.example",
        "/..//evil.example",
        "/a/..//evil.example",
        "/../a",
        "/a/../b",
        "/./a",
        "/%2e%2e/a",
        "/%2e/a",
        "/%2f/evil.example",
        "/%2F%2Fevil.example",
        "/%5cevil.example",
        "/%5C%5Cevil.example",
        "/%252f%252fevil.example",
        "/%0d%0aSet-Cookie:a=b",
        "/%09/evil.example",
        "/%00",
        "/%7f",
        "/%",
        "/%2",
        "/%zz",
        "\t//evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r\nLocation: https://evil.example",
        " //evil.example",
        "/ /evil.example",
        "/a b",
        "/\u{0}",
        "/\u{7f}",
        "/<script>",
        "/\"",
        "/hurdlr/connect",
        "/hurdlr/connect?return_to=/",
        "/hurdlr/callback",
        "/hurdlr/disconnect#a",
        "/hurdlr/%63onnect",
        "/%68urdlr/connec%74?a",
        "/hurdlr/%64%69sconnect",
        too_long.as_str(),
    ] {
        assert_eq!(returned(&app, target).await, "/home", "{target:?}");
    }
    // Text beyond ASCII is what a browser makes of it.
    for (target, location) in [
        ("/b\u{fc}cher?jahr=M\u{e4}rz#\u{4f60}", "/b%C3%BCcher?jahr=M%C3%A4rz#%E4%BD%A0"),
        ("/\u{2028}", "/%E2%80%A8"),
        ("/\u{ff0f}evil.example", "/%EF%BC%8Fevil.example"),
    ] {
        assert_eq!(returned(&app, target).await, location);
    }
}

/// The end of a whole login that was asked to return to `target`.
async fn returned(app: &App, target: &str) -> String {
    let mut ann = Browser::of("ann");
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("return_to", target)
        .finish();
    let began = ann.get(app, &format!("/hurdlr/connect?{query}")).await;
    let callback = app.consent(&began, "ann").await;
    ann.get(app, &callback).await.location().to_owned()
}

#[tokio::test]
async fn one_router_serves_several_managers() {
    let site = app::Site::new();
    let manager = |version| site.manager(site.builder().api_version(version));
    let (v4, v6) = (manager(ApiVersion::V4), manager(ApiVersion::V6));
    let before = App::of(site.clone(), v4.clone(), |config| config);
    let during = App::of(site.clone(), v6.clone(), |config| config.other_manager(v4.clone()));
    let after = App::of(site.clone(), v6.clone(), |config| config);
    let ann = UserId::new("ann").unwrap();

    // One that began with the old version is completed by it, and only while that is there.
    let mut browser = Browser::of("ann");
    let callback = browser.begin(&before, "ann").await;
    assert_eq!(browser.clone().get(&after, &callback).await.status, 400);
    assert_eq!(after.failures(), ["OtherSettings"]);
    assert_eq!(browser.get(&during, &callback).await.location(), "/home");
    assert!(v4.user(&ann).token().await.is_ok() && v6.user(&ann).token().await.is_err());
    // Connected at either is connected.
    let again = browser.get(&during, &callback).await;
    assert!(again.body.contains("You are connected"), "{}", again.body);

    let callback = browser.begin(&during, "ann").await;
    assert_eq!(browser.get(&during, &callback).await.location(), "/home");
    assert!(v6.user(&ann).token().await.is_ok());
    let requests = site.fake.requests();
    let paths: Vec<_> = requests.iter().map(|request| request.path().to_owned()).collect();
    assert_eq!(paths, ["/rest/v4/auth/token", "/v6/auth/token"]);

    let gone = browser.disconnect(&during, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(gone.status, 303);
    assert!(v4.user(&ann).token().await.is_err() && v6.user(&ann).token().await.is_err());

    let elsewhere = site.builder().redirect_uri("https://app.example.com/else");
    for other in [elsewhere, site.builder_of("no-redirect-uri")] {
        let config = app::config(KEY, |_| ()).other_manager(site.manager(other));
        let error = login_routes::<()>(v6.clone(), config).unwrap_err();
        assert!(error.to_string().contains("redirect_uri of other_manager"), "{error}");
    }
}

#[tokio::test]
async fn two_versions_routes_share_a_host() {
    let site = app::Site::new();
    let routes = |version, path: &str| {
        let uri = format!("https://app.example.com/{path}/callback");
        let manager = site.manager(site.builder().api_version(version).redirect_uri(uri));
        let connect = format!("/{path}/connect");
        App::of(site.clone(), manager, |config| config.connect_path(connect))
    };
    let (v4, v6) = (routes(ApiVersion::V4, "v4"), routes(ApiVersion::V6, "v6"));
    let mut ann = Browser::of("ann");
    let began = ann.get(&v4, "/v4/connect").await;
    let callback = v4.consent(&began, "ann").await;
    for _ in 0..5 {
        assert_eq!(ann.get(&v6, "/v6/connect").await.status, 303);
    }
    assert_eq!(ann.get(&v4, &callback).await.location(), "/home");
}

#[tokio::test]
async fn more_authorize_parameters_are_sent() {
    let app = App::with(app::Site::builder, |config| {
        config.authorize_params(|user: &UserId| {
            [("prompt", "login".to_owned()), ("login_hint", user.as_str().to_owned())]
        })
    });
    let began = Browser::of("ann").get(&app, "/hurdlr/connect").await;
    assert_eq!(parameter(began.location(), "prompt"), "login");
    assert_eq!(parameter(began.location(), "login_hint"), "ann");
    let doubled = App::with(app::Site::builder, |c| c.authorize_params(|_| [("state", "x")]));
    let began = Browser::of("ann").get(&doubled, "/hurdlr/connect").await;
    assert_eq!((began.status, doubled.failures()), (500, to_strings(&["Config"])));
}

#[tokio::test]
async fn page_tells_whose_fault_it_is() {
    let (site, provider) = ("This site is not set up", "Hurdlr refused the login");
    for (fault, says) in [
        (Fault::answer(400, r#"{"error":"invalid_client"}"#), site),
        (Fault::answer(401, r#"{"error":"invalid_client","error_description":"marker"}"#), site),
        (Fault::answer(400, r#"{"error":"unauthorized_client"}"#), site),
        (Fault::answer(401, r#"{"error":[{"type":"INVALID_TOKEN","message":"marker"}]}"#), site),
        (Fault::answer(401, r#"{"error":[{"type":"EXPIRED_TOKEN","message":"marker"}]}"#), site),
        (Fault::answer(403, r#"{"error":[{"type":"BAD_REQUEST","message":"marker"}]}"#), site),
        (Fault::answer(401, ""), site), // as frameworks answer wrong Basic credentials
        (Fault::answer(403, "<html>marker</html>"), site),
        (Fault::answer(400, r#"{"error":"invalid_grant"}"#), provider),
        (Fault::answer(400, r#"{"error":[{"type":"INVALID_VALUE"}]}"#), provider),
        (Fault::status(500), "did not answer"),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        app.site.fake.fault_next(fault);
        let answer = ann.get(&app, &callback).await;
        assert!(answer.body.contains(says), "{says}: {}", answer.body);
        assert!(!answer.body.contains("marker"), "{}", answer.body);
    }
    // The site's own secret is wrong.
    for version in [ApiVersion::V4, ApiVersion::V5, ApiVersion::V6] {
        let app = App::with(
            |site| {
                let wrong = "wrong".to_owned().into();
                site.builder_by(site.fake.client_id(), wrong)
                    .redirect_uri(app::REDIRECT_URI)
                    .api_version(version)
            },
            |config| config,
        );
        let mut ann = Browser::of("ann");
        let callback = ann.begin(&app, "ann").await;
        let answer = ann.get(&app, &callback).await;
        assert!(answer.body.contains(site), "{version}: {}", answer.body);
    }
    for (code, says) in [
        ("unauthorized_client", site),
        ("invalid_scope", site),
        ("temporarily_unavailable", "did not answer"),
        ("login_required", provider),
    ] {
        let app = App::new();
        let mut ann = Browser::of("ann");
        let state = parameter(&ann.begin(&app, "ann").await, "state");
        let path = format!("/hurdlr/callback?error={code}&state={state}");
        let answer = ann.get(&app, &path).await;
        assert!(answer.body.contains(says), "{code}: {}", answer.body);
    }
}

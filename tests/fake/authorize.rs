//! The page on which a person consents.

use std::io;

use http::header;
use hurdlr_oauth2::testing::FakeHurdlr;
use url::Url;

use super::{Answer, CALLBACK, call, login, query, redeem, resource, socket_client};

async fn page(fake: &FakeHurdlr, url: &Url) -> Answer {
    let request = http::Request::get(url.as_str()).body(Vec::new()).unwrap();
    call(fake, request).await.unwrap()
}

#[tokio::test]
async fn consent_keeps_state_and_callbacks_query() {
    let fake = FakeHurdlr::in_memory();
    let allowed = fake.consent(&login(&fake, &[]), "ann").await.unwrap();
    let denied = fake.deny(&login(&fake, &[])).await.unwrap();
    for back in [&allowed, &denied] {
        assert!(back.as_str().starts_with(CALLBACK));
        assert_eq!(query(back, "state").as_deref(), Some("a state & more"));
    }
    assert_eq!(query(&denied, "error").as_deref(), Some("access_denied"));
    assert_eq!((query(&allowed, "error"), query(&denied, "code")), (None, None));
}

#[tokio::test]
async fn doubtful_address_gets_no_redirect() {
    let fake = FakeHurdlr::in_memory();
    let mut stranger = fake.authorize_url();
    stranger
        .set_query(Some("response_type=code&client_id=else&redirect_uri=https://evil.example/"));
    let mut fragment = fake.authorize_url();
    fragment.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", fake.client_id()),
        ("redirect_uri", "https://app.example/#part"),
    ]);
    let twice = login(&fake, &[("redirect_uri", "https://evil.example/")]);
    let strict = FakeHurdlr::builder().redirect_uri("https://app.example/else").in_memory();
    let cases =
        [(&fake, stranger), (&fake, fragment), (&fake, twice), (&strict, login(&strict, &[]))];
    for (fake, url) in cases {
        let answer = page(fake, &url).await;
        assert_eq!(answer.status, 400);
        assert!(!answer.headers.contains_key(header::LOCATION));
        assert!(answer.header(header::CONTENT_TYPE).starts_with("text/html"));
        let refused = fake.consent(&url, "ann").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
    let registered = FakeHurdlr::builder().redirect_uri(CALLBACK).in_memory();
    assert!(registered.consent(&login(&registered, &[]), "ann").await.is_ok());
}

#[tokio::test]
async fn other_authorization_mistakes_reach_the_client() {
    let fake = FakeHurdlr::in_memory();
    let mut implicit = fake.authorize_url();
    implicit.query_pairs_mut().extend_pairs([
        ("response_type", "token"),
        ("client_id", fake.client_id()),
        ("redirect_uri", CALLBACK),
        ("state", "a state & more"),
    ]);
    let plain = "p".repeat(43);
    let cases = [
        (implicit, "unsupported_response_type"),
        (login(&fake, &[("code_challenge", &plain)]), "invalid_request"),
        (
            login(&fake, &[("code_challenge", &plain), ("code_challenge_method", "plain")]),
            "invalid_request",
        ),
        (
            login(&fake, &[("code_challenge", "short"), ("code_challenge_method", "S256")]),
            "invalid_request",
        ),
        (login(&fake, &[("state", "another")]), "invalid_request"),
    ];
    for (url, error) in cases {
        let back = fake.consent(&url, "ann").await.unwrap();
        assert_eq!(query(&back, "error").as_deref(), Some(error));
        assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
        assert_eq!(query(&back, "code"), None);
    }
}

#[tokio::test]
async fn page_works_without_script_or_sight() {
    let fake = FakeHurdlr::in_memory();
    let answer = page(&fake, &login(&fake, &[])).await;
    assert_eq!(answer.status, 200);
    let html = answer.text();
    for part in [
        "<html lang=\"en\">",
        "name=\"viewport\"",
        "color-scheme: light dark",
        "<label for=\"user\">",
        "id=\"user\" name=\"user\" type=\"text\"",
        "<form method=\"post\" action=\"/oauth/authorize\">",
        "name=\"decision\" value=\"allow\">Allow</button>",
        "name=\"decision\" value=\"deny\">Deny</button>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script"));
    assert!(answer.header(header::CONTENT_SECURITY_POLICY).starts_with("default-src 'none'"));
}

#[tokio::test]
async fn nothing_that_the_page_repeats_becomes_html() {
    let fake = FakeHurdlr::builder().client("<i>&'\"", "s".into()).in_memory();
    let mut url = fake.authorize_url();
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", fake.client_id()),
        ("redirect_uri", "https://app.example/?<b>=\"'"),
        ("state", "\"><script>alert('1')</script>&amp;"),
    ]);
    let answer = page(&fake, &url).await;
    assert_eq!(answer.status, 200);
    let html = answer.text();
    assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("<i>"));
    assert!(
        html.contains(
            "value=\"&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;\""
        )
    );
    let back = fake.consent(&url, "ann").await.unwrap();
    assert_eq!(query(&back, "state").unwrap(), "\"><script>alert('1')</script>&amp;");
}

#[tokio::test]
async fn pages_form_alone_completes_a_login() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = socket_client();
    let url = login(&fake, &[]);
    let html = client.get(url).send().await.unwrap().text().await.unwrap();
    // The hidden fields as a browser would submit them; their values need no unescaping here but
    // for the ampersand.
    let mut fields: Vec<(String, String)> = html
        .lines()
        .filter_map(|line| line.strip_prefix("<input type=\"hidden\" name=\""))
        .filter_map(|rest| rest.strip_suffix("\">")?.split_once("\" value=\""))
        .map(|(name, value)| (name.to_owned(), value.replace("&amp;", "&")))
        .collect();
    fields.push(("user".into(), String::new()));
    fields.push(("decision".into(), "allow".into()));
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let answer = client.post(fake.base_url().join("oauth/authorize").unwrap()).body(body);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let back: Url = answer.headers()[header::LOCATION].to_str().unwrap().parse().unwrap();
    assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
    let answer = redeem(&fake, &query(&back, "code").unwrap(), &[]).await;
    let user = resource(&fake, &answer.get("access_token")).await.json()["user"].clone();
    assert_eq!(user, "demo");
}

/// RFC 9700 section 2.1.
#[tokio::test]
async fn redirect_uri_is_compared_letter_by_letter() {
    let fake = FakeHurdlr::builder().redirect_uri("https://app.example").in_memory();
    for (sent, is_registered) in [
        ("https://app.example", true),
        ("https://app.example/", false),
        ("https://APP.example", false),
        ("https://app.example:443", false),
        ("https://app.example?", false),
    ] {
        let mut url = fake.authorize_url();
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", fake.client_id()),
            ("redirect_uri", sent),
        ]);
        assert_eq!(fake.consent(&url, "ann").await.is_ok(), is_registered, "{sent}");
    }
}

/// RFC 9207.
#[tokio::test]
async fn issuer_is_in_every_callback() {
    let issuer = "https://issuer.example";
    let fake = FakeHurdlr::builder().issuer(issuer).in_memory();
    let allowed = fake.consent(&login(&fake, &[]), "ann").await.unwrap();
    let denied = fake.deny(&login(&fake, &[])).await.unwrap();
    for back in [allowed, denied] {
        assert_eq!(query(&back, "iss").as_deref(), Some(issuer), "{back}");
    }
}

#[tokio::test]
async fn consented_url_needs_no_click() {
    let fake = FakeHurdlr::in_memory();
    let asked = login(&fake, &[]);
    let mut url = fake.consented_url("ann & bob");
    url.query_pairs_mut().extend_pairs(asked.query_pairs());
    let answer = page(&fake, &url).await;
    assert_eq!(answer.status, 303);
    let back: Url = answer.header(header::LOCATION).parse().unwrap();
    assert_eq!(query(&back, "state").as_deref(), Some("a state & more"));
    let answer = redeem(&fake, &query(&back, "code").unwrap(), &[]).await;
    assert_eq!(resource(&fake, &answer.get("access_token")).await.json()["user"], "ann & bob");
}

//! The text of a `return_to` in a link that anybody may have written.
//!
//! - Nobody is sent to another origin, neither as a browser reads the path, nor once a proxy has
//!   decoded it; nor on to a login route, which would loop.
//! - A path that is accepted is the one that a browser would make of the text, at most 256 bytes
//!   long, below the app's prefix.
//! - A plain path is accepted, and nothing else is added to a page than its text.

use hurdlr_oauth2::http::StatusCode;
use hurdlr_oauth2::url::{Position, Url, form_urlencoded};

use super::provider::on_runtime;
use super::web_app::{CALLBACK, CONNECT, DISCONNECT, HOME, ORIGIN, WebApp};

const LONGEST: usize = 256;
const PREFIX: &str = "/books";

/// The longest path of a request, in bytes: an encoded byte takes three.
const LONGEST_DATA: usize = 16_000 / 3;

struct Apps {
    at_root: WebApp,
    below_prefix: WebApp,
    /// The signs of the page that asks for a confirmation, without anybody's text in it.
    signs: [usize; 4],
}

impl Apps {
    fn new() -> Self {
        let at_root = WebApp::below("");
        let signs = signs_of_page(&at_root, HOME.as_bytes());
        Self { at_root, below_prefix: WebApp::below(PREFIX), signs }
    }
}

thread_local! {
    static APPS: Apps = on_runtime(Apps::new);
}

pub fn check(data: &[u8]) {
    if data.len() > LONGEST_DATA {
        return;
    }
    APPS.with(|apps| {
        let text = String::from_utf8_lossy(data);
        let path = destination(&apps.at_root, data);
        assert_own(&path, "");
        if path != HOME {
            assert_eq!(page().join(&text).unwrap(), page().join(&path).unwrap(), "{text:?}");
        }
        if is_plain(&text) && ![CONNECT, CALLBACK, DISCONNECT].contains(&&*text) {
            assert_eq!(path, text);
        }

        let path = destination(&apps.below_prefix, data);
        assert_own(&path, PREFIX);
        let rest = path.strip_prefix(PREFIX).expect("a path below the prefix");
        assert!(rest.is_empty() || rest.starts_with(['/', '?', '#']), "{path:?}");
        if path != format!("{PREFIX}{HOME}") {
            let asked = page().join(&text).unwrap();
            assert!([path.as_str(), rest].iter().any(|it| page().join(it) == Ok(asked.clone())));
        }

        assert_eq!(signs_of_page(&apps.at_root, data), apps.signs, "{text:?}");
    });
}

fn page() -> Url {
    Url::parse(ORIGIN).unwrap().join(DISCONNECT).unwrap()
}

fn query(data: &[u8]) -> String {
    form_urlencoded::byte_serialize(data).collect()
}

/// The path that a browser is sent to.
fn destination(app: &WebApp, data: &[u8]) -> String {
    let path = format!("{DISCONNECT}?return_to={}", query(data));
    let answer = app.send("POST", &path, true, None);
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    answer.header("location").to_owned()
}

/// How often the page that asks for a confirmation has each sign that HTML is made of.
fn signs_of_page(app: &WebApp, data: &[u8]) -> [usize; 4] {
    let path = format!("{CONNECT}?return_to={}", query(data));
    let answer = app.send("GET", &path, false, None);
    ['<', '>', '"', '\''].map(|sign| answer.body.matches(sign).count())
}

fn assert_own(path: &str, prefix: &str) {
    assert!(path.len() <= LONGEST && path.starts_with('/'), "{path:?}");
    let seen = page().join(path).unwrap();
    assert_eq!(seen.origin().ascii_serialization(), ORIGIN, "{path:?}");
    assert_eq!(&seen[Position::BeforePath..], path);

    let decoded = decoded(seen.path());
    let seen = page().join(&decoded).unwrap();
    assert_eq!(seen.origin().ascii_serialization(), ORIGIN, "{path:?}");
    let inner = decoded.strip_prefix(prefix).unwrap_or(&decoded);
    assert!(![CONNECT, CALLBACK, DISCONNECT].contains(&inner), "{path:?} loops");
    assert!(!decoded.chars().any(|c| c.is_ascii_control()), "{path:?}");
}

/// A path as a proxy decodes it.
fn decoded(path: &str) -> String {
    let escaped = path.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let (name, _) = form_urlencoded::parse(escaped.as_bytes()).next().unwrap_or_default();
    name.into_owned()
}

/// Letters, digits, `-` and `_` between single slashes.
fn is_plain(text: &str) -> bool {
    let is_part = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.starts_with('/')
        && text.len() <= LONGEST
        && !text.contains("//")
        && text.split('/').all(is_part)
}

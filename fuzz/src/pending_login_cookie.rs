//! The `Cookie` header of a callback, in which `{name}` and `{value}` stand for the name and value
//! of the cookie that was set when the login began. The state and the code of the callback are
//! right, so that only the cookie stands between a forger and a login.
//!
//! - The login is completed if one of the first 16 cookies of that name has that value, and
//!   otherwise never. A code is sent only then.
//! - A cookie in which any byte was changed completes no login.
//! - A pending login that an app kept is read if this crate wrote it, and else is `Unreadable`.

use std::cell::RefCell;
use std::time::Duration;

use hurdlr_oauth2::http::{HeaderMap, HeaderValue, StatusCode};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{CallbackProblem, PendingLogin};

use super::provider::{TOKEN, everything_said, on_runtime};
use super::web_app::{CALLBACK, CONNECT, HOME, WebApp};

/// The most cookies of one name that are decrypted.
const MOST_DECRYPTED: usize = 16;

const SECOND: Duration = Duration::from_secs(1);

/// An app, and a login that has begun there.
struct Site {
    app: WebApp,
    login: RefCell<Login>,
}

struct Login {
    name: String,
    value: String,
    state: String,
}

impl Login {
    fn begin(app: &WebApp) -> Self {
        let began = app.send("GET", CONNECT, true, None);
        let (cookie, _) = began.header("set-cookie").split_once(';').unwrap();
        let (name, value) = cookie.split_once('=').unwrap();
        let url = Url::parse(began.header("location")).unwrap();
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        Self { name: name.to_owned(), value: value.to_owned(), state }
    }
}

thread_local! {
    static SITE: Site = on_runtime(|| {
        let app = WebApp::below("");
        let login = RefCell::new(Login::begin(&app));
        Site { app, login }
    });
}

pub fn check(data: &[u8]) {
    assert_kept_or_unreadable(data);
    SITE.with(|site| {
        let header = {
            let login = site.login.borrow();
            filled(&filled(data, b"{name}", &login.name), b"{value}", &login.value)
        };
        site.come_back(&header);
        if let [high, low, byte, ..] = *data {
            let header = {
                let login = site.login.borrow();
                let mut value = login.value.clone().into_bytes();
                let place = usize::from(u16::from_be_bytes([high, low])) % value.len();
                value[place] = byte;
                [login.name.as_bytes(), b"=", &value].concat()
            };
            site.come_back(&header);
        }
    });
}

impl Site {
    fn come_back(&self, cookies: &[u8]) {
        let Ok(header) = HeaderValue::from_bytes(cookies) else { return };
        let is_genuine = self.is_genuine(cookies);
        let state = self.login.borrow().state.clone();
        self.app.client.provider.answer(StatusCode::OK, HeaderMap::new(), TOKEN);
        let path = format!("{CALLBACK}?code=c&state={state}");
        let answer = self.app.send("GET", &path, true, Some(header));
        let sent = self.app.client.provider.requests().len();
        if is_genuine {
            assert_eq!((answer.status, sent), (StatusCode::SEE_OTHER, 1));
            assert_eq!(answer.header("location"), HOME);
            // So that the store forgets the states that were redeemed.
            self.app.client.clock.advance(SECOND);
            *self.login.borrow_mut() = Login::begin(&self.app);
        } else {
            assert_ne!(answer.status, StatusCode::SEE_OTHER);
            assert_eq!((sent, answer.header("location")), (0, ""));
            assert!(!answer.body.contains(&state));
        }
    }

    fn is_genuine(&self, cookies: &[u8]) -> bool {
        let login = self.login.borrow();
        let pairs = cookies.split(|byte| *byte == b';').filter_map(|pair| {
            let (name, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
            (name.trim() == login.name).then(|| value.trim())
        });
        pairs.take(MOST_DECRYPTED).any(|value| value == login.value)
    }
}

/// Puts `text` in the place of each `name`.
fn filled(data: &[u8], name: &[u8], text: &str) -> Vec<u8> {
    let mut filled = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(name) {
            filled.extend_from_slice(text.as_bytes());
            rest = after;
        } else {
            filled.push(*first);
            rest = after;
        }
    }
    filled
}

fn assert_kept_or_unreadable(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match PendingLogin::from_secret(&text.into()) {
        Ok(pending) => {
            let kept = pending.to_secret();
            let again = PendingLogin::from_secret(&kept).unwrap();
            assert_eq!(again.to_secret().expose_secret(), kept.expose_secret());
            assert!(pending.state().expose_secret().len() >= 22);
            assert!(!format!("{pending:?}").contains(pending.state().expose_secret()));
        }
        Err(error) => {
            assert_eq!(error.callback_problem(), Some(CallbackProblem::Unreadable));
            assert!(text.len() < 8 || !everything_said(&error).contains(text));
        }
    }
}

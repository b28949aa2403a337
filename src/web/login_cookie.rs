//! Pending logins, each in an encrypted cookie of the browser that began it.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cookie::time::Duration;
use cookie::{Cookie, CookieJar, Key, SameSite};
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::return_path::ReturnPath;
use crate::client::login::{LOGIN_LIFETIME, PendingLogin};
use crate::error::{CallbackProblem, Error};
use crate::wire::user::UserId;

/// The most pending logins of one browser.
const MAX_PENDING: usize = 4;

/// The most cookies of one request that are decrypted. A browser has one more than
/// [`MAX_PENDING`] only if somebody else put them there.
const MAX_DECRYPTED: usize = 4 * MAX_PENDING;

/// A pending login with its user and destination.
pub(super) struct LoginCookie {
    pub(super) login: PendingLogin,
    pub(super) user: UserId,
    pub(super) return_to: ReturnPath,
}

impl LoginCookie {
    /// One field a line: none of them can hold a line's end.
    fn encode(&self) -> Zeroizing<String> {
        let login = self.login.to_secret();
        let fields = [login.expose_secret(), self.return_to.as_str(), self.user.as_str()];
        Zeroizing::new(fields.join("\n"))
    }

    fn decode(text: &str) -> Option<Self> {
        let mut fields = text.splitn(3, '\n');
        Some(Self {
            login: PendingLogin::parse(fields.next()?)?,
            return_to: ReturnPath::trusted(fields.next()?),
            user: fields.next()?.parse().ok()?,
        })
    }
}

/// A cookie as the browser sent it.
#[derive(Clone, Copy)]
struct RawCookie<'a> {
    name: &'a str,
    value: &'a str,
}

/// The cookies of a request that are text. Cookies of other apps can hold any byte, so each is read
/// by itself.
fn raw_cookies(headers: &HeaderMap) -> impl Iterator<Item = RawCookie<'_>> {
    let lines = headers.get_all(COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).filter_map(|pair| {
        let (name, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        Some(RawCookie { name: name.trim(), value: value.trim() })
    })
}

fn cookie(name: String, value: String, lifetime: Duration, is_https: bool) -> Cookie<'static> {
    Cookie::build((name, value))
        .path("/")
        .http_only(true)
        .secure(is_https)
        .same_site(SameSite::Lax) // the provider's redirect comes from another site
        .max_age(lifetime)
        .build()
}

/// How an app keeps pending logins.
pub(super) struct LoginCookies {
    /// The first encrypts; all decrypt.
    keys: Vec<Key>,
    /// The beginning of the cookies' names. Apps on one host share its cookies, whatever their
    /// ports and paths, and differ in their redirect URI.
    prefix: String,
    is_https: bool,
}

impl LoginCookies {
    pub(super) fn new(keys: Vec<Key>, redirect_uri: &str, is_https: bool) -> Self {
        // A `__Host-` cookie is taken from this host over https only (RFC 6265bis 4.1.3.2).
        let host = if is_https { "__Host-" } else { "" };
        let app = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(redirect_uri)[..6]);
        Self { keys, prefix: format!("{host}hurdlr_login_{app}_"), is_https }
    }

    /// The `Set-Cookie` headers that keep a login in the browser that sent `headers`: its cookie,
    /// and the removal of the oldest ones where there are too many.
    pub(super) fn keep(&self, headers: &HeaderMap, login: &LoginCookie) -> Vec<HeaderValue> {
        let own = raw_cookies(headers).filter(|cookie| self.is_login_name(cookie.name));
        let mut earlier: Vec<_> = own
            .take(MAX_DECRYPTED)
            // Unreadable ones are removed first.
            .map(|cookie| (self.decrypt(cookie).map_or(-1, |it| it.login.began()), cookie.name))
            .collect();
        earlier.sort_unstable_by(|one, other| other.cmp(one));
        let too_many = earlier.into_iter().skip(MAX_PENDING - 1);

        let name = self.name(login.login.state().expose_secret());
        let lifetime = Duration::seconds_f64(LOGIN_LIFETIME.as_secs_f64());
        let mut jar = CookieJar::new();
        let kept = cookie(name, login.encode().to_string(), lifetime, self.is_https);
        jar.private_mut(&self.keys[0]).add(kept);
        let kept = jar.delta().filter_map(|cookie| HeaderValue::try_from(cookie.to_string()).ok());
        too_many.filter_map(|(_, name)| self.removal(name)).chain(kept).collect()
    }

    /// Finds the login that a callback belongs to; `None` where the browser has no such cookie.
    /// That the callback does belong to it is for
    /// [`complete_login`](crate::TokenManager::complete_login) to prove.
    pub(super) fn find(
        &self,
        headers: &HeaderMap,
        name: &str,
    ) -> Option<Result<LoginCookie, Error>> {
        let named = raw_cookies(headers).filter(|cookie| cookie.name == name);
        // Another site of the same domain may have put some beside ours.
        let mut found = named.take(MAX_DECRYPTED).map(|cookie| self.decrypt(cookie)).peekable();
        found.peek()?;
        let unreadable = || Error::callback(CallbackProblem::Unreadable);
        Some(found.flatten().next().ok_or_else(unreadable))
    }

    /// The `Set-Cookie` header that removes a login's cookie.
    pub(super) fn removal(&self, name: &str) -> Option<HeaderValue> {
        let removal = cookie(name.to_owned(), String::new(), Duration::ZERO, self.is_https);
        HeaderValue::try_from(removal.to_string()).ok()
    }

    /// Each login has a cookie of its own, named by its state without telling it.
    pub(super) fn name(&self, state: &str) -> String {
        let digest = Sha256::digest(state);
        self.prefix.clone() + &BASE64_URL_SAFE_NO_PAD.encode(&digest[..9])
    }

    /// Whether a cookie of this app can have that name.
    fn is_login_name(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&*self.prefix);
        rest.is_some_and(|rest| BASE64_URL_SAFE_NO_PAD.decode(rest).is_ok())
    }

    fn decrypt(&self, sent: RawCookie<'_>) -> Option<LoginCookie> {
        let sent = Cookie::new(sent.name.to_owned(), sent.value.to_owned());
        let jar = CookieJar::new();
        let opened = self.keys.iter().find_map(|key| jar.private(key).decrypt(sent.clone()))?;
        LoginCookie::decode(opened.value())
    }
}

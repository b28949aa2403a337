//! Logins that have begun, in the browsers that began them.

use std::borrow::Cow;

use axum_extra::extract::PrivateCookieJar;
use axum_extra::extract::cookie::{Cookie, SameSite};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cookie::time::Duration;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::config::Login;
use super::failure::FailureReason;
use super::return_target::ReturnTarget;
use crate::error::{CallbackProblem, Error};
use crate::login::{LOGIN_LIFETIME, PendingLogin};
use crate::user::UserId;

/// How many logins one browser may have begun.
const AT_ONCE: usize = 4;

/// A login that this browser has begun.
pub(super) struct Begun {
    pub(super) login: PendingLogin,
    pub(super) user: UserId,
    pub(super) return_to: ReturnTarget,
}

/// A cookie as a browser sends it.
#[derive(Clone, Copy)]
struct Sent<'a> {
    name: &'a str,
    pair: &'a str,
}

fn sent(headers: &HeaderMap) -> impl Iterator<Item = Sent<'_>> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    texts.flat_map(|cookies| cookies.split(';')).filter_map(|pair| {
        let (name, _) = pair.split_once('=')?;
        Some(Sent { name: name.trim(), pair })
    })
}

fn cookie(
    name: String,
    value: impl Into<Cow<'static, str>>,
    lifetime: Duration,
    is_https: bool,
) -> Cookie<'static> {
    Cookie::build((name, value))
        .path("/")
        .http_only(true)
        .secure(is_https)
        .same_site(SameSite::Lax) // the provider's redirect comes from another site
        .max_age(lifetime)
        .build()
}

/// What ends a cookie, behind its name.
pub(super) fn end_of_cookie(is_https: bool) -> String {
    cookie(String::new(), "", Duration::ZERO, is_https).to_string()
}

impl Login {
    /// What keeps a login in the browser that sent `headers`: its cookie, and the ends of the oldest
    /// ones where there are too many.
    pub(super) fn keep(
        &self,
        headers: &HeaderMap,
        begun: &Begun,
    ) -> (Vec<HeaderValue>, PrivateCookieJar) {
        let ours = sent(headers).filter(|cookie| self.names_a_login(cookie.name));
        let mut earlier: Vec<_> = ours
            .map(|cookie| {
                // What cannot be read goes first.
                let since = self.opened(cookie).map_or(-1, |earlier| earlier.login.began());
                (since, cookie.name)
            })
            .collect();
        earlier.sort_unstable_by(|one, other| other.cmp(one));
        let too_many = earlier.into_iter().skip(AT_ONCE - 1);
        let ended = too_many.filter_map(|(_, name)| self.end(name)).collect();

        let name = self.cookie_name(begun.login.state().expose_secret());
        let lifetime = Duration::seconds_f64(LOGIN_LIFETIME.as_secs_f64());
        let kept = cookie(name, self.written(begun), lifetime, self.is_https);
        (ended, PrivateCookieJar::new(self.keys[0].clone()).add(kept))
    }

    /// Finds the login that a callback belongs to by its state; none where the browser has no such
    /// cookie. That it does belong to it is for
    /// [`complete_login`](crate::Hurdlr::complete_login) to prove.
    pub(super) fn find(
        &self,
        headers: &HeaderMap,
        name: &str,
    ) -> Option<Result<Begun, FailureReason>> {
        let named = sent(headers).filter(|cookie| cookie.name == name);
        // Another site of the same domain may have put one beside ours.
        named.map(|cookie| self.opened(cookie)).reduce(Result::or)
    }

    /// The end of a login's cookie.
    pub(super) fn end(&self, name: &str) -> Option<HeaderValue> {
        HeaderValue::try_from([name, &self.end_of_cookie].concat()).ok()
    }

    /// A `__Host-` cookie is taken from this host over https alone (RFC 6265bis section 4.1.3.2).
    fn cookie_prefix(&self) -> &'static str {
        if self.is_https { "__Host-hurdlr_login_" } else { "hurdlr_login_" }
    }

    /// Each login has a cookie of its own, named by its state without telling it.
    pub(super) fn cookie_name(&self, state: &str) -> String {
        let digest = Sha256::digest(state);
        self.cookie_prefix().to_owned() + &BASE64_URL_SAFE_NO_PAD.encode(&digest[..9])
    }

    /// Whether a login's cookie can be named like that.
    fn names_a_login(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.cookie_prefix());
        rest.is_some_and(|rest| BASE64_URL_SAFE_NO_PAD.decode(rest).is_ok())
    }

    /// One field a line: none of them can hold a line's end.
    fn written(&self, begun: &Begun) -> String {
        [
            &self.settings,
            &begun.login.began().to_string(),
            begun.login.state().expose_secret(),
            begun.login.verifier().expose_secret(),
            begun.return_to.as_str(),
            begun.user.as_str(),
        ]
        .join("\n")
    }

    fn opened(&self, sent: Sent<'_>) -> Result<Begun, FailureReason> {
        let unreadable = || Error::callback(CallbackProblem::Unreadable);
        let cookie = Cookie::parse_encoded(sent.pair.to_owned()).map_err(|_| unreadable())?;
        let mut jars = self.keys.iter().map(|key| PrivateCookieJar::<_>::new(key.clone()));
        let opened = jars.find_map(|jar| jar.decrypt(cookie.clone())).ok_or_else(unreadable)?;
        let mut fields = opened.value().splitn(6, '\n');
        let mut field = || fields.next().ok_or_else(unreadable);
        if field()? != self.settings {
            return Err(FailureReason::OtherSettings);
        }
        let began = field()?.parse().map_err(|_| unreadable())?;
        let redirect_uri = self.redirect_uri.clone();
        let login = PendingLogin::from_parts(field()?, field()?, redirect_uri, began);
        let return_to = ReturnTarget::judged_before(field()?);
        let user = field()?.parse().map_err(|_| unreadable())?;
        Ok(Begun { login, user, return_to })
    }
}

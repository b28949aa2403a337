//! A person's login: the URL they are sent to, and the callback they come back with.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::Url;
use zeroize::Zeroizing;

use crate::basic::BasicClient;
use crate::clock::Timestamp;
use crate::endpoint::{Scope, secret_bearing_url};
use crate::error::{CallbackProblem, Error, readable_text};
use crate::object::Object;

/// How long a person has for a login.
pub(crate) const LOGIN_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// 128 bits in base64url, as they are drawn here.
const SHORTEST_STATE: usize = 22;

/// RFC 7636 section 4.1.
const SHORTEST_VERIFIER: usize = 43;
const LONGEST_VERIFIER: usize = 128;

/// What has to be kept between the two halves of a login: the state (RFC 6749 section 10.12), the
/// PKCE verifier (RFC 7636) and the redirect URI.
///
/// It belongs to the browser that began the login. Keep it where nobody else reads it and where
/// only that browser's next request finds it: in its server-side session, or in an encrypted
/// cookie. [`to_secret`](Self::to_secret) turns it into one opaque string for that and
/// [`from_secret`](Self::from_secret) reads it back. Its secrets are wiped on drop.
pub struct PendingLogin {
    state: SecretString,
    verifier: SecretString,
    redirect_uri: String,
    began: i64,
}

/// A [`PendingLogin`] as it is written; borrowed where written, so that nothing is copied.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    state: &'a str,
    verifier: &'a str,
    #[serde(borrow)]
    redirect_uri: Cow<'a, str>,
    began: i64,
}

/// The authorization code of an accepted callback, with what the token request says beside it.
pub(crate) struct AuthorizationCode {
    pub(crate) code: SecretString,
    pub(crate) verifier: SecretString,
    pub(crate) redirect_uri: String,
}

impl PendingLogin {
    /// Draws state and verifier, and builds the URL to send the person to.
    pub(crate) fn begin(
        client_id: &str,
        authorize_url: &Url,
        redirect_uri: &str,
        scope: Option<Scope>,
        now: Timestamp,
    ) -> (Url, Self) {
        let client = BasicClient::new(ClientId::new(client_id.to_owned()))
            .set_auth_uri(AuthUrl::from_url(authorize_url.clone()));
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) = client
            .authorize_url(CsrfToken::new_random)
            .set_pkce_challenge(challenge)
            .add_scopes(scope.map(|scope| oauth2::Scope::new(scope.as_str().to_owned())))
            // As the text it is, and not as a URL, which may be spelt in other ways.
            .add_extra_param("redirect_uri", redirect_uri)
            .url();
        let pending = Self {
            state: SecretString::from(state.into_secret()),
            verifier: SecretString::from(verifier.into_secret()),
            redirect_uri: redirect_uri.to_owned(),
            began: now.unix_seconds(),
        };
        (url, pending)
    }

    /// One opaque string to keep. It holds the secrets: it is to be stored as one.
    #[must_use]
    pub fn to_secret(&self) -> SecretString {
        let written = Written {
            state: self.state.expose_secret(),
            verifier: self.verifier.expose_secret(),
            redirect_uri: Cow::Borrowed(&self.redirect_uri),
            began: self.began,
        };
        // Three strings and a number always serialize.
        let mut json = Zeroizing::new(Vec::with_capacity(256 + 2 * self.redirect_uri.len()));
        let _ = serde_json::to_writer(&mut *json, &written);
        BASE64_URL_SAFE_NO_PAD.encode(&*json).into()
    }

    /// Reads what [`to_secret`](Self::to_secret) gave. Anything else is
    /// [`CallbackProblem::Unreadable`].
    pub fn from_secret(text: &SecretString) -> Result<Self, Error> {
        let unreadable = || Error::callback(CallbackProblem::Unreadable);
        let json = BASE64_URL_SAFE_NO_PAD.decode(text.expose_secret()).map_err(|_| unreadable())?;
        let json = Zeroizing::new(json);
        let Object(written): Object<Written<'_>> =
            serde_json::from_slice(&json).map_err(|_| unreadable())?;
        let ours = written.state.len() >= SHORTEST_STATE
            && (SHORTEST_VERIFIER..=LONGEST_VERIFIER).contains(&written.verifier.len())
            && written.began >= 0
            && secret_bearing_url("redirect_uri", &written.redirect_uri).is_ok();
        if !ours {
            return Err(unreadable());
        }
        let Written { state, verifier, redirect_uri, began } = written;
        Ok(Self::from_parts(state, verifier, redirect_uri.into_owned(), began))
    }

    /// Puts together what was taken apart here.
    pub(crate) fn from_parts(
        state: &str,
        verifier: &str,
        redirect_uri: String,
        began: i64,
    ) -> Self {
        Self { state: state.into(), verifier: verifier.into(), redirect_uri, began }
    }

    /// The state, by which an app that keeps several logins finds the one a callback belongs to
    /// ([`Callback::state`]).
    #[must_use]
    pub fn state(&self) -> &SecretString {
        &self.state
    }

    #[cfg(feature = "axum")]
    pub(crate) fn verifier(&self) -> &SecretString {
        &self.verifier
    }

    /// When it began, in seconds since the Unix epoch.
    #[cfg(feature = "axum")]
    pub(crate) fn began(&self) -> i64 {
        self.began
    }

    /// What a store knows the login by.
    pub(crate) fn state_digest(&self) -> [u8; 32] {
        Sha256::digest(self.state.expose_secret()).into()
    }

    /// Accepts the callback or says what is wrong with it.
    pub(crate) fn judge(
        self,
        callback: &Callback,
        issuer: Option<&str>,
        now: Timestamp,
    ) -> Result<AuthorizationCode, Error> {
        let age = now.unix_seconds().saturating_sub(self.began);
        if age.unsigned_abs() >= LOGIN_LIFETIME.as_secs() {
            return Err(Error::callback(CallbackProblem::Expired));
        }
        // State first: what else a forged callback says is of no interest.
        let state = callback.state()?;
        let expected = self.state.expose_secret().as_bytes();
        if !bool::from(state.as_bytes().ct_eq(expected)) {
            return Err(Error::callback(CallbackProblem::StateMismatch));
        }
        let answered_by = callback
            .only("iss", CallbackProblem::IssuerMismatch)?
            .filter(|issuer| !issuer.is_empty());
        if let (Some(expected), Some(answered_by)) = (issuer, answered_by)
            && expected != answered_by
        {
            return Err(Error::callback(CallbackProblem::IssuerMismatch));
        }
        if let Some(error) = callback.first("error") {
            let description =
                callback.first("error_description").map(|text| readable_text(text, 512));
            return Err(Error::callback(CallbackProblem::Refused)
                .with_answer(&readable_text(error, 64), description.as_deref()));
        }
        let code = callback
            .only("code", CallbackProblem::CodeDoubled)?
            .filter(|code| !code.is_empty())
            .ok_or_else(|| Error::callback(CallbackProblem::CodeMissing))?;
        Ok(AuthorizationCode {
            code: code.into(),
            verifier: self.verifier,
            redirect_uri: self.redirect_uri,
        })
    }
}

impl fmt::Debug for PendingLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingLogin")
            .field("redirect_uri", &self.redirect_uri)
            .field("began", &self.began)
            .finish_non_exhaustive()
    }
}

/// The parameters a person came back with, from a query string, a [`Url`] or pairs.
///
/// `Debug` shows the names of the parameters and none of their values.
pub struct Callback(Vec<(String, Zeroizing<String>)>);

impl Callback {
    /// Reads a query string, with or without its `?` and what stands before that.
    #[must_use]
    pub fn from_query(query: &str) -> Self {
        let query = match query.split_once('?') {
            Some((before, query)) if !before.contains('=') => query,
            _ => query,
        };
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        Self::from_pairs(url::form_urlencoded::parse(query.as_bytes()))
    }

    /// Takes parameters that a framework has decoded already. Leave doubled ones in.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), Zeroizing::new(v.into()))).collect())
    }

    /// The state, for an app that looks for the login it belongs to among several. Nothing is proven
    /// by it: [`Hurdlr::complete_login`](crate::Hurdlr::complete_login) does that.
    ///
    /// [`CallbackProblem::StateMissing`] or [`CallbackProblem::StateDoubled`] where there is not one.
    pub fn state(&self) -> Result<&str, Error> {
        self.only("state", CallbackProblem::StateDoubled)?
            .ok_or_else(|| Error::callback(CallbackProblem::StateMissing))
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that must not come twice.
    fn only(&self, name: &str, doubled: CallbackProblem) -> Result<Option<&str>, Error> {
        let mut values = self.0.iter().filter(|(key, _)| key == name);
        let value = values.next().map(|(_, value)| value.as_str());
        match values.next() {
            Some(_) => Err(Error::callback(doubled)),
            None => Ok(value),
        }
    }
}

impl From<&str> for Callback {
    fn from(query: &str) -> Self {
        Self::from_query(query)
    }
}

impl From<String> for Callback {
    fn from(query: String) -> Self {
        Self::from_query(&Zeroizing::new(query))
    }
}

impl From<Url> for Callback {
    fn from(url: Url) -> Self {
        Self::from(&url)
    }
}

impl From<&Url> for Callback {
    fn from(url: &Url) -> Self {
        Self::from_pairs(url.query_pairs())
    }
}

impl<K: Into<String>, V: Into<String>> From<Vec<(K, V)>> for Callback {
    fn from(pairs: Vec<(K, V)>) -> Self {
        Self::from_pairs(pairs)
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::new(Duration::ZERO, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn begun() -> (Url, PendingLogin) {
        let authorize = "https://connect.example.com/authorize?tenant=1".parse().unwrap();
        PendingLogin::begin("id", &authorize, "https://app.example.com/callback", None, at(1_000))
    }

    fn judged(build: impl FnOnce(&str) -> String) -> Result<AuthorizationCode, Error> {
        let (_, pending) = begun();
        let query = build(pending.state().expose_secret());
        pending.judge(&Callback::from(query.as_str()), Some("https://issuer"), at(1_001))
    }

    fn problem(build: impl FnOnce(&str) -> String) -> CallbackProblem {
        judged(build).err().and_then(|error| error.callback_problem()).expect("a problem")
    }

    #[test]
    fn the_url_asks_for_a_code_with_state_and_an_s256_challenge() {
        let (url, pending) = begun();
        let pairs: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        let digest = PkceCodeChallenge::from_code_verifier_sha256(&oauth2::PkceCodeVerifier::new(
            pending.verifier.expose_secret().to_owned(),
        ));
        let expected = [
            ("client_id", "id"),
            ("code_challenge", digest.as_str()),
            ("code_challenge_method", "S256"),
            ("redirect_uri", "https://app.example.com/callback"),
            ("response_type", "code"),
            ("state", pending.state().expose_secret()),
            ("tenant", "1"),
        ];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(!url.as_str().contains(pending.verifier.expose_secret()));
    }

    #[test]
    fn no_two_logins_share_a_state_or_a_verifier() {
        let ((_, one), (_, two)) = (begun(), begun());
        assert_ne!(one.state.expose_secret(), two.state.expose_secret());
        assert_ne!(one.verifier.expose_secret(), two.verifier.expose_secret());
        assert!(one.state.expose_secret().len() >= 22 && one.verifier.expose_secret().len() >= 43);
    }

    #[test]
    fn a_true_callback_is_accepted_in_every_form() {
        let code = judged(|state| format!("?code=c%2B1&state={state}&iss=https://issuer")).unwrap();
        assert_eq!(code.code.expose_secret(), "c+1");
        let (_, pending) = begun();
        let state = pending.state().expose_secret().to_owned();
        let url: Url =
            format!("https://app.example.com/callback?code=c&state={state}").parse().unwrap();
        for callback in [
            Callback::from(&url),
            Callback::from(vec![("code", "c"), ("state", state.as_str())]),
            Callback::from(url.query().unwrap()),
        ] {
            let pending = PendingLogin::from_secret(&pending.to_secret()).unwrap();
            assert!(pending.judge(&callback, None, at(1_599)).is_ok(), "{callback:?}");
        }
    }

    #[test]
    fn every_attack_on_a_callback_has_its_name() {
        use CallbackProblem as Problem;
        assert_eq!(problem(|_| "code=c".into()), Problem::StateMissing);
        assert_eq!(problem(|_| String::new()), Problem::StateMissing);
        assert_eq!(problem(|_| "code=c&state=".into()), Problem::StateMismatch);
        assert_eq!(problem(|_| "code=c&state=forged".into()), Problem::StateMismatch);
        assert_eq!(problem(|s| format!("code=c&state={s}x")), Problem::StateMismatch);
        assert_eq!(problem(|s| format!("code=c&state={}", &s[1..])), Problem::StateMismatch);
        assert_eq!(problem(|s| format!("code=c&state={s}&state={s}")), Problem::StateDoubled);
        assert_eq!(problem(|s| format!("code=c&state=x&state={s}")), Problem::StateDoubled);
        assert_eq!(problem(|s| format!("state={s}")), Problem::CodeMissing);
        assert_eq!(problem(|s| format!("code=&state={s}")), Problem::CodeMissing);
        assert_eq!(problem(|s| format!("code=c&code=d&state={s}")), Problem::CodeDoubled);
        assert_eq!(
            problem(|s| format!("code=c&state={s}&iss=https://evil")),
            Problem::IssuerMismatch
        );
        assert_eq!(
            problem(|s| format!("code=c&state={s}&iss=https://issuer&iss=https://evil")),
            Problem::IssuerMismatch
        );
        // A forged refusal is not believed either.
        assert_eq!(problem(|_| "error=access_denied&state=x".into()), Problem::StateMismatch);
    }

    #[test]
    fn a_refusal_carries_the_providers_code_and_a_harmless_description() {
        let error = judged(|state| {
            format!("error=access_denied&error_description=no%0Away&code=c&state={state}")
        });
        let error = error.err().unwrap();
        assert_eq!(error.callback_problem(), Some(CallbackProblem::Refused));
        assert_eq!((error.code(), error.description()), (Some("access_denied"), Some("no way")));
    }

    #[test]
    fn a_login_lasts_ten_minutes_whichever_way_the_clock_was_turned() {
        for (now, fine) in [(1_000, true), (1_599, true), (1_600, false), (500, true), (400, false)]
        {
            let (_, pending) = begun();
            let query = format!("code=c&state={}", pending.state().expose_secret());
            let judged = pending.judge(&Callback::from(query.as_str()), None, at(now));
            assert_eq!(judged.is_ok(), fine, "{now}");
        }
    }

    #[test]
    fn no_issuer_configured_accepts_any() {
        let (_, pending) = begun();
        let query = format!("code=c&iss=https://any&state={}", pending.state().expose_secret());
        assert!(pending.judge(&Callback::from(query.as_str()), None, at(1_000)).is_ok());
    }

    #[test]
    fn what_is_kept_reads_back_and_nothing_else_does() {
        let (_, pending) = begun();
        let kept = pending.to_secret();
        let back = PendingLogin::from_secret(&kept).unwrap();
        assert_eq!(back.state.expose_secret(), pending.state.expose_secret());
        assert_eq!(back.verifier.expose_secret(), pending.verifier.expose_secret());
        let cut = &kept.expose_secret()[1..];
        for text in ["", "e30", "!", cut] {
            let error = PendingLogin::from_secret(&text.into()).unwrap_err();
            assert_eq!(error.callback_problem(), Some(CallbackProblem::Unreadable));
        }
    }

    #[test]
    fn a_redirect_uri_is_sent_and_kept_letter_by_letter() {
        let authorize = "https://connect.example.com/authorize".parse().unwrap();
        for text in ["https://App.example.com", "https://a.example:443/b/../c?x=a\\b&y=\"%2f"] {
            let (url, pending) = PendingLogin::begin("id", &authorize, text, None, at(1_000));
            let sent = url.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1;
            assert_eq!(sent, text);
            assert_eq!(PendingLogin::from_secret(&pending.to_secret()).unwrap().redirect_uri, text);
        }
    }

    #[test]
    fn what_nobody_here_wrote_is_not_taken_for_a_login() {
        let verifier = "v".repeat(43);
        let state = "s".repeat(22);
        let read = |state: &str, verifier: &str, redirect_uri: &str, began: i64| {
            let json = serde_json::json!({
                "state": state, "verifier": verifier, "redirect_uri": redirect_uri, "began": began,
            });
            PendingLogin::from_secret(&BASE64_URL_SAFE_NO_PAD.encode(json.to_string()).into())
        };
        assert!(read(&state, &verifier, "https://a.example", 0).is_ok());
        assert!(read("", &verifier, "https://a.example", 0).is_err());
        assert!(read(&state, "", "https://a.example", 0).is_err());
        assert!(read(&state, &verifier, "http://a.example", 0).is_err());
        assert!(read(&state, &verifier, "https://a.example", i64::MIN).is_err());
        assert!(
            !format!("{:?}", read(&state, &verifier, "https://a.example", i64::MAX)).is_empty()
        );
    }

    #[test]
    fn an_empty_parameter_is_an_omitted_one_and_a_whole_url_is_read() {
        let code =
            judged(|state| format!("https://a.example/cb?error=&iss=&code=c&state={state}#_"));
        assert_eq!(code.unwrap().code.expose_secret(), "c");
    }

    #[test]
    fn debug_shows_neither_state_nor_verifier_nor_code() {
        let (_, pending) = begun();
        let query = format!("code=hidden&state={}", pending.state().expose_secret());
        let shown = format!("{pending:?} {:?}", Callback::from(query.as_str()));
        for secret in ["hidden", pending.state.expose_secret(), pending.verifier.expose_secret()] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_callback_makes_the_judge_panic(query in "\\PC{0,200}", kept in "[A-Za-z0-9_-]{0,80}") {
            let (_, pending) = begun();
            let _ = pending.judge(&Callback::from(query.as_str()), Some("i"), at(1_000));
            let _ = PendingLogin::from_secret(&kept.into());
        }
    }
}

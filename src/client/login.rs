//! A person's login: the URL they are sent to, and the callback they come back with.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::Url;
use zeroize::Zeroizing;

use crate::clock::Timestamp;
use crate::error::{CallbackProblem, Error};
use crate::wire::basic::BasicClient;
use crate::wire::endpoint::Scope;
use crate::wire::error_response::readable_text;
use crate::wire::realm::Realm;

/// The longest time between a login's begin and its callback.
pub(crate) const LOGIN_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// 128 bits in base64url, as they are drawn here.
const SHORTEST_STATE: usize = 22;

/// RFC 7636 section 4.1.
const SHORTEST_VERIFIER: usize = 43;
const LONGEST_VERIFIER: usize = 128;

/// The parameters that a callback answers with (RFC 6749 section 4.1.2 and RFC 9207).
const CALLBACK_PARAMETERS: [&str; 4] = ["code", "state", "iss", "error"];

/// The secrets of a login that has begun: the state (RFC 6749 section 10.12) and the PKCE verifier
/// (RFC 7636).
///
/// It belongs to the browser that began the login. Keep it where nobody else reads it and where
/// only that browser's next request finds it: in its server-side session, or in an encrypted
/// cookie. [`to_secret`](Self::to_secret) turns it into one opaque string for that and
/// [`from_secret`](Self::from_secret) reads it back. Its secrets are wiped on drop.
///
/// It can be completed by a client of the same API version, environment, client id, redirect URI
/// and issuer only.
pub struct PendingLogin {
    state: SecretString,
    verifier: SecretString,
    settings: SettingsDigest,
    began: i64,
}

/// A digest of the settings that a login depends on: a code is good for the client that asked for
/// it, and for no other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SettingsDigest([u8; 16]);

impl SettingsDigest {
    pub(crate) fn new(realm: &Realm, redirect_uri: &str, issuer: Option<&str>) -> Self {
        let issuer = issuer.unwrap_or_default();
        let digest = Sha256::digest(format!("{realm:?}\n{redirect_uri}\n{issuer}"));
        Self(std::array::from_fn(|index| digest[index]))
    }
}

/// An authorization request (RFC 6749 section 4.1.1).
pub(crate) struct AuthorizationRequest<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) authorize_url: &'a Url,
    pub(crate) redirect_uri: &'a str,
    pub(crate) scope: Option<Scope>,
    pub(crate) settings: SettingsDigest,
}

/// The authorization code of a verified callback, and the verifier that belongs to it.
pub(crate) struct AuthorizationCode {
    pub(crate) code: SecretString,
    pub(crate) verifier: SecretString,
}

/// Validates an authorize URL: it must not double a parameter, its own or one that each login adds
/// (RFC 6749 section 3.1). `setting` names it in errors.
pub(crate) fn check_authorize_url(
    setting: &str,
    url: &Url,
    scope: Option<Scope>,
) -> Result<(), Error> {
    let own = ["response_type", "client_id", "redirect_uri", "state"];
    let own = own.into_iter().chain(["code_challenge", "code_challenge_method"]);
    let own = own.chain(scope.map(|_| "scope"));
    match duplicate(url.query_pairs().map(|(name, _)| name).chain(own.map(Cow::Borrowed))) {
        Some(name) => Err(Error::config(format!(
            "{setting} has `{name}` in its query, which a login would then send twice: leave it out"
        ))),
        None => Ok(()),
    }
}

/// Validates a redirect URI: the answer's parameters are added to its query (RFC 6749 section
/// 3.1.2), so it must have none of them. `setting` names it in errors.
pub(crate) fn check_redirect_uri(setting: &str, uri: &Url) -> Result<(), Error> {
    match uri.query_pairs().find(|(name, _)| CALLBACK_PARAMETERS.contains(&&**name)) {
        Some((name, _)) => Err(Error::config(format!(
            "{setting} has `{name}` in its query, which every callback would then have twice"
        ))),
        None => Ok(()),
    }
}

/// The first name that comes twice.
fn duplicate<'a>(names: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let mut seen = HashSet::new();
    names.into_iter().find(|name| !seen.insert(name.clone()))
}

impl PendingLogin {
    /// Draws state and verifier, and builds the URL to send the person to.
    pub(crate) fn begin<K: Into<String>, V: Into<String>>(
        request: &AuthorizationRequest<'_>,
        more: impl IntoIterator<Item = (K, V)>,
        now: Timestamp,
    ) -> Result<(Url, Self), Error> {
        let client = BasicClient::new(ClientId::new(request.client_id.to_owned()))
            .set_auth_uri(AuthUrl::from_url(request.authorize_url.clone()));
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let mut authorization = client
            .authorize_url(CsrfToken::new_random)
            .set_pkce_challenge(challenge)
            .add_scopes(request.scope.map(|scope| oauth2::Scope::new(scope.as_str().to_owned())))
            // The text as it is: a parsed URL may be spelt in another way.
            .add_extra_param("redirect_uri", request.redirect_uri);
        for (name, value) in more {
            authorization = authorization.add_extra_param(name.into(), value.into());
        }
        let (url, state) = authorization.url();
        if let Some(name) = duplicate(url.query_pairs().map(|(name, _)| name)) {
            return Err(Error::config(format!(
                "the authorize parameter `{name}` is given twice: a login writes it once already"
            )));
        }
        let pending = Self {
            state: SecretString::from(state.into_secret()),
            verifier: SecretString::from(verifier.into_secret()),
            settings: request.settings,
            began: now.unix_seconds(),
        };
        Ok((url, pending))
    }

    /// One opaque string to keep. It holds the secrets: it is to be stored as one.
    #[must_use]
    pub fn to_secret(&self) -> SecretString {
        let settings = BASE64_URL_SAFE_NO_PAD.encode(self.settings.0);
        let began = self.began.to_string();
        let (state, verifier) = (self.state.expose_secret(), self.verifier.expose_secret());
        Zeroizing::new([&settings, ".", &began, ".", state, ".", verifier].concat()).as_str().into()
    }

    /// Reads what [`to_secret`](Self::to_secret) gave.
    ///
    /// # Errors
    ///
    /// [`CallbackProblem::Unreadable`] for anything else.
    pub fn from_secret(text: &SecretString) -> Result<Self, Error> {
        Self::parse(text.expose_secret())
            .ok_or_else(|| Error::callback(CallbackProblem::Unreadable))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('.');
        let mut next = || fields.next();
        let (settings, began, state, verifier) = (next()?, next()?, next()?, next()?);
        let settings = BASE64_URL_SAFE_NO_PAD.decode(settings).ok()?;
        let settings = SettingsDigest(settings.try_into().ok()?);
        let began = began.parse().ok()?;
        let is_whole = next().is_none()
            && state.len() >= SHORTEST_STATE
            && (SHORTEST_VERIFIER..=LONGEST_VERIFIER).contains(&verifier.len())
            && began >= 0;
        is_whole.then(|| Self { state: state.into(), verifier: verifier.into(), settings, began })
    }

    /// The state, by which an app that keeps several logins finds the one a callback belongs to
    /// ([`Callback::state`]).
    #[must_use]
    pub fn state(&self) -> &SecretString {
        &self.state
    }

    /// The settings it began with.
    #[cfg(feature = "axum")]
    pub(crate) fn settings(&self) -> SettingsDigest {
        self.settings
    }

    /// When it began, in seconds since the Unix epoch.
    #[cfg(feature = "axum")]
    pub(crate) fn began(&self) -> i64 {
        self.began
    }

    /// Identifies the login in a store.
    pub(crate) fn state_digest(&self) -> [u8; 32] {
        Sha256::digest(self.state.expose_secret()).into()
    }

    /// Verifies a callback.
    pub(crate) fn verify(
        self,
        callback: &Callback,
        settings: SettingsDigest,
        issuer: Option<&str>,
        now: Timestamp,
    ) -> Result<AuthorizationCode, Error> {
        if settings != self.settings {
            return Err(Error::callback(CallbackProblem::OtherSettings));
        }
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
            // A refusal may quote the state that it refuses.
            let readable =
                |text: &str, longest| readable_text(&text.replace(state, "***"), longest);
            let description = callback.first("error_description").map(|text| readable(text, 512));
            return Err(Error::callback(CallbackProblem::Refused)
                .with_answer(&readable(error, 64), description.as_deref()));
        }
        let code = callback
            .only("code", CallbackProblem::CodeDoubled)?
            .filter(|code| !code.is_empty())
            .ok_or_else(|| Error::callback(CallbackProblem::CodeMissing))?;
        Ok(AuthorizationCode { code: code.into(), verifier: self.verifier })
    }
}

impl fmt::Debug for PendingLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingLogin").field("began", &self.began).finish_non_exhaustive()
    }
}

/// The parameters a person came back with, from a query string, a [`Url`] or pairs.
///
/// `Debug` shows the names of the parameters and none of their values.
pub struct Callback(Vec<(String, Zeroizing<String>)>);

impl Callback {
    /// Reads a query string, with or without its `?`; or the one of a whole URL, or of its path and
    /// query.
    #[must_use]
    pub fn from_query(query: &str) -> Self {
        // Either can have the other's signs: the path of a URL an `=`, the value of a parameter a
        // `?`. A parameter of a callback has neither `/` nor `:` in its name.
        let name = query.split(['=', '?']).next().unwrap_or_default();
        let is_url = name.starts_with('/') || name.contains(":/");
        let query = match query.split_once('?') {
            Some((before, query)) if is_url || !before.contains('=') => query,
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

    /// The state, for an app that looks for the login it belongs to among several. Nothing is
    /// proven by it: [`Hurdlr::complete_login`](crate::Hurdlr::complete_login) does that.
    ///
    /// # Errors
    ///
    /// [`CallbackProblem::StateMissing`] or [`CallbackProblem::StateDoubled`] where there is not
    /// one.
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

    const SETTINGS: SettingsDigest = SettingsDigest([7; 16]);

    fn begun() -> (Url, PendingLogin) {
        begun_with("https://app.example.com/callback", &[]).unwrap()
    }

    fn begun_with(redirect_uri: &str, more: &[(&str, &str)]) -> Result<(Url, PendingLogin), Error> {
        let request = AuthorizationRequest {
            client_id: "id",
            authorize_url: &"https://connect.example.com/authorize?tenant=1".parse().unwrap(),
            redirect_uri,
            scope: None,
            settings: SETTINGS,
        };
        PendingLogin::begin(&request, more.iter().copied(), at(1_000))
    }

    fn verified(build: impl FnOnce(&str) -> String) -> Result<AuthorizationCode, Error> {
        let (_, pending) = begun();
        let query = build(pending.state().expose_secret());
        let callback = Callback::from(query.as_str());
        pending.verify(&callback, SETTINGS, Some("https://issuer"), at(1_001))
    }

    fn problem(build: impl FnOnce(&str) -> String) -> CallbackProblem {
        verified(build).err().and_then(|error| error.callback_problem()).expect("a problem")
    }

    #[test]
    fn url_asks_with_state_and_s256_challenge() {
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
    fn no_two_logins_share_state_or_verifier() {
        let ((_, one), (_, two)) = (begun(), begun());
        assert_ne!(one.state.expose_secret(), two.state.expose_secret());
        assert_ne!(one.verifier.expose_secret(), two.verifier.expose_secret());
        assert!(one.state.expose_secret().len() >= 22 && one.verifier.expose_secret().len() >= 43);
    }

    #[test]
    fn true_callback_is_accepted_in_every_form() {
        let code =
            verified(|state| format!("?code=c%2B1&state={state}&iss=https://issuer")).unwrap();
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
            assert!(pending.verify(&callback, SETTINGS, None, at(1_599)).is_ok(), "{callback:?}");
        }
    }

    #[test]
    fn every_attack_on_callbacks_is_named() {
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
    fn refusal_carries_code_and_harmless_description() {
        let error = verified(|state| {
            format!("error=access_denied&error_description=no%0Away&code=c&state={state}")
        });
        let error = error.err().unwrap();
        assert_eq!(error.callback_problem(), Some(CallbackProblem::Refused));
        assert_eq!((error.code(), error.description()), (Some("access_denied"), Some("no way")));
    }

    #[test]
    fn login_lasts_ten_minutes_by_any_clock() {
        for (now, fine) in [(1_000, true), (1_599, true), (1_600, false), (500, true), (400, false)]
        {
            let (_, pending) = begun();
            let query = format!("code=c&state={}", pending.state().expose_secret());
            let verified = pending.verify(&Callback::from(query.as_str()), SETTINGS, None, at(now));
            assert_eq!(verified.is_ok(), fine, "{now}");
        }
    }

    #[test]
    fn no_issuer_configured_accepts_any() {
        let (_, pending) = begun();
        let query = format!("code=c&iss=https://any&state={}", pending.state().expose_secret());
        assert!(pending.verify(&Callback::from(query.as_str()), SETTINGS, None, at(1_000)).is_ok());
    }

    #[test]
    fn only_a_kept_login_reads_back() {
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
    fn redirect_uri_is_sent_letter_by_letter() {
        for text in ["https://App.example.com", "https://a.example:443/b/../c?x=a\\b&y=\"%2f"] {
            let (url, _) = begun_with(text, &[]).unwrap();
            let sent = url.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1;
            assert_eq!(sent, text);
        }
    }

    #[test]
    fn text_of_others_is_no_login() {
        let (settings, state, verifier) = ("s".repeat(22), "t".repeat(22), "v".repeat(43));
        let read = |fields: &[&str]| PendingLogin::from_secret(&fields.join(".").into());
        // 22 letters hold 132 bits, of which the last four are none of the digest's.
        let settings = &settings.replace('s', "A");
        assert!(read(&[settings, "0", &state, &verifier]).is_ok());
        assert!(read(&[settings, "0", "", &verifier]).is_err());
        assert!(read(&[settings, "0", &state, ""]).is_err());
        assert!(read(&[settings, "0", &state, &"v".repeat(129)]).is_err());
        assert!(read(&[settings, "0", &state, &verifier, ""]).is_err());
        assert!(read(&[settings, "0", &state]).is_err());
        assert!(read(&[settings, "-1", &state, &verifier]).is_err());
        assert!(read(&[settings, "x", &state, &verifier]).is_err());
        assert!(read(&["AAAA", "0", &state, &verifier]).is_err());
        let latest = i64::MAX.to_string();
        assert!(!format!("{:?}", read(&[settings, &latest, &state, &verifier])).is_empty());
    }

    #[test]
    fn login_of_other_settings_is_refused() {
        let (_, pending) = begun();
        let query = format!("code=c&state={}", pending.state().expose_secret());
        let other = SettingsDigest([8; 16]);
        let error = pending.verify(&Callback::from(query), other, None, at(1_000)).err().unwrap();
        assert_eq!(error.callback_problem(), Some(CallbackProblem::OtherSettings));
    }

    #[test]
    fn more_parameters_are_sent_once() {
        let (url, _) =
            begun_with("https://a.example/b", &[("prompt", "login"), ("login_hint", "ann@b.c")])
                .unwrap();
        assert!(url.as_str().contains("&prompt=login&login_hint=ann%40b.c"), "{url}");
        for name in ["state", "redirect_uri", "tenant", "code_challenge"] {
            let error = begun_with("https://a.example/b", &[(name, "hidden")]).unwrap_err();
            let shown = format!("{error:?}");
            assert!(shown.contains(&format!("`{name}`")) && !shown.contains("hidden"), "{shown}");
        }
        assert!(begun_with("https://a.example/b", &[("a", "1"), ("a", "1")]).is_err());
    }

    #[test]
    fn url_with_equals_sign_is_read() {
        for before in [
            "https://a.example/cb=1/x?",
            "https://a.example/cb;a=b?",
            "/cb=1?",
            "com.example.app:/cb=1?",
            "?",
            "cb?",
            "",
        ] {
            let code = verified(|state| format!("{before}code=c&state={state}"));
            assert_eq!(code.unwrap().code.expose_secret(), "c", "{before}");
        }
        // A value has the signs of a URL.
        let code = verified(|state| format!("code=https://a/b?c=d&state={state}"));
        assert_eq!(code.unwrap().code.expose_secret(), "https://a/b?c=d");
    }

    #[test]
    fn empty_parameters_count_as_omitted() {
        let code =
            verified(|state| format!("https://a.example/cb?error=&iss=&code=c&state={state}#_"));
        assert_eq!(code.unwrap().code.expose_secret(), "c");
    }

    #[test]
    fn debug_shows_no_state_verifier_or_code() {
        let (_, pending) = begun();
        let query = format!("code=hidden&state={}", pending.state().expose_secret());
        let shown = format!("{pending:?} {:?}", Callback::from(query.as_str()));
        for secret in ["hidden", pending.state.expose_secret(), pending.verifier.expose_secret()] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn no_callback_panics(query in "\\PC{0,200}", kept in "[A-Za-z0-9_.-]{0,200}") {
            let (_, pending) = begun();
            let _ = pending.verify(&Callback::from(query.as_str()), SETTINGS, Some("i"), at(1_000));
            let _ = PendingLogin::from_secret(&kept.into());
        }
    }
}

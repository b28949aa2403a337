//! The settings of a `Hurdlr`: the builder stores, `build()` validates.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::ParseBoolError;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;
use zeroize::Zeroizing;

use super::{Credentials, Hurdlr, Inner};
use crate::client::login;
use crate::client::retry::RetryPolicy;
use crate::client::transport::{HttpClient, Timeouts, USER_AGENT, client_builder};
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::error::Error;
use crate::rng::SharedRng;
use crate::wire::endpoint::{
    ApiVersion, ClientAuthentication, Environment, Scope, check_text, secret_bearing_url,
};
use crate::wire::log_id_key;

/// The longest secret that is read from a file, in bytes.
const MAX_SECRET_FILE: usize = 16 * 1024;

/// Settings of a [`Hurdlr`], validated by [`build`](Self::build).
#[must_use = "a builder does nothing until it is built"]
pub struct HurdlrBuilder {
    client_id: String,
    client_secret: SecretString,
    version: ApiVersion,
    environment: Named<Environment>,
    authorize_url: Option<Named<String>>,
    redirect_uri: Option<Named<String>>,
    issuer: Option<String>,
    scope: Option<Scope>,
    timeouts: Timeouts,
    retry: RetryPolicy,
    bearer_on_refresh: Option<bool>,
    log_id_key: Option<SecretString>,
    clock: SharedClock,
    rng: SharedRng,
    reqwest: reqwest::ClientBuilder,
    #[cfg(feature = "testing")]
    custom: Option<HttpClient>,
}

/// A setting, and the name its author knows it by.
struct Named<T> {
    name: &'static str,
    value: T,
}

impl HurdlrBuilder {
    pub(super) fn new(client_id: String, client_secret: SecretString) -> Self {
        Self {
            client_id,
            client_secret,
            version: ApiVersion::default(),
            environment: Named { name: "environment", value: Environment::default() },
            authorize_url: None,
            redirect_uri: None,
            issuer: None,
            scope: None,
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            bearer_on_refresh: None,
            log_id_key: None,
            clock: SharedClock::new(SystemClock),
            rng: SharedRng::Thread,
            reqwest: client_builder().user_agent(USER_AGENT),
            #[cfg(feature = "testing")]
            custom: None,
        }
    }

    /// A builder by the environment's variables, as [`Hurdlr::from_env`] reads them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the variable that cannot be used.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(read: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let optional = |name: &str| match read(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
            Some(Err(_)) => Err(Error::config(format!("{name} is not UTF-8"))),
        };
        let required =
            |name: &str| optional(name)?.ok_or_else(|| Error::config(format!("{name} is not set")));
        let named =
            |name: &'static str| Ok::<_, Error>(optional(name)?.map(|value| Named { name, value }));
        // The value itself, or a file that holds it: container platforms mount secrets so.
        let secret = |name: &str| {
            let file = format!("{name}_FILE");
            match (optional(name)?, optional(&file)?) {
                (Some(_), Some(_)) => {
                    Err(Error::config(format!("{name} and {file} are both set: leave one out")))
                }
                (Some(value), None) => Ok(Some(value.into())),
                (None, Some(path)) => read_secret(&path).map(Some).map_err(|source| {
                    // The path is not quoted: it may be the secret, set by mistake.
                    Error::config(format!("the file that {file} names cannot be read"))
                        .caused_by(source)
                }),
                (None, None) => Ok(None),
            }
        };
        let client_id = required("HURDLR_CLIENT_ID")?;
        let client_secret = secret("HURDLR_CLIENT_SECRET")?.ok_or_else(|| {
            Error::config("neither HURDLR_CLIENT_SECRET nor HURDLR_CLIENT_SECRET_FILE is set")
        })?;
        let mut builder = Self::new(client_id, client_secret);
        builder.log_id_key = secret("HURDLR_LOG_ID_KEY")?;
        if let Some(Named { name, value }) = named("HURDLR_BASE_URL")? {
            builder.environment = Named { name, value: Environment::BaseUrl(value) };
        }
        builder.authorize_url = named("HURDLR_AUTHORIZE_URL")?;
        builder.redirect_uri = named("HURDLR_REDIRECT_URI")?;
        builder.issuer = optional("HURDLR_ISSUER")?;
        let unusable = |name: &str| Error::config(format!("{name} cannot be used"));
        if let Some(Named { name, value }) = named("HURDLR_API_VERSION")? {
            builder.version =
                value.parse().map_err(|error: Error| unusable(name).caused_by(error))?;
        }
        if let Some(Named { name, value }) = named("HURDLR_SCOPE")? {
            let scope = value.parse().map_err(|error: Error| unusable(name).caused_by(error))?;
            builder.scope = Some(scope);
        }
        if let Some(Named { name, value }) = named("HURDLR_BEARER_ON_REFRESH")? {
            let carry = value.parse().map_err(|error: ParseBoolError| {
                Error::config(format!("{name} is neither true nor false")).caused_by(error)
            })?;
            builder.bearer_on_refresh = Some(carry);
        }
        Ok(builder)
    }

    /// Where the provider is: its hosted sandbox (the default), or a base URL.
    pub fn environment(mut self, environment: impl Into<Environment>) -> Self {
        self.environment = Named { name: "environment", value: environment.into() };
        self
    }

    /// The version of the API; [`ApiVersion::V4`] by default.
    pub fn api_version(mut self, version: ApiVersion) -> Self {
        self.version = version;
        self
    }

    /// The page at which people log in. The provider documents none, so there is no default.
    pub fn authorize_url(mut self, url: impl Into<String>) -> Self {
        self.authorize_url = Some(Named { name: "authorize_url", value: url.into() });
        self
    }

    /// The page of yours that people come back to after a login, as registered with the provider.
    pub fn redirect_uri(mut self, uri: impl Into<String>) -> Self {
        self.redirect_uri = Some(Named { name: "redirect_uri", value: uri.into() });
        self
    }

    /// The issuer that a callback has to name where it names one (RFC 9207). None is set by
    /// default, and any is accepted then.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// The scope that requests ask for, where the version has scopes: v6. Unless set, requests name
    /// none, and the provider grants [`Scope::Write`].
    ///
    /// It goes with logins and client credentials. A refresh names none: it keeps what was granted.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// How long to wait for a connection, TLS included; 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// How long to wait for one whole answer; 30 s by default. A request that has not left by then
    /// does not leave any more; for the answer of one that has, there is a last look half a second
    /// later, since a process that was stopped wakes with its time over and the answer there.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// How often a call repeats what may be repeated.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Whether a refresh carries `Authorization: Bearer` with the current access token. It does by
    /// default on v4 and v5, whose reference asks for it. It cannot on v6, where the header is the
    /// client's.
    pub fn bearer_on_refresh(mut self, carry: bool) -> Self {
        self.bearer_on_refresh = Some(carry);
        self
    }

    /// Configures the `reqwest` client of token requests, such as with roots, proxies and a user
    /// agent of your own.
    ///
    /// `configure` gets a builder with this crate's name and version as its user agent, and with
    /// the feature `rustls` one that asks for rustls by name: with another feature in the tree
    /// `reqwest` would take the system's library.
    ///
    /// On top of your settings come those that this crate's promises need:
    ///
    /// | setting | |
    /// |---|---|
    /// | `timeout`, `read_timeout`, `connect_timeout` | by the builder's own two |
    /// | `redirect`, `retry`, `referer` | none |
    /// | `gzip`, `deflate`, `brotli`, `zstd` | none is asked for |
    /// | `connection_verbose`, `tls_sslkeylogfile` | off, since they would write down secrets |
    /// | `tls_danger_accept_invalid_…` | off: name your root by `tls_certs_merge` |
    /// | `https_only` | on, unless the host is loopback and plain `http` |
    /// | `proxy` | kept, and not used for a loopback host |
    /// | `resolve`, `dns_resolver` | kept; for plain `http`, `localhost` is this machine |
    /// | `pool_idle_timeout` | 5 s |
    /// | `http1_…_in_responses` | lenient: a malformed header line must not lose a token |
    ///
    /// All others are kept. `default_headers` go along with every request: one with an
    /// `Authorization` would be a second proof of who you are. A `cookie_store` is one jar for the
    /// requests of all users, and is best left out; a `connector_layer`, a `unix_socket` and
    /// `tls_backend_preconfigured` decide by themselves where and how secrets travel.
    ///
    /// ```
    /// use hurdlr_oauth2::Hurdlr;
    ///
    /// let hurdlr = Hurdlr::builder("my-app", "its secret".into())
    ///     .reqwest(|builder| builder.user_agent("my-app/7"))
    ///     .build()?;
    /// # Ok::<(), hurdlr_oauth2::Error>(())
    /// ```
    pub fn reqwest(
        mut self,
        configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        self.reqwest = configure(self.reqwest);
        self
    }

    /// The key of the users' [log ids](crate::UserId::log_id): at least 32 random bytes in base64,
    /// such as `openssl rand -base64 32` makes. With the same key in all replicas, a user has one
    /// name in all their logs, which outlasts a restart. By default each process has a random key.
    ///
    /// `Debug` of a user id knows of no client, so the key is that of the whole process:
    /// [`build`](Self::build) fails where another one is in use. Nobody can tell a user by a log id
    /// without the key; with it, ids can be tried.
    ///
    /// ```
    /// use hurdlr_oauth2::{Hurdlr, UserId};
    ///
    /// let key = "c2ecret0c2ecret0c2ecret0c2ecret0c2ecret0c2ecret0"; // from where secrets are kept
    /// let builder = || Hurdlr::builder("my-app", "its secret".into());
    /// builder().log_id_key(key.into()).build()?;
    /// assert_eq!(UserId::new("ann")?.log_id(), "user#00b7fe72");
    ///
    /// builder().log_id_key(key.into()).build()?; // the same one is taken again
    /// let other = key.replace('0', "1");
    /// assert!(builder().log_id_key(other.into()).build().is_err());
    /// # Ok::<(), hurdlr_oauth2::Error>(())
    /// ```
    pub fn log_id_key(mut self, key: SecretString) -> Self {
        self.log_id_key = Some(key);
        self
    }

    /// Sends by `client` instead of the crate's own transport, to reach an embedded provider
    /// without a socket. The transport's promises are then the client's to keep.
    #[cfg(feature = "testing")]
    pub fn http_client<C>(mut self, client: C) -> Self
    where
        C: for<'c> oauth2::AsyncHttpClient<'c, Error: Send + Sync, Future: Send>,
        C: Send + Sync + 'static,
    {
        self.custom = Some(HttpClient::custom(client));
        self
    }

    /// The source of jitter and ids, for this client and every manager built on it; by default a
    /// generator seeded by the operating system. For tests that replay: ids that repeat would let
    /// one process's lease pass for another's.
    #[cfg(feature = "testing")]
    pub fn rng(mut self, rng: impl crate::rng::Rng) -> Self {
        self.rng = SharedRng::Injected(std::sync::Arc::new(rng));
        self
    }

    /// The clock that tokens and logins are timed by; the system's by default.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = SharedClock::new(clock);
        self
    }

    /// Validates the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) names the first setting that cannot be used,
    /// and says what would be right.
    pub fn build(self) -> Result<Hurdlr, Error> {
        if self.client_id.is_empty() {
            return Err(Error::config("client_id is empty"));
        }
        if self.client_secret.expose_secret().is_empty() {
            return Err(Error::config("client_secret is empty"));
        }
        check_text("client_id", &self.client_id)?;
        check_text("client_secret", self.client_secret.expose_secret())?;
        if let Some(issuer) = &self.issuer {
            check_text("issuer", issuer)?;
        }
        self.timeouts.check()?;
        let contract = self.version.contract();
        if self.scope.is_some() && !contract.has_scopes {
            return Err(Error::config(format!(
                "scope is set, and API {} has no scopes: leave it out",
                self.version
            )));
        }
        if self.bearer_on_refresh == Some(true)
            && contract.client_authentication == ClientAuthentication::Basic
        {
            return Err(Error::config(format!(
                "bearer_on_refresh is on, and API {} takes the client's own credentials in that \
                 header: leave it out",
                self.version
            )));
        }
        let base_url = self.environment.value.base(self.version, self.environment.name)?;
        let token_url = self.version.token_url_at(&base_url)?;
        #[cfg(feature = "testing")]
        let custom = self.custom;
        #[cfg(not(feature = "testing"))]
        let custom = None;
        let http = match custom {
            Some(http) => http,
            None => HttpClient::with(self.reqwest, &token_url, self.timeouts)?,
        };
        if let Some(key) = &self.log_id_key {
            log_id_key::set(key)?;
        }
        Ok(Hurdlr(Arc::new(Inner {
            authorize_url: authorize_url(self.authorize_url, self.scope)?,
            redirect_uri: redirect_uri(self.redirect_uri)?,
            retry: self.retry.judged()?,
            credentials: Credentials {
                client_id: self.client_id,
                client_secret: self.client_secret,
                authentication: contract.client_authentication,
            },
            version: self.version,
            revocation_url: self.version.revocation_url_at(&base_url)?,
            base_url,
            token_url,
            scope: self.scope,
            issuer: self.issuer,
            bearer_on_refresh: self.bearer_on_refresh.unwrap_or(contract.bearer_on_refresh).into(),
            clock: self.clock,
            rng: self.rng,
            request_timeout: self.timeouts.request,
            http,
        })))
    }
}

/// Reads a secret from a file, without the line's end that most editors put there.
fn read_secret(path: &str) -> io::Result<SecretString> {
    // Room for all of it: a growing buffer would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_SECRET_FILE + 1));
    File::open(path)?.take(MAX_SECRET_FILE as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_SECRET_FILE {
        return Err(io::Error::other("the file is too long for a secret"));
    }
    Ok(text.trim_end_matches(['\r', '\n']).into())
}

fn authorize_url(
    setting: Option<Named<String>>,
    scope: Option<Scope>,
) -> Result<Option<Url>, Error> {
    let Some(Named { name, value }) = setting else { return Ok(None) };
    let url = secret_bearing_url(name, &value)?;
    login::check_authorize_url(name, &url, scope)?;
    Ok(Some(url))
}

/// The redirect URI is sent letter by letter as it was registered (RFC 6749 section 3.1.2.3), so it
/// stays the text it is.
fn redirect_uri(setting: Option<Named<String>>) -> Result<Option<String>, Error> {
    let Some(Named { name, value }) = setting else { return Ok(None) };
    login::check_redirect_uri(name, &secret_bearing_url(name, &value)?)?;
    Ok(Some(value))
}

impl fmt::Debug for HurdlrBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HurdlrBuilder")
            .field("client_id", &self.client_id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Hurdlr, Error> {
        HurdlrBuilder::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
        .and_then(HurdlrBuilder::build)
    }

    const CREDENTIALS: [(&str, &str); 2] =
        [("HURDLR_CLIENT_ID", "id"), ("HURDLR_CLIENT_SECRET", "marker")];

    /// A line's end from a file is seen before the provider refuses it for no visible reason.
    #[test]
    fn white_space_around_setting_is_named() {
        let fine = [
            ("HURDLR_CLIENT_ID", "id"),
            ("HURDLR_CLIENT_SECRET", "marker"),
            ("HURDLR_BASE_URL", "https://a.example"),
            ("HURDLR_AUTHORIZE_URL", "https://a.example/authorize"),
            ("HURDLR_REDIRECT_URI", "https://b.example/callback"),
            ("HURDLR_ISSUER", "https://a.example"),
        ];
        read(&fine).unwrap();
        for (index, (name, value)) in fine.into_iter().enumerate() {
            let blanks = [format!(" {value}"), format!("{value} "), format!("{value}\u{a0}")];
            let controls = [format!("{value}\n"), format!("\t{value}"), value.replace('a', "a\r")];
            for odd in blanks.into_iter().chain(controls) {
                let mut variables = fine;
                variables[index].1 = &odd;
                if odd != value {
                    let shown = format!("{:?}", read(&variables).unwrap_err());
                    let name = name.trim_start_matches("HURDLR_");
                    let is_named = shown.contains(name) || shown.contains(&name.to_lowercase());
                    assert!(is_named && !shown.contains("marker"), "{shown}");
                }
            }
        }
        // A secret may have blanks within (RFC 6749 appendix A.2).
        let mut variables = fine;
        variables[1].1 = "two words";
        read(&variables).unwrap();
    }

    /// Container platforms mount secrets as files.
    #[test]
    fn secret_is_read_from_file() {
        const FILE: &str = "HURDLR_CLIENT_SECRET_FILE";
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let read = |path: &str| read(&[CREDENTIALS[0], (FILE, path)]);
        let hurdlr = read(&file("plain", "two words\r\n")).unwrap();
        assert_eq!(hurdlr.0.credentials.client_secret.expose_secret(), "two words");
        for (path, problem) in [
            (file("blank", " marker"), "client_secret has white space"),
            (file("lines", "marker\nmarker\n"), "client_secret has a control character"),
            (file("empty", "\n"), "client_secret is empty"),
            (file("long", &"marker".repeat(4_000)), FILE),
            ("marker".to_owned(), FILE),
        ] {
            let error = read(&path).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(problem) && !shown.contains("marker"), "{shown}");
        }
        let both = [CREDENTIALS[0], CREDENTIALS[1], (FILE, "path")];
        assert!(super::tests::read(&both).unwrap_err().to_string().contains("both set"));
    }

    #[test]
    fn bad_log_id_key_is_named() {
        for (wrong, problem) in [("marker00", "at least 32"), ("marker", "not base64")] {
            let builder = Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
            let error = builder.log_id_key(wrong.into()).build().unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("log_id_key") && shown.contains(problem), "{shown}");
            assert!(!shown.contains("marker"), "{shown}");
        }
    }

    #[test]
    fn all_variables_are_read() {
        let hurdlr = read(&[
            ("HURDLR_CLIENT_ID", "id"),
            ("HURDLR_CLIENT_SECRET", "marker"),
            ("HURDLR_BASE_URL", "http://localhost:1/x"),
            ("HURDLR_AUTHORIZE_URL", "http://localhost:2/authorize"),
            ("HURDLR_REDIRECT_URI", "http://localhost:3/callback"),
            ("HURDLR_API_VERSION", "v5"),
        ])
        .unwrap();
        assert_eq!(hurdlr.token_url().as_str(), "http://localhost:1/x/rest/v5/auth/token");
        assert_eq!(hurdlr.client_id(), "id");
        let (url, _) = hurdlr.begin_login().unwrap();
        assert_eq!(url.port(), Some(2));
        assert!(url.as_str().contains("redirect_uri=http%3A%2F%2Flocalhost%3A3%2Fcallback"));
    }

    #[test]
    fn scope_issuer_and_bearer_are_read() {
        let mut variables = vec![
            ("HURDLR_API_VERSION", "v6"),
            ("HURDLR_BASE_URL", "http://localhost:1"),
            ("HURDLR_ISSUER", "https://hurdlr.example.com"),
            ("HURDLR_SCOPE", "read"),
            ("HURDLR_BEARER_ON_REFRESH", "false"),
        ];
        variables.extend(CREDENTIALS);
        let hurdlr = read(&variables).unwrap();
        assert_eq!(hurdlr.0.issuer.as_deref(), Some("https://hurdlr.example.com"));
        assert_eq!(hurdlr.0.scope, Some(Scope::Read));
        assert!(!hurdlr.0.bearer_on_refresh.load(std::sync::atomic::Ordering::Relaxed));
        variables[4].1 = "true";
        let error = read(&variables).unwrap_err().to_string();
        assert!(error.contains("bearer_on_refresh"), "{error}");
    }

    #[test]
    fn the_version_is_one_value() {
        for (name, path) in
            [("v4", "rest/v4/auth/token"), ("v5", "rest/v5/auth/token"), ("v6", "v6/auth/token")]
        {
            let mut variables =
                vec![("HURDLR_API_VERSION", name), ("HURDLR_BASE_URL", "http://localhost:1")];
            variables.extend(CREDENTIALS);
            let hurdlr = read(&variables).unwrap();
            assert_eq!(hurdlr.token_url().path().trim_start_matches('/'), path);
        }
    }

    #[test]
    fn faulty_variable_is_named_not_quoted() {
        for (name, value) in [
            ("HURDLR_CLIENT_ID", ""),
            ("HURDLR_CLIENT_SECRET", ""),
            ("HURDLR_BASE_URL", "http://marker.example.com"),
            ("HURDLR_AUTHORIZE_URL", "marker"),
            ("HURDLR_REDIRECT_URI", "https://user:marker@app.example.com"),
            ("HURDLR_API_VERSION", "v3"),
            ("HURDLR_SCOPE", "admin"),
            ("HURDLR_BEARER_ON_REFRESH", "yes"),
        ] {
            let mut variables = vec![(name, value)];
            variables.extend(CREDENTIALS);
            let error = read(&variables).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config);
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(name), "{shown}");
            assert!(!shown.contains("marker"), "{shown}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let result = HurdlrBuilder::from_variables(|_| Some(OsString::from_vec(vec![0xff])));
        assert_eq!(result.err().unwrap().to_string(), "HURDLR_CLIENT_ID is not UTF-8");
    }

    #[test]
    fn an_empty_optional_variable_is_unset() {
        let empty = ["HURDLR_BASE_URL", "HURDLR_AUTHORIZE_URL", "HURDLR_API_VERSION"];
        let mut variables: Vec<_> = empty.map(|name| (name, "")).into();
        variables.extend(CREDENTIALS);
        if cfg!(any(feature = "rustls", feature = "native-tls")) {
            let hurdlr = read(&variables).unwrap();
            assert_eq!(
                hurdlr.token_url().as_str(),
                "https://sandbox.hurdlr.com/rest/v4/auth/token"
            );
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let build = |set: fn(HurdlrBuilder) -> HurdlrBuilder| {
            let builder = Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
            set(builder).build().unwrap_err().to_string()
        };
        assert!(build(|b| b.connect_timeout(Duration::ZERO)).contains("connect_timeout"));
        assert!(build(|b| b.request_timeout(Duration::ZERO)).contains("request_timeout"));
        assert!(
            build(|b| b.retry(RetryPolicy::default().max_attempts(0))).contains("max_attempts")
        );
        assert!(build(|b| b.authorize_url("http://a.example")).contains("authorize_url"));
        assert!(build(|b| b.redirect_uri("https://a.example/#f")).contains("redirect_uri"));
        for query in ["state=x", "a=1&client_id=x&b", "a=1&a=2", "code_challenge", "%73tate="] {
            let url = format!("https://a.example/authorize?{query}");
            let builder = Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
            let error = builder.authorize_url(url).build().unwrap_err().to_string();
            assert!(error.contains("authorize_url has `"), "{error}");
        }
        // A scope is sent where one is set, and else the URL may have one.
        let scoped = "https://a.example/authorize?scope=read";
        let builder = || Hurdlr::builder("id", "secret".into()).environment("http://localhost:1");
        assert!(builder().authorize_url(scoped).build().is_ok());
        let v6 = builder().api_version(ApiVersion::V6).scope(Scope::Read);
        let error = v6.authorize_url(scoped).build().unwrap_err();
        assert!(error.to_string().contains("`scope`"), "{error}");
        assert!(build(|b| b.redirect_uri("https://a.example/?a&state=b")).contains("`state`"));
        assert!(builder().redirect_uri("https://a.example/b?tenant=1").build().is_ok());
        assert!(build(|b| b.environment("https://a.example?q")).contains("environment"));
        assert!(build(|b| b.scope(Scope::Read)).contains("scope is set, and API v4"));
        let v6 = |b: HurdlrBuilder| b.api_version(ApiVersion::V6).bearer_on_refresh(true);
        assert!(build(v6).contains("bearer_on_refresh"));
        let empty = Hurdlr::builder("", "secret".into()).build().unwrap_err();
        assert!(empty.to_string().contains("client_id"));
        let empty = Hurdlr::builder("id", "".into()).build().unwrap_err();
        assert!(empty.to_string().contains("client_secret"));
    }

    #[test]
    fn a_login_names_the_setting_it_lacks() {
        let builder = || Hurdlr::builder("id", "s".into()).environment("http://localhost:1");
        let lacking = builder().build().unwrap().begin_login().unwrap_err();
        assert!(lacking.to_string().contains("authorize_url"));
        let hurdlr = builder().authorize_url("https://a.example").build().unwrap();
        assert!(hurdlr.begin_login().unwrap_err().to_string().contains("redirect_uri"));
    }

    #[test]
    fn client_is_cheaply_cloned_and_crosses_threads() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Hurdlr>();
        assert_eq!(size_of::<Hurdlr>(), size_of::<usize>());
    }
}

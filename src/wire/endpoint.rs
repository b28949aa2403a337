//! Where requests go: API versions, environments, and which URLs may see a secret.

use std::fmt;
use std::str::FromStr;

use oauth2::AuthType;
use url::{Host, Url};

use crate::error::Error;

/// A version of the provider's API, with all in which its token endpoint differs.
///
/// Parses from `"v4"`, `"v5"` and `"v6"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ApiVersion {
    /// `…/rest/v4/auth/token`.
    #[default]
    V4,
    /// `…/rest/v5/auth/token`: the same contract under another path.
    V5,
    /// `…/v6/auth/token`, at the provider's new name, Tight: HTTP Basic, tokens of one hour,
    /// scopes, tokens of the partner itself, and revocation.
    V6,
}

/// The access that a token gives, where the API version has scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// `read`.
    Read,
    /// `write`.
    Write,
}

impl Scope {
    /// The scope in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Read, Self::Write]
            .into_iter()
            .find(|scope| scope.as_str() == name)
            .ok_or_else(|| Error::config(format!("unknown scope {name:?}: use read or write")))
    }
}

/// One row of the provider's contract, so that a version is one more value.
pub(crate) struct Contract {
    pub(crate) name: &'static str,
    /// The hosted sandbox.
    pub(crate) sandbox: &'static str,
    /// The token endpoint, relative to the base URL.
    pub(crate) token_path: &'static str,
    /// The revocation endpoint (RFC 7009), likewise.
    pub(crate) revocation_path: Option<&'static str>,
    pub(crate) client_authentication: ClientAuthentication,
    /// Whether the reference lists `Authorization: Bearer` on the token request.
    pub(crate) bearer_on_refresh: bool,
    /// Whether client credentials are for a user; else a token without one is the partner's own.
    pub(crate) user_id_required: bool,
    /// Whether a request may name a scope.
    pub(crate) has_scopes: bool,
}

/// How the client proves itself at the token endpoint (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuthentication {
    /// `client_id` and `client_secret` as fields of the form.
    RequestBody,
    /// Both in the `Authorization` header, and nothing of the client in the form.
    Basic,
}

impl ApiVersion {
    const ALL: [Self; 3] = [Self::V4, Self::V5, Self::V6];

    /// The token endpoint of this version at `environment`, for
    /// [`BasicClient`](crate::basic::BasicClient).
    ///
    /// ```
    /// use hurdlr_oauth2::{ApiVersion, Environment};
    ///
    /// let url = ApiVersion::V4.token_url(&Environment::Sandbox)?;
    /// assert_eq!(url.as_str(), "https://sandbox.hurdlr.com/rest/v4/auth/token");
    /// # Ok::<(), hurdlr_oauth2::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for an environment that cannot be used.
    pub fn token_url(self, environment: &Environment) -> Result<Url, Error> {
        self.token_url_at(&environment.base(self, "environment")?)
    }

    /// The revocation endpoint (RFC 7009) of this version at `environment`; none where the version
    /// has none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for an environment that cannot be used.
    pub fn revocation_url(self, environment: &Environment) -> Result<Option<Url>, Error> {
        self.revocation_url_at(&environment.base(self, "environment")?)
    }

    /// The client authentication in the terms of `oauth2`.
    pub(crate) fn auth_type(self) -> AuthType {
        match self.contract().client_authentication {
            ClientAuthentication::RequestBody => AuthType::RequestBody,
            ClientAuthentication::Basic => AuthType::BasicAuth,
        }
    }

    /// The token endpoint below a base URL.
    pub(crate) fn token_url_at(self, base: &Url) -> Result<Url, Error> {
        base.join(self.contract().token_path)
            .map_err(|source| Error::config("the token URL cannot be built").caused_by(source))
    }

    /// The revocation endpoint below a base URL.
    pub(crate) fn revocation_url_at(self, base: &Url) -> Result<Option<Url>, Error> {
        self.contract()
            .revocation_path
            .map(|path| base.join(path))
            .transpose()
            .map_err(|source| Error::config("the revocation URL cannot be built").caused_by(source))
    }

    pub(crate) const fn contract(self) -> Contract {
        match self {
            Self::V4 => Contract {
                name: "v4",
                sandbox: "https://sandbox.hurdlr.com",
                token_path: "rest/v4/auth/token",
                revocation_path: None,
                client_authentication: ClientAuthentication::RequestBody,
                bearer_on_refresh: true,
                user_id_required: true,
                has_scopes: false,
            },
            Self::V5 => {
                Contract { name: "v5", token_path: "rest/v5/auth/token", ..Self::V4.contract() }
            }
            Self::V6 => Contract {
                name: "v6",
                sandbox: "https://sandbox.tight.com",
                token_path: "v6/auth/token",
                revocation_path: Some("v6/auth/revoke"),
                client_authentication: ClientAuthentication::Basic,
                bearer_on_refresh: false,
                user_id_required: false,
                has_scopes: true,
            },
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.contract().name)
    }
}

impl FromStr for ApiVersion {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|version| version.contract().name == name).ok_or_else(|| {
            let known = Self::ALL.map(|version| version.contract().name).join(", ");
            Error::config(format!("unknown API version {name:?}: use one of {known}"))
        })
    }
}

/// The installation of the provider: its hosted sandbox, or a base URL.
///
/// `Debug` shows a URL without user info, query and fragment.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Environment {
    /// The provider's hosted sandbox, of the API version in use.
    #[default]
    Sandbox,
    /// Any other, production among them, by the URL that stands before `/rest/v4/…` or `/v6/…`,
    /// such as `https://api.example.com`. It must be `https`, or `http` on a loopback host, and
    /// have no user info, query or fragment.
    BaseUrl(String),
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox => f.write_str("Sandbox"),
            Self::BaseUrl(url) => f.debug_tuple("BaseUrl").field(&RedactedUrl(url)).finish(),
        }
    }
}

/// A URL for `Debug`, without the parts that can hold a password.
pub(crate) struct RedactedUrl<'a>(pub(crate) &'a str);

impl fmt::Debug for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Url::parse(self.0) {
            Ok(url) if url.has_host() => {
                write!(f, "\"{}{}\"", url.origin().ascii_serialization(), url.path())
            }
            _ => f.write_str("[not a URL]"),
        }
    }
}

impl From<Url> for Environment {
    fn from(url: Url) -> Self {
        Self::BaseUrl(url.into())
    }
}

impl From<String> for Environment {
    fn from(url: String) -> Self {
        Self::BaseUrl(url)
    }
}

impl From<&str> for Environment {
    fn from(url: &str) -> Self {
        Self::BaseUrl(url.into())
    }
}

impl Environment {
    /// The base URL with a path that ends in `/`; `setting` names it in errors.
    pub(crate) fn base(&self, version: ApiVersion, setting: &str) -> Result<Url, Error> {
        let text = match self {
            Self::Sandbox => version.contract().sandbox,
            Self::BaseUrl(text) => text,
        };
        let mut url = secret_bearing_url(setting, text)?;
        if url.query().is_some() {
            return Err(Error::config(format!("{setting} must not have a query")));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        // Such as the token URL, which the reference has: each request would be answered 404.
        let token_paths = ApiVersion::ALL.map(|version| version.contract().token_path);
        let api_paths = token_paths.map(|path| path.trim_end_matches("/auth/token"));
        for api_path in token_paths.into_iter().chain(api_paths) {
            let Some(before) = url.path().strip_suffix(&format!("/{api_path}/")) else { continue };
            // A gateway may serve an earlier version below `/v6`.
            let added = version.contract().token_path;
            if api_path.contains('/') || added.starts_with(api_path) {
                let right = format!("{}{before}", url.origin().ascii_serialization());
                return Err(Error::config(format!(
                    "{setting} ends with `/{api_path}`: make it `{right}`, API {version} adds \
                     `/{added}`"
                )));
            }
        }
        Ok(url)
    }
}

/// Refuses control characters and white space around a setting, such as the line's end of a file
/// that it was read from. The value is never quoted: it may be a secret.
pub(crate) fn check_text(setting: &str, text: &str) -> Result<(), Error> {
    let problem = if text.chars().any(char::is_control) {
        "has a control character, such as a line's end: leave it out"
    } else if text.trim() != text {
        "has white space around it: leave it out"
    } else {
        return Ok(());
    };
    Err(Error::config(format!("{setting} {problem}")))
}

/// Reads a URL that secrets are sent to or come back through: `https`, or `http` on a loopback
/// host, with neither user info nor fragment. The value is never quoted: it may hold a password.
///
/// White space around it, and control characters, are refused: the parser would leave them out, and
/// the text that is sent would be another than the setting.
pub(crate) fn secret_bearing_url(setting: &str, text: &str) -> Result<Url, Error> {
    check_text(setting, text)?;
    let url = Url::parse(text)
        .map_err(|source| Error::config(format!("{setting} is not a URL")).caused_by(source))?;
    let problem = if url.host().is_none() {
        "must name a host"
    } else if !is_protected(&url) {
        "must use https (plain http is for loopback hosts alone)"
    } else if !url.username().is_empty() || url.password().is_some() {
        "must not have user info"
    } else if url.fragment().is_some() {
        "must not have a fragment"
    } else {
        return Ok(url);
    };
    Err(Error::config(format!("{setting} {problem}")))
}

/// Where a secret may travel to: the scheme, host and port of a URL (RFC 6454 section 4).
///
/// A URL with user info has credentials of its own, and no origin here.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    scheme: &'a str,
    host: Host<&'a str>,
    port: u16,
}

impl<'a> Origin<'a> {
    pub(crate) fn of_url(url: &'a Url) -> Option<Self> {
        let has_user_info = !url.username().is_empty() || url.password().is_some();
        let port = url.port_or_known_default().filter(|_| !has_user_info)?;
        Some(Self { scheme: url.scheme(), host: url.host()?, port })
    }

    /// `None` for a mere path, too. A host that is written otherwise than in a URL's normal form,
    /// percent-encoded for example, is another one.
    #[cfg(feature = "tower")]
    pub(crate) fn of_uri(uri: &'a http::Uri) -> Option<Self> {
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?.as_str());
        if authority.contains('@') {
            return None;
        }
        let name = uri.host()?;
        let port = match authority.strip_prefix(name)?.strip_prefix(':') {
            None | Some("") if scheme.eq_ignore_ascii_case("https") => 443,
            None | Some("") => 80,
            Some(port) => port.parse().ok()?,
        };
        let host = match name.strip_prefix('[') {
            Some(address) => Host::Ipv6(address.strip_suffix(']')?.parse().ok()?),
            None => name.parse().map_or(Host::Domain(name), Host::Ipv4),
        };
        Some(Self { scheme, host, port })
    }
}

impl PartialEq for Origin<'_> {
    fn eq(&self, other: &Self) -> bool {
        let is_same_host = match (&self.host, &other.host) {
            (Host::Domain(ours), Host::Domain(theirs)) => ours.eq_ignore_ascii_case(theirs),
            (ours, theirs) => ours == theirs,
        };
        is_same_host && self.scheme.eq_ignore_ascii_case(other.scheme) && self.port == other.port
    }
}

/// Whether what is sent to `url` cannot be read on the way.
pub(crate) fn is_protected(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

/// Whether `url` names this machine (RFC 8252 section 7.3 and RFC 6761 section 6.3).
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both edges take the same calls for calls to an origin.
    #[cfg(any(feature = "middleware", feature = "tower"))]
    #[test]
    fn urls_and_uris_have_the_same_origin() {
        let is_one_of = |origin: Option<Origin<'_>>, origins: &[Url]| {
            let mut origins = origins.iter().map(Origin::of_url);
            origin.is_some() && origins.any(|ours| ours == origin)
        };
        let origins =
            ["https://api.example.com/rest/v4/auth/token", "http://[::1]:81/x", "http://127.0.0.1"]
                .map(|url| url.parse().unwrap());
        for (url, expected) in [
            ("https://api.example.com/rest/v4/me?x=1", true),
            ("https://api.example.com:443/", true),
            ("https://api.example.com:0443/", true),
            ("https://api.example.com:/", true),
            ("https://API.example.com/", true),
            ("HTTPS://api.example.com/", true),
            ("http://[::1]:81/", true),
            ("http://[0:0::1]:81/", true),
            ("http://127.0.0.1:80/", true),
            ("http://127.0.0.1:/", true),
            ("http://api.example.com/", false),
            ("http://api.example.com:443/", false),
            ("https://api.example.com:444/", false),
            ("https://api.example.com./", false),
            ("https://api.example.com.evil.example/", false),
            ("https://api.example.com@evil.example/", false),
            ("https://evil.example/api.example.com", false),
            ("https://user@api.example.com/", false),
            ("https://api.example.com@api.example.com/", false),
            ("https://api.example.com:443@api.example.com/", false),
            ("https://user:pw@api.example.com:443/", false),
            ("https://user:443@evil.example/", false),
            ("https://example.com/", false),
            ("http://[::1]/", false),
            ("http://[::2]:81/", false),
            ("http://127.0.0.1:443/", false),
            ("https://127.0.0.1/", false),
        ] {
            let parsed = url.parse::<Url>().unwrap();
            assert_eq!(is_one_of(Origin::of_url(&parsed), &origins), expected, "{url}");
            #[cfg(feature = "tower")]
            {
                let uri = url.parse::<http::Uri>().unwrap();
                assert_eq!(is_one_of(Origin::of_uri(&uri), &origins), expected, "{url} as a URI");
            }
        }
        #[cfg(feature = "tower")]
        for no_origin in ["/rest/v4/me", "https://api.example.com:99999/", "api.example.com:443"] {
            let Ok(uri) = no_origin.parse() else { continue };
            assert_eq!(Origin::of_uri(&uri).map(|origin| origin.port), None, "{no_origin}");
        }
    }

    #[test]
    fn each_version_has_its_documented_sandbox_urls() {
        for (version, token, revocation) in [
            (ApiVersion::V4, "https://sandbox.hurdlr.com/rest/v4/auth/token", None),
            (ApiVersion::V5, "https://sandbox.hurdlr.com/rest/v5/auth/token", None),
            (
                ApiVersion::V6,
                "https://sandbox.tight.com/v6/auth/token",
                Some("https://sandbox.tight.com/v6/auth/revoke"),
            ),
        ] {
            assert_eq!(version.token_url(&Environment::Sandbox).unwrap().as_str(), token);
            let url = version.revocation_url(&Environment::Sandbox).unwrap();
            assert_eq!(url.as_ref().map(Url::as_str), revocation);
        }
    }

    #[test]
    fn a_base_url_keeps_its_path() {
        for text in ["https://bank.example/hurdlr", "https://bank.example/hurdlr/"] {
            let base = Environment::from(text).base(ApiVersion::V4, "base_url").unwrap();
            assert_eq!(base.as_str(), "https://bank.example/hurdlr/");
        }
    }

    #[test]
    fn base_url_with_api_path_is_named() {
        for (text, version, named, right) in [
            ("https://a.example/rest/v4", ApiVersion::V4, "`/rest/v4`", "`https://a.example`"),
            (
                "https://a.example:81/x/rest/v4/auth/token",
                ApiVersion::V4,
                "`/rest/v4/auth/token`",
                "`https://a.example:81/x`",
            ),
            ("https://a.example/rest/v5/", ApiVersion::V5, "`/rest/v5`", "`/rest/v5/auth/token`"),
            ("https://a.example/rest/v4", ApiVersion::V6, "`/rest/v4`", "`/v6/auth/token`"),
            ("https://a.example/books/v6", ApiVersion::V6, "`/v6`", "`https://a.example/books`"),
            ("https://a.example/v6/auth/token", ApiVersion::V4, "`/v6/auth/token`", "API v4"),
        ] {
            let error = Environment::from(text).base(version, "base_url").unwrap_err().to_string();
            assert!(error.starts_with("base_url ends with"), "{error}");
            assert!(error.contains(named) && error.contains(right), "{error}");
        }
        assert!(Environment::from("https://a.example/v6").base(ApiVersion::V4, "base_url").is_ok());
        for text in ["https://a.example/rev6", "https://a.example/v6/hurdlr"] {
            assert!(Environment::from(text).base(ApiVersion::V6, "base_url").is_ok(), "{text}");
        }
    }

    #[test]
    fn leaky_base_url_is_refused_not_quoted() {
        for text in [
            "http://api.example.com",
            "http://127.0.0.1.example.com",
            "http://10.0.0.1",
            "ftp://localhost",
            "https://user:marker@api.example.com",
            "https://marker@api.example.com",
            "https://api.example.com?key=marker",
            "https://api.example.com#marker",
            "api.example.com",
            "/marker",
            "data:marker",
            "",
        ] {
            let error = Environment::from(text).base(ApiVersion::V4, "base_url").unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("base_url"), "{text}: {shown}");
            assert!(!shown.contains("marker"), "{text}: {shown}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_hosts() {
        for text in ["http://localhost:1", "http://127.9.9.9", "http://[::1]:8080/x", "https://a.b"]
        {
            assert!(Environment::from(text).base(ApiVersion::V5, "base_url").is_ok(), "{text}");
        }
    }

    #[test]
    fn versions_read_what_they_write() {
        for version in ApiVersion::ALL {
            assert_eq!(version.to_string().parse::<ApiVersion>().unwrap(), version);
        }
        let error = "v3".parse::<ApiVersion>().unwrap_err();
        assert_eq!(error.to_string(), r#"unknown API version "v3": use one of v4, v5, v6"#);
    }
}

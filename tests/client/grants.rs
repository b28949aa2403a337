//! Each grant sends exactly the documented fields, and no header beyond what they need.
//!
//! The expectations are written by hand, from the provider's reference and RFC 6749, and compared
//! with the bytes that left.

use hurdlr_oauth2::oauth2::{PkceCodeChallenge, PkceCodeVerifier};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::url::Url;
use hurdlr_oauth2::{ApiVersion, ErrorKind, Hurdlr, HurdlrBuilder, RetryPolicy, Scope, UserId};

use crate::support::{self, RawServer, Reply};

const TOKEN: &str = include_str!("../fixtures/v4_token.json");

/// What a version wants beside a grant's own fields.
#[derive(Clone, Copy)]
struct Documented {
    version: ApiVersion,
    path: &'static str,
    /// What the client adds to the form.
    client: &'static str,
    /// What it says in the header, where that is its own.
    basic: Option<&'static str>,
    /// What a refresh says in the header.
    bearer: Option<&'static str>,
}

const IN_THE_BODY: &str = "&client_id=app%26id%3D1&client_secret=s%2Be%2Fc%3Dr%25e+t%26%C3%BC";

/// Base64 of `app%26id%3D1:s%2Be%2Fc%3Dr%25e+t%26%C3%BC`.
const IN_THE_HEADER: &str = "Basic YXBwJTI2aWQlM0QxOnMlMkJlJTJGYyUzRHIlMjVlK3QlMjYlQzMlQkM=";

const VERSIONS: [Documented; 3] = [
    Documented {
        version: ApiVersion::V4,
        path: "/rest/v4/auth/token",
        client: IN_THE_BODY,
        basic: None,
        bearer: Some("Bearer acc/e+s=s"),
    },
    Documented {
        version: ApiVersion::V5,
        path: "/rest/v5/auth/token",
        client: IN_THE_BODY,
        basic: None,
        bearer: Some("Bearer acc/e+s=s"),
    },
    Documented {
        version: ApiVersion::V6,
        path: "/v6/auth/token",
        client: "",
        basic: Some(IN_THE_HEADER),
        bearer: None,
    },
];

/// Credentials of which every special character would break a form that is not encoded.
const CLIENT_ID: &str = "app&id=1";
const CLIENT_SECRET: &str = "s+e/c=r%e t&ü";
const CLIENT_SECRET_ENCODED: &str = "s%2Be%2Fc%3Dr%25e+t%26%C3%BC";

struct Provider {
    server: RawServer,
    hurdlr: Hurdlr,
}

impl Provider {
    async fn new(version: ApiVersion, set: impl FnOnce(HurdlrBuilder) -> HurdlrBuilder) -> Self {
        let json = "Content-Type: application/json\r\n";
        let server = RawServer::replying([Reply::answer(200, json, TOKEN)]).await;
        let builder = Hurdlr::builder(CLIENT_ID, CLIENT_SECRET.into())
            .environment(server.base_url().as_str())
            .api_version(version)
            .authorize_url("https://connect.example.com/authorize")
            .redirect_uri("https://app.example.com/back?from=a b&x=1")
            .retry(RetryPolicy::never());
        let hurdlr = set(builder).build().unwrap();
        Self { server, hurdlr }
    }

    /// The one request that was sent: its first line, its headers in order of the alphabet, and
    /// its body.
    fn sent(&self) -> (String, Vec<String>, String) {
        let requests = self.server.requests();
        let [request] = requests.as_slice() else {
            panic!("{} requests", requests.len());
        };
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let (line, headers) = head.split_once("\r\n").unwrap();
        let mut headers: Vec<_> = headers.split("\r\n").map(str::to_owned).collect();
        headers.sort_unstable();
        (line.to_owned(), headers, body.to_owned())
    }

    fn assert_sent(&self, path: &str, authorization: Option<&str>, body: &str) {
        let mut headers = vec![
            "accept: application/json".to_owned(),
            "accept-encoding: identity".to_owned(),
            format!("content-length: {}", body.len()),
            "content-type: application/x-www-form-urlencoded".to_owned(),
            format!("host: 127.0.0.1:{}", self.server.port()),
            format!("user-agent: hurdlr-oauth2/{}", env!("CARGO_PKG_VERSION")),
        ];
        headers.extend(authorization.map(|value| format!("authorization: {value}")));
        headers.sort_unstable();
        let line = format!("POST {path} HTTP/1.1");
        assert_eq!(self.sent(), (line, headers, body.to_owned()));
    }
}

#[tokio::test]
async fn client_credentials_sends_documented_fields_only() {
    for documented in VERSIONS {
        let provider = Provider::new(documented.version, |builder| builder).await;
        let user = UserId::new("ann+1@example.com/ü&userId=bob").unwrap();
        provider.hurdlr.client_credentials(&user).await.unwrap();
        provider.assert_sent(
            documented.path,
            documented.basic,
            &format!(
                "grant_type=client_credentials\
                 &userId=ann%2B1%40example.com%2F%C3%BC%26userId%3Dbob{}",
                documented.client
            ),
        );
    }
}

#[tokio::test]
async fn partner_token_is_asked_without_a_user() {
    for documented in VERSIONS {
        let provider = Provider::new(documented.version, |builder| builder).await;
        let granted = provider.hurdlr.partner_token().await;
        if documented.version == ApiVersion::V6 {
            granted.unwrap();
            let body = "grant_type=client_credentials";
            provider.assert_sent(documented.path, documented.basic, body);
        } else {
            assert_eq!(granted.unwrap_err().kind(), ErrorKind::Unsupported);
            assert!(provider.server.requests().is_empty());
        }
    }
}

const OLD_TOKEN: &str =
    r#"{"access_token":"acc/e+s=s","refresh_token":"re+f/r=e&s h","expires_in":60}"#;

fn refresh_body(documented: &Documented) -> String {
    format!("grant_type=refresh_token&refresh_token=re%2Bf%2Fr%3De%26s+h{}", documented.client)
}

#[tokio::test]
async fn refresh_sends_documented_fields_and_listed_bearer() {
    for documented in VERSIONS {
        let provider = Provider::new(documented.version, |builder| builder).await;
        let token = provider.hurdlr.import(OLD_TOKEN).unwrap();
        provider.hurdlr.refresh(&token).await.unwrap();
        let authorization = documented.basic.or(documented.bearer);
        provider.assert_sent(documented.path, authorization, &refresh_body(&documented));
    }
}

#[tokio::test]
async fn refresh_sends_no_bearer_if_off() {
    for documented in VERSIONS {
        let provider =
            Provider::new(documented.version, |builder| builder.bearer_on_refresh(false)).await;
        let token = provider.hurdlr.import(OLD_TOKEN).unwrap();
        provider.hurdlr.refresh(&token).await.unwrap();
        provider.assert_sent(documented.path, documented.basic, &refresh_body(&documented));
    }
}

#[tokio::test]
async fn code_exchange_sends_documented_fields_only() {
    for documented in VERSIONS {
        let provider = Provider::new(documented.version, |builder| builder).await;
        let (url, body) = log_in(&provider).await;
        let verifier = parameter_of(&body, "code_verifier");
        provider.assert_sent(
            documented.path,
            documented.basic,
            &format!(
                "grant_type=authorization_code&code=c%2Bo%2Fd%3De%26+x\
                 &redirect_uri=https%3A%2F%2Fapp.example.com%2Fback%3Ffrom%3Da+b%26x%3D1\
                 &code_verifier={verifier}{}",
                documented.client
            ),
        );
        assert_eq!(
            query_of(&url, "redirect_uri"),
            "https://app.example.com/back?from=a b&x=1",
            "the same in both halves, character by character"
        );
        let challenge =
            PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(verifier));
        assert_eq!(query_of(&url, "code_challenge"), challenge.as_str());
    }
}

/// Logs in, and returns the URL that the person went to and the token request's body.
async fn log_in(provider: &Provider) -> (Url, String) {
    let (url, pending) = provider.hurdlr.begin_login().unwrap();
    let state = pending.state().expose_secret();
    let callback = format!("code=c%2Bo%2Fd%3De%26+x&state={state}");
    provider.hurdlr.complete_login(pending, callback.as_str()).await.unwrap();
    let (_, _, body) = provider.sent();
    (url, body)
}

#[tokio::test]
async fn scope_goes_with_all_but_a_refresh() {
    let path = "/v6/auth/token";
    for (scope, name) in [(Scope::Read, "read"), (Scope::Write, "write")] {
        let provider = || Provider::new(ApiVersion::V6, |builder| builder.scope(scope));
        let client = provider().await;
        client.hurdlr.client_credentials(&support::ann()).await.unwrap();
        let body = format!("grant_type=client_credentials&userId=ann&scope={name}");
        client.assert_sent(path, Some(IN_THE_HEADER), &body);

        let refreshing = provider().await;
        let token = refreshing.hurdlr.import(OLD_TOKEN).unwrap();
        refreshing.hurdlr.refresh(&token).await.unwrap();
        refreshing.assert_sent(path, Some(IN_THE_HEADER), &refresh_body(&VERSIONS[2]));

        let (url, body) = log_in(&provider().await).await;
        assert_eq!((&*query_of(&url, "scope"), &*parameter_of(&body, "scope")), (name, name));
    }
}

#[tokio::test]
async fn revocation_sends_one_token_with_hint() {
    let only_access = r#"{"access_token":"acc/e+s=s","expires_in":60}"#;
    for (token, body) in [
        (OLD_TOKEN, "token=re%2Bf%2Fr%3De%26s+h&token_type_hint=refresh_token"),
        (only_access, "token=acc%2Fe%2Bs%3Ds&token_type_hint=access_token"),
    ] {
        for documented in VERSIONS {
            let provider = Provider::new(documented.version, |builder| builder).await;
            let token = provider.hurdlr.import(token).unwrap();
            let revoked = provider.hurdlr.revoke(&token).await;
            if documented.version == ApiVersion::V6 {
                revoked.unwrap();
                provider.assert_sent("/v6/auth/revoke", documented.basic, body);
            } else {
                assert_eq!(revoked.unwrap_err().kind(), ErrorKind::Unsupported);
                assert!(provider.server.requests().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn authorize_url_is_rfc_6749_with_pkce() {
    let provider = Provider::new(ApiVersion::V4, |builder| builder).await;
    let (url, pending) = provider.hurdlr.begin_login().unwrap();
    let mut names: Vec<_> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "client_id",
            "code_challenge",
            "code_challenge_method",
            "redirect_uri",
            "response_type",
            "state"
        ]
    );
    assert_eq!(query_of(&url, "client_id"), CLIENT_ID);
    assert_eq!(query_of(&url, "code_challenge_method"), "S256");
    assert_eq!(query_of(&url, "response_type"), "code");
    assert_eq!(query_of(&url, "state"), pending.state().expose_secret());
    assert!(!url.as_str().contains(CLIENT_SECRET_ENCODED));
    assert!(provider.server.requests().is_empty());
}

#[tokio::test]
async fn base_urls_path_precedes_the_documented_one() {
    let server = RawServer::replying([Reply::answer(200, "", TOKEN)]).await;
    let hurdlr = support::impatient(&format!("{}/bank/hurdlr", server.base_url())).build().unwrap();
    hurdlr.client_credentials(&support::ann()).await.unwrap();
    assert!(server.requests()[0].starts_with("POST /bank/hurdlr/rest/v4/auth/token HTTP/1.1\r\n"));
}

fn parameter_of(form: &str, name: &str) -> String {
    form.split('&')
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {name}"))
        .to_owned()
}

fn query_of(url: &Url, name: &str) -> String {
    url.query_pairs()
        .find(|(key, _)| key == name)
        .unwrap_or_else(|| panic!("no {name}"))
        .1
        .into_owned()
}

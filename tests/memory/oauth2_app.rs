//! The same grants by plain `oauth2` and its `reqwest`, as an ordinary app writes them.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use hurdlr_oauth2::reqwest as reqwest_0_13;
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AccessToken, AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret,
    CsrfToken, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, PkceCodeChallenge,
    RedirectUrl, RefreshToken, Scope, StandardRevocableToken, TokenResponse, TokenUrl, reqwest,
};
use serde::{Deserialize, Serialize};
use watched_heap::unwatched;

use crate::measure::{Case, Measure, NEW, OLD, Secrets};
use crate::ours::REDIRECT_URI;
use crate::provider::{Provider, Site, USER};

pub(crate) const MEASURES: &[(&str, Measure)] =
    &[("refresh", refresh), ("client_credentials", client_credentials), ("login", login)];

/// The provider's answer. `oauth2`'s own type cannot read it: there is no `token_type`.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    access_token: AccessToken,
    refresh_token: Option<RefreshToken>,
    expires_in: Option<u64>,
}

impl TokenResponse for Answer {
    type TokenType = BasicTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    fn token_type(&self) -> &BasicTokenType {
        &BasicTokenType::Bearer
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expires_in.map(Duration::from_secs)
    }

    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }

    fn scopes(&self) -> Option<&Vec<Scope>> {
        None
    }
}

type Client = oauth2::Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// `oauth2`'s own `reqwest`, and for TLS, which that one has none of in this tree, the next version
/// by as few lines as `oauth2` has for its own.
enum Http {
    Plain(reqwest::Client),
    Tls(reqwest_0_13::Client),
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<HttpResponse>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let client = match self {
                Self::Plain(client) => {
                    return client.call(request).await.map_err(io::Error::other);
                }
                Self::Tls(client) => client,
            };
            let request = request.try_into().map_err(io::Error::other)?;
            let response = client.execute(request).await.map_err(io::Error::other)?;
            let mut answer = HttpResponse::new(Vec::new());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = response.headers().clone();
            *answer.body_mut() = response.bytes().await.map_err(io::Error::other)?.to_vec();
            Ok(answer)
        })
    }
}

struct App {
    client: Client,
    http: Http,
}

impl App {
    fn new(site: &Site) -> Self {
        let token_url = site.base_url.join("/rest/v4/auth/token").unwrap();
        let client = oauth2::Client::new(ClientId::new(site.client_id.clone()))
            .set_client_secret(ClientSecret::new(site.client_secret.clone()))
            .set_auth_type(AuthType::RequestBody)
            .set_auth_uri(AuthUrl::from_url(site.authorize_url.clone()))
            .set_token_uri(TokenUrl::from_url(token_url))
            .set_redirect_uri(RedirectUrl::new(REDIRECT_URI.to_owned()).unwrap());
        let http = match &site.certificate {
            // A redirect would carry the secrets on to another host.
            None => Http::Plain(
                reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .unwrap(),
            ),
            Some(certificate) => Http::Tls(
                reqwest_0_13::Client::builder()
                    .redirect(reqwest_0_13::redirect::Policy::none())
                    .tls_backend_rustls()
                    .tls_certs_only([reqwest_0_13::Certificate::from_der(certificate).unwrap()])
                    .build()
                    .unwrap(),
            ),
        };
        Self { client, http }
    }

    async fn log_in(&self, provider: &mut Provider, secrets: Option<&Secrets>) -> Answer {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let request = self.client.authorize_url(CsrfToken::new_random);
        let (url, _) = request.set_pkce_challenge(challenge).url();
        let callback = unwatched(|| {
            let callback = provider.consent(&url);
            if let Some(secrets) = secrets {
                secrets.tell("PKCE verifier", verifier.secret());
                secrets.tell_code(&callback);
            }
            callback
        });
        let (_, code) = callback.query_pairs().find(|(name, _)| name == "code").unwrap();
        self.client
            .exchange_code(AuthorizationCode::new(code.into_owned()))
            .set_pkce_verifier(verifier)
            .request_async(&self.http)
            .await
            .unwrap()
    }
}

fn tell(secrets: &Secrets, age: [&'static str; 2], token: &Answer) {
    secrets.tell(age[0], token.access_token.secret());
    secrets.tell(age[1], token.refresh_token.as_ref().unwrap().secret());
}

fn refresh(case: &mut Case) {
    let old = case.prepared(async |provider| App::new(&provider.site).log_in(provider, None).await);
    tell(&case.secrets, OLD, &old);
    case.watched(async |provider, secrets| {
        let app = App::new(&provider.site);
        let refresh_token = old.refresh_token.as_ref().unwrap();
        let request = app.client.exchange_refresh_token(refresh_token);
        let token = request.request_async(&app.http).await.unwrap();
        tell(secrets, NEW, &token);
        drop(old);
    });
}

fn client_credentials(case: &mut Case) {
    case.watched(async |provider, secrets| {
        let app = App::new(&provider.site);
        let request = app.client.exchange_client_credentials().add_extra_param("userId", USER);
        tell(secrets, NEW, &request.request_async(&app.http).await.unwrap());
    });
}

fn login(case: &mut Case) {
    case.watched(async |provider, secrets| {
        let app = App::new(&provider.site);
        let token = app.log_in(provider, Some(secrets)).await;
        tell(secrets, NEW, &token);
    });
}

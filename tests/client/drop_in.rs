//! An app that is standardised on `oauth2` changes one import, sets the auth type, and works.

use std::time::Duration;

use hurdlr_oauth2::basic::{
    BasicClient, BasicErrorResponseType, BasicRequestTokenError, BasicTokenResponse,
};
use hurdlr_oauth2::oauth2::{
    AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken,
    EndpointNotSet, EndpointSet, PkceCodeChallenge, RedirectUrl, RefreshToken, RequestTokenError,
    TokenResponse, TokenUrl,
};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, Fault, InMemoryError};
use hurdlr_oauth2::{ApiVersion, ClientCredentialsUser, HttpClient, HttpError, UserId};

use crate::support::{self, RawServer, Reply};

/// An app's own field, with the states of `oauth2`'s client spelt out.
struct App {
    oauth: BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>,
}

impl App {
    fn of(fake: &FakeHurdlr, version: ApiVersion) -> Self {
        let token_url = version.token_url(&fake.base_url().into()).unwrap();
        // What is `oauth2`'s default is right for v6.
        let auth_type = match version {
            ApiVersion::V6 => AuthType::BasicAuth,
            _ => AuthType::RequestBody,
        };
        Self::with(fake, token_url.into(), auth_type)
    }

    fn with(fake: &FakeHurdlr, token_url: String, auth_type: AuthType) -> Self {
        let secret = ClientSecret::new(fake.client_secret().expose_secret().to_owned());
        let oauth = BasicClient::new(ClientId::new(fake.client_id().to_owned()))
            .set_client_secret(secret)
            .set_auth_uri(AuthUrl::from_url(fake.authorize_url()))
            .set_token_uri(TokenUrl::new(token_url).unwrap())
            .set_redirect_uri(RedirectUrl::new(support::REDIRECT_URI.into()).unwrap())
            .set_auth_type(auth_type);
        Self { oauth }
    }

    async fn log_in<C>(&self, fake: &FakeHurdlr, client: &C) -> BasicTokenResponse
    where
        C: for<'c> AsyncHttpClient<'c, Error: 'static>,
    {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) =
            self.oauth.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge).url();
        let callback = fake.consent(&url, "ann").await.unwrap();
        let parameters: std::collections::HashMap<_, _> = callback.query_pairs().collect();
        assert_eq!(&parameters["state"], state.secret());
        self.oauth
            .exchange_code(AuthorizationCode::new(parameters["code"].to_string()))
            .set_pkce_verifier(verifier)
            .request_async(client)
            .await
            .unwrap()
    }
}

/// The life of a user at an app: login, refresh, and a grant without a person.
async fn all_grants<C>(fake: &FakeHurdlr, client: &C, version: ApiVersion)
where
    C: for<'c> AsyncHttpClient<'c, Error: 'static>,
{
    let app = App::of(fake, version);
    let answer = app.log_in(fake, client).await;
    assert!(fake.is_alive(answer.access_token().secret()));
    let v6 = version == ApiVersion::V6;
    let life = if v6 { 3_600 } else { 7_776_000 };
    assert_eq!(answer.expires_in(), Some(Duration::from_secs(life)));
    assert_eq!(answer.created_at().is_some(), !v6);

    let refresh_token = answer.refresh_token().unwrap();
    let newer =
        app.oauth.exchange_refresh_token(refresh_token).request_async(client).await.unwrap();
    assert!(fake.is_alive(newer.access_token().secret()));
    assert_ne!(newer.access_token().secret(), answer.access_token().secret());

    let user = UserId::new("bob").unwrap();
    let granted =
        app.oauth.exchange_client_credentials().user_id(&user).request_async(client).await.unwrap();
    assert!(fake.is_alive(granted.access_token().secret()));

    let count = fake.count();
    assert_eq!((count.user("ann"), count.user("bob")), (2, 1));
    fake.clear_requests();
}

#[tokio::test]
async fn the_app_works_over_a_socket() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = HttpClient::new(&fake.base_url()).unwrap();
    for version in [ApiVersion::V4, ApiVersion::V5, ApiVersion::V6] {
        all_grants(&fake, &client, version).await;
    }
}

#[tokio::test]
async fn the_app_works_in_memory() {
    let fake = FakeHurdlr::in_memory();
    for version in [ApiVersion::V4, ApiVersion::V5, ApiVersion::V6] {
        all_grants(&fake, &fake.http_client(), version).await;
    }
}

#[tokio::test]
async fn client_credentials_send_documented_fields_only() {
    let fake = FakeHurdlr::in_memory();
    let user = UserId::new("bob & co").unwrap();
    App::of(&fake, ApiVersion::V4)
        .oauth
        .exchange_client_credentials()
        .user_id(&user)
        .request_async(&fake.http_client())
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(fake.requests()[0].body()),
        "grant_type=client_credentials&client_id=fake-client&client_secret=fake-secret\
         &userId=bob+%26+co"
    );
}

#[tokio::test]
async fn refusal_is_read_in_both_languages() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = HttpClient::new(&fake.base_url()).unwrap();
    let app = App::of(&fake, ApiVersion::V4);
    let dead = RefreshToken::new("dead".into());
    for (style, code) in
        [(ErrorStyle::Rfc6749, "invalid_grant"), (ErrorStyle::Envelope, "INVALID_TOKEN")]
    {
        fake.set_error_style(style);
        let refused: BasicRequestTokenError<HttpError> =
            app.oauth.exchange_refresh_token(&dead).request_async(&client).await.unwrap_err();
        let RequestTokenError::ServerResponse(refusal) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refusal.error(), &BasicErrorResponseType::InvalidGrant);
        assert_eq!(refusal.code(), code);
        assert!(refusal.needs_login());
        assert!(refusal.error_description().unwrap().contains("refresh token"));
    }
}

#[tokio::test]
async fn refusal_with_status_200_is_a_refusal() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = HttpClient::new(&fake.base_url()).unwrap();
    let app = App::of(&fake, ApiVersion::V4);
    fake.fault_next(Fault::answer(200, r#"{"error":"invalid_grant"}"#));
    let dead = RefreshToken::new("dead".into());
    let refused = app.oauth.exchange_refresh_token(&dead).request_async(&client).await;
    let Err(RequestTokenError::ServerResponse(refusal)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusal.error(), &BasicErrorResponseType::InvalidGrant);
}

#[tokio::test]
async fn created_status_with_any_type_is_success() {
    let token = include_str!("../fixtures/v4_token.json");
    for status in [200, 201, 202] {
        for headers in ["", "Content-Type: text/html\r\n"] {
            let server = RawServer::replying([Reply::answer(status, headers, token)]).await;
            let client = HttpClient::new(&server.base_url().parse().unwrap()).unwrap();
            let app = App::with(&FakeHurdlr::in_memory(), server.base_url(), AuthType::RequestBody);
            let answer = app
                .oauth
                .exchange_refresh_token(&RefreshToken::new("r".into()))
                .request_async(&client)
                .await
                .unwrap();
            assert!(answer.access_token().secret().starts_with("00f6b2b6"));
        }
    }
}

#[tokio::test]
async fn failure_of_transport_keeps_its_type() {
    let fake = FakeHurdlr::in_memory();
    let app = App::of(&fake, ApiVersion::V4);
    fake.fault_next(Fault::DropBefore);
    let lost: BasicRequestTokenError<InMemoryError> = app
        .oauth
        .exchange_client_credentials()
        .user_id(&support::ann())
        .request_async(&fake.http_client())
        .await
        .unwrap_err();
    assert!(matches!(lost, RequestTokenError::Request(_)), "{lost:?}");

    let (_held, port) = support::closed_port();
    let url = format!("http://127.0.0.1:{port}/");
    let client = HttpClient::new(&url.parse().unwrap()).unwrap();
    let not_sent = App::with(&fake, url, AuthType::RequestBody)
        .oauth
        .exchange_client_credentials()
        .user_id(&support::ann())
        .request_async(&client)
        .await
        .unwrap_err();
    assert!(matches!(not_sent, RequestTokenError::Request(HttpError::NotSent(_))), "{not_sent:?}");
}

#[tokio::test]
async fn apps_answer_moves_into_client_layer() {
    let fake = FakeHurdlr::start().await.unwrap();
    let client = HttpClient::new(&fake.base_url()).unwrap();
    let answer = App::of(&fake, ApiVersion::V4).log_in(&fake, &client).await;
    let stored = serde_json::to_string(&answer).unwrap();

    let hurdlr = support::of(&fake).build().unwrap();
    let token = hurdlr.import_response(answer);
    assert!(!hurdlr.refresh(&token).await.unwrap().is_expired());
    let token = hurdlr.import(stored).unwrap();
    assert!(token.refresh_token().is_some());
}

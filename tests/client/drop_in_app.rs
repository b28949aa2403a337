//! An app on plain `oauth2`, and the same app with this crate in the place of `oauth2::basic`.

#[allow(dead_code, reason = "an app logs its failures")]
mod after;
#[allow(dead_code, reason = "it gets no further than its first login")]
mod before;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use hurdlr_oauth2::reqwest::redirect::Policy;
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, Fault, Rotation};
use hurdlr_oauth2::{ApiVersion, ClientCredentialsUser, HttpClient, UserId, basic};
use oauth2::basic::BasicTokenType;
use oauth2::url::Url;
use oauth2::{
    AccessToken, ClientId, ClientSecret, EmptyExtraTokenFields, RefreshToken, TokenResponse,
};

/// The settings of both apps, which are two types by one name.
macro_rules! settings {
    ($app:ident, $fake:expr, $file:expr) => {
        $app::Settings {
            client_id: $fake.client_id().to_owned(),
            client_secret: $fake.client_secret().expose_secret().to_owned(),
            authorize_url: $fake.authorize_url(),
            token_url: token_url($fake),
            redirect_url: "https://app.example.com/callback".to_owned(),
            file: $file.to_owned(),
        }
    };
}

fn token_url(fake: &FakeHurdlr) -> Url {
    ApiVersion::V4.token_url(&fake.base_url().into()).unwrap()
}

/// A provider, and a file for the tokens.
async fn provider() -> (FakeHurdlr, tempfile::TempDir) {
    (FakeHurdlr::start().await.unwrap(), tempfile::tempdir().unwrap())
}

fn file(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("tokens.json")
}

/// The code that a person comes back with.
async fn code(fake: &FakeHurdlr, url: &Url, state: &oauth2::CsrfToken) -> String {
    let callback = fake.consent(url, "ann").await.unwrap();
    let parameters: HashMap<_, _> = callback.query_pairs().into_owned().collect();
    assert_eq!(&parameters["state"], state.secret());
    parameters["code"].clone()
}

async fn log_in(fake: &FakeHurdlr, file: &Path) -> after::App {
    let app = after::App::new(settings!(after, fake, file)).unwrap();
    let (url, state, verifier) = app.begin_login();
    app.complete_login("ann", code(fake, &url, &state).await, verifier).await.unwrap();
    app
}

/// The lines that are in one of the texts only: those of both less a longest common subsequence.
fn changed_lines(before: &str, after: &str) -> usize {
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let mut common = vec![vec![0; after.len() + 1]; before.len() + 1];
    for (i, ours) in before.iter().enumerate() {
        for (j, theirs) in after.iter().enumerate() {
            common[i + 1][j + 1] = if ours == theirs {
                common[i][j] + 1
            } else {
                common[i][j + 1].max(common[i + 1][j])
            };
        }
    }
    before.len() + after.len() - 2 * common[before.len()][after.len()]
}

/// An import and the auth type: what `diff` shows is at most three lines.
#[test]
fn drop_in_changes_three_lines() {
    let lines =
        changed_lines(include_str!("drop_in_app/before.rs"), include_str!("drop_in_app/after.rs"));
    println!("figure: dropin.lines_changed = {lines} lines");
    assert!((1..=3).contains(&lines), "{lines} lines");
}

/// The credentials are not where the provider looks for them, and where they are, the answer lacks
/// a field.
#[tokio::test]
async fn plain_oauth2_fails_at_first_answer() {
    let (fake, folder) = provider().await;
    let app = before::App::new(settings!(before, &fake, &file(&folder))).unwrap();
    let (url, state, verifier) = app.begin_login();
    let code = code(&fake, &url, &state).await;
    let failure = app.complete_login("ann", code, verifier).await.unwrap_err();
    let before::Failure::Other(text) = failure else { panic!("{failure:?}") };
    assert!(text.starts_with("Failed to parse server response: "), "{text}");

    let client = oauth2::basic::BasicClient::new(ClientId::new(fake.client_id().to_owned()))
        .set_client_secret(ClientSecret::new(fake.client_secret().expose_secret().to_owned()))
        .set_token_uri(oauth2::TokenUrl::from_url(token_url(&fake)))
        .set_auth_type(oauth2::AuthType::RequestBody);
    let failure = client
        .exchange_client_credentials()
        .add_extra_param("userId", "ann")
        .request_async(&oauth2::reqwest::Client::new())
        .await
        .unwrap_err();
    let before::Failure::Other(text) = failure.into() else { unreachable!() };
    assert!(text.contains("missing field `token_type`"), "{text}");
    println!("plain oauth2: {text}");
}

/// Login, refresh and restart, with a provider that sends a new refresh token and one that sends
/// none.
#[tokio::test]
async fn app_keeps_its_tokens() {
    for sends_refresh_token in [true, false] {
        let (fake, folder) = provider().await;
        let file = file(&folder);
        let app = log_in(&fake, &file).await;
        if !sends_refresh_token {
            fake.set_rotation(Rotation::None);
            fake.reshape(|token| drop(token.remove("refresh_token")));
        }
        for _ in 0..2 {
            let token = app.refresh("ann").await.unwrap();
            assert!(fake.is_alive(token.access_token().secret()));
            let again = after::App::new(settings!(after, &fake, &file)).unwrap();
            let kept = again.users().unwrap().remove("ann").unwrap();
            assert_eq!(kept.logins, 1);
            assert_eq!(kept.token.access_token().secret(), token.access_token().secret());
            assert_eq!(kept.token.created_at(), token.created_at());
            assert!(kept.token.refresh_token().is_some());
        }
    }
}

/// A file that the app wrote before it changed, and one that it wrote after.
#[tokio::test]
async fn stored_tokens_are_read_both_ways() {
    let (fake, folder) = provider().await;
    let file = file(&folder);
    let issued = log_in(&fake, &file).await.users().unwrap().remove("ann").unwrap().token;

    let mut token = oauth2::basic::BasicTokenResponse::new(
        AccessToken::new(issued.access_token().secret().clone()),
        BasicTokenType::Bearer,
        EmptyExtraTokenFields {},
    );
    token.set_refresh_token(issued.refresh_token().cloned());
    token.set_expires_in(issued.expires_in().as_ref());
    token.set_scopes(issued.scopes().cloned());
    let users = HashMap::from([("ann", before::User { logins: 7, token })]);
    std::fs::write(&file, serde_json::to_vec(&users).unwrap()).unwrap();

    let app = after::App::new(settings!(after, &fake, &file)).unwrap();
    let token = app.refresh("ann").await.unwrap();
    assert!(fake.is_alive(token.access_token().secret()));

    // Back to the app as it was, should it want that.
    let app = before::App::new(settings!(before, &fake, &file)).unwrap();
    let kept = app.users().unwrap().remove("ann").unwrap();
    assert_eq!(kept.logins, 7);
    assert_eq!(kept.token.access_token().secret(), token.access_token().secret());
    let refresh_token = |token: Option<&RefreshToken>| token.unwrap().secret().clone();
    assert_eq!(refresh_token(kept.token.refresh_token()), refresh_token(token.refresh_token()));
    assert_eq!(kept.token.expires_in(), token.expires_in());
    assert_eq!(kept.token.scopes(), token.scopes());
}

/// The app's match on `InvalidGrant` and `InvalidClient` holds in both of the provider's languages.
#[tokio::test]
async fn app_matches_on_refusals() {
    for style in [ErrorStyle::Envelope, ErrorStyle::Rfc6749] {
        let (fake, folder) = provider().await;
        fake.set_error_style(style);
        let file = file(&folder);
        let app = log_in(&fake, &file).await;
        let mut wrong = settings!(after, &fake, &file);
        wrong.client_secret = "wrong".to_owned();
        let failure = after::App::new(wrong).unwrap().refresh("ann").await.unwrap_err();
        assert!(matches!(failure, after::Failure::WrongCredentials), "{style:?}: {failure:?}");

        fake.revoke_everything("ann");
        let failure = app.refresh("ann").await.unwrap_err();
        assert!(matches!(failure, after::Failure::LoginRequired), "{style:?}: {failure:?}");
    }
}

/// A configured client of either kind, with the blocking HTTP client of `oauth2`.
#[tokio::test]
async fn blocking_client_of_oauth2_fits() {
    let (fake, _folder) = provider().await;
    let (id, secret) = (fake.client_id().to_owned(), fake.client_secret());
    let hurdlr =
        hurdlr_oauth2::Hurdlr::builder(&*id, secret.clone()).environment(fake.base_url()).build();
    let configured = basic::client(
        ApiVersion::V4,
        fake.base_url(),
        ClientId::new(id),
        ClientSecret::new(secret.expose_secret().to_owned()),
    );
    let (configured, of_hurdlr) = (configured.unwrap(), hurdlr.unwrap().basic_client());
    let tokens = tokio::task::spawn_blocking(move || {
        let http = oauth2::reqwest::blocking::Client::new();
        [configured.exchange_client_credentials(), of_hurdlr.exchange_client_credentials()]
            .map(|request| request.add_extra_param("userId", "ann").request(&http).unwrap())
    });
    for token in tokens.await.unwrap() {
        assert!(fake.is_alive(token.access_token().secret()));
    }
}

/// The transport of this crate keeps its bounds, whatever an app sets of the client below.
#[tokio::test]
async fn http_client_keeps_its_bounds() {
    let (fake, _folder) = provider().await;
    let (id, secret) = (fake.client_id().to_owned(), fake.client_secret());
    let secret = ClientSecret::new(secret.expose_secret().to_owned());
    let client = basic::client(ApiVersion::V4, fake.base_url(), ClientId::new(id), secret).unwrap();
    let proxy = hurdlr_oauth2::reqwest::Proxy::all("http://192.0.2.1:9").unwrap();
    let http = HttpClient::builder(client.token_uri().url())
        .reqwest(|builder| builder.redirect(Policy::limited(9)).proxy(proxy).user_agent("app/7"))
        .build()
        .unwrap();
    let user = UserId::new("ann").unwrap();
    let request = || client.exchange_client_credentials().user_id(&user).request_async(&http);
    assert!(fake.is_alive(request().await.unwrap().access_token().secret()));
    assert_eq!(fake.requests()[0].headers()["user-agent"], "app/7");

    fake.clear_requests();
    fake.fault_next(Fault::redirect(307, token_url(&fake)));
    request().await.unwrap_err();
    assert_eq!(fake.requests().len(), 1);

    let no_time = HttpClient::builder(client.token_uri().url()).request_timeout(Duration::ZERO);
    let error = no_time.build().unwrap_err();
    assert!(error.to_string().contains("request_timeout"), "{error}");
}

//! For an app that is built on `oauth2` already: `BasicClient`, and the app's own HTTP client.
//!
//! One import changes, from
//!
//! ```text
//! use oauth2::basic::BasicClient;
//! ```
//!
//! to the one below, and `set_auth_type` is added, since the provider wants the client's
//! credentials in the body. All else is `oauth2` as it ever was, its reqwest client included.
//!
//! ```text
//! cargo run --example drop_in --features testing
//! ```

// Its output is what it is for.
#![allow(clippy::print_stdout)]

use std::error::Error;

use hurdlr_oauth2::basic::{BasicClient, BasicTokenResponse};
use hurdlr_oauth2::testing::FakeHurdlr;
use hurdlr_oauth2::{ClientCredentialsUser, HttpClient, Hurdlr, UserId};
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, PkceCodeChallenge,
    RedirectUrl, RefreshToken, TokenResponse, TokenUrl, reqwest,
};
use secrecy::ExposeSecret;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("The three grants by `oauth2`, with the provider that an app embeds in its tests.");

    // The provider, in this process. An app names the true URLs here.
    let fake = FakeHurdlr::start().await?;
    let (id, secret) = (fake.client_id(), fake.client_secret());
    let token_url = fake.base_url().join("rest/v4/auth/token")?;

    let client = BasicClient::new(ClientId::new(id.to_owned()))
        .set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()))
        .set_auth_uri(AuthUrl::from_url(fake.authorize_url()))
        .set_token_uri(TokenUrl::from_url(token_url.clone()))
        .set_redirect_uri(RedirectUrl::new("https://app.example.com/callback".into())?)
        .set_auth_type(AuthType::RequestBody); // the one addition

    // The app's own client, the reqwest 0.12 of `oauth2`. It must follow no redirect: that would
    // send the secrets on to another host.
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;

    // A login, with state and PKCE.
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let (url, state) =
        client.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge).url();
    let callback = fake.consent(&url, "ann").await?; // the person logs in, and comes back
    let parameter = |name: &str| {
        let mut pairs = callback.query_pairs();
        pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    };
    if parameter("state").as_ref() != Some(state.secret()) {
        return Err("this callback is not of our login".into());
    }
    let code = parameter("code").ok_or("the callback has no code")?;
    let login = client
        .exchange_code(AuthorizationCode::new(code))
        .set_pkce_verifier(verifier)
        .request_async(&http)
        .await?;
    show("authorization_code, by the app's own HTTP client", &login);

    // A refresh.
    let refresh_token = login.refresh_token().ok_or("no refresh token came")?;
    let refreshed = client.exchange_refresh_token(refresh_token).request_async(&http).await?;
    let rotated = refreshed.refresh_token().map(RefreshToken::secret);
    show("refresh_token, by the same", &refreshed);
    println!("  the refresh token was replaced: {}", rotated != Some(refresh_token.secret()));

    // The app's file of tokens is read and written as before. Its JSON holds the tokens in clear,
    // like that of `oauth2`.
    let stored = serde_json::to_string(&refreshed)?;
    let refreshed: BasicTokenResponse = serde_json::from_str(&stored)?;

    // A token for one of the app's users. `user_id` is this crate's, and so is this transport,
    // which brings the bounds that the app's own client may lack.
    let http = HttpClient::new(&token_url)?;
    let granted = client
        .exchange_client_credentials()
        .user_id(&UserId::new("customer-4711")?)
        .request_async(&http)
        .await?;
    show("client_credentials, by hurdlr_oauth2::HttpClient", &granted);

    // A dead refresh token is `oauth2`'s own `InvalidGrant`, with the provider's code beside it.
    // The `Parse` variant of `oauth2`'s error holds raw bodies, so its `Debug` belongs in no log.
    let refused = client.exchange_refresh_token(refresh_token);
    match refused.request_async(&http).await {
        Ok(_) => println!("\nThe replaced refresh token still works."),
        Err(oauth2::RequestTokenError::ServerResponse(answer)) => println!(
            "\nThe replaced refresh token is refused:\n  {answer}\n  the person has to log in: {}",
            answer.needs_login()
        ),
        Err(other) => return Err(other.into()),
    }

    // Whenever the app is ready to hand its tokens over, it does not need a new login.
    let hurdlr = Hurdlr::builder(id, secret).environment(fake.base_url()).build()?;
    let token = hurdlr.import_response(refreshed);
    println!(
        "\nThe refreshed token, taken over by Hurdlr:\n  good for {} s",
        token.remaining().unwrap_or_default().as_secs()
    );
    Ok(())
}

/// `Debug` of an answer holds neither token, so it could be logged as well.
fn show(title: &str, answer: &BasicTokenResponse) {
    println!(
        "\n{title}:\n  {} token for {} s, {} a refresh token",
        answer.token_type().as_ref(),
        answer.expires_in().unwrap_or_default().as_secs(),
        answer.refresh_token().map_or("without", |_| "with")
    );
}

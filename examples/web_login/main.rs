//! A small site whose users connect Hurdlr: the web login from the first click to a kept token.
//!
//! ```text
//! cargo run --example web_login --features axum,middleware,sqlite,testing
//! ```
//!
//! The provider is embedded, with a consent page of its own. With `HURDLR_CLIENT_ID`,
//! `HURDLR_CLIENT_SECRET`, `HURDLR_AUTHORIZE_URL` and `HURDLR_REDIRECT_URI` set it is the real one;
//! then the site is served at `WEB_LOGIN_ADDRESS`, to which a proxy passes on what comes to the
//! redirect URI's host.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WEB_LOGIN_ADDRESS` | `127.0.0.1:3000` | where to listen |
//! | `WEB_LOGIN_COOKIE_KEY` | a fresh one | 64 bytes in base64, for cookies |
//! | `WEB_LOGIN_STORE_KEY` | a fresh one | 32 bytes in base64, for the tokens |
//! | `WEB_LOGIN_DATABASE` | a file that goes with the site | where the tokens are kept |

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod pages;
mod site;

use std::env;
use std::error::Error;

use axum_extra::extract::cookie::Key;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::{KeyRing, Sealed, SealingKey, SqliteStore};
use hurdlr_oauth2::testing::{FakeHurdlr, ManualClock};
use hurdlr_oauth2::{Hurdlr, TokenManager};
use site::{Provider, Site};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::var("WEB_LOGIN_ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&address).await?;
    let home = format!("http://{}/", listener.local_addr()?);

    let (hurdlr, provider) = if env::var_os("HURDLR_CLIENT_ID").is_some() {
        (Hurdlr::from_env()?, Provider::Real)
    } else {
        let (fake, clock) = (FakeHurdlr::start().await?, ManualClock::new());
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri(format!("{home}hurdlr/callback"))
            .clock(clock.clone())
            .build()?;
        println!("The provider is embedded, and forgets everything when this ends.");
        (hurdlr, Provider::Embedded { fake, clock })
    };

    let folder = tempfile::tempdir()?;
    let database = env::var("WEB_LOGIN_DATABASE")
        .unwrap_or_else(|_| folder.path().join("tokens.db").display().to_string());
    let store = open_store(&database).await?;
    let manager = TokenManager::builder(hurdlr, store.clone()).build()?;
    // People stay connected although nobody looks at their page.
    let keeping = manager.keep_alive(std::time::Duration::from_secs(60));

    let cookie_key = key_from("WEB_LOGIN_COOKIE_KEY", 64, "everyone is signed out")?;
    let site = Site::new(manager.clone(), provider, &cookie_key, cookie_key.clone())?;
    println!("Open {home} in a browser; Ctrl-C ends it.");
    axum::serve(listener, site.router())
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;

    drop(keeping);
    let unsaved = manager.shutdown().await; // refreshes under way are finished and saved
    store.close().await;
    if unsaved.is_empty() { Ok(()) } else { Err("some tokens could not be saved".into()) }
}

/// The store of the tokens: a file, sealed.
async fn open_store(database: &str) -> Result<Sealed<SqliteStore>, Box<dyn Error>> {
    let key = key_from("WEB_LOGIN_STORE_KEY", 32, "tokens kept by it cannot be read")?;
    let keys = KeyRing::new(SealingKey::from_bytes(&key)?);
    let store = SqliteStore::at(format!("sqlite://{database}")).open_sealed(keys).await?;
    store.migrate().await?;
    Ok(store)
}

/// A secret of the site. A fresh one is good until the site is started again.
fn key_from(variable: &str, length: usize, loss: &str) -> Result<SecretSlice<u8>, Box<dyn Error>> {
    if let Ok(text) = env::var(variable) {
        let key = BASE64_STANDARD.decode(text.trim());
        return Ok(key.map_err(|_| format!("{variable} is not base64"))?.into());
    }
    eprintln!("Warning: {variable} is not set. After a restart {loss}.");
    Ok(Key::generate().master()[..length].to_vec().into())
}

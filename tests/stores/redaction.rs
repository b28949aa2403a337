//! No secret is shown by a store: not in logs, the database driver's included, not in errors, not
//! in `Debug`.

use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretSlice};
use hurdlr_oauth2::store::{
    KeyRing, PostgresStore, RowKind, Sealed, SealingKey, SqliteStore, TokenStore,
};
use hurdlr_oauth2::{TokenManager, UserId};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::alone::is_alone;
use crate::logged::Log;
use crate::postgres::Server;
use crate::site::{HOUR, Site, access, refresh};
use crate::support::everything_said;

const PASSWORD: &str = "password-marker";
const USER: &str = "ann.marker@example.com";
const KEY: [u8; 32] = *b"a sealing key with marker in it,";

/// Bytes as logs may show them: as text, in hexadecimal, as a list.
fn shapes(secret: &[u8]) -> [String; 3] {
    let hex = secret.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let list = format!("{secret:?}");
    [String::from_utf8_lossy(secret).into_owned(), hex, list.trim_matches(['[', ']']).to_owned()]
}

/// Logs in, refreshes, looks, fails, and returns all secrets that there were and all that was said
/// of errors.
async fn used(store: impl TokenStore + Clone, fail: impl AsyncFnOnce()) -> (Vec<Vec<u8>>, String) {
    let site = Site::on(store.clone());
    let pause = Duration::from_millis(20);
    let policy = RefreshPolicy::default().initial_backoff(pause).max_backoff(pause);
    let manager = TokenManager::builder(site.hurdlr(), site.store.clone());
    let manager = manager.refresh_policy(policy).build().unwrap();
    let user = UserId::new(USER).unwrap();
    let login = site.login(&user).await;
    let mut secrets = vec![access(&login), refresh(&login)];
    manager.adopt(&user, login).await.unwrap();
    site.advance(HOUR);
    let ann = manager.user(&user);
    let token = ann.token().await.unwrap();
    secrets.extend([access(&token), refresh(&token)]);
    drop(token);
    let payload = site.row(RowKind::Login, &user).await.unwrap().token.unwrap().payload;
    let mut secrets: Vec<_> = secrets.into_iter().map(String::into_bytes).collect();
    // Any part of it would be too much.
    secrets.extend(payload.expose_secret().chunks_exact(16).map(<[u8]>::to_vec));
    let walk = manager.keep_alive(HOUR);
    fail().await;
    site.advance(HOUR);
    let error = everything_said(&ann.token().await.unwrap_err());
    walk.stop().await;
    (secrets, format!("{error} {store:?} {manager:?} {ann:?}"))
}

#[tokio::test]
async fn no_store_shows_a_secret() {
    if !is_alone("redaction::no_store_shows_a_secret") {
        return;
    }
    let log = Log::of_process();
    let ring = || KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(KEY.to_vec())).unwrap());
    let server = Server::shared();
    let mut said = String::new();
    let mut secrets = vec![PASSWORD.into(), KEY.to_vec()];

    // The server lets everybody in, with or without a password.
    let url = server.url().replace("test@", &format!("test:{PASSWORD}@"));
    for schema in ["plain", "sealed"] {
        let store = PostgresStore::at(&url).schema(schema).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        let pool = PgPool::connect(&url).await.unwrap();
        let fail = async || {
            // Who breaks a constraint is quoted by the server.
            let table = format!("{schema}.hurdlr_tokens");
            let break_it = format!(
                "ALTER TABLE {table} ADD CHECK (holder IS NULL) NOT VALID; \
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            );
            sqlx::raw_sql(AssertSqlSafe(break_it)).execute(&pool).await.unwrap();
        };
        let (some, errors) = match schema {
            "plain" => used(store, fail).await,
            _ => used(Sealed::new(store, ring()), fail).await,
        };
        secrets.extend(some);
        said += &errors;
    }

    let folder = tempfile::tempdir().unwrap();
    for name in ["plain", "sealed"] {
        let url = format!("sqlite://{}", folder.path().join(name).display());
        let store = SqliteStore::at(url).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        let closed = store.clone();
        let fail = async || closed.close().await;
        let (some, errors) = match name {
            "plain" => used(store, fail).await,
            _ => used(Sealed::new(store, ring()), fail).await,
        };
        secrets.extend(some);
        said += &errors;
    }

    let logged = log.text();
    assert!(logged.contains("sqlx") && logged.contains("INSERT INTO"), "the driver logs");
    assert!(logged.contains("refresh finished"), "and so do we");
    for secret in &secrets {
        for shape in shapes(secret) {
            assert!(!logged.contains(&shape), "logged: {shape}");
            assert!(!said.contains(&shape), "said: {shape}");
        }
    }
    assert!(!logged.contains("marker"), "a user's id is personal");
    assert!(!said.contains("marker"), "{said}");
}

//! Every store keeps every promise of the contract.

#![allow(clippy::unwrap_used, reason = "what fails unexpectedly is the test's failure")]

#[path = "support/postgres.rs"]
mod postgres;

use std::sync::Arc;

use hurdlr_oauth2::store::{MemoryStore, PostgresStore, SqliteStore};
use hurdlr_oauth2::testing::store_contract;
use postgres::Server;
use tempfile::TempDir;

async fn sqlite() -> (SqliteStore, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
    let store = SqliteStore::at(url).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    (store, folder)
}

async fn postgres(schema: &str) -> PostgresStore {
    let store =
        PostgresStore::at(Server::shared().url()).schema(schema).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_the_contract() {
    store_contract::prove(MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_keeps_the_contract() {
    let (store, _folder) = sqlite().await;
    store_contract::prove(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_keeps_the_contract() {
    store_contract::prove(postgres("contract").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_a_million_users() {
    store_contract::many_users_are_kept(&Arc::new(MemoryStore::new()), 1_000_000).await;
}

//! Every store keeps every promise of the contract.

use std::sync::Arc;

use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::{
    KeyRing, MemoryStore, PostgresStore, Sealed, SealingKey, SqliteStore, UserHashKey,
};
use hurdlr_oauth2::testing::store_contract;
use tempfile::TempDir;

use crate::postgres::Server;

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

fn keys() -> KeyRing {
    KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(vec![1; 32])).unwrap())
}

fn hash_key() -> UserHashKey {
    UserHashKey::from_bytes(&SecretSlice::from(vec![2; 32])).unwrap()
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
async fn sealed_memory_keeps_the_contract() {
    store_contract::prove(Sealed::new(MemoryStore::new(), keys())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sealed_hashed_memory_keeps_the_contract() {
    let store = Sealed::new(MemoryStore::new(), keys()).hash_users(hash_key());
    store_contract::prove(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sealed_sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("tokens.db").display());
    let store = SqliteStore::at(url).open_sealed(keys()).await.unwrap();
    store.migrate().await.unwrap();
    store_contract::prove(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sealed_postgres_keeps_the_contract() {
    let at = PostgresStore::at(Server::shared().url()).schema("sealed");
    let store = at.open_sealed(keys()).await.unwrap();
    store.migrate().await.unwrap();
    store_contract::prove(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sealed_hashed_postgres_keeps_the_contract() {
    let at = PostgresStore::at(Server::shared().url()).schema("hashed");
    let store = at.open_sealed(keys()).await.unwrap().hash_users(hash_key());
    store.migrate().await.unwrap();
    store_contract::prove(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_a_million_users() {
    store_contract::many_users_are_kept(&Arc::new(MemoryStore::new()), 1_000_000).await;
}

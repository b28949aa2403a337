//! The store that the processes share.

use std::sync::Arc;

use hurdlr_oauth2::secrecy::SecretString;
use hurdlr_oauth2::sqlx::postgres::PgPoolOptions;
use hurdlr_oauth2::store::{KeyRing, PostgresStore, SealingKey, SqliteStore, TokenStore};

use crate::Outcome;

/// Of this example's own, so that nobody's tables are touched.
const SCHEMA: &str = "hurdlr_fleet_example";

/// Opens it, and makes its tables where they are missing: all processes do so at the same time.
pub(crate) async fn open(url: &str) -> Outcome<Arc<dyn TokenStore>> {
    // Yours is 32 random bytes, and lives where your secrets do.
    let secret = SecretString::from("b2YgMzIgYnl0ZXMsIGFzIG1hbnkgYXMgdGhlcmUgYXI=");
    let keys = KeyRing::new(SealingKey::from_base64(&secret)?);
    if url.starts_with("sqlite:") {
        let store = SqliteStore::at(url).open_sealed(keys).await?;
        store.migrate().await?;
        return Ok(Arc::new(store));
    }
    // Few connections for each of many processes.
    let pool = PgPoolOptions::new().max_connections(3).test_before_acquire(false);
    let pool = pool.connect(url).await?;
    let store = PostgresStore::on(pool).schema(SCHEMA).open_sealed(keys).await?;
    store.migrate().await?;
    Ok(Arc::new(store))
}

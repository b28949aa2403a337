//! A row as a test wants it.

use std::time::Duration;

use crate::store::{Claim, Save, StoreKey, StoredToken, TokenStore, Version};

/// Gives the row of `key` this token and version, whatever was there.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use hurdlr_oauth2::secrecy::SecretBox;
/// use hurdlr_oauth2::store::{
///     MemoryStore, Realm, RowKind, StoreKey, StoredToken, TokenStore, Version,
/// };
/// use hurdlr_oauth2::testing::seed_row;
/// use hurdlr_oauth2::{ApiVersion, UserId};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let realm = Arc::new(Realm::new(ApiVersion::V4, "http://localhost/", "id"));
/// let key = StoreKey::new(realm, RowKind::Login, UserId::new("ann")?);
/// let token = StoredToken {
///     payload: SecretBox::new(Box::new(b"opaque".to_vec())),
///     age: Duration::ZERO,
///     due_in: Duration::from_secs(60),
/// };
/// seed_row(&store, &key, Version { incarnation: 7, revision: 1 }, token).await;
/// assert!(store.read(&[key]).await?.remove(0)?.is_some());
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Where the store fails, or somebody else changes the row at the same time.
#[allow(clippy::expect_used, reason = "as the documentation says")]
pub async fn seed_row<S: TokenStore + ?Sized>(
    store: &S,
    key: &StoreKey,
    version: Version,
    token: StoredToken,
) {
    store.forget(key, None).await.expect("the store forgets the earlier row");
    let claim = Claim { holder: 1, lease: Duration::from_secs(60), known: None, create: Some(1) };
    let made = store.claim(key, claim).await.expect("the store makes a row").row;
    let over = made.expect("a claim answers with the row").version;
    let saved = store.save(key, Save { over, version, token }).await.expect("the store saves");
    assert!(saved, "the row was changed by somebody else");
}

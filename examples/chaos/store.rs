//! The store that the processes share, and a wrapper that writes down what it is asked.

use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::{ExposeSecret, SecretString};
use hurdlr_oauth2::store::{
    Claim, Claimed, DueCursor, DueRow, KeyRing, PostgresStore, ReadRow, Realm, Release, Rewrite,
    Row, Save, SealingKey, SqliteStore, StoreFuture, StoreKey, StoredToken, TokenStore, Version,
};

use crate::Outcome;
use crate::record::{Digest, Note, Said, digest, micros, now, user_of};
use crate::worker::say;

/// Opens the store at `url`, and makes its tables.
pub(crate) async fn open(url: &str) -> Outcome<Arc<dyn TokenStore>> {
    let secret = SecretString::from("b2YgMzIgYnl0ZXMsIGFzIG1hbnkgYXMgdGhlcmUgYXI=");
    let keys = KeyRing::new(SealingKey::from_base64(&secret)?);
    if url.starts_with("sqlite:") {
        let store = SqliteStore::at(url).open_sealed(keys).await?;
        store.migrate().await?;
        return Ok(Arc::new(store));
    }
    let store = PostgresStore::at(url).schema("hurdlr_chaos").open_sealed(keys).await?;
    store.migrate().await?;
    Ok(Arc::new(store))
}

/// Says what is asked of a store: before the call where it may take effect unseen, and after it
/// where it certainly did. What was said stays known when the process is killed.
#[derive(Debug)]
pub(crate) struct Witnessed(pub(crate) Arc<dyn TokenStore>);

/// A secret within a payload, which the sealed store below this one encrypts.
fn secret(token: &StoredToken, name: &str) -> Option<Digest> {
    let object: serde_json::Value = serde_json::from_slice(token.payload.expose_secret()).ok()?;
    object.get(name)?.as_str().map(digest)
}

fn note(release: Release) -> Note {
    let Release { not_before, refused, in_flight } = release;
    Note { pause: micros(not_before), refused, in_flight }
}

impl TokenStore for Witnessed {
    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let begun = now();
            let claimed = self.0.claim(key, claim).await?;
            if let Some((user, row)) = user_of(key).zip(claimed.row.as_ref())
                && claimed.granted
            {
                let refresh = row.token.as_ref().and_then(|token| secret(token, "refresh_token"));
                let version = row.version.into();
                say(&Said::Granted { user, version, refresh, begun, at: now() });
            }
            Ok(claimed)
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let version = save.version.into();
            if let Some(user) = user_of(key) {
                let access = secret(&save.token, "access_token").unwrap_or_default();
                let refresh = secret(&save.token, "refresh_token");
                say(&Said::Reached { user, version, access, refresh, at: now() });
            }
            let is_saved = self.0.save(key, save).await?;
            if let Some(user) = user_of(key).filter(|_| is_saved) {
                say(&Said::Saved { user, version, at: now() });
            }
            Ok(is_saved)
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        holder: u64,
        release: Release,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let (begun, row_version) = (now(), version.into());
            if let Some(user) = user_of(key) {
                let release = note(release);
                say(&Said::Releasing { user, version: row_version, release, at: begun });
            }
            self.0.release(key, version, holder, release).await?;
            if let Some(user) = user_of(key) {
                let release = note(release);
                say(&Said::Released { user, version: row_version, release, begun, at: now() });
            }
            Ok(())
        })
    }

    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        self.0.read(keys)
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        self.0.forget(key, version)
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        self.0.redeem(state, keep)
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        self.0.due(realm, after, limit)
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, hurdlr_oauth2::Error>)>> {
        self.0.scan(realm, after, limit)
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        self.0.rewrite(rewrites)
    }
}

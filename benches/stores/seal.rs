//! The cost of a seal: by itself, and beside the save it belongs to.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::secrecy::{SecretBox, SecretString};
use hurdlr_oauth2::store::{
    KeyRing, MemoryStore, PostgresStore, Realm, RowKind, Save, Sealed, SealingKey, StoreKey,
    StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::seed_row;
use hurdlr_oauth2::{ApiVersion, UserId};

use crate::harness::Outcome;
use crate::postgres::Server;
use crate::{Size, median};

pub(crate) fn keys() -> Outcome<KeyRing> {
    let secret = SecretString::from("b2YgMzIgYnl0ZXMsIGFzIG1hbnkgYXMgdGhlcmUgYXI=");
    Ok(KeyRing::new(SealingKey::from_base64(&secret)?))
}

/// Sealing one record and opening it: what saving and reading it takes longer in a store in memory.
pub(crate) async fn time(size: Size) -> Outcome {
    const RECORDS: u32 = 200;

    let mut plain = Saved::new(MemoryStore::new(), "ann").await?;
    let mut sealed = Saved::new(Sealed::new(MemoryStore::new(), keys()?), "ann").await?;
    let mut differences = Vec::new();
    for round in 0..size.seals {
        let (plain, sealed) = if round % 2 == 0 {
            (plain.saved_and_read(RECORDS).await?, sealed.saved_and_read(RECORDS).await?)
        } else {
            let sealed = sealed.saved_and_read(RECORDS).await?;
            (plain.saved_and_read(RECORDS).await?, sealed)
        };
        differences.push((sealed.as_secs_f64() - plain.as_secs_f64()) * 1e6 / f64::from(RECORDS));
    }
    size.figure("stores.seal_us", median(differences), "us");
    Ok(())
}

/// A save on PostgreSQL sealed, over one in plaintext.
pub(crate) async fn overhead(server: &Server, size: Size) -> Outcome {
    const SAVES: u32 = 10;

    let store = PostgresStore::at(server.url()).schema("seal").open_plaintext().await?;
    store.migrate().await?;
    let mut plain = Saved::new(store.clone(), "plain").await?;
    let mut sealed = Saved::new(Sealed::new(store, keys()?), "sealed").await?;
    let (mut ratios, mut plain_times) = (Vec::new(), Vec::new());
    for round in 0..=size.saves {
        let (plain, sealed) = if round % 2 == 0 {
            (plain.saved(SAVES).await?, sealed.saved(SAVES).await?)
        } else {
            let sealed = sealed.saved(SAVES).await?;
            (plain.saved(SAVES).await?, sealed)
        };
        // The first round is warming up.
        if round > 0 {
            ratios.push(sealed.as_secs_f64() / plain.as_secs_f64());
            plain_times.push(plain.as_secs_f64() * 1e6 / f64::from(SAVES));
        }
    }
    size.figure("stores.seal_overhead", median(ratios), "x");
    size.figure("stores.postgres_save_us", median(plain_times), "us");
    Ok(())
}

/// A token as long as the provider's example, which has a refresh token as long as its access
/// token.
fn token() -> StoredToken {
    let secret = "0123456789abcdef".repeat(6);
    let payload = format!(
        r#"{{"access_token":"{secret}.","refresh_token":"{secret}.","expires_in":7776000,"created_at":1700000000}}"#
    );
    StoredToken {
        payload: SecretBox::new(Box::new(payload.into_bytes())),
        age: Duration::ZERO,
        due_in: Duration::from_hours(24 * 60),
    }
}

/// A user whose token is saved again and again.
struct Saved<S> {
    store: S,
    key: StoreKey,
    version: Version,
}

impl<S: TokenStore> Saved<S> {
    async fn new(store: S, user: &str) -> Outcome<Self> {
        let realm = Realm::new(ApiVersion::V4, "https://sandbox.hurdlr.com/", "client-id");
        let key = StoreKey::new(Arc::new(realm), RowKind::Login, UserId::new(user)?);
        let version = Version { incarnation: 1, revision: 1 };
        seed_row(&store, &key, version, token()).await;
        Ok(Self { store, key, version })
    }

    async fn save(&mut self) -> Outcome {
        let next = self.version.next();
        if !self
            .store
            .save(&self.key, Save { over: self.version, version: next, token: token() })
            .await?
        {
            return Err("a token was not saved".into());
        }
        self.version = next;
        Ok(())
    }

    async fn saved(&mut self, saves: u32) -> Outcome<Duration> {
        let start = Instant::now();
        for _ in 0..saves {
            self.save().await?;
        }
        Ok(start.elapsed())
    }

    async fn saved_and_read(&mut self, records: u32) -> Outcome<Duration> {
        let start = Instant::now();
        for _ in 0..records {
            self.save().await?;
            black_box(self.store.read(std::slice::from_ref(&self.key)).await?);
        }
        Ok(start.elapsed())
    }
}

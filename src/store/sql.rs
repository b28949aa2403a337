//! What the stores on SQL have in common: the statements, what goes into them and what comes out.
//!
//! Each step of [`TokenStore`](super::TokenStore) that decides anything is one statement by the
//! database's clock, so there is nothing to lock, to hold open or to clean up.

mod engine;
pub(super) use engine::{Arg, Engine, Found, User, decoded_user, decoded_version};
mod failure;
pub(super) use failure::{Situation, failed};
mod names;
pub(super) use names::Tables;
mod statements;
use statements::Statements;
pub(super) use statements::{Dialect, SqlText};

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretBox};

use super::{
    Claim, Claimed, Put, Realm, Release, Row, RowKind, StoreKey, StoredToken, UserId, Version,
};
use crate::error::Error;

/// How often a statement that the database undid, or whose connection was cut, is tried.
const TRIES: u32 = 16;

/// One redeemed login in so many removes those whose time has passed.
const CLEAN_ONE_IN: u8 = 16;

/// So many keys are looked up by one statement.
const KEYS_AT_ONCE: usize = 1_000;

/// A store's logic over an engine.
pub(super) struct Sql<E>(Arc<Shared<E>>);

impl<E> Clone for Sql<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<E> {
    engine: E,
    statements: Statements,
}

impl<E: Engine> Sql<E> {
    /// The tables' schema may be older, and is to be brought up by [`migrate`](Self::migrate); it
    /// must not be newer.
    pub(super) async fn open(engine: E, tables: &Tables) -> Result<Self, Error> {
        let statements = Statements::new(&E::DIALECT, tables);
        let sql = Self(Arc::new(Shared { engine, statements }));
        sql.schema_version().await?;
        Ok(sql)
    }

    pub(super) fn engine(&self) -> &E {
        &self.0.engine
    }

    pub(super) fn statements(&self) -> &Statements {
        &self.0.statements
    }

    /// Which migration was the last; zero before the first.
    async fn schema_version(&self) -> Result<usize, Error> {
        let sql = &self.statements().schema_version;
        let version =
            retried::<E, _, _>("look at the schema", true, || self.engine().schema_version(sql))
                .await?;
        let known = E::DIALECT.migrations.len();
        match usize::try_from(version) {
            Ok(version) if version <= known => Ok(version),
            _ => Err(Error::store(format!(
                "the tables' schema is version {version}, of a later release of this crate: this \
                 one knows up to {known}, so use that release here too"
            ))
            .not_temporary()),
        }
    }

    pub(super) async fn migrate(&self) -> Result<(), Error> {
        let migrations = &self.statements().migrations;
        let mut tries = 0;
        loop {
            let done = self.schema_version().await?;
            let Some(next) = migrations.get(done) else {
                return Ok(());
            };
            let outcome = self.engine().apply(next).await;
            match outcome {
                Ok(()) => tries = 0,
                // Another process is at the same step: whoever loses looks again.
                Err(error) if E::situation(&error) != Situation::Final && tries < TRIES => {
                    tries += 1;
                    pause(tries).await;
                }
                Err(error) => return Err(failed::<E>("migrate", &error)),
            }
        }
    }

    pub(super) async fn read(&self, keys: &[StoreKey]) -> Result<Vec<Option<Row>>, Error> {
        let mut rows = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let start = rows.len();
            rows.resize_with(start + keys.len(), || None);
            let found = retried::<E, _, _>("read", true, || {
                self.engine().look_up(&self.statements().read, keys)
            })
            .await?;
            for Found { place, row, .. } in found {
                if let Some(slot) = rows.get_mut(start + place) {
                    *slot = Some(row);
                }
            }
        }
        Ok(rows)
    }

    pub(super) async fn claim(&self, key: &StoreKey, claim: Claim) -> Result<Claimed, Error> {
        let mut args = key_args(key).to_vec();
        args.extend([id(claim.lease_id)?, span(claim.lease)]);
        let sql = match claim.expected {
            None => {
                args.push(id(claim.incarnation)?);
                &self.statements().claim_cold
            }
            Some(expected) => {
                args.extend(version_args(expected)?);
                &self.statements().claim_known
            }
        };
        let found = self.rows("claim", true, sql, &args).await?.pop();
        Ok(Claimed {
            granted: found.as_ref().is_some_and(|found| found.granted),
            row: found.map(|found| found.row),
        })
    }

    pub(super) async fn save(
        &self,
        key: &StoreKey,
        consumed: Version,
        token: StoredToken,
    ) -> Result<bool, Error> {
        let mut args = key_args(key).to_vec();
        args.extend(version_args(consumed)?);
        args.extend(token_args(&token));
        let saved = self.execute("save", false, &self.statements().save, &args).await?;
        Ok(saved > 0)
    }

    pub(super) async fn put(
        &self,
        key: &StoreKey,
        incarnation: u64,
        token: StoredToken,
        put: Put,
    ) -> Result<bool, Error> {
        let mut args = key_args(key).to_vec();
        args.push(id(incarnation)?);
        args.extend(token_args(&token));
        args.push(Arg::Flag(put == Put::Replace));
        for _ in 0..TRIES {
            let done = self.execute("put", true, &self.statements().put, &args).await?;
            if done > 0 || put == Put::Replace {
                return Ok(true);
            }
            // A token was there: ours, by an earlier try, or somebody else's.
            let there = self.read(std::slice::from_ref(key)).await?.pop().flatten();
            if let Some(row) = there.filter(|row| row.token.is_some()) {
                return Ok(row.version.incarnation == incarnation);
            }
            // It has gone since.
        }
        Err(Error::store("the store could not put: the row comes and goes"))
    }

    pub(super) async fn release(
        &self,
        key: &StoreKey,
        version: Version,
        lease_id: u64,
        release: Release,
    ) -> Result<(), Error> {
        let mut args = key_args(key).to_vec();
        args.extend(version_args(version)?);
        args.extend([id(lease_id)?, span(release.not_before), Arg::Flag(release.refused)]);
        let sql = &self.statements().release;
        self.execute("release", true, sql, &args).await?;
        Ok(())
    }

    pub(super) async fn forget(&self, key: &StoreKey) -> Result<bool, Error> {
        let sql = &self.statements().forget;
        Ok(self.execute("forget", false, sql, &key_args(key)).await? > 0)
    }

    pub(super) async fn redeem(&self, state: &[u8; 32], keep: Duration) -> Result<bool, Error> {
        let args = [Arg::Bytes(state), span(keep)];
        let sql = &self.statements().redeem;
        let first = self.execute("redeem", false, sql, &args).await? > 0;
        if fastrand::u8(..CLEAN_ONE_IN) == 0 {
            // The next one cleans up what this one could not.
            let _ = self.engine().execute(&self.statements().clean, &[]).await;
        }
        Ok(first)
    }

    pub(super) async fn due(
        &self,
        realm: &Arc<Realm>,
        limit: usize,
    ) -> Result<Vec<StoreKey>, Error> {
        let [version, environment, client_id] = realm_args(realm);
        let args = [version, environment, client_id, count(limit)];
        let found = retried::<E, _, _>("find due users", true, || {
            self.engine().due(&self.statements().due, &args)
        })
        .await?;
        Ok(found.into_iter().filter_map(|user| key_of(realm, user)).collect())
    }

    pub(super) async fn scan(
        &self,
        realm: &Arc<Realm>,
        after: Option<&StoreKey>,
        limit: usize,
    ) -> Result<Vec<(StoreKey, Row)>, Error> {
        let mut after = after.map_or_else(User::default, |after| {
            (after.kind.name().to_owned(), after.subject.as_str().to_owned())
        });
        let mut rows = Vec::new();
        loop {
            let wanted = limit - rows.len();
            let [version, environment, client_id] = realm_args(realm);
            let (kind, subject) = (Arg::Text(&after.0), Arg::Text(&after.1));
            let args = [version, environment, client_id, kind, subject, count(wanted)];
            let found = retried::<E, _, _>("walk the rows", true, || {
                self.engine().scan(&self.statements().scan, &args)
            })
            .await?;
            let is_last = found.len() < wanted;
            let end = found.last().map(|(user, _)| user.clone());
            for (user, found) in found {
                rows.extend(key_of(realm, user).map(|key| (key, found.row)));
            }
            // Fewer than were asked for are the last, so who is left out is made up for.
            match end.filter(|_| !is_last && rows.len() < limit) {
                Some(end) => after = end,
                None => return Ok(rows),
            }
        }
    }

    pub(super) async fn rewrite(
        &self,
        key: &StoreKey,
        version: Version,
        old: &SecretBox<Vec<u8>>,
        new: SecretBox<Vec<u8>>,
    ) -> Result<bool, Error> {
        let mut args = key_args(key).to_vec();
        args.extend(version_args(version)?);
        args.extend([Arg::Bytes(old.expose_secret()), Arg::Bytes(new.expose_secret())]);
        let sql = &self.statements().rewrite;
        Ok(self.execute("rewrite", false, sql, &args).await? > 0)
    }

    async fn execute(
        &self,
        doing: &'static str,
        repeatable: bool,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> Result<u64, Error> {
        retried::<E, _, _>(doing, repeatable, || self.engine().execute(sql, args)).await
    }

    async fn rows(
        &self,
        doing: &'static str,
        repeatable: bool,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> Result<Vec<Found>, Error> {
        retried::<E, _, _>(doing, repeatable, || self.engine().rows(sql, args)).await
    }
}

/// Does what the database undid again, and what may be repeated also after its connection was cut.
async fn retried<E: Engine, T, F>(
    doing: &'static str,
    repeatable: bool,
    run: impl Fn() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let mut tries = 0;
    loop {
        let error = match run().await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        tries += 1;
        let again = match E::situation(&error) {
            Situation::Undone => true,
            Situation::Cut => repeatable,
            Situation::Contended | Situation::Damaged | Situation::Final => false,
        };
        if !again || tries >= TRIES {
            return Err(failed::<E>(doing, &error));
        }
        pause(tries).await;
    }
}

/// Lets the others of a contention pass: up to 5 ms at first, 80 ms in the end.
async fn pause(tries: u32) {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(..=5_000 * u64::from(tries.min(16)))))
        .await;
}

fn realm_args(realm: &Realm) -> [Arg<'_>; 3] {
    [
        Arg::Text(realm.version.contract().name),
        Arg::Text(&realm.environment),
        Arg::Text(&realm.client_id),
    ]
}

pub(super) fn key_texts(key: &StoreKey) -> [&str; 5] {
    let realm = &*key.realm;
    [
        realm.version.contract().name,
        &realm.environment,
        &realm.client_id,
        key.kind.name(),
        key.subject.as_str(),
    ]
}

fn key_args(key: &StoreKey) -> [Arg<'_>; 5] {
    key_texts(key).map(Arg::Text)
}

fn version_args(version: Version) -> Result<[Arg<'static>; 2], Error> {
    Ok([id(version.incarnation)?, id(version.revision)?])
}

fn token_args(token: &StoredToken) -> [Arg<'_>; 3] {
    // No younger than it is.
    let age = token.age.saturating_add(Duration::from_nanos(999_999));
    [Arg::Bytes(token.payload.expose_secret()), span(age), span(token.due_in)]
}

fn id(number: u64) -> Result<Arg<'static>, Error> {
    i64::try_from(number)
        .map(Arg::Number)
        .map_err(|_| Error::store("an incarnation, revision or lease id is 2⁶³ or more"))
}

/// A span in milliseconds; no longer than what can be added to any date.
fn span(span: Duration) -> Arg<'static> {
    const LONGEST: i64 = 1 << 53;
    Arg::Number(i64::try_from(span.as_millis()).map_or(LONGEST, |span| span.min(LONGEST)))
}

fn count(limit: usize) -> Arg<'static> {
    Arg::Number(i64::try_from(limit).unwrap_or(i64::MAX))
}

/// Nobody can ask for a user who is not valid, and the others are not to wait for them.
fn key_of(realm: &Arc<Realm>, (kind, subject): User) -> Option<StoreKey> {
    let key = kind_of(&kind).zip(UserId::new(subject).ok());
    if key.is_none() {
        tracing::warn!("a row has no valid user kind and id");
    }
    key.map(|(kind, subject)| StoreKey::new(realm.clone(), kind, subject))
}

fn kind_of(name: &str) -> Option<RowKind> {
    RowKind::WITH_TOKENS.into_iter().find(|kind| kind.name() == name)
}

/// Makes a store of a type that has one of [`Sql`] in its field `sql`.
macro_rules! token_store_by_sql {
    ($store:ty) => {
        impl $crate::store::TokenStore for $store {
            fn read<'a>(
                &'a self,
                keys: &'a [$crate::store::StoreKey],
            ) -> $crate::store::StoreFuture<'a, Vec<Option<$crate::store::Row>>> {
                Box::pin(self.sql.read(keys))
            }

            fn claim<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
                claim: $crate::store::Claim,
            ) -> $crate::store::StoreFuture<'a, $crate::store::Claimed> {
                Box::pin(self.sql.claim(key, claim))
            }

            fn save<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
                consumed: $crate::store::Version,
                token: $crate::store::StoredToken,
            ) -> $crate::store::StoreFuture<'a, bool> {
                Box::pin(self.sql.save(key, consumed, token))
            }

            fn put<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
                incarnation: u64,
                token: $crate::store::StoredToken,
                put: $crate::store::Put,
            ) -> $crate::store::StoreFuture<'a, bool> {
                Box::pin(self.sql.put(key, incarnation, token, put))
            }

            fn release<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
                version: $crate::store::Version,
                lease_id: u64,
                release: $crate::store::Release,
            ) -> $crate::store::StoreFuture<'a, ()> {
                Box::pin(self.sql.release(key, version, lease_id, release))
            }

            fn forget<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
            ) -> $crate::store::StoreFuture<'a, bool> {
                Box::pin(self.sql.forget(key))
            }

            fn redeem<'a>(
                &'a self,
                state: &'a [u8; 32],
                keep: std::time::Duration,
            ) -> $crate::store::StoreFuture<'a, bool> {
                Box::pin(self.sql.redeem(state, keep))
            }

            fn due<'a>(
                &'a self,
                realm: &'a std::sync::Arc<$crate::store::Realm>,
                limit: usize,
            ) -> $crate::store::StoreFuture<'a, Vec<$crate::store::StoreKey>> {
                Box::pin(self.sql.due(realm, limit))
            }

            fn scan<'a>(
                &'a self,
                realm: &'a std::sync::Arc<$crate::store::Realm>,
                after: Option<&'a $crate::store::StoreKey>,
                limit: usize,
            ) -> $crate::store::StoreFuture<'a, Vec<($crate::store::StoreKey, $crate::store::Row)>>
            {
                Box::pin(self.sql.scan(realm, after, limit))
            }

            fn rewrite<'a>(
                &'a self,
                key: &'a $crate::store::StoreKey,
                version: $crate::store::Version,
                old: &'a secrecy::SecretBox<Vec<u8>>,
                new: secrecy::SecretBox<Vec<u8>>,
            ) -> $crate::store::StoreFuture<'a, bool> {
                Box::pin(self.sql.rewrite(key, version, old, new))
            }
        }
    };
}
pub(super) use token_store_by_sql;

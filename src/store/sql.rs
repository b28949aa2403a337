//! Logic shared by the stores on SQL: statements, their arguments, and the decoding of their rows.
//!
//! Each step of [`TokenStore`] that decides anything is one statement by the
//! database's clock, so there is nothing to lock, to hold open or to clean up.

mod engine;
pub(super) use engine::{Arg, Engine};
use engine::{Columns, damaged, decoded, unsigned};
mod failure;
pub(super) use failure::{Situation, failed};
mod names;
pub(super) use names::Tables;
mod statements;
pub(super) use statements::{Dialect, SqlText, Statements};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretBox};

use super::{
    Claim, Claimed, DueCursor, DueRow, ReadRow, Realm, Release, Row, RowKind, StoreFuture,
    StoreKey, StoredToken, TokenStore, UserId, Version,
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

impl<E> fmt::Debug for Sql<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sql").finish_non_exhaustive()
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

    /// The number of migrations that are done.
    async fn schema_version(&self) -> Result<usize, Error> {
        let sql = &self.statements().schema_version;
        let doing = "look at the schema";
        let rows = retried::<E, _, _>(doing, true, || self.engine().schema_version(sql)).await?;
        let version = rows.first().map(|row| row.number("version")).transpose();
        let version = version.map_err(|error| failed::<E>(doing, &error))?.flatten().unwrap_or(0);
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

    async fn read_one(&self, key: &StoreKey) -> ReadRow {
        self.read(std::slice::from_ref(key)).await?.pop().unwrap_or(Ok(None))
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

    async fn fetch(
        &self,
        doing: &'static str,
        sql: &SqlText,
        args: &[Arg<'_>],
    ) -> Result<Vec<E::Row>, Error> {
        retried::<E, _, _>(doing, true, || self.engine().fetch(sql, args)).await
    }
}

impl<E: Engine> TokenStore for Sql<E> {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        Box::pin(async move {
            let mut rows = Vec::with_capacity(keys.len());
            for keys in keys.chunks(KEYS_AT_ONCE) {
                let before = rows.len();
                rows.resize_with(before + keys.len(), || Ok(None));
                let args = [Arg::Keys(keys)];
                for found in self.fetch("read", &self.statements().read, &args).await? {
                    // The first place is 1.
                    let place =
                        unsigned(&found, "place").map_err(|error| failed::<E>("read", &error))?;
                    let place = usize::try_from(place).unwrap_or(usize::MAX);
                    if let Some(slot) = rows[before..].get_mut(place.wrapping_sub(1)) {
                        *slot = row::<E>("read", &found).map(Some);
                    }
                }
            }
            Ok(rows)
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let mut args = key_args(key).to_vec();
            args.extend([id(claim.holder)?, span(claim.lease)]);
            let step = |sql, more: &[Arg<'static>]| (sql, [&args, more].concat());
            let take = match claim.known {
                Some(known) => step(&self.statements().claim_known, &version_args(known)?),
                None => step(&self.statements().claim_cold, &[]),
            };
            let incarnation = claim.create.map(id).transpose()?;
            let make = incarnation.map(|made| step(&self.statements().make, &[made]));
            // The likelier one first: mostly a known row is there, and an unknown one is not.
            let steps = if claim.known.is_some() { [Some(take), make] } else { [make, Some(take)] };
            for _ in 0..TRIES {
                for (sql, args) in steps.iter().flatten() {
                    let changed =
                        retried::<E, _, _>("claim", true, || self.engine().change(sql, args))
                            .await?;
                    if let Some(found) = changed.first() {
                        return Ok(Claimed { granted: true, row: Some(row::<E>("claim", found)?) });
                    }
                }
                let row = self.read_one(key).await?;
                if row.is_some() || claim.create.is_none() {
                    return Ok(Claimed { granted: false, row });
                }
                // The row was removed between two of the statements.
            }
            Err(unsettled("claim the row"))
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a StoreKey,
        over: Version,
        version: Version,
        token: StoredToken,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let mut args = key_args(key).to_vec();
            args.extend(version_args(over)?);
            args.extend(version_args(version)?);
            args.extend(token_args(&token));
            let saved = self.execute("save", false, &self.statements().save, &args).await?;
            Ok(saved > 0)
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
            let Release { not_before, refused, in_flight } = release;
            let mut args = key_args(key).to_vec();
            args.extend(version_args(version)?);
            args.extend([id(holder)?, span(not_before), Arg::Flag(refused), Arg::Flag(in_flight)]);
            let sql = &self.statements().release;
            self.execute("release", true, sql, &args).await?;
            Ok(())
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let mut args = key_args(key).to_vec();
            let sql = match version {
                Some(version) => {
                    args.extend(version_args(version)?);
                    &self.statements().forget_version
                }
                None => &self.statements().forget,
            };
            Ok(self.execute("forget", false, sql, &args).await? > 0)
        })
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let args = [Arg::Bytes(state), span(keep)];
            let sql = &self.statements().redeem;
            let first = self.execute("redeem", false, sql, &args).await? > 0;
            if fastrand::u8(..CLEAN_ONE_IN) == 0 {
                // The next one cleans up what this one could not.
                let _ = self.engine().execute(&self.statements().clean, &[]).await;
            }
            Ok(first)
        })
    }

    fn due<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a DueCursor>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DueRow>> {
        Box::pin(async move {
            let doing = "find due users";
            let [version, environment, client_id] = realm_texts(realm).map(Arg::Text);
            let (due_at, kind, subject) = after
                .map_or((0, "", ""), |after| (after.due_at, after.kind.name(), &after.subject));
            let due_at = Arg::Number(i64::try_from(due_at).unwrap_or(i64::MAX));
            let (kind, subject) = (Arg::Text(kind), Arg::Text(subject));
            let args = [version, environment, client_id, due_at, kind, subject, count(limit)];
            let due_row = |found: E::Row| {
                let (key, named) = key_of(realm, &found)?;
                let due_at = unsigned(&found, "due_at")?;
                let cursor =
                    DueCursor { due_at, kind: key.kind, subject: key.subject.as_str().into() };
                Ok(DueRow { cursor, key: named.map(|()| key) })
            };
            let found = self.fetch(doing, &self.statements().due, &args).await?;
            let rows: Result<_, _> = found.into_iter().map(due_row).collect();
            rows.map_err(|error| failed::<E>(doing, &error))
        })
    }

    fn scan<'a>(
        &'a self,
        realm: &'a Arc<Realm>,
        after: Option<&'a StoreKey>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<(StoreKey, Result<Row, Error>)>> {
        Box::pin(async move {
            let doing = "walk the rows";
            let [version, environment, client_id] = realm_texts(realm).map(Arg::Text);
            let (kind, subject) =
                after.map_or(("", ""), |after| (after.kind.name(), after.subject.as_str()));
            let args = [
                version,
                environment,
                client_id,
                Arg::Text(kind),
                Arg::Text(subject),
                count(limit),
            ];
            let item = |found: E::Row| {
                let (key, named) = key_of(realm, &found)?;
                Ok((key, named.and_then(|()| row::<E>(doing, &found))))
            };
            let found = self.fetch(doing, &self.statements().scan, &args).await?;
            let rows: Result<_, _> = found.into_iter().map(item).collect();
            rows.map_err(|error| failed::<E>(doing, &error))
        })
    }

    fn rewrite<'a>(
        &'a self,
        key: &'a StoreKey,
        version: Version,
        old: &'a SecretBox<Vec<u8>>,
        new: SecretBox<Vec<u8>>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let mut args = key_args(key).to_vec();
            args.extend(version_args(version)?);
            args.extend([Arg::Bytes(old.expose_secret()), Arg::Bytes(new.expose_secret())]);
            let sql = &self.statements().rewrite;
            Ok(self.execute("rewrite", false, sql, &args).await? > 0)
        })
    }
}

fn row<E: Engine>(doing: &str, found: &E::Row) -> Result<Row, Error> {
    decoded(found).map_err(|error| failed::<E>(doing, &error))
}

fn unsettled(doing: &str) -> Error {
    Error::store(format!(
        "the store could not {doing}: the row is being created and deleted concurrently"
    ))
}

/// Repeats a statement that the database undid, and one that is repeatable also after its
/// connection was cut.
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

fn realm_texts(realm: &Realm) -> [&str; 3] {
    [realm.version.contract().name, &realm.environment, &realm.client_id]
}

pub(super) fn key_texts(key: &StoreKey) -> [&str; 5] {
    let [version, environment, client_id] = realm_texts(&key.realm);
    [version, environment, client_id, key.kind.name(), key.subject.as_str()]
}

fn key_args(key: &StoreKey) -> [Arg<'_>; 5] {
    key_texts(key).map(Arg::Text)
}

fn version_args(version: Version) -> Result<[Arg<'static>; 2], Error> {
    Ok([id(version.incarnation)?, id(version.revision)?])
}

fn token_args(token: &StoredToken) -> [Arg<'_>; 3] {
    // Rounded up, so that no token becomes younger.
    let age = token.age.saturating_add(Duration::from_nanos(999_999));
    [Arg::Bytes(token.payload.expose_secret()), span(age), span(token.due_in)]
}

fn id(number: u64) -> Result<Arg<'static>, Error> {
    i64::try_from(number)
        .map(Arg::Number)
        .map_err(|_| Error::store("an incarnation, revision or holder is 2⁶³ or more"))
}

/// A span in milliseconds; no longer than what can be added to any date.
fn span(span: Duration) -> Arg<'static> {
    const LONGEST: i64 = 1 << 53;
    Arg::Number(i64::try_from(span.as_millis()).map_or(LONGEST, |span| span.min(LONGEST)))
}

fn count(limit: usize) -> Arg<'static> {
    Arg::Number(i64::try_from(limit).unwrap_or(i64::MAX))
}

/// The key by which the table has a row, and an error where its subject is not valid.
fn key_of(
    realm: &Arc<Realm>,
    found: &impl Columns,
) -> Result<(StoreKey, Result<(), Error>), sqlx::Error> {
    let (kind, subject) = (found.text("kind")?, found.text("subject")?);
    let kind = RowKind::WITH_TOKENS.into_iter().find(|known| known.name() == kind);
    let kind = kind.ok_or_else(|| damaged("kind"))?;
    let named = UserId::new(subject.as_str()).map(drop).map_err(|invalid| {
        Error::store("a row has no valid user id").not_temporary().caused_by(invalid)
    });
    Ok((StoreKey::new(Arc::clone(realm), kind, UserId::internal(subject)), named))
}

//! Tokens in an SQL database.
//!
//! Each step of [`TokenStore`] that decides anything is one statement by the database's clock, so
//! there is nothing to lock, to hold open or to clean up.
//!
//! A statement that the database rolled back for the sake of others is executed again. So is one
//! whose connection was lost, although it may have been executed: `docs/design.md` says for each
//! why it may be.

mod backend;
use backend::{Arg, Backend, Settings};
mod decode;
use decode::Found;
mod fault;
use fault::{Fault, FaultClass};
mod pool;
use pool::{Pool, Source};
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
mod statements;
use statements::{MIGRATIONS, Statements};

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    Claim, Claimed, DueCursor, DueRow, KeyRing, ReadRow, Realm, Release, Rewrite, Row, Save,
    Sealed, StoreFuture, StoreKey, TokenStore, Version,
};
use crate::clock::{Clock, SystemClock};
use crate::error::Error;

/// Tries of a statement that the database rolled back, or whose connection was lost.
const TRIES: u32 = 16;

/// By this time a token has become older while its save waited.
const SLOW_SAVE: Duration = Duration::from_secs(1);

/// One redeemed login in so many removes those whose time has passed.
const CLEAN_ONE_IN: u8 = 16;

/// The most keys that one statement looks up.
const KEYS_AT_ONCE: usize = 1_000;

/// Keeps tokens in an SQL database: a [`SqliteStore`] or a [`PostgresStore`].
///
/// The tokens are in one opaque column. A store that is opened as `plaintext` does not encrypt it:
/// whoever can read the tables, or a backup of them, has the tokens. [`Sealed`] says what else can
/// be read.
pub struct SqlStore<DB: Backend>(Arc<Shared<DB>>);

struct Shared<DB: Backend> {
    pool: Pool<DB>,
    statements: Statements,
    settings: Settings,
}

/// The settings of an [`SqlStore`], made by [`SqlStore::at`] and [`SqlStore::on`].
#[must_use = "a store is there once it was opened"]
#[derive(Debug)]
pub struct SqlStoreBuilder<DB: Backend> {
    place: Place<DB>,
    settings: Settings,
}

#[derive(Debug)]
enum Place<DB: Backend> {
    /// It may hold a password.
    Url(SecretString),
    Pool(sqlx::Pool<DB>),
}

impl<DB: Backend> SqlStore<DB> {
    /// A store in the database that `url` names, with connections of its own. A statement is one
    /// round trip on one of them.
    ///
    /// The docs of [`SqliteStore`] and [`PostgresStore`] have the form of the URL and an example.
    pub fn at(url: impl Into<String>) -> SqlStoreBuilder<DB> {
        let url: String = url.into();
        SqlStoreBuilder::new(Place::Url(url.into()))
    }

    /// A store in a database that the app has open.
    ///
    /// A statement costs more than by [`at`](Self::at): sqlx's pool pings the server whenever a
    /// connection is given back, in a task that it spawns. [Databases](crate::guide::databases) has
    /// the figures, and says what the pool's options should be. Each wait is bounded alike.
    pub fn on(pool: sqlx::Pool<DB>) -> SqlStoreBuilder<DB> {
        SqlStoreBuilder::new(Place::Pool(pool))
    }

    /// Makes the tables, or brings them up to this release. Any number of processes may call it at
    /// once, and again. It only goes forward.
    ///
    /// On PostgreSQL it makes the schema too, and needs the right to create what is missing; the
    /// store itself needs `SELECT`, `INSERT`, `UPDATE` and `DELETE`.
    ///
    /// # Errors
    ///
    /// Tables of a later release are refused, and so is a server that is read-only.
    ///
    /// # Cancel safety
    ///
    /// Dropped half way, it can be called again.
    pub async fn migrate(&self) -> Result<(), Error> {
        let doing = "migrate";
        self.0.pool.check().await.map_err(|fault| fault.into_error(doing))?;
        while let Some(steps) = MIGRATIONS.get(self.schema_version().await?) {
            // Creating a schema needs a right even where there is nothing to create.
            if let Some([find, create]) = DB::SCHEMA
                && self.0.settings.schema.is_some()
                && self.run(doing, find, &[]).await?.rows.is_empty()
            {
                self.run(doing, create, &[]).await?;
            }
            // Not in one transaction, which some engines do not have for definitions: each step can
            // be repeated, so whoever finds a migration half done goes on from there.
            for step in *steps {
                self.run(doing, step, &[]).await?;
            }
        }
        Ok(())
    }

    /// Closes the connections. Calls under way come to their end; later ones fail. SQLite folds
    /// what is in the `-wal` file into the file itself. Dropped half way, it can be called again.
    pub async fn close(&self) {
        self.0.pool.close().await;
    }

    /// The number of migrations that are done.
    async fn schema_version(&self) -> Result<usize, Error> {
        let doing = "look at the schema";
        if self.run(doing, DB::HAS_TABLES, &[]).await?.rows.is_empty() {
            return Ok(0);
        }
        let rows = self.run(doing, statements::SCHEMA_VERSION, &[]).await?.rows;
        let version = rows.first().map_or(Ok(0), |row| row.unsigned("version"));
        let version = version.map_err(failed::<DB>(doing))?;
        let known = MIGRATIONS.len();
        match usize::try_from(version) {
            Ok(version) if version <= known => Ok(version),
            _ => Err(Error::store(format!(
                "the tables' schema is version {version}, of a later release of this crate: this \
                 one knows up to {known}, so use that release here too"
            ))
            .not_temporary()),
        }
    }

    /// Runs a statement, again if need be.
    async fn run(
        &self,
        doing: &'static str,
        statement: &'static str,
        args: &[Arg<'_>],
    ) -> Result<Answer<DB::Row>, Error> {
        let begun = Instant::now();
        let (mut tries, mut fresh, mut in_doubt) = (0, false, false);
        loop {
            let fault = match self.0.pool.run(self.0.statements.get(statement), args, fresh).await {
                Ok(rows) => return Ok(Answer { rows, in_doubt }),
                Err(fault) => fault,
            };
            tries += 1;
            fresh = fault.is_of_connection();
            in_doubt |= fault.class == FaultClass::Lost;
            let is_repeatable = fresh || fault.class == FaultClass::RolledBack;
            if !is_repeatable || tries >= TRIES || begun.elapsed() >= DB::STATEMENT_TIMEOUT {
                return Err(fault.into_error(doing));
            }
            // Lets the others of a contention pass: up to 5 ms at first, 80 ms in the end.
            let pause = fastrand::u64(..=5_000 * u64::from(tries));
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
    }

    async fn read_one(&self, key: &StoreKey) -> ReadRow {
        self.read(std::slice::from_ref(key)).await?.pop().unwrap_or(Ok(None))
    }
}

/// The answer to a statement.
struct Answer<R> {
    /// The rows it returned: where it writes, one for each that it changed.
    rows: Vec<R>,
    /// An earlier try may have been executed, and its answer lost.
    in_doubt: bool,
}

impl<DB: Backend> SqlStoreBuilder<DB> {
    fn new(place: Place<DB>) -> Self {
        let settings = Settings {
            schema: None,
            table_prefix: "hurdlr_".into(),
            max_connections: DB::CONNECTIONS,
            group_access: false,
        };
        Self { place, settings }
    }

    /// The prefix of the tables' names: a-z, 0-9 and `_`. `hurdlr_` if nothing is said.
    pub fn table_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.table_prefix = prefix.into();
        self
    }

    /// Opens the store with its tokens encrypted, by the first key of `keys`.
    ///
    /// # Errors
    ///
    /// Those of [`open_plaintext`](Self::open_plaintext), which can be dropped alike.
    pub async fn open_sealed(self, keys: KeyRing) -> Result<Sealed<SqlStore<DB>>, Error> {
        Ok(Sealed::new(self.open_plaintext().await?, keys))
    }

    /// Opens the store, which will not encrypt the tokens.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) where the URL or a setting cannot be used.
    /// [`Store`](crate::ErrorKind::Store) where the database cannot be reached; where it is
    /// read-only; where tokens would not survive a crash of it, processes could not share it, or
    /// others may open its file; and where its tables are of a later release.
    ///
    /// # Cancel safety
    ///
    /// Nothing was changed, and its connections are closed.
    pub async fn open_plaintext(self) -> Result<SqlStore<DB>, Error> {
        let Self { place, settings } = self;
        let statements = Statements::new::<DB>(&settings)?;
        if settings.max_connections == 0 {
            return Err(Error::config("max_connections is 0: a store needs at least 1"));
        }
        let pool = match place {
            Place::Url(url) => {
                let target = DB::target(url.expose_secret(), &settings)?;
                Pool::new(Source::Own(target), settings.max_connections)?
            }
            Place::Pool(pool) => {
                let size = pool.options().get_max_connections();
                Pool::new(Source::App(pool), usize::try_from(size).unwrap_or(usize::MAX))?
            }
        };
        pool.check().await.map_err(|fault| fault.into_error("open the database"))?;
        let store = SqlStore(Arc::new(Shared { pool, statements, settings }));
        store.schema_version().await?;
        Ok(store)
    }
}

impl<DB: Backend> Sealed<SqlStore<DB>> {
    /// [`SqlStore::migrate`], with its errors.
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.store.migrate().await
    }

    /// [`SqlStore::close`].
    pub async fn close(&self) {
        self.store.close().await;
    }
}

impl<DB: Backend> TokenStore for SqlStore<DB> {
    fn read<'a>(&'a self, keys: &'a [StoreKey]) -> StoreFuture<'a, Vec<ReadRow>> {
        Box::pin(async move {
            let doing = "read";
            let mut rows: Vec<_> = keys.iter().map(|_| Ok(None)).collect();
            let keys: Vec<_> = keys.iter().map(StoreKey::texts).enumerate().collect();
            for keys in keys.chunks(KEYS_AT_ONCE) {
                // Texts can always be written.
                let keys = serde_json::to_string(keys).unwrap_or_default();
                for found in self.run(doing, statements::READ, &[Arg::Text(&keys)]).await?.rows {
                    let place = found.unsigned("place").map_err(failed::<DB>(doing))?;
                    if let Some(slot) = usize::try_from(place).ok().and_then(|at| rows.get_mut(at))
                    {
                        *slot = found.row().map_err(failed::<DB>(doing)).map(Some);
                    }
                }
            }
            Ok(rows)
        })
    }

    fn claim<'a>(&'a self, key: &'a StoreKey, claim: Claim) -> StoreFuture<'a, Claimed> {
        Box::pin(async move {
            let doing = "claim";
            let mut args = key.texts().map(Arg::Text).to_vec();
            args.extend([id(claim.holder)?, span(claim.lease)]);
            let step = |sql, more: &[Arg<'static>]| (sql, [&args, more].concat());
            let take = step(statements::CLAIM, &version_args(claim.known)?);
            let make =
                claim.create.map(id).transpose()?.map(|made| step(statements::MAKE, &[made]));
            // The likelier one first: mostly a known row is there, and an unknown one is not.
            let steps = if claim.known.is_some() { [Some(take), make] } else { [make, Some(take)] };
            for _ in 0..TRIES {
                for (sql, args) in steps.iter().flatten() {
                    if let Some(found) = self.run(doing, sql, args).await?.rows.first() {
                        let row = found.row().map_err(failed::<DB>(doing))?;
                        return Ok(Claimed { granted: true, row: Some(row) });
                    }
                }
                let row = self.read_one(key).await?;
                if row.is_some() || claim.create.is_none() {
                    return Ok(Claimed { granted: false, row });
                }
                // The row was removed between two of the statements.
            }
            let why = "could not claim the row: it is being created and deleted concurrently";
            Err(Error::store(why))
        })
    }

    fn save<'a>(&'a self, key: &'a StoreKey, save: Save) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let Save { over, version, token } = save;
            let mut args = key.texts().map(Arg::Text).to_vec();
            args.extend([version_args(Some(over))?, version_args(Some(version))?].concat());
            // Rounded up, so that no token becomes younger.
            let age = token.age.saturating_add(Duration::from_nanos(999_999));
            args.extend([Arg::Bytes(token.payload.expose_secret()), span(age), span(token.due_in)]);
            let asked = SystemClock.now();
            let answer = self.run("save", statements::SAVE, &args).await?;
            let mut is_saved = !answer.rows.is_empty();
            if !is_saved && answer.in_doubt {
                // An earlier try may have saved it.
                let row = self.read_one(key).await?.filter(|row| row.version == version);
                let payload = row.and_then(|row| row.token).map(|token| token.payload);
                let ours = token.payload.expose_secret();
                is_saved = payload.is_some_and(|it| it.expose_secret() == ours);
            }
            let waited = SystemClock.now().since(asked);
            if is_saved && waited >= SLOW_SAVE {
                let args = [&args[..5], &version_args(Some(version))?, &[span(waited)]].concat();
                // The token is saved, whether or not its age can be put right.
                let _ = self.run("save", statements::AGE, &args).await;
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
            let Release { not_before, refused, in_flight } = release;
            let mut args = key.texts().map(Arg::Text).to_vec();
            args.extend(version_args(Some(version))?);
            args.extend([id(holder)?, span(not_before), Arg::Flag(refused), Arg::Flag(in_flight)]);
            self.run("release", statements::RELEASE, &args).await?;
            Ok(())
        })
    }

    fn forget<'a>(&'a self, key: &'a StoreKey, version: Option<Version>) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let args = [&key.texts().map(Arg::Text)[..], &version_args(version)?].concat();
            let answer = self.run("forget", statements::FORGET, &args).await?;
            if answer.rows.is_empty() && answer.in_doubt {
                let why = "the store could not tell who removed the row: the connection was lost";
                return Err(Error::store(why));
            }
            Ok(!answer.rows.is_empty())
        })
    }

    fn redeem<'a>(&'a self, state: &'a [u8; 32], keep: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let args = [Arg::Bytes(state), span(keep), Arg::Number(fastrand::i64(..))];
            let redeemed = self.run("redeem", statements::REDEEM, &args).await?;
            if fastrand::u8(..CLEAN_ONE_IN) == 0 {
                // The next one cleans up what this one could not.
                let _ = self.0.pool.run(self.0.statements.get(statements::CLEAN), &[], false).await;
            }
            Ok(!redeemed.rows.is_empty())
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
            let (due_at, kind, subject) =
                after.map_or((0, "", ""), |at| (at.due_at, at.kind.name(), at.subject.as_str()));
            let mut args = realm.texts().map(Arg::Text).to_vec();
            args.extend([count(due_at), Arg::Text(kind), Arg::Text(subject), count(limit)]);
            let due_row = |found: DB::Row| {
                let (key, named) = found.key_in(realm)?;
                let due_at = found.unsigned("due_at")?;
                let cursor = DueCursor { due_at, kind: key.kind, subject: key.subject.clone() };
                Ok(DueRow { cursor, key: named.map(|()| key) })
            };
            let found = self.run(doing, statements::DUE, &args).await?.rows;
            let rows: Result<_, _> = found.into_iter().map(due_row).collect();
            rows.map_err(failed::<DB>(doing))
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
            let (kind, subject) =
                after.map_or(("", ""), |after| (after.kind.name(), after.subject.as_str()));
            let mut args = realm.texts().map(Arg::Text).to_vec();
            args.extend([Arg::Text(kind), Arg::Text(subject), count(limit)]);
            let item = |found: DB::Row| {
                let (key, named) = found.key_in(realm)?;
                Ok((key, named.and_then(|()| found.row().map_err(failed::<DB>(doing)))))
            };
            let found = self.run(doing, statements::SCAN, &args).await?.rows;
            let rows: Result<_, _> = found.into_iter().map(item).collect();
            rows.map_err(failed::<DB>(doing))
        })
    }

    fn rewrite(&self, rewrites: Vec<Rewrite>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move {
            let doing = "rewrite";
            let sizes = rewrites.iter().flat_map(|Rewrite { old, new, .. }| [old, new]);
            let size = sizes.map(|payload| payload.expose_secret().len()).sum();
            // Large enough from the start, since a buffer that grows leaves copies behind.
            let mut payloads = Zeroizing::new(Vec::with_capacity(size));
            let mut place = |payload: &SecretBox<Vec<u8>>| {
                let payload = payload.expose_secret();
                payloads.extend_from_slice(payload);
                [payloads.len() + 1 - payload.len(), payload.len()]
            };
            let mut row = |Rewrite { key, version, old, new }: &Rewrite| {
                let Version { incarnation, revision } = version;
                json!([key.texts(), incarnation, revision, place(old), place(new)])
            };
            let rows = rewrites.iter().map(&mut row).collect::<Value>().to_string();
            let args = [Arg::Text(&rows), Arg::Bytes(&payloads)];
            let changed = self.run(doing, statements::REWRITE, &args).await?.rows;
            let changed: Result<HashSet<_>, _> = changed.iter().map(Found::key_texts).collect();
            let changed = changed.map_err(failed::<DB>(doing))?;
            let is_changed = |it: &Rewrite| changed.contains(&it.key.texts().map(Into::into));
            Ok(rewrites.iter().map(is_changed).collect())
        })
    }
}

/// Turns the driver's error about a row into one of the store.
fn failed<DB: Backend>(doing: &str) -> impl Fn(sqlx::Error) -> Error {
    move |error| Fault::of::<DB>(&error).into_error(doing)
}

/// Negative where no version is asked for.
fn version_args(version: Option<Version>) -> Result<[Arg<'static>; 2], Error> {
    match version {
        Some(version) => Ok([id(version.incarnation)?, id(version.revision)?]),
        None => Ok([Arg::Number(-1); 2]),
    }
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

fn count(number: impl TryInto<i64>) -> Arg<'static> {
    Arg::Number(number.try_into().unwrap_or(i64::MAX))
}

impl<DB: Backend> Clone for SqlStore<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Backend> fmt::Debug for SqlStore<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

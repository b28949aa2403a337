//! The manager on real databases, on bad days too: what is newest is never lost, and nothing is
//! sent twice.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hurdlr_oauth2::manager::{RefreshPolicy, TokenEvent};
use hurdlr_oauth2::secrecy::SecretSlice;
use hurdlr_oauth2::store::{
    KeyRing, PostgresStore, RowKind, Sealed, SealingKey, SqliteStore, TokenStore, UserHashKey,
};
use hurdlr_oauth2::testing::{Fault, Gate, Rotation, StoreCall};
use hurdlr_oauth2::{Error, ErrorKind, TokenManager, UserId};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

use crate::postgres::{Server, SmallDisk};
use crate::site::{HOUR, Site, access, refresh};

type AnyStore = Arc<dyn TokenStore>;
type Days = Site<AnyStore>;

/// The default of `revalidate_after`.
const BOUND: Duration = Duration::from_secs(60);

// --- Places: a database, and a hand in it that is not the store's ---------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    Plain,
    Sealed,
    /// With hashed user ids.
    Hashed,
}

struct Place {
    seal: Seal,
    database: Database,
}

enum Database {
    Sqlite { path: PathBuf, _folder: TempDir },
    Postgres { admin: Box<PgConnectOptions>, url: String, name: String },
}

impl Place {
    fn sqlite(seal: Seal) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.db");
        Self { seal, database: Database::Sqlite { path, _folder: folder } }
    }

    fn postgres(seal: Seal) -> Self {
        Self::on(Server::shared(), seal)
    }

    /// A schema of its own, and a role of the same name that nobody else logs in by.
    fn on(server: &Server, seal: Seal) -> Self {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("place_{}", PLACES.fetch_add(1, Ordering::Relaxed));
        assert!(server.psql("postgres", &format!("CREATE ROLE {name} SUPERUSER LOGIN")));
        let url = server.url().replace("test@", &format!("{name}@"));
        let admin = Box::new(server.url().parse().unwrap());
        Self { seal, database: Database::Postgres { admin, url, name } }
    }

    async fn store(&self) -> AnyStore {
        self.store_by(ring(1)).await.unwrap()
    }

    async fn store_by(&self, keys: KeyRing) -> Result<AnyStore, Error> {
        match &self.database {
            Database::Sqlite { path, .. } => {
                let store = SqliteStore::at(format!("sqlite://{}", path.display()));
                let store = store.open_plaintext().await?;
                store.migrate().await?;
                Ok(self.sealed(store, keys))
            }
            Database::Postgres { url, name, .. } => {
                let store = PostgresStore::at(url).schema(name).open_plaintext().await?;
                store.migrate().await?;
                Ok(self.sealed(store, keys))
            }
        }
    }

    fn sealed(&self, store: impl TokenStore, keys: KeyRing) -> AnyStore {
        match self.seal {
            Seal::Plain => Arc::new(store),
            Seal::Sealed => Arc::new(Sealed::new(store, keys)),
            Seal::Hashed => {
                let hash = UserHashKey::from_bytes(&SecretSlice::from(vec![9; 32])).unwrap();
                Arc::new(Sealed::new(store, keys).hash_users(hash))
            }
        }
    }

    /// A store on one SQLite connection, to which things can be done, and which waits for nobody.
    async fn store_on_one_connection(&self) -> (AnyStore, SqlitePool) {
        let options = self
            .file()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_millis(20));
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        let store = SqliteStore::on(pool.clone()).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        (self.sealed(store, ring(1)), pool)
    }

    fn file(&self) -> SqliteConnectOptions {
        match &self.database {
            Database::Sqlite { path, .. } => SqliteConnectOptions::new().filename(path),
            Database::Postgres { .. } => unreachable!("PostgreSQL is not in a file of ours"),
        }
    }

    fn url(&self) -> &str {
        match &self.database {
            Database::Sqlite { .. } => unreachable!("a file of ours is found by its path"),
            Database::Postgres { url, .. } => url,
        }
    }

    fn name(&self) -> &str {
        match &self.database {
            Database::Sqlite { .. } => "hurdlr",
            Database::Postgres { name, .. } => name,
        }
    }

    /// `{tokens}` and `{schema}` are the tables.
    fn sql(&self, sql: &str) -> AssertSqlSafe<String> {
        let prefix = match &self.database {
            Database::Sqlite { .. } => "hurdlr_".to_owned(),
            Database::Postgres { name, .. } => format!("{name}.hurdlr_"),
        };
        let [tokens, schema] = ["tokens", "schema"].map(|table| format!("{prefix}{table}"));
        AssertSqlSafe(sql.replace("{tokens}", &tokens).replace("{schema}", &schema))
    }

    async fn run(&self, sql: &str) {
        let sql = self.sql(sql);
        match self.connect().await {
            Hand::Sqlite(mut hand) => drop(sqlx::raw_sql(sql).execute(&mut hand).await.unwrap()),
            Hand::Postgres(mut hand) => drop(sqlx::raw_sql(sql).execute(&mut hand).await.unwrap()),
        }
    }

    async fn connect(&self) -> Hand {
        match &self.database {
            Database::Sqlite { .. } => Hand::Sqlite(self.file().connect().await.unwrap()),
            Database::Postgres { admin, .. } => Hand::Postgres(admin.connect().await.unwrap()),
        }
    }

    /// Incarnation, revision and payload as they lie there; of users who are not hashed.
    async fn row(&self, user: &UserId) -> (i64, i64, Vec<u8>) {
        let sql =
            self.sql("SELECT incarnation, revision, payload FROM {tokens} WHERE subject = $1");
        let user = user.as_str().to_owned();
        match self.connect().await {
            Hand::Sqlite(mut hand) => sqlx::query_as(sql).bind(user).fetch_one(&mut hand).await,
            Hand::Postgres(mut hand) => sqlx::query_as(sql).bind(user).fetch_one(&mut hand).await,
        }
        .unwrap()
    }

    async fn overwrite(&self, user: &UserId, payload: Vec<u8>) {
        let sql = self.sql("UPDATE {tokens} SET payload = $1 WHERE subject = $2");
        let user = user.as_str().to_owned();
        match self.connect().await {
            Hand::Sqlite(mut hand) => {
                sqlx::query(sql).bind(payload).bind(user).execute(&mut hand).await.unwrap();
            }
            Hand::Postgres(mut hand) => {
                sqlx::query(sql).bind(payload).bind(user).execute(&mut hand).await.unwrap();
            }
        }
    }

    /// Time passes for the rows.
    async fn age(&self, by: Duration) {
        let ms = by.as_millis();
        self.run(&format!(
            "UPDATE {{tokens}} SET stamped_at = stamped_at - {ms}, \
             obtained_at = obtained_at - {ms}, due_at = due_at - {ms}"
        ))
        .await;
    }

    /// Cuts the connections of whoever is logged in as this place's role.
    async fn cut(&self) {
        let name = self.name();
        self.run(&format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{name}'"
        ))
        .await;
    }
}

enum Hand {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

fn ring(byte: u8) -> KeyRing {
    KeyRing::new(SealingKey::from_bytes(&SecretSlice::from(vec![byte; 32])).unwrap())
}

fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Makes each function a test of each store.
macro_rules! on_each_store {
    ($($promise:ident)*) => {
        on_each_store! { sqlite_plain sqlite Plain [$($promise)*] }
        on_each_store! { sqlite_sealed sqlite Sealed [$($promise)*] }
        on_each_store! { sqlite_hashed sqlite Hashed [$($promise)*] }
        on_each_store! { postgres_plain postgres Plain [$($promise)*] }
        on_each_store! { postgres_sealed postgres Sealed [$($promise)*] }
        on_each_store! { postgres_hashed postgres Hashed [$($promise)*] }
    };
    ($store:ident $database:ident $seal:ident [$($promise:ident)*]) => {
        mod $store {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Place::$database(super::Seal::$seal)).await;
            })*
        }
    };
}

on_each_store! {
    evicted_user_returns_with_no_request
    changes_elsewhere_are_known_within_bound
    unread_user_is_kept_alive
    later_schema_stops_starts_not_runs
}

// --- Helpers --------------------------------------------------------------------------------

/// One that tries again soon.
fn quick(site: &Days) -> TokenManager {
    quick_on(site, site.store.clone())
}

fn quick_on(site: &Days, store: impl TokenStore) -> TokenManager {
    let (first, longest) = (Duration::from_millis(20), Duration::from_millis(100));
    let policy = RefreshPolicy::default().initial_backoff(first).max_backoff(longest);
    TokenManager::builder(site.hurdlr(), store).refresh_policy(policy).build().unwrap()
}

async fn log_in(site: &Days, manager: &TokenManager, users: &[UserId]) {
    for user in users {
        manager.adopt(user, site.login(user).await).await.unwrap();
    }
    site.fake.clear_requests();
}

/// Waits for what happens on its own.
async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !happened().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Of an error of the store: whether it passes, and what it says.
#[track_caller]
fn assert_says(error: &Error, is_temporary: bool, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    assert_eq!(error.is_temporary(), is_temporary, "{error:?}");
    assert!(error.to_string().contains(what), "no {what:?} in {error:?}");
}

// --- Good days ------------------------------------------------------------------------------

async fn evicted_user_returns_with_no_request(place: Place) {
    const CAPACITY: usize = 10;
    let site = Site::on(place.store().await);
    let small = || {
        let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
        builder.cache_capacity(CAPACITY).build().unwrap()
    };
    let manager = small();
    let users: Vec<_> = (0..5 * CAPACITY).map(|n| id(&format!("user {n}"))).collect();
    let mut expected = Vec::new();
    for user in &users {
        let token = site.login(user).await;
        expected.push((access(&token), refresh(&token)));
        manager.adopt(user, token).await.unwrap();
    }
    let granted = manager.enterprise_user(&users[0]).token().await.map(|token| access(&token));
    site.fake.clear_requests();
    let restarted = small();
    for manager in [manager, restarted] {
        for (user, expected) in users.iter().zip(&expected) {
            let token = manager.user(user).token().await.unwrap();
            assert_eq!((access(&token), refresh(&token)), *expected);
        }
        let enterprise = manager.enterprise_user(&users[0]);
        assert_eq!(access(&enterprise.token().await.unwrap()), *granted.as_ref().unwrap());
        assert!(manager.users_in_memory() <= 2 * CAPACITY, "{}", manager.users_in_memory());
        assert!(manager.shutdown().await.is_empty());
    }
    assert_eq!(site.fake.count().total(), 0);
}

async fn changes_elsewhere_are_known_within_bound(place: Place) {
    let site = Site::on(place.store().await);
    let (here, elsewhere) = (site.manager(), quick_on(&site, place.store().await));
    let users = ["ann", "bob", "carol"].map(id);
    log_in(&site, &here, &users).await;
    let [ann, bob, carol] = users.each_ref().map(|user| here.user(user));
    let mut changes = [ann.subscribe(), bob.subscribe(), carol.subscribe()];
    // Logged in anew, forgotten, and refused by the API and so renewed.
    let login = site.login(&users[0]).await;
    let expected = access(&login);
    elsewhere.adopt(&users[0], login).await.unwrap();
    elsewhere.user(&users[1]).forget().await.unwrap();
    site.advance(BOUND);
    let theirs = elsewhere.user(&users[2]);
    theirs.token().await.unwrap();
    site.advance(BOUND);
    theirs.report_unauthorized(&theirs.token().await.unwrap().into_shared());
    let renewed = access(&theirs.token().await.unwrap());
    for user in [&ann, &bob, &carol] {
        user.token().await.unwrap();
    }
    let mut known = Vec::new();
    for changes in &mut changes {
        known.push(tokio::time::timeout(BOUND / 4, changes.next()).await.unwrap());
    }
    assert_eq!(known, [TokenEvent::NewToken, TokenEvent::Forgotten, TokenEvent::NewToken]);
    assert_eq!(access(&ann.token().await.unwrap()), expected);
    assert!(bob.try_token().is_none());
    assert_eq!(access(&carol.token().await.unwrap()), renewed);
    assert_eq!(site.refreshes(), 1);
}

async fn unread_user_is_kept_alive(place: Place) {
    let site = Site::on(place.store().await);
    site.fake.set_rotation(Rotation::KillFamily);
    let users: Vec<_> = (0..5).map(|n| id(&format!("user {n}"))).collect();
    log_in(&site, &quick(&site), &users).await;
    let granted = id("granted");
    quick(&site).enterprise_user(&granted).token().await.unwrap();
    site.fake.clear_requests();
    place.age(HOUR).await;
    site.advance(HOUR);
    // Processes that know none of them.
    let managers = [quick(&site), quick_on(&site, place.store().await)];
    let walks = managers.each_ref().map(|manager| manager.keep_alive(Duration::from_millis(20)));
    until("all are renewed", async || {
        let mut renewed = true;
        for user in &users {
            renewed &= site.row(RowKind::Login, user).await.unwrap().version.revision == 2;
        }
        let row = site.row(RowKind::Enterprise, &granted).await.unwrap();
        renewed && row.version.revision == 2
    })
    .await;
    for walk in walks {
        walk.stop().await;
    }
    assert_eq!(site.refreshes(), 5, "each of them once");
    assert_eq!(site.fake.count().total(), 6);
    for user in &users {
        let stored = site.stored_refresh_token(user).await.unwrap();
        assert!(site.fake.refresh_is_alive(&stored));
    }
}

async fn later_schema_stops_starts_not_runs(place: Place) {
    let site = Site::on(place.store().await);
    let manager = quick(&site);
    let (ann, bob) = (id("ann"), id("bob"));
    log_in(&site, &manager, std::slice::from_ref(&ann)).await;
    place.run("INSERT INTO {schema} (version) VALUES (1000)").await;
    assert_says(&place.store_by(ring(1)).await.unwrap_err(), false, "of a later release");
    // While processes are replaced one by one.
    log_in(&site, &manager, &[bob]).await;
    site.advance(HOUR);
    let newest = refresh(&manager.user(&ann).token().await.unwrap());
    assert_eq!(site.stored_refresh_token(&ann).await, Some(newest));
}

// --- Bad days -------------------------------------------------------------------------------

/// A database goes bad while a provider that kills families has rotated ann's refresh token, and
/// its answer is on its way. `says` is what carol is told then, whose token is over; nothing, where
/// calls of hers may work.
async fn judge_a_bad_day(
    site: &Days,
    bad: impl AsyncFnOnce(),
    good: impl AsyncFnOnce(),
    says: Option<&str>,
) {
    let [ann, bob, carol] = ["ann", "bob", "carol"].map(id);
    let manager = quick(site);
    site.fake.set_rotation(Rotation::KillFamily);
    log_in(site, &manager, &[ann.clone(), carol.clone()]).await;
    site.advance(HOUR);
    log_in(site, &manager, std::slice::from_ref(&bob)).await;
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    // What a long scope takes is room.
    site.fake.reshape(|answer| {
        let words: Vec<_> = (0..2_000).map(|n| format!("{:x}", n * 7_919)).collect();
        answer.insert("scope".into(), words.join(" ").into());
    });
    let waiting = {
        let ann = manager.user(&ann);
        tokio::spawn(async move { ann.token().await.map(|token| refresh(&token)) })
    };
    site.fake.arrived(1).await;
    site.fake.clear_reshape();
    bad().await;
    gate.open();
    let newest = tokio::time::timeout(BOUND, waiting).await.unwrap().unwrap().unwrap();
    assert!(site.fake.refresh_is_alive(&newest));
    manager.user(&bob).token().await.unwrap();
    if let Some(says) = says {
        let error = manager.user(&carol).token().await.unwrap_err();
        assert_says(&error, true, says);
        assert_eq!(site.fake.count().total(), 1, "nothing is sent that could not be saved");
    }
    good().await;
    until("ann's token is saved", async || {
        site.stored_refresh_token(&ann).await.as_ref() == Some(&newest)
    })
    .await;
    if says.is_some() {
        until("carol is served", async || manager.user(&carol).token().await.is_ok()).await;
        assert_eq!(site.fake.count().total(), 2);
    }
    assert!(manager.shutdown().await.is_empty());
    let restarted = quick(site);
    assert_eq!(refresh(&restarted.user(&ann).token().await.unwrap()), newest);
    assert_eq!(site.fake.count().user("ann"), 1);
    assert!(site.fake.refresh_is_alive(&newest), "nobody sent an earlier one");
}

async fn assert_not_saved(site: &Days) {
    let row = site.row(RowKind::Login, &id("ann")).await.unwrap();
    assert_eq!(row.version.revision, 1);
}

#[tokio::test]
async fn server_restarted_during_refresh_loses_nothing() {
    let server = Mutex::new(Some(Server::start()));
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::on(server.lock().unwrap().as_ref().unwrap(), seal);
        let site = Site::on(place.store().await);
        let stop = async || server.lock().unwrap().as_mut().unwrap().stop();
        let start = async || {
            let mut server = server.lock().unwrap();
            *server = server.take().map(Server::restart);
        };
        judge_a_bad_day(&site, stop, start, Some("could not claim")).await;
    }
}

#[tokio::test]
async fn connections_cut_during_refresh_lose_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::postgres(seal);
        let site = Site::on(place.store().await);
        judge_a_bad_day(&site, async || place.cut().await, async || {}, None).await;
        let saves = site.store.calls().into_iter().filter(|call| *call == StoreCall::Save);
        // Three logins and one refresh.
        assert_eq!(saves.count(), 4, "the store repeats it on another connection");
    }
}

/// As a server that was the primary one does: to be left for the one that is now.
#[tokio::test]
async fn read_only_server_during_refresh_loses_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::postgres(seal);
        let site = Site::on(place.store().await);
        let turn = async |to: &str| {
            let name = place.name();
            place.run(&format!("ALTER ROLE {name} SET default_transaction_read_only = {to}")).await;
        };
        let read_only = async || {
            turn("on").await;
            place.cut().await; // who connects from now on is read-only
        };
        judge_a_bad_day(&site, read_only, async || turn("off").await, Some("read-only")).await;
    }
}

/// Server processes that do not answer; until this is dropped.
struct Silence(Vec<i32>);

impl Silence {
    async fn of(place: &Place) -> Self {
        let Hand::Postgres(mut hand) = place.connect().await else {
            unreachable!("SQLite has no processes");
        };
        let processes = "SELECT pid FROM pg_stat_activity WHERE usename = $1";
        let name = place.name().to_owned();
        let processes = sqlx::query_scalar(processes).bind(name).fetch_all(&mut hand);
        let silence = Self(processes.await.unwrap());
        assert!(!silence.0.is_empty());
        silence.signal("-STOP");
        silence
    }

    fn signal(&self, signal: &str) {
        for process in &self.0 {
            let mut kill = std::process::Command::new("kill");
            assert!(kill.args([signal, &process.to_string()]).status().unwrap().success());
        }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

/// As where a network is cut, and nobody says so.
#[tokio::test]
async fn silent_connections_during_refresh_lose_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::postgres(seal);
        place.store().await;
        let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        let pool = pool.connect(place.url()).await.unwrap();
        let store = PostgresStore::on(pool).schema(place.name()).open_plaintext().await.unwrap();
        let site = Site::on(place.sealed(store, ring(1)));
        let silence = Mutex::new(None);
        let fall_silent = async || {
            *silence.lock().unwrap() = Some(Silence::of(&place).await);
            // The time that they have passes at once.
            tokio::time::pause();
        };
        judge_a_bad_day(&site, fall_silent, async || tokio::time::resume(), None).await;
        let saves = site.store.calls().into_iter().filter(|call| *call == StoreCall::Save);
        assert!(saves.count() > 1, "the first was not answered");
    }
}

#[tokio::test]
async fn read_only_file_during_refresh_loses_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::sqlite(seal);
        let (store, pool) = place.store_on_one_connection().await;
        let site = Site::on(store);
        let turn = async |pragma: &'static str| {
            sqlx::query(pragma).execute(&pool).await.unwrap();
        };
        judge_a_bad_day(
            &site,
            async || turn("PRAGMA query_only = ON").await,
            async || turn("PRAGMA query_only = OFF").await,
            Some("read-only"),
        )
        .await;
    }
}

#[tokio::test]
async fn file_locked_during_refresh_loses_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::sqlite(seal);
        let (store, _pool) = place.store_on_one_connection().await;
        let site = Site::on(store);
        let mut other = place.file().connect().await.unwrap();
        let kept = tokio::sync::Mutex::new(&mut other);
        let keep = async || {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut **kept.lock().await).await.unwrap();
        };
        let leave = async || {
            sqlx::query("ROLLBACK").execute(&mut **kept.lock().await).await.unwrap();
        };
        judge_a_bad_day(&site, keep, leave, Some("locked")).await;
    }
}

#[tokio::test]
async fn files_full_disk_loses_nothing() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::sqlite(seal);
        let (store, pool) = place.store_on_one_connection().await;
        let site = Site::on(store);
        let turn = async |pragma: &'static str| {
            sqlx::query(pragma).execute(&pool).await.unwrap();
        };
        judge_a_bad_day(
            &site,
            async || turn("PRAGMA max_page_count = 1").await, // which means as many as there are
            async || {
                assert_not_saved(&site).await;
                turn("PRAGMA max_page_count = 10000").await;
            },
            None,
        )
        .await;
    }
}

/// Where no small disk can be mounted, a trigger says what the server would.
#[tokio::test]
async fn servers_full_disk_loses_nothing() {
    let disk = SmallDisk::mount();
    let server = Server::start();
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::on(&server, seal);
        let site = Site::on(place.store().await);
        let name = place.name();
        if let Some(disk) = &disk {
            let folder = disk.folder(name);
            let space = format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display());
            assert!(server.psql("postgres", &space));
            place
                .run(&format!(
                    "ALTER TABLE {{tokens}} SET TABLESPACE {name}; \
                     CREATE TABLE {name}.filling (bytes TEXT) \
                     WITH (autovacuum_enabled = FALSE) TABLESPACE {name}; \
                     ALTER TABLE {name}.filling ALTER bytes SET STORAGE PLAIN"
                ))
                .await;
        }
        let (fill, clear) = if disk.is_some() {
            (
                format!(
                    "DO $$ DECLARE failures INT := 0; BEGIN WHILE failures < 20 LOOP \
                     BEGIN INSERT INTO {name}.filling VALUES (repeat('x', 4000)); \
                     EXCEPTION WHEN disk_full THEN failures := failures + 1; END; \
                     END LOOP; END $$"
                ),
                format!("DROP TABLE {name}.filling"),
            )
        } else {
            (
                format!(
                    "CREATE FUNCTION {name}.fail() RETURNS TRIGGER LANGUAGE plpgsql AS \
                     $$ BEGIN RAISE 'no space' USING ERRCODE = 'disk_full'; END $$; \
                     CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON {{tokens}} \
                     EXECUTE FUNCTION {name}.fail()"
                ),
                "DROP TRIGGER no_space ON {tokens}".to_owned(),
            )
        };
        let clear = async || {
            assert_not_saved(&site).await;
            place.run(&clear).await;
        };
        judge_a_bad_day(&site, async || place.run(&fill).await, clear, None).await;
    }
}

// --- Damage ---------------------------------------------------------------------------------

/// Something is done to ann's row, which nobody can read then, and nobody is to overwrite.
async fn judge_damage(place: &Place, damage: impl AsyncFnOnce(&Days), says: &str) {
    let site = Site::on(place.store().await);
    let (here, elsewhere) = (quick(&site), quick_on(&site, place.store().await));
    let (ann, bob) = (id("ann"), id("bob"));
    let others: Vec<_> = (0..20).map(|n| id(&format!("user {n}"))).collect();
    log_in(&site, &here, &[ann.clone(), bob.clone()]).await;
    log_in(&site, &here, &others).await;
    let login = site.login(&bob).await;
    let expected = refresh(&login);
    elsewhere.adopt(&bob, login).await.unwrap();
    let row = place.row(&ann).await;
    damage(&site).await;
    let damaged = place.row(&ann).await;
    assert_ne!(damaged, row);
    site.fake.clear_requests();

    // One who is looked up together with others hides none of them.
    let [ann, bob] = [&ann, &bob].map(|user| here.user(user));
    let live = access(&ann.token().await.unwrap());
    let mut changes = bob.subscribe();
    site.advance(BOUND);
    for user in &others {
        here.user(user).token().await.unwrap();
    }
    ann.token().await.unwrap();
    bob.token().await.unwrap();
    let change = tokio::time::timeout(BOUND / 4, changes.next()).await;
    assert_eq!(change, Ok(TokenEvent::NewToken), "one damaged row hides another");
    assert_eq!(refresh(&bob.token().await.unwrap()), expected);
    assert_eq!(access(&ann.token().await.unwrap()), live);

    // Nobody finds a token there, nor sends one, nor puts one in its place.
    site.advance(HOUR);
    assert_says(&ann.token().await.unwrap_err(), false, says);
    let restarted = quick(&site);
    assert_says(&restarted.user(ann.id()).token().await.unwrap_err(), false, says);
    assert_eq!(site.fake.count().total(), 0);
    for manager in [here, elsewhere, restarted] {
        assert!(manager.shutdown().await.is_empty());
    }
    assert_eq!(place.row(ann.id()).await, damaged);
}

fn places(seal: Seal) -> [Place; 2] {
    [Place::sqlite(seal), Place::postgres(seal)]
}

#[tokio::test]
async fn corrupted_row_hides_no_other() {
    for seal in [Seal::Plain, Seal::Sealed] {
        for place in places(seal) {
            let corrupt = "UPDATE {tokens} SET revision = -1 WHERE subject = 'ann'";
            judge_damage(&place, async |_| place.run(corrupt).await, "not as this crate writes it")
                .await;
        }
    }
    for place in places(Seal::Sealed) {
        let flip = async |_: &Days| {
            let (_, _, mut payload) = place.row(&id("ann")).await;
            *payload.last_mut().unwrap() ^= 1;
            place.overwrite(&id("ann"), payload).await;
        };
        judge_damage(&place, flip, "changed since it was sealed").await;
    }
}

#[tokio::test]
async fn row_under_unknown_key_hides_no_other() {
    for place in places(Seal::Sealed) {
        let log_in_elsewhere = async |site: &Days| {
            let elsewhere = quick_on(site, place.store_by(ring(2)).await.unwrap());
            log_in(site, &elsewhere, &[id("ann")]).await;
        };
        judge_damage(&place, log_in_elsewhere, "not in the key ring").await;
    }
}

#[tokio::test]
async fn moved_row_hides_no_other() {
    let from_bob = "UPDATE {tokens} SET (incarnation, revision, payload) = \
                    (SELECT incarnation, revision, payload FROM {tokens} WHERE subject = 'bob') \
                    WHERE subject = 'ann'";
    let ahead = "UPDATE {tokens} SET revision = revision + 1 WHERE subject = 'ann'";
    let back = "UPDATE {tokens} SET revision = revision - 1 WHERE subject = 'ann'";
    for (sql, says) in [
        (from_bob, "sealed for another user"),
        (ahead, "another revision: 1, and the row's is 2"),
        (back, "another revision: 1, and the row's is 0"),
    ] {
        for place in places(Seal::Sealed) {
            judge_damage(&place, async |_| place.run(sql).await, says).await;
        }
    }
}

#[tokio::test]
async fn unreadable_rows_stop_no_keep_alive() {
    for place in [Seal::Plain, Seal::Sealed].into_iter().flat_map(places) {
        let site = Site::on(place.store().await);
        let users: Vec<_> = (0..9).map(|n| id(&format!("user {n}"))).collect();
        log_in(&site, &quick(&site), &users).await;
        place.age(2 * HOUR).await;
        // Due for the longest time, and more than are looked at together.
        let damage = "UPDATE {tokens} SET revision = -1, due_at = due_at - 1000000 \
                      WHERE subject < 'user 6'";
        place.run(damage).await;
        site.advance(2 * HOUR);
        let builder = TokenManager::builder(site.hurdlr(), site.store.clone());
        let manager = builder.max_concurrent_refreshes(2).build().unwrap();
        let _walk = manager.keep_alive(HOUR);
        until("the others are renewed", async || {
            let mut renewed = true;
            for user in &users[6..] {
                renewed &= site.row(RowKind::Login, user).await.unwrap().version.revision == 2;
            }
            renewed
        })
        .await;
        assert_eq!(site.fake.count().total(), 3);
    }
}

#[tokio::test]
async fn garbled_row_is_mended_by_token_holder() {
    for place in places(Seal::Plain) {
        let site = Site::on(place.store().await);
        let manager = quick(&site);
        let ann = id("ann");
        log_in(&site, &manager, std::slice::from_ref(&ann)).await;
        place.overwrite(&ann, b"garbage".to_vec()).await;
        let error = quick(&site).user(&ann).token().await.unwrap_err();
        assert_says(&error, false, "not a token");
        assert_eq!(site.fake.count().total(), 0);
        assert_eq!(place.row(&ann).await.2, b"garbage");
        site.advance(HOUR);
        let newest = refresh(&manager.user(&ann).token().await.unwrap());
        assert_eq!(site.stored_refresh_token(&ann).await, Some(newest));
    }
}

// --- The end --------------------------------------------------------------------------------

async fn judge_a_shutdown_without_a_database(site: &Days, bad: impl AsyncFnOnce()) {
    let manager = quick(site);
    let [ann, bob, carol] = ["ann", "bob", "carol"].map(id);
    log_in(site, &manager, &[ann.clone(), bob]).await;
    let login = site.login(&carol).await;
    site.advance(HOUR);
    let gate = Gate::closed();
    site.fake.fault_next(Fault::HoldAfter(gate.clone()));
    let user = manager.user(&ann);
    let waiting = tokio::spawn(async move { user.token().await.map(drop) });
    site.fake.clear_requests();
    site.fake.arrived(1).await;
    bad().await;
    // The database is waited for as long as an answer may be, so the answer comes first.
    gate.open();
    manager.adopt(&carol, login).await.unwrap();
    waiting.await.unwrap().unwrap();
    // The time that is left for a last try passes.
    let (mut lost, ()) = tokio::join!(manager.shutdown(), async { site.advance(BOUND) });
    lost.sort_by(|one, other| one.user.cmp(&other.user));
    let users: Vec<_> = lost.into_iter().map(|lost| lost.user).collect();
    assert_eq!(users, [ann, carol]);
}

#[tokio::test]
async fn shutdown_without_database_names_lost_tokens() {
    for seal in [Seal::Plain, Seal::Sealed] {
        let place = Place::sqlite(seal);
        let (store, _pool) = place.store_on_one_connection().await;
        let mut other = place.file().connect().await.unwrap();
        judge_a_shutdown_without_a_database(&Site::on(store), async || {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        })
        .await;

        let mut server = Server::start();
        let site = Site::on(Place::on(&server, seal).store().await);
        judge_a_shutdown_without_a_database(&site, async || server.stop()).await;
    }
}

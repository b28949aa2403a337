//! What durable stores promise beyond the contract: to processes, to old and new tables, and to
//! whoever reads their errors.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hurdlr_oauth2::secrecy::{ExposeSecret, SecretBox};
use hurdlr_oauth2::store::{
    Claim, DueCursor, PostgresStore, Realm, Release, Rewrite, Row, RowKind, Save, SqliteStore,
    StoreKey, StoredToken, TokenStore, Version,
};
use hurdlr_oauth2::testing::{seed_row, store_contract};
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind, UserId};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use crate::postgres::Server;
use crate::support::everything_said;

const LEASE: Duration = Duration::from_secs(600);

/// What must not be in any error.
const SECRET: &str = "hidden-marker";

fn url_of(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

async fn sqlite_at(path: &Path) -> SqliteStore {
    let store = SqliteStore::at(url_of(path)).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// The store's tables are in a schema of their own, so that tests do not meet.
async fn postgres_in(server: &Server, schema: &str) -> PostgresStore {
    let store = PostgresStore::at(server.url()).schema(schema);
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    store
}

async fn pool_of(server: &Server) -> PgPool {
    PgPool::connect(&server.url()).await.unwrap()
}

async fn run(pool: &PgPool, sql: impl Into<String>) {
    let sql = AssertSqlSafe(sql.into());
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

fn key(subject: &str) -> StoreKey {
    let realm = Realm::new(ApiVersion::V4, "https://store.example.com", "client");
    let subject = UserId::new(subject).unwrap();
    StoreKey::new(Arc::new(realm), RowKind::Login, subject)
}

fn token() -> StoredToken {
    StoredToken {
        payload: SecretBox::new(Box::new(SECRET.into())),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
    }
}

/// Where the user is not known, the row is made under the holder's number.
fn claim(holder: u64, known: Option<Version>) -> Claim {
    Claim { holder, lease: LEASE, known, create: known.is_none().then_some(holder) }
}

async fn put(store: &impl TokenStore, key: &StoreKey) {
    seed_row(store, key, Version { incarnation: 7, revision: 1 }, token()).await;
}

async fn try_read(store: &impl TokenStore, key: &StoreKey) -> Result<Option<Row>, Error> {
    store.read(std::slice::from_ref(key)).await?.pop().unwrap()
}

async fn read(store: &impl TokenStore, key: &StoreKey) -> Option<Row> {
    try_read(store, key).await.unwrap()
}

async fn rewrite(
    store: &impl TokenStore,
    key: &StoreKey,
    version: Version,
    texts: [&str; 2],
) -> Result<bool, Error> {
    let [old, new] = texts.map(|text| SecretBox::new(Box::new(text.into())));
    let done = store.rewrite(vec![Rewrite { key: key.clone(), version, old, new }]).await?;
    Ok(done[0])
}

async fn due(store: &impl TokenStore, realm: &Arc<Realm>, limit: usize) -> Vec<StoreKey> {
    let rows = store.due(realm, None, limit).await.unwrap();
    rows.into_iter().map(|row| row.key.unwrap()).collect()
}

/// Does each call, and returns the errors.
async fn errors_of_all_calls(store: &impl TokenStore) -> Vec<(&'static str, Error)> {
    let key = key("ann");
    let version = Version { incarnation: 7, revision: 1 };
    let mut errors = Vec::new();
    let mut note = |call, error: Option<Error>| errors.extend(error.map(|error| (call, error)));
    note("read", try_read(store, &key).await.err());
    note("cold claim", store.claim(&key, claim(1, None)).await.err());
    note("claim", store.claim(&key, claim(1, Some(version))).await.err());
    note(
        "save",
        store
            .save(
                &key,
                Save { over: version, version: Version { revision: 2, ..version }, token: token() },
            )
            .await
            .err(),
    );
    let release = Release { refused: true, ..Release::default() };
    note("release", store.release(&key, version, 1, release).await.err());
    note("forget", store.forget(&key, Some(version)).await.err());
    note("forget", store.forget(&key, None).await.err());
    note("redeem", store.redeem(&[7; 32], LEASE).await.err());
    note("due", store.due(key.realm(), None, 10).await.err());
    note("scan", store.scan(key.realm(), None, 10).await.err());
    note("rewrite", rewrite(store, &key, version, [SECRET; 2]).await.err());
    errors
}

/// Of an error of a store: its kind, that it says what is the matter, and no secret.
fn assert_says(error: &Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
    let said = everything_said(error);
    assert!(said.contains(what), "no {what:?} in: {said}");
    assert!(!said.contains(SECRET), "{said}");
}

// --- Many users -----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_keeps_very_many_users() {
    let store = postgres_in(Server::shared(), "very_many").await;
    store_contract::many_users_are_kept(&Arc::new(store), very_many()).await;
}

/// On a disk of memory, since each save waits for the disk to have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_keeps_very_many_users() {
    let folder = memory_folder();
    let store = sqlite_at(&folder.path().join("tokens.db")).await;
    store_contract::many_users_are_kept(&Arc::new(store), very_many()).await;
}

fn memory_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn very_many() -> usize {
    std::env::var("STORE_USERS").map_or(20_000, |users| users.parse().unwrap())
}

/// So many that a walk of the whole table would be felt, put there past the store.
const A_MILLION: u64 = 1_000_000;

/// One in a thousand of them is due.
fn a_million_rows(table: &str, bytes: &str) -> String {
    let (now, hour) = (1_700_000_000_000_u64, 3_600_000);
    format!(
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {A_MILLION})
         INSERT INTO {table} (api_version, environment, client_id, kind, subject, incarnation,
         revision, payload, stamped_at, obtained_at, due_at, refused, in_flight)
         SELECT 'v4', 'https://store.example.com', 'client', 'login', 'user ' || n, n, 1, {bytes},
         {now}, {now}, CASE n % 1000 WHEN 7 THEN {now} + n ELSE {now} * 2 + {hour} END, FALSE, FALSE
         FROM n"
    )
}

/// Each call often enough that a prepared statement's lasting plan is used too.
async fn use_a_million(store: &impl TokenStore) {
    let realm = key("ann").realm().clone();
    for round in 0..8_u64 {
        let keys: Vec<_> = (0..1_000).map(|n| key(&format!("user {}", n * 999 + round))).collect();
        let rows = store.read(&keys).await.unwrap();
        for (row, n) in rows.into_iter().zip(0..) {
            assert_eq!(row.unwrap().unwrap().version.incarnation, n * 999 + round);
        }
        let rows = store.due(&realm, None, 3).await.unwrap();
        let next = store.due(&realm, Some(&rows[2].cursor), 3).await.unwrap();
        let due: Vec<_> = rows.into_iter().chain(next).map(|row| row.key.unwrap()).collect();
        let longest = [7, 1_007, 2_007, 3_007, 4_007, 5_007];
        assert_eq!(due, longest.map(|n| key(&format!("user {}", n + 1_000 * round))));
        let version = Version { incarnation: 7 + 1_000 * round, revision: 1 };
        let claimed = store.claim(&due[0], claim(1, Some(version))).await.unwrap();
        assert!(claimed.granted);
        store.release(&due[0], version, 1, Release::default()).await.unwrap();
        assert!(rewrite(store, &due[0], version, ["x", SECRET]).await.unwrap());
        let later = || StoredToken { due_in: LEASE, ..token() };
        assert!(
            store
                .save(
                    &due[0],
                    Save {
                        over: version,
                        version: Version { revision: 2, ..version },
                        token: later()
                    }
                )
                .await
                .unwrap()
        );
        let page = store.scan(&realm, Some(&due[0]), 1_000).await.unwrap();
        assert_eq!(page.len(), 1_000);
        let cold = key(&format!("cold {round}"));
        let made = store.claim(&cold, claim(1, None)).await.unwrap().row.unwrap().version;
        let at = Version { incarnation: 7, revision: 1 };
        assert!(store.save(&cold, Save { over: made, version: at, token: later() }).await.unwrap());
        assert!(!store.claim(&cold, claim(1, Some(at.next()))).await.unwrap().granted);
        let login = Version { incarnation: 8, revision: 1 };
        assert!(
            store.save(&cold, Save { over: at, version: login, token: later() }).await.unwrap()
        );
        let at = login;
        assert!(store.forget(&cold, Some(at)).await.unwrap());
    }
}

#[tokio::test]
async fn sqlite_serves_a_million_users() {
    let folder = memory_folder();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let rows = AssertSqlSafe(a_million_rows("hurdlr_tokens", "X'78'"));
    sqlx::raw_sql(rows).execute(&mut file).await.unwrap();
    use_a_million(&store).await;
}

/// How many rows were looked at is counted by the server.
#[tokio::test]
async fn postgres_finds_one_of_a_million_users_by_an_index() {
    let server = Server::shared();
    let store = postgres_in(server, "million").await;
    // One connection, so that those who use the table are the store's.
    let pool = PgPoolOptions::new().max_connections(1).connect(&server.url()).await.unwrap();
    run(&pool, a_million_rows("million.hurdlr_tokens", "'x'::bytea")).await;
    run(&pool, "ANALYZE million.hurdlr_tokens").await;
    let looked_at = async || {
        // So that other sessions' counts are there: they are when those have ended.
        let others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%\"million\".%' \
                      AND pid <> pg_backend_pid()";
        while sqlx::query_scalar::<_, i64>(others).fetch_one(&pool).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
        let rows = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables \
                    WHERE schemaname = 'million' AND relname = 'hurdlr_tokens'";
        sqlx::query_scalar::<_, i64>(rows).fetch_one(&pool).await.unwrap()
    };
    store.close().await;
    let before = looked_at().await;
    let store = PostgresStore::at(server.url()).schema("million").open_plaintext().await.unwrap();
    use_a_million(&store).await;
    store.close().await;
    let rows = looked_at().await - before;
    // Eight rounds read 1,000 rows and walk over as many. What is due again and again piles up old
    // versions of itself.
    assert!((16_000..32_000).contains(&rows), "{rows} rows were looked at");
}

// --- Processes ------------------------------------------------------------------------------

const PROCESSES: usize = 16;
const ROUNDS: usize = 30;

/// Another process of this test, told what to do by lines on its input.
struct Process {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Process {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durable::a_process_of_another_test", "--nocapture"])
            .env("STORE_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test harness writes too, and on the same line.
                if let Some((_, answer)) = line.split_once('@') {
                    let _ = sender.send(answer.to_owned());
                }
            }
        });
        Self { child, input, answers }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    fn answer(&self) -> String {
        let patience = Duration::from_secs(60);
        self.answers.recv_timeout(patience).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_process_of_another_test() {
    let Ok(url) = std::env::var("STORE_URL") else {
        return;
    };
    let store: Box<dyn TokenStore> = if url.starts_with("sqlite:") {
        let store = SqliteStore::at(url).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        Box::new(store)
    } else {
        let store = PostgresStore::at(url).schema("processes");
        let store = store.open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        Box::new(store)
    };
    println!("@ready");
    let holder = u64::from(std::process::id());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (what, subject) = line.split_once(' ').unwrap();
        let key = key(subject);
        match what {
            "claim" => {
                let rows = store.read(std::slice::from_ref(&key)).await.unwrap().pop();
                let row = rows.unwrap().unwrap().filter(|row| row.token.is_some());
                let known = row.map(|row| row.version);
                let claimed = store.claim(&key, claim(holder, known)).await.unwrap();
                println!("@{}", claimed.granted);
            }
            "save" => {
                let rows = store.read(std::slice::from_ref(&key)).await.unwrap().pop();
                let at = rows.unwrap().unwrap().unwrap().version;
                println!(
                    "@{}",
                    store
                        .save(&key, Save { over: at, version: at.next(), token: token() })
                        .await
                        .unwrap()
                );
            }
            _ => panic!("{what}?"),
        }
    }
}

/// They all open and migrate at once, too.
fn one_process_of_many_is_granted(url: &str) {
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| Process::start(url)).collect();
    for process in &processes {
        assert_eq!(process.answer(), "ready");
    }
    for round in 0..ROUNDS {
        // A cold user of this round, and one whose token all rounds renew.
        for subject in [format!("user {round}"), "ann".to_owned()] {
            for process in &mut processes {
                process.tell(&format!("claim {subject}"));
            }
            let granted: Vec<_> = processes.iter().map(Process::answer).collect();
            let holders: Vec<_> = (0..PROCESSES).filter(|at| granted[*at] == "true").collect();
            assert_eq!(holders.len(), 1, "round {round}, {subject}: {granted:?}");
            let holder = &mut processes[holders[0]];
            holder.tell(&format!("save {subject}"));
            assert_eq!(holder.answer(), "true");
        }
    }
}

#[test]
fn one_process_of_many_is_granted_a_claim_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    one_process_of_many_is_granted(&url_of(&folder.path().join("tokens.db")));
}

#[test]
fn one_process_of_many_is_granted_a_claim_in_postgres() {
    one_process_of_many_is_granted(&Server::shared().url());
}

/// What a process saved is there after it was killed in the middle of things.
#[tokio::test]
async fn sqlite_outlives_the_processes_that_write_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    for round in 0..5 {
        let mut process = Process::start(&url_of(&path));
        assert_eq!(process.answer(), "ready");
        let subject = format!("user {round}");
        process.tell(&format!("claim {subject}"));
        assert_eq!(process.answer(), "true");
        process.tell(&format!("save {subject}"));
        assert_eq!(process.answer(), "true");
        process.tell("claim somebody");
        drop(process);
        let token = read(&store, &key(&subject)).await.unwrap().token.unwrap();
        assert_eq!(token.payload.expose_secret(), SECRET.as_bytes());
    }
}

// --- Clocks ---------------------------------------------------------------------------------

/// Moves all times of all rows by so many milliseconds.
fn moved(table: &str, by: i64) -> String {
    format!(
        "UPDATE {table} SET stamped_at = stamped_at + {by}, obtained_at = obtained_at + {by}, \
         due_at = due_at + {by}, leased_until = leased_until + {by}, not_before = not_before + {by}"
    )
}

/// To a row that was stamped an hour from now, the clock was put back by an hour; or it was stamped
/// by another machine of a distributed engine.
async fn judge_a_clock_put_back(store: &impl TokenStore, put_back: impl AsyncFn()) {
    let ann = &key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    let (age, due_in) = (Duration::from_secs(100), LEASE);
    let aged = StoredToken { age, due_in, ..token() };
    seed_row(store, ann, Version { incarnation: 7, revision: 1 }, aged).await;
    assert!(store.claim(ann, claim(1, Some(at))).await.unwrap().granted);
    put_back().await;
    let judge = |row: Option<Row>| {
        let row = row.unwrap();
        for left in [row.leased_for, row.not_before].into_iter().flatten() {
            assert!(left <= LEASE && left > LEASE / 2, "{left:?} of {LEASE:?} is left");
        }
        let token = row.token.unwrap();
        assert!(token.age >= age && token.age < 2 * age, "{:?} old", token.age);
        assert!(token.due_in <= due_in && token.due_in > due_in / 2, "{:?}", token.due_in);
        (row.leased_for.is_some(), row.not_before.is_some())
    };
    assert_eq!(judge(read(store, ann).await), (true, false));
    let other = store.claim(ann, claim(2, Some(at))).await.unwrap();
    assert!(!other.granted, "the lease lives");
    assert_eq!(judge(other.row), (true, false));
    let again = store.claim(ann, claim(1, Some(at))).await.unwrap();
    assert!(again.granted, "its holder can claim again");
    assert_eq!(judge(again.row), (true, false));
    let release = Release { not_before: LEASE, ..Release::default() };
    store.release(ann, at, 1, release).await.unwrap();
    assert_eq!(judge(read(store, ann).await), (false, true));
    let other = store.claim(ann, claim(2, Some(at))).await.unwrap();
    assert!(!other.granted, "the pause goes on");
    assert_eq!(judge(other.row), (false, true));

    // A new token goes by the clock as it is now.
    let due = StoredToken { age, due_in: Duration::ZERO, ..token() };
    assert!(
        store
            .save(ann, Save { over: at, version: Version { revision: 2, ..at }, token: due })
            .await
            .unwrap()
    );
    assert_eq!(self::due(store, ann.realm(), 2).await, std::slice::from_ref(ann));
    assert!(store.claim(ann, claim(3, Some(at.next()))).await.unwrap().granted);
    // No pause is no pause.
    store.release(ann, at.next(), 3, Release::default()).await.unwrap();
    put_back().await;
    assert!(store.claim(ann, claim(4, Some(at.next()))).await.unwrap().granted);
    store.release(ann, at.next(), 4, Release::default()).await.unwrap();
    assert!(store.claim(ann, claim(5, Some(at.next()))).await.unwrap().granted);
}

#[tokio::test]
async fn no_row_tells_more_than_it_was_given_though_the_clock_was_put_back() {
    const HOUR: i64 = 3_600_000;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let options = SqliteConnectOptions::new().filename(&path);
    judge_a_clock_put_back(&store, async || {
        let mut file = options.connect().await.unwrap();
        let sql = AssertSqlSafe(moved("hurdlr_tokens", HOUR));
        sqlx::query(sql).execute(&mut file).await.unwrap();
        file.close().await.unwrap();
    })
    .await;

    let server = Server::shared();
    let store = postgres_in(server, "put_back").await;
    let pool = pool_of(server).await;
    judge_a_clock_put_back(&store, async || {
        run(&pool, moved("put_back.hurdlr_tokens", HOUR)).await;
    })
    .await;
}

/// The statement of who comes second may have begun long before that of who comes first.
#[tokio::test]
async fn who_waited_for_another_is_told_no_more_than_the_lease() {
    let server = Server::shared();
    let store = postgres_in(server, "waited").await;
    let pool = pool_of(server).await;
    let ann = key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    put(&store, &ann).await;
    let mut first = pool.begin().await.unwrap();
    let lock = "SELECT FROM waited.hurdlr_tokens FOR UPDATE";
    sqlx::query(lock).execute(&mut *first).await.unwrap();
    let second = tokio::spawn({
        let (store, ann) = (store.clone(), ann.clone());
        async move { store.claim(&ann, claim(2, Some(at))).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND query LIKE '%\"waited\".%' AND clock_timestamp() > query_start + '50 ms'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() == 0 {}
    let take = "UPDATE waited.hurdlr_tokens SET holder = 1, stamped_at = now.ms, \
                leased_until = now.ms + 600000 FROM (SELECT CAST(EXTRACT(EPOCH FROM \
                clock_timestamp()) * 1000 AS BIGINT) AS ms) AS now";
    sqlx::query(take).execute(&mut *first).await.unwrap();
    first.commit().await.unwrap();
    let claimed = second.await.unwrap().unwrap();
    assert!(!claimed.granted);
    let left = claimed.row.unwrap().leased_for.unwrap();
    assert!(left <= LEASE, "{left:?} of {LEASE:?}");
}

// --- Migrations -----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_can_migrate_at_once_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&folder.path().join("tokens.db"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let url = url.clone();
        tasks.spawn(async move {
            let store = SqliteStore::at(url).open_plaintext().await.unwrap();
            store.migrate().await.unwrap();
            store.migrate().await.unwrap();
            store.due(key("ann").realm(), None, 1).await.unwrap();
        });
        tasks.spawn(async move {
            let store = PostgresStore::at(Server::shared().url()).schema("at_once");
            let store = store.open_plaintext().await.unwrap();
            store.migrate().await.unwrap();
            store.migrate().await.unwrap();
            store.due(key("ann").realm(), None, 1).await.unwrap();
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

#[tokio::test]
async fn tables_of_a_later_release_are_refused() {
    let later = "of a later release";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let newer = "INSERT INTO hurdlr_schema (version) VALUES (1000)";
    sqlx::query(newer).execute(&mut file).await.unwrap();
    assert_says(&store.migrate().await.unwrap_err(), later);
    let opened = SqliteStore::at(url_of(&path)).open_plaintext().await;
    assert_says(&opened.unwrap_err(), later);

    let server = Server::shared();
    let store = postgres_in(server, "later").await;
    let pool = pool_of(server).await;
    let newer = "INSERT INTO later.hurdlr_schema (version) VALUES (1000)";
    run(&pool, newer).await;
    assert_says(&store.migrate().await.unwrap_err(), later);
    let opened = PostgresStore::on(pool).schema("later").open_plaintext().await;
    assert_says(&opened.unwrap_err(), later);
}

#[tokio::test]
async fn stores_of_two_prefixes_and_schemas_do_not_meet() {
    async fn judge(one: impl TokenStore, other: impl TokenStore) {
        let ann = key("ann");
        put(&one, &ann).await;
        assert!(read(&other, &ann).await.is_none());
        for store in [&one as &dyn TokenStore, &other] {
            assert!(store.redeem(&[7; 32], LEASE).await.unwrap());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let one = sqlite_at(&path).await;
    let other = SqliteStore::at(url_of(&path)).table_prefix("other_");
    let other = other.open_plaintext().await.unwrap();
    other.migrate().await.unwrap();
    judge(one, other).await;

    let server = Server::shared();
    let one = postgres_in(server, "one").await;
    judge(one.clone(), postgres_in(server, "another").await).await;
    let other = PostgresStore::at(server.url()).schema("one").table_prefix("other_");
    let other = other.open_plaintext().await.unwrap();
    other.migrate().await.unwrap();
    one.forget(&key("ann"), None).await.unwrap();
    put(&other, &key("ann")).await;
    assert!(read(&one, &key("ann")).await.is_none());
}

/// Who may use the tables and create none can migrate where there is nothing to do.
#[tokio::test]
async fn an_app_without_the_right_to_create_can_use_what_is_there() {
    let server = Server::shared();
    postgres_in(server, "granted").await;
    run(
        &pool_of(server).await,
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA granted TO app; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA granted TO app",
    )
    .await;
    let url = server.url().replace("test@", "app@");
    let store = PostgresStore::at(&url).schema("granted");
    let store = store.open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    assert!(errors_of_all_calls(&store).await.is_empty());

    let store = PostgresStore::at(&url).schema("forbidden");
    let store = store.open_plaintext().await.unwrap();
    assert_says(&store.migrate().await.unwrap_err(), "the user lacks a right");
}

#[tokio::test]
async fn a_store_that_was_never_migrated_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&folder.path().join("tokens.db"));
    let sqlite = SqliteStore::at(url).open_plaintext().await.unwrap();
    let postgres = PostgresStore::at(Server::shared().url()).schema("nothing");
    let postgres = postgres.open_plaintext().await.unwrap();
    for errors in [errors_of_all_calls(&sqlite).await, errors_of_all_calls(&postgres).await] {
        assert_eq!(errors.len(), 11, "{errors:?}");
        for (_, error) in &errors {
            assert_says(error, "migrate()");
        }
    }
}

// --- Failures -------------------------------------------------------------------------------

#[tokio::test]
async fn calls_after_the_server_stopped_fail_and_recover_with_it() {
    let mut server = Server::start();
    let store = postgres_in(&server, "stopped").await;
    assert!(errors_of_all_calls(&store).await.is_empty());
    server.stop();
    let begun = Instant::now();
    let error = try_read(&store, &key("ann")).await.unwrap_err();
    assert_says(&error, "could not read");
    assert!(begun.elapsed() < Duration::from_secs(20), "not for ever");
    let opened = PostgresStore::at(server.url()).open_plaintext().await;
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Store);

    let _server = server.restart();
    assert!(errors_of_all_calls(&store).await.is_empty());
}

/// Connections that the server ended cost no call, also none that cannot be repeated blindly.
#[tokio::test]
async fn connections_that_were_cut_are_replaced() {
    let server = Server::start();
    let store = postgres_in(&server, "cut").await;
    let others = "FROM pg_stat_activity \
                  WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    // As many connections as there can be, all of them idle and then ended.
    let cut = async || {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let store = store.clone();
            tasks.spawn(async move { store.read(&[key("ann")]).await.map(drop) });
        }
        tasks.join_all().await.into_iter().for_each(Result::unwrap);
        let sql = format!("SELECT pg_terminate_backend(pid) {others}");
        assert!(server.psql("postgres", &sql));
        // Fails for as long as there are others.
        let sql = format!("SELECT 1 / (CASE count(*) WHEN 0 THEN 1 ELSE 0 END) {others}");
        while !server.psql("postgres", &sql) {}
    };
    let ann = key("ann");
    let at = Version { incarnation: 7, revision: 1 };
    cut().await;
    assert!(read(&store, &ann).await.is_none());
    cut().await;
    put(&store, &ann).await;
    cut().await;
    assert!(store.claim(&ann, claim(1, Some(at))).await.unwrap().granted);
    cut().await;
    store.release(&ann, at, 1, Release::default()).await.unwrap();
    cut().await;
    assert!(store.save(&ann, Save { over: at, version: at.next(), token: token() }).await.unwrap());
    cut().await;
    assert!(rewrite(&store, &ann, at.next(), [SECRET, "other"]).await.unwrap());
    cut().await;
    assert!(!store.forget(&ann, Some(at)).await.unwrap());
    cut().await;
    assert!(store.forget(&ann, None).await.unwrap());
    for first in [true, false] {
        cut().await;
        assert_eq!(store.redeem(&[7; 32], LEASE).await.unwrap(), first);
    }
}

/// Nothing to hold open, and one journey each: as the server sees it.
#[tokio::test]
async fn a_claim_and_a_save_are_one_statement_each() {
    let server = Server::shared();
    postgres_in(server, "counted").await;
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("log_statement", "all")]);
    let pool = PgPool::connect_with(options).await.unwrap();
    let store = PostgresStore::on(pool).schema("counted").open_plaintext().await.unwrap();
    let sent = || -> Vec<String> {
        let log = server.log();
        // A statement, or the beginning or end of a transaction.
        let of_the_store = |line: &&str| line.contains("\"counted\".") || line.contains("BEGIN");
        log.lines().filter(of_the_store).map(Into::into).collect()
    };
    let before = sent().len();
    let ann = key("ann");
    let cold = store.claim(&ann, claim(1, None)).await.unwrap();
    assert_eq!(sent().len(), before + 1, "{:?}", &sent()[before..]);
    let made = cold.row.unwrap().version;
    assert!(
        store
            .save(
                &ann,
                Save { over: made, version: Version { revision: 1, ..made }, token: token() }
            )
            .await
            .unwrap()
    );
    assert_eq!(sent().len(), before + 2, "{:?}", &sent()[before..]);
    // Also where the row would be made if it were gone.
    let again = Claim { create: Some(8), ..claim(1, Some(made.next())) };
    assert!(store.claim(&ann, again).await.unwrap().granted);
    assert!(
        store
            .save(
                &ann,
                Save {
                    over: made.next(),
                    version: Version { revision: 2, ..made.next() },
                    token: token()
                }
            )
            .await
            .unwrap()
    );
    assert_eq!(sent().len(), before + 4, "{:?}", &sent()[before..]);
    // A claim that is not granted looks at the row by a second one.
    assert!(!store.claim(&ann, claim(2, Some(made))).await.unwrap().granted);
    assert_eq!(sent().len(), before + 6, "{:?}", &sent()[before..]);
}

/// As a database does that forbids what one after the other could not have done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_serialization_failure_is_tried_again() {
    let server = Server::shared();
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("default_transaction_isolation", "serializable")]);
    let pool = PgPoolOptions::new().max_connections(16).connect_with(options);
    let store = PostgresStore::on(pool.await.unwrap()).schema("serial");
    let store = Arc::new(store.open_plaintext().await.unwrap());
    store.migrate().await.unwrap();
    store_contract::one_of_many_creations_is_granted(&store).await;
    store_contract::one_of_many_claims_is_granted(&store).await;
    store_contract::one_of_many_saves_is_done(&store).await;
    store_contract::one_of_many_logins_is_saved(&store).await;
    store_contract::state_is_redeemed_once(&store).await;
}

#[tokio::test]
async fn what_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    sqlite_at(&path).await;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .synchronous(SqliteSynchronous::Full)
        .read_only(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let opened = SqliteStore::on(pool).open_plaintext().await;
    assert_says(&opened.unwrap_err(), "read-only");

    let server = Server::shared();
    postgres_in(server, "read_only").await;
    let options: PgConnectOptions = server.url().parse().unwrap();
    let options = options.options([("default_transaction_read_only", "on")]);
    let pool = PgPool::connect_with(options).await.unwrap();
    let opened = PostgresStore::on(pool).schema("read_only").open_plaintext().await;
    assert_says(&opened.unwrap_err(), "the server is read-only");
    let url = format!("{}&options[default_transaction_read_only]=on", server.url());
    let opened = PostgresStore::at(url).schema("read_only").open_plaintext().await;
    assert_says(&opened.unwrap_err(), "the server is read-only");

    // One that turns read-only.
    let options = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = options.connect(&server.url()).await.unwrap();
    let store = PostgresStore::on(pool.clone()).schema("read_only").open_plaintext().await.unwrap();
    run(&pool, "SET default_transaction_read_only = on").await;
    assert_says(&store.migrate().await.unwrap_err(), "the server is read-only");
    // The connection is to blame, and another can write.
    put(&store, &key("ann")).await;
}

/// Tables of these names, but not as this crate makes them.
#[tokio::test]
async fn rows_of_other_types_are_errors() {
    let wrong = |schema: &str, types: [&str; 2]| {
        let [number, bytes] = types;
        format!(
            "DROP TABLE {schema}hurdlr_tokens; CREATE TABLE {schema}hurdlr_tokens (
             api_version TEXT, environment TEXT, client_id TEXT, kind TEXT, subject TEXT,
             incarnation {number}, revision {number}, payload {bytes}, stamped_at BIGINT, obtained_at BIGINT,
             due_at BIGINT, holder BIGINT, leased_until BIGINT, not_before BIGINT,
             refused BOOLEAN, in_flight BOOLEAN,
             PRIMARY KEY (api_version, environment, client_id, kind, subject));
             INSERT INTO {schema}hurdlr_tokens VALUES ('v4', 'https://store.example.com',
             'client', 'login', 'ann', '{SECRET}', '1', '{SECRET}', 0, 0, 0, NULL, NULL, NULL,
             FALSE, FALSE)"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let sql = AssertSqlSafe(wrong("", ["TEXT", "TEXT"]));
    sqlx::raw_sql(sql).execute(&mut file).await.unwrap();
    let error = try_read(&store, &key("ann")).await.unwrap_err();
    assert_says(&error, "not as this crate writes it");

    let server = Server::shared();
    let store = postgres_in(server, "wrong").await;
    let pool = pool_of(server).await;
    run(&pool, wrong("wrong.", ["TEXT", "TEXT"])).await;
    let error = try_read(&store, &key("ann")).await.unwrap_err();
    assert_says(&error, "not as this crate writes it");
    for (_, error) in errors_of_all_calls(&store).await {
        assert_says(&error, "could not");
    }

    // A number that cannot be.
    let store = postgres_in(server, "negative").await;
    put(&store, &key("ann")).await;
    run(&pool, "UPDATE negative.hurdlr_tokens SET revision = -1").await;
    let error = try_read(&store, &key("ann")).await.unwrap_err();
    assert_says(&error, "column revision");
}

/// A row that cannot be read is an error of its own, and left as it is; no other row is worse off.
async fn judge_a_corrupted_row(store: &impl TokenStore, column: &str) {
    let (ann, bob) = (&key("ann"), &key("bob"));
    let at = Version { incarnation: 7, revision: 1 };
    let rows = store.read(&[ann.clone(), bob.clone(), ann.clone()]).await.unwrap();
    let [first, bobs, last] = <[_; 3]>::try_from(rows).unwrap();
    assert_eq!(bobs.unwrap().unwrap().version, at, "a row that can be read is read");
    let page = store.scan(ann.realm(), None, 10).await.unwrap();
    let [(met, scanned), (other, bobs)] = <[_; 2]>::try_from(page).unwrap();
    assert_eq!((&met, &other, bobs.unwrap().version), (ann, bob, at));
    for error in [
        first.unwrap_err(),
        last.unwrap_err(),
        scanned.unwrap_err(),
        store.claim(ann, claim(1, Some(at))).await.unwrap_err(),
        store.claim(ann, claim(1, None)).await.unwrap_err(),
    ] {
        assert_says(&error, "not as this crate writes it");
        assert!(!error.is_temporary());
        assert!(everything_said(&error).contains(column), "{error:?}");
    }
    assert!(!store.save(ann, Save { over: at, version: at.next(), token: token() }).await.unwrap());
    assert!(!rewrite(store, ann, at, [SECRET; 2]).await.unwrap());
    assert!(!store.forget(ann, Some(at)).await.unwrap());
    let all = Release { not_before: LEASE, refused: true, in_flight: true };
    store.release(ann, at, 1, all).await.unwrap();

    assert!(store.claim(bob, claim(1, Some(at))).await.unwrap().granted);
    assert!(
        store
            .save(bob, Save { over: at, version: Version { revision: 2, ..at }, token: token() })
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_corrupted_row_is_an_error_and_not_overwritten() {
    let corrupt = "SET revision = -1 WHERE subject = 'ann'";
    let kept = "FROM hurdlr_tokens WHERE subject = 'ann' AND revision = -1 AND NOT refused \
                AND holder IS NULL";

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    for user in ["ann", "bob"] {
        put(&store, &key(user)).await;
    }
    let sql = AssertSqlSafe(format!("UPDATE hurdlr_tokens {corrupt}"));
    sqlx::query(sql).execute(&mut file).await.unwrap();
    judge_a_corrupted_row(&store, "revision").await;
    let sql = AssertSqlSafe(format!("SELECT payload {kept}"));
    let payload: Vec<u8> = sqlx::query_scalar(sql).fetch_one(&mut file).await.unwrap();
    assert_eq!(payload, SECRET.as_bytes());

    let server = Server::shared();
    let store = postgres_in(server, "corrupted").await;
    for user in ["ann", "bob"] {
        put(&store, &key(user)).await;
    }
    let pool = pool_of(server).await;
    run(&pool, format!("UPDATE corrupted.hurdlr_tokens {corrupt}")).await;
    judge_a_corrupted_row(&store, "revision").await;
    let sql = AssertSqlSafe(format!("SELECT payload {}", kept.replace("FROM ", "FROM corrupted.")));
    let payload: Vec<u8> = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    assert_eq!(payload, SECRET.as_bytes());
}

/// Rows of a later release's kinds are skipped. Those without a valid id are errors of their own
/// items, which a walk moves past.
async fn judge_rows_nobody_can_address(store: &impl TokenStore, users: &[StoreKey]) {
    let realm = users[0].realm();
    for page in [1, 2, 3, 10] {
        let (mut met, mut nameless, mut after) = (Vec::new(), 0, None::<DueCursor>);
        loop {
            let rows = store.due(realm, after.as_ref(), page).await.unwrap();
            let is_last = rows.len() < page;
            after = rows.last().map(|row| row.cursor.clone());
            for row in rows {
                match row.key {
                    Ok(key) => met.push(key),
                    Err(error) => {
                        assert_says(&error, "no valid user id");
                        assert!(!error.is_temporary());
                        nameless += 1;
                    }
                }
            }
            if is_last {
                break;
            }
        }
        assert_eq!((&met[..], nameless), (&users[3..], 1), "due, {page} at a time");

        let (mut met, mut nameless, mut after) = (Vec::new(), 0, None);
        loop {
            let rows = store.scan(realm, after.as_ref(), page).await.unwrap();
            let is_last = rows.len() < page;
            after = rows.last().map(|(key, _)| key.clone());
            for (key, row) in rows {
                match row {
                    Ok(_) => met.push(key),
                    Err(error) => {
                        assert_says(&error, "no valid user id");
                        assert_eq!(key.subject().as_str(), "\n", "as the table has it");
                        if page == 10 {
                            assert!(store.forget(&key, None).await.unwrap(), "it can be removed");
                        }
                        nameless += 1;
                    }
                }
            }
            if is_last {
                break;
            }
        }
        assert_eq!((&met[..], nameless), (&users[3..], 1), "scan, {page} at a time");
    }
}

#[tokio::test]
async fn rows_nobody_can_address_end_no_walk() {
    // All due in the same instant.
    const CHANGES: [&str; 3] = [
        "SET kind = 'another' WHERE subject < 'user 2'",
        "SET subject = char(10) WHERE subject = 'user 2'",
        "SET due_at = 1000",
    ];
    let users: Vec<_> = (0..6).map(|n| key(&format!("user {n}"))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    for user in &users {
        put(&store, user).await;
    }
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    for change in CHANGES {
        let sql = AssertSqlSafe(format!("UPDATE hurdlr_tokens {change}"));
        sqlx::query(sql).execute(&mut file).await.unwrap();
    }
    judge_rows_nobody_can_address(&store, &users).await;

    let server = Server::shared();
    let store = postgres_in(server, "nobody").await;
    for user in &users {
        put(&store, user).await;
    }
    for change in CHANGES {
        let change = change.replace("char(10)", "chr(10)");
        run(&pool_of(server).await, format!("UPDATE nobody.hurdlr_tokens {change}")).await;
    }
    judge_rows_nobody_can_address(&store, &users).await;
}

/// A claim that is not granted leaves PostgreSQL's log alone, to the byte.
#[tokio::test]
async fn ungranted_claims_write_no_wal() {
    let server = Server::start();
    let store = postgres_in(&server, "ungranted").await;
    let pool = pool_of(&server).await;
    let at = Version { incarnation: 7, revision: 1 };
    let [leased, paused, refused] = ["leased", "paused", "refused"].map(key);
    let pause = Release { not_before: LEASE, ..Release::default() };
    let refusal = Release { refused: true, ..Release::default() };
    for user in [&leased, &paused, &refused] {
        put(&store, user).await;
        assert!(store.claim(user, claim(1, Some(at))).await.unwrap().granted);
    }
    store.release(&paused, at, 1, pause).await.unwrap();
    store.release(&refused, at, 1, refusal).await.unwrap();
    let claims = [
        (&leased, Some(at)),
        (&leased, Some(at.next())),
        (&leased, None),
        (&paused, Some(at)),
        (&refused, Some(at)),
    ];
    let place = "SELECT pg_current_wal_insert_lsn()::text";
    let place = async || sqlx::query_scalar::<_, String>(place).fetch_one(&pool).await.unwrap();
    // The server writes to its log now and then, so that one quiet try is enough.
    let mut quiet = false;
    for _ in 0..20 {
        let before = place().await;
        for (user, known) in claims {
            let claim = Claim { create: Some(9), ..claim(2, known) };
            assert!(!store.claim(user, claim).await.unwrap().granted);
        }
        quiet = place().await == before;
        if quiet {
            break;
        }
    }
    assert!(quiet, "each time, claims that were not granted were written to the log");
}

/// What was saved stays, and can be read; the rest is told.
async fn judge_a_full_disk(store: &impl TokenStore, users: &[StoreKey]) {
    let at = Version { incarnation: 7, revision: 1 };
    let much = || StoredToken { payload: SecretBox::new(Box::new(vec![0; 65_536])), ..token() };
    for user in users {
        let error = store
            .save(user, Save { over: at, version: Version { revision: 2, ..at }, token: much() })
            .await
            .unwrap_err();
        assert_says(&error, "disk is full");
    }
    for row in store.read(users).await.unwrap() {
        let row = row.unwrap().unwrap();
        assert_eq!(row.version, at);
        assert_eq!(row.token.unwrap().payload.expose_secret(), SECRET.as_bytes());
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let users = [key("ann"), key("bob")];
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("tokens.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("max_page_count", "16");
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let store = SqliteStore::on(pool).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    for user in &users {
        put(&store, user).await;
    }
    judge_a_full_disk(&store, &users).await;

    // No disk of the server's can be filled without its administrator, who says it by this code.
    let server = Server::shared();
    let store = postgres_in(server, "full").await;
    for user in &users {
        put(&store, user).await;
    }
    run(
        &pool_of(server).await,
        "CREATE FUNCTION \"full\".fail() RETURNS TRIGGER LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'could not extend file: No space left on device' \
         USING ERRCODE = 'disk_full'; END $$; \
         CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON \"full\".hurdlr_tokens \
         EXECUTE FUNCTION \"full\".fail()",
    )
    .await;
    judge_a_full_disk(&store, &users).await;
}

/// A constraint that an administrator added is broken by a row whose values the server quotes.
#[tokio::test]
async fn no_error_quotes_a_row() {
    let server = Server::shared();
    let store = postgres_in(server, "quoting").await;
    run(
        &pool_of(server).await,
        "ALTER TABLE quoting.hurdlr_tokens ADD CHECK (payload IS NULL OR length(payload) < 3); \
         ALTER TABLE quoting.hurdlr_tokens ADD CHECK (subject <> 'ann')",
    )
    .await;
    let hex = "68696464656e"; // of "hidden", as the server would quote it
    let errors = errors_of_all_calls(&store).await;
    assert!(errors.iter().any(|(call, _)| *call == "cold claim"));
    for (_, error) in errors {
        let said = everything_said(&error);
        assert!(!said.contains(SECRET) && !said.contains(hex), "{said}");
        assert!(!said.contains("ann"), "{said}");
    }
}

#[tokio::test]
async fn no_error_shows_the_urls_password() {
    for url in [
        format!("postgres://app:{SECRET}@127.0.0.1:1/app"),
        format!("postgres://app:{SECRET}@127.0.0.1:port/app"),
        format!("postgres://app:{SECRET}@127.0.0.1/app?sslmode={SECRET}"),
        format!("postgres://app@127.0.0.1/app?sslpassword={SECRET}"),
        format!("postgres://app:{SECRET}#x@127.0.0.1/app"),
        format!("mysql://app:{SECRET}@127.0.0.1/app"),
        SECRET.to_owned(),
    ] {
        let builder = PostgresStore::at(&url);
        assert!(!format!("{builder:?}").contains(SECRET));
        let error = builder.open_plaintext().await.unwrap_err();
        let said = everything_said(&error);
        assert!(!said.contains(SECRET), "{said}");
        let error = SqliteStore::at(&url).open_plaintext().await.unwrap_err();
        let said = everything_said(&error);
        assert!(!said.contains(SECRET), "{said}");
    }
}

// --- The file -------------------------------------------------------------------------------

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("one/two");
    let path = made.join("tokens.db");
    let store = sqlite_at(&path).await;
    put(&store, &key("ann")).await;
    let bits = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(bits(&folder.path().join("one")), 0o700);
    assert_eq!(bits(&made), 0o700);
    let files: Vec<_> =
        std::fs::read_dir(&made).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "the file, its -wal and its -shm: {files:?}");
    for file in files {
        assert_eq!(bits(&file), 0o600, "{file:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_others_may_open_is_refused() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = at("tokens.db");
    let store = sqlite_at(&path).await;
    put(&store, &key("ann")).await;
    let open = || SqliteStore::at(url_of(&path)).open_plaintext();
    for (name, mode, reason) in [
        ("tokens.db", 0o644, "mode 644"),
        ("tokens.db", 0o620, "mode 620"),
        ("tokens.db-wal", 0o640, "tokens.db-wal (mode 640)"),
        ("tokens.db-shm", 0o602, "tokens.db-shm (mode 602)"),
    ] {
        set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        assert_says(&open().await.unwrap_err(), reason);
        set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
    }
    set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    assert_says(&open().await.unwrap_err(), "its directory has mode 777");
    for mode in [0o1777, 0o755] {
        set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let opened = open().await.unwrap();
        assert!(read(&opened, &key("ann")).await.is_some(), "nothing was changed");
    }
}

#[tokio::test]
async fn the_file_survives_a_crash_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    sqlite_at(&path).await;
    let mut file = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let journal = sqlx::query_scalar::<_, String>("PRAGMA journal_mode");
    assert_eq!(journal.fetch_one(&mut file).await.unwrap(), "wal");

    // An app's own pool has to be as safe.
    for (journal, synchronous, busy, reason) in [
        (SqliteJournalMode::Delete, SqliteSynchronous::Full, 5, "WAL"),
        (SqliteJournalMode::Wal, SqliteSynchronous::Normal, 5, "synchronous=FULL"),
        (SqliteJournalMode::Wal, SqliteSynchronous::Full, 0, "busy_timeout"),
    ] {
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join(reason))
            .create_if_missing(true)
            .journal_mode(journal)
            .synchronous(synchronous)
            .busy_timeout(Duration::from_secs(busy));
        let pool = SqlitePool::connect_with(options).await.unwrap();
        let opened = SqliteStore::on(pool).open_plaintext().await;
        assert_says(&opened.unwrap_err(), reason);
    }
    file.close().await.unwrap();
}

#[tokio::test]
async fn a_place_that_cannot_be_had_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(
        at("file"),
        "no database, but some text of more than a hundred bytes. ".repeat(9),
    )
    .unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(at("file"), PermissionsExt::from_mode(0o600)).unwrap();
    }
    for (url, reason) in [
        (url_of(&at("file")), "not a SQLite database"),
        (url_of(&at("file/tokens.db")), "cannot be opened"),
        (url_of(folder.path()), "not a file"),
        (url_of(Path::new("/proc/none/tokens.db")), "cannot be opened"),
        (format!("{}?mode=rw", url_of(&at("none.db"))), "cannot be opened"),
    ] {
        let opened = SqliteStore::at(url).open_plaintext().await;
        assert_says(&opened.unwrap_err(), reason);
    }
    for (url, reason) in [
        ("sqlite::memory:", "MemoryStore"),
        ("sqlite://tokens.db?mode=memory", "MemoryStore"),
        ("sqlite://tokens.db?mode=ro", "mode=rw"),
        ("sqlite://tokens.db?immutable=1", "mode=rw"),
        ("sqlite:", "form"),
        ("tokens.db", "form"),
        ("postgres://localhost/tokens", "form"),
    ] {
        let error = SqliteStore::at(url).open_plaintext().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
        assert!(error.to_string().contains(reason), "{url}: {error}");
    }
    let bad = SqliteStore::at(url_of(&at("t.db"))).table_prefix("a; drop");
    let error = bad.open_plaintext().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("table_prefix"));
}

#[tokio::test]
async fn a_damaged_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    for user in 0..100 {
        let key = key(&format!("user {user}"));
        put(&store, &key).await;
    }
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let errors = match SqliteStore::at(url_of(&path)).open_plaintext().await {
        Ok(store) => errors_of_all_calls(&store).await,
        Err(error) => vec![("open", error)],
    };
    assert!(!errors.is_empty());
    for (_, error) in &errors {
        assert_says(error, "damaged");
    }
}

/// Another process that keeps the file to itself makes calls fail after the busy timeout, and no
/// longer.
#[tokio::test]
async fn a_locked_file_is_waited_for_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    let mut other = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let ann = key("ann");
    let error = store.claim(&ann, claim(1, None)).await.unwrap_err();
    assert_says(&error, "locked");
    assert!(read(&store, &ann).await.is_none(), "reading goes on");
    let ((), claimed) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            held.rollback().await.unwrap();
        },
        store.claim(&ann, claim(1, None))
    );
    assert!(claimed.unwrap().granted, "once the other is done");
}

//! Databases that fail, and what stands in them.

use std::fs;
use std::process::Command;

use futures_util::future::join_all;
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{
    KeyRing, MemoryStore, PostgresStore, RowKind, Sealed, SealingKey, SqliteStore, StoreKey,
    TokenStore, UserHashKey,
};
use hurdlr_oauth2::testing::{ErrorStyle, FaultyStore, ManualClock, StoreCall, StoreFault};
use hurdlr_oauth2::{ApiVersion, TokenManager};
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use super::provider::{LIFE, Provider, user};
use super::types::{ring, user_hash_key};
use super::{DATABASE_PASSWORD, Sweep};
use crate::postgres::{Server, binaries};

pub(super) async fn fail_all(sweep: &Sweep) {
    sweep.secret("payload", PAYLOAD);
    // Side by side, since a store that fails is asked again for seconds.
    tokio::join!(of_any(sweep), of_payloads(sweep), of_sqlite(sweep));
    of_postgres(sweep).await;
}

/// Whatever a store may fail at, before it took effect and after.
async fn of_any(sweep: &Sweep) {
    use StoreCall::{Claim, Forget, Read, Redeem, Release, Save};
    let calls = [Read, Claim, Save, Release, Forget, Redeem];
    let faults = [StoreFault::Before, StoreFault::After];
    let all = calls.iter().flat_map(|call| faults.map(|fault| (*call, fault)));
    join_all(all.map(async |(call, fault)| {
        let store = FaultyStore::new(Sealed::new(MemoryStore::new(), ring()));
        let failing = store.clone();
        let fail = async move || failing.plan(move |it| (it == call).then_some(fault));
        use_up(sweep, store, fail).await;
    }))
    .await;
}

/// Logs in, refreshes, and does it all again once the store fails. Returns the key of the row.
async fn use_up(
    sweep: &Sweep,
    store: impl TokenStore + Clone,
    fail: impl AsyncFnOnce(),
) -> StoreKey {
    let provider = Provider::start(sweep, ErrorStyle::Envelope).await;
    let clock = ManualClock::at(provider.fake.now());
    let hurdlr = provider.builder(ApiVersion::V6).clock(clock.clone()).build().unwrap();
    let manager = TokenManager::builder(hurdlr, store.clone())
        .shutdown_within(std::time::Duration::from_millis(1))
        .build()
        .unwrap();
    let advance = || {
        clock.advance(LIFE);
        provider.fake.advance_clock(LIFE);
    };
    let (pending, callback) = provider.begin(manager.hurdlr()).await;
    manager.complete_login(&user(), pending, callback).await.unwrap();
    let handle = manager.user(&user());
    advance();
    handle.token().await.unwrap();
    let realm = std::sync::Arc::new(manager.hurdlr().realm());
    let key = StoreKey::new(realm, RowKind::Login, user());
    let row = store.read(std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap().unwrap();
    for (part, name) in row.token.unwrap().payload.expose_secret().chunks_exact(16).zip(0..) {
        sweep.secret(&format!("payload, part {name}"), part);
    }
    fail().await;
    let (pending, callback) = provider.begin(manager.hurdlr()).await;
    advance();
    sweep.result("a token", &handle.token().await.map(|_| ()));
    sweep.result("a status", &handle.status().await);
    let completed = manager.complete_login(&user(), pending, callback).await;
    sweep.result("a login", &completed);
    sweep.result("a read", &store.read(std::slice::from_ref(&key)).await);
    sweep.result("a check", &manager.check().await);
    sweep.result("a due user", &store.due(key.realm(), None, 9).await);
    sweep.result("a scan", &store.scan(key.realm(), None, 9).await);
    sweep.result("a disconnect", &handle.disconnect().await);
    sweep.shown(&store);
    sweep.shown(&manager);
    sweep.text("shutdown", format!("{:?}", manager.shutdown().await));
    key
}

fn other_ring() -> KeyRing {
    let key = super::OTHER_SEALING_KEY.to_vec();
    KeyRing::new(SealingKey::from_bytes(&key.into()).unwrap())
}

/// The same tokens, opened by those who lack the key, or the key of the users' hashes.
async fn open_wrongly<S: TokenStore>(sweep: &Sweep, store: impl Fn() -> S, key: &StoreKey) {
    let keys = std::slice::from_ref(key);
    let other_hash = UserHashKey::from_bytes(&vec![9; 32].into()).unwrap();
    let lacks_key = Sealed::new(store(), other_ring()).hash_users(user_hash_key());
    let other_users = Sealed::new(store(), ring()).hash_users(other_hash);
    let names_users = Sealed::new(store(), ring());
    for store in [lacks_key, other_users, names_users] {
        sweep.text("a read", format!("{:?}", store.read(keys).await));
        sweep.text("a scan", format!("{:?}", store.scan(key.realm(), None, 9).await));
        sweep.text("due users", format!("{:?}", store.due(key.realm(), None, 9).await));
        let resealed = store.reseal(key.realm().clone()).next().await;
        sweep.text("a reseal", format!("{resealed:?}"));
    }
}

fn sealed<S: TokenStore>(store: S) -> Sealed<S> {
    Sealed::new(store, ring()).hash_users(user_hash_key())
}

async fn of_sqlite(sweep: &Sweep) {
    let folder = tempfile::tempdir().unwrap();
    let open = async |name: &str| {
        let url = format!("sqlite://{}", folder.path().join(name).display());
        let store = SqliteStore::at(url).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        store
    };
    // The tokens of the sealed one, with its log, as they lie on the disk; and, so that the search
    // is known to read such a file, those of the plain one.
    for name in ["sealed", "plain"] {
        let store = open(name).await;
        let closed = store.clone();
        let mut files = Vec::new();
        let fail = async || {
            for file in [name.to_owned(), format!("{name}-wal")] {
                files.push(fs::read(folder.path().join(file)).unwrap());
            }
            closed.close().await;
        };
        if name == "sealed" {
            use_up(sweep, sealed(store), fail).await;
        } else {
            use_up(sweep, store, fail).await;
        }
        assert!(!files[1].is_empty(), "there is a write-ahead log");
        let content = files.concat();
        match name {
            "sealed" => sweep.text("the SQLite file and its log", content),
            _ => sweep.assert_is_found(&content),
        }
    }

    // Rows that cannot be opened, and then are damaged.
    let store = open("damaged").await;
    let key = use_up(sweep, sealed(store.clone()), async || {}).await;
    let damage = |sql: &'static str| {
        let path = folder.path().join("damaged");
        async move {
            // The driver would log the test's own statements, and the payload in one.
            let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
            let mut file = options.connect().await.unwrap();
            sqlx::raw_sql(sql).execute(&mut file).await.unwrap();
        }
    };
    seed(&sealed(store.clone()), &key, PAYLOAD).await;
    open_wrongly(sweep, || store.clone(), &key).await;
    for sql in [
        "UPDATE hurdlr_tokens SET revision = revision + 1",
        "UPDATE hurdlr_tokens SET payload = substr(payload, 1, 40)",
        "UPDATE hurdlr_tokens SET payload = CAST('payload+of/a=row is a marker' AS BLOB)",
        "UPDATE hurdlr_tokens SET revision = -1",
        "DROP TABLE hurdlr_tokens",
    ] {
        damage(sql).await;
        let store = sealed(store.clone());
        sweep.text(sql, format!("{:?}", store.read(std::slice::from_ref(&key)).await));
        sweep.text(sql, format!("{:?}", store.scan(key.realm(), None, 9).await));
        sweep.text(sql, format!("{:?}", store.due(key.realm(), None, 9).await));
    }

    // A file that is no database, and one that is a folder.
    let file = folder.path().join("letter");
    fs::write(&file, super::CLIENT_SECRET.repeat(100)).unwrap();
    for path in [file.clone(), folder.path().to_owned(), file.join("db")] {
        let url = format!("sqlite://{}", path.display());
        sweep.failed("no database", SqliteStore::at(url).open_plaintext().await);
    }
}

/// Part of a token, as it stands in a row.
const PAYLOAD: &str = "payload+of/a=row is a marker";

/// Tokens in plaintext that are none.
async fn of_payloads(sweep: &Sweep) {
    let provider = Provider::start(sweep, ErrorStyle::Envelope).await;
    for payload in [
        PAYLOAD.to_owned(),
        format!("\"{PAYLOAD}\""),
        format!("[\"{PAYLOAD}\"]"),
        format!(r#"{{"access_token":["{PAYLOAD}"],"superseded":"{PAYLOAD}"}}"#),
        format!(r#"{{"access_token":"{PAYLOAD}","refresh_token":"{PAYLOAD}"}}"#),
        format!(r#"{{"access_token":"a","token_type":"{PAYLOAD}"}}"#),
        format!(r#"{{"access_token":"a","expires_in":"{PAYLOAD}","superseded":["{PAYLOAD}"]}}"#),
    ] {
        let clock = ManualClock::at(provider.fake.now());
        let hurdlr = provider.builder(ApiVersion::V4).clock(clock.clone()).build().unwrap();
        let store = MemoryStore::with_clock(clock);
        let realm = std::sync::Arc::new(hurdlr.realm());
        seed(&store, &StoreKey::new(realm, RowKind::Login, user()), &payload).await;
        let manager = TokenManager::builder(hurdlr, store).build().unwrap();
        let handle = manager.user(&user());
        let token = handle.token().await;
        sweep.result("a row that is no token", &token.map(|token| format!("{token:?}")));
        sweep.result("a row that is no token", &handle.status().await);
        sweep.result("a row that is no token", &handle.disconnect().await);
        sweep.text("a row that is no token", format!("{:?}", manager.shutdown().await));
    }
}

/// A row with this payload, if there is none any more.
async fn seed(store: &impl TokenStore, key: &StoreKey, payload: &str) {
    use hurdlr_oauth2::secrecy::SecretBox;
    use hurdlr_oauth2::store::{StoredToken, Version};

    let token = StoredToken {
        payload: SecretBox::new(Box::new(payload.as_bytes().to_vec())),
        age: std::time::Duration::ZERO,
        due_in: std::time::Duration::ZERO,
    };
    let version = Version { incarnation: 4_711, revision: 1 };
    hurdlr_oauth2::testing::seed_row(store, key, version, token).await;
}

async fn of_postgres(sweep: &Sweep) {
    let server = Server::start();
    server.demand_password("guarded", "data+base-password-marker");
    let url =
        |user: &str, password: &str| server.url().replace("test@", &format!("{user}:{password}@"));
    // The right password, one that is refused, and a user and a database that are not there.
    let right = url("guarded", DATABASE_PASSWORD);
    sweep.secret("wrong password", "wrong+data/base=password-marker");
    for wrong in [
        url("guarded", "wrong+data%2Fbase=password-marker"),
        url("nobody", DATABASE_PASSWORD),
        right.replace("/postgres?", "/nowhere?"),
    ] {
        sweep.failed("a connection", PostgresStore::at(wrong).open_plaintext().await);
    }
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let run = async |sql: String| {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    };
    run("GRANT CREATE ON DATABASE postgres TO guarded".to_owned()).await;
    for schema in ["sealed", "plain"] {
        let store = PostgresStore::at(&right).schema(schema).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        let mut dump = Vec::new();
        let fail = async || {
            dump = dumped(&server.url(), schema);
            // Who breaks a constraint is quoted by the server, row and all.
            run(format!(
                "ALTER TABLE {schema}.hurdlr_tokens ADD CHECK (holder IS NULL) NOT VALID; \
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ))
            .await;
        };
        if schema == "sealed" {
            let key = use_up(sweep, sealed(store.clone()), fail).await;
            sweep.text("a dump of PostgreSQL", dump);
            run("ALTER TABLE sealed.hurdlr_tokens DROP CONSTRAINT hurdlr_tokens_holder_check"
                .to_owned())
            .await;
            seed(&sealed(store.clone()), &key, PAYLOAD).await;
            open_wrongly(sweep, || store.clone(), &key).await;
            run("UPDATE sealed.hurdlr_tokens SET payload = '\\x00'".to_owned()).await;
            let keys = std::slice::from_ref(&key);
            sweep.text("a damaged row", format!("{:?}", sealed(store).read(keys).await));
        } else {
            use_up(sweep, store, fail).await;
            sweep.assert_is_found(&dump);
        }
    }
}

/// What `pg_dump` writes of a schema.
fn dumped(url: &str, schema: &str) -> Vec<u8> {
    let mut dump = Command::new(binaries().join("pg_dump"));
    let dump = dump.args(["--schema", schema, "--dbname", url]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    assert!(dump.stdout.windows(4).any(|text| text == b"COPY"));
    dump.stdout
}

//! The file of SQLite.

#[cfg(target_os = "linux")]
use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::store::{SqliteStore, TokenStore};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

use super::{assert_says, claim, errors_of_all_calls, key, put, read, sqlite_at, url_of};

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
async fn file_others_may_open_is_refused() {
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
async fn file_survives_a_crash_of_the_machine() {
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
async fn impossible_place_is_refused_with_reason() {
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
        (format!("{}?mode=rw", url_of(&at("a@b/none.db"))), "cannot be opened"),
        ("sqlite://nowhere/none.db?mode=rw".into(), "cannot be opened"),
        ("sqlite:nowhere@all/none.db?mode=rw".into(), "cannot be opened"),
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
        ("sqlite://app:password@localhost/tokens.db", "form"),
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

/// An operator learns that the file may not be made, and not that it is missing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unwritable_folder_is_the_reason() {
    // Nobody may make files there, root included.
    let error = SqliteStore::at("sqlite:///sys/tokens.db").open_plaintext().await.unwrap_err();
    assert_says(&error, "/sys/tokens.db cannot be opened");
    let reason = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_ne!(reason.kind(), std::io::ErrorKind::NotFound, "{reason}");
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

/// SQLite's writers poll for the file and could starve, so those of a store take turns.
#[tokio::test]
async fn one_writer_waits_for_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("tokens.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(5).min_connections(5);
    let pool = pool.connect_with(options.clone()).await.unwrap();
    let store = SqliteStore::on(pool.clone()).open_plaintext().await.unwrap();
    store.migrate().await.unwrap();
    let mut other = options.connect().await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut claims = tokio::task::JoinSet::new();
    for holder in 1..=4 {
        let store = store.clone();
        claims.spawn(async move { store.claim(&key("ann"), claim(holder, None)).await });
    }
    for _ in 0..20 {
        assert!(read(&store, &key("ann")).await.is_none(), "readers do not wait");
    }
    // The readers' connections are on their way back, and one writer keeps the fifth.
    while pool.num_idle() != 4 {
        tokio::task::yield_now().await;
    }
    held.rollback().await.unwrap();
    let claims = claims.join_all().await;
    assert_eq!(claims.iter().filter(|claim| claim.as_ref().unwrap().granted).count(), 1);
}

/// Another process that keeps the file to itself makes calls fail after the busy timeout, and no
/// longer.
#[tokio::test]
async fn locked_file_is_waited_for_then_error() {
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

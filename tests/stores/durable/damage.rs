//! Rows that cannot be read.

use hurdlr_oauth2::store::{DueCursor, Release, Save, StoreKey, TokenStore, Version};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use super::{
    LEASE, SECRET, assert_says, claim, errors_of_all_calls, key, pool_of, postgres_in, put,
    rewrite, run, sqlite_at, token, try_read,
};
use crate::postgres::Server;
use crate::support::everything_said;

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
async fn corrupted_row_is_error_and_kept() {
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

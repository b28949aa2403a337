//! The rows of the tables of errors in `docs/databases.md`, each made to happen.

mod file;
mod server;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;

use hurdlr_oauth2::store::{Realm, RowKind, StoreKey};
use hurdlr_oauth2::{ApiVersion, Error, ErrorKind};

use crate::Test;
use crate::site::{said, user};

type Fault = fn() -> Pin<Box<dyn Future<Output = Error>>>;

/// A table, as it begins in the docs, the function that makes each of its rows happen and returns
/// the store's error, and what nothing here can make happen, and why.
struct Table {
    name: &'static str,
    head: &'static str,
    faults: &'static [(&'static str, Fault)],
    out_of_reach: &'static [(&'static str, &'static str)],
}

macro_rules! faults {
    ($module:ident: $($cause:literal => $name:ident,)*) => {
        &[$(($cause, || Box::pin($module::$name())),)*]
    };
}

const TABLES: [Table; 2] = [
    Table {
        name: "postgres",
        head: "| SQLSTATE or cause",
        faults: faults! {
            server:
            "no answer within 10 s" => frozen_server,
            "no connection within 5 s" => connection_in_use,
            "XX001" => overwritten_table,
            "XX002" => overwritten_index,
            "57P03" => stopping_server,
            "53100" => full_disk,
            "25006" => standby,
            "`connect_timeout`" => frozen_server_and_connect_timeout,
            "connection closed" => balancer_without_server,
            "connection closed earlier" => proxy_that_closes_early,
            "other failure of the network" => port_without_listener,
            "57P05" => idle_session_timeout,
            "57P01" => terminated_sessions,
            "40001" => concurrent_updates,
            "40P01" => deadlocks,
            "08P01" => pooler_without_server,
            "08P01 when connecting" => pooler_that_refuses_a_setting,
            "42P05" => pooler_with_two_clients,
            "26000" => pooler_with_a_new_connection,
            "0A000" => table_with_a_rule,
            "23505" => administrators_unique_index,
            "42710" => type_of_the_same_name,
            "42P06" => schema_made_by_others,
            "42P07" => table_made_by_others,
            "28000" => unknown_user,
            "28P01" => wrong_password,
            "3D000" => unknown_database,
            "3F000" => search_path_without_schema,
            "40003" => unknown_outcome,
            "42501" => missing_right,
            "42703" => renamed_column,
            "42804" => column_of_another_type,
            "42883" => column_without_the_operator,
            "42P01" => missing_tables,
            "53300" => role_with_one_connection,
            "55P03" => locked_table,
            "57014" => statement_timeout,
            "57P02" => crashed_server,
            "XX000" => damaged_catalog,
            "any other SQLSTATE" => administrators_constraint,
            "TLS: CA" => certificate_of_another_ca,
            "TLS: name" => certificate_of_another_name,
            "TLS: other" => server_without_tls,
            "missing file" => missing_root_file,
            "other settings of TLS" => certificate_without_key,
            "a row's columns" => negative_revision,
            "a row's user id" => empty_user_id,
            "tables of a later release" => later_release,
            "a removal whose answer was lost" => lost_answer_to_a_removal,
            "after `close()`" => closed_store,
        },
        out_of_reach: &[
            (
                "a table's columns",
                "PostgreSQL calls each column as the statements do, or refuses them by 42703",
            ),
            ("anything else of the driver", "no failure of sqlx's is left over"),
        ],
    },
    Table {
        name: "sqlite",
        head: "| code or cause",
        faults: faults! {
            file:
            "no answer within 20 s" => lock_for_longer_than_a_call,
            "5" => locked_file,
            "no connection within 20 s" => pool_in_use,
            "1" => missing_tables,
            "8" => read_only_pool,
            "10" => truncated_wal,
            "11" => overwritten_pages,
            "13" => full_disk,
            "14" => folder_in_place_of_the_wal,
            "26" => other_file,
            "any other code" => constraint_of_an_administrator,
            "the file or its place" => folder_in_place_of_the_file,
            "the journal" => pool_without_wal,
            "`synchronous` of the app's pool" => pool_that_is_not_synchronous,
            "`busy_timeout` of the app's pool" => pool_without_busy_timeout,
            "a row's columns" => negative_revision,
            "a row's user id" => empty_user_id,
            "tables of a later release" => later_release,
            "after `close()`" => closed_store,
        },
        out_of_reach: &[
            (
                "6",
                "only connections that share a cache lock each other out, and sqlx waits for them",
            ),
            ("the file cannot be read", "sqlx says so where it cannot start a thread"),
            ("connection closed", "sqlx's thread of a connection ends if it panics"),
            ("a table's columns", "SQLite calls each column as the statements do"),
            ("other settings", "neither a URL nor a pool has a setting that sqlx refuses so late"),
            ("anything else of the driver", "no failure of sqlx's is left over"),
        ],
    },
];

/// A test of each row, and one of there being a test of each.
pub(crate) fn tests() -> Vec<(String, Test)> {
    let mut tests: Vec<(String, Test)> = Vec::new();
    for Table { name, faults, .. } in &TABLES {
        for (cause, fault) in *faults {
            let make = move || check(name, cause, *fault);
            let test = format!("errors::{name}::{}", cause.replace(' ', "_"));
            tests.push((test, Box::new(move || Box::pin(make()))));
        }
    }
    tests.push((
        "errors::every_documented_error_is_tested".into(),
        Box::new(|| Box::pin(async { every_documented_error_is_tested() })),
    ));
    tests
}

/// A row of a table.
struct Row {
    causes: Vec<&'static str>,
    text: &'static str,
    is_temporary: bool,
}

fn rows(table: &Table) -> Vec<Row> {
    let docs = include_str!("../../docs/databases.md");
    let lines = docs.lines().skip_while(|line| !line.starts_with(table.head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let row = |line: &'static str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let is_temporary = match cells[3] {
            "yes" => true,
            "no" => false,
            other => panic!("neither yes nor no, but {other:?}: {line}"),
        };
        Row { causes: cells[1].split(", ").collect(), text: cells[2], is_temporary }
    };
    rows.map(row).collect()
}

/// Expects the error that the docs have for a cause.
async fn check(table: &str, cause: &str, fault: Fault) {
    let table = TABLES.iter().find(|it| it.name == table).unwrap();
    let row = rows(table).into_iter().find(|row| row.causes.contains(&cause));
    let row = row.unwrap_or_else(|| panic!("the docs have no row for {cause:?}"));
    let error = fault().await;
    println!("{cause}: {} (temporary: {})", said(&error), error.is_temporary());
    let (text, kind) = match row.text.strip_suffix(" (kind `Config`)") {
        Some(text) => (text, ErrorKind::Config),
        None => (row.text, ErrorKind::Store),
    };
    let begun = format!("the store could not ...: {text}");
    let is_like = |pattern| is_like(&error.to_string(), pattern);
    assert!(is_like(text) || is_like(&begun), "{error}, not {text}");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(error.is_temporary(), row.is_temporary, "{error:?}");
    let database = error.source().map(ToString::to_string).unwrap_or_default();
    if let Some(rest) = database.strip_prefix("code ") {
        let code = rest.split(' ').next();
        let is_of_class = cause.starts_with("any other");
        assert!(is_of_class || cause.split(' ').next() == code, "{cause} is not: {database}");
    }
}

/// Compares a text with a pattern, whose dots stand for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split("...");
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let is_end = pattern.ends_with("...");
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else {
            return false;
        };
        rest = behind;
    }
    is_end || rest.is_empty()
}

fn every_documented_error_is_tested() {
    for table in &TABLES {
        let documented: BTreeSet<_> = rows(table).into_iter().flat_map(|row| row.causes).collect();
        let mut known: BTreeSet<_> = table.faults.iter().map(|(cause, _)| *cause).collect();
        for (cause, reason) in table.out_of_reach {
            println!("not made to happen, {} {cause}: {reason}", table.name);
            assert!(known.insert(cause), "it was made to happen: {cause}");
        }
        let differing: Vec<_> = documented.symmetric_difference(&known).collect();
        assert!(
            differing.is_empty(),
            "{}: not both documented and tested: {differing:?}",
            table.name
        );
    }
}

fn key(name: &str) -> StoreKey {
    let realm = Realm::new(ApiVersion::V4, "https://store.example.com", "client");
    StoreKey::new(Arc::new(realm), RowKind::Login, user(name))
}

//! The SQL statements, written once for all databases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::backend::{Backend, Settings};
use crate::error::Error;
use crate::store::RowKind;

/// The statements of a store: those of this module, and of its backend, with the names of its
/// tables.
pub(super) struct Statements {
    /// The placeholders, each before those that stand in it.
    parts: Vec<(&'static str, String)>,
    /// Those that were asked for, by their text with placeholders.
    known: Mutex<HashMap<&'static str, Arc<str>>>,
}

const KEY: &str = "api_version, environment, client_id, kind, subject";

/// The row's notion of now: the statement's clock, but never before the row's last `stamped_at`.
///
/// A statement may have begun before that and waited for the one that stamped, it may run on
/// another machine of a distributed engine, or the clock was put back. By this time no span is
/// longer than it was handed in, and no token is younger.
const PRESENT: &str = "{greatest}({now}, stamped_at)";

/// The columns of a row, with times as spans from its present.
const ROW: &str = "incarnation, revision, payload, {present} - obtained_at AS age, \
     due_at - {present} AS due_in, leased_until - {present} AS leased_for, \
     not_before - {present} AS not_before_in, refused, in_flight";

/// Takes the keys as `[place, [texts]]`, and returns each row with the place of its key.
pub(super) const READ: &str = "SELECT wanted.place AS place, {row} FROM (\
     SELECT CAST(value ->> 0 AS BIGINT) AS place, value -> 1 ->> 0 AS api_version, \
     value -> 1 ->> 1 AS environment, value -> 1 ->> 2 AS client_id, value -> 1 ->> 3 AS kind, \
     value -> 1 ->> 4 AS subject FROM {json}) AS wanted \
     JOIN {tokens} AS held ON held.api_version = wanted.api_version \
     AND held.environment = wanted.environment AND held.client_id = wanted.client_id \
     AND held.kind = wanted.kind AND held.subject = wanted.subject";

/// Makes a row without a token, and leases it to `$6` for `$7`.
pub(super) const MAKE: &str = "INSERT INTO {tokens} ({key}, holder, leased_until, stamped_at, \
     incarnation, revision, refused, in_flight) \
     VALUES ($1, $2, $3, $4, $5, $6, {now} + $7, {now}, $8, 0, FALSE, FALSE) \
     ON CONFLICT DO NOTHING RETURNING {row}";

/// Leases the row to `$6` for `$7`, if it is at the version `$8` and `$9`, or has no token where
/// that is negative. A row that is not granted is not even locked, since PostgreSQL logs a lock
/// like a change.
pub(super) const CLAIM: &str = "UPDATE {tokens} SET in_flight = in_flight OR holder IS NOT NULL, \
     holder = $6, leased_until = {present} + $7, stamped_at = {present} \
     WHERE {is_key} AND NOT refused \
     AND CASE WHEN $8 < 0 THEN payload IS NULL ELSE incarnation = $8 AND revision = $9 END \
     AND (not_before IS NULL OR not_before <= {present}) \
     AND (holder IS NULL OR holder = $6 OR leased_until <= {present}) RETURNING {row}";

/// Clears what is known about an earlier token.
const CLEARED: &str = "holder = NULL, leased_until = NULL, not_before = NULL, refused = FALSE, \
     in_flight = FALSE";

/// Replaces the token, whoever holds the lease: a holder that was paused after the provider rotated
/// has the only refresh token that lives. All times of the row are new, so its present is this one.
pub(super) const SAVE: &str = "UPDATE {tokens} SET incarnation = $8, revision = $9, payload = $10, \
     stamped_at = {now}, obtained_at = {now} - $11, due_at = {now} + $12, {cleared} \
     WHERE {is_version} RETURNING 1";

/// Makes the token older by `$8`, which touches nobody's lease.
pub(super) const AGE: &str = "UPDATE {tokens} SET obtained_at = obtained_at - $8, \
     due_at = due_at - $8 WHERE {is_version}";

pub(super) const RELEASE: &str = "UPDATE {tokens} SET in_flight = in_flight OR $11, \
     not_before = {greatest}(COALESCE(not_before, 0), {present} + $9), stamped_at = {present}, \
     refused = CASE WHEN holder = $8 THEN refused OR $10 ELSE refused END, \
     leased_until = CASE WHEN holder = $8 THEN NULL ELSE leased_until END, \
     holder = CASE WHEN holder = $8 THEN NULL ELSE holder END \
     WHERE {is_version}";

/// Removes the row, where `$6` is negative at any version.
pub(super) const FORGET: &str = "DELETE FROM {tokens} \
     WHERE {is_key} AND ($6 < 0 OR incarnation = $6 AND revision = $7) RETURNING 1";

/// Redeems a state that is not there, or was and is to be remembered no longer. The redeemer's
/// random number lets a repeated statement find that the first one had taken effect.
pub(super) const REDEEM: &str = "INSERT INTO {logins} AS held (state, keep_until, redeemed_by) \
     VALUES ($1, {now} + $2, $3) ON CONFLICT (state) DO UPDATE \
     SET keep_until = excluded.keep_until, redeemed_by = excluded.redeemed_by \
     WHERE held.keep_until <= {now} OR held.redeemed_by = excluded.redeemed_by RETURNING 1";

pub(super) const CLEAN: &str = "DELETE FROM {logins} WHERE keep_until <= {now}";

/// Skips rows of a later release's kinds, which no key of this one can name.
pub(super) const DUE: &str = "SELECT kind, subject, due_at FROM {tokens} WHERE {is_realm} \
     AND (due_at, kind, subject) > ($4, $5, $6) AND due_at <= {now} AND NOT refused \
     AND {is_kind} AND (leased_until IS NULL OR leased_until <= {present}) \
     AND (not_before IS NULL OR not_before <= {present}) \
     ORDER BY due_at, kind, subject LIMIT $7";

pub(super) const SCAN: &str = "SELECT kind, subject, {row} FROM {tokens} WHERE {is_realm} \
     AND (kind, subject) > ($4, $5) AND {is_kind} AND payload IS NOT NULL \
     ORDER BY kind, subject LIMIT $6";

/// Takes each row as `[texts, incarnation, revision, [place, length], [place, length]]`: its old
/// and its new payload are those parts of `$2`. These columns have names of their own, since
/// `RETURNING` takes a prefix in PostgreSQL only.
pub(super) const REWRITE: &str = "UPDATE {tokens} SET payload = new_payload FROM (\
     SELECT value -> 0 ->> 0 AS in_version, value -> 0 ->> 1 AS in_environment, \
     value -> 0 ->> 2 AS in_client, value -> 0 ->> 3 AS of_kind, value -> 0 ->> 4 AS of_subject, \
     CAST(value ->> 1 AS BIGINT) AS at_incarnation, CAST(value ->> 2 AS BIGINT) AS at_revision, \
     substr($2, CAST(value -> 3 ->> 0 AS INTEGER), CAST(value -> 3 ->> 1 AS INTEGER)) \
     AS old_payload, \
     substr($2, CAST(value -> 4 ->> 0 AS INTEGER), CAST(value -> 4 ->> 1 AS INTEGER)) \
     AS new_payload FROM {json}) AS wanted \
     WHERE api_version = in_version AND environment = in_environment AND client_id = in_client \
     AND kind = of_kind AND subject = of_subject AND incarnation = at_incarnation \
     AND revision = at_revision AND payload = old_payload RETURNING {key}";

pub(super) const SCHEMA_VERSION: &str = "SELECT COALESCE(MAX(version), 0) AS version FROM {schema}";

/// The statements of each migration, which can be repeated.
pub(super) const MIGRATIONS: &[&[&str]] = &[&[
    "CREATE TABLE IF NOT EXISTS {tokens} (
        api_version TEXT NOT NULL, environment TEXT NOT NULL, client_id TEXT NOT NULL,
        kind TEXT NOT NULL, subject TEXT NOT NULL,
        incarnation {number} NOT NULL, revision {number} NOT NULL,
        payload {bytes}, stamped_at {number} NOT NULL, obtained_at {number}, due_at {number},
        holder {number}, leased_until {number}, not_before {number},
        refused {flag} NOT NULL, in_flight {flag} NOT NULL,
        PRIMARY KEY ({key})
    ) {table_options}",
    "CREATE INDEX IF NOT EXISTS \"{prefix}tokens_due\" \
     ON {tokens} (api_version, environment, client_id, due_at, kind, subject) \
     WHERE NOT refused",
    "CREATE TABLE IF NOT EXISTS {logins} (
        state {bytes} PRIMARY KEY, keep_until {number} NOT NULL, redeemed_by {number} NOT NULL
    ) {table_options}",
    "CREATE INDEX IF NOT EXISTS \"{prefix}logins_kept\" ON {logins} (keep_until)",
    "CREATE TABLE IF NOT EXISTS {schema} (version {number} PRIMARY KEY) {table_options}",
    "INSERT INTO {schema} (version) VALUES (1) ON CONFLICT DO NOTHING",
]];

impl Statements {
    /// The statements on the tables of these names, which become part of the statements: they are
    /// names in every database without being quoted or cut.
    pub(super) fn new<DB: Backend>(settings: &Settings) -> Result<Self, Error> {
        let Settings { schema, table_prefix: prefix, .. } = settings;
        check_name("table_prefix", prefix)?;
        let mut qualifier = String::new();
        if let Some(schema) = schema {
            check_name("schema", schema)?;
            qualifier = format!(r#""{schema}"."#);
        }
        let table = |noun: &str| format!(r#"{qualifier}"{prefix}{noun}""#);
        let kinds = RowKind::WITH_TOKENS.map(|kind| format!("'{}'", kind.name())).join(", ");
        let [number, bytes, flag] = DB::TYPES;
        let parts = vec![
            ("{row}", ROW.into()),
            ("{cleared}", CLEARED.into()),
            ("{key}", KEY.into()),
            ("{is_version}", "{is_key} AND incarnation = $6 AND revision = $7".into()),
            ("{is_key}", "{is_realm} AND kind = $4 AND subject = $5".into()),
            ("{is_realm}", "api_version = $1 AND environment = $2 AND client_id = $3".into()),
            ("{is_kind}", format!("kind IN ({kinds})")),
            ("{json}", DB::JSON.into()),
            ("{present}", PRESENT.into()),
            ("{greatest}", DB::GREATEST.into()),
            ("{now}", DB::NOW.into()),
            ("{tokens}", table("tokens")),
            ("{logins}", table("logins")),
            ("{schema}", table("schema")),
            ("{schema_name}", schema.clone().unwrap_or_default()),
            ("{prefix}", prefix.clone()),
            ("{number}", number.into()),
            ("{bytes}", bytes.into()),
            ("{flag}", flag.into()),
            ("{table_options}", DB::TABLE_OPTIONS.into()),
        ];
        Ok(Self { parts, known: Mutex::default() })
    }

    pub(super) fn get(&self, text: &'static str) -> Arc<str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let render = || {
            let fill = |sql: String, (name, part): &(&str, String)| sql.replace(name, part);
            self.parts.iter().fold(text.to_owned(), fill).into()
        };
        known.entry(text).or_insert_with(render).clone()
    }
}

fn check_name(setting: &str, name: &str) -> Result<(), Error> {
    const LONGEST: usize = 40;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.len() <= LONGEST && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::config(format!(
        "{setting} is {name:?}: it takes 1 to {LONGEST} of a-z, 0-9 and _, and does not start with a \
         digit"
    )))
}

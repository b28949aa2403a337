//! The SQL statements, written once for all databases.

use std::sync::Arc;

use super::backend::Settings;
use crate::error::Error;
use crate::store::RowKind;

/// A statement. sqlx caches prepared statements by their text.
pub(super) struct Statement {
    pub(super) sql: Arc<str>,
    pub(super) writes: bool,
}

impl Statement {
    fn new(sql: String) -> Self {
        Self { writes: !sql.starts_with("SELECT"), sql: sql.into() }
    }
}

/// The differences between the databases.
pub struct Dialect {
    /// The time at which the statement began, in milliseconds since 1970.
    pub now: &'static str,
    /// The function that returns the largest of its arguments.
    pub greatest: &'static str,
    /// A table of the keys to read, with the place of each, from a JSON array.
    pub keys: &'static str,
    /// A table of the rewrites, from the arguments that stand for them.
    pub rewrites: &'static str,
    /// Returns a row if the tables were made.
    pub has_tables: &'static str,
    /// Returns a row if the schema exists, and creates one; where there are schemas.
    pub schema: Option<[&'static str; 2]>,
    /// The types of numbers, bytes and flags.
    pub types: [&'static str; 3],
    /// Options of a table.
    pub table_options: &'static str,
}

pub(super) struct Statements {
    pub(super) read: Statement,
    pub(super) make: Statement,
    pub(super) claim_cold: Statement,
    pub(super) claim_known: Statement,
    pub(super) save: Statement,
    pub(super) release: Statement,
    pub(super) forget: Statement,
    pub(super) forget_version: Statement,
    pub(super) redeem: Statement,
    pub(super) clean: Statement,
    pub(super) due: Statement,
    pub(super) scan: Statement,
    pub(super) rewrite: Statement,
    pub(super) has_tables: Statement,
    pub(super) schema_version: Statement,
    pub(super) schema: Option<[Statement; 2]>,
    pub(super) migrations: Vec<Vec<Statement>>,
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

const READ: &str = "SELECT wanted.place AS place, {row} FROM ({keys}) AS wanted \
     JOIN {tokens} AS held ON held.api_version = wanted.api_version \
     AND held.environment = wanted.environment AND held.client_id = wanted.client_id \
     AND held.kind = wanted.kind AND held.subject = wanted.subject";

/// Makes a row without a token, and leases it to `$6` for `$7`.
const MAKE: &str = "INSERT INTO {tokens} ({key}, holder, leased_until, stamped_at, \
     incarnation, revision, refused, in_flight) \
     VALUES ($1, $2, $3, $4, $5, $6, {now} + $7, {now}, $8, 0, FALSE, FALSE) \
     ON CONFLICT DO NOTHING RETURNING {row}";

/// Leases the row to `$6` for `$7`. A row that is not granted is not even locked, since PostgreSQL
/// logs a lock like a change.
const CLAIM: &str = "UPDATE {tokens} SET in_flight = in_flight OR holder IS NOT NULL, \
     holder = $6, leased_until = {present} + $7, stamped_at = {present} \
     WHERE {is_key} AND {known} AND NOT refused \
     AND (not_before IS NULL OR not_before <= {present}) \
     AND (holder IS NULL OR holder = $6 OR leased_until <= {present}) RETURNING {row}";

/// Clears what is known about an earlier token.
const CLEARED: &str = "holder = NULL, leased_until = NULL, not_before = NULL, refused = FALSE, \
     in_flight = FALSE";

/// Replaces the token, whoever holds the lease: a holder that was paused after the provider rotated
/// has the only refresh token that lives. All times of the row are new, so its present is this one.
const SAVE: &str = "UPDATE {tokens} SET incarnation = $8, revision = $9, payload = $10, \
     stamped_at = {now}, obtained_at = {now} - $11, due_at = {now} + $12, {cleared} \
     WHERE {is_version} RETURNING 1";

const RELEASE: &str = "UPDATE {tokens} SET in_flight = in_flight OR $11, \
     not_before = {greatest}(COALESCE(not_before, 0), {present} + $9), stamped_at = {present}, \
     refused = CASE WHEN holder = $8 THEN refused OR $10 ELSE refused END, \
     leased_until = CASE WHEN holder = $8 THEN NULL ELSE leased_until END, \
     holder = CASE WHEN holder = $8 THEN NULL ELSE holder END \
     WHERE {is_version}";

/// Redeems a state that is not there, or was and is to be remembered no longer. The redeemer's
/// random number lets a repeated statement find that the first one had taken effect.
const REDEEM: &str = "INSERT INTO {logins} AS held (state, keep_until, redeemed_by) \
     VALUES ($1, {now} + $2, $3) ON CONFLICT (state) DO UPDATE \
     SET keep_until = excluded.keep_until, redeemed_by = excluded.redeemed_by \
     WHERE held.keep_until <= {now} OR held.redeemed_by = excluded.redeemed_by RETURNING 1";

/// Skips rows of a later release's kinds, which no key of this one can name.
const DUE: &str = "SELECT kind, subject, due_at FROM {tokens} WHERE {is_realm} \
     AND (due_at, kind, subject) > ($4, $5, $6) AND due_at <= {now} AND NOT refused \
     AND {is_kind} AND (leased_until IS NULL OR leased_until <= {present}) \
     AND (not_before IS NULL OR not_before <= {present}) \
     ORDER BY due_at, kind, subject LIMIT $7";

const SCAN: &str = "SELECT kind, subject, {row} FROM {tokens} WHERE {is_realm} \
     AND (kind, subject) > ($4, $5) AND {is_kind} AND payload IS NOT NULL \
     ORDER BY kind, subject LIMIT $6";

/// The columns of the rewrites have names of their own, since `RETURNING` takes a prefix in
/// PostgreSQL only.
const REWRITE: &str = "UPDATE {tokens} SET payload = new_payload FROM ({rewrites}) AS wanted \
     WHERE api_version = in_version AND environment = in_environment AND client_id = in_client \
     AND kind = of_kind AND subject = of_subject AND incarnation = at_incarnation \
     AND revision = at_revision AND payload = old_payload RETURNING {key}";

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
    pub(super) fn new(dialect: &Dialect, settings: &Settings) -> Result<Self, Error> {
        let Settings { schema, table_prefix: prefix, .. } = settings;
        check_name("table_prefix", prefix)?;
        let mut qualifier = String::new();
        if let Some(schema) = schema {
            check_name("schema", schema)?;
            qualifier = format!(r#""{schema}"."#);
        }
        let table = |noun: &str| format!(r#"{qualifier}"{prefix}{noun}""#);
        let kinds = RowKind::WITH_TOKENS.map(|kind| format!("'{}'", kind.name())).join(", ");
        let [number, bytes, flag] = dialect.types;
        let text = |sql: &str| {
            let sql = sql
                .replace("{row}", ROW)
                .replace("{cleared}", CLEARED)
                .replace("{key}", KEY)
                .replace("{is_version}", "{is_key} AND incarnation = $6 AND revision = $7")
                .replace("{is_key}", "{is_realm} AND kind = $4 AND subject = $5")
                .replace("{is_realm}", "api_version = $1 AND environment = $2 AND client_id = $3")
                .replace("{is_kind}", &format!("kind IN ({kinds})"))
                .replace("{keys}", dialect.keys)
                .replace("{rewrites}", dialect.rewrites)
                .replace("{present}", PRESENT)
                .replace("{greatest}", dialect.greatest)
                .replace("{now}", dialect.now)
                .replace("{tokens}", &table("tokens"))
                .replace("{logins}", &table("logins"))
                .replace("{schema}", &table("schema"))
                .replace("{schema_name}", schema.as_deref().unwrap_or_default())
                .replace("{prefix}", prefix)
                .replace("{number}", number)
                .replace("{bytes}", bytes)
                .replace("{flag}", flag)
                .replace("{table_options}", dialect.table_options);
            Statement::new(sql)
        };
        let claim = |known: &str| text(&CLAIM.replace("{known}", known));
        let steps = |steps: &&[&str]| steps.iter().map(|step| text(step)).collect();
        Ok(Self {
            read: text(READ),
            make: text(MAKE),
            claim_cold: claim("payload IS NULL"),
            claim_known: claim("incarnation = $8 AND revision = $9"),
            save: text(SAVE),
            release: text(RELEASE),
            forget: text("DELETE FROM {tokens} WHERE {is_key} RETURNING 1"),
            forget_version: text("DELETE FROM {tokens} WHERE {is_version} RETURNING 1"),
            redeem: text(REDEEM),
            clean: text("DELETE FROM {logins} WHERE keep_until <= {now}"),
            due: text(DUE),
            scan: text(SCAN),
            rewrite: text(REWRITE),
            has_tables: text(dialect.has_tables),
            schema_version: text("SELECT MAX(version) AS version FROM {schema}"),
            schema: schema
                .as_ref()
                .and(dialect.schema)
                .map(|[find, create]| [text(find), text(create)]),
            migrations: MIGRATIONS.iter().map(steps).collect(),
        })
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

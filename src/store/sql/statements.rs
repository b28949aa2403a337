//! The SQL statements, written once for all databases.

use std::sync::Arc;

use super::Tables;
use crate::store::RowKind;

/// A statement. sqlx caches prepared statements by this text.
pub(in crate::store) type SqlText = Arc<str>;

/// The differences between the databases.
pub(in crate::store) struct Dialect {
    /// The time at which the statement began, in milliseconds since 1970.
    pub(in crate::store) now: &'static str,
    /// The function that returns the largest of its arguments.
    pub(in crate::store) greatest: &'static str,
    /// A table of the keys to read, with the place of each.
    pub(in crate::store) wanted: &'static str,
    /// The statements of each migration, which can be repeated.
    pub(in crate::store) migrations: &'static [&'static [&'static str]],
}

pub(in crate::store) struct Statements {
    pub(in crate::store) read: SqlText,
    pub(in crate::store) make: SqlText,
    pub(in crate::store) claim_cold: SqlText,
    pub(in crate::store) claim_known: SqlText,
    pub(in crate::store) save: SqlText,
    pub(in crate::store) release: SqlText,
    pub(in crate::store) forget: SqlText,
    pub(in crate::store) forget_version: SqlText,
    pub(in crate::store) redeem: SqlText,
    pub(in crate::store) clean: SqlText,
    pub(in crate::store) due: SqlText,
    pub(in crate::store) scan: SqlText,
    pub(in crate::store) rewrite: SqlText,
    pub(in crate::store) schema_version: SqlText,
    pub(in crate::store) migrations: Vec<Vec<SqlText>>,
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

const READ: &str = "SELECT wanted.place AS place, {row} FROM ({wanted}) AS wanted \
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
     WHERE {is_version}";

const RELEASE: &str = "UPDATE {tokens} SET in_flight = in_flight OR $11, \
     not_before = {greatest}(COALESCE(not_before, 0), {present} + $9), stamped_at = {present}, \
     refused = CASE WHEN holder = $8 THEN refused OR $10 ELSE refused END, \
     leased_until = CASE WHEN holder = $8 THEN NULL ELSE leased_until END, \
     holder = CASE WHEN holder = $8 THEN NULL ELSE holder END \
     WHERE {is_version}";

const REDEEM: &str = "INSERT INTO {logins} AS held (state, keep_until) VALUES ($1, {now} + $2) \
     ON CONFLICT (state) DO UPDATE SET keep_until = excluded.keep_until \
     WHERE held.keep_until <= {now}";

/// Skips rows of a later release's kinds, which no key of this one can name.
const DUE: &str = "SELECT kind, subject, due_at FROM {tokens} WHERE {is_realm} \
     AND (due_at, kind, subject) > ($4, $5, $6) AND due_at <= {now} AND NOT refused \
     AND {is_kind} AND (leased_until IS NULL OR leased_until <= {present}) \
     AND (not_before IS NULL OR not_before <= {present}) \
     ORDER BY due_at, kind, subject LIMIT $7";

const SCAN: &str = "SELECT kind, subject, {row} FROM {tokens} WHERE {is_realm} \
     AND (kind, subject) > ($4, $5) AND {is_kind} AND payload IS NOT NULL \
     ORDER BY kind, subject LIMIT $6";

const REWRITE: &str = "UPDATE {tokens} SET payload = $9 WHERE {is_version} AND payload = $8";

impl Statements {
    pub(in crate::store) fn new(dialect: &Dialect, tables: &Tables) -> Self {
        let tokens = tables.table("tokens");
        let logins = tables.table("logins");
        let schema = tables.table("schema");
        let kinds = RowKind::WITH_TOKENS.map(|kind| format!("'{}'", kind.name())).join(", ");
        let text = |sql: &str| -> SqlText {
            sql.replace("{row}", ROW)
                .replace("{cleared}", CLEARED)
                .replace("{key}", KEY)
                .replace("{is_version}", "{is_key} AND incarnation = $6 AND revision = $7")
                .replace("{is_key}", "{is_realm} AND kind = $4 AND subject = $5")
                .replace("{is_realm}", "api_version = $1 AND environment = $2 AND client_id = $3")
                .replace("{is_kind}", &format!("kind IN ({kinds})"))
                .replace("{wanted}", dialect.wanted)
                .replace("{present}", PRESENT)
                .replace("{greatest}", dialect.greatest)
                .replace("{now}", dialect.now)
                .replace("{tokens}", &tokens)
                .replace("{logins}", &logins)
                .replace("{schema}", &schema)
                .replace("{tokens_due}", &tables.bare("tokens_due"))
                .replace("{logins_kept}", &tables.bare("logins_kept"))
                .into()
        };
        let claim = |known: &str| text(&CLAIM.replace("{known}", known));
        Self {
            read: text(READ),
            make: text(MAKE),
            claim_cold: claim("payload IS NULL"),
            claim_known: claim("incarnation = $8 AND revision = $9"),
            save: text(SAVE),
            release: text(RELEASE),
            forget: text("DELETE FROM {tokens} WHERE {is_key}"),
            forget_version: text("DELETE FROM {tokens} WHERE {is_version}"),
            redeem: text(REDEEM),
            clean: text("DELETE FROM {logins} WHERE keep_until <= {now}"),
            due: text(DUE),
            scan: text(SCAN),
            rewrite: text(REWRITE),
            schema_version: text("SELECT MAX(version) AS version FROM {schema}"),
            migrations: dialect
                .migrations
                .iter()
                .map(|steps| steps.iter().map(|step| text(step)).collect())
                .collect(),
        }
    }
}

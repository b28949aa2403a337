//! The statements, written once for all databases.

use std::sync::Arc;

use super::Tables;

/// A statement; sqlx keeps what it has prepared by this text.
pub(in crate::store) type SqlText = Arc<str>;

/// In what the databases differ.
pub(in crate::store) struct Dialect {
    /// When the statement began, in milliseconds since 1970: the same all through it.
    pub(in crate::store) now: &'static str,
    /// The function that says which of its arguments is the largest.
    pub(in crate::store) greatest: &'static str,
    /// A table of the keys to read, with the place of each.
    pub(in crate::store) wanted: &'static str,
    /// What makes each version of the schema from the one before. Every statement can be repeated.
    pub(in crate::store) migrations: &'static [&'static [&'static str]],
}

pub(in crate::store) struct Statements {
    pub(in crate::store) read: SqlText,
    pub(in crate::store) claim_cold: SqlText,
    pub(in crate::store) claim_known: SqlText,
    pub(in crate::store) save: SqlText,
    pub(in crate::store) put: SqlText,
    pub(in crate::store) release: SqlText,
    pub(in crate::store) forget: SqlText,
    pub(in crate::store) redeem: SqlText,
    pub(in crate::store) clean: SqlText,
    pub(in crate::store) due: SqlText,
    pub(in crate::store) scan: SqlText,
    pub(in crate::store) rewrite: SqlText,
    pub(in crate::store) schema_version: SqlText,
    pub(in crate::store) migrations: Vec<Vec<SqlText>>,
}

const KEY: &str = "api_version, environment, client_id, kind, subject";

const IS_KEY: &str =
    "api_version = $1 AND environment = $2 AND client_id = $3 AND kind = $4 AND subject = $5";

/// What time it is for a row: no earlier than when it was last stamped. A statement may have begun
/// before that, and waited for the one that stamped; it may run on another machine of a distributed
/// engine; or the clock was put back. By this time no row tells of more than it was given, no token
/// is younger than it came in, and whoever decides and whoever tells agree.
const PRESENT: &str = "{greatest}({now}, {of}stamped_at)";

/// A row, as spans from its present.
const ROW: &str = "incarnation, revision, payload, {present} - obtained_at AS age, \
     due_at - {present} AS due_in, leased_until - {present} AS leased_for, \
     not_before - {present} AS not_before_in, refused, in_flight";

const READ: &str = "SELECT wanted.place AS place, {row} FROM ({wanted}) AS wanted \
     JOIN {tokens} AS held ON held.api_version = wanted.api_version \
     AND held.environment = wanted.environment \
     AND held.client_id = wanted.client_id \
     AND held.kind = wanted.kind AND held.subject = wanted.subject";

/// Whether everything but another's lease lets `$6` have the row. What it looks at is not changed
/// by a claim, nor is the row's present, so it says of the row after the claim what it said before.
const CLAIMABLE: &str = "{expected} AND NOT {of}refused \
     AND ({of}not_before IS NULL OR {of}not_before <= {{of}present})";

/// Gives the row to `$6` for `$7`, if it can be had. A row that cannot is returned as it is, which
/// is why the decision stands in the values and not in a condition.
const TAKE: &str = "\
    in_flight = CASE WHEN {grant} THEN \
        held.in_flight OR (held.lease_id IS NOT NULL AND held.lease_id <> $6) \
        ELSE held.in_flight END, \
    leased_until = CASE WHEN {grant} THEN {held.present} + $7 ELSE held.leased_until END, \
    stamped_at = CASE WHEN {grant} THEN {held.present} ELSE held.stamped_at END, \
    lease_id = CASE WHEN {grant} THEN $6 ELSE held.lease_id END";

const CLAIM_COLD: &str = "INSERT INTO {tokens} AS held \
     ({key}, lease_id, leased_until, stamped_at, incarnation, revision, refused, \
     in_flight) \
     VALUES ($1, $2, $3, $4, $5, $6, {now} + $7, {now}, $8, 0, FALSE, FALSE) \
     ON CONFLICT ({key}) DO UPDATE SET {take} \
     RETURNING {row}, COALESCE({granted}, FALSE) AS granted";

const CLAIM_KNOWN: &str = "UPDATE {tokens} AS held SET {take} WHERE {is_key} \
     RETURNING {row}, COALESCE({granted}, FALSE) AS granted";

/// Whoever holds the lease: who was paused after the provider rotated has the only refresh token that
/// lives. All times of the row are new, so its present is this one.
const SAVE: &str = "UPDATE {tokens} SET revision = revision + 1, payload = $8, \
     stamped_at = {now}, obtained_at = {now} - $9, due_at = {now} + $10, \
     lease_id = NULL, leased_until = NULL, not_before = NULL, refused = FALSE, \
     in_flight = FALSE \
     WHERE {is_key} AND incarnation = $6 AND revision = $7";

const PUT: &str = "INSERT INTO {tokens} AS held \
     ({key}, incarnation, revision, payload, stamped_at, obtained_at, due_at, refused, \
     in_flight) \
     VALUES ($1, $2, $3, $4, $5, $6, 1, $7, {now}, {now} - $8, {now} + $9, FALSE, \
     FALSE) \
     ON CONFLICT ({key}) DO UPDATE SET incarnation = excluded.incarnation, \
     revision = 1, payload = excluded.payload, stamped_at = excluded.stamped_at, \
     obtained_at = excluded.obtained_at, due_at = excluded.due_at, \
     lease_id = NULL, leased_until = NULL, not_before = NULL, refused = FALSE, \
     in_flight = FALSE \
     WHERE held.payload IS NULL OR ($10 AND held.incarnation <> excluded.incarnation)";

const RELEASE: &str = "UPDATE {tokens} SET refused = refused OR $10, \
     not_before = CASE WHEN lease_id = $8 THEN {present} + $9 ELSE not_before END, \
     stamped_at = CASE WHEN lease_id = $8 THEN {present} ELSE stamped_at END, \
     leased_until = CASE WHEN lease_id = $8 THEN NULL ELSE leased_until END, \
     lease_id = CASE WHEN lease_id = $8 THEN NULL ELSE lease_id END \
     WHERE {is_key} AND incarnation = $6 AND revision = $7 \
     AND ($10 OR lease_id = $8)";

const REDEEM: &str = "INSERT INTO {logins} AS held (state, keep_until) VALUES ($1, {now} + $2) \
     ON CONFLICT (state) DO UPDATE SET keep_until = excluded.keep_until \
     WHERE held.keep_until <= {now}";

const DUE: &str = "SELECT kind, subject FROM {tokens} WHERE api_version = $1 \
     AND environment = $2 AND client_id = $3 AND kind <> 'keep_alive_lock' \
     AND due_at <= {now} AND NOT refused \
     AND (leased_until IS NULL OR leased_until <= {present}) \
     AND (not_before IS NULL OR not_before <= {present}) ORDER BY due_at LIMIT $4";

const SCAN: &str = "SELECT kind, subject, {row} FROM {tokens} WHERE api_version = $1 \
     AND environment = $2 AND client_id = $3 AND (kind, subject) > ($4, $5) \
     AND payload IS NOT NULL ORDER BY kind, subject LIMIT $6";

const REWRITE: &str = "UPDATE {tokens} SET payload = $9 \
     WHERE {is_key} AND incarnation = $6 AND revision = $7 AND payload = $8";

impl Statements {
    pub(in crate::store) fn new(dialect: &Dialect, tables: &Tables) -> Self {
        let tokens = tables.table("tokens");
        let logins = tables.table("logins");
        let schema = tables.table("schema");
        let text = |sql: &str| -> SqlText {
            sql.replace("{row}", ROW)
                .replace("{key}", KEY)
                .replace("{is_key}", IS_KEY)
                .replace("{wanted}", dialect.wanted)
                .replace("{present}", &PRESENT.replace("{of}", ""))
                .replace("{held.present}", &PRESENT.replace("{of}", "held."))
                .replace("{greatest}", dialect.greatest)
                .replace("{now}", dialect.now)
                .replace("{tokens}", &tokens)
                .replace("{logins}", &logins)
                .replace("{schema}", &schema)
                .replace("{tokens_due}", &tables.bare("tokens_due"))
                .replace("{logins_kept}", &tables.bare("logins_kept"))
                .into()
        };
        let claim = |sql: &str, expected: &str| -> SqlText {
            let claimable =
                |of: &str| CLAIMABLE.replace("{expected}", expected).replace("{of}", of);
            let grant = format!(
                "{} AND (held.lease_id IS NULL OR held.lease_id = $6 \
                 OR held.leased_until <= {{held.present}})",
                claimable("held.")
            );
            let granted = format!("{} AND lease_id = $6", claimable(""));
            let sql = sql
                .replace("{take}", TAKE)
                .replace("{grant}", &grant)
                .replace("{granted}", &granted);
            text(&sql)
        };
        Self {
            read: text(READ),
            claim_cold: claim(CLAIM_COLD, "{of}payload IS NULL"),
            claim_known: claim(CLAIM_KNOWN, "{of}incarnation = $8 AND {of}revision = $9"),
            save: text(SAVE),
            put: text(PUT),
            release: text(RELEASE),
            forget: text("DELETE FROM {tokens} WHERE {is_key}"),
            redeem: text(REDEEM),
            clean: text("DELETE FROM {logins} WHERE keep_until <= {now}"),
            due: text(DUE),
            scan: text(SCAN),
            rewrite: text(REWRITE),
            schema_version: text("SELECT MAX(version) FROM {schema}"),
            migrations: dialect
                .migrations
                .iter()
                .map(|steps| steps.iter().map(|step| text(step)).collect())
                .collect(),
        }
    }
}

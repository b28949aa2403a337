//! What went wrong, in words that hold no row's content.

use std::error::Error as StdError;
use std::fmt;

use super::Engine;
use crate::error::Error;

/// What can be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, reason = "SQLite waits, and has no connection to lose")
)]
pub(in crate::store) enum Situation {
    /// It had no effect, for others were at the same: try again.
    Undone,
    /// Others made the same thing at the same time: a migration looks again.
    Contended,
    /// The connection went away, and whether there was an effect is not known.
    Cut,
    /// What lies there cannot be read, now or later.
    Damaged,
    /// Nothing helps now.
    Final,
}

/// What the database said. sqlx's own error is not kept: its details quote the row, its settings
/// the password.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

pub(in crate::store) fn failed<E: Engine>(doing: &str, error: &sqlx::Error) -> Error {
    use sqlx::Error as E_;
    let (what, cause) = match error {
        E_::Database(refusal) => {
            let code = refusal.code().unwrap_or_default();
            let what = E::meaning(&code).unwrap_or("the database refused the statement");
            // Classes 22 and 23, bad data and violated constraints, may quote a value.
            let quotes = E::QUOTES.iter().any(|class| code.starts_with(class));
            let said = if quotes { "" } else { refusal.message() };
            (what, format!("code {code} {}", bounded(said)))
        }
        E_::Io(error) => ("the connection failed", error.kind().to_string()),
        E_::Tls(_) => ("TLS with the database failed", error_text(error)),
        E_::PoolTimedOut => (
            "no connection could be had in time: the database is down, or the pool too small",
            error.to_string(),
        ),
        E_::PoolClosed | E_::WorkerCrashed => ("the pool is closed", error.to_string()),
        E_::ColumnDecode { index, .. } => {
            ("a row is not as this crate writes it", format!("column {index}"))
        }
        E_::ColumnNotFound(column) => {
            ("a table is not as this crate makes it", format!("column {column}"))
        }
        E_::Configuration(_) => ("the connection's settings cannot be used", String::new()),
        _ => ("the database driver failed", String::new()),
    };
    let is_damaged = matches!(error, E_::ColumnDecode { .. } | E_::ColumnNotFound(_))
        || E::situation(error) == Situation::Damaged;
    let error = Error::store(format!("the store could not {doing}: {what}"));
    let error = if is_damaged { error.not_temporary() } else { error };
    match cause.trim() {
        "" => error,
        cause => error.caused_by(Cause(cause.to_owned())),
    }
}

/// A certificate's fault is named by its own text, which holds names and dates.
fn error_text(error: &sqlx::Error) -> String {
    error.source().map(|source| bounded(&source.to_string())).unwrap_or_default()
}

fn bounded(text: &str) -> String {
    text.chars().take(200).collect()
}

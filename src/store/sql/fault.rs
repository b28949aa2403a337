//! Failures of a database, in words that hold no content of a row.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use sqlx::error::DatabaseError;

use crate::error::Error;

/// Classes of failures, by what can be done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// The database undid the statement for the sake of others: it is repeated.
    RolledBack,
    /// The connection is of no use, and nothing was executed: the statement is repeated on another.
    Refused,
    /// The connection was lost, and the statement may have been executed: it is repeated on
    /// another, and its caller learns of the doubt.
    Lost,
    /// It may heal by itself.
    Temporary,
    /// It does not heal by itself.
    Permanent,
}

/// Codes, or names of [`Fault::code_of`], and what an operator is told about them.
pub(super) type KnownFault = (&'static str, FaultClass, &'static str);

/// How a database and its driver say what failed.
pub trait FaultCodes {
    /// Their failures, in an operator's words.
    const FAULTS: &'static [KnownFault];

    /// The error's code as it stands in [`FAULTS`](Self::FAULTS).
    fn code(error: &dyn DatabaseError) -> String {
        error.code().unwrap_or_default().into_owned()
    }

    /// The name in [`FAULTS`](Self::FAULTS) of what TLS found wrong.
    fn tls_fault(_: &(dyn StdError + Send + Sync + 'static)) -> Option<&'static str> {
        None
    }
}

/// A failure of a database.
#[derive(Debug)]
pub struct Fault {
    pub class: FaultClass,
    pub text: &'static str,
    /// The database's own words. sqlx's error is not kept: its details quote the row, its settings
    /// the password.
    pub detail: String,
}

impl Fault {
    /// Looks a code up in the backend's table.
    pub fn known<DB: FaultCodes>(code: &str, detail: impl Into<String>) -> Self {
        let is = |known: &&KnownFault| known.0.split(", ").any(|known| known == code);
        let (_, class, text) = DB::FAULTS.iter().find(is).copied().unwrap_or((
            "",
            FaultClass::Temporary,
            "the database refused the statement",
        ));
        Self { class, text, detail: detail.into().chars().take(200).collect() }
    }

    pub fn of<DB: FaultCodes>(error: &sqlx::Error) -> Self {
        let (code, detail) = Self::code_of::<DB>(error);
        Self::known::<DB>(&code, detail)
    }

    /// A failure to connect. PgBouncer has one code for all it says: a refusal for good is told
    /// from a server that is away by its words.
    pub fn of_connecting<DB: FaultCodes>(error: &sqlx::Error) -> Self {
        let (code, detail) = Self::code_of::<DB>(error);
        let is_refusal =
            ["startup parameter", "no such", "auth"].iter().any(|words| detail.contains(words));
        Self::known::<DB>(if code == "08P01" && is_refusal { "startup" } else { &code }, detail)
    }

    fn code_of<DB: FaultCodes>(error: &sqlx::Error) -> (String, String) {
        use sqlx::Error as E;
        let named = |name: &str, detail: &dyn fmt::Display| (name.to_owned(), detail.to_string());
        match error {
            E::Database(refusal) => {
                let code = DB::code(&**refusal);
                // PostgreSQL's messages about bad data and constraints quote values of the row.
                let quotes = code.len() == 5 && (code.starts_with("22") || code.starts_with("23"));
                let said = if quotes { "" } else { refusal.message() };
                let detail = format!("code {code} {said}");
                (code, detail)
            }
            E::Io(error) => match error.get_ref().and_then(DB::tls_fault) {
                Some(name) => named(name, error),
                None => match error.kind() {
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted => named("closed", &""),
                    // From a write, at whose end is the message without which nothing is executed.
                    io::ErrorKind::BrokenPipe => named("unsent", &""),
                    _ => named("io", error),
                },
            },
            // A certificate's fault is named by the source's text, which holds names and dates.
            E::Tls(source) => named("tls", source),
            // The driver says so where a proxy closes the connection in place of an answer.
            E::Protocol(_) | E::WorkerCrashed => named("closed", &""),
            E::PoolTimedOut => named("no connection", &""),
            E::PoolClosed => named("pool closed", &""),
            E::ColumnDecode { index, .. } => named("row", &format_args!("column {index}")),
            E::ColumnNotFound(column) => named("table", &format_args!("column {column}")),
            E::Configuration(_) => named("settings", &""),
            _ => named("driver", &""),
        }
    }

    /// Tells whether another connection may do better.
    pub fn is_of_connection(&self) -> bool {
        matches!(self.class, FaultClass::Refused | FaultClass::Lost)
    }

    pub fn into_error(self, doing: &str) -> Error {
        let error = Error::store(format!("the store could not {doing}: {}", self.text));
        let error = match self.class {
            FaultClass::Permanent => error.not_temporary(),
            _ => error,
        };
        match self.detail.trim() {
            "" => error,
            detail => error.caused_by(io::Error::other(detail.to_owned())),
        }
    }
}

#[cfg(all(test, feature = "postgres", feature = "sqlite"))]
mod tests {
    use super::*;

    /// Operators look an error up by its text in `docs/databases.md`.
    #[test]
    fn every_fault_is_documented() {
        let docs = include_str!("../../../docs/databases.md");
        let (postgres, sqlite) = docs.split_once("### SQLite\n\n| code").unwrap();
        for (faults, table) in [(sqlx::Postgres::FAULTS, postgres), (sqlx::Sqlite::FAULTS, sqlite)]
        {
            for (codes, class, text) in faults {
                let is_temporary = if *class == FaultClass::Permanent { "no" } else { "yes" };
                let cells = format!("| {text} | {is_temporary} |");
                let row = table.lines().find(|row| row.contains(&cells));
                let row = row.unwrap_or_else(|| panic!("{codes} is missing: {cells}"));
                let is_code = codes.starts_with(|c: char| c.is_ascii_digit());
                assert!(!is_code || row.starts_with(&format!("| {codes}")), "{row}");
            }
        }
    }
}

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
                let quotes = matches!(code.as_bytes(), [b'2', b'2' | b'3', _, _, _]);
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

#[cfg(test)]
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod tests {
    use std::borrow::Cow;

    use sqlx::error::ErrorKind;
    use sqlx::{Postgres, Sqlite};

    use super::*;

    /// A database's refusal: its code and its message.
    #[derive(Debug)]
    struct Refusal(&'static str, &'static str);

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }
    }

    impl StdError for Refusal {}

    impl DatabaseError for Refusal {
        fn message(&self) -> &str {
            self.1
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn assert_is<DB: FaultCodes>(error: &sqlx::Error, code: &str, detail: &str) {
        let expected = format!("{:?}", Fault::known::<DB>(code, detail));
        assert_eq!(format!("{:?}", Fault::of::<DB>(error)), expected, "{error:?}");
    }

    /// Most of them cannot be caused from outside.
    #[test]
    fn errors_of_the_driver_are_classified() {
        use sqlx::Error as E;

        let io = |kind: io::ErrorKind| E::Io(kind.into());
        for (error, code, detail) in [
            (io(io::ErrorKind::UnexpectedEof), "closed", ""),
            (io(io::ErrorKind::ConnectionReset), "closed", ""),
            (io(io::ErrorKind::ConnectionAborted), "closed", ""),
            (E::Io(io::Error::other("the disk")), "io", "the disk"),
            (E::Protocol("byte 0".into()), "closed", ""),
            (E::WorkerCrashed, "closed", ""),
            (E::PoolTimedOut, "no connection", ""),
            (E::PoolClosed, "pool closed", ""),
            (E::ColumnDecode { index: "age".into(), source: "9".into() }, "row", "column age"),
            (E::ColumnNotFound("age".into()), "table", "column age"),
            (E::Configuration("/etc/key".into()), "settings", ""),
            (E::RowNotFound, "driver", ""),
        ] {
            assert_is::<Postgres>(&error, code, detail);
            assert_is::<Sqlite>(&error, code, detail);
        }
        assert_is::<Postgres>(&io(io::ErrorKind::BrokenPipe), "unsent", "");
    }

    #[test]
    fn faults_of_tls_are_told_apart() {
        use rustls::CertificateError as C;

        let expected = rustls::pki_types::ServerName::try_from("db.example.com").unwrap();
        let another_name = C::NotValidForNameContext { expected, presented: Vec::new() };
        let certificate = rustls::Error::InvalidCertificate;
        for (fault, code) in [
            (certificate(C::UnknownIssuer), "tls issuer"),
            (certificate(C::BadSignature), "tls issuer"),
            (certificate(C::NotValidForName), "tls name"),
            (certificate(another_name), "tls name"),
            (certificate(C::Revoked), "tls"),
            (rustls::Error::DecryptError, "tls"),
        ] {
            let detail = fault.to_string();
            assert_is::<Postgres>(&sqlx::Error::Io(io::Error::other(fault)), code, &detail);
        }
        assert_is::<Postgres>(&sqlx::Error::Tls("not offered".into()), "tls", "not offered");
    }

    /// PostgreSQL's messages about bad data and broken constraints have values of the row.
    #[test]
    fn refusals_are_told_without_the_row() {
        let refusal = |code, message| sqlx::Error::Database(Box::new(Refusal(code, message)));
        for (code, message, detail) in [
            ("22003", "9 is out of range", "code 22003 "),
            ("23505", "(ann) exists", "code 23505 "),
            ("21000", "more than one row", "code 21000 more than one row"),
            ("42P01", "no table", "code 42P01 no table"),
            ("02200", "no data", "code 02200 no data"),
        ] {
            assert_is::<Postgres>(&refusal(code, message), code, detail);
        }
        // SQLite's codes have what extends them in their upper bits.
        assert_is::<Sqlite>(&refusal("22", "no large files"), "22", "code 22 no large files");
        assert_is::<Sqlite>(&refusal("23", "not authorized"), "23", "code 23 not authorized");
        assert_is::<Sqlite>(&refusal("2067", "UNIQUE failed"), "19", "code 19 UNIQUE failed");
    }

    #[test]
    fn refusals_of_a_pooler_are_final() {
        for (code, message, known) in [
            ("08P01", "unsupported startup parameter: options", "startup"),
            ("08P01", "no such user", "startup"),
            ("08P01", "no such database: app", "startup"),
            ("08P01", "SASL authentication failed", "startup"),
            ("08P01", "server login has been failing", "08P01"),
            ("28P01", "password authentication failed", "28P01"),
        ] {
            let refusal = sqlx::Error::Database(Box::new(Refusal(code, message)));
            let expected = Fault::known::<Postgres>(known, format!("code {code} {message}"));
            let fault = Fault::of_connecting::<Postgres>(&refusal);
            assert_eq!(format!("{fault:?}"), format!("{expected:?}"), "{message}");
        }
    }

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

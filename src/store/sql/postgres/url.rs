//! The URL of a PostgreSQL server, with the parameters of libpq.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::error::Error;

/// The parameters that sqlx knows. It logs others, value and all, and ignores them.
const DRIVER_PARAMETERS: &str = "sslmode ssl-mode sslrootcert ssl-root-cert ssl-ca sslcert \
     ssl-cert sslkey ssl-key statement-cache-capacity host hostaddr port dbname user password \
     application_name options";

/// The parameters of libpq that change nothing here, with the values that they may have; all where
/// none are named. Dead connections are found by this crate's own bounds, and each new connection
/// is asked whether it can write.
const IGNORED: [(&str, &str); 3] = [
    ("channel_binding gssencmode", "disable, prefer"),
    ("target_session_attrs", "any, primary, read-write"),
    ("keepalives keepalives_count keepalives_idle keepalives_interval tcp_user_timeout", ""),
];

/// The server ends a statement shortly before this crate gives up waiting for it, so that a locked
/// table does not pile up sessions. These are startup options, since a pooler hands a session's
/// `SET` on to other clients. If the URL has others, the URL's hold.
const TIMEOUTS: [(&str, &str); 2] =
    [("options[statement_timeout]", "9500"), ("options[lock_timeout]", "9000")];

const FORM: &str = "it has the form postgres://user:password@host:5432/database";

/// The address of a server, and the settings of connections to it.
pub struct Target {
    pub options: PgConnectOptions,
    /// Without [`TIMEOUTS`], for a pooler that refuses them.
    pub plain_options: PgConnectOptions,
    pub is_pooled: AtomicBool,
    pub connect_timeout: Duration,
}

impl Target {
    /// Parses a URL. An error quotes nothing of it: it may hold a password, and with a `?` or an
    /// `&` in that, what looks like a parameter is the rest of it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
            return Err(several_hosts());
        }
        let mut url = Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
            .ok_or_else(|| invalid(format!("cannot be read: {FORM}")))?;
        let (mut driver, mut connect_timeout) = (Vec::new(), Duration::MAX);
        let mut has_root = std::env::var_os("PGSSLROOTCERT").is_some();
        for (name, value) in url.query_pairs().into_owned() {
            let is_of = |names: &str| names.split(' ').any(|known| known == name);
            if let Some((_, values)) = IGNORED.into_iter().find(|(names, _)| is_of(names)) {
                if !values.is_empty() && values.split(", ").all(|known| known != value) {
                    return Err(invalid(format!(
                        "asks by {name} for what is not available here: it takes {values}"
                    )));
                }
                continue;
            }
            match (&*name, &*value) {
                ("sslrootcert" | "ssl-root-cert" | "ssl-ca", file) => {
                    has_root = true;
                    check_file(&name, file)?;
                }
                ("sslcert" | "ssl-cert" | "sslkey" | "ssl-key", file) => check_file(&name, file)?,
                ("host" | "hostaddr" | "port", hosts) if hosts.contains(',') => {
                    return Err(several_hosts());
                }
                ("connect_timeout", seconds) => {
                    let seconds = seconds.parse::<u64>().map_err(|_| {
                        invalid("has a connect_timeout that is not a number of seconds")
                    })?;
                    let seconds = if seconds == 0 { u64::MAX } else { seconds };
                    connect_timeout = Duration::from_secs(seconds);
                    continue;
                }
                _ if name.starts_with("options[") => {}
                _ if is_of(DRIVER_PARAMETERS) => {}
                _ => {
                    return Err(invalid(format!(
                        "has a parameter that is none of connect_timeout, {DRIVER_PARAMETERS}"
                    )));
                }
            }
            driver.push((name, value));
        }
        let mut options = |pairs: &[(&str, &str)]| -> Result<_, Error> {
            url.query_pairs_mut().clear().extend_pairs(pairs).extend_pairs(&driver);
            let options = PgConnectOptions::from_url(&url)
                .map_err(|_| invalid(format!("has a part that cannot be used: {FORM}")))?
                // No statement has a float, and poolers would have to be told to ignore this.
                .extra_float_digits(None);
            // libpq does the same: a CA that is named is checked.
            let checks_ca = has_root && matches!(options.get_ssl_mode(), PgSslMode::Require);
            Ok(if checks_ca { options.ssl_mode(PgSslMode::VerifyCa) } else { options })
        };
        Ok(Self {
            options: options(&TIMEOUTS)?,
            plain_options: options(&[])?,
            is_pooled: AtomicBool::new(false),
            connect_timeout,
        })
    }
}

fn invalid(what: impl fmt::Display) -> Error {
    Error::config(format!("the store's URL {what}"))
}

fn several_hosts() -> Error {
    invalid(
        "names several hosts, of which the driver takes one: name the primary's, by DNS, a virtual \
         address or a proxy such as HAProxy",
    )
}

/// The driver's error for a file that is missing does not name it.
fn check_file(parameter: &str, file: &str) -> Result<(), Error> {
    // The text itself, in place of a file's name.
    if file.trim_start().starts_with("-----BEGIN") {
        return Ok(());
    }
    std::fs::File::open(file).map(drop).map_err(|source| {
        Error::config(format!("the file that the store's URL names by {parameter} cannot be read"))
            .caused_by(source)
    })
}

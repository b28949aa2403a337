//! The URL of a PostgreSQL server, with the parameters of libpq.

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

/// libpq's, which change nothing here: dead connections are found by this crate's own bounds.
const KEEPALIVE_PARAMETERS: &str =
    "keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout";

/// The server ends a statement shortly before this crate gives up waiting for it, so that a locked
/// table does not pile up sessions. Said in the URL, the URL's values hold.
const TIMEOUTS: [(&str, &str); 2] =
    [("options[statement_timeout]", "9500"), ("options[lock_timeout]", "9000")];

const FORM: &str = "it has the form postgres://user:password@host:5432/database";

/// How to reach a server.
pub struct Target {
    pub options: PgConnectOptions,
    /// Without [`TIMEOUTS`], for a pooler that refuses them.
    pub plain_options: PgConnectOptions,
    pub is_pooled: AtomicBool,
    pub connect_timeout: Option<Duration>,
}

impl Target {
    /// Parses a URL. It may hold a password, so no error quotes a part of it, save a parameter's
    /// name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |what: &str| Error::config(format!("the store's URL {what}"));
        let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        let mut has_hosts = hosts.contains(',');
        let (mut driver, mut sslmode, mut has_root, mut connect_timeout) =
            (Vec::new(), None, std::env::var_os("PGSSLROOTCERT").is_some(), None);
        let url =
            Url::parse(text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql"));
        for (name, value) in url.iter().flat_map(Url::query_pairs) {
            let is_one_of = |names: &str| names.split(' ').any(|known| known == name);
            match (&*name, &*value) {
                ("sslmode" | "ssl-mode", mode) => sslmode = Some(mode.to_owned()),
                ("sslrootcert" | "ssl-root-cert" | "ssl-ca", file) => {
                    has_root = true;
                    check_file(&name, file)?;
                }
                ("sslcert" | "ssl-cert" | "sslkey" | "ssl-key", file) => check_file(&name, file)?,
                ("host" | "hostaddr" | "port", value) => has_hosts |= value.contains(','),
                _ => {}
            }
            match (&*name, &*value) {
                ("connect_timeout", seconds) => {
                    let seconds = seconds.parse::<u64>().map_err(|_| {
                        invalid("has a connect_timeout that is not a number of seconds")
                    })?;
                    connect_timeout = Some(seconds).filter(|s| *s > 0).map(Duration::from_secs);
                }
                // Each new connection is asked whether it can write.
                ("target_session_attrs", "any" | "read-write" | "primary")
                | ("channel_binding" | "gssencmode", "disable" | "prefer") => {}
                ("target_session_attrs", _) => {
                    return Err(invalid(
                        "asks by target_session_attrs for a server that cannot write: the store \
                         needs read-write",
                    ));
                }
                ("channel_binding", _) => {
                    return Err(invalid(
                        "asks for channel_binding, which the driver does not have: leave it out, \
                         and write sslmode=verify-full",
                    ));
                }
                _ if is_one_of(KEEPALIVE_PARAMETERS) => {}
                _ if is_one_of(DRIVER_PARAMETERS) || name.starts_with("options[") => {
                    driver.push((name.into_owned(), value.into_owned()));
                }
                _ => {
                    return Err(invalid(&format!(
                        "has a parameter {name:?}, which the driver does not know: leave it out"
                    )));
                }
            }
        }
        if has_hosts {
            return Err(invalid(
                "names several hosts, of which the driver takes one: name the primary's, by DNS, \
                 a virtual address or a proxy such as HAProxy",
            ));
        }
        let url = url.ok_or_else(|| invalid(&format!("cannot be read: {FORM}")))?;
        let options = |pairs: &[(&str, &str)]| {
            let mut url = url.clone();
            url.query_pairs_mut().clear().extend_pairs(pairs).extend_pairs(&driver);
            let options = PgConnectOptions::from_url(&url)
                .map_err(|_| invalid(&format!("has a part that cannot be used: {FORM}")))?;
            // A pooler would have to be told to ignore it, and no statement has a float.
            let options = options.extra_float_digits(None);
            // As libpq does: a CA that is named is checked.
            let verifies_ca = has_root && sslmode.as_deref() == Some("require");
            Result::<_, Error>::Ok(if verifies_ca {
                options.ssl_mode(PgSslMode::VerifyCa)
            } else {
                options
            })
        };
        Ok(Self {
            options: options(&TIMEOUTS)?,
            plain_options: options(&[])?,
            is_pooled: AtomicBool::new(false),
            connect_timeout,
        })
    }
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

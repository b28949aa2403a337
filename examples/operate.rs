//! An operator's tool on a store: who is in it, in which state, sealed by which key; and what to do
//! about one of them.
//!
//! ```text
//! cargo run --example operate --features postgres,sqlite -- count
//! ```
//!
//! It is an example to copy into your app, where it runs beside the app's own processes: it takes
//! the same leases as they do. The client is set by the variables of `Hurdlr::from_env`, the store
//! by these:
//!
//! | variable | |
//! |---|---|
//! | `STORE_URL` | `sqlite:///var/lib/app/tokens.db` or `postgres://…`; required |
//! | `STORE_SCHEMA` | the schema of the tables, on PostgreSQL |
//! | `STORE_KEYS` | the sealing keys in base64, separated by commas; the first one seals |
//! | `STORE_USER_HASH_KEY` | the key by which user ids are hashed, in base64 |
//!
//! Leave a key out where the store has none: its tokens are in plaintext, or its user ids not
//! hashed. `list` and `count` need no key.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hurdlr_oauth2::manager::{Disconnected, UserHandle};
use hurdlr_oauth2::secrecy::SecretString;
use hurdlr_oauth2::store::{
    KeyId, KeyRing, PostgresStore, Realm, ResealOutcome, Row, RowKind, Sealed, SealingKey,
    SqliteStore, StoreKey, TokenStore, UserHashKey,
};
use hurdlr_oauth2::{Hurdlr, TokenManager, UserId};
use indicatif::{ProgressBar, ProgressStyle};

const USAGE: &str = "\
usage: operate COMMAND
  list [STATE]                 one line for each row
  count                        how many rows there are, by state and by sealing key
  show KIND USER               one user
  forget KIND USER [--yes]     remove the user here; the provider is not told
  revoke KIND USER [--yes]     remove the user, and have the provider revoke their tokens
  reseal                       seal every row with the first of the keys

KIND is login or enterprise. Without --yes, forget and revoke show what they would remove.
STATE is one of fresh, due, refreshing, paused, refused, revoking, unreadable.";

/// Rows that are read in one step.
const PAGE: usize = 500;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let command: Vec<String> = env::args().skip(1).collect();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    if let [] | ["-h" | "--help"] = command[..] {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let outcome = match Tool::from_env().await {
        Ok(tool) => tool.run(&command, &mut io::stdout().lock()).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A store, as the table has it and as it is opened.
pub(crate) struct Tool {
    hurdlr: Hurdlr,
    table: Arc<dyn TokenStore>,
    sealed: Option<Sealed<Arc<dyn TokenStore>>>,
}

impl Tool {
    /// `keys` is `None` for a store in plaintext.
    pub(crate) fn new(
        hurdlr: Hurdlr,
        table: Arc<dyn TokenStore>,
        keys: Option<KeyRing>,
        user_hash: Option<UserHashKey>,
    ) -> Self {
        let sealed = keys.map(|keys| Sealed::new(Arc::clone(&table), keys));
        let sealed = match (sealed, user_hash) {
            (Some(sealed), Some(key)) => Some(sealed.hash_users(key)),
            (sealed, _) => sealed,
        };
        Self { hurdlr, table, sealed }
    }

    async fn from_env() -> Outcome<Self> {
        let secret = |name| env::var(name).ok().map(SecretString::from);
        let hash_key = secret("STORE_USER_HASH_KEY").map(|key| UserHashKey::from_base64(&key));
        Ok(Self::new(Hurdlr::from_env()?, open_table().await?, key_ring()?, hash_key.transpose()?))
    }

    /// Runs one command of [`USAGE`].
    pub(crate) async fn run(&self, command: &[&str], out: &mut impl Write) -> Outcome {
        match command {
            ["list"] => self.list(None, out).await,
            ["list", state] => self.list(Some(state), out).await,
            ["count"] => self.count(out).await,
            ["reseal"] => self.reseal(out).await,
            ["show", kind, user] => self.show(&Subject::parse(kind, user)?, out).await,
            ["forget" | "revoke", kind, user] => {
                self.show(&Subject::parse(kind, user)?, out).await?;
                Ok(writeln!(out, "Nothing is changed. Add --yes to remove this user.")?)
            }
            ["forget", kind, user, "--yes"] => self.forget(&Subject::parse(kind, user)?, out).await,
            ["revoke", kind, user, "--yes"] => self.revoke(&Subject::parse(kind, user)?, out).await,
            _ => Err(USAGE.into()),
        }
    }

    async fn list(&self, state: Option<&str>, out: &mut impl Write) -> Outcome {
        writeln!(
            out,
            "{:<10} {:<10} {:>8} {:>8} {:>8} {:<16} user",
            "kind", "state", "revision", "age", "due in", "key"
        )?;
        let mut rows = self.rows();
        while let Some((key, row)) = rows.next().await? {
            let row_state = state_of(&key, &row);
            if state.is_some_and(|state| state != row_state) {
                continue;
            }
            let row = row.ok();
            let token = row.as_ref().and_then(|row| row.token.as_ref());
            writeln!(
                out,
                "{:<10} {row_state:<10} {:>8} {:>8} {:>8} {:<16} {}",
                kind_name(key.kind()),
                row.as_ref().map_or_else(|| "-".into(), |row| row.version.revision.to_string()),
                token.map_or_else(|| "-".into(), |token| span(token.age)),
                token.map_or_else(|| "-".into(), |token| span(token.due_in)),
                row.as_ref().map_or_else(|| "-".into(), sealing_key),
                key.subject().as_str(),
            )?;
        }
        Ok(())
    }

    async fn count(&self, out: &mut impl Write) -> Outcome {
        let (mut states, mut keys) = (BTreeMap::new(), BTreeMap::new());
        let mut rows = self.rows();
        while let Some((key, row)) = rows.next().await? {
            *states.entry(state_of(&key, &row)).or_insert(0_u64) += 1;
            if let Ok(row) = &row {
                *keys.entry(sealing_key(row)).or_insert(0_u64) += 1;
            }
        }
        writeln!(out, "{:<16} {:>10}", "state", "rows")?;
        for (state, rows) in &states {
            writeln!(out, "{state:<16} {rows:>10}")?;
        }
        writeln!(out, "{:<16} {:>10}", "total", states.values().sum::<u64>())?;
        writeln!(out, "\n{:<16} {:>10}", "sealing key", "rows")?;
        for (key, rows) in keys {
            writeln!(out, "{key:<16} {rows:>10}")?;
        }
        Ok(())
    }

    /// The row of a user, under the key by which the table has it.
    async fn find(&self, subject: &Subject) -> Outcome<(StoreKey, Row)> {
        let key = StoreKey::new(self.realm(), subject.kind, subject.user.clone());
        let key = self.sealed.as_ref().map_or(key.clone(), |sealed| sealed.stored_key(&key));
        let row = self.table.read(std::slice::from_ref(&key)).await?.remove(0)?;
        let user = subject.user.as_str();
        let missing = || format!("there is no {} user {user} in the store", kind_name(key.kind()));
        Ok((key.clone(), row.ok_or_else(missing)?))
    }

    async fn show(&self, subject: &Subject, out: &mut impl Write) -> Outcome {
        let (key, row) = self.find(subject).await?;
        let mut fact = |name: &str, value: &str| writeln!(out, "{name:<14} {value}");
        fact("user", subject.user.as_str())?;
        if key.subject() != &subject.user {
            fact("in the table", key.subject().as_str())?;
        }
        fact("kind", kind_name(key.kind()))?;
        fact("revision", &row.version.revision.to_string())?;
        if let Some(token) = &row.token {
            fact("age", &span(token.age))?;
            fact("due in", &span(token.due_in))?;
            fact("sealing key", &sealing_key(&row))?;
        }
        if let Some(lease) = row.leased_for {
            fact("leased for", &span(lease))?;
        }
        if let Some(pause) = row.not_before {
            fact("paused for", &span(pause))?;
        }
        if row.in_flight {
            fact("unanswered", "an earlier refresh was, so its token may be lost")?;
        }
        let status = match self.manager()?.handle(subject).status().await {
            Ok(_) if row.refused => "refused: the person has to log in again".into(),
            Ok(status) => format!("{status:?}"),
            Err(error) => error.to_string(),
        };
        fact("status", &status)?;
        Ok(())
    }

    async fn forget(&self, subject: &Subject, out: &mut impl Write) -> Outcome {
        self.find(subject).await?;
        let manager = self.manager()?;
        manager.handle(subject).forget().await?;
        writeln!(out, "{} is forgotten. The provider was not told.", subject.user.as_str())?;
        manager.end().await
    }

    async fn revoke(&self, subject: &Subject, out: &mut impl Write) -> Outcome {
        self.find(subject).await?;
        let manager = self.manager()?;
        let fate = match manager.handle(subject).disconnect().await? {
            Disconnected::Revoked => "their tokens are revoked".to_owned(),
            Disconnected::Pending(why) => {
                format!("their tokens are not revoked yet, and the app's keep_alive goes on: {why}")
            }
            Disconnected::Unrevoked { .. } => {
                format!("API {} cannot revoke their tokens", self.hurdlr.api_version())
            }
            other => format!("{other:?}"),
        };
        writeln!(out, "{} is removed; {fate}.", subject.user.as_str())?;
        manager.end().await
    }

    async fn reseal(&self, out: &mut impl Write) -> Outcome {
        let sealed = self.sealed.as_ref().ok_or("reseal needs STORE_KEYS")?;
        let mut all = 0_u64;
        let mut rows = self.rows();
        while rows.next().await?.is_some() {
            all += 1;
        }
        let style = "{wide_bar} {human_pos} of {human_len}, {eta} left";
        let bar = ProgressBar::new(all).with_style(ProgressStyle::with_template(style)?);
        let mut walk = sealed.reseal(self.realm());
        let mut resealed = 0_u64;
        while let Some(row) = walk.next().await {
            let row = row?; // what is resealed stays so: the command can be repeated
            bar.inc(1);
            let done = bar.position();
            if bar.is_hidden() && done * 10 / all.max(1) > (done - 1) * 10 / all.max(1) {
                eprintln!("{done} of {all}"); // not on a terminal: a line for each tenth
            }
            match row.outcome {
                ResealOutcome::Resealed => resealed += 1,
                ResealOutcome::Unreadable(error) => {
                    let line = format!("{}: {error}", row.key.subject().as_str());
                    bar.suspend(|| writeln!(out, "{line}"))?;
                }
                _ => {}
            }
        }
        bar.finish_and_clear();
        writeln!(out, "{resealed} resealed; {} rows are under the first key.", walk.current())?;
        match walk.left() {
            0 => Ok(writeln!(out, "The other keys can go once no process seals with them.")?),
            left => Err(format!("{left} rows are not: repeat it, and keep the other keys").into()),
        }
    }

    fn realm(&self) -> Arc<Realm> {
        Arc::new(self.hurdlr.realm())
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            table: &*self.table,
            realm: self.realm(),
            page: Vec::new().into_iter(),
            after: None,
            is_last: false,
        }
    }

    /// A manager of this process. It is the app's code that removes users, so that a refresh under
    /// way in another process brings none of them back.
    fn manager(&self) -> Outcome<Manager> {
        let hurdlr = self.hurdlr.clone();
        let manager = match &self.sealed {
            Some(sealed) => TokenManager::builder(hurdlr, sealed.clone()),
            None => TokenManager::builder(hurdlr, Arc::clone(&self.table)),
        };
        Ok(Manager(manager.build()?))
    }
}

struct Manager(TokenManager);

impl Manager {
    fn handle(&self, subject: &Subject) -> UserHandle {
        match subject.kind {
            RowKind::Enterprise => self.0.enterprise_user(&subject.user),
            _ => self.0.user(&subject.user),
        }
    }

    async fn end(&self) -> Outcome {
        // The store has the record of a revocation that is pending.
        self.0.shutdown().await;
        Ok(())
    }
}

/// A user as the command line names them.
struct Subject {
    kind: RowKind,
    user: UserId,
}

impl Subject {
    fn parse(kind: &str, user: &str) -> Outcome<Self> {
        let kinds = [RowKind::Login, RowKind::Enterprise];
        let kind = kinds.into_iter().find(|it| kind_name(*it) == kind).ok_or(USAGE)?;
        Ok(Self { kind, user: user.parse()? })
    }
}

/// All rows of the table, read page by page.
struct Rows<'a> {
    table: &'a dyn TokenStore,
    realm: Arc<Realm>,
    page: std::vec::IntoIter<Item>,
    after: Option<StoreKey>,
    is_last: bool,
}

type Item = (StoreKey, Result<Row, hurdlr_oauth2::Error>);

impl Rows<'_> {
    async fn next(&mut self) -> Outcome<Option<Item>> {
        if self.page.len() == 0 && !self.is_last {
            let page = self.table.scan(&self.realm, self.after.as_ref(), PAGE).await?;
            self.is_last = page.len() < PAGE;
            self.after = page.last().map(|(key, _)| key.clone());
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

/// The state that matters most for an operator.
fn state_of(key: &StoreKey, row: &Result<Row, hurdlr_oauth2::Error>) -> &'static str {
    match row {
        Err(_) => "unreadable",
        Ok(_) if key.kind() == RowKind::PendingRevocation => "revoking",
        Ok(row) if row.refused => "refused",
        Ok(row) if row.leased_for.is_some() => "refreshing",
        Ok(row) if row.not_before.is_some() => "paused",
        Ok(row) if row.token.as_ref().is_some_and(|token| token.due_in.is_zero()) => "due",
        Ok(_) => "fresh",
    }
}

fn kind_name(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Login => "login",
        RowKind::Enterprise => "enterprise",
        RowKind::Partner => "partner",
        RowKind::PendingRevocation => "revocation",
        _ => "other",
    }
}

fn sealing_key(row: &Row) -> String {
    let key = row.token.as_ref().and_then(|token| KeyId::of_payload(&token.payload));
    key.map_or_else(|| "plaintext".into(), |key| key.to_string())
}

/// A span in its largest whole unit.
fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// The table without its seal. It is neither made nor brought up to this release: that is the
/// app's.
async fn open_table() -> Outcome<Arc<dyn TokenStore>> {
    let url = env::var("STORE_URL").map_err(|_| "STORE_URL is not set")?;
    if url.starts_with("sqlite:") {
        let url = if url.contains('?') { url } else { format!("{url}?mode=rw") };
        return Ok(Arc::new(SqliteStore::at(url).open_plaintext().await?));
    }
    let store = PostgresStore::at(url).max_connections(2);
    let store = match env::var("STORE_SCHEMA") {
        Ok(schema) => store.schema(schema),
        Err(_) => store,
    };
    Ok(Arc::new(store.open_plaintext().await?))
}

fn key_ring() -> Outcome<Option<KeyRing>> {
    let Ok(keys) = env::var("STORE_KEYS") else { return Ok(None) };
    let mut ring: Option<KeyRing> = None;
    for key in keys.split(',') {
        let key = SealingKey::from_base64(&SecretString::from(key))?;
        ring = Some(match ring {
            None => KeyRing::new(key),
            Some(ring) => ring.with_opening_key(key),
        });
    }
    Ok(ring)
}

//! What the processes tell each other: lines of JSON, each with the time by the machine's own
//! monotonic clock, which is the same for all processes and which no plan turns.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use hurdlr_oauth2::manager::RefreshPolicy;
use hurdlr_oauth2::store::{RowKind, StoreKey, Version};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The life of an access token, in seconds.
pub(crate) const TOKEN_LIFE: u64 = 20;
pub(crate) const LEASE: Duration = Duration::from_secs(4);
pub(crate) const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const REVALIDATE_AFTER: Duration = Duration::from_secs(2);
pub(crate) const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
/// The longest pause after a failure, unless the provider asks for a longer one.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Every process reads each user at least so often.
pub(crate) const READ_EVERY: Duration = Duration::from_secs(4);
/// Attempts of one request; a refresh is sent once more without its Bearer header.
pub(crate) const MAX_ATTEMPTS: u32 = 2;

pub(crate) fn policy() -> RefreshPolicy {
    RefreshPolicy::default()
        .lease(LEASE)
        .refresh_timeout(REFRESH_TIMEOUT)
        .initial_backoff(INITIAL_BACKOFF)
        .max_backoff(MAX_BACKOFF)
}

/// Microseconds of the machine's monotonic clock.
pub(crate) type Micros = u64;

pub(crate) const SECOND: Micros = 1_000_000;

pub(crate) fn now() -> Micros {
    let time = clock_gettime(ClockId::Monotonic);
    let [seconds, nanos] = [time.tv_sec, time.tv_nsec].map(|it| u64::try_from(it).unwrap_or(0));
    seconds * SECOND + nanos / 1_000
}

#[expect(clippy::cast_possible_truncation, reason = "of 580,000 years")]
pub(crate) const fn micros(span: Duration) -> Micros {
    span.as_micros() as u64
}

/// A user by number. Those before [`Population::people`] log in; the others are enterprise users.
pub(crate) type User = u32;

/// A process: each restart is another one.
pub(crate) type Process = u32;

/// A token, by a digest of it: no secret is written down.
pub(crate) type Digest = u64;

pub(crate) fn digest(secret: &str) -> Digest {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn user_name(user: User) -> String {
    format!("user-{user}")
}

pub(crate) fn user_number(name: &str) -> Option<User> {
    name.strip_prefix("user-")?.parse().ok()
}

/// The user of a row; none for the rows by which processes organise themselves.
pub(crate) fn user_of(key: &StoreKey) -> Option<User> {
    matches!(key.kind(), RowKind::Login | RowKind::Enterprise)
        .then(|| user_number(key.subject().as_str()))?
}

/// The name by which the provider knows a process.
pub(crate) fn agent(process: Process) -> String {
    format!("chaos/{process}")
}

pub(crate) fn process_of(agent: &str) -> Option<Process> {
    agent.strip_prefix("chaos/")?.parse().ok()
}

/// How many users there are of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Population {
    pub(crate) people: User,
    pub(crate) enterprise: User,
}

impl Population {
    pub(crate) fn total(self) -> User {
        self.people + self.enterprise
    }

    pub(crate) fn is_person(self, user: User) -> bool {
        user < self.people
    }
}

/// The version of a row, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RowVersion {
    pub(crate) incarnation: u64,
    pub(crate) revision: u64,
}

impl From<Version> for RowVersion {
    fn from(version: Version) -> Self {
        Self { incarnation: version.incarnation, revision: version.revision }
    }
}

/// What a process has to know to begin: the first line it reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) process: Process,
    pub(crate) provider: String,
    pub(crate) authorize_url: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    pub(crate) is_v6: bool,
    pub(crate) store: String,
    pub(crate) population: Population,
    /// How many users are kept in memory.
    pub(crate) capacity: usize,
    /// The seed of the times at which users are read.
    pub(crate) seed: u64,
}

/// What a process is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// A person logs in, by their browser.
    LogIn(User),
    /// A user is removed, or disconnected where the API can revoke.
    Remove(User),
    /// The time of day jumps by so many seconds.
    Jump { seconds: i64, sent: Micros },
}

/// What a process says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Said {
    Ready,
    /// The store granted a lease of a row with this refresh token. `begun` is before the call, `at`
    /// after it.
    Granted {
        user: User,
        version: RowVersion,
        refresh: Option<Digest>,
        begun: Micros,
        at: Micros,
    },
    /// A token has reached the process, which is about to save it.
    Reached {
        user: User,
        version: RowVersion,
        access: Digest,
        refresh: Option<Digest>,
        at: Micros,
    },
    Saved {
        user: User,
        version: RowVersion,
        at: Micros,
    },
    /// A lease is about to be ended.
    Releasing {
        user: User,
        version: RowVersion,
        release: Note,
        at: Micros,
    },
    Released {
        user: User,
        version: RowVersion,
        release: Note,
        begun: Micros,
        at: Micros,
    },
    /// Access tokens that readers got, each with the moment the last such read began.
    Served(Vec<(User, Digest, Micros)>),
    /// The API refused this token, and the manager was told so, for the first time for this user.
    Refused {
        user: User,
        access: Digest,
        at: Micros,
    },
    /// An order about a user is done.
    Done {
        user: User,
        begun: Micros,
        at: Micros,
        is_ok: bool,
    },
    /// The machine left this process without a CPU.
    Lagged {
        from: Micros,
        to: Micros,
    },
    /// The clock was turned, at some time between these two.
    Jumped {
        from: Micros,
        to: Micros,
    },
    /// Users whose last read failed.
    Failing(Vec<Failing>),
    Reads(u64),
}

impl Said {
    /// When it was said, where that is told.
    pub(crate) fn at(&self) -> Micros {
        match self {
            Self::Granted { at, .. }
            | Self::Reached { at, .. }
            | Self::Saved { at, .. }
            | Self::Releasing { at, .. }
            | Self::Released { at, .. }
            | Self::Refused { at, .. }
            | Self::Done { at, .. }
            | Self::Lagged { to: at, .. }
            | Self::Jumped { to: at, .. } => *at,
            _ => 0,
        }
    }
}

/// The notes that a release leaves in the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) pause: Micros,
    pub(crate) refused: bool,
    pub(crate) in_flight: bool,
}

/// A user whose last read failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failing {
    pub(crate) user: User,
    pub(crate) why: Why,
    /// When the first read began that failed so, without one in between that did not.
    pub(crate) since: Micros,
    /// When the last one began.
    pub(crate) last: Micros,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// The person has to log in.
    LoginOver,
    /// The API does not take the token.
    NotTaken,
    /// Another error, by its name.
    Error(String),
}

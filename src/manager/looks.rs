//! Looks at the store: what other processes did to the users who are read here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Inner;
use super::entry::Entry;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::store::Row;
use crate::token::Token;

/// How many users are looked up by one query.
const AT_ONCE: usize = 500;

/// The users to be looked up next, and whether somebody does.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Gathering>);

#[derive(Debug, Default)]
struct Gathering {
    /// By address: who is asked for twice is looked up once.
    users: HashMap<usize, Arc<Entry>>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Looking,
    /// After a failure.
    Resting,
}

impl Looks {
    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to look up; none where nobody has been asked for since.
    fn next_users(&self) -> Option<Vec<Arc<Entry>>> {
        let mut gathering = self.lock();
        let users: Vec<_> = gathering.users.drain().map(|(_, entry)| entry).collect();
        gathering.state = if users.is_empty() { State::Idle } else { State::Looking };
        Some(users).filter(|users| !users.is_empty())
    }
}

/// Whose looks are under way. Should a store panic, the next reader begins anew.
struct Looking<'a>(&'a Looks);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().state = State::Idle;
        }
    }
}

impl Inner {
    /// Has a user who is read looked up again, together with whoever else is to be, if it is time:
    /// at half the bound, so that who is read all the time is looked up within it.
    pub(super) fn look_after(self: &Arc<Self>, entry: &Arc<Entry>, unseen_for: Duration) {
        if unseen_for < self.look_after {
            return;
        }
        let mut gathering = self.looks.lock();
        if gathering.state == State::Resting || self.closing.borrow().is_some() {
            return;
        }
        gathering.users.entry(Arc::as_ptr(entry).addr()).or_insert_with(|| Arc::clone(entry));
        if gathering.state == State::Idle {
            gathering.state = State::Looking;
            self.runtime.spawn(Arc::clone(self).look_around());
        }
    }

    async fn look_around(self: Arc<Self>) {
        let _looking = Looking(&self.looks);
        let mut failures = 0;
        while let Some(users) = self.looks.next_users() {
            let Err(error) = self.look_up(&users).await else {
                failures = 0;
                continue;
            };
            failures += 1;
            tracing::warn!(%error, "the store cannot be looked at");
            self.looks.lock().state = State::Resting;
            let pause = self.policy.backoff(failures, self.random.next_u64());
            self.sleep_unless_closing(pause.min(self.look_after)).await;
        }
    }

    async fn look_up(&self, users: &[Arc<Entry>]) -> Result<(), Error> {
        let mut parts: Vec<_> = users.chunks(AT_ONCE).collect();
        while let Some(users) = parts.pop() {
            let compared = self.compare(users).await;
            let damaged = compared.as_ref().err().filter(|error| !error.is_temporary());
            match (damaged, users) {
                (None, _) => {}
                (Some(error), [user]) => {
                    tracing::warn!(user = ?user.subject(), %error, "a row cannot be read");
                    user.seen(self.clock.now());
                }
                // One damaged row must not hide the others.
                (Some(_), _) => parts.extend(<[_; 2]>::from(users.split_at(users.len() / 2))),
            }
            for user in users {
                user.give_up_look();
            }
            if damaged.is_none() {
                compared?;
            }
        }
        Ok(())
    }

    /// Compares what is served with what the store has.
    async fn compare(&self, users: &[Arc<Entry>]) -> Result<(), Error> {
        let asked = self.clock.now();
        let keys: Vec<_> = users
            .iter()
            .map(|entry| {
                entry.begin_look();
                entry.key()
            })
            .collect();
        let rows = self.store.read(&keys).await?;
        for (entry, row) in users.iter().zip(rows) {
            if let Err(error) = self.settle_look(entry, self.aged(row, asked), asked).await {
                tracing::warn!(user = ?entry.subject(), %error, "a look came to nothing");
            }
        }
        Ok(())
    }

    async fn settle_look(
        &self,
        entry: &Entry,
        row: Option<Row>,
        asked: Timestamp,
    ) -> Result<(), Error> {
        let Some(held) = entry.seen(asked) else {
            return Ok(()); // the user left or came in anew meanwhile
        };
        let instead = match row {
            Some(row) if held.version == Some(row.version) => None,
            Some(row) if held.is_newer_than(row.version) => {
                self.write_back(entry, &held, row.version).await?;
                None
            }
            Some(Row { version, token: Some(stored), .. }) => {
                let token = Token::from_payload(&stored.payload, stored.age, &self.clock)?;
                Some(self.hold(entry, token, version))
            }
            _ => held.version.map(|_| Arc::clone(&self.vacant)),
        };
        if entry.end_look(instead) {
            tracing::debug!(user = ?entry.subject(), "another process changed the user");
        }
        Ok(())
    }
}

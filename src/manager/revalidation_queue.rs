//! The users to be compared with the store next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct RevalidationQueue<Entry>(Mutex<Queue<Entry>>);

struct Queue<Entry> {
    /// By address, so that a user who is queued twice is looked up once.
    entries: HashMap<usize, Arc<Entry>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    /// After a failure of the store: nobody is queued until the pause is over.
    BackingOff,
}

impl<Entry> Default for RevalidationQueue<Entry> {
    fn default() -> Self {
        Self(Mutex::new(Queue { entries: HashMap::new(), state: State::Idle }))
    }
}

impl<Entry> RevalidationQueue<Entry> {
    fn lock(&self) -> MutexGuard<'_, Queue<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a user. Says whether the loop that takes them is to be started.
    pub(super) fn push(&self, entry: &Arc<Entry>) -> bool {
        let mut queue = self.lock();
        if queue.state == State::BackingOff {
            return false;
        }
        queue.entries.entry(Arc::as_ptr(entry).addr()).or_insert_with(|| Arc::clone(entry));
        let starts = queue.state == State::Idle;
        queue.state = State::Running;
        starts
    }

    /// Takes all users that are queued. `None` where there are none, and then the loop is over.
    pub(super) fn take(&self) -> Option<Vec<Arc<Entry>>> {
        let mut queue = self.lock();
        let entries: Vec<_> = queue.entries.drain().map(|(_, entry)| entry).collect();
        queue.state = if entries.is_empty() { State::Idle } else { State::Running };
        Some(entries).filter(|entries| !entries.is_empty())
    }

    pub(super) fn back_off(&self) {
        self.lock().state = State::BackingOff;
    }
}

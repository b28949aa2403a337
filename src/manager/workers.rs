//! The tasks that refreshes run in: how many at once, and who goes first when they are short.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task;

/// Workers take what is to be done, one after the other: what callers wait for before what renews in
/// the background. A task for each of them would be made and ended as often as a token is had.
pub(super) struct Workers<Job>(Mutex<Queue<Job>>);

struct Queue<Job> {
    /// How many workers there may be beside those there are.
    free: usize,
    /// How many have nothing to do, and are about to look once more.
    lingering: usize,
    next: u64,
    urgent: VecDeque<Job>,
    patient: BTreeMap<Ticket, Job>,
}

/// A place among the patient; kept by whoever may have to hurry it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// One worker's place. Given up on drop, and then with all that waits: a worker that does not end by
/// itself ends with its runtime.
pub(super) struct Worker<Job> {
    workers: Arc<Workers<Job>>,
    state: State,
}

/// Where a job has gone.
pub(super) enum Place<Job> {
    Urgent,
    Patient(Ticket),
    /// A worker is to be made for it.
    New(Worker<Job>, Job),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Busy,
    Lingering,
    Gone,
}

impl<Job> Workers<Job> {
    pub(super) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queue {
            free: at_once,
            lingering: 0,
            next: 0,
            urgent: VecDeque::new(),
            patient: BTreeMap::new(),
        })))
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a place for a job.
    pub(super) fn enter(self: &Arc<Self>, job: Job, urgent: bool) -> Place<Job> {
        let mut queue = self.queue();
        if queue.free > 0 && queue.waiting() >= queue.lingering {
            queue.free -= 1;
            return Place::New(Worker { workers: Arc::clone(self), state: State::Busy }, job);
        }
        if urgent {
            queue.urgent.push_back(job);
            return Place::Urgent;
        }
        let ticket = Ticket(queue.next);
        queue.next += 1;
        queue.patient.insert(ticket, job);
        Place::Patient(ticket)
    }

    /// Puts a patient one behind the urgent.
    pub(super) fn hurry(&self, ticket: Ticket) {
        let mut queue = self.queue();
        if let Some(job) = queue.patient.remove(&ticket) {
            queue.urgent.push_back(job);
        }
    }
}

impl<Job> Queue<Job> {
    fn waiting(&self) -> usize {
        self.urgent.len() + self.patient.len()
    }

    fn pop(&mut self) -> Option<Job> {
        self.urgent.pop_front().or_else(|| self.patient.pop_first().map(|(_, job)| job))
    }
}

impl<Job> Worker<Job> {
    /// What is to be done next. None where nothing is, and then this was the last question.
    pub(super) async fn next(&mut self) -> Option<Job> {
        // Jobs may end without ever having to wait.
        task::consume_budget().await;
        if let Some(job) = self.take(State::Lingering) {
            return Some(job);
        }
        // Whoever waited for the last one may want the next one at once.
        task::yield_now().await;
        self.take(State::Gone)
    }

    fn take(&mut self, or: State) -> Option<Job> {
        let mut queue = self.workers.queue();
        let job = queue.pop();
        let then = if job.is_some() { State::Busy } else { or };
        queue.lingering += usize::from(then == State::Lingering);
        queue.lingering -= usize::from(self.state == State::Lingering);
        queue.free += usize::from(then == State::Gone);
        self.state = then;
        job
    }
}

impl<Job> Drop for Worker<Job> {
    fn drop(&mut self) {
        if self.state == State::Gone {
            return;
        }
        let mut queue = self.workers.queue();
        queue.lingering -= usize::from(self.state == State::Lingering);
        queue.free += 1;
        let left = (mem::take(&mut queue.urgent), mem::take(&mut queue.patient));
        drop(queue);
        drop(left);
    }
}

impl<Job> fmt::Debug for Workers<Job> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.queue();
        f.debug_struct("Workers")
            .field("free", &queue.free)
            .field("waiting", &queue.waiting())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn queued<Job>(workers: &Arc<Workers<Job>>, job: Job, urgent: bool) -> Option<Ticket> {
        match workers.enter(job, urgent) {
            Place::Urgent => None,
            Place::Patient(ticket) => Some(ticket),
            Place::New(..) => panic!("it was to be queued"),
        }
    }

    fn employed<Job>(workers: &Arc<Workers<Job>>, job: Job) -> Worker<Job> {
        match workers.enter(job, false) {
            Place::New(worker, _) => worker,
            _ => panic!("it was to have a worker of its own"),
        }
    }

    #[tokio::test]
    async fn what_callers_wait_for_goes_first_and_the_hurried_go_behind_it() {
        let workers = Workers::new(1);
        let mut worker = employed(&workers, "first");
        queued(&workers, "patient", false);
        let hurried = queued(&workers, "hurried", false).expect("a ticket");
        queued(&workers, "urgent", true);
        workers.hurry(hurried);
        for expected in ["urgent", "hurried", "patient"] {
            assert_eq!(worker.next().await, Some(expected));
        }
        assert_eq!(worker.next().await, None);
    }

    #[tokio::test]
    async fn there_are_no_more_workers_than_may_be_and_who_is_done_makes_room() {
        let workers = Workers::new(2);
        let (mut one, _other) = (employed(&workers, "first"), employed(&workers, "second"));
        queued(&workers, "third", true);
        assert_eq!(one.next().await, Some("third"));
        assert_eq!(one.next().await, None);
        drop(one);
        let _again = employed(&workers, "fourth");
        queued(&workers, "fifth", true);
    }

    #[tokio::test]
    async fn a_worker_that_has_just_nothing_to_do_takes_what_comes_next() {
        let workers = Workers::new(2);
        let mut worker = employed(&workers, "first");
        let meanwhile = async {
            queued(&workers, "second", false);
            employed(&workers, "third") // it can take one of them only
        };
        let (next, _other) = tokio::join!(worker.next(), meanwhile);
        assert_eq!(next, Some("second"));
    }

    #[test]
    fn a_worker_whose_runtime_has_ended_leaves_nobody_waiting() {
        let workers = Workers::new(1);
        let job = Arc::new(());
        let worker = employed(&workers, Arc::clone(&job));
        queued(&workers, Arc::clone(&job), true);
        queued(&workers, Arc::clone(&job), false);
        drop(worker);
        assert_eq!(Arc::strong_count(&job), 1);
        employed(&workers, job);
    }

    #[test]
    fn nobody_counts_on_a_worker_that_was_dropped_while_it_lingered() {
        let workers = Workers::new(2);
        let mut worker = employed(&workers, "first");
        let mut context = Context::from_waker(Waker::noop());
        assert!(pin!(worker.next()).poll(&mut context).is_pending());
        drop(worker);
        employed(&workers, "second");
    }
}

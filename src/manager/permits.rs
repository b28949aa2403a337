//! How many requests run at once, and who goes first when they are short.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Permits for requests to the provider: those whose callers wait go before those that renew in
/// the background.
#[derive(Debug)]
pub(super) struct Permits(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    free: usize,
    next: u64,
    urgent: BTreeMap<Ticket, oneshot::Sender<()>>,
    patient: BTreeMap<Ticket, oneshot::Sender<()>>,
}

/// A place in the queue; kept by whoever may have to hurry it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Gives the permit back on drop.
#[derive(Debug)]
pub(super) struct Permit(Arc<Permits>);

impl Permits {
    pub(super) fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queue {
            free: permits,
            next: 0,
            urgent: BTreeMap::new(),
            patient: BTreeMap::new(),
        })))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the queue. What comes back is to be awaited by [`acquire`](Self::acquire).
    pub(super) fn enter(&self, urgent: bool) -> (Ticket, oneshot::Receiver<()>) {
        let mut queue = self.queue();
        let ticket = Ticket(queue.next);
        queue.next += 1;
        let (sender, turn) = oneshot::channel();
        let waiting = if urgent { &mut queue.urgent } else { &mut queue.patient };
        waiting.insert(ticket, sender);
        queue.serve();
        (ticket, turn)
    }

    /// Puts a patient one among the urgent.
    pub(super) fn hurry(&self, ticket: Ticket) {
        let mut queue = self.queue();
        if let Some(sender) = queue.patient.remove(&ticket) {
            queue.urgent.insert(ticket, sender);
        }
    }

    pub(super) async fn acquire(self: &Arc<Self>, turn: oneshot::Receiver<()>) -> Permit {
        // The sender is dropped with the queue alone, and that lives as long as we do.
        let _ = turn.await;
        Permit(Arc::clone(self))
    }
}

impl Queue {
    fn serve(&mut self) {
        while self.free > 0 {
            let next = self.urgent.pop_first().or_else(|| self.patient.pop_first());
            let Some((_, sender)) = next else { return };
            // One that has gone away needs no permit.
            if sender.send(()).is_ok() {
                self.free -= 1;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.free += 1;
        queue.serve();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_callers_waiting_goes_first_and_the_hurried_keep_their_place() {
        let permits = Permits::new(1);
        let (_, turn) = permits.enter(false);
        let held = permits.acquire(turn).await;
        let (_, mut patient) = permits.enter(false);
        let (hurried, mut was_patient) = permits.enter(false);
        let (_, mut urgent) = permits.enter(true);
        permits.hurry(hurried);
        drop(held);
        assert!(was_patient.try_recv().is_ok());
        assert!(urgent.try_recv().is_err());
        drop(permits.acquire(urgent_turn(was_patient)).await);
        assert!(urgent.try_recv().is_ok() && patient.try_recv().is_err());
    }

    /// A turn that has come.
    fn urgent_turn(_: oneshot::Receiver<()>) -> oneshot::Receiver<()> {
        let (sender, turn) = oneshot::channel();
        let _ = sender.send(());
        turn
    }

    #[tokio::test]
    async fn one_that_gave_up_waiting_holds_no_permit() {
        let permits = Permits::new(1);
        let (_, turn) = permits.enter(true);
        let held = permits.acquire(turn).await;
        let (_, given_up) = permits.enter(true);
        drop(given_up);
        let (_, mut next) = permits.enter(false);
        drop(held);
        assert!(next.try_recv().is_ok());
    }
}

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

/// Where somebody stands who wants a permit.
#[derive(Debug)]
pub(super) enum Place {
    Served(Permit),
    Queued(oneshot::Receiver<()>, Arc<Permits>),
}

impl Place {
    pub(super) async fn served(self) -> Permit {
        match self {
            Self::Served(permit) => permit,
            Self::Queued(turn, permits) => {
                // The sender is dropped with the queue alone, and that lives as long as we do.
                let _ = turn.await;
                Permit(permits)
            }
        }
    }
}

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

    /// Takes a permit, or joins the queue for one.
    pub(super) fn enter(self: &Arc<Self>, urgent: bool) -> (Ticket, Place) {
        let mut queue = self.queue();
        let ticket = Ticket(queue.next);
        queue.next += 1;
        // While one is free, nobody is in the queue.
        if queue.free > 0 {
            queue.free -= 1;
            return (ticket, Place::Served(Permit(Arc::clone(self))));
        }
        let (sender, turn) = oneshot::channel();
        let waiting = if urgent { &mut queue.urgent } else { &mut queue.patient };
        waiting.insert(ticket, sender);
        (ticket, Place::Queued(turn, Arc::clone(self)))
    }

    /// Puts a patient one among the urgent.
    pub(super) fn hurry(&self, ticket: Ticket) {
        let mut queue = self.queue();
        if let Some(sender) = queue.patient.remove(&ticket) {
            queue.urgent.insert(ticket, sender);
        }
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

    fn is_served(place: &mut Place) -> bool {
        match place {
            Place::Served(_) => true,
            Place::Queued(turn, _) => turn.try_recv().is_ok(),
        }
    }

    #[tokio::test]
    async fn who_has_callers_waiting_goes_first_and_the_hurried_keep_their_place() {
        let permits = Permits::new(1);
        let held = permits.enter(false).1.served().await;
        let (_, mut patient) = permits.enter(false);
        let (hurried, was_patient) = permits.enter(false);
        let (_, mut urgent) = permits.enter(true);
        permits.hurry(hurried);
        drop(held);
        assert!(!is_served(&mut urgent) && !is_served(&mut patient));
        let held = was_patient.served().await;
        assert!(!is_served(&mut urgent));
        drop(held);
        assert!(is_served(&mut urgent) && !is_served(&mut patient));
    }

    #[tokio::test]
    async fn one_that_gave_up_waiting_holds_no_permit() {
        let permits = Permits::new(1);
        let (_, held) = permits.enter(true);
        let (_, given_up) = permits.enter(true);
        drop(given_up);
        let (_, mut next) = permits.enter(false);
        drop(held);
        assert!(is_served(&mut next));
    }
}

//! Requests of one kind: the faults planned for them, and the journal of those that arrived.

use axum::response::Response;

use super::{
    answer::{Answer, ErrorStyle},
    delivery::Delivery,
    fault::Faults,
    journal::{Journal, Outcome, RecordedRequest},
};

pub(super) struct Traffic {
    pub(super) faults: Faults,
    pub(super) journal: Journal,
}

impl Traffic {
    pub(super) fn new(keeps_requests: bool) -> Self {
        Self { faults: Faults::default(), journal: Journal::new(keeps_requests) }
    }

    /// Takes one request from its arrival to the delivery of its answer. `act` does what the
    /// request asks for, unless a fault comes first.
    pub(super) async fn answer<F: Future<Output = (Outcome, Answer)>>(
        &self,
        error_style: ErrorStyle,
        request: RecordedRequest,
        act: impl FnOnce(RecordedRequest) -> F,
    ) -> Response {
        let fault = self.faults.next(&request);
        let id = self.journal.open(&request);

        if let Some(fault) = &fault {
            fault.before().await;
            if let Some(delivery) = fault.instead(|refusal| refusal.into_answer(error_style)) {
                self.journal.settle(id, Outcome::Faulted, delivery.status());
                return delivery.into_response();
            }
        }

        let (outcome, answer) = act(request).await;
        let delivery = match &fault {
            Some(fault) => fault.deliver(answer),
            None => Delivery::Whole(answer),
        };
        self.journal.settle(id, outcome, delivery.status());

        if let Some(fault) = &fault {
            fault.after().await;
        }
        delivery.into_response()
    }
}

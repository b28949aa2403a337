//! Listens to the driver for the statements of a store, so that the bare loop sends the same.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::harness::Outcome;

/// Listens to the driver while `work` is done, and returns the statements in the order they ended.
pub(crate) async fn overheard(work: impl Future<Output = Outcome>) -> Outcome<Vec<Arc<str>>> {
    static EAR: OnceLock<(Heard, reload::Handle<LevelFilter, Registry>)> = OnceLock::new();
    let (heard, level) = EAR.get_or_init(|| {
        let heard = Heard::default();
        let (level, handle) = reload::Layer::new(LevelFilter::OFF);
        tracing_subscriber::registry().with(level).with(heard.clone()).init();
        (heard, handle)
    });
    level.reload(LevelFilter::DEBUG)?;
    let done = work.await;
    // From here on an event costs what it costs where nobody listens.
    level.reload(LevelFilter::OFF)?;
    done?;
    Ok(std::mem::take(&mut *heard.0.lock().unwrap_or_else(PoisonError::into_inner)))
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Arc<str>>>>);

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            event.record(&mut Statement(self));
        }
    }
}

struct Statement<'a>(&'a Heard);

impl tracing::field::Visit for Statement<'_> {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "db.statement" {
            let mut heard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(value.trim().into());
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}

//! What a test logs, at the finest level, by `tracing` and `log` alike.

#![allow(dead_code, reason = "each test binary uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

use std::cell::OnceCell;
use std::io;
use std::sync::{Arc, Mutex, Once, OnceLock};

use tracing::Subscriber;
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default, set_global_default};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Where all that is logged goes.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

static OF_PROCESS: OnceLock<Log> = OnceLock::new();

thread_local! {
    static OF_THREAD: OnceCell<(Log, DefaultGuard)> = const { OnceCell::new() };
}

impl Log {
    /// The log of this process, from its first use on.
    pub(crate) fn of_process() -> Self {
        let log = OF_PROCESS.get_or_init(|| {
            let log = Self::default();
            set_global_default(log.subscriber()).unwrap();
            log
        });
        listen_to_log();
        log.clone()
    }

    /// The log of this thread, from its first use on; thus of a test that runs on one thread.
    pub(crate) fn of_thread() -> Self {
        listen_to_log();
        OF_THREAD.with(|of_thread| {
            let (log, _) = of_thread.get_or_init(|| {
                let log = Self::default();
                let guard = listen(log.subscriber());
                (log, guard)
            });
            log.clone()
        })
    }

    fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let writer = self.clone();
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Lets a subscriber hear this thread until the guard is dropped.
///
/// There is a deaf one for the whole process beside it. Were there one alone, `tracing` would ask
/// the thread that comes first to a line of code whether anybody listens, and remember its answer.
pub(crate) fn listen(subscriber: impl Subscriber + Send + Sync) -> DefaultGuard {
    static DEAF: Once = Once::new();
    DEAF.call_once(|| set_global_default(NoSubscriber::new()).unwrap());
    set_default(subscriber)
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands on what is logged by `log`.
struct Logger;

fn listen_to_log() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let of_thread = OF_THREAD.try_with(|log| log.get().map(|(log, _)| log.clone()));
        if let Some(log) = of_thread.ok().flatten().or_else(|| OF_PROCESS.get().cloned()) {
            let line = format!("{} {} {}\n", record.level(), record.target(), record.args());
            log.0.lock().unwrap().extend_from_slice(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

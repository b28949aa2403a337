//! What the benches share: what they were asked for, how a figure is printed, and a provider whose
//! work is not measured as ours.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use hurdlr_oauth2::testing::{FakeHurdlr, Rotation};
use hurdlr_oauth2::{Hurdlr, HurdlrBuilder};
use secrecy::ExposeSecret;
use url::Url;

/// The argument by which a bench, started again, becomes the provider.
const SERVE: &str = "serve-fake-hurdlr";

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What this process was started for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// `cargo bench`, which says `--bench`.
    Measure,
    /// A test run, which asks whether it works.
    Try,
    /// To be the provider of the process that started this one.
    Serve,
}

impl Job {
    pub(crate) fn asked_for() -> Self {
        let arguments: Vec<String> = env::args().skip(1).collect();
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        if has(SERVE) {
            Self::Serve
        } else if has("--bench") && !has("--test") {
            Self::Measure
        } else {
            Self::Try
        }
    }
}

pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    println!("figure: {name} = {value:.3} {unit}");
}

/// A [`FakeHurdlr`] in a process of its own.
pub(crate) struct Provider {
    process: Child,
    /// The process ends when this closes, however this one ends.
    _lifeline: ChildStdin,
    pub(crate) base_url: Url,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Provider {
    pub(crate) fn start() -> Outcome<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lifeline = process.stdin.take().ok_or("no stdin")?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut line = || -> Outcome<String> { Ok(lines.next().ok_or("no provider")??) };
        Ok(Self {
            base_url: line()?.parse()?,
            client_id: line()?,
            client_secret: line()?,
            process,
            _lifeline: lifeline,
        })
    }

    /// The id of the provider's process.
    #[allow(dead_code, reason = "a bench may not care what the provider's work costs")]
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// A client of this provider, with its default settings.
    #[allow(dead_code, reason = "a bench may need one with settings of its own")]
    pub(crate) fn hurdlr(&self) -> Outcome<Hurdlr> {
        Ok(self.builder().build()?)
    }

    /// A client of this provider, with settings of the caller's own.
    pub(crate) fn builder(&self) -> HurdlrBuilder {
        let secret = self.client_secret.as_str().into();
        Hurdlr::builder(&self.client_id, secret).environment(self.base_url.clone())
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) async fn serve() -> Outcome {
    let fake = FakeHurdlr::builder().rotation(Rotation::None).record(false).start().await?;
    println!("{}", fake.base_url());
    println!("{}", fake.client_id());
    println!("{}", fake.client_secret().expose_secret());
    io::stdout().flush()?;
    // Until the other end of the pipe is closed.
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

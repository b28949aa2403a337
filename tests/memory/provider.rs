//! The provider, in a process of its own.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::{BodyEncoding, FakeHurdlr, Fault, Rotation};
use serde::{Deserialize, Serialize};
use url::Url;

/// What a process is started with to be the provider.
pub(crate) const SERVE: &str = "serve-fake-hurdlr";

/// The life of the provider's tokens.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(3_600);

/// The person who logs in.
pub(crate) const USER: &str = "ann";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    Http,
    /// By rustls.
    Tls,
    /// By the system's library.
    #[cfg(feature = "native-tls")]
    NativeTls,
}

impl Transport {
    pub(crate) const ALL: &[Self] = &[
        Self::Http,
        Self::Tls,
        #[cfg(feature = "native-tls")]
        Self::NativeTls,
    ];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Tls => "rustls",
            #[cfg(feature = "native-tls")]
            Self::NativeTls => "native_tls",
        })
    }
}

/// What the provider is told at its start.
#[derive(Serialize, Deserialize)]
struct Setup {
    transport: Transport,
    client_secret: String,
    /// What its tokens are drawn from.
    seed: u64,
}

#[derive(Serialize, Deserialize)]
enum Order {
    /// The person shall log in at this URL and allow what is asked for.
    Consent(Url),
    /// The next answer shall be this one.
    Answer(u16, String),
    /// The next answer shall be compressed.
    Compress,
    /// The next answer shall come in pieces.
    Drip,
}

/// What the provider says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) transport: Transport,
    pub(crate) base_url: Url,
    pub(crate) authorize_url: Url,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    /// In DER.
    pub(crate) certificate: Option<Vec<u8>>,
}

/// A [`FakeHurdlr`] in another process, which ends with this value or with this process.
pub(crate) struct Provider {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) site: Site,
}

/// Those that no measure is using.
static IDLE: Mutex<Vec<Provider>> = Mutex::new(Vec::new());

/// What is static is never dropped, so `main` stops them.
pub(crate) fn stop_idle() {
    IDLE.lock().unwrap().clear();
}

impl Provider {
    /// One that is running already, or else a new one.
    pub(crate) fn of(transport: Transport) -> Self {
        let mut idle = IDLE.lock().unwrap();
        let place = idle.iter().position(|it| it.site.transport == transport);
        place.map_or_else(|| Self::start(transport), |place| idle.remove(place))
    }

    /// Leaves it to the next measure.
    pub(crate) fn give_back(self) {
        IDLE.lock().unwrap().push(self);
    }

    fn start(transport: Transport) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut orders = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut random = fastrand::Rng::with_seed(*crate::SEED);
        let seed = random.u64(..);
        // With signs that a form spells otherwise.
        let client_secret = format!("se+cr/et={:032x}", random.u128(..));
        tell(&mut orders, &Setup { transport, client_secret, seed });
        let site = serde_json::from_str(&line(&mut answers)).unwrap();
        Self { process, orders, answers, site }
    }

    /// Has the person log in and allow what is asked for. Returns where they are sent back to.
    pub(crate) fn consent(&mut self, authorize_url: &Url) -> Url {
        tell(&mut self.orders, &Order::Consent(authorize_url.clone()));
        serde_json::from_str(&line(&mut self.answers)).unwrap()
    }

    /// Has it give this answer to the next request.
    pub(crate) fn answer_next(&mut self, status: u16, body: String) {
        tell(&mut self.orders, &Order::Answer(status, body));
        line(&mut self.answers);
    }

    /// Has it send its next answer in two pieces.
    pub(crate) fn drip_next(&mut self) {
        tell(&mut self.orders, &Order::Drip);
        line(&mut self.answers);
    }

    /// Has it compress its next answer.
    pub(crate) fn compress_next(&mut self) {
        tell(&mut self.orders, &Order::Compress);
        line(&mut self.answers);
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tell(pipe: &mut impl Write, what: &impl Serialize) {
    writeln!(pipe, "{}", serde_json::to_string(what).unwrap()).unwrap();
    pipe.flush().unwrap();
}

fn line(pipe: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert_ne!(pipe.read_line(&mut line).unwrap(), 0, "the other process has ended");
    line
}

/// Is the provider, until the other end of the pipe is closed.
pub(crate) fn serve() {
    let mut orders = std::io::stdin().lines();
    let setup: Setup = serde_json::from_str(&orders.next().unwrap().unwrap()).unwrap();
    fastrand::seed(setup.seed);
    let mut fake = FakeHurdlr::builder()
        .rotation(Rotation::RotateAndKill)
        .token_life(TOKEN_LIFE)
        .client("fake-client", setup.client_secret.into());
    let mut certificate = None;
    if setup.transport != Transport::Http {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        certificate = Some(issued.cert.der().to_vec());
        fake = fake.tls(issued.cert.pem(), issued.signing_key.serialize_pem().into());
    }
    // With a thread of its own, so that it serves while the next order is waited for.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let fake = runtime.block_on(fake.start()).unwrap();
    let site = Site {
        transport: setup.transport,
        base_url: fake.base_url(),
        authorize_url: fake.authorize_url(),
        client_id: fake.client_id().to_owned(),
        client_secret: fake.client_secret().expose_secret().to_owned(),
        certificate,
    };
    tell(&mut std::io::stdout(), &site);
    for order in orders {
        let said = match serde_json::from_str(&order.unwrap()).unwrap() {
            Order::Consent(url) => Some(runtime.block_on(fake.consent(&url, USER)).unwrap()),
            Order::Answer(status, body) => {
                fake.fault_next(Fault::answer(status, body));
                None
            }
            Order::Drip => {
                fake.fault_next(Fault::Dripping { bytes: 256, every: Duration::from_millis(20) });
                None
            }
            Order::Compress => {
                fake.fault_next(Fault::Encoded(BodyEncoding::Gzip));
                None
            }
        };
        tell(&mut std::io::stdout(), &said);
    }
}

//! A provider that answers every token request alike after a fixed delay: whoever asks gets new
//! tokens. It keeps no book of what it issued, so a million logins need not have come from it.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use hurdlr_oauth2::{Hurdlr, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{self, Outcome};
use crate::usage::CpuTime;
use crate::{Options, count, figure};

/// The first argument of the bench that makes it the provider.
pub(crate) const ROLE: &str = "answer";

/// The life of the tokens it issues, which is that of the tokens of the run.
static LIFETIME: AtomicU64 = AtomicU64::new(3_600);

/// It in a process of its own.
pub(crate) struct Provider {
    process: Child,
    /// The process ends when this closes, however this one ends.
    _lifeline: ChildStdin,
    pub(crate) url: String,
}

impl Provider {
    pub(crate) fn start(options: &Options, delay: Duration) -> Outcome<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args([ROLE, "--delay", &delay.as_millis().to_string()])
            .args(["--lifetime", &options.lifetime.as_secs().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lifeline = process.stdin.take().ok_or("no stdin")?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let url = BufReader::new(stdout).lines().next().ok_or("no provider")??;
        Ok(Self { process, _lifeline: lifeline, url })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client of the provider at `url`.
pub(crate) fn client(url: &str) -> Outcome<Hurdlr> {
    Ok(Hurdlr::builder("client-id", "client-secret".into()).environment(url).build()?)
}

/// Answers until standard input ends.
pub(crate) fn serve(options: &Options) -> Outcome {
    LIFETIME.store(options.lifetime.as_secs(), Ordering::Relaxed);
    let delay = options.delay;
    // One thread, which leaves the rest of the machine to what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("http://{}/", listener.local_addr()?);
        io::stdout().flush()?;
        loop {
            let (connection, _) = listener.accept().await?;
            // A client that goes away ends its own connection alone.
            tokio::spawn(async move { drop(converse(connection, delay).await) });
        }
    })
}

/// Answers the requests of one connection, each after the delay.
async fn converse(mut connection: TcpStream, delay: Duration) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut received = Vec::with_capacity(4_096);
    let mut answer = String::with_capacity(1_024);
    loop {
        while let Some(length) = request_length(&received) {
            received.drain(..length);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            write_answer(&mut answer);
            connection.write_all(answer.as_bytes()).await?;
        }
        if connection.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

/// The length of the first request, head and body, if all of it is there.
fn request_length(received: &[u8]) -> Option<usize> {
    let head = received.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let mut lines = std::str::from_utf8(&received[..head]).ok()?.split("\r\n");
    let body = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let length = head + body.unwrap_or(0);
    (received.len() >= length).then_some(length)
}

fn write_answer(answer: &mut String) {
    static ISSUED: AtomicU64 = AtomicU64::new(1 << 40);
    let issued = ISSUED.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let json = token_json(issued, LIFETIME.load(Ordering::Relaxed), now);
    answer.clear();
    // Writing to a string cannot fail.
    let _ = write!(
        answer,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
}

/// A token object with secrets as long as those of the provider's example.
pub(crate) fn token_json(n: u64, lifetime: u64, created_at: u64) -> String {
    format!(r#"{{"access_token": "{n:064x}.{n:032x}", "refresh_token": "{n:064x}.{n:032x}", "#)
        + &format!(r#""expires_in": {lifetime}, "created_at": {created_at}, "scope": "token"}}"#)
}

/// How many requests this provider and `FakeHurdlr` answer in a second of CPU time.
pub(crate) fn beside_fake(options: &Options) -> Outcome {
    let requests = options.users.unwrap_or(20_000).min(20_000);
    let ours = Provider::start(options, Duration::ZERO)?;
    let fake = harness::Provider::start()?;
    let runtime = crate::runtime()?;
    let answers = |hurdlr: Hurdlr, id| -> Outcome<f64> {
        let before = CpuTime::of(id)?;
        runtime.block_on(ask(hurdlr, requests))?;
        Ok(count(requests) / (CpuTime::of(id)? - before).as_secs_f64())
    };
    let (of_ours, of_fake) = (answers(client(&ours.url)?, ours.id())?, fake.id());
    figure("scale.provider_answers", of_ours, "per CPU second");
    let of_fake = answers(fake.hurdlr()?, of_fake)?;
    figure("scale.fake_hurdlr_answers", of_fake, "per CPU second");
    Ok(())
}

/// Makes so many requests, 64 at once.
async fn ask(hurdlr: Hurdlr, requests: usize) -> Outcome {
    const AT_ONCE: usize = 64;

    let mut callers = JoinSet::new();
    for caller in 0..AT_ONCE {
        let hurdlr = hurdlr.clone();
        callers.spawn(async move {
            for n in (caller..requests).step_by(AT_ONCE) {
                hurdlr.client_credentials(&UserId::new(format!("user-{n}"))?).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

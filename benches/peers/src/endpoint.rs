//! The token endpoint that all peers are sent to: a process of its own on loopback, which answers
//! each of them alike.
//!
//! Every user of a peer is an *account*, named by the first segment of the URL, with a script of
//! its own: how long an answer takes, how long a token lives, whether refresh tokens rotate,
//! whether requests fail. The endpoint acts when a request arrives, and answers when the delay is
//! over, so a client that goes away does not undo what it asked for.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::Outcome;
use crate::site::Site;

/// The command by which this program, started again, becomes the endpoint.
pub(crate) const COMMAND: &str = "endpoint";

/// The answers to an account's requests.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Script {
    /// Milliseconds from the arrival of a request to its answer.
    pub(crate) delay: u64,
    /// `expires_in` of the tokens, in seconds.
    pub(crate) life: u64,
    /// Whether a refresh token may be used once. A second use ends the login (RFC 9700 section
    /// 4.14.2).
    pub(crate) rotates: bool,
    /// Whether requests get 503 instead of a token.
    pub(crate) fails: bool,
}

/// Tokens that live an hour, at once.
pub(crate) const HOUR: Script = Script { delay: 0, life: 3_600, rotates: false, fails: false };

/// The requests for an account, and the tokens it was given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) requests: usize,
    /// The access tokens and the refresh tokens that were issued.
    pub(crate) access_tokens: Vec<String>,
    pub(crate) refresh_tokens: Vec<String>,
    /// Refresh tokens that were presented after they had been used.
    pub(crate) burned: usize,
    /// Milliseconds since the first request, for each request.
    pub(crate) arrivals: Vec<u64>,
}

/// An account of the endpoint, as this process holds it.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) site: Site,
    control: reqwest::Client,
    url: String,
}

impl Account {
    pub(crate) async fn set(&self, script: Script) -> Outcome {
        self.control.put(&self.url).json(&script).send().await?.error_for_status()?;
        Ok(())
    }

    pub(crate) async fn ledger(&self) -> Outcome<Ledger> {
        Ok(self.control.get(&self.url).send().await?.error_for_status()?.json().await?)
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn arrived(&self, requests: usize) -> Outcome {
        let url = format!("{}/arrived/{requests}", self.url);
        self.control.get(url).send().await?.error_for_status()?;
        Ok(())
    }
}

/// The endpoint, as its parent holds it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    origin: String,
    control: reqwest::Client,
    private_key: Arc<str>,
    folder: Arc<std::path::Path>,
    _process: Arc<Process>,
}

struct Process {
    child: Child,
    /// The process ends when this closes, however this one ends.
    _lifeline: ChildStdin,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Endpoint {
    pub(crate) fn start(folder: &std::path::Path) -> Outcome<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lifeline = child.stdin.take().ok_or("no stdin")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let origin = BufReader::new(stdout).lines().next().ok_or("no endpoint")??;
        Ok(Self {
            origin,
            control: reqwest::Client::builder().no_proxy().build()?,
            private_key: private_key()?.into(),
            folder: folder.into(),
            _process: Arc::new(Process { child, _lifeline: lifeline }),
        })
    }

    /// A new account, with a login whose refresh token is known.
    pub(crate) async fn account(&self, script: Script) -> Outcome<Account> {
        let name = format!("{:016x}", fastrand::u64(..));
        let refresh_token = secret();
        let opened = Opened { script, refresh_token: refresh_token.clone() };
        let url = format!("{}/accounts/{name}", self.origin);
        self.control.post(&url).json(&opened).send().await?.error_for_status()?;
        let site = Site {
            origin: self.origin.clone(),
            account: name,
            client_id: "client-id".into(),
            client_secret: secret(),
            refresh_token,
            access_token: secret(),
            private_key: self.private_key.to_string(),
            folder: self.folder.to_path_buf(),
        };
        Ok(Account { site, control: self.control.clone(), url })
    }
}

#[derive(Serialize, Deserialize)]
struct Opened {
    script: Script,
    refresh_token: String,
}

/// A secret as long as those of the provider's example.
fn secret() -> String {
    format!("{:032x}{:032x}.{:032x}", fastrand::u128(..), fastrand::u128(..), fastrand::u128(..))
}

/// An RSA key of a service account, made for this run, as PEM.
fn private_key() -> Outcome<String> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use base64::Engine;

    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let der: Pkcs8V1Der<'_> = key.as_der()?;
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let (begin, end) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
    Ok(format!("{begin}\n{}\n{end}\n", lines.join("\n")))
}

/// An account, as the endpoint holds it.
struct Book {
    script: Script,
    ledger: Ledger,
    /// Refresh tokens that may still be used, and those that were.
    usable: HashSet<String>,
    used: HashSet<String>,
    first: Option<std::time::Instant>,
    arrived: watch::Sender<usize>,
}

type Books = Arc<Mutex<HashMap<String, Arc<Mutex<Book>>>>>;

/// A panic in another request is no reason to fail this one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn book(books: &Books, name: &str) -> Result<Arc<Mutex<Book>>, StatusCode> {
    lock(books).get(name).cloned().ok_or(StatusCode::NOT_FOUND)
}

/// Is the endpoint until standard input ends.
pub(crate) fn serve() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        // 10,000 callers may come at once; the system bounds it.
        let listener = socket.listen(16_384)?;
        println!("http://{}", listener.local_addr()?);
        io::stdout().flush()?;
        thread::spawn(|| {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
        let router = Router::new()
            .route("/accounts/{name}", post(open).put(rewrite).get(ledger))
            .route("/accounts/{name}/arrived/{requests}", get(arrived))
            .route("/{name}/{*path}", post(token))
            .with_state(Books::default());
        axum::serve(listener, router).await?;
        Ok(())
    })
}

async fn open(
    State(books): State<Books>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(), StatusCode> {
    let opened: Opened = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let book = Book {
        script: opened.script,
        ledger: Ledger::default(),
        usable: HashSet::from([opened.refresh_token]),
        used: HashSet::new(),
        first: None,
        arrived: watch::channel(0).0,
    };
    lock(&books).insert(name, Arc::new(Mutex::new(book)));
    Ok(())
}

async fn rewrite(
    State(books): State<Books>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(), StatusCode> {
    let script = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    lock(&*book(&books, &name)?).script = script;
    Ok(())
}

async fn ledger(
    State(books): State<Books>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, StatusCode> {
    let ledger = lock(&*book(&books, &name)?).ledger.clone();
    let json = serde_json::to_vec(&ledger).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json))
}

async fn arrived(
    State(books): State<Books>,
    Path((name, requests)): Path<(String, usize)>,
) -> Result<(), StatusCode> {
    let mut count = lock(&*book(&books, &name)?).arrived.subscribe();
    count.wait_for(|count| *count >= requests).await.map_err(|_| StatusCode::GONE)?;
    Ok(())
}

/// The fields of a token request that decide anything, of a form or of JSON.
#[derive(Default, Deserialize)]
struct Request {
    grant_type: String,
    refresh_token: Option<String>,
}

impl Request {
    fn read(body: &[u8]) -> Option<Self> {
        if body.starts_with(b"{") {
            return serde_json::from_slice(body).ok();
        }
        let mut request = Self::default();
        for (name, value) in url::form_urlencoded::parse(body) {
            match &*name {
                "grant_type" => request.grant_type = value.into_owned(),
                "refresh_token" => request.refresh_token = Some(value.into_owned()),
                _ => {}
            }
        }
        Some(request)
    }
}

async fn token(
    State(books): State<Books>,
    Path((name, _)): Path<(String, String)>,
    body: Bytes,
) -> Result<impl IntoResponse, StatusCode> {
    let request = Request::read(&body).ok_or(StatusCode::BAD_REQUEST)?;
    let book = book(&books, &name)?;
    let (delay, status, answer) = {
        let mut book = lock(&book);
        let (status, answer) = book.act(&request);
        (book.script.delay, status, answer)
    };
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    Ok((status, [(header::CONTENT_TYPE, "application/json")], answer.to_string()))
}

impl Book {
    fn act(&mut self, request: &Request) -> (StatusCode, serde_json::Value) {
        let first = *self.first.get_or_insert_with(std::time::Instant::now);
        let ledger = &mut self.ledger;
        ledger.requests += 1;
        ledger.arrivals.push(first.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
        self.arrived.send_replace(ledger.requests);
        if self.script.fails {
            let error = serde_json::json!({ "error": "temporarily_unavailable" });
            return (StatusCode::SERVICE_UNAVAILABLE, error);
        }
        if self.script.rotates && request.grant_type == "refresh_token" {
            let presented = request.refresh_token.clone().unwrap_or_default();
            if !self.usable.remove(&presented) {
                if self.used.contains(&presented) {
                    ledger.burned += 1;
                    self.usable.clear(); // whoever has the newer one loses it too
                }
                return (StatusCode::BAD_REQUEST, serde_json::json!({ "error": "invalid_grant" }));
            }
            self.used.insert(presented);
        }
        let (access_token, refresh_token) = (secret(), secret());
        self.usable.insert(refresh_token.clone());
        ledger.access_tokens.push(access_token.clone());
        ledger.refresh_tokens.push(refresh_token.clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let answer = serde_json::json!({
            "access_token": access_token,
            "refresh_token": refresh_token,
            "token_type": "Bearer",
            "expires_in": self.script.life,
            "created_at": now,
            "scope": "token",
        });
        (StatusCode::OK, answer)
    }
}

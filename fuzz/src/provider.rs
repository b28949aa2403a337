//! A client whose provider gives the answers of a target.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::future::{Future, Ready, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use hurdlr_oauth2::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::testing::ManualClock;
use hurdlr_oauth2::url::form_urlencoded;
use hurdlr_oauth2::{Clock, Error, ErrorKind, Hurdlr, RetryPolicy, Timestamp, Token, UserId};
use tokio::runtime::{Builder, Runtime};

/// The secrets of a request, and its user: no error may repeat them, whatever an answer says.
pub(crate) const CLIENT_SECRET: &str = "client-secret-of-the-app";
pub(crate) const OLD_ACCESS: &str = "old-access-token";
pub(crate) const OLD_REFRESH: &str = "old-refresh-token";
pub(crate) const CODE: &str = "code-of-a-callback";
pub(crate) const USER: &str = "user-of-the-app";

pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const REDIRECT_URI: &str = "https://app.example.com/hurdlr/callback";
pub(crate) const ENVIRONMENT: &str = "https://api.example.com/";
pub(crate) const CLIENT_ID: &str = "app";

/// The bounds of texts from the provider, with the mark of a cut.
pub(crate) const LONGEST_CODE: usize = 64 + '…'.len_utf8();
pub(crate) const LONGEST_TEXT: usize = 512 + '…'.len_utf8();

/// The provider's documented answer.
pub(crate) const TOKEN: &[u8] = include_bytes!("../../tests/fixtures/v4_token.json");

thread_local! {
    /// Its time passes only where somebody waits for it.
    static RUNTIME: Runtime =
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Runs what needs the runtime's time, and no future.
pub(crate) fn on_runtime<T>(run: impl FnOnce() -> T) -> T {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        run()
    })
}

/// Gives one answer to every request, and keeps the requests.
#[derive(Clone)]
pub(crate) struct Provider {
    clock: ManualClock,
    exchange: Arc<Mutex<Exchange>>,
}

#[derive(Default)]
struct Exchange {
    answer: HttpResponse,
    /// When each request came, and its form.
    requests: Vec<(Timestamp, Vec<u8>)>,
}

impl Provider {
    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the answer, and forgets the requests so far.
    pub(crate) fn answer(&self, status: StatusCode, headers: HeaderMap, body: &[u8]) {
        let mut answer = HttpResponse::new(body.to_vec());
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        *self.exchange() = Exchange { answer, requests: Vec::new() };
    }

    /// When the requests came.
    pub(crate) fn requests(&self) -> Vec<Timestamp> {
        self.exchange().requests.iter().map(|(time, _)| *time).collect()
    }

    /// A field of the last form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let exchange = self.exchange();
        let mut fields = form_urlencoded::parse(&exchange.requests.last()?.1);
        fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

impl<'c> AsyncHttpClient<'c> for Provider {
    type Error = Infallible;
    type Future = Ready<Result<HttpResponse, Infallible>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let mut exchange = self.exchange();
        exchange.requests.push((self.clock.now(), request.into_body()));
        ready(Ok(exchange.answer.clone()))
    }
}

/// A client, its provider, and the clock of both.
pub(crate) struct Client {
    pub(crate) hurdlr: Hurdlr,
    pub(crate) provider: Provider,
    pub(crate) clock: ManualClock,
}

impl Client {
    /// A client that repeats nothing, on the day of the documented answer. It is made on the
    /// runtime.
    pub(crate) fn new(redirect_uri: &str) -> Self {
        let clock = ManualClock::at(UNIX_EPOCH + Duration::from_secs(1_599_065_200));
        let provider = Provider { clock: clock.clone(), exchange: Arc::default() };
        let hurdlr = Hurdlr::builder(CLIENT_ID, CLIENT_SECRET.into())
            .environment(ENVIRONMENT)
            .authorize_url("https://connect.example.com/authorize")
            .redirect_uri(redirect_uri)
            .issuer(ISSUER)
            .retry(RetryPolicy::never())
            .clock(clock.clone())
            .http_client(provider.clone())
            .build()
            .unwrap();
        Self { hurdlr, provider, clock }
    }

    /// Runs `use_client` on the runtime, with the client of this thread.
    pub(crate) fn with<T>(use_client: impl FnOnce(&Self) -> T) -> T {
        thread_local! {
            static CLIENT: Client = Client::new(REDIRECT_URI);
        }
        on_runtime(|| CLIENT.with(use_client))
    }

    pub(crate) fn send(&self, grant: Grant) -> Result<Token, Error> {
        block_on(async {
            match grant {
                Grant::ClientCredentials => self.hurdlr.client_credentials(&user()).await,
                Grant::Refresh => self.hurdlr.refresh(&self.old_token()).await,
                Grant::Code => {
                    let (_, pending) = self.hurdlr.begin_login()?;
                    let state = pending.state().expose_secret().to_owned();
                    let callback = vec![("code", CODE), ("state", state.as_str())];
                    self.hurdlr.complete_login(pending, callback).await
                }
            }
        })
    }

    fn old_token(&self) -> Token {
        let old = format!(r#"{{"access_token":"{OLD_ACCESS}","refresh_token":"{OLD_REFRESH}"}}"#);
        self.hurdlr.import(old).unwrap()
    }
}

pub(crate) fn user() -> UserId {
    UserId::new(USER).unwrap()
}

/// One of the provider's grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    ClientCredentials,
    Refresh,
    Code,
}

impl Grant {
    pub(crate) const ALL: [Self; 3] = [Self::ClientCredentials, Self::Refresh, Self::Code];

    fn secrets(self) -> &'static [&'static str] {
        match self {
            Self::ClientCredentials => &[CLIENT_SECRET, USER],
            Self::Refresh => &[CLIENT_SECRET, OLD_REFRESH, OLD_ACCESS],
            Self::Code => &[CLIENT_SECRET, CODE],
        }
    }
}

/// Checks the error of a grant: it is of the answer, bounded, one line, and silent about secrets.
pub(crate) fn assert_sound(error: &Error, grant: Grant, status: StatusCode) {
    let said = everything_said(error);
    assert_eq!(error.status(), Some(status), "{said}");
    // A refresh is repeated once without its Bearer header.
    let most = if grant == Grant::Refresh { 2 } else { 1 };
    assert!((1..=most).contains(&error.attempts()), "{said}");
    assert!(!matches!(error.kind(), ErrorKind::Config | ErrorKind::InvalidCallback), "{said}");
    assert!(error.code().is_none_or(|code| is_readable(code, LONGEST_CODE)), "{said}");
    assert!(error.description().is_none_or(|text| is_readable(text, LONGEST_TEXT)), "{said}");
    assert!(said.len() < 20_000, "{said}");
    assert!(!error.to_string().chars().any(char::is_control), "{said}");
    for secret in grant.secrets() {
        assert!(!said.contains(secret), "{grant:?}: {said}");
    }
}

pub(crate) fn is_readable(text: &str, longest: usize) -> bool {
    text.len() <= longest && !text.chars().any(char::is_control)
}

/// The whole text of an error and of its causes, by `Display` and by `Debug`.
pub(crate) fn everything_said(error: &(dyn StdError + 'static)) -> String {
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let _ = write!(said, "{error}\n{error:?}\n{error:#?}\n");
        next = error.source();
    }
    said
}

/// Headers of those values that a header can have.
pub(crate) fn headers(pairs: &[(HeaderName, &[u8])]) -> HeaderMap {
    let value = |value: &&[u8]| HeaderValue::from_bytes(value).ok();
    pairs.iter().filter_map(|(name, text)| Some((name.clone(), value(text)?))).collect()
}

//! The three grants, told step by step: what is sent, what comes back, how long it lives, that a
//! refresh replaces the refresh token, and what a refusal looks like.
//!
//! ```text
//! cargo run --example quickstart --features testing
//! ```
//!
//! By itself it speaks to `FakeHurdlr`, inside this process. With `HURDLR_CLIENT_ID` and the other
//! variables of [`Hurdlr::from_env`] set, it does the same with the provider: the first grant asks
//! for a token of the user that `HURDLR_USER_ID` names, and the login prints a URL for you to open
//! and reads the address you come back to from standard input.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use std::{env, io};

use hurdlr_oauth2::testing::{FakeHurdlr, Fault};
use hurdlr_oauth2::{
    Clock, ErrorKind, HttpClient, HttpError, Hurdlr, HurdlrBuilder, Moment, SystemClock, Token,
    UserId,
};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::{Url, form_urlencoded};

const DAY: Duration = Duration::from_secs(86_400);

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut next: Option<&dyn Error> = Some(&*error);
            let mut prefix = "\nquickstart stopped";
            while let Some(error) = next {
                eprintln!("{prefix}: {error}");
                prefix = "  because";
                next = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome {
    if env::var_os("HURDLR_CLIENT_ID").is_some_and(|id| !id.is_empty()) {
        with_the_provider().await?;
    } else {
        with_a_fake().await?;
    }
    with_the_providers_examples().await
}

async fn with_a_fake() -> Outcome {
    println!(
        "\
The three grants, with FakeHurdlr: a provider inside this program. Nothing
leaves this machine. Secrets are shown by name, as <access token 1>."
    );
    let fake = FakeHurdlr::start().await?;
    let narrator = Narrator::new(&fake.base_url())?;
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .authorize_url(fake.authorize_url())
        .redirect_uri("https://app.example.com/callback")
        .http_client(narrator.clone())
        .build()?;
    let user = UserId::new("customer-4711")?;
    Story {
        hurdlr,
        narrator,
        person: Person::Played(fake),
    }
    .tell(Some(&user))
    .await
}

async fn with_the_provider() -> Outcome {
    println!(
        "\
The three grants, with the provider that the HURDLR_* variables name.
Secrets are shown by name, as <access token 1>."
    );
    let narrator = Narrator::new(Hurdlr::from_env()?.token_url())?;
    let hurdlr = HurdlrBuilder::from_env()?
        .http_client(narrator.clone())
        .build()?;
    let user = match env::var("HURDLR_USER_ID") {
        Ok(id) if !id.is_empty() => Some(UserId::new(id)?),
        _ => None,
    };
    Story {
        hurdlr,
        narrator,
        person: Person::You,
    }
    .tell(user.as_ref())
    .await
}

/// Who logs in.
enum Person {
    Played(FakeHurdlr),
    You,
}

struct Story {
    hurdlr: Hurdlr,
    narrator: Narrator,
    person: Person,
}

impl Story {
    async fn tell(&self, user: Option<&UserId>) -> Outcome {
        heading("1. client_credentials: a token for one of your users");
        let granted = if let Some(user) = user {
            Some(self.hurdlr.client_credentials(user).await?)
        } else {
            println!("\n  Left out: HURDLR_USER_ID does not say for whom.");
            None
        };
        if let Some(token) = &granted {
            show_life(token);
        }

        heading("2. authorization_code: a person logs in, in their browser");
        let logged_in = self.log_in().await?;
        if let Some(token) = &logged_in {
            show_life(token);
        }

        heading("3. refresh_token: a new token without the person");
        let Some(token) = logged_in.or(granted) else {
            println!("\n  Left out: there is no token to refresh.");
            return Ok(());
        };
        if token.refresh_token().is_none() {
            println!("\n  Left out: the provider gave no refresh token.");
            return Ok(());
        }
        if let Person::Played(fake) = &self.person {
            println!("\n  80 days later:");
            fake.turn_clock(80 * DAY);
        }
        let newer = self.hurdlr.refresh(&token).await?;
        show_life(&newer);
        let exposed = |token: &Token| token.refresh_token().map(|t| t.expose_secret().to_owned());
        if exposed(&newer) == exposed(&token) {
            println!("  The refresh token stays the same.");
            return Ok(());
        }
        println!("  The refresh token was replaced. Only the new one is good from now on.");

        heading("4. A refusal: the replaced refresh token is used again");
        match self.hurdlr.refresh(&token).await {
            Ok(_) => println!("\n  Not refused: this provider lets a replaced one live on."),
            Err(error) => {
                if error.attempts() > 1 {
                    println!(
                        "
  Asked again without the access token: the refusal may have been about that,
  and a person should not be sent to log in for nothing."
                    );
                }
                show_refusal(&error);
            }
        }
        Ok(())
    }

    async fn log_in(&self) -> Outcome<Option<Token>> {
        let (url, pending) = match self.hurdlr.begin_login() {
            Err(error) if error.kind() == ErrorKind::Config => {
                println!("\n  Left out: {error}.");
                println!("  HURDLR_AUTHORIZE_URL and HURDLR_REDIRECT_URI are for this.");
                return Ok(None);
            }
            begun => begun?,
        };
        self.narrator.show_page("open", &url);
        let callback = match &self.person {
            Person::Played(fake) => fake.consent(&url, "ann").await?,
            Person::You => {
                println!("\nOpen this in a browser and log in:\n\n{url}\n");
                println!("Then paste the address you end at, and press Enter:");
                let mut line = String::new();
                if io::stdin().read_line(&mut line)? == 0 {
                    return Err("standard input ended before an address came".into());
                }
                line.trim()
                    .parse()
                    .map_err(|_| "what was entered is not an address")?
            }
        };
        self.narrator.show_page("back", &callback);
        Ok(Some(self.hurdlr.complete_login(pending, &callback).await?))
    }
}

/// The main job once more, on the answers that the provider's reference prints.
async fn with_the_providers_examples() -> Outcome {
    const TOKEN: &str = include_str!("../tests/fixtures/v4_token.json");
    const REFUSAL: &str = include_str!("../tests/fixtures/error_envelope.json");
    const IMPORTS: [(&str, &str); 3] = [
        (
            "v4, registering a user",
            include_str!("../tests/fixtures/v4_account_created.json"),
        ),
        (
            "v5, an accountant's client",
            include_str!("../tests/fixtures/v5_accountant_user_token.json"),
        ),
        ("v6", include_str!("../tests/fixtures/v6_token.json")),
    ];

    heading("5. The examples of the provider's own reference");
    println!(
        "
  FakeHurdlr answers with them, byte for byte. They were made on 2 September
  2020, so the clock is set to that evening."
    );
    let fake = FakeHurdlr::start().await?;
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .http_client(Narrator::new(&fake.base_url())?)
        .clock(TurnedClock::to("Wed, 02 Sep 2020 20:00:00 GMT")?)
        .build()?;
    let user = UserId::new("customer-4711")?;

    fake.fault_next(Fault::answer(200, TOKEN));
    let token = hurdlr.client_credentials(&user).await?;
    show_life(&token);

    fake.fault_next(Fault::answer(400, REFUSAL));
    match hurdlr.client_credentials(&user).await {
        Ok(_) => return Err("a refusal was taken for a token".into()),
        Err(error) => show_refusal(&error),
    }

    println!("\n  Tokens that are handed out elsewhere are taken over as JSON:");
    for (name, json) in IMPORTS {
        let token = hurdlr.import(json)?;
        let left = token.remaining().map_or("a life nobody knows".into(), span);
        let refresh = match token.refresh_token() {
            Some(_) => "refreshable",
            None => "not refreshable",
        };
        println!("    {name:<27} {left} left, {refresh}");
    }
    println!(
        "\n
The same in code is in README.md. To try the provider by curl or browser:

  cargo run --example fake_hurdlr --features testing"
    );
    Ok(())
}

/// The system's clock, set to another time.
#[derive(Debug)]
struct TurnedClock {
    start: SystemTime,
    turned_at: Moment,
}

impl TurnedClock {
    fn to(date: &str) -> Outcome<Self> {
        Ok(Self {
            start: httpdate::parse_http_date(date)?,
            turned_at: SystemClock.now(),
        })
    }
}

impl Clock for TurnedClock {
    fn now(&self) -> Moment {
        let elapsed = SystemClock.now().since(self.turned_at);
        Moment::new(elapsed, self.start + elapsed)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

fn heading(text: &str) {
    println!("\n\n{text}\n{}", "-".repeat(text.len()));
}

fn show_life(token: &Token) {
    println!();
    if let Some(created) = token.created_at() {
        println!("  created  {}", httpdate::fmt_http_date(created));
        if let Some(life) = token.expires_in() {
            let end = httpdate::fmt_http_date(created + life);
            println!("  expires  {end}, after {}", span(life));
        }
    } else if let Some(left) = token.remaining() {
        println!("  expires  in {}", span(left));
    }
}

fn show_refusal(error: &hurdlr_oauth2::Error) {
    println!("\n  kind()         {:?}", error.kind());
    println!("  needs_login()  {}", error.needs_login());
    println!("  code()         {}", error.code().unwrap_or("none"));
    let mut line = String::from("  as text       ");
    for word in error.to_string().split(' ') {
        if line.len() + 1 + word.len() > 80 {
            println!("{line}");
            line = " ".repeat(16);
        }
        line.push(' ');
        line.push_str(word);
    }
    println!("{line}");
}

/// A span in the unit that people would use for it.
fn span(span: Duration) -> String {
    let seconds = (span + Duration::from_millis(500)).as_secs();
    [(86_400, "days"), (3_600, "hours"), (60, "minutes")]
        .into_iter()
        .find(|(unit, _)| seconds >= 2 * unit)
        .map_or_else(
            || format!("{seconds} seconds"),
            |(unit, name)| format!("{} {name}", seconds / unit),
        )
}

/// Sends by the crate's own transport, and tells what went out and what came back.
///
/// Each secret is given a name when it is first seen, and is shown by that name from then on.
#[derive(Clone)]
struct Narrator {
    http: HttpClient,
    secrets: Arc<Mutex<Vec<(String, SecretString)>>>,
}

/// The fields that are shown as they are. Whatever else there is counts as secret.
const PLAIN_FIELDS: [&str; 19] = [
    "Authorization", // its token was named before
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "created_at",
    "data",
    "error",
    "error_description",
    "expires_in",
    "grant_type",
    "message",
    "param",
    "redirect_uri",
    "response_type",
    "result",
    "scope",
    "token_type",
    "type",
    "userId",
];

impl Narrator {
    fn new(endpoint: &Url) -> Outcome<Self> {
        Ok(Self {
            http: HttpClient::new(endpoint)?,
            secrets: Arc::default(),
        })
    }

    /// What is shown of a field's value.
    fn shown(&self, field: &str, value: &str) -> String {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = secrets
            .iter()
            .any(|(_, secret)| secret.expose_secret() == value);
        if !PLAIN_FIELDS.contains(&field) && !is_known && !value.is_empty() {
            let kind = field.replace('_', " ");
            let others = secrets
                .iter()
                .filter(|(name, _)| name[1..].starts_with(&kind));
            // Of tokens there are several, and which is which matters.
            let name = match others.count() {
                0 if !kind.ends_with("token") => format!("<{kind}>"),
                others => format!("<{kind} {}>", others + 1),
            };
            secrets.push((name, value.into()));
        }
        secrets
            .iter()
            .fold(value.to_owned(), |text, (name, secret)| {
                text.replace(secret.expose_secret(), name)
            })
    }

    fn show_field(&self, name: &str, value: &str) {
        println!("          {name:<21}  {}", self.shown(name, value));
    }

    /// An address that a browser goes to.
    fn show_page(&self, label: &str, url: &Url) {
        let mut page = url.clone();
        page.set_query(None);
        println!("\n  {label}  {page}");
        for (name, value) in url.query_pairs() {
            self.show_field(&name, &value);
        }
    }

    fn show_request(&self, request: &HttpRequest) {
        println!("\n  sent  {} {}", request.method(), request.uri());
        let bearer = request.headers().get(http::header::AUTHORIZATION);
        if let Some(bearer) = bearer.and_then(|value| value.to_str().ok()) {
            self.show_field("Authorization", bearer);
        }
        for (name, value) in form_urlencoded::parse(request.body()) {
            self.show_field(&name, &value);
        }
    }

    fn show_answer(&self, answer: &HttpResponse) {
        println!("\n  back  {}", answer.status());
        match serde_json::from_slice(answer.body()) {
            Ok(json) => self.show_json("", &json),
            Err(_) => println!("          {} bytes that are not JSON", answer.body().len()),
        }
    }

    fn show_json(&self, name: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.show_json(name, value);
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.show_json(name, item);
                }
            }
            Value::String(text) => self.show_field(name, text),
            other => self.show_field(name, &other.to_string()),
        }
    }
}

impl<'c> AsyncHttpClient<'c> for Narrator {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            self.show_request(&request);
            let answer = self.http.call(request).await;
            match &answer {
                Ok(answer) => self.show_answer(answer),
                Err(error) => println!("\n  back  nothing: {error}"),
            }
            answer
        })
    }
}

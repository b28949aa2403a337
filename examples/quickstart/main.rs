//! The three grants, told step by step: what is sent, what comes back, how long it lives, that a
//! refresh replaces the refresh token, and what a refusal looks like. Then a manager, which keeps
//! a token alive for all who read it.
//!
//! ```text
//! cargo run --example quickstart --features testing
//! ```
//!
//! By itself it speaks to `FakeHurdlr`, inside this process. With `HURDLR_CLIENT_ID` and the other
//! variables of [`Hurdlr::from_env`] set, it does the same with the provider: the first grant asks
//! for a token of the user that `HURDLR_USER_ID` names, and the login prints a URL for you to open
//! and reads the address you come back to from standard input. Nobody can turn that provider's
//! clock, so the manager grants and reads only.

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod managed;
mod narrator;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use std::{env, io};

use hurdlr_oauth2::testing::{FakeHurdlr, Fault, ManualClock};
use hurdlr_oauth2::{ErrorKind, Hurdlr, HurdlrBuilder, Token, UserId};
use secrecy::ExposeSecret;

use narrator::Narrator;

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
    let clock = ManualClock::new();
    let narrator = Narrator::new(&fake.base_url())?;
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .authorize_url(fake.authorize_url())
        .redirect_uri("https://app.example.com/callback")
        .http_client(narrator.clone())
        .clock(clock.clone())
        .build()?;
    let story = Story { hurdlr, narrator, person: Person::Played(World { fake, clock }) };
    story.tell(Some(&UserId::new("customer-4711")?)).await
}

async fn with_the_provider() -> Outcome {
    println!(
        "\
The three grants, with the provider that the HURDLR_* variables name.
Secrets are shown by name, as <access token 1>."
    );
    let narrator = Narrator::new(Hurdlr::from_env()?.token_url())?;
    let hurdlr = HurdlrBuilder::from_env()?.http_client(narrator.clone()).build()?;
    let user = match env::var("HURDLR_USER_ID") {
        Ok(id) if !id.is_empty() => Some(UserId::new(id)?),
        _ => None,
    };
    Story { hurdlr, narrator, person: Person::You }.tell(user.as_ref()).await
}

/// Who logs in.
enum Person {
    Played(World),
    You,
}

/// A provider, and the clock of the app that uses it.
struct World {
    fake: FakeHurdlr,
    clock: ManualClock,
}

impl World {
    /// Time passes, for both.
    fn advance(&self, by: Duration) {
        self.fake.advance_clock(by);
        self.clock.advance(by);
    }
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
        let newest = self.refresh(logged_in.or(granted)).await?;

        heading("5. A manager: the token, kept alive for whoever reads it");
        match (&self.person, newest, user) {
            (Person::Played(world), Some(token), _) => {
                managed::through_its_life(token, &self.hurdlr, world, &self.narrator).await
            }
            (Person::You, _, Some(user)) => {
                managed::granted_once(user, &self.hurdlr, &self.narrator).await
            }
            _ => {
                println!("\n  Left out: HURDLR_USER_ID does not say for whom.");
                Ok(())
            }
        }
    }

    /// Refreshes a token, and tries a dead refresh token. Returns the newest token.
    async fn refresh(&self, token: Option<Token>) -> Outcome<Option<Token>> {
        let Some(token) = token else {
            println!("\n  Left out: there is no token to refresh.");
            return Ok(None);
        };
        if token.refresh_token().is_none() {
            println!("\n  Left out: the provider gave no refresh token.");
            return Ok(Some(token));
        }
        if let Person::Played(world) = &self.person {
            println!("\n  80 days later:");
            world.advance(80 * DAY);
        }
        let newer = self.hurdlr.refresh(&token).await?;
        show_life(&newer);
        let exposed = |token: &Token| token.refresh_token().map(|t| t.expose_secret().to_owned());
        if exposed(&newer) == exposed(&token) {
            println!("  The refresh token stays the same.");
            return Ok(Some(newer));
        }
        println!("  The refresh token was replaced. Only the new one is good from now on.");

        // A real provider may take a used refresh token for a theft, and end the person's login.
        let (title, dead) = match &self.person {
            Person::Played(_) => ("the replaced refresh token is used again", token),
            Person::You => {
                let made_up = r#"{"access_token":"none","refresh_token":"made-up"}"#;
                ("a made-up refresh token", self.hurdlr.import(made_up)?)
            }
        };
        heading(&format!("4. A refusal: {title}"));
        match self.hurdlr.refresh(&dead).await {
            Ok(_) => println!("\n  Not refused: this provider lets it pass."),
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
        Ok(Some(newer))
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
            Person::Played(world) => world.fake.consent(&url, "ann").await?,
            Person::You => {
                println!("\nOpen this in a browser and log in:\n\n{url}\n");
                println!("Then paste the address you end at, and press Enter:");
                let mut line = String::new();
                if io::stdin().read_line(&mut line)? == 0 {
                    return Err("standard input ended before an address came".into());
                }
                line.trim().parse().map_err(|_| "what was entered is not an address")?
            }
        };
        self.narrator.show_page("back", &callback);
        Ok(Some(self.hurdlr.complete_login(pending, &callback).await?))
    }
}

/// The main job once more, on the answers that the provider's reference prints.
async fn with_the_providers_examples() -> Outcome {
    const TOKEN: &str = include_str!("../../tests/fixtures/v4_token.json");
    const REFUSAL: &str = include_str!("../../tests/fixtures/error_envelope.json");
    const IMPORTS: [(&str, &str); 3] = [
        ("v4, registering a user", include_str!("../../tests/fixtures/v4_account_created.json")),
        (
            "v5, an accountant's client",
            include_str!("../../tests/fixtures/v5_accountant_user_token.json"),
        ),
        ("v6", include_str!("../../tests/fixtures/v6_token.json")),
    ];

    heading("6. The examples of the provider's own reference");
    println!(
        "
  FakeHurdlr answers with them, byte for byte. They were made on 2 September
  2020, so the clock is set to that evening."
    );
    let fake = FakeHurdlr::start().await?;
    let evening = httpdate::parse_http_date("Wed, 02 Sep 2020 20:00:00 GMT")?;
    let clock = ManualClock::new();
    clock.set_wall_back(SystemTime::now().duration_since(evening)?);
    let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
        .environment(fake.base_url())
        .http_client(Narrator::new(&fake.base_url())?)
        .clock(clock)
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
The same in code is in the docs of Hurdlr. Tokens for 10,000 users, with retries:

  cargo run --example enterprise --features testing

To try the provider by curl or browser:

  cargo run --example fake_hurdlr --features testing"
    );
    Ok(())
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

//! Serves `FakeHurdlr` for use with curl, or from another language:
//!
//! ```text
//! cargo run --example fake_hurdlr --features testing -- --port 4010 --rotation grace
//! ```

// Its output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{error::Error, process::ExitCode, str::FromStr, time::Duration};

use hurdlr_oauth2::testing::{ErrorStyle, FakeHurdlr, FakeHurdlrBuilder, Rotation};
use secrecy::ExposeSecret;

const USAGE: &str = "usage: fake_hurdlr [--port PORT] [--life SECONDS] \
    [--rotation none|kill|grace|access|family] [--errors envelope|rfc6749|no-client-code]";

/// How long `--rotation grace` repeats an answer.
const GRACE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let Some(builder) = read_arguments(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let fake = builder.start().await?;
    introduce(&fake);
    tokio::signal::ctrl_c().await?;
    println!("{} token requests", fake.count().total());
    Ok(())
}

/// `None` where help was asked for.
fn read_arguments(
    mut arguments: impl Iterator<Item = String>,
) -> Result<Option<FakeHurdlrBuilder>, Box<dyn Error>> {
    let mut builder = FakeHurdlr::builder().port(4010);
    while let Some(name) = arguments.next() {
        if matches!(name.as_str(), "-h" | "--help") {
            return Ok(None);
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        builder = match name.as_str() {
            "--port" => builder.port(number(&name, &value)?),
            "--life" => builder.token_life(Duration::from_secs(number(&name, &value)?)),
            "--rotation" => builder.rotation(match value.as_str() {
                "none" => Rotation::None,
                "kill" => Rotation::RotateAndKill,
                "grace" => Rotation::Grace(GRACE),
                "access" => Rotation::KillAccess,
                "family" => Rotation::KillFamily,
                _ => return Err(unknown(&name, &value)),
            }),
            "--errors" => builder.error_style(match value.as_str() {
                "envelope" => ErrorStyle::Envelope,
                "rfc6749" => ErrorStyle::Rfc6749,
                "no-client-code" => ErrorStyle::NoClientCode,
                _ => return Err(unknown(&name, &value)),
            }),
            _ => return Err(format!("{name} is not known\n{USAGE}").into()),
        };
    }
    Ok(Some(builder))
}

fn number<N: FromStr>(name: &str, value: &str) -> Result<N, Box<dyn Error>> {
    value.parse().map_err(|_| unknown(name, value))
}

fn unknown(name: &str, value: &str) -> Box<dyn Error> {
    format!("{name} cannot be {value:?}\n{USAGE}").into()
}

fn introduce(fake: &FakeHurdlr) {
    let base = fake.base_url();
    let (id, secret) = (fake.client_id(), fake.client_secret());
    // A fake's own secret, which guards nothing.
    let secret = secret.expose_secret();
    let client = format!("-d client_id={id} -d client_secret={secret}");
    println!(
        "A fake Hurdlr listens at {base} until Ctrl-C.

For a program that reads its settings from the environment, with a login that
comes back to port 3000:

  export HURDLR_CLIENT_ID={id} HURDLR_CLIENT_SECRET={secret}
  export HURDLR_BASE_URL={base} HURDLR_AUTHORIZE_URL={authorize}
  export HURDLR_REDIRECT_URI=http://127.0.0.1:3000/hurdlr/callback

Log in with a browser, or by curl; the address it ends at holds the code:

  {authorize}?response_type=code&client_id={id}&redirect_uri={base}callback&state=any

  curl -s -o /dev/null -w '%{{redirect_url}}\n' {authorize} -d response_type=code \
    -d client_id={id} -d redirect_uri={base}callback -d state=any -d user=demo -d decision=allow

Each grant:

  curl {base}rest/v4/auth/token {client} -d grant_type=authorization_code -d code=CODE
  curl {base}rest/v4/auth/token {client} -d grant_type=client_credentials -d userId=demo
  curl {base}rest/v4/auth/token {client} -d grant_type=refresh_token -d refresh_token=TOKEN

Under v6, for the partner itself, and what ends a token:

  curl {base}v6/auth/token -u {id}:{secret} -d grant_type=client_credentials
  curl {base}v6/auth/revoke -u {id}:{secret} -d token=TOKEN

The API:

  curl {base}rest/v4/expenses -H 'Authorization: Bearer TOKEN'
",
        authorize = fake.authorize_url(),
    );
}

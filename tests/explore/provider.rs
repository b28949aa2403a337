//! A small provider: it rotates refresh tokens, and punishes one that comes twice.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use hurdlr_oauth2::oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use hurdlr_oauth2::url::form_urlencoded;

use crate::laws::Sent;
use crate::world::{Broken, Call, START, World};

pub(crate) const LIFE: Duration = Duration::from_secs(3_600);
/// The pause that a throttled request is told: longer than a lease.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(15);
/// The time after which the transport gives up on an answer.
const TRANSPORT: Duration = Duration::from_secs(4);

/// A pair of access and refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) family: u32,
    pub(crate) number: u32,
}

impl Pair {
    /// Finds the refresh token in a text.
    pub(crate) fn find(text: &[u8]) -> Option<Self> {
        let at = text.windows(3).position(|part| part == b"rt.")?;
        let digits = std::str::from_utf8(text.get(at + 3..at + 7)?).ok()?;
        let (family, number) = digits.split_at(2);
        Some(Self { family: family.parse().ok()?, number: number.parse().ok()? })
    }

    fn access_token(self) -> String {
        format!("at.{:02}{:02}", self.family, self.number)
    }

    fn refresh_token(self) -> String {
        format!("rt.{:02}{:02}", self.family, self.number)
    }

    pub(crate) fn json(self, created: Duration) -> String {
        let (access, refresh) = (self.access_token(), self.refresh_token());
        let (life, created) = (LIFE.as_secs(), (START + created).as_secs());
        format!(
            r#"{{"access_token":"{access}","token_type":"Bearer","expires_in":{life},
                 "created_at":{created},"refresh_token":"{refresh}"}}"#
        )
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token {}.{}", self.family, self.number)
    }
}

/// The punishment for a refresh token that was used before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reuse {
    #[default]
    KillsFamily,
    IsRefused,
}

#[derive(Default)]
pub(crate) struct Provider {
    pub(crate) reuse: Reuse,
    families: Vec<Family>,
    pub(crate) created: HashMap<Pair, Duration>,
}

struct Family {
    newest: u32,
    alive: bool,
}

impl Provider {
    pub(crate) fn log_in(&mut self, now: Duration) -> Pair {
        self.families.push(Family { newest: 1, alive: true });
        let family = u32::try_from(self.families.len()).unwrap_or(0);
        let pair = Pair { family, number: 1 };
        self.created.insert(pair, now);
        pair
    }

    fn refresh(&mut self, sent: Pair, now: Duration) -> Option<Pair> {
        let family = self.families.get_mut(sent.family as usize - 1)?;
        if !family.alive {
            return None;
        }
        if family.newest != sent.number {
            family.alive = self.reuse != Reuse::KillsFamily;
            return None;
        }
        family.newest += 1;
        let pair = Pair { number: family.newest, ..sent };
        self.created.insert(pair, now);
        Some(pair)
    }

    /// The newest pair of the same family.
    pub(crate) fn newest(&self, pair: Pair) -> Pair {
        let family = self.families.get(pair.family as usize - 1);
        Pair { number: family.map_or(pair.number, |family| family.newest), ..pair }
    }

    /// Whether this refresh token would be taken.
    pub(crate) fn lives(&self, pair: Pair) -> bool {
        let family = self.families.get(pair.family as usize - 1);
        family.is_some_and(|family| family.alive && family.newest == pair.number)
    }
}

/// The way of one process to the provider.
pub(crate) struct Wire {
    pub(crate) process: usize,
    pub(crate) world: World,
}

type Answer = Result<HttpResponse, io::Error>;

impl<'c> AsyncHttpClient<'c> for Wire {
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let mut form = form_urlencoded::parse(request.body());
            let token = form.find(|(name, _)| name == "refresh_token");
            let sent = token.and_then(|(_, value)| Pair::find(value.as_bytes()));
            let sent = sent.ok_or_else(|| io::Error::other("no refresh token in the request"))?;
            self.world.lock().sends(self.process, sent);
            let mut in_flight = InFlight { wire: self, is_over: false };
            let answered = self.world.gated(
                self.process,
                Call::Request,
                async { Ok(self.refresh(sent)) },
                no_answer,
            );
            let answer = tokio::select! {
                biased;
                answer = answered => answer,
                () = self.world.sleep(self.process, TRANSPORT) => {
                    Err(io::ErrorKind::TimedOut.into())
                }
            };
            in_flight.is_over = true;
            self.world.lock().hears(self.process, classify(&answer));
            answer
        })
    }
}

/// A request that goes unanswered if its sender gives up on it.
struct InFlight<'a> {
    wire: &'a Wire,
    is_over: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.wire.world.lock().hears(self.wire.process, Sent::Unanswered);
        }
    }
}

impl Wire {
    fn refresh(&self, sent: Pair) -> HttpResponse {
        let mut state = self.world.lock();
        let now = state.now;
        if let Some(pair) = state.provider.refresh(sent, now) {
            state.tell(|| format!("  the provider rotates {sent} to {pair}"));
            answer(200, pair.json(now))
        } else {
            state.tell(|| format!("  the provider refuses {sent}"));
            answer(400, r#"{"error":"invalid_grant"}"#.to_owned())
        }
    }
}

fn no_answer(broken: Broken) -> Answer {
    match broken {
        Broken::Before => Err(io::ErrorKind::ConnectionRefused.into()),
        Broken::After => Err(io::ErrorKind::ConnectionReset.into()),
        Broken::Throttled => {
            let mut throttled = answer(429, r#"{"error":"slow_down"}"#.to_owned());
            throttled.headers_mut().insert("retry-after", RETRY_AFTER.as_secs().into());
            Ok(throttled)
        }
    }
}

fn answer(status: u16, body: String) -> HttpResponse {
    let mut answer = HttpResponse::new(body.into_bytes());
    if let Ok(status) = status.try_into() {
        *answer.status_mut() = status;
    }
    let json = "application/json".parse();
    answer.headers_mut().extend(json.ok().map(|json| ("content-type".parse().ok(), json)));
    answer
}

/// Reads an answer the way the laws see it.
fn classify(answer: &Answer) -> Sent {
    match answer {
        Ok(answer) if answer.status().is_success() => {
            Pair::find(answer.body()).map_or(Sent::Unanswered, Sent::Rotated)
        }
        Ok(answer) if answer.status() == 429 => Sent::Throttled,
        Ok(_) => Sent::Refused,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Sent::NeverLeft,
        Err(_) => Sent::Unanswered,
    }
}

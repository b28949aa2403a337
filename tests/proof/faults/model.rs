//! What the table means for the next attempt: requests, outcome and row, given what the provider
//! has done meanwhile.

use std::time::Duration;

use hurdlr_oauth2::testing::{ErrorStyle, Rotation};
use hurdlr_oauth2::{ApiVersion, ErrorKind};

use super::table::{Effect, Grant, Leaves, MAX_ATTEMPTS, Provider, Sends, survives};
use super::{Coordinates, Meets};

/// What a doubtful refusal has to come to before callers are told to log in.
const DOUBTS_TO_TELL: u32 = 3;
const DOUBT_SPAN_TO_TELL: Duration = Duration::from_secs(15 * 60);

/// The refresh token that the row has, and what became of it.
pub(crate) struct Model {
    at: Coordinates,
    /// Since when the provider has a successor of it that the client never got.
    replaced_at: Option<Duration>,
    /// How many tokens were saved.
    pub(crate) saved: u64,
    pub(crate) in_flight: bool,
    /// Why the login is over.
    pub(crate) over: Option<ErrorKind>,
    /// How many doubtful refusals there were, and since when.
    doubts: Option<(u32, Duration)>,
}

/// What one attempt comes to.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Its requests, and whether each carries a Bearer header.
    pub(crate) bearers: Vec<bool>,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Token,
    Failure {
        kind: ErrorKind,
        /// Whether the provider may have acted on it.
        is_unanswered: bool,
    },
}

impl Model {
    pub(crate) fn new(at: Coordinates) -> Self {
        Self { at, replaced_at: None, saved: 0, in_flight: false, over: None, doubts: None }
    }

    /// Whether the provider takes the row's refresh token as the current one.
    pub(crate) fn is_current(&self) -> bool {
        self.replaced_at.is_none()
    }

    /// The requests of v4 and v5 for a refresh carry the old access token.
    fn bearer(&self) -> bool {
        self.at.grant == Grant::RefreshToken && self.at.version != ApiVersion::V6
    }

    /// An attempt that begins at `now`, of which these requests meet the fault.
    pub(crate) fn attempt(&mut self, meets: Option<Meets>, now: Duration) -> Attempt {
        if let Some(kind) = self.over {
            return Attempt { bearers: vec![], end: End::Failure { kind, is_unanswered: false } };
        }
        match meets {
            None => self.healthy(now),
            Some(meets) => self.faulty(meets, now),
        }
    }

    /// Whether the provider refuses the row's refresh token at `now`.
    fn is_dead(&self, now: Duration) -> bool {
        self.replaced_at.is_some_and(|at| !survives(self.at.rotation, now.saturating_sub(at)))
    }

    fn healthy(&mut self, now: Duration) -> Attempt {
        let mut bearers = vec![self.bearer()];
        if !self.is_dead(now) {
            self.save();
            return Attempt { bearers, end: End::Token };
        }
        // "A refresh token is dead", in the provider's own style: a token code beside a Bearer
        // header may be about that one.
        if self.bearer() && self.at.style == ErrorStyle::Envelope {
            bearers.push(false);
        }
        let kind = if self.in_flight { ErrorKind::RotationLost } else { ErrorKind::LoginRequired };
        self.over = Some(kind);
        Attempt { bearers, end: End::Failure { kind, is_unanswered: false } }
    }

    fn faulty(&mut self, meets: Meets, now: Duration) -> Attempt {
        let (case, grant) = (self.at.case, self.at.grant);
        let is_refresh = grant == Grant::RefreshToken;
        let acts = case.provider == Provider::Acts && is_refresh;
        let effect = match case.effect {
            // The provider refuses the refresh token that it has replaced, and so cannot be read.
            Effect::Unanswered if acts && case.spoils_refusals && self.is_dead(now) => {
                Effect::Refused
            }
            // A refresh token that only repeats what was sent is no news.
            Effect::Defective if acts && self.at.rotation == Rotation::None => Effect::Unanswered,
            effect => effect,
        };
        let rule = effect.rule(grant);
        let bearer = self.bearer();
        if rule.leaves == Leaves::Token {
            self.save();
            return Attempt { bearers: vec![bearer], end: End::Token };
        }
        let is_unanswered = match effect {
            Effect::Unanswered | Effect::UnansweredPaused => true,
            Effect::Defective => rule.sends == Sends::EachTime,
            _ => false,
        };
        let kind = rule.kind.unwrap_or(case.kind);
        if acts && self.at.rotation != Rotation::None {
            self.replaced_at.get_or_insert(now);
        }
        let more = MAX_ATTEMPTS as usize - 1;
        let again = match rule.sends {
            Sends::OnceMore => vec![bearer],
            Sends::WithoutBearer if bearer => vec![false],
            Sends::EachTime => vec![bearer; more],
            // A login waits for that time itself; a manager leaves it to the next attempt.
            Sends::AtItsTime if grant == Grant::AuthorizationCode => vec![bearer; more],
            Sends::Once | Sends::WithoutBearer | Sends::AtItsTime => vec![],
        };
        let mut bearers = vec![bearer];
        if meets == Meets::First && !again.is_empty() {
            // The next one meets the provider as it is.
            self.in_flight |= rule.leaves == Leaves::PauseInFlight;
            let mut next = self.healthy(now);
            if rule.sends == Sends::WithoutBearer {
                next.bearers = vec![false];
            }
            bearers.append(&mut next.bearers);
            let end = match next.end {
                End::Failure { kind, .. } => End::Failure { kind, is_unanswered },
                End::Token => End::Token,
            };
            return Attempt { bearers, end };
        }
        bearers.extend(again);
        match rule.leaves {
            Leaves::Rescued => {
                self.save();
            }
            Leaves::PauseInFlight => self.in_flight = true,
            Leaves::Refused => self.over = Some(kind),
            Leaves::Token | Leaves::Pause | Leaves::Nothing => {}
        }
        let is_doubt = effect == Effect::Doubtful && is_refresh;
        self.doubts = is_doubt.then(|| {
            let (count, since) = self.doubts.unwrap_or((0, now));
            (count + 1, since)
        });
        Attempt { bearers, end: End::Failure { kind, is_unanswered } }
    }

    /// What callers without a living token are told at `now` of a failure of that kind.
    pub(crate) fn told(&self, kind: ErrorKind, now: Duration) -> ErrorKind {
        let is_likely_over = self.doubts.is_some_and(|(count, since)| {
            count >= DOUBTS_TO_TELL && now.saturating_sub(since) >= DOUBT_SPAN_TO_TELL
        });
        if is_likely_over { ErrorKind::LoginRequired } else { kind }
    }

    fn save(&mut self) {
        self.saved += 1;
        self.replaced_at = None;
        self.in_flight = false;
        self.doubts = None;
    }
}

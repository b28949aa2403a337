//! The table: what goes wrong, what that means, and what has to come of it.
//!
//! It is written from `docs/design.md` and `docs/retries.md`, never from what the code does. A
//! cell of the matrix is a row of [`CASES`] for one grant, rotation, store and so on; what is
//! expected of it follows from [`RULES`] and from what the provider has done meanwhile.

use std::time::{Duration, SystemTime};

use hurdlr_oauth2::ErrorKind;
use hurdlr_oauth2::ErrorKind::{
    InvalidResponse, LoginRequired, RateLimited, Rejected, Unavailable,
};
use hurdlr_oauth2::testing::{BodyEncoding, Fault, Gate, Rotation};

/// How often a request is sent at most that may be repeated at once or after a backoff.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// The pause that a provider asks for.
pub(crate) const PAUSE: Duration = Duration::from_secs(120);

/// What is left of it where a date names it, which has no parts of seconds.
pub(crate) const PAUSE_BY_DATE: Duration = Duration::from_secs(118);

/// Longer than a client waits for an answer.
const FOREVER: Duration = Duration::from_secs(86_400);

const GRACE: Duration = Duration::from_secs(3_600);
const SHORT_GRACE: Duration = Duration::from_secs(100);

/// What the provider does with a refresh token that was used.
pub(crate) const ROTATIONS: [Rotation; 6] = [
    Rotation::None,
    Rotation::RotateAndKill,
    Rotation::Grace(GRACE),
    // Over when a manager asks again after its pause.
    Rotation::Grace(SHORT_GRACE),
    Rotation::KillAccess,
    Rotation::KillFamily,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    ClientCredentials,
    RefreshToken,
    AuthorizationCode,
}
use Grant::{AuthorizationCode, ClientCredentials, RefreshToken};

pub(crate) const GRANTS: [Grant; 3] = [ClientCredentials, RefreshToken, AuthorizationCode];

// --- Rules ----------------------------------------------------------------------------------

/// What a failure means, by the table of `docs/retries.md` and by "Failures of a request" in
/// `docs/design.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// None: the answer arrives, late or oddly dressed.
    Arrives,
    /// The request was not sent.
    NotSent,
    /// 429 or 503 with an error that can be read.
    Busy,
    /// 429 or 503 that names a pause.
    Paused,
    /// The request may have been acted on: a bare 429 or 503, 408, 425, another 5xx, no answer, or
    /// a 2xx that cannot be read.
    Unanswered,
    /// The same, by a 5xx or a 408 that names a pause.
    UnansweredPaused,
    /// A 2xx that is no token, beside a refresh token that can be read.
    Defective,
    /// A 401 with a token code: the refresh token, the client, a gateway or the Bearer header.
    Doubtful,
    /// A token code with a status other than 401: the refresh token, or the Bearer header.
    TokenCode,
    /// `invalid_grant` in any 4xx.
    InvalidGrant,
    /// Another 401, or 400 `invalid_request`: it may be about the Bearer header.
    BearerDoubted,
    /// Any other answer.
    Refused,
    /// The same, with a pause.
    RefusedPaused,
}

/// How often one attempt sends its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    Once,
    /// Once more at once.
    OnceMore,
    /// Once more without the Bearer header, if it had one.
    WithoutBearer,
    /// As often as the retry policy allows.
    EachTime,
    /// Likewise, after the time that the answer names. A manager makes another attempt of that.
    AtItsTime,
}

/// How an attempt ends that met the failure each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// A token.
    Token,
    /// The row's token as it was, and a pause for all processes.
    Pause,
    /// The same, and the mark that the refresh token may have been used.
    PauseInFlight,
    /// The new refresh token beside the old access token, and a pause.
    Rescued,
    /// The mark that the refresh token is dead.
    Refused,
    /// Nothing: a login that failed is none.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) sends: Sends,
    pub(crate) leaves: Leaves,
    /// Of the error; `None` for the kind that the case names.
    pub(crate) kind: Option<ErrorKind>,
}

const fn rule(sends: Sends, leaves: Leaves) -> Rule {
    Rule { sends, leaves, kind: None }
}

const fn error(sends: Sends, leaves: Leaves, kind: ErrorKind) -> Rule {
    Rule { sends, leaves, kind: Some(kind) }
}

#[rustfmt::skip]
const RULES: [(Effect, [Rule; 3]); 13] = {
    use {Effect as E, Leaves as L, Sends as S};
    [
        // effect              client_credentials                  refresh_token                                       authorization_code
        (E::Arrives,          [rule(S::Once, L::Token),            rule(S::Once, L::Token),                            rule(S::Once, L::Token)]),
        (E::NotSent,          [rule(S::EachTime, L::Pause),        rule(S::EachTime, L::Pause),                        rule(S::EachTime, L::Nothing)]),
        (E::Busy,             [rule(S::EachTime, L::Pause),        rule(S::EachTime, L::Pause),                        rule(S::EachTime, L::Nothing)]),
        (E::Paused,           [rule(S::AtItsTime, L::Pause),       rule(S::AtItsTime, L::Pause),                       rule(S::AtItsTime, L::Nothing)]),
        (E::Unanswered,       [rule(S::EachTime, L::Pause),        rule(S::OnceMore, L::PauseInFlight),                rule(S::Once, L::Nothing)]),
        (E::UnansweredPaused, [rule(S::AtItsTime, L::Pause),       rule(S::AtItsTime, L::PauseInFlight),               rule(S::Once, L::Nothing)]),
        (E::Defective,        [rule(S::EachTime, L::Pause),        rule(S::Once, L::Rescued),                          rule(S::Once, L::Nothing)]),
        (E::Doubtful,         [error(S::Once, L::Pause, Rejected), error(S::WithoutBearer, L::Pause, Unavailable),     error(S::Once, L::Nothing, Rejected)]),
        (E::TokenCode,        [error(S::Once, L::Pause, Rejected), error(S::WithoutBearer, L::Refused, LoginRequired), error(S::Once, L::Nothing, Rejected)]),
        (E::InvalidGrant,     [error(S::Once, L::Pause, Rejected), error(S::Once, L::Refused, LoginRequired),          error(S::Once, L::Nothing, Rejected)]),
        (E::BearerDoubted,    [rule(S::Once, L::Pause),            rule(S::WithoutBearer, L::Pause),                   rule(S::Once, L::Nothing)]),
        (E::Refused,          [rule(S::Once, L::Pause),            rule(S::Once, L::Pause),                            rule(S::Once, L::Nothing)]),
        (E::RefusedPaused,    [rule(S::AtItsTime, L::Pause),       rule(S::AtItsTime, L::Pause),                       rule(S::Once, L::Nothing)]),
    ]
};

impl Effect {
    pub(crate) fn names_a_pause(self) -> bool {
        matches!(self, Self::Paused | Self::UnansweredPaused | Self::RefusedPaused)
    }

    pub(crate) fn rule(self, grant: Grant) -> Rule {
        let (_, rules) = RULES.into_iter().find(|(effect, _)| *effect == self).unwrap();
        rules[grant as usize]
    }
}

// --- Cases ----------------------------------------------------------------------------------

/// The moment at which a fault is made.
pub(crate) struct Moment {
    /// By the provider's clock.
    pub(crate) now: SystemTime,
    /// Opened while the request waits at it, where the answer is to arrive; else never.
    pub(crate) gate: Gate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Memory,
    /// Where what the client reads of a body depends on how it comes.
    Socket,
}

/// Whether the provider issues tokens although the client does not get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    Acts,
    Waits,
}

/// A fault, and what it means.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fault: fn(&Moment) -> Fault,
    pub(crate) way: Way,
    pub(crate) provider: Provider,
    pub(crate) effect: Effect,
    /// The kind of the error, where the rule names none.
    pub(crate) kind: ErrorKind,
    /// Whether the client has to give up waiting.
    pub(crate) times_out: bool,
    /// Whether a refusal by the provider arrives in part: a 4xx that cannot be read.
    pub(crate) spoils_refusals: bool,
}

const fn memory(
    name: &'static str,
    provider: Provider,
    effect: Effect,
    kind: ErrorKind,
    fault: fn(&Moment) -> Fault,
) -> Case {
    Case {
        name,
        fault,
        way: Way::Memory,
        provider,
        effect,
        kind,
        times_out: false,
        spoils_refusals: false,
    }
}

const fn socket(
    name: &'static str,
    provider: Provider,
    effect: Effect,
    kind: ErrorKind,
    fault: fn(&Moment) -> Fault,
) -> Case {
    Case { way: Way::Socket, ..memory(name, provider, effect, kind, fault) }
}

const fn times_out(name: &'static str, provider: Provider, fault: fn(&Moment) -> Fault) -> Case {
    let case = memory(name, provider, Effect::Unanswered, Unavailable, fault);
    Case { times_out: true, ..case }
}

const fn arrives(name: &'static str, fault: fn(&Moment) -> Fault) -> Case {
    // The kind is that of no error.
    memory(name, Provider::Acts, Effect::Arrives, Unavailable, fault)
}

/// Every fault, those with a body or a status of the test's own several times.
#[rustfmt::skip]
pub(crate) const CASES: &[Case] = {
    use {Effect as E, Provider as P};
    &[
        arrives("a short Delay", |_| Fault::Delay(Duration::from_millis(2))),
        arrives("a short DelayAfter", |_| Fault::DelayAfter(Duration::from_millis(2))),
        arrives("a short Hold", |at| Fault::Hold(at.gate.clone())),
        arrives("a short HoldAfter", |at| Fault::HoldAfter(at.gate.clone())),
        Case { way: Way::Socket, ..arrives("Dripping", |_| Fault::Dripping { bytes: 100, every: Duration::from_millis(1) }) },
        arrives("ContentType text/html", |_| Fault::ContentType("text/html".into())),
        arrives("no ContentType", |_| Fault::ContentType(String::new())),
        arrives("Encoded with a byte order mark", |_| Fault::Encoded(BodyEncoding::ByteOrderMark)),
        arrives("Encoded as UTF-16", |_| Fault::Encoded(BodyEncoding::Utf16)),
        arrives("Encoded as Latin-1", |_| Fault::Encoded(BodyEncoding::Latin1)),
        arrives("Encoded by gzip", |_| Fault::Encoded(BodyEncoding::Gzip)),
        arrives("Encoded by deflate", |_| Fault::Encoded(BodyEncoding::Deflate)),

        memory("Refuse", P::Waits, E::NotSent, Unavailable, |_| Fault::Refuse),

        memory("RateLimited", P::Waits, E::Busy, RateLimited, |_| Fault::rate_limited()),
        memory("503 that explains itself", P::Waits, E::Busy, Unavailable, |_| Fault::answer(503, r#"{"error":"temporarily_unavailable"}"#)),

        memory("RateLimited for a span", P::Waits, E::Paused, RateLimited, |_| Fault::rate_limited_for(PAUSE)),
        memory("RateLimited until a date", P::Waits, E::Paused, RateLimited, |at| Fault::rate_limited_until(at.now + PAUSE)),
        memory("503 for a span", P::Waits, E::Paused, Unavailable, |_| Fault::unavailable_for(PAUSE)),

        memory("DropBefore", P::Waits, E::Unanswered, Unavailable, |_| Fault::DropBefore),
        memory("DropAfter", P::Acts, E::Unanswered, Unavailable, |_| Fault::DropAfter),
        socket("DropAfter by socket", P::Acts, E::Unanswered, Unavailable, |_| Fault::DropAfter),
        times_out("an endless Delay", P::Waits, |_| Fault::Delay(FOREVER)),
        times_out("an endless DelayAfter", P::Acts, |_| Fault::DelayAfter(FOREVER)),
        times_out("an endless Hold", P::Waits, |at| Fault::Hold(at.gate.clone())),
        times_out("an endless HoldAfter", P::Acts, |at| Fault::HoldAfter(at.gate.clone())),
        times_out("endless Dripping", P::Acts, |_| Fault::dripping(FOREVER)),
        Case { spoils_refusals: true, ..socket("Truncated", P::Acts, E::Unanswered, InvalidResponse, |_| Fault::Truncated) },
        memory("Status 408", P::Waits, E::Unanswered, Unavailable, |_| Fault::status(408)),
        memory("Status 425", P::Waits, E::Unanswered, Unavailable, |_| Fault::status(425)),
        memory("a bare 429", P::Waits, E::Unanswered, RateLimited, |_| Fault::status(429)),
        memory("Status 500", P::Waits, E::Unanswered, Unavailable, |_| Fault::status(500)),
        memory("a bare 503", P::Waits, E::Unanswered, Unavailable, |_| Fault::status(503)),
        memory("a bare 503 after acting", P::Acts, E::Unanswered, Unavailable, |_| Fault::unavailable_after()),
        memory("Html 429", P::Waits, E::Unanswered, RateLimited, |_| Fault::html(429)),
        memory("Html 502", P::Waits, E::Unanswered, Unavailable, |_| Fault::html(502)),
        memory("500 that explains itself", P::Waits, E::Unanswered, Unavailable, |_| Fault::answer(500, r#"{"error":"invalid_grant"}"#)),
        memory("500 after acting", P::Acts, E::Unanswered, Unavailable, |_| Fault::answer_after(500, r#"{"error":"server_error"}"#)),
        memory("Html 200", P::Waits, E::Unanswered, InvalidResponse, |_| Fault::html(200)),
        memory("Answer of an empty object", P::Waits, E::Unanswered, InvalidResponse, |_| Fault::answer(200, "{}")),
        memory("AnswerAfter of an empty object", P::Acts, E::Unanswered, InvalidResponse, |_| Fault::answer_after(200, "{}")),

        memory("500 for a span", P::Waits, E::UnansweredPaused, Unavailable, |_| for_a_span(500)),
        memory("408 for a span", P::Waits, E::UnansweredPaused, Unavailable, |_| for_a_span(408)),

        memory("Oversized", P::Acts, E::Defective, InvalidResponse, |_| Fault::Oversized),

        memory("Unauthorized", P::Waits, E::Doubtful, Rejected, |_| Fault::Unauthorized),
        memory("401 EXPIRED_TOKEN", P::Waits, E::Doubtful, Rejected, |_| Fault::answer(401, EXPIRED_TOKEN)),
        memory("400 EXPIRED_TOKEN", P::Waits, E::TokenCode, Rejected, |_| Fault::answer(400, EXPIRED_TOKEN)),
        memory("403 invalid_token", P::Waits, E::TokenCode, Rejected, |_| Fault::answer(403, r#"{"error":"invalid_token"}"#)),
        memory("400 invalid_grant", P::Waits, E::InvalidGrant, Rejected, |_| Fault::answer(400, INVALID_GRANT)),
        memory("401 invalid_grant", P::Waits, E::InvalidGrant, Rejected, |_| Fault::answer(401, INVALID_GRANT)),
        memory("403 invalid_grant", P::Waits, E::InvalidGrant, Rejected, |_| Fault::answer(403, INVALID_GRANT)),
        memory("400 invalid_request", P::Waits, E::BearerDoubted, Rejected, |_| Fault::answer(400, r#"{"error":"invalid_request"}"#)),
        memory("401 invalid_client", P::Waits, E::BearerDoubted, Rejected, |_| Fault::answer(401, r#"{"error":"invalid_client"}"#)),
        memory("Html 401", P::Waits, E::BearerDoubted, InvalidResponse, |_| Fault::html(401)),

        memory("Forbidden", P::Waits, E::Refused, Rejected, |_| Fault::Forbidden),
        memory("400 unauthorized_client", P::Waits, E::Refused, Rejected, |_| Fault::answer(400, r#"{"error":"unauthorized_client"}"#)),
        memory("Html 403", P::Waits, E::Refused, InvalidResponse, |_| Fault::html(403)),
        memory("Status 404", P::Waits, E::Refused, InvalidResponse, |_| Fault::status(404)),
        memory("Redirect", P::Waits, E::Refused, InvalidResponse, |_| Fault::redirect(307, "http://127.0.0.1:1/elsewhere")),
        memory("403 for a span", P::Waits, E::RefusedPaused, InvalidResponse, |_| for_a_span(403)),
    ]
};

const EXPIRED_TOKEN: &str =
    r#"{"result":"FAILURE","data":null,"error":[{"type":"EXPIRED_TOKEN"}]}"#;
const INVALID_GRANT: &str = r#"{"error":"invalid_grant"}"#;

fn for_a_span(status: u16) -> Fault {
    let retry_after = Some(PAUSE.as_secs().to_string());
    Fault::Status { status, content_type: "text/plain".into(), body: String::new(), retry_after }
}

/// Whether a refresh token that the provider has replaced is good for another answer `after` that.
pub(crate) fn survives(rotation: Rotation, after: Duration) -> bool {
    match rotation {
        Rotation::None => true,
        Rotation::Grace(window) => after < window,
        Rotation::RotateAndKill | Rotation::KillAccess | Rotation::KillFamily => false,
        other => panic!("{other:?} has no row in the table"),
    }
}

/// Whether the old access token dies with the refresh, or with the second use of a refresh token.
pub(crate) fn kills_access(rotation: Rotation) -> bool {
    matches!(rotation, Rotation::KillAccess | Rotation::KillFamily)
}

// --- The table is whole -----------------------------------------------------------------------

/// Each fault, each constructor of one and each rotation has a row.
#[test]
fn every_fault_has_a_row() {
    let (faults, ledger) = (
        include_str!("../../../src/testing/fault.rs"),
        include_str!("../../../src/testing/ledger.rs"),
    );
    let moment = Moment { now: SystemTime::now(), gate: Gate::closed() };
    let listed: Vec<_> = CASES.iter().map(|case| format!("{:?}", (case.fault)(&moment))).collect();
    for variant in variants(faults, "pub enum Fault {") {
        assert!(listed.iter().any(|it| is_variant(it, variant)), "Fault::{variant} has no row");
    }
    let encodings = include_str!("../../../src/testing/body_encoding.rs");
    for variant in variants(encodings, "pub enum BodyEncoding {") {
        let encoded = format!("Encoded({variant})");
        assert!(listed.contains(&encoded), "{encoded} has no row");
    }
    for variant in variants(ledger, "pub enum Rotation {") {
        let has_row = ROTATIONS.iter().any(|it| is_variant(&format!("{it:?}"), variant));
        assert!(has_row, "Rotation::{variant} has no row");
    }
    let (_, constructors) = faults.split_once("impl Fault {").unwrap();
    let (constructors, _) = constructors.split_once("pub(super)").unwrap();
    for rest in constructors.split("pub fn ").skip(1) {
        let (name, _) = rest.split_once('(').unwrap();
        let call = format!("Fault::{name}(");
        assert!(include_str!("table.rs").contains(&call), "{call}...) has no row");
    }
}

/// The variants of an enum in a source file.
fn variants<'a>(source: &'a str, head: &str) -> Vec<&'a str> {
    let (_, body) = source.split_once(head).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let names = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = names.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    names.map(|line| line.split([',', '(', ' ']).next().unwrap()).collect()
}

fn is_variant(shown: &str, variant: &str) -> bool {
    shown.split(['(', ' ']).next() == Some(variant)
}

//! One measure: what is watched, what is looked for, and what is found.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hurdlr_oauth2::Token;
use hurdlr_oauth2::secrecy::ExposeSecret;
use url::{Url, form_urlencoded};
use watched_heap::{State, unwatched, watch};

use crate::provider::{Provider, Transport};
use crate::sources::{Source, owner};

/// The part of a test that is watched. It gets ready what it needs, has its work watched by
/// [`Case::watched`], and tells the secrets.
pub(crate) type Measure = fn(&mut Case);

/// A name, and the secret in each form that a request, an answer or a header has it in.
#[derive(Debug, Default)]
pub(crate) struct Secrets(RefCell<Vec<(&'static str, Vec<u8>)>>);

impl Secrets {
    /// Keeps a secret to look for, in memory that is not watched.
    pub(crate) fn tell(&self, name: &'static str, secret: &str) {
        unwatched(|| {
            let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let forms = [
                secret.as_bytes().to_vec(),
                encoded.into_bytes(),
                serde_json::to_vec(secret).unwrap(),
                BASE64_STANDARD.encode(secret).into_bytes(),
                BASE64_URL_SAFE_NO_PAD.encode(secret).into_bytes(),
            ];
            for form in &forms {
                self.tell_bytes(name, form);
            }
        });
    }

    /// Keeps a secret that is no text.
    pub(crate) fn tell_bytes(&self, name: &'static str, secret: &[u8]) {
        unwatched(|| {
            let mut all = self.0.borrow_mut();
            if !all.iter().any(|(_, known)| known == secret) {
                all.push((name, secret.to_vec()));
            }
        });
    }

    /// Keeps both tokens.
    pub(crate) fn tell_token(&self, age: [&'static str; 2], token: &Token) {
        self.tell(age[0], token.access_token().expose_secret());
        if let Some(refresh_token) = token.refresh_token() {
            self.tell(age[1], refresh_token.expose_secret());
        }
    }

    /// Keeps the code of a callback.
    pub(crate) fn tell_code(&self, callback: &Url) {
        let (_, code) = callback.query_pairs().find(|(name, _)| name == "code").unwrap();
        self.tell("code", &code);
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.borrow().iter().map(|(name, _)| *name).collect();
        names.dedup();
        names
    }
}

/// The names of tokens that were there before, and of those that came.
pub(crate) const OLD: [&str; 2] = ["old access token", "old refresh token"];
pub(crate) const NEW: [&str; 2] = ["access token", "refresh token"];

pub(crate) struct Case {
    pub(crate) provider: Provider,
    pub(crate) secrets: Secrets,
    hits: Vec<Hit>,
}

impl Case {
    /// Does the work on a runtime of its own, and searches what was freed between the begin of the
    /// work and the end of the runtime.
    pub(crate) fn watched(&mut self, work: impl AsyncFnOnce(&mut Provider, &Secrets)) {
        let watch = watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(&mut self.provider, &self.secrets));
        drop(runtime);
        let blocks = watch.end();
        assert!(!blocks.is_empty());
        let secrets = self.secrets.0.borrow();
        let (names, markers): (Vec<_>, Vec<_>) = secrets.iter().cloned().unzip();
        self.hits = blocks
            .holding(&markers)
            .into_iter()
            .map(|block| {
                let mut secrets: Vec<_> = block.markers.iter().map(|it| names[*it]).collect();
                secrets.dedup();
                let by = match block.allocated_by() {
                    known if known.is_empty() => block.freed_by(),
                    known => known,
                };
                let (source, function) = owner(&by);
                Hit { source, function, secrets, block }
            })
            .collect();
    }

    /// Does something that is not watched, on a runtime of its own.
    pub(crate) fn prepared<T>(&mut self, work: impl AsyncFnOnce(&mut Provider) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(&mut self.provider))
    }
}

/// A block that held a secret when it was freed.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) source: Source,
    /// The function by which it came to be.
    function: String,
    pub(crate) secrets: Vec<&'static str>,
    pub(crate) block: watched_heap::Hit,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, function, secrets, block } = self;
        let state = if block.state == State::Alive { ", alive" } else { "" };
        let secrets = secrets.join(", ");
        write!(f, "{source}'s, {} bytes{state}, by {function}: {secrets}", block.size)
    }
}

pub(crate) struct Measured {
    pub(crate) hits: Vec<Hit>,
    pub(crate) secrets: Secrets,
}

pub(crate) fn run(transport: Transport, measure: Measure) -> Measured {
    let provider = Provider::of(transport);
    let mut case = Case { provider, secrets: Secrets::default(), hits: Vec::new() };
    case.secrets.tell("client secret", &case.provider.site.client_secret);
    measure(&mut case);
    if std::env::var_os("MEMORY_STACKS").is_some() {
        for hit in &case.hits {
            println!("{hit}\n  allocated by {:#?}", hit.block.allocated_by());
            println!("  freed by {:#?}", hit.block.freed_by());
        }
    }
    let Case { provider, secrets, hits } = case;
    provider.give_back();
    Measured { hits, secrets }
}

/// Prints how many blocks were left, and where they come from.
pub(crate) fn figure(name: &str, hits: &[Hit]) {
    // Behind the name of the test, which ends no line.
    println!();
    println!("figure: memory.copies_left.{name} = {} blocks", hits.len());
    let mut kinds = BTreeMap::<String, usize>::new();
    for hit in hits {
        *kinds.entry(hit.to_string()).or_default() += 1;
    }
    for (kind, count) in kinds {
        println!("    {count} x {kind}");
    }
}

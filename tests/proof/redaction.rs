//! No secret is shown: not by any public type, not by an error or its causes, not in a log of ours
//! or of the crates below, not by a metric, a panic or a page, and not by a database of sealed
//! tokens.
//!
//! The sweep goes every way that fails, with secrets that it knows: those it sets, and those that
//! went over the wire. All that is said meanwhile is searched for them in every form in which a
//! byte may be written.

mod calls;
mod forms;
mod grants;
mod panics;
mod provider;
mod settings;
mod stores;
mod types;
mod web;

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::{Arc, Mutex};

use metrics_util::debugging::DebuggingRecorder;

use crate::alone::is_alone;
use crate::logged::Log;
use forms::{FORMS, Search};

const CLIENT_SECRET: &str = "client+secret/of=marker~tail";
/// Personal: a log names users by hashes.
const USER: &str = "ann.marker+tag@example.com";
const OTHER_USER: &str = "bob.marker+tag@example.com";
const DATABASE_PASSWORD: &str = "data%2Bbase-password-marker";
const SEALING_KEY: [u8; 32] = *b"a sealing key with marker in it,";
const OTHER_SEALING_KEY: [u8; 32] = *b"one more sealing key as a marker";
const USER_HASH_KEY: [u8; 32] = *b"user ids are hashed by a marker.";
const LOG_ID_KEY: &str = "bG9nIGlkcyBhcmUgaGFzaGVkIGJ5IGEgbWFya2VyLi4=";
const COOKIE_KEY: [u8; 64] = *b"cookies are sealed by a key that is a marker and 64 bytes long..";

/// Everything that was said, and everything that must not be in it.
#[derive(Clone, Default)]
struct Sweep(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    secrets: BTreeMap<Vec<u8>, String>,
    texts: Vec<Text>,
    types: BTreeSet<String>,
    /// The kinds of all errors.
    kinds: BTreeSet<&'static str>,
}

struct Text {
    place: String,
    content: Vec<u8>,
}

impl Sweep {
    fn new() -> Self {
        let sweep = Self::default();
        sweep.secret("client secret", CLIENT_SECRET);
        sweep.secret("database password", DATABASE_PASSWORD);
        sweep.secret("database password", "data+base-password-marker");
        sweep.secret("sealing key", SEALING_KEY);
        sweep.secret("sealing key", OTHER_SEALING_KEY);
        sweep.secret("user hash key", USER_HASH_KEY);
        sweep.secret("log id key", LOG_ID_KEY);
        sweep.secret("log id key", "log ids are hashed by a marker..");
        sweep.secret("cookie key", COOKIE_KEY);
        for user in [USER, OTHER_USER] {
            sweep.secret("user id", user);
        }
        sweep
    }

    /// Something that must not be shown from now on, nor has been before.
    fn secret(&self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        assert!(value.len() >= 12, "{name} is too short to be told from other text");
        self.0.lock().unwrap().secrets.insert(value.to_vec(), name.to_owned());
    }

    fn text(&self, place: impl Into<String>, content: impl Into<Vec<u8>>) {
        let text = Text { place: place.into(), content: content.into() };
        self.0.lock().unwrap().texts.push(text);
    }

    /// What `Debug` shows of a value.
    fn shown<T: fmt::Debug>(&self, value: &T) {
        let name = type_of::<T>();
        let shown = format!("{value:?}");
        assert!(!shown.is_empty(), "{name}");
        self.text(format!("Debug of {name}"), format!("{shown}\n{value:#?}"));
        if let Some(name) = name.strip_prefix("hurdlr_oauth2::") {
            self.0.lock().unwrap().types.insert(name.to_owned());
        }
    }

    fn displayed<T: fmt::Display>(&self, value: &T) {
        let (name, shown) = (type_of::<T>(), value.to_string());
        assert!(!shown.is_empty(), "{name}");
        self.text(format!("Display of {name}"), shown);
    }

    /// What an error says of itself and of all its causes.
    fn error(&self, place: impl Into<String>, error: &(dyn StdError + 'static)) {
        let mut said = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let _ = write!(said, "{error}\n{error:#}\n{error:?}\n{error:#?}\n");
            if let Some(error) = error.downcast_ref::<hurdlr_oauth2::Error>() {
                self.0.lock().unwrap().kinds.insert(error.kind().name());
            }
            next = cause(error);
        }
        self.text(place, said);
    }

    /// What a call returned, its error with all causes.
    fn result<T: fmt::Debug, E: StdError + 'static>(
        &self,
        place: impl Into<String>,
        result: &Result<T, E>,
    ) {
        match result {
            Ok(value) => self.text(place, format!("{value:?}\n{value:#?}")),
            Err(error) => self.error(place, error),
        }
    }

    /// What a call returned that has to fail.
    fn failed<T, E: StdError + 'static>(&self, place: &str, result: Result<T, E>) {
        match result {
            Ok(_) => panic!("{place} did not fail"),
            Err(error) => self.error(place, &error),
        }
    }

    /// The number of texts, and each secret that one of them has.
    fn search(&self) -> (usize, Vec<String>) {
        let search = Search::new(&self.secrets());
        let texts = std::mem::take(&mut self.0.lock().unwrap().texts);
        let mut found = Vec::new();
        for text in &texts {
            // One of many is enough to go by.
            if let Some(hit) = search.hits(&text.content).into_iter().next() {
                let end = text.content.len().min(hit.at + 80);
                let start = hit.at.saturating_sub(160).min(end);
                let around = text.content[start..end].escape_ascii();
                found.push(format!("{}: {} ({}): {around}", text.place, hit.name, hit.form));
            }
        }
        (texts.len(), found)
    }

    // Nothing may panic under the lock: the hook for panics takes it.
    fn secrets(&self) -> BTreeMap<Vec<u8>, String> {
        self.0.lock().unwrap().secrets.clone()
    }

    fn types(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().types.clone()
    }

    /// Fails unless a text has a secret, as the tokens of a store that is not sealed.
    fn assert_is_found(&self, content: &[u8]) {
        let search = Search::new(&self.secrets());
        assert!(!search.hits(content).is_empty(), "no token is found where they are in plaintext");
    }

    /// Fails unless each kind of secret is found, in each form, in a line of a log.
    fn assert_a_planted_secret_is_found(&self) {
        let secrets = self.secrets();
        let search = Search::new(&secrets);
        let mut kinds = BTreeMap::new();
        for (secret, name) in &secrets {
            kinds.entry(name).or_insert(secret);
        }
        for (name, secret) in kinds {
            for (form, write) in FORMS {
                for written in write(secret) {
                    let text = [b"a line of a log: ", &written[..], b" and its end"].concat();
                    assert!(!search.hits(&text).is_empty(), "{name} is not found as {form}");
                }
            }
        }
    }
}

/// The path of a type, without what it is generic over.
fn type_of<T>() -> &'static str {
    let name = type_name::<T>().trim_start_matches('&');
    name.split_once('<').map_or(name, |(name, _)| name)
}

/// The next cause. An `io::Error` gives its inner error's source as its own, and not the inner one.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The records of a log, each with all its lines.
fn records(log: &str) -> Vec<String> {
    let mut records = Vec::<String>::new();
    for line in log.lines() {
        // `tracing` begins with the year, `log` with the level.
        let begins = ["2", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"];
        let is_new = begins.iter().any(|begin| line.starts_with(begin));
        match records.last_mut().filter(|_| !is_new) {
            Some(record) => record.extend(["\n", line]),
            None => records.push(line.to_owned()),
        }
    }
    records
}

/// Nothing that this crate shows, stores sealed or makes others log has a secret in any form.
#[tokio::test]
async fn nothing_shows_a_secret() {
    if !is_alone("redaction::nothing_shows_a_secret") {
        return;
    }
    let log = Log::of_process();
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    recorder.install().unwrap();
    let sweep = Sweep::new();
    panics::record(&sweep);

    types::show_all(&sweep).await;
    settings::refuse_all(&sweep).await;
    grants::fail_all(&sweep).await;
    calls::fail_all(&sweep).await;
    web::fail_all(&sweep).await;
    stores::fail_all(&sweep).await;
    panics::panic_everywhere(&sweep).await;

    let names = include_str!("../../src/error.rs").lines().filter_map(|line| {
        let (kind, name) = line.trim().split_once(" => \"")?;
        kind.starts_with("Self::").then(|| name.trim_end_matches("\","))
    });
    let kinds = sweep.0.lock().unwrap().kinds.clone();
    assert_eq!(kinds, names.collect(), "kinds of errors");

    let logged = log.text();
    // The log is that of all who may tell; hyper says what it says by hyper_util.
    for target in [
        " hurdlr_oauth2::client",
        " hurdlr_oauth2::manager",
        " hurdlr_oauth2::web",
        " reqwest::",
        " hyper_util::",
        " rustls::",
        " sqlx::",
    ] {
        let lines = logged.lines().filter(|line| line.contains(target)).count();
        assert!(lines > 0, "the log has no line of{target}");
    }
    assert!(logged.contains("TRACE rustls::"), "the log is not at its finest level");
    for record in records(&logged) {
        sweep.text("log", record);
    }
    let metered = metrics.snapshot().into_vec();
    assert!(metered.iter().any(|(key, ..)| key.key().labels().len() > 0));
    for (key, unit, description, _) in metered {
        sweep.text("metric", format!("{key:?} {unit:?} {description:?}"));
    }

    sweep.assert_a_planted_secret_is_found();
    let public = types::public();
    types::assert_complete(&public, &sweep.types());
    let (texts, found) = sweep.search();
    println!("figure: redaction.texts_searched = {texts} texts");
    println!("figure: redaction.markers_found = {} markers", found.len());
    println!("figure: redaction.public_types = {} types", public.len());
    assert!(found.is_empty(), "{} secrets are shown:\n{}", found.len(), found.join("\n"));
}

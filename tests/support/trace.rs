//! What a thread traces: its events with their fields, and the links between its spans.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is the test's failure")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// A value of a field, by the type that a log in JSON gets it in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(i128),
    Bool(bool),
    Text(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: BTreeMap<String, Value>,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Vec<Line>,
    /// The fields of spans, by the span's name.
    spans: Vec<(&'static str, BTreeMap<String, Value>)>,
    /// Each span with its parent.
    parents: Vec<(&'static str, Option<&'static str>)>,
    /// Each span with one that it follows from.
    links: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Trace(Arc<Mutex<Seen>>);

impl Trace {
    /// For a thread to be traced by.
    pub(crate) fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        Registry::default().with(self.clone())
    }

    /// The events of this crate.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let lines = self.0.lock().unwrap().lines.clone();
        lines.into_iter().filter(|line| line.target.starts_with("hurdlr_oauth2")).collect()
    }

    /// The messages of this level or a higher one.
    pub(crate) fn messages(&self, level: Level) -> Vec<String> {
        let lines = self.lines().into_iter().filter(|line| line.level <= level);
        lines.map(|line| line.message).collect()
    }

    pub(crate) fn line(&self, message: &str) -> Line {
        self.lines().into_iter().find(|line| line.message == message).unwrap()
    }

    /// All fields of events and spans, with the name of where they are.
    pub(crate) fn fields(&self) -> Vec<(String, String, Value)> {
        let lines = self.lines().into_iter().map(|line| (line.message, line.fields));
        let spans = self.0.lock().unwrap().spans.clone();
        let spans = spans.into_iter().map(|(name, fields)| (name.to_owned(), fields));
        let named = lines.chain(spans).flat_map(|(place, fields)| {
            fields.into_iter().map(move |(name, value)| (place.clone(), name, value))
        });
        named.collect()
    }

    pub(crate) fn parents(&self) -> Vec<(&'static str, Option<&'static str>)> {
        self.0.lock().unwrap().parents.clone()
    }

    pub(crate) fn links(&self) -> Vec<(&'static str, &'static str)> {
        self.0.lock().unwrap().links.clone()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let name = attributes.metadata().name();
        let parent = context.span(id).unwrap().parent().map(|parent| parent.name());
        let mut seen = self.0.lock().unwrap();
        seen.parents.push((name, parent));
        seen.spans.push((name, fields.0));
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        record.record(&mut fields);
        self.0.lock().unwrap().spans.push((context.span(id).unwrap().name(), fields.0));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).unwrap().name();
        self.0.lock().unwrap().links.push((name(id), name(follows)));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = match fields.0.remove("message") {
            Some(Value::Text(message)) => message,
            other => panic!("an event's message is {other:?}"),
        };
        let (level, target) = (*event.metadata().level(), event.metadata().target().to_owned());
        let line = Line { level, target, message, fields: fields.0 };
        self.0.lock().unwrap().lines.push(line);
    }
}

/// The fields of an event or a span. What `tracing` cannot hand on as a number becomes text, as in
/// a log in JSON.
#[derive(Default)]
struct Fields(BTreeMap<String, Value>);

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), Value::Number(value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), Value::Number(value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), Value::Text(format!("{value:?}")));
    }
}

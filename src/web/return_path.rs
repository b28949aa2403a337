//! The path of the app to which a user returns after a login, whatever a link says.

use std::borrow::Cow;
use std::fmt::Write;

use url::{Position, Url};

pub(super) const MAX_BYTES: usize = 256;

/// A validated path of the app, with a query if need be, as the browser sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReturnPath(Box<str>);

impl ReturnPath {
    /// Accepts text that every browser and proxy reads as the same path, and nothing else. What is
    /// not ASCII is percent-encoded, as a browser does it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = &*encoded(text);
        // The host is a placeholder. A browser would change backslashes, dot segments, control
        // characters and blanks; text that would be changed is refused.
        let url = Url::parse(&format!("https://app.invalid{text}")).ok()?;
        let is_as_written = text.starts_with('/') && url[Position::BeforePath..] == *text;
        let is_own = text.len() <= MAX_BYTES && is_as_written && !is_ambiguous(url.path());
        is_own.then(|| Self(text.into()))
    }

    /// Wraps text from a place that nobody else can write to.
    pub(super) fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The same path below the app's prefix; unchanged if it is there already.
    pub(super) fn below(self, prefix: &str) -> Option<Self> {
        match self.0.strip_prefix(prefix) {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', '?', '#']) => Some(self),
            _ => Self::parse(&[prefix, &self.0].concat()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn path(&self) -> &str {
        self.0.split(['?', '#']).next().unwrap_or_default()
    }
}

fn encoded(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return text.into();
    }
    let mut encoded = String::with_capacity(3 * text.len());
    for byte in text.bytes() {
        if byte.is_ascii() {
            encoded.push(byte.into());
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded.into()
}

/// Whether the path leads elsewhere once a proxy or the app has decoded it, or has cut its first
/// part off.
fn is_ambiguous(path: &str) -> bool {
    let mut after_percent = path.split('%').skip(1);
    path.contains("//")
        || after_percent.any(|rest| {
            encoded_byte(rest).is_none_or(|byte| byte.is_ascii_control() || b"/\\%".contains(&byte))
        })
}

/// The bytes of a path, decoded as a proxy may do it (RFC 3986 section 6.2.2.2).
pub(super) fn decoded(path: &str) -> Vec<u8> {
    let mut parts = path.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        decoded.extend(encoded_byte(part));
        decoded.extend(part.bytes().skip(2));
    }
    decoded
}

/// The byte of an escape, behind its percent sign.
fn encoded_byte(text: &str) -> Option<u8> {
    u8::from_str_radix(text.get(..2)?, 16).ok()
}

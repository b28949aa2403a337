//! Where a user goes after a login: a path of the app, whatever a link says.

use url::{Position, Url};

pub(super) const MAX_BYTES: usize = 256;

/// A path of the app that was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReturnTarget(Box<str>);

impl ReturnTarget {
    /// Takes over one that nobody can have changed since it was read.
    pub(super) fn judged_before(text: &str) -> Self {
        Self(text.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Takes what every browser and proxy reads as the same path of this app, and nothing else.
pub(super) fn read(text: &str) -> Option<ReturnTarget> {
    // The host is a place holder. What a browser would change is not taken: backslashes, dot
    // segments, control characters, blanks.
    let url = Url::parse(&format!("https://app.invalid{text}")).ok()?;
    let is_as_written = text.starts_with('/') && url[Position::BeforePath..] == *text;
    let is_own = text.len() <= MAX_BYTES && is_as_written && !is_ambiguous(url.path());
    is_own.then(|| ReturnTarget(text.into()))
}

/// Whether it leads elsewhere once a proxy or the app has decoded it, or cut its first part off.
fn is_ambiguous(path: &str) -> bool {
    let mut after_percent = path.split('%').skip(1);
    path.contains("//")
        || after_percent.any(|rest| {
            let byte = rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            byte.is_none_or(|byte| byte.is_ascii_control() || b"/\\%".contains(&byte))
        })
}

//! Whose a block is: that of the innermost function on the stack that allocated it, libraries that
//! allocate for others left out.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Hyper,
    Rustls,
    Reqwest,
    Oauth2,
    Sqlx,
    /// This crate.
    Ours,
    /// The code of these tests, in the place of an app.
    App,
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hyper => "hyper",
            Self::Rustls => "rustls",
            Self::Reqwest => "reqwest",
            Self::Oauth2 => "oauth2",
            Self::Sqlx => "sqlx",
            Self::Ours => "hurdlr_oauth2",
            Self::App => "the app",
            Self::Unknown => "unknown",
        })
    }
}

/// Names are those of functions, the innermost first.
pub(crate) fn owner(names: &[String]) -> (Source, String) {
    names
        .iter()
        .find_map(|name| Some((source(krate(name))?, shortened(name))))
        .unwrap_or((Source::Unknown, "nobody known".to_owned()))
}

/// The crate of a function: `hyper` in `<hyper::body::Incoming as ...>::poll_frame`.
fn krate(name: &str) -> &str {
    let name = name.trim_start_matches(['<', '&', '*']);
    let name = name.strip_prefix("mut ").unwrap_or(name);
    name.split("::").next().unwrap_or(name)
}

fn source(krate: &str) -> Option<Source> {
    match krate {
        "hyper" | "hyper_util" => Some(Source::Hyper),
        "rustls" | "tokio_rustls" | "hyper_rustls" => Some(Source::Rustls),
        "reqwest" => Some(Source::Reqwest),
        "oauth2" => Some(Source::Oauth2),
        "hurdlr_oauth2" => Some(Source::Ours),
        "memory" => Some(Source::App),
        sqlx if sqlx.starts_with("sqlx") => Some(Source::Sqlx),
        _ => None,
    }
}

/// Without type parameters, which fill lines.
fn shortened(name: &str) -> String {
    let mut depth = 0_usize;
    let name = name.strip_prefix('<').unwrap_or(name);
    name.replace("->", "")
        .chars()
        .filter(|c| {
            match c {
                '<' => depth += 1,
                '>' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

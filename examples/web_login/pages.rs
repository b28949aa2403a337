//! The site's pages: plain HTML that works without script.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use crate::site::USERS;

/// The facts of the status page.
pub(crate) enum Connection {
    /// There is a living token.
    Connected {
        now: SystemTime,
        since: Option<SystemTime>,
        ends_in: Option<Duration>,
        due_in: Duration,
        refreshes: u64,
        can_call: bool,
        can_turn: bool,
    },
    /// The person has to log in, for the first time or again.
    None,
    /// Nobody can tell now.
    Unknown { is_temporary: bool },
}

pub(crate) fn sign_in() -> String {
    let mut main = String::from(
        "<h1>Who are you?</h1>\n\
         <p>This is a demonstration: pick one of its users. Each has a connection to Hurdlr of \
         their own.</p>\n<form method=\"post\" action=\"/sign-in\" class=\"stack\">\n",
    );
    for user in USERS {
        let user = escape(user);
        // Writing to a `String` cannot fail.
        let _ = writeln!(main, "<button name=\"user\" value=\"{user}\">Sign in as {user}</button>");
    }
    main.push_str("</form>");
    page("Sign in", None, &main)
}

pub(crate) fn status(user: &str, notice: Option<&str>, connection: &Connection) -> String {
    let mut main = String::new();
    if let Some(notice) = notice {
        let _ = writeln!(main, "<p class=\"notice\" role=\"status\">{}</p>", escape(notice));
    }
    let title = match connection {
        Connection::Connected { .. } => "Hurdlr is connected",
        Connection::None => "Hurdlr is not connected",
        Connection::Unknown { .. } => "Hurdlr cannot be reached",
    };
    let _ = writeln!(main, "<h1>{title}</h1>");
    let rest = match connection {
        Connection::Connected { .. } => connected(connection),
        Connection::None => "<p>Connect your account, and your income and expenses \
            appear here. You can disconnect at any time.</p>\n\
            <p class=\"stack\"><a class=\"act\" href=\"/hurdlr/connect\">Connect Hurdlr</a></p>"
            .into(),
        Connection::Unknown { is_temporary } => format!(
            "<p>{}</p>\n<p class=\"stack\"><a class=\"act\" href=\"/\">Look again</a></p>",
            if *is_temporary {
                "Your connection is kept. Please look again in a few minutes."
            } else {
                "Something is wrong with this site’s settings."
            }
        ),
    };
    main.push_str(&rest);
    page(title, Some(user), &main)
}

fn connected(connection: &Connection) -> String {
    let Connection::Connected { now, since, ends_in, due_in, refreshes, can_call, can_turn } =
        connection
    else {
        return String::new();
    };
    let mut main = String::from("<dl>\n");
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(main, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    let since = since.map_or_else(|| "before this site was started".into(), time);
    fact("Connected since", &since);
    match ends_in {
        Some(left) => fact("Token expires", &in_span(*now, *left)),
        None => fact("Token expires", "at a time that Hurdlr did not name"),
    }
    fact("Next refresh", &in_span(*now, *due_in));
    fact("Refreshes so far", &refreshes.to_string());
    main.push_str("</dl>\n<div class=\"stack\">\n");
    let mut button = |action: &str, class: &str, label: &str| {
        let _ = writeln!(
            main,
            "<form method=\"post\" action=\"{action}\"><button class=\"{class}\">{label}</button></form>"
        );
    };
    if *can_call {
        button("/call", "act", "Call the API");
    }
    if *can_turn {
        button("/turn", "", "Let the token expire");
    }
    button("/hurdlr/disconnect", "away", "Disconnect");
    main.push_str("</div>");
    main
}

fn page(title: &str, user: Option<&str>, main: &str) -> String {
    let account = user.map_or_else(String::new, |user| {
        format!(
            "<form method=\"post\" action=\"/sign-out\"><span>{}</span> <button>Sign out</button></form>",
            escape(user)
        )
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · Example Books</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><a href=\"/\">Example Books</a>{account}</header>\n\
         <main>\n{main}\n</main>\n</body>\n</html>\n"
    )
}

const STYLE: &str = include_str!("style.css");

fn in_span(now: SystemTime, left: Duration) -> String {
    if left.is_zero() {
        return "now".into();
    }
    format!("in {} <small>{}</small>", span(left), time(now + left))
}

/// A span of time as people say it, rounded.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (size, unit) = match seconds {
        0..120 => (1, "second"),
        120..7_200 => (60, "minute"),
        7_200..172_800 => (3_600, "hour"),
        _ => (86_400, "day"),
    };
    let number = (seconds + size / 2) / size;
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn time(time: SystemTime) -> String {
    let text = httpdate::fmt_http_date(time);
    // "Mon, 23 Nov 2026 09:14:05 GMT", of which people want the middle.
    let short = text.get(5..22).unwrap_or(&text);
    format!("<time>{short} UTC</time>")
}

/// For HTML text and for quoted attributes.
fn escape(text: &str) -> String {
    let replaced = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    replaced.replace('"', "&quot;").replace('\'', "&#39;")
}

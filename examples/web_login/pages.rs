//! The site's pages: plain HTML that works without script.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::site::USERS;

/// The query by which the first page knows that the user has just disconnected.
pub(crate) const DISCONNECTED: &str = "disconnected";

/// The answer of the API.
pub(crate) enum Expenses {
    List(Vec<Expense>),
    /// An answer of another shape: this page knows that of the embedded provider only.
    Other(String),
    Refused {
        status: u16,
    },
}

#[derive(Deserialize)]
pub(crate) struct Expense {
    date: String,
    vendor: String,
    amount: f64,
}

/// The facts of the developer's box.
pub(crate) struct Developer {
    pub(crate) now: SystemTime,
    pub(crate) connected_at: Option<SystemTime>,
    pub(crate) ends_in: Option<Duration>,
    pub(crate) due_in: Duration,
    pub(crate) refreshes: u64,
    pub(crate) can_turn: bool,
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

pub(crate) fn home(
    user: &str,
    notice: Option<&str>,
    expenses: &Expenses,
    developer: &Developer,
) -> String {
    let mut main = notice.map_or_else(String::new, notice_line);
    main.push_str("<h1>Your expenses</h1>\n");
    match expenses {
        Expenses::List(list) => main.push_str(&table(list)),
        Expenses::Other(text) => {
            let _ = writeln!(main, "<p>Hurdlr answered:</p>\n<pre>{}</pre>", escape(text));
        }
        Expenses::Refused { status } => {
            let _ = writeln!(main, "<p>Hurdlr answered with status {status}.</p>");
        }
    }
    main.push_str(
        "<p class=\"parting\">From your account at Hurdlr. \
         <a href=\"/disconnect\">Disconnect</a></p>\n",
    );
    page_with("Your expenses", Some(user), &main, &developers_box(developer))
}

fn table(expenses: &[Expense]) -> String {
    let mut table = String::from(
        "<table>\n<thead><tr><th scope=\"col\">Date</th><th scope=\"col\">Vendor</th>\
         <th scope=\"col\">Amount</th></tr></thead>\n<tbody>\n",
    );
    for Expense { date, vendor, amount } in expenses {
        let (date, vendor) = (escape(date), escape(vendor));
        let _ = writeln!(table, "<tr><td>{date}</td><td>{vendor}</td><td>{amount:.2}</td></tr>");
    }
    let total: f64 = expenses.iter().map(|expense| expense.amount).sum();
    let _ = writeln!(
        table,
        "</tbody>\n<tfoot><tr><th scope=\"row\" colspan=\"2\">Total</th>\
         <td>{total:.2}</td></tr></tfoot>\n</table>"
    );
    table
}

pub(crate) fn not_connected(user: &str, is_parting: bool, connect: &str) -> String {
    let notice = "Your connection was removed, and your expenses are gone from this site.";
    let mut main = if is_parting { notice_line(notice) } else { String::new() };
    let connect = escape(connect);
    let _ = writeln!(
        main,
        "<h1>Hurdlr is not connected</h1>\n\
         <p>Connect your account, and your expenses appear here. You can disconnect at any \
         time.</p>\n\
         <p class=\"stack\"><a class=\"act\" href=\"{connect}\">Connect Hurdlr</a></p>"
    );
    page("Hurdlr is not connected", Some(user), &main)
}

pub(crate) fn unreachable(user: &str, is_our_fault: bool) -> String {
    let text = if is_our_fault {
        "Something is wrong with this site’s settings."
    } else {
        "Your connection is kept. Please look again in a few minutes."
    };
    message("Hurdlr cannot be reached", Some(user), text, "Look again")
}

/// The button posts to the login's own route, which asks no more: the form is a page of the site.
pub(crate) fn ask_to_disconnect(user: &str) -> String {
    let main = format!(
        "<h1>Disconnect Hurdlr?</h1>\n\
         <p>This site deletes its access to your account, and shows your expenses no longer. You \
         can connect again at any time.</p>\n<div class=\"stack\">\n\
         <form method=\"post\" action=\"/hurdlr/disconnect?return_to=/%3F{DISCONNECTED}\">\
         <button class=\"away\">Yes, disconnect</button></form>\n\
         <a class=\"button\" href=\"/\">No, stay connected</a>\n</div>"
    );
    page("Disconnect Hurdlr?", Some(user), &main)
}

pub(crate) fn not_found(user: Option<&str>) -> String {
    let text = "The address is mistyped, or the page is gone.";
    message("There is no such page", user, text, "Back to the site")
}

pub(crate) fn foreign_form() -> String {
    let text = "The request did not come from a page of this site.";
    message("Nothing was changed", None, text, "Back to the site")
}

fn message(title: &str, user: Option<&str>, text: &str, link: &str) -> String {
    let main = format!(
        "<h1>{title}</h1>\n<p>{text}</p>\n\
         <p class=\"stack\"><a class=\"act\" href=\"/\">{link}</a></p>"
    );
    page(title, user, &main)
}

fn notice_line(notice: &str) -> String {
    format!("<p class=\"notice\" role=\"status\">{}</p>\n", escape(notice.trim()))
}

/// The part that a real site does not show its users.
fn developers_box(developer: &Developer) -> String {
    let Developer { now, connected_at, ends_in, due_in, refreshes, can_turn } = developer;
    let mut facts = String::from(
        "<aside class=\"developer\" aria-labelledby=\"developer\">\n\
         <h2 id=\"developer\">For developers</h2>\n\
         <p>Your users do not see this box. It shows the token behind the page.</p>\n<dl>\n",
    );
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(facts, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    let since = connected_at.map_or_else(|| "before this site was started".into(), time);
    fact("Connected since", &since);
    match ends_in {
        Some(left) => fact("Token expires", &in_span(*now, *left)),
        None => fact("Token expires", "at a time that Hurdlr did not name"),
    }
    fact("Next refresh", &in_span(*now, *due_in));
    fact("Refreshes so far", &refreshes.to_string());
    facts.push_str("</dl>\n");
    if *can_turn {
        facts.push_str(
            "<form class=\"stack\" method=\"post\" action=\"/turn\">\
             <button>Let the token expire</button></form>\n",
        );
    }
    facts.push_str("</aside>\n");
    facts
}

fn page(title: &str, user: Option<&str>, main: &str) -> String {
    page_with(title, user, main, "")
}

/// A page with something beside its main part.
fn page_with(title: &str, user: Option<&str>, main: &str, beside: &str) -> String {
    let account = user.map_or_else(String::new, |user| {
        let user = escape(user);
        format!(
            "<form method=\"post\" action=\"/sign-out\"><span>{user}</span> \
             <button>Sign out</button></form>"
        )
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · Example Books</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><a href=\"/\">Example Books</a>{account}</header>\n\
         <main>\n{main}\n</main>\n{beside}</body>\n</html>\n"
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

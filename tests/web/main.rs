//! The web login and those who attack it, by requests.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]

mod app;
mod callbacks;
mod connected_user;
mod cookies;
mod departures;
mod login;
mod logs;
mod pages;
mod paths;
#[path = "../support/trace.rs"]
mod trace;

use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn parameter(url: &str, name: &str) -> String {
    let url: url::Url = format!("https://x{}", url.trim_start_matches("https://")).parse().unwrap();
    let mut pairs = url.query_pairs();
    pairs.find(|(key, _)| key == name).unwrap().1.into_owned()
}

fn to_strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

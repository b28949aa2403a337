//! The `Retry-After` of a 429, and in a second line its `Date`.
//!
//! - A number of seconds is that pause, and a date one from the answer's `Date`, or from now: a day
//!   at most. Part of a second counts as a whole one.
//! - Whatever else is there is no pause, or one of at most a day.
//! - No request of a manager comes before the pause is over, and it ends.

use std::time::{Duration, SystemTime};

use hurdlr_oauth2::http::header::{DATE, RETRY_AFTER};
use hurdlr_oauth2::http::{HeaderMap, HeaderValue, StatusCode};
use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::{Clock, ErrorKind, TokenManager};

use super::provider::{
    Client, Grant, REDIRECT_URI, TOKEN, assert_sound, block_on, headers, on_runtime, user,
};

const LONGEST: Duration = Duration::from_secs(86_400);

/// Longer than what a manager adds to a pause.
const MORE: Duration = Duration::from_secs(3_600);

const SECOND: Duration = Duration::from_secs(1);

pub fn check(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let mut pairs = vec![(RETRY_AFTER, lines.next().unwrap_or_default())];
    pairs.extend(lines.next().map(|date| (DATE, date)));
    let headers = headers(&pairs);
    on_runtime(|| {
        let client = Client::new(REDIRECT_URI);
        client.provider.answer(StatusCode::TOO_MANY_REQUESTS, headers.clone(), b"");
        let error = client.send(Grant::ClientCredentials).expect_err("a 429 brought a token");
        assert_sound(&error, Grant::ClientCredentials, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        let pause = error.retry_after();
        assert!(pause.is_none_or(|pause| pause <= LONGEST), "{pause:?}");
        if let Some(expected) = expected(&headers, client.clock.now().wall()) {
            assert_eq!(pause, Some(expected), "{headers:?}");
        }
        assert_pause_is_kept(&client, pause.unwrap_or_default());
    });
}

/// The pause of a header that RFC 9110 section 10.2.3 knows.
fn expected(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |value: Option<&HeaderValue>| Some(value?.to_str().ok()?.to_owned());
    let value = text(headers.get(RETRY_AFTER))?;
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = value.trim_start_matches('0');
        // A number of more digits is above any bound.
        let seconds = if seconds.len() > 9 { u64::MAX } else { seconds.parse().unwrap_or(0) };
        return Some(Duration::from_secs(seconds).min(LONGEST));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let date = text(headers.get(DATE)).and_then(|date| httpdate::parse_http_date(&date).ok());
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or_default().min(LONGEST))
}

fn assert_pause_is_kept(client: &Client, pause: Duration) {
    let store = MemoryStore::with_clock(client.clock.clone());
    let manager = TokenManager::builder(client.hurdlr.clone(), store).build().unwrap();
    let user = manager.enterprise_user(&user());
    assert!(block_on(user.token()).is_err(), "a 429 brought a token");
    let refused = *client.provider.requests().last().unwrap();

    client.provider.answer(StatusCode::OK, HeaderMap::new(), TOKEN);
    client.clock.advance(pause.saturating_sub(SECOND));
    let is_early = pause > SECOND;
    assert!(!is_early || block_on(user.token()).is_err(), "a pause of {pause:?} was cut short");
    client.clock.advance(SECOND + MORE);
    assert!(block_on(user.token()).is_ok(), "a pause of {pause:?} does not end");
    for request in client.provider.requests() {
        assert!(request.since(refused) >= pause, "a pause of {pause:?} was cut short");
    }
    assert!(block_on(manager.shutdown()).is_empty());
}

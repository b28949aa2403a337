//! The query that a person comes back with. `{state}` in it stands for the state of their login.
//!
//! - A code is sent only if there is one state, and it is the login's; one code; no error; and no
//!   other issuer. The code that is sent is the one that `form_urlencoded` decodes.
//! - Every other callback is refused for the first of those reasons, and nothing is sent.
//! - A query, a whole URL and decoded pairs come to the same.
//! - `Debug` shows the parameters' names and no value.

use hurdlr_oauth2::http::{HeaderMap, StatusCode};
use hurdlr_oauth2::secrecy::{ExposeSecret, SecretString};
use hurdlr_oauth2::url::{Url, form_urlencoded};
use hurdlr_oauth2::{Callback, CallbackProblem, PendingLogin};

use super::provider::{
    Client, ISSUER, LONGEST_CODE, LONGEST_TEXT, REDIRECT_URI, TOKEN, block_on, is_readable,
};

pub fn check(data: &[u8]) {
    let data = String::from_utf8_lossy(data);
    Client::with(|client| {
        let (_, pending) = client.hurdlr.begin_login().unwrap();
        let (kept, state) = (pending.to_secret(), pending.state().expose_secret());
        let text = data.replace("{state}", state);

        // A callback of an app's own making: no more than that nothing panics is promised.
        drop(outcome(client, &kept, Callback::from(text.as_str())));

        let query = text.split('#').next().unwrap_or_default();
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let names: Vec<_> = pairs.iter().map(|(name, _)| name).collect();
        assert_eq!(format!("{:?}", Callback::from(pairs.clone())), format!("{names:?}"));
        let expected = expected(&pairs, state);
        let url = format!("{REDIRECT_URI}?{query}");
        assert_eq!(outcome(client, &kept, Callback::from(url.as_str())), expected, "{url:?}");
        assert_eq!(outcome(client, &kept, Callback::from(pairs.clone())), expected, "{pairs:?}");
        // A parser of URLs leaves those out.
        let is_clean = !query.chars().any(|c| c.is_ascii_control()) && !query.ends_with(' ');
        if is_clean {
            let url: Url = url.parse().unwrap();
            assert_eq!(outcome(client, &kept, Callback::from(&url)), expected, "{url}");
        }
        if !query.contains(['?', '/', ':']) {
            assert_eq!(outcome(client, &kept, Callback::from(query)), expected, "{query:?}");
        }
    });
}

/// The code that was sent, or the reason why none was.
fn outcome(
    client: &Client,
    kept: &SecretString,
    callback: Callback,
) -> Result<String, CallbackProblem> {
    client.provider.answer(StatusCode::OK, HeaderMap::new(), TOKEN);
    let pending = PendingLogin::from_secret(kept).unwrap();
    match block_on(client.hurdlr.complete_login(pending, callback)) {
        Ok(_) => {
            assert_eq!(client.provider.requests().len(), 1);
            Ok(client.provider.field("code").unwrap())
        }
        Err(error) => {
            assert!(client.provider.requests().is_empty(), "{error:?}");
            assert!(error.code().is_none_or(|code| is_readable(code, LONGEST_CODE)));
            assert!(error.description().is_none_or(|text| is_readable(text, LONGEST_TEXT)));
            assert!(!error.to_string().chars().any(char::is_control));
            Err(error.callback_problem().expect("a reason"))
        }
    }
}

fn expected(pairs: &[(String, String)], state: &str) -> Result<String, CallbackProblem> {
    use CallbackProblem as Problem;
    let all = |name: &str| -> Vec<&str> {
        pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    };
    match all("state")[..] {
        [] => return Err(Problem::StateMissing),
        [only] if only == state => {}
        [_] => return Err(Problem::StateMismatch),
        _ => return Err(Problem::StateDoubled),
    }
    match all("iss")[..] {
        [] | ["" | ISSUER] => {}
        _ => return Err(Problem::IssuerMismatch),
    }
    if all("error").iter().any(|error| !error.is_empty()) {
        return Err(Problem::Refused);
    }
    match all("code")[..] {
        [] | [""] => Err(Problem::CodeMissing),
        [code] => Ok(code.to_owned()),
        _ => Err(Problem::CodeDoubled),
    }
}

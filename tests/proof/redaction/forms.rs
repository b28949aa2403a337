//! The forms in which a secret may be written, and the search for all secrets in all of them.

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use base64::{Engine, engine::GeneralPurpose};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// A secret is sought by this many bytes of its beginning and of its end: a part of it would be
/// too much already.
const PIECE: usize = 16;
/// All but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

type Writer = fn(&[u8]) -> Vec<Vec<u8>>;

/// Each form with how it is written. Padding of base64 stands behind what is sought, so it need not
/// be told apart.
pub(super) const FORMS: [(&str, Writer); 11] = [
    ("plain", |bytes| vec![bytes.to_vec()]),
    ("escaped as bytes", |bytes| vec![bytes.escape_ascii().to_string().into_bytes()]),
    ("escaped as text", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let debug = format!("{text:?}");
        let unquoted = debug.trim_matches('"').as_bytes().to_vec();
        vec![unquoted, text.replace('/', r"\/").into_bytes()]
    }),
    ("base64", |bytes| aligned(&STANDARD_NO_PAD, bytes)),
    ("base64url", |bytes| aligned(&URL_SAFE_NO_PAD, bytes)),
    ("percent-encoded", |bytes| {
        let sets = [NON_ALPHANUMERIC, RESERVED];
        let upper = sets.map(|set| percent_encode(bytes, set).to_string().into_bytes());
        let form: String = url::form_urlencoded::byte_serialize(bytes).collect();
        let lower = sets.map(|set| {
            percent_encode(bytes, set).map(lower_escape).collect::<String>().into_bytes()
        });
        [upper, lower].concat().into_iter().chain([form.into_bytes()]).collect()
    }),
    ("percent-encoded, all of it", |bytes| {
        vec![each(bytes, |byte| format!("%{byte:02X}")), each(bytes, |byte| format!("%{byte:02x}"))]
    }),
    ("hex", |bytes| {
        vec![each(bytes, |byte| format!("{byte:02X}")), each(bytes, |byte| format!("{byte:02x}"))]
    }),
    ("hex bytes", |bytes| {
        let escapes = each(bytes, |byte| format!("\\x{byte:02x}"));
        let lists = [
            listed(bytes, |byte| format!("0x{byte:02x}")),
            listed(bytes, |byte| format!("{byte:02x}")),
            listed(bytes, |byte| format!("{byte:02X}")),
        ];
        [lists.to_vec(), vec![escapes]].concat()
    }),
    // As `Debug` has them; without the spaces of the one way, or the line breaks of the other.
    ("decimal bytes", |bytes| vec![listed(bytes, |byte| byte.to_string())]),
    ("utf-16", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        vec![text.encode_utf16().flat_map(u16::to_le_bytes).collect()]
    }),
];

fn each(bytes: &[u8], write: impl Fn(u8) -> String) -> Vec<u8> {
    bytes.iter().flat_map(|byte| write(*byte).into_bytes()).collect()
}

fn listed(bytes: &[u8], write: impl Fn(u8) -> String) -> Vec<u8> {
    bytes.iter().map(|byte| write(*byte)).collect::<Vec<_>>().join(",").into_bytes()
}

fn lower_escape(piece: &str) -> String {
    if piece.starts_with('%') { piece.to_ascii_lowercase() } else { piece.to_owned() }
}

/// The characters of base64 that hold nothing but these bytes, with 0, 1 or 2 others before them.
fn aligned(engine: &GeneralPurpose, bytes: &[u8]) -> Vec<Vec<u8>> {
    let written = |before: usize| {
        let text = engine.encode([vec![0; before], bytes.to_vec()].concat());
        let end = (before + bytes.len()) * 8 / 6;
        text.as_bytes()[(before * 8).div_ceil(6)..end].to_vec()
    };
    (0..3).map(written).collect()
}

/// A secret that stands somewhere.
#[derive(Debug)]
pub(super) struct Hit {
    /// Which secret.
    pub(super) name: String,
    pub(super) form: &'static str,
    pub(super) at: usize,
}

/// Looks for secrets.
pub(super) struct Search {
    search: AhoCorasick,
    sought: Vec<(String, &'static str)>,
}

impl Search {
    /// For these values, each with its name.
    pub(super) fn new(secrets: &BTreeMap<Vec<u8>, String>) -> Self {
        let mut patterns = BTreeMap::new();
        for (secret, name) in secrets {
            let piece = secret.len().min(PIECE);
            for part in [&secret[..piece], &secret[secret.len() - piece..]] {
                for (form, write) in FORMS {
                    for pattern in write(part) {
                        patterns.entry(pattern).or_insert_with(|| (name.clone(), form));
                    }
                }
            }
        }
        let (patterns, sought): (Vec<_>, _) = patterns.into_iter().unzip();
        Self { search: AhoCorasick::new(patterns).unwrap(), sought }
    }

    /// The secrets in a text, as it is and without its white space.
    pub(super) fn hits(&self, text: &[u8]) -> Vec<Hit> {
        let dense: Vec<_> =
            text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let found = |text: &[u8]| -> Vec<Hit> {
            let hits = self.search.find_iter(text).map(|hit| {
                let (name, form) = self.sought[hit.pattern()].clone();
                Hit { name, form, at: hit.start() }
            });
            hits.collect()
        };
        let mut hits = found(text);
        if hits.is_empty() {
            hits = found(&dense);
        }
        hits
    }
}

/// Each form of a secret is found, by either of its ends, wherever it stands in a text.
#[test]
fn planted_secret_is_found_in_each_form() {
    // Base64 of each end has letters by which the two alphabets differ.
    let secret = "/?>?>?>+~ a\"\u{e9}=%all kinds of letters.-_?>?>?>?>/";
    let search = Search::new(&BTreeMap::from([(secret.into(), "planted".to_owned())]));
    assert!(search.hits(b"no secret here, all=kinds of other things").is_empty());
    let halves = [&secret.as_bytes()[..PIECE], &secret.as_bytes()[secret.len() - PIECE..]];
    let finds = |text: &[u8], form: &str| {
        assert!(!search.hits(text).is_empty(), "{form}: {}", text.escape_ascii());
    };
    for part in [secret.as_bytes(), halves[0], halves[1]] {
        for before in ["", "a", "ab", "abc"] {
            let context = [before.as_bytes(), part, b"zz"].concat();
            let text = String::from_utf8_lossy(&context).into_owned();
            finds(&context, "plain");
            finds(format!("{:?}", bytes::Bytes::from(context.clone())).as_bytes(), "bytes");
            finds(format!("{text:?}").as_bytes(), "text");
            finds(serde_json::to_string(&text).unwrap().as_bytes(), "json");
            finds(format!("{context:?}").as_bytes(), "decimal");
            finds(format!("{context:#?}").as_bytes(), "decimal in lines");
            finds(format!("{context:02x?}").as_bytes(), "hex list");
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                finds(engine.encode(&context).as_bytes(), "base64");
            }
            let hex = |upper: bool, mark: &str| {
                let byte = |byte: &u8| {
                    if upper { format!("{mark}{byte:02X}") } else { format!("{mark}{byte:02x}") }
                };
                context.iter().map(byte).collect::<String>()
            };
            for (upper, mark) in [(true, ""), (false, ""), (true, "%"), (false, "%")] {
                finds(hex(upper, mark).as_bytes(), "hex or percent");
            }
            let encoded = percent_encode(&context, NON_ALPHANUMERIC).to_string();
            finds(encoded.as_bytes(), "percent");
            finds(percent_encode(&context, RESERVED).to_string().as_bytes(), "percent");
            let form: String = url::form_urlencoded::byte_serialize(&context).collect();
            finds(form.as_bytes(), "form");
        }
    }
}

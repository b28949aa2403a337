//! Objects in bodies that are not clean JSON.
//!
//! A token, a refresh token or an `invalid_grant` counts wherever it can be read without a doubt,
//! whatever a framework, a proxy or another encoding did around it. The first object of a body is
//! copied as clean JSON:
//!
//! - UTF-16, a byte order mark, and bytes of Latin-1 become UTF-8;
//! - text before and behind the object is left out, but not within a page or a list: those may
//!   quote somebody else's object;
//! - within it, escapes are unpacked; control characters, bad escapes, lone surrogates, trailing
//!   commas and numbers that JSON does not know are replaced;
//! - an object that was sent as a JSON string is unpacked.

use zeroize::Zeroizing;

/// Stands for a control character within a string. It is none that a token may have.
const REPLACEMENT: char = '\u{7f}';

/// Copies the first JSON object of a body as clean JSON, as far as it goes. `None` where there is
/// none.
pub(crate) fn first_object(body: &[u8]) -> Option<Zeroizing<String>> {
    let text = decoded(body);
    let text = text.trim_start_matches(is_blank);
    if text.starts_with('"') {
        return clean_object(unquoted(text)?.trim_start_matches(is_blank));
    }
    clean_object(text)
}

/// The content of a JSON string, up to its end. serde would leave a copy of it in memory that is
/// not wiped.
fn unquoted(text: &str) -> Option<Zeroizing<String>> {
    let mut rest = text.strip_prefix('"')?;
    let mut content = Zeroizing::new(String::with_capacity(text.len()));
    loop {
        let end = rest.find(['"', '\\'])?;
        content.push_str(&rest[..end]);
        let Some(escape) = rest[end..].strip_prefix('\\') else { return Some(content) };
        // One escape at a time, or the two of a surrogate pair, so that serde unpacks no secret.
        let length = match code_unit(escape) {
            Some(0xd800..0xdc00) => 12,
            Some(_) => 6,
            None => 1 + escape.chars().next()?.len_utf8(),
        };
        let escape = rest.get(end..end + length)?;
        content.push_str(&serde_json::from_str::<String>(&format!("\"{escape}\"")).ok()?);
        rest = &rest[end + length..];
    }
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}' || c == '\0'
}

/// The text of a body, by the encoding that it shows.
fn decoded(body: &[u8]) -> Zeroizing<String> {
    let order: Option<fn([u8; 2]) -> u16> = match body {
        [0xff, 0xfe, ..] | [b'{', 0, ..] => Some(u16::from_le_bytes),
        [0xfe, 0xff, ..] | [0, b'{', ..] => Some(u16::from_be_bytes),
        _ => None,
    };
    // Room for the longest outcome: a growing buffer would leave copies of secrets behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * body.len()));
    if let Some(order) = order {
        let units = body.chunks_exact(2).map(|pair| order([pair[0], pair[1]]));
        let decoded = char::decode_utf16(units);
        text.extend(decoded.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
        return text;
    }
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| char::from(*byte)));
    }
    text
}

fn clean_object(text: &str) -> Option<Zeroizing<String>> {
    let (before, _) = text.split_once('{')?;
    if before.starts_with('[') || is_page(before) {
        return None;
    }
    let object = &text[before.len()..];
    // The word that grows most is a number such as `1.e15`, to less than three times its length.
    let mut copy =
        Copy { rest: object, clean: Zeroizing::new(String::with_capacity(3 * object.len() + 8)) };
    copy.object();
    Some(copy.clean)
}

fn is_page(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["<html", "<!doctype", "<?xml"].iter().any(|tag| text.contains(tag))
}

/// The copy of one object, and what is left of the text.
struct Copy<'a> {
    rest: &'a str,
    clean: Zeroizing<String>,
}

impl Copy<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    /// Copies to the end of the object, or of the text.
    fn object(&mut self) {
        let mut depth = 0_usize;
        while let Some(c) = self.next() {
            match c {
                '"' => self.string(),
                '{' | '[' => {
                    depth += 1;
                    self.clean.push(c);
                }
                '}' | ']' => {
                    if let Some(before) = self.clean.trim_end().strip_suffix(',') {
                        let length = before.len();
                        self.clean.truncate(length);
                    }
                    self.clean.push(c);
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return;
                    }
                }
                ',' | ':' | ' ' | '\t' | '\r' | '\n' => self.clean.push(c),
                _ if is_of_word(c) => self.word(c),
                // Invisible characters, such as another byte order mark.
                _ => self.clean.push(' '),
            }
        }
    }

    /// Copies a string, up to its end, behind the quote that began it.
    fn string(&mut self) {
        self.clean.push('"');
        while let Some(c) = self.next() {
            match c {
                '"' => return self.clean.push('"'),
                '\\' => self.escape(),
                c if u32::from(c) < 0x20 => self.clean.push(REPLACEMENT),
                c => self.clean.push(c),
            }
        }
    }

    /// Copies an escape, behind its backslash, as the character that it stands for: serde would
    /// unpack it into memory that is not wiped. Only what cannot stand for itself stays an escape.
    /// Of one that JSON does not know the backslash goes.
    fn escape(&mut self) {
        let Some(unit) = code_unit(self.rest) else {
            match self.next() {
                Some(c @ ('"' | '\\' | 'b' | 'f' | 'n' | 'r' | 't')) => {
                    self.clean.push('\\');
                    self.clean.push(c);
                }
                Some(c) if u32::from(c) >= 0x20 => self.clean.push(c),
                _ => {}
            }
            return;
        };
        let (first, rest) = self.rest.split_at(5);
        let second = rest.strip_prefix('\\').and_then(code_unit);
        let decoded = char::decode_utf16([unit].into_iter().chain(second)).next();
        let character = decoded.and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER);
        match character {
            '\0'..' ' | '"' | '\\' => {
                self.clean.push('\\');
                self.clean.push_str(first);
            }
            plain => self.clean.push(plain),
        }
        // Both escapes of a surrogate pair.
        self.rest = if character.len_utf16() == 2 { &rest[6..] } else { rest };
    }

    /// Copies a number or a name, of which `first` is the beginning. What JSON does not know
    /// becomes a number, rounded down, or `null`.
    fn word(&mut self, first: char) {
        let text = self.rest;
        let end = text.find(|c| !is_of_word(c)).unwrap_or(text.len());
        self.rest = &text[end..];
        // A token may be a number.
        let word = Zeroizing::new(format!("{first}{}", &text[..end]));
        let is_json = matches!(word.as_str(), "true" | "false" | "null")
            || serde_json::from_str::<serde_json::Number>(&word).is_ok();
        if is_json {
            self.clean.push_str(&word);
            return;
        }
        match word.trim_start_matches('+').parse().ok().and_then(whole) {
            Some(number) => self.clean.push_str(&number.to_string()),
            None => self.clean.push_str("null"),
        }
    }
}

/// The code unit of an escape, behind its backslash.
fn code_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix('u')?.get(..4)?;
    let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| is_hexadecimal)
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_')
}

/// The whole number of a number in any spelling, rounded down.
pub(crate) fn whole(number: f64) -> Option<i64> {
    // Up to here a `f64` can hold every whole number.
    const LIMIT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and within the limit")]
    let whole = || number.floor() as i64;
    (-LIMIT..LIMIT).contains(&number).then(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that grows leaves copies of secrets in memory that is not wiped.
    #[test]
    fn copy_fits_into_its_first_buffer() {
        for word in ["1.e15", "9.e15", "-9.e15", "+9.e15", "1.e9", ".1e9", "x", "1e15x", "[,"] {
            for body in [format!("{{{word}"), format!(r#"{{"a":[{}"#, [word; 50].join(","))] {
                let clean = first_object(body.as_bytes()).unwrap();
                assert_eq!(clean.capacity(), 3 * body.len() + 8, "{clean:?}");
            }
        }
    }
}

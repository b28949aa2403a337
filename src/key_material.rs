//! Keys as an operator hands them over: base64, from an environment variable or a file.

use base64::Engine;
use base64::alphabet::{self, Alphabet};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::error::Error;

/// With or without padding, as `openssl rand -base64 32` and key management services write it.
const BASE64: GeneralPurpose = engine(&alphabet::STANDARD);
const BASE64_URL: GeneralPurpose = engine(&alphabet::URL_SAFE);

const fn engine(alphabet: &Alphabet) -> GeneralPurpose {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

/// The bytes of a key in base64 of either alphabet. White space is skipped: `openssl` breaks the
/// lines of longer keys. `name` is that of the key in errors.
pub(crate) fn from_base64(name: &str, text: &SecretString) -> Result<Zeroizing<Vec<u8>>, Error> {
    let text = text.expose_secret();
    // Room for all of it, here and below: a growing buffer would leave copies behind.
    let mut encoded = Zeroizing::new(Vec::with_capacity(text.len()));
    encoded.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    // The alphabets differ in two characters each, and keys mostly have one of them.
    let engine = if text.contains(['-', '_']) { &BASE64_URL } else { &BASE64 };
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    // The decoder's error is not passed on: it quotes a byte of what may be most of a key.
    engine.decode_vec(&*encoded, &mut bytes).map_err(|_| {
        Error::config(format!("{name} is not base64: `openssl rand -base64 32` makes such a key"))
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_form_of_a_key_decodes() {
        let key = [0xfb; 32];
        let standard = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
        let url = standard.replace('+', "-").replace('/', "_");
        let wrapped = format!("{}\n{}\r\n", &standard[..20], &standard[20..]);
        for text in [standard, &standard[..43], &url, &url[..43], &wrapped] {
            let bytes = from_base64("the key", &text.into()).unwrap();
            assert_eq!(bytes.as_slice(), key, "{text:?}");
        }
    }

    #[test]
    fn wrong_key_text_is_not_quoted() {
        for text in ["marker", "+_==", "mark*r=="] {
            let error = from_base64("the key", &text.into()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("the key is not base64") && !shown.contains("mark"), "{shown}");
        }
    }
}

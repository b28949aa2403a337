//! Answers in other encodings than plain UTF-8.

use http::{HeaderValue, header::CONTENT_ENCODING};
use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

use super::answer::Answer;

/// How a body is written, of a [`Fault::Encoded`](super::Fault::Encoded).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BodyEncoding {
    /// UTF-8 behind a byte order mark.
    ByteOrderMark,
    /// UTF-16 of the lower byte first, behind its mark.
    Utf16,
    /// With one more field, whose text is Latin-1.
    Latin1,
    /// `Content-Encoding: gzip`, whether or not the request accepts it.
    Gzip,
    /// `Content-Encoding: deflate`, likewise.
    Deflate,
}

impl BodyEncoding {
    pub(super) fn apply(self, mut answer: Answer) -> Answer {
        let body = &answer.body[..];
        answer.body = match self {
            Self::ByteOrderMark => [b"\xef\xbb\xbf", body].concat().into(),
            Self::Utf16 => {
                let text = String::from_utf8_lossy(body);
                let units = std::iter::once(0xfeff).chain(text.encode_utf16());
                units.flat_map(u16::to_le_bytes).collect::<Vec<_>>().into()
            }
            Self::Latin1 => {
                let object = body.trim_ascii_end();
                let fields = object.strip_suffix(b"}").unwrap_or(object);
                [fields, b",\"note\":\"caf\xe9\"}"].concat().into()
            }
            Self::Gzip => gzip(body).into(),
            Self::Deflate => compress_to_vec_zlib(body, LEVEL).into(),
        };
        match self {
            Self::Gzip => answer.with(CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            Self::Deflate => answer.with(CONTENT_ENCODING, HeaderValue::from_static("deflate")),
            Self::ByteOrderMark | Self::Utf16 | Self::Latin1 => answer,
        }
    }
}

const LEVEL: u8 = 6;

/// A file of RFC 1952, without a name or a date.
fn gzip(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    file.extend(compress_to_vec(content, LEVEL));
    file.extend(crc32(content).to_le_bytes());
    file.extend(length.to_le_bytes());
    file
}

/// The checksum of RFC 1952 section 8, bit by bit.
fn crc32(content: &[u8]) -> u32 {
    let rest = content.iter().fold(u32::MAX, |rest, byte| {
        (0..8).fold(rest ^ u32::from(*byte), |rest, _| {
            if rest & 1 == 0 { rest >> 1 } else { (rest >> 1) ^ 0xedb8_8320 }
        })
    });
    !rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_that_of_the_rfc() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}

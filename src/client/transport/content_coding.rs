//! Bodies that were compressed although nobody asked for it (RFC 9110 section 8.4).
//!
//! They are unpacked into memory that is wiped, up to the bound of any body, and their checksums
//! are not compared: what is whole JSON is an answer.

use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_IGNORE_ADLER32, TINFL_FLAG_PARSE_ZLIB_HEADER,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use zeroize::Zeroizing;

use super::error::HttpError;
use crate::wire::error_response::readable_text;

/// Unpacks a body, as far as it goes and to `longest` bytes at most. Returns why it does not go to
/// its end.
///
/// A gzip body shows what it is, whatever the headers say; and a proxy may have unpacked a body and
/// left the header.
pub(super) fn unpack(
    headers: &HeaderMap,
    body: &mut Zeroizing<Vec<u8>>,
    longest: usize,
) -> Option<HttpError> {
    let coding = headers.get(CONTENT_ENCODING).map(|it| String::from_utf8_lossy(it.as_bytes()));
    let coding = coding.as_deref().unwrap_or_default().trim();
    let (flags, packed) = if body.starts_with(&[0x1f, 0x8b]) {
        (0, gzip_content(body))
    } else if is_plain(body) || coding.is_empty() || coding.eq_ignore_ascii_case("identity") {
        return None;
    } else if coding.eq_ignore_ascii_case("deflate") {
        // It means zlib's format (RFC 9110 section 8.4.1.2), and some send the bare one.
        let is_zlib = matches!(***body, [method, check, ..]
            if method & 0x0f == 8 && u16::from_be_bytes([method, check]) % 31 == 0);
        (if is_zlib { TINFL_FLAG_PARSE_ZLIB_HEADER } else { 0 }, Some(body.as_slice()))
    } else {
        return Some(HttpError::Compressed(readable_text(coding, 32)));
    };
    let broken = || HttpError::Compressed(readable_text(coding, 32));
    let Some(packed) = packed else {
        return Some(broken());
    };
    let mut content = Zeroizing::new(vec![0; longest]);
    let flags = flags | TINFL_FLAG_IGNORE_ADLER32 | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<DecompressorOxide>::default();
    let (status, _, length) = decompress(&mut state, packed, &mut content, 0, flags);
    content.truncate(length);
    *body = content;
    match status {
        TINFLStatus::Done => None,
        TINFLStatus::HasMoreOutput => Some(HttpError::TooLong),
        _ => Some(broken()),
    }
}

/// Whether a body begins as text does.
fn is_plain(body: &[u8]) -> bool {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_none_or(|byte| matches!(byte, b'{' | b'[' | b'<' | b'"'))
}

/// The compressed content of a gzip file, behind its header (RFC 1952 section 2.3).
fn gzip_content(file: &[u8]) -> Option<&[u8]> {
    const CHECKSUM: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let (header, mut rest) = file.split_at_checked(10)?;
    let (method, flags) = (header[2], header[3]);
    if method != 8 {
        return None;
    }
    if flags & EXTRA != 0 {
        let (length, behind) = rest.split_first_chunk()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & CHECKSUM != 0 { rest.get(2..) } else { Some(rest) }
}

//! gRPC over HTTP/2, the part that is only bytes: message framing, timeouts, status messages.
//!
//! A message travels as one byte of flags (bit 0: compressed), four bytes of length (big-endian) and the bytes. A call
//! ends with the trailers `grpc-status` and `grpc-message` (percent-encoded UTF-8).

use std::time::Duration;

pub const PREFIX_BYTES: usize = 5;

/// Status codes that the engine itself gives.
pub mod status {
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
}

/// What the front of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    Incomplete,
    /// A message of this many bytes after the prefix, complete.
    Message(usize),
    Compressed,
    /// The message that begins here would have this many bytes.
    TooLarge(usize),
    /// The flags byte is neither 0 nor 1.
    BadFlags(u8),
}

/// Looks at the message that begins at the front of `buf`. Limits are checked as soon as the prefix is there.
pub fn front(buf: &[u8], max_message_bytes: usize) -> Front {
    let Some((prefix, rest)) = buf.split_first_chunk::<PREFIX_BYTES>() else {
        return Front::Incomplete;
    };
    let [flags, len @ ..] = *prefix;
    let len = u32::from_be_bytes(len) as usize;
    match flags {
        0 if len > max_message_bytes => Front::TooLarge(len),
        0 if rest.len() < len => Front::Incomplete,
        0 => Front::Message(len),
        1 => Front::Compressed,
        other => Front::BadFlags(other),
    }
}

/// The prefix of an uncompressed message.
pub fn prefix(len: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [0, a, b, c, d]
}

/// Parses `grpc-timeout`: at most eight digits and a unit. None when malformed (the call then has no deadline).
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits
        .iter()
        .fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// `grpc-message`: everything but printable ASCII, and the percent sign, as %XX.
pub fn percent_encode(text: &str) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for &b in text.as_bytes() {
        if (0x20..=0x7e).contains(&b) && b != b'%' {
            out.push(b);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fronts() {
        assert_eq!(front(b"", 10), Front::Incomplete);
        assert_eq!(front(b"\0\0\0\0", 10), Front::Incomplete);
        assert_eq!(front(b"\0\0\0\0\0", 10), Front::Message(0));
        assert_eq!(front(b"\0\0\0\0\x03ab", 10), Front::Incomplete);
        assert_eq!(front(b"\0\0\0\0\x03abcd", 10), Front::Message(3));
        assert_eq!(front(b"\0\0\0\0\x0b", 10), Front::TooLarge(11));
        assert_eq!(
            front(b"\0\xff\xff\xff\xff", 10),
            Front::TooLarge(0xffff_ffff)
        );
        assert_eq!(front(b"\x01\0\0\0\x03", 10), Front::Compressed);
        assert_eq!(front(b"\x02\0\0\0\x03", 10), Front::BadFlags(2));
        assert_eq!(prefix(258), [0, 0, 0, 1, 2]);
    }

    #[test]
    fn timeouts() {
        assert_eq!(timeout(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            timeout(b"99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(timeout(b"17u"), Some(Duration::from_micros(17)));
        assert_eq!(timeout(b"3n"), Some(Duration::from_nanos(3)));
        assert_eq!(timeout(b"2M"), Some(Duration::from_secs(120)));
        for bad in [&b""[..], b"5", b"S", b"123456789S", b"-1S", b"1x", b"1.5S"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn percent_encoding() {
        assert_eq!(
            percent_encode("etwas: 100% \u{fc}ber\n"),
            b"etwas: 100%25 %C3%BCber%0A"
        );
    }
}

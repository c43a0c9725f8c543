//! HTTP/1.1 for the few plain pages beside gRPC: health, version, metrics, and small JSON bodies.
//!
//! One request at a time per connection (a pipelined second one waits in the buffer). Bodies by Content-Length or
//! chunked; `Expect: 100-continue`; keep-alive. The parser is a function over the buffer, so that it can be tested and
//! fuzzed without a socket.

use super::shared::{HttpReply, HttpRequest};
use std::io::Write;

/// Header fields per request.
const MAX_HEADERS: usize = 100;

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Incomplete,
    /// The head is complete and asks for "100 Continue" before it sends its body.
    WantsContinue,
    /// A request; so many bytes of the buffer were it.
    Request {
        consumed: usize,
        keep_alive: bool,
    },
    /// Answer with this status and close.
    Bad(u16),
}

enum BodyLength {
    Fixed(usize),
    Chunked,
}

/// Tries to read a request from the front of `buf` into `request`.
pub fn parse(
    buf: &[u8],
    max_header_bytes: usize,
    max_body_bytes: usize,
    capture: &[Vec<u8>],
    request: &mut HttpRequest,
) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buf) {
        Ok(httparse::Status::Complete(n)) if n <= max_header_bytes => n,
        Ok(httparse::Status::Partial) if buf.len() <= max_header_bytes => {
            return Parsed::Incomplete
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(431),
        Err(_) => return Parsed::Bad(400),
    };
    let mut keep_alive = head.version == Some(1);
    let mut length = None;
    let mut expects = false;
    let mut metadata: Vec<Option<Vec<u8>>> = vec![None; capture.len()];
    for header in head.headers.iter() {
        let value = header.value;
        if header.name.eq_ignore_ascii_case("content-length") {
            let parsed = std::str::from_utf8(value)
                .ok()
                .filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            match (parsed.and_then(|v| v.parse().ok()), &length) {
                (Some(n), None) => length = Some(BodyLength::Fixed(n)),
                _ => return Parsed::Bad(400), // malformed, repeated, or beside chunked: a smuggling attempt
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") || length.is_some() {
                return Parsed::Bad(400);
            }
            length = Some(BodyLength::Chunked);
        } else if header.name.eq_ignore_ascii_case("connection") {
            let has = |token: &[u8]| {
                value
                    .split(|b| *b == b',')
                    .any(|t| t.trim_ascii().eq_ignore_ascii_case(token))
            };
            keep_alive = !has(b"close") && (keep_alive || has(b"keep-alive"));
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects = value.eq_ignore_ascii_case(b"100-continue");
        }
        for (name, slot) in capture.iter().zip(&mut metadata) {
            if slot.is_none() && header.name.as_bytes().eq_ignore_ascii_case(name) {
                *slot = Some(value.to_vec());
            }
        }
    }
    let rest = &buf[head_bytes..];
    let body_bytes = match length {
        None => 0,
        Some(BodyLength::Fixed(n)) if n > max_body_bytes => return Parsed::Bad(413),
        Some(BodyLength::Fixed(n)) if rest.len() < n => return waiting(expects, rest),
        Some(BodyLength::Fixed(n)) => {
            request.body = rest[..n].to_vec();
            n
        }
        Some(BodyLength::Chunked) => match unchunk(rest, max_body_bytes) {
            Chunked::Complete(n, body) => {
                request.body = body;
                n
            }
            Chunked::Incomplete => return waiting(expects, rest),
            Chunked::Bad(status) => return Parsed::Bad(status),
        },
    };
    request.method = head.method.unwrap_or_default().to_owned();
    request.path = head.path.unwrap_or_default().to_owned();
    request.metadata = metadata
        .iter()
        .any(Option::is_some)
        .then(|| metadata.into_boxed_slice());
    Parsed::Request {
        consumed: head_bytes + body_bytes,
        keep_alive,
    }
}

fn waiting(expects: bool, rest: &[u8]) -> Parsed {
    if expects && rest.is_empty() {
        Parsed::WantsContinue
    } else {
        Parsed::Incomplete
    }
}

enum Chunked {
    Complete(usize, Vec<u8>),
    Incomplete,
    Bad(u16),
}

/// Decodes a chunked body from the front of `buf`; trailers are skipped.
fn unchunk(buf: &[u8], max_body_bytes: usize) -> Chunked {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let (head, size) = match httparse::parse_chunk_size(&buf[at..]) {
            Ok(httparse::Status::Complete((head, size))) => (head, size),
            Ok(httparse::Status::Partial) if buf.len() - at > 1024 => return Chunked::Bad(400),
            Ok(httparse::Status::Partial) => return Chunked::Incomplete,
            Err(_) => return Chunked::Bad(400),
        };
        if size > (max_body_bytes - body.len()) as u64 {
            return Chunked::Bad(413);
        }
        at += head;
        let size = size as usize;
        if size == 0 {
            // Trailer lines up to an empty one.
            loop {
                let Some(end) = buf[at..].windows(2).position(|w| w == b"\r\n") else {
                    return if buf.len() - at > 8192 {
                        Chunked::Bad(400)
                    } else {
                        Chunked::Incomplete
                    };
                };
                at += end + 2;
                if end == 0 {
                    return Chunked::Complete(at, body);
                }
            }
        }
        let Some(chunk) = buf.get(at..at + size + 2) else {
            // Many small chunks must not make the buffer much larger than the body.
            return if buf.len() > 2 * max_body_bytes + 65_536 {
                Chunked::Bad(413)
            } else {
                Chunked::Incomplete
            };
        };
        if &chunk[size..] != b"\r\n" {
            return Chunked::Bad(400);
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}

/// Whether a text can stand in a header line.
pub fn is_field_safe(text: &str) -> bool {
    text.bytes()
        .all(|b| b == b'\t' || (0x20..=0x7e).contains(&b))
}

/// Whether a text is a header name.
pub fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// A whole response.
pub fn response(reply: &HttpReply, is_head: bool, keep_alive: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(reply.body.len() + 256);
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {} {}\r\n",
        reply.status,
        reason(reply.status)
    );
    if !reply.content_type.is_empty() {
        let _ = write!(out, "Content-Type: {}\r\n", reply.content_type);
    }
    let _ = write!(out, "Content-Length: {}\r\n", reply.body.len());
    for (name, value) in &reply.headers {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    if !keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !is_head {
        out.extend_from_slice(&reply.body);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(buf: &[u8]) -> (Parsed, HttpRequest) {
        let mut request = HttpRequest::default();
        let parsed = parse(buf, 1024, 100, &[b"authorization".to_vec()], &mut request);
        (parsed, request)
    }

    #[test]
    fn plain_get() {
        let raw = b"GET /health?x=1 HTTP/1.1\r\nHost: a\r\nAuthorization: tok\r\n\r\nGET /next";
        let (parsed, request) = run(raw);
        assert_eq!(
            parsed,
            Parsed::Request {
                consumed: raw.len() - 9,
                keep_alive: true
            }
        );
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("GET", "/health?x=1")
        );
        assert_eq!(request.metadata.unwrap()[0].as_deref(), Some(&b"tok"[..]));
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let raw = b"POST /v3 HTTP/1.1\r\ncontent-length: 4\r\n\r\nabcd";
        for n in 0..raw.len() {
            assert_eq!(run(&raw[..n]).0, Parsed::Incomplete, "{n}");
        }
        assert_eq!(run(raw).1.body, b"abcd");
        let raw =
            b"POST /v3 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n";
        for n in 0..raw.len() {
            assert_eq!(run(&raw[..n]).0, Parsed::Incomplete, "{n}");
        }
        assert_eq!(run(raw).1.body, b"abcde");
    }

    #[test]
    fn connection_header() {
        let keep = |raw: &[u8]| match run(raw).0 {
            Parsed::Request { keep_alive, .. } => keep_alive,
            other => panic!("{other:?}"),
        };
        assert!(keep(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(!keep(b"GET / HTTP/1.0\r\n\r\n"));
        assert!(keep(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert!(!keep(b"GET / HTTP/1.1\r\nConnection: foo, close\r\n\r\n"));
    }

    #[test]
    fn refusals() {
        assert_eq!(run(b"\x16\x03\x01 tls\r\n\r\n").0, Parsed::Bad(400));
        assert_eq!(run(&[b'x'; 2000]).0, Parsed::Bad(431));
        assert_eq!(
            run(b"POST / HTTP/1.1\r\ncontent-length: 101\r\n\r\n").0,
            Parsed::Bad(413)
        );
        assert_eq!(
            run(b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n").0,
            Parsed::Bad(400)
        );
        assert_eq!(
            run(b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n").0,
            Parsed::Bad(400)
        );
        assert_eq!(
            run(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n").0,
            Parsed::Bad(413)
        );
        assert_eq!(
            run(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc").0,
            Parsed::Bad(400)
        );
    }

    #[test]
    fn expect_continue() {
        let head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(run(head).0, Parsed::WantsContinue);
        assert_eq!(run(&[&head[..], b"a"].concat()).0, Parsed::Incomplete);
    }

    #[test]
    fn responses() {
        let reply = HttpReply {
            status: 200,
            content_type: "text/plain".into(),
            headers: vec![("X-A".into(), "b".into())],
            body: b"hi".to_vec(),
        };
        let expected =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi";
        assert_eq!(response(&reply, false, true), expected);
        assert!(response(&reply, true, false).ends_with(b"Connection: close\r\n\r\n"));
    }
}

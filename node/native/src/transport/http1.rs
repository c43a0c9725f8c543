//! HTTP/1.1 for the few plain pages beside gRPC: health, version, metrics, and small JSON bodies.
//!
//! One request at a time per connection (a pipelined second one waits in the buffer). Bodies by Content-Length or
//! chunked; `Expect: 100-continue`; keep-alive. The parser works on a buffer, so that it can be tested and fuzzed
//! without a socket. It remembers where it was: a body may come in any number of pieces, and each costs what is new in it.
//! (An incomplete head is read anew with each piece; it is small.)

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

/// What is accepted, and what is kept of it.
pub struct Limits<'a> {
    pub max_header_bytes: usize,
    pub max_body_bytes: usize,
    /// Names of the headers whose values are wanted.
    pub capture: &'a [Vec<u8>],
}

enum BodyLength {
    Fixed(usize),
    Chunked(Chunks),
}

/// A request whose head is complete.
struct Head {
    bytes: usize,
    keep_alive: bool,
    expects: bool,
    length: BodyLength,
    request: HttpRequest,
}

/// The reading of one connection's requests.
#[derive(Default)]
pub struct Reading {
    head: Option<Box<Head>>,
}

impl Reading {
    /// Tries to read a request from the front of `buf` into `request`. Until there is one, or the request is bad, `buf`
    /// may only grow between two calls.
    pub fn advance(
        &mut self,
        buf: &[u8],
        limits: &Limits<'_>,
        request: &mut HttpRequest,
    ) -> Parsed {
        let mut head = match self.head.take() {
            Some(head) => head,
            None => match read_head(buf, limits) {
                Ok(head) => Box::new(head),
                Err(parsed) => return parsed,
            },
        };
        let rest = &buf[head.bytes..];
        let body = match &mut head.length {
            BodyLength::Fixed(n) => rest.get(..*n).map(|body| (*n, body.to_vec())),
            BodyLength::Chunked(chunks) => match chunks.advance(rest, limits.max_body_bytes) {
                Ok(whole) => whole.then(|| (chunks.at, std::mem::take(&mut chunks.body))),
                Err(status) => return Parsed::Bad(status),
            },
        };
        let Some((body_bytes, body)) = body else {
            let silent = head.expects && rest.is_empty();
            self.head = Some(head);
            return if silent {
                Parsed::WantsContinue
            } else {
                Parsed::Incomplete
            };
        };
        let Head {
            bytes, keep_alive, ..
        } = *head;
        *request = HttpRequest {
            body,
            ..head.request
        };
        Parsed::Request {
            consumed: bytes + body_bytes,
            keep_alive,
        }
    }
}

/// The head of a request, or what is to be said instead.
fn read_head(buf: &[u8], limits: &Limits<'_>) -> Result<Head, Parsed> {
    let (max_header_bytes, capture) = (limits.max_header_bytes, limits.capture);
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buf) {
        Ok(httparse::Status::Complete(n)) if n <= max_header_bytes => n,
        Ok(httparse::Status::Partial) if buf.len() <= max_header_bytes => {
            return Err(Parsed::Incomplete)
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Parsed::Bad(431)),
        Err(_) => return Err(Parsed::Bad(400)),
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
                _ => return Err(Parsed::Bad(400)), // malformed, repeated, or beside chunked: a smuggling attempt
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") || length.is_some() {
                return Err(Parsed::Bad(400));
            }
            length = Some(BodyLength::Chunked(Chunks::default()));
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
    let length = length.unwrap_or(BodyLength::Fixed(0));
    if matches!(length, BodyLength::Fixed(n) if n > limits.max_body_bytes) {
        return Err(Parsed::Bad(413));
    }
    Ok(Head {
        bytes: head_bytes,
        keep_alive,
        expects,
        length,
        request: HttpRequest {
            method: head.method.unwrap_or_default().to_owned(),
            path: head.path.unwrap_or_default().to_owned(),
            body: Vec::new(),
            metadata: metadata
                .iter()
                .any(Option::is_some)
                .then(|| metadata.into_boxed_slice()),
        },
    })
}

/// The longest line of a chunk's size, and all trailers together.
const MAX_SIZE_LINE_BYTES: usize = 1024;
const MAX_TRAILER_BYTES: usize = 8192;

#[derive(Default, Clone, Copy)]
enum Part {
    #[default]
    Size,
    /// A chunk of so many bytes.
    Data(usize),
    /// Lines that are skipped, up to an empty one; they began here.
    Trailers { from: usize },
}

/// A chunked body, as far as it has come.
#[derive(Default)]
struct Chunks {
    /// So many bytes are done with.
    at: usize,
    part: Part,
    body: Vec<u8>,
    /// How many bytes were looked at, some of them more than once.
    #[cfg(test)]
    looked_at: usize,
}

impl Chunks {
    /// Goes on with all of the body that has arrived; whether that is the whole, or the status to refuse it with.
    fn advance(&mut self, buf: &[u8], max_body_bytes: usize) -> Result<bool, u16> {
        while let Some(end) = self.step(buf, max_body_bytes)? {
            if end {
                return Ok(true);
            }
        }
        // Many small chunks must not make the buffer much larger than the body.
        if buf.len() > 2 * max_body_bytes + 65_536 {
            return Err(413);
        }
        Ok(false)
    }

    /// One part; whether it was the last one, or nothing if it has not arrived.
    fn step(&mut self, buf: &[u8], max_body_bytes: usize) -> Result<Option<bool>, u16> {
        let rest = &buf[self.at..];
        match self.part {
            Part::Size => {
                let (line, size) = match httparse::parse_chunk_size(rest) {
                    Ok(httparse::Status::Complete(found)) => found,
                    Ok(httparse::Status::Partial) if rest.len() <= MAX_SIZE_LINE_BYTES => {
                        self.look(rest.len());
                        return Ok(None);
                    }
                    Ok(httparse::Status::Partial) | Err(_) => return Err(400),
                };
                if size > (max_body_bytes - self.body.len()) as u64 {
                    return Err(413);
                }
                self.look(line);
                self.at += line;
                self.part = match size as usize {
                    0 => Part::Trailers { from: self.at },
                    size => Part::Data(size),
                };
            }
            Part::Data(size) => {
                let Some(chunk) = rest.get(..size + 2) else {
                    return Ok(None);
                };
                if &chunk[size..] != b"\r\n" {
                    return Err(400);
                }
                self.body.extend_from_slice(&chunk[..size]);
                self.look(chunk.len());
                self.at += chunk.len();
                self.part = Part::Size;
            }
            Part::Trailers { from } => {
                let end = rest.windows(2).position(|w| w == b"\r\n");
                self.look(end.map_or(rest.len(), |end| end + 2));
                if self.at - from + end.unwrap_or(rest.len()) > MAX_TRAILER_BYTES {
                    return Err(400);
                }
                let Some(end) = end else {
                    return Ok(None);
                };
                self.at += end + 2;
                return Ok(Some(end == 0));
            }
        }
        Ok(Some(false))
    }

    #[cfg(test)]
    fn look(&mut self, bytes: usize) {
        self.looked_at += bytes;
    }

    #[cfg(not(test))]
    fn look(&mut self, _bytes: usize) {}
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
        let capture = [b"authorization".to_vec()];
        let parsed = Reading::default().advance(buf, &limits(100, &capture), &mut request);
        (parsed, request)
    }

    fn limits(max_body_bytes: usize, capture: &[Vec<u8>]) -> Limits<'_> {
        Limits {
            max_header_bytes: 1024,
            max_body_bytes,
            capture,
        }
    }

    /// Reads a request that comes byte by byte: how many bytes of its chunks were looked at, and its body.
    fn run_slowly(raw: &[u8], max_body_bytes: usize) -> (usize, Vec<u8>) {
        let mut reading = Reading::default();
        let mut request = HttpRequest::default();
        let mut looked_at = 0;
        for n in 1..=raw.len() {
            let parsed = reading.advance(&raw[..n], &limits(max_body_bytes, &[]), &mut request);
            if let Some(BodyLength::Chunked(chunks)) = reading.head.as_ref().map(|h| &h.length) {
                looked_at = chunks.looked_at;
            }
            let whole = Parsed::Request {
                consumed: raw.len(),
                keep_alive: true,
            };
            let expected = if n == raw.len() {
                whole
            } else {
                Parsed::Incomplete
            };
            assert_eq!(parsed, expected, "{n} of {}", raw.len());
        }
        (looked_at, request.body)
    }

    /// Each piece that arrived was decoded with all that had come before it: a slow body of a megabyte took hours.
    #[test]
    fn a_slow_body_costs_what_it_is_long() {
        let head = "POST /v3 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        for size in [1, 64] {
            let chunk = format!("{size:x}\r\n{}\r\n", "b".repeat(size));
            let mut last = 0;
            for count in [500, 1000, 2000] {
                let raw = format!("{head}{}0\r\nT: v\r\n\r\n", chunk.repeat(count));
                let (work, body) = run_slowly(raw.as_bytes(), 1 << 20);
                assert_eq!(body, "b".repeat(count * size).as_bytes());
                assert!(work <= 4 * raw.len(), "{work} for {}", raw.len());
                assert!(last == 0 || work <= 2 * last + 100, "{work} after {last}");
                last = work;
            }
        }
    }

    #[test]
    fn what_comes_beside_a_chunked_body_is_bounded() {
        let head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        let trailers = [&head[..], b"0\r\n", &b"a: b\r\n".repeat(2000)].concat();
        assert_eq!(
            run(&trailers).0,
            Parsed::Bad(400),
            "trailers that never end"
        );
        let extension = [&head[..], b"1", &b";".repeat(1100)].concat();
        assert_eq!(
            run(&extension).0,
            Parsed::Bad(400),
            "a size that never ends"
        );
        let line = [b"1;", &b"x".repeat(1000)[..], b"\r\na\r\n"].concat();
        let sizes = [&head[..], &line.repeat(70), b"1;"].concat();
        assert_eq!(
            run(&sizes).0,
            Parsed::Bad(413),
            "sizes larger than what they are of"
        );
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

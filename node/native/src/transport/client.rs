//! One connection of a client: TLS, then HTTP/2 or HTTP/1.1, told apart by ALPN or by the first bytes.
//!
//! All methods run on the I/O thread and never block. An `Err` or `Fate::Close` means that the connection is to be closed
//! and its calls reported; nothing else follows from it.

use super::calls::Kind;
use super::h2::{code, Session, Template};
use super::http1::{self, Limits, Parsed, Reading};
use super::serve::{ConnectionState, Server, World, GOAWAY_NOTICE};
use super::shared::{add, Event, HttpReply, HttpRequest};
use super::sock::{Got, Sock};
use super::wheel::Timer;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection reads at most this much before others get their turn.
const READ_BUDGET_BYTES: usize = 256 << 10;
/// Frames are taken from nghttp2 up to this much ahead of the socket; the rest stays in the calls' queues.
const WRITE_AHEAD_BYTES: usize = 128 << 10;

/// How long a closed connection waits for the client's own end.
const LINGER: Duration = Duration::from_secs(1);

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Keep,
    /// There is more to read; come again after the others.
    Again,
    Close,
}

enum Protocol {
    /// The first bytes do not tell yet.
    Sniffing(Vec<u8>),
    Http2(Box<Session>),
    Http1(Http1),
}

#[derive(Default)]
struct Http1 {
    buf: Vec<u8>,
    reading: Reading,
    /// The request that Python is answering.
    call: Option<usize>,
    keep_alive: bool,
    /// "100 Continue" was sent for the request in `buf`.
    continued: bool,
}

pub struct Client {
    pub serial: u64,
    pub state: ConnectionState,
    sock: Sock,
    protocol: Protocol,
    /// Only HTTP/1.1 is spoken here.
    http1_only: bool,
    template: Arc<Template>,
    /// When the connection is closed unless something happens.
    deadline: Option<Instant>,
    /// All is written; only the client's own end is awaited, so that nothing we sent is lost to a reset.
    lingering: bool,
}

impl Client {
    pub fn new(
        token: usize,
        serial: u64,
        sock: Sock,
        http1_only: bool,
        template: Arc<Template>,
        w: &mut World,
    ) -> Self {
        let mut client = Client {
            serial,
            state: ConnectionState::new(token),
            sock,
            protocol: Protocol::Sniffing(Vec::new()),
            http1_only,
            template,
            deadline: None,
            lingering: false,
        };
        client.set_deadline(w, Some(w.shared.config.handshake_timeout));
        client
    }

    pub fn source(&mut self) -> &mut mio::net::TcpStream {
        &mut self.sock.tcp
    }

    fn set_deadline(&mut self, w: &mut World, after: Option<Duration>) {
        self.deadline = after.and_then(|after| w.now.checked_add(after));
        if let Some(at) = self.deadline {
            let (token, serial) = (self.state.token, self.serial);
            w.wheel.set(at, Timer::Connection { token, serial });
        }
    }

    /// A timer of this connection has fired.
    pub fn timer(&mut self, w: &mut World) -> Fate {
        if self.state.draining && !self.state.drained && !self.lingering {
            if let Protocol::Http2(session) = &mut self.protocol {
                self.state.drained = true;
                session.ops().goaway(code::NO_ERROR, b"");
                return self.flush(w);
            }
        }
        match self.deadline {
            Some(at) if at <= w.now => Fate::Close,
            _ => Fate::Keep,
        }
    }

    pub fn hung_up(&mut self) {
        self.sock.hung_up = true;
    }

    /// The kernel has something for us. It says so once: to be noted even when nothing may be read now.
    pub fn readable(&mut self) {
        self.sock.readable = true;
    }

    /// Reads what there is, within the budget, and writes what that led to.
    pub fn read(&mut self, w: &mut World, scratch: &mut [u8]) -> Fate {
        let mut budget = READ_BUDGET_BYTES;
        let mut end = false;
        while budget > 0 && (self.lingering || !self.state.closing) {
            match self.sock.read(scratch) {
                Ok(Got::Bytes(n)) if self.lingering => budget = budget.saturating_sub(n),
                Ok(Got::Bytes(n)) => {
                    add(&w.shared.counters.client_bytes_in, n as u64);
                    budget = budget.saturating_sub(n);
                    if !self.feed(w, &scratch[..n]) {
                        self.state.closing = true;
                    }
                }
                Ok(Got::Nothing) => break,
                Ok(Got::End) => {
                    end = true;
                    break;
                }
                Err(_) => {
                    let _ = self.sock.flush(); // a TLS alert may say why
                    return Fate::Close;
                }
            }
        }
        match self.flush(w) {
            Fate::Keep if end => Fate::Close,
            Fate::Keep if budget == 0 => Fate::Again,
            fate => fate,
        }
    }

    /// Takes bytes from the client. False: close after what is pending is written.
    fn feed(&mut self, w: &mut World, bytes: &[u8]) -> bool {
        match &mut self.protocol {
            Protocol::Sniffing(seen) => {
                seen.extend_from_slice(bytes);
                let seen = std::mem::take(seen);
                self.decide(w, seen)
            }
            Protocol::Http2(session) => {
                let mut server = Server {
                    w,
                    c: &mut self.state,
                };
                let ok = session.receive(bytes, &mut server).is_ok();
                if !ok {
                    add(&w.shared.counters.connection_errors, 1);
                }
                ok
            }
            Protocol::Http1(http1) => {
                http1.buf.extend_from_slice(bytes);
                self.next_request(w)
            }
        }
    }

    fn decide(&mut self, w: &mut World, seen: Vec<u8>) -> bool {
        let common = seen.len().min(PREFACE.len());
        let is_http2 =
            !self.http1_only && (self.sock.alpn_is_h2() || seen[..common] == PREFACE[..common]);
        if is_http2 && common < PREFACE.len() && !self.sock.alpn_is_h2() {
            self.protocol = Protocol::Sniffing(seen);
            return true;
        }
        if is_http2 {
            self.set_deadline(w, None);
            self.protocol = Protocol::Http2(Box::new(Session::server(&self.template)));
        } else {
            self.set_deadline(w, Some(w.shared.config.handshake_timeout));
            self.protocol = Protocol::Http1(Http1::default());
        }
        self.feed(w, &seen)
    }

    /// Reads the next HTTP/1.1 request from the buffer, unless one is in progress.
    fn next_request(&mut self, w: &mut World) -> bool {
        let shared = w.shared.clone();
        let config = &shared.config;
        let Protocol::Http1(http1) = &mut self.protocol else {
            return true;
        };
        if http1.call.is_some() {
            return http1.buf.len() <= config.max_header_bytes + config.max_http_body_bytes;
        }
        if http1.buf.is_empty() {
            self.set_deadline(w, Some(config.idle_http1_timeout));
            return true;
        }
        let mut request = Box::<HttpRequest>::default();
        let limits = Limits {
            max_header_bytes: config.max_header_bytes,
            max_body_bytes: config.max_http_body_bytes,
            capture: &config.capture,
        };
        match http1.reading.advance(&http1.buf, &limits, &mut request) {
            Parsed::Incomplete => {}
            Parsed::WantsContinue if !http1.continued => {
                http1.continued = true;
                self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            Parsed::WantsContinue => {}
            Parsed::Bad(status) => {
                add(&shared.counters.calls_rejected, 1);
                let reply = HttpReply {
                    status,
                    content_type: "text/plain".into(),
                    headers: Vec::new(),
                    body: format!("{}\n", http1::reason(status)).into_bytes(),
                };
                self.sock.send(&http1::response(&reply, false, false));
                return false;
            }
            Parsed::Request {
                consumed,
                keep_alive,
            } => {
                http1.buf.drain(..consumed);
                http1.keep_alive = keep_alive;
                http1.continued = false;
                let mut server = Server {
                    w,
                    c: &mut self.state,
                };
                let Some(slot) = server.open(0) else {
                    return false;
                };
                http1.call = Some(slot);
                let call = w.calls.get(slot);
                call.kind = Kind::Http;
                call.announced = true;
                call.is_head = request.method == "HEAD";
                w.inbox.push(Event::Http {
                    call: call.id,
                    request,
                });
                add(&shared.counters.http_calls, 1);
                self.deadline = None;
                return true;
            }
        }
        // The time for a request begins with its first byte.
        if self
            .deadline
            .is_none_or(|at| at > w.now + config.handshake_timeout)
        {
            self.set_deadline(w, Some(config.handshake_timeout));
        }
        true
    }

    /// Runs an operation of an HTTP/2 call. The connection is to be flushed afterwards.
    pub fn with_call(
        &mut self,
        w: &mut World,
        run: impl FnOnce(&mut Server<'_>, &mut super::h2::Ops),
    ) {
        if let Protocol::Http2(session) = &mut self.protocol {
            run(
                &mut Server {
                    w,
                    c: &mut self.state,
                },
                session.ops(),
            );
        }
    }

    /// Answers a plain HTTP request of either version.
    pub fn http_reply(&mut self, w: &mut World, slot: usize, reply: HttpReply) {
        let Protocol::Http1(http1) = &mut self.protocol else {
            return self.with_call(w, |server, ops| server.http_reply(ops, slot, reply));
        };
        if http1.call != Some(slot) {
            return;
        }
        let keep_alive = http1.keep_alive && !self.state.draining;
        let call = w.calls.get(slot);
        call.finished = true;
        self.sock
            .send(&http1::response(&reply, call.is_head, keep_alive));
        http1.call = None;
        Server {
            w,
            c: &mut self.state,
        }
        .forget(slot);
        if !keep_alive || !self.next_request(w) {
            self.state.closing = true;
        }
    }

    /// Writes what can be written.
    pub fn flush(&mut self, w: &mut World) -> Fate {
        if self.lingering {
            return Fate::Keep;
        }
        loop {
            let mut dry = !matches!(self.protocol, Protocol::Http2(_));
            if let Protocol::Http2(session) = &mut self.protocol {
                while self.sock.pending() < WRITE_AHEAD_BYTES {
                    let mut server = Server {
                        w,
                        c: &mut self.state,
                    };
                    match session.pull(&mut server) {
                        Ok(Some(bytes)) => self.sock.send(bytes),
                        Ok(None) => {
                            dry = true;
                            break;
                        }
                        Err(_) => {
                            self.state.closing = true;
                            dry = true;
                            break;
                        }
                    }
                }
            }
            match self.sock.flush() {
                Ok(n) => add(&w.shared.counters.client_bytes_out, n as u64),
                Err(_) => return Fate::Close,
            }
            if self.sock.pending() > 0 {
                return Fate::Keep; // a writable event will come
            }
            if dry {
                break;
            }
        }
        let finished = match &self.protocol {
            Protocol::Http2(session) => session.finished(),
            Protocol::Http1(http1) => self.state.draining && http1.call.is_none(),
            Protocol::Sniffing(_) => self.state.draining,
        };
        if self.state.closing || finished || (self.state.drained && self.state.open_calls == 0) {
            return self.linger(w);
        }
        Fate::Keep
    }

    /// Ends our side, and waits a little for the client to end its own.
    fn linger(&mut self, w: &mut World) -> Fate {
        self.sock.send_close();
        let _ = self.sock.flush();
        if self.sock.tcp.shutdown(std::net::Shutdown::Write).is_err() {
            return Fate::Close;
        }
        self.lingering = true;
        self.bury(w);
        self.set_deadline(w, Some(LINGER));
        Fate::Keep
    }

    /// Begins a graceful end: no new calls, those in progress go on.
    pub fn drain(&mut self, w: &mut World) -> Fate {
        if self.lingering {
            return Fate::Keep;
        }
        self.state.draining = true;
        if let Protocol::Http2(session) = &mut self.protocol {
            session.ops().shutdown_notice();
            let (token, serial) = (self.state.token, self.serial);
            w.wheel
                .set(w.now + GOAWAY_NOTICE, Timer::Connection { token, serial });
        }
        self.flush(w)
    }

    /// Reports and frees the calls of a connection that is no more.
    pub fn bury(&mut self, w: &mut World) {
        if self.state.open_calls > 0 {
            for slot in w.calls.of_connection(self.state.token) {
                Server {
                    w,
                    c: &mut self.state,
                }
                .forget(slot);
            }
        }
    }
}

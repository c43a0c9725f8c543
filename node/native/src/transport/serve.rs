//! What HTTP/2 streams mean: gRPC calls (unary and streaming) and plain HTTP requests.
//!
//! [`Server`] joins the two halves that a callback needs, the connection's state and the [`World`] around it, and
//! implements [`Handler`]; how calls end is in `answer`. The rules:
//!
//! * A call is announced to Python when it is complete (unary, HTTP) or opens (streaming). One that ends early for a reason
//!   that Python did not give is reported as cancelled, once, if it was announced.
//! * What we refuse (unknown method, too large, malformed) is answered here, and never reaches Python.
//! * `queued` counts, per connection, half-received bytes plus unsent bytes; it is what bounds memory.

use super::calls::{Call, Calls, Ending, Kind, Method};
use super::grpc::{self, status, Front};
use super::h2::{code, Body, Handler, Header, Ops, Sink};
use super::http1;
use super::shared::{
    add, lock, sub, Config, Event, HttpReply, HttpRequest, Inbox, Shared, StreamGauge,
};
use super::wheel::{Timer, Wheel};
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pings too many of a client, before it gets GOAWAY (as in the gRPC libraries).
const MAX_PING_STRIKES: u32 = 2;

const GRPC_STATUS_OK: Header = Header::fixed(b"grpc-status", b"0");

/// All that belongs to no connection in particular.
pub struct World {
    pub shared: Arc<Shared>,
    pub methods: HashMap<Vec<u8>, Method>,
    pub calls: Calls,
    pub inbox: Inbox,
    pub wheel: Wheel,
    pub now: Instant,
}

/// A connection, as far as its streams care.
pub struct ConnectionState {
    pub token: usize,
    pub queued: usize,
    pub open_calls: usize,
    /// Close as soon as what is pending is written.
    pub closing: bool,
    /// A graceful GOAWAY has been announced; the final one follows the client's answer.
    pub draining: bool,
    pub drained: bool,
    last_ping: Option<Instant>,
    ping_strikes: u32,
    pub(super) sent_since_ping: bool,
    last_path: Vec<u8>,
    last_method: Option<Method>,
    pub(super) streams: Streams,
}

/// What all streams of a connection hold, and who waits for that to become less.
#[derive(Default)]
pub struct Streams {
    queued: Arc<AtomicI64>,
    waiting: Vec<u64>,
}

impl Streams {
    /// Says that they are drained to those who waited for the others, once little enough is left.
    fn release(&mut self, inbox: &mut Inbox, config: &Config) {
        let left = self.queued.load(Ordering::SeqCst);
        if !self.waiting.is_empty() && left < config.streams_high_bytes() / 2 {
            let drained = self.waiting.drain(..);
            drained.for_each(|call| inbox.push(Event::StreamDrained { call }));
        }
    }
}

impl ConnectionState {
    pub fn new(token: usize) -> Self {
        ConnectionState {
            token,
            queued: 0,
            open_calls: 0,
            closing: false,
            draining: false,
            drained: false,
            last_ping: None,
            ping_strikes: 0,
            sent_since_ping: false,
            last_path: Vec::new(),
            last_method: None,
            streams: Streams::default(),
        }
    }
}

pub struct Server<'a> {
    pub w: &'a mut World,
    pub c: &'a mut ConnectionState,
}

impl Handler for Server<'_> {
    fn begin_stream(&mut self, _ops: &mut Ops, stream_id: i32) -> Option<usize> {
        self.open(stream_id)
    }

    fn header(&mut self, key: usize, name: &[u8], value: &[u8]) {
        let config = &self.w.shared.config;
        let call = self.w.calls.get(key);
        call.header_bytes += name.len() + value.len() + 32; // as RFC 9113 counts
        if call.header_bytes > config.max_header_bytes {
            return;
        }
        match name {
            b":path" => {
                if self.c.last_path != value {
                    self.c.last_path = value.to_vec();
                    self.c.last_method = self.w.methods.get(value).copied();
                }
                call.method = self.c.last_method;
                if call.method.is_none() {
                    http_request(call).path = String::from_utf8_lossy(value).into_owned();
                }
            }
            b":method" if value != b"POST" => {
                http_request(call).method = String::from_utf8_lossy(value).into_owned()
            }
            b"content-type" => call.is_grpc = value.starts_with(b"application/grpc"),
            b"grpc-timeout" => {
                call.deadline = grpc::timeout(value).and_then(|t| self.w.now.checked_add(t))
            }
            b"grpc-encoding" if value != b"identity" => call.encoding = Some(value.to_vec()),
            _ => {}
        }
        for (i, captured) in config.capture.iter().enumerate() {
            if captured == name {
                let all = call
                    .metadata
                    .get_or_insert_with(|| vec![None; config.capture.len()].into());
                all[i].get_or_insert_with(|| value.to_vec());
            }
        }
    }

    fn headers_complete(&mut self, ops: &mut Ops, key: usize, _end_stream: bool) {
        let config = &self.w.shared.config;
        let call = self.w.calls.get(key);
        if call.header_bytes > config.max_header_bytes {
            let text = format!(
                "request headers are larger than {} bytes",
                config.max_header_bytes
            );
            return self.refuse(ops, key, status::RESOURCE_EXHAUSTED, 431, &text);
        }
        if self.c.queued > config.max_queued_bytes_per_connection {
            let text = "too many bytes are queued for this connection";
            return self.refuse(ops, key, status::RESOURCE_EXHAUSTED, 429, text);
        }
        let counters = &self.w.shared.counters;
        if !call.is_grpc {
            call.kind = Kind::Http;
            if call.method.is_some() {
                return self.refuse(
                    ops,
                    key,
                    status::INTERNAL,
                    415,
                    "content-type is not application/grpc",
                );
            }
            add(&counters.http_calls, 1);
            return;
        }
        let Some(method) = call.method else {
            let path = call.http.as_ref().map_or("", |http| &http.path).to_owned();
            let text = unknown_method(&self.w.methods, &path);
            return self.refuse(ops, key, status::UNIMPLEMENTED, 404, &text);
        };
        if let Some(at) = call.deadline {
            self.w.wheel.set(at, Timer::Call(call.id));
        }
        if !method.streaming {
            call.kind = Kind::Unary;
            add(&counters.unary_calls, 1);
            return;
        }
        call.kind = Kind::Stream;
        call.announced = true;
        add(&counters.stream_calls, 1);
        let gauge = Arc::new(StreamGauge {
            connection: self.c.streams.queued.clone(),
            ..StreamGauge::default()
        });
        call.gauge = Some(gauge.clone());
        lock(&self.w.shared.streams).insert(call.id, gauge);
        self.w.inbox.push(Event::StreamOpen {
            call: call.id,
            method: method.id,
            metadata: call.metadata.take(),
        });
    }

    fn data(&mut self, ops: &mut Ops, key: usize, chunk: &[u8]) {
        let config = &self.w.shared.config;
        let call = self.w.calls.get(key);
        if matches!(call.kind, Kind::Over) {
            return;
        }
        if self.c.queued + chunk.len() > config.max_queued_bytes_per_connection {
            let text = "too many bytes are queued for this connection";
            return self.fail(ops, key, status::RESOURCE_EXHAUSTED, text);
        }
        self.c.queued += chunk.len();
        call.received.extend_from_slice(chunk);
        match call.kind {
            Kind::Stream => self.stream_messages(ops, key),
            Kind::Unary => {
                let received = call.received.len();
                match grpc::front(&call.received, config.max_message_bytes) {
                    Front::Incomplete => {}
                    Front::Message(len) if received == len + grpc::PREFIX_BYTES => {}
                    Front::Message(_) => self.fail(
                        ops,
                        key,
                        status::INTERNAL,
                        "a unary request has one message only",
                    ),
                    bad => self.fail_message(ops, key, bad),
                }
            }
            _ => {
                if call.received.len() > config.max_http_body_bytes {
                    self.refuse(
                        ops,
                        key,
                        status::RESOURCE_EXHAUSTED,
                        413,
                        "the body is too large",
                    );
                }
            }
        }
    }

    fn end_stream(&mut self, ops: &mut Ops, key: usize) {
        let call = self.w.calls.get(key);
        call.half_closed = true;
        let received = call.received.len();
        match call.kind {
            Kind::Unary => {
                // `data` has checked that there is at most one message, and its size.
                if !matches!(grpc::front(&call.received, usize::MAX), Front::Message(_)) {
                    let text = "the request ended before its message was complete";
                    return self.fail(ops, key, status::INTERNAL, text);
                }
                let message = self
                    .w
                    .inbox
                    .arena
                    .take(&mut call.received, grpc::PREFIX_BYTES);
                let method = call.method.map_or(0, |m| m.id);
                call.announced = true;
                self.w
                    .inbox
                    .push_unary(method, call.id, message, call.metadata.take());
                self.c.queued -= received;
            }
            Kind::Stream if received > 0 => {
                self.fail(
                    ops,
                    key,
                    status::INTERNAL,
                    "the request ended in the middle of a message",
                );
            }
            Kind::Stream => self.w.inbox.push(Event::StreamHalfClose { call: call.id }),
            Kind::Http => {
                let mut request = call.http.take().unwrap_or_default();
                if request.method.is_empty() {
                    request.method.push_str("POST");
                }
                call.is_head = request.method == "HEAD";
                request.body = std::mem::take(&mut call.received);
                request.metadata = call.metadata.take();
                call.announced = true;
                self.w.inbox.push(Event::Http {
                    call: call.id,
                    request,
                });
                self.c.queued -= received;
            }
            Kind::Free | Kind::New | Kind::Over => {}
        }
    }

    fn ping(&mut self, ops: &mut Ops) {
        let now = self.w.now;
        // A tenth is left to the client's timers and the network.
        let interval = self.w.shared.config.keepalive_min_interval.mul_f32(0.9);
        if std::mem::take(&mut self.c.sent_since_ping) {
            self.c.ping_strikes = 0;
        } else if self
            .c
            .last_ping
            .is_some_and(|last| now.duration_since(last) < interval)
        {
            self.c.ping_strikes += 1;
        } else {
            self.c.ping_strikes = self.c.ping_strikes.saturating_sub(1);
        }
        self.c.last_ping = Some(now);
        if self.c.ping_strikes > MAX_PING_STRIKES && !self.c.closing {
            add(&self.w.shared.counters.too_many_pings, 1);
            ops.goaway(code::ENHANCE_YOUR_CALM, b"too_many_pings");
            self.c.closing = true;
        }
    }

    fn ping_ack(&mut self, ops: &mut Ops) {
        if self.c.draining && !self.c.drained {
            self.c.drained = true;
            ops.goaway(code::NO_ERROR, b"");
        }
    }

    fn body(&mut self, ops: &mut Ops, key: usize, sink: &mut Sink) -> Body {
        self.c.sent_since_ping = true;
        let call = self.w.calls.get(key);
        let n = sink.put(&call.out[call.sent..]);
        call.sent += n;
        self.c.queued -= n;
        call.compact();
        let config = &self.w.shared.config;
        note_sent(&mut self.w.inbox, &mut self.c.streams, call, n, config);
        if !call.out.is_empty() {
            return Body::More;
        }
        match &call.ending {
            None if n > 0 => Body::More,
            None => {
                call.parked = true;
                Body::Later
            }
            Some(Ending::Plain) => Body::End,
            Some(Ending::Status(0, text)) if text.is_empty() => {
                ops.trailers(call.stream_id, &[GRPC_STATUS_OK]);
                Body::Trailers
            }
            Some(Ending::Status(status, text)) => {
                let status = status.to_string();
                let headers = [
                    Header::copied(b"grpc-status", status.as_bytes()),
                    Header::copied(b"grpc-message", text),
                ];
                ops.trailers(call.stream_id, &headers);
                Body::Trailers
            }
        }
    }

    fn closed(&mut self, key: usize, _error_code: u32) {
        self.forget(key);
    }
}

/// Takes sent bytes off a stream's gauge; says so if a large queue has become small, as soon as that of its connection has.
pub(super) fn note_sent(
    inbox: &mut Inbox,
    streams: &mut Streams,
    call: &Call,
    n: usize,
    config: &Config,
) {
    let Some(gauge) = &call.gauge else { return };
    let n = n as i64;
    gauge.connection.fetch_sub(n, Ordering::SeqCst);
    let left = gauge.queued.fetch_sub(n, Ordering::SeqCst) - n;
    let low = (config.stream_queue_high_bytes / 2) as i64;
    if left < low && gauge.high.swap(false, Ordering::SeqCst) {
        streams.waiting.push(call.id);
    }
    streams.release(inbox, config);
}

fn http_request(call: &mut Call) -> &mut HttpRequest {
    call.http.get_or_insert_default()
}

fn unknown_method(methods: &HashMap<Vec<u8>, Method>, path: &str) -> String {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')) else {
        return format!("malformed method name: {path:?}");
    };
    let known = methods.keys().any(|k| {
        k.get(1..)
            .is_some_and(|k| k.starts_with(format!("{service}/").as_bytes()))
    });
    if known {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    }
}

impl Server<'_> {
    /// A slot for a new request.
    pub fn open(&mut self, stream_id: i32) -> Option<usize> {
        let counters = &self.w.shared.counters;
        let slot = self.w.calls.open(self.c.token, stream_id)?;
        self.c.open_calls += 1;
        add(&counters.calls, 1);
        add(&counters.calls_started, 1);
        Some(slot)
    }

    /// The request is over: frees its slot, and tells Python if that comes as a surprise.
    pub fn forget(&mut self, slot: usize) {
        let call = self.w.calls.get(slot);
        self.c.open_calls -= 1;
        self.c.queued -= call.received.len() + call.queued();
        sub(&self.w.shared.counters.calls, 1);
        if let Some(gauge) = &call.gauge {
            lock(&self.w.shared.streams).remove(&call.id);
            let left = gauge.queued.swap(0, Ordering::SeqCst);
            gauge.connection.fetch_sub(left, Ordering::SeqCst);
            let config = &self.w.shared.config;
            self.c.streams.release(&mut self.w.inbox, config);
        }
        if call.announced && !call.finished {
            add(&self.w.shared.counters.calls_cancelled, 1);
            self.w.inbox.push(Event::Cancelled { call: call.id });
        }
        self.w.calls.close(slot);
    }

    /// Hands over the complete messages of a streaming call.
    fn stream_messages(&mut self, ops: &mut Ops, slot: usize) {
        let max = self.w.shared.config.max_message_bytes;
        let call = self.w.calls.get(slot);
        let mut at = 0;
        let bad = loop {
            match grpc::front(&call.received[at..], max) {
                Front::Message(len) => {
                    let end = at + grpc::PREFIX_BYTES + len;
                    let message = if at == 0 && end == call.received.len() {
                        self.w
                            .inbox
                            .arena
                            .take(&mut call.received, grpc::PREFIX_BYTES)
                    } else {
                        self.w
                            .inbox
                            .arena
                            .put(&call.received[at + grpc::PREFIX_BYTES..end])
                    };
                    self.w.inbox.push(Event::StreamMessage {
                        call: call.id,
                        message,
                    });
                    if call.received.is_empty() {
                        self.c.queued -= end;
                        return;
                    }
                    at = end;
                }
                Front::Incomplete => break None,
                bad => break Some(bad),
            }
        };
        call.received.drain(..at);
        self.c.queued -= at;
        if let Some(bad) = bad {
            self.fail_message(ops, slot, bad);
        }
    }

    fn fail_message(&mut self, ops: &mut Ops, slot: usize, bad: Front) {
        let max = self.w.shared.config.max_message_bytes;
        match bad {
            Front::TooLarge(len) => {
                let text = format!("grpc: received message larger than max ({len} vs. {max})");
                self.fail(ops, slot, status::RESOURCE_EXHAUSTED, &text);
            }
            Front::Compressed => {
                let encoding = self
                    .w
                    .calls
                    .get(slot)
                    .encoding
                    .as_deref()
                    .map(String::from_utf8_lossy);
                let text = match encoding {
                    Some(name) => {
                        format!("grpc: Decompressor is not installed for grpc-encoding {name:?}")
                    }
                    None => "grpc: compressed flag set with identity or empty encoding".to_owned(),
                };
                self.fail(ops, slot, status::UNIMPLEMENTED, &text);
            }
            Front::BadFlags(flags) => {
                let text = format!("grpc: a message with unknown flags {flags:#x}");
                self.fail(ops, slot, status::INTERNAL, &text);
            }
            Front::Incomplete | Front::Message(_) => {}
        }
    }
}

/// How long a client has to answer the first, graceful GOAWAY before the final one is sent anyway.
pub const GOAWAY_NOTICE: Duration = Duration::from_millis(500);

/// Whether a reply's header lines can be sent by either version of HTTP.
pub fn headers_are_safe(reply: &HttpReply) -> bool {
    http1::is_field_safe(&reply.content_type)
        && reply
            .headers
            .iter()
            .all(|(name, value)| http1::is_token(name) && http1::is_field_safe(value))
}

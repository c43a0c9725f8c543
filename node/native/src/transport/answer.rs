//! How calls end: replies and errors from Python, refusals and deadlines of our own.
//!
//! Each of these only submits frames and fills the call's queue; the connection is flushed at the end of the round.

use super::calls::{Call, Ending, Kind};
use super::grpc::{self, status};
use super::h2::{code, Header, Ops};
use super::serve::{note_sent, Server};
use super::shared::{add, Arena, Event, HttpReply, Message};

const STATUS_200: Header = Header::fixed(b":status", b"200");
const CONTENT_TYPE_GRPC: Header = Header::fixed(b"content-type", b"application/grpc");

impl Server<'_> {
    /// We end a call for a reason of our own, and tell Python if it knows of the call.
    pub fn fail(&mut self, ops: &mut Ops, slot: usize, status: u32, text: &str) {
        let call = self.w.calls.get(slot);
        if call.finished {
            return;
        }
        if call.announced {
            add(&self.w.shared.counters.calls_cancelled, 1);
            self.w.inbox.push(Event::Cancelled { call: call.id });
        } else {
            add(&self.w.shared.counters.calls_rejected, 1);
        }
        self.finish(ops, slot, status, text);
    }

    /// As `fail`, for a request that may be gRPC or plain HTTP.
    pub(super) fn refuse(
        &mut self,
        ops: &mut Ops,
        slot: usize,
        status: u32,
        http_status: u16,
        text: &str,
    ) {
        if self.w.calls.get(slot).is_grpc {
            return self.fail(ops, slot, status, text);
        }
        add(&self.w.shared.counters.calls_rejected, 1);
        let reply = HttpReply {
            status: http_status,
            content_type: "text/plain".into(),
            headers: Vec::new(),
            body: text.as_bytes().to_vec(),
        };
        self.http_reply(ops, slot, reply);
    }

    /// Stops caring about what still arrives for a call, and about cancellation.
    fn close_request(&mut self, slot: usize) {
        let call = self.w.calls.get(slot);
        self.c.queued -= call.received.len();
        call.received.clear();
        call.kind = Kind::Over;
        call.finished = true;
    }

    /// Ends a gRPC call with a status, after what is queued.
    pub fn finish(&mut self, ops: &mut Ops, slot: usize, status: u32, text: &str) {
        if self.w.calls.get(slot).finished {
            return;
        }
        self.close_request(slot);
        self.c.sent_since_ping = true;
        let call = self.w.calls.get(slot);
        let text = grpc::percent_encode(text);
        if call.headers_sent {
            call.ending = Some(Ending::Status(status, text));
            if std::mem::take(&mut call.parked) {
                ops.resume(call.stream_id);
            }
            return;
        }
        call.headers_sent = true;
        let status = status.to_string();
        let headers = [
            STATUS_200,
            CONTENT_TYPE_GRPC,
            Header::copied(b"grpc-status", status.as_bytes()),
            Header::copied(b"grpc-message", &text),
        ];
        let n = if text.is_empty() { 3 } else { 4 };
        ops.respond(call.stream_id, slot, &headers[..n], false);
    }

    /// Answers a unary call.
    pub fn reply(&mut self, ops: &mut Ops, slot: usize, message: Message, arena: &Arena) {
        let call = self.w.calls.get(slot);
        if call.finished || !call.announced || !matches!(call.kind, Kind::Unary) {
            return;
        }
        self.close_request(slot);
        self.c.sent_since_ping = true;
        let call = self.w.calls.get(slot);
        push_message(call, message, arena);
        self.c.queued += call.queued();
        call.ending = Some(Ending::Status(0, Vec::new()));
        call.headers_sent = true;
        ops.respond(call.stream_id, slot, &[STATUS_200, CONTENT_TYPE_GRPC], true);
    }

    /// Queues a message on a streaming call; cuts the call off when its connection holds too much.
    pub fn stream_send(&mut self, ops: &mut Ops, slot: usize, message: Message, arena: &Arena) {
        let config = &self.w.shared.config;
        let size = message.len() + grpc::PREFIX_BYTES;
        let call = self.w.calls.get(slot);
        if call.finished || !matches!(call.kind, Kind::Stream) {
            return;
        }
        let share = config.stream_share_bytes();
        if self.c.queued + size > config.max_queued_bytes_per_connection
            && call.queued() + size > share
        {
            add(&self.w.shared.counters.calls_cancelled, 1);
            self.w.inbox.push(Event::Cancelled { call: call.id });
            return self.abort(ops, slot, code::ENHANCE_YOUR_CALM);
        }
        self.c.sent_since_ping = true;
        push_message(call, message, arena);
        self.c.queued += size;
        if !call.headers_sent {
            call.headers_sent = true;
            ops.respond(call.stream_id, slot, &[STATUS_200, CONTENT_TYPE_GRPC], true);
        } else if std::mem::take(&mut call.parked) {
            ops.resume(call.stream_id);
        }
        note_sent(&mut self.w.inbox, &mut self.c.streams, call, 0, config);
    }

    /// Answers a plain HTTP request that came by HTTP/2.
    pub fn http_reply(&mut self, ops: &mut Ops, slot: usize, reply: HttpReply) {
        let call = self.w.calls.get(slot);
        if call.finished || call.is_grpc {
            return;
        }
        self.close_request(slot);
        let call = self.w.calls.get(slot);
        let status = reply.status.to_string();
        let length = reply.body.len().to_string();
        let extra: Vec<_> = reply
            .headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let mut headers = vec![Header::copied(b":status", status.as_bytes())];
        if !reply.content_type.is_empty() {
            headers.push(Header::copied(
                b"content-type",
                reply.content_type.as_bytes(),
            ));
        }
        headers.push(Header::copied(b"content-length", length.as_bytes()));
        headers.extend(
            extra
                .iter()
                .map(|(name, value)| Header::copied(name.as_bytes(), value.as_bytes())),
        );
        let has_body = !call.is_head && !reply.body.is_empty();
        if has_body {
            call.out = reply.body;
            self.c.queued += call.queued();
            call.ending = Some(Ending::Plain);
        }
        call.headers_sent = true;
        ops.respond(call.stream_id, slot, &headers, has_body);
    }

    /// The call's deadline has passed.
    pub fn deadline(&mut self, ops: &mut Ops, slot: usize) {
        let call = self.w.calls.get(slot);
        if call.finished {
            return;
        }
        add(&self.w.shared.counters.deadline_exceeded, 1);
        if call.headers_sent && call.queued() > 0 {
            // In the middle of messages: the client has its own clock, and gives the status itself.
            if call.announced {
                self.w.inbox.push(Event::Cancelled { call: call.id });
            }
            return self.abort(ops, slot, code::CANCEL);
        }
        self.fail(
            ops,
            slot,
            status::DEADLINE_EXCEEDED,
            "context deadline exceeded",
        );
    }

    /// Resets a stream and drops what was queued on it. nghttp2 reports it closed later.
    fn abort(&mut self, ops: &mut Ops, slot: usize, error_code: u32) {
        self.close_request(slot);
        let call = self.w.calls.get(slot);
        self.c.queued -= call.queued();
        call.out.clear();
        call.sent = 0;
        ops.reset(call.stream_id, error_code);
    }
}

fn push_message(call: &mut Call, message: Message, arena: &Arena) {
    match message {
        // Nothing of an empty queue has been sent (`Call::compact`).
        Message::Framed(buf) if call.out.is_empty() => call.out = buf,
        message => {
            let bytes = message.bytes(arena);
            call.out.reserve(bytes.len() + grpc::PREFIX_BYTES);
            call.out.extend_from_slice(&grpc::prefix(bytes.len()));
            call.out.extend_from_slice(bytes);
        }
    }
}

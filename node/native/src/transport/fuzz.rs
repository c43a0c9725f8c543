//! The transport's parsers as fuzz targets: any bytes in, no panic, and what each must keep. Run by `make fuzz`
//! (tests/fuzz), and over the seeds by the crate's tests.

use super::h2::{Body, Handler, Header, Ops, Session, Sink, Template};
use super::shared::HttpRequest;
use super::{grpc, http1, peer};

const MAX_HEADER_BYTES: usize = 8 << 10;
const MAX_BODY_BYTES: usize = 4 << 10;
const MAX_FRAME_BYTES: usize = 16 << 10;
const MAX_STREAMS: u32 = 100;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const BODY: &[u8] = b"0123456789";

/// HTTP/1.1: a request that was read is read from its own bytes alone, and in two pieces, too, and its body is bounded.
pub fn http1(data: &[u8]) {
    let capture = vec![b"host".to_vec()];
    let limits = http1::Limits {
        max_header_bytes: MAX_HEADER_BYTES,
        max_body_bytes: MAX_BODY_BYTES,
        capture: &capture,
    };
    let parse = |pieces: &[&[u8]]| {
        let mut request = HttpRequest::default();
        let mut reading = http1::Reading::default();
        let mut parsed = http1::Parsed::Incomplete;
        for piece in pieces {
            parsed = reading.advance(piece, &limits, &mut request);
        }
        (parsed, request)
    };
    let (parsed, request) = parse(&[data]);
    if let http1::Parsed::Request { consumed, .. } = parsed {
        assert!(consumed <= data.len() && request.body.len() <= MAX_BODY_BYTES);
        let whole = &data[..consumed];
        let cut = consumed * usize::from(data[consumed / 2]) / 256;
        for pieces in [&[whole][..], &[&whole[..cut], whole]] {
            let (again, same) = parse(pieces);
            assert_eq!(again, parsed);
            assert_eq!(
                (same.path, same.body),
                (request.path.clone(), request.body.clone())
            );
        }
    }
    if data.len() > MAX_HEADER_BYTES + 2 * MAX_BODY_BYTES + (64 << 10) {
        assert_ne!(
            parsed,
            http1::Parsed::Incomplete,
            "it would wait for ever more"
        );
    }
}

/// gRPC: messages off the front of a buffer, timeouts, status texts.
pub fn grpc(data: &[u8]) {
    let mut rest = data;
    while let grpc::Front::Message(len) = grpc::front(rest, MAX_FRAME_BYTES) {
        assert!(len <= MAX_FRAME_BYTES);
        rest = &rest[grpc::PREFIX_BYTES + len..];
    }
    let _ = grpc::timeout(data);
    let text = grpc::percent_encode(&String::from_utf8_lossy(data));
    assert!(text.iter().all(|b| (0x20..=0x7e).contains(b)));
}

/// Peer links: frames off the front of a buffer; what was written is read.
pub fn peer_frame(data: &[u8]) {
    let mut rest = data;
    while let peer::Frame::Complete(payload) = peer::read_frame(rest, MAX_FRAME_BYTES) {
        assert!(payload.len() <= MAX_FRAME_BYTES);
        rest = &rest[peer::framed_bytes(payload.len())..];
    }
    let mut out = Vec::new();
    let half = data.len() / 2;
    peer::write_frame(&mut out, &[&data[..half], &data[half..]]);
    assert_eq!(
        peer::read_frame(&out, data.len()),
        peer::Frame::Complete(data)
    );
}

#[derive(Default)]
struct Answering {
    open: usize,
    header_bytes: usize,
    left: Vec<usize>,
}

impl Handler for Answering {
    fn begin_stream(&mut self, _: &mut Ops, stream_id: i32) -> Option<usize> {
        self.open += 1;
        assert!(
            self.open <= MAX_STREAMS as usize,
            "more streams than were allowed"
        );
        self.left.push(BODY.len());
        (stream_id % 7 != 0)
            .then(|| self.left.len() - 1)
            .or_else(|| {
                self.open -= 1;
                None
            })
    }
    fn header(&mut self, _: usize, name: &[u8], value: &[u8]) {
        self.header_bytes += name.len() + value.len();
    }
    fn headers_complete(&mut self, _: &mut Ops, _: usize, _: bool) {}
    fn data(&mut self, _: &mut Ops, _: usize, _: &[u8]) {}
    fn end_stream(&mut self, _: &mut Ops, _: usize) {}
    fn ping(&mut self, _: &mut Ops) {}
    fn ping_ack(&mut self, _: &mut Ops) {}
    fn body(&mut self, _: &mut Ops, key: usize, sink: &mut Sink) -> Body {
        let left = self.left[key];
        self.left[key] -= sink.put(&BODY[BODY.len() - left..]);
        if self.left[key] == 0 {
            Body::End
        } else {
            Body::More
        }
    }
    fn closed(&mut self, _: usize, _: u32) {
        self.open -= 1;
    }
}

/// HTTP/2: any bytes behind (or without) the preface, in pieces of any size; streams and output stay bounded.
pub fn h2(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let template = Template::new(MAX_STREAMS, MAX_HEADER_BYTES as u32);
    let mut session = Session::server(&template);
    let mut handler = Answering::default();
    let mut sent = 0;
    let preface = if how & 1 == 0 { PREFACE } else { &[] };
    let piece = [1, 9, 100, 1 << 20][usize::from(how >> 1 & 3)];
    let mut answered = 0;
    for chunk in std::iter::once(preface).chain(data.chunks(piece)) {
        if session.receive(chunk, &mut handler).is_err() {
            break;
        }
        for key in answered..handler.left.len() {
            // Streams are numbered by clients in odd numbers; answering one that is not there must do no harm.
            let stream = 2 * key as i32 + 1;
            session
                .ops()
                .respond(stream, key, &[Header::fixed(b":status", b"200")], true);
        }
        answered = handler.left.len();
        if how & 8 != 0 {
            session.ops().reset(1, 8);
        }
        while let Ok(Some(bytes)) = session.pull(&mut handler) {
            sent += bytes.len();
        }
    }
    assert!(
        sent <= 64 * data.len() + (64 << 10),
        "{sent} bytes out for {} in",
        data.len()
    );
    assert!(
        handler.header_bytes <= 4096 * data.len().max(1),
        "headers are blown up without bound"
    );
    let _ = session.finished();
}

#[cfg(test)]
mod tests {
    use crate::fuzzing::replay;

    #[test]
    fn seeds_and_their_mutations_do_no_harm() {
        replay("http1", super::http1);
        replay("grpc", super::grpc);
        replay("peer_frame", super::peer_frame);
        replay("h2", super::h2);
    }
}

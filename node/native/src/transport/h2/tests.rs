//! The wrapper against hand-made frames.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let mut out = len.to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// HPACK without tables: every field a literal.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

fn request() -> Vec<u8> {
    headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a/b"),
        (":authority", "x"),
        ("te", "trailers"),
    ])
}

/// Type, flags, stream and payload of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        out.push((bytes[3], bytes[4], stream, bytes[9..9 + len].to_vec()));
        bytes = &bytes[9 + len..];
    }
    out
}

#[derive(Default)]
struct Recorder {
    log: Vec<String>,
    body: Vec<u8>,
    refuse: bool,
    respond_early: bool,
    later: bool,
}

impl Handler for Recorder {
    fn begin_stream(&mut self, _: &mut Ops, stream_id: i32) -> Option<usize> {
        self.log.push(format!("begin {stream_id}"));
        (!self.refuse).then_some(stream_id as usize * 10)
    }
    fn header(&mut self, key: usize, name: &[u8], value: &[u8]) {
        let (name, value) = (
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value),
        );
        self.log.push(format!("{key} {name}={value}"));
    }
    fn headers_complete(&mut self, ops: &mut Ops, key: usize, end_stream: bool) {
        self.log.push(format!("{key} headers end={end_stream}"));
        if self.respond_early {
            ops.respond(1, key, &[Header::fixed(b":status", b"200")], false);
        }
    }
    fn data(&mut self, _: &mut Ops, key: usize, chunk: &[u8]) {
        self.log
            .push(format!("{key} data {}", String::from_utf8_lossy(chunk)));
    }
    fn end_stream(&mut self, ops: &mut Ops, key: usize) {
        self.log.push(format!("{key} end"));
        ops.respond(
            (key / 10) as i32,
            key,
            &[Header::fixed(b":status", b"200")],
            true,
        );
    }
    fn ping(&mut self, _: &mut Ops) {
        self.log.push("ping".into());
    }
    fn ping_ack(&mut self, _: &mut Ops) {
        self.log.push("ping ack".into());
    }
    fn body(&mut self, ops: &mut Ops, key: usize, sink: &mut Sink) -> Body {
        if self.later {
            return Body::Later;
        }
        let n = sink.put(&self.body);
        self.body.drain(..n);
        if !self.body.is_empty() {
            return Body::More;
        }
        ops.trailers((key / 10) as i32, &[Header::copied(b"grpc-status", b"0")]);
        Body::Trailers
    }
    fn closed(&mut self, key: usize, error_code: u32) {
        self.log.push(format!("{key} closed {error_code}"));
    }
}

struct Fixture {
    session: Session,
    recorder: Recorder,
}

impl Fixture {
    fn new(recorder: Recorder) -> Self {
        let session = Session::server(&Template::new(100, 1000));
        let mut fixture = Fixture { session, recorder };
        fixture.feed(PREFACE).unwrap();
        fixture.feed(&frame(4, 0, 0, &[])).unwrap();
        let kinds: Vec<_> = fixture.drain().iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(kinds, [(4, 0), (4, 1), (8, 0)]); // settings, acknowledgement, window update
        fixture
    }
    fn feed(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.session.receive(bytes, &mut self.recorder)
    }
    fn drain(&mut self) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some(bytes) = self.session.pull(&mut self.recorder).unwrap() {
            out.extend_from_slice(bytes);
        }
        frames(&out)
    }
}

#[test]
fn a_request_and_its_answer() {
    let mut f = Fixture::new(Recorder {
        body: b"hello".to_vec(),
        ..Recorder::default()
    });
    f.feed(&frame(1, 4, 1, &request())).unwrap();
    f.feed(&frame(0, 1, 1, b"body")).unwrap();
    let expected = [
        "begin 1",
        "10 :method=POST",
        "10 :scheme=http",
        "10 :path=/a/b",
        "10 :authority=x",
        "10 te=trailers",
        "10 headers end=false",
        "10 data body",
        "10 end",
    ];
    assert_eq!(f.recorder.log, expected);
    let out = f.drain();
    let shape: Vec<_> = out.iter().map(|f| (f.0, f.1, f.2)).collect();
    assert_eq!(shape, [(1, 4, 1), (0, 0, 1), (1, 5, 1)]); // headers, data, trailers that end the stream
    assert_eq!(out[1].3, b"hello");
    assert_eq!(f.recorder.log.last().unwrap(), "10 closed 0");
}

#[test]
fn a_body_larger_than_a_frame_comes_in_pieces() {
    let mut f = Fixture::new(Recorder {
        body: vec![7; 40_000],
        ..Recorder::default()
    });
    f.feed(&frame(1, 5, 1, &request())).unwrap();
    let out = f.drain();
    let sizes: Vec<_> = out.iter().filter(|f| f.0 == 0).map(|f| f.3.len()).collect();
    assert_eq!(sizes, [16_384, 16_384, 7_232]);
}

#[test]
fn a_parked_body_waits_for_resume() {
    let mut f = Fixture::new(Recorder {
        body: b"x".to_vec(),
        later: true,
        ..Recorder::default()
    });
    f.feed(&frame(1, 5, 1, &request())).unwrap();
    assert_eq!(f.drain().len(), 1); // headers only
    assert!(f.drain().is_empty());
    f.recorder.later = false;
    assert!(f.drain().is_empty());
    f.session.ops().resume(1);
    assert_eq!(f.drain().len(), 2);
    f.session.ops().resume(1); // gone: ignored
    assert!(f.drain().is_empty());
}

#[test]
fn a_refused_stream_is_reset() {
    let mut f = Fixture::new(Recorder {
        refuse: true,
        ..Recorder::default()
    });
    f.feed(&frame(1, 5, 1, &request())).unwrap();
    assert_eq!(
        f.drain(),
        [(3, 0, 1, code::REFUSED_STREAM.to_be_bytes().to_vec())]
    );
    assert_eq!(f.recorder.log, ["begin 1"]);
}

#[test]
fn an_early_answer_tells_the_client_to_stop() {
    let mut f = Fixture::new(Recorder {
        respond_early: true,
        ..Recorder::default()
    });
    f.feed(&frame(1, 4, 1, &request())).unwrap();
    let shape: Vec<_> = f.drain().iter().map(|f| (f.0, f.1, f.2)).collect();
    assert_eq!(shape, [(1, 5, 1), (3, 0, 1)]);
    f.feed(&frame(0, 1, 1, b"late")).unwrap();
    assert_eq!(f.recorder.log.last().unwrap(), "10 closed 0");
}

#[test]
fn pings_are_answered_and_reported() {
    let mut f = Fixture::new(Recorder::default());
    f.feed(&frame(6, 0, 0, b"12345678")).unwrap();
    assert_eq!(f.drain(), [(6, 1, 0, b"12345678".to_vec())]);
    f.session.ops().shutdown_notice();
    let shape: Vec<_> = f.drain().iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(shape, [(6, 0), (7, 0)]);
    f.feed(&frame(6, 1, 0, &[0; 8])).unwrap();
    assert_eq!(f.recorder.log, ["ping", "ping ack"]);
}

#[test]
fn broken_frames_end_the_session_with_goaway() {
    for bad in [
        frame(0, 0, 1, b"data on an idle stream"),
        frame(9, 0, 1, b"continuation of nothing"),
        frame(8, 0, 0, &[0; 4]),
        frame(1, 4, 1, &[0xff; 20]),
        frame(6, 0, 0, b"short"),
    ] {
        let mut f = Fixture::new(Recorder::default());
        f.feed(&bad).unwrap();
        assert_eq!(f.drain().last().unwrap().0, 7, "{bad:?}");
        assert!(f.session.finished());
    }
    let mut session = Session::server(&Template::new(100, 1000));
    assert!(session
        .receive(b"GET / HTTP/1.1\r\n\r\n", &mut Recorder::default())
        .is_err());
}

#[test]
fn every_truncation_is_survived() {
    let mut whole = PREFACE.to_vec();
    whole.extend(frame(4, 0, 0, &[]));
    whole.extend(frame(1, 4, 1, &request()));
    whole.extend(frame(0, 1, 1, b"body"));
    for n in 0..whole.len() {
        let mut session = Session::server(&Template::new(100, 1000));
        let mut recorder = Recorder::default();
        session.receive(&whole[..n], &mut recorder).unwrap();
        while session.pull(&mut recorder).unwrap().is_some() {}
        assert!(!recorder.log.iter().any(|line| line == "10 end"));
        drop(session); // with a stream open, perhaps
    }
}

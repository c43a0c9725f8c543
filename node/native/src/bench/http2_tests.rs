use super::*;

fn encoded(text: &str) -> String {
    percent_decoded(text)
}

#[test]
fn messages_of_statuses_are_decoded_and_damage_is_left_as_it_is() {
    assert_eq!(encoded("a%20b%3A%25"), "a b:%");
    assert_eq!(encoded("100% sure %zz %4"), "100% sure %zz %4");
    assert_eq!(encoded("%c3%a9"), "é");
}

#[test]
fn padding_is_taken_off_and_too_much_of_it_is_an_error() {
    assert_eq!(
        unpadded(FLAG_PADDED, &[2, b'a', b'b', 0, 0]).unwrap(),
        b"ab"
    );
    assert_eq!(unpadded(0, b"ab").unwrap(), b"ab");
    assert!(unpadded(FLAG_PADDED, &[3, b'a', b'b']).is_err());
    assert!(unpadded(FLAG_PADDED, &[]).is_err());
}

/// A connection whose other side is held open, so that writes go nowhere.
fn connection(authority: &str) -> (std::net::TcpListener, Connection) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = mio::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let paths = ["/a/B".to_owned(), "/c/D".to_owned()];
    let connection = Connection::new(Sock::new(tcp, None), false, authority, &paths);
    (listener, connection)
}

#[derive(Default)]
struct Seen {
    data: Vec<(u32, Vec<u8>)>,
    ended: Vec<(u32, u32)>,
}

impl Receiver for Seen {
    fn data(&mut self, stream_id: u32, chunk: &[u8]) {
        self.data.push((stream_id, chunk.to_vec()));
    }
    fn ended(&mut self, stream_id: u32, status: Status) {
        self.ended.push((stream_id, status.code));
    }
}

/// Header blocks are checked with the decoder of the server's side.
#[test]
fn every_request_means_the_same_headers_whatever_came_before_it() {
    let authority = format!("{}:2379", "h".repeat(200));
    let (_listener, mut connection) = connection(&authority);
    let mut inflater = Inflater::new();
    for method in [0, 0, 1, 0, 1, 1] {
        let block = connection.header_block(method);
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        inflater
            .block(&block, |name, value| fields.push((text(name), text(value))))
            .unwrap();
        let want = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", ["/a/B", "/c/D"][method]),
            (":authority", authority.as_str()),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        assert_eq!(
            fields,
            want.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}

fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream_id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn trailers_end_a_call_with_their_status_however_the_bytes_are_cut() {
    let literal = |value: &str| {
        let mut block = vec![0x40, 11];
        block.extend_from_slice(b"grpc-status");
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
        block
    };
    let mut bytes = frame(FRAME_SETTINGS, 0, 0, &[]);
    bytes.extend(frame(FRAME_HEADERS, FLAG_END_HEADERS, 1, &[0x88]));
    bytes.extend(frame(FRAME_DATA, 0, 1, b"answer"));
    let end = FLAG_END_HEADERS | FLAG_END_STREAM;
    bytes.extend(frame(FRAME_HEADERS, end, 1, &literal("0")));
    bytes.extend(frame(FRAME_HEADERS, end, 3, &[0xbe])); // the same by reference
    let block = literal("5");
    bytes.extend(frame(FRAME_HEADERS, FLAG_END_STREAM, 5, &block[..4]));
    bytes.extend(frame(FRAME_CONTINUATION, FLAG_END_HEADERS, 5, &block[4..]));
    bytes.extend(frame(FRAME_HEADERS, end, 7, &[0xbe])); // now it means the newer one
    bytes.extend(frame(FRAME_HEADERS, end, 9, &[0xbf]));
    for cut in 1..bytes.len() {
        let (_listener, mut connection) = connection("a:1");
        let mut seen = Seen::default();
        for part in bytes.chunks(cut) {
            connection.parse(part, &mut seen).unwrap();
        }
        assert_eq!(seen.ended, [(1, 0), (3, 0), (5, 5), (7, 5), (9, 0)]);
        assert_eq!(seen.data, [(1, b"answer".to_vec())]);
        assert!(connection.takes_calls());
    }
}

#[test]
fn a_body_larger_than_the_window_goes_out_as_the_server_allows() {
    let (_listener, mut connection) = connection("a:1");
    let mut seen = Seen::default();
    let before = connection.sock.pending();
    connection.request(0, &vec![7; 200_000]);
    let sent = connection.sock.pending() - before;
    assert!(
        (65_535..67_000).contains(&sent),
        "{sent}: one window and its frames"
    );
    let room = 300_000_u32.to_be_bytes();
    connection
        .parse(&frame(FRAME_WINDOW_UPDATE, 0, 0, &room), &mut seen)
        .unwrap();
    assert_eq!(
        connection.sock.pending() - before,
        sent,
        "the stream's own window is full"
    );
    connection
        .parse(&frame(FRAME_WINDOW_UPDATE, 0, 1, &room), &mut seen)
        .unwrap();
    assert!(connection.sock.pending() - before > 200_000);
    assert!(connection.held.is_empty());
}

#[test]
fn a_server_that_sends_nonsense_is_refused_without_a_panic() {
    let mut state = 7_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3_000 {
        let (_listener, mut connection) = connection("a:1");
        connection.request(0, b"body");
        connection.open(1, &[b"more".to_vec()]);
        let mut seen = Seen::default();
        for _ in 0..10 {
            let payload: Vec<u8> = (0..random() % 40).map(|_| random() as u8).collect();
            let bytes = frame(
                (random() % 11) as u8,
                random() as u8,
                (random() % 6) as u32,
                &payload,
            );
            if connection.parse(&bytes, &mut seen).is_err() {
                break;
            }
        }
    }
}

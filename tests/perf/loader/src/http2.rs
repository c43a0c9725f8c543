//! The client half of HTTP/2 that a load generator needs, and no more.
//!
//! Requests are written with a header block that the peer's HPACK table has after the first request, so that a request
//! costs its body and about twenty bytes. Of responses only the frame headers are read: a unary gRPC call that carries
//! a DATA frame before its trailers has succeeded (a failure is a trailers-only response), which spares HPACK decoding.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_RST_STREAM: u8 = 3;
const FRAME_SETTINGS: u8 = 4;
const FRAME_PING: u8 = 6;
const FRAME_GOAWAY: u8 = 7;
const FRAME_WINDOW_UPDATE: u8 = 8;
const FLAG_ACK: u8 = 1;
const FLAG_END_STREAM: u8 = 1;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Received bytes after which the connection's window is given back.
const WINDOW_REFILL_BYTES: u32 = 1 << 20;

/// What became of one call.
pub struct Finished {
    pub stream_id: u32,
    pub ok: bool,
}

pub struct Connection {
    pub socket: TcpStream,
    authority: String,
    path: String,
    input: Vec<u8>,
    output: Vec<u8>,
    next_stream_id: u32,
    /// Streams that have carried a DATA frame: indexed by stream id / 2 modulo the capacity.
    with_data: Vec<bool>,
    send_window_bytes: i64,
    received_bytes: u32,
    first_request: bool,
}

impl Connection {
    pub fn new(socket: TcpStream, authority: &str, path: &str) -> Self {
        let mut connection = Self {
            socket,
            authority: authority.to_owned(),
            path: path.to_owned(),
            input: Vec::with_capacity(1 << 16),
            output: Vec::with_capacity(1 << 16),
            next_stream_id: 1,
            with_data: vec![false; 4096],
            send_window_bytes: 65_535,
            received_bytes: 0,
            first_request: true,
        };
        connection.output.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut settings = Vec::new();
        settings.extend_from_slice(&4u16.to_be_bytes()); // SETTINGS_INITIAL_WINDOW_SIZE
        settings.extend_from_slice(&WINDOW_MAX.to_be_bytes());
        connection.frame(FRAME_SETTINGS, 0, 0, &settings);
        connection.frame(FRAME_WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes());
        connection
    }

    fn frame(&mut self, kind: u8, flags: u8, stream_id: u32, payload: &[u8]) {
        self.output
            .extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.output.push(kind);
        self.output.push(flags);
        self.output.extend_from_slice(&stream_id.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    fn header_block(&mut self) -> Vec<u8> {
        let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
        if self.first_request {
            self.first_request = false;
            let literal = |block: &mut Vec<u8>, name: &[u8], value: &str| {
                block.extend_from_slice(name);
                block.push(u8::try_from(value.len()).expect("short header"));
                block.extend_from_slice(value.as_bytes());
            };
            literal(&mut block, &[0x44], &self.path);
            literal(&mut block, &[0x41], &self.authority);
            literal(&mut block, &[0x5f], "application/grpc");
            literal(&mut block, &[0x40, 2, b't', b'e'], "trailers");
        } else {
            block.extend_from_slice(&[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        }
        block
    }

    /// Whether one more request of this size fits the peer's connection window.
    pub fn has_room(&self, message_bytes: usize) -> bool {
        self.send_window_bytes >= message_bytes as i64 + 5
    }

    /// Queues one unary call; returns its stream id.
    pub fn request(&mut self, message: &[u8]) -> u32 {
        let stream_id = self.next_stream_id;
        self.next_stream_id += 2;
        let block = self.header_block();
        self.frame(FRAME_HEADERS, 0x4, stream_id, &block);
        let length = message.len() + 5;
        self.output.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.output.extend_from_slice(&[FRAME_DATA, FLAG_END_STREAM]);
        self.output.extend_from_slice(&stream_id.to_be_bytes());
        self.output.push(0);
        self.output.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.output.extend_from_slice(message);
        self.send_window_bytes -= length as i64;
        let slot = self.slot(stream_id);
        self.with_data[slot] = false;
        stream_id
    }

    fn slot(&self, stream_id: u32) -> usize {
        (stream_id / 2) as usize % self.with_data.len()
    }

    /// Writes what is queued, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.socket.write(&self.output[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.output.drain(..written);
        Ok(())
    }

    /// Reads all that has arrived and appends the calls that ended to `finished`.
    pub fn receive(&mut self, scratch: &mut [u8], finished: &mut Vec<Finished>) -> io::Result<()> {
        loop {
            match self.socket.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.input.extend_from_slice(&scratch[..n]);
                    if n < scratch.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.parse(finished)
    }

    fn parse(&mut self, finished: &mut Vec<Finished>) -> io::Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while input.len() - at >= 9 {
            let length = u32::from_be_bytes([0, input[at], input[at + 1], input[at + 2]]) as usize;
            if input.len() - at < 9 + length {
                break;
            }
            let (kind, flags) = (input[at + 3], input[at + 4]);
            let stream_id = u32::from_be_bytes([input[at + 5] & 0x7f, input[at + 6], input[at + 7], input[at + 8]]);
            self.on_frame(kind, flags, stream_id, &input[at + 9..at + 9 + length], finished)?;
            at += 9 + length;
        }
        self.input = input;
        self.input.drain(..at);
        if self.received_bytes >= WINDOW_REFILL_BYTES {
            let refill = self.received_bytes.to_be_bytes();
            self.frame(FRAME_WINDOW_UPDATE, 0, 0, &refill);
            self.received_bytes = 0;
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream_id: u32,
        payload: &[u8],
        finished: &mut Vec<Finished>,
    ) -> io::Result<()> {
        match kind {
            FRAME_DATA => {
                self.received_bytes += payload.len() as u32;
                let slot = self.slot(stream_id);
                self.with_data[slot] |= payload.len() > 5;
            }
            FRAME_HEADERS if flags & FLAG_END_STREAM != 0 => {
                let ok = self.with_data[self.slot(stream_id)];
                finished.push(Finished { stream_id, ok });
            }
            FRAME_RST_STREAM => finished.push(Finished { stream_id, ok: false }),
            FRAME_SETTINGS if flags & FLAG_ACK == 0 => self.frame(FRAME_SETTINGS, FLAG_ACK, 0, &[]),
            FRAME_PING if flags & FLAG_ACK == 0 => self.frame(FRAME_PING, FLAG_ACK, 0, payload),
            FRAME_GOAWAY => return Err(io::Error::other("the server sent GOAWAY")),
            FRAME_WINDOW_UPDATE if stream_id == 0 && payload.len() == 4 => {
                let increment = u32::from_be_bytes([payload[0] & 0x7f, payload[1], payload[2], payload[3]]);
                self.send_window_bytes += i64::from(increment);
            }
            _ => {}
        }
        Ok(())
    }
}

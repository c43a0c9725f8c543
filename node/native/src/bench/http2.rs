//! The client half of HTTP/2 that a load generator needs, and no more.
//!
//! Framing is done by hand, so that a call costs its body and about twenty bytes to write and two frame headers to read:
//! on a small machine the generator shares the processors with what it measures. Header blocks are decoded by nghttp2,
//! except those that say nothing new: a block of indexed fields leaves the decoder's table as it is, so a response's
//! first block is skipped, and trailers that were seen before mean what they meant then.

use crate::transport::h2::hpack::Inflater;
use crate::transport::sock::{Got, Sock};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_RST_STREAM: u8 = 3;
const FRAME_SETTINGS: u8 = 4;
const FRAME_PING: u8 = 6;
const FRAME_GOAWAY: u8 = 7;
const FRAME_WINDOW_UPDATE: u8 = 8;
const FRAME_CONTINUATION: u8 = 9;
const FLAG_ACK: u8 = 1;
const FLAG_END_STREAM: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;
const FLAG_PADDED: u8 = 8;
const FLAG_PRIORITY: u8 = 0x20;
const SETTING_HEADER_TABLE_SIZE: u16 = 1;
const SETTING_MAX_CONCURRENT_STREAMS: u16 = 3;
const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;
const ERROR_CANCEL: u32 = 8;
const DEFAULT_WINDOW_BYTES: u32 = 65_535;
const WINDOW_MAX_BYTES: u32 = (1 << 31) - 1;
/// Received bytes after which a window is given back.
const WINDOW_REFILL_BYTES: u32 = 1 << 20;
const MAX_FRAME_BYTES: usize = 16_384;
const MAX_BLOCK_BYTES: usize = 1 << 20;
/// The least decoder table that holds what we put into it.
const MIN_TABLE_BYTES: u32 = 2_048;
/// A connection reads at most this much before others get their turn.
const READ_BUDGET_BYTES: usize = 512 << 10;
/// Stream ids end at 2^31; a connection that comes near is replaced.
const LAST_STREAM_ID: u32 = (1 << 31) - 3;

pub const CODE_OK: u32 = 0;
pub const CODE_UNKNOWN: u32 = 2;
pub const CODE_INTERNAL: u32 = 13;
pub const CODE_UNAVAILABLE: u32 = 14;

/// How a call ended: a gRPC status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub message: String,
}

/// Who is told of what arrives.
pub trait Receiver {
    fn data(&mut self, stream_id: u32, chunk: &[u8]);
    fn ended(&mut self, stream_id: u32, status: Status);
}

/// What a call still has to send when a window is full.
struct Held {
    stream_id: u32,
    bytes: Vec<u8>,
    at: usize,
    window: i64,
    end_stream: bool,
}

pub struct Connection {
    pub sock: Sock,
    secure: bool,
    authority: String,
    input: Vec<u8>,
    frame: Vec<u8>,
    next_stream_id: u32,
    inflater: Inflater,
    /// A header block in parts: stream, END_STREAM, bytes.
    partial: Option<(u32, bool, Vec<u8>)>,
    /// The last trailers of indexed fields only.
    known: Option<(Vec<u8>, Status)>,
    /// What we have put into the server's table, in order: each method's path, then the rest.
    paths: Vec<(String, Option<usize>)>,
    inserted: usize,
    common_at: Option<usize>,
    send_window: i64,
    stream_window: i64,
    pub max_streams: usize,
    held: VecDeque<Held>,
    received: u32,
    /// Streams that stay open, and what they received since their window was last given back.
    long: HashMap<u32, u32>,
    /// The server has spoken HTTP/2 to us.
    pub established: bool,
    going_away: bool,
}

impl Connection {
    pub fn new(sock: Sock, secure: bool, authority: &str, paths: &[String]) -> Self {
        let mut connection = Connection {
            sock,
            secure,
            authority: authority.to_owned(),
            input: Vec::new(),
            frame: Vec::with_capacity(1 << 10),
            next_stream_id: 1,
            inflater: Inflater::new(),
            partial: None,
            known: None,
            paths: paths.iter().map(|path| (path.clone(), None)).collect(),
            inserted: 0,
            common_at: None,
            send_window: DEFAULT_WINDOW_BYTES.into(),
            stream_window: DEFAULT_WINDOW_BYTES.into(),
            max_streams: usize::MAX,
            held: VecDeque::new(),
            received: 0,
            long: HashMap::new(),
            established: false,
            going_away: false,
        };
        connection.sock.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut settings = SETTING_INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend_from_slice(&WINDOW_MAX_BYTES.to_be_bytes());
        connection.send_frame(FRAME_SETTINGS, 0, 0, &settings);
        let update = (WINDOW_MAX_BYTES - DEFAULT_WINDOW_BYTES).to_be_bytes();
        connection.send_frame(FRAME_WINDOW_UPDATE, 0, 0, &update);
        connection
    }

    fn begin_frame(&mut self, kind: u8, flags: u8, stream_id: u32, length: usize) {
        self.frame.clear();
        self.frame
            .extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.frame.extend_from_slice(&[kind, flags]);
        self.frame.extend_from_slice(&stream_id.to_be_bytes());
    }

    fn send_frame(&mut self, kind: u8, flags: u8, stream_id: u32, payload: &[u8]) {
        self.begin_frame(kind, flags, stream_id, payload.len());
        self.frame.extend_from_slice(payload);
        self.sock.send(&self.frame);
    }

    /// The index under which the server finds the entry that we inserted as number `at`.
    fn index(&self, at: usize) -> u8 {
        u8::try_from(0x80 | (61 + self.inserted - at)).expect("a table of a few entries")
    }

    fn header_block(&mut self, method: usize) -> Vec<u8> {
        let mut block = vec![0x83, if self.secure { 0x87 } else { 0x86 }]; // :method POST, :scheme
        let mut insert = |block: &mut Vec<u8>, name: &[u8], value: &str| {
            block.extend_from_slice(name);
            put_length(block, value.len());
            block.extend_from_slice(value.as_bytes());
            self.inserted += 1;
            self.inserted - 1
        };
        if self.paths[method].1.is_none() {
            let path = self.paths[method].0.clone();
            self.paths[method].1 = Some(insert(&mut block, &[0x44], &path));
        } else {
            block.push(0);
        }
        if self.common_at.is_none() {
            let authority = self.authority.clone();
            self.common_at = Some(insert(&mut block, &[0x41], &authority));
            insert(&mut block, &[0x5f], "application/grpc");
            insert(&mut block, &[0x40, 2, b't', b'e'], "trailers");
            return block;
        }
        // An index counts from the newest entry, so it is known only now.
        let path_at = self.paths[method].1.expect("inserted above");
        if block[2] == 0 {
            block[2] = self.index(path_at);
        }
        let common = self.common_at.expect("inserted with the first request");
        for at in common..common + 3 {
            let index = self.index(at);
            block.push(index);
        }
        block
    }

    /// Whether new calls may be sent: the server has spoken, has not said goodbye, and stream ids have not run out.
    pub fn takes_calls(&self) -> bool {
        self.established && !self.going_away && self.next_stream_id < LAST_STREAM_ID
    }

    fn begin(&mut self, method: usize) -> u32 {
        let stream_id = self.next_stream_id;
        self.next_stream_id += 2;
        let block = self.header_block(method);
        self.send_frame(FRAME_HEADERS, FLAG_END_HEADERS, stream_id, &block);
        stream_id
    }

    /// Queues a unary call; its stream id.
    pub fn request(&mut self, method: usize, message: &[u8]) -> u32 {
        let stream_id = self.begin(method);
        let length = message.len() + 5;
        let fits = length <= MAX_FRAME_BYTES
            && (length as i64) <= self.send_window.min(self.stream_window);
        if fits && self.held.is_empty() {
            self.begin_frame(FRAME_DATA, FLAG_END_STREAM, stream_id, length);
            self.frame.push(0);
            self.frame
                .extend_from_slice(&(message.len() as u32).to_be_bytes());
            self.frame.extend_from_slice(message);
            self.sock.send(&self.frame);
            self.send_window -= length as i64;
        } else {
            self.hold(stream_id, prefixed(message), true);
        }
        stream_id
    }

    /// Queues a call that stays open for more responses; its stream id.
    pub fn open(&mut self, method: usize, messages: &[Vec<u8>]) -> u32 {
        let stream_id = self.begin(method);
        self.long.insert(stream_id, 0);
        let bytes = messages.iter().flat_map(|m| prefixed(m)).collect();
        self.hold(stream_id, bytes, false);
        stream_id
    }

    /// Gives up on a call.
    pub fn reset(&mut self, stream_id: u32) {
        self.held.retain(|held| held.stream_id != stream_id);
        self.long.remove(&stream_id);
        self.send_frame(FRAME_RST_STREAM, 0, stream_id, &ERROR_CANCEL.to_be_bytes());
    }

    fn hold(&mut self, stream_id: u32, bytes: Vec<u8>, end_stream: bool) {
        self.held.push_back(Held {
            stream_id,
            bytes,
            at: 0,
            window: self.stream_window,
            end_stream,
        });
        self.send_held();
    }

    fn send_held(&mut self) {
        let mut waiting = std::mem::take(&mut self.held);
        waiting.retain_mut(|held| {
            while held.at < held.bytes.len() {
                let room = self.send_window.min(held.window).max(0) as usize;
                let size = room.min(MAX_FRAME_BYTES).min(held.bytes.len() - held.at);
                if size == 0 {
                    return true;
                }
                let chunk = &held.bytes[held.at..held.at + size];
                let last = held.at + size == held.bytes.len();
                let flags = if last && held.end_stream {
                    FLAG_END_STREAM
                } else {
                    0
                };
                self.send_frame(FRAME_DATA, flags, held.stream_id, chunk);
                held.at += size;
                held.window -= size as i64;
                self.send_window -= size as i64;
            }
            false
        });
        self.held = waiting;
    }

    /// Reads what has arrived, within a budget; true when there may be more.
    pub fn receive(&mut self, scratch: &mut [u8], to: &mut impl Receiver) -> io::Result<bool> {
        let mut taken = 0;
        while taken < READ_BUDGET_BYTES {
            match self.sock.read(scratch)? {
                Got::Nothing => return Ok(false),
                Got::End => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "closed by the server",
                    ))
                }
                Got::Bytes(n) => {
                    taken += n;
                    self.parse(&scratch[..n], to)?;
                }
            }
        }
        Ok(true)
    }

    fn parse(&mut self, bytes: &[u8], to: &mut impl Receiver) -> io::Result<()> {
        if self.input.is_empty() {
            let used = self.frames(bytes, to)?;
            self.input.extend_from_slice(&bytes[used..]);
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(bytes);
            let used = self.frames(&input, to)?;
            input.drain(..used);
            self.input = input;
        }
        if self.received >= WINDOW_REFILL_BYTES {
            let refill = self.received.to_be_bytes();
            self.send_frame(FRAME_WINDOW_UPDATE, 0, 0, &refill);
            self.received = 0;
        }
        Ok(())
    }

    fn frames(&mut self, input: &[u8], to: &mut impl Receiver) -> io::Result<usize> {
        let mut at = 0;
        while input.len() - at >= 9 {
            let head = &input[at..at + 9];
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if length > MAX_FRAME_BYTES {
                return Err(io::Error::other(
                    "the server's first bytes are not HTTP/2, or a frame is too large",
                ));
            }
            if input.len() - at < 9 + length {
                break;
            }
            let stream_id = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            let payload = &input[at + 9..at + 9 + length];
            self.on_frame(head[3], head[4], stream_id, payload, to)?;
            at += 9 + length;
        }
        Ok(at)
    }

    fn on_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream_id: u32,
        payload: &[u8],
        to: &mut impl Receiver,
    ) -> io::Result<()> {
        match kind {
            FRAME_DATA => {
                self.received += payload.len() as u32;
                self.count_long(stream_id, payload.len() as u32);
                to.data(stream_id, unpadded(flags, payload)?);
                if flags & FLAG_END_STREAM != 0 {
                    to.ended(stream_id, status(CODE_INTERNAL, "no trailers"));
                }
            }
            FRAME_HEADERS => {
                let mut block = unpadded(flags, payload)?;
                if flags & FLAG_PRIORITY != 0 {
                    block = block.get(5..).ok_or_else(bad_frame)?;
                }
                let end_stream = flags & FLAG_END_STREAM != 0;
                if flags & FLAG_END_HEADERS == 0 {
                    self.partial = Some((stream_id, end_stream, block.to_vec()));
                } else {
                    self.on_block(stream_id, end_stream, block, to)?;
                }
            }
            FRAME_CONTINUATION => {
                let (id, end_stream, mut block) = self.partial.take().ok_or_else(bad_frame)?;
                block.extend_from_slice(payload);
                if block.len() > MAX_BLOCK_BYTES || id != stream_id {
                    return Err(bad_frame());
                }
                if flags & FLAG_END_HEADERS == 0 {
                    self.partial = Some((id, end_stream, block));
                } else {
                    self.on_block(id, end_stream, &block, to)?;
                }
            }
            FRAME_RST_STREAM => {
                let code = payload
                    .try_into()
                    .map(u32::from_be_bytes)
                    .map_err(|_| bad_frame())?;
                self.over(stream_id);
                to.ended(
                    stream_id,
                    status(CODE_UNAVAILABLE, &format!("stream reset with code {code}")),
                );
            }
            FRAME_SETTINGS if flags & FLAG_ACK == 0 => self.on_settings(payload)?,
            FRAME_PING if flags & FLAG_ACK == 0 => {
                self.send_frame(FRAME_PING, FLAG_ACK, 0, payload)
            }
            FRAME_GOAWAY => self.going_away = true,
            FRAME_WINDOW_UPDATE => {
                let increment: [u8; 4] = payload.try_into().map_err(|_| bad_frame())?;
                let increment = i64::from(u32::from_be_bytes(increment) & WINDOW_MAX_BYTES);
                if stream_id == 0 {
                    self.send_window += increment;
                } else if let Some(held) = self.held.iter_mut().find(|h| h.stream_id == stream_id) {
                    held.window += increment;
                }
                self.send_held();
            }
            _ => {}
        }
        Ok(())
    }

    fn on_settings(&mut self, payload: &[u8]) -> io::Result<()> {
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([setting[0], setting[1]]);
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match id {
                SETTING_HEADER_TABLE_SIZE if value < MIN_TABLE_BYTES => {
                    return Err(io::Error::other(format!(
                        "a server with a header table of {value} bytes"
                    )));
                }
                SETTING_MAX_CONCURRENT_STREAMS => self.max_streams = value as usize,
                SETTING_INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = value.into();
                    self.held.iter_mut().for_each(|held| held.window += change);
                }
                _ => {}
            }
        }
        self.established = true;
        self.send_frame(FRAME_SETTINGS, FLAG_ACK, 0, &[]);
        self.send_held();
        Ok(())
    }

    fn count_long(&mut self, stream_id: u32, bytes: u32) {
        if self.long.is_empty() {
            return;
        }
        let Some(received) = self.long.get_mut(&stream_id) else {
            return;
        };
        *received += bytes;
        if *received >= WINDOW_REFILL_BYTES {
            let refill = std::mem::take(received).to_be_bytes();
            self.send_frame(FRAME_WINDOW_UPDATE, 0, stream_id, &refill);
        }
    }

    /// A stream has ended: nothing more is sent on it.
    fn over(&mut self, stream_id: u32) {
        self.long.remove(&stream_id);
        if !self.held.is_empty() {
            self.held.retain(|held| held.stream_id != stream_id);
        }
    }

    fn on_block(
        &mut self,
        stream_id: u32,
        end_stream: bool,
        block: &[u8],
        to: &mut impl Receiver,
    ) -> io::Result<()> {
        // One byte each, and all of them references: the table stays as it is.
        let indexed = block.iter().all(|byte| (0x81..0xff).contains(byte));
        if indexed && !end_stream {
            return Ok(());
        }
        let status = match &self.known {
            Some((known, status)) if indexed && known == block => status.clone(),
            _ => {
                let status = self.decode(block)?;
                self.known = indexed.then(|| (block.to_vec(), status.clone()));
                status
            }
        };
        if end_stream {
            self.over(stream_id);
            to.ended(stream_id, status);
        }
        Ok(())
    }

    fn decode(&mut self, block: &[u8]) -> io::Result<Status> {
        let (mut code, mut message, mut http) = (None, String::new(), String::new());
        let decoded = self.inflater.block(block, |name, value| {
            let text = String::from_utf8_lossy(value);
            match name {
                b"grpc-status" => code = text.parse().ok(),
                b"grpc-message" => message = percent_decoded(&text),
                b":status" => http = text.into_owned(),
                _ => {}
            }
        });
        decoded.map_err(|_| io::Error::other("a header block that cannot be decoded"))?;
        Ok(match code {
            Some(code) => Status { code, message },
            None => status(CODE_UNKNOWN, &format!("no gRPC status; HTTP status {http}")),
        })
    }
}

pub fn status(code: u32, message: &str) -> Status {
    Status {
        code,
        message: message.to_owned(),
    }
}

/// A string's length (RFC 7541, section 5.1, with a prefix of seven bits; not Huffman-coded).
fn put_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return block.push(length as u8);
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn bad_frame() -> io::Error {
    io::Error::other("a malformed HTTP/2 frame")
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.len() + 5);
    bytes.push(0);
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

fn unpadded(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    if flags & FLAG_PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or_else(bad_frame)?;
    let length = rest.len().checked_sub(usize::from(*padding));
    length.map(|length| &rest[..length]).ok_or_else(bad_frame)
}

/// gRPC writes a message's unusual bytes as %XX.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;

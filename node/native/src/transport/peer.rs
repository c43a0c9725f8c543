//! Peer links: long-lived TCP (or TLS) connections that carry opaque frames both ways.
//!
//! On the wire (integers little-endian):
//!
//! ```text
//! preface  8 bytes   "RKVLINK" and the version, 1
//! frame    4 bytes   length n of the payload
//!          4 bytes   CRC32C of the four length bytes and the payload
//!          n bytes   payload
//! ```
//!
//! The side that connects sends the preface and one frame, its hello. The other side answers with the preface and one
//! frame whose first byte is 1 (accepted) or 0 (rejected), followed by the reply or the reason; a rejected connection is
//! then closed. After that, frames flow both ways. Anything else (another preface, a wrong checksum, a frame over the
//! bound) closes the connection: the checksum guards against broken middle boxes and memory, not against attackers, for
//! whom there is TLS.
//!
//! A link survives its connections: the connecting side tries again, with exponential back-off and jitter, until it is
//! told to stop. Frames queued when a connection ends are dropped, never sent on the next one.

use super::serve::World;
use super::shared::{add, lock, Arena, Event, LinkGauge, Message};
use super::sock::{Got, Sock};
use super::wheel::Timer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const VERSION: u8 = 1;
const PREFACE: [u8; 8] = [b'R', b'K', b'V', b'L', b'I', b'N', b'K', VERSION];
const HEAD_BYTES: usize = 8;
/// A hello, or the answer to it, is at most this large.
pub const MAX_HELLO_BYTES: usize = 64 << 10;
const READ_BUDGET_BYTES: usize = 1 << 20;
/// A peer that does not acknowledge what was sent is given up after this long.
pub const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Appends a frame to `out`.
pub fn write_frame(out: &mut Vec<u8>, payload: &[&[u8]]) {
    let len = payload.iter().map(|p| p.len()).sum::<usize>() as u32;
    let crc = payload
        .iter()
        .fold(crc32c::crc32c(&len.to_le_bytes()), |crc, p| {
            crc32c::crc32c_append(crc, p)
        });
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    payload.iter().for_each(|p| out.extend_from_slice(p));
}

#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Incomplete,
    /// The payload; the frame took HEAD_BYTES more.
    Complete(&'a [u8]),
    TooLarge,
    Corrupt,
}

/// Reads the frame at the front of `buf`.
pub fn read_frame(buf: &[u8], max_bytes: usize) -> Frame<'_> {
    let Some((head, rest)) = buf.split_first_chunk::<HEAD_BYTES>() else {
        return Frame::Incomplete;
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let len_bytes = [l0, l1, l2, l3];
    let len = u32::from_le_bytes(len_bytes) as usize;
    if len > max_bytes {
        return Frame::TooLarge;
    }
    let Some(payload) = rest.get(..len) else {
        return Frame::Incomplete;
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len_bytes), payload);
    if crc == u32::from_le_bytes([c0, c1, c2, c3]) {
        Frame::Complete(payload)
    } else {
        Frame::Corrupt
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// TCP is connecting.
    Connecting,
    /// Waiting for the other side's preface and first frame.
    Greeting,
    /// Waiting for Python's word on an inbound hello.
    Deciding,
    Open,
    /// Close once everything is written.
    Closing,
}

/// One connection of a link.
pub struct Peer {
    pub serial: u64,
    pub link: u64,
    pub outbound: bool,
    remote: SocketAddr,
    sock: Sock,
    stage: Stage,
    buf: Vec<u8>,
    greeted: bool,
    gauge: Arc<LinkGauge>,
    /// Bytes handed to the socket that the gauge still counts.
    counted: usize,
    deadline: Option<Instant>,
    /// Python knows of it (inbound), or was told that it is up (outbound).
    pub announced: bool,
}

impl Peer {
    /// A connection that was accepted.
    pub fn inbound(
        token: usize,
        serial: u64,
        link: u64,
        sock: Sock,
        remote: SocketAddr,
        w: &mut World,
    ) -> Self {
        let gauge = Arc::new(LinkGauge::default());
        Self::new(token, serial, link, sock, remote, gauge, None, w)
    }

    /// A connection that is being made, with what it will say first.
    #[allow(clippy::too_many_arguments)]
    pub fn outbound(
        token: usize,
        serial: u64,
        link: u64,
        sock: Sock,
        remote: SocketAddr,
        gauge: Arc<LinkGauge>,
        hello: &[u8],
        w: &mut World,
    ) -> Self {
        Self::new(token, serial, link, sock, remote, gauge, Some(hello), w)
    }

    #[allow(clippy::too_many_arguments)]
    fn new(
        token: usize,
        serial: u64,
        link: u64,
        mut sock: Sock,
        remote: SocketAddr,
        gauge: Arc<LinkGauge>,
        hello: Option<&[u8]>,
        w: &mut World,
    ) -> Self {
        if let Some(hello) = hello {
            let mut out = PREFACE.to_vec();
            write_frame(&mut out, &[hello]);
            sock.send(&out);
        }
        let deadline = w.now + w.shared.config.handshake_timeout;
        w.wheel.set(deadline, Timer::Connection { token, serial });
        Peer {
            serial,
            link,
            outbound: hello.is_some(),
            remote,
            sock,
            stage: if hello.is_some() {
                Stage::Connecting
            } else {
                Stage::Greeting
            },
            buf: Vec::new(),
            greeted: false,
            gauge,
            counted: 0,
            deadline: Some(deadline),
            announced: false,
        }
    }

    pub fn source(&mut self) -> &mut mio::net::TcpStream {
        &mut self.sock.tcp
    }

    /// True when the time for the handshake is over.
    pub fn timer(&self, w: &World) -> bool {
        self.deadline.is_some_and(|at| at <= w.now)
    }

    pub fn hung_up(&mut self) {
        self.sock.hung_up = true;
    }

    /// The kernel says that the socket is writable: connected, or room in its buffer. False: close.
    pub fn writable(&mut self, w: &mut World) -> bool {
        if self.stage == Stage::Connecting {
            if !matches!(self.sock.tcp.take_error(), Ok(None)) {
                return false;
            }
            match self.sock.tcp.peer_addr() {
                Ok(_) => self.stage = Stage::Greeting,
                Err(_) => return true, // not yet
            }
        }
        self.flush(w)
    }

    /// The kernel has something for us. It says so once: to be noted even when nothing may be read now.
    pub fn readable(&mut self) {
        self.sock.readable = true;
    }

    /// Reads what there is. None: close; Some(true): there is more.
    pub fn read(&mut self, w: &mut World, scratch: &mut [u8]) -> Option<bool> {
        if self.stage == Stage::Connecting {
            return Some(false);
        }
        let mut budget = READ_BUDGET_BYTES;
        while budget > 0 {
            match self.sock.read(scratch) {
                Ok(Got::Bytes(n)) => {
                    add(&w.shared.counters.peer_bytes_in, n as u64);
                    add(&self.gauge.bytes_in, n as u64);
                    budget = budget.saturating_sub(n);
                    if !self.feed(w, &scratch[..n]) {
                        let _ = self.flush(w);
                        return None;
                    }
                }
                Ok(Got::Nothing) => break,
                Ok(Got::End) | Err(_) => {
                    let _ = self.sock.flush();
                    return None;
                }
            }
        }
        self.flush(w).then_some(budget == 0)
    }

    fn feed(&mut self, w: &mut World, bytes: &[u8]) -> bool {
        if self.buf.is_empty() && self.stage == Stage::Open {
            let Some(used) = self.frames(w, bytes) else {
                return false;
            };
            self.buf.extend_from_slice(&bytes[used..]);
            return true;
        }
        self.buf.extend_from_slice(bytes);
        let buf = std::mem::take(&mut self.buf);
        let used = self.frames(w, &buf);
        self.buf = buf;
        match used {
            Some(used) => {
                if used == self.buf.len() && self.buf.capacity() > READ_BUDGET_BYTES {
                    self.buf = Vec::new();
                } else {
                    self.buf.drain(..used);
                }
                // While Python decides, nothing should come but a little eagerness.
                self.stage != Stage::Deciding || self.buf.len() <= READ_BUDGET_BYTES
            }
            None => false,
        }
    }

    /// Takes complete frames from the front of `buf`; returns how much they were, None to close.
    fn frames(&mut self, w: &mut World, buf: &[u8]) -> Option<usize> {
        let mut at = 0;
        while matches!(self.stage, Stage::Greeting | Stage::Open) {
            if !self.greeted {
                let common = (buf.len() - at).min(PREFACE.len());
                if buf[at..at + common] != PREFACE[..common] {
                    return None;
                }
                if common < PREFACE.len() {
                    break;
                }
                self.greeted = true;
                at += common;
            }
            let max = match self.stage {
                Stage::Open => w.shared.config.max_peer_frame_bytes,
                _ => MAX_HELLO_BYTES + 1,
            };
            match read_frame(&buf[at..], max) {
                Frame::Incomplete => break,
                Frame::TooLarge | Frame::Corrupt => return None,
                Frame::Complete(payload) => {
                    at += HEAD_BYTES + payload.len();
                    if self.stage == Stage::Open {
                        add(&w.shared.counters.peer_frames_in, 1);
                        let first = payload.first();
                        let deferrable =
                            first.is_some_and(|b| w.shared.config.deferrable_frames.contains(b));
                        let frame = w.inbox.arena.put(payload);
                        w.inbox.push_peer(self.link, frame, deferrable);
                    } else if !self.greeting(w, payload) {
                        return None;
                    }
                }
            }
        }
        Some(at)
    }

    /// The first frame of the other side.
    fn greeting(&mut self, w: &mut World, payload: &[u8]) -> bool {
        if !self.outbound {
            self.stage = Stage::Deciding;
            self.announced = true;
            lock(&w.shared.links).insert(self.link, self.gauge.clone());
            w.inbox.push(Event::PeerInbound {
                link: self.link,
                hello: payload.to_vec(),
                remote: self.remote,
            });
            return true;
        }
        match payload.split_first() {
            Some((1, reply)) => {
                self.announced = true;
                self.open();
                w.inbox.push(Event::PeerUp {
                    link: self.link,
                    hello_reply: reply.to_vec(),
                });
                true
            }
            Some((0, reason)) => {
                w.inbox.push(Event::PeerRejected {
                    link: self.link,
                    reason: reason.to_vec(),
                });
                false
            }
            _ => false,
        }
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.deadline = None;
        lock(&self.gauge.state).up = true;
    }

    /// Python's word on an inbound hello.
    pub fn decide(&mut self, accept: bool, text: &[u8]) {
        if self.stage != Stage::Deciding {
            return;
        }
        let mut out = PREFACE.to_vec();
        write_frame(&mut out, &[&[u8::from(accept)], text]);
        self.sock.send(&out);
        if accept {
            self.open();
        } else {
            self.stage = Stage::Closing;
        }
    }

    /// What came while Python decided.
    pub fn resume(&mut self, w: &mut World) -> bool {
        self.feed(w, &[])
    }

    /// Queues a frame for the socket.
    pub fn send(&mut self, w: &mut World, frame: &Message, arena: &Arena, scratch: &mut Vec<u8>) {
        let payload = frame.bytes(arena);
        scratch.clear();
        write_frame(scratch, &[payload]);
        self.sock.send(scratch);
        self.counted += payload.len() + HEAD_BYTES;
        add(&w.shared.counters.peer_frames_out, 1);
    }

    /// Writes what can be written. False: close.
    pub fn flush(&mut self, w: &mut World) -> bool {
        if self.stage == Stage::Connecting {
            return true;
        }
        let Ok(n) = self.sock.flush() else {
            return false;
        };
        add(&w.shared.counters.peer_bytes_out, n as u64);
        add(&self.gauge.bytes_out, n as u64);
        let left = self.counted.min(self.sock.pending());
        if self.counted > left {
            lock(&self.gauge.state).queued -= self.counted - left;
        }
        self.counted = left;
        if self.stage == Stage::Closing && self.sock.pending() == 0 {
            self.sock.send_close();
            let _ = self.sock.flush();
            return false;
        }
        true
    }

    /// The connection is no more: nothing is queued on it, and frames still under way to it are of an old epoch.
    pub fn bury(&mut self) {
        let mut state = lock(&self.gauge.state);
        state.up = false;
        state.epoch += 1;
        state.queued = 0;
        self.counted = 0;
    }

    pub fn epoch(&self) -> u64 {
        lock(&self.gauge.state).epoch
    }
}

/// Bytes that a frame adds to a link's queue.
pub fn framed_bytes(payload: usize) -> usize {
    payload + HEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back() {
        let mut out = Vec::new();
        write_frame(&mut out, &[b"he", b"llo"]);
        write_frame(&mut out, &[]);
        assert_eq!(read_frame(&out, 5), Frame::Complete(b"hello"));
        assert_eq!(read_frame(&out[13..], 5), Frame::Complete(b""));
        assert_eq!(read_frame(&out, 4), Frame::TooLarge);
        for n in 0..13 {
            assert_eq!(read_frame(&out[..n], 5), Frame::Incomplete);
        }
    }

    #[test]
    fn the_layout_is_as_written() {
        let mut out = Vec::new();
        write_frame(&mut out, &[b"123456789"]);
        let mut covered = vec![9, 0, 0, 0];
        covered.extend_from_slice(b"123456789");
        assert_eq!(&out[..4], [9, 0, 0, 0]);
        assert_eq!(out[4..8], crc32c::crc32c(&covered).to_le_bytes());
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283); // the polynomial's check value
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut out = Vec::new();
        write_frame(&mut out, &[b"payload"]);
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(read_frame(&bad, 1 << 30), Frame::Complete(_)),
                "bit {bit}"
            );
        }
    }
}

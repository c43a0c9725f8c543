//! All calls in progress, in one slab.
//!
//! A call's id is its slot and the number of uses of that slot, so a reply finds its call without a map, and an id that
//! is gone finds nothing. Slots keep their buffers, so that a call costs no allocation once the slab has warmed up.

use super::shared::{HttpRequest, Metadata, StreamGauge};
use std::sync::Arc;
use std::time::Instant;

const SLOT_BITS: u32 = 24;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// A buffer that grew beyond this is freed with its call instead of being kept with the slot.
const KEPT_BUFFER_BYTES: usize = 16 << 10;

/// What a call is, as far as we know.
#[derive(Default)]
pub enum Kind {
    /// The slot is free.
    #[default]
    Free,
    /// Its headers are arriving.
    New,
    Unary,
    Stream,
    Http,
    /// Answered or given up by us; what still arrives for it is dropped.
    Over,
}

/// A registered method.
#[derive(Clone, Copy)]
pub struct Method {
    pub id: u32,
    pub streaming: bool,
}

/// How the response ends once `out` is drained.
pub enum Ending {
    /// gRPC trailers. The text is already percent-encoded.
    Status(u32, Vec<u8>),
    /// Plain HTTP: just the end of the body.
    Plain,
}

#[derive(Default)]
pub struct Call {
    pub id: u64,
    pub connection: usize,
    /// HTTP/2 stream; 0 for a request of HTTP/1.1.
    pub stream_id: i32,
    pub kind: Kind,
    pub method: Option<Method>,
    pub is_grpc: bool,
    pub header_bytes: usize,
    pub metadata: Metadata,
    pub encoding: Option<Vec<u8>>,
    pub deadline: Option<Instant>,
    pub http: Option<Box<HttpRequest>>,
    pub is_head: bool,
    /// What has arrived and is not yet handed over.
    pub received: Vec<u8>,
    pub half_closed: bool,
    /// What is to be sent, from `sent` on.
    pub out: Vec<u8>,
    pub sent: usize,
    pub ending: Option<Ending>,
    pub headers_sent: bool,
    /// nghttp2 was told that nothing is there to send, and waits to be resumed.
    pub parked: bool,
    /// Python has been told of it, so it must be told of a premature end.
    pub announced: bool,
    /// Its end is decided (by a reply, or by us): no cancellation is reported any more.
    pub finished: bool,
    pub gauge: Option<Arc<StreamGauge>>,
}

impl Call {
    pub fn queued(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Drops what was sent from the front of the buffer when that is worth the move.
    pub fn compact(&mut self) {
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > KEPT_BUFFER_BYTES && self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[derive(Default)]
pub struct Calls {
    slots: Vec<Call>,
    free: Vec<u32>,
}

impl Calls {
    /// A slot for a new call; None when there are too many.
    pub fn open(&mut self, connection: usize, stream_id: i32) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None if (self.slots.len() as u64) < SLOT_MASK => {
                self.slots.push(Call {
                    id: self.slots.len() as u64,
                    ..Call::default()
                });
                self.slots.len() - 1
            }
            None => return None,
        };
        let call = &mut self.slots[slot];
        call.id += 1 << SLOT_BITS;
        call.connection = connection;
        call.stream_id = stream_id;
        call.kind = Kind::New;
        Some(slot)
    }

    /// Frees the slot, keeping its buffers unless they are large.
    pub fn close(&mut self, slot: usize) {
        let call = &mut self.slots[slot];
        let mut received = std::mem::take(&mut call.received);
        let mut out = std::mem::take(&mut call.out);
        for buf in [&mut received, &mut out] {
            buf.clear();
            if buf.capacity() > KEPT_BUFFER_BYTES {
                *buf = Vec::new();
            }
        }
        *call = Call {
            id: call.id,
            received,
            out,
            ..Call::default()
        };
        self.free.push(slot as u32);
    }

    pub fn get(&mut self, slot: usize) -> &mut Call {
        &mut self.slots[slot]
    }

    /// The slot of a call id, if that call is still there.
    pub fn find(&self, id: u64) -> Option<usize> {
        let slot = (id & SLOT_MASK) as usize;
        let call = self.slots.get(slot)?;
        (call.id == id && !matches!(call.kind, Kind::Free)).then_some(slot)
    }

    /// The slots of a connection's calls (when a connection ends; looks at all).
    pub fn of_connection(&self, connection: usize) -> Vec<usize> {
        let ours = |(_, call): &(usize, &Call)| {
            call.connection == connection && !matches!(call.kind, Kind::Free)
        };
        self.slots
            .iter()
            .enumerate()
            .filter(ours)
            .map(|(slot, _)| slot)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_not_reused() {
        let mut calls = Calls::default();
        let a = calls.open(1, 1).unwrap();
        let first = calls.get(a).id;
        assert_eq!(calls.find(first), Some(a));
        calls.close(a);
        assert_eq!(calls.find(first), None);
        let b = calls.open(2, 3).unwrap();
        assert_eq!(a, b);
        assert_ne!(calls.get(b).id, first);
        assert_eq!(calls.find(first), None);
        assert_eq!(calls.of_connection(2), vec![b]);
        assert!(calls.of_connection(1).is_empty());
    }

    #[test]
    fn slots_keep_small_buffers_only() {
        let mut calls = Calls::default();
        let slot = calls.open(0, 1).unwrap();
        calls.get(slot).received.extend_from_slice(&[1; 100]);
        calls
            .get(slot)
            .out
            .extend_from_slice(&vec![1; KEPT_BUFFER_BYTES * 2]);
        calls.close(slot);
        calls.open(0, 3);
        assert!(calls.get(slot).received.capacity() >= 100);
        assert!(calls.get(slot).received.is_empty());
        assert_eq!(calls.get(slot).out.capacity(), 0);
    }
}

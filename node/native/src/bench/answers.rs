//! What arrives on a connection, taken apart into the ends of calls and the events of streams.

use super::clients::Clients;
use super::fields;
use super::http2::{self, status, Receiver, Status};
use super::plan::{Plan, STAMP_BYTES};
use super::stats::Stats;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Stream ids are odd numbers in order: a multiplication spreads them well enough.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
    }
}

pub type Owners = HashMap<u32, Owner, BuildHasherDefault<IdHasher>>;

#[derive(Clone, Copy)]
pub enum Owner {
    Client(usize),
    Stream(usize),
}

#[derive(Default)]
pub struct StreamState {
    pub link: usize,
    /// Bytes of a message that has not arrived as a whole.
    pub input: Vec<u8>,
    pub ready: u64,
    pub open: bool,
}

/// Takes a connection's frames apart into answers and events.
pub struct Answers<'a> {
    pub plan: &'a Plan,
    pub clients: &'a mut Clients,
    pub streams: &'a mut [StreamState],
    pub owners: &'a mut Owners,
    pub ended: &'a mut Vec<usize>,
    pub events: &'a mut u64,
    pub stats: &'a mut Stats,
    pub now: u64,
}

impl Receiver for Answers<'_> {
    fn data(&mut self, stream_id: u32, chunk: &[u8]) {
        match self.owners.get(&stream_id) {
            Some(&Owner::Client(client)) => {
                let state = &mut self.clients.all[client];
                self.stats.operations[state.operation].answer_bytes += chunk.len() as u64;
                if self.plan.operations[state.operation].reads_answer() {
                    state.answer.extend_from_slice(chunk);
                }
            }
            Some(&Owner::Stream(n)) => self.stream_data(n, chunk),
            None => {}
        }
    }

    fn ended(&mut self, stream_id: u32, status: Status) {
        match self.owners.remove(&stream_id) {
            Some(Owner::Client(client)) => self.call_ended(client, &status),
            Some(Owner::Stream(n)) => {
                self.streams[n].open = false;
                self.stats.error(self.plan.operations.len(), &status);
            }
            None => {}
        }
    }
}

impl Answers<'_> {
    fn call_ended(&mut self, client: usize, status: &Status) {
        let state = &mut self.clients.all[client];
        state.busy = false;
        let number = state.operation;
        let operation = &self.plan.operations[number];
        self.ended.push(client);
        if status.code != http2::CODE_OK {
            state.answer.clear();
            return self.stats.error(number, status);
        }
        let taken = self.now.saturating_sub(state.intended);
        let message = state.answer.get(5..).unwrap_or_default();
        let hit = operation
            .verdict
            .as_ref()
            .is_none_or(|path| fields::number(message, path) != 0);
        for capture in &operation.captures {
            self.clients.remember(client, capture, hit);
        }
        let stats = &mut self.stats.operations[number];
        stats.latency.record(taken);
        stats.missed += u64::from(!hit);
        self.stats.events_expected += if hit { operation.events } else { 0 };
    }

    fn stream_data(&mut self, n: usize, chunk: &[u8]) {
        let mut input = std::mem::take(&mut self.streams[n].input);
        let mut at = 0;
        let used = if input.is_empty() {
            while let Some(message) = next_message(chunk, &mut at) {
                self.stream_message(n, message);
            }
            input.extend_from_slice(&chunk[at..]);
            0
        } else {
            input.extend_from_slice(chunk);
            while let Some(message) = next_message(&input, &mut at) {
                self.stream_message(n, message);
            }
            at
        };
        input.drain(..used);
        self.streams[n].input = input;
    }

    fn stream_message(&mut self, n: usize, message: &[u8]) {
        let plan = &self.plan.streams[n];
        if fields::number(message, &plan.failed) != 0 {
            let why = status(
                http2::CODE_UNKNOWN,
                "the server has cancelled a stream's part",
            );
            return self.stats.error(self.plan.operations.len(), &why);
        }
        if fields::number(message, &plan.ready) != 0 {
            self.streams[n].ready += 1;
        }
        let (mark, now) = (self.plan.seed.to_be_bytes(), self.now);
        let (stats, events) = (&mut self.stats.events, &mut *self.events);
        fields::visit(message, &plan.stamp, &mut |found| {
            let fields::Value::Bytes(value) = found else {
                return;
            };
            if value.len() >= STAMP_BYTES && value[..8] == mark {
                let sent = value[8..STAMP_BYTES]
                    .try_into()
                    .map_or(0, u64::from_be_bytes);
                stats.record(now.saturating_sub(sent));
                *events += 1;
            }
        });
    }
}

/// The next whole gRPC message at `at`.
fn next_message<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let head = bytes.get(*at..*at + 5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let message = bytes.get(*at + 5..*at + 5 + length)?;
    *at += 5 + length;
    Some(message)
}

//! The clients of a load: what each has under way and remembers, and how that becomes the next body.

use super::choice::{key_digits, long_varint, Choice};
use super::fields;
use super::plan::{Capture, Memory, Patch, Plan, When};

#[derive(Default)]
pub struct Client {
    pub link: usize,
    pub operation: usize,
    pub key: u64,
    /// Nanoseconds since the run's origin.
    pub intended: u64,
    pub deadline: u64,
    pub stream_id: u32,
    pub busy: bool,
    pub answer: Vec<u8>,
    pub number: u64,
    pub bytes: Vec<u8>,
}

/// An answer's buffer beyond this is freed after use.
pub const KEPT_ANSWER_BYTES: usize = 64 << 10;

pub struct Clients {
    pub all: Vec<Client>,
    /// What is remembered for each key.
    pub numbers: Vec<u64>,
}

impl Clients {
    pub fn patch(
        &self,
        client: usize,
        patch: &Patch,
        plan: &Plan,
        choice: &mut Choice,
        intended: u64,
        message: &mut [u8],
    ) {
        let state = &self.all[client];
        let (at, length) = patch.span(plan.keys.digits);
        let into = &mut message[at..at + length];
        match *patch {
            Patch::Key { offset, .. } => {
                let number = (state.key + offset) % choice.space;
                key_digits(number, length, !plan.keys.ordered, into);
            }
            Patch::Random { .. } => {
                for chunk in into.chunks_mut(8) {
                    chunk.copy_from_slice(&choice.random().to_le_bytes()[..chunk.len()]);
                }
            }
            Patch::Stamp { .. } => {
                into[..8].copy_from_slice(&plan.seed.to_be_bytes());
                into[8..].copy_from_slice(&intended.to_be_bytes());
            }
            Patch::KeyNumber { .. } => long_varint(self.numbers[state.key as usize], into),
            Patch::ClientNumber { .. } => long_varint(state.number, into),
            Patch::ClientBytes { .. } => {
                let n = length.min(state.bytes.len());
                into[..n].copy_from_slice(&state.bytes[..n]);
            }
        }
    }

    pub fn remember(&mut self, client: usize, capture: &Capture, hit: bool) {
        let wanted = match capture.when {
            When::Always => true,
            When::Hit => hit,
            When::Miss => !hit,
        };
        if !wanted {
            return;
        }
        let state = &mut self.all[client];
        let message = state.answer.get(5..).unwrap_or_default();
        match capture.to {
            Memory::ClientNumber => state.number = fields::number(message, &capture.path),
            Memory::ClientBytes => {
                let bytes = fields::bytes(message, &capture.path)
                    .unwrap_or_default()
                    .to_vec();
                state.bytes = bytes;
            }
            Memory::KeyNumber => {
                // Answers of calls to one key may come in any order; the newest number is the largest. None at all
                // means that the key is not there.
                let number = fields::number(message, &capture.path);
                let slot = &mut self.numbers[state.key as usize];
                *slot = if number == 0 { 0 } else { number.max(*slot) };
            }
        }
    }

    /// The operation that follows the one which this client has ended.
    pub fn follower(&self, client: usize, plan: &Plan) -> Option<usize> {
        let state = &self.all[client];
        let (path, next) = plan.operations[state.operation].follow.as_ref()?;
        let message = state.answer.get(5..)?;
        // Bytes of another length than the template's would be another request.
        let fits = plan.operations[*next].patches.iter().all(|patch| {
            !matches!(patch, Patch::ClientBytes { length, .. } if *length != state.bytes.len())
        });
        (fits && fields::number(message, path) != 0).then_some(*next)
    }
}

//! What a load is: calls with their bodies as templates, and long streams. The bench knows no message of any service:
//! whoever makes the plan gives the bytes, says where in them keys, values and remembered numbers go, and by which field
//! numbers an answer is to be read.

use super::fields::Path;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Something of fixed length that is written into a body before it is sent.
#[derive(Clone, Copy, Debug)]
pub enum Patch {
    /// The number of the call's key plus `offset`, in hexadecimal digits.
    Key { at: usize, offset: u64 },
    /// Random bytes.
    Random { at: usize, length: usize },
    /// The run's mark and the intended time of the call, 8 bytes each: for events that come back.
    Stamp { at: usize },
    /// The number remembered for the key, as a varint of ten bytes.
    KeyNumber { at: usize },
    /// The number remembered by the client, as a varint of ten bytes.
    ClientNumber { at: usize },
    /// The bytes remembered by the client.
    ClientBytes { at: usize, length: usize },
}

/// Eight bytes are remembered for each.
const MAX_REMEMBERED_KEYS: u64 = 10_000_000;
pub const VARINT_BYTES: usize = 10;
pub const STAMP_BYTES: usize = 16;

impl Patch {
    /// Where it goes: first byte and length.
    pub fn span(&self, digits: usize) -> (usize, usize) {
        match *self {
            Patch::Key { at, .. } => (at, digits),
            Patch::Random { at, length } | Patch::ClientBytes { at, length } => (at, length),
            Patch::Stamp { at } => (at, STAMP_BYTES),
            Patch::KeyNumber { at } | Patch::ClientNumber { at } => (at, VARINT_BYTES),
        }
    }
}

/// Which answers a capture is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// The verdict's field is not zero.
    Hit,
    Miss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    KeyNumber,
    ClientNumber,
    ClientBytes,
}

/// Something of an answer that is remembered.
#[derive(Clone, Debug)]
pub struct Capture {
    pub when: When,
    pub to: Memory,
    pub path: Path,
}

/// A unary call.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: usize,
    /// Its share among the calls that begin something; 0: only follows others.
    pub weight: u64,
    pub body: Vec<u8>,
    pub patches: Vec<Patch>,
    /// A field that is zero when the call succeeded but did not do what it was for.
    pub verdict: Option<Path>,
    pub captures: Vec<Capture>,
    /// The operation that follows at once, on the same key, while the field is not zero.
    pub follow: Option<(Path, usize)>,
    /// Whether some of the calls go to keys that did not exist.
    pub creates: bool,
    /// Events that each call that did what it was for brings, over all streams.
    pub events: u64,
    /// The key is the last one that this client used, not a new choice.
    pub same_key: bool,
}

impl Operation {
    pub fn reads_answer(&self) -> bool {
        self.verdict.is_some() || !self.captures.is_empty() || self.follow.is_some()
    }

    pub fn uses_key_numbers(&self) -> bool {
        let reads = |p: &Patch| matches!(p, Patch::KeyNumber { .. });
        let writes = |c: &Capture| c.to == Memory::KeyNumber;
        self.patches.iter().any(reads) || self.captures.iter().any(writes)
    }
}

/// A call that stays open.
#[derive(Clone, Debug)]
pub struct Stream {
    pub method: usize,
    pub messages: Vec<Vec<u8>>,
    /// A field that is not zero in a message that says "ready", and how many of those are awaited.
    pub ready: Path,
    pub ready_count: u64,
    /// A field that is not zero in a message that says "over".
    pub failed: Path,
    /// Where stamps come back, once per event.
    pub stamp: Path,
}

/// Which keys calls go to.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Keys are the numbers below this.
    pub space: u64,
    pub digits: usize,
    /// Keys are taken in the order of their numbers, not at random.
    pub sequential: bool,
    /// Keys sort as their numbers do; otherwise they are spread out.
    pub ordered: bool,
    /// Out of 1,000 calls of operations that create, so many go to a new key.
    pub fresh_per_mille: u64,
}

pub struct Endpoint {
    pub address: SocketAddr,
    pub authority: String,
    pub tls: Option<(
        Arc<rustls::ClientConfig>,
        rustls::pki_types::ServerName<'static>,
    )>,
}

pub struct Plan {
    pub endpoints: Vec<Endpoint>,
    pub connections: usize,
    pub clients: usize,
    pub total: Option<u64>,
    pub duration: Option<Duration>,
    /// Calls per second of an open loop; None: each client sends its next call when the last has ended.
    pub rate: Option<f64>,
    pub call_timeout: Duration,
    pub dial_timeout: Duration,
    /// How long to wait for events after the last call.
    pub drain_timeout: Duration,
    pub keys: Keys,
    pub methods: Vec<String>,
    pub operations: Vec<Operation>,
    pub streams: Vec<Stream>,
    /// What is remembered for keys from the start.
    pub remembered: Vec<(u64, u64)>,
    pub seed: u64,
}

impl Plan {
    /// The method's number; it is added when it is new.
    pub fn method(&mut self, path: &str) -> usize {
        if let Some(at) = self.methods.iter().position(|known| known == path) {
            return at;
        }
        self.methods.push(path.to_owned());
        self.methods.len() - 1
    }

    /// What is wrong with the plan, if anything.
    pub fn problem(&self) -> Option<String> {
        if self.endpoints.is_empty() || self.connections == 0 || self.clients == 0 {
            return Some("a load needs an endpoint, a connection and a client".into());
        }
        if self.operations.iter().all(|one| one.weight == 0) {
            return Some("a load needs an operation with a weight".into());
        }
        if self.keys.space == 0 || self.keys.digits == 0 || self.keys.digits > 16 {
            return Some("keys need a space of at least 1 and 1 to 16 digits".into());
        }
        if self.keys.digits < 16 && self.keys.space > 1 << (4 * self.keys.digits) {
            return Some(format!(
                "{} keys have no room in {} digits",
                self.keys.space, self.keys.digits
            ));
        }
        if self
            .remembered
            .iter()
            .any(|(key, _)| *key >= self.keys.space)
        {
            return Some("a number to remember for a key that is not in the key space".into());
        }
        for one in &self.operations {
            if one.uses_key_numbers() && self.keys.space > MAX_REMEMBERED_KEYS {
                return Some(format!(
                    "a load that remembers keys takes at most {MAX_REMEMBERED_KEYS}"
                ));
            }
            if one.uses_key_numbers() && one.creates && self.keys.fresh_per_mille > 0 {
                return Some("a load that remembers keys cannot create new ones".into());
            }
            for patch in &one.patches {
                let (at, length) = patch.span(self.keys.digits);
                if at
                    .checked_add(length)
                    .is_none_or(|end| end > one.body.len())
                {
                    return Some(format!("{patch:?} lies outside of its body"));
                }
            }
            if one
                .follow
                .as_ref()
                .is_some_and(|(_, next)| *next >= self.operations.len())
            {
                return Some("an operation is followed by one that is not there".into());
            }
        }
        None
    }
}

//! Which requests a load sends: puts over distinct keys, half of them new, or reads of known ones.

/// Kinds of load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Put,
    /// Linearizable single-key reads.
    Range,
    /// Serializable single-key reads.
    SerializableRange,
}

impl Operation {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "put" => Some(Self::Put),
            "range" => Some(Self::Range),
            "range-serializable" => Some(Self::SerializableRange),
            _ => None,
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range | Self::SerializableRange => "/etcdserverpb.KV/Range",
        }
    }
}

/// A reproducible stream of request messages (protobuf bytes without the gRPC prefix).
pub struct Workload {
    operation: Operation,
    /// Keys that exist: numbers below this.
    existing: u64,
    /// Out of 1,000 puts so many go to a new key.
    new_per_mille: u64,
    value: Vec<u8>,
    state: u64,
}

impl Workload {
    pub fn new(operation: Operation, existing: u64, new_per_mille: u64, value_bytes: usize, seed: u64) -> Self {
        Self {
            operation,
            existing,
            new_per_mille,
            value: vec![b'v'; value_bytes],
            state: seed | 1,
        }
    }

    fn random(&mut self) -> u64 {
        // xorshift64*: uniform enough for keys, and the same on every run.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn next_key(&mut self) -> u64 {
        let fresh = self.operation == Operation::Put && self.random() % 1000 < self.new_per_mille;
        if fresh || self.existing == 0 {
            self.existing += 1;
            return self.existing - 1;
        }
        self.random() % self.existing
    }

    /// Writes the next request into `message`.
    pub fn next(&mut self, message: &mut Vec<u8>) {
        message.clear();
        let key = format!("/bench/{:016x}", self.next_key().wrapping_mul(0x9E37_79B9_7F4A_7C15));
        field(message, 1, key.as_bytes());
        match self.operation {
            Operation::Put => {
                // Another value each time, so that nothing on the way can profit from equal bytes.
                let random = self.random().to_le_bytes();
                let n = self.value.len().min(8);
                self.value[..n].copy_from_slice(&random[..n]);
                let value = std::mem::take(&mut self.value);
                field(message, 2, &value);
                self.value = value;
            }
            Operation::Range => {}
            Operation::SerializableRange => message.extend_from_slice(&[7 << 3, 1]),
        }
    }
}

fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

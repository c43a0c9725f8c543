//! Which operation and which key come next, and how numbers are written into bodies.

use super::plan::{Operation, Plan};

/// Random choices: of operations, keys and values.
pub struct Choice {
    pub state: u64,
    pub sequence: u64,
    pub space: u64,
    pub weights: u64,
}

impl Choice {
    /// xorshift64*: uniform enough, and the same for the same seed.
    pub fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn operation(&mut self, operations: &[Operation]) -> usize {
        if operations.len() == 1 {
            return 0;
        }
        let mut at = (self.random() >> 32) % self.weights;
        for (n, operation) in operations.iter().enumerate() {
            if at < operation.weight {
                return n;
            }
            at -= operation.weight;
        }
        0
    }

    pub fn key(&mut self, plan: &Plan, operation: &Operation) -> u64 {
        if plan.keys.sequential {
            self.sequence += 1;
            return (self.sequence - 1) % self.space;
        }
        let fresh = plan.keys.fresh_per_mille;
        if operation.creates && fresh > 0 && (self.random() >> 32) % 1000 < fresh {
            self.space += 1;
            return self.space - 1;
        }
        self.random() % self.space
    }
}

/// The digits of a key: a bijection of the numbers below 16^digits, spread out unless keys are wanted in order.
pub fn key_digits(number: u64, digits: usize, spread: bool, into: &mut [u8]) {
    let mut number = if spread {
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    } else {
        number
    };
    for byte in into[..digits].iter_mut().rev() {
        *byte = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// A varint of ten bytes, whatever the number: decoders take the longer form.
pub fn long_varint(mut number: u64, into: &mut [u8]) {
    for byte in &mut into[..9] {
        *byte = (number as u8 & 0x7f) | 0x80;
        number >>= 7;
    }
    into[9] = number as u8;
}

#[cfg(test)]
mod tests {
    use super::super::fields;
    use super::*;

    #[test]
    fn keys_are_distinct_however_few_digits_they_have() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..4096 {
            let mut digits = [0; 3];
            key_digits(number, 3, true, &mut digits);
            assert!(seen.insert(digits));
        }
    }

    #[test]
    fn keys_in_order_sort_in_order() {
        let (mut low, mut high) = ([0; 6], [0; 6]);
        for number in 0..1000 {
            key_digits(number, 6, false, &mut low);
            key_digits(number + 1, 6, false, &mut high);
            assert!(low < high);
        }
    }

    #[test]
    fn a_long_varint_means_the_same_number() {
        for number in [0, 1, 127, 128, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let mut message = vec![0x08; 11];
            long_varint(number, &mut message[1..]);
            assert_eq!(fields::number(&message, &[1]), number);
        }
    }
}

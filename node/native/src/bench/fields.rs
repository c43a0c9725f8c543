//! Reading single fields out of protobuf messages by the numbers on the way to them, without knowing the message.

/// A way through nested messages: field numbers, outermost first.
pub type Path = Vec<u32>;

/// What a field holds.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Gives `found` every occurrence of the field at `path`; a damaged rest is left out.
pub fn visit<'a>(message: &'a [u8], path: &[u32], found: &mut impl FnMut(Value<'a>)) -> Option<()> {
    let (wanted, rest) = path.split_first()?;
    let mut at = 0;
    while at < message.len() {
        let tag = varint(message, &mut at)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(message, &mut at)?),
            2 => {
                let length = usize::try_from(varint(message, &mut at)?).ok()?;
                let bytes = message.get(at..at.checked_add(length)?)?;
                at += length;
                Value::Bytes(bytes)
            }
            1 => {
                at += 8;
                continue;
            }
            5 => {
                at += 4;
                continue;
            }
            _ => return None,
        };
        if tag >> 3 == u64::from(*wanted) {
            match value {
                Value::Bytes(inner) if !rest.is_empty() => visit(inner, rest, found)?,
                value if rest.is_empty() => found(value),
                Value::Number(_) | Value::Bytes(_) => {}
            }
        }
    }
    Some(())
}

/// The last occurrence of a field, as protobuf has it for fields that are not repeated.
pub fn last<'a>(message: &'a [u8], path: &[u32]) -> Option<Value<'a>> {
    let mut value = None;
    visit(message, path, &mut |found| value = Some(found));
    value
}

/// The number at `path`; 0 when there is none, as protobuf has it.
pub fn number(message: &[u8], path: &[u32]) -> u64 {
    match last(message, path) {
        Some(Value::Number(number)) => number,
        _ => 0,
    }
}

/// The bytes at `path`.
pub fn bytes<'a>(message: &'a [u8], path: &[u32]) -> Option<&'a [u8]> {
    match last(message, path) {
        Some(Value::Bytes(bytes)) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 1: {3: 300}, 2: "ab", 2: "cd", 4 (fixed64), 5 (fixed32), 6: 1
    const MESSAGE: &[u8] = &[
        0x0a, 3, 0x18, 0xac, 2, 0x12, 2, b'a', b'b', 0x12, 2, b'c', b'd', 0x21, 0, 0, 0, 0, 0, 0,
        0, 0, 0x2d, 0, 0, 0, 0, 0x30, 1,
    ];

    #[test]
    fn fields_are_found_at_any_depth_and_the_last_one_counts() {
        assert_eq!(number(MESSAGE, &[1, 3]), 300);
        assert_eq!(bytes(MESSAGE, &[2]), Some(&b"cd"[..]));
        assert_eq!(number(MESSAGE, &[6]), 1);
        assert_eq!(number(MESSAGE, &[7]), 0);
        let mut all = Vec::new();
        visit(MESSAGE, &[2], &mut |found| all.push(found));
        assert_eq!(all, [Value::Bytes(b"ab"), Value::Bytes(b"cd")]);
    }

    #[test]
    fn any_damage_is_taken_without_a_panic() {
        for cut in 0..MESSAGE.len() {
            for path in [&[1, 3][..], &[2], &[6], &[]] {
                let _ = last(&MESSAGE[..cut], path);
                let mut damaged = MESSAGE.to_vec();
                damaged[cut] = 0xff;
                let _ = last(&damaged, path);
            }
        }
    }
}

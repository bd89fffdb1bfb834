//! Where an object or a list in JSON text ends, found many bytes at a time: what decides about an object lies behind
//! parts of it that are passed over, of which the largest, who owns which fields, is brackets and short strings only.
//!
//! Text is looked at in blocks. A mask has a bit for each byte of a block; which brackets are in strings is then a
//! matter of a few operations on whole masks.

use wide::u8x16;

/// Bytes of a block.
const BLOCK: usize = u64::BITS as usize;

/// Length of the rest of a JSON object or list between these brackets, its closing one included. `None`: it does not end.
pub(crate) fn nested_end(rest: &[u8], (open, close): (u8, u8)) -> Option<usize> {
    let mut strings = Strings::default();
    let mut depth = 1;
    for (number, bytes) in rest.chunks(BLOCK).enumerate() {
        let mut padded = [0; BLOCK];
        let block = bytes.try_into().unwrap_or_else(|_| {
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded
        });
        let outside = !strings.inside(block);
        let (opening, closing) = (equal(block, open) & outside, equal(block, close) & outside);
        if closing.count_ones() < depth {
            depth = depth + opening.count_ones() - closing.count_ones();
            continue;
        }
        let mut left = opening | closing;
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            if opening >> at & 1 == 1 {
                depth += 1;
                continue;
            }
            depth -= 1;
            if depth == 0 {
                return Some(number * BLOCK + at as usize + 1);
            }
        }
    }
    None
}

/// What is inside of strings, from block to block.
#[derive(Default)]
struct Strings {
    /// All bits are set if the next block begins in a string.
    open: u64,
    /// Whether the next block begins with what a backslash says something about.
    escaped: bool,
}

impl Strings {
    /// The bytes of the next block that are in strings, without their closing quotes.
    fn inside(&mut self, block: &[u8; BLOCK]) -> u64 {
        let mut quotes = equal(block, b'"');
        let backslashes = equal(block, b'\\');
        if backslashes != 0 || self.escaped {
            quotes &= !self.escaped(backslashes);
        }
        // Each bit tells whether an odd number of quotes stands up to its byte.
        let mut inside = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            inside ^= inside << shift;
        }
        inside ^= self.open;
        self.open = 0u64.wrapping_sub(inside >> (BLOCK - 1));
        inside
    }

    /// The bytes behind these backslashes. What stands behind one is no backslash in this sense.
    fn escaped(&mut self, mut backslashes: u64) -> u64 {
        let mut escaped = u64::from(std::mem::take(&mut self.escaped));
        backslashes &= !escaped;
        while backslashes != 0 {
            let first = backslashes & backslashes.wrapping_neg();
            let behind = first << 1;
            self.escaped = behind == 0;
            escaped |= behind;
            backslashes &= !(first | behind);
        }
        escaped
    }
}

/// The bytes of a block that are this one.
fn equal(block: &[u8; BLOCK], byte: u8) -> u64 {
    let wanted = u8x16::splat(byte);
    let (lanes, _) = block.as_chunks::<16>();
    let masks = lanes.iter().enumerate().map(|(at, lane)| {
        let same = u8x16::new(*lane).cmp_eq(wanted).move_mask();
        u64::from(same.cast_unsigned()) << (16 * at)
    });
    masks.fold(0, |all, mask| all | mask)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The same, byte by byte.
    fn plainly(rest: &[u8], (open, close): (u8, u8)) -> Option<usize> {
        let (mut depth, mut string, mut escaped) = (1, false, false);
        for (at, byte) in rest.iter().enumerate() {
            let behind_one = std::mem::take(&mut escaped);
            match *byte {
                b'\\' => escaped = !behind_one,
                b'"' => string ^= !behind_one,
                _ if string => {}
                b if b == open => depth += 1,
                b if b == close => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }

    proptest! {
        #[test]
        fn values_end_where_they_do_when_read_byte_by_byte(text in "[{}\"\\\\a]{0,300}|[{}\"a]{0,300}") {
            let brackets = (b'{', b'}');
            prop_assert_eq!(nested_end(text.as_bytes(), brackets), plainly(text.as_bytes(), brackets));
        }

        #[test]
        fn objects_end_where_they_were_written_to(
            keys in prop::collection::vec("[a{}\\[\\]\"\\\\é\n]{0,80}", 0..12), behind in "[}\\]\",a]{0,70}",
        ) {
            for value in [json!(keys), keys.iter().map(|k| (k.clone(), json!([k]))).collect::<Value>()] {
                let text = value.to_string();
                let brackets = if value.is_array() { (b'[', b']') } else { (b'{', b'}') };
                let rest = format!("{}{behind}", &text[1..]);
                prop_assert_eq!(nested_end(rest.as_bytes(), brackets), Some(text.len() - 1));
                prop_assert_eq!(nested_end(&rest.as_bytes()[..text.len() - 2], brackets), None);
            }
        }
    }

    #[test]
    fn masks_have_a_bit_a_byte() {
        let mut block = [b'.'; BLOCK];
        for at in [0, 7, 8, 15, 16, 31, 32, 63] {
            block[at] = b'x';
        }
        assert_eq!(equal(&block, b'x'), 0x8000_0001_8001_8181);
        assert_eq!(equal(&block, b'y'), 0);
        assert_eq!(equal(&[0xff; BLOCK], 0xff), u64::MAX);
    }
}

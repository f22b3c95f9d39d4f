//! Keys whose byte order is the order of what they encode.
//!
//! A key is a sequence of fields: integers big-endian, byte strings escaped (0x00 becomes 0x00 0xff) and
//! ended by 0x00 0x00, so that a string sorts before its own extensions and fields never run into each other.

/// The smallest key greater than `key`.
pub fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// The smallest key greater than every key that starts with `prefix`; the end of the key space if `prefix`
/// is empty or all 0xff.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|b| *b != 0xff);
    match kept {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        None => crate::api::KEY_SPACE_END.to_vec(),
    }
}

/// Builds a key field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyWriter(Vec<u8>);

impl KeyWriter {
    /// An empty key.
    pub fn new() -> Self {
        Self::default()
    }

    /// A key that starts with the table's `tag`.
    pub fn table(tag: u8) -> Self {
        Self(vec![tag])
    }

    /// Appends one byte.
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// Appends a u16.
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a u32.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a u64.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a u128.
    pub fn u128(mut self, value: u128) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends an i64, negative ones first.
    pub fn i64(self, value: i64) -> Self {
        self.u64((value as u64) ^ (1 << 63))
    }

    /// Appends bytes of any content and length, escaped and ended.
    pub fn bytes(mut self, value: &[u8]) -> Self {
        for byte in value {
            self.0.push(*byte);
            if *byte == 0 {
                self.0.push(0xff);
            }
        }
        self.0.extend([0, 0]);
        self
    }

    /// Appends bytes as they are: of fixed length, or the last field.
    pub fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    /// The key.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Every key that starts with the fields so far.
    pub fn range(self) -> crate::api::KeyRange {
        crate::api::KeyRange::prefix(&self.0)
    }
}

/// Takes a key apart field by field; every method returns `None` if the key is not of that form.
#[derive(Clone, Debug)]
pub struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    /// Reads `key` from its start.
    pub fn new(key: &'a [u8]) -> Self {
        Self(key)
    }

    /// Goes past the table's `tag`.
    pub fn table(&mut self, tag: u8) -> Option<()> {
        (self.u8()? == tag).then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|b| b[0])
    }

    /// The next u16.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next u32.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next u64.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next u128.
    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_be_bytes)
    }

    /// The next i64.
    pub fn i64(&mut self) -> Option<i64> {
        self.u64().map(|v| (v ^ (1 << 63)) as i64)
    }

    /// The next escaped bytes.
    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if *byte != 0 {
                out.push(*byte);
                continue;
            }
            match self.u8()? {
                0xff => out.push(0),
                0 => return Some(out),
                _ => return None,
            }
        }
    }

    /// What is left, as it is.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Some if nothing is left.
    pub fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(number: i64, name: &[u8], last: u16) -> Vec<u8> {
        KeyWriter::table(b'd').i64(number).bytes(name).u16(last).finish()
    }

    #[test]
    fn ranges_of_prefixes() {
        assert_eq!(prefix_end(b"ab"), b"ac");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b""), b"\xff");
        assert_eq!(prefix_end(b"\xff\xff"), b"\xff");
        let range = KeyWriter::table(1).u64(u64::MAX).range();
        assert!(range.contains(&KeyWriter::table(1).u64(u64::MAX).bytes(b"x").finish()));
        assert!(!range.contains(&KeyWriter::table(2).u64(0).finish()));
    }

    #[test]
    fn other_forms_are_refused() {
        assert_eq!(KeyReader::new(b"\x01").table(2), None);
        assert_eq!(KeyReader::new(b"\x01\x02").u32(), None);
        assert_eq!(KeyReader::new(b"abc").bytes(), None);
        assert_eq!(KeyReader::new(b"a").end(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn order_and_round_trip(
            a in any::<(i64, Vec<u8>, u16)>(),
            b in any::<(i64, Vec<u8>, u16)>(),
            same in any::<bool>(),
        ) {
            let b = if same { (a.0, b.1, b.2) } else { b };
            let (x, y) = (encode(a.0, &a.1, a.2), encode(b.0, &b.1, b.2));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            let mut reader = KeyReader::new(&x);
            prop_assert_eq!(reader.table(b'd'), Some(()));
            prop_assert_eq!((reader.i64(), reader.bytes(), reader.u16()), (Some(a.0), Some(a.1), Some(a.2)));
            prop_assert_eq!(reader.end(), Some(()));
        }
    }
}

//! What a transaction has written so far, as its own reads must see it, and what it will commit.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::api::{KEY_SPACE_END, KeyRange, MAX_KEY_BYTES, MAX_TX_BYTES, MAX_VALUE_BYTES};
use crate::error::KvError;
use crate::key::successor;
use crate::mutation::{Mutation, add};

/// Bytes of a versionstamp.
const STAMP_BYTES: usize = 10;

/// What is known of a key this transaction wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// The value it has now; does not depend on the store.
    Value(Option<Vec<u8>>),
    /// The store's value plus this.
    Add(i64),
    /// Known only after the commit.
    Unreadable,
}

/// The writes of one transaction.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    log: Vec<Mutation>,
    own: BTreeMap<Vec<u8>, Own>,
    /// Disjoint cleared ranges, begin to end. Keys in `own` take precedence.
    cleared: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Ranges in which a versionstamped key will be.
    unreadable: Vec<KeyRange>,
    /// Write conflicts other than the keys of the log.
    conflicts: Vec<KeyRange>,
    bytes: usize,
    error: Option<KvError>,
}

impl WriteBuffer {
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        if self.check_key(key) && self.check_value(value) {
            self.note(key, Own::Value(Some(value.to_vec())), value.len());
            self.log.push(Mutation::Set { key: key.to_vec(), value: value.to_vec() });
        }
    }

    pub(crate) fn clear(&mut self, key: &[u8]) {
        if self.check_key(key) {
            self.note(key, Own::Value(None), 0);
            self.log.push(Mutation::Clear { key: key.to_vec() });
        }
    }

    pub(crate) fn clear_range(&mut self, range: KeyRange) {
        if !self.check_range(&range) || range.is_empty() {
            return;
        }
        let within: Vec<Vec<u8>> = self.own_in(&range).map(|(k, _)| k.clone()).collect();
        for key in within {
            self.own.remove(&key);
        }
        self.add_cleared(&range);
        self.bytes += 2 * (range.begin.len() + range.end.len());
        self.log.push(Mutation::ClearRange { range });
    }

    pub(crate) fn add(&mut self, key: &[u8], delta: i64) {
        if !self.check_key(key) {
            return;
        }
        let own = match self.own(key) {
            Some(Own::Value(old)) => Own::Value(Some(add(old.as_deref(), delta))),
            Some(Own::Add(before)) => Own::Add(before.wrapping_add(delta)),
            Some(Own::Unreadable) => Own::Unreadable,
            None => Own::Add(delta),
        };
        self.note(key, own, 8);
        self.log.push(Mutation::Add { key: key.to_vec(), delta });
    }

    pub(crate) fn stamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        if !self.check_key(key) || !self.check_value(value) || !self.check_offset(key, offset) {
            return;
        }
        if offset == 0 {
            return self.fail(KvError::Misuse("a key that starts with the versionstamp may lie outside"));
        }
        let filled = |byte: u8| crate::mutation::stamped(key, offset, &[byte; STAMP_BYTES]);
        self.unreadable.push(KeyRange::new(filled(0), successor(&filled(0xff))));
        self.bytes += 3 * key.len() + 1 + value.len();
        self.log.push(Mutation::StampedKey { key: key.to_vec(), offset, value: value.to_vec() });
    }

    pub(crate) fn stamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        if self.check_key(key) && self.check_value(value) && self.check_offset(value, offset) {
            self.note(key, Own::Unreadable, value.len());
            self.log.push(Mutation::StampedValue { key: key.to_vec(), value: value.to_vec(), offset });
        }
    }

    pub(crate) fn add_write_conflict(&mut self, range: KeyRange) {
        if self.check_range(&range) && !range.is_empty() {
            self.bytes += range.begin.len() + range.end.len();
            self.conflicts.push(range);
        }
    }

    /// What this transaction made of `key`; `None` if it did not touch it.
    pub(crate) fn own(&self, key: &[u8]) -> Option<Own> {
        if let Some(own) = self.own.get(key) {
            return Some(own.clone());
        }
        if self.unreadable.iter().any(|r| r.contains(key)) {
            return Some(Own::Unreadable);
        }
        self.is_cleared(key).then_some(Own::Value(None))
    }

    /// The touched keys of `range` other than by cleared ranges.
    pub(crate) fn own_in(&self, range: &KeyRange) -> impl DoubleEndedIterator<Item = (&Vec<u8>, &Own)> {
        let end = range.end.as_slice().max(range.begin.as_slice());
        self.own.range::<[u8], _>((Bound::Included(range.begin.as_slice()), Bound::Excluded(end)))
    }

    pub(crate) fn is_cleared(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let before = self.cleared.range::<[u8], _>(upto).next_back();
        before.is_some_and(|(_, end)| key < end.as_slice())
    }

    /// Whether nothing was written, so that reads go straight through.
    pub(crate) fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// Fails if a versionstamp of this transaction may lie in `range`.
    pub(crate) fn check_readable(&self, range: &KeyRange) -> Result<(), KvError> {
        let overlaps = |r: &KeyRange| r.begin < range.end && range.begin < r.end;
        let stamped = self.own_in(range).any(|(_, own)| *own == Own::Unreadable);
        if stamped || self.unreadable.iter().any(overlaps) {
            return Err(KvError::Misuse("read of a key that gets its versionstamp from this commit"));
        }
        Ok(())
    }

    /// The parts of a read range whose content depends on the store.
    pub(crate) fn dependent_parts(&self, range: &KeyRange, out: &mut Vec<KeyRange>) {
        if self.own.is_empty() && self.cleared.is_empty() {
            return out.push(range.clone());
        }
        let mut known: Vec<KeyRange> = self
            .own_in(range)
            .filter(|(_, own)| matches!(own, Own::Value(_)))
            .map(|(key, _)| KeyRange::key(key))
            .collect();
        let before_end = (Bound::Unbounded, Bound::Excluded(range.end.as_slice()));
        let cleared = self.cleared.range::<[u8], _>(before_end).rev();
        known.extend(
            cleared
                .take_while(|(_, end)| **end > range.begin)
                .map(|(b, e)| KeyRange::new(b.clone(), e.clone())),
        );
        known.sort();
        let mut from = range.begin.clone();
        for part in known {
            if part.begin > from {
                out.push(KeyRange::new(std::mem::take(&mut from), part.begin));
            }
            from = from.max(part.end);
        }
        if from < range.end {
            out.push(KeyRange::new(from, range.end.clone()));
        }
    }

    /// The first error a write caused, and the size limit.
    pub(crate) fn check(&self, reads: &[KeyRange]) -> Result<(), KvError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let reads: usize = reads.iter().map(|r| r.begin.len() + r.end.len()).sum();
        let bytes = self.bytes + reads;
        if bytes > MAX_TX_BYTES {
            return Err(KvError::TooLarge { bytes });
        }
        Ok(())
    }

    /// About how large it is, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a commit would change nothing and conflict with nobody.
    pub(crate) fn is_read_only(&self) -> bool {
        self.log.is_empty() && self.conflicts.is_empty()
    }

    /// The changes in order, and the write conflicts apart from versionstamped keys (known later).
    pub(crate) fn finish(self) -> (Vec<Mutation>, Vec<KeyRange>) {
        let mut conflicts = self.conflicts;
        for mutation in &self.log {
            match mutation {
                Mutation::Set { key, .. }
                | Mutation::Clear { key }
                | Mutation::Add { key, .. }
                | Mutation::StampedValue { key, .. } => conflicts.push(KeyRange::key(key)),
                Mutation::ClearRange { range } => conflicts.push(range.clone()),
                Mutation::StampedKey { .. } => {}
            }
        }
        (self.log, conflicts)
    }

    pub(crate) fn fail(&mut self, error: KvError) {
        self.error.get_or_insert(error);
    }

    /// Refuses ranges that end beyond the key space or are inverted.
    pub(crate) fn check_range(&mut self, range: &KeyRange) -> bool {
        if range.begin > range.end {
            self.fail(KvError::Misuse("a range ends before it begins"));
            return false;
        }
        if range.end.as_slice() > KEY_SPACE_END {
            self.fail(KvError::Misuse("a range ends beyond the key space (0xff)"));
            return false;
        }
        let bytes = range.begin.len().max(range.end.len());
        // A range's end may be the successor of the longest key.
        if bytes > MAX_KEY_BYTES + 1 {
            self.fail(KvError::KeyTooLarge { bytes });
            return false;
        }
        true
    }

    fn check_key(&mut self, key: &[u8]) -> bool {
        if key.len() > MAX_KEY_BYTES {
            self.fail(KvError::KeyTooLarge { bytes: key.len() });
            return false;
        }
        if key >= KEY_SPACE_END {
            self.fail(KvError::Misuse("a key lies beyond the key space (0xff)"));
            return false;
        }
        true
    }

    fn check_value(&mut self, value: &[u8]) -> bool {
        if value.len() > MAX_VALUE_BYTES {
            self.fail(KvError::ValueTooLarge { bytes: value.len() });
            return false;
        }
        true
    }

    fn check_offset(&mut self, bytes: &[u8], offset: usize) -> bool {
        if offset.checked_add(STAMP_BYTES).is_none_or(|end| end > bytes.len()) {
            self.fail(KvError::Misuse("the versionstamp's offset lies outside"));
            return false;
        }
        true
    }

    fn note(&mut self, key: &[u8], own: Own, value_bytes: usize) {
        // The key counts as written and as both ends of its write conflict.
        self.bytes += 3 * key.len() + 1 + value_bytes;
        self.own.insert(key.to_vec(), own);
    }

    fn add_cleared(&mut self, range: &KeyRange) {
        let (mut begin, mut end) = (range.begin.clone(), range.end.clone());
        let upto = (Bound::Unbounded, Bound::Included(end.as_slice()));
        let joined: Vec<(Vec<u8>, Vec<u8>)> = self
            .cleared
            .range::<[u8], _>(upto)
            .rev()
            .take_while(|(_, e)| **e >= begin)
            .map(|(b, e)| (b.clone(), e.clone()))
            .collect();
        for (b, e) in joined {
            self.cleared.remove(&b);
            begin = begin.min(b);
            end = end.max(e);
        }
        self.cleared.insert(begin, end);
    }
}

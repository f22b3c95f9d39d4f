//! What a transaction does to the store, and how that is applied in order.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::api::{KeyRange, Versionstamp};
use crate::error::KvError;

/// One change, in the order the transaction made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    Set { key: Vec<u8>, value: Vec<u8> },
    Clear { key: Vec<u8> },
    ClearRange { range: KeyRange },
    Add { key: Vec<u8>, delta: i64 },
    StampedKey { key: Vec<u8>, offset: usize, value: Vec<u8> },
    StampedValue { key: Vec<u8>, value: Vec<u8>, offset: usize },
}

/// New values (`None`: removed) by key.
pub(crate) type Overlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The store as it is before the changes.
pub(crate) trait Base {
    fn value(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    fn keys(&mut self, range: &KeyRange) -> Result<Vec<Vec<u8>>, KvError>;
}

/// FoundationDB's ADD on 8 bytes: a missing value is 0, a shorter one is zero-extended, a longer one cut.
pub(crate) fn add(old: Option<&[u8]>, delta: i64) -> Vec<u8> {
    let mut bytes = [0u8; 8];
    for (to, from) in bytes.iter_mut().zip(old.unwrap_or_default()) {
        *to = *from;
    }
    u64::from_le_bytes(bytes).wrapping_add(delta as u64).to_le_bytes().to_vec()
}

/// `bytes` with the 10 bytes at `offset` replaced; unchanged if they don't fit (refused earlier).
pub(crate) fn stamped(bytes: &[u8], offset: usize, stamp: &Versionstamp) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(place) = out.get_mut(offset..).and_then(|tail| tail.get_mut(..stamp.len())) {
        place.copy_from_slice(stamp);
    }
    out
}

pub(crate) fn versionstamp(version: u64, batch: u16) -> Versionstamp {
    let mut stamp = [0; 10];
    stamp[..8].copy_from_slice(&version.to_be_bytes());
    stamp[8..].copy_from_slice(&batch.to_be_bytes());
    stamp
}

/// Applies `log` on top of `overlay` on top of `base`. `overlay` is changed only if all of it succeeds.
pub(crate) fn apply(
    log: Vec<Mutation>,
    stamp: &Versionstamp,
    overlay: &mut Overlay,
    base: &mut dyn Base,
) -> Result<(), KvError> {
    let mut own = Overlay::new();
    for mutation in log {
        match mutation {
            Mutation::Set { key, value } => {
                own.insert(key, Some(value));
            }
            Mutation::Clear { key } => {
                own.insert(key, None);
            }
            Mutation::ClearRange { range } => clear_range(&range, &mut own, overlay, base)?,
            Mutation::Add { key, delta } => {
                let new = match own.get(&key).or_else(|| overlay.get(&key)) {
                    Some(old) => add(old.as_deref(), delta),
                    None => add(base.value(&key)?.as_deref(), delta),
                };
                own.insert(key, Some(new));
            }
            Mutation::StampedKey { key, offset, value } => {
                own.insert(stamped(&key, offset, stamp), Some(value));
            }
            Mutation::StampedValue { key, value, offset } => {
                own.insert(key, Some(stamped(&value, offset, stamp)));
            }
        }
    }
    overlay.extend(own);
    Ok(())
}

fn clear_range(
    range: &KeyRange,
    own: &mut Overlay,
    overlay: &Overlay,
    base: &mut dyn Base,
) -> Result<(), KvError> {
    if range.is_empty() {
        return Ok(());
    }
    let bounds = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
    for (_, value) in own.range_mut::<[u8], _>(bounds) {
        *value = None;
    }
    for (key, _) in overlay.range::<[u8], _>(bounds) {
        own.insert(key.clone(), None);
    }
    for key in base.keys(range)? {
        own.insert(key, None);
    }
    Ok(())
}

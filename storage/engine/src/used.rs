//! A set of slots, a bit each.

use crate::class::SlotId;
use ember_types::collections::FixedHashMap;

/// Slots of a word group.
const GROUP: u32 = 4096;

/// Which slots are used.
#[derive(Default)]
pub(crate) struct Used(FixedHashMap<(u8, u32), Box<[u64; GROUP as usize / 64]>>);

fn bit(slot: u32) -> (usize, u64) {
    ((slot % GROUP / 64) as usize, 1 << (slot % 64))
}

impl Used {
    /// Adds a slot; `false` if it is in the set already.
    pub(crate) fn insert(&mut self, at: SlotId) -> bool {
        let group = self.0.entry((at.class, at.slot / GROUP)).or_insert_with(|| Box::new([0; 64]));
        let (word, bit) = bit(at.slot);
        let fresh = group[word] & bit == 0;
        group[word] |= bit;
        fresh
    }
    pub(crate) fn contains(&self, at: SlotId) -> bool {
        let (word, bit) = bit(at.slot);
        self.0.get(&(at.class, at.slot / GROUP)).is_some_and(|group| group[word] & bit != 0)
    }
    /// The highest slot of a class.
    pub(crate) fn last(&self, class: u8) -> Option<u32> {
        let groups = self.0.iter().filter(|((of, _), _)| *of == class);
        let (&(_, number), group) = groups.max_by_key(|((_, number), _)| *number)?;
        let slot = (0..GROUP).rfind(|&slot| group[bit(slot).0] & bit(slot).1 != 0)?;
        Some(number * GROUP + slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_into_it() {
        let mut used = Used::default();
        let at = |class, slot| SlotId { class, slot };
        for slot in [0, 63, 64, 5000, u32::MAX] {
            assert!(used.insert(at(1, slot)) && !used.insert(at(1, slot)));
        }
        assert!(used.contains(at(1, 5000)) && !used.contains(at(1, 5001)) && !used.contains(at(2, 5000)));
        assert_eq!((used.last(1), used.last(2)), (Some(u32::MAX), None));
    }
}

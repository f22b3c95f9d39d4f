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
    /// Slots of a class below `total` that are not in the set.
    pub(crate) fn others(&self, class: u8, total: u32) -> impl Iterator<Item = u32> {
        (0..total.div_ceil(GROUP)).flat_map(move |number| {
            let first = number * GROUP;
            let group = self.0.get(&(class, number));
            let full = group.is_some_and(|group| group.iter().all(|word| *word == u64::MAX));
            let end = if full { first } else { total.min(first.saturating_add(GROUP)) };
            (first..end).filter(move |&slot| {
                let (word, bit) = bit(slot);
                group.is_none_or(|group| group[word] & bit == 0)
            })
        })
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
        let others: Vec<u32> = used.others(1, 5002).collect();
        assert_eq!((others.len(), others[0], others[61], others[62], others[4997]), (4998, 1, 62, 65, 5001));
        assert!((0..GROUP).all(|slot| used.insert(at(3, slot))));
        assert_eq!(used.others(3, GROUP + 2).collect::<Vec<_>>(), [GROUP, GROUP + 1]);
        assert_eq!((used.last(1), used.last(2)), (Some(u32::MAX), None));
    }
}

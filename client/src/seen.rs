//! What meta answered last to changes of this process. Answers may overtake each other: one that was read before
//! a write was settled and arrives after that would show the file shorter than its writer left it, and the next
//! append would go over what was appended.

use ember_types::InodeId;
use ember_types::file::Attributes;
use std::collections::{BTreeMap, VecDeque};

/// Inodes that are remembered: those changed last.
const INODES_MAX: usize = 65_536;

/// The newest answers, by inode.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    newest: BTreeMap<InodeId, Attributes>,
    order: VecDeque<InodeId>,
}

/// Grows with every change of a file's content or length.
pub(crate) fn rank(attributes: &Attributes) -> (u64, bool) {
    (attributes.content_version, attributes.truncating_to.is_none())
}

impl Seen {
    /// Remembers an answer to a change.
    pub(crate) fn note(&mut self, attributes: &Attributes) {
        match self.newest.get_mut(&attributes.inode) {
            Some(newest) if rank(newest) > rank(attributes) => {}
            Some(newest) => newest.clone_from(attributes),
            None => {
                self.newest.insert(attributes.inode, attributes.clone());
                self.order.push_back(attributes.inode);
                if self.order.len() > INODES_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.newest.remove(&oldest);
                }
            }
        }
    }

    /// Brings an answer up to what is known already. Owner, mode and links stay: they have no order.
    pub(crate) fn correct(&self, attributes: &mut Attributes) {
        let Some(newest) = self.newest.get(&attributes.inode) else { return };
        if rank(attributes) < rank(newest) {
            attributes.length = newest.length;
            attributes.modified = newest.modified;
            attributes.changed = attributes.changed.max(newest.changed);
            attributes.layout = newest.layout;
            attributes.data = newest.data;
            attributes.truncate_version = newest.truncate_version;
            attributes.content_version = newest.content_version;
            attributes.truncating_to = newest.truncating_to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::tests::attributes;

    #[test]
    fn an_answer_that_was_overtaken_does_not_show_the_file_shorter() {
        let mut seen = Seen::default();
        let before = Attributes { content_version: 4, ..attributes(90, 1) };
        let after = Attributes { content_version: 5, ..attributes(100, 1) };
        seen.note(&after);
        seen.note(&before);
        let mut late = Attributes { mode: 0o600, ..before.clone() };
        seen.correct(&mut late);
        assert_eq!((late.length, late.content_version, late.mode), (100, 5, 0o600));
        let mut newer = Attributes { content_version: 6, ..attributes(7, 2) };
        seen.correct(&mut newer);
        assert_eq!((newer.length, newer.truncate_version), (7, 2));
        // A cut that was promised comes before the same cut when it is done.
        seen.note(&newer);
        let mut promised = Attributes { truncating_to: Some(7), length: 9, ..newer.clone() };
        seen.correct(&mut promised);
        assert_eq!((promised.length, promised.truncating_to), (7, None));
    }

    #[test]
    fn only_the_inodes_changed_last_are_remembered() {
        let mut seen = Seen::default();
        for inode in 0..INODES_MAX as u64 + 10 {
            seen.note(&Attributes { inode: InodeId(inode), content_version: 2, ..attributes(5, 1) });
        }
        assert_eq!((seen.newest.len(), seen.order.len()), (INODES_MAX, INODES_MAX));
        let mut first = Attributes { inode: InodeId(0), ..attributes(1, 1) };
        seen.correct(&mut first);
        assert_eq!(first.length, 1);
    }
}

//! What the kernel was last told of an inode, so that an open can tell whether its caches are still right.
//!
//! The kernel asks for attributes when they time out, not at open(2), and drops pages at an open that doesn't
//! say KEEP_CACHE. Close-to-open needs more: a length that meta knew at the open. So every answer with
//! attributes is noted here, and an open compares. An inode that isn't here counts as changed.

use ember_types::file::Attributes;
use ember_types::{InodeId, Instant};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Inodes kept at most.
const INODES_MAX: usize = 1 << 20;
/// Opens that were refused as stale and are awaited again.
const REFUSED_MAX: usize = 4096;
/// How soon the kernel opens again after such a refusal; it does so once.
const RETRY_ONCE: Duration = Duration::from_secs(1);
const SET_ID: u32 = 0o6000;

#[derive(Clone, Copy, Debug)]
struct Told {
    content_version: u64,
    length: u64,
    set_id: bool,
    /// Content version of an open since which the kernel has kept the pages.
    pages: Option<u64>,
}

impl Told {
    fn new(attributes: &Attributes) -> Self {
        Self {
            content_version: attributes.content_version,
            length: attributes.length,
            set_id: attributes.mode & SET_ID != 0,
            pages: None,
        }
    }
}

/// How the kernel's caches stand at an open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AtOpen {
    /// The kernel's attributes are those that meta has.
    pub(crate) attributes_fresh: bool,
    /// The kernel's pages are right.
    pub(crate) keep_pages: bool,
}

/// The table, shared by the threads of a mount.
#[derive(Debug, Default)]
pub(crate) struct Known {
    inodes: Mutex<BTreeMap<InodeId, Told>>,
    /// By inode and the thread that opened.
    refused: Mutex<BTreeMap<(InodeId, u32), Instant>>,
}

impl Known {
    fn table(&self) -> MutexGuard<'_, BTreeMap<InodeId, Told>> {
        // No code that can panic runs under the lock.
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is told these attributes.
    pub(crate) fn told(&self, attributes: &Attributes) {
        let mut table = self.table();
        let old = table.get(&attributes.inode).copied();
        if old.is_none() && table.len() >= INODES_MAX {
            table.pop_first();
        }
        let mut told = Told::new(attributes);
        if let Some(old) = old {
            told.pages = old.pages;
        }
        table.insert(attributes.inode, told);
    }

    /// Meta has taken in a change of content made through this mount. The kernel's caches contain it; they stay
    /// right unless somebody else's change came in between.
    pub(crate) fn own_change(&self, attributes: &Attributes) {
        let mut table = self.table();
        let Some(told) = table.get_mut(&attributes.inode) else { return };
        if attributes.content_version == told.content_version.saturating_add(1) {
            if told.pages == Some(told.content_version) {
                told.pages = Some(attributes.content_version);
            }
            told.content_version = attributes.content_version;
        }
    }

    /// Bytes up to `end` were written through this mount: the kernel knows that the file is that long.
    pub(crate) fn wrote(&self, inode: InodeId, end: u64) {
        if let Some(told) = self.table().get_mut(&inode) {
            told.length = told.length.max(end);
        }
    }

    /// Whether the file may have set-user-id or set-group-id bits.
    pub(crate) fn may_have_set_id(&self, inode: InodeId) -> bool {
        self.table().get(&inode).is_none_or(|told| told.set_id)
    }

    /// The mode was changed without telling the kernel its attributes.
    pub(crate) fn set_id_is(&self, inode: InodeId, mode: u32) {
        if let Some(told) = self.table().get_mut(&inode) {
            told.set_id = mode & SET_ID != 0;
        }
    }

    /// Compares at an open; the caller makes the kernel drop what isn't right.
    pub(crate) fn at_open(&self, attributes: &Attributes) -> AtOpen {
        let mut table = self.table();
        let old = table.get(&attributes.inode).copied();
        if old.is_none() && table.len() >= INODES_MAX {
            table.pop_first();
        }
        let told = table.entry(attributes.inode).or_insert_with(|| Told::new(attributes));
        told.pages = Some(attributes.content_version);
        AtOpen {
            attributes_fresh: old.is_some_and(|old| {
                old.content_version == attributes.content_version && old.length == attributes.length
            }),
            keep_pages: old.is_some_and(|old| old.pages == Some(attributes.content_version)),
        }
    }

    /// Whether the thread `pid`, whose open found the kernel's attributes stale or not, is to be refused once:
    /// the kernel then looks the name up and opens again.
    pub(crate) fn refuse(&self, inode: InodeId, pid: u32, stale: bool, now: Instant) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let again = refused.remove(&(inode, pid)).is_some_and(|at| now.since(at) < RETRY_ONCE);
        if !stale || again {
            return false;
        }
        if refused.len() >= REFUSED_MAX {
            refused.retain(|_, at| now.since(*at) < RETRY_ONCE);
        }
        if refused.len() >= REFUSED_MAX {
            return false;
        }
        refused.insert((inode, pid), now);
        true
    }

    /// The kernel has dropped an inode from its caches.
    pub(crate) fn forget(&self, inode: InodeId) {
        self.table().remove(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_types::file::FileKind;
    use ember_types::{DataId, UnixTime};

    fn attributes(content_version: u64, length: u64) -> Attributes {
        let zero = UnixTime::default();
        Attributes {
            inode: InodeId(7),
            kind: FileKind::File,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            length,
            accessed: zero,
            modified: zero,
            changed: zero,
            device: 0,
            layout: None,
            data: DataId(7),
            truncate_version: 0,
            content_version,
            truncating_to: None,
        }
    }

    fn at_open(attributes_fresh: bool, keep_pages: bool) -> AtOpen {
        AtOpen { attributes_fresh, keep_pages }
    }

    #[test]
    fn pages_are_kept_from_the_second_open_on() {
        let known = Known::default();
        assert_eq!(known.at_open(&attributes(1, 10)), at_open(false, false), "unknown counts as changed");
        known.told(&attributes(1, 10));
        assert_eq!(known.at_open(&attributes(1, 10)), at_open(true, true));
        known.forget(InodeId(7));
        assert_eq!(known.at_open(&attributes(1, 10)), at_open(false, false));
    }

    #[test]
    fn a_change_of_another_client_drops_pages_and_attributes() {
        let known = Known::default();
        known.told(&attributes(1, 10));
        known.at_open(&attributes(1, 10));
        assert_eq!(known.at_open(&attributes(2, 10)), at_open(false, false));
        known.told(&attributes(3, 10));
        assert_eq!(known.at_open(&attributes(3, 10)), at_open(true, false), "told, but pages are older");
    }

    #[test]
    fn an_own_change_keeps_both() {
        let known = Known::default();
        known.told(&attributes(1, 10));
        known.at_open(&attributes(1, 10));
        known.wrote(InodeId(7), 50);
        known.own_change(&attributes(2, 50));
        assert_eq!(known.at_open(&attributes(2, 50)), at_open(true, true));
        // Two changes were taken in, one of which is somebody else's.
        known.wrote(InodeId(7), 60);
        known.own_change(&attributes(4, 60));
        assert_eq!(known.at_open(&attributes(4, 60)), at_open(false, false));
    }

    #[test]
    fn an_open_is_refused_once() {
        let known = Known::default();
        let refuse =
            |pid, stale, ms| known.refuse(InodeId(7), pid, stale, Instant(0) + Duration::from_millis(ms));
        assert!(!refuse(1, false, 0));
        assert!(refuse(1, true, 10));
        assert!(refuse(2, true, 10), "another thread has its own try");
        assert!(!refuse(1, true, 20), "changed again meanwhile: the program must not see the refusal");
        assert!(refuse(1, true, 30));
        assert!(!refuse(1, false, 40));
        assert!(refuse(1, true, 50), "the refusal before was answered by a fresh open");
        assert!(refuse(1, true, 2000), "the kernel did not come back");
    }

    #[test]
    fn unknown_files_may_have_set_id_bits() {
        let known = Known::default();
        assert!(known.may_have_set_id(InodeId(7)));
        known.told(&attributes(1, 10));
        assert!(!known.may_have_set_id(InodeId(7)));
        known.told(&Attributes { mode: 0o4755, ..attributes(1, 10) });
        assert!(known.may_have_set_id(InodeId(7)));
    }
}

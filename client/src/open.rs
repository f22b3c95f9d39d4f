//! Open files: what this process knows of an inode, and of one open of it.

use crate::behind::Behind;
use crate::error::{ClientError, Result};
use crate::seen::rank;
use crate::shared::lock;
use ember_types::file::Attributes;
use ember_types::{
    Capability, ClientId, DataId, InodeId, Instant, Layout, SessionId, Status, UnixTime, mutant,
};
use ember_wire::meta::{OpenFlags, Written};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What this process knows of an inode with open handles; shared by all of them, so that the length is exact
/// for whoever writes here.
#[derive(Debug)]
pub struct FileState {
    inode: InodeId,
    known: Mutex<Known>,
    behind: Behind,
}

#[derive(Clone, Debug)]
struct Known {
    data: DataId,
    layout: Option<Layout>,
    /// Length as meta told it last, or as our own writes made it.
    length: u64,
    truncate_version: u64,
    truncating_to: Option<u64>,
    /// Of the answer that all this is from.
    rank: (u64, bool),
    /// End and time of writes that meta hasn't heard of.
    unsettled: Option<(u64, UnixTime)>,
    /// Writes that were done.
    writes: u64,
    /// Writes that were accepted and aren't done, and their end and time. Meta hears of none before its data are
    /// there: who opens the file elsewhere would keep what they replace.
    accepted: usize,
    promised: Option<(u64, UnixTime)>,
}

/// What meta must be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unsettled {
    pub(crate) written: Written,
    /// All writes up to this one.
    writes: u64,
}

/// The later of two ends, and of two times.
fn later(a: Option<(u64, UnixTime)>, b: (u64, UnixTime)) -> (u64, UnixTime) {
    a.map_or(b, |a| (a.0.max(b.0), a.1.max(b.1)))
}

impl FileState {
    pub(crate) fn new(attributes: &Attributes) -> Self {
        let known = Known {
            data: attributes.data,
            layout: attributes.layout,
            length: attributes.length,
            truncate_version: attributes.truncate_version,
            truncating_to: attributes.truncating_to,
            rank: rank(attributes),
            unsettled: None,
            writes: 0,
            accepted: 0,
            promised: None,
        };
        Self { inode: attributes.inode, known: Mutex::new(known), behind: Behind::default() }
    }
    /// Its writes that nobody waits for.
    pub(crate) fn behind(&self) -> &Behind {
        &self.behind
    }
    /// Which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }
    /// Takes what meta says now. Own writes that it hasn't heard of still count, unless the file was truncated
    /// in between.
    pub fn refresh(&self, attributes: &Attributes) {
        let mut known = lock(&self.known);
        if attributes.truncate_version < known.truncate_version || rank(attributes) < known.rank {
            return;
        }
        known.rank = rank(attributes);
        if attributes.truncate_version > known.truncate_version {
            (known.unsettled, known.promised) = (None, None);
        }
        known.data = attributes.data;
        known.layout = attributes.layout;
        known.truncate_version = attributes.truncate_version;
        known.truncating_to = attributes.truncating_to;
        let own = known.own().map_or(0, |(end, _)| end);
        known.length = attributes.length.max(own);
    }
    /// Adds to attributes from meta what only this process knows yet.
    pub fn overlay(&self, attributes: &mut Attributes) {
        let known = lock(&self.known);
        if attributes.truncate_version != known.truncate_version {
            return;
        }
        if let Some((end, modified)) = known.own() {
            attributes.length = attributes.length.max(end);
            attributes.modified = attributes.modified.max(modified);
            attributes.changed = attributes.changed.max(modified);
        }
    }
    /// Length in bytes: exact as far as writes of this process go.
    pub fn length(&self) -> u64 {
        let known = lock(&self.known);
        known.truncating_to.map_or(known.length, |cut| known.length.min(cut))
    }
    /// Where the data lie. `None` for an inode without data.
    pub(crate) fn place(&self) -> Option<Place> {
        let known = lock(&self.known);
        let (data, truncate_version) = (known.data, known.truncate_version);
        known.layout.map(|layout| Place { data, layout, truncate_version })
    }
    /// Where the data lie, if `length` bytes at `offset` can be written.
    pub(crate) fn place_for(&self, offset: u64, length: u64) -> Result<Place> {
        let Some(place) = self.place() else {
            return Err(ClientError::new(Status::InvalidArgument, "the inode has no data"));
        };
        if offset.saturating_add(length) > place.layout.max_file_length() {
            return Err(ClientError::new(Status::FileTooLarge, "beyond the largest file of this chunk size"));
        }
        Ok(place)
    }
    /// Notes a write that ended at `end` and began under `truncate_version`. One that a truncation overtook
    /// counts as done before it.
    pub(crate) fn wrote(&self, end: u64, truncate_version: u64, now: UnixTime) {
        let mut known = lock(&self.known);
        if known.truncate_version != truncate_version {
            return;
        }
        known.unsettled = Some(later(known.unsettled, (end, now)));
        known.writes += 1;
        known.length = known.length.max(end);
    }
    /// Notes a write that is accepted: until [`FileState::ended`] it counts here as if it were done.
    pub(crate) fn accepted(&self, end: u64, truncate_version: u64, now: UnixTime) {
        let mut known = lock(&self.known);
        known.accepted += 1;
        if known.truncate_version == truncate_version {
            known.promised = Some(later(known.promised, (end, now)));
            known.length = known.length.max(end);
        }
    }
    /// So many accepted writes have ended.
    pub(crate) fn ended(&self, count: usize) {
        let mut known = lock(&self.known);
        known.accepted -= count;
        if known.accepted == 0 {
            known.promised = None;
        }
    }
    /// What meta must be told, if anything.
    pub(crate) fn unsettled(&self) -> Option<Unsettled> {
        let known = lock(&self.known);
        known.unsettled.map(|(length, modified)| Unsettled {
            written: Written { length, truncate_version: known.truncate_version, modified: Some(modified) },
            writes: known.writes,
        })
    }
    /// Meta has heard of `told`; if a write was done after it, all stay unsettled.
    pub(crate) fn settled(&self, told: &Unsettled) {
        let mut known = lock(&self.known);
        if known.writes == told.writes && known.truncate_version == told.written.truncate_version {
            known.unsettled = None;
        }
    }
}

impl Known {
    /// End and time of the writes of this process that meta hasn't heard of.
    fn own(&self) -> Option<(u64, UnixTime)> {
        self.unsettled.map(|done| later(self.promised, done)).or(self.promised)
    }
}

/// Where a file's data lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) data: DataId,
    pub(crate) layout: Layout,
    pub(crate) truncate_version: u64,
}

/// One open of a file by this process.
#[derive(Debug)]
pub struct OpenFile {
    state: std::sync::Arc<FileState>,
    handle: u64,
    session: SessionId,
    flags: OpenFlags,
    grant: Mutex<Grant>,
    /// Failures of writes of the file that this open has been told of, or that were before it.
    failures_told: AtomicU64,
}

/// The right to the data, and when to renew it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) capability: Capability,
    /// When half of its life is over, on the boot-time clock.
    pub(crate) renew_at: Instant,
}

impl Grant {
    /// A grant that was asked for at `asked` and lasts for `life` from then on at least.
    pub(crate) fn new(capability: Capability, asked: Instant, life: Duration) -> Self {
        let wait = if mutant!(r20_renewed_at_the_end) { life } else { life / 2 };
        Self { capability, renew_at: asked + wait }
    }
}

/// The session of an open: the client's id in the upper half, so that (inode, handle) rebuilds it.
pub fn session_of(client: ClientId, handle: u64) -> SessionId {
    SessionId::from_u128((client.as_u128() & !u128::from(u64::MAX)) | u128::from(handle))
}

impl OpenFile {
    pub(crate) fn new(
        state: std::sync::Arc<FileState>,
        handle: u64,
        session: SessionId,
        flags: OpenFlags,
        grant: Grant,
    ) -> Self {
        let failures_told = AtomicU64::new(state.behind.failures());
        Self { state, handle, session, flags, grant: Mutex::new(grant), failures_told }
    }
    /// Fails if a write of [`Client::write_behind`](crate::Client::write_behind) to the file has failed since this
    /// open began, through whichever open; once for each failure, or for several at once.
    pub fn report(&self) -> Result<()> {
        let told = self.failures_told.load(Ordering::Relaxed);
        let Some((failures, error)) = self.state.behind.failure_since(told) else { return Ok(()) };
        self.failures_told.store(failures, Ordering::Relaxed);
        Err(error)
    }
    /// The inode's state, shared with the other opens of it.
    pub fn state(&self) -> &FileState {
        &self.state
    }
    /// Number that names this open within the process.
    pub fn handle(&self) -> u64 {
        self.handle
    }
    /// The session that meta knows this open by.
    pub fn session(&self) -> SessionId {
        self.session
    }
    /// How it was opened.
    pub fn flags(&self) -> OpenFlags {
        self.flags
    }
    pub(crate) fn capability(&self) -> Capability {
        lock(&self.grant).capability
    }
    pub(crate) fn renew_at(&self) -> Instant {
        lock(&self.grant).renew_at
    }
    pub(crate) fn set_grant(&self, grant: Grant) {
        *lock(&self.grant) = grant;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ember_types::file::FileKind;

    pub(crate) fn attributes(length: u64, truncate_version: u64) -> Attributes {
        let zero = UnixTime::default();
        Attributes {
            inode: InodeId(5),
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
            data: DataId(5),
            truncate_version,
            content_version: 0,
            truncating_to: None,
        }
    }

    fn at(seconds: i64) -> UnixTime {
        UnixTime { seconds, nanos: 0 }
    }

    #[test]
    fn own_writes_count_until_meta_has_heard_of_them() {
        let state = FileState::new(&attributes(10, 1));
        state.wrote(100, 1, at(7));
        state.refresh(&attributes(10, 1));
        assert_eq!(state.length(), 100);
        let mut seen = attributes(10, 1);
        state.overlay(&mut seen);
        assert_eq!((seen.length, seen.modified), (100, at(7)));
        let told = state.unsettled().unwrap();
        state.wrote(50, 1, at(8));
        state.settled(&told);
        assert!(state.unsettled().is_some(), "the later write is still to be told");
        state.settled(&state.unsettled().unwrap());
        assert_eq!(state.unsettled(), None);
        assert_eq!(state.length(), 100);
    }

    #[test]
    fn an_accepted_write_counts_here_and_is_told_when_it_is_done() {
        let state = FileState::new(&attributes(10, 1));
        state.wrote(20, 1, at(5));
        state.accepted(100, 1, at(7));
        let told = state.unsettled().unwrap();
        assert_eq!((told.written.length, told.written.modified), (20, Some(at(5))));
        let mut seen = attributes(10, 1);
        state.overlay(&mut seen);
        assert_eq!((state.length(), seen.length, seen.modified), (100, 100, at(7)));
        // It is done while meta is told of the one before, and must be told as well, whatever its time.
        state.wrote(20, 1, at(5));
        state.ended(1);
        state.settled(&told);
        assert!(state.unsettled().is_some());
        state.settled(&state.unsettled().unwrap());
        // What failed promises nothing any more.
        state.accepted(500, 1, at(9));
        state.ended(1);
        state.refresh(&Attributes { content_version: 1, ..attributes(20, 1) });
        assert_eq!((state.unsettled(), state.length()), (None, 20));
    }

    #[test]
    fn r20_a_capability_is_renewed_at_half_its_life() {
        let asked = Instant(0) + Duration::from_secs(100);
        let grant = Grant::new(Capability::NONE, asked, Duration::from_secs(30));
        assert_eq!(grant.renew_at, asked + Duration::from_secs(15));
    }

    #[test]
    fn an_answer_from_before_a_settled_write_changes_nothing() {
        let state = FileState::new(&attributes(10, 1));
        state.wrote(100, 1, at(7));
        let told = state.unsettled().unwrap();
        state.settled(&told);
        state.refresh(&Attributes { content_version: 1, ..attributes(100, 1) });
        state.refresh(&attributes(10, 1));
        assert_eq!(state.length(), 100);
    }

    #[test]
    fn r19_a_truncation_voids_what_was_written_before_it() {
        let state = FileState::new(&attributes(10, 1));
        state.wrote(100, 1, at(7));
        state.refresh(&attributes(0, 2));
        assert_eq!((state.length(), state.unsettled()), (0, None));
        state.refresh(&attributes(100, 1));
        assert_eq!(state.length(), 0, "an older answer changes nothing");
        state.wrote(50, 1, at(8));
        assert_eq!(state.length(), 0, "a write that the truncation overtook came before it");
    }
}

//! Members that are neither well nor dead (R10): accusations, and syncs that stand still.

use ember_chain::Accusation;
use ember_types::{Chain, ChainId, ChainVersion, Instant, TargetId};
use ember_wire::mgmtd::{SyncProgress, TargetReport};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long an accusation counts.
const COUNTS: Duration = Duration::from_secs(10);
/// Accusations that are remembered.
const ACCUSATIONS_MAX: usize = 1_024;
/// A disk counts as slow when its node has said so for this long: disks that are slow for one reason, a device or a
/// machine that they share, are all known as such by then.
const SLOW: Duration = Duration::from_secs(5);
/// How long mgmtd tries to take an accused target out.
const SHUNNED: Duration = Duration::from_secs(20);

struct Sync {
    target: TargetId,
    version: ChainVersion,
    /// Chunks done, and bytes sent.
    progress: Option<(u64, u64)>,
    /// When it last moved on.
    moved: Instant,
    /// It yields its place at the next evaluation.
    yields: bool,
}

/// What is known of members that limp.
pub(crate) struct Gray {
    accusations: VecDeque<(Instant, Accusation)>,
    shunned: BTreeMap<TargetId, Instant>,
    syncs: BTreeMap<ChainId, Sync>,
    /// Targets whose nodes say that their disk is slow, and since when.
    slow: BTreeMap<TargetId, Instant>,
    stall: Duration,
}

impl Gray {
    /// A sync without progress for `stall` yields its place.
    pub(crate) fn new(stall: Duration) -> Self {
        let (shunned, syncs, slow) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { accusations: VecDeque::new(), shunned, syncs, slow, stall }
    }

    /// A node says whether the disk of `target` is slow.
    pub(crate) fn note_slow(&mut self, target: TargetId, slow: bool, now: Instant) {
        if slow {
            self.slow.entry(target).or_insert(now);
        } else {
            self.slow.remove(&target);
        }
    }
    /// Whether that has been so for a while.
    pub(crate) fn is_slow(&self, target: TargetId, now: Instant) -> bool {
        self.slow.get(&target).is_some_and(|since| now.since(*since) >= SLOW)
    }
    /// Targets on slow disks: looked at with each tick.
    pub(crate) fn slow(&self) -> impl Iterator<Item = TargetId> {
        self.slow.keys().copied()
    }

    /// Remembers an accusation and returns all that count.
    pub(crate) fn accuse(&mut self, accusation: Accusation, now: Instant) -> Vec<Accusation> {
        while self.accusations.front().is_some_and(|(at, _)| now.since(*at) > COUNTS) {
            self.accusations.pop_front();
        }
        if self.accusations.len() == ACCUSATIONS_MAX {
            self.accusations.pop_front();
        }
        self.accusations.push_back((now, accusation));
        self.accusations.iter().map(|(_, a)| *a).collect()
    }

    /// `target` is to be taken out of service, or to yield its place.
    pub(crate) fn shun(&mut self, chain: &Chain, target: TargetId, now: Instant) {
        match self.syncs.get_mut(&chain.id).filter(|s| s.target == target && s.version == chain.version) {
            Some(sync) => sync.yields = true,
            None => {
                self.shunned.entry(target).or_insert(now);
            }
        }
    }

    pub(crate) fn is_shunned(&self, target: TargetId, now: Instant) -> bool {
        self.shunned.get(&target).is_some_and(|since| now.since(*since) < SHUNNED)
    }

    /// `target` is out of service: it may come back through a sync.
    pub(crate) fn demoted(&mut self, target: TargetId) {
        self.shunned.remove(&target);
    }

    pub(crate) fn is_stalled(&self, chain: &Chain, target: TargetId, now: Instant) -> bool {
        self.syncs.get(&chain.id).is_some_and(|s| {
            let this = s.target == target && s.version == chain.version;
            this && (s.yields || now.since(s.moved) >= self.stall)
        })
    }

    /// Follows the sync of a chain by what its members report.
    pub(crate) fn watch_sync<'a>(
        &mut self,
        chain: &Chain,
        now: Instant,
        report: impl Fn(TargetId) -> Option<&'a TargetReport>,
    ) {
        let Some(target) = chain.syncing().map(|m| m.target) else {
            self.syncs.remove(&chain.id);
            return;
        };
        let progress = sync_progress(chain, report).map(|p| (p.chunks_done, p.bytes_sent));
        let known =
            self.syncs.get_mut(&chain.id).filter(|s| s.target == target && s.version == chain.version);
        match known {
            Some(sync) if sync.progress == progress => {}
            Some(sync) => (sync.progress, sync.moved) = (progress, now),
            None => {
                let sync = Sync { target, version: chain.version, progress, moved: now, yields: false };
                self.syncs.insert(chain.id, sync);
            }
        }
    }

    /// Chains whose sync is watched: looked at once each tick.
    pub(crate) fn due(&self, now: Instant) -> Vec<ChainId> {
        let second = Duration::from_secs(1);
        let look = |s: &Sync| s.yields || now.since(s.moved) >= second;
        self.syncs.iter().filter(|(_, s)| look(s)).map(|(id, _)| *id).collect()
    }
}

/// How far the sync of a chain has come, as its source says.
pub(crate) fn sync_progress<'a>(
    chain: &Chain,
    report: impl Fn(TargetId) -> Option<&'a TargetReport>,
) -> Option<SyncProgress> {
    let source = chain.syncing().and_then(|m| chain.predecessor(m.target))?;
    report(source.target)?.sync
}

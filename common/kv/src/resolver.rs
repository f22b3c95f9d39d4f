//! Decides which transactions commit: optimistic concurrency control over key ranges.
//!
//! Pure. A transaction read a snapshot at its read version; it may commit at a newer version only if no
//! range that it read was written in between. The resolver remembers, for every key, the version of its last
//! write within a window; a transaction that read before the window is refused as too old.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::api::KeyRange;

/// What may happen to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may commit.
    Commit,
    /// Something it read was written since.
    Conflict,
    /// It read at a version before the window, so nobody knows.
    TooOld,
}

/// The last-write version of every key, as a step function over the key space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resolver {
    /// The value holds from its key up to the next one; before the first key it is 0.
    steps: BTreeMap<Vec<u8>, u64>,
    /// Read versions before this one are too old.
    oldest: u64,
    /// The newest version recorded.
    newest: u64,
    /// Steps left by the last sweep; the next comes when there are twice as many.
    swept: usize,
}

/// A sweep is not worth it below this many steps.
const SWEEP_MIN_STEPS: usize = 1024;

impl Resolver {
    /// Nothing was written since `version`, and nothing is known before it.
    pub fn new(version: u64) -> Self {
        Self { steps: BTreeMap::new(), oldest: version, newest: version, swept: 0 }
    }

    /// The oldest read version that can still be judged.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Judges a transaction that read `reads` at `read_version`, against all writes recorded so far.
    pub fn check(&self, read_version: u64, reads: &[KeyRange]) -> Verdict {
        if reads.is_empty() {
            return Verdict::Commit;
        }
        if read_version < self.oldest {
            return Verdict::TooOld;
        }
        if reads.iter().any(|range| self.last_write(range) > read_version) {
            return Verdict::Conflict;
        }
        Verdict::Commit
    }

    /// Notes that `writes` are written at `version`.
    ///
    /// # Panics
    /// If `version` is less than an earlier one: the order of commits would be broken.
    pub fn record(&mut self, version: u64, writes: &[KeyRange]) {
        assert!(version >= self.newest, "commit version {version} after {}", self.newest);
        self.newest = version;
        for range in writes.iter().filter(|r| !r.is_empty()) {
            self.write(range, version);
        }
    }

    /// Moves the window: read versions before `oldest` are too old from now on.
    pub fn forget_before(&mut self, oldest: u64) {
        self.oldest = self.oldest.max(oldest);
        if self.steps.len() >= SWEEP_MIN_STEPS.max(self.swept * 2) {
            self.sweep();
        }
    }

    /// How many boundaries are remembered.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether no write is remembered.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn at(&self, key: &[u8]) -> u64 {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.steps.range::<[u8], _>(upto).next_back().map_or(0, |(_, v)| *v)
    }

    fn last_write(&self, range: &KeyRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let within = (Bound::Excluded(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let inner = self.steps.range::<[u8], _>(within).map(|(_, v)| *v).max().unwrap_or(0);
        inner.max(self.at(&range.begin))
    }

    fn write(&mut self, range: &KeyRange, version: u64) {
        let after = self.at(&range.end);
        let within = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let covered: Vec<Vec<u8>> = self.steps.range::<[u8], _>(within).map(|(k, _)| k.clone()).collect();
        for key in covered {
            self.steps.remove(&key);
        }
        self.steps.insert(range.begin.clone(), version);
        self.steps.entry(range.end.clone()).or_insert(after);
    }

    /// Forgets versions that can no longer cause a conflict and joins equal neighbours.
    fn sweep(&mut self) {
        let oldest = self.oldest;
        let mut before = 0;
        self.steps.retain(|_, version| {
            if *version <= oldest {
                *version = 0;
            }
            let keep = *version != before;
            before = *version;
            keep
        });
        self.swept = self.steps.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(begin: &str, end: &str) -> KeyRange {
        KeyRange::new(begin.as_bytes(), end.as_bytes())
    }

    #[test]
    fn a_later_write_conflicts_and_an_earlier_does_not() {
        let mut r = Resolver::new(10);
        r.record(11, &[range("b", "d")]);
        assert_eq!(r.check(10, &[range("c", "c\0")]), Verdict::Conflict);
        assert_eq!(r.check(11, &[range("c", "c\0")]), Verdict::Commit);
        assert_eq!(r.check(10, &[range("d", "z")]), Verdict::Commit);
        assert_eq!(r.check(10, &[range("a", "b")]), Verdict::Commit);
        assert_eq!(r.check(10, &[range("a", "b\0")]), Verdict::Conflict);
    }

    #[test]
    fn too_old_only_with_reads() {
        let mut r = Resolver::new(10);
        r.forget_before(20);
        assert_eq!(r.check(19, &[range("a", "b")]), Verdict::TooOld);
        assert_eq!(r.check(19, &[]), Verdict::Commit);
        assert_eq!(r.check(20, &[range("a", "b")]), Verdict::Commit);
    }

    #[test]
    fn memory_is_bounded_by_the_window() {
        let mut r = Resolver::new(0);
        for version in 1..40_000u64 {
            let key = version.to_be_bytes();
            r.record(version, &[KeyRange::key(&key)]);
            r.forget_before(version.saturating_sub(100));
        }
        assert!(r.len() <= 4096, "{} steps", r.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Tx { lag: u64, reads: Vec<(u8, u8)>, writes: Vec<(u8, u8)> },
        Forget { lag: u64 },
    }

    fn spans() -> impl Strategy<Value = Vec<(u8, u8)>> {
        prop::collection::vec((0u8..40, 0u8..6), 0..4)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..12, spans(), spans())
                .prop_map(|(lag, reads, writes)| Step::Tx { lag, reads, writes }),
            1 => (0u64..10).prop_map(|lag| Step::Forget { lag }),
        ]
    }

    fn ranges(spans: &[(u8, u8)]) -> Vec<KeyRange> {
        spans.iter().map(|(b, n)| KeyRange::new(vec![*b], vec![b + n])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_the_brute_force_model(
            steps in prop::collection::vec(step(), 1..120),
            sweep in any::<bool>(),
        ) {
            let mut resolver = Resolver::new(0);
            let mut last = [0u64; 64];
            let (mut version, mut oldest) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Forget { lag } => {
                        oldest = oldest.max(version.saturating_sub(lag));
                        resolver.forget_before(oldest);
                        if sweep {
                            resolver.sweep();
                        }
                    }
                    Step::Tx { lag, reads, writes } => {
                        let read_version = version.saturating_sub(lag);
                        let touched = reads.iter().flat_map(|(b, n)| *b..b + n).map(|k| last[k as usize]);
                        let expected = if reads.is_empty() {
                            Verdict::Commit
                        } else if read_version < oldest {
                            Verdict::TooOld
                        } else if touched.max().unwrap_or(0) > read_version {
                            Verdict::Conflict
                        } else {
                            Verdict::Commit
                        };
                        let verdict = resolver.check(read_version, &ranges(&reads));
                        prop_assert_eq!(verdict, expected);
                        if verdict == Verdict::Commit {
                            version += 1;
                            resolver.record(version, &ranges(&writes));
                            for key in writes.iter().flat_map(|(b, n)| *b..b + n) {
                                last[key as usize] = version;
                            }
                        }
                    }
                }
            }
        }
    }
}

//! The engine in memory: deterministic, no threads, no clock, no randomness. For tests and the simulator.
//!
//! Every operation completes at its first poll; delays and unknown outcomes come from [`crate::FaultyKv`]
//! around it. Power loss is modelled here: [`MemKv::power_loss`] takes back commits that were only `Ordered`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use crate::api::{BoxFuture, Committed, Durability, KeyRange, KeyValue, Kv, Tx};
use crate::error::KvError;
use crate::mutation::Mutation;
use crate::mutation::{Base, Overlay, apply, stamped, versionstamp};
use crate::oneshot::lock;
use crate::resolver::{Resolver, Verdict};
use crate::tx::{CommitRequest, Engine, EngineTx, WatchRequest};
use crate::watch::WatchSet;

/// How many versions (commits, that is) a read version stays usable.
const DEFAULT_WINDOW_VERSIONS: u64 = 100_000;

/// Versions skipped at a power loss, so that none is used twice.
const POWER_LOSS_GAP_VERSIONS: u64 = 1_000_000;

/// A store in memory. Clones are handles of the same store.
#[derive(Clone)]
pub struct MemKv(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    watches: WatchSet,
}

/// Values of one key by version, oldest first; `None` is a removal.
type History = Vec<(u64, Option<Vec<u8>>)>;

struct State {
    data: BTreeMap<Vec<u8>, History>,
    /// Every write by version, to find what can be forgotten.
    written: VecDeque<(u64, Vec<u8>)>,
    latest: u64,
    /// Everything up to this version survives a power loss.
    durable: u64,
    window: u64,
    resolver: Resolver,
}

impl Default for MemKv {
    fn default() -> Self {
        Self::new()
    }
}

impl MemKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_window(DEFAULT_WINDOW_VERSIONS)
    }

    /// An empty store in which a read version is too old `window_versions` commits later.
    pub fn with_window(window_versions: u64) -> Self {
        let state = State {
            data: BTreeMap::new(),
            written: VecDeque::new(),
            latest: 1,
            durable: 1,
            window: window_versions,
            resolver: Resolver::new(1),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), watches: WatchSet::default() }))
    }

    /// Lets `versions` versions pass without a commit, as time does in FoundationDB.
    pub fn advance(&self, versions: u64) {
        let mut state = lock(&self.0.state);
        state.latest += versions;
        state.forget();
    }

    /// The newest version, and the newest one that survives a power loss.
    pub fn versions(&self) -> (u64, u64) {
        let state = lock(&self.0.state);
        (state.latest, state.durable)
    }

    /// Makes everything committed so far durable, as the background flush does.
    pub fn flush(&self) {
        let mut state = lock(&self.0.state);
        state.durable = state.latest;
    }

    /// The power fails: commits after a version chosen by `keep` are gone. `keep` gets the newest durable
    /// and the newest version and says up to which one survives; its answer is brought within these two.
    /// Transactions that were open fail as too old, watches are cancelled. Returns the surviving version.
    pub fn power_loss(&self, keep: impl FnOnce(u64, u64) -> u64) -> u64 {
        let kept = {
            let mut state = lock(&self.0.state);
            let kept = keep(state.durable, state.latest).clamp(state.durable, state.latest);
            state.roll_back(kept);
            kept
        };
        self.0.watches.cancel(false);
        kept
    }
}

impl State {
    fn roll_back(&mut self, kept: u64) {
        self.data.retain(|_, history| {
            history.retain(|(version, _)| *version <= kept);
            !history.is_empty()
        });
        self.written.retain(|(version, _)| *version <= kept);
        self.latest += POWER_LOSS_GAP_VERSIONS;
        self.durable = self.latest;
        self.resolver = Resolver::new(self.latest);
    }

    fn value(&self, key: &[u8], version: u64) -> Option<&Vec<u8>> {
        visible(self.data.get(key)?, version)
    }

    fn horizon(&self) -> u64 {
        self.resolver.oldest().min(self.durable)
    }

    /// Moves the window and forgets versions that nobody can read or fall back to.
    fn forget(&mut self) {
        self.resolver.forget_before(self.latest.saturating_sub(self.window));
        let horizon = self.horizon();
        while self.written.front().is_some_and(|(version, _)| *version <= horizon) {
            let Some((_, key)) = self.written.pop_front() else { return };
            let Some(history) = self.data.get_mut(&key) else { continue };
            let visible = history.iter().rposition(|(version, _)| *version <= horizon).unwrap_or(0);
            history.drain(..visible);
            if matches!(history.as_slice(), [(version, None)] if *version <= horizon) {
                self.data.remove(&key);
            }
        }
    }

    fn commit(&mut self, request: CommitRequest) -> Result<(Committed, Overlay, Vec<WatchRequest>), KvError> {
        match self.resolver.check(request.read_version, &request.reads) {
            Verdict::Commit => {}
            Verdict::Conflict => return Err(KvError::Conflict),
            Verdict::TooOld => return Err(KvError::TooOld),
        }
        let version = self.latest + 1;
        let stamp = versionstamp(version, 0);
        let mut writes = request.writes;
        add_stamped_keys(&request.log, &stamp, &mut writes);
        let mut overlay = Overlay::new();
        apply(request.log, &stamp, &mut overlay, &mut Latest(self))?;
        self.latest = version;
        self.resolver.record(version, &writes);
        for (key, value) in &overlay {
            self.data.entry(key.clone()).or_default().push((version, value.clone()));
            self.written.push_back((version, key.clone()));
        }
        if request.durability == Durability::Durable {
            self.durable = version;
        }
        self.forget();
        Ok((Committed { version, versionstamp: stamp }, overlay, request.watches))
    }
}

/// Adds the keys that got their versionstamp to the write conflicts.
pub(crate) fn add_stamped_keys(log: &[Mutation], stamp: &[u8; 10], writes: &mut Vec<KeyRange>) {
    for mutation in log {
        if let Mutation::StampedKey { key, offset, .. } = mutation {
            writes.push(KeyRange::key(&stamped(key, *offset, stamp)));
        }
    }
}

fn visible(history: &History, version: u64) -> Option<&Vec<u8>> {
    history.iter().rev().find(|(at, _)| *at <= version).and_then(|(_, value)| value.as_ref())
}

struct Latest<'a>(&'a State);

impl Base for Latest<'_> {
    fn value(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.value(key, u64::MAX).cloned())
    }

    fn keys(&mut self, range: &KeyRange) -> Result<Vec<Vec<u8>>, KvError> {
        let bounds = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let within = self.0.data.range::<[u8], _>(bounds);
        Ok(within.filter(|(_, h)| visible(h, u64::MAX).is_some()).map(|(k, _)| k.clone()).collect())
    }
}

impl Engine for Shared {
    type View = u64;

    fn view(&self, version: Option<u64>) -> Result<(u64, u64), KvError> {
        let state = lock(&self.state);
        let version = version.unwrap_or(state.latest);
        if version > state.latest {
            return Err(KvError::FutureVersion);
        }
        if version < state.resolver.oldest() {
            return Err(KvError::TooOld);
        }
        Ok((version, version))
    }

    fn check_age(&self, version: u64) -> Result<(), KvError> {
        let oldest = lock(&self.state).resolver.oldest();
        if version < oldest { Err(KvError::TooOld) } else { Ok(()) }
    }

    fn get(&self, view: &u64, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(lock(&self.state).value(key, *view).cloned())
    }

    fn scan(
        &self,
        view: &u64,
        range: &KeyRange,
        reverse: bool,
        max: usize,
    ) -> Result<Vec<KeyValue>, KvError> {
        let state = lock(&self.state);
        let bounds = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let within = state.data.range::<[u8], _>(bounds);
        let pair =
            |(key, history): (&Vec<u8>, &History)| Some((key.clone(), visible(history, *view)?.clone()));
        Ok(if reverse {
            within.rev().filter_map(pair).take(max).collect()
        } else {
            within.filter_map(pair).take(max).collect()
        })
    }

    fn commit(&self, mut request: CommitRequest) -> BoxFuture<'static, Result<Committed, KvError>> {
        let done = {
            let mut state = lock(&self.state);
            // A watch of a key this commit writes waits for the next change after it.
            let unseen: Vec<usize> =
                (0..request.watches.len()).filter(|i| request.watches[*i].seen.is_none()).collect();
            let done =
                state.commit(CommitRequest { watches: std::mem::take(&mut request.watches), ..request });
            done.map(|(committed, overlay, mut watches)| {
                for i in unseen {
                    watches[i].seen = Some(state.value(&watches[i].watch.key, u64::MAX).cloned());
                }
                (committed, overlay, watches)
            })
        };
        let result = done.and_then(|(committed, overlay, watches)| {
            self.watches.committed(&overlay);
            self.arm(watches)?;
            Ok(committed)
        });
        Box::pin(std::future::ready(result))
    }

    fn arm(&self, watches: Vec<WatchRequest>) -> Result<(), KvError> {
        for WatchRequest { watch, seen } in watches {
            let key = watch.key.clone();
            let current = || lock(&self.state).value(&key, u64::MAX).cloned();
            self.watches.arm(watch, seen.unwrap_or_else(current));
            self.watches.changed(&key, current().as_deref());
        }
        Ok(())
    }
}

impl Kv for MemKv {
    fn begin(&self) -> Box<dyn Tx> {
        Box::new(EngineTx::new(self.0.clone()))
    }

    fn name(&self) -> &'static str {
        "mem"
    }

    fn sync(&self) -> BoxFuture<'static, Result<(), KvError>> {
        let kv = self.clone();
        Box::pin(async move {
            kv.flush();
            Ok(())
        })
    }
}

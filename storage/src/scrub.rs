//! Reading everything once in a while: what fails its checksum, or can't be read, is repaired from another replica,
//! and looked at again afterwards; what lies in many pieces is compacted. One loop a disk, one chunk at a time; a
//! round that somebody asked for goes first and takes only the pauses that the bandwidth asks for.

use crate::node::Node;
use crate::target::Target;
use ember_craq::Input;
use ember_engine::EngineError;
use ember_net::{Request, Response};
use ember_rt::disk::Priority;
use ember_rt::select::select;
use ember_rt::watch;
use ember_types::{ChunkId, ChunkVersion, DataId, Instant, Status};
use ember_wire::method::ScrubTarget;
use ember_wire::mgmtd::ScrubProgress;
use ember_wire::storage::ScrubResponse;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How often an idle scrub looks for work.
const IDLE: Duration = Duration::from_secs(10);
/// Longest pause of a scrub that has time.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Longest wait for the repair of one chunk; the next round looks at it again.
const REPAIR_LIMIT: Duration = Duration::from_secs(5);
/// How often it is written down how far a round has come.
const SAVE: Duration = Duration::from_secs(60);
/// The name under which it is.
const NOTE: &str = "scrub";
/// First and longest pause between two looks at a chunk that is being repaired.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

#[derive(Clone, Copy, Default)]
struct Counts {
    chunks: u64,
    bytes: u64,
    found: u64,
    repaired: u64,
}

/// One pass over a target.
struct Round {
    ordered: bool,
    total: u64,
    files_done: bool,
    after: Option<ChunkId>,
    counts: Counts,
}

#[derive(Default)]
struct State {
    round: Option<Round>,
    ordered: bool,
    rounds: u64,
    finished_ms: u64,
    last: Counts,
    found: u64,
    /// What an earlier process wrote down has been taken over.
    loaded: bool,
    saved: Instant,
}

/// How far the scrub of a target has come.
#[derive(Default)]
pub(crate) struct Scrub(RefCell<State>);

impl Scrub {
    /// What `ember status` shows; a round that was asked for and has not begun counts as running.
    fn progress(&self) -> ScrubProgress {
        let state = self.0.borrow();
        let (running, total) = match &state.round {
            Some(round) => (round.counts, round.total),
            None => (Counts::default(), 0),
        };
        ScrubProgress {
            running: state.round.is_some() || state.ordered,
            chunks_done: running.chunks,
            chunks_total: total.max(running.chunks),
            bytes_done: running.bytes,
            rounds: state.rounds,
            finished_ms: state.finished_ms,
            last_chunks: state.last.chunks,
            last_bytes: state.last.bytes,
            last_found: state.last.found,
            last_repaired: state.last.repaired,
            found: state.found,
            ..ScrubProgress::default()
        }
    }
    /// Asks for a whole round from here on; returns the number of the round that will be it.
    fn order(&self) -> u64 {
        let mut state = self.0.borrow_mut();
        state.ordered = true;
        state.round = None;
        state.rounds + 1
    }
    fn is_urgent(&self) -> bool {
        let state = self.0.borrow();
        state.ordered || state.round.as_ref().is_some_and(|round| round.ordered)
    }
    fn with_round<T>(&self, change: impl FnOnce(&mut Round) -> T) -> Option<T> {
        self.0.borrow_mut().round.as_mut().map(change)
    }
    /// For a later process: the last round, and how far the present one is.
    fn to_note(&self) -> String {
        let state = self.0.borrow();
        let counts = |c: &Counts| format!("{} {} {} {}", c.chunks, c.bytes, c.found, c.repaired);
        let mut text = format!("1 {} {}", state.finished_ms, counts(&state.last));
        if let Some(Round { total, after: Some(after), counts: own, ordered: false, .. }) = &state.round {
            text += &format!(" {total} {} {} {}", after.data.0, after.index, counts(own));
        }
        text
    }
    /// Takes over what an earlier process wrote; what makes no sense is left.
    fn load(&self, text: &str) {
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.unwrap_or_default();
        let [1, finished_ms, chunks, bytes, found, repaired, rest @ ..] = numbers.as_slice() else { return };
        let counts = |(&chunks, &bytes, &found, &repaired)| Counts { chunks, bytes, found, repaired };
        let mut state = self.0.borrow_mut();
        (state.finished_ms, state.last) = (*finished_ms, counts((chunks, bytes, found, repaired)));
        if let [total, data, index, chunks, bytes, found, repaired] = rest
            && let Ok(index) = u32::try_from(*index)
            && !state.ordered
        {
            let (total, after) = (*total, Some(ChunkId::new(DataId(*data), index)));
            let counts = counts((chunks, bytes, found, repaired));
            state.round = Some(Round { ordered: false, total, files_done: true, after, counts });
        }
    }
    /// Begins a round if there is none.
    fn begin(&self, chunks: usize) {
        let mut state = self.0.borrow_mut();
        if state.round.is_none() {
            let ordered = std::mem::take(&mut state.ordered);
            let total = chunks as u64;
            let (counts, after) = (Counts::default(), None);
            state.round = Some(Round { ordered, total, files_done: false, after, counts });
        }
    }
    fn note(&self, found: u64, repaired: u64) {
        self.0.borrow_mut().found += found;
        self.with_round(|round| {
            round.counts.found += found;
            round.counts.repaired += repaired;
        });
    }
    fn finish(&self, now_ms: u64) -> Option<Counts> {
        let mut state = self.0.borrow_mut();
        let round = state.round.take()?;
        state.rounds += 1;
        state.finished_ms = now_ms;
        state.last = round.counts;
        Some(round.counts)
    }
}

impl Target {
    pub(crate) fn scrub_progress(&self) -> ScrubProgress {
        ScrubProgress {
            repaired: self.repairs.get(),
            quarantined: self.engine.quarantined() as u64,
            ..self.scrub.progress()
        }
    }
}

/// Scrubs the targets of one disk until `shutdown` turns true.
pub(crate) async fn run(node: Rc<Node>, disk: u32, shutdown: watch::Receiver<bool>) {
    let period = Duration::from_secs(node.context.config.scrub_period_s);
    select(node.context.rt.sleep(IDLE), node.scrub_wanted.notified()).await;
    let mut due = Instant::default();
    while !*shutdown.borrow() {
        if node.stands_still(disk) {
            node.context.rt.sleep(LOOK.0).await;
            continue;
        }
        let targets: Vec<Rc<Target>> =
            node.running().into_iter().filter(|t| t.disk == disk && t.engine.failure().is_none()).collect();
        let urgent = targets.iter().find(|target| target.scrub.is_urgent());
        // Everyone in turn; one that has begun goes on.
        let turn = |target: &&Rc<Target>| (target.scrub.progress().rounds, !target.scrub.progress().running);
        let usual = targets.iter().min_by_key(turn).filter(|_| !period.is_zero());
        let rt = &node.context.rt;
        let begin = rt.now();
        if let Some(target) = urgent {
            if let Step::Chunk(cost) = step(&node, target).await {
                due = due.max(begin) + cost;
            }
            // Shorter pauses are saved up: many chunks are small.
            if due > rt.now() + LOOK.0 {
                rt.sleep_until(due).await;
            }
            continue;
        }
        let mut pause = IDLE;
        if let Some(target) = usual {
            // So slow that a round takes the period, and never faster than the bandwidth allows.
            let chunks: usize = targets.iter().map(|target| target.engine.len()).sum();
            let slow = (period / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX)).min(PAUSE_MAX);
            pause = match step(&node, target).await {
                Step::Chunk(cost) => cost.max(slow),
                Step::Finished if chunks == 0 => slow,
                Step::Files | Step::Finished => Duration::ZERO,
            };
        }
        let wanted = node.scrub_wanted.notified();
        if !targets.iter().any(|target| target.scrub.is_urgent()) {
            select(rt.sleep_until(begin + pause), wanted).await;
        }
    }
}

/// What a step of a round was.
enum Step {
    /// The files around the chunks were read, which takes its time by itself.
    Files,
    /// A chunk was read, which should take so long at least.
    Chunk(Duration),
    Finished,
}

/// Goes on with a target's round.
async fn step(node: &Node, target: &Rc<Target>) -> Step {
    let rate = node.context.config.scrub_bytes_per_s.max(1);
    if !std::mem::replace(&mut target.scrub.0.borrow_mut().loaded, true)
        && let Ok(Some(text)) = target.engine.read_note(NOTE)
    {
        target.scrub.load(&text);
    }
    target.scrub.begin(target.engine.len());
    let (files_done, after) = target.scrub.with_round(|r| (r.files_done, r.after)).unwrap_or_default();
    if !files_done {
        let bytes = scrub_files(target, rate).await;
        // Nothing if the round was begun anew meanwhile.
        target.scrub.with_round(|round| {
            round.files_done = true;
            round.counts.bytes += bytes;
        });
        return Step::Files;
    }
    let Some((chunk, state)) = target.engine.list(after, 1).pop() else {
        if let Some(counts) = target.scrub.finish(node.context.cluster_ms()) {
            let Counts { chunks, bytes, found, repaired } = counts;
            tracing::info!(target = %target.id, chunks, bytes, found, repaired, "scrubbed");
        }
        save(node, target, Duration::ZERO);
        return Step::Finished;
    };
    let length = |content: Option<ember_engine::ContentState>| {
        content.filter(|content| !content.removed).map_or(0, |content| u64::from(content.length))
    };
    let bytes = length(state.committed) + length(state.pending);
    let sound = scrub_chunk(target, chunk).await;
    target.scrub.with_round(|round| {
        round.after = Some(chunk);
        round.counts.chunks += 1;
        round.counts.bytes += bytes;
    });
    save(node, target, SAVE);
    let mut moved = bytes;
    match sound {
        // Read and written.
        Sound::Yes => moved += 2 * compact(target, chunk).await,
        Sound::Repaired => target.scrub.note(1, 1),
        Sound::No => target.scrub.note(1, 0),
    }
    Step::Chunk(Duration::from_nanos(moved.saturating_mul(1_000_000_000) / rate))
}

/// Writes a sound chunk that lies in many pieces anew; returns the bytes written.
async fn compact(target: &Target, chunk: ChunkId) -> u64 {
    let written = || target.engine.counters().compacted_bytes;
    let before = written();
    match target.engine.compact(chunk).await {
        Ok(_) => {}
        Err(error @ (EngineError::NoSpace { .. } | EngineError::NotFound(_))) => {
            tracing::debug!(target = %target.id, %chunk, %error, "not compacted");
        }
        Err(error) => tracing::warn!(target = %target.id, %chunk, %error, "not compacted"),
    }
    written() - before
}

/// Writes down how far the scrub is, unless it did less than `pause` ago.
fn save(node: &Node, target: &Target, pause: Duration) {
    let now = node.context.rt.now();
    if now.since(target.scrub.0.borrow().saved) < pause {
        return;
    }
    target.scrub.0.borrow_mut().saved = now;
    if let Err(error) = target.engine.write_note(NOTE, &target.scrub.to_note()) {
        tracing::debug!(target = %target.id, %error, "how far the scrub is was not written down");
    }
}

/// Whether a chunk is as it should be.
enum Sound {
    Yes,
    Repaired,
    No,
}

/// Reads all that is here of a chunk. What is damaged is repaired and read again: a pending version as soon as it is
/// committed.
async fn scrub_chunk(target: &Rc<Target>, chunk: ChunkId) -> Sound {
    let error = match target.engine.verify(chunk, Priority::Scrub).await {
        Ok(()) | Err(EngineError::NotFound(_)) => return Sound::Yes,
        Err(error) => error,
    };
    let Some(version) = live_version(target, chunk) else { return Sound::Yes };
    target.bad_bytes(chunk, version, &error);
    let rt = &target.node.rt;
    let (until, mut pause) = (rt.now() + REPAIR_LIMIT, LOOK.0);
    while rt.now() < until {
        rt.sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
        match target.engine.verify(chunk, Priority::Scrub).await {
            Ok(()) | Err(EngineError::NotFound(_)) => return Sound::Repaired,
            // Nobody had its bytes when it was copied here: they may turn up, but not because somebody waits.
            Err(EngineError::Lost(_)) => break,
            Err(_) => {}
        }
        if target.engine.failure().is_some() {
            break;
        }
        if let Some(version) = live_version(target, chunk) {
            target.input(Input::RepairWanted { chunk, version });
        }
    }
    tracing::error!(target = %target.id, %chunk, %error, "a damaged chunk is not repaired");
    Sound::No
}

/// The committed version, or that of a chunk that has none yet; `None` if nothing is here.
fn live_version(target: &Target, chunk: ChunkId) -> Option<ChunkVersion> {
    let state = target.engine.state(chunk)?;
    let live = state.live().or(state.pending)?;
    Some(live.version)
}

/// Looks at the files around the chunks and has damaged ones written anew; returns the bytes read.
async fn scrub_files(target: &Rc<Target>, rate: u64) -> u64 {
    let found = match target.engine.check_files(rate).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(target = %target.id, %error, "files can't be scrubbed");
            return 0;
        }
    };
    let (bytes, count) = (found.bytes, found.damaged.len() as u64);
    if count == 0 {
        return bytes;
    }
    for error in &found.damaged {
        tracing::warn!(target = %target.id, %error, "a damaged file: written anew");
    }
    let healed = match target.engine.heal_files(found).await {
        Ok(()) => target.engine.check_files(rate).await.map(|again| again.damaged.is_empty()),
        Err(error) => Err(error),
    };
    if let Err(error) = &healed {
        tracing::error!(target = %target.id, %error, "damaged files are not written anew");
    }
    target.scrub.note(count, if healed.is_ok_and(|healed| healed) { count } else { 0 });
    bytes
}

impl Node {
    /// An operator asks for a round now, or how far it is.
    pub(crate) fn scrub_target(&self, request: &Request) -> Result<Response, Response> {
        let scrub = request.decode::<ScrubTarget>()?;
        let mut answer =
            ScrubResponse { status: Status::StaleRouting, round: 0, progress: ScrubProgress::default() };
        if let Some(target) = self.replica(&scrub.to) {
            answer.status = match target.engine.failure() {
                Some(_) => Status::DeviceError,
                None => Status::Ok,
            };
            if scrub.start && answer.status == Status::Ok {
                answer.round = target.scrub.order();
                self.scrub_wanted.notify_waiters();
            }
            answer.progress = target.scrub_progress();
        }
        Ok(Response::ok::<ScrubTarget>(&answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_on_after_a_restart_and_an_ordered_one_begins_anew() {
        let scrub = Scrub::default();
        scrub.begin(10);
        let after = Some(ChunkId::new(DataId(7), 3));
        scrub.with_round(|round| {
            round.after = after;
            round.counts = Counts { chunks: 4, bytes: 400, found: 1, repaired: 1 };
        });
        let later = Scrub::default();
        later.load(&scrub.to_note());
        assert_eq!(later.with_round(|round| (round.after, round.files_done)), Some((after, true)));
        let progress = later.progress();
        assert!(progress.running && (progress.chunks_done, progress.chunks_total) == (4, 10));
        // Somebody asked for a whole round.
        assert_eq!(later.order(), 1);
        later.begin(10);
        assert_eq!(later.with_round(|round| (round.after, round.ordered)), Some((None, true)));
        later.finish(99);
        let last = Scrub::default();
        last.load(&later.to_note());
        assert!(!last.progress().running && last.progress().finished_ms == 99);
    }

    #[test]
    fn odd_notes_are_ignored() {
        for text in ["", "2 1 2 3 4 5", "1 2", "1 1 2 3 4 x", "-1", "1 99999999999999999999 1 1 1 1"] {
            let scrub = Scrub::default();
            scrub.load(text);
            assert_eq!(scrub.progress(), ScrubProgress::default(), "{text:?}");
        }
    }
}

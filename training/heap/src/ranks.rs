//! Ranks that share memory: how they come together, wait for each other, and part.

use crate::HeapError;
use crate::memory::Memory;
use rustix::thread::futex;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes between two signals: one for each line of a processor's cache.
const STRIDE: usize = 64;
/// Looks at a signal before this rank sleeps.
const LOOKS: u32 = 200;
/// Longest sleep between two looks at the time and at the other ranks.
const NAP: Duration = Duration::from_millis(50);
/// Longer limits are none.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// A heap begins at a multiple of this.
const PAGE: usize = 4096;
/// Ranks of a heap at most.
const RANKS_MAX: usize = 1 << 16;

/// Signals of this module, before those of its users: I have mapped the memory, and my words stand there;
const JOINED: usize = 0;
/// I have seen that all have;
const READY: usize = 1;
/// I am no longer there. 1: all is done; 2 + r: because of r.
const END: usize = 2;
const OWN_SIGNALS: usize = 3;
const LEFT: u32 = 1;
const FAILED: u32 = 2;

/// Which ranks come together, and what they share.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// The file, which must be in memory (`/dev/shm`), must not be there before, and is gone when all have joined or
    /// one has given up.
    pub path: &'a Path,
    /// The own number.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// The number by which the users know the first of them: a rank that fails to join is named to the others so.
    pub first: usize,
    /// Kinds of signals: each rank has one of each kind from each rank.
    pub signals: usize,
    /// Bytes of each rank's heap, offset 0 first.
    pub bytes: usize,
    /// Numbers that all must have alike, and their names.
    pub words: &'a [(&'static str, u64)],
    /// How long a rank is waited for at most, now and later.
    pub limit: Duration,
}

/// A rank's way to the memory of all ranks.
pub struct Heap {
    memory: Memory,
    path: PathBuf,
    inode: u64,
    rank: usize,
    ranks: usize,
    /// Where the users' bytes begin.
    first: usize,
    limit: Duration,
    number: u64,
}

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
fn now() -> Instant {
    Instant::now()
}

/// The file, with all its space: it appears whole, so that nobody sees it shorter.
fn shared(path: &Path, rank: usize, bytes: u64) -> std::io::Result<File> {
    let opened = || File::options().read(true).write(true).open(path);
    match opened() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{rank}", std::process::id()));
    let made = PathBuf::from(name);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&made)?;
    let placed = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .map_err(std::io::Error::from)
        .and_then(|()| std::fs::hard_link(&made, path));
    std::fs::remove_file(&made)?;
    match placed {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => opened(),
        other => other.map(|()| file),
    }
}

impl Heap {
    /// Joins the other ranks, and returns when all are there.
    ///
    /// # Errors
    /// If the file can't be made, or a rank doesn't come, comes twice, dies or has other numbers.
    pub fn join(join: &Join<'_>) -> Result<Self, HeapError> {
        let Join { path, rank, ranks, .. } = *join;
        let failed = |why: String| HeapError::File { path: path.display().to_string(), why };
        let system = |error: std::io::Error| failed(error.to_string());
        if rank >= ranks || ranks > RANKS_MAX {
            return Err(failed(format!("rank {rank} of {ranks}: there are 1 to {RANKS_MAX}, from 0 on")));
        }
        let words = STRIDE * (OWN_SIGNALS + join.signals) * ranks;
        let first = (words + 8 * (join.words.len() + 1)).next_multiple_of(STRIDE);
        let each = first.checked_add(join.bytes).and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
        let all = each.and_then(|each| each.checked_mul(ranks)).filter(|all| *all <= isize::MAX as usize);
        let (Some(each), Some(all)) = (each, all) else {
            return Err(failed(format!("{} bytes for each of {ranks} ranks are too many", join.bytes)));
        };
        let file = shared(path, rank, all as u64)
            .map_err(|error| failed(format!("{error} (it takes {all} bytes)")))?;
        let there = file.metadata().map_err(system)?;
        if there.len() != all as u64 {
            let there = there.len();
            let why = format!(
                "it has {there} bytes, and this rank's numbers need {all}: start all ranks with the same"
            );
            return Err(failed(why));
        }
        let memory = Memory::map(file, each).map_err(system)?;
        let limit = join.limit.min(LIMIT_MAX);
        let number = RandomState::new().build_hasher().finish();
        let mut heap =
            Self { memory, path: path.to_owned(), inode: there.ino(), rank, ranks, first, limit, number };
        if !heap.memory.lock(rank).map_err(system)? {
            return Err(failed(format!("rank {rank} has joined already")));
        }
        if heap.told(rank, JOINED) != 0 {
            return Err(failed("an earlier job has left the file: remove it".into()));
        }
        let met = heap.meet(join, words);
        // Nobody else will need it: all have mapped it, or there will be no group.
        if rank == 0 || met.is_err() {
            heap.unlink();
        }
        if let Err(error) = &met {
            let culprit = match error {
                HeapError::Ended { culprit, .. } => *culprit,
                other => join.first + other.rank().unwrap_or(rank),
            };
            heap.fail(culprit);
        }
        met.map(|()| heap)
    }

    /// Waits until all ranks are there, and says so.
    fn meet(&mut self, join: &Join<'_>, at: usize) -> Result<(), HeapError> {
        let ours = join.words.iter().map(|(_, word)| *word).chain([self.number]);
        let bytes: Vec<u8> = ours.flat_map(u64::to_le_bytes).collect();
        self.memory.put(self.rank, at, &bytes);
        (0..self.ranks).for_each(|to| self.signal(to, JOINED, 1));
        let word = |rank: usize, i: usize| {
            let (bytes, _) = self.memory.get(rank, at + 8 * i, 8).as_chunks();
            u64::from_le_bytes(bytes[0])
        };
        for rank in 0..self.ranks {
            self.await_signal(rank, JOINED, 1, "joined")?;
            for (i, &(what, ours)) in join.words.iter().enumerate() {
                let theirs = word(rank, i);
                if theirs != ours {
                    return Err(HeapError::Disagree { rank, what, theirs, ours });
                }
            }
        }
        // The group's number is that of rank 0.
        let number = word(0, join.words.len());
        (0..self.ranks).for_each(|to| self.signal(to, READY, 1));
        (0..self.ranks).try_for_each(|rank| self.await_signal(rank, READY, 1, "joined"))?;
        self.number = number;
        Ok(())
    }

    /// Takes the name away once nobody needs it, unless it is that of another attempt's file.
    fn unlink(&self) {
        if std::fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The own number.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }
    /// A random number that all ranks of this group have, to tell groups apart.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// How long a rank is waited for.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Writes into the heap of a rank, at a place that it has said is free.
    ///
    /// # Panics
    /// If the place is outside of the heap.
    pub fn put(&self, rank: usize, offset: usize, bytes: &[u8]) {
        self.memory.put(rank, self.inside(offset), bytes);
    }
    /// Bytes of the own heap that others have said they have written, until this rank says that the place is free.
    ///
    /// # Panics
    /// If they are outside of the heap.
    pub fn own(&self, offset: usize, length: usize) -> &[u8] {
        self.memory.get(self.rank, self.inside(offset), length)
    }
    fn inside(&self, offset: usize) -> usize {
        self.first.checked_add(offset).expect("outside of a heap")
    }

    fn place(&self, from: usize, kind: usize) -> usize {
        assert!(from < self.ranks, "there is such a rank");
        STRIDE * (kind * self.ranks + from)
    }
    fn signal(&self, to: usize, kind: usize, value: u32) {
        let signal = self.memory.signal(to, self.place(self.rank, kind));
        signal.store(value, Ordering::Release);
        let _ = futex::wake(signal, futex::Flags::empty(), u32::MAX);
    }
    fn told(&self, from: usize, kind: usize) -> u32 {
        self.memory.signal(self.rank, self.place(from, kind)).load(Ordering::Acquire)
    }

    /// Tells a rank; what was written before is seen by whoever sees this.
    ///
    /// # Panics
    /// If there is no such rank or kind of signal.
    pub fn tell(&self, to: usize, signal: usize, value: u32) {
        self.signal(to, OWN_SIGNALS + signal, value);
    }
    /// Tells all ranks, this one too.
    pub fn tell_all(&self, signal: usize, value: u32) {
        (0..self.ranks).for_each(|to| self.tell(to, signal, value));
    }
    /// Waits until a rank has told this one at least `value`, counted round. `what` is what it then has done.
    ///
    /// # Errors
    /// If it has not when the limit is over, or a rank has died or given up before.
    pub fn wait(&self, from: usize, signal: usize, value: u32, what: &'static str) -> Result<(), HeapError> {
        self.await_signal(from, OWN_SIGNALS + signal, value, what)
    }
    /// What a rank has told this one last; 0 before.
    ///
    /// # Panics
    /// If there is no such rank or kind of signal.
    pub fn last(&self, from: usize, signal: usize) -> u32 {
        self.told(from, OWN_SIGNALS + signal)
    }

    fn await_signal(
        &self,
        from: usize,
        kind: usize,
        value: u32,
        what: &'static str,
    ) -> Result<(), HeapError> {
        let signal = self.memory.signal(self.rank, self.place(from, kind));
        let there = || reached(signal.load(Ordering::Acquire), value);
        let mut until = None;
        loop {
            for _ in 0..LOOKS {
                if there() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            let trouble = self.look(Some((from, what)));
            // It may have done its part, and have left then.
            if there() {
                return Ok(());
            }
            trouble?;
            let until = *until.get_or_insert_with(|| now() + self.limit);
            let left = until.saturating_duration_since(now()).min(NAP);
            if left.is_zero() {
                return Err(HeapError::Late { rank: from, what, milliseconds: self.limit.as_millis() });
            }
            let seen = signal.load(Ordering::Acquire);
            if !reached(seen, value) {
                let left = futex::Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
                let _ = futex::wait(signal, futex::Flags::empty(), seen, Some(&left));
            }
        }
    }

    /// Looks whether a rank has died or given up. For those who wait for something else; one that has left in order
    /// is no trouble.
    ///
    /// # Errors
    /// If so.
    pub fn check(&self) -> Result<(), HeapError> {
        self.look(None)
    }

    /// `awaited`: which rank must not have left either, and what it has to do.
    fn look(&self, awaited: Option<(usize, &'static str)>) -> Result<(), HeapError> {
        let joined = || (0..self.ranks).filter(|rank| *rank != self.rank && self.told(*rank, JOINED) != 0);
        // The lock first: who leaves in order says so while it has it.
        let dead = |rank: &usize| !self.memory.is_locked(*rank).unwrap_or(true) && self.told(*rank, END) == 0;
        let dead = joined().find(dead);
        // Who gives up says why; who then leaves, or dies, only follows.
        for rank in joined() {
            if let Some(culprit) = self.told(rank, END).checked_sub(FAILED) {
                return Err(HeapError::Ended { rank, culprit: culprit as usize });
            }
        }
        let left = awaited.map(|(from, _)| from).filter(|from| self.told(*from, END) == LEFT);
        match dead.or(left) {
            Some(rank) => Err(HeapError::Gone { rank, what: awaited.map_or("ended in order", |a| a.1) }),
            None => Ok(()),
        }
    }

    /// Says that this rank gives up because of rank `culprit`, in whatever way its users number ranks: the calls of the
    /// others end with an error. The first time counts.
    pub fn fail(&self, culprit: usize) {
        self.end(FAILED.saturating_add(u32::try_from(culprit).unwrap_or(u32::MAX)));
    }
    fn end(&self, how: u32) {
        if self.told(self.rank, END) == 0 {
            (0..self.ranks).for_each(|to| self.signal(to, END, how));
        }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // A thread that panics takes its rank with it; that is no leaving in order.
        if !std::thread::panicking() {
            self.end(LEFT);
        }
    }
}

fn reached(now: u32, value: u32) -> bool {
    now.wrapping_sub(value).cast_signed() >= 0
}

impl HeapError {
    /// The rank that is to blame.
    pub fn rank(&self) -> Option<usize> {
        match *self {
            Self::Late { rank, .. } | Self::Gone { rank, .. } | Self::Disagree { rank, .. } => Some(rank),
            Self::Ended { culprit, .. } => Some(culprit),
            Self::File { .. } => None,
        }
    }
}

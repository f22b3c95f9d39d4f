//! How ranks come together, wait for each other, and part.

use ember_heap::{Heap, HeapError, Join};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A file that nobody else uses.
fn path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder =
        if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    folder.join(format!("ember-heap-{}-{number}", std::process::id()))
}

fn join(path: &Path, rank: usize, ranks: usize, word: u64, limit: Duration) -> Result<Heap, HeapError> {
    let words = &[("word", word)];
    Heap::join(&Join { path, rank, ranks, first: 0, signals: 2, bytes: 100, words, limit })
}

/// Runs a thread for each rank.
fn ranks<T: Send>(ranks: usize, work: impl Fn(Heap) -> T + Sync) -> Vec<T> {
    let (path, work) = (path(), &work);
    let all = std::thread::scope(|scope| {
        let path = &path;
        let rank = |rank| scope.spawn(move || work(join(path, rank, ranks, 5, LONG).unwrap()));
        let threads: Vec<_> = (0..ranks).map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(!path.exists(), "nothing is left behind");
    all
}

#[test]
fn what_one_writes_another_reads_when_told() {
    let numbers = ranks(3, |heap| {
        for round in 1..=500u32 {
            let next = (heap.rank() + 1) % 3;
            heap.put(next, 64, &round.to_le_bytes());
            heap.tell(next, 1, round);
            let before = (heap.rank() + 2) % 3;
            heap.wait(before, 1, round, "written").unwrap();
            assert_eq!(heap.own(64, 4), round.to_le_bytes());
            heap.tell_all(0, round);
            (0..3).for_each(|rank| heap.wait(rank, 0, round, "read").unwrap());
        }
        heap.number()
    });
    assert!(numbers.iter().all(|number| *number == numbers[0]), "the group has one number");
}

#[test]
fn one_that_leaves_in_order_is_missed_only_by_those_who_wait_for_it() {
    ranks(3, |heap| match heap.rank() {
        2 => heap.tell_all(0, 1),
        other => {
            heap.wait(2, 0, 1, "said a word").unwrap();
            heap.wait(2, 0, 1, "said a word").unwrap();
            // Until it has gone.
            let error = heap.wait(2, 0, 2, "said another").unwrap_err();
            assert_eq!(error, HeapError::Gone { rank: 2, what: "said another" });
            heap.check().unwrap();
            heap.tell_all(1, 1);
            heap.wait(1 - other, 1, 1, "come so far").unwrap();
        }
    });
}

#[test]
fn one_that_gives_up_names_the_culprit() {
    ranks(3, |heap| {
        if heap.rank() == 1 {
            heap.fail(77);
            heap.fail(78);
        } else {
            let error = heap.wait(2 - heap.rank(), 0, 1, "said a word").unwrap_err();
            assert_eq!(error, HeapError::Ended { rank: 1, culprit: 77 });
        }
    });
}

#[test]
fn a_thread_that_panics_is_gone() {
    ranks(2, |heap| {
        if heap.rank() == 0 {
            let dies = std::thread::scope(|scope| scope.spawn(move || panic!("{}", heap.rank())).join());
            assert!(dies.is_err());
        } else {
            let error = heap.wait(0, 0, 1, "said a word").unwrap_err();
            assert_eq!(error, HeapError::Gone { rank: 0, what: "said a word" });
        }
    });
}

#[test]
fn one_that_hangs_is_late_and_wrong_ones_are_told() {
    let file = path();
    let text = |result: Result<Heap, HeapError>| result.err().unwrap().to_string();
    let short = Duration::from_millis(80);
    assert!(text(join(&file, 0, 2, 5, short)).contains("rank 1 has not joined within 80 ms"));
    assert!(!file.exists());
    assert!(text(join(&file, 2, 2, 5, short)).contains("rank 2 of 2"));
    std::thread::scope(|scope| {
        // The same number twice: one of them is sent away. Then the right one, with another word.
        let both = [(), ()].map(|()| scope.spawn(|| join(&file, 0, 2, 5, LONG).err().unwrap()));
        while !both.iter().any(|one| one.is_finished()) {
            std::thread::yield_now();
        }
        let error = join(&file, 1, 2, 6, LONG).err().unwrap();
        assert_eq!(error, HeapError::Disagree { rank: 0, what: "word", theirs: 5, ours: 6 });
        let errors = both.map(|one| one.join().unwrap());
        let disagree = HeapError::Disagree { rank: 1, what: "word", theirs: 6, ours: 5 };
        assert!(errors.contains(&disagree), "{errors:?}");
        assert!(errors.iter().any(|error| error.to_string().contains("has joined already")), "{errors:?}");
    });
    // Of another size.
    std::fs::write(&file, [0; 10]).unwrap();
    assert!(text(join(&file, 0, 2, 5, short)).contains("it has 10 bytes"));
    std::fs::remove_file(&file).unwrap();
}

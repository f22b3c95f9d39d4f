//! The engine on disk: what survives, what is refused, exports.
#![allow(clippy::disallowed_methods)] // Threads and real time.

mod support;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ember_kv::{
    Durability, KeyRange, Kv, KvError, LocalKv, LocalOptions, RangeOptions, ReadMode, verify_export,
};
use ember_types::ClusterId;
use support::{TempDir, block_on, commit, copy_dir, get, peek, put};

fn options() -> LocalOptions {
    LocalOptions::new(ClusterId::from_u128(7))
}

fn open(path: &Path) -> LocalKv {
    LocalKv::open(path, options()).unwrap()
}

fn put_ordered(kv: &LocalKv, key: &str, value: &str) {
    let mut tx = kv.begin();
    tx.set(key.as_bytes(), value.as_bytes());
    tx.set_durability(Durability::Ordered);
    commit(tx).unwrap();
}

/// A store with 300 keys, some in tables and some in the journal, closed.
fn filled(path: &Path) {
    for part in 0..3 {
        let kv = open(path);
        for i in 0..100 {
            put_ordered(&kv, &format!("k{part}{i:02}"), &"v".repeat(100));
        }
        if part < 2 {
            kv.compact().unwrap();
        }
        kv.close().unwrap();
    }
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn reopening_keeps_everything_and_versions_go_on() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    let first = put(&kv, "a", "1");
    put_ordered(&kv, "b", "2");
    kv.close().unwrap();
    assert!(matches!(block_on(kv.begin().get(b"a", ReadMode::Snapshot)), Err(KvError::Closed(_))));
    let mut tx = kv.begin();
    tx.set(b"late", b"");
    assert!(matches!(commit(tx), Err(KvError::Closed(_))));
    let kv = open(dir.path());
    assert_eq!(peek(&kv, "a").as_deref(), Some("1"));
    assert_eq!(peek(&kv, "b").as_deref(), Some("2"));
    let mut tx = kv.begin();
    assert!(get(&mut tx, "a").is_some());
    tx.set(b"c", b"3");
    assert!(commit(tx).unwrap().versionstamp > first.versionstamp);
}

#[test]
fn commits_survive_a_kill() {
    let (dir, copy) = (TempDir::new(), TempDir::new());
    let kv = open(dir.path());
    for i in 0..50 {
        put(&kv, &format!("durable{i:02}"), "1");
        put_ordered(&kv, &format!("ordered{i:02}"), "1");
    }
    copy_dir(dir.path(), copy.path());
    let after = open(copy.path());
    let all = block_on(after.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    assert_eq!(all.len(), 100);
    put(&after, "more", "1");
    drop(after);
    assert!(peek(&open(copy.path()), "more").is_some());
}

#[test]
fn ordered_commits_become_durable_by_themselves() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    let mark = || std::fs::read(dir.path().join("mark")).unwrap();
    block_on(kv.sync()).unwrap();
    let before = mark();
    put_ordered(&kv, "a", "1");
    for _ in 0..200 {
        if mark() != before {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not flushed");
}

#[test]
fn sync_makes_ordered_commits_durable() {
    let dir = TempDir::new();
    let late = LocalOptions { flush_after: Duration::from_secs(60), ..options() };
    let kv = LocalKv::open(dir.path(), late).unwrap();
    let mark = || std::fs::read(dir.path().join("mark")).unwrap();
    let before = mark();
    put_ordered(&kv, "a", "1");
    assert_eq!(mark(), before);
    block_on(kv.sync()).unwrap();
    assert_ne!(mark(), before);
    // A durable commit takes the ordered ones before it along.
    let before = mark();
    put_ordered(&kv, "b", "1");
    assert_eq!(mark(), before);
    put(&kv, "c", "1");
    assert_ne!(mark(), before);
}

#[test]
fn conflicts_within_one_group_are_found() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    put(&kv, "n", "0");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let kv = kv.clone();
            std::thread::spawn(move || {
                for _ in 0..25 {
                    loop {
                        let mut tx = kv.begin();
                        let n: u32 = get(&mut tx, "n").unwrap().parse().unwrap();
                        tx.set(b"n", (n + 1).to_string().as_bytes());
                        tx.set_durability(Durability::Ordered);
                        match commit(tx) {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error, KvError::Conflict),
                        }
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(peek(&kv, "n").as_deref(), Some("100"));
}

#[test]
fn old_snapshots_stay_readable_while_others_write() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    put(&kv, "a", "old");
    let mut tx = kv.begin();
    let version = block_on(tx.get_read_version()).unwrap();
    for i in 0..300 {
        put_ordered(&kv, "a", &i.to_string());
    }
    assert_eq!(get(&mut tx, "a").as_deref(), Some("old"));
    let mut same = kv.begin();
    same.set_read_version(version);
    assert_eq!(get(&mut same, "a").as_deref(), Some("old"));
}

#[test]
fn idle_time_does_not_make_new_transactions_old() {
    let dir = TempDir::new();
    let kv = LocalKv::open(dir.path(), LocalOptions { tx_age: Duration::from_secs(1), ..options() }).unwrap();
    put(&kv, "a", "1");
    std::thread::sleep(Duration::from_millis(1600));
    let mut tx = kv.begin();
    assert!(get(&mut tx, "a").is_some());
    tx.set(b"b", b"1");
    // Another commit moves the window on; the transaction just begun must still be within.
    put(&kv, "c", "1");
    commit(tx).unwrap();
}

#[test]
fn a_second_open_is_refused() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    assert!(matches!(LocalKv::open(dir.path(), options()), Err(KvError::Locked { .. })));
    kv.close().unwrap();
    open(dir.path());
}

#[test]
fn another_cluster_or_format_is_refused() {
    let dir = TempDir::new();
    filled(dir.path());
    let other = LocalOptions::new(ClusterId::from_u128(8));
    assert!(matches!(LocalKv::open(dir.path(), other), Err(KvError::WrongStore { .. })));
    let format = dir.path().join("format");
    let mut bytes = std::fs::read(&format).unwrap();
    bytes[8] = 2;
    let sum = crc32c::crc32c(&bytes[..32]);
    bytes[32..].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&format, &bytes).unwrap();
    let error = LocalKv::open(dir.path(), options()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");
}

#[test]
fn missing_parts_are_refused() {
    let (dir, copy) = (TempDir::new(), TempDir::new());
    filled(dir.path());
    for part in ["format", "mark", "db", "db/version", "db/keyspaces/1/current", "db/0.jnl"] {
        copy_dir(dir.path(), copy.path());
        let path = copy.path().join(part);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap()
        } else {
            std::fs::remove_file(&path).unwrap()
        }
        let error = LocalKv::open(copy.path(), options()).map(|_| ()).unwrap_err();
        assert!(matches!(error, KvError::Corrupt { .. }), "{part}: {error}");
        std::fs::remove_dir_all(copy.path()).unwrap();
    }
}

/// Opens a damaged store and reads it all: it must be refused, or the damage must not have mattered.
fn refused_or_whole(path: &Path, expected: &[(Vec<u8>, Vec<u8>)], what: &str) -> bool {
    match LocalKv::open(path, options()) {
        Err(KvError::Corrupt { .. } | KvError::WrongStore { .. }) => true,
        Err(other) => panic!("{what}: {other}"),
        Ok(kv) => {
            let all = block_on(kv.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap();
            assert_eq!(all.len(), expected.len(), "{what}");
            assert!(all == expected, "{what}");
            false
        }
    }
}

fn contents(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let kv = open(path);
    block_on(kv.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap()
}

#[test]
fn a_flipped_byte_anywhere_is_refused_or_harmless() {
    let (dir, copy) = (TempDir::new(), TempDir::new());
    filled(dir.path());
    let expected = contents(dir.path());
    assert_eq!(expected.len(), 300);
    let mut refused = 0;
    for file in files_below(dir.path()) {
        let relative = file.strip_prefix(dir.path()).unwrap();
        let len = std::fs::metadata(&file).unwrap().len() as usize;
        let is_table = relative.parent().is_some_and(|p| p.ends_with("tables"));
        let places = if is_table { 40 } else { 12 };
        for i in 0..places {
            copy_dir(dir.path(), copy.path());
            let target = copy.path().join(relative);
            let mut bytes = std::fs::read(&target).unwrap();
            let Some(at) = (len * i).checked_div(places).filter(|at| *at < len) else { continue };
            bytes[at] ^= 1 << (i % 8);
            std::fs::write(&target, &bytes).unwrap();
            let what = format!("{} at {at} of {len}", relative.display());
            refused += usize::from(refused_or_whole(copy.path(), &expected, &what));
            std::fs::remove_dir_all(copy.path()).unwrap();
        }
    }
    assert!(refused > 100, "only {refused} refused");
}

#[test]
fn damage_in_the_journal_is_named_with_its_offset() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    for i in 0..50 {
        put(&kv, &format!("k{i:02}"), "value");
    }
    kv.close().unwrap();
    let journal = dir.path().join("db/0.jnl");
    let mut bytes = std::fs::read(&journal).unwrap();
    let at = bytes.windows(4).position(|w| w == b"uk25").unwrap();
    bytes[at] ^= 4;
    std::fs::write(&journal, &bytes).unwrap();
    for _ in 0..2 {
        match LocalKv::open(dir.path(), options()).map(|_| ()).unwrap_err() {
            KvError::Corrupt { file, offset: Some(offset), .. } => {
                assert_eq!(file, journal);
                assert!(offset <= at as u64 && at as u64 - offset < 200, "{offset} for {at}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(std::fs::read(&journal).unwrap(), bytes, "a refused store is left as it is");
}

#[test]
fn damage_in_a_table_is_named_with_its_offset() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    let mut tx = kv.begin();
    for i in 0..2000 {
        tx.set(format!("k{i:04}").as_bytes(), &[7; 20]);
    }
    commit(tx).unwrap();
    kv.compact().unwrap();
    kv.close().unwrap();
    let tables = files_below(&dir.path().join("db/keyspaces/1/tables"));
    let len = std::fs::metadata(&tables[0]).unwrap().len();
    let mut bytes = std::fs::read(&tables[0]).unwrap();
    let at = len / 3;
    bytes[at as usize] ^= 1;
    std::fs::write(&tables[0], &bytes).unwrap();
    match LocalKv::open(dir.path(), options()).map(|_| ()).unwrap_err() {
        KvError::Corrupt { file, offset: Some(offset), .. } => {
            assert_eq!(file, tables[0]);
            assert!(offset <= at && at - offset < 8192, "{offset} for {at}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_torn_tail_that_was_not_durable_is_cut() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    put(&kv, "a", "1");
    kv.close().unwrap();
    let journal = dir.path().join("db/0.jnl");
    let whole = std::fs::read(&journal).unwrap();
    let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    // Half a batch more, as a power loss leaves it.
    let mut torn = whole[..end].to_vec();
    torn.extend(&whole[..40]);
    std::fs::write(&journal, &torn).unwrap();
    let kv = open(dir.path());
    assert_eq!(peek(&kv, "a").as_deref(), Some("1"));
    put(&kv, "b", "2");
    drop(kv);
    assert_eq!(peek(&open(dir.path()), "b").as_deref(), Some("2"));
}

#[test]
fn a_journal_cut_before_a_durable_commit_is_refused() {
    let dir = TempDir::new();
    let kv = open(dir.path());
    put(&kv, "a", "1");
    let journal = dir.path().join("db/0.jnl");
    let shorter = std::fs::read(&journal).unwrap();
    put(&kv, "b", "2");
    kv.close().unwrap();
    std::fs::write(&journal, shorter).unwrap();
    assert!(matches!(LocalKv::open(dir.path(), options()), Err(KvError::Corrupt { .. })));
}

#[test]
fn exports_are_whole_and_imports_bring_them_back() {
    let (dir, other) = (TempDir::new(), TempDir::new());
    let kv = open(dir.path());
    let mut tx = kv.begin();
    for i in 0..2000u32 {
        tx.set(&i.to_be_bytes(), &vec![i as u8; (i % 300) as usize]);
    }
    let last = commit(tx).unwrap();
    let file = dir.path().join("export");
    let summary = kv.export_file(&file).unwrap();
    assert_eq!((summary.pairs, summary.version), (2000, last.version));
    assert_eq!(summary.bytes, std::fs::metadata(&file).unwrap().len());
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(verify_export(&mut Cursor::new(&bytes), &file).unwrap(), summary);
    let target = other.path().join("store");
    let imported = LocalKv::import(&target, options(), &mut Cursor::new(&bytes), &file).unwrap();
    assert_eq!(imported, summary);
    let all =
        |kv: &LocalKv| block_on(kv.begin().get_range(KeyRange::all(), RangeOptions::default())).unwrap();
    let restored = open(&target);
    assert_eq!(all(&kv), all(&restored));
    assert!(put(&restored, "x", "1").versionstamp > put(&kv, "x", "1").versionstamp);
    // Never over something that is there, nor into another cluster.
    let again = LocalKv::import(&target, options(), &mut Cursor::new(&bytes), &file);
    assert!(matches!(again, Err(KvError::WrongStore { .. })));
    let foreign = LocalOptions::new(ClusterId::from_u128(9));
    let wrong = LocalKv::import(&other.path().join("b"), foreign, &mut Cursor::new(&bytes), &file);
    assert!(matches!(wrong, Err(KvError::WrongStore { .. })));
}

#[test]
fn damaged_exports_are_refused_with_the_offset() {
    let (dir, other) = (TempDir::new(), TempDir::new());
    let kv = open(dir.path());
    for i in 0..20 {
        put_ordered(&kv, &format!("key{i}"), "some value");
    }
    let mut bytes = Vec::new();
    kv.export(&mut bytes).unwrap();
    let name = Path::new("hourly-3");
    let target = other.path().join("store");
    let refused = |bytes: &[u8]| match LocalKv::import(&target, options(), &mut Cursor::new(bytes), name) {
        Err(KvError::Corrupt { file, offset: Some(_), .. }) => file == name,
        Err(KvError::WrongStore { path, .. }) => path == name,
        _ => false,
    };
    for at in 0..bytes.len() {
        if at % 97 == 0 {
            assert!(refused(&bytes[..at]), "cut at {at}");
        }
        assert!(verify_export(&mut Cursor::new(&bytes[..at]), name).is_err(), "cut at {at}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let verdict = verify_export(&mut Cursor::new(&flipped), name);
        assert!(verdict.is_err(), "flipped at {at}");
    }
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    assert!(refused(&flipped));
    assert!(!target.exists(), "nothing is left of a failed import");
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(refused(&longer));
}

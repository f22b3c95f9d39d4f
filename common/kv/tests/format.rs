//! Format version 1 for ever: a store that the first release wrote is read by every later one; a newer version
//! is refused by name.
#![allow(missing_docs)]

mod support;

use ember_kv::{Durability, Kv, KvError, LocalKv, LocalOptions, RangeOptions, ReadMode};
use ember_types::ClusterId;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use support::block_on;

/// Bytes of a file that are kept together; pieces of zeros are left out.
const PIECE: usize = 64;
const CLUSTER: ClusterId = ClusterId([0x5c; 16]);

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1.bin")
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// What tells that a file was written to.
fn look(root: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let files = walk(root).into_iter().map(|path| {
        let data = path.metadata().unwrap();
        (path, data.len(), data.modified().unwrap())
    });
    files.collect()
}

/// Per file: length of the name u16, name, length u64, number of pieces u32, then number u32 and 64 bytes of
/// each piece that is not zeros. All little-endian.
fn pack(root: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for path in walk(root) {
        let (name, bytes) =
            (path.strip_prefix(root).unwrap().to_str().unwrap(), std::fs::read(&path).unwrap());
        let pieces: Vec<(usize, &[u8])> =
            bytes.chunks(PIECE).enumerate().filter(|(_, piece)| piece.iter().any(|b| *b != 0)).collect();
        out.extend((name.len() as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend((pieces.len() as u32).to_le_bytes());
        for (number, piece) in pieces {
            out.extend((number as u32).to_le_bytes());
            out.extend(piece);
            out.resize(out.len() + PIECE - piece.len(), 0);
        }
    }
    out
}

fn unpack(mut bytes: &[u8], root: &Path) {
    fn number<const N: usize>(bytes: &mut &[u8]) -> usize {
        let (head, rest) = bytes.split_at(N);
        *bytes = rest;
        head.iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte))
    }
    while !bytes.is_empty() {
        let length = number::<2>(&mut bytes);
        let (name, rest) = bytes.split_at(length);
        bytes = rest;
        let path = root.join(std::str::from_utf8(name).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        let length = number::<8>(&mut bytes);
        for _ in 0..number::<4>(&mut bytes) {
            let at = number::<4>(&mut bytes) * PIECE;
            let (piece, rest) = bytes.split_at(PIECE);
            file.write_all_at(piece, at as u64).unwrap();
            bytes = rest;
        }
        // Journals are long and nearly all zeros.
        file.set_len(length as u64).unwrap();
    }
}

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ember-kv-format-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(dir: &Path) -> Result<LocalKv, KvError> {
    LocalKv::open(dir, LocalOptions::new(CLUSTER))
}

fn set(store: &LocalKv, pairs: &[(&[u8], &[u8])]) {
    let mut tx = store.begin();
    tx.set_durability(Durability::Durable);
    pairs.iter().for_each(|(key, value)| tx.set(key, value));
    block_on(tx.commit()).unwrap();
}

/// Pairs in tables and in the journal, one written over, one removed, a counter.
fn fill(store: &LocalKv) {
    set(store, &[(b"a", b"in a table"), (b"b", b"removed later"), (b"c", b"old"), (b"long", &[7; 5_000])]);
    store.compact().unwrap();
    set(store, &[(b"c", b"new"), (b"d\0\xff", b"")]);
    let mut tx = store.begin();
    tx.clear(b"b");
    tx.atomic_add(b"n", 41);
    block_on(tx.commit()).unwrap();
    let mut tx = store.begin();
    tx.atomic_add(b"n", 1);
    block_on(tx.commit()).unwrap();
}

fn check(store: &LocalKv) {
    let mut tx = store.begin();
    let all = ember_kv::KeyRange::new(Vec::new(), vec![0xff]);
    let pairs = block_on(tx.get_range(all, RangeOptions::default())).unwrap();
    let expected: [(&[u8], &[u8]); 5] = [
        (b"a", b"in a table"),
        (b"c", b"new"),
        (b"d\0\xff", b""),
        (b"long", &[7; 5_000]),
        (b"n", &[42, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let found: Vec<(&[u8], &[u8])> = pairs.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
    assert_eq!(found, expected);
}

fn frozen(name: &str) -> Folder {
    if std::env::var_os("EMBER_WRITE_FIXTURES").is_some() && !fixture().exists() {
        let made = Folder::new("made");
        let store = open(&made.0).unwrap();
        fill(&store);
        store.close().unwrap();
        drop(store);
        std::fs::create_dir_all(fixture().parent().unwrap()).unwrap();
        std::fs::write(fixture(), pack(&made.0)).unwrap();
    }
    let folder = Folder::new(name);
    unpack(&std::fs::read(fixture()).expect("the fixture"), &folder.0);
    folder
}

#[test]
fn a_store_of_format_version_1_is_read_for_ever() {
    let folder = frozen("read");
    for _ in 0..2 {
        let store = open(&folder.0).unwrap();
        check(&store);
        store.close().unwrap();
    }
    let store = open(&folder.0).unwrap();
    set(&store, &[(b"a", b"can be written to")]);
    let value = block_on(store.begin().get(b"a", ReadMode::Snapshot)).unwrap();
    assert_eq!(value.as_deref(), Some(&b"can be written to"[..]));
}

#[test]
fn an_unknown_version_is_refused_by_name_and_changes_nothing() {
    let folder = frozen("unknown");
    let path = folder.0.join("format");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let end = bytes.len() - 4;
    let sum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let before = look(&folder.0);
    let error = open(&folder.0).map(|_| ()).unwrap_err();
    assert!(matches!(error, KvError::WrongStore { .. }), "{error}");
    let text = error.to_string();
    let name = path.display().to_string();
    for part in [name.as_str(), "format version 2", "this program reads 1", "use the release that wrote it"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(look(&folder.0), before);
}

//! Bytes of disks: the engine's after `docs/design/engine.md`, the key-value store's from a store.

use crate::disk::PLACE;
use ember_engine::decode::{Identity, Records, superblock_bytes};
use ember_kv::local::decode as kv;
use ember_kv::{Kv, KvError, LocalKv, LocalOptions};
use ember_types::{ClusterId, Generation, TargetId};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

pub(super) fn superblocks() -> Vec<Vec<u8>> {
    let identity = Identity { cluster: ClusterId([1; 16]), target: TargetId(7), generation: Generation(3) };
    vec![superblock_bytes(&identity)]
}

/// Checksum pages: a few sums known, and a sequence.
pub(super) fn sums() -> Vec<Vec<u8>> {
    let head = |known: u64| le(&[(0, 8), (7, 8), (3, 8), (8, 4), (5, 4), (known, 8)]);
    let page = |known, sums: u64| {
        let mut bytes = head(known);
        bytes.resize(256, 0);
        bytes.extend((0..sums).flat_map(|i| le(&[(i * 77, 4)])));
        bytes
    };
    vec![head(0), page(0b1011, 4), page(u64::MAX, 64)]
}

fn le(parts: &[(u64, usize)]) -> Vec<u8> {
    parts.iter().flat_map(|(number, width)| number.to_le_bytes()[..*width].to_vec()).collect()
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&le(&[(u64::from(kind), 4), (body.len() as u64, 4)]), body].concat()
}

fn chunk(index: u64) -> Vec<u8> {
    le(&[(5, 8), (index, 4), (0, 4)])
}

fn version(number: u64) -> Vec<u8> {
    le(&[(number, 8), (3, 8), (1, 4)])
}

fn extent(first: u64, blocks: u64, block: u64, class: u64, slot: u64) -> Vec<u8> {
    le(&[(first, 2), (blocks, 2), (block, 2), (class, 2), (slot, 4)])
}

fn content(number: u64, length: u64, flags: u64, extents: &[Vec<u8>]) -> Vec<u8> {
    let head = le(&[(length, 4), (77, 4), (flags, 2), (extents.len() as u64, 2)]);
    [version(number), head, extents.concat()].concat()
}

fn writer(sequence: u64) -> Vec<u8> {
    let tag = [vec![7; 16], le(&[(2, 4), (sequence, 8)])].concat();
    [tag, version(2), le(&[(8192, 4), (0, 2), (0, 2)])].concat()
}

fn put(index: u64, slot: u64, pending: bool) -> Vec<u8> {
    let counts = le(&[(u64::from(pending), 2), (1, 2), (1, 2), (0, 2)]);
    let extents = [extent(0, 1, 0, 2, slot), extent(1, 1, 2, 2, slot)];
    let run = le(&[(slot, 4), (0, 2), (2, 2), (904, 2), (3, 2), (11, 4), (12, 4), (13, 4)]);
    let removed = if pending { content(2, 0, 1, &[]) } else { Vec::new() };
    let body =
        [chunk(index), version(0), counts, content(1, 5000, 0, &extents), removed, run, writer(5)].concat();
    record(1, &body)
}

pub(super) fn records() -> Vec<Vec<u8>> {
    vec![
        put(8, 9, true),
        [put(1, 1, false), put(2, 2, true), record(2, &chunk(1))].concat(),
        [record(3, &[chunk(1), writer(6)].concat()), record(4, &[7; 16]), record(5, &le(&[(12, 8)]))]
            .concat(),
        [record(6, &le(&[(3, 8), (44, 8)])), put(3, 4, false), record(7, &le(&[(1, 8)]))].concat(),
        // Rows: data id 5, index 1, version 1.3.1, one extent; the next index with a pending removal and an abort.
        record(
            8,
            &[
                &[0, 5, 1, 1, 3, 1, 4, 128, 32, 9, 9, 9, 9, 0, 1, 0, 2, 7][..],
                &[3, 0, 0, 1, 3, 1, 0, 0, 9, 9, 9, 9, 2, 3, 1, 1, 0, 0, 0, 0, 0, 2, 3, 0][..],
            ]
            .concat(),
        ),
        [record(9, &le(&[(2, 4), (0, 4), (1, 4), (0, 4)])), record(10, &le(&[(9, 4), (2, 4)]))].concat(),
    ]
}

pub(super) fn frames() -> Vec<Vec<u8>> {
    // Only the used part: the target adds the padding.
    let cut = |records: Vec<u8>| {
        let frame = Records::parse(&records).map(|parsed| parsed.frame(PLACE, 7)).unwrap_or_default();
        frame.get(..48 + records.len()).map(<[u8]>::to_vec).unwrap_or_default()
    };
    records().into_iter().map(cut).collect()
}

pub(super) fn exports() -> Vec<Vec<u8>> {
    let pairs = [(b"a".to_vec(), b"one".to_vec()), (b"b".to_vec(), Vec::new())];
    vec![kv::export_bytes(ClusterId([1; 16]), 9, &pairs), kv::export_bytes(ClusterId([1; 16]), 9, &[])]
}

/// Inputs out of the files of a small store.
pub(super) struct KvStore {
    pub(super) journals: Vec<Vec<u8>>,
    pub(super) files: Vec<Vec<u8>>,
}

fn failed(error: &KvError) -> io::Error {
    io::Error::other(error.to_string())
}

struct Woken(Thread);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future that a thread of the store ends.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Woken(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn fill(store: &LocalKv, from: u8) -> Result<(), KvError> {
    for i in from..from + 3 {
        let mut tx = store.begin();
        tx.set(&[b'k', i], &[i; 9]);
        wait(tx.commit())?;
    }
    Ok(())
}

/// Makes a store with a table and a journal, and reads its files.
pub(super) fn kv_store() -> io::Result<KvStore> {
    let dir = std::env::temp_dir().join(format!("ember-fuzz-kv-{}", std::process::id()));
    let made = read_store(&dir);
    std::fs::remove_dir_all(&dir)?;
    made
}

fn read_store(dir: &Path) -> io::Result<KvStore> {
    let store = LocalKv::open(dir, LocalOptions::new(ClusterId([1; 16]))).map_err(|e| failed(&e))?;
    fill(&store, 0).and_then(|()| store.compact()).and_then(|()| fill(&store, 3)).map_err(|e| failed(&e))?;
    store.close().map_err(|e| failed(&e))?;
    let mut found = KvStore { journals: Vec::new(), files: Vec::new() };
    for path in walk(dir)? {
        let mut bytes = std::fs::read(&path)?;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let in_tables = path.parent().is_some_and(|parent| parent.ends_with("tables"));
        let which = match name.as_str() {
            _ if name.ends_with(".jnl") => {
                bytes.truncate(used);
                found.journals.push(bytes);
                continue;
            }
            "format" => 0,
            "mark" => 1,
            _ if in_tables => 3,
            _ if name.starts_with('v') && name != "version" => 2,
            _ => continue,
        };
        if which == 1 {
            bytes.truncate(20);
        }
        found.files.push([vec![which], bytes].concat());
    }
    found.files.push([vec![4], le(&[(9, 8), (8, 8)])].concat());
    Ok(found)
}

fn walk(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut open) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

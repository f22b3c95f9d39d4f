//! Reads fjall's journal before fjall does.
//!
//! fjall cuts a journal at the first thing it can't read and goes on, which is right for a torn tail and
//! wrong for a flipped bit before commits that were acknowledged. Each of our batches carries its version
//! and its predecessor's, so a lost batch shows; whether a cut tail mattered, the durability mark says.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::files::{corrupt, io};
use super::store::{VERSION_KEY, decode_versions};
use crate::error::KvError;

/// Longest value that can be in a batch; a longer one is damage.
const MAX_ITEM_VALUE_BYTES: u32 = 1 << 20;
const TRAILER: &[u8] = b"FJL\x03";

/// What is in the journals of a database.
#[derive(Debug, Default)]
pub(super) struct Journals {
    /// The version of the last batch; `None` if there is no batch.
    pub(super) last_version: Option<u64>,
    /// The newest file and where its last whole batch ends, if something else than zeros follows.
    pub(super) torn: Option<(PathBuf, u64)>,
}

/// Checks all journals in `db` against each other and the version known to be durable. Changes nothing.
pub(super) fn check(db: &Path, durable: u64) -> Result<Journals, KvError> {
    let files = list(db)?;
    let mut journals = Journals::default();
    let mut chain = Chain::default();
    for (i, (id, path)) in files.iter().enumerate() {
        if i > 0 && files[i - 1].0 + 1 != *id {
            let missing = db.join(format!("{}.jnl", files[i - 1].0 + 1));
            return Err(corrupt(&missing, None, "it is missing between other journals"));
        }
        let end = scan(path, &mut chain)?;
        let Some((offset, what)) = end.bad else { continue };
        let newest = i + 1 == files.len();
        // Without a whole batch before it, only the tables know whether something durable was in it.
        if !newest || chain.version.is_some_and(|version| version < durable) {
            return Err(corrupt(path, Some(offset), what));
        }
        journals.torn = Some((path.clone(), end.valid));
    }
    journals.last_version = chain.version;
    if let (Some(version), Some((_, path))) = (chain.version, files.last())
        && version < durable
    {
        let what = format!("it ends with version {version}, but {durable} was durable");
        return Err(corrupt(path, None, what));
    }
    Ok(journals)
}

/// Cuts the torn tail off, so that nothing reads it again.
pub(super) fn cut(journals: &Journals) -> Result<(), KvError> {
    let Some((path, valid)) = &journals.torn else { return Ok(()) };
    tracing::warn!(file = %path.display(), offset = valid, "cutting a torn tail, nothing durable was in it");
    let file = OpenOptions::new().write(true).open(path).map_err(|e| io(path, "opening", &e))?;
    file.set_len(*valid).and_then(|()| file.sync_all()).map_err(|e| io(path, "cutting", &e))
}

/// The journals of `db` by ascending number.
pub(super) fn list(db: &Path) -> Result<Vec<(u64, PathBuf)>, KvError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(db).map_err(|e| io(db, "listing", &e))? {
        let path = entry.map_err(|e| io(db, "listing", &e))?.path();
        if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("jnl")) {
            continue;
        }
        let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".jnl"));
        match stem.and_then(|s| s.parse().ok()) {
            Some(id) if path.is_file() => files.push((id, path)),
            _ => return Err(corrupt(&path, None, "not a journal's name, or not a file")),
        }
    }
    files.sort();
    Ok(files)
}

/// What the last whole batch said, across files.
#[derive(Default)]
struct Chain {
    version: Option<u64>,
    seqno: Option<u64>,
}

struct End {
    /// Where the last whole batch ends.
    valid: u64,
    /// Where and why reading stopped, unless at the end or at zeros.
    bad: Option<(u64, &'static str)>,
}

struct Bad {
    offset: u64,
    what: &'static str,
}

fn scan(path: &Path, chain: &mut Chain) -> Result<End, KvError> {
    scan_from(path, File::open(path).map_err(|e| io(path, "opening", &e))?, chain)
}

/// The version of the last batch in the bytes of one journal. `Corrupt` if anything but zeros follows it.
pub(super) fn last_version(bytes: &[u8]) -> Result<Option<u64>, KvError> {
    let (path, mut chain) = (Path::new("journal"), Chain::default());
    match scan_from(path, Cursor::new(bytes), &mut chain)?.bad {
        Some((offset, what)) => Err(corrupt(path, Some(offset), what)),
        None => Ok(chain.version),
    }
}

fn scan_from<R: Read + Seek>(path: &Path, from: R, chain: &mut Chain) -> Result<End, KvError> {
    let mut source = Source { reader: BufReader::with_capacity(1 << 16, from), pos: 0, failure: None };
    let mut valid = 0;
    let bad = loop {
        match batch(&mut source, chain) {
            Ok(true) => valid = source.pos,
            Ok(false) => break None,
            Err(bad) => break Some(bad),
        }
    };
    if let Some(error) = source.failure {
        return Err(io(path, "reading", &error));
    }
    let Some(bad) = bad else { return Ok(End { valid, bad: None }) };
    let content = has_content(source.reader, valid).map_err(|e| io(path, "reading", &e))?;
    Ok(End { valid, bad: content.then_some((bad.offset, bad.what)) })
}

/// Whether anything but zeros follows `from`: journals are preallocated with zeros.
fn has_content<R: Read + Seek>(mut reader: BufReader<R>, from: u64) -> std::io::Result<bool> {
    reader.seek(SeekFrom::Start(from))?;
    let mut block = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut block)?;
        if n == 0 {
            return Ok(false);
        }
        if block[..n].iter().any(|b| *b != 0) {
            return Ok(true);
        }
    }
}

struct Source<R> {
    reader: BufReader<R>,
    pos: u64,
    /// An error of the disk, as opposed to the file's end.
    failure: Option<std::io::Error>,
}

impl<R: Read> Source<R> {
    fn take(&mut self, buf: &mut [u8]) -> Result<(), Bad> {
        match self.reader.read_exact(buf) {
            Ok(()) => {
                self.pos += buf.len() as u64;
                Ok(())
            }
            Err(error) => {
                if error.kind() != ErrorKind::UnexpectedEof {
                    self.failure = Some(error);
                }
                Err(Bad { offset: self.pos, what: "a batch is cut off" })
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let mut bytes = [0; N];
        self.take(&mut bytes).map(|()| bytes)
    }
}

/// Reads one batch; false at a clean end of the file.
fn batch<R: Read>(source: &mut Source<R>, chain: &mut Chain) -> Result<bool, Bad> {
    let start = source.pos;
    let mut tag = [0; 1];
    match source.reader.read(&mut tag) {
        Ok(0) => return Ok(false),
        Ok(_) => source.pos += 1,
        Err(error) => {
            source.failure = Some(error);
            return Err(Bad { offset: start, what: "unreadable" });
        }
    }
    let bad = |what| Bad { offset: start, what };
    if tag != [1] {
        return Err(bad("no batch starts here"));
    }
    let count = u32::from_le_bytes(source.array()?);
    let seqno = u64::from_le_bytes(source.array()?);
    let mut sum = Xxh3::new();
    let mut versions = None;
    for _ in 0..count {
        if let Some(found) = item(source, &mut sum)? {
            versions = Some(found);
        }
    }
    if source.array::<1>()? != [3] {
        return Err(bad("a batch does not end after its items"));
    }
    let expected = u64::from_le_bytes(source.array()?);
    if source.array::<4>()? != TRAILER || sum.digest() != expected {
        return Err(bad("a batch's checksum is wrong"));
    }
    let Some((version, before)) = versions else { return Err(bad("a batch without a version")) };
    if chain.version.is_some_and(|last| last != before) || before >= version {
        return Err(bad("a batch is missing before this one"));
    }
    if chain.seqno.is_some_and(|last| last >= seqno) {
        return Err(bad("a batch's sequence number goes back"));
    }
    *chain = Chain { version: Some(version), seqno: Some(seqno) };
    Ok(true)
}

/// Reads one item; returns the versions if it is the one that carries them.
fn item<R: Read>(source: &mut Source<R>, sum: &mut Xxh3) -> Result<Option<(u64, u64)>, Bad> {
    let offset = source.pos;
    let bad = |what| Bad { offset, what };
    let head = source.array::<21>()?;
    let [tag, _, compression, ..] = head;
    if tag != 2 || compression != 0 {
        return Err(bad("no item starts here"));
    }
    let key_bytes = u16::from_le_bytes([head[11], head[12]]);
    let value_bytes = u32::from_le_bytes([head[13], head[14], head[15], head[16]]);
    if value_bytes > MAX_ITEM_VALUE_BYTES || head[13..17] != head[17..21] {
        return Err(bad("an item's length is wrong"));
    }
    let mut key = vec![0; usize::from(key_bytes)];
    source.take(&mut key)?;
    let mut value = vec![0; value_bytes as usize];
    source.take(&mut value)?;
    sum.update(&head);
    sum.update(&key);
    sum.update(&value);
    Ok(if key == VERSION_KEY { decode_versions(&value) } else { None })
}

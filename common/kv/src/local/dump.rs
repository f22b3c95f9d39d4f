//! Exports and imports: the whole store as one checksummed stream.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ember_types::ClusterId;

use super::files::{exists, io, sync_dir};
use super::store::{Each, Opened, Store};
use super::{LocalKv, LocalOptions};
use crate::api::{Durability, KeyValue, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::error::KvError;
use crate::mutation::Overlay;
use crate::oneshot::lock;

const MAGIC: &[u8; 8] = b"EMBREXPT";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
const PAIR: u8 = 1;
const END: u8 = 2;
/// Pairs go into the new store in batches of about this size.
const IMPORT_BATCH_BYTES: usize = 4 << 20;
/// An import continues this many versions after the export's, a year of them: the store that was lost may
/// have given out many since.
const IMPORT_GAP_VERSIONS: u64 = 365 * 86_400 * 1_000_000;

/// What an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// Whose it is.
    pub cluster_id: ClusterId,
    /// The version whose state it is.
    pub version: u64,
    /// Number of keys.
    pub pairs: u64,
    /// Length of the export in bytes.
    pub bytes: u64,
}

impl LocalKv {
    /// Writes the newest state to `out`, while transactions go on. Blocks: not for a reactor's thread.
    pub fn export(&self, out: &mut dyn Write) -> Result<ExportSummary, KvError> {
        self.export_named(out, Path::new("export"))
    }

    /// Writes the newest state to the file `path`, which appears only when it is complete and durable.
    pub fn export_file(&self, path: &Path) -> Result<ExportSummary, KvError> {
        let new = beside(path, "partial");
        let file = File::create(&new).map_err(|e| io(&new, "creation", &e))?;
        let mut out = BufWriter::with_capacity(1 << 18, file);
        let summary = self.export_named(&mut out, &new)?;
        let file = out.into_inner().map_err(|e| io(&new, "writing", e.error()))?;
        file.sync_all().map_err(|e| io(&new, "flush", &e))?;
        std::fs::rename(&new, path).map_err(|e| io(path, "renaming", &e))?;
        sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(summary)
    }

    fn export_named(&self, out: &mut dyn Write, name: &Path) -> Result<ExportSummary, KvError> {
        let shared = &self.0.shared;
        let state = shared.newest()?;
        let store: Arc<Store> = lock(&shared.store).clone().ok_or(KvError::Closed(None))?;
        let mut sink = Sink { out, name, bytes: 0 };
        sink.write(&encode_header(shared.cluster_id, state.version))?;
        let mut pairs = 0u64;
        let mut record = Vec::new();
        store.for_each(&state.snapshot, &mut |key, value| {
            pairs += 1;
            encode_pair(&mut record, key, value);
            sink.write(&record)
        })?;
        sink.write(&encode_end(pairs))?;
        sink.out.flush().map_err(|e| io(name, "writing", &e))?;
        let (cluster_id, version, bytes) = (shared.cluster_id, state.version, sink.bytes);
        Ok(ExportSummary { cluster_id, version, pairs, bytes })
    }

    /// Makes a new store in the directory `path`, which must not exist or be empty, from an export.
    /// `name` names the export in errors. All or nothing. Blocks.
    pub fn import(
        path: &Path,
        options: LocalOptions,
        export: &mut dyn Read,
        name: &Path,
    ) -> Result<ExportSummary, KvError> {
        let used =
            exists(path)? && std::fs::read_dir(path).map_err(|e| io(path, "listing", &e))?.next().is_some();
        if used {
            let what = "an import needs a directory that is empty or does not exist; move this one aside";
            return Err(KvError::WrongStore { path: path.to_path_buf(), what: what.into() });
        }
        let building = beside(path, "importing");
        match std::fs::remove_dir_all(&building) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io(&building, "removal", &error));
            }
            _ => {}
        }
        let summary = build(&building, &options, export, name)?;
        if exists(path)? {
            std::fs::remove_dir(path).map_err(|e| io(path, "removal", &e))?;
        }
        std::fs::rename(&building, path).map_err(|e| io(path, "renaming", &e))?;
        sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(summary)
    }
}

/// Reads an export to its end and says what it holds; damage is named with its offset, the export by `name`.
pub fn verify_export(export: &mut dyn Read, name: &Path) -> Result<ExportSummary, KvError> {
    let mut source = Source::new(export, name);
    let (cluster_id, version) = source.header()?;
    source.pairs(&mut |_, _| Ok(()))?;
    Ok(ExportSummary { cluster_id, version, pairs: source.count, bytes: source.at })
}

/// Cluster, version and pairs of an export in memory.
pub(super) fn decode_export(mut bytes: &[u8]) -> Result<(ClusterId, u64, Vec<KeyValue>), KvError> {
    let mut source = Source::new(&mut bytes, Path::new("export"));
    let (cluster_id, version) = source.header()?;
    let mut pairs = Vec::new();
    source.pairs(&mut |key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        Ok(())
    })?;
    Ok((cluster_id, version, pairs))
}

/// An export in memory.
pub(super) fn encode_export(cluster: ClusterId, version: u64, pairs: &[KeyValue]) -> Vec<u8> {
    let mut bytes = encode_header(cluster, version);
    let mut record = Vec::new();
    for (key, value) in pairs {
        encode_pair(&mut record, key, value);
        bytes.extend_from_slice(&record);
    }
    bytes.extend(encode_end(pairs.len() as u64));
    bytes
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn build(
    path: &Path,
    options: &LocalOptions,
    export: &mut dyn Read,
    name: &Path,
) -> Result<ExportSummary, KvError> {
    let mut source = Source::new(export, name);
    let (cluster_id, version) = source.header()?;
    if cluster_id != options.cluster_id {
        let what = format!("it is an export of cluster {cluster_id}, not of {}", options.cluster_id);
        return Err(KvError::WrongStore { path: name.to_path_buf(), what });
    }
    let Opened { store, mut mark, version: mut before } = Store::open(path, options)?;
    let mut next = version.saturating_add(IMPORT_GAP_VERSIONS);
    let mut overlay = Overlay::new();
    let mut bytes = 0;
    let mut write = |overlay: &mut Overlay, durability| {
        store.write(&std::mem::take(overlay), next, before, durability)?;
        before = next;
        next += 1;
        Ok(())
    };
    source.pairs(&mut |key, value| {
        bytes += key.len() + value.len();
        overlay.insert(key.to_vec(), Some(value.to_vec()));
        if bytes < IMPORT_BATCH_BYTES {
            return Ok(());
        }
        bytes = 0;
        write(&mut overlay, Durability::Ordered)
    })?;
    write(&mut overlay, Durability::Durable)?;
    store.persist()?;
    mark.raise(before)?;
    mark.sync()?;
    Ok(ExportSummary { cluster_id, version, pairs: source.count, bytes: source.at })
}

struct Sink<'a> {
    out: &'a mut dyn Write,
    name: &'a Path,
    bytes: u64,
}

impl Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), KvError> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| io(self.name, "writing", &e))
    }
}

fn seal(bytes: &mut Vec<u8>) {
    let sum = crc32c::crc32c(bytes);
    bytes.extend(sum.to_le_bytes());
}

fn encode_header(cluster: ClusterId, version: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend(cluster.0);
    bytes.extend(version.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn encode_pair(record: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    record.clear();
    record.push(PAIR);
    record.extend((key.len() as u32).to_le_bytes());
    record.extend((value.len() as u32).to_le_bytes());
    record.extend_from_slice(key);
    record.extend_from_slice(value);
    seal(record);
}

fn encode_end(pairs: u64) -> Vec<u8> {
    let mut bytes = vec![END];
    bytes.extend(pairs.to_le_bytes());
    seal(&mut bytes);
    bytes
}

struct Source<'a> {
    reader: BufReader<&'a mut dyn Read>,
    name: &'a Path,
    at: u64,
    count: u64,
}

impl<'a> Source<'a> {
    fn new(export: &'a mut dyn Read, name: &'a Path) -> Self {
        Self { reader: BufReader::with_capacity(1 << 18, export), name, at: 0, count: 0 }
    }

    fn bad(&self, offset: u64, what: &str) -> KvError {
        let what = format!("{what}; use another export");
        KvError::Corrupt { file: self.name.to_path_buf(), offset: Some(offset), what }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), KvError> {
        match self.reader.read_exact(into) {
            Ok(()) => {
                self.at += into.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.bad(self.at, "the export is cut off"))
            }
            Err(error) => Err(io(self.name, "reading", &error)),
        }
    }

    fn header(&mut self) -> Result<(ClusterId, u64), KvError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes)?;
        if !bytes.starts_with(MAGIC) {
            return Err(self.bad(0, "not an export"));
        }
        if !sealed(&bytes) {
            return Err(self.bad(0, "the header's checksum is wrong"));
        }
        let format = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if format != FORMAT_VERSION {
            let what = format!("export format {format}, this program reads {FORMAT_VERSION}");
            return Err(KvError::WrongStore { path: self.name.to_path_buf(), what });
        }
        let cluster = bytes[12..28].try_into().map(ClusterId).unwrap_or_default();
        let version = bytes[28..36].try_into().map_or(0, u64::from_le_bytes);
        Ok((cluster, version))
    }

    /// Calls `each` for every pair and checks that the export ends as it should.
    fn pairs(&mut self, each: &mut Each<'_>) -> Result<(), KvError> {
        let mut record = Vec::new();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let start = self.at;
            record.resize(9, 0);
            self.read(&mut record)?;
            if record[0] == END {
                return self.end(&record, start);
            }
            let key_bytes = u32::from_le_bytes([record[1], record[2], record[3], record[4]]) as usize;
            let value_bytes = u32::from_le_bytes([record[5], record[6], record[7], record[8]]) as usize;
            if record[0] != PAIR || key_bytes > MAX_KEY_BYTES || value_bytes > MAX_VALUE_BYTES {
                return Err(self.bad(start, "not a record"));
            }
            record.resize(9 + key_bytes + value_bytes + 4, 0);
            self.read(&mut record[9..])?;
            if !sealed(&record) {
                return Err(self.bad(start, "a record's checksum is wrong"));
            }
            let (key, value) = record[9..record.len() - 4].split_at(key_bytes);
            if last.as_deref().is_some_and(|last| last >= key) {
                return Err(self.bad(start, "the keys are out of order"));
            }
            each(key, value)?;
            self.count += 1;
            last = Some(key.to_vec());
        }
    }

    fn end(&mut self, head: &[u8], start: u64) -> Result<(), KvError> {
        let mut sum = [0; 4];
        self.read(&mut sum)?;
        if !sealed(&[head, sum.as_slice()].concat()) {
            return Err(self.bad(start, "the trailer's checksum is wrong"));
        }
        let count = head[1..9].try_into().map_or(0, u64::from_le_bytes);
        if count != self.count {
            let what = format!("{} pairs instead of {count}", self.count);
            return Err(self.bad(start, &what));
        }
        match self.reader.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.bad(self.at, "something follows the end of the export")),
            Err(error) => Err(io(self.name, "reading", &error)),
        }
    }
}

/// Whether the last four bytes are the checksum of those before.
fn sealed(bytes: &[u8]) -> bool {
    let content = bytes.split_last_chunk::<4>();
    content.is_some_and(|(content, sum)| crc32c::crc32c(content) == u32::from_le_bytes(*sum))
}

//! fjall behind a small wall: its errors become ours, and its panics errors.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::files::{Mark, check_format, corrupt, exists, io, lock};
use super::{LocalOptions, journal, tables};
use crate::api::{Durability, KeyRange, KeyValue};
use crate::error::KvError;
use crate::mutation::Overlay;

/// Users' keys are stored behind this byte, which also makes the empty key possible.
const USER: u8 = b'u';
/// Each batch sets this key to its version and the version of the batch before it.
pub(super) const VERSION_KEY: &[u8] = b"s/version";
const KEYSPACE: &str = "data";
/// fjall's threads for flushes and compactions.
const WORKER_THREADS: usize = 2;

/// An open database with what belongs to it. The lock goes last.
pub(super) struct Store {
    data: Keyspace,
    db: Database,
    dir: PathBuf,
    _lock: File,
}

/// Called with key and value.
pub(super) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), KvError> + 'a;

/// What opening found.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) mark: Mark,
    /// The version of the last batch.
    pub(super) version: u64,
}

/// The value of [`VERSION_KEY`].
pub(super) fn encode_versions(version: u64, before: u64) -> Vec<u8> {
    [version.to_le_bytes(), before.to_le_bytes()].concat()
}

/// Version and version before, or `None` if it is not such a value.
pub(super) fn decode_versions(value: &[u8]) -> Option<(u64, u64)> {
    let (version, before) = value.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*version), u64::from_le_bytes(before.try_into().ok()?)))
}

fn stored(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(USER);
    out.extend_from_slice(key);
    out
}

impl Store {
    /// Opens the store at `dir`, creating it if there is nothing. Damage is found before anything is changed.
    pub(super) fn open(dir: &Path, options: &LocalOptions) -> Result<Opened, KvError> {
        let lock = lock(dir)?;
        check_format(dir, options.cluster_id)?;
        let path = dir.join("db");
        let mut mark = Mark::open(dir, !exists(&path)?)?;
        let durable = mark.version();
        let mut torn = None;
        if durable == 0 {
            // Creation did not finish: nothing was ever committed.
            remove_dir(&path)?;
        } else if exists(&path)? {
            let journals = journal::check(&path, durable)?;
            tables::check(&path)?;
            journal::cut(&journals)?;
            torn = journals.torn;
        } else {
            return Err(corrupt(&path, None, "it is missing"));
        }
        let (db, data) = guarded(&path, || {
            let builder = Database::builder(&path).worker_threads(WORKER_THREADS);
            let db = builder.cache_size(options.cache_bytes).open()?;
            let data = db.keyspace(KEYSPACE, KeyspaceCreateOptions::default)?;
            Ok((db, data))
        })?;
        let store = Self { data, db, dir: dir.to_path_buf(), _lock: lock };
        if durable == 0 {
            store.write(&Overlay::new(), 1, 0, Durability::Durable)?;
            mark.raise(1)?;
            mark.sync()?;
        }
        let found = guarded(&path, || store.data.get(VERSION_KEY))?;
        let version = found.and_then(|v| decode_versions(&v)).map_or(0, |(version, _)| version);
        if version < durable.max(1) {
            let (file, offset) = torn.map_or((path, None), |(file, at)| (file, Some(at)));
            let what = format!("the newest commit is version {version}, but {durable} was durable");
            return Err(corrupt(&file, offset, what));
        }
        Ok(Opened { store, mark, version })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.db.snapshot()
    }

    pub(super) fn db_dir(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// Writes one batch. After an error nobody knows whether it is there.
    pub(super) fn write(
        &self,
        overlay: &Overlay,
        version: u64,
        before: u64,
        durability: Durability,
    ) -> Result<(), KvError> {
        guarded(&self.db_dir(), || {
            let mut batch = self.db.batch().durability(Some(match durability {
                Durability::Durable => PersistMode::SyncData,
                Durability::Ordered => PersistMode::Buffer,
            }));
            for (key, value) in overlay {
                match value {
                    Some(value) => batch.insert(&self.data, stored(key), value.as_slice()),
                    None => batch.remove(&self.data, stored(key)),
                }
            }
            batch.insert(&self.data, VERSION_KEY, encode_versions(version, before));
            batch.commit()
        })
    }

    /// Makes everything written so far durable.
    pub(super) fn persist(&self) -> Result<(), KvError> {
        guarded(&self.db_dir(), || self.db.persist(PersistMode::SyncAll))
    }

    /// Moves what is only in memory and the journal into tables.
    pub(super) fn compact(&self) -> Result<(), KvError> {
        guarded(&self.db_dir(), || self.data.rotate_memtable_and_wait())
    }

    pub(super) fn get(&self, snapshot: &Snapshot, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let found = guarded(&self.db_dir(), || snapshot.get(&self.data, stored(key)))?;
        Ok(found.map(|value| value.to_vec()))
    }

    pub(super) fn scan(
        &self,
        snapshot: &Snapshot,
        range: &KeyRange,
        reverse: bool,
        max: usize,
    ) -> Result<Vec<KeyValue>, KvError> {
        guarded(&self.db_dir(), || {
            let mut iter = snapshot.range(&self.data, stored(&range.begin)..stored(&range.end));
            let mut out = Vec::new();
            while out.len() < max {
                let next = if reverse { iter.next_back() } else { iter.next() };
                let Some(guard) = next else { break };
                let (key, value) = guard.into_inner()?;
                out.push((key.get(1..).unwrap_or_default().to_vec(), value.to_vec()));
            }
            Ok(out)
        })
    }

    /// The keys in `range`, at most `max`.
    pub(super) fn keys(
        &self,
        snapshot: &Snapshot,
        range: &KeyRange,
        max: usize,
    ) -> Result<Vec<Vec<u8>>, KvError> {
        guarded(&self.db_dir(), || {
            let iter = snapshot.range(&self.data, stored(&range.begin)..stored(&range.end));
            let key = |guard: fjall::Guard| Ok(guard.key()?.get(1..).unwrap_or_default().to_vec());
            iter.take(max).map(key).collect()
        })
    }

    /// Calls `each` for every pair, in key order.
    pub(super) fn for_each(&self, snapshot: &Snapshot, each: &mut Each<'_>) -> Result<(), KvError> {
        let dir = self.db_dir();
        let mut iter = guarded(&dir, || Ok(snapshot.range(&self.data, [USER]..[USER + 1])))?;
        while let Some(pair) = guarded(&dir, || iter.next().map(fjall::Guard::into_inner).transpose())? {
            each(pair.0.get(1..).unwrap_or_default(), &pair.1)?;
        }
        Ok(())
    }
}

fn remove_dir(path: &Path) -> Result<(), KvError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path, "removal", &error)),
        _ => Ok(()),
    }
}

/// Runs a call into fjall. Its state after a panic is not used: the caller gives up on the store, or only
/// read.
fn guarded<T>(path: &Path, call: impl FnOnce() -> fjall::Result<T>) -> Result<T, KvError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(translated(path, error)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
            Err(corrupt(path, None, format!("the storage engine gave up: {text}")))
        }
    }
}

fn translated(path: &Path, error: fjall::Error) -> KvError {
    use fjall::{Error, LsmError};
    match error {
        Error::Io(e) | Error::Storage(LsmError::Io(e)) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            io(path, "storage engine", &e)
        }
        Error::Poisoned => KvError::Closed(Some("an earlier write to its disk failed; restart it".into())),
        Error::Locked => KvError::Locked { path: path.to_path_buf() },
        other => corrupt(path, None, format!("{other:?}")),
    }
}

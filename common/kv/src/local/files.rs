//! The store's own small files: whose it is, who has it open, and how far it is durable.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ember_types::ClusterId;

use crate::error::KvError;

const FORMAT_MAGIC: &[u8; 8] = b"EMBERKV\0";
const FORMAT_VERSION: u32 = 1;
const FORMAT_BYTES: usize = 36;
const MARK_MAGIC: &[u8; 8] = b"EMBRMARK";
const MARK_BYTES: usize = 20;
/// The two places of the mark lie in different sectors, so that a torn write spoils only one.
const MARK_PLACES: [u64; 2] = [0, 512];

pub(super) fn io(path: &Path, doing: &str, error: &std::io::Error) -> KvError {
    KvError::Io { path: path.to_path_buf(), what: format!("{doing}: {error}") }
}

pub(super) fn corrupt(file: &Path, offset: Option<u64>, what: impl Into<String>) -> KvError {
    KvError::Corrupt { file: file.to_path_buf(), offset, what: what.into() }
}

pub(super) fn sync_dir(path: &Path) -> Result<(), KvError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(|e| io(path, "flush of the directory", &e))
}

/// Whether something is at `path`.
pub(super) fn exists(path: &Path) -> Result<bool, KvError> {
    path.try_exists().map_err(|e| io(path, "look-up", &e))
}

/// Writes a small file so that it is there completely or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), KvError> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(|e| io(&new, "creation", &e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| io(&new, "writing", &e))?;
    std::fs::rename(&new, path).map_err(|e| io(path, "renaming", &e))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Takes the lock that keeps others out; it is released when the file is closed.
pub(super) fn lock(dir: &Path) -> Result<File, KvError> {
    std::fs::create_dir_all(dir).map_err(|e| io(dir, "creation of the directory", &e))?;
    let path = dir.join("lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|e| io(&path, "opening", &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(KvError::Locked { path: dir.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(io(&path, "locking", &error)),
    }
}

/// Checks that the store is of this format and cluster; writes that down if the directory is new.
pub(super) fn check_format(dir: &Path, cluster: ClusterId) -> Result<(), KvError> {
    let path = dir.join("format");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if exists(&dir.join("db"))? || exists(&dir.join("mark"))? {
                return Err(corrupt(&path, None, "it is missing although there are data beside it"));
            }
            return write_whole(&path, &encode_format(cluster));
        }
        Err(error) => return Err(io(&path, "reading", &error)),
    };
    let found = decode_format(&path, &bytes)?;
    if found != cluster {
        let what = format!("it belongs to cluster {found}, not to {cluster}; give the right --data");
        return Err(KvError::WrongStore { path, what });
    }
    Ok(())
}

/// Whose store it is; another format version is refused.
pub(super) fn decode_format(path: &Path, bytes: &[u8]) -> Result<ClusterId, KvError> {
    let Some((content, sum)) = bytes.split_last_chunk::<4>().filter(|_| bytes.len() == FORMAT_BYTES) else {
        return Err(corrupt(path, Some(0), format!("{} bytes instead of {FORMAT_BYTES}", bytes.len())));
    };
    if !content.starts_with(FORMAT_MAGIC) || crc32c::crc32c(content) != u32::from_le_bytes(*sum) {
        return Err(corrupt(path, Some(0), "wrong magic bytes or checksum"));
    }
    let version = content[8..12].try_into().map_or(0, u32::from_le_bytes);
    if version != FORMAT_VERSION {
        let what = format!(
            "format version {version}, this program reads {FORMAT_VERSION}; use the release that wrote it"
        );
        return Err(KvError::WrongStore { path: path.to_path_buf(), what });
    }
    Ok(content[16..32].try_into().map(ClusterId).unwrap_or_default())
}

pub(super) fn encode_format(cluster: ClusterId) -> Vec<u8> {
    let mut bytes = FORMAT_MAGIC.to_vec();
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(cluster.0);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// The newest version known to be durable. Written after each flush without a flush of its own: it may lag
/// after a power loss but never lies, so a log that ends before it has lost acknowledged commits.
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    version: u64,
    next: usize,
}

impl Mark {
    /// Opens the mark, or creates it with version 0 if `fresh` says that there is no data yet.
    pub(super) fn open(dir: &Path, fresh: bool) -> Result<Self, KvError> {
        let path = dir.join("mark");
        if !exists(&path)? {
            if !fresh {
                return Err(corrupt(&path, None, "it is missing although there are data beside it"));
            }
            let mut bytes = vec![0; MARK_PLACES[1] as usize + MARK_BYTES];
            for place in MARK_PLACES {
                bytes[place as usize..][..MARK_BYTES].copy_from_slice(&encode_mark(0));
            }
            write_whole(&path, &bytes)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|e| io(&path, "opening", &e))?;
        let mut places = [None; 2];
        for (place, found) in MARK_PLACES.iter().zip(&mut places) {
            let mut bytes = [0; MARK_BYTES];
            match file.read_exact_at(&mut bytes, *place) {
                Ok(()) => *found = decode_mark(&bytes),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(io(&path, "reading", &error)),
            }
        }
        let Some(version) = places.iter().flatten().max().copied() else {
            return Err(corrupt(&path, Some(0), "neither copy of the mark is whole"));
        };
        let next = usize::from(places[0] == Some(version));
        Ok(Self { file, path, version, next })
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Notes that everything up to `version` is durable.
    pub(super) fn raise(&mut self, version: u64) -> Result<(), KvError> {
        if version <= self.version {
            return Ok(());
        }
        let written = self.file.write_all_at(&encode_mark(version), MARK_PLACES[self.next]);
        written.map_err(|e| io(&self.path, "writing", &e))?;
        self.version = version;
        self.next = 1 - self.next;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), KvError> {
        self.file.sync_data().map_err(|e| io(&self.path, "flush", &e))
    }
}

pub(super) fn encode_mark(version: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(MARK_MAGIC);
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

pub(super) fn decode_mark(bytes: &[u8; MARK_BYTES]) -> Option<u64> {
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    let whole = content.starts_with(MARK_MAGIC) && crc32c::crc32c(content) == u32::from_le_bytes(*sum);
    let version = content.last_chunk::<8>().map(|v| u64::from_le_bytes(*v))?;
    whole.then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_mark_falls_back_to_the_one_before() {
        let dir = std::env::temp_dir().join(format!("ember-kv-mark-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut mark = Mark::open(&dir, true).unwrap();
        for version in [5, 6, 7] {
            mark.raise(version).unwrap();
        }
        mark.raise(3).unwrap();
        assert_eq!(Mark::open(&dir, false).unwrap().version(), 7);
        let whole = std::fs::read(dir.join("mark")).unwrap();
        let mut versions: Vec<_> = MARK_PLACES
            .iter()
            .map(|place| {
                let mut torn = whole.clone();
                torn[*place as usize + 9] ^= 0x10;
                std::fs::write(dir.join("mark"), &torn).unwrap();
                Mark::open(&dir, false).unwrap().version()
            })
            .collect();
        versions.sort();
        assert_eq!(versions, [6, 7]);
        std::fs::write(dir.join("mark"), b"").unwrap();
        assert!(matches!(Mark::open(&dir, false), Err(KvError::Corrupt { .. })));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(Mark::open(&dir, false), Err(KvError::Corrupt { .. })));
    }
}

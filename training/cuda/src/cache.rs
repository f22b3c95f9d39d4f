//! Compiled kernels in a directory, which processes and machines may share.
//!
//! A file is named after the hash of everything that it depends on, and begins with the hash of what follows. It is
//! written under another name, made durable and renamed: a reader sees all of it or nothing, after a crash too.

use crate::{CudaError, Program, Result};
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a hash.
const HASH: usize = 32;

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// In that directory, which is made if need be.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        Ok(Self { folder: folder.to_owned() })
    }
    /// `EMBER_CUDA_CACHE`, else `ember/kernels` in the user's cache directory.
    ///
    /// # Errors
    /// If there is no such directory, and it can't be made.
    pub fn of_user() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("EMBER_CUDA_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("ember/kernels")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/ember/kernels")));
        let folder = folder.ok_or_else(|| {
            CudaError::Cache("none of EMBER_CUDA_CACHE, XDG_CACHE_HOME and HOME is set".into())
        })?;
        Self::in_folder(&folder)
    }

    /// Whether nothing is kept.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn is_empty(&self) -> Result<bool> {
        let mut entries = std::fs::read_dir(&self.folder).map_err(|e| failed(&self.folder, &e))?;
        Ok(entries.next().is_none())
    }

    /// What was kept for a program, compiler and options; nothing if the file is damaged.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn get(&self, program: &Program, compiler: &str, options: &[&str]) -> Result<Option<Vec<u8>>> {
        let file = self.file(program, compiler, options);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&file, &e)),
        };
        let whole = bytes.split_at_checked(HASH).filter(|(hash, code)| Sha256::digest(code)[..] == **hash);
        Ok(whole.map(|(_, code)| code.to_vec()))
    }

    /// Keeps it; another process may do the same at the same time.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn put(&self, program: &Program, compiler: &str, options: &[&str], code: &[u8]) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let file = self.file(program, compiler, options);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let new = file.with_extension(format!("{}-{number}.new", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut out = std::fs::File::create(&new)?;
            out.write_all(&Sha256::digest(code))?;
            out.write_all(code)?;
            out.sync_all()?;
            std::fs::rename(&new, &file)?;
            std::fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(|e| {
            // What is left of it is of no use; the error that counts is the first.
            let _ = std::fs::remove_file(&new);
            failed(&file, &e)
        })
    }

    fn file(&self, program: &Program, compiler: &str, options: &[&str]) -> PathBuf {
        let mut hash = Sha256::new();
        let parts = [program.entry, &program.source, compiler].into_iter().chain(options.iter().copied());
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{name}.cubin"))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> CudaError {
    CudaError::Cache(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(source: &str) -> Program {
        let (name, source) = (String::new(), source.to_owned());
        Program {
            name,
            entry: "k",
            source,
            threads: 1,
            cluster: 1,
            shared_bytes: 0,
            instructions: &[],
            registers_max: 255,
        }
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ember-cuda-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_it_depends_on_names_the_file_and_damage_is_noticed() {
        let folder = folder("cache");
        let cache = Cache::in_folder(&folder).unwrap();
        let (one, options) = (program("one"), ["-O3"]);
        assert_eq!(cache.get(&one, "13.0", &options).unwrap(), None);
        cache.put(&one, "13.0", &options, b"code").unwrap();
        assert_eq!(cache.get(&one, "13.0", &options).unwrap().unwrap(), b"code");
        assert_eq!(cache.get(&program("two"), "13.0", &options).unwrap(), None);
        assert_eq!(cache.get(&one, "13.1", &options).unwrap(), None);
        assert_eq!(cache.get(&one, "13.0", &["-O", "3"]).unwrap(), None);
        let file = cache.file(&one, "13.0", &options);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[HASH] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(cache.get(&one, "13.0", &options).unwrap(), None);
        std::fs::write(&file, b"short").unwrap();
        assert_eq!(cache.get(&one, "13.0", &options).unwrap(), None);
        cache.put(&one, "13.0", &options, b"code").unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no other file stays");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn writers_at_the_same_time_leave_a_whole_file() {
        let folder = folder("cache-writers");
        let cache = Cache::in_folder(&folder).unwrap();
        let one = program("one");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..8 {
                        cache.put(&one, "13.0", &[], &[7; 5000]).unwrap();
                        assert_eq!(cache.get(&one, "13.0", &[]).unwrap().unwrap(), [7; 5000]);
                    }
                });
            }
        });
        std::fs::remove_dir_all(folder).unwrap();
    }
}

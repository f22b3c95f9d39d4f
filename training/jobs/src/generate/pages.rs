//! Pages of keys in EmberFS: a file for each 64 tokens, named after the weights and all tokens up to its end, with the
//! keys of all layers, `[layers, 64, 576]` in BF16, little-endian.

use crate::data::{read, write};
use anyhow::{Result, anyhow, ensure};
use ember_native::{FileSystem, Replace};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use sha2::{Digest, Sha256};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use zerocopy::IntoBytes;

/// Pages that wait to be written.
const WAITING: usize = 4;

/// Name of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Before the first page, for weights with this identity.
    pub(crate) fn first(identity: [u8; 32]) -> Self {
        Self(identity)
    }
    /// Of the page with these tokens behind this one.
    pub(crate) fn then(&self, tokens: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(tokens).finalize().into())
    }
    fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A directory of pages.
pub(crate) struct Pages {
    fs: FileSystem,
    root: String,
    /// Numbers of a page.
    numbers: usize,
    read: usize,
    to: SyncSender<(Key, Vec<bf16>)>,
    writer: JoinHandle<Result<usize>>,
}

fn path(root: &str, key: &Key) -> (String, String) {
    let name = key.name();
    let directory = format!("{root}/{}", &name[..2]);
    let file = format!("{directory}/{name}");
    (directory, file)
}

impl Pages {
    /// In the directory `root`, which is made if need be.
    pub(crate) fn open(fs: FileSystem, root: &str, numbers: usize) -> Result<Self> {
        fs.make_directories(root)?;
        let (to, from) = sync_channel::<(Key, Vec<bf16>)>(WAITING);
        let (own, directory) = (fs.clone(), root.to_owned());
        let writer = std::thread::Builder::new().name("pages".into()).spawn(move || {
            let mut written = 0;
            for (key, page) in from {
                put(&own, &directory, &key, &page)?;
                written += 1;
            }
            Ok(written)
        })?;
        Ok(Self { fs, root: root.to_owned(), numbers, read: 0, to, writer })
    }

    /// A page, if it is there.
    pub(crate) fn load(&mut self, key: &Key) -> Result<Option<Vec<bf16>>> {
        let (_, file) = path(&self.root, key);
        if !self.fs.exists(&file)? {
            return Ok(None);
        }
        let bytes = read(&self.fs, &file)?;
        ensure!(
            bytes.len() == 2 * self.numbers,
            "{file} has {} bytes, not the {} of a page: remove it",
            bytes.len(),
            2 * self.numbers
        );
        self.read += 1;
        let number = |pair: &[u8; 2]| bf16::from_le_bytes(*pair);
        Ok(Some(bytes.as_chunks().0.iter().map(number).collect()))
    }

    /// Writes a page, beside what follows.
    pub(crate) fn store(&mut self, key: &Key, page: Vec<bf16>) -> Result<()> {
        // What has ended the writer is told at the end.
        let _ = self.to.send((key.clone(), page));
        Ok(())
    }

    /// Waits until all is written; pages read and written.
    pub(crate) fn end(self) -> Result<(usize, usize)> {
        drop(self.to);
        let written = self.writer.join().map_err(|_| anyhow!("the writer of pages panicked"))??;
        Ok((self.read, written))
    }
}

/// Nobody sees a page before it is whole.
fn put(fs: &FileSystem, root: &str, key: &Key, page: &[bf16]) -> Result<()> {
    let (directory, file) = path(root, key);
    if fs.exists(&file)? {
        return Ok(());
    }
    fs.make_directories(&directory)?;
    let part = format!("{file}.{}.part", std::process::id());
    write(fs, &part, page.reinterpret_cast().as_bytes())?;
    fs.rename(&part, &file, Replace::Replace)?;
    Ok(())
}

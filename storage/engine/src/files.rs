//! The files of one target, with errors that name them.

use crate::error::{EngineError, IN_USE, Result};
use ember_rt::disk::{self, Disk, DiskQueue, FileId, OpenMode, Priority, Space};
use ember_rt::{Buf, SharedBuf};
use std::io;
use std::ops::Range;

/// An open file and its name.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) id: FileId,
    /// Relative to the disk's root.
    pub(crate) path: String,
}

/// Bytes of zeros written at once.
const ZEROS: u64 = 1 << 20;

/// A target's directory on a disk.
#[derive(Clone)]
pub(crate) struct Files {
    queue: DiskQueue,
    dir: String,
}

fn io_error(file: String, operation: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Io { file, operation, source }
}

/// Whether an error means that the file system is full.
pub(crate) fn is_full(error: &EngineError) -> bool {
    matches!(error, EngineError::Io { source, .. }
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// A write that the driver has. Dropped, it goes on.
pub(crate) struct Writing {
    write: disk::Writing,
    file: File,
}

impl Writing {
    pub(crate) async fn end(self) -> Result<()> {
        self.write.end().await.map_err(io_error(self.file.path, "write"))
    }
}

impl Files {
    pub(crate) fn new(queue: &DiskQueue, dir: &str) -> Self {
        Self { queue: queue.clone(), dir: dir.trim_end_matches('/').to_owned() }
    }
    pub(crate) fn dir(&self) -> &str {
        &self.dir
    }
    pub(crate) fn path(&self, name: &str) -> String {
        if self.dir.is_empty() { name.to_owned() } else { format!("{}/{name}", self.dir) }
    }

    /// The disk, unless it was taken away from this target: what is done at once then fails too.
    fn disk(&self) -> io::Result<&dyn Disk> {
        self.queue.check().map(|()| self.queue.disk())
    }

    pub(crate) fn create_dir(&self) -> Result<()> {
        let create = |disk: &dyn Disk| disk.create_dir(&self.dir);
        self.disk().and_then(create).map_err(io_error(self.dir.clone(), "create directory"))?;
        // Its parents may be new too: each stands in the one above it.
        let ends = self.dir.match_indices('/').map(|(end, _)| end);
        for end in std::iter::once(0).chain(ends) {
            let parent = &self.dir[..end];
            let synced = self.disk().and_then(|disk| disk.sync_dir(parent));
            synced.map_err(io_error(parent.to_owned(), "sync directory"))?;
        }
        Ok(())
    }
    pub(crate) fn lock(&self) -> Result<()> {
        self.disk().and_then(|disk| disk.lock(&self.dir)).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => EngineError::Refused {
                file: self.dir.clone(),
                offset: 0,
                what: format!("cannot take the lock of the target: {source}"),
                remedy: IN_USE,
            },
            // Nobody has it: it can't be written down.
            _ => EngineError::Io { file: self.dir.clone(), operation: "take the lock of", source },
        })
    }
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        self.disk().and_then(|disk| disk.list(&self.dir)).map_err(io_error(self.dir.clone(), "list"))
    }
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.disk().and_then(|disk| disk.remove_file(&path)).map_err(io_error(path, "remove"))
    }
    pub(crate) fn remove_if_there(&self, name: &str) -> Result<()> {
        match self.remove(name) {
            Err(EngineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        self.disk().and_then(|disk| disk.rename(&from, &to)).map_err(io_error(from, "rename"))
    }
    pub(crate) fn sync_dir(&self) -> Result<()> {
        self.disk()
            .and_then(|disk| disk.sync_dir(&self.dir))
            .map_err(io_error(self.dir.clone(), "sync directory"))
    }
    pub(crate) fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match self.disk().and_then(|disk| disk.read_small(&path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EngineError::Io { file: path, operation: "read", source }),
        }
    }
    pub(crate) fn write_small(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path(name);
        self.disk().and_then(|disk| disk.write_small(&path, content)).map_err(io_error(path, "write"))
    }
    /// See [`Disk::written`].
    pub(crate) fn written(&self, file: &File, from: u64) -> Result<Vec<Range<u64>>> {
        let written = self.disk().and_then(|disk| disk.written(file.id, from));
        written.map_err(io_error(file.path.clone(), "ask what is written of"))
    }
    /// See [`Disk::overwrites_in_place`].
    pub(crate) fn overwrites_in_place(&self) -> bool {
        self.queue.disk().overwrites_in_place()
    }
    pub(crate) fn space(&self) -> Result<Space> {
        self.disk().and_then(|disk| disk.space()).map_err(io_error(self.dir.clone(), "ask the free space of"))
    }

    /// Opens a file that is there; `None` if it isn't.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>> {
        let path = self.path(name);
        let mode = OpenMode { create: false, exclusive: false, direct: true };
        match self.disk().and_then(|disk| disk.open_file(&path, mode)) {
            Ok(id) => Ok(Some(File { id, path })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EngineError::Io { file: path, operation: "open", source }),
        }
    }
    /// Makes a new file.
    pub(crate) fn create(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let mode = OpenMode { create: true, exclusive: true, direct: true };
        let id = self
            .disk()
            .and_then(|disk| disk.open_file(&path, mode))
            .map_err(io_error(path.clone(), "create"))?;
        Ok(File { id, path })
    }
    pub(crate) fn close(&self, file: &File) {
        self.queue.disk().close_file(file.id);
    }
    pub(crate) fn len(&self, file: &File) -> Result<u64> {
        self.disk()
            .and_then(|disk| disk.file_len(file.id))
            .map_err(io_error(file.path.clone(), "ask the length of"))
    }

    /// Reads up to `len` bytes; fewer at the end of the file.
    pub(crate) async fn read(&self, file: &File, priority: Priority, offset: u64, len: usize) -> Result<Buf> {
        let read = self.queue.read(file.id, priority, offset, len).await;
        read.map_err(io_error(file.path.clone(), "read"))
    }
    pub(crate) async fn write(
        &self,
        file: &File,
        priority: Priority,
        offset: u64,
        data: SharedBuf,
    ) -> Result<()> {
        let written = self.queue.write(file.id, priority, offset, data).await;
        written.map_err(io_error(file.path.clone(), "write"))
    }
    /// Starts a write: returns when the driver has it.
    pub(crate) async fn start_write(
        &self,
        file: File,
        priority: Priority,
        offset: u64,
        data: SharedBuf,
    ) -> Result<Writing> {
        match self.queue.start_write(file.id, priority, offset, data).await {
            Ok(write) => Ok(Writing { write, file }),
            Err(error) => Err(io_error(file.path, "write")(error)),
        }
    }
    pub(crate) async fn sync(&self, file: &File) -> Result<()> {
        self.queue.sync(file.id).await.map_err(io_error(file.path.clone(), "flush"))
    }
    pub(crate) async fn allocate(&self, file: &File, offset: u64, len: u64) -> Result<()> {
        let allocated = self.queue.allocate(file.id, offset, len).await;
        allocated.map_err(io_error(file.path.clone(), "reserve space in"))
    }
    /// Reserves space and fills it with zeros. What is written there later changes no metadata of the file
    /// system, which makes its flush several times cheaper than that of a first write.
    pub(crate) async fn zero(&self, file: &File, offset: u64, len: u64) -> Result<()> {
        self.allocate(file, offset, len).await?;
        let zeros: SharedBuf = Buf::zeroed(len.min(ZEROS) as usize).into();
        let mut done = 0;
        while done < len {
            let part = zeros.slice(0..(len - done).min(ZEROS) as usize);
            let bytes = part.len() as u64;
            self.write(file, Priority::Foreground, offset + done, part).await?;
            done += bytes;
        }
        Ok(())
    }
    pub(crate) async fn punch(&self, file: &File, offset: u64, len: u64) -> Result<()> {
        self.queue
            .punch(file.id, offset, len)
            .await
            .map_err(io_error(file.path.clone(), "give back space of"))
    }
}

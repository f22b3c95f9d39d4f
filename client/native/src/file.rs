//! Bytes.

use crate::fs::FileSystem;
use crate::{NativeError, Result};
use ember_client::{ClientError, OpenFile, Segments};
use ember_rt::select::join_all;
use ember_rt::sync::Semaphore;
use ember_rt::{Buf, SharedBuf};
use ember_types::Status;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a request, and where the file is cut into them.
const PIECE: u64 = 1 << 20;
/// Requests of one call on their way.
const WINDOW: usize = 16;
/// Ranges of one [`File::read_many`] on their way, and their bytes in KiB.
const RANGES: usize = 64;
const RANGES_KIB: usize = 64 << 10;

/// An open file. It is closed when it goes; [`File::close`] also says whether that went well.
pub struct File {
    fs: FileSystem,
    path: String,
    file: Option<Arc<OpenFile>>,
}

/// `range`, cut at the multiples of [`PIECE`].
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let next = move |from: u64| ((from / PIECE + 1).saturating_mul(PIECE)).min(range.end);
    let first = (range.start < range.end).then(|| range.start..next(range.start));
    std::iter::successors(first, move |last| (last.end < range.end).then(|| last.end..next(last.end)))
}

fn concat(segments: &Segments) -> Vec<u8> {
    let mut all = Vec::with_capacity(segments.iter().map(|segment| segment.len()).sum());
    segments.iter().for_each(|segment| all.extend_from_slice(segment));
    all
}

impl File {
    pub(crate) fn new(fs: FileSystem, path: &str, file: Arc<OpenFile>) -> Self {
        Self { fs, path: path.to_owned(), file: Some(file) }
    }
    fn file(&self) -> Arc<OpenFile> {
        self.file.clone().expect("a file is open until it is closed")
    }

    /// Bytes, as far as this process knows: those of the moment when it was opened, or more that it has written.
    pub fn length(&self) -> u64 {
        self.file().state().length()
    }

    fn begin_read(&self, range: Range<u64>) -> crate::reactor::Answer<Segments> {
        let file = self.file();
        self.fs
            .reactor()
            .begin(async move |client| client.read(&file, range.start, range.end - range.start).await)
    }

    /// Reads into `into` from `offset` on; the number of bytes, which is less only at the end of the file.
    ///
    /// # Errors
    /// If the file may not be read, or the data can't be reached in time.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let end = offset.saturating_add(into.len() as u64).min(self.length());
        let reads = pieces(offset..end.max(offset)).map(|piece| self.begin_read(piece));
        let (mut left, mut done) = (into, 0);
        self.fs.reactor().pipelined(WINDOW, reads, ("reading", &self.path), |segments| {
            for segment in &segments {
                let to = left.split_off_mut(..segment.len());
                to.ok_or_else(|| self.failed("reading", Status::Internal, "more bytes than were asked for"))?
                    .copy_from_slice(segment);
                done += segment.len();
            }
            self.fs.reactor().used(segments);
            Ok(())
        })?;
        Ok(done)
    }

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// Also if the file is shorter.
    pub fn read_exact_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let wanted = into.len();
        let read = self.read_at(offset, into)?;
        if read == wanted {
            return Ok(());
        }
        let text = format!("{wanted} bytes at {offset} were asked for, there are {read}");
        Err(self.failed("reading", Status::InvalidArgument, &text))
    }

    /// Reads many ranges, given by offset and length, many at once; each result is as long as the file allows. For
    /// samples of a data set.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn read_many(&self, ranges: &[(u64, usize)]) -> Result<Vec<Vec<u8>>> {
        let (file, ranges) = (self.file(), ranges.to_vec());
        let read = self.fs.reactor().begin(async move |client| {
            let (next, room) = (Cell::new(0), Semaphore::new(RANGES_KIB));
            let done = RefCell::new(vec![Vec::new(); ranges.len()]);
            let worker = async || {
                while let Some(&(offset, length)) = ranges.get(next.get()) {
                    let index = next.replace(next.get() + 1);
                    let kib = length.div_ceil(1024).min(RANGES_KIB) as u32;
                    // The semaphore is never closed.
                    let _room = room.acquire_many(kib).await;
                    let segments = client.read(&file, offset, length as u64).await;
                    // One failure ends it for the others.
                    let segments = segments.inspect_err(|_| next.set(ranges.len()))?;
                    done.borrow_mut()[index] = concat(&segments);
                }
                Ok(())
            };
            let workers = (0..RANGES.min(ranges.len())).map(|_| worker());
            join_all(workers).await.into_iter().collect::<ember_client::Result<()>>()?;
            Ok(done.into_inner())
        });
        self.fs.reactor().end(&read, "reading", &self.path)
    }

    /// Writes `bytes` at `offset`. They are durable on every replica when this returns; their number, if the file has
    /// grown, after [`File::sync`] or [`File::close`].
    ///
    /// # Errors
    /// If the file was opened for reading, there is no space, or the data can't be written in time. Some of the bytes
    /// may be written then.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_parts_at(offset, &[bytes])
    }

    /// The same for bytes that lie in several places and follow each other in the file, as pwritev(2) takes them.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub fn write_parts_at(&self, offset: u64, parts: &[&[u8]]) -> Result<()> {
        if !self.file().flags().write {
            return Err(self.failed("writing", Status::BadHandle, "it was opened for reading"));
        }
        let end = parts.iter().fold(offset, |end, part| end.saturating_add(part.len() as u64));
        let (mut parts, mut left) = (parts.iter(), &[][..]);
        let writes = pieces(offset..end).map(|piece| {
            let mut data = Buf::scratch((piece.end - piece.start) as usize);
            let mut to = data.bytes_mut();
            while !to.is_empty() {
                if left.is_empty() {
                    left = parts.next().expect("the pieces are as long as the parts");
                }
                let (now, later) = left.split_at(left.len().min(to.len()));
                let (filled, rest) = to.split_at_mut(now.len());
                filled.copy_from_slice(now);
                (left, to) = (later, rest);
            }
            let (file, data) = (self.file(), SharedBuf::from(data));
            // The buffer comes back, so that this thread uses it again.
            self.fs.reactor().begin(async move |client| {
                client.write(&file, piece.start, data.clone()).await.map(|()| data)
            })
        });
        self.fs.reactor().pipelined(WINDOW, writes, ("writing", &self.path), |_| Ok(()))
    }

    /// Makes the file's metadata, its length among them, durable, as fsync(2).
    ///
    /// # Errors
    /// If meta can't be reached in time.
    pub fn sync(&self) -> Result<()> {
        let file = self.file();
        let synced = self.fs.reactor().begin(async move |client| {
            client.fsync(file.state().inode()).await?;
            file.report()
        });
        self.fs.reactor().end(&synced, "syncing", &self.path)
    }

    /// Closes the file: who opens it next sees what was written.
    ///
    /// # Errors
    /// If meta can't be reached in time; the file is closed all the same.
    pub fn close(mut self) -> Result<()> {
        self.closed()
    }

    fn closed(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let handle = file.handle();
        let closed = self.fs.reactor().begin(async move |client| client.close(handle).await.map(|_| ()));
        self.fs.reactor().end(&closed, "closing", &self.path)
    }

    fn failed(&self, operation: &'static str, status: Status, text: &str) -> NativeError {
        let error = ClientError::new(status, text);
        NativeError::Operation { operation, path: self.path.clone(), error }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Whoever wants to know closes it.
        let _ = self.closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_pieces() {
        let cut = |range: Range<u64>| pieces(range).collect::<Vec<_>>();
        assert_eq!(cut(5..5), []);
        assert_eq!(cut(5..9), vec![5..9]);
        assert_eq!(
            cut(PIECE - 1..2 * PIECE + 1),
            [PIECE - 1..PIECE, PIECE..2 * PIECE, 2 * PIECE..2 * PIECE + 1]
        );
        assert_eq!(cut(u64::MAX - 1..u64::MAX), vec![u64::MAX - 1..u64::MAX]);
    }
}

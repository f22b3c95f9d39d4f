//! Reads the frames of a log segment or checkpoint, in order.

use crate::error::{EngineError, Result};
use crate::files::{File, Files};
use crate::frame::{ALIGN, FrameHeader, FrameOf};
use crate::record::Record;
use ember_rt::Buf;
use ember_rt::disk::Priority;

const WINDOW: usize = 1 << 20;

/// A whole frame.
pub(crate) struct Frame {
    /// Where it starts in its file, in bytes.
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
    pub(crate) records: Vec<Record>,
}

/// Reads one file; closes it when dropped.
pub(crate) struct FrameReader<'a> {
    files: &'a Files,
    file: File,
    of: FrameOf,
    len: u64,
    at: u64,
    window: Buf,
    window_at: u64,
    priority: Priority,
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(files: &'a Files, file: File, of: FrameOf) -> Result<Self> {
        let len = files.len(&file).inspect_err(|_| files.close(&file))?;
        Ok(Self {
            files,
            file,
            of,
            len,
            at: 0,
            window: Buf::default(),
            window_at: 0,
            priority: Priority::Foreground,
        })
    }
    /// Reads with another priority.
    pub(crate) fn at(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
    /// Where the next frame starts.
    pub(crate) fn offset(&self) -> u64 {
        self.at
    }
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
    pub(crate) fn path(&self) -> &str {
        &self.file.path
    }

    /// `length` bytes at `offset`; fewer at the end of the file.
    async fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        let have = self.window_at..self.window_at + self.window.len() as u64;
        let end = (offset + length as u64).min(self.len);
        if !(have.contains(&offset) && end <= have.end) {
            let want = WINDOW.max(length).next_multiple_of(ALIGN);
            self.window = self.files.read(&self.file, self.priority, offset, want).await?;
            self.window_at = offset;
        }
        let from = (offset - self.window_at) as usize;
        let to = (from + length).min(self.window.len());
        Ok(self.window.get(from..to).unwrap_or(&[]))
    }

    /// The header of a whole frame at `offset`, and the frame's bytes.
    async fn frame_at(&mut self, offset: u64) -> Result<Option<(FrameHeader, &[u8])>> {
        let of = self.of;
        let Some(header) = FrameHeader::parse(self.bytes(offset, ALIGN).await?, of) else { return Ok(None) };
        let bytes = self.bytes(offset, header.length()).await?;
        Ok(header.verify(bytes).then_some((header, bytes)))
    }

    /// The next frame; `None` if there is no whole one here. Its records not making sense is damage, since
    /// its checksum is right.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>> {
        let (offset, path) = (self.at, self.file.path.clone());
        let Some((header, bytes)) = self.frame_at(offset).await? else { return Ok(None) };
        let records = header
            .records(bytes)
            .map_err(|(within, what)| EngineError::corrupt(path, offset + within as u64, what))?;
        self.at = offset + header.length() as u64;
        Ok(Some(Frame { offset, sequence: header.sequence, records }))
    }

    /// Whether the page at the present position is zeros.
    pub(crate) async fn is_zero_here(&mut self) -> Result<bool> {
        let at = self.at;
        Ok(self.bytes(at, ALIGN).await?.iter().all(|&byte| byte == 0))
    }

    /// Whether a whole frame of sequence `from` or later starts behind the present position.
    pub(crate) async fn has_later(&mut self, from: u64) -> Result<bool> {
        let mut at = self.at + ALIGN as u64;
        while at < self.len {
            if let Some((header, _)) = self.frame_at(at).await?
                && header.sequence >= from
            {
                return Ok(true);
            }
            at += ALIGN as u64;
        }
        Ok(false)
    }
}

impl Drop for FrameReader<'_> {
    fn drop(&mut self) {
        self.files.close(&self.file);
    }
}

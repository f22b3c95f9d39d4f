//! Memory to receive requests into.

use crate::abi::{InHeader, MIN_READ_BUFFER, WriteIn};
use crate::request::{Malformed, Request};

/// Where the data of a WRITE start in its message, in bytes.
pub const WRITE_DATA_OFFSET: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Bytes that a message of a mount with this `max_write` can have.
pub fn message_size(max_write: u32) -> usize {
    (WRITE_DATA_OFFSET + max_write as usize).max(MIN_READ_BUFFER)
}

/// Bytes that memory must have so that [`message_window`] finds room in it.
pub fn window_size(max_write: u32) -> usize {
    message_size(max_write) + rustix::param::page_size()
}

/// The part of `memory` that a request is best received into: the data of a WRITE then start on a page, so
/// that they can go to a disk with O_DIRECT from where they are. `None` if the memory is shorter than
/// [`window_size`].
pub fn message_window(memory: &mut [u8], max_write: u32) -> Option<&mut [u8]> {
    let start = window_start(memory);
    memory.get_mut(start..start + message_size(max_write))
}

fn window_start(memory: &[u8]) -> usize {
    let page = rustix::param::page_size();
    let data = memory.as_ptr().addr() + WRITE_DATA_OFFSET;
    data.next_multiple_of(page) - data
}

/// A buffer of its own for one request; it holds the request until that is answered.
pub struct RecvBuffer {
    memory: Box<[u8]>,
    start: usize,
    size: usize,
    filled: usize,
}

impl RecvBuffer {
    /// Room for every message of a mount with this `max_write` (bytes). Untouched pages cost no memory.
    pub fn new(max_write: u32) -> Self {
        let memory = vec![0; window_size(max_write)].into_boxed_slice();
        let start = window_start(&memory);
        Self { memory, start, size: message_size(max_write), filled: 0 }
    }

    /// The whole room, to be received into.
    pub fn window(&mut self) -> &mut [u8] {
        self.filled = 0;
        &mut self.memory[self.start..self.start + self.size]
    }

    /// Says that the first `bytes` of the window are a message now.
    pub fn set_filled(&mut self, bytes: usize) {
        assert!(bytes <= self.size, "a message of {bytes} bytes in a window of {}", self.size);
        self.filled = bytes;
    }

    /// The message.
    pub fn message(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }
}

impl std::fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBuffer").field("size", &self.size).field("filled", &self.filled).finish()
    }
}

/// Memory of a channel that holds one request.
pub trait Slot {
    /// The request in it.
    fn request(&self) -> Result<Request<'_>, Malformed>;
}

impl Slot for RecvBuffer {
    fn request(&self) -> Result<Request<'_>, Malformed> {
        Request::parse(self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_data_are_page_aligned() {
        let page = rustix::param::page_size();
        for max_write in [1, 4096, 1 << 20] {
            let mut buffer = RecvBuffer::new(max_write);
            let window = buffer.window();
            assert!(window.len() >= MIN_READ_BUFFER && window.len() >= 80 + max_write as usize);
            assert_eq!(window[WRITE_DATA_OFFSET..].as_ptr().addr() % page, 0);
        }
        let mut memory = vec![0; window_size(4096) + 13];
        for skip in 0..13 {
            let window = message_window(&mut memory[skip..], 4096).unwrap();
            assert_eq!(window[WRITE_DATA_OFFSET..].as_ptr().addr() % page, 0);
        }
        assert!(message_window(&mut memory[..100], 4096).is_none());
    }
}

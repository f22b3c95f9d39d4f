//! Streams over tokio-uring sockets.

use crate::raw::{Part, Window, fd_of};
use ember_rt::net::{Stream, StreamReader, StreamWriter};
use ember_rt::{Buf, LocalBoxFuture, SharedBuf};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use tokio_uring::net::{TcpStream, UnixStream};

/// Parts that one system call sends at most.
const PARTS_MAX: usize = 64;

/// A connected socket.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => fd_of(socket),
            Self::Unix(socket) => fd_of(socket),
        }
    }
    fn shutdown(&self) {
        // The only failure is that the peer has gone already.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
    async fn read(&self, window: Window) -> (io::Result<usize>, Window) {
        match self {
            Self::Tcp(socket) => socket.read(window).await,
            Self::Unix(socket) => socket.read(window).await,
        }
    }
    async fn writev(&self, parts: Vec<Part>) -> (io::Result<usize>, Vec<Part>) {
        match self {
            Self::Tcp(socket) => socket.writev(parts).await,
            Self::Unix(socket) => socket.writev(parts).await,
        }
    }
}

/// The two halves of a socket.
pub(crate) fn stream(socket: Socket, peer: String) -> Stream {
    let socket = Rc::new(socket);
    Stream {
        reader: Box::new(Reader { socket: socket.clone(), drained: true }),
        writer: Box::new(Writer { socket }),
        peer,
    }
}

struct Reader {
    socket: Rc<Socket>,
    /// The last read didn't fill its range: nothing more is to be had without waiting.
    drained: bool,
}

impl Reader {
    async fn read_some(&mut self, mut buf: Buf, range: Range<usize>) -> (io::Result<usize>, Buf) {
        assert!(!range.is_empty() && range.end <= buf.capacity(), "{range:?} of {buf:?}");
        let wanted = range.len();
        if !self.drained {
            // A sender that is never slower than we are must not keep other tasks from running.
            tokio::task::consume_budget().await;
            loop {
                match recv(self.socket.fd(), &mut buf.whole_mut()[range.clone()], RecvFlags::DONTWAIT) {
                    Ok((_, received)) => {
                        self.drained = received < wanted;
                        return (Ok(received), buf);
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(err) => return (Err(err.into()), buf),
                }
            }
        }
        let (result, window) = self.socket.read(Window::new(buf, range)).await;
        self.drained = !matches!(result, Ok(received) if received == wanted);
        (result, window.into_buf())
    }
}

impl StreamReader for Reader {
    fn read(&mut self, buf: Buf, range: Range<usize>) -> LocalBoxFuture<'_, (io::Result<usize>, Buf)> {
        Box::pin(self.read_some(buf, range))
    }
}

struct Writer {
    socket: Rc<Socket>,
}

/// Takes `sent` bytes off the front.
fn advance(parts: &mut VecDeque<SharedBuf>, mut sent: usize) {
    while let Some(first) = parts.front_mut() {
        if sent < first.len() {
            *first = first.slice(sent..first.len());
            return;
        }
        sent -= first.len();
        parts.pop_front();
    }
}

impl Writer {
    /// Sends what the socket takes without waiting.
    fn send_now(&self, parts: &VecDeque<SharedBuf>) -> Result<usize, Errno> {
        let slices: Vec<IoSlice<'_>> = parts.iter().take(PARTS_MAX).map(|part| IoSlice::new(part)).collect();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(self.socket.fd(), &slices, &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    async fn write_parts(&mut self, parts: Vec<SharedBuf>) -> io::Result<()> {
        let mut parts: VecDeque<SharedBuf> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        while !parts.is_empty() {
            let sent = match self.send_now(&parts) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => {
                    let rest = parts.iter().take(PARTS_MAX).cloned().map(Part).collect();
                    self.socket.writev(rest).await.0?
                }
                Err(err) => return Err(err.into()),
            };
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            advance(&mut parts, sent);
        }
        Ok(())
    }
}

impl StreamWriter for Writer {
    fn write_all(&mut self, parts: Vec<SharedBuf>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.write_parts(parts))
    }
    fn shutdown(&mut self) {
        self.socket.shutdown();
    }
}

impl Drop for Writer {
    /// A read of the other half that is still on its way ends with it.
    fn drop(&mut self) {
        self.socket.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_goes_over_whole_and_partial_parts() {
        let mut parts: VecDeque<SharedBuf> = [&b"abc"[..], b"defg", b"h"].map(SharedBuf::from).into();
        advance(&mut parts, 5);
        assert_eq!(parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>(), [&b"fg"[..], b"h"]);
        advance(&mut parts, 3);
        assert!(parts.is_empty());
    }
}

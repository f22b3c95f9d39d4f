//! Byte streams between processes. Framing, deadlines and credits are `ember-net`'s.

use crate::buf::{Buf, SharedBuf};
use crate::handle::LocalBoxFuture;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

/// Where a service listens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Addr {
    /// `host:port`; IPv6 as `[host]:port`.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl std::str::FromStr for Addr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!("address {text:?}: a Unix socket needs an absolute path")),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("address {text:?} is neither IP:PORT (IPv6 as [IP]:PORT) nor unix:/absolute/path")
        })
    }
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Makes connections.
pub trait Net {
    /// Opens a stream. The caller sets the deadline.
    fn connect(&self, addr: &Addr) -> LocalBoxFuture<'static, io::Result<Stream>>;
    /// Listens; fails at once if the address is taken. A stale Unix socket file, to which nobody listens, is
    /// replaced.
    fn listen(&self, addr: &Addr) -> io::Result<Box<dyn Listener>>;
}

/// Accepts connections.
pub trait Listener {
    /// Waits for the next connection.
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Stream>>;
    /// Where it listens: the port that the system chose if it was asked for port 0.
    fn local_addr(&self) -> Addr;
}

/// An open connection, as two halves that two tasks may own.
pub struct Stream {
    /// Receives.
    pub reader: Box<dyn StreamReader>,
    /// Sends.
    pub writer: Box<dyn StreamWriter>,
    /// The other side, for messages to people.
    pub peer: String,
}

/// The receiving half.
pub trait StreamReader {
    /// Reads at least one byte into `buf.whole_mut()[range]`; 0 means the other side has closed. The buffer
    /// comes back in any case. Not to be dropped before it is done: end the stream by
    /// [`StreamWriter::shutdown`].
    fn read(&mut self, buf: Buf, range: Range<usize>) -> LocalBoxFuture<'_, (io::Result<usize>, Buf)>;
}

/// The sending half.
pub trait StreamWriter {
    /// Writes all parts in order.
    fn write_all(&mut self, parts: Vec<SharedBuf>) -> LocalBoxFuture<'_, io::Result<()>>;
    /// Closes both directions: pending reads and writes of either half end with an error or 0.
    fn shutdown(&mut self);
}

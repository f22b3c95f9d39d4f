//! Connecting and listening on TCP and Unix sockets.

use crate::stream::{Socket, stream};
use ember_rt::net::{Listener, Net, Stream};
use ember_rt::{Addr, LocalBoxFuture};
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// A path must fit into `sockaddr_un` with its final zero.
const UNIX_PATH_MAX: usize = 107;
/// Quiet time after which the kernel asks whether the peer's machine is still there.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long sent bytes may stay unacknowledged before the connection is given up, in milliseconds.
const USER_TIMEOUT_MS: u32 = 10_000;

/// Bytes that a Unix socket takes before the sender has to wait: a chunk with what surrounds it. (TCP finds
/// its own size.)
const UNIX_BUFFER: usize = 2 << 20;

/// The machine's network.
pub(crate) struct UringNet;

fn with_context(err: &io::Error, text: String) -> io::Error {
    io::Error::new(err.kind(), text)
}

/// Small frames leave at once; a machine that vanished is noticed.
fn tune_tcp(socket: &Socket) -> io::Result<()> {
    let fd = socket.fd();
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(fd, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(fd, 3)?;
    sockopt::set_tcp_user_timeout(fd, USER_TIMEOUT_MS)?;
    Ok(())
}

/// The system's default holds a fraction of a chunk; each refill would cost a turn of both sides.
fn tune_unix(socket: &Socket) {
    // Only root may go beyond the system's limit; with less it is slower, not wrong.
    if sockopt::set_socket_send_buffer_size_force(socket.fd(), UNIX_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket.fd(), UNIX_BUFFER);
    }
}

fn check_unix_path(path: &Path) -> io::Result<()> {
    let len = path.as_os_str().len();
    if len > UNIX_PATH_MAX {
        let text = format!(
            "unix:{}: a socket's path may have {UNIX_PATH_MAX} bytes, not {len}: use a shorter directory",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

async fn connect_tcp(addr: SocketAddr) -> io::Result<Stream> {
    let named = |err: io::Error| with_context(&err, format!("connect to {addr}: {err}"));
    let socket = Socket::Tcp(tokio_uring::net::TcpStream::connect(addr).await.map_err(named)?);
    tune_tcp(&socket).map_err(named)?;
    Ok(stream(socket, addr.to_string()))
}

async fn connect_unix(path: PathBuf) -> io::Result<Stream> {
    check_unix_path(&path)?;
    let socket = tokio_uring::net::UnixStream::connect(&path)
        .await
        .map_err(|err| with_context(&err, format!("connect to unix:{}: {err}", path.display())))?;
    let socket = Socket::Unix(socket);
    tune_unix(&socket);
    Ok(stream(socket, format!("unix:{}", path.display())))
}

impl Net for UringNet {
    fn connect(&self, addr: &Addr) -> LocalBoxFuture<'static, io::Result<Stream>> {
        match addr.clone() {
            Addr::Tcp(addr) => Box::pin(connect_tcp(addr)),
            Addr::Unix(path) => Box::pin(connect_unix(path)),
        }
    }

    fn listen(&self, addr: &Addr) -> io::Result<Box<dyn Listener>> {
        Ok(match addr {
            Addr::Tcp(addr) => Box::new(TcpListener::bind(*addr)?),
            Addr::Unix(path) => Box::new(UnixListener::bind(path)?),
        })
    }
}

struct TcpListener {
    listener: tokio::net::TcpListener,
    addr: SocketAddr,
}

impl TcpListener {
    fn bind(addr: SocketAddr) -> io::Result<Self> {
        let bound = || {
            let socket = match addr {
                SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
            };
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let listener = socket.listen(BACKLOG)?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr })
        };
        bound().map_err(|err: io::Error| {
            let remedy = match err.kind() {
                io::ErrorKind::AddrInUse => {
                    ": another process listens there; stop it (`ss -ltnp` shows it) or choose another port"
                }
                io::ErrorKind::AddrNotAvailable => ": no interface of this machine has that address",
                io::ErrorKind::PermissionDenied => ": ports below 1024 need root; choose another port",
                _ => "",
            };
            with_context(&err, format!("cannot listen on {addr}: {err}{remedy}"))
        })
    }

    async fn next(&mut self) -> io::Result<Stream> {
        loop {
            let (accepted, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(err) => return Err(err),
            };
            let accepted = accepted.into_std()?;
            accepted.set_nonblocking(false)?;
            let socket = Socket::Tcp(tokio_uring::net::TcpStream::from_std(accepted));
            // A peer that has gone in the meantime makes this fail: not the listener's trouble.
            if tune_tcp(&socket).is_ok() {
                return Ok(stream(socket, peer.to_string()));
            }
        }
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Stream>> {
        Box::pin(self.next())
    }
    fn local_addr(&self) -> Addr {
        Addr::Tcp(self.addr)
    }
}

struct UnixListener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, to remove no other's.
    file: (u64, u64),
}

impl UnixListener {
    fn bind(path: &Path) -> io::Result<Self> {
        check_unix_path(path)?;
        let named =
            |err: io::Error| with_context(&err, format!("cannot listen on unix:{}: {err}", path.display()));
        remove_stale(path)?;
        let listener = tokio::net::UnixListener::bind(path).map_err(named)?;
        let meta = std::fs::symlink_metadata(path).map_err(named)?;
        Ok(Self { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    }

    async fn next(&mut self) -> io::Result<Stream> {
        loop {
            let (accepted, _) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(err) => return Err(err),
            };
            let accepted = accepted.into_std()?;
            accepted.set_nonblocking(false)?;
            let socket = Socket::Unix(tokio_uring::net::UnixStream::from_std(accepted));
            tune_unix(&socket);
            let peer = match sockopt::socket_peercred(socket.fd()) {
                Ok(cred) => format!("unix:{} (pid {})", self.path.display(), cred.pid.as_raw_nonzero()),
                Err(_) => format!("unix:{}", self.path.display()),
            };
            return Ok(stream(socket, peer));
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let refused = |kind, why: &str| {
        Err(io::Error::new(kind, format!("cannot listen on unix:{}: {why}", path.display())))
    };
    if !meta.file_type().is_socket() {
        let why = "a file that is not a socket is there; move it away or choose another path";
        return refused(io::ErrorKind::AlreadyExists, why);
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => {
            let why = "another process listens there; stop it (`ss -lxp` shows it) or choose another path";
            refused(io::ErrorKind::AddrInUse, why)
        }
    }
}

impl Listener for UnixListener {
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Stream>> {
        Box::pin(self.next())
    }
    fn local_addr(&self) -> Addr {
        Addr::Unix(self.path.clone())
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            // A file that stays is replaced by the next listener.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

//! Ranks that are processes, joined by TCP.
//!
//! A connection begins with a greeting from either side: `EMBERDP1`, job, number of ranks, own rank, little-endian.
//! Then come messages. The network is trusted: whoever knows the job's number can join, and nothing is encrypted.

use crate::message::{HEADER, Message, framed, unframed};
use crate::transport::{Received, Tag, Transport, TransportError, receive};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MAGIC: [u8; 8] = *b"EMBERDP1";
const GREETING: usize = 24;
/// Pause between two tries to connect or accept.
const PAUSE: Duration = Duration::from_millis(5);
/// Longer limits are none.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long somebody who connects may take to greet.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// Why ranks didn't find each other.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The own rank has no address.
    #[error("rank {rank} is none of {ranks} ranks that have an address")]
    Rank {
        /// The own rank.
        rank: usize,
        /// Number of addresses.
        ranks: usize,
    },
    /// A rank can't be reached, or hasn't come.
    #[error("rank {peer} ({address}) has not joined within {seconds} s: {why}")]
    Missing {
        /// The other rank.
        peer: usize,
        /// Where it should be.
        address: SocketAddr,
        /// How long it was waited for, in seconds.
        seconds: u64,
        /// What was tried last.
        why: String,
    },
    /// Somebody else is at a rank's address.
    #[error(
        "{address} is not rank {peer} of {ranks} ranks of job {job}: check the addresses and the job's number"
    )]
    Stranger {
        /// The rank that should be there.
        peer: usize,
        /// Where.
        address: SocketAddr,
        /// Number of ranks.
        ranks: usize,
        /// The job.
        job: u64,
    },
    /// The shared memory doesn't work, or a rank of it.
    #[error(transparent)]
    Memory(#[from] ember_heap::HeapError),
    /// The listener doesn't work.
    #[error("waiting for other ranks: {0}")]
    Listener(#[from] std::io::Error),
}

/// Which ranks belong together.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The number of the own one.
    pub rank: usize,
    /// Where each listens.
    pub addresses: Vec<SocketAddr>,
    /// A number that all ranks of the job have, and no other job.
    pub job: u64,
    /// How long a rank or a message is waited for at most.
    pub limit: Duration,
}

/// Ranks that are processes, on one machine or several.
pub struct TcpTransport<T> {
    peers: Vec<Option<Peer<T>>>,
    limit: Duration,
}

struct Peer<T> {
    socket: TcpStream,
    out: Option<Sender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    received: Receiver<Received<T>>,
}

impl Mesh {
    fn greeting(&self, rank: usize) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.job.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.addresses.len() as u32).to_le_bytes());
        bytes[20..].copy_from_slice(&(rank as u32).to_le_bytes());
        bytes
    }

    fn missing(&self, peer: usize, why: impl Into<String>) -> JoinError {
        let (address, seconds) = (self.addresses[peer], self.limit.as_secs());
        JoinError::Missing { peer, address, seconds, why: why.into() }
    }

    /// To a rank that listens.
    fn connect(&self, peer: usize, until: Instant) -> Result<TcpStream, JoinError> {
        let address = self.addresses[peer];
        loop {
            match TcpStream::connect_timeout(&address, self.limit.max(PAUSE)) {
                // Where nobody listens yet, a socket may be given that very address, and reach itself.
                Ok(socket) if socket.local_addr().is_ok_and(|own| own == address) => {
                    if now() >= until {
                        return Err(self.missing(peer, "nobody listens"));
                    }
                    pause();
                }
                Ok(mut socket) => {
                    let greeted = socket.write_all(&self.greeting(self.rank));
                    let greeted = greeted.and_then(|()| read_greeting(&mut socket, until));
                    let greeting = greeted.map_err(|error| self.missing(peer, error.to_string()))?;
                    if greeting == self.greeting(peer) {
                        return Ok(socket);
                    }
                    let (ranks, job) = (self.addresses.len(), self.job);
                    return Err(JoinError::Stranger { peer, address, ranks, job });
                }
                Err(error) if now() >= until => return Err(self.missing(peer, error.to_string())),
                Err(_) => pause(),
            }
        }
    }

    /// From ranks above this one. Others who connect are sent away.
    fn accept(
        &self,
        listener: &TcpListener,
        found: &mut [Option<TcpStream>],
        until: Instant,
    ) -> Result<(), JoinError> {
        listener.set_nonblocking(true)?;
        while let Some(peer) = (self.rank + 1..found.len()).find(|peer| found[*peer].is_none()) {
            match listener.accept() {
                // Others may keep on connecting.
                Ok(_) if now() >= until => return Err(self.missing(peer, "it has not connected")),
                Ok((mut socket, _)) => {
                    socket.set_nonblocking(false)?;
                    let greeted = read_greeting(&mut socket, until.min(now() + GREETING_LIMIT));
                    let Ok(greeting) = greeted else { continue };
                    let who = (self.rank + 1..found.len()).find(|peer| greeting == self.greeting(*peer));
                    if socket.write_all(&self.greeting(self.rank)).is_ok()
                        && let Some(who) = who
                    {
                        found[who].get_or_insert(socket);
                    }
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) if now() >= until => return Err(self.missing(peer, "it has not connected")),
                Err(_) => pause(),
            }
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(work)
}

/// A greeting, which must be there in time as a whole.
fn read_greeting(socket: &mut TcpStream, until: Instant) -> std::io::Result<[u8; GREETING]> {
    let (mut bytes, mut at) = ([0; GREETING], 0);
    while at < GREETING {
        socket.set_read_timeout(Some(until.saturating_duration_since(now()).max(PAUSE)))?;
        match socket.read(&mut bytes[at..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => at += read,
        }
        if at < GREETING && now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(bytes)
}

impl<T: Message + Send + 'static> TcpTransport<T> {
    /// Joins the other ranks; returns when all are there. `listener` is at the own address.
    ///
    /// # Errors
    /// [`JoinError`], in bounded time.
    pub fn join(mesh: &Mesh, listener: &TcpListener) -> Result<Self, JoinError> {
        let ranks = mesh.addresses.len();
        if mesh.rank >= ranks {
            return Err(JoinError::Rank { rank: mesh.rank, ranks });
        }
        let until = now() + mesh.limit.min(LIMIT_MAX);
        let mut sockets: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
        for (peer, socket) in sockets.iter_mut().enumerate().take(mesh.rank) {
            *socket = Some(mesh.connect(peer, until)?);
        }
        mesh.accept(listener, &mut sockets, until)?;
        let peer = |(peer, socket): (usize, Option<TcpStream>)| {
            socket.map(|socket| Peer::start(peer, socket, mesh.limit)).transpose()
        };
        let peers = sockets.into_iter().enumerate().map(peer).collect::<std::io::Result<_>>()?;
        Ok(Self { peers, limit: mesh.limit })
    }
}

impl<T: Message + Send + 'static> Peer<T> {
    fn start(peer: usize, socket: TcpStream, limit: Duration) -> std::io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(None)?;
        // A rank that no longer reads must not keep this one from ending.
        socket.set_write_timeout(Some(limit.max(PAUSE)))?;
        let (mut to, mut from) = (socket.try_clone()?, socket.try_clone()?);
        let (out, messages) = channel::<Vec<u8>>();
        let (arrived, received) = channel();
        let writer = spawn(move || {
            while let Ok(message) = messages.recv() {
                if to.write_all(&message).is_err() {
                    return;
                }
            }
        });
        spawn(move || {
            while let Some(message) = read_message(peer, &mut from) {
                let last = message.is_err();
                if arrived.send(message).is_err() || last {
                    return;
                }
            }
        });
        Ok(Self { socket, out: Some(out), writer: Some(writer), received })
    }
}

/// The next message; nothing if the other rank has ended.
fn read_message<T: Message>(peer: usize, from: &mut TcpStream) -> Option<Received<T>> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).ok()?;
    let Some((tag, length)) = unframed(&header) else {
        return Some(Err(TransportError::Damaged { peer }));
    };
    // Memory grows with what comes, not with what is announced.
    let mut body = Vec::new();
    let read = from.take(length).read_to_end(&mut body).ok()?;
    if (read as u64) < length {
        return None;
    }
    let what = T::decode(&body).ok_or(TransportError::Damaged { peer });
    Some(what.map(|what| (tag, what)))
}

impl<T: Message> Transport<T> for TcpTransport<T> {
    fn exchange(
        &mut self,
        sends: Vec<(usize, Tag, T)>,
        receives: &[(usize, Tag)],
    ) -> Result<Vec<T>, TransportError> {
        let peer = |peer: usize| {
            let found = self.peers.get(peer).and_then(Option::as_ref);
            found.ok_or(TransportError::NoRank { peer })
        };
        for (to, tag, what) in sends {
            let out = peer(to)?.out.as_ref();
            let taken = out.is_some_and(|out| out.send(framed(tag, &what)).is_ok());
            if !taken {
                return Err(TransportError::Ended { peer: to, tag });
            }
        }
        receives.iter().map(|&(from, tag)| receive(&peer(from)?.received, from, tag, self.limit)).collect()
    }
}

impl<T> Drop for Peer<T> {
    fn drop(&mut self) {
        drop(self.out.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        // What was written is still delivered; the thread that reads ends.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

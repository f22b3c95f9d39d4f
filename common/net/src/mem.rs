//! A network within one thread, for tests.

use ember_rt::net::{Listener, Net, Stream, StreamReader, StreamWriter};
use ember_rt::sync::{Notify, mpsc};
use ember_rt::{Addr, Buf, LocalBoxFuture, SharedBuf};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Bytes that one direction holds, as a socket's buffer does.
const PIPE: usize = 64 << 10;
const BACKLOG: usize = 128;

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    fn close(&self) {
        self.closed.set(true);
        self.changed.notify_waiters();
    }
}

struct Reader(Rc<Pipe>);
struct Writer {
    out: Rc<Pipe>,
    back: Rc<Pipe>,
}

/// Two connected streams.
pub fn pair(name: &str) -> (Stream, Stream) {
    let (there, back) = (Rc::new(Pipe::default()), Rc::new(Pipe::default()));
    let end = |input: &Rc<Pipe>, out: &Rc<Pipe>| Stream {
        reader: Box::new(Reader(input.clone())),
        writer: Box::new(Writer { out: out.clone(), back: input.clone() }),
        peer: format!("mem:{name}"),
    };
    (end(&back, &there), end(&there, &back))
}

impl StreamReader for Reader {
    fn read(&mut self, mut buf: Buf, range: Range<usize>) -> LocalBoxFuture<'_, (io::Result<usize>, Buf)> {
        Box::pin(async move {
            loop {
                let changed = self.0.changed.notified();
                let taken = range.len().min(self.0.bytes.borrow().len());
                if taken == 0 && !self.0.closed.get() {
                    changed.await;
                    continue;
                }
                let to = buf.whole_mut()[range].iter_mut();
                for (to, from) in to.zip(self.0.bytes.borrow_mut().drain(..taken)) {
                    *to = from;
                }
                self.0.changed.notify_waiters();
                return (Ok(taken), buf);
            }
        })
    }
}

impl StreamWriter for Writer {
    fn write_all(&mut self, parts: Vec<SharedBuf>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            for part in parts {
                let mut rest = &part[..];
                while !rest.is_empty() {
                    let changed = self.out.changed.notified();
                    if self.out.closed.get() {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    let room = PIPE - self.out.bytes.borrow().len();
                    if room == 0 {
                        changed.await;
                        continue;
                    }
                    let (now, later) = rest.split_at(room.min(rest.len()));
                    self.out.bytes.borrow_mut().extend(now);
                    self.out.changed.notify_waiters();
                    rest = later;
                }
            }
            Ok(())
        })
    }
    fn shutdown(&mut self) {
        self.out.close();
        self.back.close();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A network without a wire: every address is reachable, nothing is lost.
#[derive(Clone, Default)]
pub struct MemNet(Rc<RefCell<BTreeMap<Addr, mpsc::Sender<Stream>>>>);

impl Net for MemNet {
    fn connect(&self, addr: &Addr) -> LocalBoxFuture<'static, io::Result<Stream>> {
        let listener = self.0.borrow().get(addr).cloned();
        let (own, other) = pair(&addr.to_string());
        Box::pin(async move {
            let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
            listener.send(other).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(own)
        })
    }

    fn listen(&self, addr: &Addr) -> io::Result<Box<dyn Listener>> {
        let mut listeners = self.0.borrow_mut();
        if listeners.get(addr).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, waiting) = mpsc::channel(BACKLOG);
        listeners.insert(addr.clone(), sender);
        Ok(Box::new(MemListener { waiting, addr: addr.clone() }))
    }
}

struct MemListener {
    waiting: mpsc::Receiver<Stream>,
    addr: Addr,
}

impl Listener for MemListener {
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Stream>> {
        Box::pin(async {
            match self.waiting.recv().await {
                Some(stream) => Ok(stream),
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        })
    }
    fn local_addr(&self) -> Addr {
        self.addr.clone()
    }
}

//! The halves of a connection's ends, as the seam wants them.

use super::conn::Conn;
use ember_rt::net::{Addr, Stream, StreamReader, StreamWriter};
use ember_rt::{Buf, LocalBoxFuture, SharedBuf};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

/// Closes its end when both halves are gone.
struct Half {
    conn: Rc<Conn>,
    end: usize,
}

impl Drop for Half {
    fn drop(&mut self) {
        self.conn.close(self.end);
    }
}

struct Reader(Rc<Half>);
struct Writer(Rc<Half>);

/// Both ends of a new connection: the caller's and the listener's.
pub(super) fn ends(conn: &Rc<Conn>, addr: &Addr) -> (Stream, Stream) {
    (half(conn, 0, addr.to_string()), half(conn, 1, format!("connection {}", conn.id())))
}

fn half(conn: &Rc<Conn>, end: usize, peer: String) -> Stream {
    let half = Rc::new(Half { conn: conn.clone(), end });
    Stream { reader: Box::new(Reader(half.clone())), writer: Box::new(Writer(half)), peer }
}

impl StreamReader for Reader {
    fn read(&mut self, mut buf: Buf, range: Range<usize>) -> LocalBoxFuture<'_, (io::Result<usize>, Buf)> {
        let half = self.0.clone();
        Box::pin(async move {
            let result = poll_fn(|cx| {
                let Some(into) = buf.whole_mut().get_mut(range.clone()) else {
                    return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
                };
                half.conn.receive(half.end, into, cx.waker()).map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            (result, buf)
        })
    }
}

impl StreamWriter for Writer {
    fn write_all(&mut self, mut parts: Vec<SharedBuf>) -> LocalBoxFuture<'_, io::Result<()>> {
        let half = self.0.clone();
        Box::pin(async move {
            poll_fn(|cx| half.conn.send(half.end, &mut parts, cx.waker()).map_or(Poll::Pending, Poll::Ready))
                .await
        })
    }
    fn shutdown(&mut self) {
        self.0.conn.close(self.0.end);
    }
}

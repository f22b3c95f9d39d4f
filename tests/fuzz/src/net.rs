//! Byte streams: the frame decoder, and whole connections on streams that say anything.

use crate::reactor::Reactor;
use crate::wire;
use ember_net::connection::{Connection, Options};
use ember_net::frame::{Decoder, Frame, FrameError, Head, Limits, encode};
use ember_net::{Handler, Identity, Keys, Peer, Request, Response, Server, ServerIdentity, ServerOptions};
use ember_rt::net::{Net, StreamWriter};
use ember_rt::{Addr, LocalBoxFuture, SharedBuf, watch};
use ember_types::capability::handshake_proof;
use ember_types::layout::SplitMix64;
use ember_types::{ClientId, ClusterId, NodeId, Status};
use ember_wire::codec::Empty;
use ember_wire::handshake::{Caller, Challenge, Hello, Welcome};
use ember_wire::header::{FLAG_CANCEL, FLAG_RESPONSE, HEADER_SIZE};
use ember_wire::method::{Method, Ping, ReadChunk};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId([9; 16]);
const KEY: [u8; 32] = [7; 32];
const CALLER: Caller = Caller::Client(ClientId([3; 16]));
/// What a listener of [`Reactor`] draws first: four numbers from 1.
const NONCE: [u64; 4] = [1, 2, 3, 4];

/// Makes constants and checksums of every frame of a stream right, as far as its lengths make sense.
fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut out = stream.to_vec();
    let mut at = 0;
    while let Some(rest) = out.get_mut(at..)
        && let Some((header, rest)) = rest.split_first_chunk_mut::<HEADER_SIZE>()
    {
        let length = |header: &[u8], from: usize| {
            header[from..from + 4].iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte))
        };
        let (body, payload) = (length(header, 24), length(header, 28));
        if let Some(body) = rest.get(..body) {
            header[32..36].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        }
        if let Some(payload) = rest.get(body..body.saturating_add(payload)) {
            let sum = if header[36] % 2 == 0 { 0 } else { crc32c::crc32c(payload) };
            header[36..40].copy_from_slice(&sum.to_le_bytes());
        }
        wire::seal(header);
        at = at.saturating_add(HEADER_SIZE).saturating_add(body).saturating_add(payload);
    }
    out
}

type Frames = (Vec<Frame>, Option<FrameError>);

fn whole(limits: Limits, stream: &[u8]) -> Frames {
    let (mut decoder, mut frames, mut at) = (Decoder::new(limits), Vec::new(), 0);
    while at < stream.len() {
        match decoder.feed(&stream[at..]) {
            Ok((taken, frame)) => {
                assert!(taken > 0 || frame.is_some());
                at += taken;
                frames.extend(frame);
            }
            Err(error) => {
                assert!(decoder.feed(b"more").is_err());
                return (frames, Some(error));
            }
        }
    }
    (frames, None)
}

/// The same in pieces, and through lent buffers.
fn pieces(limits: Limits, stream: &[u8], seed: u8) -> Frames {
    let (mut decoder, mut frames, mut at) = (Decoder::new(limits), Vec::new(), 0);
    let mut random = SplitMix64(u64::from(seed));
    while at < stream.len() {
        let some = 1 + random.below(1 + stream.len() as u64 / 3) as usize;
        let rest = &stream[at..stream.len().min(at + some)];
        let fed = match decoder.lend() {
            Some((mut buf, range)) => {
                let taken = rest.len().min(range.len());
                buf.whole_mut()[range.start..range.start + taken].copy_from_slice(&rest[..taken]);
                decoder.give_back(buf, taken).map(|frame| (taken, frame))
            }
            None => decoder.feed(rest),
        };
        match fed {
            Ok((taken, frame)) => {
                at += taken;
                frames.extend(frame);
            }
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

fn again(frame: &Frame) {
    let h = frame.header;
    let head = Head {
        flags: h.flags.get(),
        method: h.method.get(),
        status: h.status.get(),
        deadline_ms: h.deadline_ms.get(),
        request_id: h.request_id.get(),
    };
    let body = |out: &mut Vec<u8>| out.extend_from_slice(&frame.body);
    let mut bytes = encode(head, frame.payload.len(), body).expect("its lengths were fine");
    bytes.extend_from_slice(&frame.payload);
    let (read, error) = whole(Limits::OPEN, &bytes);
    assert!(error.is_none() && read.len() == 1);
    assert_eq!((&read[0].body[..], &read[0].payload[..]), (&frame.body[..], &frame.payload[..]));
    assert_eq!((read[0].header.method, read[0].header.request_id), (h.method, h.request_id));
}

/// A stream of frames. Input: seed of the pieces u8, stream.
pub(crate) fn frames(input: &[u8]) {
    let Some((&seed, stream)) = input.split_first() else { return };
    for stream in [stream.to_vec(), sealed(stream)] {
        let limits = if seed & 1 == 0 { Limits::OPEN } else { Limits::HANDSHAKE };
        let (frames, error) = whole(limits, &stream);
        let (others, other) = pieces(limits, &stream, seed);
        assert_eq!((frames.len(), &error), (others.len(), &other));
        for (a, b) in frames.iter().zip(&others) {
            assert_eq!((a.header, &a.body[..], &a.payload[..]), (b.header, &b.body[..], &b.payload[..]));
            again(a);
        }
    }
}

struct Echo;

impl Handler for Echo {
    fn handle(&self, _: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        Box::pin(async move {
            match request.decode::<ReadChunk>() {
                Ok(_) => Response::error(Status::NotFound, "there is nothing here"),
                Err(response) => response,
            }
        })
    }
}

struct OneKey;

impl Keys for OneKey {
    fn key(&self, _: &Caller, user: &str) -> Option<[u8; 32]> {
        (user == "root").then_some(KEY)
    }
}

fn addr() -> Addr {
    Addr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))
}

fn identity() -> Identity {
    Identity { cluster: CLUSTER, caller: CALLER, user: "root".to_owned(), key: KEY, lane: 0 }
}

/// Writes a stream in two parts and stays: who closes at once is never answered, so nothing would be read.
async fn say(mut writer: Box<dyn StreamWriter>, stream: Vec<u8>) {
    let (first, second) = stream.split_at(stream.len() / 2);
    for part in [first, second] {
        if writer.write_all(vec![SharedBuf::from(part)]).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

/// A server on a stream that says anything; it must go on serving others.
pub(crate) fn server(input: &[u8]) {
    serve(input);
}

/// Returns how many requests the server took.
fn serve(input: &[u8]) -> u64 {
    let reactor = Reactor::new();
    let identity_here = ServerIdentity { cluster: CLUSTER, node: NodeId(3), keys: Rc::new(OneKey) };
    let server = Server::new(identity_here, Rc::new(Echo), ServerOptions::default());
    let (_shutdown, receiver) = watch::channel(false);
    let listener = reactor.net.listen(&addr()).expect("nobody listens there");
    let (rt, serving) = (reactor.rt.clone(), server.clone());
    reactor.rt.spawn("server", async move { serving.serve(&rt, listener, receiver).await });
    let (net, stream) = (reactor.net.clone(), sealed(input));
    reactor.rt.spawn("caller", async move {
        if let Ok(connected) = net.connect(&addr()).await {
            say(connected.writer, stream).await;
        }
    });
    reactor.rest();
    reactor.pass(3);
    let served = Rc::new(Cell::new(false));
    let (rt, net, told) = (reactor.rt.clone(), reactor.net.clone(), served.clone());
    reactor.rt.spawn("good caller", async move {
        let Ok(stream) = net.connect(&addr()).await else { return };
        let opened = Connection::establish(&rt, stream, &identity(), &Options::default()).await;
        let Ok(connection) = opened else { return };
        let deadline = rt.now() + Duration::from_secs(1);
        told.set(connection.call::<Ping>(&Empty {}, SharedBuf::default(), deadline).await.is_ok());
    });
    reactor.rest();
    assert!(served.get(), "the server serves nobody any more");
    server.stats().requests.get()
}

/// A caller on a stream that says anything. Every call on it must end.
pub(crate) fn client(input: &[u8]) {
    let reactor = Reactor::new();
    let (own, other) = ember_net::mem::pair("fuzz");
    let (rt, ended) = (reactor.rt.clone(), Rc::new(Cell::new(false)));
    let told = ended.clone();
    reactor.rt.spawn("caller", async move {
        let opened = Connection::establish(&rt, own, &identity(), &Options::default()).await;
        if let Ok(connection) = opened {
            let deadline = rt.now() + Duration::from_secs(1);
            // Errors are fine; what must not happen is that it never ends.
            let _ = connection.call::<Ping>(&Empty {}, SharedBuf::default(), deadline).await;
            let _ = connection
                .call::<ember_wire::method::StorageSpace>(&Empty {}, SharedBuf::default(), deadline)
                .await;
        }
        told.set(true);
    });
    reactor.rt.spawn("listener", say(other.writer, sealed(input)));
    reactor.rest();
    reactor.pass(40);
    assert!(ended.get(), "a call never ended");
}

fn frame(method: Method, flags: u16, id: u64, body: &[u8], payload: &[u8]) -> Vec<u8> {
    let head = Head { flags, method: method.number(), deadline_ms: 900, request_id: id, ..Head::default() };
    let encoded = encode(head, payload.len(), |out| out.extend_from_slice(body));
    let mut bytes = encoded.unwrap_or_default();
    bytes.extend_from_slice(payload);
    bytes
}

/// What a caller says: hello, a ping, a read, a cancellation.
pub(crate) fn caller_says(read: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 32];
    for (to, from) in nonce.chunks_exact_mut(8).zip(NONCE) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let hello = Hello {
        cluster: CLUSTER,
        protocol_min: 1,
        protocol_max: 1,
        features: 0,
        caller: CALLER,
        user: "root".to_owned(),
        proof: handshake_proof(&KEY, &nonce, CALLER.role()),
        lane: 0,
    };
    [
        frame(Method::Greet, FLAG_RESPONSE, 0, &ember_wire::encode(&hello), b""),
        frame(Method::Ping, 0, 1, &ember_wire::encode(&Empty {}), b""),
        frame(Method::ReadChunk, 0, 2, read, b""),
        frame(Method::UpdateChunk, 0, 3, b"", b"payload"),
        frame(Method::ReadChunk, FLAG_CANCEL, 2, b"", b""),
    ]
    .concat()
}

/// What a listener says: challenge, welcome, answers to two calls.
pub(crate) fn listener_says(space: &[u8]) -> Vec<u8> {
    let challenge = Challenge { nonce: [5; 32], protocol_min: 1, protocol_max: 1, cluster: CLUSTER };
    let welcome =
        Welcome { status: Status::Ok, text: String::new(), protocol: 1, features: 0, node: NodeId(3) };
    [
        frame(Method::Greet, 0, 0, &ember_wire::encode(&challenge), b""),
        frame(Method::Admit, 0, 0, &ember_wire::encode(&welcome), b""),
        frame(Method::Ping, FLAG_RESPONSE, 1, &ember_wire::encode(&Empty {}), b""),
        frame(Method::StorageSpace, FLAG_RESPONSE, 2, space, b""),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_stream_gets_past_the_handshake() {
        // The good caller's ping is one of them.
        assert_eq!(serve(b""), 1);
        assert_eq!(serve(&caller_says(b"x")), 4);
    }
}

//! Connections end to end: over memory, TCP and Unix sockets.
#![allow(missing_docs)]

mod common;

use common::*;
use ember_net::frame::{Decoder, Frame, Head, Limits, encode};
use ember_net::{CallOptions, Connection, NetError, Options, Pool, ServerOptions};
use ember_rt::net::{Net, Stream};
use ember_rt::select::{Either, join_all, select};
use ember_rt::{Addr, Buf, Rt, SharedBuf, watch};
use ember_types::{ClusterId, NodeId, Status};
use ember_wire::handshake::{Caller, Challenge, FEATURES, Hello, Welcome};
use ember_wire::header::{FLAG_RESPONSE, Header};
use ember_wire::method::Method;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::IntoBytes;

async fn settle(rt: &Rt, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        rt.sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 2 s");
}

#[test]
fn a_payload_travels_there_and_back_on_every_transport() {
    reactor(async |rt: Rt| {
        let unix = std::env::temp_dir().join(format!("ember-net-{}.sock", std::process::id()));
        for addr in ["127.0.0.1:0".parse().unwrap(), Addr::Unix(unix.clone())] {
            let listener = rt.net().listen(&addr).unwrap();
            let addr = listener.local_addr();
            let (shutdown, receiver) = watch::channel(false);
            let (own, serving) = (rt.clone(), server(&rt, &Rc::default(), ServerOptions::default()));
            rt.spawn("server", async move { serving.serve(&own, listener, receiver).await });
            let pool = Pool::new(&rt, client(), Options::default());
            let bytes: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
            let payload = SharedBuf::from(&bytes[..]);
            let deadline = rt.now() + Duration::from_secs(10);
            let request = Text("write".to_owned());
            let calls = (0..20).map(|_| {
                pool.call::<UpdateChunk>(&addr, &request, payload.clone(), deadline, CallOptions::default())
            });
            for reply in join_all(calls).await {
                let reply = reply.unwrap();
                assert_eq!(reply.body, Text("write".to_owned()));
                assert!(reply.payload[..] == bytes[..]);
                assert_eq!(reply.payload.whole().as_ptr() as usize % 4096, 0);
            }
            assert_eq!(pool.open(), 1, "one connection for all who ask");
            let connection = pool.get(&addr, deadline).await.unwrap();
            assert_eq!(connection.node(), NodeId(3));
            let long = "x".repeat(300_000);
            assert_eq!(say::<UpdateChunk>(&connection, &long, deadline).await.unwrap(), long);
            shutdown.send(true);
            connection.ended().await;
        }
        assert!(!unix.exists());
    });
}

#[test]
fn answers_come_in_any_order() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        let slow = say::<UpdateChunk>(&connection, "sleep 80", world.after(2000));
        let fast = say::<UpdateChunk>(&connection, "sleep 1", world.after(2000));
        match select(slow, fast).await {
            Either::Right(fast) => assert_eq!(fast.unwrap(), "sleep 1"),
            Either::Left(_) => panic!("the later, faster request is answered first"),
        }
        // The slow call was dropped: its answer comes and is thrown away.
        assert_eq!(connection.outstanding(), 1);
        settle(&rt, || connection.outstanding() == 0).await;
        assert_eq!(say::<UpdateChunk>(&connection, "still", world.after(500)).await.unwrap(), "still");
    });
}

#[test]
fn a_call_ends_at_its_deadline_and_a_read_is_dropped_at_the_server() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        let before = rt.now();
        let err = say::<ReadChunk>(&connection, "hang up", world.after(30)).await.unwrap_err();
        assert!(matches!(err, NetError::Timeout(_)), "{err}");
        assert!(rt.now().since(before) < Duration::from_secs(1));
        settle(&rt, || world.running.get() == 0 && connection.outstanding() == 0).await;
        let err = say::<UpdateChunk>(&connection, "hang up", world.after(10)).await.unwrap_err();
        assert_eq!(err.status(), Status::Timeout);
        rt.sleep(Duration::from_millis(30)).await;
        assert_eq!(world.running.get(), 1, "a change is not dropped half-way");
        let err = say::<UpdateChunk>(&connection, "late", before).await.unwrap_err();
        assert_eq!(err.status(), Status::Timeout);
        assert_eq!(world.running.get(), 1, "what was not sent is taken back");
    });
}

#[test]
fn a_refusal_carries_status_and_text() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        let err = say::<UpdateChunk>(&connection, "error disk full", world.after(500)).await.unwrap_err();
        assert_eq!(err.status(), Status::NoSpace);
        assert!(err.to_string().contains("disk full"), "{err}");
        let too_long = Text("x".repeat(5 << 20));
        let err = connection.call::<UpdateChunk>(&too_long, SharedBuf::default(), world.after(500)).await;
        assert_eq!(err.unwrap_err().status(), Status::InvalidArgument);
        assert_eq!(say::<UpdateChunk>(&connection, "on", world.after(500)).await.unwrap(), "on");
    });
}

#[test]
fn strangers_are_told_why_and_turned_away() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let mut wrong_token = client();
        wrong_token.key = [9; 32];
        let mut no_user = client();
        no_user.user = "nobody".to_owned();
        let mut texts = Vec::new();
        for identity in [wrong_token, no_user] {
            let err = world.connect_as(&identity).await.err().unwrap();
            assert_eq!(err.status(), Status::HandshakeRefused);
            texts.push(err.to_string());
        }
        assert!(texts[0].contains("token") && texts[0] == texts[1], "{texts:?}");

        let mut node = client();
        (node.caller, node.user, node.key) = (Caller::Node(NodeId(1)), String::new(), TOKEN);
        let err = world.connect_as(&node).await.err().unwrap();
        assert!(err.to_string().contains("secret"), "{err}");
        node.key = NODE_KEY;
        world.connect_as(&node).await.unwrap();

        let mut foreign = client();
        foreign.cluster = ClusterId::from_u128(1);
        let err = world.connect_as(&foreign).await.err().unwrap();
        assert_eq!(err.status(), Status::HandshakeRefused);
        assert!(err.to_string().contains("belongs to cluster"), "{err}");
        settle(&rt, || world.server.stats().refused.get() == 4).await;
    });
}

/// One end of a stream without a connection on it.
struct Raw {
    stream: Stream,
    decoder: Decoder,
    left: Vec<u8>,
}

impl Raw {
    async fn open(world: &World) -> Self {
        let stream = world.net.connect(&addr()).await.unwrap();
        Self { stream, decoder: Decoder::new(Limits::OPEN), left: Vec::new() }
    }
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.writer.write_all(vec![bytes.into()]).await.unwrap();
    }
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if !self.left.is_empty() {
                let (taken, frame) = self.decoder.feed(&self.left).unwrap();
                self.left.drain(..taken);
                if frame.is_some() {
                    return frame;
                }
            }
            let (read, buf) = self.stream.reader.read(Buf::scratch(65_536), 0..65_536).await;
            match read {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.left.extend_from_slice(&buf.whole()[..read]),
            }
        }
    }
    async fn hello(&mut self, change: impl FnOnce(&mut Hello)) -> Welcome {
        let challenge = self.frame().await.unwrap();
        let challenge: Challenge = ember_wire::decode(&challenge.body).unwrap();
        let identity = client();
        let mut hello = Hello {
            cluster: identity.cluster,
            protocol_min: 1,
            protocol_max: 1,
            features: u64::MAX,
            caller: identity.caller,
            user: identity.user,
            proof: ember_types::capability::handshake_proof(&identity.key, &challenge.nonce, "client"),
            lane: 0,
        };
        change(&mut hello);
        let head = Head { flags: FLAG_RESPONSE, method: Method::Greet.number(), ..Head::default() };
        let bytes = encode(head, 0, |out| out.extend_from_slice(&ember_wire::encode(&hello))).unwrap();
        self.send(&bytes).await;
        ember_wire::decode(&self.frame().await.unwrap().body).unwrap()
    }
}

fn request(id: u64, method: u16, body: &[u8]) -> Vec<u8> {
    let head = Head { method, request_id: id, deadline_ms: 1000, ..Head::default() };
    encode(head, 0, |out| out.extend_from_slice(body)).unwrap()
}

#[test]
fn neighbouring_protocols_meet_and_distant_ones_are_refused() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let welcome = Raw::open(&world).await.hello(|hello| hello.protocol_max = 2).await;
        assert_eq!((welcome.status, welcome.protocol, welcome.features), (Status::Ok, 1, FEATURES));
        let newer = |hello: &mut Hello| (hello.protocol_min, hello.protocol_max) = (2, 3);
        let welcome = Raw::open(&world).await.hello(newer).await;
        assert_eq!(welcome.status, Status::HandshakeRefused);
        assert!(welcome.text.contains("2 to 3"), "{}", welcome.text);
        let copied = Raw::open(&world).await.hello(|hello| hello.proof = [0; 32]).await;
        assert_eq!(copied.status, Status::HandshakeRefused);
    });
}

#[test]
fn bad_frames_close_their_connection_and_nothing_else() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let good = world.connect().await;
        let mut absurd = Header::empty();
        absurd.payload_len = u32::MAX.into();
        let mut broken = request(1, Method::UpdateChunk.number(), b"text");
        *broken.last_mut().unwrap() ^= 1;
        let response = encode(Head { flags: FLAG_RESPONSE, ..Head::default() }, 0, |_| {}).unwrap();
        let twice = [request(5, 301, b"hang up"), request(5, 301, b"hang up")].concat();
        let kinds = [absurd.seal().as_bytes().to_vec(), broken, response, twice, vec![0xff; 200]];
        for (i, bytes) in kinds.iter().enumerate() {
            let mut raw = Raw::open(&world).await;
            assert_eq!(raw.hello(|_| {}).await.status, Status::Ok);
            raw.send(bytes).await;
            assert!(raw.frame().await.is_none(), "closed after {i}");
            assert_eq!(world.server.stats().bad_frames.get(), i as u64 + 1);
        }
        // Before the handshake even an honest payload is too much.
        let mut raw = Raw::open(&world).await;
        let early = encode(Head { method: 301, ..Head::default() }, 100, |_| {}).unwrap();
        raw.frame().await.unwrap();
        raw.send(&early).await;
        assert!(raw.frame().await.is_none());
        let mut raw = Raw::open(&world).await;
        raw.hello(|_| {}).await;
        raw.send(&request(9, 59_999, b"")).await;
        let answer = raw.frame().await.unwrap();
        assert_eq!(answer.header.status.get(), Status::NotSupported.code());
        assert_eq!(say::<UpdateChunk>(&good, "fine", world.after(500)).await.unwrap(), "fine");
    });
}

#[test]
fn r15_a_caller_that_exceeds_its_credits_is_closed() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let mut raw = Raw::open(&world).await;
        raw.hello(|_| {}).await;
        for id in 1..=64 {
            raw.send(&request(id, Method::UpdateChunk.number(), b"hang up")).await;
        }
        settle(&rt, || world.running.get() == 64).await;
        raw.send(&request(65, Method::UpdateChunk.number(), b"one more")).await;
        assert!(raw.frame().await.is_none());
        assert_eq!(world.running.get(), 64);
    });
}

#[test]
fn r15_urgent_classes_pass_when_lower_ones_are_full() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        for position in [1, 2] {
            for _ in 0..70 {
                let connection = connection.clone();
                let deadline = world.after(60_000);
                rt.spawn("stuck", async move {
                    let options = CallOptions { position, ..CallOptions::default() };
                    let text = Text("hang up".to_owned());
                    let nothing = SharedBuf::default();
                    let _ = connection.call_with::<ForwardChunk>(&text, nothing, deadline, options).await;
                });
            }
        }
        for _ in 0..70 {
            let (connection, deadline) = (connection.clone(), world.after(60_000));
            rt.spawn("stuck", async move {
                let _ = say::<UpdateChunk>(&connection, "hang up", deadline).await;
            });
        }
        settle(&rt, || world.running.get() == 3 * 64).await;
        let err = say::<UpdateChunk>(&connection, "full", world.after(20)).await.unwrap_err();
        assert!(err.to_string().contains("credits of class Write"), "{err}");
        assert_eq!(say::<QueryVersion>(&connection, "v", world.after(1000)).await.unwrap(), "v");
        assert_eq!(say::<ReadChunk>(&connection, "r", world.after(1000)).await.unwrap(), "r");
        let later = CallOptions { position: 3, ..CallOptions::default() };
        let text = Text("later".to_owned());
        let reply =
            connection.call_with::<ForwardChunk>(&text, SharedBuf::default(), world.after(1000), later);
        assert_eq!(reply.await.unwrap().body, text);
    });
}

#[test]
fn byte_credits_bound_what_is_open() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        let expect = CallOptions { expect: 64 << 20, ..CallOptions::default() };
        let call = |text: &str, ms| {
            let (connection, text, deadline) = (connection.clone(), Text(text.to_owned()), world.after(ms));
            let nothing = SharedBuf::default();
            async move { connection.call_with::<ReadChunk>(&text, nothing, deadline, expect).await }
        };
        let (a, b) = (call("sleep 100", 2000), call("sleep 100", 2000));
        rt.spawn("first", async move { a.await.map(drop).unwrap() });
        rt.spawn("second", async move { b.await.map(drop).unwrap() });
        settle(&rt, || world.running.get() == 2).await;
        let before = rt.now();
        call("third", 2000).await.unwrap();
        assert!(rt.now().since(before) > Duration::from_millis(40), "waited for bytes");
    });
}

/// Plays a listener up to the end of the handshake.
async fn welcome(stream: Stream) -> Raw {
    let mut raw = Raw { stream, decoder: Decoder::new(Limits::OPEN), left: Vec::new() };
    let challenge = Challenge { nonce: [1; 32], protocol_min: 1, protocol_max: 1, cluster: client().cluster };
    raw.send(&request(0, Method::Greet.number(), &ember_wire::encode(&challenge))).await;
    raw.frame().await.unwrap();
    let node = NodeId(9);
    let welcome = Welcome { status: Status::Ok, text: String::new(), protocol: 1, features: 0, node };
    raw.send(&request(0, Method::Admit.number(), &ember_wire::encode(&welcome))).await;
    raw
}

#[test]
fn a_peer_that_dies_in_the_middle_of_a_frame_ends_every_call() {
    reactor(async |rt: Rt| {
        let (ours, theirs) = ember_net::mem::pair("dying");
        rt.spawn("fake server", async move {
            let mut raw = welcome(theirs).await;
            let first = raw.frame().await.unwrap();
            raw.frame().await.unwrap();
            let id = first.header.request_id.get();
            let head = Head { flags: FLAG_RESPONSE, request_id: id, ..Head::default() };
            let cut = encode(head, 1 << 20, |out| out.extend_from_slice(b"half")).unwrap();
            raw.send(&cut).await;
            raw.send(&[7; 1000]).await;
        });
        let connection = Connection::establish(&rt, ours, &client(), &Options::default()).await.unwrap();
        let deadline = rt.now() + Duration::from_secs(5);
        let both = (0..2).map(|_| say::<UpdateChunk>(&connection, "x", deadline));
        for result in join_all(both).await {
            let err = result.unwrap_err();
            assert!(matches!(&err, NetError::Unavailable(text) if text.contains("middle")), "{err}");
        }
        let after = say::<UpdateChunk>(&connection, "x", deadline).await.unwrap_err();
        assert_eq!(after.status(), Status::Unavailable);
    });
}

#[test]
fn an_answer_to_nothing_ends_the_connection() {
    reactor(async |rt: Rt| {
        let (ours, theirs) = ember_net::mem::pair("confused");
        rt.spawn("fake server", async move {
            let mut raw = welcome(theirs).await;
            let head = Head { flags: FLAG_RESPONSE, request_id: 99, ..Head::default() };
            raw.send(&encode(head, 0, |_| {}).unwrap()).await;
            while raw.frame().await.is_some() {}
        });
        let connection = Connection::establish(&rt, ours, &client(), &Options::default()).await.unwrap();
        connection.ended().await;
        assert!(matches!(connection.closed(), Some(NetError::Protocol(_))));
    });
}

#[test]
fn a_silent_peer_is_given_up() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let times = Options {
            ping_after: Duration::from_millis(20),
            silence_max: Duration::from_millis(100),
            handshake: Duration::from_millis(50),
            ..Options::default()
        };
        let alive = world.connect_with(&client(), &times).await.unwrap();
        let slow = say::<UpdateChunk>(&alive, "sleep 300", world.after(2000)).await;
        assert_eq!(slow.unwrap(), "sleep 300", "answers to pings keep a slow call alive");

        // A process that was stopped: it takes bytes and answers nothing.
        let (ours, theirs) = ember_net::mem::pair("stopped");
        rt.spawn("fake server", async move {
            let _raw = welcome(theirs).await;
            std::future::pending().await
        });
        let stopped = Connection::establish(&rt, ours, &client(), &times).await.unwrap();
        let err = say::<UpdateChunk>(&stopped, "x", world.after(5000)).await.unwrap_err();
        assert!(matches!(&err, NetError::Unavailable(text) if text.contains("no sign of life")), "{err}");

        // Connects to something that never says a word.
        let (ours, theirs) = ember_net::mem::pair("silent");
        let err = Connection::establish(&rt, ours, &client(), &times).await.err().unwrap();
        assert!(err.to_string().contains("no handshake within 50 ms"), "{err}");
        drop(theirs);
    });
}

#[test]
fn the_server_bounds_connections_handshakes_and_silence() {
    reactor(async |rt: Rt| {
        let options = ServerOptions {
            connections_max: 2,
            handshake: Duration::from_millis(30),
            silence_max: Duration::from_millis(80),
            ..ServerOptions::default()
        };
        let world = world_with(&rt, options);
        let _one = world.connect().await;
        let idle = world.net.connect(&addr()).await.unwrap();
        rt.sleep(Duration::from_millis(5)).await;
        let err = world.connect_as(&client()).await.err().unwrap();
        assert_eq!(err.status(), Status::Busy);
        assert!(err.to_string().contains("2 connections are open already"), "{err}");
        // The idle one is thrown out, and later the one that sends no sign of life.
        settle(&rt, || world.server.stats().refused.get() == 2).await;
        let two = world.connect().await;
        two.ended().await;
        settle(&rt, || world.server.stats().connections.get() == 0).await;
        drop(idle);
    });
}

#[test]
fn shutdown_lets_changes_end_and_drops_reads() {
    reactor(async |rt: Rt| {
        let world = world(&rt);
        let connection = world.connect().await;
        let change = say::<UpdateChunk>(&connection, "sleep 60", world.after(2000));
        let poll = say::<ReadChunk>(&connection, "hang up", world.after(5000));
        let during = async {
            settle(&rt, || world.running.get() == 2).await;
            world.shutdown.send(true);
            rt.sleep(Duration::from_millis(10)).await;
            say::<UpdateChunk>(&connection, "too late", world.after(1000)).await
        };
        let all: [ember_rt::LocalBoxFuture<'_, _>; 3] = [Box::pin(change), Box::pin(poll), Box::pin(during)];
        let results = join_all(all).await;
        assert_eq!(results[0].as_ref().unwrap(), "sleep 60");
        assert_eq!(results[1].as_ref().unwrap_err().status(), Status::Unavailable);
        assert_eq!(results[2].as_ref().unwrap_err().status(), Status::Unavailable);
        settle(&rt, || world.stopped.get()).await;
    });
}

#[test]
fn a_pool_fails_fast_backs_off_and_connects_again() {
    reactor(async |rt: Rt| {
        let listener = rt.net().listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr();
        drop(listener);
        let backoff = (Duration::from_millis(40), Duration::from_millis(80));
        let pool = Pool::new(&rt, client(), Options { backoff, ..Options::default() });
        let deadline = rt.now() + Duration::from_secs(5);
        let first = pool.get(&addr, deadline).await.err().unwrap();
        assert_eq!(first.status(), Status::Unavailable);
        assert!(first.to_string().contains(&addr.to_string()), "{first}");
        assert_eq!(pool.get(&addr, deadline).await.err().unwrap(), first, "at once, within the backoff");

        let listener = rt.net().listen(&addr).unwrap();
        let (shutdown, receiver) = watch::channel(false);
        let (own, serving) = (rt.clone(), server(&rt, &Rc::default(), ServerOptions::default()));
        rt.spawn("server", async move { serving.serve(&own, listener, receiver).await });
        rt.sleep(Duration::from_millis(45)).await;
        let nowhere: Addr = "127.0.0.1:1".parse().unwrap();
        let connection = pool.get_any(&[nowhere, addr.clone()], deadline).await.unwrap();
        connection.close();
        let again = pool.get(&addr, deadline).await.unwrap();
        assert_eq!(say::<UpdateChunk>(&again, "back", deadline).await.unwrap(), "back");
        drop((again, connection, shutdown));
    });
}

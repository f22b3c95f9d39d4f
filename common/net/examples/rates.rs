//! Rates of calls between two reactors over a Unix socket and TCP. Arguments: none.

use ember_net::handshake::Peer;
use ember_net::{Connection, Handler, Identity, Keys, Options, Request, Response, Server, ServerIdentity};
use ember_rt::select::join_all;
use ember_rt::{Addr, Buf, LocalBoxFuture, Rt, SharedBuf, watch};
use ember_rt_uring::{run_reactor, spawn_reactor};
use ember_types::{ClientId, ClusterId, NodeId};
use ember_wire::codec::{Body, WireError};
use ember_wire::handshake::Caller;
use ember_wire::method::{Method, Rpc};
use std::rc::Rc;
use std::time::Duration;

struct Len(u32);

impl Body for Len {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let bytes = bytes.try_into().map_err(|_| WireError::Range("length"))?;
        Ok(Self(u32::from_le_bytes(bytes)))
    }
}

struct Fetch;

impl Rpc for Fetch {
    const METHOD: Method = Method::ReadChunk;
    type Request = Len;
    type Response = Len;
}

struct Serve(SharedBuf);

impl Handler for Serve {
    fn handle(&self, _: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        let all = self.0.clone();
        Box::pin(async move {
            match request.decode::<Fetch>() {
                Ok(Len(len)) => Response::with_payload::<Fetch>(&Len(len), all.slice(0..len as usize)),
                Err(response) => response,
            }
        })
    }
}

struct Anyone;

impl Keys for Anyone {
    fn key(&self, _: &Caller, _: &str) -> Option<[u8; 32]> {
        Some([1; 32])
    }
}

async fn serve(rt: Rt, addr: Addr, count: usize) {
    let identity =
        ServerIdentity { cluster: ClusterId::from_u128(1), node: NodeId(1), keys: Rc::new(Anyone) };
    let server = Server::new(identity, Rc::new(Serve(Buf::zeroed(1 << 20).into())), Default::default());
    let listener = rt.net().listen(&addr).expect("a free address");
    let (shutdown, receiver) = watch::channel(false);
    let (own, serving) = (rt.clone(), server.clone());
    rt.spawn("server", async move { serving.serve(&own, listener, receiver).await });
    while server.stats().accepted.get() < count as u64 || server.stats().connections.get() > 0 {
        rt.sleep(Duration::from_millis(20)).await;
    }
    shutdown.send(true);
}

async fn measure(rt: &Rt, addr: &Addr, len: u32, depth: usize, calls: usize) {
    let identity = Identity {
        cluster: ClusterId::from_u128(1),
        caller: Caller::Client(ClientId::from_u128(2)),
        user: String::new(),
        key: [1; 32],
        lane: 0,
    };
    let connection = loop {
        match Connection::open(rt, addr, &identity, &Options::default()).await {
            Ok(connection) => break connection,
            Err(_) => rt.sleep(Duration::from_millis(10)).await,
        }
    };
    let before = rt.now();
    let workers = (0..depth).map(|_| async {
        for _ in 0..calls / depth {
            let deadline = rt.now() + Duration::from_secs(10);
            let reply = connection.call::<Fetch>(&Len(len), SharedBuf::default(), deadline).await;
            assert_eq!(reply.ok().map(|reply| reply.payload.len()), Some(len as usize));
        }
    });
    join_all(workers).await;
    let passed = rt.now().since(before).as_secs_f64();
    println!(
        "{addr}: {len} bytes at depth {depth}: {:.0} calls/s, {:.1} us each, {:.2} GB/s",
        calls as f64 / passed,
        passed / calls as f64 * 1e6,
        f64::from(len) * calls as f64 / passed / 1e9
    );
}

fn main() {
    let unix = std::env::temp_dir().join(format!("ember-rates-{}.sock", std::process::id()));
    for addr in [Addr::Unix(unix), Addr::Tcp(([127, 0, 0, 1], 45_871).into())] {
        let own = addr.clone();
        let server =
            spawn_reactor("server", Default::default(), move |rt| serve(rt, own, 4)).expect("a thread");
        run_reactor(&Default::default(), async |rt: Rt| {
            measure(&rt, &addr, 0, 1, 10_000).await;
            measure(&rt, &addr, 4096, 32, 50_000).await;
            measure(&rt, &addr, 1 << 20, 1, 1000).await;
            measure(&rt, &addr, 1 << 20, 16, 4000).await;
        })
        .expect("a reactor");
        server.join().expect("the server's end");
    }
}

//! What the connection tests share: a method that does as it is told, and both ends of a connection.

#![allow(unreachable_pub)]

use ember_net::handshake::Peer;
use ember_net::mem::MemNet;
use ember_net::{
    Connection, Handler, Identity, Keys, NetError, Options, Request, Response, Server, ServerIdentity,
    ServerOptions,
};
use ember_rt::net::Net;
use ember_rt::{Addr, LocalBoxFuture, Rt, SharedBuf, watch};
use ember_types::{ClientId, ClusterId, Instant, NodeId, Status};
use ember_wire::codec::{Body, WireError};
use ember_wire::handshake::Caller;
use ember_wire::method::{Method, Rpc};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

pub const CLUSTER: u128 = 0xE3B;
pub const TOKEN: [u8; 32] = [5; 32];
pub const NODE_KEY: [u8; 32] = [6; 32];

/// A body of plain bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text(pub String);

impl Body for Text {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        String::from_utf8(bytes.to_vec()).map(Self).map_err(|_| WireError::Range("text"))
    }
}

macro_rules! tell {
    ($($name:ident)*) => { $(
        /// "sleep MS", "hang", "error" or anything else, which is echoed; so is the payload.
        #[derive(Debug)]
        pub struct $name;
        impl Rpc for $name {
            const METHOD: Method = Method::$name;
            type Request = Text;
            type Response = Text;
        }
    )* };
}
tell!(UpdateChunk ForwardChunk QueryVersion ReadChunk);

pub struct Obey {
    pub rt: Rt,
    pub running: Rc<Cell<usize>>,
}

struct Running(Rc<Cell<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Handler for Obey {
    fn handle(&self, peer: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        assert_ne!(peer.connection, 0);
        let rt = self.rt.clone();
        self.running.set(self.running.get() + 1);
        let running = Running(self.running.clone());
        Box::pin(async move {
            let _running = running;
            let text = match request.decode::<UpdateChunk>() {
                Ok(Text(text)) => text,
                Err(response) => return response,
            };
            match text.split_once(' ') {
                Some(("sleep", ms)) => rt.sleep(Duration::from_millis(ms.parse().unwrap())).await,
                Some(("hang", _)) => std::future::pending().await,
                Some(("error", text)) => return Response::error(Status::NoSpace, text),
                _ => {}
            }
            Response::with_payload::<UpdateChunk>(&Text(text), request.payload.into())
        })
    }
}

struct Known;

impl Keys for Known {
    fn key(&self, caller: &Caller, user: &str) -> Option<[u8; 32]> {
        match caller {
            Caller::Node(_) => Some(NODE_KEY),
            Caller::Client(_) => (user == "root").then_some(TOKEN),
        }
    }
}

pub fn client() -> Identity {
    Identity {
        cluster: ClusterId::from_u128(CLUSTER),
        caller: Caller::Client(ClientId::from_u128(77)),
        user: "root".to_owned(),
        key: TOKEN,
        lane: 0,
    }
}

pub fn addr() -> Addr {
    "127.0.0.1:9".parse().unwrap()
}

/// A server on the in-memory network.
pub struct World {
    pub rt: Rt,
    pub net: MemNet,
    pub server: Rc<Server>,
    pub running: Rc<Cell<usize>>,
    pub shutdown: watch::Sender<bool>,
    pub stopped: Rc<Cell<bool>>,
}

pub fn server(rt: &Rt, running: &Rc<Cell<usize>>, options: ServerOptions) -> Rc<Server> {
    let identity =
        ServerIdentity { cluster: ClusterId::from_u128(CLUSTER), node: NodeId(3), keys: Rc::new(Known) };
    Server::new(identity, Rc::new(Obey { rt: rt.clone(), running: running.clone() }), options)
}

pub fn world_with(rt: &Rt, options: ServerOptions) -> World {
    let (net, running, stopped) =
        (MemNet::default(), Rc::<Cell<usize>>::default(), Rc::<Cell<bool>>::default());
    let server = server(rt, &running, options);
    let (shutdown, receiver) = watch::channel(false);
    let listener = net.listen(&addr()).unwrap();
    let (own, serving, done) = (rt.clone(), server.clone(), stopped.clone());
    rt.spawn("server", async move {
        serving.serve(&own, listener, receiver).await;
        done.set(true);
    });
    World { rt: rt.clone(), net, server, running, shutdown, stopped }
}

pub fn world(rt: &Rt) -> World {
    world_with(rt, ServerOptions::default())
}

impl World {
    pub async fn connect_as(&self, identity: &Identity) -> Result<Connection, NetError> {
        self.connect_with(identity, &Options::default()).await
    }
    pub async fn connect_with(&self, identity: &Identity, options: &Options) -> Result<Connection, NetError> {
        let stream = self.net.connect(&addr()).await.unwrap();
        Connection::establish(&self.rt, stream, identity, options).await
    }
    pub async fn connect(&self) -> Connection {
        self.connect_as(&client()).await.unwrap()
    }
    pub fn after(&self, ms: u64) -> Instant {
        self.rt.now() + Duration::from_millis(ms)
    }
}

/// A call without payload that must succeed.
pub async fn say<R: Rpc<Request = Text, Response = Text>>(
    connection: &Connection,
    text: &str,
    deadline: Instant,
) -> Result<String, NetError> {
    let reply = connection.call::<R>(&Text(text.to_owned()), SharedBuf::default(), deadline).await?;
    Ok(reply.body.0)
}

pub fn reactor<F: Future<Output = ()>>(main: impl FnOnce(Rt) -> F) {
    ember_rt_uring::run_reactor(&ember_rt_uring::Options::default(), main).unwrap();
}

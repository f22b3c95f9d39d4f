//! The cluster manager: who is a member, who serves what, and until when.
//!
//! It is no data path: nodes and clients work on without it for the length of a lease, and it never talks to
//! a node by itself. Decisions about chains are `ember-chain`'s; what is stored is [`record`]'s.
//!
//! Invariants:
//! - At most one server acts as the primary, by a lease in the store; each of its transactions depends on it
//!   (R8).
//! - Nothing is published, granted or acted on before it is durable (R2).
//! - A heartbeat is answered from memory, and never waits for the store.
//! - A serving target is taken out only when it cannot be serving (R1).
#![forbid(unsafe_code)]

mod admin;
mod config;
mod election;
mod error;
mod primary;
pub mod record;
mod service;
mod state;
mod store;

pub use config::Config;
pub use error::Error;

use election::Server;
use ember_kv::Kv;
use ember_net::{ServerIdentity, ServerOptions};
use ember_rt::net::Listener;
use ember_rt::select::join_all;
use ember_rt::{Addr, Rt, watch};
use ember_types::{BootId, NodeKind};
use primary::Own;
use service::Service;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use store::Store;

/// What a mgmtd server is given beside its settings.
pub struct Parts {
    /// The cluster's store, shared with meta.
    pub kv: Arc<dyn Kv>,
    /// Who it is to those who call.
    pub identity: ServerIdentity,
    /// This start: random.
    pub boot: BootId,
    /// Process id, for `ember status`.
    pub pid: u32,
    /// Data directory, for `ember status`.
    pub data_dir: String,
    /// Release of the program.
    pub release: String,
}

/// Serves until `shutdown` turns true or its sender is gone; then gives the primary's lease back. Fails at
/// once if the settings are wrong or an address is taken.
pub async fn run(rt: Rt, config: Config, parts: Parts, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let listeners = listen(&rt, &config)?;
    let record = record::Node {
        id: parts.identity.node,
        kind: NodeKind::Mgmtd,
        boot: parts.boot,
        addresses: listeners.iter().map(|l| l.local_addr().to_string()).collect(),
        tags: BTreeMap::new(),
        disks: 0,
        pid: parts.pid,
        data_dir: parts.data_dir,
        release: parts.release,
    };
    let own = Own { cluster: parts.identity.cluster, node: parts.identity.node, record };
    let server = Server::new(&rt, config, Store::new(rt.clone(), parts.kv), own);
    let handler = Rc::new(Service::new(server.clone()));
    let net = ember_net::Server::new(parts.identity, handler, ServerOptions::default());
    let mut tasks: Vec<ember_rt::LocalBoxFuture<'static, ()>> =
        vec![Box::pin(server.elect(shutdown.clone()))];
    for listener in listeners {
        let (net, rt, shutdown) = (net.clone(), rt.clone(), shutdown.clone());
        tasks.push(Box::pin(async move { net.serve(&rt, listener, shutdown).await }));
    }
    join_all(tasks).await;
    Ok(())
}

fn listen(rt: &Rt, config: &Config) -> Result<Vec<Box<dyn Listener>>, Error> {
    if config.listen.is_empty() {
        return Err(Error::Config("`listen` names no address".into()));
    }
    let open = |text: &String| {
        let addr: Addr = text.parse().map_err(Error::Config)?;
        rt.net().listen(&addr).map_err(|e| {
            Error::Config(format!("can't listen on {addr}: {e}; choose another address or stop who has it"))
        })
    };
    config.listen.iter().map(open).collect()
}

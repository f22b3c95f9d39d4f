//! Who the daemons of this machine are to one another.

use crate::cluster::Cluster;
use crate::paths::DataDir;
use anyhow::Result;
use ember_client::mgmtd::{Mgmtd, NodeIdentity, RoutingCache};
use ember_native::{ROOT_USER, read_secret};
use ember_net::{Identity, Keys, Options, Pool, ServerIdentity};
use ember_rt::Rt;
use ember_types::{BootId, CapabilityKey, NodeId, NodeKind};
use ember_wire::handshake::Caller;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Node ids of this machine's daemons: one range a kind, so that a second machine can have others.
pub(crate) const MGMTD_NODE: NodeId = NodeId(1);
pub(crate) const META_NODE: NodeId = NodeId(2);
/// Storage node `n` of this machine is this plus `n`.
const STORAGE_NODES: u32 = 100;

/// The node id of a storage process.
pub(crate) fn storage_node(number: u32) -> NodeId {
    NodeId(STORAGE_NODES + number)
}

/// The secrets of a cluster. May be handed to other threads.
#[derive(Clone)]
pub(crate) struct Secrets {
    secret: [u8; 32],
    root_token: [u8; 32],
}

struct ClusterKeys(Secrets);

impl Keys for ClusterKeys {
    fn key(&self, caller: &Caller, user: &str) -> Option<[u8; 32]> {
        match caller {
            Caller::Node(_) => Some(self.0.secret),
            Caller::Client(_) => (user == ROOT_USER).then_some(self.0.root_token),
        }
    }
}

impl Secrets {
    /// Reads the secrets of a data directory.
    pub(crate) fn load(dir: &DataDir) -> Result<Self> {
        let (secret, root_token) = (read_secret(&dir.secret_file())?, read_secret(&dir.token_file())?);
        Ok(Self { secret, root_token })
    }
    /// Signs and checks capabilities.
    pub(crate) fn capability_key(&self) -> CapabilityKey {
        CapabilityKey::new(&self.secret)
    }
    /// Who a node is to those who call it.
    pub(crate) fn server(&self, cluster: &Cluster, node: NodeId) -> ServerIdentity {
        let keys = Rc::new(ClusterKeys(self.clone()));
        ServerIdentity { cluster: cluster.cluster, node, keys }
    }
    /// Connections of a node.
    pub(crate) fn pool(&self, rt: &Rt, cluster: &Cluster, node: NodeId) -> Pool {
        let identity = Identity {
            cluster: cluster.cluster,
            caller: Caller::Node(node),
            user: String::new(),
            key: self.secret,
            lane: 0,
        };
        Pool::new(rt, identity, Options::default())
    }
}

/// Routing for a process of this machine.
pub(crate) fn routing(rt: &Rt, dir: &DataDir, pool: &Pool) -> Result<RoutingCache> {
    let mgmtd = Mgmtd::new(rt, pool.clone(), vec![dir.socket("mgmtd")?]);
    Ok(RoutingCache::start(rt, mgmtd))
}

/// Who a node is to mgmtd, in this start of it.
pub(crate) fn node(rt: &Rt, dir: &DataDir, node: NodeId, kind: NodeKind, data: String) -> NodeIdentity {
    let data_dir = if data.is_empty() { dir.root().display().to_string() } else { data };
    NodeIdentity {
        node,
        kind,
        boot: BootId(rt.random_u64()),
        addresses: Vec::new(),
        tags: BTreeMap::new(),
        disks: 0,
        pid: std::process::id(),
        data_dir,
        release: env!("CARGO_PKG_VERSION").into(),
    }
}

//! What mgmtd keeps in the store: keys and values. Byte boxes are in `docs/design/mgmtd.md`.

use crate::error::Error;
use ember_kv::KeyRange;
use ember_kv::key::{KeyReader, KeyWriter};
use ember_types::{
    BootId, Chain, ChainId, ChainTable, ClientId, NodeId, NodeInfo, NodeKind, TargetId, TargetInfo,
};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// First byte of every key of mgmtd.
pub const SPACE: u8 = b'c';
/// First byte of every value.
pub const FORMAT: u8 = 1;

/// Tables, by the second byte of their keys.
pub mod table {
    /// Who is primary.
    pub const PRIMARY: u8 = b'P';
    /// The primary's sign of life.
    pub const BEAT: u8 = b'B';
    /// Counter of the routing, and the epoch of revocations.
    pub const ROUTING: u8 = b'V';
    /// Nodes.
    pub const NODE: u8 = b'N';
    /// Targets.
    pub const TARGET: u8 = b'T';
    /// Chains.
    pub const CHAIN: u8 = b'C';
    /// Chain tables.
    pub const TABLE: u8 = b'X';
    /// Client sessions, live ones and ones that ended lately.
    pub const CLIENT: u8 = b'S';
}

/// Who is primary; every write of the primary depends on it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Primary {
    /// Grows with each change of primary.
    #[n(0)]
    pub term: u64,
    /// Who.
    #[n(1)]
    pub node: NodeId,
    /// In which start.
    #[n(2)]
    pub boot: BootId,
    /// Where it listens.
    #[n(3)]
    pub addresses: Vec<String>,
    /// How long it may act after it wrote a sign of life.
    #[n(4)]
    pub lease_ms: u64,
    /// It has stopped acting: anybody may take over at once.
    #[n(5)]
    pub released: bool,
}

/// The primary's sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Beat {
    /// Whose.
    #[n(0)]
    pub term: u64,
    /// Changes with each renewal.
    #[n(1)]
    pub count: u64,
    /// Cluster time that won't be passed before the lease ends; the next primary's time starts there (R20).
    #[n(2)]
    pub time_bound_ms: u64,
}

/// Counters of the routing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Routing {
    /// Changes of routing so far.
    #[n(0)]
    pub counter: u64,
    /// Capabilities of older epochs are refused.
    #[n(1)]
    pub revocation_epoch: u64,
}

/// A registered node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Node {
    /// Which node.
    #[n(0)]
    pub id: NodeId,
    /// What it does.
    #[n(1)]
    pub kind: NodeKind,
    /// Its present start (R7).
    #[n(2)]
    pub boot: BootId,
    /// Where it listens.
    #[n(3)]
    pub addresses: Vec<String>,
    /// Failure domains.
    #[n(4)]
    pub tags: BTreeMap<String, String>,
    /// Disks that it offers.
    #[n(5)]
    pub disks: u32,
    /// Process id.
    #[n(6)]
    pub pid: u32,
    /// Data directory.
    #[n(7)]
    pub data_dir: String,
    /// Release of the program.
    #[n(8)]
    pub release: String,
}

impl Node {
    /// The node as routing shows it.
    pub fn info(&self, alive: bool) -> NodeInfo {
        NodeInfo {
            id: self.id,
            kind: self.kind,
            addresses: self.addresses.clone(),
            boot: self.boot,
            alive,
            tags: self.tags.clone(),
        }
    }
}

/// A client's session.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Client {
    /// What it said of itself.
    #[n(0)]
    pub description: String,
    /// Cluster time at which the session ended (R12).
    #[n(1)]
    pub ended_ms: Option<u64>,
}

fn key(table: u8) -> KeyWriter {
    KeyWriter::table(SPACE).u8(table)
}

/// Every key of a table.
pub fn range(table: u8) -> KeyRange {
    key(table).range()
}

/// The key of a table's only record.
pub fn single(table: u8) -> Vec<u8> {
    key(table).finish()
}

/// Key of a node.
pub fn node_key(id: NodeId) -> Vec<u8> {
    key(table::NODE).u32(id.0).finish()
}

/// Key of a target.
pub fn target_key(id: TargetId) -> Vec<u8> {
    key(table::TARGET).u64(id.0).finish()
}

/// Key of a chain.
pub fn chain_key(id: ChainId) -> Vec<u8> {
    key(table::CHAIN).u32(id.0).finish()
}

/// Key of a version of a chain table.
pub fn table_key(version: &ChainTable) -> Vec<u8> {
    key(table::TABLE).u32(version.id.0).u32(version.version.0).finish()
}

/// Key of a client's session.
pub fn client_key(id: ClientId) -> Vec<u8> {
    key(table::CLIENT).u128(id.as_u128()).finish()
}

/// Reads a client's key.
pub fn client_of_key(key: &[u8]) -> Option<ClientId> {
    let mut reader = KeyReader::new(key);
    reader.table(SPACE)?;
    reader.table(table::CLIENT)?;
    let id = ClientId::from_u128(reader.u128()?);
    reader.end()?;
    Some(id)
}

/// A record's value.
pub fn encode<T: Encode<()>>(record: &T) -> Vec<u8> {
    let mut out = vec![FORMAT];
    ember_wire::codec::write_cbor(record, &mut out);
    out
}

/// Reads a record; the error names its key.
pub fn decode<'b, T: Decode<'b, ()>>(key: &[u8], value: &'b [u8]) -> Result<T, Error> {
    let damaged = |why: String| Error::Damaged { key: key.escape_ascii().to_string(), why };
    let Some((&format, body)) = value.split_first() else {
        return Err(damaged("it is empty".into()));
    };
    if format != FORMAT {
        return Err(damaged(format!("its format is {format}, this release reads {FORMAT}")));
    }
    ember_wire::codec::read_cbor(body).map_err(|e| damaged(e.to_string()))
}

/// Everything that is stored.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Image {
    /// Counters.
    pub routing: Routing,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Targets.
    pub targets: Vec<TargetInfo>,
    /// Chains.
    pub chains: Vec<Chain>,
    /// Chain tables.
    pub tables: Vec<ChainTable>,
    /// Client sessions.
    pub clients: Vec<(ClientId, Client)>,
}

/// Changes that are committed together with the routing's counter.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Nodes to set.
    pub nodes: Vec<Node>,
    /// Targets to set.
    pub targets: Vec<TargetInfo>,
    /// Chains to set.
    pub chains: Vec<Chain>,
    /// Chain tables to add.
    pub tables: Vec<ChainTable>,
    /// Client sessions to set, or to forget.
    pub clients: Vec<(ClientId, Option<Client>)>,
}

/// One change of the store: a key with its new value, or none to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
    /// Whether what clients and nodes see changes.
    pub fn changes_routing(&self) -> bool {
        let ended = |(_, c): &(ClientId, Option<Client>)| c.as_ref().is_none_or(|c| c.ended_ms.is_some());
        !(self.nodes.is_empty()
            && self.targets.is_empty()
            && self.chains.is_empty()
            && self.tables.is_empty())
            || self.clients.iter().any(ended)
    }
    /// The changes of the store.
    pub fn changes(&self, routing: Routing) -> Vec<Change> {
        let mut all: Vec<Change> = Vec::new();
        all.extend(self.nodes.iter().map(|n| (node_key(n.id), Some(encode(n)))));
        all.extend(self.targets.iter().map(|t| (target_key(t.id), Some(encode(t)))));
        all.extend(self.chains.iter().map(|c| (chain_key(c.id), Some(encode(c)))));
        all.extend(self.tables.iter().map(|t| (table_key(t), Some(encode(t)))));
        all.extend(self.clients.iter().map(|(id, c)| (client_key(*id), c.as_ref().map(encode))));
        all.push((single(table::ROUTING), Some(encode(&routing))));
        all
    }
}

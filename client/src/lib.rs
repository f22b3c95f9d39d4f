//! The client library: metadata and data of an EmberFS cluster for the FUSE daemon, tools and programs.
//!
//! It caches routing and open files, never data; writes that a program doesn't wait for are held until they are
//! answered. Invariants: a write is sent under one tag until it is answered, so it happens once (R12); bytes handed
//! out were verified against their checksums here; what was written here is seen here at once, whatever meta has heard
//! of; an operation ends within its deadline.
#![forbid(unsafe_code)]

mod behind;
mod channels;
mod config;
mod error;
mod files;
mod meta;
pub mod mgmtd;
mod open;
mod read;
mod rpc;
mod seen;
mod shared;
mod write;

pub use config::ClientConfig;
pub use error::{ClientError, Result};
pub use files::Opened;
pub use meta::MetaOptions;
pub use open::{FileState, OpenFile, session_of};
pub use read::Segments;
pub use shared::Shared;
pub use write::ChunkUpdate;

use channels::Channels;
use ember_rt::sync::Semaphore;
use ember_rt::{Rt, SharedBuf};
use ember_types::NodeId;
use mgmtd::RoutingCache;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A client of a cluster on one reactor; cheap to clone. The reactors of a process share one [`Shared`].
#[derive(Clone)]
pub struct Client(Rc<Inner>);

struct Inner {
    rt: Rt,
    config: ClientConfig,
    shared: Arc<Shared>,
    routing: RoutingCache,
    pool: ember_net::Pool,
    channels: Channels,
    /// Room for accepted writes, in KiB.
    behind: Arc<Semaphore>,
    /// Payload bytes asked from each node and not yet answered: reads go where the fewest are.
    outstanding: RefCell<BTreeMap<NodeId, u64>>,
    zeros: SharedBuf,
}

/// Bytes of the run of zeros that holes are made of.
const ZEROS: usize = 1 << 20;

impl Client {
    /// A client over a routing cache and connections that somebody else keeps up (a daemon has them anyway).
    pub fn new(
        rt: Rt,
        config: ClientConfig,
        shared: Arc<Shared>,
        routing: RoutingCache,
        pool: ember_net::Pool,
    ) -> Self {
        let channels = Channels::new(shared.clone(), config.writes_max);
        let behind = Arc::new(Semaphore::new(config.write_behind_kib as usize));
        Self(Rc::new(Inner {
            rt,
            config,
            shared,
            routing,
            pool,
            channels,
            behind,
            outstanding: RefCell::default(),
            zeros: ember_rt::Buf::zeroed(ZEROS).into(),
        }))
    }
    /// What the process' reactors share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }
    /// The seam that this client runs on.
    pub fn rt(&self) -> &Rt {
        &self.0.rt
    }
    /// The routing that it goes by.
    pub fn routing(&self) -> &RoutingCache {
        &self.0.routing
    }
    /// The connections that it uses.
    pub fn pool(&self) -> &ember_net::Pool {
        &self.0.pool
    }
}

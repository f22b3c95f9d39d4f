//! What the service needs of the rest of the cluster, so that tests can stand in for it.

use crate::error::MetaError;
use ember_meta_store::truncate::Query;
use ember_rt::LocalBoxFuture;
use ember_types::{ClusterTime, DataId, InodeId, Layout, RoutingInfo};
use ember_wire::meta::Totals;
use std::rc::Rc;

/// The cluster manager's view.
pub trait Cluster {
    /// Newest routing.
    fn view(&self) -> Rc<RoutingInfo>;
    /// Cluster time (R20), while this node holds a lease; `None` otherwise: it must not serve then.
    fn now(&self) -> Option<ClusterTime>;
}

/// Some data and where they lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The inode that has, or had, them.
    pub inode: InodeId,
    /// The data.
    pub data: DataId,
    /// Where they lie.
    pub layout: Layout,
}

/// What meta asks of storage. Each call ends within its own time; a failed one may have been carried out in
/// part, and may be repeated.
pub trait StorageOps {
    /// Removes every byte from `from` on; none lies beyond `extent`. The rights to do so end at `until`.
    fn cut(
        &self,
        place: Place,
        from: u64,
        extent: u64,
        until: ClusterTime,
    ) -> LocalBoxFuture<'_, Result<(), MetaError>>;

    /// Where the data end, in bytes.
    fn length(&self, inode: InodeId, query: Query) -> LocalBoxFuture<'_, Result<u64, MetaError>>;

    /// Space of all storage nodes, replicas counted; `inodes` is 0.
    fn totals(&self) -> LocalBoxFuture<'_, Result<Totals, MetaError>>;
}

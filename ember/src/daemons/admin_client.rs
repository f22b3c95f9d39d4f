//! What commands ask the cluster, as its root user.

use crate::cluster::Cluster;
use crate::paths::DataDir;
use anyhow::{Context, Result};
use ember_net::{CallOptions, Identity, Options, Pool};
use ember_rt::{Addr, Rt, SharedBuf};
use ember_types::{ClientId, ClusterId, Status};
use ember_wire::Rpc;
use ember_wire::admin::ClusterStatus;
use ember_wire::codec::Empty;
use ember_wire::method;
use std::time::Duration;

/// Connections of a command.
pub(crate) struct AdminClient {
    rt: Rt,
    pool: Pool,
    mgmtd: Addr,
}

/// How this process introduces itself to the cluster of a data directory.
pub(crate) fn client_identity(dir: &DataDir, cluster: ClusterId, client: ClientId) -> Result<Identity> {
    Ok(ember_native::identity(cluster, client, ember_native::read_secret(&dir.token_file())?))
}

impl AdminClient {
    /// Connections are opened on first use.
    pub(crate) fn new(rt: &Rt, dir: &DataDir, cluster: &Cluster) -> Result<Self> {
        let client = ClientId::from_u128(rt.random_u128());
        let identity = client_identity(dir, cluster.cluster, client)?;
        let pool = Pool::new(rt, identity, Options::default());
        Ok(Self { rt: rt.clone(), pool, mgmtd: dir.socket("mgmtd")? })
    }
    /// State of the cluster, from its primary mgmtd.
    pub(crate) async fn status(&self, limit: Duration) -> Result<ClusterStatus> {
        let mgmtd = self.mgmtd.clone();
        let status = self.ask::<method::ClusterStatus>(&mgmtd, &Empty {}, limit).await?.0;
        anyhow::ensure!(status.status == Status::Ok, "mgmtd answers {}", status.status);
        Ok(status)
    }
    /// Asks mgmtd.
    pub(crate) async fn mgmtd<R: Rpc>(&self, request: &R::Request, limit: Duration) -> Result<R::Response> {
        let mgmtd = self.mgmtd.clone();
        Ok(self.ask::<R>(&mgmtd, request, limit).await?.0)
    }
    /// Asks any node.
    pub(crate) async fn ask<R: Rpc>(
        &self,
        addr: &Addr,
        request: &R::Request,
        limit: Duration,
    ) -> Result<(R::Response, SharedBuf)> {
        let until = self.rt.now() + limit;
        let options = CallOptions { expect: ember_wire::PAYLOAD_MAX.min(1 << 20), ..CallOptions::default() };
        let reply = self.pool.call::<R>(addr, request, SharedBuf::default(), until, options).await;
        let reply = reply.with_context(|| format!("{:?} at {addr}", R::METHOD))?;
        Ok((reply.body, reply.payload.into()))
    }
}

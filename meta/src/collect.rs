//! Collecting garbage (R3, R18): claim durably, remove from storage, forget.

use crate::error::MetaError;
use crate::seam::Place;
use crate::service::Service;
use ember_meta_store::garbage::{Doomed, Item};
use ember_rt::select::join_all;
use ember_types::NodeKind;
use ember_types::file::Credentials;
use std::rc::Rc;
use std::time::Duration;

/// Items looked at in one pass.
const PAGE: usize = 256;
/// Items claimed or forgotten in one transaction.
const CLAIM: usize = 32;
/// Items that are overdue by this are anybody's: the server that they hash to may be gone.
const ANYBODY: Duration = Duration::from_secs(30);

impl Service {
    /// Collects for ever, at the pace of the settings.
    pub(crate) async fn collect(self: Rc<Self>) {
        loop {
            self.rt.sleep(Duration::from_millis(self.config.collect_period_ms.max(10))).await;
            loop {
                match self.collect_page().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if error.status().is_retryable() => break,
                    Err(error) => {
                        tracing::warn!(%error, "collection of removed files is put off");
                        break;
                    }
                }
            }
        }
    }

    /// One pass. Whether there is more and progress was made.
    pub(crate) async fn collect_page(&self) -> Result<bool, MetaError> {
        let now = self.times()?.cluster;
        let items = self.database.read(async move |space| space.due_garbage(now, PAGE).await).await?;
        let full = items.len() == PAGE;
        let (mut done, mut failure) = (0, None);
        let own: Vec<Item> = items.into_iter().filter(|item| self.is_ours(item, now)).collect();
        for claimed in own.chunks(CLAIM) {
            let doomed = self.claim_items(claimed.to_vec()).await?;
            done += claimed.len() - doomed.len();
            for batch in doomed.chunks(self.config.collect_max.max(1)) {
                match self.remove(batch).await {
                    Ok(removed) => done += removed,
                    Err(error) => failure = Some(error),
                }
            }
        }
        self.stats.collected.inc_by(done as u64);
        match failure {
            Some(error) if done == 0 => Err(error),
            _ => Ok(full && done > 0),
        }
    }

    /// Servers share the work by the inode's hash, so that they seldom claim the same item.
    fn is_ours(&self, item: &Item, now: ember_types::ClusterTime) -> bool {
        let view = self.cluster.view();
        let boot = |node: &ember_types::NodeInfo| node.boot.0 == self.boot();
        let first = view.meta_nodes_for(item.inode).into_iter().find(|n| n.alive);
        let alone = !view.nodes.values().any(|n| n.kind == NodeKind::Meta && n.alive && !boot(n));
        alone || first.is_some_and(boot) || item.due + ANYBODY < now
    }

    async fn claim_items(&self, items: Vec<Item>) -> Result<Vec<Doomed>, MetaError> {
        self.database
            .write(
                || self.times(),
                false,
                async move |space, times| {
                    let root = Credentials::default();
                    let mut doomed = Vec::new();
                    for item in &items {
                        doomed.extend(space.claim_garbage(&times.env(&root), item).await?);
                    }
                    Ok(doomed)
                },
            )
            .await
    }

    /// Removes the data of some items and forgets those that went. How many did.
    async fn remove(&self, batch: &[Doomed]) -> Result<usize, MetaError> {
        let until = self.times()?.cluster + self.claim();
        let removals = batch.iter().map(|doomed| async move {
            let place = Place { inode: doomed.item.inode, data: doomed.item.data, layout: doomed.layout };
            self.storage.cut(place, 0, doomed.extent, until).await
        });
        let results = join_all(removals).await;
        let gone: Vec<Item> =
            batch.iter().zip(&results).filter(|(_, r)| r.is_ok()).map(|(d, _)| d.item).collect();
        let count = gone.len();
        if count > 0 {
            self.database
                .write(
                    || self.times(),
                    false,
                    async move |space, _| {
                        for item in &gone {
                            space.finish_garbage(item).await?;
                        }
                        Ok(())
                    },
                )
                .await?;
        }
        match results.into_iter().find_map(Result::err) {
            Some(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }
}

//! Carrying out truncations (R19).

use crate::error::MetaError;
use crate::seam::Place;
use crate::service::Service;
use ember_meta_store::record::Intent;
use ember_meta_store::truncate::Claim;
use ember_rt::sync::Semaphore;
use ember_types::collections::FixedHashMap;
use ember_types::file::Credentials;
use ember_types::{ClusterTime, InodeId, Status};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How often one looks whether another server has completed a truncation.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for another server.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Truncations under way here, one at a time per inode: a cut that is repeated by a second task after the
/// first one completed it would meet newer data.
#[derive(Default)]
pub(crate) struct Cuts(RefCell<FixedHashMap<InodeId, Rc<Semaphore>>>);

impl Cuts {
    fn lock(&self, inode: InodeId) -> Rc<Semaphore> {
        self.0.borrow_mut().entry(inode).or_insert_with(|| Rc::new(Semaphore::new(1))).clone()
    }

    fn forget(&self, inode: InodeId) {
        let mut locks = self.0.borrow_mut();
        if locks.get(&inode).is_some_and(|lock| Rc::strong_count(lock) == 1) {
            locks.remove(&inode);
        }
    }
}

impl Service {
    /// Returns when no truncation of the inode is under way any more.
    pub(crate) async fn complete_truncation(&self, inode: InodeId) -> Result<(), MetaError> {
        let lock = self.cuts.lock(inode);
        let done = {
            let permit = lock.acquire().await;
            match permit {
                Ok(_permit) => self.complete_locked(inode).await,
                Err(_) => Err(MetaError::not_now(Status::Unavailable, "the service is ending")),
            }
        };
        drop(lock);
        self.cuts.forget(inode);
        done
    }

    async fn complete_locked(&self, inode: InodeId) -> Result<(), MetaError> {
        let give_up = self.rt.now() + WAIT_MAX;
        loop {
            let bound = self.bound();
            let claim = self
                .database
                .write(
                    || self.times(),
                    false,
                    async move |space, times| {
                        let root = Credentials::default();
                        space.claim_truncation(&times.env(&root), inode, bound).await
                    },
                )
                .await?;
            match claim {
                Claim::None => return Ok(()),
                Claim::Ours(intent) => return self.carry_out(inode, intent).await,
                Claim::Theirs(_) if self.rt.now() >= give_up => {
                    let what = "another server is still cutting this file";
                    return Err(MetaError::not_now(Status::Busy, what));
                }
                Claim::Theirs(_) => self.rt.sleep(LOOK).await,
            }
        }
    }

    async fn carry_out(&self, inode: InodeId, intent: Intent) -> Result<(), MetaError> {
        let place = Place { inode, data: intent.data, layout: intent.layout };
        let extent = intent.extent.unwrap_or(u64::MAX);
        if let Err(error) = self.storage.cut(place, intent.cut_from, extent, intent.until).await {
            // A request of ours may still arrive; nobody may complete this before its rights have ended.
            self.outlive(intent.until).await;
            return Err(error);
        }
        let version = intent.truncate_version;
        self.database
            .write(
                || self.times(),
                false,
                async move |space, _| space.finish_truncation(inode, version).await,
            )
            .await?;
        self.stats.cuts.inc_by(1);
        Ok(())
    }

    /// Waits until cluster time is past `until` and the bound, or for as long as that takes without a lease.
    async fn outlive(&self, until: ClusterTime) {
        let end = until + self.bound();
        let longest = self.rt.now() + self.claim() * 2 + self.bound();
        while self.cluster.now().is_none_or(|now| now <= end) && self.rt.now() < longest {
            self.rt.sleep(LOOK).await;
        }
    }
}

//! Looking for what was left behind: truncations without a server, writers that died, old answers.

use crate::error::MetaError;
use crate::service::Service;
use ember_meta_store::file::Expired;
use ember_meta_store::truncate::Progress;
use ember_rt::select::join_all;
use ember_types::file::Credentials;
use ember_types::{ClusterTime, InodeId, Instant};
use std::rc::Rc;
use std::time::Duration;

/// Records of one page.
const PAGE: usize = 512;
/// Files that one step is about at once: a chain that doesn't answer must not hold up the others for long.
const AT_ONCE: usize = 64;
/// Rounds of asking storage that one settlement gets.
const ROUNDS: usize = 4;

/// Where the sweeps are.
#[derive(Default)]
pub(crate) struct Sweep {
    sessions: Vec<u8>,
    requests: Vec<u8>,
    /// Since when this server has served without a break.
    serving_since: Option<Instant>,
}

impl Service {
    /// Sweeps for ever, at the pace of the settings.
    pub(crate) async fn sweep(self: Rc<Self>) {
        let mut state = Sweep::default();
        loop {
            self.rt.sleep(Duration::from_millis(self.config.sweep_period_ms.max(10))).await;
            if let Err(error) = self.sweep_once(&mut state).await
                && !error.status().is_retryable()
            {
                tracing::warn!(%error, "sweep of metadata is put off");
            }
        }
    }

    /// One pass over each table, a page long.
    pub(crate) async fn sweep_once(&self, state: &mut Sweep) -> Result<(), MetaError> {
        let Ok(times) = self.times() else {
            state.serving_since = None;
            return Ok(());
        };
        let served = self.rt.now().since(*state.serving_since.get_or_insert(self.rt.now()));
        self.resume_truncations().await?;
        // Clients that could not reach this server had no chance to renew: give them one first.
        if served >= self.capability_life() {
            self.settle_sessions(state, times.cluster).await?;
        }
        let kept = Duration::from_millis(self.config.answers_kept_ms);
        if served >= kept / 3 {
            self.forget_answers(state, times.cluster, kept).await?;
        }
        Ok(())
    }

    async fn resume_truncations(&self) -> Result<(), MetaError> {
        let mut after: Option<InodeId> = None;
        loop {
            let from = after;
            let page = self.database.read(async move |space| space.truncations(from, PAGE).await).await?;
            let now = self.times()?.cluster;
            // A younger one has a server that is cutting.
            let left: Vec<_> = page.iter().filter(|(_, i)| i.until + self.bound() < now).collect();
            for batch in left.chunks(AT_ONCE) {
                let cuts = batch.iter().map(|(inode, _)| async move {
                    if let Err(error) = self.complete_truncation(*inode).await {
                        tracing::warn!(%error, %inode, "a truncation is put off");
                    }
                });
                join_all(cuts).await;
            }
            match page.last() {
                Some((inode, _)) if page.len() == PAGE => after = Some(*inode),
                _ => return Ok(()),
            }
        }
    }

    async fn settle_sessions(&self, state: &mut Sweep, now: ClusterTime) -> Result<(), MetaError> {
        let before = ClusterTime(now.0.saturating_sub(self.bound().as_millis() as u64));
        let after = state.sessions.clone();
        let read = self.database.read(async move |space| space.expired_sessions(&after, PAGE, before).await);
        let (expired, next) = read.await?;
        for batch in expired.chunks(AT_ONCE) {
            let settlements = batch.iter().map(|&one| async move {
                if let Err(error) = self.settle(one, before).await {
                    tracing::warn!(%error, inode = %one.inode, "a dead writer's file is not settled");
                }
            });
            join_all(settlements).await;
        }
        state.sessions = next.unwrap_or_default();
        Ok(())
    }

    async fn settle(&self, one: Expired, before: ClusterTime) -> Result<(), MetaError> {
        let (inode, session) = (one.inode, one.session);
        let (mut query, mut found) = (one.query, None);
        for _ in 0..ROUNDS {
            if let Some(query) = query {
                found = Some(query.answer(self.storage.length(inode, query).await?));
            }
            let done = self
                .database
                .write(
                    || self.times(),
                    false,
                    async move |space, times| {
                        let root = Credentials::default();
                        space.settle_session(&times.env(&root), inode, session, before, found).await
                    },
                )
                .await?;
            match done {
                Progress::Done(()) => {
                    tracing::debug!(%inode, %session, ?found, "a dead writer's file is settled");
                    self.stats.settled.inc_by(1);
                    return Ok(());
                }
                Progress::Query(again) => query = Some(again),
                Progress::Finish => self.complete_truncation(inode).await?,
            }
        }
        Ok(())
    }

    async fn forget_answers(
        &self,
        state: &mut Sweep,
        now: ClusterTime,
        kept: Duration,
    ) -> Result<(), MetaError> {
        let before = ClusterTime(now.0.saturating_sub(kept.as_millis() as u64));
        let after = state.requests.clone();
        let (_, next) = self
            .database
            .write(
                || self.times(),
                false,
                async move |space, _| space.forget_requests(&after, PAGE, before).await,
            )
            .await?;
        state.requests = next.unwrap_or_default();
        Ok(())
    }
}

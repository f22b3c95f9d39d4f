//! Damaged contents: fetched from another replica, written anew, and read again (R14).

use crate::convert::content_of;
use crate::target::Target;
use ember_engine::{ContentState, EngineError, Install, InstallContent};
use ember_rt::SharedBuf;
use ember_rt::disk::Priority;
use ember_types::{ChunkId, ChunkVersion, TargetId, WriterRecord};
use std::rc::Rc;

/// How often a content is written: each time into another place of the disk.
const WRITES: u32 = 3;

impl Target {
    /// Fetches the bytes of a version from another replica and rewrites them here (R14). What no replica has
    /// stays as it is: readers get an error.
    pub(crate) async fn repair(self: &Rc<Self>, chunk: ChunkId, version: ChunkVersion) {
        let Some(state) = self.engine.state(chunk) else { return };
        let Some(own) = state.committed.filter(|own| own.version == version && !own.removed) else { return };
        let what = content_of(&own);
        if let Some((data, from)) = self.fetch(chunk, &what).await {
            let content = ContentState { lost: false, ..own };
            return self.rewrite(chunk, content, data, state.writers, from).await;
        }
        if own.lost {
            return tracing::debug!(target = %self.id, %chunk, ?what, "a lost chunk has not turned up");
        }
        tracing::error!(target = %self.id, %chunk, ?what, "no other replica has the bytes of a damaged chunk");
    }

    async fn rewrite(
        self: &Rc<Self>,
        chunk: ChunkId,
        content: ContentState,
        data: SharedBuf,
        writers: Vec<WriterRecord>,
        from: TargetId,
    ) {
        for _ in 0..WRITES {
            let committed = Some(InstallContent { state: content, data: data.clone() });
            let install = Install { committed, pending: None, writers: writers.clone() };
            let done = match self.engine.install(chunk, install).await {
                Ok(()) => self.engine.verify(chunk, Priority::Resync).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => {
                    self.repairs.set(self.repairs.get() + 1);
                    return tracing::warn!(target = %self.id, %chunk, %from, "repaired a chunk");
                }
                Err(error @ (EngineError::Io { .. } | EngineError::Corrupt { .. })) => {
                    tracing::warn!(target = %self.id, %chunk, %error, "a repaired chunk is bad again");
                }
                Err(error) => {
                    return tracing::error!(target = %self.id, %chunk, %error, "a chunk is not repaired");
                }
            }
        }
        tracing::error!(target = %self.id, %chunk, "a chunk is not repaired: the disk doesn't keep it");
    }
}

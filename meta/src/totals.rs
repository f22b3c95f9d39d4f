//! statfs: totals of all storage nodes, asked seldom.

use crate::error::MetaError;
use crate::service::Service;
use ember_types::{Instant, Status};
use ember_wire::meta::{Answer, Response, Totals};
use std::cell::Cell;
use std::time::Duration;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(2);

/// The last answer of storage.
#[derive(Default)]
pub(crate) struct TotalsCache(Cell<Option<(Instant, Totals)>>);

impl Service {
    pub(crate) async fn stat_fs(&self) -> Result<Response, MetaError> {
        self.times()?;
        let known = self.totals.0.get();
        let fresh = known.filter(|(at, _)| self.rt.now().since(*at) < FRESH);
        let mut totals = match fresh {
            Some((_, totals)) => totals,
            None => {
                let asked = self.rt.now();
                match (self.storage.totals().await, known) {
                    (Ok(totals), _) => {
                        self.totals.0.set(Some((asked, totals)));
                        totals
                    }
                    // Old figures are better than none while storage restarts.
                    (Err(_), Some((_, totals))) => totals,
                    (Err(error), None) => return Err(error),
                }
            }
        };
        totals.inodes = self.database.read(async |space| space.inode_count().await).await?;
        Ok(Response { status: Status::Ok, text: String::new(), result: Answer::Totals(totals) })
    }
}

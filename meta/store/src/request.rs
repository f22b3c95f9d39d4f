//! Changing requests happen once: the answer of each is stored in the transaction that carries it out, and a
//! repeat gets that answer.
//!
//! A client numbers its changing requests from 1 and has fewer than [`WINDOW`] of them unanswered, so the
//! records form a ring of that many slots per client. Refused operations changed nothing and leave no record.

use crate::codec::decode;
use crate::error::{Result, ensure};
use crate::record::RequestRecord;
use crate::space::Space;
use crate::table;
use ember_kv::{KeyRange, RangeOptions};
use ember_types::{ClientId, ClusterTime, Status};

/// Slots per client.
pub const WINDOW: u64 = 1024;

impl Space<'_> {
    /// The stored answer of a request that was carried out before. `StaleSequence` if a younger request has
    /// taken its slot: the client repeated what it had seen answered.
    pub async fn repeated(&mut self, client: ClientId, sequence: u64) -> Result<Option<Vec<u8>>> {
        ensure(sequence > 0, Status::InvalidArgument)?;
        let key = table::request(client, slot(sequence));
        let Some(bytes) = self.value(&key).await? else { return Ok(None) };
        let record: RequestRecord = decode(table::REQUEST.name, &key, &bytes)?;
        ensure(record.sequence <= sequence, Status::StaleSequence)?;
        Ok((record.sequence == sequence).then_some(record.answer))
    }

    /// Stores the answer of a request that this transaction carries out. `at`: cluster time.
    pub fn remember(&mut self, client: ClientId, sequence: u64, at: ClusterTime, answer: Vec<u8>) {
        let record = RequestRecord { sequence, at, answer };
        self.put(&table::request(client, slot(sequence)), &record);
    }

    /// Forgets the records of a client that has ended.
    pub fn forget_client(&mut self, client: ClientId) {
        self.tx.clear_range(table::requests(client));
    }

    /// Forgets records older than `before`, from a page of the table that starts behind `after` (empty: at its
    /// start). Answers with how many went and the key to go on behind (`None`: it was the last page).
    pub async fn forget_requests(
        &mut self,
        after: &[u8],
        limit: usize,
        before: ClusterTime,
    ) -> Result<(usize, Option<Vec<u8>>)> {
        let whole = table::REQUEST.range();
        let begin = if after.is_empty() { whole.begin } else { ember_kv::key::successor(after) };
        let options = RangeOptions::limit(limit).snapshot();
        let rows = self.tx.get_range(KeyRange::new(begin, whole.end), options).await?;
        let next = if rows.len() < limit { None } else { rows.last().map(|(key, _)| key.clone()) };
        let mut gone = 0;
        for (key, value) in rows {
            let record: RequestRecord = decode(table::REQUEST.name, &key, &value)?;
            if record.at < before {
                // Of the page, only what goes must not have changed.
                self.tx.add_read_conflict(KeyRange::key(&key));
                self.tx.clear(&key);
                gone += 1;
            }
        }
        Ok((gone, next))
    }
}

fn slot(sequence: u64) -> u16 {
    (sequence % WINDOW) as u16
}

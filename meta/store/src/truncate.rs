//! Changes of length (R19): the promise and its completion.
//!
//! A cut is first promised in the transaction that changes the inode (an [`Intent`] and `truncating_to`), then
//! carried out on storage by the server that owns the intent, then completed here. Owners change only after
//! the old one's rights to cut have ended, so that a late cut never meets data written after it.

use crate::access;
use crate::codec::decode;
use crate::error::{Result, ensure};
use crate::file::Found;
use crate::record::{Garbage, Inode, Intent};
use crate::space::{Env, Space};
use crate::table;
use ember_kv::KeyRange;
use ember_types::file::Attributes;
use ember_types::{ClusterTime, DataId, InodeId, Layout, Status, mutant};
use std::time::Duration;

/// How far an operation on a file got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress<T> {
    /// It is done.
    Done(T),
    /// Nothing was written: ask storage, then run it again with the answer.
    Query(Query),
    /// Nothing was written: complete the truncation that is under way, then run it again.
    Finish,
}

impl<T> Progress<T> {
    /// The same with another result.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Progress<U> {
        match self {
            Self::Done(value) => Progress::Done(f(value)),
            Self::Query(query) => Progress::Query(query),
            Self::Finish => Progress::Finish,
        }
    }

    /// The result, if it is done.
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(value) => Some(value),
            _ => None,
        }
    }
}

/// A question to storage: where do these data end?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// The data.
    pub data: DataId,
    /// Where they lie.
    pub layout: Layout,
    /// Truncate version under which the answer counts (R19).
    pub truncate_version: u64,
}

impl Query {
    /// The question about a regular file.
    pub(crate) fn of(inode: &Inode) -> Option<Self> {
        let layout = inode.layout.filter(|_| inode.is_file())?;
        Some(Self { data: inode.data, layout, truncate_version: inode.truncate_version })
    }

    pub(crate) fn is_answered_by(&self, found: &Found) -> bool {
        found.data == self.data && found.truncate_version == self.truncate_version
    }

    /// The answer: storage holds `length` bytes.
    pub fn answer(&self, length: u64) -> Found {
        Found { data: self.data, truncate_version: self.truncate_version, length }
    }
}

/// Who may carry out a truncation now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The caller, until the intent's `until`.
    Ours(Intent),
    /// Another server, whose rights end then (plus the bound).
    Theirs(ClusterTime),
    /// Nothing is left to do.
    None,
}

impl Space<'_> {
    /// Changes the length in `inode`, which the caller stores. Writes garbage or an intent.
    pub(crate) async fn set_length(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        inode: &mut Inode,
        length: u64,
        spare: DataId,
        found: Option<Found>,
    ) -> Result<Progress<()>> {
        let Some(query) = Query::of(inode) else { return Err(Status::InvalidArgument.into()) };
        ensure(length <= query.layout.max_file_length(), Status::FileTooLarge)?;
        if inode.truncating_to.is_some() {
            return Ok(Progress::Finish);
        }
        let open = !self.sessions(id).await?.is_empty();
        let mut end = inode.length;
        let mut stored = if open { u64::MAX } else { inode.extent };
        let asks = stored > inode.length && !mutant!(r19_extended_unasked);
        if length > inode.length && asks {
            let Some(found) = found.filter(|f| query.is_answered_by(f)) else {
                return Ok(Progress::Query(query));
            };
            // Bytes beyond the settled length are a live writer's, or remains that must not come back.
            stored = found.length;
            end = if open { end.max(found.length) } else { end };
        }
        if length <= end {
            self.shrink(env, id, inode, length, spare, open);
        } else if stored > end {
            self.promise_cut(env, id, inode, end, length, Some(stored.max(inode.extent)));
        } else {
            inode.length = length;
        }
        inode.mode = access::mode_after_write(env.who, inode);
        inode.modified = env.now;
        inode.changed = env.now;
        inode.content_version += 1;
        Ok(Progress::Done(()))
    }

    fn shrink(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        inode: &mut Inode,
        length: u64,
        spare: DataId,
        open: bool,
    ) {
        if open {
            self.promise_cut(env, id, inode, length, length, None);
        } else if inode.extent <= length {
            inode.truncate_version += u64::from(length < inode.length);
        } else if length == 0 {
            let garbage = Garbage { with_inode: false, layout: inode.layout, extent: Some(inode.extent) };
            self.put(&table::garbage(env.cluster + env.hold, id, inode.data), &garbage);
            inode.data = spare;
            inode.extent = 0;
            inode.truncate_version += 1;
        } else {
            self.promise_cut(env, id, inode, length, length, Some(inode.extent));
        }
        inode.length = length;
    }

    fn promise_cut(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        inode: &mut Inode,
        cut_from: u64,
        length: u64,
        extent: Option<u64>,
    ) {
        let Some(layout) = inode.layout else { return };
        inode.truncate_version += 1;
        inode.truncating_to = Some(cut_from);
        let intent = Intent {
            data: inode.data,
            layout,
            cut_from,
            length,
            truncate_version: inode.truncate_version,
            extent,
            owner: env.owner,
            until: env.cluster + env.claim,
        };
        self.put(&table::intent(id), &intent);
        self.require_durable();
    }

    async fn intent(&mut self, id: InodeId) -> Result<Option<Intent>> {
        let key = table::intent(id);
        match self.value(&key).await? {
            Some(bytes) => Ok(Some(decode(table::INTENT.name, &key, &bytes)?)),
            None => Ok(None),
        }
    }

    /// Takes the right to carry out a truncation, or goes on with it. The commit is durable, so that the caller
    /// may act (R3). `bound` is twice the error of cluster time.
    pub async fn claim_truncation(&mut self, env: &Env<'_>, id: InodeId, bound: Duration) -> Result<Claim> {
        let Some(mut intent) = self.intent(id).await? else { return Ok(Claim::None) };
        let ended = intent.until + bound <= env.cluster || mutant!(r19_cut_taken_over_early);
        if intent.owner != env.owner && !ended {
            return Ok(Claim::Theirs(intent.until + bound));
        }
        intent.owner = env.owner;
        intent.until = intent.until.max(env.cluster + env.claim);
        self.put(&table::intent(id), &intent);
        self.require_durable();
        Ok(Claim::Ours(intent))
    }

    /// Completes a truncation whose cut was carried out. Answers with the attributes now.
    pub async fn finish_truncation(
        &mut self,
        id: InodeId,
        truncate_version: u64,
    ) -> Result<Option<Attributes>> {
        let intent = self.intent(id).await?;
        let Some(mut inode) = self.find_inode(id).await? else {
            self.tx.clear(&table::intent(id));
            return Ok(None);
        };
        if let Some(intent) = intent.filter(|i| i.truncate_version == truncate_version) {
            inode.length = intent.length;
            inode.truncating_to = None;
            if self.sessions(id).await?.is_empty() {
                inode.extent = inode.extent.min(intent.cut_from);
            }
            self.put_inode(id, inode.clone());
            self.tx.clear(&table::intent(id));
        }
        Ok(Some(self.attributes(id, &inode).await?))
    }

    /// Truncations under way, from a page of the table that starts behind `after` (`None`: at its start).
    pub async fn truncations(
        &mut self,
        after: Option<InodeId>,
        limit: usize,
    ) -> Result<Vec<(InodeId, Intent)>> {
        let mut range = table::INTENT.range();
        if let Some(after) = after {
            range = KeyRange::new(ember_kv::key::successor(&table::intent(after)), range.end);
        }
        let mut found = Vec::new();
        for (key, value) in self.scan(range, limit).await? {
            if let Some(id) = table::intent_inode(&key) {
                found.push((id, decode(table::INTENT.name, &key, &value)?));
            }
        }
        Ok(found)
    }
}

//! One request in one transaction: from the wire's operation to the store's, and back.

use crate::database::Times;
use ember_meta_store::attributes::{Change, SetAttributes, SetTime};
use ember_meta_store::file::{Found, OpenFlags, OpenRequest, Opened, Report, Written};
use ember_meta_store::truncate::{Progress, Query};
use ember_meta_store::{Env, Error, NewIds, NodeRequest, Placement, RenameFlags, Space};
use ember_types::file::Attributes;
use ember_types::{Capability, CapabilityKey, ClusterTime, InodeId, Millis, Rights, SessionId, Status};
use ember_wire::meta as wire;
use ember_wire::meta::{Answer, Operation, Request, Response};
use std::sync::Arc;

/// Mints capabilities that end together.
#[derive(Clone, Debug)]
pub(crate) struct Minter {
    pub(crate) key: CapabilityKey,
    pub(crate) epoch: u32,
    /// Cluster time when they were granted.
    pub(crate) now: ClusterTime,
    pub(crate) until: ClusterTime,
}

impl Minter {
    fn mint(&self, request: &Request, attributes: &Attributes, rights: Rights) -> Capability {
        if rights == Rights::default() {
            return Capability::NONE;
        }
        let (inode, data) = (attributes.inode, attributes.data);
        self.key.mint(inode, data, request.client, rights, self.until, self.epoch)
    }

    fn life(&self) -> Millis {
        Millis(self.until.0.saturating_sub(self.now.0))
    }
}

/// A request with everything that its transaction needs.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Arc<Request>,
    pub(crate) ids: NewIds,
    pub(crate) placement: Arc<Placement>,
    pub(crate) minter: Minter,
    /// What storage said, if an earlier round asked.
    pub(crate) found: Option<Found>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is answered.
    Answered(Box<Response>),
    /// Ask storage about this inode, then run it again.
    Query(InodeId, Query),
    /// Complete the truncation of this inode, then run it again.
    Finish(InodeId),
}

/// What a refused operation answers.
pub(crate) fn refusal(status: Status, text: impl Into<String>) -> Response {
    Response { status, text: text.into(), result: Answer::Nothing }
}

fn answered(result: Answer) -> Response {
    Response { status: Status::Ok, text: String::new(), result }
}

/// Whether an operation may use new ids.
pub(crate) fn makes(operation: &Operation) -> bool {
    match operation {
        Operation::Create { .. }
        | Operation::MakeDirectory { .. }
        | Operation::MakeNode { .. }
        | Operation::MakeSymlink { .. } => true,
        Operation::Open { flags, .. } => flags.truncate,
        Operation::SetAttributes { set, .. } => set.length.is_some(),
        _ => false,
    }
}

/// Whether a repeat of the operation must get the stored answer. The others may run twice: they grow a length
/// or a capability's life, or read.
fn is_remembered(operation: &Operation) -> bool {
    match operation {
        Operation::Create { .. }
        | Operation::SetAttributes { .. }
        | Operation::MakeDirectory { .. }
        | Operation::MakeNode { .. }
        | Operation::MakeSymlink { .. }
        | Operation::MakeLink { .. }
        | Operation::Unlink { .. }
        | Operation::RemoveDirectory { .. }
        | Operation::Rename { .. } => true,
        Operation::Open { flags, .. } => flags.truncate,
        _ => false,
    }
}

fn flags_of(flags: wire::OpenFlags) -> OpenFlags {
    let wire::OpenFlags { read, write, truncate, execute } = flags;
    OpenFlags { read, write, truncate, execute }
}

fn written_of(written: &wire::Written) -> Written {
    let wire::Written { length, truncate_version, modified } = *written;
    Written { length, truncate_version, modified }
}

fn set_of(set: &wire::SetAttributes) -> SetAttributes {
    let time = |t: wire::SetTime| match t {
        wire::SetTime::Now => SetTime::Now,
        wire::SetTime::At(time) => SetTime::At(time),
    };
    SetAttributes {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        length: set.length,
        accessed: set.accessed.map(time),
        modified: set.modified.map(time),
        session: set.session,
        clear_set_id: set.clear_set_id,
    }
}

impl Call {
    fn open_request(&self, session: SessionId, flags: wire::OpenFlags) -> OpenRequest {
        let client = self.request.client;
        OpenRequest { client, session, flags: flags_of(flags), until: self.minter.until }
    }

    fn report(&self, written: &Option<wire::Written>) -> Report {
        Report { written: written.as_ref().map(written_of), found: self.found }
    }

    fn opened(&self, opened: Opened) -> Answer {
        let capability = self.minter.mint(&self.request, &opened.attributes, opened.rights);
        Answer::Opened {
            attributes: opened.attributes,
            capability,
            created: opened.created,
            cluster_time: self.minter.now,
            capability_ms: self.minter.life(),
        }
    }

    /// Runs the request. A refusal is an answer; an error leaves the transaction to be dropped.
    pub(crate) async fn execute(&self, space: &mut Space<'_>, times: &Times) -> Result<Outcome, Error> {
        let env = times.env(&self.request.credentials);
        match self.execute_once(space, &env).await {
            Err(Error::Refused(status)) => {
                let response = refusal(status, "");
                let last = !status.is_retryable() && status != Status::StaleSequence;
                if self.request.repeat && last && self.is_remembered() {
                    self.remember(space, &env, &response);
                }
                Ok(Outcome::Answered(Box::new(response)))
            }
            other => other,
        }
    }

    fn is_remembered(&self) -> bool {
        is_remembered(&self.request.operation) && self.request.sequence > 0
    }

    fn remember(&self, space: &mut Space<'_>, env: &Env<'_>, response: &Response) {
        space.remember(self.request.client, self.request.sequence, env.cluster, ember_wire::encode(response));
    }

    async fn execute_once(&self, space: &mut Space<'_>, env: &Env<'_>) -> Result<Outcome, Error> {
        let request = &*self.request;
        if self.is_remembered()
            && let Some(bytes) = space.repeated(request.client, request.sequence).await?
        {
            return self.repeat(space, env, &bytes).await;
        }
        let answer = match self.change(space, env).await? {
            Progress::Done(answer) => answer,
            Progress::Query(query) => return Ok(Outcome::Query(self.subject(space).await?, query)),
            Progress::Finish => return Ok(Outcome::Finish(self.subject(space).await?)),
        };
        let response = answered(answer);
        if self.is_remembered() {
            self.remember(space, env, &response);
        }
        Ok(Outcome::Answered(Box::new(response)))
    }

    /// The stored answer of a request that was carried out. A capability in it is minted anew.
    async fn repeat(&self, space: &mut Space<'_>, env: &Env<'_>, bytes: &[u8]) -> Result<Outcome, Error> {
        let Ok(mut response) = ember_wire::decode::<Response>(bytes) else {
            return Err(Status::StaleSequence.into());
        };
        let (session, flags) = match &self.request.operation {
            Operation::Create { session, flags, .. } | Operation::Open { session, flags, .. } => {
                (*session, *flags)
            }
            _ => return Ok(Outcome::Answered(Box::new(response))),
        };
        if let Answer::Opened { attributes, capability, cluster_time, capability_ms, .. } =
            &mut response.result
        {
            let open = self.open_request(session, flags);
            let renewal = space.renew(env, &open, attributes.inode).await?;
            if renewal.status == Status::Ok {
                *attributes = space.get_attributes(attributes.inode).await?;
                *capability = self.minter.mint(&self.request, attributes, renewal.rights);
                (*cluster_time, *capability_ms) = (self.minter.now, self.minter.life());
            }
        }
        Ok(Outcome::Answered(Box::new(response)))
    }

    /// The file whose length the request is about.
    async fn subject(&self, space: &mut Space<'_>) -> Result<InodeId, Error> {
        match &self.request.operation {
            Operation::Create { parent, name, .. } => {
                let root = ember_types::file::Credentials::default();
                let env = Env {
                    who: &root,
                    now: Default::default(),
                    cluster: self.minter.now,
                    hold: Default::default(),
                    owner: 0,
                    claim: Default::default(),
                };
                Ok(space.lookup(&env, *parent, name).await?.inode)
            }
            other => Ok(other.home()),
        }
    }

    async fn change(&self, space: &mut Space<'_>, env: &Env<'_>) -> Result<Progress<Answer>, Error> {
        let (ids, placement) = (self.ids, &*self.placement);
        let done = match &self.request.operation {
            Operation::Create { parent, name, mode, exclusive, flags, session } => {
                let open = self.open_request(*session, *flags);
                let made = space.create(env, *parent, name, *mode, *exclusive, &open, ids, placement).await?;
                return Ok(made.map(|opened| self.opened(opened)));
            }
            Operation::Open { inode, flags, session } => {
                let open = self.open_request(*session, *flags);
                let opened = space.open(env, *inode, &open, ids.data).await?;
                return Ok(opened.map(|opened| self.opened(opened)));
            }
            Operation::Close { inode, session, written } => {
                let report = self.report(written);
                return Ok(space.close(env, *inode, *session, report).await?.map(Answer::Entry));
            }
            Operation::Sync { inode, written } | Operation::Settle { inode, written } => {
                let report = self.report(written);
                return Ok(space.report(env, *inode, report).await?.map(Answer::Entry));
            }
            Operation::SetAttributes { inode, set } => {
                let set = set_of(set);
                let change = Change { set: &set, spare: ids.data, found: self.found };
                return Ok(space.set_attributes(env, *inode, change).await?.map(Answer::Entry));
            }
            Operation::MakeDirectory { parent, name, mode } => {
                Answer::Entry(space.make_directory(env, *parent, name, *mode, ids).await?)
            }
            Operation::MakeNode { parent, name, kind, mode, device } => {
                let node = NodeRequest { kind: *kind, mode: *mode, device: *device };
                Answer::Entry(space.make_node(env, *parent, name, node, ids, placement).await?)
            }
            Operation::MakeSymlink { parent, name, target } => {
                Answer::Entry(space.make_symlink(env, *parent, name, target, ids).await?)
            }
            Operation::MakeLink { inode, parent, name } => {
                Answer::Entry(space.make_link(env, *inode, *parent, name).await?)
            }
            Operation::Unlink { parent, name } => {
                Answer::Removed { attributes: Some(space.unlink(env, *parent, name).await?) }
            }
            Operation::RemoveDirectory { parent, name } => {
                Answer::Removed { attributes: Some(space.remove_directory(env, *parent, name).await?) }
            }
            Operation::Rename { parent, name, new_parent, new_name, no_replace, exchange } => {
                let flags = RenameFlags { no_replace: *no_replace, exchange: *exchange };
                let to = (*new_parent, new_name.as_slice());
                Answer::Removed { attributes: space.rename(env, (*parent, name), to, flags).await? }
            }
            Operation::Renew { opens, writers } => self.renew(space, env, opens, writers).await?,
            other => return self.read(space, env, other).await.map(Progress::Done),
        };
        Ok(Progress::Done(done))
    }

    async fn renew(
        &self,
        space: &mut Space<'_>,
        env: &Env<'_>,
        opens: &[(InodeId, SessionId)],
        writers: &[SessionId],
    ) -> Result<Answer, Error> {
        let mut rows = Vec::with_capacity(opens.len());
        for (inode, session) in opens {
            let write = writers.contains(session);
            let flags = wire::OpenFlags { read: true, write, ..Default::default() };
            let renewal = space.renew(env, &self.open_request(*session, flags), *inode).await?;
            let mint = || {
                let (data, rights) = (renewal.data, renewal.rights);
                let Minter { key, until, epoch, .. } = &self.minter;
                key.mint(*inode, data, self.request.client, rights, *until, *epoch)
            };
            let capability = (renewal.status == Status::Ok).then(mint);
            rows.push(wire::RenewedOpen {
                inode: *inode,
                session: *session,
                status: renewal.status,
                capability,
            });
        }
        let (cluster_time, capability_ms) = (self.minter.now, self.minter.life());
        Ok(Answer::Renewed { opens: rows, cluster_time, capability_ms })
    }

    /// Runs an operation that changes nothing.
    pub(crate) async fn read(
        &self,
        space: &mut Space<'_>,
        env: &Env<'_>,
        operation: &Operation,
    ) -> Result<Answer, Error> {
        Ok(match operation {
            Operation::Lookup { parent, name } => Answer::Entry(space.lookup(env, *parent, name).await?),
            Operation::GetAttributes { inode } => Answer::Entry(space.get_attributes(*inode).await?),
            Operation::ReadSymlink { inode } => Answer::Link(space.read_symlink(*inode).await?),
            Operation::Access { inode, mask } => Answer::Entry(space.check_access(env, *inode, *mask).await?),
            Operation::ReadDirectory { inode, after, limit, attributes } => {
                let page = space.read_directory(*inode, *after, *limit, *attributes).await?;
                let entries = page.entries.into_iter().map(|e| wire::DirectoryEntry {
                    name: e.name,
                    inode: e.inode,
                    kind: e.kind,
                    cookie: e.cookie,
                    attributes: e.attributes,
                });
                Answer::Entries { entries: entries.collect(), more: page.more }
            }
            _ => return Err(Status::NotSupported.into()),
        })
    }

    /// Tries to answer without writing: `None` if the request has to write.
    pub(crate) async fn try_read(
        &self,
        space: &mut Space<'_>,
        times: &Times,
    ) -> Result<Option<Response>, Error> {
        let env = times.env(&self.request.credentials);
        let done = match &self.request.operation {
            Operation::Open { inode, flags, session } => {
                let open = self.open_request(*session, *flags);
                match space.open(&env, *inode, &open, self.ids.data).await {
                    // An unlinked file's data must be held on to first.
                    Ok(Progress::Done(opened)) if opened.attributes.links > 0 => Ok(self.opened(opened)),
                    Ok(_) => return Ok(None),
                    Err(error) => Err(error),
                }
            }
            Operation::Close { inode, session, .. } => {
                if space.has_session(*inode, *session).await? {
                    return Ok(None);
                }
                space.get_attributes(*inode).await.map(Answer::Entry)
            }
            Operation::Sync { inode, .. } | Operation::Settle { inode, .. } => {
                space.get_attributes(*inode).await.map(Answer::Entry)
            }
            other => self.read(space, &env, other).await,
        };
        match done {
            Ok(answer) => Ok(Some(answered(answer))),
            Err(Error::Refused(status)) => Ok(Some(refusal(status, ""))),
            Err(error) => Err(error),
        }
    }
}

/// Whether [`Call::try_read`] may answer.
pub(crate) fn may_only_read(operation: &Operation) -> bool {
    match operation {
        Operation::Lookup { .. }
        | Operation::GetAttributes { .. }
        | Operation::ReadSymlink { .. }
        | Operation::Access { .. }
        | Operation::ReadDirectory { .. } => true,
        Operation::Open { flags, .. } => !flags.write && !flags.truncate,
        Operation::Close { written, .. }
        | Operation::Sync { written, .. }
        | Operation::Settle { written, .. } => written.is_none(),
        _ => false,
    }
}

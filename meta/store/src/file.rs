//! Opening, closing, capabilities' renewal, and the settlement of lengths (R18, R19, R20).

use crate::access::{self, EXECUTE, READ, WRITE};
use crate::codec::{counter, decode};
use crate::error::{Result, ensure};
use crate::record::{Inode, Session};
use crate::space::{Env, Space};
use crate::table;
use crate::truncate::{Progress, Query};
use ember_kv::KeyRange;
use ember_types::file::{Attributes, FileKind};
use ember_types::{ClientId, ClusterTime, DataId, InodeId, Rights, SessionId, Status, UnixTime, mutant};

/// How to open.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpenFlags {
    /// Data will be read.
    pub read: bool,
    /// Data will be written: opens a session.
    pub write: bool,
    /// Cut to nothing first.
    pub truncate: bool,
    /// With `read`: execute permission is what is asked for.
    pub execute: bool,
}

impl OpenFlags {
    /// The rights of the capability.
    pub fn rights(self) -> Rights {
        let read = if self.read { Rights::READ } else { Rights::default() };
        let write = if self.write { Rights::WRITE } else { Rights::default() };
        read.and(write)
    }

    fn mask(self) -> u32 {
        let read = match (self.read, self.execute) {
            (true, true) => EXECUTE,
            (true, false) => READ,
            (false, _) => 0,
        };
        if self.write || self.truncate { read | WRITE } else { read }
    }
}

/// An open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenRequest {
    /// Whose.
    pub client: ClientId,
    /// Its name.
    pub session: SessionId,
    /// How.
    pub flags: OpenFlags,
    /// When the capability that will be minted ends: cluster time read before the transaction plus its life.
    pub until: ClusterTime,
}

/// An opened file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The inode. If `truncating_to` is set, the caller completes that truncation before it answers.
    pub attributes: Attributes,
    /// What its capability allows; nothing for a directory.
    pub rights: Rights,
    /// Whether it was made.
    pub created: bool,
}

/// What a writer knows of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The end of what was written, in bytes.
    pub length: u64,
    /// Truncate version under which it was written (R19).
    pub truncate_version: u64,
    /// When data were last written; absent if none were.
    pub modified: Option<UnixTime>,
}

/// What storage holds of a file: the answer to a [`Query`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Of which data.
    pub data: DataId,
    /// Truncate version of the inode when the question was put (R19).
    pub truncate_version: u64,
    /// The end of the last chunk, in bytes.
    pub length: u64,
}

/// A report with what an earlier attempt asked storage for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// What the writer knows.
    pub written: Option<Written>,
    /// What storage holds.
    pub found: Option<Found>,
}

/// One open that goes on, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewal {
    /// The inode.
    pub inode: InodeId,
    /// The open.
    pub session: SessionId,
    /// `Ok`, or `Stale` if the inode is gone (R3).
    pub status: Status,
    /// The data that the new capability covers.
    pub data: DataId,
    /// What it allows.
    pub rights: Rights,
}

/// A session whose last capability has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expired {
    /// The inode.
    pub inode: InodeId,
    /// The open.
    pub session: SessionId,
    /// What to ask storage before it is settled; nothing if the file is gone or has no data.
    pub query: Option<Query>,
}

impl Space<'_> {
    /// Opens a file or directory. `spare` names new data, used if the file is cut to nothing.
    pub async fn open(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        open: &OpenRequest,
        spare: DataId,
    ) -> Result<Progress<Opened>> {
        let mut inode = self.inode(id).await?;
        ensure(!inode.collecting, Status::Stale)?;
        let writes = open.flags.write || open.flags.truncate;
        match inode.kind {
            FileKind::Directory => ensure(!writes, Status::IsDirectory)?,
            FileKind::File => {}
            FileKind::Symlink => return Err(Status::SymlinkLoop.into()),
            _ => return Err(Status::InvalidArgument.into()),
        }
        access::check(env.who, &inode, open.flags.mask())?;
        if inode.is_directory() {
            let attributes = self.attributes(id, &inode).await?;
            return Ok(Progress::Done(Opened { attributes, rights: Rights::default(), created: false }));
        }
        if open.flags.truncate {
            match self.set_length(env, id, &mut inode, 0, spare, None).await? {
                Progress::Done(()) => self.put_inode(id, inode.clone()),
                Progress::Query(query) => return Ok(Progress::Query(query)),
                Progress::Finish => return Ok(Progress::Finish),
            }
        }
        if inode.links == 0 && !mutant!(r18_open_holds_nothing) {
            self.extend_hold(env, id).await?;
        }
        self.begin_session(id, open);
        let attributes = self.attributes(id, &inode).await?;
        Ok(Progress::Done(Opened { attributes, rights: open.flags.rights(), created: false }))
    }

    /// Records that a file is open for writing.
    pub(crate) fn begin_session(&mut self, id: InodeId, open: &OpenRequest) {
        if open.flags.write {
            let session = Session { client: open.client, until: open.until, read: open.flags.read };
            self.put(&table::session(id, open.session), &session);
        }
    }

    /// Data of an unlinked inode stay while somebody may still use them (R18). Reading the inode in the same
    /// transaction makes this and the start of its collection exclude each other.
    async fn extend_hold(&mut self, env: &Env<'_>, id: InodeId) -> Result<()> {
        let until = env.cluster + env.hold;
        if self.hold(id).await? < until {
            self.tx.set(&table::hold(id), &until.0.to_le_bytes());
            self.require_durable();
        }
        Ok(())
    }

    pub(crate) async fn hold(&mut self, id: InodeId) -> Result<ClusterTime> {
        let key = table::hold(id);
        let value = self.value(&key).await?;
        Ok(ClusterTime(counter(table::HOLD.name, &key, value.as_deref())?))
    }

    /// Ends an open and takes in what was written through it. A session that is gone is no error: it ended
    /// while its client was away, and its length was settled then.
    pub async fn close(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        session: SessionId,
        report: Report,
    ) -> Result<Progress<Attributes>> {
        let done = self.report(env, id, report).await?;
        if matches!(done, Progress::Done(_)) {
            self.tx.clear(&table::session(id, session));
        }
        Ok(done)
    }

    /// Whether that open is recorded as one for writing.
    pub async fn has_session(&mut self, id: InodeId, session: SessionId) -> Result<bool> {
        Ok(self.find_session(id, session).await?.is_some())
    }

    /// Takes in what was written to a file that stays open. `Stale` if the inode is gone (R3).
    pub async fn report(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        report: Report,
    ) -> Result<Progress<Attributes>> {
        let mut inode = self.inode(id).await?;
        let Some(written) = report.written else {
            return Ok(Progress::Done(self.attributes(id, &inode).await?));
        };
        ensure(inode.is_file(), Status::InvalidArgument)?;
        let longest = inode.layout.map_or(0, |l| l.max_file_length());
        ensure(written.length <= longest, Status::FileTooLarge)?;
        let old = inode.clone();
        let current = written.truncate_version == inode.truncate_version
            || mutant!(r19_settle_without_truncate_version);
        if current || written.length <= inode.length {
            if inode.truncating_to.is_some() && written.length > inode.length {
                return Ok(Progress::Finish);
            }
            grow(&mut inode, written.length);
        } else {
            // Written before or after the truncation: only storage knows what is left of it (R19).
            match self.settle_found(&mut inode, report.found) {
                Progress::Done(()) => {}
                Progress::Query(query) => return Ok(Progress::Query(query)),
                Progress::Finish => return Ok(Progress::Finish),
            }
        }
        if let Some(time) = written.modified {
            inode.modified = time;
            inode.changed = env.now;
            inode.content_version += 1;
        }
        if inode != old {
            self.put_inode(id, inode.clone());
        }
        Ok(Progress::Done(self.attributes(id, &inode).await?))
    }

    /// Grows the length to what storage holds, if that was asked under the present truncate version (R19).
    fn settle_found(&mut self, inode: &mut Inode, found: Option<Found>) -> Progress<()> {
        if inode.truncating_to.is_some() {
            return Progress::Finish;
        }
        let query = match Query::of(inode) {
            Some(query) => query,
            None => return Progress::Done(()),
        };
        match found {
            Some(found)
                if query.is_answered_by(&found)
                    || (mutant!(r19_settle_without_truncate_version) && found.data == query.data) =>
            {
                grow(inode, found.length);
                Progress::Done(())
            }
            _ => Progress::Query(query),
        }
    }

    /// Renews capabilities. An open for writing that is unknown (its client was away for too long) is
    /// recorded anew if the caller says that it was one; an unlinked inode's data are held on to.
    pub async fn renew(&mut self, env: &Env<'_>, open: &OpenRequest, id: InodeId) -> Result<Renewal> {
        let stale = Renewal {
            inode: id,
            session: open.session,
            status: Status::Stale,
            data: DataId(0),
            rights: Rights::default(),
        };
        let Some(inode) = self.find_inode(id).await? else { return Ok(stale) };
        if inode.collecting || !inode.is_file() {
            return Ok(stale);
        }
        let known = self.find_session(id, open.session).await?;
        let mut flags = open.flags;
        if let Some(session) = known {
            if session.client != open.client {
                return Ok(stale);
            }
            flags.write = true;
            flags.read |= session.read;
        }
        if inode.links == 0 {
            self.extend_hold(env, id).await?;
        }
        self.begin_session(id, &OpenRequest { flags, ..*open });
        Ok(Renewal { status: Status::Ok, data: inode.data, rights: flags.rights(), ..stale })
    }

    /// Sessions whose last capability ended before `before`, from a page of the table that starts behind
    /// `after` (empty: at its start), and the key to go on behind (`None`: it was the last page).
    pub async fn expired_sessions(
        &mut self,
        after: &[u8],
        limit: usize,
        before: ClusterTime,
    ) -> Result<(Vec<Expired>, Option<Vec<u8>>)> {
        let whole = table::SESSION.range();
        let begin = if after.is_empty() { whole.begin } else { ember_kv::key::successor(after) };
        let rows = self.scan(KeyRange::new(begin, whole.end), limit).await?;
        let next = if rows.len() < limit { None } else { rows.last().map(|(key, _)| key.clone()) };
        let mut expired = Vec::new();
        for (key, value) in rows {
            let record: Session = decode(table::SESSION.name, &key, &value)?;
            let Some((inode, session)) = table::session_ids(&key) else { continue };
            if record.until >= before {
                continue;
            }
            let query = self.find_inode(inode).await?.as_ref().and_then(Query::of);
            expired.push(Expired { inode, session, query });
        }
        Ok((expired, next))
    }

    /// Ends a session whose last capability ended before `before`, with what storage holds. Nothing happens if
    /// it was renewed or closed meanwhile.
    pub async fn settle_session(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        session: SessionId,
        before: ClusterTime,
        found: Option<Found>,
    ) -> Result<Progress<()>> {
        match self.find_session(id, session).await? {
            Some(record) if record.until < before || mutant!(r19_live_writer_settled) => {}
            _ => return Ok(Progress::Done(())),
        }
        if let Some(mut inode) = self.find_inode(id).await? {
            if inode.is_file() && inode.links > 0 {
                let old = inode.length;
                match self.settle_found(&mut inode, found) {
                    Progress::Done(()) => {}
                    other => return Ok(other),
                }
                if inode.length > old {
                    inode.modified = env.now;
                    inode.changed = env.now;
                }
                // The dead writer may have changed bytes within the length too, and an update that storage
                // had numbered but not committed when it was asked may still come.
                inode.content_version += 1;
                inode.extent = u64::MAX;
                self.put_inode(id, inode);
            } else if inode.is_file() {
                // Unlinked: its length matters no more, but where its data may lie does.
                inode.extent = u64::MAX;
                self.put_inode(id, inode);
            }
        }
        self.tx.clear(&table::session(id, session));
        Ok(Progress::Done(()))
    }
}

fn grow(inode: &mut Inode, length: u64) {
    inode.length = inode.length.max(length);
    inode.extent = inode.extent.max(length);
}

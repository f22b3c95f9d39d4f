//! Changing attributes: mode, owner, times, length.

use crate::access::{self, WRITE};
use crate::error::{Result, ensure};
use crate::file::Found;
use crate::record::{DirTimes, Inode};
use crate::space::{Env, Space};
use crate::truncate::Progress;
use ember_types::file::{Attributes, Credentials};
use ember_types::{DataId, InodeId, Layout, SessionId, Status, UnixTime};

/// What to do with a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The server's now.
    Now,
    /// This time.
    At(UnixTime),
}

impl SetTime {
    fn value(self, now: UnixTime) -> UnixTime {
        match self {
            Self::Now => now,
            Self::At(time) => time,
        }
    }
}

/// Attributes to change; what is absent stays.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SetAttributes {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes: cuts or extends.
    pub length: Option<u64>,
    /// Last access.
    pub accessed: Option<SetTime>,
    /// Last change of content.
    pub modified: Option<SetTime>,
    /// The open through which the length is set: it is the permission.
    pub session: Option<SessionId>,
    /// Drop set-user-id and set-group-id as a write does.
    pub clear_set_id: bool,
}

/// A change of attributes, with what a change of length needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change<'a> {
    /// What to change.
    pub set: &'a SetAttributes,
    /// Id of new data, used if the file is cut to nothing.
    pub spare: DataId,
    /// What storage holds, if an earlier attempt asked for it.
    pub found: Option<Found>,
}

impl Space<'_> {
    /// Changes attributes. A change of length may need to be told what storage holds, or to have an earlier
    /// truncation completed ([`Progress`]); nothing was written then.
    pub async fn set_attributes(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        change: Change<'_>,
    ) -> Result<Progress<Attributes>> {
        let set = change.set;
        let old = self.inode(id).await?;
        let mut inode = old.clone();
        if set.length.is_some() {
            ensure(!inode.is_directory(), Status::IsDirectory)?;
            ensure(inode.is_file(), Status::InvalidArgument)?;
            let by_session = match set.session {
                Some(session) => self.find_session(id, session).await?.is_some(),
                None => false,
            };
            if !by_session {
                access::check(env.who, &inode, WRITE)?;
            }
        }
        change_owner(env.who, &old, &mut inode, set)?;
        change_mode(env.who, &old, &mut inode, set)?;
        check_times(env.who, &old, set)?;
        if let Some(length) = set.length {
            match self.set_length(env, id, &mut inode, length, change.spare, change.found).await? {
                Progress::Done(()) => {}
                Progress::Query(query) => return Ok(Progress::Query(query)),
                Progress::Finish => return Ok(Progress::Finish),
            }
        }
        self.set_times(env, id, &mut inode, set).await?;
        self.put_inode(id, inode.clone());
        Ok(Progress::Done(self.attributes(id, &inode).await?))
    }

    async fn set_times(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        inode: &mut Inode,
        set: &SetAttributes,
    ) -> Result<()> {
        if let Some(time) = set.accessed {
            inode.accessed = time.value(env.now);
        }
        if inode.is_directory() {
            let mut times = self.dir_times(id).await?;
            if let Some(time) = set.modified {
                times.modified = time.value(env.now);
            }
            times.changed = env.now;
            self.put_dir_times(id, DirTimes { ..times });
            return Ok(());
        }
        if let Some(time) = set.modified {
            inode.modified = time.value(env.now);
        }
        inode.changed = env.now;
        Ok(())
    }

    /// Sets the layout that new files and directories in a directory inherit.
    pub async fn set_template(
        &mut self,
        env: &Env<'_>,
        directory: InodeId,
        template: Option<Layout>,
    ) -> Result<Attributes> {
        let mut inode = self.directory(directory).await?;
        ensure(access::owns(env.who, &inode), Status::NotPermitted)?;
        ensure(template.is_none_or(|t| t.is_valid()), Status::InvalidArgument)?;
        inode.layout = template;
        self.put_inode(directory, inode.clone());
        self.attributes(directory, &inode).await
    }
}

fn change_owner(who: &Credentials, old: &Inode, inode: &mut Inode, set: &SetAttributes) -> Result<()> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(());
    }
    let root = access::is_root(who);
    if let Some(uid) = set.uid {
        ensure(root || (who.uid == old.uid && uid == old.uid), Status::NotPermitted)?;
        inode.uid = uid;
    }
    if let Some(gid) = set.gid {
        let allowed = who.uid == old.uid && (gid == old.gid || access::in_group(who, gid));
        ensure(root || allowed, Status::NotPermitted)?;
        inode.gid = gid;
    }
    inode.mode = access::mode_after_chown(inode, inode.mode);
    Ok(())
}

fn change_mode(who: &Credentials, old: &Inode, inode: &mut Inode, set: &SetAttributes) -> Result<()> {
    if set.clear_set_id {
        inode.mode = access::mode_after_write(who, inode);
    }
    let Some(mode) = set.mode else { return Ok(()) };
    let mode = mode & 0o7777;
    // The kernel drops set-id bits before a write by sending the mode without them, on the writer's behalf.
    let set_id = access::SET_UID | access::SET_GID;
    let drops_set_id = mode & !set_id == old.mode & !set_id && mode & !old.mode == 0;
    let allowed = access::owns(who, old) || (drops_set_id && access::may(who, old, WRITE));
    ensure(allowed, Status::NotPermitted)?;
    let foreign_group = !access::is_root(who) && !access::in_group(who, inode.gid);
    inode.mode = if foreign_group { mode & !access::SET_GID } else { mode };
    Ok(())
}

fn check_times(who: &Credentials, old: &Inode, set: &SetAttributes) -> Result<()> {
    let times = [set.accessed, set.modified];
    if times.iter().all(Option::is_none) || access::owns(who, old) {
        return Ok(());
    }
    let explicit = times.iter().flatten().any(|t| matches!(t, SetTime::At(_)));
    ensure(!explicit, Status::NotPermitted)?;
    // A truncation brings its own "now" and was checked already.
    ensure(set.length.is_some() || access::may(who, old, WRITE), Status::PermissionDenied)
}

//! Rename, with RENAME_NOREPLACE and RENAME_EXCHANGE.

use crate::access::{self, EXECUTE, WRITE};
use crate::dentry::{Place, check_name};
use crate::error::{Error, Result, ensure};
use crate::record::{DirTimes, Inode};
use crate::space::{Env, Space};
use crate::table;
use ember_types::file::Attributes;
use ember_types::{InodeId, Status};

/// Deepest directory whose ancestors are walked; deeper means a loop on disk.
const DEPTH_MAX: usize = 65_536;

/// Flags of rename.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RenameFlags {
    /// Fail if the new name exists.
    pub no_replace: bool,
    /// Swap the two entries.
    pub exchange: bool,
}

/// One side of a rename.
struct Side<'n> {
    parent: InodeId,
    name: &'n [u8],
}

struct Target {
    place: Place,
    inode: Inode,
}

impl Space<'_> {
    /// Moves an entry. Answers with the attributes of what was replaced, if anything was.
    pub async fn rename(
        &mut self,
        env: &Env<'_>,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<Option<Attributes>> {
        ensure(!(flags.no_replace && flags.exchange), Status::InvalidArgument)?;
        let from = Side { parent, name };
        let to = Side { parent: new_parent, name: new_name };
        let directory = self.directory(new_parent).await?;
        check_name(new_name)?;
        let (place, inode) = self.removable(env, parent, name).await?;
        access::check(env.who, &directory, EXECUTE)?;
        ensure(directory.links > 0, Status::NotFound)?;
        let source = Target { place, inode };
        let target = match self.find_entry(new_parent, new_name).await? {
            Some(place) => {
                let inode = self.inode(place.entry.inode).await?;
                Some(Target { place, inode })
            }
            None => None,
        };
        ensure(!flags.no_replace || target.is_none(), Status::Exists)?;
        ensure(!flags.exchange || target.is_some(), Status::NotFound)?;
        self.check_loops(&from, &to, &source, target.as_ref(), flags).await?;
        access::check(env.who, &directory, WRITE)?;
        if let Some(target) = &target {
            let forbidden = access::sticky_forbids(env.who, &directory, &target.inode);
            ensure(!forbidden, Status::NotPermitted)?;
        }
        check_reparent(env, &from, &to, &source, target.as_ref(), flags)?;
        match target {
            Some(target) if target.place.entry.inode == source.place.entry.inode => Ok(None),
            Some(target) if flags.exchange => {
                self.exchange(env, &from, &to, source, target).await.map(|()| None)
            }
            Some(target) => self.replace(env, &from, &to, source, target).await.map(Some),
            None => {
                self.insert_entry(to.parent, to.name, source.place.entry.inode, source.inode.kind).await?;
                self.finish_move(env, &from, &to, source, false).await?;
                Ok(None)
            }
        }
    }

    /// A directory never comes to lie within itself. The walk reads every ancestor, so that two renames
    /// that would make a loop together conflict.
    async fn check_loops(
        &mut self,
        from: &Side<'_>,
        to: &Side<'_>,
        source: &Target,
        target: Option<&Target>,
        flags: RenameFlags,
    ) -> Result<()> {
        if from.parent == to.parent {
            return Ok(());
        }
        if source.inode.is_directory() {
            let within = self.is_within(to.parent, source.place.entry.inode).await?;
            ensure(!within, Status::InvalidArgument)?;
        }
        if let Some(target) = target.filter(|t| t.inode.is_directory()) {
            let status = if flags.exchange { Status::InvalidArgument } else { Status::NotEmpty };
            let within = self.is_within(from.parent, target.place.entry.inode).await?;
            ensure(!within, status)?;
        }
        Ok(())
    }

    /// Whether `directory` is `ancestor` or lies below it.
    async fn is_within(&mut self, directory: InodeId, ancestor: InodeId) -> Result<bool> {
        let mut at = directory;
        for _ in 0..DEPTH_MAX {
            if at == ancestor {
                return Ok(true);
            }
            if at == InodeId::ROOT {
                return Ok(false);
            }
            at = self.directory(at).await?.parent;
        }
        Err(Error::Damaged {
            table: table::INODE.name,
            key: table::inode(directory).escape_ascii().to_string(),
            what: format!("the root is not among its {DEPTH_MAX} nearest ancestors"),
        })
    }

    async fn replace(
        &mut self,
        env: &Env<'_>,
        from: &Side<'_>,
        to: &Side<'_>,
        source: Target,
        target: Target,
    ) -> Result<Attributes> {
        let gone = target.place.entry.inode;
        let gone_directory = target.inode.is_directory();
        match (source.inode.is_directory(), gone_directory) {
            (true, false) => return Err(Status::NotDirectory.into()),
            (false, true) => return Err(Status::IsDirectory.into()),
            _ => {}
        }
        if gone_directory {
            ensure(self.is_empty(gone).await?, Status::NotEmpty)?;
        }
        self.redirect_entry(to.parent, &target.place, source.place.entry.inode, source.inode.kind);
        self.finish_move(env, from, to, source, gone_directory).await?;
        match gone_directory {
            true => self.drop_directory(env, gone, target.inode).await,
            false => self.drop_link(env, gone, target.inode).await,
        }
    }

    /// The source's old entry goes, its inode and both directories are noted as changed.
    async fn finish_move(
        &mut self,
        env: &Env<'_>,
        from: &Side<'_>,
        to: &Side<'_>,
        source: Target,
        replaced_directory: bool,
    ) -> Result<()> {
        // Read again: inserting the new entry may have crowded the old one's hash.
        let Some(old) = self.find_entry(from.parent, from.name).await? else {
            return Err(Status::NotFound.into());
        };
        self.remove_entry(from.parent, &old).await?;
        if source.inode.is_directory() {
            self.add_subdirs(from.parent, -1);
            if !replaced_directory {
                self.add_subdirs(to.parent, 1);
            }
        }
        self.touch_dir(from.parent, env.now);
        self.touch_dir(to.parent, env.now);
        self.moved(env, source.place.entry.inode, source.inode, to.parent).await
    }

    async fn exchange(
        &mut self,
        env: &Env<'_>,
        from: &Side<'_>,
        to: &Side<'_>,
        source: Target,
        target: Target,
    ) -> Result<()> {
        let (a, b) = (source.place.entry.inode, target.place.entry.inode);
        self.redirect_entry(to.parent, &target.place, a, source.inode.kind);
        self.redirect_entry(from.parent, &source.place, b, target.inode.kind);
        let change = i64::from(target.inode.is_directory()) - i64::from(source.inode.is_directory());
        if change != 0 && from.parent != to.parent {
            self.add_subdirs(from.parent, change);
            self.add_subdirs(to.parent, -change);
        }
        self.touch_dir(from.parent, env.now);
        self.touch_dir(to.parent, env.now);
        self.moved(env, a, source.inode, to.parent).await?;
        self.moved(env, b, target.inode, from.parent).await
    }

    async fn moved(&mut self, env: &Env<'_>, id: InodeId, mut inode: Inode, parent: InodeId) -> Result<()> {
        inode.changed = env.now;
        if inode.is_directory() {
            let times = self.dir_times(id).await?;
            self.put_dir_times(id, DirTimes { changed: env.now, ..times });
            inode.parent = parent;
        }
        self.put_inode(id, inode);
        Ok(())
    }
}

/// A directory that gets another parent must be writable itself, since its `..` changes.
fn check_reparent(
    env: &Env<'_>,
    from: &Side<'_>,
    to: &Side<'_>,
    source: &Target,
    target: Option<&Target>,
    flags: RenameFlags,
) -> Result<()> {
    if from.parent == to.parent {
        return Ok(());
    }
    if source.inode.is_directory() {
        access::check(env.who, &source.inode, WRITE)?;
    }
    if let Some(target) = target.filter(|t| flags.exchange && t.inode.is_directory()) {
        access::check(env.who, &target.inode, WRITE)?;
    }
    Ok(())
}

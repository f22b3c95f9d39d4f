//! Operations that remove entries. What lost its last name stays until the last capability has ended (R18).

use crate::access::{self, EXECUTE, WRITE};
use crate::dentry::{Place, check_name};
use crate::error::{Result, ensure};
use crate::record::{DirTimes, Garbage, Inode};
use crate::space::{Env, Space};
use crate::table;
use ember_types::file::Attributes;
use ember_types::{InodeId, Status};

impl Space<'_> {
    /// Entry and inode that may be removed from `parent` or moved away: checks in Linux' order.
    pub(crate) async fn removable(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
    ) -> Result<(Place, Inode)> {
        let directory = self.directory(parent).await?;
        access::check(env.who, &directory, EXECUTE)?;
        check_name(name)?;
        let Some(place) = self.find_entry(parent, name).await? else {
            return Err(Status::NotFound.into());
        };
        access::check(env.who, &directory, WRITE)?;
        let inode = self.inode(place.entry.inode).await?;
        ensure(!access::sticky_forbids(env.who, &directory, &inode), Status::NotPermitted)?;
        Ok((place, inode))
    }

    /// Takes one name from an inode that is no directory. The caller removes or redirects the entry.
    pub(crate) async fn drop_link(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        mut inode: Inode,
    ) -> Result<Attributes> {
        inode.links = inode.links.saturating_sub(1);
        inode.changed = env.now;
        if inode.links == 0 {
            self.queue_inode(env, id, &inode);
        }
        self.put_inode(id, inode.clone());
        self.attributes(id, &inode).await
    }

    /// Marks an empty directory as removed. The caller removes or redirects the entry and counts.
    pub(crate) async fn drop_directory(
        &mut self,
        env: &Env<'_>,
        id: InodeId,
        mut inode: Inode,
    ) -> Result<Attributes> {
        inode.links = 0;
        self.queue_inode(env, id, &inode);
        self.put_inode(id, inode.clone());
        let times = self.dir_times(id).await?;
        self.put_dir_times(id, DirTimes { changed: env.now, ..times });
        self.attributes(id, &inode).await
    }

    fn queue_inode(&mut self, env: &Env<'_>, id: InodeId, inode: &Inode) {
        let layout = if inode.is_file() { inode.layout } else { None };
        let item = Garbage { with_inode: true, layout, extent: None };
        self.put(&table::garbage(env.cluster + env.hold, id, inode.data), &item);
    }

    /// Removes an entry that is no directory. Answers with the inode's attributes afterwards.
    pub async fn unlink(&mut self, env: &Env<'_>, parent: InodeId, name: &[u8]) -> Result<Attributes> {
        let (place, inode) = self.removable(env, parent, name).await?;
        ensure(!inode.is_directory(), Status::IsDirectory)?;
        self.remove_entry(parent, &place).await?;
        self.touch_dir(parent, env.now);
        self.drop_link(env, place.entry.inode, inode).await
    }

    /// Removes an empty directory. Answers with its attributes afterwards.
    pub async fn remove_directory(
        &mut self,
        env: &Env<'_>,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attributes> {
        let (place, inode) = self.removable(env, parent, name).await?;
        let id = place.entry.inode;
        ensure(inode.is_directory(), Status::NotDirectory)?;
        ensure(self.is_empty(id).await?, Status::NotEmpty)?;
        self.remove_entry(parent, &place).await?;
        self.touch_dir(parent, env.now);
        self.add_subdirs(parent, -1);
        self.drop_directory(env, id, inode).await
    }
}

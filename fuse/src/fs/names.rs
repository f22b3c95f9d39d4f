//! Operations on names: lookup, making, linking, moving, removing.

use super::{Answer, Fs, Outcome, fail, unexpected};
use crate::caller::Caller;
use crate::convert;
use ember_fuse_kernel::abi::EntryOut;
use ember_fuse_kernel::{Errno, Reply};
use ember_types::{InodeId, Status};
use ember_wire::meta::{Answer as MetaAnswer, Operation};

const SET_GID: u32 = 0o2000;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

impl Fs {
    pub(super) async fn lookup(&self, caller: &Caller, parent: InodeId, name: Vec<u8>) -> Outcome {
        let lookup = Operation::Lookup { parent, name };
        let found = self
            .on_behalf(caller, false, async |options| self.client.meta_entry(lookup.clone(), options).await)
            .await;
        match found {
            Ok(mut attributes) => {
                self.client.overlay(&mut attributes);
                Ok(Reply::entry(&self.entry_out(&attributes)).into())
            }
            Err(error) if error.status == Status::NotFound => {
                let ttl = self.common.config.negative_ttl();
                if ttl.is_zero() {
                    return Err(Errno::NOENT);
                }
                Ok(Reply::entry(&EntryOut::negative(ttl)).into())
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Runs an operation that makes a name, and answers with the entry.
    async fn make(&self, caller: &Caller, whole_groups: bool, operation: Operation) -> Outcome {
        let mut attributes = self
            .on_behalf(caller, whole_groups, async |options| {
                self.client.meta_entry(operation.clone(), options).await
            })
            .await
            .map_err(fail)?;
        self.client.overlay(&mut attributes);
        Ok(Reply::entry(&self.entry_out(&attributes)).into())
    }

    pub(super) async fn mknod(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Vec<u8>,
        (mode, device): (u32, u32),
    ) -> Outcome {
        let Some(kind) = convert::node_kind(mode) else { return Err(Errno::INVAL) };
        let mode = mode & 0o7777;
        let node = Operation::MakeNode { parent, name, kind, mode, device: device.into() };
        self.make(caller, mode & SET_GID != 0, node).await
    }

    pub(super) async fn mkdir(&self, caller: &Caller, parent: InodeId, name: Vec<u8>, mode: u32) -> Outcome {
        self.make(caller, mode & SET_GID != 0, Operation::MakeDirectory { parent, name, mode }).await
    }

    pub(super) async fn symlink(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Vec<u8>,
        target: Vec<u8>,
    ) -> Outcome {
        self.make(caller, false, Operation::MakeSymlink { parent, name, target }).await
    }

    pub(super) async fn link(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Vec<u8>,
        inode: InodeId,
    ) -> Outcome {
        self.make(caller, false, Operation::MakeLink { inode, parent, name }).await
    }

    /// Runs an operation that removes or moves a name.
    async fn change(&self, caller: &Caller, operation: Operation) -> Outcome {
        self.on_behalf(caller, false, async |options| self.client.meta(operation.clone(), options).await)
            .await
            .map_err(fail)?;
        Ok(Reply::ok().into())
    }

    pub(super) async fn unlink(&self, caller: &Caller, parent: InodeId, name: Vec<u8>) -> Outcome {
        self.change(caller, Operation::Unlink { parent, name }).await
    }

    pub(super) async fn rmdir(&self, caller: &Caller, parent: InodeId, name: Vec<u8>) -> Outcome {
        self.change(caller, Operation::RemoveDirectory { parent, name }).await
    }

    pub(super) async fn rename(
        &self,
        caller: &Caller,
        (parent, name): (InodeId, Vec<u8>),
        (new_parent, new_name): (InodeId, Vec<u8>),
        flags: u32,
    ) -> Outcome {
        let (no_replace, exchange) = (flags & RENAME_NOREPLACE != 0, flags & RENAME_EXCHANGE != 0);
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || (no_replace && exchange) {
            return Err(Errno::INVAL);
        }
        let rename = Operation::Rename { parent, name, new_parent, new_name, no_replace, exchange };
        self.change(caller, rename).await
    }

    pub(super) async fn readlink(&self, caller: &Caller, inode: InodeId) -> Outcome {
        let read = Operation::ReadSymlink { inode };
        let answer = self
            .on_behalf(caller, false, async |options| self.client.meta(read.clone(), options).await)
            .await
            .map_err(fail)?;
        match answer {
            MetaAnswer::Link(target) => Ok(Answer::bytes(target)),
            _ => Err(unexpected()),
        }
    }
}

//! Attributes, access and totals.

use super::{Fs, Outcome, fail, unexpected};
use crate::caller::Caller;
use crate::convert;
use ember_client::{MetaOptions, session_of};
use ember_fuse_kernel::Reply;
use ember_fuse_kernel::abi::{SetattrIn, fattr};
use ember_types::InodeId;
use ember_wire::meta::{Answer as MetaAnswer, Operation, SetAttributes};

impl Fs {
    pub(super) async fn getattr(&self, inode: InodeId) -> Outcome {
        // Attributes are anybody's who has come as far as the inode.
        let attributes = self.client.attributes(inode, &MetaOptions::root()).await.map_err(fail)?;
        Ok(Reply::attr(&self.attr_out(&attributes)).into())
    }

    pub(super) async fn setattr(&self, caller: &Caller, inode: InodeId, args: SetattrIn) -> Outcome {
        let session = (args.valid & fattr::FH != 0).then(|| session_of(self.client.shared().id(), args.fh));
        let set = convert::set_attributes(&args, session);
        if set == SetAttributes::default() {
            return self.getattr(inode).await;
        }
        // Whether the group is one of the caller's decides about the set-group-id bit.
        let whole_groups = set.mode.is_some() || set.gid.is_some();
        let attributes = self
            .on_behalf(caller, whole_groups, async |options| {
                self.client.set_attributes(inode, set.clone(), options).await
            })
            .await
            .map_err(fail)?;
        self.common.known.own_change(&attributes);
        Ok(Reply::attr(&self.attr_out(&attributes)).into())
    }

    /// Clears set-user-id and set-group-id bits as a write by this process does.
    pub(super) async fn clear_set_id(&self, caller: &Caller, inode: InodeId) -> ember_client::Result<()> {
        let set = SetAttributes { clear_set_id: true, ..SetAttributes::default() };
        let (credentials, _) = self.groups.quick(caller, self.rt.now());
        let attributes = self.client.set_attributes(inode, set, &credentials.into()).await?;
        // Neither the answer to a write nor that to an open brings the kernel the new mode.
        self.drop_attributes(inode).await;
        self.common.known.set_id_is(inode, attributes.mode);
        Ok(())
    }

    pub(super) async fn access(&self, caller: &Caller, inode: InodeId, mask: u32) -> Outcome {
        let access = Operation::Access { inode, mask };
        self.on_behalf(caller, false, async |options| self.client.meta_entry(access.clone(), options).await)
            .await
            .map_err(fail)?;
        Ok(Reply::ok().into())
    }

    pub(super) async fn statfs(&self) -> Outcome {
        let answer = self.client.meta(Operation::StatFs, &MetaOptions::root()).await.map_err(fail)?;
        match answer {
            MetaAnswer::Totals(totals) => Ok(Reply::statfs(&convert::statfs(&totals)).into()),
            _ => Err(unexpected()),
        }
    }
}

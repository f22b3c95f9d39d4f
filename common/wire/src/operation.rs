//! What clients and the metadata service need to know of every operation.

use crate::meta::Operation;
use ember_types::InodeId;

impl Operation {
    /// The inode whose hash says which server gets the operation, and whose operations share transactions: the
    /// directory of a name, else the inode itself, else the root.
    pub fn home(&self) -> InodeId {
        match self {
            Self::Lookup { parent, .. }
            | Self::Create { parent, .. }
            | Self::MakeDirectory { parent, .. }
            | Self::MakeNode { parent, .. }
            | Self::MakeSymlink { parent, .. }
            | Self::MakeLink { parent, .. }
            | Self::Unlink { parent, .. }
            | Self::RemoveDirectory { parent, .. }
            | Self::Rename { parent, .. } => *parent,
            Self::GetAttributes { inode }
            | Self::Open { inode, .. }
            | Self::Close { inode, .. }
            | Self::Sync { inode, .. }
            | Self::Settle { inode, .. }
            | Self::SetAttributes { inode, .. }
            | Self::ReadSymlink { inode }
            | Self::ReadDirectory { inode, .. }
            | Self::Access { inode, .. } => *inode,
            Self::Renew { opens, .. } => opens.first().map_or(InodeId::ROOT, |(inode, _)| *inode),
            Self::StatFs => InodeId::ROOT,
        }
    }

    /// Whether carrying it out a second time could change something else than the first time did. Such requests
    /// are numbered.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Lookup { .. }
                | Self::GetAttributes { .. }
                | Self::ReadSymlink { .. }
                | Self::ReadDirectory { .. }
                | Self::StatFs
                | Self::Renew { .. }
                | Self::Access { .. }
        )
    }
}

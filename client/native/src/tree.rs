//! Directories and what is in them.

use crate::path::{parent, resolve};
use ember_client::{Client, ClientError, MetaOptions, Result};
use ember_rt::LocalBoxFuture;
use ember_rt::select::join_all;
use ember_types::file::FileKind;
use ember_types::{InodeId, Status};
use ember_wire::meta::{Answer, DirectoryEntry, Operation};

/// Entries of a page of a directory.
const PAGE: u32 = 512;
/// Entries that are removed at once.
const REMOVALS: usize = 16;

/// The entries of a directory from a cookie on, and the cookie of the next page. The first one checks whether it may be
/// read.
pub(crate) async fn page(
    client: &Client,
    inode: InodeId,
    after: u64,
    attributes: bool,
    options: &MetaOptions,
) -> Result<(Vec<DirectoryEntry>, Option<u64>)> {
    if after == 0 {
        client.meta(Operation::Access { inode, mask: 4 }, options).await?;
    }
    let operation = Operation::ReadDirectory { inode, after, limit: PAGE, attributes };
    match client.meta(operation, options).await? {
        Answer::Entries { entries, more } => {
            let next = entries.last().map(|entry| entry.cookie).filter(|_| more);
            Ok((entries, next))
        }
        other => {
            let text = format!("unexpected answer of the metadata service: {other:?}");
            Err(ClientError::new(Status::Internal, text))
        }
    }
}

/// Makes a directory unless the path leads to something.
pub(crate) async fn make_directory(
    client: &Client,
    path: &str,
    mode: u32,
    options: &MetaOptions,
) -> Result<()> {
    match resolve(client, path, options).await {
        Err(error) if error.status == Status::NotFound => {}
        found => return found.map(|_| ()),
    }
    let (parent, name) = parent(client, path, options).await?;
    match client.meta(Operation::MakeDirectory { parent, name, mode }, options).await {
        // Somebody else was faster; or it is a link to nothing, as the next look at it tells.
        Err(error) if error.status == Status::Exists => Ok(()),
        made => made.map(|_| ()),
    }
}

/// Fails unless an entry is a directory.
pub(crate) async fn require_directory(
    client: &Client,
    parent: InodeId,
    name: &[u8],
    options: &MetaOptions,
) -> Result<()> {
    let lookup = Operation::Lookup { parent, name: name.to_vec() };
    match client.meta_entry(lookup, options).await?.kind {
        FileKind::Directory => Ok(()),
        _ => Err(ClientError::new(Status::NotDirectory, "what has the old name is no directory")),
    }
}

/// What has gone by itself is fine.
fn gone(result: Result<Answer>) -> Result<()> {
    match result {
        Err(error) if error.status == Status::NotFound => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Removes an entry with all that is below it. Symbolic links go, not what they lead to.
pub(crate) async fn remove(
    client: &Client,
    parent: InodeId,
    name: Vec<u8>,
    options: &MetaOptions,
) -> Result<()> {
    let lookup = Operation::Lookup { parent, name: name.clone() };
    let found = client.meta_entry(lookup, options).await?;
    if found.kind != FileKind::Directory {
        return gone(client.meta(Operation::Unlink { parent, name }, options).await);
    }
    remove_directory(client, parent, found.inode, name, options).await
}

fn remove_directory<'a>(
    client: &'a Client,
    parent: InodeId,
    inode: InodeId,
    name: Vec<u8>,
    options: &'a MetaOptions,
) -> LocalBoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let mut after = Some(0);
        while let Some(from) = after {
            let (entries, next) = match page(client, inode, from, false, options).await {
                Err(error) if error.status == Status::NotFound => return Ok(()),
                page => page?,
            };
            let (directories, others): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| entry.kind == FileKind::Directory);
            for some in others.chunks(REMOVALS) {
                let unlink = |entry: &DirectoryEntry| {
                    let unlink = Operation::Unlink { parent: inode, name: entry.name.clone() };
                    async move { gone(client.meta(unlink, options).await) }
                };
                join_all(some.iter().map(unlink)).await.into_iter().collect::<Result<()>>()?;
            }
            for directory in directories {
                remove_directory(client, inode, directory.inode, directory.name, options).await?;
            }
            after = next;
        }
        gone(client.meta(Operation::RemoveDirectory { parent, name }, options).await)
    })
}

//! From paths to inodes.

use ember_client::{Client, ClientError, MetaOptions, Result};
use ember_types::file::{Attributes, FileKind};
use ember_types::{InodeId, Status};
use ember_wire::meta::{Answer, Operation};
use std::collections::VecDeque;

/// Symbolic links of one path, as in Linux.
const LINKS_MAX: usize = 40;

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}

fn wrong(path: &str, why: &str) -> ClientError {
    ClientError::new(Status::InvalidArgument, format!("{path:?} {why}"))
}

/// The inode of a path; of a symbolic link at its end, where it leads if `follow`.
pub(crate) async fn resolve(
    client: &Client,
    path: &str,
    follow: bool,
    options: &MetaOptions,
) -> Result<Attributes> {
    if !path.starts_with('/') {
        return Err(wrong(path, "is no absolute path in the file system"));
    }
    let mut left: VecDeque<Vec<u8>> = names(path.as_bytes()).collect();
    let mut at = client.attributes(InodeId::ROOT, options).await?;
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let parent = at.inode;
        let found = client.meta_entry(Operation::Lookup { parent, name }, options).await?;
        // A slash behind a name asks for the directory that a link leads to.
        let last = left.is_empty() && !path.ends_with('/');
        if found.kind != FileKind::Symlink || (last && !follow) {
            at = found;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(ClientError::new(
                Status::SymlinkLoop,
                format!("more than {LINKS_MAX} symbolic links"),
            ));
        }
        let link = client.meta(Operation::ReadSymlink { inode: found.inode }, options).await?;
        let Answer::Link(target) = link else {
            return Err(ClientError::new(Status::Internal, format!("unexpected answer {link:?}")));
        };
        if target.first() == Some(&b'/') {
            at = client.attributes(InodeId::ROOT, options).await?;
        }
        names(&target).rev().for_each(|name| left.push_front(name));
    }
    if path.ends_with('/') && at.kind != FileKind::Directory {
        return Err(ClientError::new(Status::NotDirectory, "it is no directory"));
    }
    Ok(at)
}

/// The directory of a path, and the name in it.
pub(crate) async fn parent(client: &Client, path: &str, options: &MetaOptions) -> Result<(InodeId, Vec<u8>)> {
    let (directory, name) = split(path).ok_or_else(|| wrong(path, "names no entry of a directory"))?;
    let directory = resolve(client, directory, true, options).await?;
    Ok((directory.inode, name.as_bytes().to_vec()))
}

/// A path before its last name, and that.
fn split(path: &str) -> Option<(&str, &str)> {
    let (directory, name) = path.trim_end_matches('/').rsplit_once('/')?;
    let directory = if directory.is_empty() { "/" } else { directory };
    (!matches!(name, "." | "..")).then_some((directory, name))
}

/// All directories that lead to a path, itself included, from the top down.
pub(crate) fn prefixes(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches('/');
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    ends.map(|end| &path[..end]).filter(|prefix| !prefix.is_empty() && !prefix.ends_with('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_apart() {
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/a/b/c/"), Some(("/a/b", "c")));
        assert_eq!(split("/a//c"), Some(("/a/", "c")));
        for none in ["/", "", "a", "/a/..", "/a/."] {
            assert_eq!(split(none), None, "{none}");
        }
        assert_eq!(prefixes("/a/b/c/"), ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(prefixes("/a//b"), ["/a", "/a//b"]);
        assert_eq!(prefixes("/"), [""; 0]);
        assert_eq!(names(b"/a/./../b//").collect::<Vec<_>>(), [b"a".to_vec(), b"..".to_vec(), b"b".to_vec()]);
    }
}

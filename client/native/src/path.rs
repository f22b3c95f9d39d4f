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

/// Whether a path names a directory by its end.
pub(crate) fn of_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}

/// Where a path leads.
pub(crate) enum Walked {
    /// To something.
    There(Attributes),
    /// To a name that nothing has, in a directory that is there.
    Missing { parent: InodeId, name: Vec<u8> },
}

/// Follows a path; a symbolic link at its end only if `follow`, or if a slash behind it asks for a directory.
pub(crate) async fn walk(client: &Client, path: &str, follow: bool, options: &MetaOptions) -> Result<Walked> {
    if !path.starts_with('/') {
        return Err(wrong(path, "is no absolute path in the file system"));
    }
    let mut left: VecDeque<Vec<u8>> = names(path.as_bytes()).collect();
    let mut directory = of_directory(path.as_bytes());
    let (mut at, mut last) = (InodeId::ROOT, None);
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let lookup = Operation::Lookup { parent: at, name: name.clone() };
        let found = match client.meta_entry(lookup, options).await {
            Err(error) if error.status == Status::NotFound && left.is_empty() => {
                return Ok(Walked::Missing { parent: at, name });
            }
            found => found?,
        };
        if found.kind != FileKind::Symlink || (left.is_empty() && !directory && !follow) {
            (at, last) = (found.inode, Some(found));
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            let text = format!("{path:?} leads through more than {LINKS_MAX} symbolic links");
            return Err(ClientError::new(Status::SymlinkLoop, text));
        }
        let link = client.meta(Operation::ReadSymlink { inode: found.inode }, options).await?;
        let Answer::Link(target) = link else {
            return Err(ClientError::new(Status::Internal, format!("unexpected answer {link:?}")));
        };
        directory |= left.is_empty() && of_directory(&target);
        if target.first() == Some(&b'/') {
            (at, last) = (InodeId::ROOT, None);
        }
        names(&target).rev().for_each(|name| left.push_front(name));
    }
    let last = match last {
        Some(last) => last,
        None => client.attributes(at, options).await?,
    };
    if directory && last.kind != FileKind::Directory {
        return Err(ClientError::new(Status::NotDirectory, format!("{path:?} is no directory")));
    }
    Ok(Walked::There(last))
}

/// What a path leads to; a symbolic link at its end is followed.
pub(crate) async fn resolve(client: &Client, path: &str, options: &MetaOptions) -> Result<Attributes> {
    match walk(client, path, true, options).await? {
        Walked::There(found) => Ok(found),
        Walked::Missing { name, .. } => {
            let text = format!("nothing has the name {:?}", String::from_utf8_lossy(&name));
            Err(ClientError::new(Status::NotFound, text))
        }
    }
}

/// The directory of a path, and the name in it. A slash behind the name is only for directories.
pub(crate) async fn parent(client: &Client, path: &str, options: &MetaOptions) -> Result<(InodeId, Vec<u8>)> {
    let (directory, name) = split(path).ok_or_else(|| wrong(path, "names no entry of a directory"))?;
    let parent = resolve(client, directory, options).await?.inode;
    Ok((parent, name.as_bytes().to_vec()))
}

/// The same for an entry that is there: a path with a slash behind it must lead to a directory itself, not over a link.
pub(crate) async fn entry(client: &Client, path: &str, options: &MetaOptions) -> Result<(InodeId, Vec<u8>)> {
    let (parent, name) = parent(client, path, options).await?;
    if of_directory(path.as_bytes()) {
        let lookup = Operation::Lookup { parent, name: name.clone() };
        if client.meta_entry(lookup, options).await?.kind != FileKind::Directory {
            return Err(ClientError::new(Status::NotDirectory, format!("{path:?} is no directory")));
        }
    }
    Ok((parent, name))
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
        assert!(
            of_directory(b"/a/") && of_directory(b"a/.") && !of_directory(b"/a.") && !of_directory(b"/a/..")
        );
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

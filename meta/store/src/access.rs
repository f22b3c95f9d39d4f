//! Who may do what: POSIX permission bits, set-id and sticky rules. Pure.

use crate::error::{Result, ensure};
use crate::record::Inode;
use ember_types::Status;
use ember_types::file::Credentials;

/// May read, or list.
pub const READ: u32 = 4;
/// May write, or change entries.
pub const WRITE: u32 = 2;
/// May execute, or search.
pub const EXECUTE: u32 = 1;
/// Set-user-id on execution.
pub const SET_UID: u32 = 0o4000;
/// Set-group-id on execution; of a directory, its entries inherit the group.
pub const SET_GID: u32 = 0o2000;
/// Entries of such a directory go only by their owner's or the directory's owner's hand.
pub const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;
const ANY_EXECUTE: u32 = 0o111;

/// Whether `who` is the superuser.
pub fn is_root(who: &Credentials) -> bool {
    who.uid == 0
}

/// Whether `who` is in group `gid`.
pub fn in_group(who: &Credentials, gid: u32) -> bool {
    who.gid == gid || who.groups.contains(&gid)
}

/// Whether `who` owns the inode, or is the superuser.
pub fn owns(who: &Credentials, inode: &Inode) -> bool {
    is_root(who) || who.uid == inode.uid
}

/// Whether `who` has every right in `mask`.
pub fn may(who: &Credentials, inode: &Inode, mask: u32) -> bool {
    if is_root(who) {
        return mask & EXECUTE == 0 || inode.is_directory() || inode.mode & ANY_EXECUTE != 0;
    }
    let bits = if who.uid == inode.uid {
        inode.mode >> 6
    } else if in_group(who, inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    bits & mask == mask
}

/// `PermissionDenied` unless `who` has every right in `mask`.
pub fn check(who: &Credentials, inode: &Inode, mask: u32) -> Result<()> {
    ensure(may(who, inode, mask), Status::PermissionDenied)
}

/// Whether the sticky bit of `directory` keeps `who` from removing or moving `entry`.
pub fn sticky_forbids(who: &Credentials, directory: &Inode, entry: &Inode) -> bool {
    directory.mode & STICKY != 0 && !owns(who, directory) && !owns(who, entry)
}

/// `mode` after a write or a change of length by `who`.
pub fn mode_after_write(who: &Credentials, inode: &Inode) -> u32 {
    if is_root(who) || !inode.is_file() { inode.mode } else { without_set_id(inode.mode) }
}

/// `mode` after a change of owner or group; a directory keeps its bits.
pub fn mode_after_chown(inode: &Inode, mode: u32) -> u32 {
    if inode.is_directory() { mode } else { without_set_id(mode) }
}

/// Drops set-user-id, and set-group-id where it means execution (not mandatory locking).
fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !SET_UID;
    if mode & GROUP_EXECUTE != 0 { mode & !SET_GID } else { mode }
}

/// Mode and group of a new entry of `directory` made by `who`.
pub fn inherited(who: &Credentials, directory: &Inode, mode: u32, is_directory: bool) -> (u32, u32) {
    let mode = mode & 0o7777;
    if directory.mode & SET_GID == 0 {
        return (mode, who.gid);
    }
    let gid = directory.gid;
    if is_directory {
        return (mode | SET_GID, gid);
    }
    let foreign = !is_root(who) && !in_group(who, gid);
    let strip = foreign && mode & (SET_GID | GROUP_EXECUTE) == SET_GID | GROUP_EXECUTE;
    (if strip { mode & !SET_GID } else { mode }, gid)
}

//! Directory entries and their positions.
//!
//! An entry's position is its cookie: 56 bits of a hash of the name, then a 7-bit place among the entries of
//! that hash. A listing goes by position, so a cookie stays valid whatever is added or removed around it. The
//! first entry of a hash sits at place 0, so that a lookup is one read of one key; only if place 0 says that it
//! is crowded are the others looked at.

use crate::codec::decode;
use crate::error::{Error, Result, ensure};
use crate::record::Dentry;
use crate::space::Space;
use crate::table;
use ember_kv::KeyRange;
use ember_types::file::{FileKind, NAME_MAX};
use ember_types::layout::SplitMix64;
use ember_types::{InodeId, Status};

/// The smallest cookie; 0 is the start of a listing, 1 and 2 are `.` and `..`.
pub const COOKIE_FIRST: u64 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 7;
const PLACES: u64 = 1 << PLACE_BITS;

/// An entry and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) entry: Dentry,
}

/// Position of the first entry with this name's hash: FNV-1a of 64 bits, finished by SplitMix64, its upper
/// 56 bits (never 0) above a place of 0. A format: pinned by a golden test.
pub fn position_of(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in name {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    #[cfg(test)]
    if name.starts_with(b"collide-") {
        return 77 << PLACE_BITS;
    }
    (SplitMix64(hash).next() >> 8).max(1) << PLACE_BITS
}

/// Refuses what can't be the name of a new entry.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    ensure(name.len() <= NAME_MAX, Status::NameTooLong)?;
    let valid =
        !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0);
    ensure(valid, Status::InvalidArgument)
}

impl Space<'_> {
    async fn dentry_at(&mut self, directory: InodeId, position: u64) -> Result<Option<Dentry>> {
        let key = table::dentry(directory, position);
        match self.value(&key).await? {
            Some(bytes) => Ok(Some(decode(table::DENTRY.name, &key, &bytes)?)),
            None => Ok(None),
        }
    }

    async fn crowd(&mut self, directory: InodeId, first: u64) -> Result<Vec<Place>> {
        let range = KeyRange::new(table::dentry(directory, first), table::dentry(directory, first + PLACES));
        let mut places = Vec::new();
        for (key, value) in self.scan(range, PLACES as usize).await? {
            places.push(place(&key, &value)?);
        }
        Ok(places)
    }

    /// The entry of that name.
    pub(crate) async fn find_entry(&mut self, directory: InodeId, name: &[u8]) -> Result<Option<Place>> {
        let first = position_of(name);
        let Some(entry) = self.dentry_at(directory, first).await? else { return Ok(None) };
        if entry.name == name {
            return Ok(Some(Place { position: first, entry }));
        }
        if !entry.crowded {
            return Ok(None);
        }
        let crowd = self.crowd(directory, first).await?;
        Ok(crowd.into_iter().find(|p| p.entry.name == name))
    }

    /// Adds an entry whose name is known to be absent.
    pub(crate) async fn insert_entry(
        &mut self,
        directory: InodeId,
        name: &[u8],
        inode: InodeId,
        kind: FileKind,
    ) -> Result<()> {
        let first = position_of(name);
        let new = Dentry { name: name.to_vec(), inode, kind, crowded: false };
        let Some(mut head) = self.dentry_at(directory, first).await? else {
            self.put_dentry(directory, first, &new);
            return Ok(());
        };
        if head.inode == InodeId(0) {
            self.put_dentry(directory, first, &Dentry { crowded: true, ..new });
            return Ok(());
        }
        let crowd = self.crowd(directory, first).await?;
        let taken = |at: &u64| crowd.iter().any(|p| p.position == *at);
        let Some(free) = (first..first + PLACES).find(|at| !taken(at)) else {
            return Err(Status::NoSpace.into());
        };
        self.put_dentry(directory, free, &new);
        if !head.crowded {
            head.crowded = true;
            self.put_dentry(directory, first, &head);
        }
        Ok(())
    }

    /// Lets an entry name another inode.
    pub(crate) fn redirect_entry(
        &mut self,
        directory: InodeId,
        place: &Place,
        inode: InodeId,
        kind: FileKind,
    ) {
        let entry = Dentry { inode, kind, ..place.entry.clone() };
        self.put_dentry(directory, place.position, &entry);
    }

    /// Removes an entry.
    pub(crate) async fn remove_entry(&mut self, directory: InodeId, place: &Place) -> Result<()> {
        let first = place.position & !(PLACES - 1);
        let head_leaves = place.position == first;
        if head_leaves && !place.entry.crowded {
            self.tx.clear(&table::dentry(directory, first));
            return Ok(());
        }
        let crowd = self.crowd(directory, first).await?;
        let vacant = crowd.iter().any(|p| p.position == first && p.entry.inode == InodeId(0));
        let others = crowd.iter().any(|p| p.position != first && p.position != place.position);
        if head_leaves && others {
            let kept = Dentry { name: Vec::new(), inode: InodeId(0), kind: place.entry.kind, crowded: true };
            self.put_dentry(directory, first, &kept);
            return Ok(());
        }
        self.tx.clear(&table::dentry(directory, place.position));
        if vacant && !others {
            self.tx.clear(&table::dentry(directory, first));
        }
        Ok(())
    }

    /// Whether a directory has no entry. The commit depends on it.
    pub(crate) async fn is_empty(&mut self, directory: InodeId) -> Result<bool> {
        Ok(self.scan(table::dentries(directory), 1).await?.is_empty())
    }

    /// Entries behind a cookie in listing order, and whether there may be more.
    pub(crate) async fn list(
        &mut self,
        directory: InodeId,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<Place>, bool)> {
        let mut range = table::dentries(directory);
        range.begin = table::dentry(directory, after.saturating_add(1));
        let rows = self.scan(range, limit).await?;
        let more = rows.len() >= limit;
        let mut places = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            places.push(place(&key, &value)?);
        }
        Ok((places, more))
    }
}

fn place(key: &[u8], value: &[u8]) -> Result<Place> {
    let position = table::dentry_position(key).ok_or_else(|| Error::Damaged {
        table: table::DENTRY.name,
        key: key.escape_ascii().to_string(),
        what: "the key is too short".to_owned(),
    })?;
    Ok(Place { position, entry: decode(table::DENTRY.name, key, value)? })
}

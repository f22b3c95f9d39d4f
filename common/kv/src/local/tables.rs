//! Checks the checksums of all table files before fjall opens them, so that damage is refused with the
//! file's name, and its parser never sees damaged bytes.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::files::{corrupt, exists, io};
use crate::error::KvError;

/// A block's header: magic 4, kind 1, checksum 16, length 4, uncompressed length 4, header's checksum 4.
const BLOCK_HEADER_BYTES: usize = 33;
const BLOCK_MAGIC: &[u8] = b"LSM\x03";
const VERSION_MARKER: &[u8] = b"FJL\x03";

/// What ends an archive: position and length of its table of contents, of eight bytes each.
const TRAILER_POSITIONS: usize = 16;
/// What a table of contents starts with, before its number of entries.
const TOC_MAGIC_BYTES: usize = 4;
/// Least length of an entry: position, length, length of the name.
const TOC_ENTRY_BYTES: usize = 18;

/// Checks the database in `db`: fjall's version marker, each manifest, each table.
pub(super) fn check(db: &Path) -> Result<(), KvError> {
    let marker = db.join("version");
    if read(&marker)? != VERSION_MARKER {
        return Err(corrupt(&marker, Some(0), "not the version marker of the storage engine"));
    }
    let keyspaces = db.join("keyspaces");
    for entry in std::fs::read_dir(&keyspaces).map_err(|e| io(&keyspaces, "listing", &e))? {
        let path = entry.map_err(|e| io(&keyspaces, "listing", &e))?.path();
        if path.is_file() {
            continue;
        }
        let name = path.file_name().and_then(|n| n.to_str());
        if name.and_then(|n| n.parse::<u64>().ok()).is_none() {
            return Err(corrupt(&path, None, "not a directory of the storage engine"));
        }
        if exists(&path.join("current"))? {
            check_tree(&path)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, KvError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => corrupt(path, None, "it is missing"),
        _ => io(path, "reading", &error),
    })
}

fn check_tree(tree: &Path) -> Result<(), KvError> {
    let current = tree.join("current");
    let bytes = read(&current)?;
    let mut fields = Fields(&bytes);
    let (Some(id), Some(sum), Some(0)) = (fields.u64(), fields.u128(), fields.u8()) else {
        return Err(corrupt(&current, Some(0), "not a pointer to a manifest"));
    };
    let manifest = tree.join(format!("v{id}"));
    let bytes = read(&manifest)?;
    if xxh3_128(&bytes) != sum {
        return Err(corrupt(&manifest, Some(0), "the checksum is wrong"));
    }
    let tables = tables_of(&bytes).ok_or_else(|| corrupt(&manifest, None, "no list of tables"))?;
    for (table, sum) in tables {
        check_table(&tree.join("tables").join(table.to_string()), sum)?;
    }
    Ok(())
}

/// The tables that a manifest lists, with their checksums.
pub(super) fn tables_of(manifest: &[u8]) -> Option<Vec<(u64, u128)>> {
    toc_fits(manifest)?;
    let archive = sfa::Reader::from_reader(&mut Cursor::new(manifest)).ok()?;
    let section = archive.toc().section(b"tables")?;
    let (from, len) = (usize::try_from(section.pos()).ok()?, usize::try_from(section.len()).ok()?);
    let mut fields = Fields(manifest.get(from..)?.get(..len)?);
    let mut tables = Vec::new();
    for _level in 0..fields.u8()? {
        for _run in 0..fields.u8()? {
            for _table in 0..fields.u32()? {
                let id = fields.u64()?;
                let kind = fields.u8()?;
                let sum = fields.u128()?;
                fields.u64()?;
                if kind != 0 {
                    return None;
                }
                tables.push((id, sum));
            }
        }
    }
    Some(tables)
}

/// `sfa` makes room for as many entries as a table of contents says before it reads one: they must fit.
fn toc_fits(manifest: &[u8]) -> Option<()> {
    let mut trailer = Fields(manifest.get(manifest.len().checked_sub(TRAILER_POSITIONS)?..)?);
    let from = usize::try_from(trailer.u64()?).ok()?.checked_add(TOC_MAGIC_BYTES)?;
    let entries = Fields(manifest.get(from..)?).u32()?;
    (entries as usize <= manifest.len() / TOC_ENTRY_BYTES).then_some(())
}

fn check_table(path: &Path, expected: u128) -> Result<(), KvError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(corrupt(path, None, "the manifest lists it but it is missing"));
        }
        Err(error) => return Err(io(path, "opening", &error)),
    };
    let mut sum = Xxh3::new();
    let mut block = vec![0; 1 << 18];
    loop {
        let n = file.read(&mut block).map_err(|e| io(path, "reading", &e))?;
        if n == 0 {
            break;
        }
        sum.update(&block[..n]);
    }
    if sum.digest128() == expected {
        return Ok(());
    }
    Err(corrupt(path, damaged_block(&read(path)?), "the checksum is wrong"))
}

/// Where the damage of a table begins, to the block; behind the blocks, where they end.
pub(super) fn damaged_block(bytes: &[u8]) -> Option<u64> {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        let head = rest.get(..BLOCK_HEADER_BYTES)?;
        let mut fields = Fields(head.get(5..)?);
        let (sum, len, _, head_sum) = (fields.u128()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let head_ok = head.starts_with(BLOCK_MAGIC) && xxh3_128(&head[..29]) as u32 == head_sum;
        let content = rest.get(BLOCK_HEADER_BYTES..)?.get(..len as usize);
        if !head_ok || content.is_none_or(|c| xxh3_128(c) != sum) {
            return Some(at as u64);
        }
        at += BLOCK_HEADER_BYTES + len as usize;
    }
    None
}

/// Little-endian fields from the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_table_of_contents_is_refused_before_room_is_made_for_it() {
        let mut archive = sfa::Writer::from_writer(Cursor::new(Vec::new()));
        archive.start("tables").unwrap();
        archive.write_all(&[0]).unwrap();
        let good = archive.into_inner().unwrap().into_inner();
        assert_eq!(tables_of(&good), Some(Vec::new()));
        let mut trailer = Fields(&good[good.len() - TRAILER_POSITIONS..]);
        let at = trailer.u64().unwrap() as usize + TOC_MAGIC_BYTES;
        for entries in [u32::MAX, 1 << 20, 100] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&entries.to_le_bytes());
            assert_eq!(toc_fits(&bad), None);
            assert_eq!(tables_of(&bad), None);
        }
        assert_eq!(tables_of(b""), None);
    }
}

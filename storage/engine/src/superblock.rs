//! The superblock: whose directory this is. Two copies, each replaced by a durable rename.
//!
//! ```text
//! 0   magic "EMBERTGT"   8 bytes     40  generation            u32
//! 8   format version     u32         44  reserved, 0           u32
//! 12  CRC32C of all 4096 bytes,      48  block size, 4096      u32
//!     this field taken as 0          52  number of classes, 15 u32
//! 16  cluster id         16 bytes    56  smallest slot, 4096   u32
//! 32  target id          u64         60  zeros up to 4096
//! ```

use crate::class::{BLOCK, CLASSES};
use crate::error::{EngineError, Result};
use crate::files::Files;
use crate::record::Reader;
use ember_rt::disk::Priority;
use ember_types::checksum::crc32c;
use ember_types::{ClusterId, Generation, TargetId};

const MAGIC: [u8; 8] = *b"EMBERTGT";
/// Version of the format of a target's directory.
pub const FORMAT: u32 = 2;
/// The oldest version whose files this release reads as they are.
pub(crate) const READABLE: u32 = 1;
const SIZE: usize = 4096;
/// What helps where the content is another's.
pub(crate) const OTHERS: &str = "point the storage node at its own data directory";
/// Names of the two copies.
pub(crate) const NAMES: [&str; 2] = ["superblock-a", "superblock-b"];

/// Whose content a target's directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The target.
    pub target: TargetId,
    /// Which life of the target's content (R7).
    pub generation: Generation,
}

pub(crate) fn encode(identity: &Identity) -> Vec<u8> {
    let mut out = vec![0; SIZE];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[16..32].copy_from_slice(&identity.cluster.0);
    out[32..40].copy_from_slice(&identity.target.0.to_le_bytes());
    out[40..44].copy_from_slice(&identity.generation.0.to_le_bytes());
    out[48..52].copy_from_slice(&BLOCK.to_le_bytes());
    out[52..56].copy_from_slice(&u32::from(CLASSES).to_le_bytes());
    out[56..60].copy_from_slice(&BLOCK.to_le_bytes());
    let checksum = crc32c(&out);
    out[12..16].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// A whole copy of version `from` as one of the next version, which says the same.
pub(crate) fn raised(bytes: &[u8], from: u32) -> Option<Vec<u8>> {
    version(bytes).filter(|version| *version == from)?;
    let mut out = bytes.to_vec();
    out[8..12].copy_from_slice(&(from + 1).to_le_bytes());
    out[12..16].fill(0);
    let checksum = crc32c(&out);
    out[12..16].copy_from_slice(&checksum.to_le_bytes());
    Some(out)
}

/// The format version that a whole copy names. Magic, version and checksum stand where they do in every format
/// version.
pub(crate) fn version(bytes: &[u8]) -> Option<u32> {
    (bytes.len() == SIZE && bytes.starts_with(&MAGIC)).then_some(())?;
    let mut r = Reader(&bytes[8..]);
    let (version, sum) = (r.u32().ok()?, r.u32().ok()?);
    let mut zeroed = bytes.to_vec();
    zeroed[12..16].fill(0);
    (crc32c(&zeroed) == sum).then_some(version)
}

/// Reads a copy. `file` is for errors.
pub(crate) fn decode(file: &str, bytes: &[u8], oldest: u32) -> Result<Identity> {
    let corrupt = |offset, what: &str| EngineError::corrupt(file, offset, what);
    if bytes.len() != SIZE {
        return Err(corrupt(bytes.len() as u64, "superblock is not 4096 bytes long"));
    }
    if bytes[0..8] != MAGIC {
        return Err(corrupt(0, "no superblock of a target"));
    }
    let mut zeroed = bytes.to_vec();
    zeroed[12..16].fill(0);
    if bytes[12..16] != crc32c(&zeroed).to_le_bytes() {
        return Err(corrupt(12, "superblock fails its checksum"));
    }
    let mut r = Reader(&bytes[8..]);
    let mut u32_field =
        |skip: usize| -> Result<u32> { r.bytes(skip).and_then(|_| r.u32()).map_err(|what| corrupt(0, what)) };
    let format = u32_field(0)?;
    let refused =
        |offset, what: String, remedy| EngineError::Refused { file: file.into(), offset, what, remedy };
    if !(oldest..=FORMAT).contains(&format) {
        let what = format!("format version {format}, this release knows {FORMAT}");
        let newer = "use the release that wrote it, or a later one";
        let older = "open it once with a release that still brings this version to a newer one";
        return Err(refused(8, what, if format > FORMAT { newer } else { older }));
    }
    let generation = Generation(u32_field(28)?);
    let geometry = (u32_field(4)?, u32_field(0)?, u32_field(0)?);
    if geometry != (BLOCK, u32::from(CLASSES), BLOCK) {
        let what = format!("block size, classes, smallest slot {geometry:?} are not this release's");
        return Err(refused(48, what, "use the release that wrote it"));
    }
    let mut r = Reader(&bytes[16..]);
    let cluster = ClusterId(r.array().map_err(|what| corrupt(16, what))?);
    let target = TargetId(r.u64().map_err(|what| corrupt(32, what))?);
    Ok(Identity { cluster, target, generation })
}

/// Writes both copies.
pub(crate) fn write(files: &Files, identity: &Identity) -> Result<()> {
    let bytes = encode(identity);
    NAMES.iter().try_for_each(|name| files.write_small(name, &bytes))
}

/// Reads the superblock, of format version `oldest` or later. A damaged copy is reported as the second value if the
/// other one is good.
pub(crate) fn read(files: &Files, oldest: u32) -> Result<(Identity, Vec<EngineError>)> {
    judge(files, NAMES.map(|name| files.read_small(name)), oldest)
}

/// The same through the disk's queue: for a target in service, whose thread must not wait for a disk that hangs.
pub(crate) async fn read_queued(files: &Files) -> Result<(Identity, Vec<EngineError>)> {
    let [a, b] = NAMES.map(|name| read_copy(files, name));
    let copies = [a.await, b.await];
    judge(files, copies, FORMAT)
}

async fn read_copy(files: &Files, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(file) = files.open(name)? else { return Ok(None) };
    // More than there should be, so that a longer file is noticed.
    let bytes = files.read(&file, Priority::Scrub, 0, 2 * SIZE).await;
    files.close(&file);
    bytes.map(|bytes| Some(bytes.to_vec()))
}

fn judge(
    files: &Files,
    copies: [Result<Option<Vec<u8>>>; 2],
    oldest: u32,
) -> Result<(Identity, Vec<EngineError>)> {
    let mut names = NAMES.iter();
    let copies = copies.map(|bytes| {
        let name = names.next().copied().unwrap_or_default();
        match bytes? {
            Some(bytes) => decode(&files.path(name), &bytes, oldest),
            None => Err(EngineError::Refused {
                file: files.path(name),
                offset: 0,
                what: "no superblock".into(),
                remedy: "mount the target's disk; if it is lost, run `ember target replace`",
            }),
        }
    });
    match copies {
        [Ok(a), Ok(b)] if a == b => Ok((a, Vec::new())),
        [Ok(a), Ok(b)] if a.cluster == b.cluster && a.target == b.target => {
            // Torn between the two renames of a change of generation: the later one counts.
            let newest = if a.generation > b.generation { a } else { b };
            Ok((newest, vec![EngineError::corrupt(files.path(NAMES[1]), 40, "copies differ in generation")]))
        }
        [Ok(_), Ok(_)] => Err(EngineError::corrupt(files.path(NAMES[1]), 16, "superblock copies differ")),
        [Ok(identity), Err(damage)] | [Err(damage), Ok(identity)] => Ok((identity, vec![damage])),
        [Err(a), Err(_)] => Err(a),
    }
}

/// Refuses the directory of another cluster or target.
pub(crate) fn expect(files: &Files, found: &Identity, cluster: ClusterId, target: TargetId) -> Result<()> {
    let refuse =
        |offset, what| EngineError::Refused { file: files.path(NAMES[0]), offset, what, remedy: OTHERS };
    if found.cluster != cluster {
        return Err(refuse(16, format!("belongs to cluster {}, not {cluster}", found.cluster)));
    }
    if found.target != target {
        return Err(refuse(32, format!("is target {}, not {target}", found.target)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let identity =
            Identity { cluster: ClusterId([3; 16]), target: TargetId(8), generation: Generation(2) };
        let good = encode(&identity);
        assert_eq!(decode("s", &good, FORMAT).unwrap(), identity);
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1 << (at % 8);
            assert!(matches!(decode("s", &bent, FORMAT), Err(EngineError::Corrupt { .. })), "byte {at}");
            assert!(decode("s", &good[..at], FORMAT).is_err());
        }
        let mut newer = good;
        newer[8] = 3;
        newer[12..16].fill(0);
        let checksum = crc32c(&newer);
        newer[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(decode("s", &newer, FORMAT), Err(EngineError::Refused { offset: 8, .. })));
    }
}

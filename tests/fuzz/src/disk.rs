//! What lies on a disk: the chunk engine's files and the key-value store's.

use ember_engine::decode::{self as engine, Place, Records};
use ember_kv::local::decode as kv;
use ember_types::checksum::crc32c;

/// Where the frames of the corpus belong.
pub(crate) const PLACE: Place = Place { target: 7, kind: 1, file: 3 };
const SUPERBLOCK: usize = 4096;

/// `bytes` with the little-endian CRC32C of `from..` put at `at`, where it counts as `blank`.
fn sealed(bytes: &[u8], at: usize, from: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(place) = out.get_mut(at..at + 4) {
        place.fill(0);
        let sum = crc32c(&out[from..]);
        out[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
    out
}

/// A superblock, as it is and made long enough with a right checksum.
pub(crate) fn superblock(input: &[u8]) {
    let mut long = input.to_vec();
    long.resize(SUPERBLOCK, 0);
    for bytes in [input, &sealed(&long, 12, 0)] {
        match engine::superblock(bytes) {
            Ok(identity) => {
                let again = engine::superblock(&engine::superblock_bytes(&identity));
                assert_eq!(again.ok(), Some(identity));
            }
            Err(error) => assert!(error.to_string().starts_with("superblock, offset"), "{error}"),
        }
    }
}

fn use_records(records: &Records) {
    let again = Records::parse(&records.bytes());
    assert_eq!(again.as_ref(), Ok(records));
    if let Ok(checkpoint) = records.replay() {
        // What a checkpoint would hold gives the same state once more.
        let read = Records::parse(&checkpoint.bytes());
        assert_eq!(read.as_ref(), Ok(&checkpoint));
        assert_eq!(checkpoint.replay().map(|third| third.count()), Ok(checkpoint.count()));
    }
}

/// Records of log and checkpoint, one after the other, and their replay.
pub(crate) fn records(input: &[u8]) {
    if let Ok(records) = Records::parse(input) {
        use_records(&records);
    }
}

/// A frame, as it is and made whole for its place.
pub(crate) fn frame(input: &[u8]) {
    let mut whole = input.to_vec();
    whole.resize(input.len().max(48).next_multiple_of(4096), 0);
    whole[..4].copy_from_slice(b"EFRM");
    whole[24..32].copy_from_slice(&PLACE.file.to_le_bytes());
    whole[32..40].copy_from_slice(&PLACE.target.to_le_bytes());
    whole[40..44].copy_from_slice(&PLACE.kind.to_le_bytes());
    let said = whole[8..12].iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte));
    if said.saturating_add(48) <= whole.len() {
        whole.truncate((said + 48).next_multiple_of(4096));
    }
    let sum = crc32c(&whole[8..]);
    whole[4..8].copy_from_slice(&sum.to_le_bytes());
    for bytes in [input, &whole] {
        match engine::frame(bytes, PLACE) {
            Some(Ok((sequence, records))) => {
                let again = engine::frame(&records.frame(PLACE, sequence), PLACE);
                assert_eq!(again, Some(Ok((sequence, records.clone()))));
                use_records(&records);
            }
            Some(Err((offset, what))) => assert!(offset < bytes.len(), "{offset}: {what}"),
            None => {}
        }
    }
}

/// A checksum page, as it is and made whole for its place.
pub(crate) fn sums(input: &[u8]) {
    let mut whole = input.to_vec();
    whole.resize(4096, 0);
    whole[..4].copy_from_slice(b"ESUM");
    whole[8..16].copy_from_slice(&PLACE.target.to_le_bytes());
    whole[16..24].copy_from_slice(&3_u64.to_le_bytes());
    whole[24..28].copy_from_slice(&8_u32.to_le_bytes());
    let sum = crc32c(&whole[8..]);
    whole[4..8].copy_from_slice(&sum.to_le_bytes());
    for bytes in [input, &whole] {
        let page = engine::page(bytes, PLACE.target, 8, 3);
        if let Ok((sequence, page)) = page {
            let again = engine::page(&page.bytes(PLACE.target, 8, 3, sequence), PLACE.target, 8, 3);
            assert_eq!(again, Ok((sequence, page)));
        }
    }
}

/// A journal of the key-value store.
pub(crate) fn journal(input: &[u8]) {
    let _ = kv::journal(input).map_err(|error| error.to_string());
}

/// The key-value store's small files and the tables of its sorted store. Input: which u8, bytes.
pub(crate) fn kv_files(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which % 5 {
        0 => {
            let end = bytes.len().saturating_sub(4);
            let mut right = bytes.to_vec();
            right[end..].copy_from_slice(&crc32c(&bytes[..end]).to_le_bytes()[..bytes.len() - end]);
            for bytes in [bytes, &right] {
                if let Ok(cluster) = kv::format(bytes) {
                    assert_eq!(kv::format(&kv::format_bytes(cluster)).ok(), Some(cluster));
                }
            }
        }
        1 => {
            if let Some(version) = kv::mark(bytes) {
                assert_eq!(kv::mark(&kv::mark_bytes(version)), Some(version));
            }
        }
        2 => drop(kv::manifest(bytes)),
        3 => {
            let damage = kv::table_damage(bytes);
            assert!(damage.is_none_or(|at| at <= bytes.len() as u64));
        }
        _ => drop(kv::versions(bytes)),
    }
}

/// Makes the checksums of an export right, as far as its lengths make sense.
fn sealed_export(input: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    let seal = |out: &mut [u8], from: usize, to: usize| {
        if let Some(content) = out.get(from..to) {
            let sum = crc32c(content).to_le_bytes();
            if let Some(place) = out.get_mut(to..to + 4) {
                place.copy_from_slice(&sum);
            }
        }
    };
    seal(&mut out, 0, 36);
    let mut at = 40;
    while let Some(head) = out.get(at..at + 9) {
        let number = |from: usize| {
            head[from..from + 4].iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte))
        };
        let content = if head[0] == 1 { 9 + number(1).saturating_add(number(5)) } else { 9 };
        let end = at.saturating_add(content);
        if end > out.len() {
            break;
        }
        seal(&mut out, at, end);
        at = end + 4;
    }
    out
}

/// An export of the key-value store, as it is and with right checksums.
pub(crate) fn export(input: &[u8]) {
    for bytes in [input, &sealed_export(input)] {
        let Ok((cluster, version, pairs)) = kv::export(bytes) else { continue };
        let again = kv::export(&kv::export_bytes(cluster, version, &pairs));
        assert_eq!(again.ok(), Some((cluster, version, pairs)));
    }
}

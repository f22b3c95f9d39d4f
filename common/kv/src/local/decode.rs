//! The decoders of a store's files, as functions of bytes alone: for fuzzing (`tests/fuzz`). Opening a store
//! uses the same code behind [`super::LocalKv::open`].

use super::{dump, files, journal, store, tables};
use crate::api::KeyValue;
use crate::error::KvError;
use ember_types::ClusterId;
use std::path::Path;

/// The version of the last batch in the bytes of one journal, if there is a batch; `Corrupt` if anything but
/// zeros follows it.
pub fn journal(bytes: &[u8]) -> Result<Option<u64>, KvError> {
    journal::last_version(bytes)
}

/// Whose store it is, from the bytes of its file `format`.
pub fn format(bytes: &[u8]) -> Result<ClusterId, KvError> {
    files::decode_format(Path::new("format"), bytes)
}

/// The bytes of the file `format`.
pub fn format_bytes(cluster: ClusterId) -> Vec<u8> {
    files::encode_format(cluster)
}

/// The durable version in one copy of the mark; `None` if the copy is damaged.
pub fn mark(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().and_then(files::decode_mark)
}

/// The bytes of one copy of the mark.
pub fn mark_bytes(version: u64) -> Vec<u8> {
    files::encode_mark(version).to_vec()
}

/// Version and version before, from what each batch sets.
pub fn versions(bytes: &[u8]) -> Option<(u64, u64)> {
    store::decode_versions(bytes)
}

/// The tables that a manifest of the sorted store lists, with their checksums.
pub fn manifest(bytes: &[u8]) -> Option<Vec<(u64, u128)>> {
    tables::tables_of(bytes)
}

/// Where the damage of a table begins, in bytes; `None` if it is whole or ends in the middle of a block.
pub fn table_damage(bytes: &[u8]) -> Option<u64> {
    tables::damaged_block(bytes)
}

/// Cluster, version and pairs of an export.
pub fn export(bytes: &[u8]) -> Result<(ClusterId, u64, Vec<KeyValue>), KvError> {
    dump::decode_export(bytes)
}

/// The bytes of an export; keys must be in order.
pub fn export_bytes(cluster: ClusterId, version: u64, pairs: &[KeyValue]) -> Vec<u8> {
    dump::encode_export(cluster, version, pairs)
}

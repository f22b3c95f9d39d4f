//! What is stored in the key-value store, requests of the kernel, and configuration files.

use ember_fuse_kernel::init::{InitOptions, negotiate};
use ember_fuse_kernel::{Op, Request};
use ember_meta_store::{record as meta_record, table};
use ember_mgmtd::record as mgmtd_record;
use minicbor::{Decode, Encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

type Reads = fn(&[u8]);

/// Gives the rest of the input to the reader that its first byte names.
fn choose(input: &[u8], readers: &[Reads]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    readers[usize::from(which) % readers.len()](bytes);
}

fn mgmtd_value<T>(bytes: &[u8])
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug,
{
    let Ok(value) = mgmtd_record::decode::<T>(b"key", bytes) else { return };
    let again = mgmtd_record::encode(&value);
    assert_eq!(mgmtd_record::decode::<T>(b"key", &again).ok().as_ref(), Some(&value));
}

/// Records of mgmtd. Input: which u8, value.
pub(crate) fn mgmtd(input: &[u8]) {
    choose(
        input,
        &[
            mgmtd_value::<mgmtd_record::Primary>,
            mgmtd_value::<mgmtd_record::Beat>,
            mgmtd_value::<mgmtd_record::Routing>,
            mgmtd_value::<mgmtd_record::Node>,
            mgmtd_value::<ember_types::TargetInfo>,
            mgmtd_value::<ember_types::Chain>,
            mgmtd_value::<ember_types::ChainTable>,
            mgmtd_value::<mgmtd_record::Client>,
            |key| {
                if let Some(client) = mgmtd_record::client_of_key(key) {
                    assert_eq!(mgmtd_record::client_key(client), key);
                }
            },
        ],
    );
}

fn meta_value<T>(bytes: &[u8]) -> Option<T>
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug,
{
    let value = meta_record::decode::<T>(table::INODE.name, b"key", bytes).ok()?;
    let again = meta_record::encode(&value);
    assert_eq!(meta_record::decode::<T>(table::INODE.name, b"key", &again).ok().as_ref(), Some(&value));
    Some(value)
}

fn meta_keys(key: &[u8]) {
    if let Some((inode, session)) = table::session_ids(key) {
        assert!(key.starts_with(&table::session(inode, session)));
    }
    if let Some((due, inode, data)) = table::garbage_ids(key) {
        assert!(key.starts_with(&table::garbage(due, inode, data)));
        assert!(!table::garbage_due(due).is_empty());
    }
    if let Some(inode) = table::intent_inode(key) {
        assert!(key.starts_with(&table::intent(inode)));
    }
    let _ = table::dentry_position(key);
}

/// A layout that was decoded must be one that can be used.
fn use_layout(layout: Option<ember_types::Layout>) {
    let Some(layout) = layout else { return };
    assert!(layout.is_valid(), "{layout:?}");
    let table = [ember_types::ChainId(1), ember_types::ChainId(2)];
    assert!(!layout.chains(&table).is_empty());
    assert!(layout.pieces(ember_types::DataId(1), u64::MAX - 5, 9).count() < 3);
}

/// Records of meta. Input: which u8, value or key.
pub(crate) fn meta(input: &[u8]) {
    choose(
        input,
        &[
            |bytes| use_layout(meta_value::<meta_record::Inode>(bytes).and_then(|inode| inode.layout)),
            |bytes| used(meta_value::<meta_record::DirTimes>(bytes)),
            |bytes| used(meta_value::<meta_record::Dentry>(bytes)),
            |bytes| used(meta_value::<meta_record::Session>(bytes)),
            |bytes| use_layout(meta_value::<meta_record::Garbage>(bytes).and_then(|g| g.layout)),
            |bytes| use_layout(meta_value::<meta_record::Intent>(bytes).map(|intent| intent.layout)),
            |bytes| used(meta_value::<meta_record::RequestRecord>(bytes)),
            meta_keys,
        ],
    );
}

/// A request of the kernel, with the length in its header as it is and made right; in one piece and in parts.
pub(crate) fn fuse(input: &[u8]) {
    let mut sized = input.to_vec();
    if let Some(length) = sized.first_chunk_mut::<4>() {
        *length = (input.len() as u32).to_ne_bytes();
    }
    for message in [input, &sized] {
        match Request::parse(message) {
            Ok(request) => use_request(&request, message.len()),
            Err(error) => used((error.wants_reply(), error.to_string())),
        }
    }
    let header = size_of::<ember_fuse_kernel::abi::InHeader>();
    if let (Ok(request), Some((&cut, rest))) =
        (Request::parse(&sized), input.get(header..).and_then(|r| r.split_first()))
    {
        let (fixed, payload) = rest.split_at(usize::from(cut).min(rest.len()));
        if let Ok(request) = Request::from_parts(request.header, fixed, payload) {
            use_request(&request, message_bytes(fixed, payload));
        }
    }
}

fn message_bytes(fixed: &[u8], payload: &[u8]) -> usize {
    fixed.len() + payload.len()
}

fn use_request(request: &Request<'_>, bytes: usize) {
    let _ = (request.wants_reply(), request.is_resend());
    assert!(request.supplementary_groups().count() * 4 <= bytes);
    match &request.op {
        Op::BatchForget(nodes) => assert_eq!(nodes.clone().count(), nodes.len()),
        Op::Init(offer) => used(negotiate(offer, &InitOptions::default())),
        Op::Write { args, data } => assert_eq!(args.size as usize, data.len()),
        Op::Lookup { name } | Op::Unlink { name } | Op::Mkdir { name, .. } => {
            assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'/'));
        }
        _ => {}
    }
}

fn settings<T: DeserializeOwned + Serialize + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = toml::from_str(text).ok()?;
    if let Ok(again) = toml::to_string(&value) {
        assert_eq!(toml::from_str::<T>(&again).ok().as_ref(), Some(&value), "written as {again}");
    }
    Some(value)
}

/// Configuration. Input: which section u8, TOML.
pub(crate) fn config(input: &[u8]) {
    choose(
        input,
        &[
            |bytes| {
                let config = text(bytes).and_then(settings::<ember_mgmtd::Config>);
                if let Some(config) = config {
                    let _ = (config.validate(), config.timing());
                }
            },
            |bytes| used(text(bytes).and_then(settings::<ember_meta::MetaConfig>)),
            |bytes| used(text(bytes).and_then(settings::<ember_storage::StorageConfig>)),
            |bytes| used(text(bytes).and_then(settings::<ember_client::ClientConfig>)),
            |bytes| used(text(bytes).and_then(settings::<ember_fuse::FuseConfig>)),
            |bytes| used(text(bytes).and_then(settings::<ember_daemon::LogConfig>)),
            |bytes| used(text(bytes).map(str::parse::<ember_rt::Addr>)),
        ],
    );
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// That it could be read without a panic is all that is asked of it.
fn used<T>(_: T) {}

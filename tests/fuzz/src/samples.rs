//! Real encodings for the corpus.

use crate::net::{caller_says, listener_says};
use crate::wire::input;
use ember_types::file::{Attributes, Credentials, FileKind};
use ember_types::*;
use ember_wire::codec::{Body, Empty};
use ember_wire::method::{self, Rpc};
use ember_wire::{encode, handshake, header::Header, meta, mgmtd, ranks, storage};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use zerocopy::IntoBytes;

mod disk;
mod kernel;

/// Inputs of a target. An error if a file that it takes them from can't be read.
pub fn of(target: &str) -> io::Result<Vec<Vec<u8>>> {
    Ok(match target {
        "wire-header" => headers(),
        "wire-handshake" => handshakes(),
        "wire-mgmtd" => mgmtd_messages(),
        "wire-meta" => meta_messages(),
        "wire-storage" => storage_messages(),
        "wire-ranks" => parts(),
        "net-frames" => frames(),
        "net-server" => vec![caller_says(&encode(&read())), Vec::new()],
        "net-client" => vec![listener_says(&encode(&space())), Vec::new()],
        "engine-superblock" => disk::superblocks(),
        "engine-sums" => disk::sums(),
        "engine-records" => disk::records(),
        "engine-frame" => disk::frames(),
        "engine-directory" => crate::directory::samples(),
        "kv-journal" => disk::kv_store()?.journals,
        "kv-files" => disk::kv_store()?.files,
        "kv-export" => disk::exports(),
        "meta-records" => meta_records()?,
        "mgmtd-records" => mgmtd_records()?,
        "fuse-requests" => kernel::requests(),
        "config" => configs(),
        _ => Vec::new(),
    })
}

fn request<R: Rpc>(body: &R::Request) -> Vec<u8> {
    input::<R>(false, &encode(body))
}

fn response<R: Rpc>(body: &R::Response) -> Vec<u8> {
    input::<R>(true, &encode(body))
}

fn headers() -> Vec<Vec<u8>> {
    let mut header = Header::empty();
    header.method = 300.into();
    header.request_id = 7.into();
    header.deadline_ms = 900.into();
    header.body_len = 120.into();
    let request = header.seal().as_bytes().to_vec();
    header.flags = 1.into();
    header.payload_len = 4096.into();
    vec![request, header.seal().as_bytes().to_vec()]
}

fn handshakes() -> Vec<Vec<u8>> {
    let cluster = ClusterId([9; 16]);
    let hello = handshake::Hello {
        cluster,
        protocol_min: 1,
        protocol_max: 2,
        features: 3,
        caller: handshake::Caller::Node(NodeId(4)),
        user: "root".into(),
        proof: [8; 32],
        lane: 1,
    };
    let welcome = handshake::Welcome {
        status: Status::HandshakeRefused,
        text: "no".into(),
        protocol: 1,
        features: 0,
        node: NodeId(2),
    };
    let challenge = handshake::Challenge { nonce: [1; 32], protocol_min: 1, protocol_max: 1, cluster };
    vec![
        request::<method::Greet>(&challenge),
        response::<method::Greet>(&hello),
        request::<method::Admit>(&welcome),
        request::<method::Ping>(&Empty {}),
    ]
}

fn parts() -> Vec<Vec<u8>> {
    let part = ranks::PartRequest {
        channel: 1,
        number: 7,
        total: 40 << 20,
        offset: 16 << 20,
        checksum: 0x0f0f_1234,
    };
    vec![request::<method::SendPart>(&part), response::<method::SendPart>(&Empty {})]
}

fn chain() -> Chain {
    let member = |id, state| ChainTarget { target: TargetId(id), generation: Generation(1), state };
    Chain {
        id: ChainId(1),
        version: ChainVersion(3),
        targets: vec![member(1, PublicState::Serving), member(2, PublicState::Syncing)],
        in_use: true,
        last_in_use: ChainVersion(2),
        in_use_members: vec![member(1, PublicState::Serving)],
    }
}

fn routing() -> RoutingDelta {
    let node = NodeInfo {
        id: NodeId(5),
        kind: NodeKind::Storage,
        addresses: vec!["127.0.0.1:7".into()],
        boot: BootId(6),
        alive: true,
        tags: BTreeMap::from([("rack".into(), "r1".into())]),
    };
    let target = TargetInfo {
        id: TargetId(1),
        node: NodeId(5),
        disk: 0,
        generation: Generation(1),
        chain: ChainId(1),
        created: true,
        lane: 0,
    };
    let table = ChainTable { id: ChainTableId(1), version: ChainTableVersion(1), chains: vec![ChainId(1)] };
    let full = RoutingInfo {
        nodes: BTreeMap::from([(node.id, node.clone())]),
        targets: BTreeMap::from([(target.id, target.clone())]),
        chains: BTreeMap::from([(ChainId(1), chain())]),
        ..RoutingInfo::default()
    };
    RoutingDelta {
        base: RoutingVersion { term: 1, counter: 2 },
        version: RoutingVersion { term: 1, counter: 3 },
        full: Some(full),
        nodes: vec![node],
        targets: vec![target],
        chains: vec![chain()],
        tables: vec![table],
        revocation_epoch: 4,
        ended_clients: vec![ClientId([4; 16])],
    }
}

fn mgmtd_messages() -> Vec<Vec<u8>> {
    let register = mgmtd::RegisterRequest {
        node: NodeId(5),
        kind: NodeKind::Meta,
        boot: BootId(6),
        addresses: vec!["[::1]:7".into(), "unix:/run/x".into()],
        tags: BTreeMap::from([("host".into(), "h".into())]),
        disks: 2,
        pid: 77,
        data_dir: "/data".into(),
        release: "0.1.0".into(),
    };
    let report = mgmtd::TargetReport {
        target: TargetId(1),
        generation: Generation(1),
        state: LocalState::UpToDate,
        chain_version: ChainVersion(3),
        served_version: ChainVersion(3),
        used_bytes: 1,
        free_bytes: 2,
        sync: Some(mgmtd::SyncProgress {
            chunks_done: 1,
            chunks_total: 2,
            bytes_sent: 3,
            bytes_per_s: 4,
            eta_s: Some(5),
        }),
        trouble: "limps".into(),
        capacity_bytes: 3,
        wants_replacement: false,
        stopped: true,
        no_room: false,
        slow: false,
        scrub: Some(mgmtd::ScrubProgress { running: true, found: 2, ..mgmtd::ScrubProgress::default() }),
    };
    let beat = mgmtd::HeartbeatRequest {
        node: NodeId(5),
        boot: BootId(6),
        sequence: 9,
        targets: vec![report],
        routing: RoutingVersion { term: 1, counter: 2 },
        warnings: vec!["no O_DIRECT".into()],
    };
    let routing = mgmtd::RoutingResponse {
        status: Status::Ok,
        delta: Some(routing()),
        primary: vec!["127.0.0.1:1".into()],
        cluster_time: ClusterTime(12),
    };
    let note = mgmtd::NoteInUseResponse { status: Status::StaleRouting, chain: Some(chain()) };
    let wait = mgmtd::RoutingRequest { have: RoutingVersion::default(), wait_ms: Millis(500) };
    let clients =
        mgmtd::ListClientsResponse { status: Status::Ok, clients: vec![ClientId([1; 16])], complete: true };
    vec![
        request::<method::RegisterNode>(&register),
        request::<method::Heartbeat>(&beat),
        request::<method::GetRouting>(&wait),
        response::<method::GetRouting>(&routing),
        response::<method::NoteInUse>(&note),
        response::<method::ListClients>(&clients),
    ]
}

fn attributes() -> Attributes {
    let time = UnixTime { seconds: -3, nanos: 7 };
    Attributes {
        inode: InodeId(9),
        kind: FileKind::File,
        mode: 0o644,
        links: 1,
        uid: 1,
        gid: 2,
        length: 5000,
        accessed: time,
        modified: time,
        changed: time,
        device: 0,
        layout: Layout::new(ChainTableId(1), ChainTableVersion(1), 1 << 20, 4, 0, 5),
        data: DataId(77),
        truncate_version: 1,
        content_version: 2,
        truncating_to: Some(3),
    }
}

fn meta_messages() -> Vec<Vec<u8>> {
    use meta::Operation;
    let session = SessionId([6; 16]);
    let flags = meta::OpenFlags { read: true, write: true, truncate: false, execute: false };
    let operations = [
        Operation::Lookup { parent: InodeId(1), name: b"name".to_vec() },
        Operation::Create {
            parent: InodeId(1),
            name: b"new".to_vec(),
            mode: 0o644,
            exclusive: true,
            flags,
            session,
        },
        Operation::SetAttributes {
            inode: InodeId(9),
            set: meta::SetAttributes {
                mode: Some(0o600),
                length: Some(7),
                accessed: Some(meta::SetTime::Now),
                modified: Some(meta::SetTime::At(UnixTime::default())),
                session: Some(session),
                ..meta::SetAttributes::default()
            },
        },
        Operation::Rename {
            parent: InodeId(1),
            name: b"a".to_vec(),
            new_parent: InodeId(2),
            new_name: b"b".to_vec(),
            no_replace: false,
            exchange: true,
        },
        Operation::Renew { opens: vec![(InodeId(9), session)], writers: vec![session] },
        Operation::StatFs,
    ];
    let credentials = Credentials { uid: 1, gid: 2, groups: vec![3, 4] };
    let mut all: Vec<Vec<u8>> = operations
        .into_iter()
        .map(|operation| {
            request::<method::MetaOp>(&meta::Request {
                client: ClientId([5; 16]),
                credentials: credentials.clone(),
                sequence: 3,
                answered: 2,
                operation,
                repeat: false,
            })
        })
        .collect();
    let opened = meta::Answer::Opened {
        attributes: attributes(),
        capability: Capability::NONE,
        created: true,
        cluster_time: ClusterTime(4),
        capability_ms: Millis(5),
    };
    let entry = meta::DirectoryEntry {
        name: b"x".to_vec(),
        inode: InodeId(9),
        kind: FileKind::Symlink,
        cookie: 256,
        attributes: Some(attributes()),
    };
    for result in [opened, meta::Answer::Entries { entries: vec![entry], more: true }] {
        let answer = meta::Response { status: Status::Ok, text: "t".into(), result };
        all.push(response::<method::MetaOp>(&answer));
    }
    all
}

fn address() -> storage::Address {
    storage::Address {
        chain: ChainId(1),
        chain_version: ChainVersion(3),
        target: TargetId(1),
        generation: Generation(1),
    }
}

fn version(number: u64) -> ChunkVersion {
    ChunkVersion { number, chain_version: ChainVersion(3), attempt: 1 }
}

fn tag() -> WriterTag {
    WriterTag { client: ClientId([5; 16]), channel: ChannelId(2), sequence: Sequence(8) }
}

fn read() -> storage::ReadRequest {
    storage::ReadRequest {
        to: address(),
        chunk: ChunkId::new(DataId(5), 6),
        offset: 1,
        length: 5000,
        flags: 0,
        capability: Capability::NONE,
    }
}

fn space() -> storage::SpaceResponse {
    let disk = storage::DiskSpace { disk: 0, file_system: 1, total: 9, available: 5, used: 4 };
    storage::SpaceResponse { status: Status::Ok, disks: vec![disk] }
}

fn writer() -> WriterRecord {
    WriterRecord { tag: tag(), version: version(7), length: 9, status: Status::Ok }
}

fn forward(chunk: ChunkId) -> storage::ForwardRequest {
    storage::ForwardRequest {
        to: address(),
        from: TargetId(2),
        chunk,
        kind: storage::UpdateKind::Whole,
        chunk_size: 1 << 20,
        base: version(7),
        version: version(8),
        length: 5000,
        checksum: 1,
        tag: tag(),
        checksums: vec![4, 5],
        writers: vec![writer()],
        epoch: 1,
        early: true,
    }
}

fn storage_messages() -> Vec<Vec<u8>> {
    let chunk = ChunkId::new(DataId(5), 6);
    let answer = storage::ReadResponse {
        status: Status::Ok,
        chunk_length: 5000,
        version: version(8),
        chain_version: ChainVersion(3),
        checksums: vec![1, 2],
    };
    let update = storage::UpdateRequest {
        to: address(),
        chunk,
        kind: storage::UpdateKind::Write { offset: 4096 },
        chunk_size: 1 << 20,
        tag: tag(),
        capability: Capability::NONE,
        checksums: vec![3],
    };
    let writer = writer();
    let forward = forward(chunk);
    let state = storage::ChunkSummary {
        chunk,
        committed: version(7),
        removed: false,
        length: 9,
        checksum: 1,
        pending: version(8),
        lost: false,
    };
    let list = storage::ListResponse {
        status: Status::Ok,
        chain_version: ChainVersion(3),
        chunks: vec![state.clone()],
        more: true,
        total: 5,
    };
    let sync = storage::SyncRequest {
        to: address(),
        from: TargetId(2),
        state,
        writers: vec![writer],
        checksums: vec![6],
        done: false,
        epoch: 2,
    };
    vec![
        request::<method::ReadChunk>(&read()),
        response::<method::ReadChunk>(&answer),
        request::<method::UpdateChunk>(&update),
        request::<method::ForwardChunk>(&forward),
        response::<method::ListChunks>(&list),
        request::<method::SyncChunk>(&sync),
        request::<method::ConfirmChain>(&storage::ConfirmChainRequest { to: address(), chain: chain() }),
        response::<method::StorageSpace>(&space()),
    ]
}

fn frames() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for (seed, stream) in [(0, caller_says(&encode(&read()))), (3, listener_says(&encode(&space())))] {
        inputs.push([&[seed], &stream[..]].concat());
    }
    // A body long enough to be lent.
    let mut long = Vec::new();
    storage::ReadResponse {
        status: Status::Ok,
        chunk_length: 1,
        version: version(1),
        chain_version: ChainVersion(1),
        checksums: vec![9; 2100],
    }
    .write(&mut long);
    inputs.push([&[2], &listener_says(&long)[..]].concat());
    inputs
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..text.len()).step_by(2).filter_map(digit).collect()
}

/// The crate's fixtures, each under its number.
fn meta_records() -> io::Result<Vec<Vec<u8>>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../meta/store/fixtures/records.txt");
    let names = ["inode", "times", "dentry", "session", "garbage", "intent", "request"];
    let text = std::fs::read_to_string(path)?;
    let mut inputs = Vec::new();
    for line in text.lines() {
        let Some((name, hex)) = line.split_once(' ') else { continue };
        if let Some(which) = names.iter().position(|known| *known == name) {
            inputs.push([vec![which as u8], unhex(hex)].concat());
        }
    }
    let (inode, session) = (InodeId(0x0102), SessionId([0xcc; 16]));
    for key in [
        ember_meta_store::table::session(inode, session),
        ember_meta_store::table::garbage(ClusterTime(5), inode, DataId(6)),
        ember_meta_store::table::dentry(inode, 7),
    ] {
        inputs.push([vec![7], key].concat());
    }
    Ok(inputs)
}

fn mgmtd_records() -> io::Result<Vec<Vec<u8>>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mgmtd/tests/fixtures");
    let names =
        ["primary", "beat", "routing", "node", "target", "chain", "table", "client-live", "client-ended"];
    let mut inputs = Vec::new();
    for (which, name) in names.iter().enumerate() {
        let text = std::fs::read_to_string(dir.join(name))?;
        let lines: Vec<Vec<u8>> = text.lines().map(unhex).collect();
        inputs.extend(lines.get(1).map(|value| [vec![which.min(7) as u8], value.clone()].concat()));
        if *name == "client-live" {
            inputs.extend(lines.first().map(|key| [vec![8], key.clone()].concat()));
        }
    }
    Ok(inputs)
}

/// The defaults of every section, without their comments.
fn configs() -> Vec<Vec<u8>> {
    let sections = [
        ember_daemon::show_defaults::<ember_mgmtd::Config>("x"),
        ember_daemon::show_defaults::<ember_meta::MetaConfig>("x"),
        ember_daemon::show_defaults::<ember_storage::StorageConfig>("x"),
        ember_daemon::show_defaults::<ember_client::ClientConfig>("x"),
        ember_daemon::show_defaults::<ember_fuse::FuseConfig>("x"),
        ember_daemon::show_defaults::<ember_daemon::LogConfig>("x"),
    ];
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    for (which, section) in sections.iter().enumerate() {
        let lines = section.lines().filter(|line| !line.starts_with('#') && !line.starts_with('['));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        inputs.push([&[which as u8], text.as_bytes()].concat());
    }
    inputs.extend(["[::1]:7000", "127.0.0.1:1", "unix:/run/x"].map(|a| [&[6], a.as_bytes()].concat()));
    inputs
}

//! Formats for ever: directories that earlier releases wrote are read by every later one; a newer
//! version is refused; an older one is brought up to date before recovery, all or nothing.
#![allow(missing_docs)]

mod support;

use ember_engine::decode::{superblock, superblock_bytes};
use ember_engine::migrate::{Change, MIGRATIONS, Migration, OldTarget};
use ember_engine::{ChunkState, Engine, EngineError, FORMAT, Prepare, Update, Which, fsck};
use ember_rt::SharedBuf;
use ember_types::checksum::crc32c;
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Sequence, Status, WriterTag, block_checksums,
};
use std::path::PathBuf;
use support::disk::DiskState;
use support::{DIR, FOREGROUND, IDENTITY, World, chunk, config, version};

/// Bytes of a file that are kept together; pieces of zeros are left out.
const PIECE: usize = 64;
const COPIES: [&str; 2] = ["superblock-a", "superblock-b"];
const CLIENT: ClientId = ClientId([0xc1; 16]);

type Tree = Vec<(String, Vec<u8>)>;

fn fixture(version: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{version}.bin"))
}

/// Per file: length of the name u16, name, length u64, number of pieces u32, then number u32 and bytes of each
/// piece that is not zeros. All little-endian.
fn pack(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in tree {
        let pieces: Vec<(usize, &[u8])> =
            bytes.chunks(PIECE).enumerate().filter(|(_, piece)| piece.iter().any(|b| *b != 0)).collect();
        out.extend((name.len() as u16).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend((pieces.len() as u32).to_le_bytes());
        for (number, piece) in pieces {
            out.extend((number as u32).to_le_bytes());
            out.extend(piece);
            out.resize(out.len() + PIECE - piece.len(), 0);
        }
    }
    out
}

fn unpack(mut bytes: &[u8]) -> Tree {
    fn number<const N: usize>(bytes: &mut &[u8]) -> usize {
        let (head, rest) = bytes.split_at(N);
        *bytes = rest;
        head.iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte))
    }
    let mut tree = Tree::new();
    while !bytes.is_empty() {
        let length = number::<2>(&mut bytes);
        let (name, rest) = bytes.split_at(length);
        bytes = rest;
        let mut file = vec![0; number::<8>(&mut bytes).next_multiple_of(PIECE)];
        for _ in 0..number::<4>(&mut bytes) {
            let at = number::<4>(&mut bytes) * PIECE;
            let (piece, rest) = bytes.split_at(PIECE);
            file[at..at + PIECE].copy_from_slice(piece);
            bytes = rest;
        }
        tree.push((String::from_utf8(name.to_vec()).unwrap(), file));
    }
    tree
}

/// A machine whose target's directory is this tree.
fn machine(tree: &Tree) -> World {
    let world = World::new(DiskState::new(1));
    let queue = world.queue();
    queue.disk().create_dir(DIR).unwrap();
    for (name, bytes) in tree {
        queue.disk().write_small(&format!("{DIR}/{name}"), bytes).unwrap();
    }
    queue.disk().sync_dir(DIR).unwrap();
    drop(queue);
    world
}

fn tree_of(world: &World) -> Tree {
    let queue = world.queue();
    let names = queue.disk().list(DIR).unwrap();
    names.into_iter().map(|n| (n.clone(), queue.disk().read_small(&format!("{DIR}/{n}")).unwrap())).collect()
}

fn bytes_of(id: ChunkId, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u64 * 31 + id.data.0 * 7 + u64::from(id.index)) as u8 | 1).collect()
}

fn channel(id: ChunkId) -> ChannelId {
    ChannelId(id.data.0 as u32 * 100 + id.index)
}

async fn prepare(engine: &Engine, id: ChunkId, base: u64, update: Update) {
    let writer = WriterTag { client: CLIENT, channel: channel(id), sequence: Sequence(base + 1) };
    let prepare = Prepare {
        chunk: id,
        version: version(base + 1),
        base: version(base),
        update,
        writer: Some(writer),
        expect: None,
        priority: FOREGROUND,
    };
    engine.prepare(prepare).await.unwrap();
}

fn write(offset: u32, bytes: &[u8]) -> Update {
    Update::Write { offset, data: SharedBuf::from(bytes), checksums: block_checksums(bytes) }
}

async fn put(engine: &Engine, id: ChunkId, base: u64, update: Update) {
    prepare(engine, id, base, update).await;
    engine.commit(id, version(base + 1)).await.unwrap();
}

/// Makes every kind of state that a chunk can have, on both sides of a checkpoint.
async fn fill(engine: &Engine) {
    let c = |i| chunk(i);
    put(engine, c(0), 0, write(0, &bytes_of(c(0), 5_000))).await;
    put(engine, c(1), 0, write(0, &bytes_of(c(1), 40_960))).await;
    put(engine, c(2), 0, write(0, b"removed soon")).await;
    engine.set_chain_version(ChainVersion(6)).await.unwrap();
    engine.checkpoint().await.unwrap();
    put(engine, c(1), 1, write(8_192, b"a small overwrite is redirected")).await;
    put(engine, c(2), 1, Update::Remove).await;
    put(engine, c(3), 0, write(10_000, b"behind a hole")).await;
    prepare(engine, c(4), 0, write(0, b"pending")).await;
    prepare(engine, c(5), 0, write(0, b"refused")).await;
    engine.abort(c(5), version(1)).await.unwrap();
    engine.flush().await.unwrap();
}

/// What [`fill`] made, exactly.
async fn check(engine: &Engine) {
    let mut second = bytes_of(chunk(1), 40_960);
    second[8_192..8_192 + 31].copy_from_slice(b"a small overwrite is redirected");
    let mut third = vec![0; 10_013];
    third[10_000..].copy_from_slice(b"behind a hole");
    let committed = [(0, 1, bytes_of(chunk(0), 5_000)), (1, 2, second), (3, 1, third)];
    for (i, number, bytes) in committed {
        let read = engine.read(chunk(i), Which::Committed, 0, 1 << 20, FOREGROUND).await.unwrap();
        assert_eq!((read.version, &read.data[..]), (version(number), &bytes[..]), "chunk {i}");
        let state = engine.state(chunk(i)).unwrap().committed.unwrap();
        assert_eq!((state.length as usize, state.checksum), (bytes.len(), crc32c(&bytes)));
        engine.verify(chunk(i), FOREGROUND).await.unwrap();
    }
    let state = |i| -> ChunkState { engine.state(chunk(i)).unwrap() };
    let removed = state(2).committed.unwrap();
    assert!(removed.removed && removed.version == version(2) && state(2).pending.is_none());
    assert!(state(4).committed.is_none() && state(4).pending.is_some());
    let pending = engine.read(chunk(4), Which::Newest, 0, 100, FOREGROUND).await.unwrap();
    assert_eq!(&pending.data[..], b"pending");
    assert!(state(5).pending.is_none());
    assert_eq!((state(5).committed_version(), state(5).aborted), (ChunkVersion::NONE, version(1)));
    assert_eq!((engine.len(), engine.chain_version()), (6, ChainVersion(6)));
    let (id, record) = engine.writer(CLIENT, channel(chunk(5))).unwrap();
    assert_eq!((id, record.version, record.status), (chunk(5), version(1), Status::Aborted));
    assert_eq!(engine.identity(), &IDENTITY);
}

/// The directory that a release of a format version wrote.
fn frozen(version: u32) -> Tree {
    let fixture = fixture(version);
    if std::env::var_os("EMBER_WRITE_FIXTURES").is_some() && !fixture.exists() {
        assert_eq!(version, FORMAT, "only the release of a version can write it");
        let world = World::new(DiskState::new(1));
        let engine = world.must(world.create(config())).unwrap();
        world.must(fill(&engine));
        drop(engine);
        world.settle();
        std::fs::write(&fixture, pack(&tree_of(&world))).unwrap();
    }
    unpack(&std::fs::read(fixture).expect("the fixture"))
}

#[test]
fn directories_of_all_format_versions_are_read_for_ever() {
    for version in 1..=FORMAT {
        let world = machine(&frozen(version));
        let report = world.must(fsck(&world.queue(), DIR)).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        for _ in 0..2 {
            let (engine, recovery) = world.must(world.open(config())).unwrap();
            let clean = recovery.healed.is_empty() && recovery.dropped.is_empty() && !recovery.torn;
            assert!(clean, "{recovery:?}");
            world.must(check(&engine));
            drop(engine);
            world.settle();
        }
        // It can be worked with, too.
        let (engine, _) = world.must(world.open(config())).unwrap();
        world.must(put(&engine, chunk(0), 1, write(4_000, b"new")));
        let read = world.must(engine.read(chunk(0), Which::Committed, 0, 1 << 20, FOREGROUND)).unwrap();
        assert_eq!(&read.data[4_000..4_003], b"new");
        let superblock = tree_of(&world).into_iter().find(|(name, _)| name == COPIES[0]).unwrap().1;
        assert_eq!(superblock[8..12], FORMAT.to_le_bytes());
    }
}

/// From version 2 on a checkpoint holds no checksums.
#[test]
fn after_the_way_from_version_1_all_checksums_are_on_pages() {
    let world = machine(&frozen(1));
    for _ in 0..2 {
        let (engine, _) = world.must(world.open(config())).unwrap();
        drop(engine);
        world.settle();
    }
    let tree = tree_of(&world);
    assert!(tree.iter().any(|(name, bytes)| name == "sums-4k" && bytes.starts_with(&[0; 4096])));
    let (engine, _) = world.must(world.open(config())).unwrap();
    world.must(check(&engine));
    assert!(engine.counters().sum_pages_read > 0, "{:?}", engine.counters());
}

/// Puts another format version into both superblocks.
fn with_version(tree: &Tree, version: u32) -> Tree {
    let mut tree = tree.clone();
    for (_, bytes) in tree.iter_mut().filter(|(name, _)| COPIES.contains(&name.as_str())) {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12..16].fill(0);
        let sum = crc32c(bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    tree
}

#[test]
fn an_unknown_version_is_refused_by_name_and_changes_nothing() {
    for (unknown, helps) in [(3, "a later one"), (u32::MAX, "a later one"), (0, "newer one")] {
        let tree = with_version(&frozen(FORMAT), unknown);
        let world = machine(&tree);
        let error = world.must(world.open(config())).map(|_| ()).unwrap_err();
        assert!(matches!(error, EngineError::Refused { .. }), "{error}");
        let text = error.to_string();
        let found = format!("format version {unknown}, this release knows {FORMAT}");
        for part in [&format!("{DIR}/superblock-a, offset 8"), &found, helps] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(tree_of(&world) == tree, "version {unknown}: files changed");
    }
}

/// Made-up version 0: the superblocks' version, a file that goes, and another name for the segments of the log.
fn version_0() -> Tree {
    let mut tree = with_version(&frozen(1), 0);
    for (name, _) in &mut tree {
        if let Some(number) = name.strip_prefix("log-") {
            *name = format!("journal-{number}");
        }
    }
    tree.push(("notes".into(), b"only in version 0".to_vec()));
    tree.sort();
    tree
}

fn from_0(old: &OldTarget<'_>) -> ember_engine::Result<Vec<Change>> {
    let mut changes = Vec::new();
    for name in old.list()? {
        let bytes = old.read(&name)?.unwrap_or_default();
        let mut change = |name: &str, content| changes.push(Change { name: name.to_owned(), content });
        if let Some(number) = name.strip_prefix("journal-") {
            change(&format!("log-{number}"), Some(bytes));
            change(&name, None);
        } else if name == "notes" {
            change(&name, None);
        } else if COPIES.contains(&name.as_str()) {
            let as_version =
                |version| with_version(&vec![(name.clone(), bytes.clone())], version).remove(0).1;
            assert_eq!(superblock_bytes(&superblock(&as_version(FORMAT))?), as_version(FORMAT));
            let version_1 = as_version(1);
            change(&name, Some(version_1));
        }
    }
    Ok(changes)
}

const STEPS: &[Migration] = &[Migration { from: 0, step: from_0 }, MIGRATIONS[0]];

async fn open_with(world: &World, steps: &[Migration]) -> ember_engine::Result<Engine> {
    let expected = (IDENTITY.cluster, IDENTITY.target);
    let opened = Engine::open_with(&world.rt, &world.queue(), DIR, expected, config(), steps).await;
    opened.map(|(engine, _)| engine)
}

#[test]
fn an_older_version_is_migrated_before_recovery() {
    let world = machine(&version_0());
    let engine = world.must(open_with(&world, STEPS)).unwrap();
    world.must(check(&engine));
    drop(engine);
    world.settle();
    // It is of the present version now, and nothing of the old one or of the way is left.
    let names: Vec<String> = tree_of(&world).into_iter().map(|(name, _)| name).collect();
    let left = |name: &String| name.starts_with("journal-") || name.starts_with("migrat") || name == "notes";
    assert!(!names.iter().any(left), "{names:?}");
    let (engine, _) = world.must(world.open(config())).unwrap();
    world.must(check(&engine));
}

#[test]
fn a_step_that_fails_leaves_the_old_version_whole() {
    fn fails(_: &OldTarget<'_>) -> ember_engine::Result<Vec<Change>> {
        Err(EngineError::Corrupt { file: "journal".into(), offset: 7, what: "of no use".into() })
    }
    let (tree, steps) = (version_0(), [Migration { from: 0, step: fails }]);
    let world = machine(&tree);
    let error = world.must(open_with(&world, &steps)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("of no use"));
    assert!(tree_of(&world) == tree);
    world.settle();
    // Staged files without a list are of a migration that was cut off before it counted: as if it never was.
    world.queue().disk().write_small(&format!("{DIR}/migrate-superblock-a"), b"half").unwrap();
    let error = world.must(open_with(&world, &steps)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("of no use"), "{error}");
    assert!(tree_of(&world) == tree);
    world.settle();
    let engine = world.must(open_with(&world, STEPS)).unwrap();
    world.must(check(&engine));
}

/// The power fails at event `at` from here on while the target is opened; what the disk holds then.
fn crash_while_opening(world: World, at: u64) -> World {
    {
        let mut disk = world.disk.borrow_mut();
        disk.crash_at = Some(disk.events + at);
    }
    // Opened, failed or cut off: the power goes in any case.
    let _ = world.run(open_with(&world, STEPS));
    world.crash()
}

#[test]
fn a_migration_is_done_wholly_or_not_at_all() {
    let old = version_0();
    let is_of_migration = |name: &str| name.starts_with("migrat");
    let (mut untouched, mut under_way) = (0, 0);
    for at in 1.. {
        let world = crash_while_opening(machine(&old), at);
        let tree = tree_of(&world);
        let listed = tree.iter().any(|(name, _)| name == "migrating");
        let rest: Tree = tree.iter().filter(|(name, _)| !is_of_migration(name)).cloned().collect();
        if listed {
            under_way += 1;
        } else if rest == old {
            untouched += 1;
        } else {
            assert!(
                !tree.iter().any(|(name, _)| is_of_migration(name) || name.starts_with("journal-")),
                "{at}"
            );
        }
        // Once more, at another place of the way on.
        let world = crash_while_opening(world, 1 + at % 7);
        let engine = world.must(open_with(&world, STEPS)).unwrap_or_else(|e| panic!("event {at}: {e}"));
        world.must(check(&engine));
        if !listed && rest != old {
            break;
        }
    }
    assert!(untouched > 4 && under_way > 4, "{untouched} times before it counted, {under_way} times after");
}

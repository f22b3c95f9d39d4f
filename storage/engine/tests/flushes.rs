//! How many flushes a batch takes, by what device and file system promise (docs/design/engine.md).
#![allow(missing_docs)]

mod support;

use ember_engine::{Durability, Engine, EngineConfig, Prepare, Update};
use ember_types::{ChunkId, block_checksums};
use support::disk::{Device, DiskState};
use support::{FOREGROUND, World, chunk, config, version};

fn settings(durability: Durability) -> EngineConfig {
    EngineConfig { durability, ..config() }
}

fn new_target(device: Device, durability: Durability) -> (World, Engine) {
    let world = World::new(DiskState::new(1));
    world.disk.borrow_mut().device = device;
    let engine = world.must(world.create(settings(durability))).unwrap();
    (world, engine)
}

/// Writes a chunk whole and commits it; the flushes that the durable part took.
fn put(world: &World, engine: &Engine, chunk: ChunkId, from: u64, bytes: usize) -> u64 {
    let data = vec![from as u8 + 1; bytes];
    let update = Update::Write { offset: 0, data: data.as_slice().into(), checksums: block_checksums(&data) };
    let (base, next) = (version(from), version(from + 1));
    let request =
        Prepare { chunk, version: next, base, update, writer: None, expect: None, priority: FOREGROUND };
    let before = engine.counters().flushes;
    world.must(engine.prepare(request)).unwrap();
    world.must(engine.commit(chunk, next)).unwrap();
    engine.counters().flushes - before
}

/// Small slots have their zeros, so that all but the first write to a file are overwrites.
fn small(device: Device, durability: Durability) -> Vec<u64> {
    let (world, engine) = new_target(device, durability);
    (0..3).map(|i| put(&world, &engine, chunk(i), 0, 4096)).collect()
}

#[test]
fn a_settled_slot_takes_the_flush_of_the_log_alone_or_none() {
    assert_eq!(small(Device::Plain, Durability::Flush), [2, 2, 2]);
    assert_eq!(small(Device::InPlace, Durability::Flush), [2, 1, 1]);
    assert_eq!(small(Device::Protected, Durability::Plp), [1, 0, 0]);
    assert_eq!(
        small(Device::Plain, Durability::Plp),
        [2, 2, 2],
        "it must not be believed on such a file system"
    );
}

/// Large slots are reserved space: who writes there first takes a flush of the file.
#[test]
fn a_slot_is_settled_by_its_first_write_and_unsettled_when_it_is_given_back() {
    for (device, durability, [first, again]) in
        [(Device::InPlace, Durability::Flush, [2, 1]), (Device::Protected, Durability::Plp, [1, 0])]
    {
        let (world, engine) = new_target(device, durability);
        let put = |from| put(&world, &engine, chunk(0), from, 1 << 20);
        // Three slots in turn: one is free when the commit that replaced it is durable, with the next batch.
        assert_eq!([put(0), put(1), put(2), put(3)], [first, first, first, again], "{device:?}");
        world.must(engine.flush()).unwrap();
        world.must(engine.trim(1000)).unwrap();
        assert_eq!(put(4), first, "the slot's space was given back");
    }
}

#[test]
fn after_a_start_what_the_file_system_has_noted_is_settled() {
    let (world, engine) = new_target(Device::InPlace, Durability::Flush);
    for from in 0..4 {
        put(&world, &engine, chunk(0), from, 1 << 20);
    }
    world.must(engine.close()).unwrap();
    drop(engine);
    let world = world.kill();
    let (engine, _) = world.must(world.open(settings(Durability::Flush))).unwrap();
    let flushes =
        [(0, 4), (1, 0), (2, 0), (3, 0)].map(|(i, from)| put(&world, &engine, chunk(i), from, 1 << 20));
    assert_eq!(flushes, [1, 1, 1, 2], "three slots were written before the start, the fourth never was");
}

/// Their files are reserved space that a page is the first to be written to.
#[test]
fn a_checkpoint_flushes_its_checksum_pages_whatever_the_device_promises() {
    for (device, durability) in [
        (Device::Plain, Durability::Flush),
        (Device::InPlace, Durability::Flush),
        (Device::Protected, Durability::Plp),
    ] {
        let (world, engine) = new_target(device, durability);
        let checkpoint = || {
            let before = engine.counters();
            world.must(engine.checkpoint()).unwrap();
            let after = engine.counters();
            (after.flushes - before.flushes, after.sum_pages_written - before.sum_pages_written)
        };
        put(&world, &engine, chunk(0), 0, 4096);
        put(&world, &engine, chunk(1), 0, 1 << 20);
        assert_eq!(checkpoint(), (2, 2), "{device:?}: two classes");
        assert_eq!(checkpoint(), (0, 0), "{device:?}: nothing is new");
        put(&world, &engine, chunk(0), 1, 4096);
        put(&world, &engine, chunk(2), 0, 4096);
        assert_eq!(checkpoint(), (1, 1), "{device:?}: one page of one class");
    }
}

//! Disks: what survives, what doesn't.

use ember_rt::disk::{DiskQueue, OpenMode, Priority};
use ember_rt::{Rt, SharedBuf};
use ember_sim::{Crash, DiskConfig, PowerCut, ProcessId, World};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;

const S: u64 = 1_000_000_000;
const CREATE: OpenMode = OpenMode { create: true, exclusive: false, direct: false };
const DIRECT: OpenMode = OpenMode { create: true, exclusive: false, direct: true };

fn root() -> &'static Path {
    Path::new("/disk")
}

fn page(fill: u8) -> SharedBuf {
    SharedBuf::from(&[fill; 4096][..])
}

/// A process that runs `work` at each start and then waits.
fn process<F>(world: &World, work: impl Fn(Rt, DiskQueue) -> F + 'static) -> ProcessId
where
    F: Future<Output = ()> + 'static,
{
    let work = Rc::new(work);
    let process = world.add_process("disks", move |rt: Rt| {
        let work = work.clone();
        async move {
            let disk = rt.disks().open(root()).unwrap();
            let queue = DiskQueue::start(&rt, disk, 32);
            work(rt.clone(), queue.clone()).await;
            rt.sleep(std::time::Duration::from_secs(100_000)).await;
            drop(queue);
        }
    });
    world.start(process);
    process
}

/// Content of a file after the process has ended.
fn content(world: &World, process: ProcessId, name: &str) -> Option<Vec<u8>> {
    world.disk(process, root())?.content(name)
}

#[test]
fn synced_writes_survive_power_loss_and_others_are_lost_or_torn() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let world = World::new(seed);
        let process = process(&world, |_, disk| async move {
            let file = disk.disk().open_file("f", CREATE).unwrap();
            disk.disk().sync_dir("").unwrap();
            disk.write(file, Priority::Foreground, 0, page(1)).await.unwrap();
            disk.write(file, Priority::Foreground, 4096, page(1)).await.unwrap();
            disk.sync(file).await.unwrap();
            disk.write(file, Priority::Foreground, 0, page(2)).await.unwrap();
            let read = disk.read(file, Priority::Foreground, 0, 9000).await.unwrap();
            assert_eq!((read.len(), read[0], read[4096]), (8192, 2, 1));
        });
        world.run_until(S);
        world.kill(process, Crash::PowerLoss);
        let bytes = content(&world, process, "f").unwrap();
        assert!(bytes[4096..].iter().all(|&b| b == 1), "synced bytes stay");
        for sector in bytes[..4096].chunks(512) {
            assert!(sector.iter().all(|&b| b == sector[0]), "a sector is whole");
        }
        match (bytes[..4096].contains(&1), bytes[..4096].contains(&2)) {
            (true, true) => torn += 1,
            (true, false) => old += 1,
            _ => new += 1,
        }
    }
    assert!(old > 5 && new > 5 && torn > 2, "old {old}, new {new}, torn {torn}");
}

#[test]
fn kill_keeps_what_was_written() {
    let world = World::new(1);
    let process = process(&world, |_, disk| async move {
        let file = disk.disk().open_file("f", CREATE).unwrap();
        disk.write(file, Priority::Foreground, 0, page(2)).await.unwrap();
    });
    world.run_until(S);
    world.kill(process, Crash::Kill);
    assert_eq!(content(&world, process, "f"), Some(vec![2; 4096]));
}

#[test]
fn a_sync_covers_what_was_written_before_it_was_asked_for() {
    // The second write ends while the sync runs; nothing promises that it is durable, and sometimes it isn't.
    let mut lost = 0;
    for seed in 0..40 {
        let world = World::new(seed);
        let process = process(&world, |rt, disk| async move {
            let file = disk.disk().open_file("f", CREATE).unwrap();
            disk.disk().sync_dir("").unwrap();
            disk.write(file, Priority::Foreground, 0, page(1)).await.unwrap();
            let other = disk.clone();
            rt.spawn("late", async move {
                other.write(file, Priority::Foreground, 4096, page(2)).await.unwrap();
                other.write(file, Priority::Foreground, 0, page(2)).await.unwrap();
            });
            disk.sync(file).await.unwrap();
        });
        world.run_until(S);
        world.kill(process, Crash::PowerLoss);
        let bytes = content(&world, process, "f").unwrap();
        assert!(bytes.len() >= 4096 && bytes[..4096].iter().all(|b| [1, 2].contains(b)));
        lost += u32::from(bytes[..4096].contains(&1));
    }
    assert!(lost > 3, "{lost}");
}

#[test]
fn names_are_durable_in_order_and_surely_after_sync_dir() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let world = World::new(seed);
        let process = process(&world, |_, disk| async move {
            let disk = disk.disk();
            disk.create_dir("d/e").unwrap();
            disk.open_file("d/kept", CREATE).unwrap();
            disk.sync_dir("d").unwrap();
            disk.open_file("d/a", CREATE).unwrap();
            disk.rename("d/a", "d/b").unwrap();
            disk.remove_file("d/kept").unwrap();
            assert_eq!(disk.list("d").unwrap(), ["b", "e"]);
        });
        world.run_until(S);
        world.kill(process, Crash::PowerLoss);
        let names: Vec<_> =
            world.disk(process, root()).unwrap().files().into_iter().map(|(name, _)| name).collect();
        outcomes.insert(names);
    }
    let expected = [vec!["d/a", "d/kept"], vec!["d/b", "d/kept"], vec!["d/b"], vec!["d/kept"]];
    let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(outcomes, expected.into_iter().collect());
}

#[test]
fn small_files_are_replaced_whole() {
    for seed in 0..10 {
        let world = World::new(seed);
        let process = process(&world, |_, disk| async move {
            disk.disk().write_small("s", b"old").unwrap();
            disk.disk().write_small("s", b"newer").unwrap();
        });
        world.run_until(S);
        world.kill(process, Crash::PowerLoss);
        assert_eq!(content(&world, process, "s"), Some(b"newer".to_vec()));
    }
}

#[test]
fn locks_end_with_their_holder() {
    let world = World::new(1);
    let process = process(&world, |rt, disk| async move {
        disk.disk().create_dir("t").unwrap();
        disk.disk().lock("t").unwrap();
        let other = rt.disks().open(root()).unwrap();
        assert!(other.lock("t").is_err());
    });
    world.run_until(S);
    world.kill(process, Crash::Kill);
    world.start(process);
    world.run_until(2 * S);
    assert_eq!(world.failure(), None);
}

#[test]
fn lengths_holes_and_punches() {
    let world = World::new(1);
    process(&world, |_, disk| async move {
        let file = disk.disk().open_file("f", DIRECT).unwrap();
        disk.allocate(file, 0, 1 << 20).await.unwrap();
        assert_eq!(disk.disk().file_len(file).unwrap(), 1 << 20);
        disk.write(file, Priority::Foreground, 8192, page(3)).await.unwrap();
        disk.write(file, Priority::Foreground, 12288, page(4)).await.unwrap();
        disk.punch(file, 8192, 4096).await.unwrap();
        let read = disk.read(file, Priority::Foreground, 4096, 12288).await.unwrap();
        assert_eq!((read[0], read[4096], read[8192]), (0, 0, 4));
        assert!(disk.write(file, Priority::Foreground, 100, page(1)).await.is_err(), "O_DIRECT is aligned");
        disk.disk().set_file_len(file, 12288).unwrap();
        disk.disk().set_file_len(file, 16384).unwrap();
        let read = disk.read(file, Priority::Foreground, 12288, 8192).await.unwrap();
        assert_eq!((read.len(), read[0]), (4096, 0), "what was cut reads as zeros");
        let exclusive = OpenMode { exclusive: true, ..CREATE };
        assert!(disk.disk().open_file("f", exclusive).is_err());
        assert!(disk.disk().open_file("missing", OpenMode::default()).is_err());
    });
    world.run_until(S);
}

#[test]
fn knobs_make_errors_fullness_and_rot() {
    let world = World::new(1);
    let outcome: Rc<RefCell<Vec<i32>>> = Rc::default();
    let seen = outcome.clone();
    let process = process(&world, move |rt, disk| {
        let seen = seen.clone();
        async move {
            let file = disk.disk().open_file("f", CREATE).unwrap();
            for _ in 0..3 {
                let written = disk.write(file, Priority::Foreground, 0, page(1)).await;
                let extended = disk.allocate(file, 0, 1 << 20).await;
                for result in [written, extended] {
                    seen.borrow_mut().push(result.err().and_then(|e| e.raw_os_error()).unwrap_or(0));
                }
                rt.sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    });
    world.run_until(S / 2);
    let fs = world.disk(process, root()).unwrap();
    fs.set_config(DiskConfig { full: true, ..DiskConfig::default() });
    world.run_until(S + S / 2);
    fs.set_config(DiskConfig { error_ppm: 1_000_000, ..DiskConfig::default() });
    world.run_until(3 * S);
    assert_eq!(*outcome.borrow(), [0, 0, 0, 28, 5, 5]);
    fs.set_config(DiskConfig::default());
    let (name, offset) = fs.flip_bit(&world, "f").unwrap();
    let bytes = content(&world, process, &name).unwrap();
    assert_ne!(bytes[offset as usize], 1);
    assert_eq!(bytes[..4096].iter().filter(|&&b| b != 1).count(), 1);
}

#[test]
fn a_replaced_disk_is_empty() {
    let world = World::new(1);
    let process = process(&world, |_, disk| async move {
        disk.disk().write_small("s", b"x").unwrap();
    });
    world.run_until(S);
    world.kill(process, Crash::Kill);
    world.replace_disk(process, root());
    assert!(world.disk(process, root()).unwrap().files().is_empty());
}

/// A synced file of 16 pages, whose page `n` is filled with `n + 1`.
async fn sixteen_pages(disk: &DiskQueue) -> ember_rt::disk::FileId {
    let file = disk.disk().open_file("t-1/f", DIRECT).unwrap();
    for number in 0..16_u8 {
        let at = u64::from(number) * 4096;
        disk.write(file, Priority::Foreground, at, page(number + 1)).await.unwrap();
    }
    disk.sync(file).await.unwrap();
    disk.disk().sync_dir("t-1").unwrap();
    file
}

#[test]
fn a_misdirected_write_reports_success_and_lands_on_another_page() {
    let world = World::new(3);
    let process = process(&world, |rt, disk| async move {
        disk.disk().create_dir("t-1").unwrap();
        let file = sixteen_pages(&disk).await;
        rt.sleep(std::time::Duration::from_secs(1)).await;
        disk.write(file, Priority::Foreground, 0, page(99)).await.unwrap();
        disk.write(file, Priority::Foreground, 4096, page(98)).await.unwrap();
    });
    world.run_until(S);
    let fs = world.disk(process, root()).unwrap();
    fs.misdirect("t-1/");
    world.run_until(2 * S);
    assert_eq!(fs.hits(), 1, "one write goes astray, not the next one");
    let bytes = fs.content("t-1/f").unwrap();
    assert_eq!((bytes[0], bytes[4096]), (1, 98), "its own place keeps the old bytes");
    assert_eq!(bytes.chunks(4096).filter(|page| page[0] == 99).count(), 1);
}

#[test]
fn a_latent_error_lasts_until_the_range_is_written_and_aimed_failures_hit_their_files_alone() {
    let world = World::new(4);
    let found: Rc<RefCell<Vec<bool>>> = Rc::default();
    let told = found.clone();
    let process = process(&world, move |rt, disk| {
        let told = told.clone();
        async move {
            disk.disk().create_dir("t-1").unwrap();
            let file = sixteen_pages(&disk).await;
            let other = disk.disk().open_file("g", CREATE).unwrap();
            rt.sleep(std::time::Duration::from_secs(1)).await;
            let whole = || disk.read(file, Priority::Foreground, 0, 16 * 4096);
            let before = whole().await.is_ok();
            for number in 0..16_u8 {
                let at = u64::from(number) * 4096;
                disk.write(file, Priority::Foreground, at, page(number)).await.unwrap();
            }
            let after = whole().await.is_ok();
            rt.sleep(std::time::Duration::from_secs(1)).await;
            let failed = disk.write(file, Priority::Foreground, 0, page(1)).await.is_ok();
            let spared = disk.write(other, Priority::Foreground, 0, page(1)).await.is_ok();
            told.borrow_mut().extend([before, after, failed, spared]);
        }
    });
    world.run_until(S);
    let fs = world.disk(process, root()).unwrap();
    assert!(fs.make_unreadable(&world, "t-1/").is_some());
    assert_eq!(fs.make_unreadable(&world, "t-2/"), None);
    world.run_until(3 * S / 2);
    fs.fail_changes("t-1/", 1_000_000, false);
    world.run_until(5 * S);
    assert_eq!(*found.borrow(), [false, true, false, true]);
    assert_eq!(fs.hits(), 1);
}

#[test]
fn an_aimed_power_cut_loses_or_tears_every_unsynced_page() {
    for (cut, torn) in [(PowerCut::Lost, false), (PowerCut::Torn, true)] {
        let mut mixed = 0;
        for seed in 0..20 {
            let world = World::new(seed);
            let process = process(&world, |_, disk| async move {
                disk.disk().create_dir("t-1").unwrap();
                let file = sixteen_pages(&disk).await;
                disk.write(file, Priority::Foreground, 4096, page(99)).await.unwrap();
            });
            world.run_until(S);
            let fs = world.disk(process, root()).unwrap();
            assert_eq!((fs.unsynced("t-1/"), fs.unsynced("t-2/")), (1, 0));
            fs.set_power_cut(cut);
            world.kill(process, Crash::PowerLoss);
            let bytes = fs.content("t-1/f").unwrap();
            assert_eq!((bytes.len(), bytes[0], bytes[8192]), (16 * 4096, 1, 3));
            assert!(torn || bytes[4096..8192].iter().all(|&b| b == 2), "nothing new is left");
            mixed += usize::from(bytes[4096..8192].contains(&2) && bytes[4096..8192].contains(&99));
        }
        assert!(if torn { mixed > 15 } else { mixed == 0 }, "{cut:?}: {mixed}");
    }
}

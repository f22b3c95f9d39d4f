//! Requests.

use super::*;
use ember_kv::{CommitPlan, Durability, Faults, FaultyKv, Outcome};
use ember_meta_store::table;
use ember_rt::select::join_all;
use ember_types::Rights;
use ember_types::file::FileKind;
use ember_wire::meta::SetAttributes;
use std::sync::Mutex;

fn set_length(inode: InodeId, length: u64, by: Option<u128>) -> Operation {
    let session = by.map(session);
    Operation::SetAttributes {
        inode,
        set: SetAttributes { length: Some(length), session, ..Default::default() },
    }
}

#[test]
fn a_file_is_made_opened_written_and_closed() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let before = bench.cluster.now().unwrap();
        let response = bench.ask(create("f", 1)).await;
        let Answer::Opened { attributes, capability, created, capability_ms, cluster_time } = response.result
        else {
            panic!("{response:?}")
        };
        assert!(created && CapabilityKey::new(&KEY).verify(&capability));
        assert_eq!((capability.inode(), capability.data()), (attributes.inode, attributes.data));
        assert_eq!((capability.client(), capability.rights()), (CLIENT, Rights::READ.and(Rights::WRITE)));
        assert_eq!(capability_ms.0, 30_000);
        assert!(cluster_time >= before);
        assert_eq!(capability.expiry(), cluster_time + Duration::from_secs(30));
        let layout = attributes.layout.unwrap();
        assert_eq!((layout.table_version(), layout.stripe()), (ChainTableVersion(2), 4));
        let inode = attributes.inode;
        let done = bench.entry(Operation::Sync { inode, written: written(10, 0) }).await;
        assert_eq!(done.length, 10);
        bench.entry(Operation::Settle { inode, written: written(20, 0) }).await;
        let close = Operation::Close { inode, session: session(1), written: None };
        assert_eq!(bench.entry(close).await.length, 20);
        let other = bench.entry(create("g", 2)).await;
        assert_ne!((other.inode, other.data), (attributes.inode, attributes.data));
        assert_ne!(other.layout, attributes.layout);
    });
}

#[test]
fn operations_that_read() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 5).await;
        bench.entry(mkdir("d")).await;
        let link = Operation::MakeSymlink { parent: ROOT, name: b"l".to_vec(), target: b"to".to_vec() };
        let link = bench.entry(link).await;
        let read = bench.ask(Operation::ReadSymlink { inode: link.inode }).await;
        assert_eq!(read.result, Answer::Link(b"to".to_vec()));
        let list = Operation::ReadDirectory { inode: ROOT, after: 0, limit: 100, attributes: true };
        let Answer::Entries { entries, more } = bench.ask(list).await.result else { panic!() };
        assert!(!more && entries.len() == 3 && entries.iter().all(|e| e.cookie > 2));
        assert!(entries.iter().any(|e| e.kind == FileKind::Symlink && e.attributes.as_ref() == Some(&link)));
        assert_eq!(bench.entry(lookup("f")).await, f);
        assert_eq!(bench.ask(lookup("none")).await.status, Status::NotFound);
        assert_eq!(bench.entry(Operation::Access { inode: f.inode, mask: 6 }).await, f);
        let reader = OpenFlags { read: true, ..Default::default() };
        let versions = bench.kv.versions();
        let Answer::Opened { capability, .. } = bench.ask(open(f.inode, 9, reader)).await.result else {
            panic!()
        };
        assert_eq!(capability.rights(), Rights::READ);
        bench.entry(Operation::Close { inode: f.inode, session: session(9), written: None }).await;
        assert_eq!(bench.kv.versions(), versions, "reading writes nothing");
        let Answer::Totals(totals) = bench.ask(Operation::StatFs).await.result else { panic!() };
        assert_eq!((totals.bytes_free, totals.inodes), (200, 4));
        bench.storage.failing.set(true);
        assert_eq!(bench.ask(Operation::StatFs).await.status, Status::Ok, "cached");
    });
}

#[test]
fn names_move_and_go() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 0).await;
        let d = bench.entry(mkdir("d")).await.inode;
        let link = Operation::MakeLink { inode: f.inode, parent: d, name: b"g".to_vec() };
        assert_eq!(bench.entry(link).await.links, 2);
        let rename = Operation::Rename {
            parent: ROOT,
            name: b"f".to_vec(),
            new_parent: d,
            new_name: b"h".to_vec(),
            no_replace: true,
            exchange: false,
        };
        assert_eq!(bench.ask(rename).await.result, Answer::Removed { attributes: None });
        let rmdir = Operation::RemoveDirectory { parent: ROOT, name: b"d".to_vec() };
        assert_eq!(bench.ask(rmdir.clone()).await.status, Status::NotEmpty);
        for (name, left) in [("g", 1), ("h", 0)] {
            let unlink = Operation::Unlink { parent: d, name: name.as_bytes().to_vec() };
            assert_eq!(bench.entry(unlink).await.links, left);
        }
        assert_eq!(bench.entry(rmdir).await.links, 0);
        let node = Operation::MakeNode {
            parent: ROOT,
            name: b"p".to_vec(),
            kind: FileKind::Fifo,
            mode: 0o600,
            device: 0,
        };
        assert_eq!(bench.entry(node).await.kind, FileKind::Fifo);
    });
}

#[test]
fn concurrent_creates_in_one_directory_share_transactions() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        bench.entry(mkdir("first")).await;
        let before = bench.kv.versions().0;
        let names: Vec<_> = (0..100).map(|i| format!("d{i}")).collect();
        let made = join_all(names.iter().map(|name| bench.ask(mkdir(name)))).await;
        assert!(made.iter().all(|r| r.status == Status::Ok));
        assert!(bench.kv.versions().0 - before <= 3, "{} commits", bench.kv.versions().0 - before);
        assert_eq!(bench.stat(ROOT).await.links, 103);
        let again = join_all(names.iter().map(|name| bench.ask(mkdir(name)))).await;
        assert!(again.iter().all(|r| r.status == Status::Exists), "each fails by itself");
    });
}

#[test]
fn a_damaged_record_fails_its_own_operation_alone() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 0).await;
        let mut tx = bench.kv.begin();
        tx.set(&table::inode(f.inode), &[1, 2, 3]);
        tx.commit().await.unwrap();
        let answers = join_all([mkdir("a"), unlink("f"), mkdir("b"), mkdir("c")].map(|o| bench.ask(o))).await;
        let statuses: Vec<_> = answers.iter().map(|r| r.status).collect();
        assert_eq!(statuses, [Status::Ok, Status::Corrupt, Status::Ok, Status::Ok]);
        assert!(answers[1].text.contains("ember meta import"), "{}", answers[1].text);
    });
}

#[test]
fn r08_without_a_lease_nothing_is_served() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 0).await;
        bench.cluster.lease.set(false);
        for operation in [Operation::GetAttributes { inode: f.inode }, mkdir("d"), Operation::StatFs] {
            let response = bench.ask(operation).await;
            assert_eq!(response.status, Status::NoLease);
            assert!(response.status.is_retryable());
        }
        bench.cluster.lease.set(true);
        bench.entry(mkdir("d")).await;
    });
}

#[test]
fn a_repeat_gets_the_first_answer() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        bench.sequence.set(10);
        let request = bench.request(1, mkdir("d"));
        let first = bench.service.answer(request.clone()).await;
        assert_eq!(bench.service.answer(request).await, first);
        let request = bench.request(2, create("f", 1));
        let first = bench.service.answer(request.clone()).await;
        bench.rt.sleep(Duration::from_secs(10)).await;
        let second = bench.service.answer(request).await;
        let opened = |r: Response| match r.result {
            Answer::Opened { attributes, capability, created, .. } => (attributes, capability, created),
            other => panic!("{other:?}"),
        };
        let (first, second) = (opened(first), opened(second));
        assert_eq!((&first.0, first.2), (&second.0, second.2), "still the one that made it");
        assert!(second.1.expiry() > first.1.expiry(), "the capability is a new one");
        let request = bench.request(3, unlink("f"));
        assert_eq!(bench.service.answer(request.clone()).await.status, Status::Ok);
        bench.entry(create("f", 9)).await;
        assert_eq!(bench.service.answer(request).await.status, Status::Ok);
        assert_eq!(bench.ask(lookup("f")).await.status, Status::Ok, "the new file is untouched");
    });
}

#[test]
fn a_late_copy_of_a_refused_request_is_refused_too() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        bench.sequence.set(10);
        bench.entry(mkdir("d")).await;
        let late = bench.request(1, mkdir("d"));
        let again = Request { repeat: true, ..late.clone() };
        assert_eq!(bench.service.answer(again).await.status, Status::Exists);
        let remove = Operation::RemoveDirectory { parent: InodeId::ROOT, name: b"d".to_vec() };
        assert_eq!(bench.ask(remove).await.status, Status::Ok);
        assert_eq!(bench.service.answer(late).await.status, Status::Exists, "it came before the removal");
        assert_eq!(bench.ask(lookup("d")).await.status, Status::NotFound);
    });
}

#[test]
fn clients_are_held_to_their_window_and_their_session() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let mut request = bench.request(2000, mkdir("d"));
        request.answered = 900;
        assert_eq!(bench.service.answer(request.clone()).await.status, Status::Busy);
        request.answered = 1999;
        assert_eq!(bench.service.answer(request).await.status, Status::Ok);
        let old = bench.request(2000 - 1024, mkdir("e"));
        assert_eq!(bench.service.answer(old).await.status, Status::StaleSequence);
        let mut view = routing();
        view.ended_clients.push(CLIENT);
        *bench.cluster.view.borrow_mut() = Rc::new(view);
        assert_eq!(bench.ask(lookup("d")).await.status, Status::SessionEnded);
    });
}

struct Unlucky(Mutex<u32>);

impl Faults for Unlucky {
    fn on_commit(&self, _: Durability) -> CommitPlan {
        let mut left = self.0.lock().unwrap();
        *left = left.wrapping_add(1);
        let outcome = match *left % 3 {
            0 => Outcome::UnknownApplied,
            1 => Outcome::UnknownNotApplied,
            _ => Outcome::Normal,
        };
        CommitPlan { before: None, outcome, after: None }
    }
}

#[test]
fn an_unknown_outcome_of_a_commit_happens_once() {
    run(async |rt| {
        let kv = MemKv::new();
        let faulty = Arc::new(FaultyKv::new(Arc::new(kv.clone()), Arc::new(Unlucky(Mutex::new(0)))));
        let bench = Bench::over(rt, kv, faulty, MetaConfig::default(), BOOT).await;
        for i in 0..30 {
            let made = bench.ask(mkdir(&format!("d{i}"))).await;
            assert_eq!(made.status, Status::Ok, "{}", made.text);
        }
        assert_eq!(bench.stat(ROOT).await.links, 32);
    });
}

#[test]
fn r19_a_cut_is_answered_when_it_has_been_carried_out() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 5000).await;
        bench.storage.takes.set(Duration::from_secs(1));
        let cut = bench.entry(set_length(f.inode, 100, None)).await;
        assert_eq!((cut.length, cut.truncating_to), (100, None));
        assert_eq!(*bench.storage.cuts.borrow(), [Cut { data: f.data, from: 100, extent: 5000 }]);
        // An open file is cut on every chain, through its session too.
        bench.entry(open(f.inode, 4, write_flags())).await;
        bench.entry(set_length(f.inode, 0, Some(4))).await;
        assert_eq!(bench.storage.cuts.borrow()[1], Cut { data: f.data, from: 0, extent: u64::MAX });
        // Extending asks what is there.
        bench.storage.lengths.borrow_mut().insert(f.data, 50);
        let longer = bench.entry(set_length(f.inode, 900, None)).await;
        assert_eq!((longer.length, bench.storage.cuts.borrow().len()), (900, 2));
    });
}

#[test]
fn r19_a_cut_that_fails_is_completed_by_the_repeat_after_its_rights_have_ended() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 5000).await;
        bench.storage.failing.set(true);
        let request = bench.request(50, set_length(f.inode, 100, None));
        let begun = bench.rt.now();
        let failed = bench.service.answer(request.clone()).await;
        assert_eq!(failed.status, Status::Timeout);
        assert!(bench.rt.now().since(begun) >= bench.service.claim());
        assert_eq!(bench.stat(f.inode).await.truncating_to, Some(100));
        bench.storage.failing.set(false);
        let done = bench.service.answer(request.clone()).await;
        let Answer::Entry(attributes) = done.result else { panic!() };
        assert_eq!((attributes.length, attributes.truncating_to), (100, None));
        let version = attributes.truncate_version;
        bench.service.answer(request).await;
        assert_eq!(bench.stat(f.inode).await.truncate_version, version);
        assert_eq!(bench.storage.cuts.borrow().len(), 1, "once");
    });
}

#[test]
fn r19_cuts_of_one_file_go_one_after_the_other() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 5000).await;
        bench.storage.takes.set(Duration::from_millis(500));
        let cuts = join_all([3000, 2000, 1000].map(|l| bench.ask(set_length(f.inode, l, None)))).await;
        assert!(cuts.iter().all(|r| r.status == Status::Ok));
        let froms: Vec<_> = bench.storage.cuts.borrow().iter().map(|c| c.from).collect();
        assert_eq!(froms, [3000, 2000, 1000]);
        assert_eq!(bench.stat(f.inode).await.length, 1000);
    });
}

#[test]
fn r19_a_report_from_before_a_truncation_is_settled_by_storage() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.file("f", 5000).await;
        bench.entry(open(f.inode, 4, write_flags())).await;
        bench.entry(set_length(f.inode, 0, None)).await;
        bench.storage.lengths.borrow_mut().insert(f.data, 70);
        let synced = bench.entry(Operation::Sync { inode: f.inode, written: written(9000, 0) }).await;
        assert_eq!(synced.length, 70);
    });
}

#[test]
fn r03_fsync_is_durable_and_a_forgotten_inode_is_stale() {
    run(async |rt| {
        let bench = Bench::new(rt).await;
        let f = bench.entry(create("f", 1)).await.inode;
        bench.entry(Operation::Sync { inode: f, written: written(10, 0) }).await;
        let g = bench.entry(create("g", 2)).await.inode;
        bench.kv.power_loss(|durable, _| durable);
        assert_eq!(bench.stat(f).await.length, 10);
        let sync = Operation::Sync { inode: g, written: written(10, 0) };
        assert_eq!(bench.ask(sync).await.status, Status::Stale);
        let sync = Operation::Sync { inode: g, written: None };
        assert_eq!(bench.ask(sync).await.status, Status::Stale);
        let h = bench.entry(create("h", 3)).await.inode;
        assert_ne!(h, g, "its id is not used again");
        bench.ask(Operation::Sync { inode: ROOT, written: None }).await;
        bench.kv.power_loss(|durable, _| durable);
        assert_eq!(bench.entry(lookup("h")).await.inode, h);
    });
}

#[test]
fn strict_durability_needs_no_fsync() {
    run(async |rt| {
        let kv = MemKv::new();
        let config = MetaConfig { durability: "strict".into(), ..Default::default() };
        let bench = Bench::over(rt, kv.clone(), Arc::new(kv), config, BOOT).await;
        bench.entry(mkdir("d")).await;
        bench.kv.power_loss(|durable, _| durable);
        assert_eq!(bench.ask(lookup("d")).await.status, Status::Ok);
    });
}

#[test]
fn bad_settings_are_named() {
    run(async |rt| {
        let bench = Bench::new(rt.clone()).await;
        let make = |config| {
            let (kv, cluster) = (Arc::new(MemKv::new()), bench.cluster.clone());
            let key = CapabilityKey::new(&KEY);
            Service::new(rt.clone(), config, kv, cluster, bench.storage.clone(), key, 1, &Default::default())
                .err()
                .unwrap()
        };
        let text = make(MetaConfig { durability: "fast".into(), ..Default::default() }).to_string();
        assert!(text.contains("durability") && text.contains("fast"), "{text}");
        let text = make(MetaConfig { chunk_size: 1000, ..Default::default() }).to_string();
        assert!(text.contains("chunk_size") && text.contains("1000"), "{text}");
    });
}

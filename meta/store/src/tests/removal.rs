//! Removal, and what goes when (R3, R18).

use super::*;
use crate::garbage::{Doomed, Item};
use crate::{OpenFlags, Report, Written};

impl World {
    fn due(&mut self) -> Vec<Item> {
        self.run(async |s, env, _| s.due_garbage(env.cluster, 100).await).unwrap()
    }

    fn claim(&mut self, item: Item) -> Option<Doomed> {
        self.run_as(Durability::Ordered, async |s, env, _| s.claim_garbage(env, &item).await).unwrap()
    }

    fn wrote(&mut self, id: InodeId, length: u64) {
        let truncate_version = self.stat(id).unwrap().truncate_version;
        let written = Written { length, truncate_version, modified: None };
        let report = Report { written: Some(written), found: None };
        let session = SessionId::from_u128(1);
        self.run(async |s, env, _| s.close(env, id, session, report).await).unwrap().done().unwrap();
    }

    fn renew(&mut self, id: InodeId, session: u128, flags: OpenFlags) -> crate::file::Renewal {
        let request = self.request(session, flags);
        self.run(async |s, env, _| s.renew(env, &request, id).await).unwrap()
    }

    fn later(&mut self, seconds: i64) {
        self.seconds += seconds;
    }
}

#[test]
fn unlink_and_rmdir_refuse_the_wrong_kind() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    w.mkfile(d, "f", 0o644).unwrap();
    refused(w.unlink(ROOT, "d"), Status::IsDirectory);
    refused(w.rmdir(d, "f"), Status::NotDirectory);
    refused(w.rmdir(ROOT, "d"), Status::NotEmpty);
    refused(w.unlink(ROOT, "none"), Status::NotFound);
    refused(w.rmdir(ROOT, "none"), Status::NotFound);
    let before = w.stat(d).unwrap();
    let gone = w.unlink(d, "f").unwrap();
    assert_eq!(gone.links, 0);
    assert_eq!(w.stat(d).unwrap().modified, gone.changed);
    assert!(gone.changed > before.modified);
    assert_eq!(w.rmdir(ROOT, "d").unwrap().links, 0);
}

#[test]
fn what_has_no_data_goes_by_itself_and_is_counted() {
    let mut w = World::new();
    let count = |w: &mut World| w.run(async |s, _, _| s.inode_count().await).unwrap();
    assert_eq!(count(&mut w), 1);
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    w.unlink(ROOT, "f").unwrap();
    w.rmdir(ROOT, "d").unwrap();
    assert_eq!(count(&mut w), 3);
    assert!(w.due().is_empty());
    w.later(60);
    let due = w.due();
    assert_eq!(due.len(), 2);
    for item in due {
        assert_eq!(w.claim(item), None);
    }
    assert_eq!(count(&mut w), 1);
    refused(w.stat(f), Status::Stale);
    refused(w.stat(d), Status::Stale);
    assert!(w.due().is_empty());
}

#[test]
fn r18_data_stay_while_an_open_is_renewed() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    w.wrote(f, 5000);
    w.open(f, 2, read()).unwrap();
    w.unlink(ROOT, "f").unwrap();
    assert_eq!(w.stat(f).unwrap().length, 5000, "an open file keeps its inode");
    for _ in 0..5 {
        w.later(30);
        let renewed = w.renew(f, 2, read());
        assert_eq!((renewed.status, renewed.rights), (Status::Ok, ember_types::Rights::READ));
        for item in w.due() {
            assert_eq!(w.claim(item), None, "put off");
        }
    }
    w.later(60);
    let due = w.due();
    assert_eq!(due.len(), 1);
    let doomed = w.claim(due[0]).unwrap();
    assert_eq!((doomed.extent, doomed.item.inode), (5000, f));
    assert_eq!(w.renew(f, 2, read()).status, Status::Stale, "from the claim on nobody gets rights");
    refused(w.open(f, 3, read()), Status::Stale);
    assert_eq!(w.claim(due[0]), Some(doomed), "another server may go on");
    w.run(async |s, _, _| s.finish_garbage(&due[0]).await).unwrap();
    refused(w.stat(f), Status::Stale);
    assert_eq!(w.renew(f, 2, read()).status, Status::Stale);
}

#[test]
fn r18_an_open_of_an_unlinked_file_puts_collection_off() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    w.wrote(f, 1);
    w.unlink(ROOT, "f").unwrap();
    w.later(39);
    w.open(f, 2, read()).unwrap();
    w.later(10);
    let due = w.due();
    assert_eq!(w.claim(due[0]), None);
    w.later(60);
    let due = w.due();
    assert!(w.claim(due[0]).is_some());
}

#[test]
fn r18_claim_and_renewal_exclude_each_other() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    w.wrote(f, 1);
    w.unlink(ROOT, "f").unwrap();
    w.later(60);
    let due = w.due();
    let who = Credentials::default();
    let env =
        Env { who: &who, now: UnixTime::default(), cluster: w.cluster(), hold: HOLD, owner: 1, claim: HOLD };
    let request = w.request(2, read());
    let (mut claim, mut renew) = (w.kv.begin(), w.kv.begin());
    assert!(now_or_never(Space::new(claim.as_mut()).claim_garbage(&env, &due[0])).unwrap().is_some());
    let renewed = now_or_never(Space::new(renew.as_mut()).renew(&env, &request, f)).unwrap();
    assert_eq!(renewed.status, Status::Ok);
    now_or_never(renew.commit()).unwrap();
    assert_eq!(now_or_never(claim.commit()), Err(KvError::Conflict));
}

#[test]
fn a_writer_that_never_reported_leaves_data_anywhere() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    w.unlink(ROOT, "f").unwrap();
    w.later(60);
    let due = w.due();
    assert_eq!(w.claim(due[0]).unwrap().extent, u64::MAX);
    w.run(async |s, _, _| s.finish_garbage(&due[0]).await).unwrap();
    let sessions = w.run(async |s, _, _| s.sessions(f).await).unwrap();
    assert!(sessions.is_empty());
}

#[test]
fn r03_garbage_of_a_forgotten_unlink_is_forgotten_too() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let unlinked = w.run_as(Durability::Ordered, async |s, env, _| s.unlink(env, ROOT, b"f").await);
    assert_eq!(unlinked.unwrap().links, 0);
    w.kv.power_loss(|durable, _| durable);
    w.later(60);
    assert!(w.due().is_empty());
    assert_eq!(w.lookup(ROOT, "f").unwrap().inode, f);
}

#[test]
fn r03_a_durable_claim_makes_the_unlink_durable() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    w.wrote(f, 1);
    w.run_as(Durability::Ordered, async |s, env, _| s.unlink(env, ROOT, b"f").await).unwrap();
    w.later(60);
    let due = w.due();
    assert!(w.claim(due[0]).is_some());
    w.kv.power_loss(|durable, _| durable);
    refused(w.lookup(ROOT, "f"), Status::NotFound);
    assert_eq!(w.due(), due);
}

#[test]
fn r03_ids_are_never_handed_out_twice() {
    let mut w = World::new();
    let mut one = w.run_as(Durability::Ordered, async |s, _, _| s.reserve_ids(10).await).unwrap();
    assert_eq!(one.left(), 10);
    let used: Vec<_> = std::iter::from_fn(|| one.take()).collect();
    w.kv.power_loss(|durable, _| durable);
    let mut two = w.run(async |s, _, _| s.reserve_ids(10).await).unwrap();
    let more: Vec<_> = std::iter::from_fn(|| two.take()).collect();
    assert!(used.iter().chain(&more).all(|id| *id > ROOT.0));
    assert!(used.iter().all(|id| !more.contains(id)));
    let who = async |s: &mut Space<'_>, _: &Env<'_>, _| s.reserve_ids(u64::MAX).await;
    refused(w.run(who), Status::NoSpace);
}

//! Lengths, truncation and settlement (R19).

use super::*;
use crate::file::{Found, Written};
use crate::truncate::{Claim, Query};
use crate::{Change, Report, SetAttributes};

const BOUND: Duration = Duration::from_secs(2);

impl World {
    fn cut(&mut self, id: InodeId, length: u64, found: Option<Found>) -> Result<Progress<Attributes>> {
        let set = SetAttributes { length: Some(length), ..Default::default() };
        self.run(async |s, env, ids| {
            s.set_attributes(env, id, Change { set: &set, spare: ids.data, found }).await
        })
    }

    fn claim_cut(&mut self, id: InodeId) -> Claim {
        self.run(async |s, env, _| s.claim_truncation(env, id, BOUND).await).unwrap()
    }

    fn finish(&mut self, id: InodeId, version: u64) -> Attributes {
        self.run(async |s, _, _| s.finish_truncation(id, version).await).unwrap().unwrap()
    }

    fn report(
        &mut self,
        id: InodeId,
        length: u64,
        version: u64,
        found: Option<Found>,
    ) -> Progress<Attributes> {
        let modified = Some(UnixTime { seconds: self.seconds, nanos: 0 });
        let written = Some(Written { length, truncate_version: version, modified });
        self.run(async |s, env, _| s.report(env, id, Report { written, found }).await).unwrap()
    }

    fn close(&mut self, id: InodeId, session: u128) {
        let session = SessionId::from_u128(session);
        self.run(async |s, env, _| s.close(env, id, session, Report::default()).await).unwrap();
    }

    /// A file of that settled length that nobody has open.
    fn file(&mut self, name: &str, length: u64) -> InodeId {
        let f = self.mkfile(ROOT, name, 0o666).unwrap();
        self.open(f, 1, write()).unwrap();
        self.report(f, length, 0, None).done().unwrap();
        self.close(f, 1);
        f
    }

    fn settle(&mut self, id: InodeId, session: u128, found: Option<Found>) -> Progress<()> {
        let session = SessionId::from_u128(session);
        self.run(async |s, env, _| s.settle_session(env, id, session, env.cluster, found).await).unwrap()
    }
}

fn query<T: std::fmt::Debug>(progress: Progress<T>) -> Query {
    match progress {
        Progress::Query(query) => query,
        other => panic!("a question to storage expected, got {other:?}"),
    }
}

#[test]
fn reports_only_grow_the_length() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    w.open(f, 1, write()).unwrap();
    let a = w.report(f, 100, 0, None).done().unwrap();
    assert_eq!((a.length, a.content_version), (100, 1));
    assert_eq!(w.report(f, 50, 0, None).done().unwrap().length, 100);
    let quiet = w.run(async |s, env, _| s.report(env, f, Report::default()).await).unwrap();
    assert_eq!(quiet.done().unwrap().content_version, 2);
    let far = Written { length: u64::MAX, truncate_version: 0, modified: None };
    let far = Report { written: Some(far), found: None };
    refused(w.run(async |s, env, _| s.report(env, f, far).await), Status::FileTooLarge);
    refused(w.run(async |s, env, _| s.report(env, InodeId(9), far).await), Status::Stale);
    refused(w.run(async |s, env, _| s.report(env, ROOT, far).await), Status::InvalidArgument);
}

#[test]
fn cutting_a_closed_file_to_nothing_gives_it_new_data() {
    let mut w = World::new();
    let f = w.file("f", 3 * CHUNK);
    let old = w.stat(f).unwrap();
    let opened = w.open(f, 2, OpenFlags { truncate: true, ..write() }).unwrap().attributes;
    assert_eq!((opened.length, opened.truncating_to), (0, None));
    assert_ne!(opened.data, old.data);
    assert_eq!(opened.truncate_version, old.truncate_version + 1);
    w.seconds += 60;
    let due = w.run(async |s, env, _| s.due_garbage(env.cluster, 9).await).unwrap();
    assert_eq!((due.len(), due[0].data, due[0].garbage.with_inode), (1, old.data, false));
    let doomed = w.run(async |s, env, _| s.claim_garbage(env, &due[0]).await).unwrap().unwrap();
    assert_eq!(doomed.extent, 3 * CHUNK);
    w.run(async |s, _, _| s.finish_garbage(&due[0]).await).unwrap();
    assert_eq!(w.stat(f).unwrap().data, opened.data, "the inode stays");
}

#[test]
fn r19_a_cut_is_promised_then_completed() {
    let mut w = World::new();
    let f = w.file("f", 5000);
    let promised = w.cut(f, 1000, None).unwrap().done().unwrap();
    assert_eq!((promised.length, promised.truncating_to), (1000, Some(1000)));
    assert_eq!(w.cut(f, 10, None).unwrap(), Progress::Finish, "one after the other");
    assert_eq!(w.report(f, 9000, promised.truncate_version, None), Progress::Finish);
    let Claim::Ours(intent) = w.claim_cut(f) else { panic!("it is ours") };
    assert_eq!((intent.cut_from, intent.length, intent.extent), (1000, 1000, Some(5000)));
    assert_eq!(w.finish(f, intent.truncate_version - 1).truncating_to, Some(1000), "not this one");
    let done = w.finish(f, intent.truncate_version);
    assert_eq!((done.length, done.truncating_to), (1000, None));
    assert_eq!(w.claim_cut(f), Claim::None);
    assert_eq!(w.finish(f, intent.truncate_version), done, "twice is once");
    // Nothing is left beyond: the next one needs no storage.
    assert_eq!(w.cut(f, 1000, None).unwrap().done().unwrap().truncating_to, None);
    assert_eq!(w.cut(f, 2000, None).unwrap().done().unwrap().length, 2000);
}

#[test]
fn r19_another_server_resumes_only_after_the_first_ones_rights() {
    let mut w = World::new();
    let f = w.file("f", 5000);
    w.cut(f, 1000, None).unwrap();
    w.owner = 2;
    assert!(matches!(w.claim_cut(f), Claim::Theirs(_)));
    let listed = w.run(async |s, _, _| s.truncations(None, 9).await).unwrap();
    assert_eq!(listed.len(), 1);
    assert!(w.run(async |s, _, _| s.truncations(Some(f), 9).await).unwrap().is_empty());
    w.seconds += 13;
    let Claim::Ours(intent) = w.claim_cut(f) else { panic!("it is ours now") };
    assert!(intent.until > w.cluster());
    w.owner = 1;
    assert!(matches!(w.claim_cut(f), Claim::Theirs(_)));
}

#[test]
fn r19_an_open_file_is_cut_everywhere() {
    let mut w = World::new();
    let f = w.file("f", 10);
    w.open(f, 3, write()).unwrap();
    let data = w.stat(f).unwrap().data;
    let promised = w.cut(f, 0, None).unwrap().done().unwrap();
    assert_eq!((promised.truncating_to, promised.data), (Some(0), data));
    let Claim::Ours(intent) = w.claim_cut(f) else { panic!("it is ours") };
    assert_eq!(intent.extent, None);
    w.finish(f, intent.truncate_version);
}

#[test]
fn r19_a_late_report_is_settled_by_what_storage_holds() {
    let mut w = World::new();
    let f = w.file("f", 5000);
    w.open(f, 2, write()).unwrap();
    let cut = w.cut(f, 0, None).unwrap().done().unwrap();
    w.finish(f, cut.truncate_version);
    // Written under the old truncate version: whether before or after the cut only storage knows.
    let asked = query(w.report(f, 8000, 0, None));
    assert_eq!(asked.truncate_version, cut.truncate_version);
    assert_eq!(w.stat(f).unwrap().length, 0);
    let settled = w.report(f, 8000, 0, Some(asked.answer(20))).done().unwrap();
    assert_eq!(settled.length, 20);
    // The answer is void once another truncation came between.
    let again = w.cut(f, 0, None).unwrap().done().unwrap();
    w.finish(f, again.truncate_version);
    query(w.report(f, 8000, 0, Some(asked.answer(8000))));
    assert_eq!(w.stat(f).unwrap().length, 0);
}

#[test]
fn r19_remains_beyond_the_end_never_come_back() {
    let mut w = World::new();
    let f = w.file("f", 1000);
    w.run(async |s, _, _| {
        let mut inode = s.inode(f).await?;
        inode.extent = 7000;
        s.put_inode(f, inode);
        Ok(())
    })
    .unwrap();
    let asked = query(w.cut(f, 9000, None).unwrap());
    let promised = w.cut(f, 9000, Some(asked.answer(7000))).unwrap().done().unwrap();
    assert_eq!((promised.length, promised.truncating_to), (1000, Some(1000)));
    let Claim::Ours(intent) = w.claim_cut(f) else { panic!("it is ours") };
    assert_eq!((intent.cut_from, intent.length, intent.extent), (1000, 9000, Some(7000)));
    let done = w.finish(f, intent.truncate_version);
    assert_eq!((done.length, done.truncating_to), (9000, None));
}

#[test]
fn r19_extending_keeps_what_an_open_writer_has_not_reported() {
    let mut w = World::new();
    let f = w.file("f", 10);
    w.open(f, 2, write()).unwrap();
    let asked = query(w.cut(f, 9000, None).unwrap());
    let grown = w.cut(f, 9000, Some(asked.answer(500))).unwrap().done().unwrap();
    assert_eq!((grown.length, grown.truncating_to), (9000, None));
    let asked = query(w.cut(f, 20_000, None).unwrap());
    let cut = w.cut(f, 20_000, Some(asked.answer(30_000))).unwrap().done().unwrap();
    assert_eq!((cut.length, cut.truncating_to), (20_000, Some(20_000)), "really a cut");
}

#[test]
fn r19_a_dead_writers_length_is_settled() {
    let mut w = World::new();
    let f = w.file("f", 10);
    w.open(f, 2, write()).unwrap();
    let expired =
        |w: &mut World| w.run(async |s, env, _| s.expired_sessions(&[], 9, env.cluster).await).unwrap();
    assert!(expired(&mut w).0.is_empty());
    assert_eq!(w.settle(f, 2, None), Progress::Done(()), "alive: nothing happens");
    assert_eq!(w.run(async |s, _, _| s.sessions(f).await).unwrap().len(), 1);
    w.seconds += 40;
    let (found, next) = expired(&mut w);
    assert_eq!((found.len(), next), (1, None));
    let asked = found[0].query.unwrap();
    // Another writer reports and syncs meanwhile: settlement only grows.
    assert_eq!(w.report(f, 20, 0, None).done().unwrap().length, 20);
    assert_eq!(w.settle(f, 2, Some(asked.answer(15))), Progress::Done(()));
    assert_eq!(w.stat(f).unwrap().length, 20);
    assert!(w.run(async |s, _, _| s.sessions(f).await).unwrap().is_empty());
}

#[test]
fn r19_settlement_fails_if_a_truncation_came_between() {
    let mut w = World::new();
    let f = w.file("f", 10);
    w.open(f, 2, write()).unwrap();
    w.seconds += 40;
    let (found, _) = w.run(async |s, env, _| s.expired_sessions(&[], 9, env.cluster).await).unwrap();
    let asked = found[0].query.unwrap();
    let cut = w.cut(f, 4, None).unwrap().done().unwrap();
    assert_eq!(w.settle(f, 2, Some(asked.answer(100))), Progress::Finish);
    w.finish(f, cut.truncate_version);
    let asked = query(w.settle(f, 2, Some(asked.answer(100))));
    assert_eq!(w.stat(f).unwrap().length, 4);
    assert_eq!(w.settle(f, 2, Some(asked.answer(6))), Progress::Done(()));
    assert_eq!(w.stat(f).unwrap().length, 6);
}

#[test]
fn lengths_are_checked() {
    let mut w = World::new();
    let f = w.file("f", 10);
    refused(w.cut(ROOT, 0, None), Status::IsDirectory);
    refused(w.cut(f, u64::MAX, None), Status::FileTooLarge);
    w.chmod(f, 0o6777).unwrap();
    w.as_user(4, 4);
    let cut = w.cut(f, 0, None).unwrap().done().unwrap();
    assert_eq!(cut.mode, 0o777, "set-id bits go");
    w.as_root().chmod(f, 0o600).unwrap();
    w.as_user(4, 4);
    refused(w.cut(f, 0, None), Status::PermissionDenied);
    w.as_root().open(f, 8, write()).unwrap();
    w.as_user(4, 4);
    let by =
        |id| SetAttributes { length: Some(0), session: Some(SessionId::from_u128(id)), ..Default::default() };
    refused(w.set(f, by(9)), Status::PermissionDenied);
    w.set(f, by(8)).unwrap().done().unwrap();
}

#[test]
fn renewal_records_a_forgotten_writer_anew() {
    let mut w = World::new();
    let f = w.file("f", 10);
    let both = OpenFlags { read: true, ..write() };
    let request = w.request(5, both);
    let renewed = w.run(async |s, env, _| s.renew(env, &request, f).await).unwrap();
    assert_eq!((renewed.status, renewed.rights), (Status::Ok, both.rights()));
    assert_eq!(w.run(async |s, _, _| s.sessions(f).await).unwrap().len(), 1);
    let thief = OpenRequest { client: ClientId::from_u128(66), ..w.request(5, read()) };
    let refused = w.run(async |s, env, _| s.renew(env, &thief, f).await).unwrap();
    assert_eq!(refused.status, Status::Stale, "another client's session");
    let gone = w.run(async |s, env, _| s.renew(env, &request, InodeId(4444)).await).unwrap();
    assert_eq!(gone.status, Status::Stale);
}

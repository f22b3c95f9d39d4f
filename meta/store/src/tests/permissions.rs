use super::*;
use crate::{RenameFlags, SetAttributes, SetTime};

fn set(w: &mut World, id: InodeId, set: SetAttributes) -> Result<Attributes> {
    Ok(w.set(id, set)?.done().unwrap())
}

#[test]
fn search_and_write_permission_of_directories() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o754).unwrap();
    w.mkfile(d, "f", 0o644).unwrap();
    w.as_user(5, 5);
    refused(w.lookup(d, "f"), Status::PermissionDenied);
    refused(w.unlink(d, "none"), Status::PermissionDenied);
    w.as_root().chmod(d, 0o755).unwrap();
    w.as_user(5, 5);
    w.lookup(d, "f").unwrap();
    refused(w.unlink(d, "f"), Status::PermissionDenied);
    refused(w.rmdir(d, "f"), Status::PermissionDenied);
    refused(w.mkfile(d, "g", 0o644), Status::PermissionDenied);
    refused(w.rename((d, "f"), (d, "g"), RenameFlags::default()), Status::PermissionDenied);
    refused(w.unlink(d, "none"), Status::NotFound);
    refused(w.mkdir(d, "f", 0o755), Status::Exists);
}

#[test]
fn groups_and_others_are_told_apart() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o604).unwrap();
    set(&mut w, f, SetAttributes { uid: Some(1), gid: Some(100), ..Default::default() }).unwrap();
    let check = |w: &mut World, mask| w.run(async |s, env, _| s.check_access(env, f, mask).await);
    w.who = user(1, 50, &[]);
    check(&mut w, 6).unwrap();
    refused(check(&mut w, 1), Status::PermissionDenied);
    w.who = user(2, 50, &[100]);
    refused(check(&mut w, 4), Status::PermissionDenied);
    w.who = user(2, 50, &[]);
    check(&mut w, 4).unwrap();
    w.as_root();
    check(&mut w, 6).unwrap();
    refused(check(&mut w, 1), Status::PermissionDenied);
    refused(check(&mut w, 8), Status::InvalidArgument);
}

#[test]
fn opens_check_what_they_ask_for() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o451).unwrap();
    let d = w.mkdir(ROOT, "d", 0o711).unwrap();
    w.as_user(3, 3);
    refused(w.open(f, 1, read()), Status::PermissionDenied);
    refused(w.open(f, 1, write()), Status::PermissionDenied);
    let truncate = OpenFlags { truncate: true, ..Default::default() };
    refused(w.open(f, 1, truncate), Status::PermissionDenied);
    w.open(f, 1, OpenFlags { execute: true, ..read() }).unwrap();
    refused(w.open(d, 1, read()), Status::PermissionDenied);
    w.as_root();
    assert_eq!(w.open(d, 1, read()).unwrap().rights, Default::default());
    refused(w.open(d, 1, write()), Status::IsDirectory);
    refused(w.open(InodeId(999), 1, read()), Status::Stale);
}

#[test]
fn sticky_directories_protect_foreign_entries() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "tmp", 0o1777).unwrap();
    w.as_user(1, 1).mkfile(d, "mine", 0o666).unwrap();
    w.mkdir(d, "dir", 0o777).unwrap();
    w.as_user(2, 2).mkfile(d, "other", 0o666).unwrap();
    refused(w.unlink(d, "mine"), Status::NotPermitted);
    refused(w.rmdir(d, "dir"), Status::NotPermitted);
    refused(w.rename((d, "mine"), (d, "x"), RenameFlags::default()), Status::NotPermitted);
    refused(w.rename((d, "other"), (d, "mine"), RenameFlags::default()), Status::NotPermitted);
    w.as_user(1, 1).unlink(d, "mine").unwrap();
    w.as_root().unlink(d, "other").unwrap();
}

#[test]
fn moving_a_directory_needs_write_permission_on_it() {
    let mut w = World::new();
    w.chmod(ROOT, 0o777).unwrap();
    let to = w.mkdir(ROOT, "to", 0o777).unwrap();
    w.mkdir(ROOT, "d", 0o755).unwrap();
    w.as_user(4, 4);
    refused(w.rename((ROOT, "d"), (to, "d"), RenameFlags::default()), Status::PermissionDenied);
    w.rename((ROOT, "d"), (ROOT, "e"), RenameFlags::default()).unwrap();
}

#[test]
fn chmod_and_chown_follow_the_rules() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    set(&mut w, f, SetAttributes { uid: Some(1), gid: Some(10), ..Default::default() }).unwrap();
    w.who = user(2, 10, &[]);
    refused(w.chmod(f, 0o600), Status::NotPermitted);
    let to = |uid, gid| SetAttributes { uid, gid, ..Default::default() };
    refused(set(&mut w, f, to(Some(2), None)), Status::NotPermitted);
    refused(set(&mut w, f, to(None, Some(10))), Status::NotPermitted);
    w.who = user(1, 10, &[20]);
    assert_eq!(w.chmod(f, 0o6755).unwrap().mode, 0o6755);
    let before = w.stat(f).unwrap();
    let changed = set(&mut w, f, to(None, Some(20))).unwrap();
    assert_eq!((changed.gid, changed.mode), (20, 0o755), "set-id bits go with the group");
    assert!(changed.changed > before.changed);
    refused(set(&mut w, f, to(Some(2), None)), Status::NotPermitted);
    refused(set(&mut w, f, to(None, Some(30))), Status::NotPermitted);
    set(&mut w, f, to(Some(1), Some(20))).unwrap();
    w.who = user(1, 10, &[]);
    assert_eq!(w.chmod(f, 0o2755).unwrap().mode, 0o755, "set-group-id of a foreign group");
    let d = w.as_root().mkdir(ROOT, "d", 0o755).unwrap();
    w.chmod(d, 0o6755).unwrap();
    assert_eq!(set(&mut w, d, to(Some(9), Some(9))).unwrap().mode, 0o6755, "a directory keeps them");
}

#[test]
fn a_writer_may_drop_set_id_bits_but_nothing_else() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o6777).unwrap();
    w.as_user(8, 8);
    refused(w.chmod(f, 0o755), Status::NotPermitted);
    assert_eq!(w.chmod(f, 0o777).unwrap().mode, 0o777);
    w.as_root().chmod(f, 0o6775).unwrap();
    w.as_user(8, 8);
    refused(w.chmod(f, 0o775), Status::NotPermitted);
    w.as_root().chmod(f, 0o6777).unwrap();
    w.as_user(8, 8);
    let clear = SetAttributes { clear_set_id: true, ..Default::default() };
    assert_eq!(set(&mut w, f, clear).unwrap().mode, 0o777);
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o777).unwrap();
    set(&mut w, d, SetAttributes { gid: Some(50), ..Default::default() }).unwrap();
    w.chmod(d, 0o2777).unwrap();
    w.as_user(1, 1);
    let f = w.mkfile(d, "f", 0o2674).unwrap();
    let a = w.stat(f).unwrap();
    assert_eq!((a.gid, a.mode), (50, 0o674));
    let e = w.mkdir(d, "e", 0o755).unwrap();
    let a = w.stat(e).unwrap();
    assert_eq!((a.gid, a.mode), (50, 0o2755));
}

#[test]
fn times_are_set_by_owners_or_to_now_by_writers() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o646).unwrap();
    let at = |s| SetTime::At(UnixTime { seconds: s, nanos: 5 });
    let both = |t: SetTime| SetAttributes { accessed: Some(t), modified: Some(t), ..Default::default() };
    let a = set(&mut w, f, both(at(-7))).unwrap();
    assert_eq!((a.accessed.seconds, a.modified.nanos), (-7, 5));
    assert_eq!(a.changed.seconds, w.seconds);
    w.as_user(3, 3);
    refused(set(&mut w, f, both(at(1))), Status::NotPermitted);
    assert_eq!(set(&mut w, f, both(SetTime::Now)).unwrap().modified.seconds, w.seconds);
    w.as_root().chmod(f, 0o644).unwrap();
    w.as_user(3, 3);
    refused(set(&mut w, f, both(SetTime::Now)), Status::PermissionDenied);
    w.as_root();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    let a = set(&mut w, d, both(at(44))).unwrap();
    assert_eq!((a.accessed.seconds, a.modified.seconds, a.changed.seconds), (44, 44, w.seconds));
}

use super::*;
use crate::create::NodeRequest;
use ember_types::Rights;
use ember_types::file::{LINK_MAX, NAME_MAX, SYMLINK_MAX};

fn create(w: &mut World, parent: InodeId, name: &str, exclusive: bool, flags: OpenFlags) -> Result<Opened> {
    let placement = w.placement();
    let request = w.request(1, flags);
    let made = w.run(async |s, env, ids| {
        s.create(env, parent, name.as_bytes(), 0o640, exclusive, &request, ids, &placement).await
    })?;
    Ok(made.done().unwrap())
}

#[test]
fn create_makes_opens_and_places_a_file() {
    let mut w = World::new();
    w.as_user(5, 6);
    refused(create(&mut w, ROOT, "f", true, write()), Status::PermissionDenied);
    w.as_root().chmod(ROOT, 0o777).unwrap();
    w.as_user(5, 6);
    let both = OpenFlags { read: true, write: true, ..Default::default() };
    let made = create(&mut w, ROOT, "f", true, both).unwrap();
    let a = made.attributes;
    assert!(made.created);
    assert_eq!(made.rights, Rights::READ.and(Rights::WRITE));
    assert_eq!((a.kind, a.mode, a.uid, a.gid, a.links, a.length), (FileKind::File, 0o640, 5, 6, 1, 0));
    assert_eq!(a.layout, w.placement().place(None));
    assert_eq!(a.layout.unwrap().table_version(), ChainTableVersion(3));
    assert_eq!(w.lookup(ROOT, "f").unwrap(), a);
    let root = w.stat(ROOT).unwrap();
    assert_eq!((root.modified, root.changed), (a.modified, a.modified));
    refused(create(&mut w, ROOT, "f", true, both), Status::Exists);
    let again = create(&mut w, ROOT, "f", false, read()).unwrap();
    assert!(!again.created && again.attributes.inode == a.inode);
    w.as_user(9, 9);
    refused(create(&mut w, ROOT, "f", false, read()), Status::PermissionDenied);
    w.as_root().mkdir(ROOT, "d", 0o755).unwrap();
    refused(create(&mut w, ROOT, "d", false, read()), Status::IsDirectory);
    refused(create(&mut w, a.inode, "x", false, read()), Status::NotDirectory);
    refused(create(&mut w, InodeId(9999), "x", false, read()), Status::Stale);
}

#[test]
fn a_file_without_a_chain_table_is_refused_for_now() {
    let mut w = World::new();
    let request = w.request(1, write());
    let none = Placement::default();
    let made = w.run(async |s, env, ids| s.create(env, ROOT, b"f", 0o644, true, &request, ids, &none).await);
    refused(made, Status::Unavailable);
    refused(w.lookup(ROOT, "f"), Status::NotFound);
}

#[test]
fn names_are_checked() {
    let mut w = World::new();
    let long = "n".repeat(NAME_MAX);
    w.mkdir(ROOT, &long, 0o755).unwrap();
    assert_eq!(w.lookup(ROOT, &long).unwrap().kind, FileKind::Directory);
    let longer = "n".repeat(NAME_MAX + 1);
    refused(w.mkdir(ROOT, &longer, 0o755), Status::NameTooLong);
    refused(w.lookup(ROOT, &longer), Status::NameTooLong);
    refused(w.unlink(ROOT, &longer), Status::NameTooLong);
    for bad in ["", ".", "..", "a/b", "a\0b"] {
        refused(w.mkdir(ROOT, bad, 0o755), Status::InvalidArgument);
        refused(w.rmdir(ROOT, bad), Status::InvalidArgument);
        refused(w.rename((ROOT, &long), (ROOT, bad), Default::default()), Status::InvalidArgument);
    }
}

#[test]
fn directories_count_their_sub_directories() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    assert_eq!(w.stat(d).unwrap().links, 2);
    w.mkdir(d, "a", 0o755).unwrap();
    w.mkdir(d, "b", 0o755).unwrap();
    w.mkfile(d, "f", 0o644).unwrap();
    assert_eq!(w.stat(d).unwrap().links, 4);
    assert_eq!(w.lookup(d, "..").unwrap().inode, ROOT);
    assert_eq!(w.lookup(d, ".").unwrap().inode, d);
    w.rmdir(d, "a").unwrap();
    assert_eq!(w.stat(d).unwrap().links, 3);
    refused(w.mkdir(d, "f", 0o755), Status::Exists);
    refused(w.mkdir(d, "b", 0o755), Status::Exists);
}

#[test]
fn special_files_and_symlinks() {
    let mut w = World::new();
    let placement = w.placement();
    let node = |w: &mut World, name: &str, kind, device| {
        let node = NodeRequest { kind, mode: 0o600, device };
        w.run(async |s, env, ids| s.make_node(env, ROOT, name.as_bytes(), node, ids, &placement).await)
    };
    assert_eq!(node(&mut w, "dev", FileKind::CharDevice, 77).unwrap().device, 77);
    w.chmod(ROOT, 0o777).unwrap();
    w.as_user(1, 1);
    refused(node(&mut w, "dev2", FileKind::BlockDevice, 1), Status::NotPermitted);
    assert_eq!(node(&mut w, "fifo", FileKind::Fifo, 9).unwrap().device, 0);
    assert_eq!(node(&mut w, "sock", FileKind::Socket, 0).unwrap().kind, FileKind::Socket);
    refused(node(&mut w, "x", FileKind::Directory, 0), Status::InvalidArgument);

    let long = vec![b't'; SYMLINK_MAX];
    let made = w.run(async |s, env, ids| s.make_symlink(env, ROOT, b"l", &long, ids).await).unwrap();
    assert_eq!((made.length, made.mode), (SYMLINK_MAX as u64, 0o777));
    assert_eq!(w.run(async |s, _, _| s.read_symlink(made.inode).await).unwrap(), long);
    refused(w.run(async |s, _, _| s.read_symlink(ROOT).await), Status::InvalidArgument);
    let longer = vec![b't'; SYMLINK_MAX + 1];
    let made2 = w.run(async |s, env, ids| s.make_symlink(env, ROOT, b"m", &longer, ids).await);
    refused(made2, Status::NameTooLong);
    refused(w.run(async |s, env, ids| s.make_symlink(env, ROOT, b"m", b"", ids).await), Status::NotFound);
    refused(w.open(made.inode, 1, read()), Status::SymlinkLoop);
}

#[test]
fn hard_links_count_and_are_limited() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    let linked = w.link(f, d, "g").unwrap();
    assert_eq!(linked.links, 2);
    assert_eq!(w.lookup(d, "g").unwrap().inode, f);
    refused(w.link(f, d, "g"), Status::Exists);
    refused(w.link(d, ROOT, "e"), Status::NotPermitted);
    assert_eq!(w.unlink(ROOT, "f").unwrap().links, 1);
    assert_eq!(w.unlink(d, "g").unwrap().links, 0);
    refused(w.link(f, d, "h"), Status::NotFound);
    let full = w.mkfile(ROOT, "full", 0o644).unwrap();
    w.run(async |s, _, _| {
        let mut inode = s.inode(full).await?;
        inode.links = LINK_MAX;
        s.put_inode(full, inode);
        Ok(())
    })
    .unwrap();
    refused(w.link(full, d, "x"), Status::TooManyLinks);
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let gone = w.rmdir(ROOT, "d").unwrap();
    assert_eq!(gone.links, 0);
    assert_eq!(w.stat(d).unwrap().links, 0);
    refused(w.mkdir(d, "x", 0o755), Status::NotFound);
    refused(w.mkfile(d, "x", 0o755), Status::NotFound);
    refused(create(&mut w, d, "x", true, write()), Status::NotFound);
    refused(w.link(f, d, "x"), Status::NotFound);
    refused(w.rename((ROOT, "f"), (d, "x"), Default::default()), Status::NotFound);
}

#[test]
fn creates_in_one_directory_conflict_only_on_the_name() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o777).unwrap();
    let who = Credentials::default();
    let at = |w: &World, name: &str, id: u64| {
        let mut tx = w.kv.begin();
        let mut space = Space::new(tx.as_mut());
        let env = Env {
            who: &who,
            now: UnixTime { seconds: id as i64, nanos: 0 },
            cluster: w.cluster(),
            hold: HOLD,
            owner: 1,
            claim: HOLD,
        };
        let ids = NewIds { inode: InodeId(id), data: DataId(id) };
        now_or_never(space.make_directory(&env, d, name.as_bytes(), 0o755, ids)).unwrap();
        tx
    };
    let (a, b, c) = (at(&w, "a", 9000), at(&w, "b", 9001), at(&w, "a", 9002));
    now_or_never(a.commit()).unwrap();
    now_or_never(b.commit()).unwrap();
    assert_eq!(now_or_never(c.commit()), Err(KvError::Conflict));
    assert_eq!(w.stat(d).unwrap().links, 4);
    let late = at(&w, "late", 9003);
    for name in ["a", "b"] {
        w.rmdir(d, name).unwrap();
    }
    w.rmdir(ROOT, "d").unwrap();
    assert_eq!(now_or_never(late.commit()), Err(KvError::Conflict));
}

//! Listings, positions and rename.

use super::*;
use crate::{RenameFlags, position_of};

const NO_REPLACE: RenameFlags = RenameFlags { no_replace: true, exchange: false };
const EXCHANGE: RenameFlags = RenameFlags { no_replace: false, exchange: true };
const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false };

#[test]
fn positions_are_a_format() {
    assert_eq!(position_of(b"a"), GOLDEN_A);
    assert_eq!(position_of(b"Cargo.toml"), GOLDEN_CARGO);
    assert!(position_of(b"") >= crate::COOKIE_FIRST);
}
const GOLDEN_A: u64 = 3_428_612_973_383_238_272;
const GOLDEN_CARGO: u64 = 1_930_965_153_368_839_936;

#[test]
fn a_listing_goes_on_behind_its_cookie_whatever_changes_around_it() {
    let mut w = World::new();
    for i in 0..100 {
        w.mkfile(ROOT, &format!("f{i}"), 0o644).unwrap();
    }
    let first = w.run(async |s, _, _| s.read_directory(ROOT, 0, 10, false).await).unwrap();
    assert!(first.more && first.entries.len() == 10);
    let cookie = first.entries[9].cookie;
    let seen: Vec<_> = first.entries.iter().map(|e| e.name.clone()).collect();
    for name in &seen {
        w.unlink(ROOT, std::str::from_utf8(name).unwrap()).unwrap();
    }
    for i in 100..120 {
        w.mkfile(ROOT, &format!("f{i}"), 0o644).unwrap();
    }
    let rest = w.run(async |s, _, _| s.read_directory(ROOT, cookie, 4096, false).await).unwrap();
    let rest: Vec<_> = rest.entries.into_iter().map(|e| e.name).collect();
    for i in 0..100 {
        let name = format!("f{i}").into_bytes();
        assert!(seen.contains(&name) != rest.contains(&name), "f{i} once and only once");
    }
    assert_eq!(w.names(ROOT, 7).len(), 110);
}

#[test]
fn names_of_one_hash_live_side_by_side() {
    let mut w = World::new();
    let name = |i: u32| format!("collide-{i}");
    for i in 0..5 {
        w.mkfile(ROOT, &name(i), 0o644).unwrap();
    }
    let ids: Vec<_> = (0..5).map(|i| w.lookup(ROOT, &name(i)).unwrap().inode).collect();
    assert_eq!(w.names(ROOT, 1).len(), 5);
    w.unlink(ROOT, &name(0)).unwrap();
    refused(w.lookup(ROOT, &name(0)), Status::NotFound);
    assert_eq!(w.names(ROOT, 1), [name(1), name(2), name(3), name(4)]);
    w.unlink(ROOT, &name(2)).unwrap();
    w.rename((ROOT, &name(4)), (ROOT, &name(3)), PLAIN).unwrap();
    assert_eq!(w.lookup(ROOT, &name(3)).unwrap().inode, ids[4]);
    w.rename((ROOT, &name(1)), (ROOT, &name(9)), PLAIN).unwrap();
    assert_eq!(w.lookup(ROOT, &name(9)).unwrap().inode, ids[1]);
    let mut left = w.names(ROOT, 2);
    left.sort();
    assert_eq!(left, [name(3), name(9)]);
    w.unlink(ROOT, &name(3)).unwrap();
    w.unlink(ROOT, &name(9)).unwrap();
    assert!(w.names(ROOT, 1).is_empty());
    assert!(w.run(async |s, _, _| s.is_empty(ROOT).await).unwrap());
    for i in 0..128 {
        w.mkfile(ROOT, &name(i), 0o644).unwrap();
    }
    refused(w.mkfile(ROOT, &name(128), 0o644), Status::NoSpace);
    assert_eq!(w.names(ROOT, 50).len(), 128);
}

#[test]
fn rename_replaces_what_is_there() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let g = w.mkfile(ROOT, "g", 0o644).unwrap();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    refused(w.rename((ROOT, "none"), (ROOT, "x"), PLAIN), Status::NotFound);
    refused(w.rename((ROOT, "f"), (ROOT, "g"), NO_REPLACE), Status::Exists);
    refused(w.rename((ROOT, "f"), (ROOT, "d"), PLAIN), Status::IsDirectory);
    refused(w.rename((ROOT, "d"), (ROOT, "f"), PLAIN), Status::NotDirectory);
    let gone = w.rename((ROOT, "f"), (ROOT, "g"), PLAIN).unwrap().unwrap();
    assert_eq!((gone.inode, gone.links), (g, 0));
    assert_eq!(w.lookup(ROOT, "g").unwrap().inode, f);
    refused(w.lookup(ROOT, "f"), Status::NotFound);
    assert_eq!(w.rename((ROOT, "g"), (d, "h"), NO_REPLACE).unwrap(), None);
    assert_eq!(w.lookup(d, "h").unwrap().inode, f);
    w.link(f, d, "i").unwrap();
    assert_eq!(w.rename((d, "h"), (d, "i"), PLAIN).unwrap(), None);
    assert_eq!(w.names(d, 9).len(), 2, "two names of one inode both stay");
    let both = RenameFlags { no_replace: true, exchange: true };
    refused(w.rename((d, "h"), (d, "i"), both), Status::InvalidArgument);
}

#[test]
fn rename_of_directories_keeps_counts_and_parents() {
    let mut w = World::new();
    let a = w.mkdir(ROOT, "a", 0o755).unwrap();
    let b = w.mkdir(a, "b", 0o755).unwrap();
    let c = w.mkdir(b, "c", 0o755).unwrap();
    let t = w.mkdir(ROOT, "t", 0o755).unwrap();
    refused(w.rename((ROOT, "a"), (c, "x"), PLAIN), Status::InvalidArgument);
    refused(w.rename((ROOT, "a"), (a, "x"), PLAIN), Status::InvalidArgument);
    refused(w.rename((b, "c"), (ROOT, "a"), PLAIN), Status::NotEmpty);
    refused(w.rename((b, "c"), (ROOT, "a"), EXCHANGE), Status::InvalidArgument);
    w.rename((a, "b"), (ROOT, "t"), PLAIN).unwrap();
    assert_eq!(w.stat(t).unwrap().links, 0);
    assert_eq!(w.lookup(b, "..").unwrap().inode, ROOT);
    assert_eq!(w.stat(a).unwrap().links, 2);
    assert_eq!(w.stat(ROOT).unwrap().links, 4);
    refused(
        w.rename((ROOT, "a"), (ROOT, "t"), PLAIN).map(|_| ()).and(w.rmdir(ROOT, "t").map(|_| ())),
        Status::NotEmpty,
    );
}

#[test]
fn exchange_swaps_kinds_and_counts() {
    let mut w = World::new();
    let d = w.mkdir(ROOT, "d", 0o755).unwrap();
    let e = w.mkdir(d, "e", 0o755).unwrap();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    refused(w.rename((ROOT, "f"), (ROOT, "none"), EXCHANGE), Status::NotFound);
    assert_eq!(w.rename((ROOT, "f"), (d, "e"), EXCHANGE).unwrap(), None);
    assert_eq!(w.lookup(ROOT, "f").unwrap().inode, e);
    assert_eq!(w.lookup(d, "e").unwrap().inode, f);
    assert_eq!(w.lookup(e, "..").unwrap().inode, ROOT);
    assert_eq!((w.stat(d).unwrap().links, w.stat(ROOT).unwrap().links), (2, 4));
    let listed = w.run(async |s, _, _| s.read_directory(d, 0, 9, false).await).unwrap();
    assert_eq!(listed.entries[0].kind, FileKind::File);
}

#[test]
fn two_renames_that_make_a_loop_together_conflict() {
    let mut w = World::new();
    w.mkdir(ROOT, "a", 0o755).unwrap();
    w.mkdir(ROOT, "b", 0o755).unwrap();
    let (a, b) = (w.lookup(ROOT, "a").unwrap().inode, w.lookup(ROOT, "b").unwrap().inode);
    let who = Credentials::default();
    let env =
        Env { who: &who, now: UnixTime::default(), cluster: w.cluster(), hold: HOLD, owner: 1, claim: HOLD };
    let (mut one, mut two) = (w.kv.begin(), w.kv.begin());
    let first = Space::new(one.as_mut()).rename(&env, (ROOT, b"a"), (b, b"a"), PLAIN).now();
    let second = Space::new(two.as_mut()).rename(&env, (ROOT, b"b"), (a, b"b"), PLAIN).now();
    assert!(first.is_ok() && second.is_ok());
    now_or_never(one.commit()).unwrap();
    assert_eq!(now_or_never(two.commit()), Err(KvError::Conflict));
}

trait Now: Future + Sized {
    fn now(self) -> Self::Output {
        now_or_never(self)
    }
}
impl<F: Future> Now for F {}

//! Golden bytes: these must load for ever.

use super::*;
use crate::codec::{decode, encode};
use crate::record::{Dentry, DirTimes, Garbage, Inode, Intent, RequestRecord, Session};
use crate::table;
use minicbor::{Decode, Encode};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
fn golden<T>(name: &str, value: &T)
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + std::fmt::Debug,
{
    let bytes = encode(value);
    let fixture = FIXTURES.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    assert_eq!(fixture, Some(hex(&bytes).as_str()), "{name}");
    let read: T = decode("t", b"k", &bytes).unwrap();
    assert_eq!(&read, value);
    for cut in 0..bytes.len() {
        assert!(decode::<T>("t", b"k", &bytes[..cut]).is_err());
    }
    let mut other = bytes.clone();
    other[0] = 9;
    let error = decode::<T>("t", b"k", &other).unwrap_err();
    assert!(error.to_string().contains("format 9"), "{error}");
    other[0] = 1;
    other.push(0);
    assert!(decode::<T>("t", b"k", &other).is_err());
}

const FIXTURES: &str = include_str!("../../fixtures/records.txt");

#[test]
fn records_are_formats() {
    let time = |seconds| UnixTime { seconds, nanos: 7 };
    golden(
        "inode",
        &Inode {
            kind: FileKind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            links: 1,
            length: 5000,
            accessed: time(1),
            modified: time(2),
            changed: time(-3),
            device: 0,
            layout: Some(template()),
            data: DataId(77),
            truncate_version: 3,
            content_version: 4,
            truncating_to: Some(10),
            parent: InodeId(0),
            target: b"t".to_vec(),
            extent: 6000,
            collecting: true,
        },
    );
    golden("times", &DirTimes { modified: time(5), changed: time(6) });
    let dentry =
        Dentry { name: b"name".to_vec(), inode: InodeId(9), kind: FileKind::Symlink, crowded: false };
    golden("dentry", &dentry);
    let until = ClusterTime(123_456);
    golden("session", &Session { client: ClientId([8; 16]), until, read: true });
    golden("garbage", &Garbage { with_inode: true, layout: Some(template()), extent: Some(1) });
    let intent = Intent {
        data: DataId(1),
        layout: template(),
        cut_from: 2,
        length: 3,
        truncate_version: 4,
        extent: None,
        owner: 5,
        until,
    };
    golden("intent", &intent);
    golden("request", &RequestRecord { sequence: 1, at: until, answer: vec![1, 2, 3] });
}

#[test]
fn keys_are_formats_and_go_back() {
    let (inode, data) = (InodeId(0x0102), DataId(0x0a0b));
    let session = SessionId([0xcc; 16]);
    let keys = [
        ("inode", table::inode(inode), "6d490000000000000102"),
        ("times", table::times(inode), "6d540000000000000102"),
        ("subdirs", table::subdirs(inode), "6d4c0000000000000102"),
        ("dentry", table::dentry(inode, 7), "6d4400000000000001020000000000000007"),
        ("hold", table::hold(inode), "6d480000000000000102"),
        ("intent", table::intent(inode), "6d430000000000000102"),
        ("counter", table::counter("x"), "6d4e78"),
    ];
    for (name, key, want) in keys {
        assert_eq!(hex(&key), want, "{name}");
    }
    let garbage = table::garbage(ClusterTime(5), inode, data);
    assert_eq!(hex(&garbage), "6d47000000000000000500000000000001020000000000000a0b");
    assert_eq!(table::garbage_ids(&garbage), Some((ClusterTime(5), inode, data)));
    assert!(table::garbage_due(ClusterTime(5)).contains(&garbage));
    assert!(!table::garbage_due(ClusterTime(4)).contains(&garbage));
    let key = table::session(inode, session);
    assert_eq!(table::session_ids(&key), Some((inode, session)));
    assert_eq!(hex(&key), format!("6d530000000000000102{}", "cc".repeat(16)));
    let request = table::request(ClientId([1; 16]), 0x203);
    assert_eq!(hex(&request), format!("6d52{}0203", "01".repeat(16)));
    assert_eq!(table::dentry_position(&table::dentry(inode, 7)), Some(7));
    assert_eq!(table::dentry_position(&table::inode(inode)), None);
    assert_eq!(table::session_ids(&key[..20]), None);
}

#[test]
fn a_damaged_record_is_named() {
    let mut w = World::new();
    let f = w.mkfile(ROOT, "f", 0o644).unwrap();
    let mut tx = w.kv.begin();
    tx.set(&table::inode(f), &[1, 0xff, 0xff]);
    now_or_never(tx.commit()).unwrap();
    let error = w.stat(f).unwrap_err();
    assert_eq!(error.status(), Status::Corrupt);
    let text = error.to_string();
    assert!(text.contains("inode") && text.contains("ember meta import"), "{text}");
    assert_eq!(w.unlink(ROOT, "f").unwrap_err().status(), Status::Corrupt);
    let mut tx = w.kv.begin();
    tx.set(&table::counter("inodes"), &[1]);
    now_or_never(tx.commit()).unwrap();
    assert_eq!(w.run(async |s, _, _| s.inode_count().await).unwrap_err().status(), Status::Corrupt);
}

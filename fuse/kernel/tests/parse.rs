//! The parser against real, cut, wrong and random messages.

use ember_fuse_kernel::abi::*;
use ember_fuse_kernel::{Malformed, Op, Request};
use proptest::prelude::*;
use zerocopy::{Immutable, IntoBytes};

fn message(code: u32, extensions: usize, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: code,
        unique: 42,
        nodeid: 7,
        uid: 1000,
        total_extlen: (extensions / 8) as u16,
        ..InHeader::default()
    };
    [header.as_bytes(), &body].concat()
}

fn parse(bytes: &[u8]) -> Result<Request<'_>, Malformed> {
    Request::parse(bytes)
}

fn bytes<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}

#[test]
fn names_and_targets() {
    let lookup = message(opcode::LOOKUP, 0, &[b"name\0"]);
    let request = parse(&lookup).unwrap();
    assert_eq!((request.header.unique, request.header.nodeid, request.header.uid), (42, 7, 1000));
    assert!(matches!(request.op, Op::Lookup { name: b"name" }));
    assert!(request.wants_reply() && !request.is_resend());

    let symlink = message(opcode::SYMLINK, 0, &[b"link\0", b"../a/b\0"]);
    assert!(matches!(parse(&symlink).unwrap().op, Op::Symlink { name: b"link", target: b"../a/b" }));

    let args = Rename2In { newdir: 9, flags: 1, padding: 0 };
    let rename = message(opcode::RENAME2, 0, &[bytes(&args), b"old\0", b"new\0"]);
    let op = parse(&rename).unwrap().op;
    assert!(matches!(op, Op::Rename { newdir: 9, flags: 1, name: b"old", newname: b"new" }));
}

#[test]
fn bad_names_are_malformed_and_answerable() {
    for name in [&b"\0"[..], b"a/b\0", b"no end", b""] {
        let bad = message(opcode::UNLINK, 0, &[name]);
        let error = parse(&bad).unwrap_err();
        assert_eq!(error.wants_reply(), Some(42), "{name:?}");
    }
    // An unnamed file comes with the name "/", which is not one.
    let tmpfile = message(opcode::TMPFILE, 0, &[bytes(&CreateIn::default()), b"/\0"]);
    assert!(matches!(parse(&tmpfile).unwrap().op, Op::Tmpfile { .. }));
}

#[test]
fn data_have_the_promised_length() {
    let args = WriteIn { offset: 4096, size: 5, ..WriteIn::default() };
    let write = message(opcode::WRITE, 0, &[bytes(&args), b"hello"]);
    match parse(&write).unwrap().op {
        Op::Write { args, data } => assert_eq!((args.offset, data), (4096, &b"hello"[..])),
        op => panic!("{op:?}"),
    }
    let args = WriteIn { size: 6, ..args };
    assert!(parse(&message(opcode::WRITE, 0, &[bytes(&args), b"hello"])).is_err());

    let args = SetxattrCompatIn { size: 3, flags: 2 };
    let setxattr = message(opcode::SETXATTR, 0, &[bytes(&args), b"user.a/b\0", b"val"]);
    let op = parse(&setxattr).unwrap().op;
    assert!(matches!(op, Op::Setxattr { flags: 2, name: b"user.a/b", value: b"val" }));
}

#[test]
fn forgets_are_counted_and_not_answered() {
    let head = BatchForgetIn { count: 2, dummy: 0 };
    let ones = [ForgetOne { nodeid: 3, nlookup: 1 }, ForgetOne { nodeid: 4, nlookup: 2 }];
    let batch = message(opcode::BATCH_FORGET, 0, &[bytes(&head), bytes(&ones)]);
    let request = parse(&batch).unwrap();
    assert!(!request.wants_reply());
    let Op::BatchForget(nodes) = request.op else { panic!("{:?}", request.op) };
    assert_eq!((nodes.len(), nodes.collect::<Vec<_>>()), (2, ones.to_vec()));

    let head = BatchForgetIn { count: u32::MAX, dummy: 0 };
    let error = parse(&message(opcode::BATCH_FORGET, 0, &[bytes(&head), bytes(&ones)])).unwrap_err();
    assert_eq!(error.wants_reply(), None);
}

#[test]
fn init_of_old_and_new_kernels() {
    let new = InitIn { major: 7, minor: 45, flags: 3, flags2: 9, ..InitIn::default() };
    let long = message(opcode::INIT, 0, &[bytes(&new)]);
    assert!(matches!(parse(&long).unwrap().op, Op::Init(init) if init == new));
    let short = message(opcode::INIT, 0, &[&bytes(&new)[..16]]);
    assert!(matches!(parse(&short).unwrap().op, Op::Init(init) if init.flags2 == 0 && init.minor == 45));
    assert!(parse(&message(opcode::INIT, 0, &[&bytes(&new)[..8]])).is_err());
}

#[test]
fn lengths_in_the_header_must_be_true() {
    let good = message(opcode::STATFS, 0, &[]);
    assert!(parse(&good).is_ok());
    assert!(parse(&good[..39]).unwrap_err().header.is_none());
    let mut long = good.clone();
    long.push(0);
    assert!(parse(&long).unwrap_err().header.is_some());
    assert!(parse(&message(opcode::STATFS, 16, &[b"only 8!!"])).is_err());
}

#[test]
fn unknown_opcodes_are_not_errors() {
    for code in [0, 7, 19, opcode::SETUPMAPPING, 54, 4096, u32::MAX] {
        let unknown = message(code, 0, &[b"anything"]);
        let request = parse(&unknown).unwrap();
        assert!(matches!(request.op, Op::Unknown { opcode } if opcode == code));
        assert!(request.wants_reply());
    }
}

#[test]
fn supplementary_groups_come_as_an_extension() {
    let header = ExtHeader { size: 16, r#type: flag::EXT_GROUPS };
    let groups = [1u32, 2000];
    let args = MkdirIn { mode: 0o755, umask: 0o22 };
    let mkdir = message(opcode::MKDIR, 16, &[bytes(&args), b"d\0", bytes(&header), bytes(&groups)]);
    let request = parse(&mkdir).unwrap();
    assert!(matches!(request.op, Op::Mkdir { name: b"d", .. }));
    assert_eq!(request.supplementary_groups().collect::<Vec<_>>(), [2000]);
    let none = message(opcode::MKDIR, 0, &[bytes(&args), b"d\0"]);
    assert_eq!(parse(&none).unwrap().supplementary_groups().count(), 0);
    // A size below that of its own header must not go round for ever.
    let broken = ExtHeader { size: 0, r#type: flag::EXT_GROUPS };
    let mkdir = message(opcode::MKDIR, 8, &[bytes(&args), b"d\0", bytes(&broken)]);
    assert_eq!(parse(&mkdir).unwrap().supplementary_groups().count(), 0);
}

#[test]
fn split_messages_parse_like_whole_ones() {
    let args = CreateIn { flags: 2, mode: 0o644, umask: 0, open_flags: 0 };
    let mut fixed = [0u8; 128];
    fixed[..16].copy_from_slice(bytes(&args));
    let header = InHeader { opcode: opcode::CREATE, unique: 1 << 63 | 5, ..InHeader::default() };
    let request = Request::from_parts(header, &fixed, b"file\0").unwrap();
    assert!(matches!(request.op, Op::Create { args: got, name: b"file" } if got == args));
    assert!(request.is_resend());
    let header = InHeader { opcode: opcode::LOOKUP, ..header };
    assert!(matches!(
        Request::from_parts(header, &fixed, b"file\0").unwrap().op,
        Op::Lookup { name: b"file" }
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Anything may come; whatever is accepted stays inside the message.
    #[test]
    fn random_messages_never_panic(
        code in prop_oneof![0u32..60, any::<u32>()],
        extensions in prop_oneof![Just(0usize), 0usize..64],
        body in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'/'), any::<u8>()], 0..160),
        cut in 0usize..64,
    ) {
        let whole = message(code, extensions * 8, &[&body]);
        for bytes in [&whole[..], &whole[..whole.len().saturating_sub(cut)], &body] {
            if let Ok(request) = Request::parse(bytes) {
                let _ = (request.wants_reply(), request.supplementary_groups().count());
                match request.op {
                    Op::Write { args, data } => prop_assert_eq!(data.len(), args.size as usize),
                    Op::BatchForget(nodes) => prop_assert!(nodes.count() <= body.len() / 16),
                    Op::Lookup { name } | Op::Create { name, .. } | Op::Rename { newname: name, .. } => {
                        prop_assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
                    }
                    _ => {}
                }
            }
        }
        let header = InHeader { opcode: code, total_extlen: extensions as u16, ..InHeader::default() };
        let (fixed, payload) = body.split_at(cut.min(body.len()));
        let _ = Request::from_parts(header, fixed, payload).map(|r| r.supplementary_groups().count());
    }
}

//! Requests of the kernel.

use ember_fuse_kernel::abi::*;
use zerocopy::{Immutable, IntoBytes};

fn message(code: u32, extensions: u16, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: code,
        unique: 42,
        nodeid: 7,
        uid: 1000,
        total_extlen: extensions / 8,
        ..InHeader::default()
    };
    [header.as_bytes(), &body].concat()
}

fn fixed<T: IntoBytes + Immutable>(code: u32, value: &T, rest: &[u8]) -> Vec<u8> {
    message(code, 0, &[value.as_bytes(), rest])
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    let init = InitIn { major: 7, minor: 45, max_readahead: 1 << 20, flags: u32::MAX, ..InitIn::default() };
    let forgets = BatchForgetIn { count: 2, dummy: 0 };
    let ones = [ForgetOne { nodeid: 3, nlookup: 1 }, ForgetOne { nodeid: 4, nlookup: 2 }];
    let write = WriteIn { size: 4, offset: 9, ..WriteIn::default() };
    let setxattr = SetxattrCompatIn { size: 3, flags: 1 };
    let ioctl = IoctlIn { in_size: 2, ..IoctlIn::default() };
    // Header of 8 bytes, one group, padding.
    let groups: [u8; 16] = [16, 0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
    vec![
        message(opcode::LOOKUP, 0, &[b"name\0"]),
        message(opcode::SYMLINK, 0, &[b"link\0", b"../a/b\0"]),
        fixed(opcode::RENAME2, &Rename2In { newdir: 9, flags: 1, padding: 0 }, b"old\0new\0"),
        fixed(opcode::WRITE, &write, b"data"),
        fixed(opcode::SETXATTR, &setxattr, b"user.x\0abc"),
        message(opcode::BATCH_FORGET, 0, &[forgets.as_bytes(), ones[0].as_bytes(), ones[1].as_bytes()]),
        fixed(opcode::INIT, &init, b""),
        fixed(opcode::SETATTR, &SetattrIn::default(), b""),
        fixed(opcode::IOCTL, &ioctl, b"xy"),
        message(opcode::CREATE, 16, &[CreateIn::default().as_bytes(), b"new\0", &groups]),
    ]
}

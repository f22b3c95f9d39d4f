//! Listings. They hold no state: a cookie says where to go on.

use super::{Answer, Fs, Outcome, fail, unexpected};
use crate::convert::entry_type;
use ember_client::MetaOptions;
use ember_fuse_kernel::abi::{EntryOut, ReadIn};
use ember_fuse_kernel::{Cookie, DirBuf, Errno, Pushed};
use ember_types::InodeId;
use ember_types::file::FileKind;
use ember_wire::meta::{Answer as MetaAnswer, DirectoryEntry, Operation};

/// Cookie behind `.`.
const DOT: u64 = 1;
/// Cookie behind `..`; those of entries are larger.
const DOT_DOT: u64 = 2;
/// Bytes that an entry with a short name takes.
const ENTRY: u32 = 40;
/// The same with attributes.
const ENTRY_PLUS: u32 = 168;
/// Most entries asked for at once.
const PAGE_MAX: u32 = 1024;

impl Fs {
    /// Permission was checked by the kernel at opendir(3).
    pub(super) async fn readdir(&self, inode: InodeId, args: ReadIn, plus: bool) -> Outcome {
        let mut out = DirBuf::new(args.size);
        if args.offset < DOT_DOT && !self.dots(inode, args.offset, plus, &mut out).await? {
            return Ok(Answer::bytes(out.as_slice().to_vec()));
        }
        let after = if args.offset <= DOT_DOT { 0 } else { args.offset };
        let limit = (args.size / if plus { ENTRY_PLUS } else { ENTRY }).clamp(1, PAGE_MAX);
        let list = Operation::ReadDirectory { inode, after, limit, attributes: plus };
        let answer = self.client.meta(list, &MetaOptions::root()).await.map_err(fail)?;
        let MetaAnswer::Entries { entries, .. } = answer else { return Err(unexpected()) };
        let none = entries.is_empty();
        for entry in entries {
            if self.push(entry, plus, &mut out)? == Pushed::Full {
                break;
            }
        }
        // No entry at all would mean the end of the directory.
        if out.is_empty() && !none {
            return Err(Errno::INVAL);
        }
        Ok(Answer::bytes(out.as_slice().to_vec()))
    }

    /// Adds `.` and `..`. False: there was no room for both.
    async fn dots(&self, inode: InodeId, from: u64, plus: bool, out: &mut DirBuf) -> Result<bool, Errno> {
        let parent = Operation::Lookup { parent: inode, name: b"..".to_vec() };
        let parent = self.client.meta_entry(parent, &MetaOptions::root()).await.map_err(fail)?.inode;
        for (at, id, name) in [(DOT, inode, &b"."[..]), (DOT_DOT, parent, b"..")] {
            if at <= from {
                continue;
            }
            let (next, kind) = (cookie(at)?, entry_type(FileKind::Directory));
            let pushed = match plus {
                true => out.push_plus(id.0, next, kind, name, &EntryOut::default()),
                false => out.push(id.0, next, kind, name),
            };
            if pushed.map_err(|_| Errno::IO)? == Pushed::Full {
                return if out.is_empty() { Err(Errno::INVAL) } else { Ok(false) };
            }
        }
        Ok(true)
    }

    fn push(&self, entry: DirectoryEntry, plus: bool, out: &mut DirBuf) -> Result<Pushed, Errno> {
        let (id, next, kind) = (entry.inode.0, cookie(entry.cookie)?, entry_type(entry.kind));
        let pushed = match (plus, entry.attributes) {
            (true, Some(mut attributes)) => {
                self.client.overlay(&mut attributes);
                let pushed = out.push_plus(id, next, kind, &entry.name, &self.entry(&attributes));
                if matches!(pushed, Ok(Pushed::Added)) {
                    self.common.known.told(&attributes);
                }
                pushed
            }
            // Without attributes the kernel asks for them when somebody wants them.
            (true, None) => out.push_plus(id, next, kind, &entry.name, &EntryOut::default()),
            (false, _) => out.push(id, next, kind, &entry.name),
        };
        pushed.map_err(|error| {
            tracing::error!(%error, inode = id, "an entry of a directory can't be listed");
            Errno::IO
        })
    }
}

fn cookie(value: u64) -> Result<Cookie, Errno> {
    Cookie::new(value).ok_or_else(|| {
        tracing::error!(value, "a cookie of a directory is out of range");
        Errno::IO
    })
}

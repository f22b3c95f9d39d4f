//! Which operation gets which request.

use super::Fs;
use crate::caller::Caller;
use crate::convert;
use ember_fuse_kernel::abi::{OpenOut, WriteIn};
use ember_fuse_kernel::{Errno, Op, Reply, Request};
use ember_rt::SharedBuf;
use ember_rt::sync::OwnedSemaphorePermit;
use ember_types::InodeId;
use std::rc::Rc;

/// A request on its way to its operation.
struct Incoming<'a> {
    unique: u64,
    caller: Caller,
    node: InodeId,
    request: &'a Request<'a>,
    slot: OwnedSemaphorePermit,
}

impl Fs {
    /// Begins to serve a request; all that outlives this call is copied from it. WRITE comes by
    /// [`Fs::dispatch_write`].
    pub(crate) fn dispatch(self: &Rc<Self>, request: &Request<'_>, slot: OwnedSemaphorePermit) {
        self.common.metrics.requests.inc();
        if !request.wants_reply() {
            return self.note(request);
        }
        self.common.metrics.in_progress.inc();
        let (unique, node) = (request.header.unique, InodeId(request.header.nodeid));
        if let Some(reply) = immediate(&request.op) {
            let fs = self.clone();
            return self.rt.spawn("fuse request", async move {
                fs.answer(unique, reply.map(Into::into)).await;
                drop(slot);
            });
        }
        let incoming = Incoming { unique, caller: Caller::of(request), node, request, slot };
        match &request.op {
            Op::Lookup { .. }
            | Op::Getattr(_)
            | Op::Readlink
            | Op::Read(_)
            | Op::Readdir(_)
            | Op::Readdirplus(_)
            | Op::Statfs
            | Op::Access { .. } => self.dispatch_query(incoming),
            Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Symlink { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. } => self.dispatch_name(incoming),
            _ => self.dispatch_file(incoming),
        }
    }

    /// What the kernel only mentions.
    fn note(&self, request: &Request<'_>) {
        match &request.op {
            Op::Forget { .. } => self.common.known.forget(InodeId(request.header.nodeid)),
            Op::BatchForget(nodes) => {
                for node in nodes.clone() {
                    self.common.known.forget(InodeId(node.nodeid));
                }
            }
            Op::Interrupt { unique } => self.common.interrupts.interrupted(*unique),
            _ => {}
        }
    }

    /// Begins to serve a WRITE, whose data are in memory of their own.
    pub(crate) fn dispatch_write(
        self: &Rc<Self>,
        (unique, node, caller): (u64, InodeId, Caller),
        args: WriteIn,
        data: SharedBuf,
        slot: OwnedSemaphorePermit,
    ) {
        self.common.metrics.requests.inc();
        self.common.metrics.in_progress.inc();
        let fs = self.clone();
        self.go(unique, slot, async move { fs.write(&caller, node, args, data).await });
    }

    /// Requests that change nothing.
    fn dispatch_query(self: &Rc<Self>, incoming: Incoming<'_>) {
        let Incoming { unique, caller, node, request, slot } = incoming;
        let (fs, who) = (self.clone(), (unique, caller.pid));
        match &request.op {
            Op::Lookup { name } => {
                let name = name.to_vec();
                self.go_interruptible(who, slot, async move { fs.lookup(&caller, node, name).await });
            }
            Op::Readlink => {
                self.go_interruptible(who, slot, async move { fs.readlink(&caller, node).await });
            }
            &Op::Read(args) => {
                self.go_interruptible(who, slot, async move { fs.read(node, args).await });
            }
            &Op::Readdir(args) => {
                self.go_interruptible(who, slot, async move { fs.readdir(node, args, false).await });
            }
            &Op::Readdirplus(args) => {
                self.go_interruptible(who, slot, async move { fs.readdir(node, args, true).await });
            }
            Op::Statfs => self.go_interruptible(who, slot, async move { fs.statfs().await }),
            &Op::Access { mask } => {
                self.go_interruptible(who, slot, async move { fs.access(&caller, node, mask).await });
            }
            _ => self.go_interruptible(who, slot, async move { fs.getattr(node).await }),
        }
    }

    /// Requests that change names.
    fn dispatch_name(self: &Rc<Self>, incoming: Incoming<'_>) {
        let Incoming { unique, caller, node, request, slot } = incoming;
        let fs = self.clone();
        match &request.op {
            Op::Mknod { args, name } => {
                let (name, device) = (name.to_vec(), args.rdev);
                let mode = (args.mode & !0o7777) | convert::new_mode(args.mode, args.umask);
                self.go(unique, slot, async move { fs.mknod(&caller, node, name, (mode, device)).await });
            }
            Op::Mkdir { args, name } => {
                let (name, mode) = (name.to_vec(), convert::new_mode(args.mode, args.umask));
                self.go(unique, slot, async move { fs.mkdir(&caller, node, name, mode).await });
            }
            Op::Symlink { name, target } => {
                let (name, target) = (name.to_vec(), target.to_vec());
                self.go(unique, slot, async move { fs.symlink(&caller, node, name, target).await });
            }
            Op::Link { oldnodeid, name } => {
                let (name, inode) = (name.to_vec(), InodeId(*oldnodeid));
                self.go(unique, slot, async move { fs.link(&caller, node, name, inode).await });
            }
            Op::Unlink { name } => {
                let name = name.to_vec();
                self.go(unique, slot, async move { fs.unlink(&caller, node, name).await });
            }
            Op::Rmdir { name } => {
                let name = name.to_vec();
                self.go(unique, slot, async move { fs.rmdir(&caller, node, name).await });
            }
            &Op::Rename { newdir, flags, name, newname } => {
                let from = (node, name.to_vec());
                let to = (InodeId(newdir), newname.to_vec());
                self.go(unique, slot, async move { fs.rename(&caller, from, to, flags).await });
            }
            _ => self.go(unique, slot, async { Err(Errno::NOSYS) }),
        }
    }

    /// Requests about open files, and changes of attributes.
    fn dispatch_file(self: &Rc<Self>, incoming: Incoming<'_>) {
        let Incoming { unique, caller, node, request, slot } = incoming;
        let fs = self.clone();
        match &request.op {
            &Op::Setattr(args) => {
                self.go(unique, slot, async move { fs.setattr(&caller, node, args).await });
            }
            &Op::Open(args) => self.go(unique, slot, async move { fs.open(&caller, node, args).await }),
            Op::Create { args, name } => {
                let (args, name) = (*args, name.to_vec());
                self.go(unique, slot, async move { fs.create(&caller, node, name, args).await });
            }
            &Op::Flush(args) => self.go(unique, slot, async move { fs.flush(node, args.fh).await }),
            &Op::Fsync(args) => self.go(unique, slot, async move { fs.fsync_file(node, args.fh).await }),
            Op::Fsyncdir(_) => self.go(unique, slot, async move { fs.fsync(node).await }),
            &Op::Release(args) => self.go(unique, slot, async move { fs.release(args.fh).await }),
            Op::Syncfs => self.go(unique, slot, async move { fs.syncfs().await }),
            _ => self.go(unique, slot, async { Err(Errno::NOSYS) }),
        }
    }
}

/// Answers that need nobody. ENOSYS tells the kernel not to ask again: it does what it can without the server
/// (LSEEK, POLL), or says EOPNOTSUPP.
fn immediate(op: &Op<'_>) -> Option<Result<Reply, Errno>> {
    Some(match op {
        Op::Opendir(_) => Ok(Reply::open(&OpenOut::default())),
        Op::Releasedir(_) | Op::Destroy => Ok(Reply::ok()),
        Op::Ioctl { .. } => Err(Errno::NOTTY),
        Op::Init(_) => Err(Errno::IO),
        Op::Setxattr { .. }
        | Op::Getxattr { .. }
        | Op::Listxattr { .. }
        | Op::Removexattr { .. }
        | Op::Fallocate(_)
        | Op::Lseek(_)
        | Op::CopyFileRange { .. }
        | Op::Poll(_)
        | Op::Bmap(_)
        | Op::Getlk(_)
        | Op::Setlk { .. }
        | Op::Tmpfile { .. }
        | Op::Statx(_)
        | Op::Unknown { .. } => Err(Errno::NOSYS),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_refused_truthfully() {
        let errno = |op: Op<'_>| immediate(&op).map(|reply| reply.err());
        assert_eq!(errno(Op::Listxattr { size: 0 }), Some(Some(Errno::NOSYS)));
        assert_eq!(errno(Op::Unknown { opcode: 4095 }), Some(Some(Errno::NOSYS)));
        assert_eq!(errno(Op::Destroy), Some(None));
        assert_eq!(errno(Op::Readlink), None);
    }
}

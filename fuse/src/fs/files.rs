//! Open files: opening, reading, writing, settling, closing.

use super::{Answer, Fs, Outcome, fail};
use crate::caller::Caller;
use crate::convert::{self, O_APPEND, O_DIRECT, O_DSYNC, O_EXCL, O_TRUNC};
use ember_client::{OpenFile, Opened};
use ember_fuse_kernel::abi::{CreateIn, OpenIn, OpenOut, ReadIn, WriteIn, flag, fopen};
use ember_fuse_kernel::{Channel, Errno, Notification, Reply};
use ember_rt::SharedBuf;
use ember_rt::select::join_all;
use ember_types::{InodeId, Status};
use std::collections::BTreeSet;
use std::sync::Arc;

const SET_ID: u32 = 0o6000;
const SET_GID: u32 = 0o2000;
/// Files settled at once by syncfs(2).
const SETTLED_AT_ONCE: usize = 32;

impl Fs {
    pub(super) async fn open(&self, caller: &Caller, inode: InodeId, args: OpenIn) -> Outcome {
        let flags = convert::open_flags(args.flags);
        let mut opened = self
            .on_behalf(caller, false, async |options| self.client.open(inode, flags, options).await)
            .await
            .map_err(fail)?;
        let handle = opened.file.handle();
        let kill = args.open_flags & flag::OPEN_KILL_SUIDGID != 0;
        match self.settle_open(caller, args.flags, kill, &mut opened).await {
            Ok(open_flags) => {
                let out = OpenOut { fh: handle, open_flags, backing_id: 0 };
                Ok(Answer::opened(Reply::open(&out), handle))
            }
            Err(errno) => {
                self.close(handle).await;
                Err(errno)
            }
        }
    }

    pub(super) async fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: Vec<u8>,
        args: CreateIn,
    ) -> Outcome {
        let flags = convert::open_flags(args.flags);
        let mode = convert::new_mode(args.mode, args.umask);
        let exclusive = args.flags & O_EXCL != 0;
        let mut opened = self
            .on_behalf(caller, mode & SET_GID != 0, async |options| {
                self.client.create(parent, &name, mode, exclusive, flags, options).await
            })
            .await
            .map_err(fail)?;
        let handle = opened.file.handle();
        let kill = !opened.created && args.open_flags & flag::OPEN_KILL_SUIDGID != 0;
        // The answer has attributes in it, so that nothing has to be invalidated first.
        let told = self.entry_out(&opened.attributes);
        match self.settle_open(caller, args.flags, kill, &mut opened).await {
            Ok(open_flags) => {
                let out = OpenOut { fh: handle, open_flags, backing_id: 0 };
                Ok(Answer::opened(Reply::create(&told, &out), handle))
            }
            Err(errno) => {
                self.close(handle).await;
                Err(errno)
            }
        }
    }

    /// Brings the kernel's caches in line with what meta said at the open, and decides how the kernel goes on
    /// with the open file.
    async fn settle_open(
        &self,
        caller: &Caller,
        flags: u32,
        kill_set_id: bool,
        opened: &mut Opened,
    ) -> Result<u32, Errno> {
        let inode = opened.attributes.inode;
        let caches = self.common.known.at_open(&opened.attributes);
        if kill_set_id && opened.attributes.mode & SET_ID != 0 {
            self.clear_set_id(caller, inode).await.map_err(fail)?;
        }
        let mut open_flags = 0;
        if flags & O_DIRECT != 0 {
            open_flags |= fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES;
        }
        if flags & O_TRUNC != 0 {
            // The kernel sets the length to zero itself.
            self.common.known.told(&opened.attributes);
            return Ok(open_flags);
        }
        let appends = flags & O_APPEND != 0 && opened.file.flags().write;
        // An append starts at the length that the kernel believes in. ESTALE makes it look the name up again and
        // come back, once.
        let stale = !caches.attributes_fresh;
        if appends && self.common.known.refuse(inode, caller.pid, stale, self.rt.now()) {
            return Err(Errno::STALE);
        }
        if stale {
            self.drop_attributes(inode).await;
            self.common.known.told(&opened.attributes);
        }
        if caches.keep_pages {
            open_flags |= fopen::KEEP_CACHE;
        }
        Ok(open_flags)
    }

    /// Makes the kernel ask for the attributes at their next use.
    pub(super) async fn drop_attributes(&self, inode: InodeId) {
        let notify = self.common.notify.clone();
        let told = self.rt.blocking("fuse notify", move || async move {
            // No offset: pages stay, so that no lock of a request in progress is waited for.
            notify.notify(&Notification::InvalInode { ino: inode.0, offset: -1, len: 0 })
        });
        match told.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, %inode, "the kernel keeps old attributes"),
            Err(elapsed) => tracing::warn!(%elapsed, %inode, "the kernel keeps old attributes"),
        }
    }

    /// The open behind a handle. A handle that an earlier daemon gave out is stale.
    fn file(&self, handle: u64, inode: InodeId) -> Result<Arc<OpenFile>, Errno> {
        match self.client.shared().open(handle) {
            Some(file) if file.state().inode() == inode => Ok(file),
            _ => Err(Errno::STALE),
        }
    }

    pub(super) async fn read(&self, inode: InodeId, args: ReadIn) -> Outcome {
        let file = self.file(args.fh, inode)?;
        let segments = self.client.read(&file, args.offset, args.size.into()).await.map_err(fail)?;
        let bytes: usize = segments.iter().map(|part| part.len()).sum();
        self.common.metrics.read.inc_by(bytes as u64);
        Ok(Answer::segments(segments))
    }

    pub(super) async fn write(
        &self,
        caller: &Caller,
        inode: InodeId,
        args: WriteIn,
        data: SharedBuf,
    ) -> Outcome {
        let file = self.file(args.fh, inode)?;
        let kill_set_id = args.write_flags & flag::WRITE_KILL_SUIDGID != 0;
        if kill_set_id && self.common.known.may_have_set_id(inode) {
            self.clear_set_id(caller, inode).await.map_err(fail)?;
        }
        let size = args.size;
        if args.write_flags & flag::WRITE_CACHE != 0 {
            // Pages of a mapping: no program made the call, and the kernel counts on the answer.
            self.client.write(&file, args.offset, data).await
        } else if args.flags & (O_DIRECT | O_DSYNC) != 0 {
            file.report().map_err(fail)?;
            self.client.write(&file, args.offset, data).await
        } else {
            self.client.write_behind(&file, args.offset, data).await
        }
        .map_err(fail)?;
        self.common.known.wrote(inode, args.offset.saturating_add(size.into()));
        self.common.metrics.written.inc_by(size.into());
        Ok(Reply::written(size).into())
    }

    /// A descriptor was closed: who opens the file next must see what was written.
    pub(super) async fn flush(&self, inode: InodeId, handle: u64) -> Outcome {
        let file = self.file(handle, inode)?;
        if let Some(attributes) = self.client.flush(&file).await.map_err(fail)? {
            self.common.known.own_change(&attributes);
        }
        Ok(Reply::ok().into())
    }

    pub(super) async fn fsync(&self, inode: InodeId) -> Outcome {
        let attributes = self.client.fsync(inode).await.map_err(fail)?;
        self.common.known.own_change(&attributes);
        Ok(Reply::ok().into())
    }

    /// fsync(2) of an open file: fails also if a write of it that returned has failed since.
    pub(super) async fn fsync_file(&self, inode: InodeId, handle: u64) -> Outcome {
        let file = self.file(handle, inode)?;
        let done = self.fsync(inode).await?;
        file.report().map_err(fail)?;
        Ok(done)
    }

    /// Settles every file that is open for writing.
    pub(super) async fn syncfs(&self) -> Outcome {
        let opens = self.client.shared().opens();
        let writers = opens.iter().filter(|open| open.flags().write);
        let inodes: BTreeSet<InodeId> = writers.map(|open| open.state().inode()).collect();
        let inodes: Vec<InodeId> = inodes.into_iter().chain([InodeId::ROOT]).collect();
        for some in inodes.chunks(SETTLED_AT_ONCE) {
            for settled in join_all(some.iter().map(|&inode| self.fsync(inode))).await {
                match settled {
                    // Removed or closed meanwhile.
                    Ok(_) | Err(Errno::STALE | Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(Reply::ok().into())
    }

    /// The last descriptor of an open is gone. The program has its answer from FLUSH already.
    pub(super) async fn release(&self, handle: u64) -> Outcome {
        self.close(handle).await;
        Ok(Reply::ok().into())
    }

    /// Ends an open. A failure costs nobody anything: meta ends the session when its capability has expired.
    pub(crate) async fn close(&self, handle: u64) {
        match self.client.close(handle).await {
            Ok(attributes) => self.common.known.own_change(&attributes),
            Err(error) if error.status == Status::BadHandle => {}
            Err(error) => tracing::debug!(%error, handle, "close"),
        }
    }
}

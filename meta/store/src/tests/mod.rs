//! Tests over the in-memory engine, which answers at the first poll.

mod create;
mod formats;
mod lengths;
mod model;
mod names;
mod permissions;
mod removal;
mod requests;

use crate::file::{OpenFlags, OpenRequest, Opened};
use crate::truncate::Progress;
use crate::{Env, Error, NewIds, Placement, Result, Space};
use ember_kv::{Durability, Kv, KvError, MemKv};
use ember_types::file::{Attributes, Credentials, FileKind};
use ember_types::{
    ChainTableId, ChainTableVersion, ClientId, ClusterTime, DataId, InodeId, Layout, SessionId, Status,
    UnixTime,
};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub(super) const ROOT: InodeId = InodeId::ROOT;
pub(super) const HOLD: Duration = Duration::from_secs(40);
pub(super) const CHUNK: u64 = 1 << 20;

/// Runs a future that never waits.
pub(super) fn now_or_never<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the in-memory engine waits for nothing"),
    }
}

pub(super) fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
    Credentials { uid, gid, groups: groups.to_vec() }
}

pub(super) fn template() -> Layout {
    Layout::new(ChainTableId(1), ChainTableVersion(1), CHUNK as u32, 4, 0, 0).unwrap()
}

/// A namespace, a clock and a counter of ids.
pub(super) struct World {
    pub(super) kv: MemKv,
    pub(super) who: Credentials,
    pub(super) seconds: i64,
    pub(super) next: u64,
    pub(super) owner: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world =
            Self { kv: MemKv::new(), who: Credentials::default(), seconds: 1000, next: 100, owner: 1 };
        assert!(world.run(async |s, env, _| s.format(env.now, None).await).unwrap());
        world
    }

    pub(super) fn as_user(&mut self, uid: u32, gid: u32) -> &mut Self {
        self.who = user(uid, gid, &[]);
        self
    }

    pub(super) fn as_root(&mut self) -> &mut Self {
        self.as_user(0, 0)
    }

    pub(super) fn cluster(&self) -> ClusterTime {
        ClusterTime(self.seconds as u64 * 1000)
    }

    pub(super) fn placement(&self) -> Placement {
        Placement {
            tables: [(ChainTableId(1), ChainTableVersion(3))].into(),
            default: Some(template()),
            base: 5,
            seed: 9,
        }
    }

    /// Runs one operation in a transaction of its own; each takes a second.
    pub(super) fn run<T>(
        &mut self,
        op: impl AsyncFnOnce(&mut Space<'_>, &Env<'_>, NewIds) -> Result<T>,
    ) -> Result<T> {
        self.run_as(Durability::Durable, op)
    }

    pub(super) fn run_as<T>(
        &mut self,
        durability: Durability,
        op: impl AsyncFnOnce(&mut Space<'_>, &Env<'_>, NewIds) -> Result<T>,
    ) -> Result<T> {
        self.seconds += 1;
        self.next += 2;
        let ids = NewIds { inode: InodeId(self.next), data: DataId(self.next + 1) };
        let mut tx = self.kv.begin();
        tx.set_durability(durability);
        let mut space = Space::new(tx.as_mut());
        let env = Env {
            who: &self.who,
            now: UnixTime { seconds: self.seconds, nanos: 0 },
            cluster: self.cluster(),
            hold: HOLD,
            owner: self.owner,
            claim: Duration::from_secs(10),
        };
        let value = now_or_never(op(&mut space, &env, ids))?;
        now_or_never(tx.commit())?;
        Ok(value)
    }

    pub(super) fn mkdir(&mut self, parent: InodeId, name: &str, mode: u32) -> Result<InodeId> {
        let made =
            self.run(async |s, env, ids| s.make_directory(env, parent, name.as_bytes(), mode, ids).await)?;
        Ok(made.inode)
    }

    pub(super) fn mkfile(&mut self, parent: InodeId, name: &str, mode: u32) -> Result<InodeId> {
        let placement = self.placement();
        let node = crate::create::NodeRequest { kind: FileKind::File, mode, device: 0 };
        let made = self.run(async |s, env, ids| {
            s.make_node(env, parent, name.as_bytes(), node, ids, &placement).await
        })?;
        Ok(made.inode)
    }

    pub(super) fn request(&self, session: u128, flags: OpenFlags) -> OpenRequest {
        OpenRequest {
            client: ClientId::from_u128(7),
            session: SessionId::from_u128(session),
            flags,
            until: self.cluster() + Duration::from_secs(30),
        }
    }

    pub(super) fn open(&mut self, id: InodeId, session: u128, flags: OpenFlags) -> Result<Opened> {
        let request = self.request(session, flags);
        let opened = self.run(async |s, env, ids| s.open(env, id, &request, ids.data).await)?;
        Ok(opened.done().expect("no truncation is under way"))
    }

    pub(super) fn stat(&mut self, id: InodeId) -> Result<Attributes> {
        self.run(async |s, _, _| s.get_attributes(id).await)
    }

    pub(super) fn lookup(&mut self, parent: InodeId, name: &str) -> Result<Attributes> {
        self.run(async |s, env, _| s.lookup(env, parent, name.as_bytes()).await)
    }

    pub(super) fn link(&mut self, id: InodeId, parent: InodeId, name: &str) -> Result<Attributes> {
        self.run(async |s, env, _| s.make_link(env, id, parent, name.as_bytes()).await)
    }

    pub(super) fn unlink(&mut self, parent: InodeId, name: &str) -> Result<Attributes> {
        self.run(async |s, env, _| s.unlink(env, parent, name.as_bytes()).await)
    }

    pub(super) fn rmdir(&mut self, parent: InodeId, name: &str) -> Result<Attributes> {
        self.run(async |s, env, _| s.remove_directory(env, parent, name.as_bytes()).await)
    }

    pub(super) fn rename(
        &mut self,
        from: (InodeId, &str),
        to: (InodeId, &str),
        flags: crate::RenameFlags,
    ) -> Result<Option<Attributes>> {
        self.run(async |s, env, _| {
            s.rename(env, (from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), flags).await
        })
    }

    pub(super) fn set(&mut self, id: InodeId, set: crate::SetAttributes) -> Result<Progress<Attributes>> {
        self.run(async |s, env, ids| {
            let change = crate::Change { set: &set, spare: ids.data, found: None };
            s.set_attributes(env, id, change).await
        })
    }

    pub(super) fn chmod(&mut self, id: InodeId, mode: u32) -> Result<Attributes> {
        let set = crate::SetAttributes { mode: Some(mode), ..Default::default() };
        Ok(self.set(id, set)?.done().expect("no length is set"))
    }

    pub(super) fn names(&mut self, id: InodeId, page: u32) -> Vec<String> {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let found = self.run(async |s, _, _| s.read_directory(id, after, page, true).await).unwrap();
            for entry in found.entries {
                assert!(entry.cookie > after && entry.cookie < 1 << 63);
                after = entry.cookie;
                assert_eq!(entry.attributes.unwrap().inode, entry.inode);
                names.push(String::from_utf8(entry.name).unwrap());
            }
            if !found.more {
                return names;
            }
        }
    }
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T>, status: Status) {
    match result {
        Err(Error::Refused(got)) => assert_eq!(got, status),
        other => panic!("{status} expected, got {other:?}"),
    }
}

pub(super) fn read() -> OpenFlags {
    OpenFlags { read: true, ..Default::default() }
}

pub(super) fn write() -> OpenFlags {
    OpenFlags { write: true, ..Default::default() }
}

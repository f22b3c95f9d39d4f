//! The life of targets on this node: opened if they are here, made if routing has a new one, set apart if they
//! are damaged.
//!
//! A target's directory is named after its generation (`t-ID-gN`), so that the content of an earlier one stays
//! where it is and is never taken for the valid one.

use crate::error::StorageError;
use crate::node::Node;
use crate::target::Target;
use ember_engine::{Durability, Engine, EngineConfig, EngineError, Identity};
use ember_rt::disk::DiskQueue;
use ember_rt::select::join_all;
use ember_types::{Generation, Instant, TargetId, TargetInfo};
use std::rc::Rc;
use std::time::Duration;

/// What this node has of a target.
pub(crate) enum Slot {
    /// It is being opened or made.
    Opening,
    /// It is in service.
    Running(Rc<Target>),
    /// It can't be used.
    Broken {
        /// Which life of it.
        generation: Generation,
        /// Why, for people.
        trouble: String,
        /// Whether a new generation would help: its content is damaged, other replicas may have it.
        wants_replacement: bool,
        /// Whether another process has its lock.
        in_use: bool,
        /// When it is tried again: a disk may be mounted late, or made writable.
        retry_at: Instant,
        /// The disk as this target had it: something may still be in flight.
        queue: Option<DiskQueue>,
    },
}

/// Pause between two tries of a target that can't be opened.
const RETRY: Duration = Duration::from_secs(10);

/// The directory of a generation of a target, relative to its disk.
fn dir_of(target: TargetId, generation: Generation) -> String {
    format!("t-{target}-g{generation}")
}

/// What the kernel says of bytes that the medium doesn't give back: EIO, ENODATA, EILSEQ.
const UNREADABLE: [i32; 3] = [5, 61, 84];

/// Whether what is stored is damaged, so that opening the target again won't help (R10).
fn is_damage(error: &EngineError) -> bool {
    match error {
        EngineError::Corrupt { .. } => true,
        // It is kept where it is, and belongs to nobody here.
        error if error.is_anothers() => true,
        EngineError::Io { operation: "read", source, .. } => {
            source.raw_os_error().is_some_and(|code| UNREADABLE.contains(&code))
        }
        _ => false,
    }
}

impl Node {
    fn engine_config(&self) -> EngineConfig {
        EngineConfig {
            min_free_bytes: self.context.config.reserve_bytes,
            checksum_cache_bytes: self.context.config.checksum_cache_bytes,
            tombstone_keep: Duration::from_millis(self.context.config.tombstone_ms),
            // A word that means nothing was refused at the start.
            durability: self.context.config.durability().unwrap_or_default(),
            ..EngineConfig::default()
        }
    }

    /// Opens every target that routing places here, all at once. An error says that another process serves one of
    /// them: mgmtd takes a registration for the word that the process before it has ended (R1).
    pub(crate) async fn open_all(self: &Rc<Self>) -> Result<(), StorageError> {
        let assigned = self.assigned();
        for info in &assigned {
            self.slots.borrow_mut().insert(info.id, Slot::Opening);
        }
        join_all(assigned.into_iter().map(|info| self.clone().open(info, None))).await;
        let slots = self.slots.borrow();
        let in_use = slots.values().find_map(|slot| match slot {
            Slot::Broken { trouble, in_use: true, .. } => Some(StorageError::InUse { what: trouble.clone() }),
            _ => None,
        });
        in_use.map_or(Ok(()), Err)
    }

    /// Does what routing says of one target, if anything is to be done.
    pub(crate) fn place(self: &Rc<Self>, info: &TargetInfo) {
        let stale = match self.slots.borrow().get(&info.id) {
            None => true,
            Some(Slot::Opening) => false,
            Some(Slot::Running(target)) => target.engine.identity().generation < info.generation,
            Some(Slot::Broken { generation, .. }) => *generation < info.generation,
        };
        if stale {
            self.slots.borrow_mut().insert(info.id, Slot::Opening);
            self.context.rt.spawn("open target", self.clone().open(info.clone(), None));
        }
    }

    /// Tries again what could not be opened, unless its content is damaged.
    pub(crate) fn retry_broken(self: &Rc<Self>) {
        let now = self.context.rt.now();
        for info in self.assigned() {
            let before = match self.slots.borrow().get(&info.id) {
                Some(Slot::Broken { trouble, wants_replacement: false, retry_at, queue, .. })
                    if *retry_at <= now && self.may_reopen(&info, queue.as_ref()) =>
                {
                    trouble.clone()
                }
                _ => continue,
            };
            self.slots.borrow_mut().insert(info.id, Slot::Opening);
            self.context.rt.spawn("open target again", self.clone().open(info, Some(before)));
        }
    }

    /// `before` is the trouble that is known already.
    async fn open(self: Rc<Self>, info: TargetInfo, before: Option<String>) {
        let slot = match self.try_open(&info).await {
            Ok(target) => {
                let view = self.context.routing.view();
                if let Some(chain) = view.chains.get(&info.chain) {
                    target.learn_chain(chain);
                }
                target.look_at_space();
                Slot::Running(target)
            }
            Err(broken) => {
                if let Slot::Broken { trouble, .. } = &broken
                    && before.as_ref() != Some(trouble)
                {
                    tracing::error!(target = %info.id, generation = %info.generation, "{trouble}");
                }
                broken
            }
        };
        self.slots.borrow_mut().insert(info.id, slot);
        self.context.nudge();
        // Routing may have moved on meanwhile.
        if let Some(now) = self.context.routing.view().targets.get(&info.id) {
            self.place(&now.clone());
        }
    }

    async fn try_open(self: &Rc<Self>, info: &TargetInfo) -> Result<Rc<Target>, Slot> {
        let disk = self.disks.get(info.disk as usize).map(DiskQueue::for_user);
        let path = self.context.config.disks.get(info.disk as usize).cloned().unwrap_or_default();
        let broken = |trouble: String, wants_replacement| Slot::Broken {
            generation: info.generation,
            trouble,
            wants_replacement,
            in_use: false,
            retry_at: self.context.rt.now() + RETRY,
            queue: disk.clone(),
        };
        let Some(queue) = &disk else {
            return Err(broken(format!("disk {} is not in this node's configuration", info.disk), false));
        };
        let failed = |error: EngineError| Slot::Broken {
            generation: info.generation,
            trouble: format!("{path}: {error}"),
            wants_replacement: is_damage(&error),
            in_use: error.is_in_use(),
            retry_at: self.context.rt.now() + RETRY,
            queue: Some(queue.clone()),
        };
        let rt = &self.context.rt;
        let dir = dir_of(info.id, info.generation);
        let identity = Identity { cluster: self.cluster, target: info.id, generation: info.generation };
        let exists = Engine::exists(queue, &dir).map_err(failed)?;
        let engine = if exists {
            let wanted = (self.cluster, info.id);
            let opened = Engine::open(rt, queue, &dir, wanted, self.engine_config()).await;
            let (engine, recovery) = opened.map_err(failed)?;
            tracing::info!(target = %info.id, chunks = engine.len(), ?recovery, "opened");
            engine
        } else if info.created {
            return Err(broken(
                format!(
                    "{path}/{dir} is missing or empty: is the disk mounted? `ember target replace {}` fills it anew",
                    info.id
                ),
                false,
            ));
        } else {
            Engine::create(rt, queue, &dir, &identity, self.engine_config()).await.map_err(failed)?
        };
        if engine.identity().generation != info.generation {
            let found = engine.identity().generation;
            return Err(broken(format!("{dir} holds generation {found}"), true));
        }
        if self.engine_config().durability == Durability::Plp && !queue.disk().overwrites_in_place() {
            tracing::warn!(target = %info.id, "durability \"plp\" saves no flush on this file system");
        }
        Ok(Target::new(self.context.clone(), info.disk, queue.clone(), engine, info.chain))
    }
}

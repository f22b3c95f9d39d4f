//! Strikes on purpose: a disk fault on the target that has the wanted role in a chain in the wanted state.
//!
//! What destroys data hits one replica of a chain at a time: the next strike waits until every target serves and
//! every replica of every chunk can be read. So the right bytes are always somewhere.

use super::build::storage_number;
use super::faults::Cast;
use super::matrix::{Cell, DiskFault, Role, Stand};
use super::verify::Inspector;
use crate::disk::{DiskConfig, PowerCut, SimFs};
use crate::process::{Crash, ProcessId};
use crate::world::{World, between};
use ember_types::layout::SplitMix64;
use ember_types::{Chain, ChainId, ChainTarget, PublicState, TargetId};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

const MS: u64 = 1_000_000;
/// Virtual time after a strike until everything must serve again, and every replica be whole.
const HEAL_MS: u64 = 60_000;
/// Longest time until a chain goes on without a member whose disk hangs: the default limit of an operation, and
/// what mgmtd takes.
const LEAVES_MS: u64 = 7_000;
/// Chain versions that a full disk, whose node may be restarted meanwhile, may bring about.
const FULL_CHANGES_MAX: u64 = 12;
/// How long a strike waits for its moment.
const MOMENT_MS: u64 = 1_500;
/// Tries to get at a cell.
const TRIES: u32 = 3;

/// Who is struck.
struct Victim {
    chain: ChainId,
    target: TargetId,
    process: ProcessId,
    fs: Rc<SimFs>,
    /// Part of the names of the target's files.
    files: String,
}

/// Strikes cells of the fault matrix in a running cluster.
pub struct Marksman {
    world: World,
    cast: Rc<Cast>,
    inspector: Rc<Inspector>,
    rng: RefCell<SplitMix64>,
}

fn by_role(chain: &Chain, role: Role, rng: &mut SplitMix64) -> Option<ChainTarget> {
    let serving: Vec<ChainTarget> = chain.serving().copied().collect();
    let last = serving.len().checked_sub(1).filter(|&last| last > 0)?;
    let at = match role {
        Role::Head => 0,
        Role::Tail => last,
        Role::Middle if last < 2 => return None,
        Role::Middle => between(rng, 1, last as u64 - 1) as usize,
    };
    serving.get(at).copied()
}

fn role_of(chain: &Chain, target: TargetId) -> Option<Role> {
    let serving: Vec<TargetId> = chain.serving().map(|member| member.target).collect();
    match serving.iter().position(|&own| own == target)? {
        0 => Some(Role::Head),
        at if at + 1 == serving.len() => Some(Role::Tail),
        _ => Some(Role::Middle),
    }
}

impl Marksman {
    /// A marksman for a cast.
    pub fn new(world: &World, cast: Rc<Cast>, inspector: Rc<Inspector>) -> Self {
        let rng = RefCell::new(world.rng(5));
        Self { world: world.clone(), cast, inspector, rng }
    }
    fn draw(&self, low: u64, high: u64) -> u64 {
        between(&mut self.rng.borrow_mut(), low, high)
    }
    fn wait(&self, low_ms: u64, high_ms: u64) {
        self.world.run_until(self.world.now_ns() + self.draw(low_ms * 1_000, high_ms * 1_000) * 1_000);
    }
    /// Runs until `done`, at most so long; whether it came to that.
    fn until(&self, limit_ms: u64, step_ns: u64, done: impl Fn() -> bool) -> bool {
        let limit = self.world.now_ns() + limit_ms * MS;
        while !done() {
            if self.world.now_ns() >= limit || self.world.failure().is_some() {
                return false;
            }
            self.world.run_until(self.world.now_ns() + step_ns);
        }
        true
    }
    fn chain(&self, id: ChainId) -> Option<Chain> {
        self.inspector.routing.view().chains.get(&id).cloned()
    }

    /// Strikes a cell, and waits until the cluster is whole again.
    pub fn strike(&self, cell: Cell) {
        for _ in 0..TRIES {
            let victim = self.choose(cell.stand);
            let hit = victim.as_ref().is_some_and(|victim| self.hit(victim, cell));
            if hit {
                self.world.trace().count(cell.name(), 1);
            }
            self.wait(300, 1_500);
            self.recover();
            if hit || self.world.failure().is_some() {
                return;
            }
        }
    }

    fn victim(&self, chain: ChainId, member: &ChainTarget) -> Option<Victim> {
        let view = self.inspector.routing.view();
        let node = view.targets.get(&member.target)?.node;
        let process = *self.cast.storage.get(storage_number(node)?)?;
        let fs = self.world.disk(process, Path::new("/disk"))?;
        let files = format!("t-{}-g{}/", member.target, member.generation);
        Some(Victim { chain, target: member.target, process, fs, files })
    }

    /// The target that stands as wanted, after its chain was brought into the wanted state.
    fn choose(&self, stand: Stand) -> Option<Victim> {
        let chains: Vec<Chain> = self.inspector.routing.view().chains.values().cloned().collect();
        let chain = chains.get(self.draw(0, chains.len().max(1) as u64 - 1) as usize)?;
        if let Stand::Serving(role) = stand {
            return self.victim(chain.id, &by_role(chain, role, &mut self.rng.borrow_mut())?);
        }
        let other = chain.targets.get(self.draw(0, chain.targets.len() as u64 - 1) as usize)?;
        let other = self.victim(chain.id, other)?;
        if !self.make_sync(&other) {
            return None;
        }
        // The generation is another one if the target was damaged and replaced.
        let chain = self.chain(chain.id)?;
        match stand {
            Stand::Beside(role) => self.victim(chain.id, &by_role(&chain, role, &mut self.rng.borrow_mut())?),
            _ => self.victim(chain.id, chain.member(other.target)?),
        }
    }

    /// Takes a target's node away until its chain goes on without it, and lets it come back and sync.
    fn make_sync(&self, other: &Victim) -> bool {
        let crash = if self.draw(0, 1) == 0 { Crash::Kill } else { Crash::PowerLoss };
        self.world.kill(other.process, crash);
        let serves = || {
            let chain = self.chain(other.chain);
            chain.is_none_or(|chain| chain.serving().any(|member| member.target == other.target))
        };
        let gone = self.until(6_000, 20 * MS, || !serves());
        // Writes that it misses.
        self.wait(300, 900);
        self.world.start(other.process);
        let syncs =
            || self.chain(other.chain).and_then(|c| c.syncing().map(|m| m.target)) == Some(other.target);
        gone && self.until(8_000, 2 * MS, syncs)
    }

    fn stands(&self, victim: &Victim, stand: Stand) -> bool {
        let Some(chain) = self.chain(victim.chain) else { return false };
        let syncing = chain.syncing().map(|member| member.target);
        match stand {
            Stand::Serving(role) => {
                chain.serving().count() == chain.targets.len() && role_of(&chain, victim.target) == Some(role)
            }
            Stand::Beside(role) => syncing.is_some() && role_of(&chain, victim.target) == Some(role),
            Stand::Syncing => syncing == Some(victim.target),
        }
    }

    /// Strikes; whether the fault happened while the victim stood as wanted.
    fn hit(&self, victim: &Victim, cell: Cell) -> bool {
        if !self.stands(victim, cell.stand) || !self.world.is_alive(victim.process) {
            return false;
        }
        match cell.fault {
            DiskFault::LostWrites => self.power_loss(victim, cell.stand, PowerCut::Lost),
            DiskFault::TornWrites => self.power_loss(victim, cell.stand, PowerCut::Torn),
            DiskFault::BitRot => self.bit_rot(victim),
            DiskFault::LatentError => self.latent_error(victim),
            DiskFault::Misdirected => self.misdirect(victim, cell.stand),
            DiskFault::Full => self.full(victim),
            DiskFault::Slow => self.slow(victim),
            DiskFault::SlowHundred => self.slow_hundred(victim),
            DiskFault::WriteError => self.write_error(victim, cell.stand, "data-", false),
            DiskFault::LogError => self.write_error(victim, cell.stand, "log-", false),
            DiskFault::FlushError => self.write_error(victim, cell.stand, "", true),
            DiskFault::Hang => self.hang(victim, cell.stand, false),
            DiskFault::HangForGood => self.hang(victim, cell.stand, true),
        }
    }

    fn restart(&self, victim: &Victim) {
        let crash = if self.draw(0, 1) == 0 { Crash::Kill } else { Crash::PowerLoss };
        self.world.kill(victim.process, crash);
        self.wait(50, 1_500);
        self.world.start(victim.process);
    }

    fn power_loss(&self, victim: &Victim, stand: Stand, cut: PowerCut) -> bool {
        let unsynced = || victim.fs.unsynced(&victim.files) > 0;
        let moment = self.until(MOMENT_MS, MS / 10, || unsynced() || !self.stands(victim, stand));
        if !moment || !unsynced() || !self.stands(victim, stand) {
            return false;
        }
        victim.fs.set_power_cut(cut);
        self.world.kill(victim.process, Crash::PowerLoss);
        victim.fs.set_power_cut(PowerCut::Any);
        self.wait(50, 2_500);
        self.world.start(victim.process);
        true
    }

    /// Damage to what is read at start only strikes when the target is opened again.
    fn bit_rot(&self, victim: &Victim) -> bool {
        let (part, start) = self.part();
        let bits = self.draw(1, 4);
        let mut struck = victim.fs.rot(&self.world, &format!("{}{part}", victim.files), bits).is_some();
        if part == "superblock-" && self.draw(0, 1) == 0 {
            struck |= victim.fs.rot(&self.world, &format!("{}superblock-a", victim.files), bits).is_some();
            struck |= victim.fs.rot(&self.world, &format!("{}superblock-b", victim.files), bits).is_some();
        }
        if struck && start {
            self.wait(0, 300);
            self.restart(victim);
        }
        struck
    }

    fn latent_error(&self, victim: &Victim) -> bool {
        let (part, start) = self.part();
        let struck = victim.fs.make_unreadable(&self.world, &format!("{}{part}", victim.files)).is_some();
        if struck && start {
            self.wait(0, 300);
            self.restart(victim);
        }
        struck
    }

    /// Part of the names of the files to be struck, and whether they are read at start only.
    fn part(&self) -> (&'static str, bool) {
        match self.draw(0, 6) {
            0..=2 => ("data-", false),
            3 => ("log-", true),
            4 => ("checkpoint-", true),
            // In memory as long as the process lives.
            5 => ("sums-", true),
            _ => ("superblock-", true),
        }
    }

    fn misdirect(&self, victim: &Victim, stand: Stand) -> bool {
        let log = self.draw(0, 2) == 0;
        victim.fs.misdirect(&format!("{}{}", victim.files, if log { "log-" } else { "data-" }));
        self.until(MOMENT_MS, MS, || victim.fs.hits() > 0 || !self.stands(victim, stand));
        let struck = victim.fs.hits() > 0;
        victim.fs.take_aims_away();
        if struck && log {
            self.wait(0, 500);
            self.restart(victim);
        }
        struck
    }

    fn full(&self, victim: &Victim) -> bool {
        let version = || self.chain(victim.chain).map_or(0, |chain| chain.version.0);
        let before = version();
        victim.fs.set_config(DiskConfig { full: true, ..DiskConfig::default() });
        self.wait(300, 1_500);
        if self.draw(0, 3) == 0 {
            self.restart(victim);
        }
        self.wait(300, 1_500);
        victim.fs.set_config(DiskConfig::default());
        let changes = version().saturating_sub(before);
        if changes > FULL_CHANGES_MAX && self.world.failure().is_none() {
            let text = format!("{changes} versions of chain {} within three seconds", victim.chain);
            self.world.fail("a full disk doesn't change its chain over and over", &text);
        }
        true
    }

    fn slow(&self, victim: &Victim) -> bool {
        let slow_ppm = self.draw(300_000, 1_000_000);
        let slow_max_ns = self.draw(50, 2_500) * MS;
        victim.fs.set_config(DiskConfig { slow_ppm, slow_max_ns, ..DiskConfig::default() });
        self.wait(500, 4_000);
        victim.fs.set_config(DiskConfig::default());
        true
    }

    fn slow_hundred(&self, victim: &Victim) -> bool {
        let usual = DiskConfig::default();
        let (latency_min_ns, latency_max_ns) = (100 * usual.latency_min_ns, 100 * usual.latency_max_ns);
        let sync_max_ns = 100 * usual.sync_max_ns;
        victim.fs.set_config(DiskConfig { latency_min_ns, latency_max_ns, sync_max_ns, ..usual });
        self.wait(1_000, 6_000);
        victim.fs.set_config(usual);
        true
    }

    /// The disk ends nothing, or nothing of one target; for a while, or until its node is started again.
    fn hang(&self, victim: &Victim, stand: Stand, for_good: bool) -> bool {
        victim.fs.hang(if self.draw(0, 1) == 0 { "" } else { &victim.files });
        let hung = || victim.fs.hung(&victim.files) > 0;
        self.until(MOMENT_MS, MS, || hung() || !self.stands(victim, stand));
        let struck = hung() && self.stands(victim, stand);
        if !struck || !for_good {
            if struck {
                self.wait(200, 12_000);
            }
            victim.fs.let_go(&self.world);
            return struck;
        }
        let active = || {
            let chain = self.chain(victim.chain);
            let member = chain.as_ref().and_then(|chain| chain.member(victim.target));
            member.is_some_and(|m| matches!(m.state, PublicState::Serving | PublicState::Syncing))
        };
        if !self.until(LEAVES_MS, 10 * MS, || !active()) && self.world.failure().is_none() {
            self.world
                .fail("a target whose disk hangs leaves its chain", &format!("target {}", victim.target));
        }
        self.wait(500, 4_000);
        self.restart(victim);
        true
    }

    fn write_error(&self, victim: &Victim, stand: Stand, part: &str, flushes_only: bool) -> bool {
        let ppm = self.draw(300_000, 1_000_000);
        victim.fs.fail_changes(&format!("{}{part}", victim.files), ppm, flushes_only);
        self.until(MOMENT_MS, MS, || victim.fs.hits() > 0 || !self.stands(victim, stand));
        let struck = victim.fs.hits() > 0;
        if struck {
            self.wait(0, 1_500);
        }
        victim.fs.take_aims_away();
        struck
    }

    /// Waits until every target serves and every replica is whole.
    fn recover(&self) {
        if !self.until(HEAL_MS, 50 * MS, || (self.cast.all_serve)()) {
            let text = super::verify::not_serving(&self.inspector.routing.view());
            return self.world.fail("every target that stays up becomes serving again", &text);
        }
        self.whole();
    }

    /// Waits until every replica of every chunk can be read.
    fn whole(&self) {
        let (inspector, rt) = (self.inspector.clone(), self.inspector.rt.clone());
        let last: Rc<RefCell<String>> = Rc::default();
        let text = last.clone();
        let done = self.world.block_on(self.world.now_ns() + HEAL_MS * MS, async move {
            while let Err(error) = inspector.readable().await {
                *text.borrow_mut() = error;
                rt.sleep(std::time::Duration::from_millis(300)).await;
            }
        });
        if done.is_none() {
            self.world.fail("damaged replicas are repaired", &last.borrow());
        }
    }
}

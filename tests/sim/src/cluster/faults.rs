//! Plants faults in a running cluster, and takes them away again.
//!
//! Faults that destroy data (an emptied disk, flipped bits, I/O errors) hit one storage node per seed, and only
//! while every replica of its chains serves: what is destroyed is then held by two others.

use super::kv::SimKv;
use crate::disk::DiskConfig;
use crate::net::NetConfig;
use crate::process::{CLOCK_DRIFT_PPM_MAX, Crash, ProcessId};
use crate::world::{World, between};
use ember_types::layout::SplitMix64;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const MS: u64 = 1_000_000;

/// A kind of fault and how often it is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Fault {
    Kill,
    PowerLoss,
    ChainPowerLoss,
    Pause,
    PartitionPair,
    Isolate,
    OneWay,
    BreakConnections,
    LossBurst,
    SlowNetwork,
    Drift,
    ReplaceDisk,
    FlipBit,
    SlowDisk,
    HangingDisk,
    DiskErrors,
    ClientDeath,
    CommitUnknown,
    ControlPowerLoss,
}

/// Weights of the faults in one seed.
pub type Weights = Vec<(Fault, u64)>;

/// Weights of an ordinary seed.
pub const ORDINARY: &[(Fault, u64)] = &[
    (Fault::Kill, 12),
    (Fault::PowerLoss, 10),
    (Fault::ChainPowerLoss, 4),
    (Fault::Pause, 8),
    (Fault::PartitionPair, 8),
    (Fault::Isolate, 5),
    (Fault::OneWay, 8),
    (Fault::BreakConnections, 10),
    (Fault::LossBurst, 6),
    (Fault::SlowNetwork, 5),
    (Fault::Drift, 4),
    (Fault::ReplaceDisk, 4),
    (Fault::FlipBit, 5),
    (Fault::SlowDisk, 5),
    (Fault::HangingDisk, 4),
    (Fault::DiskErrors, 3),
    (Fault::ClientDeath, 5),
    (Fault::CommitUnknown, 4),
    (Fault::ControlPowerLoss, 5),
];

/// Who plays in a world.
pub struct Cast {
    /// Cluster managers.
    pub mgmtd: Vec<ProcessId>,
    /// Metadata servers.
    pub meta: Vec<ProcessId>,
    /// Storage nodes.
    pub storage: Vec<ProcessId>,
    /// Clients.
    pub clients: Vec<ProcessId>,
    /// The store under mgmtd and meta.
    pub kv: SimKv,
    /// Part of the names of files that hold chunks' data.
    pub data_files: &'static str,
    /// Tells the cluster, as an operator does, that a storage node has an empty disk: its number among them.
    pub replaced: Box<dyn Fn(usize)>,
    /// Whether every target of every chain serves.
    pub all_serve: Box<dyn Fn() -> bool>,
}

impl Cast {
    fn servers(&self) -> Vec<ProcessId> {
        [&self.mgmtd[..], &self.meta, &self.storage].concat()
    }
    fn everybody(&self) -> Vec<ProcessId> {
        [&self.servers()[..], &self.clients].concat()
    }
}

/// Draws faults and plants them.
pub struct Nemesis {
    world: World,
    cast: Rc<Cast>,
    rng: RefCell<SplitMix64>,
    weights: Weights,
    /// The one node whose data may be destroyed.
    victim: ProcessId,
    /// No more faults: those that wait for their time undo nothing new.
    over: Cell<bool>,
}

fn pick<T: Copy>(rng: &mut SplitMix64, from: &[T]) -> Option<T> {
    from.get(rng.below(from.len() as u64) as usize).copied()
}

impl Nemesis {
    /// A nemesis for a cast.
    pub fn new(world: &World, cast: Rc<Cast>, weights: Weights) -> Rc<Self> {
        let mut rng = world.rng(5);
        let victim = pick(&mut rng, &cast.storage).unwrap_or(ProcessId::HARNESS);
        Rc::new(Self {
            world: world.clone(),
            cast,
            rng: RefCell::new(rng),
            weights,
            victim,
            over: Cell::new(false),
        })
    }
    fn draw(&self, low: u64, high: u64) -> u64 {
        between(&mut self.rng.borrow_mut(), low, high)
    }
    fn pick(&self, from: &[ProcessId]) -> ProcessId {
        pick(&mut self.rng.borrow_mut(), from).unwrap_or(ProcessId::HARNESS)
    }
    fn later(self: &Rc<Self>, delay_ns: u64, undo: impl FnOnce(&Self) + 'static) {
        let own = self.clone();
        self.world.after(delay_ns, move |_| {
            if !own.over.get() {
                undo(&own);
            }
        });
    }

    /// Draws a fault and plants it.
    pub fn strike(self: &Rc<Self>) {
        let total: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.borrow_mut().below(total);
        for &(fault, weight) in &self.weights {
            if at < weight {
                return self.plant(fault);
            }
            at -= weight;
        }
    }

    /// Plants one fault; it ends by itself.
    pub fn plant(self: &Rc<Self>, fault: Fault) {
        let name = match fault {
            Fault::Kill => self.crash(Crash::Kill),
            Fault::PowerLoss => self.crash(Crash::PowerLoss),
            Fault::ChainPowerLoss => self.chain_power_loss(),
            Fault::Pause => self.pause(),
            Fault::PartitionPair => self.partition_pair(),
            Fault::Isolate => self.isolate(),
            Fault::OneWay => self.one_way(),
            Fault::BreakConnections => self.break_connections(),
            Fault::LossBurst => self.network(Fault::LossBurst),
            Fault::SlowNetwork => self.network(Fault::SlowNetwork),
            Fault::Drift => self.drift(),
            Fault::ReplaceDisk => self.damage(Fault::ReplaceDisk),
            Fault::FlipBit => self.damage(Fault::FlipBit),
            Fault::DiskErrors => self.damage(Fault::DiskErrors),
            Fault::SlowDisk => self.slow_disk(),
            Fault::HangingDisk => self.hanging_disk(),
            Fault::ClientDeath => self.client_death(),
            Fault::CommitUnknown => self.commit_unknown(),
            Fault::ControlPowerLoss => self.control_power_loss(),
        };
        if let Some(name) = name {
            self.world.trace().count(name, 1);
            if self.world.trace().is_logged() {
                eprintln!("{:>14} fault: {name}", self.world.now_ns());
            }
        }
    }

    fn restart_later(self: &Rc<Self>, process: ProcessId, low_ms: u64, high_ms: u64) {
        let down = self.draw(low_ms, high_ms) * MS;
        self.later(down, move |own| own.world.start(process));
    }

    fn crash(self: &Rc<Self>, crash: Crash) -> Option<&'static str> {
        let process = self.pick(&self.cast.servers());
        if !self.world.is_alive(process) {
            return None;
        }
        self.world.kill(process, crash);
        let long = self.draw(0, 2) == 0;
        self.restart_later(process, 50, if long { 15_000 } else { 2_000 });
        Some(match crash {
            Crash::Kill => "process killed and restarted",
            Crash::PowerLoss => "machine lost power",
        })
    }

    /// Every storage node at once, or within less than a lease.
    fn chain_power_loss(self: &Rc<Self>) -> Option<&'static str> {
        let spread = if self.draw(0, 1) == 0 { 0 } else { 300 };
        for &process in &self.cast.storage {
            let at = self.draw(0, spread) * MS;
            self.later(at, move |own| own.world.kill(process, Crash::PowerLoss));
            let back = at + self.draw(100, 8_000) * MS;
            self.later(back, move |own| own.world.start(process));
        }
        Some("whole chain lost power")
    }

    fn pause(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.everybody());
        if !self.world.is_alive(process) || self.world.is_paused(process) {
            return None;
        }
        self.world.pause(process);
        let long = if self.draw(0, 1) == 0 { 1_500 } else { 12_000 };
        self.later(self.draw(50, long) * MS, move |own| own.world.resume(process));
        Some("process paused")
    }

    fn cut(self: &Rc<Self>, from: ProcessId, to: ProcessId, time_ns: u64) {
        self.world.set_blocked(from, to, true);
        self.later(time_ns, move |own| own.world.set_blocked(from, to, false));
    }

    fn partition_pair(self: &Rc<Self>) -> Option<&'static str> {
        let (a, b) = (self.pick(&self.cast.servers()), self.pick(&self.cast.everybody()));
        let time = self.draw(100, 12_000) * MS;
        self.cut(a, b, time);
        self.cut(b, a, time);
        (a != b).then_some("partition, both ways")
    }

    fn isolate(self: &Rc<Self>) -> Option<&'static str> {
        let alone = self.pick(&self.cast.servers());
        // From the other servers only, or from the clients too.
        let from = if self.draw(0, 1) == 0 { self.cast.servers() } else { self.cast.everybody() };
        let time = self.draw(100, 10_000) * MS;
        for other in from.into_iter().filter(|&other| other != alone) {
            self.cut(alone, other, time);
            self.cut(other, alone, time);
        }
        Some("partition, both ways")
    }

    fn one_way(self: &Rc<Self>) -> Option<&'static str> {
        let (a, b) = (self.pick(&self.cast.everybody()), self.pick(&self.cast.everybody()));
        if a == b {
            return None;
        }
        self.cut(a, b, self.draw(100, 12_000) * MS);
        Some("partition, one way")
    }

    fn break_connections(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.everybody());
        let mut broken = false;
        for _ in 0..self.draw(1, 4) {
            broken |= self.world.break_connection(process, self.draw(0, u64::MAX - 1));
        }
        broken.then_some("connection lost")
    }

    fn network(self: &Rc<Self>, fault: Fault) -> Option<&'static str> {
        let usual = NetConfig::default();
        let name = match fault {
            Fault::LossBurst => {
                self.world.set_net(NetConfig { loss_ppm: self.draw(500, 10_000), ..usual });
                "network lost messages"
            }
            _ => {
                let delay_max_ns = self.draw(2, 30) * MS;
                let late_max_ns = self.draw(100, 1_500) * MS;
                self.world.set_net(NetConfig { delay_max_ns, late_ppm: 20_000, late_max_ns, ..usual });
                "network slow"
            }
        };
        self.later(self.draw(300, 4_000) * MS, move |own| own.world.set_net(usual));
        Some(name)
    }

    fn drift(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.everybody());
        let ppm = self.draw(0, 2 * CLOCK_DRIFT_PPM_MAX) as i64 - CLOCK_DRIFT_PPM_MAX as i64;
        self.world.set_drift(process, ppm);
        Some("clock drift")
    }

    fn slow_disk(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.storage);
        let slow =
            DiskConfig { slow_ppm: 200_000, slow_max_ns: self.draw(50, 900) * MS, ..DiskConfig::default() };
        self.set_disks(process, slow);
        let time = self.draw(300, 5_000) * MS;
        self.later(time, move |own| own.set_disks(process, DiskConfig::default()));
        Some("disk slow")
    }

    /// Longer than the limit of an operation, or shorter.
    fn hanging_disk(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.storage);
        self.world.disks_of(process).iter().for_each(|(_, fs)| fs.hang(""));
        let time = self.draw(200, 12_000) * MS;
        self.later(time, move |own| own.release_disks(process));
        Some("disk hung")
    }

    fn release_disks(&self, process: ProcessId) {
        self.world.disks_of(process).iter().for_each(|(_, fs)| fs.let_go(&self.world));
    }

    fn set_disks(&self, process: ProcessId, config: DiskConfig) {
        for (_, fs) in self.world.disks_of(process) {
            fs.set_config(config);
        }
    }

    fn damage(self: &Rc<Self>, fault: Fault) -> Option<&'static str> {
        let (victim, world) = (self.victim, &self.world);
        if !(self.cast.all_serve)() || !world.is_alive(victim) {
            return None;
        }
        match fault {
            Fault::ReplaceDisk => {
                world.kill(victim, Crash::PowerLoss);
                for (root, _) in world.disks_of(victim) {
                    world.replace_disk(victim, &root);
                }
                self.restart_later(victim, 50, 3_000);
                if let Some(number) = self.cast.storage.iter().position(|&p| p == victim) {
                    (self.cast.replaced)(number);
                }
                Some("disk replaced by an empty one")
            }
            Fault::FlipBit => {
                let disks = world.disks_of(victim);
                let flipped =
                    disks.iter().filter_map(|(_, fs)| fs.flip_bit(world, self.cast.data_files)).count();
                (flipped > 0).then_some("bit flipped on disk")
            }
            _ => {
                let config = DiskConfig { error_ppm: self.draw(1_000, 100_000), ..DiskConfig::default() };
                self.set_disks(victim, config);
                let time = self.draw(100, 2_000) * MS;
                self.later(time, move |own| own.set_disks(own.victim, DiskConfig::default()));
                Some("disk error")
            }
        }
    }

    fn client_death(self: &Rc<Self>) -> Option<&'static str> {
        let process = self.pick(&self.cast.clients);
        if !self.world.is_alive(process) {
            return None;
        }
        self.world.kill(process, Crash::Kill);
        self.restart_later(process, 50, 3_000);
        Some("client died")
    }

    fn commit_unknown(self: &Rc<Self>) -> Option<&'static str> {
        self.cast.kv.faults.set_unknown_ppm(self.draw(20_000, 300_000));
        self.later(self.draw(300, 3_000) * MS, |own| own.cast.kv.faults.set_unknown_ppm(0));
        Some("commits of unknown outcome")
    }

    /// The machine with mgmtd, meta and their store loses power: commits that were not yet flushed are gone.
    fn control_power_loss(self: &Rc<Self>) -> Option<&'static str> {
        let control = [&self.cast.mgmtd[..], &self.cast.meta].concat();
        for &process in &control {
            self.world.kill(process, Crash::PowerLoss);
        }
        let keep = self.draw(0, 1_000_000);
        self.cast.kv.mem.power_loss(|durable, latest| durable + (latest - durable) * keep / 1_000_000);
        for &process in &control {
            self.restart_later(process, 50, 3_000);
        }
        Some("control services and their store lost power")
    }

    /// Ends every fault and starts whatever is down.
    pub fn heal(&self) {
        self.over.set(true);
        self.world.set_net(NetConfig::default());
        self.world.heal_all();
        self.cast.kv.faults.set_unknown_ppm(0);
        for process in self.cast.everybody() {
            self.set_disks(process, DiskConfig::default());
            self.release_disks(process);
            self.world.resume(process);
            self.world.start(process);
        }
    }
}

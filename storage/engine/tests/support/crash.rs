//! Power loss at every write and flush of random histories, and at each of them with many parts of what was
//! not flushed lost. The engine recovers, is compared with the model, and goes on working.

use super::disk::{Boundary, Device, DiskState, FlushClass};
use super::loss::{Unit, WAYS, hash_of, pick};
use super::model::{Kind, Model, Violation, check_all, history};
use super::pages::mix;
use super::{DIR, World, config};
use ember_engine::{Durability, Engine, EngineConfig, Recovery};
use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Up to this many units, every subset of them is lost in turn.
const ALL_SUBSETS: usize = 3;

/// What is to be done.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Sampled losses at a boundary with many units.
    pub losses: u64,
    /// Lives of a target, each ended by power loss, by the end of its process, or by closing it.
    pub lives: u64,
    /// Operations of each of two clients in a life.
    pub steps: usize,
    /// A planted bug.
    pub skip: Option<FlushClass>,
}

impl Plan {
    pub const fn new() -> Self {
        Self { losses: 12, lives: 4, steps: 24, skip: None }
    }
}

/// What was done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Report {
    pub histories: u64,
    pub boundaries: u64,
    /// Boundaries at which every subset was tried.
    pub complete: u64,
    /// Pairs of boundary and lost set that were drawn.
    pub points: u64,
    /// Those that differ from all others of their history in what the disk holds or what must be there.
    pub distinct: u64,
    pub recoveries: u64,
    pub torn: u64,
    pub dropped: u64,
    /// Compactions that wrote something.
    pub compacted: u64,
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.boundaries += other.boundaries;
        self.complete += other.complete;
        self.points += other.points;
        self.distinct += other.distinct;
        self.recoveries += other.recoveries;
        self.torn += other.torn;
        self.dropped += other.dropped;
        self.compacted += other.compacted;
    }
}

fn settings(device: Device) -> EngineConfig {
    let durability = if device == Device::Protected { Durability::Plp } else { Durability::Flush };
    // No page stays in memory.
    EngineConfig { log_bytes: 48 << 10, checksum_cache_bytes: 0, durability, ..config() }
}

/// Every kind of flush is asked for on plain devices: half of the histories.
fn device_of(seed: u64) -> Device {
    match seed % 4 {
        2 => Device::InPlace,
        3 => Device::Protected,
        _ => Device::Plain,
    }
}

struct Run {
    plan: Plan,
    random: SplitMix64,
    report: Report,
    seen: BTreeSet<(u64, u64)>,
    device: Device,
}

/// One history; everything follows from its seed.
pub fn run(seed: u64, plan: Plan) -> (Report, Result<(), Violation>) {
    let random = SplitMix64(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut run =
        Run { plan, random, report: Report::default(), seen: BTreeSet::new(), device: device_of(seed) };
    let result = caught(|| run.history());
    run.report.histories = 1;
    (run.report, result.map_err(|v| Violation { what: format!("history {seed}: {}", v.what), ..v }))
}

/// A panic is a violation too.
fn caught<T>(work: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation::new(Kind::Panic, text.unwrap_or_default()))
    })
}

impl Run {
    fn history(&mut self) -> Result<(), Violation> {
        let mut model = Model { small: true, ..Model::default() };
        let mut disk = DiskState::new(self.random.next());
        (disk.skip, disk.device) = (self.plan.skip, self.device);
        for _ in 0..self.plan.lives {
            (disk, model) = self.life(disk, model)?;
        }
        Ok(())
    }

    /// Recovery, some operations, and the end; power loss at every boundary on the way. Returns what the next
    /// life begins with.
    fn life(&mut self, mut disk: DiskState, model: Model) -> Result<(DiskState, Model), Violation> {
        let compacted = model.compacted;
        let model = Rc::new(RefCell::new(model));
        disk.watch = Some(model.clone());
        if self.random.below(3) > 0 {
            disk.crash_at = Some(1 + self.random.below(400));
        }
        let world = World::new(disk);
        let seed = self.random.next();
        let outcome = world.run(async {
            let (engine, recovery) = begin(&world, &model).await?;
            self.count(&recovery)?;
            check_all(&engine, &model).await?;
            history(&engine, &model, seed, 2, self.plan.steps).await;
            if seed.is_multiple_of(2) {
                engine.close().await.map_err(|error| Violation::new(Kind::Refused, error.to_string()))?;
            }
            Ok(())
        });
        // Without power a call fails or does not come back.
        if !world.disk.borrow().is_dead() {
            outcome.unwrap_or(Ok(()))?;
        }
        self.report.compacted += model.borrow().compacted - compacted;
        world.disk.borrow_mut().boundary();
        let boundaries = std::mem::take(&mut world.disk.borrow_mut().boundaries);
        world.disk.borrow_mut().watch = None;
        for (at, boundary) in boundaries.iter().enumerate() {
            self.lose_power(at, boundary)?;
        }
        if self.random.below(3) == 0 {
            let disk = world.kill().into_disk();
            return Ok((disk, Rc::unwrap_or_clone(model).into_inner()));
        }
        let boundary = &boundaries[self.random.below(boundaries.len() as u64) as usize];
        let units = boundary.moment.units();
        let way = self.random.below(WAYS + 1);
        let survives = pick(&units, way, &mut self.random);
        let (names, inodes) = boundary.moment.after(&units, &survives);
        let mut disk = DiskState::started(self.random.next(), names, inodes);
        (disk.skip, disk.device) = (self.plan.skip, self.device);
        Ok((disk, boundary.model.clone()))
    }

    fn count(&mut self, recovery: &Recovery) -> Result<(), Violation> {
        self.report.recoveries += 1;
        self.report.torn += u64::from(recovery.torn);
        self.report.dropped += recovery.dropped.len() as u64;
        // A missing flush may leave damage that loses nothing: that is not what is looked for then.
        match recovery.healed.first() {
            Some(damage) if self.plan.skip.is_none() => Err(Violation::new(Kind::Healed, damage.to_string())),
            _ => Ok(()),
        }
    }

    fn lose_power(&mut self, at: usize, boundary: &Boundary) -> Result<(), Violation> {
        self.report.boundaries += 1;
        let units = boundary.moment.units();
        let complete = units.len() <= ALL_SUBSETS;
        self.report.complete += u64::from(complete);
        let losses = if complete { 1 << units.len() } else { self.plan.losses };
        for loss in 0..losses {
            let survives = match complete {
                true => (0..units.len()).map(|i| loss >> i & 1 == 1).collect(),
                false => pick(&units, loss.min(WAYS), &mut self.random),
            };
            self.report.points += 1;
            let result = caught(|| self.examine(boundary, &units, &survives));
            result.map_err(|v| {
                let kept = survives.iter().filter(|survives| **survives).count();
                let what =
                    format!("boundary {at}, loss {loss} ({kept} of {} survive): {}", units.len(), v.what);
                Violation { what, ..v }
            })?;
        }
        Ok(())
    }

    /// Recovers from one loss and goes on; sometimes through another.
    fn examine(&mut self, boundary: &Boundary, units: &[Unit], survives: &[bool]) -> Result<(), Violation> {
        let (names, inodes) = boundary.moment.after(units, survives);
        let image = hash_of(&names, &inodes);
        if !self.seen.insert((image, boundary.model.epoch)) {
            return Ok(());
        }
        self.report.distinct += 1;
        if let Some(checkpoint) = &boundary.model.checkpoint {
            let mut there = names.files.keys().filter(|n| n.contains("/checkpoint-") && !n.ends_with(".tmp"));
            if !there.any(|name| name >= checkpoint) {
                return Err(Violation::new(Kind::Lost, format!("{checkpoint} was acknowledged")));
            }
        }
        let mut disk = DiskState::started(image, names, inodes);
        (disk.skip, disk.device) = (self.plan.skip, self.device);
        let mut world = World::new(disk);
        let model = RefCell::new(boundary.model.clone());
        let again = mix(image, 5).is_multiple_of(8);
        for round in 0..1 + u64::from(again) {
            let (engine, recovery) = world.must(begin(&world, &model))?;
            self.count(&recovery)?;
            world.must(check_all(&engine, &model))?;
            world.must(history(&engine, &model, image ^ round, 2, 2));
            world.must(check_all(&engine, &RefCell::new(model.borrow().latest())))?;
            drop(engine);
            world = world.crash();
        }
        Ok(())
    }
}

/// Opens the target, or creates it if nobody was told that it is there.
async fn begin(world: &World, model: &RefCell<Model>) -> Result<(Engine, Recovery), Violation> {
    let refused = |error: ember_engine::EngineError| Violation::new(Kind::Refused, error.to_string());
    let settings = settings(world.disk.borrow().device);
    let created = model.borrow().created;
    let opened = match created || Engine::exists(&world.queue(), DIR).map_err(refused)? {
        true => world.open(settings).await.map_err(refused)?,
        false => (world.create(settings).await.map_err(refused)?, Recovery::default()),
    };
    let mut model = model.borrow_mut();
    model.epoch += u64::from(!model.created);
    model.created = true;
    Ok(opened)
}

//! A whole cluster in a world, its faults, its clients, and what must hold.

pub mod acts;
pub mod aim;
pub mod build;
pub mod faults;
pub mod history;
pub mod kv;
pub mod ledger;
pub mod matrix;
pub mod storage;
pub mod verify;
pub mod workload;

use crate::check::chunk::CELL;
use crate::runner::{Outcome, Settings};
use crate::world::{World, between};
use build::{Plan, SECRET};
use ember_client::mgmtd::RoutingCache;
use ember_client::{Client, ClientError, MetaOptions};
use ember_rt::Rt;
use ember_types::{ChainTableId, InodeId, Status};
use ember_wire::meta::{OpenFlags, Operation, SetAttributes};
use ember_wire::method::CreateChains;
use ember_wire::mgmtd::CreateChainsRequest;
use faults::{Cast, Nemesis, ORDINARY};
use history::History;
use kv::SimKv;
use ledger::Ledger;
use std::rc::Rc;
use std::time::Duration;
use verify::{Inspector, all_serve};
use workload::{CHUNK_SIZE, CHUNKS_PER_FILE, HotFile, Setup, Stage};

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// Virtual time for setup at most.
const SETUP_NS: u64 = 60 * S;
/// Longest pause between two operations of a worker: ordinarily, and while an act is played.
const THINK_NS: u64 = 500 * MS;
const THINK_IN_ACTS_NS: u64 = 60 * MS;
/// Virtual time with faults.
const FAULTY_NS: u64 = 30 * S;
/// Virtual time after the last fault until everything must serve again.
const HEAL_NS: u64 = 90 * S;
/// Virtual time for the checks at the end at most.
const VERIFY_NS: u64 = 300 * S;
/// Until sessions of dead clients have ended, their files are settled and their capabilities have expired.
const SESSIONS_END: Duration = Duration::from_secs(25);

/// One run.
struct Run {
    world: World,
    plan: Plan,
    rt: Rt,
    stage: Rc<Stage>,
    ledger: Rc<Ledger>,
    cast: Rc<Cast>,
    inspector: Rc<Inspector>,
}

/// Runs a cluster from one seed.
pub fn simulate(seed: u64, settings: Settings) -> Outcome {
    let world = World::new(seed);
    world.trace().set_log(settings.log);
    run(&world);
    world.tear_down();
    Outcome { seed, hash: world.trace().hash(), failure: world.failure(), counters: world.trace().counters() }
}

fn run(world: &World) {
    let mut rng = world.rng(6);
    let plan = Plan::full(rng.below(2) == 0);
    let run = build(world, plan);
    if !run.start() {
        return;
    }
    let mut weights = ORDINARY.to_vec();
    if !plan.strict {
        weights.retain(|(fault, _)| *fault != faults::Fault::ControlPowerLoss);
    }
    let nemesis = Nemesis::new(world, run.cast.clone(), weights);
    let end = world.now_ns() + FAULTY_NS;
    while world.now_ns() < end && world.failure().is_none() {
        world.run_until(world.now_ns() + between(&mut rng, 200 * MS, 2_600 * MS));
        nemesis.strike();
    }
    nemesis.heal();
    world.run_until(world.now_ns() + 3 * S);
    if run.everything_serves() {
        run.stage.think_max_ns.set(THINK_IN_ACTS_NS);
        acts::play(world, &run.cast, &mut rng);
        run.stage.think_max_ns.set(THINK_NS);
        run.finish();
    }
}

fn build(world: &World, plan: Plan) -> Run {
    let kv = SimKv::new(world);
    let history = Rc::new(History::new(world));
    let stage = Rc::new(Stage::new(world, history, &SECRET, THINK_NS));
    let ledger = Rc::new(Ledger::default());
    let mgmtd = build::mgmtd(world, plan, &kv);
    let meta = build::meta(world, plan, &kv);
    let storage = build::storage(world, plan);
    for &process in mgmtd.iter().chain(&meta).chain(&storage) {
        world.start(process);
    }
    let clients = build::clients(world, plan, &stage, &ledger);
    let rt = world.harness_rt();
    let (pool, routing) = build::operator(&rt, plan);
    let view = routing.clone();
    let operator = (rt.clone(), routing.clone(), world.clone());
    let cast = Cast {
        mgmtd,
        meta,
        storage,
        clients,
        kv,
        data_files: "",
        replaced: Box::new(move |number| {
            let replace = build::replace_targets(operator.0.clone(), operator.1.clone(), number);
            operator.2.spawn_harness("operator", replace);
        }),
        all_serve: Box::new(move || all_serve(&view.view())),
    };
    let inspector = Rc::new(Inspector { rt: rt.clone(), pool, routing });
    Run { world: world.clone(), plan, rt, stage, ledger, cast: Rc::new(cast), inspector }
}

async fn set_up(rt: Rt, plan: Plan, routing: RoutingCache) -> Result<Setup, ClientError> {
    let request = CreateChainsRequest {
        table: ChainTableId(1),
        replicas: plan.replicas,
        targets_per_disk: plan.targets_per_disk,
        storage_nodes: plan.storage,
    };
    loop {
        let limit = Duration::from_secs(2);
        let answer = routing.mgmtd().call::<CreateChains>(&request, limit).await;
        if answer.is_ok_and(|a| matches!(a.status, Status::Ok | Status::Exists)) {
            break;
        }
        rt.sleep(Duration::from_millis(200)).await;
    }
    while !all_serve(&routing.view()) {
        rt.sleep(Duration::from_millis(50)).await;
    }
    let Some((client, _guard)) = build::connect(&rt, plan, Duration::from_secs(20)).await else {
        return Err(ClientError::new(Status::Timeout, "no session"));
    };
    let mut setup = Setup { ledger: directory(&client, "ledger").await?, ..Setup::default() };
    for number in 0..3 {
        setup.hot.push(hot_file(&client, number).await?);
    }
    for group in 0..if plan.names { 2 } else { 0 } {
        let mut dirs = Vec::new();
        for number in 0..2 {
            dirs.push(directory(&client, &format!("g{group}d{number}")).await?.0);
        }
        setup.groups.push(dirs);
    }
    Ok(setup)
}

async fn directory(client: &Client, name: &str) -> Result<InodeId, ClientError> {
    let make =
        Operation::MakeDirectory { parent: InodeId::ROOT, name: name.as_bytes().to_vec(), mode: 0o755 };
    Ok(client.meta_entry(make, &MetaOptions::root()).await?.inode)
}

async fn hot_file(client: &Client, number: u32) -> Result<HotFile, ClientError> {
    let root = MetaOptions::root();
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let name = format!("hot{number}").into_bytes();
    let opened = client.create(InodeId::ROOT, &name, 0o644, true, flags, &root).await?;
    let inode = opened.attributes.inode;
    client.close(opened.file.handle()).await?;
    let length = Some(u64::from(CHUNKS_PER_FILE * CHUNK_SIZE));
    let set = SetAttributes { length, ..SetAttributes::default() };
    let attributes = client.set_attributes(inode, set, &root).await?;
    let Some(layout) = attributes.layout else {
        return Err(ClientError::new(Status::Internal, "a file without a layout"));
    };
    debug_assert_eq!(CHUNK_SIZE as usize % CELL, 0);
    Ok(HotFile { inode, data: attributes.data, layout })
}

impl Run {
    /// Sets the cluster up and lets the clients loose; whether it came to that.
    fn start(&self) -> bool {
        let (world, routing) = (&self.world, &self.inspector.routing);
        match world.block_on(SETUP_NS, set_up(self.rt.clone(), self.plan, routing.clone())) {
            None => world.fail("a cluster starts", "it is not set up in time"),
            Some(Err(error)) => world.fail("a cluster starts", &error.to_string()),
            Some(Ok(setup)) => {
                for (group, dirs) in setup.groups.iter().enumerate() {
                    self.stage.history.start_names(group as u32, dirs);
                }
                *self.stage.setup.borrow_mut() = setup;
                world.spawn_harness("chain watcher", verify::watch_chains(world.clone(), routing.clone()));
                self.cast.clients.iter().for_each(|&client| world.start(client));
            }
        }
        world.failure().is_none()
    }

    /// Waits until every target serves; whether it came to that.
    fn everything_serves(&self) -> bool {
        let world = &self.world;
        let deadline = world.now_ns() + HEAL_NS;
        while world.failure().is_none() && !(self.cast.all_serve)() {
            if world.now_ns() > deadline {
                let text = verify::not_serving(&self.inspector.routing.view());
                world.fail("every target that stays up becomes serving again", &text);
            }
            world.run_until(world.now_ns() + S / 4);
        }
        world.failure().is_none()
    }

    /// Faults are over: everything comes back, and what is found must be what was acknowledged.
    fn finish(&self) {
        let world = &self.world;
        self.stage.stop.set(true);
        world.run_until(world.now_ns() + 10 * S);
        for &client in &self.cast.clients {
            world.kill(client, crate::process::Crash::Kill);
        }
        if !self.everything_serves() {
            return;
        }
        let (stage, ledger) = (self.stage.clone(), self.ledger.clone());
        self.verify(VERIFY_NS, SESSIONS_END, async move |client| {
            ledger::verify(&client, &stage, &ledger).await;
            Ok(())
        });
    }

    /// After a while a new client looks at what is there; then all replicas are compared and the history is checked.
    fn verify(
        &self,
        limit_ns: u64,
        after: Duration,
        look: impl AsyncFnOnce(Client) -> Result<(), String> + 'static,
    ) {
        let (world, own) = (&self.world, self.world.clone());
        let (inspector, rt, plan) = (self.inspector.clone(), self.rt.clone(), self.plan);
        let verified = world.block_on(world.now_ns() + limit_ns, async move {
            rt.sleep(after).await;
            let Some((client, _guard)) = build::connect(&rt, plan, Duration::from_secs(30)).await else {
                return own.fail("a healed cluster serves", "a new client gets no session");
            };
            if let Err(text) = look(client).await {
                return own.fail("a healed cluster serves", &text);
            }
            if let Err(text) = inspector.compare(&own).await {
                own.fail("all replicas are equal", &text);
            }
        });
        if verified.is_none() {
            world.fail("a healed cluster serves", "the checks at the end don't come to an end");
        }
        if world.failure().is_none() {
            self.stage.history.check();
        }
    }
}

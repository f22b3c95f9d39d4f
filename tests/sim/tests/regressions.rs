//! What the users of 3FS reported, acted out in a whole cluster. Each test has the number of the report; those without
//! one are about our own history.

use ember_client::{Client, MetaOptions, OpenFile};
use ember_net::CallOptions;
use ember_rt::{Rt, SharedBuf};
use ember_sim::cluster::build::{self, Guard, Plan};
use ember_sim::cluster::kv::SimKv;
use ember_sim::cluster::verify::{self, Inspector, all_serve};
use ember_sim::{Crash, ProcessId, World};
use ember_types::layout::SplitMix64;
use ember_types::{Chain, ChainTableId, ChainVersion, InodeId, NodeId, Status, TargetId};
use ember_wire::meta::{OpenFlags, SetAttributes};
use ember_wire::method::{CreateChains, ListChunks};
use ember_wire::mgmtd::CreateChainsRequest;
use ember_wire::storage::{Address, ChunkSummary, ListRequest};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const CHUNK: usize = 64 << 10;
/// Everything serves again this long after the last fault, in seconds of virtual time.
const HEALED_S: u64 = 30;

struct Cluster {
    world: World,
    plan: Plan,
    mgmtd: Vec<ProcessId>,
    storage: Vec<ProcessId>,
    rt: Rt,
    inspector: Rc<Inspector>,
}

/// A client's file.
#[derive(Clone)]
struct File {
    client: Client,
    inode: InodeId,
    open: Arc<OpenFile>,
}

impl File {
    async fn write(&self, at: usize, data: &[u8]) {
        self.client.write(&self.open, at as u64, SharedBuf::from(data)).await.expect("a write");
    }
    async fn read(&self) -> Vec<u8> {
        let segments = self.client.read(&self.open, 0, u64::MAX).await.expect("a read");
        segments.iter().flat_map(|segment| segment.iter().copied()).collect()
    }
    async fn set_length(&self, length: usize) {
        let set = SetAttributes { length: Some(length as u64), ..SetAttributes::default() };
        self.client.set_attributes(self.inode, set, &MetaOptions::root()).await.expect("a new length");
    }
}

async fn new_file(client: &Client, name: &str) -> File {
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let made = client.create(InodeId::ROOT, name.as_bytes(), 0o644, true, flags, &MetaOptions::root()).await;
    let made = made.expect("a new file");
    File { client: client.clone(), inode: made.attributes.inode, open: made.file }
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut random = SplitMix64(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.world.tear_down();
    }
}

impl Cluster {
    /// A new cluster all of whose targets serve.
    fn start(seed: u64, plan: Plan) -> Self {
        let world = World::new(seed);
        let kv = SimKv::new(&world);
        let (mgmtd, meta) = (build::mgmtd(&world, plan, &kv), build::meta(&world, plan, &kv));
        let storage = build::storage(&world, plan);
        mgmtd.iter().chain(&meta).chain(&storage).for_each(|&process| world.start(process));
        let rt = world.harness_rt();
        let (pool, routing) = build::operator(&rt, plan);
        world.spawn_harness("chain watcher", verify::watch_chains(world.clone(), routing.clone()));
        let inspector = Rc::new(Inspector { rt: rt.clone(), pool, routing });
        let cluster = Self { world, plan, mgmtd, storage, rt, inspector };
        let (rt, routing) = (cluster.rt.clone(), cluster.inspector.routing.clone());
        cluster.run(60, "a new cluster serves", async move {
            let request = CreateChainsRequest {
                table: ChainTableId(1),
                replicas: plan.replicas,
                targets_per_disk: plan.targets_per_disk,
                storage_nodes: plan.storage,
            };
            let made = |status| matches!(status, Status::Ok | Status::Exists);
            let limit = Duration::from_secs(2);
            while !routing.mgmtd().call::<CreateChains>(&request, limit).await.is_ok_and(|a| made(a.status)) {
                rt.sleep(Duration::from_millis(200)).await;
            }
        });
        cluster.heals();
        cluster
    }

    /// Runs a future, which must end within so many virtual seconds.
    fn run<T: 'static>(&self, seconds: u64, what: &str, future: impl Future<Output = T> + 'static) -> T {
        let done = self.world.block_on(self.world.now_ns() + seconds * S, future);
        assert_eq!(self.world.failure(), None);
        done.unwrap_or_else(|| panic!("{what}: not within {seconds} s"))
    }
    fn pass(&self, ms: u64) {
        self.world.run_until(self.world.now_ns() + ms * MS);
        assert_eq!(self.world.failure(), None);
    }
    fn until(&self, seconds: u64, what: &str, holds: impl Fn() -> bool) {
        let limit = self.world.now_ns() + seconds * S;
        while !holds() {
            let view = self.inspector.routing.view();
            assert!(
                self.world.now_ns() < limit,
                "{what}: not within {seconds} s{}",
                verify::not_serving(&view)
            );
            self.pass(20);
        }
    }
    /// Waits until every target serves.
    fn heals(&self) {
        self.until(HEALED_S, "every target serves", || all_serve(&self.inspector.routing.view()));
    }
    /// Every target serves, and all replicas hold the same.
    fn is_whole(&self) {
        self.heals();
        // Commits of the last updates reach the replicas on their own.
        self.pass(1_500);
        let (inspector, world) = (self.inspector.clone(), self.world.clone());
        let same = self.run(60, "replicas are compared", async move { inspector.compare(&world).await });
        assert_eq!(same, Ok(()));
    }

    fn client(&self) -> (Client, Guard) {
        let (rt, plan) = (self.rt.clone(), self.plan);
        let limit = Duration::from_secs(20);
        let connected = async move { build::connect(&rt, plan, limit).await };
        let (client, guard) = self.run(25, "a session", connected).expect("a session");
        self.rt.spawn("capabilities", client.clone().keep_capabilities());
        (client, guard)
    }
    /// A file with this content.
    fn file(&self, client: &Client, name: &'static str, content: &[u8]) -> File {
        let (client, content) = (client.clone(), content.to_vec());
        self.run(20, "a new file", async move {
            let file = new_file(&client, name).await;
            file.write(0, &content).await;
            file
        })
    }
    fn reads(&self, file: &File, expected: &[u8]) {
        let file = file.clone();
        let found = self.run(20, "a read", async move { file.read().await });
        assert!(found == expected, "{} bytes read are not the {} written", found.len(), expected.len());
    }

    fn chain(&self) -> Chain {
        let view = self.inspector.routing.view();
        view.chains.values().next().expect("a chain").clone()
    }
    fn node_of(&self, target: TargetId) -> NodeId {
        self.inspector.routing.view().targets[&target].node
    }
    fn process_of(&self, target: TargetId) -> ProcessId {
        let number = build::storage_number(self.node_of(target)).expect("a storage node");
        self.storage[number]
    }

    /// What a replica holds.
    fn listed(&self, chain: &Chain, target: TargetId) -> Vec<ChunkSummary> {
        let view = self.inspector.routing.view();
        let address = view.node_of(target).expect("a node").addresses[0].parse().expect("an address");
        let generation = chain.member(target).expect("a member").generation;
        let to = Address { chain: chain.id, chain_version: ChainVersion(0), target, generation };
        let (pool, until) = (self.inspector.pool.clone(), self.rt.now() + Duration::from_secs(1));
        let options = CallOptions { expect: 1 << 20, ..CallOptions::default() };
        self.run(2, "a listing", async move {
            let request = ListRequest { to, after: None, limit: 256 };
            let answer = pool.call::<ListChunks>(&address, &request, SharedBuf::default(), until, options);
            answer.await.expect("a listing").body.chunks
        })
    }
}

/// The death of a storage process that is the head of a chain ended the client that was reading from it, and its
/// mount was gone.
#[test]
fn regression_3fs_268_reader_survives_heads_death() {
    let cluster = Cluster::start(268, Plan::storage(3));
    let (client, _guard) = cluster.client();
    let content = random(1, CHUNK + 6_000);
    let file = cluster.file(&client, "read", &content);
    let dead: Rc<RefCell<Vec<ProcessId>>> = Rc::default();
    for (at, chain) in cluster.inspector.routing.view().chains.values().enumerate() {
        let head = cluster.process_of(chain.head().expect("a head").target);
        let (own, dead) = (cluster.world.clone(), dead.clone());
        cluster.world.after((1 + 7 * at as u64) * S, move |_| {
            dead.borrow_mut().push(head);
            own.kill(head, Crash::Kill);
        });
        let own = cluster.world.clone();
        cluster.world.after((5 + 7 * at as u64) * S, move |_| own.start(head));
    }
    let (rt, expected) = (cluster.rt.clone(), content.clone());
    let (reads, longest) = cluster.run(60, "reading", async move {
        let (end, mut reads, mut longest) = (rt.now() + Duration::from_secs(16), 0, Duration::ZERO);
        while rt.now() < end {
            let begin = rt.now();
            assert!(file.read().await == expected, "other bytes than were written");
            longest = longest.max(rt.now().since(begin));
            reads += 1;
            rt.sleep(Duration::from_millis(100)).await;
        }
        (reads, longest)
    });
    assert!(dead.borrow().len() >= 2 && reads > 100, "{reads} reads");
    assert!(longest < Duration::from_secs(3), "the longest read took {longest:?}");
    cluster.is_whole();
}

/// A target that had been away stayed in state SYNCING for ever: its resync spoke of another target of the node.
#[test]
fn regression_3fs_229_a_syncing_target_becomes_serving() {
    let cluster = Cluster::start(229, Plan { resync_bytes_per_s: 0, ..Plan::storage(3) });
    let (client, _guard) = cluster.client();
    let mut content = random(2, 6 * CHUNK);
    let file = cluster.file(&client, "f", &content);
    for number in 0..3 {
        // Every target of a node, of several chains, at once; each node stands elsewhere in them.
        let node = cluster.storage[number];
        cluster.world.kill(node, Crash::Kill);
        let away = || !all_serve(&cluster.inspector.routing.view());
        cluster.until(10, "the chains go on without it", away);
        let new = random(number as u64, 3 * CHUNK);
        content[CHUNK..4 * CHUNK].copy_from_slice(&new);
        let writer = file.clone();
        cluster.run(20, "a write", async move { writer.write(CHUNK, &new).await });
        cluster.world.start(node);
        cluster.heals();
    }
    cluster.is_whole();
    cluster.reads(&file, &content);
}

/// The tail had committed an update and died before its predecessor heard of it. It never came back into service:
/// the checksums differed, until somebody ordered a full sync.
#[test]
fn regression_3fs_345_a_tail_that_dies_after_its_commit_comes_back() {
    for (seed, crash) in [(345, Crash::Kill), (346, Crash::PowerLoss)] {
        let cluster = Cluster::start(seed, Plan { targets_per_disk: 1, ..Plan::storage(3) });
        let (client, _guard) = cluster.client();
        let mut content = random(3, CHUNK);
        let file = cluster.file(&client, "f", &content);
        cluster.is_whole();
        let chain = cluster.chain();
        let members: Vec<TargetId> = chain.serving().map(|member| member.target).collect();
        let (middle, tail) = (members[1], members[2]);
        let (before, after) = (cluster.process_of(middle), cluster.process_of(tail));
        // The tail's answers don't arrive.
        cluster.world.set_blocked(after, before, true);
        let new = random(4, 5_000);
        content[..5_000].copy_from_slice(&new);
        let (writer, written) = (file.clone(), Rc::new(Cell::new(false)));
        let told = written.clone();
        cluster.rt.spawn("writer", async move {
            writer.write(0, &new).await;
            told.set(true);
        });
        cluster.pass(400);
        let (there, here) = (cluster.listed(&chain, tail), cluster.listed(&chain, middle));
        assert!(there[0].pending.is_none(), "the tail has committed: {there:?}");
        assert_eq!(here[0].pending, there[0].committed, "{here:?}");
        assert!(!written.get());
        cluster.world.kill(after, crash);
        cluster.world.set_blocked(after, before, false);
        cluster.until(10, "the write is done without it", || written.get());
        // The chunk goes on, so that the tail comes back with a version that nobody else has any more.
        let newer = random(9, 3_000);
        content[2_000..5_000].copy_from_slice(&newer);
        let writer = file.clone();
        cluster.run(20, "a newer write", async move { writer.write(2_000, &newer).await });
        cluster.world.start(after);
        cluster.is_whole();
        cluster.reads(&file, &content);
    }
}

/// The targets of a disk that was replaced stayed OFFLINE, and there was no way to bring them back.
#[test]
fn regression_3fs_335_a_replaced_disk_comes_back() {
    let cluster = Cluster::start(335, Plan { resync_bytes_per_s: 0, ..Plan::storage(3) });
    let (client, _guard) = cluster.client();
    let content = random(5, 6 * CHUNK);
    let file = cluster.file(&client, "f", &content);
    let node = cluster.storage[1];
    cluster.world.kill(node, Crash::Kill);
    cluster.world.replace_disk(node, Path::new("/disk"));
    cluster.world.start(node);
    // It may be a disk that isn't mounted: nobody makes a target there unasked.
    cluster.pass(6_000);
    let view = cluster.inspector.routing.view();
    assert!(!all_serve(&view));
    let own = view.targets.values().filter(|t| build::storage_number(t.node) == Some(1));
    assert!(own.clone().count() == 2 && own.clone().all(|t| t.generation.0 == 1));
    let replace = build::replace_targets(cluster.rt.clone(), cluster.inspector.routing.clone(), 1);
    cluster.run(20, "`ember target replace`", replace);
    cluster.is_whole();
    let view = cluster.inspector.routing.view();
    let own = view.targets.values().filter(|t| build::storage_number(t.node) == Some(1));
    assert!(own.clone().all(|t| t.generation.0 == 2));
    cluster.reads(&file, &content);
}

/// The primary mgmtd was lost, no other took over, and all mounts disappeared; somebody had to delete a key of the
/// store by hand.
#[test]
fn regression_3fs_135_a_lost_primary_is_replaced_and_mounts_stay() {
    let cluster = Cluster::start(135, Plan { mgmtd: 2, ..Plan::storage(3) });
    let (client, guard) = cluster.client();
    let content = random(6, 3 * CHUNK);
    let file = cluster.file(&client, "f", &content);
    // Longer than a session lives that nobody extends, and than any lease.
    let work = |what: &'static str, seconds: u64| {
        let (client, rt, file) = (client.clone(), cluster.rt.clone(), file.clone());
        let expected = content.clone();
        cluster.run(60, what, async move {
            for round in 0..seconds {
                new_file(&client, &format!("{what} {round}")).await;
                assert!(file.read().await == expected, "{what}: other bytes than were written");
                file.write(CHUNK, &expected[CHUNK..2 * CHUNK]).await;
                rt.sleep(Duration::from_secs(1)).await;
            }
        });
    };
    // One of the two is the primary.
    for (number, what) in [(0, "without the first mgmtd"), (1, "without the second")] {
        cluster.world.kill(cluster.mgmtd[number], Crash::PowerLoss);
        work(what, 12);
        cluster.world.start(cluster.mgmtd[number]);
        cluster.pass(2_000);
    }
    // Both at once; what the last primary left in the store is no obstacle.
    cluster.mgmtd.iter().for_each(|&process| cluster.world.kill(process, Crash::PowerLoss));
    cluster.pass(500);
    cluster.mgmtd.iter().for_each(|&process| cluster.world.start(process));
    work("with both anew", 3);
    let rt = cluster.rt.clone();
    let ended = async move { rt.timeout(Duration::from_millis(10), guard.ended()).await.is_ok() };
    assert!(!cluster.run(1, "a look at the session", ended), "the session has ended");
    cluster.is_whole();
}

/// A chunk was truncated while its target was being synced.
#[test]
fn regression_3fs_403_truncate_during_resync() {
    let cluster = Cluster::start(403, Plan { resync_bytes_per_s: 150_000, ..Plan::storage(3) });
    let (client, _guard) = cluster.client();
    let mut content = random(7, 12 * CHUNK);
    let file = cluster.file(&client, "f", &content);
    let node = cluster.storage[2];
    cluster.world.kill(node, Crash::Kill);
    cluster.world.replace_disk(node, Path::new("/disk"));
    cluster.world.start(node);
    let replace = build::replace_targets(cluster.rt.clone(), cluster.inspector.routing.clone(), 2);
    cluster.run(20, "`ember target replace`", replace);
    let syncs = || cluster.inspector.routing.view().chains.values().any(|chain| chain.syncing().is_some());
    cluster.until(10, "a target syncs", syncs);
    // Within a chunk, a whole number of chunks, and longer again; before, while and after chunks are sent.
    let mut syncing = 0;
    for length in [11 * CHUNK + 5, 9 * CHUNK, 9 * CHUNK + 700, 4 * CHUNK - 3, 2 * CHUNK + 1, 12 * CHUNK] {
        content.resize(length, 0);
        let cut = file.clone();
        cluster.run(20, "a new length", async move { cut.set_length(length).await });
        syncing += u32::from(syncs());
        cluster.reads(&file, &content);
        cluster.pass(250);
    }
    cluster.is_whole();
    cluster.reads(&file, &content);
    assert!(syncing >= 5, "the sync was over after {syncing} truncations");
}

/// A storage process that stands still keeps its connections. Clients waited for its answer to the end of their
/// attempt, though their chain had gone on without it, and a write took two attempts instead of one lease.
#[test]
fn a_process_that_stands_still_costs_its_lease_and_no_more() {
    let cluster = Cluster::start(20, Plan::storage(3));
    let (client, _guard) = cluster.client();
    // Of each chain.
    let content = random(8, 8 * CHUNK);
    let file = cluster.file(&client, "f", &content);
    for node in cluster.storage.clone() {
        cluster.world.pause(node);
        let (writer, expected, rt) = (file.clone(), content.clone(), cluster.rt.clone());
        let (written, read) = cluster.run(20, "a write and a read", async move {
            let begin = rt.now();
            writer.write(0, &expected).await;
            let written = rt.now().since(begin);
            assert!(writer.read().await == expected, "other bytes than were written");
            (written, rt.now().since(begin) - written)
        });
        // 2 s of lease, 0.1 s of drift, and what it takes to push the new chain.
        assert!(written < Duration::from_millis(2_600), "a write took {written:?}");
        assert!(written > Duration::from_millis(1_000), "nobody waited for the process that stands still");
        assert!(read < Duration::from_millis(500), "a read took {read:?}");
        cluster.world.resume(node);
        cluster.until(10, "mgmtd has heard", || !all_serve(&cluster.inspector.routing.view()));
        cluster.heals();
    }
    cluster.is_whole();
}

//! Ranks that are processes: the same losses, and an end for all if one is killed.

mod support;

use ember_dualpipe::{
    JoinError, Kind, Mesh, Outcome, Part, Payload, Pipeline, Rank, RunError, Shared, ShmTransport, Tag,
    TcpTransport, Transport, TransportError,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::{Layer, Tensor, alone, criterion, feed};

const RANKS: usize = 4;
const CHUNKS: usize = 12;
const JOB: u64 = 77;
/// How a child knows that it is one, and which.
const RANK: &str = "EMBER_TEST_RANK";
/// The rank that stops in the middle of the step and waits for its end.
const STOPS: &str = "EMBER_TEST_STOPS";
/// The file of the shared memory, for ranks that are joined by it.
const FILE: &str = "EMBER_TEST_FILE";
const LIMIT: Duration = Duration::from_secs(60);

/// A file that nobody else uses.
fn path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder =
        if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    folder.join(format!("ember-dualpipe-{}-{number}", std::process::id()))
}

fn pipeline() -> Pipeline {
    Pipeline::new(Kind::DualPipe, RANKS, CHUNKS, false).unwrap()
}

fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// What each process does; a test only by name.
#[test]
fn child() {
    let Some(rank) = std::env::var(RANK).ok().and_then(|rank| rank.parse::<usize>().ok()) else { return };
    let stops = std::env::var(STOPS).ok().and_then(|rank| rank.parse().ok()) == Some(rank);
    let outcome = match std::env::var_os(FILE) {
        Some(file) => step(rank, stops, shared(Path::new(&file), rank, RANKS)),
        None => {
            let listener = local();
            println!("\nat {}", listener.local_addr().unwrap());
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            let addresses: Vec<SocketAddr> =
                line.split_whitespace().map(|address| address.parse().unwrap()).collect();
            let mesh = Mesh { rank, addresses, job: JOB, limit: LIMIT };
            step(rank, stops, TcpTransport::<Tensor>::join(&mesh, &listener).unwrap())
        }
    };
    match outcome {
        Ok(outcome) => {
            let bits: Vec<String> =
                outcome.losses.iter().map(|loss| format!("{:016x}", loss.to_bits())).collect();
            println!("losses {}", bits.join(" "));
        }
        Err(error) => println!("error {error}"),
    }
}

fn shared(path: &Path, rank: usize, ranks: usize) -> ShmTransport<Tensor> {
    ShmTransport::join(&Shared { path, rank, ranks, room: 1, limit: LIMIT }).unwrap()
}

fn step(
    rank: usize,
    stops: bool,
    transport: impl Transport<Tensor>,
) -> Result<Outcome<Tensor, f64>, RunError<String>> {
    let pipeline = pipeline();
    let mut modules = [0, 1].map(|module| Layer::new(pipeline.stage(rank, module)));
    let mapping: Vec<usize> = (0..RANKS).collect();
    let mut of = Rank { pipeline: &pipeline, rank, mapping: &mapping, transport };
    let mut losses = 0;
    of.step(&mut modules, feed(&pipeline, rank), false, |output, label| {
        losses += 1;
        if stops && losses == 2 {
            println!("\nstopped");
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        criterion(output, label)
    })
}

struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(rank: usize, stops: Option<usize>, file: Option<&Path>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(RANK, rank.to_string());
        if let Some(stops) = stops {
            command.env(STOPS, stops.to_string());
        }
        if let Some(file) = file {
            command.env(FILE, file);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, to, from: BufReader::new(from) }
    }
    /// What stands behind a word at the beginning of a line.
    fn line(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "no line {word}");
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }
}

fn start(stops: Option<usize>, file: Option<&Path>) -> Vec<Process> {
    let mut all: Vec<Process> = (0..RANKS).map(|rank| Process::start(rank, stops, file)).collect();
    if file.is_some() {
        return all;
    }
    let addresses: Vec<String> = all.iter_mut().map(|process| process.line("at ")).collect();
    for process in &mut all {
        writeln!(process.to, "{}", addresses.join(" ")).unwrap();
    }
    all
}

#[test]
fn processes_compute_the_losses_of_one() {
    let mut stages: Vec<Layer> = (0..RANKS).map(Layer::new).collect();
    let expected = [0, 1].map(|direction| alone(&mut stages, direction, CHUNKS / 2).losses);
    for file in [None, Some(path())] {
        for (rank, mut process) in start(None, file.as_deref()).into_iter().enumerate() {
            let bits = process.line("losses");
            let found: Vec<u64> =
                bits.split_whitespace().map(|x| u64::from_str_radix(x, 16).unwrap()).collect();
            let last = (0..2).find(|module| pipeline().is_last(rank, *module));
            let expected: Vec<u64> = last
                .map_or(Vec::new(), |module| expected[module].iter().map(|loss| loss.to_bits()).collect());
            assert_eq!(found, expected, "rank {rank}");
            assert!(process.child.wait().unwrap().success());
        }
        assert!(file.is_none_or(|file| !file.exists()), "nothing is left behind");
    }
}

#[test]
fn a_process_that_is_killed_ends_all() {
    for file in [None, Some(path())] {
        let mut all = start(Some(RANKS - 1), file.as_deref());
        all[RANKS - 1].line("stopped");
        all[RANKS - 1].child.kill().unwrap();
        all[RANKS - 1].child.wait().unwrap();
        for process in &mut all[..RANKS - 1] {
            let error = process.line("error");
            assert!(error.contains("has ended"), "{error}");
            let names = [format!("rank {} has", RANKS - 1), format!("because of rank {}:", RANKS - 1)];
            assert!(file.is_none() || names.iter().any(|name| error.contains(name)), "{error}");
        }
        all.into_iter().for_each(|mut process| drop(process.child.wait()));
    }
}

/// Runs a thread for each of two ranks that share memory.
fn pair(work: impl Fn(usize, ShmTransport<Tensor>) + Sync) {
    let (file, work) = (path(), &work);
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let file = &file;
            scope.spawn(move || work(rank, shared(file, rank, 2)));
        }
    });
}

fn tag(chunk: usize) -> Tag {
    Tag { payload: Payload::Activation, part: Part { module: 1, chunk } }
}

#[test]
fn messages_larger_than_the_shared_memory_go_both_ways_at_once() {
    let long = |rank: usize, chunk: usize| -> Tensor {
        (0..40_000 * (chunk % 3)).map(|i| (i * (rank + 2)) as f64 + chunk as f64).collect()
    };
    pair(|rank, mut transport| {
        let other = 1 - rank;
        for chunk in 0..12 {
            let sends = vec![(other, tag(chunk), long(rank, chunk)), (other, tag(chunk + 100), vec![1.0])];
            let got = transport.exchange(sends, &[(other, tag(chunk)), (other, tag(chunk + 100))]).unwrap();
            assert!(got == [long(other, chunk), vec![1.0]]);
        }
        // The last words of one that leaves at once are read later.
        if rank == 0 {
            transport.exchange(vec![(1, tag(500), long(0, 2))], &[]).unwrap();
        } else {
            assert!(transport.exchange(Vec::new(), &[(0, tag(500))]).unwrap() == [long(0, 2)]);
        }
    });
}

#[test]
fn ranks_that_share_memory_and_leave_or_disagree_are_named() {
    pair(|rank, mut transport| {
        if rank == 1 {
            let error = transport.exchange(Vec::new(), &[(0, tag(0))]).unwrap_err();
            assert_eq!(error, TransportError::Ended { peer: 0, tag: tag(0) });
        }
    });
    pair(|rank, mut transport| {
        let none = transport.exchange(Vec::new(), &[(rank, tag(0))]).unwrap_err();
        assert_eq!(none, TransportError::NoRank { peer: rank });
        let sends = vec![(1 - rank, tag(rank), vec![1.0])];
        let error = transport.exchange(sends, &[(1 - rank, tag(rank))]).unwrap_err();
        let order = TransportError::Order { peer: 1 - rank, expected: tag(rank), found: tag(1 - rank) };
        assert!(
            error == order || error == TransportError::GivenUp { peer: 1 - rank, culprit: rank },
            "{error}"
        );
    });
    let file = path();
    let limit = Duration::from_millis(50);
    let alone = Shared { path: &file, rank: 0, ranks: 2, room: 1, limit };
    let error = ShmTransport::<Tensor>::join(&alone).err().unwrap().to_string();
    assert!(error.contains("rank 1 has not joined"), "{error}");
    let error = ShmTransport::<Tensor>::join(&Shared { rank: 2, ..alone }).err().unwrap();
    assert!(matches!(error, JoinError::Rank { rank: 2, ranks: 2 }), "{error}");
}

#[test]
fn strangers_and_missing_ranks_are_named() {
    let (here, there) = (local(), local());
    let addresses = vec![here.local_addr().unwrap(), there.local_addr().unwrap()];
    let mesh = |rank, job, limit_ms| Mesh {
        rank,
        addresses: addresses.clone(),
        job,
        limit: Duration::from_millis(limit_ms),
    };
    // Nobody comes.
    let error = TcpTransport::<Tensor>::join(&mesh(0, JOB, 50), &here).err().unwrap();
    assert!(matches!(error, JoinError::Missing { peer: 1, .. }), "{error}");
    let error = TcpTransport::<Tensor>::join(&mesh(2, JOB, 50), &here).err().unwrap();
    assert!(matches!(error, JoinError::Rank { rank: 2, ranks: 2 }), "{error}");
    // A rank of another job is told so, noise is sent away, and the right one still joins.
    std::thread::scope(|scope| {
        let first = scope.spawn(|| TcpTransport::<Tensor>::join(&mesh(0, JOB, 60_000), &here));
        let error = TcpTransport::<Tensor>::join(&mesh(1, JOB + 1, 60_000), &there).err().unwrap();
        assert!(matches!(error, JoinError::Stranger { peer: 0, .. }), "{error}");
        let mut noise = TcpStream::connect(addresses[0]).unwrap();
        noise.write_all(&[b'x'; 24]).unwrap();
        let _ = noise.read(&mut [0; 24]);
        assert!(TcpTransport::<Tensor>::join(&mesh(1, JOB, 60_000), &there).is_ok());
        assert!(first.join().unwrap().is_ok());
    });
}

//! Ranks that are processes: the same losses, and an end for all if one is killed.

mod support;

use ember_dualpipe::{JoinError, Kind, Mesh, Pipeline, Rank, TcpTransport};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use support::{Layer, Tensor, alone, criterion, feed};

const RANKS: usize = 4;
const CHUNKS: usize = 12;
const JOB: u64 = 77;
/// How a child knows that it is one, and which.
const RANK: &str = "EMBER_TEST_RANK";
/// The rank that stops in the middle of the step and waits for its end.
const STOPS: &str = "EMBER_TEST_STOPS";

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
    let listener = local();
    println!("\nat {}", listener.local_addr().unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let addresses: Vec<SocketAddr> =
        line.split_whitespace().map(|address| address.parse().unwrap()).collect();
    let mesh = Mesh { rank, addresses, job: JOB, limit: Duration::from_secs(60) };
    let transport = TcpTransport::<Tensor>::join(&mesh, &listener).unwrap();
    let pipeline = pipeline();
    let mut modules = [0, 1].map(|module| Layer::new(pipeline.stage(rank, module)));
    let mapping: Vec<usize> = (0..RANKS).collect();
    let mut of = Rank { pipeline: &pipeline, rank, mapping: &mapping, transport };
    let mut losses = 0;
    let outcome = of.step(&mut modules, feed(&pipeline, rank), false, |output, label| {
        losses += 1;
        if stops && losses == 2 {
            println!("stopped");
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        criterion(output, label)
    });
    match outcome {
        Ok(outcome) => {
            let bits: Vec<String> =
                outcome.losses.iter().map(|loss| format!("{:016x}", loss.to_bits())).collect();
            println!("losses {}", bits.join(" "));
        }
        Err(error) => println!("error {error}"),
    }
}

struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(rank: usize, stops: Option<usize>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(RANK, rank.to_string());
        if let Some(stops) = stops {
            command.env(STOPS, stops.to_string());
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

fn start(stops: Option<usize>) -> Vec<Process> {
    let mut all: Vec<Process> = (0..RANKS).map(|rank| Process::start(rank, stops)).collect();
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
    for (rank, mut process) in start(None).into_iter().enumerate() {
        let bits = process.line("losses");
        let found: Vec<u64> = bits.split_whitespace().map(|x| u64::from_str_radix(x, 16).unwrap()).collect();
        let last = (0..2).find(|module| pipeline().is_last(rank, *module));
        let expected: Vec<u64> =
            last.map_or(Vec::new(), |module| expected[module].iter().map(|loss| loss.to_bits()).collect());
        assert_eq!(found, expected, "rank {rank}");
        assert!(process.child.wait().unwrap().success());
    }
}

#[test]
fn a_process_that_is_killed_ends_all() {
    let mut all = start(Some(RANKS - 1));
    all[RANKS - 1].line("stopped");
    all[RANKS - 1].child.kill().unwrap();
    all[RANKS - 1].child.wait().unwrap();
    for process in &mut all[..RANKS - 1] {
        let error = process.line("error");
        assert!(error.contains("has ended"), "{error}");
    }
    all.into_iter().for_each(|mut process| drop(process.child.wait()));
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

//! Ranks that are processes, on one node and on several: what one process computes, and an end for all if one is
//! killed.

mod support;

use ember_deepep::{Across, EpError, Group, Join, Reduction, Returns, Shape, Tokens};
use ember_link::Listener;
use ember_rt::Addr;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use support::expanded::{alone, computed_rows};
use support::low::{self, CASTS, results};
use support::{Input, JOB, KEY, LIMIT, input, path};

const ROUNDS: u64 = 20;
/// How a child knows that it is one, and which.
const CHILD: &str = "EMBER_TEST_DEEPEP";

/// What a group of processes does.
#[derive(Clone, Copy)]
struct Plan {
    ranks: usize,
    /// 0: none that are joined by a network.
    nodes: usize,
    low_latency: bool,
    /// Who is to be killed, and whether it waits for that between two halves.
    victim: Option<(usize, bool)>,
}

impl Plan {
    fn shape(&self) -> Shape {
        Shape { ranks: self.ranks, experts: 4 * self.ranks, hidden: 130, topk: 3, tokens: 16 }
    }
    fn words(&self) -> String {
        let (victim, waits) = self.victim.unwrap_or((usize::MAX, false));
        format!("{} {} {} {victim} {}", self.ranks, self.nodes, self.low_latency as u8, waits as u8)
    }
    fn read(words: &[&str]) -> Self {
        let numbers: Vec<usize> = words.iter().map(|word| word.parse().unwrap()).collect();
        let [ranks, nodes, low_latency, victim, waits] = numbers[..] else { panic!("{words:?}") };
        let victim = (victim < ranks).then_some((victim, waits == 1));
        Self { ranks, nodes, low_latency: low_latency == 1, victim }
    }
}

fn join(plan: &Plan, rank: usize, paths: &[PathBuf]) -> Group {
    let path = &paths[rank * paths.len() / plan.ranks];
    let join = Join { path, rank, shape: plan.shape(), returns: Returns::ByExpert, limit: LIMIT };
    if plan.nodes == 0 {
        return Group::join_as(&join).unwrap();
    }
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    println!("\nat {}", listener.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let addresses: Vec<Addr> = line.split_whitespace().map(|address| address.parse().unwrap()).collect();
    let across = Across { listener, nodes: plan.nodes, addresses: &addresses, job: JOB, key: KEY };
    Group::join_across(&join, across).unwrap()
}

/// One round; `between` is called between its halves.
fn round(group: &Group, plan: &Plan, own: &Input, at: u64, between: impl Fn()) -> Result<(), EpError> {
    let (shape, me) = (*group.shape(), group.rank());
    if plan.low_latency {
        let cast = CASTS[at as usize % 3];
        let sent = group.low_latency_dispatch(&own.tokens, &own.chosen, cast)?;
        between();
        let got = sent.receive()?;
        let rows = results(&got, &shape, me);
        let sums = group.low_latency_combine(&rows, &own.weights, &got)?.receive()?;
        assert_eq!(sums, low::alone(&shape, own, cast));
        return Ok(());
    }
    let of = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights)?.expand(4).unwrap();
    between();
    let rows = computed_rows(&of, me, &shape);
    let reduction = [Reduction::PerRank, Reduction::Once][at as usize % 2];
    let sums = group.combine_expanded(&rows, Some(&of.weights), &of, &[], reduction)?;
    let here = (plan.nodes > 0).then(|| plan.ranks / plan.nodes);
    assert_eq!(sums.tokens, alone(&shape, own, &[], reduction, here));
    Ok(())
}

/// What each process does; a test only by name.
#[test]
fn child() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = text.split(' ').collect();
    let (rank, plan) = (words[0].parse().unwrap(), Plan::read(&words[1..6]));
    let paths: Vec<PathBuf> = words[6..].iter().map(PathBuf::from).collect();
    let group = join(&plan, rank, &paths);
    let (is_victim, waits) = plan.victim.map_or((false, false), |(victim, waits)| (victim == rank, waits));
    for at in 0.. {
        if plan.victim.is_none() && at == ROUNDS {
            println!("\ndone");
            return;
        }
        if is_victim && at == 3 {
            println!("\nin a round");
        }
        let done = round(&group, &plan, &input(&plan.shape(), rank, at), at, || {
            if is_victim && waits && at == 3 {
                std::io::stdin().read_line(&mut String::new()).unwrap();
            }
        });
        if let Err(error) = done {
            println!("\nerror {error}");
            return;
        }
    }
}

struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
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

fn start(plan: &Plan) -> Vec<Process> {
    let paths: Vec<String> = (0..plan.nodes.max(1)).map(|_| path().display().to_string()).collect();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]);
        command.env(CHILD, format!("{rank} {} {}", plan.words(), paths.join(" ")));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Process { child, to, from: BufReader::new(from) }
    };
    let mut all: Vec<Process> = (0..plan.ranks).map(start).collect();
    if plan.nodes > 0 {
        let addresses: Vec<String> = all.iter_mut().map(|process| process.line("at ")).collect();
        all.iter_mut().for_each(|process| writeln!(process.to, "{}", addresses.join(" ")).unwrap());
    }
    all
}

fn check(ranks: usize, nodes: usize) {
    for low_latency in [false, true] {
        for mut process in start(&Plan { ranks, nodes, low_latency, victim: None }) {
            process.line("done");
            assert!(process.child.wait().unwrap().success());
        }
    }
}

#[test]
fn processes_exchange_what_one_would() {
    check(4, 0);
}

#[test]
fn processes_of_two_nodes_exchange_what_one_would() {
    check(4, 2);
    check(8, 2);
}

/// Kills a process between the halves of a call, or wherever it is, and looks at what the others say.
fn check_death(ranks: usize, nodes: usize, dies: usize) {
    for (low_latency, waits) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut all = start(&Plan { ranks, nodes, low_latency, victim: Some((dies, waits)) });
        all[dies].line("in a round");
        all[dies].child.kill().unwrap();
        all[dies].child.wait().unwrap();
        for (rank, process) in all.iter_mut().enumerate().filter(|(rank, _)| *rank != dies) {
            let error = process.line("error");
            let named = [format!("rank {dies} has died or left"), format!("because of rank {dies}:")];
            assert!(named.iter().any(|text| error.contains(text)), "rank {rank}: {error}");
            assert!(process.child.wait().unwrap().success());
        }
    }
}

#[test]
fn a_process_that_dies_is_named_by_the_others() {
    check_death(3, 0, 2);
}

#[test]
fn a_process_that_dies_is_named_on_all_nodes() {
    check_death(4, 2, 3);
    check_death(8, 2, 1);
}

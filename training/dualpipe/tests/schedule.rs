//! Orders and times of the original.

use ember_dualpipe::{Compute, Costs, Kind, Part, Payload, Pipeline, Step, Transfer, simulate};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Reference {
    traces: Vec<Trace>,
    sims: Vec<Simulated>,
}

#[derive(Deserialize)]
struct Trace {
    kind: String,
    ranks: usize,
    chunks: usize,
    forward_only: bool,
    ops: Vec<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Simulated {
    #[serde(rename = "kind")]
    kind: String,
    #[serde(rename = "ranks")]
    ranks: usize,
    #[serde(rename = "chunks")]
    chunks: usize,
    f: f64,
    b: f64,
    w: f64,
    fb: f64,
    #[serde(rename = "makespan")]
    makespan: f64,
    #[serde(rename = "bubble_per_rank")]
    bubble_per_rank: Vec<f64>,
    #[serde(rename = "formula")]
    formula: f64,
    #[serde(rename = "peak_live_activations")]
    peak_live_activations: Vec<usize>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("data/traces.json")).unwrap()
}

fn kind(name: &str) -> Kind {
    match name {
        "dualpipe" => Kind::DualPipe,
        "dualpipev" => Kind::DualPipeV,
        other => panic!("no kind {other}"),
    }
}

fn part(module: &Value, chunk: &Value) -> Part {
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    Part { module: number(module), chunk: number(chunk) }
}

fn step(op: &Value) -> Step {
    let name = op[0].as_str().unwrap();
    let of = || part(&op[1], &op[2]);
    Step::Compute(match name {
        "F" => Compute::Forward(of()),
        "B" => Compute::Backward(of()),
        "Bi" => Compute::BackwardInput(of()),
        "W" => Compute::Weight(of()),
        "FB" => Compute::Overlapped { forward: of(), backward: part(&op[3], &op[4]) },
        "COMM" => return Step::Exchange(op[1].as_array().unwrap().iter().map(transfer).collect()),
        other => panic!("no operation {other}"),
    })
}

fn transfer(value: &Value) -> Transfer {
    let name = value[0].as_str().unwrap();
    Transfer {
        sends: name.starts_with('s'),
        payload: if name.ends_with('f') { Payload::Activation } else { Payload::Gradient },
        part: part(&value[1], &value[2]),
        peer: value[3].as_u64().unwrap() as usize,
    }
}

#[test]
fn programs_are_those_of_the_original() {
    let traces = reference().traces;
    assert!(!traces.is_empty());
    for trace in traces {
        let pipeline =
            Pipeline::new(kind(&trace.kind), trace.ranks, trace.chunks, trace.forward_only).unwrap();
        for (rank, ops) in trace.ops.iter().enumerate() {
            let expected: Vec<Step> = ops.iter().map(step).collect();
            let program = pipeline.program(rank).unwrap();
            assert_eq!(program, expected, "{} {} {} rank {rank}", trace.kind, trace.ranks, trace.chunks);
        }
    }
}

#[test]
fn times_are_those_of_the_original() {
    let sims = reference().sims;
    assert!(!sims.is_empty());
    for sim in sims {
        let pipeline = Pipeline::new(kind(&sim.kind), sim.ranks, sim.chunks, false).unwrap();
        let costs = Costs { forward: sim.f, backward: sim.b, weight: sim.w, overlapped: sim.fb };
        let found = simulate(&pipeline, &costs).unwrap();
        assert_eq!(found.makespan, sim.makespan);
        assert_eq!(costs.bubble(&pipeline), sim.formula);
        let bubbles: Vec<f64> = found.ranks.iter().map(|rank| rank.bubble).collect();
        assert_eq!(bubbles, sim.bubble_per_rank);
        let peaks: Vec<usize> = found.ranks.iter().map(|rank| rank.peak_activations).collect();
        assert_eq!(peaks, sim.peak_live_activations);
    }
}

/// Every pipeline of up to 16 ranks and 64 micro-batches.
fn all(forward_only: bool) -> impl Iterator<Item = Pipeline> {
    let kinds = [Kind::DualPipe, Kind::DualPipeV].into_iter();
    kinds.flat_map(move |kind| {
        (1..=16).flat_map(move |ranks| {
            (1..=64).filter_map(move |chunks| Pipeline::new(kind, ranks, chunks, forward_only).ok())
        })
    })
}

#[test]
fn bubbles_and_activations_follow_the_formulas() {
    let costs = Costs { forward: 1.0, backward: 2.0, weight: 1.0, overlapped: 3.0 };
    for pipeline in all(false) {
        let found = simulate(&pipeline, &costs).unwrap();
        for rank in &found.ranks {
            assert_eq!(rank.bubble, costs.bubble(&pipeline), "{pipeline:?}");
            assert_eq!(rank.peak_activations, pipeline.stages() + 1, "{pipeline:?}");
        }
    }
}

#[test]
fn every_part_is_computed_once_and_messages_arrive_in_order() {
    for pipeline in all(false).chain(all(true)) {
        let programs: Vec<Vec<Step>> = (0..pipeline.ranks()).map(|r| pipeline.program(r).unwrap()).collect();
        for program in &programs {
            let computes = || {
                program.iter().filter_map(|step| match step {
                    Step::Compute(compute) => Some(*compute),
                    Step::Exchange(_) => None,
                })
            };
            let chunks = |found: &mut dyn Iterator<Item = Part>, module: usize| {
                found.filter(|part| part.module == module).map(|part| part.chunk).collect::<Vec<_>>()
            };
            for module in 0..2 {
                let expected: Vec<usize> = (0..pipeline.chunks_of_module()).collect();
                let backward = if pipeline.is_forward_only() { Vec::new() } else { expected.clone() };
                assert_eq!(chunks(&mut computes().filter_map(Compute::forward), module), expected);
                assert_eq!(chunks(&mut computes().filter_map(Compute::backward), module), backward);
                let put_off =
                    computes().filter(|c| matches!(c, Compute::BackwardInput(p) if p.module == module));
                let made_up = computes().filter(|c| matches!(c, Compute::Weight(p) if p.module == module));
                assert_eq!(put_off.count(), made_up.count());
            }
        }
        // By sender and receiver, as either says.
        let mut messages = [BTreeMap::new(), BTreeMap::new()];
        for (rank, program) in programs.iter().enumerate() {
            let exchanges = program.iter().filter_map(|step| match step {
                Step::Exchange(transfers) => Some(transfers),
                Step::Compute(_) => None,
            });
            for t in exchanges.flatten() {
                let way = if t.sends { (rank, t.peer) } else { (t.peer, rank) };
                let all: &mut Vec<_> = messages[usize::from(t.sends)].entry(way).or_default();
                all.push((t.payload, t.part));
            }
        }
        assert_eq!(messages[0], messages[1], "{pipeline:?}");
        simulate(&pipeline, &Costs { forward: 1.0, backward: 2.0, weight: 1.0, overlapped: 3.0 }).unwrap();
    }
}

#[test]
fn wrong_arguments_are_named() {
    let message = |kind, ranks, chunks| Pipeline::new(kind, ranks, chunks, false).unwrap_err().to_string();
    assert!(message(Kind::DualPipe, 3, 8).starts_with("ranks: 3 is odd"));
    assert!(message(Kind::DualPipe, 2, 5).starts_with("chunks: 5 is odd"));
    assert!(message(Kind::DualPipe, 4, 6).starts_with("chunks: 6 "));
    assert!(message(Kind::DualPipeV, 0, 0).starts_with("ranks: "));
    assert!(message(Kind::DualPipeV, 4, 7).starts_with("chunks: 7 "));
    let pipeline = Pipeline::new(Kind::DualPipeV, 1, 2, false).unwrap();
    assert!(pipeline.program(1).unwrap_err().to_string().starts_with("rank: 1 "));
    let costs = Costs { forward: 1.0, backward: f64::NAN, weight: 1.0, overlapped: 3.0 };
    assert!(simulate(&pipeline, &costs).unwrap_err().to_string().starts_with("backward: "));
}

#[test]
fn pictures_show_the_published_order() {
    let pipeline = Pipeline::new(Kind::DualPipe, 4, 8, false).unwrap();
    let costs = Costs { forward: 1.0, backward: 2.0, weight: 1.0, overlapped: 3.0 };
    let found = simulate(&pipeline, &costs).unwrap();
    let text = found.text();
    let labels = |row: &str| {
        let row = row.trim_start().trim_start_matches(char::is_numeric);
        row.split([' ', '.']).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    // Dots stand in labels too: the words are their halves.
    let expected =
        "F0.0 F0.1 F0.2 F1.0 Bi1.0 W1.0 F1.1 F0.3&B1.1 F1.2&B0.0 B1.2 F1.3&B0.1 B1.3 Bi0.2 W0.2 Bi0.3 W0.3";
    assert_eq!(labels(text.lines().next().unwrap()), expected.replace('.', " "));
    assert_eq!(text.lines().count(), 4);
    let lengths: Vec<usize> = text.lines().map(str::len).collect();
    assert!(lengths.iter().all(|length| *length <= 5 + 26 * 6), "{lengths:?}");
    let svg = found.svg();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    let blocks: usize = found.ranks.iter().map(|rank| rank.blocks.len()).sum();
    assert_eq!(svg.matches("<text ").count(), blocks + 4 + 5);
    assert!(svg.contains(">F0.3&amp;B1.1<"));
}

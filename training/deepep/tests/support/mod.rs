//! Ranks as threads, and what they send.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod expanded;
pub mod low;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ember_deepep::{Across, Group, Join, Returns, Shape};
use ember_link::Listener;
use ember_rt::Addr;
use ember_types::layout::SplitMix64;
use half::bf16;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);

/// A file that nobody else uses.
pub fn path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder =
        if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    folder.join(format!("ember-deepep-{}-{number}", std::process::id()))
}

/// Runs a thread for each rank.
pub fn ranks<T: Send>(shape: Shape, work: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    ranks_with(shape, Returns::ByRank, work)
}

/// The same, with what may come back.
pub fn ranks_with<T: Send>(shape: Shape, returns: Returns, work: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let (path, work) = (path(), &work);
    let all = std::thread::scope(|scope| {
        let rank = |rank| {
            let path = path.clone();
            scope.spawn(move || {
                let join = Join { path: &path, rank, shape, returns, limit: LIMIT };
                work(&Group::join_as(&join).unwrap())
            })
        };
        let threads: Vec<_> = (0..shape.ranks).map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(!path.exists(), "nothing is left behind");
    all
}

pub const JOB: u128 = 11;
pub const KEY: [u8; 32] = [3; 32];

/// Runs a thread for each rank of several nodes.
pub fn ranks_across<T: Send>(
    shape: Shape,
    nodes: usize,
    returns: Returns,
    work: impl Fn(&Group) -> T + Sync,
) -> Vec<T> {
    let paths: Vec<PathBuf> = (0..nodes).map(|_| path()).collect();
    let listener = |_| Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let listeners: Vec<Listener> = (0..shape.ranks).map(listener).collect();
    let addresses: Vec<Addr> = listeners.iter().map(|listener| listener.address().clone()).collect();
    let (addresses, work) = (&addresses, &work);
    std::thread::scope(|scope| {
        let rank = |(rank, listener): (usize, Listener)| {
            let path = paths[rank * nodes / shape.ranks].clone();
            scope.spawn(move || {
                let join = Join { path: &path, rank, shape, returns, limit: LIMIT };
                let across = Across { listener, nodes, addresses, job: JOB, key: KEY };
                work(&Group::join_across(&join, across).unwrap())
            })
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What an expert makes of a row: great numbers that cancel each other among small ones, so that the order of a sum
/// shows.
pub fn expert(row: &[bf16], expert: usize) -> Vec<bf16> {
    let great = (1u32 << 30) as f32;
    let made = |x: f32| match expert % 3 {
        0 => x * (expert as f32 * 0.3 + 0.7) - 0.1,
        1 => x * great,
        _ => -x * great,
    };
    row.iter().map(|x| bf16::from_f32(made(x.to_f32()))).collect()
}

pub struct Random(pub SplitMix64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }
    pub fn number(&mut self) -> f32 {
        (self.0.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub fn bf16(&mut self, count: usize) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.number())).collect()
    }
}

/// What a rank has to send.
#[derive(Clone)]
pub struct Input {
    pub tokens: Vec<bf16>,
    pub chosen: Vec<i64>,
    pub weights: Vec<f32>,
}

pub fn input(shape: &Shape, rank: usize, round: u64) -> Input {
    let mut random = Random(SplitMix64(round * 1000 + rank as u64));
    let count = random.below(shape.tokens + 1);
    let mut chosen: Vec<i64> = Vec::new();
    for _ in 0..count {
        let from = chosen.len();
        while chosen.len() < from + shape.topk {
            let id = random.below(shape.experts + 2) as i64 - 2;
            let id = id.max(-1);
            if id == -1 || !chosen[from..].contains(&id) {
                chosen.push(id);
            }
        }
    }
    let weights = chosen.iter().map(|id| if *id == -1 { 0.0 } else { random.number() }).collect();
    Input { tokens: random.bf16(count * shape.hidden), chosen, weights }
}

#[derive(Deserialize)]
pub struct Cases {
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub num_scaleup: usize,
    pub num_experts: usize,
    pub num_topk: usize,
    pub hidden: usize,
    pub num_max_tokens_per_rank: usize,
    pub ranks: Vec<CaseRank>,
    /// By rank and expert there: ranks and tokens.
    pub low_latency_expected: Vec<Vec<Vec<(u32, u32)>>>,
}

#[derive(Deserialize)]
pub struct CaseRank {
    pub x: Tensor,
    pub topk_idx: Vec<Vec<i64>>,
    pub topk_weights: Tensor,
    pub layout: CaseLayout,
    pub recv_x: Tensor,
    pub recv_topk_idx: Vec<Vec<i64>>,
    pub recv_topk_weights: Tensor,
    pub recv_src_token_global_idx: Vec<usize>,
    pub num_recv_tokens_per_rank: Vec<usize>,
    pub num_recv_tokens_per_local_expert: Vec<u32>,
    pub bias: Vec<Tensor>,
    pub combine_y: Tensor,
    pub combined: CaseCombined,
}

#[derive(Deserialize)]
pub struct CaseCombined {
    pub no_pre_reduction: Tensor,
    pub reduce_in_rank: Tensor,
    pub reduce_in_rank_then_scaleup: Tensor,
}

#[derive(Deserialize)]
pub struct CaseLayout {
    pub num_tokens_per_rank: Vec<u32>,
    pub num_tokens_per_rdma_rank: Vec<u32>,
    pub num_tokens_per_expert: Vec<u32>,
    pub is_token_in_rank: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
pub struct Tensor {
    pub b64: String,
}

/// The original's cases.
pub fn cases() -> Vec<Case> {
    let cases: Cases = serde_json::from_str(include_str!("../data/cases.json")).unwrap();
    assert_eq!(cases.cases.len(), 2);
    cases.cases
}

impl Case {
    pub fn shape(&self) -> Shape {
        Shape {
            ranks: self.num_scaleup,
            experts: self.num_experts,
            hidden: self.hidden,
            topk: self.num_topk,
            tokens: self.num_max_tokens_per_rank,
        }
    }
}

impl Tensor {
    pub fn bf16(&self) -> Vec<bf16> {
        let bytes = STANDARD.decode(&self.b64).unwrap();
        bytes.chunks(2).map(|x| bf16::from_le_bytes(x.try_into().unwrap())).collect()
    }
    pub fn f32(&self) -> Vec<f32> {
        let bytes = STANDARD.decode(&self.b64).unwrap();
        bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    }
}

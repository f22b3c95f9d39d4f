//! The kernels' own source on the processor, compiled for it: what a block's threads compute, and where they read and
//! write, must give what the CPU's code gives. Instructions do what is written of them; that it is so takes a GPU.

use super::attention::words;
use super::{SHARED, TILE, cached};
use crate::schedule::schedule;
use crate::{Attended, Dense, PAGE, SparseDecode, VALUE_WIDTH, WIDTH, dense_decode, quantise, sparse_decode};
use half::bf16;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The kernel as a program of the host.
fn compile(sparse: bool) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda");
    let file = format!("ember-flashmla-host-{}-{}", u8::from(sparse), std::process::id());
    let program = std::env::temp_dir().join(file);
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++20", "-O2", "-w", "-pthread"]);
    compiler.arg(format!("-DSHARED_BYTES={SHARED}u")).arg(format!("-DSPARSE={}", u8::from(sparse)));
    compiler.arg("-I").arg(&sources).arg("-I").arg(sources.join("../../../cuda/src"));
    compiler.args(["-x", "c++"]).arg(sources.join("host.hpp")).arg("-o").arg(&program);
    assert!(compiler.status().unwrap().success(), "{compiler:?}");
    program
}

/// What a launch gets, as [`Cuda`](super::Cuda) makes it.
struct Launch<'a> {
    /// Requests, queries, heads, heads of the cache, columns of the table, causal, scale, tiles.
    sizes: [u32; 8],
    cache: Vec<u16>,
    q: &'a [bf16],
    table: &'a [i32],
    lengths: &'a [i32],
    parts: usize,
    sink: &'a [f32],
}

fn run(program: &Path, of: &Launch<'_>) -> Attended {
    let lengths: Vec<usize> = of.lengths.iter().map(|&length| length as usize).collect();
    let plan = schedule(&lengths, of.parts).unwrap();
    let pieces: Vec<i32> = plan.pieces.iter().map(|&piece| piece as i32).collect();
    let mut input: Vec<u8> = Vec::new();
    let mut put = |count: usize, bytes: &mut dyn Iterator<Item = u8>| {
        input.extend((count as u32).to_le_bytes());
        input.extend(bytes);
    };
    put(8, &mut of.sizes.iter().flat_map(|x| x.to_le_bytes()));
    put(of.cache.len(), &mut of.cache.iter().flat_map(|x| x.to_le_bytes()));
    put(of.q.len(), &mut of.q.iter().flat_map(|x| x.to_le_bytes()));
    for numbers in [of.table, of.lengths, &words(&plan), &pieces] {
        put(numbers.len(), &mut numbers.iter().flat_map(|x| x.to_le_bytes()));
    }
    put(of.sink.len(), &mut of.sink.iter().flat_map(|x| x.to_le_bytes()));
    let mut child = Command::new(program);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    let rows: usize = of.sizes[..3].iter().map(|&x| x as usize).product();
    let (out, lse) = done.stdout.split_at(rows * VALUE_WIDTH * 2);
    Attended {
        out: out.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]])).collect(),
        lse: lse.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
    }
}

/// Within what the original allows.
fn check(found: &Attended, expected: &Attended) {
    assert_eq!((found.out.len(), found.lse.len()), (expected.out.len(), expected.lse.len()));
    for (i, (x, y)) in found.lse.iter().zip(&expected.lse).enumerate() {
        let near = (x - y).abs() <= (8.01 / 65_536.0 * y.abs()).max(1e-6);
        assert!(x == y || (y.is_finite() && near), "logarithm {i} is {x}, not {y}");
    }
    for (i, (x, y)) in found.out.iter().zip(&expected.out).enumerate() {
        let (x, y) = (x.to_f32(), y.to_f32());
        assert!((x - y).abs() <= (2.01 / 128.0 * y.abs()).max(8e-4), "output {i} is {x}, not {y}");
    }
}

/// Numbers from -`most` to `most`.
fn numbers(len: usize, seed: u32, most: f32) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32(((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * most)
    };
    (0..len).map(|_| next()).collect()
}

/// Queries, heads, heads of the cache, parts, lengths.
fn dense(program: &Path, [queries, heads, kv_heads, parts]: [usize; 4], causal: bool, lengths: &[i32]) {
    let columns = lengths.iter().map(|length| (*length as usize).div_ceil(PAGE)).max().unwrap_or(0) + 1;
    let token = kv_heads * WIDTH;
    let mut table = vec![i32::MIN; lengths.len() * columns];
    let mut next = lengths.iter().map(|length| (*length as usize).div_ceil(PAGE)).sum::<usize>();
    let mut cache = numbers((next + 1) * PAGE * token, 1, 0.125);
    cache[..PAGE * token].fill(bf16::NAN);
    for (row, &length) in table.chunks_mut(columns).zip(lengths) {
        for (page, entry) in row[..(length as usize).div_ceil(PAGE)].iter_mut().enumerate() {
            let tokens = PAGE.min(length as usize - page * PAGE);
            cache[(next * PAGE + tokens) * token..(next + 1) * PAGE * token].fill(bf16::NAN);
            *entry = next as i32;
            next -= 1;
        }
    }
    let batch = lengths.len();
    let q = numbers(batch * queries * heads * WIDTH, 2, 16.0);
    let of = Dense {
        batch,
        queries,
        heads,
        kv_heads,
        q: &q,
        cache: &cache,
        block_table: &table,
        lengths,
        causal,
        scale: Some(0.05),
    };
    let tiles = kv_heads * (queries * heads / kv_heads).div_ceil(TILE);
    let sizes = [batch, queries, heads, kv_heads, columns, usize::from(causal), 0, tiles].map(|x| x as u32);
    let mut launch = Launch {
        sizes,
        cache: cache.iter().map(|x| x.to_bits()).collect(),
        q: &q,
        table: &table,
        lengths,
        parts,
        sink: &[],
    };
    launch.sizes[6] = 0.05f32.to_bits();
    check(&run(program, &launch), &dense_decode(&of, parts).unwrap());
}

#[test]
fn dense_decoding_gives_what_the_cpu_gives() {
    let program = compile(false);
    dense(&program, [1, 16, 1, 3], true, &[0, 1, 63, 64, 65, 130]);
    dense(&program, [1, 70, 1, 2], false, &[190, 0]);
    // Some queries see nothing.
    dense(&program, [3, 20, 2, 2], true, &[1, 2, 130]);
    std::fs::remove_file(program).unwrap();
}

#[test]
fn sparse_decoding_gives_what_the_cpu_gives() {
    let program = compile(true);
    let (batch, queries, columns, tokens) = (3, 2, 200, 640);
    let cache = quantise(&numbers(tokens * WIDTH, 3, 0.125)).unwrap();
    let index = |i: usize| if i % 7 == 3 { -1 } else { (i * 211 % tokens) as i32 };
    let indices: Vec<i32> = (0..batch * queries * columns).map(index).collect();
    let counts = [0, 77, 200];
    for (heads, parts, with_sink) in [(20, 1, false), (65, 2, true)] {
        let q = numbers(batch * queries * heads * WIDTH, 4, 16.0);
        let logits = [f32::INFINITY, f32::NEG_INFINITY, 3.0, 0.0, -3.0];
        let sink: Vec<f32> = (0..heads).map(|head| logits[head % 5]).collect();
        let of = SparseDecode {
            batch,
            queries,
            heads,
            q: &q,
            cache: &cache,
            indices: &indices,
            chosen: Some(&counts),
            sink: with_sink.then_some(&sink),
            scale: None,
        };
        let tiles = queries * heads.div_ceil(TILE);
        let sizes = [batch, queries, heads, 1, columns, 0, 0, tiles].map(|x| x as u32);
        let mut launch = Launch {
            sizes,
            cache: cached(&cache),
            q: &q,
            table: &indices,
            lengths: &counts,
            parts,
            sink: if with_sink { &sink } else { &[] },
        };
        launch.sizes[6] = (1.0f32 / 24.0).to_bits();
        check(&run(&program, &launch), &sparse_decode(&of).unwrap());
    }
    std::fs::remove_file(program).unwrap();
}

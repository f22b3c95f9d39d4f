//! The kernels' arithmetic of places, by the processor: which bytes of shared memory TMA and threads write, and which
//! the matrix instructions read. A page that goes through all of it must give what the CPU's code gives.

use crate::schedule::schedule;
use crate::{
    Attended, Dense, PAGE, SparseDecode, VALUE_WIDTH, WIDTH, dense_decode, dequantise, sparse_decode,
};
use half::bf16;

const CHUNK: usize = 64 * 128;
const WEIGHTS_AT: usize = 2 * 9 * CHUNK;
const PAGE_AT: usize = 9 * CHUNK;

/// The 128-byte swizzle: which 16 bytes of 128 depends on the row of 128 bytes, eight of which repeat.
fn swizzled(offset: usize) -> usize {
    offset ^ (((offset >> 7) & 7) << 4)
}

/// `unit_at` in attend.cuh, and where TMA puts them, whose boxes are chunks.
fn unit_at(row: usize, unit: usize) -> usize {
    unit / 8 * CHUNK + swizzled(row * 128 + unit % 8 * 16)
}

/// What an instruction reads by `matrix_descriptor`: row and column of K, of 16.
fn by_rows(start: usize, row: usize, k: usize) -> usize {
    swizzled(start + row / 8 * 1024 + row % 8 * 128 + k * 2)
}

/// What an instruction reads by `values_descriptor`: column of the result and row of K, of 16.
fn by_columns(start: usize, column: usize, k: usize) -> usize {
    swizzled(start + column / 64 * CHUNK + k / 8 * 1024 + k % 8 * 128 + column % 64 * 2)
}

/// Row and column of number `i` of a thread's sums.
fn place(thread: usize, i: usize) -> (usize, usize) {
    let lane = thread % 32;
    (thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2)
}

struct Block {
    memory: Vec<bf16>,
    greatest: Vec<f32>,
    sum: Vec<f32>,
    out: Vec<f32>,
}

impl Block {
    fn new() -> Self {
        Self {
            memory: vec![bf16::NAN; 3 * 9 * CHUNK / 2],
            greatest: vec![f32::NEG_INFINITY; 64],
            sum: vec![0.0; 64],
            out: vec![0.0; 64 * VALUE_WIDTH],
        }
    }
    fn load(&self, at: usize) -> f32 {
        self.memory[at / 2].to_f32()
    }
    fn store_row(&mut self, at: usize, row: usize, numbers: &[bf16]) {
        for (unit, numbers) in numbers.chunks(8).enumerate() {
            let to = (at + unit_at(row, unit)) / 2;
            self.memory[to..to + 8].copy_from_slice(numbers);
        }
    }
    /// `multiply_logits`, for all threads of a half: [thread][number].
    fn logits(&self, half: usize) -> Vec<[f32; 16]> {
        let mut sums = vec![[0.0; 16]; 128];
        for step in 0..WIDTH / 16 {
            let step = step / 4 * CHUNK + step % 4 * 32;
            for (thread, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (row, column) = place(thread, i);
                    for k in 0..16 {
                        let b = by_rows(PAGE_AT + half * 32 * 128 + step, column, k);
                        *sum += self.load(by_rows(step, row, k)) * self.load(b);
                    }
                }
            }
        }
        sums
    }
    /// `multiply_values` of a half.
    fn add_values(&mut self, half: usize) {
        for step in 0..PAGE / 16 {
            let start = PAGE_AT + half * 4 * CHUNK + step * 16 * 128;
            for thread in 0..128 {
                for i in 0..128 {
                    let (row, column) = place(thread, i);
                    let mut sum = 0.0;
                    for k in 0..16 {
                        let weight = self.load(by_rows(WEIGHTS_AT + step * 32, row, k));
                        sum += weight * self.load(by_columns(start, column, k));
                    }
                    self.out[row * VALUE_WIDTH + half * 256 + column] += sum;
                }
            }
        }
    }
    /// A page's share, as `attend` does it: `seen(row, key)` masks, keys from `tokens` on are zeroed.
    fn page(&mut self, scale: f32, tokens: usize, seen: impl Fn(usize, usize) -> bool) {
        let mut all = [self.logits(0), self.logits(1)];
        let mut greatest = self.greatest.clone();
        for (half, threads) in all.iter_mut().enumerate() {
            for (thread, logits) in threads.iter_mut().enumerate() {
                for (i, logit) in logits.iter_mut().enumerate() {
                    let (row, column) = place(thread, i);
                    *logit *= scale * std::f32::consts::LOG2_E;
                    if !seen(row, half * 32 + column) {
                        *logit = f32::NEG_INFINITY;
                    }
                    greatest[row] = greatest[row].max(*logit);
                }
            }
        }
        let base: Vec<f32> = greatest.iter().map(|&x| if x == f32::NEG_INFINITY { 0.0 } else { x }).collect();
        for (row, base) in base.iter().enumerate() {
            let kept = (self.greatest[row] - base).exp2();
            self.sum[row] *= kept;
            self.out[row * VALUE_WIDTH..][..VALUE_WIDTH].iter_mut().for_each(|out| *out *= kept);
        }
        self.greatest = greatest;
        for (half, threads) in all.iter().enumerate() {
            for (thread, logits) in threads.iter().enumerate() {
                for (i, logit) in logits.iter().enumerate() {
                    let (row, column) = place(thread, i);
                    let weight = (logit - base[row]).exp2();
                    self.sum[row] += weight;
                    let to = WEIGHTS_AT + swizzled(row * 128 + (half * 32 + column) * 2);
                    self.memory[to / 2] = bf16::from_f32(weight);
                }
            }
        }
        let units = (PAGE - tokens) * 8;
        for i in 0..units * VALUE_WIDTH / 64 {
            let at = PAGE_AT + i / units * CHUNK + tokens * 128 + i % units * 16;
            self.memory[at / 2..at / 2 + 8].fill(bf16::ZERO);
        }
        self.add_values(0);
        self.add_values(1);
    }
    /// Rows `..rows` are those of the expected result.
    fn check(&self, rows: usize, expected: &Attended) {
        for row in 0..rows {
            let lse = (self.greatest[row] + self.sum[row].log2()) * std::f32::consts::LN_2;
            let nothing = self.sum[row] == 0.0;
            let expected_lse = expected.lse[row];
            assert!((lse - expected_lse).abs() < 1e-4 || (nothing && expected_lse == f32::INFINITY));
            for column in 0..VALUE_WIDTH {
                let found = if nothing { 0.0 } else { self.out[row * VALUE_WIDTH + column] / self.sum[row] };
                let expected = expected.out[row * VALUE_WIDTH + column].to_f32();
                assert!((found - expected).abs() < 0.01 + 0.01 * expected.abs(), "{row}, {column}: {found}");
            }
        }
    }
}

/// Numbers from -1 to 1.
fn numbers(len: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_page_behind_which_is_nothing_gives_what_the_cpu_gives() {
    // Two queries of 20 heads, so that rows of the tile are left over; the second page has 6 tokens.
    let (queries, heads, length) = (2, 20, 70);
    let (q, mut cache) = (numbers(queries * heads * WIDTH, 1), numbers(3 * PAGE * WIDTH, 2));
    cache[..PAGE * WIDTH].fill(bf16::NAN);
    cache[(PAGE + 6) * WIDTH..2 * PAGE * WIDTH].fill(bf16::NAN);
    let table = [2, 1];
    let of = Dense {
        batch: 1,
        queries,
        heads,
        kv_heads: 1,
        q: &q,
        cache: &cache,
        block_table: &table,
        lengths: &[length],
        causal: true,
        scale: None,
    };
    let mut block = Block::new();
    for row in 0..64 {
        let there = q.get(row * WIDTH..(row + 1) * WIDTH);
        block.store_row(0, row, there.unwrap_or(&[bf16::ZERO; WIDTH]));
    }
    for (page, &at) in table.iter().enumerate() {
        for row in 0..PAGE {
            let key = (at as usize * PAGE + row) * WIDTH;
            block.store_row(PAGE_AT, row, &cache[key..key + WIDTH]);
        }
        let seen = |row: usize| (length as usize).min((length as usize + row / heads + 1) - queries);
        let tokens = PAGE.min(length as usize - page * PAGE);
        block.page(1.0 / 24.0, tokens, |row, key| page * PAGE + key < seen(row));
    }
    // One head after the other of the logarithms, one query after the other of the rest.
    let mut expected = dense_decode(&of, 1).unwrap();
    expected.lse =
        (0..queries * heads).map(|row| expected.lse[row % heads * queries + row / heads]).collect();
    block.check(queries * heads, &expected);
}

#[test]
fn chosen_tokens_give_what_the_cpu_gives() {
    let cache = crate::quantise(&numbers(100 * WIDTH, 3)).unwrap();
    let (q, tokens) = (numbers(64 * WIDTH, 4), dequantise(&cache).unwrap());
    let indices: Vec<i32> = (0..64).map(|i| if i % 5 == 3 { -1 } else { i * 37 % 100 }).collect();
    let chosen = [50];
    let of = SparseDecode {
        batch: 1,
        queries: 1,
        heads: 64,
        q: &q,
        cache: &cache,
        indices: &indices,
        chosen: Some(&chosen),
        sink: None,
        scale: None,
    };
    let mut block = Block::new();
    let mut there = [0u16; 4];
    for row in 0..64 {
        block.store_row(0, row, &q[row * WIDTH..][..WIDTH]);
        let (warp, lane) = (row / 16, row % 16);
        let token = if row < 50 { indices[row] } else { -1 };
        let key = usize::try_from(token).map(|token| &tokens[token * WIDTH..][..WIDTH]);
        block.store_row(PAGE_AT, row, key.unwrap_or(&[bf16::ZERO; WIDTH]));
        there[warp] |= u16::from(token >= 0) << lane;
    }
    let bits = |half: usize| u32::from(there[half * 2]) | u32::from(there[half * 2 + 1]) << 16;
    block.page(1.0 / 24.0, PAGE, |_, key| {
        // As the thread that has the logit shifts.
        let (pair, i) = (key % 8 / 2 * 2, key % 32 / 8 * 4 + key % 2);
        bits(key / 32) >> pair >> (i / 4 * 8 + i % 2) & 1 == 1
    });
    block.check(64, &sparse_decode(&of).unwrap());
}

#[test]
fn descriptors_read_what_was_put_there() {
    for row in 0..64 {
        for column in 0..WIDTH {
            let at = unit_at(row, column / 8) + column % 8 * 2;
            let step = column / 64 * CHUNK + column % 64 / 16 * 32;
            assert_eq!(at, by_rows(step, row, column % 16));
            if column < VALUE_WIDTH {
                let start = column / 256 * 4 * CHUNK + row / 16 * 16 * 128;
                assert_eq!(at, by_columns(start, column % 256, row % 16));
            }
        }
    }
}

#[test]
fn parts_have_every_page_once_and_whole_requests_are_written_by_one() {
    let mut state = 1u32;
    let mut next = |most: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % (most + 1)
    };
    for _ in 0..2000 {
        let lengths: Vec<usize> = (0..1 + next(12)).map(|_| (next(3) * next(700)) as usize).collect();
        let plan = schedule(&lengths, 1 + next(40) as usize).unwrap();
        assert_eq!(plan.pieces.len(), lengths.len() + 1);
        let mut pages: Vec<Vec<usize>> = lengths.iter().map(|_| Vec::new()).collect();
        let mut visits = vec![Vec::new(); lengths.len()];
        for part in super::attention::words(&plan).chunks(8) {
            // As `range_of` in attend.cuh.
            for request in part[0]..=part[4] {
                let (first, last) = (request == part[0], request == part[4]);
                let at = request as usize;
                let from = if first { part[1] as usize } else { 0 };
                let to = if last { part[5] as usize } else { lengths[at].div_ceil(PAGE) };
                let piece = plan.pieces[at] + if first { part[2] as usize } else { 0 };
                let split = (first && part[3] != 0) || (last && part[6] != 0);
                pages[at].extend(from..to);
                visits[at].push((piece, split));
            }
        }
        for (at, length) in lengths.iter().enumerate() {
            assert_eq!(pages[at], (0..length.div_ceil(PAGE)).collect::<Vec<_>>());
            let pieces = plan.pieces[at]..plan.pieces[at + 1];
            let expected: Vec<_> = pieces.clone().map(|piece| (piece, pieces.len() > 1)).collect();
            assert_eq!(visits[at], expected, "{lengths:?}");
        }
    }
}

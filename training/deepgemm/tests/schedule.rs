//! The index arithmetic of the GPU's kernels, on the host: which tile comes when, which thread holds which number, and
//! where it lies in shared memory.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

const PROGRAM: &str = r#"
#include <stdio.h>
#define SCHEDULE_FN static inline
#include "schedule.cuh"
int main(void) {
    struct Grid grid;
    unsigned count;
    static int numbers[1 << 16];
    while (scanf("%u %u %u %u %u %u %u", &grid.kind, &grid.block_m, &grid.m, &grid.columns, &grid.groups,
                 &grid.clusters, &count) == 7) {
        for (unsigned i = 0; i < count; ++i) if (scanf("%d", &numbers[i]) != 1) return 1;
        for (unsigned cluster = 0; cluster < grid.clusters; ++cluster) {
            struct Cursor at = {cluster, 0, 0};
            struct Tile tile;
            while (next_tile(&grid, numbers, &at, &tile)) printf("%u %u %u ", tile.group, tile.row, tile.column);
        }
        printf("\n");
    }
    return 0;
}
"#;

#[derive(Clone)]
struct Case {
    kind: u32,
    block_m: u32,
    m: u32,
    columns: u32,
    groups: u32,
    clusters: u32,
    numbers: Vec<i32>,
}

impl Case {
    /// Group, row and column of every tile, once each.
    fn expected(&self) -> BTreeMap<[u32; 3], u32> {
        let rows = |m: u32| m.div_ceil(self.block_m);
        let mut all = BTreeMap::new();
        let mut add = |group: u32, row: u32| {
            for column in 0..self.columns {
                all.insert([group, row, column], 1);
            }
        };
        match self.kind {
            0 => (0..rows(self.m)).for_each(|row| add(0, row)),
            1 => (0..rows(self.m)).for_each(|row| {
                let group = self.numbers[(row * self.block_m) as usize];
                if let Ok(group) = u32::try_from(group) {
                    add(group, row);
                }
            }),
            2 => (0..self.groups).for_each(|group| {
                (0..rows(self.numbers[group as usize].cast_unsigned())).for_each(|row| add(group, row));
            }),
            _ => (0..self.groups).for_each(|group| (0..rows(self.m)).for_each(|row| add(group, row))),
        }
        all
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (block_m, clusters) in [(64, 1), (128, 66), (128, 132), (64, 7)] {
        for (m, columns) in [(1, 1), (128, 5), (4097, 3), (5000, 33), (129, 200)] {
            let with = |kind, groups, numbers| Case { kind, block_m, m, columns, groups, clusters, numbers };
            cases.push(with(0, 1, vec![]));
            cases.push(with(3, 5, vec![128, 0, 256, 128, 0]));
            let groups = [m, 0, 1, 64, 65, m / 2, 0].map(|rows| rows.min(m).cast_signed());
            cases.push(with(2, 7, groups.to_vec()));
            // Group 2 is behind group 0; a third of each one's 384 rows is padding, and the last 256 all of it.
            let group =
                |row: u32| if row % 384 < 250 && row + 256 < m { (row / 384 * 2).cast_signed() } else { -1 };
            cases.push(with(1, 1, (0..m).map(group).collect()));
        }
    }
    cases
}

#[test]
fn every_tile_is_computed_once_by_the_kernels_own_code() {
    let folder = std::env::temp_dir().join(format!("ember-schedule-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, binary) = (folder.join("schedule.c"), folder.join("schedule"));
    std::fs::write(&source, PROGRAM).unwrap();
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Werror", "-I", header, "-o"]).arg(&binary).arg(&source);
    match gcc.status() {
        Ok(status) => assert!(status.success(), "schedule.cuh doesn't compile as C"),
        Err(error) => {
            let test = "every_tile_is_computed_once_by_the_kernels_own_code";
            return ember_cluster_tests::skip(test, &format!("gcc: {error}"));
        }
    }
    let mut input = String::new();
    let cases = cases();
    for case in &cases {
        let Case { kind, block_m, m, columns, groups, clusters, numbers } = case;
        input += &format!("{kind} {block_m} {m} {columns} {groups} {clusters} {}", numbers.len());
        numbers.iter().for_each(|number| input += &format!(" {number}"));
        input.push('\n');
    }
    let mut run = Command::new(&binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = run.stdin.take().unwrap();
    let writer = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()).unwrap());
        run.wait_with_output().unwrap()
    });
    assert!(writer.status.success());
    let text = String::from_utf8(writer.stdout).unwrap();
    assert_eq!(text.lines().count(), cases.len());
    for (line, case) in text.lines().zip(&cases) {
        let numbers: Vec<u32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let mut found = BTreeMap::new();
        for tile in numbers.chunks_exact(3) {
            *found.entry([tile[0], tile[1], tile[2]]).or_insert(0) += 1;
        }
        let Case { kind, block_m, m, columns, groups, clusters, .. } = case;
        let what = [kind, block_m, m, columns, groups, clusters];
        assert_eq!(found, case.expected(), "kind, rows of a tile, m, columns, groups, clusters: {what:?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Row and column of a number of a thread: the fragment of a product of 64 rows (PTX ISA, wgmma, matrix D).
fn fragment(thread: u32, i: u32) -> (u32, u32) {
    let (warp, lane) = (thread / 32, thread % 32);
    (warp * 16 + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2)
}

/// As `swizzled` in hopper.cuh.
fn swizzled(offset: u32, bytes: u32) -> u32 {
    offset ^ ((offset >> 7 & (bytes / 16 - 1)) << 4)
}

#[test]
fn threads_hold_every_number_of_a_tile_once() {
    for columns in [16, 96, 128, 256] {
        let mut seen = vec![false; 64 * columns as usize];
        for thread in 0..128 {
            for i in 0..columns / 2 {
                let (row, column) = fragment(thread, i);
                let seen = &mut seen[(row * columns + column) as usize];
                assert!(!*seen, "row {row}, column {column} twice");
                *seen = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}

#[test]
fn a_slab_is_filled_without_conflicts_and_as_the_accelerator_reads_it() {
    for (bytes, size) in [(128, 2), (64, 2), (32, 2), (128, 4), (64, 4)] {
        let mut owner = vec![None; (64 * bytes) as usize / 4];
        for thread in 0..128u32 {
            for i in (0..bytes / size / 2).step_by(2) {
                let (row, column) = fragment(thread, i);
                let to = swizzled(row * bytes + column * size, bytes);
                // The accelerator swaps pieces of 16 bytes within rows of 128 of the memory, by that row's number.
                let (line, piece) = (to / 128, to % 128 / 16);
                let back = line * 128 + ((piece ^ (line & (bytes / 16 - 1))) * 16) + to % 16;
                assert_eq!(back, row * bytes + column * size);
                for word in 0..2 * size / 4 {
                    let place = &mut owner[(to / 4 + word) as usize];
                    assert_eq!(place.replace(thread), None);
                }
            }
        }
        assert!(owner.iter().all(Option::is_some), "rows of {bytes} bytes");
    }
    // A warp's 32 words of one instruction lie in 32 banks.
    let banks =
        (0..32).map(|lane| swizzled(fragment(lane, 0).0 * 128 + fragment(lane, 0).1 * 2, 128) / 4 % 32);
    let mut banks: Vec<u32> = banks.collect();
    banks.sort_unstable();
    assert_eq!(banks, (0..32).collect::<Vec<_>>());
}

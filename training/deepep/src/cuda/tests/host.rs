//! Runs the kernels' source as a program of this machine.

use super::super::machine::Machine;
use super::super::ranks::Ranks;
use super::super::{COMBINE, DISPATCH, LOW, RANKS, places};
use super::path;
use crate::{Result, Shape};
use ember_cuda::Program;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

const KERNELS: [&str; 4] = ["dispatch", "combine", "low_dispatch", "low_combine"];

struct Host {
    program: Rc<Compiled>,
    heaps: Vec<Vec<u8>>,
    /// A rank whose blocks don't run.
    missing: Option<usize>,
}

/// Ranks with so many blocks each, of so many warps with so many lanes, which are threads; nothing, and a note, without
/// a compiler for C++.
pub(super) fn ranks(
    test: &str,
    shape: Shape,
    [blocks, lanes, warps]: [usize; 3],
    low: bool,
    missing: Option<usize>,
) -> Option<Ranks> {
    if Command::new("g++").arg("--version").output().is_err() {
        ember_cluster_tests::skip(test, "there is no g++");
        return None;
    }
    thread_local! {
        static PROGRAMS: RefCell<BTreeMap<[usize; 2], Rc<Compiled>>> = RefCell::default();
    }
    let make = || Rc::new(Compiled::new(lanes, warps));
    let program = PROGRAMS.with(|all| all.borrow_mut().entry([lanes, warps]).or_insert_with(make).clone());
    let heaps = vec![vec![0; places::Places::new(&shape, blocks, low).bytes]; shape.ranks];
    let limit = Duration::from_millis(if missing.is_some() { 200 } else { 60_000 });
    Some(Ranks::on(Box::new(Host { program, heaps, missing }), shape, blocks, low, limit))
}

/// The program, gone with its last user.
struct Compiled(PathBuf);

impl Compiled {
    fn new(lanes: usize, warps: usize) -> Self {
        let (source, program) = (path().with_extension("cpp"), path());
        let parts =
            [include_str!("host.h"), places::AREAS, RANKS, DISPATCH, COMBINE, LOW, include_str!("host.cpp")];
        std::fs::write(&source, parts.concat()).unwrap();
        let mut compile = Command::new("g++");
        compile.args([format!("-DLANES_OF_WARP={lanes}"), format!("-DWARPS_OF_BLOCK={warps}")]);
        compile.args([
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
        ]);
        let done = compile.arg(&program).arg(&source).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::remove_file(source).unwrap();
        Self(program)
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Machine for Host {
    fn write(&mut self, rank: usize, at: usize, bytes: &[u8]) -> Result<()> {
        self.heaps[rank][at..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self, rank: usize, at: usize, len: usize) -> Result<Vec<u8>> {
        Ok(self.heaps[rank][at..][..len].to_vec())
    }
    fn run(&mut self, program: &Program, blocks: usize, call: &[u64], tokens: &[u64]) -> Result<f64> {
        let kernel = KERNELS.iter().position(|name| *name == program.entry).unwrap();
        let (ranks, bytes) = (self.heaps.len(), self.heaps[0].len());
        let missing = self.missing.map_or(u64::MAX, |rank| rank as u64);
        let head = [kernel as u64, blocks as u64, ranks as u64, bytes as u64, missing, call.len() as u64];
        let words = head.iter().chain(call).chain(tokens).flat_map(|word| word.to_le_bytes());
        let (before, after) = (path(), path());
        std::fs::write(&before, words.chain(self.heaps.concat()).collect::<Vec<u8>>()).unwrap();
        let done = Command::new(&self.program.0).args([&before, &after]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let heaps = std::fs::read(&after).unwrap();
        self.heaps = heaps.chunks(bytes).map(<[u8]>::to_vec).collect();
        assert_eq!(self.heaps.len(), ranks);
        [before, after].iter().for_each(|file| std::fs::remove_file(file).unwrap());
        Ok(0.0)
    }
}

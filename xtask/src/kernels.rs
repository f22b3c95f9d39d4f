//! `cargo xtask kernels`: compiles every kernel for Hopper without a GPU and compares what comes of it with the
//! manifest: registers, shared memory, instructions. Nothing may spill.

use crate::process::root;
use anyhow::{Context, Result, bail, ensure};
use ember_cuda::{Cache, Compiler, Program, report};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Crates that have kernels, and all that they have; then what `cargo xtask gpu` runs.
const CRATES: &[fn() -> Vec<Program>] = &[
    || [true, false].map(ember_cuda::ceiling).to_vec(),
    ember_deepgemm::cuda::programs,
    ember_deepep::cuda::programs,
    ember_flashmla::cuda::programs,
    crate::gpu::programs,
];
/// Packages that the compiler, its disassembler and nothing else come from. There is no disassembler of 13.0.
const PACKAGES: &[&str] = &["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-nvdisasm==13.2.51"];
/// The name under which a skip is reported.
const TEST: &str = "kernels_compile_for_hopper";
const MANIFEST: &str = "xtask/kernels.json";

/// What to do with the result.
#[derive(clap::Args)]
pub(crate) struct KernelArgs {
    /// Print rows as JSON.
    #[arg(long)]
    json: bool,
    /// Write the manifest instead of comparing with it.
    #[arg(long)]
    write: bool,
    /// Only compile what `cargo xtask gpu` runs, into that cache, for a machine without the compiler.
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// What is known of a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Row {
    registers: u32,
    shared_bytes: u32,
    spilled_bytes: u32,
    serialised: bool,
    /// Instructions of the tensor cores and the memory accelerator, and those that reach memory of a thread's own.
    instructions: BTreeMap<String, u32>,
}

/// Instructions that are counted.
const COUNTED: &[&str] =
    &["QGMMA", "HGMMA", "UTMALDG", "UTMASTG", "SYNCS", "USETMAXREG", "F2FP", "STL", "LDL"];

/// Compiles, checks, and prints or writes.
pub(crate) fn run(args: &KernelArgs) -> Result<()> {
    let folder = root().join("target/kernels");
    let tools = match tools(&folder) {
        Ok(tools) => tools,
        Err(error) => {
            ember_cluster_tests::skip(TEST, &format!("{error:#}"));
            return Ok(());
        }
    };
    let compiler = Compiler::at(&tools.join("lib/libnvrtc.so.13"))?;
    if let Some(cache) = &args.cache {
        return fill(cache, &compiler);
    }
    let mut programs: Vec<Program> = CRATES.iter().flat_map(|programs| programs()).collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    programs.dedup();
    let rows = compile_all(&programs, &compiler, &tools.join("bin/nvdisasm"), &folder)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    let complaints = check(&programs, &rows);
    complaints.iter().for_each(|complaint| println!("kernels: {complaint}"));
    ensure!(complaints.is_empty(), "{} complaints", complaints.len());
    let file = root().join(MANIFEST);
    if args.write {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        return std::fs::write(&file, text).with_context(|| file.display().to_string());
    }
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let expected: BTreeMap<String, Row> = serde_json::from_str(&text).with_context(|| MANIFEST.to_owned())?;
    let differences = differences(&expected, &rows);
    differences.iter().for_each(|difference| println!("kernels: {difference}"));
    ensure!(
        differences.is_empty(),
        "{} kernels differ from {MANIFEST}: look at the table, then `cargo xtask kernels --write`",
        differences.len()
    );
    Ok(())
}

fn fill(folder: &Path, compiler: &Compiler) -> Result<()> {
    let cache = Cache::in_folder(folder)?;
    let programs = crate::gpu::programs();
    programs.iter().try_for_each(|program| compiler.cubin(program, &cache).map(drop))?;
    println!("kernels: {} in {}", programs.len(), folder.display());
    Ok(())
}

/// The folder with `lib` and `bin`, downloaded once.
fn tools(folder: &Path) -> Result<PathBuf> {
    let tools = folder.join("tools");
    let done = folder.join("tools.txt");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&done).is_ok_and(|have| have == wanted) {
        return Ok(tools.join("nvidia/cu13"));
    }
    for old in [folder.join("wheels"), tools.clone()] {
        if old.exists() {
            std::fs::remove_dir_all(&old)?;
        }
    }
    let wheels = folder.join("wheels");
    std::fs::create_dir_all(&wheels)?;
    let mut download = Command::new("python3");
    download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]);
    quiet(download.arg(&wheels).args(PACKAGES)).context("packages of the CUDA compiler")?;
    for wheel in std::fs::read_dir(&wheels)? {
        let mut unpack = Command::new("python3");
        quiet(unpack.args(["-m", "zipfile", "-e"]).arg(wheel?.path()).arg(&tools))?;
    }
    let disassembler = tools.join("nvidia/cu13/bin/nvdisasm");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&disassembler, executable).context("nvdisasm")?;
    std::fs::remove_dir_all(&wheels)?;
    std::fs::write(&done, wanted)?;
    Ok(tools.join("nvidia/cu13"))
}

/// Runs a program; the error is the last line of what it says.
fn quiet(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        bail!("{}: {last}", done.status);
    }
    Ok(())
}

/// A row for each program, by name, from as many threads as there are processors.
fn compile_all(
    programs: &[Program],
    compiler: &Compiler,
    disassembler: &Path,
    folder: &Path,
) -> Result<BTreeMap<String, Row>> {
    let cache = Cache::in_folder(&folder.join("rows"))?;
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch)?;
    let (next, rows) = (Mutex::new(programs.iter().enumerate()), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let Some((i, program)) = next.lock().ok().and_then(|mut next| next.next()) else { return Ok(()) };
            let row = row(program, compiler, disassembler, &cache, &scratch.join(format!("{i}.cubin")))?;
            if let Ok(mut rows) = rows.lock() {
                rows.push((program.name.clone(), row));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        others.into_iter().try_for_each(|other| match other.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread that compiles has panicked"),
        })
    })?;
    let rows = rows.into_inner().unwrap_or_default();
    ensure!(rows.len() == programs.len(), "{} of {} kernels compiled", rows.len(), programs.len());
    let rows: BTreeMap<String, Row> = rows.into_iter().collect();
    ensure!(rows.len() == programs.len(), "two kernels have the same name");
    Ok(rows)
}

/// From the cache, or by compiling and disassembling.
fn row(
    program: &Program,
    compiler: &Compiler,
    disassembler: &Path,
    cache: &Cache,
    file: &Path,
) -> Result<Row> {
    let options = [PACKAGES.join(" "), format!("{COUNTED:?} {}", program.shared_bytes)];
    let options = [options[0].as_str(), options[1].as_str()];
    if let Some(kept) = cache.get(program, compiler.version(), &options)? {
        return serde_json::from_slice(&kept).context("a cached row");
    }
    let compiled = compiler.compile(program)?;
    let usage = report::usage(&compiled.log).with_context(|| {
        format!("{}: the compiler doesn't say what it uses:\n{}", program.name, compiled.log)
    })?;
    std::fs::write(file, &compiled.cubin)?;
    let done = Command::new(disassembler).arg("-c").arg(file).output().context("nvdisasm")?;
    ensure!(done.status.success(), "nvdisasm: {}", String::from_utf8_lossy(&done.stderr));
    let mut instructions = report::instructions(&String::from_utf8_lossy(&done.stdout));
    instructions.retain(|name, _| COUNTED.contains(&name.as_str()));
    let row = Row {
        registers: usage.registers,
        shared_bytes: program.shared_bytes,
        spilled_bytes: usage.spill_loads + usage.spill_stores,
        serialised: usage.serialised,
        instructions,
    };
    cache.put(program, compiler.version(), &options, &serde_json::to_vec(&row)?)?;
    std::fs::remove_file(file)?;
    Ok(row)
}

/// What no kernel may do, whatever the manifest says.
fn check(programs: &[Program], rows: &BTreeMap<String, Row>) -> Vec<String> {
    let mut complaints = Vec::new();
    for program in programs {
        let (name, row) = (&program.name, &rows[&program.name]);
        let count = |what: &str| row.instructions.get(what).copied().unwrap_or(0);
        if row.spilled_bytes + count("STL") + count("LDL") > 0 {
            complaints.push(format!("{name}: spills {} bytes of registers", row.spilled_bytes));
        }
        if row.serialised {
            complaints.push(format!("{name}: waits after each matrix instruction"));
        }
        if row.registers > program.registers_max {
            complaints
                .push(format!("{name}: {} registers, at most {}", row.registers, program.registers_max));
        }
        if row.shared_bytes > ember_cuda::SHARED_BYTES_MAX {
            complaints.push(format!("{name}: {} bytes of shared memory", row.shared_bytes));
        }
        for what in program.instructions.iter().filter(|what| count(what) == 0) {
            complaints.push(format!("{name}: no {what} in its code"));
        }
    }
    complaints
}

fn differences(expected: &BTreeMap<String, Row>, rows: &BTreeMap<String, Row>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, row) in rows {
        match expected.get(name) {
            None => found.push(format!("{name} is not in the manifest")),
            Some(old) if old != row => found.push(format!("{name} was {old:?}, is {row:?}")),
            Some(_) => {}
        }
    }
    found.extend(
        expected.keys().filter(|name| !rows.contains_key(*name)).map(|name| format!("{name} is gone")),
    );
    found
}

fn print(rows: &BTreeMap<String, Row>) {
    println!("{:<72} {:>9} {:>13}  instructions", "kernel", "registers", "shared memory");
    for (name, row) in rows {
        let counts: Vec<String> =
            row.instructions.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("{name:<72} {:>9} {:>11} B  {}", row.registers, row.shared_bytes, counts.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            name: "crate/kernel".into(),
            entry: "kernel",
            source: String::new(),
            threads: 384,
            cluster: 1,
            shared_bytes: 1024,
            instructions: &["QGMMA"],
            registers_max: 168,
        }
    }

    fn row() -> Row {
        let instructions = BTreeMap::from([("QGMMA".to_owned(), 4)]);
        Row { registers: 168, shared_bytes: 1024, spilled_bytes: 0, serialised: false, instructions }
    }

    #[test]
    fn spills_and_missing_instructions_are_named() {
        let check = |row: Row| check(&[program()], &BTreeMap::from([("crate/kernel".to_owned(), row)]));
        assert!(check(row()).is_empty());
        assert_eq!(check(Row { spilled_bytes: 4, ..row() }), ["crate/kernel: spills 4 bytes of registers"]);
        assert_eq!(check(Row { registers: 169, ..row() }), ["crate/kernel: 169 registers, at most 168"]);
        let none = Row { instructions: BTreeMap::new(), ..row() };
        assert_eq!(check(none), ["crate/kernel: no QGMMA in its code"]);
        assert!(check(Row { serialised: true, ..row() })[0].contains("waits"));
    }

    #[test]
    fn a_kernel_that_changed_or_came_or_went_differs() {
        let rows = |name: &str, row: Row| BTreeMap::from([(name.to_owned(), row)]);
        assert!(differences(&rows("a", row()), &rows("a", row())).is_empty());
        assert_eq!(differences(&rows("a", row()), &rows("a", Row { registers: 90, ..row() })).len(), 1);
        assert_eq!(differences(&rows("a", row()), &rows("b", row())).len(), 2);
    }
}

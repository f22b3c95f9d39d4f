//! NVRTC: where it is, and what it makes of a program.

use crate::{ARCHITECTURE, Cache, CudaError, Program, Result, ffi};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The library, and the one that it loads itself.
const LIBRARY: &str = "libnvrtc.so.13";
const BUILTINS: &str = "libnvrtc-builtins.so.13.";

/// The version that `cargo xtask kernels` uses, and caches for other machines are made with.
const VERSION: &str = "13.0";

/// NVIDIA's run-time compiler, version 13.
#[derive(Clone, Debug)]
pub struct Compiler {
    version: String,
    /// Why it can't compile.
    missing: Option<CudaError>,
}

/// What came of a program.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code, an ELF file.
    pub cubin: Vec<u8>,
    /// What the compiler said, with registers and spills.
    pub log: String,
}

impl Compiler {
    /// `EMBER_NVRTC`, else what the loader finds, else where packages put it ([`candidates`]). Loaded once.
    ///
    /// # Errors
    /// If it can't be loaded.
    pub fn find() -> Result<Self> {
        static FOUND: OnceLock<Result<Compiler>> = OnceLock::new();
        FOUND.get_or_init(Self::load).clone()
    }

    fn load() -> Result<Self> {
        if let Some(path) = std::env::var_os("EMBER_NVRTC").filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path));
        }
        if ffi::preload(Path::new(LIBRARY)).is_ok() {
            return Ok(Self { version: ffi::compiler_version()?, missing: None });
        }
        match candidates().into_iter().find(|path| path.exists()) {
            Some(path) => Self::at(&path),
            None => Err(CudaError::NoCompiler(format!("{LIBRARY} not found"))),
        }
    }

    /// That library. What was loaded first stays.
    ///
    /// # Errors
    /// If it can't be loaded.
    pub fn at(path: &Path) -> Result<Self> {
        let missing = |why: String| CudaError::NoCompiler(format!("{}: {why}", path.display()));
        // The library looks for its part by name alone, and finds it if it is loaded already.
        let beside = path.parent().and_then(|folder| std::fs::read_dir(folder).ok());
        for file in beside.into_iter().flatten().flatten() {
            if file.file_name().to_str().is_some_and(|name| name.starts_with(BUILTINS)) {
                ffi::preload(&file.path()).map_err(missing)?;
            }
        }
        ffi::preload(path).map_err(missing)?;
        Ok(Self { version: ffi::compiler_version()?, missing: None })
    }

    /// [`Compiler::find`], or without the library what version 13.0 left in a cache, for GPUs on
    /// machines without NVRTC. What isn't there can't be compiled then.
    ///
    /// # Errors
    /// If NVRTC is missing and the cache is empty.
    pub fn find_or_cached(cache: &Cache) -> Result<Self> {
        Self::find().or_else(|why| match cache.is_empty()? {
            true => Err(why),
            false => Ok(Self { version: VERSION.to_owned(), missing: Some(why) }),
        })
    }

    /// As in `13.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles, always.
    ///
    /// # Errors
    /// If the source is wrong.
    pub fn compile(&self, program: &Program) -> Result<Compiled> {
        match &self.missing {
            Some(why) => Err(why.clone()),
            None => ffi::compile(program, &options()),
        }
    }

    /// From the cache, or compiled and kept there.
    ///
    /// # Errors
    /// If the source is wrong, or the cache fails.
    pub fn cubin(&self, program: &Program, cache: &Cache) -> Result<Vec<u8>> {
        let options = options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        if let Some(kept) = cache.get(program, &self.version, &options)? {
            return Ok(kept);
        }
        let made = self.compile(program)?.cubin;
        cache.put(program, &self.version, &options, &made)?;
        Ok(made)
    }
}

fn options() -> Vec<String> {
    let architecture = format!("--gpu-architecture={ARCHITECTURE}");
    let others = ["--std=c++17", "--ptxas-options=-v"];
    std::iter::once(architecture).chain(others.map(str::to_owned)).collect()
}

/// Where Python packages and CUDA's own installer put the library, in the order of the search.
pub fn candidates() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut found = Vec::new();
    let pythons = set("VIRTUAL_ENV").map(|folder| folder.join("lib")).into_iter();
    let pythons = pythons.chain(set("CONDA_PREFIX").map(|folder| folder.join("lib")));
    let pythons = pythons.chain(set("HOME").map(|home| home.join(".local/lib")));
    for lib in pythons.chain(["/usr/local/lib", "/usr/lib", "/opt/conda/lib"].map(PathBuf::from)) {
        let mut versions: Vec<PathBuf> =
            std::fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        versions.retain(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python3"))
        });
        versions.sort();
        for folder in
            versions.iter().flat_map(|path| ["site-packages", "dist-packages"].map(|kind| path.join(kind)))
        {
            found.push(folder.join("nvidia/cu13/lib").join(LIBRARY));
        }
    }
    found.push(Path::new("/usr/local/cuda/lib64").join(LIBRARY));
    found
}

//! Calls of NVIDIA's libraries.
//!
//! All unsafe code is here. Why it is sound:
//! - Libraries are asked for ([`is_culib_present`]) before the first call, which would panic without them.
//! - Handles come from successful calls, are owned by one value, and are given back once, when it is dropped; what
//!   needs a context holds a reference to it, and makes it the current one of the thread first.
//! - Copies between host and device go through slices of [`Plain`] numbers, any bits of which are values, and lengths
//!   are checked before.
//! - A launch passes as many arguments, of the sizes, as the driver says that the kernel has, so that it reads no host
//!   memory beyond them. What a kernel does with device memory can't touch the host's: none is mapped.
#![allow(unsafe_code)]

mod parts;

use crate::{CudaError, DeviceInfo, Grid, Program, Result, demand};
use cudarc::driver::sys::{self as cu, is_culib_present};
use cudarc::driver::{DriverError, result as driver};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::rc::Rc;

/// The least driver: 13.0, which knows the machine code of its compiler.
const DRIVER_MIN: i32 = 13_000;

fn call<T>(what: &'static str, result: std::result::Result<T, DriverError>) -> Result<T> {
    result.map_err(|e| CudaError::Call { what, why: e.to_string() })
}

/// Loads a library for the life of the process.
pub(crate) fn preload(path: &Path) -> std::result::Result<(), String> {
    // SAFETY: NVRTC's libraries have initialisers without preconditions, and are never unloaded.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    std::mem::forget(library);
    Ok(())
}

/// Of the NVRTC that is loaded.
pub(crate) fn compiler_version() -> Result<String> {
    // SAFETY: only looks for the library.
    if !unsafe { nvrtc_sys::is_culib_present() } {
        return Err(CudaError::NoCompiler("libnvrtc.so isn't found by its name".into()));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both are numbers to write to.
    let result = unsafe { nvrtc_sys::nvrtcVersion(&mut major, &mut minor) };
    result.result().map_err(|e| CudaError::NoCompiler(e.to_string()))?;
    Ok(format!("{major}.{minor}"))
}

struct Source(nvrtc_sys::nvrtcProgram);

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: made by create_program, destroyed here alone. It can't fail for such a program.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// [`Compiler::compile`](crate::Compiler::compile), after the library was loaded.
pub(crate) fn compile(program: &Program, options: &[String]) -> Result<crate::Compiled> {
    let failed = |log: String| CudaError::Compile { kernel: program.name.clone(), log };
    let source = CString::new(program.source.as_str()).map_err(|e| failed(e.to_string()))?;
    let made = nvrtc::create_program(&source, None).map_err(|e| failed(e.to_string()))?;
    let made = Source(made);
    // SAFETY: the program lives; the log's pointer is to as many bytes as it says.
    let (result, log) = unsafe { (nvrtc::compile_program(made.0, options), nvrtc::get_program_log(made.0)) };
    let log = log.map_err(|e| failed(e.to_string()))?;
    let log: Vec<u8> = log.into_iter().map(|c| c.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    result.map_err(|e| failed(format!("{e}\n{log}")))?;
    let mut bytes = 0;
    // SAFETY: the program is compiled; the second call writes as many bytes as the first says, which are there.
    let cubin = unsafe {
        let size = nvrtc_sys::nvrtcGetCUBINSize(made.0, &mut bytes);
        size.result().map_err(|e| failed(e.to_string()))?;
        let mut cubin = vec![0u8; bytes];
        let got = nvrtc_sys::nvrtcGetCUBIN(made.0, cubin.as_mut_ptr().cast());
        got.result().map_err(|e| failed(e.to_string()))?;
        cubin
    };
    Ok(crate::Compiled { cubin, log })
}

/// What GPU `ordinal` is, if it and the driver can run the kernels.
pub(crate) fn probe(ordinal: i32) -> Result<DeviceInfo> {
    // SAFETY: only looks for the library.
    if !unsafe { is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there; the number is to be written to. It works before initialisation.
    call("asking for the driver's version", unsafe { cu::cuDriverGetVersion(&mut version) }.result())?;
    if version < DRIVER_MIN {
        let text =
            format!("the driver is for CUDA {}.{}, 13.0 is needed", version / 1000, version % 1000 / 10);
        return Err(CudaError::Unsupported(text));
    }
    driver::init().map_err(|e| CudaError::NoDevice(e.to_string()))?;
    let device = driver::device::get(ordinal).map_err(|e| CudaError::NoDevice(e.to_string()))?;
    let name = call("asking for a GPU's name", driver::device::get_name(device))?;
    use cu::CUdevice_attribute as Attribute;
    // SAFETY: the device is one.
    let ask = |what| unsafe { call("asking a GPU", driver::device::get_attribute(device, what)) };
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) != (9, 0) {
        let text = format!("{name} has compute capability {major}.{minor}; the kernels run on 9.0 only");
        return Err(CudaError::Unsupported(text));
    }
    let processors = ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.cast_unsigned();
    // SAFETY: the device is one.
    let memory = call("asking for a GPU's memory", unsafe { driver::device::total_mem(device) })?;
    Ok(DeviceInfo { name, processors, memory_bytes: memory as u64, driver: version.cast_unsigned() })
}

struct Context {
    device: cu::CUdevice,
    context: cu::CUcontext,
    stream: cu::CUstream,
}

impl Context {
    fn enter(&self) -> Result<()> {
        // SAFETY: it is retained until this is dropped.
        call("entering a GPU's context", unsafe { driver::ctx::set_current(self.context) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both are given back once; nothing that uses them outlives this value. A failure has no cure here.
        unsafe {
            let _ = driver::stream::destroy(self.stream);
            let _ = driver::primary_ctx::release(self.device);
        }
    }
}

/// A GPU and a queue of work on it. It and what belongs to it stay in their thread.
#[derive(Clone)]
pub struct Device {
    context: Rc<Context>,
    info: DeviceInfo,
}

/// Numbers that a GPU and the host share: any bits are a value. Sealed by what it is implemented for.
///
/// # Safety
/// Implementors have no padding, no pointers, and no invalid bits.
pub unsafe trait Plain: Copy + Default {}

// SAFETY: numbers of the machine.
unsafe impl Plain for u8 {}
// SAFETY: the same.
unsafe impl Plain for u16 {}
// SAFETY: the same.
unsafe impl Plain for u32 {}
// SAFETY: the same.
unsafe impl Plain for i32 {}
// SAFETY: the same.
unsafe impl Plain for u64 {}
// SAFETY: the same.
unsafe impl Plain for f32 {}

/// Memory of a GPU, given back when it is dropped.
pub struct Buffer<T: Plain> {
    context: Rc<Context>,
    at: cu::CUdeviceptr,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len > 0 && self.context.enter().is_ok() {
            // SAFETY: allocated by this value. The driver waits for work that is under way.
            let _ = unsafe { driver::free_sync(self.at) };
        }
    }
}

impl<T: Plain> Buffer<T> {
    /// Numbers.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// To be passed to a kernel.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.at)
    }
    /// All numbers, after all work that was queued.
    ///
    /// # Errors
    /// If that work failed.
    pub fn download(&self) -> Result<Vec<T>> {
        self.context.enter()?;
        let mut out = vec![T::default(); self.len];
        if self.len > 0 {
            // SAFETY: the stream lives. Then: as many numbers as there are on both sides.
            call("waiting for a GPU", unsafe { driver::stream::synchronize(self.context.stream) })?;
            // SAFETY: as above.
            call("copying from a GPU", unsafe { driver::memcpy_dtoh_sync(&mut out, self.at) })?;
        }
        Ok(out)
    }
    /// Writes all of it, after all work that was queued.
    ///
    /// # Errors
    /// If there are more or fewer numbers.
    pub fn upload(&mut self, numbers: &[T]) -> Result<()> {
        demand(numbers.len() == self.len, "numbers", || {
            format!("has {} numbers, the buffer {}", numbers.len(), self.len)
        })?;
        self.context.enter()?;
        if self.len > 0 {
            // SAFETY: as many numbers as there are; the default stream waits for ours.
            call("copying to a GPU", unsafe { driver::memcpy_htod_sync(self.at, numbers) })?;
        }
        Ok(())
    }
    /// Queues zeros.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear(&mut self) -> Result<()> {
        self.context.enter()?;
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: so many bytes were allocated.
            let set = unsafe { driver::memset_d8_async(self.at, 0, bytes, self.context.stream) };
            call("zeroing on a GPU", set)?;
        }
        Ok(())
    }
    /// Queues a copy of all of `from`.
    ///
    /// # Errors
    /// If it has another length.
    pub fn copy(&mut self, from: &Self) -> Result<()> {
        demand(from.len == self.len, "from", || format!("has {} numbers, not {}", from.len, self.len))?;
        self.context.enter()?;
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: both have so many bytes.
            let copied = unsafe { driver::memcpy_dtod_async(self.at, from.at, bytes, self.context.stream) };
            call("copying on a GPU", copied)?;
        }
        Ok(())
    }
}

impl Device {
    /// GPU `ordinal`.
    ///
    /// # Errors
    /// If it or the driver isn't there, or can't run the kernels.
    pub fn open(ordinal: i32) -> Result<Self> {
        let info = probe(ordinal)?;
        let device = call("opening a GPU", driver::device::get(ordinal))?;
        // SAFETY: the device is one; it is released when the context is dropped.
        let context = call("opening a GPU's context", unsafe { driver::primary_ctx::retain(device) })?;
        let null = driver::stream::null();
        let mut context = Context { device, context, stream: null };
        context.enter()?;
        context.stream =
            call("making a stream", driver::stream::create(driver::stream::StreamKind::Default))?;
        Ok(Self { context: Rc::new(context), info })
    }
    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }
    /// So many zeros.
    ///
    /// # Errors
    /// If there isn't as much memory.
    pub fn zeroed<T: Plain>(&self, len: usize) -> Result<Buffer<T>> {
        self.context.enter()?;
        let bytes = len.checked_mul(size_of::<T>());
        demand(bytes.is_some(), "len", || format!("{len} numbers don't fit into memory"))?;
        let (mut at, bytes) = (0, bytes.unwrap_or(0));
        if bytes > 0 {
            // SAFETY: the current context is ours; the buffer owns what comes back.
            at = call("allocating on a GPU", unsafe { driver::malloc_sync(bytes) })?;
        }
        let mut buffer = Buffer { context: self.context.clone(), at, len, numbers: PhantomData };
        buffer.clear()?;
        Ok(buffer)
    }
    /// A copy of numbers of the host.
    ///
    /// # Errors
    /// If there isn't as much memory.
    pub fn upload<T: Plain>(&self, numbers: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeroed(numbers.len())?;
        self.wait()?;
        buffer.upload(numbers)?;
        Ok(buffer)
    }
    /// Until all work that was queued is done.
    ///
    /// # Errors
    /// If some of it failed.
    pub fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        call("waiting for a GPU", unsafe { driver::stream::synchronize(self.context.stream) })
    }
    /// Seconds from before to after what `work` queues, as the GPU counts them.
    ///
    /// # Errors
    /// If the work fails.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.context.enter()?;
        let (begin, end) = (Event::new()?, Event::new()?);
        begin.record(&self.context)?;
        work()?;
        end.record(&self.context)?;
        // SAFETY: both events live and were recorded.
        let elapsed = unsafe {
            call("waiting for a GPU", driver::event::synchronize(end.0))?;
            driver::event::elapsed(begin.0, end.0)
        };
        Ok(f64::from(call("timing a GPU", elapsed)?) / 1000.0)
    }
    /// Loads compiled code of a program.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub fn load(&self, program: &Program, cubin: &[u8]) -> Result<Kernel> {
        self.context.enter()?;
        let entry = CString::new(program.entry).map_err(|e| CudaError::Cache(e.to_string()))?;
        let (mut module, mut parameters) = (std::ptr::null_mut(), Vec::new());
        // SAFETY: an ELF file that the compiler made and the cache's hash covers. The driver copies it.
        call(
            "loading a kernel",
            unsafe { cu::cuModuleLoadData(&mut module, cubin.as_ptr().cast()) }.result(),
        )?;
        let mut kernel = Kernel {
            context: self.context.clone(),
            module,
            function: std::ptr::null_mut(),
            program: program.clone(),
            parameters: Vec::new(),
        };
        // SAFETY: the module is loaded.
        kernel.function = call("finding a kernel", unsafe { driver::module::get_function(module, entry) })?;
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is one; numbers are to be written to. It refuses the first number that is too great.
            let asked =
                unsafe { cu::cuFuncGetParamInfo(kernel.function, parameters.len(), &mut offset, &mut size) };
            if asked == cu::CUresult::CUDA_ERROR_INVALID_VALUE {
                break;
            }
            call("asking for an argument", asked.result())?;
            parameters.push(size);
        }
        kernel.parameters = parameters;
        let shared = program.shared_bytes.cast_signed();
        let most = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is one.
        let set = unsafe { driver::function::set_function_attribute(kernel.function, most, shared) };
        call("asking for shared memory", set)?;
        Ok(kernel)
    }
}

struct Event(cu::CUevent);

impl Event {
    fn new() -> Result<Self> {
        call("making an event", driver::event::create(cu::CUevent_flags::CU_EVENT_DEFAULT)).map(Self)
    }
    fn record(&self, context: &Context) -> Result<()> {
        // SAFETY: both live.
        call("recording an event", unsafe { driver::event::record(self.0, context.stream) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by this value.
        let _ = unsafe { driver::event::destroy(self.0) };
    }
}

/// Bytes between repetitions of a swizzle, as wide as a row of a box.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swizzle {
    /// Rows follow each other as they are.
    None,
    /// Rows of 32 bytes.
    Bytes32,
    /// Rows of 64.
    Bytes64,
    /// Rows of 128.
    Bytes128,
}

/// A matrix in a GPU's memory, and the boxes in which it is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matrix {
    /// Where it begins, in elements: a multiple of 16 bytes.
    pub offset: usize,
    /// Columns, which are contiguous, and rows.
    pub shape: [usize; 2],
    /// Elements from row to row: a multiple of 16 bytes.
    pub stride: usize,
    /// Columns and rows of a box, up to 256 each.
    pub box_shape: [u32; 2],
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

/// What the tensor memory accelerator has to know of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(cu::CUtensorMap);

/// What the elements are, for the accelerator.
pub trait Element: Plain {
    /// The driver's number of it.
    #[doc(hidden)]
    const TYPE: u32;
}

impl Element for u8 {
    const TYPE: u32 = 0;
}
impl Element for u16 {
    const TYPE: u32 = 9; // BF16: as many bits, moved as they are
}
impl Element for f32 {
    const TYPE: u32 = 7;
}

impl TensorMap {
    /// Of a matrix in a buffer. Elements of a box outside of it are read as zeros and not written.
    ///
    /// # Errors
    /// If the matrix doesn't lie within the buffer, or breaks a rule of the accelerator.
    pub fn new<T: Element>(buffer: &Buffer<T>, of: &Matrix) -> Result<Self> {
        let ([columns, rows], size) = (of.shape, size_of::<T>());
        let end = rows.saturating_sub(1).checked_mul(of.stride).and_then(|last| last.checked_add(columns));
        let end = end.and_then(|end| end.checked_add(of.offset));
        let fits = columns > 0 && rows > 0 && end.is_some_and(|end| end <= buffer.len);
        demand(fits, "matrix", || format!("{of:?} doesn't lie within {} elements", buffer.len))?;
        let aligned = (of.offset * size).is_multiple_of(16) && (of.stride * size).is_multiple_of(16);
        demand(aligned, "matrix", || format!("{of:?}: begin and stride must be multiples of 16 bytes"))?;
        let kind = match T::TYPE {
            0 => cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            7 => cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            _ => cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match of.swizzle {
            Swizzle::None => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        buffer.context.enter()?;
        let mut map = cu::CUtensorMap { opaque: [0; 16] };
        let (shape, stride) = ([columns as u64, rows as u64], [(of.stride * size) as u64]);
        let at = buffer.at + (of.offset * size) as u64;
        // SAFETY: two dimensions, one stride, two sides of a box, as many as the arrays have; it only writes `map`.
        let made = unsafe {
            cu::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                2,
                at as *mut c_void,
                shape.as_ptr(),
                stride.as_ptr(),
                of.box_shape.as_ptr(),
                [1u32, 1].as_ptr(),
                cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        call("describing a matrix to a GPU", made.result())?;
        Ok(Self(map))
    }
    /// Its 128 bytes, for kernels that read it from memory.
    pub fn words(&self) -> [u64; 16] {
        self.0.opaque
    }
    /// One that is never used.
    pub fn none() -> Self {
        Self(cu::CUtensorMap { opaque: [0; 16] })
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// `const __grid_constant__ TensorMap`.
    Map(TensorMap),
    /// Any pointer.
    Pointer(u64),
    /// `u32`.
    U32(u32),
}

impl Arg {
    fn size(&self) -> usize {
        match self {
            Self::Map(_) => 128,
            Self::Pointer(_) => 8,
            Self::U32(_) => 4,
        }
    }
}

/// A program, loaded on a GPU.
pub struct Kernel {
    context: Rc<Context>,
    module: cu::CUmodule,
    function: cu::CUfunction,
    program: Program,
    parameters: Vec<usize>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: loaded by this value.
            let _ = unsafe { driver::module::unload(self.module) };
        }
    }
}

impl Kernel {
    /// What was loaded.
    pub fn program(&self) -> &Program {
        &self.program
    }
    /// Queues a run.
    ///
    /// # Errors
    /// If the arguments aren't the kernel's, or the driver refuses the launch.
    pub fn launch(&self, grid: Grid, args: &[Arg]) -> Result<()> {
        self.start(grid, args, cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
    }

    fn start(&self, grid: Grid, args: &[Arg], id: cu::CUlaunchAttributeID) -> Result<()> {
        let sizes: Vec<usize> = args.iter().map(Arg::size).collect();
        demand(sizes == self.parameters, "args", || {
            format!("{} wants arguments of {:?} bytes, not {sizes:?}", self.program.name, self.parameters)
        })?;
        let cluster = self.program.cluster.max(1);
        demand(grid.x > 0 && grid.y > 0 && grid.x.is_multiple_of(cluster), "grid", || {
            format!("{grid:?} has no blocks, or parts of clusters of {cluster}")
        })?;
        self.context.enter()?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(arg_pointer).collect();
        let shape = cu::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let mut value = cu::CUlaunchAttributeValue { clusterDim: shape };
        if id == cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE {
            value = cu::CUlaunchAttributeValue { cooperative: 1 };
        }
        let mut attribute = cu::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = cu::CUlaunchConfig {
            gridDimX: grid.x,
            gridDimY: grid.y,
            gridDimZ: 1,
            blockDimX: self.program.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.program.shared_bytes,
            hStream: self.context.stream,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as many pointers as the kernel has parameters, each to as many bytes; all live through the call.
        let launched = unsafe {
            cu::cuLaunchKernelEx(&config, self.function, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        call("launching a kernel", launched.result())
    }
}

fn arg_pointer(arg: &Arg) -> *mut c_void {
    match arg {
        Arg::Map(map) => std::ptr::from_ref(&map.0).cast_mut().cast(),
        Arg::Pointer(at) => std::ptr::from_ref(at).cast_mut().cast(),
        Arg::U32(number) => std::ptr::from_ref(number).cast_mut().cast(),
    }
}

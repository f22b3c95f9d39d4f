// What the kernels need of a GPU, in a few words of their own: the same kernels run on processors with other meanings
// of these words, where a block is one thread.
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define INLINE __device__ __forceinline__
#define SHARED __shared__
#define KERNEL extern "C" __global__ void __launch_bounds__(512, 1)
#define UNROLL _Pragma("unroll")

constexpr u32 LANES = 32, WARPS = 16, THREADS = LANES * WARPS;

INLINE u32 block() { return blockIdx.x; }
INLINE u32 thread() { return threadIdx.x; }
INLINE void sync_block() { __syncthreads(); }
INLINE void sync_warp() { __syncwarp(); }
// Whether it holds in a thread of the block; a barrier too.
INLINE bool any_in_block(bool holds) { return __syncthreads_or(holds); }
// A bit for each lane.
INLINE u32 ballot(bool holds) { return __ballot_sync(~0u, holds); }
INLINE u32 ones(u32 bits) { return __popc(bits); }
INLINE u32 lowest(u32 bits) { return __ffs(bits) - 1; }
INLINE float greatest_in_warp(float x) {
    UNROLL for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
    }
    return x;
}

// Flags between blocks: what a block wrote before one is set, a barrier of the block between, is seen by the block that
// finds it set, behind a barrier of its own.
INLINE u32 load_acquire(const u32 *from) {
    u32 x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}
INLINE void store_release(u32 *to, u32 x) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}
INLINE void add_shared(u32 *to, u32 x) { atomicAdd(to, x); }
// Stays what it was unless it was 0.
INLINE void set_once(u64 *to, u64 x) { atomicCAS(to, 0ull, x); }
INLINE u64 now_ns() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}
INLINE void rest() { __nanosleep(40); }

INLINE float bits_float(u32 bits) { return __uint_as_float(bits); }
INLINE u32 float_bits(float x) { return __float_as_uint(x); }
// One rounding each: the compiler joins none of them.
INLINE float sum(float a, float b) { return __fadd_rn(a, b); }
INLINE float product(float a, float b) { return __fmul_rn(a, b); }
INLINE float quotient(float a, float b) { return __fdiv_rn(a, b); }
INLINE float greater(float a, float b) { return fmaxf(a, b); }
INLINE float magnitude(float x) { return fabsf(x); }
// The nearest E4M3 number, 448 at most.
INLINE u8 to_e4m3(float x) {
    u16 both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(0.0f), "f"(x));
    return u8(both & 0xff);
}

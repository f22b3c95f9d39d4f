// The kernels on a processor: a thread of the host for each of a block's, and in place of Hopper's instructions what
// they are said to do. Shared memory begins with NaN, and at no multiple of 1024.
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __syncthreads host_sync_all

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
template <class T> T __ldg(const T *from) { return *from; }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
struct Three { unsigned x, y, z; };
thread_local Three threadIdx;
Three blockIdx, gridDim;

constexpr unsigned SHARED_BEGIN = 272;
alignas(16) unsigned char memory[SHARED_BYTES];
inline unsigned long long __cvta_generic_to_shared(const void *p) {
    return static_cast<const unsigned char *>(p) - memory + SHARED_BEGIN;
}

// Everybody waits for everybody.
struct Meeting {
    std::mutex mutex;
    std::condition_variable all;
    unsigned here = 0, round = 0;
    void meet(unsigned count) {
        std::unique_lock lock(mutex);
        const unsigned now = round;
        if (++here == count) {
            here = 0, ++round;
            all.notify_all();
        } else {
            all.wait(lock, [&] { return round != now; });
        }
    }
};
Meeting block_meeting, named_meetings[16], warp_meetings[12];
unsigned slots[12][32];

inline unsigned warp() { return threadIdx.x / 32; }
inline void __syncwarp() { warp_meetings[warp()].meet(32); }
// A number of another lane.
template <class T> T of_lane(T x, unsigned lane) {
    static_assert(sizeof(T) == 4);
    memcpy(&slots[warp()][threadIdx.x % 32], &x, 4);
    __syncwarp();
    memcpy(&x, &slots[warp()][lane % 32], 4);
    __syncwarp();
    return x;
}
template <class T> T __shfl_sync(unsigned, T x, unsigned lane) { return of_lane(x, lane); }
template <class T> T __shfl_xor_sync(unsigned, T x, unsigned by) { return of_lane(x, (threadIdx.x % 32) ^ by); }
inline unsigned __ballot_sync(unsigned, bool x) {
    slots[warp()][threadIdx.x % 32] = x;
    __syncwarp();
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; ++lane) all |= slots[warp()][lane] << lane;
    __syncwarp();
    return all;
}
inline void host_sync_all() { block_meeting.meet(384); }

// What hopper.cuh has of these is another name's.
#define TensorMap HopperTensorMap
#define barrier_init hopper_barrier_init
#define fence_barriers hopper_fence_barriers
#define barrier_expect hopper_barrier_expect
#define barrier_arrive hopper_barrier_arrive
#define barrier_wait hopper_barrier_wait
#define named_sync hopper_named_sync
#define registers_down hopper_registers_down
#define registers_up hopper_registers_up
#define tma_load hopper_tma_load
#define fence_async hopper_fence_async
#define wgmma_begin hopper_wgmma_begin
#define wgmma_commit hopper_wgmma_commit
#define wgmma_wait hopper_wgmma_wait
#define pin hopper_pin
#define two_bf16 hopper_two_bf16
#define store_shared hopper_store_shared
#define load_shared hopper_load_shared
#include "hopper.cuh"
#undef TensorMap
#undef barrier_init
#undef fence_barriers
#undef barrier_expect
#undef barrier_arrive
#undef barrier_wait
#undef named_sync
#undef registers_down
#undef registers_up
#undef tma_load
#undef fence_async
#undef wgmma_begin
#undef wgmma_commit
#undef wgmma_wait
#undef pin
#undef two_bf16
#undef store_shared
#undef load_shared

struct Barrier {
    unsigned arrivals = 0, left = 0, phase = 0;
    long bytes = 0;
};
std::mutex barriers_mutex;
std::condition_variable barriers_change;
std::map<u32, Barrier> barriers;

inline void barrier_init(u32 at, u32 arrivals) {
    std::lock_guard lock(barriers_mutex);
    barriers[at] = Barrier{arrivals, arrivals, 0, 0};
}
inline void barrier_change(u32 at, unsigned arrived, long bytes) {
    std::lock_guard lock(barriers_mutex);
    Barrier &barrier = barriers.at(at);
    barrier.left -= arrived, barrier.bytes += bytes;
    if (barrier.left == 0 && barrier.bytes == 0) {
        barrier.left = barrier.arrivals, ++barrier.phase;
        barriers_change.notify_all();
    }
}
inline void barrier_expect(u32 at, u32 bytes) { barrier_change(at, 1, long(bytes)); }
inline void barrier_arrive(u32 at) { barrier_change(at, 1, 0); }
inline void barrier_wait(u32 at, u32 parity) {
    std::unique_lock lock(barriers_mutex);
    barriers_change.wait(lock, [&] { return (barriers.at(at).phase & 1) != parity; });
}
inline void fence_barriers() {}
inline void fence_async() {}
inline void named_sync(u32 barrier, u32 threads) { named_meetings[barrier].meet(threads); }
template <u32 N> void registers_down() {}
template <u32 N> void registers_up() {}
inline void wgmma_begin() {}
inline void wgmma_commit() {}
template <u32 LEFT> void wgmma_wait() {}
inline void pin(float &) {}

template <class T> T load(u32 from) {
    T x;
    memcpy(&x, memory + from - SHARED_BEGIN, sizeof(T));
    return x;
}
template <class T> void store(u32 to, T x) { memcpy(memory + to - SHARED_BEGIN, &x, sizeof(T)); }
inline void store_shared(u32 to, u32 x) { store(to, x); }
inline void store_shared_16(u32 to, uint4 x) { store(to, x); }
inline void store_shared_one(u32 to, float x) { store(to, x); }
inline void store_shared_half(u32 to, u16 x) { store(to, x); }
inline u32 load_shared_word(u32 from) { return load<u32>(from); }
inline float load_shared(u32 from) { return load<float>(from); }
inline u32 to_bf16(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 two_bf16(float first, float second) { return to_bf16(first) | to_bf16(second) << 16; }
inline void four_e4m3(float (&x)[4], u32 four) {
    for (u32 i = 0; i < 4; ++i) {
        const int byte = four >> i * 8 & 0xff, exponent = byte >> 3 & 15, mantissa = byte & 7;
        const int whole = exponent == 0 ? mantissa : 8 + mantissa, power = exponent == 0 ? -9 : exponent - 10;
        const float size = std::ldexp(float(whole), power);
        x[i] = byte & 0x80 ? -size : size;
    }
}

// A matrix of BF16 numbers in memory, in boxes of 64 columns and rows; those outside are zeros.
struct TensorMap {
    const u16 *numbers;
    u64 columns, rows;
};
inline u32 with_swizzle(u32 at) { return at ^ ((at >> 7 & 7) << 4); }
inline void tma_load(u32 to, const TensorMap *map, u32 x, u32 y, u32 barrier) {
    for (u32 row = 0; row < 64; ++row) {
        for (u32 column = 0; column < 64; ++column) {
            const bool inside = x + column < map->columns && y + row < map->rows;
            const u16 number = inside ? map->numbers[(y + row) * map->columns + x + column] : 0;
            store(with_swizzle(to + row * 128 + column * 2), number);
        }
    }
    barrier_change(barrier, 0, -64 * 128);
}

// Matrix instructions: each thread computes its own sums, of factors that descriptors name.
struct Factor {
    u32 start, leading, stride;
    explicit Factor(u64 descriptor)
        : start(u32(descriptor & 0x3fff) << 4), leading(u32(descriptor >> 16 & 0x3fff) << 4),
          stride(u32(descriptor >> 32 & 0x3fff) << 4) {
        if (descriptor >> 62 != 1) abort();
    }
    float by_rows(u32 row, u32 k) const { return at(start + row / 8 * stride + row % 8 * 128 + k * 2); }
    float by_columns(u32 column, u32 k) const {
        return at(start + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2);
    }
    static float at(u32 address) { return __uint_as_float(u32(load<u16>(with_swizzle(address))) << 16); }
};
template <u32 N> void multiply(float (&sums)[N], u64 a, u64 b, bool keep, bool by_columns) {
    const Factor left(a), right(b);
    const u32 thread = threadIdx.x % 128, lane = thread % 32;
    for (u32 i = 0; i < N; ++i) {
        const u32 row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (u32 k = 0; k < 16; ++k) {
            sum += left.by_rows(row, k) * (by_columns ? right.by_columns(column, k) : right.by_rows(column, k));
        }
        sums[i] = keep ? sums[i] + sum : sum;
    }
}
inline void wgmma_logits(float (&sums)[16], u64 a, u64 b, bool keep) { multiply(sums, a, b, keep, false); }
inline void wgmma_values(float (&sums)[128], u64 a, u64 b, bool keep) { multiply(sums, a, b, keep, true); }

#include "attend.cuh"
#if SPARSE
#include "sparse.cu"
#else
#include "dense.cu"
#endif
namespace combine_kernel {
#include "combine.cu"
}

void launch(u32 x, u32 y, u32 threads, const std::function<void()> &kernel) {
    gridDim = {x, y, 1};
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) {
            memset(memory, 0xff, sizeof memory);
            barriers.clear();
            std::vector<std::thread> all;
            for (u32 i = 0; i < threads; ++i) {
                all.emplace_back([&kernel, i] {
                    threadIdx = {i, 0, 0};
                    kernel();
                });
            }
            for (std::thread &thread : all) thread.join();
        }
    }
}

template <class T> std::vector<T> read() {
    u32 count = 0;
    if (fread(&count, 4, 1, stdin) != 1) abort();
    // So that what is read by 16 bytes is aligned; one more, so that there is an address.
    std::vector<T> numbers(count + 1);
    if (fread(numbers.data(), sizeof(T), count, stdin) != count) abort();
    numbers.resize(count);
    return numbers;
}

// Sizes, numbers and tables from standard input; the result to standard output.
int main() {
    const auto sizes = read<u32>();
    const u32 batch = sizes[0], queries = sizes[1], heads = sizes[2], kv_heads = sizes[3], columns = sizes[4];
    const u32 causal = sizes[5], scale = sizes[6], tiles = sizes[7];
    const auto cache = read<u16>(), q = read<u16>();
    const auto table = read<int>(), lengths = read<int>(), words = read<int>(), pieces = read<int>();
    const auto sink = read<float>();
    const float *sinks = sink.empty() ? nullptr : sink.data();
    const u32 rows = queries * heads, stored = u32(pieces[batch]) * rows, grid_y = u32(words.size() / 8);
    std::vector<u16> out(batch * rows * 512, 0x7fff);
    std::vector<float> lse(batch * rows, NAN), part_out(stored * 512, NAN), part_lse(stored, NAN);
    const Part *parts_ = reinterpret_cast<const Part *>(words.data());
    launch(tiles, grid_y, 384, [&] {
#if SPARSE
        sparse(reinterpret_cast<const u8 *>(cache.data()), q.data(), table.data(), lengths.data(), parts_,
               pieces.data(), sinks, out.data(), lse.data(), part_out.data(), part_lse.data(), queries, heads,
               columns, scale);
#else
        const TensorMap map = {cache.data(), kv_heads * 576ul, cache.size() / (kv_heads * 576ul)};
        dense(map, q.data(), table.data(), lengths.data(), parts_, pieces.data(), out.data(), lse.data(),
              part_out.data(), part_lse.data(), queries, heads, kv_heads, columns, causal, scale);
#endif
    });
    launch(batch * rows, 1, 128, [&] {
        combine_kernel::combine(part_out.data(), part_lse.data(), pieces.data(), sinks, out.data(), lse.data(), queries,
                                heads);
    });
    fwrite(out.data(), 2, out.size(), stdout);
    fwrite(lse.data(), 4, lse.size(), stdout);
    return 0;
}

// Other meanings of what the kernels need of a GPU, for processors: a thread is a thread, and a block a process, so that
// what its threads share is a variable. Set before: LANES_OF_WARP, WARPS_OF_BLOCK.
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace kernels {
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define INLINE inline
#define SHARED static
#define KERNEL void
#define UNROLL

constexpr u32 LANES = LANES_OF_WARP, WARPS = WARPS_OF_BLOCK, THREADS = LANES * WARPS;

inline u32 number_of_block;
inline thread_local u32 number_of_thread;
inline u32 block() { return number_of_block; }
inline u32 thread() { return number_of_thread; }

struct Barrier {
    pthread_barrier_t barrier;
    explicit Barrier(u32 threads) { pthread_barrier_init(&barrier, nullptr, threads); }
    void wait() { pthread_barrier_wait(&barrier); }
};
// Lanes that don't meet at the same call wait for ever: the test's limit ends that.
struct Meeting {
    Barrier barrier{LANES};
    float numbers[LANES];
    u32 bits[LANES];
};
inline Barrier of_block{THREADS};
inline Meeting of_warps[WARPS];
inline bool of_threads[THREADS];

inline void sync_block() { of_block.wait(); }
inline void sync_warp() { of_warps[thread() / LANES].barrier.wait(); }
inline bool any_in_block(bool holds) {
    of_threads[thread()] = holds;
    sync_block();
    bool any = false;
    for (const bool one : of_threads) any |= one;
    sync_block();
    return any;
}
inline u32 ballot(bool holds) {
    Meeting &warp = of_warps[thread() / LANES];
    warp.bits[thread() % LANES] = holds;
    sync_warp();
    u32 all = 0;
    for (u32 lane = 0; lane < LANES; ++lane) all |= warp.bits[lane] << lane;
    sync_warp();
    return all;
}
inline u32 ones(u32 bits) { return u32(__builtin_popcount(bits)); }
inline u32 lowest(u32 bits) { return u32(__builtin_ctz(bits)); }
inline float greatest_in_warp(float x) {
    Meeting &warp = of_warps[thread() / LANES];
    warp.numbers[thread() % LANES] = x;
    sync_warp();
    for (const float other : warp.numbers) x = x < other ? other : x;
    sync_warp();
    return x;
}

inline u32 load_acquire(const u32 *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void store_release(u32 *to, u32 x) { __atomic_store_n(to, x, __ATOMIC_RELEASE); }
inline void add_shared(u32 *to, u32 x) { __atomic_fetch_add(to, x, __ATOMIC_RELAXED); }
inline void set_once(u64 *to, u64 x) {
    u64 nothing = 0;
    __atomic_compare_exchange_n(to, &nothing, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
inline u64 now_ns() {
    using namespace std::chrono;
    return u64(duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
}
inline void rest() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

inline float bits_float(u32 bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline u32 float_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
// Compiled without joining operations.
inline float sum(float a, float b) { return a + b; }
inline float product(float a, float b) { return a * b; }
inline float quotient(float a, float b) { return a / b; }
inline float greater(float a, float b) { return a < b ? b : a; }
inline float magnitude(float x) { return std::fabs(x); }
// By looking at both neighbours of a number that is no NaN.
inline u8 to_e4m3(float x) {
    const auto value = [](u32 bits) {
        const int exponent = int(bits >> 3), mantissa = int(bits & 7);
        return exponent == 0 ? std::ldexp(double(mantissa), -9) : std::ldexp(8.0 + mantissa, exponent - 10);
    };
    const double above = std::fabs(double(x));
    u32 low = 0;
    while (low < 0x7e && value(low + 1) <= above) ++low;
    if (low < 0x7e) {
        const double down = above - value(low), up = value(low + 1) - above;
        if (up < down || (up == down && low % 2 == 1)) ++low;
    }
    return u8(low | (std::signbit(x) ? 0x80 : 0));
}

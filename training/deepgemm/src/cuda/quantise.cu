// From BF16 to FP8 with a scale for each row and 128 columns: a warp for each. Set before: POWERS (scales are rounded up
// to powers of two).
constexpr u32 ROWS = 8;

// `wrong` becomes the place of the first number that isn't finite, and its bits below.
extern "C" __global__ void __launch_bounds__(ROWS * 32)
    per_token(const u16 *x, u8 *values, float *scales, u64 *wrong, u32 rows, u32 columns, u32 stride) {
    const u32 row = blockIdx.x * ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 column = blockIdx.y * 128 + lane * 4;
    if (row >= rows) return;
    const u64 at = u64(row) * columns + column;
    float numbers[4] = {0, 0, 0, 0};
    float most = 1e-4f;
    if (column < columns) {
        const uint2 four = *reinterpret_cast<const uint2 *>(x + at);
        const u32 bits[4] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if ((bits[i] & 0x7f80) == 0x7f80) atomicMin(wrong, (at + i) << 16 | bits[i]);
            numbers[i] = from_bf16(bits[i]);
            most = fmaxf(most, fabsf(numbers[i]));
        }
    }
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
    }
    float scale = __fdiv_rn(most, 448.0f);
    if (POWERS) {
        const u32 bits = __float_as_uint(scale);
        const u32 exponent = (bits >> 23 & 255) + ((bits & 0x7fffff) != 0);
        scale = __uint_as_float(smaller(greater(exponent, 1u), 254u) << 23);
    }
    const float inverse = __fdiv_rn(1.0f, scale);
    if (lane == 0) scales[u64(blockIdx.y) * stride + row] = scale;
    if (column >= columns) return;
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(__fmul_rn(numbers[1], inverse)), "f"(__fmul_rn(numbers[0], inverse)));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(__fmul_rn(numbers[3], inverse)), "f"(__fmul_rn(numbers[2], inverse)));
    *reinterpret_cast<u32 *>(values + at) = u32(high) << 16 | low;
}

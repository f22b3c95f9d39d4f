// Pieces of requests put together: a block of 128 threads for each query and head of each request. `pieces` counts
// those before each request; with one there is nothing to do.
constexpr u32 VALUES = 512;

extern "C" __global__ void __launch_bounds__(VALUES / 4, 8)
    combine(const float *part_out, const float *part_lse, const int *pieces, const float *sink, u16 *out, float *lse,
            u32 queries, u32 heads) {
    const u32 rows = queries * heads, request = blockIdx.x / rows, row = blockIdx.x % rows;
    const u32 from = pieces[request], to = pieces[request + 1];
    if (to - from < 2) return;
    const float nothing = __uint_as_float(0xff800000);
    float greatest = nothing;
    for (u32 piece = from; piece < to; ++piece) greatest = fmaxf(greatest, part_lse[u64(piece) * rows + row]);
    const float base = greatest == nothing ? 0 : greatest;
    float sum = 0, x[4] = {0, 0, 0, 0};
    for (u32 piece = from; piece < to; ++piece) {
        const u64 at = u64(piece) * rows + row;
        const float weight = exp2f(part_lse[at] - base);
        const float4 mean = reinterpret_cast<const float4 *>(part_out + at * VALUES)[threadIdx.x];
        sum += weight;
        x[0] += weight * mean.x, x[1] += weight * mean.y, x[2] += weight * mean.z, x[3] += weight * mean.w;
    }
    const u32 head = row % heads, query = row / heads;
    const float all = sum == 0 ? __uint_as_float(0x7f800000) : (base + log2f(sum)) * 0.69314718055994530942f;
    float factor = sum == 0 ? 0 : 1 / sum;
    if (sink != nullptr && sum != 0) factor *= 1 / (1 + expf(sink[head] - all));
    const uint2 both = make_uint2(two_bf16(x[0] * factor, x[1] * factor), two_bf16(x[2] * factor, x[3] * factor));
    reinterpret_cast<uint2 *>(out + u64(blockIdx.x) * VALUES)[threadIdx.x] = both;
    if (threadIdx.x == 0) lse[(u64(request) * heads + head) * queries + query] = all;
}

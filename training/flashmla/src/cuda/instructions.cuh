// Instructions besides those of hopper.cuh, one function each.
__device__ __forceinline__ void store_shared_16(u32 to, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}
__device__ __forceinline__ void store_shared_one(u32 to, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
__device__ __forceinline__ void store_shared_half(u32 to, u16 x) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(x) : "memory");
}
__device__ __forceinline__ u32 load_shared_word(u32 from) {
    u32 x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}
// By way of F16, in which E4M3 numbers are exact.
__device__ __forceinline__ void four_e4m3(float (&x)[4], u32 four) {
    u16 half[4];
    asm("{\n.reg .b16 low, high;\n.reg .b32 first, second;\nmov.b32 {low, high}, %4;\n"
        "cvt.rn.f16x2.e4m3x2 first, low;\ncvt.rn.f16x2.e4m3x2 second, high;\n"
        "mov.b32 {%0, %1}, first;\nmov.b32 {%2, %3}, second;\n}"
        : "=h"(half[0]), "=h"(half[1]), "=h"(half[2]), "=h"(half[3])
        : "r"(four));
#pragma unroll
    for (u32 i = 0; i < 4; ++i) asm("cvt.f32.f16 %0, %1;" : "=f"(x[i]) : "h"(half[i]));
}

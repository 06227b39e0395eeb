// GELU in GPT-2's form: 0.5 x (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + exp(-2 u)).
// Every step is spelt out, so that no compilation contracts it differently: same bits in passes of every width.
#pragma once

#include "kernels/ptx.cuh"

__device__ inline float gelu(float x) {
    const float cubed = __fmul_rn(__fmul_rn(x, x), x);
    const float u = __fmul_rn(0.797884561f, __fmaf_rn(0.044715f, cubed, x));
    const float d = __fadd_rn(1.0f, ptx::exp2(fminf(__fmul_rn(u, -2.88539008f), 126.0f)));  // -2 / ln 2
    return ptx::quotient(x, d);
}

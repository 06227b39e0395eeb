// Noise as a pure function of (seed, position, token): Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) and the Gumbel
// variate made of it. exp and log are our own, built of correctly rounded operations alone, so that host and device
// agree to the last bit; their error stays below 4 units in the last place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "model/host_device.h"

HD inline float bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
HD inline uint32_t float_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

// The first of the four words of Philox4x32-10 with key `seed` and counter (position, token, 0, 0).
HD inline uint32_t philox(uint64_t seed, uint32_t position, uint32_t token) {
    uint32_t c0 = position, c1 = token, c2 = 0, c3 = 0;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
        c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
        c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(p1);
        c3 = uint32_t(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

// 2 artanh(s) for |s| <= 0.172, by its series: the last term left out is below 2^-27 of the first.
HD inline float twice_artanh(float s) {
    const float q = s * s;
    float sum = fmaf(q, 2.0f / 9, 2.0f / 7);
    sum = fmaf(sum, q, 2.0f / 5);
    sum = fmaf(sum, q, 2.0f / 3);
    return fmaf(sum * q, s, 2 * s);
}

// log(x) for a positive normal x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
HD inline float log_positive(float x) {
    const uint32_t offset = float_to_bits(x) - 0x3f3504f3u;  // 0x3f3504f3 is sqrt(1/2)
    const int e = int32_t(offset) >> 23;
    const float m = bits_to_float((offset & 0x7fffffu) + 0x3f3504f3u);
    const float log_m = twice_artanh((m - 1) / (m + 1));
    return fmaf(float(e), 0.693145752f, fmaf(float(e), 1.42860677e-6f, log_m));  // ln 2 in two parts
}

// exp(x) for -87 <= x <= 0. k, the integer nearest to x / ln 2, comes of adding a number whose unit is 1.
HD inline float exp_in_range(float x) {
    const float shifted = fmaf(x, 1.44269504f, 0x1.8p23f), k = shifted - 0x1.8p23f;
    const float r = fmaf(k, -1.42860677e-6f, fmaf(k, -0.693145752f, x));  // |r| <= 0.347
    float sum = fmaf(r, 1.0f / 5040, 1.0f / 720);
    sum = fmaf(sum, r, 1.0f / 120);
    sum = fmaf(sum, r, 1.0f / 24);
    sum = fmaf(sum, r, 1.0f / 6);
    sum = fmaf(sum, r, 0.5f);
    sum = fmaf(sum, r, 1.0f);
    sum = fmaf(sum, r, 1.0f);
    return bits_to_float(float_to_bits(sum) + (float_to_bits(shifted) << 23));  // sum 2^k
}
// exp(x) for x <= 0; 0 below -87.
HD inline float exp_negative(float x) {
    return x >= -87.0f ? exp_in_range(x) : 0;
}
// exp(x) for x <= 0 in units of 2^-40, rounded down; 0 for NaN. By shifts: the GPU converts slowly.
HD inline uint64_t exp_fixed(float x) {
    const uint32_t bits = float_to_bits(exp_in_range(fmaxf(x, -28.0f)));  // exp(-28) < 2^-40
    return uint64_t((bits & 0x7fffffu) | 0x800000u) << 32 >> (142 - (bits >> 23));
}

// A standard Gumbel variate -log(-log u), u = (philox + 1/2) / 2^32. Near u = 1 the inner logarithm is taken of 1 - v,
// v exact, so that large variates keep their full precision. It lies between -3.1 and 22.9.
HD inline float gumbel(uint64_t seed, uint32_t position, uint32_t token) {
    const uint32_t r = philox(seed, position, token);
    float exponential;       // -log u
    if (r >= 0xb504f334u) {  // u >= sqrt(1/2)
        const float v = (float(~r) + 0.5f) * 0x1p-32f;
        exponential = twice_artanh(v / (2 - v));
    } else {
        exponential = -log_positive((float(r) + 0.5f) * 0x1p-32f);
    }
    return -log_positive(exponential);
}

/* Sixteen numbers at once, in an order of operations that is the same on every processor. */

#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LONG_CODE static __attribute__((noinline, unused)) /* many instructions: in every place they take long to compile */

typedef float v16 __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef uint8_t v16b __attribute__((vector_size(16)));

INLINE v16 load(const float *from) {
    v16 value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE v16i load_ints(const void *from) {
    v16i value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* The same, loaded once: compilers would load it again for each use, and loads are what is scarce. */
INLINE v16i load_once(const void *from) {
#if defined(__AVX512F__)
    v16i value;
    __asm__("vmovdqu64 %1, %0" : "=v"(value) : "m"(*(const char(*)[64])from));
    return value;
#else
    return load_ints(from);
#endif
}

INLINE void store(float *to, v16 value) { memcpy(to, &value, sizeof value); }

INLINE v16 all(float value) { return value - (v16){0}; }

INLINE v16i all_ints(int32_t value) { return value - (v16i){0}; }

INLINE v16 reals(v16i value) { return __builtin_convertvector(value, v16); }

/* a * b + c, rounded once. */
#if defined(__AVX512F__)
INLINE v16 fma16(v16 a, v16 b, v16 c) { return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#else
LONG_CODE v16 fma16(v16 a, v16 b, v16 c) {
    v16 result;
    for (int lane = 0; lane < 16; lane++) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return result;
}
#endif

INLINE v16 max16(v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    v16i greater = a > b;
    return (v16)((greater & (v16i)a) | (~greater & (v16i)b));
#endif
}

INLINE v16 min16(v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_min_ps((__m512)a, (__m512)b);
#else
    v16i less = a < b;
    return (v16)((less & (v16i)a) | (~less & (v16i)b));
#endif
}

/* Each of the 16 lanes of sum += four unsigned times four signed bytes. */
#if defined(__AVX512VNNI__)
INLINE void dot4(v16i *sum, v16i unsigned_bytes, v16i signed_bytes) {
    /* Written out because compilers spill the sums otherwise. */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}
#else
LONG_CODE void dot4(v16i *sum, v16i unsigned_bytes, v16i signed_bytes) {
    for (int i = 0; i < 32; i += 8) *sum += (unsigned_bytes >> i & 255) * (signed_bytes << (24 - i) >> 24);
}
#endif

/* The same four bytes in every lane. */
INLINE v16i spread4(const void *bytes) {
#if defined(__AVX512F__)
    v16i result;
    __asm__("vpbroadcastd %1, %0" : "=v"(result) : "m"(*(const char(*)[4])bytes));
    return result;
#else
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return all_ints(four);
#endif
}

INLINE float sum16(v16 value) {
    v8 a, b;
    memcpy(&a, &value, sizeof a);
    memcpy(&b, (const char *)&value + sizeof a, sizeof b);
    a += b;
    v4 c, d;
    memcpy(&c, &a, sizeof c);
    memcpy(&d, (const char *)&a + sizeof c, sizeof d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

INLINE int32_t sum16i(v16i value) {
    v8i a, b;
    memcpy(&a, &value, sizeof a);
    memcpy(&b, (const char *)&value + sizeof a, sizeof b);
    a += b;
    v4i c, d;
    memcpy(&c, &a, sizeof c);
    memcpy(&d, (const char *)&a + sizeof c, sizeof d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

INLINE float greater_of(float a, float b) { return a > b ? a : b; }

INLINE float most16(v16 value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)value);
#else
    float most = value[0];
    for (int lane = 1; lane < 16; lane++) most = greater_of(value[lane], most);
    return most;
#endif
}

INLINE v16 magnitude(v16 value) { return (v16)((v16i)value & 0x7fffffff); }

/* Nearest integer, ties to even, for magnitudes below 2^22. */
INLINE v16 nearest(v16 value) { return (value + 12582912.0f) - 12582912.0f; }

/* e^x to about 1 unit in the last place; 0 < result, inputs are clamped to [-87, 88]. */
INLINE v16 exp16(v16 x) {
    x = min16(max16(x, all(-87.0f)), all(88.0f));
    v16 n = nearest(x * 1.44269504f);
    v16 r = fma16(n, all(-0.693359375f), x);
    r = fma16(n, all(2.12194440e-4f), r);
    v16 p = all(1.9875691500e-4f); /* Cephes expf */
    p = fma16(p, r, all(1.3981999507e-3f));
    p = fma16(p, r, all(8.3334519073e-3f));
    p = fma16(p, r, all(4.1665795894e-2f));
    p = fma16(p, r, all(1.6666665459e-1f));
    p = fma16(p, r, all(5.0000001201e-1f));
    p = fma16(p, r * r, r + 1.0f);
    v16i power = (__builtin_convertvector(n, v16i) + 127) << 23;
    return p * (v16)power;
}

/* bfloat16 as float. */
INLINE v16 widen(const uint16_t *from) {
    v16h half;
    memcpy(&half, from, sizeof half);
    return (v16)(__builtin_convertvector(half, v16i) << 16);
}

/* `count` floats (a multiple of 16) as signed bytes, such that x = result * to; `total` is the sum of the bytes. */
INLINE float round_group(const float *x, int32_t count, int8_t *to, int32_t *total) {
    v16 most = all(0);
    for (int32_t i = 0; i < count; i += 16) most = max16(magnitude(load(x + i)), most);
    float peak = most16(most), inverse = peak > 1e-30f ? 127.0f / peak : 0;
    v16i sum = all_ints(0);
    for (int32_t i = 0; i < count; i += 16) {
        v16i whole = __builtin_convertvector(nearest(load(x + i) * inverse), v16i);
        sum += whole;
        v16b bytes = __builtin_convertvector(whole, v16b);
        memcpy(to + i, &bytes, sizeof bytes);
    }
    *total = sum16i(sum);
    return peak / 127.0f;
}

#endif

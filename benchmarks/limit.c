/* What the processor can do at most in the kernels' own terms: int8 multiply-adds from registers, and reading memory.
 * Compiled by benchmarks/limit.py with the kernels' flags. */

#include <stdint.h>

#include "lanes.h"

#define SUMS 12 /* independent, as in linear.h: enough to hide the instruction's latency */
#define ROUNDS 40000000 /* a quarter of a second */

/* Multiply-adds that one call does: SUMS * ROUNDS * 64. The sums are twelve variables because compilers keep an array of
 * them in memory, and then it is the stores that are measured. */
int64_t multiply_adds(void) {
    v16i ones = all_ints(0x01010101);
    v16i a = ones, b = ones, c = ones, d = ones, e = ones, f = ones, g = ones, h = ones, i = ones, j = ones, k = ones, l = ones;
    for (int round = 0; round < ROUNDS; round++) {
        dot4(&a, ones, ones), dot4(&b, ones, ones), dot4(&c, ones, ones), dot4(&d, ones, ones);
        dot4(&e, ones, ones), dot4(&f, ones, ones), dot4(&g, ones, ones), dot4(&h, ones, ones);
        dot4(&i, ones, ones), dot4(&j, ones, ones), dot4(&k, ones, ones), dot4(&l, ones, ones);
    }
    volatile int32_t used = sum16i(a + b + c + d + e + f + g + h + i + j + k + l);
    (void)used;
    return (int64_t)SUMS * ROUNDS * 64;
}

/* Read `bytes` (a multiple of 256) once. */
void read_all(const char *from, int64_t bytes) {
    v16i sum[4] = {all_ints(0), all_ints(0), all_ints(0), all_ints(0)};
    for (int64_t at = 0; at < bytes; at += 256)
        for (int i = 0; i < 4; i++) sum[i] += load_ints(from + at + 64 * i);
    volatile int32_t used = sum16i(sum[0] + sum[1] + sum[2] + sum[3]);
    (void)used;
}

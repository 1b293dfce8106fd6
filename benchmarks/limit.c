/* What the processor can do at most in the kernels' own terms: int8 multiply-adds from registers, and reading memory.
 * Compiled by benchmarks/limit.py with the kernels' flags. */

#include <stdint.h>

#include "lanes.h"

#define SUMS 12   /* independent, as in linear.h: enough to hide the instruction's latency */
#define ROUNDS 20000000 /* a quarter of a second */

/* Multiply-adds that one call does: SUMS * ROUNDS * 64. */
int64_t multiply_adds(void) {
    v16i sum[SUMS], ones = all_ints(0x01010101);
    for (int i = 0; i < SUMS; i++) sum[i] = all_ints(i);
    for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) dot4(&sum[i], ones, ones);
    }
    v16i all_of_them = all_ints(0);
    for (int i = 0; i < SUMS; i++) all_of_them += sum[i];
    volatile int32_t used = sum16i(all_of_them);
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

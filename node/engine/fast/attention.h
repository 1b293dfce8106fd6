/* Attention over blocks of cached keys and values. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include "lanes.h"
#include "team.h"

#define BLOCK 32 /* tokens in a block of keys and values */
#if defined(__AVX512F__)
#define MQ 12     /* query vectors that share a read of keys: 24 sums */
#define HALF_MQ 6 /* that share one of values */
#else
#define MQ 4 /* fewer registers */
#define HALF_MQ 2
#endif
#define SPAN 128  /* tokens whose shares stand together, queries side by side: their distance is known beforehand */
#define FLUSH 2048 /* blocks after which integer sums become real: 65,536 times 255 times 127 is less than 2^31 */

/* A block's keys and values of one layer and one head, in float32:
 *     keys (head_dim, 32), values (32, head_dim);
 * in int8, with a scale for each token:
 *     keys uint8 around 128 (head_dim / 4, 32, 4), values int8 (8, head_dim, 4), key scales (32,), value scales (32,). */
INLINE int64_t piece_bytes(int int8, int64_t head_dim) {
    return int8 ? 2 * BLOCK * (head_dim + (int64_t)sizeof(float)) : 2 * BLOCK * head_dim * (int64_t)sizeof(float);
}

/* Where a sequence's pieces stand, for one layer and one head. */
typedef struct {
    const char *blocks;
    const int32_t *table;
    int64_t block_bytes, offset;
    int32_t head_dim;
} Pieces;

INLINE const char *piece(const Pieces *p, int32_t block) { return p->blocks + p->table[block] * p->block_bytes + p->offset; }

/* A query vector, and where its result goes. */
typedef struct {
    const float *query;   /* (head_dim,), float32 only */
    const int8_t *whole;  /* (head_dim,), int8 only */
    float scale;          /* of whole */
    int32_t less;         /* -128 times the sum of whole */
    int32_t seen;         /* tokens that it sees */
    float *result;        /* (head_dim,) */
} Query;

/* Room for MQ query vectors, and for their scores and shares of `tokens` tokens. */
INLINE int64_t room_bytes(int64_t tokens, int64_t head_dim) {
    return MQ * (head_dim + (tokens + SPAN - 1) / SPAN * SPAN * (4 + 2));
}

/* Lanes t to t + 15 that are below `seen`, as a mask. */
INLINE v16i below(int32_t t, int32_t seen) {
    v16i lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane + t < all_ints(seen);
}

/* Scores of `count` queries to all tokens of `blocks` blocks. */
INLINE void scores8(int count, const Pieces *p, const Query *queries, int32_t blocks, char *room, float *scores) {
    int64_t width = (int64_t)blocks * BLOCK;
    for (int32_t i = 0; i < p->head_dim; i += 4) /* four dimensions of all queries side by side */
        for (int q = 0; q < count; q++) memcpy(room + i * count + 4 * q, queries[q].whole + i, 4);
    for (int32_t block = 0; block < blocks; block++) {
        const char *keys = piece(p, block), *fours = room, *scales = keys + 2 * BLOCK * p->head_dim;
        const char *next = piece(p, block + 1 < blocks ? block + 1 : 0);
        v16i sum[MQ][2];
        for (int q = 0; q < count; q++) sum[q][0] = sum[q][1] = all_ints(queries[q].less);
        for (int32_t i = 0; i < p->head_dim; i += 4, keys += 4 * BLOCK, next += 4 * BLOCK, fours += 4 * count) {
            __builtin_prefetch(next), __builtin_prefetch(next + LINE);
            v16i low = load_once(keys), high = load_once(keys + 64);
            for (int q = 0; q < count; q++) {
                v16i four = spread4(fours + 4 * q);
                dot4(&sum[q][0], low, four);
                dot4(&sum[q][1], high, four);
            }
        }
        v16 low = load((const float *)scales), high = load((const float *)scales + 16);
        for (int q = 0; q < count; q++) {
            store(scores + q * width + block * BLOCK, reals(sum[q][0]) * low * queries[q].scale);
            store(scores + q * width + block * BLOCK + 16, reals(sum[q][1]) * high * queries[q].scale);
        }
    }
}

/* Scores of one query become shares of the values in 16 bits: for every SPAN tokens their high bytes, then the low ones,
 * `stride` bytes after those of the SPAN before. Result: what a share of 1 stands for. */
INLINE float shares8(const Pieces *p, float *scores, int32_t seen, int32_t width, uint8_t *shares, int64_t stride) {
    int32_t whole = seen / 16 * 16, padded = (seen + 15) / 16 * 16;
    if (whole < padded) { /* what stands behind the end may be anything */
        v16i mask = below(whole, seen);
        store(scores + whole, (v16)((mask & (v16i)load(scores + whole)) | (~mask & (v16i)all(-INFINITY))));
    }
    v16 most = all(-INFINITY), total = all(0), weightiest = all(0);
    for (int32_t t = 0; t < padded; t += 16) most = max16(load(scores + t), most);
    float peak = most16(most);
    const float *scales = NULL;
    for (int32_t t = 0; t < padded; t += 16) {
        if (t % BLOCK == 0) scales = (const float *)(piece(p, t / BLOCK) + 2 * BLOCK * p->head_dim) + BLOCK;
        v16 share = exp16(load(scores + t) - peak), weighted = share * load(scales + t % BLOCK);
        if (t + 16 > seen) {
            share = (v16)(below(t, seen) & (v16i)share);
            weighted = (v16)(below(t, seen) & (v16i)weighted);
        }
        total += share;
        weightiest = max16(weighted, weightiest);
        store(scores + t, weighted);
    }
    float largest = most16(weightiest), inverse = largest > 1e-30f ? 65535.0f / largest : 0;
    for (int32_t t = 0; t < padded; t += 16) {
        v16i number = __builtin_convertvector(nearest(load(scores + t) * inverse), v16i);
        v16b above = __builtin_convertvector(number >> 8, v16b), rest = __builtin_convertvector(number & 255, v16b);
        uint8_t *to = shares + t / SPAN * stride + t % SPAN;
        memcpy(to, &above, sizeof above);
        memcpy(to + SPAN, &rest, sizeof rest);
    }
    for (int32_t t = padded; t < width; t += 16) {
        uint8_t *to = shares + t / SPAN * stride + t % SPAN;
        memset(to, 0, 16);
        memset(to + SPAN, 0, 16);
    }
    return largest / 65535.0f / sum16(total);
}

/* `vecs` times 16 dimensions from `from` on of the results of `count` queries. */
INLINE void mix8(int count, int vecs, const Pieces *p, const Query *queries, int32_t from, int32_t blocks,
                 const uint8_t *shares, int64_t stride, const float *units) {
    v16 real[MQ][4];
    for (int q = 0; q < count; q++)
        for (int j = 0; j < vecs; j++) real[q][j] = all(0);
    for (int32_t first = 0; first < blocks; first += FLUSH) {
        int32_t last = blocks - first < FLUSH ? blocks : first + FLUSH;
        v16i sum[MQ][4][2];
        for (int q = 0; q < count; q++)
            for (int j = 0; j < vecs; j++) sum[q][j][0] = sum[q][j][1] = all_ints(0);
        for (int32_t block = first; block < last; block++) {
            const char *values = piece(p, block) + BLOCK * p->head_dim + 4 * from;
            const char *next = piece(p, block + 1 < blocks ? block + 1 : 0) + BLOCK * p->head_dim + 4 * from;
            const uint8_t *mine = shares + block / (SPAN / BLOCK) * stride + block % (SPAN / BLOCK) * BLOCK;
            for (int32_t t = 0; t < BLOCK; t += 4, values += 4 * p->head_dim, next += 4 * p->head_dim, mine += 4) {
                v16i part[4];
                for (int j = 0; j < vecs; j++) part[j] = load_once(values + 64 * j), __builtin_prefetch(next + 64 * j);
                for (int q = 0; q < count; q++) {
                    v16i upper = spread4(mine + 2 * SPAN * q), lower = spread4(mine + 2 * SPAN * q + SPAN);
                    for (int j = 0; j < vecs; j++) dot4(&sum[q][j][0], upper, part[j]), dot4(&sum[q][j][1], lower, part[j]);
                }
            }
        }
        for (int q = 0; q < count; q++)
            for (int j = 0; j < vecs; j++) real[q][j] += fma16(reals(sum[q][j][0]), all(256.0f), reals(sum[q][j][1]));
    }
    for (int q = 0; q < count; q++)
        for (int j = 0; j < vecs; j++) store(queries[q].result + from + 16 * j, real[q][j] * units[q]);
}

/* Attention of `count` queries, of one sequence and one head, in int8. */
INLINE void attend8(int count, const Pieces *p, const Query *queries, int32_t length, char *room) {
    int32_t blocks = (length + BLOCK - 1) / BLOCK, width = blocks * BLOCK, from;
    float *scores = (float *)(room + MQ * p->head_dim), units[MQ];
    uint8_t *shares = (uint8_t *)(scores + (int64_t)MQ * width);
    int64_t stride = 2 * SPAN * count;
    scores8(count, p, queries, blocks, room, scores);
    for (int q = 0; q < count; q++)
        units[q] = shares8(p, scores + (int64_t)q * width, queries[q].seen, width, shares + 2 * SPAN * q, stride);
    int part = count > HALF_MQ ? HALF_MQ : count, vecs = part > 3 ? 2 : 4;
    for (int q = 0; q < count; q += part) {
        for (from = 0; p->head_dim - from >= 16 * vecs; from += 16 * vecs)
            mix8(part, vecs, p, queries + q, from, blocks, shares + 2 * SPAN * q, stride, units + q);
        for (; from < p->head_dim; from += 16)
            mix8(part, 1, p, queries + q, from, blocks, shares + 2 * SPAN * q, stride, units + q);
    }
}

/* The same in float32. */
INLINE void attend32(int count, const Pieces *p, const Query *queries, int32_t length, char *room) {
    int32_t d = p->head_dim, blocks = (length + BLOCK - 1) / BLOCK;
    int64_t width = (int64_t)blocks * BLOCK;
    float *scores = (float *)room, inverse[MQ];
    for (int32_t block = 0; block < blocks; block++) {
        const float *keys = (const float *)piece(p, block);
        v16 sum[MQ][2];
        for (int q = 0; q < count; q++) sum[q][0] = sum[q][1] = all(0);
        for (int32_t i = 0; i < d; i++, keys += BLOCK) {
            v16 low = load(keys), high = load(keys + 16);
            for (int q = 0; q < count; q++) {
                v16 spread = all(queries[q].query[i]);
                sum[q][0] = fma16(spread, low, sum[q][0]);
                sum[q][1] = fma16(spread, high, sum[q][1]);
            }
        }
        for (int q = 0; q < count; q++) {
            store(scores + q * width + block * BLOCK, sum[q][0]);
            store(scores + q * width + block * BLOCK + 16, sum[q][1]);
        }
    }
    for (int q = 0; q < count; q++) {
        float *mine = scores + q * width;
        int32_t seen = queries[q].seen, padded = (seen + 15) / 16 * 16;
        for (int32_t t = seen; t < padded; t++) mine[t] = -INFINITY;
        v16 most = all(-INFINITY), total = all(0);
        for (int32_t t = 0; t < padded; t += 16) most = max16(load(mine + t), most);
        float peak = most16(most);
        for (int32_t t = 0; t < padded; t += 16) store(mine + t, exp16(load(mine + t) - peak));
        for (int32_t t = seen; t < width; t++) mine[t] = 0;
        for (int32_t t = 0; t < padded; t += 16) total += load(mine + t);
        inverse[q] = 1.0f / sum16(total);
    }
    for (int32_t from = 0; from < d; from += 16) {
        v16 sum[MQ];
        for (int q = 0; q < count; q++) sum[q] = all(0);
        for (int32_t block = 0; block < blocks; block++) {
            const float *values = (const float *)piece(p, block) + BLOCK * d + from;
            int32_t here = length - block * BLOCK < BLOCK ? length - block * BLOCK : BLOCK;
            for (int32_t t = 0; t < here; t++)
                for (int q = 0; q < count; q++)
                    sum[q] = fma16(all(scores[q * width + block * BLOCK + t]), load(values + t * d), sum[q]);
        }
        for (int q = 0; q < count; q++) store(queries[q].result + from, sum[q] * inverse[q]);
    }
}

#define ATTEND(n) \
    if (int8) attend8(n, p, queries, length, room); else attend32(n, p, queries, length, room); \
    taken = n

/* Attention of any number of queries of one sequence and one head. */
static void attend(int count, int int8, const Pieces *p, const Query *queries, char *room) {
    for (int taken; count; count -= taken, queries += taken) {
        int size = count >= MQ ? MQ : count >= HALF_MQ ? HALF_MQ : count;
        int32_t length = 0;
        for (int i = 0; i < size; i++) length = queries[i].seen > length ? queries[i].seen : length;
        switch (size) {
            case MQ: ATTEND(MQ); break;
            case HALF_MQ: ATTEND(HALF_MQ); break;
#if defined(__AVX512F__)
            case 4: ATTEND(4); break;
            case 3: ATTEND(3); break;
            case 2: ATTEND(2); break;
#endif
            default: ATTEND(1); break; /* also of 5 */
        }
    }
}

/* A token's key and value into its place in a block. */
static void remember(int int8, char *piece_, int32_t slot, int32_t d, const float *key, const float *value,
                     int8_t *room) {
    if (!int8) {
        float *keys = (float *)piece_, *values = keys + BLOCK * d;
        for (int32_t i = 0; i < d; i++) keys[i * BLOCK + slot] = key[i];
        memcpy(values + slot * d, value, (size_t)d * sizeof *value);
        return;
    }
    char *keys = piece_, *values = keys + BLOCK * d + slot / 4 * 4 * d + slot % 4;
    float *scales = (float *)(keys + 2 * BLOCK * d);
    int32_t total;
    scales[slot] = round_group(key, d, room, &total);
    for (int32_t i = 0; i < d; i += 4) {
        uint32_t four;
        memcpy(&four, room + i, sizeof four);
        four ^= 0x80808080u; /* + 128 each */
        memcpy(keys + i * BLOCK + 4 * slot, &four, sizeof four);
    }
    scales[BLOCK + slot] = round_group(value, d, room, &total);
    for (int32_t i = 0; i < d; i++) values[4 * i] = room[i];
}

#endif

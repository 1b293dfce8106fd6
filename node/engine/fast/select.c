/* Choosing the next token of many sequences: `nsllm.node.engine.distribution` with the same result to the bit.
 *
 * Weights are whole numbers, so sums do not depend on their order; every float operation is IEEE single precision and
 * stands in the order of the definition (compile with -ffp-contract=off and without -ffast-math). Blocks of tokens that
 * are too unlikely to have any weight are passed over, and only tokens near the most likely one are put in order; all
 * others are looked at again only if those do not hold enough probability.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 128 /* tokens that are passed over together */
#define LANES 16
#define BITS 40 /* the most likely token weighs 2^BITS */
#define LOWEST -60.0f /* exponents below give weight 0 */
#define NEAR_BITS 10 /* what weighs 2^-10 of the most likely token is looked at first, then 2^-20, and so on */
#define ID_BITS 23
#define LAST_ID (((uint64_t)1 << ID_BITS) - 1)
#define MICRO 1000000
#define MOST_TOP 20
#define INLINE static inline __attribute__((always_inline))

typedef unsigned __int128 wide;

typedef struct {
    const float *logits;   /* (vocabulary,), never written */
    const uint32_t *mask;  /* a bit for each token that is allowed, or null */
    const int32_t *banned, *biased, *seen, *counts;
    const float *bias;     /* (biased_count,) */
    int32_t mask_words, banned_count, biased_count, seen_count;
    float scale;           /* log2(e) / temperature; 0: the most likely token */
    float repetition, presence, frequency;
    int64_t top_k, top_p, min_p; /* the last two in millionths; top_k 0 and top_p of a million: off */
    uint64_t draw;         /* 53 bits */
    int32_t top_count;     /* most likely tokens to tell; -1: no probabilities at all */
    /* results */
    int32_t token;         /* -1: none may be chosen */
    int32_t top_found;
    int32_t top[MOST_TOP];
    float top_logits[MOST_TOP];
    float chosen_logit, highest;
    uint64_t total;        /* of the weights of the logits as they came, at temperature 1 */
} Row;

typedef struct {
    float *scores;   /* (vocabulary,) */
    float *highs;    /* highest score of each block */
    uint64_t *sums;  /* weights of each block */
    uint64_t *keys;  /* (vocabulary + 1,) weight and token, the lower token higher */
} Scratch;

/* Highest of the numbers, blockwise and in all; NaN is passed over. */
static float find_highest(const float *x, int32_t count, float *highs) {
    float highest = -INFINITY;
    for (int32_t start = 0, block = 0; start < count; start += BLOCK, block++) {
        float high[LANES], top = -INFINITY;
        for (int l = 0; l < LANES; l++) high[l] = -INFINITY;
        int32_t end = count - start < BLOCK ? count : start + BLOCK, i = start;
        for (; i + LANES <= end; i += LANES)
            for (int l = 0; l < LANES; l++) high[l] = x[i + l] > high[l] ? x[i + l] : high[l];
        for (; i < end; i++) high[0] = x[i] > high[0] ? x[i] : high[0];
        for (int l = 0; l < LANES; l++) top = high[l] > top ? high[l] : top;
        highs[block] = top;
        highest = top > highest ? top : highest;
    }
    return highest;
}

/* Whole part of 2^BITS * 2^((x - highest) * scale). */
INLINE uint64_t weigh(float x, float highest, float scale) {
    float y = (x - highest) * scale;
    y = y > LOWEST ? y : LOWEST;
    float whole = floorf(y), part = y - whole;
    float power = 0.001879316521808505f;
    power = power * part + 0.008990999311208725f;
    power = power * part + 0.055818673223257065f;
    power = power * part + 0.240159273147583f;
    power = power * part + 0.6931517124176025f;
    power = power * part + 1.0f;
    return ((uint64_t)(int32_t)(power * 8388608.0f) << (BITS - 23)) >> (int32_t)-whole;
}

/* Sum of the weights that are at least `least`, by block and in all. */
static uint64_t weigh_all(const float *x, int32_t count, float highest, float scale, uint64_t least, const float *highs,
                          uint64_t *sums) {
    uint64_t total = 0;
    for (int32_t start = 0, block = 0; start < count; start += BLOCK, block++) {
        sums[block] = 0;
        if (weigh(highs[block], highest, scale) < least) continue;
        int32_t size = count - start < BLOCK ? count - start : BLOCK;
        uint64_t sum = 0;
        for (int32_t i = 0; i < size; i++) {
            uint64_t w = weigh(x[start + i], highest, scale);
            sum += w >= least ? w : 0;
        }
        sums[block] = sum;
        total += sum;
    }
    return total;
}

/* The tokens that weigh at least `least`, as keys; how many. */
static int32_t gather(const float *x, int32_t count, float highest, float scale, uint64_t least, const float *highs,
                      uint64_t *keys) {
    int32_t found = 0;
    for (int32_t start = 0, block = 0; start < count; start += BLOCK, block++) {
        if (weigh(highs[block], highest, scale) < least) continue;
        int32_t size = count - start < BLOCK ? count - start : BLOCK;
        uint64_t weights[BLOCK];
        for (int32_t i = 0; i < size; i++) weights[i] = weigh(x[start + i], highest, scale);
        for (int32_t i = 0; i < size; i++) {
            keys[found] = weights[i] << ID_BITS | (LAST_ID - (uint64_t)(start + i));
            found += weights[i] >= least;
        }
    }
    return found;
}

INLINE void larger_first(uint64_t *a, uint64_t *b) {
    uint64_t larger = *a > *b ? *a : *b, smaller = *a > *b ? *b : *a;
    *a = larger, *b = smaller;
}

/* Where the keys, the largest first, reach `wanted` together: by weight, or each counted 1. That many of the largest
 * stand at the beginning afterwards, the last of them at its end; -1 if all do not reach it. Quickselect. */
static int32_t reach(uint64_t *keys, int32_t count, uint64_t wanted, int by_count, uint64_t *sum) {
    int32_t first = 0, last = count;
    uint64_t before = 0;
    while (first < last) {
        int32_t end = last - 1, middle = first;
        uint64_t *any = &keys[first + (end - first) / 2];
        larger_first(&keys[first], any);
        larger_first(&keys[first], &keys[end]);
        larger_first(&keys[end], any); /* the median of three */
        uint64_t pivot = keys[end], part = 0;
        for (int32_t i = first; i < end; i++) {
            uint64_t key = keys[i];
            int larger = key > pivot;
            keys[i] = keys[middle];
            keys[middle] = key;
            part += larger ? (by_count ? 1 : key >> ID_BITS) : 0;
            middle += larger;
        }
        keys[end] = keys[middle];
        keys[middle] = pivot;
        uint64_t own = by_count ? 1 : pivot >> ID_BITS;
        if (before + part >= wanted) {
            last = middle;
        } else if (before + part + own >= wanted) {
            *sum = before + part + own;
            return middle + 1;
        } else {
            before += part + own;
            first = middle + 1;
        }
    }
    *sum = before;
    return -1;
}

static uint64_t share(uint64_t total, int64_t micro) { return (uint64_t)(((wide)total * micro + MICRO - 1) / MICRO); }

/* What top-k and top-p leave, as the first keys: how many. The lowest of them, and how much the `top_k` most likely
 * weigh together, are told as well. */
static int32_t keep_likely(const Row *row, const float *x, int32_t count, float highest, uint64_t least, uint64_t total,
                           const Scratch *s, uint64_t *sum, uint64_t *lowest, uint64_t *k_sum) {
    int by_k = row->top_k > 0;
    uint64_t near = (uint64_t)1 << BITS;
    uint64_t wanted = by_k ? (uint64_t)row->top_k : share(total, row->top_p);
    int32_t kept = -1, all_found = 0;
    while (kept < 0) {
        near = near >> NEAR_BITS > least ? near >> NEAR_BITS : least;
        int32_t found = gather(x, count, highest, row->scale, near, s->highs, s->keys);
        kept = reach(s->keys, found, wanted ? wanted : 1, by_k, sum);
        if (kept < 0 && near == least) kept = found, all_found = 1;
    }
    *k_sum = total;
    if (by_k) {
        *sum = 0;
        for (int32_t i = 0; i < kept; i++) *sum += s->keys[i] >> ID_BITS;
        *k_sum = *sum;
        if (row->top_p < MICRO) {
            wanted = share(*sum, row->top_p);
            kept = reach(s->keys, kept, wanted ? wanted : 1, 0, sum);
            all_found = 0;
        }
    }
    *lowest = all_found ? least << ID_BITS : s->keys[kept - 1];
    return kept;
}

/* A token of those that top-k and top-p leave, most likely first. */
static int32_t draw_limited(const Row *row, const float *x, int32_t count, float highest, uint64_t least, uint64_t total,
                            const Scratch *s) {
    uint64_t sum, lowest, k_sum;
    int32_t kept = keep_likely(row, x, count, highest, least, total, s, &sum, &lowest, &k_sum);
    uint64_t target = (uint64_t)((wide)row->draw * sum >> 53);
    return (int32_t)(LAST_ID - (s->keys[reach(s->keys, kept, target + 1, 0, &sum) - 1] & LAST_ID));
}

/* A token of all that have weight, in order of token id. */
static int32_t draw_any(const Row *row, const float *x, int32_t count, float highest, uint64_t least, uint64_t total,
                        const uint64_t *sums) {
    uint64_t target = (uint64_t)((wide)row->draw * total >> 53), before = 0;
    int32_t block = 0;
    while (before + sums[block] <= target) before += sums[block++];
    for (int32_t i = block * BLOCK; i < count; i++) {
        uint64_t w = weigh(x[i], highest, row->scale);
        before += w >= least ? w : 0;
        if (before > target) return i;
    }
    return -1; /* not reached: the block's sum passes the target */
}

/* The scores that are chosen from: a copy of the logits with mask, bans, bias and penalties. */
static void adjust(const Row *row, int32_t count, float *x) {
    memcpy(x, row->logits, (size_t)count * sizeof *x);
    if (row->mask)
        for (int32_t word = 0; word * 32 < count; word++) {
            uint32_t bits = word < row->mask_words ? row->mask[word] : 0;
            int32_t size = count - word * 32 < 32 ? count - word * 32 : 32;
            if (bits == UINT32_MAX) continue;
            for (int32_t i = 0; i < size; i++) x[word * 32 + i] = bits >> i & 1 ? x[word * 32 + i] : -INFINITY;
        }
    for (int32_t i = 0; i < row->banned_count; i++)
        if (row->banned[i] < count) x[row->banned[i]] = -INFINITY;
    for (int32_t i = 0; i < row->biased_count; i++)
        if (row->biased[i] < count) x[row->biased[i]] += row->bias[i];
    for (int32_t i = 0; i < row->seen_count; i++) {
        if (row->seen[i] >= count) continue;
        float z = x[row->seen[i]];
        z = z < 0 ? z * row->repetition : z / row->repetition;
        z = z - row->frequency * (float)row->counts[i];
        x[row->seen[i]] = row->counts[i] ? z - row->presence : z;
    }
}

/* Probabilities before any parameter: the sum of weights and the most likely tokens, the lower token first. */
static void tell(Row *row, int32_t count, const Scratch *s) {
    const float *x = row->logits;
    row->highest = find_highest(x, count, s->highs);
    row->total = weigh_all(x, count, row->highest, (float)1.4426950408889634, 1, s->highs, s->sums);
    row->chosen_logit = row->token < 0 ? 0 : x[row->token];
    int32_t found = 0, most = row->top_count;
    for (int32_t i = 0; i < count && most; i++) {
        float least = found < most ? -INFINITY : row->top_logits[most - 1];
        if (i % BLOCK == 0 && !(s->highs[i / BLOCK] > least)) {
            i += BLOCK - 1;
            continue;
        }
        if (!(x[i] > least)) continue;
        int32_t at = found < most ? found++ : most - 1;
        for (; at > 0 && row->top_logits[at - 1] < x[i]; at--) {
            row->top[at] = row->top[at - 1];
            row->top_logits[at] = row->top_logits[at - 1];
        }
        row->top[at] = i;
        row->top_logits[at] = x[i];
    }
    row->top_found = found;
}

/* What is chosen from: the logits, or a copy that mask, bans, bias and penalties have changed. */
static const float *scores_of(const Row *row, int32_t count, const Scratch *s) {
    if (!row->mask && !row->banned_count && !row->biased_count && !row->seen_count) return row->logits;
    adjust(row, count, s->scores);
    return s->scores;
}

INLINE uint64_t least_weight(const Row *row) {
    uint64_t least = share((uint64_t)1 << BITS, row->min_p < MICRO ? row->min_p : MICRO);
    return least ? least : 1;
}

static int32_t choose(const Row *row, const float *x, int32_t count, const Scratch *s) {
    float highest = find_highest(x, count, s->highs);
    if (highest == -INFINITY) return -1;
    if (row->scale != 0) {
        uint64_t least = least_weight(row);
        uint64_t total = weigh_all(x, count, highest, row->scale, least, s->highs, s->sums);
        if (total && (row->top_k > 0 || row->top_p < MICRO))
            return draw_limited(row, x, count, highest, least, total, s);
        if (total) return draw_any(row, x, count, highest, least, total, s->sums);
    }
    int32_t block = 0, i;
    while (s->highs[block] != highest) block++;
    for (i = block * BLOCK; x[i] != highest; i++) {}
    return i;
}

/* A token for each row, and what is asked about probabilities. */
void choose_rows(Row *rows, int32_t row_count, int32_t vocabulary, const Scratch *scratch) {
    for (int32_t i = 0; i < row_count; i++) {
        rows[i].token = choose(&rows[i], scores_of(&rows[i], vocabulary, scratch), vocabulary, scratch);
        if (rows[i].top_count >= 0) tell(&rows[i], vocabulary, scratch);
    }
}

/* Strain and surprise of a published token: `nsllm.node.engine.strain`. */

static const double LEVELS[] = {0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0};
#define LEVEL_COUNT (int32_t)(sizeof LEVELS / sizeof *LEVELS)
#define BEYOND 16.0

typedef struct {
    double above, below, loose; /* weights: of what comes before and after the token for sure, and of all there may be */
    int64_t count_above;
} Around;

/* What a ratio of weights may be multiplied by. */
INLINE double bending(double bend, double scale) { return exp2(bend * scale < 500 ? -bend * scale : -500); }

/* What stands around the token if logits may be bent by `bend` in all. */
static Around look_around(const Row *row, const float *x, int32_t count, float highest, int32_t token, uint64_t least,
                          double bend, int ranked, const Scratch *s) {
    Around found = {0, 0, 0, 0};
    double ratio = bending(bend, row->scale), loose = (double)least * ratio, strict = (double)least / ratio;
    float high = (float)(x[token] + bend), low = (float)(x[token] - bend);
    for (int32_t start = 0, block = 0; start < count; start += BLOCK, block++) {
        if (!weigh(s->highs[block], highest, row->scale)) continue;
        int32_t end = count - start < BLOCK ? count : start + BLOCK;
        for (int32_t i = start; i < end; i++) {
            double w = (double)weigh(x[i], highest, row->scale);
            if (w == 0 || w < loose) continue;
            found.loose += w;
            int kept = w >= strict;
            if (ranked ? x[i] > high : i < token && kept) {
                found.above += w;
                found.count_above++;
            } else if ((ranked ? x[i] < low : i > token) && kept) {
                found.below += w;
            }
        }
    }
    return found;
}

/* The share of a set that weighs `part` of `whole`, after its weights were multiplied by `ratio` against the others'. */
INLINE double bent(double part, double whole, double ratio) {
    double rest = whole - part > 0 ? whole - part : 0;
    return part > 0 ? part * ratio / (part * ratio + rest) : 0;
}

static int possible(const Row *row, const float *x, int32_t count, float highest, int32_t token,
                    uint64_t least, double total, double k_sum, double bend, const Scratch *s) {
    int ranked = row->top_k > 0 || row->top_p < MICRO;
    double ratio = bending(bend, row->scale), top_p = row->top_p < MICRO ? (double)row->top_p / MICRO : 1;
    double own = (double)weigh(x[token], highest, row->scale);
    if (own == 0 || own < (double)least * ratio) return 0;
    Around at = look_around(row, x, count, highest, token, least, bend, ranked, s);
    if (row->top_k > 0 && at.count_above >= row->top_k) return 0;
    double start = bent(at.above, at.loose, ratio), end = 1 - bent(at.below, at.loose, ratio);
    double most_kept = 1, least_kept = top_p;
    if (row->top_k > 0) {
        most_kept = row->min_p > 0 ? 1 : bent(k_sum, total, 1 / ratio);
        least_kept *= bent(k_sum, at.loose, ratio);
    }
    if (ranked && at.count_above && !(start < top_p * most_kept)) return 0; /* the first may always be drawn */
    double draw = (double)row->draw / 9007199254740992.0;
    return start <= draw * most_kept && end >= draw * least_kept;
}

/* `results`: strain in logits, then surprise in nats and its variance. */
void trace_row(Row *row, int32_t count, const Scratch *s, int32_t token, double *results) {
    const float *x = scores_of(row, count, s);
    int32_t own = choose(row, x, count, s);
    results[0] = BEYOND, results[1] = results[2] = 0;
    row->token = own;
    if (own < 0 || token < 0 || token >= count || !(x[token] > -INFINITY)) return;
    float highest = x[own];
    for (int32_t block = 0; block * BLOCK < count; block++)
        if (s->highs[block] > highest) highest = s->highs[block];
    uint64_t least = least_weight(row), total = 0;
    if (row->scale != 0) total = weigh_all(x, count, highest, row->scale, least, s->highs, s->sums);
    if (!total) {
        if (own == token) results[0] = 0;
        for (int32_t level = LEVEL_COUNT - 1; level >= 0; level--)
            if ((double)highest - x[token] <= LEVELS[level]) results[0] = LEVELS[level];
        return;
    }
    uint64_t sum = total, lowest = least << ID_BITS, k_sum = total;
    if (row->top_k > 0 || row->top_p < MICRO)
        keep_likely(row, x, count, highest, least, total, s, &sum, &lowest, &k_sum);
    if (own == token) results[0] = 0;
    for (int32_t level = 1; results[0] == BEYOND && level < LEVEL_COUNT; level++)
        if (possible(row, x, count, highest, token, least, (double)total, (double)k_sum, LEVELS[level], s))
            results[0] = LEVELS[level];
    double nats = row->scale * 0.6931471805599453, first = 0, second = 0;
    for (int32_t start = 0, block = 0; start < count; start += BLOCK, block++) {
        if (weigh(s->highs[block], highest, row->scale) < lowest >> ID_BITS) continue;
        int32_t end = count - start < BLOCK ? count : start + BLOCK;
        for (int32_t i = start; i < end; i++) {
            uint64_t w = weigh(x[i], highest, row->scale);
            if ((w << ID_BITS | (LAST_ID - (uint64_t)i)) < lowest || !w) continue;
            double share_of = (double)w / sum, y = nats * ((double)x[i] - highest);
            first += share_of * y;
            second += share_of * y * y;
        }
    }
    results[1] = first - nats * ((double)x[token] - highest);
    results[2] = second - first * first > 0 ? second - first * first : 0;
}

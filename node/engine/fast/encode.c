/* BERT sentence encoder on CPUs that multiply bfloat16: products in it, sums, norms and attention in float32.
 *
 * A row is one token of one text, and no text is padded. What a text's vector is does not depend on what is read beside
 * it: every sum has its own order.
 */

#include <stddef.h>

#include "lanes.h"
#include "team.h"

#define COLS 48   /* outputs in a weight tile: 3 vectors of 16 lanes */
#define VECS 3
#define HROWS 8   /* rows that a weight tile is applied to at once: 24 sums stay in registers */
#define QUERIES 4 /* of a text's tokens that share a read of keys and values */

/* A linear layer; inputs and outputs are multiples of 16. */
typedef struct {
    const uint16_t *weight; /* (tiles, inputs / 2, 48, 2) bfloat16 */
    const float *bias;      /* (outputs,) */
    int32_t inputs, outputs;
} Half;

typedef struct {
    const Half *qkv, *out, *up, *down; /* (layers,) each */
    const float *norms;                /* (2 * layers + 1, 2, hidden): weight and bias, in the order of their use */
    const float *words, *positions;    /* (vocabulary, hidden), (most tokens, hidden) */
    int32_t layers, hidden, heads, inner;
    float epsilon;
} Encoder;

typedef struct {
    const int32_t *tokens; /* (rows,) of one text after another */
    const int32_t *starts; /* (texts + 1,) where each text begins */
    float *vectors;        /* (texts, hidden) unit vectors */
    int32_t texts, longest;
} Texts;

/* Whether these kernels can encode here: 1 or 0. */
int32_t encodes(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

#if defined(__AVX512BF16__)

typedef struct {
    const Encoder *encoder;
    const Texts *texts;
    float *x;        /* (rows, hidden) */
    float *h;        /* (rows, widest output that stays real) */
    uint16_t *input; /* (rows, hidden) of the next linear layer, or of attention's */
    uint16_t *wide;  /* (rows, inner) of the last one of a layer */
    char *rooms;     /* (threads, room_bytes) */
    int64_t room_bytes;
    int32_t rows, layer, norm; /* the present layer, the next norm */
} Encoding;

/* One application of a layer: real numbers to `to`, or, through GELU, bfloat16 to `wide`. */
typedef struct {
    const Half *layer;
    const uint16_t *rows;
    float *to;
    uint16_t *wide;
    int32_t count, pieces;
} Pass;

INLINE void dot2(v16 *sum, v16i weights, v16i two) {
    /* Written out because compilers spill the sums otherwise. */
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(two));
}

INLINE void narrow(uint16_t *to, v16 value) {
    __m256bh half = _mm512_cvtneps_pbh((__m512)value);
    memcpy(to, &half, sizeof half);
}

/* x / 2 * (1 + erf(x / sqrt(2))); erf to 1.5e-7 (Abramowitz and Stegun 7.1.26). */
INLINE v16 gelu16(v16 x) {
    v16 y = magnitude(x) * 0.70710678f;
    v16 t = 1.0f / fma16(y, all(0.3275911f), all(1.0f));
    v16 p = fma16(t, all(1.061405429f), all(-1.453152027f));
    p = fma16(p, t, all(1.421413741f));
    p = fma16(p, t, all(-0.284496736f));
    p = fma16(p, t, all(0.254829592f));
    v16 rest = p * t * exp16(-(y * y)); /* 1 - erf(y) */
    v16i below = x < all(0);
    v16 upper = 2.0f - rest;
    return x * 0.5f * (v16)((below & (v16i)rest) | (~below & (v16i)upper));
}

INLINE void two_inputs(int rows, const uint16_t *x, int64_t stride, const uint16_t *w, v16 sum[HROWS][VECS]) {
    v16i part[VECS];
#pragma GCC unroll 3
    for (int j = 0; j < VECS; j++) part[j] = load_once(w + 32 * j);
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
        v16i two = spread4(x + m * stride);
#pragma GCC unroll 3
        for (int j = 0; j < VECS; j++) dot2(&sum[m][j], part[j], two);
    }
}

/* What came of a tile and some rows goes where it is wanted. */
static void finish_half(int rows, const Pass *a, int32_t tile, int32_t row, const float sums[HROWS][COLS]) {
    int32_t outputs = a->layer->outputs, first = tile * COLS, end = first + COLS < outputs ? first + COLS : outputs;
    for (int m = 0; m < rows; m++)
        for (int32_t column = first; column < end; column += 16) {
            int64_t at = (int64_t)(row + m) * outputs + column;
            v16 result = load(sums[m] + column - first) + load(a->layer->bias + column);
            if (a->wide) narrow(a->wide + at, gelu16(result));
            else store(a->to + at, result);
        }
}

/* `rows` rows times a tile, and away with the results. */
INLINE void apply_half(int rows, const Pass *a, int32_t tile, int32_t row) {
    const Half *layer = a->layer;
    int64_t inputs = layer->inputs;
    const uint16_t *w = layer->weight + tile * COLS * inputs, *x = a->rows + row * inputs;
    v16 sum[HROWS][VECS];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
#pragma GCC unroll 3
        for (int j = 0; j < VECS; j++) sum[m][j] = all(0);
    }
    for (int64_t k = 0; k < inputs; k += 2, w += 2 * COLS) two_inputs(rows, x + k, inputs, w, sum);
    float sums[HROWS][COLS]; /* what is indexed by a variable would not stay in registers */
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
#pragma GCC unroll 3
        for (int j = 0; j < VECS; j++) store(sums[m] + 16 * j, sum[m][j]);
    }
    finish_half(rows, a, tile, row, sums);
}

static void apply_half_item(const void *argument, int32_t item, int32_t worker) {
    const Pass *a = argument;
    int32_t tiles = (a->layer->outputs + COLS - 1) / COLS, tile = item % tiles, piece = item / tiles;
    int32_t row = (int32_t)((int64_t)a->count * piece / a->pieces);
    int32_t end = (int32_t)((int64_t)a->count * (piece + 1) / a->pieces);
    for (; end - row >= HROWS; row += HROWS) apply_half(HROWS, a, tile, row);
    if (end - row >= 4) apply_half(4, a, tile, row), row += 4;
    switch (end - row) {
        case 3: apply_half(3, a, tile, row); break;
        case 2: apply_half(2, a, tile, row); break;
        case 1: apply_half(1, a, tile, row); break;
        default: break;
    }
    (void)worker;
}

static void apply_layer(Team *team, const Encoding *e, const Half *layer, const uint16_t *rows, float *to, uint16_t *wide) {
    /* Threads share rows if there are enough of them, else outputs. */
    int32_t pieces = e->rows >= 4 * HROWS * team->size && !team->alone ? team->size : 1;
    Pass pass = {layer, rows, to, wide, e->rows, pieces};
    share(team, apply_half_item, &pass, (layer->outputs + COLS - 1) / COLS * pieces);
}

/* A row of x, normalized in place, and as input of the next linear layer. */
static void norm_row(const Encoding *e, int32_t row) {
    int32_t hidden = e->encoder->hidden;
    const float *weight = e->encoder->norms + (int64_t)2 * e->norm * hidden, *bias = weight + hidden;
    float *x = e->x + (int64_t)row * hidden;
    v16 total = all(0), squares = all(0);
    for (int32_t i = 0; i < hidden; i += 16) total += load(x + i);
    float mean = sum16(total) / (float)hidden;
    for (int32_t i = 0; i < hidden; i += 16) {
        v16 apart = load(x + i) - mean;
        squares = fma16(apart, apart, squares);
    }
    float inverse = 1.0f / sqrtf(sum16(squares) / (float)hidden + e->encoder->epsilon);
    for (int32_t i = 0; i < hidden; i += 16) {
        v16 normed = fma16((load(x + i) - mean) * inverse, load(weight + i), load(bias + i));
        store(x + i, normed);
        narrow(e->input + (int64_t)row * hidden + i, normed);
    }
}

static void embed_row(const void *argument, int32_t text, int32_t worker) {
    const Encoding *e = argument;
    int32_t hidden = e->encoder->hidden, first = e->texts->starts[text];
    for (int32_t row = first; row < e->texts->starts[text + 1]; row++) {
        const float *word = e->encoder->words + (int64_t)e->texts->tokens[row] * hidden;
        const float *position = e->encoder->positions + (int64_t)(row - first) * hidden;
        float *x = e->x + (int64_t)row * hidden;
        for (int32_t i = 0; i < hidden; i += 16) store(x + i, load(word + i) + load(position + i));
        norm_row(e, row);
    }
    (void)worker;
}

static void add_row(const void *argument, int32_t row, int32_t worker) {
    const Encoding *e = argument;
    int32_t hidden = e->encoder->hidden;
    float *x = e->x + (int64_t)row * hidden, *h = e->h + (int64_t)row * hidden;
    for (int32_t i = 0; i < hidden; i += 16) store(x + i, load(x + i) + load(h + i));
    norm_row(e, row);
    (void)worker;
}

/* Attention of `count` tokens from `row` on, of one head, over `seen` tokens; keys (d, width), shares (QUERIES, width). */
INLINE void attend_rows(int count, const Encoding *e, int32_t row, int32_t first, int32_t seen, int32_t head,
                        const float *keys, float *shares) {
    int32_t hidden = e->encoder->hidden, d = hidden / e->encoder->heads, width = (seen + 15) / 16 * 16;
    const float *query = e->h + (int64_t)row * 3 * hidden + head * d;
    float scale = 1.0f / sqrtf((float)d), inverse[QUERIES];
    for (int32_t t = 0; t < width; t += 16) {
        v16 sum[QUERIES];
        for (int q = 0; q < count; q++) sum[q] = all(0);
        for (int32_t i = 0; i < d; i++) {
            v16 key = load(keys + (int64_t)i * width + t);
            for (int q = 0; q < count; q++) sum[q] = fma16(all(query[(int64_t)q * 3 * hidden + i]), key, sum[q]);
        }
        for (int q = 0; q < count; q++) store(shares + q * width + t, sum[q] * scale);
    }
    for (int q = 0; q < count; q++) {
        float *mine = shares + q * width;
        for (int32_t t = seen; t < width; t++) mine[t] = -INFINITY;
        v16 most = all(-INFINITY), total = all(0);
        for (int32_t t = 0; t < width; t += 16) most = max16(load(mine + t), most);
        float peak = most16(most);
        for (int32_t t = 0; t < width; t += 16) store(mine + t, exp16(load(mine + t) - peak));
        for (int32_t t = seen; t < width; t++) mine[t] = 0;
        for (int32_t t = 0; t < width; t += 16) total += load(mine + t);
        inverse[q] = 1.0f / sum16(total);
    }
    for (int32_t i = 0; i < d; i += 16) {
        const float *value = e->h + (int64_t)first * 3 * hidden + 2 * hidden + head * d + i;
        v16 sum[QUERIES];
        for (int q = 0; q < count; q++) sum[q] = all(0);
        for (int32_t t = 0; t < seen; t++, value += 3 * hidden) {
            v16 here = load(value);
            for (int q = 0; q < count; q++) sum[q] = fma16(all(shares[q * width + t]), here, sum[q]);
        }
        for (int q = 0; q < count; q++)
            narrow(e->input + (int64_t)(row + q) * hidden + head * d + i, sum[q] * inverse[q]);
    }
}

/* Attention of one text and one head. */
static void attend_item(const void *argument, int32_t item, int32_t worker) {
    const Encoding *e = argument;
    int32_t heads = e->encoder->heads, hidden = e->encoder->hidden, d = hidden / heads, head = item % heads;
    int32_t first = e->texts->starts[item / heads], end = e->texts->starts[item / heads + 1];
    int32_t seen = end - first, width = (seen + 15) / 16 * 16;
    float *keys = (float *)(e->rooms + worker * e->room_bytes), *shares = keys + (int64_t)d * width;
    for (int32_t t = 0; t < seen; t++) {
        const float *key = e->h + (int64_t)(first + t) * 3 * hidden + hidden + head * d;
        for (int32_t i = 0; i < d; i++) keys[(int64_t)i * width + t] = key[i];
    }
    for (int32_t i = 0; i < d; i++)
        for (int32_t t = seen; t < width; t++) keys[(int64_t)i * width + t] = 0;
    int32_t row = first;
    for (; end - row >= QUERIES; row += QUERIES) attend_rows(QUERIES, e, row, first, seen, head, keys, shares);
    for (; row < end; row++) attend_rows(1, e, row, first, seen, head, keys, shares);
}

/* The mean over a text's tokens, of length 1. */
static void finish_text(const void *argument, int32_t text, int32_t worker) {
    const Encoding *e = argument;
    int32_t hidden = e->encoder->hidden, first = e->texts->starts[text], end = e->texts->starts[text + 1];
    float *to = e->texts->vectors + (int64_t)text * hidden;
    v16 squares = all(0);
    for (int32_t i = 0; i < hidden; i += 16) {
        v16 sum = all(0);
        for (int32_t row = first; row < end; row++) sum += load(e->x + (int64_t)row * hidden + i);
        v16 mean = end > first ? sum / (float)(end - first) : sum;
        squares = fma16(mean, mean, squares);
        store(to + i, mean);
    }
    float length = sqrtf(sum16(squares)), inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
    for (int32_t i = 0; i < hidden; i += 16) store(to + i, load(to + i) * inverse);
    (void)worker;
}

static void *place_of(char *base, size_t *used, size_t bytes) {
    void *here = base + *used;
    *used += (bytes + LINE - 1) / LINE * LINE;
    return here;
}

static size_t arrange(Encoding *e, char *base, int32_t threads) {
    const Encoder *m = e->encoder;
    size_t rows = (size_t)e->rows, used = 0, width = ((size_t)e->texts->longest + 15) / 16 * 16;
    e->room_bytes = (int64_t)((((size_t)m->hidden / m->heads + QUERIES) * width * 4 + LINE - 1) / LINE * LINE);
    e->x = place_of(base, &used, rows * m->hidden * 4);
    e->h = place_of(base, &used, rows * m->hidden * 3 * 4);
    e->input = place_of(base, &used, rows * m->hidden * 2);
    e->wide = place_of(base, &used, rows * m->inner * 2);
    e->rooms = place_of(base, &used, (size_t)threads * e->room_bytes);
    return used;
}

/* Vectors of texts. 0, or -1 if there is no memory. */
int32_t encode(Team *team, const Encoder *m, const Texts *texts) {
    Encoding e = {.encoder = m, .texts = texts, .rows = texts->starts[texts->texts]};
    char *base = team_memory(team, arrange(&e, NULL, team->size));
    if (!base) return -1;
    arrange(&e, base, team->size);
    begin_pass(team);
    share(team, embed_row, &e, texts->texts);
    for (e.layer = 0; e.layer < m->layers; e.layer++) {
        apply_layer(team, &e, m->qkv + e.layer, e.input, e.h, NULL);
        share(team, attend_item, &e, texts->texts * m->heads);
        apply_layer(team, &e, m->out + e.layer, e.input, e.h, NULL);
        e.norm++;
        share(team, add_row, &e, e.rows);
        apply_layer(team, &e, m->up + e.layer, e.input, NULL, e.wide);
        apply_layer(team, &e, m->down + e.layer, e.wide, e.h, NULL);
        e.norm++;
        share(team, add_row, &e, e.rows);
    }
    share(team, finish_text, &e, texts->texts);
    end_pass(team, 0.45);
    return 0;
}

#endif

/* Linear layers: some rows times a tile of weights. */

#ifndef LINEAR_H
#define LINEAR_H

#include "lanes.h"
#include "team.h"

#define COLS 48  /* outputs in a weight tile: 3 vectors of 16 lanes */
#define VECS 3
#define MROWS 4  /* rows that a weight tile is applied to at once: 12 integer sums and 12 real ones stay in registers */
#define OWN_ROWS 16 /* rows for which a thread reads the weights by itself */
#define GROUP 64 /* inputs that share an activation scale */

typedef struct {
    const void *weight; /* (tiles, inputs / 4, 48, 4) uint8 around 128, or (tiles, inputs, 48) float32 */
    const float *scale; /* (tiles * 48,) int8 only */
    const float *bias;  /* (tiles * 48,) or null */
    int32_t inputs, outputs;
} Linear;

/* Rows as a linear layer reads them. */
typedef struct {
    void *values;  /* (rows, inputs) int8 or float32 */
    float *scales; /* (rows, inputs / 64), int8 only: what the integers are multiples of */
    int32_t *less; /* (rows, inputs / 64), int8 only: -128 times the sum of the integers, since weights stand 128 too high */
} Rows;

/* One application of a layer, cut into items: a tile and a piece of the rows each. */
typedef struct {
    const Linear *layer;
    Rows rows;
    float *to; /* (count, outputs) */
    int32_t count, pieces, int8;
    int32_t add; /* to what is there */
} Application;

INLINE void four_inputs(int rows, const int8_t *x, int64_t stride, const uint8_t *w, v16i sum[MROWS][VECS]) {
    v16i part[VECS];
    for (int j = 0; j < VECS; j++) part[j] = load_once(w + 64 * j);
    for (int m = 0; m < rows; m++) {
        v16i four = spread4(x + m * stride);
        for (int j = 0; j < VECS; j++) dot4(&sum[m][j], part[j], four);
    }
}

INLINE void int8_tile(int rows, const int8_t *x, int64_t stride, const float *scales, const int32_t *less,
                      int64_t groups, const uint8_t *w, int32_t inputs, v16 results[MROWS][VECS], const char *soon,
                      int32_t lines) {
    v16 real[MROWS][VECS]; /* in registers: what a caller looks at is stored again and again otherwise */
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < VECS; j++) real[m][j] = all(0);
    for (int32_t first = 0; first < inputs; first += GROUP, scales++, less++) {
        int32_t last = inputs - first < GROUP ? inputs : first + GROUP;
        v16i sum[MROWS][VECS];
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < VECS; j++) sum[m][j] = all_ints(less[m * groups]);
        for (int32_t line = 0; line < lines; line++, soon += LINE) __builtin_prefetch(soon, 0, 2);
        int32_t k = first;
#if defined(__AVX512VNNI__)
        if (last - first == GROUP) { /* the loop's own steps cost 5 % otherwise */
#pragma GCC unroll 16
            for (int32_t i = 0; i < GROUP; i += 4) four_inputs(rows, x + first + i, stride, w + i * COLS, sum);
            w += GROUP * COLS, k = last;
        }
#endif
        for (; k < last; k += 4, w += 4 * COLS) four_inputs(rows, x + k, stride, w, sum);
        for (int m = 0; m < rows; m++) {
            v16 scale = all(scales[m * groups]);
            for (int j = 0; j < VECS; j++) real[m][j] = fma16(reals(sum[m][j]), scale, real[m][j]);
        }
    }
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < VECS; j++) results[m][j] = real[m][j];
}

INLINE void float_tile(int rows, const float *x, int64_t stride, const float *w, int32_t inputs,
                       v16 results[MROWS][VECS]) {
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < VECS; j++) results[m][j] = all(0);
    for (int32_t k = 0; k < inputs; k++, w += COLS)
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < VECS; j++)
                results[m][j] = fma16(all(x[m * stride + k]), load(w + 16 * j), results[m][j]);
}

/* Up to MROWS rows times a tile, and away with the results. */
INLINE void apply_tile(int rows, const Application *a, int32_t tile, int32_t row, const char *soon, int32_t lines) {
    const Linear *layer = a->layer;
    int32_t inputs = layer->inputs, first = tile * COLS;
    int64_t groups = (inputs + GROUP - 1) / GROUP, size = (int64_t)tile * COLS * inputs;
    v16 results[MROWS][VECS];
    if (a->int8)
        int8_tile(rows, (const int8_t *)a->rows.values + (int64_t)row * inputs, inputs, a->rows.scales + row * groups,
                  a->rows.less + row * groups, groups, (const uint8_t *)layer->weight + size, inputs, results, soon, lines);
    else
        float_tile(rows, (const float *)a->rows.values + (int64_t)row * inputs, inputs,
                   (const float *)layer->weight + size, inputs, results);
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < VECS; j++) {
            int32_t column = first + 16 * j, here = layer->outputs - column;
            if (here <= 0) break;
            float *to = a->to + (int64_t)(row + m) * layer->outputs + column, old[16] = {0};
            v16 result = results[m][j];
            if (a->int8) result *= load(layer->scale + column);
            if (layer->bias) result += load(layer->bias + column);
            if (here >= 16) {
                store(to, a->add ? load(to) + result : result);
            } else {
                if (a->add) memcpy(old, to, (size_t)here * sizeof *to);
                result += load(old);
                memcpy(to, &result, (size_t)here * sizeof *to);
            }
        }
}

static void apply_item(const void *argument, int32_t item, int32_t worker) {
    const Application *a = argument;
    int32_t tiles = (a->layer->outputs + COLS - 1) / COLS, tile = item % tiles, piece = item / tiles;
    int32_t quads = (a->count + MROWS - 1) / MROWS;
    int32_t row = (int32_t)((int64_t)quads * piece / a->pieces) * MROWS;
    int32_t end = (int32_t)((int64_t)quads * (piece + 1) / a->pieces) * MROWS;
    if (end > a->count) end = a->count;
    /* The tile that this thread probably applies next comes out of memory meanwhile, some lines with each group. */
    int64_t tile_bytes = (int64_t)COLS * a->layer->inputs * (a->int8 ? 1 : 4);
    int32_t next = worker ? tile - 1 : tile + 1;
    const char *soon = (const char *)a->layer->weight + next * tile_bytes;
    int32_t rounds = (end - row + MROWS - 1) / MROWS, lines = (GROUP * COLS / LINE + rounds - 1) / rounds;
    if (next < 0 || next >= tiles) lines = 0;
    for (; row < end; row += MROWS, soon += (int64_t)lines * LINE * (a->layer->inputs / GROUP)) switch (end - row) {
            case 1: apply_tile(1, a, tile, row, soon, lines); break;
            case 2: apply_tile(2, a, tile, row, soon, lines); break;
            case 3: apply_tile(3, a, tile, row, soon, lines); break;
            default: apply_tile(4, a, tile, row, soon, lines);
        }
}

/* to (count, outputs) = or += rows (count, inputs) times the layer. */
static void apply(Team *team, const Linear *layer, int int8, Rows rows, int32_t count, float *to, int add) {
    if (!count) return;
    /* Threads share rows if there are enough of them, else outputs. */
    int32_t pieces = count >= OWN_ROWS * team->size && !team->alone ? team->size : 1;
    Application a = {layer, rows, to, count, pieces, int8, add};
    share(team, apply_item, &a, (layer->outputs + COLS - 1) / COLS * pieces);
}

#endif

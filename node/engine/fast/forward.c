/* Llama-family forward pass on CPUs: int8 (or float32) weights, paged keys and values, any mix of sequences in a call.
 *
 * A row is one token of one sequence. Every number that a row produces is a function of its sequence alone: integer
 * sums are exact, every float operation is IEEE and in an order that other rows, chunk borders and threads do not
 * change (compile with -ffp-contract=off and without -ffast-math; fused multiply-add stands only where it is written).
 * So a result is the same bits alone and batched, prefilled and decoded, from the prefix cache and computed anew.
 *
 * Weights are packed in tiles of 64 outputs, (tiles, inputs / 4, 64, 4) for int8 and (tiles, inputs, 64) for float32.
 * A block holds 32 tokens of one sequence: (layers, 2, kv_heads, 32 * head_dim), keys as (head_dim, 32) so that 16
 * tokens' scores are computed side by side, values as (32, head_dim).
 */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define COLS 64 /* outputs in a weight tile */
#define MROWS 6 /* rows that a weight tile is applied to at once: 24 accumulators of 16 lanes */
#define GROUP 64 /* inputs of a linear layer that share an activation scale */
#define BLOCK 32 /* tokens in a block of keys and values */
#define MQ 12 /* query vectors that share a read of keys and values: 24 accumulators */
#define LINE 64 /* bytes in a cache line */
#define INLINE static inline __attribute__((always_inline))

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef uint8_t v16b __attribute__((vector_size(16)));

typedef struct {
    const void *weight;
    const float *scale;    /* (outputs,) int8 only */
    const int32_t *offset; /* (tiles, inputs / 64, 64) 128 times the sum of the weights, int8 only */
    const float *bias;     /* (outputs,) or null */
    int32_t inputs, outputs;
} Linear;

typedef struct {
    const Linear *qkv, *out, *gate_up, *down; /* (layers,) each */
    const Linear *head;
    const float *norms; /* (2 * layers + 1, hidden) in the order of their use */
    const void *embedding;              /* (vocabulary, hidden) bfloat16 or float32 */
    const float *cosine, *sine;         /* (positions, head_dim / 2) */
    const float *query_norm, *key_norm; /* (layers, head_dim) or null: Qwen3 */
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, vocabulary;
    int32_t int8, embedding_bf16, cache_bf16;
    float epsilon;
} Model;

typedef struct {
    const int32_t *tokens, *positions; /* (rows,); the rows of a sequence stand together, in order */
    const int32_t *sequences;          /* (rows,) which block table */
    const int32_t *tables;             /* (sequences, table_width) block numbers */
    const int32_t *wanted;             /* (wanted_rows,) rows whose logits are asked for */
    float *logits;                     /* (wanted_rows, vocabulary) */
    void *blocks;
    int32_t rows, table_width, wanted_rows, longest; /* longest: tokens of the longest sequence */
} Batch;

/* Threads that walk through the same code in step. */

typedef struct Team {
    int32_t size;
    atomic_int arrived, phase, round;
    void (*work)(struct Team *, int32_t, void *);
    void *argument;
    atomic_int stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *threads;
    float *memory; /* what a pass works in, kept for the next one */
    int64_t memory_floats;
} Team;

typedef struct {
    Team *team;
    int32_t id;
} Seat;

INLINE void pause_briefly(int *spins) {
    if (++*spins > 512) {
        sched_yield(); /* somebody else has the core: waiting hotly would only slow them and us */
    } else {
#if defined(__x86_64__)
        _mm_pause();
#endif
    }
}

static void barrier(Team *team) {
    if (team->size == 1) return;
    int phase = atomic_load(&team->phase), spins = 0;
    if (atomic_fetch_add(&team->arrived, 1) == team->size - 1) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->phase, phase + 1);
    } else {
        while (atomic_load(&team->phase) == phase) pause_briefly(&spins);
    }
}

static void *member(void *given) {
    Seat seat = *(Seat *)given;
    free(given);
    Team *team = seat.team;
    for (int round = 0;; round++) {
        for (int spins = 0; atomic_load(&team->round) == round && spins < 512;) pause_briefly(&spins);
        if (atomic_load(&team->round) == round) {
            pthread_mutex_lock(&team->mutex);
            while (atomic_load(&team->round) == round) pthread_cond_wait(&team->wake, &team->mutex);
            pthread_mutex_unlock(&team->mutex);
        }
        if (atomic_load(&team->stopping)) return NULL;
        team->work(team, seat.id, team->argument);
        barrier(team);
    }
}

static void start_round(Team *team) {
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->round, 1);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
}

static void run(Team *team, void (*work)(Team *, int32_t, void *), void *argument) {
    team->work = work;
    team->argument = argument;
    if (team->size > 1) start_round(team);
    work(team, 0, argument);
    barrier(team);
}

/* A team of `size` threads, the caller's included; null if the system has no more threads. */
Team *team_start(int32_t size) {
    Team *team = calloc(1, sizeof(Team));
    if (!team) return NULL;
    team->threads = calloc((size_t)size, sizeof(pthread_t));
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
    team->size = size;
    for (int32_t id = 1; id < size; id++) {
        Seat *seat = malloc(sizeof(Seat));
        *seat = (Seat){team, id};
        if (pthread_create(&team->threads[id], NULL, member, seat)) return NULL;
    }
    return team;
}

void team_stop(Team *team) {
    atomic_store(&team->stopping, 1);
    start_round(team);
    for (int32_t id = 1; id < team->size; id++) pthread_join(team->threads[id], NULL);
    free(team->threads);
    free(team->memory);
    free(team);
}

/* Sixteen floats at once. */

INLINE v16 load(const float *from) {
    v16 value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, v16 value) { memcpy(to, &value, sizeof value); }

INLINE v16 all(float value) { return value - (v16){0}; }

INLINE v16 fma16(v16 a, v16 b, v16 c) {
#if defined(__AVX512F__)
    return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    v16 result;
    for (int lane = 0; lane < 16; lane++) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return result;
#endif
}

INLINE v16 max16(v16 a, v16 b) {
    v16i greater = a > b;
    return (v16)((greater & (v16i)a) | (~greater & (v16i)b));
}

INLINE float sum16(v16 value) {
    float part[16];
    store(part, value);
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
    return part[0];
}

INLINE float most16(v16 value) {
    float part[16];
    store(part, value);
    for (int lane = 1; lane < 16; lane++) part[0] = part[lane] > part[0] ? part[lane] : part[0];
    return part[0];
}

INLINE v16 magnitude(v16 value) { return (v16)((v16i)value & 0x7fffffff); }

/* Nearest integer, ties to even, for magnitudes below 2^22. */
INLINE v16 nearest(v16 value) { return (value + 12582912.0f) - 12582912.0f; }

/* e^x to about 1 unit in the last place; 0 < result, inputs are clamped to [-87, 88]. */
INLINE v16 exp16(v16 x) {
    x = max16(x, all(-87.0f));
    x = -max16(-x, all(-88.0f));
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

INLINE v16 widen(const uint16_t *from) {
    v16h half;
    memcpy(&half, from, sizeof half);
    return (v16)(__builtin_convertvector(half, v16i) << 16);
}

INLINE v16 load_cached(const void *from, int64_t at, int bf16) {
    return bf16 ? widen((const uint16_t *)from + at) : load((const float *)from + at);
}

INLINE void store_cached(void *to, int64_t at, float value, int bf16) {
    if (bf16) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        ((uint16_t *)to)[at] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* ties to even */
    } else {
        ((float *)to)[at] = value;
    }
}

/* Linear layers. */

#if defined(__AVX512VNNI__)
/* sum += four unsigned times four signed bytes in each lane; written out because compilers spill the sums otherwise. */
INLINE void dot4(__m512i *sum, __m512i bytes, __m512i weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(bytes), "v"(weights));
}
#endif

INLINE void int8_tile(int rows, const uint8_t *x, int64_t stride, const float *scales, int64_t groups, const int8_t *w,
                      const int32_t *offset, int32_t inputs, float *sums, int64_t ahead) {
    memset(sums, 0, (size_t)rows * COLS * sizeof *sums);
    for (int32_t first = 0; first < inputs; first += GROUP, scales++, offset += COLS) {
        int32_t last = inputs - first < GROUP ? inputs : first + GROUP;
#if defined(__AVX512VNNI__)
        __m512i sum[MROWS][4];
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < 4; j++) sum[m][j] = _mm512_setzero_si512();
        for (int32_t k = first; k < last; k += 4, w += 4 * COLS) {
            __m512i part[4];
            for (int j = 0; j < 4; j++) part[j] = _mm512_loadu_si512(w + 64 * j);
            if (ahead)
                for (int j = 0; j < 4; j++) __builtin_prefetch(w + 64 * j + ahead, 0, 2);
            for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, x + m * stride + k, 4);
                __m512i spread = _mm512_set1_epi32(four);
                for (int j = 0; j < 4; j++) dot4(&sum[m][j], spread, part[j]);
            }
        }
#else
        v16i sum[MROWS][4];
        memset(sum, 0, sizeof sum);
        for (int32_t k = first; k < last; k += 4, w += 4 * COLS)
            for (int m = 0; m < rows; m++)
                for (int n = 0; n < COLS; n++)
                    for (int i = 0; i < 4; i++)
                        ((int32_t *)sum[m])[n] += (int32_t)x[m * stride + k + i] * w[4 * n + i];
#endif
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < 4; j++) {
                v16i less;
                memcpy(&less, offset + 16 * j, sizeof less);
                v16 real = __builtin_convertvector((v16i)sum[m][j] - less, v16);
                float *to = sums + m * COLS + 16 * j;
                store(to, fma16(real, all(scales[m * groups]), load(to)));
            }
    }
}

INLINE void float_tile(int rows, const float *x, int64_t stride, const float *w, int32_t inputs, float *sums) {
    v16 sum[MROWS][4];
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < 4; j++) sum[m][j] = all(0);
    for (int32_t k = 0; k < inputs; k++, w += COLS)
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < 4; j++) sum[m][j] = fma16(all(x[m * stride + k]), load(w + 16 * j), sum[m][j]);
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < 4; j++) store(sums + m * COLS + 16 * j, sum[m][j]);
}

#define INT8_TILE(n) \
    int8_tile(n, (const uint8_t *)x + row * stride, stride, scales + row * groups, groups, w, offset, inputs, sums, ahead)
#define FLOAT_TILE(n) float_tile(n, (const float *)x + row * stride, stride, (const float *)w, inputs, sums)
#define ANY_ROWS(tile_of, n) \
    switch (n) { \
        case 1: tile_of(1); break; \
        case 2: tile_of(2); break; \
        case 3: tile_of(3); break; \
        case 4: tile_of(4); break; \
        case 5: tile_of(5); break; \
        default: tile_of(6); \
    }

/* y (rows, outputs) = or += x (rows, inputs) times the layer; this thread's share of the tiles. `x` is uint8 around
 * 128 with a scale for each 64 of a row, or float32. */
static void apply(const Linear *layer, int int8, const void *x, const float *scales, int32_t rows, float *y, int add,
                  Team *team, int32_t id) {
    int32_t tiles = (layer->outputs + COLS - 1) / COLS, inputs = layer->inputs;
    int64_t width = layer->outputs, stride = inputs, groups = (inputs + GROUP - 1) / GROUP;
    for (int32_t tile = (int64_t)tiles * id / team->size; tile < (int64_t)tiles * (id + 1) / team->size; tile++) {
        int32_t first = tile * COLS, count = layer->outputs - first < COLS ? layer->outputs - first : COLS;
        const int8_t *w = (const int8_t *)layer->weight + (int64_t)tile * COLS * inputs * (int8 ? 1 : 4);
        const int32_t *offset = layer->offset + (int64_t)tile * groups * COLS;
        for (int32_t row = 0; row < rows; row += MROWS) {
            int here = rows - row < MROWS ? rows - row : MROWS;
            float sums[MROWS * COLS];
            /* The next tile comes out of memory while this one is used. */
            int64_t ahead = row == 0 && rows > MROWS ? (int64_t)COLS * inputs : 0;
            if (int8) {
                ANY_ROWS(INT8_TILE, here)
                for (int m = 0; m < here; m++)
                    for (int n = 0; n < count; n++) sums[m * COLS + n] *= layer->scale[first + n];
            } else {
                ANY_ROWS(FLOAT_TILE, here)
            }
            for (int m = 0; m < here; m++) {
                float *to = y + (row + m) * width + first;
                const float *sum = sums + m * COLS;
                if (layer->bias)
                    for (int n = 0; n < count; n++) to[n] = sum[n] + layer->bias[first + n];
                else if (add)
                    for (int n = 0; n < count; n++) to[n] += sum[n];
                else
                    memcpy(to, sum, (size_t)count * sizeof *to);
            }
        }
    }
}

/* Rows. */

/* x as uint8 around 128, such that x = scale * (to - 128), with a scale for each 64. */
static void quantize(const float *x, int32_t count, uint8_t *to, float *scales) {
    for (int32_t first = 0; first < count; first += GROUP) {
        int32_t last = count - first < GROUP ? count : first + GROUP;
        v16 most = all(0);
        for (int32_t i = first; i < last; i += 16) most = max16(magnitude(load(x + i)), most);
        float peak = most16(most), inverse = peak > 0 ? 127.0f / peak : 0;
        for (int32_t i = first; i < last; i += 16) {
            v16i whole = __builtin_convertvector(nearest(load(x + i) * inverse), v16i) + 128;
            v16b bytes = __builtin_convertvector(whole, v16b);
            memcpy(to + i, &bytes, sizeof bytes);
        }
        scales[first / GROUP] = peak / 127.0f;
    }
}

/* One over the root mean square. */
static float inverse_rms(const float *x, int32_t count, float epsilon) {
    v16 squares = all(0);
    for (int32_t i = 0; i < count; i += 16) squares = fma16(load(x + i), load(x + i), squares);
    return 1.0f / sqrtf(sum16(squares) / (float)count + epsilon);
}

typedef struct {
    const Model *model;
    const Batch *batch;
    float *x;      /* (rows, hidden) */
    float *h;      /* (rows, widest layer) */
    float *mixed;  /* (rows, heads * head_dim or inner) */
    void *input;   /* (rows, widest input) uint8 or float32 */
    float *scales; /* (rows, widest input / 64) */
    float *scores; /* (threads, MQ, longest rounded up) */
} Work;

/* A row as input of the next linear layer. */
static void prepare(const Work *work, int32_t row, const float *x, int32_t count) {
    int64_t groups = (count + GROUP - 1) / GROUP;
    if (work->model->int8)
        quantize(x, count, (uint8_t *)work->input + (int64_t)row * count, work->scales + row * groups);
    else
        memcpy((float *)work->input + (int64_t)row * count, x, (size_t)count * sizeof *x);
}

/* Row `from` of x, normalized, as row `row` of the input; `number` of the norms in their order. */
static void normalize(const Work *work, int32_t from, int32_t row, int32_t number) {
    int32_t hidden = work->model->hidden;
    const float *x = work->x + (int64_t)from * hidden, *weight = work->model->norms + (int64_t)number * hidden;
    float *room = work->mixed + (int64_t)row * hidden, scale = inverse_rms(x, hidden, work->model->epsilon);
    for (int32_t i = 0; i < hidden; i++) room[i] = x[i] * scale * weight[i];
    prepare(work, row, room, hidden);
}

INLINE char *block_part(const Work *work, int32_t row, int32_t block, int32_t layer, int32_t part, int32_t kv_head) {
    const Model *m = work->model;
    const Batch *b = work->batch;
    int64_t number = b->tables[(int64_t)b->sequences[row] * b->table_width + block];
    int64_t piece = ((number * m->layers + layer) * 2 + part) * m->kv_heads + kv_head;
    return (char *)b->blocks + piece * BLOCK * m->head_dim * (m->cache_bf16 ? 2 : 4);
}

/* Turn a head by its position (and normalize it first, in Qwen3). */
static void rotate(const Model *m, float *head, const float *weight, const float *cosine, const float *sine) {
    int32_t half = m->head_dim / 2;
    if (weight) {
        float scale = inverse_rms(head, m->head_dim, m->epsilon);
        for (int32_t i = 0; i < m->head_dim; i++) head[i] = head[i] * scale * weight[i];
    }
    for (int32_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

static void place(const Work *work, int32_t row, int32_t layer) {
    const Model *m = work->model;
    int32_t position = work->batch->positions[row], slot = position % BLOCK, d = m->head_dim, half = d / 2;
    float *heads = work->h + (int64_t)row * (m->heads + 2 * m->kv_heads) * d;
    const float *cosine = m->cosine + (int64_t)position * half, *sine = m->sine + (int64_t)position * half;
    const float *query_norm = m->query_norm ? m->query_norm + (int64_t)layer * d : NULL;
    const float *key_norm = m->key_norm ? m->key_norm + (int64_t)layer * d : NULL;
    float scale = 1.0f / sqrtf((float)d);
    for (int32_t head = 0; head < m->heads; head++) {
        rotate(m, heads + head * d, query_norm, cosine, sine);
        for (int32_t i = 0; i < d; i++) heads[head * d + i] *= scale;
    }
    for (int32_t head = 0; head < m->kv_heads; head++) {
        float *key = heads + (m->heads + head) * d, *value = heads + (m->heads + m->kv_heads + head) * d;
        rotate(m, key, key_norm, cosine, sine);
        char *keys = block_part(work, row, position / BLOCK, layer, 0, head);
        char *values = block_part(work, row, position / BLOCK, layer, 1, head);
        for (int32_t i = 0; i < d; i++) store_cached(keys, (int64_t)i * BLOCK + slot, key[i], m->cache_bf16);
        for (int32_t i = 0; i < d; i++) store_cached(values, (int64_t)slot * d + i, value[i], m->cache_bf16);
    }
}

/* Attention of `count` query vectors to the first `length` tokens of their sequence, each seeing `seen[q]` of them. */
INLINE void attend(int count, const Work *work, int32_t row, int32_t layer, int32_t kv_head, const float **queries,
                   float **results, const int32_t *seen, int32_t length, float *scores, int bf16) {
    int32_t d = work->model->head_dim, blocks = (length + BLOCK - 1) / BLOCK;
    int64_t width = (int64_t)blocks * BLOCK;
    for (int32_t block = 0; block < blocks; block++) {
        const char *keys = block_part(work, row, block, layer, 0, kv_head);
        const char *next = block_part(work, row, block + 1 < blocks ? block + 1 : 0, layer, block + 1 == blocks, kv_head);
        v16 sum[MQ][2];
        for (int q = 0; q < count; q++) sum[q][0] = sum[q][1] = all(0);
        for (int32_t i = 0; i < d; i++) {
            __builtin_prefetch(next + i * LINE);
            v16 low = load_cached(keys, (int64_t)i * BLOCK, bf16), high = load_cached(keys, (int64_t)i * BLOCK + 16, bf16);
            for (int q = 0; q < count; q++) {
                v16 spread = all(queries[q][i]);
                sum[q][0] = fma16(spread, low, sum[q][0]);
                sum[q][1] = fma16(spread, high, sum[q][1]);
            }
        }
        for (int q = 0; q < count; q++) {
            store(scores + q * width + block * BLOCK, sum[q][0]);
            store(scores + q * width + block * BLOCK + 16, sum[q][1]);
        }
    }
    float inverse[MQ];
    for (int q = 0; q < count; q++) {
        float *mine = scores + q * width;
        int32_t padded = (seen[q] + 15) / 16 * 16;
        for (int32_t t = seen[q]; t < padded; t++) mine[t] = -INFINITY;
        v16 most = all(-INFINITY), total = all(0);
        for (int32_t t = 0; t < padded; t += 16) most = max16(load(mine + t), most);
        float peak = most16(most);
        for (int32_t t = 0; t < padded; t += 16) store(mine + t, exp16(load(mine + t) - peak));
        for (int32_t t = seen[q]; t < width; t++) mine[t] = 0;
        for (int32_t t = 0; t < padded; t += 16) total += load(mine + t);
        inverse[q] = 1.0f / sum16(total);
    }
    for (int32_t from = 0; from < d; from += 32) {
        int wide = d - from >= 32;
        v16 sum[MQ][2];
        for (int q = 0; q < count; q++) sum[q][0] = sum[q][1] = all(0);
        for (int32_t block = 0; block < blocks; block++) {
            const char *values = block_part(work, row, block, layer, 1, kv_head);
            int32_t here = length - block * BLOCK < BLOCK ? length - block * BLOCK : BLOCK;
            const float *share = scores + (int64_t)block * BLOCK;
            const char *next = block_part(work, row, block + 1 < blocks ? block + 1 : 0, layer, block + 1 < blocks, kv_head);
            for (int32_t t = 0; t < here; t++) {
                if (!from) __builtin_prefetch(next + 2 * t * LINE), __builtin_prefetch(next + (2 * t + 1) * LINE);
                v16 low = load_cached(values, (int64_t)t * d + from, bf16);
                v16 high = wide ? load_cached(values, (int64_t)t * d + from + 16, bf16) : low;
                for (int q = 0; q < count; q++) {
                    v16 spread = all(share[q * width + t]);
                    sum[q][0] = fma16(spread, low, sum[q][0]);
                    sum[q][1] = fma16(spread, high, sum[q][1]);
                }
            }
        }
        for (int q = 0; q < count; q++) {
            store(results[q] + from, sum[q][0] * inverse[q]);
            if (wide) store(results[q] + from + 16, sum[q][1] * inverse[q]);
        }
    }
}

#define ATTEND(n, bf16) attend(n, work, row, layer, kv_head, q, to, seen, length, scores, bf16)
#define ATTEND_BOTH(n) \
    if (bf16) ATTEND(n, 1); else ATTEND(n, 0); \
    taken = n

static void attend_some(int count, const Work *work, int32_t row, int32_t layer, int32_t kv_head, const float **q,
                        float **to, const int32_t *seen, float *scores) {
    int bf16 = work->model->cache_bf16, taken;
    for (; count; count -= taken, q += taken, to += taken, seen += taken) {
        int size = count >= 12 ? 12 : count >= 6 ? 6 : count;
        int32_t length = 0;
        for (int i = 0; i < size; i++) length = seen[i] > length ? seen[i] : length;
        switch (size) {
            case 12: ATTEND_BOTH(12); break;
            case 6: ATTEND_BOTH(6); break;
            case 4: ATTEND_BOTH(4); break;
            case 3: ATTEND_BOTH(3); break;
            case 2: ATTEND_BOTH(2); break;
            default: ATTEND_BOTH(1); break;
        }
    }
}

/* This thread's share of the attention of all rows: up to MQ query vectors of one sequence and one KV head at once. */
static void attend_rows(const Work *work, int32_t layer, Team *team, int32_t id) {
    const Model *m = work->model;
    const Batch *b = work->batch;
    int32_t group = m->heads / m->kv_heads, d = m->head_dim, most = group >= MQ ? 1 : MQ / group;
    int32_t width = (m->heads + 2 * m->kv_heads) * d, turn = 0;
    float *scores = work->scores + (int64_t)id * MQ * ((b->longest + BLOCK - 1) / BLOCK * BLOCK);
    const float *queries[MQ * 8];
    float *results[MQ * 8];
    int32_t seen[MQ * 8];
    for (int32_t row = 0, next; row < b->rows; row = next) {
        for (next = row + 1; next < b->rows && next < row + most && b->sequences[next] == b->sequences[row];) next++;
        for (int32_t kv_head = 0; kv_head < m->kv_heads; kv_head++, turn++) {
            if (turn % team->size != id) continue;
            int count = 0;
            for (int32_t r = row; r < next; r++)
                for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++, count++) {
                    queries[count] = work->h + (int64_t)r * width + head * d;
                    results[count] = work->mixed + ((int64_t)r * m->heads + head) * d;
                    seen[count] = b->positions[r] + 1;
                }
            attend_some(count, work, row, layer, kv_head, queries, results, seen, scores);
        }
    }
}

/* silu(gate) * up, in place of the gate. */
static void gate(const Work *work, int32_t row) {
    int32_t inner = work->model->inner;
    float *gates = work->h + (int64_t)row * 2 * inner;
    const float *ups = gates + inner;
    for (int32_t i = 0; i < inner; i += 16) {
        v16 value = load(gates + i);
        store(gates + i, value / (exp16(-value) + 1.0f) * load(ups + i));
    }
    prepare(work, row, gates, inner);
}

static void forward_share(Team *team, int32_t id, void *argument) {
    const Work *work = argument;
    const Model *m = work->model;
    const Batch *b = work->batch;
    int32_t first = (int64_t)b->rows * id / team->size, last = (int64_t)b->rows * (id + 1) / team->size;
    for (int32_t row = first; row < last; row++) {
        float *x = work->x + (int64_t)row * m->hidden;
        int64_t at = (int64_t)b->tokens[row] * m->hidden;
        for (int32_t i = 0; i < m->hidden; i += 16) store(x + i, load_cached(m->embedding, at + i, m->embedding_bf16));
    }
    for (int32_t layer = 0; layer < m->layers; layer++) {
        for (int32_t row = first; row < last; row++) normalize(work, row, row, 2 * layer);
        barrier(team);
        apply(&m->qkv[layer], m->int8, work->input, work->scales, b->rows, work->h, 0, team, id);
        barrier(team);
        for (int32_t row = first; row < last; row++) place(work, row, layer);
        barrier(team);
        attend_rows(work, layer, team, id);
        barrier(team);
        int32_t width = m->heads * m->head_dim;
        for (int32_t row = first; row < last; row++) prepare(work, row, work->mixed + (int64_t)row * width, width);
        barrier(team);
        apply(&m->out[layer], m->int8, work->input, work->scales, b->rows, work->x, 1, team, id);
        barrier(team);
        for (int32_t row = first; row < last; row++) normalize(work, row, row, 2 * layer + 1);
        barrier(team);
        apply(&m->gate_up[layer], m->int8, work->input, work->scales, b->rows, work->h, 0, team, id);
        barrier(team);
        for (int32_t row = first; row < last; row++) gate(work, row);
        barrier(team);
        apply(&m->down[layer], m->int8, work->input, work->scales, b->rows, work->x, 1, team, id);
        barrier(team);
    }
    first = (int64_t)b->wanted_rows * id / team->size, last = (int64_t)b->wanted_rows * (id + 1) / team->size;
    for (int32_t row = first; row < last; row++) normalize(work, b->wanted[row], row, 2 * m->layers);
    barrier(team);
    apply(m->head, m->int8, work->input, work->scales, b->wanted_rows, b->logits, 0, team, id);
}

/* Read the batch's tokens into their blocks; logits of the wanted rows. 0, or -1 if there is no memory. */
int32_t forward(Team *team, const Model *m, const Batch *b) {
    int64_t rows = b->rows, d = m->head_dim;
    int64_t widest = 2 * m->inner > (m->heads + 2 * m->kv_heads) * d ? 2 * m->inner : (m->heads + 2 * m->kv_heads) * d;
    int64_t mixed = m->heads * d > m->hidden ? m->heads * d : m->hidden;
    int64_t input = mixed > m->inner ? mixed : m->inner;
    int64_t floats = rows * (m->hidden + widest + mixed + input + input / GROUP + 1) +
                     (int64_t)team->size * MQ * ((b->longest + BLOCK - 1) / BLOCK * BLOCK);
    if (floats > team->memory_floats) {
        free(team->memory);
        team->memory = malloc((size_t)floats * sizeof *team->memory);
        team->memory_floats = team->memory ? floats : 0;
        if (!team->memory) return -1;
    }
    Work work = {.model = m, .batch = b, .x = team->memory};
    work.h = work.x + rows * m->hidden;
    work.mixed = work.h + rows * widest;
    work.input = work.mixed + rows * mixed;
    work.scales = (float *)work.input + rows * input;
    work.scores = work.scales + rows * (input / GROUP + 1);
    run(team, forward_share, &work);
    return 0;
}

typedef struct {
    const float *logits;
    const int32_t *tokens;
    double *results;
    int32_t rows, vocabulary;
} Scoring;

static void score_share(Team *team, int32_t id, void *argument) {
    const Scoring *s = argument;
    for (int32_t row = id; row < s->rows; row += team->size) {
        const float *logits = s->logits + (int64_t)row * s->vocabulary;
        float peak = logits[0];
        double total = 0;
        int32_t whole = s->vocabulary / 16 * 16;
        v16 most = all(-INFINITY);
        for (int32_t i = 0; i < whole; i += 16) most = max16(load(logits + i), most);
        if (whole) peak = most16(most);
        for (int32_t i = whole; i < s->vocabulary; i++) peak = logits[i] > peak ? logits[i] : peak;
        for (int32_t i = 0; i < whole; i += 16) total += sum16(exp16(load(logits + i) - peak));
        for (int32_t i = whole; i < s->vocabulary; i++) total += exp16(all(logits[i] - peak))[0];
        s->results[row] = (double)logits[s->tokens[row]] - (double)peak - log(total);
    }
}

/* Natural log-probabilities of `tokens` (rows,) under `logits` (rows, vocabulary). */
void log_probabilities(Team *team, const float *logits, const int32_t *tokens, int32_t rows, int32_t vocabulary,
                       double *results) {
    Scoring scoring = {logits, tokens, results, rows, vocabulary};
    run(team, score_share, &scoring);
}

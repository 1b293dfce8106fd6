/* Llama-family forward pass on CPUs: int8 (or float32) weights, paged keys and values, any mix of sequences in a call.
 *
 * A row is one token of one sequence. Every number that a row produces is a function of its sequence alone: integer
 * sums are exact, every float operation is IEEE and in an order that other rows, chunk borders and threads do not
 * change (compile with -ffp-contract=off and without -ffast-math; fused multiply-add stands only where it is written).
 * So a result is the same bits alone and batched, prefilled and decoded, from the prefix cache and computed anew.
 */

#include <stddef.h>

#include "attention.h"
#include "lanes.h"
#include "linear.h"
#include "team.h"

#define MOST_HEADS 96 /* query heads that share a key head; not fewer than MQ */

typedef struct {
    const Linear *qkv, *out, *gate_up, *down; /* (layers,) each */
    const Linear *head;
    const float *norms;                 /* (2 * layers + 1, hidden) in the order of their use */
    const void *embedding;              /* (vocabulary, hidden) bfloat16 or float32 */
    const float *cosine, *sine;         /* (positions, head_dim / 2) */
    const float *query_norm, *key_norm; /* (layers, head_dim) or null: Qwen3 */
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, vocabulary;
    int32_t int8, embedding_bf16;
    float epsilon;
} Model;

typedef struct {
    const int32_t *tokens, *positions; /* (rows,); the rows of a sequence stand together, in order */
    const int32_t *sequences;          /* (rows,) where the sequence's block numbers begin in `tables` */
    const int32_t *tables;             /* block numbers of one sequence after another */
    const int32_t *wanted;             /* (wanted_rows,) rows whose logits are asked for, in order, each once */
    float *logits;                     /* (wanted_rows, vocabulary) */
    float *states;                     /* (wanted_rows, hidden) what the last layer leaves, or null */
    void *blocks;                      /* (block numbers, layers, kv_heads) pieces */
    int32_t rows, wanted_rows, longest; /* longest: tokens of the longest sequence */
} Batch;

typedef struct {
    const Model *model;
    const Batch *batch;
    int32_t *positions, *sequences; /* (rows,) */
    float *x;            /* (rows, hidden) */
    float *h;            /* (rows, widest layer) */
    float *mixed;        /* (rows, heads * head_dim or hidden) */
    Rows input;          /* of the next linear layer */
    int8_t *queries;     /* (rows, heads, head_dim), int8 only */
    float *query_scales; /* (rows, heads) */
    int32_t *query_less; /* (rows, heads) */
    int32_t *spans;      /* (spans + 1,) first rows of pieces of sequences whose queries are taken together */
    char *rooms;         /* (threads, room_bytes) */
    int64_t room_bytes;
    int32_t span_count, layer, count, step; /* the present layer; rows of it and of an item */
} Work;

/* One over the root mean square. */
static float inverse_rms(const float *x, int32_t count, float epsilon) {
    v16 squares = all(0);
    for (int32_t i = 0; i < count; i += 16) squares = fma16(load(x + i), load(x + i), squares);
    return 1.0f / sqrtf(sum16(squares) / (float)count + epsilon);
}

/* A row as input of the next linear layer. */
static void prepare(const Work *work, int32_t row, const float *x, int32_t count) {
    if (!work->model->int8) {
        memcpy((float *)work->input.values + (int64_t)row * count, x, (size_t)count * sizeof *x);
        return;
    }
    int64_t groups = (count + GROUP - 1) / GROUP;
    int8_t *to = (int8_t *)work->input.values + (int64_t)row * count;
    float *scales = work->input.scales + row * groups;
    int32_t *less = work->input.less + row * groups, total;
    for (int32_t first = 0; first < count; first += GROUP, scales++, less++) {
        *scales = round_group(x + first, count - first < GROUP ? count - first : GROUP, to + first, &total);
        *less = -128 * total;
    }
}

/* A row of x, normalized, as input of the next linear layer; `number` of the norms in their order. */
static void normalize(const Work *work, int32_t row, int32_t number) {
    int32_t hidden = work->model->hidden;
    const float *x = work->x + (int64_t)row * hidden, *weight = work->model->norms + (int64_t)number * hidden;
    float *to = work->mixed + (int64_t)row * hidden, scale = inverse_rms(x, hidden, work->model->epsilon);
    for (int32_t i = 0; i < hidden; i += 16) store(to + i, load(x + i) * scale * load(weight + i));
    prepare(work, row, to, hidden);
}

/* Turn a head by its position (and normalize it first, in Qwen3). */
static void rotate(const Model *m, float *restrict head, const float *restrict weight, const float *restrict cosine,
                   const float *restrict sine, float scale) {
    int32_t half = m->head_dim / 2;
    if (weight) {
        float inverse = inverse_rms(head, m->head_dim, m->epsilon);
        for (int32_t i = 0; i < m->head_dim; i++) head[i] = head[i] * inverse * weight[i];
    }
    float *restrict rest = head + half;
    for (int32_t i = 0; i < half; i++) {
        float a = head[i], b = rest[i];
        head[i] = (a * cosine[i] - b * sine[i]) * scale;
        rest[i] = (b * cosine[i] + a * sine[i]) * scale;
    }
}

static Pieces pieces_of(const Work *work, int32_t row, int32_t kv_head) {
    const Model *m = work->model;
    const Batch *b = work->batch;
    int64_t bytes = piece_bytes(m->int8, m->head_dim);
    return (Pieces){b->blocks, b->tables + work->sequences[row], bytes * m->layers * m->kv_heads,
                    bytes * ((int64_t)work->layer * m->kv_heads + kv_head), m->head_dim};
}

/* Queries are turned, keys and values go into their block. */
static void place(const Work *work, int32_t row) {
    const Model *m = work->model;
    int32_t position = work->positions[row], d = m->head_dim, half = d / 2, total;
    float *heads = work->h + (int64_t)row * (m->heads + 2 * m->kv_heads) * d;
    const float *cosine = m->cosine + (int64_t)position * half, *sine = m->sine + (int64_t)position * half;
    const float *query_norm = m->query_norm ? m->query_norm + (int64_t)work->layer * d : NULL;
    const float *key_norm = m->key_norm ? m->key_norm + (int64_t)work->layer * d : NULL;
    int8_t *whole = work->queries + (int64_t)row * m->heads * d;
    for (int32_t head = 0; head < m->heads; head++) {
        int64_t at = (int64_t)row * m->heads + head;
        rotate(m, heads + head * d, query_norm, cosine, sine, 1.0f / sqrtf((float)d));
        if (!m->int8) continue;
        work->query_scales[at] = round_group(heads + head * d, d, whole + head * d, &total);
        work->query_less[at] = -128 * total;
    }
    for (int32_t head = 0; head < m->kv_heads; head++) {
        float *key = heads + (m->heads + head) * d, *value = heads + (m->heads + m->kv_heads + head) * d;
        Pieces pieces = pieces_of(work, row, head);
        rotate(m, key, key_norm, cosine, sine, 1.0f);
        /* The input of the last linear layer is not needed any more. */
        remember(m->int8, (char *)piece(&pieces, position / BLOCK), position % BLOCK, d, key, value,
                 (int8_t *)work->input.values + (int64_t)row * m->hidden);
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

/* Tasks: an item is `step` rows, or a span of rows and a key head. */

#define EACH_ROW(row) \
    for (int32_t row = item * work->step, end = row + work->step < work->count ? row + work->step : work->count; \
         row < end; row++)

static void embed_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    const Model *m = work->model;
    EACH_ROW(row) {
        float *x = work->x + (int64_t)row * m->hidden;
        int64_t at = (int64_t)work->batch->tokens[row] * m->hidden;
        for (int32_t i = 0; i < m->hidden; i += 16)
            store(x + i, m->embedding_bf16 ? widen((const uint16_t *)m->embedding + at + i)
                                           : load((const float *)m->embedding + at + i));
        normalize(work, row, 0);
    }
}

static void norm_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    EACH_ROW(row) normalize(work, row, 2 * work->layer);
}

static void second_norm_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    EACH_ROW(row) normalize(work, row, 2 * work->layer + 1);
}

static void last_norm_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    EACH_ROW(row) normalize(work, row, 2 * work->model->layers);
}

static void place_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    EACH_ROW(row) place(work, row);
}

static void prepare_mixed_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    int32_t width = work->model->heads * work->model->head_dim;
    EACH_ROW(row) prepare(work, row, work->mixed + (int64_t)row * width, width);
}

static void gate_rows(const void *argument, int32_t item, int32_t worker) {
    (void)worker;
    const Work *work = argument;
    EACH_ROW(row) gate(work, row);
}

static void attend_span(const void *argument, int32_t item, int32_t worker) {
    const Work *work = argument;
    const Model *m = work->model;
    int32_t span = item / m->kv_heads, kv_head = item % m->kv_heads, group = m->heads / m->kv_heads, d = m->head_dim;
    int32_t first = work->spans[span], count = 0;
    Query queries[MOST_HEADS];
    Pieces pieces = pieces_of(work, first, kv_head);
    for (int32_t row = first; row < work->spans[span + 1]; row++)
        for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++, count++) {
            int64_t at = (int64_t)row * m->heads + head;
            queries[count] = (Query){work->h + (int64_t)row * (m->heads + 2 * m->kv_heads) * d + head * d,
                                     work->queries + at * d, work->query_scales[at], work->query_less[at],
                                     work->positions[row] + 1, work->mixed + at * d};
        }
    attend(count, m->int8, &pieces, queries, work->rooms + worker * work->room_bytes);
}

static void share_rows(Team *team, Task task, Work *work, int32_t count) {
    work->count = count;
    work->step = count / (8 * team->size) > 4 ? count / (8 * team->size) : 4;
    share(team, task, work, (count + work->step - 1) / work->step);
}

/* Rows of one sequence whose queries make up to MQ for a key head. */
static void cut_spans(Work *work, int32_t rows) {
    int32_t group = work->model->heads / work->model->kv_heads, most = group >= MQ ? 1 : MQ / group;
    work->span_count = 0;
    for (int32_t row = 0, next; row < rows; row = next) {
        const int32_t *of = work->sequences;
        for (next = row + 1; next < rows && next < row + most && of[next] == of[row];) next++;
        work->spans[work->span_count++] = row;
    }
    work->spans[work->span_count] = rows;
}

/* Go on with the wanted rows only: nobody reads what the last layer makes of the others. */
static void drop_rows(Work *work) {
    const Model *m = work->model;
    const Batch *b = work->batch;
    int64_t hidden = m->hidden, width = (int64_t)m->heads * m->head_dim, all_heads = width + 2 * m->kv_heads * m->head_dim;
    for (int64_t to = 0; to < b->wanted_rows; to++) {
        int64_t from = b->wanted[to];
        if (from == to) continue; /* from > to: rows are wanted in order */
        work->positions[to] = work->positions[from];
        work->sequences[to] = work->sequences[from];
        memcpy(work->x + to * hidden, work->x + from * hidden, (size_t)hidden * sizeof *work->x);
        memcpy(work->h + to * all_heads, work->h + from * all_heads, (size_t)width * sizeof *work->h);
        memcpy(work->queries + to * width, work->queries + from * width, (size_t)width);
        for (int32_t head = 0; head < m->heads; head++) {
            work->query_scales[to * m->heads + head] = work->query_scales[from * m->heads + head];
            work->query_less[to * m->heads + head] = work->query_less[from * m->heads + head];
        }
    }
    cut_spans(work, b->wanted_rows);
}

/* Logits of what the last layer left of `rows` rows. */
static void tell(Team *team, Work *work, int32_t rows) {
    share_rows(team, last_norm_rows, work, rows);
    apply(team, work->model->head, work->model->int8, work->input, rows, work->batch->logits, 0);
}

static void forward_layers(Team *team, Work *work) {
    const Model *m = work->model;
    const Batch *b = work->batch;
    int32_t rows = b->rows;
    share_rows(team, embed_rows, work, rows);
    for (int32_t layer = 0; layer < m->layers; layer++) {
        work->layer = layer;
        if (layer) share_rows(team, norm_rows, work, rows);
        apply(team, &m->qkv[layer], m->int8, work->input, rows, work->h, 0);
        share_rows(team, place_rows, work, rows);
        if (layer == m->layers - 1 && b->wanted_rows < rows) {
            rows = b->wanted_rows;
            drop_rows(work);
        }
        share(team, attend_span, work, work->span_count * m->kv_heads);
        share_rows(team, prepare_mixed_rows, work, rows);
        apply(team, &m->out[layer], m->int8, work->input, rows, work->x, 1);
        share_rows(team, second_norm_rows, work, rows);
        apply(team, &m->gate_up[layer], m->int8, work->input, rows, work->h, 0);
        share_rows(team, gate_rows, work, rows);
        apply(team, &m->down[layer], m->int8, work->input, rows, work->x, 1);
    }
    if (b->states) memcpy(b->states, work->x, (size_t)rows * (size_t)m->hidden * sizeof *work->x);
    tell(team, work, rows);
}

/* A piece of memory, on a line's border; `base` null: counts only. */
static void *cut(char *base, size_t *used, int64_t bytes) {
    void *piece_ = base ? base + *used : NULL;
    *used += ((size_t)bytes + LINE - 1) / LINE * LINE;
    return piece_;
}

/* Lay out what a pass works in; returns its size. */
static size_t lay_out(Work *work, char *base, int32_t threads) {
    const Model *m = work->model;
    int64_t rows = work->batch->rows, d = m->head_dim, width = m->heads * d, all_heads = width + 2 * m->kv_heads * d;
    int64_t widest = 2 * m->inner > all_heads ? 2 * m->inner : all_heads, mixed = width > m->hidden ? width : m->hidden;
    int64_t input = mixed > m->inner ? mixed : m->inner, groups = (input + GROUP - 1) / GROUP;
    size_t used = 0;
    work->room_bytes = (room_bytes(work->batch->longest, d) + LINE - 1) / LINE * LINE;
    work->positions = cut(base, &used, rows * 4);
    work->sequences = cut(base, &used, rows * 4);
    work->x = cut(base, &used, rows * m->hidden * 4);
    work->h = cut(base, &used, rows * widest * 4);
    work->mixed = cut(base, &used, rows * mixed * 4);
    work->input.values = cut(base, &used, rows * input * (m->int8 ? 1 : 4));
    work->input.scales = cut(base, &used, rows * groups * 4);
    work->input.less = cut(base, &used, rows * groups * 4);
    work->queries = cut(base, &used, rows * width);
    work->query_scales = cut(base, &used, rows * m->heads * 4);
    work->query_less = cut(base, &used, rows * m->heads * 4);
    work->spans = cut(base, &used, (rows + 1) * 4);
    work->rooms = cut(base, &used, threads * work->room_bytes);
    return used;
}

/* Logits (rows, vocabulary) of `states` (rows, hidden), as `forward` gave both. 0, or -1 if there is no memory. */
int32_t logits_of(Team *team, const Model *m, const float *states, int32_t rows, float *logits) {
    Batch batch = {.logits = logits, .rows = rows, .wanted_rows = rows};
    Work work = {.model = m, .batch = &batch};
    char *base = team_memory(team, lay_out(&work, NULL, team->size));
    if (!base) return -1;
    lay_out(&work, base, team->size);
    memcpy(work.x, states, (size_t)rows * (size_t)m->hidden * sizeof *states);
    begin_pass(team);
    tell(team, &work, rows);
    end_pass(team, rows <= MROWS ? 0.1 : 0.45);
    return 0;
}

/* Read the batch's tokens into their blocks; logits of the wanted rows. 0, or -1 if there is no memory. */
int32_t forward(Team *team, const Model *m, const Batch *b) {
    Work work = {.model = m, .batch = b};
    char *base = team_memory(team, lay_out(&work, NULL, team->size));
    if (!base) return -1;
    lay_out(&work, base, team->size);
    memcpy(work.positions, b->positions, (size_t)b->rows * 4);
    memcpy(work.sequences, b->sequences, (size_t)b->rows * 4);
    cut_spans(&work, b->rows);
    begin_pass(team);
    forward_layers(team, &work);
    /* Few rows wait for memory, which two threads read little faster than one. */
    end_pass(team, b->rows <= MROWS ? 0.1 : 0.45);
    return 0;
}

/* Log-probabilities of given tokens. */

#include "lanes.h"
#include "team.h"

typedef struct {
    const float *logits;
    const int32_t *tokens;
    double *results;
    int32_t vocabulary;
} Scoring;

static void score_row(const void *argument, int32_t row, int32_t worker) {
    (void)worker;
    const Scoring *s = argument;
    const float *logits = s->logits + (int64_t)row * s->vocabulary;
    float peak = logits[0];
    double total = 0;
    int32_t whole = s->vocabulary / 16 * 16;
    v16 most = all(-INFINITY);
    for (int32_t i = 0; i < whole; i += 16) most = max16(load(logits + i), most);
    if (whole) peak = most16(most);
    for (int32_t i = whole; i < s->vocabulary; i++) peak = greater_of(logits[i], peak);
    for (int32_t i = 0; i < whole; i += 16) total += sum16(exp16(load(logits + i) - peak));
    for (int32_t i = whole; i < s->vocabulary; i++) total += exp16(all(logits[i] - peak))[0];
    s->results[row] = (double)logits[s->tokens[row]] - (double)peak - log(total);
}

/* Natural log-probabilities of `tokens` (rows,) under `logits` (rows, vocabulary). */
void log_probabilities(Team *team, const float *logits, const int32_t *tokens, int32_t rows, int32_t vocabulary,
                       double *results) {
    Scoring scoring = {logits, tokens, results, vocabulary};
    share(team, score_row, &scoring, rows);
}

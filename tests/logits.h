/* logits.h - for tests: sequences of ids, our runtime's logits of them, and how far those of others are.
 * Files: IDS, for each sequence int32 n and n ids; LOGITS, float32 [ids, vocab].
 */
#ifndef NIBBLE_TESTS_LOGITS_H
#define NIBBLE_TESTS_LOGITS_H
#include "runtime/runtime.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    fm_ids ids;
    int64_t n_sequences, start[512]; /* ids of sequence i: start[i] .. start[i + 1] */
} sequences;

static inline void save_ids(const sequences *s, const char *path)
{
    FILE *f = fopen(path, "wb");
    ck_assert(f != NULL);
    for (int64_t i = 0; i < s->n_sequences; i++) {
        const int32_t n = (int32_t)(s->start[i + 1] - s->start[i]);
        ck_assert(fwrite(&n, sizeof n, 1, f) == 1);
        ck_assert(fwrite(s->ids.id + s->start[i], sizeof(int32_t), (size_t)n, f) == (size_t)n);
    }
    ck_assert(fclose(f) == 0);
}

static inline void random_sequences(sequences *s, const md_config *c, int64_t n)
{
    *s = (sequences){.n_sequences = n};
    ck_assert(fm_ids_reserve(&s->ids, n * c->ctx) == NB_OK);
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = 1 + (int64_t)(nb_random(17, 0, (uint64_t)i) % (uint64_t)c->ctx);
        for (int64_t k = 0; k < length; k++)
            s->ids.id[s->ids.n++] = (int32_t)(nb_random(17, 1, (uint64_t)(i * c->ctx + k)) % (uint64_t)c->vocab);
        s->start[i + 1] = s->ids.n;
    }
}

/* Our logits of all positions, [ids, vocab]. */
static inline float *our_logits(md_model *m, const sequences *s)
{
    rt_session *session;
    const rt_options o = {0};
    float *z = malloc((size_t)(s->ids.n * m->config.vocab) * sizeof *z);
    real *hidden = malloc((size_t)(m->config.ctx * m->config.dim) * sizeof *hidden);
    ck_assert_msg(z && hidden && rt_open(&session, m, &o) == NB_OK, "%s", nb_fail_message());
    for (int64_t i = 0; i < s->n_sequences; i++) {
        const int64_t n = s->start[i + 1] - s->start[i];
        rt_clear(session, 0);
        ck_assert_msg(rt_forward(session, n, NULL, s->ids.id + s->start[i], hidden) == NB_OK, "%s", nb_fail_message());
        ck_assert_msg(rt_head(session, z + s->start[i] * m->config.vocab, hidden, n) == NB_OK, "%s", nb_fail_message());
    }
    rt_close(session);
    free(hidden);
    return z;
}

static inline float *load_logits(const char *path, int64_t n)
{
    nb_mapped file;
    float *z = malloc((size_t)n * sizeof *z);
    ck_assert_msg(z && nb_map(&file, path) == NB_OK, "%s", nb_fail_message());
    ck_assert_uint_eq(file.bytes, (size_t)n * sizeof *z);
    memcpy(z, file.data, file.bytes);
    nb_unmap(&file);
    return z;
}

typedef struct {
    double kl, nll_a, nll_b, same_top; /* means over scored positions */
    double relative, worst;            /* differences / logits: of their root mean squares, of their largest */
} comparison;

static inline double log_sum(const float *z, int64_t n)
{
    double max = (double)z[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        max = fmax(max, (double)z[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)z[i] - max);
    return max + log(sum);
}

static inline int64_t top(const float *z, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = z[i] > z[best] ? i : best;
    return best;
}

static inline comparison compare_logits(const float *a, const float *b, const sequences *s, int64_t vocab)
{
    comparison c = {0};
    double difference = 0, largest = 0, differences = 0, squares = 0;
    int64_t rows = 0;
    for (int64_t i = 0; i < s->n_sequences; i++)
        for (int64_t k = s->start[i]; k < s->start[i + 1]; k++) {
            const float *x = a + k * vocab, *y = b + k * vocab;
            const double la = log_sum(x, vocab), lb = log_sum(y, vocab);
            for (int64_t j = 0; j < vocab; j++) {
                const double d = (double)x[j] - (double)y[j], z = (double)x[j];
                difference = fmax(difference, fabs(d));
                largest = fmax(largest, fabs(z));
                differences += d * d;
                squares += z * z;
            }
            if (k + 1 == s->start[i + 1])
                continue;
            for (int64_t j = 0; j < vocab; j++)
                c.kl += exp((double)x[j] - la) * ((double)x[j] - la - (double)y[j] + lb);
            c.nll_a += la - (double)x[s->ids.id[k + 1]];
            c.nll_b += lb - (double)y[s->ids.id[k + 1]];
            c.same_top += top(x, vocab) == top(y, vocab);
            rows++;
        }
    ck_assert_int_gt(rows, 0);
    return (comparison){.kl = c.kl / (double)rows,
                        .nll_a = c.nll_a / (double)rows,
                        .nll_b = c.nll_b / (double)rows,
                        .same_top = c.same_top / (double)rows,
                        .relative = sqrt(differences / squares),
                        .worst = difference / largest};
}

static inline void print_comparison(const char *what, comparison c)
{
    printf("%s: NLL %.5f, ours %.5f, KL %.2e, same top %.3f %%, relative difference of logits %.1e, worst %.1e\n", what,
           c.nll_a, c.nll_b, c.kl, 100 * c.same_top, c.relative, c.worst);
    (void)fflush(stdout);
}

#endif

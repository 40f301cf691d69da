/* sample.c - one token from a row of logits: p = softmax(logits / T), cut to the top k, then to the top p, then inverse CDF. */
#include "runtime/runtime.h"
#include <math.h>
#include <stdlib.h>

typedef struct {
    real p;
    int32_t id;
} candidate;

size_t rt_sample_scratch(int64_t V)
{
    return (size_t)V * sizeof(candidate);
}

status rt_sampling_check(const rt_sampling *how)
{
    if (!(how->temperature >= 0))
        return nb_fail(NB_USAGE, "a temperature of %g: wanted 0 (the likeliest token) or more", how->temperature);
    if (!(how->top_p >= 0 && how->top_p <= 1))
        return nb_fail(NB_USAGE, "--top-p %g: a probability is wanted, 0 to 1", how->top_p);
    return NB_OK;
}

static int32_t argmax(const real *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (int32_t)best;
}

/* Falling p, rising id among equals: one order, whatever the sort. */
static int falling(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->p != y->p)
        return x->p < y->p ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Nothing is cut off: the inverse of the distribution function, first by runs, then in the run. sum: of each run. */
static int32_t sample_all(const real *logits, int64_t V, real inverse, double u, real *sum)
{
    const real top = kn_exp_sums(sum, logits, V, inverse);
    const int64_t runs = (V + KN_RUN - 1) / KN_RUN;
    double total = 0;
    for (int64_t i = 0; i < runs; i++)
        total += (double)sum[i];
    double left = u * total;
    int64_t run = 0;
    while (run + 1 < runs && left >= (double)sum[run])
        left -= (double)sum[run++];
    real p[KN_RUN];
    const int64_t n = V - run * KN_RUN < KN_RUN ? V - run * KN_RUN : KN_RUN;
    logits += run * KN_RUN;
    for (int64_t i = 0; i < n; i++)
        p[i] = logits[i] * inverse - top;
    kn_exp(p, p, n);
    double own = 0; /* in another order than sum[run] */
    for (int64_t i = 0; i < n; i++)
        own += (double)p[i];
    left *= own / (double)sum[run];
    int64_t at = 0;
    while (at + 1 < n && left >= (double)p[at])
        left -= (double)p[at++];
    return (int32_t)(run * KN_RUN + at);
}

int32_t rt_sample(const real *logits, int64_t V, const rt_sampling *how, double u, void *scratch)
{
    candidate *c = scratch;
    if (how->temperature <= 0)
        return argmax(logits, V);
    if (!(how->top_k > 0 && how->top_k < V) && !(how->top_p > 0 && how->top_p < 1))
        return sample_all(logits, V, (real)(1 / how->temperature), u, scratch);
    real hi = logits[argmax(logits, V)];
    const double inverse = 1 / how->temperature;
    for (int64_t i = 0; i < V; i++)
        c[i] = (candidate){(real)exp((double)(logits[i] - hi) * inverse), (int32_t)i};
    int64_t n = V;
    bool nucleus = how->top_p > 0 && how->top_p < 1;
    if (nucleus || (how->top_k > 0 && how->top_k < V))
        qsort(c, (size_t)V, sizeof *c, falling);
    if (how->top_k > 0 && how->top_k < n)
        n = how->top_k;
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        total += (double)c[i].p;
    if (nucleus) {
        double kept = 0;
        int64_t i = 0;
        while (i < n && kept < how->top_p * total)
            kept += (double)c[i++].p;
        n = i;
        total = kept;
    }
    double at = u * total, sum = 0;
    for (int64_t i = 0; i + 1 < n; i++) {
        sum += (double)c[i].p;
        if (at < sum)
            return c[i].id;
    }
    return c[n - 1].id;
}

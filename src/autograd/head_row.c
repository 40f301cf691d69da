/* head_row.c - losses of one row of logits and their gradient.
 * V vocabulary, t temperature, z the student's and T the teacher's logits, P = softmax(T/t), Q = softmax(z/t):
 *   term                                     d term / d z[v]
 *   ce      lse(z) - z[target]               softmax(z)[v] - [v == target]
 *   kl      t^2 sum P (log P - log Q)        t (Q - P)
 *   reverse t^2 sum Q (log Q - log P)        t Q (log Q - log P - sum Q (log Q - log P))
 *   mse     mean_v (z - T)^2                 2 (z - T) / V
 *   cosine  1 - z.T / (|z| |T|)              z (z.T) / (|z|^3 |T|) - T / (|z| |T|)
 * log P - log Q = (T - z)/t + lse(z/t) - lse(T/t): no logarithm of a probability is taken. Sums run in 16 lanes over
 * parts of 512, whose sums are added in double.
 */
#include "head_row.h"
#include <math.h>
#include <string.h>

enum { LANES = 16, PART = 512 };

/* e^((x - max) / t) unnormalized, with what makes a softmax of it. */
typedef struct {
    real *e;
    real max;
    double sum, lse; /* lse: of x / t */
} row_softmax;

/* Loops over 16 lanes, which compilers turn into vectors. */
static double sum_lanes(const real lane[LANES])
{
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += (double)lane[i];
    return sum;
}

static real largest(const real *x, int64_t V)
{
    real max[LANES];
    int64_t v = 0;
    for (int i = 0; i < LANES; i++)
        max[i] = x[0];
    for (; v + LANES <= V; v += LANES)
#pragma omp simd
        for (int i = 0; i < LANES; i++)
            max[i] = x[v + i] > max[i] ? x[v + i] : max[i];
    for (; v < V; v++)
        max[0] = x[v] > max[0] ? x[v] : max[0];
    for (int i = 1; i < LANES; i++)
        max[0] = max[i] > max[0] ? max[i] : max[0];
    return max[0];
}

static double sum_of(const real *x, int64_t V)
{
    double sum = 0;
    for (int64_t from = 0; from < V; from += PART) {
        int64_t end = V - from < PART ? V : from + PART, v = from;
        real lane[LANES] = {0};
        for (; v + LANES <= end; v += LANES)
            for (int i = 0; i < LANES; i++)
                lane[i] += x[v + i];
        for (; v < end; v++)
            lane[0] += x[v];
        sum += sum_lanes(lane);
    }
    return sum;
}

static void exponentials(row_softmax *s, const real *x, int64_t V, real t)
{
    real max = largest(x, V), inv = 1 / t, *e = s->e;
    for (int64_t v = 0; v < V; v++)
        e[v] = (x[v] - max) * inv;
    kn_exp(e, e, V);
    s->max = max;
    s->sum = sum_of(e, V);
    s->lse = (double)max * (double)inv + log(s->sum);
}

/* sum[0] = sum p r, sum[1] = sum q r over r = (zt - z) / t + shift, p and q unnormalized. */
static void log_ratio_sums(double sum[2], const real *p, const real *q, const real *z, const real *zt, int64_t V,
                           real inv, real shift)
{
    sum[0] = sum[1] = 0;
    for (int64_t from = 0; from < V; from += PART) {
        int64_t end = V - from < PART ? V : from + PART, v = from;
        real a[LANES] = {0}, b[LANES] = {0};
        for (; v + LANES <= end; v += LANES)
            for (int i = 0; i < LANES; i++) {
                real r = (zt[v + i] - z[v + i]) * inv + shift;
                a[i] += p[v + i] * r;
                b[i] += q[v + i] * r;
            }
        for (; v < end; v++) {
            real r = (zt[v] - z[v]) * inv + shift;
            a[0] += p[v] * r;
            b[0] += q[v] * r;
        }
        sum[0] += sum_lanes(a);
        sum[1] += sum_lanes(b);
    }
}

/* KL(P||Q) and KL(Q||P) at temperature t; g (NULL: not wanted) += kl t^2 dKL(P||Q)/dz + reverse t^2 dKL(Q||P)/dz.
 * What is lost when lse(z/t) - lse(T/t) is rounded to real is the same for all v: it is added to both sums at the end.
 */
static void divergences(double both[2], real *g, const row_softmax *p, const row_softmax *q, const real *z,
                        const real *zt, int64_t V, real t, real kl, real reverse)
{
    const real *pe = p->e, *qe = q->e;
    double shift = q->lse - p->lse, lost = shift - (double)(real)shift;
    log_ratio_sums(both, pe, qe, z, zt, V, 1 / t, (real)shift);
    both[0] = both[0] / p->sum + lost;
    both[1] = -(both[1] / q->sum + lost);
    if (!g)
        return;
    real a = (real)((double)(t * kl) / q->sum), b = (real)((double)(t * kl) / p->sum);
    for (int64_t v = 0; v < V; v++)
        g[v] += a * qe[v] - b * pe[v];
    real c = (real)((double)(t * reverse) / q->sum), level = (real)(shift + both[1]), inv = 1 / t;
    for (int64_t v = 0; c != 0 && v < V; v++)
        g[v] -= c * qe[v] * ((zt[v] - z[v]) * inv + level);
}

/* Mean square and cosine terms: their sum, and g += their gradients. */
static double distances(real *g, const real *z, const real *zt, int64_t V, const ag_head_loss *l)
{
    double dot = 0, zz = 0, tt = 0, square = 0;
    for (int64_t v = 0; v < V; v++) {
        double d = (double)z[v] - (double)zt[v];
        dot += (double)z[v] * (double)zt[v];
        zz += (double)z[v] * (double)z[v];
        tt += (double)zt[v] * (double)zt[v];
        square += d * d;
    }
    double norms = sqrt(zz) * sqrt(tt), cosine = norms > 0 ? dot / norms : 0;
    real m = (real)(2 * (double)l->mse / (double)V);
    real a = norms > 0 ? (real)((double)l->cosine * cosine / zz) : 0;
    real b = norms > 0 ? (real)((double)l->cosine / norms) : 0;
    for (int64_t v = 0; g && v < V; v++)
        g[v] += m * (z[v] - zt[v]) + a * z[v] - b * zt[v];
    return (double)l->mse * square / (double)V + (double)l->cosine * (1 - cosine);
}

static bool same_top(const real *z, const real *zt, real max, real max_t, int64_t V)
{
    int64_t v = 0;
    while (v < V - 1 && z[v] != max)
        v++;
    return zt[v] == max_t;
}

ag_row_result ag_head_row(real *z, const real *zt, int64_t V, int32_t target, const ag_head_loss *l,
                          const ag_row_wish *wish, real *scratch)
{
    row_softmax q = {.e = scratch}, p = {.e = scratch + V};
    real t = l->temperature, *g = wish->gradient ? scratch + 2 * V : NULL;
    ag_row_result r = {0};
    double both[2];
    bool divergence = zt && (l->kl != 0 || l->reverse_kl != 0);
    exponentials(&q, z, V, 1);
    r.ce = q.lse - (double)z[target];
    r.loss = (double)l->ce * r.ce;
    if (g) {
        real a = (real)((double)l->ce / q.sum);
        for (int64_t v = 0; v < V; v++)
            g[v] = a * scratch[v];
        g[target] -= l->ce;
    }
    if (zt && (wish->report || (divergence && t == 1))) {
        exponentials(&p, zt, V, 1);
        divergences(both, t == 1 && divergence ? g : NULL, &p, &q, z, zt, V, 1, l->kl, l->reverse_kl);
        r.kl = both[0];
        r.same_top = wish->report && same_top(z, zt, q.max, p.max, V);
    }
    if (divergence && t != 1) {
        exponentials(&q, z, V, t);
        exponentials(&p, zt, V, t);
        divergences(both, g, &p, &q, z, zt, V, t, l->kl, l->reverse_kl);
    }
    if (divergence)
        r.loss += (double)t * (double)t * ((double)l->kl * both[0] + (double)l->reverse_kl * both[1]);
    if (zt && (l->mse != 0 || l->cosine != 0))
        r.loss += distances(g, z, zt, V, l);
    real factor = wish->factor;
    for (int64_t v = 0; g && v < V; v++)
        z[v] = g[v] * factor;
    return r;
}

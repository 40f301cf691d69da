/* op_head.c - the head and its losses in one operator: z = x w' + b is made in chunks of 256 rows and never kept whole.
 *
 * Over the n rows with target >= 0: V vocabulary, t temperature, T teacher logits, P = softmax(T/t), Q = softmax(z/t).
 *   term                                     d term / d z[v]
 *   ce      lse(z) - z[target]               softmax(z)[v] - [v == target]
 *   kl      t^2 sum P (log P - log Q)        t (Q - P)
 *   reverse t^2 sum Q (log Q - log P)        t Q (log Q - log P - sum Q (log Q - log P))
 *   mse     mean_v (z - T)^2                 2 (z - T) / V
 *   cosine  1 - z.T / (|z| |T|)              z (z.T) / (|z|^3 |T|) - T / (|z| |T|)
 *   L = sum over rows and terms of weight * term / n
 *   dx = dL dz w,  dw = dL dz' x,  db = dL * column sums of dz
 * log P - log Q = (T - z)/t + lse(z/t) - lse(T/t): no logarithm of a probability is taken. Where a gradient is wanted,
 * dz w [M,C], dz' x [V,C] and the column sums [V] are kept, and the backward pass scales them by dL. Rows are
 * independent; their results are added in row order.
 */
#include "op.h"
#include <math.h>
#include <omp.h>
#include <string.h>

enum { CHUNK = 256 };

typedef struct {
    ag_head_loss loss;
    ag_head_report *report; /* the caller's, or NULL */
    int32_t *target;        /* [M] */
    int64_t scored;
    real *dx, *dw, *db; /* gradients for dL = 1, or NULL */
} save_head;

/* What one row gives: losses, and whether student and teacher put the same token first. */
typedef struct {
    double loss, ce, kl;
    bool same_top;
} row_result;

/* e^((x - max) / t) unnormalized, with what makes a softmax of it. */
typedef struct {
    real *e;
    real max;
    double sum, lse; /* lse: of x / t */
} row_softmax;

/* In 16 lanes, which compilers turn into vectors. */
static real largest(const real *x, int64_t V)
{
    enum { LANES = 16 };
    real max[LANES];
    int64_t v = 0;
    for (int i = 0; i < LANES; i++)
        max[i] = x[0];
    for (; v + LANES <= V; v += LANES)
        for (int i = 0; i < LANES; i++)
            max[i] = x[v + i] > max[i] ? x[v + i] : max[i];
    for (; v < V; v++)
        max[0] = x[v] > max[0] ? x[v] : max[0];
    for (int i = 1; i < LANES; i++)
        max[0] = max[i] > max[0] ? max[i] : max[0];
    return max[0];
}

static void exponentials(row_softmax *s, const real *x, int64_t V, real t)
{
    real max = largest(x, V), inv = 1 / t;
    double sum = 0;
    for (int64_t v = 0; v < V; v++)
        s->e[v] = (x[v] - max) * inv;
    kn_exp(s->e, s->e, V);
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < V; v++)
        sum += (double)s->e[v];
    s->max = max;
    s->sum = sum;
    s->lse = (double)max * (double)inv + log(sum);
}

/* KL(P||Q) and KL(Q||P) at temperature t; g (NULL: not wanted) += kl * t^2 dKL(P||Q)/dz + reverse * t^2 dKL(Q||P)/dz.
 */
static void divergences(double both[2], real *g, const row_softmax *p, const row_softmax *q, const real *z,
                        const real *zt, int64_t V, real t, real kl, real reverse)
{
    double shift = q->lse - p->lse, forward = 0, backward = 0, inv = 1 / (double)t;
#pragma omp simd reduction(+ : forward, backward)
    for (int64_t v = 0; v < V; v++) {
        double d = ((double)zt[v] - (double)z[v]) * inv + shift;
        forward += (double)p->e[v] * d;
        backward -= (double)q->e[v] * d;
    }
    both[0] = forward / p->sum;
    both[1] = backward / q->sum;
    if (!g)
        return;
    real a = (real)((double)(t * kl) / q->sum), b = (real)((double)(t * kl) / p->sum),
         c = (real)((double)(t * reverse) / q->sum);
    real level = (real)(shift + both[1]), scale = 1 / t;
    if (reverse == 0) {
        for (int64_t v = 0; v < V; v++)
            g[v] += a * q->e[v] - b * p->e[v];
        return;
    }
    for (int64_t v = 0; v < V; v++)
        g[v] += a * q->e[v] - b * p->e[v] - c * q->e[v] * ((zt[v] - z[v]) * scale + level);
}

/* Mean square and cosine terms: their sum, and g += their gradients. */
static double distances(real *g, const real *z, const real *zt, int64_t V, const ag_head_loss *l)
{
    double dot = 0, zz = 0, tt = 0;
#pragma omp simd reduction(+ : dot, zz, tt)
    for (int64_t v = 0; v < V; v++) {
        dot += (double)z[v] * (double)zt[v];
        zz += (double)z[v] * (double)z[v];
        tt += (double)zt[v] * (double)zt[v];
    }
    double norms = sqrt(zz) * sqrt(tt), cosine = norms > 0 ? dot / norms : 0, square = 0;
    real m = (real)(2 * (double)l->mse / (double)V);
    real a = norms > 0 ? (real)((double)l->cosine * cosine / zz) : 0,
         b = norms > 0 ? (real)((double)l->cosine / norms) : 0;
    for (int64_t v = 0; v < V; v++) {
        real d = z[v] - zt[v];
        square += (double)d * (double)d;
        if (g)
            g[v] += m * d + a * z[v] - b * zt[v];
    }
    return (double)l->mse * square / (double)V + (double)l->cosine * (1 - cosine);
}

static int64_t first_at(const real *x, real value, int64_t V)
{
    int64_t v = 0;
    while (v < V - 1 && x[v] != value)
        v++;
    return v;
}

/* One scored row: losses; with `gradient`, z becomes dL/dz of L = sum of terms * factor. scratch: 3 V reals. */
static row_result score_row(real *z, const real *zt, int64_t V, int32_t target, const save_head *s, bool gradient,
                            real factor, real *scratch)
{
    const ag_head_loss *l = &s->loss;
    row_softmax q = {.e = scratch}, p = {.e = scratch + V};
    real t = l->temperature, *g = gradient ? scratch + 2 * V : NULL;
    row_result r = {0};
    double both[2];
    bool divergence = zt && (l->kl != 0 || l->reverse_kl != 0);
    if (g)
        memset(g, 0, (size_t)V * sizeof *g);
    exponentials(&q, z, V, 1);
    r.ce = q.lse - (double)z[target];
    r.loss = (double)l->ce * r.ce;
    if (g && l->ce != 0) {
        real a = (real)((double)l->ce / q.sum);
        for (int64_t v = 0; v < V; v++)
            g[v] += a * q.e[v];
        g[target] -= l->ce;
    }
    if (zt && (s->report || (divergence && t == 1))) {
        exponentials(&p, zt, V, 1);
        divergences(both, t == 1 ? g : NULL, &p, &q, z, zt, V, 1, l->kl, l->reverse_kl);
        r.kl = both[0];
        r.same_top = s->report && zt[first_at(z, q.max, V)] == p.max;
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
    for (int64_t v = 0; g && v < V; v++)
        z[v] = g[v] * factor;
    return r;
}

/* Buffers of one run, given back when it ends. */
typedef struct {
    real *z, *zt, *x, *scratch;
    size_t chunk_bytes, x_bytes, scratch_bytes;
} head_memory;

static bool take_memory(head_memory *m, const ag_tensor *out)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0];
    ag_tape *t = out->tape;
    int64_t rows = ag_rows(x) < CHUNK ? ag_rows(x) : CHUNK, V = out->src[1]->dim[0];
    *m = (head_memory){.chunk_bytes = (size_t)(rows * V) * sizeof(real),
                       .x_bytes = (size_t)(rows * ag_cols(x)) * sizeof(real),
                       .scratch_bytes = (size_t)(3 * V * omp_get_max_threads()) * sizeof(real)};
    m->z = ag_take(t, m->chunk_bytes);
    m->scratch = ag_take(t, m->scratch_bytes);
    if (s->loss.teacher)
        m->zt = ag_take(t, m->chunk_bytes);
    if (s->dw && !x->x)
        m->x = ag_take(t, m->x_bytes);
    return !t->err;
}

static void give_memory(const head_memory *m, ag_tape *t)
{
    ag_give_back(t, m->z, m->chunk_bytes);
    ag_give_back(t, m->zt, m->chunk_bytes);
    ag_give_back(t, m->x, m->x_bytes);
    ag_give_back(t, m->scratch, m->scratch_bytes);
}

/* dz [n,V] of rows from `row` on into the gradients kept for the backward pass. */
static void keep_gradients(const ag_tensor *out, const head_memory *m, int64_t row, int64_t n)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0], *w = out->src[1];
    kn_precision precision = out->tape->precision;
    int64_t V = w->dim[0], C = w->dim[1];
    real beta = row > 0;
    if (s->dx) {
        const real *wv = ag_in(out, 1);
        if (wv)
            kn_product_nn(precision, s->dx + row * C, m->z, wv, n, C, V, 0);
    }
    if (s->dw) {
        if (!x->x)
            kn_decode(m->x, x->codes, row, n);
        kn_product_tn(precision, s->dw, m->z, x->x ? x->x + row * C : m->x, V, C, n, beta);
    }
    if (s->db)
        ag_add_columns(s->db, 1, m->z, NULL, n, V);
}

static void head_forward(ag_tensor *out)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0], *w = out->src[1], *b = out->n_src > 2 ? out->src[2] : NULL;
    int64_t M = ag_rows(x), V = w->dim[0];
    bool gradient = s->dx || s->dw || s->db;
    real factor = s->scored ? (real)(1 / (double)s->scored) : 0;
    ag_head_report sum = {.rows = s->scored};
    row_result result[CHUNK];
    head_memory m;
    double loss = 0;
    if (!x->x && !x->codes && !ag_in(out, 0))
        return;
    if (!take_memory(&m, out))
        return;
    for (int64_t row = 0; row < M; row += CHUNK) {
        int64_t n = M - row < CHUNK ? M - row : CHUNK;
        status e = s->loss.teacher ? s->loss.teacher(s->loss.ctx, m.zt, row, n) : NB_OK;
        if (e)
            ag_fail(out->tape, e, "head: the teacher's logits of rows from %lld: %s", (long long)row,
                    nb_fail_message());
        if (e || !ag_linear_rows(m.z, x, w, b, row, n))
            return;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            real *z = m.z + i * V;
            if (s->target[row + i] >= 0)
                result[i] = score_row(z, m.zt ? m.zt + i * V : NULL, V, s->target[row + i], s, gradient, factor,
                                      m.scratch + 3 * V * omp_get_thread_num());
            else if (gradient)
                memset(z, 0, (size_t)V * sizeof *z);
        }
        for (int64_t i = 0; i < n; i++) {
            if (s->target[row + i] < 0)
                continue;
            loss += result[i].loss;
            sum.ce += result[i].ce;
            sum.kl += result[i].kl;
            sum.same_top += result[i].same_top;
        }
        if (gradient)
            keep_gradients(out, &m, row, n);
    }
    out->x[0] = (real)(s->scored ? loss / (double)s->scored : 0);
    if (s->report)
        *s->report = sum;
    give_memory(&m, out->tape);
}

static void give_grad(const ag_tensor *src, real a, real **g)
{
    if (!*g)
        return;
    ag_add_grad(src, a, *g);
    ag_give_back(src->tape, *g, (size_t)ag_count(src) * sizeof(real));
    *g = NULL;
}

static void head_backward(const ag_tensor *out)
{
    save_head *s = out->save;
    give_grad(out->src[0], out->g[0], &s->dx);
    give_grad(out->src[1], out->g[0], &s->dw);
    if (out->n_src > 2)
        give_grad(out->src[2], out->g[0], &s->db);
}

/* The gradients are made in the forward pass, so no source is read in the backward pass. */
static const ag_op op_head = {"head", head_forward, head_backward, 0};

static real *gradient_of(const ag_tensor *out, int i)
{
    size_t bytes = (size_t)ag_count(out->src[i]) * sizeof(real);
    return out->needs_grad && out->src[i]->needs_grad ? ag_take(out->tape, bytes) : NULL;
}

ag_tensor *ag_head(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const int32_t *target,
                   const ag_head_loss *loss, ag_head_report *report)
{
    if (!x || !w)
        return NULL;
    if (x->n_dim < 1 || w->n_dim != 2 || ag_cols(x) != w->dim[1])
        return ag_fail(t, NB_SHAPE, "head: x %s does not fit w %s", ag_words_of(x).text, ag_words_of(w).text);
    if (b && (b->n_dim != 1 || b->dim[0] != w->dim[0]))
        return ag_fail(t, NB_SHAPE, "head: bias %s does not fit w %s", ag_words_of(b).text, ag_words_of(w).text);
    if (!loss->teacher && (loss->kl != 0 || loss->reverse_kl != 0 || loss->mse != 0 || loss->cosine != 0))
        return ag_fail(t, NB_USAGE, "head: the loss compares with a teacher, and there is none");
    if (!(loss->temperature >= 0))
        return ag_fail(t, NB_USAGE, "head: temperature %g", (double)loss->temperature);
    ag_tensor *out = ag_node(t, &op_head, b ? 3 : 2, (ag_tensor *[]){x, w, b}, 0, NULL, sizeof(save_head));
    if (!out)
        return NULL;
    save_head *s = out->save;
    int64_t M = ag_rows(x);
    s->loss = *loss;
    s->loss.temperature = loss->temperature == 0 ? 1 : loss->temperature;
    s->report = report;
    s->dx = gradient_of(out, 0);
    s->dw = gradient_of(out, 1);
    s->db = b ? gradient_of(out, 2) : NULL;
    s->target = ag_copy(t, target, (size_t)M * sizeof *target);
    if (!s->target)
        return NULL;
    if (s->db)
        memset(s->db, 0, (size_t)w->dim[0] * sizeof(real));
    for (int64_t m = 0; m < M; m++) {
        if (target[m] >= w->dim[0])
            return ag_fail(t, NB_USAGE, "head: target %d in row %lld, the vocabulary has %lld tokens", (int)target[m],
                           (long long)m, (long long)w->dim[0]);
        s->scored += target[m] >= 0;
    }
    return ag_run(t, out);
}

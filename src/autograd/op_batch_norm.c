/* op_batch_norm.c - batch normalization of pictures [B, P*C], over B and P for each channel (Ioffe & Szegedy 2015).
 *   y = (x - m[c]) r[c] w[c] + b[c],   r = 1 / sqrt(v + eps)      m, v: mean and variance of the M = B P numbers
 *   db = sum dy,  dw = sum dy (x - m) r
 *   dx = w r (dy - db / M - (x - m) r dw / M);  with given moments dx = w r dy
 */
#include "op.h"
#include <math.h>

typedef struct {
    double *mean, *variance; /* [C] */
    real eps;
    bool given;
} save_norm;

static void no_memory(const ag_tensor *out)
{
    ag_fail(out->tape, NB_NOMEM, "batch_norm: %s", nb_fail_message());
}

static void norm_forward(ag_tensor *out)
{
    save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1), *b = ag_in(out, 2);
    const int64_t C = ag_count(out->src[1]), M = ag_count(out) / C;
    if (!x || !w || !b)
        return;
    if (!s->given && kn_column_moments(s->mean, s->variance, x, M, C) != NB_OK) {
        no_memory(out);
        return;
    }
    real *factor = ag_take(out->tape, (size_t)C * 2 * sizeof *factor), *term = factor + C;
    if (!factor)
        return;
    for (int64_t c = 0; c < C; c++) {
        const double f = (double)w[c] / sqrt(s->variance[c] + (double)s->eps);
        factor[c] = (real)f;
        term[c] = (real)((double)b[c] - s->mean[c] * f);
    }
    kn_column_map(out->x, 0, x, factor, NULL, NULL, term, M, C);
    ag_give_back(out->tape, factor, (size_t)C * 2 * sizeof *factor);
}

/* dx = dy p + x q + r, with p = w r, q = -p r dw / M, r = -p db / M - mean q */
static void norm_backward(const ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1), *dy = out->g;
    const int64_t C = ag_count(out->src[1]), M = ag_count(out) / C;
    real *dw = ag_grad(out->src[1]), *db = ag_grad(out->src[2]);
    const size_t bytes = (size_t)C * (2 * sizeof(double) + 3 * sizeof(real));
    double *sum = x && w ? ag_take(out->tape, bytes) : NULL;
    if (!sum)
        return;
    double *product = sum + C;
    if (kn_column_products(sum, product, dy, x, s->mean, M, C) != NB_OK) {
        no_memory(out);
        return;
    }
    real *p = (real *)(product + C), *q = p + C, *term = q + C, beta = 0;
    for (int64_t c = 0; c < C; c++) {
        const double r = 1 / sqrt(s->variance[c] + (double)s->eps), own = (double)w[c] * r;
        const double along = s->given ? 0 : -own * product[c] * r * r / (double)M;
        p[c] = (real)own;
        q[c] = (real)along;
        term[c] = (real)(s->given ? 0 : -own * sum[c] / (double)M - s->mean[c] * along);
        if (db)
            db[c] += (real)sum[c];
        if (dw)
            dw[c] += (real)(product[c] * r);
    }
    real *dx = ag_grad_handed_over(out, out->src[0]);
    if (!dx)
        dx = ag_grad_write(out->src[0], &beta);
    if (dx)
        kn_column_map(dx, beta, dy, p, x, q, term, M, C);
    ag_give_back(out->tape, sum, bytes);
}

static const ag_op op_norm = {"batch_norm", norm_forward, norm_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_batch_norm(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const real *mean, const real *variance, real eps)
{
    if (!x || !w || !b)
        return NULL;
    const int64_t C = ag_count(w);
    if (ag_cols(x) % C || ag_count(b) != C)
        return ag_fail(t, NB_SHAPE, "batch_norm: x %s, w %s, b %s", ag_words_of(x).text, ag_words_of(w).text, ag_words_of(b).text);
    ag_tensor *out = ag_node(t, &op_norm, 3, (ag_tensor *[]){x, w, b}, x->n_dim, x->dim, sizeof(save_norm));
    if (!out)
        return NULL;
    save_norm *s = out->save;
    s->eps = eps;
    s->given = mean && variance;
    s->mean = ag_take(t, (size_t)C * 2 * sizeof *s->mean);
    if (!s->mean)
        return NULL;
    s->variance = s->mean + C;
    for (int64_t c = 0; s->given && c < C; c++) {
        s->mean[c] = (double)mean[c];
        s->variance[c] = (double)variance[c];
    }
    return ag_run(t, out);
}

void ag_batch_norm_moments(const ag_tensor *out, const double **mean, const double **variance)
{
    const save_norm *s = out->save;
    *mean = s->mean;
    *variance = s->variance;
}

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

static void moments(save_norm *s, const real *x, int64_t M, int64_t C)
{
#pragma omp parallel for schedule(static) if (M * C > AG_PARALLEL)
    for (int64_t c0 = 0; c0 < C; c0 += 16) {
        const int64_t end = c0 + 16 < C ? c0 + 16 : C;
        for (int64_t c = c0; c < end; c++)
            s->mean[c] = s->variance[c] = 0;
        for (int64_t m = 0; m < M; m++)
            for (int64_t c = c0; c < end; c++)
                s->mean[c] += (double)x[m * C + c];
        for (int64_t c = c0; c < end; c++)
            s->mean[c] /= (double)M;
        for (int64_t m = 0; m < M; m++)
            for (int64_t c = c0; c < end; c++) {
                const double d = (double)x[m * C + c] - s->mean[c];
                s->variance[c] += d * d;
            }
        for (int64_t c = c0; c < end; c++)
            s->variance[c] /= (double)M;
    }
}

static void norm_forward(ag_tensor *out)
{
    save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1), *b = ag_in(out, 2);
    const int64_t C = ag_count(out->src[1]), M = ag_count(out) / C;
    if (!x || !w || !b)
        return;
    if (!s->given)
        moments(s, x, M, C);
    real *factor = ag_take(out->tape, (size_t)C * 2 * sizeof *factor), *term = factor + C;
    if (!factor)
        return;
    for (int64_t c = 0; c < C; c++) {
        const double f = (double)w[c] / sqrt(s->variance[c] + (double)s->eps);
        factor[c] = (real)f;
        term[c] = (real)((double)b[c] - s->mean[c] * f);
    }
#pragma omp parallel for schedule(static) if (M * C > AG_PARALLEL)
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0; c < C; c++)
            out->x[m * C + c] = x[m * C + c] * factor[c] + term[c];
    ag_give_back(out->tape, factor, (size_t)C * 2 * sizeof *factor);
}

static void norm_backward(const ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1), *dy = out->g;
    const int64_t C = ag_count(out->src[1]), M = ag_count(out) / C;
    real *dx = ag_grad(out->src[0]), *dw = ag_grad(out->src[1]), *db = ag_grad(out->src[2]);
    if (!x || !w)
        return;
#pragma omp parallel for schedule(static) if (M * C > AG_PARALLEL)
    for (int64_t c0 = 0; c0 < C; c0 += 16) {
        const int64_t n = c0 + 16 < C ? 16 : C - c0;
        double sum[16] = {0}, product[16] = {0};
        real own[16], mean[16], each[16], along[16];
        for (int64_t m = 0; m < M; m++)
            for (int64_t i = 0; i < n; i++) {
                const double d = (double)dy[m * C + c0 + i];
                sum[i] += d;
                product[i] += d * ((double)x[m * C + c0 + i] - s->mean[c0 + i]);
            }
        for (int64_t i = 0; i < n; i++) {
            const int64_t c = c0 + i;
            const double r = 1 / sqrt(s->variance[c] + (double)s->eps);
            own[i] = (real)((double)w[c] * r);
            mean[i] = (real)s->mean[c];
            each[i] = (real)(s->given ? 0 : sum[i] / (double)M);
            along[i] = (real)(s->given ? 0 : product[i] * r * r / (double)M);
            if (db)
                db[c] += (real)sum[i];
            if (dw)
                dw[c] += (real)(product[i] * r);
        }
        for (int64_t m = 0; dx && m < M; m++)
            for (int64_t i = 0; i < n; i++) {
                const int64_t at = m * C + c0 + i;
                dx[at] += own[i] * (dy[at] - each[i] - (x[at] - mean[i]) * along[i]);
            }
    }
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

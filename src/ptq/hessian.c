/* hessian.c - the Gram matrix of a linear's inputs and its factor: H + damping mean(diag H) I = v v', U = inverse(v). A column that no input
 * ever reached has H_jj = 0 and is set to 1: it passes nothing on. (Frantar et al. 2023; the retries are GPTQModel's) */
#include "ptq/gptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

status pt_hessian_new(pt_hessian *h, int64_t K)
{
    *h = (pt_hessian){.K = K, .in_order = true};
    h->H = nb_alloc_zeroed((size_t)K, (size_t)K * sizeof *h->H);
    h->order = nb_alloc((size_t)K, sizeof *h->order);
    if (h->H && h->order)
        return NB_OK;
    pt_hessian_free(h);
    return NB_NOMEM;
}

void pt_hessian_free(pt_hessian *h)
{
    free(h->H);
    free(h->U);
    free(h->order);
    *h = (pt_hessian){0};
}

status pt_hessian_add(pt_hessian *h, kn_precision precision, const real *x, const real *weight, int64_t M)
{
    const int64_t K = h->K;
    real *y = weight ? nb_alloc((size_t)M, (size_t)K * sizeof *y) : NULL;
    if (weight && !y)
        return NB_NOMEM;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < (y ? M : 0); t++) {
        const real root = (real)sqrt((double)weight[t]);
        for (int64_t k = t * K; k < (t + 1) * K; k++)
            y[k] = root * x[k];
    }
    kn_gram(precision, h->H, y ? y : x, M, K, 1);
    free(y);
    return NB_OK;
}

typedef struct {
    real key;
    int64_t column;
} ranked;

static int falling(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return x->key != y->key ? (x->key < y->key) - (x->key > y->key) : (x->column > y->column) - (x->column < y->column);
}

static status sort_columns(pt_hessian *h, bool act_order)
{
    ranked *r = act_order ? nb_alloc((size_t)h->K, sizeof *r) : NULL;
    if (act_order && !r)
        return NB_NOMEM;
    for (int64_t i = 0; i < h->K; i++)
        if (r)
            r[i] = (ranked){h->H[i * h->K + i], i};
    if (r)
        qsort(r, (size_t)h->K, sizeof *r, falling);
    h->in_order = true;
    for (int64_t i = 0; i < h->K; i++) {
        h->order[i] = r ? r[i].column : i;
        h->in_order = h->in_order && h->order[i] == i;
    }
    free(r);
    return NB_OK;
}

/* a <- H in its order, its diagonal raised. */
static void damped(double *a, const pt_hessian *h, double add)
{
    const int64_t K = h->K;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < K; i++) {
        const real *row = h->H + h->order[i] * K;
        for (int64_t j = 0; j < K; j++)
            a[i * K + j] = (double)row[h->order[j]];
        a[i * K + i] = (a[i * K + i] > 0 ? a[i * K + i] : 1) + add;
    }
}

status pt_hessian_factor(pt_hessian *h, double damping, bool act_order)
{
    const int64_t K = h->K;
    double mean = 0;
    TRY(sort_columns(h, act_order));
    for (int64_t i = 0; i < K; i++)
        mean += (double)h->H[i * K + i] / (double)K;
    if (!h->U && !(h->U = nb_alloc((size_t)K, (size_t)K * sizeof *h->U)))
        return NB_NOMEM;
    double *a = nb_alloc((size_t)K, (size_t)K * sizeof *a), share = damping > 0 ? damping : 0.01;
    if (!a)
        return NB_NOMEM;
    bool done = false;
    for (int tries = 0; !done && share <= 1; tries++) {
        damped(a, h, share * mean);
        h->damping = share;
        done = kn_inverse_factor(a, K);
        share = tries < 5 ? share + 0.01 : 10 * share;
    }
    if (!done) {
        h->damping = NAN;
        memset(a, 0, (size_t)(K * K) * sizeof *a);
        for (int64_t i = 0; i < K; i++) {
            const double d = (double)h->H[h->order[i] * (K + 1)];
            a[i * K + i] = d > 0 && isfinite(d) ? 1 / sqrt(d) : 1;
        }
    }
    for (int64_t i = 0; i < K * K; i++)
        h->U[i] = (real)a[i];
    free(a);
    return NB_OK;
}

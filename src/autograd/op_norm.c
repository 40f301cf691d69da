/* op_norm.c - normalization of rows.
 *   rmsnorm:   y[m,c] = x[m,c] * r[m] * w[c],  r[m] = 1 / sqrt(mean_c x[m,c]^2 + eps)       (Zhang & Sennrich 2019)
 *     with u = dy * w, s = mean_c u*x:  dx = r*u - r^3 * s * x,  dw[c] = sum_m dy*x*r
 *   layernorm: y[m,c] = h[m,c] * w[c] + b[c],  h = (x - mean) * r,  r = 1 / sqrt(var + eps)  (Ba et al. 2016)
 *     with u = dy * w:  dx = r * (u - mean_c u - h * mean_c u*h),  dw[c] = sum_m dy*h,  db[c] = sum_m dy
 * Kept: x, w and the row factors r (and means).
 */
#include "op.h"

typedef struct {
    real eps;
    real *r, *mean; /* [M]; NULL without a backward pass */
} save_norm;

static void rmsnorm_forward(ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1);
    if (x && w)
        kn_rmsnorm(out->x, s->r, x, w, ag_rows(out), ag_cols(out), s->eps);
}

static void rmsnorm_backward(const ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1);
    if (x && w)
        kn_rmsnorm_backward(ag_grad(out->src[0]), ag_grad(out->src[1]), out->g, x, w, s->r, ag_rows(out), ag_cols(out));
}

static const ag_op op_rmsnorm = {"rmsnorm", rmsnorm_forward, rmsnorm_backward, AG_KEEP(0) | AG_KEEP(1)};

static bool fits_last(const ag_tensor *x, const ag_tensor *w)
{
    return w->n_dim == 1 && w->dim[0] == ag_cols(x);
}

ag_tensor *ag_rmsnorm(ag_tape *t, ag_tensor *x, ag_tensor *w, real eps)
{
    if (!x || !w)
        return NULL;
    if (!fits_last(x, w))
        return ag_fail(t, NB_SHAPE, "rmsnorm: w %s does not fit x %s", ag_words_of(w).text, ag_words_of(x).text);
    ag_tensor *out = ag_node(t, &op_rmsnorm, 2, (ag_tensor *[]){x, w}, x->n_dim, x->dim, sizeof(save_norm));
    if (!out)
        return NULL;
    save_norm *s = out->save;
    s->eps = eps;
    if (out->needs_grad && !(s->r = ag_take(t, (size_t)ag_rows(x) * sizeof(real))))
        return NULL;
    return ag_run(t, out);
}

static void layernorm_forward(ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1), *b = ag_in(out, 2);
    if (x && w && b)
        kn_layernorm(out->x, s->mean, s->r, x, w, b, ag_rows(out), ag_cols(out), s->eps);
}

static void layernorm_backward(const ag_tensor *out)
{
    const save_norm *s = out->save;
    const real *x = ag_in(out, 0), *w = ag_in(out, 1);
    if (x && w)
        kn_layernorm_backward(ag_grad(out->src[0]), ag_grad(out->src[1]), ag_grad(out->src[2]), out->g, x, w, s->mean,
                              s->r, ag_rows(out), ag_cols(out));
}

static const ag_op op_layernorm = {"layernorm", layernorm_forward, layernorm_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_layernorm(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, real eps)
{
    if (!x || !w || !b)
        return NULL;
    if (!fits_last(x, w) || !fits_last(x, b))
        return ag_fail(t, NB_SHAPE, "layernorm: w %s and b %s do not fit x %s", ag_words_of(w).text,
                       ag_words_of(b).text, ag_words_of(x).text);
    ag_tensor *out = ag_node(t, &op_layernorm, 3, (ag_tensor *[]){x, w, b}, x->n_dim, x->dim, sizeof(save_norm));
    if (!out)
        return NULL;
    save_norm *s = out->save;
    s->eps = eps;
    if (out->needs_grad) {
        s->r = ag_take(t, (size_t)ag_rows(x) * sizeof(real));
        s->mean = ag_take(t, (size_t)ag_rows(x) * sizeof(real));
        if (!s->r || !s->mean)
            return NULL;
    }
    return ag_run(t, out);
}

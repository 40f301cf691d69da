/* op_dropout.c - elements left out at random, the rest made larger so that the mean stays (Srivastava et al. 2014).
 *   y[i] = x[i] m[i] / (1 - p),  m[i] = [u_i >= p],  u_i uniform in [0, 1) from the counter (seed, stream, i)
 *   dx[i] = dy[i] m[i] / (1 - p)
 * The mask is made again in the backward pass.
 */
#include "op.h"

typedef struct {
    real p;
    uint64_t seed, stream;
} save_dropout;

/* dst (+)= src * mask / (1 - p) */
static void mask(real *dst, const real *src, const save_dropout *s, int64_t n, bool add)
{
    real factor = 1 / (1 - s->p);
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++) {
        real y = nb_random_unit(s->seed, s->stream, (uint64_t)i) >= (double)s->p ? src[i] * factor : 0;
        dst[i] = add ? dst[i] + y : y;
    }
}

static void dropout_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        mask(out->x, x, out->save, ag_count(out), false);
}

static void dropout_backward(const ag_tensor *out)
{
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (g)
        mask(g, out->g, out->save, ag_count(out), beta != 0);
}

static const ag_op op_dropout = {"dropout", dropout_forward, dropout_backward, 0};

ag_tensor *ag_dropout(ag_tape *t, ag_tensor *x, real p, uint64_t seed, uint64_t stream)
{
    if (x && !(p >= 0 && p < 1))
        return ag_fail(t, NB_USAGE, "dropout: p is %g, not in [0, 1)", (double)p);
    ag_tensor *out = x ? ag_node(t, &op_dropout, 1, &x, x->n_dim, x->dim, sizeof(save_dropout)) : NULL;
    if (!out)
        return NULL;
    *(save_dropout *)out->save = (save_dropout){p, seed, stream};
    return ag_run(t, out);
}

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

static void dropout_forward(ag_tensor *out)
{
    const save_dropout *s = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        kn_drop(out->x, 0, x, ag_count(out), s->p, s->seed, s->stream);
}

static void dropout_backward(const ag_tensor *out)
{
    const save_dropout *s = out->save;
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (g)
        kn_drop(g, beta, out->g, ag_count(out), s->p, s->seed, s->stream);
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

/* op_hadamard.c - runs of channels times a Hadamard matrix: y = x H, dx = dy H'. Nothing is kept.
 */
#include "op.h"

typedef struct {
    const kn_hadamard *h; /* the caller's */
} save_hadamard;

static void turn(real *y, const real *x, const ag_tensor *out, bool transposed)
{
    const kn_hadamard *h = ((const save_hadamard *)out->save)->h;
    kn_hadamard_rows(y, x, ag_count(out) / kn_hadamard_length(h), h, transposed);
}

static void hadamard_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        turn(out->x, x, out, false);
}

static void hadamard_backward(const ag_tensor *out)
{
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (!g)
        return;
    if (beta == 0) {
        turn(g, out->g, out, true);
        return;
    }
    size_t bytes = (size_t)ag_count(out) * sizeof(real);
    real *turned = ag_take(out->tape, bytes);
    if (!turned)
        return;
    turn(turned, out->g, out, true);
    kn_add_to(g, turned, ag_count(out));
    ag_give_back(out->tape, turned, bytes);
}

static const ag_op op_hadamard = {"hadamard", hadamard_forward, hadamard_backward, 0};

ag_tensor *ag_hadamard(ag_tape *t, ag_tensor *x, const kn_hadamard *h)
{
    if (!x)
        return NULL;
    if (ag_cols(x) % kn_hadamard_length(h))
        return ag_fail(t, NB_SHAPE, "hadamard: the channels of x %s are not whole runs of %lld", ag_words_of(x).text,
                       (long long)kn_hadamard_length(h));
    ag_tensor *out = ag_node(t, &op_hadamard, 1, &x, x->n_dim, x->dim, sizeof(save_hadamard));
    if (!out)
        return NULL;
    *(save_hadamard *)out->save = (save_hadamard){h};
    return ag_run(t, out);
}

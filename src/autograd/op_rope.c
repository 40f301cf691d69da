/* op_rope.c - rotary position embedding (Su et al. 2021).
 * Pairs (a, b) of every head of row m, at position p = m mod T, turn by the angle p theta_i:
 *   a' = a cos - b sin,  b' = a sin + b cos        da = da' cos + db' sin,  db = db' cos - da' sin
 * Nothing is kept: the backward pass is the inverse rotation.
 */
#include "op.h"

typedef struct {
    const real *cos, *sin; /* [>= T, D/2], the caller's */
    int64_t H;
    kn_rope_pairing pairing;
} save_rope;

static void rotate(real *y, const real *x, const ag_tensor *out, bool inverse)
{
    const save_rope *s = out->save;
    kn_rope(y, x, s->cos, s->sin, NULL, ag_rows(out), s->H, out->dim[2] / s->H, out->dim[1], s->pairing, inverse);
}

static void rope_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        rotate(out->x, x, out, false);
}

static void rope_backward(const ag_tensor *out)
{
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (!g)
        return;
    if (beta == 0) {
        rotate(g, out->g, out, true);
        return;
    }
    size_t bytes = (size_t)ag_count(out) * sizeof(real);
    real *turned = ag_take(out->tape, bytes);
    if (!turned)
        return;
    rotate(turned, out->g, out, true);
    kn_add_to(g, turned, ag_count(out));
    ag_give_back(out->tape, turned, bytes);
}

static const ag_op op_rope = {"rope", rope_forward, rope_backward, 0};

ag_tensor *ag_rope(ag_tape *t, ag_tensor *x, const real *cos, const real *sin, int64_t H, kn_rope_pairing pairing)
{
    if (!x)
        return NULL;
    if (x->n_dim != 3 || H <= 0 || x->dim[2] % H || x->dim[2] / H % 2)
        return ag_fail(t, NB_SHAPE, "rope: x %s is not [B,T,H*D] with H = %lld heads of even size", ag_words_of(x).text,
                       (long long)H);
    ag_tensor *out = ag_node(t, &op_rope, 1, &x, 3, x->dim, sizeof(save_rope));
    if (!out)
        return NULL;
    *(save_rope *)out->save = (save_rope){cos, sin, H, pairing};
    return ag_run(t, out);
}

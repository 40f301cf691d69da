/* op_conv.c - convolution of pictures [B, H*W*C], with the activation that follows it.
 *   y = act(conv(x, w) + b)     d = dy [0 < y] (relu), dy [0 < y < 6] (relu6), dy
 *   db[n] = sum d,  dw and dx: the correlations of d with x and w; d takes dy's place, nobody reads dy afterwards (kernels/conv.c)
 * Where x and w carry codes, the forward is exact: integer sums S with the bias rounded to their unit, y = act(S scale_x scale_w[n]);
 * the backward pass is the straight-through one, the same formulas on the decoded values.
 */
#include "op.h"
#include <stdlib.h>

typedef struct {
    kn_conv c;
    kn_activation act;
    ag_sums sums;
} save_conv;

static bool multiplies_codes(const ag_tensor *x, const ag_tensor *w, const kn_conv *c)
{
    return x->codes && w->codes && kn_conv_can_multiply(c, &x->codes->grid, &w->codes->grid) && (c->groups > 1 || w->packed);
}

static status value_of_sums(real *y, const ag_sums *s, int64_t rows)
{
    const kn_codes *w = s->w;
    real *scale = nb_alloc((size_t)s->channels, sizeof *scale);
    for (int64_t n = 0; scale && n < s->channels; n++)
        scale[n] = w->scale[w->grid.grain == KN_TENSOR ? 0 : n] * s->scale_x;
    if (scale)
        kn_value_of_sums(y, s->sum, scale, rows * s->points, s->channels, s->act);
    free(scale);
    return scale ? NB_OK : NB_NOMEM;
}

static status integer_forward(ag_tensor *out)
{
    save_conv *s = out->save;
    const ag_tensor *x = out->src[0], *w = out->src[1];
    const real *b = out->n_src > 2 ? ag_in(out, 2) : NULL;
    const int64_t B = ag_rows(out);
    kn_conv_codes codes;
    s->sums = (ag_sums){.sum = ag_take(out->tape, (size_t)ag_count(out) * sizeof(int32_t)),
                        .points = s->c.OH * s->c.OW,
                        .channels = s->c.N,
                        .w = w->codes,
                        .scale_x = x->codes->scale[0],
                        .act = s->act};
    if (!s->sums.sum)
        return NB_NOMEM;
    TRY(kn_conv_codes_new(&codes, &s->c, w->codes, w->packed, b, x->codes->scale[0], x->codes->zero ? x->codes->zero[0] : 0));
    status e = kn_conv_integer(s->sums.sum, NULL, 0, &s->c, x->codes->q, x->codes->ld, &codes, NULL, B);
    kn_conv_codes_free(&codes);
    out->sums = &s->sums;
    return e == NB_OK ? value_of_sums(out->x, &s->sums, B) : e;
}

static void conv_forward(ag_tensor *out)
{
    const save_conv *s = out->save;
    status e;
    if (multiplies_codes(out->src[0], out->src[1], &s->c)) {
        e = integer_forward(out);
    } else {
        const real *x = ag_in(out, 0), *w = ag_in(out, 1), *b = out->n_src > 2 ? ag_in(out, 2) : NULL;
        if (!x || !w)
            return;
        e = kn_conv_forward(out->tape->precision, out->x, &s->c, x, w, b, s->act, ag_rows(out));
    }
    if (e != NB_OK)
        ag_fail(out->tape, e, "conv: %s", nb_fail_message());
}

static void conv_backward(const ag_tensor *out)
{
    const save_conv *s = out->save;
    ag_tensor *x = out->src[0], *w = out->src[1];
    ag_tensor *b = out->n_src > 2 ? out->src[2] : NULL;
    kn_conv_gradients to = {.db = b ? ag_grad(b) : NULL};
    const real *xv = w->needs_grad ? ag_in(out, 0) : NULL, *wv = x->needs_grad ? ag_in(out, 1) : NULL;
    if (x == w)
        ag_grad(x); /* then both gradients add to it */
    to.dw = xv ? ag_grad_write(w, &to.beta_dw) : NULL;
    to.dx = wv ? ag_grad_write(x, &to.beta_dx) : NULL;
    if (!out->tape->err && kn_conv_backward(out->tape->precision, &to, &s->c, out->g, out->x, s->act, xv, wv, ag_rows(out)) != NB_OK)
        ag_fail(out->tape, NB_NOMEM, "conv: %s", nb_fail_message());
    if (s->sums.sum)
        ag_give_back(out->tape, s->sums.sum, (size_t)ag_count(out) * sizeof(int32_t));
}

static const ag_op op_conv = {"conv", conv_forward, conv_backward, AG_KEEP(0) | AG_KEEP(1)},
                   op_conv_act = {"conv_act", conv_forward, conv_backward, AG_KEEP(0) | AG_KEEP(1) | AG_KEEP_OUT};

ag_tensor *ag_conv(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const kn_conv *c, kn_activation act)
{
    if (!x || !w)
        return NULL;
    if (ag_cols(x) != c->H * c->W * c->C || ag_rows(w) != c->N || ag_cols(w) != kn_conv_depth(c) || (b && ag_count(b) != c->N))
        return ag_fail(t, NB_SHAPE, "conv: x %s, w %s do not fit pictures of %lldx%lldx%lld and %lld channels", ag_words_of(x).text,
                       ag_words_of(w).text, (long long)c->H, (long long)c->W, (long long)c->C, (long long)c->N);
    const int64_t dim[] = {ag_rows(x), c->OH * c->OW * c->N};
    ag_tensor *out = ag_node(t, act == KN_LINEAR ? &op_conv : &op_conv_act, b ? 3 : 2, (ag_tensor *[]){x, w, b}, 2, dim,
                             sizeof(save_conv));
    if (!out)
        return NULL;
    *(save_conv *)out->save = (save_conv){.c = *c, .act = act};
    return ag_run(t, out);
}

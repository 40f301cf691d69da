/* op_pool.c - pooling of pictures [B, H*W*C], K x K windows, each channel for itself.
 *   max: y = max over the window      dx at the first largest += dy
 *   average: y = mean                 dx over the window += dy / K^2
 * Codes of one scale are pooled as codes: rounding keeps the order, so the largest code is the code of the largest.
 */
#include "op.h"

typedef struct {
    kn_conv c;
    uint8_t *at; /* [B, OH*OW*C]: where in its window the maximum was; NULL: no backward pass */
    kn_codes codes;
} save_pool;

static bool has_codes(const ag_tensor *x)
{
    return x->codes && x->codes->grid.grain == KN_TENSOR && x->codes->q && x->codes->rows == ag_rows(x) &&
           x->codes->grid.levels == KN_LEVELS_INT;
}

/* The codes of the result, laid out under x's scale; false: the tape has failed. */
static bool lay_codes(ag_tensor *out)
{
    save_pool *s = out->save;
    const kn_codes *x = out->src[0]->codes;
    out->codes_bytes = kn_codes_bytes(&x->grid, ag_rows(out), ag_cols(out));
    out->codes_memory = ag_take(out->tape, out->codes_bytes);
    if (!out->codes_memory)
        return false;
    kn_codes_lay(&s->codes, &x->grid, ag_rows(out), ag_cols(out), out->codes_memory);
    s->codes.scale[0] = x->scale[0];
    if (x->zero)
        s->codes.zero[0] = x->zero[0];
    out->codes = &s->codes;
    return true;
}

static void max_forward(ag_tensor *out)
{
    save_pool *s = out->save;
    const kn_codes *codes = out->src[0]->codes;
    if (out->needs_grad && !(s->at = ag_take(out->tape, (size_t)ag_count(out))))
        return;
    if (out->x) {
        const real *x = ag_in(out, 0);
        if (x)
            kn_max_pool(out->x, s->at, &s->c, x, ag_rows(out));
    } else if (lay_codes(out)) {
        kn_max_pool_codes(s->codes.q, s->codes.ld, s->at, &s->c, codes->q, codes->ld, ag_rows(out));
    }
}

static void max_backward(const ag_tensor *out)
{
    const save_pool *s = out->save;
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (!g)
        return;
    kn_max_pool_dx(g, beta, &s->c, out->g, s->at, ag_rows(out));
    ag_give_back(out->tape, s->at, (size_t)ag_count(out));
}

static const ag_op op_max = {"max_pool", max_forward, max_backward, 0};

static void average_forward(ag_tensor *out)
{
    save_pool *s = out->save;
    const kn_codes *codes = out->src[0]->codes;
    if (out->x) {
        const real *x = ag_in(out, 0);
        if (x)
            kn_average_pool(out->x, &s->c, x, ag_rows(out));
    } else if (lay_codes(out)) {
        kn_average_pool_codes(s->codes.q, s->codes.ld, &s->c, codes->q, codes->ld, codes->zero ? codes->zero[0] : 0, ag_rows(out));
    }
}

static void average_backward(const ag_tensor *out)
{
    const save_pool *s = out->save;
    const kn_conv *c = &s->c;
    const int64_t B = ag_rows(out), C = c->C, points = c->OH * c->OW, in = c->H * c->W * C;
    const real share = 1 / (real)(c->K * c->K);
    real *g = ag_grad(out->src[0]);
    if (!g)
        return;
#pragma omp parallel for if (B * in > AG_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        for (int64_t o = 0; o < points; o++)
            for (int64_t k = 0; k < c->K * c->K; k++) {
                const real *d = out->g + (i * points + o) * C;
                real *to = g + i * in +
                           ((o / c->OW * c->stride + k / c->K) * c->W + o % c->OW * c->stride + k % c->K) * C;
                for (int64_t j = 0; j < C; j++)
                    to[j] += d[j] * share;
            }
}

static const ag_op op_average = {"average_pool", average_forward, average_backward, 0};

static ag_tensor *pool(ag_tape *t, const ag_op *op, ag_tensor *x, const kn_conv *c)
{
    if (!x)
        return NULL;
    if (ag_cols(x) != c->H * c->W * c->C)
        return ag_fail(t, NB_SHAPE, "%s: x %s is no picture of %lldx%lldx%lld", op->name, ag_words_of(x).text, (long long)c->H,
                       (long long)c->W, (long long)c->C);
    if (op == &op_max && c->K > 15)
        return ag_fail(t, NB_USAGE, "%s: windows of at most 15 points a side", op->name);
    const int64_t dim[] = {ag_rows(x), c->OH * c->OW * c->C};
    ag_tensor *out = ag_node(t, op, 1, &x, 2, dim, sizeof(save_pool));
    if (!out)
        return NULL;
    ((save_pool *)out->save)->c = *c;
    return has_codes(x) ? ag_run_codes(t, out) : ag_run(t, out);
}

ag_tensor *ag_max_pool(ag_tape *t, ag_tensor *x, const kn_conv *c)
{
    return pool(t, &op_max, x, c);
}

ag_tensor *ag_average_pool(ag_tape *t, ag_tensor *x, const kn_conv *c)
{
    return pool(t, &op_average, x, c);
}

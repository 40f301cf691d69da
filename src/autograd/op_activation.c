/* op_activation.c - activation functions and softmax.
 *   silu(x) = x s(x), s = 1 / (1 + e^-x)             d = s (1 + x (1 - s))
 *   gelu(x) = x (1 + erf(x / sqrt 2)) / 2, or its tanh form (Hendrycks & Gimpel 2016)
 *   relu(x) = max(x, 0)                              d = [x > 0]
 *   relu6(x) = min(max(x, 0), 6)                     d = [0 < x < 6]
 *   swiglu(a, b) = silu(a) b (Shazeer 2020)          da = dy b silu'(a),  db = dy silu(a)
 *   softmax over the last dimension: y = e^(x - max) / sum      dx = y (dy - sum_c dy y)
 */
#include "op.h"
#include <math.h>

static void silu_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        kn_silu(out->x, x, ag_count(out));
}

static void silu_backward(const ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    real *g = ag_grad(out->src[0]);
    if (x && g)
        kn_silu_backward(g, out->g, x, ag_count(out));
}

static const ag_op op_silu = {"silu", silu_forward, silu_backward, AG_KEEP(0)};

ag_tensor *ag_silu(ag_tape *t, ag_tensor *x)
{
    return x ? ag_run(t, ag_node(t, &op_silu, 1, &x, x->n_dim, x->dim, 0)) : NULL;
}

static void gelu_forward(ag_tensor *out)
{
    const bool *tanh_form = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        kn_gelu(out->x, x, ag_count(out), *tanh_form);
}

static void gelu_backward(const ag_tensor *out)
{
    const bool *tanh_form = out->save;
    const real *x = ag_in(out, 0);
    real *g = ag_grad(out->src[0]);
    if (x && g)
        kn_gelu_backward(g, out->g, x, ag_count(out), *tanh_form);
}

static const ag_op op_gelu = {"gelu", gelu_forward, gelu_backward, AG_KEEP(0)};

ag_tensor *ag_gelu(ag_tape *t, ag_tensor *x, bool tanh_form)
{
    ag_tensor *out = x ? ag_node(t, &op_gelu, 1, &x, x->n_dim, x->dim, sizeof tanh_form) : NULL;
    if (!out)
        return NULL;
    *(bool *)out->save = tanh_form;
    return ag_run(t, out);
}

/* min(max(x, 0), top) */
static void clamp_forward(ag_tensor *out, real top)
{
    const real *x = ag_in(out, 0);
    real *y = out->x;
    const int64_t n = ag_count(out);
    if (!x)
        return;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++) {
        const real low = x[i] > 0 ? x[i] : 0;
        y[i] = low < top ? low : top;
    }
}

/* Where out->g can be handed on it is changed in place. */
static void clamp_backward(const ag_tensor *out, real top)
{
    const real *y = out->x, *dy = out->g;
    const int64_t n = ag_count(out);
    real beta = 0, *g = ag_grad_handed_over(out, out->src[0]);
    if (!g)
        g = ag_grad_write(out->src[0], &beta);
    if (!g)
        return;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++) {
        const real d = dy[i], passed = ((y[i] > 0) & (y[i] < top)) ? d : 0; /* no branch */
        g[i] = beta == 0 ? passed : g[i] + passed;
    }
}

static void relu_forward(ag_tensor *out)
{
    clamp_forward(out, (real)INFINITY);
}

static void relu_backward(const ag_tensor *out)
{
    clamp_backward(out, (real)INFINITY);
}

static const ag_op op_relu = {"relu", relu_forward, relu_backward, AG_KEEP_OUT};

ag_tensor *ag_relu(ag_tape *t, ag_tensor *x)
{
    return x ? ag_run(t, ag_node(t, &op_relu, 1, &x, x->n_dim, x->dim, 0)) : NULL;
}

static void relu6_forward(ag_tensor *out)
{
    clamp_forward(out, 6);
}

static void relu6_backward(const ag_tensor *out)
{
    clamp_backward(out, 6);
}

static const ag_op op_relu6 = {"relu6", relu6_forward, relu6_backward, AG_KEEP_OUT};

ag_tensor *ag_relu6(ag_tape *t, ag_tensor *x)
{
    return x ? ag_run(t, ag_node(t, &op_relu6, 1, &x, x->n_dim, x->dim, 0)) : NULL;
}

static void swiglu_forward(ag_tensor *out)
{
    const real *gate = ag_in(out, 0), *up = ag_in(out, 1);
    if (gate && up)
        kn_swiglu(out->x, gate, up, ag_count(out));
}

/* One tensor in both places: two calls, each with one output. */
static void swiglu_backward(const ag_tensor *out)
{
    const real *gate = ag_in(out, 0), *up = ag_in(out, 1);
    real *dgate = ag_grad(out->src[0]), *dup = ag_grad(out->src[1]);
    int64_t n = ag_count(out);
    if (!gate || !up)
        return;
    if (dgate && dgate == dup) {
        kn_swiglu_backward(dgate, NULL, out->g, gate, up, n);
        kn_swiglu_backward(NULL, dup, out->g, gate, up, n);
    } else if (dgate || dup) {
        kn_swiglu_backward(dgate, dup, out->g, gate, up, n);
    }
}

static const ag_op op_swiglu = {"swiglu", swiglu_forward, swiglu_backward, AG_KEEP(0) | AG_KEEP(1)};

/* Where products round to bf16, gate and up are kept in bf16: half the memory, and what they were is free for the next block. */
typedef struct {
    uint16_t *gate, *up;
} save_swiglu;

static void swiglu_bf16_forward(ag_tensor *out)
{
    const real *gate = ag_in(out, 0), *up = ag_in(out, 1);
    save_swiglu *s = out->save;
    const int64_t n = ag_count(out);
    s->gate = ag_take(out->tape, (size_t)n * sizeof *s->gate);
    s->up = ag_take(out->tape, (size_t)n * sizeof *s->up);
    if (!gate || !up || !s->gate || !s->up)
        return;
    kn_swiglu(out->x, gate, up, n);
    kn_to_bf16(s->gate, gate, n);
    kn_to_bf16(s->up, up, n);
}

static void swiglu_bf16_backward(const ag_tensor *out)
{
    const save_swiglu *s = out->save;
    const size_t n = (size_t)ag_count(out);
    real beta[2], *g[2] = {ag_grad_write(out->src[0], &beta[0]), ag_grad_write(out->src[1], &beta[1])}, *own[2];
    for (int i = 0; i < 2; i++) /* what is there already is added to, by way of memory of its own */
        own[i] = g[i] && beta[i] == 0 ? g[i] : ag_take(out->tape, n * sizeof(real));
    if (own[0] && own[1])
        kn_swiglu_backward_bf16(own[0], own[1], out->g, s->gate, s->up, (int64_t)n);
    for (int i = 0; i < 2; i++) {
        if (own[i] == g[i])
            continue;
        if (g[i] && own[i])
            kn_add_to(g[i], own[i], (int64_t)n);
        ag_give_back(out->tape, own[i], n * sizeof(real));
    }
    ag_give_back(out->tape, s->gate, n * sizeof *s->gate);
    ag_give_back(out->tape, s->up, n * sizeof *s->up);
}

static const ag_op op_swiglu_bf16 = {"swiglu", swiglu_bf16_forward, swiglu_bf16_backward, 0};

ag_tensor *ag_swiglu(ag_tape *t, ag_tensor *gate, ag_tensor *up)
{
    if (!gate || !up)
        return NULL;
    if (!ag_same_shape(gate, up))
        return ag_fail(t, NB_SHAPE, "swiglu: gate %s, up %s", ag_words_of(gate).text, ag_words_of(up).text);
    const bool bf16 = t->precision == KN_BF16 && !t->no_grad && gate->needs_grad && up->needs_grad && gate != up;
    return ag_run(t, ag_node(t, bf16 ? &op_swiglu_bf16 : &op_swiglu, 2, (ag_tensor *[]){gate, up}, gate->n_dim, gate->dim,
                             bf16 ? sizeof(save_swiglu) : 0));
}

static void softmax_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        kn_softmax(out->x, x, ag_rows(out), ag_cols(out));
}

static void softmax_backward(const ag_tensor *out)
{
    real *g = ag_grad(out->src[0]);
    int64_t M = ag_rows(out), C = ag_cols(out);
    if (!g)
        return;
#pragma omp parallel for if (M * C > AG_PARALLEL)
    for (int64_t m = 0; m < M; m++) {
        const real *y = out->x + m * C, *dy = out->g + m * C;
        real *d = g + m * C;
        double dot = 0;
        for (int64_t c = 0; c < C; c++)
            dot += (double)y[c] * (double)dy[c];
        for (int64_t c = 0; c < C; c++)
            d[c] += y[c] * (dy[c] - (real)dot);
    }
}

static const ag_op op_softmax = {"softmax", softmax_forward, softmax_backward, AG_KEEP_OUT};

ag_tensor *ag_softmax(ag_tape *t, ag_tensor *x)
{
    return x ? ag_run(t, ag_node(t, &op_softmax, 1, &x, x->n_dim, x->dim, 0)) : NULL;
}

/* op_linear.c - products: the linear map and the plain matrix product.
 *   linear: y[m,n] = sum_k x[m,k] w[n,k] + b[n]      dx = dy w,  dw = dy' x,  db[n] = sum_m dy[m,n]
 *   matmul: y[m,n] = sum_k a[m,k] b[k,n]             da = dy b', db = a' dy
 * Where x and w carry codes that kn_can_multiply allows, the forward is the exact integer product with the runtime's
 * epilogue. The backward pass is then the straight-through one: the same formulas on the decoded values; its bf16 products
 * read codes as exact operands (kn_bf16_right), so that nothing is decoded. With int8_gradients dx is an integer product too.
 */
#include "op.h"

bool ag_linear_rows(real *y, const ag_tensor *x, const ag_tensor *w, const ag_tensor *b, int64_t row, int64_t n)
{
    int64_t N = w->dim[0], K = ag_cols(w);
    const real *bias = b ? ag_value(b) : NULL;
    if (b && !bias)
        return false;
    if (x->codes && w->codes && w->packed && kn_can_multiply(&x->codes->grid, &w->codes->grid, K)) {
        kn_linear_int(y, x->codes, row, n, w->packed, bias);
        return true;
    }
    const real *xv = ag_value(x), *wv = ag_value(w);
    if (!xv || !wv) {
        ag_fail(w->tape, NB_USAGE, "linear: %s has no value (given up by ag_done)", xv ? "w" : "x");
        return false;
    }
    kn_product_nt(w->tape->precision, y, xv + row * K, wv, n, N, K, 0);
    if (!bias)
        return true;
#pragma omp parallel for if (n * N > AG_PARALLEL)
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < N; i++)
            y[m * N + i] += bias[i];
    return true;
}

static void linear_forward(ag_tensor *out)
{
    const ag_tensor *b = out->n_src > 2 ? out->src[2] : NULL;
    ag_linear_rows(out->x, out->src[0], out->src[1], b, 0, ag_rows(out));
}

bool ag_right_rows(kn_bf16_right *b, const ag_tensor *a, int64_t row, int64_t rows, void **memory)
{
    const kn_operand o = {.x = a->codes ? NULL : ag_value(a), .codes = a->codes};
    if (!o.x && !o.codes)
        ag_fail(a->tape, NB_USAGE, "product: an operand has no value (given up by ag_done)");
    else if ((*memory = ag_take(a->tape, kn_bf16_right_bytes(rows, ag_cols(a)))))
        kn_bf16_rows(b, o, row, rows, ag_cols(a), *memory);
    return !a->tape->err;
}

void ag_product_right(ag_tape *t, real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta, bool transposed)
{
    const status s = (transposed ? kn_product_t_right : kn_product_right)(c, a, b, M, beta);
    if (s)
        ag_fail(t, s, "product: %s", nb_fail_message());
}

/* src += dy [M,N] times the rows of `other`: dx = dy w, or (transposed) dw = dy' x; at the tape's precision. */
static void backward_product(const ag_tensor *out, ag_tensor *src, const ag_tensor *other, bool transposed)
{
    ag_tape *t = out->tape;
    const int64_t M = ag_rows(out), N = ag_cols(out), K = ag_cols(src), rows = transposed ? N : M, deep = transposed ? M : N;
    real beta, *g;
    if (!src->needs_grad)
        return;
    if (kn_takes_bf16(t->precision, rows, K, deep)) {
        kn_bf16_right right;
        void *memory;
        if (!ag_right_rows(&right, other, 0, deep, &memory))
            return;
        if ((g = ag_grad_write(src, &beta)))
            ag_product_right(t, g, out->g, &right, rows, beta, transposed);
        ag_give_back(t, memory, kn_bf16_right_bytes(deep, K));
        return;
    }
    const real *v = ag_in(out, transposed ? 0 : 1);
    if (v && (g = ag_grad_write(src, &beta)))
        (transposed ? kn_product_tn : kn_product_nn)(t->precision, g, out->g, v, rows, K, deep, beta);
}

/* x += dy w in 8 bits; false: w's codes do not allow it. */
static bool backward_int8(const ag_tensor *out, ag_tensor *x, const ag_tensor *w)
{
    ag_tape *t = out->tape, *home = t->home ? t->home : t;
    const int64_t M = ag_rows(out), N = ag_cols(out), K = ag_cols(x);
    real beta, *g;
    if (!t->int8_gradients || !w->codes || !x->needs_grad || !kn_can_multiply_back(&w->codes->grid, N))
        return false;
    const size_t bytes = kn_linear_back_bytes(M, N, K);
    void *memory = ag_take(t, bytes);
    if (memory && (g = ag_grad_write(x, &beta))) {
        const status s = kn_linear_back(g, out->g, M, w->codes, beta != 0, (uint32_t)nb_random(t->int8_gradients, 0, home->drawn++), &home->packed, memory);
        if (s)
            ag_fail(t, s, "linear: %s", nb_fail_message());
    }
    ag_give_back(t, memory, bytes);
    return true;
}

static void linear_backward(const ag_tensor *out)
{
    ag_tensor *x = out->src[0], *w = out->src[1];
    const ag_tap *tap = &out->tape->backward_tap;
    if (tap->fn && w->param)
        tap->fn(tap->ctx, w->param->name, x, out);
    if (!backward_int8(out, x, w))
        backward_product(out, x, w, false);
    backward_product(out, w, x, true);
    if (out->n_src > 2)
        ag_add_grad_columns(out->src[2], 1, out->g, NULL, ag_rows(out), ag_cols(out));
}

static const ag_op op_linear = {"linear", linear_forward, linear_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b)
{
    if (!x || !w)
        return NULL;
    if (w->n_dim != 2 || x->n_dim < 1 || ag_cols(x) != w->dim[1])
        return ag_fail(t, NB_SHAPE, "linear: x %s does not fit w %s", ag_words_of(x).text, ag_words_of(w).text);
    if (b && (b->n_dim != 1 || b->dim[0] != w->dim[0]))
        return ag_fail(t, NB_SHAPE, "linear: bias %s does not fit w %s", ag_words_of(b).text, ag_words_of(w).text);
    int64_t dim[AG_MAX_DIM] = {0};
    for (int i = 0; i < x->n_dim; i++)
        dim[i] = x->dim[i];
    dim[x->n_dim - 1] = w->dim[0];
    return ag_run(t, ag_node(t, &op_linear, b ? 3 : 2, (ag_tensor *[]){x, w, b}, x->n_dim, dim, 0));
}

static void matmul_forward(ag_tensor *out)
{
    const real *a = ag_in(out, 0), *b = ag_in(out, 1);
    if (a && b)
        kn_product_nn(out->tape->precision, out->x, a, b, out->dim[0], out->dim[1], ag_cols(out->src[0]), 0);
}

static void matmul_backward(const ag_tensor *out)
{
    const ag_tensor *a = out->src[0], *b = out->src[1];
    kn_precision p = out->tape->precision;
    int64_t M = out->dim[0], N = out->dim[1], K = ag_cols(a);
    const real *v;
    real beta, *g;
    if (a->needs_grad && (v = ag_in(out, 1)) && (g = ag_grad_write(a, &beta)))
        kn_product_nt(p, g, out->g, v, M, K, N, beta);
    if (b->needs_grad && (v = ag_in(out, 0)) && (g = ag_grad_write(b, &beta)))
        kn_product_tn(p, g, v, out->g, K, N, M, beta);
}

static const ag_op op_matmul = {"matmul", matmul_forward, matmul_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_matmul(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    if (!a || !b)
        return NULL;
    if (a->n_dim != 2 || b->n_dim != 2 || a->dim[1] != b->dim[0])
        return ag_fail(t, NB_SHAPE, "matmul: a %s does not fit b %s", ag_words_of(a).text, ag_words_of(b).text);
    return ag_run(t, ag_node(t, &op_matmul, 2, (ag_tensor *[]){a, b}, 2, (int64_t[]){a->dim[0], b->dim[1]}, 0));
}

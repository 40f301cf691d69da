/* op_elementwise.c - sums, differences, products, multiples.
 *   add: z = x + y, dx = dz, dy = dz         sub: z = x - y, dx = dz, dy = -dz
 *   mul: z = x * y, dx = dz y, dy = dz x     scale: z = a x, dx = a dz
 * y has x's shape, or x's trailing dimensions and stands for every leading index (a bias [C], positions [T,C]): its
 * gradient is then the sum over the leading dimensions.
 */
#include "op.h"

/* How often y is repeated in x: 1 for one shape, 0 where y is not x's trailing dimensions. */
static int64_t repeats(const ag_tensor *x, const ag_tensor *y)
{
    int skip = x->n_dim - y->n_dim;
    int64_t n = 1;
    if (skip < 0)
        return 0;
    for (int i = 0; i < y->n_dim; i++)
        if (y->dim[i] != x->dim[skip + i])
            return 0;
    for (int i = 0; i < skip; i++)
        n *= x->dim[i];
    return n;
}

static ag_tensor *binary(ag_tape *t, const ag_op *op, ag_tensor *x, ag_tensor *y)
{
    if (!x || !y)
        return NULL;
    if (!repeats(x, y))
        return ag_fail(t, NB_SHAPE, "%s: y %s is neither of x's shape %s nor of its last dimensions", op->name,
                       ag_words_of(y).text, ag_words_of(x).text);
    return ag_run(t, ag_node(t, op, 2, (ag_tensor *[]){x, y}, x->n_dim, x->dim, 0));
}

/* tile(z, x, y) over all of z [R*C] and x [R*C], y [C] repeated. */
static void over_tiles(void (*tile)(real *z, const real *x, const real *y, int64_t n), real *z, const real *x,
                       const real *y, int64_t R, int64_t C)
{
    enum { TILE = 4096 };
#pragma omp parallel for collapse(2) if (R * C > AG_PARALLEL)
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c += TILE)
            tile(z + r * C + c, x + r * C + c, y + c, C - c < TILE ? C - c : TILE);
}

static void forward(ag_tensor *out, void (*tile)(real *z, const real *x, const real *y, int64_t n))
{
    const real *x = ag_in(out, 0), *y = ag_in(out, 1);
    int64_t R = repeats(out->src[0], out->src[1]);
    if (x && y)
        over_tiles(tile, out->x, x, y, R, ag_count(out) / R);
}

/* The gradient of y += a dz, summed over the repeats. */
static void add_to_y(const ag_tensor *out, real a)
{
    int64_t R = repeats(out->src[0], out->src[1]);
    if (R == 1)
        ag_add_grad(out->src[1], a, out->g);
    else
        ag_add_grad_columns(out->src[1], a, out->g, NULL, R, ag_count(out) / R);
}

static void add_forward(ag_tensor *out)
{
    forward(out, kn_sum2);
}

static void add_backward(const ag_tensor *out)
{
    ag_add_grad(out->src[0], 1, out->g);
    add_to_y(out, 1);
}

static const ag_op op_add = {"add", add_forward, add_backward, 0};

ag_tensor *ag_add(ag_tape *t, ag_tensor *x, ag_tensor *y)
{
    return binary(t, &op_add, x, y);
}

static void difference(real *z, const real *x, const real *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        z[i] = x[i] - y[i];
}

static void sub_forward(ag_tensor *out)
{
    forward(out, difference);
}

static void sub_backward(const ag_tensor *out)
{
    ag_add_grad(out->src[0], 1, out->g);
    add_to_y(out, -1);
}

static const ag_op op_sub = {"sub", sub_forward, sub_backward, 0};

ag_tensor *ag_sub(ag_tape *t, ag_tensor *x, ag_tensor *y)
{
    return binary(t, &op_sub, x, y);
}

static void multiply(real *z, const real *x, const real *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        z[i] = x[i] * y[i];
}

static void multiply_add(real *z, const real *x, const real *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        z[i] += x[i] * y[i];
}

static void mul_forward(ag_tensor *out)
{
    forward(out, multiply);
}

static void mul_backward(const ag_tensor *out)
{
    const ag_tensor *x = out->src[0], *y = out->src[1];
    int64_t R = repeats(x, y), C = ag_count(out) / R;
    const real *v;
    real *g;
    if (x->needs_grad && (v = ag_in(out, 1)) && (g = ag_grad(x)))
        over_tiles(multiply_add, g, out->g, v, R, C);
    if (!y->needs_grad || !(v = ag_in(out, 0)))
        return;
    if (R > 1)
        ag_add_grad_columns(y, 1, out->g, v, R, C);
    else if ((g = ag_grad(y)))
        over_tiles(multiply_add, g, out->g, v, 1, C);
}

static const ag_op op_mul = {"mul", mul_forward, mul_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_mul(ag_tape *t, ag_tensor *x, ag_tensor *y)
{
    return binary(t, &op_mul, x, y);
}

static void scale_forward(ag_tensor *out)
{
    const real a = *(const real *)out->save, *x = ag_in(out, 0);
    real *y = out->x;
    int64_t n = ag_count(out);
    if (!x)
        return;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++)
        y[i] = a * x[i];
}

static void scale_backward(const ag_tensor *out)
{
    const real *a = out->save;
    ag_add_grad(out->src[0], *a, out->g);
}

static const ag_op op_scale = {"scale", scale_forward, scale_backward, 0};

ag_tensor *ag_scale(ag_tape *t, ag_tensor *x, real a)
{
    ag_tensor *out = x ? ag_node(t, &op_scale, 1, &x, x->n_dim, x->dim, sizeof a) : NULL;
    if (!out)
        return NULL;
    *(real *)out->save = a;
    return ag_run(t, out);
}

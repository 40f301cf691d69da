/* op_reduce.c - from a tensor to one number; sums in double over fixed blocks.
 *   sum: L = sum x, dx = dL        mean: L = sum x / n, dx = dL / n        dot: L = sum x r, dx = dL r (r constant)
 */
#include "op.h"

static double sum_part(const real *x, const real *y, int64_t n)
{
    double s = 0;
    (void)y;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i];
    return s;
}

static double dot_part(const real *x, const real *y, int64_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i] * (double)y[i];
    return s;
}

static void add_constant(const ag_tensor *src, real a)
{
    real *g = ag_grad(src);
    int64_t n = ag_count(src);
    if (!g)
        return;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++)
        g[i] += a;
}

static void sum_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    if (x)
        out->x[0] = (real)ag_sum_parts(sum_part, x, NULL, ag_count(out->src[0]));
}

static void sum_backward(const ag_tensor *out)
{
    add_constant(out->src[0], out->g[0]);
}

static const ag_op op_sum = {"sum", sum_forward, sum_backward, 0};

ag_tensor *ag_sum(ag_tape *t, ag_tensor *x)
{
    return ag_run(t, ag_node(t, &op_sum, 1, &x, 0, NULL, 0));
}

static void mean_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0);
    int64_t n = ag_count(out->src[0]);
    if (x)
        out->x[0] = (real)(ag_sum_parts(sum_part, x, NULL, n) / (double)n);
}

static void mean_backward(const ag_tensor *out)
{
    add_constant(out->src[0], (real)((double)out->g[0] / (double)ag_count(out->src[0])));
}

static const ag_op op_mean = {"mean", mean_forward, mean_backward, 0};

ag_tensor *ag_mean(ag_tape *t, ag_tensor *x)
{
    return ag_run(t, ag_node(t, &op_mean, 1, &x, 0, NULL, 0));
}

typedef struct {
    const real *r; /* the caller's */
} save_dot;

static void dot_forward(ag_tensor *out)
{
    const save_dot *s = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        out->x[0] = (real)ag_sum_parts(dot_part, x, s->r, ag_count(out->src[0]));
}

static void dot_backward(const ag_tensor *out)
{
    const save_dot *s = out->save;
    ag_add_grad(out->src[0], out->g[0], s->r);
}

static const ag_op op_dot = {"dot", dot_forward, dot_backward, 0};

ag_tensor *ag_dot(ag_tape *t, ag_tensor *x, const real *r)
{
    ag_tensor *out = ag_node(t, &op_dot, 1, &x, 0, NULL, sizeof(save_dot));
    if (!out)
        return NULL;
    ((save_dot *)out->save)->r = r;
    return ag_run(t, out);
}

/* op_loss.c - losses over whole tensors (the head's own are in op_head.c).
 *   mse:           L = sum (x - y)^2 / n                   dx = dL 2 (x - y) / n,  dy = -dx
 *   relative_mse:  L = sum (x - y)^2 / sum y^2             dx = dL 2 (x - y) / sum y^2   (y constant; of zeros: over n)
 *   cross entropy over the n rows with target t >= 0, smoothing s, V classes:
 *     L = sum_m [lse(x_m) - (1 - s) x[m,t] - s mean_v x[m,v]] / n
 *     dx[m,v] = dL (softmax(x_m)[v] - (1 - s) [v == t] - s / V) / n
 */
#include "op.h"
#include <math.h>
#include <string.h>

static double square_difference(const real *x, const real *y, int64_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++)
        s += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return s;
}

static double square(const real *x, const real *y, int64_t n)
{
    (void)y;
    return kn_sum_squares(x, n);
}

/* g of src += a (x - y) */
static void add_difference(const ag_tensor *src, double a, const real *x, const real *y)
{
    real *g = ag_grad(src), factor = (real)a;
    int64_t n = ag_count(src);
    if (!g)
        return;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++)
        g[i] += factor * (x[i] - y[i]);
}

static void mse_forward(ag_tensor *out)
{
    const real *x = ag_in(out, 0), *y = ag_in(out, 1);
    int64_t n = ag_count(out->src[0]);
    if (x && y)
        out->x[0] = (real)(ag_sum_parts(square_difference, x, y, n) / (double)n);
}

static void mse_backward(const ag_tensor *out)
{
    const real *x = ag_in(out, 0), *y = ag_in(out, 1);
    double a = 2 * (double)out->g[0] / (double)ag_count(out->src[0]);
    if (!x || !y)
        return;
    add_difference(out->src[0], a, x, y);
    add_difference(out->src[1], -a, x, y);
}

static const ag_op op_mse = {"mse", mse_forward, mse_backward, AG_KEEP(0) | AG_KEEP(1)};

ag_tensor *ag_mse(ag_tape *t, ag_tensor *x, ag_tensor *y)
{
    if (!x || !y)
        return NULL;
    if (!ag_same_shape(x, y))
        return ag_fail(t, NB_SHAPE, "mse: %s and %s", ag_words_of(x).text, ag_words_of(y).text);
    return ag_run(t, ag_node(t, &op_mse, 2, (ag_tensor *[]){x, y}, 0, NULL, 0));
}

typedef struct {
    const real *y; /* the caller's */
    double norm;   /* sum y^2 */
} save_relative;

static void relative_forward(ag_tensor *out)
{
    save_relative *s = out->save;
    const real *x = ag_in(out, 0);
    int64_t n = ag_count(out->src[0]);
    if (!x)
        return;
    s->norm = ag_sum_parts(square, s->y, NULL, n);
    if (s->norm == 0)
        s->norm = (double)n;
    out->x[0] = (real)(ag_sum_parts(square_difference, x, s->y, n) / s->norm);
}

static void relative_backward(const ag_tensor *out)
{
    const save_relative *s = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        add_difference(out->src[0], 2 * (double)out->g[0] / s->norm, x, s->y);
}

static const ag_op op_relative = {"relative_mse", relative_forward, relative_backward, AG_KEEP(0)};

ag_tensor *ag_relative_mse(ag_tape *t, ag_tensor *x, const real *y)
{
    ag_tensor *out = ag_node(t, &op_relative, 1, &x, 0, NULL, sizeof(save_relative));
    if (!out)
        return NULL;
    ((save_relative *)out->save)->y = y;
    return ag_run(t, out);
}

typedef struct {
    real smoothing;
    int32_t *target; /* [rows] */
    double *lse;     /* [rows] */
    int64_t scored;
} save_ce;

static double row_mean(const real *x, int64_t V)
{
    double s = 0;
    for (int64_t v = 0; v < V; v++)
        s += (double)x[v];
    return s / (double)V;
}

static void ce_forward(ag_tensor *out)
{
    const save_ce *s = out->save;
    const real *x = ag_in(out, 0);
    int64_t M = ag_rows(out->src[0]), V = ag_cols(out->src[0]);
    double total = 0, smooth = (double)s->smoothing;
    if (!x)
        return;
    kn_logsumexp(s->lse, x, M, V);
    for (int64_t m = 0; m < M; m++) {
        if (s->target[m] < 0)
            continue;
        total += s->lse[m] - (1 - smooth) * (double)x[m * V + s->target[m]];
        if (smooth != 0)
            total -= smooth * row_mean(x + m * V, V);
    }
    out->x[0] = s->scored ? (real)(total / (double)s->scored) : 0;
}

static void ce_backward(const ag_tensor *out)
{
    enum { TILE = 256 };
    const save_ce *s = out->save;
    const real *x = ag_in(out, 0);
    real *g = ag_grad(out->src[0]);
    int64_t M = ag_rows(out->src[0]), V = ag_cols(out->src[0]);
    if (!x || !g || !s->scored)
        return;
    real a = (real)((double)out->g[0] / (double)s->scored), even = s->smoothing / (real)V;
#pragma omp parallel for if (M * V > AG_PARALLEL)
    for (int64_t m = 0; m < M; m++) {
        if (s->target[m] < 0)
            continue;
        const real *row = x + m * V;
        real *d = g + m * V, tile[TILE];
        for (int64_t v = 0; v < V; v += TILE) {
            int64_t n = V - v < TILE ? V - v : TILE;
            for (int64_t i = 0; i < n; i++)
                tile[i] = (real)((double)row[v + i] - s->lse[m]);
            kn_exp(tile, tile, n);
            for (int64_t i = 0; i < n; i++)
                d[v + i] += a * (tile[i] - even);
        }
        d[s->target[m]] -= a * (1 - s->smoothing);
    }
}

static const ag_op op_ce = {"cross_entropy", ce_forward, ce_backward, AG_KEEP(0)};

ag_tensor *ag_cross_entropy(ag_tape *t, ag_tensor *x, const int32_t *target, real smoothing)
{
    ag_tensor *out = ag_node(t, &op_ce, 1, &x, 0, NULL, sizeof(save_ce));
    if (!out)
        return NULL;
    save_ce *s = out->save;
    int64_t M = ag_rows(x);
    s->smoothing = smoothing;
    s->target = ag_copy(t, target, (size_t)M * sizeof *target);
    s->lse = ag_take(t, (size_t)M * sizeof *s->lse);
    if (!s->target || !s->lse)
        return NULL;
    for (int64_t m = 0; m < M; m++) {
        if (target[m] >= ag_cols(x))
            return ag_fail(t, NB_USAGE, "cross_entropy: target %d in row %lld, there are %lld classes", (int)target[m],
                           (long long)m, (long long)ag_cols(x));
        s->scored += target[m] >= 0;
    }
    return ag_run(t, out);
}

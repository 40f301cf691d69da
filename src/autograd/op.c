/* op.c - what operators share: sources by value, shapes in words, sums in a fixed order.
 * Sums that may be long are in double, over blocks whose bounds depend on the sizes alone and added in order, so that a
 * result does not depend on the number of threads.
 */
#include "op.h"
#include <stdio.h>
#include <string.h>

const real *ag_in(const ag_tensor *out, int i)
{
    const real *x = ag_value(out->src[i]);
    if (!x)
        ag_fail(out->tape, NB_USAGE, "%s: source %d has no value (given up by ag_done)", out->op->name, i);
    return x;
}

bool ag_same_shape(const ag_tensor *a, const ag_tensor *b)
{
    return a->n_dim == b->n_dim && !memcmp(a->dim, b->dim, (size_t)a->n_dim * sizeof *a->dim);
}

ag_words ag_words_of(const ag_tensor *a)
{
    ag_words w = {"["};
    size_t n = 1;
    for (int i = 0; i < a->n_dim; i++)
        n += (size_t)snprintf(w.text + n, sizeof w.text - n, i ? ",%lld" : "%lld", (long long)a->dim[i]);
    snprintf(w.text + n, sizeof w.text - n, "]");
    return w;
}

void *ag_copy(ag_tape *t, const void *data, size_t bytes)
{
    void *p = ag_take(t, bytes);
    return p ? memcpy(p, data, bytes) : NULL;
}

void ag_add_grad(const ag_tensor *src, real a, const real *d)
{
    real beta, *g = ag_grad_write(src, &beta);
    if (!g)
        return;
    int64_t n = ag_count(src);
    if (beta != 0 && a == 1) {
        kn_add_to(g, d, n);
    } else if (beta != 0) {
        kn_axpy(g, a, d, n);
    } else {
#pragma omp parallel for if (n > AG_PARALLEL)
        for (int64_t i = 0; i < n; i++)
            g[i] = a * d[i];
    }
}

/* sum[c] = sum_m x[m,c] * y[m,c] for n <= 64 columns, ld elements between rows. */
static void column_sums(double *sum, const real *x, const real *y, int64_t M, int64_t n, int64_t ld)
{
    for (int64_t c = 0; c < n; c++)
        sum[c] = 0;
    for (int64_t m = 0; m < M; m++, x += ld) {
        if (y) {
            for (int64_t c = 0; c < n; c++)
                sum[c] += (double)x[c] * (double)y[c];
            y += ld;
        } else {
            for (int64_t c = 0; c < n; c++)
                sum[c] += (double)x[c];
        }
    }
}

void ag_add_columns(real *g, real a, const real *x, const real *y, int64_t M, int64_t C)
{
#pragma omp parallel for if (M * C > AG_PARALLEL)
    for (int64_t c = 0; c < C; c += 64) {
        double sum[64];
        int64_t n = C - c < 64 ? C - c : 64;
        column_sums(sum, x + c, y ? y + c : NULL, M, n, C);
        for (int64_t i = 0; i < n; i++)
            g[c + i] += (real)((double)a * sum[i]);
    }
}

void ag_add_grad_columns(const ag_tensor *src, real a, const real *x, const real *y, int64_t M, int64_t C)
{
    real *g = ag_grad(src);
    if (g)
        ag_add_columns(g, a, x, y, M, C);
}

double ag_sum_parts(double (*part)(const real *x, const real *y, int64_t n), const real *x, const real *y, int64_t n)
{
    enum { PARTS = 256, LEAST = 4096 };
    double sum[PARTS], total = 0;
    int64_t size = (n + PARTS - 1) / PARTS;
    size = size < LEAST ? LEAST : size;
    int64_t parts = (n + size - 1) / size;
#pragma omp parallel for if (n > AG_PARALLEL)
    for (int64_t i = 0; i < parts; i++) {
        int64_t from = i * size, count = n - from < size ? n - from : size;
        sum[i] = part(x + from, y ? y + from : NULL, count);
    }
    for (int64_t i = 0; i < parts; i++)
        total += sum[i];
    return total;
}

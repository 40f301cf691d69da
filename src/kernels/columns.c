/* columns.c - sums and maps of the columns of a tall matrix [M, C], for batch norms. Rows are summed in at most PARTS parts whose bounds depend on M
 * alone, added in order: the same bits with any number of threads.
 */
#include "kernels/kernels_isa.h"
#include <stdlib.h>

enum { PARTS = 32, LEAST = 64 /* rows of a part */ };

/* first [C] = sum_m a; second [C] = sum_m (a - a_mean)(b - b_mean), NULL: not wanted */
static status sums(double *first, double *second, const real *a, const real *a_mean, const real *b, const real *b_mean, int64_t M, int64_t C)
{
    const kn_table *t = kn_isa();
    const int64_t parts = kn_max(1, kn_min(PARTS, M / LEAST));
    double *part = nb_alloc_zeroed((size_t)(parts * 2 * C), sizeof *part);
    if (!part)
        return NB_NOMEM;
#pragma omp parallel for schedule(static) if (M * C > KN_PARALLEL)
    for (int64_t i = 0; i < parts; i++) {
        const int64_t m = M * i / parts, n = M * (i + 1) / parts - m;
        t->column_sums(part + i * 2 * C, second ? part + (i * 2 + 1) * C : NULL, a + m * C, a_mean, b + m * C, b_mean, n, C);
    }
    for (int64_t c = 0; c < C; c++) {
        double x = 0, y = 0;
        for (int64_t i = 0; i < parts; i++) {
            x += part[i * 2 * C + c];
            y += part[(i * 2 + 1) * C + c];
        }
        first[c] = x;
        if (second)
            second[c] = y;
    }
    free(part);
    return NB_OK;
}

status kn_column_moments(double *mean, double *variance, const real *x, int64_t M, int64_t C)
{
    real *rounded = nb_alloc((size_t)C, sizeof *rounded);
    double *rest = nb_alloc((size_t)C, sizeof *rest);
    status s = rounded && rest ? sums(mean, NULL, x, NULL, x, NULL, M, C) : NB_NOMEM;
    for (int64_t c = 0; s == NB_OK && c < C; c++) {
        mean[c] /= (double)M;
        rounded[c] = (real)mean[c];
    }
    if (s == NB_OK)
        s = sums(rest, variance, x, rounded, x, rounded, M, C);
    for (int64_t c = 0; s == NB_OK && c < C; c++) {
        const double off = mean[c] - (double)rounded[c];
        variance[c] = variance[c] / (double)M - off * off;
        variance[c] = variance[c] > 0 ? variance[c] : 0;
    }
    free(rounded);
    free(rest);
    return s;
}

status kn_column_products(double *sum, double *product, const real *d, const real *x, const double *mean, int64_t M, int64_t C)
{
    real *means = nb_alloc_zeroed((size_t)C * 2, sizeof *means); /* of x, then zeros */
    for (int64_t c = 0; means && c < C; c++)
        means[c] = (real)mean[c];
    const status s = means ? sums(sum, product, d, means + C, x, means, M, C) : NB_NOMEM;
    for (int64_t c = 0; s == NB_OK && c < C; c++)
        product[c] += sum[c] * ((double)means[c] - mean[c]);
    free(means);
    return s;
}

void kn_column_map(real *y, real beta, const real *a, const real *p, const real *b, const real *q, const real *r, int64_t M, int64_t C)
{
    const kn_table *t = kn_isa();
    const int64_t rows = kn_max(1, KN_CHUNK / C);
#pragma omp parallel for schedule(static) if (M * C > KN_PARALLEL)
    for (int64_t m = 0; m < M; m += rows)
        t->column_maps(y + m * C, a + m * C, p, b ? b + m * C : NULL, q, r, kn_min(rows, M - m), C, beta != 0);
}

/* gptq_scales.c - normal equations of a row's scales: sum_g' (l_g H l_g') s_g' = l_g H w', solved by Cholesky. */
#include "ptq/gptq_scales.h"
#include <math.h>
#include <string.h>

bool pt_ranges_by_row(const kn_grid *g)
{
    return g->grain == KN_ROW || g->grain == KN_GROUP || g->grain == KN_HEAD;
}

bool pt_fits_scales(const kn_grid *g)
{
    return pt_ranges_by_row(g) && !kn_has_super(g) && g->scale != KN_SCALE_POW2 && g->levels != KN_LEVELS_SIGN;
}

/* a [n, n] x = b, a positive definite: Cholesky in place, x into b. False where it is not. */
static bool solve(double *a, double *b, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = j; i < n; i++) {
            double s = a[i * n + j];
            for (int64_t k = 0; k < j; k++)
                s -= a[i * n + k] * a[j * n + k];
            if (i == j && !(s > 0))
                return false;
            a[i * n + j] = i == j ? sqrt(s) : s / a[j * n + j];
        }
        for (int64_t k = 0; k < j; k++)
            b[j] -= a[j * n + k] * b[k];
        b[j] /= a[j * n + j];
    }
    for (int64_t j = n - 1; j >= 0; j--) {
        for (int64_t k = j + 1; k < n; k++)
            b[j] -= a[k * n + j] * b[k];
        b[j] /= a[j * n + j];
    }
    return true;
}

static int64_t group_of(const kn_codes *c)
{
    return c->grid.grain == KN_ROW ? c->cols : c->grid.group;
}

static int64_t group_width(const kn_codes *c, int64_t g)
{
    const int64_t group = group_of(c), rest = c->cols - g * group;
    return group < rest ? group : rest;
}

void pt_row_levels(real *l, const kn_codes *c, int64_t row)
{
    for (int64_t j = 0; j < c->cols; j++) {
        const int32_t zero = c->zero ? c->zero[row * c->spans + j / group_of(c)] : 0;
        l[j] = (real)(kn_mul(&c->grid) * pt_code(c, row * c->ld + j) + kn_add(&c->grid) - zero);
    }
}

void pt_levels_h(real *lh, const real *l, int64_t n, const kn_codes *c, const real *H)
{
    const int64_t K = c->cols, S = c->spans;
#pragma omp parallel for schedule(static) if (n > 1)
    for (int64_t g = 0; g < S; g++) {
        const int64_t from = g * group_of(c);
        kn_tile_nn(lh + g * K, S * K, l + from, K, H + from * K, K, n, K, group_width(c, g), 0);
    }
}

void pt_fit_row(kn_codes *c, int64_t row, const real *wh, const real *l, const real *lh, real damping, double *a)
{
    const int64_t K = c->cols, S = c->spans;
    double *b = a + S * S, trace = 0;
    for (int64_t g = 0; g < S; g++) {
        b[g] = 0;
        for (int64_t j = g * group_of(c); j < g * group_of(c) + group_width(c, g); j++)
            b[g] += (double)l[j] * (double)wh[j];
        for (int64_t k = 0; k < S; k++) {
            double sum = 0;
            for (int64_t j = k * group_of(c); j < k * group_of(c) + group_width(c, k); j++)
                sum += ((double)lh[g * K + j] + (g == k ? (double)damping * (double)l[j] : 0)) * (double)l[j];
            a[g * S + k] = sum;
            trace += g == k ? sum : 0;
        }
    }
    const double ridge = 1e-6 * trace / (double)S;
    for (int64_t g = 0; g < S; g++) { /* a group of zeros has no scale; what cannot be told apart stays as it is */
        b[g] += ridge * (double)c->scale[row * S + g];
        a[g * S + g] += ridge > 0 ? ridge : 1;
    }
    if (solve(a, b, S))
        for (int64_t g = 0; g < S; g++)
            if (b[g] != 0 && isfinite(b[g]))
                c->scale[row * S + g] = kn_store(&c->grid, (real)b[g]);
}

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

void pt_fit_row(kn_codes *c, const real *H, int64_t row, const real *wh, real *l, real *lh, double *a)
{
    const int64_t K = c->cols, S = c->spans, group = c->grid.grain == KN_ROW ? K : c->grid.group;
    double *b = a + S * S;
    memset(l, 0, (size_t)(S * K) * sizeof *l);
    for (int64_t j = 0; j < K; j++) {
        const int64_t g = j / group, s = row * S + g;
        l[g * K + j] = (real)(kn_mul(&c->grid) * pt_code(c, row * c->ld + j) + kn_add(&c->grid) - (c->zero ? c->zero[s] : 0));
    }
    for (int64_t g = 0; g < S; g++) { /* l_g has numbers in its group alone */
        const int64_t from = g * group, n = group < K - from ? group : K - from;
        kn_tile_nn(lh + g * K, K, l + g * K + from, K, H + from * K, K, 1, K, n, 0);
        b[g] = 0;
        for (int64_t j = from; j < from + n; j++)
            b[g] += (double)l[g * K + j] * (double)wh[j];
    }
    double trace = 0;
    for (int64_t g = 0; g < S; g++)
        for (int64_t k = 0; k < S; k++) {
            const int64_t from = k * group, end = from + group < K ? from + group : K;
            double sum = 0;
            for (int64_t j = from; j < end; j++)
                sum += (double)lh[g * K + j] * (double)l[k * K + j];
            a[g * S + k] = sum;
            trace += g == k ? sum : 0;
        }
    for (int64_t g = 0; g < S; g++) /* a group of zeros has no scale; what cannot be told apart stays as it is */
        for (int64_t k = 0; k < S; k++)
            if (g == k) {
                const double ridge = 1e-6 * trace / (double)S;
                b[g] += ridge * (double)c->scale[row * S + g];
                a[g * S + g] += ridge > 0 ? ridge : 1;
            }
    if (solve(a, b, S))
        for (int64_t g = 0; g < S; g++)
            if (b[g] != 0 && isfinite(b[g]))
                c->scale[row * S + g] = kn_store(&c->grid, (real)b[g]);
}

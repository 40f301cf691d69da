/* obq.c - Optimal Brain Quantization (Frantar & Alistarh 2022):
 *   i = argmin (w_i - v_i)^2 / G_ii over columns left;  w -= (w_i - v_i) / G_ii G_i;  G -= G_i' G_i / G_ii, without row and column i
 * from G = U' U, the inverse of the damped H.
 */
#include "ptq/obq.h"
#include <math.h>
#include <stdlib.h>

/* g [K, K] <- U' U, in the order of h. */
static void inverse(double *g, const pt_hessian *h)
{
    const int64_t K = h->K;
    for (int64_t i = 0; i < K * K; i++)
        g[i] = 0;
    for (int64_t k = 0; k < K; k++) {
        const real *u = h->U + k * K;
        for (int64_t i = k; i < K; i++)
            for (int64_t j = k; j < K; j++)
                g[i * K + j] += (double)u[i] * (double)u[j];
    }
}

static double error_of(const kn_codes *c, double x, int64_t row, int64_t column, int32_t *q)
{
    const int64_t s = kn_scale_index(c, row, column);
    const int32_t zero = c->zero ? c->zero[s] : 0;
    *q = kn_encode_one(&c->grid, (real)x, kn_inverse(c->scale[s]), zero);
    return x - (double)(kn_mul(&c->grid) * *q + kn_add(&c->grid) - zero) * (double)c->scale[s];
}

/* g [K, K] is used up; x [K] the row in the order of h, left [K] true. */
static void one_row(kn_codes *c, double *g, double *x, bool *left, const int64_t *order, int64_t row)
{
    const int64_t K = c->cols;
    for (int64_t step = 0; step < K; step++) {
        int64_t best = -1;
        double least = INFINITY;
        int32_t q;
        for (int64_t i = 0; i < K; i++) {
            const double e = left[i] ? error_of(c, x[i], row, order[i], &q) : 0, cost = e * e / g[i * K + i];
            if (left[i] && (best < 0 || cost < least)) {
                least = cost;
                best = i;
            }
        }
        const double e = error_of(c, x[best], row, order[best], &q), d = g[best * K + best];
        const int64_t at = row * c->ld + order[best];
        if (c->q)
            c->q[at] = (int8_t)q;
        else
            c->q16[at] = (int16_t)q;
        left[best] = false;
        const double *gi = g + best * K;
        for (int64_t j = 0; j < K; j++) {
            if (!left[j])
                continue;
            x[j] -= e / d * gi[j];
            const double f = gi[j] / d;
            for (int64_t k = 0; k < K; k++)
                g[j * K + k] -= f * gi[k];
        }
    }
}

status pt_obq(kn_codes *c, const real *w, const pt_hessian *h, int64_t row, int64_t n)
{
    const int64_t K = c->cols;
    double *whole = nb_alloc((size_t)(2 * K + 1), (size_t)K * sizeof *whole);
    bool *left = nb_alloc((size_t)K, sizeof *left);
    if (whole && left) {
        double *g = whole + K * K, *x = g + K * K;
        inverse(whole, h);
        for (int64_t r = row; r < row + n; r++) {
            for (int64_t i = 0; i < K * K; i++)
                g[i] = whole[i];
            for (int64_t i = 0; i < K; i++) {
                x[i] = (double)w[r * K + h->order[i]];
                left[i] = true;
            }
            one_row(c, g, x, left, h->order, r);
        }
    }
    const status s = whole && left ? NB_OK : NB_NOMEM;
    free(whole);
    free(left);
    return s;
}

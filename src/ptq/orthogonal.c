/* orthogonal.c - R = H_(2^m) (x) core of order n = 2^m K, orthogonal.
 *   H_(2^m): Sylvester's, as butterflies (x, y) -> (x + y, x - y) / sqrt(2);  core: a Hadamard matrix / sqrt(K) (kernels/hadamard.c)
 *   else the odd part K: a product of reflections I - 2 v v' / v'v of normal vectors of lengths K, K-1, ..: uniform among
 *   the orthogonal matrices (Stewart 1980)
 */
#include "ptq/orthogonal.h"
#include "kernels/kernels.h"
#include <math.h>
#include <stdlib.h>

static status random_core(double *core, int64_t K, uint64_t seed)
{
    double *v = nb_alloc((size_t)K, sizeof *v);
    if (!v)
        return NB_NOMEM;
    for (int64_t i = 0; i < K * K; i++)
        core[i] = i % (K + 1) == 0;
    for (int64_t k = 0; k + 1 < K; k++) {
        double norm = 0;
        for (int64_t i = k; i < K; i++) {
            v[i] = nb_random_normal(seed, (uint64_t)k, (uint64_t)i);
            norm += v[i] * v[i];
        }
#pragma omp parallel for if (K > 64)
        for (int64_t r = 0; r < K; r++) {
            double dot = 0;
            for (int64_t i = k; i < K; i++)
                dot += core[r * K + i] * v[i];
            for (int64_t i = k; i < K; i++)
                core[r * K + i] -= 2 * dot / norm * v[i];
        }
    }
    free(v);
    return NB_OK;
}

static status hadamard_core(double *core, int64_t K)
{
    int8_t *sign = nb_alloc((size_t)K, (size_t)K);
    if (!sign)
        return NB_NOMEM;
    kn_hadamard_core(sign, K);
    for (int64_t i = 0; i < K * K; i++)
        core[i] = sign[i] / sqrt((double)K);
    free(sign);
    return NB_OK;
}

status pt_orthogonal_new(pt_orthogonal *r, int64_t n, uint64_t seed)
{
    int64_t odd = n;
    while (odd % 2 == 0)
        odd /= 2;
    *r = (pt_orthogonal){.n = n, .K = kn_hadamard_core_of(n)};
    r->hadamard = r->K > 0;
    r->K = r->hadamard ? r->K : odd;
    r->core = nb_alloc((size_t)r->K, (size_t)r->K * sizeof *r->core);
    if (!r->core)
        return NB_NOMEM;
    return r->hadamard ? hadamard_core(r->core, r->K) : random_core(r->core, r->K, seed);
}

void pt_orthogonal_free(pt_orthogonal *r)
{
    free(r->core);
    *r = (pt_orthogonal){0};
}

void pt_orthogonal_apply(const pt_orthogonal *r, double *x, const double *sign, double *scratch)
{
    const int64_t n = r->n, K = r->K;
    for (int64_t i = 0; i < n; i++)
        scratch[i] = x[i] * sign[i];
    double unit = 1;
    for (int64_t half = K; half < n; half *= 2) { /* blocks of K numbers are what the butterflies move */
        for (int64_t at = 0; at < n; at += 2 * half)
            for (int64_t i = at; i < at + half; i++) {
                const double a = scratch[i], b = scratch[i + half];
                scratch[i] = a + b;
                scratch[i + half] = a - b;
            }
        unit *= sqrt(0.5);
    }
    for (int64_t block = 0; block < n; block += K)
        for (int64_t j = 0; j < K; j++) {
            double sum = 0;
            for (int64_t i = 0; i < K; i++)
                sum += scratch[block + i] * r->core[i * K + j];
            x[block + j] = sum * unit;
        }
}

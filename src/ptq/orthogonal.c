/* orthogonal.c - R = H_(2^m) (x) core of order n = 2^m K, orthogonal.
 *   H_(2^m): Sylvester's, as butterflies (x, y) -> (x + y, x - y) / sqrt(2)
 *   Paley I,  K = p + 1, p = 3 mod 4:     H = I + S,  S = [0 1'; -1 Q]       Q[i,j] = chi(i - j), chi the quadratic character mod the prime p
 *   Paley II, K = 2 (p + 1), p = 1 mod 4: C = [0 1'; 1 Q] symmetric; 0 -> [1 -1; -1 -1], +-1 -> +-[1 1; 1 -1]        (Paley 1933)
 *   else the odd part K: a product of reflections I - 2 v v' / v'v of normal vectors of lengths K, K-1, ..: uniform among
 *   the orthogonal matrices (Stewart 1980)
 */
#include "ptq/orthogonal.h"
#include <math.h>
#include <stdlib.h>

static bool is_prime(int64_t p)
{
    for (int64_t i = 2; i * i <= p; i++)
        if (p % i == 0)
            return false;
    return p >= 2;
}

/* 1: a square mod p, -1: none, 0: divisible. By Euler's criterion. */
static int character(int64_t a, int64_t p)
{
    uint64_t base = (uint64_t)((a % p + p) % p), r = 1, m = (uint64_t)p;
    for (int64_t e = (p - 1) / 2; e; e >>= 1, base = base * base % m)
        r = e & 1 ? r * base % m : r;
    return r == 0 ? 0 : r == 1 ? 1 : -1;
}

typedef enum { NO_CORE, ONE, PALEY_1, PALEY_2 } construction;

enum { LARGEST_CORE = 4096 }; /* a dense core beyond it costs more than it brings */

static construction construction_of(int64_t K)
{
    if (K == 1)
        return ONE;
    if (K % 4 || K > LARGEST_CORE)
        return NO_CORE;
    if (is_prime(K - 1)) /* K = 0 mod 4: the prime is 3 mod 4 */
        return PALEY_1;
    return is_prime(K / 2 - 1) && (K / 2 - 1) % 4 == 1 ? PALEY_2 : NO_CORE;
}

/* S of Paley I, C of Paley II, order p + 1 */
static int bordered(int64_t i, int64_t j, int64_t p, bool skew)
{
    if (i == 0 || j == 0)
        return i == j ? 0 : i == 0 || !skew ? 1 : -1;
    return character(i - j, p);
}

static void paley(double *core, int64_t K, construction how)
{
    const bool second = how == PALEY_2;
    const int64_t p = second ? K / 2 - 1 : K - 1;
    const double unit = 1 / sqrt((double)K);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
            int h;
            if (!second) {
                h = bordered(i, j, p, true) + (i == j);
            } else {
                const int c = bordered(i / 2, j / 2, p, false), both = i % 2 && j % 2;
                h = c ? (both ? -c : c) : i % 2 || j % 2 ? -1 : 1;
            }
            core[i * K + j] = h * unit;
        }
}

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

status pt_orthogonal_new(pt_orthogonal *r, int64_t n, uint64_t seed)
{
    int64_t K = n;
    *r = (pt_orthogonal){.n = n};
    while (K % 2 == 0)
        K /= 2;
    const int64_t odd = K;
    construction how = NO_CORE;
    for (; K <= n && n % K == 0; K *= 2)
        if ((how = construction_of(K)) != NO_CORE)
            break;
    r->K = how == NO_CORE ? odd : K;
    r->hadamard = how != NO_CORE;
    r->core = nb_alloc((size_t)r->K, (size_t)r->K * sizeof *r->core);
    if (!r->core)
        return NB_NOMEM;
    if (how == ONE)
        r->core[0] = 1;
    else if (r->hadamard)
        paley(r->core, r->K, how);
    else
        return random_core(r->core, r->K, seed);
    return NB_OK;
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

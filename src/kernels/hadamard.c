/* hadamard.c - Hadamard matrices H of +-1, H H' = n I, as a product with rows: y = x H / sqrt(n).
 *   order n = 2^m K:  H = H_(2^m) (x) core, Sylvester's as butterflies (x, y) -> (x + y, x - y), then K^2 sums for each block of K; the core is 1 or Paley's (1933):
 *   Paley I,  K = p + 1, p = 3 mod 4:     H = I + S,  S = [0 1'; -1 Q]       Q[i,j] = chi(i - j), chi the quadratic character mod the prime p
 *   Paley II, K = 2 (p + 1), p = 1 mod 4: C = [0 1'; 1 Q] symmetric; 0 -> [1 -1; -1 -1], +-1 -> +-[1 1; 1 -1]
 * A row of n has blocks of the largest divisor that is such an order: 1536 = 128 * 12 whole, 172 in blocks of 4.
 */
#include "kernels_isa.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

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

int64_t kn_hadamard_core_of(int64_t n)
{
    int64_t K = n;
    while (K % 2 == 0)
        K /= 2;
    for (; K <= n && n % K == 0; K *= 2)
        if (construction_of(K) != NO_CORE)
            return K;
    return 0;
}

void kn_hadamard_core(int8_t *core, int64_t K)
{
    const construction how = construction_of(K);
    const int64_t p = how == PALEY_2 ? K / 2 - 1 : K - 1;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
            int h = 1;
            if (how == PALEY_1) {
                h = bordered(i, j, p, true) + (i == j);
            } else if (how == PALEY_2) {
                const int c = bordered(i / 2, j / 2, p, false), both = i % 2 && j % 2;
                h = c ? (both ? -c : c) : i % 2 || j % 2 ? -1 : 1;
            }
            core[i * K + j] = (int8_t)h;
        }
}

/* ---- rows --------------------------------------------------------------------------------- */

struct kn_hadamard {
    int64_t n, order, K;
    real unit;     /* 1 / sqrt(order) */
    real *core[2]; /* [K, K]; [1] transposed */
};

status kn_hadamard_new(kn_hadamard **out, int64_t n)
{
    kn_hadamard *h = *out = nb_alloc_zeroed(1, sizeof *h);
    if (!h)
        return NB_NOMEM;
    h->n = h->order = n;
    while (h->order > 1 && (n % h->order || !kn_hadamard_core_of(h->order)))
        h->order--;
    h->K = kn_hadamard_core_of(h->order);
    h->unit = (real)(1 / sqrt((double)h->order));
    const int64_t K = h->K;
    int8_t *core = nb_alloc((size_t)K, (size_t)K);
    for (int i = 0; i < 2; i++)
        h->core[i] = nb_alloc((size_t)K, (size_t)K * sizeof(real));
    const bool done = core && h->core[0] && h->core[1];
    if (done)
        kn_hadamard_core(core, K);
    for (int64_t i = 0; done && i < K * K; i++)
        h->core[0][i] = h->core[1][i % K * K + i / K] = core[i];
    free(core);
    if (done)
        return NB_OK;
    kn_hadamard_free(h);
    *out = NULL;
    return NB_NOMEM;
}

void kn_hadamard_free(kn_hadamard *h)
{
    if (!h)
        return;
    free(h->core[0]);
    free(h->core[1]);
    free(h);
}

int64_t kn_hadamard_length(const kn_hadamard *h)
{
    return h->n;
}

int64_t kn_hadamard_order(const kn_hadamard *h)
{
    return h->order;
}

/* One block in place: butterflies, the core, the unit. */
static void turn(real *x, const kn_hadamard *h, const real *core)
{
    const int64_t n = h->order, K = h->K;
    for (int64_t half = K; half < n; half *= 2)
        for (int64_t at = 0; at < n; at += 2 * half)
            for (int64_t i = at; i < at + half; i++) {
                const real a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    for (int64_t block = 0; K > 1 && block < n; block += K) {
        real sum[LARGEST_CORE];
        memset(sum, 0, (size_t)K * sizeof *sum);
        for (int64_t i = 0; i < K; i++)
            for (int64_t j = 0; j < K; j++)
                sum[j] += x[block + i] * core[i * K + j];
        memcpy(x + block, sum, (size_t)K * sizeof *sum);
    }
    for (int64_t i = 0; i < n; i++)
        x[i] *= h->unit;
}

void kn_hadamard_rows(real *y, const real *x, int64_t M, const kn_hadamard *h, bool transposed)
{
    const int64_t blocks = M * (h->n / h->order);
    if (y != x)
        memcpy(y, x, (size_t)(M * h->n) * sizeof *y);
#pragma omp parallel for if (M * h->n > KN_PARALLEL) schedule(static)
    for (int64_t b = 0; b < blocks; b++)
        turn(y + b * h->order, h, h->core[transposed]);
}

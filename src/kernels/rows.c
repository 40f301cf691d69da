/* rows.c - threads around the row kernels: rows, or chunks of elements, are shared out. Formulas: kernels.h.
 * One chunk needs no team: elementwise kernels are also called row by row inside parallel loops, where a nested team is
 * not free. */
#include "kernels/kernels_isa.h"

#include <string.h>
#include <tgmath.h>

enum { ROWS = 16 }; /* rows of one unit of work */

/* Columns of one unit of work of a sum over rows: whole cache lines, several where there are many. */
static int64_t strip_of(int64_t C)
{
    return C < 512 ? 16 : 64;
}

typedef void one_input(real *y, const real *x, int64_t n);
typedef void two_inputs(real *y, const real *a, const real *b, int64_t n);

static void map(one_input *f, real *y, const real *x, int64_t n)
{
    if (n <= KN_CHUNK) {
        f(y, x, n);
        return;
    }
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        f(y + i, x + i, kn_min(KN_CHUNK, n - i));
}

static void map2(two_inputs *f, real *y, const real *a, const real *b, int64_t n)
{
    if (n <= KN_CHUNK) {
        f(y, a, b, n);
        return;
    }
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        f(y + i, a + i, b + i, kn_min(KN_CHUNK, n - i));
}

void kn_exp(real *y, const real *x, int64_t n)
{
    map(kn_isa()->exponential, y, x, n);
}

void kn_adamw(real *x, real *m, real *v, const real *g, int64_t n, const kn_adamw_factors *f)
{
    kn_isa()->adamw(x, m, v, g, n, f);
}

void kn_adamw_bf16(real *x, uint16_t *m, uint16_t *v, const real *g, int64_t n, const kn_adamw_factors *f, uint32_t key)
{
    kn_isa()->adamw_bf16(x, m, v, g, n, f, key);
}

bool kn_count_flips(int16_t *f, int16_t *m, int8_t *last, const int8_t *q, int64_t n, int limit)
{
    return kn_isa()->count_flips(f, m, last, q, n, limit);
}

void kn_hold_pinned(real *x, const int16_t *f, const int16_t *m, int64_t n, real mul, real add, real scale)
{
    kn_isa()->hold_pinned(x, f, m, n, mul, add, scale);
}

void kn_silu(real *y, const real *x, int64_t n)
{
    map(kn_isa()->silu, y, x, n);
}

void kn_silu_backward(real *dx, const real *dy, const real *x, int64_t n)
{
    map2(kn_isa()->silu_backward, dx, dy, x, n);
}

/* x Phi(x), Phi the normal distribution; its derivative is Phi + x phi. libm's erf: the same in every table. */
static void gelu_erf(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * (real)0.5 * (1 + erf(x[i] * (real)0.70710678118654752));
}

static void gelu_erf_backward(real *dx, const real *dy, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const real cumulative = (real)0.5 * (1 + erf(x[i] * (real)0.70710678118654752));
        const real density = (real)0.39894228040143268 * exp((real)-0.5 * x[i] * x[i]);
        dx[i] += dy[i] * (cumulative + x[i] * density);
    }
}

void kn_gelu(real *y, const real *x, int64_t n, bool tanh_form)
{
    map(tanh_form ? kn_isa()->gelu_tanh : gelu_erf, y, x, n);
}

void kn_gelu_backward(real *dx, const real *dy, const real *x, int64_t n, bool tanh_form)
{
    map2(tanh_form ? kn_isa()->gelu_tanh_backward : gelu_erf_backward, dx, dy, x, n);
}

void kn_swiglu(real *y, const real *gate, const real *up, int64_t n)
{
    map2(kn_isa()->swiglu, y, gate, up, n);
}

void kn_swiglu_backward(real *dgate, real *dup, const real *dy, const real *gate, const real *up, int64_t n)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        t->swiglu_backward(dgate ? dgate + i : NULL, dup ? dup + i : NULL, dy + i, gate + i, up + i,
                           kn_min(KN_CHUNK, n - i));
}

void kn_to_bf16(uint16_t *y, const real *x, int64_t n)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        t->to_bf16(y + i, x + i, kn_min(KN_CHUNK, n - i));
}

/* A chunk's values and zeroed gradients stay in the first cache level between the loops. */
void kn_swiglu_backward_bf16(real *dgate, real *dup, const real *dy, const uint16_t *gate, const uint16_t *up, int64_t n)
{
    enum { CHUNK = 1024 };
    const kn_table *t = kn_isa();
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t count = kn_min(CHUNK, n - i);
        real own[2][CHUNK];
        for (int64_t j = 0; j < count; j++) {
            own[0][j] = (real)kn_bf16_value(gate[i + j]);
            own[1][j] = (real)kn_bf16_value(up[i + j]);
        }
        memset(dgate + i, 0, (size_t)count * sizeof *dgate);
        memset(dup + i, 0, (size_t)count * sizeof *dup);
        t->swiglu_backward(dgate + i, dup + i, dy + i, own[0], own[1], count);
    }
}

void kn_add_to(real *y, const real *x, int64_t n)
{
    map(kn_isa()->add_to, y, x, n);
}

void kn_sum2(real *y, const real *a, const real *b, int64_t n)
{
    map2(kn_isa()->sum2, y, a, b, n);
}

void kn_axpy(real *y, real a, const real *x, int64_t n)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        t->axpy(y + i, x + i, a, kn_min(KN_CHUNK, n - i));
}

real kn_absmax(const real *x, int64_t n)
{
    const kn_table *t = kn_isa();
    real most = 0;
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static) reduction(max : most)
    for (int64_t i = 0; i < n; i += KN_CHUNK) {
        const real part = t->absmax(x + i, kn_min(KN_CHUNK, n - i));
        most = part > most ? part : most;
    }
    return most;
}

/* Chunks are summed by themselves and added in double, in order; 256 at a time, so that they fit the stack. */
double kn_sum_squares(const real *x, int64_t n)
{
    enum { BATCH = 256 };
    const kn_table *t = kn_isa();
    double total = 0, part[BATCH];
    for (int64_t at = 0; at < n; at += (int64_t)BATCH * KN_CHUNK) {
        const int64_t left = kn_min((int64_t)BATCH * KN_CHUNK, n - at), chunks = (left + KN_CHUNK - 1) / KN_CHUNK;
#pragma omp parallel for if (left > KN_PARALLEL) schedule(static)
        for (int64_t i = 0; i < chunks; i++)
            part[i] = (double)t->sum_squares(x + at + i * KN_CHUNK, kn_min(KN_CHUNK, left - i * KN_CHUNK));
        for (int64_t i = 0; i < chunks; i++)
            total += part[i];
    }
    return total;
}

void kn_softmax(real *y, const real *x, int64_t M, int64_t C)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * C > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m++)
        t->softmax(y + m * C, x + m * C, 1, C);
}

void kn_logsumexp(double *lse, const real *x, int64_t M, int64_t C)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * C > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m++)
        t->logsumexp(lse + m, x + m * C, 1, C);
}

real kn_exp_sums(real *sum, const real *x, int64_t n, real f)
{
    return kn_isa()->exp_sums(sum, x, n, f);
}

void kn_rmsnorm(real *y, real *r, const real *x, const real *w, int64_t M, int64_t C, real eps)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * C > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m += ROWS)
        t->rmsnorm(y + m * C, r ? r + m : NULL, x + m * C, w, kn_min(ROWS, M - m), C, eps);
}

void kn_rmsnorm_backward(real *dx, real *dw, const real *dy, const real *x, const real *w, const real *r, int64_t M,
                         int64_t C)
{
    const kn_table *t = kn_isa();
    const int64_t strip = strip_of(C);
#pragma omp parallel if (M * C > KN_PARALLEL)
    {
        if (dx) {
#pragma omp for schedule(static) nowait
            for (int64_t m = 0; m < M; m += ROWS)
                t->rmsnorm_dx(dx + m * C, dy + m * C, x + m * C, w, r + m, kn_min(ROWS, M - m), C);
        }
        if (dw) {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < C; c += strip)
                t->rmsnorm_dw(dw + c, dy + c, x + c, r, M, C, kn_min(strip, C - c));
        }
    }
}

void kn_layernorm(real *y, real *mean, real *r, const real *x, const real *w, const real *b, int64_t M, int64_t C,
                  real eps)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * C > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m += ROWS)
        t->layernorm(y + m * C, mean ? mean + m : NULL, r ? r + m : NULL, x + m * C, w, b, kn_min(ROWS, M - m), C, eps);
}

void kn_layernorm_backward(real *dx, real *dw, real *db, const real *dy, const real *x, const real *w, const real *mean,
                           const real *r, int64_t M, int64_t C)
{
    const kn_table *t = kn_isa();
    const int64_t strip = strip_of(C);
#pragma omp parallel if (M * C > KN_PARALLEL)
    {
        if (dx) {
#pragma omp for schedule(static) nowait
            for (int64_t m = 0; m < M; m += ROWS)
                t->layernorm_dx(dx + m * C, dy + m * C, x + m * C, w, mean + m, r + m, kn_min(ROWS, M - m), C);
        }
        if (dw || db) {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < C; c += strip)
                t->layernorm_dw(dw ? dw + c : NULL, db ? db + c : NULL, dy + c, x + c, mean, r, M, C,
                                kn_min(strip, C - c));
        }
    }
}

void kn_rope_table(real *cos_table, real *sin_table, int64_t T, int64_t D, double theta, const real *factor)
{
    for (int64_t i = 0; i < D / 2; i++) {
        const double frequency = pow(theta, -2.0 * (double)i / (double)D) / (factor ? (double)factor[i] : 1.0);
        for (int64_t t = 0; t < T; t++) {
            cos_table[t * (D / 2) + i] = (real)cos((double)t * frequency);
            sin_table[t * (D / 2) + i] = (real)sin((double)t * frequency);
        }
    }
}

void kn_rope(real *y, const real *x, const real *cos_table, const real *sin_table, const int32_t *pos, int64_t M,
             int64_t H, int64_t D, int64_t T, kn_rope_pairing pairing, bool inverse)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * H * D > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const int64_t at = (pos ? pos[m] : m % T) * (D / 2);
        t->rope(y + m * H * D, x + m * H * D, cos_table + at, sin_table + at, H, D, pairing == KN_ROPE_HALF, inverse);
    }
}

void kn_drop(real *y, real beta, const real *x, int64_t n, real p, uint64_t seed, uint64_t stream)
{
    const kn_table *t = kn_isa();
    const uint64_t least = (uint64_t)ceil((double)p * 0x1p53);
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < n; i += KN_CHUNK)
        t->drop(y + i, x + i, kn_min(KN_CHUNK, n - i), nb_random_state(seed, stream, (uint64_t)i), least, 1 / (1 - p), beta != 0);
}

void kn_range_sums(real sums[2], const real *dy, const real *x, const real *y, int64_t n, real inv, real lo, real hi, real rounded)
{
    kn_isa()->range_sums(sums, dy, x, y, n, inv, lo, hi, rounded);
}

void kn_range_pass(real *dx, real beta, const real *dy, const real *x, int64_t n, real inv, real lo, real hi)
{
    kn_isa()->range_pass(dx, dy, x, n, inv, lo, hi, beta != 0);
}

void kn_range_bits(uint8_t *bits, const real *x, int64_t n, real inv, real lo, real hi)
{
    kn_isa()->range_bits(bits, x, n, inv, lo, hi);
}

void kn_bits_pass(real *dx, real beta, const real *dy, const uint8_t *bits, int64_t n)
{
    kn_isa()->bits_pass(dx, dy, bits, n, beta != 0);
}

void kn_finite_min_max(real *min, real *max, const real *x, int64_t n)
{
    kn_isa()->finite_min_max(min, max, x, n);
}

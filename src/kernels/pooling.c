/* pooling.c - maximum and mean over windows of a picture, of floats and of codes; formulas: kernels.h. */
#include "kernels/kernels_isa.h"
#include <string.h>

status kn_pool_fit(kn_conv *c)
{
    if (c->K < 1 || c->K > 4096 || c->H < c->K || c->W < c->K || c->stride < 0 || c->C < 1)
        return nb_fail(NB_USAGE, "pooling of %lldx%lld windows over pictures of %lldx%lld", (long long)c->K, (long long)c->K,
                       (long long)c->H, (long long)c->W);
    c->stride = c->stride ? c->stride : c->K;
    c->OH = (c->H - c->K) / c->stride + 1;
    c->OW = (c->W - c->K) / c->stride + 1;
    c->N = c->C;
    c->groups = c->C;
    c->dilation = 1;
    return NB_OK;
}

/* First point of the window of output o. */
static int64_t corner(const kn_conv *c, int64_t o)
{
    return (o / c->OW * c->stride * c->W + o % c->OW * c->stride) * c->C;
}

static int64_t point(const kn_conv *c, int64_t k)
{
    return (k / c->K * c->W + k % c->K) * c->C;
}

void kn_max_pool(real *y, uint8_t *at, const kn_conv *c, const real *x, int64_t B)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C, in = c->H * c->W * C, points = c->OH * c->OW;
#pragma omp parallel for schedule(static) if (B * in > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        for (int64_t o = 0; o < points; o++)
            t->largest_point(y + (i * points + o) * C, at ? at + (i * points + o) * C : NULL, x + i * in + corner(c, o), C, c->K, c->W * C);
}

void kn_max_pool_dx(real *dx, real beta, const kn_conv *c, const real *dy, const uint8_t *at, int64_t B)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C, in = c->H * c->W * C, points = c->OH * c->OW;
    const bool once = beta == 0 && c->stride == c->K && c->OH * c->K == c->H && c->OW * c->K == c->W; /* each point in one window */
#pragma omp parallel for schedule(static) if (B * in > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++) {
        if (beta == 0 && !once)
            memset(dx + i * in, 0, (size_t)in * sizeof *dx);
        for (int64_t o = 0; o < points; o++)
            t->largest_point_dx(dx + i * in + corner(c, o), dy + (i * points + o) * C, at + (i * points + o) * C, C, c->K, c->W * C, !once);
    }
}

static void largest_code(int8_t *restrict y, uint8_t *restrict at, const int8_t *restrict x, int64_t C, int64_t k)
{
    for (int64_t i = 0; i < C; i++) {
        const bool more = x[i] > y[i];
        y[i] = more ? x[i] : y[i];
        at[i] = more ? (uint8_t)k : at[i];
    }
}

void kn_max_pool_codes(int8_t *y, int64_t ldy, uint8_t *at, const kn_conv *c, const int8_t *x, int64_t ldx, int64_t B)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C, points = c->OH * c->OW;
#pragma omp parallel for schedule(static) if (B * points * C > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        for (int64_t o = 0; o < points; o++) {
            const int8_t *from = x + i * ldx + corner(c, o);
            int8_t *to = y + i * ldy + o * C;
            uint8_t *place = at ? at + (i * points + o) * C : NULL;
            memcpy(to, from, (size_t)C);
            if (place)
                memset(place, 0, (size_t)C);
            for (int64_t k = 1; k < c->K * c->K; k++)
                if (place)
                    largest_code(to, place, from + point(c, k), C, k);
                else
                    t->max8(to, from + point(c, k), C);
        }
}

void kn_average_pool(real *y, const kn_conv *c, const real *x, int64_t B)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C, in = c->H * c->W * C, points = c->OH * c->OW, n = c->K * c->K;
#pragma omp parallel for schedule(static) if (B * in > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        for (int64_t o = 0; o < points; o++) {
            real *to = y + (i * points + o) * C;
            memset(to, 0, (size_t)C * sizeof *to);
            for (int64_t k = 0; k < n; k++)
                t->add_to(to, x + i * in + corner(c, o) + point(c, k), C);
            for (int64_t j = 0; j < C; j++)
                to[j] /= (real)n;
        }
}

/* a / b rounded down, b > 0 */
static int32_t floor_divide(int32_t a, int32_t b)
{
    return a / b - (a % b < 0);
}

void kn_average_pool_codes(int8_t *y, int64_t ldy, const kn_conv *c, const int8_t *x, int64_t ldx, int32_t zero, int64_t B)
{
    const int64_t C = c->C, points = c->OH * c->OW;
    const int32_t n = (int32_t)(c->K * c->K);
#pragma omp parallel for schedule(static) if (B * points * C > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        for (int64_t o = 0; o < points; o++)
            for (int64_t j = 0; j < C; j++) {
                const int8_t *from = x + i * ldx + corner(c, o) + j;
                int32_t sum = -n * zero;
                for (int64_t k = 0; k < n; k++)
                    sum += from[point(c, k)];
                y[i * ldy + o * C + j] = (int8_t)(zero + floor_divide(2 * sum + n, 2 * n));
            }
}

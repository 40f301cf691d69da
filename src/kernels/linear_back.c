/* linear_back.c - dx = dy w of an integer linear map by integer products. With w = s_n l_nk, levels l, one scale a row:
 *   dx_mk = sum_n (dy_mn s_n) l_nk  ~  a_m sum_n q_mn l_nk,   a_m = max_n |dy_mn s_n| / 127,  q = dy s / a up or down by a random number,
 * so that dx is right on average, and its error that of 8 bits a row of dy. The sums are exact. (Wang et al. 2018 and Banner et al. 2018 train with
 * gradients of 8 bits; rounding at random: Gupta et al. 2015.) In groups along k scales do not leave the sum: floats do those.
 */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"

#include <assert.h>
#include <omp.h>

enum { TILE = 16 };

static kn_grid gradient_grid(void)
{
    return kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32);
}

/* Levels of w', all with the scale 1. */
static kn_grid turned_grid(void)
{
    return kn_grid_int(8, false, false, KN_TENSOR, 0, KN_SCALE_F32);
}

bool kn_can_multiply_back(const kn_grid *w, int64_t N)
{
    const kn_grid a = gradient_grid(), t = turned_grid();
    const bool integers = w->bits >= 1 && w->bits <= 8 && !w->has_zero && !kn_has_table(w) && kn_largest(w) <= 128 &&
                          kn_mul(w) * w->hi + kn_add(w) < 128;
    return integers && (w->grain == KN_ROW || w->grain == KN_TENSOR) && kn_can_multiply(&a, &t, N);
}

size_t kn_linear_back_bytes(int64_t M, int64_t N, int64_t K)
{
    const kn_grid a = gradient_grid(), t = turned_grid();
    return kn_codes_bytes(&a, M, N) + kn_codes_bytes(&t, K, N) + (size_t)(M * K + omp_get_max_threads() * N) * sizeof(real);
}

/* t [K, N] <- levels of w [N, K]; its scale 1. */
static void turn(kn_codes *t, const kn_codes *w)
{
    const int mul = kn_mul(&w->grid), add = kn_add(&w->grid);
    t->scale[0] = 1;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < w->cols; k += TILE)
        for (int64_t n = 0; n < w->rows; n += TILE)
            for (int64_t i = k; i < k + TILE && i < w->cols; i++)
                for (int64_t j = n; j < n + TILE && j < w->rows; j++)
                    t->q[i * t->ld + j] = (int8_t)(mul * w->q[j * w->ld + i] + add);
}

/* Rows of a <- dy times w's scales; z: N a thread. */
static void round_rows(kn_codes *a, const real *dy, const kn_codes *w, uint32_t key, real *z)
{
    const int64_t N = a->cols, next = w->grid.grain == KN_ROW;
    const kn_table *t = kn_isa();
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < a->rows; m++) {
        real *own = z + omp_get_thread_num() * N;
        for (int64_t n = 0; n < N; n++)
            own[n] = dy[m * N + n] * w->scale[n * next];
        a->scale[m] = t->absmax(own, N) / 127;
        t->codes_at_random(a->q + m * a->ld, own, kn_inverse(a->scale[m]), N, key + (uint32_t)(m * N));
    }
}

status kn_linear_back(real *dx, const real *dy, int64_t M, const kn_codes *w, bool add, uint32_t key, kn_packed *packed, void *memory)
{
    const int64_t N = w->rows, K = w->cols;
    const kn_grid rows = gradient_grid(), all = turned_grid();
    char *turned = (char *)memory + kn_codes_bytes(&rows, M, N);
    real *own = (real *)(void *)(turned + kn_codes_bytes(&all, K, N)), *y = add ? own : dx;
    kn_codes a, t;
    assert(w->q && kn_can_multiply_back(&w->grid, N));
    kn_codes_lay(&a, &rows, M, N, memory);
    kn_codes_lay(&t, &all, K, N, turned);
    round_rows(&a, dy, w, key, own + M * K);
    turn(&t, w);
    TRY(kn_pack(packed, &t));
    kn_linear_int(y, &a, 0, M, packed, NULL);
    if (add)
        kn_add_to(dx, y, M * K);
    return NB_OK;
}

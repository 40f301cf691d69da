/* conv_int.c - convolution of codes in exact integers, and fixed-point requantization; formulas: kernels.h.
 *   sum[o,n] = bias[n] + sum_{k,c} (q[o,k,c] - zero_x) w[n,k,c]      points outside the picture have the code zero_x
 * zero_x is folded into the bias. A picture with its margins is multiplied where it lies by tiles that have them, and by vectors where each channel
 * is for itself; else its windows are copied, one picture a thread, but for linear maps and windows of one point.
 */
#include "kernels/conv.h"
#include "kernels/kernels_isa.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLACK = 64, /* bytes behind windows that a product may read */
    ROWS = 24,  /* of linear maps, one unit of work */
    STEP = 64,  /* products of a step of a tile */
    NEAR = 6144 /* sums that stay in the first cache */
};
#define LARGEST_SUM 1073741824.0 /* 2^30: a bias, and all that is added to it */

/* ---- requantization ----------------------------------------------------------------------- */

status kn_requant_new(kn_requant *r, int64_t n)
{
    *r = (kn_requant){.n = n, .multiplier = nb_alloc((size_t)n * 3, sizeof(int64_t))};
    if (!r->multiplier)
        return NB_NOMEM;
    r->shift = r->multiplier + n;
    r->half = r->shift + n;
    return NB_OK;
}

void kn_requant_free(kn_requant *r)
{
    free(r->multiplier);
    *r = (kn_requant){0};
}

static double scale_of_row(const kn_codes *w, int64_t row)
{
    return (double)w->scale[w->grid.grain == KN_TENSOR ? 0 : row];
}

/* factor = m 2^-shift with m of 31 bits; a factor of 2^30 and more would not fit and is taken for the largest, one below 2^-32
 * gives 0. */
static void fix(int64_t *multiplier, int64_t *shift, double factor)
{
    int exponent;
    const double part = frexp(factor, &exponent);
    int64_t m = (int64_t)rint(ldexp(part, 31));
    int64_t s = 31 - exponent;
    if (m == INT64_C(1) << 31 || m == -(INT64_C(1) << 31)) {
        m /= 2;
        s--;
    }
    if (s < 1) {
        m = m < 0 ? -INT32_MAX : INT32_MAX;
        s = 1;
    }
    *multiplier = s > 62 ? 0 : m;
    *shift = s > 62 ? 62 : s;
}

void kn_requant_set(kn_requant *r, const kn_codes *w, real scale_x, const kn_grid *grid, real scale_y, int32_t zero_y,
                    kn_activation act)
{
    const double inv = (double)scale_y != 0 ? 1 / (double)scale_y : 0;
    for (int64_t n = 0; n < r->n; n++) {
        fix(&r->multiplier[n], &r->shift[n], (double)scale_x * scale_of_row(w, n) * inv);
        r->half[n] = INT64_C(1) << (r->shift[n] - 1);
    }
    r->zero = zero_y;
    r->lo = act != KN_LINEAR && zero_y > grid->lo ? zero_y : grid->lo;
    r->hi = grid->hi;
    if (act == KN_RELU6) {
        const double top = zero_y + rint(6 * inv);
        r->hi = top < grid->hi ? (int32_t)top : grid->hi;
    }
}

int32_t kn_requantize_one(const kn_requant *r, int32_t sum, int64_t n)
{
    const int64_t v = ((sum * r->multiplier[n] + r->half[n]) >> r->shift[n]) + r->zero;
    return (int32_t)(v < r->lo ? r->lo : v > r->hi ? r->hi : v);
}

void kn_value_of_sums(real *y, const int32_t *sum, const real *scale, int64_t M, int64_t N, kn_activation act)
{
    const kn_table *t = kn_isa();
    const int64_t rows = kn_max(1, KN_CHUNK / N);
#pragma omp parallel for schedule(static) if (M * N > KN_PARALLEL)
    for (int64_t m = 0; m < M; m += rows)
        t->value_rows(y + m * N, sum + m * N, scale, kn_min(rows, M - m), N, act);
}

void kn_requantize(int8_t *q, int64_t ldq, const int32_t *sum, int64_t B, int64_t points, const kn_requant *r)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for schedule(static) if (B * points * r->n > KN_PARALLEL)
    for (int64_t i = 0; i < B; i++)
        t->requantize(q + i * ldq, sum + i * points * r->n, points, r);
}

/* ---- weights ------------------------------------------------------------------------------ */

bool kn_conv_can_multiply(const kn_conv *c, const kn_grid *x, const kn_grid *w)
{
    const bool w_fits = w->grain == KN_TENSOR || w->grain == KN_ROW;
    return w_fits && x->grain == KN_TENSOR && x->bits >= 1 && x->bits <= 8 && x->levels == KN_LEVELS_INT && w->bits >= 1 &&
           w->bits <= 8 && w->levels != KN_LEVELS_TABLE && !w->has_zero && kn_largest(w) <= 128 && kn_conv_depth(c) < (1 << 30) / 255 / 128;
}

static int32_t operand(const kn_codes *w, int64_t n, int64_t d)
{
    return kn_mul(&w->grid) * w->q[n * w->ld + d] + kn_add(&w->grid);
}

static void fold_bias(kn_conv_codes *p, const kn_codes *w, const real *b, real scale_x)
{
    for (int64_t n = 0; n < w->rows; n++) {
        int32_t sum = 0;
        for (int64_t d = 0; !p->packed && d < w->cols; d++)
            sum += operand(w, n, d);
        if (p->packed)
            sum = p->packed->sum[n];
        const double unit = (double)scale_x * scale_of_row(w, n), exact = b && unit != 0 ? rint((double)b[n] / unit) : 0;
        const double bias = fmin(fmax(exact, -LARGEST_SUM), LARGEST_SUM);
        p->bias[n] = (int32_t)(bias - (double)p->zero_x * sum);
    }
}

static bool goes_in_tiles(const kn_conv *c)
{
    return kn_isa()->runs_int8 && c->groups == 1 && c->K > 1 && c->dilation == 1 && c->OW >= 8;
}

static int64_t steps_of(const kn_conv *c)
{
    return (c->K * c->C + STEP - 1) / STEP;
}

static status lay_tiles(kn_conv_codes *p, const kn_conv *c, const kn_codes *w)
{
    const int64_t width = c->K * c->C, steps = steps_of(c), panels = (c->N + 31) / 32 * 2;
    p->tiles = nb_alloc_zeroed((size_t)(panels * c->K * steps), STEP * 16);
    for (int64_t n = 0; p->tiles && n < c->N; n++)
        for (int64_t d = 0; d < w->cols; d++) {
            const int64_t ky = d / width, k = d % width, tile = (n / 16 * c->K + ky) * steps + k / STEP;
            p->tiles[tile * STEP * 16 + k % STEP / 4 * 64 + n % 16 * 4 + k % 4] = (int8_t)operand(w, n, d);
        }
    return p->tiles ? NB_OK : NB_NOMEM;
}

status kn_conv_codes_new(kn_conv_codes *p, const kn_conv *c, const kn_codes *w, const kn_packed *packed, const real *b,
                         real scale_x, int32_t zero_x)
{
    const int64_t G = c->groups, D = kn_conv_depth(c), N = c->N / G;
    *p = (kn_conv_codes){.packed = G == 1 ? packed : NULL, .zero_x = zero_x};
    if (w->rows != c->N || w->cols != D || !w->q || (G == 1 && !packed))
        return nb_fail(NB_SHAPE, "weights of %lld x %lld codes, wanted %lld x %lld of at most 8 bits", (long long)w->rows,
                       (long long)w->cols, (long long)c->N, (long long)D);
    p->bias = nb_alloc((size_t)c->N, sizeof *p->bias);
    p->deep = G > 1 ? nb_alloc((size_t)(c->N * D), 1) : NULL;
    if (!p->bias || (G > 1 && !p->deep) || (goes_in_tiles(c) && lay_tiles(p, c, w) != NB_OK)) {
        kn_conv_codes_free(p);
        return NB_NOMEM;
    }
    fold_bias(p, w, b, scale_x);
    const bool depthwise = kn_conv_depthwise(c->C, c->N, G);
    for (int64_t n = 0; G > 1 && n < c->N; n++)
        for (int64_t d = 0; d < D; d++)
            p->deep[depthwise ? d * G + n : (n / N * D + d) * N + n % N] = (int8_t)operand(w, n, d);
    return NB_OK;
}

void kn_conv_codes_free(kn_conv_codes *p)
{
    free(p->bias);
    free(p->deep);
    free(p->tiles);
    *p = (kn_conv_codes){0};
}

/* ---- sums --------------------------------------------------------------------------------- */

/* Windows of one picture, [OH*OW, ld]. */
static void copy_windows(int8_t *to, int64_t ld, const kn_conv *c, const int8_t *x, int8_t zero)
{
    const int64_t C = c->C, run = c->K * C;
    for (int64_t oy = 0; oy < c->OH; oy++)
        for (int64_t ox = 0; ox < c->OW; ox++, to += ld)
            for (int64_t ky = 0; ky < c->K; ky++) {
                const int64_t y = oy * c->stride + ky * c->dilation - c->pad, left = ox * c->stride - c->pad;
                int8_t *row = to + ky * run;
                if (y < 0 || y >= c->H) {
                    memset(row, zero, (size_t)run);
                } else if (c->dilation == 1 && left >= 0 && left + c->K <= c->W) {
                    memcpy(row, x + (y * c->W + left) * C, (size_t)run);
                } else {
                    for (int64_t kx = 0; kx < c->K; kx++) {
                        const int64_t at = left + kx * c->dilation;
                        if (at < 0 || at >= c->W)
                            memset(row + kx * C, zero, (size_t)C);
                        else
                            memcpy(row + kx * C, x + (y * c->W + at) * C, (size_t)C);
                    }
                }
            }
}

/* Sums of one picture where there are groups of several channels; a point outside has the code zero. */
static void grouped(int32_t *sums, const kn_conv *c, const int8_t *x, const int8_t *deep, const int8_t *zeros)
{
    const int64_t G = c->groups, C = c->C / G, N = c->N / G, K = c->K;
    for (int64_t o = 0; o < c->OH * c->OW; o++)
        for (int64_t k = 0; k < K * K; k++) {
            const int64_t y = o / c->OW * c->stride + k / K * c->dilation - c->pad,
                          at = o % c->OW * c->stride + k % K * c->dilation - c->pad;
            const bool inside = y >= 0 && y < c->H && at >= 0 && at < c->W;
            const int8_t *point = inside ? x + (y * c->W + at) * c->C : zeros;
            for (int64_t i = 0; i < c->C; i++) {
                const int64_t g = i / C;
                const int8_t *w = deep + (g * K * K * C + k * C + i % C) * N;
                for (int64_t n = 0; n < N; n++)
                    sums[o * c->N + g * N + n] += point[i] * w[n];
            }
        }
}

static void start_at_bias(int32_t *sums, int64_t points, int64_t N, const int32_t *bias)
{
    for (int64_t o = 0; o < points; o++)
        memcpy(sums + o * N, bias, (size_t)N * sizeof *sums);
}

static void add_bias(int32_t *sums, int64_t points, int64_t N, const int32_t *bias)
{
    for (int64_t o = 0; o < points; o++)
        for (int64_t n = 0; n < N; n++)
            sums[o * N + n] += bias[n];
}

/* to [PH, PW, C] <- x with margins of the code zero */
static const int8_t *with_margin(int8_t *to, const kn_conv *c, const int8_t *x, int8_t zero)
{
    const int64_t PW = c->W + 2 * c->pad, PH = c->H + 2 * c->pad, line = c->W * c->C;
    if (c->pad)
        memset(to, zero, (size_t)(PH * PW * c->C));
    for (int64_t h = 0; h < c->H; h++)
        memcpy(to + ((h + c->pad) * PW + c->pad) * c->C, x + h * line, (size_t)line);
    return to;
}

/* Sums of `lines` rows of outputs from oy on, of a picture with its margins; without the bias where there are tiles, with it where each channel is
 * for itself. */
static void lines_of(int32_t *sums, const kn_conv *c, const int8_t *x, const kn_conv_codes *w, int64_t oy, int64_t lines)
{
    const kn_table *t = kn_isa();
    const int64_t row = (c->W + 2 * c->pad) * c->C, line = c->OW * c->N;
    if (w->tiles) {
        const kn_int8_runs job = {.c = sums,
                                  .ldc = c->N,
                                  .a = x + oy * c->stride * row,
                                  .lda = c->stride * c->C,
                                  .b = w->tiles,
                                  .M = c->OW,
                                  .N = c->N,
                                  .steps = steps_of(c),
                                  .runs = c->K,
                                  .a_run = row,
                                  .lines = lines,
                                  .c_line = line,
                                  .a_line = c->stride * row};
        t->runs_int8(&job);
        return;
    }
    for (int64_t i = 0; i < lines; i++)
        t->depthwise_row8(sums + i * line, x + (oy + i) * c->stride * row, w->deep, w->bias, c->OW, c->C, c->K, c->stride * c->C,
                          c->dilation * row, c->dilation * c->C);
}

/* The memory of one thread. */
typedef struct {
    int32_t *sums;
    int8_t *windows, *zeros;
} room;

static void picture(int32_t *sums, const kn_conv *c, const int8_t *x, const kn_conv_codes *w, const room *r, int64_t ld)
{
    const int64_t points = c->OH * c->OW;
    if (c->groups > 1) { /* few channels a group: rare enough for plain loops */
        start_at_bias(sums, points, c->N, w->bias);
        grouped(sums, c, x, w->deep, r->zeros);
        return;
    }
    if (ld)
        copy_windows(r->windows, ld, c, x, (int8_t)w->zero_x);
    kn_linear_sums(sums, ld ? r->windows : x, ld ? ld : c->C, points, w->packed);
    add_bias(sums, points, c->N, w->bias);
}

/* Rows of a linear map. */
static void rows(int32_t *sums, int8_t *y, int64_t ldy, const int8_t *x, int64_t ldx, int64_t n, const kn_conv_codes *w,
                 const kn_requant *r, int64_t N)
{
    kn_linear_sums(sums, x, ldx, n, w->packed);
    add_bias(sums, n, N, w->bias);
    for (int64_t i = 0; r && i < n; i++)
        kn_isa()->requantize(y + i * ldy, sums + i * N, 1, r);
}

/* The bias goes into the half of the rounding: (sum + b) m + half = sum m + (b m + half). */
static status with_bias(kn_requant *to, const kn_requant *r, const int32_t *bias)
{
    *to = *r;
    to->half = nb_alloc((size_t)r->n, sizeof *to->half);
    for (int64_t n = 0; to->half && n < r->n; n++)
        to->half[n] = bias[n] * r->multiplier[n] + r->half[n];
    return to->half ? NB_OK : NB_NOMEM;
}

/* Pictures whose rows of outputs are made where they lie, and requantized while they are near. */
static status by_lines(int32_t *sums, int8_t *y, int64_t ldy, const kn_conv *c, const int8_t *x, int64_t ldx, const kn_conv_codes *w,
                       const kn_requant *r, int64_t B)
{
    const int64_t line = c->OW * c->N, lines = kn_max(1, NEAR / line), out = c->OH * line;
    const int64_t picture = ((c->H + 2 * c->pad) * (c->W + 2 * c->pad) * c->C + SLACK + 63) / 64 * 64;
    const int64_t bytes = picture + (sums ? 0 : (lines * line * (int64_t)sizeof *sums + 63) / 64 * 64);
    const bool apart = w->tiles && !sums; /* the bias is still to be added */
    const int threads = omp_in_parallel() || B * out * kn_conv_depth(c) < KN_PARALLEL ? 1 : (int)kn_max(1, kn_min(omp_get_max_threads(), B));
    uint8_t *memory = nb_alloc_aligned((size_t)threads, (size_t)bytes);
    kn_requant biased = {0};
    const status s = memory && (!r || !apart || with_bias(&biased, r, w->bias) == NB_OK) ? NB_OK : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < (s == NB_OK ? B : 0); i++) {
        int8_t *own = (int8_t *)memory + omp_get_thread_num() * bytes;
        const int8_t *from = with_margin(own, c, x + i * ldx, (int8_t)w->zero_x);
        memset(own + picture - SLACK, 0, SLACK);
        for (int64_t oy = 0; oy < c->OH; oy += lines) {
            const int64_t n = kn_min(lines, c->OH - oy);
            int32_t *to = sums ? sums + i * out + oy * line : (int32_t *)(void *)(own + picture);
            lines_of(to, c, from, w, oy, n);
            if (w->tiles && sums)
                add_bias(to, n * c->OW, c->N, w->bias);
            if (r)
                kn_isa()->requantize(y + i * ldy + oy * line, to, n * c->OW, apart ? &biased : r);
        }
    }
    free(biased.half);
    free(memory);
    return s;
}

status kn_conv_integer(int32_t *sums, int8_t *y, int64_t ldy, const kn_conv *c, const int8_t *x, int64_t ldx,
                       const kn_conv_codes *w, const kn_requant *r, int64_t B)
{
    if (w->tiles || kn_conv_depthwise(c->C, c->N, c->groups))
        return by_lines(sums, y, ldy, c, x, ldx, w, r, B);
    const int64_t points = c->OH * c->OW, out = points * c->N, depth = kn_conv_depth(c);
    const bool linear = c->H * c->W == 1 && c->K == 1 && c->groups == 1 && c->pad == 0;
    const bool as_it_lies = c->K == 1 && c->stride == 1 && c->pad == 0 && c->C % 4 == 0;
    const int64_t ld = linear || as_it_lies || c->groups > 1 ? 0 : (depth + 3) / 4 * 4;
    const int64_t block = linear ? ROWS : 1, units = (B + block - 1) / block;
    const int most = omp_in_parallel() || B * out * depth < KN_PARALLEL ? 1 : omp_get_max_threads();
    const int threads = (int)kn_max(1, kn_min(most, units));
    const size_t sum_bytes = sums ? 0 : (size_t)(block * out) * sizeof *sums, zero_bytes = (size_t)c->C,
                 bytes = (sum_bytes + (size_t)(points * ld) + zero_bytes + SLACK + 63) / 64 * 64;
    uint8_t *memory = nb_alloc_aligned((size_t)threads, bytes);
    if (!memory)
        return NB_NOMEM;
    memset(memory, w->zero_x & 255, (size_t)threads * bytes);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t u = 0; u < units; u++) {
        uint8_t *own = memory + (size_t)omp_get_thread_num() * bytes;
        const int64_t i = u * block, n = kn_min(block, B - i);
        int32_t *to = sums ? sums + i * out : (int32_t *)(void *)own;
        const room mine = {to, (int8_t *)own + sum_bytes + zero_bytes, (int8_t *)own + sum_bytes};
        if (linear) {
            rows(to, y ? y + i * ldy : NULL, ldy, x + i * ldx, ldx, n, w, r, c->N);
            continue;
        }
        picture(to, c, x + i * ldx, w, &mine, ld);
        if (r)
            kn_isa()->requantize(y + i * ldy, to, points, r);
    }
    free(memory);
    return NB_OK;
}

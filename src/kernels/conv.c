/* conv.c - convolution of pictures in floats, and its two gradients.
 *   y[o,n] = b[n] + sum_{k,c} x[o * stride + k * dilation - pad, c] w[n,k,c]        o, k: points (y, x)
 * Channels are last, so the K*C numbers of one row of a window lie side by side, and the windows of one row of outputs overlap,
 * stride*C apart: each such row is a product of tiles without a copy. Only windows of few numbers (first layers) are copied to
 * patches, one picture's a thread. Gradients:
 *   dx: the same convolution of dy, spread by the stride and with margins, with the window turned round
 *   dw[n,k,c] = sum_o dy[o,n] x[o * stride + k * dilation - pad, c], in at most PARTS sums over pictures, added in order
 */
#include "kernels/conv.h"
#include "kernels/kernels_isa.h"
#include <limits.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { FEW = 24 /* numbers in a row of a window below which windows are copied */, PARTS = 16 };

status kn_conv_fit(kn_conv *c)
{
    c->stride = c->stride ? c->stride : 1;
    c->dilation = c->dilation ? c->dilation : 1;
    c->groups = c->groups ? c->groups : 1;
    const int64_t most = 1 << 14;
    if (c->H < 1 || c->W < 1 || c->C < 1 || c->N < 1 || c->K < 1 || c->H > most || c->W > most || c->C > most * 64 ||
        c->N > most * 64 || c->K > 64 || c->stride < 1 || c->stride > 64 || c->pad < 0 || c->pad > 64 || c->dilation < 1 ||
        c->dilation > 64 || c->H * c->W * c->C > INT_MAX / 2)
        return nb_fail(NB_USAGE, "convolution of %lldx%lldx%lld to %lld channels, window %lld: out of range", (long long)c->H,
                       (long long)c->W, (long long)c->C, (long long)c->N, (long long)c->K);
    if (c->groups < 1 || c->C % c->groups || c->N % c->groups)
        return nb_fail(NB_USAGE, "%lld groups do not divide %lld and %lld channels", (long long)c->groups, (long long)c->C,
                       (long long)c->N);
    const int64_t reach = c->dilation * (c->K - 1) + 1;
    if (c->H + 2 * c->pad < reach || c->W + 2 * c->pad < reach)
        return nb_fail(NB_USAGE, "a window of %lld points does not fit a picture of %lldx%lld", (long long)reach,
                       (long long)c->H, (long long)c->W);
    c->OH = (c->H + 2 * c->pad - reach) / c->stride + 1;
    c->OW = (c->W + 2 * c->pad - reach) / c->stride + 1;
    return NB_OK;
}

/* ---- one picture -------------------------------------------------------------------------- */

/* A convolution of a picture that has its margins already. */
typedef struct {
    int64_t W, C, N, K, stride, dilation, groups, OH, OW;
} plain;

/* wt: [groups][K*K*C/groups][N/groups]; depthwise [K*K][C]. y holds what is added to. */
static void convolve(real *y, const plain *c, const real *x, const real *wt, real *patches)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C / c->groups, N = c->N / c->groups, row = c->W * c->C;
    if (kn_conv_depthwise(c->C, c->N, c->groups)) {
        for (int64_t o = 0; o < c->OH * c->OW; o++)
            for (int64_t k = 0; k < c->K * c->K; k++)
                t->multiply_add(y + o * c->N,
                                x + (o / c->OW * c->stride + k / c->K * c->dilation) * row +
                                    (o % c->OW * c->stride + k % c->K * c->dilation) * c->C,
                                wt + k * c->C, c->C);
        return;
    }
    if (patches) {
        const int64_t depth = c->K * c->K * c->C;
        kn_tile_nn(y, N, patches, depth, wt, N, c->OH * c->OW, N, depth, 1);
        return;
    }
    const bool runs = c->dilation == 1 && c->groups == 1; /* a row of the window in one piece */
    const int64_t steps = runs ? 1 : c->K, width = runs ? c->K * C : C;
    for (int64_t g = 0; g < c->groups; g++)
        for (int64_t oy = 0; oy < c->OH; oy++)
            for (int64_t ky = 0; ky < c->K; ky++)
                for (int64_t kx = 0; kx < steps; kx++)
                    kn_tile_nn(y + oy * c->OW * c->N + g * N, c->N,
                               x + (oy * c->stride + ky * c->dilation) * row + kx * c->dilation * c->C + g * C,
                               c->stride * c->C, wt + (g * c->K * c->K + ky * c->K + kx) * C * N, N, c->OW, N, width, 1);
}

/* dwt, laid out as wt, += of one picture. */
static void correlate(real *dwt, const plain *c, const real *dy, const real *x, const real *patches)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C / c->groups, N = c->N / c->groups, row = c->W * c->C;
    if (kn_conv_depthwise(c->C, c->N, c->groups)) {
        for (int64_t o = 0; o < c->OH * c->OW; o++)
            for (int64_t k = 0; k < c->K * c->K; k++)
                t->multiply_add(dwt + k * c->C,
                                x + (o / c->OW * c->stride + k / c->K * c->dilation) * row +
                                    (o % c->OW * c->stride + k % c->K * c->dilation) * c->C,
                                dy + o * c->N, c->C);
        return;
    }
    if (patches) {
        const int64_t depth = c->K * c->K * c->C;
        kn_tile_tn(dwt, N, patches, depth, dy, N, depth, N, c->OH * c->OW, 1);
        return;
    }
    const bool runs = c->dilation == 1 && c->groups == 1;
    const int64_t steps = runs ? 1 : c->K, width = runs ? c->K * C : C;
    for (int64_t g = 0; g < c->groups; g++)
        for (int64_t ky = 0; ky < c->K; ky++)
            for (int64_t kx = 0; kx < steps; kx++)
                for (int64_t oy = 0; oy < c->OH; oy++)
                    kn_tile_tn(dwt + (g * c->K * c->K + ky * c->K + kx) * C * N, N,
                               x + (oy * c->stride + ky * c->dilation) * row + kx * c->dilation * c->C + g * C,
                               c->stride * c->C, dy + oy * c->OW * c->N + g * N, c->N, width, N, c->OW, 1);
}

/* Windows of one picture with its margins, [OH*OW, K*K*C]. */
static void copy_windows(real *to, const plain *c, const real *x)
{
    const int64_t C = c->C, row = c->W * C;
    for (int64_t oy = 0; oy < c->OH; oy++)
        for (int64_t ox = 0; ox < c->OW; ox++)
            for (int64_t ky = 0; ky < c->K; ky++)
                for (int64_t kx = 0; kx < c->K; kx++)
                    for (int64_t i = 0; i < C; i++)
                        *to++ = x[(oy * c->stride + ky * c->dilation) * row + (ox * c->stride + kx * c->dilation) * C + i];
}

/* to [PH, PW, C] <- zeros, and the points of x [H, W, C], `step` apart, from (at, at) on. */
static void with_margin(real *to, int64_t PH, int64_t PW, const real *x, int64_t H, int64_t W, int64_t C, int64_t at,
                        int64_t step)
{
    memset(to, 0, (size_t)(PH * PW * C) * sizeof *to);
    for (int64_t h = 0; h < H; h++)
        for (int64_t w = 0; w < W; w++)
            memcpy(to + ((at + h * step) * PW + at + w * step) * C, x + (h * W + w) * C, (size_t)C * sizeof *to);
}

/* ---- weights ------------------------------------------------------------------------------ */

typedef struct {
    int64_t G, D, N; /* groups, K*K*C/groups, N/groups */
    int64_t C;       /* channels of a point of the window, of one group */
    bool depthwise;
} order;

static order order_of(const kn_conv *c)
{
    return (order){c->groups, kn_conv_depth(c), c->N / c->groups, c->C / c->groups,
                   kn_conv_depthwise(c->C, c->N, c->groups)};
}

/* Where w[n, d] stands in wt. */
static int64_t place(const order *o, int64_t n, int64_t d)
{
    return o->depthwise ? d * o->G + n : (n / o->N * o->D + d) * o->N + n % o->N;
}

/* Where it stands in the weights of the convolution that gives dx: the window turned round, inputs and outputs exchanged. */
static int64_t turned(const order *o, int64_t n, int64_t d)
{
    const int64_t points = o->D / o->C, k = points - 1 - d / o->C, c = d % o->C;
    return o->depthwise ? k * o->G + n : ((n / o->N * points + k) * o->N + n % o->N) * o->C + c;
}

static real *arranged(const kn_conv *c, const real *w, int64_t (*where)(const order *o, int64_t n, int64_t d))
{
    const order o = order_of(c);
    real *wt = nb_alloc_aligned((size_t)(c->N * o.D), sizeof *wt);
    for (int64_t n = 0; wt && n < c->N; n++)
        for (int64_t d = 0; d < o.D; d++)
            wt[where(&o, n, d)] = w[n * o.D + d];
    return wt;
}

/* ---- batches ------------------------------------------------------------------------------ */

static bool is_product(const kn_conv *c)
{
    return c->K == 1 && c->stride == 1 && c->pad == 0 && c->groups == 1;
}

static plain plain_of(const kn_conv *c)
{
    return (plain){c->W + 2 * c->pad, c->C, c->N, c->K, c->stride, c->dilation, c->groups, c->OH, c->OW};
}

static bool copies_windows(const plain *c)
{
    return c->groups == 1 && c->K > 1 && c->K * c->C < FEW;
}

static int threads_for(const kn_conv *c, int64_t B)
{
    const int64_t work = B * c->OH * c->OW * c->N * kn_conv_depth(c);
    const int most = omp_in_parallel() ? 1 : omp_get_max_threads();
    return work < KN_PARALLEL ? 1 : (int)kn_min(most, B);
}

static void activate(real *y, int64_t n, kn_activation act)
{
    const real top = act == KN_RELU6 ? 6 : INFINITY;
    if (act != KN_LINEAR)
        for (int64_t i = 0; i < n; i++) {
            const real v = y[i] > 0 ? y[i] : 0;
            y[i] = v < top ? v : top;
        }
}

static void finish_rows(real *y, int64_t M, int64_t N, const real *b, kn_activation act)
{
#pragma omp parallel for schedule(static) if (M * N > KN_PARALLEL)
    for (int64_t m = 0; m < M; m++) {
        if (b)
            kn_isa()->add_to(y + m * N, b, N);
        activate(y + m * N, N, act);
    }
}

/* A thread's memory: a picture with its margin, and its windows. */
typedef struct {
    real *memory;
    int64_t picture, windows, stride;
} room;

static status room_new(room *r, int64_t threads, int64_t picture, int64_t windows)
{
    r->picture = picture;
    r->windows = windows;
    r->stride = (picture + windows + 15) / 16 * 16;
    r->memory = nb_alloc_aligned((size_t)(threads * r->stride), sizeof(real));
    return r->memory ? NB_OK : NB_NOMEM;
}

status kn_conv_forward(kn_precision p, real *y, const kn_conv *c, const real *x, const real *w, const real *b,
                       kn_activation act, int64_t B)
{
    const int64_t in = c->H * c->W * c->C, points = c->OH * c->OW, out = points * c->N;
    if (is_product(c)) {
        kn_product_nt(p, y, x, w, B * points, c->N, c->C, 0);
        finish_rows(y, B * points, c->N, b, act);
        return NB_OK;
    }
    const plain g = plain_of(c);
    const int64_t PH = c->H + 2 * c->pad, PW = g.W;
    const int threads = threads_for(c, B);
    real *wt = arranged(c, w, place);
    room r = {0};
    status s = wt ? room_new(&r, threads, c->pad ? PH * PW * c->C : 0, copies_windows(&g) ? points * kn_conv_depth(c) : 0)
                  : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < (s == NB_OK ? B : 0); i++) {
        real *own = r.memory + omp_get_thread_num() * r.stride, *windows = r.windows ? own + r.picture : NULL;
        const real *picture = x + i * in;
        if (c->pad) {
            with_margin(own, PH, PW, picture, c->H, c->W, c->C, c->pad, 1);
            picture = own;
        }
        if (windows)
            copy_windows(windows, &g, picture);
        for (int64_t k = 0; k < points; k++)
            if (b)
                memcpy(y + i * out + k * c->N, b, (size_t)c->N * sizeof *y);
            else
                memset(y + i * out + k * c->N, 0, (size_t)c->N * sizeof *y);
        convolve(y + i * out, &g, picture, wt, windows);
        activate(y + i * out, out, act);
    }
    free(r.memory);
    free(wt);
    return s;
}

status kn_conv_dx(kn_precision p, real *dx, const kn_conv *c, const real *dy, const real *w, int64_t B, real beta)
{
    const int64_t in = c->H * c->W * c->C, points = c->OH * c->OW, out = points * c->N;
    if (is_product(c)) {
        kn_product_nn(p, dx, dy, w, B * points, c->C, c->N, beta);
        return NB_OK;
    }
    /* dy stands `reach` into a picture of its own; dx begins `pad` into what its convolution gives */
    const int64_t reach = c->dilation * (c->K - 1);
    const int64_t PH = kn_max(c->H + c->pad, (c->OH - 1) * c->stride + 1) + reach,
                  PW = kn_max(c->W + c->pad, (c->OW - 1) * c->stride + 1) + reach;
    const plain g = {PW, c->N, c->C, c->K, 1, c->dilation, c->groups, c->H, c->W};
    const int threads = threads_for(c, B);
    real *wt = arranged(c, w, turned);
    room r = {0};
    status s = wt ? room_new(&r, threads, PH * PW * c->N, copies_windows(&g) ? c->H * c->W * c->K * c->K * c->N : 0)
                  : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < (s == NB_OK ? B : 0); i++) {
        real *own = r.memory + omp_get_thread_num() * r.stride, *windows = r.windows ? own + r.picture : NULL;
        const real *from = own + (c->pad * PW + c->pad) * c->N;
        with_margin(own, PH, PW, dy + i * out, c->OH, c->OW, c->N, reach, c->stride);
        if (beta == 0)
            memset(dx + i * in, 0, (size_t)in * sizeof *dx);
        if (windows)
            copy_windows(windows, &g, from);
        convolve(dx + i * in, &g, from, wt, windows);
    }
    free(r.memory);
    free(wt);
    return s;
}

status kn_conv_dw(kn_precision p, real *dw, const kn_conv *c, const real *dy, const real *x, int64_t B, real beta)
{
    const int64_t in = c->H * c->W * c->C, points = c->OH * c->OW, out = points * c->N, depth = kn_conv_depth(c);
    if (is_product(c)) {
        kn_product_tn(p, dw, dy, x, c->N, c->C, B * points, beta);
        return NB_OK;
    }
    const plain g = plain_of(c);
    const order o = order_of(c);
    const int64_t PH = c->H + 2 * c->pad, PW = g.W, parts = kn_min(B, PARTS), size = c->N * depth;
    const int threads = threads_for(c, parts);
    real *sums = nb_alloc_zeroed((size_t)(parts * size), sizeof *sums);
    room r = {0};
    status s = sums ? room_new(&r, threads, c->pad ? PH * PW * c->C : 0, copies_windows(&g) ? points * depth : 0)
                    : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < (s == NB_OK ? parts : 0); part++) {
        real *own = r.memory + omp_get_thread_num() * r.stride, *windows = r.windows ? own + r.picture : NULL;
        for (int64_t i = B * part / parts; i < B * (part + 1) / parts; i++) {
            const real *picture = x + i * in;
            if (c->pad) {
                with_margin(own, PH, PW, picture, c->H, c->W, c->C, c->pad, 1);
                picture = own;
            }
            if (windows)
                copy_windows(windows, &g, picture);
            correlate(sums + part * size, &g, dy + i * out, picture, windows);
        }
    }
    for (int64_t n = 0; s == NB_OK && n < c->N; n++)
        for (int64_t d = 0; d < depth; d++) {
            real sum = beta == 0 ? 0 : dw[n * depth + d];
            for (int64_t part = 0; part < parts; part++)
                sum += sums[part * size + place(&o, n, d)];
            dw[n * depth + d] = sum;
        }
    free(r.memory);
    free(sums);
    return s;
}

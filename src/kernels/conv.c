/* conv.c - convolution of pictures in floats, and its gradients, over batches.
 *   y[o,n] = act(b[n] + sum_{k,c} x[o * stride + k * dilation - pad, c] w[n,k,c])        o, k: points (y, x)
 * Channels are last, so the K*C numbers of one row of a window lie side by side, and the windows of one row of outputs overlap,
 * stride*C apart: each such row is a product of tiles without a copy. Only windows of few numbers (first layers) are copied to
 * patches, one picture's a thread. Gradients, of d = dy where the activation passed it:
 *   db[n] = sum_o d[o,n]
 *   dw[n,k,c] = sum_o d[o,n] x[o * stride + k * dilation - pad, c], in at most PARTS sums over pictures, added in order
 *   dx: the same convolution of d, spread by the stride and with margins, with the window turned round
 * All three of a picture are done while it is in the cache.
 */
#include "kernels/conv.h"
#include "kernels/kernels_isa.h"
#include <limits.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 16 };

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

/* ---- batches ------------------------------------------------------------------------------ */

static bool is_product(const kn_conv *c)
{
    return c->K == 1 && c->stride == 1 && c->pad == 0 && c->groups == 1;
}

static int threads_for(const kn_conv *c, int64_t B, int64_t units)
{
    const int64_t work = B * c->OH * c->OW * c->N * kn_conv_depth(c);
    const int most = omp_in_parallel() ? 1 : omp_get_max_threads();
    return work < KN_PARALLEL ? 1 : (int)kn_max(1, kn_min(most, units));
}

/* A thread's memory, in numbers of 4 bytes: a picture with its margin, and its windows, for each of the two convolutions, and operands
 * in bf16 for one. */
typedef struct {
    real *memory;
    int64_t picture, windows, d_picture, d_windows, bf16, stride;
} room;

static status room_new(room *r, int64_t threads)
{
    r->stride = (r->picture + r->windows + r->d_picture + r->d_windows + r->bf16 + 31) / 16 * 16;
    r->memory = nb_alloc_aligned((size_t)(threads * r->stride), sizeof(real));
    return r->memory ? NB_OK : NB_NOMEM;
}

static real *own(const room *r)
{
    return r->memory + omp_get_thread_num() * r->stride;
}

static uint16_t *own_bf16(const room *r)
{
    return (uint16_t *)(void *)(own(r) + (r->picture + r->windows + r->d_picture + r->d_windows + 15) / 16 * 16);
}

/* The picture as kn_convolve wants it, and its windows where it wants those. */
static const real *prepared(const kn_conv *c, const kn_plain *g, const room *r, const real *x, const real **windows)
{
    real *with = own(r), *copy = with + r->picture;
    if (c->pad) {
        kn_with_margin(with, c->H + 2 * c->pad, g->W, x, c->H, c->W, c->C, c->pad, 1);
        x = with;
    }
    if (r->windows)
        kn_copy_windows(copy, g, x);
    *windows = r->windows ? copy : NULL;
    return x;
}

static room room_of(const kn_conv *c, const kn_plain *g)
{
    return (room){.picture = c->pad ? (c->H + 2 * c->pad) * g->W * c->C : 0,
                  .windows = kn_copies_windows(g) ? c->OH * c->OW * kn_conv_depth(c) : 0};
}

static status forward_bf16(real *y, const kn_conv *c, const kn_plain *g, const real *x, const real *w, const real *b, kn_activation act,
                           int64_t B)
{
    const int64_t in = c->H * c->W * c->C, out = c->OH * c->OW * c->N, PH = c->H + 2 * c->pad;
    const int threads = threads_for(c, B, B);
    real *wt = kn_arranged_new(c, w, kn_place);
    uint16_t *wb = wt ? kn_conv_bf16_weights_new(g, wt) : NULL;
    room r = {.bf16 = kn_conv_bf16_picture(PH, g->W, c->C) / 2};
    const status s = wb ? room_new(&r, threads) : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < (s == NB_OK ? B : 0); i++) {
        kn_conv_bf16_margin(own_bf16(&r), PH, g->W, x + i * in, c->H, c->W, c->C, c->pad, 1);
        kn_convolve_bf16(y + i * out, g, own_bf16(&r), wb, b, act, false);
    }
    free(r.memory);
    free(wb);
    free(wt);
    return s;
}

status kn_conv_forward(kn_precision p, real *y, const kn_conv *c, const real *x, const real *w, const real *b,
                       kn_activation act, int64_t B)
{
    const int64_t in = c->H * c->W * c->C, points = c->OH * c->OW, out = points * c->N;
    if (is_product(c)) {
        kn_product_nt(p, y, x, w, B * points, c->N, c->C, 0);
#pragma omp parallel for schedule(static) if (B * out > KN_PARALLEL)
        for (int64_t i = 0; i < B; i++)
            kn_isa()->finish_rows(y + i * out, b, points, c->N, act);
        return NB_OK;
    }
    const kn_plain g = kn_plain_of(c);
    if (kn_conv_takes_bf16(p, c))
        return forward_bf16(y, c, &g, x, w, b, act, B);
    const int threads = threads_for(c, B, B);
    real *wt = kn_arranged_new(c, w, kn_place);
    room r = room_of(c, &g);
    const status s = wt ? room_new(&r, threads) : NB_NOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < (s == NB_OK ? B : 0); i++) {
        const real *windows, *picture = prepared(c, &g, &r, x + i * in, &windows);
        kn_convolve(y + i * out, &g, picture, wt, windows, b, act, false);
    }
    free(r.memory);
    free(wt);
    return s;
}

/* ---- gradients ---------------------------------------------------------------------------- */

typedef struct {
    const kn_conv *c;
    kn_plain g, back; /* of x; of d with its margins, which gives dx */
    int64_t PH, PW;   /* of d with its margins */
    room r;
    const kn_conv_gradients *to;
    const real *x, *wt;
    uint16_t *wb; /* wt in bf16; NULL: dx in fp32 */
    bool bf16;
    real *parts; /* sums of dw */
    double *db;  /* [B, N] */
} job;

/* d stands `reach` into a picture of its own; dx begins `pad` into what its convolution gives. */
static void plan_dx(job *j)
{
    const kn_conv *c = j->c;
    const int64_t reach = c->dilation * (c->K - 1);
    j->PH = kn_max(c->H + c->pad, (c->OH - 1) * c->stride + 1) + reach;
    j->PW = kn_max(c->W + c->pad, (c->OW - 1) * c->stride + 1) + reach;
    j->back = (kn_plain){j->PW, c->N, c->C, c->K, 1, c->dilation, c->groups, c->H, c->W};
    if (j->bf16) {
        j->r.bf16 = kn_max(j->r.bf16, kn_conv_bf16_picture(j->PH, j->PW, c->N) / 2);
        return;
    }
    j->r.d_picture = j->PH * j->PW * c->N;
    j->r.d_windows = kn_copies_windows(&j->back) ? c->H * c->W * c->K * c->K * c->N : 0;
}

static void dx_of_picture(const job *j, const real *d, int64_t i)
{
    const kn_conv *c = j->c;
    const int64_t in = c->H * c->W * c->C;
    if (j->wb) {
        uint16_t *b = own_bf16(&j->r);
        kn_conv_bf16_margin(b, j->PH, j->PW, d, c->OH, c->OW, c->N, c->dilation * (c->K - 1), c->stride);
        kn_convolve_bf16(j->to->dx + i * in, &j->back, b + (c->pad * j->PW + c->pad) * c->N, j->wb, NULL, KN_LINEAR,
                         j->to->beta_dx != 0);
        return;
    }
    real *with = own(&j->r) + j->r.picture + j->r.windows, *windows = j->r.d_windows ? with + j->r.d_picture : NULL;
    const real *from = with + (c->pad * j->PW + c->pad) * c->N;
    kn_with_margin(with, j->PH, j->PW, d, c->OH, c->OW, c->N, c->dilation * (c->K - 1), c->stride);
    if (windows)
        kn_copy_windows(windows, &j->back, from);
    kn_convolve(j->to->dx + i * in, &j->back, from, j->wt, windows, NULL, KN_LINEAR, j->to->beta_dx != 0);
}

static bool correlates_in_bf16(const job *j)
{
    return j->bf16 && kn_correlate_takes_bf16(&j->g);
}

static void gradients_of_picture(const job *j, real *dy, const real *y, kn_activation act, int64_t i, int64_t part)
{
    const kn_conv *c = j->c;
    const int64_t in = c->H * c->W * c->C, points = c->OH * c->OW, out = points * c->N;
    real *d = dy + i * out;
    if (act != KN_LINEAR || j->db)
        kn_isa()->gate_rows(d, j->db ? j->db + i * c->N : NULL, act == KN_LINEAR ? NULL : y + i * out, points, c->N, act);
    if (is_product(c))
        return;
    if (j->parts) {
        const real *windows, *picture = prepared(c, &j->g, &j->r, j->x + i * in, &windows);
        real *sum = j->parts + part * c->N * kn_conv_depth(c);
        if (correlates_in_bf16(j))
            kn_correlate_bf16(sum, &j->g, d, picture, c->H + 2 * c->pad, own_bf16(&j->r));
        else
            kn_correlate(sum, &j->g, d, picture, windows);
    }
    if (j->wt)
        dx_of_picture(j, d, i);
}

static void add_parts(const kn_conv_gradients *to, const job *j, int64_t parts, int64_t B)
{
    const kn_order o = kn_order_of(j->c);
    const int64_t N = j->c->N, size = N * o.D;
    for (int64_t part = 1; j->parts && part < parts; part++)
        kn_add_to(j->parts, j->parts + part * size, size);
    for (int64_t n = 0; j->parts && n < N; n++)
        for (int64_t d = 0; d < o.D; d++) {
            const real sum = j->parts[kn_place(&o, n, d)];
            to->dw[n * o.D + d] = to->beta_dw == 0 ? sum : to->dw[n * o.D + d] + sum;
        }
    for (int64_t n = 0; j->db && n < N; n++) {
        double sum = 0;
        for (int64_t i = 0; i < B; i++)
            sum += j->db[i * N + n];
        to->db[n] += (real)sum;
    }
}

static status plan(job *j, const real *w, int64_t parts, int64_t B, int threads)
{
    const kn_conv *c = j->c;
    j->g = kn_plain_of(c);
    if (j->to->db && !(j->db = nb_alloc((size_t)(B * c->N), sizeof *j->db)))
        return NB_NOMEM;
    if (is_product(c))
        return NB_OK;
    if (j->to->dw) {
        j->r = room_of(c, &j->g);
        if (correlates_in_bf16(j)) {
            j->r.windows = 0;
            j->r.bf16 = kn_correlate_bf16_room(&j->g) / 2;
        }
        if (!(j->parts = nb_alloc_zeroed((size_t)(parts * c->N * kn_conv_depth(c)), sizeof *j->parts)))
            return NB_NOMEM;
    }
    if (j->to->dx) {
        plan_dx(j);
        if (!(j->wt = kn_arranged_new(c, w, kn_place_turned)) || (j->bf16 && !(j->wb = kn_conv_bf16_weights_new(&j->back, j->wt))))
            return NB_NOMEM;
    }
    return room_new(&j->r, threads);
}

status kn_conv_backward(kn_precision p, const kn_conv_gradients *to, const kn_conv *c, real *dy, const real *y, kn_activation act,
                        const real *x, const real *w, int64_t B)
{
    const int64_t parts = to->dw && !is_product(c) ? kn_min(B, PARTS) : B, points = c->OH * c->OW;
    const int threads = threads_for(c, B, parts);
    job j = {.c = c, .to = to, .x = x, .bf16 = kn_conv_takes_bf16(p, c)};
    const status s = plan(&j, w, parts, B, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < (s == NB_OK ? parts : 0); part++)
        for (int64_t i = B * part / parts; i < B * (part + 1) / parts; i++)
            gradients_of_picture(&j, dy, y, act, i, part);
    if (s == NB_OK)
        add_parts(to, &j, parts, B);
    if (s == NB_OK && is_product(c) && to->dw)
        kn_product_tn(p, to->dw, dy, x, c->N, c->C, B * points, to->beta_dw);
    if (s == NB_OK && is_product(c) && to->dx)
        kn_product_nn(p, to->dx, dy, w, B * points, c->C, c->N, to->beta_dx);
    union {
        const real *in;
        real *out;
    } wt = {j.wt};
    free(wt.out);
    free(j.wb);
    free(j.r.memory);
    free(j.parts);
    free(j.db);
    return s;
}

/* gptq.c - GPTQ (Frantar et al. 2023): columns are rounded one after the other, what an error costs is paid by the columns to come.
 *   v_i = round(w_i);  e = (w_i - v_i) / U_ii;  w_j -= e U_ij  for j > i          inverse(H) = U' U, U upper
 * Columns to come within a few are changed at once, those of a block of about 128 and those behind it by a product each. Ranges of a group are
 * found when its first column is reached, from the weights as errors have changed them, or all beforehand (static). Rows are independent, and go in
 * parallel, unless errors of outputs cost together: the cost tr O E H E' is that of one long row with the Hessian O (x) H, whose factor is the two factors'
 * product, so that a row pays for those before it too (Tseng et al. 2025, YAQA), T the factor of O:
 *   v_ri = round(w_ri + sum over s < r of d_si T_sr),  d_ri = (v_ri - what was rounded) / T_rr,  e as above from v - w
 * Then, `rounds` times, with levels l_g of group g (zeros elsewhere):
 *   scales s = argmin (w - sum_g s_g l_g) H (w - sum_g s_g l_g)',  normal equations  sum_g' (l_g H l_g') s_g' = l_g H w'
 * and codes anew by these; with O three sweeps of descent (descent.h) instead. A row, or with O the whole, takes what is new where its sum is less; the first to beat
 * is round-to-nearest.
 */
#include "ptq/descent.h"
#include "ptq/gptq.h"
#include "ptq/gptq_scales.h"
#include "ptq/obq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 32, BLOCK = 128, STEP = 32, SWEEPS = 3 /* of descent in a round */, AT_ONCE = 4096 /* independent rows */ };

typedef struct {
    const fq_spec *spec;
    const real *w; /* [rows, cols] */
    const pt_hessian *h;
    const pt_gptq_options *o;
    const real *before; /* [rows, rows] T' of the outputs, NULL: there are none */
    int64_t block; /* columns between products: whole groups */
    bool fixed;    /* ranges are those that the codes hold */
} task;

/* The weights as errors have changed them, and errors. */
typedef struct {
    real *x; /* [rows, K], columns in the order of h */
    real *e; /* [rows, block]: (v - x) / U_ii of this block's columns */
    real *d; /* [rows, step] with outputs: first what is added, then (v - x - that) / T_rr */
    int64_t step; /* columns that are rounded before errors are passed on */
} sheet;

static int64_t tile_rows(const kn_codes *c, int64_t row)
{
    return c->rows - row < TILE ? c->rows - row : TILE;
}

/* ---- columns in order --------------------------------------------------------------------- */

/* Ranges of the group at column i of rows [row, row + n), from x [n, K] as it is now. */
static status find_group(kn_codes *c, const task *t, const real *x, int64_t row, int64_t n, int64_t i)
{
    const int64_t K = c->cols, group = c->grid.group, width = group < K - i ? group : K - i;
    kn_codes part;
    TRY(kn_codes_new(&part, &c->grid, n, width));
    real *y = nb_alloc((size_t)(2 * n), (size_t)width * sizeof *y), *weight = y ? y + n * width : NULL;
    for (int64_t r = 0; y && r < n; r++) {
        memcpy(y + r * width, x + r * K + i, (size_t)width * sizeof *y);
        for (int64_t j = 0; j < width; j++) {
            const real u = t->h->U[(i + j) * (K + 1)];
            weight[r * width + j] = 1 / (u * u);
        }
    }
    status s = y ? fq_find_ranges(&part, t->spec, y, t->o->ranges, weight) : NB_NOMEM;
    for (int64_t r = 0; r < n && s == NB_OK; r++) {
        c->scale[(row + r) * c->spans + i / group] = part.scale[r];
        if (c->zero)
            c->zero[(row + r) * c->spans + i / group] = part.zero[r];
    }
    free(y);
    kn_codes_free(&part);
    return s;
}

/* Columns [i, stop) of one row, x [K] in the order of h; e [stop - i] takes (v - x) / U_ii. Columns from stop on are left as they are. d [stop - i], or NULL, is
 * added for rounding and takes what that leaves. */
static void round_columns(kn_codes *c, const pt_hessian *h, real *x, real *e, real *d, int64_t row, int64_t i, int64_t stop)
{
    for (int64_t k = i; k < stop; k++) {
        const int64_t column = h->order[k], s = kn_scale_index(c, row, column);
        const real *u = h->U + k * h->K;
        const real want = d ? x[k] + d[k - i] : x[k];
        const int32_t q = kn_encode_one(&c->grid, want, kn_inverse(c->scale[s]), c->zero ? c->zero[s] : 0);
        const real v = pt_value(c, q, s), error = (v - x[k]) / u[k];
        pt_put_code(c, row * c->ld + column, q);
        e[k - i] = error;
        if (d)
            d[k - i] = v - want;
        for (int64_t j = k + 1; j < stop; j++)
            x[j] += error * u[j];
    }
}

/* All rows in order, each behind what the errors of those before it ask. */
static void round_rows(kn_codes *c, const task *t, const sheet *s, int64_t begin, int64_t i, int64_t stop)
{
    const int64_t N = c->rows, K = c->cols, n = stop - i;
    for (int64_t row = 0; row < N; row += TILE) {
        const int64_t rows = tile_rows(c, row);
        memset(s->d + row * n, 0, (size_t)(rows * n) * sizeof *s->d);
        if (row > 0)
            kn_tile_nn(s->d + row * n, n, t->before + row * N, N, s->d, n, rows, n, row, 1);
        for (int64_t r = row; r < row + rows; r++) {
            const real *before = t->before + r * N;
            real *d = s->d + r * n;
            for (int64_t p = row; p < r; p++)
                for (int64_t k = 0; k < n; k++)
                    d[k] += before[p] * s->d[p * n + k];
            round_columns(c, t->h, s->x + r * K, s->e + r * t->block + i - begin, d, r, i, stop);
            for (int64_t k = 0; k < n; k++)
                d[k] /= before[r];
        }
    }
}

/* What errors of columns [i, stop) ask of the rest of their block, [stop, end), or, where they end it, the whole block's of all behind it. */
static void pass_on(const kn_codes *c, const task *t, const sheet *s, int64_t row, int64_t begin, int64_t i, int64_t stop, int64_t end)
{
    const int64_t K = c->cols, n = tile_rows(c, row), from = stop < end ? i : begin, to = stop < end ? end : K;
    if (stop < to)
        kn_tile_nn(s->x + row * K + stop, K, s->e + row * t->block + from - begin, t->block, t->h->U + from * K + stop, K, n, to - stop,
                   stop - from, 1);
}

/* Columns [i, stop) of the block [begin, end). */
static status round_step(kn_codes *c, const task *t, const sheet *s, int64_t begin, int64_t i, int64_t stop, int64_t end)
{
    const int64_t K = c->cols;
    status failed = NB_OK;
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < c->rows; row += TILE) {
        const int64_t n = tile_rows(c, row);
        const status st = t->fixed ? NB_OK : find_group(c, t, s->x + row * K, row, n, i);
        if (st != NB_OK) {
#pragma omp atomic write
            failed = st;
        } else if (!t->before) {
            for (int64_t r = row; r < row + n; r++)
                round_columns(c, t->h, s->x + r * K, s->e + r * t->block + i - begin, NULL, r, i, stop);
            pass_on(c, t, s, row, begin, i, stop, end);
        }
    }
    if (failed != NB_OK || !t->before)
        return failed;
    round_rows(c, t, s, begin, i, stop);
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < c->rows; row += TILE)
        pass_on(c, t, s, row, begin, i, stop, end);
    return NB_OK;
}

static status round_in_order(kn_codes *c, const task *t)
{
    const int64_t N = c->rows, K = c->cols;
    sheet s = {.step = t->fixed ? STEP : c->grid.group};
    status st = NB_OK;
    s.x = nb_alloc((size_t)N, (size_t)(K + t->block + s.step) * sizeof *s.x);
    if (!s.x)
        return NB_NOMEM;
    s.e = s.x + N * K;
    s.d = s.e + N * t->block;
    for (int64_t r = 0; r < N; r++)
        for (int64_t i = 0; i < K; i++)
            s.x[r * K + i] = t->w[r * K + t->h->order[i]];
    for (int64_t begin = 0, end; begin < K && st == NB_OK; begin = end) {
        end = begin + t->block < K ? begin + t->block : K;
        for (int64_t i = begin; i < end && st == NB_OK; i += s.step)
            st = round_step(c, t, &s, begin, i, i + s.step < end ? i + s.step : end, end);
    }
    free(s.x);
    return st;
}

static status round_greedily(kn_codes *c, const task *t)
{
    status failed = NB_OK;
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < c->rows; row += TILE) {
        const status s = pt_obq(c, t->w, t->h, row, tile_rows(c, row));
        if (s != NB_OK) {
#pragma omp atomic write
            failed = s;
        }
    }
    return failed;
}

static status round_all(kn_codes *c, const task *t)
{
    const status s = t->o->greedy ? round_greedily(c, t) : round_in_order(c, t);
    return s == NB_OK ? NB_OK : nb_fail(s, "out of memory");
}

/* ---- what codes cost ---------------------------------------------------------------------- */

static double total(const double *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += x[i];
    return s;
}

/* e [rows, cols] = w - v. */
static void errors(real *e, const kn_codes *c, const task *t)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < c->rows; r++) {
        kn_decode(e + r * c->cols, c, r, 1);
        for (int64_t i = r * c->cols; i < (r + 1) * c->cols; i++)
            e[i] = t->w[i] - e[i];
    }
}

/* sum of p_i (H e)_i over n rows; eh: scratch. */
static void row_sums(double *sum, const real *p, const real *e, real *eh, const real *H, int64_t n, int64_t K)
{
    kn_tile_nn(eh, K, e, K, H, K, n, K, K, 0);
    for (int64_t r = 0; r < n; r++) {
        sum[r] = 0;
        for (int64_t i = r * K; i < (r + 1) * K; i++)
            sum[r] += (double)p[i] * (double)eh[i];
    }
}

/* sum [rows]: (w - v) H (w - v)' of each row; with outputs a row's share of tr O (w - v) H (w - v)', the same for all. scratch [2, rows, cols], with outputs [3, rows, cols]. */
static void measure(double *sum, real *scratch, const kn_codes *c, const task *t)
{
    const int64_t N = c->rows, K = c->cols;
    real *e = scratch, *eh = e + N * K, *p = t->before ? eh + N * K : e;
    errors(e, c, t);
    if (t->before)
        kn_product_nn(KN_FP32, p, t->o->outputs->H, e, N, K, N, 0);
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < N; row += TILE)
        row_sums(sum + row, p + row * K, e + row * K, eh + row * K, t->h->H, tile_rows(c, row), K);
    const double all = total(sum, N);
    for (int64_t r = 0; t->before && r < N; r++)
        sum[r] = all / (double)N;
}

/* Rows of `from` that cost less go into c. Ranges that rows share are the same in both. */
static void take_better(kn_codes *c, double *best, const kn_codes *from, const double *sum)
{
    for (int64_t row = 0; row < c->rows; row++) {
        if (!(sum[row] < best[row]))
            continue;
        best[row] = sum[row];
        for (int64_t i = row * c->ld; i < row * c->ld + c->cols; i++)
            pt_put_code(c, i, pt_code(from, i));
        for (int64_t i = row * c->spans; pt_ranges_by_row(&c->grid) && i < (row + 1) * c->spans; i++) {
            c->scale[i] = from->scale[i];
            if (c->zero)
                c->zero[i] = from->zero[i];
        }
    }
}

/* ---- scales for codes --------------------------------------------------------------------- */

static status fit_scales(kn_codes *c, const task *t)
{
    const int64_t K = c->cols, S = c->spans;
    bool failed = false;
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < c->rows; row += TILE) {
        const int64_t n = tile_rows(c, row);
        real *wh = nb_alloc((size_t)(n + 1 + S), (size_t)K * sizeof *wh), *l = wh ? wh + n * K : NULL, *lh = wh ? l + K : NULL;
        double *a = nb_alloc((size_t)S, (size_t)(S + 1) * sizeof *a);
        if (!wh || !a) {
#pragma omp atomic write
            failed = true;
        } else {
            kn_tile_nn(wh, K, t->w + row * K, K, t->h->H, K, n, K, K, 0);
            for (int64_t r = 0; r < n; r++) {
                pt_row_levels(l, c, row + r);
                pt_levels_h(lh, l, 1, c, t->h->H);
                pt_fit_row(c, row + r, wh + r * K, l, lh, 0, a);
            }
        }
        free(wh);
        free(a);
    }
    return failed ? NB_NOMEM : NB_OK;
}

/* ---- the whole ---------------------------------------------------------------------------- */

static status first_ranges(kn_codes *c, const task *t)
{
    const int64_t K = c->cols;
    if (!t->fixed) /* groups find theirs on the way: what is to be beaten is plain rounding */
        return fq_find_ranges(c, t->spec, t->w, FQ_START_ABSMAX, NULL);
    real *weight = t->o->ranges == FQ_START_IMPORTANCE ? nb_alloc((size_t)c->rows, (size_t)K * sizeof *weight) : NULL;
    if (t->o->ranges == FQ_START_IMPORTANCE && !weight)
        return NB_NOMEM;
    for (int64_t r = 0; weight && r < c->rows; r++)
        for (int64_t i = 0; i < K; i++) {
            const real u = t->h->U[i * (K + 1)];
            weight[r * K + t->h->order[i]] = 1 / (u * u);
        }
    status s = fq_find_ranges(c, t->spec, t->w, t->o->ranges, weight);
    free(weight);
    return s;
}

static void copy_ranges(kn_codes *to, const kn_codes *from)
{
    memcpy(to->scale, from->scale, (size_t)from->n_scales * sizeof *to->scale);
    if (to->zero)
        memcpy(to->zero, from->zero, (size_t)from->n_scales * sizeof *to->zero);
}

/* Round k, from 1 on: scales for codes and codes for these; with outputs sweeps of descent. */
static status improve(kn_codes *c, task *t)
{
    for (int sweep = 0; t->before && sweep < SWEEPS; sweep++)
        TRY(pt_descend(c, t->w, t->h, t->o->outputs));
    if (t->before)
        return NB_OK;
    TRY(fit_scales(c, t));
    t->fixed = true;
    return round_all(c, t);
}

static status search(kn_codes *c, kn_codes *next, task *t, double *best, double *sum, real *scratch, double *nearest)
{
    const int64_t rounds = pt_fits_scales(&c->grid) ? t->o->rounds : 0;
    TRY(first_ranges(c, t));
    measure(best, scratch, c, t);
    *nearest = total(best, c->rows);
    for (int64_t k = 0; k <= rounds; k++) {
        copy_ranges(next, c);
        for (int64_t i = 0; i < c->rows * c->ld; i++)
            pt_put_code(next, i, pt_code(c, i));
        TRY(k == 0 ? round_all(next, t) : improve(next, t));
        measure(sum, scratch, next, t);
        take_better(c, best, next, sum);
    }
    return NB_OK;
}

static const real *turn(real *before, const pt_hessian *outputs)
{
    for (int64_t r = 0; r < outputs->K; r++)
        for (int64_t s = 0; s < outputs->K; s++)
            before[r * outputs->K + s] = outputs->U[s * outputs->K + r];
    return before;
}

/* error += what pt_gptq says. */
static status all_rows(kn_codes *c, const fq_spec *spec, const real *w, const pt_hessian *h, const pt_gptq_options *o, double error[2])
{
    const int64_t group = c->grid.grain == KN_GROUP || c->grid.grain == KN_HEAD ? c->grid.group : 0, N = c->rows;
    task t = {.spec = spec, .w = w, .h = h, .o = o};
    t.fixed = o->static_groups || o->greedy || !h->in_order || !group || kn_has_super(&c->grid);
    t.block = group >= BLOCK ? group : group ? BLOCK / group * group : BLOCK;
    kn_codes next;
    double nearest = 0, *best = nb_alloc((size_t)N, 2 * sizeof *best);
    const int64_t width = o->outputs ? 3 * c->cols + N : 2 * c->cols;
    real *scratch = nb_alloc((size_t)N, (size_t)width * sizeof *scratch);
    status s = best && scratch ? kn_codes_new(&next, &c->grid, N, c->cols) : NB_NOMEM;
    if (s == NB_OK) {
        if (o->outputs)
            t.before = turn(scratch + 3 * N * c->cols, o->outputs);
        s = search(c, &next, &t, best, best + N, scratch, &nearest);
        kn_codes_free(&next);
    }
    if (s == NB_OK) {
        error[0] += total(best, N);
        error[1] += nearest;
    }
    free(best);
    free(scratch);
    return s;
}

/* Rows [row, row + n) of codes whose rows share nothing. */
static kn_codes rows_of(const kn_codes *c, int64_t row, int64_t n)
{
    kn_codes part = *c;
    part.rows = n;
    part.n_scales = n * c->spans;
    part.q = c->q ? c->q + row * c->ld : NULL;
    part.q16 = c->q16 ? c->q16 + row * c->ld : NULL;
    part.scale += row * c->spans;
    part.zero = c->zero ? c->zero + row * c->spans : NULL;
    return part;
}

status pt_gptq(kn_codes *c, const fq_spec *spec, const real *w, const pt_hessian *h, const pt_gptq_options *o, double error[2])
{
    const bool apart = !o->outputs && pt_ranges_by_row(&c->grid) && !c->scale_code && !c->wide;
    const int64_t at_once = apart ? AT_ONCE : c->rows;
    double sum[2] = {0};
    for (int64_t row = 0; row < c->rows; row += at_once) {
        kn_codes part = apart ? rows_of(c, row, c->rows - row < at_once ? c->rows - row : at_once) : *c;
        TRY(all_rows(&part, spec, w + row * c->cols, h, o, sum));
    }
    if (error)
        memcpy(error, sum, sizeof sum);
    return NB_OK;
}

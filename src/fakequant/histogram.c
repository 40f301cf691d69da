/* histogram.c - growing histograms of |x| and the clipped ranges that methods take from them.
 *   percentile P: the least t with a share P of |x| <= t (linear within a bin); with a zero point (1 - P) / 2 is cut at each end
 *   mse: the shrink p in 1.00, 0.99, .. 0.01 of [min, max] with the least sum over bins of count (x - decode(encode(x)))^2
 *   admm: from the range divided by 2.5, codes to nearest and then the scale of least squares for them,  s = sum q x / sum q^2  (with a zero
 *        point: the line x = s (q - z) through the bins), until the scale stays (alibaba/MNN, TensorStatistic.cpp: 300 rounds)
 *   kl:  TensorRT's search. With L levels of one sign, for i = L .. bins: P = counts of the first i bins, what lies beyond added to the
 *        last; Q = the first i bins merged into L of i / L each, spread evenly over their non-empty bins; zeros of Q where P is not
 *        count 1e-4. threshold = (argmin KL(P || Q) + 1/2) bin widths (Migacz 2017), at most max |x|. Sums of every prefix are kept,
 *        so a candidate costs L steps. Exact zeros are left out: every grid holds them (MNN does so), and behind a ReLU they would be most of P.
 */
#include "fakequant/ranges.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EMPTY 1e-4 /* what an empty bin counts in KL */

/* Two bins become one until |x| = most fits. */
static void grow(fq_histogram *h, double most)
{
    if (h->top == 0)
        h->top = most;
    while (h->top < most) {
        for (int sign = 0; sign < 2; sign++) {
            double *c = h->count[sign];
            for (int i = 0; i < FQ_BINS / 2; i++)
                c[i] = c[2 * i] + c[2 * i + 1];
            memset(c + FQ_BINS / 2, 0, FQ_BINS / 2 * sizeof *c);
        }
        h->top *= 2;
    }
}

void fq_histogram_add(fq_histogram *h, const real *x, int64_t rows, int64_t width, int64_t ld)
{
    double min = 0, max = 0;
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < width; i++) {
            double v = (double)x[m * ld + i];
            if (isfinite(v)) {
                min = v < min ? v : min;
                max = v > max ? v : max;
            }
        }
    double most = -min > max ? -min : max;
    if (most >= FQ_SMALLEST)
        grow(h, most);
    h->min = min < h->min ? min : h->min;
    h->max = max > h->max ? max : h->max;
    const double scale = h->top > 0 ? FQ_BINS / h->top : 0;
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < width; i++) {
            double v = (double)x[m * ld + i], a = fabs(v);
            if (a < FQ_SMALLEST) {
                h->zeros++;
            } else if (isfinite(v)) {
                double bin = a * scale;
                h->count[v < 0][bin < FQ_BINS ? (int)bin : FQ_BINS - 1]++;
            }
        }
}

void fq_histogram_merge(fq_histogram *h, const fq_histogram *other)
{
    if (other->top > 0)
        grow(h, other->top);
    const double ratio = h->top > 0 ? other->top / h->top : 0; /* of bin widths, at most 1 */
    for (int sign = 0; sign < 2; sign++)
        for (int i = 0; i < FQ_BINS; i++) {
            double n = other->count[sign][i];
            if (n == 0)
                continue;
            double from = i * ratio, to = (i + 1) * ratio;
            int bin = (int)from, last = (int)to;
            bin = bin < FQ_BINS ? bin : FQ_BINS - 1;
            last = last < FQ_BINS ? last : FQ_BINS - 1;
            double first = last > bin ? (last - from) / (to - from) : 1; /* share that stays in `bin` */
            h->count[sign][bin] += n * first;
            h->count[sign][last] += n * (1 - first);
        }
    h->zeros += other->zeros;
    h->min = other->min < h->min ? other->min : h->min;
    h->max = other->max > h->max ? other->max : h->max;
}

double fq_histogram_total(const fq_histogram *h)
{
    double n = h->zeros;
    for (int i = 0; i < FQ_BINS; i++)
        n += h->count[0][i] + h->count[1][i];
    return n;
}

/* ---- percentile --------------------------------------------------------------------------- */

/* t with `wanted` of the counts a (and b, unless NULL) in [0, t] */
static double quantile(const fq_histogram *h, const double *a, const double *b, double below, double wanted)
{
    const double width = h->top / FQ_BINS;
    for (int i = 0; i < FQ_BINS; i++) {
        double n = a[i] + (b ? b[i] : 0);
        if (n > 0 && below + n >= wanted)
            return (i + (wanted > below ? (wanted - below) / n : 0)) * width;
        below += n;
    }
    return h->top;
}

static double side(const double *count)
{
    double n = 0;
    for (int i = 0; i < FQ_BINS; i++)
        n += count[i];
    return n;
}

static void percentile(const fq_histogram *h, double share, bool both, double *min, double *max)
{
    const double total = fq_histogram_total(h);
    if (!both) {
        double t = quantile(h, h->count[0], h->count[1], h->zeros, share * total);
        t = fmin(t, fmax(-h->min, h->max));
        *min = -t;
        *max = t;
        return;
    }
    /* cut counts beyond each end; an end whose whole side is cut is 0 */
    const double cut = (1 - share) / 2 * total, positive = side(h->count[0]), negative = side(h->count[1]);
    *max = positive > cut ? fmin(quantile(h, h->count[0], NULL, 0, positive - cut), h->max) : 0;
    *min = negative > cut ? fmax(-quantile(h, h->count[1], NULL, 0, negative - cut), h->min) : 0;
}

/* ---- least squared error ------------------------------------------------------------------ */

static double squared_error(const fq_histogram *h, const kn_grid *g, double min, double max)
{
    const double width = h->top / FQ_BINS;
    real scale;
    int32_t zero = 0;
    kn_range_of(g, (real)min, (real)max, &scale, &zero);
    const real inv = kn_inverse(scale);
    double error = 0;
    for (int sign = 0; sign < 2; sign++)
        for (int i = 0; i < FQ_BINS; i++)
            if (h->count[sign][i] > 0) {
                double x = (sign ? -1 : 1) * (i + 0.5) * width;
                int32_t q = kn_encode_one(g, (real)x, inv, zero);
                double d = x - (double)(kn_mul(g) * q + kn_add(g) - zero) * (double)scale;
                error += h->count[sign][i] * d * d;
            }
    return error;
}

static void least_squares(const fq_histogram *h, const kn_grid *g, double *min, double *max)
{
    double best = INFINITY, most = 1;
    for (int i = 0; i < 100; i++) {
        double p = 1 - i / 100.0, error = squared_error(h, g, *min * p, *max * p);
        if (error < best) {
            best = error;
            most = p;
        }
    }
    *min *= most;
    *max *= most;
}

/* ---- codes and scale in turn -------------------------------------------------------------- */

typedef struct {
    double n, q, x, qq, qx; /* sums over what was counted: 1, level, value, and products */
} line;

static void add_bin(line *l, double count, double level, double x)
{
    l->n += count;
    l->q += count * level;
    l->x += count * x;
    l->qq += count * level * level;
    l->qx += count * level * x;
}

/* Sums over all bins, their codes by the range [min, max]; levels less the zero point. */
static line sums_of(const fq_histogram *h, const kn_grid *g, double min, double max, double *scale)
{
    const double width = h->top / FQ_BINS;
    line l = {0};
    real stored;
    int32_t zero = 0;
    kn_range_of(g, (real)min, (real)max, &stored, &zero);
    const real inv = kn_inverse(stored);
    *scale = (double)stored;
    for (int sign = 0; sign < 2; sign++)
        for (int i = 0; i < FQ_BINS; i++)
            if (h->count[sign][i] > 0) {
                const double x = (sign ? -1 : 1) * (i + 0.5) * width;
                add_bin(&l, h->count[sign][i], kn_mul(g) * kn_encode_one(g, (real)x, inv, zero) + kn_add(g) - zero, x);
            }
    if (g->has_zero && h->zeros > 0)
        add_bin(&l, h->zeros, 0, 0);
    return l;
}

static void alternate(const fq_histogram *h, const kn_grid *g, double *min, double *max)
{
    enum { ROUNDS = 300 };
    const double shrink = 2.5, least = *min, most = *max;
    *min /= shrink;
    *max /= shrink;
    for (int i = 0; i < ROUNDS; i++) {
        double scale;
        const line l = sums_of(h, g, *min, *max, &scale);
        const double variance = g->has_zero ? l.qq - l.q * l.q / l.n : l.qq,
                     fitted = variance > 0 ? (g->has_zero ? l.qx - l.q * l.x / l.n : l.qx) / variance : 0;
        if (!(scale > 0) || !(fitted > 0) || fabs(fitted - scale) <= 1e-7 * scale)
            return;
        const double ratio = fitted / scale, shift = g->has_zero ? l.x / l.n - fitted * l.q / l.n : 0;
        *min = fmin(fmax(*min * ratio + shift, g->has_zero ? least : -INFINITY), 0);
        *max = fmax(fmin(*max * ratio + shift, g->has_zero ? most : INFINITY), 0);
    }
}

/* ---- KL ----------------------------------------------------------------------------------- */

typedef struct {
    double count, filled, entropy; /* sums over the bins before this one: n, 1 where n > 0, n ln n */
} prefix;

static double n_log_n(double n)
{
    return n > 0 ? n * log(n) : 0;
}

/* KL(P || Q) of the first n bins with what lies beyond in the last of them; INFINITY where these bins are empty. */
static double divergence(const prefix *p, int n, int levels, double total)
{
    const double beyond = total - p[n].count, last = p[n].count - p[n - 1].count;
    if (p[n].count <= 0)
        return INFINITY;
    double entropy = (p[n - 1].entropy + n_log_n(last + beyond)) / total - log(total), cross = 0;
    for (int k = 0; k < levels; k++) {
        int from = (int)((int64_t)k * n / levels), to = (int)((int64_t)(k + 1) * n / levels);
        double count = p[to].count - p[from].count, filled = p[to].filled - p[from].filled;
        double mass = count + (to == n && last > 0 ? beyond : 0);
        if (filled > 0)
            cross += mass / total * log(count / filled / p[n].count);
    }
    if (last <= 0 && beyond > 0)
        cross += beyond / total * log(EMPTY / p[n].count);
    return entropy - cross;
}

static double kl_threshold(const fq_histogram *h, int levels)
{
    static const prefix none = {0};
    prefix p[FQ_BINS + 1];
    const double most = fmax(-h->min, h->max), width = h->top / FQ_BINS;
    p[0] = none;
    for (int i = 0; i < FQ_BINS; i++) {
        double n = h->count[0][i] + h->count[1][i];
        p[i + 1] = (prefix){p[i].count + n, p[i].filled + (n > 0), p[i].entropy + n_log_n(n)};
    }
    double used = ceil(most / width), best = INFINITY;
    int bins = used < FQ_BINS ? (int)used : FQ_BINS, chosen = bins;
    for (int i = levels; i <= bins; i++) {
        double kl = divergence(p, i, levels, p[FQ_BINS].count);
        if (kl < best) {
            best = kl;
            chosen = i;
        }
    }
    return fmin((chosen + 0.5) * width, most);
}

void fq_histogram_range(const fq_histogram *h, const fq_spec *spec, double *min, double *max)
{
    const kn_grid *g = &spec->grid;
    *min = h->min;
    *max = h->max;
    if (h->top == 0)
        return;
    if (spec->method == FQ_PERCENTILE) {
        percentile(h, spec->parameter != 0 ? (double)spec->parameter / 100 : 0.9999, g->has_zero, min, max);
    } else if (spec->method == FQ_KL) {
        /* one side of a symmetric grid, or all codes where the data has one sign */
        bool one_sided = g->has_zero && (h->min >= 0 || h->max <= 0);
        int64_t levels = one_sided     ? (int64_t)g->hi - g->lo + 1
                         : g->has_zero ? ((int64_t)g->hi - g->lo + 1) / 2
                                       : (int64_t)g->hi + 1;
        double t = levels < FQ_BINS ? kl_threshold(h, (int)levels) : fmax(-h->min, h->max);
        *min = g->has_zero ? fmax(-t, h->min) : -t;
        *max = g->has_zero ? fmin(t, h->max) : t;
    } else if (spec->method == FQ_MSE) {
        least_squares(h, g, min, max);
    } else if (spec->method == FQ_ADMM) {
        if (!g->has_zero)
            *min = -(*max = fmax(-h->min, h->max));
        alternate(h, g, min, max);
    }
}

/* observer.c - statistics of activations for static ranges, one set per scale (tensor, head or group of channels).
 *   minmax: running minimum and maximum          average: x <- x + c (x^ - x) once per step, the first observation sets it
 *   percentile, mse, kl, admm: a histogram of all that was seen (histogram.c)
 * What is not finite is left out. Calls come in a fixed order from one thread, so ranges do not depend on scheduling.
 */
#include "fakequant/ranges.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    double min, max;      /* of this step (average), or of everything */
    double low, high;     /* the moving average */
    double observed, set; /* whether min and max, low and high hold something */
} extent;
enum { EXTENT_NUMBERS = sizeof(extent) / sizeof(double) };

struct fq_observer {
    int64_t spans;
    extent *extent;          /* [spans] */
    fq_histogram *histogram; /* [spans], or NULL */
};

fq_observer *fq_observer_new(const fq_spec *spec, int64_t spans)
{
    const bool counts = spec->method != FQ_MINMAX && spec->method != FQ_MOVING_AVERAGE;
    fq_observer *o = nb_alloc_zeroed(1, sizeof *o);
    if (!o)
        return NULL;
    o->spans = spans;
    o->extent = nb_alloc_zeroed((size_t)spans, sizeof *o->extent);
    o->histogram = counts ? nb_alloc_zeroed((size_t)spans, sizeof *o->histogram) : NULL;
    if (o->extent && (o->histogram || !counts))
        return o;
    fq_observer_free(o);
    return NULL;
}

void fq_observer_free(fq_observer *o)
{
    if (!o)
        return;
    free(o->extent);
    free(o->histogram);
    free(o);
}

static void observe_span(extent *e, const real *x, int64_t rows, int64_t width, int64_t ld)
{
    real min = INFINITY, max = -INFINITY;
#pragma omp parallel for schedule(static) if (rows * width > FQ_PARALLEL) reduction(min : min) reduction(max : max)
    for (int64_t m = 0; m < rows; m++) {
        real low, high;
        kn_finite_min_max(&low, &high, x + m * ld, width);
        min = low < min ? low : min;
        max = high > max ? high : max;
    }
    if (!(min <= max))
        return;
    e->min = e->observed != 0 && e->min < (double)min ? e->min : (double)min;
    e->max = e->observed != 0 && e->max > (double)max ? e->max : (double)max;
    e->observed = 1;
}

static void observe(fq_observer *o, const real *x, int64_t rows, int64_t cols, int64_t width)
{
    for (int64_t i = 0; i < o->spans; i++) {
        int64_t col = i * width, n = width < cols - col ? width : cols - col;
        observe_span(&o->extent[i], x + col, rows, n, cols);
        if (o->histogram)
            fq_histogram_add(&o->histogram[i], x + col, rows, n, cols);
    }
}

/* The range of one span as seen so far; false: nothing was. */
static bool range_of(fq_observer *o, const fq_spec *spec, int64_t i, double *min, double *max)
{
    extent *e = &o->extent[i];
    if (spec->method == FQ_MOVING_AVERAGE) {
        const double rate = spec->parameter != 0 ? (double)spec->parameter : 0.01;
        if (e->observed != 0) {
            e->low = e->set != 0 ? e->low + rate * (e->min - e->low) : e->min;
            e->high = e->set != 0 ? e->high + rate * (e->max - e->high) : e->max;
            e->set = 1;
            e->observed = 0;
        }
        *min = e->low;
        *max = e->high;
        return e->set != 0;
    }
    *min = e->min;
    *max = e->max;
    if (e->observed != 0 && o->histogram)
        fq_histogram_range(&o->histogram[i], spec, min, max);
    return e->observed != 0;
}

/* A learned range is started once; then training moves it. */
static bool watched(const fq_sites *sites, const fq_site *s)
{
    return s->observer && (!s->started || (!sites->frozen && s->spec.range == FQ_STATIC));
}

void fq_observe(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    fq_sites *sites = ctx;
    (void)out;
    fq_site *s = fq_site_find(sites, site);
    if (!s || !watched(sites, s))
        return;
    const real *x = ag_value(in);
    const int64_t cols = ag_cols(in);
    if (x && (!s->cols || s->cols == cols))
        observe(s->observer, x, ag_rows(in), cols, s->spec.grid.grain == KN_TENSOR ? cols : s->spec.grid.group);
}

status fq_observe_end(fq_sites *sites)
{
    for (int64_t k = 0; k < sites->n; k++) {
        fq_site *s = sites->s[k];
        if (!watched(sites, s))
            continue;
        bool all = true;
        for (int64_t i = 0; i < s->n_scales; i++) {
            double min, max;
            real scale;
            int32_t zero = 0;
            if (!range_of(s->observer, &s->spec, i, &min, &max)) {
                all = false;
                continue;
            }
            kn_range_of(&s->spec.grid, (real)min, (real)max, &scale, &zero);
            s->start[i] = scale;
            if (s->start_zero)
                s->start_zero[i] = (real)zero;
        }
        s->started = s->started || all;
    }
    return NB_OK;
}

bool fq_sites_need_calibration(const fq_sites *sites, char *names, size_t bytes)
{
    enum { SHOWN = 4 };
    int64_t missing = 0;
    size_t used = 0;
    if (bytes)
        names[0] = 0;
    for (int64_t k = 0; k < sites->n; k++) {
        const fq_site *s = sites->s[k];
        if (!s->spec.grid.bits || s->is_weight || s->spec.range == FQ_DYNAMIC || s->started)
            continue;
        if (missing++ < SHOWN && used < bytes) {
            int n = snprintf(names + used, bytes - used, "%s%s", used ? ", " : "", s->name);
            used += n > 0 ? (size_t)n : 0;
        }
    }
    if (missing > SHOWN && used < bytes)
        snprintf(names + used, bytes - used, " and %lld more", (long long)(missing - SHOWN));
    return missing > 0;
}

int64_t fq_observer_state(const fq_observer *o, double *dst)
{
    const int64_t extents = o->spans * EXTENT_NUMBERS,
                  counts = o->histogram ? o->spans * (int64_t)(sizeof(fq_histogram) / sizeof(double)) : 0;
    if (dst) {
        memcpy(dst, o->extent, (size_t)extents * sizeof *dst);
        if (counts)
            memcpy(dst + extents, o->histogram, (size_t)counts * sizeof *dst);
    }
    return extents + counts;
}

/* Numbers that no observer holds would lead the search astray. */
static bool believable(const extent *e, const fq_histogram *h)
{
    bool good = e->min <= e->max && e->low <= e->high;
    if (!h)
        return good;
    good = good && h->top >= 0 && h->zeros >= 0 && h->min <= 0 && h->max >= 0 &&
           fmax(-h->min, h->max) <= fmax(h->top, FQ_SMALLEST);
    for (int i = 0; good && i < FQ_BINS; i++)
        good = h->count[0][i] >= 0 && h->count[1][i] >= 0;
    return good;
}

status fq_observer_restore(fq_observer *o, const double *src)
{
    const double *histogram = src + o->spans * EXTENT_NUMBERS;
    for (int64_t i = 0; i < o->spans; i++) {
        const extent *e = (const extent *)(src + i * EXTENT_NUMBERS);
        if (!believable(e, o->histogram ? (const fq_histogram *)histogram + i : NULL))
            return nb_fail(NB_FORMAT, "statistics %lld contradict themselves", (long long)i);
    }
    memcpy(o->extent, src, (size_t)o->spans * sizeof *o->extent);
    if (o->histogram)
        memcpy(o->histogram, histogram, (size_t)o->spans * sizeof *o->histogram);
    return NB_OK;
}

/* ranges.h - what the files of fakequant/ share about ranges: units of a coded matrix, scales as they are now, histograms,
 * observers (private to fakequant/).
 */
#ifndef NIBBLE_FAKEQUANT_RANGES_H
#define NIBBLE_FAKEQUANT_RANGES_H
#include "fakequant/fakequant.h"

enum { FQ_BINS = 2048, FQ_PARALLEL = 1 << 14 /* elements below which a loop is not worth waking threads for */ };
#define FQ_LARGEST_LOG                                                                                                 \
    ((real)0.69314718055994531) /* |u| <= ln 2: a learned scale stays within a factor of 2 of its start */

/* A matrix as units: runs [begin, end) of the flattened elements that one thread handles and that share a scale. One or more
 * units make up a span (a tensor's are its rows). */
int64_t fq_units(const kn_codes *c);
void fq_unit(const kn_codes *c, int64_t unit, int64_t *begin, int64_t *end);
int64_t fq_unit_scale(const kn_codes *c, int64_t unit); /* index of its scale */

bool fq_is_ternary(const kn_grid *g);

typedef struct {
    real scale, max, min; /* scale as stored; PACT with a zero point: the two ends */
    double zero_latent;   /* before rounding and clamping */
    int32_t zero;
} fq_range_now;
fq_range_now fq_range_at(const fq_site *site, int64_t i);

/* Whether the site makes x's codes of exact sums: x has them, and one static or learned range of at most 8 bits. */
bool fq_has_sums(const fq_site *site, const ag_tensor *x);
/* Codes c (laid out) of such a value, as an integer network makes them; false: no memory, message set. */
bool fq_requantize(kn_codes *c, const fq_site *site, const ag_sums *from);

/* ---- histogram ---------------------------------------------------------------------------- */

/* |x| in FQ_BINS equal bins over [0, top], the two signs apart, zeros counted apart; what is not finite is left out. A zeroed
 * struct is valid and empty. It grows by doubling top (two bins become one), which is exact. */
#define FQ_SMALLEST 1e-290 /* below it counts as zero: bins of such a width would not be numbers */
typedef struct {
    double top, zeros, min, max;
    double count[2][FQ_BINS]; /* 0: positive, 1: negative */
} fq_histogram;
void fq_histogram_add(fq_histogram *h, const real *x, int64_t rows, int64_t width, int64_t ld);
/* h += other; bins of other are spread over the bins they overlap. */
void fq_histogram_merge(fq_histogram *h, const fq_histogram *other);
double fq_histogram_total(const fq_histogram *h);
/* The range that a method chooses for a grid (FQ_PERCENTILE, FQ_MSE, FQ_KL, FQ_ADMM); without zero point min = -max. */
void fq_histogram_range(const fq_histogram *h, const fq_spec *spec, double *min, double *max);

/* ---- observer ----------------------------------------------------------------------------- */

fq_observer *fq_observer_new(const fq_spec *spec, int64_t spans);
void fq_observer_free(fq_observer *o);
int64_t fq_observer_state(const fq_observer *o, double *dst);  /* doubles; NULL dst: only the count */
status fq_observer_restore(fq_observer *o, const double *src); /* NB_FORMAT: nothing changed */

#endif

/* test_ranges.c - where ranges come from: starts of weights, histograms. Each method against its definition, written plainly. */
#include "fakequant/ranges.h"
#include "suite.h"
#include "world.h"
#include <math.h>
#include <stdlib.h>

/* ---- starts ------------------------------------------------------------------------------- */

static double error_of(fq_site *s, const real *h)
{
    double e = 0;
    const real *x = s->w->x;
    const kn_codes *c = fq_site_codes(s, s->params);
    for (int64_t i = 0; i < s->w->count; i++) {
        double d = (double)(x[i] - kn_decode_one(c, i / s->cols, i % s->cols));
        if (!h)
            e += d * d;
        else { /* E[x^2] sqrt(mean of the row's w^2 + w^2) */
            const double mean = kn_sum_squares(x + i / s->cols * s->cols, s->cols) / (double)s->cols;
            e += d * d * (double)h[i % s->cols] * sqrt(mean + (double)x[i] * (double)x[i]);
        }
    }
    return e;
}

static const real *importance(void *ctx, const fq_site *site)
{
    return site->is_weight ? ctx : NULL;
}

static const char *const starts[] = {
    "int4 row f32 learned", "int4 group:32 f16 learned", "int3 row f32 learned",
    "seq2 row f32 learned", "ternary row learned",       "int4 asym group:32 f16 learned",
    "int2 tensor learned",  "int4 block:50 f32 learned", "int4 group:32 f16 q4_0 learned",
    "sign row learned"};

START_TEST(searched_starts_have_less_error_than_absmax)
{
    world m;
    real h[96];
    for (int i = 0; i < 96; i++)
        h[i] = (real)exp(nb_random_normal(5, 5, (uint64_t)i));
    world_new(&m, starts[_i]);
    fq_site *s = weight_site(&m, "a", 16, 96, 9);
    ck_assert(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    double plain = error_of(s, NULL), weighted = error_of(s, h);
    ck_assert(fq_start_weights(&m.sites, FQ_START_MSE, NULL, NULL) == NB_OK);
    double searched = error_of(s, NULL), blind = error_of(s, h);
    ck_assert(fq_start_weights(&m.sites, FQ_START_IMPORTANCE, importance, h) == NB_OK);
    double seeing = error_of(s, h);
    bool sign = s->spec.grid.levels == KN_LEVELS_SIGN; /* mean |w| is the best there is */
    ck_assert_msg(sign ? searched <= plain * 1.000001 : searched < plain, "%s: %g, absmax %g", starts[_i], searched,
                  plain);
    ck_assert_msg(seeing < blind && seeing < weighted, "%s: %g, without importance %g, absmax %g", starts[_i], seeing,
                  blind, weighted);
    world_free(&m);
}
END_TEST

START_TEST(absmax_starts_are_the_stated_ones)
{
    static const struct {
        const char *spec;
        double scale; /* of a row with max -0.8, mean |w| 0.35 */
    } row[] = {{"int4 row learned", 0.8 / 7},
               {"int8 narrow row learned", 0.8 / 127},
               {"seq2 row learned", 0.8 / 4},
               {"ternary row learned", 0.8 / 1.5},
               {"sign row learned", 0.35},
               {"int4 group:32 f16 q4_0 learned", -0.8 / -8},
               {"int8 narrow group:32 f16 q8_0 learned", 0.8 / 127}};
    for (int i = 0; i < 7; i++) {
        world m;
        world_new(&m, row[i].spec);
        fq_site *s = weight_site(&m, "a", 1, 4, 1);
        memcpy(s->w->x, (real[]){(real)0.3, (real)-0.8, (real)0.1, (real)-0.2}, 4 * sizeof(real));
        s->u->x[0] = (real)0.3; /* a start begins anew */
        ck_assert(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
        ck_assert_double_eq_tol((double)s->start[0], row[i].scale,
                                row[i].scale * (s->spec.grid.scale == KN_SCALE_F16 ? 1e-3 : 1e-6));
        ck_assert(s->u->x[0] == 0 && s->started);
        world_free(&m);
    }
}
END_TEST

/* ---- histograms --------------------------------------------------------------------------- */

enum { SAMPLES = 20000 };

typedef enum { NORMAL, OUTLIER, POSITIVE, LAPLACE, UNIFORM, DATA_COUNT } data;

static real *sample(data kind)
{
    real *x = nb_alloc(SAMPLES, sizeof *x);
    ck_assert(x != NULL);
    for (int64_t i = 0; i < SAMPLES; i++) {
        double z = nb_random_normal(11, 1, (uint64_t)i), u = nb_random_unit(11, 2, (uint64_t)i);
        x[i] = (real)(kind == POSITIVE  ? (z > 0 ? z * z : 0)
                      : kind == LAPLACE ? (z < 0 ? log(1 - u) : -log(1 - u))
                      : kind == UNIFORM ? 4 * u - 1
                                        : z);
    }
    if (kind == OUTLIER)
        x[777] = -40;
    return x;
}

static int by_value(const void *a, const void *b)
{
    real x = *(const real *)a, y = *(const real *)b;
    return (x > y) - (x < y);
}

static fq_spec spec_of(const char *text)
{
    fq_spec s;
    ck_assert_msg(fq_spec_parse(&s, text) == NB_OK, "%s", nb_fail_message());
    return s;
}

static fq_histogram *histogram_of(const real *x, int64_t n)
{
    fq_histogram *h = nb_alloc_zeroed(1, sizeof *h);
    ck_assert(h != NULL);
    fq_histogram_add(h, x, 1, n, n);
    return h;
}

/* t is the value at `at` of the sorted ones, give or take one of them and a bin. An end on its `sign`'s side of 0. */
static void check_between(double t, const real *sorted, int64_t at, double width, int sign)
{
    double low = (double)sorted[at > 0 ? at - 1 : 0] - width,
           high = (double)sorted[at + 1 < SAMPLES ? at + 1 : at] + width;
    ck_assert_msg((t >= low && t <= high) || (t == 0 && sign * sorted[at] <= 0), "%g is not within %g and %g", t, low,
                  high);
}

START_TEST(percentile_is_that_of_the_sorted_values)
{
    real *x = sample((data)_i), *a = nb_alloc(SAMPLES, sizeof *a);
    fq_histogram *h = histogram_of(x, SAMPLES);
    for (int64_t i = 0; i < SAMPLES; i++)
        a[i] = (real)fabs((double)x[i]);
    qsort(a, SAMPLES, sizeof *a, by_value);
    qsort(x, SAMPLES, sizeof *x, by_value);
    const double width = h->top / FQ_BINS;
    static const struct {
        const char *text;
        double share;
    } percentile[] = {{"static:percentile:99", 0.99}, {"static:percentile:99.9", 0.999}, {"static:percentile:60", 0.6}};
    for (int k = 0; k < 3; k++) {
        char text[64];
        double min, max;
        snprintf(text, sizeof text, "int8 tensor %s", percentile[k].text);
        fq_spec s = spec_of(text);
        fq_histogram_range(h, &s, &min, &max);
        int64_t at = (int64_t)(percentile[k].share * SAMPLES) - 1;
        ck_assert(min == -max);
        check_between(max, a, at, width, 1);
        snprintf(text, sizeof text, "int8 asym tensor %s", percentile[k].text);
        s = spec_of(text);
        fq_histogram_range(h, &s, &min, &max);
        int64_t cut = (int64_t)((1 - percentile[k].share) / 2 * SAMPLES);
        check_between(max, x, SAMPLES - 1 - cut, width, 1);
        check_between(min, x, cut, width, -1);
    }
    free(x);
    free(a);
    free(h);
}
END_TEST

/* Squared error of the data itself, not of its histogram. */
static double error_at(const real *x, const kn_grid *g, double min, double max)
{
    real scale;
    int32_t zero = 0;
    double e = 0;
    kn_range_of(g, (real)min, (real)max, &scale, &zero);
    for (int64_t i = 0; i < SAMPLES; i++) {
        double d = (double)x[i] - (kn_encode_one(g, x[i], kn_inverse(scale), zero) - zero) * (double)scale;
        e += d * d;
    }
    return e;
}

static const char *const searched[] = {"int8 tensor static:mse",      "int4 tensor static:mse",
                                       "int8 asym tensor static:mse", "int4 asym tensor static:mse",
                                       "int2 tensor static:mse",      "int3 asym tensor static:mse"};

START_TEST(mse_range_is_as_good_as_searching_the_data)
{
    fq_spec s = spec_of(searched[_i]);
    for (int kind = 0; kind < DATA_COUNT; kind++) {
        real *x = sample((data)kind);
        fq_histogram *h = histogram_of(x, SAMPLES);
        double min, max, best = INFINITY;
        fq_histogram_range(h, &s, &min, &max);
        for (int i = 0; i < 100; i++)
            best = fmin(best, error_at(x, &s.grid, h->min * (1 - i / 100.0), h->max * (1 - i / 100.0)));
        double found = error_at(x, &s.grid, min, max);
        ck_assert_msg(found <= 1.02 * best, "%s, data %d: %g, best %g", searched[_i], kind, found, best);
        free(x);
        free(h);
    }
}
END_TEST

/* KL(P || Q) of the first n bins as the algorithm is stated: both distributions written out. */
static double plain_kl(const double *bin, int n, int levels)
{
    static double p[FQ_BINS], q[FQ_BINS];
    double sum_p = 0, sum_q = 0, kl = 0;
    for (int i = 0; i < n; i++)
        p[i] = bin[i];
    for (int i = n; i < FQ_BINS; i++)
        p[n - 1] += bin[i];
    for (int k = 0; k < levels; k++) {
        int from = k * n / levels, to = (k + 1) * n / levels, filled = 0;
        double sum = 0;
        for (int i = from; i < to; i++) {
            sum += bin[i];
            filled += bin[i] > 0;
        }
        for (int i = from; i < to; i++)
            q[i] = bin[i] > 0 ? sum / filled : 0;
    }
    for (int i = 0; i < n; i++) {
        sum_p += p[i];
        sum_q += q[i];
    }
    if (sum_q == 0)
        return INFINITY;
    for (int i = 0; i < n; i++)
        if (p[i] > 0)
            kl += p[i] / sum_p * log(p[i] / sum_p / ((q[i] > 0 ? q[i] : 1e-4) / sum_q));
    return kl;
}

static const struct {
    const char *spec;
    int levels;
} kl_cases[] = {{"int8 tensor static:kl", 128},
                {"int8 narrow tensor static:kl", 128},
                {"int4 tensor static:kl", 8},
                {"int6 asym tensor static:kl", 32}};

/* Behind a ReLU: every grid holds 0, so zeros say nothing about the range. */
START_TEST(zeros_do_not_move_a_kl_range)
{
    fq_spec s = spec_of("int4 asym tensor static:kl");
    real *x = sample((data)0), *all = calloc(2 * SAMPLES, sizeof *all);
    double min, max, least, most;
    ck_assert(all != NULL);
    for (int64_t i = 0; i < SAMPLES; i++)
        all[2 * i] = x[i] = (real)fabs((double)x[i]);
    fq_histogram *plain = histogram_of(x, SAMPLES), *mixed = histogram_of(all, 2 * SAMPLES);
    fq_histogram_range(plain, &s, &min, &max);
    fq_histogram_range(mixed, &s, &least, &most);
    ck_assert_msg(min == least && max == most, "%g .. %g with zeros, %g .. %g without", least, most, min, max);
    free(plain);
    free(mixed);
    free(all);
    free(x);
}
END_TEST

START_TEST(kl_range_is_the_least_of_all_candidates)
{
    fq_spec s = spec_of(kl_cases[_i].spec);
    for (int kind = 0; kind < DATA_COUNT; kind++) {
        double bin[FQ_BINS] = {0}, best = INFINITY, min, max;
        real *x = sample((data)kind);
        fq_histogram *h = histogram_of(x, SAMPLES);
        const int levels = kl_cases[_i].levels * (s.grid.has_zero && h->min == 0 ? 2 : 1);
        for (int64_t i = 0; i < SAMPLES; i++)
            if (x[i] != 0)
                bin[(int)fmin(fabs((double)x[i]) * (FQ_BINS / h->top), FQ_BINS - 1)]++;
        for (int n = levels; n <= FQ_BINS; n++)
            best = fmin(best, plain_kl(bin, n, levels));
        fq_histogram_range(h, &s, &min, &max);
        double t = fmax(-min, max), width = h->top / FQ_BINS;
        int chosen = t >= h->top ? FQ_BINS : (int)rint(t / width - 0.5);
        ck_assert_msg(fabs(plain_kl(bin, chosen, levels) - best) < 1e-9, "%s, data %d: %d bins give %.12g, best %.12g",
                      kl_cases[_i].spec, kind, chosen, plain_kl(bin, chosen, levels), best);
        ck_assert(min >= h->min || !s.grid.has_zero);
        ck_assert_msg(kind != OUTLIER || t < 20, "%s: the outlier was kept: %g", kl_cases[_i].spec, t);
        free(x);
        free(h);
    }
}
END_TEST

/* MNN's rounds as they are stated, over the bins' middles: codes to nearest, then the scale of least squares. */
static double plain_alternation(const fq_histogram *h, int top, double scale)
{
    for (int round = 0; round < 300; round++) {
        double qx = 0, qq = 0;
        for (int sign = 0; sign < 2; sign++)
            for (int i = 0; i < FQ_BINS; i++) {
                const double x = (sign ? -1 : 1) * (i + 0.5) * h->top / FQ_BINS, q = fmin(fmax(rint(x / scale), -top), top);
                qx += h->count[sign][i] * q * x;
                qq += h->count[sign][i] * q * q;
            }
        scale = qx / qq;
    }
    return scale;
}

static const struct {
    const char *spec, *largest;
    int top;
} admm_cases[] = {{"int8 narrow tensor static:admm", "int8 narrow tensor static", 127},
                  {"int4 narrow tensor static:admm", "int4 narrow tensor static", 7},
                  {"int4 asym tensor static:admm", "int4 asym tensor static", 0},
                  {"int8 asym tensor static:admm", "int8 asym tensor static", 0}};

START_TEST(admm_alternates_codes_and_scale)
{
    const fq_spec s = spec_of(admm_cases[_i].spec), plain = spec_of(admm_cases[_i].largest);
    for (int kind = 0; kind < DATA_COUNT; kind++) {
        double min, max, low, high;
        real *x = sample((data)kind);
        fq_histogram *h = histogram_of(x, SAMPLES);
        fq_histogram_range(h, &s, &min, &max);
        fq_histogram_range(h, &plain, &low, &high);
        const double error = error_at(x, &s.grid, min, max), start = error_at(x, &s.grid, low / 2.5, high / 2.5);
        ck_assert_msg(error <= start, "%s, data %d: %g, where it began %g", admm_cases[_i].spec, kind, error, start);
        if (admm_cases[_i].top) {
            const double t = fmax(-h->min, h->max), top = admm_cases[_i].top, scale = plain_alternation(h, admm_cases[_i].top, t / (top * 2.5));
            ck_assert_msg(fabs(max / top - scale) < 1e-4 * scale && min == -max, "%s, data %d: %.9g, plainly %.9g", admm_cases[_i].spec, kind,
                          max / top, scale);
        }
        free(x);
        free(h);
    }
}
END_TEST

START_TEST(admm_of_weights_ends_where_no_scale_is_better)
{
    world m, n;
    world_new(&m, "int4 row f32 learned from:admm");
    world_new(&n, "int4 row f32 learned");
    fq_site *s = weight_site(&m, "a", 16, 96, 9), *absmax = weight_site(&n, "a", 16, 96, 9);
    ck_assert(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    ck_assert(fq_start_weights(&n.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    ck_assert_double_lt(error_of(s, NULL), error_of(absmax, NULL));
    for (int64_t r = 0; r < 16; r++) {
        double qx = 0, qq = 0;
        for (int64_t i = 0; i < 96; i++) {
            const double x = (double)s->w->x[r * 96 + i], q = fmin(fmax(rint(x / (double)s->start[r]), -8), 7);
            qx += q * x;
            qq += q * q;
        }
        ck_assert_double_eq_tol(qx / qq, (double)s->start[r], 1e-3 * (double)s->start[r]);
    }
    world_free(&m);
    world_free(&n);
}
END_TEST

START_TEST(histogram_grows_without_losing_a_value)
{
    fq_histogram *h = nb_alloc_zeroed(1, sizeof *h), *all = nb_alloc_zeroed(1, sizeof *all);
    /* tops are powers of two, so growing step by step is exact */
    fq_histogram_add(h, (real[]){1}, 1, 1, 1);
    fq_histogram_add(all, (real[]){256}, 1, 1, 1);
    for (int step = 0; step < 9; step++) {
        real x[64];
        for (int i = 0; i < 64; i++)
            x[i] = (real)((nb_random_unit(3, (uint64_t)step, (uint64_t)i) * 2 - 1) * (1 << step));
        x[0] = (real)(0.99 * (1 << step));
        fq_histogram_add(h, x, 8, 8, 8);
        fq_histogram_add(all, x, 1, 64, 64);
    }
    ck_assert(h->top == 256 && all->top == 256 && fq_histogram_total(h) == 577);
    h->count[0][(FQ_BINS - 1) >> 8]--; /* the 1 and the 256 that set the tops */
    all->count[0][FQ_BINS - 1]--;
    ck_assert(!memcmp(h->count, all->count, sizeof h->count));
    free(h);
    free(all);
}
END_TEST

START_TEST(merged_histograms_hold_both)
{
    real *x = sample(NORMAL), *y = sample(LAPLACE);
    fq_histogram *a = histogram_of(x, SAMPLES), *b = histogram_of(y, SAMPLES), *c = histogram_of(x, SAMPLES);
    fq_histogram_merge(a, b);
    fq_histogram_add(c, y, 1, SAMPLES, SAMPLES);
    ck_assert_double_eq_tol(fq_histogram_total(a), 2 * SAMPLES, 1e-6);
    ck_assert(a->min == c->min && a->max == c->max);
    const char *const methods[] = {"int8 tensor static:percentile:99", "int8 asym tensor static:percentile:90"};
    for (int i = 0; i < 2; i++) {
        double min, max, low, high;
        fq_spec s = spec_of(methods[i]);
        fq_histogram_range(a, &s, &min, &max);
        fq_histogram_range(c, &s, &low, &high);
        ck_assert_double_eq_tol(max, high, 2 * a->top / FQ_BINS);
        ck_assert_double_eq_tol(min, low, 2 * a->top / FQ_BINS);
    }
    fq_histogram none = {0};
    fq_histogram_merge(&none, a);
    fq_histogram_merge(a, &(fq_histogram){0});
    ck_assert(none.top == a->top && fabs(fq_histogram_total(&none) - fq_histogram_total(a)) < 1e-6);
    free(x);
    free(y);
    free(a);
    free(b);
    free(c);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ranges");
    TCase *tc = tcase_create("starts");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, absmax_starts_are_the_stated_ones);
    LOOP(tc, searched_starts_have_less_error_than_absmax, starts);
    tcase_add_test(tc, admm_of_weights_ends_where_no_scale_is_better);
    suite_add_tcase(s, tc);
    tc = tcase_create("histograms");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, percentile_is_that_of_the_sorted_values, 0, DATA_COUNT);
    LOOP(tc, mse_range_is_as_good_as_searching_the_data, searched);
    LOOP(tc, kl_range_is_the_least_of_all_candidates, kl_cases);
    tcase_add_test(tc, zeros_do_not_move_a_kl_range);
    LOOP(tc, admm_alternates_codes_and_scale, admm_cases);
    tcase_add_test(tc, histogram_grows_without_losing_a_value);
    tcase_add_test(tc, merged_histograms_hold_both);
    suite_add_tcase(s, tc);
    return run_suite(s);
}

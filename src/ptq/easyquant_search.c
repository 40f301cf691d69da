/* easyquant_search.c - scales of one input and of what reads it, for the cosine of the outputs (EasyQuant, Wu et al. 2020):
 *   y = x w',  y^ = decode(encode(x^; a S_x)) decode(encode(w; b S_w))',  S from the largest value (weights: as they stand)
 * Held in turn: b by rows of w, one row after the other each the best of CANDIDATES in 0.5 .. 2 for the cosine of all of the weight's outputs
 * (one b where one scale is of the tensor), then a for the cosine of the outputs of all that reads x; until neither moves, at most ROUNDS
 * times. Cosines of single rows would not see that a row shrinks beside the others. A factor of a row multiplies all its groups.
 */
#include "ptq/easyquant.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 100, ROUNDS = 3 };

static double candidate(int i)
{
    return 0.5 + 1.5 * i / (CANDIDATES - 1);
}
enum { ONE = (CANDIDATES - 1) / 3 }; /* the candidate that is 1 */

/* Sums for cosines: of y y^ and of y^ y^ (that of y y stays). */
typedef struct {
    double dot, norm;
} cosine;

static double value_of(cosine c)
{
    return c.norm > 0 ? c.dot / sqrt(c.norm) : -INFINITY;
}

/* A weight under search. */
typedef struct {
    pt_scaled of;
    real *scale, *y, *w, *out; /* S_w [n_scales]; y [n, N]; decoded weights [N, K / groups]; y^ [n, N] */
    int32_t *zero;
    int *chosen; /* [N] b, as a candidate */
} reader;

/* One input with all that reads it. */
typedef struct {
    fq_site *input;
    int64_t n, K;        /* rows of samples */
    const real *x, *raw; /* [n, K] of the float layers, of the quantized ones */
    real *q;             /* [n, K] x^ through its site */
    real *start;         /* S_x [n_scales] */
    int chosen;          /* a, as a candidate */
    reader reader[PT_SCALED];
    int readers;
} searched;

static bool is_coded(const fq_site *s)
{
    return s->spec.grid.bits != 0 && s->start != NULL;
}

static bool one_factor(const fq_site *w)
{
    return w->spec.grid.grain == KN_TENSOR || w->spec.grid.grain == KN_BLOCK;
}

/* y [n, N] <- x w', each group of rows with its own columns of x. */
static void multiply(real *y, const real *x, const real *w, const reader *r, int64_t n)
{
    const int64_t N = r->of.site->rows, K = r->of.site->cols, G = r->of.groups;
    if (G == 1) {
        kn_product_nt(KN_FP32, y, x, w, n, N, K, 0);
        return;
    }
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < N; i++) {
            const real *a = x + (m * G + i / (N / G)) * K, *b = w + i * K;
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)a[k] * (double)b[k];
            y[m * N + i] = (real)sum;
        }
}

/* w <- decode(encode(latent; b S_w)), the codes' scales are those; b candidate k for all rows, or k < 0: as chosen. */
static void weights_through(const reader *r, kn_codes *c, int k)
{
    const fq_site *s = r->of.site;
    const int64_t each = one_factor(s) ? s->n_scales : s->n_scales / r->of.site->rows;
    for (int64_t i = 0; i < s->n_scales; i++) {
        const double b = candidate(k >= 0 ? k : r->chosen[one_factor(s) ? 0 : i / each]);
        c->scale[i] = kn_store(&s->spec.grid, (real)(b * (double)r->scale[i]));
        if (c->zero)
            c->zero[i] = r->zero[i];
    }
    kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
    kn_encode_with(c, r->of.w);
    kn_decode(r->w, c, 0, c->rows);
}

static status input_through(const searched *e, int k)
{
    fq_site *s = e->input;
    kn_codes c;
    memcpy(e->q, e->raw, (size_t)(e->n * e->K) * sizeof *e->q);
    if (!is_coded(s))
        return NB_OK;
    TRY(kn_codes_new(&c, &s->spec.grid, e->n, e->K));
    for (int64_t i = 0; i < s->n_scales; i++)
        s->start[i] = (real)(candidate(k) * (double)e->start[i]);
    fq_encode_activation(s, &c, e->q, 0, e->n);
    kn_decode(e->q, &c, 0, e->n);
    kn_codes_free(&c);
    return NB_OK;
}

/* sums [N] of the columns of y and out; [0] takes all where `whole`. */
static void compare(cosine *sum, const reader *r, int64_t n, bool whole)
{
    const int64_t N = r->of.site->rows;
    memset(sum, 0, (size_t)N * sizeof *sum);
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < N; i++) {
            const double y = (double)r->y[m * N + i], z = (double)r->out[m * N + i];
            cosine *c = &sum[whole ? 0 : i];
            c->dot += y * z;
            c->norm += z * z;
        }
}

/* sum [CANDIDATES][N] of one weight's outputs under each candidate; [.][0] takes all where it has one factor. */
static status try_weights(cosine *sum, const searched *e, const reader *r)
{
    const int64_t N = r->of.site->rows;
    kn_codes c;
    TRY(kn_codes_new(&c, &r->of.site->spec.grid, N, r->of.site->cols));
    for (int k = 0; k < CANDIDATES; k++) {
        weights_through(r, &c, k);
        multiply(r->out, e->q, r->w, r, e->n);
        compare(sum + k * N, r, e->n, one_factor(r->of.site));
    }
    kn_codes_free(&c);
    return NB_OK;
}

/* The best factor of one row after the other, the others as they stand; *moved where one is another than before. */
static void choose(reader *r, const cosine *sum, int64_t rows, bool *moved)
{
    const int64_t N = r->of.site->rows;
    cosine all = {0};
    for (int64_t i = 0; i < rows; i++) {
        all.dot += sum[r->chosen[i] * N + i].dot;
        all.norm += sum[r->chosen[i] * N + i].norm;
    }
    for (int64_t i = 0; i < rows; i++) {
        const cosine own = sum[r->chosen[i] * N + i], others = {all.dot - own.dot, all.norm - own.norm};
        cosine best = all;
        for (int k = 0; k < CANDIDATES; k++) {
            const cosine c = {others.dot + sum[k * N + i].dot, others.norm + sum[k * N + i].norm};
            if (value_of(c) > value_of(best)) {
                best = c;
                r->chosen[i] = k;
                *moved = true;
            }
        }
        all = best;
    }
}

static status search_weights(const searched *e, reader *r, bool *moved)
{
    const int64_t N = r->of.site->rows;
    kn_codes c;
    cosine *sum = nb_alloc((size_t)N, CANDIDATES * sizeof *sum);
    status s = sum ? try_weights(sum, e, r) : NB_NOMEM;
    if (s == NB_OK)
        choose(r, sum, one_factor(r->of.site) ? 1 : N, moved);
    free(sum);
    TRY(s);
    TRY(kn_codes_new(&c, &r->of.site->spec.grid, N, r->of.site->cols));
    weights_through(r, &c, -1);
    kn_codes_free(&c);
    return NB_OK;
}

static status search_input(searched *e, bool *moved)
{
    double best = -INFINITY;
    int found = e->chosen;
    int64_t most = 0;
    for (int k = 0; k < e->readers; k++)
        most = e->reader[k].of.site->rows > most ? e->reader[k].of.site->rows : most;
    cosine *sum = nb_alloc((size_t)most, sizeof *sum);
    status s = sum ? NB_OK : NB_NOMEM;
    for (int i = 0; s == NB_OK && i < CANDIDATES; i++) {
        cosine all = {0};
        s = input_through(e, i);
        for (int k = 0; k < e->readers && s == NB_OK; k++) {
            const reader *r = &e->reader[k];
            multiply(r->out, e->q, r->w, r, e->n);
            compare(sum, r, e->n, true);
            all.dot += sum[0].dot;
            all.norm += sum[0].norm;
        }
        if (s == NB_OK && value_of(all) > best) {
            best = value_of(all);
            found = i;
        }
    }
    *moved = *moved || found != e->chosen;
    e->chosen = found;
    free(sum);
    return s == NB_OK ? input_through(e, e->chosen) : s;
}

static status search(searched *e)
{
    bool moved = true;
    for (int round = 0; round < ROUNDS && moved; round++) {
        moved = false;
        for (int k = 0; k < e->readers; k++)
            TRY(search_weights(e, &e->reader[k], &moved));
        if (is_coded(e->input))
            TRY(search_input(e, &moved));
    }
    return NB_OK;
}

/* ---- one input ------------------------------------------------------------------------------ */

static void end(searched *e)
{
    for (int k = 0; k < e->readers; k++) {
        reader *r = &e->reader[k];
        real *const p[] = {r->scale, r->y, r->w, r->out};
        for (int i = 0; i < 4; i++)
            free(p[i]);
        free(r->zero);
        free(r->chosen);
    }
    free(e->q);
    free(e->start);
}

static status open_reader(const searched *e, reader *r, const pt_scaled *of)
{
    const fq_site *s = of->site;
    const size_t N = (size_t)s->rows, n = (size_t)e->n;
    *r = (reader){.of = *of,
                  .scale = nb_alloc((size_t)s->n_scales, sizeof *r->scale),
                  .zero = nb_alloc_zeroed((size_t)s->n_scales, sizeof *r->zero),
                  .y = nb_alloc(n, N * sizeof *r->y),
                  .out = nb_alloc(n, N * sizeof *r->out),
                  .w = nb_alloc(N, (size_t)s->cols * sizeof *r->w),
                  .chosen = nb_alloc(N, sizeof *r->chosen)};
    if (!r->scale || !r->zero || !r->y || !r->out || !r->w || !r->chosen)
        return NB_NOMEM;
    for (size_t i = 0; i < N; i++)
        r->chosen[i] = ONE;
    fq_site_ranges(s, r->scale, r->zero);
    multiply(r->y, e->x, of->w, r, e->n);
    return NB_OK;
}

static status begin(searched *e, const pt_scaled *of, int readers)
{
    fq_site *s = e->input;
    e->q = nb_alloc((size_t)e->n, (size_t)e->K * sizeof *e->q);
    e->start = nb_alloc(is_coded(s) ? (size_t)s->n_scales : 1, sizeof *e->start);
    if (!e->q || !e->start)
        return NB_NOMEM;
    if (is_coded(s))
        memcpy(e->start, s->start, (size_t)s->n_scales * sizeof *s->start);
    for (int k = 0; k < readers; k++)
        if (is_coded(of[k].site))
            TRY(open_reader(e, &e->reader[e->readers++], &of[k]));
    return input_through(e, ONE);
}

/* The scales that were found, as the model's. */
static status keep(const searched *e)
{
    for (int k = 0; k < e->readers; k++) {
        const reader *r = &e->reader[k];
        kn_codes c;
        TRY(kn_codes_new(&c, &r->of.site->spec.grid, r->of.site->rows, r->of.site->cols));
        weights_through(r, &c, -1);
        fq_site_set(r->of.site, c.scale, c.zero);
        kn_codes_free(&c);
    }
    for (int64_t i = 0; is_coded(e->input) && i < e->input->n_scales; i++)
        e->input->start[i] = kn_store(&e->input->spec.grid, (real)(candidate(e->chosen) * (double)e->start[i]));
    return NB_OK;
}

status pt_easyquant(fq_site *input, const real *x, const real *raw, int64_t n, int64_t K, const pt_scaled *of,
                    int readers)
{
    searched e = {.input = input, .n = n, .K = K, .x = x, .raw = raw, .chosen = ONE};
    status s = begin(&e, of, readers);
    if (s == NB_OK && e.readers && n > 0)
        s = search(&e);
    if (s == NB_OK && e.readers && n > 0)
        s = keep(&e);
    end(&e);
    return s;
}

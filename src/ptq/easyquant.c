/* easyquant.c - scales for the cosine of a layer's output (EasyQuant, Wu et al. 2020), input by input of each block:
 *   y = x w',  y^ = decode(encode(x^; a S_x)) decode(encode(w; b S_w))',  S from the largest value (weights: as they stand)
 * Held in turn: b by rows of w, one row after the other each the best of CANDIDATES in 0.5 .. 2 for the cosine of all of the linear's outputs
 * (one b where one scale is of the tensor), then a for the cosine of the outputs of all that reads x; until neither moves, at most ROUNDS
 * times. Cosines of single rows would not see that a row shrinks beside the others. A factor of a row multiplies
 * all its groups. x comes from the float blocks before, x^ from the quantized ones, on 64 to 256 rows, fewer of a large model; within a block
 * x^ is as it comes with the scales that the search starts from.
 */
#include "ptq/scaling.h"
#include "ptq/static.h"
#include "ptq/walk.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FEW_ROWS = 64, MANY_ROWS = 256, CANDIDATES = 100, ROUNDS = 3, SAMPLES = 50 };

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

/* A linear under search. */
typedef struct {
    ly_linear *l;
    real *scale, *y, *w, *out; /* S_w [n_scales]; y [n, N]; decoded weights [N, K]; y^ [n, N] */
    int32_t *zero;
    int *chosen;               /* [N] b, as a candidate */
} reader;

/* One input with all that reads it. */
typedef struct {
    fq_site *input;
    int64_t n, K; /* rows of samples */
    const real *x, *raw;   /* [n, K] of the float blocks, of the quantized ones */
    real *q;               /* [n, K] x^ through its site */
    real *start;           /* S_x [n_scales] */
    int chosen;            /* a, as a candidate */
    reader reader[3];
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

/* w <- decode(encode(latent; b S_w)), the codes' scales are those; b candidate k for all rows, or k < 0: as chosen. */
static void weights_through(const reader *r, kn_codes *c, int k)
{
    const fq_site *s = r->l->w_site;
    const int64_t each = one_factor(s) ? s->n_scales : s->n_scales / r->l->out;
    for (int64_t i = 0; i < s->n_scales; i++) {
        const double b = candidate(k >= 0 ? k : r->chosen[one_factor(s) ? 0 : i / each]);
        c->scale[i] = kn_store(&s->spec.grid, (real)(b * (double)r->scale[i]));
        if (c->zero)
            c->zero[i] = r->zero[i];
    }
    kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
    kn_encode_with(c, r->l->w->x);
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
    const int64_t N = r->l->out;
    memset(sum, 0, (size_t)N * sizeof *sum);
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < N; i++) {
            const double y = (double)r->y[m * N + i], z = (double)r->out[m * N + i];
            cosine *c = &sum[whole ? 0 : i];
            c->dot += y * z;
            c->norm += z * z;
        }
}

/* sum [CANDIDATES][N] of one linear's outputs under each candidate; [.][0] takes all where it has one factor. */
static status try_weights(cosine *sum, const searched *e, const reader *r)
{
    const int64_t N = r->l->out;
    kn_codes c;
    TRY(kn_codes_new(&c, &r->l->w_site->spec.grid, N, e->K));
    for (int k = 0; k < CANDIDATES; k++) {
        weights_through(r, &c, k);
        kn_product_nt(KN_FP32, r->out, e->q, r->w, e->n, N, e->K, 0);
        compare(sum + k * N, r, e->n, one_factor(r->l->w_site));
    }
    kn_codes_free(&c);
    return NB_OK;
}

/* The best factor of one row after the other, the others as they stand; *moved where one is another than before. */
static void choose(reader *r, const cosine *sum, int64_t rows, bool *moved)
{
    const int64_t N = r->l->out;
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
    const int64_t N = r->l->out;
    kn_codes c;
    cosine *sum = nb_alloc((size_t)N, CANDIDATES * sizeof *sum);
    status s = sum ? try_weights(sum, e, r) : NB_NOMEM;
    if (s == NB_OK)
        choose(r, sum, one_factor(r->l->w_site) ? 1 : N, moved);
    free(sum);
    TRY(s);
    TRY(kn_codes_new(&c, &r->l->w_site->spec.grid, N, e->K));
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
        most = e->reader[k].l->out > most ? e->reader[k].l->out : most;
    cosine *sum = nb_alloc((size_t)most, sizeof *sum);
    status s = sum ? NB_OK : NB_NOMEM;
    for (int i = 0; s == NB_OK && i < CANDIDATES; i++) {
        cosine all = {0};
        s = input_through(e, i);
        for (int k = 0; k < e->readers && s == NB_OK; k++) {
            const reader *r = &e->reader[k];
            kn_product_nt(KN_FP32, r->out, e->q, r->w, e->n, r->l->out, e->K, 0);
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

static status open_reader(const searched *e, reader *r, ly_linear *l)
{
    const fq_site *s = l->w_site;
    const size_t N = (size_t)l->out, n = (size_t)e->n;
    *r = (reader){.l = l,
                  .scale = nb_alloc((size_t)s->n_scales, sizeof *r->scale),
                  .zero = nb_alloc_zeroed((size_t)s->n_scales, sizeof *r->zero),
                  .y = nb_alloc(n, N * sizeof *r->y),
                  .out = nb_alloc(n, N * sizeof *r->out),
                  .w = nb_alloc(N, (size_t)e->K * sizeof *r->w),
                  .chosen = nb_alloc(N, sizeof *r->chosen)};
    if (!r->scale || !r->zero || !r->y || !r->out || !r->w || !r->chosen)
        return NB_NOMEM;
    for (size_t i = 0; i < N; i++)
        r->chosen[i] = ONE;
    fq_site_ranges(s, r->scale, r->zero);
    kn_product_nt(KN_FP32, r->y, e->x, l->w->x, e->n, l->out, e->K, 0);
    return NB_OK;
}

static status begin(searched *e, const pt_pair *p, const pt_input *x, const pt_input *raw)
{
    fq_site *s = p->input;
    *e = (searched){.input = s, .n = x->sampled < raw->sampled ? x->sampled : raw->sampled, .K = x->C, .x = x->sample, .raw = raw->sample, .chosen = ONE};
    e->q = nb_alloc((size_t)e->n, (size_t)e->K * sizeof *e->q);
    e->start = nb_alloc(is_coded(s) ? (size_t)s->n_scales : 1, sizeof *e->start);
    if (!e->q || !e->start)
        return NB_NOMEM;
    if (is_coded(s))
        memcpy(e->start, s->start, (size_t)s->n_scales * sizeof *s->start);
    for (int k = 0; k < p->n; k++)
        if (is_coded(p->reader[k]->w_site))
            TRY(open_reader(e, &e->reader[e->readers++], p->reader[k]));
    return input_through(e, ONE);
}

/* The scales that were found, as the model's. */
static status keep(const searched *e)
{
    for (int k = 0; k < e->readers; k++) {
        const reader *r = &e->reader[k];
        kn_codes c;
        TRY(kn_codes_new(&c, &r->l->w_site->spec.grid, r->l->out, e->K));
        weights_through(r, &c, -1);
        fq_site_set(r->l->w_site, c.scale, c.zero);
        kn_codes_free(&c);
    }
    for (int64_t i = 0; is_coded(e->input) && i < e->input->n_scales; i++)
        e->input->start[i] = kn_store(&e->input->spec.grid, (real)(candidate(e->chosen) * (double)e->start[i]));
    return NB_OK;
}

static status do_input(const pt_pair *p, const pt_input *x, const pt_input *raw)
{
    searched e;
    status s = begin(&e, p, x, raw);
    if (s == NB_OK && e.readers && e.n > 0)
        s = search(&e);
    if (s == NB_OK && e.readers && e.n > 0)
        s = keep(&e);
    end(&e);
    return s;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static int64_t rows_of(const md_config *c)
{
    const int64_t by_size = ((int64_t)1 << 33) / (md_config_params(c) + 1);
    return by_size < FEW_ROWS ? FEW_ROWS : by_size > MANY_ROWS ? MANY_ROWS : by_size;
}

static status do_block(pt_walk *floats, pt_walk *coded)
{
    const int64_t rows = rows_of(&coded->m->config);
    pt_pair pair[PT_PAIRS];
    pt_input x[PT_PAIRS] = {0}, raw[PT_PAIRS] = {0};
    status s = NB_OK;
    pt_readers(pair, coded->m, coded->layer);
    for (int i = 0; i < PT_PAIRS && s == NB_OK; i++) {
        const int64_t tokens = coded->windows * coded->length;
        s = pt_input_new(&x[i], pair[i].input, false, rows, tokens, floats->tape.precision);
        if (s == NB_OK)
            s = pt_input_new(&raw[i], pair[i].input, false, rows, tokens, floats->tape.precision);
    }
    if (s == NB_OK)
        s = pt_walk_block(floats, floats->x, (ag_tap){pt_gather, &(pt_inputs){x, PT_PAIRS}});
    if (s == NB_OK)
        s = pt_walk_watch(coded, (ag_tap){pt_gather, &(pt_inputs){raw, PT_PAIRS}}, pair[PT_PAIRS - 1].input->name);
    for (int i = 0; i < PT_PAIRS && s == NB_OK; i++)
        s = do_input(&pair[i], &x[i], &raw[i]);
    coded->m->params.version++;
    for (int i = 0; i < PT_PAIRS; i++) {
        pt_input_free(&x[i]);
        pt_input_free(&raw[i]);
    }
    if (s == NB_OK)
        floats->layer++;
    return s;
}

status pt_run_easyquant(md_model *m, const pt_options *o)
{
    pt_walk floats = {0}, coded = {0};
    pt_options own = *o;
    if (o->calib_parameter != 0)
        return nb_fail(NB_USAGE, "--calib-parameter: easyquant starts from the largest values and takes none");
    own.calibration.samples = o->calibration.samples > 0 ? o->calibration.samples : SAMPLES;
    own.calibration.progress = NULL;
    TRY(pt_make_static(m, FQ_MINMAX, &own));
    own.calibration.progress = o->calibration.progress;
    status s = pt_walk_new(&floats, m, o->data, &own.calibration);
    if (s == NB_OK)
        s = pt_walk_new(&coded, m, o->data, &own.calibration);
    floats.progress = NULL;
    coded.weights = coded.activations = true;
    while (s == NB_OK && coded.layer < m->config.layers) {
        s = do_block(&floats, &coded);
        if (s == NB_OK)
            s = pt_walk_next(&coded);
    }
    pt_walk_free(&floats);
    pt_walk_free(&coded);
    return s;
}

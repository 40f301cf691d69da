/* test_gptq_client.c - GPTQ beside the paper's code path in NumPy (readers/gptq_reference.py), on the same weight and Hessian: at least 999 of 1000 codes
 * are the same, and a row parts from theirs first at a number in the middle of two codes, where our floats and their doubles round apart. (A scale found on
 * the way may round apart too: with binary16 scales that moves a code of 127 by 0.06, so that 8 bits are compared with float scales.)
 */
#include "clients.h"
#include "ptq/gptq.h"
#include "ptq/walk.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

#define OK(e)   ck_assert_msg((e) == NB_OK, "%s: %s", #e, nb_fail_message())
#define STORIES "../shared/data/stories260k/"
#define TEXT    "../shared/data/reference/stories100.txt"

typedef struct {
    int64_t rows, cols;
    real *w;
    pt_hessian h;
} layer;

/* Channels that go together, one in 23 much larger; weights with a heavy tail. Columns are whole groups of no size that is tried. */
static void made_layer(layer *l)
{
    enum { N = 96, K = 328, SAMPLES = 700 };
    real *x = malloc((size_t)(SAMPLES * K) * sizeof *x);
    *l = (layer){.rows = N, .cols = K, .w = malloc((size_t)(N * K) * sizeof *l->w)};
    for (int64_t m = 0; m < SAMPLES; m++) {
        const double common = nb_random_normal(1, 0, (uint64_t)m);
        for (int64_t k = 0; k < K; k++)
            x[m * K + k] = (real)((k % 23 == 5 ? 12 : 1 + (double)(k % 7)) * (0.6 * nb_random_normal(1, 1 + (uint64_t)k, (uint64_t)m) + common));
    }
    for (int64_t i = 0; i < N * K; i++)
        l->w[i] = (real)(0.02 * nb_random_normal(2, 1, (uint64_t)i) * (i % 31 == 4 ? 4 : 1));
    OK(pt_hessian_new(&l->h, K));
    kn_gram(KN_FP32, l->h.H, x, SAMPLES, K, 0);
    for (int64_t i = 0; i < K * K; i++)
        l->h.H[i] /= SAMPLES;
    free(x);
}

typedef struct {
    layer *l;
    int64_t seen;
} watch;

static void gather(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    watch *w = ctx;
    (void)in;
    if (strcmp(site, "layers.2.mlp.down.input") != 0)
        return;
    kn_gram(KN_FP32, w->l->h.H, ag_value(out), ag_rows(out), w->l->cols, 1);
    w->seen += ag_rows(out);
}

/* `down` of stories260K's third block, on stories. */
static void real_layer(layer *l)
{
    md_model m;
    fm_tokens data;
    OK(md_open(&m, STORIES "stories260K.bin", &(md_open_options){.tokenizer = STORIES "tok512.bin"}));
    OK(fm_tokens_open(&data, TEXT, &m.tokenizer, FM_SPLIT_LINE));
    const ly_linear *down = &m.block[2].mlp.down;
    watch w = {.l = l};
    *l = (layer){.rows = down->out, .cols = down->in, .w = malloc((size_t)down->w->count * sizeof *l->w)};
    memcpy(l->w, down->w->x, (size_t)down->w->count * sizeof *l->w);
    OK(pt_hessian_new(&l->h, l->cols));
    OK(kd_watch(&m, &data, &(kd_calibration){.samples = 32, .length = 128}, (ag_tap){gather, &w}));
    ck_assert_int_gt(w.seen, 1000);
    for (int64_t i = 0; i < l->cols * l->cols; i++)
        l->h.H[i] /= (real)w.seen;
    fm_tokens_close(&data);
    md_free(&m);
}

typedef struct {
    const char *spec;
    fq_start ranges;
    bool static_groups, act_order;
} setting;
static const setting settings[] = {
    {"int4 row f32 learned", FQ_START_ABSMAX, false, false},           {"int4 row f32 learned", FQ_START_ABSMAX, false, true},
    {"int4 group:32 f16 learned", FQ_START_ABSMAX, false, false},      {"int4 group:32 f16 learned", FQ_START_ABSMAX, true, false},
    {"int4 group:32 f16 learned", FQ_START_ABSMAX, true, true},        {"int3 asym group:64 f32 learned", FQ_START_ABSMAX, false, false},
    {"int4 asym group:128 f16 learned", FQ_START_ABSMAX, true, true},  {"int2 asym row f32 learned", FQ_START_ABSMAX, false, true},
    {"int8 group:32 f32 learned", FQ_START_ABSMAX, false, false},      {"int4 group:32 f16 learned", FQ_START_MSE, false, false},
    {"int4 group:32 f16 learned", FQ_START_MSE, true, true},           {"int3 row f32 learned", FQ_START_MSE, false, false}};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

typedef struct {
    int32_t *q, *nearest;
    double *cost, *nearest_cost, *margin;
} theirs;

static void write_question(const char *path, const layer *l, const setting *how, const kn_codes *c)
{
    const kn_grid *g = &c->grid;
    const bool given = how->ranges == FQ_START_MSE;
    const int32_t head[] = {(int32_t)l->rows, (int32_t)l->cols, g->group, g->bits, g->has_zero, g->scale == KN_SCALE_F16, how->act_order, how->static_groups, given};
    int32_t *zero = calloc((size_t)c->n_scales, sizeof *zero);
    FILE *f = fopen(path, "wb");
    const size_t n = (size_t)(l->rows * l->cols), h = (size_t)(l->cols * l->cols), s = (size_t)c->n_scales;
    ck_assert(f && zero && fwrite(head, sizeof head, 1, f) == 1 && fwrite(l->w, sizeof *l->w, n, f) == n && fwrite(l->h.H, sizeof *l->h.H, h, f) == h);
    if (given)
        ck_assert(fwrite(c->scale, sizeof *c->scale, s, f) == s && fwrite(c->zero ? c->zero : zero, sizeof *zero, s, f) == s);
    ck_assert_int_eq(fclose(f), 0);
    free(zero);
}

/* The answer in one block of memory, which q begins. */
static void ask(theirs *t, const char *python, const layer *l, const setting *how, const kn_codes *c)
{
    const size_t n = (size_t)(l->rows * l->cols), rows = (size_t)l->rows, bytes = 2 * n * 4 + (2 * rows + n) * 8;
    char *memory = malloc(bytes);
    write_question(scratch_path("in"), l, how, c);
    ck_assert_int_eq(run("OPENBLAS_NUM_THREADS=1 '%s' tests/readers/gptq_reference.py '%s' '%s' 2>'%s' || { cat '%s'; false; }", python, scratch_path("in"), scratch_path("out"),
                         scratch_path("log"), scratch_path("log")), 0);
    FILE *f = fopen(scratch_path("out"), "rb");
    ck_assert(f && memory && fread(memory, bytes, 1, f) == 1 && fgetc(f) == EOF && !fclose(f));
    *t = (theirs){.q = (int32_t *)(void *)memory, .nearest = (int32_t *)(void *)(memory + 4 * n), .cost = (double *)(void *)(memory + 8 * n)};
    t->nearest_cost = t->cost + rows;
    t->margin = t->cost + 2 * rows;
}

/* How many codes of the row are another's; *first: the first of them in the order of h. */
static int64_t differences(int64_t *first, const kn_codes *c, int64_t row, const int32_t *q, const pt_hessian *h)
{
    int64_t n = 0;
    for (int64_t i = c->cols - 1; i >= 0; i--) {
        const int64_t k = h->order[i];
        if (c->q[row * c->ld + k] == q[row * c->cols + k])
            continue;
        *first = k;
        n++;
    }
    return n;
}

START_TEST(codes_are_those_of_the_papers_code)
{
    const setting *how = &settings[_i];
    const char *python = client("NIBBLE_PYTHON");
    const bool is_real = _i % 3 == 2 && have(STORIES "stories260K.bin") && have(TEXT);
    layer l;
    fq_spec spec;
    kn_codes c;
    theirs t;
    if (!python)
        return;
    scratch_begin();
    if (is_real)
        real_layer(&l);
    else
        made_layer(&l);
    OK(fq_spec_parse(&spec, how->spec));
    OK(kn_codes_new(&c, &spec.grid, l.rows, l.cols));
    OK(pt_hessian_factor(&l.h, 0.01, how->act_order));
    OK(pt_gptq(&c, &spec, l.w, &l.h, &(pt_gptq_options){.ranges = how->ranges, .static_groups = how->static_groups}, NULL));
    ask(&t, python, &l, how, &c);
    int64_t different = 0, rounded = 0;
    for (int64_t row = 0; row < l.rows; row++) {
        int64_t k = 0, n = differences(&k, &c, row, t.q, &l.h);
        const bool is_rounded = n && t.nearest_cost[row] < t.cost[row] && differences(&k, &c, row, t.nearest, &l.h) == 0;
        rounded += is_rounded;
        if (is_rounded || !n)
            continue;
        different += n;
        ck_assert_msg(t.margin[row * l.cols + k] < 1e-3, "%s: row %lld, column %lld: %d, theirs %d, %g from a tie", how->spec, (long long)row, (long long)k,
                      c.q[row * c.ld + k], t.q[row * l.cols + k], t.margin[row * l.cols + k]);
    }
    printf("%s%s%s: %lld of %lld codes differ, %lld rows stay rounded\n", how->spec, how->act_order ? ", act-order" : "", is_real ? " (stories260K)" : "",
           (long long)different, (long long)(l.rows * l.cols), (long long)rounded);
    ck_assert_int_le(1000 * different, l.rows * l.cols);
    ck_assert_int_le(10 * rounded, l.rows);
    free(t.q);
    kn_codes_free(&c);
    pt_hessian_free(&l.h);
    free(l.w);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gptq");
    TCase *c = add_case(s, "gptq", codes_are_those_of_the_papers_code, N_SETTINGS);
    tcase_set_tags(c, "client");
    return run_suite(s);
}

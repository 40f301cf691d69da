/* test_walk.c - layer by layer is the whole forward cut up, with the same sites under the tap: bit for bit in codes; with float inputs as near as a library's
 * product of 20 rows is to these rows of one of 180. */
#include "ptq/walk.h"
#include "runs_made.h"

enum { TOKENS = 640, LENGTH = 20 /* rows of 32 tokens: windows of 20, the rest of a row is left out */ };

typedef struct {
    int n;
    char last[64];
    double sum;
} seen;

static void note(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    seen *s = ctx;
    const real *x = ag_value(in);
    (void)out;
    s->n++;
    snprintf(s->last, sizeof s->last, "%s", site);
    for (int64_t i = 0; i < ag_count(in); i++)
        s->sum += (double)x[i];
}

static void made(md_model *m, fm_tokens *data, const char *recipe)
{
    scratch_begin();
    open_model(m, recipe);
    generate(m, scratch_path("data.h5"), TOKENS, 3, KD_START_HYBRID);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
}

static void unmade(md_model *m, fm_tokens *data)
{
    fm_tokens_close(data);
    md_free(m);
    scratch_end();
}

/* What comes out of the last block, by md_forward. */
static float *whole(md_model *m, const pt_walk *w, bool weights, bool activations)
{
    const int64_t n = w->windows * w->length * m->config.dim;
    ag_tensor *hidden[8];
    ag_tape t = {.no_grad = true, .weights_off = !weights, .activations_off = !activations};
    md_forward(&t, m, &(md_input){.B = w->windows, .T = w->length, .ids = w->ids, .hidden = hidden});
    OK(ag_status(&t));
    float *y = malloc((size_t)n * sizeof *y);
    memcpy(y, ag_value(hidden[m->config.layers - 1]), (size_t)n * sizeof *y);
    ag_tape_free(&t);
    return y;
}

START_TEST(blocks_in_order_are_the_forward)
{
    md_model m;
    fm_tokens data;
    pt_walk w;
    const bool weights = _i & 1, activations = _i & 2;
    made(&m, &data, "q8_0");
    const kd_calibration c = {.samples = 9, .length = LENGTH, .seed = 2};
    OK(pt_walk_new(&w, &m, &data, &c));
    ck_assert(w.windows == 9 && w.length == LENGTH && w.layer == 0);
    w.weights = weights;
    w.activations = activations;
    w.at_once = 4; /* 4, 4 and 1 */
    const size_t bytes = (size_t)(w.windows * w.length * m.config.dim) * sizeof *w.x;
    for (int64_t l = 0; l < m.config.layers; l++) {
        real *before = malloc(bytes), *y = malloc(bytes);
        memcpy(before, w.x, bytes);
        OK(pt_walk_block(&w, y, (ag_tap){0}));
        ck_assert_mem_eq(before, w.x, bytes);
        OK(pt_walk_next(&w));
        ck_assert_mem_eq(y, w.x, bytes);
        free(before);
        free(y);
    }
    ck_assert_int_eq(w.layer, m.config.layers);
    if (weights) { /* the embedding is in codes always, the whole forward's only where weights are */
        float *y = whole(&m, &w, weights, activations);
        for (int64_t i = 0; i < (int64_t)(bytes / sizeof *y); i++)
            ck_assert_float_eq_tol(y[i], w.x[i], 1e-5f * (1 + fabsf(y[i])));
        if (activations)
            ck_assert_mem_eq(y, w.x, bytes);
        free(y);
    }
    seen last = {0};
    OK(pt_walk_watch(&w, (ag_tap){note, &last}, NULL));
    ck_assert_str_eq(last.last, "embed.weight"); /* the head's */
    OK(pt_walk_next(&w));
    ck_assert_int_eq(pt_walk_next(&w), NB_USAGE);
    pt_walk_free(&w);
    unmade(&m, &data);
}
END_TEST

START_TEST(a_tap_sees_the_sites_up_to_where_the_block_is_left)
{
    md_model m;
    fm_tokens data;
    pt_walk w;
    made(&m, &data, "float");
    const kd_calibration c = {.samples = 8, .length = LENGTH, .seed = 2};
    OK(pt_walk_new(&w, &m, &data, &c));
    OK(pt_walk_next(&w));
    seen all = {0}, some = {0}, watched = {0};
    OK(pt_walk_watch(&w, (ag_tap){note, &all}, NULL));
    OK(pt_walk_watch(&w, (ag_tap){note, &some}, "layers.1.attn.out.input"));
    ck_assert_str_eq(all.last, "layers.1.mlp.residual");
    ck_assert_str_eq(some.last, "layers.1.attn.out.input");
    ck_assert_int_lt(some.n, all.n);
    OK(kd_watch(&m, &data, &(kd_calibration){.samples = 8, .length = LENGTH, .seed = 2}, (ag_tap){note, &watched}));
    ck_assert_int_gt(watched.n, all.n);
    pt_walk_free(&w);
    unmade(&m, &data);
}
END_TEST

START_TEST(what_later_blocks_see_is_what_earlier_ones_have_become)
{
    md_model m;
    fm_tokens data;
    pt_walk w, v;
    made(&m, &data, "float");
    const kd_calibration c = {.samples = 4, .length = LENGTH, .seed = 2};
    OK(pt_walk_new(&w, &m, &data, &c));
    OK(pt_walk_new(&v, &m, &data, &c));
    OK(pt_walk_next(&v));
    ag_param *down = m.block[0].mlp.down.w;
    for (int64_t i = 0; i < down->count; i++)
        down->x[i] *= 2;
    m.params.version++;
    OK(pt_walk_next(&w));
    const size_t bytes = (size_t)(w.windows * w.length * m.config.dim) * sizeof *w.x;
    ck_assert(memcmp(w.x, v.x, bytes) != 0);
    pt_walk_free(&w);
    pt_walk_free(&v);
    unmade(&m, &data);
}
END_TEST

START_TEST(what_cannot_be_walked_is_refused)
{
    md_model m;
    fm_tokens data;
    pt_walk w;
    int left = 1;
    const nb_progress progress = {countdown, &left};
    made(&m, &data, "float");
    ck_assert_int_eq(pt_walk_new(&w, &m, NULL, &(kd_calibration){0}), NB_USAGE);
    ck_assert_int_eq(pt_walk_new(&w, &m, &data, &(kd_calibration){.length = 4000}), NB_USAGE);
    ck_assert_ptr_null(w.x);
    OK(pt_walk_new(&w, &m, &data, &(kd_calibration){.samples = 3, .progress = &progress}));
    ck_assert_int_eq(w.length, 32);
    ck_assert_int_eq(pt_walk_next(&w), NB_INTERRUPTED);
    pt_walk_free(&w);
    unmade(&m, &data);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("walk");
    TCase *c = tcase_create("walk");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, blocks_in_order_are_the_forward, 0, 4);
    tcase_add_test(c, a_tap_sees_the_sites_up_to_where_the_block_is_left);
    tcase_add_test(c, what_later_blocks_see_is_what_earlier_ones_have_become);
    tcase_add_test(c, what_cannot_be_walked_is_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}

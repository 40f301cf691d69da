/* test_models_saved.c - models in HDF5: what is saved comes back bit for bit; what is incomplete or lies is refused.
 */
#include "models_made.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

static void same_params(const md_model *a, const md_model *b)
{
    ck_assert_int_eq(a->params.n, b->params.n);
    for (int64_t i = 0; i < a->params.n; i++) {
        const ag_param *p = a->params.p[i], *q = b->params.p[i];
        ck_assert_str_eq(p->name, q->name);
        ck_assert_int_eq(p->count, q->count);
        ck_assert_msg(!memcmp(p->x, q->x, (size_t)p->count * sizeof *p->x), "%s", p->name);
    }
}

static void same_site_states(const md_model *a, const md_model *b, bool weights_too)
{
    ck_assert_int_eq(a->sites.n, b->sites.n);
    for (int64_t i = 0; i < a->sites.n; i++) {
        const int64_t n = fq_site_state(a->sites.s[i], NULL);
        if (n == 0 || (a->sites.s[i]->is_weight && !weights_too))
            continue;
        double *x = calloc((size_t)n, sizeof *x), *y = calloc((size_t)n, sizeof *y);
        ck_assert_int_eq(fq_site_state(a->sites.s[i], x), n);
        ck_assert_int_eq(fq_site_state(b->sites.s[i], y), n);
        ck_assert_msg(!memcmp(x, y, (size_t)n * sizeof *x), "%s", a->sites.s[i]->name);
        free(x);
        free(y);
    }
}

static void same_recipe(const fq_recipe *a, const fq_recipe *b)
{
    char *x = fq_recipe_text(a), *y = fq_recipe_text(b);
    ck_assert_str_eq(a->name, b->name);
    ck_assert_str_eq(x, y);
    free(x);
    free(y);
}

START_TEST(checkpoint_comes_back_bit_for_bit)
{
    md_model m, back;
    scratch_begin();
    made_model(&m, &made_shapes[_i % N_MADE_SHAPES], made_recipes[_i], (uint64_t)_i);
    opened(&back, made_checkpoint(scratch_path("checkpoint.h5"), &m, FM_F32), NULL);
    same_params(&m, &back);
    same_site_states(&m, &back, true);
    same_recipe(&m.recipe, &back.recipe);
    made_compare_models(&m, &back, "checkpoint");
    md_free(&back);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(small_floats_round_once)
{
    static const fm_dtype types[] = {FM_F16, FM_BF16};
    md_model m, back;
    scratch_begin();
    made_model(&m, &made_shapes[0], "w4a8kv8", 5);
    opened(&back, made_checkpoint(scratch_path("checkpoint.h5"), &m, types[_i]), NULL);
    for (int64_t i = 0; i < m.params.n; i++)
        for (int64_t k = 0; k < m.params.p[i]->count; k++) {
            const ag_param *p = m.params.p[i];
            real x = p->x[k], y = back.params.p[i]->x[k];
            real wanted = p->group == AG_SCALE  ? x
                          : types[_i] == FM_F16 ? nb_half_to(nb_half_from(x))
                                                : nb_bf16_to(nb_bf16_from(x));
            if (y != wanted)
                ck_abort_msg("%s[%lld] is %g", p->name, (long long)k, (double)y);
        }
    md_free(&back);
    m.params.p[0]->x[0] = 1e6f;
    fm_h5 f;
    ck_assert(fm_h5_create(&f, scratch_path("big.h5"), "model") == NB_OK);
    ck_assert(md_save_params(&m, &f, types[_i]) == (_i == 0 ? NB_UNSUPPORTED : NB_OK));
    fm_h5_close(&f);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(model_file_is_float_and_takes_any_recipe)
{
    md_model m, back;
    const char *path;
    const md_open_options q8 = {.recipe = "q8_0"};
    scratch_begin();
    made_model(&m, &made_shapes[2], "w4a8kv8", 6);
    ck_assert(md_save_model(&m, path = scratch_path("model.h5"), FM_F32) == NB_OK);
    opened(&back, path, NULL);
    ck_assert(back.recipe.n == 0 && !back.folded);
    for (int64_t i = 0; i < back.params.n; i++) {
        const ag_param *p = back.params.p[i], *q = ag_param_find(&m.params, p->name);
        ck_assert(q && !memcmp(p->x, q->x, (size_t)p->count * sizeof *p->x));
    }
    md_free(&back);
    opened(&back, path, &q8);
    ck_assert_str_eq(back.recipe.name, "q8_0");
    md_free(&back);
    opened(&back, made_checkpoint(scratch_path("checkpoint.h5"), &m, FM_F32),
           &q8); /* latent floats under another recipe */
    ck_assert_str_eq(back.recipe.name, "q8_0");
    md_free(&back);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(folded_file_with_latent_floats_goes_on)
{
    md_model m, folded, train;
    const md_open_options o = {.train = true}, other = {.recipe = "q8_0"};
    scratch_begin();
    made_model(&m, &made_shapes[2], "w4a8kv8", 7);
    const char *both = scratch_path("both.h5"), *codes = scratch_path("codes.h5");
    ck_assert_msg(md_save_folded(&m, both, true) == NB_OK, "%s", nb_fail_message());
    ck_assert(md_save_folded(&m, codes, false) == NB_OK);
    opened(&train, both, &o);
    same_params(&m, &train);
    same_site_states(&m, &train, true);
    made_compare_models(&m, &train, "latent");
    opened(&folded, both, NULL);
    made_compare_models(&m, &folded, "folded");
    ck_assert(folded.embed == NULL && folded.block[0].attn.wq.w == NULL);
    ck_assert(md_save_folded(&folded, scratch_path("again.h5"), true) == NB_USAGE);
    ck_assert(md_save_model(&folded, scratch_path("again.h5"), FM_F32) == NB_USAGE);
    ck_assert_msg(md_save_folded(&folded, scratch_path("again.h5"), false) == NB_OK, "%s", nb_fail_message());
    md_free(&folded);
    opened(&folded, scratch_path("again.h5"), NULL);
    made_compare_models(&m, &folded, "folded twice");
    refused(codes, &o, NB_USAGE, "latent floats");
    refused(codes, &other, NB_USAGE, "is folded by recipe w4a8kv8");
    md_free(&folded);
    md_free(&train);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(static_ranges_travel_with_the_codes)
{
    static const char recipe[] =
        "*.weight int4 row f32 learned\n*.input int8 asym tensor static:minmax\n*.attn.[kv] int8 head f32 learned\n";
    md_model m, back;
    scratch_begin();
    const char *path = scratch_path("static.h5");
    made_model(&m, &made_shapes[0], recipe, 8);
    ck_assert(md_save_folded(&m, path, false) == NB_USAGE);
    ck_assert_msg(strstr(nb_fail_message(), "layers.0.attn.input") != NULL, "%s", nb_fail_message());
    ck_assert(!nb_path_exists(path));
    for (int64_t i = 0; i < m.sites.n; i++) {
        fq_site *s = m.sites.s[i];
        const int64_t n = fq_site_state(s, NULL);
        if (s->is_weight || n == 0)
            continue;
        double *state = calloc((size_t)n, sizeof *state);
        (void)fq_site_state(s, state);
        state[0] = 1; /* started */
        for (int64_t k = 1; k <= s->n_scales; k++)
            state[k] = 0.01 * (double)(k + i);
        ck_assert_msg(fq_site_restore(s, state, n) == NB_OK, "%s", nb_fail_message());
        free(state);
    }
    ck_assert_msg(md_save_folded(&m, path, false) == NB_OK, "%s", nb_fail_message());
    opened(&back, path, NULL);
    same_site_states(&m, &back, false);
    for (int64_t i = 0; i < back.params.n; i++) { /* learned scales of activations are values */
        const ag_param *p = back.params.p[i], *q = ag_param_find(&m.params, p->name);
        ck_assert(q && !memcmp(p->x, q->x, (size_t)p->count * sizeof *p->x));
    }
    md_free(&back);
    md_free(&m);
    scratch_end();
}
END_TEST

/* A file without one of its parts, or with one too many. */
START_TEST(incomplete_checkpoint_is_refused)
{
    md_model m;
    fm_h5 f;
    scratch_begin();
    const char *path = scratch_path("part.h5");
    made_model(&m, &made_shapes[0], "w4a8kv8", 9);
    const char *kept = m.params.p[2]->name;
    char says[128];
    for (int k = 0; k < 3; k++) {
        ck_assert(fm_h5_create(&f, path, "checkpoint") == NB_OK && md_save_header(&m, &f) == NB_OK);
        ag_param *last = m.params.p[m.params.n - 1], *third = m.params.p[2];
        if (k == 0)
            m.params.p[2] = last;
        if (k < 2)
            m.params.n--;
        if (k == 2)
            ck_assert(fm_h5_write(&f, "param/stranger", FM_F32, 1, last->dim, last->x) == NB_OK);
        ck_assert(md_save_params(&m, &f, FM_F32) == NB_OK && fm_h5_commit(&f) == NB_OK);
        m.params.n += k < 2;
        m.params.p[2] = third;
        (void)snprintf(says, sizeof says, "%s", k == 0 ? kept : k == 1 ? last->name : "/param has");
        refused(path, NULL, NB_FORMAT, says);
    }
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(values_that_are_not_finite_are_refused)
{
    md_model m;
    scratch_begin();
    made_model(&m, &made_shapes[0], "float", 10);
    m.params.p[3]->x[1] = (real)NAN;
    ck_assert(md_save_model(&m, scratch_path("nan.h5"), FM_F32) == NB_OK);
    refused(scratch_path("nan.h5"), NULL, NB_FORMAT, m.params.p[3]->name);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(other_files_are_refused_by_name)
{
    scratch_begin();
    const char *text = scratch_write("text.txt", "Once upon a time", 16);
    const char *gguf = scratch_write("a.gguf", "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    const md_open_options recipe = {.recipe = "no such recipe"};
    fm_h5 f;
    const int64_t none = 0;
    refused(text, NULL, NB_FORMAT, "text.txt");
    refused(gguf, NULL, NB_FORMAT, "a.gguf: general.architecture");
    refused(scratch_folder, NULL, NB_FORMAT, "model.safetensors");
    refused(scratch_path("absent"), NULL, NB_IO, "absent");
    ck_assert(fm_h5_create(&f, scratch_path("tokens.h5"), "tokens") == NB_OK);
    ck_assert(fm_h5_write(&f, "ids", FM_U16, 1, &none, NULL) == NB_OK && fm_h5_commit(&f) == NB_OK);
    refused(scratch_path("tokens.h5"), NULL, NB_USAGE, "tokens");
    ck_assert(fm_h5_create(&f, scratch_path("empty.h5"), "folded") == NB_OK && fm_h5_commit(&f) == NB_OK);
    refused(scratch_path("empty.h5"), NULL, NB_FORMAT, "format_version");
    md_model m;
    ck_assert(md_open(&m, text, &recipe) != NB_OK);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("models_saved");
    TCase *c = tcase_create("models_saved");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, checkpoint_comes_back_bit_for_bit, 0, N_MADE_RECIPES);
    tcase_add_loop_test(c, small_floats_round_once, 0, 2);
    tcase_add_test(c, model_file_is_float_and_takes_any_recipe);
    tcase_add_test(c, folded_file_with_latent_floats_goes_on);
    tcase_add_test(c, static_ranges_travel_with_the_codes);
    tcase_add_test(c, incomplete_checkpoint_is_refused);
    tcase_add_test(c, values_that_are_not_finite_are_refused);
    tcase_add_test(c, other_files_are_refused_by_name);
    suite_add_tcase(s, c);
    return run_suite(s);
}

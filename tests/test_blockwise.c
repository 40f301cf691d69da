/* test_blockwise.c - methods that train block by block: the model comes nearer to its floats than rounding does, folding gives the codes
 * that training computed with, and a run that was stopped ends with the same bits.
 */
#include "models_made.h"
#include "ptq/walk.h"
#include "runs_made.h"

enum { TOKENS = 3000, SAMPLES = 60, STEPS = 24 };

typedef struct {
    const char *method, *recipe;
} made_case;
static const made_case cases[] = {
    {"autoround", "*.weight int3 asym group:8 f16 learned\n"},
    {"blockap", "q4_0"},
    {"omniquant", "*.weight int3 row f32 learned\n*.input int4 row dynamic\n"},
    {"adaround", "w3a16"},
    {"autoround", "q4_0"},
    {"autoround", "w3a16"},
    {"autoround", "llmqat-4-8-4"},
    {"blockap", "w2a16"},
    {"blockap", "*.weight int3 asym row f32 learned:lsq\n"},
    {"omniquant", "q4_0"},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void made_data(md_model *m, fm_tokens *data, const char *recipe)
{
    fq_recipe r;
    open_model(m, "float");
    generate(m, scratch_path("data.h5"), TOKENS, 3, KD_START_HYBRID);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
    md_free(m);
    made_recipe(&r, recipe);
    OK(md_build(m, &tiny, &r, MD_UNSET, false));
    fq_recipe_free(&r);
    md_model values;
    open_model(&values, "float");
    for (int64_t i = 0; i < values.params.n; i++) {
        ag_param *p = ag_param_find(&m->params, values.params.p[i]->name);
        memcpy(p->x, values.params.p[i]->x, (size_t)p->count * sizeof *p->x);
    }
    m->params.version++;
    md_free(&values);
}

static pt_options options(fm_tokens *data)
{
    return (pt_options){.data = data,
                        .calibration = {.samples = SAMPLES, .length = 32, .seed = 4},
                        .seed = 4,
                        .block_steps = STEPS};
}

/* Relative error of what the last block gives, over other windows than were trained on. */
static double error_of(md_model *m, const real *wanted)
{
    int32_t ids[8 * 32];
    for (int64_t i = 0; i < 8 * 32; i++)
        ids[i] = (int32_t)(nb_random(31, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
    ag_tensor *hidden[8];
    ag_tape t = {.no_grad = true};
    md_forward(&t, m, &(md_input){.B = 8, .T = 32, .ids = ids, .hidden = hidden});
    OK(ag_status(&t));
    const real *y = ag_value(hidden[m->config.layers - 1]);
    double e = 0, n = 0;
    for (int64_t i = 0; i < 8 * 32 * m->config.dim; i++) {
        e += pow((double)y[i] - (double)wanted[i], 2);
        n += pow((double)wanted[i], 2);
    }
    ag_tape_free(&t);
    return e / n;
}

static real *float_hidden(void)
{
    md_model m;
    int32_t ids[8 * 32];
    ag_tensor *hidden[8];
    ag_tape t = {.no_grad = true};
    open_model(&m, "float");
    for (int64_t i = 0; i < 8 * 32; i++)
        ids[i] = (int32_t)(nb_random(31, 1, (uint64_t)i) % (uint64_t)m.config.vocab);
    md_forward(&t, &m, &(md_input){.B = 8, .T = 32, .ids = ids, .hidden = hidden});
    OK(ag_status(&t));
    const size_t bytes = 8 * 32 * (size_t)m.config.dim * sizeof(real);
    real *y = malloc(bytes);
    memcpy(y, ag_value(hidden[m.config.layers - 1]), bytes);
    ag_tape_free(&t);
    md_free(&m);
    return y;
}

/* The file's codes and those of its latent floats, encoded anew, are those of the model that was trained. */
static void check_folding(md_model *m)
{
    md_model folded, start;
    OK(md_save_folded(m, scratch_path("folded.h5"), true));
    opened(&folded, scratch_path("folded.h5"), NULL);
    opened(&start, scratch_path("folded.h5"), &(md_open_options){.train = true});
    made_compare_models(m, &folded, "folded");
    int64_t compared = 0;
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *s = m->sites.s[i], *other = fq_site_find(&start.sites, s->name);
        if (!s->is_weight || !s->spec.grid.bits)
            continue;
        const kn_codes *a = fq_site_codes(s, &m->params), *b = fq_site_codes(other, &start.params);
        ck_assert(a && b && a->n_scales == b->n_scales);
        ck_assert(!memcmp(a->scale, b->scale, (size_t)a->n_scales * sizeof *a->scale));
        for (int64_t r = 0; r < a->rows; r++)
            ck_assert_msg(!memcmp(a->q + r * a->ld, b->q + r * b->ld, (size_t)a->cols), "%s, row %lld", s->name, (long long)r);
        compared += a->rows * a->cols;
    }
    ck_assert_int_gt(compared, 1000);
    md_free(&start);
    md_free(&folded);
}

START_TEST(nearer_to_the_floats_than_rounding_and_folded_as_trained)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    real *wanted = float_hidden();
    made_data(&m, &data, cases[_i].recipe);
    pt_options o = options(&data);
    OK(pt_method_find("rtn")->run(&m, &o));
    const double rounded = error_of(&m, wanted);
    OK(pt_method_find(cases[_i].method)->run(&m, &o));
    const double trained = error_of(&m, wanted);
    ck_assert_msg(trained < 0.97 * rounded, "%s, %s: an error of %g, rounding %g", cases[_i].method, cases[_i].recipe, trained,
                  rounded);
    for (int64_t i = 0; i < m.params.n; i++)
        ck_assert(!m.params.p[i]->frozen && !m.params.p[i]->has_grad);
    check_folding(&m);
    free(wanted);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

/* gptq leaves values of codes: what trains behind it aims at the floats from before, which come back as they were. */
START_TEST(behind_gptq_the_floats_from_before_are_aimed_at)
{
    static const char *const behind[] = {"autoround", "blockap"};
    md_model m;
    fm_tokens data;
    pt_floats floats, again;
    scratch_begin();
    real *wanted = float_hidden();
    made_data(&m, &data, "*.weight int3 asym group:8 f16 learned\n");
    pt_options o = options(&data);
    o.gptq_rounds = 1;
    OK(pt_floats_copy(&floats, &m));
    OK(pt_floats_copy(&again, &m));
    OK(pt_method_find("gptq")->run(&m, &o));
    const double before = error_of(&m, wanted);
    o.floats = &floats;
    OK(pt_method_find(behind[_i])->run(&m, &o));
    const double trained = error_of(&m, wanted);
    ck_assert_msg(trained < 0.985 * before, "%s: an error of %g, gptq's %g", behind[_i], trained, before);
    for (int64_t i = 0; i < m.params.n; i++)
        ck_assert(!memcmp(floats.x[i], again.x[i], (size_t)m.params.p[i]->count * sizeof(real)));
    check_folding(&m);
    pt_floats_free(&floats);
    pt_floats_free(&again);
    free(wanted);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

/* Where each is stopped: in the second block, or between two steps. */
static const struct {
    const char *method, *recipe;
    int reports;
} stopped_runs[] = {{"autoround", "*.weight int3 asym group:8 f16 learned\n", 9},
                    {"blockap", "q4_0", 9},
                    {"omniquant", "*.weight int3 row f32 learned\n*.input int4 row dynamic\n", 9},
                    {"adaround", "w3a16", 9},
                    {"gptq", "w3a16", 10},
                    {"e2eqp", "w3a16", 4}};
enum { N_STOPPED = sizeof stopped_runs / sizeof *stopped_runs };

/* The method on a model made anew, stopped by progress or not. */
static status run_anew(md_model *m, const char *method, const char *recipe, pt_options o, int *left)
{
    fm_tokens data;
    const nb_progress progress = {countdown, left};
    made_data(m, &data, recipe);
    o.data = &data;
    o.calibration.progress = &progress;
    const status s = pt_method_find(method)->run(m, &o);
    fm_tokens_close(&data);
    return s;
}

START_TEST(a_stopped_run_goes_on_to_the_same_bits)
{
    enum { MANY = 1000 };
    const char *method = stopped_runs[_i].method, *recipe = stopped_runs[_i].recipe;
    md_model whole, stopped;
    int all = MANY, left = stopped_runs[_i].reports, rest = MANY;
    scratch_begin();
    pt_options o = options(NULL);
    o.block_steps = 6;
    o.e2e_steps = 6;
    OK(run_anew(&whole, method, recipe, o, &all));
    o.part = scratch_path("part");
    ck_assert_int_eq(run_anew(&stopped, method, recipe, o, &left), NB_INTERRUPTED);
    md_free(&stopped);
    o.seed++;
    ck_assert_msg(run_anew(&stopped, method, recipe, o, &rest) == NB_USAGE && strstr(nb_fail_message(), "another run"), "%s", nb_fail_message());
    md_free(&stopped);
    o.seed--;
    rest = MANY;
    OK(run_anew(&stopped, method, recipe, o, &rest));
    ck_assert_msg(rest > all, "%s: %d reports, a whole run makes %d", method, MANY - rest, MANY - all);
    made_compare_models(&whole, &stopped, method);
    ck_assert(nb_path_is_folder(o.part));
    pt_part_discard(o.part, &stopped);
    ck_assert(!nb_path_exists(o.part));
    md_free(&whole);
    md_free(&stopped);
    scratch_end();
}
END_TEST

/* ---- end to end --------------------------------------------------------------------------- */

static const char *const e2e_recipes[] = {"w3a16", "q4_0", "*.weight int3 asym group:8 f16 learned\n", "embed.weight int4 row f32 learned\n*.w[qkvo].weight int2 row f16 static\n"};
enum { N_E2E = sizeof e2e_recipes / sizeof *e2e_recipes };

static double distance(md_model *m, md_model *teacher, fm_tokens *data)
{
    kd_eval e;
    OK(kd_evaluate(&e, m, teacher, data, &(kd_eval_options){.ctx = 32, .max_tokens = TOKENS}));
    return e.kl;
}

/* Copies of all codes, in the order of the sites, so that they can be compared; the caller frees. */
static int8_t *all_codes(md_model *m, int64_t *n)
{
    int8_t *q = NULL;
    *n = 0;
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *s = m->sites.s[i];
        if (!s->is_weight || !s->spec.grid.bits)
            continue;
        const kn_codes *c = fq_site_codes(s, &m->params);
        const int64_t more = c->rows * c->ld;
        q = realloc(q, (size_t)(*n + more));
        memcpy(q + *n, c->q, (size_t)more);
        *n += more;
    }
    return q;
}

START_TEST(scales_end_to_end_come_nearer_and_codes_stay)
{
    md_model m, teacher;
    fm_tokens data;
    scratch_begin();
    made_data(&m, &data, e2e_recipes[_i]);
    open_model(&teacher, "float");
    pt_options o = {.data = &data, .calibration = {.length = 32, .seed = 4}, .seed = 4, .e2e_steps = 12, .e2e_lr = 5e-3, .teacher = &teacher};
    OK(pt_method_find("mse")->run(&m, &o));
    int64_t n, now;
    const double before = distance(&m, &teacher, &data);
    int8_t *was = all_codes(&m, &n);
    OK(pt_method_find("e2eqp")->run(&m, &o));
    int8_t *is = all_codes(&m, &now);
    const double after = distance(&m, &teacher, &data);
    ck_assert_msg(after < 0.97 * before, "%s: KL %g, before %g", e2e_recipes[_i], after, before);
    ck_assert(n == now && n > 1000 && !memcmp(was, is, (size_t)n));
    for (int64_t i = 0; i < m.params.n; i++)
        ck_assert(!m.params.p[i]->frozen && !m.params.p[i]->has_grad && !m.params.p[i]->g);
    check_folding(&m);
    free(was);
    free(is);
    fm_tokens_close(&data);
    md_free(&teacher);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(scales_end_to_end_learn_from_text_alone_and_do_not_get_worse)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    made_data(&m, &data, "w3a16");
    pt_options o = {.data = &data, .calibration = {.length = 32, .seed = 4}, .seed = 4, .e2e_steps = 8, .e2e_lr = 10};
    kd_eval a, b;
    const kd_eval_options how = {.ctx = 32, .max_tokens = TOKENS};
    OK(pt_method_find("mse")->run(&m, &o));
    OK(kd_evaluate(&a, &m, NULL, &data, &how));
    (void)pt_method_find("e2eqp")->run(&m, &o); /* a rate that only does harm: the start stands, whether it is told or not */
    OK(kd_evaluate(&b, &m, NULL, &data, &how));
    ck_assert_msg(b.nll < 1.01 * a.nll, "%g, before %g", b.nll, a.nll);
    o.e2e_lr = 5e-3;
    OK(pt_method_find("mse")->run(&m, &o));
    OK(pt_method_find("e2eqp")->run(&m, &o));
    OK(kd_evaluate(&b, &m, NULL, &data, &how));
    ck_assert_msg(b.nll < a.nll, "%g, before %g", b.nll, a.nll);
    md_free(&m);
    fm_tokens_close(&data);
    made_data(&m, &data, "*.weight int4 row f32 dynamic\n");
    o.data = &data;
    ck_assert_int_eq(pt_method_find("e2eqp")->run(&m, &o), NB_UNSUPPORTED);
    md_free(&m);
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

START_TEST(efficient_qat_is_nearer_with_both_of_its_phases)
{
    md_model m, teacher;
    fm_tokens data;
    scratch_begin();
    made_data(&m, &data, "w2a16");
    open_model(&teacher, "float");
    pt_options o = options(&data);
    o.teacher = &teacher;
    o.e2e_steps = 12;
    OK(pt_method_find("importance")->run(&m, &o));
    const double start = distance(&m, &teacher, &data);
    OK(pt_method_find("blockap")->run(&m, &o));
    const double blocks = distance(&m, &teacher, &data);
    OK(pt_method_find("e2eqp")->run(&m, &o));
    const double both = distance(&m, &teacher, &data);
    ck_assert_msg(both < 0.99 * blocks && blocks < 0.97 * start, "KL %g, of blocks alone %g, before %g", both, blocks, start);
    check_folding(&m);
    fm_tokens_close(&data);
    md_free(&teacher);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(what_cannot_be_trained_is_refused)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    made_data(&m, &data, "embed.weight int8 row f16 learned\n");
    pt_options o = options(&data);
    ck_assert_msg(pt_method_find("autoround")->run(&m, &o) == NB_USAGE && strstr(nb_fail_message(), "nothing to train"), "%s",
                  nb_fail_message());
    for (int64_t i = 0; i < m.params.n; i++)
        ck_assert(!m.params.p[i]->frozen);
    o.data = NULL;
    ck_assert_int_eq(pt_method_find("blockap")->run(&m, &o), NB_USAGE);
    md_free(&m);
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("blockwise");
    TCase *c = tcase_create("blockwise");
    tcase_set_timeout(c, 240);
    tcase_add_loop_test(c, nearer_to_the_floats_than_rounding_and_folded_as_trained, 0, N_CASES);
    tcase_add_loop_test(c, behind_gptq_the_floats_from_before_are_aimed_at, 0, 2);
    tcase_add_loop_test(c, a_stopped_run_goes_on_to_the_same_bits, 0, N_STOPPED);
    tcase_add_loop_test(c, scales_end_to_end_come_nearer_and_codes_stay, 0, N_E2E);
    tcase_add_test(c, scales_end_to_end_learn_from_text_alone_and_do_not_get_worse);
    tcase_add_test(c, efficient_qat_is_nearer_with_both_of_its_phases);
    tcase_add_test(c, what_cannot_be_trained_is_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}

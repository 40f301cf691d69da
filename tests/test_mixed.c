/* test_mixed.c - bits for every weight: the solver finds what trying everything finds, sensitivity is the KL of two whole forwards, every weight costs, and what
 * mixed chooses keeps the size, opens as a recipe and comes nearer than one width for all.
 */
#include "models_made.h"
#include "ptq/fisher.h"
#include "ptq/knapsack.h"
#include "ptq/ptq.h"
#include "scratch.h"
#include "suite.h"
#include "token_batches.h"
#include <math.h>

/* ---- the solver ----------------------------------------------------------------------------- */

static void made_items(pt_item *item, int n, uint64_t seed, int64_t step)
{
    for (int i = 0; i < n; i++) {
        item[i] = (pt_item){.n = 1 + (int)(nb_random(seed, 0, (uint64_t)i) % PT_MOST_CHOICES)};
        for (int c = 0; c < item[i].n; c++) {
            const uint64_t k = (uint64_t)(i * PT_MOST_CHOICES + c);
            item[i].bytes[c] = (int64_t)(nb_random(seed, 1, k) % 40 + 1) * step + (int64_t)(nb_random(seed, 3, k) % (uint64_t)(step > 1000 ? 97 : 1));
            item[i].cost[c] = nb_random_unit(seed, 2, k);
        }
    }
}

/* The least cost within the budget, by trying every combination; INFINITY where none fits. */
static double tried(const pt_item *item, int n, int64_t budget)
{
    double best = n ? INFINITY : 0;
    for (int c = 0; n && c < item[0].n; c++)
        if (item[0].bytes[c] <= budget) {
            const double rest = item[0].cost[c] + tried(item + 1, n - 1, budget - item[0].bytes[c]);
            best = rest < best ? rest : best;
        }
    return best;
}

START_TEST(solver_finds_what_trying_everything_finds)
{
    enum { N = 6 };
    for (uint64_t seed = 0; seed < 200; seed++) {
        pt_item item[N];
        const bool coarse = seed % 4 == 3; /* more than 2^16 units: sizes are rounded */
        double cost, bound;
        int64_t least, bytes = 0;
        made_items(item, N, seed, coarse ? 1000003 : 64);
        const int64_t budget = (int64_t)(nb_random(seed, 4, 0) % 200) * (coarse ? 1000003 : 64);
        const double wanted = tried(item, N, budget);
        const status s = pt_knapsack(item, N, budget, &cost, &bound, &least);
        if (isinf(wanted)) {
            ck_assert_int_eq(s, NB_USAGE);
            ck_assert_int_gt(least, budget);
            continue;
        }
        ck_assert_int_eq(s, NB_OK);
        double sum = 0;
        for (int i = 0; i < N; i++) {
            sum += item[i].cost[item[i].chosen];
            bytes += item[i].bytes[item[i].chosen];
        }
        ck_assert_double_eq_tol(sum, cost, 1e-12);
        ck_assert_int_le(bytes, budget);
        ck_assert(bound <= wanted + 1e-12 && wanted <= cost + 1e-12);
        if (!coarse)
            ck_assert(fabs(cost - wanted) < 1e-12 && fabs(bound - wanted) < 1e-12);
    }
}
END_TEST

/* ---- models --------------------------------------------------------------------------------- */

enum { WINDOWS = 3, LENGTH = 64 };

static void model_of(md_model *m, const char *recipe, md_config c)
{
    fq_recipe r;
    c.ctx = LENGTH;
    c.norm_eps = 1e-5;
    c.rope_theta = 10000;
    made_recipe(&r, recipe);
    must(md_build(m, &c, &r, 5, false));
    fq_recipe_free(&r);
    for (int64_t i = 0; i < m->params.n; i++) /* large enough for predictions to differ from equal ones */
        for (int64_t k = 0; k < m->params.p[i]->count && m->params.p[i]->group == AG_WEIGHT; k++)
            m->params.p[i]->x[k] *= 8;
    m->params.version++;
}

static void wide_model(md_model *m, const char *recipe, bool tied)
{
    model_of(m, recipe, (md_config)MADE(32, 64, 2, 2, 1, 16, 300, .tied = tied));
}

static fm_tokens made_data(void)
{
    fm_tokens data;
    fm_tokenizer tk = byte_tokenizer();
    const fm_tokens_settings s = settings_for(&tk);
    const char *path = scratch_path("mixed.h5");
    write_whole(path, &s);
    must(fm_tokens_open(&data, path, NULL, FM_SPLIT_NONE));
    fm_tokenizer_free(&tk);
    return data;
}

START_TEST(sensitivity_is_the_kl_of_whole_forwards)
{
    md_model m = {0}, before = {0};
    scratch_begin();
    fm_tokens data = made_data();
    pt_sensitivity *s;
    double kl, whole;
    wide_model(&m, "float", _i);
    wide_model(&before, "float", _i);
    must(pt_sensitivity_new(&s, &m, &data, BATCHES * ROWS, LENGTH)); /* all of the data, as evaluation sees it */
    for (int64_t l = -1; l <= m.config.layers; l++) {
        must(pt_sensitivity_kl(&kl, s, l));
        ck_assert_double_lt(kl, 1e-7);
    }
    for (int64_t i = 0; i < m.block[1].mlp.up.w->count; i += 3)
        m.block[1].mlp.up.w->x[i] *= 1.2f;
    m.params.version++;
    must(pt_sensitivity_kl(&kl, s, 1));
    must(pt_sensitivity_kl(&whole, s, -1));
    ck_assert_double_gt(kl, 1e-3);
    ck_assert_double_eq_tol(kl, whole, 1e-9);
    must(pt_sensitivity_kl(&whole, s, 2)); /* as if nothing before had changed */
    ck_assert_double_lt(whole, 1e-7);
    kd_eval e;
    must(kd_evaluate(&e, &m, &before, &data, &(kd_eval_options){.ctx = LENGTH}));
    /* evaluation leaves out the last token of each window */
    ck_assert_double_eq_tol(kl, e.kl, 0.05 * e.kl);
    pt_sensitivity_free(s);
    fm_tokens_close(&data);
    scratch_end();
    md_free(&m);
    md_free(&before);
}
END_TEST

static const char *const mixed_recipes[] = {"q4_0", "w4a16g32", "w4a8kv16",
                                            "*.weight int4 asym group:32 f16 learned\n"};

START_TEST(mixed_keeps_the_size_and_comes_nearer)
{
    md_model m = {0}, plain = {0}, teacher = {0};
    md_size was, is;
    scratch_begin();
    fm_tokens data = made_data();
    kd_eval mixed, uniform;
    const kd_calibration o = {.samples = 8, .length = LENGTH, .seed = 1};
    const char *path = scratch_path("mixed.txt");
    wide_model(&m, mixed_recipes[_i], true);
    wide_model(&plain, mixed_recipes[_i], true);
    wide_model(&teacher, "float", true);
    md_measure(&was, &m);
    must(pt_mixed(&m, &data, &o, 0, path));
    md_measure(&is, &m);
    ck_assert_int_le(md_size_bytes(&is), md_size_bytes(&was));
    ck_assert_int_ge(md_size_bytes(&is), md_size_bytes(&was) * 95 / 100);
    must(kd_find_ranges(&plain, FQ_START_IMPORTANCE, &data, &o));
    const kd_eval_options k = {.ctx = LENGTH};
    must(kd_evaluate(&mixed, &m, &teacher, &data, &k));
    must(kd_evaluate(&uniform, &plain, &teacher, &data, &k));
    ck_assert_msg(mixed.kl < 1.02 * uniform.kl, "%s: %g, one width for all %g", mixed_recipes[_i], mixed.kl, uniform.kl);

    fq_recipe r; /* the file says the same as the model */
    must(fq_recipe_open(&r, path));
    for (int64_t i = 0; i < m.sites.n; i++) {
        const fq_spec spec = fq_recipe_find(&r, m.sites.s[i]->name, NULL);
        ck_assert_int_eq(spec.grid.bits, m.sites.s[i]->spec.grid.bits);
    }
    fq_recipe_free(&r);
    fm_tokens_close(&data);
    scratch_end();
    md_free(&m);
    md_free(&plain);
    md_free(&teacher);
}
END_TEST

/* Every weight costs something: positions of GPT-2 and an untied head, too; more bits cost less. */
START_TEST(every_weight_costs)
{
    md_model m = {0};
    const kd_calibration o = {.samples = 8, .length = LENGTH, .seed = 1};
    double cost[2];
    scratch_begin();
    fm_tokens data = made_data();
    pt_fisher *f;
    model_of(&m, "*.weight int4 group:32 f16 learned\n", (md_config)MADE_GPT2(32, 64, 2, 2, 300, .tied = _i));
    must(pt_fisher_new_costs(&f, &m, &data, &o));
    for (int64_t i = 0; i < m.sites.n; i++) {
        const fq_site *s = m.sites.s[i];
        if (!s->is_weight || s->rows < 2)
            continue;
        for (int k = 0; k < 2; k++) {
            kn_codes c;
            fq_spec spec = s->spec;
            real *value = malloc((size_t)s->w->count * sizeof *value);
            spec.grid = kn_grid_int(k ? 6 : 4, false, false, KN_GROUP, 32, KN_SCALE_F16);
            must(kn_codes_new(&c, &spec.grid, s->rows, s->cols));
            must(fq_find_ranges(&c, &spec, s->w->x, FQ_START_MSE, NULL));
            kn_decode(value, &c, 0, s->rows);
            cost[k] = pt_fisher_cost(f, s, value);
            kn_codes_free(&c);
            free(value);
        }
        ck_assert_msg(cost[1] > 0 && cost[0] > 4 * cost[1], "%s: %g, at 6 bits %g", s->name, cost[0], cost[1]);
    }
    pt_fisher_free(f);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(mixed_takes_a_budget_and_says_what_it_cannot)
{
    md_model m = {0}, floats = {0};
    md_size size;
    scratch_begin();
    fm_tokens data = made_data();
    const kd_calibration o = {.samples = 8, .length = LENGTH, .seed = 1};
    wide_model(&m, "q4_0", true);
    must_fail(pt_mixed(&m, &data, &o, 1.5, NULL), NB_USAGE, "smallest choices");
    must(pt_mixed(&m, &data, &o, 6.5, NULL));
    md_measure(&size, &m);
    ck_assert_double_le(8 * (double)md_size_bytes(&size) / (double)size.params, 6.5);
    ck_assert_double_ge(8 * (double)md_size_bytes(&size) / (double)size.params, 6.2);
    wide_model(&floats, "float", true);
    must_fail(pt_mixed(&floats, &data, &o, 0, NULL), NB_USAGE, "no weights");
    must_fail(pt_mixed(&m, NULL, &o, 0, NULL), NB_USAGE, "--data");
    fm_tokens_close(&data);
    scratch_end();
    md_free(&m);
    md_free(&floats);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mixed");
    TCase *c = tcase_create("bits");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, solver_finds_what_trying_everything_finds);
    tcase_add_loop_test(c, sensitivity_is_the_kl_of_whole_forwards, 0, 2);
    tcase_add_loop_test(c, mixed_keeps_the_size_and_comes_nearer, 0, COUNT(mixed_recipes));
    tcase_add_loop_test(c, every_weight_costs, 0, 2);
    tcase_add_test(c, mixed_takes_a_budget_and_says_what_it_cannot);
    suite_add_tcase(suite, c);
    return run_suite(suite);
}

/* test_rotate.c - rotation changes coordinates and nothing else: matrices are orthogonal, logits stay, files open again; what stands
 * out in single channels is spread.
 */
#include "models_made.h"
#include "ptq/orthogonal.h"
#include "ptq/ptq.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

START_TEST(matrices_are_orthogonal)
{
    static const struct {
        int64_t n, K;
        bool hadamard;
    } orders[] = {{1, 1, true},    {2, 1, true},   {64, 1, true},   {12, 12, true},  {24, 12, true}, {20, 20, true},
                  {40, 20, true},  {28, 28, true}, {36, 36, true},  {576, 36, true}, {288, 36, true}, {60, 60, true},
                  {768, 12, true}, {3, 3, false},  {172, 43, false}, {25, 25, false}};
    for (size_t k = 0; k < sizeof orders / sizeof *orders; k++) {
        const int64_t n = orders[k].n;
        pt_orthogonal r;
        ck_assert_int_eq(pt_orthogonal_new(&r, n, 7), NB_OK);
        ck_assert_msg(r.K == orders[k].K && r.hadamard == orders[k].hadamard, "order %lld: core %lld", (long long)n,
                      (long long)r.K);
        double *x = calloc((size_t)(n * n), sizeof *x), *sign = malloc((size_t)n * sizeof *sign),
               *scratch = malloc((size_t)n * sizeof *scratch);
        for (int64_t i = 0; i < n; i++)
            sign[i] = nb_random(9, 1, (uint64_t)i) & 1 ? 1 : -1;
        for (int64_t i = 0; i < n; i++) {
            x[i * n + i] = 1;
            pt_orthogonal_apply(&r, x + i * n, sign, scratch);
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                double dot = 0;
                for (int64_t c = 0; c < n; c++)
                    dot += x[i * n + c] * x[j * n + c];
                ck_assert_double_eq_tol(dot, i == j, 1e-12);
                if (r.hadamard)
                    ck_assert_double_eq_tol(fabs(x[i * n + j]), 1 / sqrt((double)n), 1e-12);
            }
        free(x);
        free(sign);
        free(scratch);
        pt_orthogonal_free(&r);
    }
}
END_TEST

enum { ROWS = 2, T = 19 };

static float *logits(md_model *m)
{
    int32_t ids[ROWS * T];
    ag_tape t = {.no_grad = true, .quantize_off = true};
    for (int64_t i = 0; i < ROWS * T; i++)
        ids[i] = (int32_t)(nb_random(3, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
    md_input in = {.B = ROWS, .T = T, .ids = ids};
    md_output out = md_forward(&t, m, &in);
    ag_tensor *z = ag_linear(&t, out.x, out.w, out.b);
    ck_assert_msg(ag_status(&t) == NB_OK, "%s", nb_fail_message());
    float *y = malloc((size_t)ag_count(z) * sizeof *y);
    memcpy(y, ag_value(z), (size_t)ag_count(z) * sizeof *y);
    ag_tape_free(&t);
    return y;
}

/* The largest difference over the largest logit, and over the root of the mean square. */
static void same_logits(const float *a, const float *b, int64_t n, const char *what)
{
    double most = 0, top = 0, squares = 0, differences = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        most = fmax(most, fabs(d));
        top = fmax(top, fabs((double)a[i]));
        squares += (double)a[i] * (double)a[i];
        differences += d * d;
    }
    ck_assert_msg(top > 0 && most / top < 1e-4 && sqrt(differences / squares) < 1e-5, "%s: %g of the largest, rms %g",
                  what, most / top, sqrt(differences / squares));
}

/* Norms that stand out, biases that are not 0: what must be folded and turned. */
static void stir(md_model *m)
{
    for (int64_t k = 0; k < m->params.n; k++) {
        ag_param *p = m->params.p[k];
        const real size = p->group == AG_WEIGHT ? (real)(2 / sqrt((double)p->dim[p->n_dim - 1])) : 1;
        for (int64_t i = 0; i < p->count && p->group != AG_SCALE; i++)
            p->x[i] = size * (real)nb_random_normal(5, (uint64_t)k, (uint64_t)i);
    }
    m->params.version++;
}

/* Root of the mean square of what reads the MLP's norm, times sqrt(C). */
static double rms_behind(const md_block *b)
{
    const ag_param *gate = b->mlp.gate.w, *up = b->mlp.up.w;
    const double squares = kn_sum_squares(gate->x, gate->count) + kn_sum_squares(up->x, up->count);
    return sqrt(squares / (double)(gate->count + up->count) * (double)gate->dim[1]);
}

START_TEST(logits_stay_and_files_open_again)
{
    md_model m, again;
    scratch_begin();
    made_model(&m, &made_shapes[_i], "float", 1);
    stir(&m);
    float *before = logits(&m);
    const int64_t n = ROWS * T * m.config.vocab;
    ck_assert_msg(pt_rotate(&m, 11, false) == NB_OK, "%s", nb_fail_message());
    ck_assert(!m.config.tied && m.head.w != m.embed);
    float *after = logits(&m);
    same_logits(before, after, n, "rotated");
    for (int64_t i = 0; i < m.params.n; i++)
        for (int64_t k = 0; m.params.p[i]->group == AG_NORM && k < m.params.p[i]->count; k++)
            ck_assert(m.params.p[i]->x[k] == m.params.p[i]->x[0]);
    for (int64_t l = 0; l < m.config.layers; l++)
        ck_assert_double_eq_tol(rms_behind(&m.block[l]), 2, 0.2); /* stir's: 2 / sqrt(C), times sqrt(C) */
    ck_assert_int_eq(md_save_model(&m, scratch_path("m.h5"), FM_F32), NB_OK);
    opened(&again, scratch_path("m.h5"), NULL);
    made_compare_models(&m, &again, "saved");
    md_free(&again);
    if (m.config.heads * m.config.head_size == m.config.dim && !m.config.out_bias) {
        ck_assert_msg(md_export(&m, "safetensors", scratch_path("hf"), NULL, 0) == NB_OK, "%s", nb_fail_message());
        opened(&again, scratch_path("hf"), NULL);
        float *exported = logits(&again);
        same_logits(before, exported, n, "exported");
        free(exported);
        md_free(&again);
    }
    free(before);
    free(after);
    md_free(&m);
    scratch_end();
}
END_TEST

/* R3 and R4: the forward has matrices more, and the same logits; the runtime's is the tape's; no client gets such a model. */
START_TEST(online_turns_change_no_logits)
{
    md_model m, again;
    scratch_begin();
    made_model(&m, &made_shapes[_i], "float", 1);
    stir(&m);
    float *before = logits(&m);
    const int64_t n = ROWS * T * m.config.vocab, hidden = m.config.hidden;
    ck_assert_msg(pt_rotate(&m, 11, true) == NB_OK, "%s", nb_fail_message());
    ck_assert(m.config.hadamard && m.block[0].mlp.turn && m.block[0].attn.turn);
    ck_assert_int_eq(kn_hadamard_length(m.block[0].mlp.turn), hidden);
    float *after = logits(&m);
    same_logits(before, after, n, "turned online");
    ck_assert_int_eq(pt_rotate(&m, 11, true), NB_USAGE);
    ck_assert_int_eq(md_export(&m, "gguf", scratch_path("m.gguf"), NULL, 0), NB_UNSUPPORTED);
    ck_assert_msg(strstr(nb_fail_message(), "Hadamard") != NULL, "%s", nb_fail_message());
    ck_assert_int_eq(md_save_model(&m, scratch_path("m.h5"), FM_F32), NB_OK);
    opened(&again, scratch_path("m.h5"), NULL);
    made_compare_models(&m, &again, "saved");
    float *opened_again = logits(&again);
    ck_assert(memcmp(after, opened_again, (size_t)n * sizeof *after) == 0);
    free(opened_again);
    free(before);
    free(after);
    md_free(&again);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(the_seed_decides)
{
    md_model a, b, c;
    made_model(&a, &made_shapes[0], "float", 1);
    made_model(&b, &made_shapes[0], "float", 1);
    made_model(&c, &made_shapes[0], "float", 1);
    ck_assert(pt_rotate(&a, 1, false) == NB_OK && pt_rotate(&b, 1, false) == NB_OK && pt_rotate(&c, 2, false) == NB_OK);
    made_compare_models(&a, &b, "the same seed");
    ck_assert(memcmp(a.embed->x, c.embed->x, (size_t)a.embed->count * sizeof *a.embed->x) != 0);
    md_free(&a);
    md_free(&b);
    md_free(&c);
}
END_TEST

START_TEST(a_recipe_stays_and_its_ranges_begin_anew)
{
    md_model m;
    made_model(&m, &made_shapes[2], "w4a8kv4", 1);
    float *before = logits(&m);
    ck_assert_msg(pt_rotate(&m, 5, false) == NB_OK, "%s", nb_fail_message());
    float *after = logits(&m);
    same_logits(before, after, ROWS * T * m.config.vocab, "latent floats");
    for (int64_t i = 0; i < m.sites.n; i++)
        ck_assert(!m.sites.s[i]->is_weight || !m.sites.s[i]->started);
    ck_assert_str_eq(m.recipe.name, "w4a8kv4");
    ck_assert(fq_site_find(&m.sites, "head.weight") != NULL);
    free(before);
    free(after);
    md_free(&m);
}
END_TEST

/* The share of the largest of a row's magnitudes in its norm, over a weight's rows. */
static double peak(const ag_param *w)
{
    const int64_t C = w->dim[1], M = w->dim[0];
    double sum = 0;
    for (int64_t m = 0; m < M; m++)
        sum += (double)kn_absmax(w->x + m * C, C) / sqrt(kn_sum_squares(w->x + m * C, C) / (double)C + 1e-30);
    return sum / (double)M;
}

START_TEST(outliers_are_spread)
{
    md_model m;
    made_model(&m, &made_shapes[2], "float", 3);
    stir(&m);
    ag_param *w = m.block[0].attn.wq.w;
    for (int64_t i = 0; i < w->dim[0]; i++)
        w->x[i * w->dim[1] + 5] *= 30;
    const double before = peak(w);
    ck_assert_int_eq(pt_rotate(&m, 5, false), NB_OK);
    ck_assert_double_lt(peak(m.block[0].attn.wq.w), 0.6 * before);
    md_free(&m);
}
END_TEST

START_TEST(folded_models_are_refused)
{
    md_model m;
    scratch_begin();
    made_model(&m, &made_shapes[0], "w4a8kv16", 1);
    ck_assert_int_eq(md_save_folded(&m, scratch_path("f.h5"), false), NB_OK);
    md_free(&m);
    opened(&m, scratch_path("f.h5"), NULL);
    ck_assert_int_eq(pt_rotate(&m, 1, false), NB_USAGE);
    ck_assert(strstr(nb_fail_message(), "folded") && m.block);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(layernorm_is_refused)
{
    const md_config shape = MADE_GPT2(32, 52, 1, 4, 38, .tied = true);
    md_model m;
    made_model(&m, &shape, "float", 1);
    ck_assert_int_eq(pt_rotate(&m, 1, false), NB_UNSUPPORTED);
    ck_assert(strstr(nb_fail_message(), "LayerNorm") && m.block && m.config.tied);
    md_free(&m);
}
END_TEST

START_TEST(stories_keep_their_logits)
{
    static const char path[] = "../shared/data/stories260k/stories260K.bin";
    md_model m;
    if (!nb_path_exists(path)) {
        printf("skipped: no %s\n", path);
        return;
    }
    opened(&m, path, NULL);
    float *before = logits(&m);
    ck_assert_msg(pt_rotate(&m, 1, false) == NB_OK, "%s", nb_fail_message());
    float *after = logits(&m);
    same_logits(before, after, ROWS * T * m.config.vocab, "stories260K");
    free(before);
    free(after);
    md_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rotate");
    TCase *c = tcase_create("rotate");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, matrices_are_orthogonal);
    tcase_add_loop_test(c, logits_stay_and_files_open_again, 0, N_MADE_LLAMAS);
    tcase_add_loop_test(c, online_turns_change_no_logits, 0, N_MADE_LLAMAS);
    tcase_add_test(c, the_seed_decides);
    tcase_add_test(c, a_recipe_stays_and_its_ranges_begin_anew);
    tcase_add_test(c, outliers_are_spread);
    tcase_add_test(c, folded_models_are_refused);
    tcase_add_test(c, layernorm_is_refused);
    tcase_add_test(c, stories_keep_their_logits);
    suite_add_tcase(s, c);
    return run_suite(s);
}

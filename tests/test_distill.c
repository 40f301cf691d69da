/* test_distill.c - generated data, evaluation and training on tiny models: what is stopped and said again ends in the same bytes. */
#include "distill/distill.h"
#include "scratch.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const md_config tiny = {.architecture = "llama", .dim = 24, .hidden = 52, .layers = 2, .heads = 3, .kv_heads = 1, .head_size = 8, .vocab = 41, .ctx = 48,
                               .norm_eps = 1e-5, .rope_theta = 10000, .tied = true, .bos = 1, .eos = 2};

#define OK(e) ck_assert_msg((e) == NB_OK, "%s: %s", #e, nb_fail_message())

static void open_model(md_model *m, const char *recipe)
{
    fq_recipe r;
    OK(fq_recipe_open(&r, recipe));
    OK(md_build(m, &tiny, &r, 7, false));
    fq_recipe_free(&r);
    for (int64_t i = 0; i < m->params.n; i++) /* sharp enough to be worth imitating */
        for (int64_t j = 0; j < m->params.p[i]->count && m->params.p[i]->group == AG_WEIGHT; j++)
            m->params.p[i]->x[j] *= 10;
    m->params.version++;
}

/* Stops the work after `left` reports. */
static bool countdown(void *ctx, int64_t done, int64_t total, const char *text)
{
    int *left = ctx;
    (void)done;
    (void)total;
    (void)text;
    return (*left)-- > 0;
}

static bool same_bytes(const char *a, const char *b)
{
    nb_mapped x, y;
    OK(nb_map(&x, a));
    OK(nb_map(&y, b));
    bool same = x.bytes == y.bytes && !memcmp(x.data, y.data, x.bytes);
    nb_unmap(&x);
    nb_unmap(&y);
    return same;
}

static char *path_of(const char *folder, const char *name)
{
    char *p = nb_path_join(folder, name);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void generate(md_model *m, const char *path, int64_t tokens, uint64_t seed, kd_start start)
{
    kd_data_options o = {.start = start, .sampling = {.temperature = 1}, .tokens = tokens, .ctx = 32, .slots = 4, .seed = seed};
    kd_data_report r;
    OK(kd_generate(m, &o, path, true, NULL, &r));
    ck_assert_int_ge(r.tokens, tokens);
}

START_TEST(interrupted_generation_ends_in_the_same_bytes)
{
    scratch_begin();
    md_model m;
    open_model(&m, "float");
    char *whole = path_of(scratch_folder, "whole.h5"), *pieces = path_of(scratch_folder, "pieces.h5");
    kd_start start = (kd_start)_i;
    kd_data_options o = {.start = start, .sampling = {.temperature = 1}, .tokens = 700, .ctx = 32, .slots = 4, .seed = 3};
    generate(&m, whole, 700, 3, start);
    status s = NB_INTERRUPTED;
    int rounds = 0;
    for (; s == NB_INTERRUPTED; rounds++) {
        int left = 2;
        nb_progress p = {countdown, &left};
        s = kd_generate(&m, &o, pieces, false, &p, NULL);
    }
    ck_assert_msg(s == NB_OK, "%s", nb_fail_message());
    ck_assert_int_gt(rounds, 2);
    ck_assert(same_bytes(whole, pieces));
    if (start == KD_START_HYBRID) { /* every token of the vocabulary begins one of the first 22 rows at most once */
        fm_tokens t;
        int seen[41] = {0};
        OK(fm_tokens_open(&t, whole, NULL, FM_SPLIT_NONE));
        for (int64_t i = 0; i < t.n; i += 32) {
            int32_t id;
            OK(fm_tokens_read(&t, &id, i, 1));
            ck_assert_int_eq(seen[id]++, 0);
        }
        fm_tokens_close(&t);
    }
    free(whole);
    free(pieces);
    md_free(&m);
    scratch_end();
}
END_TEST

typedef struct {
    const char *recipe;
    double average;
    int64_t accumulate, quant_after, freeze_after;
    kd_recompute recompute;
    bool sgd;
    double hidden;
    int64_t top_k;
    double pin, text_share;
} training;
static const training trainings[] = {{"w4a8kv4", 0, 1, 0, 0, KD_RECOMPUTE_OFF, false, 0, 0, 0.001, 0},
                                     {"w4a8kv16", 0.9, 2, 0, 0, KD_RECOMPUTE_ON, false, 0, 0, 0, 0},
                                     {"q4_0", 0, 1, 3, 0, KD_RECOMPUTE_OFF, false, 0, 0, 0.02, 0.4},
                                     {"w2a16", 0, 1, 0, 6, KD_RECOMPUTE_OFF, true, 0.1, 0, 0.001, 0},
                                     {"llmqat-4-8-4", 0, 1, 0, 0, KD_RECOMPUTE_OFF, false, 0, 0, 0, 0},
                                     {"w4a16g32", 0, 1, 0, 0, KD_RECOMPUTE_OFF, false, 0, 8, 0, 0.7}};
enum { N_TRAININGS = sizeof trainings / sizeof *trainings };

/* `data` and, where the training mixes, `data`.text beside it. */
static status train(const char *folder, const char *data, const training *how, int *left, int64_t steps, kd_train_report *report)
{
    md_model teacher, student;
    fm_tokens tokens, text;
    open_model(&teacher, "float");
    open_model(&student, how->recipe);
    OK(fm_tokens_open(&tokens, data, NULL, FM_SPLIT_NONE));
    if (how->text_share > 0) {
        char *path = nb_alloc(strlen(data) + 6, 1);
        sprintf(path, "%s.text", data);
        OK(fm_tokens_open(&text, path, NULL, FM_SPLIT_NONE));
        free(path);
    }
    kd_train_options o = kd_train_defaults(true, &student.recipe, &student.config);
    o.steps = steps;
    o.batch = 4;
    o.accumulate = how->accumulate;
    o.average = how->average;
    o.quant_after = how->quant_after;
    o.freeze_after = how->freeze_after;
    o.recompute = how->recompute;
    o.sgd = how->sgd;
    o.hidden = how->hidden;
    o.top_k = how->top_k;
    o.pin = how->pin;
    o.text_share = how->text_share;
    o.eval_every = 4;
    kd_run_options run = {.save_every = 3, .keep = 2, .progress = {left ? countdown : NULL, left}};
    status s = kd_train(folder, &student, &teacher, &(kd_train_data){&tokens, how->text_share > 0 ? &text : NULL, NULL}, &o, &run, report);
    fm_tokens_close(&tokens);
    if (how->text_share > 0)
        fm_tokens_close(&text);
    md_free(&teacher);
    md_free(&student);
    return s;
}

START_TEST(interrupted_training_ends_in_the_same_bytes)
{
    const training *how = &trainings[_i];
    kd_train_report r;
    md_model m;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5"), *whole = path_of(scratch_folder, "whole"), *pieces = path_of(scratch_folder, "pieces");
    char *text = path_of(scratch_folder, "data.h5.text");
    generate(&m, data, 3000, 1, KD_START_BOS);
    generate(&m, text, 1000, 5, KD_START_HYBRID);
    free(text);
    md_free(&m);
    ck_assert_msg(train(whole, data, how, NULL, 10, &r) == NB_OK, "%s: %s", how->recipe, nb_fail_message());
    ck_assert(r.finished && !r.resumed && isfinite(r.best_kl));
    status s = NB_INTERRUPTED;
    int rounds = 0;
    for (; s == NB_INTERRUPTED; rounds++) {
        int left = 2 + rounds % 3;
        s = train(pieces, data, how, &left, 10, &r);
    }
    ck_assert_msg(s == NB_OK, "%s", nb_fail_message());
    ck_assert_int_gt(rounds, 2);
    static const char *const files[] = {"last.h5", "best.h5", "logits.h5"};
    for (int i = 0; i < (how->top_k ? 3 : 2); i++) {
        char *a = path_of(whole, files[i]), *b = path_of(pieces, files[i]);
        ck_assert_msg(same_bytes(a, b), "%s: %s differs after %d interruptions", how->recipe, files[i], rounds - 1);
        free(a);
        free(b);
    }
    ck_assert_msg(train(pieces, data, how, NULL, 10, &r) == NB_OK && r.was_finished, "said again: %s", nb_fail_message());
    ck_assert(train(pieces, data, how, NULL, 11, &r) == NB_USAGE);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "steps"));
    free(data);
    free(whole);
    free(pieces);
    scratch_end();
}
END_TEST

/* Pinned weights are exactly the values of their codes, under the scales that go on learning. */
START_TEST(pinned_weights_lie_on_the_grid)
{
    const training how = {"w4a8kv16", .accumulate = 1, .pin = 0.001};
    kd_train_report r;
    md_model m;
    int64_t pinned = 0, all = 0;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5"), *folder = path_of(scratch_folder, "run"), *last = path_of(folder, "last.h5");
    generate(&m, data, 3000, 1, KD_START_BOS);
    md_free(&m);
    OK(train(folder, data, &how, NULL, 30, &r));
    fm_h5 f;
    OK(fm_h5_open(&f, last, "checkpoint"));
    OK(md_open(&m, last, NULL));
    for (int64_t i = 0; i < m.sites.n; i++) {
        fq_site *s = m.sites.s[i];
        const int64_t n = s->rows * s->cols;
        char name[160];
        snprintf(name, sizeof name, "pin/flips/%s", s->name);
        if (!fm_h5_find(&f, name)) {
            ck_assert(!s->is_weight || s->spec.grid.bits == 0 || s->spec.grid.bits > 4);
            continue;
        }
        int16_t *flips = nb_alloc((size_t)n, sizeof *flips);
        const kn_codes *c = fq_site_codes(s, &m.params);
        OK(fm_h5_read_all(&f, name, FM_I16, flips, 2, (int64_t[]){s->rows, s->cols}));
        for (int64_t k = 0; k < n; k++) {
            const int64_t row = k / s->cols, col = k % s->cols;
            const real scale = c->scale[kn_scale_index(c, row, col)], level = (real)c->q[row * c->ld + col];
            if (flips[k] < 0)
                ck_assert(s->w->x[k] == level * scale);
            pinned += flips[k] < 0;
        }
        all += n;
        free(flips);
    }
    ck_assert_int_gt(pinned, 0);
    ck_assert_int_lt(pinned, all);
    fm_h5_close(&f);
    md_free(&m);
    free(last);
    free(folder);
    free(data);
    scratch_end();
}
END_TEST

START_TEST(stored_logits_of_nearly_all_tokens_train_as_the_teacher_does)
{
    kd_train_report live, stored;
    md_model m;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5"), *a = path_of(scratch_folder, "live"), *b = path_of(scratch_folder, "stored");
    training how = trainings[5];
    how.text_share = 0;
    generate(&m, data, 6000, 1, KD_START_BOS);
    md_free(&m);
    how.top_k = 0;
    OK(train(a, data, &how, NULL, 40, &live));
    how.top_k = 40; /* of 41; the logarithms are halves, so another path, to the same place */
    OK(train(b, data, &how, NULL, 40, &stored));
    ck_assert_msg(fabs(stored.best_kl - live.best_kl) < 0.15 * live.best_kl, "KL %g, %g with the teacher", stored.best_kl, live.best_kl);
    free(data);
    free(a);
    free(b);
    scratch_end();
}
END_TEST

START_TEST(damaged_checkpoints_are_refused_and_kept)
{
    kd_train_report r;
    md_model m;
    int left = 4;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5"), *run = path_of(scratch_folder, "run");
    generate(&m, data, 2000, 1, KD_START_BOS);
    md_free(&m);
    ck_assert(train(run, data, &trainings[0], &left, 10, &r) == NB_INTERRUPTED);
    char *last = path_of(run, "last.h5");
    FILE *f = fopen(last, "r+b");
    ck_assert_ptr_nonnull(f);
    fseek(f, 3000, SEEK_SET);
    fputc(0x5A, f);
    fseek(f, 4001, SEEK_SET);
    fputc(0xA5, f);
    fclose(f);
    ck_assert(train(run, data, &trainings[0], NULL, 10, &r) == NB_FORMAT);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "last.h5"));
    ck_assert(nb_path_exists(last));
    free(data);
    free(run);
    free(last);
    scratch_end();
}
END_TEST

START_TEST(distillation_beats_round_to_nearest)
{
    kd_train_report r;
    md_model m, rtn;
    fm_tokens held;
    kd_eval before;
    kd_eval_options eo = {0};
    scratch_begin();
    open_model(&m, "float");
    open_model(&rtn, "w4a8kv4");
    char *data = path_of(scratch_folder, "data.h5"), *heldout = path_of(scratch_folder, "held.h5"), *run = path_of(scratch_folder, "run");
    generate(&m, data, 20000, 1, KD_START_BOS);
    generate(&m, heldout, 2000, 2, KD_START_BOS);
    OK(fm_tokens_open(&held, heldout, NULL, FM_SPLIT_NONE));
    OK(fq_start_weights(&rtn.sites, FQ_START_ABSMAX, NULL, NULL));
    OK(kd_evaluate(&before, &rtn, &m, &held, &eo));
    OK(train(run, data, &trainings[0], NULL, 120, &r));
    ck_assert_msg(r.best_kl < 0.6 * before.kl, "KL %.4f after training, %.4f by rounding", r.best_kl, before.kl);
    OK(kd_evaluate(&before, &m, &m, &held, &eo));
    ck_assert(before.kl == 0 && before.same_top == 1);
    fm_tokens_close(&held);
    md_free(&m);
    md_free(&rtn);
    free(data);
    free(heldout);
    free(run);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("distill");
    TCase *tc = tcase_create("distill");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, interrupted_generation_ends_in_the_same_bytes, 0, 3);
    tcase_add_loop_test(tc, interrupted_training_ends_in_the_same_bytes, 0, N_TRAININGS);
    tcase_add_test(tc, pinned_weights_lie_on_the_grid);
    tcase_add_test(tc, stored_logits_of_nearly_all_tokens_train_as_the_teacher_does);
    tcase_add_test(tc, damaged_checkpoints_are_refused_and_kept);
    tcase_add_test(tc, distillation_beats_round_to_nearest);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

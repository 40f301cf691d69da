/* test_distill_settings.c - what a run is made of decides it, and nothing else: its data, what is held out, when quantization begins and
 * ranges stay; what makes no sense, and what belongs to another run, is refused.
 */
#include "runs_made.h"

/* How many arrays below `folder` differ between two checkpoints; those that only one of them has count too, if `all`. */
static int differing(const char *a, const char *b, const char *folder, bool all)
{
    fm_h5 f[2];
    int n = 0;
    OK(fm_h5_open(&f[0], a, "checkpoint"));
    OK(fm_h5_open(&f[1], b, "checkpoint"));
    for (int64_t i = 0; i < f[0].arrays.n; i++) {
        const fm_array *x = &f[0].arrays.array[i], *y = fm_h5_find(&f[1], x->name);
        if (strncmp(x->name, folder, strlen(folder)) != 0)
            continue;
        if (!y) {
            n += all;
            continue;
        }
        ck_assert(x->bytes == y->bytes && x->dtype == y->dtype);
        void *p = nb_alloc(x->bytes, 1), *q = nb_alloc(x->bytes, 1);
        OK(fm_h5_read_all(&f[0], x->name, x->dtype, p, x->n_dim, x->dim));
        OK(fm_h5_read_all(&f[1], x->name, x->dtype, q, x->n_dim, x->dim));
        n += memcmp(p, q, x->bytes) != 0;
        free(p);
        free(q);
    }
    fm_h5_close(&f[0]);
    fm_h5_close(&f[1]);
    return n;
}

/* A copy of a token file whose last `n` ids are others. */
static void change_end(const char *copy, const char *path, int64_t n)
{
    fm_tokens t;
    fm_tokens_writer w;
    OK(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    int32_t *ids = nb_alloc((size_t)t.n, sizeof *ids);
    OK(fm_tokens_read(&t, ids, 0, t.n));
    for (int64_t i = t.n - n; i < t.n; i++)
        ids[i] = (ids[i] + 1) % (int32_t)t.vocab_size;
    const fm_tokens_settings s = {t.vocab_size, t.row_length, t.seed, t.settings, NULL};
    OK(fm_tokens_writer_open(&w, copy, &s, true));
    OK(fm_tokens_writer_append(&w, ids, t.n, NULL, 0));
    OK(fm_tokens_writer_finish(&w));
    fm_tokens_close(&t);
    free(ids);
}

/* Two runs in folders a and b, on two files of data: how many arrays below `what` differ at their ends. */
static int compare_runs(const char *data_a, const char *data_b, const training *a, const training *b, int64_t steps,
                        const char *what)
{
    kd_train_report r;
    char *x = path_of(scratch_folder, "a"), *y = path_of(scratch_folder, "b"), *x_last = path_of(x, "last.h5"),
         *y_last = path_of(y, "last.h5");
    OK(train(x, data_a, a, NULL, steps, &r));
    OK(train(y, data_b, b, NULL, steps, &r));
    const int n = differing(x_last, y_last, what, false);
    free(x);
    free(y);
    free(x_last);
    free(y_last);
    return n;
}

static void two_files(char **one, char **two, int64_t changed)
{
    md_model m;
    open_model(&m, "float");
    *one = path_of(scratch_folder, "one.h5");
    *two = path_of(scratch_folder, "two.h5");
    generate(&m, *one, 3000, 1, KD_START_BOS);
    change_end(*two, *one, changed);
    generate(&m, scratch_path("one.h5.text"), 1000, 5, KD_START_HYBRID);
    change_end(scratch_path("two.h5.text"), scratch_path("one.h5.text"), changed);
    md_free(&m);
}

/* 3,008 tokens in rows of 32: 2 % are one row, and an epoch of the others 23 steps. */
START_TEST(held_out_documents_are_never_trained_on)
{
    const training how = {"w4a8kv8", .accumulate = 1};
    char *one, *two;
    scratch_begin();
    two_files(&one, &two, _i ? 34 : 32); /* the last token of a row is no input */
    const int n = compare_runs(one, two, &how, &how, 24, "param/");
    ck_assert_msg((n != 0) == _i, "%d parameters differ", n);
    free(one);
    free(two);
    scratch_end();
}
END_TEST

START_TEST(a_run_goes_on_only_with_its_own_data)
{
    static const char *const names[] = {"data", "heldout", "text"};
    training mixing = trainings[0], *how = &mixing;
    kd_train_report r;
    char *one, *two, *run;
    int left = 4;
    scratch_begin();
    two_files(&one, &two, _i ? 32 : 64); /* the last row is held out; of the second source nothing is */
    mixing.text_share = _i == 2 ? 0.5 : 0;
    run = path_of(scratch_folder, "run");
    ck_assert(train(run, one, how, &left, 10, &r) == NB_INTERRUPTED);
    ck_assert(train(run, two, how, NULL, 10, &r) == NB_USAGE);
    ck_assert_msg(strstr(nb_fail_message(), names[_i]) != NULL, "%s", nb_fail_message());
    free(one);
    free(two);
    free(run);
    scratch_end();
}
END_TEST

START_TEST(stored_logits_belong_to_their_data)
{
    const training how = {"w4a16g32", .accumulate = 1, .top_k = 8};
    kd_train_report r;
    char *one, *two, *run, *other, *logits, *copy;
    scratch_begin();
    two_files(&one, &two, _i ? 32 : 64); /* what is held out has none */
    run = path_of(scratch_folder, "run");
    other = path_of(scratch_folder, "other");
    logits = path_of(run, "logits.h5");
    copy = path_of(other, "logits.h5");
    OK(train(run, one, &how, NULL, 2, &r));
    OK(nb_make_folder(other));
    ck_assert(rename(logits, copy) == 0);
    ck_assert(train(other, two, &how, NULL, 2, &r) == (_i ? NB_OK : NB_USAGE));
    free(one);
    free(two);
    free(run);
    free(other);
    free(logits);
    free(copy);
    scratch_end();
}
END_TEST

START_TEST(before_quant_after_a_student_is_a_float_model)
{
    const training late = {"w4a8kv8", .accumulate = 1, .quant_after = 10, .ce = 1},
                   never = {"float", .accumulate = 1, .ce = 1}, now = {"w4a8kv8", .accumulate = 1, .ce = 1};
    char *one, *two;
    scratch_begin();
    two_files(&one, &two, 0);
    const int n = compare_runs(one, two, _i ? &now : &late, &never, 10, "param/layers");
    ck_assert_msg((n != 0) == _i, "%d parameters differ", n);
    free(one);
    free(two);
    scratch_end();
}
END_TEST

START_TEST(recompute_changes_no_bit_of_a_run)
{
    training off = trainings[_i], on = off;
    char *one, *two;
    off.recompute = KD_RECOMPUTE_OFF;
    on.recompute = KD_RECOMPUTE_ON;
    scratch_begin();
    two_files(&one, &two, 0);
    ck_assert_int_eq(compare_runs(one, two, &off, &on, 10, ""), 0);
    free(one);
    free(two);
    scratch_end();
}
END_TEST

/* Rows have one scale: their gradients are other numbers, and no worse to learn from. Groups have more: nothing changes. */
START_TEST(gradients_in_8_bits_train_rows_as_well)
{
    const training plain = {_i ? "w4a8kv16" : "q4_0", .accumulate = 1}, coarse = {plain.recipe, .accumulate = 1, .int8_gradients = true};
    kd_train_report a, b;
    char *one, *two;
    scratch_begin();
    two_files(&one, &two, 0);
    const int n = compare_runs(one, two, &plain, &coarse, 10, "param/layers");
    ck_assert_msg((n != 0) == _i, "%d parameters differ", n);
    OK(train(scratch_path("a"), one, &plain, NULL, 10, &a)); /* they are finished: what they came to */
    OK(train(scratch_path("b"), two, &coarse, NULL, 10, &b));
    ck_assert_double_eq_tol(b.best_kl / a.best_kl, 1, 0.05);
    free(one);
    free(two);
    scratch_end();
}
END_TEST

/* Checkpoints of steps 6, 9 and 10 of ten steps: ranges move until --freeze-after. */
START_TEST(static_ranges_stay_from_freeze_after_on)
{
    static const char text[] =
        "base w8a8kv8\n*.input int8 tensor f32 static:average:0.5\nlayers.*.attn.v int8 asym head f16 static:minmax\n";
    kd_train_report r;
    char *one, *two, *recipe, *run, *six, *last;
    scratch_begin();
    recipe = path_of(scratch_folder, "static.txt");
    ck_assert_str_eq(scratch_write("static.txt", text, sizeof text - 1), recipe);
    two_files(&one, &two, 0);
    run = path_of(scratch_folder, "run");
    six = path_of(run, "step-6.h5");
    last = path_of(run, "last.h5");
    OK(train(run, one, &(training){recipe, .accumulate = 1, .freeze_after = _i ? 6 : 0}, NULL, 10, &r));
    const int n = differing(six, last, "site/", true);
    ck_assert_msg(_i ? n == 0 : n > 4, "%d sites moved", n);
    free(one);
    free(two);
    free(recipe);
    free(run);
    free(six);
    free(last);
    scratch_end();
}
END_TEST

START_TEST(numbers_without_sense_are_refused)
{
    static const struct {
        const char *option;
        size_t offset;
        double x;
    } bad[] = {
        {"--lr", offsetof(kd_train_options, lr), -1},
        {"--beta1", offsetof(kd_train_options, beta1), 1},
        {"--beta2", offsetof(kd_train_options, beta2), -1},
        {"--temperature", offsetof(kd_train_options, temperature), 0},
        {"--pin", offsetof(kd_train_options, pin), 1.5},
        {"--average", offsetof(kd_train_options, average), NAN},
        {"losses", offsetof(kd_train_options, kl), 0},
        {"--epochs", offsetof(kd_train_options, epochs), -1},
    };
    md_model m;
    fm_tokens tokens;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5");
    generate(&m, data, 200, 1, KD_START_BOS);
    OK(fm_tokens_open(&tokens, data, NULL, FM_SPLIT_NONE));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kd_train_options o = kd_train_defaults(true, false, &m.config);
        const kd_run_options run = {0};
        const kd_train_data d = {.data = &tokens};
        memcpy((char *)&o + bad[i].offset, &bad[i].x, sizeof bad[i].x);
        ck_assert(kd_train(scratch_path("run"), &m, &m, &d, &o, &run, NULL) == NB_USAGE);
        ck_assert_msg(strstr(nb_fail_message(), bad[i].option) != NULL, "%s", nb_fail_message());
    }
    fm_tokens_close(&tokens);
    md_free(&m);
    free(data);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("distill_settings");
    TCase *tc = tcase_create("settings");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, held_out_documents_are_never_trained_on, 0, 2);
    tcase_add_loop_test(tc, a_run_goes_on_only_with_its_own_data, 0, 3);
    tcase_add_loop_test(tc, stored_logits_belong_to_their_data, 0, 2);
    tcase_add_loop_test(tc, before_quant_after_a_student_is_a_float_model, 0, 2);
    tcase_add_loop_test(tc, recompute_changes_no_bit_of_a_run, 0, N_TRAININGS);
    tcase_add_loop_test(tc, gradients_in_8_bits_train_rows_as_well, 0, 2);
    tcase_add_loop_test(tc, static_ranges_stay_from_freeze_after_on, 0, 2);
    tcase_add_test(tc, numbers_without_sense_are_refused);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}

/* test_distill.c - generated data, evaluation and training on tiny models: what is stopped and said again ends in the same bytes. */
#include "runs_made.h"

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

START_TEST(interrupted_generation_ends_in_the_same_bytes)
{
    scratch_begin();
    md_model m;
    kd_data_report r;
    open_model(&m, "float");
    char *whole = path_of(scratch_folder, "whole.h5"), *pieces = path_of(scratch_folder, "pieces.h5");
    kd_start start = (kd_start)_i;
    kd_data_options o = {
        .start = start, .sampling = {.temperature = 1}, .tokens = 700, .ctx = 32, .slots = 4, .seed = 3};
    generate(&m, whole, 700, 3, start);
    status s = NB_INTERRUPTED;
    int rounds = 0;
    for (; s == NB_INTERRUPTED; rounds++) {
        int left = 2;
        nb_progress p = {countdown, &left};
        s = kd_generate(&m, &o, pieces, false, &p, &r);
    }
    ck_assert_msg(s == NB_OK, "%s", nb_fail_message());
    fm_tokens made;
    OK(fm_tokens_open(&made, pieces, NULL, FM_SPLIT_NONE));
    ck_assert(r.documents == made.n_documents && r.tokens == made.n && r.resumed_tokens > 0);
    fm_tokens_close(&made);
    ck_assert_int_gt(rounds, 2);
    ck_assert(same_bytes(whole, pieces));
    free(whole);
    free(pieces);
    md_free(&m);
    scratch_end();
}
END_TEST

static int64_t likeliest(const real *z, int64_t V)
{
    int64_t best = 0;
    for (int64_t v = 1; v < V; v++)
        best = z[v] > z[best] ? v : best;
    return best;
}

/* How many tokens after the first of a row are the likeliest ones, in a row. */
static int64_t greedy_tokens(md_model *m, const int32_t *row, int64_t ctx)
{
    rt_session *s;
    int64_t n = 0;
    real hidden[64], z[64];
    OK(rt_open(&s, m, &(rt_options){0}));
    for (; n + 1 < ctx; n++) {
        OK(rt_forward(s, 1, NULL, &row[n], hidden));
        OK(rt_head(s, z, hidden, 1));
        const int64_t next = row[n] == m->config.eos ? m->config.bos : likeliest(z, m->config.vocab);
        if (row[n + 1] != next)
            break;
    }
    rt_close(s);
    return n;
}

/* 41 rows: each token of the vocabulary begins one (hybrid), or BOS does; 3 to 5 tokens are the likeliest; an end token is followed by BOS. */
START_TEST(rows_are_made_as_the_scheme_says)
{
    enum { ROWS = 41, CTX = 32 };
    const kd_start start = _i ? KD_START_HYBRID : KD_START_BOS;
    md_model m;
    fm_tokens t;
    int32_t row[CTX];
    int seen[ROWS] = {0}, ends = 0, short_ones = 0;
    scratch_begin();
    open_model(&m, "float");
    char *path = path_of(scratch_folder, "data.h5");
    generate(&m, path, ROWS * CTX, 5, start);
    OK(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    ck_assert_int_eq(t.n, ROWS * CTX);
    for (int64_t r = 0; r < ROWS; r++) {
        OK(fm_tokens_read(&t, row, r * CTX, CTX));
        ck_assert(start == KD_START_HYBRID ? seen[row[0]]++ == 0 : row[0] == m.config.bos);
        const int64_t greedy = greedy_tokens(&m, row, CTX);
        ck_assert(start == KD_START_BOS || greedy >= 3);
        short_ones += greedy < 6;
        for (int i = 1; i < CTX; i++) {
            ck_assert(row[i - 1] != m.config.eos || row[i] == m.config.bos);
            ends += row[i - 1] == m.config.eos;
        }
    }
    ck_assert_int_gt(ends, 0);
    ck_assert_int_gt(short_ones, ROWS / 4); /* sampling begins there */
    ck_assert_int_ge(t.n_documents, ROWS);
    fm_tokens_close(&t);
    md_free(&m);
    free(path);
    scratch_end();
}
END_TEST

/* Passages of 8 tokens, or what is left of a row behind the last whole one, each once before any comes again; then the model's own. */
START_TEST(rows_begin_with_passages_of_a_text)
{
    enum { ROW = 30, LENGTH = 8, PASSAGES = 3 * 4, ROWS = 2 * PASSAGES };
    scratch_begin();
    md_model m;
    fm_tokens text, made;
    kd_data_report r;
    int32_t passage[ROW], row[32], begun[PASSAGES] = {0}, copied = 0;
    char *from = path_of(scratch_folder, "text.h5"), *to = path_of(scratch_folder, "made.h5"), *pieces = path_of(scratch_folder, "pieces.h5");
    open_model(&m, "float");
    kd_data_options o = {.start = KD_START_BOS, .sampling = {.temperature = 1}, .tokens = 3 * ROW, .ctx = ROW, .slots = 4, .seed = 1};
    OK(kd_generate(&m, &o, from, true, NULL, &r));
    OK(fm_tokens_open(&text, from, NULL, FM_SPLIT_NONE));
    o = (kd_data_options){.sampling = {.temperature = 1}, .tokens = ROWS * 32, .ctx = 32, .slots = 5, .seed = 2, .prompts = &text, .prompt_length = LENGTH};
    OK(kd_generate(&m, &o, to, true, NULL, &r));
    OK(fm_tokens_open(&made, to, NULL, FM_SPLIT_NONE));
    ck_assert_int_eq(made.n, ROWS * 32);
    for (int64_t i = 0; i < ROWS; i++) {
        OK(fm_tokens_read(&made, row, i * 32, 32));
        int64_t found = -1;
        for (int64_t k = 0; k < PASSAGES && found < 0; k++) {
            const int64_t n = k % 4 < 3 ? LENGTH : ROW - 3 * LENGTH;
            OK(fm_tokens_read(&text, passage, k / 4 * ROW + k % 4 * LENGTH, n));
            found = begun[k] == i / PASSAGES && !memcmp(passage, row, (size_t)n * sizeof *row) ? k : -1;
        }
        ck_assert_msg(found >= 0, "row %lld begins with no passage that is still due", (long long)i);
        begun[found]++;
        OK(fm_tokens_read(&text, passage, found / 4 * ROW, ROW));
        copied += found % 4 == 0 && !memcmp(passage, row, sizeof passage);
    }
    ck_assert_int_eq(copied, 0);
    status s = NB_INTERRUPTED;
    while (s == NB_INTERRUPTED) {
        int left = 2;
        nb_progress p = {countdown, &left};
        s = kd_generate(&m, &o, pieces, false, &p, &r);
    }
    ck_assert_msg(s == NB_OK, "%s", nb_fail_message());
    ck_assert(same_bytes(to, pieces));
    o.prompt_length = 32;
    ck_assert_int_eq(kd_generate(&m, &o, to, true, NULL, &r), NB_USAGE);
    fm_tokens_close(&made);
    fm_tokens_close(&text);
    free(from);
    free(to);
    free(pieces);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(interrupted_training_ends_in_the_same_bytes)
{
    const training *how = &trainings[_i];
    kd_train_report r;
    md_model m;
    scratch_begin();
    open_model(&m, "float");
    char *data = path_of(scratch_folder, "data.h5"), *whole = path_of(scratch_folder, "whole"),
         *pieces = path_of(scratch_folder, "pieces");
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
    ck_assert_msg(train(pieces, data, how, NULL, 10, &r) == NB_OK && r.was_finished, "said again: %s",
                  nb_fail_message());
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
    char *data = path_of(scratch_folder, "data.h5"), *folder = path_of(scratch_folder, "run"),
         *last = path_of(folder, "last.h5");
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
    char *data = path_of(scratch_folder, "data.h5"), *a = path_of(scratch_folder, "live"),
         *b = path_of(scratch_folder, "stored");
    training how = trainings[5];
    how.text_share = 0;
    generate(&m, data, 6000, 1, KD_START_BOS);
    md_free(&m);
    how.top_k = 0;
    OK(train(a, data, &how, NULL, 40, &live));
    how.top_k = 40; /* of 41; the logarithms are halves, so another path, to the same place */
    OK(train(b, data, &how, NULL, 40, &stored));
    ck_assert_msg(fabs(stored.best_kl - live.best_kl) < 0.15 * live.best_kl, "KL %g, %g with the teacher",
                  stored.best_kl, live.best_kl);
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
    char *data = path_of(scratch_folder, "data.h5"), *heldout = path_of(scratch_folder, "held.h5"),
         *run = path_of(scratch_folder, "run");
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
    tcase_add_loop_test(tc, rows_are_made_as_the_scheme_says, 0, 2);
    tcase_add_test(tc, rows_begin_with_passages_of_a_text);
    tcase_add_loop_test(tc, interrupted_training_ends_in_the_same_bytes, 0, N_TRAININGS);
    tcase_add_test(tc, pinned_weights_lie_on_the_grid);
    tcase_add_test(tc, stored_logits_of_nearly_all_tokens_train_as_the_teacher_does);
    tcase_add_test(tc, damaged_checkpoints_are_refused_and_kept);
    tcase_add_test(tc, distillation_beats_round_to_nearest);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}

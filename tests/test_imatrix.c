/* test_imatrix.c - llama.cpp's importance matrix: what is written is read, for every weight; the layout is theirs; files that lie are refused.
 */
#include "distill/distill.h"
#include "models_made.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

/* As if 96 rows had been seen: sums by site and channel. */
static void seen(kd_importance *h, const md_model *m)
{
    ck_assert(kd_importance_new(h, m) == NB_OK);
    for (int64_t i = 0; i < h->n; i++) {
        const fq_site *s = m->sites.s[i];
        if (s->is_weight || !strstr(s->name, "input"))
            continue;
        h->rows[i] = 96;
        h->sum[i] = malloc((size_t)s->cols * sizeof **h->sum);
        for (int64_t c = 0; c < s->cols; c++)
            h->sum[i][c] = (double)(float)(0.25 * (double)(1 + i) * (double)(c + 1));
    }
}

static void same_importance(kd_importance *a, kd_importance *b, const md_model *m)
{
    int found = 0;
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *s = m->sites.s[i];
        const real *x = s->is_weight ? kd_importance_of(a, s) : NULL, *y = s->is_weight ? kd_importance_of(b, s) : NULL;
        ck_assert_msg(!x == !y, "%s", s->name);
        ck_assert_msg(!x || memcmp(x, y, (size_t)s->cols * sizeof *x) == 0, "%s", s->name);
        found += x != NULL;
    }
    ck_assert_int_ge(found, (md_is_gpt2(&m->config) ? 6 : 7) * (int)m->config.layers + 1);
}

START_TEST(what_was_written_is_read)
{
    md_model m;
    kd_importance h, back;
    scratch_begin();
    made_model(&m, &made_shapes[_i], _i % 2 ? "q4_0" : "float", 1);
    seen(&h, &m);
    const char *path = scratch_path("im.gguf");
    ck_assert_msg(kd_importance_write(&h, path, "a text", 32) == NB_OK, "%s", nb_fail_message());
    ck_assert(kd_importance_new(&back, &m) == NB_OK);
    ck_assert_msg(kd_importance_read(&back, path) == NB_OK, "%s", nb_fail_message());
    same_importance(&h, &back, &m);
    kd_importance_free(&back);
    kd_importance_free(&h);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(the_layout_is_llama_cpps)
{
    static const char *const names[] = {"attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"};
    md_model m;
    kd_importance h;
    fm_arrays a;
    scratch_begin();
    made_model(&m, &made_shapes[3], "float", 1); /* one layer, a head of its own */
    seen(&h, &m);
    const char *path = scratch_path("im.gguf");
    ck_assert(kd_importance_write(&h, path, "a text", 32) == NB_OK && fm_gguf_open(&a, path) == NB_OK);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "general.type")), "imatrix");
    ck_assert_int_eq(fm_value_int(fm_meta_get(&a.meta, "imatrix.chunk_count"), 0, 0), 3);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&a.meta, "imatrix.chunk_size"), 0, 0), 32);
    fm_text dataset = fm_value_text(fm_meta_get(&a.meta, "imatrix.datasets"), 0);
    ck_assert(dataset.bytes == 6 && !memcmp(dataset.text, "a text", 6));
    ck_assert_int_eq(a.n, 2 * 8);
    for (int i = 0; i < 8; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, i < 7 ? "blk.0.%s.weight.in_sum2" : "output.weight.in_sum2", i < 7 ? names[i] : "");
        ck_assert_str_eq(a.array[2 * i].name, name);
        strcpy(strrchr(name, '.'), ".counts");
        ck_assert_str_eq(a.array[2 * i + 1].name, name);
        ck_assert(a.array[2 * i].dtype == FM_F32 && fm_count(&a.array[2 * i + 1]) == 1);
    }
    fm_arrays_free(&a);
    kd_importance_free(&h);
    md_free(&m);
    scratch_end();
}
END_TEST

/* One entry for blk.0.attn_q.weight, wrong in one way. */
static const struct {
    const char *type, *sums, *counts, *says;
    int64_t cols, n_counts;
    fm_dtype dtype;
    float x, count;
    status wanted;
} wrong[] = {
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", NULL, 32, 1, FM_F32, 1, 7, NB_OK},
    {"model", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "general.type", 32, 1, FM_F32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.9.attn_q.weight.in_sum2", "blk.9.attn_q.weight.counts", "no entry", 32, 1, FM_F32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.count", "has no counts", 32, 1, FM_F32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum", "blk.0.attn_q.weight.counts", "has no in_sum2", 32, 1, FM_F32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "of 31 columns", 31, 1, FM_F32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "of 2 matrices", 32, 2, FM_F32, 1, 7, NB_UNSUPPORTED},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "are F32", 32, 1, FM_I32, 1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "no sum of squares", 32, 1, FM_F32, -1, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "no sum of squares", 32, 1, FM_F32, INFINITY, 7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "counts is -7", 32, 1, FM_F32, 1, -7, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "counts is inf", 32, 1, FM_F32, 1, INFINITY, NB_FORMAT},
    {"imatrix", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", "no entry", 32, 1, FM_F32, 1, 0, NB_FORMAT},
};

START_TEST(files_that_lie_are_refused)
{
    md_model m;
    kd_importance h;
    fm_meta meta = {0};
    float x[32], counts[2] = {wrong[_i].count, wrong[_i].count};
    scratch_begin();
    for (int c = 0; c < 32; c++)
        x[c] = wrong[_i].x;
    fm_array a[] = {
        {.name = wrong[_i].sums, .dtype = wrong[_i].dtype, .n_dim = 2, .dim = {1, wrong[_i].cols}, .data = x},
        {.name = wrong[_i].counts, .dtype = FM_F32, .n_dim = 2, .dim = {wrong[_i].n_counts, 1}, .data = counts}};
    ck_assert(fm_array_measure(&a[0]) == NB_OK && fm_array_measure(&a[1]) == NB_OK);
    fm_meta_put_string(&meta, "general.type", wrong[_i].type);
    const char *path = scratch_path("im.gguf");
    ck_assert_msg(fm_gguf_write(path, a, 2, &meta, (fm_source){0}) == NB_OK, "%s", nb_fail_message());
    made_model(&m, &made_shapes[1], "q4_0", 1);
    ck_assert(kd_importance_new(&h, &m) == NB_OK);
    status s = kd_importance_read(&h, path);
    ck_assert_msg(s == wrong[_i].wanted, "%d: %s", (int)s, nb_fail_message());
    if (s == NB_OK)
        ck_assert(kd_importance_of(&h, fq_site_find(&m.sites, "layers.0.attn.wk.weight"))[3] == 1.0F / 7);
    else
        ck_assert_msg(strstr(nb_fail_message(), wrong[_i].says) && strstr(nb_fail_message(), path), "%s", nb_fail_message());
    kd_importance_free(&h);
    fm_meta_free(&meta);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(files_of_other_kinds_are_refused)
{
    md_model m;
    kd_importance h;
    scratch_begin();
    made_model(&m, &made_shapes[1], "q4_0", 1);
    ck_assert(kd_importance_new(&h, &m) == NB_OK);
    const char *path = scratch_write("im.dat", "\1\0\0\0\6\0\0\0", 8);
    ck_assert_int_eq(kd_importance_read(&h, path), NB_UNSUPPORTED);
    ck_assert_msg(strstr(nb_fail_message(), "--output-format gguf") != NULL, "%s", nb_fail_message());
    ck_assert_int_eq(kd_importance_read(&h, scratch_path("none")), NB_IO);
    kd_importance_free(&h);
    md_free(&m);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("imatrix");
    TCase *c = tcase_create("imatrix");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, what_was_written_is_read, 0, N_MADE_SHAPES);
    tcase_add_test(c, the_layout_is_llama_cpps);
    tcase_add_loop_test(c, files_that_lie_are_refused, 0, sizeof wrong / sizeof *wrong);
    tcase_add_test(c, files_of_other_kinds_are_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}

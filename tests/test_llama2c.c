/* test_llama2c.c - llama2.c's model files: versions 0, 1 and 2 of real and made models are read, written back byte for
 * byte, and refused when their header and their length disagree.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

#define STORIES DATA "stories260k/stories260K"

static status read_file(const char *path)
{
    fm_arrays a;
    fm_llama2c h;
    TRY(fm_llama2c_open(&a, &h, path));
    fm_arrays_free(&a);
    return NB_OK;
}

/* Bytes that are a function of the array's name and the place in it. */
static status give_made_up(void *ctx, fm_sink *sink, const fm_array *a)
{
    (void)ctx;
    uint64_t stream = nb_hash(NB_HASH_START, a->name, strlen(a->name));
    for (uint64_t i = 0; i < a->bytes / fm_dtype_bytes(a->dtype); i++) {
        float x = (float)nb_random_normal(1, stream, i);
        int8_t q = (int8_t)(nb_random(1, stream, i) & 0xFF);
        TRY(a->dtype == FM_F32 ? fm_put(sink, &x, sizeof x) : fm_put(sink, &q, sizeof q));
    }
    return NB_OK;
}

static const fm_llama2c models[] = {
    {8, 12, 2, 2, 1, 10, 6, true, 1, 0},   {8, 12, 3, 4, 2, 10, 6, false, 1, 0}, {8, 12, 2, 2, 1, 10, 6, true, 2, 4},
    {8, 12, 1, 2, 2, 10, 6, false, 2, 16}, {16, 5, 2, 2, 1, 3, 6, true, 2, 16},  {2, 1, 1, 1, 1, 1, 1, true, 1, 0},
};

START_TEST(what_was_written_is_read)
{
    fm_llama2c h = models[_i], found;
    const char *path = scratch_path("model.bin");
    fm_arrays a;
    must(fm_llama2c_write(path, &h, (fm_source){give_made_up, NULL}));
    must(fm_llama2c_open(&a, &found, path));
    ck_assert(!memcmp(&found, &h, offsetof(fm_llama2c, shared_classifier)));
    ck_assert(found.shared_classifier == h.shared_classifier && found.version == h.version);
    ck_assert_int_eq(found.group_size, h.group_size);
    int matrices = 7 * h.n_layers + (h.shared_classifier ? 1 : 2), vectors = 2 * h.n_layers + 1;
    ck_assert_int_eq(a.n, vectors + matrices * (h.version == 2 ? 2 : 1));
    ck_assert((fm_find(&a, "output.weight") != NULL) == !h.shared_classifier);
    const fm_array *x;
    must(fm_need(&x, &a, "layers.0.feed_forward.w2.weight", 2, (const int64_t[]){h.dim, h.hidden_dim}));
    ck_assert_int_eq(x->dtype, h.version == 2 ? FM_I8 : FM_F32);
    must(
        fm_need(&x, &a, "layers.0.attention.wk.weight", 2, (const int64_t[]){h.dim / h.n_heads * h.n_kv_heads, h.dim}));
    must(fm_need(&x, &a, "norm.weight", 1, (const int64_t[]){h.dim}));
    ck_assert(fm_find(&a, "norm.weight.scales") == NULL);
    if (h.version == 2)
        must(
            fm_need(&x, &a, "tok_embeddings.weight.scales", 1, (const int64_t[]){h.vocab_size * h.dim / h.group_size}));
    const char *again = scratch_path("again.bin");
    must(fm_llama2c_write(again, &h, (fm_source){give_from, &a}));
    fm_arrays_free(&a);
    same_files(path, again);
    refuse_every_cut(path, read_file, 400);
    survive_without_memory(path, read_file);
}
END_TEST

static const struct {
    const char *path;
    int32_t version, group_size;
} real[] = {{STORIES ".bin", 0, 0}, {STORIES "_v1.bin", 1, 0}, {STORIES "-q8.bin", 2, 8}};

START_TEST(real_models_have_the_arrays_they_should)
{
    if (!have(real[_i].path))
        return;
    fm_arrays a;
    fm_llama2c h;
    must(fm_llama2c_open(&a, &h, real[_i].path));
    ck_assert(h.dim == 64 && h.hidden_dim == 172 && h.n_layers == 5 && h.n_heads == 8 && h.n_kv_heads == 4);
    ck_assert(h.vocab_size == 512 && h.seq_len == 512 && h.shared_classifier);
    ck_assert(h.version == real[_i].version && h.group_size == real[_i].group_size);
    int64_t parameters = 0;
    for (int64_t i = 0; i < a.n; i++)
        parameters += strstr(a.array[i].name, ".scales") ? 0 : fm_count(&a.array[i]);
    ck_assert_int_eq(parameters, 260032);
    const fm_array *x;
    must(fm_need(&x, &a, "layers.4.attention.wv.weight", 2, (const int64_t[]){32, 64}));
    must(fm_need(&x, &a, "layers.4.feed_forward.w3.weight", 2, (const int64_t[]){172, 64}));
    fm_arrays_free(&a);
}
END_TEST

START_TEST(legacy_and_version_1_hold_the_same_model)
{
    fm_arrays a, b;
    fm_llama2c h;
    if (!have(real[0].path) || !have(real[1].path))
        return;
    must(fm_llama2c_open(&a, &h, real[0].path));
    must(fm_llama2c_open(&b, &h, real[1].path));
    ck_assert_int_eq(a.n, b.n);
    for (int64_t i = 0; i < a.n; i++)
        same_arrays(&a.array[i], fm_find(&b, a.array[i].name));
    fm_arrays_free(&a);
    fm_arrays_free(&b);
}
END_TEST

/* A third party's int8 file: each code is the float divided by its group's scale to within one half, though some of its
 * groups of 8 straddle rows; and version 1 and 2 come out of our writer as they went in. */
START_TEST(groups_run_over_rows_and_files_come_back_byte_for_byte)
{
    fm_arrays a, b;
    fm_llama2c h;
    if (!have(real[1].path) || !have(real[2].path))
        return;
    must(fm_llama2c_open(&a, &h, real[1].path));
    must(fm_llama2c_write(scratch_path("v1.bin"), &h, (fm_source){give_from, &a}));
    same_files(scratch_path("v1.bin"), real[1].path);
    must(fm_llama2c_open(&b, &h, real[2].path));
    must(fm_llama2c_write(scratch_path("v2.bin"), &h, (fm_source){give_from, &b}));
    same_files(scratch_path("v2.bin"), real[2].path);
    enum { MOST = 512 * 64 };
    float *code = calloc(3 * MOST, sizeof *code), *scale = code + MOST, *x = scale + MOST;
    for (int64_t i = 0; i < b.n; i++) {
        char name[128];
        const fm_array *q = &b.array[i], *w = fm_find(&a, q->name);
        (void)snprintf(name, sizeof name, "%s.scales", q->name);
        const fm_array *s = fm_find(&b, name);
        if (!s)
            continue;
        must(fm_to_float(code, q, 0, fm_count(q)));
        must(fm_to_float(scale, s, 0, fm_count(s)));
        must(fm_to_float(x, w, 0, fm_count(w)));
        int64_t wrong = 0;
        for (int64_t k = 0; k < fm_count(q); k++)
            wrong += !(fabsf(code[k] * scale[k / 8] - x[k]) <= 0.5001F * scale[k / 8]);
        ck_assert_msg(wrong == 0, "%s: %lld codes are not their floats", q->name, (long long)wrong);
    }
    free(code);
    fm_arrays_free(&a);
    fm_arrays_free(&b);
}
END_TEST

/* ---- headers ---- */

enum { MODEL_1 = 1040384, MODEL_0 = 28, MAGIC = 0x616b3432 };

/* A legacy file made by hand: 7 numbers and `floats` floats. */
static const char *write_legacy(const int32_t header[7], size_t floats)
{
    size_t bytes = 28 + 4 * floats;
    uint8_t *file = calloc(1, bytes);
    ck_assert(file != NULL);
    memcpy(file, header, 28);
    const char *path = scratch_write("legacy.bin", file, bytes);
    free(file);
    return path;
}

/* D 4, F 3, L 1, H 2, KV 1, V 5, S 6: norms 3*4, embedding 20, attention 16+8+8+16, mlp 36, tables 6*2 each half. */
enum { WITHOUT_TABLES = 12 + 20 + 48 + 36, TABLES = 12, HEAD = 20 };
static const struct {
    int32_t vocab;
    size_t floats;
    bool good;
} legacy[] = {
    {5, WITHOUT_TABLES + TABLES, true},         {5, WITHOUT_TABLES, true}, /* readers skip them, some writers too */
    {5, WITHOUT_TABLES + TABLES + HEAD, false}, {-5, WITHOUT_TABLES + TABLES + HEAD, true},
    {-5, WITHOUT_TABLES + HEAD, false},         {-5, WITHOUT_TABLES + TABLES, false},
    {5, WITHOUT_TABLES + TABLES + 1, false},    {5, WITHOUT_TABLES - 1, false},
};

START_TEST(legacy_lengths_are_exact)
{
    const int32_t header[7] = {4, 3, 1, 2, 1, legacy[_i].vocab, 6};
    const char *path = write_legacy(header, legacy[_i].floats);
    if (!legacy[_i].good) {
        must_fail(read_file(path), NB_FORMAT, "its header asks for");
        return;
    }
    fm_arrays a;
    fm_llama2c h;
    must(fm_llama2c_open(&a, &h, path));
    ck_assert(h.vocab_size == 5 && h.shared_classifier == (legacy[_i].vocab > 0) && h.version == 0);
    const fm_array *head = fm_find(&a, "output.weight");
    ck_assert((head != NULL) == !h.shared_classifier);
    ck_assert(!head || (const uint8_t *)head->data + head->bytes == a.file->data + a.file->bytes);
    fm_arrays_free(&a);
}
END_TEST

static const struct {
    int32_t at, value; /* number of the header, in a file of version 2 */
    const char *message;
    status wanted;
} lies[] = {
    {1, 3, "version 3", NB_UNSUPPORTED},
    {1, 0, "version 0", NB_UNSUPPORTED},
    {2, 0, "dim is 0", NB_FORMAT},
    {2, -8, "dim is -8", NB_FORMAT},
    {2, INT32_MAX, "do not divide", NB_FORMAT},
    {3, 0, "hidden_dim is 0", NB_FORMAT},
    {4, 0, "n_layers is 0", NB_FORMAT},
    {4, INT32_MAX, "asks for", NB_FORMAT},
    {5, 0, "n_heads is 0", NB_FORMAT},
    {5, 3, "do not divide", NB_FORMAT},
    {5, 8, "do not divide", NB_FORMAT},
    {6, 0, "n_kv_heads is 0", NB_FORMAT},
    {7, -10, "vocab_size is -10", NB_FORMAT},
    {7, INT32_MAX, "", NB_FORMAT},
    {8, 0, "seq_len is 0", NB_FORMAT},
    {6, 2, "asks for", NB_FORMAT},
};

START_TEST(headers_that_lie_are_refused)
{
    size_t bytes;
    const char *path = scratch_path("model.bin");
    must(fm_llama2c_write(path, &models[2], (fm_source){give_made_up, NULL}));
    uint8_t *data = load(path, &bytes);
    memcpy(data + 4 * lies[_i].at, &lies[_i].value, 4);
    must_fail(read_file(scratch_write("lie.bin", data, bytes)), lies[_i].wanted, lies[_i].message);
    free(data);
}
END_TEST

START_TEST(group_sizes_that_do_not_divide_are_refused)
{
    static const int32_t sizes[] = {0, -1, INT32_MIN, 3, 7, INT32_MAX};
    size_t bytes;
    const char *path = scratch_path("model.bin");
    must(fm_llama2c_write(path, &models[2], (fm_source){give_made_up, NULL}));
    uint8_t *data = load(path, &bytes);
    memcpy(data + 37, &sizes[_i], 4);
    must_fail(read_file(scratch_write("lie.bin", data, bytes)), NB_FORMAT, sizes[_i] < 1 ? "group_size" : "groups");
    data[36] = 2;
    must_fail(read_file(scratch_write("lie.bin", data, bytes)), NB_FORMAT, "shared classifier");
    free(data);
}
END_TEST

/* Numbers so large that sizes overflow: refused before anything is allocated. */
START_TEST(sizes_that_overflow_are_refused)
{
    static const int32_t headers[][7] = {
        {INT32_MAX - 1, INT32_MAX, INT32_MAX, 1, 1, INT32_MAX, INT32_MAX},
        {1 << 30, 1 << 30, 1 << 30, 1, 1, 1 << 30, 1 << 30},
        {2, 1, INT32_MAX, 1, 1, 1, 1},
        {4, 3, 1, 2, 1, INT32_MIN, 6},
    };
    must_fail(read_file(write_legacy(headers[_i], 100)), NB_FORMAT, "");
}
END_TEST

START_TEST(failed_writing_keeps_the_old_file)
{
    const char *path = scratch_path("model.bin"), *same = scratch_path("same.bin");
    fm_arrays empty = {0};
    fm_llama2c h = models[0];
    must(fm_llama2c_write(path, &h, (fm_source){give_made_up, NULL}));
    must(fm_llama2c_write(same, &h, (fm_source){give_made_up, NULL}));
    must_fail(fm_llama2c_write(path, &h, (fm_source){give_from, &empty}), NB_SHAPE, "not as it was");
    must_fail(fm_llama2c_write(path, &h, (fm_source){0}), NB_USAGE, "");
    h.version = 0;
    must_fail(fm_llama2c_write(path, &h, (fm_source){give_made_up, NULL}), NB_USAGE, "version 0 is not written");
    h.version = 2;
    h.group_size = 64;
    must_fail(fm_llama2c_write(path, &h, (fm_source){give_made_up, NULL}), NB_FORMAT, "whole groups of 64");
    same_files(path, same);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("llama2c");
    TCase *c = tcase_create("llama2c");
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_set_timeout(c, 30); /* thousands of small files under sanitizers */
    tcase_add_loop_test(c, what_was_written_is_read, 0, COUNT(models));
    tcase_add_loop_test(c, real_models_have_the_arrays_they_should, 0, COUNT(real));
    tcase_add_test(c, legacy_and_version_1_hold_the_same_model);
    tcase_add_test(c, groups_run_over_rows_and_files_come_back_byte_for_byte);
    tcase_add_loop_test(c, legacy_lengths_are_exact, 0, COUNT(legacy));
    tcase_add_loop_test(c, headers_that_lie_are_refused, 0, COUNT(lies));
    tcase_add_loop_test(c, group_sizes_that_do_not_divide_are_refused, 0, 6);
    tcase_add_loop_test(c, sizes_that_overflow_are_refused, 0, 4);
    tcase_add_test(c, failed_writing_keeps_the_old_file);
    suite_add_tcase(s, c);
    return run_suite(s);
}

/* test_formats_client.c - files that we write, read by the formats' own Python packages (safetensors, gguf, h5py), and
 * files that those write, read by us; blocks of ggml's types, decoded by libggml and by us. Needs NIBBLE_PYTHON, a Python
 * that has the packages, and NIBBLE_LIBLLAMA, the folder of libggml-base.so; skipped without.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"
#include <dlfcn.h>
#include <math.h>
#include <sys/wait.h>

static void keep_expected(const char *name, const float *x, int64_t n)
{
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/expected/%s.f32", scratch_folder, name);
    for (char *p = strstr(path, "/expected/") + 10; *p; p++)
        *p = *p == '/' ? '|' : *p;
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(x, sizeof *x, (size_t)n, f) == (size_t)n && fclose(f) == 0);
}

/* Keeps the values of arrays as Python must find them. */
static void keep_all(const fm_array *array, int n)
{
    float x[256];
    must(nb_make_folder(scratch_path("expected")));
    for (int i = 0; i < n; i++) {
        ck_assert_int_le(fm_count(&array[i]), 256);
        must(fm_to_float(x, &array[i], 0, fm_count(&array[i])));
        keep_expected(array[i].name, x, fm_count(&array[i]));
    }
}

/* Runs the script; false when it cannot run here. */
static bool run_python(const char *command)
{
    char line[2048];
    const char *python = getenv("NIBBLE_PYTHON");
    if (!python || !*python) {
        printf("skipped: NIBBLE_PYTHON is not set\n");
        return false;
    }
    (void)snprintf(line, sizeof line, "'%s' tests/formats_client.py %s '%s'", python, command, scratch_folder);
    int how = system(line);
    if (WIFEXITED(how) && WEXITSTATUS(how) == 77)
        return false;
    ck_assert_msg(how == 0, "%s: status %d", line, how);
    return true;
}

static float numbers[128];
static uint8_t blocks[256];

static void fill(void)
{
    int8_t q[128];
    uint16_t d[4], m[4];
    for (uint64_t i = 0; i < 128; i++) {
        numbers[i] = (float)nb_random_normal(1, 0, i);
        q[i] = (int8_t)(nb_random(1, 1, i) % 16);
    }
    for (uint64_t i = 0; i < 4; i++) {
        d[i] = nb_half_from((float)nb_random_normal(1, 2, i));
        m[i] = nb_half_from((float)nb_random_normal(1, 3, i));
    }
    must(fm_blocks_pack(blocks, FM_Q4_1, q, d, m, NULL, 4));
}

static void write_safetensors(void)
{
    const fm_array arrays[] = {{"st.b", FM_F32, 2, {4, 6}, numbers, 96},
                               {"st.a", FM_F16, 1, {8}, "\0\x3C\0\xC0\1\0\0\0\0\x3C\0\xC0\1\0\0\0", 16},
                               {"st.q", FM_I8, 3, {2, 1, 3}, blocks, 6},
                               {"st.n", FM_I64, 0, {0}, "\1\2\3\0\0\0\0\0", 8},
                               {"st.f", FM_BOOL, 1, {2}, "\0\1", 2},
                               {"st.e", FM_F64, 2, {0, 3}, NULL, 0}};
    keep_all(arrays, COUNT(arrays));
    must(fm_safetensors_write(scratch_path("c.safetensors"), arrays, COUNT(arrays), NULL, (fm_source){0}));
}

static void write_gguf(void)
{
    const fm_array arrays[] = {
        {"gguf.f32", FM_F32, 2, {2, 5}, numbers, 40},    {"gguf.q4_1", FM_Q4_1, 2, {2, 64}, blocks, 80},
        {"gguf.q4_0", FM_Q4_0, 1, {64}, blocks, 36},     {"gguf.q8_0", FM_Q8_0, 2, {3, 32}, blocks, 102},
        {"gguf.bf16", FM_BF16, 1, {5}, numbers + 1, 10},
    };
    const fm_text words[] = {{"<s>", 3}, {"\xE2\x96\x81the", 6}, {"", 0}};
    fm_meta m = {0};
    fm_meta_put_string(&m, "general.architecture", "llama");
    fm_meta_put_u32(&m, "general.alignment", 64);
    fm_meta_put_f32(&m, "llama.attention.layer_norm_rms_epsilon", 1e-5F);
    fm_meta_put_strings(&m, "tokenizer.ggml.tokens", words, 3);
    fm_meta_put_array(&m, "tokenizer.ggml.scores", FM_F32, (const float[]){0, -1, -2}, 3);
    fm_meta_put_bool(&m, "tokenizer.ggml.add_bos_token", true);
    fm_meta_put(&m, "f64", FM_F64, &(double){0.1});
    fm_meta_put(&m, "i64", FM_I64, &(int64_t){INT64_MIN});
    keep_all(arrays, COUNT(arrays));
    must(fm_gguf_write(scratch_path("c.gguf"), arrays, COUNT(arrays), &m, (fm_source){0}));
    fm_meta_free(&m);
}

static void write_hdf5(void)
{
    const fm_array arrays[] = {{"param/layers.0.wq.weight", FM_F32, 2, {8, 16}, numbers, 512},
                               {"param/half", FM_F16, 1, {3}, "\0\x3C\0\xC0\1\0", 6},
                               {"bf16", FM_BF16, 1, {5}, numbers + 1, 10},
                               {"codes", FM_I8, 2, {2, 3}, blocks, 6},
                               {"scalar", FM_U32, 0, {0}, blocks, 4},
                               {"ids", FM_U16, 1, {40}, blocks, 80}};
    fm_h5 f;
    must(fm_h5_create(&f, scratch_path("c.h5"), "folded"));
    for (int i = 0; i < COUNT(arrays) - 1; i++)
        must(fm_h5_write(&f, arrays[i].name, arrays[i].dtype, arrays[i].n_dim, arrays[i].dim, arrays[i].data));
    must(fm_h5_stream(&f, "ids", FM_U16, 0, NULL, 16));
    must(fm_h5_append(&f, "ids", blocks, 25));
    must(fm_h5_append(&f, "ids", blocks + 50, 15));
    must(fm_h5_put_string(&f, "", "config", "{}"));
    must(fm_h5_put_int(&f, "param", "step", 7));
    must(fm_h5_commit(&f));
    keep_all(arrays, COUNT(arrays));
}

START_TEST(their_readers_read_what_we_write)
{
    fill();
    write_safetensors();
    write_gguf();
    write_hdf5();
    (void)run_python("check");
}
END_TEST

/* Every array of `a` equals what Python kept of it. */
static void check_arrays(const fm_arrays *a)
{
    for (int64_t i = 0; i < a->n; i++) {
        char path[1024];
        size_t bytes, n = (size_t)fm_count(&a->array[i]);
        (void)snprintf(path, sizeof path, "%s/expected/%s.f32", scratch_folder, a->array[i].name);
        uint8_t *wanted = load(path, &bytes);
        float *x = calloc(n + 1, sizeof *x);
        ck_assert(x != NULL && bytes == n * sizeof *x);
        must(fm_to_float(x, &a->array[i], 0, (int64_t)n));
        ck_assert_msg(!memcmp(x, wanted, bytes), "%s differs", a->array[i].name);
        free(x);
        free(wanted);
    }
}

START_TEST(we_read_what_their_writers_write)
{
    fm_arrays a;
    if (!run_python("write"))
        return;
    must(fm_safetensors_open(&a, scratch_path("py.safetensors")));
    ck_assert_int_eq(a.n, 6);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "by")), "python");
    check_arrays(&a);
    fm_arrays_free(&a);
    must(fm_gguf_open(&a, scratch_path("py.gguf")));
    ck_assert_int_eq(a.n, 8);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&a.meta, "llama.context_length"), 0, 0), 128);
    ck_assert_int_eq(fm_meta_get(&a.meta, "tokenizer.ggml.tokens")->n, 2);
    check_arrays(&a);
    must(fm_gguf_write(scratch_path("again.gguf"), a.array, a.n, &a.meta, (fm_source){0}));
    fm_arrays_free(&a);
    same_files(scratch_path("again.gguf"), scratch_path("py.gguf"));
}
END_TEST

static const struct {
    fm_dtype type;
    const char *theirs;
} decoded[] = {{FM_Q4_0, "q4_0"}, {FM_Q4_1, "q4_1"}, {FM_Q5_0, "q5_0"}, {FM_Q5_1, "q5_1"}, {FM_Q8_0, "q8_0"},     {FM_Q2_K, "q2_K"},
               {FM_Q3_K, "q3_K"}, {FM_Q4_K, "q4_K"}, {FM_Q5_K, "q5_K"}, {FM_Q6_K, "q6_K"}, {FM_IQ4_NL, "iq4_nl"}, {FM_TQ1_0, "tq1_0"},
               {FM_TQ2_0, "tq2_0"}, {FM_MXFP4, "mxfp4"}, {FM_Q1_0, "q1_0"}, {FM_Q2_0, "q2_0"}};
enum { N_DECODED = sizeof decoded / sizeof *decoded };

/* Blocks of random bytes: every code, every scale, infinite ones and NaN too. */
START_TEST(every_block_type_decodes_to_their_bits)
{
    enum { BLOCKS = 2000 };
    const char *folder = getenv("NIBBLE_LIBLLAMA");
    if (!folder || !*folder) {
        printf("skipped: NIBBLE_LIBLLAMA is not set\n");
        return;
    }
    char text[1024];
    (void)snprintf(text, sizeof text, "%s/libggml-base.so", folder);
    void *library = dlopen(text, RTLD_NOW);
    ck_assert_msg(library != NULL, "%s", dlerror());
    (void)snprintf(text, sizeof text, "dequantize_row_%s", decoded[_i].theirs);
    void *symbol = dlsym(library, text);
    ck_assert_msg(symbol != NULL, "%s", text);
    void (*theirs)(const void *blocks, float *values, int64_t n);
    memcpy(&theirs, &symbol, sizeof symbol);
    const fm_dtype t = decoded[_i].type;
    fm_array a = {.name = text, .dtype = t, .n_dim = 1, .dim = {BLOCKS * fm_dtype_block(t)}};
    must(fm_array_measure(&a));
    uint8_t *bytes = malloc(a.bytes);
    float *x = malloc((size_t)a.dim[0] * sizeof *x), *y = malloc((size_t)a.dim[0] * sizeof *y);
    for (size_t i = 0; i < a.bytes; i++)
        bytes[i] = (uint8_t)nb_random(7, (uint64_t)_i, i);
    a.data = bytes;
    theirs(bytes, x, a.dim[0]);
    must(fm_to_float(y, &a, 0, a.dim[0]));
    for (int64_t i = 0; i < a.dim[0]; i++)
        ck_assert_msg((isnan(x[i]) && isnan(y[i])) || memcmp(&x[i], &y[i], sizeof *x) == 0, "%s: element %lld is %a, theirs %a", text,
                      (long long)i, (double)y[i], (double)x[i]);
    free(bytes);
    free(x);
    free(y);
    dlclose(library);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("formats_client");
    TCase *c = tcase_create("formats_client");
    tcase_set_tags(c, "client");
    tcase_set_timeout(c, 120); /* Python starts slowly on a busy machine */
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_add_test(c, their_readers_read_what_we_write);
    tcase_add_test(c, we_read_what_their_writers_write);
    tcase_add_loop_test(c, every_block_type_decodes_to_their_bits, 0, N_DECODED);
    suite_add_tcase(s, c);
    return run_suite(s);
}

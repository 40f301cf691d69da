/* test_exports_client.c - the values that other programs find in our exports are exactly ours: llama.cpp's dequantize_row_*, the packages
 * gguf and safetensors, a short Python reader of llama2.c files (readers/decode.py), over 1,000 seeds x recipes x odd shapes.
 */
#include "clients.h"
#include "models/export.h"
#include "models_made.h"
#include "scratch.h"
#include <dlfcn.h>

/* ---- llama.cpp's own decoders ----------------------------------------------------- */

typedef void decoder(const void *blocks, float *values, int64_t n);
typedef struct {
    fm_dtype type;
    const char *name;
    decoder *decode;
} decoding;
static decoding decodings[] = {{FM_Q4_0, "dequantize_row_q4_0", NULL},
                               {FM_Q4_1, "dequantize_row_q4_1", NULL},
                               {FM_Q5_0, "dequantize_row_q5_0", NULL},
                               {FM_Q8_0, "dequantize_row_q8_0", NULL}};
enum { N_DECODINGS = sizeof decodings / sizeof *decodings };

static void *load_decoders(const char *folder)
{
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/libggml-base.so", folder);
    void *library = dlopen(path, RTLD_NOW);
    ck_assert_msg(library != NULL, "%s", dlerror());
    for (int i = 0; i < N_DECODINGS; i++) {
        void *f = dlsym(library, decodings[i].name);
        ck_assert_msg(f != NULL, "%s", decodings[i].name);
        memcpy(&decodings[i].decode, &f, sizeof f);
    }
    return library;
}

static void decode_array(float *x, const fm_array *a)
{
    for (int i = 0; i < N_DECODINGS; i++)
        if (decodings[i].type == a->dtype) {
            decodings[i].decode(a->data, x, fm_count(a));
            return;
        }
    ck_assert_msg(fm_to_float(x, a, 0, fm_count(a)) == NB_OK, "%s", nb_fail_message());
}

static kn_rope_pairing gguf_pairing(const md_model *m)
{
    return strcmp(md_gguf_architecture(m), "qwen2") == 0 ? KN_ROPE_HALF : KN_ROPE_INTERLEAVED;
}

static int compare_blocks(const md_model *m, const char *path, int coded[N_DECODINGS])
{
    fm_arrays a;
    md_tensor *t;
    int64_t n;
    ck_assert_msg(fm_gguf_open(&a, path) == NB_OK, "%s", nb_fail_message());
    ck_assert(md_tensors_new(&t, &n, &m->config) == NB_OK && made_arrays(t, n, MD_GGUF) == a.n);
    for (int64_t i = 0; i < n; i++) {
        char name[MD_NAME];
        (void)md_tensor_name(name, &t[i], MD_GGUF);
        const fm_array *x = fm_find(&a, name);
        ck_assert_msg(x != NULL, "no %s", name);
        const int64_t cols = x->dim[x->n_dim - 1];
        real *value = malloc((size_t)fm_count(x) * sizeof *value);
        decode_array(value, x);
        made_compare_array(m, &t[i], MD_GGUF, value, fm_count(x) / cols, cols, gguf_pairing(m), "libggml");
        free(value);
        for (int k = 0; k < N_DECODINGS; k++)
            coded[k] += decodings[k].type == x->dtype;
    }
    free(t);
    fm_arrays_free(&a);
    return 1;
}

enum { BATCH = 100, BATCHES = 10 }; /* 1,000 models */

/* Model i of all: shapes, recipes and seeds run through each other. */
static void numbered_model(md_model *m, int i)
{
    made_model(m, &made_shapes[i % N_MADE_SHAPES],
               made_recipes[i % N_MADE_RECIPES == 0 ? i / 7 % N_MADE_RECIPES : i % N_MADE_RECIPES], (uint64_t)i + 1000);
}

START_TEST(gguf_blocks_decode_to_our_values)
{
    const char *folder = client("NIBBLE_LIBLLAMA");
    int coded[N_DECODINGS] = {0}, files = 0;
    if (!folder)
        return;
    void *library = load_decoders(folder);
    scratch_begin();
    for (int i = 0; i < BATCH * BATCHES; i++) {
        const char *path = scratch_path("m.gguf");
        md_model m;
        numbered_model(&m, i);
        if (md_export(&m, "gguf", path, NULL, 0) == NB_OK)
            files += compare_blocks(&m, path, coded);
        md_free(&m);
    }
    ck_assert_msg(files > 200 && coded[0] > 500 && coded[1] > 50 && coded[2] > 50 && coded[3] > 100,
                  "%d files; Q4_0 %d, Q4_1 %d, Q5_0 %d, Q8_0 %d", files, coded[0], coded[1], coded[2], coded[3]);
    scratch_end();
    (void)dlclose(library);
}
END_TEST

/* ---- Python readers --------------------------------------------------------------- */

typedef struct {
    char name[MD_NAME];
    int64_t rows, cols;
    real *x;
} dumped;

static bool next_dumped(dumped *d, FILE *f)
{
    uint32_t bytes, n_dim;
    uint64_t dim[2] = {1, 1};
    if (fread(&bytes, sizeof bytes, 1, f) != 1)
        return false;
    ck_assert(bytes < sizeof d->name && fread(d->name, 1, bytes, f) == bytes);
    d->name[bytes] = 0;
    ck_assert(fread(&n_dim, sizeof n_dim, 1, f) == 1 && n_dim >= 1 && n_dim <= 2);
    ck_assert(fread(dim, sizeof *dim, n_dim, f) == n_dim);
    d->rows = n_dim == 2 ? (int64_t)dim[0] : 1;
    d->cols = (int64_t)dim[n_dim - 1];
    d->x = malloc((size_t)(d->rows * d->cols) * sizeof *d->x);
    ck_assert(d->x && fread(d->x, sizeof *d->x, (size_t)(d->rows * d->cols), f) == (size_t)(d->rows * d->cols));
    return true;
}

static void compare_dump(const md_model *m, const char *path, md_naming naming, kn_rope_pairing pairing)
{
    md_tensor *t;
    int64_t n, seen = 0;
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s", path);
    ck_assert(md_tensors_new(&t, &n, &m->config) == NB_OK);
    for (dumped d; next_dumped(&d, f); seen++) {
        char name[MD_NAME];
        int64_t i = 0;
        while (i < n && (!md_tensor_name(name, &t[i], naming) || strcmp(name, d.name) != 0))
            i++;
        ck_assert_msg(i < n, "a tensor %s", d.name);
        for (int64_t end = i + md_tensor_parts(&t[i], naming); i < end; i++)
            made_compare_array(m, &t[i], naming, d.x, d.rows, d.cols, pairing, path);
        free(d.x);
    }
    ck_assert_int_eq(seen, made_arrays(t, n, naming));
    free(t);
    (void)fclose(f);
}

static const struct {
    const char *target, *file;
    md_naming naming;
    int least; /* of a thousand models that must fit */
} decoded[] = {
    {"llama2c", "m%d.bin", MD_LLAMA2C, 300},
    {"llama2c-f32", "m%d.bin", MD_LLAMA2C, 300},
    {"gguf", "m%d.gguf", MD_GGUF, 200},
    {"gguf-f32", "m%d.gguf", MD_GGUF, 900},
    {"safetensors", "m%d/model.safetensors", MD_HF, 900},
};

/* Writes a batch, lets the reader decode it, compares: the number of files. */
static int decode_batch(const char *python, int first, int kind)
{
    char path[1024], file[64], list[BATCH * 32] = "", root[512];
    bool written[BATCH] = {false};
    int files = 0;
    md_model m;
    ck_assert(getcwd(root, sizeof root) != NULL);
    for (int i = 0; i < BATCH; i++) {
        numbered_model(&m, first + i);
        (void)snprintf(file, sizeof file, decoded[kind].file, i);
        (void)snprintf(path, sizeof path, "%s/%s", scratch_folder, file);
        if (strchr(file, '/'))
            *strrchr(path, '/') = 0;
        written[i] = md_export(&m, decoded[kind].target, path, NULL, 0) == NB_OK;
        md_free(&m);
        if (written[i])
            (void)snprintf(list + strlen(list), sizeof list - strlen(list), " %s", file);
        files += written[i];
    }
    if (files)
        ck_assert_int_eq(run("cd '%s' && '%s' '%s/tests/readers/decode.py'%s", scratch_folder, python, root, list), 0);
    for (int i = 0; i < BATCH; i++) {
        if (!written[i])
            continue;
        numbered_model(&m, first + i);
        (void)snprintf(file, sizeof file, decoded[kind].file, i);
        (void)snprintf(path, sizeof path, "%s/%s.dump", scratch_folder, file);
        compare_dump(&m, path, decoded[kind].naming,
                     decoded[kind].naming == MD_HF     ? KN_ROPE_HALF
                     : decoded[kind].naming == MD_GGUF ? gguf_pairing(&m)
                                                       : KN_ROPE_INTERLEAVED);
        md_free(&m);
    }
    return files;
}

START_TEST(other_readers_find_our_values)
{
    const char *python = client("NIBBLE_PYTHON");
    int files = 0;
    if (!python)
        return;
    for (int b = 0; b < BATCHES; b++) {
        scratch_begin();
        files += decode_batch(python, b * BATCH, _i);
        scratch_end();
    }
    ck_assert_msg(files >= decoded[_i].least, "%s: %d files", decoded[_i].target, files);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("exports_client");
    tcase_set_tags(add_case(s, "blocks", gguf_blocks_decode_to_our_values, 1), "client");
    tcase_set_tags(add_case(s, "readers", other_readers_find_our_values, sizeof decoded / sizeof *decoded), "client");
    return run_suite(s);
}

/* fuzz_formats.c - mutated safetensors, llama2.c, GGUF and HDF5 files against their readers; usage in fuzz.h.
 * "hdf5_sealed" repairs the checksums of the user block, so that HDF5 itself sees what was mutated.
 */
#include "fuzz.h"
#include "io/io.h"

/* ---- reading everything ---- */

static uint64_t sink; /* keeps the reads alive */

static void touch(const void *data, size_t bytes)
{
    sink = nb_hash(sink, data, bytes);
}

/* Every byte, and every element as a float and as an integer. */
static status read_arrays(const fm_arrays *a)
{
    float x[32];
    int64_t k[32];
    for (int64_t i = 0; i < a->n; i++) {
        const fm_array *v = &a->array[i];
        touch(v->name, strlen(v->name));
        if (!v->data)
            continue;
        touch(v->data, v->bytes);
        int64_t n = fm_count(v), step = 32;
        for (int64_t at = 0; at < n; at += step) {
            step = n - at < 32 ? n - at : 32;
            if (fm_to_float(x, v, at, step) == NB_OK)
                touch(x, (size_t)step * sizeof *x);
            if (fm_to_int(k, v, at, step) == NB_OK)
                touch(k, (size_t)step * sizeof *k);
        }
        if (fm_find(a, v->name) != v)
            abort();
    }
    for (int64_t i = 0; i < a->meta.n; i++) {
        const fm_value *v = &a->meta.value[i];
        const char *text = fm_value_string(v);
        if (text)
            touch(text, strlen(text));
        for (int64_t j = 0; j < v->n; j++) {
            fm_text t = fm_value_text(v, j);
            double number = fm_value_number(v, j, 0) + (double)fm_value_int(v, j, 0);
            touch(t.text, t.bytes);
            touch(&number, sizeof number);
        }
    }
    return NB_OK;
}

static status read_safetensors(const char *path)
{
    fm_arrays a;
    TRY(fm_safetensors_open(&a, path));
    status s = read_arrays(&a);
    fm_arrays_free(&a);
    return s;
}

static status read_llama2c(const char *path)
{
    fm_arrays a;
    fm_llama2c h;
    TRY(fm_llama2c_open(&a, &h, path));
    status s = read_arrays(&a);
    fm_arrays_free(&a);
    return s;
}

static status read_gguf(const char *path)
{
    fm_arrays a;
    TRY(fm_gguf_open(&a, path));
    status s = read_arrays(&a);
    fm_arrays_free(&a);
    return s;
}

static status read_kind(const char *path)
{
    fm_file_kind kind;
    return fm_file_kind_of(&kind, path);
}

static status read_attributes(fm_h5 *f, const char *object)
{
    const char *text;
    int64_t n[4];
    double x[4];
    if (fm_h5_attribute_count(f, object, "text") >= 0)
        TRY(fm_h5_get_string(f, object, "text", &text));
    if (fm_h5_attribute_count(f, object, "int") >= 0)
        TRY(fm_h5_get_int(f, object, "int", n));
    if (fm_h5_attribute_count(f, object, "numbers") >= 0)
        TRY(fm_h5_get_numbers(f, object, "numbers", x, 3));
    return NB_OK;
}

static status read_dataset(fm_h5 *f, const fm_array *a)
{
    int64_t rows = a->n_dim ? a->dim[0] : 1;
    void *whole = nb_alloc(a->bytes + 1, 1);
    float *floats = nb_alloc((size_t)fm_count(a) + 1, sizeof *floats);
    status s = whole && floats ? fm_h5_read(f, a->name, a->dtype, whole, 0, rows) : NB_NOMEM;
    if (s == NB_OK && a->n_dim)
        s = fm_h5_read(f, a->name, FM_F32, floats, 0, rows);
    if (s == NB_OK)
        touch(whole, a->bytes);
    free(whole);
    free(floats);
    return s == NB_OK ? read_attributes(f, a->name) : s;
}

static status read_hdf5(const char *path)
{
    fm_h5 f;
    TRY(fm_h5_open(&f, path, NULL));
    status s = read_arrays(&f.arrays);
    if (s == NB_OK)
        s = read_attributes(&f, "");
    if (s == NB_OK)
        s = read_attributes(&f, "group");
    for (int64_t i = 0; i < f.arrays.n && s == NB_OK; i++)
        s = read_dataset(&f, &f.arrays.array[i]);
    fm_h5_close(&f);
    return s;
}

/* ---- seeds ---- */

static bool copy_file(const char *path, const char *from)
{
    fuzz_case c = {0};
    bool done = nb_path_exists(from) && fuzz_load(&c, from) && fuzz_store(&c, path);
    free(c.data);
    return done;
}

static const float numbers[64] = {1, -2, 3.5F, 0, 1e30F, -1e-30F};
static const uint8_t codes[128] = {0x00, 0x3C, 0x21, 0x43, 0x65};

static bool seed_safetensors(int k, const char *path)
{
    const fm_array a[] = {{"a.weight", FM_F32, 2, {4, 6}, numbers, 96}, {"b", FM_BF16, 1, {5}, codes, 10},
                          {"empty", FM_I8, 2, {0, 3}, NULL, 0},         {"scalar", FM_I64, 0, {0}, codes, 8},
                          {"flags", FM_BOOL, 1, {7}, codes, 7},         {"f4", FM_F4, 2, {2, 8}, codes, 8},
                          {"d", FM_F64, 4, {1, 2, 1, 2}, numbers, 32}};
    return k == 0 && fm_safetensors_write(path, a, sizeof a / sizeof *a, NULL, (fm_source){0}) == NB_OK;
}

static status put_zeros(void *ctx, fm_sink *out, const fm_array *a)
{
    (void)ctx;
    for (size_t left = a->bytes; left;) {
        size_t n = left < sizeof codes ? left : sizeof codes;
        TRY(fm_put(out, codes, n));
        left -= n;
    }
    return NB_OK;
}

static bool seed_llama2c(int k, const char *path)
{
    fm_llama2c h = {8, 12, 2, 2, 1, 10, 6, k == 0, 1 + k, k ? 4 : 0};
    if (k < 2)
        return fm_llama2c_write(path, &h, (fm_source){put_zeros, NULL}) == NB_OK;
    static const char *const real[] = {"stories260K.bin", "stories260K_v1.bin", "stories260K-q8.bin"};
    char from[256];
    if (k >= 5)
        return false;
    (void)snprintf(from, sizeof from, "../shared/data/stories260k/%s", real[k - 2]);
    return copy_file(path, from);
}

static bool write_gguf(const char *path)
{
    fm_array a[] = {{"token_embd.weight", FM_Q8_0, 2, {2, 32}, codes, 68},
                    {"norm.weight", FM_F32, 1, {5}, numbers, 20},
                    {"w", FM_Q4_0, 2, {3, 32}, codes, 54},
                    {"v", FM_Q4_1, 2, {1, 64}, codes, 40},
                    {"h", FM_F16, 3, {2, 1, 3}, codes, 12},
                    {"k", FM_Q6_K, 1, {0}, NULL, 0}};
    const fm_text words[] = {{"<s>", 3}, {"", 0}, {"a\0b", 3}};
    fm_meta m = {0};
    fm_meta_put_string(&m, "general.architecture", "llama");
    fm_meta_put_u32(&m, "general.alignment", 64);
    fm_meta_put_f32(&m, "eps", 1e-5F);
    fm_meta_put_bool(&m, "flag", true);
    fm_meta_put_strings(&m, "tokens", words, 3);
    fm_meta_put_array(&m, "scores", FM_F32, numbers, 3);
    fm_meta_put_array(&m, "types", FM_I32, numbers, 0);
    status s = fm_gguf_write(path, a, sizeof a / sizeof *a, &m, (fm_source){0});
    fm_meta_free(&m);
    return s == NB_OK;
}

static bool seed_gguf(int k, const char *path)
{
    return k == 0 ? write_gguf(path) : k == 1 && copy_file(path, "../shared/data/tokenizers/ggml-vocab-llama-spm.gguf");
}

static bool fill_hdf5(fm_h5 *f)
{
    const int64_t shape[] = {4, 6, 2};
    const double range[] = {1, 2, 3};
    bool done = fm_h5_write(f, "group/deeper/weight", FM_F32, 2, shape, numbers) == NB_OK &&
                fm_h5_write(f, "group/half", FM_F16, 1, shape, codes) == NB_OK &&
                fm_h5_write(f, "bf16", FM_BF16, 3, shape, codes) == NB_OK &&
                fm_h5_write(f, "scalar", FM_I64, 0, NULL, codes) == NB_OK &&
                fm_h5_stream(f, "ids", FM_U16, 0, NULL, 8) == NB_OK &&
                fm_h5_stream(f, "rows", FM_I32, 1, shape, 3) == NB_OK;
    for (int i = 0; i < 5; i++)
        done = done && fm_h5_append(f, "ids", codes, 7) == NB_OK && fm_h5_append(f, "rows", codes, 2) == NB_OK;
    return done && fm_h5_put_string(f, "", "text", "{\"recipe\": \"w4a8\"}") == NB_OK &&
           fm_h5_put_int(f, "group", "int", 7) == NB_OK &&
           fm_h5_put_numbers(f, "group/half", "numbers", range, 3) == NB_OK;
}

static bool seed_hdf5(int k, const char *path)
{
    fm_h5 f;
    if (k > 0 || fm_h5_create(&f, path, "checkpoint") != NB_OK)
        return false;
    bool filled = fill_hdf5(&f);
    return fm_h5_commit(&f) == NB_OK && filled;
}

static void put_at(uint8_t *data, size_t at, const void *x, size_t bytes)
{
    memcpy(data + at, x, bytes);
}

/* Makes the user block fit what lies behind it; the layout is in io/hdf5_file.c. */
static void seal_hdf5(uint8_t *data, size_t bytes)
{
    if (bytes < 512)
        return;
    uint64_t rest = bytes - 512;
    uint32_t crc = nb_crc32c(0, data + 512, bytes - 512);
    memset(data, 0, 512);
    put_at(data, 0, "nibble\r\n\1", 9);
    put_at(data, 16, "checkpoint", 10);
    put_at(data, 40, &rest, sizeof rest);
    put_at(data, 48, &crc, sizeof crc);
    crc = nb_crc32c(0, data, 52);
    put_at(data, 52, &crc, sizeof crc);
}

int main(int argc, char **argv)
{
    const fuzz_target targets[] = {
        {"safetensors", seed_safetensors, NULL, read_safetensors, false},
        {"llama2c", seed_llama2c, NULL, read_llama2c, false},
        {"gguf", seed_gguf, NULL, read_gguf, false},
        {"kind", seed_llama2c, NULL, read_kind, false},
        {"hdf5", seed_hdf5, NULL, read_hdf5, false},
        {"hdf5_sealed", seed_hdf5, seal_hdf5, read_hdf5, true},
    };
    return fuzz_main(argc, argv, targets, sizeof targets / sizeof *targets);
}

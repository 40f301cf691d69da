/* fuzz_models.c - mutated model files through md_open; usage in fuzz.h. What opens is walked: every value, every size.
 * HDF5 files are sealed again after the mutation, so that what lies behind the checksum is reached.
 */
#include "distill/distill.h"
#include "fuzz.h"
#include "models/bind.h"

static char hf_folder[300]; /* weights.safetensors and config.json for the two Hugging Face targets */
static uint64_t sink;       /* keeps the reads alive */

static status walk(const md_model *m)
{
    md_tensor *t;
    md_size size;
    int64_t n;
    TRY(md_tensors_new(&t, &n, &m->config));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        md_values v;
        real *row = nb_alloc((size_t)t[i].cols, sizeof *row);
        s = row ? md_values_of(&v, m, &t[i]) : NB_NOMEM;
        for (int64_t r = 0; r < t[i].rows && s == NB_OK; r++) {
            md_values_row(row, &v, &t[i], r);
            sink = nb_hash(sink, row, (size_t)t[i].cols * sizeof *row);
        }
        free(row);
    }
    free(t);
    md_measure(&size, m);
    sink += (uint64_t)size.code_bytes;
    return s;
}

static status open_with(const char *path, const md_open_options *o)
{
    md_model m;
    TRY(md_open(&m, path, o));
    status s = walk(&m);
    md_free(&m);
    return s;
}

static status read_model(const char *path)
{
    return open_with(path, NULL);
}

static status read_latent(const char *path)
{
    const md_open_options o = {.train = true};
    return open_with(path, &o);
}

static status read_weights(const char *path)
{
    char inside[400];
    (void)snprintf(inside, sizeof inside, "%s/weights.safetensors", hf_folder);
    (void)unlink(inside);
    return symlink(path, inside) == 0 ? open_with(inside, NULL) : NB_IO;
}

static status read_config(const char *path)
{
    char inside[400], config[400];
    (void)snprintf(inside, sizeof inside, "%s/good.safetensors", hf_folder);
    (void)snprintf(config, sizeof config, "%s/config.json", hf_folder);
    (void)unlink(config);
    return symlink(path, config) == 0 ? open_with(inside, NULL) : NB_IO;
}

/* ---- seeds -------------------------------------------------------------------------------- */

static const char *const recipes[] = {
    "w4a8kv8", "q4_0", "*.weight int3 asym group:8 bf16 dynamic\n*.input int8 asym tensor average\n",
    "*.weight sign row pow2 dynamic\n*.attn.[kv] int8 head f16 learned\n", "*.weight int16 row f16 learned\n",
    "base q4_0\nposition.weight int8 row f16 learned\n"};
enum { GPT2 = 5 }; /* the last one's model; others are LLaMA's */

/* As if it came from a GGUF file: metadata of its own, kept byte for byte. */
static bool give_source(md_model *m)
{
    char path[400];
    fm_arrays a;
    fm_meta meta = {0};
    (void)snprintf(path, sizeof path, "%s/source.gguf", hf_folder);
    fm_meta_put_string(&meta, "general.architecture", "llama");
    fm_meta_put_array(&meta, "list", FM_U16, "0123456789", 5);
    status s = fm_tokenizer_put_meta(&meta, &m->tokenizer, m->config.vocab);
    if (s == NB_OK)
        s = fm_gguf_write(path, NULL, 0, &meta, (fm_source){0});
    if (s == NB_OK)
        s = fm_gguf_open(&a, path);
    if (s == NB_OK) {
        s = fm_gguf_metadata(&m->gguf, &m->gguf_bytes, &a);
        fm_arrays_free(&a);
    }
    fm_meta_free(&meta);
    return s == NB_OK;
}

static bool build(md_model *m, int k)
{
    md_config c = {.architecture = "llama",
                   .dim = 32,
                   .hidden = 44,
                   .layers = 1,
                   .heads = 4,
                   .kv_heads = 2,
                   .head_size = 8,
                   .vocab = 260,
                   .ctx = 32,
                   .norm_eps = 1e-5,
                   .rope_theta = 10000,
                   .tied = k != 1,
                   .pairing = k == 1 ? KN_ROPE_HALF : KN_ROPE_INTERLEAVED,
                   .qkv_bias = k == 2,
                   .bos = 256,
                         .eos = 257};
    if (k == GPT2) {
        memcpy(c.architecture, "gpt2", sizeof "gpt2");
        c.kv_heads = c.heads;
        c.qkv_bias = c.out_bias = true;
    }
    fq_recipe r;
    bool named = !strchr(recipes[k], '\n');
    if ((named ? fq_recipe_open(&r, recipes[k]) : fq_recipe_parse(&r, "made", recipes[k], strlen(recipes[k]))) != NB_OK)
        return false;
    bool built = md_build(m, &c, &r, (uint64_t)k, false) == NB_OK && fm_tokenizer_byte(&m->tokenizer) == NB_OK;
    if (built && k < 2)
        built = give_source(m);
    fq_recipe_free(&r);
    for (int64_t i = 0; built && i < m->sites.n; i++) { /* as if calibrated */
        double state[4096];
        const int64_t n = fq_site_state(m->sites.s[i], NULL);
        if (n == 0 || n > 4096 || m->sites.s[i]->is_weight)
            continue;
        (void)fq_site_state(m->sites.s[i], state);
        state[0] = 1;
        built = fq_site_restore(m->sites.s[i], state, n) == NB_OK;
    }
    return built;
}

static bool seed_folded(int k, const char *path)
{
    md_model m;
    if (k >= (int)(sizeof recipes / sizeof *recipes) || !build(&m, k))
        return false;
    status s = md_save_folded(&m, path, true);
    md_free(&m);
    return s == NB_OK;
}

static bool seed_checkpoint(int k, const char *path)
{
    md_model m;
    fm_h5 f;
    if (k >= (int)(sizeof recipes / sizeof *recipes) || !build(&m, k))
        return false;
    status s = fm_h5_create(&f, path, "checkpoint");
    if (s == NB_OK)
        s = md_save_header(&m, &f);
    if (s == NB_OK)
        s = md_save_params(&m, &f, k & 1 ? FM_BF16 : FM_F32);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    md_free(&m);
    return s == NB_OK;
}

static bool seed_llama2c(int k, const char *path)
{
    md_model m;
    if (k >= 2 || !build(&m, 0))
        return false;
    status s = md_export(&m, k ? "llama2c" : "llama2c-f32", path, NULL, 0);
    md_free(&m);
    return s == NB_OK;
}

static bool seed_gguf(int k, const char *path)
{
    md_model m;
    static const int made[] = {1, 0, 2, GPT2};
    if (k >= 4 || !build(&m, made[k]))
        return false;
    status s = md_export(&m, k == 0 || k == 3 ? "gguf" : k == 1 ? "gguf-f16" : "gguf-f32", path, NULL, 0);
    md_free(&m);
    return s == NB_OK;
}

/* Importance of that model's weights: every site of an input has seen something. */
static bool seed_imatrix(int k, const char *path)
{
    md_model m;
    kd_importance h;
    if (k >= 2 || !build(&m, k))
        return false;
    bool made = kd_importance_new(&h, &m) == NB_OK;
    for (int64_t i = 0; made && i < h.n; i++) {
        h.rows[i] = 7;
        h.sum[i] = m.sites.s[i]->cols > 0 ? nb_alloc_zeroed((size_t)m.sites.s[i]->cols, sizeof **h.sum) : NULL;
    }
    made = made && kd_importance_write(&h, path, "text", 32) == NB_OK;
    kd_importance_free(&h);
    md_free(&m);
    return made;
}

static status read_imatrix(const char *path)
{
    md_model m;
    kd_importance h;
    if (!build(&m, 0))
        return NB_NOMEM;
    status s = kd_importance_new(&h, &m);
    if (s == NB_OK)
        s = kd_importance_read(&h, path);
    for (int64_t i = 0; s == NB_OK && i < m.sites.n; i++) {
        const fq_site *weight = m.sites.s[i];
        const real *x = weight->is_weight ? kd_importance_of(&h, weight) : NULL;
        sink = x ? nb_hash(sink, x, (size_t)weight->cols * sizeof *x) : sink;
    }
    kd_importance_free(&h);
    md_free(&m);
    return s;
}

/* The two files of an exported folder, moved to where the targets look for them. */
static bool seed_hf(int k, const char *path, const char *wanted)
{
    static const char *const names[] = {"model.safetensors", "config.json"};
    char folder[400], from[500], to[500];
    md_model m;
    if (k >= 3 || !build(&m, k))
        return false;
    (void)snprintf(folder, sizeof folder, "%s/made", hf_folder);
    bool done = md_export(&m, "safetensors", folder, NULL, 0) == NB_OK;
    md_free(&m);
    for (int i = 0; i < 2; i++) {
        (void)snprintf(from, sizeof from, "%s/%s", folder, names[i]);
        if (!strcmp(names[i], wanted))
            (void)snprintf(to, sizeof to, "%s", path);
        else
            (void)snprintf(to, sizeof to, "%s/%s", hf_folder, i ? "config.json" : "good.safetensors");
        (void)unlink(to);
        done = done && rename(from, to) == 0;
    }
    return done;
}

static bool seed_weights(int k, const char *path)
{
    return k == 0 && seed_hf(k, path, "model.safetensors");
}

static bool seed_config(int k, const char *path)
{
    return k == 0 && seed_hf(k, path, "config.json");
}

/* ---- seals: the layout is in io/hdf5_file.c ------------------------------------------------ */

static void seal(uint8_t *data, size_t bytes, const char *kind)
{
    if (bytes < 512)
        return;
    const uint64_t rest = bytes - 512;
    uint32_t crc = nb_crc32c(0, data + 512, bytes - 512);
    memset(data, 0, 512);
    memcpy(data, "nibble\r\n\1", 9);
    memcpy(data + 16, kind, strlen(kind));
    memcpy(data + 40, &rest, sizeof rest);
    memcpy(data + 48, &crc, sizeof crc);
    crc = nb_crc32c(0, data, 52);
    memcpy(data + 52, &crc, sizeof crc);
}

static void seal_folded(uint8_t *data, size_t bytes)
{
    seal(data, bytes, "folded");
}

static void seal_checkpoint(uint8_t *data, size_t bytes)
{
    seal(data, bytes, "checkpoint");
}

static void remove_folder(void)
{
    static const char *const names[] = {"weights.safetensors",
                                        "good.safetensors",
                                        "config.json",
                                        "made/model.safetensors",
                                        "source.gguf",
                                        "made/config.json",
                                        "made",
                                        ""};
    char path[400];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", hf_folder, names[i]);
        (void)remove(path);
    }
}

int main(int argc, char **argv)
{
    const fuzz_target targets[] = {
        {"model_llama2c", seed_llama2c, NULL, read_model, false},
        {"model_gguf", seed_gguf, NULL, read_model, false},
        {"imatrix", seed_imatrix, NULL, read_imatrix, false},
        {"model_hf_weights", seed_weights, NULL, read_weights, false},
        {"model_hf_config", seed_config, NULL, read_config, false},
        {"model_folded", seed_folded, seal_folded, read_model, true},
        {"model_latent", seed_folded, seal_folded, read_latent, true},
        {"model_checkpoint", seed_checkpoint, seal_checkpoint, read_model, true},
    };
    const char *temporary = getenv("TMPDIR");
    (void)snprintf(hf_folder, sizeof hf_folder, "%s/nibble-fuzz-hf-XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(hf_folder)) {
        perror(hf_folder);
        return 1;
    }
    int result = fuzz_main(argc, argv, targets, sizeof targets / sizeof *targets);
    remove_folder();
    return result;
}

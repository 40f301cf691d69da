/* open_gguf.c - a model from a GGUF file of architecture llama, qwen2 or gpt2 (llama.cpp src/llama-model.cpp, load_hparams and load_tensors). Tensors
 * of any of ggml's types that formats.md has become floats; the tokenizer comes from the metadata, which the model keeps. Rows of q and k stay as the file has
 * them: interleaved in architecture llama, halves in qwen2. llama3's rotary scaling is told from its factors, rope_freqs.weight. What the
 * model would compute otherwise than we do is refused by name.
 */
#include "models/bind.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const fm_arrays *a;
    const char *architecture;
} gguf;

static const fm_value *value(const gguf *f, const char *name)
{
    char key[96];
    (void)snprintf(key, sizeof key, "%s.%s", f->architecture, name);
    return fm_meta_get(&f->a->meta, key);
}

/* A count; -1 where it is no single integer. */
static int64_t count(const gguf *f, const char *name, int64_t otherwise)
{
    const fm_value *v = value(f, name);
    return !v ? otherwise : v->is_array ? -1 : fm_value_int(v, 0, -1);
}

static double number(const gguf *f, const char *name, double otherwise)
{
    const fm_value *v = value(f, name);
    return v && v->is_array ? -1 : fm_value_number(v, 0, otherwise);
}

static status check_architecture(gguf *f)
{
    static const char *const known[] = {"llama", "qwen2", "gpt2"};
    f->architecture = fm_value_string(fm_meta_get(&f->a->meta, "general.architecture"));
    if (!f->architecture)
        return nb_fail(NB_FORMAT, "general.architecture is missing");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(f->architecture, known[i]))
            return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "general.architecture is \"%.32s\", wanted llama, qwen2 or gpt2", f->architecture);
}

static status check_settings(const gguf *f, const md_config *c)
{
    const char *scaling = fm_value_string(value(f, "rope.scaling.type"));
    if (count(f, "expert_count", 0) != 0)
        return nb_fail(NB_UNSUPPORTED, "%s.expert_count: mixtures of experts are not known here", f->architecture);
    if (scaling && strcmp(scaling, "none") != 0 && number(f, "rope.scaling.factor", 1) != 1)
        return nb_fail(NB_UNSUPPORTED, "rope.scaling.type is \"%.32s\", wanted none", scaling);
    if (count(f, "rope.dimension_count", c->head_size) != c->head_size || count(f, "attention.value_length", c->head_size) != c->head_size)
        return nb_fail(NB_UNSUPPORTED, "heads of %lld are rotated whole and have values of that size here", (long long)c->head_size);
    return NB_OK;
}

/* llama3's scaling, from the factors it has for each frequency: factor is the largest; its other settings have only ever been these. */
static status read_rotation(md_config *c, const gguf *f)
{
    const fm_array *a = fm_find(f->a, "rope_freqs.weight");
    const int64_t n = c->head_size / 2;
    if (!a)
        return NB_OK;
    real *have = nb_alloc((size_t)n, sizeof *have), *want = nb_alloc((size_t)n, sizeof *want);
    status s = have && want ? fm_need(&a, f->a, "rope_freqs.weight", 1, &n) : NB_NOMEM;
    if (s == NB_OK)
        s = md_read_floats(have, a);
    if (s == NB_OK) {
        bool same = true;
        for (int64_t i = 0; i < n; i++)
            c->rope_factor = fmax(c->rope_factor, (double)have[i]);
        c->rope_low = 1;
        c->rope_high = 4;
        c->rope_ctx = 8192;
        md_rope_factors(want, c);
        for (int64_t i = 0; i < n; i++)
            same = same && fabs((double)(have[i] - want[i])) <= 1e-4 * fabs((double)want[i]);
        if (c->rope_factor == 1)
            c->rope_factor = c->rope_low = c->rope_high = c->rope_ctx = 0;
        else if (!same)
            s = nb_fail(NB_UNSUPPORTED, "rope_freqs.weight: these factors are not those of llama3's scaling");
    }
    free(have);
    free(want);
    return s;
}

static status read_config(md_config *c, gguf *f)
{
    TRY(check_architecture(f));
    const bool is_gpt2 = !strcmp(f->architecture, "gpt2"), is_qwen2 = !strcmp(f->architecture, "qwen2");
    const fm_array *embed = fm_find(f->a, "token_embd.weight");
    const char *eps = is_gpt2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon";
    *c = (md_config){.architecture = "llama",
                     .dim = count(f, "embedding_length", -1),
                     .hidden = count(f, "feed_forward_length", -1),
                     .layers = count(f, "block_count", -1),
                     .heads = count(f, "attention.head_count", -1),
                     .vocab = embed && embed->n_dim == 2 ? embed->dim[0] : -1,
                     .ctx = count(f, "context_length", -1),
                     .norm_eps = (double)(float)number(f, eps, -1),
                     .rope_theta = is_gpt2 ? 0 : number(f, "rope.freq_base", 10000),
                     .pairing = is_qwen2 ? KN_ROPE_HALF : KN_ROPE_INTERLEAVED,
                     .tied = !fm_find(f->a, "output.weight"),
                     .qkv_bias = is_gpt2 || fm_find(f->a, "blk.0.attn_q.bias"),
                     .out_bias = is_gpt2 || fm_find(f->a, "blk.0.attn_output.bias"),
                     .bos = -1,
                     .eos = -1};
    c->kv_heads = count(f, "attention.head_count_kv", c->heads);
    c->head_size = count(f, "attention.key_length", c->heads > 0 ? c->dim / c->heads : 0);
    if (is_gpt2)
        memcpy(c->architecture, "gpt2", sizeof "gpt2");
    TRY(md_config_check(c));
    if (is_gpt2)
        return NB_OK;
    TRY(check_settings(f, c));
    TRY(read_rotation(c, f));
    return md_config_check(c);
}

/* NB_UNSUPPORTED, naming it, where the file has a tensor that the config does not ask for. */
static status check_rest(const fm_arrays *a, const md_config *c)
{
    char name[MD_NAME];
    md_tensor *t;
    int64_t n;
    TRY(md_tensors_new(&t, &n, c));
    status s = NB_OK;
    for (int64_t k = 0; k < a->n && a->n > n && s == NB_OK; k++) {
        bool known = !strcmp(a->array[k].name, "rope_freqs.weight");
        const char *number = strncmp(a->array[k].name, "blk.", 4) ? NULL : a->array[k].name + 4;
        const int64_t layer = number ? strtoll(number, NULL, 10) : -1;
        for (int64_t i = 0; i < n && !known; i++)
            known = t[i].layer == layer && md_tensor_name(name, &t[i], MD_GGUF) && !strcmp(name, a->array[k].name);
        if (!known)
            s = nb_fail(NB_UNSUPPORTED, "%s: no place in a model of this architecture here", a->array[k].name);
    }
    free(t);
    return s;
}

static status take_tokenizer(md_model *m, const fm_arrays *a)
{
    fm_tokenizer tk = {0};
    TRY(fm_tokenizer_from_meta(&tk, &a->meta));
    if (tk.kind == FM_TOKENIZER_NONE)
        return NB_OK;
    return md_take_tokenizer(m, &tk, a->path);
}

static status read_model(md_model *m, const fm_arrays *a, const fq_recipe *recipe, const md_open_options *o)
{
    gguf f = {a, NULL};
    md_config c;
    TRY(read_config(&c, &f));
    TRY(md_check_ctx(&c, a));
    TRY(md_check_arrays(a, &c, MD_GGUF, ""));
    TRY(check_rest(a, &c));
    TRY(md_build(m, &c, recipe, MD_UNSET, o->fold));
    TRY(md_load_weights(m, a, MD_GGUF, "", o));
    TRY(fm_gguf_metadata(&m->gguf, &m->gguf_bytes, a));
    return take_tokenizer(m, a);
}

status md_open_gguf(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o)
{
    fm_arrays a;
    TRY(fm_gguf_open(&a, path));
    status s = read_model(m, &a, recipe, o);
    if (s != NB_OK) {
        md_free(m);
        if (!strstr(nb_fail_message(), path))
            s = nb_fail_in(s, "%s", path);
    }
    fm_arrays_free(&a);
    return s;
}

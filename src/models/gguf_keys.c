/* gguf_keys.c - GGUF's metadata of a model. A model that came from a GGUF file brings that file's keys and values, all of them, as they
 * were; what the new file says otherwise (type of the weights, a padded size) replaces their value in its place, and a key is added only
 * where its absence would mean something else. Other models get the keys of the architecture in the types that llama.cpp insists
 * on (llama-model.cpp load_hparams). The tokenizer's keys are the source's while the model has that tokenizer, else io's.
 */
#include "models/export.h"
#include <string.h>

enum { QUANTIZATION_VERSION = 2 }; /* of ggml's blocks: GGML_QNT_VERSION */

const char *md_gguf_architecture(const md_model *m)
{
    const md_config *c = &m->config;
    if (md_is_gpt2(c))
        return "gpt2";
    bool is_qwen2 = c->qkv_bias && !c->out_bias && c->pairing == KN_ROPE_HALF && c->rope_factor == 0 &&
                    c->heads * c->head_size == c->dim; /* llama.cpp's qwen2 takes no other head size */
    return is_qwen2 ? "qwen2" : "llama";
}

/* ---- the source's keys -------------------------------------------------------------------- */

static bool begins(const char *key, const char *with)
{
    return strncmp(key, with, strlen(with)) == 0;
}

/* Whether two values mean the same, whatever their types. */
static bool says(const fm_value *v, const fm_value *own)
{
    const char *a = fm_value_string(v), *b = fm_value_string(own);
    if (a || b)
        return a && b && strcmp(a, b) == 0;
    const double x = fm_value_number(v, 0, -1), y = fm_value_number(own, 0, -2);
    return !v->is_array && (own->dtype == FM_F32 ? (float)x == (float)y : x == y);
}

/* Whether the model's tokenizer is the one that the keys of its source describe. */
static status has_tokenizer_of(bool *same, const md_model *m, const fm_meta *source)
{
    fm_tokenizer tk;
    const fm_tokenizer *own = &m->tokenizer;
    status s = fm_tokenizer_from_meta(&tk, source);
    *same = false;
    if (s != NB_OK)
        return s == NB_NOMEM ? s : NB_OK;
    const char *a = fm_chat_template(&tk), *b = fm_chat_template(own);
    *same = tk.kind == own->kind && tk.hash == own->hash && tk.add_bos == own->add_bos &&
            tk.add_space_prefix == own->add_space_prefix && (a && b ? strcmp(a, b) == 0 : a == b);
    fm_tokenizer_free(&tk);
    return NB_OK;
}

/* Keys of another architecture, of a recipe that was, of a tokenizer that was. */
static bool is_stale(const char *key, const char *other_architecture, bool keep_tokenizer)
{
    const size_t n = other_architecture ? strlen(other_architecture) : 0;
    return begins(key, "nibble.") || (!keep_tokenizer && begins(key, "tokenizer.")) ||
           (n && begins(key, other_architecture) && key[n] == '.');
}

/* ---- the model's own ---------------------------------------------------------------------- */

static void put_shape(fm_meta *meta, const md_config *c, const char *architecture, const fm_meta *source)
{
    const int64_t head = c->heads > 0 ? c->dim / c->heads : 0;
    enum { LLAMA = 1, GPT2 = 2, BOTH = 3 };
    const struct {
        const char *key;
        int of;
        bool is_float;
        double x, absent; /* absent: what a reader takes where there is no key; -1: it wants one */
    } shape[] = {
        {"vocab_size", BOTH, false, (double)c->vocab, (double)c->vocab},
        {"context_length", BOTH, false, (double)c->ctx, -1},
        {"embedding_length", BOTH, false, (double)c->dim, -1},
        {"block_count", BOTH, false, (double)c->layers, -1},
        {"feed_forward_length", BOTH, false, (double)c->hidden, -1},
        {"attention.head_count", BOTH, false, (double)c->heads, -1},
        {"attention.layer_norm_epsilon", GPT2, true, c->norm_eps, -1},
        {"attention.head_count_kv", LLAMA, false, (double)c->kv_heads, (double)c->heads},
        {"attention.key_length", LLAMA, false, (double)c->head_size, (double)head},
        {"attention.value_length", LLAMA, false, (double)c->head_size, (double)head},
        {"rope.dimension_count", LLAMA, false, (double)c->head_size, (double)c->head_size},
        {"attention.layer_norm_rms_epsilon", LLAMA, true, c->norm_eps, -1},
        {"rope.freq_base", LLAMA, true, c->rope_theta, 10000},
    };
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        char key[96];
        if (!(shape[i].of & (md_is_gpt2(c) ? GPT2 : LLAMA)))
            continue;
        (void)snprintf(key, sizeof key, "%s.%s", architecture, shape[i].key);
        if (source && !fm_meta_get(source, key) && shape[i].x == shape[i].absent)
            continue;
        if (shape[i].is_float)
            fm_meta_put_f32(meta, key, (float)shape[i].x);
        else
            fm_meta_put_u32(meta, key, (uint32_t)shape[i].x);
    }
}

static void put_own(fm_meta *meta, const md_exporting *e, int file_type, bool coded, const fm_meta *source)
{
    const char *architecture = md_gguf_architecture(e->m);
    fm_meta_put_string(meta, "general.architecture", architecture);
    fm_meta_put_u32(meta, "general.file_type", (uint32_t)file_type);
    if (coded || !source)
        fm_meta_put_u32(meta, "general.quantization_version", QUANTIZATION_VERSION);
    if (*e->m->recipe.name)
        fm_meta_put_string(meta, "nibble.recipe", e->m->recipe.name);
    put_shape(meta, &e->shape, architecture, source);
}

static void merge(fm_meta *meta, const fm_meta *source, const fm_meta *own, bool keep_tokenizer)
{
    const fm_value *was = fm_meta_get(source, "general.architecture"), *is = fm_meta_get(own, "general.architecture");
    const char *other = was && is && !says(was, is) ? fm_value_string(was) : NULL;
    for (int64_t i = 0; i < source->n; i++) {
        const fm_value *v = &source->value[i], *new = fm_meta_get(own, v->key);
        if (new)
            fm_meta_put_value(meta, says(v, new) ? v : new);
        else if (!is_stale(v->key, other, keep_tokenizer))
            fm_meta_put_value(meta, v);
    }
    for (int64_t i = 0; i < own->n; i++)
        if (!fm_meta_get(source, own->value[i].key))
            fm_meta_put_value(meta, &own->value[i]);
    meta->failed = meta->failed || own->failed;
}

status md_gguf_keys(fm_meta *meta, const md_exporting *e, int file_type, bool coded)
{
    const md_model *m = e->m;
    fm_arrays source = {0};
    fm_meta own = {0};
    bool keep_tokenizer = false;
    if (m->gguf) {
        TRY(fm_gguf_parse(&source, m->gguf, m->gguf_bytes, "the metadata of the model's GGUF file"));
        status s = has_tokenizer_of(&keep_tokenizer, m, &source.meta);
        if (s != NB_OK) {
            fm_arrays_free(&source);
            return s;
        }
    }
    put_own(&own, e, file_type, coded, m->gguf ? &source.meta : NULL);
    merge(meta, &source.meta, &own, keep_tokenizer);
    fm_meta_free(&own);
    fm_arrays_free(&source);
    return keep_tokenizer ? NB_OK : fm_tokenizer_put_meta(meta, &m->tokenizer, e->shape.vocab);
}

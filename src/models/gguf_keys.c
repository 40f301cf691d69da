/* gguf_keys.c - GGUF's metadata of a model: keys of the architecture in the types that llama.cpp insists on (llama-model.cpp
 * load_hparams); those of the tokenizer are io's.
 */
#include "models/export.h"
#include <string.h>

const char *md_gguf_architecture(const md_model *m)
{
    const md_config *c = &m->config;
    bool is_qwen2 = c->qkv_bias && !c->out_bias && c->pairing == KN_ROPE_HALF && c->rope_factor == 0 &&
                    c->heads * c->head_size == c->dim; /* llama.cpp's qwen2 takes no other head size */
    return is_qwen2 ? "qwen2" : "llama";
}

static void put_shape(fm_meta *meta, const md_config *c, const char *architecture)
{
    const struct {
        const char *key;
        int64_t x;
    } sizes[] = {{"vocab_size", c->vocab},
                 {"context_length", c->ctx},
                 {"embedding_length", c->dim},
                 {"block_count", c->layers},
                 {"feed_forward_length", c->hidden},
                 {"attention.head_count", c->heads},
                 {"attention.head_count_kv", c->kv_heads},
                 {"attention.key_length", c->head_size},
                 {"attention.value_length", c->head_size},
                 {"rope.dimension_count", c->head_size}};
    char key[96];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        (void)snprintf(key, sizeof key, "%s.%s", architecture, sizes[i].key);
        fm_meta_put_u32(meta, key, (uint32_t)sizes[i].x);
    }
    (void)snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", architecture);
    fm_meta_put_f32(meta, key, (float)c->norm_eps);
    (void)snprintf(key, sizeof key, "%s.rope.freq_base", architecture);
    fm_meta_put_f32(meta, key, (float)c->rope_theta);
}

status md_gguf_keys(fm_meta *meta, const md_exporting *e, int file_type)
{
    const char *architecture = md_gguf_architecture(e->m);
    fm_meta_put_string(meta, "general.architecture", architecture);
    fm_meta_put_u32(meta, "general.file_type", (uint32_t)file_type);
    fm_meta_put_u32(meta, "general.quantization_version", 2);
    if (*e->m->recipe.name)
        fm_meta_put_string(meta, "nibble.recipe", e->m->recipe.name);
    put_shape(meta, &e->shape, architecture);
    return fm_tokenizer_put_meta(meta, &e->m->tokenizer, e->shape.vocab);
}

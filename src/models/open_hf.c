/* open_hf.c - a model from a Hugging Face folder, or from a .safetensors file with config.json beside it.
 *   llama, mistral (without a sliding window), qwen2; any float type; half pairing; tied where lm_head is absent. gpt2, with or
 *   without its first word "transformer.". The keys of config.json and their defaults are those of transformers
 *   configuration_llama.py, configuration_mistral.py, configuration_qwen2.py and configuration_gpt2.py; rope_theta and scaling are
 *   read from their old place (rope_scaling) and their new one (rope_parameters). What the model would compute otherwise than we do is refused by name.
 */
#include "models/bind.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG = 1 << 20 }; /* bytes */

static status check_architecture(const nb_json *j)
{
    static const char *const known[] = {"llama", "mistral", "qwen2", "gpt2"};
    const char *type = nb_json_string(nb_json_get(j, "model_type"));
    if (!type)
        return nb_fail(NB_FORMAT, "model_type is missing");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(type, known[i]))
            return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "model_type is \"%.32s\", wanted llama, mistral, qwen2 or gpt2", type);
}

static status check_window(const nb_json *j, int64_t ctx)
{
    const nb_json *window = nb_json_get(j, "sliding_window"), *use = nb_json_get(j, "use_sliding_window");
    if (nb_json_is_null(window) || !nb_json_bool(use, true) || nb_json_int(window, 0) >= ctx)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "sliding_window is %lld, attention here sees all %lld positions",
                   (long long)nb_json_int(window, -1), (long long)ctx);
}

static status check_floats(const nb_json *j)
{
    const nb_json *quantization = nb_json_get(j, "quantization_config");
    const char *method = nb_json_string(nb_json_get(quantization, "quant_method"));
    if (nb_json_is_null(quantization))
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "the weights are quantized already (%.32s), wanted floats", method ? method : "?");
}

static status check_settings(const nb_json *j, int64_t ctx)
{
    const char *act = nb_json_string(nb_json_get(j, "hidden_act"));
    if (act && strcmp(act, "silu") != 0)
        return nb_fail(NB_UNSUPPORTED, "hidden_act is \"%.32s\", wanted silu", act);
    if (nb_json_bool(nb_json_get(j, "mlp_bias"), false))
        return nb_fail(NB_UNSUPPORTED, "mlp_bias is true, the mlp here has none");
    if (nb_json_number(nb_json_get(j, "partial_rotary_factor"), 1) != 1)
        return nb_fail(NB_UNSUPPORTED, "partial_rotary_factor is not 1");
    TRY(check_floats(j));
    return check_window(j, ctx);
}

static status read_rotation(md_config *c, const nb_json *j)
{
    const nb_json *rope = nb_json_get(j, "rope_parameters"), *nested = nb_json_get(rope, "full_attention");
    rope = !nb_json_is_null(nested) ? nested : !nb_json_is_null(rope) ? rope : nb_json_get(j, "rope_scaling");
    c->rope_theta =
        nb_json_number(nb_json_get(rope, "rope_theta"), nb_json_number(nb_json_get(j, "rope_theta"), 10000));
    const char *type = nb_json_string(nb_json_get(rope, "rope_type"));
    if (!type)
        type = nb_json_string(nb_json_get(rope, "type"));
    if (!type || !strcmp(type, "default"))
        return NB_OK;
    if (strcmp(type, "llama3") != 0)
        return nb_fail(NB_UNSUPPORTED, "rope type is \"%.32s\", wanted default or llama3", type);
    c->rope_factor = nb_json_number(nb_json_get(rope, "factor"), -1);
    c->rope_low = nb_json_number(nb_json_get(rope, "low_freq_factor"), -1);
    c->rope_high = nb_json_number(nb_json_get(rope, "high_freq_factor"), -1);
    c->rope_ctx = nb_json_number(nb_json_get(rope, "original_max_position_embeddings"), -1);
    return NB_OK;
}

/* A special id: a number, or the first of a list. */
static int64_t special_id(const nb_json *j, const char *key)
{
    const nb_json *x = nb_json_get(j, key);
    return nb_json_int(nb_json_is_number(x) ? x : nb_json_first(x), -1);
}

/* "gelu_new" and "gelu_pytorch_tanh" are one function, "gelu_fast" is another spelling of it. */
static status check_gpt2(const nb_json *j)
{
    const char *act = nb_json_string(nb_json_get(j, "activation_function"));
    if (act && strcmp(act, "gelu_new") != 0 && strcmp(act, "gelu_pytorch_tanh") != 0 && strcmp(act, "gelu_fast") != 0)
        return nb_fail(NB_UNSUPPORTED, "activation_function is \"%.32s\", wanted gelu_new", act);
    if (!nb_json_bool(nb_json_get(j, "scale_attn_weights"), true))
        return nb_fail(NB_UNSUPPORTED, "scale_attn_weights is false, scores here are divided by the root of the head size");
    if (nb_json_bool(nb_json_get(j, "scale_attn_by_inverse_layer_idx"), false))
        return nb_fail(NB_UNSUPPORTED, "scale_attn_by_inverse_layer_idx is true, scores here are scaled alike in all layers");
    if (nb_json_bool(nb_json_get(j, "add_cross_attention"), false))
        return nb_fail(NB_UNSUPPORTED, "add_cross_attention is true, there is no encoder here");
    return check_floats(j);
}

static status read_gpt2(md_config *c, const nb_json *j, bool has_head)
{
    *c = (md_config){.architecture = "gpt2",
                     .dim = nb_json_int(nb_json_get(j, "n_embd"), 768),
                     .layers = nb_json_int(nb_json_get(j, "n_layer"), 12),
                     .heads = nb_json_int(nb_json_get(j, "n_head"), 12),
                     .vocab = nb_json_int(nb_json_get(j, "vocab_size"), 50257),
                     .ctx = nb_json_int(nb_json_get(j, "n_positions"), 1024),
                     .norm_eps = nb_json_number(nb_json_get(j, "layer_norm_epsilon"), 1e-5),
                     .tied = !has_head || nb_json_bool(nb_json_get(j, "tie_word_embeddings"), true),
                     .qkv_bias = true,
                     .out_bias = true,
                     .bos = special_id(j, "bos_token_id"),
                     .eos = special_id(j, "eos_token_id")};
    c->hidden = nb_json_int(nb_json_get(j, "n_inner"), 4 * c->dim);
    c->kv_heads = c->heads;
    c->head_size = c->heads > 0 ? c->dim / c->heads : 0;
    return check_gpt2(j);
}

static status read_llama(md_config *c, const nb_json *j, bool has_head)
{
    const bool bias = nb_json_bool(nb_json_get(j, "attention_bias"), false);
    const bool is_qwen2 = !strcmp(nb_json_string(nb_json_get(j, "model_type")), "qwen2");
    *c = (md_config){.architecture = "llama",
                     .dim = nb_json_int(nb_json_get(j, "hidden_size"), 4096),
                     .hidden = nb_json_int(nb_json_get(j, "intermediate_size"), 11008),
                     .layers = nb_json_int(nb_json_get(j, "num_hidden_layers"), 32),
                     .heads = nb_json_int(nb_json_get(j, "num_attention_heads"), 32),
                     .vocab = nb_json_int(nb_json_get(j, "vocab_size"), 32000),
                     .ctx = nb_json_int(nb_json_get(j, "max_position_embeddings"), 2048),
                     .norm_eps = nb_json_number(nb_json_get(j, "rms_norm_eps"), 1e-6),
                     .pairing = KN_ROPE_HALF,
                     .tied = !has_head || nb_json_bool(nb_json_get(j, "tie_word_embeddings"), false),
                     .qkv_bias = bias || is_qwen2,
                     .out_bias = bias && !is_qwen2,
                     .bos = special_id(j, "bos_token_id"),
                     .eos = special_id(j, "eos_token_id")};
    c->kv_heads = nb_json_int(nb_json_get(j, "num_key_value_heads"), c->heads);
    c->head_size = nb_json_int(nb_json_get(j, "head_dim"), c->heads > 0 ? c->dim / c->heads : 0);
    TRY(check_settings(j, c->ctx));
    return read_rotation(c, j);
}

static status read_config(md_config *c, const nb_json *j, bool has_head)
{
    TRY(check_architecture(j));
    const bool is_gpt2 = !strcmp(nb_json_string(nb_json_get(j, "model_type")), "gpt2");
    TRY((is_gpt2 ? read_gpt2 : read_llama)(c, j, has_head));
    if (c->bos >= c->vocab)
        c->bos = -1;
    if (c->eos >= c->vocab)
        c->eos = -1;
    return md_config_check(c);
}

static status parse_config(md_config *c, const char *path, bool has_head)
{
    nb_mapped file;
    TRY(nb_map(&file, path));
    nb_json *j = NULL;
    status s = NB_OK;
    if (file.bytes > MAX_CONFIG)
        s = nb_fail(NB_FORMAT, "%zu bytes are no config", file.bytes);
    else if (!(j = nb_json_parse((const char *)file.data, file.bytes)))
        s = NB_FORMAT;
    else
        s = read_config(c, j, has_head);
    nb_json_free(j);
    nb_unmap(&file);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", path);
}

/* "NAME in the folder of path", path being the folder or a file in it. The caller frees it. */
static char *beside(const char *path, const char *name)
{
    if (nb_path_is_folder(path))
        return nb_path_join(path, name);
    size_t folder = (size_t)(nb_path_name(path) - path), bytes = folder + strlen(name) + 1;
    char *full = nb_alloc(bytes, 1);
    if (full)
        (void)snprintf(full, bytes, "%.*s%s", (int)folder, path, name);
    return full;
}

static status read_model(md_model *m, const fm_arrays *a, const char *config_path, const fq_recipe *recipe, const md_open_options *o)
{
    md_config c;
    TRY(parse_config(&c, config_path, fm_find(a, "lm_head.weight") != NULL));
    TRY(md_check_ctx(&c, a));
    TRY(md_check_arrays(a, &c, MD_HF, ""));
    TRY(md_build(m, &c, recipe, MD_UNSET, o->fold));
    return md_load_weights(m, a, MD_HF, "", o);
}

/* The folder's tokenizer.model, else tokenizer.json, else vocab.json. One of a kind that is not read leaves the model without. */
static status take_tokenizer(md_model *m, const char *path)
{
    static const char *const names[] = {"tokenizer.model", "tokenizer.json", "vocab.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *file = beside(path, names[i]);
        if (!file)
            return NB_NOMEM;
        const bool there = nb_path_exists(file);
        status s = there ? md_attach_tokenizer(m, file) : NB_OK;
        free(file);
        if (there)
            return s == NB_UNSUPPORTED ? NB_OK : s;
    }
    return NB_OK;
}

status md_open_hf(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o)
{
    fm_arrays a;
    char *config = beside(path, "config.json");
    status s = config ? fm_safetensors_open(&a, path) : NB_NOMEM;
    if (s == NB_OK) {
        s = read_model(m, &a, config, recipe, o);
        if (s == NB_OK)
            s = take_tokenizer(m, path);
        if (s != NB_OK)
            md_free(m);
        fm_arrays_free(&a);
    }
    free(config);
    return s;
}

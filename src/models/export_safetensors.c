/* export_safetensors.c - a Hugging Face folder: model.safetensors with the decoded floats under transformers' names, rotated rows in half pairing, config.json
 * (llama, or qwen2 where q, k and v alone have biases; gpt2, its matrices transposed), and the tokenizer's files. rope_theta and scaling stand in their old place and in their new one.
 */
#include "models/export.h"
#include <stdlib.h>
#include <string.h>

static bool is_qwen2(const md_config *c)
{
    return c->qkv_bias && !c->out_bias;
}

static void put_rotation(nb_writer *w, const md_config *c, const char *key, bool with_theta)
{
    nb_json_open(w, key, '{');
    if (with_theta)
        nb_json_put_number(w, "rope_theta", c->rope_theta);
    nb_json_put_string(w, "rope_type", c->rope_factor != 0 ? "llama3" : "default");
    if (c->rope_factor != 0) {
        nb_json_put_number(w, "factor", c->rope_factor);
        nb_json_put_number(w, "low_freq_factor", c->rope_low);
        nb_json_put_number(w, "high_freq_factor", c->rope_high);
        nb_json_put_int(w, "original_max_position_embeddings", (int64_t)c->rope_ctx);
    }
    nb_json_close(w, '}');
}

static void put_llama(nb_writer *w, const md_config *c)
{
    nb_json_put_int(w, "hidden_size", c->dim);
    nb_json_put_int(w, "intermediate_size", c->hidden);
    nb_json_put_int(w, "num_hidden_layers", c->layers);
    nb_json_put_int(w, "num_attention_heads", c->heads);
    nb_json_put_int(w, "num_key_value_heads", c->kv_heads);
    nb_json_put_int(w, "head_dim", c->head_size);
    nb_json_put_int(w, "max_position_embeddings", c->ctx);
    nb_json_put_string(w, "hidden_act", "silu");
    nb_json_put_number(w, "rms_norm_eps", c->norm_eps);
    nb_json_put_number(w, "rope_theta", c->rope_theta);
    if (c->rope_factor != 0)
        put_rotation(w, c, "rope_scaling", false);
    put_rotation(w, c, "rope_parameters", true);
    nb_json_put_bool(w, "attention_bias", c->out_bias);
    nb_json_put_bool(w, "mlp_bias", false);
}

static void put_gpt2(nb_writer *w, const md_config *c)
{
    nb_json_put_int(w, "n_embd", c->dim);
    nb_json_put_int(w, "n_inner", c->hidden);
    nb_json_put_int(w, "n_layer", c->layers);
    nb_json_put_int(w, "n_head", c->heads);
    nb_json_put_int(w, "n_positions", c->ctx);
    nb_json_put_int(w, "n_ctx", c->ctx);
    nb_json_put_string(w, "activation_function", "gelu_new");
    nb_json_put_number(w, "layer_norm_epsilon", c->norm_eps);
}

static char *config_text(const md_config *c, fm_dtype floats)
{
    const char *dtype = floats == FM_F16 ? "float16" : floats == FM_BF16 ? "bfloat16" : "float32";
    const char *type = md_is_gpt2(c) ? "gpt2" : is_qwen2(c) ? "qwen2" : "llama";
    const char *class = md_is_gpt2(c) ? "GPT2LMHeadModel" : is_qwen2(c) ? "Qwen2ForCausalLM" : "LlamaForCausalLM";
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_open(&w, "architectures", '[');
    nb_json_put_string(&w, NULL, class);
    nb_json_close(&w, ']');
    nb_json_put_string(&w, "model_type", type);
    nb_json_put_int(&w, "vocab_size", c->vocab);
    (md_is_gpt2(c) ? put_gpt2 : put_llama)(&w, c);
    nb_json_put_bool(&w, "tie_word_embeddings", c->tied);
    nb_json_put_string(&w, "torch_dtype", dtype);
    nb_json_put_string(&w, "dtype", dtype);
    if (c->bos >= 0)
        nb_json_put_int(&w, "bos_token_id", c->bos);
    if (c->eos >= 0)
        nb_json_put_int(&w, "eos_token_id", c->eos);
    nb_json_close(&w, '}');
    return nb_json_text(&w);
}

static status write_config(const md_config *c, fm_dtype floats, const char *folder)
{
    char *path = nb_path_join(folder, "config.json"), *text = config_text(c, floats);
    nb_atomic out = {0};
    status s = path && text ? nb_atomic_begin(&out, path) : nb_fail(NB_NOMEM, "no memory for config.json");
    if (s == NB_OK && fputs(text, out.file) < 0)
        s = nb_fail(NB_IO, "%s: writing failed", path);
    if (s == NB_OK)
        s = nb_atomic_commit(&out);
    nb_atomic_abort(&out);
    free(path);
    free(text);
    return s;
}

typedef struct {
    md_exporting e;
    fm_dtype floats;
} writing;

static status put_array(void *ctx, fm_sink *sink, const fm_array *a)
{
    writing *w = ctx;
    return md_put_floats(sink, &w->e, md_exporting_find(&w->e, a->name), w->floats);
}

static status write_weights(writing *w, const char *folder)
{
    md_exporting *e = &w->e;
    fm_array *array = nb_alloc((size_t)e->n, sizeof *array);
    char *path = nb_path_join(folder, "model.safetensors");
    status s = array && path ? NB_OK : NB_NOMEM;
    int64_t n = 0;
    for (int64_t i = 0; i < e->n && s == NB_OK; i = md_exporting_next(e, i), n++) {
        array[n] = (fm_array){.name = e->name[i], .dtype = w->floats};
        array[n].n_dim = md_array_dim(array[n].dim, &e->out[i], MD_HF);
        s = fm_array_measure(&array[n]);
    }
    if (s == NB_OK)
        s = fm_safetensors_write(path, array, n, NULL, (fm_source){put_array, w});
    free(array);
    free(path);
    return s;
}

static status check(const md_model *m)
{
    if (m->config.out_bias && !m->config.qkv_bias)
        return nb_fail(NB_UNSUPPORTED, "no Hugging Face architecture has a bias after attention and none before it");
    return NB_OK;
}

static const char *tokenizer_of(const md_model *m)
{
    return m->tokenizer.kind == FM_TOKENIZER_NONE ? "out a tokenizer: there is none" : " its tokenizer";
}

static void describe(const md_model *m, fm_dtype floats, int64_t rounded, const char *tokenizer, char *report, size_t bytes)
{
    md_say_floats(report, bytes, floats, rounded);
    md_say(report, bytes, "a Hugging Face folder with%s", tokenizer);
    md_say_inputs(report, bytes, m, "the client computes with float inputs");
}

/* What a folder cannot say of a tokenizer leaves it without; the weights are worth having. */
static status write_tokenizer(const md_model *m, const char *folder, char *told, size_t bytes)
{
    status s = m->tokenizer.kind == FM_TOKENIZER_NONE ? NB_OK : fm_tokenizer_write_folder(&m->tokenizer, folder);
    if (s == NB_UNSUPPORTED)
        (void)snprintf(told, bytes, "out its tokenizer: %s", nb_fail_message());
    else
        (void)snprintf(told, bytes, "%s", tokenizer_of(m));
    return s == NB_UNSUPPORTED ? NB_OK : s;
}

status md_check_safetensors(const md_model *m, const md_target *t, char *report, size_t bytes)
{
    TRY(check(m));
    describe(m, t->floats, -1, tokenizer_of(m), report, bytes);
    return NB_OK;
}

status md_write_safetensors(md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    writing w = {.floats = t->floats};
    char tokenizer[512];
    TRY(check(m));
    TRY(nb_make_folder(path));
    TRY(md_exporting_new(&w.e, m, MD_HF, KN_ROPE_HALF, m->config.hidden));
    status s = write_weights(&w, path);
    if (s == NB_OK)
        s = write_config(&m->config, t->floats, path);
    if (s == NB_OK)
        s = write_tokenizer(m, path, tokenizer, sizeof tokenizer);
    if (s == NB_OK)
        describe(m, t->floats, w.e.rounded, tokenizer, report, bytes);
    md_exporting_free(&w.e);
    return s;
}

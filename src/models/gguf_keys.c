/* gguf_keys.c - GGUF's metadata of a model: keys of the architecture and of the tokenizer, in the types that llama.cpp insists on
 * (llama-model.cpp load_hparams, llama-vocab.cpp). SentencePiece vocabularies become model "llama"; the built-in bytes become "gpt2" without merges: one token
 * per byte, spelled in GPT-2's alphabet of bytes.
 */
#include "models/export.h"
#include <stdlib.h>
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

/* ---- tokenizer ---------------------------------------------------------------------------- */

typedef struct {
    fm_text *text;
    float *score;
    int32_t *type;
    nb_arena names;
} token_list;

static bool token(token_list *l, int64_t id, const char *text, size_t bytes, float score, int32_t type)
{
    char *copy = nb_arena_alloc(&l->names, bytes + 1);
    if (!copy)
        return false;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    l->text[id] = (fm_text){copy, bytes};
    l->score[id] = score;
    l->type[id] = type;
    return true;
}

/* GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others, in order, for U+0100 and on; as UTF-8. */
static size_t byte_letter(char text[4], int byte)
{
    int code = byte, n = 0;
    bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    for (int b = 0; b < byte; b++)
        n += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    if (!plain)
        code = 0x100 + n;
    if (code < 0x80) {
        text[0] = (char)code;
        return 1;
    }
    text[0] = (char)(0xC0 | code >> 6);
    text[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

static bool byte_token(token_list *l, const fm_tokenizer *tk, int64_t id)
{
    char letter[4];
    if (id < 256)
        return token(l, id, letter, byte_letter(letter, (int)id), 0, FM_PIECE_NORMAL);
    const char *special = id == tk->bos ? "<s>" : "</s>";
    return token(l, id, special, strlen(special), 0, FM_PIECE_CONTROL);
}

/* ids [vocab]: the tokenizer's pieces, then padding, for llama.cpp wants as many tokens as the embedding has rows. */
static bool list_tokens(token_list *l, const fm_tokenizer *tk, int64_t vocab)
{
    bool good = true;
    for (int64_t id = 0; id < vocab && good; id++) {
        char pad[32];
        fm_piece piece = fm_tokenizer_piece(tk, (int32_t)id);
        if (id >= tk->vocab_size) {
            (void)snprintf(pad, sizeof pad, "[PAD%lld]", (long long)id);
            good = token(l, id, pad, strlen(pad), -1000, FM_PIECE_UNUSED);
        } else if (tk->kind == FM_TOKENIZER_BYTES) {
            good = byte_token(l, tk, id);
        } else {
            good = token(l, id, piece.text.text, piece.text.bytes, piece.score, (int32_t)piece.type);
        }
    }
    return good;
}

static void put_id(fm_meta *meta, const char *key, int32_t id)
{
    if (id >= 0)
        fm_meta_put_u32(meta, key, (uint32_t)id);
}

static void put_tokens(fm_meta *meta, const token_list *l, const fm_tokenizer *tk, int64_t vocab)
{
    const bool is_bytes = tk->kind == FM_TOKENIZER_BYTES;
    fm_meta_put_string(meta, "tokenizer.ggml.model", is_bytes ? "gpt2" : "llama");
    fm_meta_put_string(meta, "tokenizer.ggml.pre", is_bytes ? "gpt-2" : "default");
    fm_meta_put_strings(meta, "tokenizer.ggml.tokens", l->text, vocab);
    fm_meta_put_array(meta, "tokenizer.ggml.token_type", FM_I32, l->type, vocab);
    if (is_bytes)
        fm_meta_put_strings(meta, "tokenizer.ggml.merges", NULL, 0);
    else
        fm_meta_put_array(meta, "tokenizer.ggml.scores", FM_F32, l->score, vocab);
    put_id(meta, "tokenizer.ggml.bos_token_id", tk->bos);
    put_id(meta, "tokenizer.ggml.eos_token_id", tk->eos);
    put_id(meta, "tokenizer.ggml.unknown_token_id", tk->unknown);
    put_id(meta, "tokenizer.ggml.padding_token_id", tk->pad);
    fm_meta_put_bool(meta, "tokenizer.ggml.add_bos_token", tk->bos >= 0);
    fm_meta_put_bool(meta, "tokenizer.ggml.add_eos_token", false);
    fm_meta_put_bool(meta, "tokenizer.ggml.add_space_prefix", tk->add_space_prefix);
}

static status put_tokenizer(fm_meta *meta, const fm_tokenizer *tk, int64_t vocab)
{
    token_list l = {.text = nb_alloc((size_t)vocab, sizeof *l.text),
                    .score = nb_alloc((size_t)vocab, sizeof *l.score),
                    .type = nb_alloc((size_t)vocab, sizeof *l.type)};
    bool good = l.text && l.score && l.type && list_tokens(&l, tk, vocab);
    if (good)
        put_tokens(meta, &l, tk, vocab);
    free(l.text);
    free(l.score);
    free(l.type);
    nb_arena_free(&l.names);
    return good ? NB_OK : nb_fail(NB_NOMEM, "no memory for a vocabulary of %lld", (long long)vocab);
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
    if (e->m->tokenizer.kind != FM_TOKENIZER_NONE)
        return put_tokenizer(meta, &e->m->tokenizer, e->shape.vocab);
    fm_meta_put_string(meta, "tokenizer.ggml.model", "none");
    return NB_OK;
}

/* tokenizer_gguf.c - the tokenizer in GGUF's metadata, tokenizer.ggml.*:
 *   model      "llama" (SentencePiece BPE), "gpt2" (byte-level BPE) or "none"
 *   tokens     texts; token_type i32, as fm_piece_type; scores f32 (llama); merges, texts "left right" (gpt2)
 *   pre        name of the pre-tokenizer (gpt2)
 *   bos_token_id, eos_token_id, unknown_token_id, padding_token_id u32; add_bos_token, add_space_prefix bool
 * and tokenizer.chat_template. Source: llama.cpp src/llama-vocab.cpp, llama_vocab::impl::load.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define KEY "tokenizer.ggml."

/* Texts that are control pieces whatever their type says (ends of turn and text, fill-in-the-middle). */
static const char *const control_names[] = {"<|eot_id|>",
                                            "<|im_end|>",
                                            "<|end|>",
                                            "<end_of_turn>",
                                            "<|endoftext|>",
                                            "<|end_of_text|>",
                                            "<EOT>",
                                            "_<EOT>",
                                            "[EOT]",
                                            "[EOS]",
                                            "<end_of_utterance>",
                                            "<|eom_id|>",
                                            "</s>",
                                            "<eos>",
                                            "<|return|>",
                                            "<|call|>",
                                            "<|fim_prefix|>",
                                            "<fim-prefix>",
                                            "<fim_prefix>",
                                            "<PRE>",
                                            "<|code_prefix|>",
                                            "<|fim_suffix|>",
                                            "<fim-suffix>",
                                            "<fim_suffix>",
                                            "<SUF>",
                                            "<|code_suffix|>",
                                            "<|fim_middle|>",
                                            "<fim-middle>",
                                            "<fim_middle>",
                                            "<MID>",
                                            "<|code_middle|>",
                                            "<|fim_pad|>",
                                            "<fim-pad>",
                                            "<fim_pad>",
                                            "<PAD>",
                                            "[PAD]",
                                            "<|fim_repo|>",
                                            "<|repo_name|>",
                                            "<fim-repo>",
                                            "<REPO>",
                                            "<reponame>",
                                            "<|file_sep|>"};

static bool is_text(fm_text t, const char *text)
{
    return t.bytes == strlen(text) && memcmp(t.text, text, t.bytes) == 0;
}

/* ---- reading ---- */

static const fm_value *list_of(const fm_meta *meta, const char *key, fm_dtype t)
{
    const fm_value *v = fm_meta_get(meta, key);
    return v && v->is_array && v->dtype == t ? v : NULL;
}

static bool flag_of(const fm_meta *meta, const char *key, bool otherwise)
{
    const fm_value *v = fm_meta_get(meta, key);
    return v && v->dtype == FM_BOOL ? fm_value_int(v, 0, otherwise) != 0 : otherwise;
}

/* A special id; one that is absent or all ones is the default, or none where that lies outside. */
static status read_id(int32_t *id, const fm_meta *meta, const char *key, int64_t otherwise, int64_t n)
{
    int64_t x = fm_value_int(fm_meta_get(meta, key), 0, UINT32_MAX);
    if (x == UINT32_MAX || x == -1)
        x = otherwise < n ? otherwise : -1;
    else if (x < 0 || x >= n)
        return nb_fail(NB_FORMAT, "%s: %lld in a vocabulary of %lld", key, (long long)x, (long long)n);
    *id = (int32_t)x;
    return NB_OK;
}

static fm_piece_type type_of(fm_text t, int64_t type)
{
    for (size_t i = 0; i < sizeof control_names / sizeof *control_names; i++)
        if (is_text(t, control_names[i]))
            return FM_PIECE_CONTROL;
    return type < 0 || type > FM_PIECE_BYTE ? (fm_piece_type)0 : (fm_piece_type)type;
}

static status read_pieces(fm_tokenizer *tk, const fm_meta *meta, const fm_value *tokens)
{
    const fm_value *types = list_of(meta, KEY "token_type", FM_I32), *scores = list_of(meta, KEY "scores", FM_F32);
    bool is_spm = tk->kind == FM_TOKENIZER_SPM;
    if ((types && types->n < tokens->n) || (is_spm && (!scores || scores->n < tokens->n)))
        return nb_fail(NB_FORMAT, KEY "tokens has %lld elements, token_type %lld, scores %lld", (long long)tokens->n,
                       types ? (long long)types->n : 0, scores ? (long long)scores->n : 0);
    for (int64_t i = 0; i < tokens->n; i++) {
        char empty[40];
        fm_text t = fm_value_text(tokens, i);
        if (t.bytes == 0)
            t = (fm_text){empty, (size_t)snprintf(empty, sizeof empty, "[EMPTY_%lld]", (long long)i)};
        float score = is_spm ? (float)fm_value_number(scores, i, 0.0) : 0.0f;
        TRY(fm_vocab_add(tk, t.text, t.bytes, score, type_of(t, fm_value_int(types, i, FM_PIECE_NORMAL))));
    }
    return fm_vocab_index(tk->vocab);
}

static status read_merges(fm_vocab *v, const fm_meta *meta)
{
    const fm_value *merges = list_of(meta, KEY "merges", FM_STRING);
    if (!merges && fm_meta_get(meta, KEY "merges"))
        return nb_fail(NB_FORMAT, KEY "merges is no list of texts");
    for (int64_t i = 0; merges && i < merges->n; i++) {
        fm_text t = fm_value_text(merges, i);
        const char *space = t.bytes > 1 ? memchr(t.text + 1, ' ', t.bytes - 1) : NULL;
        if (!space)
            return nb_fail(NB_FORMAT, KEY "merges: '%.*s' is no pair", t.bytes < 80 ? (int)t.bytes : 80, t.text);
        size_t left = (size_t)(space - t.text);
        TRY(fm_merges_add(v, (fm_text){t.text, left}, (fm_text){space + 1, t.bytes - left - 1}));
    }
    return NB_OK;
}

/* Phi-3's control pieces take the white space after them along; GGUF does not say so. */
static void set_strips(fm_vocab *v, const fm_meta *meta)
{
    const char *name = fm_value_string(fm_meta_get(meta, "general.name"));
    if (!name || (strncmp(name, "Phi-3", 5) != 0 && strncmp(name, "Phi3", 4) != 0))
        return;
    for (int64_t i = 0; i < v->n; i++) {
        fm_vocab_piece *p = &v->piece[i];
        fm_text t = {v->pool + p->text, p->bytes};
        if (p->type == FM_PIECE_CONTROL && !is_text(t, "<unk>") && !is_text(t, "<s>") && !is_text(t, "<|endoftext|>"))
            p->added |= FM_ADDED_RSTRIP;
    }
}

static status read_settings(fm_tokenizer *tk, const fm_meta *meta, int64_t n)
{
    bool is_spm = tk->kind == FM_TOKENIZER_SPM;
    tk->add_bos = is_spm;
    if (!is_spm) {
        const char *pre = fm_value_string(fm_meta_get(meta, KEY "pre"));
        tk->vocab->byte_level = tk->vocab->drop_missing = true;
        TRY(fm_pre_add(tk, pre ? pre : "default"));
    }
    tk->add_bos = flag_of(meta, KEY "add_bos_token", tk->add_bos);
    tk->add_space_prefix = flag_of(meta, KEY "add_space_prefix", is_spm) && is_spm;
    TRY(read_id(&tk->bos, meta, KEY "bos_token_id", is_spm ? 1 : -1, n));
    TRY(read_id(&tk->eos, meta, KEY "eos_token_id", is_spm ? 2 : -1, n));
    TRY(read_id(&tk->unknown, meta, KEY "unknown_token_id", is_spm ? 0 : -1, n));
    TRY(read_id(&tk->pad, meta, KEY "padding_token_id", -1, n));
    const fm_value *template = fm_meta_get(meta, "tokenizer.chat_template");
    if (!template || template->is_array || template->dtype != FM_STRING)
        return NB_OK;
    fm_text t = fm_value_text(template, 0);
    return fm_vocab_set_template(tk, t.text, t.bytes);
}

static status read_meta(fm_tokenizer *tk, const fm_meta *meta, const char *model)
{
    bool is_spm = strcmp(model, "llama") == 0;
    if (!is_spm && strcmp(model, "gpt2") != 0)
        return nb_fail(NB_UNSUPPORTED, KEY "model '%.60s' is not read; llama and gpt2 are", model);
    const fm_value *tokens = list_of(meta, KEY "tokens", FM_STRING);
    if (!tokens || tokens->n == 0)
        return nb_fail(NB_FORMAT, KEY "tokens is no list of texts");
    TRY(fm_vocab_new(tk, is_spm ? FM_TOKENIZER_SPM : FM_TOKENIZER_BPE));
    TRY(read_settings(tk, meta, tokens->n));
    TRY(read_pieces(tk, meta, tokens));
    if (!is_spm)
        TRY(read_merges(tk->vocab, meta));
    set_strips(tk->vocab, meta);
    return fm_tokenizer_seal(tk);
}

status fm_tokenizer_from_meta(fm_tokenizer *tk, const fm_meta *meta)
{
    *tk = (fm_tokenizer){0};
    const fm_value *v = fm_meta_get(meta, KEY "model");
    const char *model = fm_value_string(v);
    if (v && !model)
        return nb_fail(NB_FORMAT, KEY "model is no text");
    if (!model || strcmp(model, "none") == 0 || strcmp(model, "no_vocab") == 0)
        return NB_OK;
    status s = read_meta(tk, meta, model);
    if (s != NB_OK)
        fm_tokenizer_free(tk);
    return s;
}

status fm_tokenizer_read_gguf(fm_tokenizer *tk, const char *path)
{
    fm_arrays a;
    TRY(fm_gguf_open(&a, path));
    status s = fm_tokenizer_from_meta(tk, &a.meta);
    if (s == NB_OK && tk->kind == FM_TOKENIZER_NONE)
        s = nb_fail(NB_FORMAT, "there is no tokenizer in it");
    fm_arrays_free(&a);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", path);
}

/* ---- writing ---- */

typedef struct {
    fm_text *text;
    float *score;
    int32_t *type;
    nb_arena names;
} token_list;

static bool put_name(token_list *l, fm_text *to, const char *text, size_t bytes)
{
    char *copy = nb_arena_alloc(&l->names, bytes + 1);
    if (!copy)
        return false;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    *to = (fm_text){copy, bytes};
    return true;
}

/* ids [vocab]: the tokenizer's pieces, then padding, for llama.cpp wants as many tokens as the embedding has rows. */
static bool list_tokens(token_list *l, const fm_tokenizer *tk, int64_t vocab)
{
    bool good = true;
    for (int64_t id = 0; id < vocab && good; id++) {
        fm_piece piece = fm_tokenizer_piece(tk, (int32_t)id);
        char name[32];
        if (id >= tk->vocab_size) {
            int bytes = snprintf(name, sizeof name, "[PAD%lld]", (long long)id);
            piece = (fm_piece){{name, (size_t)bytes}, -1000.0f, FM_PIECE_UNUSED};
        } else if (tk->kind == FM_TOKENIZER_BYTES && id < 256) {
            piece = (fm_piece){{name, fm_letter_of_byte(name, (uint8_t)id)}, 0.0f, FM_PIECE_NORMAL};
        }
        l->score[id] = piece.score;
        l->type[id] = (int32_t)piece.type;
        good = put_name(l, &l->text[id], piece.text.text, piece.text.bytes);
    }
    return good;
}

static status put_merges(fm_meta *meta, const fm_tokenizer *tk, nb_arena *arena)
{
    const fm_vocab *v = tk->vocab;
    fm_text *merges = nb_alloc((size_t)v->n_merges, sizeof *merges);
    status s = merges ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < v->n_merges && s == NB_OK; i++) {
        const fm_vocab_piece *left = &v->piece[v->merge[i].left], *right = &v->piece[v->merge[i].right];
        size_t bytes = (size_t)left->bytes + right->bytes + 1;
        char *text = nb_arena_alloc(arena, bytes);
        if (!text) {
            s = nb_fail(NB_NOMEM, "no memory for %lld merges", (long long)v->n_merges);
            break;
        }
        memcpy(text, v->pool + left->text, left->bytes);
        text[left->bytes] = ' ';
        memcpy(text + left->bytes + 1, v->pool + right->text, right->bytes);
        merges[i] = (fm_text){text, bytes};
        if (memchr(text + 1, ' ', bytes - 1) != text + left->bytes || memchr(text + left->bytes + 1, ' ', right->bytes))
            s = nb_fail(NB_UNSUPPORTED, "merge %lld has a space in it; GGUF cannot hold it", (long long)i);
    }
    if (s == NB_OK)
        fm_meta_put_strings(meta, KEY "merges", merges, v->n_merges);
    free(merges);
    return s;
}

static void put_id(fm_meta *meta, const char *key, int32_t id)
{
    if (id >= 0)
        fm_meta_put_u32(meta, key, (uint32_t)id);
}

static status put_all(fm_meta *meta, token_list *l, const fm_tokenizer *tk, int64_t vocab, const char *pre)
{
    bool is_spm = !pre;
    fm_meta_put_string(meta, KEY "model", is_spm ? "llama" : "gpt2");
    fm_meta_put_string(meta, KEY "pre", is_spm ? "default" : pre);
    fm_meta_put_strings(meta, KEY "tokens", l->text, vocab);
    fm_meta_put_array(meta, KEY "token_type", FM_I32, l->type, vocab);
    if (is_spm)
        fm_meta_put_array(meta, KEY "scores", FM_F32, l->score, vocab);
    else
        TRY(put_merges(meta, tk, &l->names));
    put_id(meta, KEY "bos_token_id", tk->bos);
    put_id(meta, KEY "eos_token_id", tk->eos);
    put_id(meta, KEY "unknown_token_id", tk->unknown);
    put_id(meta, KEY "padding_token_id", tk->pad);
    fm_meta_put_bool(meta, KEY "add_bos_token", tk->add_bos);
    fm_meta_put_bool(meta, KEY "add_eos_token", false);
    fm_meta_put_bool(meta, KEY "add_space_prefix", tk->add_space_prefix);
    if (tk->vocab->chat_template)
        fm_meta_put_string(meta, "tokenizer.chat_template", tk->vocab->chat_template);
    return meta->failed ? nb_fail(NB_NOMEM, "no memory for the metadata of a tokenizer") : NB_OK;
}

status fm_tokenizer_put_meta(fm_meta *meta, const fm_tokenizer *tk, int64_t vocab)
{
    const fm_vocab *v = tk->vocab;
    if (!v) {
        fm_meta_put_string(meta, KEY "model", "none");
        return meta->failed ? NB_NOMEM : NB_OK;
    }
    bool letters = v->byte_level || tk->kind == FM_TOKENIZER_BYTES;
    const char *pre = tk->kind == FM_TOKENIZER_BYTES ? "gpt-2" : v->byte_level ? fm_pre_name(tk) : NULL;
    if (letters && (!pre || (v->byte_level && tk->add_space_prefix)))
        return nb_fail(NB_UNSUPPORTED, "GGUF has no name for the pre-tokenizer of this tokenizer");
    if (!letters && v->split_spaces)
        return nb_fail(NB_UNSUPPORTED, "GGUF cannot hold a tokenizer that cuts at every space");
    if (vocab < tk->vocab_size)
        return nb_fail(NB_USAGE, "a tokenizer of %lld tokens for a vocabulary of %lld", (long long)tk->vocab_size,
                       (long long)vocab);
    token_list l = {.text = nb_alloc((size_t)vocab, sizeof *l.text),
                    .score = nb_alloc((size_t)vocab, sizeof *l.score),
                    .type = nb_alloc((size_t)vocab, sizeof *l.type)};
    bool good = l.text && l.score && l.type && list_tokens(&l, tk, vocab);
    status s = good ? put_all(meta, &l, tk, vocab, pre)
                    : nb_fail(NB_NOMEM, "no memory for a vocabulary of %lld", (long long)vocab);
    free(l.text);
    free(l.score);
    free(l.type);
    nb_arena_free(&l.names);
    return s;
}

/* tokenizer_json.c - reader of Hugging Face's tokenizer.json (model of type BPE), and of GPT-2's vocab.json, merges.txt.
 *   { "added_tokens": [{id, content, single_word, lstrip, rstrip, normalized, special}], "normalizer", "pre_tokenizer",
 *     "post_processor", "model": {type, vocab: {text: id}, merges: ["a b"] or [["a", "b"]], unk_token, fuse_unk,
 *     byte_fallback, ignore_merges} }
 * vocab.json is {text: id}; a line of merges.txt is "a b", the first may be "#version". Ids that no entry has get an
 * unused piece [PADn]. Source: Hugging Face tokenizers, tokenizer/serialization.rs, models/bpe/model.rs.
 */
#include "io/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *text; /* NULL: no entry has this id */
    uint8_t type, added;
} entry;

typedef struct {
    entry *at; /* [n] by id */
    int64_t n;
} entries;

static status put_entry(entries *e, const char *text, int64_t id, fm_piece_type type, int added)
{
    if (id < 0 || id >= e->n)
        return nb_fail(NB_FORMAT, "'%.60s' has id %lld; 0 to %lld would do", text, (long long)id, (long long)e->n - 1);
    entry *x = &e->at[id];
    if (x->text && strcmp(x->text, text) != 0)
        return nb_fail(NB_FORMAT, "'%.60s' and '%.60s' both have id %lld", x->text, text, (long long)id);
    *x = (entry){text, (uint8_t)type, (uint8_t)added};
    return NB_OK;
}

static status list_vocab(entries *e, const nb_json *vocab, bool byte_fallback)
{
    for (const nb_json *i = nb_json_first(vocab); i; i = nb_json_next(i)) {
        const char *text = nb_json_key(i);
        bool is_byte = byte_fallback && fm_byte_of_piece(text, strlen(text)) >= 0;
        TRY(put_entry(e, text, nb_json_int(i, -1), is_byte ? FM_PIECE_BYTE : FM_PIECE_NORMAL, 0));
    }
    return NB_OK;
}

static status list_added(entries *e, const nb_json *added)
{
    static const struct {
        const char *key;
        int flag;
    } flags[] = {{"lstrip", FM_ADDED_LSTRIP},
                 {"rstrip", FM_ADDED_RSTRIP},
                 {"single_word", FM_ADDED_WORD},
                 {"normalized", FM_ADDED_NORMALIZED}};
    for (const nb_json *i = nb_json_first(added); i; i = nb_json_next(i)) {
        const char *text = nb_json_string(nb_json_get(i, "content"));
        if (!text || !*text)
            return nb_fail(NB_FORMAT, "an added token has no content");
        int bits = 0;
        for (size_t k = 0; k < sizeof flags / sizeof *flags; k++)
            bits |= nb_json_bool(nb_json_get(i, flags[k].key), false) ? flags[k].flag : 0;
        bool special = nb_json_bool(nb_json_get(i, "special"), false);
        TRY(put_entry(e, text, nb_json_int(nb_json_get(i, "id"), -1),
                      special ? FM_PIECE_CONTROL : FM_PIECE_USER_DEFINED, bits));
    }
    return NB_OK;
}

static status add_pieces(fm_tokenizer *tk, const entries *e)
{
    int64_t n = e->n;
    while (n > 0 && !e->at[n - 1].text)
        n--;
    for (int64_t id = 0; id < n; id++) {
        char name[32];
        const entry *x = &e->at[id];
        int bytes = snprintf(name, sizeof name, "[PAD%lld]", (long long)id);
        if (x->text)
            TRY(fm_vocab_add(tk, x->text, strlen(x->text), 0.0f, (fm_piece_type)x->type));
        else
            TRY(fm_vocab_add(tk, name, (size_t)bytes, 0.0f, FM_PIECE_UNUSED));
        tk->vocab->piece[id].added = x->added;
    }
    return fm_vocab_index(tk->vocab);
}

static status read_vocab(fm_tokenizer *tk, const nb_json *vocab, const nb_json *added, bool byte_fallback)
{
    int64_t known = nb_json_count(vocab) + nb_json_count(added);
    entries e = {.n = known + known / 8 + 1024};
    e.at = nb_alloc_zeroed((size_t)e.n, sizeof *e.at);
    if (!e.at)
        return NB_NOMEM;
    status s = list_vocab(&e, vocab, byte_fallback);
    if (s == NB_OK)
        s = list_added(&e, added);
    if (s == NB_OK)
        s = add_pieces(tk, &e);
    free(e.at);
    return s;
}

/* "a b": the space is the first that is not the first byte. */
static status add_line(fm_vocab *v, const char *text, size_t bytes)
{
    const char *space = bytes > 1 ? memchr(text + 1, ' ', bytes - 1) : NULL;
    if (!space)
        return nb_fail(NB_FORMAT, "merge %lld, '%.*s', is no pair", (long long)v->n_merges,
                       bytes < 80 ? (int)bytes : 80, text);
    size_t left = (size_t)(space - text);
    return fm_merges_add(v, (fm_text){text, left}, (fm_text){space + 1, bytes - left - 1});
}

static status read_merges(fm_vocab *v, const nb_json *merges)
{
    for (const nb_json *i = nb_json_first(merges); i; i = nb_json_next(i)) {
        const char *line = nb_json_string(i);
        const char *left = nb_json_string(nb_json_first(i)), *right = nb_json_string(nb_json_at(i, 1));
        if (line)
            TRY(add_line(v, line, strlen(line)));
        else if (left && right && nb_json_count(i) == 2)
            TRY(fm_merges_add(v, (fm_text){left, strlen(left)}, (fm_text){right, strlen(right)}));
        else
            return nb_fail(NB_FORMAT, "merge %lld is neither a text nor a pair of texts", (long long)v->n_merges);
    }
    return NB_OK;
}

static status read_unknown(fm_tokenizer *tk, const nb_json *model)
{
    const char *text = nb_json_string(nb_json_get(model, "unk_token"));
    tk->vocab->fuse_unknown = nb_json_bool(nb_json_get(model, "fuse_unk"), false);
    tk->vocab->drop_missing = !text;
    if (!text)
        return NB_OK;
    tk->unknown = fm_tokenizer_find(tk, text, strlen(text));
    if (tk->unknown < 0)
        return nb_fail(NB_FORMAT, "the unknown token '%.60s' is not in the vocabulary", text);
    fm_vocab_piece *p = &tk->vocab->piece[tk->unknown];
    if (p->type == FM_PIECE_NORMAL)
        p->type = FM_PIECE_UNKNOWN;
    return NB_OK;
}

static status check_model(const nb_json *model)
{
    static const char *const unread[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = nb_json_string(nb_json_get(model, "type"));
    if (type && strcmp(type, "BPE") != 0)
        return nb_fail(NB_UNSUPPORTED, "a model of type %.40s; BPE is read", type);
    for (size_t i = 0; i < sizeof unread / sizeof *unread; i++) {
        const char *text = nb_json_string(nb_json_get(model, unread[i]));
        if (text && *text)
            return nb_fail(NB_UNSUPPORTED, "a model with %s '%.40s'", unread[i], text);
    }
    return NB_OK;
}

static status read_tokenizer(fm_tokenizer *tk, const nb_json *root, const char *path)
{
    const nb_json *model = nb_json_get(root, "model");
    TRY(check_model(model));
    TRY(fm_json_stages(tk, root));
    bool byte_fallback = nb_json_bool(nb_json_get(model, "byte_fallback"), false) && !tk->vocab->byte_level;
    TRY(read_vocab(tk, nb_json_get(model, "vocab"), nb_json_get(root, "added_tokens"), byte_fallback));
    TRY(read_merges(tk->vocab, nb_json_get(model, "merges")));
    TRY(read_unknown(tk, model));
    tk->vocab->ignore_merges = nb_json_bool(nb_json_get(model, "ignore_merges"), false) && tk->vocab->byte_level;
    if (!tk->vocab->byte_level)
        fm_merges_score(tk->vocab);
    TRY(fm_json_post(tk, nb_json_get(root, "post_processor")));
    TRY(fm_tokenizer_read_config(tk, path));
    return fm_tokenizer_seal(tk);
}

/* ---- vocab.json and merges.txt ---- */

static status read_lines(fm_vocab *v, const char *text, size_t bytes)
{
    for (size_t at = 0, end; at < bytes; at = end + 1) {
        const char *newline = memchr(text + at, '\n', bytes - at);
        end = newline ? (size_t)(newline - text) : bytes;
        size_t length = end - at;
        length -= length > 0 && text[end - 1] == '\r';
        bool skipped = length == 0 || (at == 0 && length >= 8 && memcmp(text, "#version", 8) == 0);
        if (!skipped)
            TRY(add_line(v, text + at, length));
    }
    return NB_OK;
}

/* The path of merges.txt beside path, which ends in vocab.json; NULL with a message if it does not. */
static char *merges_path(const char *path)
{
    static const char ending[] = "vocab.json", instead[] = "merges.txt"; /* of equal length */
    size_t bytes = strlen(path), n = sizeof ending - 1;
    if (bytes < n || strcmp(path + bytes - n, ending) != 0) {
        (void)nb_fail(NB_FORMAT, "neither a tokenizer.json (no vocabulary in \"model\") nor named ...%s", ending);
        return NULL;
    }
    char *file = nb_string(path);
    if (file)
        memcpy(file + bytes - n, instead, n);
    return file;
}

static status read_merges_file(fm_vocab *v, const char *file)
{
    nb_mapped m = {0};
    status s = nb_map(&m, file);
    if (s == NB_OK && (s = read_lines(v, (const char *)m.data, m.bytes)) != NB_OK)
        s = nb_fail_in(s, "%s", nb_path_name(file));
    nb_unmap(&m);
    return s;
}

static status read_gpt2(fm_tokenizer *tk, const nb_json *root, const char *path, const char *merges)
{
    static const char end[] = "<|endoftext|>";
    tk->vocab->byte_level = true;
    TRY(fm_pre_add(tk, "gpt-2"));
    TRY(read_vocab(tk, root, NULL, false));
    TRY(read_merges_file(tk->vocab, merges));
    int32_t id = fm_tokenizer_find(tk, end, sizeof end - 1);
    if (id >= 0)
        tk->vocab->piece[id].type = FM_PIECE_CONTROL;
    tk->bos = tk->eos = id;
    TRY(fm_tokenizer_read_config(tk, path));
    return fm_tokenizer_seal(tk);
}

status fm_tokenizer_read_json(fm_tokenizer *tk, const char *text, size_t bytes, const char *path)
{
    nb_json *root = nb_json_parse(text, bytes);
    if (!root)
        return NB_FORMAT;
    bool whole = nb_json_get(nb_json_get(root, "model"), "vocab") != NULL;
    char *merges = whole ? NULL : merges_path(path);
    status s = whole || merges ? fm_vocab_new(tk, FM_TOKENIZER_BPE) : NB_FORMAT;
    if (s == NB_OK)
        s = whole ? read_tokenizer(tk, root, path) : read_gpt2(tk, root, path, merges);
    free(merges);
    nb_json_free(root);
    return s;
}

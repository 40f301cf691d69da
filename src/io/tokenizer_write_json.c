/* tokenizer_write_json.c - writer of tokenizer.json for ranked merges (byte-level, or of characters with U+2581 for spaces); what stands in
 * it is told in tokenizer_json.c and tokenizer_stages.c. Pieces [PADn] of ids that nothing has are left out: they come again by themselves.
 */
#include "io/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

status fm_piece_name(char text[FM_PIECE_BYTES + 1], const fm_tokenizer *tk, int32_t id)
{
    fm_text t = fm_tokenizer_piece(tk, id).text;
    char letter[2];
    if (tk->kind == FM_TOKENIZER_BYTES && id < 256)
        t = (fm_text){letter, fm_letter_of_byte(letter, (uint8_t)id)};
    for (size_t at = 0; at < t.bytes;) {
        const int n = fm_utf8_length((const uint8_t *)t.text + at, t.bytes - at);
        if (n <= 0 || t.text[at] == 0)
            return nb_fail(NB_UNSUPPORTED, "piece %d is no text that JSON can hold", (int)id);
        at += (size_t)n;
    }
    memcpy(text, t.text, t.bytes);
    text[t.bytes] = 0;
    return NB_OK;
}

static bool is_padding(const char *text, int32_t id, fm_piece_type type)
{
    char name[32];
    (void)snprintf(name, sizeof name, "[PAD%d]", (int)id);
    return type == FM_PIECE_UNUSED && strcmp(text, name) == 0;
}

static status put_vocab(nb_writer *w, const fm_tokenizer *tk)
{
    char text[FM_PIECE_BYTES + 1];
    nb_json_open(w, "vocab", '{');
    for (int32_t id = 0; id < tk->vocab_size; id++) {
        TRY(fm_piece_name(text, tk, id));
        if (!is_padding(text, id, fm_tokenizer_piece(tk, id).type))
            nb_json_put_int(w, text, id);
    }
    nb_json_close(w, '}');
    return NB_OK;
}

static status put_merges(nb_writer *w, const fm_tokenizer *tk)
{
    char text[FM_PIECE_BYTES + 1];
    const fm_vocab *v = tk->vocab;
    nb_json_open(w, "merges", '[');
    for (int64_t i = 0; i < v->n_merges; i++) {
        nb_json_open(w, NULL, '[');
        TRY(fm_piece_name(text, tk, v->merge[i].left));
        nb_json_put_string(w, NULL, text);
        TRY(fm_piece_name(text, tk, v->merge[i].right));
        nb_json_put_string(w, NULL, text);
        nb_json_close(w, ']');
    }
    nb_json_close(w, ']');
    return NB_OK;
}

/* A piece that stands for what has none; it is known by this, not as an added token. */
static bool has_unknown(const fm_tokenizer *tk)
{
    return tk->unknown >= 0 && !tk->vocab->drop_missing;
}

static status put_model(nb_writer *w, const fm_tokenizer *tk)
{
    const fm_vocab *v = tk->vocab;
    nb_json_open(w, "model", '{');
    nb_json_put_string(w, "type", "BPE");
    nb_json_put_raw(w, "dropout", "null");
    if (has_unknown(tk))
        TRY(fm_put_piece(w, "unk_token", tk, tk->unknown));
    else
        nb_json_put_raw(w, "unk_token", "null");
    nb_json_put_raw(w, "continuing_subword_prefix", "null");
    nb_json_put_raw(w, "end_of_word_suffix", "null");
    nb_json_put_bool(w, "fuse_unk", v->fuse_unknown);
    nb_json_put_bool(w, "byte_fallback", tk->byte_fallback && !v->byte_level && tk->kind == FM_TOKENIZER_BPE);
    nb_json_put_bool(w, "ignore_merges", v->ignore_merges);
    TRY(put_vocab(w, tk));
    TRY(put_merges(w, tk));
    nb_json_close(w, '}');
    return NB_OK;
}

static status put_added(nb_writer *w, const fm_tokenizer *tk)
{
    char text[FM_PIECE_BYTES + 1];
    nb_json_open(w, "added_tokens", '[');
    for (int32_t id = 0; id < tk->vocab_size; id++) {
        const fm_piece_type type = fm_tokenizer_piece(tk, id).type;
        const uint8_t added = tk->vocab->piece[id].added;
        if (type != FM_PIECE_CONTROL && type != FM_PIECE_USER_DEFINED && (type != FM_PIECE_UNKNOWN || has_unknown(tk)))
            continue;
        TRY(fm_piece_name(text, tk, id));
        nb_json_open(w, NULL, '{');
        nb_json_put_int(w, "id", id);
        nb_json_put_string(w, "content", text);
        nb_json_put_bool(w, "single_word", added & FM_ADDED_WORD);
        nb_json_put_bool(w, "lstrip", added & FM_ADDED_LSTRIP);
        nb_json_put_bool(w, "rstrip", added & FM_ADDED_RSTRIP);
        nb_json_put_bool(w, "normalized", added & FM_ADDED_NORMALIZED);
        nb_json_put_bool(w, "special", type != FM_PIECE_USER_DEFINED);
        nb_json_close(w, '}');
    }
    nb_json_close(w, ']');
    return NB_OK;
}

/* ---- stages ------------------------------------------------------------------------------- */

static void open_stage(nb_writer *w, const char *key, const char *type)
{
    nb_json_open(w, key, '{');
    nb_json_put_string(w, "type", type);
}

static void open_sequence(nb_writer *w, const char *key, const char *list)
{
    open_stage(w, key, "Sequence");
    nb_json_open(w, list, '[');
}

static void close_sequence(nb_writer *w)
{
    nb_json_close(w, ']');
    nb_json_close(w, '}');
}

static void put_replace(nb_writer *w, const char *from, const char *to)
{
    open_stage(w, NULL, "Replace");
    nb_json_open(w, "pattern", '{');
    nb_json_put_string(w, "String", from);
    nb_json_close(w, '}');
    nb_json_put_string(w, "content", to);
    nb_json_close(w, '}');
}

static void put_normalizer(nb_writer *w, const fm_tokenizer *tk)
{
    const fm_vocab *v = tk->vocab;
    const bool replaces = tk->kind == FM_TOKENIZER_BPE && !v->byte_level && !v->prefix_if_absent;
    if (!v->nfc && !replaces) {
        nb_json_put_raw(w, "normalizer", "null");
        return;
    }
    open_sequence(w, "normalizer", "normalizers");
    if (v->nfc) {
        open_stage(w, NULL, "NFC");
        nb_json_close(w, '}');
    }
    if (replaces && tk->add_space_prefix) {
        open_stage(w, NULL, "Prepend");
        nb_json_put_string(w, "prepend", FM_SPACE);
        nb_json_close(w, '}');
    }
    if (replaces)
        put_replace(w, " ", FM_SPACE);
    close_sequence(w);
}

static void put_byte_level(nb_writer *w, const char *key, bool prefix, bool regex)
{
    open_stage(w, key, "ByteLevel");
    nb_json_put_bool(w, "add_prefix_space", prefix);
    nb_json_put_bool(w, "trim_offsets", true);
    nb_json_put_bool(w, "use_regex", regex);
    nb_json_close(w, '}');
}

static void put_split(nb_writer *w, const fm_vocab *v, int i)
{
    static const char *const cuts[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
    fm_cut cut;
    bool invert;
    const char *pattern = fm_pretokenizer_pattern(v, i, &cut, &invert);
    open_stage(w, NULL, "Split");
    nb_json_open(w, "pattern", '{');
    nb_json_put_string(w, "Regex", pattern);
    nb_json_close(w, '}');
    nb_json_put_string(w, "behavior", cuts[cut]);
    nb_json_put_bool(w, "invert", invert);
    nb_json_close(w, '}');
}

/* Only GPT-2's own pattern goes with a space put in front of the text. */
static bool is_gpt2(const fm_vocab *v)
{
    fm_cut cut;
    bool invert;
    return v->n_pretokenizers == 1 && strcmp(fm_pretokenizer_pattern(v, 0, &cut, &invert), fm_pre_gpt2) == 0 &&
           cut == FM_CUT_ISOLATED && !invert;
}

static status put_pretokenizer(nb_writer *w, const fm_tokenizer *tk)
{
    const char *key = "pre_tokenizer";
    const fm_vocab *v = tk->vocab;
    if (tk->kind == FM_TOKENIZER_BPE && !v->byte_level) {
        if (!v->prefix_if_absent) {
            nb_json_put_raw(w, key, "null");
            return NB_OK;
        }
        open_stage(w, key, "Metaspace");
        nb_json_put_string(w, "replacement", FM_SPACE);
        nb_json_put_string(w, "prepend_scheme", !tk->add_space_prefix ? "never" : v->prefix_once ? "first" : "always");
        nb_json_put_bool(w, "split", v->split_spaces);
        nb_json_close(w, '}');
        return NB_OK;
    }
    if (tk->add_space_prefix && !is_gpt2(v) && v->n_pretokenizers > 0)
        return nb_fail(NB_UNSUPPORTED, "tokenizer.json cannot say that a space goes in front of these words");
    if (is_gpt2(v) || v->n_pretokenizers == 0) {
        put_byte_level(w, key, tk->add_space_prefix && v->byte_level, v->n_pretokenizers == 1);
        return NB_OK;
    }
    open_sequence(w, key, "pretokenizers");
    for (int i = 0; i < v->n_pretokenizers; i++)
        put_split(w, v, i);
    put_byte_level(w, NULL, false, false);
    close_sequence(w);
    return NB_OK;
}

static void put_sequence_of(nb_writer *w, const char *name, int type)
{
    nb_json_open(w, NULL, '{');
    nb_json_open(w, name, '{');
    nb_json_put_string(w, "id", type ? "B" : "A");
    nb_json_put_int(w, "type_id", type);
    nb_json_close(w, '}');
    nb_json_close(w, '}');
}

static void put_special(nb_writer *w, const char *text, int type)
{
    nb_json_open(w, NULL, '{');
    nb_json_open(w, "SpecialToken", '{');
    nb_json_put_string(w, "id", text);
    nb_json_put_int(w, "type_id", type);
    nb_json_close(w, '}');
    nb_json_close(w, '}');
}

/* BOS in front of a text, and of each of a pair. */
static status put_post(nb_writer *w, const fm_tokenizer *tk)
{
    char text[FM_PIECE_BYTES + 1];
    if (!tk->add_bos || tk->bos < 0) {
        nb_json_put_raw(w, "post_processor", "null");
        return NB_OK;
    }
    TRY(fm_piece_name(text, tk, tk->bos));
    open_stage(w, "post_processor", "TemplateProcessing");
    for (int pair = 0; pair < 2; pair++) {
        nb_json_open(w, pair ? "pair" : "single", '[');
        for (int k = 0; k <= pair; k++) {
            put_special(w, text, k);
            put_sequence_of(w, "Sequence", k);
        }
        nb_json_close(w, ']');
    }
    nb_json_open(w, "special_tokens", '{');
    nb_json_open(w, text, '{');
    nb_json_put_string(w, "id", text);
    nb_json_open(w, "ids", '[');
    nb_json_put_int(w, NULL, tk->bos);
    nb_json_close(w, ']');
    nb_json_open(w, "tokens", '[');
    nb_json_put_string(w, NULL, text);
    nb_json_close(w, ']');
    nb_json_close(w, '}');
    nb_json_close(w, '}');
    nb_json_close(w, '}');
    return NB_OK;
}

static void put_decoder(nb_writer *w, const fm_tokenizer *tk)
{
    if (tk->kind != FM_TOKENIZER_BPE || tk->vocab->byte_level) {
        put_byte_level(w, "decoder", true, true);
        return;
    }
    open_sequence(w, "decoder", "decoders");
    put_replace(w, FM_SPACE, " ");
    open_stage(w, NULL, "ByteFallback");
    nb_json_close(w, '}');
    open_stage(w, NULL, "Fuse");
    nb_json_close(w, '}');
    if (tk->add_space_prefix) {
        open_stage(w, NULL, "Strip");
        nb_json_put_string(w, "content", " ");
        nb_json_put_int(w, "start", 1);
        nb_json_put_int(w, "stop", 0);
        nb_json_close(w, '}');
    }
    close_sequence(w);
}

static status put_all(nb_writer *w, const fm_tokenizer *tk)
{
    nb_json_put_string(w, "version", "1.0");
    nb_json_put_raw(w, "truncation", "null");
    nb_json_put_raw(w, "padding", "null");
    TRY(put_added(w, tk));
    put_normalizer(w, tk);
    TRY(put_pretokenizer(w, tk));
    TRY(put_post(w, tk));
    put_decoder(w, tk);
    return put_model(w, tk);
}

status fm_tokenizer_write_json(const fm_tokenizer *tk, const char *folder)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    status s = put_all(&w, tk);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    if (s == NB_OK)
        return fm_write_text(folder, "tokenizer.json", text);
    free(text);
    return s;
}

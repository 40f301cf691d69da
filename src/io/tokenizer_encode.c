/* tokenizer_encode.c - text to ids.
 *
 *   cut        at added tokens (tokenizer_added.c): those looked for as they stand; what lies between goes on
 *   normalize  form C, if the tokenizer wants it; then it is cut at the added tokens looked for after normalization
 *   byte-level BPE    words by the pre-tokenizers, and in each of them its bytes are merged (tokenizer_symbols.c)
 *   SPM, other BPE    ' ' becomes U+2581; one is put in front (add_space_prefix); with remove_extra_spaces runs of
 *              spaces become one and those at both ends go; then characters are merged. Where no piece has U+2581 after
 *              another character, no merge crosses the gap before a space, so the text is cut there and segments are
 *              words; otherwise the whole text is one segment.
 * Source: sentencepiece src/normalizer.cc; llama.cpp src/llama-vocab.cpp; Hugging Face tokenizers.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

status fm_ids_reserve(fm_ids *ids, int64_t more)
{
    if (more <= ids->capacity - ids->n)
        return NB_OK;
    if (more > INT64_MAX / 16 - ids->n)
        return nb_fail(NB_NOMEM, "%lld more ids", (long long)more);
    int64_t capacity = ids->n + more + ids->capacity / 2 + 64;
    int32_t *id = nb_resize(ids->id, (size_t)capacity, sizeof *id);
    if (!id)
        return NB_NOMEM;
    ids->id = id;
    ids->capacity = capacity;
    return NB_OK;
}

void fm_ids_free(fm_ids *ids)
{
    free(ids->id);
    *ids = (fm_ids){0};
}

int fm_utf8_length(const uint8_t *p, size_t bytes)
{
    if (bytes == 0)
        return -1;
    if (p[0] < 0x80)
        return 1;
    int n = p[0] >= 0xC2 && p[0] < 0xE0 ? 2 : p[0] >= 0xE0 && p[0] < 0xF0 ? 3 : p[0] >= 0xF0 && p[0] < 0xF5 ? 4 : 0;
    if (n == 0)
        return 0;
    if (bytes == 1)
        return -1;
    /* The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF. */
    uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    if (p[1] < low || p[1] > high)
        return 0;
    for (int i = 2; i < n; i++) {
        if ((size_t)i == bytes)
            return -1;
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    }
    return n;
}

/* ---- SentencePiece's spelling ---- */

static status encode_segment(fm_encoder *e)
{
    size_t bytes = e->bytes;
    e->bytes = 0;
    return fm_encode_characters(e, e->text, bytes);
}

static status segment_put(fm_encoder *e, const char *text, size_t bytes)
{
    if (bytes > e->capacity - e->bytes) {
        if (e->bytes + bytes > INT32_MAX)
            return nb_fail(NB_UNSUPPORTED, "this tokenizer cannot cut texts at spaces; 2 GiB are the limit");
        size_t capacity = e->capacity * 2 + bytes + 256;
        char *grown = nb_resize(e->text, capacity, 1);
        if (!grown)
            return NB_NOMEM;
        e->text = grown;
        e->capacity = capacity;
    }
    memcpy(e->text + e->bytes, text, bytes);
    e->bytes += bytes;
    return NB_OK;
}

static bool ends_with_space(const fm_encoder *e)
{
    return e->bytes >= 3 && memcmp(e->text + e->bytes - 3, FM_SPACE, 3) == 0;
}

static bool begins_with_space(const char *text, size_t bytes)
{
    return bytes > 0 && (text[0] == ' ' || (bytes >= 3 && memcmp(text, FM_SPACE, 3) == 0));
}

static status put_space(fm_encoder *e)
{
    const fm_vocab *v = e->tk->vocab;
    if (e->bytes > 0 && (v->split_spaces || (v->cuts && !ends_with_space(e))))
        TRY(encode_segment(e));
    return segment_put(e, FM_SPACE, 3);
}

static status encode_text(fm_encoder *e, const char *text, size_t bytes, bool is_start)
{
    const fm_vocab *v = e->tk->vocab;
    bool squeeze = e->tk->remove_extra_spaces;
    size_t i = 0;
    while (squeeze && i < bytes && text[i] == ' ')
        i++;
    if (i == bytes)
        return NB_OK;
    bool prefix = e->tk->add_space_prefix && (is_start || !v->prefix_once);
    if (prefix && !(v->prefix_if_absent && begins_with_space(text, bytes)))
        TRY(put_space(e));
    bool after_space = squeeze;
    for (; i < bytes; i++) {
        if (text[i] == ' ') {
            if (!after_space)
                TRY(put_space(e));
            after_space = squeeze;
        } else if (bytes - i >= 3 && memcmp(text + i, FM_SPACE, 3) == 0) {
            TRY(put_space(e));
            i += 2;
            after_space = false;
        } else {
            size_t end = i + 1;
            while (end < bytes && text[end] != ' ' && text[end] != FM_SPACE[0])
                end++;
            TRY(segment_put(e, text + i, end - i));
            i = end - 1;
            after_space = false;
        }
    }
    while (squeeze && ends_with_space(e))
        e->bytes -= 3;
    return encode_segment(e);
}

/* ---- between added tokens ---- */

/* Byte-level: the space prefix, where there is one, stands in a copy. */
static status encode_words(fm_encoder *e, const char *text, size_t bytes)
{
    const fm_words words = {fm_encode_word, e};
    if (!e->tk->add_space_prefix || begins_with_space(text, bytes))
        return fm_pretokenize(e->tk->vocab, text, bytes, words);
    char *copy = nb_alloc(bytes + 1, 1);
    if (!copy)
        return NB_NOMEM;
    copy[0] = ' ';
    memcpy(copy + 1, text, bytes);
    status s = fm_pretokenize(e->tk->vocab, copy, bytes + 1, words);
    free(copy);
    return s;
}

static status encode_plain(fm_encoder *e, const char *text, size_t bytes, bool is_start)
{
    if (e->tk->kind == FM_TOKENIZER_BYTES) {
        TRY(fm_ids_reserve(e->ids, (int64_t)bytes));
        for (size_t i = 0; i < bytes; i++)
            e->ids->id[e->ids->n++] = (uint8_t)text[i];
        return NB_OK;
    }
    return e->tk->vocab->byte_level ? encode_words(e, text, bytes) : encode_text(e, text, bytes, is_start);
}

/* Cuts at the added tokens that are looked for late, or at the others; is_start: the text begins here. */
static status encode_between(fm_encoder *e, const char *text, size_t bytes, bool is_start, bool late)
{
    const fm_vocab *v = e->tk->vocab;
    const bool is_last = late || (!v->nfc && !v->added_late);
    fm_added_match m = {.to = 0};
    for (size_t at = 0, end; at < bytes; at = m.to) {
        bool found = fm_added_find(&m, v, text, bytes, at, late, e->special);
        end = found ? m.from : bytes;
        char *normal = NULL;
        size_t normal_bytes = 0;
        if (end > at && is_last)
            TRY(encode_plain(e, text + at, end - at, is_start && at == 0));
        else if (end > at) {
            status s = v->nfc ? fm_normalize(&normal, &normal_bytes, text + at, end - at) : NB_OK;
            if (s == NB_OK)
                s = encode_between(e, normal ? normal : text + at, normal ? normal_bytes : end - at,
                                   is_start && at == 0, true);
            free(normal);
            TRY(s);
        }
        if (!found)
            break;
        TRY(fm_encoder_put(e, m.id));
        e->last_unknown = false;
    }
    return NB_OK;
}

status fm_tokenizer_encode(const fm_tokenizer *tk, fm_ids *ids, const char *text, size_t bytes, unsigned flags)
{
    if (tk->kind == FM_TOKENIZER_NONE)
        return nb_fail(NB_USAGE, "there is no tokenizer");
    fm_encoder e = {.tk = tk, .ids = ids, .special = flags & FM_PARSE_SPECIAL};
    status s = NB_OK;
    if (flags & FM_ADD_BOS && tk->add_bos)
        s = fm_encoder_put(&e, tk->bos);
    if (s == NB_OK && tk->vocab->has_unused) {
        e.half = nb_alloc_zeroed((size_t)tk->vocab->n, sizeof *e.half);
        s = e.half ? NB_OK : NB_NOMEM;
    }
    if (s == NB_OK)
        s = encode_between(&e, text, bytes, true, false);
    if (s == NB_OK && flags & FM_ADD_EOS && tk->eos >= 0)
        s = fm_encoder_put(&e, tk->eos);
    fm_encoder_free(&e);
    return s;
}

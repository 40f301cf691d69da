/* tokenizer_bytes.c - the serialized form of a tokenizer, which our files carry. Little-endian, no padding:
 *
 *    0  "nibbletk"    8  u32 layout 1 or 2    12  u32 kind (1 SentencePiece BPE, 2 bytes, 3 BPE)
 *   16  u32 flags, bit by bit: add_space_prefix, remove_extra_spaces; layout 2: add_bos, byte_level, ignore_merges,
 *       nfc, drop_missing, fuse_unknown, prefix_once, prefix_if_absent, split_spaces
 *   20  i32 bos, eos, unknown, pad (-1: none)    36  u32 n
 *   40  n x { f32 score, u8 type, u8 added, u16 bytes, text as spelled }      added: FM_ADDED_*, 0 in layout 1
 *   layout 2 goes on
 *       u32 n_merges, n_merges x { i32 left, i32 right }
 *       u32 n_pretokenizers, each { u8 cut, u8 invert, u16 bytes, pattern }
 *       u32 bytes of the chat template (0: none), its text
 * Layout 1 is written where it holds all there is: kinds 1 and 2 without chat template and FM_ADDED_*, add_bos where
 * there is a BOS.
 */
#include "io/formats.h"
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static const char magic[8] = "nibbletk";
enum { HEADER_BYTES = 40, PIECE_HEADER_BYTES = 8, PRETOKENIZER_HEADER_BYTES = 4 };

/* ---- flags ---- */

enum { N_FLAGS = 11, N_FLAGS_LAYOUT_1 = 2, FUSE_UNKNOWN = 1 << 7 };

/* The flags in order of their bits. */
static void list_flags(bool *flag[N_FLAGS], fm_tokenizer *tk)
{
    fm_vocab *v = tk->vocab;
    bool *const all[N_FLAGS] = {&tk->add_space_prefix, &tk->remove_extra_spaces, &tk->add_bos,
                                &v->byte_level,        &v->ignore_merges,        &v->nfc,
                                &v->drop_missing,      &v->fuse_unknown,         &v->prefix_once,
                                &v->prefix_if_absent,  &v->split_spaces};
    memcpy(flag, all, sizeof all);
}

static uint32_t flags_of(const fm_tokenizer *tk)
{
    bool *flag[N_FLAGS];
    fm_tokenizer copy = *tk;
    uint32_t bits = 0;
    list_flags(flag, &copy);
    for (int i = 0; i < N_FLAGS; i++)
        bits |= (uint32_t)*flag[i] << i;
    return bits;
}

static bool fits_layout_1(const fm_tokenizer *tk)
{
    const fm_vocab *v = tk->vocab;
    bool plain = tk->kind != FM_TOKENIZER_BPE && !v->chat_template && tk->add_bos == (tk->bos >= 0) &&
                 flags_of(tk) >> (N_FLAGS_LAYOUT_1 + 1) == FUSE_UNKNOWN >> (N_FLAGS_LAYOUT_1 + 1);
    for (int64_t i = 0; i < v->n && plain; i++)
        plain = v->piece[i].added == 0;
    return plain;
}

/* ---- writing ---- */

static uint8_t *put32(uint8_t *p, uint32_t x)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
    return p + 4;
}

static uint8_t *put_text(uint8_t *p, const char *text, size_t bytes)
{
    if (bytes > 0)
        memcpy(p, text, bytes);
    return p + bytes;
}

static size_t size_of(const fm_vocab *v, bool extended)
{
    size_t n = HEADER_BYTES;
    for (int64_t i = 0; i < v->n; i++)
        n += PIECE_HEADER_BYTES + v->piece[i].bytes;
    if (!extended)
        return n;
    n += 4 + (size_t)v->n_merges * 8 + 4 + 4 + (v->chat_template ? strlen(v->chat_template) : 0);
    for (int i = 0; i < v->n_pretokenizers; i++) {
        fm_cut cut;
        bool invert;
        n += PRETOKENIZER_HEADER_BYTES + strlen(fm_pretokenizer_pattern(v, i, &cut, &invert));
    }
    return n;
}

static uint8_t *put_extension(uint8_t *p, const fm_vocab *v)
{
    p = put32(p, (uint32_t)v->n_merges);
    for (int64_t i = 0; i < v->n_merges; i++)
        p = put32(put32(p, (uint32_t)v->merge[i].left), (uint32_t)v->merge[i].right);
    p = put32(p, (uint32_t)v->n_pretokenizers);
    for (int i = 0; i < v->n_pretokenizers; i++) {
        fm_cut cut;
        bool invert;
        const char *pattern = fm_pretokenizer_pattern(v, i, &cut, &invert);
        size_t bytes = strlen(pattern);
        p = put32(p, (uint32_t)cut | (uint32_t)invert << 8 | (uint32_t)bytes << 16);
        p = put_text(p, pattern, bytes);
    }
    size_t bytes = v->chat_template ? strlen(v->chat_template) : 0;
    return put_text(put32(p, (uint32_t)bytes), v->chat_template, bytes);
}

status fm_tokenizer_to_bytes(const fm_tokenizer *tk, uint8_t **data, size_t *bytes)
{
    *data = NULL;
    *bytes = 0;
    const fm_vocab *v = tk->vocab;
    if (!v)
        return nb_fail(NB_USAGE, "there is no tokenizer");
    bool extended = !fits_layout_1(tk);
    size_t n = size_of(v, extended);
    uint8_t *out = nb_alloc(n, 1), *p = out;
    if (!out)
        return NB_NOMEM;
    uint32_t flags = flags_of(tk);
    const uint32_t numbers[] = {extended ? 2 : 1,  (uint32_t)tk->kind, extended ? flags : flags & 3,
                                (uint32_t)tk->bos, (uint32_t)tk->eos,  (uint32_t)tk->unknown,
                                (uint32_t)tk->pad, (uint32_t)v->n};
    p = put_text(p, magic, sizeof magic);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        p = put32(p, numbers[i]);
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *piece = &v->piece[i];
        uint32_t score;
        memcpy(&score, &piece->score, 4);
        p = put32(p, score);
        p = put32(p, piece->type | (uint32_t)piece->added << 8 | (uint32_t)piece->bytes << 16);
        p = put_text(p, v->pool + piece->text, piece->bytes);
    }
    if (extended)
        (void)put_extension(p, v);
    *data = out;
    *bytes = n;
    return NB_OK;
}

/* ---- reading ---- */

static status read_pieces(fm_tokenizer *tk, fm_cursor *c, uint32_t n, uint32_t known_flags)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits, word;
        const void *text;
        if (!fm_take_u32(c, &bits) || !fm_take_u32(c, &word))
            return nb_fail(NB_FORMAT, "tokenizer: ends in token %u of %u", i, n);
        if ((word >> 8 & 0xFF) & ~known_flags || !fm_take(c, &text, word >> 16))
            return nb_fail(NB_FORMAT, "tokenizer: token %u is damaged or reaches past the end", i);
        float score;
        memcpy(&score, &bits, 4);
        TRY(fm_vocab_add(tk, text, word >> 16, score, (fm_piece_type)(word & 0xFF)));
        tk->vocab->piece[i].added = (uint8_t)(word >> 8);
    }
    return NB_OK;
}

static status read_merges(fm_vocab *v, fm_cursor *c)
{
    uint32_t n, left, right;
    if (!fm_take_u32(c, &n) || n > c->left / 8)
        return nb_fail(NB_FORMAT, "tokenizer: its merges reach past the end");
    if (n > 0 && !v->by_rank)
        return nb_fail(NB_FORMAT, "tokenizer: merges where scores decide");
    for (uint32_t i = 0; i < n && fm_take_u32(c, &left) && fm_take_u32(c, &right); i++)
        TRY(fm_merges_add_ids(v, (int32_t)left, (int32_t)right));
    return NB_OK;
}

static status read_pretokenizers(fm_vocab *v, fm_cursor *c)
{
    uint32_t n, word;
    const void *pattern;
    if (!fm_take_u32(c, &n))
        return nb_fail(NB_FORMAT, "tokenizer: ends before its pre-tokenizers");
    for (uint32_t i = 0; i < n; i++) {
        if (!fm_take_u32(c, &word) || !fm_take(c, &pattern, word >> 16) || (word & 0xFF) > FM_CUT_WITH_NEXT ||
            (word >> 8 & 0xFF) > 1)
            return nb_fail(NB_FORMAT, "tokenizer: pre-tokenizer %u is damaged or reaches past the end", i);
        TRY(fm_pretokenizer_add(v, pattern, word >> 16, (fm_cut)(word & 0xFF), word >> 8 & 1));
    }
    return NB_OK;
}

static status read_extension(fm_tokenizer *tk, fm_cursor *c)
{
    uint32_t bytes;
    const void *text;
    TRY(fm_vocab_index(tk->vocab));
    TRY(read_merges(tk->vocab, c));
    TRY(read_pretokenizers(tk->vocab, c));
    if (!fm_take_u32(c, &bytes) || !fm_take(c, &text, bytes))
        return nb_fail(NB_FORMAT, "tokenizer: its chat template reaches past the end");
    return bytes > 0 ? fm_vocab_set_template(tk, text, bytes) : NB_OK;
}

/* The built-in tokenizer is what this program says it is. */
static status check_built_in(const fm_tokenizer *tk)
{
    fm_tokenizer own;
    TRY(fm_tokenizer_byte(&own));
    bool same = own.hash == tk->hash && !tk->add_space_prefix && !tk->remove_extra_spaces;
    fm_tokenizer_free(&own);
    return same ? NB_OK : nb_fail(NB_FORMAT, "tokenizer: claims to be the byte-level one but is not");
}

static status read_flags(fm_tokenizer *tk, uint32_t bits, uint32_t layout)
{
    bool *flag[N_FLAGS];
    int known = layout == 1 ? N_FLAGS_LAYOUT_1 : N_FLAGS;
    if (bits >> known)
        return nb_fail(NB_UNSUPPORTED, "tokenizer: unknown flags 0x%x", bits);
    list_flags(flag, tk);
    for (int i = 0; i < known; i++)
        *flag[i] = bits >> i & 1;
    tk->add_bos = tk->add_bos || layout == 1;
    if (!tk->vocab->by_rank && (tk->vocab->byte_level || tk->vocab->ignore_merges || tk->vocab->drop_missing))
        return nb_fail(NB_FORMAT, "tokenizer: flags 0x%x do not go with scores", bits);
    return NB_OK;
}

static status read_serialized(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    if (bytes < HEADER_BYTES)
        return nb_fail(NB_FORMAT, "tokenizer: %zu bytes; at least %d are wanted", bytes, HEADER_BYTES);
    uint32_t layout = fm_get32(data + 8), kind = fm_get32(data + 12);
    if (layout != 1 && layout != 2)
        return nb_fail(NB_UNSUPPORTED, "tokenizer: layout %u; 1 and 2 are known", layout);
    if (kind != FM_TOKENIZER_SPM && (kind != FM_TOKENIZER_BYTES || layout == 2) &&
        (kind != FM_TOKENIZER_BPE || layout == 1))
        return nb_fail(NB_UNSUPPORTED, "tokenizer: kind %u of layout %u is not known", kind, layout);
    TRY(fm_vocab_new(tk, (fm_tokenizer_kind)kind));
    TRY(read_flags(tk, fm_get32(data + 16), layout));
    tk->bos = (int32_t)fm_get32(data + 20);
    tk->eos = (int32_t)fm_get32(data + 24);
    tk->unknown = (int32_t)fm_get32(data + 28);
    tk->pad = (int32_t)fm_get32(data + 32);
    fm_cursor c = {data + HEADER_BYTES, bytes - HEADER_BYTES};
    TRY(read_pieces(tk, &c, fm_get32(data + 36), layout == 1 ? 0 : FM_ADDED_FLAGS));
    if (layout == 2)
        TRY(read_extension(tk, &c));
    if (c.left > 0)
        return nb_fail(NB_FORMAT, "tokenizer: %zu bytes after its end", c.left);
    TRY(fm_tokenizer_seal(tk));
    return kind == FM_TOKENIZER_BYTES ? check_built_in(tk) : NB_OK;
}

bool fm_tokenizer_is_serialized(const uint8_t *data, size_t bytes)
{
    return bytes >= sizeof magic && memcmp(data, magic, sizeof magic) == 0;
}

status fm_tokenizer_from_bytes(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    *tk = (fm_tokenizer){0};
    status s = fm_tokenizer_is_serialized(data, bytes) ? read_serialized(tk, data, bytes)
                                                       : nb_fail(NB_FORMAT, "tokenizer: bytes of something else");
    if (s != NB_OK)
        fm_tokenizer_free(tk);
    return s;
}

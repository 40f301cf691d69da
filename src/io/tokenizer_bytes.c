/* tokenizer_bytes.c - the serialized form of a tokenizer, which our files carry. Little-endian, no padding:
 *
 *    0  "nibbletk"    8  u32 layout 1    12  u32 kind (1 SentencePiece BPE, 2 bytes)
 *   16  u32 flags: 1 add_space_prefix, 2 remove_extra_spaces
 *   20  i32 bos, eos, unknown, pad (-1: none)    36  u32 n
 *   40  n x { f32 score, u8 type, u8 0, u16 bytes, text in SentencePiece's spelling }
 * The hash of a tokenizer covers everything from offset 20 on.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static const char magic[8] = "nibbletk";
enum { LAYOUT = 1, HEADER_BYTES = 40, PIECE_HEADER_BYTES = 8, SPACE_PREFIX = 1, REMOVE_EXTRA = 2 };

static uint8_t *put32(uint8_t *p, uint32_t x)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
    return p + 4;
}

bool fm_tokenizer_is_serialized(const uint8_t *data, size_t bytes)
{
    return bytes >= sizeof magic && memcmp(data, magic, sizeof magic) == 0;
}

status fm_tokenizer_to_bytes(const fm_tokenizer *tk, uint8_t **data, size_t *bytes)
{
    *data = NULL;
    *bytes = 0;
    const fm_vocab *v = tk->vocab;
    if (!v)
        return nb_fail(NB_USAGE, "there is no tokenizer");
    size_t n = HEADER_BYTES;
    for (int64_t i = 0; i < v->n; i++)
        n += PIECE_HEADER_BYTES + v->piece[i].bytes;
    uint8_t *out = nb_alloc(n, 1), *p = out;
    if (!out)
        return NB_NOMEM;
    memcpy(p, magic, sizeof magic);
    p = put32(p + sizeof magic, LAYOUT);
    p = put32(p, (uint32_t)tk->kind);
    p = put32(p, (tk->add_space_prefix ? SPACE_PREFIX : 0u) | (tk->remove_extra_spaces ? REMOVE_EXTRA : 0u));
    p = put32(p, (uint32_t)tk->bos);
    p = put32(p, (uint32_t)tk->eos);
    p = put32(p, (uint32_t)tk->unknown);
    p = put32(p, (uint32_t)tk->pad);
    p = put32(p, (uint32_t)v->n);
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *piece = &v->piece[i];
        uint32_t score;
        memcpy(&score, &piece->score, 4);
        p = put32(p, score);
        p = put32(p, piece->type | (uint32_t)piece->bytes << 16);
        memcpy(p, v->pool + piece->text, piece->bytes);
        p += piece->bytes;
    }
    *data = out;
    *bytes = n;
    return NB_OK;
}

static status read_pieces(fm_tokenizer *tk, const uint8_t *p, size_t left, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (left < PIECE_HEADER_BYTES)
            return nb_fail(NB_FORMAT, "tokenizer: ends in token %u of %u", i, n);
        uint32_t bits = fm_get32(p), word = fm_get32(p + 4);
        size_t bytes = word >> 16;
        p += PIECE_HEADER_BYTES;
        left -= PIECE_HEADER_BYTES;
        if (bytes > left || word & 0xFF00)
            return nb_fail(NB_FORMAT, "tokenizer: token %u is damaged or reaches past the end", i);
        float score;
        memcpy(&score, &bits, 4);
        TRY(fm_vocab_add(tk, (const char *)p, bytes, score, (fm_piece_type)(word & 0xFF)));
        p += bytes;
        left -= bytes;
    }
    return left == 0 ? NB_OK : nb_fail(NB_FORMAT, "tokenizer: %zu bytes after its %u tokens", left, n);
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

static status read_serialized(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    if (bytes < HEADER_BYTES)
        return nb_fail(NB_FORMAT, "tokenizer: %zu bytes; at least %d are wanted", bytes, HEADER_BYTES);
    uint32_t layout = fm_get32(data + 8), kind = fm_get32(data + 12), flags = fm_get32(data + 16);
    if (layout != LAYOUT)
        return nb_fail(NB_UNSUPPORTED, "tokenizer: layout %u; %d is known", layout, LAYOUT);
    if (kind != FM_TOKENIZER_SPM && kind != FM_TOKENIZER_BYTES)
        return nb_fail(NB_UNSUPPORTED, "tokenizer: kind %u; 1 and 2 are known", kind);
    if (flags & ~(uint32_t)(SPACE_PREFIX | REMOVE_EXTRA))
        return nb_fail(NB_UNSUPPORTED, "tokenizer: unknown flags 0x%x", flags);
    TRY(fm_vocab_new(tk, (fm_tokenizer_kind)kind));
    tk->add_space_prefix = flags & SPACE_PREFIX;
    tk->remove_extra_spaces = flags & REMOVE_EXTRA;
    tk->bos = (int32_t)fm_get32(data + 20);
    tk->eos = (int32_t)fm_get32(data + 24);
    tk->unknown = (int32_t)fm_get32(data + 28);
    tk->pad = (int32_t)fm_get32(data + 32);
    TRY(read_pieces(tk, data + HEADER_BYTES, bytes - HEADER_BYTES, fm_get32(data + 36)));
    TRY(fm_tokenizer_seal(tk));
    return kind == FM_TOKENIZER_BYTES ? check_built_in(tk) : NB_OK;
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

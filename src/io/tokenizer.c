/* tokenizer.c - the vocabulary of a tokenizer: pieces, their index, decoding an id, opening a file of any kind.
 *
 *   index   open addressing, FNV-1a of the text, at most half full
 *   hash    FNV-1a over the serialized form from its special ids on (tokenizer_bytes.c)
 */
#include "io/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What an unknown piece decodes to: trainer_spec.unk_surface's default. */
static const char unknown_surface[] = " \xE2\x81\x87 ";

status fm_vocab_new(fm_tokenizer *tk, fm_tokenizer_kind kind)
{
    *tk = (fm_tokenizer){.kind = kind, .bos = -1, .eos = -1, .unknown = -1, .pad = -1};
    tk->vocab = nb_alloc_zeroed(1, sizeof(fm_vocab));
    return tk->vocab ? NB_OK : NB_NOMEM;
}

void fm_tokenizer_free(fm_tokenizer *tk)
{
    fm_vocab *v = tk->vocab;
    *tk = (fm_tokenizer){0};
    if (!v)
        return;
    free(v->piece);
    free(v->pool);
    free(v->slot);
    free(v->user_bytes);
    free(v);
}

/* Copies text to the end of the pool; its offset goes to *at. text may not lie in the pool. */
static status pool_put(fm_vocab *v, size_t *at, const char *text, size_t bytes)
{
    if (bytes > v->pool_capacity - v->pool_bytes) {
        size_t capacity = v->pool_capacity * 2 + bytes + 256;
        char *pool = nb_resize(v->pool, capacity, 1);
        if (!pool)
            return NB_NOMEM;
        v->pool = pool;
        v->pool_capacity = capacity;
    }
    memcpy(v->pool + v->pool_bytes, text, bytes);
    *at = v->pool_bytes;
    v->pool_bytes += bytes;
    return NB_OK;
}

status fm_vocab_add(fm_tokenizer *tk, const char *text, size_t bytes, float score, fm_piece_type type)
{
    fm_vocab *v = tk->vocab;
    if (bytes == 0)
        return nb_fail(NB_FORMAT, "token %lld is empty", (long long)v->n);
    if (bytes > FM_PIECE_BYTES)
        return nb_fail(NB_FORMAT, "token %lld has %zu bytes; at most %d are allowed", (long long)v->n, bytes,
                       FM_PIECE_BYTES);
    if (!isfinite(score))
        return nb_fail(NB_FORMAT, "token %lld has score %g; a finite number is wanted", (long long)v->n, (double)score);
    if (type < FM_PIECE_NORMAL || type > FM_PIECE_BYTE)
        return nb_fail(NB_FORMAT, "token %lld has type %d; 1 to 6 are known", (long long)v->n, (int)type);
    if (v->n == INT32_MAX / 4)
        return nb_fail(NB_FORMAT, "more than %d tokens", INT32_MAX / 4);
    if (v->n == v->capacity) {
        int64_t capacity = v->capacity * 2 + 256;
        fm_vocab_piece *piece = nb_resize(v->piece, (size_t)capacity, sizeof *piece);
        if (!piece)
            return NB_NOMEM;
        v->piece = piece;
        v->capacity = capacity;
    }
    fm_vocab_piece p = {.bytes = (uint16_t)bytes, .type = (uint8_t)type, .score = score + 0.0f}; /* -0 becomes 0 */
    TRY(pool_put(v, &p.text, text, bytes));
    v->piece[v->n++] = p;
    return NB_OK;
}

static uint32_t text_slot(const fm_vocab *v, const char *text, size_t bytes)
{
    uint64_t h = NB_HASH_START;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (uint8_t)text[i]) * 0x100000001B3u;
    return (uint32_t)(h ^ h >> 32) & v->mask;
}

static int32_t find(const fm_vocab *v, const char *text, size_t bytes)
{
    for (uint32_t s = text_slot(v, text, bytes); v->slot[s]; s = (s + 1) & v->mask) {
        const fm_vocab_piece *p = &v->piece[v->slot[s] - 1];
        if (p->bytes == bytes && memcmp(v->pool + p->text, text, bytes) == 0)
            return v->slot[s] - 1;
    }
    return -1;
}

static bool is_merged(const fm_vocab_piece *p)
{
    return p->type == FM_PIECE_NORMAL || p->type == FM_PIECE_USER_DEFINED || p->type == FM_PIECE_UNUSED;
}

int32_t fm_vocab_find_merged(const fm_vocab *v, const char *text, size_t bytes)
{
    if (bytes > (size_t)v->max_bytes)
        return -1;
    int32_t id = find(v, text, bytes);
    return id >= 0 && is_merged(&v->piece[id]) ? id : -1;
}

int32_t fm_tokenizer_find(const fm_tokenizer *tk, const char *text, size_t bytes)
{
    return tk->vocab ? find(tk->vocab, text, bytes) : -1;
}

status fm_vocab_index(fm_vocab *v)
{
    uint32_t slots = 16;
    while (slots < 2 * (uint32_t)v->n)
        slots *= 2;
    v->slot = nb_alloc_zeroed(slots, sizeof *v->slot);
    if (!v->slot)
        return NB_NOMEM;
    v->mask = slots - 1;
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *p = &v->piece[i];
        const char *text = v->pool + p->text;
        int32_t same = find(v, text, p->bytes);
        if (same >= 0)
            return nb_fail(NB_FORMAT, "tokens %d and %lld are both '%.*s'", (int)same, (long long)i,
                           p->bytes < 80 ? p->bytes : 80, text);
        uint32_t s = text_slot(v, text, p->bytes);
        while (v->slot[s])
            s = (s + 1) & v->mask;
        v->slot[s] = (int32_t)i + 1;
    }
    return NB_OK;
}

int fm_byte_of_piece(const char *text, size_t bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' || !text[3] || !text[4])
        return -1;
    const char *high = strchr(digits, text[3]), *low = strchr(digits, text[4]);
    return high && low ? (int)(high - digits) * 16 + (int)(low - digits) : -1;
}

/* Whether U+2581 stands after another character. */
static bool has_inner_space(const char *text, size_t bytes)
{
    bool other = false;
    for (size_t i = 0; i < bytes;) {
        if (bytes - i >= 3 && memcmp(text + i, FM_SPACE, 3) == 0) {
            if (other)
                return true;
            i += 3;
        } else {
            other = true;
            i++;
        }
    }
    return false;
}

/* Fills in what decoding gives for piece i: a text with spaces for U+2581, a raw byte, nothing, or the unknown mark. */
static status set_surface(fm_tokenizer *tk, int64_t i)
{
    fm_vocab *v = tk->vocab;
    fm_vocab_piece *p = &v->piece[i];
    char surface[FM_PIECE_BYTES];
    size_t n = 0;
    if (p->type == FM_PIECE_BYTE) {
        int byte = fm_byte_of_piece(v->pool + p->text, p->bytes);
        if (byte < 0)
            return nb_fail(NB_FORMAT, "token %lld is of type byte but reads '%.*s'; <0x00> to <0xFF> are wanted",
                           (long long)i, p->bytes < 80 ? p->bytes : 80, v->pool + p->text);
        v->byte_id[byte] = (int32_t)i;
        surface[n++] = (char)byte;
    } else if (p->type == FM_PIECE_UNKNOWN) {
        n = sizeof unknown_surface - 1;
        memcpy(surface, unknown_surface, n);
    } else if (p->type != FM_PIECE_CONTROL) {
        const char *text = v->pool + p->text;
        for (size_t k = 0; k < p->bytes;) {
            bool space = p->bytes - k >= 3 && memcmp(text + k, FM_SPACE, 3) == 0;
            surface[n++] = space ? ' ' : text[k];
            k += space ? 3 : 1;
        }
    }
    p->surface_bytes = (uint16_t)n;
    p->surface = p->text;
    if (n == p->bytes && memcmp(surface, v->pool + p->text, n) == 0)
        return NB_OK;
    return pool_put(v, &p->surface, surface, n);
}

/* What the encoder wants to know about the pieces that merging can make. */
static status measure(fm_vocab *v)
{
    v->cuts = true;
    bool has_user_defined = false;
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *p = &v->piece[i];
        if (!is_merged(p))
            continue;
        if (p->bytes > v->max_bytes)
            v->max_bytes = p->bytes;
        v->cuts = v->cuts && !has_inner_space(v->pool + p->text, p->bytes);
        v->has_unused |= p->type == FM_PIECE_UNUSED;
        has_user_defined |= p->type == FM_PIECE_USER_DEFINED;
    }
    v->cuts = v->cuts && !v->has_unused; /* which halves an unused piece falls into depends on the whole text */
    if (!has_user_defined)
        return NB_OK;
    v->user_bytes = nb_alloc_zeroed((size_t)v->max_bytes + 1, sizeof *v->user_bytes);
    if (!v->user_bytes)
        return NB_NOMEM;
    for (int64_t i = 0; i < v->n; i++)
        if (v->piece[i].type == FM_PIECE_USER_DEFINED)
            v->user_bytes[v->piece[i].bytes] = true;
    return NB_OK;
}

status fm_tokenizer_seal(fm_tokenizer *tk)
{
    fm_vocab *v = tk->vocab;
    if (v->n == 0)
        return nb_fail(NB_FORMAT, "there are no tokens");
    tk->vocab_size = v->n;
    const int32_t special[] = {tk->bos, tk->eos, tk->unknown, tk->pad};
    for (int i = 0; i < 4; i++)
        if (special[i] < -1 || special[i] >= v->n)
            return nb_fail(NB_FORMAT, "special token %d is outside the vocabulary of %lld", (int)special[i],
                           (long long)v->n);
    if (!v->slot)
        TRY(fm_vocab_index(v));
    TRY(measure(v));
    for (int i = 0; i < 256; i++)
        v->byte_id[i] = -1;
    for (int64_t i = 0; i < v->n; i++)
        TRY(set_surface(tk, i));
    tk->byte_fallback = true;
    for (int i = 0; i < 256; i++)
        tk->byte_fallback = tk->byte_fallback && v->byte_id[i] >= 0;
    if (!tk->byte_fallback && tk->unknown < 0)
        return nb_fail(NB_FORMAT, "there is neither an unknown token nor one for each of the 256 bytes");
    uint8_t *data;
    size_t bytes;
    TRY(fm_tokenizer_to_bytes(tk, &data, &bytes));
    tk->hash = nb_hash(NB_HASH_START, data + 20, bytes - 20);
    free(data);
    return NB_OK;
}

static status build_bytes(fm_tokenizer *tk)
{
    TRY(fm_vocab_new(tk, FM_TOKENIZER_BYTES));
    for (unsigned i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", i);
        TRY(fm_vocab_add(tk, text, 6, 0.0f, FM_PIECE_BYTE));
    }
    TRY(fm_vocab_add(tk, "<s>", 3, 0.0f, FM_PIECE_CONTROL));
    TRY(fm_vocab_add(tk, "</s>", 4, 0.0f, FM_PIECE_CONTROL));
    tk->bos = 256;
    tk->eos = 257;
    return fm_tokenizer_seal(tk);
}

status fm_tokenizer_byte(fm_tokenizer *tk)
{
    status s = build_bytes(tk);
    if (s != NB_OK)
        fm_tokenizer_free(tk);
    return s;
}

fm_piece fm_tokenizer_piece(const fm_tokenizer *tk, int32_t id)
{
    if (!tk->vocab || id < 0 || id >= tk->vocab->n)
        return (fm_piece){0};
    const fm_vocab_piece *p = &tk->vocab->piece[id];
    return (fm_piece){{tk->vocab->pool + p->text, p->bytes}, p->score, (fm_piece_type)p->type};
}

fm_text fm_tokenizer_decode(const fm_tokenizer *tk, int32_t previous, int32_t id)
{
    if (!tk->vocab || id < 0 || id >= tk->vocab->n)
        return (fm_text){"", 0};
    const fm_vocab_piece *p = &tk->vocab->piece[id];
    fm_text t = {tk->vocab->pool + p->surface, p->surface_bytes};
    bool is_first = previous < 0 || previous == tk->bos;
    if (is_first && tk->add_space_prefix && p->type != FM_PIECE_UNKNOWN && p->type != FM_PIECE_BYTE && t.bytes > 0 &&
        t.text[0] == ' ')
        t = (fm_text){t.text + 1, t.bytes - 1};
    return t;
}

static status read_any(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    if (fm_tokenizer_is_serialized(data, bytes))
        return fm_tokenizer_from_bytes(tk, data, bytes);
    if (bytes >= 4 && memcmp(data, "GGUF", 4) == 0)
        return nb_fail(NB_UNSUPPORTED,
                       "the tokenizer of a GGUF file is not read; give a tokenizer.model or tokenizer.bin");
    if (bytes >= 1 && data[0] == '{')
        return nb_fail(NB_UNSUPPORTED, "tokenizer.json is not read; give a tokenizer.model or tokenizer.bin");
    if (bytes >= 3 && data[0] == 0x0A && data[2] == 0x0A) /* field 1 (pieces) and in it field 1 (piece) */
        return fm_tokenizer_read_sentencepiece(tk, data, bytes);
    if (bytes >= 4 && data[2] == 0 && data[3] == 0) /* u32 max_token_length < 65536 */
        return fm_tokenizer_read_llama2c(tk, data, bytes);
    return nb_fail(NB_FORMAT, "neither a llama2.c tokenizer.bin nor a SentencePiece model");
}

status fm_tokenizer_open(fm_tokenizer *tk, const char *path, int64_t vocab_size)
{
    *tk = (fm_tokenizer){0};
    status s;
    if (strcmp(path, "bytes") == 0 && !nb_path_exists(path)) {
        s = build_bytes(tk);
    } else {
        char *inside = nb_path_is_folder(path) ? nb_path_join(path, "tokenizer.model") : nb_string(path);
        if (!inside)
            return NB_NOMEM;
        nb_mapped m;
        s = nb_map(&m, inside);
        free(inside);
        if (s != NB_OK)
            return s;
        s = read_any(tk, m.data, m.bytes);
        nb_unmap(&m);
    }
    if (s == NB_OK && vocab_size > 0 && tk->vocab_size != vocab_size)
        s = nb_fail(NB_FORMAT, "the tokenizer has %lld tokens, the model %lld", (long long)tk->vocab_size,
                    (long long)vocab_size);
    if (s != NB_OK) {
        fm_tokenizer_free(tk);
        return nb_fail_in(s, "%s", path);
    }
    return NB_OK;
}

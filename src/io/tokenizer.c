/* tokenizer.c - the vocabulary of a tokenizer: pieces, their index, decoding an id.
 *
 *   index   open addressing, FNV-1a of the text, at most half full
 *   hash    FNV-1a over what stands in the serialized form (tokenizer_bytes.c): special ids, number of pieces, pieces
 *           without their flags, merges; not over settings and chat template
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
    if (!tk->vocab)
        return NB_NOMEM;
    tk->vocab->by_rank = kind == FM_TOKENIZER_BPE;
    tk->vocab->fuse_unknown = true;
    return NB_OK;
}

const char *fm_tokenizer_kind_name(const fm_tokenizer *tk)
{
    if (tk->kind == FM_TOKENIZER_NONE)
        return "none";
    return tk->kind == FM_TOKENIZER_BYTES ? "bytes" : tk->vocab->byte_level ? "byte-level BPE" : "SentencePiece BPE";
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
    free(v->added);
    free(v->merge);
    free(v->merge_slot);
    free(v->chat_template);
    fm_pretokenizers_free(v);
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

int32_t fm_vocab_find(const fm_vocab *v, const char *text, size_t bytes)
{
    for (uint32_t s = text_slot(v, text, bytes); v->slot[s]; s = (s + 1) & v->mask) {
        const fm_vocab_piece *p = &v->piece[v->slot[s] - 1];
        if (p->bytes == bytes && memcmp(v->pool + p->text, text, bytes) == 0)
            return v->slot[s] - 1;
    }
    return -1;
}

static bool is_merged(const fm_vocab *v, const fm_vocab_piece *p)
{
    return p->type == FM_PIECE_NORMAL || p->type == FM_PIECE_UNUSED ||
           (p->type == FM_PIECE_USER_DEFINED && !v->by_rank);
}

int32_t fm_vocab_find_merged(const fm_vocab *v, const char *text, size_t bytes)
{
    if (bytes > (size_t)v->max_bytes)
        return -1;
    int32_t id = fm_vocab_find(v, text, bytes);
    return id >= 0 && is_merged(v, &v->piece[id]) ? id : -1;
}

int32_t fm_tokenizer_find(const fm_tokenizer *tk, const char *text, size_t bytes)
{
    return tk->vocab ? fm_vocab_find(tk->vocab, text, bytes) : -1;
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
        int32_t same = fm_vocab_find(v, text, p->bytes);
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

/* surface <- the text with spaces for U+2581, or what its letters spell. */
static size_t decode_text(const fm_vocab *v, const fm_vocab_piece *p, char *surface)
{
    const char *text = v->pool + p->text;
    size_t n = 0;
    if (v->byte_level) {
        int64_t made = p->type == FM_PIECE_USER_DEFINED ? -1 : fm_bytes_of_letters(surface, text, p->bytes);
        if (made < 0)
            memcpy(surface, text, p->bytes);
        return made < 0 ? p->bytes : (size_t)made;
    }
    for (size_t k = 0; k < p->bytes;) {
        bool space = p->bytes - k >= 3 && memcmp(text + k, FM_SPACE, 3) == 0;
        surface[n++] = space ? ' ' : text[k];
        k += space ? 3 : 1;
    }
    return n;
}

/* Fills in what decoding gives for piece i: a text, a raw byte, nothing, or the unknown mark. */
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
        if (!v->byte_level)
            v->byte_id[byte] = (int32_t)i;
        surface[n++] = (char)byte;
    } else if (p->type == FM_PIECE_UNKNOWN) {
        n = sizeof unknown_surface - 1;
        memcpy(surface, unknown_surface, n);
    } else if (p->type != FM_PIECE_CONTROL) {
        n = decode_text(v, p, surface);
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
        if (!is_merged(v, p))
            continue;
        if (p->bytes > v->max_bytes)
            v->max_bytes = p->bytes;
        v->cuts = v->cuts && !has_inner_space(v->pool + p->text, p->bytes);
        v->has_unused |= p->type == FM_PIECE_UNUSED && !v->by_rank;
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

static int32_t id_of_letter(const fm_vocab *v, uint8_t byte)
{
    char letter[2];
    return fm_vocab_find_merged(v, letter, fm_letter_of_byte(letter, byte));
}

static uint64_t hash_number(uint64_t h, uint32_t x)
{
    uint8_t p[4] = {(uint8_t)x, (uint8_t)(x >> 8), (uint8_t)(x >> 16), (uint8_t)(x >> 24)};
    return nb_hash(h, p, 4);
}

static uint64_t hash_all(const fm_tokenizer *tk)
{
    const fm_vocab *v = tk->vocab;
    const int32_t numbers[] = {tk->bos, tk->eos, tk->unknown, tk->pad, (int32_t)v->n};
    uint64_t h = NB_HASH_START;
    for (int i = 0; i < 5; i++)
        h = hash_number(h, (uint32_t)numbers[i]);
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *p = &v->piece[i];
        uint32_t score;
        memcpy(&score, &p->score, 4);
        h = hash_number(h, score);
        h = hash_number(h, p->type | (uint32_t)p->bytes << 16);
        h = nb_hash(h, v->pool + p->text, p->bytes);
    }
    for (int64_t i = 0; i < v->n_merges; i++) {
        h = hash_number(h, (uint32_t)v->merge[i].left);
        h = hash_number(h, (uint32_t)v->merge[i].right);
    }
    return h;
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
    if (v->by_rank)
        TRY(fm_merges_index(v));
    TRY(fm_added_index(v));
    for (int i = 0; i < 256; i++)
        v->byte_id[i] = v->byte_level ? id_of_letter(v, (uint8_t)i) : -1;
    for (int64_t i = 0; i < v->n; i++)
        TRY(set_surface(tk, i));
    tk->byte_fallback = true;
    for (int i = 0; i < 256; i++)
        tk->byte_fallback = tk->byte_fallback && v->byte_id[i] >= 0;
    tk->add_bos = tk->add_bos && tk->bos >= 0;
    if (!tk->byte_fallback && tk->unknown < 0 && !v->by_rank)
        return nb_fail(NB_FORMAT, "there is neither an unknown token nor one for each of the 256 bytes");
    v->drop_missing = v->drop_missing || (!tk->byte_fallback && tk->unknown < 0);
    tk->hash = hash_all(tk);
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
    tk->add_bos = true;
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

bool fm_tokenizer_ends(const fm_tokenizer *tk, int32_t id)
{
    static const char *const names[] = {
        "<|eot_id|>",    "<|im_end|>", "<|end|>",     "<|eom_id|>",   "<|endoftext|>", "<|end_of_text|>",
        "<end_of_turn>", "<EOT>",      "_<EOT>",      "[EOT]",        "[EOS]",         "<end_of_utterance>",
        "</s>",          "<eos>",      "<|return|>",  "<|call|>",     "<|fim_pad|>",   "<fim-pad>",
        "<fim_pad>",     "<PAD>",      "[PAD]",       "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
        "<REPO>",        "<reponame>", "<|file_sep|>"};
    fm_piece p = fm_tokenizer_piece(tk, id);
    bool found = id >= 0 && id == tk->eos;
    for (size_t i = 0; !found && p.type == FM_PIECE_CONTROL && i < sizeof names / sizeof *names; i++)
        found = p.text.bytes == strlen(names[i]) && memcmp(p.text.text, names[i], p.text.bytes) == 0;
    return found;
}

status fm_vocab_set_template(fm_tokenizer *tk, const char *text, size_t bytes)
{
    if (bytes > FM_TEMPLATE_BYTES || memchr(text, 0, bytes))
        return nb_fail(NB_FORMAT, "a chat template of %zu bytes: more than %d, or with a NUL in it", bytes,
                       FM_TEMPLATE_BYTES);
    char *copy = nb_alloc(bytes + 1, 1);
    if (!copy)
        return NB_NOMEM;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    free(tk->vocab->chat_template);
    tk->vocab->chat_template = copy;
    return NB_OK;
}

const char *fm_chat_template(const fm_tokenizer *tk)
{
    return tk->vocab ? tk->vocab->chat_template : NULL;
}

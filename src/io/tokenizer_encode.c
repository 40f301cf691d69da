/* tokenizer_encode.c - text to ids: SentencePiece's byte pair encoding.
 *
 *   normalize   ' ' becomes U+2581; one is put in front (add_space_prefix); with remove_extra_spaces runs of spaces
 * become one and those at both ends go merge       symbols are characters (user-defined pieces: whole, never merged). A
 * heap holds adjacent pairs whose concatenation is a piece, highest score first, then leftmost; the top is merged, its
 * new neighbours are pushed; an entry is stale when its symbols have changed length since write       symbols that are
 * pieces: their id; unused ones fall back into the halves they were merged from; others: their bytes, or the unknown
 * id, once for a run of them O(n log n) for a segment of n characters. Where no piece has U+2581 after another
 * character, no merge crosses the gap before a space, so the text is cut there and segments are words; otherwise the
 * whole text is one segment. Source: sentencepiece src/bpe_model.cc, normalizer.cc; llama.cpp src/llama-vocab.cpp.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t previous, next; /* neighbours, -1: none */
    int32_t at, bytes;      /* in the segment; bytes 0: merged away */
    int32_t id;             /* of a piece that merging can make, or -1 */
    bool frozen;            /* user-defined: never merged */
} symbol;

typedef struct {
    float score;
    int32_t left, right, bytes, id;
} merge;

typedef struct {
    const fm_tokenizer *tk;
    fm_ids *ids;
    char *text; /* the segment, normalized */
    size_t bytes, capacity;
    symbol *sym;
    size_t sym_capacity;
    merge *heap;
    size_t n_heap, heap_capacity;
    int32_t *half;     /* [V]: bytes of the left half of an unused piece, 0: not merged yet; NULL if there are none */
    bool last_unknown; /* the last id written is the unknown one */
} encoder;

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

/* ---- heap ---- */

static bool comes_before(const merge *a, const merge *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static status heap_push(encoder *e, merge m)
{
    if (e->n_heap == e->heap_capacity) {
        size_t capacity = e->heap_capacity * 2 + 64;
        merge *heap = nb_resize(e->heap, capacity, sizeof *heap);
        if (!heap)
            return NB_NOMEM;
        e->heap = heap;
        e->heap_capacity = capacity;
    }
    size_t i = e->n_heap++;
    for (; i > 0 && comes_before(&m, &e->heap[(i - 1) / 2]); i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = m;
    return NB_OK;
}

static merge heap_pop(encoder *e)
{
    merge top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;
    for (size_t child = 1; child < e->n_heap; child = 2 * i + 1) {
        if (child + 1 < e->n_heap && comes_before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!comes_before(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    if (e->n_heap > 0)
        e->heap[i] = last;
    return top;
}

/* ---- one segment ---- */

/* Bytes of the user-defined piece at p, the longest one; 0 if there is none. */
static size_t user_defined_at(const fm_vocab *v, const char *p, size_t bytes)
{
    size_t n = bytes < (size_t)v->max_bytes ? bytes : (size_t)v->max_bytes;
    for (; n > 0; n--) {
        if (!v->user_bytes[n])
            continue;
        int32_t id = fm_vocab_find_merged(v, p, n);
        if (id >= 0 && v->piece[id].type == FM_PIECE_USER_DEFINED)
            return n;
    }
    return 0;
}

/* Cuts the segment into symbols. */
static status split(encoder *e, int32_t *n_symbols)
{
    const fm_vocab *v = e->tk->vocab;
    int32_t n = 0;
    for (size_t at = 0; at < e->bytes;) {
        if ((size_t)n == e->sym_capacity) {
            size_t capacity = e->sym_capacity * 2 + 64;
            symbol *sym = nb_resize(e->sym, capacity, sizeof *sym);
            if (!sym)
                return NB_NOMEM;
            e->sym = sym;
            e->sym_capacity = capacity;
        }
        size_t user = v->user_bytes ? user_defined_at(v, e->text + at, e->bytes - at) : 0;
        int length = fm_utf8_length((const uint8_t *)e->text + at, e->bytes - at);
        size_t bytes = user ? user : length > 0 ? (size_t)length : 1;
        e->sym[n] =
            (symbol){n - 1, n + 1, (int32_t)at, (int32_t)bytes, fm_vocab_find_merged(v, e->text + at, bytes), user > 0};
        at += bytes;
        n++;
    }
    e->sym[n - 1].next = -1;
    *n_symbols = n;
    return NB_OK;
}

static status consider(encoder *e, int32_t left, int32_t right)
{
    if (left < 0 || right < 0 || e->sym[left].frozen || e->sym[right].frozen)
        return NB_OK;
    const fm_vocab *v = e->tk->vocab;
    int32_t bytes = e->sym[left].bytes + e->sym[right].bytes;
    int32_t id = fm_vocab_find_merged(v, e->text + e->sym[left].at, (size_t)bytes);
    if (id < 0)
        return NB_OK;
    if (e->half && v->piece[id].type == FM_PIECE_UNUSED)
        e->half[id] = e->sym[left].bytes;
    return heap_push(e, (merge){v->piece[id].score, left, right, bytes, id});
}

static status put(encoder *e, int32_t id)
{
    TRY(fm_ids_reserve(e->ids, 1));
    e->ids->id[e->ids->n++] = id;
    return NB_OK;
}

static status put_bytes(encoder *e, const char *text, int32_t bytes)
{
    if (e->tk->byte_fallback) {
        for (int32_t i = 0; i < bytes; i++)
            TRY(put(e, e->tk->vocab->byte_id[(uint8_t)text[i]]));
        return NB_OK;
    }
    if (!e->last_unknown)
        TRY(put(e, e->tk->unknown));
    e->last_unknown = true;
    return NB_OK;
}

/* Writes the symbol text[0..bytes) with piece id (-1: none). Depth is bounded: a half is shorter than its whole. */
static status put_symbol(encoder *e, const char *text, int32_t bytes, int32_t id)
{
    const fm_vocab *v = e->tk->vocab;
    if (id >= 0 && v->piece[id].type == FM_PIECE_UNUSED && e->half && e->half[id] > 0) {
        int32_t left = e->half[id];
        TRY(put_symbol(e, text, left, fm_vocab_find_merged(v, text, (size_t)left)));
        return put_symbol(e, text + left, bytes - left, fm_vocab_find_merged(v, text + left, (size_t)(bytes - left)));
    }
    if (id < 0)
        return put_bytes(e, text, bytes);
    e->last_unknown = false;
    return put(e, id);
}

static status encode_segment(encoder *e)
{
    if (e->bytes == 0)
        return NB_OK;
    int32_t n = 0;
    TRY(split(e, &n));
    e->n_heap = 0;
    for (int32_t i = 1; i < n; i++)
        TRY(consider(e, i - 1, i));
    while (e->n_heap > 0) {
        merge m = heap_pop(e);
        symbol *left = &e->sym[m.left], *right = &e->sym[m.right];
        if (left->bytes == 0 || right->bytes == 0 || left->bytes + right->bytes != m.bytes)
            continue;
        left->bytes = m.bytes;
        left->id = m.id;
        right->bytes = 0;
        left->next = right->next;
        if (left->next >= 0)
            e->sym[left->next].previous = m.left;
        TRY(consider(e, left->previous, m.left));
        TRY(consider(e, m.left, left->next));
    }
    for (int32_t i = 0; i >= 0; i = e->sym[i].next)
        TRY(put_symbol(e, e->text + e->sym[i].at, e->sym[i].bytes, e->sym[i].id));
    e->bytes = 0;
    return NB_OK;
}

/* ---- normalization ---- */

static status segment_put(encoder *e, const char *text, size_t bytes)
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

static bool ends_with_space(const encoder *e)
{
    return e->bytes >= 3 && memcmp(e->text + e->bytes - 3, FM_SPACE, 3) == 0;
}

static status put_space(encoder *e)
{
    if (e->tk->vocab->cuts && e->bytes > 0 && !ends_with_space(e))
        TRY(encode_segment(e));
    return segment_put(e, FM_SPACE, 3);
}

static status encode_text(encoder *e, const char *text, size_t bytes)
{
    bool squeeze = e->tk->remove_extra_spaces;
    size_t i = 0;
    while (squeeze && i < bytes && text[i] == ' ')
        i++;
    if (i == bytes)
        return NB_OK;
    if (e->tk->add_space_prefix)
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

static status encode_bytes(fm_ids *ids, const char *text, size_t bytes)
{
    TRY(fm_ids_reserve(ids, (int64_t)bytes));
    for (size_t i = 0; i < bytes; i++)
        ids->id[ids->n++] = (uint8_t)text[i];
    return NB_OK;
}

status fm_tokenizer_encode(const fm_tokenizer *tk, fm_ids *ids, const char *text, size_t bytes, unsigned flags)
{
    if (tk->kind == FM_TOKENIZER_NONE)
        return nb_fail(NB_USAGE, "there is no tokenizer");
    encoder e = {.tk = tk, .ids = ids};
    status s = NB_OK;
    if (flags & FM_ADD_BOS && tk->bos >= 0)
        s = put(&e, tk->bos);
    if (s == NB_OK && tk->vocab->has_unused) {
        e.half = nb_alloc_zeroed((size_t)tk->vocab->n, sizeof *e.half);
        s = e.half ? NB_OK : NB_NOMEM;
    }
    if (s == NB_OK)
        s = tk->kind == FM_TOKENIZER_BYTES ? encode_bytes(ids, text, bytes) : encode_text(&e, text, bytes);
    if (s == NB_OK && flags & FM_ADD_EOS && tk->eos >= 0)
        s = put(&e, tk->eos);
    free(e.text);
    free(e.sym);
    free(e.heap);
    free(e.half);
    return s;
}

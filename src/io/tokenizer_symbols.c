/* tokenizer_symbols.c - byte pair encoding of a segment: symbols, merged pair by pair until nothing is left to merge.
 *
 *   symbols   bytes as letters (byte-level), or characters (user-defined pieces of SPM: whole, never merged)
 *   heap      adjacent pairs that may be merged: SPM, where the concatenation is a piece, highest score first; BPE,
 *             where the pair has a rank, lowest first; leftmost among equals. The top is merged, its new neighbours
 *             are pushed; an entry is stale when its symbols have changed length since
 *   ids       symbols that are pieces: their id; unused ones fall back into the halves they were merged from; others:
 *             their bytes, or the unknown id, once for a run of them, or nothing
 * O(n log n) for n symbols. Source: sentencepiece src/bpe_model.cc; llama.cpp src/llama-vocab.cpp; Hugging Face
 * tokenizers, models/bpe/word.rs.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* ---- heap ---- */

static bool comes_before(const fm_candidate *a, const fm_candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static status heap_push(fm_encoder *e, fm_candidate m)
{
    if (e->n_heap == e->heap_capacity) {
        size_t capacity = e->heap_capacity * 2 + 64;
        fm_candidate *heap = nb_resize(e->heap, capacity, sizeof *heap);
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

static fm_candidate heap_pop(fm_encoder *e)
{
    fm_candidate top = e->heap[0], last = e->heap[--e->n_heap];
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

/* ---- merging ---- */

static status consider(fm_encoder *e, const char *text, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return NB_OK;
    const fm_vocab *v = e->tk->vocab;
    const fm_symbol *a = &e->sym[left], *b = &e->sym[right];
    int32_t bytes = a->bytes + b->bytes;
    if (v->by_rank) {
        int32_t rank = a->id >= 0 && b->id >= 0 ? fm_merges_find(v, a->id, b->id) : -1;
        return rank < 0 ? NB_OK : heap_push(e, (fm_candidate){-(float)rank, left, right, bytes, v->merge[rank].made});
    }
    if (a->frozen || b->frozen)
        return NB_OK;
    int32_t id = fm_vocab_find_merged(v, text + a->at, (size_t)bytes);
    if (id < 0)
        return NB_OK;
    if (e->half && v->piece[id].type == FM_PIECE_UNUSED)
        e->half[id] = a->bytes;
    return heap_push(e, (fm_candidate){v->piece[id].score, left, right, bytes, id});
}

static status merge_all(fm_encoder *e, const char *text, int32_t n)
{
    e->n_heap = 0;
    for (int32_t i = 1; i < n; i++)
        TRY(consider(e, text, i - 1, i));
    while (e->n_heap > 0) {
        fm_candidate m = heap_pop(e);
        fm_symbol *left = &e->sym[m.left], *right = &e->sym[m.right];
        if (left->bytes == 0 || right->bytes == 0 || left->bytes + right->bytes != m.bytes)
            continue;
        left->bytes = m.bytes;
        left->id = m.id;
        right->bytes = 0;
        left->next = right->next;
        if (left->next >= 0)
            e->sym[left->next].previous = m.left;
        TRY(consider(e, text, left->previous, m.left));
        TRY(consider(e, text, m.left, left->next));
    }
    return NB_OK;
}

/* ---- ids ---- */

status fm_encoder_put(fm_encoder *e, int32_t id)
{
    TRY(fm_ids_reserve(e->ids, 1));
    e->ids->id[e->ids->n++] = id;
    return NB_OK;
}

/* Writes what is no piece. */
static status put_missing(fm_encoder *e, const char *text, int32_t bytes)
{
    const fm_vocab *v = e->tk->vocab;
    if (e->tk->byte_fallback && !v->byte_level) {
        for (int32_t i = 0; i < bytes; i++)
            TRY(fm_encoder_put(e, v->byte_id[(uint8_t)text[i]]));
        return NB_OK;
    }
    if (!v->drop_missing && !(v->fuse_unknown && e->last_unknown))
        TRY(fm_encoder_put(e, e->tk->unknown));
    e->last_unknown = true;
    return NB_OK;
}

/* Writes the symbol text[0..bytes) with piece id (-1: none). Depth is bounded: a half is shorter than its whole. */
static status put_symbol(fm_encoder *e, const char *text, int32_t bytes, int32_t id)
{
    const fm_vocab *v = e->tk->vocab;
    if (id >= 0 && v->piece[id].type == FM_PIECE_UNUSED && e->half && e->half[id] > 0) {
        int32_t left = e->half[id];
        TRY(put_symbol(e, text, left, fm_vocab_find_merged(v, text, (size_t)left)));
        return put_symbol(e, text + left, bytes - left, fm_vocab_find_merged(v, text + left, (size_t)(bytes - left)));
    }
    if (id < 0)
        return put_missing(e, text, bytes);
    e->last_unknown = false;
    return fm_encoder_put(e, id);
}

static status encode_symbols(fm_encoder *e, const char *text, int32_t n)
{
    if (n > 1)
        TRY(merge_all(e, text, n));
    for (int32_t i = 0; i >= 0; i = e->sym[i].next)
        TRY(put_symbol(e, text + e->sym[i].at, e->sym[i].bytes, e->sym[i].id));
    return NB_OK;
}

/* ---- symbols ---- */

static status reserve_symbols(fm_encoder *e, size_t n)
{
    if (n <= e->sym_capacity)
        return NB_OK;
    size_t capacity = e->sym_capacity * 2 > n ? e->sym_capacity * 2 : n + 64;
    fm_symbol *sym = nb_resize(e->sym, capacity, sizeof *sym);
    if (!sym)
        return NB_NOMEM;
    e->sym = sym;
    e->sym_capacity = capacity;
    return NB_OK;
}

/* The id of a word that is a piece as it stands, -1 if it is none. */
static int32_t whole_word(const fm_vocab *v, const char *text, size_t bytes)
{
    char letters[FM_PIECE_BYTES];
    size_t n = 0;
    if (bytes > sizeof letters / 2)
        return -1;
    for (size_t i = 0; i < bytes; i++) {
        char letter[2];
        size_t length = fm_letter_of_byte(letter, (uint8_t)text[i]);
        memcpy(letters + n, letter, length);
        n += length;
    }
    return fm_vocab_find_merged(v, letters, n);
}

status fm_encode_word(void *encoder, const char *text, size_t bytes)
{
    fm_encoder *e = encoder;
    const fm_vocab *v = e->tk->vocab;
    if (bytes == 0)
        return NB_OK;
    if (bytes > INT32_MAX)
        return nb_fail(NB_UNSUPPORTED, "a word of %zu bytes; 2 GiB are the limit", bytes);
    int32_t n = (int32_t)bytes, id = v->ignore_merges ? whole_word(v, text, bytes) : -1;
    if (id >= 0)
        return put_symbol(e, text, n, id);
    TRY(reserve_symbols(e, bytes));
    for (int32_t i = 0; i < n; i++)
        e->sym[i] = (fm_symbol){i - 1, i + 1 < n ? i + 1 : -1, i, 1, v->byte_id[(uint8_t)text[i]], false};
    return encode_symbols(e, text, n);
}

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

status fm_encode_characters(fm_encoder *e, const char *text, size_t bytes)
{
    const fm_vocab *v = e->tk->vocab;
    int32_t n = 0;
    for (size_t at = 0, length; at < bytes; at += length, n++) {
        TRY(reserve_symbols(e, (size_t)n + 1));
        size_t user = v->user_bytes ? user_defined_at(v, text + at, bytes - at) : 0;
        int character = fm_utf8_length((const uint8_t *)text + at, bytes - at);
        length = user ? user : character > 0 ? (size_t)character : 1;
        int32_t id = fm_vocab_find_merged(v, text + at, length), next = at + length < bytes ? n + 1 : -1;
        e->sym[n] = (fm_symbol){n - 1, next, (int32_t)at, (int32_t)length, id, user > 0};
    }
    return n > 0 ? encode_symbols(e, text, n) : NB_OK;
}

void fm_encoder_free(fm_encoder *e)
{
    free(e->text);
    free(e->sym);
    free(e->heap);
    free(e->half);
}

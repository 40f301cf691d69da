/* tokenizer_added.c - added tokens: pieces that a text is cut at before anything else looks at it.
 *   The first place where one begins, there the longest. The list is sorted by text, so the pieces that begin like the
 *   text at a place are a range of it that shrinks byte after byte.
 * Source: Hugging Face tokenizers, added_vocabulary.rs (leftmost-longest; lstrip, rstrip, single_word, normalized).
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

typedef struct {
    fm_text text;
    int32_t id;
} entry;

static int compare_entries(const void *a, const void *b)
{
    fm_text x = ((const entry *)a)->text, y = ((const entry *)b)->text;
    int order = memcmp(x.text, y.text, x.bytes < y.bytes ? x.bytes : y.bytes);
    return order ? order : x.bytes < y.bytes ? -1 : x.bytes > y.bytes;
}

static bool is_added(const fm_vocab *v, const fm_vocab_piece *p)
{
    return p->type == FM_PIECE_CONTROL || p->type == FM_PIECE_UNKNOWN ||
           (v->by_rank && p->type == FM_PIECE_USER_DEFINED);
}

status fm_added_index(fm_vocab *v)
{
    for (int64_t i = 0; i < v->n; i++)
        v->n_added += is_added(v, &v->piece[i]);
    entry *e = nb_alloc((size_t)v->n_added, sizeof *e);
    v->added = nb_alloc((size_t)v->n_added, sizeof *v->added);
    if (!e || !v->added) {
        free(e);
        return NB_NOMEM;
    }
    int64_t n = 0;
    for (int64_t i = 0; i < v->n; i++) {
        const fm_vocab_piece *p = &v->piece[i];
        if (!is_added(v, p))
            continue;
        e[n++] = (entry){{v->pool + p->text, p->bytes}, (int32_t)i};
        v->added_first[(uint8_t)v->pool[p->text]] = true;
        v->added_user |= p->type == FM_PIECE_USER_DEFINED;
        v->added_late |= (p->added & FM_ADDED_NORMALIZED) != 0;
    }
    qsort(e, (size_t)n, sizeof *e, compare_entries);
    for (int64_t i = 0; i < n; i++)
        v->added[i] = e[i].id;
    free(e);
    return NB_OK;
}

static const fm_vocab_piece *added_piece(const fm_vocab *v, int64_t i)
{
    return &v->piece[v->added[i]];
}

/* The first of added[low..high), which agree in their first k bytes, that has a byte k of at least `least`. */
static int64_t first_with(const fm_vocab *v, int64_t low, int64_t high, size_t k, int least)
{
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const fm_vocab_piece *p = added_piece(v, middle);
        int byte = k < p->bytes ? (uint8_t)v->pool[p->text + k] : -1;
        if (byte < least)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int32_t code_at(const char *text, size_t bytes)
{
    utf8proc_int32_t code;
    return utf8proc_iterate((const uint8_t *)text, (utf8proc_ssize_t)bytes, &code) > 0 ? code : -1;
}

/* Where the character before text[at] begins. */
static size_t step_back(const char *text, size_t from, size_t at)
{
    size_t i = at - 1;
    while (i > from && at - i < 4 && ((uint8_t)text[i] & 0xC0) == 0x80)
        i--;
    return i;
}

static bool is_space(int32_t code)
{
    return (code >= 9 && code <= 13) || code == ' ' || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

static bool is_word(int32_t code)
{
    if (code < 0)
        return false;
    utf8proc_category_t c = utf8proc_category(code);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) || c == UTF8PROC_CATEGORY_PC;
}

/* Whether the piece may be taken out of text[at..at + its bytes). */
static bool fits(const fm_vocab_piece *p, const char *text, size_t bytes, size_t at, bool late, bool special)
{
    if (((p->added & FM_ADDED_NORMALIZED) != 0) != late || (p->type != FM_PIECE_USER_DEFINED && !special))
        return false;
    if (!(p->added & FM_ADDED_WORD))
        return true;
    size_t before = at > 0 ? step_back(text, 0, at) : 0, end = at + p->bytes;
    return !(at > 0 && is_word(code_at(text + before, at - before))) &&
           !(end < bytes && is_word(code_at(text + end, bytes - end)));
}

/* The longest piece that begins at text[at], -1 if none does. */
static int32_t longest_at(const fm_vocab *v, const char *text, size_t bytes, size_t at, bool late, bool special)
{
    int64_t low = 0, high = v->n_added;
    int32_t longest = -1;
    for (size_t k = 0; low < high; k++) {
        const fm_vocab_piece *p = added_piece(v, low);
        if (p->bytes == k) {
            if (fits(p, text, bytes, at, late, special))
                longest = v->added[low];
            low++;
        }
        if (at + k == bytes)
            break;
        int byte = (uint8_t)text[at + k];
        low = first_with(v, low, high, k, byte);
        high = first_with(v, low, high, k, byte + 1);
    }
    return longest;
}

bool fm_added_find(fm_added_match *match, const fm_vocab *v, const char *text, size_t bytes, size_t from, bool late,
                   bool special)
{
    bool some = v->n_added > 0 && (special || v->added_user) && (!late || v->added_late);
    for (size_t at = from; some && at < bytes; at++) {
        if (!v->added_first[(uint8_t)text[at]])
            continue;
        int32_t id = longest_at(v, text, bytes, at, late, special);
        if (id < 0)
            continue;
        const fm_vocab_piece *p = &v->piece[id];
        *match = (fm_added_match){at, at + p->bytes, id};
        while (p->added & FM_ADDED_LSTRIP && match->from > from) {
            size_t before = step_back(text, from, match->from);
            if (!is_space(code_at(text + before, match->from - before)))
                break;
            match->from = before;
        }
        while (p->added & FM_ADDED_RSTRIP && match->to < bytes) {
            int length = fm_utf8_length((const uint8_t *)text + match->to, bytes - match->to);
            if (length <= 0 || !is_space(code_at(text + match->to, bytes - match->to)))
                break;
            match->to += (size_t)length;
        }
        return true;
    }
    return false;
}

/* tokenizer_merges.c - the merges of byte pair encoding (Sennrich et al. 2016): pairs of pieces in the order in which
 * they were learned. The rank of a pair is its place in the list.
 *   index   open addressing over (left, right), at most half full
 */
#include "io/tokenizer.h"

#include <string.h>

static uint32_t pair_slot(const fm_vocab *v, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32) & v->merge_mask;
}

static status add(fm_vocab *v, fm_merge m)
{
    if (v->n_merges == FM_MERGES)
        return nb_fail(NB_UNSUPPORTED, "more than %d merges", FM_MERGES);
    if (v->n_merges == v->merge_capacity) {
        int64_t capacity = v->merge_capacity * 2 + 256;
        fm_merge *merge = nb_resize(v->merge, (size_t)capacity, sizeof *merge);
        if (!merge)
            return NB_NOMEM;
        v->merge = merge;
        v->merge_capacity = capacity;
    }
    v->merge[v->n_merges++] = m;
    return NB_OK;
}

static int32_t find_text(const fm_vocab *v, fm_text left, fm_text right)
{
    char both[FM_PIECE_BYTES];
    if (left.bytes > sizeof both || right.bytes > sizeof both - left.bytes)
        return -1;
    memcpy(both, left.text, left.bytes);
    if (right.bytes > 0)
        memcpy(both + left.bytes, right.text, right.bytes);
    return fm_vocab_find(v, both, left.bytes + right.bytes);
}

static int shown(fm_text t)
{
    return t.bytes < 40 ? (int)t.bytes : 40;
}

status fm_merges_add(fm_vocab *v, fm_text left, fm_text right)
{
    static const fm_text none = {"", 0};
    fm_merge m = {find_text(v, left, none), find_text(v, right, none), find_text(v, left, right)};
    if (m.left < 0 || m.right < 0 || m.made < 0)
        return nb_fail(NB_FORMAT, "merge %lld of '%.*s' and '%.*s': %s is not in the vocabulary",
                       (long long)v->n_merges, shown(left), left.text, shown(right), right.text,
                       m.left < 0    ? "the first"
                       : m.right < 0 ? "the second"
                                     : "what they make");
    return add(v, m);
}

status fm_merges_add_ids(fm_vocab *v, int32_t left, int32_t right)
{
    if (left < 0 || left >= v->n || right < 0 || right >= v->n)
        return nb_fail(NB_FORMAT, "merge %lld: tokens %d and %d in a vocabulary of %lld", (long long)v->n_merges,
                       (int)left, (int)right, (long long)v->n);
    const fm_vocab_piece *a = &v->piece[left], *b = &v->piece[right];
    return fm_merges_add(v, (fm_text){v->pool + a->text, a->bytes}, (fm_text){v->pool + b->text, b->bytes});
}

int32_t fm_merges_find(const fm_vocab *v, int32_t left, int32_t right)
{
    for (uint32_t s = pair_slot(v, left, right); v->merge_slot[s]; s = (s + 1) & v->merge_mask) {
        int32_t rank = v->merge_slot[s] - 1;
        if (v->merge[rank].left == left && v->merge[rank].right == right)
            return rank;
    }
    return -1;
}

status fm_merges_index(fm_vocab *v)
{
    uint32_t slots = 16;
    while (slots < 2 * (uint32_t)v->n_merges)
        slots *= 2;
    v->merge_slot = nb_alloc_zeroed(slots, sizeof *v->merge_slot);
    if (!v->merge_slot)
        return NB_NOMEM;
    v->merge_mask = slots - 1;
    for (int64_t rank = 0; rank < v->n_merges; rank++) {
        const fm_merge *m = &v->merge[rank];
        if (fm_merges_find(v, m->left, m->right) >= 0)
            continue;
        uint32_t s = pair_slot(v, m->left, m->right);
        while (v->merge_slot[s])
            s = (s + 1) & v->merge_mask;
        v->merge_slot[s] = (int32_t)rank + 1;
    }
    return NB_OK;
}

void fm_merges_score(fm_vocab *v)
{
    for (int64_t rank = v->n_merges - 1; rank >= 0; rank--)
        v->piece[v->merge[rank].made].score = (float)-rank; /* not -0 */
}

/* llama2c.c - llama2.c's model files (export.py, run.c, runq.c), little-endian. D dim, F hidden_dim, L n_layers, H
 * n_heads, KV n_kv_heads, V vocab_size, S seq_len, hd = D / H. version 0: 7 x i32 D F L H KV V S, V negative when
 * output.weight is there; then f32 arrays tok_embeddings, attention_norm*L, wq*L, wk*L, wv*L, wo*L, ffn_norm*L, w1*L,
 * w2*L, w3*L, norm, two rotation tables [S, hd/2] that readers skip, [output] version 1: u32 0x616b3432, i32 1, the 7
 * numbers with V positive, u8 shared, zeros to byte 256; then f32 arrays attention_norm*L, ffn_norm*L, norm,
 * tok_embeddings, wq*L, wk*L, wv*L, wo*L, w1*L, w2*L, w3*L, [output] version 2: as 1, with version 2 and i32 group_size
 * at byte 37; norms f32, every matrix (each layer's) int8 codes and then f32 scales, one per group_size elements of the
 * flattened matrix
 */
#include "io/formats.h"
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x616b3432u
enum { HEADER = 256, LEGACY_HEADER = 28 };

typedef enum { EMBED, ATTENTION_NORM, FFN_NORM, WQ, WK, WV, WO, W1, W2, W3, NORM, OUTPUT, ROTATION, N_PARTS } part;
typedef enum { NONE, DIM, HIDDEN, KV_DIM, VOCAB, SEQ_LEN } extent;

static const struct {
    const char *name; /* of a part that every layer has: between "layers.N." and ".weight" */
    bool in_layer;
    extent rows, columns; /* rows NONE: a vector */
} parts[N_PARTS] = {
    [EMBED] = {"tok_embeddings", false, VOCAB, DIM},
    [ATTENTION_NORM] = {"attention_norm", true, NONE, DIM},
    [FFN_NORM] = {"ffn_norm", true, NONE, DIM},
    [WQ] = {"attention.wq", true, DIM, DIM},
    [WK] = {"attention.wk", true, KV_DIM, DIM},
    [WV] = {"attention.wv", true, KV_DIM, DIM},
    [WO] = {"attention.wo", true, DIM, DIM},
    [W1] = {"feed_forward.w1", true, HIDDEN, DIM},
    [W2] = {"feed_forward.w2", true, DIM, HIDDEN},
    [W3] = {"feed_forward.w3", true, HIDDEN, DIM},
    [NORM] = {"norm", false, NONE, DIM},
    [OUTPUT] = {"output", false, VOCAB, DIM},
    [ROTATION] = {NULL, false, SEQ_LEN, NONE}, /* cos and sin, hd/2 each: S * hd numbers */
};

/* The order in the file. output comes last in both, when it is there. */
static const part legacy_order[] = {EMBED, ATTENTION_NORM, WQ,       WK,    WV, WO, FFN_NORM, W1, W2,
                                    W3,    NORM,           ROTATION, OUTPUT};
static const part order[] = {ATTENTION_NORM, FFN_NORM, NORM, EMBED, WQ, WK, WV, WO, W1, W2, W3, OUTPUT};

static const part *order_of(const fm_llama2c *h, int *n)
{
    const part *list = h->version == 0 ? legacy_order : order;
    *n = (int)(h->version == 0 ? sizeof legacy_order / sizeof *list : sizeof order / sizeof *list);
    if (h->shared_classifier)
        (*n)--;
    return list;
}

static int64_t size_of(const fm_llama2c *h, extent e)
{
    const int64_t head = h->dim / h->n_heads;
    const int64_t size[] = {1, h->dim, h->hidden_dim, head * h->n_kv_heads, h->vocab_size, h->seq_len};
    return size[e];
}

static bool is_coded(const fm_llama2c *h, part p)
{
    return h->version == 2 && parts[p].rows != NONE;
}

/* Bytes of one array, its scales included. */
static bool part_bytes(int64_t *bytes, const fm_llama2c *h, part p)
{
    int64_t columns = p == ROTATION ? h->dim / h->n_heads : size_of(h, parts[p].columns), n;
    if (!fm_multiply(&n, size_of(h, parts[p].rows), columns))
        return false;
    if (!is_coded(h, p))
        return fm_multiply(bytes, n, 4);
    return fm_multiply(bytes, n / h->group_size, 4 + (int64_t)h->group_size);
}

static status check_header(const fm_llama2c *h)
{
    const struct {
        const char *name;
        int32_t x;
    } positive[] = {{"dim", h->dim},         {"hidden_dim", h->hidden_dim}, {"n_layers", h->n_layers},
                    {"n_heads", h->n_heads}, {"n_kv_heads", h->n_kv_heads}, {"vocab_size", h->vocab_size},
                    {"seq_len", h->seq_len}};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].x < 1)
            return nb_fail(NB_FORMAT, "no llama2.c model: %s is %d", positive[i].name, positive[i].x);
    if (h->dim % h->n_heads || h->n_heads % h->n_kv_heads || h->dim / h->n_heads % 2)
        return nb_fail(NB_FORMAT, "no llama2.c model: dim %d, n_heads %d and n_kv_heads %d do not divide", h->dim,
                       h->n_heads, h->n_kv_heads);
    if (h->version != 2)
        return NB_OK;
    if (h->group_size < 1)
        return nb_fail(NB_FORMAT, "group_size is %d", h->group_size);
    for (part p = 0; p < N_PARTS; p++) {
        int64_t n = size_of(h, parts[p].rows) * size_of(h, parts[p].columns); /* of two int32: no overflow */
        if (p != ROTATION && parts[p].rows != NONE && n % h->group_size)
            return nb_fail(NB_FORMAT, "%s: %lld elements are not whole groups of %d", parts[p].name, (long long)n,
                           h->group_size);
    }
    return NB_OK;
}

/* Bytes of the whole file, and how many arrays a reader gives. */
static status measure(int64_t *bytes, int64_t *n_arrays, const fm_llama2c *h)
{
    int n_order;
    const part *list = order_of(h, &n_order);
    *bytes = h->version == 0 ? LEGACY_HEADER : HEADER;
    *n_arrays = 0;
    for (int i = 0; i < n_order; i++) {
        int64_t times = parts[list[i]].in_layer ? h->n_layers : 1, size;
        if (!part_bytes(&size, h, list[i]) || !fm_multiply(&size, size, times) || !fm_add(bytes, *bytes, size))
            return nb_fail(NB_FORMAT, "no llama2.c model: its sizes overflow");
        *n_arrays += list[i] == ROTATION ? 0 : times * (is_coded(h, list[i]) ? 2 : 1);
    }
    return NB_OK;
}

static char *part_name(nb_arena *arena, part p, int32_t layer, const char *suffix)
{
    char name[96];
    if (parts[p].in_layer)
        (void)snprintf(name, sizeof name, "layers.%d.%s.weight%s", layer, parts[p].name, suffix);
    else
        (void)snprintf(name, sizeof name, "%s.weight%s", parts[p].name, suffix);
    return nb_arena_string(arena, name);
}

/* Appends one array; *at, the bytes of the file from here on (NULL when writing), moves past it. */
static status add_array(fm_arrays *a, const char *name, fm_dtype t, int n_dim, const int64_t *dim, const uint8_t **at)
{
    fm_array *x = fm_arrays_add(a);
    if (!x || !name)
        return nb_fail(NB_NOMEM, "no memory for the list of arrays");
    *x = (fm_array){.name = name, .dtype = t, .n_dim = n_dim};
    memcpy(x->dim, dim, (size_t)n_dim * sizeof *dim);
    TRY(fm_array_measure(x));
    x->data = *at;
    if (*at)
        *at += x->bytes;
    return NB_OK;
}

static status add_part(fm_arrays *a, const fm_llama2c *h, part p, int32_t layer, const uint8_t **at)
{
    bool is_matrix = parts[p].rows != NONE;
    int64_t rows = size_of(h, parts[p].rows), columns = size_of(h, parts[p].columns);
    const int64_t dim[] = {is_matrix ? rows : columns, columns};
    TRY(add_array(a, part_name(&a->names, p, layer, ""), is_coded(h, p) ? FM_I8 : FM_F32, is_matrix ? 2 : 1, dim, at));
    if (!is_coded(h, p))
        return NB_OK;
    const int64_t groups = rows * columns / h->group_size;
    return add_array(a, part_name(&a->names, p, layer, ".scales"), FM_F32, 1, &groups, at);
}

/* All arrays in the file's order; `at` is where the first lies, or NULL. */
static status list_arrays(fm_arrays *a, const fm_llama2c *h, const uint8_t *at)
{
    int n_order;
    const part *list = order_of(h, &n_order);
    for (int i = 0; i < n_order; i++) {
        if (list[i] == ROTATION) {
            int64_t bytes;
            if (at && !h->shared_classifier && part_bytes(&bytes, h, ROTATION))
                at += bytes;
            continue;
        }
        for (int32_t layer = 0; layer < (parts[list[i]].in_layer ? h->n_layers : 1); layer++)
            TRY(add_part(a, h, list[i], layer, &at));
    }
    return fm_arrays_index(a);
}

static int32_t int_at(const uint8_t *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static status read_header(fm_llama2c *h, const uint8_t *p, size_t bytes)
{
    uint32_t magic = 0;
    if (bytes < LEGACY_HEADER)
        return nb_fail(NB_FORMAT, "%zu bytes are no llama2.c model", bytes);
    memcpy(&magic, p, sizeof magic);
    bool is_legacy = magic != MAGIC;
    const uint8_t *number = is_legacy ? p : p + 8;
    if (!is_legacy && bytes < HEADER)
        return nb_fail(NB_FORMAT, "%zu bytes hold no header of %d", bytes, HEADER);
    *h = (fm_llama2c){.dim = int_at(number),
                      .hidden_dim = int_at(number + 4),
                      .n_layers = int_at(number + 8),
                      .n_heads = int_at(number + 12),
                      .n_kv_heads = int_at(number + 16),
                      .vocab_size = int_at(number + 20),
                      .seq_len = int_at(number + 24)};
    if (is_legacy) {
        h->shared_classifier = h->vocab_size > 0;
        if (h->vocab_size < 0 && h->vocab_size != INT32_MIN)
            h->vocab_size = -h->vocab_size;
        return check_header(h);
    }
    h->version = int_at(p + 4);
    if (h->version != 1 && h->version != 2)
        return nb_fail(NB_UNSUPPORTED, "llama2.c's version %d, wanted 0, 1 or 2", h->version);
    if (p[36] > 1)
        return nb_fail(NB_FORMAT, "the byte for a shared classifier is %d", p[36]);
    h->shared_classifier = p[36] == 1;
    h->group_size = h->version == 2 ? int_at(p + 37) : 0;
    return check_header(h);
}

/* The header, when the file has exactly the length it says. A legacy file with a shared head may lack the tables. */
static status read_checked(fm_llama2c *h, int64_t *n_arrays, const uint8_t *p, size_t bytes)
{
    int64_t wanted, tables = 0;
    TRY(read_header(h, p, bytes));
    TRY(measure(&wanted, n_arrays, h));
    if (h->version == 0 && h->shared_classifier)
        (void)part_bytes(&tables, h, ROTATION);
    if ((uint64_t)wanted != bytes && (uint64_t)(wanted - tables) != bytes)
        return nb_fail(NB_FORMAT, "its header asks for %lld bytes, it has %zu", (long long)wanted, bytes);
    return NB_OK;
}

bool fm_llama2c_recognize(const uint8_t *p, size_t bytes)
{
    fm_llama2c h;
    int64_t n;
    uint32_t magic = 0;
    if (bytes >= LEGACY_HEADER)
        memcpy(&magic, p, sizeof magic);
    return magic == MAGIC || read_checked(&h, &n, p, bytes) == NB_OK;
}

static status open_mapped(fm_arrays *a, fm_llama2c *h)
{
    int64_t n;
    nb_mapped file;
    TRY(fm_arrays_map(&file, a, a->path));
    status s = read_checked(h, &n, file.data, file.bytes);
    if (s == NB_OK)
        s = list_arrays(a, h, file.data + (h->version == 0 ? LEGACY_HEADER : HEADER));
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", a->path);
}

status fm_llama2c_open(fm_arrays *a, fm_llama2c *header, const char *path)
{
    *a = (fm_arrays){.path = nb_string(path)};
    status s = a->path ? open_mapped(a, header) : NB_NOMEM;
    if (s != NB_OK)
        fm_arrays_free(a);
    return s;
}

static status write_file(fm_sink *sink, const fm_llama2c *h, const fm_arrays *a, fm_source source)
{
    uint8_t block[HEADER] = {0};
    const uint32_t magic = MAGIC;
    const int32_t number[] = {h->version, h->dim,        h->hidden_dim, h->n_layers,
                              h->n_heads, h->n_kv_heads, h->vocab_size, h->seq_len};
    memcpy(block, &magic, sizeof magic);
    memcpy(block + 4, number, sizeof number);
    block[36] = h->shared_classifier;
    if (h->version == 2)
        memcpy(block + 37, &h->group_size, sizeof h->group_size);
    TRY(fm_sink_raw(sink, block, sizeof block));
    for (int64_t i = 0; i < a->n; i++)
        TRY(fm_sink_array(sink, &a->array[i], source));
    return NB_OK;
}

status fm_llama2c_write(const char *path, const fm_llama2c *header, fm_source source)
{
    int64_t bytes, n;
    fm_arrays a = {0};
    fm_sink sink;
    if ((header->version != 1 && header->version != 2) || !source.fn)
        return nb_fail(NB_USAGE, "%s: llama2.c's version %d is not written", path, header->version);
    status s = check_header(header);
    if (s == NB_OK)
        s = measure(&bytes, &n, header);
    if (s == NB_OK)
        s = list_arrays(&a, header, NULL);
    if (s != NB_OK)
        s = nb_fail_in(s, "%s", path);
    else if ((s = fm_sink_open(&sink, path)) == NB_OK)
        s = fm_sink_close(&sink, write_file(&sink, header, &a, source));
    fm_arrays_free(&a);
    return s;
}

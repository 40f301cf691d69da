/* bind.c - the one table of a LLaMA model's tensors: names in four namings, shapes, which rows the rotation pairs.
 * Sources: llama2.c model.py, transformers modeling_llama.py, llama.cpp gguf-py/constants.py.
 */
#include "models/bind.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { ONE, DIM, HIDDEN, Q, KV, VOCAB } extent;
typedef enum { ALWAYS, UNTIED, QKV_BIAS, OUT_BIAS } when;

static const struct {
    const char *name[MD_NAMINGS];
    bool in_layer;
    md_kind kind;
    extent rows, cols;
    bool is_rotated;
    when when;
} parts[] = {
    {{"embed.weight", "tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight"},
     false,
     MD_MATRIX,
     VOCAB,
     DIM,
     false,
     ALWAYS},
    {{"attn.norm.weight", "attention_norm.weight", "input_layernorm.weight", "attn_norm.weight"},
     true,
     MD_NORM,
     ONE,
     DIM,
     false,
     ALWAYS},
    {{"attn.wq.weight", "attention.wq.weight", "self_attn.q_proj.weight", "attn_q.weight"},
     true,
     MD_MATRIX,
     Q,
     DIM,
     true,
     ALWAYS},
    {{"attn.wq.bias", NULL, "self_attn.q_proj.bias", "attn_q.bias"}, true, MD_BIAS, ONE, Q, true, QKV_BIAS},
    {{"attn.wk.weight", "attention.wk.weight", "self_attn.k_proj.weight", "attn_k.weight"},
     true,
     MD_MATRIX,
     KV,
     DIM,
     true,
     ALWAYS},
    {{"attn.wk.bias", NULL, "self_attn.k_proj.bias", "attn_k.bias"}, true, MD_BIAS, ONE, KV, true, QKV_BIAS},
    {{"attn.wv.weight", "attention.wv.weight", "self_attn.v_proj.weight", "attn_v.weight"},
     true,
     MD_MATRIX,
     KV,
     DIM,
     false,
     ALWAYS},
    {{"attn.wv.bias", NULL, "self_attn.v_proj.bias", "attn_v.bias"}, true, MD_BIAS, ONE, KV, false, QKV_BIAS},
    {{"attn.wo.weight", "attention.wo.weight", "self_attn.o_proj.weight", "attn_output.weight"},
     true,
     MD_MATRIX,
     DIM,
     Q,
     false,
     ALWAYS},
    {{"attn.wo.bias", NULL, "self_attn.o_proj.bias", "attn_output.bias"}, true, MD_BIAS, ONE, DIM, false, OUT_BIAS},
    {{"mlp.norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"},
     true,
     MD_NORM,
     ONE,
     DIM,
     false,
     ALWAYS},
    {{"mlp.gate.weight", "feed_forward.w1.weight", "mlp.gate_proj.weight", "ffn_gate.weight"},
     true,
     MD_MATRIX,
     HIDDEN,
     DIM,
     false,
     ALWAYS},
    {{"mlp.up.weight", "feed_forward.w3.weight", "mlp.up_proj.weight", "ffn_up.weight"},
     true,
     MD_MATRIX,
     HIDDEN,
     DIM,
     false,
     ALWAYS},
    {{"mlp.down.weight", "feed_forward.w2.weight", "mlp.down_proj.weight", "ffn_down.weight"},
     true,
     MD_MATRIX,
     DIM,
     HIDDEN,
     false,
     ALWAYS},
    {{"norm.weight", "norm.weight", "model.norm.weight", "output_norm.weight"},
     false,
     MD_NORM,
     ONE,
     DIM,
     false,
     ALWAYS},
    {{"head.weight", "output.weight", "lm_head.weight", "output.weight"}, false, MD_MATRIX, VOCAB, DIM, false, UNTIED},
};
enum { N_PARTS = sizeof parts / sizeof *parts };
static const char *const layer_prefix[MD_NAMINGS] = {"layers.", "layers.", "model.layers.", "blk."};

static bool has(const md_config *c, when w)
{
    return w == ALWAYS || (w == UNTIED && !c->tied) || (w == QKV_BIAS && c->qkv_bias) || (w == OUT_BIAS && c->out_bias);
}

static void add(md_tensor *list, int64_t *n, const md_config *c, int part, int64_t layer)
{
    const int64_t size[] = {1, c->dim, c->hidden, c->heads * c->head_size, c->kv_heads * c->head_size, c->vocab};
    list[(*n)++] = (md_tensor){.name = parts[part].name,
                               .kind = parts[part].kind,
                               .layer = layer,
                               .rows = size[parts[part].rows],
                               .cols = size[parts[part].cols],
                               .head_size = parts[part].is_rotated ? c->head_size : 0};
}

/* First the parts before the layers, then layer by layer, then the rest. */
status md_tensors_new(md_tensor **t, int64_t *n, const md_config *c)
{
    *n = 0;
    *t = nb_alloc((size_t)(c->layers + 1) * N_PARTS, sizeof **t);
    if (!*t)
        return NB_NOMEM;
    int first = 0, last = N_PARTS;
    while (!parts[first].in_layer)
        add(*t, n, c, first++, -1);
    while (!parts[last - 1].in_layer)
        last--;
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (int i = first; i < last; i++)
            if (has(c, parts[i].when))
                add(*t, n, c, i, layer);
    for (int i = last; i < N_PARTS; i++)
        if (has(c, parts[i].when))
            add(*t, n, c, i, -1);
    return NB_OK;
}

bool md_tensor_name(char text[MD_NAME], const md_tensor *t, md_naming naming)
{
    if (!t->name[naming])
        return false;
    if (t->layer >= 0)
        (void)snprintf(text, MD_NAME, "%s%lld.%s", layer_prefix[naming], (long long)t->layer, t->name[naming]);
    else
        (void)snprintf(text, MD_NAME, "%s", t->name[naming]);
    return true;
}

bool md_gguf_name(char *text, size_t bytes, const char *name)
{
    const char *prefix = layer_prefix[MD_NIBBLE];
    const bool in_layer = strncmp(name, prefix, strlen(prefix)) == 0;
    char *rest = NULL;
    const long long layer = in_layer ? strtoll(name + strlen(prefix), &rest, 10) : -1;
    if (in_layer && *rest != '.')
        return false;
    for (int i = 0; i < N_PARTS; i++)
        if (parts[i].in_layer == in_layer && strcmp(parts[i].name[MD_NIBBLE], in_layer ? rest + 1 : name) == 0) {
            const md_tensor t = {.name = parts[i].name, .layer = layer};
            char full[MD_NAME];
            return md_tensor_name(full, &t, MD_GGUF) && snprintf(text, bytes, "%s", full) < (int)bytes;
        }
    return false;
}

int64_t md_tensor_count(const md_tensor *t)
{
    return t->rows * t->cols;
}

int md_tensor_dim(int64_t dim[2], const md_tensor *t)
{
    dim[0] = t->kind == MD_MATRIX ? t->rows : t->cols;
    dim[1] = t->cols;
    return t->kind == MD_MATRIX ? 2 : 1;
}

int64_t md_paired_row(int64_t row, int64_t head_size, kn_rope_pairing to, kn_rope_pairing from)
{
    if (to == from || head_size == 0)
        return row;
    int64_t i = row % head_size, half = head_size / 2;
    return row - i + (to == KN_ROPE_INTERLEAVED ? i / 2 + i % 2 * half : 2 * (i % half) + i / half);
}

/* ---- values ------------------------------------------------------------------------------- */

status md_values_of(md_values *v, const md_model *m, const md_tensor *t)
{
    char name[MD_NAME];
    *v = (md_values){0};
    (void)md_tensor_name(name, t, MD_NIBBLE);
    fq_site *site = fq_site_find(&m->sites, name);
    if (site && site->spec.grid.bits) {
        v->codes = fq_site_codes(site, &m->params);
        return v->codes ? NB_OK : nb_fail_in(NB_NOMEM, "%s", name);
    }
    const ag_param *p = ag_param_find(&m->params, name);
    if (!p || p->count != md_tensor_count(t))
        return nb_fail(NB_USAGE, "%s: the model has no such tensor of %lld x %lld", name, (long long)t->rows,
                       (long long)t->cols);
    v->x = p->x;
    v->stored = site && fq_is_stored_float(&site->spec) ? &site->spec.grid : NULL;
    return NB_OK;
}

void md_values_row(real *dst, const md_values *v, const md_tensor *t, int64_t row)
{
    if (v->codes)
        kn_decode(dst, v->codes, row, 1);
    else
        memcpy(dst, v->x + row * t->cols, (size_t)t->cols * sizeof *dst);
    for (int64_t j = 0; v->stored && j < t->cols; j++)
        dst[j] = kn_store(v->stored, dst[j]);
}

/* ---- reading ------------------------------------------------------------------------------ */

enum { FULL_NAME = 2 * MD_NAME };
static bool full_name(char text[FULL_NAME], const md_tensor *t, md_naming naming, const char *prefix)
{
    char name[MD_NAME];
    if (!md_tensor_name(name, t, naming))
        return false;
    (void)snprintf(text, FULL_NAME, "%s%s", prefix, name);
    return true;
}

status md_check_arrays(const fm_arrays *a, const md_config *c, md_naming naming, const char *prefix)
{
    const int64_t per_layer = 9; /* at least: a list of tensors never is much longer than the file's */
    char name[FULL_NAME];
    md_tensor *t;
    int64_t n, dim[2];
    if (c->layers > a->n / per_layer)
        return nb_fail(NB_FORMAT, "%s: %lld arrays are too few for %lld layers", a->path, (long long)a->n,
                       (long long)c->layers);
    TRY(md_tensors_new(&t, &n, c));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        const fm_array *found;
        int n_dim = md_tensor_dim(dim, &t[i]);
        if (full_name(name, &t[i], naming, prefix))
            s = fm_need(&found, a, name, n_dim, dim);
        else
            s = nb_fail(NB_UNSUPPORTED, "%s: the format has no place for %s", a->path, t[i].name[MD_NIBBLE]);
    }
    free(t);
    return s;
}

status md_check_ctx(const md_config *c, const fm_arrays *a)
{
    const int64_t always = 1 << 22; /* elements: tables of 16 MiB; beyond that 16 bytes of table per byte of file */
    size_t bytes = 0;
    for (int64_t i = 0; i < a->n; i++)
        bytes += a->array[i].bytes;
    if (c->ctx * c->head_size > always && (uint64_t)(c->ctx * c->head_size / 4) > bytes)
        return nb_fail(NB_FORMAT, "%s: a context of %lld is out of proportion to %zu bytes of weights", a->path,
                       (long long)c->ctx, bytes);
    return NB_OK;
}

status md_read_floats(real *dst, const fm_array *a)
{
    const int64_t n = fm_count(a);
    _Static_assert(sizeof(real) == sizeof(float), "models are built in single precision");
    enum { PIECE = 1 << 15 }; /* whole blocks of any type */
    status s = fm_to_float(dst, a, 0, 0);
    int64_t bad = n;
#pragma omp parallel for schedule(static) reduction(min : bad) if (n > 4 * PIECE)
    for (int64_t from = 0; from < (s == NB_OK ? n : 0); from += PIECE) {
        const int64_t end = from + PIECE < n ? from + PIECE : n;
        bad = fm_to_float(dst + from, a, from, end - from) == NB_OK ? bad : -1;
        for (int64_t i = from; i < end && i < bad; i++)
            if (!isfinite(dst[i]))
                bad = i;
    }
    if (s == NB_OK && bad < 0)
        s = fm_to_float(dst, a, 0, n); /* says why, in this thread */
    if (s == NB_OK && bad < n)
        s = nb_fail(NB_FORMAT, "%s: element %lld is %g", a->name, (long long)bad, (double)dst[bad]);
    return s;
}

static status load_tensor(md_model *m, const fm_arrays *a, const md_tensor *t, md_naming naming, const char *prefix)
{
    char name[MD_NAME], full[FULL_NAME];
    const fm_array *x = full_name(full, t, naming, prefix) ? fm_find(a, full) : NULL;
    (void)md_tensor_name(name, t, MD_NIBBLE);
    ag_param *p = ag_param_find(&m->params, name);
    if (!x || !p || fm_count(x) != p->count)
        return nb_fail(NB_FORMAT, "%s is missing, or not of %lld elements", name, (long long)md_tensor_count(t));
    return md_read_floats(p->x, x);
}

status md_load_weights(md_model *m, const fm_arrays *a, md_naming naming, const char *prefix)
{
    md_tensor *t;
    int64_t n;
    TRY(md_tensors_new(&t, &n, &m->config));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++)
        s = load_tensor(m, a, &t[i], naming, prefix);
    free(t);
    m->params.version++;
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", a->path);
}

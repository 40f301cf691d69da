/* tensors.c - the tensors of each architecture: names in four namings, shapes, which rows the rotation pairs, what a file keeps
 * in one array. Sources: llama2.c model.py; transformers modeling_llama.py, modeling_gpt2.py; llama.cpp gguf-py/constants.py.
 */
#include "models/bind.h"
#include <stdlib.h>
#include <string.h>

typedef enum { ONE, DIM, HIDDEN, Q, KV, CTX, VOCAB } extent;
typedef enum { ALWAYS, UNTIED, QKV_BIAS, OUT_BIAS } when;
enum { OUTSIDE = 0, LAYER = 1, ROTATED = 2 /* rows are rotated in pairs */, CONV1D = 4 /* Hugging Face has it transposed */ };

typedef struct {
    const char *name[MD_NAMINGS]; /* nibble, llama2.c, Hugging Face, GGUF */
    int flags;
    md_kind kind;
    extent rows, cols;
    when when;
    int part; /* 1 to 3: third of the array that Hugging Face and GGUF have; 0: all of it */
} entry;

typedef struct {
    const char *layer[MD_NAMINGS]; /* prefix of layer tensors */
    const entry *row;
    int n;
} family;

static const entry llama_rows[] = {
    {{"embed.weight", "tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight"}, OUTSIDE, MD_MATRIX, VOCAB, DIM, ALWAYS, 0},
    {{"attn.norm.weight", "attention_norm.weight", "input_layernorm.weight", "attn_norm.weight"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"attn.wq.weight", "attention.wq.weight", "self_attn.q_proj.weight", "attn_q.weight"}, LAYER | ROTATED, MD_MATRIX, Q, DIM, ALWAYS, 0},
    {{"attn.wq.bias", NULL, "self_attn.q_proj.bias", "attn_q.bias"}, LAYER | ROTATED, MD_BIAS, ONE, Q, QKV_BIAS, 0},
    {{"attn.wk.weight", "attention.wk.weight", "self_attn.k_proj.weight", "attn_k.weight"}, LAYER | ROTATED, MD_MATRIX, KV, DIM, ALWAYS, 0},
    {{"attn.wk.bias", NULL, "self_attn.k_proj.bias", "attn_k.bias"}, LAYER | ROTATED, MD_BIAS, ONE, KV, QKV_BIAS, 0},
    {{"attn.wv.weight", "attention.wv.weight", "self_attn.v_proj.weight", "attn_v.weight"}, LAYER, MD_MATRIX, KV, DIM, ALWAYS, 0},
    {{"attn.wv.bias", NULL, "self_attn.v_proj.bias", "attn_v.bias"}, LAYER, MD_BIAS, ONE, KV, QKV_BIAS, 0},
    {{"attn.wo.weight", "attention.wo.weight", "self_attn.o_proj.weight", "attn_output.weight"}, LAYER, MD_MATRIX, DIM, Q, ALWAYS, 0},
    {{"attn.wo.bias", NULL, "self_attn.o_proj.bias", "attn_output.bias"}, LAYER, MD_BIAS, ONE, DIM, OUT_BIAS, 0},
    {{"mlp.norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"mlp.gate.weight", "feed_forward.w1.weight", "mlp.gate_proj.weight", "ffn_gate.weight"}, LAYER, MD_MATRIX, HIDDEN, DIM, ALWAYS, 0},
    {{"mlp.up.weight", "feed_forward.w3.weight", "mlp.up_proj.weight", "ffn_up.weight"}, LAYER, MD_MATRIX, HIDDEN, DIM, ALWAYS, 0},
    {{"mlp.down.weight", "feed_forward.w2.weight", "mlp.down_proj.weight", "ffn_down.weight"}, LAYER, MD_MATRIX, DIM, HIDDEN, ALWAYS, 0},
    {{"norm.weight", "norm.weight", "model.norm.weight", "output_norm.weight"}, OUTSIDE, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"head.weight", "output.weight", "lm_head.weight", "output.weight"}, OUTSIDE, MD_MATRIX, VOCAB, DIM, UNTIED, 0},
};

static const entry gpt2_rows[] = {
    {{"embed.weight", NULL, "transformer.wte.weight", "token_embd.weight"}, OUTSIDE, MD_MATRIX, VOCAB, DIM, ALWAYS, 0},
    {{"position.weight", NULL, "transformer.wpe.weight", "position_embd.weight"}, OUTSIDE, MD_MATRIX, CTX, DIM, ALWAYS, 0},
    {{"attn.norm.weight", NULL, "ln_1.weight", "attn_norm.weight"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"attn.norm.bias", NULL, "ln_1.bias", "attn_norm.bias"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"attn.wq.weight", NULL, "attn.c_attn.weight", "attn_qkv.weight"}, LAYER | CONV1D, MD_MATRIX, Q, DIM, ALWAYS, 1},
    {{"attn.wk.weight", NULL, "attn.c_attn.weight", "attn_qkv.weight"}, LAYER | CONV1D, MD_MATRIX, Q, DIM, ALWAYS, 2},
    {{"attn.wv.weight", NULL, "attn.c_attn.weight", "attn_qkv.weight"}, LAYER | CONV1D, MD_MATRIX, Q, DIM, ALWAYS, 3},
    {{"attn.wq.bias", NULL, "attn.c_attn.bias", "attn_qkv.bias"}, LAYER, MD_BIAS, ONE, Q, ALWAYS, 1},
    {{"attn.wk.bias", NULL, "attn.c_attn.bias", "attn_qkv.bias"}, LAYER, MD_BIAS, ONE, Q, ALWAYS, 2},
    {{"attn.wv.bias", NULL, "attn.c_attn.bias", "attn_qkv.bias"}, LAYER, MD_BIAS, ONE, Q, ALWAYS, 3},
    {{"attn.wo.weight", NULL, "attn.c_proj.weight", "attn_output.weight"}, LAYER | CONV1D, MD_MATRIX, DIM, Q, ALWAYS, 0},
    {{"attn.wo.bias", NULL, "attn.c_proj.bias", "attn_output.bias"}, LAYER, MD_BIAS, ONE, DIM, ALWAYS, 0},
    {{"mlp.norm.weight", NULL, "ln_2.weight", "ffn_norm.weight"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"mlp.norm.bias", NULL, "ln_2.bias", "ffn_norm.bias"}, LAYER, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"mlp.up.weight", NULL, "mlp.c_fc.weight", "ffn_up.weight"}, LAYER | CONV1D, MD_MATRIX, HIDDEN, DIM, ALWAYS, 0},
    {{"mlp.up.bias", NULL, "mlp.c_fc.bias", "ffn_up.bias"}, LAYER, MD_BIAS, ONE, HIDDEN, ALWAYS, 0},
    {{"mlp.down.weight", NULL, "mlp.c_proj.weight", "ffn_down.weight"}, LAYER | CONV1D, MD_MATRIX, DIM, HIDDEN, ALWAYS, 0},
    {{"mlp.down.bias", NULL, "mlp.c_proj.bias", "ffn_down.bias"}, LAYER, MD_BIAS, ONE, DIM, ALWAYS, 0},
    {{"norm.weight", NULL, "transformer.ln_f.weight", "output_norm.weight"}, OUTSIDE, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"norm.bias", NULL, "transformer.ln_f.bias", "output_norm.bias"}, OUTSIDE, MD_NORM, ONE, DIM, ALWAYS, 0},
    {{"head.weight", NULL, "lm_head.weight", "output.weight"}, OUTSIDE, MD_MATRIX, VOCAB, DIM, UNTIED, 0},
};

static const family llama = {{"layers.", "layers.", "model.layers.", "blk."}, llama_rows, sizeof llama_rows / sizeof *llama_rows};
static const family gpt2 = {{"layers.", NULL, "transformer.h.", "blk."}, gpt2_rows, sizeof gpt2_rows / sizeof *gpt2_rows};

static const family *family_of(const md_config *c)
{
    return md_is_gpt2(c) ? &gpt2 : &llama;
}

static bool has(const md_config *c, when w)
{
    return w == ALWAYS || (w == UNTIED && !c->tied) || (w == QKV_BIAS && c->qkv_bias) || (w == OUT_BIAS && c->out_bias);
}

static md_tensor tensor_of(const md_config *c, const family *f, const entry *r, int64_t layer)
{
    const int64_t size[] = {1, c->dim, c->hidden, c->heads * c->head_size, c->kv_heads * c->head_size, c->ctx, c->vocab};
    return (md_tensor){.name = r->name,
                       .prefix = f->layer,
                       .kind = r->kind,
                       .layer = layer,
                       .rows = size[r->rows],
                       .cols = size[r->cols],
                       .head_size = r->flags & ROTATED ? c->head_size : 0,
                       .part = r->part ? r->part - 1 : 0,
                       .parts = r->part ? 3 : 1,
                       .is_conv1d = (r->flags & CONV1D) != 0};
}

/* First those before the layers, then layer by layer, then the rest. */
status md_tensors_new(md_tensor **t, int64_t *n, const md_config *c)
{
    const family *f = family_of(c);
    int first = 0, last = f->n;
    *n = 0;
    *t = nb_alloc((size_t)(c->layers + 1) * (size_t)f->n, sizeof **t);
    if (!*t)
        return NB_NOMEM;
    while (!(f->row[first].flags & LAYER))
        (*t)[(*n)++] = tensor_of(c, f, &f->row[first++], -1);
    while (!(f->row[last - 1].flags & LAYER))
        last--;
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (int i = first; i < last; i++)
            if (has(c, f->row[i].when))
                (*t)[(*n)++] = tensor_of(c, f, &f->row[i], layer);
    for (int i = last; i < f->n; i++)
        if (has(c, f->row[i].when))
            (*t)[(*n)++] = tensor_of(c, f, &f->row[i], -1);
    return NB_OK;
}

bool md_tensor_name(char text[MD_NAME], const md_tensor *t, md_naming naming)
{
    if (!t->name[naming])
        return false;
    if (t->layer >= 0)
        (void)snprintf(text, MD_NAME, "%s%lld.%s", t->prefix[naming], (long long)t->layer, t->name[naming]);
    else
        (void)snprintf(text, MD_NAME, "%s", t->name[naming]);
    return true;
}

bool md_gguf_name(char *text, size_t bytes, const md_config *c, const char *name)
{
    const family *f = family_of(c);
    const char *prefix = f->layer[MD_NIBBLE];
    const bool in_layer = strncmp(name, prefix, strlen(prefix)) == 0;
    char *rest = NULL;
    const long long layer = in_layer ? strtoll(name + strlen(prefix), &rest, 10) : -1;
    if (in_layer && *rest != '.')
        return false;
    for (int i = 0; i < f->n; i++)
        if (((f->row[i].flags & LAYER) != 0) == in_layer && strcmp(f->row[i].name[MD_NIBBLE], in_layer ? rest + 1 : name) == 0) {
            const md_tensor t = tensor_of(c, f, &f->row[i], layer);
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

int64_t md_tensor_parts(const md_tensor *t, md_naming naming)
{
    return naming == MD_HF || naming == MD_GGUF ? t->parts : 1;
}

bool md_is_transposed(const md_tensor *t, md_naming naming)
{
    return naming == MD_HF && t->is_conv1d;
}

int md_array_dim(int64_t dim[2], const md_tensor *t, md_naming naming)
{
    const int n_dim = md_tensor_dim(dim, t);
    dim[0] *= md_tensor_parts(t, naming);
    if (md_is_transposed(t, naming)) {
        const int64_t out = dim[0];
        dim[0] = dim[1];
        dim[1] = out;
    }
    return n_dim;
}

int64_t md_paired_row(int64_t row, int64_t head_size, kn_rope_pairing to, kn_rope_pairing from)
{
    if (to == from || head_size == 0)
        return row;
    int64_t i = row % head_size, half = head_size / 2;
    return row - i + (to == KN_ROPE_INTERLEAVED ? i / 2 + i % 2 * half : 2 * (i % half) + i / half);
}

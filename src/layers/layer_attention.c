/* layer_attention.c - causal attention with grouped heads, and rotary positions where there are tables of them.
 *   q = rope(wq x), k = rope(wk x), v = wv x;  y = wo softmax(q k' / sqrt(D)) v      (Vaswani et al. 2017; Ainslie et al. 2023)
 * K is quantized after the rotation, or before it where its spec says so (LLM-QAT's scheme); less its mean b where its spec says offset:
 * q.(k - b) differs from q.k by the same for every key, so the softmax is that of k.
 * With a Hadamard matrix H, q H and k H take the place of q and k after the rotation: (q H)(k H)' = q k' (R3, Liu et al. 2024); keys that are quantized before it go without.
 */
#include "layers/layers.h"
#include <stdio.h>

static status site(fq_site **s, ly_build *build, const char *name, const char *what, int64_t cols, int64_t head_size)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    *s = fq_site_new(build->sites, build->recipe, full, NULL, NULL, 0, cols, head_size);
    return *s ? NB_OK : NB_USAGE;
}

status ly_attention_init(ly_attention *l, ly_build *build, const char *name, const ly_attention_config *c)
{
    int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    char full[96];
    *l = (ly_attention){.heads = c->heads, .kv_heads = c->kv_heads, .head_size = c->head_size, .pairing = c->pairing, .cos = c->cos, .sin = c->sin};
    TRY(site(&l->input, build, name, "input", c->channels, 0));
    snprintf(full, sizeof full, "%s.wq", name);
    TRY(ly_linear_init(&l->wq, build, full, NULL, c->channels, q, c->qkv_bias, c->deviation));
    snprintf(full, sizeof full, "%s.wk", name);
    TRY(ly_linear_init(&l->wk, build, full, NULL, c->channels, kv, c->qkv_bias, c->deviation));
    snprintf(full, sizeof full, "%s.wv", name);
    TRY(ly_linear_init(&l->wv, build, full, NULL, c->channels, kv, c->qkv_bias, c->deviation));
    TRY(site(&l->q, build, name, "q", q, c->head_size));
    TRY(site(&l->k, build, name, "k", kv, c->head_size));
    TRY(site(&l->v, build, name, "v", kv, c->head_size));
    if (l->k->spec.grid.bits && l->k->spec.offset) {
        snprintf(full, sizeof full, "%s.k.offset", name);
        l->k_offset = ag_param_new(build->params, full, AG_BIAS, 1, &kv);
        if (!l->k_offset)
            return NB_NOMEM;
        l->k_offset->frozen = true;
    }
    TRY(site(&l->probs, build, name, "probs", 1, 0));
    TRY(site(&l->out_input, build, name, "out.input", q, 0));
    snprintf(full, sizeof full, "%s.wo", name);
    return ly_linear_init(&l->wo, build, full, NULL, q, c->channels, c->out_bias, c->out_deviation);
}

ag_tensor *ly_attention_forward(ag_tape *t, const ly_attention *l, ag_tensor *x, const int32_t *lengths)
{
    ag_tensor *a = fq_apply(t, l->input, x);
    if (a != x)
        ag_done(x);
    ag_tensor *q = ly_linear_forward(t, &l->wq, a), *k = ly_linear_forward(t, &l->wk, a);
    ag_tensor *v = ly_linear_forward(t, &l->wv, a);
    ag_done(a);
    bool early = l->k->spec.grid.bits && l->k->spec.before_rotation;
    if (early)
        k = fq_apply(t, l->k, k);
    if (l->cos) {
        ag_tensor *rq = ag_rope(t, q, l->cos, l->sin, l->heads, l->pairing);
        ag_tensor *rk = ag_rope(t, k, l->cos, l->sin, l->kv_heads, l->pairing);
        ag_done(q);
        ag_done(k);
        q = rq;
        k = rk;
    }
    if (l->turn && !early) {
        ag_tensor *hq = ag_hadamard(t, q, l->turn), *hk = ag_hadamard(t, k, l->turn);
        ag_done(q);
        ag_done(k);
        q = hq;
        k = hk;
    }
    if (l->k_offset) {
        ag_tensor *centred = ag_sub(t, k, ag_use(t, l->k_offset));
        ag_done(k);
        k = centred;
    }
    ag_tensor *sq = fq_apply(t, l->q, q), *sk = early ? k : fq_apply(t, l->k, k), *sv = fq_apply(t, l->v, v);
    if (sq != q)
        ag_done(q);
    if (sk != k)
        ag_done(k);
    if (sv != v)
        ag_done(v);
    ag_tensor *o = ag_attention(t, sq, sk, sv, l->heads, l->kv_heads, lengths, l->probs->spec.grid.bits != 0);
    ag_done(sq);
    ag_done(sk);
    ag_done(sv);
    ag_tensor *so = fq_apply(t, l->out_input, o);
    if (so != o)
        ag_done(o);
    ag_tensor *y = ly_linear_forward(t, &l->wo, so);
    ag_done(so);
    return y;
}

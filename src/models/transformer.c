/* transformer.c - decoders on the tape.
 *   x = embed[id];  per layer: x += attn(norm(x)); x += mlp(norm(x));  logits = norm(x) head'
 * LLaMA: RMSNorm, rotary positions, SwiGLU. GPT-2: x = embed[id] + position[t], LayerNorm, GELU, biases everywhere.
 */
#include "models/bind.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status activation_site(md_model *m, fq_site **s, const char *name, int64_t cols)
{
    *s = fq_site_new(&m->sites, &m->recipe, name, NULL, NULL, 0, cols, 0);
    return *s ? NB_OK : NB_USAGE;
}

static status build_block(md_model *m, ly_build *build, int64_t layer)
{
    const md_config *c = &m->config;
    md_block *b = &m->block[layer];
    const bool gpt2 = md_is_gpt2(c);
    const double out = 0.02 / sqrt(2.0 * (double)c->layers);
    ly_attention_config a = {.channels = c->dim, .heads = c->heads, .kv_heads = c->kv_heads, .head_size = c->head_size,
                             .qkv_bias = c->qkv_bias, .out_bias = c->out_bias, .pairing = c->pairing,
                             .cos = m->cos, .sin = m->sin, .deviation = 0.02, .out_deviation = out};
    char name[64];
    snprintf(name, sizeof name, "layers.%lld.attn.norm", (long long)layer);
    TRY(ly_norm_init(&b->attn_norm, build, name, c->dim, gpt2, c->norm_eps));
    snprintf(name, sizeof name, "layers.%lld.attn", (long long)layer);
    TRY(ly_attention_init(&b->attn, build, name, &a));
    b->attn.turn = m->turn_head;
    snprintf(name, sizeof name, "layers.%lld.attn.residual", (long long)layer);
    TRY(activation_site(m, &b->attn_residual, name, c->dim));
    snprintf(name, sizeof name, "layers.%lld.mlp.norm", (long long)layer);
    TRY(ly_norm_init(&b->mlp_norm, build, name, c->dim, gpt2, c->norm_eps));
    snprintf(name, sizeof name, "layers.%lld.mlp", (long long)layer);
    TRY(ly_mlp_init(&b->mlp, build, name, gpt2 ? LY_GELU : LY_SWIGLU, c->dim, c->hidden, 0.02, out));
    b->mlp.turn = m->turn_hidden;
    snprintf(name, sizeof name, "layers.%lld.mlp.residual", (long long)layer);
    return activation_site(m, &b->mlp_residual, name, c->dim);
}

/* Factor by which llama3's scaling divides each frequency (llama.cpp conversion/llama.py, rope_freqs). */
void md_rope_factors(real *factor, const md_config *c)
{
    for (int64_t i = 0; i < c->head_size / 2; i++) {
        double wavelength = 6.283185307179586 * pow(c->rope_theta, 2.0 * (double)i / (double)c->head_size);
        double low = c->rope_ctx / c->rope_low, high = c->rope_ctx / c->rope_high;
        double s = (c->rope_ctx / wavelength - c->rope_low) / (c->rope_high - c->rope_low);
        factor[i] = (real)(wavelength < high ? 1 : wavelength > low ? c->rope_factor : 1 / ((1 - s) / c->rope_factor + s));
    }
}

static status rotation(md_model *m)
{
    const md_config *c = &m->config;
    size_t n = (size_t)c->ctx * (size_t)(c->head_size / 2);
    m->cos = nb_alloc(n, sizeof(real));
    m->sin = nb_alloc(n, sizeof(real));
    real *factor = nb_alloc((size_t)c->head_size, sizeof(real));
    if (m->cos && m->sin && factor) {
        if (c->rope_factor != 0)
            md_rope_factors(factor, c);
        kn_rope_table(m->cos, m->sin, c->ctx, c->head_size, c->rope_theta, c->rope_factor != 0 ? factor : NULL);
    }
    free(factor);
    return m->cos && m->sin && factor ? NB_OK : NB_NOMEM;
}

static status copy_recipe(fq_recipe *to, const fq_recipe *from)
{
    *to = (fq_recipe){0};
    if (!from)
        return NB_OK;
    *to = *from;
    to->rule = nb_alloc((size_t)from->n, sizeof *to->rule);
    if (!to->rule)
        return NB_NOMEM;
    if (from->n)
        memcpy(to->rule, from->rule, (size_t)from->n * sizeof *to->rule);
    return NB_OK;
}

static status build(md_model *m, uint64_t seed, bool codes_only)
{
    const md_config *c = &m->config;
    ly_build b = {&m->params, &m->sites, &m->recipe, seed, codes_only};
    ly_linear embed; /* an embedding is a linear's weight that is looked up */
    m->sites.params = &m->params;
    m->folded = codes_only;
    if (!md_is_gpt2(c))
        TRY(rotation(m));
    if (c->hadamard) {
        TRY(kn_hadamard_new(&m->turn_head, c->head_size));
        TRY(kn_hadamard_new(&m->turn_hidden, c->hidden));
    }
    m->block = nb_alloc_zeroed((size_t)c->layers, sizeof *m->block);
    if (!m->block)
        return NB_NOMEM;
    TRY(ly_linear_init(&embed, &b, "embed", c->tied ? "head.weight" : NULL, c->dim, c->vocab, false, 0.02));
    m->embed = embed.w;
    m->embed_site = embed.w_site;
    if (md_is_gpt2(c))
        TRY(ly_linear_init(&m->position, &b, "position", NULL, c->dim, c->ctx, false, 0.02));
    for (int64_t i = 0; i < c->layers; i++)
        TRY(build_block(m, &b, i));
    TRY(ly_norm_init(&m->norm, &b, "norm", c->dim, md_is_gpt2(c), c->norm_eps));
    TRY(activation_site(m, &m->head_input, "head.input", c->dim));
    if (c->tied)
        m->head = (ly_linear){.in = c->dim, .out = c->vocab, .w = m->embed, .w_site = m->embed_site};
    else
        TRY(ly_linear_init(&m->head, &b, "head", NULL, c->dim, c->vocab, false, 0.02));
    return NB_OK;
}

status md_build(md_model *m, const md_config *c, const fq_recipe *recipe, uint64_t seed, bool codes_only)
{
    *m = (md_model){.config = *c};
    TRY(md_config_check(c));
    status s = copy_recipe(&m->recipe, recipe);
    if (s == NB_OK)
        s = build(m, seed, codes_only);
    if (s != NB_OK)
        md_free(m);
    return s;
}

void md_free(md_model *m)
{
    fq_sites_free(&m->sites);
    ag_params_free(&m->params);
    fq_recipe_free(&m->recipe);
    fm_tokenizer_free(&m->tokenizer);
    free(m->gguf);
    free(m->block);
    kn_hadamard_free(m->turn_head);
    kn_hadamard_free(m->turn_hidden);
    free(m->cos);
    free(m->sin);
    *m = (md_model){0};
}

/* ---- forward ------------------------------------------------------------------------------ */

typedef struct {
    const md_block *block;
    const int32_t *lengths;
} block_argument;

static ag_tensor *residual(ag_tape *t, ag_tensor *x, ag_tensor *y, fq_site *site)
{
    ag_tensor *sum = ag_add(t, x, y);
    ag_done(x);
    ag_done(y);
    ag_tensor *q = fq_apply(t, site, sum);
    if (q != sum)
        ag_done(sum);
    return q;
}

static ag_tensor *block_forward(ag_tape *t, ag_tensor *x, void *argument)
{
    const block_argument *a = argument;
    const md_block *b = a->block;
    x = residual(t, x, ly_attention_forward(t, &b->attn, ly_norm_forward(t, &b->attn_norm, x), a->lengths), b->attn_residual);
    return residual(t, x, ly_mlp_forward(t, &b->mlp, ly_norm_forward(t, &b->mlp_norm, x)), b->mlp_residual);
}

ag_tensor *md_block_forward(ag_tape *t, md_model *m, int64_t layer, ag_tensor *x, const int32_t *lengths)
{
    return x ? block_forward(t, x, &(block_argument){&m->block[layer], lengths}) : NULL;
}

/* x [B, T, C] + position[0 .. T) */
static ag_tensor *add_positions(ag_tape *t, const md_model *m, ag_tensor *x)
{
    const int64_t T = x ? x->dim[1] : 0;
    int32_t *at = x ? ag_take(t, (size_t)T * sizeof *at) : NULL;
    if (!at)
        return NULL;
    for (int64_t i = 0; i < T; i++)
        at[i] = (int32_t)i;
    ag_tensor *p = ag_embedding(t, ly_weight(t, &m->position), at, 1, &T), *sum = ag_add(t, x, p);
    ag_give_back(t, at, (size_t)T * sizeof *at);
    ag_done(x);
    ag_done(p);
    return sum;
}

/* *w: the embedding through its site, also the head of a tied model. */
static ag_tensor *embed(ag_tape *t, md_model *m, const md_input *in, ag_tensor **w)
{
    const md_config *c = &m->config;
    const int64_t dim[2] = {in->B, in->T};
    *w = NULL;
    if (in->T > c->ctx || in->B < 1 || in->T < 1)
        return ag_fail(t, NB_USAGE, "%lld sequences of %lld tokens, the model's context is %lld", (long long)in->B, (long long)in->T, (long long)c->ctx);
    *w = ly_weight(t, &(ly_linear){.w = m->embed, .w_site = m->embed_site});
    ag_tensor *x = ag_embedding(t, *w, in->ids, 2, dim);
    return m->position.w_site ? add_positions(t, m, x) : x;
}

static md_output finish(ag_tape *t, md_model *m, ag_tensor *x, ag_tensor *w)
{
    ag_tensor *h = ly_norm_forward(t, &m->norm, x), *q = fq_apply(t, m->head_input, h);
    ag_done(x);
    if (q != h)
        ag_done(h);
    return (md_output){.x = q, .w = w ? w : ly_weight(t, &m->head)};
}

ag_tensor *md_embed(ag_tape *t, md_model *m, const md_input *in)
{
    ag_tensor *w;
    return embed(t, m, in, &w);
}

md_output md_finish(ag_tape *t, md_model *m, ag_tensor *x)
{
    return finish(t, m, x, NULL);
}

md_output md_forward(ag_tape *t, md_model *m, const md_input *in)
{
    const int64_t n = m->config.layers;
    ag_tensor *w, *x = embed(t, m, in, &w);
    block_argument *argument = x ? ag_take(t, (size_t)n * sizeof *argument) : NULL;
    for (int64_t i = 0; x && argument && i < n; i++) {
        argument[i] = (block_argument){&m->block[i], in->lengths};
        x = in->recompute ? ag_recompute(t, block_forward, x, &argument[i]) : block_forward(t, x, &argument[i]);
        if (in->hidden) {
            in->hidden[i] = x;
            if (x)
                x->kept = true;
        }
    }
    return finish(t, m, x, m->config.tied ? w : NULL);
}

/* scaling.c - the exact pairs of a block, and what is gathered about the tensors between. LLaMA and GPT-2: norms have biases there and so have
 * linears, and GELU stands between up and down. */
#include "ptq/scaling.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void pt_readers(pt_pair pair[PT_PAIRS], md_model *m, int64_t layer)
{
    md_block *b = &m->block[layer];
    ly_attention *a = &b->attn;
    const bool gated = b->mlp.activation == LY_SWIGLU;
    pair[0] = (pt_pair){.input = a->input, .reader = {&a->wq, &a->wk, &a->wv}, .n = 3};
    pair[1] = (pt_pair){.input = a->out_input, .reader = {&a->wo}, .n = 1};
    pair[2] = (pt_pair){.input = b->mlp.input, .reader = {&b->mlp.up, gated ? &b->mlp.gate : NULL}, .n = gated ? 2 : 1};
    pair[3] = (pt_pair){.input = b->mlp.down_input, .reader = {&b->mlp.down}, .n = 1};
    for (int i = 0; i < PT_PAIRS; i++) {
        pair[i].channels = pair[i].reader[0]->in;
        pair[i].repeat = 1;
    }
}

int pt_pairs(pt_pair pair[PT_PAIRS], md_model *m, int64_t layer)
{
    md_block *b = &m->block[layer];
    ly_attention *a = &b->attn;
    pt_readers(pair, m, layer);
    pair[0].norm = &b->attn_norm;
    pair[1].source = &a->wv;
    pair[1].channels = a->kv_heads * a->head_size;
    pair[1].head = a->head_size;
    pair[1].repeat = a->heads / a->kv_heads;
    pair[2].norm = &b->mlp_norm;
    pair[3].source = &b->mlp.up;
    return b->mlp.activation == LY_SWIGLU && !b->mlp.turn ? PT_PAIRS : PT_PAIRS - 1;
}

int64_t pt_pair_channel(const pt_pair *p, int64_t column)
{
    return p->repeat == 1 ? column : column / (p->head * p->repeat) * p->head + column % p->head;
}

static void divide(ag_param *w, const real *s, int64_t channels)
{
    const int64_t each = w ? w->count / channels : 0;
    for (int64_t i = 0; w && i < w->count; i++)
        w->x[i] /= s[i / each];
}

void pt_scale_pair(const pt_pair *p, const real *s)
{
    if (p->source)
        p->source->w_site->started = false;
    divide(p->norm ? p->norm->w : p->source->w, s, p->channels);
    divide(p->norm ? p->norm->b : p->source->b, s, p->channels);
    for (int k = 0; k < p->n; k++) {
        ag_param *w = p->reader[k]->w;
        const int64_t K = p->reader[k]->in;
        p->reader[k]->w_site->started = false;
        for (int64_t i = 0; i < w->count; i++)
            w->x[i] *= s[pt_pair_channel(p, i % K)];
    }
}

void pt_pair_halves(int64_t half[2], const ly_attention *a, int64_t i)
{
    const bool interleaved = a->pairing == KN_ROPE_INTERLEAVED;
    half[0] = interleaved ? 2 * i : i;
    half[1] = interleaved ? 2 * i + 1 : i + a->head_size / 2;
}

static void scale_row(const ly_linear *l, int64_t row, real s)
{
    for (int64_t j = 0; j < l->in; j++)
        l->w->x[row * l->in + j] *= s;
    if (l->b)
        l->b->x[row] *= s;
}

void pt_scale_keys(const ly_attention *a, const real *s)
{
    const int64_t D = a->head_size, repeat = a->heads / a->kv_heads;
    a->wq.w_site->started = a->wk.w_site->started = false;
    for (int64_t g = 0; g < a->kv_heads; g++)
        for (int64_t i = 0; i < D / 2; i++) {
            const real f = s[g * (D / 2) + i];
            int64_t half[2];
            pt_pair_halves(half, a, i);
            for (int e = 0; e < 2; e++) {
                scale_row(&a->wk, g * D + half[e], 1 / f);
                for (int64_t h = g * repeat; h < (g + 1) * repeat; h++)
                    scale_row(&a->wq, h * D + half[e], f);
            }
        }
}

/* ---- statistics --------------------------------------------------------------------------- */

status pt_input_new(pt_input *g, const fq_site *site, bool gram, int64_t most, int64_t expected, kn_precision p)
{
    const size_t C = (size_t)site->cols;
    *g = (pt_input){.site = site->name, .C = site->cols, .most = most, .precision = p};
    g->stride = most > 0 && expected > most ? expected / most : 1;
    g->sum = nb_alloc_zeroed(C, sizeof *g->sum);
    g->magnitude = nb_alloc_zeroed(C, sizeof *g->magnitude);
    g->largest = nb_alloc_zeroed(C, sizeof *g->largest);
    g->gram = gram ? nb_alloc_zeroed(C, C * sizeof *g->gram) : NULL;
    g->sample = most > 0 ? nb_alloc((size_t)most, C * sizeof *g->sample) : NULL;
    if (g->sum && g->magnitude && g->largest && (g->gram || !gram) && (g->sample || most <= 0))
        return NB_OK;
    pt_input_free(g);
    return NB_NOMEM;
}

void pt_input_free(pt_input *g)
{
    free(g->sum);
    free(g->magnitude);
    free(g->largest);
    free(g->gram);
    free(g->sample);
    *g = (pt_input){0};
}

/* One of every `stride` rows, drawn: equal distances would meet the same places of all windows, their first tokens among them. */
static int64_t next_row(const pt_input *g)
{
    return g->sampled * g->stride + (int64_t)(nb_random(1, 1, (uint64_t)g->sampled) % (uint64_t)g->stride);
}

static void add(pt_input *g, const real *x, int64_t M)
{
    enum { COLUMNS = 64 };
    const int64_t C = g->C;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < C; first += COLUMNS)
        for (int64_t m = 0; m < M; m++)
            for (int64_t c = first; c < C && c < first + COLUMNS; c++) {
                const real v = x[m * C + c], size = v < 0 ? -v : v;
                g->sum[c] += (double)v;
                g->magnitude[c] += (double)size;
                g->largest[c] = size > g->largest[c] ? size : g->largest[c];
            }
    if (g->gram)
        kn_gram(g->precision, g->gram, x, M, C, 1);
    for (int64_t m = 0; m < M; m++)
        if (g->sampled < g->most && (int64_t)g->rows + m == next_row(g))
            memcpy(g->sample + g->sampled++ * C, x + m * C, (size_t)C * sizeof *x);
    g->rows += (double)M;
}

void pt_gather(void *inputs, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    pt_inputs *all = inputs;
    (void)out;
    for (int i = 0; i < all->n; i++) {
        const real *x = strcmp(all->input[i].site, site) == 0 && ag_cols(in) == all->input[i].C ? ag_value(in) : NULL;
        if (x)
            add(&all->input[i], x, ag_rows(in));
    }
}

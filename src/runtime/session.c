/* session.c - a model's forward without a tape: the modules of layers.h walked with the kernels of kernels.h.
 *
 * n tokens are n rows [n, C]; rows of one sequence stand together and attend to its cache, one thread per (sequence, kv head).
 */
#include "runtime/runtime.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t row, n, slot, first; /* rows [row, row+n) of the batch are positions first.. of a slot */
} segment;

struct rt_session {
    md_model *model;
    kn_precision precision, cache_floats;
    int64_t slots, ctx;
    kn_cache *cache; /* [layers][slots][kv heads] */
    void *cache_memory;
    size_t cache_bytes;
    int64_t *length; /* [slots] */
    /* buffers for `rows` rows */
    int64_t rows;
    real *x, *h, *q, *k, *v, *o, *gate, *up;
    int32_t *position;
    segment *segment;
    void *codes[4]; /* activation codes: the linear's input, and q, k, v */
    size_t codes_bytes[4];
    real *scratch; /* [threads][scratch_size] */
    int64_t scratch_size;
    int threads;
    real *bias;    /* of a quantized bias, decoded */
};

enum { SHARES = 8 /* of a thread in the units of attention: in a share, caches follow one another */ };

/* An activation as a site leaves it: its codes, or NULL, and its floats, valid where codes is NULL or `decoded`. */
typedef struct {
    real *x;
    kn_codes codes;
    bool coded, decoded;
} operand;

int64_t rt_length(const rt_session *s, int64_t slot)
{
    return s->length[slot];
}

int64_t rt_ctx(const rt_session *s)
{
    return s->ctx;
}

size_t rt_cache_bytes(const rt_session *s)
{
    return s->cache_bytes;
}

static kn_cache *cache_of(const rt_session *s, int64_t layer, int64_t slot)
{
    return &s->cache[(layer * s->slots + slot) * s->model->config.kv_heads];
}

void rt_clear(rt_session *s, int64_t slot)
{
    const md_config *c = &s->model->config;
    s->length[slot] = 0;
    for (int64_t l = 0; l < c->layers; l++)
        for (int64_t g = 0; g < c->kv_heads; g++)
            cache_of(s, l, slot)[g].n = 0;
}

void rt_close(rt_session *s)
{
    if (!s)
        return;
    free(s->cache);
    free(s->cache_memory);
    free(s->length);
    real **const row[] = {&s->x, &s->h, &s->q, &s->k, &s->v, &s->o, &s->gate, &s->up, &s->scratch, &s->bias};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        free(*row[i]);
    for (int i = 0; i < 4; i++)
        free(s->codes[i]);
    free(s->position);
    free(s->segment);
    free(s);
}

/* The grid of cached keys: floats where K is quantized before the rotation (the rotated value is no code). */
static kn_grid key_grid(const ly_attention *a)
{
    return a->k->spec.before_rotation ? (kn_grid){0} : a->k->spec.grid;
}

static status open_caches(rt_session *s)
{
    const md_config *c = &s->model->config;
    int64_t n = c->layers * s->slots * c->kv_heads, capacity = (s->ctx + 63) / 64 * 64;
    s->cache = nb_alloc_zeroed((size_t)n, sizeof *s->cache);
    s->length = nb_alloc_zeroed((size_t)s->slots, sizeof *s->length);
    if (!s->cache || !s->length)
        return NB_NOMEM;
    for (int64_t l = 0; l < c->layers; l++) {
        const ly_attention *a = &s->model->block[l].attn;
        kn_grid k = key_grid(a);
        s->cache_bytes += kn_cache_bytes(&k, &a->v->spec.grid, s->cache_floats, c->head_size, capacity) * (size_t)(s->slots * c->kv_heads);
    }
    s->cache_memory = nb_alloc_aligned_zeroed(s->cache_bytes, 1);
    if (!s->cache_memory)
        return NB_NOMEM;
    char *at = s->cache_memory;
    for (int64_t i = 0; i < n; i++) {
        const ly_attention *a = &s->model->block[i / (s->slots * c->kv_heads)].attn;
        kn_grid k = key_grid(a);
        kn_cache_lay(&s->cache[i], &k, &a->v->spec.grid, s->cache_floats, c->head_size, capacity, at);
        at += kn_cache_bytes(&k, &a->v->spec.grid, s->cache_floats, c->head_size, capacity);
    }
    s->threads = omp_get_max_threads();
    s->scratch_size = kn_attend_scratch(&s->cache[0]);
    s->scratch = nb_alloc_aligned((size_t)(s->scratch_size * s->threads), sizeof(real));
    const int64_t outputs[] = {c->vocab, c->hidden, c->heads * c->head_size};
    int64_t widest = c->dim;
    for (int i = 0; i < 3; i++)
        widest = outputs[i] > widest ? outputs[i] : widest;
    s->bias = nb_alloc((size_t)widest, sizeof(real));
    return s->scratch && s->bias ? NB_OK : NB_NOMEM;
}

status rt_open(rt_session **out, md_model *m, const rt_options *o)
{
    rt_session *s = *out = NULL;
    s = nb_alloc_zeroed(1, sizeof *s);
    if (!s)
        return NB_NOMEM;
    s->model = m;
    s->precision = o->precision;
    s->cache_floats = o->cache_floats;
    s->slots = o->slots > 0 ? o->slots : 1;
    s->ctx = o->ctx > 0 && o->ctx < m->config.ctx ? o->ctx : m->config.ctx;
    status st = open_caches(s);
    if (st != NB_OK)
        rt_close(s);
    else
        *out = s;
    return st;
}

static status reserve(rt_session *s, int64_t rows)
{
    if (rows <= s->rows)
        return NB_OK;
    const md_config *c = &s->model->config;
    int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    const struct {
        real **p;
        int64_t cols;
    } buffer[] = {{&s->x, c->dim}, {&s->h, c->dim}, {&s->q, q}, {&s->k, kv}, {&s->v, kv}, {&s->o, q}, {&s->gate, c->hidden}, {&s->up, c->hidden}};
    s->rows = 0;
    for (size_t i = 0; i < sizeof buffer / sizeof *buffer; i++) {
        free(*buffer[i].p);
        *buffer[i].p = nb_alloc_aligned((size_t)(rows * buffer[i].cols), sizeof(real));
        if (!*buffer[i].p)
            return NB_NOMEM;
    }
    free(s->position);
    free(s->segment);
    s->position = nb_alloc((size_t)rows, sizeof *s->position);
    s->segment = nb_alloc((size_t)rows, sizeof *s->segment);
    if (!s->position || !s->segment)
        return NB_NOMEM;
    s->rows = rows;
    return NB_OK;
}

/* x [n, cols] through a site, codes into buffer `which`. */
static status through(rt_session *s, operand *out, const fq_site *site, real *x, int64_t n, int which)
{
    *out = (operand){.x = x, .decoded = true};
    const kn_grid *g = &site->spec.grid;
    if (g->bits == 0)
        return NB_OK;
    size_t bytes = kn_codes_bytes(g, n, site->cols);
    if (bytes > s->codes_bytes[which]) {
        free(s->codes[which]);
        s->codes_bytes[which] = 0;
        s->codes[which] = nb_alloc_aligned(bytes, 1);
        if (!s->codes[which])
            return NB_NOMEM;
        s->codes_bytes[which] = bytes;
    }
    kn_codes_lay(&out->codes, g, n, site->cols, s->codes[which]);
    fq_encode_activation(site, &out->codes, x, 0, n);
    out->coded = true;
    out->decoded = false;
    return NB_OK;
}

static const real *value_of(operand *a)
{
    if (!a->decoded)
        kn_decode(a->x, &a->codes, 0, a->codes.rows);
    a->decoded = true;
    return a->x;
}

static const real *bias_of(rt_session *s, const ly_linear *l)
{
    if (!l->b_site)
        return NULL;
    if (l->b_site->spec.grid.bits == 0)
        return l->b->x;
    const kn_codes *c = fq_site_codes(l->b_site, &s->model->params);
    if (c)
        kn_decode(s->bias, c, 0, 1);
    return s->bias;
}

/* Whether a product of n rows reads the weight in bf16. */
static bool in_bf16(const rt_session *s, const ly_linear *l, int64_t n)
{
    return l->w_site->spec.grid.bits == 0 && (!l->w->x || kn_takes_bf16(s->precision, n, l->out, l->in));
}

/* y [n, out] = a w' + b */
static status linear(rt_session *s, const ly_linear *l, real *y, operand *a, int64_t n)
{
    const ag_params *ps = &s->model->params;
    const real *b = bias_of(s, l);
    if (l->w_site->spec.grid.bits == 0) {
        const bool bf16 = in_bf16(s, l, n);
        const kn_bf16_right *w = bf16 ? fq_site_right(l->w_site, ps) : NULL;
        if (bf16 && !w)
            return NB_NOMEM;
        if (bf16)
            TRY(kn_product_right(y, value_of(a), w, n, 0));
        else
            kn_product_nt(KN_FP32, y, value_of(a), l->w->x, n, l->out, l->in, 0);
        for (int64_t i = 0; b && i < n; i++)
            kn_add_to(y + i * l->out, b, l->out);
        return NB_OK;
    }
    if (a->coded && kn_can_multiply(&a->codes.grid, &l->w_site->spec.grid, l->in)) {
        const kn_packed *w = fq_site_packed(l->w_site, ps);
        if (!w)
            return NB_NOMEM;
        kn_linear_int(y, &a->codes, 0, n, w, b);
        return NB_OK;
    }
    const kn_codes *w = fq_site_codes(l->w_site, ps);
    if (!w)
        return NB_NOMEM;
    kn_linear_decode(s->precision, y, value_of(a), n, w, b);
    return NB_OK;
}

/* `count` linears of one input, up to KN_MOST_RIGHTS */
static status linears(rt_session *s, const ly_linear *const *l, real *const *y, int64_t count, operand *a, int64_t n)
{
    const kn_bf16_right *w[KN_MOST_RIGHTS];
    bool together = true;
    for (int64_t i = 0; i < count; i++)
        together = together && in_bf16(s, l[i], n) && !l[i]->b_site;
    for (int64_t i = 0; i < count; i++) {
        if (!together)
            TRY(linear(s, l[i], y[i], a, n));
        else if (!(w[i] = fq_site_right(l[i]->w_site, &s->model->params)))
            return NB_NOMEM;
    }
    return together ? kn_products_right(y, value_of(a), w, count, n) : NB_OK;
}

static void attend(rt_session *s, const ly_attention *a, kn_cache *layer, int64_t segments, operand *q, operand *k, operand *v)
{
    const int64_t H = a->heads, G = a->kv_heads, D = a->head_size;
    bool probs = a->probs->spec.grid.bits != 0;
    const real *qx = q->coded ? NULL : q->x, *kx = k->coded ? NULL : k->x, *vx = v->coded ? NULL : v->x;
    const int64_t shares = (int64_t)s->threads * SHARES, run = segments * G > shares ? segments * G / shares : 1;
#pragma omp parallel for schedule(dynamic, run) num_threads(s->threads)
    for (int64_t unit = 0; unit < segments * G; unit++) {
        const segment *g = &s->segment[unit / G];
        int64_t kv = unit % G;
        kn_cache *c = &layer[g->slot * G + kv];
        real *scratch = s->scratch + omp_get_thread_num() * s->scratch_size;
        kn_cache_put(c, g->n, kx ? kx + g->row * G * D : NULL, vx ? vx + g->row * G * D : NULL, G * D, k->coded ? &k->codes : NULL,
                     v->coded ? &v->codes : NULL, g->row, kv);
        if (g->n == 1) {
            const int64_t first = kv * (H / G), at = (g->row * H + first) * D;
            const int64_t next = unit + 1 < segments * G ? s->segment[(unit + 1) / G].slot * G + (unit + 1) % G : -1;
            kn_attend_heads(s->o + at, c, next < 0 ? NULL : &layer[next], g->first, H / G, qx ? qx + at : NULL, q->coded ? &q->codes : NULL,
                            g->row, first, probs, scratch);
            continue;
        }
        for (int64_t h = kv * (H / G); h < (kv + 1) * (H / G); h++)
            kn_attend(s->o + g->row * H * D + h * D, H * D, NULL, c, g->first, g->n, qx ? qx + (g->row * H + h) * D : NULL, H * D,
                      q->coded ? &q->codes : NULL, g->row, h, probs, scratch);
    }
}

/* x += a w' + b, then the site of the sum */
static status residual(rt_session *s, const fq_site *site, const ly_linear *l, operand *a, int64_t n)
{
    operand sum;
    if (in_bf16(s, l, n) && !l->b_site) {
        const kn_bf16_right *w = fq_site_right(l->w_site, &s->model->params);
        if (!w)
            return NB_NOMEM;
        TRY(kn_product_right(s->x, value_of(a), w, n, 1));
    } else {
        TRY(linear(s, l, s->h, a, n));
        kn_add_to(s->x, s->h, n * s->model->config.dim);
    }
    TRY(through(s, &sum, site, s->x, n, 0));
    value_of(&sum);
    return NB_OK;
}

static status attention(rt_session *s, int64_t layer, int64_t n, int64_t segments)
{
    const md_block *b = &s->model->block[layer];
    const ly_attention *a = &b->attn;
    const int64_t D = a->head_size;
    operand in, q, k, v, o;
    ly_norm_rows(s->h, &b->attn_norm, s->x, n);
    TRY(through(s, &in, a->input, s->h, n, 0));
    TRY(linears(s, (const ly_linear *const[]){&a->wq, &a->wk, &a->wv}, (real *const[]){s->q, s->k, s->v}, 3, &in, n));
    bool early = a->k->spec.grid.bits && a->k->spec.before_rotation;
    if (early) {
        TRY(through(s, &k, a->k, s->k, n, 2));
        value_of(&k);
    }
    if (a->cos) {
        kn_rope(s->q, s->q, a->cos, a->sin, s->position, n, a->heads, D, s->model->config.ctx, a->pairing, false);
        kn_rope(s->k, s->k, a->cos, a->sin, s->position, n, a->kv_heads, D, s->model->config.ctx, a->pairing, false);
    }
    if (a->turn && !early) {
        kn_hadamard_rows(s->q, s->q, n * a->heads, a->turn, false);
        kn_hadamard_rows(s->k, s->k, n * a->kv_heads, a->turn, false);
    }
    const int64_t kv = a->kv_heads * D;
    for (int64_t i = 0; a->k_offset && i < n * kv; i++)
        s->k[i] -= a->k_offset->x[i % kv];
    TRY(through(s, &q, a->q, s->q, n, 1));
    if (early)
        k = (operand){.x = s->k, .decoded = true};
    else
        TRY(through(s, &k, a->k, s->k, n, 2));
    TRY(through(s, &v, a->v, s->v, n, 3));
    attend(s, a, cache_of(s, layer, 0), segments, &q, &k, &v);
    TRY(through(s, &o, a->out_input, s->o, n, 0));
    return residual(s, b->attn_residual, &a->wo, &o, n);
}

/* s->gate <- silu(gate(in)) * up(in) */
static status gated(rt_session *s, const ly_mlp *m, operand *in, int64_t n)
{
    const int64_t count = n * s->model->config.hidden;
    operand act;
    TRY(linears(s, (const ly_linear *const[]){&m->gate, &m->up}, (real *const[]){s->gate, s->up}, 2, in, n));
    if (!m->act->spec.grid.bits) {
        kn_swiglu(s->gate, s->gate, s->up, count);
        return NB_OK;
    }
    kn_silu(s->gate, s->gate, count);
    TRY(through(s, &act, m->act, s->gate, n, 0));
    value_of(&act);
    for (int64_t i = 0; i < count; i++)
        s->gate[i] *= s->up[i];
    return NB_OK;
}

static status mlp(rt_session *s, int64_t layer, int64_t n)
{
    const md_block *b = &s->model->block[layer];
    const ly_mlp *m = &b->mlp;
    operand in, down;
    ly_norm_rows(s->h, &b->mlp_norm, s->x, n);
    TRY(through(s, &in, m->input, s->h, n, 0));
    if (m->activation == LY_GELU) {
        TRY(linear(s, &m->up, s->gate, &in, n));
        kn_gelu(s->gate, s->gate, n * s->model->config.hidden, true);
    } else {
        TRY(gated(s, m, &in, n));
    }
    if (m->turn)
        kn_hadamard_rows(s->gate, s->gate, n, m->turn, false);
    TRY(through(s, &down, m->down_input, s->gate, n, 0));
    return residual(s, b->mlp_residual, &m->down, &down, n);
}

/* x [n, C] <- rows of a weight [.., C] */
static status look_up(rt_session *s, real *x, fq_site *site, const ag_param *w, int64_t n, const int32_t *row)
{
    const int64_t C = s->model->config.dim;
    const kn_codes *c = site->spec.grid.bits ? fq_site_codes(site, &s->model->params) : NULL;
    if (site->spec.grid.bits && !c)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        if (c)
            kn_decode(x + i * C, c, row[i], 1);
        else if (!w->x)
            kn_bf16_column(x + i * C, &site->right, row[i]);
        else
            memcpy(x + i * C, w->x + row[i] * C, (size_t)C * sizeof(real));
    }
    return NB_OK;
}

static status embed(rt_session *s, int64_t n, const int32_t *token)
{
    const md_model *m = s->model;
    TRY(look_up(s, s->x, m->embed_site, m->embed, n, token));
    if (!m->position.w_site)
        return NB_OK;
    TRY(look_up(s, s->h, m->position.w_site, m->position.w, n, s->position));
    kn_add_to(s->x, s->h, n * m->config.dim);
    return NB_OK;
}

/* Cuts the batch into segments and gives every row its position; moves the lengths on. */
static status plan(rt_session *s, int64_t n, const int32_t *slot, const int32_t *token, int64_t *segments)
{
    *segments = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = slot ? slot[i] : 0;
        if (at < 0 || at >= s->slots)
            return nb_fail(NB_USAGE, "slot %lld, the session has %lld", (long long)at, (long long)s->slots);
        if (token[i] < 0 || token[i] >= s->model->config.vocab)
            return nb_fail(NB_USAGE, "token %d, the vocabulary has %lld", token[i], (long long)s->model->config.vocab);
    }
    for (int64_t i = 0; i < n;) {
        int64_t at = slot ? slot[i] : 0, j = i;
        while (j < n && (slot ? slot[j] : 0) == at)
            j++;
        if (s->length[at] + (j - i) > s->ctx)
            return nb_fail(NB_USAGE, "%lld tokens, the context holds %lld", (long long)(s->length[at] + (j - i)), (long long)s->ctx);
        for (int64_t e = 0; e < *segments; e++)
            if (s->segment[e].slot == at)
                return nb_fail(NB_USAGE, "tokens of slot %lld do not stand together", (long long)at);
        s->segment[(*segments)++] = (segment){i, j - i, at, s->length[at]};
        for (int64_t e = i; e < j; e++)
            s->position[e] = (int32_t)(s->length[at] + (e - i));
        i = j;
    }
    for (int64_t e = 0; e < *segments; e++)
        s->length[s->segment[e].slot] += s->segment[e].n;
    return NB_OK;
}

status rt_forward(rt_session *s, int64_t n, const int32_t *slot, const int32_t *token, real *hidden)
{
    const md_model *m = s->model;
    int64_t segments;
    if (n <= 0)
        return NB_OK;
    TRY(reserve(s, n));
    TRY(plan(s, n, slot, token, &segments));
    TRY(embed(s, n, token));
    for (int64_t l = 0; l < m->config.layers; l++) {
        TRY(attention(s, l, n, segments));
        TRY(mlp(s, l, n));
    }
    ly_norm_rows(hidden, &m->norm, s->x, n);
    return NB_OK;
}

status rt_head(rt_session *s, real *logits, const real *hidden, int64_t n)
{
    const md_model *m = s->model;
    operand a;
    TRY(reserve(s, n));
    memcpy(s->h, hidden, (size_t)(n * m->config.dim) * sizeof(real));
    TRY(through(s, &a, m->head_input, s->h, n, 0));
    return linear(s, &m->head, logits, &a, n);
}

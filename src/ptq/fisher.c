/* fisher.c - the Fisher information of a model's linear maps, as Kronecker factors. An error E of a map's weight moves the predictions by
 *   KL(model || model with W + E) ~ 1/2 mean over tokens t of (g_t' E x_t)^2,  g_t = d CE / d (W x_t),  CE with labels drawn from the model's own predictions
 * to second order. Kept are
 *   s_t = sum of |g_t|^2 over the weights that read x_t,  H = mean g_t g_t' + mean(diag) I of every weight:  mean (g' E x)^2 ~ tr H E (mean s_t x_t x_t') E'
 * (Martens & Grosse 2015, K-FAC; of rounding: Kim et al. 2025, GuidedQuant; Tseng et al. 2025, YAQA). The diagonal is raised by its whole mean: SmolLM2-135M, q4_0,
 * 64 windows of 512 of its own, KL on wikitext2_valid: 0.0713 with 0.05 of it, 0.0688 with 0.3, 0.0670 with 1; by tokens alone 0.0725, GPTQ 0.0837.
 * An error e_v of the embedding's row v is met by tokens v and, where the head is tied, by every logit v:  rows cost e_v H e_v' each, up to how often v is seen,
 *   H = mean g_t g_t' (g_t of what is looked up) + mean (1 - sum_v p_tv^2) x_t x_t' (x_t what the tied head reads; |dCE/dlogits|^2 in the mean over labels)
 */
#include "ptq/fisher.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 160, TOKENS = 1024, CHUNK = 64 };
static const double RAISE = 1;

typedef struct {
    char name[NAME];
    real *token; /* [tokens] */
} input;

typedef struct {
    const fq_site *site;
    int input;     /* of factors */
    real *H;       /* [rows, rows] */
    double *a, *b; /* [rows], [cols], sums: of costs */
    real *squares; /* [cols] mean b */
} output;

typedef enum { FACTORS, COSTS, IMPORTANCE } wanted;

struct pt_fisher {
    input *input;
    output *output;
    int n_inputs, n_outputs;
    int64_t tokens, at; /* at: the first token of the batch that is under way */
    real *square; /* [batch] |g_t|^2 times the square of the batch's tokens, whose mean the loss is */
    real *doubt;  /* [batch] 1 - p of the label drawn: 1 - sum p^2 in the mean over labels */
    real *head;   /* [tokens] doubt where the head is coded and not tied; an input's */
    pt_hessian rows; /* of the embedding; empty: not wanted */
    kn_precision precision;
    wanted wanted;
    kd_importance *importance;
    pt_hessian factored;
};

void pt_fisher_free(pt_fisher *f)
{
    if (!f)
        return;
    for (int i = 0; i < f->n_inputs; i++)
        free(f->input[i].token);
    for (int i = 0; i < f->n_outputs; i++) {
        free(f->output[i].H);
        free(f->output[i].a);
        free(f->output[i].b);
        free(f->output[i].squares);
    }
    pt_hessian_free(&f->factored);
    pt_hessian_free(&f->rows);
    free(f->input);
    free(f->output);
    free(f->square);
    free(f->doubt);
    free(f);
}

static output *find(const pt_fisher *f, const char *weight)
{
    for (int i = 0; i < f->n_outputs; i++)
        if (strcmp(f->output[i].site->name, weight) == 0)
            return &f->output[i];
    return NULL;
}

/* ---- what is looked at -------------------------------------------------------------------- */

static status find_input(int *found, pt_fisher *f, const char *name)
{
    int i = 0;
    while (i < f->n_inputs && strcmp(f->input[i].name, name) != 0)
        i++;
    *found = i;
    if (i < f->n_inputs)
        return NB_OK;
    snprintf(f->input[i].name, NAME, "%s", name);
    f->n_inputs++;
    f->input[i].token = nb_alloc_zeroed((size_t)f->tokens, sizeof(real));
    return f->input[i].token ? NB_OK : NB_NOMEM;
}

static status open_cost(pt_fisher *f, const fq_site *s)
{
    output *o = &f->output[f->n_outputs++];
    o->site = s;
    o->a = nb_alloc_zeroed((size_t)s->rows, sizeof *o->a);
    o->b = nb_alloc_zeroed((size_t)s->cols, sizeof *o->b);
    o->squares = nb_alloc_zeroed((size_t)s->cols, sizeof *o->squares);
    return o->a && o->b && o->squares ? NB_OK : NB_NOMEM;
}

/* To be searched, ends of 8 bits and more cost too little. */
static status open_ends(pt_fisher *f, const md_model *m)
{
    const fq_site *embed = fq_site_find(&m->sites, "embed.weight"), *head = fq_site_find(&m->sites, "head.weight");
    int i;
    if (embed && embed->w && embed->spec.grid.bits && embed->spec.grid.bits < 8 && embed->spec.range != FQ_DYNAMIC)
        TRY(pt_hessian_new(&f->rows, m->config.dim));
    if (head && head->spec.grid.bits) {
        TRY(find_input(&i, f, "head.input"));
        f->head = f->input[i].token;
    }
    return NB_OK;
}

static status open_outputs(pt_fisher *f, const md_model *m)
{
    char name[NAME];
    f->input = nb_alloc_zeroed((size_t)m->sites.n + 1, sizeof *f->input);
    f->output = nb_alloc_zeroed((size_t)m->sites.n + 1, sizeof *f->output);
    if (!f->input || !f->output)
        return NB_NOMEM;
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *s = m->sites.s[i];
        if (!s->is_weight || !s->spec.grid.bits || !s->w || s->rows == 1)
            continue;
        if (f->wanted == COSTS) {
            TRY(open_cost(f, s));
            continue;
        }
        if (strncmp(s->name, "layers.", 7) != 0 || !kd_input_site(name, sizeof name, s->name))
            continue;
        output *o = &f->output[f->n_outputs++];
        o->site = s;
        if (f->wanted == FACTORS && !(o->H = nb_alloc_zeroed((size_t)s->rows, (size_t)s->rows * sizeof *o->H)))
            return NB_NOMEM;
        TRY(find_input(&o->input, f, name));
    }
    return f->wanted == FACTORS ? open_ends(f, m) : NB_OK;
}

/* ---- gradients ---------------------------------------------------------------------------- */

static void gather(void *ctx, const char *weight, const ag_tensor *in, const ag_tensor *out)
{
    pt_fisher *f = ctx;
    const output *o = find(f, weight);
    const real *g = out->g;
    const int64_t M = ag_rows(out), N = ag_cols(out);
    if (!o || !g || o->site->rows != N)
        return;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < M; t++) {
        double s = 0;
        for (int64_t i = t * N; i < (t + 1) * N; i++)
            s += (double)g[i] * (double)g[i];
        f->square[t] = (real)(s * (double)M * (double)M);
    }
    if (f->wanted == IMPORTANCE)
        kd_add_importance(f->importance, f->input[o->input].name, ag_value(in), f->square, M, ag_cols(in));
    if (f->wanted == COSTS && ag_value(in)) {
        kd_add_squares(o->b, ag_value(in), f->square, M, ag_cols(in));
        kd_add_squares(o->a, g, NULL, M, N);
    }
    if (f->wanted != FACTORS)
        return;
    kn_gram(f->precision, o->H, g, M, N, 1);
    for (int64_t t = 0; t < M; t++)
        f->input[o->input].token[f->at + t] += f->square[t];
}

/* A tap: the head is no part of a block, what goes into it counts as it is. */
static void gather_head(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    pt_fisher *f = ctx;
    if (f->wanted == IMPORTANCE && strcmp(site, "head.input") == 0)
        kd_gather_importance(f->importance, site, in, out);
}

/* label [n] of rows of logits z [n, V], each by softmax(z): the first label at which the sum of shares reaches a random number; doubt [n]: 1 - its share. */
static void draw(int32_t *label, real *doubt, const real *z, int64_t n, int64_t V, uint64_t seed, int64_t first)
{
    const uint64_t stream = nb_hash(NB_HASH_START, "fisher", 6);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        double lse, left = nb_random_unit(seed, stream, (uint64_t)(first + r));
        int64_t v = 0;
        kn_logsumexp(&lse, z + r * V, 1, V);
        while (v < V - 1 && (left -= exp((double)z[r * V + v] - lse)) > 0)
            v++;
        label[r] = (int32_t)v;
        doubt[r] = (real)fmax(0, 1 - exp((double)z[r * V + v] - lse));
    }
}

static status draw_labels(int32_t *label, real *doubt, const md_output *out, ag_tape *t, uint64_t seed, int64_t first)
{
    const int64_t M = ag_rows(out->x), C = ag_cols(out->x), V = out->w->dim[0];
    const real *x = ag_value(out->x), *w = ag_value(out->w), *b = out->b ? ag_value(out->b) : NULL;
    real *z = ag_take(t, (size_t)(CHUNK * V) * sizeof *z);
    if (!x || !w || !z || (out->b && !b))
        return ag_status(t);
    for (int64_t i = 0; i < M; i += CHUNK) {
        const int64_t n = M - i < CHUNK ? M - i : CHUNK;
        kn_product_nt(t->precision, z, x + i * C, w, n, V, C, 0);
        for (int64_t k = 0; b && k < n * V; k++)
            z[k] += b[k % V];
        draw(label + i, doubt + i, z, n, V, seed, first + i);
    }
    ag_give_back(t, z, (size_t)(CHUNK * V) * sizeof *z);
    return NB_OK;
}

/* What goes into the first block, as a leaf that wants a gradient: parameters want none. */
static ag_tensor *embed(ag_tape *t, md_model *m, const int32_t *ids, int64_t n, int64_t length)
{
    const ag_tensor *e = md_embed(t, m, &(md_input){.B = n, .T = length, .ids = ids});
    const real *v = e ? ag_value(e) : NULL;
    const size_t bytes = v ? (size_t)ag_count(e) * sizeof *v : 0;
    real *x = v ? ag_take(t, bytes) : NULL, *g = x ? ag_take(t, bytes) : NULL;
    if (!g)
        return NULL;
    memcpy(x, v, bytes);
    memset(g, 0, bytes);
    return ag_leaf(t, x, g, 3, e->dim);
}

/* a of what is looked up and of a head, where their costs are wanted. */
static void count_rows(const pt_fisher *f, const md_model *m, const int32_t *ids, const int32_t *label, int64_t n, int64_t length)
{
    const output *embed = find(f, "embed.weight"), *head = m->config.tied ? embed : find(f, "head.weight"), *position = find(f, "position.weight");
    for (int64_t t = 0; t < n * length; t++) {
        if (embed)
            embed->a[ids[t]] += 1;
        if (head)
            head->a[label[t]] += 1;
        if (position)
            position->a[t % length] += 1;
    }
}

/* x: what the head reads; before the backward pass, which gives it back. */
static status gather_read(pt_fisher *f, const md_model *m, const ag_tensor *x)
{
    const int64_t M = ag_rows(x);
    const output *head = find(f, m->config.tied ? "embed.weight" : "head.weight");
    if (f->head)
        memcpy(f->head + f->at, f->doubt, (size_t)M * sizeof *f->head);
    if (head)
        kd_add_squares(head->b, ag_value(x), f->doubt, M, ag_cols(x));
    return f->rows.H && m->config.tied ? pt_hessian_add(&f->rows, f->precision, ag_value(x), f->doubt, M) : NB_OK;
}

/* x: what was looked up, with its gradient. */
static status gather_looked_up(pt_fisher *f, const ag_tensor *x)
{
    const int64_t M = ag_rows(x);
    const output *const read[] = {find(f, "embed.weight"), find(f, "position.weight")};
    for (int64_t t = 0; t < M; t++)
        f->square[t] = (real)((double)M * (double)M);
    for (int i = 0; i < 2; i++)
        if (read[i])
            kd_add_squares(read[i]->b, x->g, f->square, M, ag_cols(x));
    return f->rows.H ? pt_hessian_add(&f->rows, f->precision, x->g, f->square, M) : NB_OK;
}

static status look(pt_fisher *f, md_model *m, ag_tape *t, const int32_t *ids, int64_t n, int64_t length, uint64_t seed)
{
    const ag_head_loss loss = {.ce = 1};
    ag_reset(t);
    int32_t *label = ag_take(t, (size_t)(n * length) * sizeof *label);
    ag_tensor *const first = label ? embed(t, m, ids, n, length) : NULL, *x = first;
    for (int64_t l = 0; l < m->config.layers; l++)
        x = md_block_forward(t, m, l, x, NULL);
    const md_output out = md_finish(t, m, x);
    TRY(ag_status(t));
    TRY(draw_labels(label, f->doubt, &out, t, seed, f->at));
    count_rows(f, m, ids, label, n, length);
    TRY(gather_read(f, m, out.x));
    ag_tensor *ce = ag_head(t, out.x, out.w, out.b, label, &loss, NULL);
    TRY(ce ? ag_backward(t, ce) : ag_status(t));
    return gather_looked_up(f, first);
}

static status look_at_all(pt_fisher *f, md_model *m, const int32_t *ids, int64_t windows, int64_t length, const kd_calibration *c)
{
    ag_tape t = {.quantize_off = true, .precision = c->precision, .tap = {gather_head, f}, .backward_tap = {gather, f}};
    const int64_t most = TOKENS / length > 1 ? TOKENS / length : 1;
    f->square = nb_alloc((size_t)most, (size_t)length * sizeof *f->square);
    f->doubt = nb_alloc((size_t)most, (size_t)length * sizeof *f->doubt);
    status s = f->square && f->doubt ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < windows && s == NB_OK; i += most) {
        char text[80];
        f->at = i * length;
        s = look(f, m, &t, ids + i * length, windows - i < most ? windows - i : most, length, c->seed);
        snprintf(text, sizeof text, "gradients: window %lld of %lld", (long long)i, (long long)windows);
        if (s == NB_OK && !nb_progress_report(c->progress, 0, m->config.layers, text))
            s = nb_fail(NB_INTERRUPTED, "interrupted");
    }
    ag_tape_free(&t);
    return s;
}

/* Parameters want no gradient meanwhile. */
static status look_with_frozen(pt_fisher *f, md_model *m, const int32_t *ids, int64_t windows, int64_t length, const kd_calibration *c)
{
    bool *frozen = nb_alloc((size_t)m->params.n, sizeof *frozen);
    if (!frozen)
        return NB_NOMEM;
    for (int64_t i = 0; i < m->params.n; i++) {
        frozen[i] = m->params.p[i]->frozen;
        m->params.p[i]->frozen = true;
    }
    const status s = look_at_all(f, m, ids, windows, length, c);
    for (int64_t i = 0; i < m->params.n; i++)
        m->params.p[i]->frozen = frozen[i];
    free(frozen);
    return s;
}

/* ---- results ------------------------------------------------------------------------------ */

/* x <- x / mean of every step-th. */
static void level(real *x, int64_t n, int64_t step)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i += step)
        sum += (double)x[i];
    const double factor = sum > 0 ? (double)((n + step - 1) / step) / sum : 0;
    for (int64_t i = 0; i < n; i++)
        x[i] = (real)((double)x[i] * factor);
}

static void finish_costs(pt_fisher *f)
{
    for (int i = 0; i < f->n_outputs; i++) {
        const output *o = &f->output[i];
        for (int64_t k = 0; k < o->site->cols; k++)
            o->squares[k] = (real)(o->b[k] / (double)f->tokens);
    }
}

static void finish(pt_fisher *f)
{
    for (int i = 0; i < f->n_inputs; i++)
        level(f->input[i].token, f->tokens, 1);
    for (int64_t k = 0; f->rows.H && k < f->rows.K * f->rows.K; k++)
        f->rows.H[k] = (real)((double)f->rows.H[k] / (double)f->tokens);
    for (int i = 0; i < f->n_outputs; i++) {
        const int64_t N = f->output[i].site->rows;
        level(f->output[i].H, N * N, N + 1);
        for (int64_t k = 0; k < N; k++)
            f->output[i].H[k * (N + 1)] += (real)RAISE;
    }
}

/* NULL where it fails. */
static status make(pt_fisher **out, pt_fisher how, md_model *m, const int32_t *ids, int64_t windows, int64_t length, const kd_calibration *c)
{
    pt_fisher *f = *out = nb_alloc(1, sizeof *f);
    if (!f)
        return NB_NOMEM;
    *f = how;
    f->tokens = windows * length;
    f->precision = c->precision;
    status s = open_outputs(f, m);
    if (s == NB_OK)
        s = look_with_frozen(f, m, ids, windows, length, c);
    if (s == NB_OK)
        return NB_OK;
    pt_fisher_free(f);
    *out = NULL;
    return s;
}

static status make_from(pt_fisher **out, pt_fisher how, md_model *m, fm_tokens *data, const kd_calibration *c)
{
    int32_t *ids;
    int64_t windows, length;
    TRY(kd_even_windows(&ids, &windows, &length, m, data, c));
    const status s = make(out, how, m, ids, windows, length, c);
    free(ids);
    return s;
}

status pt_fisher_new(pt_fisher **out, md_model *m, const int32_t *ids, int64_t windows, int64_t length, const kd_calibration *c)
{
    TRY(make(out, (pt_fisher){.wanted = FACTORS}, m, ids, windows, length, c));
    finish(*out);
    return NB_OK;
}

status pt_fisher_new_costs(pt_fisher **out, md_model *m, fm_tokens *data, const kd_calibration *c)
{
    TRY(make_from(out, (pt_fisher){.wanted = COSTS}, m, data, c));
    finish_costs(*out);
    return NB_OK;
}

status pt_fisher_importance(kd_importance *h, md_model *m, fm_tokens *data, const kd_calibration *c)
{
    pt_fisher *f;
    TRY(make_from(&f, (pt_fisher){.wanted = IMPORTANCE, .importance = h}, m, data, c));
    pt_fisher_free(f);
    return NB_OK;
}

double pt_fisher_cost(const pt_fisher *f, const fq_site *weight, const real *value)
{
    const output *o = find(f, weight->name);
    const int64_t C = weight->cols;
    const real *w = weight->w->x;
    double sum = 0, all = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum, all)
    for (int64_t r = 0; r < (o ? weight->rows : 0); r++) {
        double row = 0;
        for (int64_t c = 0; c < C; c++) {
            const double e = (double)value[r * C + c] - (double)w[r * C + c];
            row += (double)o->squares[c] * e * e;
        }
        sum += o->a[r] * row;
        all += o->a[r];
    }
    return all > 0 ? sum / (2 * all) : 0;
}

const real *pt_fisher_squares(void *fisher, const fq_site *weight)
{
    const output *o = find(fisher, weight->name);
    return o ? o->squares : NULL;
}

const real *pt_fisher_tokens(const pt_fisher *f, const char *name)
{
    for (int i = 0; i < f->n_inputs; i++)
        if (strcmp(f->input[i].name, name) == 0)
            return f->input[i].token;
    return NULL;
}

status pt_fisher_outputs(const pt_hessian **h, pt_fisher *f, const char *weight)
{
    const output *o = find(f, weight);
    *h = NULL;
    pt_hessian_free(&f->factored);
    if (!o)
        return NB_OK;
    const int64_t N = o->site->rows;
    TRY(pt_hessian_new(&f->factored, N));
    memcpy(f->factored.H, o->H, (size_t)(N * N) * sizeof *o->H);
    TRY(pt_hessian_factor(&f->factored, 1e-6, false));
    *h = &f->factored;
    return NB_OK;
}

status pt_fisher_rows(const pt_hessian **h, pt_fisher *f, double percdamp)
{
    *h = f->rows.H ? &f->rows : NULL;
    return *h ? pt_hessian_factor(&f->rows, percdamp, false) : NB_OK;
}

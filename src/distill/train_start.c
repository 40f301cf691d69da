/* train_start.c - ranges before the first step: of weights by search, the squared error of w_j weighted by the second moment E[x_j^2] of its
 * input over the first batches; of static and learned activations by watching the same batches. The model runs in floats. */
#include "distill/trainer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALIBRATION_BATCHES = 8 };

typedef struct {
    const fq_sites *sites;
    double **sum; /* [sites] of E[x_j^2] sums by channel, NULL where not seen */
    real **mean;
    int64_t *rows;
} importance;

static void gather(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    importance *s = ctx;
    (void)out;
    for (int64_t i = 0; i < s->sites->n; i++) {
        if (s->sites->s[i]->is_weight || strcmp(s->sites->s[i]->name, site) != 0)
            continue;
        int64_t M = ag_rows(in), C = ag_cols(in);
        const real *x = ag_value(in);
        if (!s->sum[i])
            s->sum[i] = nb_alloc_zeroed((size_t)C, sizeof **s->sum);
        for (int64_t m = 0; s->sum[i] && m < M; m++)
            for (int64_t c = 0; c < C; c++)
                s->sum[i][c] += (double)x[m * C + c] * (double)x[m * C + c];
        s->rows[i] += M;
        return;
    }
}

/* The site of a weight's input: "layers.3.attn.wq.weight" reads "layers.3.attn.input", wo "attn.out.input", mlp.down "mlp.down.input". */
static void input_site(char *name, size_t bytes, const char *weight)
{
    snprintf(name, bytes, "%s", weight);
    static const struct {
        const char *tail, *input;
    } map[] = {{".wq.weight", ".input"}, {".wk.weight", ".input"}, {".wv.weight", ".input"}, {".wo.weight", ".out.input"},
               {".gate.weight", ".input"}, {".up.weight", ".input"}, {".down.weight", ".down.input"}, {"head.weight", "head.input"}, {"embed.weight", "head.input"}};
    for (size_t i = 0; i < sizeof map / sizeof *map; i++) {
        size_t n = strlen(weight), k = strlen(map[i].tail);
        if (n >= k && !strcmp(weight + n - k, map[i].tail)) {
            snprintf(name + n - k, bytes - (n - k), "%s", map[i].input);
            return;
        }
    }
}

static const real *importance_of(void *ctx, const fq_site *weight)
{
    importance *s = ctx;
    char name[160];
    input_site(name, sizeof name, weight->name);
    for (int64_t i = 0; i < s->sites->n; i++)
        if (!strcmp(s->sites->s[i]->name, name) && s->sum[i] && s->sites->s[i]->cols == weight->cols) {
            for (int64_t c = 0; c < weight->cols; c++)
                s->mean[i][c] = (real)(s->sum[i][c] / (double)s->rows[i]);
            return s->mean[i];
        }
    return NULL;
}

/* Float forwards of the first batches with a tap. */
static status watch(kd_trainer *t, ag_tap tap)
{
    int64_t step = t->step;
    for (int64_t i = 0; i < CALIBRATION_BATCHES; i++) {
        t->step = i;
        status s = kd_next_batch(t, 0);
        ag_reset(&t->tape);
        t->tape.no_grad = t->tape.quantize_off = true;
        t->tape.precision = KN_FP32;
        t->tape.tap = tap;
        md_input in = {.B = t->o.batch, .T = t->o.ctx, .ids = t->ids, .lengths = kd_lengths(t)};
        if (s == NB_OK) {
            md_forward(&t->tape, t->student, &in);
            s = ag_status(&t->tape);
        }
        t->tape.no_grad = t->tape.quantize_off = false;
        t->tape.tap = (ag_tap){0};
        t->step = step;
        TRY(s);
    }
    return NB_OK;
}

/* Mean of a layer's keys, into its offset. */
typedef struct {
    md_model *model;
    double *sum; /* [layers, kv channels] */
    int64_t rows;
} key_means;

static void gather_keys(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    key_means *s = ctx;
    (void)out;
    for (int64_t l = 0; l < s->model->config.layers; l++) {
        const ly_attention *a = &s->model->block[l].attn;
        const int64_t M = ag_rows(in), C = a->kv_heads * a->head_size;
        if (strcmp(a->k->name, site) != 0)
            continue;
        const real *x = ag_value(in);
        for (int64_t m = 0; m < M; m++)
            for (int64_t c = 0; c < C; c++)
                s->sum[l * C + c] += (double)x[m * C + c];
        s->rows += l == 0 ? M : 0;
    }
}

static status start_offsets(kd_trainer *t)
{
    const md_config *c = &t->student->config;
    const int64_t C = c->kv_heads * c->head_size;
    bool any = false;
    for (int64_t l = 0; l < c->layers; l++)
        any = any || t->student->block[l].attn.k_offset;
    if (!any)
        return NB_OK;
    key_means s = {t->student, nb_alloc_zeroed((size_t)(c->layers * C), sizeof *s.sum), 0};
    status st = s.sum ? watch(t, (ag_tap){gather_keys, &s}) : NB_NOMEM;
    for (int64_t l = 0; l < c->layers && st == NB_OK; l++) {
        ag_param *b = t->student->block[l].attn.k_offset;
        for (int64_t i = 0; b && i < C; i++)
            b->x[i] += (real)(s.sum[l * C + i] / (double)s.rows);
    }
    free(s.sum);
    return st;
}

static status start_weights(kd_trainer *t)
{
    fq_sites *sites = &t->student->sites;
    importance s = {sites, nb_alloc_zeroed((size_t)sites->n, sizeof *s.sum), nb_alloc_zeroed((size_t)sites->n, sizeof *s.mean), nb_alloc_zeroed((size_t)sites->n, sizeof *s.rows)};
    status st = s.sum && s.mean && s.rows ? NB_OK : NB_NOMEM;
    bool weighted = t->o.importance && t->o.start == FQ_START_MSE;
    if (st == NB_OK && weighted)
        st = watch(t, (ag_tap){gather, &s});
    for (int64_t i = 0; i < sites->n && st == NB_OK; i++)
        if (s.sum[i] && !(s.mean[i] = nb_alloc((size_t)sites->s[i]->cols, sizeof **s.mean)))
            st = NB_NOMEM;
    if (st == NB_OK)
        st = fq_start_weights(sites, t->o.start, weighted ? importance_of : NULL, &s);
    for (int64_t i = 0; i < sites->n; i++) {
        if (s.sum)
            free(s.sum[i]);
        if (s.mean)
            free(s.mean[i]);
    }
    free(s.sum);
    free(s.mean);
    free(s.rows);
    return st;
}

status kd_start_ranges(kd_trainer *t)
{
    TRY(start_weights(t));
    TRY(start_offsets(t));
    if (fq_sites_need_calibration(&t->student->sites, NULL, 0)) {
        TRY(watch(t, (ag_tap){fq_observe, &t->student->sites}));
        TRY(fq_observe_end(&t->student->sites));
    }
    t->student->params.version++;
    return NB_OK;
}

/* train_step.c - one step: batch, teacher forward, student forward and backward, optimizer.
 *   L = kl KL(teacher || student) + ce CE + ... (ag_head)  +  hidden sum_l mean (h_l - h_l^T)^2 / mean (h_l^T)^2
 */
#include "distill/trainer.h"
#include <math.h>
#include <string.h>

enum { HIDDEN_EVERY = 5 };

bool kd_distils(const kd_train_options *o)
{
    return o->kl > 0 || o->reverse_kl > 0 || o->mse > 0 || o->cosine > 0 || o->hidden > 0;
}

/* ---- batches ------------------------------------------------------------------------------ */

/* Window number `at` of a source of n, in an order drawn anew for every epoch. */
static int64_t drawn(kd_trainer *t, bool text, int64_t at, int64_t n)
{
    const uint64_t stream = text ? 1ull << 60 : 0;
    if (t->order_epoch[text] != at / n) {
        t->order_epoch[text] = at / n;
        nb_random_permutation(t->order[text], n, t->o.seed, stream + (uint64_t)(at / n));
    }
    return t->order[text][at % n];
}

status kd_read_rows(kd_trainer *t, int64_t n)
{
    const int64_t T = t->o.ctx;
    for (int64_t i = 0; i < n; i++) {
        const bool text = t->index[i] >= t->train.n;
        const int64_t at = t->index[i] - (text ? t->train.n : 0);
        TRY(kd_windows_read(text ? &t->mixed : &t->train, text ? t->text : t->data, &at, 1, T, t->ids + i * T, t->length + i));
    }
    return NB_OK;
}

/* The next micro-batch; of the first `at` rows of the run, floor(at * share) are text. Targets are the next tokens, -1 behind the last. */
status kd_next_batch(kd_trainer *t, int64_t micro)
{
    const int64_t B = t->o.batch, T = t->o.ctx;
    const double share = t->text ? t->o.text_share : 0;
    for (int64_t b = 0; b < B; b++) {
        const int64_t at = ((t->step * t->o.accumulate) + micro) * B + b, texts = (int64_t)floor((double)at * share);
        const bool text = (int64_t)floor((double)(at + 1) * share) > texts;
        t->index[b] = text ? t->train.n + drawn(t, true, texts, t->mixed.n) : drawn(t, false, at - texts, t->train.n);
    }
    TRY(kd_read_rows(t, B));
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < T; i++)
            t->target[b * T + i] = i + 1 < t->length[b] ? t->ids[b * T + i + 1] : -1;
    return NB_OK;
}

const int32_t *kd_lengths(const kd_trainer *t)
{
    for (int64_t b = 0; b < t->o.batch; b++)
        if (t->length[b] < t->o.ctx)
            return t->length;
    return NULL;
}

/* ---- teacher ------------------------------------------------------------------------------ */

static status teacher_logits(void *ctx, real *dst, int64_t row, int64_t n)
{
    kd_trainer *t = ctx;
    if (t->stored) {
        kd_stored_rows(t->stored, dst, row, n);
        return NB_OK;
    }
    return rt_head(t->session, dst, t->teacher_rows + row * t->teacher->config.dim, n);
}

/* Last hidden states of the batch; through a tape where those of single blocks are wanted too. */
static status teacher_forward(kd_trainer *t, bool blocks, ag_tensor **hidden)
{
    const int64_t B = t->o.batch, T = t->o.ctx;
    if (t->stored)
        return kd_stored_batch(t);
    if (!blocks) {
        for (int64_t b = 0; b < B; b++)
            rt_clear(t->session, b);
        t->teacher_rows = t->teacher_hidden;
        return rt_forward(t->session, B * T, t->slot, t->ids, t->teacher_hidden);
    }
    ag_reset(&t->teacher_tape);
    t->teacher_tape.no_grad = true;
    t->teacher_tape.precision = t->o.precision;
    md_input in = {.B = B, .T = T, .ids = t->ids, .lengths = kd_lengths(t), .hidden = hidden};
    md_output out = md_forward(&t->teacher_tape, t->teacher, &in);
    t->teacher_rows = out.x ? ag_value(out.x) : NULL;
    return ag_status(&t->teacher_tape);
}

/* ---- one step ----------------------------------------------------------------------------- */

static bool recomputes(const kd_trainer *t)
{
    if (t->o.recompute != KD_RECOMPUTE_AUTO)
        return t->o.recompute == KD_RECOMPUTE_ON;
    /* kept per token and block: about 8 vectors of dim and 4 of hidden, against parameters with gradient and two moments */
    const md_config *c = &t->student->config;
    double kept = (double)(t->o.batch * t->o.ctx * c->layers) * (double)(8 * c->dim + 4 * c->hidden) * sizeof(real);
    return kept > 4.0 * (double)ag_params_count(&t->student->params) * sizeof(real) && kept > 1e9;
}

static ag_tensor *add_hidden_loss(kd_trainer *t, ag_tensor *loss, ag_tensor *const *ours, ag_tensor *const *theirs, double weight)
{
    for (int64_t l = HIDDEN_EVERY - 1; l < t->student->config.layers; l += HIDDEN_EVERY) {
        ag_tensor *e = ag_relative_mse(&t->tape, ours[l], theirs[l] ? ag_value(theirs[l]) : NULL);
        loss = ag_add(&t->tape, loss, ag_scale(&t->tape, e, (real)weight));
    }
    return loss;
}

/* Rounds the gradients of the step's i-th batch. */
static uint64_t gradient_seed(const kd_trainer *t, int64_t i)
{
    return nb_random(t->o.seed, nb_hash(NB_HASH_START, "gradients", 9), (uint64_t)(t->step * t->o.accumulate + i)) | 1;
}

static status micro_step(kd_trainer *t, int64_t i, ag_head_report *report, double *total)
{
    const md_config *c = &t->student->config;
    double fade = 1 - 2 * (double)t->step / (double)t->o.steps, hidden = t->o.hidden * (fade > 0 ? fade : 0);
    ag_tensor *ours[256] = {0}, *theirs[256] = {0};
    bool teach = t->teacher && kd_distils(&t->o), blocks = teach && !t->stored && hidden > 0 && c->layers >= HIDDEN_EVERY && c->layers <= 256;
    if (teach)
        TRY(teacher_forward(t, blocks, theirs));
    ag_reset(&t->tape);
    t->tape.quantize_off = t->step < t->o.quant_after;
    t->tape.precision = t->o.precision;
    t->tape.int8_gradients = t->o.int8_gradients ? gradient_seed(t, i) : 0;
    t->tape.step_gradients = t->o.accumulate == 1;
    md_input in = {.B = t->o.batch, .T = t->o.ctx, .ids = t->ids, .lengths = kd_lengths(t), .recompute = recomputes(t), .hidden = blocks ? ours : NULL};
    ag_head_loss how = {.ce = (real)t->o.ce, .kl = (real)t->o.kl, .reverse_kl = (real)t->o.reverse_kl, .mse = (real)t->o.mse, .cosine = (real)t->o.cosine,
                        .temperature = (real)t->o.temperature, .teacher = teach ? teacher_logits : NULL, .ctx = t};
    md_output out = md_forward(&t->tape, t->student, &in);
    ag_tensor *loss = ag_head(&t->tape, out.x, out.w, out.b, t->target, &how, report);
    if (blocks && loss)
        loss = add_hidden_loss(t, loss, ours, theirs, hidden);
    loss = ag_scale(&t->tape, loss, (real)(1.0 / (double)t->o.accumulate));
    TRY(ag_status(&t->tape));
    *total += (double)*ag_value(loss);
    return ag_backward(&t->tape, loss);
}

static ag_optimizer optimizer_of(const kd_trainer *t)
{
    const kd_train_options *o = &t->o;
    ag_optimizer a = ag_adamw(o->lr * ag_schedule_at(&o->schedule, t->step + 1));
    a.sgd = o->sgd;
    a.bf16_moments = o->bf16_moments;
    a.beta1 = o->beta1;
    a.beta2 = o->beta2;
    a.eps = o->eps;
    a.decay = o->decay;
    a.clip = o->clip;
    a.rate[AG_SCALE] = o->lr > 0 ? o->scale_rate / o->lr : 0;
    return a;
}

status kd_step(kd_trainer *t)
{
    ag_head_report report = {0};
    ag_optimizer a = optimizer_of(t);
    bool observe = fq_sites_need_calibration(&t->student->sites, NULL, 0) || !t->student->sites.frozen;
    t->loss = 0;
    t->tape.tap = observe ? (ag_tap){fq_observe, &t->student->sites} : (ag_tap){0};
    for (int64_t i = 0; i < t->o.accumulate; i++) {
        TRY(kd_next_batch(t, i));
        TRY(micro_step(t, i, &report, &t->loss));
    }
    if (report.rows)
        t->kl = report.kl / (double)report.rows;
    if (!isfinite(t->loss))
        return nb_fail(NB_FORMAT, "step %lld: the loss is not finite; a lower --lr may help", (long long)t->step + 1);
    TRY(fq_observe_end(&t->student->sites));
    TRY(ag_optimizer_step(&a, &t->student->params, t->step + 1, &t->norm));
    t->step++;
    TRY(kd_pins_step(t));
    if (t->o.freeze_after && t->step >= t->o.freeze_after)
        t->student->sites.frozen = true;
    return NB_OK;
}

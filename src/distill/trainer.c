/* trainer.c - a run: data cut and held out, the loop of steps, evaluation, checkpoints, resuming. */
#include "distill/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the average of the latents over the decay -------------------------------------------- */

static bool averages_now(const kd_trainer *t)
{
    double share = t->o.schedule.kind == AG_CONSTANT ? 1
                   : t->o.schedule.kind == AG_WSD    ? t->o.schedule.decay_share
                                                     : 0.4;
    return t->o.average > 0 && (double)t->step > (1 - share) * (double)t->o.steps;
}

static status update_average(kd_trainer *t)
{
    const ag_params *ps = &t->student->params;
    bool first = !t->average;
    if (first && !(t->average = nb_alloc_zeroed((size_t)ps->n, sizeof *t->average)))
        return NB_NOMEM;
    t->averaged++;
    for (int64_t i = 0; i < ps->n; i++) {
        ag_param *p = ps->p[i];
        if (!t->average[i] && !(t->average[i] = nb_alloc_aligned((size_t)p->count, sizeof(real))))
            return NB_NOMEM;
        if (first)
            memcpy(t->average[i], p->x, (size_t)p->count * sizeof(real));
        /* young averages forget faster: the weight of step n is at least 1/n */
        double keep = fmin(t->o.average, 1 - 1 / (double)t->averaged);
        real *a = t->average[i], k = (real)keep;
        for (int64_t j = 0; j < p->count; j++)
            a[j] = k * a[j] + (1 - k) * p->x[j];
    }
    return NB_OK;
}

static void swap_average(kd_trainer *t)
{
    ag_params *ps = &t->student->params;
    for (int64_t i = 0; i < ps->n; i++) {
        real *x = ps->p[i]->x;
        ps->p[i]->x = t->average[i];
        t->average[i] = x;
    }
    ps->version++;
}

/* ---- evaluation and files ----------------------------------------------------------------- */

static status evaluate(kd_trainer *t, const char *what)
{
    kd_eval e;
    kd_eval_options o = {.max_tokens = t->o.eval_tokens, .precision = t->o.precision};
    TRY(kd_evaluate_windows(&e, t->student, t->teacher, t->heldout, &t->held, t->o.ctx, &o));
    bool better = t->teacher ? e.kl < t->best_kl : e.nll < t->best_nll;
    if (better) {
        t->best_kl = t->teacher ? e.kl : t->best_kl;
        t->best_nll = e.nll;
        TRY(kd_best_save(t));
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", t->step);
    nb_json_put_string(&w, "heldout", what);
    nb_json_put_number(&w, "nll", e.nll);
    if (e.has_teacher) {
        nb_json_put_number(&w, "heldout_kl", e.kl);
        nb_json_put_number(&w, "same_top", e.same_top);
    }
    nb_json_put_bool(&w, "best", better);
    nb_json_close(&w, '}');
    return kd_metrics_append(t, nb_json_text(&w));
}

static status write_metrics(kd_trainer *t, double rate)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", t->step);
    nb_json_put_number(&w, "loss", t->loss);
    if (t->teacher)
        nb_json_put_number(&w, "kl", t->kl);
    nb_json_put_number(&w, "norm", t->norm);
    nb_json_put_number(&w, "lr", t->o.lr * ag_schedule_at(&t->o.schedule, t->step));
    nb_json_put_number(&w, "tok_s", rate);
    nb_json_close(&w, '}');
    return kd_metrics_append(t, nb_json_text(&w));
}

/* ---- opening and running ------------------------------------------------------------------ */

/* The last 2 % of the windows' tokens, at most 25,000 and at least one window, are held out. */
static status hold_out(kd_trainer *t)
{
    int64_t total = 0, held = 0, n = 0;
    if (t->heldout != t->data)
        return kd_windows_new(&t->held, t->heldout, t->o.ctx, false);
    for (int64_t i = 0; i < t->train.n; i++)
        total += t->train.length[i];
    int64_t limit = total / 50 < 25000 ? total / 50 : 25000;
    while (n + 1 < t->train.n && (n == 0 || held + t->train.length[t->train.n - 1 - n] <= limit))
        held += t->train.length[t->train.n - 1 - n++];
    t->train.n -= n;
    t->held.n = n;
    t->held.start = nb_alloc((size_t)n, sizeof *t->held.start);
    t->held.length = nb_alloc((size_t)n, sizeof *t->held.length);
    if (!t->held.start || !t->held.length)
        return NB_NOMEM;
    memcpy(t->held.start, t->train.start + t->train.n, (size_t)n * sizeof *t->held.start);
    memcpy(t->held.length, t->train.length + t->train.n, (size_t)n * sizeof *t->held.length);
    return NB_OK;
}

static status resolve(kd_trainer *t)
{
    kd_train_options *o = &t->o;
    int64_t limit = t->student->config.ctx;
    TRY(kd_settings_check(o));
    if (t->teacher && t->teacher->config.ctx < limit)
        limit = t->teacher->config.ctx;
    if (o->ctx <= 0)
        o->ctx = t->data->row_length > 0 && t->data->row_length < limit ? t->data->row_length
                 : limit < 256                                          ? limit
                                                                        : 256;
    if (o->ctx > limit || o->ctx < 2)
        return nb_fail(NB_USAGE, "rows of %lld tokens: the model's context is %lld", (long long)o->ctx,
                       (long long)limit);
    const fm_tokens *sources[] = {t->data, t->heldout, t->text};
    for (int i = 0; i < 3; i++)
        if (sources[i] && sources[i]->vocab_size > t->student->config.vocab)
            return nb_fail(NB_USAGE, "%s: its vocabulary has %lld tokens, the model's %lld", sources[i]->path,
                           (long long)sources[i]->vocab_size, (long long)t->student->config.vocab);
    if (t->text && !(o->text_share > 0 && o->text_share < 1))
        return nb_fail(NB_USAGE, "a share of %g of the rows for the second text: above 0 and below 1", o->text_share);
    if (t->teacher && t->teacher->config.vocab != t->student->config.vocab)
        return nb_fail(NB_USAGE, "the teacher's vocabulary has %lld tokens, the student's %lld",
                       (long long)t->teacher->config.vocab, (long long)t->student->config.vocab);
    if (!t->teacher && kd_distils(o))
        return nb_fail(NB_USAGE, "a distillation loss needs a teacher");
    TRY(kd_windows_new(&t->train, t->data, o->ctx, false));
    TRY(hold_out(t));
    if (t->text)
        TRY(kd_windows_new(&t->mixed, t->text, o->ctx, false));
    if (t->train.n < 1)
        return nb_fail(NB_USAGE, "%s is too short to train on: %lld windows of %lld tokens", t->data->path,
                       (long long)t->train.n, (long long)o->ctx);
    if (o->epochs > 0)
        o->steps = (int64_t)ceil(o->epochs * (double)t->train.n / (double)(o->batch * o->accumulate));
    o->schedule.steps = o->steps;
    if (o->schedule.warmup < 0)
        o->schedule.warmup = (int64_t)(0.03 * (double)o->steps) + 1;
    if (o->eval_every <= 0)
        o->eval_every = o->steps / 10 > 0 ? o->steps / 10 : 1;
    TRY(kd_windows_hash(&t->train_hash, &t->train, t->data, o->ctx));
    if (t->text)
        TRY(kd_windows_hash(&t->mixed_hash, &t->mixed, t->text, o->ctx));
    TRY(kd_windows_hash(&t->held_hash, &t->held, t->heldout, o->ctx));
    t->settings = kd_settings_text(t);
    return t->settings ? NB_OK : NB_NOMEM;
}

static void freeze_ends(const kd_trainer *t)
{
    static const char *const end[] = {"embed.weight", "embed.weight.scale", "embed.weight.zero",
                                      "head.weight",  "head.weight.scale",  "head.weight.zero"};
    ag_params *ps = &t->student->params;
    for (int64_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < sizeof end / sizeof *end; k++)
            ps->p[i]->frozen = ps->p[i]->frozen || (t->o.freeze_ends && !strcmp(ps->p[i]->name, end[k]));
}

static status buffers(kd_trainer *t)
{
    size_t B = (size_t)t->o.batch, T = (size_t)t->o.ctx;
    rt_options o = {.slots = t->o.batch, .ctx = t->o.ctx, .precision = t->o.precision};
    t->ids = nb_alloc(B * T, sizeof *t->ids);
    t->target = nb_alloc(B * T, sizeof *t->target);
    t->slot = nb_alloc(B * T, sizeof *t->slot);
    t->length = nb_alloc(B, sizeof *t->length);
    t->index = nb_alloc(B, sizeof *t->index);
    t->order[0] = nb_alloc((size_t)t->train.n, sizeof *t->order[0]);
    t->order[1] = nb_alloc((size_t)t->mixed.n, sizeof *t->order[1]);
    if (!t->ids || !t->target || !t->slot || !t->length || !t->index || !t->order[0] || !t->order[1])
        return NB_NOMEM;
    for (size_t i = 0; i < B * T; i++)
        t->slot[i] = (int32_t)(i / T);
    t->order_epoch[0] = t->order_epoch[1] = -1;
    if (!t->teacher)
        return NB_OK;
    t->teacher_hidden = nb_alloc_aligned(B * T * (size_t)t->teacher->config.dim, sizeof(real));
    return t->teacher_hidden ? rt_open(&t->session, t->teacher, &o) : NB_NOMEM;
}

static void trainer_free(kd_trainer *t)
{
    for (int64_t i = 0; t->average && i < t->student->params.n; i++)
        free(t->average[i]);
    free(t->average);
    kd_pins_free(t);
    kd_windows_free(&t->train);
    kd_windows_free(&t->mixed);
    kd_windows_free(&t->held);
    ag_tape_free(&t->tape);
    ag_tape_free(&t->teacher_tape);
    rt_close(t->session);
    kd_stored_close(t->stored);
    free(t->teacher_hidden);
    free(t->ids);
    free(t->target);
    free(t->length);
    free(t->slot);
    free(t->index);
    free(t->order[0]);
    free(t->order[1]);
    free(t->settings);
    kd_unlock(t);
    free(t->folder);
}

static status predict(kd_trainer *t, kd_train_report *r)
{
    enum { TIMED = 3 };
    double begin = 0;
    for (int64_t i = 0; i < TIMED; i++) {
        if (i == 1)
            begin = nb_seconds();
        TRY(kd_step(t));
    }
    double each = (nb_seconds() - begin) / (TIMED - 1), params = 0, kept = 0;
    for (int64_t i = 0; i < t->student->params.n; i++) {
        const ag_param *p = t->student->params.p[i];
        const int moments = (p->m ? 4 : 0) + (p->v ? 4 : 0) + (p->m16 ? 2 : 0) + (p->v16 ? 2 : 0); /* bytes */
        params += (double)p->count * (double)((p->g ? 2 : 1) * (int)sizeof(real) + moments);
        kept += (double)p->count * (double)((int)sizeof(real) + moments);
    }
    r->seconds = each * (double)t->o.steps;
    r->tokens_per_second = (double)(t->o.batch * t->o.ctx * t->o.accumulate) / each;
    r->tape_bytes = ag_tape_peak(&t->tape);
    r->parameter_bytes = (size_t)params;
    r->disk_bytes = (size_t)kept * (size_t)(t->run->keep > 1 ? t->run->keep : 1) + (size_t)ag_params_count(&t->student->params) * sizeof(real);
    if (t->o.top_k > 0) /* stored logits, and once more while they are made */
        r->disk_bytes += 2 * (size_t)(t->train.n * t->o.ctx) * ((size_t)t->o.top_k * 6 + 2);
    return NB_OK;
}

static status finish(kd_trainer *t)
{
    TRY(evaluate(t, "last"));
    if (t->average) {
        swap_average(t);
        status s = evaluate(t, "average");
        swap_average(t);
        TRY(s);
    }
    return kd_checkpoint_save(t);
}

static status loop(kd_trainer *t, kd_train_report *r)
{
    const int64_t per_step = t->o.batch * t->o.ctx * t->o.accumulate, first = t->step;
    int64_t save_every = t->run->save_every > 0 ? t->run->save_every : t->o.steps / 5 > 0 ? t->o.steps / 5 : 1;
    double begin = nb_seconds();
    char text[160];
    snprintf(text, sizeof text, "start");
    while (t->step < t->o.steps) {
        if (!nb_progress_report(&t->run->progress, t->step, t->o.steps, text)) {
            TRY(kd_checkpoint_save(t));
            return nb_fail(NB_INTERRUPTED,
                           "stopped and saved after step %lld of %lld; the same command goes on from there",
                           (long long)t->step, (long long)t->o.steps);
        }
        TRY(kd_step(t));
        if (averages_now(t))
            TRY(update_average(t));
        r->seconds = nb_seconds() - begin;
        r->tokens_per_second = (double)(per_step * (t->step - first)) / r->seconds;
        r->tokens = per_step * t->step;
        TRY(write_metrics(t, r->tokens_per_second));
        if (t->step % t->o.eval_every == 0 && t->step < t->o.steps)
            TRY(evaluate(t, "during"));
        if (t->step % save_every == 0 && t->step < t->o.steps)
            TRY(kd_checkpoint_save(t));
        char kl[32] = "";
        if (t->teacher)
            snprintf(kl, sizeof kl, " kl %.4f", t->kl);
        snprintf(text, sizeof text, "loss %.4f%s lr %.2e %.0f tok/s best %.4f", t->loss, kl,
                 t->o.lr * ag_schedule_at(&t->o.schedule, t->step), r->tokens_per_second,
                 t->teacher ? t->best_kl : t->best_nll);
    }
    nb_progress_report(&t->run->progress, t->o.steps, t->o.steps, text);
    return finish(t);
}

static status open_stored(kd_trainer *t)
{
    if (!t->teacher || t->o.hidden > 0)
        return nb_fail(NB_USAGE, "stored logits (--top-k) need a teacher and cannot give its hidden states (--hidden)");
    snprintf(t->source, sizeof t->source, "%016llx", (unsigned long long)kd_fingerprint(t));
    char *inside = t->run->logits ? NULL : nb_path_join(t->folder, "logits.h5");
    status s = t->run->logits || inside ? kd_stored_open(t, inside ? inside : t->run->logits) : NB_NOMEM;
    free(inside);
    return s;
}

static status run(kd_trainer *t, kd_train_report *r)
{
    bool found = false;
    TRY(resolve(t));
    freeze_ends(t);
    if (t->run->lean_teacher && t->teacher && t->o.precision == KN_BF16 && t->o.hidden == 0 && t->o.top_k == 0)
        TRY(rt_keep_bf16(t->teacher));
    TRY(buffers(t));
    TRY(kd_pins_new(t));
    if (t->run->dry_run) {
        TRY(kd_start_ranges(t));
        return predict(t, r);
    }
    TRY(nb_make_folder(t->folder));
    TRY(kd_lock(t));
    TRY(t->run->restart ? kd_discard(t) : kd_checkpoint_load(t, &found));
    r->resumed = found;
    if (found && t->step == t->o.steps) {
        r->was_finished = r->finished = true;
        return NB_OK;
    }
    if (t->o.top_k > 0)
        TRY(open_stored(t));
    TRY(kd_metrics_cut(t));
    if (!found)
        TRY(kd_start_ranges(t));
    if (t->o.freeze_after && t->step >= t->o.freeze_after)
        t->student->sites.frozen = true;
    TRY(kd_pins_start(t, found));
    TRY(loop(t, r));
    r->finished = true;
    return NB_OK;
}

status kd_train(const char *folder, md_model *student, md_model *teacher, const kd_train_data *data,
                const kd_train_options *o, const kd_run_options *how, kd_train_report *report)
{
    kd_train_report unused;
    kd_trainer t = {.folder = nb_string(folder),
                    .lock = -1,
                    .student = student,
                    .teacher = teacher,
                    .data = data->data,
                    .text = data->text,
                    .heldout = data->heldout ? data->heldout : data->data,
                    .o = *o,
                    .run = how,
                    .best_kl = INFINITY,
                    .best_nll = INFINITY};
    report = report ? report : &unused;
    *report = (kd_train_report){0};
    status s = t.folder ? run(&t, report) : NB_NOMEM;
    report->step = t.step;
    report->steps = t.o.steps;
    report->loss = t.loss;
    report->kl = t.kl;
    report->best_kl = t.best_kl;
    report->best_nll = t.best_nll;
    memcpy(report->other_key, t.other_key, sizeof t.other_key);
    trainer_free(&t);
    return s;
}

kd_train_options kd_train_defaults(bool distill, bool from_codes, const md_config *c)
{
    const bool small = c->dim < 256;
    kd_train_options o = {.steps = 600,
                          .batch = small ? 16 : 4,
                          .accumulate = 1,
                          .seed = 1,
                          .lr = distill ? (small ? 3e-4 : from_codes ? 4e-5 : 2e-4) : (small ? 2e-3 : 6e-4),
                          .scale_rate = from_codes ? 1e-4 : 1e-3,
                          .bf16_moments = distill,
                          .pin = distill ? 0.03 : 0,
                          .beta1 = 0.9,
                          .beta2 = distill ? 0.999 : 0.95,
                          .eps = 1e-8,
                          .decay = distill ? 0 : 0.1,
                          .clip = 1,
                          .schedule = {.kind = distill ? AG_COSINE : AG_WSD, .warmup = -1, .decay_share = 0.4},
                          .ce = distill ? 0 : 1,
                          .kl = distill ? 1 : 0,
                          .temperature = 1,
                          .text_share = 0.5,
                          .start = FQ_START_IMPORTANCE,
                          .precision = KN_FP32,
                          .eval_tokens = 25000};
    return o;
}

status kd_open(md_model *m, const char *path, const char *which, const md_open_options *o)
{
    if (!nb_path_is_folder(path))
        return md_open(m, path, o);
    char name[32];
    snprintf(name, sizeof name, "%s.h5", which && which[0] ? which : "best");
    char *file = nb_path_join(path, name), *last = nb_path_join(path, "last.h5");
    status s = file && last ? NB_OK : NB_NOMEM;
    bool is_run = s == NB_OK && (nb_path_exists(file) || nb_path_exists(last));
    if (s == NB_OK)
        s = md_open(m, is_run ? file : path, o);
    free(file);
    free(last);
    return s;
}

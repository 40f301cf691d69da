/* picture_train.c - training a network for pictures: shuffled batches, shifts, AdamW, a checkpoint after every epoch.
 * Order, shifts and dropout are functions of (seed, epoch or step): the step is all of the state beside parameters, moments and sites.
 */
#include "distill/picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ORDER = 601, SHIFT = 602, FLIP = 603 }; /* streams of random numbers */

/* One list: name in the file, kind, field. */
#define SETTINGS(X)                                                                                                    \
    X(int, epochs)                                                                                                     \
    X(int, batch)                                                                                                      \
    X(int, shift)                                                                                                      \
    X(int, flip)                                                                                                       \
    X(int, seed)                                                                                                       \
    X(number, lr)                                                                                                      \
    X(number, scale_rate)                                                                                              \
    X(number, decay)                                                                                                   \
    X(number, smoothing)                                                                                               \
    X(number, clip)                                                                                                    \
    X(number, warmup)                                                                                                  \
    X(int, calibration)                                                                                                \
    X(number, freeze_after)                                                                                            \
    X(int, start)                                                                                                      \
    X(int, precision)

kd_picture_options kd_picture_defaults(const md_picture_net *m, const fm_pictures *data)
{
    const bool qat = m->base.recipe.n, windows = m->layer[0].c.K > 1; /* a linear map knows every point by its place */
    bool norms = false;
    for (int64_t i = 0; i < m->layers; i++)
        norms = norms || m->layer[i].norm_w;
    return (kd_picture_options){.epochs = qat ? 3 : 10,
                                .batch = 64,
                                .shift = windows,
                                .flip = windows && data->mirrors,
                                .seed = 1,
                                .lr = qat ? 1e-4 : norms ? 1e-2 : 1e-3,
                                .scale_rate = 1e-3,
                                .clip = qat ? 1 : 0,
                                .warmup = 0.05,
                                .calibration = 1000,
                                .freeze_after = 0.5,
                                .start = FQ_START_MSE};
}

typedef struct {
    const char *folder;
    md_picture_net *m;
    const fm_pictures *data;
    const kd_picture_options *o;
    const nb_progress *progress;
    kd_picture_report *report;
    char *settings;
    int64_t *order;
    real *x;
    int32_t *target;
    ag_tape tape;
    double loss, right; /* sums of this epoch */
    int64_t seen;
} run;

static status check(const kd_picture_options *o, const fm_pictures *data)
{
    if (o->epochs < 1 || o->epochs > 100000 || o->batch < 1 || o->batch > data->n || o->shift < 0 || o->shift >= data->height ||
        o->shift >= data->width)
        return nb_fail(NB_USAGE, "--epochs, --batch or --shift make no sense for %lld pictures of %lldx%lld", (long long)data->n,
                       (long long)data->height, (long long)data->width);
    if (!(o->lr > 0) || !(o->scale_rate >= 0) || !(o->decay >= 0) || !(o->clip >= 0) || !(o->smoothing >= 0 && o->smoothing < 1) ||
        !(o->warmup >= 0 && o->warmup < 1) || !(o->freeze_after >= 0 && o->freeze_after <= 1))
        return nb_fail(NB_USAGE, "--lr wants more than 0; --smoothing, --warmup and --freeze-after shares of 1");
    return NB_OK;
}

static char *settings_text(const run *r)
{
    const kd_picture_options *o = r->o;
    nb_writer w = {0};
    char *stages = md_stages_text(&r->m->stages);
    nb_json_open(&w, NULL, '{');
#define put_int(name)    nb_json_put_int(&w, #name, (int64_t)o->name);
#define put_number(name) nb_json_put_number(&w, #name, o->name);
#define X(kind, name)    put_##kind(name)
    SETTINGS(X)
#undef X
    nb_json_put_string(&w, "stages", stages ? stages : "");
    nb_json_put_string(&w, "recipe", r->m->base.recipe.name);
    nb_json_put_int(&w, "pictures", r->data->n);
    nb_json_close(&w, '}');
    free(stages);
    return nb_json_text(&w);
}

/* ---- files -------------------------------------------------------------------------------- */

static status moments(run *r, fm_h5 *f, bool save)
{
    const ag_params *ps = &r->m->base.params;
    for (int64_t i = 0; i < ps->n; i++)
        for (int k = 0; k < 2; k++) {
            ag_param *p = ps->p[i];
            real **moment = k ? &p->v : &p->m;
            char name[160];
            snprintf(name, sizeof name, "adam/%c/%s", k ? 'v' : 'm', p->name);
            if (save && *moment)
                TRY(fm_h5_write(f, name, FM_F32, p->n_dim, p->dim, *moment));
            if (save || !fm_h5_find(f, name))
                continue;
            if (!*moment && !(*moment = nb_alloc_aligned((size_t)p->count, sizeof(real))))
                return NB_NOMEM;
            TRY(fm_h5_read_all(f, name, FM_F32, *moment, p->n_dim, p->dim));
        }
    return NB_OK;
}

static status save(run *r)
{
    fm_h5 f = {0};
    char *path = nb_path_join(r->folder, "last.h5");
    status s = path ? fm_h5_create(&f, path, "picture") : NB_NOMEM;
    if (s == NB_OK)
        s = md_net_save_state(r->m, &f);
    if (s == NB_OK)
        s = fm_h5_put_int(&f, "", "step", r->report->step);
    if (s == NB_OK)
        s = fm_h5_put_string(&f, "", "settings", r->settings);
    if (s == NB_OK)
        s = moments(r, &f, true);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    free(path);
    return s;
}

static status load(run *r, const char *path)
{
    fm_h5 f = {0};
    const char *settings;
    status s = fm_h5_open(&f, path, "picture");
    if (s == NB_OK)
        s = fm_h5_get_string(&f, "", "settings", &settings);
    if (s == NB_OK && strcmp(settings, r->settings) != 0)
        s = nb_fail(NB_USAGE, "%s: holds a run with other settings (--restart discards it, or choose another folder)\n  there: %.400s\n  asked: %.400s",
                    r->folder, settings, r->settings);
    if (s == NB_OK)
        s = md_net_load_state(r->m, &f);
    if (s == NB_OK)
        s = fm_h5_get_int(&f, "", "step", &r->report->step);
    if (s == NB_OK && (r->report->step < 0 || r->report->step > r->report->steps))
        s = nb_fail(NB_FORMAT, "%s: step %lld of %lld", path, (long long)r->report->step, (long long)r->report->steps);
    if (s == NB_OK)
        s = moments(r, &f, false);
    r->m->base.params.version++;
    fm_h5_close(&f);
    return s;
}

/* A line of figures; those beyond the step of a checkpoint that is gone on from stay, and are written again. */
static status log_epoch(const run *r)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", r->report->step);
    nb_json_put_number(&w, "loss", r->report->loss);
    nb_json_put_number(&w, "accuracy", r->report->accuracy);
    nb_json_close(&w, '}');
    char *line = nb_json_text(&w), *path = nb_path_join(r->folder, "metrics.jsonl");
    FILE *f = line && path ? fopen(path, "ae") : NULL;
    status s = f && fprintf(f, "%s\n", line) > 0 ? NB_OK : nb_fail(NB_IO, "%s/metrics.jsonl: cannot be written", r->folder);
    if (f && fclose(f) && s == NB_OK)
        s = nb_fail(NB_IO, "%s/metrics.jsonl: cannot be written", r->folder);
    free(line);
    free(path);
    return s;
}

/* ---- a step ------------------------------------------------------------------------------- */

/* What watches training: observers of ranges that still move, and running moments of batch norms, m <- 0.9 m + 0.1 of the batch. */
static void watch(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    const run *r = ctx;
    const size_t n = strlen(site);
    if (n < 5 || strcmp(site + n - 5, ".norm") != 0) {
        if (!r->m->base.sites.frozen)
            fq_observe(&r->m->base.sites, site, in, out);
        return;
    }
    const double *mean, *variance;
    ag_batch_norm_moments(out, &mean, &variance);
    for (int64_t i = 0; i < r->m->layers; i++) {
        const ly_conv *l = &r->m->layer[i];
        for (int64_t c = 0; !strncmp(l->name, site, n - 5) && !l->name[n - 5] && c < l->c.N; c++) {
            l->mean->x[c] += (real)0.1 * ((real)mean[c] - l->mean->x[c]);
            l->variance->x[c] += (real)0.1 * ((real)variance[c] - l->variance->x[c]);
        }
    }
}

static int64_t offset(const run *r, uint64_t i)
{
    return (int64_t)(nb_random_unit(r->o->seed, SHIFT, i) * (double)(2 * r->o->shift + 1)) - r->o->shift;
}

static void mirror(real *x, int64_t H, int64_t W)
{
    for (int64_t i = 0; i < H * W; i++) {
        const int64_t left = i % W, right = i - left + W - 1 - left;
        if (left < W / 2) {
            const real keep = x[i];
            x[i] = x[right];
            x[right] = keep;
        }
    }
}

static void fetch(run *r, int64_t at)
{
    const int64_t H = r->data->height, W = r->data->width, B = r->o->batch;
    for (int64_t b = 0; b < B; b++) {
        const int64_t i = r->order[at + b];
        const uint64_t draw = 2 * (uint64_t)(r->report->step * B + b);
        const int64_t dy = offset(r, draw), dx = offset(r, draw + 1);
        real *to = r->x + b * H * W;
        r->target[b] = r->data->label[i];
        memset(to, 0, (size_t)(H * W) * sizeof *to);
        for (int64_t y = dy > 0 ? dy : 0; y < (dy < 0 ? H + dy : H); y++)
            kd_picture_values(to + y * W + (dx > 0 ? dx : 0),
                              r->data->pixel + i * H * W + (y - dy) * W + (dx < 0 ? -dx : 0), W - (dx < 0 ? -dx : dx));
        if (r->o->flip && nb_random(r->o->seed, FLIP, draw) & 1)
            mirror(to, H, W);
    }
}

static void count(run *r, const real *logits, int64_t C)
{
    for (int64_t b = 0; b < r->o->batch; b++) {
        bool best = true;
        for (int64_t c = 0; c < C; c++)
            best = best && (c == r->target[b] || logits[b * C + c] < logits[b * C + r->target[b]]);
        r->right += best;
    }
    r->seen += r->o->batch;
}

static status step(run *r)
{
    const kd_picture_options *o = r->o;
    md_picture_net *m = r->m;
    ag_tape *t = &r->tape;
    const int64_t number = r->report->step + 1, dim[] = {o->batch, r->data->height * r->data->width};
    const ag_schedule schedule = {.kind = AG_COSINE,
                                  .steps = r->report->steps,
                                  .warmup = (int64_t)(o->warmup * (double)r->report->steps)};
    const md_net_run how = {.training = true, .seed = o->seed, .stream = (uint64_t)number};
    ag_optimizer adam = ag_adamw(o->lr * ag_schedule_at(&schedule, number));
    adam.decay = o->decay;
    adam.clip = o->clip;
    adam.rate[AG_SCALE] = o->scale_rate / o->lr;
    m->base.sites.frozen = (double)number > o->freeze_after * (double)r->report->steps;
    ag_reset(t);
    t->precision = o->precision;
    t->tap = (ag_tap){watch, r};
    ag_tensor *y = md_net_forward(t, m, ag_leaf(t, r->x, NULL, 2, dim), &how);
    ag_tensor *loss = y && ag_value(y) ? ag_cross_entropy(t, y, r->target, (real)o->smoothing) : NULL;
    if (!loss)
        return ag_status(t);
    r->loss += (double)loss->x[0] * (double)o->batch;
    count(r, ag_value(y), m->stages.classes);
    TRY(ag_backward(t, loss));
    TRY(ag_optimizer_step(&adam, &m->base.params, number, NULL));
    r->report->step = number;
    return m->base.sites.frozen || !m->base.recipe.n ? NB_OK : fq_observe_end(&m->base.sites);
}

static status finish_epoch(run *r)
{
    r->report->loss = r->loss / (double)r->seen;
    r->report->accuracy = r->right / (double)r->seen;
    r->loss = r->right = 0;
    r->seen = 0;
    TRY(save(r));
    return log_epoch(r);
}

static status loop(run *r)
{
    const int64_t each = r->data->n / r->o->batch;
    const double start = nb_seconds();
    int64_t done = 0;
    for (int64_t order_of = -1; r->report->step < r->report->steps; done++) {
        const int64_t epoch = r->report->step / each;
        char text[80] = "";
        if (epoch != order_of)
            nb_random_permutation(r->order, r->data->n, r->o->seed, ORDER + 1000 * (uint64_t)epoch);
        order_of = epoch;
        fetch(r, r->report->step % each * r->o->batch);
        TRY(step(r));
        snprintf(text, sizeof text, "loss %.4f  right %.2f %%", r->loss / (double)r->seen, 100 * r->right / (double)r->seen);
        const bool go_on = nb_progress_report(r->progress, r->report->step * r->o->batch, r->report->steps * r->o->batch, text);
        if (r->report->step % each == 0)
            TRY(finish_epoch(r));
        if (!go_on && r->report->step < r->report->steps) {
            TRY(save(r));
            return nb_fail(NB_INTERRUPTED, "%s: saved at step %lld of %lld; said again it goes on", r->folder,
                           (long long)r->report->step, (long long)r->report->steps);
        }
    }
    r->report->seconds = nb_seconds() - start;
    r->report->pictures_per_second = r->report->seconds > 0 ? (double)(done * r->o->batch) / r->report->seconds : 0;
    return NB_OK;
}

static status start(run *r, bool restart)
{
    char *last = nb_path_join(r->folder, "last.h5"), *metrics = nb_path_join(r->folder, "metrics.jsonl");
    status s = last && metrics ? nb_make_folder(r->folder) : NB_NOMEM;
    r->report->resumed = s == NB_OK && !restart && nb_path_exists(last);
    if (s == NB_OK && r->report->resumed)
        s = load(r, last);
    else if (s == NB_OK) {
        remove(metrics);
        s = r->m->base.recipe.n ? kd_picture_calibrate(r->m, r->data, r->o->start, r->o->calibration, r->o->seed) : NB_OK;
    }
    free(last);
    free(metrics);
    return s;
}

status kd_picture_train(const char *folder, md_picture_net *m, const fm_pictures *data, const kd_picture_options *o, bool restart,
                        const nb_progress *progress, kd_picture_report *report)
{
    run r = {.folder = folder, .m = m, .data = data, .o = o, .progress = progress, .report = report};
    *report = (kd_picture_report){0};
    TRY(kd_picture_fits(m, data));
    TRY(check(o, data));
    report->steps = o->epochs * (data->n / o->batch);
    r.settings = settings_text(&r);
    r.order = nb_alloc((size_t)data->n, sizeof *r.order);
    r.x = nb_alloc_aligned((size_t)(o->batch * data->height * data->width), sizeof *r.x);
    r.target = nb_alloc((size_t)o->batch, sizeof *r.target);
    status s = r.settings && r.order && r.x && r.target ? start(&r, restart) : NB_NOMEM;
    report->was_finished = s == NB_OK && report->step == report->steps;
    if (s == NB_OK)
        s = loop(&r);
    ag_tape_free(&r.tape);
    free(r.settings);
    free(r.order);
    free(r.x);
    free(r.target);
    return s;
}

/* pin.c - weights that cannot decide. Near the border of two codes a latent weight flips to and fro for as long as it trains, and where it
 * stands at the end is chance. So flips are counted, and a weight that flips often is pinned to the code it had on average:
 *   f <- f + a (flip - f),  m <- m + a (q - m),  a = 0.01;   f > threshold: the code is rne(m) from then on, the latent w = level * scale
 * with a threshold that falls by half a cosine from four times --pin to --pin. Scales and norms go on. Weights of at most 4 bits take
 * part: the steps of wider ones are small. (Nagel et al. 2022, arXiv 2203.11086: iterative freezing)
 *
 * State per weight, in fixed point and kept in checkpoints: f in units of 2^-14 (-1: pinned) and m in units of 2^-11. The codes of the step
 * before are those of the latents.
 */
#include "distill/trainer.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PI 3.14159265358979323846
enum {
    WIDEST = 4,
    CHUNK = 1 << 14,
    NAME = 160,
    ONE_F = KN_PIN_FLIP,
    ONE_M = KN_PIN_MEAN
};

static bool takes_part(const fq_site *s)
{
    const kn_grid *g = &s->spec.grid;
    return s->is_weight && s->w && !s->w->frozen && g->bits > 0 && g->bits <= WIDEST && s->spec.range != FQ_DYNAMIC &&
           g->levels != KN_LEVELS_SIGN && !kn_has_table(g);
}

void kd_pins_free(kd_trainer *t)
{
    for (int64_t i = 0; t->pin && i < t->student->sites.n; i++) {
        free(t->pin[i].flips);
        free(t->pin[i].mean);
        free(t->pin[i].last);
    }
    free(t->pin);
    t->pin = NULL;
}

status kd_pins_new(kd_trainer *t)
{
    const fq_sites *sites = &t->student->sites;
    if (t->o.pin <= 0)
        return NB_OK;
    if (!(t->pin = nb_alloc_zeroed((size_t)sites->n, sizeof *t->pin)))
        return NB_NOMEM;
    for (int64_t i = 0; i < sites->n; i++) {
        const fq_site *s = sites->s[i];
        const size_t n = (size_t)(s->rows * s->cols);
        kd_pin *p = &t->pin[i];
        if (!takes_part(s))
            continue;
        p->flips = nb_alloc_zeroed(n, sizeof *p->flips);
        p->mean = nb_alloc_zeroed(n, sizeof *p->mean);
        p->last = nb_alloc_zeroed(n, sizeof *p->last);
        if (!p->flips || !p->mean || !p->last)
            return NB_NOMEM;
    }
    return NB_OK;
}

status kd_pins_start(kd_trainer *t, bool resumed)
{
    for (int64_t i = 0; t->pin && i < t->student->sites.n; i++) {
        fq_site *s = t->student->sites.s[i];
        kd_pin *p = &t->pin[i];
        const kn_codes *c = p->last ? fq_site_codes(s, &t->student->params) : NULL;
        if (!p->last)
            continue;
        if (!c)
            return NB_NOMEM;
        for (int64_t row = 0; row < s->rows; row++)
            memcpy(p->last + row * s->cols, c->q + row * c->ld, (size_t)s->cols);
        for (int64_t k = 0; !resumed && k < s->rows * s->cols; k++)
            p->mean[k] = (int16_t)(p->last[k] * ONE_M);
    }
    return NB_OK;
}

/* True if a code was pinned to another value than it has. */
static bool pin_span(int16_t *f, int16_t *m, const int8_t *q, int64_t n, int limit)
{
    bool moved = false;
    for (int64_t i = 0; i < n; i++)
        if (f[i] > limit) {
            const int pinned = (m[i] + ONE_M / 2) >> 11;
            m[i] = (int16_t)(pinned * ONE_M);
            f[i] = -1;
            moved = moved || pinned != q[i];
        }
    return moved;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One row: spans that share a scale. */
static bool pin_row(kd_pin *p, real *x, const kn_codes *c, int64_t row, int limit)
{
    const real mul = (real)kn_mul(&c->grid);
    bool moved = false;
    for (int64_t i = 0, n; i < c->cols; i += n) {
        const int64_t at = row * c->cols + i, k = kn_scale_index(c, row, i), group = c->grid.group;
        n = c->cols - i;
        n = c->grid.grain == KN_BLOCK ? smaller(n, group - at % group) : group > 0 ? smaller(n, group) : n;
        int16_t *f = p->flips + at, *m = p->mean + at;
        if (kn_count_flips(f, m, p->last + at, c->q + row * c->ld + i, n, limit))
            moved = pin_span(f, m, c->q + row * c->ld + i, n, limit) || moved;
        kn_hold_pinned(x + at, f, m, n, mul, (real)(kn_add(&c->grid) - (c->zero ? c->zero[k] : 0)), c->scale[k]);
    }
    return moved;
}

status kd_pins_step(kd_trainer *t)
{
    ag_params *ps = &t->student->params;
    const double done = (double)t->step / (double)t->o.steps;
    const bool quantized = t->step > t->o.quant_after; /* before that a pin would quantize early: flips are counted only */
    const double threshold = t->o.pin * (1 + 1.5 * (1 + cos(PI * done)));
    const int limit = quantized && threshold < 1 ? (int)(threshold * ONE_F) : ONE_F;
    bool moved = false;
    for (int64_t i = 0; t->pin && i < t->student->sites.n; i++) {
        fq_site *s = t->student->sites.s[i];
        const kn_codes *c = t->pin[i].last ? fq_site_codes(s, ps) : NULL;
        if (!t->pin[i].last)
            continue;
        if (!c)
            return NB_NOMEM;
        bool any = false;
#pragma omp parallel for schedule(static) reduction(|| : any) if (s->rows * s->cols > CHUNK)
        for (int64_t row = 0; row < s->rows; row++)
            any = pin_row(&t->pin[i], s->w->x, c, row, limit) || any;
        moved = moved || any;
    }
    ps->version += moved;
    return NB_OK;
}

static status each_array(kd_trainer *t, status (*f)(fm_h5 *file, const char *name, int16_t *array, const fq_site *s), fm_h5 *file)
{
    for (int64_t i = 0; t->pin && i < t->student->sites.n; i++) {
        const fq_site *s = t->student->sites.s[i];
        int16_t *const array[] = {t->pin[i].flips, t->pin[i].mean};
        static const char *const folder[] = {"pin/flips", "pin/mean"};
        for (int a = 0; a < 2 && array[a]; a++) {
            char name[NAME];
            snprintf(name, sizeof name, "%s/%s", folder[a], s->name);
            TRY(f(file, name, array[a], s));
        }
    }
    return NB_OK;
}

static status save_array(fm_h5 *f, const char *name, int16_t *array, const fq_site *s)
{
    return fm_h5_write(f, name, FM_I16, 2, (int64_t[]){s->rows, s->cols}, array);
}

static status load_array(fm_h5 *f, const char *name, int16_t *array, const fq_site *s)
{
    TRY(fm_h5_read_all(f, name, FM_I16, array, 2, (int64_t[]){s->rows, s->cols}));
    for (int64_t i = 0; i < s->rows * s->cols; i++)
        if (array[i] < -(ONE_M << (WIDEST - 1)) || array[i] > ONE_F)
            return nb_fail(NB_FORMAT, "%s: /%s holds %d, which is no state of a pinned weight", f->arrays.path, name, array[i]);
    return NB_OK;
}

status kd_pins_save(kd_trainer *t, fm_h5 *f)
{
    return each_array(t, save_array, f);
}

status kd_pins_load(kd_trainer *t, fm_h5 *f)
{
    return each_array(t, load_array, f);
}

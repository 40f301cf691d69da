/* optimizer.c - AdamW and SGD with momentum, one pass over all parameters.
 *   d = g min(1, clip / |g|), |g| over all gradients (learned scales apart, over all of theirs)
 *   AdamW: x *= 1 - lr decay;  m = b1 m + (1-b1) d;  v = b2 v + (1-b2) d^2;
 *          x -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps)                  (Loshchilov & Hutter 2019)
 *   SGD:   x *= 1 - lr decay;  m = b1 m + d;  x -= lr m
 * All parameters are cut into blocks of a fixed size, which threads share out. Norms are added in block order and an
 * element's update depends on nothing else, so the result does not depend on the number of threads.
 */
#include "op.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 16384 };

typedef struct {
    const ag_param *p;
    int64_t from, n;
    double squares;
} work;

ag_optimizer ag_adamw(double lr)
{
    return (ag_optimizer){.lr = lr, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1};
}

static bool takes_part(const ag_param *p)
{
    return p->has_grad && p->g && !p->frozen;
}

static void *zeroed(int64_t n, size_t size)
{
    void *p = nb_alloc_aligned((size_t)n, size);
    return p ? memset(p, 0, (size_t)n * size) : NULL;
}

/* One moment of p, in bf16 where `half`. */
static status moment_new(real **m, uint16_t **m16, const ag_param *p, bool half)
{
    if (half ? *m16 != NULL : *m != NULL)
        return NB_OK;
    if (half)
        *m16 = zeroed(p->count, sizeof(uint16_t));
    else
        *m = zeroed(p->count, sizeof(real));
    return (half ? *m16 != NULL : *m != NULL) ? NB_OK : NB_NOMEM;
}

/* Moments that AdamW has already stay as they are kept. */
static bool in_bf16(const ag_optimizer *o, const ag_param *p)
{
    return !o->sgd && (p->m16 || (!p->m && o->bf16_moments && p->group == AG_WEIGHT));
}

static status moments_new(const ag_optimizer *o, ag_params *ps)
{
    for (int64_t i = 0; i < ps->n; i++) {
        ag_param *p = ps->p[i];
        const bool half = in_bf16(o, p);
        if (!takes_part(p))
            continue;
        TRY(moment_new(&p->m, &p->m16, p, half));
        if (!o->sgd)
            TRY(moment_new(&p->v, &p->v16, p, half));
    }
    return NB_OK;
}

static work *work_new(const ag_params *ps, int64_t *count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < ps->n; i++)
        n += takes_part(ps->p[i]) ? (ps->p[i]->count + BLOCK - 1) / BLOCK : 0;
    work *w = nb_alloc((size_t)n, sizeof *w);
    *count = n;
    n = 0;
    for (int64_t i = 0; w && i < ps->n; i++)
        for (int64_t from = 0; takes_part(ps->p[i]) && from < ps->p[i]->count; from += BLOCK) {
            int64_t rest = ps->p[i]->count - from;
            w[n++] = (work){ps->p[i], from, rest < BLOCK ? rest : BLOCK, 0};
        }
    return w;
}

/* Norms: [0] of all but learned scales, [1] of those. */
static void norms(double norm[2], work *w, int64_t n)
{
    norm[0] = norm[1] = 0;
#pragma omp parallel for schedule(static) if (n > 1)
    for (int64_t i = 0; i < n; i++)
        w[i].squares = kn_sum_squares(w[i].p->g + w[i].from, w[i].n);
    for (int64_t i = 0; i < n; i++)
        norm[w[i].p->group == AG_SCALE] += w[i].squares;
    norm[0] = sqrt(norm[0]);
    norm[1] = sqrt(norm[1]);
}

/* Of each group of parameters: lr with 1 / (1 - b1^t) for Adam, keep = 1 - lr decay, a = 1 - b, root = 1 / sqrt(1 - b2^t). */
static void factors_of(kn_adamw_factors f[AG_GROUP_COUNT], const ag_optimizer *o, int64_t step, const double norm[2])
{
    for (int k = 0; k < AG_GROUP_COUNT; k++) {
        double own = norm[k == AG_SCALE], lr = o->lr * (o->rate[k] != 0 ? o->rate[k] : 1);
        double correct1 = o->sgd ? 1 : 1 - pow(o->beta1, (double)step), correct2 = 1 - pow(o->beta2, (double)step);
        f[k] = (kn_adamw_factors){.lr = (real)(lr / correct1),
                         .keep = (real)(1 - (k == AG_WEIGHT ? lr * o->decay : 0)),
                         .b1 = (real)o->beta1,
                         .a1 = (real)(1 - o->beta1),
                         .b2 = (real)o->beta2,
                         .a2 = (real)(1 - o->beta2),
                         .root = (real)(1 / sqrt(correct2)),
                         .eps = (real)(k == AG_SCALE ? 1e-12 : o->eps),
                         .clip = (real)(o->clip > 0 && own > o->clip ? o->clip / own : 1)};
    }
}

static void sgd(real *restrict x, real *restrict m, const real *restrict g, int64_t n,
                const kn_adamw_factors *f)
{
    for (int64_t i = 0; i < n; i++) {
        m[i] = f->b1 * m[i] + g[i] * f->clip;
        x[i] = f->keep * x[i] - f->lr * m[i];
    }
}

/* A block's share of a step. Random numbers are drawn from the step, the parameter's name and the element's place in it. */
static void update(const ag_optimizer *o, const work *w, const kn_adamw_factors *f, int64_t step)
{
    const ag_param *p = w->p;
    const int64_t from = w->from;
    if (o->sgd)
        sgd(p->x + from, p->m + from, p->g + from, w->n, f);
    else if (p->m16)
        kn_adamw_bf16(p->x + from, p->m16 + from, p->v16 + from, p->g + from, w->n, f,
                      (uint32_t)nb_random((uint64_t)step, nb_hash(NB_HASH_START, p->name, strlen(p->name)), (uint64_t)from));
    else
        kn_adamw(p->x + from, p->m + from, p->v + from, p->g + from, w->n, f);
}

status ag_optimizer_step(const ag_optimizer *o, ag_params *ps, int64_t step, double *norm)
{
    kn_adamw_factors f[AG_GROUP_COUNT];
    double both[2];
    int64_t n;
    if (step < 1)
        return nb_fail(NB_USAGE, "optimizer: step %lld, the first is 1", (long long)step);
    work *w = work_new(ps, &n);
    if (!w)
        return NB_NOMEM;
    norms(both, w, n);
    if (norm)
        *norm = both[0];
    status s = isfinite(both[0]) && isfinite(both[1])
                   ? moments_new(o, ps)
                   : nb_fail(NB_FORMAT, "optimizer: step %lld, the gradient is not finite", (long long)step);
    if (s == NB_OK) {
        factors_of(f, o, step, both);
#pragma omp parallel for schedule(static) if (n > 1)
        for (int64_t i = 0; i < n; i++)
            update(o, &w[i], &f[w[i].p->group], step);
        ps->version++;
        ag_params_clear_grad(ps);
    }
    free(w);
    return s;
}

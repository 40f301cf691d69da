/* quantile.c - levels from each weight's own distribution, so that codes are used about equally often (Dettmers et al. 2022, 2023):
 *   v = w / (largest |w| of its block of 64),  Q the quantile function of v,  k = 4 bits
 *   level_i = (Q(i / 2^k) + Q((i + 1) / 2^k)) / 2,  i = 0 .. 2^k - 1,  over the largest |level|
 * The papers write 2^k + 1, which leaves out the last of the intervals: of normal weights the squared error is 1.8 times as large.
 * NF4 is the same of a normal distribution. Q(p) is the value at place p (n + 1) of the n sorted ones, linear between two. Levels are binary16 and
 * stand in the recipe, a rule for each weight. Of large weights every so many values stand for all.
 */
#include "ptq/static.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, MOST = 1 << 18, LEVELS = KN_OWN_LEVELS, LINE = 256 };

static int by_value(const void *a, const void *b)
{
    const real x = *(const real *)a, y = *(const real *)b;
    return (x > y) - (x < y);
}

real pt_quantile(const real *sorted, int64_t n, double p)
{
    const double at = fmin(fmax(p * (double)(n + 1) - 1, 0), (double)(n - 1));
    const int64_t i = (int64_t)at;
    return i + 1 < n ? (real)((double)sorted[i] + (at - (double)i) * ((double)sorted[i + 1] - (double)sorted[i])) : sorted[i];
}

/* v of every step-th weight; how many. */
static int64_t normalized(real *v, const real *w, int64_t count, int64_t step)
{
    int64_t n = 0;
    for (int64_t i = 0; i < count; i += step) {
        const int64_t first = i / BLOCK * BLOCK, end = first + BLOCK < count ? first + BLOCK : count;
        const real most = kn_absmax(w + first, end - first);
        if (most > 0)
            v[n++] = w[i] / most;
    }
    return n;
}

/* Binary16 levels apart from each other: where values are few or equal, the next number above. */
static void separate(real level[LEVELS])
{
    for (int i = 0; i < LEVELS; i++) {
        level[i] = (real)nb_half_to(nb_half_from((float)level[i]));
        for (real step = (real)0x1p-11; i && !(level[i] > level[i - 1]); step *= 2)
            level[i] = (real)nb_half_to(nb_half_from((float)(level[i - 1] + step)));
    }
}

status pt_quantile_levels(real level[KN_OWN_LEVELS], const real *w, int64_t count)
{
    const int64_t step = (count + MOST - 1) / MOST;
    real *v = nb_alloc((size_t)(count / step + 1), sizeof *v), most = 0;
    if (!v)
        return NB_NOMEM;
    const int64_t n = normalized(v, w, count, step);
    qsort(v, (size_t)n, sizeof *v, by_value);
    for (int i = 0; i < LEVELS; i++) {
        level[i] = n ? (pt_quantile(v, n, (double)i / LEVELS) + pt_quantile(v, n, (double)(i + 1) / LEVELS)) / 2 : (real)i / LEVELS;
        most = fabs((double)level[i]) > (double)most ? (real)fabs((double)level[i]) : most;
    }
    for (int i = 0; i < LEVELS && most > 0; i++)
        level[i] /= most;
    separate(level);
    free(v);
    return NB_OK;
}

status pt_run_quantile(md_model *m, const pt_options *o)
{
    char *base = m->folded ? NULL : fq_recipe_text(&m->recipe);
    const size_t bytes = base ? strlen(base) + (size_t)(m->sites.n + 1) * LINE : 0;
    char *text = base ? nb_alloc(bytes, 1) : NULL;
    size_t used = text ? (size_t)snprintf(text, bytes, "%s", base) : 0;
    status s = m->folded ? nb_fail(NB_USAGE, "the model is folded: its floats are gone") : text ? NB_OK : NB_NOMEM;
    (void)o;
    for (int64_t i = 0; i < m->sites.n && s == NB_OK; i++) {
        char words[192];
        const fq_site *site = m->sites.s[i];
        fq_spec spec = site->spec;
        if (!site->is_weight || site->rows == 1 || !kn_has_table(&spec.grid))
            continue;
        spec.grid = kn_grid_table(KN_TABLE_OWN, KN_BLOCK, BLOCK, KN_SCALE_F32);
        s = pt_quantile_levels(spec.grid.level, site->w->x, site->w->count);
        fq_spec_print(words, sizeof words, &spec);
        used += (size_t)snprintf(text + used, bytes - used, "%s %s\n", site->name, words);
    }
    if (s == NB_OK)
        s = pt_under_recipe(m, "quantile", true, text);
    free(base);
    free(text);
    return s;
}

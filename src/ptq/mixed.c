/* mixed.c - bits of its own for every weight under a size. Formula and choices: ptq.h; costs: fisher.h; the solver: knapsack.h. */
#include "ptq/fisher.h"
#include "ptq/knapsack.h"
#include "ptq/ptq.h"
#include <stdlib.h>
#include <string.h>

enum { LINE = 320 };

typedef struct {
    const fq_site *site; /* of the model as it came */
    fq_spec spec[PT_MOST_CHOICES];
} mixed_weight;

typedef struct {
    md_model *m;
    fm_tokens *data;
    const kd_calibration *o;
    kd_importance importance;
    pt_fisher *fisher;
    mixed_weight *w;
    pt_item *item;
    int64_t n, fixed; /* weights; bytes of what is not chosen */
    double cost, bound;
    int64_t budget, bytes;
} mixer;

/* ---- choices -------------------------------------------------------------------------------- */

static fq_spec with_bits(const fq_spec *spec, int bits, kn_grain grain, int group, kn_scale_type scale)
{
    fq_spec s = *spec;
    s.grid = kn_grid_int(bits, bits == 8, spec->grid.has_zero, grain, group, scale);
    return s;
}

static void list_choices(mixed_weight *w, pt_item *item, const fq_spec *spec)
{
    static const int own[] = {2, 3, 4, 5, 6, 8}, ggml[] = {4, 5, 8};
    const kn_grid *g = &spec->grid;
    const bool blocks = g->grain == KN_GROUP && g->group == 32 && g->scale == KN_SCALE_F16 && !g->has_zero;
    if (kn_has_super(g)) {
        w->spec[0] = with_bits(spec, 4, KN_GROUP, 32, KN_SCALE_SUPER6);
        w->spec[1] = with_bits(spec, 6, KN_GROUP, 16, KN_SCALE_SUPER8);
        w->spec[2] = with_bits(spec, 8, KN_GROUP, 32, KN_SCALE_F16);
        item->n = 3;
    } else {
        const int *bits = blocks ? ggml : own;
        item->n = blocks ? 3 : 6;
        for (int c = 0; c < item->n; c++)
            w->spec[c] = with_bits(spec, bits[c], (kn_grain)g->grain, g->group, (kn_scale_type)g->scale);
    }
    for (int c = 0; c < item->n; c++)
        item->bytes[c] = md_weight_bytes(&w->spec[c], w->site->rows, w->site->cols);
}

static status list_weights(mixer *x)
{
    md_size size;
    const fq_sites *sites = &x->m->sites;
    x->w = nb_alloc_zeroed((size_t)sites->n, sizeof *x->w);
    x->item = nb_alloc_zeroed((size_t)sites->n, sizeof *x->item);
    if (!x->w || !x->item)
        return NB_NOMEM;
    md_measure(&size, x->m);
    x->fixed = md_size_bytes(&size);
    for (int64_t i = 0; i < sites->n; i++) {
        const fq_site *s = sites->s[i];
        const fq_spec *spec = &s->spec;
        if (!s->is_weight || spec->grid.bits == 0 || spec->grid.bits > 8 || !s->w || s->rows < 2)
            continue;
        mixed_weight *w = &x->w[x->n];
        w->site = s;
        list_choices(w, &x->item[x->n++], spec);
        x->fixed -= md_weight_bytes(spec, s->rows, s->cols);
    }
    return x->n ? NB_OK : nb_fail(NB_USAGE, "mixed: recipe %s has no weights of at most 8 bits", x->m->recipe.name);
}

/* ---- costs ---------------------------------------------------------------------------------- */

/* value [rows, cols] <- a weight by a choice, its range by what errors cost (8 bits: absmax, there is nothing to find). */
static status decode_choice(const mixer *x, real *value, const mixed_weight *w, const fq_spec *spec)
{
    char line[LINE], words[192];
    fq_recipe r;
    fq_sites alone = {0};
    fq_spec fixed = *spec;
    fixed.range = FQ_STATIC; /* nothing is learned here */
    fq_spec_print(words, sizeof words, &fixed);
    const int n = snprintf(line, sizeof line, "* %s\n", words);
    TRY(fq_recipe_parse(&r, "choice", line, (size_t)n));
    fq_site *s = fq_site_new(&alone, &r, w->site->name, NULL, w->site->w, w->site->rows, w->site->cols, 0);
    status st = s ? NB_OK : NB_NOMEM;
    if (s)
        st = fq_start_weights(&alone, spec->grid.bits >= 8 ? FQ_START_ABSMAX : FQ_START_IMPORTANCE, pt_fisher_squares, x->fisher);
    const kn_codes *c = st == NB_OK ? fq_site_codes(s, NULL) : NULL;
    if (c)
        kn_decode(value, c, 0, w->site->rows);
    fq_sites_free(&alone);
    fq_recipe_free(&r);
    return st == NB_OK && !c ? NB_NOMEM : st;
}

static status find_costs(mixer *x)
{
    for (int64_t i = 0; i < x->n; i++) {
        mixed_weight *w = &x->w[i];
        pt_item *item = &x->item[i];
        real *value = nb_alloc((size_t)w->site->rows, (size_t)w->site->cols * sizeof *value);
        status s = value ? NB_OK : NB_NOMEM;
        for (int c = 0; c < item->n && s == NB_OK; c++) {
            s = decode_choice(x, value, w, &w->spec[c]);
            if (s == NB_OK)
                item->cost[c] = pt_fisher_cost(x->fisher, w->site, value);
        }
        free(value);
        TRY(s);
        if (!nb_progress_report(x->o->progress, i + 1, x->n, "costs"))
            return nb_fail(NB_INTERRUPTED, "interrupted");
    }
    return NB_OK;
}

/* ---- the recipe ----------------------------------------------------------------------------- */

static char *recipe_text(const mixer *x)
{
    char *base = fq_recipe_text(&x->m->recipe);
    const size_t bytes = base ? strlen(base) + (size_t)(x->n + 4) * LINE : 0;
    char *text = base ? nb_alloc(bytes, 1) : NULL;
    int64_t all = x->fixed;
    size_t used = 0;
    for (int64_t i = 0; i < x->n; i++)
        all += x->item[i].bytes[x->item[i].chosen];
    if (text)
        used = (size_t)snprintf(text, bytes,
                                "# mixed: %lld weights, %lld bytes in all of %lld; sum of their KL alone %.5f, no choice of this size has less than %.5f\n"
                                "# KL: of one weight at a time rounded to nearest, to second order from gradients\n%s",
                                (long long)x->n, (long long)all, (long long)x->budget, x->cost, x->bound, base);
    for (int64_t i = 0; text && i < x->n; i++) {
        char words[192];
        const pt_item *item = &x->item[i];
        fq_spec_print(words, sizeof words, &x->w[i].spec[item->chosen]);
        used += (size_t)snprintf(text + used, bytes - used, "%-32s %s # KL %.6f\n", x->w[i].site->name, words,
                                 item->cost[item->chosen]);
    }
    free(base);
    return text;
}

static status write_text(const char *path, const char *text)
{
    nb_atomic file = {0};
    status s = nb_atomic_begin(&file, path);
    if (s == NB_OK && fputs(text, file.file) < 0)
        s = nb_fail(NB_IO, "%s: cannot be written", path);
    if (s == NB_OK)
        s = nb_atomic_commit(&file);
    nb_atomic_abort(&file);
    return s;
}

/* m under the recipe that was found, its ranges by the importance that was gathered. */
static status apply(mixer *x, const char *text)
{
    fq_recipe r;
    md_model own = {0};
    char name[sizeof r.name];
    kd_calibration o = *x->o;
    snprintf(name, sizeof name, "%.50s+mixed", x->m->recipe.name);
    TRY(fq_recipe_parse(&r, name, text, strlen(text)));
    o.importance = &x->importance;
    status s = md_with_recipe(&own, x->m, &r);
    if (s == NB_OK)
        s = kd_find_ranges(&own, FQ_START_IMPORTANCE, x->data, &o);
    if (s == NB_OK)
        md_replace(x->m, &own);
    md_free(&own);
    fq_recipe_free(&r);
    return s;
}

static status choose(mixer *x, double budget, const char *write_recipe)
{
    md_size size;
    int64_t least;
    md_measure(&size, x->m);
    x->budget = budget > 0 ? (int64_t)(budget * (double)size.params / 8) : md_size_bytes(&size);
    status s = pt_knapsack(x->item, x->n, x->budget - x->fixed, &x->cost, &x->bound, &least);
    if (s == NB_USAGE)
        return nb_fail(s, "mixed: a budget of %.3f bits per weight, the smallest choices take %.3f",
                       8 * (double)x->budget / (double)size.params, 8 * (double)(least + x->fixed) / (double)size.params);
    TRY(s);
    char *text = recipe_text(x);
    s = text ? NB_OK : NB_NOMEM;
    if (s == NB_OK && write_recipe)
        s = write_text(write_recipe, text);
    if (s == NB_OK)
        s = apply(x, text);
    free(text);
    return s;
}

status pt_mixed(md_model *m, fm_tokens *data, const kd_calibration *o, double budget, const char *write_recipe)
{
    mixer x = {.m = m, .data = data, .o = o};
    if (!data)
        return nb_fail(NB_USAGE, "mixed: what a weight's bits cost is seen on data (--data FILE, a text or a token file)");
    status s = list_weights(&x);
    if (s == NB_OK)
        s = kd_importance_new(&x.importance, m);
    if (s == NB_OK)
        s = kd_watch(m, data, o, (ag_tap){kd_gather_importance, &x.importance});
    if (s == NB_OK && x.importance.failed)
        s = NB_NOMEM;
    if (s == NB_OK)
        s = pt_fisher_new_costs(&x.fisher, m, data, o);
    if (s == NB_OK)
        s = find_costs(&x);
    pt_fisher_free(x.fisher);
    if (s == NB_OK)
        s = choose(&x, budget, write_recipe);
    kd_importance_free(&x.importance);
    free(x.w);
    free(x.item);
    return s;
}

/* picture_methods.c - quantization without training of networks for pictures: the methods by name, the recipe they ask for, their order.
 *   from --norms folded--> floats --equalize, smoothquant--> floats --recipe--> ranges (rtn | static | mse | dynamic | easyquant) --biascorrect-->
 * Ranges of a weight that the recipe finds anew at each encoding (dynamic) stand still where a method searches for them.
 */
#include "ptq/picture_ptq.h"
#include <stdlib.h>
#include <string.h>

static const pt_picture_method methods[] = {
    {"rtn", PT_RANGES, true,
     "round to nearest: weights by their largest magnitudes; ranges of results found on training pictures, as the recipe says or\n"
     "by --calib-method"},
    {"static", PT_RANGES, true,
     "the same, and results that the recipe leaves in floats get 8 bits too; every --calib-method (minmax, average, percentile,\n"
     "mse, kl, admm, easyquant)"},
    {"mse", PT_RANGES, true,
     "scales of weights by search for the least squared error, then least squares for the codes found; results as rtn;\n"
     "the best for few bits"},
    {"dynamic", PT_RANGES, false,
     "weights to nearest, results in 8 bits (or the recipe's) whose range is found at run time, picture by picture; no data;\n"
     "computed in floats on the values of codes, not in integers alone"},
    {"easyquant", PT_RANGES, true,
     "largest values, then scales of weights (a factor for each row) and of results searched in turn for the cosine of each\n"
     "layer's output with the float one"},
    {"equalize", PT_BEFORE, false,
     "cross-layer equalization: channels of neighbouring layers get one magnitude, exactly; for scales per tensor, in front of\n"
     "another: equalize+rtn"},
    {"smoothquant", PT_BEFORE, true,
     "outliers of results moved into the weights that read them, channel by channel, by an alpha searched for each pair of layers\n"
     "(or --alpha); in front of another: smoothquant+static"},
    {"biascorrect", PT_AFTER, true,
     "biases take back by how much rounded weights move the mean of a layer's sums; behind another: rtn+biascorrect;\n"
     "for depthwise layers and few bits"},
};
enum { METHODS = sizeof methods / sizeof *methods, MOST = 4 };

const pt_picture_method *pt_picture_methods(int64_t *n)
{
    *n = METHODS;
    return methods;
}

ag_tensor *pt_picture_leaf(ag_tape *t, real **memory, const pt_picture_options *o, int64_t n)
{
    n = n < o->data->n ? n : o->data->n;
    const int64_t dim[] = {n, o->data->height * o->data->width};
    *memory = nb_alloc((size_t)n, (size_t)dim[1] * sizeof **memory);
    t->no_grad = true;
    if (!*memory || kd_picture_sample(*memory, o->data, 0, n, o->seed) != NB_OK)
        return NULL;
    return ag_leaf(t, *memory, NULL, 2, dim);
}

status pt_picture_status(const ag_tape *t)
{
    return ag_status(t) != NB_OK ? ag_status(t) : NB_NOMEM;
}

/* ---- reading "smoothquant+static+biascorrect" ------------------------------------------------ */

typedef struct {
    const pt_picture_method *of[MOST];
    int n;
} plan;

static bool has(const plan *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->of[i]->name, name))
            return true;
    return false;
}

static status unknown(const char *name)
{
    char names[160];
    int used = 0;
    for (int i = 0; i < METHODS; i++)
        used += snprintf(names + used, sizeof names - (size_t)used, "%s%s", i ? ", " : "", methods[i].name);
    return nb_fail(NB_USAGE, pt_method_find(name) ? "%s: a method for language models; networks for pictures have %s"
                                                  : "%s: there is no such method; networks for pictures have %s",
                   name, names);
}

static status add(plan *p, const char *name)
{
    const pt_picture_method *m = NULL;
    for (int i = 0; i < METHODS; i++)
        m = strcmp(methods[i].name, name) ? m : &methods[i];
    if (!m)
        return unknown(name);
    const pt_picture_method *last = p->n ? p->of[p->n - 1] : NULL;
    if (last && last->place == PT_RANGES && m->place == PT_RANGES)
        return nb_fail(NB_USAGE, "%s and %s both decide the ranges: one of them", last->name, m->name);
    if (has(p, name) || p->n == MOST || (last && m->place < last->place))
        return nb_fail(NB_USAGE, "%s: in this order: equalize or smoothquant, then rtn, static, mse, dynamic or easyquant, then biascorrect", name);
    p->of[p->n++] = m;
    return NB_OK;
}

static status read_plan(plan *p, const char *text)
{
    *p = (plan){0};
    for (const char *at = text; *at;) {
        char name[32];
        const size_t n = strcspn(at, "+");
        snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : (int)sizeof name - 1, at);
        TRY(add(p, name));
        at += n + (at[n] == '+');
    }
    return p->n ? NB_OK : nb_fail(NB_USAGE, "which method? (`nibble ptq --list` names them)");
}

/* ---- the recipe ----------------------------------------------------------------------------- */

static void spec_of_weight(fq_spec *s, const plan *p, int calibration)
{
    if (s->grid.bits && s->range == FQ_DYNAMIC && (has(p, "mse") || calibration == PT_CALIBRATION_EASYQUANT))
        s->range = FQ_STATIC;
}

static void spec_of_result(fq_spec *s, const plan *p, int calibration)
{
    const bool dynamic = has(p, "dynamic"), all = dynamic || has(p, "static") || has(p, "easyquant");
    if (!s->grid.bits && all)
        *s = (fq_spec){.grid = kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32), .range = FQ_STATIC, .ste = FQ_STE_CLIPPED};
    if (!s->grid.bits)
        return;
    if (dynamic) {
        *s = (fq_spec){.grid = s->grid};
        s->grid.grain = KN_ROW;
        return;
    }
    if (s->range == FQ_DYNAMIC && all) {
        s->range = FQ_STATIC;
        s->grid.grain = KN_TENSOR;
    }
    if (s->range != FQ_DYNAMIC && calibration != PT_CALIBRATION_RECIPE) {
        s->method = (uint8_t)(calibration == PT_CALIBRATION_EASYQUANT ? FQ_MINMAX : calibration);
        s->parameter = 0;
    }
}

/* The recipe with a rule behind its own for each site whose spec becomes another. */
static status change_recipe(fq_recipe *r, const fq_recipe *from, const fq_sites *sites, const plan *p, int calibration)
{
    enum { LINE = 320 };
    char *base = fq_recipe_text(from), name[sizeof from->name];
    const size_t bytes = base ? strlen(base) + (size_t)(sites->n + 1) * LINE : 0;
    char *text = base ? nb_alloc(bytes, 1) : NULL;
    size_t used = text ? (size_t)snprintf(text, bytes, "%s", base) : 0;
    for (int64_t i = 0; text && i < sites->n; i++) {
        const fq_site *site = sites->s[i];
        fq_spec spec = site->spec;
        char words[192];
        if (site->is_weight)
            spec_of_weight(&spec, p, calibration);
        else
            spec_of_result(&spec, p, calibration);
        if (fq_spec_equal(&spec, &site->spec))
            continue;
        fq_spec_print(words, sizeof words, &spec);
        used += (size_t)snprintf(text + used, bytes - used, "%.100s %s\n", site->name, words);
    }
    snprintf(name, sizeof name, "%.50s%s", from->name, has(p, "dynamic") ? "+dynamic" : "");
    const status s = text ? fq_recipe_parse(r, name, text, strlen(text)) : NB_NOMEM;
    free(base);
    free(text);
    return s;
}

/* ---- running -------------------------------------------------------------------------------- */

static status give_ranges(md_picture_net *m, const plan *p, const pt_picture_options *o)
{
    const fq_start start = has(p, "mse") ? FQ_START_MSE : FQ_START_ABSMAX;
    if (o->data)
        TRY(kd_picture_calibrate(m, o->data, start, o->samples, o->seed));
    else
        TRY(fq_start_weights(&m->base.sites, start, NULL, NULL));
    if (o->calibration == PT_CALIBRATION_EASYQUANT)
        TRY(pt_picture_easyquant(m, o));
    return has(p, "biascorrect") ? pt_picture_correct(m, o) : NB_OK;
}

static status change_floats(md_picture_net *floats, const plan *p, const fq_recipe *r, const pt_picture_options *o)
{
    for (int i = 0; i < p->n; i++) {
        if (!strcmp(p->of[i]->name, "equalize"))
            TRY(md_net_equalize(floats));
        if (!strcmp(p->of[i]->name, "smoothquant"))
            TRY(pt_picture_smooth(floats, r, o));
    }
    return NB_OK;
}

static status quantize(md_picture_net *m, md_picture_net *floats, const fq_recipe *recipe, const plan *p, const pt_picture_options *o)
{
    fq_recipe own = {0};
    TRY(md_net_with_recipe(m, floats, recipe));
    status s = change_recipe(&own, recipe, &m->base.sites, p, o->calibration);
    md_net_free(m);
    if (s == NB_OK)
        s = change_floats(floats, p, &own, o);
    if (s == NB_OK)
        s = md_net_with_recipe(m, floats, &own);
    if (s == NB_OK)
        s = give_ranges(m, p, o);
    if (s != NB_OK)
        md_net_free(m);
    fq_recipe_free(&own);
    return s;
}

status pt_picture_quantize(md_picture_net *m, const md_picture_net *from, const fq_recipe *recipe, const char *text, const pt_picture_options *o)
{
    md_picture_net floats = {0};
    pt_picture_options own = *o;
    plan p;
    *m = (md_picture_net){0};
    TRY(read_plan(&p, text));
    if (has(&p, "easyquant")) {
        if (o->calibration != PT_CALIBRATION_RECIPE && o->calibration != PT_CALIBRATION_EASYQUANT)
            return nb_fail(NB_USAGE, "--calib-method: easyquant starts from the largest values");
        own.calibration = PT_CALIBRATION_EASYQUANT;
    }
    if (own.calibration == PT_CALIBRATION_EASYQUANT && (has(&p, "mse") || has(&p, "dynamic")))
        return nb_fail(NB_USAGE, "--calib-method easyquant: searches scales of weights too; of static or rtn only");
    for (int i = 0; i < p.n; i++)
        if (p.of[i]->needs_data && !o->data)
            return nb_fail(NB_USAGE, "%s: calibrated on which pictures? (--data mnist:FOLDER, fashion:FOLDER or fashion)", p.of[i]->name);
    if (!has(&p, "dynamic") && !o->data)
        return nb_fail(NB_USAGE, "ranges of results are calibrated on which pictures? (--data mnist:FOLDER, fashion:FOLDER or fashion)");
    TRY(md_net_with_recipe(&floats, from, NULL));
    const status s = quantize(m, &floats, recipe, &p, &own);
    md_net_free(&floats);
    return s;
}

/* static.c - 8-bit activations, weights to nearest:
 *   static   one range for a tensor of activations, found on calibration data by a method of fq_method and kept in the file; the runtime looks
 *            for no extremes. A site that has a range per token gets one for the tensor, or (groups) one for every group of channels that its
 *            weights have; heads keep theirs. A range for every channel k of an input, x_k = s_k q_k, leaves sum_k (w_nk s_k) q_k: codes of w_nk s_k, so
 *            s goes into the weights and 1 / s into what makes the channel (pt_level_channels); then one range is each channel's.
 *   dynamic  the range of every token at run time, no data (torch.ao's quantize_dynamic; weights of 16 bits by recipe w16a16 or f16)
 * Inputs that the recipe leaves in floats get 8 bits in front of weights that have codes. Weights that a pass before gave ranges keep them, so
 * mse+static, gptq+static and smoothquant+static mean what they say; others take those of rtn.
 */
#include "ptq/static.h"
#include "ptq/scaling.h"
#include <stdlib.h>
#include <string.h>

enum { SPEC_TEXT = 192, LINE = 256 };

/* ---- another recipe on the same weights --------------------------------------------------- */

/* Ranges of weights whose spec stayed, as they are now. */
static status carry_ranges(md_model *to, const md_model *from)
{
    for (int64_t i = 0; i < to->sites.n; i++) {
        fq_site *s = to->sites.s[i];
        const fq_site *old = fq_site_find(&from->sites, s->name);
        if (!s->is_weight || !s->start || !old || !old->started || !fq_spec_equal(&s->spec, &old->spec))
            continue;
        real *scale = nb_alloc((size_t)s->n_scales, sizeof *scale);
        int32_t *zero = nb_alloc((size_t)s->n_scales, sizeof *zero);
        if (scale && zero) {
            fq_site_ranges(old, scale, zero);
            fq_site_set(s, scale, s->start_zero ? zero : NULL);
        }
        free(scale);
        free(zero);
        if (!scale || !zero)
            return NB_NOMEM;
    }
    return NB_OK;
}

static status start_others(md_model *m)
{
    for (int64_t i = 0; i < m->sites.n; i++)
        if (m->sites.s[i]->is_weight && !m->sites.s[i]->started)
            TRY(fq_start_site(m->sites.s[i], FQ_START_ABSMAX, NULL));
    return NB_OK;
}

status pt_under_recipe(md_model *m, const char *suffix, bool whole, const char *text)
{
    fq_recipe r;
    md_model own = {0};
    char name[sizeof r.name];
    snprintf(name, sizeof name, "%.40s%s%.20s", whole ? "" : m->recipe.name, whole ? "" : "+", suffix);
    TRY(fq_recipe_parse(&r, name, text, strlen(text)));
    status s = md_with_recipe(&own, m, &r);
    if (s == NB_OK)
        s = carry_ranges(&own, m);
    if (s == NB_OK)
        s = start_others(&own);
    if (s == NB_OK)
        md_replace(m, &own);
    md_free(&own);
    fq_recipe_free(&r);
    return s;
}

/* ---- which activations, how --------------------------------------------------------------- */

static bool reads(const char *input, const fq_site *weight)
{
    char name[160];
    return weight->is_weight && weight->spec.grid.bits && kd_input_site(name, sizeof name, weight->name) && !strcmp(name, input);
}

/* A weight with codes that multiplies what stands at this site, or NULL. */
static const fq_site *reader_of(const md_model *m, const fq_site *site)
{
    for (int64_t i = 0; i < m->sites.n; i++)
        if (reads(site->name, m->sites.s[i]))
            return m->sites.s[i];
    return NULL;
}

/* What GELU makes is one-sided. */
static bool is_one_sided(const md_model *m, const fq_site *site)
{
    for (int64_t l = 0; l < m->config.layers; l++)
        if (m->block[l].mlp.activation == LY_GELU && m->block[l].mlp.down_input == site)
            return true;
    return false;
}

typedef struct {
    bool is_static, asym, groups;
    fq_method method;
    float parameter;
} wanted;

static void at_run_time(fq_spec *s)
{
    if (s->range == FQ_DYNAMIC)
        return;
    s->range = FQ_DYNAMIC;
    s->method = FQ_MINMAX;
    s->parameter = 0;
    s->learning = FQ_LOG;
    s->ste = FQ_STE_IDENTITY;
    if (s->grid.grain == KN_TENSOR)
        s->grid.grain = KN_ROW;
}

static void beforehand(fq_spec *s, const fq_site *reader, const wanted *w)
{
    const bool by_group = w->groups && reader && reader->spec.grid.grain == KN_GROUP && !s->grid.has_zero;
    s->range = FQ_STATIC;
    s->method = (uint8_t)w->method;
    s->parameter = w->parameter;
    s->learning = FQ_LOG;
    s->ste = FQ_STE_CLIPPED;
    s->grid.rule = KN_RULE_NIBBLE;
    s->grid.outlier = 0;
    if (!by_group && s->grid.grain == KN_HEAD)
        return;
    s->grid.grain = by_group ? KN_GROUP : KN_TENSOR;
    s->grid.group = by_group ? reader->spec.grid.group : 0;
    s->grid.scale = KN_SCALE_F32;
}

/* The spec of an activation under `w`; false: it stays as it is. */
static bool changed(fq_spec *spec, const md_model *m, const fq_site *site, const wanted *w)
{
    const fq_site *reader = reader_of(m, site);
    *spec = site->spec;
    const bool is_fixed = spec->grid.bits && spec->range != FQ_DYNAMIC && !site->observer; /* probabilities */
    if (site->is_weight || is_fixed || (!spec->grid.bits && !reader))
        return false;
    if (!spec->grid.bits)
        *spec = (fq_spec){.grid = kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32)};
    if (reader && !spec->grid.has_zero && (w->asym || is_one_sided(m, site)))
        spec->grid = kn_grid_int(spec->grid.bits, false, true, KN_ROW, 0, KN_SCALE_F32);
    if (w->is_static)
        beforehand(spec, reader, w);
    else
        at_run_time(spec);
    return !fq_spec_equal(spec, &site->spec);
}

/* "layers.3.attn.input" -> "attn.input" */
static const char *tail_of(const char *name)
{
    int layer, n = 0;
    return sscanf(name, "layers.%d.%n", &layer, &n) == 1 && n ? name + n : NULL;
}

/* Whether the site of every layer with this tail gets `text`. */
static bool in_all_layers(const md_model *m, const char *tail, const char *text, const wanted *w)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        char other[SPEC_TEXT];
        fq_spec spec;
        const char *own = tail_of(m->sites.s[i]->name);
        if (!own || strcmp(own, tail) != 0)
            continue;
        if (!changed(&spec, m, m->sites.s[i], w))
            return false;
        fq_spec_print(other, sizeof other, &spec);
        if (strcmp(other, text) != 0)
            return false;
    }
    return true;
}

/* The rules of m and, behind them, those of changed activations; one for all layers where they agree. NULL: out of memory. */
static char *recipe_text(const md_model *m, const wanted *w, int64_t *changes)
{
    char *base = fq_recipe_text(&m->recipe);
    const size_t bytes = base ? strlen(base) + (size_t)(m->sites.n + 1) * LINE : 0;
    char *text = base ? nb_alloc(bytes, 1) : NULL;
    size_t used = text ? (size_t)snprintf(text, bytes, "%s", base) : 0;
    *changes = 0;
    for (int64_t i = 0; text && i < m->sites.n; i++) {
        char words[SPEC_TEXT];
        fq_spec spec;
        const fq_site *site = m->sites.s[i];
        const char *tail = tail_of(site->name);
        if (!changed(&spec, m, site, w))
            continue;
        fq_spec_print(words, sizeof words, &spec);
        ++*changes;
        if (!tail || !in_all_layers(m, tail, words, w))
            used += (size_t)snprintf(text + used, bytes - used, "%s %s\n", site->name, words);
        else if (!strncmp(site->name, "layers.0.", 9))
            used += (size_t)snprintf(text + used, bytes - used, "layers.*.%s %s\n", tail, words);
    }
    free(base);
    return text;
}

static status give_activations(md_model *m, const char *suffix, const wanted *w)
{
    int64_t changes;
    if (m->folded)
        return nb_fail(NB_USAGE, "the model is folded: its floats are gone");
    char *text = recipe_text(m, w, &changes);
    if (!text)
        return NB_NOMEM;
    status s = changes ? pt_under_recipe(m, suffix, false, text) : start_others(m);
    free(text);
    m->params.version++;
    return s;
}

/* ---- the passes ----------------------------------------------------------------------------- */

status pt_make_static(md_model *m, fq_method method, const pt_options *o)
{
    const wanted w = {.is_static = true, .asym = o->calib_asym, .groups = o->calib_groups, .method = method, .parameter = (float)o->calib_parameter};
    const bool fits = o->calib_parameter == 0 || (method == FQ_PERCENTILE && o->calib_parameter > 50 && o->calib_parameter <= 100) ||
                      (method == FQ_MOVING_AVERAGE && o->calib_parameter > 0 && o->calib_parameter <= 1);
    if (!fits)
        return nb_fail(NB_USAGE, "--calib-parameter %g: a share in (50, 100] of percentile, a rate in (0, 1] of average", o->calib_parameter);
    if (!o->data)
        return nb_fail(NB_USAGE, "calibrated on what? (--data FILE, a text or a token file)");
    if (o->calib_channels && !m->folded)
        TRY(pt_level_channels(m, o));
    TRY(give_activations(m, "static", &w));
    return kd_find_input_ranges(m, o->data, &o->calibration);
}

status pt_run_static(md_model *m, const pt_options *o)
{
    static const fq_method method[] = {FQ_MINMAX, FQ_MOVING_AVERAGE, FQ_PERCENTILE, FQ_MSE, FQ_KL, FQ_ADMM};
    enum { EASYQUANT = sizeof method / sizeof *method }; /* the word behind them */
    return o->calib_method == EASYQUANT ? pt_run_easyquant(m, o) : pt_make_static(m, method[o->calib_method], o);
}

status pt_run_dynamic(md_model *m, const pt_options *o)
{
    TRY(give_activations(m, "dynamic", &(wanted){.asym = o->calib_asym}));
    return o->data ? kd_find_input_ranges(m, o->data, &o->calibration) : NB_OK; /* offsets of keys */
}

const pt_setting pt_static_settings[] = {
    {"--calib-method", "minmax|average|percentile|mse|entropy|admm|easyquant", PT_CHOICE, offsetof(pt_options, calib_method), "percentile",
     "static: how ranges of activations come from data"},
    {"--calib-parameter", "X", PT_NUMBER, offsetof(pt_options, calib_parameter), NULL,
     "static: percentile's share (99.99), average's rate (0.01)"},
    {"--calib-groups", NULL, PT_FLAG, offsetof(pt_options, calib_groups), NULL,
     "static: a range for every group of channels that the weights have, not one for the tensor"},
    {"--calib-channels", NULL, PT_FLAG, offsetof(pt_options, calib_channels), NULL,
     "static: a range for every channel, which an integer product has only inside the weights: channels are levelled first (smoothquant --alpha 1 "
     "--smooth-all --smooth-keys)"},
    {"--calib-asym", NULL, PT_FLAG, offsetof(pt_options, calib_asym), NULL, "static, dynamic, easyquant: inputs with a zero point"},
    {0}};

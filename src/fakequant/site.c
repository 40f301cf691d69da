/* site.c - the registry of quantization sites and the memo of encoded weights.
 *
 * A weight is encoded once per version of the parameters, and packed once where an integer product wants it; the buffers are
 * kept. Activations with a static or learned range have one scale per tensor, head or group of channels, the same in every row.
 */
#include "fakequant/ranges.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

fq_site *fq_site_find(const fq_sites *sites, const char *name)
{
    for (int64_t i = 0; i < sites->n; i++)
        if (!strcmp(sites->s[i]->name, name))
            return sites->s[i];
    return NULL;
}

static void site_free(fq_site *s)
{
    if (!s)
        return;
    free(s->name);
    free(s->start);
    free(s->start_zero);
    fq_observer_free(s->observer);
    kn_codes_free(&s->codes);
    kn_packed_free(&s->packed);
    free(s->right_memory);
    free(s);
}

void fq_sites_free(fq_sites *sites)
{
    for (int64_t i = 0; i < sites->n; i++)
        site_free(sites->s[i]);
    free(sites->s);
    *sites = (fq_sites){0};
}

/* Attention probabilities lie in 0..1 and have one grid, known beforehand. */
static status fix_probabilities(fq_site *s)
{
    if (s->spec.grid.bits != 8)
        return nb_fail(NB_USAGE, "attention probabilities have 8 bits or are float");
    s->spec = (fq_spec){
        .grid = kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32), .range = FQ_STATIC, .ste = FQ_STE_IDENTITY};
    return NB_OK;
}

/* Scales of a static or learned range of an activation: shared by all rows. */
static status count_activation_scales(fq_site *s)
{
    const kn_grid *g = &s->spec.grid;
    s->n_scales = 0;
    if (s->spec.range == FQ_DYNAMIC)
        return NB_OK;
    if (g->levels == KN_LEVELS_SIGN)
        return nb_fail(NB_USAGE, "sign codes of an activation have a dynamic range");
    if (g->grain == KN_ROW || g->grain == KN_BLOCK)
        return nb_fail(NB_USAGE, "a range that is %s covers a tensor, a head or a group of channels",
                       s->spec.range == FQ_STATIC ? "static" : "learned");
    if (g->grain == KN_TENSOR)
        s->n_scales = 1;
    else if (s->cols > 0)
        s->n_scales = (s->cols - 1) / g->group + 1;
    else
        return nb_fail(NB_USAGE, "the number of channels is not known, so the range covers the tensor");
    return NB_OK;
}

/* Where rows are not whole runs of KN_SUPER, ggml's blocks of 32 take the place of its K types: codes of at most 4 bits with
 * fp16 scales (Q4_0), or 8 bits (Q8_0), as wide a file as fewer. */
static void whole_supers(kn_grid *g, int64_t cols)
{
    if (!kn_has_super(g) || cols % KN_SUPER == 0)
        return;
    if (g->bits <= 4)
        g->scale = KN_SCALE_F16;
    else
        *g = kn_grid_int(8, true, false, KN_GROUP, 32, KN_SCALE_F16);
}

/* Fits the spec to the shape. */
static status fit(fq_site *s, int64_t head_size)
{
    kn_grid *g = &s->spec.grid;
    if (ends_with(s->name, "attn.probs"))
        TRY(fix_probabilities(s));
    if (g->grain == KN_HEAD) {
        if (head_size < 1 || s->cols % head_size)
            return nb_fail(NB_USAGE, "%lld channels are not heads of %lld", (long long)s->cols, (long long)head_size);
        g->group = (int32_t)head_size;
    }
    if (s->is_weight)
        whole_supers(g, s->cols);
    else if (kn_has_super(g))
        return nb_fail(NB_USAGE, "two-level scales belong to weights");
    else if (kn_has_table(g))
        return nb_fail(NB_USAGE, "%s: levels of a table belong to weights", kn_table_text((kn_table_name)g->table));
    TRY(kn_grid_check(g));
    if (g->outlier > 0 && (s->is_weight || s->spec.range != FQ_DYNAMIC || !ends_with(s->name, "input")))
        return nb_fail(NB_USAGE, "outliers belong to inputs of linears (*.input) with a dynamic range");
    if (s->spec.before_rotation && !ends_with(s->name, "attn.k"))
        return nb_fail(NB_USAGE, "before-rotation belongs to keys (attn.k)");
    if (s->spec.offset && (s->spec.before_rotation || !ends_with(s->name, "attn.k")))
        return nb_fail(NB_USAGE, "offset belongs to keys (attn.k) after the rotation");
    if (!s->is_weight)
        return count_activation_scales(s);
    if (s->w && s->w->count != s->rows * s->cols)
        return nb_fail(NB_SHAPE, "the weight has %lld elements, not %lld x %lld", (long long)s->w->count,
                       (long long)s->rows, (long long)s->cols);
    s->n_scales = kn_codes_scales(g, s->rows, s->cols);
    return s->n_scales > 0
               ? NB_OK
               : nb_fail(NB_SHAPE, "%lld x %lld is no shape of a weight", (long long)s->rows, (long long)s->cols);
}

static status learn(ag_param **p, ag_params *ps, const char *site, const char *what, int64_t n)
{
    char name[192];
    if (!ps)
        return nb_fail(NB_USAGE, "a learned range needs a list of parameters");
    snprintf(name, sizeof name, "%s.%s", site, what);
    *p = ag_param_new(ps, name, AG_SCALE, 1, &n);
    return *p ? NB_OK : NB_NOMEM;
}

/* Memory of ranges, the observer of an activation, the parameters of a learned range. */
static status allocate(fq_site *s, ag_params *ps)
{
    const fq_spec *spec = &s->spec;
    const bool zero = spec->grid.has_zero;
    if (spec->range == FQ_DYNAMIC || (s->is_weight && !s->w))
        return NB_OK;
    s->start = nb_alloc_zeroed((size_t)s->n_scales, sizeof(real));
    s->start_zero = zero ? nb_alloc_zeroed((size_t)s->n_scales, sizeof(real)) : NULL;
    if (!s->start || (zero && !s->start_zero))
        return NB_NOMEM;
    if (ends_with(s->name, "attn.probs")) {
        s->start[0] = (real)1 / 255;
        s->start_zero[0] = -128;
        s->started = true;
        return NB_OK;
    }
    if (!s->is_weight && !(s->observer = fq_observer_new(spec, s->n_scales)))
        return NB_NOMEM;
    if (spec->range != FQ_LEARNED)
        return NB_OK;
    TRY(learn(&s->u, ps, s->name, "scale", s->n_scales));
    return zero && spec->learning != FQ_LOG ? learn(&s->v, ps, s->name, "zero", s->n_scales) : NB_OK;
}

/* Marks the weights that an input site multiplies with in integers. */
static void pair(fq_site *input, fq_site *weight)
{
    if (input->cols == weight->cols && ends_with(input->name, "input") &&
        kn_can_multiply(&input->spec.grid, &weight->spec.grid, weight->cols))
        weight->multiplied = true;
}

static status append(fq_sites *sites, fq_site *s)
{
    if (sites->n == sites->capacity) {
        int64_t capacity = sites->capacity ? 2 * sites->capacity : 64;
        fq_site **p = nb_resize(sites->s, (size_t)capacity, sizeof *p);
        if (!p)
            return NB_NOMEM;
        sites->s = p;
        sites->capacity = capacity;
    }
    for (int64_t i = 0; i < sites->n && s->spec.grid.bits; i++) {
        fq_site *other = sites->s[i];
        if (other->spec.grid.bits && other->is_weight != s->is_weight)
            pair(s->is_weight ? other : s, s->is_weight ? s : other);
    }
    sites->s[sites->n++] = s;
    return NB_OK;
}

fq_site *fq_site_new(fq_sites *sites, const fq_recipe *r, const char *name, const char *alias, ag_param *w,
                     int64_t rows, int64_t cols, int64_t head_size)
{
    fq_site *s = nb_alloc_zeroed(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (fq_site){.name = nb_string(name),
                   .spec = fq_recipe_find(r, name, alias),
                   .is_weight = rows > 0,
                   .rows = rows,
                   .cols = cols,
                   .w = w,
                   .params = sites->params};
    status e = s->name ? NB_OK : NB_NOMEM;
    if (e == NB_OK && fq_site_find(sites, name))
        e = nb_fail(NB_USAGE, "the site exists already");
    if (e == NB_OK && fq_is_stored_float(&s->spec) && !s->is_weight)
        e = nb_fail(NB_USAGE, "f16 and bf16 floats are for weights (*.weight)");
    if (e == NB_OK && s->spec.grid.bits)
        e = fit(s, head_size);
    if (e == NB_OK && s->spec.grid.bits)
        e = allocate(s, sites->params);
    if (e == NB_OK)
        e = append(sites, s);
    if (e == NB_OK)
        return s;
    char spec[192];
    fq_spec_print(spec, sizeof spec, &s->spec);
    nb_fail_in(e, "site %s (%s)", name, spec);
    site_free(s);
    return NULL;
}

/* ---- the memo of an encoded weight -------------------------------------------------------- */

/* True if the codes are there and up to date; sets *now to the version that they would get. */
static bool fresh(const fq_site *s, const ag_params *ps, uint64_t *now)
{
    *now = ps ? ps->version : 0;
    if (s->version != 0 && s->w && s->w->frozen && (!s->u || s->u->frozen) && (!s->v || s->v->frozen))
        return true;
    return s->version == UINT64_MAX || (s->version != 0 && s->version == *now);
}

const kn_codes *fq_site_codes(fq_site *s, const ag_params *ps)
{
    uint64_t now;
    kn_codes *c = &s->codes;
    if (!s->is_weight || !s->spec.grid.bits)
        return NULL;
    if (fresh(s, ps, &now))
        return c;
    if (!s->w) {
        nb_fail(NB_USAGE, "site %s: no codes were folded in", s->name);
        return NULL;
    }
    if (!c->n_scales && kn_codes_new(c, &s->spec.grid, s->rows, s->cols) != NB_OK)
        return NULL;
    if (s->spec.range == FQ_DYNAMIC) {
        kn_encode(c, s->w->x);
    } else {
        if (!s->started && fq_start_site(s, FQ_START_ABSMAX, NULL) != NB_OK)
            return NULL;
        fq_site_ranges(s, c->scale, c->zero);
        kn_encode_with(c, s->w->x);
    }
    s->version = now;
    s->packed_version = 0;
    return c;
}

const kn_packed *fq_site_packed(fq_site *s, const ag_params *ps)
{
    const kn_codes *c = fq_site_codes(s, ps);
    const kn_grid *g = &s->spec.grid;
    if (!c)
        return NULL;
    if (s->packed_version != 0 && s->packed_version == s->version)
        return &s->packed;
    if (g->bits > 8 || g->has_zero || g->grain == KN_HEAD || g->grain == KN_BLOCK ||
        (g->grain == KN_GROUP && g->group % 4)) {
        nb_fail(NB_UNSUPPORTED, "site %s: no integer product takes this grid", s->name);
        return NULL;
    }
    if (kn_pack(&s->packed, c) != NB_OK)
        return NULL;
    s->packed_version = s->version;
    return &s->packed;
}

const kn_bf16_right *fq_site_right(fq_site *s, const ag_params *ps)
{
    const uint64_t now = ps->version + 1;
    assert(s->is_weight && s->w && !s->spec.grid.bits);
    if (!s->w->x)
        return &s->right;
    if (!s->right_memory && !(s->right_memory = nb_alloc_aligned(kn_bf16_right_bytes(s->cols, s->rows), 1)))
        return NULL;
    if (s->packed_version != now)
        kn_bf16_columns(&s->right, s->w->x, s->rows, s->cols, s->right_memory);
    s->packed_version = now;
    return &s->right;
}

status fq_site_keep_right(fq_site *s, const ag_params *ps)
{
    if (!fq_site_right(s, ps))
        return NB_NOMEM;
    free(s->w->x);
    s->w->x = NULL;
    return NB_OK;
}

/* ---- activations -------------------------------------------------------------------------- */

void fq_encode_activation(const fq_site *s, kn_codes *c, const real *x, int64_t row, int64_t n)
{
    const int grain = s->spec.grid.grain;
    if (s->spec.range == FQ_DYNAMIC) {
        if (grain == KN_TENSOR || grain == KN_BLOCK) { /* a range over rows: all of them at once */
            assert(row == 0 && n == c->rows);
            kn_encode(c, x);
        } else {
            kn_encode_rows(c, x, row, n);
        }
        return;
    }
    const int64_t spans = s->n_scales;
    const bool per_row = grain != KN_TENSOR;
    for (int64_t i = 0; i < spans; i++) {
        fq_range_now now = fq_range_at(s, i);
        for (int64_t m = per_row ? row : 0; m < (per_row ? row + n : 1); m++) {
            c->scale[m * spans + i] = now.scale;
            if (c->zero)
                c->zero[m * spans + i] = now.zero;
        }
    }
    kn_encode_rows_with(c, x, row, n);
}

/* ---- state -------------------------------------------------------------------------------- */

int64_t fq_site_state(const fq_site *s, double *dst)
{
    int64_t n = 0;
    if (!s->start)
        return 0;
    if (dst)
        dst[n] = s->started;
    n++;
    for (int64_t i = 0; i < s->n_scales; i++, n++)
        if (dst)
            dst[n] = (double)s->start[i];
    for (int64_t i = 0; s->start_zero && i < s->n_scales; i++, n++)
        if (dst)
            dst[n] = (double)s->start_zero[i];
    return n + (s->observer ? fq_observer_state(s->observer, dst ? dst + n : NULL) : 0);
}

status fq_site_restore(fq_site *s, const double *src, int64_t n)
{
    if (n != fq_site_state(s, NULL))
        return nb_fail(NB_FORMAT, "site %s: a state of %lld numbers, wanted %lld", s->name, (long long)n,
                       (long long)fq_site_state(s, NULL));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(src[i]))
            return nb_fail(NB_FORMAT, "site %s: number %lld of its state is not finite", s->name, (long long)i);
    if (!n)
        return NB_OK;
    const int64_t ranges = 1 + s->n_scales * (s->start_zero ? 2 : 1);
    if (s->observer && fq_observer_restore(s->observer, src + ranges) != NB_OK)
        return nb_fail_in(NB_FORMAT, "site %s", s->name);
    s->started = *src++ != 0;
    for (int64_t i = 0; i < s->n_scales; i++)
        s->start[i] = (real)*src++;
    for (int64_t i = 0; s->start_zero && i < s->n_scales; i++)
        s->start_zero[i] = (real)*src++;
    if (s->version != UINT64_MAX)
        s->version = 0;
    return NB_OK;
}

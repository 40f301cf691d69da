/* folded.c - a folded model in HDF5 (kind "folded"): the header of model_file.c and, for each tensor NAME,
 *   /tensor/NAME/values   F32, F16 or BF16    where it is left in floating point, as its spec says
 *   /tensor/NAME/codes    U8 [rows, bytes]    q - lo (sign: 0 for -1, 1 for +1) packed to `bits` (fm_pack_bits); 16 bits: I16 [rows, cols]
 *   /tensor/NAME/scales   [n_scales]          as folded_scales.c says, with supers and mean where scales have two levels
 *   /tensor/NAME/zeros    I8 (16 bits: I16) [n_scales], where the grid has zero points
 *   attributes of /tensor/NAME: spec, its text; shape, [rows, cols]
 * Beside them /site/NAME of activations with static or learned ranges (their learned scales are values), and with latent floats
 * /param and all of /site, so that training can go on from it.
 */
#include "models/export.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FULL_NAME = MD_NAME + 32, SPEC_TEXT = 256 };

static fm_dtype zero_dtype(const kn_grid *g)
{
    return g->bits > 8 ? FM_I16 : FM_I8;
}

static const char *dataset(char text[FULL_NAME], const char *tensor, const char *what)
{
    (void)snprintf(text, FULL_NAME, "tensor/%s/%s", tensor, what);
    return text;
}

int64_t md_code_bytes(const kn_grid *g, int64_t rows, int64_t cols)
{
    return g->bits > 8 ? rows * cols * 2 : rows * (int64_t)fm_packed_bytes(cols, g->bits);
}

int64_t md_zero_bytes(const kn_grid *g, int64_t n_scales)
{
    return g->has_zero ? n_scales * (int64_t)fm_dtype_bytes(zero_dtype(g)) : 0;
}

fm_dtype md_stored_as(const md_model *m, const char *param)
{
    const fq_site *site = fq_site_find(&m->sites, param);
    return site && fq_is_stored_float(&site->spec) ? md_scale_dtype(&site->spec.grid) : FM_F32;
}

void md_store_floats(md_model *m)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *site = m->sites.s[i];
        for (int64_t k = 0; fq_is_stored_float(&site->spec) && k < site->w->count; k++)
            site->w->x[k] = kn_store(&site->spec.grid, site->w->x[k]);
    }
    m->params.version++;
}

/* Whether a parameter stands in the file as floats: not the latent of codes, nor the learned scale of a weight. */
bool md_is_float(const md_model *m, const ag_param *p)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *site = m->sites.s[i];
        if (site->is_weight && site->spec.grid.bits && (site->w == p || site->u == p || site->v == p))
            return false;
    }
    return true;
}

/* ---- writing ------------------------------------------------------------------------------ */

static void to_unsigned(uint8_t *u, const int8_t *q, int64_t n, const kn_grid *g)
{
    for (int64_t i = 0; i < n; i++)
        u[i] = g->levels == KN_LEVELS_SIGN ? q[i] > 0 : (uint8_t)(q[i] - g->lo);
}

static status save_packed(fm_h5 *f, const char *name, const kn_codes *c)
{
    const int64_t dim[] = {c->rows, (int64_t)fm_packed_bytes(c->cols, c->grid.bits)};
    uint8_t *row = nb_alloc((size_t)c->cols, 1), *packed = nb_alloc((size_t)dim[0], (size_t)dim[1]);
    status s = row && packed ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < c->rows && s == NB_OK; i++) {
        to_unsigned(row, c->q + i * c->ld, c->cols, &c->grid);
        fm_pack_bits(packed + i * dim[1], row, c->cols, c->grid.bits);
    }
    if (s == NB_OK)
        s = fm_h5_write(f, name, FM_U8, 2, dim, packed);
    free(row);
    free(packed);
    return s;
}

static status save_wide(fm_h5 *f, const char *name, const kn_codes *c)
{
    const int64_t dim[] = {c->rows, c->cols};
    int16_t *q = nb_alloc((size_t)(c->rows * c->cols), sizeof *q);
    if (!q)
        return NB_NOMEM;
    for (int64_t i = 0; i < c->rows; i++)
        memcpy(q + i * c->cols, c->q16 + i * c->ld, (size_t)c->cols * sizeof *q);
    status s = fm_h5_write(f, name, FM_I16, 2, dim, q);
    free(q);
    return s;
}

static status save_zeros(fm_h5 *f, const char *tensor, const kn_codes *c)
{
    char name[FULL_NAME];
    const size_t bytes = fm_dtype_bytes(zero_dtype(&c->grid));
    uint8_t *stored = nb_alloc((size_t)c->n_scales, bytes);
    if (!stored)
        return NB_NOMEM;
    for (int64_t i = 0; i < c->n_scales; i++) {
        const int16_t wide = (int16_t)c->zero[i];
        const int8_t small = (int8_t)c->zero[i];
        memcpy(stored + (size_t)i * bytes, bytes == 1 ? (const void *)&small : (const void *)&wide, bytes);
    }
    status s = fm_h5_write(f, dataset(name, tensor, "zeros"), zero_dtype(&c->grid), 1, &c->n_scales, stored);
    free(stored);
    return s;
}

static status save_codes(fm_h5 *f, const fq_site *site, const kn_codes *c)
{
    char name[FULL_NAME], group[FULL_NAME], spec[SPEC_TEXT];
    const int64_t shape[] = {c->rows, c->cols};
    (void)dataset(name, site->name, "codes");
    (void)snprintf(group, sizeof group, "tensor/%s", site->name);
    fq_spec_print(spec, sizeof spec, &site->spec);
    TRY(c->grid.bits > 8 ? save_wide(f, name, c) : save_packed(f, name, c));
    TRY(md_save_scales(f, site->name, c));
    if (c->grid.has_zero)
        TRY(save_zeros(f, site->name, c));
    TRY(fm_h5_put_string(f, group, "spec", spec));
    return fm_h5_put_ints(f, group, "shape", shape, 2);
}

static status save_values(fm_h5 *f, const ag_param *p, fm_dtype as)
{
    char name[FULL_NAME];
    int64_t rounded = 0;
    (void)dataset(name, p->name, "values");
    if (as == FM_F32)
        return fm_h5_write(f, name, FM_F32, p->n_dim, p->dim, p->x);
    uint16_t *small = nb_alloc((size_t)p->count, sizeof *small);
    status s = small ? md_narrow(small, p->x, p->count, as, p->name, &rounded) : NB_NOMEM;
    if (s == NB_OK)
        s = fm_h5_write(f, name, as, p->n_dim, p->dim, small);
    free(small);
    return s;
}

status md_save_codes(md_model *m, fm_h5 *f, bool latent)
{
    for (int64_t i = 0; i < m->params.n; i++) {
        const ag_param *p = m->params.p[i];
        if (md_is_float(m, p))
            TRY(save_values(f, p, md_stored_as(m, p->name)));
    }
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *site = m->sites.s[i];
        if (!site->is_weight || !site->spec.grid.bits)
            continue;
        const kn_codes *c = fq_site_codes(site, &m->params);
        if (!c)
            return nb_fail_in(NB_NOMEM, "%s", site->name);
        TRY(save_codes(f, site, c));
    }
    TRY(md_save_site_states(m, f, latent));
    return latent ? md_save_latent(m, f, FM_F32) : NB_OK;
}

status md_save_folded(md_model *m, const char *path, bool latent)
{
    char names[256];
    fm_h5 f;
    if (latent && m->folded)
        return nb_fail(NB_USAGE, "%s: a folded model has no latent floats to save", path);
    if (fq_sites_need_calibration(&m->sites, names, sizeof names))
        return nb_fail(NB_USAGE, "%s: these sites have no ranges yet, calibrate them with data: %s", path, names);
    TRY(fm_h5_create(&f, path, "folded"));
    status s = md_save_header(m, &f);
    if (s == NB_OK)
        s = md_save_codes(m, &f, latent);
    if (s == NB_OK)
        return fm_h5_commit(&f);
    fm_h5_close(&f);
    return s == NB_IO ? s : nb_fail_in(s, "%s", path); /* what cannot be written names its file */
}

/* ---- reading ------------------------------------------------------------------------------ */

/* Every tensor as values of its shape, or codes of at least one bit an element: so nothing allocated afterwards is out of proportion to the file. */
static status check_tensors(const md_config *c, const fm_h5 *f)
{
    md_tensor *t;
    int64_t n, dim[2];
    if (c->layers > f->arrays.n)
        return nb_fail(NB_FORMAT, "%lld arrays are too few for %lld layers", (long long)f->arrays.n,
                       (long long)c->layers);
    TRY(md_tensors_new(&t, &n, c));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        char tensor[MD_NAME], name[FULL_NAME];
        (void)md_tensor_name(tensor, &t[i], MD_NIBBLE);
        const fm_array *a = fm_h5_find(f, dataset(name, tensor, "codes"));
        if (!a) {
            int n_dim = md_tensor_dim(dim, &t[i]);
            s = fm_need(&a, &f->arrays, dataset(name, tensor, "values"), n_dim, dim);
        } else if (a->n_dim != 2 || a->dim[0] != t[i].rows || a->dim[1] < (int64_t)fm_packed_bytes(t[i].cols, 1)) {
            s = nb_fail(NB_FORMAT, "/%s: does not fit %lld x %lld codes", name, (long long)t[i].rows,
                        (long long)t[i].cols);
        }
    }
    free(t);
    return s;
}

/* Row i of packed codes; false if one is above `top`. */
static bool unpack_row(const kn_codes *c, int64_t i, const uint8_t *packed, uint8_t top)
{
    const int64_t n = c->cols;
    const uint8_t mul = c->grid.levels == KN_LEVELS_SIGN ? 2 : 1, add = mul == 2 ? UINT8_MAX : (uint8_t)c->grid.lo;
    uint8_t *q = (uint8_t *)c->q + i * c->ld, most = 0;
    fm_unpack_bits(q, packed, n, c->grid.bits);
    for (int64_t j = 0; j < n; j++) {
        most = q[j] > most ? q[j] : most;
        q[j] = (uint8_t)(mul * q[j] + add); /* as int8_t: 2 u - 1, or u + lo */
    }
    return most <= top;
}

static status load_packed(kn_codes *c, fm_h5 *f, const char *name)
{
    const int64_t dim[] = {c->rows, (int64_t)fm_packed_bytes(c->cols, c->grid.bits)};
    const int top = c->grid.levels == KN_LEVELS_SIGN ? 1 : c->grid.hi - c->grid.lo;
    const fm_array *a;
    TRY(fm_need(&a, &f->arrays, name, 2, dim));
    const uint8_t *packed = a->dtype == FM_U8 ? a->data : NULL; /* in the file itself */
    uint8_t *copy = packed ? NULL : nb_alloc((size_t)dim[0], (size_t)dim[1]);
    if (!packed && !copy)
        return NB_NOMEM;
    status s = packed ? NB_OK : fm_h5_read_all(f, name, FM_U8, copy, 2, dim);
    packed = packed ? packed : copy;
    int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad) if (c->rows * c->cols > 1 << 16)
    for (int64_t i = 0; i < (s == NB_OK ? c->rows : 0); i++)
        if (!unpack_row(c, i, packed + i * dim[1], (uint8_t)top))
            bad = i < bad ? i : bad;
    if (s == NB_OK && bad < INT64_MAX)
        s = nb_fail(NB_FORMAT, "row %lld holds a code above %d, wanted %d to %d", (long long)bad, c->grid.hi, c->grid.lo, c->grid.hi);
    free(copy);
    return s;
}

static status load_wide(kn_codes *c, fm_h5 *f, const char *name)
{
    const int64_t dim[] = {c->rows, c->cols};
    int16_t *q = nb_alloc((size_t)(c->rows * c->cols), sizeof *q);
    status s = q ? fm_h5_read_all(f, name, FM_I16, q, 2, dim) : NB_NOMEM;
    for (int64_t i = 0; i < c->rows && s == NB_OK; i++)
        for (int64_t j = 0; j < c->cols && s == NB_OK; j++) {
            int16_t x = c->q16[i * c->ld + j] = q[i * c->cols + j];
            if (x < c->grid.lo || x > c->grid.hi)
                s = nb_fail(NB_FORMAT, "code [%lld,%lld] is %d, wanted %d to %d", (long long)i, (long long)j, x,
                            c->grid.lo, c->grid.hi);
        }
    free(q);
    return s;
}

static status load_zeros(kn_codes *c, fm_h5 *f, const char *tensor)
{
    char name[FULL_NAME];
    (void)dataset(name, tensor, "zeros");
    const fm_array *a = fm_h5_find(f, name);
    if (!c->zero)
        return a ? nb_fail(NB_FORMAT, "has zeros, its spec none") : NB_OK;
    TRY(fm_h5_read_all(f, name, FM_I32, c->zero, 1, &c->n_scales));
    for (int64_t i = 0; i < c->n_scales; i++)
        if (c->zero[i] < c->grid.lo || c->zero[i] > c->grid.hi)
            return nb_fail(NB_FORMAT, "zero %lld is %d, wanted %d to %d", (long long)i, c->zero[i], c->grid.lo,
                           c->grid.hi);
    return NB_OK;
}

static status check_spec(fm_h5 *f, const fq_site *site)
{
    char group[FULL_NAME], wanted[SPEC_TEXT];
    const char *text;
    fq_spec spec;
    (void)snprintf(group, sizeof group, "tensor/%s", site->name);
    fq_spec_print(wanted, sizeof wanted, &site->spec);
    TRY(fm_h5_get_string(f, group, "spec", &text));
    TRY(fq_spec_parse(&spec, text));
    if (!fq_spec_equal(&spec, &site->spec))
        return nb_fail(NB_FORMAT, "coded as \"%.128s\", the recipe says \"%s\"", text, wanted);
    return NB_OK;
}

static status load_codes(fq_site *site, fm_h5 *f)
{
    char name[FULL_NAME];
    kn_codes *c = &site->codes;
    TRY(check_spec(f, site));
    kn_codes_free(c);
    TRY(kn_codes_new(c, &site->spec.grid, site->rows, site->cols));
    (void)dataset(name, site->name, "codes");
    TRY(c->grid.bits > 8 ? load_wide(c, f, name) : load_packed(c, f, name));
    TRY(md_load_scales(c, f, site->name));
    TRY(load_zeros(c, f, site->name));
    site->version = UINT64_MAX;
    return NB_OK;
}

status md_load_codes(md_model *m, fm_h5 *f)
{
    char name[FULL_NAME];
    for (int64_t i = 0; i < m->params.n; i++)
        if (md_is_float(m, m->params.p[i]))
            TRY(md_load_param(m->params.p[i], f, dataset(name, m->params.p[i]->name, "values")));
    m->params.version++;
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *site = m->sites.s[i];
        status s = site->is_weight && site->spec.grid.bits ? load_codes(site, f) : NB_OK;
        if (s != NB_OK)
            return nb_fail_in(s, "%s: /tensor/%s", f->arrays.path, site->name);
    }
    return md_load_site_states(m, f, false);
}

static status build_folded(md_model *m, const md_config *c, const fq_recipe *recipe, fm_h5 *f, bool train)
{
    TRY(md_check_ctx(c, &f->arrays));
    if (!train) {
        status s = check_tensors(c, f);
        if (s != NB_OK)
            return nb_fail_in(s, "%s", f->arrays.path);
        TRY(md_build(m, c, recipe, MD_UNSET, true));
        return md_load_codes(m, f);
    }
    if (!fm_h5_find(f, "param/embed.weight"))
        return nb_fail(NB_USAGE, "%s: has codes only; training starts from a file folded with its latent floats",
                       f->arrays.path);
    TRY(md_check_arrays(&f->arrays, c, MD_NIBBLE, "param/"));
    TRY(md_build(m, c, recipe, MD_UNSET, false));
    return md_load_params(m, f);
}

status md_open_folded(md_model *m, fm_h5 *f, bool train)
{
    md_model header;
    TRY(md_load_header(&header, f));
    status s = build_folded(m, &header.config, &header.recipe, f, train);
    md_carry(m, &header);
    md_free(&header);
    return s;
}

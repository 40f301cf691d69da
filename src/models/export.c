/* export.c - what the exports share. Rotated rows move whole: codes run along the row with their scales, so a permutation of rows is
 * exact. Padding adds rows and columns of zeros to the MLP: silu(0) * 0 = 0, or gelu(0) = 0, meets columns of zeros in down.
 * Tensors that the file keeps in one array are put one below the other, or, transposed, beside each other.
 */
#include "models/export.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

status md_exporting_new(md_exporting *e, const md_model *m, md_naming naming, kn_rope_pairing pairing, int64_t hidden)
{
    int64_t n;
    if (m->config.hadamard)
        return nb_fail(NB_UNSUPPORTED, "the model multiplies by Hadamard matrices in its forward (rotate --online), which no client does; rotate without it, "
                                       "or keep nibble's own file: --to h5");
    *e = (md_exporting){.m = m, .shape = m->config, .naming = naming};
    e->shape.hidden = hidden;
    e->shape.pairing = pairing;
    status s = md_tensors_new(&e->own, &n, &m->config);
    if (s == NB_OK)
        s = md_tensors_new(&e->out, &e->n, &e->shape);
    e->name = s == NB_OK ? nb_alloc((size_t)n, sizeof *e->name) : NULL;
    if (s == NB_OK && !e->name)
        s = NB_NOMEM;
    for (int64_t i = 0; i < e->n && s == NB_OK; i++)
        if (!md_tensor_name(e->name[i], &e->out[i], naming))
            s = nb_fail(NB_UNSUPPORTED, "the format has no place for %s", e->out[i].name[MD_NIBBLE]);
    if (s != NB_OK)
        md_exporting_free(e);
    return s;
}

void md_exporting_free(md_exporting *e)
{
    free(e->own);
    free(e->out);
    free(e->name);
    *e = (md_exporting){0};
}

int64_t md_exporting_find(const md_exporting *e, const char *name)
{
    for (int64_t i = 0; i < e->n; i++)
        if (!strcmp(e->name[i], name))
            return i;
    return -1;
}

int64_t md_exporting_next(const md_exporting *e, int64_t i)
{
    return i + md_tensor_parts(&e->out[i], e->naming);
}

int64_t md_source_row(const md_exporting *e, int64_t i, int64_t row)
{
    const md_tensor *t = &e->own[i];
    if (t->kind != MD_MATRIX)
        return row;
    return row < t->rows ? md_paired_row(row, t->head_size, e->shape.pairing, e->m->config.pairing) : -1;
}

/* One row of the file's tensor as floats; own: a row of the model's. */
static void float_row(real *dst, real *own, const md_exporting *e, int64_t i, const md_values *v, int64_t row)
{
    const md_tensor *t = &e->own[i], *out = &e->out[i];
    const int64_t from = md_source_row(e, i, row);
    memset(dst, 0, (size_t)out->cols * sizeof *dst);
    if (from < 0)
        return;
    md_values_row(own, v, t, from);
    for (int64_t j = 0; j < t->cols; j++)
        dst[j] = own[t->kind == MD_BIAS ? md_paired_row(j, t->head_size, e->shape.pairing, e->m->config.pairing) : j];
}

status md_narrow(uint16_t *dst, const real *x, int64_t n, fm_dtype t, const char *name, int64_t *rounded)
{
    for (int64_t j = 0; j < n; j++) {
        dst[j] = t == FM_F16 ? nb_half_from(x[j]) : nb_bf16_from(x[j]);
        const real back = t == FM_F16 ? nb_half_to(dst[j]) : nb_bf16_to(dst[j]);
        if (isfinite(x[j]) && !isfinite(back))
            return nb_fail(NB_UNSUPPORTED, "%s: %g is beyond the range of %s; F32 holds it", name, (double)x[j],
                           fm_dtype_name(t));
        *rounded += back != x[j];
    }
    return NB_OK;
}

static status put_row(fm_sink *sink, const real *x, uint16_t *narrow, int64_t n, fm_dtype t, const char *name,
                      int64_t *rounded)
{
    if (t == FM_F32)
        return fm_put(sink, x, (size_t)n * sizeof *x);
    TRY(md_narrow(narrow, x, n, t, name, rounded));
    return fm_put(sink, narrow, (size_t)n * sizeof *narrow);
}

/* One row of floats after the other of tensors [i, end). */
typedef struct {
    real *row, *own;
    uint16_t *narrow;
} row_buffers;

static status put_rows(fm_sink *sink, row_buffers *b, md_exporting *e, int64_t i, int64_t end, fm_dtype t)
{
    for (; i < end; i++) {
        const md_tensor *out = &e->out[i];
        md_values v;
        TRY(md_values_of(&v, e->m, &e->own[i]));
        for (int64_t r = 0; r < out->rows; r++) {
            float_row(b->row, b->own, e, i, &v, r);
            TRY(put_row(sink, b->row, b->narrow, out->cols, t, e->name[i], &e->rounded));
        }
    }
    return NB_OK;
}

/* The same transposed: the array is made as a whole, [cols, rows of all]. */
static status put_transposed(fm_sink *sink, row_buffers *b, md_exporting *e, int64_t i, int64_t end, fm_dtype t)
{
    const int64_t rows = e->out[i].rows, cols = e->out[i].cols, width = (end - i) * rows;
    real *all = nb_alloc((size_t)(width * cols), sizeof *all);
    status s = all ? NB_OK : NB_NOMEM;
    for (int64_t k = i; k < end && s == NB_OK; k++) {
        md_values v;
        s = md_values_of(&v, e->m, &e->own[k]);
        for (int64_t r = 0; r < rows && s == NB_OK; r++) {
            float_row(b->row, b->own, e, k, &v, r);
            for (int64_t c = 0; c < cols; c++)
                all[c * width + (k - i) * rows + r] = b->row[c];
        }
    }
    for (int64_t c = 0; c < cols && s == NB_OK; c++)
        s = put_row(sink, all + c * width, b->narrow, width, t, e->name[i], &e->rounded);
    free(all);
    return s;
}

status md_put_floats(fm_sink *sink, md_exporting *e, int64_t i, fm_dtype t)
{
    const md_tensor *out = &e->out[i];
    const int64_t end = md_exporting_next(e, i), width = (end - i) * out->rows;
    row_buffers b = {.row = nb_alloc((size_t)out->cols, sizeof *b.row),
                     .own = nb_alloc((size_t)e->own[i].cols, sizeof *b.own),
                     .narrow = nb_alloc((size_t)(width > out->cols ? width : out->cols), sizeof *b.narrow)};
    status s = b.row && b.own && b.narrow ? NB_OK : NB_NOMEM;
    if (s == NB_OK)
        s = (md_is_transposed(out, e->naming) ? put_transposed : put_rows)(sink, &b, e, i, end, t);
    free(b.row);
    free(b.own);
    free(b.narrow);
    return s;
}

void md_operands(int8_t *dst, int64_t n, const kn_codes *c, int64_t row)
{
    const int mul = kn_mul(&c->grid), add = kn_add(&c->grid);
    memset(dst, 0, (size_t)n);
    for (int64_t j = 0; j < c->cols; j++) {
        int32_t zero = c->zero ? c->zero[kn_scale_index(c, row, j)] : 0;
        dst[j] = (int8_t)(mul * c->q[row * c->ld + j] + add - zero);
    }
}

bool md_operands_fit(const kn_grid *g, int lo, int hi)
{
    const int span = g->hi - g->lo;
    if (g->bits > 8 || kn_has_table(g))
        return false;
    if (g->has_zero)
        return -span >= lo && span <= hi;
    return kn_mul(g) * g->lo + kn_add(g) >= lo && kn_mul(g) * g->hi + kn_add(g) <= hi;
}

bool md_runs_share_scale(const kn_grid *g, int64_t cols, int64_t run)
{
    switch (g->grain) {
    case KN_TENSOR:
    case KN_ROW:
        return true;
    case KN_BLOCK:
        return g->group % run == 0 && cols % run == 0;
    default:
        return g->group % run == 0 || g->group >= cols;
    }
}

void md_say(char *report, size_t bytes, const char *fmt, ...)
{
    size_t used = report && bytes ? strnlen(report, bytes - 1) : 0;
    va_list args;
    if (!report || !bytes)
        return;
    if (used && used + 1 < bytes)
        report[used++] = '\n';
    va_start(args, fmt);
    (void)vsnprintf(report + used, bytes - used, fmt, args);
    va_end(args);
}

void md_say_inputs(char *report, size_t bytes, const md_model *m, const char *client)
{
    char spec[256];
    const fq_spec s = fq_recipe_find(&m->recipe, "layers.0.attn.input", NULL);
    fq_spec_print(spec, sizeof spec, &s);
    md_say(report, bytes, "%s; the model's own inputs: %s", client, spec);
}

void md_say_floats(char *report, size_t bytes, fm_dtype t, int64_t rounded)
{
    if (t == FM_F32 || rounded == 0)
        md_say(report, bytes, "values as %s, exact", fm_dtype_name(t));
    else if (rounded < 0)
        md_say(report, bytes, "values as %s, rounded to it", fm_dtype_name(t));
    else
        md_say(report, bytes, "values as %s: %lld of them are rounded to it", fm_dtype_name(t), (long long)rounded);
}

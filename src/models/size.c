/* size.c - what a model takes: the bytes that a folded file (folded.c) holds in codes, scales, zeros and float tensors. */
#include "models/bind.h"

int64_t md_weight_bytes(const fq_spec *spec, int64_t rows, int64_t cols)
{
    const kn_grid *g = &spec->grid;
    if (g->bits == 0)
        return rows * cols * (fq_is_stored_float(spec) ? 2 : 4);
    return md_code_bytes(g, rows, cols) + md_scale_bytes(g, rows, cols) + md_zero_bytes(g, kn_codes_scales(g, rows, cols));
}

void md_measure(md_size *size, const md_model *m)
{
    *size = (md_size){.params = md_config_params(&m->config)};
    for (int64_t i = 0; i < m->params.n; i++)
        if (md_is_float(m, m->params.p[i]))
            size->float_bytes += m->params.p[i]->count * (int64_t)fm_dtype_bytes(md_stored_as(m, m->params.p[i]->name));
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *site = m->sites.s[i];
        const kn_grid *g = &site->spec.grid;
        if (!site->is_weight || g->bits == 0)
            continue;
        int64_t n_scales = kn_codes_scales(g, site->rows, site->cols);
        size->code_bytes += md_code_bytes(g, site->rows, site->cols);
        size->scale_bytes += md_scale_bytes(g, site->rows, site->cols);
        size->zero_bytes += md_zero_bytes(g, n_scales);
    }
}

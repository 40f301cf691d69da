/* keep_bf16.c - a float model that will only be run, in bf16: its matrices are laid out for bf16 products once and their floats freed. */
#include "runtime/runtime.h"

/* A matrix that products read. The table of an untied embedding, and that of positions, are only looked up. */
static bool is_operand(const md_model *m, const fq_site *s)
{
    const bool looked_up = s == m->position.w_site || (s == m->embed_site && !m->config.tied);
    return s->is_weight && s->w && s->w->x && s->w->n_dim == 2 && !s->spec.grid.bits && !looked_up &&
           kn_takes_bf16(KN_BF16, INT32_MAX, s->rows, s->cols);
}

status rt_keep_bf16(md_model *m)
{
    for (int64_t i = 0; i < m->sites.n; i++)
        if (is_operand(m, m->sites.s[i]))
            TRY(fq_site_keep_right(m->sites.s[i], &m->params));
    return NB_OK;
}

/* easyquant.c - EasyQuant (Wu et al. 2020) of a language model: static, then easyquant_search.c input by input of each block. x comes from the
 * float blocks before, x^ from the quantized ones, on 64 to 256 rows, fewer of a large model; within a block x^ is as it comes with the
 * scales that the search starts from.
 */
#include "ptq/easyquant.h"
#include "ptq/scaling.h"
#include "ptq/static.h"
#include "ptq/walk.h"

enum { FEW_ROWS = 64, MANY_ROWS = 256, SAMPLES = 50 };

static status do_input(const pt_pair *p, const pt_input *x, const pt_input *raw)
{
    pt_scaled reader[PT_SCALED];
    for (int k = 0; k < p->n; k++)
        reader[k] = (pt_scaled){p->reader[k]->w_site, p->reader[k]->w->x, 1};
    return pt_easyquant(p->input, x->sample, raw->sample, x->sampled < raw->sampled ? x->sampled : raw->sampled, x->C,
                        reader, p->n);
}

static int64_t rows_of(const md_config *c)
{
    const int64_t by_size = ((int64_t)1 << 33) / (md_config_params(c) + 1);
    return by_size < FEW_ROWS ? FEW_ROWS : by_size > MANY_ROWS ? MANY_ROWS : by_size;
}

static status do_block(pt_walk *floats, pt_walk *coded)
{
    const int64_t rows = rows_of(&coded->m->config);
    pt_pair pair[PT_PAIRS];
    pt_input x[PT_PAIRS] = {0}, raw[PT_PAIRS] = {0};
    status s = NB_OK;
    pt_readers(pair, coded->m, coded->layer);
    for (int i = 0; i < PT_PAIRS && s == NB_OK; i++) {
        const int64_t tokens = coded->windows * coded->length;
        s = pt_input_new(&x[i], pair[i].input, false, rows, tokens, floats->tape.precision);
        if (s == NB_OK)
            s = pt_input_new(&raw[i], pair[i].input, false, rows, tokens, floats->tape.precision);
    }
    if (s == NB_OK)
        s = pt_walk_block(floats, floats->x, (ag_tap){pt_gather, &(pt_inputs){x, PT_PAIRS}});
    if (s == NB_OK)
        s = pt_walk_watch(coded, (ag_tap){pt_gather, &(pt_inputs){raw, PT_PAIRS}}, pair[PT_PAIRS - 1].input->name);
    for (int i = 0; i < PT_PAIRS && s == NB_OK; i++)
        s = do_input(&pair[i], &x[i], &raw[i]);
    coded->m->params.version++;
    for (int i = 0; i < PT_PAIRS; i++) {
        pt_input_free(&x[i]);
        pt_input_free(&raw[i]);
    }
    if (s == NB_OK)
        floats->layer++;
    return s;
}

status pt_run_easyquant(md_model *m, const pt_options *o)
{
    pt_walk floats = {0}, coded = {0};
    pt_options own = *o;
    if (o->calib_parameter != 0)
        return nb_fail(NB_USAGE, "--calib-parameter: easyquant starts from the largest values and takes none");
    own.calibration.samples = o->calibration.samples > 0 ? o->calibration.samples : SAMPLES;
    own.calibration.progress = NULL;
    TRY(pt_make_static(m, FQ_MINMAX, &own));
    own.calibration.progress = o->calibration.progress;
    status s = pt_walk_new(&floats, m, o->data, &own.calibration);
    if (s == NB_OK)
        s = pt_walk_new(&coded, m, o->data, &own.calibration);
    floats.progress = NULL;
    coded.weights = coded.activations = true;
    while (s == NB_OK && coded.layer < m->config.layers) {
        s = do_block(&floats, &coded);
        if (s == NB_OK)
            s = pt_walk_next(&coded);
    }
    pt_walk_free(&floats);
    pt_walk_free(&coded);
    return s;
}

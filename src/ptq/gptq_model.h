/* gptq_model.h - GPTQ and OBQ as passes over a model (private to ptq/). */
#ifndef NIBBLE_PTQ_GPTQ_MODEL_H
#define NIBBLE_PTQ_GPTQ_MODEL_H
#include "ptq/ptq.h"

/* Block by block, the linears of a block in the order in which they are computed, each on what the quantized ones before it give
 * (true-sequential). Latent floats become the values of the codes, so folding gives these codes and training can start there. Then ranges
 * of static activations. Embedding and tied head keep ranges by rounding or least error (fisher: of less than 8 bits are searched, too). NB_USAGE for weights whose ranges follow
 * the floats (dynamic), or without data. */
status pt_run_gptq(md_model *m, const pt_options *o);
status pt_run_obq(md_model *m, const pt_options *o); /* the greedy order; NB_USAGE where a layer is too large for it */
status pt_run_fisher(md_model *m, const pt_options *o); /* tokens and outputs weighted by what errors there cost the predictions: fisher.h */
extern const pt_setting pt_gptq_settings[];

#endif

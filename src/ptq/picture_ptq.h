/* picture_ptq.h - passes over networks for pictures that look at samples (private to ptq/). */
#ifndef NIBBLE_PTQ_PICTURE_PTQ_H
#define NIBBLE_PTQ_PICTURE_PTQ_H
#include "ptq/ptq.h"

/* p: the network in floats, norms folded, scaled in place; the recipe decides how well a scaling does. */
status pt_picture_smooth(md_picture_net *p, const fq_recipe *recipe, const pt_picture_options *o);
/* m: under its recipe, with ranges: other scales (easyquant), other biases (correct). */
status pt_picture_easyquant(md_picture_net *m, const pt_picture_options *o);
status pt_picture_correct(md_picture_net *m, const pt_picture_options *o);
/* The first n calibration pictures (fewer where there are fewer) as a leaf [n, H*W] of the tape; its values live in *memory, which the caller frees. */
ag_tensor *pt_picture_leaf(ag_tape *t, real **memory, const pt_picture_options *o, int64_t n);
status pt_picture_status(const ag_tape *t); /* why a tape gave no result */

#endif

/* blockwise.h - the methods that train block by block, for methods.c (private to ptq/); each file says what it computes. */
#ifndef NIBBLE_PTQ_BLOCKWISE_H
#define NIBBLE_PTQ_BLOCKWISE_H
#include "ptq/ptq.h"

status pt_autoround(md_model *m, const pt_options *o);
status pt_blockap(md_model *m, const pt_options *o);
status pt_omniquant(md_model *m, const pt_options *o);
status pt_adaround(md_model *m, const pt_options *o);
status pt_e2eqp(md_model *m, const pt_options *o); /* end to end, behind one of them or alone: scales only */

#endif

/* descent.h - codes and scales of a matrix moved one by one to where its error costs least (private to ptq/). */
#ifndef NIBBLE_PTQ_DESCENT_H
#define NIBBLE_PTQ_DESCENT_H
#include "ptq/gptq.h"

/* One sweep over w [rows, cols] from the codes and scales in c: for each row its scales by least squares, then its codes from the first to the last, each to the level
 * that costs least while all else stays. The cost tr O E H' E', E = w - v, H' = H with its damping, never rises. For grids that pt_fits_scales takes. NB_NOMEM. */
status pt_descend(kn_codes *c, const real *w, const pt_hessian *h, const pt_hessian *outputs);

#endif

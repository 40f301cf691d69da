/* static.h - activations with ranges of their own (private to ptq/). */
#ifndef NIBBLE_PTQ_STATIC_H
#define NIBBLE_PTQ_STATIC_H
#include "ptq/ptq.h"

/* Every activation of the model that is quantized, and the input of every weight with codes, gets a static range by `method`, from o->data;
 * weights without ranges get those of rtn. m is built anew under "RECIPE+static": pointers into it are void. */
status pt_make_static(md_model *m, fq_method method, const pt_options *o);

/* m under the rules of `text`, named "RECIPE+suffix", or suffix alone where `whole`; weights whose spec stays keep their ranges, others take those of rtn.
 * m is built anew. */
status pt_under_recipe(md_model *m, const char *suffix, bool whole, const char *text);

/* Quantile p of n sorted values by the (n + 1) rule; 16 levels of w's quantiles in blocks of 64 (quantile.c tells). */
real pt_quantile(const real *sorted, int64_t n, double p);
status pt_quantile_levels(real level[KN_OWN_LEVELS], const real *w, int64_t count);
status pt_run_quantile(md_model *m, const pt_options *o);
status pt_run_static(md_model *m, const pt_options *o);
status pt_run_dynamic(md_model *m, const pt_options *o);
status pt_run_easyquant(md_model *m, const pt_options *o);
extern const pt_setting pt_static_settings[];

#endif

/* fisher.h - what an error of a linear map costs the model's predictions, by tokens and by the map's outputs (private to ptq/). Formulas: fisher.c. */
#ifndef NIBBLE_PTQ_FISHER_H
#define NIBBLE_PTQ_FISHER_H
#include "ptq/gptq.h"
#include "ptq/ptq.h"

typedef struct pt_fisher pt_fisher;
/* Of all weights in blocks that m's recipe quantizes: a forward and a backward pass of the floats over ids [windows, length]. Takes a real for every pair of a weight's
 * rows. Precision, seed and progress are c's. */
status pt_fisher_new(pt_fisher **f, md_model *m, const int32_t *ids, int64_t windows, int64_t length, const kd_calibration *c);
/* The tokens' weights alone, in the sums of importance: mean s_t x_j^2 of what goes into each weight; the head's input unweighted. */
status pt_fisher_importance(kd_importance *h, md_model *m, fm_tokens *data, const kd_calibration *c);
/* Of all weights with codes what an error E of one of them costs by itself, were errors independent, in nats a token:
 *   KL(model || model with W + E) ~ 1/2 sum_rc a_r E_rc^2 b_c / sum_r a_r,  a_r = mean g_tr^2,  b_c = mean |g_t|^2 x_tc^2
 * (of the embedding and a tied head a_v says how often v is seen and b is H's diagonal, of another head |g_t|^2 is 1 - sum p_t^2). By c's windows of data. */
status pt_fisher_new_costs(pt_fisher **f, md_model *m, fm_tokens *data, const kd_calibration *c);
double pt_fisher_cost(const pt_fisher *f, const fq_site *weight, const real *value); /* E = value - the weight's floats */
const real *pt_fisher_squares(void *fisher, const fq_site *weight); /* b, a callback of fq_start_weights */
void pt_fisher_free(pt_fisher *f); /* NULL is fine */
/* [windows * length], mean 1: what a token's error costs in the weights that read this input; NULL: none of them is quantized. */
const real *pt_fisher_tokens(const pt_fisher *f, const char *input);
/* H [rows, rows] of what comes out of a weight, factored, for pt_gptq_options.outputs; *h NULL: it has none. Until the next call. */
status pt_fisher_outputs(const pt_hessian **h, pt_fisher *f, const char *weight);

/* H [cols, cols] of errors of an embedding's rows, which a tied head has too, factored; *h NULL: it has none, 8 bits or more, or no codes. */
status pt_fisher_rows(const pt_hessian **h, pt_fisher *f, double percdamp);

#endif

/* importance.h - what gathers importance (calibrate.c) and what keeps it in files (imatrix.c) share. Private to distill/. */
#ifndef NIBBLE_DISTILL_IMPORTANCE_H
#define NIBBLE_DISTILL_IMPORTANCE_H
#include "distill/distill.h"

/* The index in h->sites of what goes into a weight; -1: it is looked up only, or no linear's. */
int64_t kd_input_of(const kd_importance *h, const fq_site *weight);

#endif

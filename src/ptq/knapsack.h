/* knapsack.h - one choice for each of n things under a budget, exactly (private to ptq/). */
#ifndef NIBBLE_PTQ_KNAPSACK_H
#define NIBBLE_PTQ_KNAPSACK_H
#include "base/base.h"

enum { PT_MOST_CHOICES = 6 };
typedef struct {
    int n; /* choices */
    int64_t bytes[PT_MOST_CHOICES];
    double cost[PT_MOST_CHOICES];
    int chosen;
} pt_item;
/* The multiple-choice knapsack: minimizes sum cost[chosen] where sum bytes[chosen] <= budget, by dynamic programming over the bytes above the smallest
 * choices in units of their greatest common divisor. That is exact (bound = cost) unless there are more than 2^16 units: then sizes are rounded up to
 * larger units for the answer, and down for the bound: no choice costs less than *bound. NB_USAGE where even the smallest do not fit, with *least = their sum. */
status pt_knapsack(pt_item *item, int64_t n, int64_t budget, double *cost, double *bound, int64_t *least);

#endif

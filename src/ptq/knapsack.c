/* knapsack.c - the multiple-choice knapsack by dynamic programming (Kellerer, Pferschy, Pisinger 2004, chapter 11).
 *   best[k][u] = min over choices c of item k:  cost[c] + best[k-1][u - size[c]],   u units of slack at most
 */
#include "ptq/knapsack.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_UNITS = 1 << 16 };

static int64_t divisor(int64_t a, int64_t b)
{
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static int64_t smallest(const pt_item *item)
{
    int64_t least = item->bytes[0];
    for (int c = 1; c < item->n; c++)
        least = item->bytes[c] < least ? item->bytes[c] : least;
    return least;
}

/* best [units + 1]; choice [n, units + 1] or NULL. Sizes in units are rounded up, or down. */
static void solve(double *best, double *next, uint8_t *choice, const pt_item *item, int64_t n, int64_t unit, int64_t units, bool up)
{
    for (int64_t u = 0; u <= units; u++)
        best[u] = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t least = smallest(&item[i]);
        int64_t size[PT_MOST_CHOICES];
        for (int c = 0; c < item[i].n; c++)
            size[c] = (item[i].bytes[c] - least + (up ? unit - 1 : 0)) / unit;
        for (int64_t u = 0; u <= units; u++) {
            int chosen = 0;
            next[u] = INFINITY;
            for (int c = 0; c < item[i].n; c++) {
                if (size[c] > u || !(best[u - size[c]] + item[i].cost[c] < next[u]))
                    continue;
                next[u] = best[u - size[c]] + item[i].cost[c];
                chosen = c;
            }
            if (choice)
                choice[i * (units + 1) + u] = (uint8_t)chosen;
        }
        memcpy(best, next, (size_t)(units + 1) * sizeof *best);
    }
}

static void trace(pt_item *item, int64_t n, const uint8_t *choice, int64_t unit, int64_t units)
{
    int64_t u = units;
    for (int64_t i = n; i-- > 0;) {
        const int64_t least = smallest(&item[i]);
        item[i].chosen = choice[i * (units + 1) + u];
        u -= (item[i].bytes[item[i].chosen] - least + unit - 1) / unit;
    }
}

status pt_knapsack(pt_item *item, int64_t n, int64_t budget, double *cost, double *bound, int64_t *least)
{
    int64_t unit = 0;
    *least = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t small = smallest(&item[i]);
        *least += small;
        for (int c = 0; c < item[i].n; c++)
            unit = divisor(item[i].bytes[c] - small, unit);
    }
    const int64_t slack = budget - *least;
    if (slack < 0)
        return nb_fail(NB_USAGE, "a budget of %lld bytes: the smallest choices take %lld", (long long)budget, (long long)*least);
    unit = unit > 0 ? unit : 1;
    const bool exact = slack / unit <= MOST_UNITS;
    unit = exact ? unit : slack / MOST_UNITS + 1;
    const int64_t units = slack / unit;
    double *best = nb_alloc((size_t)units + 1, 2 * sizeof *best);
    uint8_t *choice = nb_alloc((size_t)n, (size_t)units + 1);
    const status s = best && choice ? NB_OK : NB_NOMEM;
    if (s == NB_OK) {
        double *next = best + units + 1;
        solve(best, next, NULL, item, n, unit, units, false);
        *bound = best[units];
        solve(best, next, choice, item, n, unit, units, true);
        *cost = best[units];
        trace(item, n, choice, unit, units);
    }
    free(best);
    free(choice);
    return s;
}

/* schedule.c - the factor on the learning rate, for steps 1..steps.
 *   warm-up: step / warmup, for step <= warmup. Then, with t in [0, 1) the share of the fall before this step:
 *   constant 1 | linear 1 - t | cosine (1 + cos(pi t)) / 2 | WSD 1, then 1 - sqrt(t) over the last decay_share of
 *   steps, as floor + (1 - floor) * that. The first step after the warm-up has factor 1, and the last step still moves.
 */
#include "autograd/autograd.h"
#include <math.h>

double ag_schedule_at(const ag_schedule *s, int64_t step)
{
    double fall = 1;
    if (step <= s->warmup)
        return s->warmup > 0 && step > 0 ? (double)step / (double)s->warmup : 0;
    int64_t from = s->warmup;
    if (s->kind == AG_WSD) {
        double share = s->decay_share > 0 ? s->decay_share : 0.4;
        int64_t start = s->steps - (int64_t)llround(share * (double)s->steps);
        from = start > from ? start : from;
    }
    double t = step <= from ? 0 : step > s->steps ? 1 : (double)(step - 1 - from) / (double)(s->steps - from);
    if (s->kind == AG_LINEAR)
        fall = 1 - t;
    else if (s->kind == AG_COSINE)
        fall = (1 + cos(3.14159265358979323846 * t)) / 2;
    else if (s->kind == AG_WSD)
        fall = 1 - sqrt(t);
    return s->floor + (1 - s->floor) * fall;
}

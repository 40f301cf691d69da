/* train_start.c - ranges before the first step, from some of the training windows; the model runs in floats. */
#include "distill/trainer.h"

enum { CALIBRATION_BATCHES = 8 };

status kd_start_ranges(kd_trainer *t)
{
    const kd_calibration o = {.samples = CALIBRATION_BATCHES * t->o.batch, .seed = t->o.seed, .precision = t->o.precision};
    return kd_find_ranges_in(t->student, t->o.start, t->data, &t->train, t->o.ctx, &o);
}

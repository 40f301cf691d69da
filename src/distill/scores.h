/* scores.h - what an evaluation has scored so far; private to distill. */
#ifndef NIBBLE_DISTILL_SCORES_H
#define NIBBLE_DISTILL_SCORES_H
#include "base/base.h"

typedef struct {
    int64_t windows, done; /* all, and those scored */
    double *nll;           /* [windows] sums over a window's tokens */
    int64_t *tokens;       /* [windows] scored */
    float *kl;             /* [n_kl] of every scored token, where there is a teacher */
    int64_t n_kl, capacity;
    double sum_kl, sum_teacher;
    int64_t same; /* tokens on whose first both agree */
} kd_scores;

status kd_scores_new(kd_scores *s, int64_t windows);
void kd_scores_free(kd_scores *s);
status kd_scores_keep(kd_scores *s, float kl);

/* The file that a stopped evaluation goes on from (HDF5, kind "scores"), written at once. key: of all that decides the scores. load: a file
 * that is not there leaves s as it is; one of another key or kind is NB_USAGE, a damaged one NB_FORMAT. */
status kd_scores_save(const kd_scores *s, const char *path, uint64_t key);
status kd_scores_load(kd_scores *s, const char *path, uint64_t key);

#endif

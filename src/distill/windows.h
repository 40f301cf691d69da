/* windows.h - cutting documents into windows of at most ctx tokens, and scoring them; private to distill. */
#ifndef NIBBLE_DISTILL_WINDOWS_H
#define NIBBLE_DISTILL_WINDOWS_H
#include "distill/distill.h"

typedef struct {
    int64_t n, capacity, cut_tokens; /* cut_tokens: dropped behind a document's first window */
    int64_t *start;                  /* [n] first token */
    int32_t *length;                 /* [n] 2..ctx */
} kd_windows;

/* Windows of a token source: a token file with rows is cut row by row, anything else document by document; documents longer than
 * ctx go on in further windows, or are cut there. Pieces of one token score nothing and are left out. */
status kd_windows_new(kd_windows *w, fm_tokens *data, int64_t ctx, bool cut);
void kd_windows_free(kd_windows *w);
/* ids [n, ctx] of windows index[0..n), padded with id 0 behind length[i]. */
status kd_windows_read(const kd_windows *w, fm_tokens *data, const int64_t *index, int64_t n, int64_t ctx, int32_t *ids, int32_t *length);

/* *h: hash of all that the windows hold, in their order. */
status kd_windows_hash(uint64_t *h, const kd_windows *w, fm_tokens *data, int64_t ctx);

/* kd_find_ranges on windows that are there already, of at most ctx tokens; weights that all have ranges (fq_weights_started) keep them. */
status kd_find_ranges_in(md_model *m, fq_start how, fm_tokens *data, const kd_windows *w, int64_t ctx, const kd_calibration *o);

/* kd_evaluate on windows that are there already. */
status kd_evaluate_windows(kd_eval *r, md_model *m, md_model *teacher, fm_tokens *data, const kd_windows *w, int64_t ctx,
                           const kd_eval_options *o);

#endif

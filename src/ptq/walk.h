/* walk.h - a model layer by layer over calibration data (private to ptq/): what enters a block is kept for all windows, so memory is one
 * layer's activations, and what a later block sees comes from the blocks before it as they are by then, quantized or not.
 *
 *     pt_walk w;
 *     TRY(pt_walk_new(&w, m, data, calibration));
 *     for (; s == NB_OK && w.layer < m->config.layers; s = pt_walk_next(&w)) {
 *         s = pt_walk_watch(&w, (ag_tap){gather, ctx}, NULL);
 *         ... change the weights of block w.layer; m->params.version++ ...
 *     }
 *     pt_walk_free(&w);
 */
#ifndef NIBBLE_PTQ_WALK_H
#define NIBBLE_PTQ_WALK_H
#include "ptq/ptq.h"

typedef struct {
    md_model *m;
    int64_t windows, length; /* of one length: kd_even_windows */
    int64_t layer;           /* the block that x enters; m->config.layers behind the last */
    int64_t at_once;         /* windows in one forward */
    real *x;                 /* [windows, length, C] */
    int32_t *ids;            /* [windows, length] */
    bool weights, activations; /* which sites quantize during a forward; both begin as false (the embedding is
                                  in codes always: it stands before every layer) */
    const nb_progress *progress; /* in blocks */
    ag_tape tape;                /* the calibration's precision; between calls it holds nothing */
} pt_walk;
/* Cuts the windows, looks their ids up in the embedding, in the codes of its site; layer 0. NB_USAGE without data. A failure leaves
 * *w empty. */
status pt_walk_new(pt_walk *w, md_model *m, fm_tokens *data, const kd_calibration *c);
/* Looks the ids up again, in an embedding that has changed; at layer 0. */
status pt_walk_embed(pt_walk *w);
/* Block `layer` forward over all windows, at_once at a time, with a tap on its sites; x is unchanged. until: a site's name after which
 * the block is left (what comes after costs nothing), NULL: it runs to its end. Behind the last block stands what md_finish does. */
status pt_walk_watch(pt_walk *w, ag_tap tap, const char *until);
/* y [windows, length, C] <- block(x), with a tap or an empty one; y may be x. */
status pt_walk_block(pt_walk *w, real *y, ag_tap tap);
/* x <- block(x), layer + 1; reports progress. */
status pt_walk_next(pt_walk *w);
void pt_walk_free(pt_walk *w);

#endif

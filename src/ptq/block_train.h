/* block_train.h - training one block after another on its own output (private to ptq/): what autoround, blockap, omniquant and adaround
 * share.
 *
 * For block l, y = block(y) in floats is the target, y_0 the embedding's rows; x is what the blocks before make of them by now, quantized. The
 * block with its sites on is trained on mini-batches of windows to the least
 *   L = mean over tokens but a window's first of |block(x) - y|^2 / |y|^2
 * (a token's error beside its own size, since a norm reads it next; a window's first token is where attention puts what it has no use
 * for, a vector hundreds of times as long). L of windows that it is not trained on decides which values are kept, those of the start
 * among them; then x <- block(x). Memory: x and y of all windows, one mini-batch's tape, the optimizer of one block.
 */
#ifndef NIBBLE_PTQ_BLOCK_TRAIN_H
#define NIBBLE_PTQ_BLOCK_TRAIN_H
#include "ptq/pass_part.h"
#include "ptq/walk.h"

/* A weight of the block that has a grid. */
typedef struct {
    fq_site *site;
    real *start;  /* [rows, cols] its latent floats when the block began */
    real *scale;  /* [n_scales] by pt_block_scales */
    ag_param *own; /* the method's variable of it, or NULL */
} pt_block_weight;

typedef struct {
    md_model *m;
    int64_t layer, step, steps; /* step: from 1 */
    pt_block_weight *weight;    /* [n] */
    int64_t n;
    ag_params own;     /* variables that are the method's */
    ag_params trained; /* pointers to all that is trained: the block's parameters, or own ones */
    ag_params watched; /* pointers to parameters of the block whose gradients `pull` reads */
    void *ctx;         /* the method's */
    bool hard;         /* compose for good, or for a score: rounded, where the method trains something soft */
    double first;      /* L before the first step */
} pt_block;

/* What a method does. Hooks that are NULL do nothing.
 *   begin:   says by pt_block_train what is trained: gradients are made for it alone, and its best values are kept
 *   compose: what is trained -> latents and ranges, before a forward
 *   pull:    gradients of latents and ranges -> those of what is trained (g, has_grad), after a backward
 *   update:  one step; NULL: AdamW
 *   end:     gives back what begin took, also after a failure */
typedef struct {
    const char *name;
    bool soft;             /* a training step computes with the floats that compose wrote, not with their codes */
    double lr, scale_rate; /* when nothing else is asked for; scale_rate: of learned ranges (logarithms). 0: 1 / steps, lr */
    ag_schedule schedule;  /* steps and warm-up are filled in */
    status (*begin)(pt_block *b);
    void (*compose)(pt_block *b);
    void (*pull)(pt_block *b);
    void (*update)(pt_block *b, double lr, double scale_rate);
    void (*end)(pt_block *b);
} pt_block_method;

/* Trains all blocks in order. Ranges that nobody has started are found first, by importance. o->part: a folder that keeps every block that is
 * done, so that the same call goes on behind it (NB_USAGE where the folder is another run's). NB_USAGE for a folded model, a
 * recipe without codes in its blocks, or no data. */
status pt_train_blocks(md_model *m, const pt_options *o, const pt_block_method *how);

status pt_start_ranges(md_model *m, const pt_options *o); /* by importance, where some range has not begun */
status pt_block_train(pt_block *b, ag_param *p); /* p, a parameter of the block or an own one, is trained */
status pt_block_watch(pt_block *b, ag_param *p); /* p's gradient is wanted; NULL is fine */
/* w->scale <- the scales as they are stored now; those of a dynamic range follow the latent. */
status pt_block_scales(pt_block_weight *w);
/* Elements from (row, col) on in its row that share its scale. */
int64_t pt_run_of_scale(const kn_codes *c, int64_t row, int64_t col);

#endif

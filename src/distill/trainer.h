/* trainer.h - the state of a training run; private to distill: trainer.c (loop), train_step.c, train_start.c,
 * stored_logits.c, checkpoint.c (files), settings.c. */
#ifndef NIBBLE_DISTILL_TRAINER_H
#define NIBBLE_DISTILL_TRAINER_H
#include "distill/windows.h"

/* What pin.c knows of one weight site; NULLs where it takes no part. */
typedef struct {
    int16_t *flips, *mean; /* [rows, cols]: share of steps that changed the code (-1: pinned), its average; fixed point */
    int8_t *last;          /* the code of the step before */
} kd_pin;

typedef struct kd_stored kd_stored; /* the teacher's logits made once; stored_logits.c */

typedef struct {
    char *folder;
    int lock;                    /* of the folder; -1: none */
    md_model *student, *teacher; /* teacher NULL: cross-entropy alone */
    fm_tokens *data, *text, *heldout; /* text NULL: none; heldout == data: windows cut off its end */
    kd_train_options o;          /* resolved: steps, ctx, eval_every, ... filled in */
    const kd_run_options *run;
    char other_key[320];         /* for the report */
    char *settings;              /* o as JSON, with the data's and the teacher's fingerprints */
    kd_windows train, mixed, held;              /* of data, text, heldout */
    uint64_t train_hash, mixed_hash, held_hash; /* of what they hold */
    int64_t step;                /* steps done */
    double best_kl, best_nll;    /* of best.h5; infinite before the first */
    double loss, kl, norm;       /* of the last step, for metrics */
    real **average;              /* [params.n] latents' running average, or NULL before the decay begins */
    int64_t averaged;            /* steps in it */
    kd_pin *pin;                 /* [sites.n], or NULL without --pin */
    /* buffers of one micro-batch */
    ag_tape tape, teacher_tape;
    rt_session *session; /* the teacher's */
    kd_stored *stored;           /* NULL: the teacher runs in every step */
    char source[64];             /* fingerprints of data and teacher, for the file of stored logits */
    real *teacher_hidden;        /* [B*T, C] */
    const real *teacher_rows;    /* the same, or the teacher tape's */
    int32_t *ids, *target, *length, *slot;
    int64_t *index;              /* [B] of the batch's rows; from train.n on: of mixed */
    int64_t *order[2], order_epoch[2]; /* a permutation of the windows of data, of text */
} kd_trainer;

bool kd_distils(const kd_train_options *o);              /* some loss needs a teacher */
status kd_next_batch(kd_trainer *t, int64_t micro);      /* fills ids, target, length for step t->step */
status kd_read_rows(kd_trainer *t, int64_t n);           /* ids, length <- the windows index[0..n) */
const int32_t *kd_lengths(const kd_trainer *t);          /* of the batch; NULL where no row is padded */
status kd_step(kd_trainer *t);                           /* one optimizer step; raises t->step */
status kd_start_ranges(kd_trainer *t);

status kd_pins_new(kd_trainer *t);                 /* memory, where o.pin asks for it */
status kd_pins_start(kd_trainer *t, bool resumed); /* before the first step; of a resumed run after kd_pins_load */
status kd_pins_step(kd_trainer *t);                /* after the optimizer's step */
status kd_pins_save(kd_trainer *t, fm_h5 *f);      /* /pin/{flips,mean}/SITE */
status kd_pins_load(kd_trainer *t, fm_h5 *f);
void kd_pins_free(kd_trainer *t);

/* Opens the logits stored at path, making them where the file is not there; then, per batch (t->index): reads its rows, and gives logits of rows
 * [row, row+n) of it. */
status kd_stored_open(kd_trainer *t, const char *path);
status kd_stored_batch(kd_trainer *t);
void kd_stored_rows(const kd_stored *s, real *dst, int64_t row, int64_t n);
void kd_stored_close(kd_stored *s); /* NULL is fine */

uint64_t kd_fingerprint(const kd_trainer *t); /* of the teacher and the training windows */
status kd_settings_check(const kd_train_options *o); /* NB_USAGE and the first number out of its range */
/* o as a JSON object, with what was trained on and from; called before any parameter moves. Caller frees. */
char *kd_settings_text(const kd_trainer *t);
/* NB_USAGE naming the first setting that differs between two such objects, else NB_OK. */
status kd_settings_compare(const char *folder, const char *old_text, const char *new_text);

/* Takes the folder for this process until kd_unlock; NB_USAGE where another one trains in it. */
status kd_lock(kd_trainer *t);
void kd_unlock(kd_trainer *t);
status kd_discard(const kd_trainer *t); /* removes checkpoints, metrics and stored logits of the folder */
status kd_checkpoint_save(kd_trainer *t);  /* last.h5, the older ones kept as step-N.h5 */
status kd_best_save(kd_trainer *t);        /* best.h5 */
status kd_checkpoint_load(kd_trainer *t, bool *found); /* last.h5 of the folder, if it is there and has the same settings */
status kd_metrics_cut(const kd_trainer *t); /* metrics.jsonl back to t->step */
status kd_metrics_append(const kd_trainer *t, char *json_line); /* frees the line */

#endif

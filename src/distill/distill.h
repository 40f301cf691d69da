/* distill.h - self-generated data, evaluation, and the trainer: LLM-QAT style students distilled from their own teacher.
 */
#ifndef NIBBLE_DISTILL_H
#define NIBBLE_DISTILL_H
#include "runtime/runtime.h"

/* Opens a model for the command line: what md_open takes, or a run folder of kd_train (its best.h5 or last.h5). */
status kd_open(md_model *m, const char *path, const char *which, const md_open_options *o);

/* ---- data --------------------------------------------------------------------------------- */

/* BOS: every row begins with BOS and is sampled from there. HYBRID: rows begin with a random token (all of the vocabulary once before any
 * comes again), 3 to 5 tokens are greedy, the rest is sampled (LLM-QAT, Liu et al. 2023, generate_data.py). MIXED: of four rows two begin with the
 * vocabulary's <|endoftext|>, which stands between the documents of its training, one is hybrid, one begins with BOS (a chat, in models made for
 * that); without such a token two begin with BOS. An end token (BOS where the model has no other) closes a document; the next one begins in the same
 * row with the separator or BOS, so rows are full; in a chat's row the model goes on itself. With prompts rows begin in place of all that with passages of a
 * text, of prompt_length tokens or to the end of their document, each once before any comes again: what the model says about the user's matter. */
typedef enum { KD_START_BOS, KD_START_HYBRID, KD_START_MIXED } kd_start;
typedef struct {
    kd_start start;
    rt_sampling sampling;
    int64_t tokens; /* total, rounded up to whole batches of rows */
    int64_t ctx;    /* tokens in a row; 0: 256, or the model's context where that is shorter */
    int64_t slots;  /* rows made at once; 0: 128 where their caches take 1 GiB at most, else 64 */
    uint64_t seed;
    kn_precision precision;
    fm_tokens *prompts; /* NULL: none */
    int64_t prompt_length;
} kd_data_options;
typedef struct {
    int64_t tokens, documents, resumed_tokens;
    double seconds;
} kd_data_report;
/* Writes the token file `path` (io.h: grows as path.part; the same call again goes on where it stopped; restart discards). Sequence i is always in the same slot of the
 * same batch, and its random numbers depend on (seed, i, position) alone. */
status kd_generate(md_model *teacher, const kd_data_options *o, const char *path, bool restart, const nb_progress *progress, kd_data_report *report);

/* ---- calibration -------------------------------------------------------------------------- */

/* E[x_j^2] by channel of what goes into each linear: what makes an error of its weights matter. A zeroed struct is empty. */
typedef struct {
    const md_config *config;
    const fq_sites *sites;
    int64_t n;     /* sites when it began */
    double **sum;  /* [n] sums of x_j^2 of activation sites, NULL where nothing was seen */
    int64_t *rows; /* [n] */
    real **mean;   /* [n] what kd_importance_of gives, made when first asked for */
    bool failed;   /* memory ran out while it watched */
} kd_importance;

/* Which windows of the data are looked at: the first `samples` of a random order of them, cut as for evaluation. */
typedef struct {
    int64_t samples, length; /* windows, and tokens in one; 0: 128, and 256 or the model's context where that is shorter */
    uint64_t seed;
    kn_precision precision; /* of the forwards */
    const nb_progress *progress;
    kd_importance *importance; /* of this model, gathered or read before; NULL: gathered where it is needed */
} kd_calibration;
int64_t kd_calibration_length(const kd_calibration *o, const md_model *m); /* tokens in a window, the default filled in */
/* Float forwards over these windows with a tap: fq_observe, kd_gather_importance, ... */
status kd_watch(md_model *m, fm_tokens *data, const kd_calibration *o, ag_tap tap);
/* Windows of one length, for whoever keeps their activations: *ids [windows, length], the caller frees them. The length is o's or, where
 * documents are shorter, the one at which `samples` windows hold most tokens; longer ones are cut there, shorter ones left out. */
status kd_even_windows(int32_t **ids, int64_t *windows, int64_t *length, const md_model *m, fm_tokens *data, const kd_calibration *o);
/* The site of what goes into a weight: "layers.3.attn.wq.weight" reads "layers.3.attn.input". False: none is known. */
bool kd_input_site(char *name, size_t bytes, const char *weight);

status kd_importance_new(kd_importance *h, const md_model *m); /* m outlives it */
void kd_importance_free(kd_importance *h);
void kd_gather_importance(void *importance, const char *site, const ag_tensor *in, const ag_tensor *out); /* a tap's fn */
void kd_add_importance(kd_importance *h, const char *site, const real *x, const real *f, int64_t M, int64_t C); /* x [M, C], rows weighted by f [M] or NULL: alike */
void kd_add_squares(double *sum, const real *x, const real *f, int64_t M, int64_t C); /* sum [C] += f x^2 over rows, f NULL: 1 */
/* The callback of fq_start_weights: E[x_j^2] [cols] of the input of a weight, NULL where it was not seen. */
const real *kd_importance_of(void *importance, const fq_site *weight);
/* llama.cpp's importance matrix (GGUF). read: into a new h; entries of other models' weights are left out, but one must be there; NB_FORMAT for
 * another shape. write: what was gathered, from which data, in windows of `chunk` tokens. */
status kd_importance_read(kd_importance *h, const char *path);
status kd_importance_write(const kd_importance *h, const char *path, const char *dataset, int64_t chunk);
/* All ranges before training, or for folding without it: of weights by `how`, offsets of keys (their means; where data is given), and
 * of static and learned activations, all from the same windows. data NULL: a failure names what cannot be found without. */
status kd_find_ranges(md_model *m, fq_start how, fm_tokens *data, const kd_calibration *o);
/* The same of activations and offsets of keys alone, by the latent floats as they are; nothing is looked at where none is wanted. */
status kd_find_input_ranges(md_model *m, fm_tokens *data, const kd_calibration *o);

/* ---- evaluation --------------------------------------------------------------------------- */

typedef struct {
    int64_t ctx;      /* tokens in a window; 0: the token file's rows, else the model's context */
    bool cut;         /* documents longer than ctx are cut there (texts split by line or blank); else they go on in further windows */
    int64_t max_tokens; /* 0: all */
    int64_t windows;    /* llama-perplexity's convention: the first so many full windows of ctx tokens, each beginning with BOS if the tokenizer adds one, their
                           second halves scored; 0: every token of every window but its first */
    kn_precision precision; /* of the model under test; the teacher is fp32, a lean one (kd_run_options) bf16 */
    const nb_progress *progress;
    const char *part;   /* a file that is written every 20 seconds and when stopped, and gone on from if it is there; NULL: none */
    uint64_t part_key;  /* of the model, the teacher and the data: such a file of another key is refused */
} kd_eval_options;
/* Means over scored tokens: every token of a window but its first. ppl_low, ppl_high: 95 % interval from the windows' means (weighted by tokens).
 * kl: KL(teacher || model), natural logarithm. */
typedef struct {
    int64_t tokens, windows, cut_tokens;
    double nll, ppl, ppl_low, ppl_high;
    bool has_teacher;
    double kl, kl_median, kl_p99, same_top, teacher_nll;
    double seconds;
} kd_eval;
status kd_evaluate(kd_eval *e, md_model *m, md_model *teacher, fm_tokens *data, const kd_eval_options *o);

/* ---- training ----------------------------------------------------------------------------- */

typedef enum { KD_RECOMPUTE_AUTO, KD_RECOMPUTE_ON, KD_RECOMPUTE_OFF } kd_recompute;
/* Everything that decides the result; written into checkpoints as JSON and compared on resume. */
typedef struct {
    int64_t steps, batch, ctx, accumulate; /* batch: rows of ctx tokens per micro-batch */
    double epochs;                         /* instead of steps where > 0 */
    uint64_t seed;
    double lr, scale_rate, beta1, beta2, eps, decay, clip; /* scale_rate: lr of learned (log) scales, absolute */
    ag_schedule schedule;                  /* steps is filled in */
    double ce, kl, reverse_kl, temperature, mse, cosine, hidden; /* weights of the losses; hidden: relative error of hidden states, every 5th block, falling to 0 by half time */
    bool sgd;
    bool bf16_moments;                     /* AdamW's moments of weights in bf16 */
    bool int8_gradients;                   /* gradients of activations in 8 bits, through weights with one scale a row (kn_linear_back) */
    int64_t top_k;                         /* distil from the teacher's top k probabilities, stored once; 0: from the teacher itself, in every step */
    int64_t quant_after, freeze_after;     /* steps; 0: from the start, never */
    bool freeze_ends;                      /* embedding and head stay as they start: no gradient, no moments */
    double pin;                            /* codes of at most 4 bits that change in more than this share of the steps are pinned to their average (pin.c); 0: none */
    double text_share;                     /* of the rows from the second source, where there is one */
    double average;                        /* decay of the average of latents over the schedule's decay; 0: none. The better one is kept */
    fq_start start;
    kn_precision precision;
    kd_recompute recompute;
    int64_t eval_every, eval_tokens;       /* 0: ten times in a run; 25000 */
} kd_train_options;
/* Not part of the result. */
typedef struct {
    int64_t save_every, keep; /* 0: 5 times a run; 1 */
    bool restart, dry_run;
    bool lean_teacher;        /* the teacher may lose its floats where products are bf16 (rt_keep_bf16); evaluations then use it so, too */
    const char *logits;       /* file of stored logits, shared by runs; NULL: logits.h5 in the folder */
    nb_progress progress;
} kd_run_options;
/* Of qat (distill) or of training from scratch. from_codes: the student begins with codes that a search found, which a high rate tears down. */
kd_train_options kd_train_defaults(bool distill, bool from_codes, const md_config *config);

typedef struct {
    int64_t step, steps, tokens;
    double loss, kl, best_kl, best_nll;
    double seconds, tokens_per_second;
    bool finished, was_finished, resumed;
    size_t tape_bytes, parameter_bytes, disk_bytes; /* dry run: predicted */
    char other_key[320]; /* resumed with other threads, instruction set or libraries: what was and is; the bits may differ. "" if not */
} kd_train_report;
/* What is trained on, and what is evaluated on. text: a second source (real text beside what the teacher wrote), from which text_share of the rows come, evenly
 * among the others; NULL: none. heldout NULL: the last 2 % of data's documents, at most 25,000 tokens, are held out. */
typedef struct {
    fm_tokens *data, *text, *heldout;
} kd_train_data;
/* Trains `student` (built with its recipe, holding its start values) on rows of the data into `folder`: last.h5, best.h5, metrics.jsonl. teacher NULL: cross-entropy on the
 * tokens. A folder that holds a run with the same settings is resumed; other settings: NB_USAGE and the difference. Stopped by progress or a signal: saved, NB_INTERRUPTED. */
status kd_train(const char *folder, md_model *student, md_model *teacher, const kd_train_data *data, const kd_train_options *o, const kd_run_options *run, kd_train_report *report);

/* ---- networks for pictures ---------------------------------------------------------------- */

/* Everything that decides the result of a run; in checkpoints as JSON, compared on resume. */
typedef struct {
    int64_t epochs, batch, shift;   /* shift: pictures move by up to so many points each way, at random, zeros come in */
    bool flip;                      /* every second one is mirrored */
    uint64_t seed;
    double lr, scale_rate, decay, smoothing, clip; /* AdamW; scale_rate: of learned ranges; smoothing: of labels */
    double warmup;                  /* share of the steps; then half a cosine to 0 */
    int64_t calibration;            /* pictures that ranges of activations start from */
    double freeze_after;            /* share of the steps after which static ranges stand still */
    fq_start start;
    kn_precision precision;
} kd_picture_options;
/* By m's recipe (floats: 10 epochs from 1e-3, with batch norms 1e-2; else 3 from 1e-4), its first layer (windows: pictures shift by 1 point, and flip where the data mirrors). */
kd_picture_options kd_picture_defaults(const md_picture_net *m, const fm_pictures *data);
typedef struct {
    int64_t step, steps;
    double loss, accuracy; /* means over the last epoch's training pictures */
    double seconds, pictures_per_second;
    bool resumed, was_finished;
} kd_picture_report;
/* Trains m on the pictures into `folder` (last.h5, metrics.jsonl), epoch by epoch; goes on where a run with the same settings stopped, NB_USAGE where they differ
 * (restart: begins anew). Static and learned ranges start from a calibration. Interrupted: saved, NB_INTERRUPTED. */
status kd_picture_train(const char *folder, md_picture_net *m, const fm_pictures *data, const kd_picture_options *o, bool restart,
                        const nb_progress *progress, kd_picture_report *report);
/* Ranges of weights by `how` and of activations from the first n pictures in a random order. */
status kd_picture_calibrate(md_picture_net *m, const fm_pictures *data, fq_start how, int64_t n, uint64_t seed);
/* The first n pictures of that order, from the from-th on, as values 0..1: x [n, H*W]. */
status kd_picture_sample(real *x, const fm_pictures *data, int64_t from, int64_t n, uint64_t seed);
/* Runs m in floats over the same pictures with a tap on its sites; ranges of those that it observes are found. */
status kd_picture_watch(md_picture_net *m, const fm_pictures *data, int64_t n, uint64_t seed, ag_tap tap);
/* Share of pictures whose largest logit is their label's (the first of equals), and the mean cross entropy. predicted [n] takes classes, or NULL. A network of integers
 * is computed with integers alone (rt_net), another on the tape. */
typedef struct {
    double accuracy, nll, seconds;
    int64_t n;
    bool integer;
} kd_picture_eval;
status kd_picture_evaluate(kd_picture_eval *e, md_picture_net *m, const fm_pictures *data, uint8_t *predicted, const nb_progress *progress);

#endif

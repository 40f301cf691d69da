/* cli_qat.c - nibble qat and nibble train: the same trainer, with a teacher or with texts alone. */
#include "cli/cli_train.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ------------------------------------------------------------------------------ */

/* Which of the choices were made; -1: the trainer's own default. */
enum { UNSET = -1 };

/* One table for both commands; what only one of them has stands at the end. */
static int64_t rows(cl_option row[CL_TRAIN_ROWS], cl_train_options *o, bool distill)
{
    kd_train_options *k = &o->train;
    const cl_option both[] = {
        {"-o", "FOLDER", CL_TEXT, &o->common.output, NULL,
         "run folder: checkpoints and metrics; one that is there is resumed"},
        {"--heldout", "FILE", CL_TEXT, &o->heldout, NULL,
         "what to evaluate on while training; without it the last 2 % of --data, at most 25k tokens, never trained on"},
        {"--text", "FILE", CL_TEXT, &o->text, NULL,
         "a second source beside --data: real text among what the teacher wrote, say"},
        {"--text-share", "X", CL_NUMBER, &k->text_share, NULL, "of the rows from --text (0.5)"},
        {"--recipe", "NAME|FILE", CL_TEXT, &o->recipe, NULL,
         distill ? "how the model is quantized (`nibble recipes`)"
                 : "quantize while training; without it: a float model"},
        {"--steps", "N", CL_COUNT, &o->steps, NULL, "optimizer steps (600)"},
        {"--epochs", "X", CL_NUMBER, &o->epochs, NULL, "passes over the data, instead of --steps"},
        {"--batch", "N", CL_COUNT, &k->batch, NULL, "rows of a micro-batch (16; 4 from 256 channels on)"},
        {"--accumulate", "N", CL_COUNT, &k->accumulate, NULL, "micro-batches of a step (1)"},
        {"--lr", "X", CL_NUMBER, &k->lr, NULL,
         distill ? "learning rate (3e-4; from 256 channels on 2e-4, with --start-from 4e-5; lower for longer runs)"
                 : "learning rate (2e-3; 6e-4 from 256 channels on)"},
        {"--scale-lr", "X", CL_NUMBER, &k->scale_rate, NULL, "rate of learned scales, relative to their size (1e-3; with --start-from 1e-4)"},
        {"--schedule", "constant|linear|cosine|wsd", CL_CHOICE, &o->schedule, NULL,
         "of the rate (qat cosine, train wsd: constant, then falling as 1 - sqrt over the last part)"},
        {"--warmup", "N", CL_COUNT, &k->schedule.warmup, NULL, "steps until the full rate (3 %)"},
        {"--decay-share", "X", CL_NUMBER, &k->schedule.decay_share, NULL,
         "last part of the steps, in which wsd falls (0.4)"},
        {"--weight-decay", "X", CL_NUMBER, &k->decay, NULL,
         distill ? "of weights, decoupled (0)" : "of weights, decoupled (0.1)"},
        {"--beta1", "X", CL_NUMBER, &k->beta1, NULL, "AdamW: memory of the gradient (0.9)"},
        {"--beta2", "X", CL_NUMBER, &k->beta2, NULL,
         distill ? "AdamW: memory of its square (0.999)" : "AdamW: memory of its square (0.95)"},
        {"--eps", "X", CL_NUMBER, &k->eps, NULL, "AdamW: added to the root (1e-8)"},
        {"--clip", "X", CL_NUMBER, &k->clip, NULL, "largest norm of the gradient (1; 0: any)"},
        {"--sgd", NULL, CL_FLAG, &k->sgd, NULL, "SGD with momentum --beta1 instead of AdamW"},
        {"--moments", "fp32|bf16", CL_CHOICE, &o->moments, NULL,
         distill ? "how AdamW keeps its two moments of a weight (bf16, rounded at random: half the memory)"
                 : "how AdamW keeps its two moments of a weight (fp32); bf16, rounded at random, takes half the memory"},
        {"--quant-after", "N", CL_COUNT, &k->quant_after, NULL, "quantize from this step on (0: from the start)"},
        {"--freeze-after", "N", CL_COUNT, &k->freeze_after, NULL, "static ranges stay from this step on (0: never)"},
        {"--freeze-ends", NULL, CL_FLAG, &k->freeze_ends, NULL,
         "embedding and head stay as they start, without gradients and moments; for ends of 8 bits"},
        {"--start", "absmax|mse|importance", CL_CHOICE, &o->start, NULL,
         "ranges of weights before the first step: see `nibble fold --range` (importance)"},
        {"--pin", "X", CL_NUMBER, &k->pin, NULL,
         distill ? "pin codes of at most 4 bits that change in more than this share of the steps to their average (0.03; 0: none)"
                 : "pin codes of at most 4 bits that change in more than this share of the steps to their average (0: none)"},
        {"--average", "X", CL_NUMBER, &k->average, NULL,
         "decay of the average of weights while the rate falls; the better one is kept (0: none)"},
        {"--gradients", "float|int8", CL_CHOICE, &o->gradients, NULL,
         "how gradients of activations pass weights with one scale a row (float); int8, rounded at random, by integer products: a little faster without AMX"},
        {"--recompute", "auto|on|off", CL_CHOICE, &o->recompute, NULL,
         "forget a block's activations and compute them again in the backward pass; same result, less memory (auto)"},
        {"--precision", "fp32|bf16|auto", CL_CHOICE, &o->common.precision, "auto",
         "of float products; auto: bf16 where this CPU is fast at it and the model large enough"},
        {"--eval-every", "N", CL_COUNT, &k->eval_every, NULL, "steps between evaluations (a tenth of the run)"},
        {"--eval-tokens", "N", CL_COUNT, &k->eval_tokens, NULL, "tokens of an evaluation at most (25k)"},
        {"--save-every", "N", CL_COUNT, &o->run.save_every, NULL, "steps between checkpoints (a fifth of the run)"},
        {"--keep", "N", CL_COUNT, &o->run.keep, NULL, "newest checkpoints kept (1), older ones as step-N.h5"},
        {"--restart", NULL, CL_FLAG, &o->run.restart, NULL, "discard the run in the folder and start over"},
        {"--dry-run", NULL, CL_FLAG, &o->run.dry_run, NULL,
         "predict memory, disk and time from three steps; write nothing"},
    };
    const cl_option qat[] = {
        {"--teacher", "MODEL", CL_TEXT, &o->teacher, NULL, "what to learn from (the model itself, in floats)"},
        {"--start-from", "FILE", CL_TEXT, &o->start_from, NULL,
         "begin with the codes and ranges that `nibble ptq` left in FILE, of this MODEL; its recipe is the student's"},
        {"--kl", "X", CL_NUMBER, &k->kl, NULL, "weight of KL(teacher || student) (1)"},
        {"--reverse-kl", "X", CL_NUMBER, &k->reverse_kl, NULL, "weight of KL(student || teacher) (0)"},
        {"--ce", "X", CL_NUMBER, &k->ce, NULL, "weight of the cross-entropy on the data's own tokens (0)"},
        {"--mse", "X", CL_NUMBER, &k->mse, NULL, "weight of the squared distance of logits (0)"},
        {"--cosine", "X", CL_NUMBER, &k->cosine, NULL, "weight of 1 - cosine of logits (0)"},
        {"--hidden", "X", CL_NUMBER, &k->hidden, NULL,
         "weight of the relative error of hidden states, falling to 0 by half time (0)"},
        {"--temperature", "X", CL_NUMBER, &k->temperature, NULL, "softens teacher and student in the losses (1)"},
        {"--top-k", "N", CL_COUNT, &k->top_k, NULL,
         "store the teacher's N likeliest tokens of each position once and learn from those (0: it runs in every step)"},
        {"--logits", "FILE", CL_TEXT, &o->run.logits, NULL, "where they are stored, for several runs (logits.h5 in the run folder)"},
    };
    const cl_option train[] = {
        {"--config", "FILE|key=value,...", CL_TEXT, &o->config, NULL,
         "shape of a new model: dim, hidden, layers, heads, kv_heads, ctx, tied, architecture (llama or gpt2), ... as JSON or as a "
         "list; the vocabulary is the tokenizer's"},
    };
    const int64_t n = sizeof both / sizeof *both,
                  more = distill ? sizeof qat / sizeof *qat : sizeof train / sizeof *train;
    memcpy(row, both, sizeof both);
    memcpy(row + n, distill ? qat : train, (size_t)more * sizeof *row);
    return n + more;
}

/* ---- one run ------------------------------------------------------------------------------ */

typedef struct {
    md_model student, teacher;
    fm_tokens data, text, heldout;
} workshop;

static void workshop_free(workshop *w)
{
    fm_tokens_close(&w->data);
    fm_tokens_close(&w->text);
    fm_tokens_close(&w->heldout);
    md_free(&w->student);
    md_free(&w->teacher);
}

/* Codes of --start-from with the latent floats of MODEL, which is the teacher unless that is named. */
static status loosen(workshop *w, const char *path, const cl_train_options *o)
{
    md_model own = {0};
    status s = o->teacher ? cl_open_model(&own, path, &o->common, NULL, false) : NB_OK;
    if (s == NB_OK)
        s = md_loosen(&w->student, o->teacher ? &own : &w->teacher);
    md_free(&own);
    return s;
}

static status open_models(workshop *w, const char *path, const cl_train_options *o)
{
    if (!o->distill)
        return path ? cl_open_model(&w->student, path, &o->common, o->recipe, true) : cl_new_model(&w->student, o);
    const char *start = o->start_from ? o->start_from : path;
    TRY(cl_open_model(&w->student, start, &o->common, o->recipe, true));
    if (w->student.recipe.n == 0)
        return nb_fail(NB_USAGE, "%s: is a float model: quantized how? (--recipe w4a8kv8; `nibble recipes` lists them)",
                       start);
    TRY(cl_open_model(&w->teacher, o->teacher ? o->teacher : path, &o->common, NULL, false));
    if (!o->teacher && w->teacher.recipe.n)
        return nb_fail(NB_USAGE, "%s: is quantized by recipe %s itself, so the float model must be named (--teacher)",
                       path, w->teacher.recipe.name);
    return o->start_from ? loosen(w, path, o) : NB_OK;
}

static status open_data(workshop *w, const cl_train_options *o)
{
    TRY(cl_open_data(&w->data, o->common.data, &o->common, &w->student));
    if (o->text)
        TRY(cl_open_data(&w->text, o->text, &o->common, &w->student));
    return o->heldout ? cl_open_data(&w->heldout, o->heldout, &o->common, &w->student) : NB_OK;
}

/* What was chosen, over the trainer's defaults. */
static status settle(cl_train_options *o, const md_config *c)
{
    kd_train_options *k = &o->train;
    if (o->schedule != UNSET)
        k->schedule.kind = (ag_schedule_kind)o->schedule;
    if (o->start != UNSET)
        k->start = (fq_start)o->start;
    if (o->recompute != UNSET)
        k->recompute = (kd_recompute)o->recompute;
    if (o->moments != UNSET)
        k->bf16_moments = o->moments == 1;
    if (o->gradients != UNSET)
        k->int8_gradients = o->gradients == 1;
    if (o->steps && o->epochs != 0)
        return nb_fail(NB_USAGE, "--steps and --epochs: one of them, please");
    if (o->steps) {
        k->steps = o->steps;
        k->epochs = 0;
    }
    if (o->epochs != 0)
        k->epochs = o->epochs;
    k->seed = o->common.seed;
    k->ctx = o->common.ctx;
    if (k->batch < 1 || k->accumulate < 1)
        return nb_fail(NB_USAGE, "--batch and --accumulate: at least 1");
    return cl_precision(&k->precision, &o->common, c);
}

static status work(workshop *w, const char *path, cl_train_options *o, int argc, char **argv, const cl_command *command)
{
    kd_train_report r;
    cl_progress line;
    const char *unused[CL_MAX_ARGUMENTS];
    int code;
    TRY(open_models(w, path, o));
    TRY(open_data(w, o));
    o->train = kd_train_defaults(o->distill, o->start_from != NULL, &w->student.config);
    if (!cl_parse(command, argc, argv, unused, &code)) /* again, over the defaults of this model */
        return NB_USAGE;
    TRY(settle(o, &w->student.config));
    o->run.lean_teacher = true;
    o->run.progress = cl_progress_start(&line, o->distill ? "qat" : "train", "steps", o->common.quiet);
    const kd_train_data data = {&w->data, o->text ? &w->text : NULL, o->heldout ? &w->heldout : NULL};
    status s = kd_train(o->common.output, &w->student, o->distill ? &w->teacher : NULL, &data, &o->train, &o->run, &r);
    cl_progress_end(&line);
    if (r.other_key[0] && !r.was_finished && !o->common.quiet)
        cl_say("nibble: resumed a run of %s: it may not end in the same bits\n", r.other_key);
    return s == NB_OK ? cl_train_report(&r, o) : s;
}

static status check(const char *path, const cl_train_options *o)
{
    if (!o->common.output)
        return nb_fail(NB_USAGE, "where should the run be kept? (-o FOLDER)");
    if (!o->common.data)
        return nb_fail(NB_USAGE, "train on what? (--data FILE, a text%s)",
                       o->distill ? " or what `nibble data` wrote" : " or a token file");
    if (!o->distill && !path == !o->config)
        return nb_fail(NB_USAGE, "either a MODEL to go on from or --config for a new one");
    if (nb_path_exists(o->common.output) && !nb_path_is_folder(o->common.output))
        return nb_fail(NB_IO, "%s: is a file, -o wants a folder for the run", o->common.output);
    return NB_OK;
}

static status run(const char *path, cl_train_options *o, int argc, char **argv, const cl_command *command)
{
    workshop w = {0};
    TRY(check(path, o));
    TRY(cl_begin(&o->common));
    status s = work(&w, path, o, argc, argv, command);
    workshop_free(&w);
    return s;
}

static int train_or_distill(int argc, char **argv, cl_command command, bool distill)
{
    cl_train_options o = {.distill = distill, .schedule = UNSET, .start = UNSET, .recompute = UNSET, .moments = UNSET, .gradients = UNSET};
    cl_option option[CL_TRAIN_ROWS];
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    command.option = option;
    command.n = rows(option, &o, distill);
    command.common = &o.common;
    command.common_mask = CL_DATA | CL_SPLIT | CL_CTX | CL_TOKENIZER | CL_WHICH | CL_UNTIE | CL_SEEDED | CL_JSON;
    if (!cl_parse(&command, argc, argv, argument, &code))
        return code;
    return cl_exit(run(argument[0], &o, argc, argv, &command));
}

int cl_qat(int argc, char **argv)
{
    return train_or_distill(
        argc, argv,
        (cl_command){
            .name = "qat",
            .arguments = "MODEL",
            .summary = "train a model to live on integers",
            .explanation = "Trains a student, the model with its tensors rounded as the recipe says, to say what its\n"
                           "teacher, the same model in floats, would say (KL of the logits). Said again it goes on\n"
                           "where it stopped, to the same bits as a run that was never interrupted; Ctrl-C saves\n"
                           "first. The folder holds last.h5, best.h5 (least held-out KL) and metrics.jsonl; `nibble\n"
                           "fold` makes integers of it.",
            .examples = "  nibble qat stories260K.bin --data train.h5 --recipe w4a8kv8 --steps 600 --seed 1 -o run/\n"
                        "  nibble qat stories260K.bin --data train.h5 --recipe w3a16 --epochs 2 --dry-run -o run3/\n"
                        "  nibble qat stories260K.bin --tokenizer tok512.bin --data tale.txt \\\n"
                        "             --ce 1 --kl 0 --recipe w4a8kv8 -o hard/"},
        true);
}

int cl_train(int argc, char **argv)
{
    return train_or_distill(
        argc, argv,
        (cl_command){
            .name = "train",
            .arguments = "[MODEL]",
            .summary = "train a model from scratch on text",
            .explanation = "Trains on the next token of a text or token file: a new model of --config, or MODEL\n"
                           "further. Resumes and saves as `nibble qat` does. `nibble export RUN --to h5-bf16 -o\n"
                           "model.h5` makes one file of the result.",
            .examples =
                "  nibble train --config dim=96,hidden=256,layers=4,heads=6,ctx=256 --data book.txt --split blank \\\n"
                "               --tokenizer bytes --epochs 5 -o book/\n"
                "  nibble train stories260K.bin --tokenizer tok512.bin --data tales.txt --split line \\\n"
                "               --steps 100 -o finer/"},
        false);
}

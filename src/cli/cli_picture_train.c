/* cli_picture_train.c - nibble train --model and nibble qat of networks for pictures. */
#include "cli/cli_picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    cl_common common;
    const char *model, *recipe;
    bool qat, restart;
    int64_t epochs, batch;
    double shift, lr, smoothing, scale_rate, decay, freeze_after;
    int range, flip;
} train_options;
enum { FLIP_AUTO, FLIP_ON };

static status new_net(md_picture_net *m, const train_options *o)
{
    md_stages stages;
    const char *text = md_stages_named(o->model);
    if (text) {
        TRY(md_stages_parse(&stages, text, strlen(text), o->model));
    } else {
        nb_mapped file;
        if (!nb_path_exists(o->model))
            return nb_fail(NB_USAGE, "--model %s: there is no such file, and no such network (simplenet, simplecnn, dscnn)", o->model);
        TRY(nb_map(&file, o->model));
        const status s = md_stages_parse(&stages, (const char *)file.data, file.bytes, o->model);
        nb_unmap(&file);
        TRY(s);
    }
    const status s = md_net_build(m, &stages, NULL, o->common.seed, false);
    md_stages_free(&stages);
    return s;
}

static status report(const kd_picture_report *r, const train_options *o)
{
    char time[32];
    if (o->common.json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_int(&w, "step", r->step);
        nb_json_put_int(&w, "steps", r->steps);
        nb_json_put_bool(&w, "resumed", r->resumed);
        nb_json_put_bool(&w, "was_finished", r->was_finished);
        nb_json_put_number(&w, "loss", r->loss);
        nb_json_put_number(&w, "train_accuracy", r->accuracy);
        nb_json_put_number(&w, "seconds", r->seconds);
        nb_json_put_number(&w, "pictures_per_second", r->pictures_per_second);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    if (o->common.quiet)
        return NB_OK;
    if (r->was_finished) {
        cl_say("%s: finished before, all %lld steps (--restart starts over)\n", o->common.output, (long long)r->steps);
        return NB_OK;
    }
    cl_duration(time, sizeof time, r->seconds);
    cl_say("%s: %lld steps, loss %.4f, %.2f %% of the training pictures right; %s, %.0f pictures/s\n", o->common.output,
           (long long)r->steps, r->loss, 100 * r->accuracy, time, r->pictures_per_second);
    return NB_OK;
}

static kd_picture_options settings(const train_options *o, const md_picture_net *m, const fm_pictures *data)
{
    kd_picture_options k = kd_picture_defaults(m, data);
    k.seed = o->common.seed;
    k.epochs = o->epochs ? o->epochs : k.epochs;
    k.batch = o->batch ? o->batch : k.batch;
    k.shift = o->shift >= 0 ? (int64_t)o->shift : k.shift;
    k.flip = o->flip == FLIP_AUTO ? k.flip : o->flip == FLIP_ON;
    k.lr = o->lr > 0 ? o->lr : k.lr;
    k.scale_rate = o->scale_rate >= 0 ? o->scale_rate : k.scale_rate;
    k.decay = o->decay;
    k.smoothing = o->smoothing;
    k.freeze_after = o->freeze_after;
    k.start = o->range ? FQ_START_MSE : FQ_START_ABSMAX;
    k.precision = cl_takes_bf16(&o->common, INT64_MAX) ? KN_BF16 : KN_FP32;
    return k;
}

static status train(const char *path, const train_options *o)
{
    md_picture_net m = {0};
    fm_pictures data = {0};
    kd_picture_report r;
    cl_progress line;
    if (!o->common.output)
        return nb_fail(NB_USAGE, "into which folder? (-o FOLDER)");
    if (o->qat && !o->recipe)
        return nb_fail(NB_USAGE, "by which recipe? (--recipe w8a8, w4a8, w4a4 or w2a4; `nibble recipes` lists them)");
    if (o->shift != floor(o->shift))
        return nb_fail(NB_USAGE, "--shift %g: wanted whole points", o->shift);
    TRY(cl_begin(&o->common));
    status s = o->qat ? cl_picture_open(&m, path, o->recipe) : new_net(&m, o);
    if (s == NB_OK)
        s = cl_picture_data(&data, &o->common, true);
    if (s == NB_OK) {
        const kd_picture_options k = settings(o, &m, &data);
        const nb_progress progress = cl_progress_start(&line, o->qat ? "qat" : "training", "pictures", o->common.quiet);
        s = kd_picture_train(o->common.output, &m, &data, &k, o->restart, &progress, &r);
        cl_progress_end(&line);
    }
    if (s == NB_OK)
        s = report(&r, o);
    fm_pictures_free(&data);
    md_net_free(&m);
    return s;
}

static int command_of(int argc, char **argv, bool qat)
{
    train_options o = {.qat = qat};
    const cl_option option[] = {
        {"--epochs", "N", CL_COUNT, &o.epochs, "0", "passes over the pictures (0: 10, qat 3)"},
        {"--batch", "N", CL_COUNT, &o.batch, "64", "pictures of a step"},
        {"--shift", "N", CL_NUMBER, &o.shift, "-1", "pictures move by up to so many points each way (-1: 1; 0 where the first layer is linear)"},
        {"--flip", "auto|on|off", CL_CHOICE, &o.flip, "auto", "every second picture is mirrored; auto: clothes are in front of windows, digits are not"},
        {"--lr", "X", CL_NUMBER, &o.lr, "0", "learning rate of AdamW (0: 1e-3, with batch norms 1e-2, qat 1e-4), half a cosine to 0"},
        {"--weight-decay", "X", CL_NUMBER, &o.decay, "0", "of AdamW"},
        {"--smoothing", "X", CL_NUMBER, &o.smoothing, "0", "of labels"},
        {"--restart", NULL, CL_FLAG, &o.restart, NULL, "discard the run that the folder holds"},
        {"--precision", "fp32|bf16|auto", CL_CHOICE, &o.common.precision, "auto",
         "of float products and convolutions; auto: bf16 where this CPU is fast at it"},
        {"--model", "NAME|FILE", CL_TEXT, &o.model, NULL, "simplenet, simplecnn, dscnn, or a file of stages (`nibble info` prints one)"},
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL, "w8a8, w4a8, w4a4, w2a4, or a file"},
        {"--scale-lr", "X", CL_NUMBER, &o.scale_rate, "-1", "of learned ranges (-1: 1e-3)"},
        {"--freeze-after", "X", CL_NUMBER, &o.freeze_after, "0.5", "share of the run after which static ranges stand still"},
        {"--range", "absmax|mse", CL_CHOICE, &o.range, "mse", "where ranges of weights start"},
    };
    enum { SHARED = 9 };
    cl_option own[20];
    int64_t n = 0;
    for (size_t i = 0; i < sizeof option / sizeof *option; i++)
        if (i < SHARED || (i == SHARED) != qat)
            own[n++] = option[i];
    const cl_command command = {
        .name = qat ? "qat" : "train",
        .arguments = qat ? "MODEL" : "",
        .summary = qat ? "train a network for pictures to live on integers" : "train a network for pictures",
        .explanation = qat ? "MODEL is a float network for pictures. Its batch norms are folded into the convolutions, its\n"
                             "ranges calibrated; then it is trained with the integers it will run with. Said again, it goes on."
                           : "Trains a network for pictures into a folder, a checkpoint an epoch. Said again, it goes on.",
        .examples = qat ? "  nibble qat f/ --data mnist:DIR --recipe w4a4 -o q/"
                        : "  nibble train --model simplecnn --data mnist:DIR -o f/\n"
                          "  nibble train --model dscnn --data fashion --epochs 10 -o f/",
        .option = own,
        .n = n,
        .common = &o.common,
        .common_mask = CL_DATA | CL_OUTPUT | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(train(argument[0], &o)) : code;
}

int cl_picture_train(int argc, char **argv)
{
    return command_of(argc, argv, false);
}

int cl_picture_qat(int argc, char **argv)
{
    return command_of(argc, argv, true);
}

/* cli_train.c - new models for nibble train, and what a run reports at its end. */
#include "cli/cli_train.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a new model -------------------------------------------------------------------------- */

/* One value of a list: a number, true or false as they are, else a text. */
static void put_value(nb_writer *w, const char *key, const char *value)
{
    double x;
    if (!strcmp(value, "true") || !strcmp(value, "false"))
        nb_json_put_bool(w, key, value[0] == 't');
    else if (nb_parse_number(&x, value) == NB_OK)
        nb_json_put_number(w, key, x);
    else
        nb_json_put_string(w, key, value);
}

/* key=value,... as the text of a JSON object, the vocabulary added where it is not named. Caller frees. */
static char *json_of_list(const char *list, int64_t vocab)
{
    nb_writer w = {0};
    bool has_vocab = false;
    char *copy = nb_string(list), *rest = copy, *item;
    nb_json_open(&w, NULL, '{');
    while (rest && (item = strsep(&rest, ",")) != NULL) {
        char *value = strchr(item, '=');
        if (!value)
            continue;
        *value++ = 0;
        has_vocab = has_vocab || !strcmp(item, "vocab");
        put_value(&w, item, value);
    }
    if (!has_vocab)
        nb_json_put_int(&w, "vocab", vocab);
    nb_json_close(&w, '}');
    free(copy);
    return nb_json_text(&w);
}

static status read_config(md_config *c, const char *config, int64_t vocab)
{
    nb_mapped file = {0};
    if (!strchr(config, '=') || nb_path_exists(config)) {
        TRY(nb_map(&file, config));
        status s = md_config_from_text(c, (const char *)file.data, file.bytes, config);
        nb_unmap(&file);
        return s;
    }
    char *text = json_of_list(config, vocab);
    if (!text)
        return nb_fail(NB_NOMEM, "out of memory");
    status s = md_config_from_text(c, text, strlen(text), "--config");
    free(text);
    return s == NB_FORMAT ? NB_USAGE : s;
}

status cl_new_model(md_model *m, const cl_train_options *o)
{
    fm_tokenizer tk = {0};
    fq_recipe recipe = {0};
    md_config c;
    if (!o->common.tokenizer)
        return nb_fail(NB_USAGE, "a new model needs a tokenizer (--tokenizer FILE, or bytes for the built-in one)");
    TRY(fm_tokenizer_open(&tk, o->common.tokenizer, 0));
    status s = read_config(&c, o->config, tk.vocab_size);
    if (s == NB_OK && c.vocab < tk.vocab_size)
        s = nb_fail(NB_USAGE, "--config: vocab is %lld, the tokenizer has %lld pieces", (long long)c.vocab,
                    (long long)tk.vocab_size);
    if (s == NB_OK && o->recipe)
        s = fq_recipe_open(&recipe, o->recipe);
    if (s == NB_OK) {
        c.tied = c.tied && !o->common.untie;
        c.bos = c.bos < 0 ? tk.bos : c.bos;
        c.eos = c.eos < 0 ? tk.eos : c.eos;
        s = md_build(m, &c, o->recipe ? &recipe : NULL, o->common.seed, false);
    }
    fq_recipe_free(&recipe);
    if (s == NB_OK)
        m->tokenizer = tk;
    else
        fm_tokenizer_free(&tk);
    return s;
}

/* ---- reports ------------------------------------------------------------------------------ */

static status predicted(const kd_train_report *r, const cl_train_options *o)
{
    if (o->common.json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_int(&w, "steps", r->steps);
        nb_json_put_number(&w, "seconds", r->seconds);
        nb_json_put_number(&w, "tokens_per_second", r->tokens_per_second);
        nb_json_put_int(&w, "memory_bytes", (int64_t)(r->tape_bytes + r->parameter_bytes));
        nb_json_put_int(&w, "peak_bytes", (int64_t)nb_peak_memory());
        nb_json_put_int(&w, "disk_bytes", (int64_t)r->disk_bytes);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    cl_table t = {0};
    char text[3][32];
    cl_duration(text[0], sizeof text[0], r->seconds);
    cl_row(&t, "time\t%s\t%lld steps, %.0f tokens/s, evaluations not counted", text[0], (long long)r->steps,
           r->tokens_per_second);
    cl_size(text[0], sizeof text[0], (double)nb_peak_memory());
    cl_size(text[1], sizeof text[1], (double)r->tape_bytes);
    cl_size(text[2], sizeof text[2], (double)r->parameter_bytes);
    cl_row(&t, "memory\t%s\tof which activations %s, parameters and their moments %s", text[0], text[1], text[2]);
    cl_size(text[0], sizeof text[0], (double)r->disk_bytes);
    cl_row(&t, "disk\t%s\tin %s", text[0], o->common.output);
    return cl_table_print(stdout, &t, "lrl");
}

static status print_json(const kd_train_report *r)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", r->step);
    nb_json_put_int(&w, "steps", r->steps);
    nb_json_put_bool(&w, "resumed", r->resumed);
    nb_json_put_bool(&w, "was_finished", r->was_finished);
    nb_json_put_number(&w, "best_kl", r->best_kl);
    nb_json_put_number(&w, "best_nll", r->best_nll);
    nb_json_put_int(&w, "tokens", r->tokens);
    nb_json_put_number(&w, "seconds", r->seconds);
    nb_json_put_number(&w, "tokens_per_second", r->tokens_per_second);
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

status cl_train_report(const kd_train_report *r, const cl_train_options *o)
{
    char best[64] = "", time[32];
    if (o->run.dry_run)
        return predicted(r, o);
    if (o->common.json)
        return print_json(r);
    if (o->common.quiet)
        return NB_OK;
    if (isfinite(r->best_kl))
        snprintf(best, sizeof best, ", best held-out KL %.5f", r->best_kl);
    else if (isfinite(r->best_nll))
        snprintf(best, sizeof best, ", best held-out nll %.4f", r->best_nll);
    if (r->was_finished) {
        cl_say("%s: finished before, all %lld steps%s (--restart starts over)\n", o->common.output, (long long)r->steps,
               best);
        return NB_OK;
    }
    cl_duration(time, sizeof time, r->seconds);
    cl_say("%s: %lld steps%s; %s, %.0f tokens/s\n", o->common.output, (long long)r->steps, best, time,
           r->tokens_per_second);
    return NB_OK;
}

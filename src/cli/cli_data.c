/* cli_data.c - nibble data: a model writes the token file that its student will be trained on. */
#include "cli/cli.h"
#include <stdlib.h>

typedef struct {
    cl_common common;
    int64_t tokens, batch, prompt_length;
    const char *prompts;
    rt_sampling how;
    int start;
    bool restart;
} data_options;

static status print_report(const kd_data_report *r, const data_options *o)
{
    const double rate = r->seconds > 0 ? (double)(r->tokens - r->resumed_tokens) / r->seconds : 0;
    if (o->common.json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_int(&w, "tokens", r->tokens);
        nb_json_put_int(&w, "documents", r->documents);
        nb_json_put_int(&w, "resumed_tokens", r->resumed_tokens);
        nb_json_put_number(&w, "seconds", r->seconds);
        nb_json_put_number(&w, "tokens_per_second", rate);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    if (o->common.quiet)
        return NB_OK;
    char tokens[32], documents[32], time[32], resumed[64] = "";
    cl_thousands(tokens, sizeof tokens, r->tokens);
    cl_thousands(documents, sizeof documents, r->documents);
    cl_duration(time, sizeof time, r->seconds);
    if (r->resumed_tokens)
        snprintf(resumed, sizeof resumed, ", %lld of them made before", (long long)r->resumed_tokens);
    cl_say("%s: %s tokens%s, in %s documents; %s, %.1f tokens/ms\n", o->common.output, tokens, resumed, documents, time,
           rate / 1000);
    return NB_OK;
}

static status generate(const char *model, const data_options *o)
{
    md_model m = {0};
    fm_tokens prompts = {0};
    kd_data_report report;
    cl_progress line;
    kd_data_options k = {.start = (kd_start)o->start,
                         .sampling = o->how,
                         .tokens = o->tokens,
                         .ctx = o->common.ctx,
                         .slots = o->batch,
                         .seed = o->common.seed,
                         .prompt_length = o->prompt_length};
    TRY(cl_check_output(&o->common, false));
    if (o->tokens < 1)
        return nb_fail(NB_USAGE, "how many tokens? (--tokens 400k)");
    TRY(cl_begin(&o->common));
    TRY(cl_open_model(&m, model, &o->common, NULL, false));
    status s = cl_precision(&k.precision, &o->common, &m.config);
    if (s == NB_OK && o->prompts) {
        s = cl_open_data(&prompts, o->prompts, &o->common, &m);
        k.prompts = &prompts;
    }
    if (s == NB_OK) {
        nb_progress progress = cl_progress_start(&line, "generating", "tokens", o->common.quiet);
        s = kd_generate(&m, &k, o->common.output, o->restart, &progress, &report);
        cl_progress_end(&line);
    }
    if (s == NB_OK)
        s = print_report(&report, o);
    fm_tokens_close(&prompts);
    md_free(&m);
    return s;
}

int cl_data(int argc, char **argv)
{
    data_options o = {0};
    const cl_option option[] = {
        {"--tokens", "N", CL_COUNT, &o.tokens, NULL, "how many in all (400k, 3M); rounded up to whole rows"},
        {"--start", "bos|hybrid|mixed", CL_CHOICE, &o.start, "bos",
         "how a row begins: with BOS and sampling; with a random token, 3 to 5 likely ones, then sampling "
         "(LLM-QAT); or, for chat models, a mixture of these and of <|endoftext|>, what stands between documents"},
        {"--prompts", "FILE", CL_TEXT, &o.prompts, NULL,
         "rows begin with passages of this text (or token file) in place of --start, and the model goes on: its words on your matter"},
        {"--prompt-length", "N", CL_COUNT, &o.prompt_length, "32", "tokens of a passage"},
        {"--temp", "T", CL_NUMBER, &o.how.temperature, "1", "temperature of sampling"},
        {"--top-k", "N", CL_COUNT, &o.how.top_k, "0", "sample among the N likeliest tokens only (0: all)"},
        {"--top-p", "P", CL_NUMBER, &o.how.top_p, "0", "sample among the likeliest tokens of this probability (0: all)"},
        {"--batch", "N", CL_COUNT, &o.batch, "0", "rows made at once; a part of what decides the result (0: 128, 64 where their caches would take over 1 GB)"},
        {"--restart", NULL, CL_FLAG, &o.restart, NULL, "discard what an interrupted run of this command left"},
    };
    const cl_command command = {
        .name = "data",
        .arguments = "MODEL",
        .summary = "let a model write its own training data",
        .explanation = "Samples rows of --ctx tokens (256) from the model and writes them as a token file, with\n"
                       "document boundaries, the tokenizer and all settings. A student trained on what its\n"
                       "teacher says needs no corpus. The end token closes a document and the next one begins in\n"
                       "the same row. Interrupted, the same command goes on where it stopped (from FILE.part)\n"
                       "and ends in the same file. Where products are bf16, what it attends to is kept so, too.",
        .examples = "  nibble data stories260K.bin --tokenizer tok512.bin --tokens 400k --seed 1 -o train.h5\n"
                    "  nibble data stories260K.bin --tokenizer tok512.bin --tokens 25k  --seed 2 -o heldout.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_CTX | CL_SPLIT | CL_TOKENIZER | CL_WHICH | CL_OUTPUT | CL_FORCE | CL_SEEDED | CL_PRECISION | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(generate(argument[0], &o)) : code;
}

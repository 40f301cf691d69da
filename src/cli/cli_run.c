/* cli_run.c - nibble run: continues a text, token by token, as it is computed. */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    cl_common common;
    const char *prompt, *system;
    bool chat;
    int64_t n;
    rt_sampling how;
} run_options;

typedef struct {
    md_model model;
    rt_session *session;
    fm_ids ids; /* prompt, then what was made */
    int64_t prompt_tokens;
    real *hidden, *logits;
    void *scratch;
    fm_stream stream;
    char *text; /* with --json: what was made */
    size_t bytes;
    double prompt_seconds, seconds;
} runner;

static void runner_free(runner *r)
{
    rt_close(r->session);
    fm_ids_free(&r->ids);
    free(r->hidden);
    free(r->logits);
    free(r->scratch);
    free(r->text);
    md_free(&r->model);
}

/* The ids of the prompt; as a conversation where asked for: the text that the model's chat template makes of it. */
static status encode_prompt(runner *r, const run_options *o)
{
    const fm_tokenizer *tk = &r->model.tokenizer;
    const fm_chat_message turns[] = {{"system", o->system}, {"user", o->prompt}};
    const bool has_system = o->system && *o->system;
    char *text;
    if (!o->chat)
        return fm_tokenizer_encode(tk, &r->ids, o->prompt, strlen(o->prompt), FM_ADD_BOS);
    TRY(fm_chat_render(tk, turns + !has_system, has_system ? 2 : 1, true, &text));
    status s = fm_tokenizer_encode(tk, &r->ids, text, strlen(text), FM_ADD_BOS | FM_PARSE_SPECIAL);
    free(text);
    return s;
}

static status runner_open(runner *r, const char *path, const run_options *o)
{
    rt_options k = {.slots = 1, .ctx = o->common.ctx};
    TRY(cl_open_model(&r->model, path, &o->common, NULL, false));
    const md_model *m = &r->model;
    if (m->tokenizer.kind == FM_TOKENIZER_NONE)
        return nb_fail(NB_USAGE, "%s: carries no tokenizer (--tokenizer FILE)", path);
    if (o->common.ctx > m->config.ctx)
        return nb_fail(NB_USAGE, "--ctx %lld: the model's context is %lld", (long long)o->common.ctx, (long long)m->config.ctx);
    TRY(cl_precision(&k.precision, &o->common, &m->config));
    TRY(rt_open(&r->session, &r->model, &k));
    TRY(encode_prompt(r, o));
    r->prompt_tokens = r->ids.n;
    if (r->ids.n == 0)
        return nb_fail(NB_USAGE, "the tokenizer has no BOS, so the text needs a beginning (-p TEXT)");
    if (r->ids.n > rt_ctx(r->session))
        return nb_fail(NB_USAGE, "the prompt has %lld tokens, the context %lld", (long long)r->ids.n,
                       (long long)rt_ctx(r->session));
    r->hidden = nb_alloc_aligned((size_t)(r->ids.n * m->config.dim), sizeof(real));
    r->logits = nb_alloc_aligned((size_t)m->config.vocab, sizeof(real));
    r->scratch = nb_alloc(1, rt_sample_scratch(m->config.vocab));
    return r->hidden && r->logits && r->scratch ? NB_OK : NB_NOMEM;
}

static bool is_end(const md_model *m, int32_t id)
{
    return id == m->config.bos || id == m->config.eos || id == m->tokenizer.bos || id == m->tokenizer.eos;
}

/* Puts text on the screen, or aside for the JSON object. */
static status emit(runner *r, fm_text text, bool json)
{
    if (!json)
        return cl_print(text.text, text.bytes);
    char *p = nb_resize(r->text, r->bytes + text.bytes + 1, 1);
    if (!p)
        return NB_NOMEM;
    r->text = p;
    if (text.bytes)
        memcpy(p + r->bytes, text.text, text.bytes);
    r->bytes += text.bytes;
    p[r->bytes] = 0;
    return NB_OK;
}

/* Appends up to o->n tokens; stops at an end token, at the end of the context, after Ctrl-C. */
static status continue_text(runner *r, const run_options *o)
{
    const md_model *m = &r->model;
    double start = nb_seconds();
    TRY(rt_forward(r->session, r->ids.n, NULL, r->ids.id, r->hidden));
    const real *last = r->hidden + (r->ids.n - 1) * m->config.dim;
    r->prompt_seconds = nb_seconds() - start;
    start = nb_seconds();
    for (int64_t i = 0; i < o->n && !cl_interrupted(); i++) {
        TRY(rt_head(r->session, r->logits, last, 1));
        int32_t id =
            rt_sample(r->logits, m->config.vocab, &o->how, nb_random_unit(o->common.seed, 0, (uint64_t)i), r->scratch);
        if (is_end(m, id))
            break;
        TRY(fm_ids_reserve(&r->ids, 1));
        r->ids.id[r->ids.n++] = id;
        TRY(emit(r, fm_stream_put(&r->stream, &m->tokenizer, id), o->common.json));
        if (rt_length(r->session, 0) == rt_ctx(r->session)) {
            if (!o->common.quiet && i + 1 < o->n)
                cl_say("\nnibble: stopped at the end of the context, %lld tokens\n", (long long)rt_ctx(r->session));
            break;
        }
        if (i + 1 < o->n)
            TRY(rt_forward(r->session, 1, NULL, &id, r->hidden));
        last = r->hidden;
    }
    r->seconds = nb_seconds() - start;
    return emit(r, fm_stream_flush(&r->stream), o->common.json);
}

static status report(runner *r, const run_options *o)
{
    const int64_t n = r->ids.n - r->prompt_tokens;
    const double rate = r->seconds > 0 ? (double)n / r->seconds : 0;
    const double prompt_rate = r->prompt_seconds > 0 ? (double)r->prompt_tokens / r->prompt_seconds : 0;
    if (!o->common.json) {
        TRY(cl_print("\n", 1));
        if (!o->common.quiet)
            cl_say("%lld tokens, %.0f tokens/s; prompt %lld tokens, %.0f tokens/s\n", (long long)n, rate,
                   (long long)r->prompt_tokens, prompt_rate);
        return NB_OK;
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "prompt", o->prompt);
    nb_json_put_string(&w, "text", r->text ? r->text : "");
    nb_json_put_int(&w, "prompt_tokens", r->prompt_tokens);
    nb_json_put_int(&w, "tokens", n);
    nb_json_put_number(&w, "tokens_per_second", rate);
    nb_json_put_number(&w, "prompt_tokens_per_second", prompt_rate);
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

static status run(const char *path, const run_options *o)
{
    runner r = {0};
    TRY(rt_sampling_check(&o->how));
    TRY(cl_begin(&o->common));
    status s = runner_open(&r, path, o);
    for (int64_t i = 0; s == NB_OK && i < r.prompt_tokens; i++) /* so that the text goes on where the prompt ends */
        fm_stream_put(&r.stream, &r.model.tokenizer, r.ids.id[i]);
    if (s == NB_OK && !o->common.json && !o->chat)
        s = cl_print(o->prompt, strlen(o->prompt));
    if (s == NB_OK)
        s = continue_text(&r, o);
    if (s == NB_OK)
        s = report(&r, o);
    if (s == NB_OK && cl_interrupted())
        s = nb_fail(NB_INTERRUPTED, "interrupted");
    runner_free(&r);
    return s;
}

int cl_run(int argc, char **argv)
{
    run_options o = {0};
    const cl_option option[] = {
        {"-p", "TEXT", CL_TEXT, &o.prompt, "", "the beginning; empty: from BOS alone"},
        {"--chat", NULL, CL_FLAG, &o.chat, NULL,
         "-p is what a user says: put it into the model's chat template, print the answer alone"},
        {"--system", "TEXT", CL_TEXT, &o.system, NULL, "with --chat: the system message (the template's own)"},
        {"-n", "N", CL_COUNT, &o.n, "256", "tokens to add at most"},
        {"--temp", "T", CL_NUMBER, &o.how.temperature, "0.8", "temperature; 0 takes the likeliest token always"},
        {"--top-k", "N", CL_COUNT, &o.how.top_k, "0", "sample among the N likeliest tokens only (0: all)"},
        {"--top-p", "P", CL_NUMBER, &o.how.top_p, "0", "sample among the likeliest tokens of this probability (0: all)"},
    };
    const cl_command command = {
        .name = "run",
        .arguments = "MODEL",
        .summary = "continue a text",
        .explanation = "Prints the prompt and its continuation, as it is made, and one newline. A folded model\n"
                       "computes with its integers, keys and values in their 4 or 8 bits too. Stops at the end\n"
                       "token, after -n tokens or at the end of the context.",
        .examples = "  nibble run student.h5 -p \"Once upon a time\" -n 200 --temp 0.8 --seed 3\n"
                    "  nibble run stories260K.bin --tokenizer tok512.bin -p \"\" -n 200 --temp 0\n"
                    "  nibble run SmolLM2-135M-Instruct.Q4_1.gguf --chat -p \"What is the capital of France?\"",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_CTX | CL_TOKENIZER | CL_WHICH | CL_SEEDED | CL_PRECISION | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    if (!cl_parse(&command, argc, argv, argument, &code))
        return code;
    if (o.system && !o.chat)
        return cl_exit(nb_fail(NB_USAGE, "--system goes with --chat"));
    return cl_exit(run(argument[0], &o));
}

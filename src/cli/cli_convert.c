/* cli_convert.c - nibble convert: the numbers of a float model in another file format; export's targets that hold floats. */
#include "cli/cli.h"
#include "ptq/ptq.h"
#include <string.h>

typedef struct {
    cl_common common;
    const char *format, *rotate;
    bool list;
} convert_options;

/* "gguf" and "llama2c" are, of floats, the exact ones. */
static status find_target(const md_target **t, const char *format)
{
    char exact[40];
    const md_target *named = md_target_find(format);
    (void)snprintf(exact, sizeof exact, "%.30s-f32", format);
    *t = named && named->has_codes ? md_target_find(exact) : named;
    return *t ? NB_OK : nb_fail(NB_USAGE, "--to %s: there is no such format (`nibble convert --list` names them)", format);
}

static status check_floats(const md_model *m, const char *path)
{
    for (int64_t i = 0; i < m->sites.n; i++)
        if (m->sites.s[i]->spec.grid.bits)
            return nb_fail(NB_USAGE,
                           "%s: is %s by recipe %s, convert takes float models; `nibble export` writes its codes, and what they decode "
                           "to (--to gguf-f32, h5, ...)",
                           path, m->folded ? "folded" : "trained", m->recipe.name);
    return NB_OK;
}

static status write_model(const char *path, const convert_options *o, const md_target *t, uint64_t seed)
{
    md_model m = {0};
    char report[2048] = "";
    const md_open_options open = {.tokenizer = o->common.tokenizer, .untie = o->common.untie};
    TRY(kd_open(&m, path, o->common.which == 0 ? "best" : "last", &open));
    status s = check_floats(&m, path);
    if (s == NB_OK && o->rotate)
        s = pt_rotate(&m, seed, false);
    if (s == NB_OK)
        s = md_export(&m, t->name, o->common.output, report, sizeof report);
    md_free(&m);
    return s == NB_OK ? cl_say_written(&o->common, t->name, report) : s;
}

static status convert(const char *path, const convert_options *o)
{
    const md_target *t;
    int64_t seed = 0;
    if (o->list)
        return cl_list_targets(true, o->common.json);
    if (!path || !o->format)
        return nb_fail(NB_USAGE, "%s (`nibble convert --list` names the formats)",
                       path ? "into which format? --to FORMAT" : "which model? nibble convert MODEL --to FORMAT -o OUT");
    TRY(find_target(&t, o->format));
    if (o->rotate && nb_parse_count(&seed, o->rotate) != NB_OK)
        return nb_fail_in(NB_USAGE, "--rotate");
    TRY(cl_check_output(&o->common, t->is_folder));
    TRY(cl_begin(&o->common));
    return write_model(path, o, t, (uint64_t)seed);
}

int cl_convert(int argc, char **argv)
{
    convert_options o = {0};
    const cl_option option[] = {
        {"--to", "FORMAT", CL_TEXT, &o.format, NULL,
         "gguf, safetensors or h5 (F32; with -f16 or -bf16 behind it, rounded to that), llama2c"},
        {"--rotate", "SEED", CL_TEXT, &o.rotate, NULL,
         "turn the weights by an exact orthogonal rotation: the same function, but outliers are spread and values lie off the "
         "lattice of earlier codes; unties the head"},
        {"--list", NULL, CL_FLAG, &o.list, NULL, "say what each format holds"},
    };
    const cl_command command = {
        .name = "convert",
        .arguments = "[MODEL]",
        .summary = "a float model from one file format into another",
        .explanation = "MODEL is a GGUF or llama2.c file, a safetensors file or Hugging Face folder, nibble's own float\n"
                       "file, or a run folder of `nibble train`. Quantized GGUF and llama2.c files are decoded into the floats\n"
                       "that their codes stand for. F32 holds every value bit for bit; what F16 or BF16 rounds is counted and told. The\n"
                       "tokenizer goes along into GGUF, a Hugging Face folder and h5; keys of a GGUF file into GGUF and h5.\n"
                       "A file that cannot hold the model (llama2.c: biases, another theta) is refused with the reason.\n"
                       "Integers go by `nibble fold` and `nibble export`.",
        .examples = "  nibble convert SmolLM2-135M-Instruct.Q4_1.gguf --to safetensors-bf16 -o smollm2/\n"
                    "  nibble convert smollm2/ --to gguf-bf16 -o smollm2.gguf\n"
                    "  nibble convert stories260K.bin --tokenizer tok512.bin --to gguf -o stories.gguf\n"
                    "  nibble convert SmolLM2-135M-Instruct.Q4_1.gguf --rotate 1 --to gguf -o turned.gguf",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_TOKENIZER | CL_WHICH | CL_UNTIE | CL_OUTPUT | CL_FORCE | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(convert(argument[0], &o)) : code;
}

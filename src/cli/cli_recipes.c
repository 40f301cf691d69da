/* cli_recipes.c - nibble recipes: the named recipes, and the rules of one of them. */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>

static status list(bool json)
{
    const char *const *name, *const *explanation;
    const int64_t n = fq_recipe_named(&name, &explanation);
    if (!json) {
        cl_table t = {0};
        for (int64_t i = 0; i < n; i++)
            cl_row(&t, "%s\t%s", name[i], explanation[i]);
        return cl_table_print(stdout, &t, "ll");
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    for (int64_t i = 0; i < n; i++)
        nb_json_put_string(&w, name[i], explanation[i]);
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

static const char *explanation_of(const char *recipe)
{
    const char *const *name, *const *explanation;
    const int64_t n = fq_recipe_named(&name, &explanation);
    for (int64_t i = 0; i < n; i++)
        if (!strcmp(name[i], recipe))
            return explanation[i];
    return NULL;
}

static status show(const char *name, bool json)
{
    fq_recipe r = {0};
    TRY(fq_recipe_open(&r, name));
    const char *explanation = explanation_of(name);
    char *text = fq_recipe_text(&r);
    status s = text ? NB_OK : NB_NOMEM;
    if (s == NB_OK && json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "name", r.name);
        nb_json_put_string(&w, "explanation", explanation ? explanation : "");
        nb_json_open(&w, "rules", '[');
        for (int64_t i = 0; i < r.n; i++) {
            char spec[128];
            fq_spec_print(spec, sizeof spec, &r.rule[i].spec);
            nb_json_open(&w, NULL, '{');
            nb_json_put_string(&w, "pattern", r.rule[i].pattern);
            nb_json_put_string(&w, "spec", spec);
            nb_json_close(&w, '}');
        }
        nb_json_close(&w, ']');
        nb_json_close(&w, '}');
        s = cl_print_json(&w);
    } else if (s == NB_OK) {
        printf("# %s%s%s\n", r.name, explanation ? ": " : "", explanation ? explanation : "");
        s = cl_print(text, strlen(text));
    }
    free(text);
    fq_recipe_free(&r);
    return s;
}

int cl_recipes(int argc, char **argv)
{
    cl_common common = {0};
    const cl_command command = {
        .name = "recipes",
        .arguments = "[NAME]",
        .summary = "the named recipes, and what one of them says",
        .explanation = "A recipe is a list of rules, a pattern of site names and how the tensor there is\n"
                       "quantized; the later rule wins. Without NAME: all that ship. With NAME, or the path of a\n"
                       "recipe file: its rules, in the form of a recipe file, so `nibble recipes w4a8kv8 >\n"
                       "mine.txt` is a start for one of your own (--recipe mine.txt).",
        .examples = "  nibble recipes\n  nibble recipes w4a8kv8",
        .common = &common,
        .common_mask = CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    if (!cl_parse(&command, argc, argv, argument, &code))
        return code;
    return cl_exit(argument[0] ? show(argument[0], common.json) : list(common.json));
}

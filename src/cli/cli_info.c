/* cli_info.c - nibble info: what a file or a run folder holds. Facts are gathered once, for the table and for JSON. */
#include "cli/cli_info.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- facts -------------------------------------------------------------------------------- */

void cl_fact_text(cl_facts *f, const char *key, const char *text)
{
    nb_json_put_string(&f->json, key, text);
    cl_row(&f->table, "%s\t%s", key, text);
}

void cl_fact_int(cl_facts *f, const char *key, int64_t x)
{
    char text[32];
    cl_thousands(text, sizeof text, x);
    nb_json_put_int(&f->json, key, x);
    cl_row(&f->table, "%s\t%s", key, text);
}

void cl_fact_number(cl_facts *f, const char *key, double x)
{
    nb_json_put_number(&f->json, key, x);
    if (isfinite(x))
        cl_row(&f->table, "%s\t%.6g", key, x);
}

void cl_fact_tokenizer(cl_facts *f, const fm_tokenizer *tk)
{
    char text[96];
    if (tk->kind == FM_TOKENIZER_NONE) {
        nb_json_put_raw(&f->json, "tokenizer", "null");
        cl_row(&f->table, "tokenizer\tnone (--tokenizer)");
        return;
    }
    snprintf(text, sizeof text, "%s, %lld pieces, hash %016llx",
             fm_tokenizer_kind_name(tk), (long long)tk->vocab_size,
             (unsigned long long)tk->hash);
    cl_fact_text(f, "tokenizer", text);
}

static status facts_print(cl_facts *f, bool json)
{
    nb_json_close(&f->json, '}');
    if (json) {
        cl_table_free(&f->table);
        return cl_print_json(&f->json);
    }
    free(nb_json_text(&f->json));
    return cl_table_print(stdout, &f->table, "ll");
}

/* ---- what is not a model ------------------------------------------------------------------ */

static status info_tokens(cl_facts *f, const char *path)
{
    fm_tokens t = {0};
    TRY(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    cl_fact_text(f, "kind", "token file");
    cl_fact_int(f, "tokens", t.n);
    cl_fact_int(f, "documents", t.n_documents);
    cl_fact_int(f, "vocab", t.vocab_size);
    cl_fact_int(f, "row_length", t.row_length);
    cl_fact_int(f, "seed", t.seed);
    cl_fact_tokenizer(f, &t.tokenizer);
    nb_json_put_raw(&f->json, "settings", t.settings);
    cl_row(&f->table, "settings\t%s", t.settings);
    fm_tokens_close(&t);
    return NB_OK;
}

static void fact_value(cl_facts *f, const fm_value *v)
{
    char text[128];
    if (v->is_array) {
        snprintf(text, sizeof text, "[%lld x %s]", (long long)v->n, fm_dtype_name(v->dtype));
        cl_fact_text(f, v->key, text);
    } else if (v->dtype == FM_STRING) {
        fm_text s = fm_value_text(v, 0);
        snprintf(text, sizeof text, "%.*s%s", s.bytes < 100 ? (int)s.bytes : 100, s.text ? s.text : "",
                 s.bytes > 100 ? "..." : "");
        cl_fact_text(f, v->key, text);
    } else {
        cl_fact_number(f, v->key, fm_value_number(v, 0, NAN));
    }
}

static void tensor_row(cl_facts *f, const fm_array *a)
{
    char shape[96] = "";
    size_t used = 0;
    nb_json_open(&f->json, NULL, '{');
    nb_json_put_string(&f->json, "name", a->name);
    nb_json_put_string(&f->json, "type", fm_dtype_name(a->dtype));
    nb_json_open(&f->json, "shape", '[');
    for (int d = 0; d < a->n_dim; d++) {
        nb_json_put_int(&f->json, NULL, a->dim[d]);
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", d ? " x " : "", (long long)a->dim[d]);
    }
    nb_json_close(&f->json, ']');
    nb_json_put_int(&f->json, "bytes", (int64_t)a->bytes);
    nb_json_close(&f->json, '}');
    cl_row(&f->table, "  %s\t%s\t%s", a->name, fm_dtype_name(a->dtype), shape);
}

static status info_arrays(cl_facts *f, const fm_arrays *a, const char *kind, bool tensors)
{
    int64_t elements = 0;
    cl_fact_text(f, "kind", kind);
    cl_fact_int(f, "arrays", a->n);
    for (int64_t i = 0; i < a->n; i++)
        elements += fm_count(&a->array[i]);
    cl_fact_int(f, "elements", elements);
    nb_json_open(&f->json, "metadata", '{');
    for (int64_t i = 0; i < a->meta.n; i++)
        fact_value(f, &a->meta.value[i]);
    nb_json_close(&f->json, '}');
    if (tensors) {
        nb_json_open(&f->json, "tensors", '[');
        for (int64_t i = 0; i < a->n; i++)
            tensor_row(f, &a->array[i]);
        nb_json_close(&f->json, ']');
    }
    return NB_OK;
}

static status info_foreign(cl_facts *f, const char *path, fm_file_kind kind, bool tensors)
{
    fm_arrays a = {0};
    const bool gguf = kind == FM_FILE_GGUF;
    status s = gguf ? fm_gguf_open(&a, path) : fm_safetensors_open(&a, path);
    if (s == NB_OK)
        s = info_arrays(f, &a, gguf ? "GGUF" : "safetensors", tensors);
    fm_arrays_free(&a);
    return s;
}

static status info_tokenizer(cl_facts *f, const char *path)
{
    fm_tokenizer tk = {0};
    if (fm_tokenizer_open(&tk, path, 0) != NB_OK)
        return nb_fail(NB_FORMAT, "%s: neither a model, a token file nor a tokenizer", path);
    cl_fact_text(f, "kind", "tokenizer");
    cl_fact_tokenizer(f, &tk);
    cl_fact_int(f, "bos", tk.bos);
    cl_fact_int(f, "eos", tk.eos);
    fm_tokenizer_free(&tk);
    return NB_OK;
}

/* ---- what it is --------------------------------------------------------------------------- */

static status h5_kind(char kind[24], const char *path)
{
    fm_h5 f = {0};
    TRY(fm_h5_open(&f, path, NULL));
    memcpy(kind, f.kind, 24);
    kind[23] = 0;
    fm_h5_close(&f);
    return NB_OK;
}

static status llama2c_layout(cl_facts *f, const char *path)
{
    fm_arrays a = {0};
    fm_llama2c header;
    char text[64];
    TRY(fm_llama2c_open(&a, &header, path));
    if (header.version < 2)
        snprintf(text, sizeof text, "version %d, fp32", header.version);
    else
        snprintf(text, sizeof text, "version %d, int8 in groups of %d", header.version, header.group_size);
    cl_fact_text(f, "layout", text);
    fm_arrays_free(&a);
    return NB_OK;
}

static status gather(cl_facts *f, const char *path, const cl_common *c, bool tensors)
{
    fm_file_kind kind;
    char h5[24] = "", *last = nb_path_join(path, "last.h5"), *best = nb_path_join(path, "best.h5");
    struct stat info;
    const bool is_run = last && best && (nb_path_exists(last) || nb_path_exists(best));
    free(last);
    free(best);
    nb_json_open(&f->json, NULL, '{');
    cl_fact_text(f, "path", path);
    if (is_run)
        return cl_info_run(f, path, c, tensors);
    TRY(fm_file_kind_of(&kind, path));
    if (stat(path, &info) == 0 && S_ISREG(info.st_mode))
        cl_fact_int(f, "file_bytes", (int64_t)info.st_size);
    if (kind == FM_FILE_HDF5)
        TRY(h5_kind(h5, path));
    if (!strcmp(h5, "tokens"))
        return info_tokens(f, path);
    if (kind == FM_FILE_UNKNOWN)
        return info_tokenizer(f, path);
    if (kind == FM_FILE_GGUF)
        return info_foreign(f, path, kind, tensors);
    if (kind == FM_FILE_LLAMA2C)
        TRY(llama2c_layout(f, path));
    md_model m = {0};
    status s = cl_open_model(&m, path, c, NULL, false);
    if (s == NB_OK) {
        static const char *const names[] = {
            [FM_FILE_SAFETENSORS] = "safetensors model", [FM_FILE_LLAMA2C] = "llama2.c model"};
        char text[40];
        snprintf(text, sizeof text, "nibble %s", h5);
        cl_fact_text(f, "kind", kind == FM_FILE_HDF5 ? text : names[kind]);
        s = cl_info_model(f, &m, tensors);
    } else if (kind == FM_FILE_SAFETENSORS && s != NB_NOMEM) {
        if (!c->quiet)
            cl_say("nibble: no model: %s\n", nb_fail_message());
        s = info_foreign(f, path, kind, tensors);
    }
    md_free(&m);
    return s;
}

static status info(const char *path, const cl_common *c, bool tensors)
{
    cl_facts f = {0};
    TRY(cl_begin(c));
    status s = gather(&f, path, c, tensors);
    if (s == NB_OK)
        return facts_print(&f, c->json);
    cl_table_free(&f.table);
    free(nb_json_text(&f.json));
    return s;
}

int cl_info(int argc, char **argv)
{
    cl_common common = {0};
    bool tensors = false;
    const cl_option option[] = {
        {"--tensors", NULL, CL_FLAG, &tensors, NULL, "list every tensor: its name, shape and how it is quantized"},
    };
    const cl_command command = {
        .name = "info",
        .arguments = "FILE",
        .summary = "what a file or a run folder holds",
        .explanation = "Models (llama2.c, safetensors, nibble's own), run folders of `nibble qat`, token files,\n"
                       "tokenizers, GGUF files: what they are, their shape, recipe, tokenizer and size. Bits per\n"
                       "parameter count codes, scales, zero points and float tensors.",
        .examples = "  nibble info stories260K.bin\n  nibble info student.h5 --tensors\n  nibble info run/ --json",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &common,
        .common_mask = CL_TOKENIZER | CL_WHICH | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(info(argument[0], &common, tensors)) : code;
}

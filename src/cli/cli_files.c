/* cli_files.c - what the commands open and write, and how they start and end. */
#include "cli/cli.h"
#include <dirent.h>
#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *cl_users_blas_core(void)
{
    const char *core = getenv("OPENBLAS_CORETYPE"), *own = getenv(CL_BLAS_CORE);
    return core && *core && !(own && !strcmp(own, core)) ? core : NULL;
}

status cl_begin(const cl_common *c)
{
    const char *core = cl_users_blas_core();
    TRY(kn_isa_check());
    if (c->threads > 1024)
        return nb_fail(NB_USAGE, "--threads %lld: at most 1024", (long long)c->threads);
    if (c->threads > 0)
        omp_set_num_threads((int)c->threads);
    if (core && !c->quiet)
        cl_say("nibble: OPENBLAS_CORETYPE=%s is set: float products may run at half their speed (unset it)\n", core);
    return NB_OK;
}

uint64_t cl_hash_file(uint64_t h, const char *path)
{
    struct stat st = {0};
    h = nb_hash(h, path, strlen(path));
    if (stat(path, &st))
        return h;
    const int64_t stamp[3] = {(int64_t)st.st_size, (int64_t)st.st_mtim.tv_sec, (int64_t)st.st_mtim.tv_nsec};
    return nb_hash(h, stamp, sizeof stamp);
}

int cl_exit(status s)
{
    if (s == NB_OK && (fflush(stdout) || ferror(stdout)))
        s = nb_fail(NB_IO, "the result cannot be written: %s", strerror(errno));
    if (s == NB_OK)
        return 0;
    const char *message = nb_fail_message();
    cl_say("nibble: %s\n", *message ? message : nb_status_name(s));
    return s == NB_USAGE ? 2 : s == NB_INTERRUPTED ? 130 : 1;
}

/* Whether the folder that holds `path` is there and can be written. */
static status check_parent(const char *path)
{
    char *folder = nb_string(path);
    if (!folder)
        return NB_NOMEM;
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        folder[--n] = 0;
    char *slash = strrchr(folder, '/');
    const char *parent = !slash ? "." : slash == folder ? "/" : folder;
    if (slash && slash != folder)
        *slash = 0;
    status s = NB_OK;
    if (!nb_path_is_folder(parent))
        s = nb_fail(NB_IO, "%s: there is no folder %s to write it in", path, parent);
    else if (access(parent, W_OK))
        s = nb_fail(NB_IO, "%s: the folder it stands in cannot be written: %s", path, strerror(errno));
    free(folder);
    return s;
}

static bool is_regular(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static bool is_empty_folder(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    if (!d)
        return false;
    while (n < 3 && readdir(d))
        n++;
    closedir(d);
    return n < 3; /* "." and ".." */
}

status cl_check_output(const cl_common *c, bool is_folder)
{
    const char *path = c->output;
    if (!path || !*path)
        return nb_fail(NB_USAGE, "where should it be written? (-o %s)", is_folder ? "FOLDER" : "FILE");
    if (nb_path_exists(path) && nb_path_is_folder(path) != is_folder)
        return nb_fail(NB_IO, "%s: is a %s, -o wants the name of a %s", path, is_folder ? "file" : "folder",
                       is_folder ? "folder" : "file");
    if (nb_path_exists(path) && !c->force && !(is_folder && is_empty_folder(path)))
        return nb_fail(NB_IO, "%s: is there already (--force replaces it)", path);
    if (nb_path_exists(path) && !is_folder && !is_regular(path))
        return nb_fail(NB_IO, "%s: is a device, -o wants the name of a file", path);
    return check_parent(path);
}

enum { FP32, BF16, AUTO }; /* cl_common.precision */

bool cl_takes_bf16(const cl_common *c, int64_t width)
{
    const int64_t large = 256; /* below it, rounding operands costs more than the products gain */
    return c->precision == AUTO ? kn_bf16_pays() && width >= large : c->precision == BF16 && kn_has_bf16();
}

status cl_precision(kn_precision *p, const cl_common *c, const md_config *config)
{
    if (c->precision == BF16 && !kn_has_bf16())
        return nb_fail(NB_UNSUPPORTED, "--precision bf16: needs oneDNN and a CPU with bf16 products (use fp32)");
    *p = cl_takes_bf16(c, config->dim) ? KN_BF16 : KN_FP32;
    return NB_OK;
}

status cl_open_model(md_model *m, const char *path, const cl_common *c, const char *recipe, bool train)
{
    md_open_options o = {.recipe = recipe, .tokenizer = c->tokenizer, .train = train};
    o.untie = c->untie && (train || recipe);
    TRY(kd_open(m, path, c->which == 0 ? "best" : "last", &o));
    if (!train)
        md_store_floats(m);
    return NB_OK;
}

status cl_open_codes(md_model *m, const char *path, const cl_common *c, const char *recipe, fq_start start)
{
    const md_open_options o = {.recipe = recipe, .tokenizer = c->tokenizer, .fold = true, .start = start};
    TRY(kd_open(m, path, c->which == 0 ? "best" : "last", &o));
    md_store_floats(m);
    return NB_OK;
}

static status adopt_tokenizer(md_model *m, const fm_tokens *data)
{
    uint8_t *bytes;
    size_t n;
    if (m->tokenizer.kind != FM_TOKENIZER_NONE || data->tokenizer.kind == FM_TOKENIZER_NONE)
        return NB_OK;
    TRY(fm_tokenizer_to_bytes(&data->tokenizer, &bytes, &n));
    status s = fm_tokenizer_from_bytes(&m->tokenizer, bytes, n);
    free(bytes);
    return s;
}

status cl_open_data(fm_tokens *t, const char *path, const cl_common *c, md_model *m)
{
    const fm_tokenizer *tk = m->tokenizer.kind != FM_TOKENIZER_NONE ? &m->tokenizer : NULL;
    TRY(fm_tokens_open(t, path, tk, (fm_split)c->split));
    status s = t->vocab_size <= m->config.vocab
                   ? adopt_tokenizer(m, t)
                   : nb_fail(NB_USAGE, "%s: ids of a vocabulary of %lld, the model has %lld", path,
                             (long long)t->vocab_size, (long long)m->config.vocab);
    if (s != NB_OK)
        fm_tokens_close(t);
    return s;
}

status cl_report_folded(const md_model *m, const char *method, const cl_common *c)
{
    md_size size;
    md_measure(&size, m);
    const char *recipe = m->recipe.n ? m->recipe.name : "float";
    const int64_t bytes = md_size_bytes(&size);
    const double bits = 8.0 * (double)bytes / (double)size.params;
    if (c->json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        if (method)
            nb_json_put_string(&w, "method", method);
        nb_json_put_string(&w, "recipe", recipe);
        nb_json_put_int(&w, "params", size.params);
        nb_json_put_int(&w, "bytes", bytes);
        nb_json_put_number(&w, "bits_per_param", bits);
        nb_json_put_int(&w, "peak_bytes", (int64_t)nb_peak_memory());
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    if (c->quiet)
        return NB_OK;
    char text[32];
    cl_size(text, sizeof text, (double)bytes);
    cl_say("%s: %s%s%s of codes, scales and float tensors, %.2f bits per parameter, recipe %s\n", c->output,
           method ? method : "", method ? ", " : "", text, bits, recipe);
    return NB_OK;
}

status cl_print(const char *text, size_t bytes)
{
    if (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout))
        return nb_fail(NB_IO, "the result cannot be written: %s", strerror(errno));
    return NB_OK;
}

status cl_print_explained(const char *name, const char *explanation)
{
    const char *second = strchr(explanation, '\n');
    char text[1024];
    const int bytes = snprintf(text, sizeof text, "%-12s%.*s\n%-12s%s\n", name, (int)(second - explanation), explanation, "", second + 1);
    return cl_print(text, (size_t)bytes);
}

status cl_print_json(nb_writer *w)
{
    char *text = nb_json_text(w);
    if (!text)
        return nb_fail(NB_NOMEM, "out of memory");
    status s = cl_print(text, strlen(text));
    free(text);
    return s == NB_OK ? cl_print("\n", 1) : s;
}

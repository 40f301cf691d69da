/* imatrix.c - importance in llama.cpp's file (tools/imatrix), a GGUF file of
 *   general.type "imatrix"; imatrix.datasets texts; imatrix.chunk_count, imatrix.chunk_size u32
 *   WEIGHT.in_sum2 F32 [cols]   sums of x_j^2 of what goes into the weight        WEIGHT.counts F32 [1]   rows x summed
 * sorted by name; WEIGHT is GGUF's name of it. E[x_j^2] = in_sum2 / counts. Weights with one input (q, k, v) have equal entries, or, in
 * GPT-2, one between them.
 * Source: llama.cpp tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp.
 */
#include "distill/importance.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SUMS   ".in_sum2"
#define COUNTS ".counts"
enum { NAME = 160 };

/* ---- reading ------------------------------------------------------------------------------ */

static status check_entry(const fm_arrays *a, const fm_array *sums, const fm_array *counts, const fq_site *weight)
{
    if (sums->dtype != FM_F32 || counts->dtype != FM_F32)
        return nb_fail(NB_FORMAT, "%s: %s: sums and counts are F32", a->path, sums->name);
    if (fm_count(counts) != 1)
        return nb_fail(NB_UNSUPPORTED, "%s: %s: of %lld matrices, wanted one", a->path, counts->name, (long long)fm_count(counts));
    if (fm_count(sums) != weight->cols)
        return nb_fail(NB_FORMAT, "%s: %s: of %lld columns, the model's has %lld", a->path, sums->name,
                       (long long)fm_count(sums), (long long)weight->cols);
    return NB_OK;
}

static status read_sums(double *dst, const fm_arrays *a, const fm_array *sums)
{
    for (int64_t c = 0; c < fm_count(sums); c++) {
        float x;
        TRY(fm_to_float(&x, sums, c, 1));
        if (!isfinite(x) || x < 0)
            return nb_fail(NB_FORMAT, "%s: %s: element %lld is %g, no sum of squares", a->path, sums->name, (long long)c, (double)x);
        dst[c] = (double)x;
    }
    return NB_OK;
}

/* The entry of a weight for the site of its input; a count of 0 says that nothing was seen. */
static status read_entry(kd_importance *h, int64_t site, const fm_arrays *a, const fq_site *weight, const char *name)
{
    char sums_name[NAME + sizeof SUMS], counts_name[NAME + sizeof COUNTS];
    float count;
    (void)snprintf(sums_name, sizeof sums_name, "%s" SUMS, name);
    (void)snprintf(counts_name, sizeof counts_name, "%s" COUNTS, name);
    const fm_array *sums = fm_find(a, sums_name), *counts = fm_find(a, counts_name);
    if (!sums && !counts)
        return NB_OK;
    if (!sums || !counts)
        return nb_fail(NB_FORMAT, "%s: %s has no %s", a->path, name, sums ? "counts" : "in_sum2");
    TRY(check_entry(a, sums, counts, weight));
    TRY(fm_to_float(&count, counts, 0, 1));
    if (!(count >= 0 && count <= 1e18F))
        return nb_fail(NB_FORMAT, "%s: %s is %g", a->path, counts->name, (double)count);
    h->rows[site] = llroundf(count);
    if (h->rows[site] == 0)
        return NB_OK;
    h->sum[site] = nb_alloc((size_t)weight->cols, sizeof **h->sum);
    return h->sum[site] ? read_sums(h->sum[site], a, sums) : NB_NOMEM;
}

static status read_all(kd_importance *h, const fm_arrays *a)
{
    const char *type = fm_value_string(fm_meta_get(&a->meta, "general.type"));
    int64_t found = 0;
    if (!type || strcmp(type, "imatrix") != 0)
        return nb_fail(NB_FORMAT, "%s: general.type is \"%.32s\", wanted imatrix", a->path, type ? type : "");
    for (int64_t i = 0; i < h->n; i++) {
        char name[NAME];
        const fq_site *weight = h->sites->s[i];
        const int64_t site = weight->is_weight ? kd_input_of(h, weight) : -1;
        if (site < 0 || h->sum[site] || !md_gguf_name(name, sizeof name, h->config, weight->name))
            continue;
        TRY(read_entry(h, site, a, weight, name));
        found += h->sum[site] != NULL;
    }
    return found ? NB_OK : nb_fail(NB_FORMAT, "%s: has no entry for any weight of this model", a->path);
}

status kd_importance_read(kd_importance *h, const char *path)
{
    fm_file_kind kind;
    fm_arrays a;
    TRY(fm_file_kind_of(&kind, path));
    if (kind != FM_FILE_GGUF)
        return nb_fail(NB_UNSUPPORTED, "%s: no GGUF file (llama-imatrix --output-format gguf makes one)", path);
    TRY(fm_gguf_open(&a, path));
    status s = read_all(h, &a);
    fm_arrays_free(&a);
    return s;
}

/* ---- writing ------------------------------------------------------------------------------ */

typedef struct {
    fm_array *array; /* [n]: sums and counts by turns, sorted */
    int64_t n;
    nb_arena memory;
} entries;

static status add_entry(entries *e, const kd_importance *h, int64_t site, const char *name)
{
    const int64_t cols = h->sites->s[site]->cols;
    const size_t bytes = strlen(name) + sizeof SUMS;
    if (e->n && !strncmp(e->array[e->n - 2].name, name, strlen(name))) /* of the same array */
        return NB_OK;
    char *sums_name = nb_arena_alloc(&e->memory, bytes), *counts_name = nb_arena_alloc(&e->memory, bytes);
    float *x = nb_arena_alloc(&e->memory, (size_t)(cols + 1) * sizeof *x);
    if (!sums_name || !counts_name || !x)
        return NB_NOMEM;
    (void)snprintf(sums_name, bytes, "%s" SUMS, name);
    (void)snprintf(counts_name, bytes, "%s" COUNTS, name);
    for (int64_t c = 0; c < cols; c++)
        x[c] = (float)h->sum[site][c];
    x[cols] = (float)h->rows[site];
    fm_array *sums = &e->array[e->n++], *counts = &e->array[e->n++];
    *sums = (fm_array){.name = sums_name, .dtype = FM_F32, .n_dim = 1, .dim = {cols}, .data = x};
    *counts = (fm_array){.name = counts_name, .dtype = FM_F32, .n_dim = 1, .dim = {1}, .data = x + cols};
    TRY(fm_array_measure(sums));
    return fm_array_measure(counts);
}

/* By name of the weight: "a.counts" goes behind "a.in_sum2". */
static int compare_entries(const void *a, const void *b)
{
    const char *x = ((const fm_array *)a)->name, *y = ((const fm_array *)b)->name;
    const size_t n = (size_t)(strrchr(x, '.') - x), k = (size_t)(strrchr(y, '.') - y);
    const int order = memcmp(x, y, n < k ? n : k);
    return order ? order : n != k ? (n < k ? -1 : 1) : strcmp(y + k, x + n);
}

static status list_entries(entries *e, const kd_importance *h)
{
    e->array = nb_alloc((size_t)h->n, 2 * sizeof *e->array);
    if (!e->array)
        return NB_NOMEM;
    for (int64_t i = 0; i < h->n; i++) {
        char name[NAME];
        const fq_site *weight = h->sites->s[i];
        const int64_t site = weight->is_weight ? kd_input_of(h, weight) : -1;
        if (site >= 0 && h->sum[site] && md_gguf_name(name, sizeof name, h->config, weight->name))
            TRY(add_entry(e, h, site, name));
    }
    qsort(e->array, (size_t)e->n, sizeof *e->array, compare_entries);
    return NB_OK;
}

status kd_importance_write(const kd_importance *h, const char *path, const char *dataset, int64_t chunk)
{
    entries e = {0};
    fm_meta meta = {0};
    const fm_text datasets = {dataset, strlen(dataset)};
    int64_t most = 0;
    for (int64_t i = 0; i < h->n; i++)
        most = h->rows[i] > most ? h->rows[i] : most;
    status s = list_entries(&e, h);
    fm_meta_put_string(&meta, "general.type", "imatrix");
    fm_meta_put_strings(&meta, "imatrix.datasets", &datasets, 1);
    fm_meta_put_u32(&meta, "imatrix.chunk_count", (uint32_t)(most / chunk));
    fm_meta_put_u32(&meta, "imatrix.chunk_size", (uint32_t)chunk);
    if (s == NB_OK)
        s = fm_gguf_write(path, e.array, e.n, &meta, (fm_source){0});
    fm_meta_free(&meta);
    nb_arena_free(&e.memory);
    free(e.array);
    return s;
}

/* safetensors_folder.c - opens a file, or a folder as Hugging Face lays it out: model.safetensors, else the shards of
 *   model.safetensors.index.json: {"metadata": {"total_size": BYTES}, "weight_map": {"NAME": "SHARD", ...}}
 * Every array must lie in the shard that the index names. A shard is a plain file name: one with '/' or '..' in it, or
 * one that begins with '.', is refused.
 */
#include "io/safetensors.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_INDEX = 100000000 }; /* bytes; an index of 100,000 arrays has 10 MB */

static status check_shard_name(const char *shard)
{
    if (!shard)
        return nb_fail(NB_FORMAT, "weight_map: a shard's name is not a text");
    if (!*shard || *shard == '.' || strchr(shard, '/') || strchr(shard, '\\') || strstr(shard, ".."))
        return nb_fail(NB_FORMAT, "weight_map: \"%s\" is not a plain file name", shard);
    return NB_OK;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* shard[0..n) <- the different names of shards, sorted; the array has room for one per item of the map. */
static status list_shards(const char **shard, int64_t *n, const nb_json *map)
{
    int64_t all = 0;
    *n = 0;
    for (const nb_json *item = nb_json_first(map); item; item = nb_json_next(item)) {
        shard[all] = nb_json_string(item);
        TRY(check_shard_name(shard[all++]));
    }
    qsort(shard, (size_t)all, sizeof *shard, compare_texts);
    for (int64_t i = 0; i < all; i++)
        if (*n == 0 || strcmp(shard[*n - 1], shard[i]) != 0)
            shard[(*n)++] = shard[i];
    return NB_OK;
}

static status open_shard(fm_arrays *a, const char *folder, const char *shard)
{
    char *path = nb_path_join(folder, shard);
    if (!path)
        return NB_NOMEM;
    status s = fm_safetensors_add(a, path);
    free(path);
    return s;
}

/* The file of shard number i lies in a->file[i]. */
static status check_map(const fm_arrays *a, const char **shard, int64_t n, const nb_json *map)
{
    if (nb_json_count(map) != a->n)
        return nb_fail(NB_FORMAT, "weight_map has %lld names, the shards hold %lld arrays",
                       (long long)nb_json_count(map), (long long)a->n);
    for (const nb_json *item = nb_json_first(map); item; item = nb_json_next(item)) {
        const char *name = nb_json_string(item);
        const char **found = bsearch(&name, shard, (size_t)n, sizeof *shard, compare_texts);
        const nb_mapped *file = &a->file[found - shard];
        const fm_array *x = fm_find(a, nb_json_key(item));
        if (!x || (const uint8_t *)x->data < file->data || (const uint8_t *)x->data > file->data + file->bytes)
            return nb_fail(NB_FORMAT, "weight_map: %s is not in %s", nb_json_key(item), name);
    }
    return NB_OK;
}

static status open_listed(fm_arrays *a, const char *folder, const nb_json *map)
{
    int64_t n;
    const char **shard = nb_alloc((size_t)nb_json_count(map), sizeof *shard);
    if (!shard)
        return NB_NOMEM;
    status s = list_shards(shard, &n, map);
    for (int64_t i = 0; i < n && s == NB_OK; i++)
        s = open_shard(a, folder, shard[i]);
    if (s == NB_OK)
        s = fm_arrays_index(a);
    if (s == NB_OK)
        s = check_map(a, shard, n, map);
    free(shard);
    return s;
}

static status open_index(fm_arrays *a, const char *folder, const char *index)
{
    nb_mapped file;
    TRY(nb_map(&file, index));
    nb_json *j = file.bytes <= MAX_INDEX ? nb_json_parse((const char *)file.data, file.bytes) : NULL;
    status s;
    if (!j)
        s = file.bytes > MAX_INDEX ? nb_fail(NB_FORMAT, "its %zu bytes are too many", file.bytes) : NB_FORMAT;
    else if (nb_json_count(nb_json_get(j, "weight_map")) <= 0)
        s = nb_fail(NB_FORMAT, "no weight_map in it");
    else
        s = open_listed(a, folder, nb_json_get(j, "weight_map"));
    nb_json_free(j);
    nb_unmap(&file);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", index);
}

static status open_folder(fm_arrays *a, const char *folder)
{
    char *single = nb_path_join(folder, "model.safetensors"),
         *index = nb_path_join(folder, "model.safetensors.index.json");
    status s = single && index ? NB_OK : NB_NOMEM;
    if (s == NB_OK && nb_path_exists(single)) {
        s = fm_safetensors_add(a, single);
        s = s == NB_OK ? fm_arrays_index(a) : s;
    } else if (s == NB_OK && nb_path_exists(index)) {
        s = open_index(a, folder, index);
    } else if (s == NB_OK) {
        s = nb_fail(NB_IO, "%s: neither model.safetensors nor model.safetensors.index.json is in it", folder);
    }
    free(single);
    free(index);
    return s;
}

status fm_safetensors_open(fm_arrays *a, const char *path)
{
    *a = (fm_arrays){.path = nb_string(path)};
    status s = a->path ? NB_OK : NB_NOMEM;
    if (s == NB_OK && nb_path_is_folder(path)) {
        s = open_folder(a, path);
    } else if (s == NB_OK) {
        s = fm_safetensors_add(a, path);
        s = s == NB_OK ? fm_arrays_index(a) : s;
    }
    if (s != NB_OK)
        fm_arrays_free(a);
    return s;
}

/* file_kind.c - what a file is, by its first bytes; llama2.c's legacy layout has no magic and is known by its length.
 */
#include "io/formats.h"
#include <string.h>

static fm_file_kind kind_of_bytes(const uint8_t *p, size_t bytes)
{
    uint64_t header = 0;
    if (bytes >= 4 && !memcmp(p, "GGUF", 4))
        return FM_FILE_GGUF;
    if (bytes >= sizeof FM_H5_MAGIC - 1 && !memcmp(p, FM_H5_MAGIC, sizeof FM_H5_MAGIC - 1))
        return FM_FILE_HDF5;
    if (fm_llama2c_recognize(p, bytes))
        return FM_FILE_LLAMA2C;
    if (bytes >= sizeof header)
        memcpy(&header, p, sizeof header);
    if (bytes > sizeof header && header <= bytes - sizeof header && p[sizeof header] == '{')
        return FM_FILE_SAFETENSORS;
    return FM_FILE_UNKNOWN;
}

static bool holds(const char *folder, const char *name)
{
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    return n > 0 && (size_t)n < sizeof path && nb_path_exists(path);
}

status fm_file_kind_of(fm_file_kind *kind, const char *path)
{
    nb_mapped file;
    *kind = FM_FILE_UNKNOWN;
    if (nb_path_is_folder(path)) {
        if (holds(path, "model.safetensors") || holds(path, "model.safetensors.index.json"))
            *kind = FM_FILE_SAFETENSORS;
        return NB_OK;
    }
    TRY(nb_map(&file, path));
    *kind = kind_of_bytes(file.data, file.bytes);
    nb_unmap(&file);
    return NB_OK;
}

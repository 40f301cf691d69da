/* idx.c - pictures with labels in IDX files, plain or .gz.
 *   big-endian: u16 0, u8 type (8: bytes), u8 number of dimensions, u32 each dimension, then the bytes   (LeCun, Cortes & Burges, MNIST)
 * A set is a folder with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, each with or without .gz.
 */
#include "io/io.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define FASHION "/usr/share/datasets/fashion-mnist" /* of Debian's package dataset-fashion-mnist */

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static status read_exactly(gzFile f, void *to, size_t bytes, const char *path)
{
    for (size_t got = 0; got < bytes;) {
        const unsigned want = bytes - got < 1 << 20 ? (unsigned)(bytes - got) : 1 << 20;
        const int n = gzread(f, (uint8_t *)to + got, want);
        if (n <= 0)
            return nb_fail(NB_FORMAT, "%s: ends after %zu of %zu bytes, or is damaged", path, got, bytes);
        got += (size_t)n;
    }
    return NB_OK;
}

static status read_array(gzFile f, const char *path, int n_dim, int64_t dim[3], uint8_t **data)
{
    enum { MOST = 1 << 30 };
    uint8_t head[16];
    size_t bytes = 1;
    TRY(read_exactly(f, head, 4 + 4 * (size_t)n_dim, path));
    if (head[0] || head[1] || head[2] != 8 || head[3] != n_dim)
        return nb_fail(NB_FORMAT, "%s: is no IDX file of bytes in %d dimensions", path, n_dim);
    for (int i = 0; i < n_dim; i++) {
        dim[i] = big_endian(head + 4 + 4 * i);
        if (dim[i] < 1 || (size_t)dim[i] > MOST / bytes)
            return nb_fail(NB_FORMAT, "%s: dimension %d is %lld", path, i, (long long)dim[i]);
        bytes *= (size_t)dim[i];
    }
    *data = NULL;
    for (size_t have = 0, room = 1 << 20; have < bytes; room *= 2) { /* no more memory than the file has bytes for */
        const size_t next = room < bytes ? room : bytes;
        uint8_t *p = nb_resize(*data, next, 1);
        if (!p)
            return NB_NOMEM;
        *data = p;
        TRY(read_exactly(f, p + have, next - have, path));
        have = next;
    }
    uint8_t more;
    return gzread(f, &more, 1) <= 0 ? NB_OK : nb_fail(NB_FORMAT, "%s: goes on after its last element", path);
}

static status open_array(const char *folder, const char *name, int n_dim, int64_t dim[3], uint8_t **data)
{
    char path[4096];
    for (int gz = 1; gz >= 0; gz--) {
        const int n = snprintf(path, sizeof path, "%s/%s%s", folder, name, gz ? ".gz" : "");
        if (n < 0 || (size_t)n >= sizeof path)
            return nb_fail(NB_USAGE, "%.100s...: the path is too long", folder);
        if (gz && !nb_path_exists(path))
            continue;
        gzFile f = gzopen(path, "rb");
        if (!f)
            return nb_fail(NB_IO, "%s: cannot be opened%s", path,
                           strcmp(folder, FASHION) ? "" : " (apt-get install dataset-fashion-mnist)");
        const status s = read_array(f, path, n_dim, dim, data);
        (void)gzclose(f);
        return s;
    }
    return NB_OK;
}

static status read_set(fm_pictures *p, const char *folder, bool train)
{
    int64_t pictures[3], labels[3];
    TRY(open_array(folder, train ? "train-images-idx3-ubyte" : "t10k-images-idx3-ubyte", 3, pictures, &p->pixel));
    TRY(open_array(folder, train ? "train-labels-idx1-ubyte" : "t10k-labels-idx1-ubyte", 1, labels, &p->label));
    if (pictures[0] != labels[0])
        return nb_fail(NB_FORMAT, "%s: %lld pictures, %lld labels", folder, (long long)pictures[0], (long long)labels[0]);
    p->n = pictures[0];
    p->height = pictures[1];
    p->width = pictures[2];
    for (int64_t i = 0; i < p->n; i++)
        p->classes = p->label[i] >= p->classes ? p->label[i] + 1 : p->classes;
    return NB_OK;
}

status fm_pictures_open(fm_pictures *p, const char *source, bool train)
{
    const char *colon = strchr(source, ':'), *folder = colon ? colon + 1 : source;
    const size_t kind = colon ? (size_t)(colon - source) : 0;
    *p = (fm_pictures){0};
    if (!strcmp(source, "fashion"))
        folder = FASHION;
    else if (colon && !(kind == 5 && !memcmp(source, "mnist", 5)) && !(kind == 7 && !memcmp(source, "fashion", 7)))
        return nb_fail(NB_USAGE, "%s: wanted mnist:FOLDER or fashion[:FOLDER], of IDX files", source);
    const status s = read_set(p, folder, train);
    p->mirrors = !strncmp(source, "fashion", 7);
    if (s != NB_OK)
        fm_pictures_free(p);
    return s;
}

void fm_pictures_free(fm_pictures *p)
{
    free(p->pixel);
    free(p->label);
    *p = (fm_pictures){0};
}

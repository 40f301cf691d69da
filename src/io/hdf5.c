/* hdf5.c - the one door to libhdf5: a driver that reads from a mapped file and writes to a descriptor, datasets, and
 * attributes. Only the plain part of HDF5 passes it: hard links, groups, datasets of numbers that are stored in this
 * file, attributes of numbers and fixed-length texts. Source: HDF5 1.10 reference manual, H5FDpublic.h.
 */
#include "io/hdf5_door.h"
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

_Static_assert(sizeof(hid_t) == sizeof(int64_t), "identifiers travel as int64_t");

/* ---- messages ---- */

static herr_t keep_first(unsigned n, const H5E_error2_t *e, void *text)
{
    if (n == 0)
        (void)snprintf(text, 128, "%s", e->desc ? e->desc : "");
    return 0;
}

/* nb_fail with the innermost message of HDF5 behind it. */
static status h5_fail(status s, const char *what, const char *name)
{
    char why[128] = "no reason given";
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, why);
    return nb_fail(s, "HDF5: cannot %s %s: %s", what, *name ? name : "the file", why);
}

/* Closes whatever id is of, if it is of anything. */
static void drop(hid_t id)
{
    if (id >= 0)
        (void)H5Idec_ref(id);
}

/* ---- driver ---- */

typedef struct {
    H5FD_t base; /* first: HDF5 sees only this */
    fm_medium *m;
    haddr_t eoa;
    bool writing;
} driver_file;

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t fapl, haddr_t maxaddr)
{
    (void)name, (void)maxaddr;
    fm_medium *const *m = H5Pget_driver_info(fapl);
    driver_file *f = m ? calloc(1, sizeof *f) : NULL;
    if (!f)
        return NULL;
    f->m = *m;
    f->writing = (flags & H5F_ACC_RDWR) != 0;
    return &f->base;
}

static herr_t driver_close(H5FD_t *file)
{
    free(file);
    return 0;
}

static herr_t driver_query(const H5FD_t *file, unsigned long *flags)
{
    (void)file;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t driver_get_eoa(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    return ((const driver_file *)file)->eoa;
}

static herr_t driver_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t eoa)
{
    (void)type;
    ((driver_file *)file)->eoa = eoa;
    return 0;
}

static haddr_t driver_get_eof(const H5FD_t *file, H5FD_mem_t type)
{
    (void)type;
    const driver_file *f = (const driver_file *)file;
    return f->writing ? (haddr_t)f->m->end : (haddr_t)f->m->file.bytes;
}

static herr_t driver_read(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t at, size_t bytes, void *dst)
{
    (void)type, (void)dxpl;
    const driver_file *f = (driver_file *)file;
    return fm_medium_read(f->m, dst, at, bytes, f->writing) ? 0 : -1;
}

static herr_t driver_write(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t at, size_t bytes, const void *src)
{
    (void)type, (void)dxpl;
    const driver_file *f = (driver_file *)file;
    if (f->writing)
        fm_medium_write(f->m, src, at, bytes);
    return f->writing ? 0 : -1;
}

static herr_t driver_truncate(H5FD_t *file, hid_t dxpl, hbool_t closing)
{
    (void)dxpl, (void)closing;
    const driver_file *f = (driver_file *)file;
    if (f->writing)
        fm_medium_cut(f->m, f->eoa);
    return 0;
}

static const H5FD_class_t driver = {
#ifdef H5FD_CLASS_VERSION
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)700, /* of those left to others */
#endif
    .name = "nibble",
    .maxaddr = INT64_MAX,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(fm_medium *),
    .open = driver_open,
    .close = driver_close,
    .query = driver_query,
    .get_eoa = driver_get_eoa,
    .set_eoa = driver_set_eoa,
    .get_eof = driver_get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

/* Opens (user_block 0) or creates the file through the driver; < 0 on failure. */
static hid_t open_through_driver(fm_medium *m, const char *path, size_t user_block)
{
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t id = -1, d = H5FDregister(&driver), fapl = H5Pcreate(H5P_FILE_ACCESS), fcpl = H5Pcreate(H5P_FILE_CREATE);
    bool ready = d >= 0 && fapl >= 0 && fcpl >= 0 && H5Pset_driver(fapl, d, &m) >= 0;
    if (ready && user_block == 0)
        id = H5Fopen(path, H5F_ACC_RDONLY, fapl);
    else if (ready && H5Pset_userblock(fcpl, user_block) >= 0)
        id = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    drop(fapl), drop(fcpl), drop(d);
    return id;
}

status fm_door_open(int64_t *id, fm_medium *m, const char *path, size_t user_block)
{
    *id = open_through_driver(m, path, user_block);
    return *id < 0 ? h5_fail(user_block ? NB_IO : NB_FORMAT, "open", "") : NB_OK;
}

/* HDF5 1.10 gives up its own hold on the driver before it calls the driver's close: without one of ours that would be read
 * from freed memory. */
static hid_t hold_driver(hid_t file)
{
    hid_t fapl = H5Fget_access_plist(file), d = fapl >= 0 ? H5Pget_driver(fapl) : -1;
    if (d >= 0 && H5Iinc_ref(d) < 0)
        d = -1;
    drop(fapl);
    return d;
}

status fm_door_close(int64_t id)
{
    hid_t d = hold_driver(id);
    status s = H5Fclose(id) < 0 ? h5_fail(NB_IO, "close", "") : NB_OK;
    drop(d);
    return s;
}

/* ---- types ---- */

/* IEEE binary16 and bfloat16, which HDF5 1.10 has no name for. The caller closes it. */
static hid_t small_float(size_t exponent_bits, size_t mantissa_bits, size_t bias)
{
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    if (t >= 0 && (H5Tset_fields(t, 15, mantissa_bits, exponent_bits, 0, mantissa_bits) < 0 || H5Tset_size(t, 2) < 0 ||
                   H5Tset_ebias(t, bias) < 0)) {
        (void)H5Tclose(t);
        return -1;
    }
    return t;
}

/* A copy of the type of FM numbers in files, < 0 when there is none; the caller closes it. */
static hid_t type_new(fm_dtype t)
{
    const struct {
        fm_dtype t;
        hid_t type;
    } types[] = {{FM_I8, H5T_STD_I8LE},   {FM_U8, H5T_STD_U8LE},    {FM_BOOL, H5T_STD_U8LE}, {FM_I16, H5T_STD_I16LE},
                 {FM_U16, H5T_STD_U16LE}, {FM_I32, H5T_STD_I32LE},  {FM_U32, H5T_STD_U32LE}, {FM_I64, H5T_STD_I64LE},
                 {FM_U64, H5T_STD_U64LE}, {FM_F32, H5T_IEEE_F32LE}, {FM_F64, H5T_IEEE_F64LE}};
    if (t == FM_F16)
        return small_float(5, 10, 15);
    if (t == FM_BF16)
        return small_float(8, 7, 127);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].t == t)
            return H5Tcopy(types[i].type);
    return -1;
}

/* Which of our types an HDF5 type is. */
static bool dtype_of(fm_dtype *t, hid_t type)
{
    static const fm_dtype all[] = {FM_I8,  FM_U8,  FM_I16, FM_U16,  FM_I32, FM_U32,
                                   FM_I64, FM_U64, FM_F16, FM_BF16, FM_F32, FM_F64};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        hid_t ours = type_new(all[i]);
        bool same = ours >= 0 && H5Tequal(ours, type) > 0;
        if (ours >= 0)
            (void)H5Tclose(ours);
        if (same) {
            *t = all[i];
            return true;
        }
    }
    return false;
}

/* ---- listing ---- */

typedef struct {
    char name[1024]; /* of the object being visited */
    int depth;
    int64_t visits, max_visits;
    status s;
    status (*fn)(void *ctx, const fm_stored *d);
    void *ctx;
} walk;

static uint64_t chunk_bytes(hid_t plist, const fm_array *x)
{
    hsize_t chunk[H5S_MAX_RANK];
    int64_t bytes = (int64_t)fm_dtype_bytes(x->dtype);
    int n = H5Pget_chunk(plist, H5S_MAX_RANK, chunk);
    if (n < 1 || n != x->n_dim)
        return UINT64_MAX;
    for (int i = 0; i < n; i++)
        if (chunk[i] > INT64_MAX || !fm_multiply(&bytes, bytes, (int64_t)chunk[i]))
            return UINT64_MAX;
    return (uint64_t)bytes;
}

static status describe(fm_stored *d, hid_t set, hid_t type, hid_t space, hid_t plist)
{
    hsize_t dim[H5S_MAX_RANK];
    fm_array *x = &d->array;
    if (type < 0 || space < 0 || plist < 0)
        return h5_fail(NB_FORMAT, "look at", x->name);
    if (!dtype_of(&x->dtype, type))
        return nb_fail(NB_UNSUPPORTED, "%s: not of a type that is taken", x->name);
    x->n_dim = H5Sget_simple_extent_ndims(space);
    H5S_class_t kind = H5Sget_simple_extent_type(space);
    if ((kind != H5S_SCALAR && kind != H5S_SIMPLE) || x->n_dim < 0 || x->n_dim > FM_MAX_DIM ||
        H5Sget_simple_extent_dims(space, dim, NULL) < 0)
        return nb_fail(NB_UNSUPPORTED, "%s: %d dimensions are not taken", x->name, x->n_dim);
    for (int i = 0; i < x->n_dim; i++)
        x->dim[i] = dim[i] > INT64_MAX ? -1 : (int64_t)dim[i];
    H5D_layout_t layout = H5Pget_layout(plist);
    d->is_plain = (layout == H5D_COMPACT || layout == H5D_CONTIGUOUS || layout == H5D_CHUNKED) &&
                  H5Pget_nfilters(plist) == 0 && H5Pget_external_count(plist) == 0;
    d->held = d->is_plain ? H5Dget_storage_size(set) : 0;
    d->chunk = layout == H5D_CHUNKED ? chunk_bytes(plist, x) : 0;
    d->offset = layout == H5D_CONTIGUOUS ? H5Dget_offset(set) : HADDR_UNDEF;
    return NB_OK;
}

static status visit_dataset(walk *w, hid_t set)
{
    fm_stored d = {.array.name = w->name};
    hid_t type = H5Dget_type(set), space = H5Dget_space(set), plist = H5Dget_create_plist(set);
    status s = describe(&d, set, type, space, plist);
    drop(type), drop(space), drop(plist);
    return s == NB_OK ? w->fn(w->ctx, &d) : s;
}

static herr_t visit_link(hid_t group, const char *link, const H5L_info_t *info, void *ctx)
{
    enum { MAX_DEPTH = 16 };
    walk *w = ctx;
    size_t used = strlen(w->name);
    int n = snprintf(w->name + used, sizeof w->name - used, "%s%s", used ? "/" : "", link);
    hid_t object = -1;
    if (n < 0 || (size_t)n >= sizeof w->name - used || w->depth >= MAX_DEPTH || ++w->visits > w->max_visits)
        w->s = nb_fail(NB_FORMAT, "%s: its name is too long or too deep, or there are too many", w->name);
    else if (info->type != H5L_TYPE_HARD)
        w->s = nb_fail(NB_UNSUPPORTED, "%s: links to elsewhere are not taken", w->name);
    else if ((object = H5Oopen(group, link, H5P_DEFAULT)) < 0)
        w->s = h5_fail(NB_FORMAT, "open", w->name);
    else if (H5Iget_type(object) == H5I_DATASET)
        w->s = visit_dataset(w, object);
    else if (H5Iget_type(object) != H5I_GROUP)
        w->s = nb_fail(NB_UNSUPPORTED, "%s: neither a group nor a dataset", w->name);
    else {
        w->depth++;
        if (H5Literate(object, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, visit_link, w) < 0 && w->s == NB_OK)
            w->s = h5_fail(NB_FORMAT, "list", w->name);
        w->depth--;
    }
    drop(object);
    w->name[used] = 0;
    return w->s == NB_OK ? 0 : -1;
}

status fm_door_list(int64_t id, int64_t max_objects, status (*fn)(void *ctx, const fm_stored *d), void *ctx)
{
    walk w = {.max_visits = max_objects, .fn = fn, .ctx = ctx};
    if (H5Literate(id, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, visit_link, &w) < 0 && w.s == NB_OK)
        w.s = h5_fail(NB_FORMAT, "list", "");
    return w.s;
}

/* ---- datasets ---- */

static hid_t space_new(const int64_t *dim, int n_dim, bool grows)
{
    hsize_t size[FM_MAX_DIM], most[FM_MAX_DIM];
    for (int i = 0; i < n_dim; i++)
        size[i] = most[i] = (hsize_t)dim[i];
    if (grows)
        most[0] = H5S_UNLIMITED;
    return n_dim ? H5Screate_simple(n_dim, size, most) : H5Screate(H5S_SCALAR);
}

static bool set_up_creation(hid_t dcpl, hid_t lcpl, const fm_array *a, int64_t chunk_rows)
{
    hsize_t chunk[FM_MAX_DIM];
    for (int i = 0; i < a->n_dim; i++)
        chunk[i] = i ? (hsize_t)a->dim[i] : (hsize_t)chunk_rows;
    return dcpl >= 0 && lcpl >= 0 && H5Pset_obj_track_times(dcpl, false) >= 0 &&
           H5Pset_create_intermediate_group(lcpl, 1) >= 0 &&
           (chunk_rows == 0 || H5Pset_chunk(dcpl, a->n_dim, chunk) >= 0);
}

status fm_door_write(int64_t id, const fm_array *a, int64_t chunk_rows)
{
    hid_t type = type_new(a->dtype), space = space_new(a->dim, a->n_dim, chunk_rows > 0), set = -1;
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), lcpl = H5Pcreate(H5P_LINK_CREATE);
    if (type >= 0 && space >= 0 && set_up_creation(dcpl, lcpl, a, chunk_rows))
        set = H5Dcreate2(id, a->name, type, space, lcpl, dcpl, H5P_DEFAULT);
    bool done = set >= 0 && (!a->data || !a->bytes || H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, a->data) >= 0);
    status s = done ? NB_OK : h5_fail(type < 0 ? NB_USAGE : NB_IO, "write", a->name);
    drop(set), drop(dcpl), drop(lcpl), drop(space), drop(type);
    return s;
}

/* The rows [from, from + rows) of a dataset, to read or (after growing it by them) to write. */
static bool transfer_rows(hid_t set, int64_t from, int64_t rows, void *dst, const void *src)
{
    hsize_t size[H5S_MAX_RANK], start[H5S_MAX_RANK] = {0};
    hid_t type = H5Dget_type(set), space = H5Dget_space(set), memory = -1;
    int n = space < 0 ? -1 : H5Sget_simple_extent_dims(space, size, NULL);
    bool done = type >= 0 && n >= 0;
    if (done && n > 0) {
        start[0] = src ? size[0] : (hsize_t)from;
        if (src) {
            size[0] += (hsize_t)rows;
            done = H5Dset_extent(set, size) >= 0 && H5Sset_extent_simple(space, n, size, NULL) >= 0;
        }
        size[0] = (hsize_t)rows;
        memory = H5Screate_simple(n, size, NULL);
        done = done && memory >= 0 && H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, size, NULL) >= 0;
    }
    hid_t in_file = n > 0 ? space : H5S_ALL, in_memory = n > 0 ? memory : H5S_ALL;
    if (done)
        done = src ? H5Dwrite(set, type, in_memory, in_file, H5P_DEFAULT, src) >= 0
                   : H5Dread(set, type, in_memory, in_file, H5P_DEFAULT, dst) >= 0;
    drop(memory), drop(space), drop(type);
    return done;
}

static status open_and_transfer(hid_t id, const char *name, int64_t from, int64_t rows, void *dst, const void *src)
{
    hid_t set = H5Dopen2(id, name, H5P_DEFAULT);
    bool done = set >= 0 && transfer_rows(set, from, rows, dst, src);
    status s = done ? NB_OK : h5_fail(src ? NB_IO : NB_FORMAT, src ? "append to" : "read", name);
    drop(set);
    return s;
}

status fm_door_append(int64_t id, const char *name, const void *data, int64_t rows)
{
    return open_and_transfer(id, name, 0, rows, NULL, data);
}

status fm_door_read(int64_t id, const fm_array *a, void *dst, int64_t from, int64_t rows)
{
    return open_and_transfer(id, a->name, from, rows, dst, NULL);
}

/* ---- attributes ---- */

static hid_t text_type(size_t bytes)
{
    hid_t t = H5Tcopy(H5T_C_S1);
    if (t < 0 || H5Tset_size(t, bytes) < 0 || H5Tset_cset(t, H5T_CSET_UTF8) < 0) {
        drop(t);
        return -1;
    }
    return t;
}

status fm_door_put(int64_t id, const char *object, const char *key, fm_dtype t, const void *data, int64_t n,
                   bool single)
{
    bool is_text = t == FM_STRING;
    hid_t type = is_text ? text_type((size_t)n + 1) : type_new(t), attribute = -1;
    hid_t space = space_new(&n, is_text || single ? 0 : 1, false), on = H5Oopen(id, object, H5P_DEFAULT);
    if (on >= 0 && type >= 0 && space >= 0)
        attribute = H5Acreate2(on, key, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool done = attribute >= 0 && H5Awrite(attribute, type, data) >= 0;
    status s = done ? NB_OK : h5_fail(NB_USAGE, "write the attribute", key);
    drop(attribute), drop(on), drop(space), drop(type);
    return s;
}

/* Opens an attribute of numbers or of one text of fixed length: its type, its elements (or bytes). -1: there is none.
 */
static hid_t open_attribute(hid_t *type, int64_t *n, hid_t id, const char *object, const char *key)
{
    hid_t a = H5Aexists_by_name(id, object, key, H5P_DEFAULT) > 0
                  ? H5Aopen_by_name(id, object, key, H5P_DEFAULT, H5P_DEFAULT)
                  : -1;
    hid_t space = a < 0 ? -1 : H5Aget_space(a);
    *type = a < 0 ? -1 : H5Aget_type(a);
    *n = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    if (*type >= 0 && H5Tget_class(*type) == H5T_STRING)
        *n = *n == 1 && H5Tis_variable_str(*type) == 0 ? (int64_t)H5Tget_size(*type) : -1;
    drop(space);
    return a;
}

int64_t fm_door_attribute_count(int64_t id, const char *object, const char *key)
{
    int64_t n;
    hid_t type, a = open_attribute(&type, &n, id, object, key);
    drop(type), drop(a);
    return a < 0 ? -1 : n;
}

status fm_door_get(int64_t id, const char *object, const char *key, fm_dtype t, void *data, int64_t n)
{
    int64_t found;
    hid_t type, a = open_attribute(&type, &found, id, object, key);
    H5T_class_t kind = type < 0 ? H5T_NO_CLASS : H5Tget_class(type);
    bool fits = t == FM_STRING ? kind == H5T_STRING : kind == H5T_INTEGER || (kind == H5T_FLOAT && t == FM_F64);
    hid_t wanted = t == FM_STRING ? text_type((size_t)n + 1) : type_new(t);
    status s = NB_OK;
    if (a < 0)
        s = nb_fail(NB_FORMAT, "has no attribute %s", key);
    else if (!fits || found != n)
        s = nb_fail(NB_FORMAT, "the attribute %s holds %lld elements, wanted %lld of type %s", key, (long long)found,
                    (long long)n, fm_dtype_name(t));
    else if (wanted < 0 || H5Aread(a, wanted, data) < 0)
        s = h5_fail(NB_FORMAT, "read the attribute", key);
    drop(wanted), drop(type), drop(a);
    return s;
}

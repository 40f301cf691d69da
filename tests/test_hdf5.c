/* test_hdf5.c - our HDF5 files: what is written is read; damage of any byte is found; what a full disk or a folder
 * without permission interrupts leaves the old file; what only other programs put into HDF5 files is refused.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"
#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const float floats[24] = {1, -2, 3.5F, 1e-30F};
static const uint16_t small[8] = {0x3C00, 0xC000, 1, 0x7BFF};
static const int64_t shape[] = {2, 3, 4}, six = 6;

static status read_file(const char *path)
{
    fm_h5 f;
    TRY(fm_h5_open(&f, path, "checkpoint"));
    fm_h5_close(&f);
    return NB_OK;
}

static status fill(fm_h5 *f)
{
    TRY(fm_h5_write(f, "param/layers.0.wq.weight", FM_F32, 3, shape, floats));
    TRY(fm_h5_write(f, "param/half", FM_F16, 1, shape + 2, small));
    TRY(fm_h5_write(f, "param/bf16", FM_BF16, 2, shape, small));
    TRY(fm_h5_write(f, "step", FM_I64, 0, NULL, &six));
    TRY(fm_h5_write(f, "empty", FM_I8, 2, (const int64_t[]){0, 3}, NULL));
    TRY(fm_h5_write(f, "flags", FM_BOOL, 1, shape, "\1\0"));
    TRY(fm_h5_stream(f, "ids", FM_U16, 0, NULL, 16));
    TRY(fm_h5_stream(f, "rows", FM_F32, 1, shape + 1, 5));
    TRY(fm_h5_stream(f, "never", FM_I32, 0, NULL, 1 << 20));
    for (uint16_t i = 0; i < 100; i++) {
        const uint16_t ids[] = {(uint16_t)(3 * i), (uint16_t)(3 * i + 1), (uint16_t)(3 * i + 2)};
        TRY(fm_h5_append(f, "ids", ids, 3));
        TRY(fm_h5_append(f, "rows", floats, i % 3));
    }
    TRY(fm_h5_put_string(f, "", "config", "{\"dim\": 64, \"name\": \"\xC3\xA9\"}"));
    TRY(fm_h5_put_string(f, "", "nothing", ""));
    TRY(fm_h5_put_int(f, "param", "step", INT64_MIN));
    TRY(fm_h5_put_number(f, "param", "rate", 0.1));
    TRY(fm_h5_put_ints(f, "ids", "shape", shape, 3));
    return fm_h5_put_numbers(f, "param/half", "range", (const double[]){-1, 1e300}, 2);
}

static const char *write_file(const char *name)
{
    fm_h5 f;
    const char *path = scratch_path(name);
    must(fm_h5_create(&f, path, "checkpoint"));
    must(fill(&f));
    must(fm_h5_commit(&f));
    return path;
}

START_TEST(what_was_written_is_read)
{
    fm_h5 f;
    must(fm_h5_open(&f, write_file("x.h5"), "checkpoint"));
    ck_assert_str_eq(f.kind, "checkpoint");
    ck_assert_int_eq(f.arrays.n, 9);
    for (int64_t i = 1; i < f.arrays.n; i++)
        ck_assert(strcmp(f.arrays.array[i - 1].name, f.arrays.array[i].name) < 0);
    const fm_array *w = fm_h5_find(&f, "param/layers.0.wq.weight");
    ck_assert(w && w->dtype == FM_F32 && w->n_dim == 3 && w->dim[2] == 4 && w->data && !memcmp(w->data, floats, 96));
    float x[24];
    must(fm_h5_read_all(&f, "param/layers.0.wq.weight", FM_F32, x, 3, shape));
    ck_assert_mem_eq(x, floats, sizeof x);
    must(fm_h5_read(&f, "param/layers.0.wq.weight", FM_F32, x, 1, 1));
    ck_assert_mem_eq(x, floats + 12, 48);
    must(fm_h5_read(&f, "param/half", FM_F32, x, 0, 4));
    ck_assert(x[0] == 1 && x[1] == -2 && x[2] == 0x1p-24F && x[3] == 65504);
    must(fm_h5_read(&f, "param/bf16", FM_F32, x, 0, 2));
    ck_assert(x[0] == nb_bf16_to(small[0]) && x[5] == nb_bf16_to(small[5]));
    int64_t n;
    must(fm_h5_read(&f, "step", FM_I64, &n, 0, 1));
    ck_assert_int_eq(n, 6);
    must(fm_h5_read(&f, "empty", FM_F32, x, 0, 0));
    ck_assert_int_eq(fm_h5_find(&f, "flags")->dtype, FM_U8);
    ck_assert_int_eq(fm_h5_find(&f, "never")->dim[0], 0);
    fm_h5_close(&f);
    fm_h5_close(&f);
}
END_TEST

START_TEST(streams_are_read_in_slices)
{
    fm_h5 f;
    uint16_t ids[300];
    int32_t wide[300];
    int64_t wider[300];
    must(fm_h5_open(&f, write_file("x.h5"), NULL));
    ck_assert(fm_h5_find(&f, "ids")->data == NULL && fm_h5_find(&f, "ids")->dim[0] == 300);
    for (int64_t from = 0; from <= 300; from += 7)
        for (int64_t n = 0; n <= 300 - from; n += 31) {
            must(fm_h5_read(&f, "ids", FM_U16, ids, from, n));
            must(fm_h5_read(&f, "ids", FM_I32, wide, from, n));
            must(fm_h5_read(&f, "ids", FM_I64, wider, from, n));
            for (int64_t i = 0; i < n; i++)
                ck_assert(ids[i] == from + i && wide[i] == from + i && wider[i] == from + i);
        }
    float rows[99 * 3];
    must(fm_h5_read_all(&f, "rows", FM_F32, rows, 2, (const int64_t[]){99, 3}));
    ck_assert(rows[0] == 1 && rows[3] == 1 && rows[6] == 1e-30F && rows[9] == 1 && rows[10] == -2);
    fm_h5_close(&f);
}
END_TEST

START_TEST(attributes_are_read_or_named)
{
    fm_h5 f;
    const char *text;
    int64_t n[3];
    double x[2];
    must(fm_h5_open(&f, write_file("x.h5"), NULL));
    must(fm_h5_get_string(&f, "", "config", &text));
    ck_assert_str_eq(text, "{\"dim\": 64, \"name\": \"\xC3\xA9\"}");
    must(fm_h5_get_string(&f, "", "nothing", &text));
    ck_assert_str_eq(text, "");
    must(fm_h5_get_int(&f, "param", "step", n));
    ck_assert(n[0] == INT64_MIN);
    must(fm_h5_get_number(&f, "param", "rate", x));
    ck_assert(x[0] == 0.1);
    must(fm_h5_get_ints(&f, "ids", "shape", n, 3));
    ck_assert_mem_eq(n, shape, sizeof shape);
    must(fm_h5_get_numbers(&f, "param/half", "range", x, 2));
    ck_assert(x[0] == -1 && x[1] == 1e300);
    ck_assert_int_eq(fm_h5_attribute_count(&f, "ids", "shape"), 3);
    ck_assert_int_eq(fm_h5_attribute_count(&f, "ids", "absent"), -1);
    ck_assert_int_eq(fm_h5_attribute_count(&f, "absent", "shape"), -1);
    must_fail(fm_h5_get_int(&f, "param", "absent", n), NB_FORMAT, "x.h5: param: has no attribute absent");
    must_fail(fm_h5_get_int(&f, "absent", "step", n), NB_FORMAT, "has no attribute step");
    must_fail(fm_h5_get_ints(&f, "ids", "shape", n, 2), NB_FORMAT, "holds 3 elements, wanted 2");
    must_fail(fm_h5_get_int(&f, "", "config", n), NB_FORMAT, "config");
    must_fail(fm_h5_get_int(&f, "param", "rate", n), NB_FORMAT, "rate");
    must_fail(fm_h5_get_string(&f, "param", "rate", &text), NB_FORMAT, "rate");
    must_fail(fm_h5_get_string(&f, "param", "absent", &text), NB_FORMAT, "absent");
    fm_h5_close(&f);
}
END_TEST

START_TEST(reads_outside_a_dataset_are_refused)
{
    fm_h5 f;
    int64_t n[8];
    int32_t i[8];
    must(fm_h5_open(&f, write_file("x.h5"), NULL));
    must_fail(fm_h5_read(&f, "ids", FM_U16, n, 300, 1), NB_SHAPE, "ids: asked for 1 rows from 300 of 300");
    must_fail(fm_h5_read(&f, "ids", FM_U16, n, -1, 1), NB_SHAPE, "ids");
    must_fail(fm_h5_read(&f, "ids", FM_U16, n, 1, INT64_MAX), NB_SHAPE, "ids");
    must_fail(fm_h5_read(&f, "ids", FM_U16, n, 0, -1), NB_SHAPE, "ids");
    must_fail(fm_h5_read(&f, "absent", FM_U16, n, 0, 1), NB_FORMAT, "has no dataset absent");
    must_fail(fm_h5_read(&f, "../ids", FM_U16, n, 0, 1), NB_FORMAT, "has no dataset");
    must_fail(fm_h5_read(&f, "ids", FM_I8, n, 0, 1), NB_USAGE, "is of type U16 and not read as I8");
    must_fail(fm_h5_read(&f, "param/half", FM_I64, n, 0, 1), NB_FORMAT, "not an integer");
    must_fail(fm_h5_read_all(&f, "rows", FM_F32, n, 1, shape), NB_FORMAT, "found F32 [99,3], wanted F32 [2]");
    fm_h5_close(&f);
    must(fm_h5_create(&f, scratch_path("big.h5"), "tokens"));
    must(fm_h5_write(&f, "n", FM_I64, 1, shape, (const int64_t[]){1, 1LL << 31}));
    must(fm_h5_commit(&f));
    must(fm_h5_open(&f, scratch_path("big.h5"), "tokens"));
    must(fm_h5_read(&f, "n", FM_I32, i, 0, 1));
    must_fail(fm_h5_read(&f, "n", FM_I32, i, 0, 2), NB_FORMAT, "2147483648 does not fit");
    fm_h5_close(&f);
}
END_TEST

START_TEST(equal_content_gives_equal_bytes)
{
    const char *a = write_file("a.h5"), *b;
    sleep(1); /* a file that holds the time of its writing would differ */
    b = write_file("b.h5");
    same_files(a, b);
}
END_TEST

START_TEST(names_and_shapes_that_make_no_sense_are_refused)
{
    static const char *const names[] = {"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a"};
    for (int i = 0; i < COUNT(names); i++) {
        fm_h5 f;
        must(fm_h5_create(&f, scratch_path("x.h5"), "folded"));
        must_fail(fm_h5_write(&f, names[i], FM_F32, 1, shape, floats), NB_USAGE, "no name for a dataset");
        must_fail(fm_h5_commit(&f), NB_USAGE, "earlier write failed");
    }
    fm_h5 f;
    must(fm_h5_create(&f, scratch_path("x.h5"), "folded"));
    must(fm_h5_write(&f, "a.b/..c", FM_F32, 1, shape, floats));
    must_fail(fm_h5_write(&f, "a.b/..c", FM_F32, 1, shape, floats), NB_IO, "a.b/..c");
    must_fail(fm_h5_write(&f, "q", FM_Q8_0, 1, (const int64_t[]){32}, floats), NB_USAGE, "q");
    must_fail(fm_h5_write(&f, "w", FM_F32, 5, shape, floats), NB_USAGE, "5 dimensions");
    must_fail(fm_h5_write(&f, "w", FM_F32, 1, shape, NULL), NB_USAGE, "no data");
    must_fail(fm_h5_write(&f, "w", FM_F32, 1, (const int64_t[]){-2}, floats), NB_FORMAT, "w");
    must_fail(fm_h5_stream(&f, "s", FM_F32, 4, shape, 1), NB_USAGE, "s");
    must_fail(fm_h5_stream(&f, "s", FM_F32, 0, shape, 0), NB_USAGE, "0 rows");
    must_fail(fm_h5_append(&f, "absent", floats, 1), NB_IO, "absent");
    must_fail(fm_h5_put_int(&f, "absent", "k", 1), NB_USAGE, "k");
    char *big = calloc(1, FM_H5_MAX_STRING + 2);
    ck_assert(big != NULL);
    memset(big, 'x', FM_H5_MAX_STRING + 1);
    must_fail(fm_h5_put_string(&f, "", "bigger", big), NB_USAGE, "make it a dataset");
    free(big);
    fm_h5_close(&f);
    ck_assert(!nb_path_exists(scratch_path("x.h5")));
    must_fail(fm_h5_create(&f, scratch_path("x.h5"), ""), NB_USAGE, "kind");
    must_fail(fm_h5_create(&f, scratch_path("x.h5"), "a kind of more than 23 bytes"), NB_USAGE, "kind");
    must_fail(fm_h5_commit(&f), NB_USAGE, "nothing was created");
}
END_TEST

START_TEST(large_texts_are_kept)
{
    fm_h5 f;
    const char *back;
    char *big = calloc(1, FM_H5_MAX_STRING + 1);
    ck_assert(big != NULL);
    memset(big, 'x', FM_H5_MAX_STRING);
    must(fm_h5_create(&f, scratch_path("x.h5"), "folded"));
    must(fm_h5_put_string(&f, "", "one", big));
    must(fm_h5_put_string(&f, "", "two", big));
    must(fm_h5_commit(&f));
    must(fm_h5_open(&f, scratch_path("x.h5"), "folded"));
    must(fm_h5_get_string(&f, "", "two", &back));
    ck_assert_str_eq(back, big);
    fm_h5_close(&f);
    free(big);
}
END_TEST

/* ---- damage ---- */

START_TEST(damage_of_any_byte_is_found)
{
    size_t bytes;
    uint8_t *data = load(write_file("x.h5"), &bytes);
    for (size_t i = 0; i < bytes; i += i < 600 ? 1 : 1 + nb_random(1, 0, i) % 61) {
        data[i] ^= (uint8_t)(1u << i % 8);
        status s = read_file(scratch_write("damaged.h5", data, bytes));
        ck_assert_msg(s == NB_FORMAT || s == NB_UNSUPPORTED, "byte %zu: %s", i, nb_status_name(s));
        data[i] ^= (uint8_t)(1u << i % 8);
    }
    must(read_file(scratch_write("damaged.h5", data, bytes)));
    uint8_t *longer = realloc(data, bytes + 1);
    ck_assert_ptr_nonnull(longer);
    data = longer;
    data[bytes] = 0;
    must_fail(read_file(scratch_write("longer.h5", data, bytes + 1)), NB_FORMAT, "bytes behind the first block");
    free(data);
}
END_TEST

START_TEST(cut_files_foreign_files_and_missing_memory_are_survived)
{
    const char *path = write_file("x.h5");
    fm_h5 f;
    refuse_every_cut(path, read_file, 400);
    survive_without_memory(path, read_file);
    must_fail(fm_h5_open(&f, path, "folded"), NB_FORMAT, "is a checkpoint file, wanted a folded file");
    must_fail(read_file(scratch_path("absent")), NB_IO, "absent");
    must_fail(read_file(scratch_folder), NB_IO, "folder");
    must_fail(read_file(scratch_write("text", "hello", 5)), NB_FORMAT, "not a file that nibble wrote");
}
END_TEST

/* ---- interrupted writing ---- */

/* Writes 4 MB and more through a limit of `most` bytes to a file. */
static status write_through_limit(const char *path, rlim_t most)
{
    struct rlimit before;
    fm_h5 f;
    (void)signal(SIGXFSZ, SIG_IGN);
    ck_assert(getrlimit(RLIMIT_FSIZE, &before) == 0);
    (void)setrlimit(RLIMIT_FSIZE, &(struct rlimit){most, before.rlim_max}); /* Check's own file obeys it too */
    status s = fm_h5_create(&f, path, "checkpoint");
    if (s == NB_OK) {
        (void)fill(&f); /* whatever it says, the commit must say it again */
        s = fm_h5_commit(&f);
    }
    (void)setrlimit(RLIMIT_FSIZE, &before);
    return s;
}

START_TEST(a_full_disk_keeps_the_old_file)
{
    const char *path = write_file("x.h5"), *same = write_file("same.h5");
    size_t bytes;
    free(load(path, &bytes));
    for (rlim_t most = 0; most < bytes; most += bytes / 40)
        must_fail(write_through_limit(path, most), NB_IO, "x.h5");
    same_files(path, same);
    must(write_through_limit(path, bytes));
    same_files(path, same);
    scratch_remove(path), scratch_remove(same);
    ck_assert_msg(rmdir(scratch_folder) == 0, "temporary files are left");
}
END_TEST

START_TEST(a_folder_without_permission_keeps_the_old_file)
{
    fm_h5 f;
    const char *path = write_file("x.h5");
    must_fail(fm_h5_create(&f, scratch_path("no/such/folder.h5"), "checkpoint"), NB_IO, "no/such/folder.h5");
    must_fail(fm_h5_create(&f, scratch_folder, "checkpoint"), NB_IO, "folder");
    if (geteuid() == 0) {
        printf("skipped: permissions do not bind root\n");
        return;
    }
    ck_assert(chmod(scratch_folder, 0555) == 0);
    status s = fm_h5_create(&f, path, "checkpoint");
    ck_assert(chmod(scratch_folder, 0755) == 0);
    must_fail(s, NB_IO, "x.h5");
    must(read_file(path));
}
END_TEST

START_TEST(what_is_given_up_leaves_nothing)
{
    fm_h5 f;
    must(fm_h5_create(&f, scratch_path("x.h5"), "checkpoint"));
    must(fill(&f));
    fm_h5_close(&f);
    fm_h5_close(&f);
    ck_assert_msg(rmdir(scratch_folder) == 0, "temporary files are left");
}
END_TEST

/* ---- what others put into HDF5 files ---- */

/* Makes a user block that fits what lies behind it; the layout is in io/hdf5_file.c. */
static void seal(const char *path)
{
    size_t bytes;
    uint8_t *data = load(path, &bytes);
    uint64_t rest = bytes - 512;
    uint32_t crc = nb_crc32c(0, data + 512, bytes - 512);
    memset(data, 0, 512);
    memcpy(data, "nibble\r\n\1", 9);
    memcpy(data + 16, "checkpoint", 10);
    memcpy(data + 40, &rest, sizeof rest);
    memcpy(data + 48, &crc, sizeof crc);
    crc = nb_crc32c(0, data, 52);
    memcpy(data + 52, &crc, sizeof crc);
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, bytes, f) == bytes && fclose(f) == 0);
    free(data);
}

static void put_dataset(hid_t file, hid_t type, hid_t plist)
{
    const hsize_t dim = 64;
    hid_t space = H5Screate_simple(1, &dim, NULL), set = H5Dcreate2(file, "d", type, space, 0, plist, 0);
    float data[512] = {0};
    (void)H5Dwrite(set, type, H5S_ALL, H5S_ALL, 0, data);
    (void)H5Dclose(set);
    (void)H5Sclose(space);
}

static void plain(hid_t file)
{
    put_dataset(file, H5T_STD_I32LE, 0);
}
static void soft_link(hid_t file)
{
    (void)H5Lcreate_soft("/elsewhere", file, "d", 0, 0);
}
static void external_link(hid_t file)
{
    (void)H5Lcreate_external("/etc/passwd", "/d", file, "d", 0, 0);
}
static void circle(hid_t file)
{
    (void)H5Lcreate_hard(file, "/", file, "d", 0, 0);
}
static void deflated(hid_t file)
{
    const hsize_t chunk = 16;
    hid_t p = H5Pcreate(H5P_DATASET_CREATE);
    (void)H5Pset_chunk(p, 1, &chunk);
    (void)H5Pset_deflate(p, 6);
    put_dataset(file, H5T_STD_I32LE, p);
    (void)H5Pclose(p);
}
static void stored_outside(hid_t file)
{
    hid_t p = H5Pcreate(H5P_DATASET_CREATE);
    (void)H5Pset_external(p, "/etc/passwd", 0, 256);
    const hsize_t dim = 64;
    hid_t space = H5Screate_simple(1, &dim, NULL), set = H5Dcreate2(file, "d", H5T_STD_I32LE, space, 0, p, 0);
    (void)H5Dclose(set), (void)H5Sclose(space), (void)H5Pclose(p);
}
static void never_written(hid_t file) /* claims 2^40 elements, holds none */
{
    const hsize_t dim = 1ULL << 40;
    hid_t space = H5Screate_simple(1, &dim, NULL), set = H5Dcreate2(file, "d", H5T_STD_I32LE, space, 0, 0, 0);
    (void)H5Dclose(set), (void)H5Sclose(space);
}
static void texts_of_any_length(hid_t file)
{
    hid_t t = H5Tcopy(H5T_C_S1);
    (void)H5Tset_size(t, H5T_VARIABLE);
    const hsize_t dim = 1;
    const char *text = "x";
    hid_t space = H5Screate_simple(1, &dim, NULL), set = H5Dcreate2(file, "d", t, space, 0, 0, 0);
    (void)H5Dwrite(set, t, H5S_ALL, H5S_ALL, 0, &text);
    (void)H5Dclose(set), (void)H5Sclose(space), (void)H5Tclose(t);
}
static void compound(hid_t file)
{
    hid_t t = H5Tcreate(H5T_COMPOUND, 8);
    (void)H5Tinsert(t, "a", 0, H5T_STD_I32LE);
    put_dataset(file, t, 0);
    (void)H5Tclose(t);
}
static void big_endian(hid_t file)
{
    put_dataset(file, H5T_STD_I32BE, 0);
}
static void type_alone(hid_t file)
{
    hid_t t = H5Tcopy(H5T_STD_I32LE);
    (void)H5Tcommit2(file, "d", t, 0, 0, 0);
    (void)H5Tclose(t);
}
static void five_dimensions(hid_t file)
{
    const hsize_t dim[] = {1, 1, 1, 1, 1};
    hid_t space = H5Screate_simple(5, dim, NULL), set = H5Dcreate2(file, "d", H5T_STD_I32LE, space, 0, 0, 0);
    (void)H5Dclose(set), (void)H5Sclose(space);
}

static const struct {
    void (*make)(hid_t file);
    const char *message; /* NULL: accepted */
    status wanted;
} foreign[] = {
    {plain, NULL, NB_OK},
    {soft_link, "d: links to elsewhere", NB_UNSUPPORTED},
    {external_link, "d: links to elsewhere", NB_UNSUPPORTED},
    {circle, "too deep", NB_FORMAT},
    {deflated, "filtered", NB_UNSUPPORTED},
    {stored_outside, "not in this file", NB_UNSUPPORTED},
    {never_written, "the file holds 0", NB_FORMAT},
    {texts_of_any_length, "type", NB_UNSUPPORTED},
    {compound, "type", NB_UNSUPPORTED},
    {big_endian, "type", NB_UNSUPPORTED},
    {type_alone, "neither a group nor a dataset", NB_UNSUPPORTED},
    {five_dimensions, "5 dimensions", NB_UNSUPPORTED},
};

START_TEST(what_we_do_not_write_is_refused)
{
    const char *path = scratch_path("foreign.h5");
    hid_t plist = H5Pcreate(H5P_FILE_CREATE);
    (void)H5Pset_userblock(plist, 512);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, plist, 0);
    ck_assert(file >= 0);
    foreign[_i].make(file);
    ck_assert(H5Fclose(file) >= 0 && H5Pclose(plist) >= 0);
    must_fail(read_file(path), NB_FORMAT, "not a file that nibble wrote");
    seal(path);
    if (foreign[_i].message)
        must_fail(read_file(path), foreign[_i].wanted, foreign[_i].message);
    else
        must(read_file(path));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hdf5");
    TCase *c = tcase_create("hdf5");
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_set_timeout(c, 60); /* hundreds of small files under sanitizers */
    tcase_add_test(c, what_was_written_is_read);
    tcase_add_test(c, streams_are_read_in_slices);
    tcase_add_test(c, attributes_are_read_or_named);
    tcase_add_test(c, reads_outside_a_dataset_are_refused);
    tcase_add_test(c, equal_content_gives_equal_bytes);
    tcase_add_test(c, names_and_shapes_that_make_no_sense_are_refused);
    tcase_add_test(c, large_texts_are_kept);
    tcase_add_test(c, damage_of_any_byte_is_found);
    tcase_add_test(c, cut_files_foreign_files_and_missing_memory_are_survived);
    tcase_add_test(c, a_full_disk_keeps_the_old_file);
    tcase_add_test(c, a_folder_without_permission_keeps_the_old_file);
    tcase_add_test(c, what_is_given_up_leaves_nothing);
    tcase_add_loop_test(c, what_we_do_not_write_is_refused, 0, COUNT(foreign));
    suite_add_tcase(s, c);
    return run_suite(s);
}

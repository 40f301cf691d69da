/* test_safetensors.c - safetensors files and folders: what is written is read, byte for byte as the format's own writer
 * orders it; every rule of the reader refuses its violation.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"

static const float floats[24] = {1, -2, 3.5F};
static const uint16_t halves[6] = {0x3C00, 0xC000};
static const fm_array arrays[] = {
    {"b.weight", FM_F32, 2, {4, 6}, floats, 96}, {"a", FM_BF16, 1, {5}, halves, 10},
    {"flags", FM_BOOL, 1, {3}, halves, 3},       {"a.weight", FM_F32, 1, {2}, floats + 3, 8},
    {"empty", FM_I8, 2, {0, 3}, NULL, 0},        {"scalar \"\xC3\xA9\"", FM_I64, 0, {0}, floats, 8},
    {"h", FM_F16, 4, {1, 2, 1, 3}, halves, 12},
};

static status read_file(const char *path)
{
    fm_arrays a;
    TRY(fm_safetensors_open(&a, path));
    fm_arrays_free(&a);
    return NB_OK;
}

static const char *write_arrays(const char *name)
{
    const char *path = scratch_path(name);
    fm_meta m = {0};
    fm_meta_put_string(&m, "made \"by\"", "a\\test\n");
    must(fm_safetensors_write(path, arrays, COUNT(arrays), &m, (fm_source){0}));
    fm_meta_free(&m);
    return path;
}

START_TEST(what_was_written_is_read)
{
    fm_arrays a;
    must(fm_safetensors_open(&a, write_arrays("x.safetensors")));
    ck_assert_int_eq(a.n, COUNT(arrays));
    for (int i = 0; i < COUNT(arrays); i++) {
        const fm_array *x = fm_find(&a, arrays[i].name);
        ck_assert(x != NULL);
        same_arrays(x, &arrays[i]);
    }
    for (int i = 1; i < COUNT(arrays); i++) /* larger types first, so each is aligned */
        ck_assert(fm_dtype_bytes(a.array[i].dtype) <= fm_dtype_bytes(a.array[i - 1].dtype));
    ck_assert(!fm_find(&a, "absent") && !fm_find(&a, ""));
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "format")), "pt");
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "made \"by\"")), "a\\test\n");
    fm_arrays_free(&a);
    fm_arrays_free(&a);
}
END_TEST

START_TEST(equal_input_gives_equal_bytes)
{
    same_files(write_arrays("x.safetensors"), write_arrays("y.safetensors"));
}
END_TEST

/* The bytes that safetensors 0.8 (PyPI) writes for {"b": f32 [2], "a": u8 [1]} with metadata {"format": "pt"}. */
START_TEST(bytes_are_those_of_the_format_s_own_writer)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2],"
        "\"data_offsets\":[0,8]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}";
    const fm_array two[] = {{"a", FM_U8, 1, {1}, "\7", 1}, {"b", FM_F32, 1, {2}, floats, 8}};
    const char *path = scratch_path("x");
    size_t bytes, padded = (sizeof header - 1 + 7) / 8 * 8;
    must(fm_safetensors_write(path, two, 2, NULL, (fm_source){0}));
    uint8_t *data = load(path, &bytes);
    ck_assert_uint_eq(bytes, 8 + padded + 9);
    ck_assert(data[0] == padded && !memcmp(data + 1, "\0\0\0\0\0\0\0", 7));
    ck_assert(!memcmp(data + 8, header, sizeof header - 1));
    for (size_t i = sizeof header - 1; i < padded; i++)
        ck_assert_int_eq(data[8 + i], ' ');
    ck_assert(!memcmp(data + 8 + padded, floats, 8) && data[bytes - 1] == 7);
    free(data);
}
END_TEST

START_TEST(needed_arrays_name_what_is_wrong)
{
    fm_arrays a;
    const fm_array *x;
    must(fm_safetensors_open(&a, write_arrays("x.safetensors")));
    must(fm_need(&x, &a, "b.weight", 2, (const int64_t[]){4, 6}));
    must_fail(fm_need(&x, &a, "b.weight", 2, (const int64_t[]){6, 4}), NB_FORMAT, "found F32 [4,6], wanted F32 [6,4]");
    must_fail(fm_need(&x, &a, "b.weight", 1, (const int64_t[]){24}), NB_FORMAT, "wanted F32 [24]");
    must_fail(fm_need(&x, &a, "c.weight", 1, (const int64_t[]){24}), NB_FORMAT, "has no array c.weight");
    fm_arrays_free(&a);
}
END_TEST

/* A header by hand and `bytes` of data behind it. */
static const char *write_raw(const char *header, size_t header_bytes, size_t bytes)
{
    static uint8_t file[4096];
    uint64_t n = header_bytes;
    ck_assert(sizeof n + header_bytes + bytes <= sizeof file);
    memset(file, 0, sizeof file);
    memcpy(file, &n, sizeof n);
    memcpy(file + sizeof n, header, header_bytes);
    return scratch_write("raw", file, sizeof n + header_bytes + bytes);
}

#define ENTRY(dtype, shape, from, to)                                                                                  \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
static const struct {
    const char *header;
    size_t bytes;
    const char *message; /* NULL: accepted */
    status wanted;
} headers[] = {
    {"{}", 0, NULL, NB_OK},
    {"{\"a\":" ENTRY("U8", "[2,2]", 0, 4) ",\"b\":" ENTRY("U8", "[1]", 4, 5) "}   ", 5, NULL, NB_OK},
    {"{\"b\":" ENTRY("U8", "[1]", 4, 5) ",\"a\":" ENTRY("U8", "[2,2]", 0, 4) "}", 5, NULL, NB_OK},
    {"{\"a\":" ENTRY("U8", "[0]", 0, 0) ",\"b\":" ENTRY("U8", "[1]", 0, 1) "}", 1, NULL, NB_OK},
    {"{\"a\":" ENTRY("F32", "[]", 0, 4) "}", 4, NULL, NB_OK},
    {"{\"a\":" ENTRY("U8", "[4]", 0, 4) "}", 5, "the file has 5", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[4]", 0, 4) "}", 3, "do not lie in the buffer", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[4]", 1, 5) "}", 5, "hole", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[2]", 0, 2) ",\"b\":" ENTRY("U8", "[2]", 3, 5) "}", 5, "hole", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[2]", 0, 2) ",\"b\":" ENTRY("U8", "[2]", 1, 3) "}", 3, "overlap", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[2]", 0, 2) ",\"a\":" ENTRY("U8", "[2]", 2, 4) "}", 4, "a occurs twice", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[5]", 0, 4) "}", 4, "needs 5 bytes", NB_FORMAT},
    {"{\"a\":" ENTRY("F32", "[4611686018427387904]", 0, 0) "}", 0, "too large", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[4294967296,4294967296]", 0, 0) "}", 0, "too large", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[-1]", 0, 4) "}", 4, "a: ", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[1.5]", 0, 4) "}", 4, "a: ", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "4", 0, 4) "}", 4, "must be lists", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "{\"x\":4}", 0, 4) "}", 4, "must be lists", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[4]", 4, 0) "}", 4, "do not lie", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[4]", -4, 0) "}", 4, "do not lie", NB_FORMAT},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4,4]}}", 4, "do not lie", NB_FORMAT},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "must be lists", NB_FORMAT},
    {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "unknown dtype", NB_FORMAT},
    {"{\"a\":" ENTRY("Q4_0", "[4]", 0, 4) "}", 4, "unknown dtype Q4_0", NB_FORMAT},
    {"{\"a\":" ENTRY("u8", "[4]", 0, 4) "}", 4, "unknown dtype u8", NB_FORMAT},
    {"{\"a\":" ENTRY("U8", "[1,1,1,2,2]", 0, 4) "}", 4, "5 dimensions", NB_UNSUPPORTED},
    {"{\"a\":" ENTRY("F4", "[3]", 0, 2) "}", 2, "not whole blocks", NB_FORMAT},
    {"{\"a\":7}", 0, "unknown dtype", NB_FORMAT},
    {"{\"__metadata__\":{\"k\":7}}", 0, "not a text", NB_FORMAT},
    {"{\"__metadata__\":{\"k\":\"v\"}}", 0, NULL, NB_OK},
    {"{\"a\":" ENTRY("U8", "[4]", 0, 4), 4, "JSON", NB_FORMAT},
    {"{}x", 0, "JSON", NB_FORMAT},
    {" {}", 0, "no safetensors header", NB_FORMAT},
    {"[]", 0, "no safetensors header", NB_FORMAT},
    {"\xEF\xBB\xBF{}", 0, "no safetensors header", NB_FORMAT},
    {"{\"\xFF\":" ENTRY("U8", "[4]", 0, 4) "}", 4, "not UTF-8", NB_FORMAT},
};

START_TEST(headers_that_break_a_rule_are_refused)
{
    const char *path = write_raw(headers[_i].header, strlen(headers[_i].header), headers[_i].bytes);
    if (!headers[_i].message)
        must(read_file(path));
    else
        must_fail(read_file(path), headers[_i].wanted, headers[_i].message);
}
END_TEST

START_TEST(header_lengths_that_lie_are_refused)
{
    static const uint64_t lengths[] = {0, 1, 3, 100000001, UINT64_MAX, INT64_MAX, 1ULL << 32};
    uint8_t file[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    memcpy(file, &lengths[_i], 8);
    must_fail(read_file(scratch_write("x", file, sizeof file)), NB_FORMAT, "no safetensors header");
}
END_TEST

START_TEST(cut_files_and_missing_memory_are_survived)
{
    const char *path = write_arrays("x.safetensors");
    refuse_every_cut(path, read_file, 500);
    survive_without_memory(path, read_file);
    must_fail(read_file(scratch_path("absent")), NB_IO, "absent");
}
END_TEST

/* ---- writing what cannot be written ---- */

START_TEST(failed_writing_keeps_the_old_file)
{
    const char *path = write_arrays("x.safetensors"), *same = write_arrays("same.safetensors");
    const fm_array twice[] = {arrays[0], arrays[0]}, blocks[] = {{"q", FM_Q4_0, 1, {32}, floats, 18}},
                   wrong[] = {{"q", FM_F32, 1, {32}, floats, 18}}, no_data[] = {{"q", FM_F32, 1, {2}, NULL, 8}},
                   taken[] = {{"__metadata__", FM_F32, 1, {2}, floats, 8}};
    fm_source none = {0}, few = {give_too_few, (void *)(uintptr_t) "a"}, many = {give_too_many, few.ctx};
    fm_meta m = {0};
    fm_meta_put_u32(&m, "number", 1);
    must_fail(fm_safetensors_write(path, twice, 2, NULL, none), NB_USAGE, "b.weight");
    must_fail(fm_safetensors_write(path, blocks, 1, NULL, none), NB_USAGE, "Q4_0");
    must_fail(fm_safetensors_write(path, wrong, 1, NULL, none), NB_USAGE, "says 18 bytes, needs 128");
    must_fail(fm_safetensors_write(path, no_data, 1, NULL, none), NB_USAGE, "no data");
    must_fail(fm_safetensors_write(path, taken, 1, NULL, none), NB_USAGE, "taken");
    must_fail(fm_safetensors_write(path, arrays, 2, NULL, few), NB_USAGE, "a: 1 of its 10 bytes were not given");
    must_fail(fm_safetensors_write(path, arrays, 2, NULL, many), NB_USAGE, "a: 1 bytes are put where 0 are left");
    must_fail(fm_safetensors_write(path, arrays, 2, &m, none), NB_USAGE, "number");
    must_fail(fm_safetensors_write(scratch_path("no/folder"), arrays, 2, NULL, none), NB_IO, "no/folder");
    fm_meta_free(&m);
    same_files(path, same);
}
END_TEST

/* ---- folders ---- */

static void write_shards(void)
{
    must(nb_make_folder(scratch_path("model")));
    must(fm_safetensors_write(scratch_path("model/one.safetensors"), arrays, 3, NULL, (fm_source){0}));
    must(fm_safetensors_write(scratch_path("model/two.safetensors"), arrays + 3, 2, NULL, (fm_source){0}));
}

static const char *write_index(const char *map)
{
    char text[1024];
    int n = snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":117},\"weight_map\":%s}", map);
    (void)scratch_write("model/model.safetensors.index.json", text, (size_t)n);
    return scratch_path("model");
}

#define REST "\"a\":\"one.safetensors\",\"a.weight\":\"two.safetensors\",\"empty\":\"two.safetensors\""
static const struct {
    const char *map, *message;
    status wanted;
} maps[] = {
    {"{\"b.weight\":\"one.safetensors\",\"flags\":\"one.safetensors\"," REST "}", NULL, NB_OK},
    {"{\"b.weight\":\"two.safetensors\",\"flags\":\"one.safetensors\"," REST "}", "b.weight is not in", NB_FORMAT},
    {"{\"c.weight\":\"one.safetensors\",\"flags\":\"one.safetensors\"," REST "}", "c.weight is not in", NB_FORMAT},
    {"{\"flags\":\"one.safetensors\"," REST "}", "4 names, the shards hold 5", NB_FORMAT},
    {"{\"b.weight\":\"../model/one.safetensors\"," REST "}", "not a plain file name", NB_FORMAT},
    {"{\"b.weight\":\"/etc/passwd\"," REST "}", "not a plain file name", NB_FORMAT},
    {"{\"b.weight\":\"..\"," REST "}", "not a plain file name", NB_FORMAT},
    {"{\"b.weight\":\"\"," REST "}", "not a plain file name", NB_FORMAT},
    {"{\"b.weight\":\"a\\\\b\"," REST "}", "not a plain file name", NB_FORMAT},
    {"{\"b.weight\":7," REST "}", "not a text", NB_FORMAT},
    {"{\"b.weight\":\"three.safetensors\"," REST "}", "three.safetensors", NB_IO},
    {"{}", "no weight_map", NB_FORMAT},
    {"7", "no weight_map", NB_FORMAT},
    {"{", "JSON", NB_FORMAT},
};

START_TEST(shards_are_those_that_the_index_names)
{
    write_shards();
    const char *folder = write_index(maps[_i].map);
    if (maps[_i].message) {
        must_fail(read_file(folder), maps[_i].wanted, maps[_i].message);
        return;
    }
    fm_arrays a;
    must(fm_safetensors_open(&a, folder));
    ck_assert_int_eq(a.n, 5);
    for (int i = 0; i < 5; i++)
        same_arrays(fm_find(&a, arrays[i].name), &arrays[i]);
    fm_arrays_free(&a);
    survive_without_memory(folder, read_file);
}
END_TEST

START_TEST(a_single_file_in_a_folder_comes_first)
{
    write_shards();
    must_fail(read_file(scratch_path("model")), NB_IO, "neither model.safetensors nor");
    (void)write_index("broken");
    must(fm_safetensors_write(scratch_path("model/model.safetensors"), arrays, 2, NULL, (fm_source){0}));
    must(read_file(scratch_path("model")));
}
END_TEST

START_TEST(shards_with_one_name_twice_are_refused)
{
    write_shards();
    must(fm_safetensors_write(scratch_path("model/two.safetensors"), arrays + 2, 2, NULL, (fm_source){0}));
    must_fail(read_file(write_index(maps[0].map)), NB_FORMAT, "flags occurs twice");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("safetensors");
    TCase *c = tcase_create("safetensors");
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_add_test(c, what_was_written_is_read);
    tcase_add_test(c, equal_input_gives_equal_bytes);
    tcase_add_test(c, bytes_are_those_of_the_format_s_own_writer);
    tcase_add_test(c, needed_arrays_name_what_is_wrong);
    tcase_add_loop_test(c, headers_that_break_a_rule_are_refused, 0, COUNT(headers));
    tcase_add_loop_test(c, header_lengths_that_lie_are_refused, 0, 7);
    tcase_add_test(c, cut_files_and_missing_memory_are_survived);
    tcase_add_test(c, failed_writing_keeps_the_old_file);
    tcase_add_loop_test(c, shards_are_those_that_the_index_names, 0, COUNT(maps));
    tcase_add_test(c, a_single_file_in_a_folder_comes_first);
    tcase_add_test(c, shards_with_one_name_twice_are_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}

/* test_base_files.c - what src/base promises of files and JSON: replacement that is all or nothing, refusals that name
 * the path, text that reads back the same.
 */
#include "base/base.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>
#include <sys/stat.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* ---- files ---- */

static void assert_text(const char *path, const char *want)
{
    nb_mapped m;
    ck_assert_int_eq(nb_map(&m, path), NB_OK);
    ck_assert_uint_eq(m.bytes, strlen(want));
    ck_assert_int_eq(memcmp(m.data, want, m.bytes), 0);
    nb_unmap(&m);
    nb_unmap(&m);
}

static int files_in_scratch(void)
{
    DIR *d = opendir(scratch_folder);
    int n = -2; /* . and .. */
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

START_TEST(mapping_refuses_what_is_no_file)
{
    nb_mapped m;
    const char *empty = scratch_write("empty", "", 0), *pipe_path = scratch_path("pipe"),
               *absent = scratch_path("absent");
    ck_assert_int_eq(nb_map(&m, empty), NB_OK);
    ck_assert_ptr_nonnull(m.data);
    ck_assert_uint_eq(m.bytes, 0);
    nb_unmap(&m);
    ck_assert_int_eq(mkfifo(pipe_path, 0600), 0);
    const char *bad[] = {scratch_folder, pipe_path, absent, "/dev/null", ""};
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(nb_map(&m, bad[i]), NB_IO);
        ck_assert_ptr_nonnull(strstr(nb_fail_message(), bad[i]));
        ck_assert_ptr_null(m.data);
    }
}
END_TEST

START_TEST(replacement_is_all_or_nothing)
{
    const char *target = scratch_path("model.h5"), *link_path = scratch_path("link");
    nb_atomic a, other;
    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK);
    ck_assert_int_ge(fputs("one", a.file), 0);
    ck_assert(!nb_path_exists(target));
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    nb_atomic_abort(&a);
    assert_text(target, "one");

    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK); /* two at once; the one given up leaves no trace */
    ck_assert_int_eq(nb_atomic_begin(&other, target), NB_OK);
    ck_assert_str_ne(a.path, other.path);
    fputs("lost", other.file);
    nb_atomic_abort(&other);
    assert_text(target, "one");
    fclose(a.file); /* a writer of its own, by the path */
    a.file = NULL;
    FILE *f = fopen(a.path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs("two", f), 0);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    assert_text(target, "two");
    ck_assert_int_eq(nb_atomic_commit(&a), NB_USAGE);

    ck_assert_int_eq(chmod(target, 0640), 0); /* a link stays one, a mode stays what it was */
    ck_assert_int_eq(symlink("model.h5", link_path), 0);
    ck_assert_int_eq(nb_atomic_begin(&a, link_path), NB_OK);
    fputs("three", a.file);
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    assert_text(target, "three");
    struct stat st;
    ck_assert_int_eq(lstat(link_path, &st), 0);
    ck_assert(S_ISLNK(st.st_mode));
    ck_assert_int_eq(stat(target, &st), 0);
    ck_assert_int_eq((int)(st.st_mode & 0777), 0640);
    ck_assert_int_eq(files_in_scratch(), 2);
}
END_TEST

START_TEST(replacement_that_fails_says_so)
{
    nb_atomic a;
    const char *target = scratch_write("a", "old", 3), *nowhere = scratch_path("no/such/folder");
    const char *bad[] = {nowhere, scratch_folder, "/dev/null"};
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(nb_atomic_begin(&a, bad[i]), NB_IO);
        ck_assert_ptr_nonnull(strstr(nb_fail_message(), bad[i]));
        nb_atomic_abort(&a);
    }
    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK);
    a.file = freopen("/dev/full", "wb", a.file); /* a full disk */
    ck_assert_ptr_nonnull(a.file);
    fputs("new", a.file);
    ck_assert_int_eq(nb_atomic_commit(&a), NB_IO);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "No space left"));
    assert_text(target, "old");
    ck_assert_int_eq(files_in_scratch(), 1);
}
END_TEST

START_TEST(folders_are_made_with_parents)
{
    const char *deep = scratch_path("a//b/c/"), *file = scratch_path("file"), *under_file = scratch_path("file/x");
    for (int twice = 0; twice < 2; twice++) {
        ck_assert_int_eq(nb_make_folder(deep), NB_OK);
        ck_assert(nb_path_is_folder(deep));
    }
    scratch_write("file", "x", 1);
    ck_assert(nb_path_exists(file) && !nb_path_is_folder(file));
    ck_assert_int_eq(nb_make_folder(file), NB_IO);
    ck_assert_int_eq(nb_make_folder(under_file), NB_IO);
}
END_TEST

START_TEST(paths_join_and_split)
{
    static const char *const rows[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}, {"a/b", "c.h5", "a/b/c.h5"}};
    for (int r = 0; r < COUNT(rows); r++) {
        char *path = nb_path_join(rows[r][0], rows[r][1]);
        ck_assert_str_eq(path, rows[r][2]);
        ck_assert_str_eq(nb_path_name(path), rows[r][1]);
        free(path);
    }
}
END_TEST

/* ---- JSON ---- */

static nb_json *parse_exactly(const char *text) /* from a block that ends where the text ends */
{
    size_t bytes = strlen(text);
    char *copy = nb_alloc(bytes, 1);
    memcpy(copy, text, bytes);
    nb_json *j = nb_json_parse(copy, bytes);
    free(copy);
    return j;
}

START_TEST(json_reads_every_kind)
{
    nb_json *j = parse_exactly("{\"dim\": 64, \"eps\":1e-5,\"Dim\":7, \"tied\":true, \"none\":null, "
                               "\"name\":\"\\u00e9\\n\", \"layers\":[1,2.5,-3], \"sub\":{\"x\":[]}}");
    ck_assert_ptr_nonnull(j);
    ck_assert_int_eq(nb_json_int(nb_json_get(j, "dim"), -1), 64);
    ck_assert_double_eq(nb_json_number(nb_json_get(j, "eps"), 0), 1e-5);
    ck_assert(nb_json_bool(nb_json_get(j, "tied"), false));
    ck_assert(nb_json_is_null(nb_json_get(j, "none")) && nb_json_is_null(nb_json_get(j, "absent")));
    ck_assert(!nb_json_is_null(nb_json_get(j, "dim")));
    ck_assert_str_eq(nb_json_string(nb_json_get(j, "name")), "\xC3\xA9\n");
    const nb_json *layers = nb_json_get(j, "layers");
    ck_assert_int_eq(nb_json_count(layers), 3);
    ck_assert_int_eq(nb_json_int(nb_json_at(layers, 2), 0), -3);
    ck_assert_int_eq(nb_json_int(nb_json_at(layers, 1), 99), 99); /* 2.5 is no integer */
    ck_assert_ptr_null(nb_json_at(layers, 3));
    ck_assert_ptr_null(nb_json_at(layers, -1));
    ck_assert_ptr_null(nb_json_get(layers, "x"));
    ck_assert_int_eq(nb_json_count(nb_json_get(nb_json_get(j, "sub"), "x")), 0);
    static const char *const keys[] = {"dim", "eps", "Dim", "tied", "none", "name", "layers", "sub"};
    int n = 0;
    for (const nb_json *i = nb_json_first(j); i; i = nb_json_next(i))
        ck_assert_str_eq(nb_json_key(i), keys[n++]);
    ck_assert_int_eq(n, COUNT(keys));
    ck_assert_int_eq(nb_json_int(NULL, 5), 5);
    ck_assert_ptr_null(nb_json_string(nb_json_get(j, "dim")));
    ck_assert(!nb_json_bool(nb_json_get(j, "dim"), false));
    nb_json_free(j);
    nb_json_free(NULL);
}
END_TEST

static const char *const bad_json[] = {
    "",    " ",     "{",        "}",         "[1,]",    "{\"a\":}", "{\"a\" 1}",   "{a:1}",        "[1 2]", "nul",
    "tru", "\"abc", "\"abc\\",  "\"\\u12",   "[1]x",    "{} {}",    "\"\\ud800\"", "\xEF\xBB\xBF", "-",     "[",
    "[[]", "{\"",   "{\"a\\\"", "{\"a\":1,", "\"\\x\"", "[\"a",     "[1e",         "'a'",          "/",     "\\",
};

START_TEST(json_refuses_what_is_none)
{
    nb_json *j = parse_exactly(bad_json[_i]);
    ck_assert_msg(!j, "accepted: %s", bad_json[_i]);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "JSON"));
}
END_TEST

START_TEST(json_limits_depth_numbers_and_nuls)
{
    enum { DEEP = 100000 };
    char *text = nb_alloc(2 * DEEP, 1);
    for (int depth = 63; depth <= DEEP; depth = depth < 66 ? depth + 1 : depth * 30) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        nb_json *j = nb_json_parse(text, 2 * (size_t)depth);
        ck_assert_int_eq(j != NULL, depth <= 64);
        nb_json_free(j);
    }
    free(text);
    char brackets[201]; /* brackets in a string have no depth */
    memset(brackets, '[', 200);
    brackets[0] = brackets[199] = '"';
    nb_json *j = nb_json_parse(brackets, 200);
    ck_assert_ptr_nonnull(j);
    nb_json_free(j);
    ck_assert_ptr_null(nb_json_parse("\"a\0b\"", 5));
    ck_assert_ptr_null(nb_json_parse("1\0", 2));
    j = parse_exactly("[1e999, 9007199254740992, 9007199254740994, -1e300]");
    ck_assert(!nb_json_is_number(nb_json_at(j, 0)));
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 1), -1), 9007199254740992);
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 2), -1), -1);
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 3), -1), -1);
    nb_json_free(j);
}
END_TEST

START_TEST(json_text_is_what_was_put)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", INT64_MIN);
    nb_json_put_number(&w, "kl", 0.1);
    nb_json_put_number(&w, "nan", NAN);
    nb_json_open(&w, "ci", '[');
    nb_json_put_number(&w, NULL, 1);
    nb_json_put_string(&w, NULL, "a\"\\\n\x01\x7F\xC3\xA9\xE2\x82");
    nb_json_open(&w, NULL, '{');
    nb_json_close(&w, '}');
    nb_json_close(&w, ']');
    nb_json_put_bool(&w, "best", true);
    nb_json_put_hash(&w, "hash", 0x0123456789abcdef);
    nb_json_put_raw(&w, "raw", "[]");
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    ck_assert_str_eq(text, "{\"step\":-9223372036854775808,\"kl\":0.1,\"nan\":null,\"ci\":[1,"
                           "\"a\\\"\\\\\\n\\u0001\\u007f\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD\",{}],"
                           "\"best\":true,\"hash\":\"0123456789abcdef\",\"raw\":[]}");
    nb_json *j = parse_exactly(text);
    ck_assert_ptr_nonnull(j);
    nb_json_free(j);
    free(text);
    ck_assert_ptr_null(w.text);
    text = nb_json_text(&w);
    ck_assert_str_eq(text, "");
    free(text);
}
END_TEST

START_TEST(json_text_survives_no_memory)
{
    for (int64_t left = 0;; left++) {
        nb_writer w = {0};
        allocations_left = left;
        nb_json_open(&w, NULL, '[');
        for (int i = 0; i < 300; i++)
            nb_json_put_string(&w, NULL, "a longer text than fits into the first block");
        nb_json_close(&w, ']');
        char *text = nb_json_text(&w);
        allocations_left = -1;
        ck_assert_ptr_null(w.text);
        if (text) {
            ck_assert_uint_eq(strlen(text), 300 * 47 + 1);
            free(text);
            ck_assert_int_gt(left, 3);
            break;
        }
    }
}
END_TEST

START_TEST(json_numbers_read_back_the_same)
{
    for (uint64_t i = 0; i < 5000; i++) {
        uint64_t u = nb_random(3, 0, i);
        double x;
        memcpy(&x, &u, sizeof x);
        float narrow;
        memcpy(&narrow, &u, sizeof narrow);
        if (i % 2)
            x = (double)narrow;
        if (!isfinite(x))
            continue;
        nb_writer w = {0};
        nb_json_put_number(&w, NULL, x);
        char *text = nb_json_text(&w);
        nb_json *j = parse_exactly(text);
        double y = nb_json_number(j, NAN);
        ck_assert_int_eq(memcmp(&x, &y, sizeof x), 0);
        nb_json_free(j);
        free(text);
    }
}
END_TEST

static const struct {
    const char *bytes;
    const char *want;
} utf8[] = {
    {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
    {"\xED\xA0\x80", "???"}, /* a surrogate */
    {"\xC0\x80", "??"},      /* overlong */
    {"\xE0\x80\x80", "???"},
    {"\xF4\x90\x80\x80", "????"}, /* beyond U+10FFFF */
    {"\xF0\x9F\x98", "???"},
    {"\x80", "?"},
    {"\xFF\xFE", "??"},
    {"\xF0\x9F\x98\xC3\xA9", "???\xC3\xA9"},
};

START_TEST(json_strings_are_valid_utf8)
{
    char want[64] = "\"";
    for (const char *c = utf8[_i].want; *c; c++) {
        char one[2] = {*c, 0};
        strcat(want, *c == '?' ? "\xEF\xBF\xBD" : one);
    }
    strcat(want, "\"");
    nb_writer w = {0};
    nb_json_put_string(&w, NULL, utf8[_i].bytes);
    char *text = nb_json_text(&w);
    ck_assert_str_eq(text, want);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base_files");
    TCase *files = tcase_create("files"), *json = tcase_create("json");
    tcase_set_timeout(json, 60);
    tcase_add_checked_fixture(files, scratch_begin, scratch_end);
    tcase_add_test(files, mapping_refuses_what_is_no_file);
    tcase_add_test(files, replacement_is_all_or_nothing);
    tcase_add_test(files, replacement_that_fails_says_so);
    tcase_add_test(files, folders_are_made_with_parents);
    tcase_add_test(files, paths_join_and_split);
    tcase_add_test(json, json_reads_every_kind);
    tcase_add_loop_test(json, json_refuses_what_is_none, 0, COUNT(bad_json));
    tcase_add_test(json, json_limits_depth_numbers_and_nuls);
    tcase_add_test(json, json_text_is_what_was_put);
    tcase_add_test(json, json_text_survives_no_memory);
    tcase_add_test(json, json_numbers_read_back_the_same);
    tcase_add_loop_test(json, json_strings_are_valid_utf8, 0, COUNT(utf8));
    suite_add_tcase(suite, files);
    suite_add_tcase(suite, json);
    return run_suite(suite);
}

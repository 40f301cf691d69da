/* test_documents.c - where documents of a text begin and end, plain and gzipped. */
#include "io/io.h"
#include "scratch.h"
#include "suite.h"
#include <zlib.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static void must(status s)
{
    ck_assert_msg(s == NB_OK, "%s: %s", nb_status_name(s), nb_fail_message());
}

static const char *write_gz(const char *name, const char *text, size_t bytes)
{
    const char *path = scratch_path(name);
    gzFile f = gzopen(path, "wb1");
    ck_assert(f && gzwrite(f, text, (unsigned)bytes) == (int)bytes);
    ck_assert_int_eq(gzclose(f), Z_OK);
    return path;
}

/* { text, split, documents each in brackets } */
static const struct {
    const char *text;
    fm_split split;
    const char *wanted;
} rows[] = {
    {"", FM_SPLIT_NONE, ""},
    {"", FM_SPLIT_LINE, ""},
    {"", FM_SPLIT_BLANK, ""},
    {"\n\n \n", FM_SPLIT_NONE, "[\n\n \n]"},
    {"\n\n \n", FM_SPLIT_LINE, ""},
    {"\n\n \n", FM_SPLIT_BLANK, ""},
    {"a\nb\n\nc\n", FM_SPLIT_NONE, "[a\nb\n\nc\n]"},
    {"a\nb\n\nc\n", FM_SPLIT_LINE, "[a][b][c]"},
    {"a\nb\n\nc\n", FM_SPLIT_BLANK, "[a\nb][c]"},
    {"a\nb", FM_SPLIT_LINE, "[a][b]"},
    {"a\nb", FM_SPLIT_BLANK, "[a\nb]"},
    {"\n \t\na\n  b \n\r\n\n c", FM_SPLIT_BLANK, "[a\n  b ][ c]"},
    {"a\r\nb\r\n\r\nc\r\n", FM_SPLIT_LINE, "[a][b][c]"},
    {"a\r\nb\r\n\r\nc\r\n", FM_SPLIT_BLANK, "[a\r\nb][c]"},
    {"a\r\n", FM_SPLIT_NONE, "[a\r\n]"},
    {"\xEF\xBB\xBF", FM_SPLIT_NONE, ""},
    {"\xEF\xBB\xBF"
     "a\n",
     FM_SPLIT_NONE, "[a\n]"},
    {"\xEF\xBB\xBF"
     "a\n\xEF\xBB\xBF"
     "b",
     FM_SPLIT_LINE,
     "[a][\xEF\xBB\xBF"
     "b]"},
};

static void check_documents(const char *path, fm_split split, const char *wanted)
{
    char found[200] = "";
    fm_documents *d;
    must(fm_documents_open(&d, path, split));
    fm_text t;
    for (must(fm_documents_next(d, &t)); t.text; must(fm_documents_next(d, &t)))
        (void)snprintf(found + strlen(found), sizeof found - strlen(found), "[%.*s]", (int)t.bytes, t.text);
    must(fm_documents_next(d, &t));
    ck_assert_ptr_null(t.text);
    fm_documents_close(d);
    ck_assert_str_eq(found, wanted);
}

START_TEST(documents_end_where_the_split_says)
{
    size_t bytes = strlen(rows[_i].text);
    check_documents(scratch_write("text", rows[_i].text, bytes), rows[_i].split, rows[_i].wanted);
    check_documents(write_gz("text.gz", rows[_i].text, bytes), rows[_i].split, rows[_i].wanted);
}
END_TEST

/* A text of 2 MB whose documents have 0 to 200,000 bytes: more than is inflated at a time. */
static char *long_text_new(size_t *bytes)
{
    char *text = nb_alloc(1 << 22, 1);
    size_t n = 0;
    for (uint64_t i = 0; n < 2000000; i++) {
        uint64_t length = nb_random(1, 0, i) % (i % 7 == 0 ? 200000 : 100);
        for (uint64_t k = 0; k < length; k++, n++)
            text[n] = "abcdefgh \n"[nb_random(1, 1, n) % 10];
        memcpy(text + n, "\n\n\n", 3);
        n += 3;
    }
    *bytes = n;
    return text;
}

START_TEST(a_gz_has_the_documents_of_its_text)
{
    size_t bytes;
    char *text = long_text_new(&bytes);
    fm_documents *a, *b;
    must(fm_documents_open(&a, scratch_write("long", text, bytes), (fm_split)_i));
    must(fm_documents_open(&b, write_gz("long.gz", text, bytes), (fm_split)_i));
    fm_text x, y;
    int n = 0;
    do {
        must(fm_documents_next(a, &x));
        must(fm_documents_next(b, &y));
        ck_assert_int_eq(x.text != NULL, y.text != NULL);
        ck_assert_uint_eq(x.bytes, y.bytes);
        ck_assert(!x.text || memcmp(x.text, y.text, x.bytes) == 0);
        n++;
    } while (x.text);
    ck_assert_int_gt(n, _i == FM_SPLIT_NONE ? 1 : 100);
    fm_documents_close(a);
    fm_documents_close(b);
    free(text);
}
END_TEST

static status read_all(const char *path, fm_split split)
{
    fm_documents *d;
    TRY(fm_documents_open(&d, path, split));
    fm_text t = {"", 0};
    status s = NB_OK;
    while (s == NB_OK && t.text)
        s = fm_documents_next(d, &t);
    fm_documents_close(d);
    return s;
}

START_TEST(a_damaged_gz_is_refused)
{
    size_t bytes;
    char *text = long_text_new(&bytes);
    nb_mapped m;
    must(nb_map(&m, write_gz("whole.gz", text, 300000)));
    for (size_t n = 2; n < m.bytes; n += m.bytes / 50 + 1) {
        status s = read_all(scratch_write("cut.gz", m.data, n), FM_SPLIT_LINE);
        ck_assert_msg(s == NB_FORMAT, "%zu of %zu bytes: %s", n, m.bytes, nb_status_name(s));
    }
    memcpy(text, m.data, m.bytes);
    text[m.bytes - 6] ^= 1; /* its CRC */
    ck_assert_int_eq(read_all(scratch_write("damaged.gz", text, m.bytes), FM_SPLIT_NONE), NB_FORMAT);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "damaged.gz"));
    nb_unmap(&m);
    free(text);
}
END_TEST

START_TEST(what_is_no_file_is_refused)
{
    fm_documents *d;
    ck_assert_int_eq(fm_documents_open(&d, scratch_path("absent"), FM_SPLIT_NONE), NB_IO);
    ck_assert_ptr_null(d);
    ck_assert_int_eq(fm_documents_open(&d, scratch_folder, FM_SPLIT_NONE), NB_IO);
    ck_assert_ptr_null(d);
    fm_documents_close(NULL);
}
END_TEST

START_TEST(splits_have_names)
{
    fm_split split;
    for (int i = FM_SPLIT_NONE; i <= FM_SPLIT_BLANK; i++) {
        must(fm_split_parse(&split, fm_split_name((fm_split)i)));
        ck_assert_int_eq(split, i);
    }
    ck_assert_int_eq(fm_split_parse(&split, "lines"), NB_USAGE);
}
END_TEST

START_TEST(tinystories_has_888_stories)
{
    static const char path[] = "../shared/data/text/tinystories.txt";
    if (!nb_path_exists(path)) {
        printf("skipped: no %s\n", path);
        return;
    }
    fm_documents *d;
    must(fm_documents_open(&d, path, FM_SPLIT_BLANK));
    fm_text t;
    int n = 0;
    for (must(fm_documents_next(d, &t)); t.text; must(fm_documents_next(d, &t)))
        n++;
    ck_assert_int_eq(n, 888);
    fm_documents_close(d);
}
END_TEST

START_TEST(every_failing_allocation_is_reported)
{
    const char *path = write_gz("small.gz", "a\n\nb\n", 5);
    status s = NB_NOMEM;
    for (int64_t k = 1; s != NB_OK && k < 100; k++) {
        allocations_left = k;
        s = read_all(path, FM_SPLIT_BLANK);
        allocations_left = -1;
        ck_assert(s == NB_OK || s == NB_NOMEM);
    }
    ck_assert_int_eq(s, NB_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("documents");
    TCase *t = tcase_create("documents");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, documents_end_where_the_split_says, 0, COUNT(rows));
    tcase_add_loop_test(t, a_gz_has_the_documents_of_its_text, 0, 3);
    tcase_add_test(t, a_damaged_gz_is_refused);
    tcase_add_test(t, what_is_no_file_is_refused);
    tcase_add_test(t, splits_have_names);
    tcase_add_test(t, tinystories_has_888_stories);
    tcase_add_test(t, every_failing_allocation_is_reported);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}

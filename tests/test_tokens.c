/* test_tokens.c - token files: what was written is read, a slice at a time; texts are read like them; files that lie
 * are refused.
 */
#include "scratch.h"
#include "suite.h"
#include "token_batches.h"

static const int64_t vocabularies[] = {257, 65536, 65537, 200000};

START_TEST(what_was_written_is_read)
{
    fm_tokenizer tk = byte_tokenizer();
    fm_tokens_settings s = settings_for(&tk);
    s.vocab_size = vocabularies[_i];
    const char *path = scratch_path("tokens.h5");
    write_whole(path, &s);
    ck_assert(!nb_path_exists(part_of(path)));
    fm_tokens t;
    must(fm_tokens_open(&t, path, &tk, FM_SPLIT_NONE));
    ck_assert(t.n == BATCHES * BATCH && t.vocab_size == s.vocab_size && t.row_length == ROW && t.seed == 7);
    ck_assert(!t.from_text && t.tokenizer.hash == tk.hash && t.tokenizer.kind == FM_TOKENIZER_BYTES);
    ck_assert_str_eq(t.settings, s.settings);
    ck_assert_int_eq(fm_h5_find(&t.file, "ids")->dtype, s.vocab_size <= 65536 ? FM_U16 : FM_U32);
    int32_t all[BATCHES * BATCH], slice[BATCHES * BATCH];
    for (int64_t i = 0; i < BATCHES; i++)
        make_batch(all + i * BATCH, i, s.vocab_size);
    for (uint64_t i = 0; i < 50; i++) {
        int64_t from = (int64_t)(nb_random(1, 0, i) % (BATCHES * BATCH + 1));
        int64_t n = i == 0 ? 0 : (int64_t)(nb_random(1, 1, i) % (uint64_t)(BATCHES * BATCH + 1 - from));
        must(fm_tokens_read(&t, slice, from, n));
        ck_assert(n == 0 || memcmp(slice, all + from, (size_t)n * 4) == 0);
    }
    int64_t wanted[BATCHES * BATCH + 1], found[BATCHES * BATCH + 1], n = 0;
    for (int64_t i = 0; i < t.n; i++)
        if (i % ROW == 0 || all[i] == 256)
            wanted[n++] = i;
    ck_assert_int_eq(t.n_documents, n);
    wanted[n] = t.n;
    must(fm_tokens_documents(&t, found, 0, n + 1));
    ck_assert_mem_eq(found, wanted, (size_t)(n + 1) * 8);
    must(fm_tokens_documents(&t, found, 3, 2));
    ck_assert_mem_eq(found, wanted + 3, 16);
    must_fail(fm_tokens_read(&t, slice, t.n, 1), NB_SHAPE, "1 tokens from");
    must_fail(fm_tokens_read(&t, slice, -1, 1), NB_SHAPE, "");
    must_fail(fm_tokens_read(&t, slice, INT64_MAX, INT64_MAX), NB_SHAPE, "");
    must_fail(fm_tokens_documents(&t, found, n + 1, 1), NB_SHAPE, "documents from");
    fm_tokens_close(&t);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(documents_begin_where_the_caller_says)
{
    fm_tokens_settings s = {.vocab_size = 10};
    const char *path = scratch_path("tokens.h5");
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, &s, false));
    static const int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 9};
    static const int64_t bad[][2] = {{1, 2}, {0, 8}, {0, 0}, {-1, 3}};
    for (int i = 0; i < COUNT(bad); i++)
        must_fail(fm_tokens_writer_append(&w, ids, 8, bad[i], 2), NB_USAGE, path);
    must_fail(fm_tokens_writer_append(&w, ids, 0, NULL, 0), NB_USAGE, "batch of 0");
    must_fail(fm_tokens_writer_append(&w, (int32_t[]){10}, 1, NULL, 0), NB_USAGE, "the vocabulary has 10");
    must_fail(fm_tokens_writer_append(&w, (int32_t[]){-1}, 1, NULL, 0), NB_USAGE, "id -1");
    must(fm_tokens_writer_append(&w, ids, 8, (int64_t[]){0, 5}, 2));
    must(fm_tokens_writer_append(&w, ids, 8, (int64_t[]){7}, 1));
    must(fm_tokens_writer_append(&w, ids, 8, (int64_t[]){0}, 0)); /* the last document goes on */
    must(fm_tokens_writer_finish(&w));
    fm_tokens t;
    must(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    int64_t start[4];
    ck_assert_int_eq(t.n_documents, 3);
    must(fm_tokens_documents(&t, start, 0, 4));
    ck_assert(start[0] == 0 && start[1] == 5 && start[2] == 15 && start[3] == 24);
    ck_assert_int_eq(t.tokenizer.kind, FM_TOKENIZER_NONE);
    ck_assert_str_eq(t.settings, "{}");
    fm_tokens_close(&t);
}
END_TEST

START_TEST(a_file_without_tokens_is_fine)
{
    fm_tokens_settings s = {.vocab_size = 10};
    const char *path = scratch_path("tokens.h5");
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, &s, false));
    must(fm_tokens_writer_finish(&w));
    fm_tokens t;
    must(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    int64_t end;
    must(fm_tokens_documents(&t, &end, 0, 1));
    ck_assert(t.n == 0 && t.n_documents == 0 && end == 0);
    fm_tokens_close(&t);
}
END_TEST

/* ---- texts ---- */

START_TEST(a_text_is_read_like_a_token_file)
{
    fm_tokenizer tk = byte_tokenizer();
    const char *path = scratch_write("text", "ab\n\ncd\n", 7);
    fm_tokens t;
    must(fm_tokens_open(&t, path, &tk, FM_SPLIT_LINE));
    static const int32_t wanted[] = {256, 'a', 'b', 256, 'c', 'd'};
    int32_t ids[6];
    int64_t start[3];
    ck_assert(t.from_text && t.n == 6 && t.n_documents == 2 && t.vocab_size == 258 && t.tokenizer.hash == tk.hash);
    must(fm_tokens_read(&t, ids, 0, 6));
    ck_assert_mem_eq(ids, wanted, sizeof ids);
    must(fm_tokens_documents(&t, start, 0, 3));
    ck_assert(start[0] == 0 && start[1] == 3 && start[2] == 6);
    must_fail(fm_tokens_read(&t, ids, 1, 6), NB_SHAPE, path);
    fm_tokens_close(&t);
    must_fail(fm_tokens_open(&t, path, NULL, FM_SPLIT_LINE), NB_USAGE, "needs a tokenizer");
    must_fail(fm_tokens_open(&t, scratch_path("absent"), &tk, FM_SPLIT_LINE), NB_IO, "absent");
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(stories100_has_its_tokens)
{
    static const char text[] = "../shared/data/reference/stories100.txt",
                      bin[] = "../shared/data/stories260k/tok512.bin";
    if (!nb_path_exists(text) || !nb_path_exists(bin)) {
        printf("skipped: no %s\n", text);
        return;
    }
    fm_tokenizer tk;
    must(fm_tokenizer_open(&tk, bin, 512));
    fm_tokens t;
    must(fm_tokens_open(&t, text, &tk, FM_SPLIT_LINE));
    ck_assert_int_eq(t.n_documents, 100);
    int64_t scored = 0, start[101];
    must(fm_tokens_documents(&t, start, 0, 101));
    for (int i = 0; i < 100; i++)
        scored += (start[i + 1] - start[i] < 512 ? start[i + 1] - start[i] : 512) - 1;
    ck_assert_int_eq(scored, 35904); /* as the reference that came with the text counts */
    fm_tokens_close(&t);
    fm_tokenizer_free(&tk);
}
END_TEST

/* ---- files that lie ---- */

enum {
    GOOD,
    VERSION_2,
    NO_IDS,
    FLOAT_IDS,
    ID_TOO_LARGE,
    UNSORTED,
    BEYOND,
    NOT_FROM_0,
    NO_DOCUMENTS,
    BAD_TOKENIZER,
    BAD_HASH,
    NO_VOCABULARY
};

static const struct {
    int fault;
    status wanted;
    const char *message;
} lies[] = {
    {GOOD, NB_OK, ""},
    {VERSION_2, NB_UNSUPPORTED, "version 2"},
    {NO_IDS, NB_FORMAT, "has no ids"},
    {FLOAT_IDS, NB_FORMAT, "ids is F32"},
    {ID_TOO_LARGE, NB_FORMAT, "token 2 is 258; the vocabulary has 258"},
    {UNSORTED, NB_FORMAT, "document 2 begins at 1, the one before at 2"},
    {BEYOND, NB_FORMAT, "document 2 begins at 5"},
    {NOT_FROM_0, NB_FORMAT, "document 0 begins at 1"},
    {NO_DOCUMENTS, NB_FORMAT, "0 documents of 4 tokens"},
    {BAD_TOKENIZER, NB_FORMAT, "token 0 is of type byte"},
    {BAD_HASH, NB_FORMAT, "tokenizer_hash says 00"},
    {NO_VOCABULARY, NB_FORMAT, "a vocabulary of 0"},
};

static void write_lie(const char *path, int fault)
{
    fm_tokenizer tk = byte_tokenizer();
    uint8_t *bytes;
    size_t n_bytes;
    must(fm_tokenizer_to_bytes(&tk, &bytes, &n_bytes));
    char hash[17];
    (void)snprintf(hash, sizeof hash, "%016llx", fault == BAD_HASH ? 0 : (unsigned long long)tk.hash);
    bytes[50] ^= fault == BAD_TOKENIZER;
    const uint16_t ids[4] = {1, 2, fault == ID_TOO_LARGE ? 258 : 257, 0};
    const int64_t starts[3] = {fault == NOT_FROM_0, 2, fault == UNSORTED ? 1 : fault == BEYOND ? 5 : 3};
    const int64_t n = 4, n_documents = fault == NO_DOCUMENTS ? 0 : 3, n_tokenizer = (int64_t)n_bytes;
    static const float floats[4];
    fm_h5 f;
    must(fm_h5_create(&f, path, "tokens"));
    must(fm_h5_put_int(&f, "", "format_version", fault == VERSION_2 ? 2 : 1));
    must(fm_h5_put_int(&f, "", "vocab_size", fault == NO_VOCABULARY ? 0 : 258));
    must(fm_h5_put_int(&f, "", "row_length", 0));
    must(fm_h5_put_int(&f, "", "seed", 0));
    must(fm_h5_put_string(&f, "", "settings", "{}"));
    must(fm_h5_put_string(&f, "", "tokenizer_hash", hash));
    if (fault != NO_IDS)
        must(fm_h5_write(&f, "ids", fault == FLOAT_IDS ? FM_F32 : FM_U16, 1, &n,
                         fault == FLOAT_IDS ? (const void *)floats : ids));
    must(fm_h5_write(&f, "documents", FM_I64, 1, &n_documents, starts));
    must(fm_h5_write(&f, "tokenizer", FM_U8, 1, &n_tokenizer, bytes));
    must(fm_h5_commit(&f));
    free(bytes);
    fm_tokenizer_free(&tk);
}

START_TEST(a_token_file_that_lies_is_refused)
{
    const char *path = scratch_path("lie.h5");
    write_lie(path, lies[_i].fault);
    fm_tokens t;
    status s = fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE);
    int32_t ids[4];
    if (s == NB_OK)
        s = fm_tokens_read(&t, ids, 0, 4);
    ck_assert_msg(s == lies[_i].wanted, "%s: %s", nb_status_name(s), nb_fail_message());
    if (s != NB_OK)
        ck_assert_msg(strstr(nb_fail_message(), lies[_i].message) && strstr(nb_fail_message(), path), "%s",
                      nb_fail_message());
    fm_tokens_close(&t);
}
END_TEST

START_TEST(another_tokenizer_than_the_file_s_is_refused)
{
    static const char bin[] = "../shared/data/stories260k/tok512.bin";
    if (!nb_path_exists(bin)) {
        printf("skipped: no %s\n", bin);
        return;
    }
    write_lie(scratch_path("tokens.h5"), GOOD);
    fm_tokenizer tk;
    must(fm_tokenizer_open(&tk, bin, 0));
    fm_tokens t;
    must_fail(fm_tokens_open(&t, scratch_path("tokens.h5"), &tk, FM_SPLIT_NONE), NB_USAGE, "another tokenizer");
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(every_failing_allocation_is_reported)
{
    fm_tokenizer tk = byte_tokenizer();
    fm_tokens_settings s = settings_for(&tk);
    const char *path = scratch_path("tokens.h5"), *text = scratch_write("text", "ab\ncd\n", 6);
    status done = NB_NOMEM;
    for (int64_t k = 1; done != NB_OK && k < 1000; k++) {
        fm_tokens_writer w = {0};
        fm_tokens t = {0}, u = {0};
        int32_t ids[BATCH];
        allocations_left = k;
        done = fm_tokens_writer_open(&w, path, &s, true);
        if (done == NB_OK)
            done = go_on(&w, 2, 300);
        if (done == NB_OK)
            done = fm_tokens_writer_finish(&w);
        if (done == NB_OK)
            done = fm_tokens_open(&t, path, &tk, FM_SPLIT_NONE);
        if (done == NB_OK)
            done = fm_tokens_read(&t, ids, 0, BATCH);
        if (done == NB_OK)
            done = fm_tokens_open(&u, text, &tk, FM_SPLIT_LINE);
        allocations_left = -1;
        ck_assert_msg(done == NB_OK || done == NB_NOMEM, "%s: %s", nb_status_name(done), nb_fail_message());
        fm_tokens_writer_close(&w);
        fm_tokens_close(&t);
        fm_tokens_close(&u);
    }
    ck_assert_int_eq(done, NB_OK);
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokens");
    TCase *t = tcase_create("tokens");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, what_was_written_is_read, 0, COUNT(vocabularies));
    tcase_add_test(t, documents_begin_where_the_caller_says);
    tcase_add_test(t, a_file_without_tokens_is_fine);
    tcase_add_test(t, a_text_is_read_like_a_token_file);
    tcase_add_test(t, stories100_has_its_tokens);
    tcase_add_loop_test(t, a_token_file_that_lies_is_refused, 0, COUNT(lies));
    tcase_add_test(t, another_tokenizer_than_the_file_s_is_refused);
    tcase_add_test(t, every_failing_allocation_is_reported);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
